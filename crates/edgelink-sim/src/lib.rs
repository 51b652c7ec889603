//! EdgeLink in one thread: the real cores of the controller, the relay and the nodes on a virtual clock with seeded
//! randomness.
//!
//! [`World::advance`] is the whole loop: drain every core's events, deliver what is due, else jump to the least
//! deadline. One seed, one outcome, bit for bit: nothing here reads a clock, a socket or the system's randomness.
//!
//! This is the beginning of the laboratory: links are ordered streams with a delay, which can be cut; hosts can be
//! restarted and can have wrong clocks.
#![forbid(unsafe_code)]

mod database;
pub mod net;
mod packet;
mod streams;
mod world;

pub use database::Database;
pub use packet::udp_packet;
pub use world::{Delivered, NodeIndex, World, WorldConfig};
