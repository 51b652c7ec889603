//! Taking messages apart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

mod common;

use bytes::BufMut;
use common::vector;
use edgelink_model::ErrorCode;
use edgelink_wire::{Flags, FrameType, HEADER_LEN, MAX_PAYLOAD, WireError, frames, frames_mut, put_frame};
use proptest::prelude::*;

/// Any type byte, flags and payload.
fn any_frame() -> impl Strategy<Value = (u8, u8, Vec<u8>)> {
    (any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..300))
}

fn raw((ty, flags, payload): &(u8, u8, Vec<u8>)) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    [&[1, *ty, *flags, high, low], payload.as_slice()].concat()
}

proptest! {
    #[test]
    fn whatever_is_put_together_comes_apart(all in proptest::collection::vec(any_frame(), 1..8)) {
        let mut message: Vec<u8> = all.iter().flat_map(raw).collect();
        let parts: Vec<_> = frames(&message).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(parts.len(), all.len());
        for (part, (ty, flags, payload)) in parts.iter().zip(&all) {
            prop_assert_eq!((part.ty, part.flags, part.payload), (*ty, Flags(*flags), payload.as_slice()));
        }
        prop_assert_eq!(parts.iter().flat_map(|part| part.raw).copied().collect::<Vec<_>>(), message.clone());

        // The same frames to change, and each can change without the others noticing.
        for (part, expected) in frames_mut(&mut message).zip(&all) {
            let part = part.unwrap();
            prop_assert_eq!(part.raw.to_vec(), raw(expected));
            prop_assert_eq!((part.as_frame().ty, part.as_frame().payload), (expected.0, expected.2.as_slice()));
            part.raw[HEADER_LEN..].fill(0xaa);
        }
        let filled: Vec<u8> =
            all.iter().flat_map(|(ty, flags, payload)| raw(&(*ty, *flags, vec![0xaa; payload.len()]))).collect();
        prop_assert_eq!(message, filled);
    }

    /// Whole frames are a prefix of the message, and only a cut or a wrong version ends them early.
    #[test]
    fn arbitrary_bytes_never_panic(mut message in proptest::collection::vec(any::<u8>(), 0..200), ours in any::<bool>()) {
        if ours && message.len() > 4 {
            // Otherwise nearly all would fail at the first byte.
            message[0] = 1;
            message[3] = 0;
        }
        let mut whole = 0;
        let mut error = None;
        for frame in frames(&message) {
            match frame {
                Ok(frame) => {
                    prop_assert_eq!(frame.raw, &message[whole..whole + frame.raw.len()]);
                    prop_assert!(error.is_none());
                    whole += frame.raw.len();
                }
                Err(e) => error = Some(e),
            }
        }
        let rest = &message[whole..];
        let expected = match rest.first() {
            None if whole > 0 => None,
            None => Some(WireError::Empty),
            Some(1) => Some(WireError::Truncated),
            Some(&version) => Some(WireError::UnsupportedVersion(version)),
        };
        prop_assert_eq!(error, expected);
        let count = frames(&message).count();
        prop_assert_eq!(frames_mut(&mut message).count(), count);
    }
}

#[test]
fn trailing_bytes_are_refused_after_the_frames_before_them() {
    let mut message = vector("message-of-two");
    message.extend([1, 2, 3]);
    let results: Vec<_> = frames(&message).map(|frame| frame.map(|frame| frame.ty)).collect();
    assert_eq!(results, [Ok(0x20), Ok(0x05), Err(WireError::Truncated)]);
    message.truncate(message.len() - 3);
    message.push(0);
    assert_eq!(frames(&message).last(), Some(Err(WireError::UnsupportedVersion(0))));
}

#[test]
fn nothing_follows_an_error() {
    let mut message = vector("ping");
    message[0] = 2;
    message.extend(vector("ping"));
    let mut iterator = frames(&message);
    assert_eq!(iterator.next(), Some(Err(WireError::UnsupportedVersion(2))));
    assert_eq!(iterator.next(), None);
}

#[test]
fn largest_payload_and_not_one_byte_more() {
    let mut out = Vec::new();
    put_frame(&mut out, FrameType::Data, Flags(0x80), &vec![7; MAX_PAYLOAD]).unwrap();
    assert_eq!(out[..HEADER_LEN], [1, 0x10, 0x80, 0xff, 0xff]);
    assert_eq!(frames(&out).next().unwrap().unwrap().payload.len(), MAX_PAYLOAD);
    let before = out.len();
    let refused = put_frame(&mut out, FrameType::Data, Flags::NONE, &vec![7; MAX_PAYLOAD + 1]);
    assert_eq!(refused, Err(WireError::TooLarge { len: 65_536, limit: 65_535 }));
    assert_eq!(out.len(), before);
}

#[test]
fn a_full_buffer_is_an_error_and_stays_as_it_was() {
    let mut buffer = [0; 8];
    let mut room = &mut buffer[..];
    assert_eq!(put_frame(&mut room, FrameType::Ping, Flags::NONE, &[1; 4]), Err(WireError::NoRoom));
    assert_eq!(room.remaining_mut(), 8);
    assert_eq!(put_frame(&mut room, FrameType::Ping, Flags::NONE, &[1; 3]), Ok(()));
    assert_eq!(buffer, [1, 0x20, 0, 0, 3, 1, 1, 1]);
}

#[test]
fn limit_before_authentication() {
    let message = vector("auth-request-first");
    let payload = message.len() - HEADER_LEN;
    assert!(frames(&message).max_payload(payload).next().unwrap().is_ok());
    let refused = WireError::TooLarge { len: payload, limit: payload - 1 };
    assert_eq!(frames(&message).max_payload(payload - 1).next(), Some(Err(refused.clone())));
    assert_eq!(frames_mut(&mut message.clone()).max_payload(payload - 1).next(), Some(Err(refused)));
    // The limit is known from the header alone.
    assert!(matches!(frames(&message[..5]).max_payload(10).next(), Some(Err(WireError::TooLarge { .. }))));
}

#[test]
fn errors_have_the_codes_of_the_specification() {
    let table = [
        (WireError::Empty, ErrorCode::InvalidMessage, true),
        (WireError::Truncated, ErrorCode::InvalidMessage, true),
        (WireError::UnsupportedVersion(2), ErrorCode::UnsupportedVersion, true),
        (WireError::TooLarge { len: 2, limit: 1 }, ErrorCode::MessageTooLarge, true),
        (WireError::UnknownType(0x77), ErrorCode::InvalidMessage, false),
        (WireError::Compression(FrameType::Config), ErrorCode::InvalidMessage, true),
    ];
    for (error, code, closes) in table {
        assert_eq!((error.code(), error.closes()), (code, closes), "{error}");
    }
    let message = WireError::UnknownType(0x77).to_message(0x77);
    assert_eq!((message.code, message.answers_type, message.message.as_str()), (2002, 0x77, "unknown frame type 0x77"));
}
