//! `/ws/server`: the relay's connection to its controller (specification §5.2), which tells it everything that it must
//! know and is never needed for forwarding (DESIGN §3, §4).
//!
//! AUTH_REQUEST (server_token) → AUTH_RESPONSE → SERVER_REGISTER, SERVER_NODE_LOC (who is here) → CONFIG. Afterwards
//! changes go both ways. While the connection is lost, what is known stays in force.

use crate::connection::Connection;
use crate::event::RelayEvent;
use crate::relay::Relay;
use bytes::Bytes;
use edgelink_auth::token::RelayVerifier;
use edgelink_model::records::{RevocationRecord, RevocationTarget};
use edgelink_model::rtt::significantly;
use edgelink_model::{ErrorCode, NodeId, Now, ServerId};
use edgelink_wire::control::{self, ControlMessage, Encode, Reassembler, Received, proto};
use edgelink_wire::ping::Ping;
use edgelink_wire::{Flags, FrameType, VERSION, frames};
use rand_core::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

/// A node's coming and going is gathered for so long.
const COALESCE: Duration = Duration::from_millis(20);
/// PING is sent this often (DESIGN §9) …
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// … and a controller of which nothing was heard for so long is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// LATENCY_REPORT (specification §5.3), and at once when a figure has moved significantly.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);
/// Waits between attempts, as for mesh links.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const QUICK_RETRY: Duration = Duration::from_secs(1);
const QUICK_RETRIES: u32 = 120;
const SLOW_RETRY: Duration = Duration::from_secs(30);

/// Who this relay is towards the controller. `Debug` does not show the token.
#[derive(Clone)]
pub struct Registration {
    /// The server_token.
    pub token: String,
    /// What it says of itself.
    pub register: proto::ServerRegister,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("register", &self.register).finish_non_exhaustive()
    }
}

/// Why a saved state is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved state is damaged: {0}")]
pub struct RestoreError(String);

/// The connection to the controller.
#[derive(Debug, Default)]
pub(crate) struct Uplink {
    registration: Option<Registration>,
    state: State,
    reassembler: Reassembler,
    last_received: Option<Instant>,
    next_ping: Option<Instant>,
    next_report: Option<Instant>,
    retry_at: Option<Instant>,
    failures: u32,
    /// The controller refused the token: it is tried again, seldom.
    discouraged: bool,
    jitter: u32,
    pings: u32,
    /// Ack-requested messages that arrived on this connection.
    acked: u64,
    /// Configuration version applied.
    version: u64,
    /// RTTs as last reported.
    reported: BTreeMap<ServerId, u64>,
    report_now: bool,
    /// Nodes that came or went since the last report.
    moved: BTreeSet<NodeId>,
    moved_at: Option<Instant>,
    keys: Option<proto::RelayKeys>,
    /// Origins of all controllers, as the active one says.
    controllers: Vec<String>,
    /// When something is due; may be early.
    pub(crate) wake: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Down,
    /// The shell dials.
    Dialling,
    /// The token has been shown.
    Authenticating,
    Up,
}

impl Relay {
    /// Begins to keep a connection to the controller. Until the first CONFIG the controller counts as lost.
    pub fn start_uplink(&mut self, registration: Registration, now: Now) {
        self.uplink.registration = Some(registration);
        self.set_controller_lost(true, now);
        self.dial_controller();
    }

    /// The shell has a WebSocket to the controller's `/ws/server`.
    pub fn controller_connected(&mut self, now: Now, rng: &mut impl Rng) {
        let Some(token) = self.uplink.registration.as_ref().map(|registration| registration.token.clone()) else {
            return;
        };
        self.uplink.jitter = rng.next_u32();
        self.uplink.state = State::Authenticating;
        self.uplink.reassembler = Reassembler::new();
        self.uplink.acked = 0;
        self.uplink.last_received = Some(now.mono);
        self.uplink.next_ping = Some(now.mono + PING_INTERVAL);
        self.uplink.wake_at(now.mono + PING_INTERVAL);
        let request = proto::AuthRequest { protocol_version: VERSION.into(), token, ..Default::default() };
        self.tell_controller(&request);
    }

    /// The shell could not reach the controller.
    pub fn controller_failed(&mut self, now: Now, rng: &mut impl Rng) {
        self.uplink.jitter = rng.next_u32();
        self.controller_gone(now);
    }

