//! `/ws/server`: a relay's or STUN server's connection (specification §5.2): who it is, what it must know, what it
//! reports.
//!
//! AUTH_REQUEST (server_token) → AUTH_RESPONSE → SERVER_REGISTER → CONFIG and SERVER_NODE_LOC. The newest connection of
//! a server wins. A server that is disabled keeps its connection, learns that it is not in the list of relays (so it
//! links with nobody), and is back within a second of `server enable`.

use crate::channel::{RESEND_INTERVAL, Refusal, printable, unexpected, wire};
use crate::connections::{AUTH_TIMEOUT, IDLE_TIMEOUT, UNAUTHENTICATED_LIMIT};
use crate::fanout::{COALESCE, encode};
use crate::locations::KEPT;
use crate::registry::is_member;
use crate::timers::Timers;
use crate::{ConnId, Control, Event, StoreOp, messages};
use edgelink_auth::token::{ServerClaims, new_jti};
use edgelink_model::records::{ChangeId, RevocationRecord, RevocationTarget, ServerKind, ServerRecord};
use edgelink_model::{ErrorCode, NodeId, Now, ServerId};
use edgelink_wire::control::{ControlMessage, Reassembler, Received, proto};
use edgelink_wire::ping::Ping;
use edgelink_wire::{Flags, Frame, FrameType};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

/// The largest message of a relay: a list of all nodes that one relay serves. See the same bound for nodes.
const SERVER_LIMIT: usize = 512 << 10;
/// Mesh tokens are renewed when this fraction of their life is left.
pub(crate) const RENEW_AT: u32 = 4;
/// A token younger than this may be for a server that this controller has not heard of yet, in seconds.
const FRESH_SECS: u64 = 60;
/// Longest URL that a server may register.
const MAX_URL: usize = 255;

/// Connections of servers, and what is known of each server beside its record.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    pub(crate) conns: BTreeMap<ConnId, ServerConn>,
    pub(crate) hot: BTreeMap<ServerId, Hot>,
    /// Relays, tokens or locations are to be sent.
    pub(crate) flush_at: Option<Instant>,
    relays_dirty: bool,
    /// Servers that were connected when they were deleted: ids are never used again.
    deleted: BTreeSet<ServerId>,
}

#[derive(Debug)]
pub(crate) struct ServerConn {
    id: ConnId,
    state: State,
    reassembler: Reassembler,
    last_received: Instant,
    armed: Option<Instant>,
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    Hello,
    Ready(Ready),
}

#[derive(Debug)]
pub(crate) struct Ready {
    server: ServerId,
    /// Names its server_token.
    jti: String,
    /// Version that it was sent last; `None` before it has registered.
    pub(crate) sent_version: Option<ChangeId>,
    pub(crate) renew_at: Instant,
    last_resend: Option<Instant>,
}

/// A server that is or was connected.
#[derive(Debug, Default)]
pub(crate) struct Hot {
    conn: Option<ConnId>,
    /// When its connection was lost: its word stays in force for a while.
    lost_at: Option<Instant>,
    pub(crate) mesh_url: String,
}

impl ServerConn {
    pub(crate) fn schedule(&mut self, timers: &mut Timers) {
        self.deadline = match &self.state {
            State::Hello => self.deadline,
            State::Ready(ready) => (self.last_received + IDLE_TIMEOUT).min(ready.renew_at),
        };
        timers.set(self.id, self.deadline, &mut self.armed);
    }

    pub(crate) fn ready_mut(&mut self) -> Option<&mut Ready> {
        match &mut self.state {
            State::Ready(ready) => Some(ready),
            State::Hello => None,
        }
    }
}

impl Servers {
    pub(crate) fn is_server(&self, id: ConnId) -> bool {
        self.conns.contains_key(&id)
    }

    pub(crate) fn is_authenticated(&self, id: ConnId) -> bool {
        self.server_of(id).is_some()
    }

