//! Authentication on `/ws/data`: exact input, exact output (DESIGN §3).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may, like tests")]

mod common;

use common::*;
use edgelink_auth::challenge;
use edgelink_auth::token::{Confirmation, Issuer, LEEWAY_SECS, TokenKeys};
use edgelink_model::ErrorCode::{
    BadSignature, InvalidMachineKey, InvalidMessage, InvalidToken, MessageTooLarge, TokenExpired, TokenRevoked,
    UnsupportedVersion,
};
use edgelink_model::{ErrorCode, NetworkId, NodeId, ServerId};
use edgelink_relay::{CloseReason, ConnId, ConnectError, RelayEvent};
use edgelink_wire::control::proto;
use std::net::IpAddr;
use std::time::Duration;

const AUTH: u8 = 0x01;

#[test]
fn the_happy_path() {
    let mut world = World::new();
    let token = world.token(100, 7);
    let conn = world.connect();
    world.say(conn, &offer(100, &token));
    assert_eq!(world.events(), [RelayEvent::Writable(conn)]);
    let [Sent::Challenge(nonce)] = world.take(conn)[..] else { panic!("no challenge") };
    world.say(conn, &prove(100, &token, &nonce));
    let (node, network) = (NodeId(100), NetworkId(7));
    assert_eq!(
        world.events(),
        [RelayEvent::Writable(conn), RelayEvent::NodeConnected { conn, node, network, replaced: None }]
    );
    assert_eq!(world.take(conn), [Sent::Welcome { observed_ip: REMOTE.to_vec() }]);
    assert_eq!(world.relay.connection_of(node), Some(conn));
    let stats = world.relay.stats();
    assert_eq!((stats.connections, stats.nodes, stats.authentications, stats.errors), (1, 1, 1, 0));

    world.relay.disconnect(conn, world.now);
    assert_eq!(world.events(), [RelayEvent::NodeDisconnected { conn, node, network }]);
    assert_eq!(world.relay.connection_of(node), None);
    assert_eq!(world.relay.stats().connections, 0);
}

#[test]
fn frames_right_behind_the_signature_are_served() {
    let mut world = World::new();
    let other = world.join(200, 7);
    let token = world.token(100, 7);
    let conn = world.connect();
    let nonce = world.offer(conn, 100, &token);
    world.say(conn, &[prove(100, &token, &nonce), data(100, 200, 1)].concat());
    assert_eq!(world.forwarded(other), [data(100, 200, 1)]);
}

