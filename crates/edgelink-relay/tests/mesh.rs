//! The mesh between relays: links, locations, next hops, and what must never cross (specification §2.4, DESIGN §6).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may, like tests")]

mod common;

use common::mesh::Mesh;
use common::*;
use edgelink_model::ErrorCode::{NodeOffline, Unavailable};
use edgelink_relay::{CloseReason, ConnectError, DropReason};
use edgelink_wire::control::{self, proto};
use edgelink_wire::{Flags, FrameType};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn local_only(mut frame: Vec<u8>) -> Vec<u8> {
    frame[2] |= Flags::LOCAL_ONLY.0;
    frame
}

#[test]
fn every_pair_gets_exactly_one_link_dialled_by_the_lower_id() {
    let mesh = Mesh::linked(&[1, 2, 3]);
    assert_eq!(mesh.links(), [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)]);
    assert_eq!(mesh.wires.len(), 6, "three connections, two ends each");
    assert_eq!(mesh.closes, []);
}

#[test]
fn frames_cross_one_link_to_the_node_and_answers_come_back() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.join(1, 10, 7);
    mesh.join(2, 20, 7);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[2])]);
    let ping = sealed(FrameType::P2pPing, 10, 20, 3, 20);
    mesh.say(1, 10, &[data(10, 20, 1), data(10, 20, 2), ping.clone(), announce(10, 20, 4)].concat());
    assert_eq!(mesh.got(2, 20), [ping, announce(10, 20, 4), data(10, 20, 1), data(10, 20, 2)]);
    mesh.say(2, 20, &data(20, 10, 5));
    assert_eq!(mesh.got(1, 10), [data(20, 10, 5)]);
    let (one, two) = (mesh.relays[&1].stats(), mesh.relays[&2].stats());
    assert_eq!((one.mesh_out_frames, one.mesh_in_frames), (4, 1));
    assert_eq!((two.mesh_out_frames, two.mesh_in_frames), (1, 4));
}

#[test]
fn local_only_frames_stay_here_or_are_refused() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.join(1, 10, 7);
    mesh.join(2, 20, 7);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[2])]);
    mesh.say(1, 10, &local_only(data(10, 20, 1)));
    assert_eq!(mesh.errors(1, 10), [error(NodeOffline, 0x10, 20)]);
    assert_eq!(mesh.got(2, 20), Vec::<Vec<u8>>::new());
    // In one message, each goes its own way.
    mesh.pass(2 * SECOND);
    mesh.say(1, 10, &[data(10, 20, 2), local_only(data(10, 20, 3)), data(10, 20, 4)].concat());
    assert_eq!(mesh.got(2, 20), [data(10, 20, 2), data(10, 20, 4)]);
}

#[test]
fn the_next_hop_table_may_send_a_local_destination_over_the_mesh() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.join(1, 10, 7);
    mesh.join(1, 20, 7);
    mesh.join(2, 20, 7);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[1, 2])]);
    mesh.say(1, 10, &data(10, 20, 1));
    assert_eq!(mesh.got(1, 20), [data(10, 20, 1)], "without advice: here");
    mesh.next_hops(1, &[1, 2], &[(20, 2)]);
    mesh.say(1, 10, &data(10, 20, 2));
    assert_eq!((mesh.got(1, 20).len(), mesh.got(2, 20)), (0, vec![data(10, 20, 2)]));
    mesh.say(1, 10, &local_only(data(10, 20, 3)));
    assert_eq!(mesh.got(1, 20), [local_only(data(10, 20, 3))]);
    // Advice that leads nowhere is not taken: the node is not there, or the link is down.
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[1])]);
    mesh.say(1, 10, &data(10, 20, 4));
    assert_eq!(mesh.got(1, 20), [data(10, 20, 4)]);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[1, 2])]);
    mesh.cut.push((1, 2));
    let link = mesh.link(1, 2).unwrap();
    mesh.reset(1, link);
    mesh.say(1, 10, &data(10, 20, 5));
    assert_eq!(mesh.got(1, 20), [data(10, 20, 5)]);
}

