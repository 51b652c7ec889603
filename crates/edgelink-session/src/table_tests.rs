//! What the table promises, rule by rule, where a test needs to look inside. The whole is tested at random in
//! `tests/rotation.rs`.

mod rotation;

use crate::session::Session;
use crate::{
    AES_REKEY_AFTER, COUNTER_LIMIT, OpenError, PeerChange, REKEY_AFTER, SUPERSEDED_FOR, SealError, SessionConfig,
    SessionError, SessionTable,
};
use edgelink_auth::{KeyStatement, MachineKey, NodeKey, SignedStatement};
use edgelink_model::{NetworkId, NodeId};
use edgelink_wire::{Flags, FrameType, data};
use std::time::{Duration, Instant};

const NETWORK: NetworkId = NetworkId(7);
const LIFETIME: Duration = Duration::from_secs(90_000);
const A: NodeId = NodeId(100);
const B: NodeId = NodeId(200);

#[expect(clippy::disallowed_methods, reason = "tests need some instant to begin with; only differences matter")]
pub(crate) fn epoch() -> Instant {
    Instant::now()
}

/// A node with its table; keys follow from the id and the sequence number.
struct Side {
    id: NodeId,
    machine: MachineKey,
    seq: u64,
    capabilities: u32,
    table: SessionTable,
}

impl Side {
    fn new(id: NodeId, now: Instant) -> Self {
        Self::with(id, 1, now)
    }

    fn with(id: NodeId, capabilities: u32, now: Instant) -> Self {
        let config = SessionConfig { network_id: NETWORK, node_id: id, psk: None, window: 8_192 };
        let machine = MachineKey::from_seed([id.0 as u8; 32]);
        let mut side = Self { id, machine, seq: 0, capabilities, table: SessionTable::new(config) };
        side.rotate(now);
        side
    }

    fn rotate(&mut self, now: Instant) -> SignedStatement {
        self.seq += 1;
        let (key, statement) = statement(&self.machine, self.id, self.seq, self.capabilities);
        self.table.set_local(key, statement.clone(), now).unwrap();
        statement
    }

    fn statement(&self) -> SignedStatement {
        self.table.local_statement().unwrap().clone()
    }

    fn learn(&mut self, other: &Side, now: Instant) -> PeerChange {
        self.table.set_peer(&other.statement(), now).unwrap()
    }

    fn seal(&mut self, to: NodeId, text: &[u8]) -> Vec<u8> {
        let mut frame = room(text);
        self.table.sealer(to).unwrap().seal(FrameType::Data, Flags::NONE, &mut frame).unwrap();
        frame
    }

    fn open(&mut self, frame: &[u8], now: Instant) -> Result<Vec<u8>, OpenError> {
        let mut frame = frame.to_vec();
        self.table.open(&mut frame, now).map(|opened| opened.plaintext.to_vec())
    }
}

fn statement(machine: &MachineKey, id: NodeId, seq: u64, capabilities: u32) -> (NodeKey, SignedStatement) {
    let mut private = [0x11; 32];
    private[..4].copy_from_slice(&id.0.to_be_bytes());
    private[4..12].copy_from_slice(&seq.to_be_bytes());
    private[12..20].copy_from_slice(&machine.public().0[..8]);
    let key = NodeKey::from_bytes(private);
    let statement = KeyStatement {
        network_id: NETWORK,
        node_id: id,
        machine_pub: machine.public(),
        node_pub: key.public(),
        seq,
        not_before: 1_700_000_000,
        not_after: 1_700_000_000 + LIFETIME.as_secs(),
        capabilities,
    };
    let signed = SignedStatement::sign(statement, machine).unwrap();
    (key, signed)
}

fn room(text: &[u8]) -> Vec<u8> {
    [&[0; data::PLAINTEXT_OFFSET], text, &[0; data::TAG_LEN]].concat()
}

fn counter(frame: &[u8]) -> u64 {
    u64::from_be_bytes(data::parse(frame).unwrap().nonce[4..].try_into().unwrap())
}

fn pair() -> (Side, Side, Instant) {
    let now = epoch();
    let (mut a, mut b) = (Side::new(A, now), Side::new(B, now));
    assert_eq!(a.learn(&b, now), PeerChange::New);
    assert_eq!(b.learn(&a, now), PeerChange::New);
    (a, b, now)
}

/// Both sides confirmed.
fn settled() -> (Side, Side, Instant) {
    let (mut a, mut b, now) = pair();
    talk(&mut a, &mut b, now);
    talk(&mut b, &mut a, now);
    (a, b, now)
}

