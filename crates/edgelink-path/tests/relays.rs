//! Relay paths of one peer: probing, hedging, death, the choice, and what an idle peer costs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::*;
use edgelink_model::ServerId;
use edgelink_path::{ASLEEP, Advice, Hops, MAX_PATHS, PeerPaths, RelayWay, Standing};
use proptest::prelude::*;
use std::time::Duration;

fn two() -> World {
    World::new(&[(free(1), 20 * MS), (free(2), 30 * MS)])
}

/// Two living relay paths, the first in use, no doubt.
fn settled() -> World {
    let mut world = two();
    world.stream(6 * SECOND, 100 * MS);
    assert_eq!((world.current(), world.paths.is_hedging()), (Some(free(1)), false));
    world
}

#[test]
fn a_peer_without_traffic_costs_nothing() {
    let mut world = two();
    assert_eq!(world.paths.poll_timeout(), None);
    world.advance(60 * SECOND);
    assert_eq!(world.probes.len(), 0);
    let begin = world.elapsed;
    world.send();
    world.advance(10 * ASLEEP);
    let last = world.probes.last().unwrap().at - begin;
    assert!(last < ASLEEP, "{last:?}");
    assert_eq!(world.paths.poll_timeout(), None, "no timer is left");
    assert!(world.paths.is_asleep(world.now()));
}

#[test]
fn the_first_packets_go_both_ways_until_a_pong() {
    let mut world = two();
    let first = world.send();
    assert_eq!((first.first, first.second, first.woken), (Some(free(1)), Some(free(2)), true));
    assert_eq!(world.probes.iter().map(|p| p.way).collect::<Vec<_>>(), [free(1), free(2)], "probed at once");
    world.advance(19 * MS);
    let again = world.send();
    assert_eq!((again.second, again.woken), (Some(free(2)), false));
    world.advance(MS);
    let proved = world.send();
    assert_eq!((proved.first, proved.second), (Some(free(1)), None));
    // The same again after five seconds, not before.
    world.advance(Duration::from_micros(4_999_999));
    assert_eq!(world.send().second, None);
    world.advance(5 * SECOND);
    assert_eq!(world.send().second, Some(free(2)));
}

#[test]
fn every_path_in_use_is_probed_each_second_and_others_every_five() {
    let mut world = settled();
    world.probes.clear();
    world.stream(20 * SECOND, 100 * MS);
    let count = |way| world.probes.iter().filter(|p| p.way == way).count();
    assert!((20..=21).contains(&count(free(1))), "{}", count(free(1)));
    assert!((3..=5).contains(&count(free(2))), "{}", count(free(2)));
    // Nothing is sent any more: every 30 s.
    world.advance(10 * SECOND);
    let paused = world.elapsed;
    world.advance(90 * SECOND);
    for way in [free(1), free(2)] {
        let times: Vec<_> = world.probes.iter().filter(|p| p.way == way && p.at > paused).map(|p| p.at).collect();
        assert!((2..=3).contains(&times.len()), "{way:?}: {times:?}");
        assert!(times.windows(2).all(|w| w[1] - w[0] >= 30 * SECOND), "{times:?}");
    }
}

#[test]
fn two_missing_pongs_double_and_three_kill() {
    let mut world = settled();
    let cut = world.elapsed;
    world.set_rtt(free(1), None);
    let (mut doubled_at, mut left_at) = (None, None);
    while left_at.is_none() {
        let sending = world.send();
        if sending.second.is_some() && doubled_at.is_none() {
            doubled_at = Some(world.elapsed - cut);
            assert_eq!((sending.first, sending.second), (Some(free(1)), Some(free(2))));
        }
        if sending.first == Some(free(2)) {
            left_at = Some(world.elapsed - cut);
        }
        world.advance(10 * MS);
        assert!(world.elapsed < cut + 10 * SECOND, "never left");
    }
    let (doubled_at, left_at) = (doubled_at.unwrap(), left_at.unwrap());
    assert!((SECOND..=3 * SECOND).contains(&doubled_at), "{doubled_at:?}");
    assert!((doubled_at + 900 * MS..=4 * SECOND + 10 * MS).contains(&left_at), "{left_at:?}");
    assert_eq!(world.paths.views()[1].standing, Standing::Dead);
    assert!(world.paths.doubted_relays().any(|relay| relay == ServerId(1)));
}

#[test]
fn a_lost_probe_or_two_change_nothing() {
    let mut world = settled();
    for _ in 0..20 {
        world.set_rtt(free(1), None);
        world.stream(1900 * MS, 100 * MS);
        world.set_rtt(free(1), Some(20 * MS));
        world.stream(1300 * MS, 100 * MS);
        assert_eq!(world.current(), Some(free(1)));
    }
}

