//! Compression, fragmentation, and what a hostile peer makes of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

mod common;

use common::vector;
use edgelink_wire::control::{ControlMessage, Reassembler, Received, encode, encode_into, proto};
use edgelink_wire::{Flags, Frame, FrameType, HEADER_LEN, MAX_PAYLOAD, MAX_REASSEMBLED, WireError, frames, put_frame};
use proptest::prelude::*;

const COMPRESSED: Flags = Flags::COMPRESSED;
const MORE: Flags = Flags::MORE;

/// Bytes that no compressor makes shorter.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

/// A CONFIG with `len` bytes of noise in it.
fn noisy_config(len: usize) -> proto::Config {
    let peer = proto::Peer { node_id: 1, statement: noise(len), ..Default::default() };
    proto::Config { version: 9, peers: vec![peer], ..Default::default() }
}

fn parts(bytes: &[u8]) -> Vec<Frame<'_>> {
    frames(bytes).collect::<Result<_, _>>().unwrap()
}

/// Pushes all frames; every one but the last must ask for more.
fn receive(bytes: &[u8]) -> Result<Received, WireError> {
    let mut reassembler = Reassembler::new();
    let all = parts(bytes);
    let (last, first) = all.split_last().unwrap();
    for frame in first {
        assert_eq!(reassembler.push(frame)?, None);
    }
    Ok(reassembler.push(last)?.expect("the last frame ends the message"))
}

fn frame(ty: u8, flags: Flags, payload: &[u8]) -> Frame<'_> {
    Frame { ty, flags, payload, raw: &[] }
}

#[test]
fn a_small_message_is_one_plain_frame() {
    let bytes = encode(&proto::P2pInit { node_id: 200, attempt: 1 }, COMPRESSED | MORE).unwrap();
    assert_eq!(bytes, vector("p2p-init"), "the caller has no say in COMPRESSED and MORE");
}

#[test]
fn a_repetitive_message_is_compressed() {
    let message = proto::Error { message: "a".repeat(600), ..Default::default() };
    let bytes = encode(&message, Flags::ACK_REQUESTED).unwrap();
    assert_eq!(parts(&bytes)[0].flags, COMPRESSED | Flags::ACK_REQUESTED);
    assert!(bytes.len() < 60, "{} bytes", bytes.len());
    let received = receive(&bytes).unwrap();
    assert_eq!(received, Received { message: message.into(), ack_requested: true, ty: FrameType::Error });
}

#[test]
fn noise_is_not_compressed() {
    let bytes = encode(&noisy_config(5000), Flags::NONE).unwrap();
    assert_eq!(parts(&bytes)[0].flags, Flags::NONE);
}

#[test]
fn what_holds_secrets_is_never_compressed() {
    let long = "t".repeat(2000);
    let tokens = || Some(proto::Tokens { auth_token: long.clone(), ..Default::default() });
    let mesh_tokens = || vec![proto::MeshToken { server_id: 1, token: long.clone(), ..Default::default() }];
    let relay_keys = || Some(proto::RelayKeys { key: vec![7; 2000], ..Default::default() });
    let network = Some(proto::Network { name: long.clone(), ..Default::default() });
    let secret: [ControlMessage; 8] = [
        proto::AuthRequest { token: long.clone(), ..Default::default() }.into(),
        proto::AuthResponse { tokens: tokens(), ..Default::default() }.into(),
        proto::Config { tokens: tokens(), ..Default::default() }.into(),
        proto::Config { mesh_tokens: mesh_tokens(), ..Default::default() }.into(),
        proto::Config { relay_keys: relay_keys(), ..Default::default() }.into(),
        proto::ConfigUpdate { tokens: tokens(), ..Default::default() }.into(),
        proto::ConfigUpdate { mesh_tokens: mesh_tokens(), ..Default::default() }.into(),
        proto::ConfigUpdate { relay_keys: relay_keys(), ..Default::default() }.into(),
    ];
    for message in secret {
        let bytes = encode(&message, Flags::NONE).unwrap();
        assert_eq!(parts(&bytes)[0].flags, Flags::NONE, "{}", message.ty());
        assert_eq!(receive(&bytes).unwrap().message, message);
        let debug = format!("{message:?}");
        assert!(!debug.contains("ttt") && !debug.contains("7, 7"), "{debug}");
        assert!(debug.contains("<secret>"), "{debug}");
    }
    let open: [ControlMessage; 2] = [
        proto::Config { network: network.clone(), ..Default::default() }.into(),
        proto::ConfigUpdate { network, ..Default::default() }.into(),
    ];
    for message in open {
        assert_eq!(parts(&encode(&message, Flags::NONE).unwrap())[0].flags, COMPRESSED, "{}", message.ty());
    }
}

