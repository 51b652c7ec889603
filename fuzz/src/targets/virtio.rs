//! Super-packets: whatever the header says, nothing is read outside the packet; segments carry the payload, and their
//! checksums are right by a routine of this file's own. Joined again they are what they were.

use crate::input::Input;
use crate::packets::{datagrams, tcp, udp};
use edgelink_wire::virtio::{
    self, F_NEEDS_CSUM, GSO_NONE, GSO_UDP_L4, Joiner, MAX_SEGMENTS, VirtioHeader, complete_checksum, segment, slice,
    validate,
};
use std::net::Ipv4Addr;

/// The packet as it comes.
const RAW: u8 = 0;
/// Its IP length and header length made right first.
const MENDED: u8 = 1;

const HERE: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (len, size) in [(3_000, 1_000), (100, 7), (1, 1), (2_500, 1_400)] {
        let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let (header, packet) = tcp(HERE, THERE, &payload, size);
        let mut v6 =
            [&[0x60, 0, 0, 0][..], &(20 + len as u16).to_be_bytes(), &[6, 64], &[0x20; 32], &packet[20..]].concat();
        let mut h6 = VirtioHeader::parse(&header).unwrap();
        (h6.gso_type, h6.csum_start, h6.hdr_len) = (virtio::GSO_TCPV6, 40, 60);
        v6[52] = 0x50;
        for (header, packet) in [(header, packet), (h6.to_bytes(), v6)] {
            seeds.push([&[RAW, 0, 0][..], &header, &packet].concat());
            seeds.push([&[MENDED, 2, 0][..], &header, &packet].concat());
        }
    }
    for (len, size) in [(3_000, 1_000), (100, 7), (1, 1)] {
        let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let (header, packet) = datagrams(HERE, THERE, &payload, size);
        let v6 =
            [&[0x60, 0, 0, 0][..], &(8 + len as u16).to_be_bytes(), &[17, 64], &[0x20; 32], &packet[20..]].concat();
        let mut h6 = VirtioHeader::parse(&header).unwrap();
        (h6.csum_start, h6.hdr_len) = (40, 48);
        for (header, packet) in [(header, packet), (h6.to_bytes(), v6)] {
            seeds.push([&[RAW, 0, 0][..], &header, &packet].concat());
            seeds.push([&[MENDED, 2, 0][..], &header, &packet].concat());
        }
    }
    seeds.push([&[RAW, 0, 0][..], &[0; 10], &udp(HERE, THERE, b"plain")].concat());
    seeds.push([&[RAW, 0, 0][..], &[1, 0, 0, 0, 0, 0, 20, 0, 6, 0], &udp(HERE, THERE, b"to complete")].concat());
    seeds
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let (mode, limit) = (input.u8(), input.u16());
    let header = VirtioHeader::parse(&input.array::<10>()).unwrap();
    assert_eq!(VirtioHeader::parse(&header.to_bytes()), Some(header));
    let mut packet = input.0.to_vec();
    if mode % 2 == MENDED {
        mend(&mut packet);
    }
    let mut completed = packet.clone();
    let done = complete_checksum(&header, &mut completed);
    assert_eq!(completed.len(), packet.len());
    if header.flags & F_NEEDS_CSUM == 0 {
        assert_eq!((done, &completed), (Ok(()), &packet));
    }

    // Two packets that may or may not belong together.
    let (one, other) = packet.split_at(packet.len() / 2);
    check_joined(&[one.to_vec(), other.to_vec(), packet.clone(), packet.clone()]);

    let valid = validate(&header, &packet);
    let limit = (limit > 0).then_some(limit);
    let mut segments = Vec::new();
    let count = segment(&header, &packet, limit, |segment| segments.push(segment.to_vec()));
    let Ok(count) = count else {
        assert!(valid.is_err(), "valid, but not to be segmented: {count:?}");
        assert!(segments.is_empty());
        return;
    };
    assert_eq!(count, segments.len());
    if header.gso_type == GSO_NONE {
        assert_eq!(segments.len(), usize::from(!packet.is_empty()));
        return;
    }
    check_joined(&segments);
    // Datagrams are what the program made them, whatever the path's limit.
    let limit = limit.filter(|_| header.gso_type != GSO_UDP_L4);
    check(&header, &packet, limit, &segments);
    if valid.is_ok() && limit.is_none() {
        assert!(count <= MAX_SEGMENTS);
    }
    check_sliced(&header, &packet, input_limit(&packet), &segments, limit.is_none());
}

/// Some length that follows from the packet.
fn input_limit(packet: &[u8]) -> usize {
    usize::from(packet.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte))) * 16
}

