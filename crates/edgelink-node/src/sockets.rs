//! Our UDP sockets (DESIGN §5): one that serves all peers, and additional ones for single peers, made where the first one
//! cannot do: a retry, because some routers let an early packet claim the tuple for good, and the many that meet a NAT
//! which filters by port. And what STUN servers say of each.

use crate::timers::Timer;
use crate::{Drop, Event, Node};
use edgelink_model::{NodeId, Now};
use edgelink_path::{Behaviour, NatDiscovery, NatName, PunchState, SPRAY_SOCKETS, SocketId, StunServer, Way};
use std::net::SocketAddr;
use std::time::Duration;

/// Discovery is tried again after this while no server answers.
const BLOCKED_RETRY: Duration = Duration::from_secs(60);
/// The most additional sockets at once, of all peers: one peer's many, and some retries.
const MAX_EXTRAS: usize = SPRAY_SOCKETS + 64;
/// Additional sockets of one peer that are kept for retries.
const MAX_RETRIES: usize = 2;
/// An additional socket's mapping is waited for so long before our endpoints are told without it.
pub(crate) const MAPPING_PATIENCE: Duration = Duration::from_millis(700);

/// An additional socket.
#[derive(Debug)]
pub(crate) struct Extra {
    /// For this peer only.
    pub(crate) peer: NodeId,
    /// One of many towards a NAT that filters by port.
    spray: bool,
    /// Once it is open.
    port: Option<u16>,
    nat: NatDiscovery,
}

impl Node {
    /// The socket that [`Event::OpenSocket`] asked for is bound to this port.
    pub fn socket_opened(&mut self, socket: SocketId, port: u16, now: Now) {
        if self.direct.socket == Some(socket) {
            self.direct.port = Some(port);
            self.direct.problem = None;
            self.listen();
            self.discover(now);
            self.restart_searches(false, now);
        } else if let Some(extra) = self.direct.extras.get_mut(&socket) {
            extra.port = Some(port);
            if !extra.spray {
                extra.nat.start_brief(&self.stun_servers);
                self.timers.set(Timer::Stun, now.mono);
            }
        } else {
            self.events.push_back(Event::CloseSocket { socket });
        }
    }

    /// It could not be opened, or is of no use any more. Another one is asked for when the addresses change.
    pub fn socket_failed(&mut self, socket: SocketId, reason: &str, now: Now) {
        if self.direct.socket == Some(socket) {
            tracing::warn!(reason, "no UDP socket; peers are reached through relays");
            self.forget_sockets(now);
            self.direct.problem = Some(reason.to_owned());
        } else if self.direct.extras.remove(&socket).is_some() {
            tracing::debug!(reason, "no additional UDP socket");
        }
    }

    /// Opens the socket, once there is a network to talk in.
    pub(crate) fn start_direct(&mut self) {
        if self.config.p2p.enabled && self.direct.socket.is_none() {
            let socket = self.next_socket();
            self.direct.socket = Some(socket);
            self.events.push_back(Event::OpenSocket { socket, port: self.config.p2p.port });
        }
    }

    /// No member any more: no socket either.
    pub(crate) fn stop_direct(&mut self, now: Now) {
        if let Some(socket) = self.direct.socket {
            self.forget_sockets(now);
            self.events.push_back(Event::CloseSocket { socket });
        }
    }

    fn next_socket(&mut self) -> SocketId {
        let socket = SocketId(self.direct.next_socket);
        self.direct.next_socket += 1;
        socket
    }

    fn forget_sockets(&mut self, now: Now) {
        self.direct.socket = None;
        self.direct.port = None;
        self.listen();
        self.forget_all_streams();
        self.direct.queue.clear();
        self.direct.nats = Default::default();
        self.timers.clear(Timer::Stun);
        for socket in std::mem::take(&mut self.direct.extras).into_keys() {
            self.events.push_back(Event::CloseSocket { socket });
        }
        let peers: Vec<NodeId> = self.peers.iter().filter(|(_, p)| p.paths.is_some()).map(|(id, _)| id).collect();
        for id in peers {
            self.drop_direct(id, now);
        }
    }

    pub(crate) fn is_own_socket(&self, socket: SocketId) -> bool {
        self.direct.socket == Some(socket) || self.direct.extras.contains_key(&socket)
    }

    /// Open sockets from which a peer is probed: the common one, and those for retries with it.
    pub(crate) fn sockets_for(&self, peer: NodeId) -> Vec<SocketId> {
        let extras = self.direct.extras.iter().filter(|(_, extra)| extra.peer == peer && !extra.spray);
        let extras = extras.filter(|(_, extra)| extra.port.is_some()).map(|(id, _)| *id);
        self.direct.socket.filter(|_| self.direct.port.is_some()).into_iter().chain(extras).collect()
    }

