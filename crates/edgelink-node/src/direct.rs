//! Direct paths by UDP (specification §6, DESIGN §5): what is configured, what is known of this host, and datagrams.
//! Sockets are in `sockets`, the exchange of endpoints in `endpoints`, searches in `punching`.

use crate::sockets::Extra;
use crate::udp::{Transmit, UdpQueue};
use crate::{Drop, Event, Node};
use edgelink_model::{NodeId, Now, ServerId};
use edgelink_path::{Budget, KEEPALIVE, MAX_ENDPOINTS, NatDiscovery, SocketId, Way};
use edgelink_wire::keepalive::Keepalive;
use edgelink_wire::udp::{Datagram, Dropped, demux};
use edgelink_wire::{FrameType, HEADER_LEN};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The most addresses of interfaces that are looked at.
const MAX_LOCAL: usize = 64;

/// How direct paths are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct P2pConfig {
    /// `false`: not one UDP packet, nor a socket (specification §12.3).
    pub enabled: bool,
    /// Preferred UDP port; 0: any.
    pub port: u16,
    /// Time between keepalives of idle direct paths, least (specification §6.4).
    pub keepalive: Duration,
    /// Probes to addresses where perhaps nobody is, of all searches together; 20 a second (DESIGN §5). The same for all nodes of
    /// a host.
    pub budget: Budget,
    /// The TUN's MTU: what a direct path must be able to carry.
    pub mtu: u16,
}

/// Off: worlds without UDP stay as they are.
impl Default for P2pConfig {
    fn default() -> Self {
        Self { enabled: false, port: 0, keepalive: KEEPALIVE, budget: Budget::new(20), mtu: 1400 }
    }
}

/// The node's side of all direct paths.
#[derive(Debug)]
pub(crate) struct Direct {
    /// The one that serves all peers.
    pub(crate) socket: Option<SocketId>,
    /// Its port, once it is open.
    pub(crate) port: Option<u16>,
    pub(crate) next_socket: u32,
    /// Why there is no socket.
    pub(crate) problem: Option<String>,
    pub(crate) local: Vec<IpNet>,
    pub(crate) mappings: Vec<SocketAddr>,
    pub(crate) observed: BTreeMap<ServerId, IpAddr>,
    /// What the world sees of the common socket, by IPv4 and IPv6.
    pub(crate) nats: [NatDiscovery; 2],
    /// The controller has not been told yet.
    pub(crate) nat_changed: bool,
    pub(crate) extras: BTreeMap<SocketId, Extra>,
    pub(crate) budget: Budget,
    pub(crate) queue: UdpQueue,
    /// What waits unsealed until there is room.
    pub(crate) waiting: crate::waiting::Queue,
    pub(crate) keepalives: u32,
}

impl Direct {
    /// Whether a packet would have to wait.
    pub(crate) fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.queue.takes_more()
    }

    pub(crate) fn new(config: &P2pConfig) -> Self {
        Self {
            socket: None,
            port: None,
            next_socket: 1,
            problem: None,
            local: Vec::new(),
            mappings: Vec::new(),
            observed: BTreeMap::new(),
            nats: Default::default(),
            nat_changed: false,
            extras: BTreeMap::new(),
            budget: config.budget.clone(),
            queue: UdpQueue::default(),
            waiting: crate::waiting::Queue::new(),
            keepalives: 0,
        }
    }

    /// The discovery that counts: of IPv4 where that gets through, since it is there that NATs are.
    pub(crate) fn nat(&self) -> Option<&NatDiscovery> {
        let [v4, v6] = &self.nats;
        let asked = [v4, v6].into_iter().filter(|nat| nat.is_asked());
        asked.min_by_key(|nat| nat.answered_at().is_none())
    }

    /// Addresses under which STUN servers see the common socket.
    pub(crate) fn mapped(&self) -> Vec<SocketAddr> {
        self.nats.iter().flat_map(NatDiscovery::mapped).collect()
    }

    /// Whether STUN servers were asked and none has answered.
    pub(crate) fn is_blocked(&self) -> bool {
        self.nat().is_some_and(NatDiscovery::is_blocked)
    }

    pub(crate) fn is_own(&self, address: SocketAddr) -> bool {
        Some(address.port()) == self.port && self.local.iter().any(|net| net.addr() == address.ip())
    }

    pub(crate) fn is_lan(&self, remote: SocketAddr) -> bool {
        self.local.iter().any(|net| net.contains(&remote.ip()))
    }
}

/// The shell's side: datagrams and addresses.
impl Node {
    /// The addresses of this host's interfaces with their prefix lengths; call it at the start and whenever they change.
    /// Direct paths are proved anew then.
    pub fn set_local_addresses(&mut self, addresses: &[IpNet], now: Now) {
        self.set_connected(addresses, now);
        let mut local: Vec<IpNet> = addresses.iter().take(MAX_LOCAL).copied().collect();
        local.sort_unstable();
        local.dedup();
        if local == self.direct.local {
            return;
        }
        self.direct.local = local;
        if self.network.is_none() {
            return;
        }
        self.neighbours_changed(now);
        self.start_direct();
        if self.direct.port.is_none() {
            return;
        }
        self.prove_anew(now);
    }

