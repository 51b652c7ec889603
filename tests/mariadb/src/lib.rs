//! Real MariaDB servers for tests, on loopback, in temporary directories that vanish.
//!
//! [`Database::new`] is an empty database on a server that all test processes of a build share: the first one starts it,
//! ten seconds after the last one it is gone (`supervise.sh`). [`Server::start`] is a server of one's own, to be stopped and
//! started. Without `mariadbd` they panic and say what to install: a test that silently passes tests nothing.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used, reason = "test equipment: a failure is the test's")]
#![allow(clippy::disallowed_methods, reason = "it waits for processes by the clock")]

mod database;
mod server;
mod shared;

pub use database::Database;
pub use server::Server;

/// Where a program under test keeps everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Db {
    /// The file that it makes.
    Sqlite,
    /// A [`Database`].
    MariaDb,
}

/// Makes two tests of a `fn(Db)`: on SQLite and on MariaDB.
#[macro_export]
macro_rules! on_both {
    ($name:ident) => {
        mod $name {
            #[test]
            fn sqlite() {
                super::$name($crate::Db::Sqlite);
            }

            #[test]
            fn mariadb() {
                super::$name($crate::Db::MariaDb);
            }
        }
    };
}

/// The user that tests log in as; its password must be in no output.
pub const USER: &str = "edgelink";
/// The password of [`USER`], with characters that a URL must escape.
pub const PASSWORD: &str = "s3cret/@:word";
/// [`PASSWORD`] as a URL has it.
const PASSWORD_IN_URL: &str = "s3cret%2F%40%3Aword";

/// The URL of `database` on a server of ours.
fn url(port: u16, database: &str) -> String {
    format!("mysql://{USER}:{PASSWORD_IN_URL}@127.0.0.1:{port}/{database}")
}