/// Slices stand for the segments that the whole does.
fn check_sliced(header: &VirtioHeader, packet: &[u8], limit: usize, segments: &[Vec<u8>], comparable: bool) {
    let mut again = Vec::new();
    let sliced = slice(header, packet, limit, |header, slice| {
        let header = VirtioHeader::parse(header).unwrap();
        segment(&header, slice, None, |segment| again.push(segment.to_vec())).unwrap();
    });
    assert!(sliced.is_ok(), "cut but not sliced: {sliced:?}");
    assert!(!comparable || again == segments);
}

/// Whatever is joined is the same when it is cut again. All packets are of one flow or not looked at, so their order stays.
fn check_joined(packets: &[Vec<u8>]) {
    let mut joiner = Joiner::new(true);
    let mut again: Vec<Vec<u8>> = Vec::new();
    let mut out = |header: &[u8; virtio::LEN], packet: &[u8]| {
        let header = VirtioHeader::parse(header).unwrap();
        if header.is_gso() {
            assert_eq!(validate(&header, packet), Ok(()));
            segment(&header, packet, None, |segment| again.push(segment.to_vec())).unwrap();
        } else {
            again.push(packet.to_vec());
        }
    };
    packets.iter().for_each(|packet| joiner.push(packet, &mut out));
    joiner.flush(&mut out);
    assert_eq!(again.len(), packets.len());
    let sorted = |packets: &[Vec<u8>]| {
        let mut packets: Vec<Vec<u8>> = packets.iter().map(|packet| without_id(packet)).collect();
        packets.sort();
        packets
    };
    assert_eq!(sorted(&again), sorted(packets));
}

/// The identification of packets that may not be fragmented means nothing.
fn without_id(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// The segments of a packet that was cut.
fn check(header: &VirtioHeader, packet: &[u8], limit: Option<u16>, segments: &[Vec<u8>]) {
    let mss = usize::from(limit.map_or(header.gso_size, |limit| limit.min(header.gso_size)));
    let ip = ip_header(packet);
    let udp = header.gso_type == GSO_UDP_L4;
    let (proto, head) = if udp { (17, ip + 8) } else { (6, ip + usize::from(packet[ip + 12] >> 4) * 4) };
    let first = u32::from_be_bytes(packet[ip + 4..ip + 8].try_into().unwrap());
    let mut payload: Vec<u8> = Vec::new();
    for (n, segment) in segments.iter().enumerate() {
        assert!(segment.len() > head && segment.len() - head <= mss);
        assert!(n + 1 == segments.len() || segment.len() - head == mss, "only the last may be short");
        if udp {
            assert_eq!(usize::from(u16::from_be_bytes([segment[ip + 4], segment[ip + 5]])), segment.len() - ip);
            assert_ne!(segment[ip + 6..ip + 8], [0, 0], "a checksum, not none");
        } else {
            let seq = u32::from_be_bytes(segment[ip + 4..ip + 8].try_into().unwrap());
            assert_eq!(seq, first.wrapping_add(payload.len() as u32));
        }
        if packet[0] >> 4 == 4 {
            assert_eq!(usize::from(u16::from_be_bytes([segment[2], segment[3]])), segment.len());
            assert_eq!(sum(&segment[..ip]), 0xffff, "IP checksum");
            assert_eq!(transport_sum(&segment[12..20], segment, ip, proto), 0xffff, "checksum");
        } else {
            assert_eq!(usize::from(u16::from_be_bytes([segment[4], segment[5]])), segment.len() - 40);
            assert_eq!(transport_sum(&segment[8..40], segment, ip, proto), 0xffff, "checksum");
        }
        payload.extend(&segment[head..]);
    }
    assert_eq!(payload, &packet[head..], "the payload, whole and in order");
}

/// Length of the IP header.
fn ip_header(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { usize::from(packet[0] & 15) * 4 } else { 40 }
}

fn transport_sum(addresses: &[u8], segment: &[u8], ip: usize, proto: u8) -> u32 {
    let transport = &segment[ip..];
    let pseudo = [addresses, &(transport.len() as u32).to_be_bytes(), &[0, 0, 0, proto]].concat();
    let padded = if transport.len() % 2 == 1 { [transport, &[0]].concat() } else { transport.to_vec() };
    sum(&[pseudo, padded].concat())
}

/// One's complement sum, byte by byte: 0xffff when a checksum inside is right (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0u32;
    for (n, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << if n % 2 == 0 { 8 } else { 0 };
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Makes lengths right, so that more than the lengths is looked at.
fn mend(packet: &mut [u8]) {
    let len = packet.len();
    match packet {
        [first, _, high, low, ..] if *first >> 4 == 4 => [*high, *low] = (len as u16).to_be_bytes(),
        [first, _, _, _, high, low, ..] if *first >> 4 == 6 && len >= 40 => {
            [*high, *low] = (len as u16 - 40).to_be_bytes()
        }
        _ => {}
    }
}
