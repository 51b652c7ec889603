//! Hosts that change their way out.
#![allow(clippy::disallowed_methods, reason = "the testbed works on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicU64, Ordering},
};

use common::{MS, SOON, at, each_kind_at_once, ip};
use edgelink_testbed::{
    Direction, Host, Impairment, NatKind,
    topology::{Internet, SitePlan, UplinkPlan},
    wait,
};

/// Where the server sees a new datagram come from, if it comes.
fn seen(socket: &UdpSocket, server: &UdpSocket) -> Option<SocketAddr> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    socket.send_to(&number, server.local_addr().unwrap()).unwrap();
    let mut buf = [0; 8];
    // Others are late ones.
    loop {
        let (_, from) = server.recv_from(&mut buf).ok()?;
        if buf == number {
            return Some(from);
        }
    }
}

/// The same, asked until it comes.
fn seen_soon(socket: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    wait::until("a datagram", SOON, || seen(socket, server)).unwrap()
}

fn any_socket(host: &Host) -> UdpSocket {
    host.udp_socket(at("0.0.0.0:0")).unwrap()
}

#[test]
fn a_host_goes_from_one_uplink_to_the_other_and_back() {
    each_kind_at_once(|lab| {
        let internet = Internet::new(lab).unwrap();
        let (server, addresses) = internet.server("server", 1).unwrap();
        let lte = UplinkPlan::new(NatKind::Symmetric).link(Impairment::none().delay(20 * MS));
        let plan = SitePlan::behind(NatKind::PortRestricted).second(lte.carrier(NatKind::FullCone));
        let site = internet.site("home", &plan).unwrap();
        let (host, second) = (&site.hosts[0], site.second.as_ref().unwrap());
        let listening = server.udp_socket(SocketAddr::new(addresses[0], 9)).unwrap();
        listening.set_read_timeout(Some(300 * MS)).unwrap();
        let socket = any_socket(host);

        let by = |socket| seen(socket, &listening).map(|from| from.ip());
        let soon_by = |socket| seen_soon(socket, &listening).ip();
        let (first_ip, second_ip) = (IpAddr::from(site.first.public), IpAddr::from(second.public));
        assert_eq!(soon_by(&socket), first_ip);
        // The cable of the first one is pulled: nothing passes, although the host does not see why.
        site.first.link.plug(false).unwrap();
        assert_eq!(by(&socket), None);
        second.take(host).unwrap();
        assert_eq!(soon_by(&socket), second_ip);
        assert!(second.link.counters(Direction::Forth).unwrap().delivered > 0);
        // IPv6 goes the same way.
        assert!(host.pings(ip("2001:db8::a")).unwrap());
        site.first.link.plug(true).unwrap();
        site.first.take(host).unwrap();
        wait::until("the first uplink", SOON, || (by(&socket) == Some(first_ip)).then_some(())).unwrap();
    });
}

#[test]
fn a_host_and_its_router_change_addresses() {
    each_kind_at_once(|lab| {
        let internet = Internet::new(lab).unwrap();
        let (server, addresses) = internet.server("server", 1).unwrap();
        let site = internet.site("home", &SitePlan::behind(NatKind::PortRestricted)).unwrap();
        let host = &site.hosts[0];
        let listening = server.udp_socket(SocketAddr::new(addresses[0], 9)).unwrap();
        listening.set_read_timeout(Some(300 * MS)).unwrap();
        let (bound, free) = (host.udp_socket(at("10.1.0.2:4000")).unwrap(), any_socket(host));
        assert_eq!(seen_soon(&bound, &listening).port(), 4000);

        host.change_address("eth0", "10.1.0.2/24", "10.1.0.77/24").unwrap();
        assert!(host.udp_socket(at("10.1.0.2:4001")).is_err(), "the old address is gone");
        // The default route is still there.
        seen_soon(&free, &listening);
        assert!(host.udp_socket(at("10.1.0.77:4001")).is_ok());

        let before = seen_soon(&free, &listening);
        assert_eq!(before.ip(), IpAddr::from(site.first.public));
        site.first.router.renumber("wan", &format!("{}/24", site.first.public), "203.0.113.240/24").unwrap();
        let after = seen_soon(&free, &listening);
        assert_eq!(after.ip(), ip("203.0.113.240"));
        // The way in by the old address is gone.
        server.udp_socket(SocketAddr::new(addresses[0], 10)).unwrap().send_to(b"late", before).unwrap();
        free.set_nonblocking(true).unwrap();
        assert!(free.recv(&mut [0; 64]).is_err());
    });
}

#[test]
fn an_interface_that_goes_down_takes_its_routes() {
    each_kind_at_once(|lab| {
        let internet = Internet::new(lab).unwrap();
        let (server, addresses) = internet.server("server", 1).unwrap();
        let second = UplinkPlan::new(NatKind::FullCone);
        let site = internet.site("home", &SitePlan::behind(NatKind::PortRestricted).second(second)).unwrap();
        let host = &site.hosts[0];
        let listening = server.udp_socket(SocketAddr::new(addresses[0], 9)).unwrap();
        listening.set_read_timeout(Some(SOON)).unwrap();
        host.set_link("eth0", false).unwrap();
        let error = any_socket(host).send_to(b"lost", listening.local_addr().unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
        let second = site.second.as_ref().unwrap();
        second.take(host).unwrap();
        assert_eq!(seen(&any_socket(host), &listening).unwrap().ip(), IpAddr::from(second.public));
    });
}
