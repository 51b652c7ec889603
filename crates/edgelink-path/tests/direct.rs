//! Direct paths among the others, the search for them, and the STUN client against answers that lie.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use edgelink_model::ServerId;
use edgelink_path::{
    ATTEMPT, ATTEMPTS, Budget, Hops, MAX_DIRECT, NatDiscovery, NatName, PeerPaths, Proof, Punch, PunchProbe,
    PunchState, RETRY_AFTER, RelayWay, SocketId, StreamId, StunServer, Way,
};
use edgelink_wire::stun::binding::{Request, Response, Success};
use edgelink_wire::stun::{Message, TransactionId};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SOCKET: SocketId = SocketId(1);

#[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
fn start() -> Instant {
    Instant::now()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn udp(n: u16, lan: bool) -> Way {
    Way::Udp { socket: SOCKET, remote: SocketAddr::new([192, 0, 2, 1].into(), n), lan }
}

#[test]
fn a_better_class_is_taken_at_once_and_a_worse_one_never_while_it_lives() {
    let now = start();
    let mut paths = PeerPaths::new();
    let relay = RelayWay { relay: ServerId(1), hops: Hops::Any, expected: None };
    paths.set_relays(&[relay], now);
    paths.send(100, now);
    paths.add_direct(udp(1, false), 300 * MS, Some(1400), now);
    assert_eq!(paths.view().unwrap().way, udp(1, false), "however slow");
    paths.add_direct(udp(2, true), 400 * MS, Some(1400), now);
    assert_eq!(paths.view().unwrap().way, udp(2, true));
    paths.add_direct(udp(3, false), MS, Some(1400), now);
    assert_eq!(paths.view().unwrap().way, udp(2, true));
    paths.remove_direct(|way| way == udp(2, true), now);
    assert_eq!(paths.view().unwrap().way, udp(3, false), "the faster of its class");
    paths.remove_direct(|_| true, now);
    assert_eq!(paths.view().unwrap().way, Way::Relay { relay: ServerId(1), hops: Hops::Any });
    for n in 1..100 {
        paths.add_direct(udp(n, false), MS, Some(1400), now);
    }
    assert_eq!(paths.views().iter().filter(|view| view.way.is_direct()).count(), MAX_DIRECT);
}

/// Plays a path that carries `width` until `end`, with a packet each second; the sizes of probes that did not come back.
fn play(paths: &mut PeerPaths, width: u16, from: Instant, end: Duration) -> Vec<(Duration, u16)> {
    let (mut now, mut name, mut lost) = (from, u64::from(width) << 32, Vec::new());
    while now < from + end {
        paths.send(100, now);
        paths.handle_timeout(now);
        while let Some(probe) = paths.next_probe(now) {
            name += 1;
            paths.probe_sent(probe.path, name, now);
            if probe.size <= width {
                paths.pong(probe.path, name, probe.way, now + MS);
            } else {
                lost.push((now - from, probe.size));
            }
        }
        now += SECOND;
    }
    lost
}

#[test]
fn a_path_that_is_known_to_carry_less_is_asked_for_more_seldom_and_without_doubt() {
    let now = start();
    let mut paths = PeerPaths::new();
    paths.set_largest(1400);
    paths.send(100, now);
    paths.add_direct(udp(1, false), MS, Some(1211), now);
    let limit = |paths: &PeerPaths| paths.view().unwrap().limit;
    let lost = play(&mut paths, 1211, now, 100 * SECOND);
    let at: Vec<u64> = lost.iter().map(|(at, _)| at.as_secs()).collect();
    assert_eq!(at, [5, 10, 20, 40, 80]);
    assert!(lost.iter().all(|(_, size)| *size == 1351), "the next larger one: {lost:?}");
    assert_eq!((limit(&paths), paths.is_hedging()), (Some(1211), false), "a path that answers is not in doubt");
    // The network is wider now, or the first probes had been lost.
    let now = now + 100 * SECOND;
    assert!(play(&mut paths, 1400, now, 80 * SECOND).is_empty());
    assert_eq!(limit(&paths), Some(1400));
    assert_eq!(paths.send(100, now + 80 * SECOND).limit, Some(1400));
    // What is in use is as large as can be: nothing more is tried. A path that does not carry it any more is left.
    let lost = play(&mut paths, 1300, now + 80 * SECOND, 10 * SECOND);
    assert!(lost.iter().all(|(_, size)| *size == 1400), "{lost:?}");
    assert!(!paths.has_direct());
}

#[test]
fn tcp_comes_after_udp_on_the_lan_and_before_all_else_and_carries_packets_of_any_size() {
    let now = start();
    let tcp = |n| Way::Tcp { stream: StreamId(n), remote: address("192.168.1.2:41641") };
    let mut paths = PeerPaths::new();
    let relay = RelayWay { relay: ServerId(1), hops: Hops::Any, expected: None };
    paths.set_relays(&[relay], now);
    paths.send(100, now);
    paths.add_direct(udp(1, false), MS, Some(1200), now);
    paths.add_direct(tcp(1), 300 * MS, None, now);
    assert_eq!((paths.way(), paths.view().unwrap().limit), (Some(tcp(1)), None), "however slow");
    assert_eq!(paths.send(60_000, now).limit, None);
    paths.remove_direct(|way| way == udp(1, false), now);
    // Probes are not padded, and their PONGs must come back by the same connection.
    let later = now + SECOND;
    paths.send(100, later);
    paths.handle_timeout(later);
    let probes: Vec<_> = std::iter::from_fn(|| paths.next_probe(later)).collect();
    let probe = probes.iter().find(|probe| probe.way == tcp(1)).unwrap();
    assert_eq!(probe.size, 0);
    paths.probe_sent(probe.path, 7, later);
    assert_eq!(paths.pong(probe.path, 7, tcp(2), later), None);
    assert!(paths.pong(probe.path, 7, tcp(1), later).is_some());
    // A relay stands by for it, and UDP takes its place at once.
    paths.probe_all(later);
    assert_eq!(paths.send(100, later).second, Some(Way::Relay { relay: ServerId(1), hops: Hops::Any }));
    paths.add_direct(udp(2, true), 400 * MS, Some(1400), later);
    assert_eq!(paths.way(), Some(udp(2, true)));
    paths.remove_direct(|way| way == udp(2, true), later);
    assert_eq!(paths.way(), Some(tcp(1)));
}

#[test]
fn a_pong_of_a_direct_path_must_come_back_by_it() {
    let now = start();
    let mut paths = PeerPaths::new();
    paths.send(100, now);
    paths.add_direct(udp(1, false), MS, Some(1400), now);
    let later = now + SECOND;
    paths.handle_timeout(later);
    let probe = paths.next_probe(later).unwrap();
    paths.probe_sent(probe.path, 1, later);
    assert_eq!(paths.pong(probe.path, 1, udp(2, false), later), None, "another address");
    let relay = Way::Relay { relay: ServerId(1), hops: Hops::Any };
    assert_eq!(paths.pong(probe.path, 1, relay, later), None, "through a relay");
    assert!(paths.pong(probe.path, 1, udp(1, false), later).is_some());
}

/// Runs a search to its end; returns when it was asked to signal, and all probes.
fn search(punch: &mut Punch, budget: &Budget, begin: Instant, time: Duration) -> (Vec<u64>, Vec<(u64, PunchProbe)>) {
    let (mut signals, mut probes) = (Vec::new(), Vec::new());
    let mut now = begin;
    for turn in 0.. {
        assert!(turn < 100_000, "it spins");
        punch.handle_timeout(&[SOCKET], now);
        let ms = u64::try_from((now - begin).as_millis()).unwrap();
        if punch.take_signal() {
            signals.push(ms);
        }
        while let Some(probe) = punch.next_probe(budget, now) {
            probes.push((ms, probe));
            punch.probe_sent(probe, probes.len() as u64, now);
        }
        match punch.poll_timeout().filter(|at| *at <= begin + time) {
            Some(at) => now = at.max(now + Duration::from_nanos(1)),
            None => break,
        }
    }
    (signals, probes)
}

#[test]
fn three_attempts_of_five_seconds_two_seconds_apart_then_a_pause() {
    let begin = start();
    let (mut punch, budget) = (Punch::new(1400), Budget::new(20));
    punch.want(&[SOCKET], begin);
    punch.set_candidates(vec![address("192.0.2.1:1"), address("192.0.2.2:1")], 0, &[SOCKET], Duration::ZERO, begin);
    let (signals, probes) = search(&mut punch, &budget, begin, 100 * SECOND);
    assert_eq!(signals, [0, 7000, 14_000], "{ATTEMPTS} attempts of {ATTEMPT:?}");
    assert!(probes.iter().all(|(ms, _)| ms % 7000 <= 5000), "nothing in the pauses");
    let PunchState::Waiting(at) = punch.state() else { panic!("{:?}", punch.state()) };
    let end = begin + 19 * SECOND;
    assert!(at >= end + RETRY_AFTER - MS && at <= end + RETRY_AFTER + MS);
    // The pause is doubled.
    punch.want(&[SOCKET], end);
    assert!(matches!(punch.state(), PunchState::Waiting(_)), "not yet");
    punch.want(&[SOCKET], at);
    search(&mut punch, &budget, at, 100 * SECOND);
    let PunchState::Waiting(next) = punch.state() else { panic!("{:?}", punch.state()) };
    assert!(next - at >= 19 * SECOND + 2 * RETRY_AFTER - MS);
}

#[test]
fn who_only_answers_makes_one_attempt() {
    let begin = start();
    let (mut punch, budget) = (Punch::new(1400), Budget::new(20));
    punch.set_candidates(vec![address("192.0.2.1:1")], 0, &[SOCKET], 100 * MS, begin);
    let (signals, probes) = search(&mut punch, &budget, begin, 100 * SECOND);
    assert!(signals.is_empty());
    assert_eq!(probes[0].0, 100, "when the other side begins");
    assert!(probes.last().unwrap().0 <= 5000);
    assert!(matches!(punch.state(), PunchState::Waiting(_)));
}

#[test]
fn only_a_full_size_pong_from_the_very_address_is_a_proof() {
    let now = start();
    let (mut punch, budget) = (Punch::new(1400), Budget::new(20));
    let (there, elsewhere) = (address("192.0.2.1:1"), address("192.0.2.9:9"));
    punch.set_candidates(vec![there], 0, &[SOCKET], Duration::ZERO, now);
    punch.handle_timeout(&[SOCKET], now);
    let probe = punch.next_probe(&budget, now).unwrap();
    assert_eq!(probe, PunchProbe { socket: SOCKET, remote: there, size: 0 });
    punch.probe_sent(probe, 1, now);
    assert_eq!(punch.pong(1, SOCKET, elsewhere, now), None, "from another address");
    let next = punch.next_probe(&budget, now).unwrap();
    assert_eq!((next.remote, next.size), (elsewhere, 0), "which is probed itself");
    punch.probe_sent(next, 2, now);
    assert_eq!(punch.pong(2, SOCKET, elsewhere, now), Some(Proof::Small));
    let full = punch.next_probe(&budget, now).unwrap();
    assert_eq!(full, PunchProbe { socket: SOCKET, remote: elsewhere, size: 1400 });
    punch.probe_sent(full, 3, now);
    let proof = Proof::Usable { socket: SOCKET, remote: elsewhere, rtt: 30 * MS, limit: 1400 };
    assert_eq!(punch.pong(3, SOCKET, elsewhere, now + 30 * MS), Some(proof));
    assert_eq!(punch.pong(3, SOCKET, elsewhere, now), None, "once");
    assert_eq!(punch.pong(4711, SOCKET, elsewhere, now), None);
}

#[test]
fn ten_thousand_endpoints_and_observations_stay_bounded() {
    let begin = start();
    let (mut punch, budget) = (Punch::new(1400), Budget::new(20));
    let many: Vec<SocketAddr> = (0..10_000u16).map(|n| SocketAddr::new([192, 0, 2, 1].into(), n + 1)).collect();
    punch.set_candidates(many.clone(), 0, &[SOCKET], Duration::ZERO, begin);
    for remote in &many {
        punch.observe(SOCKET, *remote, begin);
    }
    let (_, probes) = search(&mut punch, &budget, begin, 60 * SECOND);
    assert!(probes.len() <= 20 + 20 * 60, "{}", probes.len());
    assert!(!matches!(punch.state(), PunchState::Trying(_)), "it ends");
}

#[test]
fn answers_that_lie_are_not_believed() {
    let now = start();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let budget = Budget::new(20);
    let server = StunServer { primary: address("198.51.101.1:3478"), second: None };
    let mut nat = NatDiscovery::default();
    nat.start(&[server]);
    let query = nat.poll(&budget, now, &mut rng).unwrap();
    let (request, _) = Request::parse(&Message::parse(&query.bytes).unwrap()).unwrap();
    let answer = |transaction, mapped: &str| {
        let success = Success { mapped: address(mapped), origin: None, other: None };
        let (bytes, len) = Response { transaction, result: Ok(success), fingerprint: true }.encode();
        bytes[..len].to_vec()
    };
    let good = answer(request.transaction, "203.0.113.5:4000");
    assert!(!nat.handle(query.to, &answer(TransactionId([1; 12]), "203.0.113.6:4000"), now), "wrong transaction");
    assert!(!nat.handle(address("198.51.101.1:3479"), &good, now), "another port");
    assert!(!nat.handle(address("198.51.101.9:3478"), &good, now), "another server");
    assert!(!nat.handle(query.to, &query.bytes, now), "our own request");
    assert!(nat.mapped().is_empty());
    assert!(nat.handle(query.to, &good, now));
    assert!(!nat.handle(query.to, &good, now), "twice");
    assert_eq!(nat.mapped(), [address("203.0.113.5:4000")]);
    for absurd in ["224.0.0.1:5", "0.0.0.0:5", "127.0.0.1:5", "203.0.113.5:0"] {
        let mut nat = NatDiscovery::default();
        nat.start(&[server]);
        let query = nat.poll(&budget, now + SECOND, &mut rng).unwrap();
        let (request, _) = Request::parse(&Message::parse(&query.bytes).unwrap()).unwrap();
        assert!(!nat.handle(query.to, &answer(request.transaction, absurd), now));
        assert!(nat.mapped().is_empty(), "{absurd}");
    }
}

#[test]
fn silence_is_blocked_udp_and_ends() {
    let begin = start();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let budget = Budget::new(20);
    let servers = ["198.51.101.1:3478", "198.51.101.2:3478"].map(|s| StunServer { primary: address(s), second: None });
    let mut nat = NatDiscovery::default();
    nat.start(&servers);
    let mut sent = Vec::new();
    let mut now = begin;
    while let Some(at) = nat.poll_timeout(now) {
        now = now.max(at);
        while let Some(query) = nat.poll(&budget, now, &mut rng) {
            sent.push(query.to);
        }
        assert!(now < begin + 10 * SECOND);
    }
    assert_eq!(sent.len(), 6, "three requests to each");
    assert!(nat.is_blocked());
    assert_eq!(nat.name(|_| false), NatName::UdpBlocked);
}
