//! Every NAT does what its name says: seen by the prober, and independently by coturn; and who reaches whom through which.
#![allow(clippy::disallowed_methods, reason = "the testbed works on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use common::{MS, SOON, each_kind_at_once, fair, ip, lab, measured};
use edgelink_testbed::{
    Behaviour::{self, AddressAndPortDependent as Apd, AddressDependent as Ad, EndpointIndependent as Ei},
    Direction, Host, Impairment, Lab, Nat, NatKind, Process, Tool,
    probe::{Inside, Observer, hairpin, lives, look, punch},
    tools,
    topology::{Internet, Site, SitePlan},
    wait,
};

const ALL: [Behaviour; 3] = [Ei, Ad, Apd];

/// A server with two addresses, and a site.
struct Net<'a> {
    internet: Internet<'a>,
    server: Host,
    addresses: [IpAddr; 2],
    site: Site,
}

impl<'a> Net<'a> {
    fn new(lab: &'a Lab, plan: &SitePlan) -> Self {
        let internet = Internet::new(lab).unwrap();
        let (server, addresses) = internet.server("server", 2).unwrap();
        let site = internet.site("site", plan).unwrap();
        Self { internet, server, addresses: addresses.try_into().unwrap(), site }
    }

    fn observer(&self) -> Observer {
        Observer::new(&self.server, self.addresses).unwrap()
    }

    fn inside(&self, n: u8) -> Inside<'_> {
        Inside { host: &self.site.hosts[usize::from(n)], address: self.site.address(n).into() }
    }
}

/// What each kind is, and whether it keeps ports.
fn meaning(kind: NatKind) -> Option<(Behaviour, Behaviour, bool)> {
    Some(match kind {
        NatKind::None | NatKind::FullCone | NatKind::OneToOne => (Ei, Ei, true),
        NatKind::RestrictedCone => (Ei, Ad, true),
        NatKind::PortRestricted | NatKind::EarlyClaims => (Ei, Apd, true),
        NatKind::AddressDependent => (Ad, Apd, false),
        NatKind::Symmetric => (Apd, Apd, false),
        NatKind::UdpBlocked => return None,
    })
}

#[test]
fn each_kind_of_nat_is_what_its_name_says() {
    each_kind_at_once(|lab| {
        let net = Net::new(lab, &SitePlan::behind(NatKind::PortRestricted));
        let observer = net.observer();
        for kind in NatKind::ALL.into_iter().filter(|kind| *kind != NatKind::None) {
            net.site.renat(kind).unwrap();
            let seen = look(net.inside(0), &observer).unwrap();
            let summary = seen.map(|seen| (seen.mapping, seen.filtering, seen.port_kept));
            assert_eq!(summary, meaning(kind), "{kind}: {seen:?}");
            if let Some(seen) = seen {
                assert_eq!(seen.outer, IpAddr::from(net.site.first.public), "{kind}");
                assert!(!seen.hairpin, "{kind}");
            }
            // TCP and ICMP pass everywhere.
            let listener = net.server.tcp_listener(SocketAddr::new(net.addresses[0], 80)).unwrap();
            net.site.hosts[0].tcp_connect(SocketAddr::new(net.addresses[0], 80), SOON).unwrap();
            assert_eq!(listener.accept().unwrap().1.ip(), IpAddr::from(net.site.first.public), "{kind}");
            assert!(net.site.hosts[0].pings(net.addresses[0]).unwrap(), "{kind}");
            // Inner addresses are out of reach for those who know the way, but for one-to-one's own host.
            net.server.ip(&["route", "replace", "10.1.0.0/24", "via", &net.site.first.public.to_string()]).unwrap();
            let inner = net.site.hosts[0].tcp_listener(SocketAddr::new(net.site.address(0).into(), 81)).unwrap();
            let inner_address = inner.local_addr().unwrap();
            if kind != NatKind::OneToOne {
                assert!(net.server.tcp_connect(inner_address, 30 * MS).is_err(), "{kind}");
            }
        }
        // Without a NAT the site is routed.
        let routed = net.internet.site("routed", &SitePlan::behind(NatKind::None)).unwrap();
        let seen = look(routed.inside().unwrap(), &observer).unwrap().unwrap();
        assert_eq!((seen.mapping, seen.filtering, seen.outer), (Ei, Ei, routed.address(0).into()));
    });
}

