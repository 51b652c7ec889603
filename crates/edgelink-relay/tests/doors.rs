//! Every kind of token at every door of a relay, under every algorithm (DESIGN §3): `/ws/data` opens to relay_tokens, to a
//! fresh one on a living connection, and `/ws/mesh` to mesh tokens, each for this relay.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use base64::Engine as _;
use common::*;
use edgelink_auth::auth_key;
use edgelink_auth::token::{AdminClaims, AuthClaims, Issuer, MeshClaims, ServerClaims, TokenKeys};
use edgelink_model::ErrorCode::InvalidToken;
use edgelink_model::{NetworkId, NodeId, ServerId};
use edgelink_relay::{CloseReason, RelayEvent};
use edgelink_wire::Flags;
use edgelink_wire::control::{self, proto};
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng as _;

/// The frame type that errors answer.
const AUTH: u8 = 0x01;
const OTHER: ServerId = ServerId(4);

fn rsa_pem() -> String {
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let body = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}

#[test]
fn every_kind_of_token_at_every_door_of_a_relay() {
    let keys = || TokenKeys::generate(&mut ChaCha12Rng::seed_from_u64(9));
    for keys in [keys(), keys().with_hs256(None).unwrap(), keys().with_rs256(&rsa_pem()).unwrap()] {
        let mut world = World::new();
        world.issuer = Issuer::new(&keys);
        world.relay.set_verifier(world.issuer.relay_verifier().unwrap());
        // Both relays are in use.
        let relays = [OTHER, RELAY].map(|id| proto::Relay { id: id.0, ..Default::default() }).to_vec();
        let config = control::encode(&proto::Config { relays, ..Default::default() }, Flags::NONE).unwrap();
        world.relay.restore(&config, world.now).unwrap();
        let (iat, exp) = (T0, T0 + LIFE);
        let public = machine(100).public();
        let auth_claims = AuthClaims::new(NodeId(100), &public, NetworkId(7), None, iat, exp, "a".to_owned());
        let admin = AdminClaims { admin_id: 1, username: "root".to_owned(), iat, exp, jti: "b".to_owned() };
        let server = ServerClaims {
            server_id: OTHER,
            server_name: "r".to_owned(),
            capabilities: vec!["relay".to_owned()],
            region: String::new(),
            iat,
            exp,
            jti: "c".to_owned(),
        };
        let mesh = MeshClaims { server_id: OTHER, iat, exp, jti: "d".to_owned() };
        let tokens = [
            ("relay", world.token(100, 7)),
            ("auth", world.issuer.auth(&auth_claims).unwrap()),
            ("admin", world.issuer.admin(&admin).unwrap()),
            ("server", world.issuer.server(&server).unwrap()),
            ("mesh", world.issuer.mesh(&mesh, RELAY).unwrap()),
            ("mesh for another", world.issuer.mesh(&mesh, ServerId(1)).unwrap()),
            ("auth key", auth_key::generate(&mut ChaCha12Rng::seed_from_u64(3)).to_string()),
        ];
        for (kind, token) in tokens {
            let what = format!("{}: {kind}", keys.algorithm());
            let refused = [error(InvalidToken, AUTH, 0)];

            // /ws/data
            let conn = world.connect();
            world.say(conn, &offer(100, &token));
            let sent = world.take(conn);
            match kind {
                "relay" => assert!(matches!(sent[..], [Sent::Challenge(_)]), "{what}: {sent:?}"),
                _ => assert_eq!(sent, refused, "{what}"),
            }
            world.relay.disconnect(conn, world.now);
            world.events();

            // In place of a fresh token, on a living connection: which lives on.
            let conn = world.join(100, 7);
            world.say(conn, &auth(proto::AuthRequest { token: token.clone(), ..Default::default() }));
            let sent = world.take(conn);
            match kind {
                "relay" => assert!(matches!(sent[..], [Sent::Welcome { .. }]), "{what}: {sent:?}"),
                _ => assert_eq!(sent, refused, "{what}"),
            }
            assert_eq!(world.closed(conn), None, "{what}");
            world.relay.disconnect(conn, world.now);
            world.events();

            // /ws/mesh
            let conn = world.relay.connect_mesh(None, world.now).unwrap();
            let hello = proto::AuthRequest { protocol_version: 1, token, ..Default::default() };
            world.say(conn, &auth(hello));
            let closed = world.events().into_iter().find_map(|event| match event {
                RelayEvent::Close { conn: c, reason, .. } if c == conn => Some(reason),
                _ => None,
            });
            let expected = (kind != "mesh").then_some(CloseReason::Refused(InvalidToken));
            assert_eq!(closed, expected, "{what} on /ws/mesh");
            world.relay.disconnect(conn, world.now);
            world.events();
        }
    }
}
