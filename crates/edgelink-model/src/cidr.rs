//! Which prefixes may be subnet routes, and which addresses they carry (specification §7, DESIGN §7).

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most routes that one node may announce.
pub const MAX_ANNOUNCED: usize = 1024;

/// What no route leads to: this host and its links, groups, reserved addresses. Shortest prefixes.
const NEVER_V4: [Ipv4Net; 5] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
    Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4),
];
const NEVER_V6: [Ipv6Net; 4] = [
    // Unspecified, loopback, IPv4-compatible; IPv4-mapped addresses (RFC 4291 §2.5.5), which would be IPv4's back door.
    Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// Why a prefix is no subnet route. The texts are fit for users.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRoute {
    /// The address does not end where the prefix does.
    #[error("the route {0} has host bits set; did you mean {1}?")]
    HostBits(IpNet, IpNet),
    /// Loopback, link-local, multicast, reserved or IPv4-mapped addresses.
    #[error("{0} cannot be a route: such addresses never leave their host or link")]
    Unroutable(IpNet),
    /// Addresses of nodes.
    #[error("{0} cannot be a route: it lies in the network's own subnet {1}, whose addresses belong to nodes")]
    Overlay(IpNet, IpNet),
}

/// Checks a prefix that is to be a subnet route of a network with these overlay subnets. Default routes are fine.
///
/// # Errors
/// [`BadRoute`].
pub fn check(cidr: IpNet, overlay: &[IpNet]) -> Result<(), BadRoute> {
    if cidr.trunc() != cidr {
        return Err(BadRoute::HostBits(cidr, cidr.trunc()));
    }
    let never = match cidr {
        IpNet::V4(net) => NEVER_V4.iter().any(|never| never.contains(&net)),
        IpNet::V6(net) => NEVER_V6.iter().any(|never| never.contains(&net)),
    };
    // The default route begins with 0.0.0.0 and ::, and contains them rather than the other way round.
    if never {
        return Err(BadRoute::Unroutable(cidr));
    }
    match overlay.iter().find(|subnet| subnet.contains(&cidr)) {
        Some(subnet) => Err(BadRoute::Overlay(cidr, *subnet)),
        None => Ok(()),
    }
}

/// Whether a subnet route may carry packets to or from this address: even a default route carries none of the addresses
/// that [`check`] refuses.
pub fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !NEVER_V4.iter().any(|never| never.contains(&v4)),
        IpAddr::V6(v6) => !NEVER_V6.iter().any(|never| never.contains(&v6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn default_routes_and_ordinary_subnets_are_routes() {
        let overlay = [net("10.7.0.0/24"), net("fd12:3456:789a::/64")];
        for good in ["0.0.0.0/0", "::/0", "192.168.1.0/24", "10.0.0.0/8", "1.2.3.4/32", "2001:db8::/32", "fd00::/8"] {
            assert_eq!(check(net(good), &overlay), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_is_no_route_is_refused_in_words() {
        let overlay = [net("10.7.0.0/24"), net("fd12:3456:789a::/64")];
        for (bad, says) in [
            ("192.168.1.5/24", "did you mean 192.168.1.0/24?"),
            ("127.0.0.0/8", "never leave"),
            ("127.0.0.1/32", "never leave"),
            ("169.254.169.254/32", "never leave"),
            ("224.0.0.0/4", "never leave"),
            ("0.0.0.0/8", "never leave"),
            ("255.255.255.255/32", "never leave"),
            ("::1/128", "never leave"),
            ("fe80::/64", "never leave"),
            ("ff02::/16", "never leave"),
            ("::ffff:0:0/96", "never leave"),
            ("::ffff:10.0.0.0/104", "never leave"),
            ("10.7.0.0/24", "the network's own subnet 10.7.0.0/24"),
            ("10.7.0.9/32", "the network's own subnet"),
            ("fd12:3456:789a::7/128", "the network's own subnet"),
        ] {
            let error = check(net(bad), &overlay).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn even_default_routes_carry_no_mapped_or_local_addresses() {
        for bad in ["::ffff:10.0.0.1", "127.0.0.1", "::1", "fe80::1", "224.0.0.1", "169.254.1.1", "0.0.0.0", "::"] {
            assert!(!is_routable(bad.parse().unwrap()), "{bad}");
        }
        for good in ["8.8.8.8", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(is_routable(good.parse().unwrap()), "{good}");
        }
    }
}
