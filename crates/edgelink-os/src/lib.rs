//! What EdgeLink asks of the operating system: private files, the TUN device, addresses and routes, privileges.
//!
//! Linux only for now; every module keeps its Linux calls behind plain functions and types, so that other systems can
//! follow without a change above. Nothing here knows frames, sessions or configuration.
#![allow(clippy::disallowed_methods, reason = "adapters may read the clock")]

pub mod clock;
pub mod files;
pub mod gateway;
pub mod host;
pub mod memory;
pub mod net;
pub mod notify;
pub mod open_files;
pub mod peer_cred;
pub mod policy;
pub mod port_mapping;
pub mod privileges;
pub mod tun;
