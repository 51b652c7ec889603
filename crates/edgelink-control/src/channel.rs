//! `/ws/control`: one node's connection from challenge to CONFIG (DESIGN §3, control authentication).
//!
//! AUTH_REQUEST (machine key) → AUTH_RESPONSE (challenge) → AUTH_REQUEST (signature) → AUTH_RESPONSE (ids, addresses,
//! tokens) → KEY_ANNOUNCE → CONFIG. A node that waits for authorization keeps its connection.

use crate::connections::{Conn, IDLE_TIMEOUT, KEY_TIMEOUT, Ready, State, UNAUTHENTICATED_LIMIT};
use crate::registry::is_member;
use crate::tokens::{Held, RENEWED_PER_TURN};
use crate::{ConnId, Control, Enrolled, Event, StoreOp, messages};
use edgelink_auth::{MachinePublic, SignedStatement, auth_key, challenge};
use edgelink_model::records::{EnrollError, EnrollRequest, HostInfo, NodeKeyRecord, NodeRecord};
use edgelink_model::{ErrorCode, NodeId, Now};
use edgelink_wire::control::{ControlMessage, Received, proto};
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::ping::Ping;
use edgelink_wire::{Flags, Frame, FrameType};
use std::time::Duration;

/// Afterwards they are reports, with room for ten thousand peers. A list of empty elements takes two hundred times its
/// bytes in memory: with the protocol's limit of 8 MiB, a kilobyte from a hostile node would take 1.6 GB.
const NODE_LIMIT: usize = 256 << 10;
/// A node that cannot apply its configuration is sent a full one at most this often.
pub(crate) const RESEND_INTERVAL: Duration = Duration::from_secs(1);
/// How far a node's statement may lie in our future; its clock follows ours (DESIGN §2).
const CLOCK_LEEWAY_SECS: u64 = 600;
/// Longest string that a node may say of its host.
const MAX_HOST_FIELD: usize = 255;

/// Why a connection ends or a message is refused: the code and a sentence for the node's user.
pub(crate) struct Refusal(pub(crate) ErrorCode, pub(crate) String);

impl Control {
    /// A WebSocket on `/ws/control` was opened.
    pub fn connect(&mut self, now: Now) -> ConnId {
        let id = self.next_id();
        let mut conn = Conn::new(id, now);
        conn.schedule(&mut self.timers);
        self.conns.insert(id, conn);
        id
    }

    pub(crate) fn next_id(&mut self) -> ConnId {
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        id
    }

    /// The connection ended. Harmless for one that the core closed itself.
    pub fn disconnect(&mut self, id: ConnId, now: Now) {
        if !self.server_disconnected(id, now) {
            self.forget(id, now);
        }
    }

