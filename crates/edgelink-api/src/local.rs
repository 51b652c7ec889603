//! What the everyday commands and the daemon say to each other over the Unix socket (DESIGN §7, §8).
//!
//! One JSON object per line ([`to_line`], [`from_line`]). A connection carries one [`LocalRequest`]; the daemon answers
//! with one [`LocalResponse`], except to `Ping`, which gets a [`LocalResponse::PingReply`] per probe and
//! [`LocalResponse::PingDone`] at the end. Closing the connection cancels the request. Unknown fields are ignored, so an
//! older command works with a newer daemon; fields are never renamed.

use crate::Secret;
use edgelink_model::{NodeId, ServerId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Longest request line that the daemon reads, in bytes.
pub const MAX_REQUEST_LINE: usize = 64 << 10;
/// Longest response line that a command reads, in bytes: a status of some ten thousand peers.
pub const MAX_RESPONSE_LINE: usize = 16 << 20;

/// What a command asks of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum LocalRequest {
    /// `edgelink status`.
    Status(NetworkChoice),
    /// `edgelink peers`: the peers of the status alone.
    Peers(NetworkChoice),
    /// `edgelink up`: join, or connect again.
    Up(UpRequest),
    /// `edgelink down`: leave the network, keep keys and configuration.
    Down(NetworkChoice),
    /// `edgelink networks`: what the daemon is in, the first one first.
    Networks,
    /// `edgelink ping TARGET`.
    Ping(PingRequest),
    /// `edgelink routes`: subnet routes, and why one address goes where it goes.
    Routes(RoutesRequest),
    /// `edgelink netcheck`: what the network around this host lets pass, found out anew.
    Netcheck(NetworkChoice),
    /// `edgelink accept TARGET`: believe what was refused of a peer, such as a changed machine key.
    Accept(PeerChoice),
    /// `edgelink paths TARGET`.
    Paths(PeerChoice),
}

/// Which peer is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerChoice {
    /// Peer by name, overlay address or node id.
    pub target: String,
    /// Network to look in, as in [`NetworkChoice`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// Which of the daemon's networks is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkChoice {
    /// What this host calls it (`networks[].name`), or the network's own name; the first network without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// `edgelink routes [--why IP]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutesRequest {
    /// Explain this address too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<IpAddr>,
    /// Network to look in, as in [`NetworkChoice`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// How to come up. What is absent stays as configured or as it was the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpRequest {
    /// Controller URL, `wss://HOST[:PORT]` with or without a path; needed the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// Pre-auth key `elk_…`; without one the node waits for an administrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_key: Option<Secret>,
    /// Pin of the controller's certificate, `sha256:` + base64 of the SPKI hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// Host name to announce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Answer only when the state is `up`, `refused` or `waiting_for_authorization`, at the latest after this many
    /// milliseconds. Answered at once without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// Network, as in [`NetworkChoice`]; one that is not known yet is made, beside those that are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// An overlay ping: sealed probes, end to end, over the path that data takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingRequest {
    /// Peer by name, overlay address or node id.
    pub target: String,
    /// How many probes; until the connection closes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Time between probes in ms, at least [`PingRequest::MIN_INTERVAL_MS`].
    #[serde(default = "PingRequest::default_interval_ms")]
    pub interval_ms: u64,
    /// How long to wait for each answer in ms.
    #[serde(default = "PingRequest::default_timeout_ms")]
    pub timeout_ms: u64,
    /// Network to look in, as in [`NetworkChoice`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

impl PingRequest {
    /// Shortest time between two probes.
    pub const MIN_INTERVAL_MS: u64 = 10;

    /// A ping of `target`: once a second, 3 s for each answer, `count` times.
    pub fn new(target: impl Into<String>, count: Option<u32>) -> Self {
        Self {
            target: target.into(),
            count,
            interval_ms: Self::default_interval_ms(),
            timeout_ms: Self::default_timeout_ms(),
            network: None,
        }
    }

