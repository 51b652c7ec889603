//! Whom a client trusts, over real TLS connections.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::*;
use edgelink_net::{
    tls::{self, ClientTls, Pin, TlsError},
    ws::DialError,
};
use rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS12,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

fn pin_of(ca: &Ca) -> Pin {
    tls::spki_pin(ca.der()).unwrap()
}

#[test]
fn a_known_ca_is_trusted_for_its_names_and_ipv4() {
    run(async {
        let ca = ca("ours", ALWAYS);
        let address = serve(Some(issue(&ca, &["localhost", "127.0.0.1"], ALWAYS).server()), echo);
        for host in ["localhost", "127.0.0.1"] {
            let socket = round_trip(&wss(address, host, trusting(&ca))).await.unwrap();
            assert_eq!(socket.conn().tls_version(), Some(ProtocolVersion::TLSv1_3), "the newer one is preferred");
            assert_eq!(socket.peer_addr(), Some(address));
        }
    });
}

#[test]
fn a_ca_file_is_trusted_and_a_bad_one_named() {
    run(async {
        let ca = ca("ours", ALWAYS);
        let address = serve(Some(issue(&ca, &["localhost"], ALWAYS).server()), echo);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let config = || tls::client_config(&ClientTls { ca_file: Some(file.clone()), ..Default::default() });

        let error = config().unwrap_err();
        assert!(matches!(&error, TlsError::CaFile { path, .. } if *path == file), "{error}");
        std::fs::write(&file, "not PEM").unwrap();
        let error = config().unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("-----BEGIN CERTIFICATE-----"), "{error}");
        std::fs::write(&file, ca.pem()).unwrap();
        round_trip(&wss(address, "localhost", config().unwrap())).await.unwrap();
    });
}

#[test]
fn an_unknown_ca_is_refused_with_advice() {
    run(async {
        let address = serve(Some(issue(&ca("theirs", ALWAYS), &["localhost"], ALWAYS).server()), echo);
        let error = round_trip(&wss(address, "localhost", any_client())).await.unwrap_err();
        assert!(matches!(error, DialError::UnknownCa { .. }), "{error:?}");
        assert!(error.to_string().contains("`pin`") && error.to_string().contains("`ca_file`"), "{error}");
    });
}

#[test]
fn names_and_periods_count_with_a_known_ca() {
    run(async {
        let ca = ca("ours", ALWAYS);
        let address = serve(Some(issue(&ca, &["other.example"], ALWAYS).server()), echo);
        let error = round_trip(&wss(address, "localhost", trusting(&ca))).await.unwrap_err().to_string();
        assert!(error.contains("not for localhost") && error.contains("other.example"), "{error}");

        for (years, word) in [(PAST, "expired"), (FUTURE, "not valid yet")] {
            let address = serve(Some(issue(&ca, &["localhost"], years).server()), echo);
            let error = round_trip(&wss(address, "localhost", trusting(&ca))).await.unwrap_err();
            assert!(matches!(error, DialError::Validity { .. }), "{error:?}");
            assert!(error.to_string().contains(word) && error.to_string().contains("clock"), "{error}");
        }
    });
}

#[test]
fn an_sni_replaces_the_name() {
    run(async {
        let ca = ca("ours", ALWAYS);
        let address = serve(Some(issue(&ca, &["front.example"], ALWAYS).server()), echo);
        let mut dial = wss(address, "127.0.0.1", trusting(&ca));
        assert!(matches!(round_trip(&dial).await, Err(DialError::WrongName { .. })));
        dial.sni = Some("front.example".into());
        round_trip(&dial).await.unwrap();
    });
}

#[test]
fn a_pinned_leaf_needs_neither_ca_nor_name() {
    run(async {
        let identity = issue(&ca("theirs", ALWAYS), &["other.example"], ALWAYS);
        let address = serve(Some(identity.server()), echo);
        round_trip(&wss(address, "127.0.0.1", pinned(identity.pin))).await.unwrap();
    });
}

#[test]
fn a_pinned_ca_is_trusted_for_what_it_issued_and_only_for_its_names() {
    run(async {
        let ca = ca("controller", ALWAYS);
        let address = serve(Some(issue(&ca, &["localhost"], ALWAYS).server()), echo);
        round_trip(&wss(address, "localhost", pinned(pin_of(&ca)))).await.unwrap();
        let error = round_trip(&wss(address, "127.0.0.1", pinned(pin_of(&ca)))).await.unwrap_err();
        assert!(matches!(error, DialError::WrongName { .. }), "{error:?}");
    });
}

#[test]
fn a_wrong_pin_shows_all_pins() {
    run(async {
        let ca = ca("controller", ALWAYS);
        let identity = issue(&ca, &["localhost"], ALWAYS);
        let address = serve(Some(identity.server()), echo);
        let wrong = Pin([7; 32]);
        let error = round_trip(&wss(address, "localhost", pinned(wrong))).await.unwrap_err().to_string();
        for pin in [wrong, identity.pin, pin_of(&ca)] {
            assert!(error.contains(&pin.to_string()), "{pin} is not in: {error}");
        }
    });
}

