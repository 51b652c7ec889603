//! The relay under test, registered at a controller as an administrator would do it.

use crate::controller::Controller;
use crate::process::{Process, Usage, bin_dir};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use edgelink_net::tls::{self, ClientTls, Pin};
use edgelink_net::ws::{Dial, ask};
use http_body_util::Full;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// Where the controller says that it is; its nodes are ours and know better.
const URL: &str = "wss://127.0.0.1:1/ws/data";

/// A running `edgelink-server` on a directory of its own.
pub(crate) struct Server {
    process: Process,
    /// Its state.
    _dir: TempDir,
    /// Its id at the controller, for which tokens are made and challenges signed.
    pub(crate) id: u32,
    pin: Pin,
}

impl Server {
    pub(crate) async fn start(controller: &Controller, given: Option<&Path>, limit: Duration) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let state = dir.path().join("state");
        let added = ["server", "add", "--name", "load", "--url", URL, "--capabilities", "relay"];
        let added: serde_json::Value = serde_json::from_str(&controller.ctl(&added).await?)?;
        let id = added["id"].as_u64().context("edgelink-ctl printed no id")?;
        let config = serde_json::json!({
            "controller": {
                "url": format!("wss://{}/ws/server", controller.address()),
                "token": added["token"],
                "pin": controller.pin.to_string(),
            },
            // The name goes into its certificate.
            "relay": { "listen": "127.0.0.1:0", "public_url": URL },
            "stun": { "enabled": false },
            "state_dir": state,
        });
        let file = dir.path().join("server.json");
        std::fs::write(&file, config.to_string())?;
        let program = bin_dir(given)?.join("edgelink-server");
        let process = Process::start(&program, &[Path::new("--config"), &file], limit).await?;
        let ca = std::fs::read(state.join("ca.pem")).context("the server has made no CA")?;
        Ok(Self { process, _dir: dir, id: u32::try_from(id)?, pin: tls::spki_pin(&ca)? })
    }

    pub(crate) fn dial(&self) -> Result<Dial> {
        let tls = tls::client_config(&ClientTls { pin: Some(self.pin), ..ClientTls::default() })?;
        Ok(Dial::new(format!("wss://{}/ws/data", self.process.address()?), tls))
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        self.process.usage()
    }

    /// A figure of `/metrics`, with its labels.
    pub(crate) async fn metric(&self, name: &str) -> Result<u64> {
        let dial = Dial { url: format!("wss://{}", self.process.address()?), ..self.dial()? };
        let request = http::Request::get("/metrics").body(Full::new(Bytes::new()))?;
        let answer = ask(&dial, request, 1 << 20).await?;
        let text = String::from_utf8(answer.into_body().to_vec())?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.with_context(|| format!("the relay has no metric {name}"))?.parse().context("not a number")
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}
