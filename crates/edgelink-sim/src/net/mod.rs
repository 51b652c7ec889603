//! A simulated internet for UDP datagrams: hosts, local networks, NATs and links on a virtual clock.
//!
//! [`Internet`] is a tree of broadcast domains. [`LanId::INTERNET`] is its root; every other one has a router on its
//! parent, which translates (NAT), filters (firewall) or only routes. A datagram travels host → uplink → segment →
//! router → uplink → … → downlink → host; every uplink is a pair of [`LinkProfile`]s.
//!
//! The loop is: [`Internet::send`], then, whenever the clock has reached [`Internet::next_due`], call
//! [`Internet::pop_due`] until it returns `None`. Time and randomness are arguments. What happens to a datagram depends
//! on the instants at which it moves and on the sequence of calls, not on how far the clock jumps between them: the same
//! calls with the same seed have the same outcome bit for bit.
//!
//! Not modelled: fragmentation (every datagram has DF set), corruption, ARP and ICMP other than "too big".

mod changes;
mod counters;
mod firewall;
mod forward;
mod link;
mod nat;
mod random;
mod streams;
mod topology;

pub use counters::{DropReason, Drops, Place};
pub use firewall::FirewallConfig;
pub use forward::{Arrival, TooBig};
pub use link::{Direction, LinkProfile, LinkStats, Loss};
pub use nat::{Filtering, Hairpin, Mapping, NatConfig, Overflow, Pooling, PortAssignment};
pub use streams::StreamRoute;
pub use topology::{LanConfig, TopologyError};

use forward::Flights;
use link::Link;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use topology::{Host, Lan};

/// A host, numbered in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(u32);

/// A broadcast domain, and the router that joins it to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LanId(u32);

impl LanId {
    /// The root: every public address is reached directly, private addresses are unroutable.
    pub const INTERNET: Self = Self(0);
}

/// What has a link of its own in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Uplink {
    /// All of a host's interfaces.
    Host(HostId),
    /// A host's interface on one LAN.
    Interface(HostId, LanId),
    /// The router of a LAN, towards the LAN's parent.
    Router(LanId),
}

/// The simulated network. See the module's documentation.
///
/// Identifiers are only valid for the `Internet` that made them: others may panic.
pub struct Internet {
    hosts: Vec<Host>,
    lans: Vec<Lan>,
    /// Links across the internet's core, by the sites at both ends; a pair without one has no extra delay.
    transits: BTreeMap<(Uplink, Uplink), Link>,
    /// Who cannot send to whom.
    blocked: BTreeSet<(HostId, HostId)>,
    flights: Flights,
    drops: Drops,
}

impl HostId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

impl LanId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// `at + span`, or some decades later where that has no representation: `Duration::MAX` means "never".
fn after(at: Instant, span: Duration) -> Instant {
    const DECADES: Duration = Duration::from_secs(30 * 365 * 86_400);
    at.checked_add(span).or_else(|| at.checked_add(DECADES)).unwrap_or(at)
}