#[test]
fn an_unknown_address_is_not_made_up_and_a_mapped_one_is_ipv4() {
    let observed = |remote: Option<IpAddr>| {
        let mut world = World::new();
        let conn = world.relay.connect(remote, world.now, &mut world.rng).unwrap();
        let token = world.token(1, 7);
        let nonce = world.offer(conn, 1, &token);
        world.say(conn, &prove(1, &token, &nonce));
        match &world.take(conn)[..] {
            [Sent::Welcome { observed_ip }] => observed_ip.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(observed(None), Vec::<u8>::new());
    assert_eq!(observed("::ffff:192.0.2.1".parse().ok()), [192, 0, 2, 1]);
    assert_eq!(observed("2001:db8::1".parse().ok()).len(), 16);
}

/// Shows a token, and expects to be refused with `code`.
fn refused(world: &mut World, message: &[u8], code: ErrorCode) {
    let conn = world.connect();
    world.say(conn, message);
    expect_refusal(world, conn, code);
}

fn expect_refusal(world: &mut World, conn: ConnId, code: ErrorCode) {
    assert_eq!(world.take(conn), [error(code, AUTH, 0)]);
    assert_eq!(world.closed(conn), Some((CloseReason::Refused(code), true)));
    assert_eq!(world.relay.stats().nodes, 0);
    world.relay.disconnect(conn, world.now);
    assert_eq!(world.events(), []);
}

#[test]
fn bad_tokens() {
    let mut world = World::new();
    let good = world.claims(100, 7);
    let sign = |world: &World, claims| offer(100, &world.issuer.relay(claims).unwrap());

    refused(&mut world, &offer(100, ""), InvalidToken);
    refused(&mut world, &offer(100, "not.a.token"), InvalidToken);
    let mut other_relay = good.clone();
    other_relay.allowed_relays = vec![ServerId(1), ServerId(2)];
    let message = sign(&world, &other_relay);
    refused(&mut world, &message, InvalidToken);

    let elsewhere = Issuer::new(&TokenKeys::generate(&mut world.rng));
    refused(&mut world, &offer(100, &elsewhere.relay(&good).unwrap()), InvalidToken);

    let mut future = good.clone();
    future.iat += LEEWAY_SECS + 1;
    let message = sign(&world, &future);
    refused(&mut world, &message, InvalidToken);

    // A token of another kind, by the right issuer.
    let claims = edgelink_auth::token::AuthClaims::new(
        NodeId(100),
        &machine(100).public(),
        NetworkId(7),
        None,
        T0,
        T0 + 60,
        "a".to_owned(),
    );
    let auth_token = world.issuer.auth(&claims).unwrap();
    refused(&mut world, &offer(100, &auth_token), InvalidToken);
}

#[test]
fn an_expired_token_is_refused_from_its_second_on_unless_the_controller_is_lost() {
    let at = |late: u64, lost: bool| {
        let mut world = World::new();
        let token = world.token(100, 7);
        world.pass(Duration::from_secs(LIFE + late));
        world.relay.set_controller_lost(lost, world.now);
        let conn = world.connect();
        world.say(conn, &offer(100, &token));
        world.take(conn).pop().unwrap()
    };
    let accepted = |sent| matches!(sent, Sent::Challenge(_));
    let expired = error(TokenExpired, AUTH, 0);
    assert!(accepted(at(LEEWAY_SECS - 1, false)));
    assert_eq!(at(LEEWAY_SECS, false), expired);
    assert!(accepted(at(LEEWAY_SECS, true)));
    assert!(accepted(at(LEEWAY_SECS + 24 * 3600 - 1, true)));
    assert_eq!(at(LEEWAY_SECS + 24 * 3600, true), expired);
}

#[test]
fn revoked_tokens() {
    let mut world = World::new();
    let token = world.token(100, 7);
    world.relay.revoke(&revoke_jti(&world.claims(100, 7).jti), world.now);
    refused(&mut world, &offer(100, &token), TokenRevoked);

    let mut world = World::new();
    let token = world.token(100, 7);
    world.relay.revoke(&revoke_node(100, T0), world.now);
    let conn = world.connect();
    world.offer(conn, 100, &token); // issued at T0, not before: fine
    world.relay.revoke(&revoke_node(100, T0 + 1), world.now);
    refused(&mut world, &offer(100, &token), TokenRevoked);
    world.say(conn, &prove(100, &token, &[0; 32]));
    expect_refusal(&mut world, conn, BadSignature);
}

#[test]
fn revoked_between_challenge_and_signature() {
    let mut world = World::new();
    let token = world.token(100, 7);
    let conn = world.connect();
    let nonce = world.offer(conn, 100, &token);
    world.relay.set_revocations(&[revoke_node(100, T0 + 1)], world.now);
    world.say(conn, &prove(100, &token, &nonce));
    expect_refusal(&mut world, conn, TokenRevoked);
}

#[test]
fn wrong_machine_keys() {
    let mut world = World::new();
    let token = world.token(100, 7);
    // Another key than the token's.
    refused(&mut world, &offer(101, &token), InvalidMachineKey);
    // The token's key is claimed, but another one signs.
    let conn = world.connect();
    let nonce = world.offer(conn, 100, &token);
    world.say(conn, &prove(101, &token, &nonce));
    expect_refusal(&mut world, conn, BadSignature);
    // A key that is none.
    let mut claims = world.claims(100, 7);
    let weak = edgelink_auth::MachinePublic([0; 32]);
    claims.cnf = Confirmation(weak);
    let token = world.issuer.relay(&claims).unwrap();
    let conn = world.connect();
    let request = proto::AuthRequest { protocol_version: 1, machine_pub: weak.0.to_vec(), token, ..Default::default() };
    world.say(conn, &auth(request));
    assert!(matches!(world.take(conn)[..], [Sent::Challenge(_)]));
    world.say(conn, &signed(vec![0; 64]));
    expect_refusal(&mut world, conn, BadSignature);
}

#[test]
fn signatures_that_were_made_for_something_else() {
    let mut world = World::new();
    let token = world.token(100, 7);
    // For an earlier connection's challenge.
    let first = world.connect();
    let old = world.offer(first, 100, &token);
    let conn = world.connect();
    let nonce = world.offer(conn, 100, &token);
    assert_ne!(old, nonce);
    world.say(conn, &prove(100, &token, &old));
    expect_refusal(&mut world, conn, BadSignature);

    let key = machine(100);
    let wrong = |nonce: &[u8; 32]| {
        [
            // for another relay, another token, the control channel; nothing; too short
            key.sign(&challenge::relay_message(ServerId(1), &token, nonce)).to_vec(),
            key.sign(&challenge::relay_message(RELAY, "another", nonce)).to_vec(),
            key.sign(&challenge::control_message("relay.example", nonce, &key.public())).to_vec(),
            Vec::new(),
            key.sign(&challenge::relay_message(RELAY, &token, nonce))[..63].to_vec(),
        ]
    };
    for n in 0..5 {
        let conn = world.connect();
        let nonce = world.offer(conn, 100, &token);
        world.say(conn, &signed(wrong(&nonce)[n].clone()));
        expect_refusal(&mut world, conn, BadSignature);
    }
}

#[test]
fn one_challenge_is_good_for_one_try() {
    let mut world = World::new();
    let token = world.token(100, 7);
    let conn = world.connect();
    let nonce = world.offer(conn, 100, &token);
    world.say(conn, &signed(vec![0; 64]));
    world.say(conn, &prove(100, &token, &nonce));
    expect_refusal(&mut world, conn, BadSignature);
}

#[test]
fn only_auth_requests_before_authentication() {
    let mut world = World::new();
    let violation = |world: &mut World, message: &[u8], code, answers| {
        let conn = world.connect();
        world.say(conn, message);
        assert_eq!(world.take(conn), [error(code, answers, 0)]);
        assert_eq!(world.closed(conn), Some((CloseReason::Protocol(code), true)));
        world.say(conn, message);
        assert_eq!((world.take(conn), world.events()), (vec![], vec![]), "ignored from then on");
        world.relay.disconnect(conn, world.now);
    };
    violation(&mut world, &data(100, 200, 1), InvalidMessage, 0x10);
    violation(&mut world, &frame(0x20, &[0; 12]), InvalidMessage, 0x20);
    violation(&mut world, &frame(0x77, &[]), InvalidMessage, 0x77);
    violation(&mut world, &frame(AUTH, &[0xff; 9]), InvalidMessage, AUTH); // not protobuf
    violation(&mut world, &[], InvalidMessage, 0);
    violation(&mut world, &[1, AUTH, 0, 0], InvalidMessage, 0);
    violation(&mut world, &[2, AUTH, 0, 0, 0], UnsupportedVersion, 0);
    violation(&mut world, &[1, AUTH, 0x02, 0, 0], InvalidMessage, AUTH); // compressed
    violation(&mut world, &[1, AUTH, 0x04, 0, 0], InvalidMessage, AUTH); // more to come
    violation(&mut world, &frame(AUTH, &[0; 4_092]), MessageTooLarge, 0);

    let conn = world.connect();
    world.say(conn, &frame(AUTH, &[0; 4_091]));
    assert_eq!(world.closed(conn), Some((CloseReason::Protocol(InvalidMessage), true)), "4 KiB are looked at");

    let conn = world.connect();
    world.relay.handle_text(conn, world.now);
    assert_eq!(world.take(conn), [error(InvalidMessage, 0, 0)]);
    assert_eq!(world.closed(conn), Some((CloseReason::Protocol(InvalidMessage), true)));
}

#[test]
fn another_protocol_version_is_refused() {
    let mut world = World::new();
    let token = world.token(100, 7);
    let machine_pub = machine(100).public().0.to_vec();
    let request = proto::AuthRequest { protocol_version: 2, machine_pub, token, ..Default::default() };
    refused(&mut world, &auth(request), UnsupportedVersion);
}

#[test]
fn ten_seconds_to_authenticate() {
    let mut world = World::new();
    let token = world.token(100, 7);
    let conn = world.connect();
    assert_eq!(world.relay.poll_timeout(), Some(world.now.mono + Duration::from_secs(10)));
    world.ms(9_000);
    world.offer(conn, 100, &token);
    world.events();
    world.ms(999);
    assert_eq!(world.events(), []);
    world.ms(1);
    assert_eq!(world.events(), [RelayEvent::Close { conn, reason: CloseReason::HandshakeTimeout, flush: false }]);
    assert_eq!(world.take(conn), []);
}

#[test]
fn unauthenticated_connections_are_counted_by_address() {
    let mut world = World::new();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let connect = |world: &mut World, from: &str| world.relay.connect(Some(ip(from)), world.now, &mut world.rng);
    let conns: Vec<_> = (0..20).map(|_| connect(&mut world, "192.0.2.1").unwrap()).collect();
    let full = Err(ConnectError::TooManyFrom(ip("192.0.2.1")));
    assert_eq!(connect(&mut world, "192.0.2.1"), full);
    assert!(connect(&mut world, "::ffff:192.0.2.1").is_err(), "the same address");
    assert!(connect(&mut world, "192.0.2.2").is_ok());

    // Room again: one authenticates, one is gone, one is closed (gone or not).
    let token = world.token(100, 7);
    let nonce = world.offer(conns[0], 100, &token);
    world.say(conns[0], &prove(100, &token, &nonce));
    world.relay.disconnect(conns[1], world.now);
    world.relay.handle_text(conns[2], world.now);
    world.relay.disconnect(conns[2], world.now);
    world.relay.disconnect(conns[0], world.now);
    assert_eq!((0..9).filter(|_| connect(&mut world, "192.0.2.1").is_ok()).count(), 3);

    // One IPv6 customer has a /64.
    for n in 0..20 {
        connect(&mut world, &format!("2001:db8::{n}")).unwrap();
    }
    assert!(connect(&mut world, "2001:db8::ffff").is_err());
    assert!(connect(&mut world, "2001:db8:0:1::").is_ok());
    assert_eq!(world.relay.stats().refused_connections, 2 + 6 + 1);
}

#[test]
fn connections_are_bounded_in_all() {
    let limits = edgelink_relay::Limits { connections: 3, unauthenticated: 2, ..Default::default() };
    let mut world = World::with_limits(limits);
    world.join(1, 7);
    world.connect();
    let last = world.connect();
    assert_eq!(world.relay.connect(None, world.now, &mut world.rng), Err(ConnectError::TooManyConnections));
    world.relay.disconnect(last, world.now);
    world.relay.disconnect(last, world.now);
    world.connect();
    let mut world = World::with_limits(edgelink_relay::Limits { unauthenticated: 2, ..Default::default() });
    world.connect();
    world.connect();
    assert_eq!(world.relay.connect(None, world.now, &mut world.rng), Err(ConnectError::TooManyUnauthenticated));
}

#[test]
fn the_newer_connection_replaces_the_older_and_outlives_its_end() {
    let mut world = World::new();
    let sender = world.join(200, 7);
    let old = world.join(100, 7);
    world.say(sender, &data(200, 100, 1)); // still queued when the node comes back
    world.events();

    let new = world.connect();
    let token = world.token(100, 7);
    let nonce = world.offer(new, 100, &token);
    world.events();
    world.say(new, &prove(100, &token, &nonce));
    let (node, network) = (NodeId(100), NetworkId(7));
    assert_eq!(
        world.events(),
        [
            RelayEvent::Writable(new),
            RelayEvent::Close { conn: old, reason: CloseReason::Replaced, flush: false },
            RelayEvent::NodeConnected { conn: new, node, network, replaced: Some(old) },
        ]
    );
    // What waited for the former connection comes here.
    assert_eq!(world.take(new), [Sent::Welcome { observed_ip: REMOTE.to_vec() }, Sent::Forwarded(data(200, 100, 1))]);
    assert_eq!(world.take(old), []);

    // The old one speaks and ends late: nothing changes.
    world.say(old, &data(100, 200, 9));
    world.relay.disconnect(old, world.now);
    assert_eq!(world.events(), []);
    assert_eq!(world.relay.connection_of(node), Some(new));
    world.say(sender, &data(200, 100, 2));
    assert_eq!(world.events(), [RelayEvent::Writable(new)]);
    assert_eq!(world.forwarded(new), [data(200, 100, 2)]);
    assert_eq!(world.take(sender), []);

    // Its slot is used again; its id still means nothing.
    let next = world.connect();
    assert_ne!(next, old);
    world.relay.disconnect(old, world.now);
    world.offer(next, 100, &token);
}

#[test]
fn a_token_is_honoured_until_it_ends_and_can_be_refreshed() {
    let mut world = World::new();
    let conn = world.join(100, 7);
    let alive = |world: &mut World, secs: u64| {
        // A PING each 30 s keeps the connection from being idle.
        let end = world.now.mono + Duration::from_secs(secs);
        while world.now.mono < end {
            world.pass((end - world.now.mono).min(Duration::from_secs(30)));
            world.say(conn, &frame(0x21, &[0; 12]));
        }
    };
    alive(&mut world, LIFE - 100);
    let fresh = world.token(100, 7); // ends LIFE from now
    world.say(conn, &offer(100, &fresh));
    assert_eq!(world.take(conn), [Sent::Welcome { observed_ip: REMOTE.to_vec() }]);
    alive(&mut world, LIFE + LEEWAY_SECS - 1);
    assert_eq!(world.closed(conn), None);
    assert_eq!(world.relay.poll_timeout(), Some(world.now.mono + Duration::from_secs(1)));
    world.ms(999);
    assert_eq!(world.closed(conn), None);
    world.ms(1);
    assert_eq!(world.take(conn), [error(TokenExpired, 0, 0)]);
    assert_eq!(world.closed(conn), Some((CloseReason::TokenExpired, true)));
    assert_eq!(world.relay.stats().refreshes, 1);
}

#[test]
fn while_the_controller_is_lost_tokens_live_a_day_longer() {
    let mut world = World::new();
    let conn = world.join(100, 7);
    world.relay.set_controller_lost(true, world.now);
    let step = |world: &mut World, secs| {
        world.say(conn, &frame(0x21, &[0; 12]));
        world.pass(Duration::from_secs(secs));
        world.closed(conn)
    };
    for _ in 0..200 {
        assert_eq!(step(&mut world, 59), None); // 11,800 s: long past the expiry
    }
    assert_eq!(step(&mut world, 40), None);
    world.relay.set_controller_lost(false, world.now);
    world.pass(Duration::from_secs(10));
    assert_eq!(step(&mut world, 49), None);
    assert_eq!(step(&mut world, 1), Some((CloseReason::TokenExpired, true)), "a minute to refresh has passed");
    assert_eq!(world.take(conn), [error(TokenExpired, 0, 0)]);

    let mut world = World::new();
    let conn = world.join(100, 7);
    world.relay.set_controller_lost(true, world.now);
    let mut lived = 0;
    loop {
        world.say(conn, &frame(0x21, &[0; 12]));
        world.pass(Duration::from_secs(30));
        if world.closed(conn).is_some() {
            break;
        }
        lived += 30;
    }
    assert_eq!(lived, LIFE + LEEWAY_SECS + 24 * 3600 - 30);
}

#[test]
fn bad_refreshes_are_answered_and_change_nothing() {
    let mut world = World::new();
    let conn = world.join(100, 7);
    let mut shorter = world.claims(100, 7);
    shorter.exp -= 1_000;
    let mut other_key = world.claims(100, 7);
    other_key.cnf = Confirmation(machine(101).public());
    let mut other_relay = world.claims(100, 7);
    other_relay.allowed_relays = vec![ServerId(1)];
    let mut other_node = world.claims(101, 7);
    other_node.cnf = Confirmation(machine(100).public());
    let tries = [
        (shorter, Sent::Welcome { observed_ip: REMOTE.to_vec() }),
        (other_key, error(InvalidMachineKey, AUTH, 0)),
        (world.claims(100, 8), error(InvalidToken, AUTH, 0)), // another network
        (other_node, error(InvalidToken, AUTH, 0)),
        (other_relay, error(InvalidToken, AUTH, 0)),
    ];
    for (claims, answer) in tries {
        world.ms(1_000);
        let token = world.issuer.relay(&claims).unwrap();
        world.say(conn, &offer(100, &token));
        assert_eq!(world.take(conn), [answer]);
    }
    assert_eq!(world.closed(conn), None);
    assert_eq!(world.relay.connection_of(NodeId(101)), None);
    // The first token is what counts still: it ends LIFE after the start, 5 s of which are gone.
    while world.now.unix_secs() < T0 + LIFE + LEEWAY_SECS - 1 {
        world.say(conn, &frame(0x21, &[0; 12]));
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.closed(conn), None);
    world.ms(1_000);
    assert_eq!(world.closed(conn), Some((CloseReason::TokenExpired, true)));
}

#[test]
fn refreshes_are_rate_limited_since_each_costs_a_verification() {
    let mut world = World::new();
    let conn = world.join(100, 7);
    let token = world.token(100, 7);
    world.say(conn, &offer(100, &token).repeat(10));
    assert_eq!(world.take(conn).len(), 4);
    assert_eq!(world.relay.stats().drops.get(edgelink_relay::DropReason::RateLimited), 6);
}

#[test]
fn revocation_closes_living_connections_at_once() {
    for by_jti in [true, false] {
        let mut world = World::new();
        let (conn, other) = (world.join(100, 7), world.join(200, 7));
        world.say(other, &data(200, 100, 1));
        world.events();
        let record = if by_jti { revoke_jti(&world.claims(100, 7).jti) } else { revoke_node(100, T0 + 1) };
        world.relay.revoke(&record, world.now);
        let (node, network) = (NodeId(100), NetworkId(7));
        assert_eq!(
            world.events(),
            [
                RelayEvent::NodeDisconnected { conn, node, network },
                RelayEvent::Close { conn, reason: CloseReason::Revoked, flush: true },
            ]
        );
        assert_eq!(world.take(conn), [error(TokenRevoked, 0, 0)], "and not the frame that waited");
        world.say(conn, &data(100, 200, 2));
        assert_eq!(world.take(other), []);
        world.say(other, &data(200, 100, 2));
        assert_eq!(world.take(other), [error(ErrorCode::NodeOffline, 0x10, 100)]);
    }
}

#[test]
fn an_expired_revocation_still_closes_what_it_names() {
    let mut world = World::new();
    let conn = world.join(100, 7);
    let record = edgelink_model::records::RevocationRecord { expires_at: T0 - 1, ..revoke_node(100, T0 + 1) };
    world.relay.revoke(&record, world.now);
    assert_eq!(world.closed(conn), Some((CloseReason::Revoked, true)));
    assert!(world.relay.revocations().is_empty());
}
