//! What a path is made of.

use edgelink_model::ServerId;
use std::net::SocketAddr;
use std::time::Duration;

/// Names one path of a peer, in probes and everywhere else; never reused for that peer while its state lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(pub u32);

/// How frames travel. What is equal here shares everything; the derived order only breaks ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Through a relay that we are connected to.
    Relay {
        /// The first relay.
        relay: ServerId,
        /// What that relay may do with the frame.
        hops: Hops,
    },
    /// Straight to the peer by UDP.
    Udp {
        /// Our socket.
        socket: SocketId,
        /// The peer's address as our packets reach it.
        remote: SocketAddr,
        /// On a network that both are connected to.
        lan: bool,
    },
    /// Straight to the peer by TCP, on a network that both are connected to.
    Tcp {
        /// The connection.
        stream: StreamId,
        /// The address at its other end: where the peer listens, when we have dialled.
        remote: SocketAddr,
    },
}

/// One TCP connection to a neighbour; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// One of our UDP sockets; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u32);

/// What the first relay may do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hops {
    /// Deliver it to a node connected to itself, or answer 3002: the frame says *local only*.
    One,
    /// The same, or send it over the mesh as its next-hop table says.
    Any,
}

/// The classes of specification §1.3; the lower wins whatever the round trips are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Direct on the local network, by UDP.
    Lan,
    /// The same by TCP, which does only where UDP does not get through.
    LanTcp,
    /// Direct, through NATs or not.
    P2p,
    /// Through relays.
    Relay,
}

impl Way {
    /// The class.
    pub fn class(self) -> Class {
        match self {
            Self::Relay { .. } => Class::Relay,
            Self::Udp { lan: true, .. } => Class::Lan,
            Self::Udp { lan: false, .. } => Class::P2p,
            Self::Tcp { .. } => Class::LanTcp,
        }
    }

    /// The first relay, unless the way is direct.
    pub fn relay(self) -> Option<ServerId> {
        match self {
            Self::Relay { relay, .. } => Some(relay),
            Self::Udp { .. } | Self::Tcp { .. } => None,
        }
    }

    /// Whether it is direct.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::Udp { .. } | Self::Tcp { .. })
    }

    /// The peer's address, of a direct way.
    pub fn remote(self) -> Option<SocketAddr> {
        match self {
            Self::Relay { .. } => None,
            Self::Udp { remote, .. } | Self::Tcp { remote, .. } => Some(remote),
        }
    }

    /// Whether frames say *local only* (DESIGN §1, flag bit 4).
    pub fn is_local_only(self) -> bool {
        matches!(self, Self::Relay { hops: Hops::One, .. })
    }
}

/// A relay way as its owner knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayWay {
    /// The relay.
    pub relay: ServerId,
    /// What it may do.
    pub hops: Hops,
    /// What the end-to-end round trip may be, before it is measured; only the order matters.
    pub expected: Option<Duration>,
}

/// The controller's best path to a peer (`CONFIG_UPDATE{paths}`, specification §5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// First relay.
    pub relay: ServerId,
    /// Second relay; `None` when one hop is best.
    pub via: Option<ServerId>,
    /// The round trip by the controller's matrix.
    pub latency: Duration,
}

impl Advice {
    /// The way that is advised.
    pub fn way(&self) -> Way {
        let hops = if self.via.is_some() { Hops::Any } else { Hops::One };
        Way::Relay { relay: self.relay, hops }
    }
}
