//! Our node key: making it, announcing it until each peer has confirmed it, and hearing of the peers' (DESIGN §2).

use crate::timers::Timer;
use crate::{Drop, Node};
use edgelink_auth::statement::LEEWAY_SECS;
use edgelink_auth::{KeyStatement, NodeKey, SignedStatement};
use edgelink_model::{NodeId, Now};
use edgelink_session::SessionError;
use edgelink_wire::Flags;
use edgelink_wire::FrameType;
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::probe::Probe;
use std::time::{Duration, Instant};

/// Announces to one peer are repeated after 1, 2, 4 … s until confirmed.
const FIRST_REPEAT: Duration = Duration::from_secs(1);
const LAST_REPEAT: Duration = Duration::from_secs(64);
/// An unknown key is answered with our announce at most this often, and as often a peer's announce is looked at.
const REPLY_INTERVAL: Duration = Duration::from_secs(1);
/// A newer statement of ours that we have not made leads to a new key at most this often: two machines with one key
/// must not keep the network busy.
const OWN_INTERVAL: Duration = Duration::from_secs(30);
/// Announces that a peer may send in a burst before they are ignored for a while.
const BURST: u32 = 4;
/// The statement outlives its period by this much (DESIGN §2).
const GRACE_SECS: u64 = 3600;
/// Settable range of the period (DESIGN §2).
const PERIOD_RANGE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(7 * 24 * 3600));
pub(crate) const DEFAULT_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// Announces whose validity ended longer ago than this are refused: clocks follow the controller's, roughly.
const CLOCK_LEEWAY_SECS: u64 = 600;

/// What has been announced to a peer, and heard from it.
#[derive(Debug, Default)]
pub(crate) struct Announce {
    /// Interval until the next repetition; `None` while nothing is being repeated.
    repeat: Option<Duration>,
    replied_at: Option<Instant>,
    heard_at: Option<Instant>,
    heard: u32,
}

impl Node {
    /// Makes a new node key and signs its statement; the former key stays valid for what is under way.
    pub(crate) fn renew_key(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(identity) = &self.identity else { return };
        let there = self.controller_time(now);
        let period =
            self.network.as_ref().map_or(DEFAULT_PERIOD, |n| n.key_period).clamp(PERIOD_RANGE.0, PERIOD_RANGE.1);
        let seq = self.seq_floor.saturating_add(1).max(there.unix_ms);
        let key = NodeKey::generate(rng);
        let statement = KeyStatement {
            network_id: identity.network,
            node_id: identity.node,
            machine_pub: self.machine.public(),
            node_pub: key.public(),
            seq,
            not_before: there.unix_secs(),
            not_after: there.unix_secs().saturating_add(period.as_secs()).saturating_add(GRACE_SECS),
            capabilities: self.config.capabilities,
        };
        let signed = match SignedStatement::sign(statement, &self.machine) {
            Ok(signed) => signed,
            Err(error) => {
                tracing::error!(%error, "our own key statement cannot be signed; the former key stays");
                return;
            }
        };
        // On disk before on the wire: a sequence number that was used must never be used again.
        self.seq_floor = seq;
        self.persist();
        if let Some(sessions) = &mut self.sessions
            && let Err(error) = sessions.set_local(key, signed, now.mono)
        {
            tracing::error!(%error, "our own key statement was refused");
        }
        let fraction = 0.9 + f64::from(rng.next_u32()) / f64::from(u32::MAX) / 10.0;
        self.timers.set(Timer::Rotate, now.mono + period.mul_f64(fraction));
    }

    /// The period is over: a new key, told to the controller and to the peers that we talk with.
    pub(crate) fn rotate(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        self.renew_key(now, rng);
        if let (Some(link), Some(announce)) = (self.control_link(), self.own_announce(NodeId::CONTROLLER)) {
            self.send(link, announce);
        }
        // Whoever was still being told the former key is told the new one at once.
        self.announce_to_active_peers(now);
    }

    /// Whether the controller and peers would not take our statement any more: the clock was wrong when the key was
    /// made, or the machine has slept past the statement's end.
    pub(crate) fn key_is_outdated(&self, now: Now) -> bool {
        let there = self.controller_time(now).unix_secs();
        let Some(signed) = self.sessions.as_ref().and_then(|s| s.local_statement()) else { return false };
        let statement = signed.statement();
        let soon = there.saturating_add(LEEWAY_SECS);
        statement.not_before > soon || statement.not_after <= soon
    }

    /// Our statement as a whole KEY_ANNOUNCE frame.
    pub(crate) fn own_announce(&self, dst: NodeId) -> Option<Vec<u8>> {
        let identity = self.identity.as_ref()?;
        let signed = self.sessions.as_ref()?.local_statement()?;
        let announce =
            KeyAnnounce { src: identity.node, dst, statement: *signed.bytes(), signature: *signed.signature() };
        Some(announce.encode())
    }

