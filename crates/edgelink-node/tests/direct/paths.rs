//! What becomes of two nodes that talk with each other.

use crate::duo::*;
use crate::nat::{By, Nat};
use edgelink_api::local::{NatBehaviour, NatName, PathKind};
use std::time::Duration;

const NAMES: [&str; 4] = ["full_cone", "restricted_cone", "port_restricted", "symmetric"];

/// Time until both send directly, with a packet every 50 ms.
fn time_to_direct(duo: &mut Duo, limit: Duration) -> Option<Duration> {
    let begin = duo.elapsed;
    let direct = |duo: &Duo, index| matches!(duo.path(index).kind, PathKind::Lan | PathKind::P2p);
    while duo.elapsed < begin + limit {
        duo.send(0);
        duo.advance(50 * MS);
        if direct(duo, 0) {
            return Some(duo.elapsed - begin);
        }
    }
    None
}

#[test]
fn every_cell_of_the_matrix_marked_possible_is_direct_within_2_s() {
    for a in NAMES {
        for b in NAMES {
            let mut duo = Duo::new(Setup::behind(a, b));
            let hard =
                matches!((a, b), ("symmetric", "symmetric" | "port_restricted") | ("port_restricted", "symmetric"));
            let time = time_to_direct(&mut duo, 25 * SECOND);
            if hard {
                assert_eq!(time, None, "{a} {b}: this takes more than these means");
                let reason = duo.peer(0).reason.unwrap();
                let expected = match (a, b) {
                    ("symmetric", "symmetric") => "symmetric NAT on both sides",
                    ("symmetric", _) => "symmetric NAT here",
                    _ => "symmetric NAT there",
                };
                assert!(reason.contains(expected), "{a} {b}: {reason}");
                assert_eq!(duo.path(0).kind, PathKind::Relay);
            } else {
                assert!(time.is_some_and(|time| time <= 2 * SECOND), "{a} {b}: {time:?} {:?}", duo.peer(0).reason);
                assert_eq!(duo.path(0).kind, PathKind::P2p);
                assert_eq!(duo.peer(0).reason, None);
            }
        }
    }
}

#[test]
fn a_symmetric_nat_meets_one_that_filters_by_port_by_guessing_within_the_budget() {
    for (a, b) in [("symmetric", "port_restricted"), ("port_restricted", "symmetric")] {
        let mut duo = Duo::new(Setup::behind(a, b));
        let time = time_to_direct(&mut duo, 90 * SECOND);
        assert!(time.is_some(), "{a} {b}: {:?}", duo.peer(0).reason);
        for who in [0, 1] {
            let sent = duo.sent.iter().filter(|(_, from, _, b)| *from == who && b.len() < 100).count() as f64;
            let seconds = duo.elapsed.as_secs_f64();
            assert!(sent <= 20.0 * (seconds + 1.0) + seconds * 3.0, "{a} {b}: {who} sent {sent} in {seconds} s");
        }
        // The many sockets are closed again, and the path holds.
        duo.stream(3 * SECOND, 100 * MS);
        assert!(duo.open_sockets(0) <= 2 && duo.open_sockets(1) <= 2);
        let before = duo.received(1).len();
        duo.stream(10 * SECOND, 100 * MS);
        assert_eq!(duo.received(1).len() - before, 100);
        assert_eq!(duo.path(0).kind, PathKind::P2p);
    }
}

#[test]
fn a_router_that_lets_early_packets_claim_the_tuple_costs_a_retry_with_another_socket() {
    for (early, other) in [(0, "port_restricted"), (1, "port_restricted")] {
        let mut setup = Setup::behind("port_restricted", other);
        if early == 1 {
            setup.behind = [Some(1), Some(0)];
        }
        setup.nats[0].early_claims = true;
        // The asker hears late: the first packet of the other side claims the tuple.
        let mut duo = Duo::new(setup);
        duo.signal_delay[0] = 100 * MS;
        let time = time_to_direct(&mut duo, 25 * SECOND);
        assert!(
            time.is_some_and(|time| early == 1 || time > 5 * SECOND),
            "{early} {other}: {time:?} {:?}",
            duo.peer(0).reason
        );
    }
}

