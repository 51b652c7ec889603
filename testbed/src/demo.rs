//! `make demo`: a controller and two nodes on networks that let nothing but TCP to one port through, joined by the
//! command that the controller prints. In the second act a site joins behind two gateways.
//!
//! Nothing is written outside the lab's directory, and the lab takes everything away at the end: normal, failed,
//! interrupted or killed.

use std::{
    fmt::Display,
    io::{ErrorKind, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicI32, Ordering},
    time::{Duration, Instant},
};

use crate::demo_site::{CIDR, Site};
use anyhow::{Context, Result, anyhow, bail, ensure};
use edgelink_testbed::{Host, HostCommand, Isolation, Lab, Process, Tool, tools, topology::TcpOnly, wait};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use serde_json::Value;

/// The controller's default port.
const PORT: u16 = 443;
/// Ports of UDP probes: where the tunnel's TCP port is, STUN's, and a high one.
const UDP_PROBES: [u16; 3] = [PORT, 3478, 40_000];
/// The default name of the client's interface.
const INTERFACE: &str = "wss-mesh0";
/// One direction of the throughput test.
const IPERF_SECONDS: u64 = 5;
const PATIENCE: Duration = Duration::from_secs(20);

/// The signal that asked us to end, or 0.
static INTERRUPTED: AtomicI32 = AtomicI32::new(0);

/// The demonstration was ended by a signal.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted(pub(crate) i32);

/// Shows it all; the binaries are in `binaries`.
///
/// # Errors
///
/// When anything did not work as it should; everything is cleaned up by then.
pub(crate) fn run(binaries: &Path) -> Result<()> {
    listen_for_signals()?;
    // What fails after a signal most likely fails because of it.
    show(binaries).map_err(|error| check_signals().err().unwrap_or(error))
}

fn show(binaries: &Path) -> Result<()> {
    let began = Instant::now();
    let binaries = Binaries::find(binaries)?;
    tools::require(&Tool::ALL)?;
    tools::require_tun()?;

    heading("The network")?;
    let lab = Lab::with_tools(&Tool::ALL)?;
    let net = TcpOnly::new(&lab, PORT, &["alice", "bob", "gate1", "gate2"])?;
    let [alice, bob, gates @ ..] = net.nodes.as_slice() else { bail!("four nodes were asked for") };
    let how = match lab.isolation() {
        Isolation::Root => "network namespaces, as root",
        Isolation::UserNamespace => "network namespaces inside a user namespace: no root needed",
    };
    text(&format!(
        "alice  {} ──┐\n\
         \x20                 ├── router ── {}  controller and relay\n\
         bob    {} ──┘\n\n\
         ({how})\n\
         The router lets TCP to {} port {PORT} pass and drops everything else: UDP, ICMP, alice to bob.",
        TcpOnly::node_address(1),
        TcpOnly::RELAY,
        TcpOnly::node_address(2),
        TcpOnly::RELAY,
    ))?;
    prove_udp_is_blocked(&net, alice)?;

    heading("The controller, with nothing configured")?;
    let mut world = World { lab: &lab, binaries: &binaries, processes: Vec::new() };
    if let Err(error) = world.show(&net, alice, bob, gates) {
        if check_signals().is_ok() {
            world.tell_logs();
        }
        return Err(error);
    }
    drop(world);
    drop(net);
    drop(lab);
    heading("Done")?;
    text(&format!("Everything worked and everything is cleaned up again, after {} s.", began.elapsed().as_secs()))
}

/// The programs that are shown.
struct Binaries {
    controller: PathBuf,
    client: PathBuf,
    ctl: PathBuf,
}

impl Binaries {
    fn find(dir: &Path) -> Result<Self> {
        // A host's processes start elsewhere than we do.
        let dir = dir.canonicalize().with_context(|| format!("{}: build first: make build", dir.display()))?;
        let find = |name: &str| {
            let path = dir.join(name);
            ensure!(path.is_file(), "{} is missing; build it first: make build", path.display());
            Ok(path)
        };
        Ok(Self { controller: find("edgelink-controller")?, client: find("edgelink")?, ctl: find("edgelink-ctl")? })
    }
}

/// What runs in the lab.
struct World<'a> {
    lab: &'a Lab,
    binaries: &'a Binaries,
    /// The controller first, then the nodes.
    processes: Vec<Process>,
}

