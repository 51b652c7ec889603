//! Node keys: ours announced until it is confirmed, the peers' heard of, both renewed (DESIGN §2).

use crate::world::*;
use edgelink_auth::{KeyStatement, SignedStatement};
use edgelink_model::{NetworkId, NodeId};
use edgelink_session::OpenError;
use edgelink_wire::FrameType;
use edgelink_wire::control::proto;
use edgelink_wire::key_announce::KeyAnnounce;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn send_packet(world: &mut World) -> Vec<Seen> {
    world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"))
}

fn announce_times(seen: &[(Duration, Seen)]) -> Vec<u64> {
    let announced = seen.iter().filter(|(_, e)| matches!(e, Seen::Sent(_, Sent::Announce(a)) if a.dst == PEER));
    announced.map(|(at, _)| at.as_secs()).collect()
}

#[test]
fn the_key_goes_first_and_is_repeated_until_it_is_confirmed() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    world.lively = true;
    let relay = world.relay();
    let seen = send_packet(&mut world);
    assert!(
        matches!(&seen[..], [Seen::Sent(a, Sent::Announce(_)), Seen::Sent(b, Sent::Sealed(_))] if a == b && *a == relay),
        "{seen:?}"
    );
    assert!(announces(&send_packet(&mut world), relay).is_empty(), "once for all packets that wait");
    // 0, 1, 2, 4 s between them.
    let mut times = Vec::new();
    for _ in 0..20 {
        times.extend(announce_times(&world.advance(SECOND)));
    }
    assert_eq!(times, [1, 3, 7, 15]);
    // Any authenticated packet confirms.
    peer.meet(&mut world);
    let frame = peer.packet(b"hello");
    world.deliver_raw(relay, &frame);
    assert!(announce_times(&world.advance(Duration::from_secs(40))).is_empty(), "confirmed");
    assert!(announces(&send_packet(&mut world), relay).is_empty());
}

#[test]
fn announces_to_a_peer_that_nobody_talks_with_end() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    world.lively = true;
    send_packet(&mut world);
    let keep_relay_alive = |world: &mut World| {
        let ping = edgelink_wire::ping::Ping { sent_us: 0, seq: 0 }.encode(FrameType::Ping);
        world.deliver_raw(world.relay(), &ping);
        world.deliver_raw(world.control(), &ping);
    };
    let mut times = Vec::new();
    for _ in 0..60 {
        times.extend(announce_times(&world.advance(Duration::from_secs(10))));
        keep_relay_alive(&mut world);
    }
    assert_eq!(times, [1, 3, 7, 15, 31, 63], "two minutes after the last packet nobody is told any more");
}

#[test]
fn who_waits_for_the_key_gets_it_as_soon_as_a_relay_is_back() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    send_packet(&mut world);
    world.closed(world.relay(), "reset");
    world.advance(Duration::from_millis(50));
    let events = loop {
        let events = world.advance(Duration::from_millis(10));
        if let Some((_, Seen::Dial(link, _))) = events.iter().find(|(_, e)| matches!(e, Seen::Dial(..))) {
            world.relay = Some(*link);
            let link = *link;
            world.connected(link);
            world.deliver(link, relay_challenge(1));
            let ready = edgelink_wire::control::ControlMessage::AuthResponse(proto::AuthResponse::default());
            world.deliver(link, ready);
            break world.events();
        }
    };
    assert_eq!(announces(&events, world.relay()).len(), 1, "{events:?}");
}

#[test]
fn an_unknown_key_of_a_peer_is_answered_with_ours_and_a_probe_once_a_second() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let confirm = peer.packet(b"confirm");
    world.deliver_raw(world.relay(), &confirm);
    world.events();
    let relay = world.relay();
    // The peer has a new key that we have not heard of.
    peer.restart(6, world.now());
    let mut answers = Vec::new();
    for _ in 0..30 {
        let frame = peer.packet(b"x");
        world.deliver_raw(relay, &frame);
        answers.push(world.events());
        world.elapsed += Duration::from_millis(100);
    }
    assert_eq!(world.drops("unknown_key"), 30);
    let answered: Vec<usize> = (0..30).filter(|n| !answers[*n].is_empty()).collect();
    assert_eq!(answered, [0, 10, 20]);
    let [Seen::Sent(_, Sent::Announce(announce)), Seen::Sent(_, Sent::Sealed(probe))] = &answers[0][..] else {
        panic!("{:?}", answers[0])
    };
    assert_eq!((announce.src, announce.dst, frame_type(probe)), (ME, PEER, FrameType::P2pPing));

    // It announces itself: the probe that follows proves that we have its key.
    let frame = peer.announce();
    world.elapsed += SECOND;
    world.deliver_raw(relay, &frame);
    let seen = world.events();
    let probe = sealed(&seen, relay).remove(0);
    assert!(peer.open(&probe, world.now()).is_ok());
    let frame = peer.packet(b"now");
    world.deliver_raw(relay, &frame);
    assert_eq!(world.tun.last().unwrap().1, udp(PEER_IP, MY_IP, b"now"));
}

