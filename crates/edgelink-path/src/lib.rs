//! The ways to one peer, and which of them its packets take (DESIGN §5).
//!
//! Sans I/O: no clock, no randomness, no tokio. [`PeerPaths`] is made when traffic to a peer begins. Its owner
//!
//! 1. tells which relay ways exist ([`PeerPaths::set_relays`]) and what the controller advises
//!    ([`PeerPaths::set_advice`]),
//! 2. asks at each packet where it goes ([`PeerPaths::send`]),
//! 3. calls [`PeerPaths::handle_timeout`] at [`PeerPaths::poll_timeout`], then sends what [`PeerPaths::next_probe`]
//!    names, each as a sealed P2P_PING on exactly that way, and reports [`PeerPaths::probe_sent`],
//! 4. reports the PONGs ([`PeerPaths::pong`]) and what relays say ([`PeerPaths::undeliverable`]).
//!
//! A path is alive only while PONGs come back over it: they are authenticated end to end, and show that both directions
//! work. Received data shows neither, keepalives and relays' own PONGs nothing at all.
//!
//! Memory: at most [`MAX_PATHS`] paths of some 200 bytes per peer with traffic in the last two minutes. There is no
//! timer per packet, and none at all for a peer without traffic.

#![forbid(unsafe_code)]

mod arrivals;
mod budget;
mod endpoint;
mod estimate;
mod growth;
mod hedge;
mod keepalive;
mod nat;
mod peer;
mod punch;
mod rank;
mod spray;
mod way;

pub use arrivals::{Arrivals, SEVERAL_FOR};
pub use budget::Budget;
pub use endpoint::{Endpoint, EndpointKind, MAX_ENDPOINTS, usable};
pub use hedge::{HEDGE_FOR, HEDGE_RATE};
pub use keepalive::{KEEPALIVE, LONGEST_KEEPALIVE};
pub use nat::{Behaviour, NatDiscovery, NatName, StunQuery, StunServer};
pub use peer::{PeerPaths, Probe, Sending, View};
pub use punch::{ATTEMPT, ATTEMPTS, Proof, Punch, PunchProbe, PunchState, RETRY_AFTER};
pub use rank::{Evidence, MIN_GAIN, Rank, Standing, is_better};
pub use spray::{SPRAY_FOR, SPRAY_SOCKETS, Spray};
pub use way::{Advice, Class, Hops, PathId, RelayWay, SocketId, StreamId, Way};

use std::time::Duration;

/// The most paths that are kept per peer; of more, the best are.
pub const MAX_PATHS: usize = 16;
/// The most direct paths among them.
pub const MAX_DIRECT: usize = 2;
/// Direct paths are kept open by keepalives for this long after the last packet.
pub const KEPT: Duration = Duration::from_secs(30 * 60);
/// A path in use, and one in doubt, is probed this often while there is something to send.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Other paths are probed this often while there is traffic.
pub const CANDIDATE_INTERVAL: Duration = Duration::from_secs(5);
/// And this often when the traffic has paused.
pub const PAUSED_INTERVAL: Duration = Duration::from_secs(30);
/// After a pause of this length a path must prove itself again: packets are hedged until a PONG.
pub const IDLE: Duration = Duration::from_secs(5);
/// Without anything sent for this long, all probing ends until the next packet.
pub const ASLEEP: Duration = Duration::from_secs(120);
/// Missing PONGs in a row after which packets are hedged.
pub const DOUBTED_AFTER: u32 = 2;
/// Missing PONGs in a row after which a path is dead.
pub const DEAD_AFTER: u32 = 3;
/// So many probes in a row must show a new path to be better than the present one.
pub const BETTER_FOR: u32 = 3;
