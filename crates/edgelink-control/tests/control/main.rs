//! The controller's core as its shell sees it: messages in, the exact list of events out.
#![allow(clippy::unwrap_used, clippy::panic, clippy::large_enum_variant, reason = "a test fails by panicking")]

mod fanout;
mod isolation;
mod reconfigure;
mod tokens;
mod world;

use crate::world::*;
use edgelink_control::StoreOp;
use edgelink_model::records::{
    Change, EnrollError, NetworkRecord, NodeKeyRecord, NodeRecord, RevocationRecord, RevocationTarget, RouteRecord,
    ServerKind, ServerRecord, Snapshot,
};
use edgelink_model::{ErrorCode, NetworkId, NodeId, ServerId};
use edgelink_wire::FrameType;
use edgelink_wire::control::{ControlMessage, proto};
use edgelink_wire::ping::Ping;
use std::time::Duration;

#[test]
fn a_member_gets_ids_tokens_and_the_configuration() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let conn = world.connect();
    let events = world.authenticate(conn, &a);
    let [Seen::Sent(_, ControlMessage::AuthResponse(response))] = &events[..] else { panic!("{events:?}") };
    let identity = response.identity.clone().unwrap();
    assert_eq!((identity.node_id, identity.network_id, identity.name.as_str()), (1, 1, "node-1"));
    assert_eq!(identity.addresses, [vec![10, 0, 1, 1]]);
    let tokens = response.tokens.clone().unwrap();
    assert_eq!(tokens.auth_expires, START_MS / 1000 + 24 * 3600);
    assert_eq!(tokens.relay_expires, START_MS / 1000 + 5400);
    assert_eq!(response.server_time_ms, START_MS);

    world.send(conn, &a.announce(NodeId(1), 5, START_MS / 1000));
    let events = world.events();
    let [
        Seen::Store(StoreOp::SetNodeKey { node: NodeId(1), key }),
        Seen::Store(StoreOp::Seen { node: NodeId(1), online: true }),
        Seen::Sent(_, ControlMessage::Config(config)),
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!(key.seq, 5);
    assert_eq!(config.version, 10);
    assert_eq!(config.peers.iter().map(|p| (p.node_id, p.online)).collect::<Vec<_>>(), [(1, true), (2, false)]);
    assert_eq!(config.relays.iter().map(|r| (r.id, r.path.as_str())).collect::<Vec<_>>(), [(1, "/ws/data")]);
    assert_eq!(config.network.as_ref().unwrap().name, "default");
}

#[test]
fn a_member_that_announces_no_key_is_closed_after_a_minute_however_much_it_pings() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let (keyed, _) = world.join(&b, NodeId(2), 5);
    world.events();
    let conn = world.connect();
    world.authenticate(conn, &a);
    world.events();
    let closed = |events: &[Seen]| {
        events.iter().filter_map(|e| if let Seen::Closed(conn) = e { Some(*conn) } else { None }).collect::<Vec<_>>()
    };
    for second in (10..60).step_by(10) {
        world.advance(Duration::from_secs(10));
        world.send(conn, &Ping { sent_us: 1, seq: second }.encode(FrameType::Ping));
        world.send(keyed, &Ping { sent_us: 1, seq: second }.encode(FrameType::Ping));
        let events = world.events();
        assert_eq!(closed(&events), [], "after {second} s: {events:?}");
    }
    world.advance(Duration::from_secs(10));
    let events = world.events();
    assert!(
        events.iter().any(|e| matches!(e, Seen::Sent(to, ControlMessage::Error(error))
            if *to == conn && error.code == 4002 && error.message.contains("no key was announced within 60 s"))),
        "{events:?}"
    );
    assert_eq!(closed(&events), [conn]);
    // The other one goes on.
    world.send(keyed, &Ping { sent_us: 1, seq: 61 }.encode(FrameType::Ping));
    world.advance(Duration::from_secs(60));
    assert_eq!(closed(&world.events()), []);
}