#[test]
fn a_known_peer_whose_key_we_never_heard_is_told_ours() {
    // Restarted without a controller, from a CONFIG that was older than the peer's key.
    let mut peer = Peer::new();
    let mut world = World::new(Setup::default());
    let mut keyless = peer.listed();
    keyless.statement.clear();
    world.join(config(10, vec![keyless]));
    world.connect_relay(1);
    peer.meet(&mut world);
    let frame = peer.packet(b"x");
    world.deliver_raw(world.relay(), &frame);
    assert_eq!((world.drops("unknown_key"), world.drops("malformed")), (1, 0));
    assert_eq!(announces(&world.events(), world.relay()).len(), 1);
    // Somebody who is no peer at all learns nothing.
    let mut stranger = Peer::build(NodeId(300), [10, 7, 1, 44].into(), 9, 1);
    stranger.meet(&mut world);
    let frame = stranger.packet(b"x");
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.drops("unknown_key"), 2);
    assert_eq!(world.events(), []);
}

#[test]
fn a_new_statement_of_a_peer_is_used_at_once() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let relay = world.relay();
    let old = peer.packet(b"under the old key");
    peer.rotate(6, world.now());
    world.deliver_raw(relay, &peer.announce());
    let seen = world.events();
    assert_eq!((announces(&seen, relay).len(), sealed(&seen, relay).len()), (1, 1), "{seen:?}");
    assert!(peer.open(&sealed(&seen, relay)[0], world.now()).is_ok());
    let new = peer.packet(b"under the new key");
    world.deliver_raw(relay, &[new, old].concat());
    assert_eq!(world.tun.len(), 2, "what was under way is not lost");
}

#[test]
fn a_statement_heard_first_from_the_node_itself_is_answered_too() {
    let mut peer = Peer::new();
    let mut keyless = peer.listed();
    keyless.statement.clear();
    let mut world = World::new(Setup::default());
    world.join(config(10, vec![keyless]));
    world.connect_relay(1);
    world.deliver_raw(world.relay(), &peer.announce());
    peer.meet(&mut world);
    let seen = world.events();
    assert_eq!((announces(&seen, world.relay()).len(), sealed(&seen, world.relay()).len()), (1, 1), "{seen:?}");
    assert!(peer.open(&sealed(&seen, world.relay())[0], world.now()).is_ok());
}

#[test]
fn a_repeated_announce_is_answered_with_a_probe() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let relay = world.relay();
    let frame = peer.packet(b"confirm");
    world.deliver_raw(relay, &frame);
    world.events();
    for _ in 0..5 {
        world.deliver_raw(relay, &peer.announce());
    }
    let seen = world.events();
    let [Seen::Sent(_, Sent::Sealed(probe))] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(frame_type(probe), FrameType::P2pPing, "one probe, no announce: it knows ours");
}

/// Delivers a statement in a KEY_ANNOUNCE; tells whether the node took it.
fn takes(world: &mut World, statement: &KeyStatement, signer: u8) -> bool {
    // One look a second is always granted.
    world.elapsed += SECOND;
    let refused = world.drops("refused_statement");
    let signed = SignedStatement::sign(statement.clone(), &machine(signer)).unwrap();
    let frame = KeyAnnounce { src: PEER, dst: ME, statement: *signed.bytes(), signature: *signed.signature() };
    world.deliver_raw(world.relay(), &frame.encode());
    world.events();
    let refused = world.drops("refused_statement") - refused;
    assert!(refused <= 1);
    refused == 0
}

