//! Frames and payloads: an independent, naive decoder must agree, and what parses encodes to the same bytes.

use crate::golden::vectors;
use edgelink_wire::data;
use edgelink_wire::keepalive::Keepalive;
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::ping::Ping;
use edgelink_wire::probe::Probe;
use edgelink_wire::udp::{Datagram, demux};
use edgelink_wire::{Flags, FrameType, WireError, frames, frames_mut, put_frame};

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let all: Vec<_> = vectors().into_values().filter(|bytes| bytes.len() < 4_096).collect();
    let whole: Vec<_> = all.iter().filter(|bytes| naive(bytes, 65_535).1.is_none()).cloned().collect();
    let batches = whole.windows(3).map(<[_]>::concat).collect();
    [all, batches].concat()
}

/// Type, flags, and where the whole frame lies.
type Place = (u8, u8, std::ops::Range<usize>);

/// Each frame, and what ends them before the end.
fn naive(message: &[u8], limit: usize) -> (Vec<Place>, Option<&'static str>) {
    let (mut found, mut at) = (Vec::new(), 0);
    if message.is_empty() {
        return (found, Some("empty"));
    }
    while at < message.len() {
        if message[at] != 1 {
            return (found, Some("version"));
        }
        if message.len() < at + 5 {
            return (found, Some("truncated"));
        }
        let len = usize::from(message[at + 3]) * 256 + usize::from(message[at + 4]);
        if len > limit {
            return (found, Some("too large"));
        }
        if message.len() < at + 5 + len {
            return (found, Some("truncated"));
        }
        found.push((message[at + 1], message[at + 2], at..at + 5 + len));
        at += 5 + len;
    }
    (found, None)
}

fn word(error: &WireError) -> &'static str {
    match error {
        WireError::Empty => "empty",
        WireError::UnsupportedVersion(_) => "version",
        WireError::Truncated => "truncated",
        WireError::TooLarge { .. } => "too large",
        other => panic!("frames() says {other}"),
    }
}

pub(crate) fn run(message: &[u8]) {
    for limit in [65_535, 256] {
        let (expected, end) = naive(message, limit);
        let (mut found, mut error) = (Vec::new(), None);
        for frame in frames(message).max_payload(limit) {
            assert!(error.is_none(), "something comes after an error");
            match frame {
                Ok(frame) => {
                    assert_eq!(frame.payload, &frame.raw[5..]);
                    found.push(frame);
                }
                Err(e) => error = Some(e),
            }
        }
        assert_eq!(error.as_ref().map(word), end);
        let plain: Vec<_> = found.iter().map(|f| (f.ty, f.flags.0, f.raw)).collect();
        let same: Vec<_> = expected.iter().map(|(ty, flags, at)| (*ty, *flags, &message[at.clone()])).collect();
        assert_eq!(plain, same);
        let mut copy = message.to_vec();
        let mut again = frames_mut(&mut copy).max_payload(limit);
        for frame in &found {
            assert_eq!(again.next().unwrap().unwrap().as_frame(), *frame);
        }
        assert_eq!(again.next().and_then(Result::err), error);
        found.iter().for_each(|frame| payload(frame.raw, frame.flags));
    }
    payload(message, Flags::NONE);
    datagram(message);
}

/// Everything that reads a payload or a whole frame.
fn payload(raw: &[u8], flags: Flags) {
    let payload = raw.get(5..).unwrap_or_default();
    if let Some(ty) = raw.get(1).copied().and_then(FrameType::from_u8) {
        let mut out = Vec::new();
        if put_frame(&mut out, ty, flags, payload).is_ok() && raw.get(2) == Some(&flags.0) && raw[0] == 1 {
            assert_eq!(out[5..], *payload);
        }
    }
    if let Ok(announce) = KeyAnnounce::parse(payload) {
        assert_eq!(announce.encode()[5..], *payload);
    }
    if let Ok(ping) = Ping::parse(payload) {
        assert_eq!(ping.encode(FrameType::Ping)[5..], *payload);
        assert_eq!(payload.len(), 12);
    }
    if let Ok(probe) = Probe::parse(payload) {
        assert_eq!(probe.encode(), payload[..12]);
    }
    let aad = data::aad(raw);
    match data::parse(raw) {
        Ok(clear) => {
            assert!(raw.len() >= 41 && [0x10, 0x32, 0x33].contains(&raw[1]));
            assert_eq!(clear.src.0.to_be_bytes(), raw[5..9]);
            assert_eq!(clear.dst.0.to_be_bytes(), raw[9..13]);
            assert_eq!(clear.nonce, raw[13..25]);
            let mut copy = raw.to_vec();
            copy[..25].fill(0xaa);
            let ty = FrameType::from_u8(raw[1]).unwrap();
            data::write_header(&mut copy, ty, Flags(raw[2]), &clear).unwrap();
            assert_eq!(copy, raw);
            assert_eq!(aad[..2], raw[..2]);
            assert_eq!(aad[2], raw[2] & !0x10);
            assert_eq!(aad[3..], raw[5..13]);
        }
        Err(_) => assert!(
            raw.len() < 41 || raw[0] != 1 || ![0x10, 0x32, 0x33].contains(&raw[1]) || {
                usize::from(raw[3]) * 256 + usize::from(raw[4]) + 5 != raw.len()
            }
        ),
    }
}

fn datagram(bytes: &[u8]) {
    let stun = bytes.len() >= 20
        && bytes[0] < 0x40
        && bytes[4..8] == [0x21, 0x12, 0xa4, 0x42]
        && bytes.len().is_multiple_of(4)
        && usize::from(bytes[2]) * 256 + usize::from(bytes[3]) + 20 == bytes.len();
    let one_frame = matches!(naive(bytes, 65_535), (frames, None) if frames.len() == 1);
    let by_udp = bytes.len() > 1 && [0x10, 0x13, 0x32, 0x33].contains(&bytes[1]);
    let keepalive = bytes.len() == 14 && bytes[..2] == [1, 0x34];
    match demux(bytes) {
        Ok(Datagram::Stun(all)) => assert!(stun && all == bytes),
        Ok(Datagram::Keepalive(found)) => {
            assert!(keepalive && !stun);
            assert_eq!(found.encode(), bytes);
            assert_eq!(Keepalive::parse(bytes), Ok(found));
        }
        Ok(Datagram::Frame(frame)) => assert!(one_frame && by_udp && !stun && frame.raw == bytes),
        Err(_) => assert!(!(stun || keepalive || one_frame && by_udp)),
    }
}
