//! Tokens at the controller: which opens what, when they are renewed, what revoking them does (DESIGN §3).

use crate::world::*;
use base64::Engine as _;
use edgelink_auth::auth_key;
use edgelink_auth::token::{AdminClaims, AuthClaims, Issuer, MeshClaims, RelayClaims, ServerClaims, TokenKeys};
use edgelink_control::{ConnId, ControlConfig, StoreOp};
use edgelink_model::records::{Change, RevocationRecord, RevocationTarget};
use edgelink_model::{ErrorCode, NetworkId, NodeId, ServerId};
use edgelink_wire::FrameType;
use edgelink_wire::control::{ControlMessage, proto};
use edgelink_wire::ping::Ping;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use std::time::Duration;

const NOW: u64 = START_MS / 1000;
/// Opens the door of the node `1`, or of the server `1`, and no other.
const KINDS: [&str; 6] = ["auth", "relay", "admin", "server", "mesh", "auth key"];

/// One token of each kind, all of them good, made by `issuer`.
fn one_of_each(issuer: &Issuer, client: &Client) -> Vec<(&'static str, String)> {
    let machine = client.machine.public();
    let (iat, exp, jti) = (NOW - 10, NOW + 3600, "the-token".to_owned());
    let auth = AuthClaims::new(NodeId(1), &machine, NetworkId(1), None, iat, exp, jti.clone());
    let relay = RelayClaims::new(NodeId(1), &machine, NetworkId(1), vec![ServerId(1)], iat, exp, jti.clone());
    let admin = AdminClaims { admin_id: 1, username: "root".to_owned(), iat, exp, jti: jti.clone() };
    let (server_name, region, capabilities) = ("builtin".to_owned(), String::new(), vec!["relay".to_owned()]);
    let server = ServerClaims { server_id: ServerId(1), server_name, capabilities, region, iat, exp, jti: jti.clone() };
    let mesh = MeshClaims { server_id: ServerId(1), iat, exp, jti };
    let key = auth_key::generate(&mut ChaCha8Rng::seed_from_u64(3)).to_string();
    let made = [
        issuer.auth(&auth).unwrap(),
        issuer.relay(&relay).unwrap(),
        issuer.admin(&admin).unwrap(),
        issuer.server(&server).unwrap(),
        issuer.mesh(&mesh, ServerId(1)).unwrap(),
        key,
    ];
    KINDS.into_iter().zip(made).collect()
}

fn rsa_pem() -> String {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let body = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}

/// What the first event after authentication is.
fn outcome(events: &[Seen]) -> Result<&'static str, ErrorCode> {
    match events {
        [Seen::Sent(_, ControlMessage::AuthResponse(_)), ..] => Ok("let in"),
        [Seen::Store(StoreOp::Enroll { .. })] => Ok("asked the database"),
        other => Err(error_code(other).unwrap_or_else(|| panic!("{other:?}"))),
    }
}

#[test]
fn every_kind_of_token_at_every_door_of_the_controller() {
    let keys = || TokenKeys::generate(&mut ChaCha8Rng::seed_from_u64(9));
    for keys in [keys(), keys().with_hs256(None).unwrap(), keys().with_rs256(&rsa_pem()).unwrap()] {
        let algorithm = keys.algorithm();
        let client = Client::new(1);
        let mut world = World::with_keys(vec![client.record(1, true)], ControlConfig::default(), &keys);
        for (kind, token) in one_of_each(&Issuer::new(&keys), &client) {
            // A node's token on /ws/control.
            let conn = world.connect();
            let events = world.authenticate_with(conn, &client, &token);
            let expected = if kind == "auth" { Ok("let in") } else { Err(ErrorCode::InvalidToken) };
            assert_eq!(outcome(&events), expected, "{algorithm}: {kind} as auth_token");
            assert_eq!(events.contains(&Seen::Closed(conn)), kind != "auth", "{algorithm}: {kind} as auth_token");

            // In place of an auth key: only its hash is looked for, and no token's hash is in the database.
            let conn = world.connect();
            let stranger = Client { auth_key: token.clone(), ..Client::new(7) };
            let events = world.authenticate_with(conn, &stranger, "");
            let [Seen::Store(StoreOp::Enroll { request, .. })] = &events[..] else { panic!("{events:?}") };
            assert_eq!(request.auth_key_hash.as_deref(), Some(auth_key::hash(&token).as_str()));

            // A server's token on /ws/server.
            let now = world.now();
            let conn = world.control.connect_server(now);
            let hello = proto::AuthRequest { protocol_version: 1, token: token.clone(), ..Default::default() };
            world.send(conn, &message(ControlMessage::AuthRequest(hello)));
            let expected = if kind == "server" { Ok("let in") } else { Err(ErrorCode::InvalidToken) };
            assert_eq!(outcome(&world.events()), expected, "{algorithm}: {kind} as server_token");
        }
    }
}

