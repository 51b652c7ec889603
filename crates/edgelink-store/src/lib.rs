//! EdgeLink's database: SQLite or MariaDB behind one repository interface, [`Store`]. The database is the truth (DESIGN §4).
//!
//! Every writer, whichever process it lives in, takes the locked one-row counter first and appends to `change_log` in its
//! transaction, so commit order is id order. A controller reads [`Store::snapshot`] once and then follows
//! [`Store::changes_after`]; whatever `edgelink-ctl --db` does beside it is seen the same way.
//!
//! Hot state (presence, locations, latencies) does not live here; [`Store::touch_nodes`] takes it in batches.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "an adapter may read the clock; callers replace it with `with_clock`")]

mod admins;
mod audit;
mod auth_keys;
mod changes;
mod check;
mod controllers;
mod convert;
mod dump;
mod endpoints;
mod enroll;
mod entity;
mod error;
mod group;
mod hot;
mod latencies;
mod lease;
mod lists;
mod location;
mod mariadb;
#[cfg(test)]
mod mariadb_tests;
mod migration;
mod names;
mod networks;
mod nodes;
mod open;
#[cfg(test)]
mod open_tests;
mod page;
mod revocations;
mod routes;
mod servers;
mod settings;
mod sqlite;
mod store;
mod updates;
#[cfg(test)]
mod upgrade_tests;
#[cfg(test)]
mod writers_tests;

pub use admins::{AdminChange, AdminRecord, Credentials, Session};
pub use audit::AuditFilter;
pub use auth_keys::{AuthKeyRecord, NewAuthKey};
pub use changes::Changes;
pub use check::{Check, Report};
pub use error::StoreError;
pub use group::{NodeWrite, NodeWritten};
pub use latencies::LatencyRecord;
pub use lease::{Holder, Lease};
pub use lists::{AuthKeyFilter, NetworkFilter, NodeQuery, RouteDetails, RouteFilter, ServerFilter};
pub use location::{Location, MariaDbUrl};
pub use networks::{MAX_PREFIX_LEN, MIN_PREFIX_LEN, NetworkDetails, NewNetwork, parse_subnet};
pub use nodes::{NodeDetails, NodeFilter, NodeTouch, ONLINE_FRESHNESS};
pub use page::{Listed, Page};
pub use revocations::{DEFAULT_REVOCATION_LIFETIME, RevocationDetails};
pub use routes::NewRoute;
pub use sea_orm::DbErr;
pub use servers::{NewServer, SERVER_FRESHNESS, ServerDetails};
pub use settings::{AuditEntry, SHARED_CA, TOKEN_KEYS};
pub use store::{Actor, Counts, DEFAULT_MAX_PENDING, Store};
pub use updates::{NetworkChange, RouteChange, ServerChange};
