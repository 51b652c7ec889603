//! REST objects; field names are the column names of specification §9.2 (DESIGN §8). `edgelink-ctl --json` prints the same.
//!
//! Moments are RFC 3339 in UTC with milliseconds ([`Timestamp`]), keys are lower-case hex; what is not known is `null`.

mod problem;
mod requests;
mod timestamp;

pub use problem::Problem;
pub use requests::*;
pub use timestamp::Timestamp;

use serde::{Deserialize, Serialize};
use std::fmt;

/// A virtual network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Network {
    /// Row id.
    pub id: u32,
    /// Unique name.
    pub name: String,
    /// IPv4 prefix, such as `10.100.0.0/16`.
    pub subnet: String,
    /// IPv6 ULA prefix.
    pub subnet6: Option<String>,
    /// Free text.
    pub description: String,
    /// How many nodes it has, authorized or not.
    pub nodes: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Node {
    /// Row id.
    pub id: u32,
    /// The network that it belongs to.
    pub network_id: u32,
    /// Name, unique in its network.
    pub name: String,
    /// Ed25519 public key.
    pub machine_key_pub: String,
    /// X25519 public key.
    pub node_key_pub: Option<String>,
    /// When that was announced.
    pub node_key_updated_at: Option<Timestamp>,
    /// Overlay address; `null` until the node is authorized.
    pub virtual_ip: Option<String>,
    /// Overlay IPv6 address.
    pub virtual_ip6: Option<String>,
    /// What the node says of its host.
    pub hostname: String,
    /// Such as `linux`.
    pub os: String,
    /// Such as `x86_64`.
    pub arch: String,
    /// EdgeLink version.
    pub version: String,
    /// One of the names of specification §6.1.
    pub nat_type: Option<String>,
    /// Connected to the controller.
    pub online: bool,
    /// When it was last connected.
    pub last_seen: Option<Timestamp>,
    /// May it join?
    pub authorized: bool,
    /// When it first knocked.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Endpoints and direct paths; only where one node is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p2p: Option<NodeP2p>,
}

/// What a node says of its direct paths (specification §6).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeP2p {
    /// Where it may be reached, the best first.
    pub endpoints: Vec<NodeEndpoint>,
    /// Peers that it talks with, as it said last; nothing of a node that is not connected to this controller.
    pub peers: Vec<PeerPath>,
}

/// An address at which a node may be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeEndpoint {
    /// `lan`, `stun`, `upnp` or `relay`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `ADDRESS:PORT`
    pub address: String,
    /// 1 (best) to 3.
    pub priority: u8,
}

/// How a node reaches a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PeerPath {
    /// The peer.
    pub node_id: u32,
    /// Is there a direct path?
    pub connected: bool,
    /// Where the peer is reached, when there is: `ADDRESS:PORT`.
    pub endpoint: Option<String>,
    /// Round trip over it, in ms.
    pub rtt_ms: Option<f64>,
    /// Why there is none.
    pub reason: Option<String>,
    /// When the node said so.
    pub updated_at: Timestamp,
}

/// A subnet behind a gateway node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRoute {
    /// Row id.
    pub id: u32,
    /// The gateway.
    pub node_id: u32,
    /// Destination prefix.
    pub cidr: String,
    /// 0–65535, higher wins.
    pub priority: u16,
    /// 1–65535, share among equal priorities.
    pub weight: u16,
    /// Approved?
    pub enabled: bool,
    /// When it was added or announced.
    pub created_at: Timestamp,
}

/// All gateways to one prefix of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RouteGroup {
    /// The network; prefixes of different networks may be equal and never meet.
    pub network_id: u32,
    /// Destination prefix.
    pub cidr: String,
    /// By falling priority, then by route id.
    pub gateways: Vec<Gateway>,
}

/// Part of a [`RouteGroup`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Gateway {
    /// Row of `node_routes`.
    pub route_id: u32,
    /// The gateway.
    pub node_id: u32,
    /// Its name.
    pub node_name: String,
    /// Connected to the controller.
    pub online: bool,
    /// 0–65535, higher wins.
    pub priority: u16,
    /// 1–65535, share among equal priorities.
    pub weight: u16,
    /// Approved?
    pub enabled: bool,
    /// When the route was added or announced.
    pub created_at: Timestamp,
}

/// A relay and/or STUN server. Its token is never shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Server {
    /// Row id.
    pub id: u32,
    /// Unique name.
    pub name: String,
    /// `builtin` or `external`.
    #[serde(rename = "type")]
    pub kind: String,
    /// WSS URL; `null` for the built-in relay: it is at the controller's own origin.
    pub url: Option<String>,
    /// Free text such as `asia`.
    pub region: String,
    /// `relay`, `stun`.
    pub capabilities: Vec<String>,
    /// First STUN address.
    pub stun_ip: Option<String>,
    /// Second STUN address.
    pub stun_ip2: Option<String>,
    /// STUN port.
    pub stun_port: u16,
    /// May nodes use it?
    pub enabled: bool,
    /// The controller has heard of it in the last 25 s.
    pub online: bool,
    /// Last sign of life.
    pub last_heartbeat: Option<Timestamp>,
    /// When it was added.
    pub created_at: Timestamp,
}

/// A revoked token, or all tokens of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revocation {
    /// The token's id, or a synthetic one when `issued_before` is present.
    pub jti: String,
    /// The node whose tokens are void.
    pub node_id: Option<u32>,
    /// Tokens of the node issued before this are void.
    pub issued_before: Option<Timestamp>,
    /// Why.
    pub reason: String,
    /// When it may be forgotten.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub created_at: Timestamp,
}

