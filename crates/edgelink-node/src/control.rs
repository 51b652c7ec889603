//! `/ws/control` from the node's side: authentication, CONFIG, tokens, PING, reconnect (DESIGN §3, §4).

use crate::backoff::{Backoff, jitter};
use crate::hearing::Hearing;
use crate::link::{LinkId, Target};
use crate::timers::Timer;
use crate::{Drop, Event, Identity, Node};
use edgelink_auth::challenge;
use edgelink_model::{ErrorCode, NetworkId, NodeId, Now};
use edgelink_wire::control::{self, ControlMessage, Reassembler, Received, proto};
use edgelink_wire::ping::Ping;
use edgelink_wire::{Flags, FrameType, WireError};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// From dialling to the outcome of authentication.
const HANDSHAKE: Duration = Duration::from_secs(20);
/// PINGs are at most this far apart, so that no proxy takes the connection for idle (DESIGN §9).
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Tokens that a relay refuses are renewed at most this often.
const RENEW_INTERVAL: Duration = Duration::from_secs(10);
/// Clocks that differ by less after a while are read at different moments, and not set.
const CLOCK_STEP_MS: u64 = 5_000;

/// The control channel.
#[derive(Default)]
pub(crate) struct Control {
    link: Option<LinkId>,
    phase: Phase,
    backoff: Backoff,
    reassembler: Reassembler,
    hearing: Hearing,
    ping_seq: u32,
    ack_requests: u64,
    pub(crate) rtt: Option<Duration>,
    /// When tokens were last fetched because a relay refused the old ones.
    renewed_at: Option<Instant>,
    /// The controller has refused our key statement: the next admission needs a new one.
    key_refused: bool,
    /// Why the last attempt ended.
    pub(crate) problem: Option<String>,
    /// The controller's final word, until it changes its mind.
    pub(crate) refusal: Option<Refusal>,
}

/// The controller will not have us.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not dialled, or being dialled.
    #[default]
    Down,
    /// Machine key sent.
    Hello,
    /// Signature sent.
    Proof,
    /// An administrator must let us in.
    Waiting,
    /// Member.
    Ready,
}

impl Control {
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }
}

impl Node {
    /// The controller is dialled at another host: the next authentication signs it. To be called before
    /// [`Node::link_connected`].
    pub fn set_controller_host(&mut self, host: String) {
        self.config.controller_host = host;
    }

    /// Origins (`wss://HOST[:PORT]`) of all controllers, as the active one said last; perhaps in an earlier process.
    pub fn controllers(&self) -> &[String] {
        self.latest.settings.as_ref().map(|settings| settings.controllers.as_slice()).unwrap_or_default()
    }

    pub(crate) fn dial_control(&mut self) {
        self.control.phase = Phase::Down;
        self.control.link = Some(self.dial(Target::Control));
    }

    pub(crate) fn control_connected(&mut self, link: LinkId, now: Now) {
        self.control.phase = Phase::Hello;
        self.control.reassembler = Reassembler::new();
        self.control.hearing.heard(now.mono);
        self.control.ack_requests = 0;
        let host = &self.config.host;
        let request = proto::AuthRequest {
            protocol_version: edgelink_wire::VERSION.into(),
            capabilities: self.config.capabilities,
            machine_pub: self.machine.public().0.to_vec(),
            host_info: Some(proto::HostInfo {
                hostname: host.hostname.clone(),
                os: host.os.clone(),
                arch: host.arch.clone(),
                version: host.version.clone(),
            }),
            ..Default::default()
        };
        self.send_message(link, ControlMessage::AuthRequest(request));
        self.timers.set(Timer::Control, now.mono + HANDSHAKE);
    }

    pub(crate) fn control_closed(&mut self, reason: &str, now: Now, rng: &mut impl rand_core::Rng) {
        let was = std::mem::take(&mut self.control.phase);
        if was == Phase::Ready {
            tracing::info!(reason, "the controller is away; the network goes on without it");
        }
        self.control.link = None;
        self.control.rtt = None;
        self.control.hearing.forget_question();
        if self.control.refusal.is_none() {
            self.control.problem = Some(reason.to_owned());
        }
        let wait = self.control.backoff.next(now.mono, rng);
        tracing::debug!(reason, ?wait, "control channel closed");
        self.timers.set(Timer::Control, now.mono + wait);
    }

