//! Temporary databases of both kinds, with a clock that stands still.
#![allow(dead_code, reason = "every test file takes what it needs")]

use edgelink_model::records::{EnrollRequest, HostInfo};
use edgelink_model::{NetworkId, UnixMillis};
use edgelink_store::{MariaDbUrl, NewAuthKey, NewNetwork, Store};
use edgelink_test_mariadb::Database;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use tempfile::TempDir;

/// Makes two tests of an `async fn(Db)`: on SQLite and on MariaDB.
macro_rules! on_both {
    ($name:ident) => {
        mod $name {
            #[tokio::test]
            async fn sqlite() {
                super::$name(super::common::Db::sqlite()).await;
            }

            #[tokio::test]
            async fn mariadb() {
                super::$name(super::common::Db::mariadb()).await;
            }
        }
    };
}
pub(crate) use on_both;

/// An empty database; it vanishes with this value.
pub(crate) struct Db {
    dir: TempDir,
    mariadb: Option<Database>,
}

impl Db {
    pub(crate) fn sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), mariadb: None }
    }

    pub(crate) fn mariadb() -> Self {
        Self { mariadb: Some(Database::new()), ..Self::sqlite() }
    }

    /// Another handle of it, as another process would have one.
    pub(crate) async fn open(&self) -> Store {
        let store = match &self.mariadb {
            None => Store::open(self.dir.path().join("edgelink.db"), true).await,
            Some(mariadb) => {
                let url = MariaDbUrl::parse(&mariadb.url()).unwrap();
                Store::open_mariadb(&url, Some(self.dir.path())).await
            }
        };
        store.unwrap().with_clock(|| NOW)
    }
}

/// 2023-11-14, 22:13:20 and half a second.
pub(crate) const NOW: UnixMillis = 1_700_000_000_500;
pub(crate) const DEFAULT: NetworkId = NetworkId(1);

pub(crate) async fn temp_store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    (dir, store)
}

pub(crate) async fn open(dir: &TempDir) -> Store {
    Store::open(dir.path().join("edgelink.db"), true).await.unwrap().with_clock(|| NOW)
}

pub(crate) fn knock(machine: u8) -> EnrollRequest {
    EnrollRequest {
        machine_key_pub: [machine; 32],
        auth_key_hash: None,
        host: HostInfo {
            hostname: format!("host-{machine}"),
            os: "linux".into(),
            arch: "x86_64".into(),
            version: "0.1.0".into(),
        },
        now_unix_ms: NOW,
        require_authorization: true,
    }
}

pub(crate) fn knock_with(machine: u8, key: &str) -> EnrollRequest {
    EnrollRequest { auth_key_hash: Some(key_hash(key)), ..knock(machine) }
}

/// Any 64 hex digits will do.
pub(crate) fn key_hash(key: &str) -> String {
    let mut hash: String = key.bytes().map(|b| format!("{b:02x}")).collect();
    hash.push_str(&"0".repeat(64 - hash.len()));
    hash
}

pub(crate) fn one_shot(key: &str) -> NewAuthKey {
    NewAuthKey {
        key_hash: key_hash(key),
        network_id: DEFAULT,
        reusable: false,
        preauthorized: true,
        approve_routes: false,
        expires_at: Some(NOW + 1000),
    }
}

pub(crate) async fn network(store: &Store, name: &str, subnet: &str) -> NetworkId {
    let new = NewNetwork { name: name.into(), subnet: subnet.parse().unwrap(), description: String::new() };
    store.create_network(new).await.unwrap().id
}

/// Polls `future` at most `polls` times; a pending future is dropped, as a killed task's is.
pub(crate) async fn poll_at_most<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