    /// Addresses under which STUN servers see the additional sockets of a peer.
    pub(crate) fn extra_mappings(&self, peer: NodeId) -> Vec<SocketAddr> {
        let extras = self.direct.extras.values().filter(|extra| extra.peer == peer && !extra.spray);
        extras.flat_map(|extra| extra.nat.mapped()).collect()
    }

    /// Opens an additional socket for a retry. `false` when there is no use in it.
    pub(crate) fn open_retry(&mut self, peer: NodeId) -> bool {
        if self.direct.extras.len() >= MAX_EXTRAS || self.stun_servers.is_empty() || self.direct.is_blocked() {
            return false;
        }
        let mine = |extra: &&Extra| extra.peer == peer && !extra.spray;
        if self.direct.extras.values().filter(mine).count() >= MAX_RETRIES {
            let oldest = self.direct.extras.iter().find(|(_, extra)| mine(extra)).map(|(id, _)| *id);
            if let Some(oldest) = oldest.filter(|id| !self.is_path(peer, *id)) {
                self.close_extra(oldest);
            }
        }
        self.open_extra(peer, false);
        true
    }

    /// Opens the many sockets; those that are open already are among them. With `renew`, opens new ones in place of the older
    /// half of those that have met nobody, and returns the new ones alone.
    pub(crate) fn open_spray(&mut self, peer: NodeId, renew: bool) -> Vec<SocketId> {
        let punch = self.peers.get(peer).and_then(|p| p.punch.as_ref());
        let of_peer = |extra: &Extra| extra.peer == peer && extra.spray;
        let there = self.direct.extras.iter().filter(|(_, extra)| of_peer(extra)).map(|(id, _)| *id);
        let there: Vec<SocketId> = there.collect();
        let mut open = there.len();
        if renew {
            let idle = |id: &&SocketId| !punch.is_some_and(|punch| punch.has_met(**id)) && !self.is_path(peer, **id);
            let old: Vec<SocketId> = there.iter().filter(idle).take(SPRAY_SOCKETS / 2).copied().collect();
            open -= old.len();
            old.into_iter().for_each(|socket| self.close_extra(socket));
        }
        let room = MAX_EXTRAS.saturating_sub(self.direct.extras.len());
        let new = (0..SPRAY_SOCKETS.saturating_sub(open).min(room)).map(|_| self.open_extra(peer, true));
        let new: Vec<SocketId> = new.collect();
        if renew { new } else { [there, new].concat() }
    }

    fn open_extra(&mut self, peer: NodeId, spray: bool) -> SocketId {
        let socket = self.next_socket();
        self.direct.extras.insert(socket, Extra { peer, spray, port: None, nat: NatDiscovery::default() });
        self.events.push_back(Event::OpenSocket { socket, port: 0 });
        socket
    }

    fn close_extra(&mut self, socket: SocketId) {
        if self.direct.extras.remove(&socket).is_some() {
            self.events.push_back(Event::CloseSocket { socket });
        }
    }

    /// Closes additional sockets that are neither part of a path nor of a search.
    pub(crate) fn close_idle_sockets(&mut self, peer: NodeId) {
        if self.direct.extras.is_empty() {
            return;
        }
        let state = self.peers.get(peer).and_then(|p| p.punch.as_ref()).map(|punch| (punch.state(), punch.attempt()));
        let retrying = matches!(state, Some((PunchState::Trying(_), _)));
        let spraying = state.is_some_and(|(_, attempt)| attempt > edgelink_path::ATTEMPTS);
        let mine = self.direct.extras.iter().filter(|(_, extra)| extra.peer == peer);
        let idle = mine.filter(|(_, extra)| if extra.spray { !spraying } else { !retrying }).map(|(id, _)| *id);
        for socket in idle.collect::<Vec<_>>() {
            if !self.is_path(peer, socket) {
                self.close_extra(socket);
            }
        }
    }

    /// Guessing is between the common sockets' mappings: those of retries would only be in the way.
    pub(crate) fn close_retries(&mut self, peer: NodeId) {
        let retries = self.direct.extras.iter().filter(|(_, extra)| extra.peer == peer && !extra.spray);
        for socket in retries.map(|(id, _)| *id).collect::<Vec<_>>() {
            if !self.is_path(peer, socket) {
                self.close_extra(socket);
            }
        }
    }

    fn is_path(&self, peer: NodeId, socket: SocketId) -> bool {
        let views = self.peers.get(peer).and_then(|p| p.paths.as_ref()).map(|paths| paths.views()).unwrap_or_default();
        views.iter().any(|view| matches!(view.way, Way::Udp { socket: s, .. } if s == socket))
    }

