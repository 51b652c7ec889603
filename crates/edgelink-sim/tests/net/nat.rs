//! What a prober does not see: lifetimes, port assignment, pools, hairpinning, tables, reboots, firewalls.

use crate::prober::Server;
use crate::{Lab, MS, SECOND, at, ip};
use edgelink_sim::net::{
    DropReason, Filtering, FirewallConfig, Hairpin, HostId, LanConfig, LanId, NatConfig, Overflow, Pooling,
    PortAssignment,
};
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// A server and `N` clients behind one NAT.
fn behind<const N: usize>(nat: NatConfig) -> (Lab, Server, LanId, [HostId; N]) {
    let mut lab = Lab::new(21);
    let server = Server::new(&mut lab);
    let site = lab.site(nat);
    let clients = std::array::from_fn(|_| lab.net.add_host_on(site).unwrap());
    (lab, server, site, clients)
}

fn with(ports: PortAssignment) -> NatConfig {
    NatConfig { ports, ..NatConfig::full_cone() }
}

#[test]
fn a_mapping_lives_exactly_as_long_as_configured() {
    let nat = NatConfig { inbound_refresh: false, ports: PortAssignment::Random, ..NatConfig::full_cone() };
    let nat = NatConfig { timeout: 30 * SECOND, ..nat };
    let (mut lab, server, _, [client]) = behind(nat);
    let outside = lab.host("198.51.100.9");
    let arrives = |lab: &mut Lab, to| {
        lab.send(outside, 7, to, &b"in"[..]);
        lab.advance(std::time::Duration::ZERO).len()
    };
    lab.send(client, 5000, server.endpoint(0, 0), &b"out"[..]);
    let external = lab.advance(std::time::Duration::ZERO)[0].from;
    lab.advance(30 * SECOND - MS);
    assert_eq!(arrives(&mut lab, external), 1, "to the last");
    lab.advance(MS);
    assert_eq!(arrives(&mut lab, external), 0, "inbound does not refresh");
    assert_eq!(lab.net.drops().of(DropReason::NoMapping), 1);
    assert_ne!(server.reflexive(&mut lab, client, 5000), external, "a new mapping");

    let (mut lab, server, _, [client]) = behind(NatConfig { inbound_refresh: true, ..nat });
    let outside = lab.host("198.51.100.9");
    let external = server.reflexive(&mut lab, client, 5000);
    for _ in 0..10 {
        lab.advance(20 * SECOND);
        assert!(lab.deliver(outside, 7, external).is_some(), "inbound refreshes");
    }
    for _ in 0..10 {
        lab.advance(20 * SECOND);
        assert_eq!(server.reflexive(&mut lab, client, 5000), external, "outbound refreshes");
    }
}

#[test]
fn each_permission_in_a_filter_has_its_own_life() {
    let nat = NatConfig { timeout: 30 * SECOND, ..NatConfig::restricted_cone() };
    let (mut lab, server, _, [client]) = behind(nat);
    let old = lab.host("198.51.100.9");
    let external = server.reflexive(&mut lab, client, 5000);
    lab.send(client, 5000, at(ip("198.51.100.9"), 7), &b"hello"[..]);
    for _ in 0..3 {
        lab.advance(20 * SECOND);
        assert_eq!(server.reflexive(&mut lab, client, 5000), external);
    }
    assert!(lab.deliver(old, 7, external).is_none());
    assert_eq!(lab.net.drops().of(DropReason::Filtered), 1);
}

#[test]
fn preserved_ports_are_kept_until_two_want_the_same() {
    let (mut lab, server, _, [a, b]) = behind(with(PortAssignment::Preserving));
    assert_eq!(server.reflexive(&mut lab, a, 5000).port(), 5000);
    assert_ne!(server.reflexive(&mut lab, b, 5000).port(), 5000);
    assert_eq!(server.reflexive(&mut lab, b, 5001).port(), 5001);
}

#[test]
fn overloaded_ports_are_shared_and_told_apart_by_the_remote_endpoint() {
    let nat = NatConfig { ports: PortAssignment::Overloading, ..NatConfig::port_restricted() };
    let (mut lab, server, _, [a, b]) = behind(nat);
    let ask = |lab: &mut Lab, host, to| server.ask(lab, host, 5000, to, to).unwrap().port();
    assert_eq!(ask(&mut lab, a, (0, 0)), 5000);
    assert_eq!(ask(&mut lab, b, (0, 1)), 5000, "the same port, and each gets its own answer");
    assert_eq!(ask(&mut lab, a, (1, 0)), 5000);
    let moved = ask(&mut lab, b, (1, 0));
    assert_ne!(moved, 5000, "this remote endpoint would be ambiguous");
    assert_eq!(ask(&mut lab, b, (1, 0)), moved, "the flow stays where it is");
    assert_eq!(ask(&mut lab, b, (0, 1)), 5000, "and its other flows where they are");
}