#[test]
fn a_narrow_network_gets_packets_that_fit_and_no_black_hole() {
    // WireGuard's MTU less IPv4 and UDP headers.
    let mut duo = Duo::new(Setup::behind("full_cone", "full_cone"));
    duo.narrow = Some(1420 - 28);
    assert!(time_to_direct(&mut duo, 4 * SECOND).is_some(), "{:?}", duo.peer(0).reason);
    duo.advance(2 * SECOND);
    let relayed = duo.relayed;
    // What fits goes directly; a larger one that may be cut goes round; one that may not is refused.
    duo.send_sized(0, 1351, false);
    assert_eq!((duo.relayed, duo.complaints(0)), (relayed, 0));
    duo.send_sized(0, 1352, false);
    assert_eq!((duo.relayed, duo.complaints(0)), (relayed + 1, 0));
    duo.send_sized(0, 1352, true);
    assert_eq!((duo.relayed, duo.complaints(0)), (relayed + 1, 1));
    duo.advance(SECOND);
    assert!(duo.sent.iter().filter(|(.., b)| b[1] == 0x10).all(|(.., b)| b.len() <= 1420 - 28));
    // The network becomes narrower still: the path is left and found again.
    duo.narrow = Some(1280 - 28);
    let before = duo.received(1).len();
    duo.size = 200;
    duo.stream(10 * SECOND, 50 * MS);
    assert_eq!(duo.received(1).len() - before, 200, "small packets are lost nowhere");
    assert_eq!(duo.path(0).kind, PathKind::P2p);
    let relayed = duo.relayed;
    duo.send_sized(0, 1211, false);
    duo.send_sized(0, 1212, false);
    assert_eq!(duo.relayed, relayed + 1);
}

#[test]
fn the_nat_is_named_with_one_server_of_two_addresses_and_two_of_one() {
    for stun in [Stun::TwoAddresses, Stun::TwoServers] {
        for (name, expected) in [
            ("full_cone", NatName::FullCone),
            ("restricted_cone", NatName::RestrictedCone),
            ("port_restricted", NatName::PortRestricted),
            ("symmetric", NatName::Symmetric),
        ] {
            let mut duo = Duo::new(Setup { stun, ..Setup::behind(name, name) });
            duo.advance(10 * SECOND);
            let nat = duo.status(0).nat;
            // Without a second address nobody can answer from one.
            let expected = match (stun, expected) {
                (Stun::TwoServers, NatName::FullCone) => NatName::RestrictedCone,
                (_, expected) => expected,
            };
            assert_eq!(nat.name, expected, "{stun:?} {name}: {nat:?}");
        }
    }
}

#[test]
fn mapping_by_address_is_told_from_mapping_by_address_and_port() {
    for (mapping, expected) in
        [(By::Address, NatBehaviour::AddressDependent), (By::AddressAndPort, NatBehaviour::AddressAndPortDependent)]
    {
        let mut setup = Setup::behind("symmetric", "symmetric");
        setup.nats[0] = Nat::new([203, 0, 114, 1].into(), mapping, By::AddressAndPort);
        let mut duo = Duo::new(setup);
        duo.advance(10 * SECOND);
        assert_eq!(duo.status(0).nat.mapping, expected);
    }
}

#[test]
fn who_has_no_nat_is_open() {
    let setup = Setup {
        behind: [None, Some(1)],
        addresses: [[203, 0, 114, 10].into(), [192, 168, 2, 20].into()],
        ..Setup::behind("symmetric", "symmetric")
    };
    let mut duo = Duo::new(setup);
    duo.advance(10 * SECOND);
    let nat = duo.status(0).nat;
    assert_eq!((nat.mapping, nat.name), (NatBehaviour::None, NatName::Open));
    assert!(time_to_direct(&mut duo, 5 * SECOND).is_some(), "an open host is reached from behind any NAT");
}

