//! Relay connections: their authentication, tokens, choice and end.

use crate::world::*;
use edgelink_auth::challenge;
use edgelink_model::ServerId;
use edgelink_node::Target;
use edgelink_wire::FrameType;
use edgelink_wire::control::{ControlMessage, proto};
use edgelink_wire::ping::Ping;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn update(from_version: u64) -> proto::ConfigUpdate {
    proto::ConfigUpdate { from_version, version: from_version + 1, ..Default::default() }
}

fn dialled(seen: &[(Duration, Seen)]) -> Vec<(edgelink_node::LinkId, u32)> {
    seen.iter()
        .filter_map(|(_, e)| match e {
            Seen::Dial(link, Target::Relay { id, .. }) => Some((*link, id.0)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_relay_gets_a_signature_bound_to_it_and_to_the_token() {
    let mut world = World::new(Setup::default());
    world.join(config(10, Vec::new()));
    let link = world.dialled_relay(1);
    world.connected(link);
    let hello = proto::AuthRequest {
        protocol_version: 1,
        capabilities: 1,
        machine_pub: machine(1).public().0.to_vec(),
        token: "relay-token-1".to_owned(),
        ..Default::default()
    };
    assert_eq!(messages(&world.events(), link), [ControlMessage::AuthRequest(hello)]);
    world.deliver(link, relay_challenge(1));
    let signed = challenge::relay_message(ServerId(1), "relay-token-1", &[3; 32]);
    let proof = proto::AuthRequest { signature: machine(1).sign(&signed).to_vec(), ..Default::default() };
    assert_eq!(messages(&world.events(), link), [ControlMessage::AuthRequest(proof)]);
    assert!(!world.status().relays[0].connected);

    world.deliver(link, ControlMessage::AuthResponse(proto::AuthResponse::default()));
    let events = world.events();
    let [Seen::Sent(to, Sent::Ping(ping))] = events[..] else { panic!("{events:?}") };
    assert_eq!(to, link);
    let status = world.status();
    assert_eq!((status.relays[0].connected, status.relays[0].rtt_ms), (true, None), "unknown is not zero");
    world.elapsed += Duration::from_millis(30);
    world.deliver_raw(link, &ping.encode(FrameType::Pong));
    assert_eq!(world.status().relays[0].rtt_ms, Some(30.0));
}

#[test]
fn a_relay_that_says_it_is_another_gets_no_signature() {
    let mut world = World::new(Setup::default());
    world.join(config(10, Vec::new()));
    let link = world.dialled_relay(1);
    world.connected(link);
    world.events();
    world.deliver(link, relay_challenge(2));
    assert_eq!(world.events(), [Seen::Closed(link)], "nothing was signed");
    assert_eq!(world.status().health, ["relay relay-1: dialled relay 1, but relay 2 answered"]);
}

#[test]
fn a_malformed_challenge_gets_no_signature() {
    let mut world = World::new(Setup::default());
    world.join(config(10, Vec::new()));
    let link = world.dialled_relay(1);
    world.connected(link);
    world.events();
    let short = proto::AuthResponse { challenge: vec![3; 31], server_id: 1, ..Default::default() };
    world.deliver(link, ControlMessage::AuthResponse(short));
    assert_eq!(world.events(), [Seen::Closed(link)]);
}

#[test]
fn a_refusal_is_shown_and_retried() {
    let mut world = World::new(Setup::default());
    world.join(config(10, Vec::new()));
    let link = world.dialled_relay(1);
    world.connected(link);
    world.events();
    world.deliver(link, error(4003, "the relay is full"));
    assert_eq!(world.events(), [Seen::Closed(link)]);
    assert_eq!(world.status().health, ["relay relay-1: the relay is full"]);
    assert_eq!(dialled(&world.advance(SECOND)).len(), 1);
}

#[test]
fn a_token_that_a_relay_refuses_is_renewed_by_authenticating_anew() {
    let mut world = World::new(Setup::default());
    world.join(config(10, Vec::new()));
    let control = world.control();
    let link = world.dialled_relay(1);
    world.connected(link);
    world.events();
    world.deliver(link, error(1003, "token revoked"));
    let closed: Vec<_> = world.events().into_iter().filter(|e| matches!(e, Seen::Closed(_))).collect();
    assert_eq!(closed, [Seen::Closed(control), Seen::Closed(link)]);
    let events = world.advance(SECOND);
    assert!(events.iter().any(|(_, e)| matches!(e, Seen::Dial(_, Target::Control))), "{events:?}");
    assert_eq!(dialled(&events).len(), 1);
}

#[test]
fn the_list_decides_which_relays_are_dialled_and_left() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let first = world.relay();
    // A second one: the first is left alone.
    let relays = Some(proto::RelayList { relays: vec![relay(1), relay(2)] });
    let events = world.update(proto::ConfigUpdate { relays, ..update(10) });
    assert!(!events.iter().any(|e| matches!(e, Seen::Closed(_))), "{events:?}");
    let new = dialled(&world.advance(Duration::ZERO));
    assert!(matches!(new[..], [(_, 2)]), "{new:?}");
    let second = new[0].0;
    // The first moves to another address: it is left and dialled anew; a new name alone changes nothing.
    let mut moved = relay(1);
    moved.url = "wss://relay.example/ws/data".to_owned();
    let mut renamed = relay(2);
    renamed.name = "other".to_owned();
    let relays = Some(proto::RelayList { relays: vec![moved, renamed] });
    let events = world.update(proto::ConfigUpdate { relays, ..update(11) });
    assert_eq!(events[0], Seen::Closed(first));
    assert!(matches!(dialled(&world.advance(Duration::ZERO))[..], [(_, 1)]));
    // None is left.
    let relays = Some(proto::RelayList::default());
    let events = world.update(proto::ConfigUpdate { relays, ..update(12) });
    assert_eq!(events.iter().filter(|e| matches!(e, Seen::Closed(_))).count(), 2, "{events:?}");
    assert!(events.contains(&Seen::Closed(second)));
    assert!(world.status().relays.is_empty());
    world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
    assert_eq!(world.drops("no_path"), 1);
}

#[test]
fn fresh_tokens_go_over_the_living_link() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let fresh = proto::ConfigUpdate {
        from_version: 10,
        version: 10,
        tokens: Some(tokens("relay-token-2")),
        ..Default::default()
    };
    let events = world.update(fresh);
    let request = proto::AuthRequest {
        protocol_version: 1,
        machine_pub: machine(1).public().0.to_vec(),
        token: "relay-token-2".to_owned(),
        ..Default::default()
    };
    assert_eq!(messages(&events, world.relay()), [ControlMessage::AuthRequest(request)]);
    assert!(!events.iter().any(|e| matches!(e, Seen::Closed(_) | Seen::Dial(..))), "{events:?}");
    assert!(events.iter().any(|e| matches!(e, Seen::Persisted(_))), "a restart needs them");
    // The relay's answer is no new beginning.
    world.deliver(world.relay(), ControlMessage::AuthResponse(proto::AuthResponse::default()));
    assert_eq!(world.events(), []);
    assert!(world.status().relays[0].connected);
}

#[test]
fn a_lost_relay_is_dialled_again_and_traffic_waits_for_nobody() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let lost = world.relay();
    world.closed(lost, "connection reset");
    world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
    assert_eq!(world.drops("no_path"), 1);
    assert_eq!(world.peer_status(PEER).reason.as_deref(), Some("no relay is connected"));
    let events = world.advance(Duration::from_millis(200));
    assert!(matches!(dialled(&events)[..], [(_, 1)]), "{events:?}");
    world.relay = Some(dialled(&events)[0].0);
    let link = world.relay();
    world.connected(link);
    world.deliver(link, relay_challenge(1));
    world.deliver(link, ControlMessage::AuthResponse(proto::AuthResponse::default()));
    let events = world.events();
    assert_eq!(announces(&events, link).len(), 0, "nobody waits for the key: {events:?}");
    let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"y"));
    assert_eq!(peer.open(&sealed(&seen, link)[0], world.now()), Ok(udp(MY_IP, PEER_IP, b"y")));
}

