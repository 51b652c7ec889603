//! UDP: nodes at sites behind NATs, the relays' STUN servers, and the datagrams between them.

use super::*;
use crate::net::{HostId, Internet, LanConfig, LanId, LinkProfile, Loss, NatConfig, Uplink};
use edgelink_node::{SocketId, Transmit};
use edgelink_relay::stun::{Addresses, Responder, Socket, StunConfig, Which};
use edgelink_wire::keepalive;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Every private network has this prefix: equal prefixes prove nothing (DESIGN §5).
const HOME: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 1, 0), 24);
/// Where ports are taken from that nobody asked for.
const EPHEMERAL: u16 = 40_000;
const STUN_PORT: u16 = 3478;

/// Where a node stands in the internet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Site {
    /// Direct paths are switched off: not one datagram may be sent.
    #[default]
    Off,
    /// It has a public address.
    Public,
    /// In the private network of the node before it, if that has one; else as `PortRestricted`.
    Neighbour,
    /// Alone behind a NAT of this kind.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    RestrictedCone,
    /// Endpoint-independent mapping, address- and port-dependent filtering: the home router.
    PortRestricted,
    /// Address- and port-dependent mapping and filtering.
    Symmetric,
    /// Address-dependent mapping.
    AddressDependent,
    /// A Linux router on which early packets claim the tuple.
    Linux,
    /// A carrier's NAT with blocks of ports.
    Carrier,
    /// UDP does not pass.
    Blocked,
}

impl Site {
    fn nat(self) -> Option<NatConfig> {
        Some(match self {
            Self::Off | Self::Public => return None,
            Self::FullCone => NatConfig::full_cone(),
            Self::RestrictedCone => NatConfig::restricted_cone(),
            Self::PortRestricted | Self::Neighbour | Self::Blocked => NatConfig::port_restricted(),
            Self::Symmetric => NatConfig::symmetric(),
            Self::AddressDependent => NatConfig::address_dependent_mapping(),
            Self::Linux => NatConfig::linux_masquerade(),
            Self::Carrier => NatConfig::carrier_grade(),
        })
    }
}

/// A node's part in it.
pub(super) struct UdpHost {
    host: HostId,
    /// Its private network; `None` with a public address.
    lan: Option<LanId>,
    sockets: BTreeMap<SocketId, u16>,
    next_port: u16,
    only_keepalives: bool,
}

/// A relay's STUN server.
pub(super) struct StunHost {
    relay: usize,
    responder: Responder,
    addresses: Addresses,
}

/// The internet's hosts.
#[derive(Default)]
pub(super) struct Owners {
    nodes: BTreeMap<HostId, usize>,
    stun: BTreeMap<HostId, StunHost>,
}

impl World {
    /// Gives a relay's host a public address with a STUN server on it. It answers while the relay runs.
    pub fn add_stun(&mut self, index: RelayIndex) {
        let Ok(host) = self.net.add_host_on(LanId::INTERNET) else { return };
        let Some(ip) = self.net.addresses(host).first().copied() else { return };
        self.put_stun(index, host, Addresses::new(ip, None));
    }

    /// The same with two addresses, which tells clients how their NAT filters (RFC 5780).
    pub fn add_stun_with_two_addresses(&mut self, index: RelayIndex) {
        let Ok(host) = self.net.add_host_on(LanId::INTERNET) else { return };
        let Some(IpAddr::V4(first)) = self.net.addresses(host).first().copied() else { return };
        let second = IpAddr::from(Ipv4Addr::from(u32::from(first).wrapping_add(10_000)));
        if self.net.add_address(host, LanId::INTERNET, second).is_ok() {
            self.put_stun(index, host, Addresses::new(first.into(), Some(second)));
        }
    }

    fn put_stun(&mut self, index: RelayIndex, host: HostId, addresses: Addresses) {
        let responder = Responder::new(StunConfig::new(addresses), &mut self.rng);
        self.owners.stun.insert(host, StunHost { relay: index.0, responder, addresses });
        let row = self.server_id(index).and_then(|id| self.database.server(id)).cloned();
        if let Some(mut row) = row {
            row.stun = true;
            row.stun_ip = Some(addresses.ip);
            row.stun_ip2 = addresses.other_ip;
            row.stun_port = STUN_PORT;
            self.database.put_server(row);
        }
    }

