//! The server that all test processes of a build share.

use crate::server::{self, command_line, free_port, install, make_user, wait_until_it_answers};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Tests need no durability from a server that they never crash.
const FAST: [&str; 5] = [
    "--innodb-flush-log-at-trx-commit=0",
    "--skip-innodb-doublewrite",
    "--innodb-file-per-table=0",
    "--innodb-fast-shutdown=2",
    "--performance-schema=OFF",
];

/// The shared server, for as long as this process lives.
pub(crate) struct Shared {
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    // While anybody holds this, the server stays.
    _user: Flock<File>,
}

/// The shared server, started if need be.
pub(crate) fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(join)
}

fn join() -> Shared {
    // The locks live beside the test binaries: one server per build directory.
    let home = std::env::current_exe().unwrap().parent().map(Path::to_owned).unwrap();
    let mut hash = DefaultHasher::new();
    home.hash(&mut hash);
    // Not below `home`: the path of a socket has at most 107 bytes.
    let name = format!("edgelink-mariadb-{}-{:x}", nix::unistd::geteuid(), hash.finish());
    let dir = std::env::temp_dir().join(name);

    let users = home.join("mariadb.users");
    let user = lock(&users, FlockArg::LockShared);
    let _one_starts = lock(&home.join("mariadb.start"), FlockArg::LockExclusive);
    let port = match running(&dir) {
        Some(port) => port,
        None => start(&dir, &users),
    };
    Shared { dir, port, _user: user }
}

fn lock(path: &Path, how: FlockArg) -> Flock<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    Flock::lock(file, how).map_err(|(_, error)| error).unwrap()
}

/// The port of a server that answers.
fn running(dir: &Path) -> Option<u16> {
    let port = fs::read_to_string(dir.join("port")).ok()?.parse().ok()?;
    TcpStream::connect(("127.0.0.1", port)).ok()?;
    Some(port)
}

fn start(dir: &Path, users: &Path) -> u16 {
    // Of a machine that crashed.
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir).unwrap();
    install(dir);
    let port = free_port();
    let mut command = Command::new("setsid");
    command.args(["bash", "-c", include_str!("supervise.sh"), "supervise"]).arg(dir).arg(users);
    command.args(command_line(dir, port, &FAST)).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut supervisor = command.spawn().expect("setsid (util-linux) cannot be run");
    wait_until_it_answers(dir, || supervisor.try_wait().unwrap().is_none());
    make_user(dir);
    fs::write(dir.join("port"), port.to_string()).unwrap();
    port
}

pub(crate) fn client(database: &str, statements: &str) -> String {
    server::client(&shared().dir, database, statements)
}

pub(crate) fn try_client(database: &str, statements: &str) -> Result<String, String> {
    server::try_client(&shared().dir, database, statements)
}