#[test]
fn only_the_pinned_machine_may_announce_and_only_what_is_new_and_valid() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let now = |world: &World| world.controller_ms() / 1000;
    let good = KeyStatement { seq: 6, ..peer.statement.statement().clone() };
    let there = now(&world);
    let bad = [
        ("lower seq", KeyStatement { seq: 4, ..good.clone() }, 2),
        ("same seq, other key", KeyStatement { seq: 5, node_pub: [9; 32], ..good.clone() }, 2),
        ("other network", KeyStatement { network_id: NetworkId(8), ..good.clone() }, 2),
        ("another node's", KeyStatement { node_id: NodeId(201), ..good.clone() }, 2),
        ("ours", KeyStatement { node_id: ME, ..good.clone() }, 2),
        ("expired", KeyStatement { not_before: there - 90_700, not_after: there - 700, ..good.clone() }, 2),
        ("not yet valid", KeyStatement { not_before: there + 700, not_after: there + 900, ..good.clone() }, 2),
        ("wrong machine key", KeyStatement { machine_pub: machine(3).public(), ..good.clone() }, 3),
    ];
    for (what, statement, signer) in bad {
        assert!(!takes(&mut world, &statement, signer), "{what}");
    }
    let mut forged = announce(&SignedStatement::sign(good.clone(), &machine(2)).unwrap());
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let refused = world.drops("refused_statement");
    world.elapsed += SECOND;
    world.deliver_raw(world.relay(), &forged);
    assert_eq!(world.drops("refused_statement"), refused + 1, "bad signature");
    assert!(takes(&mut world, &good, 2));
    // Nothing of all that has pinned or learnt anybody.
    assert_eq!(world.status().peers.len(), 1);
    let stranger = Peer::build(NodeId(201), [10, 7, 0, 201].into(), 3, 1);
    world.deliver_raw(world.relay(), &stranger.announce());
    assert_eq!(world.status().peers.len(), 1, "the controller alone introduces nodes");
}

/// The statement that the node announced last.
fn own(world: &mut World) -> KeyStatement {
    world.events();
    KeyStatement::parse(&world.announced.as_ref().unwrap().statement).unwrap()
}

/// A peer says that it holds this statement of the node's.
fn return_statement(world: &mut World, statement: &KeyStatement, signer: u8) {
    let said = KeyStatement { machine_pub: machine(signer).public(), node_pub: [9; 32], ..statement.clone() };
    let signed = SignedStatement::sign(said, &machine(signer)).unwrap();
    let frame = KeyAnnounce { src: PEER, dst: ME, statement: *signed.bytes(), signature: *signed.signature() };
    world.deliver_raw(world.relay(), &frame.encode());
    world.advance(Duration::from_millis(1));
}

#[test]
fn a_machine_whose_key_is_used_elsewhere_takes_a_newer_key() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let before = own(&mut world);
    let newer = KeyStatement { seq: before.seq + 1_000_000, ..before.clone() };
    // Somebody else's signature, and a statement that is not newer, mean nothing.
    for (statement, signer) in [(&newer, 3), (&before, 1)] {
        world.elapsed += SECOND;
        return_statement(&mut world, statement, signer);
        assert_eq!(own(&mut world), before);
    }
    world.elapsed += SECOND;
    return_statement(&mut world, &newer, 1);
    let after = own(&mut world);
    assert!(after.seq > newer.seq, "{after:?}");
    // Not again at once: two machines with one key must not keep the network busy.
    let newest = KeyStatement { seq: after.seq + 5, ..after.clone() };
    world.elapsed += SECOND;
    return_statement(&mut world, &newest, 1);
    assert_eq!(own(&mut world), after);
    world.elapsed += 30 * SECOND;
    return_statement(&mut world, &newest, 1);
    assert!(own(&mut world).seq > newest.seq);
}

#[test]
fn whoever_announces_an_older_key_gets_back_what_we_hold() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    let older = KeyStatement { seq: 4, ..peer.statement.statement().clone() };
    let older = announce(&SignedStatement::sign(older, &machine(2)).unwrap());
    peer.rotate(6, world.now());
    world.deliver_raw(world.relay(), &peer.announce());
    world.events();
    world.elapsed += 5 * SECOND;
    world.deliver_raw(world.relay(), &older);
    let returned = announces(&world.events(), world.relay());
    assert!(returned.iter().any(|a| a.statement == *peer.statement.bytes() && a.dst == PEER), "{returned:?}");
}

#[test]
fn an_announce_for_somebody_else_is_not_looked_at() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.rotate(6, world.now());
    for dst in [NodeId(300), NodeId::CONTROLLER, PEER] {
        let statement = *peer.statement.bytes();
        let frame = KeyAnnounce { src: PEER, dst, statement, signature: *peer.statement.signature() };
        world.deliver_raw(world.relay(), &frame.encode());
    }
    assert_eq!(world.drops("not_for_us"), 3);
    assert_eq!(world.events(), []);
}

#[test]
fn a_statement_older_than_the_nodes_revocation_is_refused() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let revocation =
        proto::Revocation { node_id: PEER.0, issued_before: START + 5, expires: START + 9000, ..Default::default() };
    let update =
        proto::ConfigUpdate { from_version: 10, version: 11, revocations: vec![revocation], ..Default::default() };
    world.update(update);
    send_packet(&mut world);
    assert_eq!(world.drops("no_session"), 1, "sessions ended at once");
    let old = KeyStatement { seq: 6, not_before: START + 4, ..peer.statement.statement().clone() };
    assert!(!takes(&mut world, &old, 2));
    assert!(!takes(&mut world, peer.statement.statement(), 2), "nor the one that was in use");
    let new = KeyStatement { seq: 7, not_before: START + 5, ..old };
    assert!(takes(&mut world, &new, 2));
    assert_eq!(sealed(&send_packet(&mut world), world.relay()).len(), 1);
}

