//! What was lost, where and why.

use super::link::Direction;
use super::{HostId, LanId, Uplink};
use std::collections::BTreeMap;

/// Why a datagram did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The host sleeps.
    Asleep,
    /// The host's cable is pulled.
    Detached,
    /// The sender has no such address, or none of the destination's family.
    NoAddress,
    /// The receiver moved or gave the address up while the datagram was on its way.
    Gone,
    /// [`block`](super::Internet::block) stands between the two hosts.
    Partitioned,
    /// [`LinkProfile::down`](super::LinkProfile::down).
    LinkDown,
    /// [`LinkProfile::loss`](super::LinkProfile::loss).
    Loss,
    /// The link's queue was full.
    QueueFull,
    /// Larger than the link's MTU.
    TooBig,
    /// More datagrams in flight than the simulator holds.
    Overload,
    /// Too many routers.
    TtlExpired,
    /// A private address on the internet.
    Unroutable,
    /// Nobody has the destination address.
    NoHost,
    /// The router lets no UDP through.
    UdpBlocked,
    /// The NAT has no mapping at the destination port.
    NoMapping,
    /// The NAT's filter or the firewall.
    Filtered,
    /// The NAT has no port (or no external address) left for the internal host.
    PortsExhausted,
    /// The NAT's or firewall's table is full.
    TableFull,
    /// The NAT does not hairpin.
    NoHairpin,
}

/// Where a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// In the host.
    Host(HostId),
    /// On an uplink; a host's is named by its interface.
    Link(Uplink, Direction),
    /// In the internet's core, on the way between two sites.
    Transit(Uplink, Uplink),
    /// In the router of a LAN.
    Router(LanId),
    /// On a LAN or the internet, for want of a receiver.
    Segment(LanId),
}

/// Counts of dropped datagrams by place and reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops(BTreeMap<(Place, DropReason), u64>);

impl Drops {
    /// Every count, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Place, DropReason, u64)> + '_ {
        self.0.iter().map(|(&(place, reason), &count)| (place, reason, count))
    }

    /// All that were dropped for this reason.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.iter().filter(|&(_, r, _)| r == reason).map(|(_, _, count)| count).sum()
    }

    /// All that were dropped for this reason at this place.
    pub fn at(&self, place: Place, reason: DropReason) -> u64 {
        self.0.get(&(place, reason)).copied().unwrap_or(0)
    }

    /// All that were dropped.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    pub(super) fn count(&mut self, place: Place, reason: DropReason) {
        *self.0.entry((place, reason)).or_default() += 1;
    }
}
