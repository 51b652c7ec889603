//! NATs in the terms of RFC 4787, RFC 5780 and RFC 7857.

mod forwards;
mod ports;
mod table;

pub(super) use table::Nat;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

/// How a NAT behaves. The named constructors are the usual ones; every field may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatConfig {
    /// What a mapping depends on (RFC 4787 §4.1).
    pub mapping: Mapping,
    /// Who may send to a mapping (RFC 4787 §5).
    pub filtering: Filtering,
    /// Which external port a mapping gets (RFC 4787 §4.2).
    pub ports: PortAssignment,
    /// First external port that is chosen freely; a preserved port may lie below.
    pub first_port: u16,
    /// Last external port that is chosen freely.
    pub last_port: u16,
    /// Which external address an internal host gets when there are several (RFC 4787 §4.1).
    pub pooling: Pooling,
    /// What happens to datagrams from inside to an external address of the NAT (RFC 4787 §6).
    pub hairpin: Hairpin,
    /// Life of a mapping, and of each permission in its filter, after the last datagram (RFC 4787 §4.3).
    pub timeout: Duration,
    /// Whether inbound datagrams that pass refresh them too; outbound ones always do.
    pub inbound_refresh: bool,
    /// Linux without a drop in INPUT: an unsolicited inbound datagram makes an entry for (external endpoint, remote
    /// endpoint) in the router itself, so that a later outbound flow with the same tuple gets another port.
    pub inbound_claims: bool,
    /// Each internal host owns an external address, all its ports, both ways, without state. The hosts take the
    /// external addresses in the order in which they join the LAN; those too many get none.
    pub one_to_one: bool,
    /// Whether internal hosts can have ports forwarded (UPnP-IGD, NAT-PMP, PCP): [`map_port`](super::Internet::map_port).
    pub port_mapping: bool,
    /// Permissions (and claims) held at most.
    pub max_entries: usize,
    /// What yields when there are more.
    pub overflow: Overflow,
}

/// Mapping behaviour (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mapping {
    /// EIM: one external endpoint for all destinations.
    EndpointIndependent,
    /// ADM: one for each destination address.
    AddressDependent,
    /// APDM: one for each destination endpoint.
    AddressAndPortDependent,
}

/// Filtering behaviour (RFC 4787 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filtering {
    /// EIF: anyone may send to a mapping.
    EndpointIndependent,
    /// ADF: addresses that the internal endpoint has sent to.
    AddressDependent,
    /// APDF: endpoints that the internal endpoint has sent to.
    AddressAndPortDependent,
}

/// Port assignment (RFC 4787 §4.2, RFC 7857 §9 for blocks).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortAssignment {
    /// The internal port when it is free, else a random one.
    Preserving,
    /// The internal port even when another internal host has it, as long as the two can be told apart by who sends;
    /// else a random one. What Linux does.
    Overloading,
    /// Each new mapping this far after the one before; the first is random.
    Sequential(u16),
    /// Random.
    Random,
    /// Random, even for even and odd for odd.
    ParityPreserving,
    /// Each internal host gets one block of this many consecutive ports, and no more; in it random. Carriers do so.
    Blocks(u16),
}

/// Choice among several external addresses (RFC 4787 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pooling {
    /// An internal address always gets the same one.
    Paired,
    /// Each new mapping gets any.
    Arbitrary,
}

/// Hairpinning (RFC 4787 §6). The filter is that for the sender's external endpoint in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hairpin {
    /// Dropped.
    None,
    /// Delivered with the sender's internal endpoint as the source.
    InternalSource,
    /// Delivered with the sender's external endpoint as the source, as RFC 4787 REQ-9 asks.
    ExternalSource,
}

/// What yields when a NAT's table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Overflow {
    /// The new flow.
    DropNew,
    /// The permission that would expire first.
    DropOldest,
}

impl NatConfig {
    /// EIM and EIF.
    pub fn full_cone() -> Self {
        Self {
            mapping: Mapping::EndpointIndependent,
            filtering: Filtering::EndpointIndependent,
            ports: PortAssignment::Preserving,
            first_port: 1024,
            last_port: 65_535,
            pooling: Pooling::Paired,
            hairpin: Hairpin::None,
            timeout: Duration::from_secs(120),
            inbound_refresh: true,
            inbound_claims: false,
            one_to_one: false,
            port_mapping: false,
            max_entries: 65_536,
            overflow: Overflow::DropNew,
        }
    }

    /// EIM and ADF.
    pub fn restricted_cone() -> Self {
        Self { filtering: Filtering::AddressDependent, ..Self::full_cone() }
    }

    /// EIM and APDF: the common home router.
    pub fn port_restricted() -> Self {
        Self { filtering: Filtering::AddressAndPortDependent, ..Self::full_cone() }
    }

    /// APDM and APDF with random ports.
    pub fn symmetric() -> Self {
        Self { mapping: Mapping::AddressAndPortDependent, ports: PortAssignment::Random, ..Self::port_restricted() }
    }

    /// ADM and APDF with random ports.
    pub fn address_dependent_mapping() -> Self {
        Self { mapping: Mapping::AddressDependent, ..Self::symmetric() }
    }

    /// An external address for each internal host.
    pub fn one_to_one() -> Self {
        Self { one_to_one: true, hairpin: Hairpin::ExternalSource, ..Self::full_cone() }
    }

    /// `masquerade` without a drop in INPUT: EIM and APDF, overloaded ports, and claimed by early inbound datagrams.
    pub fn linux_masquerade() -> Self {
        Self { ports: PortAssignment::Overloading, inbound_claims: true, ..Self::port_restricted() }
    }

    /// As RFC 6888 asks of carriers: EIM, EIF, paired pooling, hairpinning; blocks of 512 ports.
    pub fn carrier_grade() -> Self {
        Self { ports: PortAssignment::Blocks(512), hairpin: Hairpin::ExternalSource, ..Self::full_cone() }
    }
}

/// As much of a remote endpoint as a mapping or a filter looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Any,
    Address(Ipv4Addr),
    Endpoint(SocketAddrV4),
}

impl Mapping {
    fn scope(self, remote: SocketAddrV4) -> Scope {
        match self {
            Self::EndpointIndependent => Scope::Any,
            Self::AddressDependent => Scope::Address(*remote.ip()),
            Self::AddressAndPortDependent => Scope::Endpoint(remote),
        }
    }
}

impl Filtering {
    fn scope(self, remote: SocketAddrV4) -> Scope {
        match self {
            Self::EndpointIndependent => Scope::Any,
            Self::AddressDependent => Scope::Address(*remote.ip()),
            Self::AddressAndPortDependent => Scope::Endpoint(remote),
        }
    }
}