    /// A new node at a site.
    pub fn add_node_at(&mut self, name: &str, network: NetworkId, clock_error_ms: i64, site: Site) -> NodeIndex {
        let index = self.prepare_node(name, network, clock_error_ms);
        self.place(index, site);
        self.start_node(index);
        index
    }

    /// A new node of the first network, alone behind a NAT, on a link of this kind.
    pub fn add_node_behind(&mut self, name: &str, nat: NatConfig, link: LinkProfile) -> NodeIndex {
        let index = self.prepare_node(name, NetworkId(1), 0);
        if let Ok(lan) = self.net.add_lan(LanConfig::behind(nat, HOME)) {
            self.net.set_links(Uplink::Router(lan), link);
            self.attach(index, Some(lan));
        }
        self.start_node(index);
        index
    }

    /// Moves a node to a new site: its addresses change, and its connections are dead.
    pub fn move_node(&mut self, index: NodeIndex, site: Site) {
        let there = self.udp_of(index.0).is_some();
        if there && site != Site::Off {
            let lan = self.lan_for(index.0, site);
            if let Some(udp) = self.nodes.get_mut(index.0).and_then(|host| host.udp.as_mut()) {
                // A LAN has room for more hosts than a scenario makes.
                let _ = self.net.move_host(udp.host, lan.unwrap_or(LanId::INTERNET));
                udp.lan = lan;
            }
        }
        self.roam_node(index);
        self.tell_addresses(index.0);
    }

    /// The router of a node's site restarts: its mappings are gone, perhaps its address as well.
    pub fn reboot_router(&mut self, index: NodeIndex, new_address: bool) {
        if let Some(lan) = self.udp_of(index.0).and_then(|udp| udp.lan) {
            let _ = self.net.reboot_router(lan, new_address);
        }
    }

    /// A firewall lets UDP pass no more, or again.
    pub fn set_udp_blocked(&mut self, index: NodeIndex, blocked: bool) {
        if let Some(lan) = self.udp_of(index.0).and_then(|udp| udp.lan) {
            self.net.set_udp_blocked(lan, blocked);
        }
    }

    /// Nothing but keepalives comes out of a node any more, or everything again.
    pub fn set_only_keepalives(&mut self, index: NodeIndex, only: bool) {
        if let Some(udp) = self.nodes.get_mut(index.0).and_then(|host| host.udp.as_mut()) {
            udp.only_keepalives = only;
        }
    }

    /// Pulls a node's cable, or plugs it in, as far as UDP is concerned.
    pub fn set_attached(&mut self, index: NodeIndex, attached: bool) {
        if let Some(host) = self.udp_of(index.0).map(|udp| udp.host) {
            self.net.set_attached(host, attached);
        }
    }

    /// No datagram passes between these and those, until [`Self::reunite`].
    pub fn set_apart(&mut self, one: &[NodeIndex], other: &[NodeIndex]) {
        let hosts = |nodes: &[NodeIndex]| -> Vec<HostId> {
            nodes.iter().filter_map(|node| self.udp_of(node.0)).map(|udp| udp.host).collect()
        };
        let (one, other) = (hosts(one), hosts(other));
        self.net.block(&one, &other);
    }

    /// Datagrams pass between all nodes again.
    pub fn reunite(&mut self) {
        self.net.heal();
    }

    /// How good a node's uplink is for datagrams.
    pub fn set_uplink(&mut self, index: NodeIndex, line: Line) {
        let loss = if line.loss > 0.0 { Loss::Independent(line.loss) } else { Loss::None };
        let rate = line.rate.map(|bytes| bytes * 8);
        // What loses datagrams also doubles and reorders some.
        let odd = line.loss / 2.0;
        let profile = LinkProfile {
            delay: line.delay,
            jitter: line.jitter,
            loss,
            rate,
            duplicate: odd,
            reorder: odd,
            reorder_delay: line.delay / 2,
            ..LinkProfile::default()
        };
        if let Some(udp) = self.udp_of(index.0) {
            let uplink = udp.lan.map_or(Uplink::Host(udp.host), Uplink::Router);
            self.net.set_links(uplink, profile);
        }
    }