fn talk(from: &mut Side, to: &mut Side, now: Instant) {
    let frame = from.seal(to.id, b"hello");
    assert_eq!(to.open(&frame, now), Ok(b"hello".to_vec()));
}

#[test]
fn several_frames_per_sealer_and_each_opens_once() {
    let (mut a, mut b, now) = pair();
    let mut sealer = a.table.sealer(B).unwrap();
    assert_eq!(sealer.peer(), B);
    let mut frames: Vec<Vec<u8>> = (0..5u8).map(|n| room(&[n; 100])).collect();
    for frame in &mut frames {
        sealer.seal(FrameType::P2pPing, Flags::SUPER_PACKET, frame).unwrap();
    }
    for (n, frame) in frames.iter().enumerate().rev() {
        assert_eq!(counter(frame), n as u64);
        assert_eq!(b.open(frame, now), Ok(vec![n as u8; 100]));
        assert_eq!(b.open(frame, now), Err(OpenError::Replayed));
    }
}

#[test]
fn every_changed_bit_and_every_truncation_is_refused_and_harms_nothing() {
    let (mut a, mut b, now) = pair();
    let good = a.seal(B, b"forty-two bytes of text, or thereabouts ...");
    for len in 0..good.len() {
        assert_eq!(b.open(&good[..len], now), Err(OpenError::Malformed), "cut to {len}");
        if len > 5 {
            // Even when the length field agrees.
            let mut cut = good[..len].to_vec();
            cut[3..5].copy_from_slice(&(len as u16 - 5).to_be_bytes());
            assert!(b.open(&cut, now).is_err(), "cut to {len}, length adjusted");
        }
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // Bit 4 of the flags, "local only", is the one that is not authenticated.
        if bit == 2 * 8 + 4 {
            continue;
        }
        assert!(b.open(&bad, now).is_err(), "bit {bit}");
    }
    assert!(!b.table.peer_confirmed(A), "nothing forged confirms anything");
    let mut local_only = good.clone();
    local_only[2] ^= Flags::LOCAL_ONLY.0;
    assert!(b.open(&local_only, now).is_ok(), "a relay may clear or set it");
    assert_eq!(b.open(&good, now), Err(OpenError::Replayed));
}

#[test]
fn errors_name_what_is_wrong() {
    let (mut a, mut b, now) = pair();
    let good = a.seal(B, b"text");
    assert_eq!(a.open(&good, now), Err(OpenError::NotForUs), "reflected");
    let mut forged = good.clone();
    forged[5..9].copy_from_slice(&300u32.to_be_bytes());
    assert_eq!(b.open(&forged, now), Err(OpenError::UnknownPeer { src: NodeId(300) }));
    forged[5..9].copy_from_slice(&B.0.to_be_bytes());
    assert_eq!(b.open(&forged, now), Err(OpenError::UnknownPeer { src: B }), "from ourselves");
    let mut prefix = good.clone();
    prefix[13] ^= 1;
    assert_eq!(b.open(&prefix, now), Err(OpenError::UnknownKey { src: A }));
    let mut tag = good.clone();
    *tag.last_mut().unwrap() ^= 1;
    assert_eq!(b.open(&tag, now), Err(OpenError::BadTag));
    assert_eq!(a.table.sealer(NodeId(300)).map(|_| ()), Err(SealError::UnknownPeer));
    let mut sealer = a.table.sealer(B).unwrap();
    assert!(matches!(sealer.seal(FrameType::Data, Flags::NONE, &mut [0; 40]), Err(SealError::Frame(_))));
    assert!(matches!(sealer.seal(FrameType::Ping, Flags::NONE, &mut [0; 60]), Err(SealError::Frame(_))));
    assert_eq!(counter(&a.seal(B, b"")), 1, "a refused buffer uses no nonce up");
}

#[test]
fn a_bad_tag_leaves_the_window_alone() {
    let (mut a, mut b, now) = pair();
    let first = a.seal(B, b"first");
    let mut forged = first.clone();
    // The highest counter that there is: had it moved the window, everything after would be too old.
    forged[17..25].copy_from_slice(&(COUNTER_LIMIT - 1).to_be_bytes());
    assert_eq!(b.open(&forged, now), Err(OpenError::BadTag));
    forged[17..25].copy_from_slice(&COUNTER_LIMIT.to_be_bytes());
    assert_eq!(b.open(&forged, now), Err(OpenError::Malformed));
    assert_eq!(b.open(&first, now), Ok(b"first".to_vec()));
}

