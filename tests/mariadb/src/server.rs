//! One server: its directory, its process, its port.

use crate::{PASSWORD, USER, url};
use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MISSING: &str = "is not installed: run scripts/install-test-deps, or install the packages mariadb-server-core and mariadb-client-core";
/// Generous: many tests start at once on a small machine.
const START: Duration = Duration::from_secs(90);

/// A server of one's own, as durable as a real one. It ends with this value.
pub struct Server {
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Server {
    /// Makes a server and waits until it answers.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("edgelink-mariadb-").tempdir().unwrap();
        install(dir.path());
        let mut server = Self { port: free_port(), dir, child: None };
        server.start_again();
        make_user(server.dir.path());
        server
    }

    /// Starts it after [`Self::stop`] or [`Self::kill`], on the same port.
    pub fn start_again(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(command_line(self.dir.path(), self.port, &[]));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("setpriv (util-linux) cannot be run"));
        wait_until_it_answers(self.dir.path(), || {
            self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
        });
    }

    /// Ends it in order; connections are closed.
    pub fn stop(&mut self) {
        self.signal("-TERM");
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        self.signal("-KILL");
    }

    /// It stops answering and keeps its connections: to its clients, a network that swallows packets.
    pub fn freeze(&self) {
        self.send("-STOP");
    }

    /// Goes on after [`Self::freeze`].
    pub fn thaw(&self) {
        self.send("-CONT");
    }

    fn signal(&mut self, signal: &str) {
        self.send(signal);
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    fn send(&self, signal: &str) {
        if let Some(child) = &self.child {
            let _ = Command::new("kill").args([signal, &child.id().to_string()]).status();
        }
    }

    /// Makes an empty database and returns its URL.
    pub fn database(&self, name: &str) -> String {
        client(self.dir.path(), "", &format!("CREATE DATABASE {name}"));
        url(self.port, name)
    }

    /// Runs SQL as root; columns come between tabs, without a header.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        client(self.dir.path(), database, statements)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Fills a new data directory.
pub(crate) fn install(dir: &Path) {
    let mut command = Command::new("mariadb-install-db");
    command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    command.arg(argument("--datadir=", &dir.join("data"))).args(as_root());
    // A server that starts deletes temporary tables in its directory, whosever they are.
    command.env("TMPDIR", dir);
    let output = command.output().unwrap_or_else(|_| panic!("mariadb-install-db {MISSING}"));
    assert!(output.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn command_line(dir: &Path, port: u16, more: &[&str]) -> Vec<OsString> {
    let mut line = vec![mariadbd().into_os_string(), "--no-defaults".into()];
    line.push(argument("--datadir=", &dir.join("data")));
    line.push(argument("--socket=", &socket(dir)));
    line.push(argument("--tmpdir=", dir));
    line.push(argument("--pid-file=", &dir.join("pid")));
    line.extend(as_root().iter().map(OsString::from));
    line.push(format!("--port={port}").into());
    let small = [
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        "--skip-log-bin",
        "--innodb-buffer-pool-size=48M",
        "--innodb-log-file-size=16M",
        "--max-connections=400",
        "--skip-slow-query-log",
    ];
    line.extend(small.iter().chain(more).map(OsString::from));
    line
}

fn argument(name: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(name);
    argument.push(path);
    argument
}

pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("sock")
}

/// mariadbd refuses to run as root unless it is told to.
fn as_root() -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() { &["--user=root"] } else { &[] }
}

/// An ordinary user's PATH lacks /usr/sbin.
fn mariadbd() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = places.map(|dir| dir.join("mariadbd")).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("mariadbd {MISSING}"))
}

/// Free now; nobody else on this host should ask for just this one in the next second.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn wait_until_it_answers(dir: &Path, mut lives: impl FnMut() -> bool) {
    let since = Instant::now();
    loop {
        match try_client(dir, "", "SELECT 1") {
            Ok(_) => return,
            Err(error) => {
                let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
                assert!(lives(), "mariadbd has ended: {error}\n{}", log());
                assert!(since.elapsed() < START, "mariadbd does not answer: {error}\n{}", log());
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn make_user(dir: &Path) {
    client(
        dir,
        "",
        &format!("CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'; GRANT ALL ON `edgelink%`.* TO {USER}@'%'"),
    );
}

pub(crate) fn client(dir: &Path, database: &str, statements: &str) -> String {
    try_client(dir, database, statements).unwrap_or_else(|error| panic!("{error}\nin: {statements}"))
}

pub(crate) fn try_client(dir: &Path, database: &str, statements: &str) -> Result<String, String> {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "--batch", "--skip-column-names", "--default-character-set=utf8mb4", "--user=root"]);
    command.arg(argument("--socket=", &socket(dir)));
    if !database.is_empty() {
        command.arg(database);
    }
    command.arg("--execute").arg(statements);
    let output = command.output().unwrap_or_else(|_| panic!("mariadb {MISSING}"));
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
