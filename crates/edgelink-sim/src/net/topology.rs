//! Hosts, interfaces, LANs and routers: what they are and how they are made.

use super::firewall::{Firewall, FirewallConfig};
use super::forward::Flights;
use super::link::{Direction, Link};
use super::nat::{Nat, NatConfig};
use super::{Drops, HostId, Internet, LanId, Uplink};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where routers and hosts on the internet get addresses that were not asked for.
const PUBLIC_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(45, 0, 0, 0), 8);
const PUBLIC_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2a0f, 0, 0, 0, 0, 0, 0, 0), 32);
/// Addresses are looked for at most this often before a prefix counts as full.
const ADDRESS_TRIES: u64 = 70_000;
/// The first address that a host can get; the ones below are the network's and the router's.
const FIRST_HOST: u64 = 2;

/// What a LAN is made of.
#[derive(Clone, Debug)]
pub struct LanConfig {
    /// Where its router's uplink goes.
    pub parent: LanId,
    /// Prefix from which its hosts get IPv4 addresses. Prefixes of different LANs may be equal.
    pub v4: Option<Ipv4Net>,
    /// Prefix from which its hosts get IPv6 addresses; routed, never translated.
    pub v6: Option<Ipv6Net>,
    /// Translation of IPv4; without it the IPv4 prefix is routed like that of IPv6.
    pub nat: Option<NatConfig>,
    /// The NAT's external addresses, on the parent. When empty, one is taken from the parent.
    pub external: Vec<Ipv4Addr>,
    /// Filter for what is routed without translation.
    pub firewall: Option<FirewallConfig>,
}

impl LanConfig {
    /// A LAN behind a NAT on the internet.
    pub fn behind(nat: NatConfig, v4: Ipv4Net) -> Self {
        Self { nat: Some(nat), ..Self::routed(v4) }
    }

    /// A LAN whose IPv4 prefix is routed by the internet: a site with public addresses.
    pub fn routed(v4: Ipv4Net) -> Self {
        Self { parent: LanId::INTERNET, v4: Some(v4), v6: None, nat: None, external: Vec::new(), firewall: None }
    }

    /// The same inside another LAN.
    pub fn within(self, parent: LanId) -> Self {
        Self { parent, ..self }
    }

    /// The same with these external addresses.
    pub fn external(self, external: impl Into<Vec<Ipv4Addr>>) -> Self {
        Self { external: external.into(), ..self }
    }

    /// The same with an IPv6 prefix and, perhaps, a firewall before it.
    pub fn v6(self, v6: Ipv6Net, firewall: Option<FirewallConfig>) -> Self {
        Self { v6: Some(v6), firewall, ..self }
    }
}

/// Why a network cannot be built as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Two owners on one LAN.
    #[error("{0} is taken on this LAN")]
    AddressTaken(IpAddr),
    /// The address is not in the LAN's prefix.
    #[error("{0} is not in the LAN's prefix")]
    OutsidePrefix(IpAddr),
    /// No address is left.
    #[error("the LAN has no free address")]
    PrefixFull,
    /// The parent has no IPv4 for the NAT's external addresses.
    #[error("a NAT needs IPv4 on the LAN's parent and inside")]
    NoIpv4,
    /// The host has no interface on the LAN.
    #[error("the host has no interface on this LAN")]
    NoInterface,
    /// The host has an interface on the LAN already.
    #[error("the host has an interface on this LAN already")]
    HasInterface,
    /// The LAN's router does not translate.
    #[error("the LAN has no NAT")]
    NoNat,
}

pub(super) struct Host {
    /// At most one on each LAN.
    pub(super) interfaces: Vec<Interface>,
    pub(super) asleep: bool,
}

pub(super) struct Interface {
    pub(super) lan: LanId,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) attached: bool,
    pub(super) links: Links,
}

/// Both directions.
#[derive(Clone, Default)]
pub(super) struct Links {
    pub(super) up: Link,
    pub(super) down: Link,
}

