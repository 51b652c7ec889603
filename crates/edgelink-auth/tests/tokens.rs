//! Tokens through the public API: what each verifier takes, and the many things it must not (DESIGN §3).

#![allow(clippy::unwrap_used, reason = "test code")]

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use edgelink_auth::MachineKey;
use edgelink_auth::token::{
    AdminClaims, Algorithm, AuthClaims, Issuer, KeyError, MAX_TOKEN_LEN, MeshClaims, RelayClaims, RelayVerifier,
    ServerClaims, TokenError, TokenKeys,
};
use edgelink_model::{ErrorCode, NetworkId, NodeId, ServerId};
use jsonwebtoken::{EncodingKey, Header};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use serde_json::{Value, json};

const IAT: u64 = 1_704_067_200;
const EXP: u64 = 1_704_072_600;
const SECRET: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0-secret";

fn relay_claims() -> RelayClaims {
    let machine = MachineKey::from_seed([1; 32]).public();
    let relays = vec![ServerId(1), ServerId(2), ServerId(3)];
    RelayClaims::new(NodeId(123), &machine, NetworkId(1), relays, IAT, EXP, "unique-token-id".to_owned())
}

fn auth_claims() -> AuthClaims {
    let machine = MachineKey::from_seed([1; 32]).public();
    let address = Some("10.0.1.5".parse().unwrap());
    AuthClaims::new(NodeId(123), &machine, NetworkId(1), address, IAT, EXP, "auth-id".to_owned())
}

fn keys() -> TokenKeys {
    TokenKeys::generate(&mut ChaCha20Rng::seed_from_u64(1))
}