    /// Packets leave this host by another router or interface than before, whatever its addresses: what the world sees of
    /// us is found out anew, and so are paths.
    pub fn uplink_changed(&mut self, now: Now) {
        if self.network.is_some() && self.direct.port.is_some() {
            self.prove_anew(now);
        }
    }

    pub(crate) fn prove_anew(&mut self, now: Now) {
        self.discover(now);
        let peers: Vec<NodeId> = self.peers.iter().filter(|(_, p)| p.paths.is_some()).map(|(id, _)| id).collect();
        for id in peers {
            let direct = &self.direct;
            if let Some(paths) = self.peers.get_mut(id).and_then(|p| p.paths.as_mut()) {
                // A network that we have left: nobody waits for probes to find out.
                paths.remove_direct(
                    |way| matches!(way, Way::Udp { remote, lan: true, .. } if !direct.is_lan(remote)),
                    now.mono,
                );
                paths.probe_all(now.mono);
                self.arm_path(id);
            }
        }
        self.restart_searches(false, now);
    }

    /// External addresses that the router maps to our socket (UPnP-IGD, NAT-PMP, PCP). Peers that are not reached
    /// directly are looked for anew with them.
    pub fn set_port_mappings(&mut self, addresses: &[SocketAddr], now: Now) {
        let mappings: Vec<SocketAddr> = addresses.iter().take(MAX_ENDPOINTS / 2).copied().collect();
        if mappings != self.direct.mappings {
            self.direct.mappings = mappings;
            self.direct.nat_changed = true;
            self.report_nat(now);
            self.restart_searches(true, now);
        }
    }

    /// The port of the socket that serves all peers, once it is open.
    pub fn direct_port(&self) -> Option<u16> {
        self.direct.port
    }

    /// One UDP datagram arrived. What is not ours is dropped and counted, never answered (DESIGN §1).
    pub fn handle_datagram(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Now,
        tun: &mut impl FnMut(&[u8], &[u8]),
    ) {
        if !self.is_own_socket(socket) {
            return;
        }
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let ty = match demux(datagram) {
            Ok(Datagram::Stun(message)) => return self.handle_stun(socket, from, message, now),
            // It has refreshed the mapping on its way here: that is all that it is for.
            Ok(Datagram::Keepalive(_)) => return,
            Ok(Datagram::Frame(frame)) => frame.frame_type(),
            Err(Dropped::Foreign) => return self.drops.count(Drop::ForeignDatagram),
            Err(Dropped::Malformed | Dropped::WrongType) => return self.drops.count(Drop::Malformed),
        };
        let way = Way::Udp { socket, remote: from, lan: self.direct.is_lan(from) };
        if ty == Some(FrameType::KeyAnnounce) {
            return self.handle_key_announce(datagram.get(HEADER_LEN..).unwrap_or_default(), now);
        }
        if let Err(reason) = self.receive_frame(datagram, ty, way, now, tun) {
            self.drops.count(reason);
        }
    }

    /// The next datagrams to be sent; call until `None` after [`Event::Datagrams`].
    pub fn poll_datagram(&mut self, now: Now) -> Option<Transmit> {
        if self.direct.queue.is_empty() {
            self.refill_udp(now);
        }
        self.direct.queue.pop()
    }

    /// Gives a sent datagram's buffer back, for the next ones.
    pub fn recycle_datagram(&mut self, transmit: Transmit) {
        self.direct.queue.recycle(transmit.bytes);
    }
}

impl Node {
    /// The address of ours that a relay saw.
    pub(crate) fn set_observed(&mut self, relay: ServerId, address: Option<IpAddr>) {
        match address {
            Some(address) => self.direct.observed.insert(relay, address.to_canonical()),
            None => self.direct.observed.remove(&relay),
        };
    }

    /// The 14 bytes that keep a mapping open and prove nothing (specification §6.4).
    pub(crate) fn send_keepalive(&mut self, socket: SocketId, to: SocketAddr, now: Now) {
        let Some(identity) = &self.identity else { return };
        self.direct.keepalives = self.direct.keepalives.wrapping_add(1);
        let timestamp_ms = u32::try_from(now.unix_ms % (1 << 32)).unwrap_or_default();
        let keepalive = Keepalive { src: identity.node, seq: self.direct.keepalives, timestamp_ms };
        self.signal_udp(socket, to, keepalive.encode().to_vec());
    }

    /// Queues one datagram.
    pub(crate) fn signal_udp(&mut self, socket: SocketId, to: SocketAddr, bytes: Vec<u8>) {
        if !self.is_own_socket(socket) {
            return;
        }
        match self.direct.queue.signal(socket, to, bytes) {
            Ok(()) => self.udp_queued(),
            Err(reason) => self.drops.count(reason),
        }
    }

    pub(crate) fn udp_queued(&mut self) {
        if !std::mem::replace(&mut self.direct.queue.announced, true) {
            self.events.push_back(Event::Datagrams);
        }
    }
}
