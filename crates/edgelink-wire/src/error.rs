//! What can be wrong with bytes from a wire, and what the receiver does about it.

use crate::FrameType;
use edgelink_model::ErrorCode;

/// Why a message, frame or payload was refused. The texts hold nothing of the payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A message without a frame.
    #[error("a message must hold at least one frame")]
    Empty,
    /// The last frame does not end inside its message; trailing bytes show as this too.
    #[error("a frame does not end inside its message")]
    Truncated,
    /// The first byte is not [`crate::VERSION`].
    #[error("protocol version {0} is not supported, only version 1")]
    UnsupportedVersion(u8),
    /// A payload or message beyond the limit that holds at this moment.
    #[error("{len} bytes or more exceed the limit of {limit} bytes")]
    TooLarge {
        /// How large it is at least.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// A type of a later version: the frame is skipped and the connection stays.
    #[error("unknown frame type {0:#04x}")]
    UnknownType(u8),
    /// A known type in a place where it does not belong.
    #[error("{0} is not expected here")]
    UnexpectedType(FrameType),
    /// A payload whose length its type does not allow.
    #[error("{0} has a wrong length")]
    BadLength(FrameType),
    /// Flags that its type or the frames before do not allow.
    #[error("{0} has flags that do not fit")]
    BadFlags(FrameType),
    /// A control message began before the one before it had ended.
    #[error("{got} arrived inside a split {pending}")]
    Interleaved {
        /// Type of the unfinished message.
        pending: FrameType,
        /// Type of the frame that arrived.
        got: FrameType,
    },
    /// Not one whole zstd frame.
    #[error("{0} cannot be decompressed")]
    Compression(FrameType),
    /// Not the protobuf message of its type.
    #[error("{ty} cannot be decoded")]
    Protobuf {
        /// Type of the message.
        ty: FrameType,
        /// What the decoder says; for logs only.
        #[source]
        source: prost::DecodeError,
    },
    /// The output has no room for the frame. A mistake of the caller, never of a peer.
    #[error("no room for the frame")]
    NoRoom,
}

impl WireError {
    /// The code to answer with (specification §8.4).
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnsupportedVersion(_) => ErrorCode::UnsupportedVersion,
            Self::TooLarge { .. } => ErrorCode::MessageTooLarge,
            Self::NoRoom => ErrorCode::Internal,
            _ => ErrorCode::InvalidMessage,
        }
    }

    /// Whether the connection ends after the answer (DESIGN §1): always, but for a frame of an unknown type.
    pub fn closes(&self) -> bool {
        !matches!(self, Self::UnknownType(_))
    }
}