#[test]
fn a_relay_that_accepts_and_closes_at_once_is_not_stormed() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let mut dials = 0;
    while world.elapsed < Duration::from_secs(300) {
        world.closed(world.relay(), "replaced by another connection of this node");
        let events = loop {
            let due = world.node.poll_timeout().unwrap().saturating_duration_since(world.now().mono);
            let events = world.advance(due);
            if !dialled(&events).is_empty() {
                break events;
            }
        };
        let link = dialled(&events)[0].0;
        world.relay = Some(link);
        world.connected(link);
        world.deliver(link, relay_challenge(1));
        world.deliver(link, ControlMessage::AuthResponse(proto::AuthResponse::default()));
        world.events();
        dials += 1;
    }
    assert!(dials <= 140, "{dials} dials in five minutes");
}

#[test]
fn a_round_trip_that_an_outage_made_long_is_put_right_within_seconds() {
    let mut world = World::joined(&Peer::new());
    let relay = world.relay();
    let ping_within = |world: &mut World, seconds: u32| {
        let step = Duration::from_millis(100);
        let seen = (0..10 * seconds).flat_map(|_| world.advance(step)).find_map(|(_, seen)| match seen {
            Seen::Sent(to, Sent::Ping(ping)) if to == relay => Some(ping),
            _ => None,
        });
        seen.unwrap_or_else(|| panic!("no PING within {seconds} s"))
    };
    let shown = |world: &World| world.status().relays[0].rtt_ms.unwrap();
    for (within, answered_after) in [(30, 30), (30, 30), (30, 6_000), (2, 30), (2, 30)] {
        let ping = ping_within(&mut world, within);
        world.elapsed += Duration::from_millis(answered_after);
        world.deliver_raw(relay, &ping.encode(FrameType::Pong));
    }
    assert!((30.0..131.0).contains(&shown(&world)), "{}", shown(&world));
}

