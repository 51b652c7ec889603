//! DATA on its way through a hostile network: only what was sealed opens, once, and unchanged.

use crate::input::{Input, chunk};
use crate::world::{ME, NETWORK, PEER, fresh_key, machine};
use edgelink_auth::{NodeKey, SignedStatement};
use edgelink_model::NodeId;
use edgelink_session::{OpenError, SessionConfig, SessionTable};
use edgelink_wire::{Flags, FrameType, data};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

const FRESH: u8 = 0;
const HOLD: u8 = 1;
const MUTATED: u8 = 2;
const AGAIN: u8 = 3;
const GARBAGE: u8 = 4;
const FORGED: u8 = 5;
const RESIZED: u8 = 6;
const ROTATE: u8 = 7;
const WAIT: u8 = 8;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let text = chunk(b"a packet");
    let held: Vec<u8> = [&[HOLD, 0, 8][..], &text].concat().repeat(4);
    let all = [
        &held[..],
        &[FRESH, 0, 0],
        &text,
        &[MUTATED, 1, 0, 0, 2, 0x10],
        &[MUTATED, 2, 1, 0, 30, 1],
        &[AGAIN, 0],
        &[AGAIN, 0],
        &[RESIZED, 3, 0, 9, 1],
        &[FORGED, 0],
        &text,
        &[GARBAGE],
        &chunk(&[1, 0x10, 0, 0, 36]),
        &[ROTATE],
        &[FRESH, 1, 8],
        &text,
        &[WAIT, 200],
        &[AGAIN, 3],
    ]
    .concat();
    let rotations =
        [&held[..], &[ROTATE, ROTATE, AGAIN, 0, FRESH, 2, 0], &text, &[WAIT, 255, WAIT, 255, AGAIN, 1]].concat();
    vec![held, all, rotations]
}

/// Statements cost signatures, so they are made once: of both nodes, by sequence number.
fn key(id: NodeId, seq: u64) -> (NodeKey, SignedStatement) {
    static STATEMENTS: LazyLock<Vec<[SignedStatement; 2]>> = LazyLock::new(|| {
        let make = |(id, seed), seq| fresh_key(&machine(seed), id, seq, 1_700_000_000, 1).1;
        (0..4).map(|seq| [(ME, 1), (PEER, 2)].map(|who| make(who, seq))).collect()
    });
    let mut rng = <rand_chacha::ChaCha8Rng as rand_core::SeedableRng>::seed_from_u64(seq ^ (u64::from(id.0) << 32));
    (NodeKey::generate(&mut rng), STATEMENTS[seq as usize][usize::from(id == PEER)].clone())
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
pub(super) static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn table(id: NodeId, psk: [u8; 32]) -> SessionTable {
    let psk = Some(Zeroizing::new(psk));
    let mut table = SessionTable::new(SessionConfig { network_id: NETWORK, node_id: id, psk, window: 8_192 });
    let (key, statement) = key(id, 0);
    table.set_local(key, statement, *ORIGIN).unwrap();
    table
}

struct Lab {
    sender: SessionTable,
    receiver: SessionTable,
    now: Instant,
    seq: u64,
    /// What was sealed, without the flag that is not authenticated → plaintext, and whether it was delivered.
    sealed: HashMap<Vec<u8>, (Vec<u8>, bool)>,
    /// Sealed before the last but one rotation, or too long ago: it may be refused.
    stale: Vec<Vec<u8>>,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    // Keys of this input's own: libFuzzer sees what is compared, and would play a frame of one run into another.
    let psk = Sha256::digest(data).into();
    let (sender, receiver) = (table(PEER, psk), table(ME, psk));
    let mut lab = Lab { sender, receiver, now: *ORIGIN, seq: 0, sealed: HashMap::new(), stale: Vec::new() };
    lab.receiver.set_peer(&key(PEER, 0).1, lab.now).unwrap();
    lab.sender.set_peer(&key(ME, 0).1, lab.now).unwrap();
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        match input.u8() % 9 {
            FRESH => {
                let frame = lab.seal(input.u8(), input.u8(), input.chunk());
                lab.deliver(&frame);
                held.push(frame);
            }
            HOLD => held.push(lab.seal(input.u8(), input.u8(), input.chunk())),
            MUTATED => {
                let mut frame = pick(&held, input.u8());
                for _ in 0..=input.u8() % 4 {
                    let (at, with) = (usize::from(input.u16()), input.u8());
                    let len = frame.len().max(1);
                    if let Some(byte) = frame.get_mut(at % len) {
                        *byte ^= with;
                    }
                }
                lab.deliver(&frame);
            }
            AGAIN => lab.deliver(&pick(&held, input.u8())),
            GARBAGE => lab.deliver(input.chunk()),
            // Everything right but the seal; and the counter as the forger likes it.
            FORGED => {
                let mut frame = pick(&held, input.u8());
                let text = input.chunk();
                if frame.len() > 25 {
                    frame.splice(25.., text.iter().copied());
                    frame[17..25].copy_from_slice(&input.array::<8>());
                    set_len(&mut frame);
                }
                lab.deliver(&frame);
            }
            RESIZED => {
                let mut frame = pick(&held, input.u8());
                frame.resize(usize::from(input.u16()) % 1_000, input.u8());
                set_len(&mut frame);
                lab.deliver(&frame);
            }
            ROTATE => lab.rotate(),
            _ => {
                lab.now += Duration::from_secs(u64::from(input.u8()));
                lab.stale = lab.sealed.keys().cloned().collect();
                lab.receiver.handle_timeout(lab.now);
                lab.sender.handle_timeout(lab.now);
            }
        }
    }
    // Whatever came, an honest frame still opens.
    let frame = lab.seal(0, 0, b"still alive");
    lab.deliver(&frame);
    assert!(lab.sealed[&normal(&frame)].1);
}