#[test]
fn sequential_ports_follow_each_other() {
    let nat = NatConfig { ports: PortAssignment::Sequential(2), ..NatConfig::symmetric() };
    let (mut lab, server, _, [a]) = behind(nat);
    let ports: Vec<u16> = (0..50).map(|n| server.reflexive(&mut lab, a, 6000 + n).port()).collect();
    let wrapped = |next: u16, last: u16| if next > last { next - last } else { next.wrapping_sub(1024) };
    assert!(ports.windows(2).all(|pair| wrapped(pair[1], pair[0]) <= 2), "{ports:?}");
    assert!(ports.windows(2).filter(|pair| pair[1] == pair[0].wrapping_add(2)).count() >= 48, "{ports:?}");
}

#[test]
fn random_ports_are_spread_over_the_range() {
    let nat = NatConfig { first_port: 20_000, last_port: 20_999, ..with(PortAssignment::Random) };
    let nat = NatConfig { timeout: 10_000 * SECOND, ..nat };
    let (mut lab, server, _, [a]) = behind(nat);
    let ports: Vec<u16> = (0..1000).map(|n| server.reflexive(&mut lab, a, 6000 + n).port()).collect();
    let distinct: BTreeSet<u16> = ports.iter().copied().collect();
    assert_eq!((distinct.len(), distinct.first(), distinct.last()), (1000, Some(&20_000), Some(&20_999)));
    let low = ports[..200].iter().filter(|port| **port < 20_500).count();
    assert!((60..140).contains(&low), "{low} of the first 200 in the lower half");
    lab.send(a, 9999, server.endpoint(0, 0), &b"x"[..]);
    assert!(lab.advance(SECOND).is_empty());
    assert_eq!(lab.net.drops().of(DropReason::PortsExhausted), 1);
}

#[test]
fn parity_is_preserved() {
    for (first_port, last_port) in [(1024, 65_535), (1025, 1200), (1024, 1201)] {
        let nat = NatConfig { first_port, last_port, ..with(PortAssignment::ParityPreserving) };
        let (mut lab, server, _, [a]) = behind(nat);
        for port in 6000..6060 {
            let external = server.reflexive(&mut lab, a, port).port();
            assert_eq!(external % 2, port % 2);
            assert!((first_port..=last_port).contains(&external), "{external}");
        }
    }
}

#[test]
fn each_host_has_a_block_of_ports_and_no_more() {
    let nat =
        NatConfig { first_port: 10_000, last_port: 10_031, timeout: 60 * SECOND, ..with(PortAssignment::Blocks(16)) };
    let (mut lab, server, _, [a, b, c]) = behind(nat);
    let block = |lab: &mut Lab, host| -> BTreeSet<u16> {
        (0..16).map(|n| server.reflexive(lab, host, 6000 + n).port()).collect()
    };
    assert_eq!(block(&mut lab, a), (10_000..10_016).collect());
    let exhausted = |lab: &mut Lab, host| {
        let before = lab.net.drops().of(DropReason::PortsExhausted);
        assert!(server.ask(lab, host, 7000, (0, 0), (0, 0)).is_none());
        assert_eq!(lab.net.drops().of(DropReason::PortsExhausted), before + 1);
    };
    exhausted(&mut lab, a);
    assert_eq!(server.reflexive(&mut lab, b, 6000).port() / 16, 10_016 / 16, "the next block");
    exhausted(&mut lab, c);
    lab.advance(60 * SECOND);
    assert_eq!(server.reflexive(&mut lab, c, 6000).port() / 16, 10_000 / 16, "a's block is free again");
}

