//! Telling datagrams apart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

mod common;

use common::{vector, vectors};
use edgelink_model::NodeId;
use edgelink_wire::data::{self, DataHeader};
use edgelink_wire::keepalive::Keepalive;
use edgelink_wire::udp::{Datagram, Dropped, demux};
use edgelink_wire::{Flags, FrameType, put_frame};
use proptest::prelude::*;

const BY_UDP: [FrameType; 4] = [FrameType::Data, FrameType::KeyAnnounce, FrameType::P2pPing, FrameType::P2pPong];

#[test]
fn only_four_frame_types_travel_by_udp() {
    for ty in 0..=u8::MAX {
        let datagram = [1, ty, 0, 0, 3, 7, 7, 7];
        match FrameType::from_u8(ty) {
            Some(known) if BY_UDP.contains(&known) => {
                let Ok(Datagram::Frame(frame)) = demux(&datagram) else { panic!("{known} refused") };
                assert_eq!((frame.ty, frame.payload), (ty, &[7, 7, 7][..]));
            }
            Some(FrameType::P2pKeepalive) => assert_eq!(demux(&datagram), Err(Dropped::Malformed)),
            _ => assert_eq!(demux(&datagram), Err(Dropped::WrongType)),
        }
    }
}

#[test]
fn exactly_one_whole_frame() {
    for name in ["data", "key-announce", "p2p-ping", "p2p-pong"] {
        let bytes = vector(name);
        assert!(matches!(demux(&bytes), Ok(Datagram::Frame(frame)) if frame.raw == bytes));
        for len in 0..bytes.len() {
            let reason = if len == 0 { Dropped::Foreign } else { Dropped::Malformed };
            assert_eq!(demux(&bytes[..len]), Err(reason), "{name} cut at {len}");
        }
        let twice = [bytes.as_slice(), &bytes].concat();
        assert_eq!(demux(&twice), Err(Dropped::Malformed));
    }
}

#[test]
fn foreign_datagrams() {
    for first in (0..=u8::MAX).filter(|first| *first != 1) {
        let mut datagram = vector("data");
        datagram[0] = first;
        assert_eq!(demux(&datagram), Err(Dropped::Foreign));
    }
}

#[test]
fn what_stun_is() {
    let request = vector("stun");
    let mut with_attribute = [request.as_slice(), &[0x80, 0x22, 0, 4, b'n', b'a', b'm', b'e']].concat();
    with_attribute[3] = 8;
    assert_eq!(demux(&with_attribute), Ok(Datagram::Stun(&with_attribute)));
    // A Binding success response begins with our version byte.
    let response = [&[1, 1], &request[2..]].concat();
    assert_eq!(demux(&response), Ok(Datagram::Stun(&response)));

    let changed = |at: usize, byte: u8| {
        let mut datagram = request.clone();
        datagram[at] = byte;
        datagram
    };
    for not_stun in [changed(0, 0x40), changed(0, 0x80), changed(4, 0x22), changed(7, 0x43), changed(3, 4)] {
        assert_eq!(demux(&not_stun), Err(Dropped::Foreign));
    }
    for len in 0..request.len() {
        assert_eq!(demux(&request[..len]), Err(Dropped::Foreign));
    }
}

/// The magic cookie in bytes 4–7 of our own datagrams, by whatever ids and lengths: still ours.
#[test]
fn our_own_are_never_taken_for_stun() {
    let mut with_cookie = 0;
    // Byte 4 is the length's low byte, bytes 5–8 are src.
    for payload_len in (0x21..=u16::MAX).step_by(0x100).filter(|len| *len >= 36) {
        for flags in 0..=u8::MAX {
            let mut frame = vec![0; 5 + usize::from(payload_len)];
            let clear = DataHeader { src: NodeId(0x12a4_4200), dst: NodeId(1), nonce: [0; 12] };
            data::write_header(&mut frame, FrameType::Data, Flags(flags), &clear).unwrap();
            assert_eq!(frame[4..8], [0x21, 0x12, 0xa4, 0x42]);
            assert!(matches!(demux(&frame), Ok(Datagram::Frame(_))), "{payload_len} {flags}");
            with_cookie += 1;
        }
    }
    assert_eq!(with_cookie, 255 * 256);
    let keepalive = Keepalive { src: NodeId(0x0000_2112), seq: 0xa442_0000, timestamp_ms: 0 };
    assert_eq!(keepalive.encode()[4..8], [0x21, 0x12, 0xa4, 0x42]);
    assert_eq!(demux(&keepalive.encode()), Ok(Datagram::Keepalive(keepalive)));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(datagram in proptest::collection::vec(any::<u8>(), 0..120), ty in any::<u8>()) {
        let _ = demux(&datagram);
        let _ = data::parse(&datagram);
        let _ = data::aad(&datagram);
        let mut frame = Vec::new();
        let known = FrameType::from_u8(ty).unwrap_or(FrameType::Data);
        put_frame(&mut frame, known, Flags(ty), &datagram).unwrap();
        let _ = demux(&frame);
        let parsed = data::parse(&frame);
        prop_assert_eq!(parsed.is_ok(), known.is_sealed() && datagram.len() >= 36);
    }

    #[test]
    fn sealed_headers_round_trip(
        src in any::<u32>(), dst in any::<u32>(), nonce in any::<[u8; 12]>(), flags in any::<u8>(), len in 41_usize..2000,
    ) {
        let clear = DataHeader { src: NodeId(src), dst: NodeId(dst), nonce };
        let mut frame = vec![0x5a; len];
        data::write_header(&mut frame, FrameType::Data, Flags(flags), &clear).unwrap();
        prop_assert_eq!(data::parse(&frame), Ok(clear));
        prop_assert!(frame[data::PLAINTEXT_OFFSET..].iter().all(|byte| *byte == 0x5a));
        let expected = [&[1, 0x10, flags & 0xef], &src.to_be_bytes()[..], &dst.to_be_bytes()].concat();
        prop_assert_eq!(data::aad(&frame).to_vec(), expected);
    }

    #[test]
    fn keepalives_round_trip(src in any::<u32>(), seq in any::<u32>(), timestamp_ms in any::<u32>()) {
        let keepalive = Keepalive { src: NodeId(src), seq, timestamp_ms };
        let datagram = keepalive.encode();
        prop_assert_eq!(demux(&datagram), Ok(Datagram::Keepalive(keepalive)));
    }
}

#[test]
fn no_vector_is_mistaken() {
    let kinds: Vec<_> = vectors()
        .into_iter()
        .filter_map(|(name, bytes)| {
            demux(&bytes).ok().map(|datagram| match datagram {
                Datagram::Stun(_) => (name, "stun"),
                Datagram::Keepalive(_) => (name, "keepalive"),
                Datagram::Frame(_) => (name, "frame"),
            })
        })
        .collect();
    let expected = [
        ("data", "frame"),
        ("key-announce", "frame"),
        ("p2p-keepalive", "keepalive"),
        ("p2p-ping", "frame"),
        ("p2p-pong", "frame"),
        ("stun", "stun"),
    ];
    assert_eq!(kinds, expected);
}
