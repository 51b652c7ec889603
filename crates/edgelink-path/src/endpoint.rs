//! Addresses at which a node may be reached (specification §6.2), and those at which nobody ever is.

use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};

/// The most endpoints that are told or taken of one peer.
pub const MAX_ENDPOINTS: usize = 16;

/// Where an endpoint comes from; the numbers are the protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointKind {
    /// An address of an interface.
    Lan,
    /// As a STUN server saw it.
    Stun,
    /// A port mapping on the router.
    Upnp,
    /// The address that a relay saw, with our own port: a guess.
    Relay,
}

impl EndpointKind {
    /// 1 (best) to 3.
    pub fn priority(self) -> u8 {
        match self {
            Self::Lan => 1,
            Self::Stun | Self::Upnp => 2,
            Self::Relay => 3,
        }
    }
}

/// One of our endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Its source.
    pub kind: EndpointKind,
    /// Address and port.
    pub address: SocketAddr,
}

/// Whether a probe may be sent to `address`: not to nobody, to everybody, to ourselves, nor into the overlay.
pub fn usable(address: SocketAddr, overlay: &[IpNet]) -> bool {
    let ip = address.ip().to_canonical();
    let sensible = match ip {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local()
                || v4.octets()[0] == 0
                || v4.octets()[0] >= 240)
        }
        // Link-local addresses mean nothing without a zone.
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local()),
    };
    sensible && address.port() != 0 && !overlay.iter().any(|net| net.contains(&ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_addresses_are_never_probed() {
        let overlay = ["10.7.0.0/24".parse().unwrap(), "fd12::/64".parse().unwrap()];
        let absurd = [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "127.0.0.1:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "240.0.0.1:1",
            "169.254.1.1:1",
            "192.0.2.1:0",
            "10.7.0.9:1",
            "[::]:1",
            "[::1]:1",
            "[ff02::1]:1",
            "[fe80::1]:1",
            "[fd12::5]:1",
            "[::ffff:127.0.0.1]:1",
            "[::ffff:10.7.0.9]:1",
        ];
        for address in absurd {
            assert!(!usable(address.parse().unwrap(), &overlay), "{address}");
        }
        for address in ["10.8.0.9:1", "192.168.1.2:65535", "203.0.113.5:3478", "[2001:db8::1]:1", "[fd13::5]:1"] {
            assert!(usable(address.parse().unwrap(), &overlay), "{address}");
        }
    }
}
