//! Links: exact where exactness is promised, within statistical bounds elsewhere; and one seed, one outcome.

use crate::{Lab, MS, SECOND, at, ip};
use edgelink_sim::net::{Direction, DropReason, HostId, LinkProfile, Loss, NatConfig, Place, TooBig, Uplink};
use std::net::SocketAddr;
use std::time::Duration;

/// Two hosts on the internet, `profile` on the sender's uplink.
fn pair(seed: u64, profile: LinkProfile) -> (Lab, HostId, SocketAddr) {
    let mut lab = Lab::new(seed);
    let (a, b) = (lab.host("198.51.100.1"), lab.host("198.51.100.2"));
    lab.net.set_link(Uplink::Host(a), Direction::Up, profile);
    let dst = at(lab.address(b), 9);
    (lab, a, dst)
}

/// Sends numbered datagrams `gap` apart; the arrivals as (number, delay).
fn train(lab: &mut Lab, from: HostId, dst: SocketAddr, count: u32, gap: Duration) -> Vec<(u32, Duration)> {
    let mut sent = Vec::new();
    let mut arrivals = Vec::new();
    for number in 0..count {
        sent.push(lab.now);
        lab.send(from, 1, dst, number.to_be_bytes().to_vec());
        arrivals.extend(lab.advance(gap));
    }
    arrivals.extend(lab.advance(100 * SECOND));
    let number = |payload: &[u8]| u32::from_be_bytes(payload.try_into().unwrap());
    arrivals
        .iter()
        .map(|a| number(&a.payload))
        .zip(arrivals.iter())
        .map(|(n, a)| (n, a.at - sent[n as usize]))
        .collect()
}

#[test]
fn delays_add_up_exactly_along_the_way() {
    let mut lab = Lab::new(1);
    let server = lab.host("198.51.100.1");
    let site = lab.site(NatConfig::port_restricted());
    let client = lab.net.add_host_on(site).unwrap();
    lab.net.set_links(Uplink::Host(client), LinkProfile::delay(2 * MS));
    lab.net.set_link(Uplink::Router(site), Direction::Up, LinkProfile::delay(10 * MS));
    lab.net.set_link(Uplink::Router(site), Direction::Down, LinkProfile::delay(30 * MS));
    lab.net.set_links(Uplink::Host(server), LinkProfile::delay(5 * MS));
    lab.net.set_transit(Uplink::Router(site), Uplink::Host(server), LinkProfile::delay(100 * MS));
    let begin = lab.now;
    let request = lab.deliver(client, 1, at(ip("198.51.100.1"), 9)).unwrap();
    assert_eq!(request.at - begin, (2 + 10 + 100 + 5) * MS);
    let begin = lab.now;
    let answer = lab.deliver(server, 9, request.from).unwrap();
    assert_eq!(answer.at - begin, (5 + 30 + 2) * MS);
    let route = lab.net.stream_route(client, ip("198.51.100.1")).unwrap();
    assert_eq!((route.forward, route.back), (117 * MS, 37 * MS));
    assert_eq!(lab.net.path_delay(client, ip("198.51.100.1")), Some(117 * MS));
}

#[test]
fn jitter_is_uniform_and_keeps_the_order() {
    let profile = LinkProfile { jitter: 10 * MS, ..LinkProfile::delay(20 * MS) };
    let (mut lab, a, dst) = pair(2, profile);
    let delays = train(&mut lab, a, dst, 4000, 11 * MS);
    let delays: Vec<f64> = delays.iter().map(|(_, delay)| delay.as_secs_f64() * 1e3).collect();
    assert!(delays.iter().all(|ms| (20.0..=30.0).contains(ms)));
    let mean = delays.iter().sum::<f64>() / 4000.0;
    // σ of the mean is 10/√12/√4000 = 0.046 ms
    assert!((mean - 25.0).abs() < 0.23, "mean {mean}");
    let (mut lab, a, dst) = pair(2, profile);
    let close = train(&mut lab, a, dst, 1000, MS / 10);
    assert!(close.is_sorted_by_key(|(number, _)| *number), "closer together than the jitter, still in order");
}