    /// Begins to announce our key to a peer, unless it has confirmed it or is being told already. Returns whether this
    /// was the beginning.
    pub(crate) fn announce_until_confirmed(&mut self, peer: NodeId, now: Now) -> bool {
        if self.sessions.as_ref().is_none_or(|s| s.peer_confirmed(peer)) || self.relay_ways.is_empty() {
            return false;
        }
        let Some(state) = self.peers.get_mut(peer).map(|p| &mut p.announce) else { return false };
        if state.repeat.is_some() {
            return false;
        }
        state.repeat = Some(FIRST_REPEAT);
        self.timers.set(Timer::Announce(peer), now.mono + FIRST_REPEAT);
        self.send_announce(peer, now);
        true
    }

    pub(crate) fn announce_timeout(&mut self, peer: NodeId, now: Now) {
        let confirmed = self.sessions.as_ref().is_none_or(|s| s.peer_confirmed(peer));
        let Some(state) = self.peers.get_mut(peer) else { return };
        let wanted = state.is_active(now.mono);
        let Some(interval) = state.announce.repeat.take() else { return };
        if confirmed || !wanted {
            return;
        }
        let next = (interval * 2).min(LAST_REPEAT);
        state.announce.repeat = Some(next);
        self.timers.set(Timer::Announce(peer), now.mono + next);
        self.send_announce(peer, now);
    }

