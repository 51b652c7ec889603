//! Frames that this crate seals are opened by another implementation, `tests/independent/open_frames.py`, which shares
//! no code with it and knows only DESIGN §1 and §2.
//!
//! `EDGELINK_PYTHON` names a Python with the package `cryptography` (`make test` makes one); without the variable
//! `python3` is tried, and the test is skipped, saying so, when that has no `cryptography`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

mod common;

use common::{Side, epoch};
use edgelink_model::NodeId;
use edgelink_wire::{Flags, FrameType};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Output, Stdio};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/independent/open_frames.py");

/// The interpreter, or `None` after saying that the test is skipped.
fn python() -> Option<String> {
    if let Ok(python) = std::env::var("EDGELINK_PYTHON") {
        return Some(python);
    }
    let probe = Command::new("python3").args(["-c", "import cryptography"]).stderr(Stdio::null()).status();
    if probe.is_ok_and(|status| status.success()) {
        return Some("python3".to_owned());
    }
    eprintln!(
        "SKIPPED: EDGELINK_PYTHON is not set and python3 has no package `cryptography`; `make test` provides one"
    );
    None
}

fn open_frames(python: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(python)
        .arg(SCRIPT)
        .args(arguments)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{python} does not start: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(str::to_owned).collect()
}

fn statement(side: &Side, seq: u64) -> Value {
    let (_, signed) = side.key(seq);
    json!({ "statement": hex::encode(signed.bytes()), "signature": hex::encode(signed.signature()) })
}

fn node(side: &Side, seq: u64) -> Value {
    json!({ "machine_seed": hex::encode(side.machine_seed), "node_private": hex::encode(side.node_private(seq)) })
}

#[test]
fn another_implementation_opens_our_frames() {
    let Some(python) = python() else { return };
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    let now = epoch();
    let (mut a, mut b) = (Side::new(NodeId(100), now), Side::new(NodeId(200), now));
    let meet = |a: &mut Side, b: &mut Side| {
        a.table.set_peer(b.table.local_statement().unwrap(), now).unwrap();
        b.table.set_peer(a.table.local_statement().unwrap(), now).unwrap();
    };
    meet(&mut a, &mut b);
    let (mut frames, mut plaintexts) = (Vec::new(), Vec::new());
    for round in 0..200u32 {
        if round % 70 == 69 {
            // Both directions and several generations of keys.
            if round % 2 == 0 {
                a.rotate(now)
            } else {
                b.rotate(now)
            }
            meet(&mut a, &mut b);
        }
        let mut text = vec![0; rng.next_u32() as usize % 1_500];
        rng.fill_bytes(&mut text);
        let ty = [FrameType::Data, FrameType::P2pPing, FrameType::P2pPong][rng.next_u32() as usize % 3];
        let (from, to) = if rng.next_u32().is_multiple_of(2) { (&mut a, &mut b) } else { (&mut b, &mut a) };
        let mut frame = from.seal(to.id, ty, Flags(rng.next_u32() as u8), &text);
        assert_eq!(to.open(&frame, now).as_ref(), Ok(&text));
        // A relay may set or clear "local only" on the way.
        frame[2] ^= (rng.next_u32() as u8) & Flags::LOCAL_ONLY.0;
        frames.push(hex::encode(frame));
        plaintexts.push(hex::encode(text));
    }
    let generations = |side: &Side| (1..=side.seq).map(|seq| statement(side, seq)).collect::<Vec<_>>();
    let statements = [generations(&a), generations(&b)].concat();
    // One side's private keys are enough to open both directions.
    let input = json!({
        "nodes": (1..=a.seq).map(|seq| node(&a, seq)).collect::<Vec<_>>(),
        "statements": statements,
        "frames": frames,
    });
    let output = open_frames(&python, &[], &input.to_string());
    assert_eq!(lines(&output), plaintexts, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn it_opens_the_worked_example_and_refuses_a_changed_one() {
    let Some(python) = python() else { return };
    let example: Value = serde_json::from_str(include_str!("vectors/session-vectors.json")).unwrap();
    let statement = |name: &str| json!({ "statement": example[format!("stmt_{name}")], "signature": example[format!("sig_{name}")] });
    let good = example["frame"].as_str().unwrap().to_owned();
    let bad = format!("{}00", &good[..good.len() - 2]);
    let input = |frames: &[&str]| {
        json!({
            "nodes": [{ "node_private": "12".repeat(32) }],
            "statements": [statement("a"), statement("b")],
            "frames": frames,
        })
        .to_string()
    };
    let output = open_frames(&python, &[], &input(&[&good]));
    assert_eq!(lines(&output), [format!("4500001c000100004001{}", "00".repeat(18))]);
    assert_eq!(output.status.code(), Some(0));

    // Several frames in one message; a PING (not sealed) is skipped.
    let ping = format!("012000000c{}", "00".repeat(12));
    let output = open_frames(&python, &["--json"], &input(&[&format!("{ping}{bad}{good}")]));
    let [refused, opened] = &lines(&output)[..] else { panic!("two lines, not {output:?}") };
    let (refused, opened): (Value, Value) =
        (serde_json::from_str(refused).unwrap(), serde_json::from_str(opened).unwrap());
    assert_eq!(refused["error"], "the tag does not verify");
    assert_eq!(
        opened,
        json!({
            "type": "DATA", "flags": 0, "src": 100, "dst": 200, "prefix": "dfe26a5f", "counter": 0,
            "plaintext": format!("4500001c000100004001{}", "00".repeat(18)),
        })
    );
    assert_eq!(output.status.code(), Some(1));

    for broken in ["", "{}", "[]", &input(&["01"]), &input(&["zz"])] {
        assert_eq!(open_frames(&python, &[], broken).status.code(), Some(2), "{broken}");
    }
}
