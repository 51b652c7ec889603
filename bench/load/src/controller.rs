//! The controller under test, and what its administrator does.

use crate::process::{Process, Usage, bin_dir};
use anyhow::{Context as _, Result, bail};
use edgelink_net::tls::{self, ClientTls, Pin};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;

/// A running controller on a directory of its own.
pub(crate) struct Controller {
    bin_dir: PathBuf,
    dir: TempDir,
    process: Process,
    address: SocketAddr,
    pub(crate) pin: Pin,
}

impl Controller {
    /// `config`: members of the configuration object beside where it listens.
    pub(crate) async fn start(given: Option<&Path>, config: &str, limit: Duration) -> Result<Self> {
        let bin_dir = bin_dir(given)?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("controller.json");
        // STUN needs ports of the machine, and no node here uses it.
        let config =
            format!(r#"{{"listen": {{"http": "127.0.0.1:0"}}, "builtin_stun": {{"enabled": false}}{config}}}"#);
        std::fs::write(&file, config)?;
        let state = dir.path().join("state");
        let args = [Path::new("--config"), &file, Path::new("--state-dir"), &state];
        let process = Process::start(&bin_dir.join("edgelink-controller"), &args, limit).await?;
        let ca = std::fs::read(state.join("ca.pem")).context("the controller has made no CA")?;
        let pin = tls::spki_pin(&ca)?;
        let address = process.address()?;
        Ok(Self { bin_dir, dir, process, address, pin })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn tls(&self) -> ClientTls {
        ClientTls { pin: Some(self.pin), ..ClientTls::default() }
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        self.process.usage()
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

    /// A key for the first network that approves the routes of those whom it lets in.
    pub(crate) async fn gateway_key(&self) -> Result<String> {
        self.auth_key_with(&name(0), &["--preauthorize", "--approve-routes"]).await
    }

    async fn auth_key(&self, network: &str, preauthorize: bool) -> Result<String> {
        self.auth_key_with(network, if preauthorize { &["--preauthorize"] } else { &[] }).await
    }

    async fn auth_key_with(&self, network: &str, more: &[&str]) -> Result<String> {
        let args = [&["token", "generate", "--type", "auth-key", "--network", network, "--reusable"], more].concat();
        let answer: serde_json::Value = serde_json::from_str(&self.ctl(&args).await?)?;
        Ok(answer["key"].as_str().context("edgelink-ctl printed no key")?.to_owned())
    }

    /// SIGKILL.
    #[cfg(test)]
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}

fn name(index: usize) -> String {
    format!("load-{index}")
}