    fn default_interval_ms() -> u64 {
        1000
    }

    fn default_timeout_ms() -> u64 {
        3000
    }
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum LocalResponse {
    /// To `Status`, and to `Up`, `Down` and `Accept` once they are done.
    Status(Box<Status>),
    /// To `Peers`.
    Peers {
        /// As in [`Status::peers`].
        peers: Vec<Peer>,
    },
    /// To `Networks`.
    Networks {
        /// The first one is what commands without `--network` mean.
        networks: Vec<JoinedNetwork>,
    },
    /// To `Netcheck`.
    Netcheck(Box<Netcheck>),
    /// To `Paths`.
    Paths {
        /// The peer.
        node_id: NodeId,
        /// Its name.
        name: String,
        /// All paths to it, the one in use first.
        paths: Vec<KnownPath>,
    },
    /// To `Routes`.
    Routes {
        /// As in [`Status::routes`].
        routes: Vec<Route>,
        /// The explanation that was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<RouteWhy>,
    },
    /// To `Ping`, once per probe and in order of arrival.
    PingReply(PingReply),
    /// To `Ping`, last.
    PingDone(PingDone),
    /// To anything that could not be done; always the last line.
    Error(LocalError),
}

/// One of the daemon's networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedNetwork {
    /// What this host calls it; `null` for the top level of the configuration.
    pub label: Option<String>,
    /// Its own name, once the controller has told it.
    pub network: Option<String>,
    /// State of this network.
    pub state: DaemonState,
    /// Interface that carries it.
    pub interface: String,
    /// Overlay addresses of this node.
    pub addresses: Vec<IpAddr>,
    /// Controller URL.
    pub controller: Option<String>,
}

/// The fate of one probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PingReply {
    /// Counts from 1.
    pub seq: u32,
    /// The peer.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// The path that the probe took.
    pub path: Path,
    /// Round trip in ms; `null` when no answer came in time or the probe could not be sent.
    pub rtt_ms: Option<f64>,
    /// Why there is no round trip.
    pub error: Option<String>,
}

/// Sum of a ping. The times are `null` when nothing was received.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PingDone {
    /// Probes sent.
    pub sent: u32,
    /// Answers received in time.
    pub received: u32,
    /// Least round trip in ms.
    pub min_ms: Option<f64>,
    /// Mean round trip in ms.
    pub avg_ms: Option<f64>,
    /// Greatest round trip in ms.
    pub max_ms: Option<f64>,
}

/// Why a request failed, in words for the user that say what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct LocalError {
    /// What kind of failure.
    pub kind: LocalErrorKind,
    /// The sentence to show.
    pub message: String,
}

impl LocalError {
    /// An error of `kind` that reads `message`.
    pub fn new(kind: LocalErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Kinds of failure; each is an exit code (DESIGN §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocalErrorKind {
    /// It was tried and did not work.
    Failed,
    /// The request makes no sense: no such peer, malformed URL.
    Usage,
    /// The daemon is down or what it needs cannot be reached.
    Unreachable,
    /// The controller refused this node, or the socket this user.
    NotAuthorized,
    /// A kind that a newer daemon knows.
    #[serde(other)]
    Other,
}

impl LocalErrorKind {
    /// The process exit code: 1 failed, 2 usage, 3 not running or unreachable, 4 not authorized.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Other => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::NotAuthorized => 4,
        }
    }
}

/// `edgelink status --json`: the public contract of DESIGN §8, plus `state`, `state_message` and `version`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What the daemon is doing.
    pub state: DaemonState,
    /// Why, when that is not obvious: the refusal, or why connecting takes so long.
    #[serde(default)]
    pub state_message: Option<String>,
    /// Version of the daemon.
    #[serde(default)]
    pub version: String,
    /// Our id; `null` until the controller has given one.
    pub node_id: Option<NodeId>,
    /// Our name.
    pub name: String,
    /// Name of the network; `null` until known.
    pub network: Option<String>,
    /// Our overlay addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The control channel.
    pub controller: ControllerLink,
    /// Relays of this network.
    pub relays: Vec<Relay>,
    /// The NAT in front of us.
    pub nat: Nat,
    /// The other nodes, by name.
    pub peers: Vec<Peer>,
    /// Subnet routes of other nodes.
    pub routes: Vec<Route>,
    /// Packets dropped since the start, by reason; reasons with a count of zero are left out.
    pub drops: BTreeMap<String, u64>,
    /// Version of the last configuration applied; 0 before the first.
    pub config_version: u64,
    /// What is wrong now, one sentence each; empty when all is well.
    pub health: Vec<String>,
}