#[test]
fn pooled_addresses_are_paired_or_arbitrary() {
    for pooling in [Pooling::Paired, Pooling::Arbitrary] {
        let mut lab = Lab::new(22);
        let server = Server::new(&mut lab);
        let pool = ["198.51.100.1", "198.51.100.2", "198.51.100.3"].map(|a| a.parse().unwrap());
        let nat = NatConfig { pooling, ..NatConfig::carrier_grade() };
        let lan = LanConfig::behind(nat, "100.64.0.0/10".parse().unwrap()).external(pool);
        let lan = lab.net.add_lan(lan).unwrap();
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let host = lab.net.add_host_on(lan).unwrap();
            let mine: BTreeSet<_> = (0..20).map(|n| server.reflexive(&mut lab, host, 6000 + n).ip()).collect();
            if pooling == Pooling::Paired {
                assert_eq!(mine, BTreeSet::from([lab.net.observed_ip(host).unwrap()]));
            } else {
                assert_eq!(mine.len(), 3);
            }
            seen.extend(mine);
        }
        assert_eq!(seen, pool.map(Into::into).into_iter().collect());
    }
}

#[test]
fn hairpinning_is_as_configured() {
    for hairpin in [Hairpin::None, Hairpin::InternalSource, Hairpin::ExternalSource] {
        let (mut lab, server, _, [a, b]) = behind(NatConfig { hairpin, ..NatConfig::full_cone() });
        let (external_a, external_b) = (server.reflexive(&mut lab, a, 5000), server.reflexive(&mut lab, b, 5001));
        let arrival = lab.deliver(a, 5000, external_b);
        let expected = match hairpin {
            Hairpin::None => None,
            Hairpin::InternalSource => Some(at(lab.address(a), 5000)),
            Hairpin::ExternalSource => Some(external_a),
        };
        assert_eq!(arrival.as_ref().map(|arrival| arrival.from), expected);
        assert!(arrival.is_none_or(|arrival| arrival.local == at(lab.address(b), 5001)));
    }
    // The filter holds for those inside too.
    let nat = NatConfig { hairpin: Hairpin::ExternalSource, ..NatConfig::port_restricted() };
    let (mut lab, server, _, [a, b]) = behind(nat);
    let (external_a, external_b) = (server.reflexive(&mut lab, a, 5000), server.reflexive(&mut lab, b, 5001));
    assert!(lab.deliver(a, 5000, external_b).is_none());
    assert_eq!(lab.deliver(b, 5001, external_a).unwrap().from, external_b);
    assert_eq!(lab.deliver(a, 5000, external_b).unwrap().from, external_a);
}

#[test]
fn two_homes_behind_one_carrier_meet_by_its_hairpin() {
    let mut lab = Lab::new(23);
    let server = Server::new(&mut lab);
    let carrier = LanConfig::behind(NatConfig::carrier_grade(), "100.64.0.0/10".parse().unwrap());
    let carrier = lab.net.add_lan(carrier).unwrap();
    let [a, b] = [0, 1].map(|_| {
        let home = LanConfig::behind(NatConfig::full_cone(), "192.168.1.0/24".parse().unwrap()).within(carrier);
        let home = lab.net.add_lan(home).unwrap();
        lab.net.add_host_on(home).unwrap()
    });
    assert_eq!(lab.address(a), lab.address(b), "equal private addresses");
    let (external_a, external_b) = (server.reflexive(&mut lab, a, 5000), server.reflexive(&mut lab, b, 5000));
    assert_eq!(external_a.ip(), external_b.ip());
    let arrival = lab.deliver(a, 5000, external_b).unwrap();
    assert_eq!((arrival.host, arrival.from), (b, external_a));
}

#[test]
fn an_early_inbound_datagram_claims_the_tuple_for_that_remote_alone() {
    let (mut lab, server, _, [a]) = behind(NatConfig::linux_masquerade());
    let early = lab.host("198.51.100.9");
    let remote = at(ip("198.51.100.9"), 7);
    let external = server.reflexive(&mut lab, a, 5000);
    assert_eq!(external.port(), 5000);
    assert!(lab.deliver(early, 7, external).is_none());
    let seen = lab.deliver(a, 5000, remote).unwrap().from;
    assert_ne!(seen.port(), 5000);
    assert!(lab.deliver(early, 7, external).is_none(), "the old endpoint stays claimed");
    assert!(lab.deliver(early, 7, seen).is_some(), "the new one works");
    assert_eq!(server.reflexive(&mut lab, a, 5000), external, "other flows keep theirs");
    assert_eq!(lab.deliver(a, 5000, remote).unwrap().from, seen);
    lab.advance(120 * SECOND);
    assert_eq!(lab.deliver(a, 5000, remote).unwrap().from, external, "the claim has expired");
}

