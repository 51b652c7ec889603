//! Tokens: JWTs that the controller makes, and that it and the relays verify (specification §4, DESIGN §3).
//!
//! | token | `type` | `aud` | signed by | verified by |
//! |---|---|---|---|---|
//! | auth | `auth` | `edgelink-controller` | the installation's key; with HS256 an internal secret | controller |
//! | admin | `admin` | `edgelink-api` | likewise | controller |
//! | relay | `relay` | `edgelink-relay` | the installation's key; with HS256 the configured secret | every relay |
//! | server | `server` | `edgelink-controller` | RELAY_AUTH_KEY (Ed25519) | controller |
//! | mesh | `mesh` | `edgelink-relay/<id dialled>` | RELAY_AUTH_KEY (Ed25519) | that relay |
//!
//! One algorithm per installation is pinned when a key is loaded; the header's `alg` is compared with it and never
//! chooses anything. `exp`, `nbf` and `iat` are checked against the caller's time with [`LEEWAY_SECS`].

mod issuer;
mod jwt;
mod keys;
mod relay_verifier;
mod revocations;

pub use issuer::Issuer;
pub use keys::{KeyError, TokenKeys};
pub use relay_verifier::RelayVerifier;
pub use revocations::Revocations;

use crate::MachinePublic;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edgelink_model::records::ServerRecord;
use edgelink_model::{ErrorCode, NetworkId, NodeId, ServerId};
use rand_core::Rng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// How far the clocks of issuer and verifier may differ, in seconds.
pub const LEEWAY_SECS: u64 = 60;
/// The longest token that is looked at, in bytes: it must fit a frame of 4 KiB before authentication (DESIGN §6).
pub const MAX_TOKEN_LEN: usize = 4_000;

/// How an installation signs tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Ed25519; the default when nothing is configured.
    EdDsa,
    /// HMAC-SHA256 with a secret that relays share.
    Hs256,
    /// RSA PKCS#1 v1.5 with SHA-256, at least 2048 bits.
    Rs256,
}

impl Algorithm {
    /// The name in JWT headers, configuration and `RelayKeys`.
    pub fn name(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Hs256 => "HS256",
            Self::Rs256 => "RS256",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = KeyError;

    fn from_str(name: &str) -> Result<Self, KeyError> {
        [Self::EdDsa, Self::Hs256, Self::Rs256]
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| KeyError::UnknownAlgorithm(name.chars().take(20).collect()))
    }
}

/// 128 random bits in hex, for `jti`.
pub fn new_jti(rng: &mut (impl Rng + ?Sized)) -> String {
    let mut bytes = [0; 16];
    rng.fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// A node's proof towards the controller (specification §4.2). Times are Unix seconds in all claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthClaims {
    /// The node.
    pub node_id: NodeId,
    /// [`MachinePublic::fingerprint`] of its machine key.
    pub machine_key_hash: String,
    /// Its network.
    pub network_id: NetworkId,
    /// Its overlay address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_ip: Option<Ipv4Addr>,
    /// Issued at.
    pub iat: u64,
    /// Expires at.
    pub exp: u64,
    /// Names the token, for revocation.
    pub jti: String,
}

impl AuthClaims {
    /// Claims for a node.
    pub fn new(
        node_id: NodeId,
        machine: &MachinePublic,
        network_id: NetworkId,
        virtual_ip: Option<Ipv4Addr>,
        iat: u64,
        exp: u64,
        jti: String,
    ) -> Self {
        Self { node_id, machine_key_hash: machine.fingerprint(), network_id, virtual_ip, iat, exp, jti }
    }
}

/// A node's right to use relays (specification §4.2), bound to its machine key (DESIGN §3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayClaims {
    /// The node.
    pub node_id: NodeId,
    /// Its network: frames stay inside.
    pub network_id: NetworkId,
    /// The relays that may serve it.
    pub allowed_relays: Vec<ServerId>,
    /// The key whose holder may use the token (RFC 7800): the relay demands its signature.
    pub cnf: Confirmation,
    /// Issued at.
    pub iat: u64,
    /// Expires at.
    pub exp: u64,
    /// Names the token, for revocation.
    pub jti: String,
}