#[test]
fn peers_learn_of_a_key_once_it_is_in_the_database() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let (conn_a, _) = world.join(&a, NodeId(1), 5);
    world.join(&b, NodeId(2), 6);
    world.advance(Duration::from_millis(50));
    world.events();

    let mut record = b.record(2, true);
    record.key = Some(NodeKeyRecord { statement: vec![1; 120], signature: vec![2; 64], seq: 6 });
    world.apply(11, Change::Node(record.clone()));
    assert_eq!(world.events(), [], "changes are gathered for 50 ms");
    world.advance(Duration::from_millis(50));
    let events = world.events();
    let updates: Vec<_> = events
        .iter()
        .map(|e| match e {
            Seen::Sent(conn, ControlMessage::ConfigUpdate(update)) => (*conn, update.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(updates.len(), 2, "every node of the network gets the same update");
    let (_, update) = updates.iter().find(|(conn, _)| *conn == conn_a).unwrap();
    assert_eq!((update.from_version, update.version), (10, 11));
    assert_eq!(update.peers.iter().map(|p| (p.node_id, p.statement.len())).collect::<Vec<_>>(), [(2, 120)]);

    world.apply(12, Change::Node(record));
    world.advance(Duration::from_millis(50));
    assert_eq!(world.events(), [], "a change that no node must know moves nothing");
}

#[test]
fn presence_is_pushed_without_a_new_version() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let (conn_a, config) = world.join(&a, NodeId(1), 5);
    let (conn_b, _) = world.join(&b, NodeId(2), 6);
    world.advance(Duration::from_millis(50));
    world.events();
    let now = world.now();
    world.control.disconnect(conn_b, now);
    assert_eq!(world.events(), [Seen::Store(StoreOp::Seen { node: NodeId(2), online: false })]);
    world.advance(Duration::from_millis(50));
    let events = world.events();
    let [Seen::Sent(to, ControlMessage::ConfigUpdate(update))] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*to, conn_a);
    assert_eq!((update.from_version, update.version), (config.version, config.version));
    assert_eq!(update.presence, [proto::Presence { node_id: 2, online: false }]);
}

#[test]
fn a_new_machine_is_enrolled_by_the_database_and_may_wait() {
    let client = Client { auth_key: "elk_test".to_owned(), ..Client::new(3) };
    let mut world = World::new(Vec::new());
    let conn = world.connect();
    let events = world.authenticate(conn, &client);
    let [Seen::Store(StoreOp::Enroll { conn: asked, request })] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*asked, conn);
    assert_eq!(request.machine_key_pub, client.machine.public().0);
    assert_eq!(request.auth_key_hash, Some(edgelink_auth::auth_key::hash("elk_test")));

    let pending = client.record(9, false);
    world.apply(11, Change::Node(pending.clone()));
    let now = world.now();
    world.control.handle_enrolled(conn, Ok(pending), now, &mut world.rng);
    assert_eq!(error_code(&world.events()), Some(ErrorCode::NodeNotAuthorized));
    world.advance(Duration::from_secs(30));
    assert_eq!(world.events(), [], "it is told once, and keeps its connection");

    world.apply(12, Change::Node(client.record(9, true)));
    let events = world.events();
    let [Seen::Sent(to, ControlMessage::AuthResponse(response))] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*to, conn);
    assert_eq!(response.identity.as_ref().unwrap().addresses, [vec![10, 0, 1, 9]]);
}

#[test]
fn enrolment_that_fails_says_why() {
    let cases = [
        (EnrollError::UnknownAuthKey, ErrorCode::InvalidToken),
        (EnrollError::AuthKeyExpired, ErrorCode::TokenExpired),
        (EnrollError::OtherNetwork, ErrorCode::InvalidToken),
        (EnrollError::PoolExhausted("10.0.1.0/24".to_owned()), ErrorCode::Overloaded),
        (EnrollError::TooManyPending, ErrorCode::Overloaded),
        (EnrollError::Unavailable, ErrorCode::Unavailable),
    ];
    for (error, code) in cases {
        let client = Client::new(3);
        let mut world = World::new(Vec::new());
        let conn = world.connect();
        world.authenticate(conn, &client);
        let now = world.now();
        world.control.handle_enrolled(conn, Err(error.clone()), now, &mut world.rng);
        let events = world.events();
        assert_eq!(error_code(&events), Some(code), "{error}");
        assert_eq!(events.last(), Some(&Seen::Closed(conn)));
    }
}