/// What the daemon is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonState {
    /// Not joined, or told to go down.
    #[default]
    Down,
    /// On its way; tries again by itself.
    Connecting,
    /// Known to the controller, not yet let in by an administrator.
    WaitingForAuthorization,
    /// The tunnel works (the controller may be away: see `controller.connected`).
    Up,
    /// The controller will not have us; `state_message` says why. Not tried again before the cause is removed.
    Refused,
    /// A state that a newer daemon knows.
    #[serde(other)]
    Unknown,
}

/// The control channel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ControllerLink {
    /// Is it established and authenticated?
    pub connected: bool,
    /// Round trip in ms.
    pub rtt_ms: Option<f64>,
    /// Where it leads.
    #[serde(default)]
    pub url: Option<String>,
}

/// A relay of this network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Relay {
    /// Server id.
    pub id: ServerId,
    /// Its name.
    pub name: String,
    /// The URL that we dial.
    pub url: String,
    /// Is the data channel established and authenticated?
    pub connected: bool,
    /// Round trip in ms.
    pub rtt_ms: Option<f64>,
}

/// The NAT in front of us: behaviour per RFC 5780, and the name of specification §6.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// Mapping behaviour (RFC 4787 §4.1).
    pub mapping: NatBehaviour,
    /// Filtering behaviour (RFC 4787 §5).
    pub filtering: NatBehaviour,
    /// The name of specification §6.1.
    pub name: NatName,
}

/// How a mapping or filter depends on the destination (RFC 4787).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NatBehaviour {
    /// No translation at all.
    None,
    /// The same for all destinations.
    EndpointIndependent,
    /// Per destination address.
    AddressDependent,
    /// Per destination address and port.
    AddressAndPortDependent,
    /// Not (yet) known.
    #[default]
    #[serde(other)]
    Unknown,
}

/// The names of specification §6.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NatName {
    /// No NAT.
    Open,
    /// Full cone.
    FullCone,
    /// Restricted cone.
    RestrictedCone,
    /// Port restricted cone.
    PortRestricted,
    /// Symmetric.
    Symmetric,
    /// No UDP gets through.
    UdpBlocked,
    /// Not (yet) known.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What the network around this host lets pass (`edgelink netcheck`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Netcheck {
    /// Are direct connections wanted here (`p2p.enabled`)? If not, UDP was not tried.
    pub p2p_enabled: bool,
    /// Does UDP reach a STUN server and come back? `null` when there was none to ask.
    pub udp: Option<bool>,
    /// The NAT in front of us.
    pub nat: Nat,
    /// Where other nodes may find us, best first.
    pub endpoints: Vec<Endpoint>,
    /// The port mapping on the router.
    pub port_mapping: PortMapping,
    /// Relays of this network, with their round trips.
    pub relays: Vec<Relay>,
    /// What is in the way of direct connections, one sentence each.
    pub problems: Vec<String>,
}

/// A port mapping that the router made for us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// `upnp`, `nat_pmp` or `pcp`; `null` when there is none.
    pub protocol: Option<String>,
    /// The address outside.
    pub external: Option<SocketAddr>,
    /// Why there is none.
    pub problem: Option<String>,
}

/// An address at which this node may be reached (specification §6.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `lan`, `stun`, `upnp` or `relay`.
    pub kind: String,
    /// Address and port.
    pub address: SocketAddr,
    /// 1 (best) to 3.
    pub priority: u8,
}

