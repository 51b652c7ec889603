//! A database on the shared server.

use crate::shared::{client, shared, try_client};
use crate::{PASSWORD_IN_URL, USER, url};
use std::sync::atomic::{AtomicU32, Ordering};

/// An empty database, dropped with this value.
pub struct Database {
    name: String,
}

impl Database {
    /// Makes one, and the server if need be.
    #[expect(clippy::new_without_default, reason = "it starts processes")]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("edgelink_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        client("", &format!("DROP DATABASE IF EXISTS {name}; CREATE DATABASE {name}"));
        Self { name }
    }

    /// What `database.url` would be.
    pub fn url(&self) -> String {
        url(shared().port, &self.name)
    }

    /// [`Self::url`] by the server's Unix socket, for processes in other network namespaces.
    pub fn socket_url(&self) -> String {
        let socket = crate::server::socket(&shared().dir);
        format!("mysql://{USER}:{PASSWORD_IN_URL}@localhost/{}?socket={}", self.name, socket.display())
    }

    /// Runs SQL as root; columns come between tabs, without a header.
    pub fn sql(&self, statements: &str) -> String {
        client(&self.name, statements)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A runtime that ends leaves its connections as they are, in transactions perhaps: DROP would wait for them.
        let connections =
            format!("SELECT CONCAT('KILL ', id, ';') FROM information_schema.processlist WHERE db = '{}'", self.name);
        // What is left goes with the server.
        let kill = try_client("", &connections).unwrap_or_default();
        for statement in kill.lines() {
            let _ = try_client("", statement);
        }
        let _ = try_client("", &format!("DROP DATABASE {}", self.name));
    }
}