#[test]
fn a_frame_from_the_mesh_is_delivered_here_or_not_at_all() {
    // Relay 2 believes that node 20 is at relay 3, as does relay 1 that it is at 2: no loop, no second hop.
    let mut mesh = Mesh::linked(&[1, 2, 3]);
    mesh.join(1, 10, 7);
    mesh.join(3, 20, 7);
    mesh.locate(&[(10, 7, &[1, 2, 3]), (20, 7, &[2, 3])]);
    mesh.next_hops(1, &[1, 2, 3], &[(20, 2)]);
    mesh.next_hops(2, &[1, 2, 3], &[(20, 3)]);
    mesh.crossed.clear();
    mesh.say(1, 10, &data(10, 20, 1));
    let hops: Vec<u32> = mesh.crossed.iter().filter(|(_, frame)| frame[1] == 0x10).map(|(from, _)| *from).collect();
    assert_eq!(hops, [1], "one hop from relay 1, none from relay 2");
    assert_eq!(mesh.got(3, 20), Vec::<Vec<u8>>::new());
    assert_eq!(mesh.relays[&2].stats().drops.get(DropReason::NotConnected), 1);
    // Relay 2 said that the node is not there, so the next frame takes the other way.
    mesh.say(1, 10, &data(10, 20, 2));
    assert_eq!(mesh.got(3, 20), [data(10, 20, 2)]);
}

#[test]
fn a_relay_speaks_for_its_own_nodes_only_and_inside_their_network() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.join(1, 10, 7);
    mesh.join(2, 20, 7);
    mesh.join(2, 21, 8);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[2]), (21, 8, &[2]), (11, 8, &[1])]);
    let refused = |mesh: &mut Mesh, frame: Vec<u8>, reason| {
        let before = mesh.relays[&2].stats().drops.get(reason);
        mesh.say_over_link(2, 1, &frame);
        assert_eq!(mesh.relays[&2].stats().drops.get(reason), before + 1);
        assert_eq!((mesh.got(2, 20).len(), mesh.got(2, 21).len()), (0, 0));
    };
    refused(&mut mesh, data(99, 20, 1), DropReason::ForgedSource); // unknown source
    refused(&mut mesh, data(20, 20, 1), DropReason::ForgedSource); // located elsewhere
    refused(&mut mesh, data(10, 21, 1), DropReason::OtherNetwork); // another network's destination
    refused(&mut mesh, data(11, 20, 1), DropReason::OtherNetwork); // another network's source
    refused(&mut mesh, announce(11, 20, 1), DropReason::OtherNetwork);
    mesh.say_over_link(2, 1, &data(10, 20, 9));
    assert_eq!(mesh.got(2, 20), [data(10, 20, 9)]);
    // A node may not be reached across networks by its own relay either.
    mesh.say(1, 10, &data(10, 21, 1));
    assert_eq!(mesh.errors(1, 10), [error(NodeOffline, 0x10, 21)]);
}

#[test]
fn offline_at_the_other_relay_is_told_to_the_sender_once_a_second() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.join(1, 10, 7);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[2])]);
    for _ in 0..20 {
        mesh.say(1, 10, &data(10, 20, 1));
    }
    assert_eq!(mesh.errors(1, 10), [error(NodeOffline, 0x10, 20)]);
    let crossed = mesh.crossed.iter().filter(|(from, frame)| *from == 1 && frame[1] == 0x10).count();
    assert_eq!(crossed, 1, "not sought there again at once");
    mesh.pass(SECOND);
    mesh.join(2, 20, 7);
    mesh.say(1, 10, &data(10, 20, 2));
    assert_eq!(mesh.got(2, 20), [data(10, 20, 2)]);
}

#[test]
fn a_link_that_is_reset_comes_back_with_backoff() {
    let mut mesh = Mesh::linked(&[1, 2]);
    for cycle in 0..5 {
        let link = mesh.link(1, 2).unwrap();
        mesh.reset(1, link);
        assert_eq!(mesh.links(), [], "cycle {cycle}");
        mesh.pass(SECOND);
        assert_eq!(mesh.links(), [(1, 2), (2, 1)], "cycle {cycle}");
        mesh.pass(20 * SECOND);
    }
    mesh.cut.push((1, 2));
    let link = mesh.link(2, 1).unwrap();
    mesh.reset(2, link);
    mesh.pass(50 * SECOND);
    assert_eq!(mesh.links(), []);
    mesh.cut.clear();
    mesh.pass(SECOND);
    assert_eq!(mesh.links(), [(1, 2), (2, 1)], "a young outage ends within a second of its cause");
}