impl RelayClaims {
    /// Claims for a node.
    pub fn new(
        node_id: NodeId,
        machine: &MachinePublic,
        network_id: NetworkId,
        allowed_relays: Vec<ServerId>,
        iat: u64,
        exp: u64,
        jti: String,
    ) -> Self {
        Self { node_id, network_id, allowed_relays, cnf: Confirmation(*machine), iat, exp, jti }
    }
}

/// An administrator's session at the REST API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminClaims {
    /// Row of `admins`.
    pub admin_id: u32,
    /// Name, for logs and the audit trail.
    pub username: String,
    /// Issued at.
    pub iat: u64,
    /// Expires at.
    pub exp: u64,
    /// Names the token; logout revokes it.
    pub jti: String,
}

/// A stand-alone server's identity towards the controller (specification §4.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerClaims {
    /// Row of `servers`.
    pub server_id: ServerId,
    /// Its name.
    pub server_name: String,
    /// `relay`, `stun`.
    pub capabilities: Vec<String>,
    /// Free text.
    pub region: String,
    /// Issued at.
    pub iat: u64,
    /// Expires at.
    pub exp: u64,
    /// Names the token, for revocation.
    pub jti: String,
}

impl ServerClaims {
    /// Claims for a server as its record describes it; times in Unix seconds.
    pub fn new(record: &ServerRecord, iat: u64, exp: u64, jti: String) -> Self {
        let functions = [(record.relay, "relay"), (record.stun, "stun")];
        let capabilities = functions.into_iter().filter(|(has, _)| *has).map(|(_, name)| name.to_owned()).collect();
        let (server_id, server_name, region) = (record.id, record.name.clone(), record.region.clone());
        Self { server_id, server_name, capabilities, region, iat, exp, jti }
    }

    /// What a server_token says, **unverified**: for the server that holds it and cannot verify it, to learn who it is.
    pub fn peek(token: &str) -> Option<Self> {
        jwt::peek(token)
    }
}

/// A relay's right to dial one other relay; which one is the token's audience (DESIGN §3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshClaims {
    /// The relay that dials.
    pub server_id: ServerId,
    /// Issued at.
    pub iat: u64,
    /// Expires at.
    pub exp: u64,
    /// Names the token, for revocation.
    pub jti: String,
}

/// The `cnf` claim: a machine key as JWK, `{"jwk":{"kty":"OKP","crv":"Ed25519","x":…}}` (RFC 7800 §3.2, RFC 8037 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirmation(pub MachinePublic);

#[derive(Serialize, Deserialize)]
struct Cnf {
    jwk: Jwk,
}

#[derive(Serialize, Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
}

impl Serialize for Confirmation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let x = URL_SAFE_NO_PAD.encode(self.0.0);
        Cnf { jwk: Jwk { kty: "OKP".to_owned(), crv: "Ed25519".to_owned(), x } }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Confirmation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Cnf { jwk } = Cnf::deserialize(deserializer)?;
        let key = URL_SAFE_NO_PAD.decode(&jwk.x).ok().and_then(|x| x.try_into().ok());
        match key {
            Some(key) if jwk.kty == "OKP" && jwk.crv == "Ed25519" => Ok(Self(MachinePublic(key))),
            _ => Err(serde::de::Error::custom("cnf is no Ed25519 key")),
        }
    }
}

/// Why a token is refused. Nothing of the token is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Form, signature, algorithm, type, audience or claims are wrong.
    #[error("invalid token")]
    Invalid,
    /// `exp` (plus leeway and grace) has passed.
    #[error("token expired")]
    Expired,
    /// `nbf` or `iat` lie in the future by more than the leeway.
    #[error("token is not valid yet; is a clock wrong?")]
    NotYetValid,
    /// The token, or every token of its node, was revoked.
    #[error("token revoked")]
    Revoked,
    /// `allowed_relays` does not name this relay.
    #[error("token is not for this relay")]
    OtherRelay,
    /// The token could not be made (a broken signing key).
    #[error("the token could not be signed")]
    Signing,
}

impl TokenError {
    /// The code for an ERROR frame or REST problem (specification §8.4).
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Invalid | Self::NotYetValid | Self::OtherRelay => ErrorCode::InvalidToken,
            Self::Expired => ErrorCode::TokenExpired,
            Self::Revoked => ErrorCode::TokenRevoked,
            Self::Signing => ErrorCode::Internal,
        }
    }
}
