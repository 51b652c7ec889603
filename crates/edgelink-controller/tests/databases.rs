//! Real controllers on real databases: take-over, a database that goes away, and being killed in the middle of writes.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may fail, and reads the clock")]

use edgelink_test_mariadb::{Database, Server};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// DESIGN §4.
const TAKE_OVER: Duration = Duration::from_secs(10);
/// For everything that has no promise; generous, for a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A controller process; killed with this value.
struct Controller {
    child: Child,
    address: SocketAddr,
    config: PathBuf,
}

impl Controller {
    /// Starts one in a directory of its own below `dir` and waits until it is ready.
    fn start(dir: &Path, name: &str, database: &Value) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::start_at(dir, name, database, address)
    }

    fn start_at(dir: &Path, name: &str, database: &Value, address: SocketAddr) -> Self {
        let config = dir.join(format!("{name}.json"));
        let content = json!({
            "listen": { "http": address },
            "tls": null,
            "public_url": format!("ws://{address}"),
            "state_dir": dir.join(name),
            "database": database,
        });
        fs::write(&config, content.to_string()).unwrap();
        let log = fs::File::create(dir.join(format!("{name}.log"))).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_edgelink-controller"))
            .args(["--config", config.to_str().unwrap()])
            .env_remove("EDGELINK_LOG")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let said = || fs::read_to_string(dir.join(format!("{name}.log"))).unwrap();
        assert!(ready.starts_with("ready "), "{}", said());
        Self { child, address, config }
    }

    /// Status line and body of `GET path`.
    fn get(&self, path: &str) -> (u16, String) {
        request(self.address, path, "")
    }

    /// What a node gets that knocks at `path`: 101, or 503 and why.
    fn knock(&self, path: &str) -> (u16, String) {
        request(
            self.address,
            path,
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: wss-mesh.1\r\n",
        )
    }

    fn is_active(&self) -> bool {
        self.get("/healthz/active").0 == 200
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in order.
    fn stop(mut self) {
        self.signal("-TERM");
        assert!(self.child.wait().unwrap().success());
    }

    /// `edgelink-controller ctl …` on this controller's database.
    fn ctl(&self, line: &str) -> Result<Value, String> {
        ctl(&self.config, line)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ctl(config: &Path, line: &str) -> Result<Value, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgelink-controller"));
    command.args(["ctl", "--json", "--config", config.to_str().unwrap()]).args(line.split_whitespace());
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap())
}