#[test]
fn above_20_mbit_a_doubted_path_is_spared() {
    let mut world = settled();
    world.set_rtt(free(1), None);
    while !world.paths.is_hedging() {
        world.stream(10 * MS, 10 * MS);
    }
    let (mut doubled, mut alone) = (0, 0);
    for _ in 0..500 {
        // 112 Mbit/s.
        for _ in 0..10 {
            let sending = world.send();
            match (sending.first, sending.second) {
                (Some(first), Some(second)) if (first, second) == (free(1), free(2)) => doubled += 1,
                (Some(first), None) if first == free(2) => alone += 1,
                other => panic!("{other:?}"),
            }
        }
        world.advance(MS);
    }
    // Half a second of 20 Mbit/s and the burst of a tenth.
    let allowed = 20_000_000 / 8 * 6 / 10 / 1400;
    assert!((allowed * 9 / 10..=allowed + 1).contains(&doubled), "{doubled} of {allowed}");
    assert_eq!(doubled + alone, 5000);
}

#[test]
fn a_path_must_be_better_by_the_margin_for_three_probes() {
    for (rtt, moves) in [(10 * MS, true), (10 * MS + Duration::from_nanos(1), false)] {
        let mut world = settled();
        world.set_rtt(free(2), Some(rtt));
        let before = world.probes.len();
        let mut probes = 0;
        for _ in 0..300 {
            world.stream(100 * MS, 100 * MS);
            probes = world.probes[before..].iter().filter(|p| p.way == free(2)).count();
            if world.current() == Some(free(2)) {
                break;
            }
        }
        assert_eq!(world.current() == Some(free(2)), moves, "{rtt:?}");
        if moves {
            assert_eq!(probes, 3);
        }
    }
}

#[test]
fn one_bad_probe_begins_the_count_anew() {
    let mut world = settled();
    let good_then_bad = |world: &mut World, good: usize| {
        let before = world.probes.len();
        world.set_rtt(free(2), Some(5 * MS));
        while world.probes[before..].iter().filter(|p| p.way == free(2)).count() < good {
            world.stream(100 * MS, 100 * MS);
        }
        world.set_rtt(free(2), Some(11 * MS));
        let before = world.probes.len();
        while !world.probes[before..].iter().any(|p| p.way == free(2)) {
            world.stream(100 * MS, 100 * MS);
        }
        world.advance(15 * MS);
    };
    for _ in 0..4 {
        good_then_bad(&mut world, 2);
        assert_eq!(world.current(), Some(free(1)));
    }
}

#[test]
fn a_change_of_latency_is_followed_within_20_s() {
    let mut world = settled();
    for (slow, fast) in [(free(1), free(2)), (free(2), free(1))] {
        world.set_rtt(slow, Some(200 * MS));
        world.set_rtt(fast, Some(30 * MS));
        world.stream(20 * SECOND, 100 * MS);
        assert_eq!(world.current(), Some(fast));
    }
}

#[test]
fn a_path_that_has_become_slow_is_not_dead() {
    let mut world = World::new(&[(free(1), 20 * MS)]);
    world.stream(5 * SECOND, 100 * MS);
    world.set_rtt(free(1), Some(1500 * MS));
    world.stream(10 * SECOND, 100 * MS);
    let view = world.paths.view().unwrap();
    assert_eq!((view.standing, view.rtt), (Standing::Alive, Some(1500 * MS)));
}

#[test]
fn the_only_path_is_used_whatever_its_state_and_revives() {
    let mut world = World::new(&[(free(1), 20 * MS)]);
    world.stream(5 * SECOND, 100 * MS);
    world.set_rtt(free(1), None);
    world.stream(20 * SECOND, 100 * MS);
    assert_eq!(world.paths.view().unwrap().standing, Standing::Dead);
    assert_eq!(world.send().first, Some(free(1)));
    world.set_rtt(free(1), Some(20 * MS));
    world.stream(1100 * MS, 100 * MS);
    assert_eq!(world.paths.view().unwrap().standing, Standing::Alive);
}

#[test]
fn with_all_paths_dead_the_first_that_answers_is_taken_at_once() {
    let mut world = settled();
    world.set_rtt(free(1), None);
    world.set_rtt(free(2), None);
    world.stream(20 * SECOND, 100 * MS);
    world.set_rtt(free(2), Some(30 * MS));
    world.stream(5200 * MS, 100 * MS);
    assert_eq!(world.current(), Some(free(2)));
}