#[test]
fn the_counter_asks_for_a_new_key_and_stops() {
    let (mut a, mut b, now) = settled();
    a.table.sessions_mut(B)[0].set_next_counter(REKEY_AFTER - 1);
    talk(&mut a, &mut b, now);
    assert!(!a.table.rekey_due());
    talk(&mut a, &mut b, now);
    assert!(a.table.rekey_due());
    a.table.sessions_mut(B)[0].set_next_counter(COUNTER_LIMIT - 1);
    talk(&mut a, &mut b, now);
    for _ in 0..3 {
        let mut frame = room(b"one too many");
        let before = frame.clone();
        let sealed = a.table.sealer(B).unwrap().seal(FrameType::Data, Flags::NONE, &mut frame);
        assert_eq!((sealed, frame), (Err(SealError::Exhausted), before));
    }
    assert_eq!(a.table.sessions_mut(B)[0].next_counter(), COUNTER_LIMIT);
    a.rotate(now);
    assert!(!a.table.rekey_due());
    b.learn(&a, now);
    talk(&mut b, &mut a, now);
    talk(&mut a, &mut b, now);
}

#[test]
fn aes_asks_for_a_new_key_sooner_and_once() {
    let now = epoch();
    let (mut a, mut b) = (Side::with(A, 3, now), Side::with(B, 3, now));
    a.learn(&b, now);
    b.learn(&a, now);
    talk(&mut a, &mut b, now);
    talk(&mut b, &mut a, now);
    a.table.sessions_mut(B)[0].set_next_counter(AES_REKEY_AFTER);
    talk(&mut a, &mut b, now);
    assert!(a.table.rekey_due());
    // Until the peer has confirmed the new key the old one is still used: that is no reason for yet another.
    a.rotate(now);
    talk(&mut a, &mut b, now);
    assert_eq!(a.table.sessions_mut(B)[0].next_counter(), AES_REKEY_AFTER + 2);
    assert!(!a.table.rekey_due());
}

#[test]
fn the_cipher_follows_both_statements() {
    let now = epoch();
    let sealed = |ours, theirs| {
        let (mut a, mut b) = (Side::with(A, ours, now), Side::with(B, theirs, now));
        a.learn(&b, now);
        b.learn(&a, now);
        let there = a.seal(B, b"there");
        assert_eq!(b.open(&there, now), Ok(b"there".to_vec()), "{ours} {theirs}");
        let back = b.seal(A, b"back");
        assert_eq!(a.open(&back, now), Ok(b"back".to_vec()), "{ours} {theirs}");
        there
    };
    let frames = [sealed(1, 1), sealed(1, 3), sealed(3, 1), sealed(3, 3)];
    // Each mixture is a key of its own: none of them can be taken for another.
    let prefixes: std::collections::HashSet<&[u8]> = frames.iter().map(|frame| &frame[13..17]).collect();
    assert_eq!(prefixes.len(), 4);
}

#[test]
fn nobody_in_between_can_take_aes_away() {
    let now = epoch();
    let (mut a, mut b) = (Side::with(A, 3, now), Side::with(B, 3, now));
    // The bit is signed …
    let mut bytes = b.statement().bytes().to_vec();
    *bytes.last_mut().unwrap() &= !2;
    assert!(SignedStatement::verify(&bytes, b.statement().signature()).is_err());
    // … what the peer said before it could do AES is refused as old …
    a.learn(&b, now);
    let (_, former) = statement(&b.machine, B, 0, 1);
    assert_eq!(a.table.set_peer(&former, now), Err(SessionError::LowerSeq));
    // … and were the signature of no use, the two would only cease to understand each other.
    let (key, weaker) = statement(&a.machine, A, a.seq, 1);
    b.table.set_peer(&weaker, now).unwrap();
    drop(key);
    let frame = a.seal(B, b"not weaker");
    assert!(matches!(b.open(&frame, now), Err(OpenError::UnknownKey { .. })));
}

#[test]
fn a_peer_that_comes_back_goes_on_where_it_was() {
    for end in [SessionTable::remove_peer, SessionTable::wipe_peer] {
        let (mut a, mut b, now) = settled();
        let old = a.seal(B, b"old");
        assert!(b.open(&old, now).is_ok());
        let next = counter(&old) + 1;
        end(&mut a.table, B);
        end(&mut b.table, A);
        assert!(!b.table.sessions_mut(A).iter().any(Session::has_keys), "keys are erased at once");
        assert!(!b.table.has_peer(A) && !b.table.peer_confirmed(A));
        assert_eq!(b.open(&old, now), Err(OpenError::UnknownPeer { src: A }));
        assert_eq!(a.table.sealer(B).map(|_| ()), Err(SealError::UnknownPeer));

        assert_eq!(a.learn(&b, now), PeerChange::New);
        assert_eq!(b.learn(&a, now), PeerChange::New);
        assert_eq!(b.open(&old, now), Err(OpenError::Replayed));
        let new = a.seal(B, b"new");
        assert_eq!(counter(&new), next);
        assert_eq!(b.open(&new, now), Ok(b"new".to_vec()));
    }
}

