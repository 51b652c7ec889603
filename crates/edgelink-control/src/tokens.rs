//! Nodes' tokens: made at admission, renewed before they end, shown at the next authentication, revoked
//! (specification §4, DESIGN §3).

use crate::channel::Refusal;
use crate::connections::{Conn, Ready};
use crate::fanout::COALESCE;
use crate::{ConnId, Control, ControlConfig};
use edgelink_auth::MachinePublic;
use edgelink_auth::token::{AuthClaims, RelayClaims, TokenError, new_jti};
use edgelink_model::records::{NodeRecord, RevocationTarget};
use edgelink_model::{ErrorCode, NodeId, Now};
use edgelink_wire::Flags;
use edgelink_wire::control::{ControlMessage, proto};
use std::time::{Duration, Instant};

/// How long before their end tokens are renewed (specification §4.3), but not before three quarters of their life.
const RELAY_REFRESH_BEFORE: Duration = Duration::from_secs(15 * 60);
const AUTH_REFRESH_BEFORE: Duration = Duration::from_secs(2 * 3600);
/// A token that could not be signed is tried again so much later; the living one still has some minutes.
const RETRY: Duration = Duration::from_secs(60);
/// As many tokens are renewed in one turn: with RS256 that is some 50 ms.
pub(crate) const RENEWED_PER_TURN: usize = 64;

/// What a connection remembers of its node's tokens.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// The newest auth_token: its name and when it was issued, Unix seconds.
    auth_jti: String,
    auth_iat: u64,
    /// When each is renewed; `None` before the first one.
    auth_due: Option<Instant>,
    relay_due: Option<Instant>,
}

impl Held {
    /// When the next of them is to be renewed.
    pub(crate) fn due(&self) -> Option<Instant> {
        [self.auth_due, self.relay_due].into_iter().flatten().min()
    }

    /// Renews both, or only the relay_token, now.
    pub(crate) fn expire(&mut self, both: bool, now: Instant) {
        self.relay_due = Some(now);
        if both {
            self.auth_due = Some(now);
        }
    }
}

impl Control {
    /// Verifies the auth_token that a machine shows: then it is the node that it was, and needs no database. One that
    /// shows none is looked up there, which is how a node authenticates anew.
    pub(crate) fn check_auth_token(&self, token: &str, machine: &MachinePublic, now: Now) -> Result<(), Refusal> {
        let refusal = |error: TokenError| {
            Refusal(error.code(), format!("the auth_token is refused ({error}); authenticate without it"))
        };
        let claims = self.issuer.verify_auth(token, now.unix_secs()).map_err(refusal)?;
        // Whom the machine key belongs to now; a node that was deleted may knock again.
        let record = self.registry.node_by_machine(&machine.0);
        let theirs = claims.machine_key_hash == machine.fingerprint()
            && record.is_none_or(|node| (node.id, node.network_id) == (claims.node_id, claims.network_id));
        if !theirs {
            return Err(refusal(TokenError::Invalid));
        }
        if self.registry.revoked().is_revoked(&claims.jti, claims.node_id, claims.iat) {
            return Err(refusal(TokenError::Revoked));
        }
        Ok(())
    }

