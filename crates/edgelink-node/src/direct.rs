//! Direct paths by UDP (specification §6, DESIGN §5): our sockets and endpoints, their exchange with peers, punching,
//! and why a peer is relayed. [`edgelink_path`] keeps the searches, this feeds them.

use crate::control::ip;
use crate::timers::Timer;
use crate::udp::{Transmit, UdpQueue};
use crate::{Drop, Event, Node};
use edgelink_model::{NodeId, Now, ServerId};
use edgelink_path::{
    Budget, KEEPALIVE, MAX_ENDPOINTS, NatDiscovery, NatName, PeerPaths, Proof, PunchProbe, PunchState, SocketId,
    StunServer, Way,
};
use edgelink_wire::control::{ControlMessage, proto};
use edgelink_wire::keepalive::Keepalive;
use edgelink_wire::probe::{self, Probe};
use edgelink_wire::udp::{Datagram, Dropped, demux};
use edgelink_wire::{Flags, FrameType, HEADER_LEN, data};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Discovery is tried again after this while no server answers.
const BLOCKED_RETRY: Duration = Duration::from_secs(60);
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
    /// Probes a second to addresses where perhaps nobody is, of all searches together.
    pub budget: u32,
    /// The TUN's MTU: what a direct path must be able to carry.
    pub mtu: u16,
}

/// Off: worlds without UDP stay as they are.
impl Default for P2pConfig {
    fn default() -> Self {
        Self { enabled: false, port: 0, keepalive: KEEPALIVE, budget: 20, mtu: 1400 }
    }
}

/// The node's side of all direct paths.
#[derive(Debug)]
pub(crate) struct Direct {
    pub(crate) socket: Option<SocketId>,
    /// Its port, once it is open.
    pub(crate) port: Option<u16>,
    pub(crate) next_socket: u32,
    /// Why there is no socket.
    pub(crate) problem: Option<String>,
    pub(crate) local: Vec<IpNet>,
    pub(crate) mappings: Vec<SocketAddr>,
    pub(crate) observed: BTreeMap<ServerId, IpAddr>,
    pub(crate) nat: NatDiscovery,
    pub(crate) budget: Budget,
    pub(crate) queue: UdpQueue,
    pub(crate) keepalives: u32,
}

impl Direct {
    pub(crate) fn new(config: &P2pConfig) -> Self {
        Self {
            socket: None,
            port: None,
            next_socket: 1,
            problem: None,
            local: Vec::new(),
            mappings: Vec::new(),
            observed: BTreeMap::new(),
            nat: NatDiscovery::default(),
            budget: Budget::new(config.budget),
            queue: UdpQueue::default(),
            keepalives: 0,
        }
    }

    /// The open socket.
    pub(crate) fn sockets(&self) -> Vec<SocketId> {
        self.socket.filter(|_| self.port.is_some()).into_iter().collect()
    }

    pub(crate) fn is_own(&self, address: SocketAddr) -> bool {
        Some(address.port()) == self.port && self.local.iter().any(|net| net.addr() == address.ip())
    }

    pub(crate) fn is_lan(&self, remote: SocketAddr) -> bool {
        self.local.iter().any(|net| net.contains(&remote.ip()))
    }
}

/// The shell's side: sockets, datagrams, addresses.
impl Node {
    /// The socket that [`Event::OpenSocket`] asked for is bound to this port.
    pub fn socket_opened(&mut self, socket: SocketId, port: u16, now: Now) {
        if self.direct.socket != Some(socket) {
            return self.events.push_back(Event::CloseSocket { socket });
        }
        self.direct.port = Some(port);
        self.direct.problem = None;
        self.discover(now);
        self.restart_searches(now);
    }

