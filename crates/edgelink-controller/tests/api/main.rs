//! The REST API over real HTTP, against the real binary on loopback, with an SQLite file or a MariaDB of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and reads the clock"
)]

mod bad_input;
mod controller;
mod ctl;
mod doors;
mod isolation;
mod login;
mod resources;
mod schemathesis;
mod secrets;

use controller::{Answer, Controller};
use edgelink_test_mariadb::{Db, on_both};