    /// A relay is back or the key is new: peers that wait for our key get it now.
    pub(crate) fn announce_to_active_peers(&mut self, now: Now) {
        let waiting: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, p)| p.announce.repeat.is_some() || p.is_active(now.mono))
            .map(|(id, _)| id)
            .collect();
        for peer in waiting {
            if let Some(state) = self.peers.get_mut(peer) {
                state.announce.repeat = None;
            }
            self.announce_until_confirmed(peer, now);
        }
    }

    /// A peer has a new key, or has not heard that we know it: tell it our key unless it has confirmed that already, and
    /// prove with a sealed probe that we hold its statement. At most once a second.
    pub(crate) fn greet(&mut self, peer: NodeId, now: Now) {
        // Two sides that know each other's keys exchange probes only, so greetings cannot go on for ever.
        let confirmed = self.sessions.as_ref().is_some_and(|s| s.peer_confirmed(peer));
        self.introduce(peer, !confirmed, now);
    }

    /// A frame of a peer under a key that we do not know: it has missed a key of ours, or we have missed one of its.
    pub(crate) fn greet_stranger(&mut self, peer: NodeId, now: Now) {
        if let Some(state) = self.peers.get_mut(peer) {
            state.unopened = Some((state.unopened.map_or(now.mono, |(first, _)| first), now.mono));
        }
        self.introduce(peer, true, now);
    }

    fn introduce(&mut self, peer: NodeId, announce: bool, now: Now) {
        let Some(state) = self.peers.get_mut(peer).map(|p| &mut p.announce) else { return };
        if state.replied_at.is_some_and(|at| now.mono.saturating_duration_since(at) < REPLY_INTERVAL) {
            return;
        }
        state.replied_at = Some(now.mono);
        if announce && !self.announce_until_confirmed(peer, now) {
            self.send_announce(peer, now);
        }
        let probe = Probe { path: 0, sent_us: self.micros(now) };
        let Some(plan) = self.aside(peer, edgelink_wire::probe::LEN, now) else { return };
        if let Err(reason) = self.send_sealed(peer, FrameType::P2pPing, Flags::default(), &[&probe.encode()], plan, now)
        {
            tracing::trace!(%peer, ?reason, "no probe sent to a peer with a new key");
        }
    }

    /// A KEY_ANNOUNCE that came over a relay. It only updates nodes that are pinned and in the last CONFIG; rate and
    /// sequence number are checked before the signature, which is the costly part.
    pub(crate) fn handle_key_announce(&mut self, payload: &[u8], now: Now) {
        let Ok(announce) = KeyAnnounce::parse(payload) else { return self.drops.count(Drop::Malformed) };
        let Some(identity) = &self.identity else { return };
        let (me, network) = (identity.node, identity.network);
        let id = announce.src;
        if announce.dst != me {
            return self.drops.count(Drop::NotForUs);
        }
        if self.knows_statement(id, &announce.statement) {
            // It repeats itself, so our confirmation was lost.
            return self.greet(id, now);
        }
        let Some(peer) = self.peers.get_mut(id) else { return self.refuse_statement(id, "not a peer") };
        if !peer.announce.may_look(now.mono) {
            return self.refuse_statement(id, "too many announces");
        }
        let Ok(statement) = KeyStatement::parse(&announce.statement) else {
            return self.drops.count(Drop::Malformed);
        };
        if statement.node_id == me {
            return self.hear_own_statement(&announce, now);
        }
        let there = self.controller_time(now).unix_secs();
        if statement.not_after.saturating_add(CLOCK_LEEWAY_SECS) < there
            || statement.not_before > there.saturating_add(CLOCK_LEEWAY_SECS)
        {
            return self.refuse_statement(id, "its key statement is not valid now");
        }
        if let Err(refusal) = self.pins.check_announce(network, id, &statement.machine_pub) {
            return self.refuse_statement(id, &refusal.to_string());
        }
        if let Some(Err(error)) = self.sessions.as_ref().map(|s| s.check_peer(&statement)) {
            self.refuse_statement(id, &error.to_string());
            if matches!(error, SessionError::LowerSeq | SessionError::SeqConflict) {
                self.return_statement(id, now);
            }
            return;
        }
        // After the check of the sequence number, whose answer makes a machine that was copied take a new key.
        if self.is_revoked(id, statement.not_before) {
            return self.refuse_statement(id, "its key statement is older than its revocation");
        }
        match SignedStatement::verify(&announce.statement, &announce.signature) {
            Ok(signed) => {
                self.adopt_statement(id, &signed, now);
                if self.knows_statement(id, &announce.statement) {
                    // Also when it is the first that we hear: it waits for a sign that we have it.
                    self.greet(id, now);
                }
            }
            Err(error) => self.refuse_statement(id, &error.to_string()),
        }
    }

    /// A peer announces an older key than we know: a copy of its machine, or one restored from a backup, has been here.
    /// It gets back what we hold, which only its own machine key can have signed. At most once a second.
    fn return_statement(&mut self, peer: NodeId, now: Now) {
        let Some(identity) = &self.identity else { return };
        let Some(signed) = self.sessions.as_ref().and_then(|s| s.peer_statement(peer)) else { return };
        let (statement, signature) = (*signed.bytes(), *signed.signature());
        let announce = KeyAnnounce { src: identity.node, dst: peer, statement, signature }.encode();
        let Some(state) = self.peers.get_mut(peer).map(|p| &mut p.announce) else { return };
        if state.replied_at.is_none_or(|at| now.mono.saturating_duration_since(at) >= REPLY_INTERVAL) {
            state.replied_at = Some(now.mono);
            self.send_frame_aside(peer, announce, now);
        }
    }

    /// A peer holds a newer statement of ours than we have made: our machine key is in use twice. A newer key still makes
    /// us heard again.
    fn hear_own_statement(&mut self, announce: &KeyAnnounce, now: Now) {
        let ours = self.sessions.as_ref().and_then(|s| s.local_statement()).map_or(0, |s| s.statement().seq);
        let signed = SignedStatement::verify(&announce.statement, &announce.signature).ok();
        let newer = signed.filter(|s| s.statement().machine_pub == self.machine.public() && s.statement().seq > ours);
        let rested = self.own_heard_at.is_none_or(|at| now.mono.saturating_duration_since(at) >= OWN_INTERVAL);
        match newer {
            Some(signed) if rested => {
                tracing::warn!(peer = %announce.src, "a peer knows a newer key of ours: is our machine key in use twice?");
                self.own_heard_at = Some(now.mono);
                self.seq_floor = self.seq_floor.max(signed.statement().seq);
                self.timers.set(Timer::Rotate, now.mono);
            }
            Some(_) => {}
            None => self.refuse_statement(announce.src, "it names us, and we have not made it"),
        }
    }

    fn send_announce(&mut self, peer: NodeId, now: Now) {
        if let Some(announce) = self.own_announce(peer) {
            self.send_frame_aside(peer, announce, now);
        }
    }

    fn send_frame_aside(&mut self, peer: NodeId, announce: Vec<u8>, now: Now) {
        let Some(plan) = self.aside(peer, announce.len(), now) else { return };
        for exit in [Some(plan.first), plan.second]
            .into_iter()
            .flatten()
            .filter_map(|way| self.exit_of(way))
            .collect::<Vec<_>>()
        {
            self.send_frame(exit, announce.clone());
        }
    }
}

impl Announce {
    /// Refills one look per second, up to [`BURST`].
    fn may_look(&mut self, now: Instant) -> bool {
        let refill = self.heard_at.map_or(BURST.into(), |at| now.saturating_duration_since(at).as_secs());
        if refill > 0 {
            self.heard = self.heard.saturating_sub(u32::try_from(refill).unwrap_or(BURST));
            self.heard_at = Some(now);
        }
        // What is refused does not count, or a flood would lock the peer out for long after it.
        let allowed = self.heard < BURST;
        self.heard += u32::from(allowed);
        allowed
    }
}
