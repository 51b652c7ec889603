//! Direct paths by UDP, and TCP on a LAN, between two nodes: NATs of every kind, the LAN, losses, roaming, and what strangers send.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod bad_input;
mod duo;
mod lan_tcp;
mod nat;
mod paths;