/// An auth_token is one machine's, of one node, for a time.
#[test]
fn an_auth_token_opens_its_own_door_only() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let make = |world: &World, client: &Client, node: u32, network: u32, iat: u64, exp: u64| {
        let machine = client.machine.public();
        let claims = AuthClaims::new(NodeId(node), &machine, NetworkId(network), None, iat, exp, "j".to_owned());
        world.control.issuer().auth(&claims).unwrap()
    };
    let good = make(&world, &a, 1, 1, NOW - 10, NOW + 10);
    let foreign = {
        let keys = TokenKeys::generate(&mut ChaCha8Rng::seed_from_u64(77));
        let claims = AuthClaims::new(NodeId(1), &a.machine.public(), NetworkId(1), None, NOW, NOW + 10, "j".to_owned());
        Issuer::new(&keys).auth(&claims).unwrap()
    };
    for (what, token, expected) in [
        ("good", good.clone(), Ok("let in")),
        ("another machine's", make(&world, &b, 1, 1, NOW - 10, NOW + 10), Err(ErrorCode::InvalidToken)),
        ("another node's", make(&world, &a, 2, 1, NOW - 10, NOW + 10), Err(ErrorCode::InvalidToken)),
        ("another network's", make(&world, &a, 1, 2, NOW - 10, NOW + 10), Err(ErrorCode::InvalidToken)),
        ("expired", make(&world, &a, 1, 1, NOW - 500, NOW - 60), Err(ErrorCode::TokenExpired)),
        ("of the future", make(&world, &a, 1, 1, NOW + 61, NOW + 500), Err(ErrorCode::InvalidToken)),
        ("another installation's", foreign, Err(ErrorCode::InvalidToken)),
        ("nonsense", "a.b.c".to_owned(), Err(ErrorCode::InvalidToken)),
        ("none", String::new(), Ok("asked the database")),
    ] {
        let conn = world.connect();
        assert_eq!(outcome(&world.authenticate_with(conn, &a, &token)), expected, "{what}");
    }
    // The machine key comes first: a stolen token opens nothing.
    let conn = world.connect();
    assert_eq!(outcome(&world.authenticate_with(conn, &b, &good)), Err(ErrorCode::InvalidToken));
}

fn revoke(target: RevocationTarget) -> Change {
    Change::Revoked(RevocationRecord { id: format!("{target:?}"), target, expires_at: NOW + 90_000 })
}

/// Whether the connection was told 1003 and closed by the events that wait.
fn ended(world: &mut World, conn: ConnId) -> bool {
    let events = world.events();
    let closed = events.contains(&Seen::Closed(conn));
    assert_eq!(closed, error_code(&events) == Some(ErrorCode::TokenRevoked), "{events:?}");
    closed
}