impl Links {
    pub(super) fn get(&self, direction: Direction) -> &Link {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    pub(super) fn get_mut(&mut self, direction: Direction) -> &mut Link {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    /// New links with the same profiles.
    pub(super) fn alike(&self) -> Self {
        Self { up: Link::new(self.up.profile), down: Link::new(self.down.profile) }
    }
}

pub(super) struct Lan {
    pub(super) parent: LanId,
    v4: Option<Ipv4Net>,
    v6: Option<Ipv6Net>,
    /// Who has which address here. A prefix is walked round, so that a freed address is not soon another's.
    pub(super) owners: BTreeMap<IpAddr, Owner>,
    next_v4: u64,
    next_v6: u64,
    /// Prefixes of LANs further inside that are routed, with the child through which.
    pub(super) routes: Vec<(IpNet, LanId)>,
    pub(super) nat: Option<Nat>,
    pub(super) firewall: Option<Firewall>,
    pub(super) udp_blocked: bool,
    pub(super) links: Links,
}

/// Who answers to an address on a LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Host(HostId),
    /// The router of this LAN, with an external address of its NAT.
    Router(LanId),
}

impl Default for Internet {
    fn default() -> Self {
        Self::new()
    }
}

/// Building.
impl Internet {
    /// The internet with nobody on it.
    pub fn new() -> Self {
        let root = Lan {
            parent: LanId::INTERNET,
            v4: Some(PUBLIC_V4),
            v6: Some(PUBLIC_V6),
            owners: BTreeMap::new(),
            next_v4: FIRST_HOST,
            next_v6: FIRST_HOST,
            routes: Vec::new(),
            nat: None,
            firewall: None,
            udp_blocked: false,
            links: Links::default(),
        };
        Self {
            hosts: Vec::new(),
            lans: vec![root],
            transits: BTreeMap::new(),
            blocked: BTreeSet::new(),
            flights: Flights::default(),
            drops: Drops::default(),
        }
    }

    /// A host directly on the internet with these addresses.
    ///
    /// # Errors
    ///
    /// [`TopologyError::AddressTaken`].
    pub fn add_host(&mut self, addresses: &[IpAddr]) -> Result<HostId, TopologyError> {
        let host = self.new_host();
        self.add_interface(host, LanId::INTERNET, Some(addresses))?;
        Ok(host)
    }

    /// A host on a LAN, with one address of each family that the LAN has.
    ///
    /// # Errors
    ///
    /// [`TopologyError::PrefixFull`].
    pub fn add_host_on(&mut self, lan: LanId) -> Result<HostId, TopologyError> {
        let host = self.new_host();
        self.add_interface(host, lan, None)?;
        Ok(host)
    }

    /// A LAN and the router that joins it to its parent.
    ///
    /// # Errors
    ///
    /// An external address is taken or outside the parent's prefix, none is left, or IPv4 is missing for a NAT.
    pub fn add_lan(&mut self, config: LanConfig) -> Result<LanId, TopologyError> {
        let id = LanId(u32::try_from(self.lans.len()).unwrap_or(u32::MAX));
        let nat = match config.nat {
            Some(nat) if config.v4.is_some() => {
                let external = self.take_external(id, config.parent, &config.external, 1)?;
                Some(Nat::new(nat, external))
            }
            Some(_) => return Err(TopologyError::NoIpv4),
            None => None,
        };
        let translated = nat.is_some();
        self.lans.push(Lan {
            parent: config.parent,
            v4: config.v4,
            v6: config.v6,
            owners: BTreeMap::new(),
            next_v4: FIRST_HOST,
            next_v6: FIRST_HOST,
            routes: Vec::new(),
            nat,
            firewall: config.firewall.map(Firewall::new),
            udp_blocked: false,
            links: Links::default(),
        });
        if let Some(v6) = config.v6 {
            self.announce(id, v6.into());
        }
        if let (Some(v4), false) = (config.v4, translated) {
            self.announce(id, v4.into());
        }
        Ok(id)
    }

    /// One more interface, with the given addresses or one of each family that the LAN has.
    ///
    /// # Errors
    ///
    /// The host is on that LAN already; an address is taken, outside the prefix, or none is left.
    pub fn add_interface(
        &mut self,
        host: HostId,
        lan: LanId,
        addresses: Option<&[IpAddr]>,
    ) -> Result<(), TopologyError> {
        if self.interface(host, lan).is_some() {
            return Err(TopologyError::HasInterface);
        }
        let addresses = match addresses {
            Some(addresses) => addresses.to_vec(),
            None => self.free_addresses(lan)?,
        };
        let links = self.hosts[host.index()].interfaces.first().map_or_else(Links::default, |i| i.links.alike());
        let interface = Interface { lan, addresses: Vec::new(), attached: true, links };
        self.hosts[host.index()].interfaces.push(interface);
        let added = addresses.into_iter().try_for_each(|address| self.add_address(host, lan, address));
        if added.is_err() {
            self.remove_interface(host, lan)?;
        }
        added
    }

    /// One more address on an interface.
    ///
    /// # Errors
    ///
    /// No such interface, or the address is taken or outside the LAN's prefix.
    pub fn add_address(&mut self, host: HostId, lan: LanId, address: IpAddr) -> Result<(), TopologyError> {
        self.lans[lan.index()].claim(lan, address, Owner::Host(host))?;
        match self.interface_mut(host, lan) {
            Some(interface) => interface.addresses.push(address),
            None => {
                self.lans[lan.index()].release(address);
                return Err(TopologyError::NoInterface);
            }
        }
        Ok(())
    }

    fn new_host(&mut self) -> HostId {
        self.hosts.push(Host { interfaces: Vec::new(), asleep: false });
        HostId(u32::try_from(self.hosts.len() - 1).unwrap_or(u32::MAX))
    }

