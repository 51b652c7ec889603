//! The relay itself: connections come, authenticate, and go.

use crate::connection::{Connection, Grace, State, origin_of};
use crate::event::{CloseReason, ConnId, ConnectError, RelayEvent};
use crate::ids::NodeMap;
use crate::limits::RelayConfig;
use crate::locations::Locations;
use crate::mesh::Mesh;
use crate::queue::{Lane, Run};
use crate::stats::RelayStats;
use crate::timers::Timers;
use crate::uplink::Uplink;
use bytes::Bytes;
use edgelink_auth::token::{RelayVerifier, Revocations};
use edgelink_model::records::{RevocationRecord, RevocationTarget};
use edgelink_model::{ErrorCode, NodeId, Now};
use edgelink_wire::control::{self, proto};
use edgelink_wire::{Flags, WireError};
use rand_core::Rng;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Expired revocations are forgotten within this time.
const REVOCATION_SWEEP: Duration = Duration::from_secs(60);

/// A relay's brain: it holds no socket, reads no clock and draws no randomness.
///
/// # The loop
///
/// The shell calls `connect` for each accepted `/ws/data`, [`Relay::connect_mesh`] for each accepted `/ws/mesh`, one
/// `handle_…` for whatever happens, and **then** drains [`Relay::poll_event`] until `None`. It dials other relays and the
/// controller when an event says so. A dialled link is a connection like the others. On [`RelayEvent::Writable`] it calls [`Relay::poll_transmit`] whenever the
/// socket takes more, until that returns 0. It calls [`Relay::handle_timeout`] when [`Relay::poll_timeout`] is due
/// (which may be early, never late; ask again after each call). Once a connection is gone, for whatever reason,
/// [`Relay::disconnect`] frees it. A [`ConnId`] that is gone is ignored everywhere.
///
/// Messages should own their memory: a `Bytes` that is a small part of a large read buffer keeps all of it alive while
/// its frames are queued, which no limit here can see.
#[derive(Debug)]
pub struct Relay {
    pub(crate) config: RelayConfig,
    pub(crate) verifier: RelayVerifier,
    pub(crate) revocations: Revocations,
    /// When expired ones were looked for last.
    revocations_swept: Option<Instant>,
    controller: Controller,
    pub(crate) connections: Slab<Connection>,
    next_serial: u64,
    pub(crate) nodes: NodeMap<ConnId>,
    /// Connections that are not authenticated yet, in all and by where they come from.
    unauthenticated: usize,
    unauthenticated_from: HashMap<IpAddr, u32>,
    timers: Timers,
    pub(crate) mesh: Mesh,
    pub(crate) locations: Locations,
    pub(crate) uplink: Uplink,
    /// No further connections are taken.
    pub(crate) draining: bool,
    pub(crate) events: VecDeque<RelayEvent>,
    pub(crate) stats: RelayStats,
}

/// What is known of the controller.
#[derive(Clone, Copy, Debug)]
enum Controller {
    Present,
    Lost,
    /// It was lost; until then nodes may still be without a fresh token.
    Returned {
        until: Instant,
    },
}

impl Relay {
    /// A relay without connections that believes the controller to be there.
    pub fn new(config: RelayConfig, verifier: RelayVerifier) -> Self {
        let locations = Locations::new(config.limits.locations);
        Self {
            config,
            verifier,
            revocations: Revocations::default(),
            revocations_swept: None,
            controller: Controller::Present,
            connections: Slab::new(),
            next_serial: 0,
            nodes: NodeMap::default(),
            unauthenticated: 0,
            unauthenticated_from: HashMap::new(),
            timers: Timers::default(),
            mesh: Mesh::default(),
            locations,
            uplink: Uplink::default(),
            draining: false,
            events: VecDeque::new(),
            stats: RelayStats::default(),
        }
    }

    /// Replaces the keys that tokens are verified with. Authenticated connections stay until their tokens end.
    pub fn set_verifier(&mut self, verifier: RelayVerifier) {
        self.verifier = verifier;
    }