#[test]
fn the_largest_message_is_split_and_not_one_byte_more_is_sent() {
    let around = encode(&noisy_config(MAX_REASSEMBLED - 100), Flags::NONE).unwrap();
    let overhead: usize =
        parts(&around).iter().map(|frame| frame.payload.len()).sum::<usize>() - (MAX_REASSEMBLED - 100);
    let largest = noisy_config(MAX_REASSEMBLED - overhead);
    let bytes = encode(&largest, Flags::ACK_REQUESTED).unwrap();
    let all = parts(&bytes);
    assert_eq!(all.len(), 129);
    let (last, first) = all.split_last().unwrap();
    assert!(first.iter().all(|frame| frame.flags == MORE && frame.payload.len() == MAX_PAYLOAD));
    assert_eq!(last.flags, Flags::ACK_REQUESTED);
    let received = receive(&bytes).unwrap();
    assert!(received.ack_requested);
    assert!(received.message == ControlMessage::Config(largest));

    let mut out = vec![1, 2, 3];
    let refused = encode_into(&mut out, &noisy_config(MAX_REASSEMBLED - overhead + 1), Flags::NONE);
    assert_eq!(refused, Err(WireError::TooLarge { len: MAX_REASSEMBLED + 1, limit: MAX_REASSEMBLED }));
    assert_eq!(out, [1, 2, 3]);
}

/// Exactly one frame's payload is not split; one byte more is.
#[test]
fn split_at_the_frame_boundary() {
    let overhead = encode(&noisy_config(60_000), Flags::NONE).unwrap().len() - HEADER_LEN - 60_000;
    for (len, expected) in [(MAX_PAYLOAD, 1), (MAX_PAYLOAD + 1, 2), (2 * MAX_PAYLOAD, 2)] {
        // Lengths of 60,000 to 131,070 take three varint bytes each, so the overhead stays.
        let message = noisy_config(len - overhead);
        let bytes = encode(&message, Flags::NONE).unwrap();
        assert_eq!(parts(&bytes).len(), expected, "{len}");
        assert_eq!(receive(&bytes).unwrap().message, message.into());
    }
}

#[test]
fn compressed_first_and_then_split() {
    let noise = noise(200_000);
    let peers = noise.chunks(1000).map(|statement| proto::Peer {
        statement: statement.to_vec(),
        name: "n".repeat(1000),
        ..Default::default()
    });
    let message = proto::Config { peers: peers.collect(), ..Default::default() };
    let bytes = encode(&message, Flags::NONE).unwrap();
    let all = parts(&bytes);
    assert!((4..6).contains(&all.len()), "{} frames", all.len());
    assert!(all.iter().all(|frame| frame.flags.contains(COMPRESSED)));
    assert_eq!(receive(&bytes).unwrap().message, message.into());
}

#[test]
fn an_unknown_type_is_skipped_even_inside_a_split_message() {
    let bytes = vector("config-split");
    let all = parts(&bytes);
    let mut reassembler = Reassembler::new();
    assert_eq!(reassembler.push(&all[0]), Ok(None));
    assert_eq!(reassembler.buffered(), 20);
    let error = reassembler.push(&frame(0x77, MORE, b"future")).unwrap_err();
    assert_eq!(error, WireError::UnknownType(0x77));
    assert!(!error.closes());
    assert_eq!(reassembler.push(&all[1]).unwrap().unwrap().ty, FrameType::Config);
}

#[test]
fn a_message_inside_a_split_one_is_refused() {
    let bytes = vector("config-split");
    let all = parts(&bytes);
    let ack = vector("ack");
    let mut reassembler = Reassembler::new();
    reassembler.push(&all[0]).unwrap();
    let interleaved = WireError::Interleaved { pending: FrameType::Config, got: FrameType::Ack };
    assert_eq!(reassembler.push(&parts(&ack)[0]), Err(interleaved));
    // The half message is gone: what was its last frame begins a new one, which makes no sense.
    assert!(matches!(reassembler.push(&all[1]), Err(WireError::Protobuf { ty: FrameType::Config, .. })));
    assert_eq!(reassembler.push(&parts(&ack)[0]).unwrap().unwrap().ty, FrameType::Ack);
}

