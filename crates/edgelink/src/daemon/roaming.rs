//! The host's addresses and ways out, and its sleep: whatever changes is told to the core, and connections that were made
//! from an address that packets do not leave by any more are given up.

use super::tunnel::{LinkHandle, Tunnel};
use super::{os_rng, port_mapping};
use anyhow::Result;
use edgelink_node::{LinkId, Node};
use edgelink_os::clock::{self, ClockWatch};
use edgelink_os::net::Netlink;
use ipnet::IpNet;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, socket};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixDatagram;

/// Changes of addresses come in bursts.
const SETTLE: Duration = Duration::from_millis(200);
/// Groups of `rtnetlink(7)`: links, addresses and routes of IPv4 and IPv6.
const GROUPS: u32 = 0x1 | 0x10 | 0x100 | 0x40 | 0x400;
/// Both clocks are read one after the other: less is no sleep.
const SLEPT: Duration = Duration::from_secs(3);

/// Tells the core the host's addresses and ways out, now and whenever they change.
pub(super) async fn watch(tunnel: Rc<Tunnel>) {
    let watch = match open_watch() {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "changes of addresses are not noticed");
            None
        }
    };
    let netlink = match Netlink::open() {
        Ok(netlink) => Some(netlink),
        Err(error) => {
            tracing::warn!(%error, "changes of the default route are not noticed");
            None
        }
    };
    let (mut addresses, mut routes) = (Vec::new(), None);
    for first in std::iter::once(true).chain(std::iter::repeat(false)) {
        let mut new = local_addresses(|name| name == tunnel.tun.name() || tunnel.shared.carries(name));
        new.sort_unstable();
        tunnel.feed(|node, now| node.set_local_addresses(&new, now));
        let mut changed = std::mem::replace(&mut addresses, new.clone()) != new;
        let mut rerouted = false;
        if let Some(netlink) = &netlink {
            let new = port_mapping::default_routes(netlink, tunnel.tun.index()).await;
            rerouted = routes.replace(new) != Some(new);
            changed |= rerouted;
            if rerouted && !first {
                tunnel.feed(Node::uplink_changed);
            }
            tunnel.port_mapper.set_route(new[0]);
        }
        if changed && !first {
            let stranded = stranded(&tunnel, &addresses, rerouted);
            tracing::debug!(links = stranded.len(), "addresses or ways out have changed");
            for link in &stranded {
                if let Some(handle) = tunnel.links.borrow_mut().remove(link) {
                    handle.task.abort();
                }
            }
            tunnel.feed(|node, now| node.links_stranded(&stranded, now, &mut os_rng()));
        }
        let Some(watch) = &watch else { return };
        if wait(watch).await.is_err() {
            return;
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Tells the core when the host has slept. Short of that, its clock was set, which the core finds out by itself.
pub(super) async fn watch_clock(tunnel: Rc<Tunnel>) {
    let watch = match ClockWatch::open() {
        Ok(watch) => watch,
        Err(error) => return tracing::debug!(%error, "sleep is noticed at the next deadline only"),
    };
    let mut slept = clock::suspended();
    while watch.jumped().await.is_ok() {
        let before = std::mem::replace(&mut slept, clock::suspended());
        if slept.saturating_sub(before) > SLEPT {
            tunnel.feed(Node::resumed);
        } else {
            tunnel.feed(|node, now| node.handle_timeout(now, &mut os_rng()));
        }
    }
}

/// Connections whose own address is gone, or whose packets leave by another one or not at all since default routes have
/// changed; and those that are being dialled, because nobody knows from where.
fn stranded(tunnel: &Tunnel, addresses: &[IpNet], rerouted: bool) -> Vec<LinkId> {
    let moved = |handle: &LinkHandle| {
        let Some((ours, theirs)) = handle.ends else { return true };
        let ours = ours.ip().to_canonical();
        let is_gone = !ours.is_loopback() && !addresses.iter().any(|net| net.addr() == ours);
        // A neighbour is met at the address that it has dialled, whichever we would choose.
        let is_elsewhere = || rerouted && !source_towards(theirs).is_ok_and(|source| source == ours);
        is_gone || (!handle.neighbour && is_elsewhere())
    };
    tunnel.links.borrow().iter().filter(|(_, handle)| moved(handle)).map(|(link, _)| *link).collect()
}

/// Which address of ours the kernel would use; nothing is sent.
fn source_towards(remote: SocketAddr) -> std::io::Result<IpAddr> {
    let remote = SocketAddr::new(remote.ip().to_canonical(), 9);
    let socket = Socket::new(Domain::for_address(remote), Type::DGRAM, Some(Protocol::UDP))?;
    socket.connect(&remote.into())?;
    let local = socket.local_addr()?.as_socket().ok_or(ErrorKind::AddrNotAvailable)?;
    Ok(local.ip().to_canonical())
}

/// Addresses of interfaces that are up and have a carrier, without loopback and our own tunnels.
fn local_addresses(ours: impl Fn(&str) -> bool) -> Vec<IpNet> {
    let interfaces = match getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!(%error, "cannot list the addresses of this host");
            return Vec::new();
        }
    };
    interfaces
        .filter(|entry| {
            !ours(&entry.interface_name)
                && entry.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING)
                && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK)
        })
        .filter_map(|entry| {
            let (address, mask) = (ip_of(entry.address?)?, ip_of(entry.netmask?)?);
            IpNet::with_netmask(address, mask).ok()
        })
        .collect()
}

fn ip_of(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// The netlink socket in the clothes of a datagram socket: reading is the same system call for both.
fn open_watch() -> Result<UnixDatagram> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    Ok(UnixDatagram::from_std(fd.into())?)
}

/// Waits for messages and throws them away: what matters is that there were some.
async fn wait(watch: &UnixDatagram) -> std::io::Result<()> {
    let mut buffer = [0u8; 8 << 10];
    watch.readable().await?;
    loop {
        match watch.try_recv(&mut buffer) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // Lost messages are changes too.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_no_address_to_be_reached_at() {
        assert!(local_addresses(|_| false).iter().all(|net| !net.addr().is_loopback()));
    }

    #[test]
    fn the_address_towards_ourselves_is_our_own() {
        for address in ["127.0.0.1", "::ffff:127.0.0.1"] {
            let remote = SocketAddr::new(address.parse().unwrap(), 80);
            assert_eq!(source_towards(remote).unwrap(), IpAddr::from([127, 0, 0, 1]));
        }
    }
}