    /// The WebSocket to the controller ended.
    pub fn controller_disconnected(&mut self, now: Now, rng: &mut impl Rng) {
        self.controller_failed(now, rng);
    }

    /// One binary message from the controller.
    pub fn handle_controller(&mut self, message: &[u8], now: Now) {
        if matches!(self.uplink.state, State::Down | State::Dialling) {
            return;
        }
        self.uplink.last_received = Some(now.mono);
        for frame in frames(message) {
            let outcome = match frame {
                Ok(frame) => match frame.frame_type() {
                    Some(FrameType::Ping) => Ping::parse(frame.payload).map(|ping| {
                        let pong = ping.encode(FrameType::Pong);
                        self.events.push_back(RelayEvent::ToController(Bytes::copy_from_slice(&pong)));
                    }),
                    // Types of a later version are let pass.
                    Some(FrameType::Pong) | None => Ok(()),
                    Some(_) => match self.uplink.reassembler.push(&frame) {
                        Ok(Some(received)) => {
                            self.handle_order(received, now);
                            Ok(())
                        }
                        Ok(None) => Ok(()),
                        Err(error) => Err(error),
                    },
                },
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "the controller breaks the protocol; connected anew");
                return self.drop_controller(now);
            }
            if self.uplink.state == State::Down {
                return;
            }
        }
    }

    /// Whether the controller has accepted this relay on the present connection.
    pub fn controller_is_up(&self) -> bool {
        self.uplink.state == State::Up
    }

    /// Origins (`wss://HOST[:PORT]`) at which one controller or another may be the active one, as it was told last.
    pub fn controllers(&self) -> &[String] {
        &self.uplink.controllers
    }

    /// Whether a controller has ever told which keys to trust.
    pub fn has_keys(&self) -> bool {
        self.uplink.keys.is_some()
    }

    /// What outlives a restart: keys, revocations, mesh tokens, relays, next hops and locations, as the frames that the
    /// controller would send. It holds secrets.
    pub fn saved_state(&self) -> Vec<u8> {
        let known = self.mesh.known.iter().flatten();
        let config = proto::Config {
            version: self.uplink.version,
            relays: known.map(|id| proto::Relay { id: id.0, ..Default::default() }).collect(),
            revocations: self.revocations.iter().map(|record| revocation(&record)).collect(),
            relay_keys: self.uplink.keys.clone(),
            settings: Some(proto::Settings { controllers: self.uplink.controllers.clone(), ..Default::default() }),
            mesh_tokens: self.mesh.tokens.values().cloned().collect(),
            next_hops: self.locations.hops_message(),
            ..Default::default()
        };
        let mut out = Vec::new();
        // Both are below the limit that encoding can fail for, or they would not have arrived.
        let _ = control::encode_into(&mut out, &config, Flags::NONE);
        let _ = control::encode_into(&mut out, &self.locations.to_message(), Flags::NONE);
        out
    }

    /// Starts from what [`Relay::saved_state`] gave an earlier process.
    ///
    /// # Errors
    /// [`RestoreError`]; what came before the damage has been taken.
    pub fn restore(&mut self, saved: &[u8], now: Now) -> Result<(), RestoreError> {
        let damaged = |error: edgelink_wire::WireError| RestoreError(error.to_string());
        let mut reassembler = Reassembler::new();
        for frame in frames(saved) {
            let frame = frame.map_err(damaged)?;
            match reassembler.push(&frame).map_err(damaged)?.map(|received| received.message) {
                Some(ControlMessage::Config(config)) => self.apply_config(config, now).map_err(RestoreError)?,
                Some(ControlMessage::ServerNodeLoc(locations)) => self.locations.update(&locations, now.mono),
                Some(_) => return Err(RestoreError("it holds messages that do not belong there".to_owned())),
                None => {}
            }
        }
        // The controller will say what is new since then.
        self.uplink.version = 0;
        Ok(())
    }

    // ---- for the rest of the relay ----

    /// A node came or went.
    pub(crate) fn node_moved(&mut self, node: NodeId, now: Now) {
        if self.uplink.state == State::Up {
            self.uplink.moved.insert(node);
            let at = *self.uplink.moved_at.get_or_insert(now.mono + COALESCE);
            self.uplink.wake_at(at);
        }
    }

    /// A link was measured, or is gone: a significant difference is reported at once.
    pub(crate) fn latency_changed(&mut self, now: Now) {
        if self.uplink.state != State::Up {
            return;
        }
        let current = self.latencies();
        let moved = current
            .iter()
            .any(|(id, rtt)| self.uplink.reported.get(id).is_none_or(|reported| significantly(*reported, *rtt)));
        if moved || self.uplink.reported.keys().any(|id| !current.contains_key(id)) {
            self.uplink.report_now = true;
            self.uplink.wake_at(now.mono);
        }
    }

    /// Sends what is due to the controller, or finds it gone.
    pub(crate) fn report_due(&mut self, now: Now) {
        if self.uplink.wake.is_none_or(|at| at > now.mono) {
            return;
        }
        if self.uplink.retry_at.is_some_and(|at| at <= now.mono) {
            self.dial_controller();
        }
        if matches!(self.uplink.state, State::Authenticating | State::Up) {
            if self.uplink.last_received.is_some_and(|at| at + IDLE_TIMEOUT <= now.mono) {
                tracing::warn!("nothing is heard of the controller; connected anew");
                self.drop_controller(now);
            } else if self.uplink.next_ping.is_some_and(|at| at <= now.mono) {
                self.uplink.next_ping = Some(now.mono + PING_INTERVAL);
                self.uplink.pings = self.uplink.pings.wrapping_add(1);
                let ping = Ping { sent_us: now.unix_ms.saturating_mul(1_000), seq: self.uplink.pings };
                let frame = Bytes::copy_from_slice(&ping.encode(FrameType::Ping));
                self.events.push_back(RelayEvent::ToController(frame));
            }
        }
        if self.uplink.state == State::Up {
            if self.uplink.moved_at.is_some_and(|at| at <= now.mono) {
                self.report_nodes();
            }
            if self.uplink.report_now || self.uplink.next_report.is_some_and(|at| at <= now.mono) {
                self.report_latencies(now);
            }
        }
        let idle = self.uplink.last_received.map(|at| at + IDLE_TIMEOUT);
        let times = match self.uplink.state {
            State::Down | State::Dialling => [self.uplink.retry_at, None, None, None],
            State::Authenticating => [self.uplink.next_ping, idle, None, None],
            State::Up => [self.uplink.next_ping, idle, self.uplink.next_report, self.uplink.moved_at],
        };
        self.uplink.wake = times.into_iter().flatten().min();
    }

    fn dial_controller(&mut self) {
        self.uplink.retry_at = None;
        self.uplink.state = State::Dialling;
        self.events.push_back(RelayEvent::DialController);
    }

    /// The connection is no good: closed from this side.
    fn drop_controller(&mut self, now: Now) {
        self.events.push_back(RelayEvent::CloseController);
        self.controller_gone(now);
    }

    fn controller_gone(&mut self, now: Now) {
        if self.uplink.registration.is_none() || self.uplink.state == State::Down {
            return;
        }
        if self.uplink.state == State::Up {
            self.uplink.failures = 0;
        }
        if std::mem::take(&mut self.uplink.discouraged) {
            self.uplink.failures = QUICK_RETRIES + 16;
        }
        self.uplink.state = State::Down;
        (self.uplink.moved_at, self.uplink.next_report) = (None, None);
        self.uplink.moved.clear();
        let uplink = &mut self.uplink;
        let ceiling = if uplink.failures < QUICK_RETRIES { QUICK_RETRY } else { SLOW_RETRY };
        let interval = FIRST_RETRY.saturating_mul(1 << uplink.failures.min(16)).min(ceiling);
        uplink.failures = uplink.failures.saturating_add(1);
        let at = now.mono + interval / 2 + interval.mul_f64(f64::from(uplink.jitter) / f64::from(u32::MAX) / 2.0);
        uplink.retry_at = Some(at);
        uplink.wake_at(at);
        self.set_controller_lost(true, now);
    }

    fn handle_order(&mut self, received: Received, now: Now) {
        match received.message {
            ControlMessage::AuthResponse(response) => self.accepted(&response, now),
            ControlMessage::Error(error) => {
                let code = error.error_code();
                tracing::debug!(code = error.code, "the controller reports an error");
                let busy = matches!(code, Some(ErrorCode::Unavailable | ErrorCode::Overloaded));
                let token =
                    matches!(code, Some(ErrorCode::InvalidToken | ErrorCode::TokenExpired | ErrorCode::TokenRevoked));
                if token || (self.uplink.state == State::Authenticating && !busy) {
                    // Trying again soon cannot help.
                    self.uplink.discouraged = true;
                    self.events.push_back(RelayEvent::ControllerRefused { code, message: error.message });
                }
            }
            _ if self.uplink.state != State::Up => {}
            ControlMessage::Config(config) => {
                let (version, outcome) = (config.version, self.apply_config(config, now));
                self.applied(FrameType::Config, version, outcome, now);
            }
            ControlMessage::ConfigUpdate(update) => {
                let version = update.version;
                let outcome = if update.from_version == self.uplink.version {
                    self.apply_update(update, now)
                } else {
                    Err(format!("version {} is applied, not {}", self.uplink.version, update.from_version))
                };
                if received.ack_requested || outcome.is_err() {
                    self.applied(FrameType::ConfigUpdate, version, outcome, now);
                } else {
                    self.events.push_back(RelayEvent::StateChanged);
                }
            }
            ControlMessage::ServerNodeLoc(mut locations) => {
                if std::mem::take(&mut locations.full) {
                    self.locations.fade(now.mono);
                }
                self.locations.update(&locations, now.mono);
                self.events.push_back(RelayEvent::StateChanged);
            }
            ControlMessage::ServerBlacklist(blacklist) => {
                self.take_revocations(&blacklist.revocations, blacklist.full, now);
                self.events.push_back(RelayEvent::StateChanged);
            }
            _ => {}
        }
    }

    /// The controller knows this server: it hears who we are and who is here.
    fn accepted(&mut self, response: &proto::AuthResponse, now: Now) {
        if self.uplink.state != State::Authenticating {
            return;
        }
        if ServerId(response.server_id) != self.config.id {
            let message = format!("the token is server {}'s, not {}'s", response.server_id, self.config.id);
            self.events.push_back(RelayEvent::ControllerRefused { code: Some(ErrorCode::InvalidToken), message });
            return self.drop_controller(now);
        }
        self.uplink.state = State::Up;
        self.uplink.version = 0;
        self.uplink.next_report = Some(now.mono + REPORT_INTERVAL);
        self.uplink.reported.clear();
        if let Some(register) = self.uplink.registration.as_ref().map(|registration| registration.register.clone()) {
            self.tell_controller(&register);
        }
        let nodes = self.nodes.keys().filter_map(|node| self.node_location(*node)).collect();
        self.tell_controller(&proto::ServerNodeLoc { nodes, full: true });
        self.report_latencies(now);
        self.uplink.wake_at(now.mono + REPORT_INTERVAL);
    }

    /// Answers a configuration, applied or not.
    fn applied(&mut self, ty: FrameType, version: u64, outcome: Result<(), String>, now: Now) {
        self.uplink.acked += 1;
        let error = match outcome {
            Ok(()) => {
                self.uplink.version = version;
                self.set_controller_lost(false, now);
                self.events.push_back(RelayEvent::StateChanged);
                String::new()
            }
            Err(error) => {
                tracing::debug!(error, "a configuration was not applied; a whole one is asked for");
                error
            }
        };
        let (acked_type, count) = (ty.as_u8().into(), self.uplink.acked);
        let config_version = self.uplink.version;
        self.tell_controller(&proto::Ack { acked_type, count, config_version, error });
    }

    fn apply_config(&mut self, config: proto::Config, now: Now) -> Result<(), String> {
        if let Some(keys) = config.relay_keys {
            self.take_keys(keys)?;
        }
        self.take_revocations(&config.revocations, true, now);
        self.set_known_relays(config.relays.iter().map(|relay| ServerId(relay.id)).collect(), now);
        self.set_mesh_tokens(config.mesh_tokens, now);
        self.locations.set_next_hops(true, &config.next_hops);
        self.uplink.controllers = config.settings.map(|settings| settings.controllers).unwrap_or_default();
        Ok(())
    }

    fn apply_update(&mut self, update: proto::ConfigUpdate, now: Now) -> Result<(), String> {
        if let Some(keys) = update.relay_keys {
            self.take_keys(keys)?;
        }
        self.take_revocations(&update.revocations, false, now);
        if let Some(list) = update.relays {
            self.set_known_relays(list.relays.iter().map(|relay| ServerId(relay.id)).collect(), now);
        }
        self.set_mesh_tokens(update.mesh_tokens, now);
        self.locations.set_next_hops(false, &update.next_hops);
        if let Some(settings) = update.settings {
            self.uplink.controllers = settings.controllers;
        }
        Ok(())
    }

    fn take_keys(&mut self, keys: proto::RelayKeys) -> Result<(), String> {
        let verifier = RelayVerifier::from_parts(&keys.algorithm, &keys.key, &keys.relay_auth_pub)
            .map_err(|error| format!("its keys are unusable: {error}"))?;
        self.set_verifier(verifier);
        self.uplink.keys = Some(keys);
        Ok(())
    }

    fn take_revocations(&mut self, revocations: &[proto::Revocation], full: bool, now: Now) {
        let records: Vec<RevocationRecord> = revocations.iter().map(record).collect();
        if full {
            self.set_revocations(&records, now);
        } else {
            records.iter().for_each(|record| self.revoke(record, now));
        }
    }

    fn node_location(&self, node: NodeId) -> Option<proto::NodeLocation> {
        let session = self.get(*self.nodes.get(&node)?)?.session()?;
        let relay_ids = vec![self.config.id.0];
        Some(proto::NodeLocation { node_id: node.0, network_id: session.network.0, relay_ids })
    }

    fn report_nodes(&mut self) {
        self.uplink.moved_at = None;
        let nodes = std::mem::take(&mut self.uplink.moved).into_iter().map(|node| {
            let gone = proto::NodeLocation { node_id: node.0, ..Default::default() };
            self.node_location(node).unwrap_or(gone)
        });
        let message = proto::ServerNodeLoc { nodes: nodes.collect(), full: false };
        self.tell_controller(&message);
    }

    fn report_latencies(&mut self, now: Now) {
        self.uplink.report_now = false;
        self.uplink.next_report = Some(now.mono + REPORT_INTERVAL);
        self.uplink.reported = self.latencies();
        let latencies = self.uplink.reported.iter();
        let latencies = latencies.map(|(id, rtt_us)| proto::Latency { server_id: id.0, rtt_us: *rtt_us }).collect();
        let message = proto::LatencyReport {
            latencies,
            active_peers: Vec::new(),
            connected_relays: self.mesh.links.keys().map(|id| id.0).collect(),
        };
        self.tell_controller(&message);
    }

    fn latencies(&self) -> BTreeMap<ServerId, u64> {
        let links = self.mesh.links.iter();
        links.filter_map(|(id, conn)| Some((*id, self.get(*conn).and_then(Connection::link)?.rtt.get()?))).collect()
    }

    fn tell_controller(&mut self, message: &impl Encode) {
        match control::encode(message, Flags::NONE) {
            Ok(frames) => self.events.push_back(RelayEvent::ToController(frames.into())),
            Err(error) => tracing::error!(%error, "a message to the controller is too large"),
        }
    }
}

impl Uplink {
    pub(crate) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |other| other.min(at)));
    }
}

fn record(revocation: &proto::Revocation) -> RevocationRecord {
    let node = revocation.node_id;
    let (id, target) = if revocation.jti.is_empty() {
        let target = RevocationTarget::Node { node_id: NodeId(node), issued_before: revocation.issued_before };
        (format!("node-{node}"), target)
    } else {
        (revocation.jti.clone(), RevocationTarget::Jti(revocation.jti.clone()))
    };
    RevocationRecord { id, target, expires_at: revocation.expires }
}

fn revocation(record: &RevocationRecord) -> proto::Revocation {
    let (jti, node_id, issued_before) = match &record.target {
        RevocationTarget::Jti(jti) => (jti.clone(), 0, 0),
        RevocationTarget::Node { node_id, issued_before } => (String::new(), node_id.0, *issued_before),
    };
    proto::Revocation { jti, node_id, issued_before, expires: record.expires_at }
}