impl World<'_> {
    fn show(&mut self, net: &TcpOnly, alice: &Host, bob: &Host, gates: &[Host]) -> Result<()> {
        let join = self.start_controller(&net.relay)?;

        heading("Two nodes join with that command")?;
        for node in [alice, bob] {
            self.join(node, &join)?;
        }
        self.await_each_other(&[alice, bob])?;

        for node in [alice, bob] {
            heading(&format!("{}: edgelink status", node.name()))?;
            text(&run_to_end(self.client(node, &["status"]))?)?;
        }
        let (from, to) = (self.address(alice)?, self.address(bob)?);
        let target = to.to_string();

        heading(&format!("alice: edgelink ping -c 3 {to}"))?;
        text(&run_to_end(self.client(alice, &["ping", "-c", "3", "-i", "0.3", &target]))?)?;
        heading(&format!("alice: ping -c 3 {to}"))?;
        text(&run_to_end(alice.command("ping").args(["-n", "-c", "3", "-i", "0.3", "-W", "3", &target]))?)?;

        heading(&format!("iperf3 through the tunnel, one TCP connection, {IPERF_SECONDS} s each way"))?;
        self.throughput(alice, bob, from, to, false)?;
        self.throughput(alice, bob, from, to, true)?;

        let survivor = self.second_act(&join, alice, gates)?;

        heading("The end")?;
        self.end(&[alice, bob, survivor])?;
        text(&format!("The router dropped {} packets; the tunnel needed none of them.", net.router.dropped()?))
    }

    /// A site behind two gateways, one of which is killed while a download runs; returns the other one.
    fn second_act<'h>(&mut self, join: &[String], alice: &Host, gates: &'h [Host]) -> Result<&'h Host> {
        heading(&format!("Second act: a site ({CIDR}) behind two gateways"))?;
        let [first, second] = gates else { bail!("two gateways were asked for") };
        let site = Site::new(self.lab, &[first, second])?;
        site.serve()?;
        for (gate, priority) in [(first, 200), (second, 100)] {
            let config = Site::gateway(priority);
            text(&format!("{}: client.json  {config}", gate.name()))?;
            std::fs::write(self.config(gate), config)?;
            self.join(gate, join)?;
        }
        text("\nThe routes wait for an administrator:\n$ edgelink-ctl route enable …")?;
        self.approve()?;
        until("alice: both routes", || match self.status(alice) {
            Ok(status) => (routes(&status) == 2).then_some(Ok(())),
            Err(error) => Some(Err(error)),
        })??;
        heading("alice: edgelink routes")?;
        text(&run_to_end(self.client(alice, &["routes"]))?)?;

        heading("alice downloads from a host behind them; gate1 is killed (kill -9) on the way")?;
        let at = self.processes.iter().position(|process| process.name().starts_with(first.name()));
        let victim = self.processes.remove(at.context("no process of gate1")?);
        let done = site.download(alice, || victim.kill().map(drop))?;
        text(&format!(
            "through {}; all bytes right after {:.1} s, the longest time without a byte was {:.1} s ({} resumption{}).",
            done.gateways.join(", then "),
            done.took.as_secs_f64(),
            done.longest_gap.as_secs_f64(),
            done.resumed,
            if done.resumed == 1 { "" } else { "s" },
        ))?;
        ensure!(done.gateways.last().map(String::as_str) == Some("192.168.77.2"), "the second gateway never took over");
        Ok(second)
    }

    /// Enables every route that waits.
    fn approve(&self) -> Result<()> {
        let database = self.lab.dir().join("controller").join("mesh.db");
        let ctl = |arguments: &[&str]| {
            let command = Command::new(&self.binaries.ctl).arg("--db").arg(&database).args(arguments).output()?;
            let answer = String::from_utf8_lossy(&command.stdout).into_owned();
            ensure!(command.status.success(), "edgelink-ctl: {}", String::from_utf8_lossy(&command.stderr));
            Ok(answer)
        };
        let list = || -> Result<Vec<Value>> { Ok(serde_json::from_str(&ctl(&["route", "list", "--json"])?)?) };
        let waiting = until("the announced routes", || match list() {
            Ok(list) => (list.len() == 2).then_some(Ok(list)),
            Err(error) => Some(Err(error)),
        })??;
        for route in waiting {
            let id = route.get("id").and_then(Value::as_u64).context("a route without id")?;
            ctl(&["route", "enable", &id.to_string()])?;
        }
        Ok(())
    }

    fn config(&self, node: &Host) -> PathBuf {
        self.lab.dir().join(format!("{}.json", node.name()))
    }

    /// Starts the controller on its embedded defaults and returns the words of the command that it prints.
    fn start_controller(&mut self, host: &Host) -> Result<Vec<String>> {
        let state = self.lab.dir().join("controller");
        let program = self.at_home(host.command(&self.binaries.controller), "relay").arg("--state-dir").arg(state);
        let began = Instant::now();
        text("$ edgelink-controller")?;
        let controller = program.spawn_logged()?;
        wait_line(&controller, "ready ")?;
        // Whatever it logged is in the order of the clock; the command is on the line of its own.
        let printed = wait_line(&controller, "edgelink up ")?;
        text(&format!("ready after {} ms; it printed:\n\n    {}", began.elapsed().as_millis(), printed.trim()))?;
        self.processes.push(controller);

        let mut words: Vec<String> = printed.split_whitespace().map(str::to_owned).collect();
        let url = words.get_mut(2).ok_or_else(|| anyhow!("no URL in {printed:?}"))?;
        let reachable = format!("wss://{}", TcpOnly::RELAY);
        if *url != reachable {
            text(&format!("\n(Nodes cannot reach {url} here; they use {reachable}.)"))?;
            *url = reachable;
        }
        Ok(words)
    }

    /// Starts a node's daemon and joins it.
    fn join(&mut self, node: &Host, join: &[String]) -> Result<()> {
        let state = self.lab.dir().join(node.name());
        let mut daemon = self.client(node, &["run", "--state-dir"]).arg(state);
        if self.config(node).exists() {
            daemon = daemon.arg("--config").arg(self.config(node));
        }
        let daemon = daemon.spawn_logged()?;
        let began = Instant::now();
        let socket = self.socket(node);
        until(&format!("{}: the daemon's socket", node.name()), || match daemon.has_ended() {
            true => Some(Err(anyhow!("{}: the daemon ended", node.name()))),
            false => socket.exists().then_some(Ok(())),
        })??;
        self.processes.push(daemon);
        let up: Vec<&str> = join.iter().skip(1).map(String::as_str).collect();
        let answer = run_to_end(self.client(node, &up))?;
        text(&format!("{:<5}  {}  ({} ms from its start)", node.name(), answer.trim(), began.elapsed().as_millis()))
    }

    /// Until every node shows the other as reachable.
    fn await_each_other(&self, nodes: &[&Host]) -> Result<()> {
        for node in nodes {
            until(&format!("{}: the other node", node.name()), || match self.status(node) {
                Ok(status) => reaches_its_peer(&status).then_some(Ok(())),
                Err(error) => Some(Err(error)),
            })??;
        }
        text("Each sees the other.")
    }

    fn status(&self, node: &Host) -> Result<Value> {
        let json = run_to_end(self.client(node, &["status", "--json"]))?;
        serde_json::from_str(&json).context("edgelink status --json")
    }

    /// A node's first overlay address.
    fn address(&self, node: &Host) -> Result<IpAddr> {
        let status = self.status(node)?;
        let address = status.pointer("/addresses/0").and_then(Value::as_str);
        address.and_then(|a| a.parse().ok()).ok_or_else(|| anyhow!("{}: no overlay address", node.name()))
    }

    /// One direction: `back` is from bob to alice.
    fn throughput(&self, alice: &Host, bob: &Host, from: IpAddr, to: IpAddr, back: bool) -> Result<()> {
        let (from, to) = (from.to_string(), to.to_string());
        let server = bob.command("iperf3").args(["-s", "-1", "-B", &to, "--forceflush"]).spawn_logged()?;
        wait_line(&server, "Server listening")?;
        let before = self.cpu_time()?;
        let seconds = IPERF_SECONDS.to_string();
        let mut client = alice.command("iperf3");
        client = client.args(["-c", &to, "-B", &from, "-P", "1", "-t", &seconds, "-J"]);
        let report = run_to_end(if back { client.arg("-R") } else { client })?;
        let cpu = self.cpu_time()?.saturating_sub(before);
        let Measured { mbit_per_second, bytes } = measured(&report)?;
        let per_gib = cpu.as_secs_f64() / (bytes / f64::from(1 << 30));
        let direction = if back { "bob   → alice" } else { "alice → bob  " };
        text(&format!(
            "{direction}  {mbit_per_second:>7.0} Mbit/s   {per_gib:.2} CPU seconds per GiB (controller with relay, both nodes)"
        ))
    }

    fn cpu_time(&self) -> Result<Duration> {
        self.processes.iter().map(Process::cpu_time).sum()
    }

    /// Ends everything with SIGTERM, nodes first, and looks whether they left anything.
    fn end(&mut self, nodes: &[&Host]) -> Result<()> {
        let interface = INTERFACE;
        let before: Vec<bool> = nodes.iter().map(|node| node.has_interface(interface)).collect::<Result<_>>()?;
        while let Some(process) = self.processes.pop() {
            let status = process.terminate(PATIENCE)?;
            ensure!(status.success(), "{} ended badly: {status}\n{}", process.name(), process.stderr());
        }
        for (node, had) in nodes.iter().zip(before) {
            ensure!(had, "{}: there was no interface {interface}", node.name());
            ensure!(!node.has_interface(interface)?, "{}: {interface} was left behind", node.name());
        }
        text("SIGTERM: nodes and controller ended cleanly and left no interface behind.")
    }

    /// `edgelink ARGUMENTS` on a node.
    fn client(&self, node: &Host, arguments: &[&str]) -> HostCommand {
        let command = node.command(&self.binaries.client).arg("--socket").arg(self.socket(node)).args(arguments);
        self.at_home(command, node.name())
    }

    fn socket(&self, node: &Host) -> PathBuf {
        self.lab.dir().join(format!("{}.sock", node.name()))
    }

    /// Without this user's settings, and with a home that goes with the lab.
    fn at_home(&self, mut command: HostCommand, name: &str) -> HostCommand {
        for (key, _) in std::env::vars_os() {
            let ours = key.to_str().is_some_and(|key| key.starts_with("EDGELINK_") && key != "EDGELINK_LOG");
            if ours || key.to_str().is_some_and(|key| key.to_ascii_lowercase().ends_with("_proxy")) {
                command = command.env_remove(key);
            }
        }
        let home = self.lab.dir().join(format!("{name}.home"));
        let under = |sub: &str| home.join(sub);
        command
            .env("HOME", &home)
            .env("XDG_STATE_HOME", under("state"))
            .env("XDG_CONFIG_HOME", under("config"))
            .env("XDG_CACHE_HOME", under("cache"))
            .env("XDG_RUNTIME_DIR", under("run"))
            .env_remove("STATE_DIRECTORY")
    }

    /// The last words of everything that ran.
    fn tell_logs(&self) {
        for process in &self.processes {
            let log = process.stderr();
            let skip = log.lines().count().saturating_sub(20);
            eprintln!("\n--- log of {}", process.name());
            log.lines().skip(skip).for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Sends datagrams where TCP gets through and elsewhere, and sees that none arrives and the router counts them.
fn prove_udp_is_blocked(net: &TcpOnly, node: &Host) -> Result<()> {
    let before = net.router.dropped()?;
    let socket = node.udp_socket(SocketAddr::from(([0, 0, 0, 0], 0)))?;
    for port in UDP_PROBES {
        let target = SocketAddr::from((TcpOnly::RELAY, port));
        let there = net.relay.udp_socket(target)?;
        there.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send_to(b"does UDP pass?", target)?;
        match there.recv_from(&mut [0; 64]) {
            Ok(_) => bail!("UDP to port {port} passed the router"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        check_signals()?;
    }
    let dropped = net.router.dropped()? - before;
    let sent = UDP_PROBES.len();
    ensure!(dropped >= sent as u64, "the router dropped {dropped} of {sent} UDP packets");
    let ports = UDP_PROBES.map(|port| port.to_string()).join(", ");
    text(&format!("Proof: {sent} UDP datagrams to ports {ports}: none arrived, the router dropped {dropped}."))
}

/// How many routes are installed.
fn routes(status: &Value) -> usize {
    let routes = status.get("routes").and_then(Value::as_array);
    routes.map_or(0, |routes| routes.iter().filter(|route| route.get("skipped").is_some_and(Value::is_null)).count())
}

/// Whether a status shows the one other node online and a path to it.
fn reaches_its_peer(status: &Value) -> bool {
    let peers = status.get("peers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let online = |peer: &Value| peer.get("online").and_then(Value::as_bool) == Some(true);
    let path = |peer: &Value| peer.pointer("/path/kind").and_then(Value::as_str).is_some_and(|kind| kind != "none");
    !peers.is_empty() && peers.iter().all(|peer| online(peer) && path(peer))
}

/// What iperf3 saw arrive.
#[derive(Debug, PartialEq)]
struct Measured {
    mbit_per_second: f64,
    bytes: f64,
}

fn measured(report: &str) -> Result<Measured> {
    let report: Value = serde_json::from_str(report).context("iperf3's report")?;
    if let Some(error) = report.get("error").and_then(Value::as_str) {
        bail!("iperf3: {error}");
    }
    let sum = |key: &str| report.pointer(&format!("/end/sum_received/{key}")).and_then(Value::as_f64);
    let (bits, bytes) = sum("bits_per_second").zip(sum("bytes")).context("iperf3's report has no sum")?;
    ensure!(bytes > 0.0, "iperf3 transferred nothing");
    Ok(Measured { mbit_per_second: bits / 1e6, bytes })
}

// What waits also looks for signals, so that Ctrl-C ends the demonstration in the ordinary way, lab first.

/// Runs a program to its successful end and returns what it printed.
fn run_to_end(command: HostCommand) -> Result<String> {
    let process = command.spawn_logged()?;
    until(process.name(), || process.has_ended().then_some(()))?;
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "{} failed: {status}\n{}{}", process.name(), process.stdout(), process.stderr());
    Ok(process.stdout())
}

fn wait_line(process: &Process, pattern: &str) -> Result<String> {
    until(&format!("{}: a line with {pattern:?}", process.name()), || {
        let ended = process.has_ended();
        let found = process.lines().into_iter().map(|line| line.text).find(|line| line.contains(pattern));
        match found {
            Some(line) => Some(Ok(line)),
            None if ended => Some(Err(anyhow!("{} ended:\n{}", process.name(), process.stderr()))),
            None => None,
        }
    })?
}

/// Looks until there is something, for [`PATIENCE`], or until a signal comes.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    wait::until(what, PATIENCE, || match check_signals() {
        Ok(()) => look().map(Ok),
        Err(interrupted) => Some(Err(interrupted)),
    })?
}

fn check_signals() -> Result<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Interrupted(signal).into()),
    }
}