#[test]
fn frames_that_are_no_control_messages_are_refused() {
    for ty in FrameType::ALL {
        let result = Reassembler::new().push(&frame(ty.as_u8(), Flags::NONE, &[]));
        if ty.is_control() {
            assert_eq!(result.unwrap().unwrap().ty, ty, "every field has a default");
        } else {
            assert_eq!(result, Err(WireError::UnexpectedType(ty)));
        }
    }
}

#[test]
fn flags_of_a_split_message_must_agree() {
    let mut reassembler = Reassembler::new();
    reassembler.push(&frame(3, MORE, b"abc")).unwrap();
    assert_eq!(reassembler.push(&frame(3, COMPRESSED, b"def")), Err(WireError::BadFlags(FrameType::Config)));
    assert_eq!(
        reassembler.push(&frame(3, MORE, b"")),
        Err(WireError::BadLength(FrameType::Config)),
        "an empty part would let a message never end"
    );
}

#[test]
fn reassembly_is_bounded() {
    let mut reassembler = Reassembler::with_limit(4096);
    let part = [0; 1000];
    for _ in 0..4 {
        assert_eq!(reassembler.push(&frame(3, MORE, &part)), Ok(None));
    }
    assert_eq!(reassembler.push(&frame(3, MORE, &part)), Err(WireError::TooLarge { len: 5000, limit: 4096 }));
    assert_eq!(
        reassembler.push(&frame(3, Flags::NONE, &[0; 4097])),
        Err(WireError::TooLarge { len: 4097, limit: 4096 })
    );
    reassembler.set_limit(MAX_REASSEMBLED);
    let largest = vec![0; MAX_PAYLOAD];
    let mut pushed = 0;
    let error = loop {
        match reassembler.push(&frame(3, MORE, &largest)) {
            Ok(_) => pushed += largest.len(),
            Err(error) => break error,
        }
    };
    assert_eq!(error, WireError::TooLarge { len: pushed + largest.len(), limit: MAX_REASSEMBLED });
    assert_eq!(pushed / MAX_PAYLOAD, 128);
}

fn push_compressed(compressed: &[u8]) -> Result<Option<Received>, WireError> {
    Reassembler::new().push(&frame(3, COMPRESSED, compressed))
}

#[test]
fn a_zip_bomb_is_refused_at_the_limit() {
    let bomb = zstd::bulk::compress(&vec![0; 1 << 30], 3).unwrap();
    let mut bytes = Vec::new();
    let mut chunks = bomb.chunks(MAX_PAYLOAD).peekable();
    while let Some(chunk) = chunks.next() {
        let more = if chunks.peek().is_some() { MORE } else { Flags::NONE };
        put_frame(&mut bytes, FrameType::Config, COMPRESSED | more, chunk).unwrap();
    }
    assert_eq!(receive(&bytes), Err(WireError::TooLarge { len: MAX_REASSEMBLED + 1, limit: MAX_REASSEMBLED }));
}

#[test]
fn decompression_stops_exactly_beyond_the_limit() {
    // Field 1000, unknown and so ignored, of as many bytes as fill the message.
    let filled = |len: usize| {
        let mut body = vec![0xc2, 0x3e];
        prost::encode_length_delimiter(len - 6, &mut body).unwrap();
        body.resize(len, 0);
        zstd::bulk::compress(&body, 3).unwrap()
    };
    assert_eq!(push_compressed(&filled(MAX_REASSEMBLED)).unwrap().unwrap().message, proto::Config::default().into());
    let refused = push_compressed(&filled(MAX_REASSEMBLED + 1));
    assert_eq!(refused, Err(WireError::TooLarge { len: MAX_REASSEMBLED + 1, limit: MAX_REASSEMBLED }));
}

