//! `/ws/data` from the node's side: one connection per relay, its authentication and its round trip (DESIGN §3, §6).

use crate::backoff::{Backoff, jitter};
use crate::control::{PING_INTERVAL, complaint};
use crate::hearing::Hearing;
use crate::link::{LinkId, Target};
use crate::timers::Timer;
use crate::{Drop, Node};
use edgelink_auth::challenge;
use edgelink_model::{ErrorCode, NodeId, Now, ServerId, SmoothedRtt};
use edgelink_wire::control::{ControlMessage, Reassembler, proto};
use edgelink_wire::ping::Ping;
use edgelink_wire::{Frame, FrameType, WireError};
use std::collections::BTreeSet;
use std::time::Duration;

const HANDSHAKE: Duration = Duration::from_secs(20);
/// A relay over which PONGs of peers are missing must say something itself within this time, or four round trips.
const CHECK: Duration = Duration::from_secs(2);
/// The most bytes of a relay's control message. It has small ones only, and a list of empty elements takes two hundred
/// times its bytes in memory: with the protocol's limit of 8 MiB, a kilobyte from a hostile relay would take 1.6 GB.
const MESSAGE_LIMIT: usize = 64 << 10;
/// A round trip that differs much, as the first one after an outage does, is looked at again so soon: the controller computes
/// paths from it.
const DOUBT: Duration = Duration::from_secs(1);

/// A relay of our network.
pub(crate) struct Relay {
    pub(crate) message: proto::Relay,
    link: Option<LinkId>,
    phase: Phase,
    backoff: Backoff,
    reassembler: Reassembler,
    hearing: Hearing,
    ping_seq: u32,
    /// The token that was shown: what the signature is about, even if a newer one has come meanwhile.
    offered: String,
    /// Smoothed.
    pub(crate) rtt: Option<Duration>,
    samples: SmoothedRtt,
    /// It has said that it is about to end.
    leaving: bool,
    pub(crate) problem: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Down,
    Hello,
    Proof,
    Ready,
}

impl Relay {
    fn new(message: proto::Relay) -> Self {
        Self {
            message,
            link: None,
            phase: Phase::Down,
            backoff: Backoff::default(),
            reassembler: Reassembler::with_limit(MESSAGE_LIMIT),
            hearing: Hearing::default(),
            ping_seq: 0,
            offered: String::new(),
            rtt: None,
            samples: SmoothedRtt::new(),
            leaving: false,
            problem: None,
        }
    }

    pub(crate) fn link(&self) -> Option<LinkId> {
        self.link
    }

    pub(crate) fn connected(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Connected, and not about to end.
    pub(crate) fn stays(&self) -> bool {
        self.connected() && !self.leaving
    }

    pub(crate) fn restart_backoff(&mut self) {
        self.backoff = Backoff::default();
    }
}

impl Node {
    /// Takes over the list of relays: new ones are dialled, vanished ones are left.
    pub(crate) fn set_relays(&mut self, relays: &[proto::Relay], now: Now) {
        let wanted: BTreeSet<ServerId> = relays.iter().map(|r| ServerId(r.id)).collect();
        let gone: Vec<ServerId> = self.relays.keys().filter(|id| !wanted.contains(id)).copied().collect();
        for id in gone {
            self.leave_relay(id);
        }
        for message in relays {
            let id = ServerId(message.id);
            let same = |r: &Relay| (&r.message.url, &r.message.path) == (&message.url, &message.path);
            if !self.relays.get(&id).is_some_and(same) {
                self.leave_relay(id);
                self.relays.insert(id, Relay::new(message.clone()));
                self.timers.set(Timer::Relay(id), now.mono);
            } else if let Some(relay) = self.relays.get_mut(&id) {
                relay.message = message.clone();
            }
        }
        self.relays_changed(now);
    }

