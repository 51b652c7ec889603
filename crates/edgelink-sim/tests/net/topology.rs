//! Who reaches whom: prefixes, moves, sleep, partitions, and what streams are told.

use crate::prober::Server;
use crate::{Lab, MS, SECOND, at, ip};
use edgelink_sim::net::{DropReason, LanConfig, LanId, LinkProfile, NatConfig, TopologyError, Uplink};
use std::net::IpAddr;

#[test]
fn equal_private_prefixes_are_different_places() {
    let mut lab = Lab::new(31);
    let (one, two) = (lab.site(NatConfig::full_cone()), lab.site(NatConfig::full_cone()));
    let [a1, b1] = [0; 2].map(|_| lab.net.add_host_on(one).unwrap());
    let a2 = lab.net.add_host_on(two).unwrap();
    assert_eq!(lab.address(a1), lab.address(a2));
    let to_b = at(lab.address(b1), 9);
    let arrival = lab.deliver(a1, 9, to_b).unwrap();
    assert_eq!((arrival.host, arrival.from), (b1, at(lab.address(a1), 9)), "direct, untranslated");
    lab.send(a2, 9, to_b, &b"x"[..]);
    assert!(lab.advance(SECOND).is_empty(), "there is no such host at the other site");
    assert_eq!(lab.net.drops().of(DropReason::NoHost), 1);
}

#[test]
fn private_addresses_are_unroutable_on_the_internet() {
    let mut lab = Lab::new(32);
    let public = lab.host("198.51.100.1");
    for private in ["10.1.2.3", "192.168.1.2", "172.16.0.1", "100.64.0.1", "169.254.1.1"] {
        lab.send(public, 9, at(ip(private), 9), &b"x"[..]);
    }
    let site = lab.net.add_lan(LanConfig::routed("10.0.0.0/24".parse().unwrap())).unwrap();
    let inside = lab.net.add_host_on(site).unwrap();
    lab.send(inside, 9, at(ip("198.51.100.1"), 9), &b"x"[..]);
    assert!(lab.advance(SECOND).is_empty());
    assert_eq!(lab.net.drops().of(DropReason::Unroutable), 6);
    assert_eq!(lab.try_send(public, 9, at(ip("127.0.0.1"), 9), &b"x"[..]), Err(DropReason::Unroutable));
    assert_eq!((lab.net.observed_ip(inside), lab.net.stream_route(inside, ip("198.51.100.1"))), (None, None));
}

#[test]
fn routed_sites_and_nested_prefixes_are_reached_from_everywhere() {
    let mut lab = Lab::new(33);
    let outside = lab.net.add_host(&["198.51.100.1", "2001:db8:1::1"].map(ip)).unwrap();
    let site = LanConfig::routed("203.0.113.0/24".parse().unwrap()).v6("2001:db8:2::/48".parse().unwrap(), None);
    let site = lab.net.add_lan(site).unwrap();
    let floor = LanConfig::routed("203.0.113.128/25".parse().unwrap()).v6("2001:db8:2:1::/64".parse().unwrap(), None);
    let floor = lab.net.add_lan(floor.within(site)).unwrap();
    let (near, far) = (lab.net.add_host_on(site).unwrap(), lab.net.add_host_on(floor).unwrap());
    for from in [outside, near, far] {
        for to in [outside, near, far] {
            for address in lab.net.addresses(to) {
                let arrival = lab.deliver(from, 7, at(address, 9)).expect("everybody reaches everybody");
                assert_eq!((arrival.host, arrival.local), (to, at(address, 9)));
                assert!(lab.net.addresses(from).contains(&arrival.from.ip()));
                assert_eq!(lab.net.stream_route(from, address).unwrap().host, to);
            }
        }
    }
}

#[test]
fn a_host_that_moves_gets_another_address_and_loses_what_was_on_the_way() {
    let mut lab = Lab::new(34);
    let server = Server::new(&mut lab);
    let (home, cafe) = (lab.site(NatConfig::full_cone()), lab.site(NatConfig::full_cone()));
    let laptop = lab.net.add_host_on(home).unwrap();
    lab.net.set_links(Uplink::Host(laptop), LinkProfile::delay(50 * MS));
    let old = (lab.address(laptop), server.reflexive(&mut lab, laptop, 5000));
    let outside = lab.host("198.51.100.9");
    lab.send(outside, 7, old.1, &b"on the way"[..]);
    lab.advance(10 * MS);
    lab.net.move_host(laptop, cafe).unwrap();
    assert!(lab.advance(SECOND).is_empty());
    assert_eq!(lab.net.drops().of(DropReason::Gone), 1);
    assert_ne!(server.reflexive(&mut lab, laptop, 5000).ip(), old.1.ip());
    assert_eq!(lab.net.lans_of(laptop), [cafe]);
    assert_eq!(lab.net.path_delay(laptop, ip("198.51.100.9")), Some(50 * MS), "its link has moved with it");
    let back = lab.net.move_host(laptop, home).unwrap();
    assert_ne!(back[0], old.0, "a new lease");
    assert!(lab.deliver(outside, 7, old.1).is_none(), "the old mapping leads to the old address");
    let stale = lab.net.send_from(lab.now, laptop, at(old.0, 5000), old.1, b"x"[..].into(), &mut lab.rng);
    assert_eq!(stale, Err(DropReason::NoAddress), "a socket bound to the old address");
}