    /// The one timer of the control channel: what it means depends on the phase.
    pub(crate) fn control_timeout(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(link) = self.control.link else {
            self.dial_control();
            return;
        };
        let silent = self.control.hearing.is_silent(now.mono);
        match self.control.phase {
            Phase::Waiting | Phase::Ready if !silent => self.ping_control(link, now, rng),
            Phase::Waiting | Phase::Ready => self.drop_control(link, "the controller has gone silent", now, rng),
            Phase::Hello | Phase::Proof => {
                self.drop_control(link, "the controller did not finish the authentication", now, rng);
            }
            // The shell's own time limit ends a dial.
            Phase::Down => {}
        }
    }

    pub(crate) fn handle_control_message(
        &mut self,
        link: LinkId,
        message: &[u8],
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) {
        if self.control.link != Some(link) {
            return;
        }
        self.control.hearing.heard(now.mono);
        for frame in edgelink_wire::frames(message) {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return self.control_nonsense(link, &error, now, rng),
            };
            match frame.frame_type() {
                Some(FrameType::Ping) => {
                    if let Ok(ping) = Ping::parse(frame.payload) {
                        self.send(link, ping.encode(FrameType::Pong).to_vec());
                    }
                }
                Some(FrameType::Pong) => self.handle_control_pong(frame.payload, now),
                Some(FrameType::Data | FrameType::KeyAnnounce | FrameType::P2pPing | FrameType::P2pPong)
                | Some(FrameType::P2pKeepalive)
                | None => self.drops.count(Drop::Malformed),
                Some(_) => match self.control.reassembler.push(&frame) {
                    Ok(Some(received)) => self.handle_control_frame(link, received, now, rng),
                    Ok(None) => {}
                    Err(error) => return self.control_nonsense(link, &error, now, rng),
                },
            }
            if self.control.link != Some(link) {
                return;
            }
        }
    }

    fn handle_control_frame(&mut self, link: LinkId, received: Received, now: Now, rng: &mut impl rand_core::Rng) {
        let phase = self.control.phase;
        if received.ack_requested {
            self.control.ack_requests += 1;
        }
        match received.message {
            ControlMessage::AuthResponse(response) if phase == Phase::Hello => self.prove(link, &response, now, rng),
            ControlMessage::AuthResponse(response) if matches!(phase, Phase::Proof | Phase::Waiting) => {
                self.admitted(link, response, now, rng);
            }
            ControlMessage::Config(config) if phase == Phase::Ready => {
                let applied = self.apply_config(config, now, rng);
                self.acknowledge(link, &received.ty, applied, received.ack_requested);
            }
            ControlMessage::ConfigUpdate(update) if phase == Phase::Ready => {
                let applied = self.apply_update(update, now, rng);
                // An update that does not fit is answered in any case: the controller then sends a full CONFIG.
                let answer = received.ack_requested || applied.is_err();
                self.acknowledge(link, &received.ty, applied, answer);
            }
            ControlMessage::P2pInit(message) if phase == Phase::Ready => {
                let ask = proto::P2pEndpoint { attempt: message.attempt.max(1), ..Default::default() };
                self.handle_endpoints(NodeId(message.node_id), &ask, now);
            }
            ControlMessage::P2pEndpoint(message) if phase == Phase::Ready => {
                self.handle_endpoints(NodeId(message.node_id), &message, now);
            }
            ControlMessage::Error(error) => self.handle_control_error(link, &error, now, rng),
            _ => self.drops.count(Drop::Malformed),
        }
    }

    /// Answers the challenge with the machine key's signature.
    fn prove(&mut self, link: LinkId, response: &proto::AuthResponse, now: Now, rng: &mut impl rand_core::Rng) {
        let Ok(challenge) = <[u8; 32]>::try_from(response.challenge.as_slice()) else {
            return self.drop_control(link, "the controller's challenge is malformed", now, rng);
        };
        self.clock_offset_ms =
            i64::try_from(i128::from(response.server_time_ms) - i128::from(now.unix_ms)).unwrap_or(0);
        let public = self.machine.public();
        let message = challenge::control_message(&self.config.controller_host, &challenge, &public);
        let request = proto::AuthRequest {
            signature: self.machine.sign(&message).to_vec(),
            host: self.config.controller_host.clone(),
            token: self.auth_token(response.server_time_ms / 1000),
            auth_key: self.config.auth_key.as_ref().map(|k| k.to_string()).unwrap_or_default(),
            ..Default::default()
        };
        self.control.phase = Phase::Proof;
        self.send_message(link, ControlMessage::AuthRequest(request));
    }

    /// What spares the controller a look into its database; nothing once it has expired (`there`: Unix seconds by the
    /// controller's clock). Then the machine key alone says who we are.
    fn auth_token(&self, there: u64) -> String {
        let living = self.latest.tokens.as_ref().filter(|tokens| tokens.auth_expires > there);
        living.map(|tokens| tokens.auth_token.clone()).unwrap_or_default()
    }

    /// Takes over the tokens that are not empty; whether the relay_token is among them.
    pub(crate) fn keep_tokens(&mut self, fresh: proto::Tokens) -> bool {
        let kept = self.latest.tokens.get_or_insert_default();
        if !fresh.auth_token.is_empty() {
            (kept.auth_token, kept.auth_expires) = (fresh.auth_token, fresh.auth_expires);
        }
        let news = !fresh.relay_token.is_empty();
        if news {
            (kept.relay_token, kept.relay_expires) = (fresh.relay_token, fresh.relay_expires);
        }
        news
    }

    /// We are a member: ids, addresses and tokens are here; our key statement goes out, CONFIG follows.
    fn admitted(&mut self, link: LinkId, response: proto::AuthResponse, now: Now, rng: &mut impl rand_core::Rng) {
        let (Some(identity), Some(tokens)) = (response.identity.as_ref().and_then(identity), response.tokens) else {
            return self.drop_control(link, "the controller's AUTH_RESPONSE lacks ids or tokens", now, rng);
        };
        tracing::info!(node = %identity.node, name = identity.name, "admitted by the controller");
        self.control.phase = Phase::Ready;
        self.control.refusal = None;
        self.control.problem = None;
        self.control.backoff.connected(now.mono);
        // It has served: a node that an administrator deletes must not come back by itself.
        self.config.auth_key = None;
        self.latest.identity = response.identity;
        self.keep_tokens(tokens);
        self.set_identity(identity, now, rng);
        if std::mem::take(&mut self.control.key_refused) || self.key_is_outdated(now) {
            self.rotate(now, rng);
        } else if let Some(announce) = self.own_announce(NodeId::CONTROLLER) {
            self.send(link, announce);
        }
        self.forget_announced_routes();
        self.announce_routes();
        self.refresh_relay_tokens(now);
        self.report_soon(now);
        self.report_all_direct(now);
        self.ping_control(link, now, rng);
    }

    fn handle_control_error(&mut self, link: LinkId, error: &proto::Error, now: Now, rng: &mut impl rand_core::Rng) {
        let code = u16::try_from(error.code).ok().and_then(ErrorCode::from_u16);
        tracing::debug!(code = error.code, message = error.message, "ERROR from the controller");
        let Some(code) = code else { return };
        let refusal = Refusal { code, message: printable(&error.message) };
        match (code, self.control.phase) {
            (ErrorCode::NodeNotAuthorized, Phase::Proof) => {
                tracing::info!(message = refusal.message, "waiting for authorization");
                self.control.phase = Phase::Waiting;
                self.control.refusal = Some(refusal);
                self.control.backoff.connected(now.mono);
                if self.identity.is_some() {
                    self.expelled(now);
                }
                self.ping_control(link, now, rng);
            }
            (ErrorCode::NodeNotAuthorized, Phase::Ready) => {
                tracing::warn!(message = refusal.message, "no longer a member of the network");
                self.control.phase = Phase::Waiting;
                self.control.refusal = Some(refusal);
                self.expelled(now);
            }
            // It may be the token's fault (revoked, or made under keys that the controller has changed): the next
            // attempt does without, and what is refused then is refused for good.
            (
                ErrorCode::InvalidToken | ErrorCode::TokenExpired | ErrorCode::TokenRevoked,
                Phase::Proof | Phase::Ready,
            ) if self.latest.tokens.as_ref().is_some_and(|tokens| !tokens.auth_token.is_empty()) => {
                tracing::debug!(%code, message = refusal.message, "the auth_token is void; authenticating anew");
                if let Some(tokens) = &mut self.latest.tokens {
                    (tokens.auth_token, tokens.auth_expires) = (String::new(), 0);
                }
                self.control.problem = Some(refusal.message);
                self.persist();
            }
            // After the admission these answer our key statement: as final as a refusal before it.
            (_, Phase::Hello | Phase::Proof)
            | (ErrorCode::InvalidMachineKey | ErrorCode::BadSignature, Phase::Ready) => {
                let transient = matches!(code, ErrorCode::Unavailable | ErrorCode::Internal);
                if !transient {
                    tracing::warn!(%code, message = refusal.message, "refused by the controller");
                    // Trying again soon cannot help: somebody must act first.
                    self.control.backoff.discourage(now.mono);
                }
                // A copy of this machine may have announced a newer key: ours would be refused for ever.
                self.control.key_refused |= self.control.phase == Phase::Ready;
                self.control.problem = Some(refusal.message.clone());
                self.control.refusal = (!transient).then_some(refusal);
            }
            _ => {}
        }
    }

    fn acknowledge(&mut self, link: LinkId, ty: &FrameType, applied: Result<(), String>, requested: bool) {
        if !requested {
            return;
        }
        let ack = proto::Ack {
            acked_type: (*ty as u8).into(),
            count: self.control.ack_requests,
            config_version: self.latest.version,
            error: applied.err().unwrap_or_default(),
        };
        self.send_message(link, ControlMessage::Ack(ack));
    }

    fn ping_control(&mut self, link: LinkId, now: Now, rng: &mut impl rand_core::Rng) {
        self.control.ping_seq = self.control.ping_seq.wrapping_add(1);
        let ping = Ping { sent_us: self.micros(now), seq: self.control.ping_seq };
        self.send(link, ping.encode(FrameType::Ping).to_vec());
        let next = now.mono + jitter(PING_INTERVAL, rng);
        self.timers.set(Timer::Control, self.control.hearing.answer_by().map_or(next, |at| at.min(next)));
    }

    /// Asks the controller whether it is there: it must say something within `least` or four round trips.
    pub(crate) fn check_control(&mut self, least: Duration, now: Now) {
        if !matches!(self.control.phase, Phase::Waiting | Phase::Ready) {
            return;
        }
        let Some(link) = self.control.link else { return };
        let patience = Hearing::patience(self.control.rtt, least);
        self.control.hearing.ask(now.mono, patience);
        self.control.ping_seq = self.control.ping_seq.wrapping_add(1);
        let ping = Ping { sent_us: self.micros(now), seq: self.control.ping_seq };
        self.send(link, ping.encode(FrameType::Ping).to_vec());
        self.timers.set_earlier(Timer::Control, now.mono + patience);
    }

    /// Dials now instead of later, unless the controller has refused us.
    pub(crate) fn redial_control(&mut self, now: Now) {
        if self.control.link.is_none() && self.control.refusal.is_none() {
            self.control.backoff = Backoff::default();
            self.timers.set(Timer::Control, now.mono);
        }
    }

    fn handle_control_pong(&mut self, payload: &[u8], now: Now) {
        if let Ok(pong) = Ping::parse(payload)
            && pong.seq == self.control.ping_seq
        {
            self.control.rtt = Some(Duration::from_micros(self.micros(now).saturating_sub(pong.sent_us)));
        }
    }

    fn control_nonsense(&mut self, link: LinkId, error: &WireError, now: Now, rng: &mut impl rand_core::Rng) {
        self.drops.count(Drop::Malformed);
        self.hang_up(link, complaint(error));
        self.control_closed(&format!("the controller sent nonsense: {error}"), now, rng);
    }

    pub(crate) fn drop_control(&mut self, link: LinkId, reason: &str, now: Now, rng: &mut impl rand_core::Rng) {
        self.hang_up(link, None);
        self.control_closed(reason, now, rng);
    }

    /// A relay refuses our token: it was revoked, or its keys have changed. A new one comes with a new authentication;
    /// revoking one token does not bar the node (DESIGN §3).
    pub(crate) fn renew_tokens(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        let due = self.control.renewed_at.is_none_or(|at| now.mono.saturating_duration_since(at) >= RENEW_INTERVAL);
        if let (Some(link), true) = (self.control_link(), due) {
            self.control.renewed_at = Some(now.mono);
            self.drop_control(link, "a relay refuses our token; authenticating anew", now, rng);
        }
    }

    /// Between two looks both clocks go on alike, unless the wall clock is set, or the host is suspended, whose monotonic
    /// clock then stands still. Back it is only ever set: the controller's clock is so much farther ahead. Forward it may
    /// be either, and the controller tells which, at the next authentication.
    /// Returns whether one has stepped.
    pub(crate) fn look_at_clocks(&mut self, now: Now, rng: &mut impl rand_core::Rng) -> bool {
        let passed = now.mono.saturating_duration_since(self.clocks.mono);
        let expected = self.clocks.unix_ms.saturating_add(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX));
        self.clocks = now;
        let back = expected.saturating_sub(now.unix_ms);
        if expected.abs_diff(now.unix_ms) < CLOCK_STEP_MS {
            return false;
        }
        tracing::info!(
            ms = expected.abs_diff(now.unix_ms),
            back = back > 0,
            "the clock was set, or the host has slept"
        );
        self.clock_offset_ms = self.clock_offset_ms.saturating_add_unsigned(back);
        if let Some(link) = self.control.link {
            self.drop_control(link, "the clock was set; asking the controller for its own", now, rng);
        }
        true
    }

    pub(crate) fn control_link(&self) -> Option<LinkId> {
        (self.control.phase == Phase::Ready).then_some(self.control.link).flatten()
    }

    pub(crate) fn send_message(&mut self, link: LinkId, message: ControlMessage) {
        match control::encode(&message, Flags::default()) {
            Ok(frames) => self.send(link, frames),
            Err(error) => tracing::error!(%error, "a control message could not be encoded"),
        }
    }

    /// Monotonic time in µs since the node began: the time in our PINGs.
    pub(crate) fn micros(&self, now: Now) -> u64 {
        u64::try_from(now.mono.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    /// We are no member any more: sessions end, relays are left, the interface goes down.
    fn expelled(&mut self, now: Now) {
        self.stop_direct(now);
        for (_, relay) in std::mem::take(&mut self.relays) {
            if let Some(link) = relay.link() {
                self.hang_up(link, None);
            }
        }
        self.relay_ways.clear();
        self.identity = None;
        self.network = None;
        self.sessions = None;
        self.peers.clear();
        self.clear_routes();
        self.latest = proto::Config::default();
        self.persist();
        self.events.push_back(Event::Expelled);
    }
}

/// The answer to a message that cannot be understood, sent before the connection ends (DESIGN §1).
pub(crate) fn complaint(error: &WireError) -> Option<bytes::Bytes> {
    let message =
        proto::Error { code: error.code().as_u16().into(), message: error.to_string(), ..proto::Error::default() };
    control::encode(&ControlMessage::Error(message), Flags::default()).ok().map(Into::into)
}

/// Our identity as the controller tells it.
pub(crate) fn identity(message: &proto::NodeIdentity) -> Option<Identity> {
    let addresses: Vec<IpAddr> = message.addresses.iter().filter_map(|b| ip(b)).collect();
    let named = message.node_id != 0 && message.network_id != 0 && !addresses.is_empty();
    named.then(|| Identity {
        node: NodeId(message.node_id),
        network: NetworkId(message.network_id),
        name: printable(&message.name),
        addresses,
    })
}

/// An address of 4 or 16 bytes.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// Somebody else's words, fit for a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}