#[test]
fn a_pin_does_not_outlive_the_certificate() {
    run(async {
        for years in [PAST, FUTURE] {
            let good_ca = ca("controller", ALWAYS);
            let leaf = issue(&good_ca, &["localhost"], years);
            let address = serve(Some(leaf.server()), echo);
            for pin in [leaf.pin, pin_of(&good_ca)] {
                let error = round_trip(&wss(address, "localhost", pinned(pin))).await.unwrap_err();
                assert!(matches!(error, DialError::Validity { .. }), "{error:?}");
            }
            let bad_ca = ca("controller", years);
            let address = serve(Some(issue(&bad_ca, &["localhost"], ALWAYS).server()), echo);
            let error = round_trip(&wss(address, "localhost", pinned(pin_of(&bad_ca)))).await.unwrap_err();
            assert!(matches!(error, DialError::Validity { .. }), "{error:?}");
        }
    });
}

/// Somebody in between can send the pinned CA's certificate, which is public, behind a leaf of their own.
#[test]
fn a_pinned_ca_must_have_signed_the_leaf() {
    run(async {
        let pinned_ca = ca("controller", ALWAYS);
        // The same subject, so that only the signature tells the two apart.
        let forged = issue(&ca("controller", ALWAYS), &["localhost"], ALWAYS);
        let forged = Identity { chain: forged.chain + &pinned_ca.pem(), ..forged };
        let address = serve(Some(forged.server()), echo);
        let error = round_trip(&wss(address, "localhost", pinned(pin_of(&pinned_ca)))).await.unwrap_err();
        assert!(matches!(error, DialError::Tls { .. } | DialError::UnknownCa { .. }), "{error:?}");
    });
}

/// Nor is the leaf's certificate a secret; its key is. (`server_config` refuses such a pair, so this goes around it.)
#[test]
fn a_pinned_leaf_must_sign_the_handshake() {
    #[derive(Debug)]
    struct Forger(Arc<CertifiedKey>);
    impl ResolvesServerCert for Forger {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    run(async {
        let ca = ca("controller", ALWAYS);
        let (victim, forger) = (issue(&ca, &["localhost"], ALWAYS), issue(&ca, &["localhost"], ALWAYS));
        let refused = tls::server_config(victim.chain.as_bytes(), forger.key.as_bytes()).unwrap_err();
        assert!(matches!(refused, TlsError::KeyMismatch));

        let chain = CertificateDer::pem_slice_iter(victim.chain.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(forger.key.as_bytes()).unwrap();
        let key = Arc::new(CertifiedKey::new(chain, aws_lc_rs::sign::any_supported_type(&key).unwrap()));
        for versions in [rustls::ALL_VERSIONS, &[&TLS12]] {
            let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(Forger(Arc::clone(&key))));
            let address = serve(Some(Arc::new(server)), echo);
            let error = round_trip(&wss(address, "localhost", pinned(victim.pin))).await.unwrap_err();
            assert!(error.to_string().contains("BadSignature"), "{error}");
        }
    });
}

#[test]
fn tls_1_2_is_accepted_at_both_ends() {
    run(async {
        let ca = ca("ours", ALWAYS);
        let identity = issue(&ca, &["localhost"], ALWAYS);
        let provider = Arc::new(aws_lc_rs::default_provider());

        let address = serve(Some(identity.server()), echo);
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let old_client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let socket = round_trip(&wss(address, "localhost", Arc::new(old_client))).await.unwrap();
        assert_eq!(socket.conn().tls_version(), Some(ProtocolVersion::TLSv1_2));

        let chain = CertificateDer::pem_slice_iter(identity.chain.as_bytes()).map(Result::unwrap).collect();
        let old_server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap())
            .unwrap();
        let address = serve(Some(Arc::new(old_server)), echo);
        let socket = round_trip(&wss(address, "localhost", pinned(identity.pin))).await.unwrap();
        assert_eq!(socket.conn().tls_version(), Some(ProtocolVersion::TLSv1_2));
    });
}

#[test]
fn a_plain_server_is_recognised() {
    run(async {
        let address = serve(None, echo);
        let error = round_trip(&wss(address, "localhost", any_client())).await.unwrap_err();
        assert!(matches!(error, DialError::NotTls { .. }), "{error:?}");
    });
}

#[test]
fn unusable_server_material_is_named() {
    let identity = issue(&ca("ours", ALWAYS), &["localhost"], ALWAYS);
    let (chain, key) = (identity.chain.as_bytes(), identity.key.as_bytes());
    assert!(matches!(tls::server_config(b"", key), Err(TlsError::Certificate { .. })));
    assert!(matches!(tls::server_config(key, chain), Err(TlsError::Certificate { .. })), "swapped");
    assert!(matches!(tls::server_config(chain, b""), Err(TlsError::PrivateKey { .. })));
    let half = &identity.key[..identity.key.len() / 2];
    let error = tls::server_config(chain, half.as_bytes()).unwrap_err();
    assert!(matches!(error, TlsError::PrivateKey { .. }));
    let secret = identity.key.lines().nth(1).unwrap();
    assert!(!error.to_string().contains(&secret[..16]) && !format!("{error:?}").contains(&secret[..16]));
    assert!(matches!(tls::spki_pin(b"\x30\x00"), Err(TlsError::Certificate { .. })));
}