    /// One WebSocket binary message arrived.
    pub fn handle_message(&mut self, id: ConnId, message: &[u8], now: Now, rng: &mut impl rand_core::Rng) {
        if self.servers.is_server(id) {
            return self.handle_server_message(id, message, now, rng);
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.last_received = now.mono;
        if !conn.authenticated() && message.len() > UNAUTHENTICATED_LIMIT {
            let text = format!("a message of {} bytes before authentication; the limit is 4096", message.len());
            return self.refuse(id, FrameType::AuthRequest as u8, Refusal(ErrorCode::MessageTooLarge, text), now);
        }
        for frame in edgelink_wire::frames(message) {
            let outcome = match frame {
                Ok(frame) => self.handle_frame(id, &frame, now, rng).map_err(|refusal| (frame.ty, refusal)),
                Err(error) => Err((0, Refusal(error.code(), error.to_string()))),
            };
            if let Err((ty, refusal)) = outcome {
                return self.refuse(id, ty, refusal, now);
            }
            if !self.conns.contains(id) {
                return;
            }
        }
        if let Some(conn) = self.conns.get_mut(id) {
            conn.schedule(&mut self.timers);
        }
    }

    /// A WebSocket text message arrived: WSS-Mesh knows none (DESIGN §1).
    pub fn handle_text(&mut self, id: ConnId, now: Now) {
        let refusal =
            Refusal(ErrorCode::InvalidMessage, "a text message; WSS-Mesh speaks binary messages only".to_owned());
        if self.servers.is_server(id) {
            return self.refuse_server(id, 0, &refusal, now);
        }
        self.refuse(id, 0, refusal, now);
    }

    /// Has the connection proved its machine key, or shown a good server_token?
    pub fn is_authenticated(&self, id: ConnId) -> bool {
        if self.servers.is_server(id) {
            return self.servers.is_authenticated(id);
        }
        self.conns.get(id).is_some_and(|c| matches!(c.state(), State::Enrolling { .. }) || c.authenticated())
    }

    /// The outcome of [`StoreOp::Enroll`]; the change that it caused has been applied before.
    pub fn handle_enrolled(&mut self, id: ConnId, outcome: Enrolled, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(State::Enrolling { machine }) = self.conns.get(id).map(Conn::state) else { return };
        let machine = *machine;
        match outcome {
            Ok(record) if record.machine_key_pub == machine.0 => self.enter(id, &record, now, rng),
            Ok(_) => self.refuse(id, FrameType::AuthRequest as u8, internal(), now),
            Err(error) => {
                let code = match &error {
                    EnrollError::UnknownAuthKey | EnrollError::OtherNetwork => ErrorCode::InvalidToken,
                    EnrollError::AuthKeyExpired => ErrorCode::TokenExpired,
                    EnrollError::PoolExhausted(_) | EnrollError::TooManyPending => ErrorCode::Overloaded,
                    EnrollError::Unavailable => ErrorCode::Unavailable,
                };
                self.refuse(id, FrameType::AuthRequest as u8, Refusal(code, error.to_string()), now);
            }
        }
    }

    /// The node was authorized: if it waits, it is let in.
    pub(crate) fn admit(&mut self, node: NodeId, now: Now, rng: &mut impl rand_core::Rng) {
        let pending = |id: &ConnId| matches!(self.conns.get(*id).map(Conn::state), Some(State::Pending { .. }));
        let waiting: Vec<ConnId> = self.conns.of_node(node).into_iter().filter(pending).collect();
        let Some(record) = self.registry.nodes.get(&node).cloned() else { return };
        for id in waiting {
            self.enter(id, &record, now, rng);
        }
    }

    /// The node may not stay: its connection falls back to waiting, or is closed when the node was deleted.
    pub(crate) fn expel(&mut self, node: NodeId, deleted: bool, now: Now) {
        for id in self.conns.of_node(node) {
            let text = if deleted {
                "this node was deleted by an administrator"
            } else {
                "an administrator withdrew this node's authorization"
            };
            if deleted {
                self.refuse(id, 0, Refusal(ErrorCode::NodeNotAuthorized, text.to_owned()), now);
                continue;
            }
            self.leave_network(id, now);
            if let Some(conn) = self.conns.set_state(id, State::Pending { node }) {
                conn.schedule(&mut self.timers);
            }
            self.send_error(id, 0, &Refusal(ErrorCode::NodeNotAuthorized, text.to_owned()));
        }
    }

    pub(crate) fn expire_connections(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        let mut renewed = 0;
        while let Some((at, id)) = self.timers.pop_due(now.mono) {
            if self.servers.is_server(id) {
                self.server_timer(id, at, now, rng);
                continue;
            }
            let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.armed == Some(at)) else { continue };
            conn.armed = None;
            if conn.deadline > now.mono {
                // It was postponed.
                self.timers.set(id, conn.deadline, &mut conn.armed);
                continue;
            }
            if conn.ready().is_some_and(|ready| ready.key_due.is_some_and(|due| due <= now.mono)) {
                let text = format!("no key was announced within {} s of the admission", KEY_TIMEOUT.as_secs());
                self.refuse(id, FrameType::KeyAnnounce as u8, Refusal(ErrorCode::Unavailable, text), now);
                continue;
            }
            if let Some(ready) = conn.ready()
                && ready.tokens.due().is_some_and(|due| due <= now.mono)
                && conn.last_received + IDLE_TIMEOUT > now.mono
            {
                let node = ready.node;
                self.refresh_tokens(id, node, now, rng);
                renewed += 1;
                if renewed == RENEWED_PER_TURN {
                    // The rest is due at once, after whatever else waits: signing takes time.
                    return;
                }
                continue;
            }
            if conn.authenticated() {
                tracing::debug!(conn = id.0, "control connection is silent; closed");
                self.forget(id, now);
                self.events.push_back(Event::Close { conn: id });
            } else {
                let text = "authentication took longer than 10 s".to_owned();
                self.refuse(id, FrameType::AuthRequest as u8, Refusal(ErrorCode::Unavailable, text), now);
            }
        }
    }

