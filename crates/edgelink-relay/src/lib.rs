//! The relay's brain: connections, authentication, forwarding and queues, without I/O (DESIGN §3, §6).
//!
//! [`Relay`] is a state machine: bytes and the time go in, runs of frames and [`RelayEvent`]s come out. It never sees
//! what it forwards, which is sealed end to end; it checks only that the source is the node that authenticated and
//! that the destination is connected here and in the same network.
//!
//! What holds, whatever clients do:
//! - A slow receiver loses its own frames, the oldest first, and delays nobody: forwarding queues and never waits.
//! - Memory is bounded per connection and in all ([`Limits`]).
//! - Frames between two nodes are delivered at most once, unchanged, in order within each lane (data; and ahead of it
//!   probes, announces and the relay's own answers).
//! - A destination in another network looks exactly like one that does not exist.

#![forbid(unsafe_code)]

mod connection;
mod drain;
mod event;
mod forward;
mod handshake;
mod ids;
mod limits;
mod locations;
mod mesh;
mod mesh_auth;
mod queue;
mod rate;
mod relay;
mod stats;
pub mod stun;
mod timers;
mod uplink;

pub use event::{CloseReason, ConnId, ConnectError, DialId, RelayEvent};
pub use limits::{Limits, RelayConfig};
pub use mesh::MeshLink;
pub use rate::Rate;
pub use relay::Relay;
pub use stats::{CloseKind, DropReason, Drops, RelayStats};
pub use uplink::{Registration, RestoreError};