#[test]
fn one_to_one_maps_all_ports_both_ways_without_state() {
    let mut lab = Lab::new(24);
    let outside = lab.host("198.51.100.9");
    let pool = ["198.51.100.1", "198.51.100.2"].map(|a| a.parse().unwrap());
    let lan = LanConfig::behind(NatConfig::one_to_one(), "10.0.0.0/24".parse().unwrap()).external(pool);
    let lan = lab.net.add_lan(lan).unwrap();
    let [a, b, c] = [0; 3].map(|_| lab.net.add_host_on(lan).unwrap());
    for (host, address) in [(a, "198.51.100.1"), (b, "198.51.100.2")] {
        let arrival = lab.deliver(outside, 7, at(ip(address), 80)).unwrap();
        assert_eq!((arrival.host, arrival.local), (host, at(lab.address(host), 80)));
        assert_eq!(lab.deliver(host, 5000, at(ip("198.51.100.9"), 7)).unwrap().from, at(ip(address), 5000));
        assert_eq!(lab.net.stream_route(outside, ip(address)).unwrap().host, host, "streams too");
    }
    lab.send(c, 5000, at(ip("198.51.100.9"), 7), &b"x"[..]);
    assert!(lab.advance(SECOND).is_empty(), "no address is left for the third");
    lab.net.remove_interface(a, lan).unwrap();
    let d = lab.net.add_host_on(lan).unwrap();
    assert_eq!(lab.deliver(outside, 7, at(ip("198.51.100.1"), 80)).unwrap().host, d);
}

#[test]
fn a_reboot_forgets_all_and_may_change_the_address() {
    let (mut lab, server, site, [a]) = behind(NatConfig::port_restricted());
    let before = server.reflexive(&mut lab, a, 5000);
    let answer = |lab: &mut Lab, to: SocketAddr| {
        let src = server.endpoint(0, 0);
        let host = lab.net.stream_route(a, src.ip()).unwrap().host;
        lab.deliver(host, src.port(), to).is_some()
    };
    assert!(answer(&mut lab, before));
    lab.net.reboot_router(site, false).unwrap();
    assert!(!answer(&mut lab, before));
    assert_eq!(server.reflexive(&mut lab, a, 5000), before, "the port is free, so it is preserved again");
    lab.net.reboot_router(site, true).unwrap();
    assert!(!answer(&mut lab, before));
    let after = server.reflexive(&mut lab, a, 5000);
    assert_ne!(after.ip(), before.ip());
    assert_eq!(lab.net.observed_ip(a), Some(after.ip()));
    assert_eq!(lab.net.drops().of(DropReason::NoHost), 1, "nobody has the old address");
}

#[test]
fn a_full_table_drops_the_new_or_the_oldest_flow() {
    for overflow in [Overflow::DropNew, Overflow::DropOldest] {
        let nat = NatConfig { max_entries: 10, overflow, timeout: 100 * SECOND, ..NatConfig::full_cone() };
        let (mut lab, server, _, [a]) = behind(nat);
        let outside = lab.host("198.51.100.9");
        for port in 5000..5010 {
            assert_eq!(server.reflexive(&mut lab, a, port).port(), port);
        }
        let new = server.ask(&mut lab, a, 5010, (0, 0), (0, 0)).is_some();
        let external = lab.net.observed_ip(a).unwrap();
        let oldest = lab.deliver(outside, 7, at(external, 5000)).is_some();
        assert_eq!((new, oldest), if overflow == Overflow::DropNew { (false, true) } else { (true, false) });
        assert!(lab.deliver(outside, 7, at(external, 5001)).is_some());
        // What has expired makes room, whoever removes it.
        for _ in 0..20 {
            lab.advance(100 * SECOND);
            server.reflexive(&mut lab, a, 6000);
        }
        for port in 6000..6010 {
            assert_eq!(server.reflexive(&mut lab, a, port).port(), port);
        }
    }
}

#[test]
fn blocked_udp_goes_nowhere_but_streams_do() {
    let (mut lab, server, site, [a, b]) = behind(NatConfig::full_cone());
    lab.net.set_udp_blocked(site, true);
    assert!(server.ask(&mut lab, a, 5000, (0, 0), (0, 0)).is_none());
    assert_eq!(lab.net.drops().of(DropReason::UdpBlocked), 1);
    let neighbour = at(lab.address(b), 5000);
    assert!(lab.deliver(a, 5000, neighbour).is_some(), "inside the LAN it does");
    assert!(lab.net.stream_route(a, server.endpoint(0, 0).ip()).is_some());
}

