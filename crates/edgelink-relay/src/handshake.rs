//! AUTH on `/ws/data` (DESIGN §3): the token is ours to accept, the machine key in it answers our challenge.
//!
//! `AUTH_REQUEST{token, machine_pub}` → `AUTH_RESPONSE{challenge}` → `AUTH_REQUEST{signature}` →
//! `AUTH_RESPONSE{observed_ip}`. Whatever fails before the end is answered with an ERROR and a close. Later, an
//! AUTH_REQUEST with a fresh token alone prolongs the connection, which is bound to the machine key already.

use crate::connection::{Offer, Session, State};
use crate::event::{CloseReason, ConnId, RelayEvent};
use crate::relay::Relay;
use crate::stats::DropReason;
use bytes::Bytes;
use edgelink_auth::challenge;
use edgelink_model::{ErrorCode, Now};
use edgelink_wire::control::proto;
use edgelink_wire::{Flags, Frame, FrameType, HEADER_LEN, VERSION, WireError, frames};
use prost::Message;
use std::net::IpAddr;

pub(crate) const ANSWERS: u8 = FrameType::AuthRequest as u8;

impl Relay {
    /// A message on a connection that is not authenticated yet.
    pub(crate) fn handle_handshake(&mut self, conn: ConnId, message: &Bytes, now: Now) {
        let limit = self.config.limits.handshake_frame.saturating_sub(HEADER_LEN);
        let mut end = 0;
        for frame in frames(message).max_payload(limit) {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return self.close_for(conn, &error, 0, now),
            };
            end += frame.raw.len();
            let outcome = match self.get(conn).map(|connection| &connection.state) {
                Some(State::Handshake(_)) => {
                    auth_request(&frame).map(|request| self.handle_auth_request(conn, &request, now))
                }
                _ => self.handle_mesh_handshake(conn, &frame, now),
            };
            if let Err(error) = outcome {
                return self.close_for(conn, &error, frame.ty, now);
            }
            match self.get(conn).map(|connection| &connection.state) {
                Some(State::Handshake(_) | State::MeshAccepted { .. } | State::MeshDialled(_)) => {}
                // What the other side sent right behind its proof.
                Some(State::Open(_) | State::Mesh(_)) if end < message.len() => {
                    return self.handle_frames(conn, &message.slice(end..), now);
                }
                _ => return,
            }
        }
    }

    fn handle_auth_request(&mut self, conn: ConnId, request: &proto::AuthRequest, now: Now) {
        let Some(connection) = self.get_mut(conn) else { return };
        connection.last_frame = now.mono;
        let State::Handshake(handshake) = &mut connection.state else { return };
        let outcome = match handshake.offer.take() {
            None => self.take_offer(conn, request, now),
            Some(offer) => self.take_proof(conn, offer, &request.signature, now),
        };
        if let Err(code) = outcome {
            tracing::debug!(%conn, %code, "authentication failed");
            let error = proto::Error::new(code, ANSWERS, code.describe());
            self.close(conn, CloseReason::Refused(code), Some(&error), now);
        }
    }

    /// First request: a token, and the machine key that it is bound to.
    fn take_offer(&mut self, conn: ConnId, request: &proto::AuthRequest, now: Now) -> Result<(), ErrorCode> {
        if request.protocol_version != u32::from(VERSION) {
            return Err(ErrorCode::UnsupportedVersion);
        }
        let session = self.verify(&request.token, now)?;
        if request.machine_pub != session.machine.0 {
            return Err(ErrorCode::InvalidMachineKey);
        }
        let server_id = self.config.id;
        let Some(State::Handshake(handshake)) = self.get_mut(conn).map(|connection| &mut connection.state) else {
            return Ok(());
        };
        let statement = challenge::relay_message(server_id, &request.token, &handshake.challenge);
        let response = proto::AuthResponse {
            challenge: handshake.challenge.to_vec(),
            server_time_ms: now.unix_ms,
            server_id: server_id.0,
            ..Default::default()
        };
        handshake.offer = Some(Offer { session, statement });
        self.send_message(conn, &response, now);
        Ok(())
    }

    /// Second request: the signature.
    fn take_proof(&mut self, conn: ConnId, offer: Offer, signature: &[u8], now: Now) -> Result<(), ErrorCode> {
        let Offer { session, statement } = offer;
        session.machine.verify(&statement, signature).map_err(|_| ErrorCode::BadSignature)?;
        // Revoked while the challenge was on its way?
        if self.revocations.is_revoked(&session.token.jti, session.node, session.token.issued) {
            return Err(ErrorCode::TokenRevoked);
        }
        self.no_longer_unauthenticated(conn);
        let (node, network) = (session.node, session.network);
        let replaced = self.nodes.insert(node, conn);
        if let Some(connection) = self.get_mut(conn) {
            connection.state = State::Open(Box::new(session));
        }
        self.stats.authentications += 1;
        tracing::debug!(%conn, %node, %network, "node authenticated");
        self.send_outcome(conn, now);
        if let Some(former) = replaced {
            self.hand_over(former, conn, now);
        }
        self.events.push_back(RelayEvent::NodeConnected { conn, node, network, replaced });
        self.node_moved(node, now);
        Ok(())
    }

    /// The node is back before its former connection was found dead: what waited there goes out here.
    fn hand_over(&mut self, former: ConnId, conn: ConnId, now: Now) {
        if let Ok([old, new]) = self.connections.get_disjoint_mut([former.slot, conn.slot]) {
            new.queue.inherit(&mut old.queue);
        }
        self.close(former, CloseReason::Replaced, None, now);
    }

    /// AUTH_REQUEST on an authenticated connection: a fresh token. A bad one is answered with an ERROR, and the
    /// connection lives on until its former token ends.
    pub(crate) fn handle_refresh(&mut self, conn: ConnId, frame: &Frame<'_>, now: Now) -> Result<(), WireError> {
        let request = auth_request(frame)?;
        let rate = self.config.limits.refreshes;
        if !self.get_mut(conn).is_some_and(|connection| connection.refreshes.allow(rate, now.mono)) {
            self.stats.drops.add(DropReason::RateLimited, 1);
            return Ok(());
        }
        let outcome = self.verify(&request.token, now).and_then(|fresh| self.refresh(conn, fresh));
        match outcome {
            Ok(()) => {
                self.stats.refreshes += 1;
                self.send_outcome(conn, now);
            }
            Err(code) => self.send_error(conn, &proto::Error::new(code, ANSWERS, code.describe()), now),
        }
        Ok(())
    }

    fn refresh(&mut self, conn: ConnId, fresh: Session) -> Result<(), ErrorCode> {
        let Some(State::Open(session)) = self.get_mut(conn).map(|connection| &mut connection.state) else {
            return Ok(());
        };
        if fresh.machine != session.machine {
            return Err(ErrorCode::InvalidMachineKey);
        }
        if (fresh.node, fresh.network) != (session.node, session.network) {
            return Err(ErrorCode::InvalidToken);
        }
        // An older one would only shorten what is granted already.
        if fresh.token.expires >= session.token.expires {
            session.token = fresh.token;
        }
        Ok(())
    }

    /// Signature, kind, audience, expiry and revocations.
    fn verify(&self, token: &str, now: Now) -> Result<Session, ErrorCode> {
        let claims = self
            .verifier
            .verify(token, self.config.id, now.unix_secs(), self.grace(now).now().as_secs())
            .map_err(|error| error.code())?;
        let (node, network) = (claims.node_id, claims.network_id);
        if self.revocations.is_revoked(&claims.jti, node, claims.iat) {
            return Err(ErrorCode::TokenRevoked);
        }
        Ok(Session { node, network, machine: claims.cnf.0, token: claims.into() })
    }

    fn send_outcome(&mut self, conn: ConnId, now: Now) {
        let remote = self.get(conn).and_then(|connection| connection.remote);
        let response = proto::AuthResponse {
            server_time_ms: now.unix_ms,
            server_id: self.config.id.0,
            observed_ip: remote.map(octets).unwrap_or_default(),
            ..Default::default()
        };
        self.send_message(conn, &response, now);
    }
}

/// Reads an AUTH_REQUEST. It holds a token, so it is never compressed, and it fits one frame, so it is never split.
pub(crate) fn auth_request(frame: &Frame<'_>) -> Result<proto::AuthRequest, WireError> {
    let ty = FrameType::AuthRequest;
    match frame.frame_type() {
        Some(FrameType::AuthRequest) => {}
        Some(other) => return Err(WireError::UnexpectedType(other)),
        None => return Err(WireError::UnknownType(frame.ty)),
    }
    if frame.flags.contains(Flags::COMPRESSED) || frame.flags.contains(Flags::MORE) {
        return Err(WireError::BadFlags(ty));
    }
    proto::AuthRequest::decode(frame.payload).map_err(|source| WireError::Protobuf { ty, source })
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
