//! Neighbours between whom UDP does not get through, and what strangers do to the listener.

use crate::duo::*;
use edgelink_api::local::{PathKind, Transport};
use edgelink_wire::{FrameType, frames};
use std::net::SocketAddr;
use std::time::Duration;

/// Both on one network, with or without UDP between them.
fn neighbours(udp: bool) -> Duo {
    let mut setup = Setup::behind("full_cone", "full_cone");
    setup.behind = [Some(0), Some(0)];
    setup.addresses = [[192, 168, 1, 10].into(), [192, 168, 1, 20].into()];
    let mut duo = Duo::new(setup);
    duo.cut = !udp;
    duo
}

fn is_tcp(duo: &Duo, index: usize) -> bool {
    let path = duo.path(index);
    path.kind == PathKind::Lan && path.transport == Some(Transport::Tcp)
}

/// Time until both send by TCP, with a packet each way every 50 ms.
fn time_to_tcp(duo: &mut Duo, limit: Duration) -> Option<Duration> {
    let begin = duo.elapsed;
    while duo.elapsed < begin + limit {
        duo.stream(50 * MS, 50 * MS);
        if is_tcp(duo, 0) && is_tcp(duo, 1) {
            return Some(duo.elapsed - begin);
        }
    }
    None
}

/// Packets that were sent to a host in this time and have not arrived.
fn lost(duo: &mut Duo, to: usize, run: impl FnOnce(&mut Duo)) -> usize {
    let first = duo.send(1 - to);
    run(duo);
    duo.advance(SECOND);
    let last = duo.send(1 - to);
    duo.advance(SECOND);
    let arrived: std::collections::BTreeSet<u32> = duo.received(to).iter().map(|(_, number)| *number).collect();
    let sent = duo.sent_by(1 - to).into_iter().filter(|number| (first..=last).contains(number));
    sent.filter(|number| !arrived.contains(number)).count()
}

fn refused(duo: &Duo, index: usize) -> u64 {
    duo.status(index).drops.get("refused_stream").copied().unwrap_or_default()
}

#[test]
fn where_udp_does_not_get_through_tcp_does_after_two_seconds_and_loses_nothing() {
    let mut duo = neighbours(false);
    assert_eq!(duo.listening(0), ["192.168.1.10:41641".parse::<SocketAddr>().unwrap()]);
    let mut time = None;
    assert_eq!(lost(&mut duo, 1, |duo| time = time_to_tcp(duo, 10 * SECOND)), 0);
    assert!(time.is_some_and(|time| (2 * SECOND..3 * SECOND).contains(&time)), "{time:?}");
    assert_eq!((duo.dialled(0).len(), duo.dialled(1).len()), (1, 0), "the one with the lower id dials");
    assert_eq!(duo.path(0).endpoint, Some("192.168.1.20:41641".parse().unwrap()));
    assert_eq!(duo.path(1).endpoint.unwrap().ip(), "192.168.1.10".parse::<std::net::IpAddr>().unwrap());
    assert_eq!((duo.peer(0).reason, duo.peer(1).reason), (None, None));
    let why = duo.paths(0)[0].why.clone();
    assert!(why.contains("by TCP"), "{why}");

    duo.advance(SECOND);
    let relayed = duo.relayed;
    assert_eq!(lost(&mut duo, 0, |duo| duo.stream(30 * SECOND, 20 * MS)), 0);
    assert_eq!(duo.relayed, relayed, "nothing goes by the relay any more");
    assert_eq!((duo.open_streams(0), duo.open_streams(1)), (1, 1));
}

#[test]
fn where_udp_gets_through_nobody_dials() {
    let mut duo = neighbours(true);
    duo.stream(20 * SECOND, 50 * MS);
    assert_eq!(duo.path(0).transport, Some(Transport::Udp));
    assert!(duo.dialled(0).is_empty() && duo.dialled(1).is_empty());
}

#[test]
fn two_that_dial_at_once_keep_one_connection_and_lose_nothing() {
    // The second dials while the first one's SYN is still under way; and the other way round in time.
    for delay in [1500 * MS, 2500 * MS] {
        let mut duo = neighbours(false);
        duo.tcp_delay = delay;
        let missing = lost(&mut duo, 0, |duo| {
            assert!(time_to_tcp(duo, 10 * SECOND).is_some(), "{delay:?}");
            duo.stream(10 * SECOND, 20 * MS);
        });
        assert_eq!(missing, 0, "{delay:?}");
        assert_eq!((duo.dialled(0).len(), duo.dialled(1).len()), (1, 1), "{delay:?}");
        assert_eq!((duo.open_streams(0), duo.open_streams(1)), (1, 1), "{delay:?}");
        // The one that the lower id has dialled.
        assert_eq!(duo.path(0).endpoint.unwrap().port(), 41_641, "{delay:?}");
        assert_ne!(duo.path(1).endpoint.unwrap().port(), 41_641, "{delay:?}");
    }
}