#[test]
fn a_black_holed_link_is_found_dead_soon_while_it_carries_frames() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.join(1, 10, 7);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[2])]);
    mesh.pass(30 * SECOND);
    mesh.black_hole = true;
    let start = mesh.now.mono;
    while !mesh.links().is_empty() {
        mesh.say(1, 10, &data(10, 20, 1));
        mesh.pass(Duration::from_millis(100));
        assert!(mesh.now.mono - start < 45 * SECOND);
    }
    assert!(mesh.now.mono - start <= 16 * SECOND, "{:?}", mesh.now.mono - start);
    mesh.black_hole = false;
    mesh.pass(2 * SECOND);
    assert_eq!(mesh.links(), [(1, 2), (2, 1)]);
}

#[test]
fn an_idle_link_is_probed_and_measured() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.pass(60 * SECOND);
    let pings = mesh.crossed.iter().filter(|(from, frame)| *from == 1 && frame[1] == 0x20).count();
    assert_eq!(pings, 3, "at link-up, and every 25 s");
    assert!(mesh.relays[&1].mesh_links().all(|link| link.rtt_us == Some(0)), "zero is a measurement, not a gap");
    assert_eq!(mesh.closes, []);
}

#[test]
fn of_two_connections_the_one_that_the_lower_id_dialled_stays() {
    let mut mesh = Mesh::linked(&[1, 2]);
    let kept = mesh.link(2, 1).unwrap();
    // Relay 2 is told by its configuration to dial relay 1 as well.
    mesh.relays.get_mut(&2).unwrap().set_static_peers(["wss://relay-1/ws/mesh".to_owned()], mesh.now);
    mesh.pass(5 * SECOND);
    assert_eq!(mesh.link(2, 1), Some(kept));
    assert_eq!(mesh.wires.len(), 2);
    assert!(mesh.closes.contains(&(1, CloseReason::Duplicate)) || mesh.closes.contains(&(2, CloseReason::Duplicate)));
    let closes = mesh.closes.len();
    mesh.pass(60 * SECOND);
    assert_eq!(mesh.closes.len(), closes, "and it is not dialled again while the link lives");
    // The end of the link wakes both diallers; one link comes of it.
    mesh.reset(2, kept);
    mesh.pass(5 * SECOND);
    assert_eq!((mesh.links(), mesh.wires.len()), (vec![(1, 2), (2, 1)], 2));
}

#[test]
fn a_configured_peer_is_asked_who_it_is() {
    let mut mesh = Mesh::new(&[1, 2]);
    let mut config = mesh.config(2, &[1, 2]);
    config.mesh_tokens[0].url.clear(); // the controller does not know where relay 1 is
    mesh.configure(2, config);
    let config = mesh.config(1, &[1, 2]);
    mesh.configure(1, proto::Config { mesh_tokens: vec![], ..config });
    mesh.run();
    assert_eq!(mesh.links(), []);
    mesh.relays.get_mut(&2).unwrap().set_static_peers(["wss://relay-1/ws/mesh".to_owned()], mesh.now);
    mesh.run();
    assert_eq!(mesh.links(), [(1, 2), (2, 1)]);
}

#[test]
fn the_close_of_an_old_link_never_removes_the_new_one() {
    let mut mesh = Mesh::linked(&[1, 2]);
    let old = mesh.link(2, 1).unwrap();
    // Relay 1 lost the connection; relay 2 has not noticed yet.
    let (_, theirs) = mesh.wires[&(2, old)];
    mesh.wires.clear();
    let now = mesh.now;
    mesh.relays.get_mut(&1).unwrap().disconnect(theirs, now);
    mesh.pass(SECOND);
    let new = mesh.link(2, 1).unwrap();
    assert_ne!(new, old);
    mesh.relays.get_mut(&2).unwrap().disconnect(old, now);
    mesh.run();
    assert_eq!(mesh.link(2, 1), Some(new));
    assert_eq!(mesh.down, [(1, 2)], "relay 2 never was without a link");
}

