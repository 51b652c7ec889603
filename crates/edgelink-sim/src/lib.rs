//! EdgeLink in one thread: the real cores of the controller, the relays and the nodes on a virtual clock with seeded
//! randomness.
//!
//! [`World`] is the network: processes, the connections between them, and what may befall either. [`World::advance`] is
//! its whole loop: drain every core that was touched, deliver what is due, else jump to the least deadline. One seed,
//! one outcome, bit for bit: nothing here reads a clock, a socket or the system's randomness ([`World::fingerprint`]).
//!
//! [`Scenario`] is a list of [`Transition`]s made from a seed, and can be shrunk; [`run`] plays one while [`Model`] says
//! what must arrive and [`watch`] looks for what must never happen. See `docs/testing.md`.
#![forbid(unsafe_code)]

mod database;
pub mod model;
pub mod net;
mod packet;
pub mod pairs;
pub mod scenario;
mod streams;
pub mod trap;
pub mod watch;
mod world;

pub use database::Database;
pub use model::Model;
pub use packet::{Probe, udp_packet};
pub use scenario::{Failure, Report, Scenario, Transition, run, shrink};
pub use streams::{Line, Party};
pub use world::{Delivered, HostileNode, HostileRelay, NodeIndex, RelayIndex, Site, World, WorldConfig};