#[test]
fn a_wrong_host_signature_or_replayed_challenge_is_refused() {
    let client = Client::new(1);
    type Proof = fn(&Client, &[u8]) -> Vec<u8>;
    let cases: [(&str, Proof); 3] = [
        ("another controller's name", |c, challenge| c.proof(challenge, "evil.example.com")),
        ("another challenge", |c, _| c.proof(&[9; 32], HOST)),
        ("another machine", |_, challenge| Client::new(2).proof(challenge, HOST)),
    ];
    for (what, proof) in cases {
        let mut world = World::new(vec![client.record(1, true)]);
        let conn = world.connect();
        world.send(conn, &client.hello());
        let [Seen::Sent(_, ControlMessage::AuthResponse(response))] = &world.events()[..] else { panic!() };
        world.send(conn, &proof(&client, &response.challenge));
        let events = world.events();
        assert_eq!(error_code(&events), Some(ErrorCode::BadSignature), "{what}");
        assert_eq!(events.last(), Some(&Seen::Closed(conn)), "{what}");
    }
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    let client = Client::new(1);
    let mut world = World::new(vec![client.record(1, true)]);
    let (member, _) = world.join(&client, NodeId(1), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    let cases: [(&str, Vec<u8>, ErrorCode); 5] = [
        ("garbage", vec![0x77; 40], ErrorCode::UnsupportedVersion),
        ("a frame cut short", vec![1, 1, 0, 0, 9, 1], ErrorCode::InvalidMessage),
        ("trailing bytes", vec![1, 0x20, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1], ErrorCode::InvalidMessage),
        ("oversized before authentication", vec![0; 5000], ErrorCode::MessageTooLarge),
        ("data on the control channel", vec![1, 0x10, 0, 0, 0], ErrorCode::InvalidMessage),
    ];
    for (what, bytes, code) in cases {
        let conn = world.connect();
        world.send(conn, &bytes);
        let events = world.events();
        assert_eq!(error_code(&events), Some(code), "{what}");
        assert_eq!(events.last(), Some(&Seen::Closed(conn)), "{what}");
    }
    // Nor in pieces: AUTH_REQUEST with MORE, 4000 bytes each.
    let conn = world.connect();
    let piece = [&[1, 1, 4, 0x0f, 0xa0][..], &[0; 4000]].concat();
    world.send(conn, &piece);
    assert_eq!(world.events(), []);
    world.send(conn, &piece);
    assert_eq!(error_code(&world.events()), Some(ErrorCode::MessageTooLarge));
    let conn = world.connect();
    let now = world.now();
    world.control.handle_text(conn, now);
    assert_eq!(error_code(&world.events()), Some(ErrorCode::InvalidMessage));
    assert!(world.control.is_online(NodeId(1)), "the other nodes notice nothing");
    let _ = member;
}

/// Decoded, a list of empty elements takes two hundred times its bytes; found by the fuzz target `control`.
#[test]
fn a_members_message_has_at_most_256_kib() {
    let client = Client::new(1);
    let mut world = World::new(vec![client.record(1, true)]);
    let (member, _) = world.join(&client, NodeId(1), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    // LATENCY_REPORT with MORE, 60,000 bytes each.
    let piece = [&[1, 0x22, 4, 0xea, 0x60][..], &[0; 60_000]].concat();
    for _ in 0..4 {
        world.send(member, &piece);
        assert_eq!(world.events(), []);
    }
    world.send(member, &piece);
    let events = world.events();
    assert_eq!(error_code(&events), Some(ErrorCode::MessageTooLarge));
    assert!(events.contains(&Seen::Closed(member)));
}

#[test]
fn an_unknown_frame_type_is_answered_and_survived() {
    let mut world = World::new(Vec::new());
    let conn = world.connect();
    world.send(conn, &[1, 0x77, 0, 0, 0]);
    let events = world.events();
    assert_eq!(error_code(&events), Some(ErrorCode::InvalidMessage));
    assert!(!events.contains(&Seen::Closed(conn)));
    world.send(conn, &Client::new(1).hello());
    assert!(matches!(&world.events()[..], [Seen::Sent(_, ControlMessage::AuthResponse(_))]));
}

#[test]
fn authentication_has_ten_seconds() {
    let mut world = World::new(Vec::new());
    let conn = world.connect();
    world.advance(Duration::from_millis(9_999));
    assert_eq!(world.events(), []);
    world.advance(Duration::from_millis(1));
    assert_eq!(world.events().last(), Some(&Seen::Closed(conn)));
}

#[test]
fn the_newest_connection_of_a_node_wins_and_the_old_ones_end_does_not_matter() {
    let client = Client::new(1);
    let mut world = World::new(vec![client.record(1, true)]);
    let (old, _) = world.join(&client, NodeId(1), 5);
    let new = world.connect();
    let events = world.authenticate(new, &client);
    assert!(events.contains(&Seen::Closed(old)), "{events:?}");
    let announce = client.announce(NodeId(1), 6, START_MS / 1000);
    world.send(new, &announce);
    world.events();
    let now = world.now();
    world.control.disconnect(old, now);
    assert!(world.control.is_online(NodeId(1)));
}

#[test]
fn a_statement_of_another_node_or_with_a_falling_sequence_is_refused() {
    let client = Client::new(1);
    let mut known = client.record(1, true);
    known.key = Some(NodeKeyRecord { statement: vec![1; 120], signature: vec![2; 64], seq: 5 });
    let cases = [
        ("falling sequence", client.announce(NodeId(1), 5, START_MS / 1000), ErrorCode::InvalidMachineKey),
        ("another node", client.announce(NodeId(2), 9, START_MS / 1000), ErrorCode::InvalidMachineKey),
        ("another machine", Client::new(2).announce(NodeId(1), 9, START_MS / 1000), ErrorCode::InvalidMachineKey),
        ("far future", client.announce(NodeId(1), 9, START_MS / 1000 + 3600), ErrorCode::InvalidMachineKey),
        ("expired", client.announce(NodeId(1), 9, START_MS / 1000 - 100_000), ErrorCode::InvalidMachineKey),
    ];
    for (what, announce, code) in cases {
        let mut world = World::new(vec![known.clone()]);
        let conn = world.connect();
        world.authenticate(conn, &client);
        world.send(conn, &announce);
        let events = world.events();
        assert_eq!(error_code(&events), Some(code), "{what}");
        assert!(!events.iter().any(|e| matches!(e, Seen::Store(_))), "{what}");
    }
    let mut forged = client.announce(NodeId(1), 9, START_MS / 1000);
    *forged.last_mut().unwrap() ^= 1;
    let mut world = World::new(vec![known]);
    let conn = world.connect();
    world.authenticate(conn, &client);
    world.send(conn, &forged);
    assert_eq!(error_code(&world.events()), Some(ErrorCode::BadSignature));
}

#[test]
fn withdrawn_authorization_and_deletion_reach_the_node_and_its_peers() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let (conn_a, _) = world.join(&a, NodeId(1), 5);
    let (conn_b, _) = world.join(&b, NodeId(2), 6);
    world.advance(Duration::from_millis(50));
    world.events();

    let revocation = RevocationRecord {
        id: "node-2".to_owned(),
        target: RevocationTarget::Node { node_id: NodeId(2), issued_before: START_MS / 1000 + 1 },
        expires_at: START_MS / 1000 + 90_000,
    };
    let now = world.now();
    let changes = vec![(11, Change::Revoked(revocation.clone())), (12, Change::Node(b.record(2, false)))];
    world.control.apply(12, changes, now, &mut world.rng);
    let events = world.events();
    assert!(events.contains(&Seen::Revoked(revocation)), "relays are told at once");
    assert!(matches!(events.iter().find(|e| matches!(e, Seen::Sent(c, _) if *c == conn_b)),
        Some(Seen::Sent(_, ControlMessage::Error(e))) if e.code == 1006));
    world.advance(Duration::from_millis(50));
    let events = world.events();
    let [Seen::Sent(to, ControlMessage::ConfigUpdate(update))] = &events[..] else { panic!("{events:?}") };
    assert_eq!((*to, &update.removed_peers[..]), (conn_a, &[2][..]));
    assert_eq!(update.revocations.iter().map(|r| r.node_id).collect::<Vec<_>>(), [2]);

    world.apply(13, Change::NodeDeleted(NodeId(2)));
    assert_eq!(world.events().last(), Some(&Seen::Closed(conn_b)));
}

#[test]
fn p2p_signalling_goes_from_member_to_member_of_one_network() {
    let (a, b, stranger) = (Client::new(1), Client::new(2), Client::new(3));
    let foreign = NodeRecord { network_id: NetworkId(2), ..stranger.record(102, true) };
    let mut world = World::new(vec![a.record(100, true), b.record(101, true), foreign]);
    let (at_a, _) = world.join(&a, NodeId(100), 1);
    let (at_b, _) = world.join(&b, NodeId(101), 1);
    let at_stranger = world.connect();
    world.authenticate(at_stranger, &stranger);
    world.advance(Duration::from_secs(1));
    world.events();
    let endpoint = proto::Endpoint { kind: 2, ip: vec![203, 0, 113, 5], port: 4000, priority: 2 };
    let told = |node_id, count| {
        let endpoints = vec![endpoint.clone(); count];
        ControlMessage::P2pEndpoint(proto::P2pEndpoint { node_id, endpoints, attempt: 1, ..Default::default() })
    };
    let init = |node_id| ControlMessage::P2pInit(proto::P2pInit { node_id, attempt: 1 });
    world.send(at_a, &message(init(101)));
    world.send(at_a, &message(told(101, 1)));
    assert_eq!(
        world.events(),
        [Seen::Sent(at_b, init(100)), Seen::Sent(at_b, told(100, 1))],
        "the sender's id in its place"
    );
    world.send(at_a, &message(told(101, 1000)));
    assert_eq!(world.events(), [Seen::Sent(at_b, told(100, 32))], "no more than anybody needs");
    // Another network's node, nobody, oneself.
    for to in [102, 999, 100] {
        world.send(at_a, &message(told(to, 1)));
    }
    world.send(at_stranger, &message(told(101, 1)));
    assert_eq!(world.events(), []);
    // A flood loses what is too much, and recovers.
    for _ in 0..1000 {
        world.send(at_a, &message(init(101)));
    }
    assert!(world.events().len() <= 32);
    world.elapsed += Duration::from_secs(1);
    world.send(at_a, &message(init(101)));
    assert_eq!(world.events(), [Seen::Sent(at_b, init(100))]);
}

#[test]
fn what_a_node_says_of_its_direct_paths_is_kept_while_it_is_connected() {
    let (a, b, stranger) = (Client::new(1), Client::new(2), Client::new(3));
    let foreign = NodeRecord { network_id: NetworkId(2), ..stranger.record(102, true) };
    let mut world = World::new(vec![a.record(100, true), b.record(101, true), foreign]);
    let (at_a, _) = world.join(&a, NodeId(100), 1);
    world.events();
    let endpoint = proto::Endpoint { kind: 0, ip: vec![203, 0, 113, 5], port: 4000, priority: 0 };
    let direct = |node_id| {
        message(ControlMessage::P2pStatus(proto::P2pStatus {
            node_id,
            connected: true,
            endpoint: Some(endpoint.clone()),
            rtt_us: 1500,
            reason: "none".to_owned(),
        }))
    };
    // Its peer; then a node of another network, nobody, and itself.
    for node_id in [101, 102, 999, 100] {
        world.send(at_a, &direct(node_id));
    }
    assert_eq!(world.events(), []);
    let kept: Vec<_> = world.control.direct(NodeId(100)).map(|(peer, status)| (peer, status.clone())).collect();
    let [(peer, status)] = &kept[..] else { panic!("{kept:?}") };
    assert_eq!((*peer, status.connected, status.reason.as_str()), (NodeId(101), true, ""));
    assert_eq!(status.endpoint, Some("203.0.113.5:4000".parse().unwrap()));
    assert_eq!((status.rtt, status.at), (Some(Duration::from_micros(1500)), world.now().unix_ms));

    let reason = format!("UDP is blocked\u{1b}[31m{}", "!".repeat(10_000));
    let relayed = proto::P2pStatus { node_id: 101, endpoint: Some(endpoint), reason, ..Default::default() };
    world.send(at_a, &message(ControlMessage::P2pStatus(relayed)));
    let status = world.control.direct(NodeId(100)).next().unwrap().1.clone();
    assert!(!status.connected && status.endpoint.is_none() && status.rtt.is_none());
    assert!(status.reason.starts_with("UDP is blocked[31m!") && status.reason.len() == 200, "{}", status.reason);

    let now = world.now();
    world.control.disconnect(at_a, now);
    assert_eq!(world.control.direct(NodeId(100)).count(), 0);
}

#[test]
fn nat_and_endpoints_of_a_node_go_to_the_database_cleaned() {
    let a = Client::new(1);
    let mut world = World::new(vec![a.record(100, true)]);
    let (at_a, _) = world.join(&a, NodeId(100), 1);
    world.events();
    let endpoint = |kind, ip: &[u8], port, priority| proto::Endpoint { kind, ip: ip.to_vec(), port, priority };
    let mut told = proto::P2pEndpoint {
        endpoints: vec![
            endpoint(1, &[192, 168, 1, 5], 4000, 1),
            endpoint(1, &[192, 168, 1, 5], 4000, 1),
            endpoint(2, &[203, 0, 113, 5], 4000, 900),
            endpoint(77, &[203, 0, 113, 6], 4000, 2),
            endpoint(2, &[203, 0, 113], 4000, 2),
            endpoint(2, &[203, 0, 113, 7], 70_000, 2),
        ],
        nat_name: "full_cone".to_owned(),
        ..Default::default()
    };
    world.send(at_a, &message(ControlMessage::P2pEndpoint(told.clone())));
    let [Seen::Store(StoreOp::SetEndpoints(kept))] = &world.events()[..] else { panic!("nothing kept") };
    assert_eq!((kept.node, kept.nat_type.as_deref()), (NodeId(100), Some("full_cone")));
    let kept: Vec<_> = kept.endpoints.iter().map(|e| (e.kind.as_str(), e.address.to_string(), e.priority)).collect();
    let (lan, stun) = ("192.168.1.5:4000".to_owned(), "203.0.113.5:4000".to_owned());
    assert_eq!(kept, [("lan", lan, 1), ("stun", stun, 3)]);

    told.nat_name = "<script>".to_owned();
    told.endpoints = (0..10_000).map(|n| endpoint(1, &[10, 0, 0, 1], 1 + n, 1)).collect();
    world.send(at_a, &message(ControlMessage::P2pEndpoint(told)));
    let [Seen::Store(StoreOp::SetEndpoints(kept))] = &world.events()[..] else { panic!("nothing kept") };
    assert_eq!((kept.nat_type.as_deref(), kept.endpoints.len()), (None, 16));
}

#[test]
fn networks_do_not_see_each_other() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut other = b.record(2, true);
    other.network_id = NetworkId(2);
    let mut world = World::new(vec![a.record(1, true), other.clone()]);
    let (_, config) = world.join(&a, NodeId(1), 5);
    assert_eq!(config.peers.iter().map(|p| p.node_id).collect::<Vec<_>>(), [1]);
    world.advance(Duration::from_millis(50));
    world.events();
    other.name = "renamed".to_owned();
    world.apply(11, Change::Node(other));
    world.advance(Duration::from_millis(50));
    assert_eq!(world.events(), []);
}