    fn leave_relay(&mut self, id: ServerId) {
        self.timers.clear(Timer::Relay(id));
        if let Some(link) = self.relays.remove(&id).and_then(|r| r.link) {
            self.hang_up(link, None);
        }
    }

    pub(crate) fn relay_connected(&mut self, id: ServerId, link: LinkId, now: Now) {
        let token = self.relay_token();
        let Some(relay) = self.relays.get_mut(&id) else { return };
        relay.phase = Phase::Hello;
        relay.reassembler = Reassembler::with_limit(MESSAGE_LIMIT);
        relay.hearing.heard(now.mono);
        self.timers.set(Timer::Relay(id), now.mono + HANDSHAKE);
        relay.offered = token.clone();
        let request = proto::AuthRequest {
            protocol_version: edgelink_wire::VERSION.into(),
            capabilities: self.config.capabilities,
            machine_pub: self.machine.public().0.to_vec(),
            token,
            ..Default::default()
        };
        self.send_message(link, ControlMessage::AuthRequest(request));
    }

    pub(crate) fn relay_closed(&mut self, id: ServerId, reason: &str, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(relay) = self.relays.get_mut(&id) else { return };
        if relay.connected() {
            tracing::info!(relay = relay.message.name, reason, "relay lost");
        }
        relay.link = None;
        relay.phase = Phase::Down;
        (relay.rtt, relay.samples) = (None, SmoothedRtt::new());
        relay.leaving = false;
        relay.hearing.forget_question();
        relay.problem = Some(reason.to_owned());
        let wait = relay.backoff.next(now.mono, rng);
        tracing::debug!(relay = relay.message.name, reason, ?wait, "relay connection closed");
        self.timers.set(Timer::Relay(id), now.mono + wait);
        self.relays_changed(now);
    }

    /// The one timer of a relay: what it means depends on the phase.
    pub(crate) fn relay_timeout(&mut self, id: ServerId, now: Now, rng: &mut impl rand_core::Rng) {
        let has_token = !self.relay_token().is_empty();
        let Some(relay) = self.relays.get_mut(&id) else { return };
        let silent = relay.hearing.is_silent(now.mono);
        match (relay.link, relay.phase) {
            (None, _) if has_token => {
                let message = &relay.message;
                let target = Target::Relay { id, url: message.url.clone(), path: message.path.clone() };
                let link = self.dial(target);
                if let Some(relay) = self.relays.get_mut(&id) {
                    relay.link = Some(link);
                }
            }
            // Tokens come with the next AUTH_RESPONSE, which sets the timer again.
            (None, _) => {}
            (Some(link), Phase::Ready) if !silent => self.ping_relay(id, link, now, rng),
            (Some(link), Phase::Ready) => self.drop_relay(id, link, "the relay has gone silent", now, rng),
            (Some(link), Phase::Hello | Phase::Proof) => {
                self.drop_relay(id, link, "the relay did not finish the authentication", now, rng);
            }
            (Some(_), Phase::Down) => {}
        }
    }

