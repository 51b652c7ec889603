//! Which way frames to a peer take, and the probes that tell (DESIGN §5); [`edgelink_path`] decides, this feeds it.

use crate::link::{Link, LinkId};
use crate::peers::Peer;
use crate::relays::Relay;
use crate::timers::Timer;
use crate::{Drop, Node};
use edgelink_model::{NodeId, Now, ServerId};
use edgelink_path::{Advice, Hops, PathId, PeerPaths, RelayWay, Sending, SocketId, View, Way};
use edgelink_session::{DEFAULT_WINDOW, MAX_WINDOW, SealError};
use edgelink_wire::control::proto;
use edgelink_wire::probe::Probe;
use edgelink_wire::{Flags, FrameType, data};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What is written to first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// A relay's connection, or a neighbour's.
    Link(LinkId),
    /// A datagram.
    Udp(SocketId, SocketAddr),
}

/// Where one packet goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) first: Way,
    /// The same sealed bytes again.
    pub(crate) second: Option<Way>,
    /// The path is in doubt: packets should be small.
    pub(crate) hedging: bool,
    /// The largest IP packet that fits; `None`: whatever the TUN gives.
    pub(crate) limit: Option<u16>,
    /// Which flow it belongs to, for relays ([`Flags::LABEL`]).
    pub(crate) label: Flags,
}

impl Plan {
    /// This way and no other.
    pub(crate) fn only(way: Way) -> Self {
        Self { first: way, second: None, hedging: false, limit: None, label: Flags::NONE }
    }
}

impl Node {
    /// Where the next packet of the user to `peer` goes. The first one after a pause starts the probing.
    pub(crate) fn plan(&mut self, peer: NodeId, bytes: usize, now: Now) -> Result<Plan, Drop> {
        let direct = || self.peers.get(peer).and_then(|p| p.paths.as_ref()).is_some_and(|paths| paths.has_direct());
        if self.relay_ways.is_empty() && !direct() {
            return Err(Drop::NoPath);
        }
        if !self.sessions.as_ref().is_some_and(|s| s.has_peer(peer)) {
            return Err(Drop::NoSession);
        }
        let state = self.peers.get_mut(peer).ok_or(Drop::NoRoute)?;
        state.last_tx = Some(now.mono);
        let paths = match &mut state.paths {
            Some(paths) => {
                if paths.is_asleep(now.mono) {
                    paths.set_advice(state.advice, now.mono);
                    paths.set_relays(&self.relay_ways, now.mono);
                }
                paths
            }
            none => {
                let mut paths = PeerPaths::new();
                paths.set_advice(state.advice, now.mono);
                paths.set_relays(&self.relay_ways, now.mono);
                none.insert(Box::new(paths))
            }
        };
        let sending = paths.send(bytes, now.mono);
        tracing::trace!(%peer, first = ?sending.first, second = ?sending.second, "plan");
        let hedging = paths.is_hedging();
        let new = state.note_data(now.mono);
        if new {
            self.talks(peer, now);
        }
        if sending.woken {
            // The probes go out after the packet: nobody waits for them.
            self.timers.set(Timer::Path(peer), now.mono);
            self.want_direct(peer, now);
        }
        let first = sending.first.ok_or(Drop::NoPath)?;
        Ok(Plan { first, second: sending.second, hedging, limit: sending.limit, label: Flags::NONE })
    }

    /// Where anything else goes: it starts nothing.
    pub(crate) fn aside(&mut self, peer: NodeId, bytes: usize, now: Now) -> Option<Plan> {
        let state = self.peers.get_mut(peer)?;
        if let Some(paths) = &mut state.paths {
            let Sending { first, second, limit, .. } = paths.aside(bytes, now.mono);
            return first.map(|first| Plan { limit, second, hedging: paths.is_hedging(), ..Plan::only(first) });
        }
        let first = prospect(&self.relay_ways, state.advice, now.mono)?.way;
        Some(Plan::only(first))
    }