#[test]
fn every_mapping_goes_with_every_filtering() {
    let lab = lab();
    let net = Net::new(&lab, &SitePlan::behind(NatKind::PortRestricted).hosts(2));
    let observer = net.observer();
    for mapping in ALL {
        for filtering in ALL {
            net.site.nat(&Nat::new("wan", mapping, filtering)).unwrap();
            let seen = look(net.inside(0), &observer).unwrap().unwrap();
            assert_eq!((seen.mapping, seen.filtering), (mapping, filtering));
            assert_eq!(seen.port_kept, mapping == Ei);
        }
    }
    for filtering in ALL {
        net.site.nat(&Nat::new("wan", Ei, filtering).keep_ports(false)).unwrap();
        let seen = look(net.inside(0), &observer).unwrap().unwrap();
        assert_eq!((seen.mapping, seen.filtering, seen.port_kept), (Ei, filtering, false));

        net.site.nat(&Nat::new("wan", Ei, filtering).hairpin(true)).unwrap();
        let seen = look(net.inside(0), &observer).unwrap().unwrap();
        assert_eq!((seen.mapping, seen.filtering, seen.hairpin), (Ei, filtering, true));
        assert!(hairpin(net.inside(0), net.inside(1), &observer).unwrap(), "between two hosts, {filtering}");
        net.site.nat(&Nat::new("wan", Ei, filtering)).unwrap();
        assert!(!hairpin(net.inside(0), net.inside(1), &observer).unwrap(), "between two hosts, {filtering}");
    }
}

#[test]
fn behind_two_nats_the_stricter_counts() {
    each_kind_at_once(|lab| {
        let internet = Internet::new(lab).unwrap();
        let (server, addresses) = internet.server("server", 2).unwrap();
        let observer = Observer::new(&server, addresses.try_into().unwrap()).unwrap();
        for (n, (carrier, home, wanted)) in [
            (NatKind::FullCone, NatKind::PortRestricted, (Ei, Apd)),
            (NatKind::Symmetric, NatKind::FullCone, (Apd, Apd)),
            (NatKind::FullCone, NatKind::RestrictedCone, (Ei, Ad)),
        ]
        .into_iter()
        .enumerate()
        {
            let site = internet.site(&format!("s{n}"), &SitePlan::behind(home).carrier(carrier)).unwrap();
            let seen = look(site.inside().unwrap(), &observer).unwrap().unwrap();
            assert_eq!((seen.mapping, seen.filtering), wanted, "{carrier} over {home}");
            assert_eq!(seen.outer, IpAddr::from(site.first.public));
            assert!(site.hosts[0].pings(ip("2001:db8::a")).unwrap(), "IPv6 passes as it is");
            assert!(server.pings(ip(&format!("2001:db8:{}::2", n + 1))).unwrap(), "both ways");
        }
    });
}