#[test]
fn udp_takes_over_within_seconds_when_it_gets_through_again_and_the_connection_is_closed_later() {
    let mut duo = neighbours(false);
    time_to_tcp(&mut duo, 10 * SECOND).unwrap();
    duo.stream(40 * SECOND, 50 * MS);
    let knocks = duo.sent.iter().filter(|(at, from, ..)| *from == 0 && *at + 30 * SECOND > duo.elapsed).count();
    assert!(knocks <= 8, "{knocks} datagrams in 30 s to see whether UDP gets through");
    duo.cut = false;
    let begin = duo.elapsed;
    let missing = lost(&mut duo, 0, |duo| {
        while duo.path(0).transport != Some(Transport::Udp) || duo.path(1).transport != Some(Transport::Udp) {
            assert!(duo.elapsed < begin + 7 * SECOND, "{:?}", duo.paths(0));
            duo.stream(50 * MS, 50 * MS);
        }
    });
    assert_eq!(missing, 0);
    // It is still there for a while, and then no more.
    assert_eq!(duo.open_streams(0), 1);
    duo.stream(95 * SECOND, 50 * MS);
    assert_eq!((duo.open_streams(0), duo.open_streams(1)), (0, 0));
    assert_eq!(duo.path(0).transport, Some(Transport::Udp));
}

#[test]
fn a_connection_through_which_nothing_passes_is_left_for_the_relay_within_5_s_and_made_anew_later() {
    let mut duo = neighbours(false);
    time_to_tcp(&mut duo, 10 * SECOND).unwrap();
    duo.stream(5 * SECOND, 50 * MS);
    duo.tcp_cut = true;
    let begin = duo.elapsed;
    duo.stream(10 * SECOND, 50 * MS);
    let after = duo.received(1).iter().map(|(at, _)| *at).find(|at| *at > begin + 200 * MS);
    assert!(after.is_some_and(|at| at < begin + 5 * SECOND), "{after:?} {begin:?}");
    assert_eq!(duo.path(0).kind, PathKind::Relay);
    assert_eq!(lost(&mut duo, 1, |duo| duo.stream(5 * SECOND, 50 * MS)), 0);
    duo.tcp_cut = false;
    assert!(time_to_tcp(&mut duo, 40 * SECOND).is_some(), "{:?}", duo.paths(0));
    // Whatever else both have begun meanwhile has ended.
    duo.stream(5 * SECOND, 50 * MS);
    assert_eq!((duo.open_streams(0), duo.open_streams(1)), (1, 1));
}

#[test]
fn whoever_restarts_is_dialled_anew() {
    let mut duo = neighbours(false);
    time_to_tcp(&mut duo, 10 * SECOND).unwrap();
    duo.reset_streams();
    assert_eq!(lost(&mut duo, 1, |duo| duo.stream(2 * SECOND, 50 * MS)), 0);
    assert_eq!(duo.path(0).kind, PathKind::Relay);
    assert!(time_to_tcp(&mut duo, 20 * SECOND).is_some());
}

#[test]
fn who_is_not_there_is_dialled_less_and_less_often_and_only_with_traffic() {
    let mut duo = neighbours(false);
    duo.tcp_refused = true;
    duo.stream(10 * 60 * SECOND, 200 * MS);
    for index in [0, 1] {
        let times: Vec<Duration> = duo.dialled(index).iter().map(|(at, _)| *at).collect();
        assert!((5..=9).contains(&times.len()), "{times:?}");
        let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "{pauses:?}");
    }
    assert_eq!(duo.path(0).kind, PathKind::Relay);
    let before = duo.dialled(0).len();
    duo.advance(60 * 60 * SECOND);
    assert!(duo.dialled(0).len() <= before + 1, "{:?}", duo.dialled(0));
}