    /// Seals one frame and queues it as planned. Announces our key first when the peer has not confirmed it.
    pub(crate) fn send_sealed(
        &mut self,
        peer: NodeId,
        ty: FrameType,
        flags: Flags,
        parts: &[&[u8]],
        plan: Plan,
        now: Now,
    ) -> Result<(), Drop> {
        let first = self.exit_of(plan.first).map(|exit| (exit, plan.first));
        let second = plan.second.and_then(|way| self.exit_of(way).map(|exit| (exit, way)));
        if first.is_none() && second.is_none() {
            return Err(Drop::NoPath);
        }
        if !self.sessions.as_ref().ok_or(Drop::NoSession)?.peer_confirmed(peer) {
            self.announce_until_confirmed(peer, now);
        }
        let flags = if ty == FrameType::Data { flags | plan.label } else { flags };
        if ty != FrameType::Data {
            // Signalling overtakes data, here as in the relays.
            let mut frame = self.seal(peer, ty, flags, parts)?;
            for (exit, way) in first.into_iter().chain(second) {
                set_local_only(&mut frame, way);
                self.send_frame(exit, frame.clone());
            }
            return Ok(());
        }
        let outcome = match first {
            Some((exit, way)) => self.seal_into(exit, way, peer, flags, parts),
            None => Err(Drop::NoPath),
        };
        let Some((exit, way)) = second else { return outcome };
        match (outcome, first) {
            (Ok(()), Some((first, _))) => {
                // The second copy may be lost without harm, the first one not.
                let _ = self.copy_last(first, exit, way);
                Ok(())
            }
            // A connection through which nothing passes is soon full: that must not stop what goes the other way.
            _ => self.seal_into(exit, way, peer, flags, parts),
        }
    }

    /// One whole frame that is no data, over the way that `exit` begins.
    pub(crate) fn send_frame(&mut self, exit: Exit, frame: Vec<u8>) {
        match exit {
            Exit::Link(link) => self.send(link, frame),
            Exit::Udp(socket, remote) => self.signal_udp(socket, remote, frame),
        }
    }

    /// One sealed frame in a buffer of its own.
    pub(crate) fn seal(&mut self, peer: NodeId, ty: FrameType, flags: Flags, parts: &[&[u8]]) -> Result<Vec<u8>, Drop> {
        let sessions = self.sessions.as_mut().ok_or(Drop::NoSession)?;
        let mut frame = vec![0; data::PLAINTEXT_OFFSET];
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        frame.extend_from_slice(&[0; data::TAG_LEN]);
        let mut sealer = sessions.sealer(peer).map_err(|_| Drop::NoSession)?;
        sealer.seal(ty, flags, &mut frame).map_err(not_sealed)?;
        Ok(frame)
    }

    /// Seals a DATA frame in place where it waits to be sent.
    fn seal_into(&mut self, exit: Exit, way: Way, peer: NodeId, flags: Flags, parts: &[&[u8]]) -> Result<(), Drop> {
        let sessions = self.sessions.as_mut().ok_or(Drop::NoSession)?;
        let mut sealer = sessions.sealer(peer).map_err(|_| Drop::NoSession)?;
        let seal = |frame: &mut [u8]| {
            sealer.seal(FrameType::Data, flags, frame).map_err(not_sealed)?;
            set_local_only(frame, way);
            Ok(())
        };
        match exit {
            Exit::Link(id) => {
                let link = self.links.get_mut(&id).ok_or(Drop::NoPath)?;
                link.push_frame(parts, seal)?;
                self.crowded |= link.is_busy();
                self.writable(id);
            }
            Exit::Udp(socket, remote) => {
                self.direct.queue.push_frame(socket, remote, parts, seal)?;
                self.crowded |= self.direct.is_busy();
                self.udp_queued();
            }
        }
        Ok(())
    }

    /// Queues the frame that was last queued at `from` at `to` as well, with that way's *local only* flag.
    fn copy_last(&mut self, from: Exit, to: Exit, way: Way) -> Result<(), Drop> {
        if from == to {
            return Ok(());
        }
        let frame = match from {
            Exit::Link(id) => self.links.get(&id).map(|link| link.last_frame().to_vec()).ok_or(Drop::NoPath)?,
            Exit::Udp(..) => self.direct.queue.last_frame().to_vec(),
        };
        let text = frame.get(data::PLAINTEXT_OFFSET..frame.len().saturating_sub(data::TAG_LEN)).unwrap_or_default();
        let copy = |room: &mut [u8]| {
            room.copy_from_slice(&frame);
            set_local_only(room, way);
            Ok(())
        };
        self.crowded = true;
        match to {
            Exit::Link(id) => {
                self.links.get_mut(&id).ok_or(Drop::NoPath)?.push_frame(&[text], copy)?;
                self.writable(id);
            }
            Exit::Udp(socket, remote) => {
                self.direct.queue.push_frame(socket, remote, &[text], copy)?;
                self.udp_queued();
            }
        }
        Ok(())
    }

    /// Where a packet to this peer would have to wait for others now. Not while two ways are used: the one that is in doubt
    /// must not keep packets from the other.
    pub(crate) fn busy_exit(&mut self, peer: NodeId) -> Option<Exit> {
        self.crowded = self.direct.is_busy() || self.links.values().any(Link::is_busy);
        if !self.crowded {
            return None;
        }
        let paths = self.peers.get(peer)?.paths.as_ref()?;
        let exit = self.exit_of(paths.way()?).filter(|_| !paths.is_hedging())?;
        let busy = match exit {
            Exit::Link(id) => self.links.get(&id)?.is_busy(),
            Exit::Udp(..) => self.direct.is_busy(),
        };
        busy.then_some(exit)
    }

