//! What the everyday commands and the daemon say to each other over the Unix socket (DESIGN §7, §8).
//!
//! One JSON object per line ([`to_line`], [`from_line`]). A connection carries one [`LocalRequest`]; the daemon answers
//! with one [`LocalResponse`], except to `Ping`, which gets a [`LocalResponse::PingReply`] per probe and
//! [`LocalResponse::PingDone`] at the end. Closing the connection cancels the request. Unknown fields are ignored, so an
//! older command works with a newer daemon; fields are never renamed.

mod status;

pub use status::*;

use crate::Secret;
use edgelink_model::NodeId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::net::IpAddr;

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
