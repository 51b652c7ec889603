//! The control messages as one enum, and what is particular to each.

use super::proto;
use crate::{FrameType, WireError};
use edgelink_model::ErrorCode;
use prost::Message;

/// A protobuf message that travels as a control frame of its own.
pub trait ControlPayload: Message + Default + Into<ControlMessage> {
    /// The frame type that carries it.
    const TYPE: FrameType;

    /// Whether it holds tokens or keys, and so must not be compressed (DESIGN §1).
    fn holds_secrets(&self) -> bool {
        false
    }
}

macro_rules! control_messages {
    ($($name:ident $({ $($extra:item)* })?)*) => {
        /// Any control message.
        #[derive(Clone, Debug, PartialEq)]
        pub enum ControlMessage {
            $(#[doc = concat!("See `", stringify!($name), "` in `proto/edgelink.proto`.")] $name(proto::$name),)*
        }

        impl ControlMessage {
            /// The frame type that carries it.
            pub fn ty(&self) -> FrameType {
                match self { $(Self::$name(_) => FrameType::$name,)* }
            }

            /// Whether it holds tokens or keys, and so must not be compressed (DESIGN §1).
            pub fn holds_secrets(&self) -> bool {
                match self { $(Self::$name(message) => message.holds_secrets(),)* }
            }

            pub(super) fn to_bytes(&self) -> Vec<u8> {
                match self { $(Self::$name(message) => message.encode_to_vec(),)* }
            }

            pub(super) fn from_bytes(ty: FrameType, body: &[u8]) -> Result<Self, WireError> {
                match ty {
                    $(FrameType::$name => proto::$name::decode(body)
                        .map(Self::$name)
                        .map_err(|source| WireError::Protobuf { ty, source }),)*
                    _ => Err(WireError::UnexpectedType(ty)),
                }
            }
        }

        $(
            impl From<proto::$name> for ControlMessage {
                fn from(message: proto::$name) -> Self {
                    Self::$name(message)
                }
            }

            impl ControlPayload for proto::$name {
                const TYPE: FrameType = FrameType::$name;
                $($($extra)*)?
            }
        )*
    };
}

control_messages! {
    AuthRequest { fn holds_secrets(&self) -> bool { true } }
    AuthResponse { fn holds_secrets(&self) -> bool { true } }
    Config {
        fn holds_secrets(&self) -> bool {
            self.tokens.is_some() || self.relay_keys.is_some() || !self.mesh_tokens.is_empty()
        }
    }
    ConfigUpdate {
        fn holds_secrets(&self) -> bool {
            self.tokens.is_some() || self.relay_keys.is_some() || !self.mesh_tokens.is_empty()
        }
    }
    Ack
    LatencyReport
    P2pInit
    P2pEndpoint
    P2pStatus
    ServerRegister
    ServerNodeLoc
    ServerBlacklist
    Error
}

/// Types that hold tokens whatever their fields: compressed ones are refused on receipt too, so that nobody who has not
/// authenticated reaches the decompressor.
pub(super) fn never_compressed(ty: FrameType) -> bool {
    matches!(ty, FrameType::AuthRequest | FrameType::AuthResponse)
}

impl proto::Error {
    /// An ERROR that answers a frame of type `answers_type` (0: none in particular) with `code` and a sentence for
    /// people. About and for no node yet.
    pub fn new(code: ErrorCode, answers_type: u8, message: impl Into<String>) -> Self {
        Self {
            code: code.as_u16().into(),
            answers_type: answers_type.into(),
            message: message.into(),
            ..Self::default()
        }
    }

    /// The code, if the specification knows it.
    pub fn error_code(&self) -> Option<ErrorCode> {
        u16::try_from(self.code).ok().and_then(ErrorCode::from_u16)
    }
}

impl WireError {
    /// The ERROR message to answer with; `answers_type` is the offending frame's type byte, 0 if unknown.
    pub fn to_message(&self, answers_type: u8) -> proto::Error {
        proto::Error::new(self.code(), answers_type, self.to_string())
    }
}