#[test]
fn what_was_superseded_cannot_come_back_by_removal() {
    let (mut a, mut b, now) = settled();
    let first = a.statement();
    let old = a.seal(B, b"old");
    a.rotate(now);
    b.learn(&a, now);
    b.table.remove_peer(A);
    assert_eq!(b.table.set_peer(&first, now), Err(SessionError::LowerSeq));
    b.learn(&a, now);
    assert_eq!(b.open(&old, now), Err(OpenError::UnknownKey { src: A }));
}

#[test]
fn the_memory_of_a_removed_peer_ends_with_our_key() {
    let (mut a, b, now) = settled();
    a.table.remove_peer(B);
    a.rotate(now);
    assert!(a.table.remembers(B), "our previous key could still be used with it");
    a.rotate(now);
    assert!(!a.table.remembers(B));
    assert_eq!(a.learn(&b, now), PeerChange::New);
    assert_eq!(counter(&a.seal(B, b"")), 0, "under a key that never was");
}

#[test]
fn statements_that_cannot_be_are_refused_and_the_session_goes_on() {
    let (mut a, mut b, now) = settled();
    b.rotate(now);
    a.learn(&b, now);
    let change = |a: &mut Side, edit: &dyn Fn(&mut KeyStatement)| {
        let mut said = b.statement().statement().clone();
        said.seq += 1;
        edit(&mut said);
        a.table.set_peer(&SignedStatement::sign(said, &b.machine).unwrap(), now)
    };
    assert_eq!(a.learn(&b, now), PeerChange::Unchanged);
    assert_eq!(change(&mut a, &|s| s.seq = 1), Err(SessionError::LowerSeq));
    assert_eq!(
        change(&mut a, &|s| {
            s.seq = 2;
            s.capabilities = 9
        }),
        Err(SessionError::SeqConflict)
    );
    assert_eq!(change(&mut a, &|s| s.network_id = NetworkId(8)), Err(SessionError::OtherNetwork));
    assert_eq!(change(&mut a, &|s| s.node_id = A), Err(SessionError::OtherNode));
    assert_eq!(change(&mut a, &|s| s.node_pub = [0; 32]), Err(SessionError::WeakKey));
    talk(&mut a, &mut b, now);
    talk(&mut b, &mut a, now);
    let mut empty = SessionTable::new(SessionConfig { network_id: NETWORK, node_id: A, psk: None, window: 8_192 });
    assert_eq!(empty.set_peer(&b.statement(), now), Err(SessionError::NoLocalKey));
}

#[test]
fn our_own_statement_must_be_ours_and_new() {
    let now = epoch();
    let mut a = Side::new(A, now);
    a.rotate(now);
    let set = |a: &mut Side, id, seq| {
        let (key, signed) = statement(&a.machine, id, seq, 1);
        a.table.set_local(key, signed, now)
    };
    assert_eq!(set(&mut a, A, 1), Err(SessionError::LowerSeq));
    assert_eq!(set(&mut a, A, 2), Err(SessionError::SeqConflict));
    assert_eq!(set(&mut a, B, 3), Err(SessionError::OtherNode));
    let (_, signed) = statement(&a.machine, A, 3, 1);
    assert_eq!(a.table.set_local(NodeKey::from_bytes([9; 32]), signed, now), Err(SessionError::OtherNode));
    assert_eq!(set(&mut a, A, 3), Ok(()));
}

#[test]
fn another_machine_key_ends_everything_that_was_before() {
    let (mut a, mut b, now) = settled();
    let old = b.seal(A, b"from the old machine");
    let old_statement = b.statement();
    let mut other = Side::new(B, now);
    other.machine = MachineKey::from_seed([0x77; 32]);
    let (key, signed) = statement(&other.machine, B, 1, 1);
    let config = SessionConfig { network_id: NETWORK, node_id: B, psk: None, window: 8_192 };
    other.table = SessionTable::new(config);
    other.table.set_local(key, signed, now).unwrap();
    assert_eq!(a.learn(&other, now), PeerChange::New, "whatever its sequence number");
    assert_eq!(a.open(&old, now), Err(OpenError::UnknownKey { src: B }));
    other.learn(&a, now);
    talk(&mut a, &mut other, now);
    assert_eq!(
        a.table.set_peer(&old_statement, now),
        Err(SessionError::LowerSeq),
        "the old machine needs a new statement"
    );
    b.rotate(now);
    assert_eq!(a.learn(&b, now), PeerChange::New);
}