#[test]
fn a_node_that_is_behind_gets_everything() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let (conn, _) = world.join(&a, NodeId(1), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    let ack =
        proto::Ack { acked_type: 4, config_version: 3, error: "holds version 3".to_owned(), ..Default::default() };
    world.send(conn, &message(ControlMessage::Ack(ack.clone())));
    assert!(matches!(&world.events()[..], [Seen::Sent(_, ControlMessage::Config(_))]));
    world.send(conn, &message(ControlMessage::Ack(ack)));
    assert_eq!(world.events(), [], "at most once a second");
}

#[test]
fn a_resync_finds_what_was_missed() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let (conn, _) = world.join(&a, NodeId(1), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    let snapshot = Snapshot {
        version: 99,
        networks: vec![NetworkRecord {
            id: NetworkId(1),
            name: "default".to_owned(),
            subnet: "10.0.1.0/24".parse().unwrap(),
            subnet6: None,
            description: String::new(),
        }],
        nodes: vec![a.record(1, true), Client::new(3).record(3, true)],
        ..Snapshot::default()
    };
    let now = world.now();
    world.control.resync(snapshot, now, &mut world.rng);
    assert_eq!(world.control.version(), 99);
    world.advance(Duration::from_millis(50));
    let events = world.events();
    let [Seen::Sent(_, ControlMessage::ConfigUpdate(tokens)), Seen::Sent(to, ControlMessage::ConfigUpdate(update))] =
        &events[..]
    else {
        panic!("{events:?}")
    };
    assert!(tokens.tokens.is_some(), "the set of relays changed");
    assert_eq!(*to, conn);
    assert_eq!(update.peers.iter().map(|p| p.node_id).collect::<Vec<_>>(), [3]);
    assert_eq!(update.removed_peers, [2]);
    assert_eq!(update.relays, Some(proto::RelayList::default()));
}

