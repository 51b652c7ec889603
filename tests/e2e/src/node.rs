//! A node: its daemon, and the commands that talk to it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use edgelink_api::local::{DaemonState, PathKind, Peer, Status};
use edgelink_testbed::{Host, HostCommand, Output, Process, wait};
use nix::sys::signal::Signal;

use crate::{SOON, TUN, net::binary};

/// A host with EdgeLink's client on it.
#[derive(Debug)]
pub struct Node {
    /// Where it runs.
    pub host: Host,
    dir: PathBuf,
    config: Option<PathBuf>,
    process: Option<Process>,
}

impl Node {
    pub(crate) fn new(host: Host, lab: &Path) -> Self {
        let dir = lab.join(host.name());
        Self { host, dir, config: None, process: None }
    }

    /// Where it keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.dir
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.with_extension("sock")
    }

    /// Writes its configuration file, which the daemon is given at its next start (or takes over at SIGHUP).
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn configure(&mut self, config: &serde_json::Value) -> Result<()> {
        let file = self.dir.with_extension("json");
        std::fs::write(&file, config.to_string())?;
        self.config = Some(file);
        Ok(())
    }

    /// `edgelink run`, to be started.
    ///
    /// # Errors
    ///
    /// When the binary is missing.
    pub fn daemon(&self) -> Result<HostCommand> {
        Ok(self.host.command(binary("edgelink")?).args(self.daemon_arguments()?))
    }

    /// The arguments of [`Self::daemon`].
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn daemon_arguments(&self) -> Result<Vec<String>> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
        let (dir, socket) = (text(&self.dir)?, text(&self.socket())?);
        let mut arguments = ["run", "--state-dir", &dir, "--socket", &socket].map(str::to_owned).to_vec();
        if let Some(config) = &self.config {
            arguments.extend(["--config".to_owned(), text(config)?]);
        }
        Ok(arguments)
    }

    /// Starts the daemon and waits until it answers commands.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn run(&mut self) -> Result<()> {
        let command = self.daemon()?;
        self.run_as(command)
    }

    /// [`Self::run`] with a command of the caller's making.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub fn run_as(&mut self, command: HostCommand) -> Result<()> {
        let process = command.spawn_logged()?;
        wait::until("the daemon's answer", SOON, || {
            let answer = || self.edgelink(&["status"]).ok()?.output().ok()?.status.success().then_some(Ok(()));
            if process.has_ended() { Some(Err(process.stderr())) } else { answer() }
        })?
        .map_err(|text| anyhow::anyhow!("{} ended: {text}", process.name()))?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts the daemon without waiting for anything.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(&mut self) -> Result<&Process> {
        let process = self.daemon()?.spawn_logged()?;
        Ok(self.process.insert(process))
    }

    /// The daemon's process.
    ///
    /// # Errors
    ///
    /// When it was not started.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("{}: no daemon was started", self.host.name()))
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// # Errors
    ///
    /// As [`Process::kill`].
    pub fn kill(&mut self) -> Result<()> {
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// Sends a signal that should end it and waits until it has.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn end(&mut self, signal: Signal) -> Result<(ExitStatus, String)> {
        let process = self.process.take().context("no daemon was started")?;
        process.signal(signal)?;
        let status = process.wait(SOON)?;
        Ok((status, process.stderr()))
    }

    /// An everyday command: `edgelink ARGUMENTS` with the daemon's socket.
    ///
    /// # Errors
    ///
    /// When the binary is missing.
    pub fn edgelink(&self, arguments: &[&str]) -> Result<HostCommand> {
        Ok(self.host.command(binary("edgelink")?).args(arguments).env("EDGELINK_SOCKET", self.socket()))
    }

    /// A line as a person would type it, `edgelink` being on the PATH.
    ///
    /// # Errors
    ///
    /// When the binary is missing.
    pub fn shell(&self, line: &str) -> Result<HostCommand> {
        let bin = binary("edgelink")?;
        let bin = bin.parent().and_then(Path::to_str).context("a path that is not UTF-8")?;
        let line = format!("PATH={bin}:$PATH; {line}");
        Ok(self.host.command("sh").args(["-c", &line]).env("EDGELINK_SOCKET", self.socket()))
    }

    /// `edgelink up` with these arguments, however it ends.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub fn up(&self, arguments: &[&str]) -> Result<Output> {
        self.edgelink(&[&["up"], arguments].concat())?.output()
    }

    /// `edgelink status --json`, as text.
    ///
    /// # Errors
    ///
    /// When it does not succeed.
    pub fn status_json(&self) -> Result<String> {
        self.edgelink(&["status", "--json"])?.run()
    }

    /// What the daemon says of itself.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn status(&self) -> Result<Status> {
        let text = self.status_json()?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// Waits until the status is as wanted, and returns it.
    ///
    /// # Errors
    ///
    /// When the time is over; the last status is in the error.
    pub fn wait_status(&self, what: &str, timeout: Duration, wanted: impl Fn(&Status) -> bool) -> Result<Status> {
        let mut last = None;
        let found = wait::until(what, timeout, || {
            last = self.status().ok();
            last.clone().filter(|status| wanted(status))
        });
        found.with_context(|| format!("{}: last seen {last:#?}", self.host.name()))
    }

    /// Waits until it is in this state.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_status`].
    pub fn wait_state(&self, state: DaemonState, timeout: Duration) -> Result<Status> {
        self.wait_status(&format!("state {state:?}"), timeout, |status| status.state == state)
    }

    /// Waits until it knows the peer of this name and a path to it.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_status`].
    pub fn wait_peer(&self, name: &str) -> Result<Status> {
        let reachable = |peer: &Peer| peer.name == name && peer.online && peer.path.kind != PathKind::None;
        self.wait_status(&format!("peer {name}"), crate::SOON, |status| status.peers.iter().any(reachable))
    }

    /// What the daemon says of a peer.
    ///
    /// # Errors
    ///
    /// When it knows none of this name.
    pub fn peer(&self, name: &str) -> Result<Peer> {
        let peers = self.status()?.peers;
        peers.into_iter().find(|peer| peer.name == name).with_context(|| format!("no peer {name}"))
    }

    /// Its first overlay address.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn overlay(&self) -> Result<IpAddr> {
        self.status()?.addresses.first().copied().context("no overlay address")
    }

    /// Waits for the first answered ping through the tunnel and returns how long that took.
    ///
    /// # Errors
    ///
    /// When the time is over.
    pub fn wait_ping(&self, target: IpAddr, timeout: Duration) -> Result<Duration> {
        let target = target.to_string();
        let began = std::time::Instant::now();
        wait::until(&format!("{}: a ping to {target}", self.host.name()), timeout, || {
            // 200 ms instead of the second of `Host::pings`: what is measured is when it works.
            let ping = self.host.command("ping").args(["-n", "-q", "-c", "1", "-W", "0.2", target.as_str()]);
            ping.output().ok()?.status.success().then_some(())
        })?;
        Ok(began.elapsed())
    }

    /// Whether the TUN interface is there.
    ///
    /// # Errors
    ///
    /// When `ip` cannot be run.
    pub fn has_tun(&self) -> Result<bool> {
        self.host.has_interface(TUN)
    }

    /// Fails if anything of the daemon is left on its host: interface, routes, rules, sockets in use.
    ///
    /// # Errors
    ///
    /// Names what is left.
    pub fn check_clean(&self) -> Result<()> {
        if self.has_tun()? {
            bail!("{}: the interface {TUN} is left", self.host.name());
        }
        let routes = self.host.command("ip").args(["route", "show", "table", "all"]).run()?;
        let foreign = routes.lines().find(|line| !line.contains("eth0") && !line.contains("dev lo"));
        if let Some(line) = foreign {
            bail!("{}: a route is left: {line}", self.host.name());
        }
        let rules = self.host.command("ip").args(["rule", "show"]).run()?;
        if rules.lines().count() != 3 {
            bail!("{}: a rule is left:\n{rules}", self.host.name());
        }
        let tables = self.host.command("nft").args(["list", "tables"]).run()?;
        if !tables.trim().is_empty() {
            bail!("{}: a firewall table is left: {tables}", self.host.name());
        }
        Ok(())
    }
}
