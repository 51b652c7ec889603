//! The error codes of specification §8.4.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// What went wrong, as it travels in an ERROR frame and in REST problems (specification §8.4).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[$doc])* $name = $code,)* }

        impl ErrorCode {
            /// Every code, in ascending order.
            pub const ALL: [Self; 15] = [$(Self::$name),*];

            /// The code that `n` stands for, if the specification knows it.
            pub fn from_u16(n: u16) -> Option<Self> {
                match n { $($code => Some(Self::$name),)* _ => None }
            }

            /// A short human phrase.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

codes! {
    /// The token's signature, kind, audience or form is wrong.
    InvalidToken = 1001, "invalid token";
    /// The token, or the pre-auth key, is past its expiry.
    TokenExpired = 1002, "token expired";
    /// The token was revoked.
    TokenRevoked = 1003, "token revoked";
    /// The machine key is malformed or not the one registered.
    InvalidMachineKey = 1004, "invalid machine key";
    /// A signature does not verify.
    BadSignature = 1005, "signature verification failed";
    /// The node waits for an administrator's authorization.
    NodeNotAuthorized = 1006, "node not authorized";
    /// The frame's version byte is not one this side speaks.
    UnsupportedVersion = 2001, "unsupported protocol version";
    /// The message or frame is malformed.
    InvalidMessage = 2002, "invalid message format";
    /// The message exceeds the limit.
    MessageTooLarge = 2003, "message too large";
    /// There is no such destination node in this network.
    NodeNotFound = 3001, "destination node does not exist";
    /// The destination node is not connected.
    NodeOffline = 3002, "destination node is offline";
    /// No route leads to the destination.
    NoRoute = 3003, "no usable route";
    /// Something failed inside the server.
    Internal = 4001, "internal error";
    /// The server cannot serve this now.
    Unavailable = 4002, "service unavailable";
    /// The server is overloaded.
    Overloaded = 4003, "overloaded";
}

impl ErrorCode {
    /// The number that travels on the wire.
    pub fn as_u16(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.describe(), self.as_u16())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_nothing_else_parses() {
        for n in 0..=u16::MAX {
            let known = ErrorCode::ALL.iter().find(|c| c.as_u16() == n).copied();
            assert_eq!(ErrorCode::from_u16(n), known);
        }
    }
}