/// Another node of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// Its overlay addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Is it connected, as far as we know?
    pub online: bool,
    /// The path that our packets take.
    pub path: Path,
    /// Why the path is not a better one, or why the peer is refused; `null` when there is nothing to say.
    pub reason: Option<String>,
    /// Milliseconds since the last authenticated packet from it; `null` when there was none.
    pub last_rx_ms: Option<u64>,
    /// Bytes of IP packets received from it.
    pub rx_bytes: u64,
    /// Bytes of IP packets sent to it.
    pub tx_bytes: u64,
}

/// How packets reach a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// The class of path.
    pub kind: PathKind,
    /// Our relay, for `relay` and `mesh`.
    pub relay_id: Option<ServerId>,
    /// The peer's relay, for `mesh`.
    pub via_relay_id: Option<ServerId>,
    /// The peer's address, for `lan` and `p2p`.
    pub endpoint: Option<SocketAddr>,
    /// `udp` or `tcp`, for `lan` and `p2p`.
    #[serde(default)]
    pub transport: Option<Transport>,
    /// End-to-end round trip in ms.
    pub rtt_ms: Option<f64>,
}

/// What carries the frames of a direct path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Datagrams.
    Udp,
    /// A stream, on a local network where UDP does not get through.
    Tcp,
}

/// A path to a peer, in use or not (`edgelink paths`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownPath {
    /// What it is.
    #[serde(flatten)]
    pub path: Path,
    /// The relay's name.
    pub relay_name: Option<String>,
    /// The name of the peer's relay.
    pub via_relay_name: Option<String>,
    /// The relay must have the peer itself: it may not send packets to another relay.
    pub one_hop: bool,
    /// Do packets take it?
    pub current: bool,
    /// Is it alive?
    pub state: PathState,
    /// The largest IP packet that a direct path carries, in bytes.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// Why packets take it, or why they do not.
    pub why: String,
}

/// Whether a path is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathState {
    /// Probes are answered.
    Alive,
    /// An answer is missing.
    Doubted,
    /// Three answers in a row are missing, or a relay said so.
    Dead,
    /// Not known.
    #[serde(other)]
    Unproved,
}

/// Classes of paths (DESIGN §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// Direct on the local network.
    Lan,
    /// Direct over UDP through NATs.
    P2p,
    /// Through one relay.
    Relay,
    /// Through two relays.
    Mesh,
    /// None.
    #[default]
    #[serde(other)]
    None,
}

/// A subnet behind another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The subnet.
    pub cidr: IpNet,
    /// The node that serves it.
    pub gateway_node_id: NodeId,
    /// Higher wins.
    pub priority: u16,
    /// Share among equal priorities.
    pub weight: u16,
    /// Do packets use it now?
    pub active: bool,
    /// Why it is not installed here, such as `local`; `null` when it is.
    pub skipped: Option<String>,
}

/// Why packets to an address go where they go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteWhy {
    /// The address that was asked about.
    pub address: IpAddr,
    /// The prefix that is used; `null` when no subnet route is.
    pub cidr: Option<IpNet>,
    /// Who gets its packets: one node, or those that share them flow by flow; empty when they do not go into the tunnel
    /// or nobody serves them now.
    pub gateways: Vec<NodeId>,
    /// One sentence per thing that decided, the most specific first.
    pub reasons: Vec<String>,
}

/// `message` as one line with its line feed, ready to be written.
///
/// # Errors
/// Only if `message` holds something that JSON has no word for, which none of this module's types does.
pub fn to_line<T: Serialize>(message: &T) -> Result<String, serde_json::Error> {
    // serde_json escapes line feeds inside strings, so the only one is ours.
    serde_json::to_string(message).map(|mut line| {
        line.push('\n');
        line
    })
}

/// Reads one line, with or without its line feed.
///
/// # Errors
/// When the line is not the JSON of a `T`.
pub fn from_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(line)
}
