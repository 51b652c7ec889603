//! LAN TCP (DESIGN §5): where we listen, whom we dial, and when.
//!
//! A peer is dialled while there is traffic with it, no direct path, and UDP has had its time: at private addresses (RFC 1918,
//! RFC 4193) that it announced as its interfaces' own and that lie in a subnet which this host is itself connected to; one
//! after the other, with back-off. While packets go by TCP, a UDP probe every few seconds tells when that is needed no more.
//! The connections themselves are in `streams`.

use crate::peers::Peer;
use crate::timers::Timer;
use crate::{Event, Node};
use edgelink_model::{NodeId, Now};
use edgelink_path::usable;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// UDP has so long: on a LAN it takes milliseconds where it gets through.
const UDP_FIRST: Duration = Duration::from_secs(2);
/// The node with the higher id waits longer, so that usually only one of the two dials.
const SECOND: Duration = Duration::from_secs(1);
/// The next address of a peer is tried this soon.
const NEXT_ADDRESS: Duration = Duration::from_millis(200);
/// And all of them again after this, doubled each time.
const RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(15 * 60);
/// While packets go by TCP, UDP is tried this often.
const KNOCK: Duration = Duration::from_secs(5);
/// The most addresses of a peer that are dialled.
const MAX_ADDRESSES: usize = 4;
/// Services of the system listen below; none of ours does.
const LOWEST_PORT: u16 = 1024;

/// What is known of a peer as a neighbour.
#[derive(Debug, Default)]
pub(crate) struct Neighbour {
    /// Addresses of its interfaces, with its UDP port, as it announced them.
    addresses: Vec<SocketAddr>,
    /// Attempts that failed since one succeeded, or since it announced others.
    attempts: u32,
    not_before: Option<Instant>,
}

impl Neighbour {
    /// Takes over what the peer announces.
    pub(crate) fn learn(&mut self, addresses: Vec<SocketAddr>) {
        if addresses.iter().any(|address| !self.addresses.contains(address)) {
            self.retry();
        }
        self.addresses = addresses;
    }

    /// Everything may be different now.
    pub(crate) fn retry(&mut self) {
        self.attempts = 0;
        self.not_before = None;
    }

    /// An attempt at one of `all` addresses has failed.
    fn failed(&mut self, all: usize, now: Instant) {
        self.attempts = self.attempts.saturating_add(1);
        let all = u32::try_from(all).unwrap_or(u32::MAX).max(1);
        let wait = match self.attempts.checked_rem(all) {
            Some(0) => {
                let rounds = (self.attempts / all).saturating_sub(1).min(16);
                RETRY.saturating_mul(1 << rounds).min(LONGEST_RETRY)
            }
            _ => NEXT_ADDRESS,
        };
        self.not_before = Some(now + wait);
    }
}

impl Node {
    /// Tells the shell where to listen, if that has changed.
    pub(crate) fn listen(&mut self) {
        let port = self.direct.port.filter(|_| self.config.p2p.enabled && self.network.is_some());
        let own = self.direct.local.iter().map(ipnet::IpNet::addr).filter(|address| self.is_neighbour(*address));
        let mut addresses: Vec<SocketAddr> =
            port.into_iter().flat_map(|port| own.clone().map(move |address| SocketAddr::new(address, port))).collect();
        addresses.dedup();
        if addresses != self.streams.listening {
            self.streams.listening.clone_from(&addresses);
            self.events.push_back(Event::Listen { addresses });
        }
    }

    /// Whether an address is a private one in a network that this host is connected to, outside all tunnels.
    pub(crate) fn is_neighbour(&self, address: IpAddr) -> bool {
        let private = match address {
            IpAddr::V4(v4) => v4.is_private(),
            IpAddr::V6(v6) => v6.is_unique_local(),
        };
        let connected = || self.direct.local.iter().any(|net| net.prefix_len() > 0 && net.contains(&address));
        private && connected() && usable(SocketAddr::new(address, 1), &self.overlay()) && !self.captures(address)
    }

