//! The addresses of this host.

use edgelink_os::net::Netlink;
use std::net::{IpAddr, UdpSocket};

/// Addresses of this host, the one with the default route first, loopback and link-local ones left out.
pub async fn own() -> Vec<IpAddr> {
    let default = match Netlink::open() {
        Ok(netlink) => netlink.default_route_address().await.ok().flatten(),
        Err(_) => None,
    };
    let mut all: Vec<IpAddr> = default.into_iter().collect();
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    for address in interfaces.filter_map(|i| i.address) {
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) if !v6.ip().is_unicast_link_local() => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        if !ip.is_loopback() && !all.contains(&ip) {
            all.push(ip);
        }
    }
    all
}

/// Whether packets may leave this host from `ip`.
pub fn is_own(ip: IpAddr) -> bool {
    !ip.is_unspecified() && UdpSocket::bind((ip, 0)).is_ok()
}