#[test]
fn a_relay_that_is_gone_is_left_at_once_and_comes_back_by_merit() {
    let mut world = settled();
    world.links.remove(&free(1));
    world.offer();
    assert_eq!(world.send().first, Some(free(2)));
    world.set_rtt(free(1), Some(20 * MS));
    world.offer();
    world.stream(SECOND, 100 * MS);
    assert_eq!(world.current(), Some(free(2)), "a living path is not left for a guess");
    world.stream(20 * SECOND, 100 * MS);
    assert_eq!(world.current(), Some(free(1)), "20 ms are better than 30 by the margin");
    for way in [free(1), free(2)] {
        world.links.remove(&way);
    }
    world.offer();
    assert_eq!(world.send().first, None);
}

#[test]
fn advice_is_the_first_choice_and_needs_no_margin_but_probes() {
    let advise =
        |relay, via: Option<u32>| Some(Advice { relay: ServerId(relay), via: via.map(ServerId), latency: 25 * MS });
    let mut world = World::new(&[(free(1), 20 * MS), (one(1), 20 * MS), (free(2), 19 * MS), (one(2), 40 * MS)]);
    let now = world.now();
    world.paths.set_advice(advise(2, None), now);
    assert_eq!(world.send().first, Some(one(2)), "not yet measured: the controller knows best");
    world.stream(20 * SECOND, 100 * MS);
    let measured = world.current().unwrap();
    assert!(measured != one(2), "measured: it was wrong");
    let now = world.now();
    world.paths.set_advice(advise(2, Some(3)), now);
    world.stream(20 * SECOND, 100 * MS);
    assert_eq!(world.current(), Some(free(2)), "better by a millisecond, and advised");
    let view = world.paths.view().unwrap();
    assert_eq!((view.mesh, view.via), (true, Some(ServerId(3))));
    let now = world.now();
    world.paths.set_advice(advise(1, None), now);
    world.stream(20 * SECOND, 100 * MS);
    assert_eq!(world.current(), Some(free(2)), "advised, but measured to be worse");
}

#[test]
fn a_relays_word_moves_the_traffic_at_once() {
    // The peer is connected to relay 2 only, the mesh is down.
    let mut world = settled();
    let now = world.now();
    world.paths.undeliverable(ServerId(1), now);
    assert_eq!(world.current(), Some(free(2)));
    assert!(world.paths.is_hedging() || world.send().first == Some(free(2)));
    // Nobody has it: there is nothing better to do than to go on.
    let now = world.now();
    world.paths.undeliverable(ServerId(2), now);
    assert!(world.send().first.is_some());
}

#[test]
fn the_word_about_a_one_hop_path_leaves_the_mesh_alone() {
    // The peer is connected to another relay, which the mesh reaches.
    let mut world = World::new(&[(free(1), 40 * MS), (free(2), 60 * MS), (one(2), 60 * MS)]);
    world.set_rtt(one(1), None);
    world.offer();
    world.send();
    assert_eq!(world.current(), Some(free(1)), "nobody knows where the peer is: the mesh may help");
    world.advance(5 * MS);
    let now = world.now();
    world.paths.undeliverable(ServerId(1), now);
    assert_eq!(world.send().first, Some(free(1)), "only doubted");
    world.stream(10 * SECOND, 100 * MS);
    let view = world.paths.view().unwrap();
    assert_eq!((view.way, view.standing, view.mesh, view.via), (free(1), Standing::Alive, true, None));
    assert!(!world.paths.is_hedging());
}

#[test]
fn a_peer_that_comes_back_is_found_at_once() {
    let mut world = settled();
    world.set_rtt(free(1), None);
    world.set_rtt(free(2), None);
    world.stream(10 * SECOND, 100 * MS);
    world.set_rtt(free(2), Some(30 * MS));
    let now = world.now();
    world.paths.retry(now);
    world.advance(30 * MS);
    assert_eq!(world.current(), Some(free(2)));
}

#[test]
fn a_long_sleep_is_no_reason_to_think_that_everything_is_dead() {
    let mut world = settled();
    world.send();
    // Probes are under way when the machine falls asleep; no timer ran.
    world.elapsed += 3600 * SECOND;
    let sending = world.send();
    assert_eq!((sending.first, sending.second), (Some(free(1)), Some(free(2))));
    world.stream(2 * SECOND, 100 * MS);
    assert_eq!(world.paths.view().unwrap().standing, Standing::Alive);
    assert_eq!(world.current(), Some(free(1)));
}

#[test]
fn only_answers_to_what_was_asked_count() {
    let mut world = two();
    world.send();
    let now = world.now();
    let probe = world.probes[0];
    assert_eq!(world.paths.pong(world.probes[1].path, probe.sent_us, probe.way, now), None, "over another path");
    assert_eq!(world.paths.pong(probe.path, 4711, probe.way, now), None);
    assert!(world.paths.is_hedging());
    assert!(world.paths.pong(probe.path, probe.sent_us, probe.way, now).is_some());
    assert_eq!(world.paths.pong(probe.path, probe.sent_us, probe.way, now), None, "twice");
    assert!(!world.paths.is_hedging());
}