    pub(crate) fn server_of(&self, id: ConnId) -> Option<ServerId> {
        match &self.conns.get(&id)?.state {
            State::Ready(ready) => Some(ready.server),
            State::Hello => None,
        }
    }

    /// Connections that have been sent a configuration, with the version.
    pub(crate) fn configured(&self) -> Vec<(ConnId, ServerId, ChangeId)> {
        let ready = self.conns.iter().filter_map(|(id, conn)| match &conn.state {
            State::Ready(ready) => Some((*id, ready.server, ready.sent_version?)),
            State::Hello => None,
        });
        ready.collect()
    }
}

impl Control {
    /// A WebSocket on `/ws/server` was opened. From here on as with [`Control::connect`].
    pub fn connect_server(&mut self, now: Now) -> ConnId {
        let id = self.next_id();
        let mut conn = ServerConn {
            id,
            state: State::Hello,
            reassembler: Reassembler::with_limit(UNAUTHENTICATED_LIMIT),
            last_received: now.mono,
            armed: None,
            deadline: now.mono + AUTH_TIMEOUT,
        };
        conn.schedule(&mut self.timers);
        self.servers.conns.insert(id, conn);
        id
    }

    /// The servers that are connected and registered.
    pub fn servers_online(&self) -> impl Iterator<Item = ServerId> + '_ {
        self.servers.hot.iter().filter(|(_, hot)| hot.conn.is_some()).map(|(id, _)| *id)
    }

    /// A server_token for a server of the registry; `None` if there is no such server or the token cannot be signed.
    pub fn server_token(&self, server: ServerId, now: Now, rng: &mut impl rand_core::Rng) -> Option<String> {
        let record = self.registry.servers.get(&server)?;
        let (iat, life) = (now.unix_secs(), self.config.server_token_lifetime.as_secs());
        let claims = ServerClaims::new(record, iat, iat.saturating_add(life), new_jti(rng));
        self.issuer.server(&claims).ok()
    }

    pub(crate) fn handle_server_message(
        &mut self,
        id: ConnId,
        message: &[u8],
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) {
        let Some(conn) = self.servers.conns.get_mut(&id) else { return };
        conn.last_received = now.mono;
        if matches!(conn.state, State::Hello) && message.len() > UNAUTHENTICATED_LIMIT {
            let text = format!("a message of {} bytes before authentication; the limit is 4096", message.len());
            return self.refuse_server(id, 0, &Refusal(ErrorCode::MessageTooLarge, text), now);
        }
        for frame in edgelink_wire::frames(message) {
            let outcome = match frame {
                Ok(frame) => self.handle_server_frame(id, &frame, now, rng).map_err(|refusal| (frame.ty, refusal)),
                Err(error) => Err((0, Refusal(error.code(), error.to_string()))),
            };
            if let Err((ty, refusal)) = outcome {
                return self.refuse_server(id, ty, &refusal, now);
            }
            if !self.servers.is_server(id) {
                return;
            }
        }
        if let Some(conn) = self.servers.conns.get_mut(&id) {
            conn.schedule(&mut self.timers);
        }
    }

    /// The connection ended, if it was a server's.
    pub(crate) fn server_disconnected(&mut self, id: ConnId, now: Now) -> bool {
        let server = self.servers.server_of(id);
        let was = self.servers.conns.remove(&id).is_some();
        if let Some(server) = server
            && let Some(hot) = self.servers.hot.get_mut(&server)
            && hot.conn == Some(id)
        {
            (hot.conn, hot.lost_at) = (None, Some(now.mono));
            tracing::info!(%server, "server disconnected");
            self.events.push_back(Event::Store(StoreOp::ServerSeen { server, online: false }));
            self.arm_sweep(now);
        }
        was
    }

    pub(crate) fn refuse_server(&mut self, id: ConnId, answers: u8, refusal: &Refusal, now: Now) {
        let authenticated = self.servers.is_authenticated(id);
        match refusal.0 {
            _ if authenticated => self.stats.bad_messages += 1,
            ErrorCode::InvalidMessage | ErrorCode::MessageTooLarge | ErrorCode::UnsupportedVersion => {
                self.stats.bad_messages += 1;
            }
            _ => self.stats.auth_failures += 1,
        }
        tracing::debug!(conn = id.0, code = refusal.0.as_u16(), reason = refusal.1, "server connection refused");
        self.send_error(id, answers, refusal);
        self.server_disconnected(id, now);
        self.events.push_back(Event::Close { conn: id });
    }

    pub(crate) fn server_timer(&mut self, id: ConnId, at: Instant, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(conn) = self.servers.conns.get_mut(&id).filter(|conn| conn.armed == Some(at)) else { return };
        conn.armed = None;
        if conn.deadline > now.mono {
            return self.timers.set(id, conn.deadline, &mut conn.armed);
        }
        let silent = conn.last_received + IDLE_TIMEOUT <= now.mono;
        match conn.ready_mut() {
            None => {
                let text = "authentication took longer than 10 s".to_owned();
                self.refuse_server(id, FrameType::AuthRequest as u8, &Refusal(ErrorCode::Unavailable, text), now);
            }
            Some(_) if silent => {
                self.server_disconnected(id, now);
                self.events.push_back(Event::Close { conn: id });
            }
            Some(ready) => {
                ready.renew_at = now.mono + self.config.mesh_token_lifetime / RENEW_AT * (RENEW_AT - 1);
                let server = ready.server;
                conn.schedule(&mut self.timers);
                let mesh_tokens = self.mesh_tokens(server, now, rng);
                self.send_server_update(id, proto::ConfigUpdate { mesh_tokens, ..Default::default() });
            }
        }
    }

    /// The set of relays changed.
    pub(crate) fn servers_changed(&mut self, now: Now) {
        self.servers.relays_dirty = true;
        self.servers.flush_at.get_or_insert(now.mono + COALESCE);
        // Whether a relay counts depends on its record.
        self.locations.mark_all();
        self.mark_all_paths(now);
        let gone: Vec<(ConnId, ServerId)> = self
            .servers
            .conns
            .keys()
            .filter_map(|id| Some((*id, self.servers.server_of(*id)?)))
            .filter(|(_, server)| !self.registry.servers.contains_key(server))
            .collect();
        for (id, server) in gone {
            let text = "this server was deleted by an administrator".to_owned();
            self.refuse_server(id, 0, &Refusal(ErrorCode::TokenRevoked, text), now);
            self.servers.hot.remove(&server);
            self.servers.deleted.insert(server);
            self.locations.withdraw_all(server);
        }
    }

    /// A node may not, or may again, be a member: relays hear of it.
    pub(crate) fn node_barred(&mut self, node: NodeId, deleted: bool, now: Now) {
        if deleted {
            self.paths.forget(node);
        }
        self.locations.mark(node);
        self.locations_changed(now);
    }

    /// Some node's place may have changed: told within [`COALESCE`].
    pub(crate) fn locations_changed(&mut self, now: Now) {
        if self.locations.is_dirty() {
            self.servers.flush_at.get_or_insert(now.mono + COALESCE);
        }
    }

    /// The relays at which a node can be reached: where it is, as far as relays may serve it.
    pub(crate) fn located(&self, node: NodeId) -> Vec<ServerId> {
        if !self.registry.nodes.get(&node).is_some_and(is_member) {
            return Vec::new();
        }
        let usable = |relay: &ServerId| self.registry.servers.get(relay).is_some_and(|s| s.enabled && s.relay);
        self.locations.of(node).filter(usable).collect()
    }

    /// Sends what was gathered to all relays.
    pub(crate) fn servers_due(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        if self.servers.flush_at.is_none_or(|at| at > now.mono) {
            return;
        }
        self.servers.flush_at = None;
        if std::mem::take(&mut self.servers.relays_dirty) {
            for (id, server, _) in self.servers.configured() {
                let update = proto::ConfigUpdate {
                    relays: Some(proto::RelayList { relays: self.relays_for(server) }),
                    mesh_tokens: self.mesh_tokens(server, now, rng),
                    ..Default::default()
                };
                self.send_server_update(id, update);
            }
        }
        let moved = self.locations.take_dirty();
        if moved.is_empty() {
            return;
        }
        for node in &moved {
            self.mark_path(*node, now);
        }
        let nodes: Vec<proto::NodeLocation> = moved.into_iter().map(|node| self.location(node)).collect();
        self.tell_servers(proto::ServerNodeLoc { nodes, full: false }.into());
    }

    /// Sends the same to every server: encoded once.
    fn tell_servers(&mut self, message: ControlMessage) {
        let Some(message) = encode(message, Flags::default()) else { return };
        for (conn, ..) in self.servers.configured() {
            self.events.push_back(Event::Send { conn, message: message.clone() });
        }
    }

    /// A token or node was revoked: every relay hears of it at once.
    pub(crate) fn blacklist(&mut self, record: &RevocationRecord, now: Now) {
        let message = proto::ServerBlacklist { revocations: vec![messages::revocation(record)], full: false };
        self.tell_servers(message.into());
        let RevocationTarget::Jti(jti) = &record.target else { return };
        let theirs = |conn: &ServerConn| matches!(&conn.state, State::Ready(ready) if ready.jti == *jti);
        let ids: Vec<ConnId> = self.servers.conns.iter().filter(|(_, conn)| theirs(conn)).map(|(id, _)| *id).collect();
        for id in ids {
            let text = "this server's token was revoked".to_owned();
            self.refuse_server(id, 0, &Refusal(ErrorCode::TokenRevoked, text), now);
        }
    }

    /// Relays whose connection was lost for too long say nothing any more.
    pub(crate) fn expire_lost_relays(&mut self, now: Now) {
        let over = |hot: &Hot| hot.lost_at.is_some_and(|at| now.mono.saturating_duration_since(at) >= KEPT);
        let lost: Vec<ServerId> =
            self.servers.hot.iter().filter(|(_, hot)| over(hot)).map(|(server, _)| *server).collect();
        for server in lost {
            if let Some(hot) = self.servers.hot.get_mut(&server) {
                hot.lost_at = None;
            }
            self.locations.withdraw_all(server);
        }
        self.locations_changed(now);
    }

    pub(crate) fn relays_lost(&self) -> bool {
        self.servers.hot.values().any(|hot| hot.lost_at.is_some())
    }

    pub(crate) fn send_hops(&mut self, relay: ServerId, next_hops: Vec<proto::NextHop>) {
        let Some(conn) = self.servers.hot.get(&relay).and_then(|hot| hot.conn) else { return };
        self.send_server_update(conn, proto::ConfigUpdate { next_hops, ..Default::default() });
    }

    fn handle_server_frame(
        &mut self,
        id: ConnId,
        frame: &Frame<'_>,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Result<(), Refusal> {
        let Some(conn) = self.servers.conns.get_mut(&id) else { return Ok(()) };
        match frame.frame_type() {
            Some(FrameType::Ping) => {
                let ping = Ping::parse(frame.payload).map_err(wire)?;
                let message = bytes::Bytes::copy_from_slice(&ping.encode(FrameType::Pong));
                self.events.push_back(Event::Send { conn: id, message });
                Ok(())
            }
            Some(FrameType::Pong) => Ok(()),
            Some(ty) if !ty.is_control() => {
                let text = format!("frame type 0x{:02x} does not belong on the server channel", frame.ty);
                Err(Refusal(ErrorCode::InvalidMessage, text))
            }
            Some(ty) => {
                if matches!(conn.state, State::Hello) && ty != FrameType::AuthRequest {
                    return Err(unexpected(frame.ty));
                }
                match conn.reassembler.push(frame) {
                    Ok(Some(received)) => self.handle_server_control(id, received, now, rng),
                    Ok(None) => Ok(()),
                    Err(error) => Err(wire(error)),
                }
            }
            None => {
                self.stats.bad_messages += 1;
                let text = format!("frame type 0x{:02x} is unknown here", frame.ty);
                self.send_error(id, frame.ty, &Refusal(ErrorCode::InvalidMessage, text));
                Ok(())
            }
        }
    }

    fn handle_server_control(
        &mut self,
        id: ConnId,
        received: Received,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Result<(), Refusal> {
        let server = self.servers.server_of(id);
        match (received.message, server) {
            (ControlMessage::AuthRequest(request), None) => self.handle_server_hello(id, &request, now),
            (ControlMessage::ServerRegister(register), Some(server)) => {
                self.handle_register(id, server, &register, now, rng);
                Ok(())
            }
            (ControlMessage::ServerNodeLoc(message), Some(server)) => {
                self.handle_node_loc(server, &message, now);
                Ok(())
            }
            (ControlMessage::LatencyReport(report), Some(server)) => {
                self.relay_report(server, &report, now);
                Ok(())
            }
            (ControlMessage::Ack(ack), Some(_)) => {
                self.handle_server_ack(id, &ack, now, rng);
                Ok(())
            }
            (ControlMessage::Error(error), Some(server)) => {
                tracing::debug!(%server, code = error.code, text = printable(&error.message), "a server reports an error");
                Ok(())
            }
            _ => Err(unexpected(received.ty as u8)),
        }
    }

    fn handle_server_hello(&mut self, id: ConnId, request: &proto::AuthRequest, now: Now) -> Result<(), Refusal> {
        if request.protocol_version != u32::from(edgelink_wire::VERSION) {
            let text =
                format!("protocol version {} is not spoken here; this controller speaks 1", request.protocol_version);
            return Err(Refusal(ErrorCode::UnsupportedVersion, text));
        }
        let claims = self.issuer.verify_server(&request.token, now.unix_secs()).map_err(|error| {
            let text = format!("{error}: make another with `edgelink-ctl server token`");
            Refusal(error.code(), text)
        })?;
        if self.registry.revoked().is_jti_revoked(&claims.jti) {
            return Err(Refusal(ErrorCode::TokenRevoked, "this server_token was revoked".to_owned()));
        }
        let server = claims.server_id;
        if !self.registry.servers.contains_key(&server) {
            let fresh = now.unix_secs().saturating_sub(claims.iat) < FRESH_SECS;
            if fresh && !self.servers.deleted.contains(&server) {
                // Added a moment ago: the change log is read every 200 ms.
                let text = format!("server {server} is not known here yet; try again in a second");
                return Err(Refusal(ErrorCode::Unavailable, text));
            }
            let text = format!("server {server} does not exist any more; add it with `edgelink-ctl server add`");
            return Err(Refusal(ErrorCode::InvalidToken, text));
        }
        let renew_at = now.mono + self.config.mesh_token_lifetime / RENEW_AT * (RENEW_AT - 1);
        let ready = Ready { server, jti: claims.jti, sent_version: None, renew_at, last_resend: None };
        if let Some(conn) = self.servers.conns.get_mut(&id) {
            conn.state = State::Ready(ready);
            conn.reassembler.set_limit(SERVER_LIMIT);
        }
        // The newest connection wins; the old one's end must not take the new one along (DESIGN §10).
        let hot = self.servers.hot.entry(server).or_default();
        hot.lost_at = None;
        if let Some(old) = hot.conn.replace(id) {
            tracing::warn!(%server, "a server connected twice; is its token in use in two places?");
            self.servers.conns.remove(&old);
            self.events.push_back(Event::Close { conn: old });
        }
        let response = proto::AuthResponse { server_id: server.0, server_time_ms: now.unix_ms, ..Default::default() };
        self.send(id, ControlMessage::AuthResponse(response), Flags::default());
        Ok(())
    }

    fn handle_register(
        &mut self,
        id: ConnId,
        server: ServerId,
        register: &proto::ServerRegister,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) {
        let Some(record) = self.registry.servers.get(&server) else { return };
        let registered = registered(record, register);
        if registered != *record {
            self.events.push_back(Event::Store(StoreOp::UpdateServer(registered)));
        }
        let mesh_url = if is_url(&register.mesh_url) { register.mesh_url.clone() } else { String::new() };
        if let Some(hot) = self.servers.hot.get_mut(&server)
            && hot.mesh_url != mesh_url
        {
            hot.mesh_url = mesh_url;
            // Others have to learn where it is.
            self.servers.relays_dirty = true;
            self.servers.flush_at.get_or_insert(now.mono + COALESCE);
        }
        tracing::info!(%server, version = printable(&register.version), "server registered");
        self.events.push_back(Event::Store(StoreOp::ServerSeen { server, online: true }));
        self.send_server_config(id, now, rng);
    }

    fn handle_node_loc(&mut self, server: ServerId, message: &proto::ServerNodeLoc, now: Now) {
        // Only of nodes that exist, in the network that they are in: a relay cannot place others, nor fill our memory.
        let ours = |entry: &&proto::NodeLocation| {
            let record = self.registry.nodes.get(&NodeId(entry.node_id));
            record.is_some_and(|record| record.network_id.0 == entry.network_id)
        };
        let here: BTreeSet<NodeId> = message
            .nodes
            .iter()
            .filter(|entry| !entry.relay_ids.is_empty())
            .filter(ours)
            .map(|entry| NodeId(entry.node_id))
            .collect();
        if message.full {
            self.locations.claim_all(server, &here, now.mono);
        } else {
            here.iter().for_each(|node| self.locations.claim(server, *node, now.mono));
            for entry in message.nodes.iter().filter(|entry| entry.relay_ids.is_empty()) {
                self.locations.withdraw(server, NodeId(entry.node_id));
            }
        }
        self.locations_changed(now);
    }

    fn handle_server_ack(&mut self, id: ConnId, ack: &proto::Ack, now: Now, rng: &mut impl rand_core::Rng) {
        if ack.error.is_empty() {
            return;
        }
        self.stats.config_errors += 1;
        let Some(ready) = self.servers.conns.get_mut(&id).and_then(ServerConn::ready_mut) else { return };
        tracing::debug!(server = %ready.server, error = printable(&ack.error), "a server could not apply its configuration");
        if ready.last_resend.is_none_or(|at| now.mono.saturating_duration_since(at) >= RESEND_INTERVAL) {
            ready.last_resend = Some(now.mono);
            self.send_server_config(id, now, rng);
        }
    }
}

