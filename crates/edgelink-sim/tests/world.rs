//! The real cores together: two nodes talk through the relay, and every process may die.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use edgelink_model::NetworkId;
use edgelink_sim::{NodeIndex, World, WorldConfig, udp_packet};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A world in which `a` and `b` have joined and exchanged a packet.
fn two_nodes(seed: u64) -> (World, NodeIndex, NodeIndex) {
    let mut world = World::new(WorldConfig { seed, ..WorldConfig::default() });
    let (a, b) = (world.add_node("a"), world.add_node("b"));
    let joined = world.advance_until(SECOND, |w| w.is_ready(a) && w.is_ready(b));
    assert!(joined.is_some(), "both join within a second");
    world.advance(SECOND);
    assert_heals(&mut world, a, b, SECOND);
    (world, a, b)
}

/// Sends probes both ways every 100 ms until one of each has arrived; how long that took.
fn assert_heals(world: &mut World, a: NodeIndex, b: NodeIndex, limit: Duration) -> Duration {
    let begin = world.elapsed();
    world.take_delivered();
    for round in 0u32.. {
        let spent = world.elapsed() - begin;
        assert!(spent <= limit, "no packets after {spent:?}: {:#?} {:#?}", world.status(a), world.status(b));
        world.send_probe(a, b, format!("to b {round}").as_bytes());
        world.send_probe(b, a, format!("to a {round}").as_bytes());
        world.advance(Duration::from_millis(100));
        let at = |node| world.delivered().iter().any(|d| d.node == node);
        if at(a) && at(b) {
            break;
        }
    }
    world.elapsed() - begin
}

#[test]
fn a_packet_arrives_once_at_the_right_node_and_unchanged() {
    let (mut world, a, b) = two_nodes(1);
    world.take_delivered();
    let packet = udp_packet(world.address(a).unwrap(), world.address(b).unwrap(), b"the payload");
    world.send_packet(a, &packet);
    world.advance(SECOND);
    let delivered = world.take_delivered();
    assert_eq!(delivered.len(), 1);
    assert_eq!((delivered[0].node, &delivered[0].packet), (b, &packet));
}

#[test]
fn the_relay_never_sees_the_payload() {
    let (mut world, a, b) = two_nodes(2);
    let marker = b"MARKER-4bb1c2-MARKER";
    for _ in 0..10 {
        world.send_probe(a, b, marker);
    }
    world.advance(SECOND);
    assert!(world.delivered().iter().any(|d| d.packet.windows(marker.len()).any(|w| w == marker)), "it did arrive");
    assert!(!world.relayed().iter().any(|m| m.windows(marker.len()).any(|w| w == marker)));
}

#[test]
fn pings_measure_the_way_through_the_relay() {
    let (mut world, a, b) = two_nodes(3);
    let ping = world.ping(a, b).unwrap();
    world.advance(SECOND);
    let (_, answered, rtt) = *world.pongs().last().unwrap();
    assert_eq!(answered, ping);
    assert_eq!(rtt, Duration::from_millis(40), "four legs of 10 ms");
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let run = |seed| {
        let (mut world, a, b) = two_nodes(seed);
        for i in 0..50u8 {
            world.send_probe(a, b, &[i]);
            world.advance(Duration::from_millis(7));
        }
        world.kill_server();
        world.advance(SECOND);
        world.start_server();
        world.advance(3 * SECOND);
        (world.relayed().to_vec(), world.take_delivered())
    };
    assert_eq!(run(4), run(4));
    assert_ne!(run(4).0, run(5).0, "another seed makes other keys");
}

#[test]
fn a_restarted_node_heals_within_two_seconds_of_its_reconnect() {
    for seed in 10..20 {
        let (mut world, a, b) = two_nodes(seed);
        world.kill_node(a);
        world.advance(5 * SECOND);
        world.start_node(a);
        assert_heals(&mut world, a, b, 2 * SECOND);
    }
}

#[test]
fn a_restarted_controller_heals_the_network() {
    for seed in 20..30 {
        let (mut world, a, b) = two_nodes(seed);
        world.kill_server();
        world.advance(20 * SECOND);
        world.start_server();
        assert_heals(&mut world, a, b, 2 * SECOND);
    }
}

#[test]
fn both_nodes_may_restart_at_once() {
    for seed in 30..40 {
        let (mut world, a, b) = two_nodes(seed);
        world.kill_node(a);
        world.kill_node(b);
        world.start_node(a);
        world.start_node(b);
        assert_heals(&mut world, a, b, 2 * SECOND);
    }
}

#[test]
fn everything_may_restart_at_once() {
    let (mut world, a, b) = two_nodes(41);
    world.kill_server();
    world.kill_node(a);
    world.kill_node(b);
    world.start_node(a);
    world.start_node(b);
    world.advance(3 * SECOND);
    world.start_server();
    assert_heals(&mut world, a, b, 2 * SECOND);
}

#[test]
fn clocks_may_be_wrong_by_a_day() {
    let day = 24 * 3600 * 1000;
    for (seed, error) in [(50, day), (51, -day), (52, 600_000), (53, -600_000)] {
        let mut world = World::new(WorldConfig { seed, ..WorldConfig::default() });
        let (a, b) = (world.add_node_with_clock("a", error), world.add_node_with_clock("b", -error));
        assert!(world.advance_until(SECOND, |w| w.is_ready(a) && w.is_ready(b)).is_some());
        assert_heals(&mut world, a, b, 2 * SECOND);
    }
}

#[test]
fn networks_with_the_same_subnet_stay_apart() {
    let (mut world, a, b) = two_nodes(60);
    let stranger = "10.0.1.77".parse().unwrap();
    world.take_delivered();
    let packet = udp_packet(world.address(a).unwrap(), stranger, b"anybody there?");
    world.send_packet(a, &packet);
    world.advance(SECOND);
    assert_eq!(world.take_delivered(), []);
    assert_eq!(world.status(a).unwrap().drops.get("no_route"), Some(&1));
    let _ = (b, NetworkId(2));
}

#[test]
fn an_expelled_node_is_cut_off_and_may_come_back() {
    let (mut world, a, b) = two_nodes(70);
    let id = world.node_id(b).unwrap();
    world.database.deauthorize(id, 1_700_000_000 + world.elapsed().as_secs() + 1);
    assert!(world.advance_until(SECOND, |w| !w.is_ready(b)).is_some(), "within a second");
    let forgotten = |w: &World| w.status(a).unwrap().peers.is_empty();
    assert!(world.advance_until(SECOND, forgotten).is_some(), "its peers have forgotten it");
    world.advance(3 * SECOND);
    world.database.authorize(id).unwrap();
    assert!(world.advance_until(SECOND, |w| w.is_ready(b)).is_some(), "let in within a second");
    assert_heals(&mut world, a, b, 2 * SECOND);
}

#[test]
fn keys_rotate_unnoticed() {
    let (mut world, a, b) = two_nodes(80);
    // Over a day and a half each side makes a new key at least once; one probe each way every 20 s.
    let mut sent = 0;
    world.take_delivered();
    while world.elapsed() < Duration::from_secs(36 * 3600) {
        world.send_probe(a, b, b"ab");
        world.send_probe(b, a, b"ba");
        sent += 2;
        world.advance(20 * SECOND);
    }
    assert_eq!(world.take_delivered().len(), sent, "nothing is lost: {:#?}", world.status(a).unwrap().drops);
}
