//! The controller's records, as the store reads them and the control core keeps them (specification §9.2).
//!
//! They live on the lowest floor so that the store and the core share them without knowing each other.

use crate::{NetworkId, NodeId, ServerId, UnixMillis};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Position in `change_log`; doubles as the configuration version (DESIGN §4). 0 is "nothing yet".
pub type ChangeId = u64;

/// A virtual network (table `networks`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRecord {
    /// Row id.
    pub id: NetworkId,
    /// Unique name.
    pub name: String,
    /// Overlay prefix that node addresses are drawn from.
    pub subnet: Ipv4Net,
    /// Overlay ULA prefix, where the network has one.
    pub subnet6: Option<Ipv6Net>,
    /// Free text.
    pub description: String,
}

/// A node's current key statement as it announced it (DESIGN §2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeKeyRecord {
    /// The 120 bytes that were signed.
    pub statement: Vec<u8>,
    /// Ed25519 signature by the machine key, 64 bytes.
    pub signature: Vec<u8>,
    /// The statement's sequence number; only rises.
    pub seq: u64,
}

/// A node (table `nodes`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Row id.
    pub id: NodeId,
    /// The network that it belongs to.
    pub network_id: NetworkId,
    /// Display name; the host name at enrolment until an administrator renames it.
    pub name: String,
    /// Ed25519 public key, the node's identity.
    pub machine_key_pub: [u8; 32],
    /// Latest announced node key.
    pub key: Option<NodeKeyRecord>,
    /// Overlay address; assigned when the node is authorized, not when it knocks (DESIGN §3).
    pub virtual_ip: Option<Ipv4Addr>,
    /// Overlay IPv6 address.
    pub virtual_ip6: Option<Ipv6Addr>,
    /// What the node said of its host.
    pub host: HostInfo,
    /// May it join?
    pub authorized: bool,
    /// Last time it was connected, in ms since the Unix epoch.
    pub last_seen: Option<UnixMillis>,
}

impl NodeRecord {
    /// All overlay addresses, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.virtual_ip.map(IpAddr::V4).into_iter().chain(self.virtual_ip6.map(IpAddr::V6)).collect()
    }
}

/// What a node says of its NAT and of where it can be reached (tables `nodes` and `node_endpoints`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEndpoints {
    /// Whose.
    pub node: NodeId,
    /// One of the names of specification §6.1, as in `edgelink status`; `None` when it said none that is known.
    pub nat_type: Option<String>,
    /// All of them, replacing those before.
    pub endpoints: Vec<EndpointRecord>,
}

/// An address at which a node may be reached (table `node_endpoints`, specification §6.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRecord {
    /// `lan`, `stun`, `upnp` or `relay`.
    pub kind: String,
    /// Address and port.
    pub address: std::net::SocketAddr,
    /// 1 (best) to 3.
    pub priority: u8,
}

/// What a node says of the machine that it runs on. Each string is at most 255 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostInfo {
    /// Host name.
    pub hostname: String,
    /// Operating system, such as `linux`.
    pub os: String,
    /// CPU architecture, such as `x86_64`.
    pub arch: String,
    /// EdgeLink version.
    pub version: String,
}

/// A subnet behind a gateway node (table `node_routes`, specification §7.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRecord {
    /// Row id.
    pub id: u32,
    /// The gateway.
    pub node_id: NodeId,
    /// Destination prefix.
    pub cidr: IpNet,
    /// 0–65535, higher wins.
    pub priority: u16,
    /// 1–65535, share among equal priorities.
    pub weight: u16,
    /// Whether an administrator has approved it.
    pub enabled: bool,
    /// The node announced it and may take it back; otherwise an administrator made it.
    pub announced: bool,
    /// The gateway rewrites source addresses (SNAT). Without, only one gateway of a subnet is used at a time, so that
    /// return traffic finds its way (DESIGN §7).
    pub snat: bool,
}

/// A subnet that a node announces (`advertise_routes`, specification §12.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedRoute {
    /// Destination prefix, without host bits; see [`crate::cidr::check`].
    pub cidr: IpNet,
    /// 0–65535, higher wins.
    pub priority: u16,
    /// 1–65535, share among equal priorities.
    pub weight: u16,
    /// The gateway rewrites source addresses.
    pub snat: bool,
}

/// Where a server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    /// Inside the controller's process.
    Builtin,
    /// A separate `edgelink-server`.
    External,
}

