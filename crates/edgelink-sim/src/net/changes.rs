//! What happens to a network once it is built: moves, sleep, reboots, bad links, partitions.

use super::forward::site;
use super::link::{Direction, LinkProfile, LinkStats};
use super::nat::{Nat, NatConfig};
use super::topology::{Interface, Links, TopologyError};
use super::{Drops, HostId, Internet, LanId, Uplink};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

/// What may happen to a network.
impl Internet {
    /// Moves a host: it leaves every LAN and joins this one with new addresses, its links keeping their profiles.
    ///
    /// # Errors
    ///
    /// [`TopologyError::PrefixFull`]; the host is then nowhere.
    pub fn move_host(&mut self, host: HostId, lan: LanId) -> Result<Vec<IpAddr>, TopologyError> {
        let links = self.hosts[host.index()].interfaces.first().map(|interface| interface.links.alike());
        let left: Vec<LanId> = self.hosts[host.index()].interfaces.iter().map(|interface| interface.lan).collect();
        for lan in left {
            self.remove_interface(host, lan)?;
        }
        self.add_interface(host, lan, None)?;
        if let (Some(links), Some(interface)) = (links, self.interface_mut(host, lan)) {
            interface.links = links;
        }
        Ok(self.addresses(host))
    }

    /// Removes an interface with its addresses.
    ///
    /// # Errors
    ///
    /// [`TopologyError::NoInterface`].
    pub fn remove_interface(&mut self, host: HostId, lan: LanId) -> Result<(), TopologyError> {
        let addresses = self.interface(host, lan).ok_or(TopologyError::NoInterface)?.addresses.clone();
        addresses.into_iter().for_each(|address| self.remove_address(host, lan, address));
        self.hosts[host.index()].interfaces.retain(|interface| interface.lan != lan);
        Ok(())
    }

    /// Takes an address from a host; nothing happens if it has it not.
    pub fn remove_address(&mut self, host: HostId, lan: LanId, address: IpAddr) {
        let Some(interface) = self.interface_mut(host, lan) else { return };
        if !interface.addresses.contains(&address) {
            return;
        }
        interface.addresses.retain(|other| *other != address);
        self.lans[lan.index()].release(address);
    }

    /// Pulls (`false`) or plugs in the cables of all the host's interfaces. Addresses are kept.
    pub fn set_attached(&mut self, host: HostId, attached: bool) {
        self.hosts[host.index()].interfaces.iter_mut().for_each(|interface| interface.attached = attached);
    }

    /// Puts a host to sleep or wakes it: asleep it neither sends nor receives.
    pub fn set_asleep(&mut self, host: HostId, asleep: bool) {
        self.hosts[host.index()].asleep = asleep;
    }

    /// Lets a LAN's router drop all UDP, or no longer. LAN-internal traffic and streams are not concerned.
    pub fn set_udp_blocked(&mut self, lan: LanId, blocked: bool) {
        self.lans[lan.index()].udp_blocked = blocked;
    }

    /// Reboots a router: NAT and firewall forget everything. With `new_addresses` the NAT comes back with as many
    /// other external addresses.
    ///
    /// # Errors
    ///
    /// [`TopologyError::PrefixFull`]: the parent has no other address; the old ones are kept.
    pub fn reboot_router(&mut self, lan: LanId, new_addresses: bool) -> Result<(), TopologyError> {
        let parent = self.lans[lan.index()].parent;
        if let Some(firewall) = &mut self.lans[lan.index()].firewall {
            firewall.reboot();
        }
        let Some(nat) = &mut self.lans[lan.index()].nat else { return Ok(()) };
        let old = nat.external().to_vec();
        nat.reboot(old.clone());
        if new_addresses {
            let new = self.take_external(lan, parent, &[], old.len())?;
            let parent = &mut self.lans[parent.index()];
            old.into_iter().for_each(|address| parent.release(address.into()));
            if let Some(nat) = &mut parent.nat {
                new.iter().for_each(|address| nat.join(*address)); // the old ones may have left it an address
            }
            if let Some(nat) = &mut self.lans[lan.index()].nat {
                nat.reboot(new);
            }
        }
        Ok(())
    }

    /// Asks the host's router to forward an external port, `wanted` or the next that is free, to one of the host's, as
    /// UPnP-IGD, NAT-PMP and PCP do; the answer is the external endpoint, which behind two NATs is not a public one.
    /// Outbound datagrams from that port appear from there, anyone may send there. Asking again renews it; a lifetime
    /// of zero ends it.
    ///
    /// `None` if it is not (or no longer) forwarded: there is no NAT with
    /// [`port_mapping`](NatConfig::port_mapping), no port left, or the router is not reached.
    pub fn map_port(
        &mut self,
        now: Instant,
        host: HostId,
        port: u16,
        wanted: u16,
        lifetime: Duration,
    ) -> Option<SocketAddr> {
        let interfaces = self.hosts[host.index()].interfaces.iter().filter(|interface| interface.attached);
        let (lan, address) = interfaces
            .flat_map(|interface| interface.addresses.iter().map(|address| (interface.lan, *address)))
            .find(|(_, address)| address.is_ipv4())?;
        let (false, IpAddr::V4(address)) = (self.hosts[host.index()].asleep, address) else { return None };
        let nat = self.lans[lan.index()].nat.as_mut()?;
        nat.forward(now, SocketAddrV4::new(address, port), wanted, lifetime).map(SocketAddr::V4)
    }