#[test]
fn mappings_live_as_long_as_asked_and_die_with_a_reboot() {
    let lab = lab();
    let net = Net::new(&lab, &SitePlan::behind(NatKind::PortRestricted));
    let observer = net.observer();
    for (nat, answered) in
        [(Nat::port_restricted("wan"), false), (Nat::port_restricted("wan"), true), (Nat::full_cone("wan"), false)]
    {
        net.site.nat(&nat.lifetime(Duration::from_secs(1))).unwrap();
        measured("it lives, unless the machine oversleeps the second", || {
            let began = Instant::now();
            let alive = lives(net.inside(0), &observer, 300 * MS, answered).unwrap();
            assert!(alive || began.elapsed() > 950 * MS, "dead after {:?}", began.elapsed());
            fair(alive, began.elapsed())
        });
        assert!(!lives(net.inside(0), &observer, 1_300 * MS, answered).unwrap());
    }
    // A reboot: the way in is closed although its time is not over, for learnt mappings too.
    for kind in [NatKind::PortRestricted, NatKind::FullCone, NatKind::RestrictedCone, NatKind::Symmetric] {
        net.site.renat(kind).unwrap();
        let probe = net.site.hosts[0].udp_socket(SocketAddr::new(net.site.address(0).into(), 0)).unwrap();
        let server = net.server.udp_socket(SocketAddr::new(net.addresses[0], 5000)).unwrap();
        for socket in [&probe, &server] {
            socket.set_read_timeout(Some(SOON)).unwrap();
        }
        let mut buf = [0; 64];
        probe.send_to(b"one", SocketAddr::new(net.addresses[0], 5000)).unwrap();
        let (_, outer) = server.recv_from(&mut buf).unwrap();
        server.send_to(b"answer", outer).unwrap();
        assert_eq!(probe.recv(&mut buf).unwrap(), 6);
        net.site.first.router.reboot().unwrap();
        let passed = || net.site.first.link.counters(Direction::Back).unwrap().delivered;
        let before = passed();
        server.send_to(b"lost", outer).unwrap();
        wait::until("the packet at the router", SOON, || (passed() > before).then_some(())).unwrap();
        probe.send_to(b"again", SocketAddr::new(net.addresses[0], 5000)).unwrap();
        let (_, again) = server.recv_from(&mut buf).unwrap();
        assert_eq!(again == outer, kind != NatKind::Symmetric, "{kind}: ports are kept, or random");
        server.send_to(b"new answer", again).unwrap();
        assert_eq!(probe.recv(&mut buf).unwrap(), 10, "{kind}: what came before the new packet was dropped");
    }
    // Another address over night.
    let router = &net.site.first.router;
    router.renumber("wan", &format!("{}/24", net.site.first.public), "203.0.113.222/24").unwrap();
    let seen = look(net.inside(0), &observer).unwrap().unwrap();
    assert_eq!((seen.mapping, seen.outer), (Apd, ip("203.0.113.222")));
    router.nat(&Nat::port_restricted("wan").hairpin(true)).unwrap();
    router.renumber("wan", "203.0.113.222/24", "203.0.113.223/24").unwrap();
    let seen = look(net.inside(0), &observer).unwrap().unwrap();
    assert!(seen.hairpin && seen.outer == ip("203.0.113.223"), "hairpinning knows the new address: {seen:?}");
}

#[test]
fn ipv6_passes_and_is_guarded_where_asked() {
    let lab = lab();
    let net = Net::new(&lab, &SitePlan::behind(NatKind::PortRestricted));
    let (inner, server) = (ip("2001:db8:1::2"), ip("2001:db8::a"));
    assert!(net.server.pings(inner).unwrap());
    net.site.nat(&Nat::port_restricted("wan").ipv6_firewall(true)).unwrap();
    assert!(!net.server.pings(inner).unwrap(), "what begins outside");
    assert!(net.site.hosts[0].pings(server).unwrap(), "what begins inside");
    let observer = Observer::new(&net.server, [server, server]);
    assert!(format!("{:#}", observer.unwrap_err()).contains("cannot listen"), "two different addresses are needed");
}

/// Whether punching should succeed: a side whose mapping depends on the destination shows the other an unknown port, which a
/// filter by port refuses.
fn reach(one: NatKind, other: NatKind) -> bool {
    let (Some((map_one, filter_one, _)), Some((map_other, filter_other, _))) = (meaning(one), meaning(other)) else {
        return false;
    };
    let through = |map, filter| map == Ei || filter != Apd;
    through(map_one, filter_other) && through(map_other, filter_one)
}

#[test]
fn who_reaches_whom_by_punching() {
    each_kind_at_once(|lab| {
        let net = Net::new(lab, &SitePlan::behind(NatKind::PortRestricted));
        let right = net.internet.site("right", &SitePlan::behind(NatKind::PortRestricted)).unwrap();
        let observer = net.observer();
        let kinds: Vec<_> =
            NatKind::ALL.into_iter().filter(|kind| !matches!(kind, NatKind::None | NatKind::EarlyClaims)).collect();
        let mut failed = Vec::new();
        for (n, left) in kinds.iter().enumerate() {
            for other in kinds.iter().skip(n) {
                net.site.renat(*left).unwrap();
                right.renat(*other).unwrap();
                // Rounds follow each other quickly: a busy machine may fail, but makes nothing possible that is not.
                let passes = *left != NatKind::UdpBlocked && *other != NatKind::UdpBlocked;
                let sides = || (net.site.inside().unwrap(), right.inside().unwrap());
                let punched = || punch(sides().0, sides().1, &observer, Duration::ZERO).unwrap();
                let tries = if reach(*left, *other) { 5 } else { 1 };
                let done = passes && (0..tries).any(|_| punched());
                assert_eq!(done, reach(*left, *other), "{left} and {other}");
                if !done {
                    failed.push((*left, *other));
                }
            }
        }
        use NatKind::{AddressDependent, PortRestricted, Symmetric, UdpBlocked};
        failed.retain(|(_, other)| *other != UdpBlocked);
        let wanted = [
            (PortRestricted, AddressDependent),
            (PortRestricted, Symmetric),
            (AddressDependent, AddressDependent),
            (AddressDependent, Symmetric),
            (Symmetric, Symmetric),
        ];
        assert_eq!(failed, wanted);
    });
}