    /// A control frame from a relay.
    pub(crate) fn handle_relay_control(
        &mut self,
        id: ServerId,
        link: LinkId,
        frame: &Frame<'_>,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) {
        match frame.frame_type() {
            Some(FrameType::Ping) => {
                return match Ping::parse(frame.payload) {
                    Ok(ping) => self.send(link, ping.encode(FrameType::Pong).to_vec()),
                    Err(_) => self.drops.count(Drop::Malformed),
                };
            }
            Some(FrameType::Pong) => return self.handle_relay_pong(id, frame.payload, now),
            Some(_) => {}
            None => return self.drops.count(Drop::Malformed),
        }
        let Some(relay) = self.relays.get_mut(&id) else { return };
        let received = match relay.reassembler.push(frame) {
            Ok(Some(received)) => received,
            Ok(None) => return,
            Err(error) => return self.relay_nonsense(id, link, &error, now, rng),
        };
        match (received.message, relay.phase) {
            (ControlMessage::AuthResponse(response), Phase::Hello) => {
                self.prove_to_relay(id, link, &response, now, rng)
            }
            (ControlMessage::AuthResponse(response), Phase::Proof) => {
                self.set_observed(id, crate::control::ip(&response.observed_ip));
                self.relay_ready(id, link, now, rng);
            }
            // The answer to a refreshed token.
            (ControlMessage::AuthResponse(_), Phase::Ready) => {}
            (ControlMessage::Error(error), phase) => {
                let message = crate::control::printable(&error.message);
                tracing::debug!(code = error.code, about = error.about_node, message, "ERROR from a relay");
                let refused = (1001..=1003).contains(&error.code);
                let unavailable = error.code == u32::from(ErrorCode::Unavailable.as_u16());
                if phase == Phase::Ready && unavailable && error.about_node == 0 {
                    tracing::info!(relay = relay.message.name, "the relay is about to end");
                    relay.leaving = true;
                    self.relays_changed(now);
                } else if phase == Phase::Ready && !refused {
                    let undeliverable =
                        [ErrorCode::NodeNotFound, ErrorCode::NodeOffline].map(|code| u32::from(code.as_u16()));
                    if undeliverable.contains(&error.code) {
                        self.apply_undeliverable(id, NodeId(error.about_node), &message, now);
                    }
                } else {
                    // On a living connection the controller's own word comes about now: only a token that is refused
                    // again is renewed.
                    if refused && phase != Phase::Ready {
                        self.renew_tokens(now, rng);
                    }
                    self.drop_relay(id, link, &message, now, rng);
                }
            }
            _ => self.drops.count(Drop::Malformed),
        }
    }

    /// Signs the relay's challenge, but only as the relay that we dialled (DESIGN §3).
    fn prove_to_relay(
        &mut self,
        id: ServerId,
        link: LinkId,
        response: &proto::AuthResponse,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) {
        let Ok(challenge) = <[u8; 32]>::try_from(response.challenge.as_slice()) else {
            return self.drop_relay(id, link, "the relay's challenge is malformed", now, rng);
        };
        if response.server_id != id.0 {
            let reason = format!("dialled relay {id}, but relay {} answered", response.server_id);
            return self.drop_relay(id, link, &reason, now, rng);
        }
        let offered = self.relays.get(&id).map(|relay| relay.offered.clone()).unwrap_or_default();
        let message = challenge::relay_message(id, &offered, &challenge);
        let request = proto::AuthRequest { signature: self.machine.sign(&message).to_vec(), ..Default::default() };
        if let Some(relay) = self.relays.get_mut(&id) {
            relay.phase = Phase::Proof;
        }
        self.send_message(link, ControlMessage::AuthRequest(request));
    }

    fn relay_ready(&mut self, id: ServerId, link: LinkId, now: Now, rng: &mut impl rand_core::Rng) {
        if let Some(relay) = self.relays.get_mut(&id) {
            tracing::info!(relay = relay.message.name, "relay connected");
            relay.phase = Phase::Ready;
            relay.problem = None;
            relay.backoff.connected(now.mono);
        }
        self.relays_changed(now);
        self.ping_relay(id, link, now, rng);
        self.announce_to_active_peers(now);
        self.endpoints_changed(now);
    }

    /// PONGs of a peer are missing over this relay: is it the relay? A connection through which nothing passes is found
    /// and replaced in seconds this way, not when a proxy gives it up.
    pub(crate) fn check_relay(&mut self, id: ServerId, now: Now) {
        self.check_relay_within(id, CHECK, now);
    }