#[test]
fn the_ipv6_firewall_filters_without_translating() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent] {
        let mut lab = Lab::new(25);
        let outside = lab.net.add_host(&["2001:db8:1::1", "2001:db8:1::2"].map(ip)).unwrap();
        let firewall = FirewallConfig { filtering, timeout: 60 * SECOND, ..FirewallConfig::default() };
        let lan = LanConfig::behind(NatConfig::symmetric(), "192.168.1.0/24".parse().unwrap())
            .v6("2001:db8:2::/64".parse().unwrap(), Some(firewall));
        let lan = lab.net.add_lan(lan).unwrap();
        let inside = lab.net.add_host_on(lan).unwrap();
        let local = at(lab.net.addresses(inside)[1], 5000);
        let reach = |lab: &mut Lab, from: &str, port| {
            lab.net.send_from(lab.now, outside, at(ip(from), port), local, b"x"[..].into(), &mut lab.rng).unwrap();
            lab.advance(MS).len() == 1
        };
        assert!(!reach(&mut lab, "2001:db8:1::1", 7), "unsolicited");
        assert_eq!(lab.deliver(inside, 5000, at(ip("2001:db8:1::1"), 7)).unwrap().from, local, "not translated");
        assert!(reach(&mut lab, "2001:db8:1::1", 7));
        assert_eq!(reach(&mut lab, "2001:db8:1::1", 8), filtering != Filtering::AddressAndPortDependent);
        assert_eq!(reach(&mut lab, "2001:db8:1::2", 7), filtering == Filtering::EndpointIndependent);
        assert_eq!(lab.net.stream_route(outside, local.ip()), None);
        lab.advance(60 * SECOND);
        assert!(!reach(&mut lab, "2001:db8:1::1", 7), "expired");
    }
}

#[test]
fn a_forwarded_port_is_open_to_anyone_until_it_ends() {
    let nat = NatConfig { port_mapping: true, ports: PortAssignment::Random, ..NatConfig::port_restricted() };
    let (mut lab, server, site, [a, b]) = behind(nat);
    let outside = lab.host("198.51.100.9");
    let map = |lab: &mut Lab, host, port, life: u32| lab.net.map_port(lab.now, host, port, 5000, life * SECOND);
    let external = map(&mut lab, a, 5000, 100).unwrap();
    assert_eq!((external.ip(), external.port()), (lab.net.observed_ip(a).unwrap(), 5000));
    assert_eq!(lab.deliver(outside, 7, external).unwrap().local, at(lab.address(a), 5000), "unsolicited");
    assert_eq!(server.reflexive(&mut lab, a, 5000), external, "and outwards the same");
    assert_eq!(map(&mut lab, b, 5000, 100).unwrap().port(), 5001, "taken");
    lab.advance(90 * SECOND);
    assert_eq!(map(&mut lab, a, 5000, 100), Some(external), "renewed");
    lab.advance(90 * SECOND);
    assert!(lab.deliver(outside, 7, external).is_some());
    assert!(lab.deliver(outside, 7, at(external.ip(), 5001)).is_none(), "b's has expired");
    assert_eq!(map(&mut lab, a, 5000, 0), None);
    assert!(lab.deliver(outside, 7, external).is_none(), "ended");
    assert!(map(&mut lab, a, 5000, 100).is_some());
    lab.net.reboot_router(site, false).unwrap();
    assert!(lab.deliver(outside, 7, external).is_none(), "forgotten");
    lab.net.set_nat(site, NatConfig { port_mapping: false, ..nat }).unwrap();
    assert_eq!(map(&mut lab, a, 5000, 100), None, "not offered");
}

#[test]
fn a_forwarded_port_and_a_mapping_do_not_meet() {
    let (mut lab, server, _, [a, b]) = behind(NatConfig { port_mapping: true, ..NatConfig::full_cone() });
    assert!(lab.net.map_port(lab.now, a, 5000, 5000, 1000 * SECOND).is_some());
    assert_ne!(server.reflexive(&mut lab, b, 5000).port(), 5000, "it is forwarded to a");
    assert_eq!(server.reflexive(&mut lab, b, 6000).port(), 6000);
    let external = lab.net.map_port(lab.now, a, 6000, 6000, 1000 * SECOND).unwrap();
    assert_eq!(external.port(), 6001, "b's mapping has 6000");
}