#[test]
fn a_change_of_the_relay_set_brings_fresh_tokens_at_once() {
    let a = Client::new(1);
    let mut world = World::new(vec![a.record(1, true)]);
    let (conn, _) = world.join(&a, NodeId(1), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    let relay = ServerRecord {
        id: ServerId(2),
        name: "second".to_owned(),
        kind: ServerKind::External,
        url: Some("wss://relay.example/ws/data".to_owned()),
        region: String::new(),
        relay: true,
        stun: false,
        stun_ip: None,
        stun_ip2: None,
        stun_port: 3478,
        enabled: true,
    };
    world.apply(11, Change::Server(relay));
    world.advance(Duration::ZERO);
    let events = world.events();
    let [Seen::Sent(to, ControlMessage::ConfigUpdate(update))] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*to, conn);
    let token = update.tokens.clone().unwrap().relay_token;
    let verifier = world.control.issuer().relay_verifier().unwrap();
    for server in [1, 2] {
        assert!(verifier.verify(&token, ServerId(server), START_MS / 1000, 0).is_ok(), "relay {server}");
    }
    // Then the list itself, and no more tokens.
    world.advance(Duration::from_millis(50));
    let events = world.events();
    let [Seen::Sent(_, ControlMessage::ConfigUpdate(update))] = &events[..] else { panic!("{events:?}") };
    assert_eq!(update.relays.as_ref().unwrap().relays.len(), 2);
    assert_eq!(update.tokens, None);
}