#[test]
fn a_silent_relay_is_left() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let relay = world.relay();
    let events = world.advance(Duration::from_secs(70));
    let closed = events.iter().find(|(_, e)| *e == Seen::Closed(relay)).map(|(at, _)| *at).unwrap();
    assert!((Duration::from_secs(45)..=Duration::from_secs(65)).contains(&closed), "{closed:?}");
    assert!(!dialled(&events).is_empty());
}

#[test]
fn pings_of_controller_and_relay_are_answered() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    for link in [world.control(), world.relay()] {
        let ping = Ping { sent_us: 77, seq: 5 };
        world.deliver_raw(link, &ping.encode(FrameType::Ping));
        assert_eq!(world.events(), [Seen::Sent(link, Sent::Pong(ping))]);
    }
}

#[test]
fn data_takes_the_relay_with_the_lowest_known_round_trip() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let first = world.relay();
    let relays = Some(proto::RelayList { relays: vec![relay(1), relay(2)] });
    world.update(proto::ConfigUpdate { relays, ..update(10) });
    let events = world.connect_relay(2);
    let second = world.relay();
    let ping = events.iter().find_map(|e| match e {
        Seen::Sent(to, Sent::Ping(ping)) if *to == second => Some(*ping),
        _ => None,
    });
    // Neither is measured: the lower id. Then the measured one.
    assert_eq!(sealed(&world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x")), first).len(), 1);
    world.elapsed += Duration::from_millis(40);
    world.deliver_raw(second, &ping.unwrap().encode(FrameType::Pong));
    assert_eq!(sealed(&world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x")), second).len(), 1);
    // It breaks: the other one at once.
    world.closed(second, "reset");
    assert_eq!(sealed(&world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x")), first).len(), 1);
}

#[test]
fn why_a_packet_did_not_arrive_is_shown_until_one_does() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let presence = vec![proto::Presence { node_id: PEER.0, online: false }];
    world.update(proto::ConfigUpdate { from_version: 10, version: 10, presence, ..Default::default() });
    let offline = proto::Error {
        code: 3002,
        about_node: PEER.0,
        message: "node 200 is\u{1b}[31m offline".to_owned(),
        ..Default::default()
    };
    world.deliver(world.relay(), ControlMessage::Error(offline));
    assert_eq!(world.peer_status(PEER).reason.as_deref(), Some("node 200 is[31m offline"), "no escape sequences");
    assert!(world.status().relays[0].connected);
    let frame = peer.packet(b"here");
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.peer_status(PEER).reason, None);
}