#[test]
fn the_trap_of_a_missing_drop_catches_who_is_punched_too_early() {
    let lab = lab();
    let slow = SitePlan::behind(NatKind::PortRestricted).link(Impairment::none().delay(5 * MS));
    let net = Net::new(&lab, &slow);
    let right = net.internet.site("right", &SitePlan::behind(NatKind::EarlyClaims)).unwrap();
    let observer = net.observer();
    let punches =
        |head_start| punch(net.site.inside().unwrap(), right.inside().unwrap(), &observer, head_start).unwrap();
    // Both have sent before anything comes, unless this thread is held up between the two.
    measured("punching at once", || fair(punches(Duration::ZERO), "no way through"));
    // The left one's packet comes before the right one has sent, and claims its port.
    assert!(!punches(100 * MS));
    // The ordinary router drops it, and all is well.
    right.renat(NatKind::PortRestricted).unwrap();
    measured("punching early", || fair(punches(100 * MS), "no way through"));
}

#[test]
fn coturn_agrees() {
    tools::require(&[Tool::Turnserver, Tool::NatDiscovery]).unwrap();
    each_kind_at_once(|lab| {
        let internet = Internet::new(lab).unwrap();
        let (server, addresses) = internet.server("coturn", 2).unwrap();
        let _coturn = turnserver(lab, &server, &addresses);
        // All at once, for it waits long for what does not come.
        let asked: Vec<_> = NatKind::ALL
            .into_iter()
            .filter_map(|kind| {
                let (mapping, filtering, _) = meaning(kind)?;
                let site = internet.site(kind.name(), &SitePlan::behind(kind)).unwrap();
                let questions = ["-m", "-f"].map(|what| discover(&site, addresses[0], what));
                Some((kind, site, questions, [mapping, filtering]))
            })
            .collect();
        assert_eq!(asked.len(), NatKind::ALL.len() - 1);
        for (kind, _site, questions, wanted) in asked {
            assert_eq!(questions.map(|question| answer(&question)), wanted, "{kind}");
        }
    });
}

/// coturn with two addresses in the lab, which goes with it.
fn turnserver(lab: &Lab, host: &Host, addresses: &[IpAddr]) -> Process {
    let file = |name: &str| lab.dir().join(name).display().to_string();
    let mut server = host.command("turnserver").args(["-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls"]);
    for address in addresses {
        server = server.args(["-L", &address.to_string()]);
    }
    let server = server.args(["--log-file", "stdout", "--pidfile", &file("turn.pid"), "--userdb", &file("turn.db")]);
    let server = server.spawn_logged().unwrap();
    // It listens at this port and the next; TCP tells that it does.
    host.wait_tcp(SocketAddr::new(addresses[1], 3479), SOON).unwrap();
    server
}

/// Starts one discovery. Its port is given, so that hashed mappings are the same in every run; and another one for the filter,
/// which must not have seen packets to the other address.
fn discover(site: &Site, server: IpAddr, what: &str) -> Process {
    let port = if what == "-m" { "17000" } else { "17001" };
    let (local, server) = (site.address(0).to_string(), server.to_string());
    let command = site.hosts[0].command("turnutils_natdiscovery").args([what, "-L", &local, "-l", port, &server]);
    command.spawn_logged().unwrap()
}

fn answer(question: &Process) -> Behaviour {
    question.wait(6 * SOON).unwrap();
    let text = question.stdout();
    let names = [("Endpoint Independent", Ei), ("Address Dependent", Ad), ("Address and Port Dependent", Apd)];
    let said = |name: &str| {
        // "No NAT! (Endpoint Independent Mapping)" where there is none.
        ["Mapping!", "Filtering!"].iter().any(|noun| text.contains(&format!("NAT with {name} {noun}")))
            || text.contains(&format!("No NAT! ({name} Mapping)"))
    };
    let found: Vec<_> = names.into_iter().filter(|(name, _)| said(name)).collect();
    let [(_, one)] = found[..] else { panic!("{text}{}", question.stderr()) };
    one
}