#[test]
fn without_direct_paths_nobody_listens_or_dials() {
    for enabled in [[false, true], [true, false], [false, false]] {
        let mut setup = Setup::behind("full_cone", "full_cone");
        setup.behind = [Some(0), Some(0)];
        setup.addresses = [[192, 168, 1, 10].into(), [192, 168, 1, 20].into()];
        setup.enabled = enabled;
        let mut duo = Duo::new(setup);
        duo.stream(20 * SECOND, 50 * MS);
        for index in [0, 1] {
            assert_eq!(duo.listening(index).is_empty(), !enabled[index]);
            assert!(duo.dialled(index).is_empty());
            if !enabled[index] {
                assert_eq!(duo.stranger(index, "192.168.1.99:1234".parse().unwrap()), None);
            }
        }
    }
}

#[test]
fn only_private_addresses_of_networks_that_we_are_connected_to_are_dialled_and_listened_on() {
    // Two sites; the first one's host is on the open Internet.
    let mut setup = Setup::behind("full_cone", "full_cone");
    setup.behind = [None, Some(1)];
    setup.addresses = [[203, 0, 115, 10].into(), [192, 168, 2, 20].into()];
    let mut duo = Duo::new(setup);
    duo.cut = true;
    duo.stream(30 * SECOND, 50 * MS);
    assert!(duo.listening(0).is_empty(), "a public address");
    assert_eq!(duo.listening(1).len(), 1);
    assert!(duo.dialled(0).is_empty() && duo.dialled(1).is_empty(), "no network in common");
    // Nor is anybody let in who is not of the network, or by a port of the system's.
    assert_eq!(duo.stranger(1, "203.0.115.10:5000".parse().unwrap()), None);
    assert_eq!(duo.stranger(1, "192.168.3.20:5000".parse().unwrap()), None);
    assert_eq!(refused(&duo, 1), 2);
}

#[test]
fn a_stranger_that_says_nothing_is_closed_after_two_seconds_and_hears_nothing() {
    let mut duo = neighbours(true);
    let stranger = duo.stranger(0, "192.168.1.99:1234".parse().unwrap()).unwrap();
    duo.advance(1999 * MS);
    assert_eq!(duo.to_test[stranger], (vec![], false));
    duo.advance(MS);
    assert_eq!(duo.to_test[stranger], (vec![], true));
    assert_eq!((duo.open_streams(0), refused(&duo, 0)), (0, 1));
}

#[test]
fn what_strangers_say_closes_their_own_connection_only_and_is_never_answered() {
    let mut duo = neighbours(false);
    time_to_tcp(&mut duo, 10 * SECOND).unwrap();
    let hello = duo.hello(0).unwrap();
    let frames: Vec<Vec<u8>> = frames(&hello).map(|frame| frame.unwrap().raw.to_vec()).collect();
    let [announce, ping] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((announce[1], ping[1]), (FrameType::KeyAnnounce.as_u8(), FrameType::P2pPing.as_u8()));
    let mut forged = ping.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut foreign = announce.clone();
    foreign[8] ^= 1;
    let mut elsewhere = announce.clone();
    elsewhere[12] ^= 1;
    let mut resigned = announce.clone();
    *resigned.last_mut().unwrap() ^= 1;
    let data: Vec<u8> = [&[1, 0x10, 0], &ping[3..]].concat();
    let long = [&[1, 0x13, 0, 0x20, 0][..], &vec![0; 8192]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TLS", [&[22, 3, 1, 2, 0], &[7; 512][..]].concat()),
        ("another version", vec![2, 0x13, 0, 0, 0]),
        ("an unknown type", vec![1, 0xee, 0, 0, 0]),
        ("a control message", vec![1, 0x01, 0, 0, 0]),
        ("a frame that is too long before authentication", long),
        ("a PING first", ping.clone()),
        ("DATA first", data.clone()),
        ("an empty announce", vec![1, 0x13, 0, 0, 0]),
        ("an announce of an unknown node", foreign),
        ("an announce to somebody else", elsewhere),
        ("two announces", [&announce[..], announce].concat()),
        ("DATA after the announce", [&announce[..], &data].concat()),
        ("a forged PING", [&announce[..], &forged].concat()),
        ("a forged announce and a forged PING", [&resigned[..], &forged].concat()),
        ("the hello again", hello.clone()),
    ];
    let (before, streams) = (duo.path(1), duo.open_streams(1));
    for (n, (what, bytes)) in cases.iter().enumerate() {
        // In one piece, and byte by byte.
        for step in [bytes.len(), 1] {
            let from = SocketAddr::new([192, 168, 1, 100 + n as u8].into(), 5000);
            let stranger = duo.stranger(1, from).unwrap();
            for piece in bytes.chunks(step) {
                duo.say(1, stranger, piece);
            }
            assert_eq!(duo.to_test[stranger], (vec![], true), "{what}, {step}");
            assert_eq!(duo.open_streams(1), streams, "{what}");
        }
    }
    assert_eq!(refused(&duo, 1) as usize, 2 * cases.len());
    assert_eq!((duo.path(1).endpoint, duo.path(1).kind), (before.endpoint, before.kind));
    assert_eq!(lost(&mut duo, 1, |duo| duo.stream(5 * SECOND, 50 * MS)), 0);
    assert!(is_tcp(&duo, 0) && is_tcp(&duo, 1));
}