/// A new pre-auth key; the only time that it is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewAuthKey {
    /// What a node gives to join.
    pub key: String,
    /// Row id.
    pub id: u32,
    /// The network that it opens.
    pub network_id: u32,
    /// Any number of machines, or one.
    pub reusable: bool,
    /// Its nodes need no administrator.
    pub preauthorized: bool,
    /// When it ends; `null`: never.
    pub expires_at: Option<Timestamp>,
}

impl fmt::Debug for NewAuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewAuthKey").field("id", &self.id).field("network_id", &self.network_id).finish_non_exhaustive()
    }
}

/// A pre-auth key as it is on record, without the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuthKey {
    /// Row id.
    pub id: u32,
    /// The network that it opens.
    pub network_id: u32,
    /// Any number of machines, or one.
    pub reusable: bool,
    /// Its nodes need no administrator.
    pub preauthorized: bool,
    /// When it ends; `null`: never.
    pub expires_at: Option<Timestamp>,
    /// When it was used last.
    pub used_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A server's new token; the only time that it is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServerToken {
    /// The server's row id.
    pub id: u32,
    /// What the server shows the controller.
    pub token: String,
    /// A configuration for `edgelink-server` that holds the token.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub config: serde_json::Value,
}

impl fmt::Debug for ServerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Somebody who may use this API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Admin {
    /// Row id.
    pub id: u32,
    /// Unique name.
    pub username: String,
    /// May log in?
    pub enabled: bool,
    /// Last login.
    pub last_login: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Last change of name, password or `enabled`; tokens from before it are void.
    pub updated_at: Timestamp,
}

/// The answer to a login.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Login {
    /// The admin_token: `Authorization: Bearer …`.
    pub token: String,
    /// Always `Bearer`.
    pub token_type: String,
    /// When the token ends: 8 hours after the login.
    pub expires_at: Timestamp,
    /// Whose it is.
    pub admin: Admin,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("admin", &self.admin).finish_non_exhaustive()
    }
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Me {
    /// The administrator.
    pub admin: Admin,
    /// The id of the token that was shown.
    pub jti: String,
    /// When that token ends.
    pub expires_at: Timestamp,
}

/// A line of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Row id, rising.
    pub id: u32,
    /// `system`, `cli`, `admin` or `node`.
    pub actor_type: String,
    /// Such as the administrator's name.
    pub actor_id: Option<String>,
    /// Such as `node.authorize`.
    pub action: String,
    /// What it was done to, such as `node`.
    pub target_type: Option<String>,
    /// Its row id.
    pub target_id: Option<u32>,
    /// Anything more; never a secret.
    pub details: Option<String>,
    /// Where the request came from.
    pub ip_address: Option<String>,
    /// When.
    pub created_at: Timestamp,
}

/// A measured round-trip time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Latency {
    /// Who measured: `node` or `server`.
    pub src_type: String,
    /// Its row id.
    pub src_id: u32,
    /// To what: `server`.
    pub dst_type: String,
    /// Its row id.
    pub dst_id: u32,
    /// Round-trip time in milliseconds, with microseconds as decimals.
    pub rtt_ms: f64,
    /// When it was measured last.
    pub recorded_at: Timestamp,
}

/// The best way between two nodes that talk (specification §5.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LatencyPath {
    /// Their network.
    pub network_id: u32,
    /// One end, with the lower id.
    pub src_node_id: u32,
    /// The other end.
    pub dst_node_id: u32,
    /// The relay that the first sends to.
    pub relay_id: u32,
    /// The relay that the second is at, if that is another one.
    pub via_relay_id: Option<u32>,
    /// Round-trip time end to end in milliseconds.
    pub rtt_ms: f64,
}

/// A setting: a key of the controller's configuration that its database may hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Setting {
    /// Full path, such as `tokens.relay_expire_hours`.
    pub key: String,
    /// What it comes to from defaults, file, database and environment.
    pub value: serde_json::Value,
    /// What the database holds; `null`: nothing.
    pub setting: Option<String>,
    /// When a new value is in force: `now`, or after a `restart`.
    pub takes: String,
    /// What it is.
    pub description: String,
}

/// The answer to a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deleted {
    /// The id that the row had.
    pub id: u32,
    /// Always true.
    pub deleted: bool,
}

/// What there is, in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Overview {
    /// EdgeLink's version.
    pub version: String,
    /// Newest change of the database; the configuration version of nodes follows it.
    pub config_version: u64,
    /// Networks.
    pub networks: u64,
    /// Nodes.
    pub nodes: NodeCounts,
    /// Relay and STUN servers.
    pub servers: ServerCounts,
    /// Revocations that have not expired.
    pub revocations: u64,
}

/// Part of [`Overview`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeCounts {
    /// All.
    pub total: u64,
    /// May join.
    pub authorized: u64,
    /// Wait for authorization, or lost it.
    pub unauthorized: u64,
    /// Connected.
    pub online: u64,
}

/// Part of [`Overview`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServerCounts {
    /// All.
    pub total: u64,
    /// May be used.
    pub enabled: u64,
    /// Connected to the controller.
    pub online: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_does_not_show_itself() {
        let key = NewAuthKey {
            key: "elk_secret".into(),
            id: 1,
            network_id: 2,
            reusable: false,
            preauthorized: true,
            expires_at: None,
        };
        assert!(!format!("{key:?}").contains("elk_secret"));
    }
}