fn request(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(address) else { return (0, String::new()) };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = if headers.is_empty() { "Connection: close\r\n" } else { "" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}{end}\r\n");
    if stream.write_all(request.as_bytes()).is_err() {
        return (0, String::new());
    }
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(n) => answer.extend_from_slice(&piece[..n]),
        }
        let text = String::from_utf8_lossy(&answer);
        // A WebSocket stays open; an error has its whole body when its sentence ends.
        if text.starts_with("HTTP/1.1 101")
            || (text.contains("\r\n\r\n") && text.ends_with('\n') && !text.ends_with("\r\n"))
        {
            break;
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (code, text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
}

#[track_caller]
fn eventually(what: &str, within: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    since.elapsed()
}

fn mariadb(url: &str) -> Value {
    json!({ "type": "mariadb", "url": url })
}

#[test]
fn a_standby_takes_over_when_the_active_controller_is_killed() {
    let (dir, database) = (tempfile::tempdir().unwrap(), Database::new());
    let a = Controller::start(dir.path(), "a", &mariadb(&database.url()));
    let b = Controller::start(dir.path(), "b", &mariadb(&database.url()));
    assert!(a.is_active() && !b.is_active());
    assert_eq!((a.get("/healthz").0, b.get("/healthz").0), (200, 200), "a standby is healthy");
    for path in ["/ws/control", "/ws/server", "/ws/data"] {
        assert_eq!(a.knock(path).0, 101, "{path}");
    }
    let url = format!("ws://{}", a.address);
    eventually("the standby knows the active one", PATIENCE, || b.knock("/ws/control").1.contains(&url));
    for path in ["/ws/control", "/ws/server", "/ws/data", "/ws/mesh"] {
        let told = (503, format!("4002: this controller stands by; the active one is {url}\n"));
        assert_eq!(b.knock(path), told, "{path}");
    }

    a.kill();
    let took = eventually("take-over", TAKE_OVER, || b.knock("/ws/control").0 == 101);
    println!("taken over after {took:?}");
    assert!(b.is_active() && b.knock("/ws/data").0 == 101);

    // In order it takes no time: the lease is given up.
    let c = Controller::start(dir.path(), "c", &mariadb(&database.url()));
    assert!(!c.is_active());
    b.stop();
    let took = eventually("take-over", TAKE_OVER, || c.is_active());
    println!("taken over after {took:?} when the former one ended in order");
}

#[test]
fn a_controller_that_slept_through_its_lease_finds_itself_replaced() {
    let (dir, database) = (tempfile::tempdir().unwrap(), Database::new());
    let a = Controller::start(dir.path(), "a", &mariadb(&database.url()));
    let b = Controller::start(dir.path(), "b", &mariadb(&database.url()));
    // A connection that only the active controller may keep.
    let mut kept = TcpStream::connect(a.address).unwrap();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: wss-mesh.1\r\n";
    write!(kept, "GET /ws/server HTTP/1.1\r\nHost: {}\r\n{upgrade}\r\n", a.address).unwrap();
    a.signal("-STOP");
    eventually("take-over", TAKE_OVER, || b.is_active());
    a.signal("-CONT");
    eventually("the former one steps down", PATIENCE, || !a.is_active());
    kept.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    kept.read_to_end(&mut rest).expect("its connections end");
    let url = format!("ws://{}", b.address);
    eventually("it knows its successor", PATIENCE, || a.knock("/ws/control").1.contains(&url));
    assert!(b.is_active() && !a.is_active());
    assert_eq!(database.sql("SELECT epoch FROM controller_lease"), "2\n");
}

#[test]
fn controllers_of_one_database_show_one_certificate_and_make_one_kind_of_token() {
    let (dir, database) = (tempfile::tempdir().unwrap(), Database::new());
    let mut pins = BTreeSet::new();
    for name in ["a", "b"] {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = dir.path().join(format!("{name}.json"));
        let content = json!({
            "listen": { "http": address },
            "state_dir": dir.path().join(name),
            "database": mariadb(&database.url()),
        });
        fs::write(&config, content.to_string()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_edgelink-controller"))
            .args(["--config", config.to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        assert!(ready.starts_with("ready "));
        pins.insert(fs::read_to_string(dir.path().join(name).join("ca.pem")).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        let added =
            ctl(&config, &format!("server add --name r{name} --url wss://r{name}.example.com/ws/data")).unwrap();
        let pin = added["config"]["controller"]["pin"].as_str().unwrap().to_owned();
        assert!(pin.starts_with("sha256:"), "{added}");
        pins.insert(pin);
    }
    assert_eq!(pins.len(), 2, "one CA, one pin: {pins:?}");
}

#[test]
fn the_controller_outlives_its_database() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start();
    let a = Controller::start(dir.path(), "a", &mariadb(&server.database("edgelink")));
    assert_eq!((a.get("/healthz").0, a.is_active()), (200, true));
    let mut data = TcpStream::connect(a.address).unwrap();
    write!(
        data,
        "GET /ws/data HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: wss-mesh.1\r\n\r\n"
    )
    .unwrap();
    server.stop();
    eventually("503 while it is away", PATIENCE, || a.get("/healthz").0 == 503);
    let error = a.ctl("network list").unwrap_err();
    assert!(error.contains("is the server running"), "{error}");
    // Nobody can tell whether another controller is active now: the control channel rests, the relay goes on.
    eventually("the lease has ended", PATIENCE, || !a.is_active());
    assert_eq!((a.knock("/ws/control").0, a.knock("/ws/data").0), (503, 101));

    server.start_again();
    eventually("it recovers by itself", PATIENCE, || a.get("/healthz").0 == 200 && a.is_active());
    assert_eq!(a.knock("/ws/control").0, 101);
    a.ctl("network create --name lab --subnet 10.9.0.0/24").unwrap();
    assert_eq!(a.ctl("db check").unwrap()["ok"], true);

    // Frozen: it accepts connections and swallows what they say.
    server.freeze();
    eventually("503 while it is frozen", PATIENCE, || a.get("/healthz").0 == 503);
    server.thaw();
    eventually("it recovers by itself", PATIENCE, || a.get("/healthz").0 == 200 && a.is_active());

    // Crashed: what was acknowledged is there.
    server.kill();
    server.start_again();
    let networks = a.ctl("network list").unwrap();
    assert!(networks.as_array().unwrap().iter().any(|n| n["name"] == "lab"), "{networks}");
}

/// Names that `edgelink-controller ctl` was told are made, by several writers at once, until `stop` has happened.
fn write_until(config: &Path, stop: impl FnOnce()) -> Vec<String> {
    let acknowledged = std::sync::Mutex::new(Vec::new());
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (acknowledged, ended) = (&acknowledged, &ended);
            scope.spawn(move || {
                for n in 0.. {
                    if ended.load(std::sync::atomic::Ordering::SeqCst) {
                        return;
                    }
                    let name = format!("w{writer}-{n}");
                    let line = format!("network create --name {name} --subnet 10.9.0.0/24");
                    if ctl(config, &line).is_ok() {
                        acknowledged.lock().unwrap().push(name);
                    }
                }
            });
        }
        eventually("some writes", PATIENCE, || acknowledged.lock().unwrap().len() >= 10);
        stop();
        ended.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    acknowledged.into_inner().unwrap()
}

fn nothing_is_lost(controller: &Controller, acknowledged: &[String]) {
    let networks = controller.ctl("network list").unwrap();
    let there: BTreeSet<&str> = networks.as_array().unwrap().iter().map(|n| n["name"].as_str().unwrap()).collect();
    for name in acknowledged {
        assert!(there.contains(name.as_str()), "{name} was acknowledged and is gone");
    }
    let report = controller.ctl("db check").unwrap();
    assert_eq!(report["ok"], true, "{report}");
}

#[test]
fn a_controller_that_is_killed_loses_nothing_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let database = json!({ "type": "sqlite", "path": dir.path().join("mesh.db") });
    let mut acknowledged = Vec::new();
    for _ in 0..2 {
        let a = Controller::start(dir.path(), "a", &database);
        let config = a.config.clone();
        let killed = std::cell::Cell::new(Some(a));
        acknowledged = write_until(&config, || killed.take().unwrap().kill());
        let again = Controller::start(dir.path(), "a", &database);
        nothing_is_lost(&again, &acknowledged);
        for name in &acknowledged {
            again.ctl(&format!("network delete {name}")).unwrap();
        }
    }
    assert!(!acknowledged.is_empty());
}

#[test]
fn a_database_server_that_is_killed_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start();
    let a = Controller::start(dir.path(), "a", &mariadb(&server.database("edgelink")));
    let acknowledged = write_until(&a.config.clone(), || server.kill());
    server.start_again();
    eventually("it recovers by itself", PATIENCE, || a.is_active());
    nothing_is_lost(&a, &acknowledged);
}