#[test]
fn on_the_same_lan_it_takes_less_than_500_ms() {
    let setup = Setup {
        behind: [Some(0), Some(0)],
        addresses: [[192, 168, 1, 10].into(), [192, 168, 1, 20].into()],
        ..Setup::behind("symmetric", "symmetric")
    };
    let mut duo = Duo::new(setup);
    let time = time_to_direct(&mut duo, 5 * SECOND).expect("no direct path");
    assert!(time <= 500 * MS, "{time:?}");
    let path = duo.path(0);
    assert_eq!((path.kind, path.endpoint), (PathKind::Lan, Some("192.168.1.20:41641".parse().unwrap())));
    duo.stream(3 * SECOND, 20 * MS);
    assert_eq!(duo.path(0).rtt_ms, Some(2.0));
    assert_eq!(duo.path(1).kind, PathKind::Lan);
}

#[test]
fn equal_private_subnets_at_two_sites_prove_nothing() {
    let setup = Setup {
        addresses: [[192, 168, 1, 10].into(), [192, 168, 1, 20].into()],
        ..Setup::behind("port_restricted", "port_restricted")
    };
    let mut duo = Duo::new(setup);
    assert!(time_to_direct(&mut duo, 5 * SECOND).is_some());
    assert_eq!(duo.path(0).kind, PathKind::P2p);
}

#[test]
fn without_the_controllers_help_endpoints_travel_sealed_through_the_relay() {
    let mut duo = Duo::new(Setup { controller_forwards: false, ..Setup::behind("port_restricted", "port_restricted") });
    assert!(time_to_direct(&mut duo, 2 * SECOND).is_some());
}

#[test]
fn a_hundred_switches_from_relay_to_direct_lose_and_double_nothing_of_a_thousand_packets_a_second() {
    let cells = [("port_restricted", "port_restricted"), ("full_cone", "symmetric"), ("restricted_cone", "full_cone")];
    for n in 0..100u32 {
        let (a, b) = cells[n as usize % cells.len()];
        let mut duo = Duo::new(Setup::behind(a, b));
        duo.size = 200;
        // Each switch finds the stream at another point.
        duo.signal_delay = [MS * n, MS * (n * 7 % 37)];
        let mut sent = Vec::new();
        let mut direct = 0;
        while direct < 300 {
            sent.push(duo.send(0));
            duo.advance(MS);
            direct += u32::from(duo.path(0).kind == PathKind::P2p);
            assert!(sent.len() < 5_000, "{a} {b}, signalling {:?} late: never direct", duo.signal_delay);
        }
        duo.advance(SECOND);
        let mut received: Vec<u32> = duo.received(1).iter().map(|(_, payload)| *payload).collect();
        received.sort_unstable();
        assert_eq!(received, sent, "{a} {b}, signalling {:?} late", duo.signal_delay);
    }
}

#[test]
fn a_direct_path_that_dies_is_replaced_by_the_relay_within_5_s_and_comes_back() {
    let mut duo = Duo::new(Setup::behind("port_restricted", "port_restricted"));
    assert!(time_to_direct(&mut duo, 5 * SECOND).is_some());
    duo.stream(10 * SECOND, 20 * MS);
    duo.cut = true;
    let cut = duo.elapsed;
    duo.stream(6 * SECOND, 20 * MS);
    let healed = duo.received(1).iter().find(|(at, _)| *at > cut + 100 * MS).unwrap().0;
    assert!(healed - cut <= 4 * SECOND, "{:?}", healed - cut);
    let late = duo.received(1).iter().filter(|(at, _)| *at > cut + 4 * SECOND).count();
    assert!(late >= 95, "nothing is lost from then on: {late}");
    assert_eq!(duo.path(0).kind, PathKind::Relay);
    assert!(duo.peer(0).reason.is_some());
    duo.cut = false;
    assert!(time_to_direct(&mut duo, 60 * SECOND).is_some(), "{:?}", duo.peer(0).reason);
}