#[test]
fn a_host_with_two_uplinks_sends_from_the_one_that_works() {
    let mut lab = Lab::new(35);
    let server = Server::new(&mut lab);
    let (wifi, mobile) =
        (lab.site(NatConfig::full_cone()), LanConfig::behind(NatConfig::symmetric(), "100.64.0.0/10".parse().unwrap()));
    let mobile = lab.net.add_lan(mobile).unwrap();
    let phone = lab.net.add_host_on(wifi).unwrap();
    lab.net.add_interface(phone, mobile, None).unwrap();
    assert_eq!(lab.net.add_interface(phone, mobile, None), Err(TopologyError::HasInterface));
    let external = |lab: &Lab, lan| IpAddr::V4(lab.net.external_addresses(lan)[0]);
    assert_eq!(server.reflexive(&mut lab, phone, 5000).ip(), external(&lab, wifi));
    let neighbour = lab.net.add_host_on(mobile).unwrap();
    let to = at(lab.address(neighbour), 9);
    assert_eq!(lab.deliver(phone, 5000, to).unwrap().from.ip(), lab.net.addresses(phone)[1], "the LAN of the receiver");
    lab.net.remove_interface(phone, wifi).unwrap();
    assert_eq!(server.reflexive(&mut lab, phone, 5000).ip(), external(&lab, mobile));
    assert_eq!(lab.net.observed_ip(phone), Some(external(&lab, mobile)));
}

#[test]
fn several_addresses_each_receive_and_are_taken_once() {
    let mut lab = Lab::new(36);
    let (a, b) = (lab.host("198.51.100.1"), lab.host("198.51.100.2"));
    lab.net.add_address(b, LanId::INTERNET, ip("198.51.100.3")).unwrap();
    let taken = lab.net.add_address(a, LanId::INTERNET, ip("198.51.100.3"));
    assert_eq!(taken, Err(TopologyError::AddressTaken(ip("198.51.100.3"))));
    let lan = lab.site(NatConfig::full_cone());
    let outside = lab.net.add_interface(a, lan, Some(&[ip("192.168.2.1")]));
    assert_eq!(outside, Err(TopologyError::OutsidePrefix(ip("192.168.2.1"))));
    assert_eq!(lab.net.lans_of(a), [LanId::INTERNET], "nothing is left of what failed");
    assert_eq!(lab.deliver(a, 1, at(ip("198.51.100.3"), 9)).unwrap().local, at(ip("198.51.100.3"), 9));
    lab.net.remove_address(b, LanId::INTERNET, ip("198.51.100.3"));
    assert!(lab.deliver(a, 1, at(ip("198.51.100.3"), 9)).is_none());
    let family = lab.try_send(a, 1, at(ip("2001:db8::1"), 9), &b"x"[..]);
    assert_eq!(family, Err(DropReason::NoAddress));
    let small = LanConfig::behind(NatConfig::full_cone(), "10.0.0.0/29".parse().unwrap());
    let small = lab.net.add_lan(small).unwrap();
    for _ in 0..5 {
        lab.net.add_host_on(small).unwrap();
    }
    assert_eq!(lab.net.add_host_on(small), Err(TopologyError::PrefixFull));
    let inner = LanConfig::behind(NatConfig::full_cone(), "10.1.0.0/24".parse().unwrap()).within(small);
    assert_eq!(lab.net.add_lan(inner), Err(TopologyError::PrefixFull));
    let wanted = ["45.1.1.1", "198.51.100.1"].map(|address| address.parse().unwrap());
    let clash = LanConfig::behind(NatConfig::full_cone(), "10.1.0.0/24".parse().unwrap()).external(wanted);
    assert_eq!(lab.net.add_lan(clash), Err(TopologyError::AddressTaken(ip("198.51.100.1"))));
    lab.host("45.1.1.1"); // what the router had claimed before it failed is free again
}