    /// Finds out what the world sees of our socket, by IPv4 and IPv6.
    pub(crate) fn discover(&mut self, now: Now) {
        if self.direct.port.is_none() {
            return;
        }
        for v6 in [false, true] {
            let servers: Vec<StunServer> =
                self.stun_servers.iter().filter(|server| server.primary.is_ipv6() == v6).copied().collect();
            let reachable = self.direct.local.iter().any(|net| net.addr().is_ipv6() == v6 && is_routable(net.addr()));
            if let Some(nat) = self.direct.nats.get_mut(usize::from(v6)) {
                // Without an address of the family there is nothing to be found out.
                nat.start(if reachable { &servers } else { &[] });
            }
        }
        self.timers.set(Timer::Stun, now.mono);
    }

    pub(crate) fn set_stun_servers(&mut self, now: Now) {
        let servers = self.stun_list();
        if servers != self.stun_servers {
            self.stun_servers = servers;
            self.discover(now);
        }
    }

    fn stun_list(&self) -> Vec<StunServer> {
        let ip = crate::control::ip;
        let server = |message: &edgelink_wire::control::proto::StunServer| {
            let port = u16::try_from(message.port).ok()?;
            Some(StunServer { primary: SocketAddr::new(ip(&message.ip)?, port), second: ip(&message.ip2) })
        };
        self.latest.stun_servers.iter().filter_map(server).collect()
    }

    pub(crate) fn stun_timeout(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(socket) = self.direct.socket.filter(|_| self.direct.port.is_some()) else { return };
        if self.direct.is_blocked() && self.direct.nats.iter().all(NatDiscovery::is_done) {
            self.discover(now);
        }
        let mut queries = Vec::new();
        let extras = self.direct.extras.iter_mut().map(|(id, extra)| (*id, &mut extra.nat));
        for (id, nat) in self.direct.nats.iter_mut().map(|nat| (socket, nat)).chain(extras) {
            let was_done = nat.is_done();
            while let Some(query) = nat.poll(&self.direct.budget, now.mono, rng) {
                queries.push((id, query));
            }
            self.direct.nat_changed |= !was_done && nat.is_done();
        }
        for (id, query) in queries {
            self.signal_udp(id, query.to, query.bytes);
        }
        self.arm_stun(now);
        self.report_nat(now);
    }

    pub(crate) fn arm_stun(&mut self, now: Now) {
        let all = self.direct.nats.iter().chain(self.direct.extras.values().map(|extra| &extra.nat));
        let next = all.filter_map(|nat| nat.poll_timeout(now.mono)).min();
        let idle = self.direct.nats.iter().all(NatDiscovery::is_done);
        let blocked = (self.direct.is_blocked() && idle).then(|| now.mono + BLOCKED_RETRY);
        match next.or(blocked) {
            Some(at) => self.timers.set(Timer::Stun, at),
            None => self.timers.clear(Timer::Stun),
        }
    }

    /// A STUN message came in.
    pub(crate) fn handle_stun(&mut self, socket: SocketId, from: SocketAddr, message: &[u8], now: Now) {
        if self.direct.socket == Some(socket) {
            let Some(nat) = self.direct.nats.get_mut(usize::from(from.is_ipv6())) else { return };
            let was_done = nat.is_done();
            if nat.handle(from, message, now.mono) {
                tracing::debug!(mapped = ?nat.mapped(), "the world sees us under another address");
                self.direct.nat_changed = true;
                self.endpoints_changed(now);
            } else if let Some(nat) = self.direct.nats.get(usize::from(from.is_ipv6())) {
                self.direct.nat_changed |= !was_done && nat.is_done();
            }
            self.report_nat(now);
        } else if let Some(extra) = self.direct.extras.get_mut(&socket) {
            let peer = extra.peer;
            if extra.nat.handle(from, message, now.mono) {
                self.timers.set_earlier(Timer::Tell(peer), now.mono);
            }
        } else {
            self.drops.count(Drop::ForeignDatagram);
        }
        self.arm_stun(now);
    }

    /// The name of specification §6.1.
    pub(crate) fn nat_name(&self) -> NatName {
        self.direct.nat().map_or(NatName::Unknown, |nat| nat.name(|address| self.direct.is_own(address)))
    }

    /// Mapping and filtering.
    pub(crate) fn nat_behaviour(&self) -> (Behaviour, Behaviour) {
        self.direct.nat().map(|nat| nat.behaviour(|address| self.direct.is_own(address))).unwrap_or_default()
    }

    /// Asks STUN servers anew, for `edgelink netcheck`. `false` when there is nothing to be asked.
    pub fn check_nat(&mut self, now: Now) -> bool {
        self.discover(now);
        self.direct.port.is_some() && !self.stun_servers.is_empty()
    }

    /// Whether no STUN test is under way.
    pub fn nat_is_settled(&self) -> bool {
        self.direct.nats.iter().all(NatDiscovery::is_done)
    }
}

/// Whether the address can be one that the Internet is reached from.
fn is_routable(address: std::net::IpAddr) -> bool {
    edgelink_path::usable(SocketAddr::new(address, 1), &[])
}