#[test]
fn bad_tokens_open_no_link() {
    let mut mesh = Mesh::new(&[2]);
    let hour = mesh.now.unix_secs() + 3_600;
    let config = mesh.config(2, &[1, 2, 3]);
    mesh.configure(2, config);
    mesh.run();
    let request = |token: String| auth(proto::AuthRequest { protocol_version: 1, token, ..Default::default() });
    let cases = [
        ("for another relay", mesh.mesh_token(1, 3, hour)),
        ("of the relay itself", mesh.mesh_token(2, 2, hour)),
        ("of a relay that is not listed", mesh.mesh_token(9, 2, hour)),
        ("expired", mesh.mesh_token(1, 2, mesh.now.unix_secs() - 61)),
        ("garbage", "no.token.atall".to_owned()),
        ("a node's", mesh.issuer.relay(&World::new().claims(1, 7)).unwrap()),
        ("a server's own", {
            let claims = edgelink_auth::token::ServerClaims {
                server_id: edgelink_model::ServerId(1),
                server_name: "r".to_owned(),
                capabilities: vec!["relay".to_owned()],
                region: String::new(),
                iat: T0,
                exp: hour,
                jti: "s".to_owned(),
            };
            mesh.issuer.server(&claims).unwrap()
        }),
    ];
    for (what, token) in cases {
        let now = mesh.now;
        let relay = mesh.relays.get_mut(&2).unwrap();
        let conn = relay.connect_mesh(None, now).unwrap();
        relay.handle_message(conn, request(token).into(), now);
        let refused = std::iter::from_fn(|| relay.poll_event()).any(|event| {
            matches!(event, edgelink_relay::RelayEvent::Close { reason: CloseReason::Refused(_), conn: c, .. } if c == conn)
        });
        assert!(refused, "{what}");
        relay.disconnect(conn, now);
        assert_eq!(relay.mesh_links().count(), 0, "{what}");
    }
    // Data before authentication.
    let now = mesh.now;
    let relay = mesh.relays.get_mut(&2).unwrap();
    let conn = relay.connect_mesh(None, now).unwrap();
    relay.handle_message(conn, data(10, 20, 1).into(), now);
    assert!(
        std::iter::from_fn(|| relay.poll_event())
            .any(|event| matches!(event, edgelink_relay::RelayEvent::Close { reason: CloseReason::Protocol(_), .. }))
    );
}

#[test]
fn a_relay_that_leaves_the_list_is_unlinked_and_not_let_in_again() {
    let mut mesh = Mesh::linked(&[1, 2, 3]);
    for id in [1, 2] {
        let config = mesh.config(id, &[1, 2]);
        mesh.configure(id, config);
    }
    mesh.pass(120 * SECOND);
    assert_eq!(mesh.links(), [(1, 2), (2, 1)]);
}

#[test]
fn a_link_lives_as_long_as_its_token_is_renewed() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.pass(1_800 * SECOND);
    let config = mesh.config(1, &[1, 2]);
    mesh.configure(1, config);
    mesh.pass(3_000 * SECOND);
    assert_eq!((mesh.links(), mesh.closes.len()), (vec![(1, 2), (2, 1)], 0), "renewed in time, without a gap");
    mesh.pass(800 * SECOND);
    assert!(mesh.closes.contains(&(2, CloseReason::TokenExpired)));
    assert_eq!(mesh.links(), []);
    // While the controller is away, expired tokens are honoured for a day.
    for relay in mesh.relays.values_mut() {
        relay.set_controller_lost(true, mesh.now);
    }
    mesh.pass(60 * SECOND);
    assert_eq!(mesh.links(), [(1, 2), (2, 1)]);
}

#[test]
fn revoked_mesh_tokens_end_the_link() {
    let mut mesh = Mesh::linked(&[1, 2]);
    let now = mesh.now;
    mesh.relays.get_mut(&2).unwrap().revoke(&revoke_jti(&format!("mesh-1-2-{T0}")), now);
    mesh.pass(30 * SECOND);
    assert!(mesh.closes.contains(&(2, CloseReason::Revoked)));
    assert_eq!(mesh.links(), []);
}

