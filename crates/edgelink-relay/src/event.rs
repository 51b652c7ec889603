//! What the core tells its shell.

use crate::stats::CloseKind;
use edgelink_model::{ErrorCode, NetworkId, NodeId};
use std::fmt;
use std::net::IpAddr;

/// One connection on `/ws/data`, from connect to disconnect. Never used again for another one, so it is also what tells
/// a node's sessions apart.
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

/// Something that the shell has to do or may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    #[error("the relay_token has expired")]
    TokenExpired,
    /// The token was revoked.
    #[error("the relay_token was revoked")]
    Revoked,
    /// The node has a newer connection.
    #[error("replaced by a newer connection of the same node")]
    Replaced,
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
    /// Too many connections.
    #[error("too many connections")]
    TooManyConnections,
}