#[test]
fn a_router_that_reboots_costs_at_most_5_s() {
    let mut duo = Duo::new(Setup::behind("port_restricted", "restricted_cone"));
    assert!(time_to_direct(&mut duo, 5 * SECOND).is_some());
    duo.stream(5 * SECOND, 20 * MS);
    duo.nats[1].reboot();
    let at = duo.elapsed;
    duo.stream(10 * SECOND, 20 * MS);
    let gap = |duo: &Duo, index: usize| {
        let times: Vec<Duration> = duo.received(index).iter().map(|(t, _)| *t).filter(|t| *t >= at).collect();
        times.windows(2).map(|w| w[1] - w[0]).max().unwrap()
    };
    assert!(gap(&duo, 0) <= 5 * SECOND && gap(&duo, 1) <= 5 * SECOND, "{:?} {:?}", gap(&duo, 0), gap(&duo, 1));
    duo.stream(30 * SECOND, 20 * MS);
    assert_eq!((duo.path(0).kind, duo.path(1).kind), (PathKind::P2p, PathKind::P2p));
}

#[test]
fn who_moves_to_another_network_is_found_again_within_2_s() {
    let mut duo = Duo::new(Setup::behind("port_restricted", "port_restricted"));
    assert!(time_to_direct(&mut duo, 5 * SECOND).is_some());
    duo.stream(5 * SECOND, 20 * MS);
    // Now on the same LAN as the other.
    duo.move_host(1, [192, 168, 1, 99].into(), Some(0));
    let moved = duo.elapsed;
    duo.stream(2 * SECOND, 20 * MS);
    assert!(duo.received(0).iter().any(|(at, _)| *at > moved + 100 * MS));
    assert_eq!((duo.path(0).kind, duo.path(1).kind), (PathKind::Lan, PathKind::Lan));
}

/// The longest time in which a node got nothing, from `since` on.
fn longest_pause(duo: &Duo, index: usize, since: Duration) -> Duration {
    let times = duo.received(index).iter().map(|(at, _)| *at).filter(|at| *at >= since);
    let times: Vec<Duration> = std::iter::once(since).chain(times).chain([duo.elapsed]).collect();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
}

#[test]
fn who_has_slept_is_back_within_2_s_directly_and_through_the_relay() {
    // Directly reachable peers, and such as need the relay: their connections are dead, and nobody says so.
    for (a, b, direct) in [("port_restricted", "full_cone", true), ("symmetric", "symmetric", false)] {
        for (time, told) in [(10 * SECOND, true), (10 * SECOND, false), (300 * SECOND, true), (300 * SECOND, false)] {
            let mut duo = Duo::new(Setup::behind(a, b));
            assert_eq!(time_to_direct(&mut duo, 5 * SECOND).is_some(), direct);
            duo.stream(3 * SECOND, 20 * MS);
            duo.sleep(1, time);
            let woken = duo.elapsed;
            if told {
                duo.resume(1);
            }
            duo.stream(10 * SECOND, 20 * MS);
            for index in 0..2 {
                let pause = longest_pause(&duo, index, woken);
                assert!(pause <= 2 * SECOND, "{a} {b}, {time:?}, told {told}: node {index} got nothing for {pause:?}");
            }
            assert_eq!([0, 1].map(|index| duo.path(index).kind != PathKind::Relay), [direct; 2]);
        }
    }
}