#[test]
fn a_hello_that_was_kept_from_us_proves_nothing_to_whoever_shows_it() {
    // The stranger sits between the two: the hello never arrives by the connection that it was made for.
    let mut duo = neighbours(false);
    duo.swallow_streams = true;
    duo.stream(4 * SECOND, 50 * MS);
    let hello = duo.hello(0).unwrap();
    let stranger = duo.stranger(1, "192.168.1.66:5000".parse().unwrap()).unwrap();
    duo.say(1, stranger, &hello);
    // It gets a PING and a PONG that it cannot open, and is no path without an answer of its own.
    assert!(!duo.to_test[stranger].0.is_empty() && !duo.to_test[stranger].1);
    assert_eq!(duo.path(1).kind, PathKind::Relay);
    duo.advance(2 * SECOND);
    assert!(duo.to_test[stranger].1);
    assert_eq!(duo.path(1).kind, PathKind::Relay);
}

#[test]
fn a_flood_of_strangers_is_bounded_and_does_not_touch_a_path() {
    let mut duo = neighbours(false);
    time_to_tcp(&mut duo, 10 * SECOND).unwrap();
    let mut most = 0;
    for n in 0..2_000_u32 {
        let from = SocketAddr::new([192, 168, 1, 30 + (n % 200) as u8].into(), 1024 + n as u16);
        duo.stranger(1, from);
        most = most.max(duo.open_streams(1));
        if n % 20 == 0 {
            duo.stream(20 * MS, 20 * MS);
        }
    }
    assert_eq!(most, 1 + 32);
    assert!(is_tcp(&duo, 0) && is_tcp(&duo, 1));
    duo.stream(3 * SECOND, 50 * MS);
    assert_eq!(duo.open_streams(1), 1);
    let same: Vec<bool> =
        (0..10).map(|n| duo.stranger(1, SocketAddr::new([192, 168, 1, 99].into(), 2000 + n)).is_some()).collect();
    assert_eq!(same.iter().filter(|taken| **taken).count(), 4, "of one address");
}

#[test]
fn a_connection_on_which_nonsense_follows_is_closed_and_the_relay_takes_over() {
    let mut duo = neighbours(false);
    time_to_tcp(&mut duo, 10 * SECOND).unwrap();
    duo.corrupt_streams();
    assert_eq!((duo.open_streams(0), duo.open_streams(1)), (0, 0));
    assert_eq!(lost(&mut duo, 1, |duo| duo.stream(2 * SECOND, 50 * MS)), 0);
    assert!(duo.status(1).drops.contains_key("malformed"));
}

#[test]
fn an_idle_connection_is_kept_as_long_as_a_path_and_then_closed() {
    let mut duo = neighbours(false);
    time_to_tcp(&mut duo, 10 * SECOND).unwrap();
    duo.advance(20 * 60 * SECOND);
    assert_eq!((duo.open_streams(0), duo.open_streams(1)), (1, 1));
    assert!(is_tcp(&duo, 0));
    duo.advance(20 * 60 * SECOND);
    assert_eq!((duo.open_streams(0), duo.open_streams(1)), (0, 0));
}

#[test]
fn a_host_that_moves_takes_no_connection_with_it() {
    let mut duo = neighbours(false);
    time_to_tcp(&mut duo, 10 * SECOND).unwrap();
    duo.move_host(0, [192, 168, 7, 10].into(), Some(1));
    duo.advance(100 * MS);
    assert_eq!((duo.open_streams(0), duo.open_streams(1)), (0, 0));
    assert_eq!(duo.listening(0), ["192.168.7.10:41641".parse::<SocketAddr>().unwrap()]);
    assert_eq!(lost(&mut duo, 1, |duo| duo.stream(10 * SECOND, 50 * MS)), 0);
    assert_eq!(duo.path(0).kind, PathKind::Relay);
}