#[test]
fn what_was_under_way_when_a_node_lost_its_membership_costs_no_connection() {
    let a = Client::new(1);
    let mut world = World::new(vec![a.record(1, true)]);
    let (conn, _) = world.join(&a, NodeId(1), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    world.apply(11, Change::Node(a.record(1, false)));
    assert_eq!(error_code(&world.events()), Some(ErrorCode::NodeNotAuthorized));
    world.send(conn, &message(ControlMessage::Ack(proto::Ack { acked_type: 3, ..Default::default() })));
    world.send(conn, &a.announce(NodeId(1), 6, START_MS / 1000));
    assert_eq!(world.events(), [], "it goes on waiting");
    world.apply(12, Change::Node(a.record(1, true)));
    assert!(matches!(&world.events()[..], [Seen::Sent(_, ControlMessage::AuthResponse(_))]));
}

#[test]
fn of_two_connections_admitted_at_once_the_last_to_announce_stays() {
    let a = Client::new(1);
    let mut world = World::new(vec![a.record(1, true)]);
    let (first, second) = (world.connect(), world.connect());
    world.authenticate(first, &a);
    world.authenticate(second, &a);
    world.send(first, &a.announce(NodeId(1), 5, START_MS / 1000));
    world.events();
    world.send(second, &a.announce(NodeId(1), 6, START_MS / 1000));
    assert!(world.events().contains(&Seen::Closed(first)));
    let now = world.now();
    world.control.disconnect(first, now);
    assert!(world.control.is_online(NodeId(1)));
    assert_eq!(world.control.stats().connections, 1);
}

mod arbitrary {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever arrives, the core answers or closes, and lives.
        #[test]
        fn bytes_never_panic(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8)) {
            let mut world = World::new(vec![Client::new(1).record(1, true)]);
            let conn = world.connect();
            for mut message in messages {
                if let Some(first) = message.first_mut() {
                    *first = 1;
                }
                world.send(conn, &message);
            }
            world.events();
        }
    }
}