    /// The simulated internet, to look into.
    pub fn internet(&self) -> &Internet {
        &self.net
    }

    /// How many sockets a node has open.
    pub fn socket_count(&self, index: NodeIndex) -> usize {
        self.udp_of(index.0).map_or(0, |udp| udp.sockets.len())
    }

    /// Whether a node may send datagrams at all.
    pub fn has_udp(&self, index: NodeIndex) -> bool {
        self.udp_of(index.0).is_some()
    }

    fn place(&mut self, index: NodeIndex, site: Site) {
        if site == Site::Off {
            return;
        }
        let lan = self.lan_for(index.0, site);
        self.attach(index, lan);
    }

    fn attach(&mut self, index: NodeIndex, lan: Option<LanId>) {
        let Ok(host) = self.net.add_host_on(lan.unwrap_or(LanId::INTERNET)) else { return };
        self.owners.nodes.insert(host, index.0);
        if let Some(node) = self.nodes.get_mut(index.0) {
            node.udp =
                Some(UdpHost { host, lan, sockets: BTreeMap::new(), next_port: EPHEMERAL, only_keepalives: false });
        }
    }

    fn lan_for(&mut self, index: usize, site: Site) -> Option<LanId> {
        let before = index.checked_sub(1).and_then(|n| self.udp_of(n)).and_then(|udp| udp.lan);
        if let (Site::Neighbour, Some(lan)) = (site, before) {
            return Some(lan);
        }
        let lan = self.net.add_lan(LanConfig::behind(site.nat()?, HOME)).ok()?;
        self.net.set_udp_blocked(lan, site == Site::Blocked);
        self.net.set_links(Uplink::Router(lan), LinkProfile::delay(self.config.delay));
        Some(lan)
    }

    pub(super) fn udp_of(&self, index: usize) -> Option<&UdpHost> {
        self.nodes.get(index)?.udp.as_ref()
    }

    /// What netlink tells the daemon.
    pub(super) fn tell_addresses(&mut self, index: usize) {
        let Some(udp) = self.udp_of(index) else { return };
        let net = |ip: IpAddr| match (ip, udp.lan) {
            (IpAddr::V4(_), Some(_)) => IpNet::new(ip, HOME.prefix_len()).ok(),
            _ => Some(IpNet::from(ip)),
        };
        let addresses: Vec<IpNet> = self.net.addresses(udp.host).into_iter().filter_map(net).collect();
        let now = self.node_now(index);
        if let Some(node) = self.awake_mut(index) {
            node.set_local_addresses(&addresses, now);
            self.touched.insert(Party::Node(index));
        }
    }

    pub(super) fn open_socket(&mut self, index: usize, socket: SocketId, port: u16) {
        let now = self.node_now(index);
        let Some(host) = self.nodes.get_mut(index) else { return };
        let (Some(udp), Some(node)) = (&mut host.udp, &mut host.node) else {
            let at = self.now - self.start;
            return self.watch.violation(at, format_args!("node {index} opens a socket though direct paths are off"));
        };
        let taken = |port: u16| udp.sockets.values().any(|p| *p == port);
        let port = if port != 0 && !taken(port) {
            port
        } else {
            let next = |port: u16| port.checked_add(1).unwrap_or(EPHEMERAL);
            udp.next_port = next(udp.next_port);
            while taken(udp.next_port) {
                udp.next_port = next(udp.next_port);
            }
            udp.next_port
        };
        udp.sockets.insert(socket, port);
        node.socket_opened(socket, port, now);
    }