extern "C" fn remember(signal: libc::c_int) {
    INTERRUPTED.store(signal, Ordering::Relaxed);
}

fn listen_for_signals() -> Result<()> {
    // The second one ends us at once; the lab is taken away all the same.
    let action =
        SigAction::new(SigHandler::Handler(remember), SaFlags::SA_RESETHAND | SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but store to an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

fn heading(title: &str) -> Result<()> {
    check_signals()?;
    let bold = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let (on, off) = if bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    line(format_args!("\n{on}== {title}{off}\n"))
}

/// Prints lines, indented.
fn text(text: &str) -> Result<()> {
    text.trim_end().lines().try_for_each(|one| if one.is_empty() { line("") } else { line(format_args!("  {one}")) })
}

fn line(line: impl Display) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot print")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iperf_reports_are_read() {
        let good = r#"{"end": {"sum_received": {"bytes": 625000000, "bits_per_second": 1.0e9}}}"#;
        assert_eq!(measured(good).unwrap(), Measured { mbit_per_second: 1000.0, bytes: 625e6 });
        let refused = r#"{"end": {}, "error": "unable to connect to server"}"#;
        assert_eq!(measured(refused).unwrap_err().to_string(), "iperf3: unable to connect to server");
        let nothing = r#"{"end": {"sum_received": {"bytes": 0, "bits_per_second": 0}}}"#;
        assert!(measured(nothing).is_err());
        assert!(measured("").is_err());
    }

    #[test]
    fn a_peer_is_reached_when_online_with_a_path() {
        let status =
            |online: bool, kind: &str| serde_json::json!({"peers": [{"online": online, "path": {"kind": kind}}]});
        assert!(reaches_its_peer(&status(true, "relay")));
        assert!(!reaches_its_peer(&status(false, "relay")));
        assert!(!reaches_its_peer(&status(true, "none")));
        assert!(!reaches_its_peer(&serde_json::json!({"peers": []})));
        assert!(!reaches_its_peer(&serde_json::json!({})));
    }
}
