//! Packets captured from a real run, opened by an implementation that shares no code with EdgeLink.
//!
//! `EDGELINK_PYTHON` names a Python with the package `cryptography`; without the variable `python3` is tried.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use edgelink_e2e::{Net, NetOptions, SOON, TUN, random, wire};
use edgelink_testbed::{Captured, Process};
use serde_json::{Value, json};
use x25519_dalek::{PublicKey, StaticSecret};

const KEY_ANNOUNCE: u8 = 0x13;
const DATA: u8 = 0x10;

fn python() -> Option<String> {
    let named = std::env::var("EDGELINK_PYTHON").ok();
    let candidates = named.clone().into_iter().chain(["python3".to_owned()]);
    let works = |python: &String| {
        let run = Command::new(python).args(["-c", "import cryptography"]).output();
        run.is_ok_and(|output| output.status.success())
    };
    let found = candidates.into_iter().find(works);
    assert!(found.is_some() || named.is_none(), "EDGELINK_PYTHON has no package `cryptography`");
    found
}

/// Looks for the private half of `public` in a process' memory, as a debugger would.
fn private_key(process: &Process, public: &[u8; 32]) -> Option<[u8; 32]> {
    let memory = process.writable_memory().unwrap();
    let mut tried = HashSet::new();
    for step in [8, 4, 1] {
        for (_, bytes) in &memory {
            for at in (0..bytes.len().saturating_sub(31)).step_by(step) {
                let window: [u8; 32] = bytes[at..at + 32].try_into().unwrap();
                // Random bytes hardly repeat; most of memory does.
                let distinct = window.iter().fold([0_u64; 4], |mut seen, byte| {
                    seen[usize::from(byte >> 6)] |= 1 << (byte & 63);
                    seen
                });
                let count: u32 = distinct.iter().map(|word| word.count_ones()).sum();
                if count < 22 || !tried.insert(window) {
                    continue;
                }
                if PublicKey::from(&StaticSecret::from(window)).as_bytes() == public {
                    return Some(window);
                }
            }
        }
        eprintln!("{}: no key at steps of {step} after {} candidates", process.name(), tried.len());
    }
    None
}

/// The frames that passed, each once: version, type, flags, length (u16), payload.
fn frames(captured: &Captured) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for stream in wire::streams(captured) {
        for message in stream.binary_messages().unwrap() {
            let mut rest = &message[..];
            while !rest.is_empty() {
                let end = 5 + usize::from(u16::from_be_bytes([rest[3], rest[4]]));
                found.push(rest[..end].to_vec());
                rest = &rest[end..];
            }
        }
    }
    found
}