    pub(super) fn close_socket(&mut self, index: usize, socket: SocketId) {
        if let Some(udp) = self.nodes.get_mut(index).and_then(|host| host.udp.as_mut()) {
            udp.sockets.remove(&socket);
        }
    }

    pub(super) fn flush_datagrams(&mut self, index: usize) {
        let now = self.node_now(index);
        while let Some(host) = self.nodes.get_mut(index).filter(|host| host.asleep.is_none())
            && let Some(Transmit { socket, to, bytes, segment }) =
                host.node.as_mut().and_then(|node| node.poll_datagram(now))
        {
            let Some(udp) = &host.udp else { continue };
            let Some(port) = udp.sockets.get(&socket).copied() else { continue };
            let (host, only_keepalives) = (udp.host, udp.only_keepalives);
            let mut rest = bytes;
            while !rest.is_empty() {
                let datagram = rest.split_to(segment.clamp(1, rest.len()));
                self.watch.datagram(self.now - self.start, Party::Node(index), &datagram);
                if !only_keepalives || datagram.len() == keepalive::LEN {
                    // What cannot even leave is lost like what is lost on its way.
                    let _ = self.net.send(self.now, host, port, to, datagram, &mut self.rng);
                }
            }
        }
    }

    /// One datagram that is due, if there is any.
    pub(super) fn deliver_datagram(&mut self) -> bool {
        let Some(arrival) = self.net.pop_due(self.now, &mut self.rng) else { return false };
        if let Some(stun) = self.owners.stun.get_mut(&arrival.host) {
            let [first, second] = [Which::First, Which::Second];
            let sockets = [(first, first), (first, second), (second, first), (second, second)];
            let mut sockets = sockets.into_iter().map(|(ip, port)| Socket { ip, port });
            let at = sockets.find(|socket| stun.addresses.of(*socket) == Some(arrival.local));
            let runs = self.relays.get(stun.relay).is_some_and(|relay| relay.core().is_some());
            if let Some(at) = at.filter(|_| runs)
                && let Some(answer) = stun.responder.answer(at, arrival.from, &arrival.payload, self.now)
                && let Some(source) = stun.addresses.of(answer.from)
            {
                let bytes = Bytes::copy_from_slice(answer.datagram());
                let _ = self.net.send_from(self.now, arrival.host, source, arrival.from, bytes, &mut self.rng);
            }
            return true;
        }
        if let Some(index) = self.owners.nodes.get(&arrival.host).copied() {
            self.receive_datagram(index, arrival.local, arrival.from, &arrival.payload);
        }
        true
    }

    fn receive_datagram(&mut self, index: usize, local: SocketAddr, from: SocketAddr, payload: &[u8]) {
        let (now, at) = (self.node_now(index), self.elapsed());
        let Some(host) = self.nodes.get_mut(index).filter(|host| host.asleep.is_none()) else { return };
        let (Some(udp), Some(node)) = (&host.udp, &mut host.node) else { return };
        let Some(socket) = udp.sockets.iter().find(|(_, port)| **port == local.port()).map(|(s, _)| *s) else { return };
        let (delivered, watch) = (&mut self.delivered, &mut self.watch);
        let mut tun = |_: &[u8], packet: &[u8]| {
            watch.delivered(at, index, packet);
            delivered.push(Delivered { node: NodeIndex(index), at, packet: packet.to_vec() });
        };
        node.handle_datagram(socket, from, &mut payload.to_vec(), now, &mut tun);
        self.touched.insert(Party::Node(index));
    }

    /// The process is gone, and its sockets with it.
    pub(super) fn forget_sockets(&mut self, index: usize) {
        if let Some(udp) = self.nodes.get_mut(index).and_then(|host| host.udp.as_mut()) {
            udp.sockets.clear();
        }
    }

    /// Switches a node's host off or on, or lets it sleep, in the internet as well.
    pub(super) fn set_udp_power(&mut self, index: usize, on: bool, asleep: bool) {
        if let Some(host) = self.udp_of(index).map(|udp| udp.host) {
            self.net.set_attached(host, on);
            self.net.set_asleep(host, asleep);
        }
    }
}