#[test]
fn a_flood_of_announces_costs_no_signatures_and_locks_nobody_out() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let good = KeyStatement { seq: 9, ..peer.statement.statement().clone() };
    let good = announce(&SignedStatement::sign(good, &machine(2)).unwrap());
    let mut forged = good.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for _ in 0..10_000 {
        world.deliver_raw(world.relay(), &forged);
    }
    assert_eq!(world.drops("refused_statement"), 10_000);
    // The genuine one comes while the flood is on: refused unseen, however good.
    world.deliver_raw(world.relay(), &good);
    assert_eq!(world.drops("refused_statement"), 10_001);
    // Seconds after the flood it is heard.
    world.elapsed += 2 * SECOND;
    world.deliver_raw(world.relay(), &good);
    assert_eq!(world.drops("refused_statement"), 10_001);
    assert_eq!(announces(&world.events(), world.relay()).len(), 1);
}

#[test]
fn a_rotation_is_on_disk_before_anybody_hears_of_it() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let (control, relay) = (world.control(), world.relay());
    let frame = peer.packet(b"talking");
    world.deliver_raw(relay, &frame);
    let first = KeyStatement::parse(&world.announced.clone().unwrap().statement).unwrap();
    let settings = Some(proto::Settings { node_key_rotate_secs: 3600, ..Default::default() });
    let events = world.update(proto::ConfigUpdate { from_version: 10, version: 11, settings, ..Default::default() });
    let [
        Seen::Persisted(seq),
        Seen::Sent(a, Sent::Announce(to_controller)),
        Seen::Sent(_, Sent::Message(_)),
        Seen::Sent(b, Sent::Announce(to_peer)),
        Seen::Persisted(_),
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((*a, *b, to_controller.dst, to_peer.dst), (control, relay, NodeId::CONTROLLER, PEER));
    let second = KeyStatement::parse(&to_peer.statement).unwrap();
    assert_eq!(to_peer.statement, to_controller.statement);
    assert!(second.seq > first.seq && second.seq == *seq);
    assert_ne!(second.node_pub, first.node_pub);

    // Until the peer has used the new key it is written to under the old one.
    let seen = send_packet(&mut world);
    assert!(peer.open(&sealed(&seen, relay)[0], world.now()).is_ok());
    peer.learn(&to_peer.clone(), world.now());
    let frame = peer.packet(b"confirmed");
    world.deliver_raw(relay, &frame);
    let seen = send_packet(&mut world);
    assert!(announces(&seen, relay).is_empty());
    assert!(peer.open(&sealed(&seen, relay)[0], world.now()).is_ok());
}

#[test]
fn a_rotation_begins_the_announces_anew() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    world.lively = true;
    send_packet(&mut world);
    // Deep in the back-off of the first key.
    world.advance(Duration::from_secs(16));
    let settings = Some(proto::Settings { node_key_rotate_secs: 3600, ..Default::default() });
    let at = world.elapsed.as_secs();
    let events = world.update(proto::ConfigUpdate { from_version: 10, version: 11, settings, ..Default::default() });
    assert_eq!(announces(&events, world.relay()).len(), 1, "{events:?}");
    let times: Vec<u64> = announce_times(&world.advance(Duration::from_secs(9))).iter().map(|t| t - at).collect();
    assert_eq!(times, [1, 3, 7]);
}

#[test]
fn both_rotating_at_once_lose_nothing_but_packets_in_flight() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let relay = world.relay();
    let frame = peer.packet(b"talking");
    world.deliver_raw(relay, &frame);
    let settings = Some(proto::Settings { node_key_rotate_secs: 3600, ..Default::default() });
    world.update(proto::ConfigUpdate { from_version: 10, version: 11, settings, ..Default::default() });
    peer.rotate(6, world.now());
    // Neither has heard of the other's key; then both have.
    let ours = world.announced.clone().unwrap();
    peer.learn(&ours, world.now());
    world.deliver_raw(relay, &peer.announce());
    for frame in sealed(&world.events(), relay) {
        assert!(peer.open(&frame, world.now()).is_ok());
    }
    let frame = peer.packet(b"new keys both");
    world.deliver_raw(relay, &frame);
    assert_eq!(world.tun.len(), 2);
    let seen = send_packet(&mut world);
    assert!(peer.open(&sealed(&seen, relay)[0], world.now()).is_ok());
    assert_eq!(peer.open(&sealed(&seen, relay)[0], world.now()), Err(OpenError::Replayed));
}