fn announced(cidr: [u8; 4], length: u32, priority: u32, weight: u32) -> proto::Route {
    let cidr = Some(proto::Prefix { address: cidr.to_vec(), length });
    proto::Route { cidr, priority, weight, enabled: true, ..proto::Route::default() }
}

fn announcement(routes: Vec<proto::Route>) -> Vec<u8> {
    let routes = Some(proto::RouteList { routes });
    message(ControlMessage::ConfigUpdate(proto::ConfigUpdate { routes, ..proto::ConfigUpdate::default() }))
}

#[test]
fn announced_routes_are_asked_into_the_database_and_reach_the_others_when_enabled() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let (gateway, _) = world.join(&a, NodeId(1), 5);
    let (peer, config) = world.join(&b, NodeId(2), 5);
    assert!(config.routes.is_empty());
    world.advance(Duration::from_millis(50));
    world.events();

    // One good route among what is none: the overlay, host bits, weight 0, priority 70000, loopback.
    let good = announced([192, 168, 1, 0], 24, 100, 50);
    let bad = [
        announced([10, 0, 1, 0], 25, 1, 1),
        announced([192, 168, 1, 9], 24, 1, 1),
        announced([192, 168, 2, 0], 24, 1, 0),
        announced([192, 168, 3, 0], 24, 70_000, 1),
        announced([127, 0, 0, 0], 8, 1, 1),
        announced([192, 168, 4, 0], 40, 1, 1),
        proto::Route::default(),
    ];
    let all = [vec![good.clone()], bad.to_vec()].concat();
    world.send(gateway, &announcement(all));
    let events = world.events();
    let [Seen::Store(StoreOp::AnnounceRoutes { node: NodeId(1), routes, approve: false })] = &events[..] else {
        panic!("{events:?}")
    };
    let [route] = &routes[..] else { panic!("{routes:?}") };
    assert_eq!(
        (route.cidr.to_string().as_str(), route.priority, route.weight, route.snat),
        ("192.168.1.0/24", 100, 50, true)
    );

    // In the database it waits: nobody hears of it. Approved, everybody does.
    let mut record = RouteRecord {
        id: 1,
        node_id: NodeId(1),
        cidr: route.cidr,
        priority: 100,
        weight: 50,
        enabled: false,
        announced: true,
        snat: true,
    };
    world.apply(20, Change::Routes(NodeId(1), vec![record.clone()]));
    world.advance(Duration::from_millis(50));
    assert_eq!(world.events(), []);
    world.send(gateway, &announcement(vec![good.clone()]));
    assert_eq!(world.events(), [], "what is known is not written again");
    record.enabled = true;
    world.apply(21, Change::Routes(NodeId(1), vec![record]));
    world.advance(Duration::from_millis(50));
    let told = |events: Vec<Seen>| {
        let mut updates = events.into_iter().filter_map(|event| match event {
            Seen::Sent(to, ControlMessage::ConfigUpdate(update)) if to == peer => Some(update),
            _ => None,
        });
        updates.next_back().unwrap_or_else(|| panic!("the peer is told"))
    };
    let update = told(world.events());
    assert!(update.version > update.from_version);
    assert_eq!(update.routes.unwrap().routes, [proto::Route { node_id: 1, ..good.clone() }]);

    // Its side of the subnet dies: told at once, and not a new version.
    world.send(gateway, &announcement(vec![proto::Route { down: true, ..good.clone() }]));
    world.advance(Duration::from_millis(50));
    let update = told(world.events());
    assert_eq!(update.version, update.from_version);
    assert!(update.routes.unwrap().routes[0].down);
}