#[test]
fn the_number_of_paths_is_bounded_and_the_one_in_use_stays() {
    let mut world = settled();
    let ways: Vec<RelayWay> = (1..=100)
        .map(|id| RelayWay {
            relay: ServerId(id),
            hops: Hops::Any,
            expected: Some((if id == 1 { 1000 } else { id }) * MS),
        })
        .collect();
    let now = world.now();
    world.paths.set_relays(&ways, now);
    assert_eq!(world.paths.views().len(), MAX_PATHS);
    assert_eq!(world.current(), Some(free(1)));
    assert!(world.paths.views().iter().all(|view| view.way.relay().unwrap().0 <= 16), "{:?}", world.paths.views());
}

/// What a path does in one stretch of time.
fn links() -> impl Strategy<Value = Vec<Option<u64>>> {
    let link = prop_oneof![3 => (5u64..300).prop_map(Some), 1 => Just(None)];
    prop::collection::vec(link, 4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The promise of DESIGN §5: while any path works, traffic flows again 5 s after whatever happened, and after 25 s
    /// it takes the best path or one within hysteresis of it.
    #[test]
    fn traffic_flows_again_within_5_s_and_settles_near_the_best(
        stretches in prop::collection::vec((links(), 8u64..40), 1..8),
        interval_ms in 10u64..400,
    ) {
        let ways = [free(1), one(1), free(2), free(3)];
        let mut world = World::new(&ways.map(|way| (way, 20 * MS)));
        let interval = interval_ms * MS.as_millis() as u64;
        for (links, secs) in stretches {
            for (way, rtt) in ways.iter().zip(&links) {
                world.set_rtt(*way, rtt.map(Duration::from_millis));
            }
            let begin = world.elapsed;
            let works = links.iter().any(Option::is_some);
            while world.elapsed < begin + Duration::from_secs(secs) {
                let since = world.elapsed - begin;
                let arrives = world.arrives();
                prop_assert!(arrives || !works || since <= 5 * SECOND + Duration::from_millis(300), "{since:?}: {links:?}");
                world.advance(Duration::from_millis(interval));
            }
            if works && secs > 25 {
                let best = links.iter().flatten().min().copied().map(Duration::from_millis).unwrap();
                let current = world.current().unwrap();
                let used = world.links[&current].rtt;
                prop_assert!(used.is_some_and(|used| !edgelink_path::is_better(best, used)), "{used:?} of {links:?}");
            }
        }
    }

    /// Whatever is fed to it, in whatever order, it keeps its bounds and its loop ends.
    #[test]
    fn arbitrary_input_breaks_nothing(steps in prop::collection::vec((0u8..8, 0u32..5, 0u64..7000), 1..300)) {
        #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
        let mut now = std::time::Instant::now();
        let mut paths = PeerPaths::new();
        let mut ways: Vec<RelayWay> = Vec::new();
        let mut sent = Vec::new();
        for (step, relay, value) in steps {
            let hops = if value % 2 == 0 { Hops::One } else { Hops::Any };
            match step {
                0 => {
                    ways.retain(|way| way.relay.0 != relay);
                    ways.push(RelayWay { relay: ServerId(relay), hops, expected: Some(Duration::from_millis(value)) });
                    paths.set_relays(&ways, now);
                }
                1 => {
                    ways.retain(|way| way.relay.0 != relay);
                    paths.set_relays(&ways, now);
                }
                2 => {
                    let sending = paths.send(value as usize, now);
                    prop_assert_eq!(sending.first.is_none(), ways.is_empty());
                    prop_assert!(sending.second.is_none() || sending.second != sending.first);
                }
                3 => paths.undeliverable(ServerId(relay), now),
                4 => {
                    if let Some((path, us)) = sent.pop() {
                        paths.pong(path, us, free(1), now);
                    }
                }
                5 => paths.set_advice(
                    (value > 1000).then(|| Advice { relay: ServerId(relay), via: None, latency: Duration::from_millis(value) }),
                    now,
                ),
                _ => now += Duration::from_millis(value),
            }
            paths.handle_timeout(now);
            for turn in 0.. {
                prop_assert!(turn <= MAX_PATHS, "probes without end");
                let Some(probe) = paths.next_probe(now) else { break };
                sent.push((probe.path, sent.len() as u64));
                paths.probe_sent(probe.path, sent.len() as u64 - 1, now);
            }
            prop_assert!(paths.poll_timeout().is_none_or(|at| at > now), "spins");
        }
    }
}