    /// The relay must say something within `least` or four round trips.
    pub(crate) fn check_relay_within(&mut self, id: ServerId, least: Duration, now: Now) {
        let sent_us = self.micros(now);
        let Some(relay) = self.relays.get_mut(&id).filter(|relay| relay.connected()) else { return };
        let (Some(link), Some(heard)) = (relay.link, relay.hearing.last()) else { return };
        let patience = Hearing::patience(relay.rtt, least);
        if relay.hearing.is_asked(patience) || now.mono == heard {
            return;
        }
        relay.hearing.ask(now.mono, patience);
        relay.ping_seq = relay.ping_seq.wrapping_add(1);
        let ping = Ping { sent_us, seq: relay.ping_seq };
        let at = now.mono + patience;
        self.send(link, ping.encode(FrameType::Ping).to_vec());
        self.timers.set_earlier(Timer::Relay(id), at);
    }

    fn ping_relay(&mut self, id: ServerId, link: LinkId, now: Now, rng: &mut impl rand_core::Rng) {
        let sent_us = self.micros(now);
        let Some(relay) = self.relays.get_mut(&id) else { return };
        relay.ping_seq = relay.ping_seq.wrapping_add(1);
        let ping = Ping { sent_us, seq: relay.ping_seq };
        let answer_by = relay.hearing.answer_by();
        self.send(link, ping.encode(FrameType::Ping).to_vec());
        let next = now.mono + jitter(PING_INTERVAL, rng);
        self.timers.set(Timer::Relay(id), answer_by.map_or(next, |at| at.min(next)));
    }

    fn handle_relay_pong(&mut self, id: ServerId, payload: &[u8], now: Now) {
        let now_us = self.micros(now);
        let Ok(pong) = Ping::parse(payload) else { return self.drops.count(Drop::Malformed) };
        let Some(relay) = self.relays.get_mut(&id) else { return };
        if pong.seq == relay.ping_seq {
            let sample = Duration::from_micros(now_us.saturating_sub(pong.sent_us));
            let sample = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX);
            let rtt = Duration::from_micros(relay.samples.update(sample));
            relay.rtt = Some(rtt);
            if relay.samples.is_in_doubt() {
                self.timers.set_earlier(Timer::Relay(id), now.mono + DOUBT);
            }
            self.note_relay_rtt(id, rtt, now);
            self.relays_changed(now);
        }
    }

    pub(crate) fn relay_nonsense(
        &mut self,
        id: ServerId,
        link: LinkId,
        error: &WireError,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) {
        self.drops.count(Drop::Malformed);
        self.hang_up(link, complaint(error));
        self.relay_closed(id, &format!("the relay sent nonsense: {error}"), now, rng);
    }

    pub(crate) fn drop_relay(
        &mut self,
        id: ServerId,
        link: LinkId,
        reason: &str,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) {
        self.hang_up(link, None);
        self.relay_closed(id, reason, now, rng);
    }

    /// New tokens are here: living relay connections get them, waiting ones are dialled.
    pub(crate) fn refresh_relay_tokens(&mut self, now: Now) {
        let token = self.relay_token();
        let mut live = Vec::new();
        for (id, relay) in &self.relays {
            match relay.link {
                Some(link) if relay.connected() => live.push(link),
                Some(_) => {}
                None => self.timers.set(Timer::Relay(*id), now.mono),
            }
        }
        for link in live {
            let request = proto::AuthRequest {
                protocol_version: edgelink_wire::VERSION.into(),
                machine_pub: self.machine.public().0.to_vec(),
                token: token.clone(),
                ..Default::default()
            };
            self.send_message(link, ControlMessage::AuthRequest(request));
        }
    }

    /// Notes when a relay was heard last, and whether the link is still the relay's own.
    pub(crate) fn heard_relay(&mut self, id: ServerId, link: LinkId, now: Now) -> bool {
        match self.relays.get_mut(&id) {
            Some(relay) if relay.link == Some(link) => {
                relay.hearing.heard(now.mono);
                true
            }
            _ => false,
        }
    }

    fn relay_token(&self) -> String {
        self.latest.tokens.as_ref().map(|t| t.relay_token.clone()).unwrap_or_default()
    }
}
