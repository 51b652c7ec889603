//! Tokens and key statements: exactly those that were issued are taken, by exactly the verifier that they are for.

use crate::input::Input;
use crate::world::{ME, NETWORK, fresh_key, machine};
use edgelink_auth::token::{
    AdminClaims, AuthClaims, Issuer, MeshClaims, RelayClaims, RelayVerifier, ServerClaims, TokenKeys,
};
use edgelink_auth::{KeyStatement, SignedStatement};
use edgelink_model::{NodeId, ServerId};
use rand_core::SeedableRng;
use std::sync::LazyLock;

const NOW: u64 = 1_700_000_000;
const RELAY: ServerId = ServerId(3);
const STATEMENT: u8 = 0xff;

/// An installation: what issues, what verifies, and all that was ever issued.
struct Installation {
    issuer: Issuer,
    relay: RelayVerifier,
    /// Auth, relay, admin, server, mesh.
    issued: [String; 5],
}

static INSTALLATIONS: LazyLock<[Installation; 2]> = LazyLock::new(|| {
    let keys = |seed| TokenKeys::generate(&mut rand_chacha::ChaCha20Rng::seed_from_u64(seed));
    [keys(1), keys(2).with_hs256(None).unwrap()].map(|keys| {
        let issuer = Issuer::new(&keys);
        let (iat, exp, node, machine) = (NOW - 10, NOW + 3_600, NodeId(100), machine(1).public());
        let issued = [
            issuer.auth(&AuthClaims::new(node, &machine, NETWORK, None, iat, exp, "a".into())),
            issuer.relay(&RelayClaims::new(node, &machine, NETWORK, vec![RELAY], iat, exp, "r".into())),
            issuer.admin(&AdminClaims { admin_id: 1, username: "root".into(), iat, exp, jti: "d".into() }),
            issuer.server(&ServerClaims {
                server_id: RELAY,
                server_name: "s".into(),
                capabilities: vec!["relay".into()],
                region: String::new(),
                iat,
                exp,
                jti: "s".into(),
            }),
            issuer.mesh(&MeshClaims { server_id: ServerId(2), iat, exp, jti: "m".into() }, RELAY),
        ]
        .map(Result::unwrap);
        Installation { relay: issuer.relay_verifier().unwrap(), issuer, issued }
    })
});

static SIGNED: LazyLock<SignedStatement> = LazyLock::new(|| fresh_key(&machine(1), ME, 9, NOW, 1).1);

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = INSTALLATIONS
        .iter()
        .enumerate()
        .flat_map(|(n, installation)| {
            installation.issued.iter().map(move |token| [&[n as u8], token.as_bytes()].concat())
        })
        .collect();
    // alg none, and an empty signature.
    seeds.push(
        b"\x00eyJhbGciOiJub25lIn0.eyJ0eXBlIjoicmVsYXkiLCJhdWQiOiJlZGdlbGluay1yZWxheSIsImV4cCI6MTgwMDAwMDAwMH0."
            .to_vec(),
    );
    seeds.push([&[STATEMENT], &SIGNED.bytes()[..], SIGNED.signature()].concat());
    seeds
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let which = input.u8();
    if which == STATEMENT { statement(input.0) } else { token(which, &String::from_utf8_lossy(input.0)) }
}

fn token(which: u8, token: &str) {
    let installation = &INSTALLATIONS[usize::from(which) % 2];
    let Installation { issuer, relay, issued } = installation;
    let taken = [
        issuer.verify_auth(token, NOW).is_ok(),
        relay.verify(token, RELAY, NOW, 0).is_ok(),
        issuer.verify_admin(token, NOW).is_ok(),
        issuer.verify_server(token, NOW).is_ok(),
        relay.verify_mesh(token, RELAY, NOW, 0).is_ok(),
    ];
    assert_eq!(taken, issued.each_ref().map(|one| one == token));
    assert!(relay.verify(token, ServerId(4), NOW, 0).is_err(), "for another relay");
    assert!(relay.verify(token, RELAY, NOW + 10_000, 0).is_err(), "after its time");
}

fn statement(bytes: &[u8]) {
    let (text, signature) = bytes.split_at(bytes.len().min(120));
    if let Ok(statement) = KeyStatement::parse(text) {
        assert_eq!(statement.encode(), text);
        let _ = statement.check_time(NOW);
    }
    let genuine = text == SIGNED.bytes() && signature == SIGNED.signature();
    assert_eq!(SignedStatement::verify(text, signature).is_ok(), genuine);
}
