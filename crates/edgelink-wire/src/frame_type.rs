//! Frame types and flags (specification §8.1, §8.2, DESIGN §1).

use std::fmt;
use std::ops::BitOr;

macro_rules! frame_types {
    ($($(#[$doc:meta])* $name:ident = $byte:literal, $text:literal;)*) => {
        /// What a frame is; its second byte.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum FrameType { $($(#[$doc])* $name = $byte,)* }

        impl FrameType {
            /// Every type, in ascending order.
            pub const ALL: [Self; 20] = [$(Self::$name),*];

            /// The type that `byte` stands for, if this version knows it.
            pub const fn from_u8(byte: u8) -> Option<Self> {
                match byte { $($byte => Some(Self::$name),)* _ => None }
            }

            /// The specification's name, such as `AUTH_REQUEST`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

frame_types! {
    /// Opens a channel: who I am, then the answer to the challenge.
    AuthRequest = 0x01, "AUTH_REQUEST";
    /// The challenge, then the outcome.
    AuthResponse = 0x02, "AUTH_RESPONSE";
    /// The whole configuration of a node or relay.
    Config = 0x03, "CONFIG";
    /// What changed in the configuration.
    ConfigUpdate = 0x04, "CONFIG_UPDATE";
    /// Acknowledges messages whose flag bit 0 is set.
    Ack = 0x05, "ACK";
    /// An end-to-end encrypted packet.
    Data = 0x10, "DATA";
    /// A signed key statement on its way to a peer or the controller.
    KeyAnnounce = 0x13, "KEY_ANNOUNCE";
    /// Is the channel alive?
    Ping = 0x20, "PING";
    /// The echo of a PING.
    Pong = 0x21, "PONG";
    /// Round-trip times as the sender measured them.
    LatencyReport = 0x22, "LATENCY_REPORT";
    /// Asks for a direct connection.
    P2pInit = 0x30, "P2P_INIT";
    /// Addresses at which the sender may be reached directly.
    P2pEndpoint = 0x31, "P2P_ENDPOINT";
    /// A sealed probe of one path.
    P2pPing = 0x32, "P2P_PING";
    /// A sealed probe's sealed answer.
    P2pPong = 0x33, "P2P_PONG";
    /// Refreshes a NAT mapping; a datagram of its own form ([`crate::keepalive`]), never a frame.
    P2pKeepalive = 0x34, "P2P_KEEPALIVE";
    /// The state of a direct connection.
    P2pStatus = 0x35, "P2P_STATUS";
    /// A relay or STUN server tells what it is.
    ServerRegister = 0x40, "SERVER_REGISTER";
    /// Which nodes are connected to which relays.
    ServerNodeLoc = 0x41, "SERVER_NODE_LOC";
    /// Revoked tokens.
    ServerBlacklist = 0x42, "SERVER_BLACKLIST";
    /// What went wrong.
    Error = 0xFF, "ERROR";
}

impl FrameType {
    /// The byte that travels on the wire.
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// Whether the payload is a protobuf control message ([`crate::control`]).
    pub const fn is_control(self) -> bool {
        !self.is_sealed() && !matches!(self, Self::KeyAnnounce | Self::Ping | Self::Pong | Self::P2pKeepalive)
    }

    /// Whether the frame is laid out and sealed like DATA ([`crate::data`]).
    pub const fn is_sealed(self) -> bool {
        matches!(self, Self::Data | Self::P2pPing | Self::P2pPong)
    }
}

impl fmt::Display for FrameType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A frame's third byte. Unknown bits are carried along untouched.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Bit 0: the receiver answers with ACK.
    pub const ACK_REQUESTED: Self = Self(1 << 0);
    /// Bit 1: the message is zstd-compressed (control messages only).
    pub const COMPRESSED: Self = Self(1 << 1);
    /// Bit 2: the message goes on in the next frame of this type (control messages only).
    pub const MORE: Self = Self(1 << 2);
    /// Bit 3: the plaintext begins with a virtio header (DATA only, DESIGN §6).
    pub const SUPER_PACKET: Self = Self(1 << 3);
    /// Bit 4: the first relay delivers to a node connected to itself or answers 3002 (DATA and probes). Not
    /// authenticated.
    pub const LOCAL_ONLY: Self = Self(1 << 4);

    /// Bits 5 to 7: which of the flows between two nodes this is (DATA). Relays queue flows apart; nothing else depends on it.
    pub const LABEL: Self = Self(0b111 << 5);
    /// How many flows the label tells apart.
    pub const LABELS: u8 = 8;

    /// The label `n`, below [`Self::LABELS`].
    #[must_use]
    pub const fn of_flow(n: u8) -> Self {
        Self((n % Self::LABELS) << 5)
    }

    /// The label alone.
    #[must_use]
    pub const fn label(self) -> Self {
        Self(self.0 & Self::LABEL.0)
    }

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags without those of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flags({:#04x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_round_trip_and_nothing_else_parses() {
        for byte in 0..=u8::MAX {
            let known = FrameType::ALL.iter().find(|ty| ty.as_u8() == byte).copied();
            assert_eq!(FrameType::from_u8(byte), known);
        }
        assert!(FrameType::ALL.is_sorted());
    }

    #[test]
    fn control_types_are_those_with_a_protobuf_payload() {
        let others: Vec<_> = FrameType::ALL.into_iter().filter(|ty| !ty.is_control()).map(FrameType::name).collect();
        assert_eq!(others, ["DATA", "KEY_ANNOUNCE", "PING", "PONG", "P2P_PING", "P2P_PONG", "P2P_KEEPALIVE"]);
    }

    #[test]
    fn flags_combine_and_part() {
        let both = Flags::COMPRESSED | Flags::MORE;
        assert_eq!(both, Flags(0x06));
        assert!(
            both.contains(Flags::MORE) && both.contains(both) && !both.contains(Flags::ACK_REQUESTED | Flags::MORE)
        );
        assert_eq!(Flags(0xff).without(Flags::LOCAL_ONLY), Flags(0xef));
    }
}
