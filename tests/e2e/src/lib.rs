//! End-to-end tests: the real binaries in networks of namespaces.
//!
//! [`Net`] is a controller with its built-in relay and nodes that reach nothing but one TCP port of it. [`raw`] is a node
//! that breaks the rules, made of the protocol's own crates. [`wire`] reads back what a capture saw.
//!
//! The binaries are those of `EDGELINK_BIN_DIR`, otherwise those beside the test binary's directory (`target/debug`),
//! which `cargo build -p edgelink -p edgelink-controller -p edgelink-ctl -p edgelink-server` makes. A test that this machine does not permit
//! says `NOT TESTED` and why.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]

pub mod failover;
mod flows;
pub mod lan;
mod net;
mod node;
pub mod p2p;
mod pinger;
pub mod raw;
mod site;
pub mod switching;
mod web;
pub mod wire;

pub use flows::{Flowed, INTERVAL, TcpFlow, UdpFlow};
pub use net::{Net, NetOptions, binary, bytes};
pub use node::Node;
pub use pinger::{Pinger, Pings};
pub use site::Site;
pub use web::{At, Web, WebRelay};

use std::time::Duration;

/// Long enough for anything that is not measured.
pub const SOON: Duration = Duration::from_secs(15);
/// The client's interface.
pub const TUN: &str = "wss-mesh0";

/// Random bytes that nothing else can hold.
///
/// # Errors
///
/// When the kernel has none.
pub fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}
