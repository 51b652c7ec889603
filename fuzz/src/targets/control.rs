//! Control messages and their reassembly: bounded, and however a message is compressed and split, it is the same one.

use crate::golden::vectors;
use crate::input::{Input, chunk};
use edgelink_wire::control::{ControlMessage, Reassembler, encode};
use edgelink_wire::{Flags, FrameType, WireError, frames, put_frame};

/// The reassembler's limit here.
const LIMIT: usize = 64 << 10;
/// The decoded message decides: an empty `Peer` takes two bytes on the wire and 400 in memory, both vectors of a list
/// that has just grown counted; and two outcomes are compared. Channels therefore have limits of their own, below that
/// of the protocol.
pub(crate) const MAX_MEMORY: usize = 32 << 20;

const RAW: u8 = 0;
const SPLIT: u8 = 1;
const REPEATED: u8 = 2;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for bytes in vectors().into_values() {
        for frame in frames(&bytes).map_while(Result::ok).filter(|f| f.frame_type().is_some_and(FrameType::is_control))
        {
            seeds.push([&[RAW], frame.raw].concat());
            seeds.push([&[SPLIT, frame.ty, frame.flags.0, 0, 7], frame.payload].concat());
            seeds.push([&[SPLIT, frame.ty, frame.flags.0, 3, 2], frame.payload].concat());
            seeds.push(
                [&[REPEATED, frame.ty, 1][..], &[64], &chunk(&frame.payload[..frame.payload.len().min(40)])].concat(),
            );
        }
    }
    // Lists of empty elements, almost as many as fit: they take the most memory for a byte.
    let lists = [(0x03, 3), (0x03, 4), (0x03, 6), (0x04, 3), (0x04, 8), (0x22, 1), (0x31, 2), (0x41, 1), (0x42, 1)];
    for (n, (ty, field)) in (0..).zip(lists) {
        seeds.push([&[REPEATED, ty, n % 2, 20][..], &chunk(&[field << 3 | 2, 0].repeat(100))].concat());
    }
    // Beyond the limit, plain and compressed.
    for compress in [0, 1] {
        seeds.push([&[REPEATED, 0x22, compress, 40][..], &chunk(&[15 << 3 | 2, 4, 1, 2, 3, 4].repeat(30))].concat());
    }
    // A bomb: zeros.
    let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 19).unwrap();
    let mut frame = vec![RAW];
    put_frame(&mut frame, FrameType::Config, Flags::COMPRESSED, &bomb).unwrap();
    seeds.push(frame);
    let mut flood = vec![RAW];
    for _ in 0..40 {
        put_frame(&mut flood, FrameType::Config, Flags::MORE, &[10, 0]).unwrap();
    }
    seeds.push(flood);
    seeds
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 3 {
        RAW => raw(input.0),
        SPLIT => {
            let (ty, flags, compress, pieces) = (input.u8(), input.u8(), input.u8(), input.u8());
            split(ty, flags, compress, pieces, input.0);
        }
        _ => {
            let (ty, compress, times) = (input.u8(), input.u8(), input.u8());
            let piece = input.chunk();
            let body = piece.repeat((usize::from(times) * 16).min(2 * LIMIT / piece.len().max(1) + 2));
            split(ty, 0, compress, 60, &body);
        }
    }
}

fn raw(message: &[u8]) {
    let (mut reassembler, mut before) = (Reassembler::with_limit(LIMIT), 0);
    for frame in frames(message).map_while(Result::ok) {
        match reassembler.push(&frame) {
            Ok(Some(received)) => {
                assert_eq!(reassembler.buffered(), 0);
                round_trip(&received.message);
            }
            Ok(None) => assert!(reassembler.buffered() > before && frame.flags.contains(Flags::MORE)),
            Err(WireError::UnknownType(_)) => assert_eq!(reassembler.buffered(), before),
            Err(_) => assert_eq!(reassembler.buffered(), 0),
        }
        before = reassembler.buffered();
        assert!(before <= LIMIT);
        let _ = format!("{reassembler:?}");
    }
}

/// `body` as one frame, and compressed and split: the outcome is the same.
fn split(ty: u8, flags: u8, compress: u8, pieces: u8, body: &[u8]) {
    let Some(ty) = FrameType::from_u8(ty).filter(|ty| ty.is_control()) else { return };
    let flags = Flags(flags).without(Flags::MORE | Flags::COMPRESSED);
    let plain = (body.len() <= 65_535).then(|| {
        let mut message = Vec::new();
        put_frame(&mut message, ty, flags, body).unwrap();
        let frame = frames(&message).next().unwrap().unwrap();
        Reassembler::with_limit(LIMIT).push(&frame)
    });
    let compressed = compress % 2 == 1;
    let travels = if compressed { zstd::bulk::compress(body, 1).unwrap() } else { body.to_vec() };
    let flags = if compressed { flags | Flags::COMPRESSED } else { flags };
    let size = travels.len().div_ceil(usize::from(pieces).max(1)).clamp(1, 65_535);
    let mut message = Vec::new();
    let count = travels.chunks(size).len();
    for (n, piece) in travels.chunks(size).enumerate() {
        let more = if n + 1 < count { Flags::MORE } else { Flags::NONE };
        put_frame(&mut message, ty, flags | more, piece).unwrap();
    }
    if count == 0 {
        return;
    }
    let mut reassembler = Reassembler::with_limit(LIMIT);
    let mut outcome = Ok(None);
    for frame in frames(&message) {
        outcome = reassembler.push(&frame.unwrap());
        assert!(reassembler.buffered() <= LIMIT);
        match &outcome {
            Ok(None) => {}
            _ => break,
        }
    }
    assert_eq!(reassembler.buffered(), 0);
    if body.len() > LIMIT {
        assert!(outcome.is_err(), "{} bytes passed", body.len());
    }
    if let Ok(Some(received)) = &outcome {
        round_trip(&received.message);
    }
    if let Some(plain) = plain
        && outcome != Err(WireError::BadFlags(ty))
    {
        let text = |outcome: &Result<_, WireError>| outcome.as_ref().map_err(ToString::to_string).cloned();
        assert_eq!(text(&plain), text(&outcome));
    }
}

/// What was decoded can be encoded, and is the same when it is decoded again.
fn round_trip(message: &ControlMessage) {
    let bytes = encode(message, Flags::NONE).unwrap();
    let mut reassembler = Reassembler::new();
    let mut again = None;
    for frame in frames(&bytes) {
        again = reassembler.push(&frame.unwrap()).unwrap();
    }
    assert_eq!(&again.unwrap().message, message);
}