    /// What a way begins with, if that is open.
    pub(crate) fn exit_of(&self, way: Way) -> Option<Exit> {
        match way {
            Way::Relay { relay, .. } => {
                let relay = self.relays.get(&relay)?;
                relay.link().filter(|_| relay.connected()).map(Exit::Link)
            }
            Way::Udp { socket, remote, .. } => Some(Exit::Udp(socket, remote)),
            Way::Tcp { stream, .. } => {
                let link = LinkId::of_stream(stream);
                self.links.contains_key(&link).then_some(Exit::Link(link))
            }
        }
    }

    /// The best way to a peer through relays.
    pub(crate) fn relay_way(&self, id: NodeId) -> Option<Way> {
        let peer = self.peers.get(id)?;
        let used = peer.paths.iter().flat_map(|paths| paths.views()).map(|view| view.way).find(|way| !way.is_direct());
        used.or_else(|| prospect(&self.relay_ways, peer.advice, self.epoch).map(|view| view.way))
    }

    /// Relays have come or gone, or are nearer or farther than they were.
    pub(crate) fn relays_changed(&mut self, now: Now) {
        let several = self.relays.len() > 1;
        let mut ways = Vec::new();
        // A relay that is about to end is taken only where there is no other.
        let choice = self.relays.values().any(Relay::stays);
        let usable = |relay: &Relay| if choice { relay.stays() } else { relay.connected() };
        for (id, relay) in self.relays.iter().filter(|(_, relay)| usable(relay)) {
            // The other leg is taken to be as long as ours.
            let expected = relay.rtt.map(|rtt| rtt * 2);
            ways.push(RelayWay { relay: *id, hops: Hops::Any, expected });
            if several {
                ways.push(RelayWay { relay: *id, hops: Hops::One, expected });
            }
        }
        let same = |a: &RelayWay, b: &RelayWay| (a.relay, a.hops) == (b.relay, b.hops);
        let set_changed =
            ways.len() != self.relay_ways.len() || !ways.iter().zip(&self.relay_ways).all(|(a, b)| same(a, b));
        self.relay_ways = ways;
        if set_changed {
            self.report_soon(now);
        }
        let peers: Vec<NodeId> = if set_changed {
            self.peers.iter().filter(|(_, peer)| peer.paths.is_some()).map(|(id, _)| id).collect()
        } else {
            // A new round trip, every few seconds: those who sleep hear of it when they wake.
            let awake = |peer: &Peer| peer.paths.as_ref().is_some_and(|paths| !paths.is_asleep(now.mono));
            let talking = self.report.talking.iter().copied();
            talking.filter(|id| self.peers.get(*id).is_some_and(awake)).collect()
        };
        for peer in peers {
            if let Some(paths) = self.peers.get_mut(peer).and_then(|p| p.paths.as_mut()) {
                paths.set_relays(&self.relay_ways, now.mono);
            }
            self.arm_path(peer);
        }
    }

    /// The controller's best paths (specification §5.3).
    pub(crate) fn apply_advice(&mut self, paths: &[proto::Path], now: Now) {
        for message in paths {
            let id = NodeId(message.node_id);
            let Some(peer) = self.peers.get_mut(id) else { continue };
            let via = (message.via_relay_id != 0).then_some(ServerId(message.via_relay_id));
            let latency = Duration::from_micros(message.latency_us);
            peer.advice = (message.relay_id != 0).then_some(Advice { relay: ServerId(message.relay_id), via, latency });
            if let Some(paths) = &mut peer.paths {
                paths.set_advice(peer.advice, now.mono);
                self.arm_path(id);
            }
        }
    }

    /// A relay says that it cannot deliver to a peer.
    pub(crate) fn apply_undeliverable(&mut self, relay: ServerId, peer: NodeId, why: &str, now: Now) {
        self.peers.note_undeliverable(peer, why);
        if let Some(paths) = self.peers.get_mut(peer).and_then(|p| p.paths.as_mut()) {
            paths.undeliverable(relay, now.mono);
            self.arm_path(peer);
        }
        self.gateway_judged(peer, now);
    }

    /// The peer has come online: what is dead may live.
    pub(crate) fn retry_paths(&mut self, peer: NodeId, now: Now) {
        if let Some(paths) = self.peers.get_mut(peer).and_then(|p| p.paths.as_mut()) {
            paths.retry(now.mono);
            self.arm_path(peer);
        }
    }

