//! The search for a direct path to a peer, fed and put into practice; [`edgelink_path::Punch`] keeps it.

use crate::Node;
use crate::peers::Peer;
use crate::sockets::MAPPING_PATIENCE;
use crate::timers::Timer;
use edgelink_model::{NodeId, Now};
use edgelink_path::{ATTEMPTS, Behaviour, PeerPaths, Proof, Punch, PunchProbe, PunchState, Spray, Way};
use edgelink_wire::probe::{self, Probe};
use edgelink_wire::{Flags, FrameType};
use std::time::Duration;

/// In the second and third attempt one side leads by so much: where a router lets an early packet claim the tuple, it has
/// to be its own side that sends first.
pub(crate) const LEAD: Duration = Duration::from_millis(300);

impl Node {
    /// There is traffic with a peer: look for a direct path, unless there is one or it has been tried in vain lately.
    pub(crate) fn want_direct(&mut self, id: NodeId, now: Now) {
        if !self.config.p2p.enabled || self.direct.port.is_none() {
            return;
        }
        self.arm_neighbour(id, now);
        let sockets = self.sockets_for(id);
        let largest = self.config.p2p.mtu;
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.paths.as_ref().is_some_and(|paths| paths.has_direct()) {
            return;
        }
        let punch = peer.punch.get_or_insert_with(|| Box::new(Punch::new(largest)));
        punch.lost();
        punch.want(&sockets, now.mono);
        self.timers.set_earlier(Timer::Punch(id), now.mono);
    }

    pub(crate) fn punch_timeout(&mut self, id: NodeId, now: Now, rng: &mut impl rand_core::Rng) {
        let sockets = self.sockets_for(id);
        let may_spray = self.may_spray(id);
        let Some(peer) = self.peers.get_mut(id) else { return };
        let talking = peer.has_data(now.mono);
        let Some(punch) = &mut peer.punch else { return };
        punch.set_may_spray(may_spray);
        let before = punch.state();
        punch.handle_timeout(&sockets, now.mono);
        if peer.paths.as_ref().is_some_and(|paths| paths.has_direct())
            && matches!(punch.state(), PunchState::Waiting(_))
        {
            // By TCP: `send_knock` tells when UDP gets through.
            punch.done();
        } else if let PunchState::Waiting(at) = punch.state() {
            if at <= now.mono && talking {
                punch.want(&sockets, now.mono);
            } else if at <= now.mono {
                // The next packet begins anew.
                peer.punch = None;
                return self.close_idle_sockets(id);
            }
        }
        let failed = matches!(before, PunchState::Trying(_)) && matches!(punch.state(), PunchState::Waiting(_));
        let (attempt, signals, sprays) = (punch.attempt(), punch.take_signal(), punch.wants_spray(now.mono));
        if signals {
            let retries = (2..=ATTEMPTS).contains(&attempt) && self.open_retry(id);
            if retries {
                // Its mapping is learnt before it is announced.
                self.timers.set(Timer::Tell(id), now.mono + MAPPING_PATIENCE);
            } else {
                if attempt > ATTEMPTS {
                    self.close_retries(id);
                }
                self.tell_endpoints(id, attempt.max(1), now);
            }
        }
        if sprays {
            self.begin_spray(id, rng);
        }
        while let Some(probe) = self
            .peers
            .get_mut(id)
            .and_then(|p| p.punch.as_mut())
            .and_then(|punch| punch.next_probe(&self.direct.budget, now.mono))
        {
            self.send_punch(id, probe, now);
        }
        if failed {
            self.report_direct(id, now);
        }
        self.close_idle_sockets(id);
        self.arm_punch(id);
    }

    /// An additional socket's mapping is known, or has been waited for long enough: the peer gets our endpoints.
    pub(crate) fn tell_timeout(&mut self, id: NodeId, now: Now) {
        let sockets = self.sockets_for(id);
        let half_way = self.half_way(id);
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(punch) = &mut peer.punch else { return };
        match std::mem::take(&mut peer.asked_for) {
            // The peer began this attempt.
            attempt @ 1.. => {
                let lead = if attempt == 2 { LEAD } else { Duration::ZERO };
                punch.set_sockets(&sockets, now.mono + half_way + lead);
                self.answer_endpoints(id, now);
            }
            0 => {
                let attempt = punch.attempt();
                if attempt > 0 {
                    self.tell_endpoints(id, attempt, now);
                }
            }
        }
        self.timers.set_earlier(Timer::Punch(id), now.mono);
    }

    /// Whether guessing is worth while with this peer: one of us has a mapping per destination, the other filters by port.
    pub(crate) fn may_spray(&self, id: NodeId) -> bool {
        let Some(peer) = self.peers.get(id) else { return false };
        let (mapping, filtering) = self.nat_behaviour();
        let symmetric = |mapping| matches!(mapping, Behaviour::AddressDependent | Behaviour::AddressAndPortDependent);
        let steady = |mapping| matches!(mapping, Behaviour::None | Behaviour::EndpointIndependent);
        let (ours, theirs) = (symmetric(mapping), symmetric(peer.nat.0));
        let by_port = |filtering| filtering == Behaviour::AddressAndPortDependent;
        (ours && steady(peer.nat.0) && by_port(peer.nat.1)) || (theirs && steady(mapping) && by_port(filtering))
    }

