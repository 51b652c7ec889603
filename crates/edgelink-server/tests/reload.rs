//! Hot reload of the real binary.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and reads the clock"
)]

use edgelink_auth::token::{Issuer, ServerClaims, TokenKeys};
use edgelink_model::ServerId;
use edgelink_net::tls::{ClientTls, Pin, client_config};
use edgelink_net::ws::{Dial, dial};
use edgelink_server::certificate;
use getrandom::SysRng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand_core::UnwrapErr;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

/// Generous: the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    child: Child,
    dir: tempfile::TempDir,
    url: String,
}

impl Server {
    fn start(config: impl FnOnce(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = config(dir.path());
        let file = dir.path().join("server.json");
        fs::write(&file, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_edgelink-server"))
            .arg("--config")
            .arg(&file)
            .env_clear()
            .env("EDGELINK_STATE_DIR", dir.path().join("state"))
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let Some((_, address)) = ready.trim().split_once(" on ") else {
            panic!("not ready: {ready:?}\n{}", fs::read_to_string(dir.path().join("log")).unwrap());
        };
        Self { child, url: format!("wss://{address}/ws/data"), dir }
    }

    fn write(&self, file: &str, text: &str) {
        // As editors do it: never half a file.
        fs::write(self.dir.path().join("new"), text).unwrap();
        fs::rename(self.dir.path().join("new"), self.dir.path().join(file)).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Waits for a line of the log behind its first `from` bytes.
    #[track_caller]
    fn says(&self, from: usize, what: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log()[from..].contains(what) {
            assert!(Instant::now() < end, "not logged: {what}\n{}", &self.log()[from..]);
            sleep(Duration::from_millis(20));
        }
    }

    /// Whether the relay shows a certificate with this pin.
    fn shows(&self, pin: Pin) -> bool {
        let tls = client_config(&ClientTls { pin: Some(pin), ..ClientTls::default() }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(dial(&Dial::new(self.url.clone(), tls))).is_ok()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn token() -> String {
    let mut rng = UnwrapErr(SysRng);
    let claims = ServerClaims {
        server_id: ServerId(7),
        server_name: "r".into(),
        capabilities: vec!["relay".into()],
        region: String::new(),
        iat: 0,
        exp: u64::from(u32::MAX),
        jti: "j".into(),
    };
    Issuer::new(&TokenKeys::generate(&mut rng)).server(&claims).unwrap()
}

/// Writes a certificate from a CA of its own; returns its pin.
fn certify(dir: &Path, ca: &str) -> Pin {
    let place = dir.join(ca);
    fs::create_dir(&place).unwrap();
    let names = BTreeSet::from(["127.0.0.1".to_owned()]);
    let own = certificate::own(&place, &names, SystemTime::now()).unwrap();
    fs::write(dir.join("cert.pem"), own.chain).unwrap();
    fs::write(dir.join("key.pem"), own.key).unwrap();
    own.pin
}

#[test]
fn what_can_change_does_and_what_cannot_is_named() {
    let (token, other) = (token(), token());
    let config = |dir: &Path, token: &str, more: &str| {
        let dir = dir.display();
        format!(
            r#"{{ "controller": {{ "url": "wss://127.0.0.1:1", "token": "{token}" }}, "stun": {{ "enabled": false }},
                "relay": {{ "listen": "127.0.0.1:0", "tls": {{ "cert": "{dir}/cert.pem", "key": "{dir}/key.pem" }} {more} }} }}"#
        )
    };
    let mut first = None;
    let mut server = Server::start(|dir| {
        first = Some(certify(dir, "ca1"));
        config(dir, &token, "")
    });
    let (dir, first) = (server.dir.path().to_owned(), first.unwrap());
    assert!(server.shows(first));

    // At SIGHUP, and by itself.
    server.signal(Signal::SIGHUP);
    server.says(0, "SIGHUP: configuration and certificate read again; nothing changed at run time");
    let before = server.log().len();
    let more = r#", "ws_mesh": "/x", "trusted_proxies": ["10.0.0.0/8"]"#;
    server.write("server.json", &config(&dir, &other, more));
    server.says(before, r#"a file changed: configuration changed: relay.trusted_proxies [] → ["10.0.0.0/8"]"#);
    server.says(before, "in force only after a restart: ");
    let log = server.log();
    assert!(log.contains(r#"relay.ws_mesh "/ws/mesh" → "/x""#), "{log}");
    assert!(log.contains("controller.token"), "{log}");
    assert!(!log.contains(&token) && !log.contains(&other), "a secret in the log");

    // A certificate for new connections.
    let before = server.log().len();
    let second = certify(&dir, "ca2");
    server.signal(Signal::SIGHUP);
    server.says(before, "SIGHUP: configuration and certificate read again");
    assert!(server.shows(second) && !server.shows(first));

    // What is not good changes nothing.
    let before = server.log().len();
    server.write("server.json", &config(&dir, &other, r#", "trusted_proxies": "soon""#));
    server.says(before, "the new configuration is refused, the old one stays in force");
    server.says(before, "`relay.trusted_proxies`");
    server.write("server.json", &config(&dir, &other, more));
    let before = server.log().len();
    server.write("cert.pem", "no certificate");
    server.signal(Signal::SIGHUP);
    server.says(before, "SIGHUP: the new configuration is refused");
    assert!(server.shows(second));

    server.signal(Signal::SIGTERM);
    assert!(server.child.wait().unwrap().success());
}
