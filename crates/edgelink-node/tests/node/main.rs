//! The node's core as its shell sees it: links, packets and time in, the exact events and frames out. The world plays
//! controller, relay and a peer that has a session table of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_enum_variant,
    reason = "a test fails by panicking"
)]

mod announce;
mod control;
mod data;
mod garbage;
mod instructions;
mod packets;
mod paths;
mod persist;
mod relays;
mod routes;
mod trust;
mod world;
