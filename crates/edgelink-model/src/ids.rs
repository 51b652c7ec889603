//! Identifiers that the controller hands out, as they travel on the wire (u32, big-endian).

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u32> for $name {
            fn from(id: u32) -> Self {
                Self(id)
            }
        }

        impl From<$name> for u32 {
            fn from(id: $name) -> u32 {
                id.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                s.parse().map(Self)
            }
        }
    };
}

id! {
    /// A node of some network; unique per controller, never reused. 0 names the controller in KEY_ANNOUNCE.
    NodeId
}
id! {
    /// A virtual network. Nodes of different networks never see each other.
    NetworkId
}
id! {
    /// A relay and/or STUN server (row of `servers`, specification §9.2).
    ServerId
}

impl NodeId {
    /// The controller's place in KEY_ANNOUNCE's source and destination (DESIGN §2).
    pub const CONTROLLER: Self = Self(0);
}