    /// Fresh tokens for a connection: those that are due, the others left empty. `None` when they cannot be signed.
    pub(crate) fn mint_tokens(
        &self,
        record: &NodeRecord,
        held: &mut Held,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Option<proto::Tokens> {
        let machine = MachinePublic(record.machine_key_pub);
        // Not before the node's last revocation, which would void the tokens of a node that was admitted again at once.
        let iat = self.registry.revoked().issued_before(record.id).max(now.unix_secs());
        let is_due = |due: Option<Instant>| due.is_none_or(|at| at <= now.mono);
        let ControlConfig { auth_token_lifetime, relay_token_lifetime, .. } = self.config;
        let mut tokens = proto::Tokens::default();
        let mut fresh = Held { auth_jti: held.auth_jti.clone(), ..*held };
        if is_due(held.auth_due) {
            let (jti, exp) = (new_jti(rng), iat + auth_token_lifetime.as_secs());
            let claims =
                AuthClaims::new(record.id, &machine, record.network_id, record.virtual_ip, iat, exp, jti.clone());
            tokens.auth_token = signed(self.issuer.auth(&claims))?;
            tokens.auth_expires = exp;
            let due = Some(now.mono + lead(auth_token_lifetime, AUTH_REFRESH_BEFORE));
            fresh = Held { auth_jti: jti, auth_iat: iat, auth_due: due, ..fresh };
        }
        if is_due(held.relay_due) {
            let (jti, exp) = (new_jti(rng), iat + relay_token_lifetime.as_secs());
            let relays = self.registry.servers.values().filter(|s| s.enabled && s.relay).map(|s| s.id).collect();
            let claims = RelayClaims::new(record.id, &machine, record.network_id, relays, iat, exp, jti);
            tokens.relay_token = signed(self.issuer.relay(&claims))?;
            tokens.relay_expires = exp;
            fresh.relay_due = Some(now.mono + lead(relay_token_lifetime, RELAY_REFRESH_BEFORE));
        }
        *held = fresh;
        Some(tokens)
    }

    /// A token of this connection's node is due.
    pub(crate) fn refresh_tokens(&mut self, id: ConnId, node: NodeId, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(record) = self.registry.nodes.get(&node).cloned() else { return };
        let Some(mut held) = self.ready_mut(id).map(|ready| std::mem::take(&mut ready.tokens)) else { return };
        let minted = self.mint_tokens(&record, &mut held, now, rng);
        if minted.is_none() {
            let later = Some(now.mono + RETRY);
            (held.auth_due, held.relay_due) = (held.auth_due.max(later), held.relay_due.max(later));
        }
        let Some(ready) = self.ready_mut(id) else { return };
        ready.tokens = held;
        let version = ready.sent_version;
        if let Some(conn) = self.conns.get_mut(id) {
            conn.schedule(&mut self.timers);
        }
        // Before its first CONFIG a node has had no time to need others.
        if let (Some(tokens), Some(version)) = (minted, version) {
            let tokens = Some(tokens);
            let update = proto::ConfigUpdate { from_version: version, version, tokens, ..Default::default() };
            self.send(id, ControlMessage::ConfigUpdate(update), Flags::default());
        }
    }

    /// Tokens name the relays that they are for: when those change, every node gets fresh ones at once (DESIGN §3);
    /// `both` when lifetimes have changed.
    pub(crate) fn renew_all_tokens(&mut self, both: bool, now: Now) {
        for conn in self.conns.ready_mut() {
            if let Some(ready) = conn.ready_mut() {
                ready.tokens.expire(both, now.mono);
                conn.schedule(&mut self.timers);
            }
        }
    }

    /// Ends the connections whose auth_token has been revoked; their nodes authenticate anew. One that has lost its
    /// membership by the same change goes on waiting.
    pub(crate) fn end_revoked(&mut self, now: Now) {
        for target in std::mem::take(&mut self.revoked) {
            let theirs: Vec<ConnId> = match target {
                RevocationTarget::Node { node_id, .. } => self.conns.of_node(node_id),
                RevocationTarget::Jti(jti) => {
                    self.conns.ready().filter(|(_, ready)| ready.tokens.auth_jti == jti).map(|(id, _)| id).collect()
                }
            };
            for id in theirs {
                let Some(Ready { node, tokens, .. }) = self.conns.get(id).and_then(Conn::ready) else {
                    continue;
                };
                if self.registry.revoked().is_revoked(&tokens.auth_jti, *node, tokens.auth_iat) {
                    let text = "this node's auth_token was revoked; authenticate anew".to_owned();
                    self.refuse(id, 0, Refusal(ErrorCode::TokenRevoked, text), now);
                }
            }
        }
    }
}

fn signed(token: Result<String, TokenError>) -> Option<String> {
    token.inspect_err(|error| tracing::error!(%error, "tokens could not be signed")).ok()
}

fn lead(lifetime: Duration, before: Duration) -> Duration {
    lifetime.saturating_sub(before.min(lifetime / 4)).max(COALESCE)
}