fn open(python: &str, document: &Value, net: &Net) -> Vec<Value> {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/edgelink-session/tests/independent/open_frames.py");
    let input = net.lab_ref().dir().join("frames.json");
    std::fs::write(&input, document.to_string()).unwrap();
    let output = Command::new(python).arg(script).arg("--json").arg(&input).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}{text}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn captured_packets_open_by_the_specification_alone() {
    let Some(python) = python() else {
        eprintln!(
            "NOT TESTED: python3 has no package `cryptography` (pip install cryptography), EDGELINK_PYTHON is not set"
        );
        return;
    };
    let options = NetOptions { plain: true, ..NetOptions::default() };
    let Some(mut net) = Net::lab(&["a", "b"], options).unwrap() else { return };
    let at_relay = net.topology.relay.capture("eth0").unwrap();
    net.start_controller().unwrap();
    net.join(0).unwrap();
    net.join(1).unwrap();
    let [a, b] = &net.nodes[..] else { unreachable!() };
    assert!(net.url().unwrap().starts_with("ws://"));
    a.wait_ping(b.overlay().unwrap(), SOON).unwrap();

    // A marker each way, and what the receivers' kernels got.
    let tuns = [a.host.capture(TUN).unwrap(), b.host.capture(TUN).unwrap()];
    let markers = [random::<32>().unwrap(), random::<32>().unwrap()];
    let sockets = [0, 1].map(|n| net.nodes[n].host.udp_socket(net.at(n, 5000).unwrap()).unwrap());
    let mut buffer = [0; 100];
    for (from, to) in [(0, 1), (1, 0)] {
        sockets[from].send_to(&markers[from], net.at(to, 5000).unwrap()).unwrap();
        sockets[to].set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        assert_eq!(sockets[to].recv(&mut buffer).unwrap(), 32);
    }
    let received = tuns.map(|tun| tun.stop().unwrap());
    let ids = [a.status().unwrap().node_id.unwrap().0, b.status().unwrap().node_id.unwrap().0];

    // What passed the relay: WebSockets without TLS, so the frames are to be seen; the markers are not.
    let captured = at_relay.stop().unwrap();
    assert_eq!(captured.lost, 0);
    let frames = frames(&captured);
    for marker in &markers {
        assert!(!captured.contains(marker) && !frames.iter().any(|f| f.windows(32).any(|w| w == marker)));
    }
    let mut statements = BTreeMap::new();
    for announce in frames.iter().filter(|frame| frame[1] == KEY_ANNOUNCE) {
        let (statement, signature) = announce[5 + 8..].split_at(120);
        statements.insert(statement.to_vec(), signature.to_vec());
    }
    let node_of = |statement: &[u8]| u32::from_be_bytes(statement[24..28].try_into().unwrap());
    let mut nodes: Vec<u32> = statements.keys().map(|statement| node_of(statement)).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ids, "one statement of each node");

    // The private keys, out of the running processes.
    let keys: Vec<[u8; 32]> = (0..2)
        .map(|n: usize| {
            let statement = statements.keys().find(|statement| node_of(statement) == ids[n]).unwrap();
            let began = Instant::now();
            let process = net.nodes[n].process().unwrap();
            let key = private_key(process, statement[60..92].try_into().unwrap());
            eprintln!("{}: the key was found in {:.1?}", process.name(), began.elapsed());
            key.expect("the node key is in the node's memory")
        })
        .collect();

    let sealed: Vec<String> = frames.iter().filter(|f| f[1] == DATA || f[1] & 0xf0 == 0x30).map(hex::encode).collect();
    let statements: Vec<Value> = statements
        .iter()
        .map(|(statement, signature)| json!({ "statement": hex::encode(statement), "signature": hex::encode(signature) }))
        .collect();
    // Either node's key opens everything: that is what agreement means.
    let mut plaintexts = Vec::new();
    for key in &keys {
        let nodes = json!([{ "node_private": hex::encode(key) }]);
        let document = json!({ "nodes": nodes, "statements": statements, "frames": sealed });
        plaintexts.push(open(&python, &document, &net));
    }
    assert_eq!(plaintexts[0], plaintexts[1]);

    for (from, to) in [(0, 1), (1, 0)] {
        let packet = received[to].packets.iter().find(|packet| packet.contains(&markers[from])).unwrap();
        let ip = packet.ip().unwrap();
        assert_eq!((ip.source, ip.destination), (net.nodes[from].overlay().unwrap(), net.nodes[to].overlay().unwrap()));
        let wanted = hex::encode(&packet.bytes);
        let matches: Vec<&Value> = plaintexts[0].iter().filter(|frame| frame["plaintext"] == wanted).collect();
        // Into the relay and out of it: the same bytes twice.
        assert_eq!(matches.len(), 2, "the packet with the marker, exactly as the receiver's kernel got it");
        for frame in matches {
            assert_eq!((&frame["src"], &frame["dst"]), (&ids[from].into(), &ids[to].into()));
        }
    }
    let opened = plaintexts[0].len();
    assert!(opened >= 2 * (2 + 2), "markers and pings, in and out: {opened}");
    eprintln!("{opened} captured frames opened");
}