#[test]
fn who_gets_another_address_is_back_within_a_second_directly_and_through_the_relay() {
    for (a, b, direct) in [("port_restricted", "port_restricted", true), ("symmetric", "symmetric", false)] {
        let mut duo = Duo::new(Setup::behind(a, b));
        assert_eq!(time_to_direct(&mut duo, 5 * SECOND).is_some(), direct);
        duo.stream(3 * SECOND, 20 * MS);
        let moved = duo.elapsed;
        // Connections through which nothing passes are known by their address.
        duo.move_host(0, [192, 168, 9, 9].into(), Some(0));
        duo.advance(MS);
        duo.strand(0);
        duo.stream(5 * SECOND, 20 * MS);
        for index in 0..2 {
            let pause = longest_pause(&duo, index, moved);
            assert!(pause <= SECOND, "{a} {b}: node {index} got nothing for {pause:?}");
        }
        assert_eq!([0, 1].map(|index| duo.path(index).kind != PathKind::Relay), [direct; 2]);
    }
}

#[test]
fn a_port_that_the_router_maps_reaches_who_is_behind_a_symmetric_nat() {
    let mut duo = Duo::new(Setup::behind("symmetric", "symmetric"));
    assert!(time_to_direct(&mut duo, 20 * SECOND).is_none());
    let external = duo.map_port(0);
    assert!(time_to_direct(&mut duo, 3 * SECOND).is_some(), "{:?}", duo.peer(1));
    assert_eq!(duo.path(1).endpoint, Some(external));
    // It is told as what it is, and not for longer than it is there.
    let kinds = |duo: &Duo| duo.netcheck(0).endpoints.into_iter().map(|e| (e.kind, e.address)).collect::<Vec<_>>();
    assert!(kinds(&duo).contains(&("upnp".to_owned(), external)), "{:?}", kinds(&duo));
    duo.unmap_port(0);
    assert!(kinds(&duo).iter().all(|(kind, _)| kind != "upnp"));
}

#[test]
fn disabled_means_not_one_datagram() {
    for enabled in [[false, true], [true, false]] {
        let mut duo = Duo::new(Setup { enabled, ..Setup::behind("full_cone", "full_cone") });
        duo.stream(30 * SECOND, 100 * MS);
        let off = enabled.iter().position(|on| !on).unwrap();
        assert!(duo.sent.iter().all(|(_, who, _, _)| *who != off));
        assert_eq!(duo.status(off).nat.name, NatName::Unknown);
        let reason = duo.peer(off).reason.unwrap();
        assert!(reason.contains("disabled here"), "{reason}");
        let reason = duo.peer(1 - off).reason.unwrap();
        assert!(reason.contains("disabled there"), "{reason}");
    }
}

#[test]
fn idle_nodes_send_no_probes() {
    let mut duo = Duo::new(Setup::behind("port_restricted", "port_restricted"));
    duo.advance(10 * SECOND);
    duo.sent.clear();
    duo.advance(600 * SECOND);
    assert!(duo.sent.is_empty(), "{} datagrams: {:?}", duo.sent.len(), &duo.sent[..8]);
}

#[test]
fn probing_keeps_its_budget_and_backs_off() {
    let mut duo = Duo::new(Setup::behind("symmetric", "symmetric"));
    duo.stream(300 * SECOND, 100 * MS);
    for index in 0..2 {
        let times: Vec<Duration> = duo.sent.iter().filter(|(_, who, ..)| *who == index).map(|(at, ..)| *at).collect();
        for (n, at) in times.iter().enumerate() {
            let within = times[n..].iter().take_while(|t| **t < *at + SECOND).count();
            assert!(within <= 20, "{within} datagrams within a second at {at:?}");
        }
        assert!(times.len() < 1500, "{} in five minutes", times.len());
    }
}

#[test]
fn blocked_udp_is_named() {
    let mut setup = Setup::behind("full_cone", "full_cone");
    setup.nats[0].blocks = true;
    let mut duo = Duo::new(setup);
    duo.stream(10 * SECOND, 100 * MS);
    assert_eq!(duo.status(0).nat.name, NatName::UdpBlocked);
    let reason = duo.peer(0).reason.unwrap();
    assert!(reason.contains("UDP seems to be blocked here"), "{reason}");
    assert_eq!(duo.received(1).len(), 100, "the relay carries everything");
}