/// The record as the server itself says it is. What it may do is an administrator's to say; where it is, and whether that
/// runs at all, its own.
fn registered(record: &ServerRecord, register: &proto::ServerRegister) -> ServerRecord {
    let mut updated = record.clone();
    if record.kind == ServerKind::Builtin {
        return updated;
    }
    let says = &register.capabilities;
    // Who says nothing does what its record says.
    let runs = |what: &str| says.is_empty() || says.iter().any(|capability| capability == what);
    if !runs("relay") {
        updated.url = None;
    } else if is_url(&register.public_url) {
        updated.url = Some(register.public_url.clone());
    }
    if !runs("stun") {
        (updated.stun_ip, updated.stun_ip2) = (None, None);
    } else if let Some(ip) = address(&register.stun_ip) {
        updated.stun_ip = Some(ip);
        updated.stun_ip2 = address(&register.stun_ip2);
    }
    if let Ok(port @ 1..) = u16::try_from(register.stun_port) {
        updated.stun_port = port;
    }
    updated
}

fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("wss://").or_else(|| url.strip_prefix("ws://"));
    rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_graphic())) && url.len() <= MAX_URL
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_are_taken_for_urls() {
        assert!(is_url("wss://r.example.com/ws/data") && is_url("ws://[::1]:80/x"));
        for bad in ["", "wss://", "https://x", "wss://a b", "wss://é", &format!("wss://{}", "a".repeat(255))] {
            assert!(!is_url(bad), "{bad}");
        }
    }
}