    /// It could not be opened, or is of no use any more. Another one is asked for when the addresses change.
    pub fn socket_failed(&mut self, socket: SocketId, reason: &str, now: Now) {
        if self.direct.socket == Some(socket) {
            tracing::warn!(reason, "no UDP socket; peers are reached through relays");
            self.forget_socket(now);
            self.direct.problem = Some(reason.to_owned());
        }
    }

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
        self.start_direct();
        if self.direct.port.is_none() {
            return;
        }
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
        self.restart_searches(now);
    }

    /// External addresses that the router maps to our socket (UPnP-IGD, NAT-PMP, PCP).
    pub fn set_port_mappings(&mut self, addresses: &[SocketAddr], now: Now) {
        let mappings: Vec<SocketAddr> = addresses.iter().take(MAX_ENDPOINTS / 2).copied().collect();
        if mappings != self.direct.mappings {
            self.direct.mappings = mappings;
            self.restart_searches(now);
        }
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
        if self.direct.socket != Some(socket) {
            return;
        }
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let ty = match demux(datagram) {
            Ok(Datagram::Stun(message)) => {
                if self.direct.nat.handle(from, message, now.mono) {
                    tracing::debug!(mapped = ?self.direct.nat.mapped(), "the world sees us under another address");
                    self.endpoints_changed(now);
                }
                return self.arm_stun(now);
            }
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
    pub fn poll_datagram(&mut self) -> Option<Transmit> {
        self.direct.queue.pop()
    }

    /// Gives a sent datagram's buffer back, for the next ones.
    pub fn recycle_datagram(&mut self, transmit: Transmit) {
        self.direct.queue.recycle(transmit.bytes);
    }
}

impl Node {
    /// Opens the socket, once there is a network to talk in.
    pub(crate) fn start_direct(&mut self) {
        if self.config.p2p.enabled && self.direct.socket.is_none() {
            self.open_socket();
        }
    }

    /// No member any more: no socket either.
    pub(crate) fn stop_direct(&mut self, now: Now) {
        if let Some(socket) = self.direct.socket {
            self.forget_socket(now);
            self.events.push_back(Event::CloseSocket { socket });
        }
    }

    fn open_socket(&mut self) {
        let socket = SocketId(self.direct.next_socket);
        self.direct.next_socket += 1;
        self.direct.socket = Some(socket);
        self.events.push_back(Event::OpenSocket { socket, port: self.config.p2p.port });
    }

    fn forget_socket(&mut self, now: Now) {
        self.direct.socket = None;
        self.direct.port = None;
        self.direct.queue.clear();
        self.direct.nat = NatDiscovery::default();
        self.timers.clear(Timer::Stun);
        let peers: Vec<NodeId> = self.peers.iter().filter(|(_, p)| p.paths.is_some()).map(|(id, _)| id).collect();
        for id in peers {
            self.drop_direct(id, now);
        }
    }

    /// Direct paths to a peer end.
    pub(crate) fn drop_direct(&mut self, id: NodeId, now: Now) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.punch = None;
        self.timers.clear(Timer::Punch(id));
        if let Some(paths) = &mut peer.paths {
            paths.remove_direct(|_| true, now.mono);
            self.arm_path(id);
        }
    }

    pub(crate) fn set_stun_servers(&mut self, now: Now) {
        let servers = self.stun_servers();
        if servers != self.stun_servers {
            self.stun_servers = servers;
            self.discover(now);
        }
    }

    fn stun_servers(&self) -> Vec<StunServer> {
        let server = |message: &proto::StunServer| {
            let port = u16::try_from(message.port).ok()?;
            let address = ip(&message.ip)?;
            Some(StunServer { primary: SocketAddr::new(address, port), second: ip(&message.ip2) })
        };
        self.latest.stun_servers.iter().filter_map(server).collect()
    }

    /// Finds out what the world sees of our socket.
    fn discover(&mut self, now: Now) {
        if self.direct.port.is_some() {
            self.direct.nat.start(&self.stun_servers);
            self.timers.set(Timer::Stun, now.mono);
        }
    }

    pub(crate) fn stun_timeout(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(socket) = self.direct.socket.filter(|_| self.direct.port.is_some()) else { return };
        if self.direct.nat.is_blocked() && self.direct.nat.is_done() {
            self.direct.nat.start(&self.stun_servers);
        }
        while let Some(query) = self.direct.nat.poll(&mut self.direct.budget, now.mono, rng) {
            self.signal_udp(socket, query.to, query.bytes);
        }
        self.arm_stun(now);
    }

    fn arm_stun(&mut self, now: Now) {
        let nat = &self.direct.nat;
        let blocked = (nat.is_blocked() && nat.is_done()).then(|| now.mono + BLOCKED_RETRY);
        match nat.poll_timeout(now.mono).or(blocked) {
            Some(at) => self.timers.set(Timer::Stun, at),
            None => self.timers.clear(Timer::Stun),
        }
    }

    /// The address of ours that a relay saw.
    pub(crate) fn set_observed(&mut self, relay: ServerId, address: Option<IpAddr>) {
        match address {
            Some(address) => self.direct.observed.insert(relay, address.to_canonical()),
            None => self.direct.observed.remove(&relay),
        };
    }

    /// There is traffic with a peer: look for a direct path, unless there is one or it has been tried in vain lately.
    pub(crate) fn want_direct(&mut self, id: NodeId, now: Now) {
        if !self.config.p2p.enabled || self.direct.port.is_none() {
            return;
        }
        let sockets = self.direct.sockets();
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.paths.as_ref().is_some_and(|paths| paths.has_direct()) {
            return;
        }
        let punch = peer.punch.get_or_insert_default();
        punch.lost();
        punch.want(&sockets, now.mono);
        self.timers.set_earlier(Timer::Punch(id), now.mono);
    }

    pub(crate) fn punch_timeout(&mut self, id: NodeId, now: Now) {
        let sockets = self.direct.sockets();
        let Some(peer) = self.peers.get_mut(id) else { return };
        let talking = peer.has_data(now.mono);
        let Some(punch) = &mut peer.punch else { return };
        punch.handle_timeout(&sockets, now.mono);
        if let PunchState::Waiting(at) = punch.state() {
            if at <= now.mono && talking {
                punch.want(&sockets, now.mono);
            } else if at <= now.mono {
                // The next packet begins anew.
                peer.punch = None;
                return;
            }
        }
        if self.peers.get_mut(id).and_then(|p| p.punch.as_mut()).is_some_and(|punch| punch.take_signal()) {
            self.tell_endpoints(id, true, now);
        }
        while let Some(probe) = self
            .peers
            .get_mut(id)
            .and_then(|p| p.punch.as_mut())
            .and_then(|punch| punch.next_probe(&mut self.direct.budget, now.mono))
        {
            self.send_punch(id, probe, now);
        }
        self.arm_punch(id);
    }

    fn send_punch(&mut self, id: NodeId, probe: PunchProbe, now: Now) {
        let sent_us = self.probe_time(now);
        let mut message = Probe { path: 0, sent_us }.encode().to_vec();
        if probe.full {
            message.resize(usize::from(self.config.p2p.mtu).max(probe::LEN), 0);
        }
        let Ok(frame) = self.seal(id, FrameType::P2pPing, Flags::default(), &[&message]) else { return };
        self.signal_udp(probe.socket, probe.remote, frame);
        if let Some(punch) = self.peers.get_mut(id).and_then(|p| p.punch.as_mut()) {
            punch.probe_sent(probe, sent_us, now.mono);
        }
    }

    fn arm_punch(&mut self, id: NodeId) {
        let Some(punch) = self.peers.get(id).and_then(|p| p.punch.as_ref()) else { return };
        let waiting = match punch.state() {
            PunchState::Waiting(at) => Some(at),
            _ => None,
        };
        match punch.poll_timeout().into_iter().chain(waiting).min() {
            Some(at) => self.timers.set(Timer::Punch(id), at),
            None => self.timers.clear(Timer::Punch(id)),
        }
    }

    /// An authenticated frame came by UDP over a way that is no path of ours: whoever it is, it is probed.
    pub(crate) fn note_udp(&mut self, id: NodeId, way: Way, now: Now) {
        let Way::Udp { socket, remote, .. } = way else { return };
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.paths.as_ref().is_some_and(|paths| paths.knows(way)) {
            return;
        }
        let punch = peer.punch.get_or_insert_default();
        if punch.state() == PunchState::Done && peer.paths.as_ref().is_some_and(|paths| paths.has_direct()) {
            // It has moved, or one of its addresses is another: prove that too.
            punch.lost();
        }
        punch.observe(socket, remote, now.mono);
        self.timers.set_earlier(Timer::Punch(id), now.mono);
    }

    /// A PONG by UDP may answer a search.
    pub(crate) fn punch_pong(&mut self, id: NodeId, probe: Probe, way: Way, now: Now) {
        let Way::Udp { socket, remote, .. } = way else { return };
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(proof) = peer.punch.as_mut().and_then(|punch| punch.pong(probe.sent_us, socket, remote, now.mono))
        else {
            return;
        };
        if let Proof::Full { rtt, .. } = proof {
            let keepalive = self.config.p2p.keepalive;
            let (advice, ways) = (peer.advice, &self.relay_ways);
            let paths = peer.paths.get_or_insert_with(|| {
                // What there is when the direct path ends.
                let mut paths = PeerPaths::new();
                paths.set_advice(advice, now.mono);
                paths.set_relays(ways, now.mono);
                Box::new(paths)
            });
            paths.set_keepalive(keepalive);
            let first = !paths.has_direct();
            paths.add_direct(way, rtt, now.mono);
            if let Some(punch) = &mut peer.punch {
                match way {
                    Way::Udp { lan: true, .. } => punch.done(),
                    _ => punch.settle(now.mono),
                }
            }
            if first {
                tracing::debug!(peer = %id, ?way, ?rtt, "direct path");
                self.report_direct(id, now);
            }
            self.arm_path(id);
        }
        self.timers.set_earlier(Timer::Punch(id), now.mono);
    }

    /// The paths of a peer have changed: is there still, or no longer, a direct one?
    pub(crate) fn check_direct(&mut self, id: NodeId, had: bool, now: Now) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let has = peer.paths.as_ref().is_some_and(|paths| paths.has_direct());
        if had && !has {
            tracing::debug!(peer = %id, "direct path lost");
            if let Some(punch) = &mut peer.punch {
                punch.lost();
            }
            self.report_direct(id, now);
            if self.peers.get(id).is_some_and(|peer| peer.has_data(now.mono)) {
                self.want_direct(id, now);
            }
        }
    }

    /// Addresses have changed: whoever we look for, or talk with directly, should know.
    fn restart_searches(&mut self, now: Now) {
        let sockets = self.direct.sockets();
        if sockets.is_empty() {
            return;
        }
        let concerned: Vec<NodeId> =
            self.peers.iter().filter(|(_, peer)| peer.has_data(now.mono)).map(|(id, _)| id).collect();
        for id in concerned {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.punch.get_or_insert_default().restart(&sockets, now.mono);
                self.timers.set_earlier(Timer::Punch(id), now.mono);
            }
        }
    }

    /// P2P_STATUS: whether we reach a peer directly, and why not.
    fn report_direct(&mut self, id: NodeId, now: Now) {
        let Some(link) = self.control_link() else { return };
        let Some(peer) = self.peers.get(id) else { return };
        let view = self.path_view(peer).filter(|view| view.way.is_direct());
        let endpoint = view.and_then(|view| view.way.remote()).map(|remote| proto::Endpoint {
            kind: proto::endpoint::Kind::Unknown.into(),
            ip: match remote.ip() {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            },
            port: remote.port().into(),
            priority: 0,
        });
        let rtt = view.and_then(|view| view.rtt).unwrap_or_default();
        let status = proto::P2pStatus {
            node_id: id.0,
            connected: view.is_some(),
            endpoint,
            rtt_us: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
            reason: if view.is_some() { String::new() } else { self.why_relayed(id, now).unwrap_or_default() },
        };
        self.send_message(link, ControlMessage::P2pStatus(status));
    }

    /// Why a peer is relayed, in words for the user; `None` while nobody has asked for more.
    pub(crate) fn why_relayed(&self, id: NodeId, now: Now) -> Option<String> {
        let peer = self.peers.get(id).filter(|peer| peer.paths.is_some())?;
        if !self.config.p2p.enabled {
            return Some("direct connections are disabled here (p2p.enabled)".to_owned());
        }
        if peer.refuses_direct {
            return Some("direct connections are disabled there".to_owned());
        }
        if let Some(problem) = &self.direct.problem {
            return Some(format!("no UDP socket: {problem}"));
        }
        let punch = peer.punch.as_ref()?;
        let next = match punch.state() {
            PunchState::Trying(attempt) => format!("attempt {attempt} of {}", edgelink_path::ATTEMPTS),
            PunchState::Waiting(at) => {
                format!("next try in {} s", at.saturating_duration_since(now.mono).as_secs())
            }
            PunchState::Idle | PunchState::Done => return None,
        };
        let symmetric = self.nat_name() == NatName::Symmetric;
        Some(match () {
            () if punch.is_too_narrow() => format!("the direct path is too narrow for full-size packets (MTU); {next}"),
            () if self.direct.nat.is_blocked() => format!("UDP seems to be blocked here; {next}"),
            () if !punch.has_candidates() => format!("no endpoints of the peer are known; {next}"),
            () if symmetric && peer.is_symmetric => format!("symmetric NAT on both sides; {next}"),
            () if matches!(punch.state(), PunchState::Waiting(_)) => format!("punching timed out; {next}"),
            () => format!("looking for a direct path; {next}"),
        })
    }

    pub(crate) fn nat_name(&self) -> NatName {
        self.direct.nat.name(|address| self.direct.is_own(address))
    }

    pub(crate) fn nat_behaviour(&self) -> (edgelink_path::Behaviour, edgelink_path::Behaviour) {
        self.direct.nat.behaviour(|address| self.direct.is_own(address))
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
        if self.direct.socket != Some(socket) {
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

    /// The most bytes of IP packet that a datagram carries.
    pub(crate) fn fits_udp(&self, parts: &[&[u8]]) -> bool {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        len <= usize::from(self.config.p2p.mtu) && len + data::OVERHEAD <= usize::from(u16::MAX)
    }
}