    /// Replaces all revocations, and closes the connections that they concern.
    pub fn set_revocations<'a>(&mut self, records: impl IntoIterator<Item = &'a RevocationRecord>, now: Now) {
        self.revocations = records.into_iter().collect();
        self.enforce_revocations(now);
    }

    /// Adds a revocation, and closes the connections that it concerns at once, with ERROR 1003.
    pub fn revoke(&mut self, record: &RevocationRecord, now: Now) {
        self.revocations.insert(record);
        if let RevocationTarget::Node { node_id, .. } = record.target {
            self.locations.forget(node_id);
        }
        self.enforce_revocations(now);
    }

    /// The revocations that are kept, for the disk.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// While the controller is lost, and for [`RelayConfig::refresh_time`] after its return, tokens are honoured for
    /// [`RelayConfig::expired_grace`] past their expiry (DESIGN §3).
    pub fn set_controller_lost(&mut self, lost: bool, now: Now) {
        match (lost, self.controller) {
            (true, _) => self.controller = Controller::Lost,
            (false, Controller::Lost) => {
                let until = now.mono + self.config.refresh_time;
                self.controller = Controller::Returned { until };
                for conn in self.conn_ids() {
                    self.schedule(conn, until);
                }
            }
            (false, _) => {}
        }
    }

    /// A client connected to `/ws/data`. `remote` is its address as far as a trusted proxy tells; `None` if unknown.
    ///
    /// # Errors
    /// Limits are reached; the connection does not exist then.
    pub fn connect(&mut self, remote: Option<IpAddr>, now: Now, rng: &mut impl Rng) -> Result<ConnId, ConnectError> {
        self.may_connect(remote)?;
        self.count_unauthenticated(remote);
        let mut challenge = [0; 32];
        rng.fill_bytes(&mut challenge);
        let conn = self.insert(|serial| Connection::new(serial, remote, challenge, now.mono));
        self.schedule(conn, now.mono + self.config.limits.handshake_timeout);
        Ok(conn)
    }

    pub(crate) fn insert(&mut self, connection: impl FnOnce(u64) -> Connection) -> ConnId {
        let serial = self.next_serial;
        self.next_serial += 1;
        ConnId { serial, slot: self.connections.insert(connection(serial)) }
    }

    pub(crate) fn count_unauthenticated(&mut self, remote: Option<IpAddr>) {
        self.unauthenticated += 1;
        if let Some(remote) = remote {
            *self.unauthenticated_from.entry(origin_of(remote)).or_default() += 1;
        }
    }

    pub(crate) fn may_connect(&mut self, remote: Option<IpAddr>) -> Result<(), ConnectError> {
        let outcome = self.room_for(remote);
        self.stats.refused_connections += u64::from(outcome.is_err());
        outcome
    }

    fn room_for(&self, remote: Option<IpAddr>) -> Result<(), ConnectError> {
        let limits = &self.config.limits;
        if self.draining {
            return Err(ConnectError::Draining);
        }
        if self.connections.len() >= limits.connections {
            return Err(ConnectError::TooManyConnections);
        }
        if self.unauthenticated >= limits.unauthenticated {
            return Err(ConnectError::TooManyUnauthenticated);
        }
        if let Some(remote) = remote
            && self.unauthenticated_from.get(&origin_of(remote)).copied().unwrap_or(0)
                >= limits.unauthenticated_per_address
        {
            return Err(ConnectError::TooManyFrom(remote));
        }
        Ok(())
    }

    /// One WebSocket binary message arrived.
    pub fn handle_message(&mut self, conn: ConnId, message: Bytes, now: Now) {
        let Some(connection) = self.get(conn) else { return };
        let open = match &connection.state {
            State::Closing => return,
            State::Handshake(_) | State::MeshAccepted { .. } | State::MeshDialled(_) => false,
            State::Open(_) | State::Mesh(_) => true,
        };
        self.stats.messages += 1;
        let limit = self.config.limits.message;
        if message.len() > limit {
            self.close_for(conn, &WireError::TooLarge { len: message.len(), limit }, 0, now);
        } else if open {
            self.handle_frames(conn, &message, now);
        } else {
            self.handle_handshake(conn, &message, now);
        }
    }

    /// A WebSocket text message arrived, which the protocol does not have: ERROR 2002, then close.
    pub fn handle_text(&mut self, conn: ConnId, now: Now) {
        let error = proto::Error::new(ErrorCode::InvalidMessage, 0, "text messages are not part of the protocol");
        self.close(conn, CloseReason::Protocol(ErrorCode::InvalidMessage), Some(&error), now);
    }

    /// The connection is gone. The node's newer connection, if there is one, is not touched.
    pub fn disconnect(&mut self, conn: ConnId, now: Now) {
        if self.get(conn).is_none() {
            return;
        }
        self.leave(conn, now);
        if let Some(mut connection) = self.connections.try_remove(conn.slot) {
            let held = connection.queue.held();
            connection.queue.abandon(&mut self.stats.drops);
            self.stats.queued_bytes -= held;
        }
    }

    /// Appends to `out` what is to be sent now, oldest first, control and signalling before data: runs of whole frames,
    /// in all at most `max_bytes`, but at least one frame if there is any. Each run, and all of them together, can be
    /// one WebSocket message. Returns how many bytes that are; 0 means that [`RelayEvent::Writable`] will come first.
    pub fn poll_transmit(&mut self, conn: ConnId, max_bytes: usize, now: Now, out: &mut Vec<Bytes>) -> usize {
        let Some(connection) = self.connections.get_mut(conn.slot).filter(|c| c.serial == conn.serial) else {
            return 0;
        };
        if max_bytes == 0 {
            return 0;
        }
        let before = connection.queue.held();
        let taken = connection.queue.take(max_bytes, now.mono, &self.config.limits, out, &mut self.stats.drops);
        self.stats.queued_bytes = self.stats.queued_bytes - before + connection.queue.held();
        self.stats.sent_bytes += taken as u64;
        connection.awaiting_since = (!connection.queue.is_empty()).then_some(now.mono);
        if connection.awaiting_since.is_some() {
            self.schedule(conn, now.mono + self.config.limits.stall_timeout);
        }
        taken
    }

    /// The next thing for the shell to do.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// When to call [`Relay::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.timers.next(), self.mesh.wake, self.uplink.wake].into_iter().flatten().min()
    }

    /// Closes what has been silent, stalled, unauthenticated or expired for too long; dials, probes and reports what is
    /// due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.forget_revocations(now);
        self.dial_due(now);
        self.report_due(now);
        while let Some((at, conn)) = self.timers.pop_due(now.mono) {
            let grace = self.grace(now);
            let Some(connection) = self.connections.get_mut(conn.slot).filter(|c| c.serial == conn.serial) else {
                continue;
            };
            if connection.timer != Some(at) {
                continue;
            }
            connection.timer = None;
            if connection.link().is_some() {
                self.ping_due(conn, now);
                self.schedule_link(conn);
            }
            let Some(connection) = self.connections.get_mut(conn.slot) else { continue };
            let Some((deadline, reason)) = connection.deadline(&self.config.limits, grace, now) else { continue };
            if deadline > now.mono {
                self.schedule(conn, deadline);
                continue;
            }
            let error = (reason == CloseReason::TokenExpired)
                .then(|| proto::Error::new(ErrorCode::TokenExpired, 0, "the token has expired"));
            self.close(conn, reason, error.as_ref(), now);
        }
    }

    /// Counters and gauges.
    pub fn stats(&self) -> RelayStats {
        RelayStats {
            connections: self.connections.len(),
            nodes: self.nodes.len(),
            mesh_links: self.mesh.links.len(),
            locations: self.locations.len(),
            ..self.stats.clone()
        }
    }

    /// The connection of a node, if it has one here.
    pub fn connection_of(&self, node: NodeId) -> Option<ConnId> {
        self.nodes.get(&node).copied()
    }

    // ---- for the handshake and for forwarding ----

    pub(crate) fn get(&self, conn: ConnId) -> Option<&Connection> {
        self.connections.get(conn.slot).filter(|connection| connection.serial == conn.serial)
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.slot).filter(|connection| connection.serial == conn.serial)
    }

    fn conn_ids(&self) -> Vec<ConnId> {
        self.connections.iter().map(|(slot, connection)| ConnId { serial: connection.serial, slot }).collect()
    }

    pub(crate) fn grace(&self, now: Now) -> Grace {
        let grace = self.config.expired_grace;
        match self.controller {
            Controller::Lost => Grace::For(grace),
            Controller::Returned { until } if now.mono < until => Grace::ForUntil(grace, until),
            Controller::Returned { .. } | Controller::Present => Grace::None,
        }
    }

    /// Makes sure that a connection's deadlines are looked at no later than `at`.
    pub(crate) fn schedule(&mut self, conn: ConnId, at: Instant) {
        if let Some(connection) = self.connections.get_mut(conn.slot).filter(|c| c.serial == conn.serial) {
            self.timers.set(conn, at, &mut connection.timer);
        }
    }

    /// Queues a run for a connection and wakes its sender. Tells whether there was room.
    pub(crate) fn enqueue(&mut self, to: ConnId, lane: Lane, run: Run) -> bool {
        let limits = &self.config.limits;
        let Some(connection) = self.connections.get_mut(to.slot).filter(|c| c.serial == to.serial) else {
            return false;
        };
        let (now, before) = (run.queued, connection.queue.held());
        let free = limits.queued_total.saturating_sub(self.stats.queued_bytes);
        let accepted = connection.queue.push(lane, run, free, limits, &mut self.stats.drops);
        self.stats.queued_bytes = self.stats.queued_bytes - before + connection.queue.held();
        self.wake(to, now);
        accepted
    }

    /// Wakes a connection's sender if something waits there (what it took over, for instance).
    pub(crate) fn wake_sender(&mut self, to: ConnId, now: Now) {
        self.wake(to, now.mono);
    }

    fn wake(&mut self, to: ConnId, now: Instant) {
        let limits = &self.config.limits;
        let Some(connection) = self.connections.get_mut(to.slot).filter(|c| c.serial == to.serial) else { return };
        if connection.awaiting_since.is_none() && !connection.queue.is_empty() {
            connection.awaiting_since = Some(now);
            self.timers.set(to, now + limits.stall_timeout, &mut connection.timer);
            if !matches!(connection.state, State::Closing) {
                self.events.push_back(RelayEvent::Writable(to));
            }
        }
    }

    /// Sends the relay's own frames.
    pub(crate) fn send(&mut self, to: ConnId, frames: Bytes, now: Now) {
        let run = Run { buffer: frames.len(), frames, queued: now.mono, own: true, flow: 0 };
        self.enqueue(to, Lane::Control, run);
    }

    pub(crate) fn send_message(&mut self, to: ConnId, message: &impl control::Encode, now: Now) {
        // The relay's own messages are far below the limit that encoding can fail for.
        if let Ok(frames) = control::encode(message, Flags::NONE) {
            self.send(to, frames.into(), now);
        }
    }

    pub(crate) fn send_error(&mut self, to: ConnId, error: &proto::Error, now: Now) {
        self.stats.errors += 1;
        self.send_message(to, error, now);
    }

    /// The peer broke the protocol.
    pub(crate) fn close_for(&mut self, conn: ConnId, error: &WireError, answers_type: u8, now: Now) {
        let message = error.to_message(answers_type);
        self.close(conn, CloseReason::Protocol(error.code()), Some(&message), now);
    }

    /// Ends a connection: from now on it neither sends nor receives, except for `error`.
    pub(crate) fn close(&mut self, conn: ConnId, reason: CloseReason, error: Option<&proto::Error>, now: Now) {
        if self.get(conn).is_none_or(|connection| matches!(connection.state, State::Closing)) {
            return;
        }
        tracing::debug!(%conn, %reason, "closing");
        self.leave(conn, now);
        if let Some(connection) = self.connections.get_mut(conn.slot) {
            let before = connection.queue.held();
            connection.queue.abandon(&mut self.stats.drops);
            self.stats.queued_bytes = self.stats.queued_bytes - before + connection.queue.held();
        }
        if let Some(error) = error {
            self.send_error(conn, error, now);
        }
        self.stats.count_close(reason.kind());
        self.events.push_back(RelayEvent::Close { conn, reason, flush: error.is_some() });
    }

    /// Takes a connection out of every index and marks it as closing.
    fn leave(&mut self, conn: ConnId, now: Now) {
        let Some(connection) = self.get_mut(conn) else { return };
        match std::mem::replace(&mut connection.state, State::Closing) {
            State::Handshake(_) | State::MeshAccepted { .. } => self.no_longer_unauthenticated(conn),
            state @ (State::MeshDialled(_) | State::Mesh(_)) => self.link_gone(conn, &state, now),
            State::Open(session) => {
                // Not if the node has a newer connection: that one stays.
                if self.nodes.get(&session.node) == Some(&conn) {
                    self.nodes.remove(&session.node);
                    let (node, network) = (session.node, session.network);
                    self.events.push_back(RelayEvent::NodeDisconnected { conn, node, network });
                    self.node_moved(node, now);
                }
            }
            State::Closing => {}
        }
    }

    pub(crate) fn no_longer_unauthenticated(&mut self, conn: ConnId) {
        self.unauthenticated = self.unauthenticated.saturating_sub(1);
        let Some(origin) = self.get(conn).and_then(|connection| connection.remote).map(origin_of) else { return };
        if let Some(count) = self.unauthenticated_from.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                self.unauthenticated_from.remove(&origin);
            }
        }
    }

    /// Forgets revocations of tokens that have expired, now and then.
    fn forget_revocations(&mut self, now: Now) {
        if self.revocations_swept.is_some_and(|at| now.mono.saturating_duration_since(at) < REVOCATION_SWEEP) {
            return;
        }
        self.revocations_swept = Some(now.mono);
        let before = self.revocations.len();
        self.revocations.expire(now.unix_secs());
        if self.revocations.len() != before {
            self.events.push_back(RelayEvent::StateChanged);
        }
    }

    fn enforce_revocations(&mut self, now: Now) {
        for conn in self.conn_ids() {
            let revoked = self.get(conn).and_then(Connection::session).is_some_and(|session| {
                self.revocations.is_revoked(&session.token.jti, session.node, session.token.issued)
            });
            if revoked {
                let error = proto::Error::new(ErrorCode::TokenRevoked, 0, "the relay_token was revoked");
                self.close(conn, CloseReason::Revoked, Some(&error), now);
            }
            let revoked = self.get(conn).and_then(Connection::link).is_some_and(|link| {
                link.token.as_ref().is_some_and(|token| self.revocations.is_jti_revoked(&token.jti))
            });
            if revoked {
                let error = proto::Error::new(ErrorCode::TokenRevoked, 0, "the mesh token was revoked");
                self.close(conn, CloseReason::Revoked, Some(&error), now);
            }
        }
        self.revocations.expire(now.unix_secs());
    }
}