impl Lab {
    fn seal(&mut self, ty: u8, flags: u8, text: &[u8]) -> Vec<u8> {
        let ty = [FrameType::Data, FrameType::P2pPing, FrameType::P2pPong][usize::from(ty) % 3];
        let text = &text[..text.len().min(1_400)];
        let mut frame = [&[0; data::PLAINTEXT_OFFSET], text, &[0; data::TAG_LEN]].concat();
        self.sender.sealer(ME).unwrap().seal(ty, Flags(flags), &mut frame).unwrap();
        self.sealed.insert(normal(&frame), (text.to_vec(), false));
        frame
    }

    fn deliver(&mut self, frame: &[u8]) {
        let mut copy = frame.to_vec();
        let outcome = self.receiver.open(&mut copy, self.now);
        let honest = (frame.len() > 2).then(|| self.sealed.get_mut(&normal(frame))).flatten();
        match (outcome, honest) {
            (Ok(opened), Some((text, delivered))) => {
                assert!(!*delivered, "delivered twice");
                assert_eq!((opened.peer, opened.ty.as_u8(), opened.flags.0), (PEER, frame[1], frame[2]));
                assert_eq!(opened.plaintext, text);
                *delivered = true;
            }
            (Ok(_), None) => panic!("a frame that nobody sealed was opened"),
            (Err(OpenError::Replayed), Some((_, true))) => {}
            (Err(error), Some((_, delivered))) => {
                assert!(self.stale.contains(&normal(frame)), "honest, delivered before: {delivered}, refused: {error}");
            }
            (Err(_), None) => {}
        }
    }

    /// Both sides at once, as the worst case is.
    fn rotate(&mut self) {
        if self.seq == 3 {
            return;
        }
        self.seq += 1;
        self.stale = self.sealed.keys().cloned().collect();
        for (table, me, other) in [(&mut self.sender, PEER, ME), (&mut self.receiver, ME, PEER)] {
            let (mine, statement) = key(me, self.seq);
            table.set_local(mine, statement, self.now).unwrap();
            table.set_peer(&key(other, self.seq).1, self.now).unwrap();
        }
    }
}

/// A frame without the one flag that is not authenticated.
fn normal(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(flags) = frame.get_mut(2) {
        *flags &= !Flags::LOCAL_ONLY.0;
    }
    frame
}

fn pick(held: &[Vec<u8>], at: u8) -> Vec<u8> {
    if held.is_empty() { Vec::new() } else { held[usize::from(at) % held.len()].clone() }
}

/// Makes the length field agree, so that more than the length is looked at.
fn set_len(frame: &mut [u8]) {
    if let Some(len) = frame.len().checked_sub(5) {
        frame[3..5].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
    }
}