    fn handle_frame(
        &mut self,
        id: ConnId,
        frame: &Frame<'_>,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Result<(), Refusal> {
        match frame.frame_type() {
            Some(FrameType::Ping) => {
                let ping = Ping::parse(frame.payload).map_err(wire)?;
                let message = bytes::Bytes::copy_from_slice(&ping.encode(FrameType::Pong));
                self.events.push_back(Event::Send { conn: id, message });
                Ok(())
            }
            Some(FrameType::Pong) => Ok(()),
            Some(FrameType::KeyAnnounce) => {
                let announce = KeyAnnounce::parse(frame.payload).map_err(wire)?;
                self.handle_key_announce(id, &announce, now)
            }
            Some(FrameType::Data | FrameType::P2pPing | FrameType::P2pPong | FrameType::P2pKeepalive) => Err(Refusal(
                ErrorCode::InvalidMessage,
                format!("frame type 0x{:02x} does not belong on the control channel", frame.ty),
            )),
            Some(_) => {
                let Some(conn) = self.conns.get_mut(id) else { return Ok(()) };
                // Strangers reach neither the decompressor nor anything else.
                if !conn.authenticated() && frame.ty != FrameType::AuthRequest as u8 {
                    return Err(unexpected(frame.ty));
                }
                match conn.reassembler.push(frame) {
                    Ok(Some(received)) => self.handle_control(id, received, now, rng),
                    Ok(None) => Ok(()),
                    Err(error) => Err(wire(error)),
                }
            }
            None => {
                // The connection stays: a newer node may speak types that we do not know yet (DESIGN §1).
                self.stats.bad_messages += 1;
                let text = format!("frame type 0x{:02x} is unknown here", frame.ty);
                self.send_error(id, frame.ty, &Refusal(ErrorCode::InvalidMessage, text));
                Ok(())
            }
        }
    }