#[test]
fn what_waits_for_a_link_goes_out_on_the_next_one() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.join(1, 10, 7);
    mesh.join(2, 20, 7);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[2])]);
    // The frame is queued at relay 2 while its connection hangs; relay 1 comes back on another one.
    let (conn, now) = (mesh.nodes[&(2, 20)], mesh.now);
    mesh.relays.get_mut(&2).unwrap().handle_message(conn, data(20, 10, 1).into(), now);
    let old = mesh.link(2, 1).unwrap();
    let (_, theirs) = mesh.wires[&(2, old)];
    mesh.wires.clear();
    mesh.relays.get_mut(&1).unwrap().disconnect(theirs, now);
    // Everything but what the old connection would send.
    let events: Vec<_> = {
        let relay = mesh.relays.get_mut(&2).unwrap();
        std::iter::from_fn(|| relay.poll_event()).collect()
    };
    assert!(events.iter().any(|event| matches!(event, edgelink_relay::RelayEvent::Writable(c) if *c == old)));
    mesh.pass(SECOND);
    assert_eq!(mesh.got(1, 10), [data(20, 10, 1)]);
}

#[test]
fn a_saved_state_brings_everything_back() {
    let mut mesh = Mesh::linked(&[1, 2]);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[2])]);
    mesh.next_hops(1, &[1, 2], &[(20, 2)]);
    let now = mesh.now;
    mesh.relays.get_mut(&1).unwrap().revoke(&revoke_jti("gone"), now);
    let saved = mesh.relays[&1].saved_state();
    let mut fresh = edgelink_relay::Relay::new(
        edgelink_relay::RelayConfig::new(edgelink_model::ServerId(1)),
        mesh.issuer.relay_verifier().unwrap(),
    );
    fresh.restore(&saved, now).unwrap();
    assert_eq!(fresh.saved_state().len(), saved.len());
    assert!(fresh.revocations().is_jti_revoked("gone"));
    assert_eq!(fresh.stats().locations, 2);
    for cut in 0..saved.len() {
        let mut other = edgelink_relay::Relay::new(
            edgelink_relay::RelayConfig::new(edgelink_model::ServerId(1)),
            mesh.issuer.relay_verifier().unwrap(),
        );
        let _ = other.restore(&saved[..cut], now);
    }
    let odd = control::encode(&proto::Ack::default(), Flags::NONE).unwrap();
    assert!(fresh.restore(&odd, now).unwrap_err().to_string().contains("damaged"));
}

#[test]
fn a_relay_that_is_about_to_end_says_so_and_forwards_on_while_others_move() {
    let mut mesh = Mesh::linked(&[1, 2, 3]);
    mesh.join(1, 10, 7);
    mesh.join(2, 20, 7);
    mesh.join(3, 20, 7);
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[2, 3])]);
    mesh.next_hops(1, &[1, 2, 3], &[(20, 2)]);
    mesh.say(1, 10, &data(10, 20, 1));
    assert_eq!(mesh.got(2, 20), [data(10, 20, 1)]);

    let now = mesh.now;
    assert!(mesh.relays.get_mut(&2).unwrap().drain(now), "somebody is there, and there are other relays");
    mesh.run();
    assert_eq!(mesh.errors(2, 20), [error(Unavailable, 0, 0)]);
    assert!(mesh.errors(3, 20).is_empty());
    let refused = mesh.relays.get_mut(&2).unwrap().connect_mesh(None, now);
    assert_eq!(refused, Err(ConnectError::Draining));
    // What its node still sends is forwarded; what is for it goes another way, whatever the table says.
    mesh.say(2, 20, &data(20, 10, 2));
    assert_eq!(mesh.got(1, 10), [data(20, 10, 2)]);
    mesh.say(1, 10, &data(10, 20, 3));
    assert_eq!((mesh.got(2, 20).len(), mesh.got(3, 20)), (0, vec![data(10, 20, 3)]));
    // Where there is no other way it is still taken.
    mesh.locate(&[(10, 7, &[1]), (20, 7, &[2])]);
    mesh.say(1, 10, &data(10, 20, 4));
    assert_eq!(mesh.got(2, 20), [data(10, 20, 4)]);
    assert_eq!(mesh.closes, []);

    let mut alone = Mesh::linked(&[1]);
    alone.join(1, 10, 7);
    let now = alone.now;
    assert!(!alone.relays.get_mut(&1).unwrap().drain(now), "nobody has anywhere to go");
}