fn rsa_pem() -> String {
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    pem("PRIVATE KEY", der.as_ref())
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// One issuer per algorithm.
fn issuers() -> [Issuer; 3] {
    [
        Issuer::new(&keys()),
        Issuer::new(&keys().with_hs256(Some(SECRET)).unwrap()),
        Issuer::new(&keys().with_rs256(&rsa_pem()).unwrap()),
    ]
}

fn verifier(issuer: &Issuer) -> RelayVerifier {
    let (algorithm, key, relay_auth) = issuer.relay_keys();
    RelayVerifier::from_parts(&algorithm, &key, &relay_auth).unwrap()
}

fn payload(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

/// Keys of known seeds: signing 0x41, relay secret 0x42, internal secret 0x43, RELAY_AUTH_KEY 0x44.
fn known_keys() -> TokenKeys {
    let key = |byte: u8| STANDARD.encode([byte; 32]);
    let stored = json!({
        "version": 1, "signing_seed": key(0x41), "relay_secret": key(0x42), "internal_secret": key(0x43), "relay_auth_seed": key(0x44)
    });
    TokenKeys::deserialise(&stored.to_string()).unwrap()
}

/// Both made by an independent implementation (Python, `cryptography`); Ed25519 is deterministic.
#[test]
fn tokens_are_byte_for_byte_what_another_implementation_makes() {
    let issuer = Issuer::new(&known_keys());
    assert_eq!(
        issuer.relay(&relay_claims()).unwrap(),
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSJ9.eyJ0eXBlIjoicmVsYXkiLCJhdWQiOiJlZGdlbGluay1yZWxheSIsIm5vZGVfaWQiOjEyMywibmV0d29ya19pZCI6MSwiYWxsb3dlZF9yZWxheXMiOlsxLDIsM10sImNuZiI6eyJqd2siOnsia3R5IjoiT0tQIiwiY3J2IjoiRWQyNTUxOSIsIngiOiJpb2pqM1hRSjhaWDlVdHN0UExwZGNzcG5DYjhkbEJJYjgzU0lBYlFQYjF3In19LCJpYXQiOjE3MDQwNjcyMDAsImV4cCI6MTcwNDA3MjYwMCwianRpIjoidW5pcXVlLXRva2VuLWlkIn0.vJ7ZKSM5EusrAa9p7d9NJG_MklJsWjo9GSRNuvCN_u-v2ZHkuTf6sEtjJnhETMcKxq-f71Lmy_5FGsKs8aJIAw"
    );
    let mesh = MeshClaims { server_id: ServerId(4), iat: IAT, exp: EXP, jti: "m".to_owned() };
    assert_eq!(
        issuer.mesh(&mesh, ServerId(9)).unwrap(),
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJFZERTQSJ9.eyJ0eXBlIjoibWVzaCIsImF1ZCI6ImVkZ2VsaW5rLXJlbGF5LzkiLCJzZXJ2ZXJfaWQiOjQsImlhdCI6MTcwNDA2NzIwMCwiZXhwIjoxNzA0MDcyNjAwLCJqdGkiOiJtIn0.ovT-2lfN6tk3KoXlHQKcI0k1m4tlloExPk8ZxQv343AbKv1ATK1x9Koei6akird_rAF0zuFG77B3dGiHPYXaAg"
    );
}

#[test]
fn claims_are_those_of_the_specification() {
    let issuer = Issuer::new(&keys());
    assert_eq!(
        payload(&issuer.auth(&auth_claims()).unwrap()),
        json!({
            "type": "auth", "aud": "edgelink-controller", "node_id": 123,
            "machine_key_hash": "sha256:34750f98bd59fcfc946da45aaabe933be154a4b5094e1c4abf42866505f3c97e",
            "network_id": 1, "virtual_ip": "10.0.1.5", "iat": IAT, "exp": EXP, "jti": "auth-id"
        })
    );
    let server = ServerClaims {
        server_id: ServerId(1),
        server_name: "relay-asia-1".to_owned(),
        capabilities: vec!["relay".to_owned(), "stun".to_owned()],
        region: "asia".to_owned(),
        iat: IAT,
        exp: EXP,
        jti: "s".to_owned(),
    };
    assert_eq!(
        payload(&issuer.server(&server).unwrap()),
        json!({
            "type": "server", "aud": "edgelink-controller", "server_id": 1, "server_name": "relay-asia-1",
            "capabilities": ["relay", "stun"], "region": "asia", "iat": IAT, "exp": EXP, "jti": "s"
        })
    );
}

#[test]
fn every_kind_comes_back_under_every_algorithm() {
    let admin = AdminClaims { admin_id: 1, username: "root".to_owned(), iat: IAT, exp: EXP, jti: "a".to_owned() };
    let server = ServerClaims {
        server_id: ServerId(1),
        server_name: "r".to_owned(),
        capabilities: vec![],
        region: String::new(),
        iat: IAT,
        exp: EXP,
        jti: "s".to_owned(),
    };
    let mesh = MeshClaims { server_id: ServerId(4), iat: IAT, exp: EXP, jti: "m".to_owned() };
    for issuer in issuers() {
        let relay = verifier(&issuer);
        assert_eq!(issuer.verify_auth(&issuer.auth(&auth_claims()).unwrap(), IAT), Ok(auth_claims()));
        assert_eq!(issuer.verify_admin(&issuer.admin(&admin).unwrap(), IAT), Ok(admin.clone()));
        assert_eq!(issuer.verify_server(&issuer.server(&server).unwrap(), IAT), Ok(server.clone()));
        assert_eq!(relay.verify(&issuer.relay(&relay_claims()).unwrap(), ServerId(2), IAT, 0), Ok(relay_claims()));
        assert_eq!(relay.verify_mesh(&issuer.mesh(&mesh, ServerId(9)).unwrap(), ServerId(9), IAT, 0), Ok(mesh.clone()));
        // Its own verifier knows nothing that a relay's does not.
        let built_in = issuer.relay_verifier().unwrap();
        assert_eq!(built_in.verify(&issuer.relay(&relay_claims()).unwrap(), ServerId(2), IAT, 0), Ok(relay_claims()));
    }
}

/// Every kind of token, auth keys included, at every verifier, under every algorithm: each opens one door.
#[test]
fn no_kind_passes_for_another() {
    let key = edgelink_auth::auth_key::generate(&mut ChaCha20Rng::seed_from_u64(3)).to_string();
    for issuer in issuers() {
        let relay = verifier(&issuer);
        let admin = AdminClaims { admin_id: 1, username: "root".to_owned(), iat: IAT, exp: EXP, jti: "a".to_owned() };
        let mesh = MeshClaims { server_id: ServerId(4), iat: IAT, exp: EXP, jti: "m".to_owned() };
        let server = ServerClaims {
            server_id: ServerId(1),
            server_name: "r".to_owned(),
            capabilities: vec![],
            region: String::new(),
            iat: IAT,
            exp: EXP,
            jti: "s".to_owned(),
        };
        let tokens = [
            ("auth", issuer.auth(&auth_claims()).unwrap()),
            ("admin", issuer.admin(&admin).unwrap()),
            ("server", issuer.server(&server).unwrap()),
            ("relay", issuer.relay(&relay_claims()).unwrap()),
            ("mesh", issuer.mesh(&mesh, ServerId(1)).unwrap()),
            ("auth key", key.clone()),
        ];
        type Door<'a> = (&'a str, Box<dyn Fn(&str) -> Result<(), TokenError> + 'a>);
        let doors: [Door<'_>; 5] = [
            ("auth", Box::new(|t| issuer.verify_auth(t, IAT).map(|_| ()))),
            ("admin", Box::new(|t| issuer.verify_admin(t, IAT).map(|_| ()))),
            ("server", Box::new(|t| issuer.verify_server(t, IAT).map(|_| ()))),
            ("relay", Box::new(|t| relay.verify(t, ServerId(1), IAT, 0).map(|_| ()))),
            ("mesh", Box::new(|t| relay.verify_mesh(t, ServerId(1), IAT, 0).map(|_| ()))),
        ];
        for (kind, token) in &tokens {
            for (door, open) in &doors {
                let expected = if kind == door { Ok(()) } else { Err(TokenError::Invalid) };
                assert_eq!(open(token), expected, "{}: {kind} at the door for {door}", issuer.algorithm());
            }
            assert_eq!(ServerClaims::peek(token).is_some(), *kind == "server", "{kind}");
        }
    }
}

#[test]
fn a_token_is_for_the_relays_that_it_names() {
    let issuer = Issuer::new(&keys());
    let relay = verifier(&issuer);
    let token = issuer.relay(&relay_claims()).unwrap();
    assert_eq!(relay.verify(&token, ServerId(4), IAT, 0), Err(TokenError::OtherRelay));
    let nowhere = issuer.relay(&RelayClaims { allowed_relays: vec![], ..relay_claims() }).unwrap();
    assert_eq!(relay.verify(&nowhere, ServerId(1), IAT, 0), Err(TokenError::OtherRelay));
    let mesh = MeshClaims { server_id: ServerId(4), iat: IAT, exp: EXP, jti: "m".to_owned() };
    let mesh = issuer.mesh(&mesh, ServerId(9)).unwrap();
    for other in [4, 90, 0] {
        assert_eq!(relay.verify_mesh(&mesh, ServerId(other), IAT, 0), Err(TokenError::Invalid));
    }
}

#[test]
fn time_is_ours_with_a_minute_of_leeway_and_a_relays_grace() {
    for issuer in issuers() {
        let relay = verifier(&issuer);
        let token = issuer.relay(&relay_claims()).unwrap();
        let at = |now, grace| relay.verify(&token, ServerId(1), now, grace).map(|_| ());
        assert_eq!(at(IAT - 61, 0), Err(TokenError::NotYetValid));
        assert_eq!(at(IAT - 60, 0), Ok(()));
        assert_eq!(at(EXP + 59, 0), Ok(()));
        assert_eq!(at(EXP + 60, 0), Err(TokenError::Expired));
        assert_eq!(at(EXP + 86_459, 86_400), Ok(()));
        assert_eq!(at(EXP + 86_460, 86_400), Err(TokenError::Expired));
        assert_eq!(at(u64::MAX, 0), Err(TokenError::Expired));
        assert_eq!(at(u64::MAX - 1, u64::MAX), Ok(()), "an endless grace does not wrap");
    }
}

/// Signed by the right key, and still wrong: only a broken issuer makes such tokens.
#[test]
fn odd_claims_are_refused_though_signed() {
    let issuer = Issuer::new(&keys().with_hs256(Some(SECRET)).unwrap());
    let relay = verifier(&issuer);
    let good = payload(&issuer.relay(&relay_claims()).unwrap());
    let with = |edit: &dyn Fn(&mut Value)| {
        let mut claims = good.clone();
        edit(&mut claims);
        let token =
            jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap();
        relay.verify(&token, ServerId(1), IAT, 0).map(|_| ())
    };
    assert_eq!(with(&|_| ()), Ok(()));
    assert_eq!(with(&|c| c["nbf"] = json!(IAT + 60)), Ok(()));
    assert_eq!(with(&|c| c["nbf"] = json!(IAT + 61)), Err(TokenError::NotYetValid));
    assert_eq!(with(&|c| c["iat"] = json!(IAT + 61)), Err(TokenError::NotYetValid));
    for missing in ["type", "aud", "exp", "iat", "jti", "cnf", "node_id", "network_id", "allowed_relays"] {
        assert_eq!(with(&|c| _ = c.as_object_mut().unwrap().remove(missing)), Err(TokenError::Invalid), "{missing}");
    }
    for (key, value) in [
        ("aud", json!(["edgelink-relay"])),
        ("aud", json!("edgelink-relay/1")),
        ("exp", json!("1704072600")),
        ("exp", json!(-1)),
        ("nbf", json!("soon")),
        ("node_id", json!(4_294_967_296_u64)),
        ("cnf", json!({"jwk": {"kty": "OKP", "crv": "X25519", "x": "AA"}})),
        ("cnf", json!({"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "AA"}})),
    ] {
        assert_eq!(with(&|c| c[key] = value.clone()), Err(TokenError::Invalid), "{key} {value}");
    }
}

#[test]
fn the_header_chooses_no_algorithm() {
    let b64 = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    for issuer in issuers() {
        let relay = verifier(&issuer);
        let token = issuer.relay(&relay_claims()).unwrap();
        let (_, claims_and_signature) = token.split_once('.').unwrap();
        let claims = claims_and_signature.split('.').next().unwrap();
        for algorithm in ["none", "None", "", "HS256", "HS384", "HS512", "EdDSA", "RS256", "PS256", "ES256"] {
            if algorithm == issuer.algorithm().name() {
                continue;
            }
            let header = b64(json!({"typ": "JWT", "alg": algorithm}));
            for forged in [format!("{header}.{claims_and_signature}"), format!("{header}.{claims}.")] {
                assert_eq!(relay.verify(&forged, ServerId(1), IAT, 0), Err(TokenError::Invalid), "{algorithm}");
            }
        }
        // The classic confusion: HS256 under the bytes of the public key.
        let (name, key, _) = issuer.relay_keys();
        if name != "HS256" {
            let forged = jsonwebtoken::encode(
                &Header::new(jsonwebtoken::Algorithm::HS256),
                &payload(&token),
                &EncodingKey::from_secret(&key),
            );
            assert_eq!(relay.verify(&forged.unwrap(), ServerId(1), IAT, 0), Err(TokenError::Invalid));
        }
    }
}

#[test]
fn what_relays_hold_under_hs256_makes_relay_tokens_only() {
    let issuer = Issuer::new(&keys().with_hs256(Some(SECRET)).unwrap());
    let (_, stolen, _) = issuer.relay_keys();
    assert_eq!(stolen, SECRET.as_bytes());
    let forge =
        |claims: Value| jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(&stolen)).unwrap();
    let auth = payload(&issuer.auth(&auth_claims()).unwrap());
    assert_eq!(issuer.verify_auth(&forge(auth), IAT), Err(TokenError::Invalid));
    let admin = json!({"type": "admin", "aud": "edgelink-api", "admin_id": 1, "username": "root", "iat": IAT, "exp": EXP, "jti": "a"});
    assert_eq!(issuer.verify_admin(&forge(admin), IAT), Err(TokenError::Invalid));
}

#[test]
fn every_flipped_character_and_every_truncation_is_refused() {
    for issuer in issuers() {
        let relay = verifier(&issuer);
        let token = issuer.relay(&relay_claims()).unwrap();
        for at in 0..token.len() {
            assert_eq!(relay.verify(&token[..at], ServerId(1), IAT, 0), Err(TokenError::Invalid));
            let mut bad = token.clone().into_bytes();
            // Bit 1 and not bit 0: the last character's lowest bits may be padding.
            bad[at] ^= 0b10;
            if let Ok(bad) = String::from_utf8(bad) {
                let outcome = relay.verify(&bad, ServerId(1), IAT, 0);
                assert!(outcome.is_err(), "{} at {at}", issuer.algorithm());
            }
        }
        let long = format!("{token}{}", "A".repeat(MAX_TOKEN_LEN));
        assert_eq!(relay.verify(&long, ServerId(1), IAT, 0), Err(TokenError::Invalid));
    }
}

#[test]
fn another_installations_tokens_are_refused() {
    let ours = Issuer::new(&keys());
    let theirs = Issuer::new(&TokenKeys::generate(&mut ChaCha20Rng::seed_from_u64(2)));
    let token = theirs.relay(&relay_claims()).unwrap();
    assert_eq!(verifier(&ours).verify(&token, ServerId(1), IAT, 0), Err(TokenError::Invalid));
    assert_eq!(ours.verify_auth(&theirs.auth(&auth_claims()).unwrap(), IAT), Err(TokenError::Invalid));
}

#[test]
fn keys_survive_being_stored() {
    let keys = keys();
    let back = TokenKeys::deserialise(&keys.serialise()).unwrap();
    assert_eq!(Issuer::new(&keys).relay_keys(), Issuer::new(&back).relay_keys());
    // A generated HS256 secret survives too, and so does the internal one.
    let (a, b) = (Issuer::new(&keys.with_hs256(None).unwrap()), Issuer::new(&back.with_hs256(None).unwrap()));
    assert_eq!(a.relay_keys(), b.relay_keys());
    assert_eq!(b.verify_auth(&a.auth(&auth_claims()).unwrap(), IAT), Ok(auth_claims()));
    for damaged in ["", "{}", "null", "{\"version\":1}"] {
        assert_eq!(TokenKeys::deserialise(damaged).map(|_| ()), Err(KeyError::Damaged));
    }
}

#[test]
fn placeholder_and_short_secrets_are_refused_with_the_cure() {
    let refusal = |secret: &str| keys().with_hs256(Some(secret)).map(|_| ()).unwrap_err();
    for placeholder in [
        "your-secret-key-change-me",
        "CHANGE_ME",
        "CHANGE_ME_to_something_very_long_and_secret_please",
        "same-secret-as-controller",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ] {
        let error = refusal(placeholder);
        assert_eq!(error, KeyError::Placeholder);
        assert!(error.to_string().contains("openssl rand -base64 48"));
    }
    let short = &SECRET[..31];
    assert_eq!(refusal(short), KeyError::ShortSecret { len: 31 });
    assert!(!refusal(short).to_string().contains(short), "a secret is never quoted");
    assert!(keys().with_hs256(Some(&SECRET[..32])).is_ok());
}

#[test]
fn bad_keys_are_refused() {
    let public = pem("PUBLIC KEY", b"not a key");
    for bad in ["", "nonsense", public.as_str(), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        assert_eq!(keys().with_rs256(bad).map(|_| ()), Err(KeyError::BadRsaKey));
    }
    let relay_auth = MachineKey::from_seed([5; 32]).public().0;
    let parts = |algorithm: &str, key: &[u8]| RelayVerifier::from_parts(algorithm, key, &relay_auth).map(|_| ());
    assert_eq!(parts("none", &[]), Err(KeyError::UnknownAlgorithm("none".to_owned())));
    assert_eq!(parts("HS256", b"short"), Err(KeyError::ShortSecret { len: 5 }));
    assert_eq!(parts("EdDSA", &[0; 31]), Err(KeyError::BadPublicKey(Algorithm::EdDsa)));
    let mut neutral = [0; 32];
    neutral[0] = 1;
    assert_eq!(parts("EdDSA", &neutral), Err(KeyError::BadPublicKey(Algorithm::EdDsa)));
    assert_eq!(parts("RS256", b"no der"), Err(KeyError::BadPublicKey(Algorithm::Rs256)));
    assert!(RelayVerifier::from_parts("EdDSA", &relay_auth, &[1; 31]).is_err());
}

#[test]
fn debug_shows_no_secret() {
    let keys = known_keys().with_hs256(Some(SECRET)).unwrap();
    let issuer = Issuer::new(&keys);
    let shown = format!("{keys:?} {issuer:?} {:?}", verifier(&issuer));
    assert_eq!(
        shown,
        "TokenKeys { algorithm: Hs256, .. } Issuer { algorithm: Hs256, .. } RelayVerifier { relay: Verifier { algorithm: Hs256, .. }, mesh: Verifier { algorithm: EdDsa, .. } }"
    );
}

#[test]
fn refusals_have_the_specifications_codes() {
    assert_eq!(TokenError::Invalid.code(), ErrorCode::InvalidToken);
    assert_eq!(TokenError::Expired.code(), ErrorCode::TokenExpired);
    assert_eq!(TokenError::Revoked.code(), ErrorCode::TokenRevoked);
    assert_eq!(TokenError::OtherRelay.code(), ErrorCode::InvalidToken);
}

#[test]
fn a_server_reads_its_own_token_without_being_able_to_verify_it() {
    let claims = ServerClaims {
        server_id: ServerId(7),
        server_name: "r7".to_owned(),
        capabilities: vec!["relay".to_owned()],
        region: "asia".to_owned(),
        iat: IAT,
        exp: EXP,
        jti: "server-id".to_owned(),
    };
    let [issuer, ..] = issuers();
    let token = issuer.server(&claims).unwrap();
    assert_eq!(ServerClaims::peek(&token), Some(claims));
    let long = format!("a.{}.c", "A".repeat(MAX_TOKEN_LEN));
    for other in
        [issuer.auth(&auth_claims()).unwrap(), "not a token".to_owned(), "a.b.c".to_owned(), String::new(), long]
    {
        assert_eq!(ServerClaims::peek(&other), None);
    }
}