#[test]
fn check_peer_tells_old_statements_without_their_signature() {
    let (mut a, mut b, now) = settled();
    let old = b.statement();
    b.rotate(now);
    assert_eq!(a.table.check_peer(b.statement().statement()), Ok(()));
    a.learn(&b, now);
    assert_eq!(a.table.check_peer(b.statement().statement()), Ok(()));
    assert_eq!(a.table.check_peer(old.statement()), Err(SessionError::LowerSeq));
    assert_eq!(a.table.check_peer(a.statement().statement()), Err(SessionError::OtherNode));
}

/// Chance makes two of a peer's four prefixes equal once in 700 million rotations. It must still work.
#[test]
fn sessions_with_the_same_prefix_are_told_apart_by_their_tags() {
    let (mut a, mut b, now) = settled();
    b.rotate(now);
    let under_old = [a.seal(B, b"old 0"), a.seal(B, b"old 1")];
    a.learn(&b, now);
    let under_new = [a.seal(B, b"new 0"), a.seal(B, b"new 1"), a.seal(B, b"new 2")];
    // B derives the second session when it first needs it.
    let shared = {
        assert!(b.open(&under_new[0], now).is_ok());
        under_old[0][13..17].try_into().unwrap()
    };
    let sessions = b.table.sessions_mut(A);
    assert_eq!(sessions.len(), 2);
    sessions[1].force_prefixes([1; 4], shared);
    // The prefix is a part of the nonce, so that A must seal with it as well.
    for session in a.table.sessions_mut(B).iter_mut().skip(1) {
        session.force_prefixes(shared, [1; 4]);
    }
    let colliding = [a.seal(B, b"new 3"), a.seal(B, b"new 4")];
    assert_eq!(colliding[0][13..17], shared);
    assert_eq!(b.open(&under_old[0], now), Ok(b"old 0".to_vec()));
    assert_eq!(b.open(&colliding[0], now), Ok(b"new 3".to_vec()));
    assert_eq!(b.open(&under_old[1], now), Ok(b"old 1".to_vec()));
    assert_eq!(b.open(&colliding[1], now), Ok(b"new 4".to_vec()));
    for replay in under_old.iter().chain(&colliding) {
        assert_eq!(b.open(replay, now), Err(OpenError::Replayed));
    }
    let mut forged = a.seal(B, b"new 5");
    forged[30] ^= 1;
    assert_eq!(b.open(&forged, now), Err(OpenError::BadTag));
    forged[30] ^= 1;
    assert_eq!(b.open(&forged, now), Ok(b"new 5".to_vec()));
}

#[test]
fn a_larger_window_keeps_what_a_slow_path_brings() {
    let (mut a, mut b, now) = settled();
    b.table.set_window(A, 65_536);
    let slow = a.seal(B, b"slow");
    let skip = counter(&slow) + 65_535;
    a.table.sessions_mut(B)[0].set_next_counter(skip);
    talk(&mut a, &mut b, now);
    assert_eq!(b.open(&slow, now), Ok(b"slow".to_vec()));
    assert_eq!(b.open(&slow, now), Err(OpenError::Replayed));
    b.table.set_window(A, 8_192);
    let old = a.seal(B, b"old");
    a.table.sessions_mut(B)[0].set_next_counter(counter(&old) + 8_192);
    talk(&mut a, &mut b, now);
    assert_eq!(b.open(&old, now), Err(OpenError::TooOld));
}

#[test]
fn different_pre_shared_keys_do_not_talk() {
    let now = epoch();
    let side = |id, psk: Option<u8>| {
        let mut side = Side::new(id, now);
        let psk = psk.map(|byte| zeroize::Zeroizing::new([byte; 32]));
        side.table = SessionTable::new(SessionConfig { network_id: NETWORK, node_id: id, psk, window: 8_192 });
        side.rotate(now);
        side
    };
    for (ours, theirs, works) in [(Some(1), Some(1), true), (Some(1), Some(2), false), (Some(1), None, false)] {
        let (mut a, mut b) = (side(A, ours), side(B, theirs));
        a.learn(&b, now);
        b.learn(&a, now);
        let frame = a.seal(B, b"text");
        assert_eq!(b.open(&frame, now).is_ok(), works);
    }
}

#[test]
fn debug_shows_no_key() {
    let (a, ..) = settled();
    assert_eq!(
        format!("{:?}", a.table),
        "SessionTable { network_id: NetworkId(7), node_id: NodeId(100), peers: 1, .. }"
    );
}
