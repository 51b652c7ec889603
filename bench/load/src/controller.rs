//! The controller under test, and what its administrator does.

use anyhow::{Context as _, Result, bail};
use edgelink_net::tls::{self, ClientTls, Pin};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// What the controller has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// CPU seconds, user and system.
    pub(crate) cpu: f64,
    /// Resident set, bytes.
    pub(crate) rss: u64,
}

/// A running controller on a directory of its own.
pub(crate) struct Controller {
    bin_dir: PathBuf,
    dir: TempDir,
    child: Child,
    pid: u32,
    pub(crate) address: SocketAddr,
    pub(crate) pin: Pin,
}

impl Controller {
    pub(crate) async fn start(bin_dir: Option<PathBuf>, limit: Duration) -> Result<Self> {
        let bin_dir = match bin_dir {
            Some(dir) => dir,
            None => std::env::current_exe()?.parent().context("this program is nowhere")?.to_owned(),
        };
        let dir = tempfile::tempdir()?;
        let config = dir.path().join("controller.json");
        // STUN needs ports of the machine, and no node here uses it.
        std::fs::write(&config, r#"{"listen": {"http": "127.0.0.1:0"}, "builtin_stun": {"enabled": false}}"#)?;
        let program = bin_dir.join("edgelink-controller");
        let mut child = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .env("EDGELINK_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pid = child.id().context("the controller ended at once")?;
        let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await? {
                // `ready URL on ADDRESS`
                if let Some(address) = line.strip_prefix("ready ").and_then(|rest| rest.rsplit(' ').next()) {
                    return Ok(address.parse()?);
                }
            }
            bail!("the controller ended before it was ready")
        };
        let address = tokio::time::timeout(limit, ready).await.context("the controller is not ready")??;
        let ca = std::fs::read(dir.path().join("state/ca.pem")).context("the controller has made no CA")?;
        let pin = tls::spki_pin(&ca)?;
        Ok(Self { bin_dir, dir, child, pid, address, pin })
    }

    pub(crate) fn tls(&self) -> ClientTls {
        ClientTls { pin: Some(self.pin), ..ClientTls::default() }
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid)
    }

    /// Runs `edgelink-ctl` on the controller's database and returns what it prints.
    pub(crate) async fn ctl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(self.bin_dir.join("edgelink-ctl"))
            .arg("--db")
            .arg(self.dir.path().join("state/mesh.db"))
            .args(["--json", "-q"])
            .args(args)
            .output()
            .await
            .context("cannot run edgelink-ctl")?;
        if !output.status.success() {
            bail!("edgelink-ctl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A network with room for so many nodes, all with the same subnet; a key that lets them in.
    pub(crate) async fn add_network(&self, index: usize, nodes: usize) -> Result<String> {
        let prefix = if nodes <= 250 { 24 } else { 20 };
        let name = name(index);
        self.ctl(&["network", "create", "--name", &name, "--subnet", &format!("10.64.0.0/{prefix}")]).await?;
        self.auth_key(&name, true).await
    }

    /// A key for the first network that lets nobody in before an administrator says so.
    pub(crate) async fn waiting_key(&self) -> Result<String> {
        self.auth_key(&name(0), false).await
    }

    async fn auth_key(&self, network: &str, preauthorize: bool) -> Result<String> {
        let mut args = vec!["token", "generate", "--type", "auth-key", "--network", network, "--reusable"];
        if preauthorize {
            args.push("--preauthorize");
        }
        let answer: serde_json::Value = serde_json::from_str(&self.ctl(&args).await?)?;
        Ok(answer["key"].as_str().context("edgelink-ctl printed no key")?.to_owned())
    }

    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid)?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = self.child.wait().await?;
        anyhow::ensure!(status.success(), "the controller ended with {status}");
        Ok(())
    }
}

fn name(index: usize) -> String {
    format!("load-{index}")
}