    /// Replaces a router's NAT, as when its owner buys another: same external addresses, no state.
    ///
    /// # Errors
    ///
    /// [`TopologyError::NoNat`].
    pub fn set_nat(&mut self, lan: LanId, config: NatConfig) -> Result<(), TopologyError> {
        let lan = &mut self.lans[lan.index()];
        let external = lan.nat.as_ref().ok_or(TopologyError::NoNat)?.external().to_vec();
        let mut nat = Nat::new(config, external);
        for address in lan.owners.keys() {
            if let IpAddr::V4(address) = address {
                nat.join(*address);
            }
        }
        lan.nat = Some(nat);
        Ok(())
    }

    /// Sets one direction of a link. What is on it already keeps its time of arrival and is not overtaken.
    pub fn set_link(&mut self, uplink: Uplink, direction: Direction, profile: LinkProfile) {
        for links in self.links_mut(uplink) {
            links.get_mut(direction).profile = profile;
        }
    }

    /// Sets both directions of a link.
    pub fn set_links(&mut self, uplink: Uplink, profile: LinkProfile) {
        self.set_link(uplink, Direction::Up, profile);
        self.set_link(uplink, Direction::Down, profile);
    }

    /// Sets the way across the internet's core from one site to another, in that direction only. A site is a
    /// [`Uplink::Host`] on the internet or the [`Uplink::Router`] of a LAN whose parent is the internet.
    pub fn set_transit(&mut self, from: Uplink, to: Uplink, profile: LinkProfile) {
        self.transits.entry((site(from), site(to))).or_default().profile = profile;
    }

    /// Cuts every host in `a` off from every host in `b`, both ways. The cut is right before the receiver: NATs on
    /// the way still see the datagrams.
    pub fn block(&mut self, a: &[HostId], b: &[HostId]) {
        self.block_one_way(a, b);
        self.block_one_way(b, a);
    }

    /// Cuts the way from every host in `from` to every host in `to`.
    pub fn block_one_way(&mut self, from: &[HostId], to: &[HostId]) {
        self.blocked.extend(from.iter().flat_map(|from| to.iter().map(|to| (*from, *to))));
    }

    /// Removes all that [`block`](Self::block) has cut.
    pub fn heal(&mut self) {
        self.blocked.clear();
    }
}

/// What can be seen of it.
impl Internet {
    /// The host's addresses, in the order of its interfaces.
    pub fn addresses(&self, host: HostId) -> Vec<IpAddr> {
        self.hosts[host.index()].interfaces.iter().flat_map(|interface| interface.addresses.iter().copied()).collect()
    }

    /// The LANs that a host has interfaces on.
    pub fn lans_of(&self, host: HostId) -> Vec<LanId> {
        self.hosts[host.index()].interfaces.iter().map(|interface| interface.lan).collect()
    }

    /// External addresses of a LAN's NAT.
    pub fn external_addresses(&self, lan: LanId) -> &[Ipv4Addr] {
        self.lans[lan.index()].nat.as_ref().map_or(&[], Nat::external)
    }

    /// What was dropped so far.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// What one direction of a link has done, summed over [`Uplink::Host`]'s interfaces.
    pub fn link_stats(&self, uplink: Uplink, direction: Direction) -> LinkStats {
        let mut sum = LinkStats::default();
        for stats in self.links(uplink).map(|links| links.get(direction).stats) {
            sum.offered += stats.offered;
            sum.passed += stats.passed;
            sum.passed_bytes += stats.passed_bytes;
            sum.duplicated += stats.duplicated;
            sum.reordered += stats.reordered;
        }
        sum
    }

    pub(super) fn interface(&self, host: HostId, lan: LanId) -> Option<&Interface> {
        self.hosts[host.index()].interfaces.iter().find(|interface| interface.lan == lan)
    }

    pub(super) fn interface_mut(&mut self, host: HostId, lan: LanId) -> Option<&mut Interface> {
        self.hosts[host.index()].interfaces.iter_mut().find(|interface| interface.lan == lan)
    }

    pub(super) fn links(&self, uplink: Uplink) -> impl Iterator<Item = &Links> {
        let (interfaces, router) = match uplink {
            Uplink::Host(host) | Uplink::Interface(host, _) => (&self.hosts[host.index()].interfaces[..], None),
            Uplink::Router(lan) => (&[][..], Some(&self.lans[lan.index()].links)),
        };
        interfaces.iter().filter(move |interface| interface.is(uplink)).map(|interface| &interface.links).chain(router)
    }

    pub(super) fn links_mut(&mut self, uplink: Uplink) -> impl Iterator<Item = &mut Links> {
        let (interfaces, router) = match uplink {
            Uplink::Host(host) | Uplink::Interface(host, _) => (&mut self.hosts[host.index()].interfaces[..], None),
            Uplink::Router(lan) => (&mut [][..], Some(&mut self.lans[lan.index()].links)),
        };
        interfaces
            .iter_mut()
            .filter(move |interface| interface.is(uplink))
            .map(|interface| &mut interface.links)
            .chain(router)
    }
}
