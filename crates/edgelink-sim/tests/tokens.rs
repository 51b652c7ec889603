//! Tokens over days of virtual time, with the real cores: renewed before they end, revoked within a second.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use edgelink_model::records::RevocationTarget;
use edgelink_sim::{NodeIndex, RelayIndex, World, WorldConfig};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: u64 = 3600;

fn two_nodes(seed: u64) -> (World, NodeIndex, NodeIndex) {
    let mut world = World::new(WorldConfig { seed, capture: false, ..WorldConfig::default() });
    let (a, b) = (world.add_node("a"), world.add_node("b"));
    assert!(world.advance_until(SECOND, |w| w.is_ready(a) && w.is_ready(b)).is_some());
    world.advance(2 * SECOND);
    assert!(carries(&mut world, a, b));
    (world, a, b)
}

/// Whether a probe arrives both ways within a second.
fn carries(world: &mut World, a: NodeIndex, b: NodeIndex) -> bool {
    world.take_delivered();
    world.send_probe(a, b, b"ab");
    world.send_probe(b, a, b"ba");
    world.advance_until(SECOND, |w| w.delivered().len() == 2).is_some()
}

fn unix_secs(world: &World) -> u64 {
    WorldConfig::default().unix_ms / 1000 + world.elapsed().as_secs()
}

/// Relays cannot tell a renewed connection from a new one but by counting authentications.
fn authentications(world: &World) -> (u64, u64) {
    let stats = world.relay().unwrap().stats();
    (stats.authentications, stats.refreshes)
}

#[test]
fn two_days_of_renewals_interrupt_nothing() {
    let (mut world, a, b) = two_nodes(1);
    let (before, _) = authentications(&world);
    let mut sent = 0;
    world.take_delivered();
    while world.elapsed() < Duration::from_secs(48 * HOUR) {
        world.send_probe(a, b, b"ab");
        world.send_probe(b, a, b"ba");
        sent += 2;
        world.advance(30 * SECOND);
    }
    assert_eq!(world.take_delivered().len(), sent, "nothing is lost");
    let (after, refreshes) = authentications(&world);
    assert_eq!(after, before, "no connection was made anew");
    // Every 75 minutes for each of the two.
    assert_eq!(refreshes, 2 * 38);
    let control = world.control().unwrap().stats();
    assert_eq!((control.auth_failures, control.connections), (0, 2));
}

#[test]
fn a_controller_that_is_away_while_tokens_end_interrupts_nothing() {
    let (mut world, a, b) = two_nodes(2);
    let (before, _) = authentications(&world);
    world.kill_controller();
    for _ in 0..6 {
        world.advance(Duration::from_secs(HOUR));
        assert!(carries(&mut world, a, b), "after {:?}", world.elapsed());
    }
    world.start_controller();
    world.advance(60 * SECOND);
    assert!(carries(&mut world, a, b));
    let (after, refreshes) = authentications(&world);
    assert_eq!(after, before);
    assert!(refreshes >= 2, "they get fresh tokens with their next authentication");
}

/// A member whose auth_token ended while it was away authenticates anew: the database knows it.
#[test]
fn a_node_comes_back_after_its_auth_token_has_ended() {
    let (mut world, a, b) = two_nodes(3);
    world.kill_node(a);
    world.advance(Duration::from_secs(30 * HOUR));
    world.start_node(a);
    assert!(world.advance_until(5 * SECOND, |w| w.is_ready(a)).is_some());
    world.advance(2 * SECOND);
    assert!(carries(&mut world, a, b));
    assert_eq!(world.control().unwrap().stats().auth_failures, 0, "it does not show a token that has ended");
}

/// All tokens of a node, revoked: the relay ends its connection, the controller too, peers forget its sessions, all
/// within a second; and it authenticates anew, since nobody has withdrawn its authorization.
#[test]
fn a_blacklisted_node_is_cut_off_within_a_second_and_authenticates_anew() {
    let (mut world, a, b) = two_nodes(4);
    let id = world.node_id(b).unwrap();
    let (before, _) = authentications(&world);
    world.advance(10 * SECOND);
    world.database.revoke_tokens(id, unix_secs(&world) + 1);
    let cut = world.advance_until(SECOND, |w| {
        w.relay().unwrap().connection_of(id).is_none() && !w.control().unwrap().is_online(id)
    });
    assert!(cut.is_some(), "within a second");
    let back = world.advance_until(10 * SECOND, |w| {
        w.relay().unwrap().connection_of(id).is_some() && w.control().unwrap().is_online(id)
    });
    assert!(back.is_some(), "it is not barred");
    assert!(authentications(&world).0 > before);
    world.advance(2 * SECOND);
    assert!(carries(&mut world, a, b));
}

/// What is revoked stays revoked when the relay restarts without its controller, and is forgotten when every token that
/// it names has ended.
#[test]
fn a_relay_keeps_revocations_across_restarts_and_forgets_them_in_time() {
    let (mut world, _, b) = two_nodes(5);
    let id = world.node_id(b).unwrap();
    world.advance(10 * SECOND);
    world.database.deauthorize(id, unix_secs(&world) + 1);
    world.advance(5 * SECOND);
    let revoked = |world: &World| {
        world
            .relay()
            .unwrap()
            .revocations()
            .iter()
            .any(|r| matches!(&r.target, RevocationTarget::Node { node_id, .. } if *node_id == id))
    };
    assert!(revoked(&world));
    world.kill_server();
    world.start_relay(RelayIndex::BUILTIN);
    assert!(revoked(&world), "without a controller");
    world.advance(60 * SECOND);
    assert!(world.relay().unwrap().connection_of(id).is_none());
    world.start_server();
    // The simulated database keeps them for a day.
    world.advance(Duration::from_secs(23 * HOUR));
    assert!(revoked(&world));
    world.advance(Duration::from_secs(2 * HOUR));
    assert!(!revoked(&world));
    assert_eq!(world.control().unwrap().revocations().count(), 0);
}