    fn begin_spray(&mut self, id: NodeId, rng: &mut impl rand_core::Rng) {
        let Some(peer) = self.peers.get(id) else { return };
        let mapped = peer.mapped.clone();
        let ours = matches!(self.nat_behaviour().0, Behaviour::AddressDependent | Behaviour::AddressAndPortDependent);
        let spray = if ours {
            let renew = peer.punch.as_ref().is_some_and(|punch| punch.is_spraying());
            let sockets = self.open_spray(id, renew);
            Spray::sockets(sockets, mapped)
        } else {
            let socket = self.direct.socket.filter(|_| self.direct.port.is_some());
            socket.and_then(|socket| Spray::ports(socket, mapped.iter().map(std::net::SocketAddr::ip), rng.next_u64()))
        };
        if let (Some(spray), Some(punch)) = (spray, self.peers.get_mut(id).and_then(|p| p.punch.as_mut())) {
            tracing::debug!(peer = %id, symmetric = ours, "guessing ports");
            punch.set_spray(spray);
        }
    }

    fn send_punch(&mut self, id: NodeId, probe: PunchProbe, now: Now) {
        let sent_us = self.probe_time(now);
        let mut message = Probe { path: 0, sent_us }.encode().to_vec();
        message.resize(usize::from(probe.size).max(probe::LEN), 0);
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
        let largest = self.config.p2p.mtu;
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.paths.as_ref().is_some_and(|paths| paths.knows(way)) {
            return;
        }
        let punch = peer.punch.get_or_insert_with(|| Box::new(Punch::new(largest)));
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
        if let Proof::Usable { rtt, limit, .. } = proof {
            self.add_direct_path(id, way, rtt, Some(limit), now);
        }
        self.timers.set_earlier(Timer::Punch(id), now.mono);
    }

    /// A direct way is proved.
    pub(crate) fn add_direct_path(&mut self, id: NodeId, way: Way, rtt: Duration, limit: Option<u16>, now: Now) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let (keepalive, largest) = (self.config.p2p.keepalive, self.config.p2p.mtu);
        let (advice, ways) = (peer.advice, &self.relay_ways);
        let paths = peer.paths.get_or_insert_with(|| {
            // What there is when the direct path ends.
            let mut paths = PeerPaths::new();
            paths.set_advice(advice, now.mono);
            paths.set_relays(ways, now.mono);
            Box::new(paths)
        });
        paths.set_keepalive(keepalive);
        paths.set_largest(largest);
        let before = paths.way().map(Way::class);
        let first = !paths.has_direct();
        paths.add_direct(way, rtt, limit, now.mono);
        let better = paths.way().map(Way::class) < before;
        if let Some(punch) = &mut peer.punch {
            punch.settle(now.mono);
            self.timers.set_earlier(Timer::Punch(id), now.mono);
        }
        if first || better {
            tracing::debug!(peer = %id, ?way, ?rtt, limit, "direct path");
            self.report_direct(id, now);
        }
        self.arm_path(id);
    }

    /// Direct paths to a peer end.
    pub(crate) fn drop_direct(&mut self, id: NodeId, now: Now) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.punch = None;
        self.timers.clear(Timer::Punch(id));
        self.forget_streams(id);
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Some(paths) = &mut peer.paths {
            paths.remove_direct(|_| true, now.mono);
            self.arm_path(id);
        }
        self.close_idle_sockets(id);
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
            self.close_idle_sockets(id);
            // First, so that what is reported has a reason.
            if self.peers.get(id).is_some_and(|peer| peer.has_data(now.mono)) {
                self.want_direct(id, now);
            }
            self.report_direct(id, now);
        }
    }

    /// Addresses have changed: whoever we look for should know, and whoever we talk with directly too unless `searched_only`.
    pub(crate) fn restart_searches(&mut self, searched_only: bool, now: Now) {
        if self.direct.port.is_none() {
            return;
        }
        let is_direct = |peer: &Peer| peer.paths.as_ref().is_some_and(|paths| paths.has_direct());
        let concerned = |peer: &Peer| peer.has_data(now.mono) && !(searched_only && is_direct(peer));
        let concerned: Vec<NodeId> = self.peers.iter().filter(|(_, peer)| concerned(peer)).map(|(id, _)| id).collect();
        let largest = self.config.p2p.mtu;
        for id in concerned {
            let sockets = self.sockets_for(id);
            if let Some(peer) = self.peers.get_mut(id) {
                let punch = peer.punch.get_or_insert_with(|| Box::new(Punch::new(largest)));
                punch.restart(&sockets, now.mono);
                self.timers.set_earlier(Timer::Punch(id), now.mono);
            }
        }
    }
}