#[test]
fn independent_loss_is_within_its_statistical_bounds() {
    for loss in [0.01, 0.1, 0.5] {
        let (mut lab, a, dst) = pair(3, LinkProfile { loss: Loss::Independent(loss), ..LinkProfile::default() });
        let lost = 20_000 - train(&mut lab, a, dst, 20_000, MS).len();
        let (expected, sigma) = (20_000.0 * loss, (20_000.0 * loss * (1.0 - loss)).sqrt());
        assert!((lost as f64 - expected).abs() < 5.0 * sigma, "{lost} of 20000 at {loss}");
        assert_eq!(
            lab.net
                .drops()
                .at(Place::Link(Uplink::Interface(a, lab.net.lans_of(a)[0]), Direction::Up), DropReason::Loss),
            lost as u64
        );
    }
}

#[test]
fn burst_loss_has_the_rate_and_the_burst_length_of_its_chain() {
    let loss = Loss::GilbertElliott { to_bad: 0.01, to_good: 0.2, good: 0.0, bad: 1.0 };
    let (mut lab, a, dst) = pair(4, LinkProfile { loss, ..LinkProfile::default() });
    let count = 100_000;
    let mut lost = vec![true; count];
    for (number, _) in train(&mut lab, a, dst, count as u32, MS) {
        lost[number as usize] = false;
    }
    let total = lost.iter().filter(|l| **l).count() as f64;
    let bursts = (0..count).filter(|i| lost[*i] && (*i == 0 || !lost[i - 1])).count() as f64;
    assert!((total / count as f64 - 0.01 / 0.21).abs() < 0.006, "loss {}", total / count as f64);
    assert!((total / bursts - 5.0).abs() < 0.6, "burst {}", total / bursts);
}

#[test]
fn a_rate_is_exact_and_its_queue_drops_the_newest() {
    // 1000 bytes of IP take 1 ms at 8 Mbit/s; ten fit the queue.
    let profile = LinkProfile { rate: Some(8_000_000), queue: 10_000, ..LinkProfile::default() };
    let (mut lab, a, dst) = pair(5, profile);
    let begin = lab.now;
    for _ in 0..15 {
        lab.send(a, 1, dst, vec![0; 1000 - 28]);
    }
    let times: Vec<_> = lab.advance(SECOND).iter().map(|arrival| arrival.at - begin).collect();
    assert_eq!(times, (1..=10).map(|n| n * MS).collect::<Vec<_>>());
    assert_eq!(lab.net.drops().of(DropReason::QueueFull), 5);
    // Sustained: 10 s offered at twice the rate.
    let begin = lab.now;
    let mut bytes = 0;
    while lab.now < begin + 10 * SECOND {
        lab.send(a, 1, dst, vec![0; 1000 - 28]);
        bytes += lab.advance(MS / 2).iter().map(|arrival| arrival.payload.len() + 28).sum::<usize>();
    }
    assert_eq!(bytes, 10_000_000);
}

#[test]
fn duplicates_arrive_twice_and_held_back_datagrams_are_overtaken() {
    let profile = LinkProfile { duplicate: 0.1, ..LinkProfile::delay(MS) };
    let (mut lab, a, dst) = pair(6, profile);
    let arrivals = train(&mut lab, a, dst, 10_000, MS);
    let stats = lab.net.link_stats(Uplink::Host(a), Direction::Up);
    assert_eq!(arrivals.len() as u64, 10_000 + stats.duplicated);
    assert!((900..1100).contains(&stats.duplicated), "{stats:?}");

    let profile = LinkProfile { reorder: 0.1, reorder_delay: 5 * MS, ..LinkProfile::delay(MS) };
    let (mut lab, a, dst) = pair(6, profile);
    let arrivals = train(&mut lab, a, dst, 10_000, MS);
    let late = arrivals.iter().filter(|(_, delay)| *delay == 6 * MS).count() as u64;
    let overtaken = arrivals.windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
    assert_eq!(arrivals.len(), 10_000);
    assert_eq!(late, lab.net.link_stats(Uplink::Host(a), Direction::Up).reordered);
    assert!((900..1100).contains(&late) && overtaken > 800, "{late} {overtaken}");
}