    /// Where a peer may be dialled.
    fn addresses_near(&self, peer: &Peer) -> Vec<SocketAddr> {
        let near = |address: &&SocketAddr| {
            address.port() >= LOWEST_PORT && self.is_neighbour(address.ip()) && !self.direct.is_own(**address)
        };
        peer.neighbour.addresses.iter().filter(near).take(MAX_ADDRESSES).copied().collect()
    }

    /// There is traffic with a peer, or news of it: see in a while whether it must be dialled, or whether it need not be any
    /// more.
    pub(crate) fn arm_neighbour(&mut self, id: NodeId, now: Now) {
        let me = self.identity.as_ref().map(|identity| identity.node);
        let Some(peer) = self.peers.get(id).filter(|peer| !peer.neighbour.addresses.is_empty()) else { return };
        if self.streams.listening.is_empty() || peer.refuses_direct {
            return;
        }
        let turn = if me > Some(id) { SECOND } else { Duration::ZERO };
        let at = match peer.neighbour.not_before {
            Some(at) => at.max(now.mono) + turn,
            None if self.stream_in_use(id).is_some() => now.mono + KNOCK,
            None => now.mono + UDP_FIRST + turn,
        };
        self.timers.set_earlier(Timer::Neighbour(id), at);
    }

    pub(crate) fn neighbour_timeout(&mut self, id: NodeId, now: Now) {
        let Some(peer) = self.peers.get(id) else { return };
        // Without traffic, the next packet asks again.
        if !peer.has_data(now.mono) || !self.sessions.as_ref().is_some_and(|s| s.has_peer(id)) {
            return;
        }
        if let Some(remote) = self.stream_in_use(id) {
            let announced = peer.neighbour.addresses.iter().find(|address| address.ip() == remote.ip()).copied();
            if let Some(address) = announced {
                self.send_knock(id, address, now);
            }
            return self.arm_neighbour(id, now);
        }
        if peer.neighbour.not_before.is_some_and(|at| at > now.mono) {
            return self.arm_neighbour(id, now);
        }
        if peer.refuses_direct || peer.paths.as_ref().is_some_and(|paths| paths.has_direct()) || self.streams.has(id) {
            return;
        }
        let near = self.addresses_near(peer);
        let turn = usize::try_from(peer.neighbour.attempts).unwrap_or_default();
        if let Some(address) = turn.checked_rem(near.len()).and_then(|at| near.get(at)) {
            self.dial_neighbour(id, *address, now);
        }
    }

    /// An attempt has come to nothing.
    pub(crate) fn neighbour_failed(&mut self, id: NodeId, now: Now) {
        let all = self.peers.get(id).map_or(0, |peer| self.addresses_near(peer).len());
        if let Some(peer) = self.peers.get_mut(id) {
            peer.neighbour.failed(all, now.mono);
            self.arm_neighbour(id, now);
        }
    }

    /// There is a path by TCP.
    pub(crate) fn neighbour_found(&mut self, id: NodeId, now: Now) {
        if let Some(peer) = self.peers.get_mut(id) {
            peer.neighbour.not_before = None;
            self.timers.clear(Timer::Neighbour(id));
            self.arm_neighbour(id, now);
        }
    }

    /// It has ended. One that was `good` is worth another attempt soon.
    pub(crate) fn neighbour_lost(&mut self, id: NodeId, good: bool, now: Now) {
        if let Some(peer) = self.peers.get_mut(id) {
            if good {
                peer.neighbour.attempts = 0;
            }
            peer.neighbour.failed(1, now.mono);
        }
    }

    /// The addresses of this host have changed: who was no neighbour may be one.
    pub(crate) fn neighbours_changed(&mut self, now: Now) {
        self.leave_former_neighbours(now);
        self.listen();
        let peers: Vec<NodeId> = self.peers.iter().filter(|(_, p)| p.paths.is_some()).map(|(id, _)| id).collect();
        for id in peers {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.neighbour.retry();
            }
            self.arm_neighbour(id, now);
        }
    }
}