    /// Sends the probes that are due, each over its own path only.
    pub(crate) fn path_timeout(&mut self, id: NodeId, now: Now) {
        let Some(paths) = self.peers.get_mut(id).and_then(|p| p.paths.as_mut()) else { return };
        let before = paths.view().map(|view| view.way);
        let had_direct = paths.has_direct();
        paths.handle_timeout(now.mono);
        let view = paths.view();
        if view.map(|view| view.way) != before {
            tracing::debug!(peer = %id, from = ?before, to = ?view, "another path");
        }
        let doubted: Vec<ServerId> = paths.doubted_relays().collect();
        for relay in doubted {
            self.check_relay(relay, now);
        }
        while let Some(probe) =
            self.peers.get_mut(id).and_then(|p| p.paths.as_mut()).and_then(|p| p.next_probe(now.mono))
        {
            let sent_us = self.probe_time(now);
            let mut message = Probe { path: probe.path.0, sent_us }.encode().to_vec();
            message.resize(message.len().max(probe.size.into()), 0);
            let plan = Plan::only(probe.way);
            match self.send_sealed(id, FrameType::P2pPing, Flags::default(), &[&message], plan, now) {
                Ok(()) => {
                    if let Some(paths) = self.peers.get_mut(id).and_then(|p| p.paths.as_mut()) {
                        paths.probe_sent(probe.path, sent_us, now.mono);
                    }
                }
                Err(reason) => tracing::trace!(peer = %id, ?reason, "probe not sent"),
            }
            if let (true, Way::Udp { socket, remote, .. }) = (probe.keepalive, probe.way) {
                self.send_keepalive(socket, remote, now);
            }
        }
        self.tidy_streams(id, now);
        self.check_direct(id, had_direct, now);
        self.arm_path(id);
        self.gateway_judged(id, now);
    }

    /// A PONG of a path, authenticated.
    pub(crate) fn path_pong(&mut self, id: NodeId, probe: Probe, way: Way, now: Now) {
        let Some(paths) = self.peers.get_mut(id).and_then(|p| p.paths.as_mut()) else { return };
        let before = paths.view().map(|view| view.way);
        if paths.pong(PathId(probe.path), probe.sent_us, way, now.mono).is_some() {
            let view = paths.view();
            if view.map(|view| view.way) != before {
                tracing::debug!(peer = %id, from = ?before, to = ?view, "another path");
            }
            self.arm_path(id);
        }
    }

    /// Authenticated frames come over several ways: the replay window must be wide (DESIGN §2).
    pub(crate) fn widen_window(&mut self, id: NodeId, until: Instant) {
        if let Some(sessions) = &mut self.sessions {
            sessions.set_window(id, MAX_WINDOW);
            self.timers.set(Timer::Window(id), until);
        }
    }

    pub(crate) fn window_timeout(&mut self, id: NodeId, now: Now) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.arrivals.handle_timeout(now.mono)
            && let Some(sessions) = &mut self.sessions
        {
            sessions.set_window(id, DEFAULT_WINDOW);
        } else if let Some(at) = peer.arrivals.poll_timeout() {
            self.timers.set(Timer::Window(id), at);
        }
    }

    /// The path in use, or the one that the next packet would take.
    pub(crate) fn path_view(&self, peer: &Peer) -> Option<View> {
        match &peer.paths {
            Some(paths) => paths.view(),
            None => prospect(&self.relay_ways, peer.advice, self.epoch),
        }
    }

    /// A time for a probe that no other has: it names the probe.
    pub(crate) fn probe_time(&mut self, now: Now) -> u64 {
        self.last_probe_us = self.micros(now).max(self.last_probe_us + 1);
        self.last_probe_us
    }

    pub(crate) fn arm_path(&mut self, id: NodeId) {
        match self.peers.get(id).and_then(|p| p.paths.as_ref()).and_then(|paths| paths.poll_timeout()) {
            Some(at) => self.timers.set(Timer::Path(id), at),
            None => self.timers.clear(Timer::Path(id)),
        }
    }
}

/// The one flag that is not sealed: each way has its own.
pub(crate) fn set_local_only(frame: &mut [u8], way: Way) {
    if let Some(flags) = frame.get_mut(2) {
        let others = Flags(*flags).without(Flags::LOCAL_ONLY);
        *flags = if way.is_local_only() { others | Flags::LOCAL_ONLY } else { others }.0;
    }
}

pub(crate) fn not_sealed(error: SealError) -> Drop {
    match error {
        SealError::Frame(_) => Drop::TooLarge,
        _ => Drop::NoSession,
    }
}

/// The path that a first packet would take.
fn prospect(ways: &[RelayWay], advice: Option<Advice>, now: Instant) -> Option<View> {
    let mut paths = PeerPaths::new();
    paths.set_advice(advice, now);
    paths.set_relays(ways, now);
    paths.view()
}