#[test]
fn a_path_too_narrow_for_full_packets_is_not_used_and_named() {
    let mut duo = Duo::new(Setup::behind("full_cone", "full_cone"));
    duo.narrow = Some(900);
    duo.stream(4 * SECOND, 100 * MS);
    assert_eq!(duo.path(0).kind, PathKind::Relay);
    let reason = duo.peer(0).reason.unwrap();
    assert!(reason.contains("MTU"), "{reason}");
    assert_eq!(duo.received(1).len(), 40, "no black hole");
}

#[test]
fn an_idle_direct_path_is_kept_by_14_bytes_and_a_sealed_probe() {
    let mut duo = Duo::new(Setup::behind("port_restricted", "port_restricted"));
    assert!(time_to_direct(&mut duo, 5 * SECOND).is_some());
    duo.stream(20 * SECOND, 100 * MS);
    duo.advance(10 * SECOND);
    duo.sent.clear();
    let begin = duo.elapsed;
    duo.advance(100 * SECOND);
    let keepalives: Vec<_> = duo.sent.iter().filter(|(_, who, _, b)| *who == 0 && b.len() == 14).collect();
    assert!((3..=5).contains(&keepalives.len()), "{}", keepalives.len());
    assert!(keepalives.windows(2).all(|w| w[1].0 - w[0].0 >= 25 * SECOND));
    assert_eq!(duo.path(0).kind, PathKind::P2p);
    // Half an hour after the last packet nobody keeps it any more.
    duo.advance(2000 * SECOND - (duo.elapsed - begin));
    duo.sent.clear();
    duo.advance(600 * SECOND);
    assert!(duo.sent.is_empty());
}

#[test]
fn strangers_change_nothing_and_get_no_answer() {
    let mut duo = Duo::new(Setup::behind("full_cone", "full_cone"));
    assert!(time_to_direct(&mut duo, 5 * SECOND).is_some());
    duo.stream(2 * SECOND, 50 * MS);
    let path = duo.path(0);
    let recorded = duo.sent.iter().rev().find(|(_, who, _, b)| *who == 1 && b[1] == 0x10).unwrap().3.clone();
    duo.advance(100 * MS);
    duo.sent.clear();
    let stranger = "198.51.100.66:6".parse().unwrap();
    let mut forged = recorded.clone();
    forged[20] ^= 1;
    let stun_request = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    let keepalive = [&[1, 0x34][..], &101u32.to_be_bytes(), &[0; 8]].concat();
    for datagram in
        [&recorded[..], &forged, &stun_request, &keepalive, b"", b"\x01", b"hello", &[1, 0x20, 0, 0, 0], &[0xff; 1500]]
    {
        duo.inject(0, stranger, datagram);
    }
    assert!(duo.sent.iter().all(|(_, who, to, _)| *who != 0 || *to != stranger), "nothing is answered");
    assert_eq!(duo.path(0).endpoint, path.endpoint);
    let drops = duo.status(0).drops;
    assert!(drops["foreign_datagram"] >= 3 && drops["malformed"] >= 1 && drops["bad_tag"] >= 1, "{drops:?}");
}

#[test]
fn a_replayed_packet_from_another_address_moves_nothing() {
    let mut duo = Duo::new(Setup::behind("full_cone", "full_cone"));
    assert!(time_to_direct(&mut duo, 5 * SECOND).is_some());
    duo.stream(2 * SECOND, 50 * MS);
    // It is authentic and new: only its source is another one, as an attacker on the way may make it.
    duo.cut = true;
    duo.send(1);
    let fresh = duo.sent.iter().rev().find(|(_, who, _, b)| *who == 1 && b[1] == 0x10).unwrap().3.clone();
    duo.cut = false;
    let attacker = "198.51.100.66:6".parse().unwrap();
    duo.inject(0, attacker, &fresh);
    duo.stream(10 * SECOND, 50 * MS);
    assert!(duo.path(0).endpoint != Some(attacker), "a probe of it was not answered");
    assert_eq!(duo.path(0).kind, PathKind::P2p);
}