/// A header that asks for a window of 128 MiB or more is refused before anybody allocates it.
#[test]
fn a_huge_window_is_refused() {
    // Magic, descriptor (no single segment, no size), window byte 2^(10 + exponent), one empty last raw block.
    let with_window = |exponent: u8| [0x28, 0xb5, 0x2f, 0xfd, 0x00, exponent << 3, 0x01, 0x00, 0x00];
    assert!(push_compressed(&with_window(13)).is_ok(), "8 MiB");
    assert_eq!(push_compressed(&with_window(14)), Err(WireError::Compression(FrameType::Config)));
    assert_eq!(push_compressed(&with_window(17)), Err(WireError::Compression(FrameType::Config)));
}

#[test]
fn only_one_whole_zstd_frame_is_accepted() {
    let golden = vector("config-update-compressed");
    let whole = &golden[HEADER_LEN..];
    let push = |bytes: &[u8]| Reassembler::new().push(&frame(4, COMPRESSED, bytes));
    assert!(push(whole).is_ok());
    for len in 0..whole.len() {
        assert_eq!(push(&whole[..len]), Err(WireError::Compression(FrameType::ConfigUpdate)), "cut at {len}");
    }
    for trailing in [&whole[..1], whole, b"garbage"] {
        let longer = [whole, trailing].concat();
        assert_eq!(push(&longer), Err(WireError::Compression(FrameType::ConfigUpdate)));
    }
}

#[test]
fn nobody_reaches_the_decompressor_before_authentication() {
    for ty in [FrameType::AuthRequest, FrameType::AuthResponse] {
        let empty = zstd::bulk::compress(&[], 3).unwrap();
        let refused = Reassembler::new().push(&frame(ty.as_u8(), COMPRESSED, &empty));
        assert_eq!(refused, Err(WireError::BadFlags(ty)));
    }
}

#[test]
fn errors_carry_their_code() {
    let bytes = vector("error");
    let ControlMessage::Error(error) = receive(&bytes).unwrap().message else { panic!("not an ERROR") };
    assert_eq!(error.error_code(), Some(edgelink_model::ErrorCode::NodeOffline));
    for code in [0, 1007, 65_536 + 3002] {
        assert_eq!(proto::Error { code, ..Default::default() }.error_code(), None);
    }
}

fn any_peer() -> impl Strategy<Value = proto::Peer> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
    (any::<u32>(), ".{0,80}", bytes(), bytes(), any::<bool>()).prop_map(
        |(node_id, name, statement, signature, online)| proto::Peer {
            node_id,
            name,
            statement,
            signature,
            online,
            ..Default::default()
        },
    )
}

proptest! {
    #[test]
    fn configs_round_trip(
        version in any::<u64>(),
        peers in proptest::collection::vec(any_peer(), 0..40),
        token in proptest::option::of("[a-z.]{0,900}"),
        flags in any::<u8>(),
    ) {
        let tokens = token.map(|auth_token| proto::Tokens { auth_token, ..Default::default() });
        let message = proto::Config { version, peers, tokens, ..Default::default() };
        let bytes = encode(&message, Flags(flags)).unwrap();
        let received = receive(&bytes).unwrap();
        prop_assert_eq!(received.ack_requested, Flags(flags).contains(Flags::ACK_REQUESTED));
        prop_assert_eq!(&received.message, &ControlMessage::Config(message));
        // The same through the enum.
        prop_assert_eq!(encode(&received.message, Flags(flags)).unwrap(), bytes);
    }

    #[test]
    fn any_split_gives_the_same_message(at in proptest::collection::btree_set(1_usize..86, 0..10)) {
        let whole = vector("config");
        let body = &whole[HEADER_LEN..];
        let mut reassembler = Reassembler::new();
        let mut from = 0;
        for to in at {
            prop_assert_eq!(reassembler.push(&frame(3, MORE, &body[from..to])), Ok(None));
            from = to;
        }
        let joined = reassembler.push(&frame(3, Flags::ACK_REQUESTED, &body[from..])).unwrap().unwrap();
        prop_assert_eq!(joined, receive(&whole).unwrap());
    }

    /// Arbitrary frames in any order: no panic, and no memory beyond the limit.
    #[test]
    fn arbitrary_frames_never_panic(
        all in proptest::collection::vec((any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..20),
        known in any::<bool>(),
    ) {
        let mut reassembler = Reassembler::with_limit(200);
        for (ty, flags, payload) in &all {
            let ty = if known { ty % 6 } else { *ty };
            let _ = reassembler.push(&frame(ty, Flags(*flags), payload));
            prop_assert!(reassembler.buffered() <= 200);
        }
    }
}
