//! What `status`, `peers`, `paths`, `routes` and `netcheck` show (DESIGN §8).

use edgelink_model::{NodeId, ServerId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
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