#[test]
fn oversize_datagrams_vanish_or_are_told() {
    let quiet = LinkProfile { mtu: 1280, ..LinkProfile::default() };
    let (mut lab, a, dst) = pair(7, quiet);
    lab.send(a, 1, dst, vec![0; 1280 - 28]);
    lab.send(a, 1, dst, vec![0; 1280 - 28 + 1]);
    assert_eq!(lab.advance(SECOND).len(), 1);
    assert_eq!((lab.net.drops().of(DropReason::TooBig), lab.net.pop_too_big()), (1, None));
    lab.net.set_link(Uplink::Host(a), Direction::Up, LinkProfile { signal_too_big: true, ..quiet });
    lab.send(a, 1, dst, vec![0; 1400]);
    let local = at(lab.address(a), 1);
    assert_eq!(lab.net.pop_too_big(), Some(TooBig { at: lab.now, host: a, local, dst, mtu: 1280 }));
    assert_eq!(lab.net.pop_too_big(), None);
}

#[test]
fn a_link_that_is_down_passes_nothing_and_streams_know() {
    let (mut lab, a, dst) = pair(8, LinkProfile::default());
    assert!(lab.deliver(a, 1, dst).is_some());
    lab.net.set_link(Uplink::Host(a), Direction::Down, LinkProfile { down: true, ..LinkProfile::default() });
    assert!(lab.deliver(a, 1, dst).is_some(), "the other direction is up");
    assert_eq!(lab.net.stream_route(a, dst.ip()), None, "a stream needs both");
    lab.net.set_links(Uplink::Host(a), LinkProfile { down: true, ..LinkProfile::default() });
    assert!(lab.deliver(a, 1, dst).is_none());
    assert_eq!(lab.net.drops().of(DropReason::LinkDown), 1);
}

/// A busy network with everything random in it; what happened.
fn trace(seed: u64) -> Vec<String> {
    let mut lab = Lab::new(seed);
    let origin = lab.start;
    let server = lab.host("198.51.100.1");
    let profile = LinkProfile {
        jitter: 20 * MS,
        loss: Loss::GilbertElliott { to_bad: 0.05, to_good: 0.3, good: 0.01, bad: 0.8 },
        duplicate: 0.05,
        reorder: 0.1,
        reorder_delay: 15 * MS,
        rate: Some(1_000_000),
        ..LinkProfile::delay(10 * MS)
    };
    let clients: Vec<_> = [NatConfig::symmetric(), NatConfig::linux_masquerade(), NatConfig::carrier_grade()]
        .into_iter()
        .flat_map(|nat| {
            let site = lab.site(nat);
            lab.net.set_links(Uplink::Router(site), profile);
            [lab.net.add_host_on(site).unwrap(), lab.net.add_host_on(site).unwrap()]
        })
        .collect();
    let mut trace = Vec::new();
    for round in 0..200u16 {
        for client in &clients {
            lab.send(*client, 1000 + round % 7, at(ip("198.51.100.1"), 9), vec![0; 100]);
        }
        for arrival in lab.advance(7 * MS) {
            let delay = arrival.at - origin;
            trace.push(format!("{delay:?} {:?} {} {}", arrival.host, arrival.local, arrival.from));
            if arrival.host == server {
                lab.send(server, 9, arrival.from, arrival.payload);
            }
        }
    }
    trace.push(format!("{:?}", lab.net.drops()));
    trace
}

#[test]
fn one_seed_one_outcome() {
    let first = trace(1);
    assert!(first.len() > 1000, "{}", first.len());
    assert!(first == trace(1), "the same seed");
    assert!(first != trace(2), "another seed");
}