#[test]
fn a_revoked_auth_token_ends_its_connection_and_does_not_bar_its_node() {
    let (a, b) = (Client::new(1), Client::new(2));
    let mut world = World::new(vec![a.record(1, true), b.record(2, true)]);
    let (conn, _) = world.join(&a, NodeId(1), 5);
    let (other, _) = world.join(&b, NodeId(2), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    let second = world.connect();
    let events = world.authenticate(second, &a);
    let [Seen::Closed(old), Seen::Sent(_, ControlMessage::AuthResponse(response))] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(*old, conn, "the newest connection wins");
    let token = response.tokens.clone().unwrap().auth_token;

    let jti = world.control.issuer().verify_auth(&token, NOW).unwrap().jti;

    // A token that nobody holds any more ends nothing.
    world.apply(11, revoke(RevocationTarget::Jti("somebody else's".to_owned())));
    assert!(!ended(&mut world, second));
    world.apply(12, revoke(RevocationTarget::Jti(jti)));
    assert!(ended(&mut world, second), "at once");
    let now = world.now();
    world.control.disconnect(second, now);
    let conn = world.connect();
    assert_eq!(outcome(&world.authenticate_with(conn, &a, &token)), Err(ErrorCode::TokenRevoked));
    // Anew, that is, with the machine key alone: the database says whether it may.
    let conn = world.connect();
    let events = world.authenticate_with(conn, &a, "");
    let [Seen::Store(StoreOp::Enroll { conn: waiting, .. })] = events[..] else { panic!("{events:?}") };
    let now = world.now();
    world.control.handle_enrolled(waiting, Ok(a.record(1, true)), now, &mut world.rng);
    assert_eq!(outcome(&world.events()), Ok("let in"));

    // Revoking by node: the same, and other nodes stay.
    world.apply(13, revoke(RevocationTarget::Node { node_id: NodeId(1), issued_before: NOW + 1 }));
    assert!(ended(&mut world, conn));
    world.apply(14, revoke(RevocationTarget::Node { node_id: NodeId(3), issued_before: NOW + 1 }));
    assert!(!ended(&mut world, other));
}

#[test]
fn deauthorizing_bars_the_node_and_keeps_its_connection() {
    let a = Client::new(1);
    let mut world = World::new(vec![a.record(1, true)]);
    let (conn, _) = world.join(&a, NodeId(1), 5);
    world.events();
    // As the database does it: in one transaction.
    let now = world.now();
    let revoked = revoke(RevocationTarget::Node { node_id: NodeId(1), issued_before: NOW + 1 });
    let changes = vec![(11, revoked), (12, Change::Node(a.record(1, false)))];
    world.control.apply(12, changes, now, &mut world.rng);
    let events = world.events();
    assert_eq!(error_code(&events), Some(ErrorCode::NodeNotAuthorized));
    assert!(!events.contains(&Seen::Closed(conn)), "it waits, and is let in by `node authorize`");
    // Its old token opens nothing now.
    let again = world.connect();
    assert!(outcome(&world.authenticate(again, &a)).is_err());
}

/// Nothing but pings for `life`; when a relay_token and when an auth_token came, in seconds.
fn refreshes(world: &mut World, conn: ConnId, life: u64) -> (Vec<u64>, Vec<u64>) {
    let ping = Ping { sent_us: 1, seq: 1 }.encode(FrameType::Ping);
    let (mut relay, mut auth) = (Vec::new(), Vec::new());
    while world.elapsed < Duration::from_secs(life) {
        world.advance(Duration::from_secs(20));
        for event in world.events() {
            let Seen::Sent(to, ControlMessage::ConfigUpdate(update)) = event else { panic!("{event:?}") };
            assert_eq!((to, update.from_version), (conn, update.version), "nothing else changes");
            let tokens = update.tokens.unwrap();
            let at = world.elapsed.as_secs();
            if !tokens.relay_token.is_empty() {
                assert!(tokens.relay_expires > NOW + at);
                relay.push(at);
            }
            if !tokens.auth_token.is_empty() {
                assert!(tokens.auth_expires > NOW + at);
                auth.push(at);
            }
        }
        world.send(conn, &ping);
        world.events();
    }
    (relay, auth)
}

#[test]
fn tokens_are_renewed_two_hours_and_a_quarter_of_an_hour_before_they_end() {
    let client = Client::new(1);
    let mut world = World::new(vec![client.record(1, true)]);
    let (conn, _) = world.join(&client, NodeId(1), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    let (relay, auth) = refreshes(&mut world, conn, 48 * 3600);
    assert!((22 * 3600..=22 * 3600 + 20).contains(&auth[0]), "{auth:?}");
    assert_eq!(auth.len(), 2, "{auth:?}");
    // Every 75 minutes.
    assert!((4500..=4520).contains(&relay[0]), "{relay:?}");
    assert!(relay.windows(2).all(|pair| (4500..=4520).contains(&(pair[1] - pair[0]))), "{relay:?}");
    assert_eq!(relay.len(), 38, "{relay:?}");
}

#[test]
fn short_lived_tokens_are_renewed_in_their_last_quarter() {
    let client = Client::new(1);
    let minutes = |n: u64| Duration::from_secs(n * 60);
    let (auth_token_lifetime, relay_token_lifetime) = (minutes(40), minutes(4));
    let config = ControlConfig { auth_token_lifetime, relay_token_lifetime, ..ControlConfig::default() };
    let mut world = World::with_config(vec![client.record(1, true)], config);
    let (conn, _) = world.join(&client, NodeId(1), 5);
    world.advance(Duration::from_millis(50));
    world.events();
    let (relay, auth) = refreshes(&mut world, conn, 3600);
    assert!((30 * 60..=30 * 60 + 20).contains(&auth[0]), "{auth:?}");
    assert!((180..=200).contains(&relay[0]), "{relay:?}");
}

#[test]
fn expired_revocations_are_forgotten() {
    let a = Client::new(1);
    let mut world = World::new(vec![a.record(1, true)]);
    let record = |id: &str, expires_at| RevocationRecord {
        id: id.to_owned(),
        target: RevocationTarget::Jti(id.to_owned()),
        expires_at,
    };
    world.apply(11, Change::Revoked(record("short", NOW + 100)));
    world.apply(12, Change::Revoked(record("long", NOW + 10_000)));
    assert_eq!(world.control.revocations().count(), 2);
    world.advance(Duration::from_secs(99));
    assert_eq!(world.control.revocations().count(), 2);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.control.revocations().map(|r| r.id.clone()).collect::<Vec<_>>(), ["long"]);
    world.advance(Duration::from_secs(9_900));
    assert_eq!(world.control.revocations().count(), 0);
}