    fn handle_control(
        &mut self,
        id: ConnId,
        received: Received,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Result<(), Refusal> {
        let Some(conn) = self.conns.get_mut(id) else { return Ok(()) };
        match (received.message, conn.state()) {
            (ControlMessage::AuthRequest(request), State::Hello) => self.handle_hello(id, request, now, rng),
            (ControlMessage::AuthRequest(request), State::Challenged { .. }) => {
                self.handle_proof(id, request, now, rng)
            }
            (ControlMessage::Ack(ack), State::Ready(_)) => {
                self.handle_ack(id, &ack, now);
                Ok(())
            }
            // It was under way when the node lost its membership.
            (ControlMessage::Ack(_), State::Pending { .. }) => Ok(()),
            (ControlMessage::LatencyReport(report), State::Ready(ready)) => {
                let node = ready.node;
                self.node_report(node, &report, now);
                Ok(())
            }
            (ControlMessage::LatencyReport(_), State::Pending { .. }) => Ok(()),
            (ControlMessage::ConfigUpdate(update), State::Ready(ready)) => {
                let node = ready.node;
                self.routes_announced(node, &update.routes.unwrap_or_default(), now);
                Ok(())
            }
            (ControlMessage::ConfigUpdate(_), State::Pending { .. }) => Ok(()),
            (ControlMessage::P2pEndpoint(message), State::Ready(ready)) if message.node_id == 0 => {
                let node = ready.node;
                if self.may_signal(id, now) {
                    self.note_endpoints(node, &message);
                }
                Ok(())
            }
            (ControlMessage::P2pStatus(status), State::Ready(ready)) => {
                let node = ready.node;
                self.note_direct(node, status, now);
                Ok(())
            }
            (message @ (ControlMessage::P2pInit(_) | ControlMessage::P2pEndpoint(_)), State::Ready(_)) => {
                self.forward_signal(id, message, now);
                Ok(())
            }
            // They were under way when the node lost its membership.
            (
                ControlMessage::P2pInit(_)
                | ControlMessage::P2pEndpoint(_)
                | ControlMessage::P2pStatus(_)
                | ControlMessage::Error(_),
                State::Ready(_) | State::Pending { .. },
            ) => Ok(()),
            _ => Err(unexpected(received.ty as u8)),
        }
    }

    fn handle_hello(
        &mut self,
        id: ConnId,
        request: proto::AuthRequest,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Result<(), Refusal> {
        if request.protocol_version != u32::from(edgelink_wire::VERSION) {
            let text =
                format!("protocol version {} is not spoken here; this controller speaks 1", request.protocol_version);
            return Err(Refusal(ErrorCode::UnsupportedVersion, text));
        }
        let machine = request.machine_pub.as_slice().try_into().map(MachinePublic).map_err(|_| {
            let text = format!("a machine key has 32 bytes, not {}", request.machine_pub.len());
            Refusal(ErrorCode::InvalidMachineKey, text)
        })?;
        let mut challenge = [0; 32];
        rng.fill_bytes(&mut challenge);
        let host = host_info(request.host_info.unwrap_or_default());
        self.conns.set_state(id, State::Challenged { machine, challenge, host });
        let response =
            proto::AuthResponse { challenge: challenge.to_vec(), server_time_ms: now.unix_ms, ..Default::default() };
        self.send(id, ControlMessage::AuthResponse(response), Flags::default());
        Ok(())
    }

    fn handle_proof(
        &mut self,
        id: ConnId,
        request: proto::AuthRequest,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Result<(), Refusal> {
        let Some(State::Challenged { machine, challenge, host }) = self.conns.get(id).map(Conn::state) else {
            return Ok(());
        };
        let (machine, challenge, host) = (*machine, *challenge, host.clone());
        if !self.config.hosts.is_empty() && !self.config.hosts.contains(&request.host.to_ascii_lowercase()) {
            let text = format!(
                "this controller is not known as {:?}; dial it by a name in its certificate, or add that name to `public_url`",
                printable(&request.host)
            );
            return Err(Refusal(ErrorCode::BadSignature, text));
        }
        let message = challenge::control_message(&request.host, &challenge, &machine);
        machine.verify(&message, &request.signature).map_err(|_| {
            Refusal(ErrorCode::BadSignature, "the machine key's signature of the challenge does not verify".to_owned())
        })?;
        let shown = !request.token.is_empty();
        if shown {
            self.check_auth_token(&request.token, &machine, now)?;
        }
        self.conns.set_state(id, State::Enrolling { machine });
        let auth_key_hash = (!request.auth_key.is_empty()).then(|| auth_key::hash(&request.auth_key));
        // A member that shows its auth_token needs no database: the network lives on while that is away (DESIGN §4).
        match self.registry.node_by_machine(&machine.0) {
            Some(record) if shown && is_member(record) && record.host == host => {
                let record = record.clone();
                self.enter(id, &record, now, rng);
            }
            _ => {
                let request = EnrollRequest {
                    machine_key_pub: machine.0,
                    auth_key_hash,
                    host,
                    now_unix_ms: now.unix_ms,
                    require_authorization: self.config.require_authorization,
                };
                self.events.push_back(Event::Store(StoreOp::Enroll { conn: id, request }));
            }
        }
        Ok(())
    }

    /// The machine is known; it becomes a member, or waits.
    fn enter(&mut self, id: ConnId, record: &NodeRecord, now: Now, rng: &mut impl rand_core::Rng) {
        if !is_member(record) {
            if let Some(conn) = self.conns.set_state(id, State::Pending { node: record.id }) {
                conn.schedule(&mut self.timers);
            }
            let text = format!(
                "node {} waits for authorization; on the controller: edgelink-ctl node authorize {}",
                record.id, record.id
            );
            return self.send_error(id, FrameType::AuthRequest as u8, &Refusal(ErrorCode::NodeNotAuthorized, text));
        }
        // The newest connection of a node wins; the old one's end must not take the new one along (DESIGN §10).
        if let Some(old) = self.presence.by_node.remove(&record.id)
            && old != id
        {
            self.conns.remove(old);
            self.events.push_back(Event::Close { conn: old });
            self.mark_presence(record.id, now);
        }
        let mut held = Held::default();
        let Some(tokens) = self.mint_tokens(record, &mut held, now, rng) else {
            return self.refuse(id, FrameType::AuthRequest as u8, internal(), now);
        };
        let (node, network) = (record.id, record.network_id);
        let key_due = Some(now.mono + KEY_TIMEOUT);
        let ready = Ready { node, network, key_due, sent_version: None, tokens: held, last_resend: None };
        if let Some(conn) = self.conns.set_state(id, State::Ready(ready)) {
            conn.reassembler.set_limit(NODE_LIMIT);
            conn.schedule(&mut self.timers);
        }
        let response = proto::AuthResponse {
            server_time_ms: now.unix_ms,
            identity: Some(messages::identity(record)),
            tokens: Some(tokens),
            ..Default::default()
        };
        self.send(id, ControlMessage::AuthResponse(response), Flags::default());
    }

    /// Takes a node's key statement: verified here, kept in the database, and pushed to peers from there.
    fn handle_key_announce(&mut self, id: ConnId, announce: &KeyAnnounce, now: Now) -> Result<(), Refusal> {
        let state = self.conns.get(id).map(Conn::state);
        if matches!(state, Some(State::Pending { .. })) {
            // It was under way when the node lost its membership.
            return Ok(());
        }
        let Some(State::Ready(ready)) = state else {
            return Err(Refusal(ErrorCode::InvalidMessage, "KEY_ANNOUNCE before authentication".to_owned()));
        };
        let (node, first) = (ready.node, ready.sent_version.is_none());
        let Some(record) = self.registry.nodes.get(&node) else { return Ok(()) };
        let signed = SignedStatement::verify(&announce.statement, &announce.signature).map_err(|_| {
            Refusal(ErrorCode::BadSignature, "the key statement's signature does not verify".to_owned())
        })?;
        let statement = signed.statement();
        if (statement.node_id, statement.network_id) != (node, record.network_id)
            || statement.machine_pub.0 != record.machine_key_pub
        {
            let text = "the key statement names another node, network or machine key".to_owned();
            return Err(Refusal(ErrorCode::InvalidMachineKey, text));
        }
        let known = record.key.as_ref();
        let repeated = known.is_some_and(|k| k.statement == announce.statement);
        if !repeated && known.is_some_and(|k| k.seq >= statement.seq) {
            let text = "the key statement's sequence number does not rise; is the machine key in use twice?".to_owned();
            return Err(Refusal(ErrorCode::InvalidMachineKey, text));
        }
        if statement.not_before > now.unix_secs() + CLOCK_LEEWAY_SECS || statement.not_after <= now.unix_secs() {
            let text = "the key statement is not valid now by the controller's clock".to_owned();
            return Err(Refusal(ErrorCode::InvalidMachineKey, text));
        }
        if !repeated {
            let key = NodeKeyRecord {
                statement: announce.statement.to_vec(),
                signature: announce.signature.to_vec(),
                seq: statement.seq,
            };
            self.events.push_back(Event::Store(StoreOp::SetNodeKey { node, key }));
        }
        if let Some(conn) = self.conns.get_mut(id) {
            if let Some(ready) = conn.ready_mut() {
                ready.key_due = None;
            }
            conn.schedule(&mut self.timers);
        }
        if first {
            if let Some(old) = self.presence.by_node.insert(node, id) {
                // It was admitted at the same time, before either had announced a key.
                self.conns.remove(old);
                self.events.push_back(Event::Close { conn: old });
            }
            self.events.push_back(Event::Store(StoreOp::Seen { node, online: true }));
            self.mark_presence(node, now);
            self.send_config(id, now);
            self.locations.forget_report(node);
            self.locations_changed(now);
            self.paths.retell(node);
            self.mark_path(node, now);
        }
        Ok(())
    }

    fn handle_ack(&mut self, id: ConnId, ack: &proto::Ack, now: Now) {
        if ack.error.is_empty() {
            return;
        }
        self.stats.config_errors += 1;
        let Some(ready) = self.ready_mut(id) else { return };
        tracing::debug!(node = %ready.node, error = printable(&ack.error), "a node could not apply its configuration");
        if ready.last_resend.is_none_or(|at| now.mono.saturating_duration_since(at) >= RESEND_INTERVAL) {
            ready.last_resend = Some(now.mono);
            self.resend_config(id, now);
        }
    }

    pub(crate) fn ready_mut(&mut self, id: ConnId) -> Option<&mut Ready> {
        self.conns.get_mut(id)?.ready_mut()
    }

    pub(crate) fn send_error(&mut self, id: ConnId, answers: u8, refusal: &Refusal) {
        let error = proto::Error {
            code: refusal.0.as_u16().into(),
            answers_type: answers.into(),
            message: refusal.1.clone(),
            ..proto::Error::default()
        };
        self.send(id, ControlMessage::Error(error), Flags::default());
    }

    /// Tells why, and ends the connection.
    pub(crate) fn refuse(&mut self, id: ConnId, answers: u8, refusal: Refusal, now: Now) {
        match refusal.0 {
            ErrorCode::UnsupportedVersion | ErrorCode::InvalidMessage | ErrorCode::MessageTooLarge => {
                self.stats.bad_messages += 1;
            }
            _ => self.stats.auth_failures += 1,
        }
        tracing::debug!(conn = id.0, code = refusal.0.as_u16(), reason = refusal.1, "control connection refused");
        self.send_error(id, answers, &refusal);
        self.forget(id, now);
        self.events.push_back(Event::Close { conn: id });
    }

    fn forget(&mut self, id: ConnId, now: Now) {
        self.leave_network(id, now);
        self.conns.remove(id);
    }

    /// The connection's node is offline from now on, unless a newer connection has taken its place.
    fn leave_network(&mut self, id: ConnId, now: Now) {
        let Some(node) = self.conns.get(id).and_then(Conn::node) else { return };
        if self.presence.by_node.get(&node) == Some(&id) {
            self.presence.by_node.remove(&node);
            self.locations.forget_report(node);
            self.locations_changed(now);
            self.direct.forget(node);
            self.events.push_back(Event::Store(StoreOp::Seen { node, online: false }));
            self.mark_presence(node, now);
        }
    }
}

pub(crate) fn unexpected(ty: u8) -> Refusal {
    Refusal(ErrorCode::InvalidMessage, format!("frame type 0x{ty:02x} is not expected now"))
}

pub(crate) fn wire(error: edgelink_wire::WireError) -> Refusal {
    Refusal(error.code(), error.to_string())
}

fn internal() -> Refusal {
    Refusal(ErrorCode::Internal, "the controller could not do this; its log says more".to_owned())
}

fn host_info(info: proto::HostInfo) -> HostInfo {
    let clean = |s: String| {
        s.chars()
            .filter(|c| !c.is_control())
            .scan(0, |len, c| {
                *len += c.len_utf8();
                (*len <= MAX_HOST_FIELD).then_some(c)
            })
            .collect()
    };
    HostInfo {
        hostname: clean(info.hostname),
        os: clean(info.os),
        arch: clean(info.arch),
        version: clean(info.version),
    }
}

/// A peer's words, shortened and without control characters, fit for a log or an answer.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