    /// Makes an untranslated prefix known outwards, as far as no NAT hides what is behind it.
    fn announce(&mut self, lan: LanId, prefix: IpNet) {
        let mut child = lan;
        while child != LanId::INTERNET {
            let hidden = child != lan && self.lans[child.index()].nat.is_some() && prefix.addr().is_ipv4();
            if hidden {
                break;
            }
            let parent = self.lans[child.index()].parent;
            self.lans[parent.index()].routes.push((prefix, child));
            child = parent;
        }
    }

    /// The given external addresses, or `count` new ones; all or none.
    pub(super) fn take_external(
        &mut self,
        router: LanId,
        parent: LanId,
        wanted: &[Ipv4Addr],
        count: usize,
    ) -> Result<Vec<Ipv4Addr>, TopologyError> {
        let lan = &mut self.lans[parent.index()];
        let mut external = Vec::new();
        for n in 0..if wanted.is_empty() { count.max(1) } else { wanted.len() } {
            let next = wanted.get(n).map_or_else(|| lan.free_v4().unwrap_or(Err(TopologyError::NoIpv4)), |a| Ok(*a));
            let taken = next.and_then(|address| {
                lan.claim(parent, address.into(), Owner::Router(router))?;
                external.push(address);
                Ok(())
            });
            if let Err(error) = taken {
                external.into_iter().for_each(|address| lan.release(address.into()));
                return Err(error);
            }
        }
        Ok(external)
    }

    fn free_addresses(&mut self, lan: LanId) -> Result<Vec<IpAddr>, TopologyError> {
        let lan = &mut self.lans[lan.index()];
        let v4 = lan.free_v4().transpose()?.map(IpAddr::from);
        let v6 = lan.free_v6().transpose()?.map(IpAddr::from);
        Ok(v4.into_iter().chain(v6).collect())
    }
}

impl Interface {
    pub(super) fn is(&self, uplink: Uplink) -> bool {
        !matches!(uplink, Uplink::Interface(_, lan) if lan != self.lan)
    }
}

impl Lan {
    /// Whether an address belongs on this LAN itself.
    pub(super) fn on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.is_some_and(|prefix| prefix.contains(&address)),
            IpAddr::V6(address) => self.v6.is_some_and(|prefix| prefix.contains(&address)),
        }
    }

    fn claim(&mut self, id: LanId, address: IpAddr, owner: Owner) -> Result<(), TopologyError> {
        if id != LanId::INTERNET && !self.on_link(address) {
            return Err(TopologyError::OutsidePrefix(address));
        }
        if self.owners.contains_key(&address) {
            return Err(TopologyError::AddressTaken(address));
        }
        self.owners.insert(address, owner);
        if let (Some(nat), IpAddr::V4(address)) = (&mut self.nat, address) {
            nat.join(address);
        }
        Ok(())
    }

    pub(super) fn release(&mut self, address: IpAddr) {
        self.owners.remove(&address);
        if let (Some(nat), IpAddr::V4(address)) = (&mut self.nat, address) {
            nat.leave(address);
        }
    }

    /// The next free address after the one given last; `None` without IPv4.
    fn free_v4(&mut self) -> Option<Result<Ipv4Addr, TopologyError>> {
        let prefix = self.v4?;
        let size = 1u64 << (32 - prefix.prefix_len());
        let base = u32::from(prefix.network());
        let address = |offset: u64| Ipv4Addr::from(base.wrapping_add(offset as u32));
        // The last address is for broadcast.
        let free = next_fit(self.next_v4, size.saturating_sub(1), |o| !self.owners.contains_key(&address(o).into()));
        Some(free.ok_or(TopologyError::PrefixFull).map(|offset| {
            self.next_v4 = offset + 1;
            address(offset)
        }))
    }

    fn free_v6(&mut self) -> Option<Result<Ipv6Addr, TopologyError>> {
        let prefix = self.v6?;
        let size = 1u64 << (128 - prefix.prefix_len()).min(63);
        let base = u128::from(prefix.network());
        let address = |offset: u64| Ipv6Addr::from(base.wrapping_add(u128::from(offset)));
        let free = next_fit(self.next_v6, size, |offset| !self.owners.contains_key(&address(offset).into()));
        Some(free.ok_or(TopologyError::PrefixFull).map(|offset| {
            self.next_v6 = offset + 1;
            address(offset)
        }))
    }
}

/// The first free offset in `FIRST_HOST..end` from `from` on, round and round.
fn next_fit(from: u64, end: u64, free: impl Fn(u64) -> bool) -> Option<u64> {
    let len = end.checked_sub(FIRST_HOST).filter(|len| *len > 0)?;
    (0..len.min(ADDRESS_TRIES)).map(|n| FIRST_HOST + (from - FIRST_HOST + n) % len).find(|offset| free(*offset))
}