/// A relay and/or STUN server (table `servers`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRecord {
    /// Row id.
    pub id: ServerId,
    /// Unique name.
    pub name: String,
    /// Where it runs.
    pub kind: ServerKind,
    /// WSS URL of `/ws/data`; for the built-in relay `None`: clients then use the origin they dialled the controller at.
    pub url: Option<String>,
    /// Free text such as `asia`.
    pub region: String,
    /// Relays packets?
    pub relay: bool,
    /// Answers STUN?
    pub stun: bool,
    /// First STUN address.
    pub stun_ip: Option<IpAddr>,
    /// Second STUN address, for RFC 5780.
    pub stun_ip2: Option<IpAddr>,
    /// STUN port, 3478 by default.
    pub stun_port: u16,
    /// Whether nodes may use it.
    pub enabled: bool,
}

/// A revoked token or node (table `token_blacklist`, DESIGN §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationRecord {
    /// Row key: the token's jti, or a synthetic id for a node-wide revocation.
    pub id: String,
    /// What is revoked.
    pub target: RevocationTarget,
    /// When the entry may be forgotten, in Unix seconds.
    pub expires_at: u64,
}

/// What a revocation names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevocationTarget {
    /// One token.
    Jti(String),
    /// Every token of a node that was issued before a moment (Unix seconds).
    Node {
        /// The node.
        node_id: NodeId,
        /// Tokens with `iat` below this are void.
        issued_before: u64,
    },
}

/// One committed change, as the controller's core learns it from the tail of `change_log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A network was made or changed.
    Network(NetworkRecord),
    /// A network is gone.
    NetworkDeleted(NetworkId),
    /// A node was made or changed.
    Node(NodeRecord),
    /// A node is gone.
    NodeDeleted(NodeId),
    /// All routes of a node, replacing what was known.
    Routes(NodeId, Vec<RouteRecord>),
    /// A server was made or changed.
    Server(ServerRecord),
    /// A server is gone.
    ServerDeleted(ServerId),
    /// A token or node was revoked.
    Revoked(RevocationRecord),
    /// A setting of the controller was set or unset.
    Setting(String),
}

/// Everything the control core needs to start, read in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Newest change that this snapshot includes.
    pub version: ChangeId,
    /// Networks.
    pub networks: Vec<NetworkRecord>,
    /// Nodes, authorized or not.
    pub nodes: Vec<NodeRecord>,
    /// Routes of all nodes.
    pub routes: Vec<RouteRecord>,
    /// Servers.
    pub servers: Vec<ServerRecord>,
    /// Revocations that have not expired.
    pub revocations: Vec<RevocationRecord>,
}

/// What a node that proved its machine key asks for at the control channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrollRequest {
    /// Proven Ed25519 public key.
    pub machine_key_pub: [u8; 32],
    /// Lower-case hex SHA-256 of the pre-auth key, if one was given.
    pub auth_key_hash: Option<String>,
    /// What the node says of its host.
    pub host: HostInfo,
    /// The caller's time, Unix ms (expiry of the auth key, `last_seen`).
    pub now_unix_ms: UnixMillis,
    /// Whether new nodes wait for an administrator unless their key says otherwise (`security.require_authorization`).
    pub require_authorization: bool,
}

/// Why enrolment failed. The texts are fit for the node's user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrollError {
    /// No such key, or a one-shot key that was used.
    #[error(
        "this auth key is unknown or already used; ask an administrator for a new one (`edgelink-ctl token generate --type auth-key`)"
    )]
    UnknownAuthKey,
    /// Past its expiry.
    #[error(
        "this auth key has expired; ask an administrator for a new one (`edgelink-ctl token generate --type auth-key`)"
    )]
    AuthKeyExpired,
    /// Key belongs to another network than the one where the machine is registered.
    #[error("this machine is registered in another network than the auth key's; delete the node there first")]
    OtherNetwork,
    /// No free address.
    #[error("no free address is left in the network's subnet {0}; delete unused nodes or enlarge the subnet")]
    PoolExhausted(String),
    /// Too many nodes wait for authorization already.
    #[error("too many nodes wait for authorization; ask an administrator to authorize or delete some")]
    TooManyPending,
    /// The database is away.
    #[error("the controller cannot reach its database now; the node will try again")]
    Unavailable,
}
