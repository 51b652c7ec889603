//! What the core tells its shell.

use crate::stats::CloseKind;
use bytes::Bytes;
use edgelink_model::{ErrorCode, NetworkId, NodeId, ServerId};
use std::fmt;
use std::net::IpAddr;

/// One connection on `/ws/data` or `/ws/mesh`, from connect to disconnect. Never used again for another one, so it is
/// also what tells a node's sessions and the links of one relay apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    pub(crate) serial: u64,
    pub(crate) slot: usize,
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serial.fmt(f)
    }
}

/// One attempt to reach another relay; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DialId(pub(crate) u64);

/// Something that the shell has to do or may want to know. `Debug` does not show what is said to the controller, which
/// holds the server_token.
#[derive(Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// There is something to send: call [`crate::Relay::poll_transmit`] until it returns 0. Comes at most once until
    /// that has been called.
    Writable(ConnId),
    /// Close the WebSocket and call [`crate::Relay::disconnect`]. The relay ignores what still arrives on it.
    Close {
        /// The connection.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
        /// Whether to send what [`crate::Relay::poll_transmit`] still gives (the ERROR that tells why) before. A few
        /// seconds are enough: the peer may not be reading.
        flush: bool,
    },
    /// A node proved who it is; frames for it are delivered from now on.
    NodeConnected {
        /// Its connection.
        conn: ConnId,
        /// The node.
        node: NodeId,
        /// Its network.
        network: NetworkId,
        /// The node's former connection, which is closed now. There is no `NodeDisconnected` for it.
        replaced: Option<ConnId>,
    },
    /// A node is no longer connected.
    NodeDisconnected {
        /// The connection that it had.
        conn: ConnId,
        /// The node.
        node: NodeId,
        /// Its network.
        network: NetworkId,
    },
    /// Dial another relay's `/ws/mesh`, then call [`crate::Relay::mesh_dialled`] or [`crate::Relay::mesh_dial_failed`].
    DialMesh {
        /// The attempt.
        dial: DialId,
        /// Which relay it should be; `None` for a configured URL whose relay is not known yet.
        relay: Option<ServerId>,
        /// Its URL. Empty: at the origin at which the controller is dialled, with `path`.
        url: String,
        /// With an empty `url`.
        path: String,
    },
    /// A link to another relay carries frames from now on.
    MeshUp {
        /// Its connection.
        conn: ConnId,
        /// The other relay.
        relay: ServerId,
        /// The former link, which is closed now. There is no `MeshDown` for it.
        replaced: Option<ConnId>,
    },
    /// A link to another relay is gone.
    MeshDown {
        /// The connection that it was.
        conn: ConnId,
        /// The other relay.
        relay: ServerId,
    },
    /// Dial the controller's `/ws/server`, then call [`crate::Relay::controller_connected`] or
    /// [`crate::Relay::controller_failed`].
    DialController,
    /// Send this binary message to the controller.
    ToController(Bytes),
    /// Close the connection to the controller (the core has forgotten it already) and call nothing: a
    /// [`RelayEvent::DialController`] follows in its time.
    CloseController,
    /// The controller does not accept this server, and says why; it is tried again, seldom.
    ControllerRefused {
        /// The code of specification §8.4, if there was one.
        code: Option<ErrorCode>,
        /// The controller's sentence.
        message: String,
    },
    /// Keys, tokens, revocations, relays or locations changed: keep [`crate::Relay::saved_state`] on disk.
    StateChanged,
}

impl fmt::Debug for RelayEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writable(conn) => write!(f, "Writable({conn})"),
            Self::Close { conn, reason, flush } => write!(f, "Close({conn}: {reason}, flush {flush})"),
            Self::NodeConnected { conn, node, network, replaced } => {
                write!(f, "NodeConnected({conn}: {node} of {network}, replaced {replaced:?})")
            }
            Self::NodeDisconnected { conn, node, network } => {
                write!(f, "NodeDisconnected({conn}: {node} of {network})")
            }
            Self::DialMesh { dial, relay, url, path } => write!(f, "DialMesh({dial:?}: {relay:?} at {url:?} {path:?})"),
            Self::MeshUp { conn, relay, replaced } => write!(f, "MeshUp({conn}: {relay}, replaced {replaced:?})"),
            Self::MeshDown { conn, relay } => write!(f, "MeshDown({conn}: {relay})"),
            Self::DialController => f.write_str("DialController"),
            Self::ToController(message) => write!(f, "ToController({} bytes)", message.len()),
            Self::CloseController => f.write_str("CloseController"),
            Self::ControllerRefused { code, message } => write!(f, "ControllerRefused({code:?}: {message})"),
            Self::StateChanged => f.write_str("StateChanged"),
        }
    }
}

/// Why the relay closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// Authentication failed.
    #[error("authentication failed: {0}")]
    Refused(ErrorCode),
    /// The peer broke the protocol.
    #[error("protocol violation: {0}")]
    Protocol(ErrorCode),
    /// Not authenticated in time.
    #[error("not authenticated in time")]
    HandshakeTimeout,
    /// No frame for too long.
    #[error("no frame for too long")]
    Idle,
    /// It took nothing of what is queued for it for too long.
    #[error("the receiver makes no progress")]
    Stalled,
    /// The token is past its expiry, and was not refreshed.
    #[error("the token has expired")]
    TokenExpired,
    /// The token was revoked.
    #[error("the token was revoked")]
    Revoked,
    /// The node or relay has a newer connection.
    #[error("replaced by a newer connection of the same node or relay")]
    Replaced,
    /// Two relays are linked already, by a connection that has precedence.
    #[error("there is a link already")]
    Duplicate,
    /// The other relay is not in the controller's list any more, or is not the one that was meant.
    #[error("the other relay is not, or no longer, one to link with")]
    NotWanted,
}

impl CloseReason {
    /// The reason without its details, as counted.
    pub fn kind(self) -> CloseKind {
        match self {
            Self::Refused(_) => CloseKind::Refused,
            Self::Protocol(_) => CloseKind::Protocol,
            Self::HandshakeTimeout => CloseKind::HandshakeTimeout,
            Self::Idle => CloseKind::Idle,
            Self::Stalled => CloseKind::Stalled,
            Self::TokenExpired => CloseKind::TokenExpired,
            Self::Revoked => CloseKind::Revoked,
            Self::Replaced => CloseKind::Replaced,
            Self::Duplicate => CloseKind::Duplicate,
            Self::NotWanted => CloseKind::NotWanted,
        }
    }
}

/// Why a connection is not even begun. The shell answers 429 or 503, or just closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Too many connections from this address are not authenticated yet.
    #[error("too many unauthenticated connections from {0}")]
    TooManyFrom(IpAddr),
    /// Too many connections are not authenticated yet.
    #[error("too many unauthenticated connections")]
    TooManyUnauthenticated,
    /// The relay is about to end.
    #[error("the relay is about to end")]
    Draining,
    /// Too many connections.
    #[error("too many connections")]
    TooManyConnections,
}