#[test]
fn pulled_cables_sleep_and_partitions_stop_datagrams_and_streams() {
    let mut lab = Lab::new(37);
    let (a, b) = (lab.host("198.51.100.1"), lab.host("198.51.100.2"));
    let (to_a, to_b) = (at(ip("198.51.100.1"), 9), at(ip("198.51.100.2"), 9));

    lab.net.set_attached(b, false);
    assert!(lab.deliver(a, 9, to_b).is_none());
    assert_eq!(lab.try_send(b, 9, to_a, &b"x"[..]), Err(DropReason::Detached));
    assert_eq!((lab.net.stream_route(a, to_b.ip()), lab.net.observed_ip(b)), (None, None));
    lab.net.set_attached(b, true);
    assert!(lab.deliver(a, 9, to_b).is_some() && lab.deliver(b, 9, to_a).is_some());

    lab.net.set_asleep(b, true);
    assert!(lab.deliver(a, 9, to_b).is_none());
    assert_eq!(lab.try_send(b, 9, to_a, &b"x"[..]), Err(DropReason::Asleep));
    assert_eq!(lab.net.stream_route(a, to_b.ip()), None);
    lab.net.set_asleep(b, false);
    assert!(lab.deliver(a, 9, to_b).is_some() && lab.net.stream_route(a, to_b.ip()).is_some());

    lab.net.block_one_way(&[a], &[b]);
    assert!(lab.deliver(a, 9, to_b).is_none() && lab.deliver(b, 9, to_a).is_some());
    lab.net.block(&[b], &[a]);
    assert!(lab.deliver(a, 9, to_b).is_none() && lab.deliver(b, 9, to_a).is_none());
    assert_eq!(lab.net.stream_route(b, to_a.ip()), None);
    assert_eq!(lab.net.drops().of(DropReason::Partitioned), 3);
    lab.net.heal();
    assert!(lab.deliver(a, 9, to_b).is_some() && lab.net.stream_route(b, to_a.ip()).is_some());
}

#[test]
fn streams_go_out_through_nats_and_not_in() {
    let mut lab = Lab::new(38);
    let server = lab.host("198.51.100.1");
    let carrier = LanConfig::behind(NatConfig::carrier_grade(), "100.64.0.0/10".parse().unwrap());
    let carrier = lab.net.add_lan(carrier).unwrap();
    let home = LanConfig::behind(NatConfig::full_cone(), "192.168.1.0/24".parse().unwrap()).within(carrier);
    let home = lab.net.add_lan(home).unwrap();
    let client = lab.net.add_host_on(home).unwrap();
    let external = IpAddr::V4(lab.net.external_addresses(carrier)[0]);
    let route = lab.net.stream_route(client, ip("198.51.100.1")).unwrap();
    assert_eq!((route.host, route.source), (server, external));
    assert_eq!(lab.net.observed_ip(client), Some(external));
    assert_eq!(lab.net.stream_route(server, external), None);
}

#[test]
fn the_longest_prefix_wins() {
    let mut lab = Lab::new(39);
    let outside = lab.host("198.51.100.1");
    let [part, all] = ["203.0.113.128/25", "203.0.113.0/24"].map(|v4| {
        let lan = lab.net.add_lan(LanConfig::routed(v4.parse().unwrap())).unwrap();
        let host = lab.net.add_host_on(lan).unwrap();
        (host, lab.address(host))
    });
    for (host, address) in [part, all] {
        assert_eq!(lab.deliver(outside, 9, at(address, 9)).unwrap().host, host);
    }
}

#[test]
fn an_address_that_is_given_up_receives_nothing_that_is_on_the_way() {
    let mut lab = Lab::new(40);
    let (a, b) = (lab.host("198.51.100.1"), lab.host("198.51.100.2"));
    lab.net.set_links(Uplink::Host(b), LinkProfile::delay(50 * MS));
    lab.send(a, 9, at(ip("198.51.100.2"), 9), &b"x"[..]);
    lab.advance(10 * MS);
    lab.net.add_address(b, LanId::INTERNET, ip("198.51.100.3")).unwrap();
    lab.net.remove_address(b, LanId::INTERNET, ip("198.51.100.2"));
    assert!(lab.advance(SECOND).is_empty());
    assert_eq!(lab.net.drops().of(DropReason::Gone), 1);
}

#[test]
fn a_datagram_passes_32_routers_and_no_more() {
    for (routers, arrives) in [(32, true), (33, false)] {
        let mut lab = Lab::new(41);
        lab.host("198.51.100.1");
        let mut lan = LanId::INTERNET;
        for n in 0..routers {
            let prefix = format!("10.{n}.0.0/24").parse().unwrap();
            lan = lab.net.add_lan(LanConfig::behind(NatConfig::full_cone(), prefix).within(lan)).unwrap();
        }
        let client = lab.net.add_host_on(lan).unwrap();
        assert_eq!(lab.deliver(client, 9, at(ip("198.51.100.1"), 9)).is_some(), arrives);
        assert_eq!(lab.net.drops().of(DropReason::TtlExpired), u64::from(!arrives));
    }
}
