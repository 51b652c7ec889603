//! What the node remembers: it starts without a controller, and never repeats itself.

use crate::world::*;
use edgelink_api::local::DaemonState;
use edgelink_auth::KeyStatement;
use edgelink_node::{PersistedState, Target};
use edgelink_wire::control::{ControlMessage, proto};
use std::time::Duration;

/// The state of a node that was a member with `peer`.
fn remembered(peer: &Peer) -> PersistedState {
    let mut world = World::new(Setup::default());
    world.enter();
    world.deliver(world.control(), ControlMessage::Config(config(10, vec![peer.listed()])));
    world.persisted()
}

#[test]
fn it_works_from_what_it_remembers_while_the_controller_is_away() {
    let mut peer = Peer::new();
    let persisted = remembered(&peer);
    let mut world = World::new(Setup { persisted, seed: 8, ..Setup::default() });
    world.elapsed = Duration::from_millis(1);
    let events = world.events();
    let interface = Seen::Interface(vec!["10.7.0.100/24".to_owned()]);
    assert!(events.contains(&interface) && events.contains(&Seen::Ready), "{events:?}");
    let dial = events.iter().find_map(|e| match e {
        Seen::Dial(link, Target::Control) => Some(*link),
        _ => None,
    });
    world.control = dial;
    world.closed(dial.unwrap(), "connection refused");
    assert_eq!(world.status().state, DaemonState::Up);
    world.connect_relay(1);
    let relay = world.relay();

    // The peer is told the new key, and both talk: no controller was asked.
    let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"hello again"));
    let told = announces(&seen, relay).remove(0);
    peer.learn(&told, world.now());
    assert_eq!(peer.open(&sealed(&seen, relay)[0], world.now()), Ok(udp(MY_IP, PEER_IP, b"hello again")));
    let frame = peer.packet(b"welcome back");
    world.deliver_raw(relay, &frame);
    assert_eq!(world.tun.len(), 1);
}

#[test]
fn no_sequence_number_is_ever_used_twice() {
    let peer = Peer::new();
    let mut persisted = remembered(&peer);
    let mut used = vec![persisted.seq_floor];
    // Restarts in the very same millisecond, and with a clock that has gone back by a year.
    for skew_ms in [0, 0, -31_536_000_000, -31_536_000_000, 0] {
        let mut world = World::new(Setup { persisted, skew_ms, ..Setup::default() });
        persisted = world.persisted();
        world.connect_relay(1);
        let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
        let announce = announces(&seen, world.relay()).remove(0);
        let statement = KeyStatement::parse(&announce.statement).unwrap();
        assert!(statement.seq > *used.last().unwrap(), "{} after {used:?}", statement.seq);
        assert!(persisted.seq_floor >= statement.seq, "announced before it was on disk");
        used.push(statement.seq);
    }
}

#[test]
fn a_lost_file_does_not_make_new_statements_look_old() {
    let peer = Peer::new();
    let floor = remembered(&peer).seq_floor;
    let mut world = World::new(Setup::default());
    world.elapsed = Duration::from_secs(5);
    let events = world.enter();
    let statement = KeyStatement::parse(&announces(&events, world.control())[0].statement).unwrap();
    assert!(statement.seq > floor);
}

#[test]
fn pins_outlive_the_process() {
    let peer = Peer::new();
    let persisted = remembered(&peer);
    assert_eq!(persisted.pins.len(), 1);
    assert_eq!((persisted.pins[0].node_id, persisted.pins[0].machine_pub), (PEER, machine(2).public()));
    let mut world = World::new(Setup { persisted, seed: 8, ..Setup::default() });
    world.enter();
    world.config(config(11, vec![Peer::build(PEER, PEER_IP, 66, 1).listed()]));
    assert!(world.peer_status(PEER).reason.unwrap().contains("machine key has changed"));
}

#[test]
fn the_offset_of_the_clock_is_remembered() {
    let day = 86_400_000;
    let mut world = World::new(Setup { skew_ms: -day, ..Setup::default() });
    world.enter();
    world.deliver(world.control(), ControlMessage::Config(config(10, vec![Peer::new().listed()])));
    let persisted = world.persisted();
    assert_eq!(persisted.clock_offset_ms, day);
    let mut world = World::new(Setup { persisted, skew_ms: -day, seed: 8, ..Setup::default() });
    world.connect_relay(1);
    let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
    let statement = KeyStatement::parse(&announces(&seen, world.relay())[0].statement).unwrap();
    assert_eq!(statement.not_before, START);
}

#[test]
fn what_cannot_be_read_is_not_used() {
    let peer = Peer::new();
    let good = remembered(&peer);
    let bytes = good.config.clone().unwrap();
    let cut = PersistedState { config: Some(bytes[..bytes.len() / 2].to_vec()), ..good.clone() };
    let garbage = PersistedState { config: Some(vec![0xff; 40]), ..good.clone() };
    let mut foreign: proto::Config = prost::Message::decode(bytes.as_slice()).unwrap();
    foreign.network.as_mut().unwrap().id = 8;
    let foreign = PersistedState { config: Some(prost::Message::encode_to_vec(&foreign)), ..good };
    for persisted in [cut, garbage, foreign] {
        let mut world = World::new(Setup { persisted, seed: 8, ..Setup::default() });
        assert_ne!(world.status().state, DaemonState::Up);
        // The controller heals it.
        world.join(config(10, vec![peer.listed()]));
        assert_eq!(world.status().state, DaemonState::Up);
    }
}

#[test]
fn the_state_shows_no_tokens_when_printed() {
    let text = format!("{:?}", remembered(&Peer::new()));
    let token = format!("{:?}", b"auth-token");
    assert!(!text.contains(token.trim_matches(['[', ']'])), "{text}");
}
