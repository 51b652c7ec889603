//! Whom the node believes (DESIGN §2): a controller that was taken over cannot put itself between two nodes.

use crate::world::*;
use edgelink_model::NodeId;
use edgelink_session::trust::Trust;

/// The peer as a lying controller presents it: the same node, another machine.
fn impostor() -> Peer {
    Peer::build(PEER, PEER_IP, 66, 1)
}

#[test]
fn a_changed_machine_key_is_refused_until_a_person_accepts_it() {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let relay = world.relay();
    let mut impostor = impostor();
    world.config(config(11, vec![impostor.listed()]));

    // The living session goes on, and status says what happened and what to do.
    let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"secret"));
    assert!(peer.open(&sealed(&seen, relay)[0], world.now()).is_ok());
    let frame = peer.packet(b"alive");
    world.deliver_raw(relay, &frame);
    assert_eq!(world.tun.len(), 1);
    let reason = world.peer_status(PEER).reason.unwrap();
    assert!(reason.contains("machine key has changed"), "{reason}");
    assert!(
        reason.contains(&machine(2).public().fingerprint()) && reason.contains(&machine(66).public().fingerprint())
    );
    assert_eq!(world.status().health, [format!("peer peer-200: {reason} (edgelink accept peer-200)")]);
    // The impostor's own announce is worth no more.
    world.deliver_raw(relay, &impostor.announce());
    assert_eq!(world.drops("refused_statement"), 1);

    let now = world.now();
    assert!(world.node.accept_peer(PEER, now));
    assert!(world.events().iter().any(|e| matches!(e, Seen::Persisted(_))), "accepted for good");
    let reason = world.peer_status(PEER).reason.unwrap();
    assert!(reason.contains("disabled here"), "only why it is relayed: {reason}");
    assert_eq!(world.status().health.len(), 0);
    impostor.meet(&mut world);
    let frame = impostor.packet(b"the new machine");
    world.deliver_raw(relay, &frame);
    assert_eq!(world.tun.len(), 2);
    let frame = peer.packet(b"the old machine");
    world.deliver_raw(relay, &frame);
    assert_eq!(world.tun.len(), 2, "its sessions ended with it");
    assert!(!world.node.accept_peer(PEER, now), "nothing is refused any more");
    assert!(!world.node.accept_peer(NodeId(999), now));
}

#[test]
fn the_refusal_ends_when_the_controller_tells_the_truth_again() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    world.config(config(11, vec![impostor().listed()]));
    world.config(config(12, vec![peer.listed()]));
    assert_eq!((world.peer_status(PEER).reason, world.status().health.len()), (None, 0));
    let now = world.now();
    assert!(!world.node.accept_peer(PEER, now), "the impostor cannot be accepted by mistake later");
}

#[test]
fn a_pinned_address_does_not_move_to_another_machine() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    let thief = Peer::build(NodeId(201), PEER_IP, 3, 1);
    world.config(config(11, vec![peer.listed(), thief.listed()]));
    let reason = world.peer_status(NodeId(201)).reason.unwrap();
    assert!(reason.contains("10.7.0.200 of node 200"), "{reason}");
    assert_eq!(world.peer_status(NodeId(201)).addresses, Vec::<std::net::IpAddr>::new());
    let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
    assert_eq!(edgelink_wire::data::parse(&sealed(&seen, world.relay())[0]).unwrap().dst, PEER);
}

#[test]
fn with_a_list_only_those_on_it_are_talked_with() {
    let (peer, other) = (Peer::new(), Peer::build(NodeId(201), [10, 7, 0, 201].into(), 3, 1));
    let trust = Trust::Pinned(vec![machine(2).public().fingerprint()]);
    let mut world = World::joined_with(Setup { trust, ..Setup::default() }, &peer);
    world.config(config(11, vec![peer.listed(), other.listed()]));
    assert_eq!(world.peer_status(PEER).reason, None);
    let reason = world.peer_status(NodeId(201)).reason.unwrap();
    assert!(reason.contains("trust.pinned"), "{reason}");
    world.tun(&PLAIN, &udp(MY_IP, other.ip, b"x"));
    assert_eq!(world.drops("no_route"), 1);
    let now = world.now();
    assert!(!world.node.accept_peer(NodeId(201), now), "the list is the configuration's");
}

#[test]
fn trusting_the_controller_means_to_believe_it() {
    let peer = Peer::new();
    let mut world = World::joined_with(Setup { trust: Trust::Controller, ..Setup::default() }, &peer);
    let mut impostor = impostor();
    world.config(config(11, vec![impostor.listed()]));
    assert_eq!(world.peer_status(PEER).reason, None);
    impostor.meet(&mut world);
    let frame = impostor.packet(b"x");
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.tun.len(), 1);
}

#[test]
fn a_statement_that_the_controller_made_up_is_refused() {
    let peer = Peer::new();
    let mut world = World::joined(&peer);
    // Signed by the controller's own machine key, listed under the peer's.
    let mut listed = peer.listed();
    let (_, made_up) = fresh_key(&machine(66), PEER, 9, START, 1);
    listed.statement = made_up.bytes().to_vec();
    listed.signature = made_up.signature().to_vec();
    world.config(config(11, vec![listed.clone()]));
    assert_eq!(world.drops("refused_statement"), 1);
    // An old one of the peer's own: a replay by the controller.
    let (_, old) = fresh_key(&machine(2), PEER, 4, START, 1);
    listed.statement = old.bytes().to_vec();
    listed.signature = old.signature().to_vec();
    world.config(config(12, vec![listed.clone()]));
    assert_eq!(world.drops("refused_statement"), 2);
    listed.signature.clear();
    world.config(config(13, vec![listed]));
    assert_eq!(world.drops("refused_statement"), 3);
    assert_eq!(sealed(&world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x")), world.relay()).len(), 1, "the session lives");
}
