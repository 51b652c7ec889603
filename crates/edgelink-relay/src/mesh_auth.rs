//! AUTH on `/ws/mesh`: a mesh token made for the relay that is dialled opens the link (DESIGN §3).
//!
//! `AUTH_REQUEST{protocol_version, token}` → `AUTH_RESPONSE{server_id}`. A dialler that knows a URL only (a configured
//! `mesh.peers`) sends a request without a token first, learns from the answer whose URL it is, and shows the token for
//! that relay in a second one. Anything else ends with an ERROR and a close. Later, an AUTH_REQUEST with a fresh token
//! prolongs the link.

use crate::connection::{Connection, State, TokenFacts};
use crate::event::{CloseReason, ConnId};
use crate::handshake::{ANSWERS, auth_request};
use crate::mesh::Key;
use crate::relay::Relay;
use crate::stats::DropReason;
use edgelink_model::{ErrorCode, Now, ServerId};
use edgelink_wire::control::proto;
use edgelink_wire::{Flags, Frame, FrameType, VERSION, WireError};
use prost::Message;

impl Relay {
    /// A frame on a connection to `/ws/mesh` that is not authenticated yet.
    pub(crate) fn handle_mesh_handshake(&mut self, conn: ConnId, frame: &Frame<'_>, now: Now) -> Result<(), WireError> {
        let outcome = match self.get(conn).map(|connection| &connection.state) {
            Some(State::MeshAccepted { .. }) => {
                let request = auth_request(frame)?;
                self.accept_mesh(conn, &request, now)
            }
            Some(State::MeshDialled(_)) => match frame.frame_type() {
                Some(FrameType::AuthResponse) => {
                    let response = auth_response(frame)?;
                    self.handle_mesh_response(conn, &response, now)
                }
                Some(FrameType::Error) => {
                    let code = proto::Error::decode(frame.payload).ok().and_then(|error| error.error_code());
                    let code = code.unwrap_or(ErrorCode::Unavailable);
                    tracing::debug!(%conn, %code, "a relay refuses to link");
                    self.close(conn, CloseReason::Refused(code), None, now);
                    return Ok(());
                }
                Some(other) => return Err(WireError::UnexpectedType(other)),
                None => return Err(WireError::UnknownType(frame.ty)),
            },
            _ => return Ok(()),
        };
        if let Err(code) = outcome {
            tracing::debug!(%conn, %code, "mesh authentication failed");
            let error = proto::Error::new(code, ANSWERS, code.describe());
            self.close(conn, CloseReason::Refused(code), Some(&error), now);
        }
        Ok(())
    }

    fn accept_mesh(&mut self, conn: ConnId, request: &proto::AuthRequest, now: Now) -> Result<(), ErrorCode> {
        if request.protocol_version != u32::from(VERSION) {
            return Err(ErrorCode::UnsupportedVersion);
        }
        if request.token.is_empty() {
            self.send_mesh_response(conn, now);
            return Ok(());
        }
        let (peer, token) = self.verify_mesh(&request.token, now)?;
        self.no_longer_unauthenticated(conn);
        self.stats.authentications += 1;
        self.send_mesh_response(conn, now);
        self.link_up(conn, peer, None, Some(token), now);
        Ok(())
    }

    /// The dialled relay says who it is.
    fn handle_mesh_response(
        &mut self,
        conn: ConnId,
        response: &proto::AuthResponse,
        now: Now,
    ) -> Result<(), ErrorCode> {
        let peer = ServerId(response.server_id);
        let Some(State::MeshDialled(dialled)) = self.get(conn).map(|connection| &connection.state) else {
            return Ok(());
        };
        let (key, shown_to) = (dialled.key, dialled.shown_to);
        match shown_to {
            Some(shown_to) if shown_to == peer => {
                self.link_up(conn, peer, Some(key), None, now);
            }
            Some(shown_to) => {
                tracing::warn!(expected = %shown_to, got = %peer, "a relay's URL leads to another relay; not linked");
                self.close(conn, CloseReason::NotWanted, None, now);
            }
            None => {
                let Some(token) = self.mesh.tokens.get(&peer).map(|token| token.token.clone()) else {
                    let Key::Static(n) = key else { return Ok(()) };
                    tracing::debug!(relay = %peer, n, "no token for the relay at a configured URL; tried again");
                    self.close(conn, CloseReason::NotWanted, None, now);
                    return Ok(());
                };
                if let Some(State::MeshDialled(dialled)) = self.get_mut(conn).map(|connection| &mut connection.state) {
                    dialled.shown_to = Some(peer);
                }
                self.send_mesh_token(conn, token, now);
            }
        }
        Ok(())
    }

    /// AUTH_REQUEST on a link: a fresh token for the same relay. A bad one is answered, and the link lives on until its
    /// former token ends.
    pub(crate) fn refresh_mesh(&mut self, conn: ConnId, frame: &Frame<'_>, now: Now) -> Result<(), WireError> {
        let request = auth_request(frame)?;
        let rate = self.config.limits.refreshes;
        if !self.get_mut(conn).is_some_and(|connection| connection.refreshes.allow(rate, now.mono)) {
            self.stats.drops.add(DropReason::RateLimited, 1);
            return Ok(());
        }
        let outcome = self.verify_mesh(&request.token, now).and_then(|(peer, token)| {
            let link = self.get_mut(conn).and_then(Connection::link_mut).ok_or(ErrorCode::Internal)?;
            if link.peer != peer {
                return Err(ErrorCode::InvalidToken);
            }
            if link.token.as_ref().is_some_and(|old| old.expires <= token.expires) {
                link.token = Some(token);
            }
            Ok(())
        });
        match outcome {
            Ok(()) => self.stats.refreshes += 1,
            Err(code) => self.send_error(conn, &proto::Error::new(code, ANSWERS, code.describe()), now),
        }
        Ok(())
    }

    /// Signature, kind, audience, expiry, revocations, and whether the controller still lists the relay.
    fn verify_mesh(&self, token: &str, now: Now) -> Result<(ServerId, TokenFacts), ErrorCode> {
        let claims = self
            .verifier
            .verify_mesh(token, self.config.id, now.unix_secs(), self.grace(now).now().as_secs())
            .map_err(|error| error.code())?;
        if self.revocations.is_jti_revoked(&claims.jti) {
            return Err(ErrorCode::TokenRevoked);
        }
        let peer = claims.server_id;
        let listed = self.mesh.known.as_ref().is_none_or(|known| known.contains(&peer));
        if peer == self.config.id || !listed {
            return Err(ErrorCode::InvalidToken);
        }
        Ok((peer, claims.into()))
    }

    pub(crate) fn send_mesh_token(&mut self, conn: ConnId, token: String, now: Now) {
        let request = proto::AuthRequest { protocol_version: VERSION.into(), token, ..Default::default() };
        self.send_message(conn, &request, now);
    }

    fn send_mesh_response(&mut self, conn: ConnId, now: Now) {
        let response =
            proto::AuthResponse { server_time_ms: now.unix_ms, server_id: self.config.id.0, ..Default::default() };
        self.send_message(conn, &response, now);
    }
}

fn auth_response(frame: &Frame<'_>) -> Result<proto::AuthResponse, WireError> {
    let ty = FrameType::AuthResponse;
    if frame.flags.contains(Flags::COMPRESSED) || frame.flags.contains(Flags::MORE) {
        return Err(WireError::BadFlags(ty));
    }
    proto::AuthResponse::decode(frame.payload).map_err(|source| WireError::Protobuf { ty, source })
}
