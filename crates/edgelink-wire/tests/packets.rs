//! IP headers, checksums, and TCP super-packets cut in software.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

mod common;

use common::vector;
use edgelink_wire::packet::{self, IpView, checksum, pseudo_header};
use edgelink_wire::virtio::{
    F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, LEN, MAX_SEGMENTS, MAX_SUPER_PACKET, Segments,
    VirtioError, VirtioHeader, complete_checksum, plain_tcp, segment, slice, validate,
};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// The checksum, written as RFC 1071 §4.1 has it: word by word.
fn plain_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn plain_pseudo(ip: &[u8], tcp_len: usize) -> Vec<u8> {
    let mut pseudo = if ip[0] >> 4 == 4 { ip[12..20].to_vec() } else { ip[8..40].to_vec() };
    pseudo.extend((tcp_len as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, 6]);
    pseudo
}

/// A super-packet as the kernel hands it out.
#[derive(Clone, Debug)]
struct Super {
    v6: bool,
    ip_options: usize,
    tcp_options: usize,
    id: u16,
    seq: u32,
    flags: u8,
    payload: Vec<u8>,
    gso_size: u16,
}

impl Super {
    fn small(v6: bool) -> Self {
        let payload = (0..250).collect();
        Self { v6, ip_options: 0, tcp_options: 12, id: 7, seq: 1000, flags: ACK | PSH, payload, gso_size: 100 }
    }

    fn ip_len(&self) -> usize {
        if self.v6 { 40 } else { 20 + self.ip_options }
    }

    fn headers(&self) -> usize {
        self.ip_len() + 20 + self.tcp_options
    }

    fn packet(&self) -> Vec<u8> {
        let tcp_len = 20 + self.tcp_options + self.payload.len();
        let mut packet = if self.v6 {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend((tcp_len as u16).to_be_bytes());
            ip.extend([6, 64]);
            ip.extend((1..=32).map(|n| n * 7));
            ip
        } else {
            let mut ip = vec![0x40 | (self.ip_len() / 4) as u8, 0];
            ip.extend(((self.ip_len() + tcp_len) as u16).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend([0x40, 0, 64, 6, 0, 0, 10, 7, 0, 1, 10, 7, 0, 2]);
            ip.resize(self.ip_len(), 1);
            let sum = !plain_sum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ip
        };
        let partial = plain_sum(&plain_pseudo(&packet, tcp_len));
        packet.extend([0x9c, 0x40, 0, 80]);
        packet.extend(self.seq.to_be_bytes());
        packet.extend(99_u32.to_be_bytes());
        packet.extend([(((20 + self.tcp_options) / 4) << 4) as u8, self.flags, 2, 0]);
        packet.extend(partial.to_be_bytes());
        packet.extend([0, 0]);
        packet.resize(self.headers(), 1);
        packet.extend(&self.payload);
        packet
    }

    fn header(&self) -> VirtioHeader {
        VirtioHeader {
            flags: F_NEEDS_CSUM,
            gso_type: if self.v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            hdr_len: self.headers() as u16,
            gso_size: self.gso_size,
            csum_start: self.ip_len() as u16,
            csum_offset: 16,
        }
    }

    fn cut(&self, mss_limit: Option<u16>) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        let count = segment(&self.header(), &self.packet(), mss_limit, |bytes| segments.push(bytes.to_vec())).unwrap();
        assert_eq!(count, segments.len());
        segments
    }
}

fn any_super() -> impl Strategy<Value = Super> {
    let sizes = (0_usize..=10, 0_usize..=10, proptest::collection::vec(any::<u8>(), 1..9000), 1_u16..1500);
    (any::<bool>(), any::<u16>(), any::<u32>(), any::<u8>(), sizes).prop_map(
        |(v6, id, seq, flags, (ip_options, tcp_options, payload, gso_size))| Super {
            v6,
            ip_options: ip_options * 4,
            tcp_options: tcp_options * 4,
            id,
            seq,
            flags: flags & !(SYN | RST),
            payload,
            gso_size,
        },
    )
}

proptest! {
    #[test]
    fn segments_are_whole_packets_that_carry_the_payload(
        whole in any_super(), mss_limit in proptest::option::of(1_u16..1500),
    ) {
        let segments = whole.cut(mss_limit);
        let mss = usize::from(mss_limit.unwrap_or(u16::MAX).min(whole.gso_size));
        let headers = whole.headers();
        let ip_len = whole.ip_len();
        prop_assert_eq!(segments.len(), whole.payload.len().div_ceil(mss));
        let carried: Vec<u8> = segments.iter().flat_map(|bytes| bytes[headers..].to_vec()).collect();
        prop_assert!(carried == whole.payload, "payloads differ");

        let original = whole.packet();
        let last = segments.len() - 1;
        for (i, bytes) in segments.iter().enumerate() {
            let view = packet::parse(bytes).unwrap();
            prop_assert_eq!((view.total_len, view.proto, view.transport), (bytes.len(), 6, ip_len));
            if i < last {
                prop_assert_eq!(bytes.len(), headers + mss);
            }
            let tcp = &bytes[ip_len..];
            prop_assert_eq!(plain_sum(&[plain_pseudo(bytes, tcp.len()).as_slice(), tcp].concat()), 0xffff);
            if !whole.v6 {
                prop_assert_eq!(plain_sum(&bytes[..ip_len]), 0xffff);
                prop_assert_eq!(u16::from_be_bytes([bytes[4], bytes[5]]), whole.id.wrapping_add(i as u16));
            }
            let seq = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
            prop_assert_eq!(seq, whole.seq.wrapping_add((i * mss) as u32));
            let mut flags = whole.flags;
            if i != last { flags &= !(FIN | PSH); }
            if i != 0 { flags &= !CWR; }
            prop_assert_eq!(tcp[13], flags);

            // All else is as it was.
            let mut rest = bytes[..headers].to_vec();
            let mut expected = original[..headers].to_vec();
            let changed: &[usize] = if whole.v6 { &[4, 5] } else { &[2, 3, 4, 5, 10, 11] };
            for at in changed.iter().copied().chain([4, 5, 6, 7, 13, 16, 17].map(|at| ip_len + at)) {
                rest[at] = 0;
                expected[at] = 0;
            }
            prop_assert_eq!(rest, expected);
        }
    }

    #[test]
    fn slices_are_valid_super_packets_and_cut_into_the_same_segments(given in any_super(), limit in 0_usize..12_000) {
        let (header, packet) = (given.header(), given.packet());
        let (mut again, mut sizes) = (Vec::new(), Vec::new());
        let count = slice(&header, &packet, limit, |header, slice| {
            let header = VirtioHeader::parse(header).unwrap();
            assert!(validate(&header, slice).is_ok() || slice.len() - given.headers() > MAX_SEGMENTS * usize::from(given.gso_size));
            segment(&header, slice, None, |packet| again.push(packet.to_vec())).unwrap();
            sizes.push(slice.len());
        }).unwrap();
        prop_assert_eq!(again, given.cut(None));
        prop_assert_eq!(count, sizes.len());
        let one = given.headers() + usize::from(given.gso_size);
        prop_assert!(sizes.iter().all(|len| *len <= limit.max(one)));
        // No more of them than needed: two neighbours never fit one.
        prop_assert!(sizes.windows(2).all(|pair| pair[0] + usize::from(given.gso_size) > limit));
    }

    #[test]
    fn arbitrary_super_packets_never_panic(
        header in any::<[u8; LEN]>(), sane in any::<bool>(), whole in any_super(), cut in any::<prop::sample::Index>(),
        damage in any::<(prop::sample::Index, u8)>(), noise in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let header = if sane { whole.header() } else { VirtioHeader::parse(&header).unwrap() };
        let mut packet = whole.packet();
        packet[damage.0.index(whole.headers())] = damage.1;
        let cut = &packet[..cut.index(packet.len() + 1)];
        for bytes in [packet.as_slice(), cut, noise.as_slice()] {
            let valid = validate(&header, bytes);
            let mut total = 0;
            let segmented = segment(&header, bytes, None, |bytes| total += bytes.len());
            prop_assert_eq!(segmented.is_ok(), total > 0 || (bytes.is_empty() && segmented.is_ok()));
            if valid.is_ok() {
                prop_assert!(segmented.is_ok_and(|count| count <= MAX_SEGMENTS));
            }
            let mut sliced = 0;
            let slices = slice(&header, bytes, 1_000, |_, bytes| sliced += bytes.len());
            prop_assert_eq!(slices.is_ok(), sliced > 0);
            let _ = complete_checksum(&header, &mut bytes.to_vec());
            if let Some(view) = packet::parse(bytes) {
                prop_assert!(view.total_len <= bytes.len() && view.transport <= view.total_len);
            }
        }
    }

    #[test]
    fn checksums_agree_with_the_plain_one(bytes in proptest::collection::vec(any::<u8>(), 0..300), initial in any::<u32>()) {
        prop_assert_eq!(checksum(0, &bytes), !plain_sum(&bytes));
        let with_initial = [&initial.to_be_bytes(), bytes.as_slice()].concat();
        prop_assert_eq!(checksum(initial, &bytes), !plain_sum(&with_initial));
    }

    #[test]
    fn headers_round_trip(bytes in any::<[u8; LEN]>()) {
        let header = VirtioHeader::parse(&bytes).unwrap();
        let mut out = [0xff; LEN + 1];
        header.write(&mut out).unwrap();
        prop_assert_eq!(&out[..LEN], &bytes);
        prop_assert_eq!(out[LEN], 0xff);
        prop_assert_eq!(header.write(&mut out[..LEN - 1]), Err(VirtioError::Truncated));
        prop_assert_eq!(VirtioHeader::parse(&bytes[..LEN - 1]), None);
    }
}

#[test]
fn the_largest_super_packet() {
    for v6 in [false, true] {
        let mut whole = Super { gso_size: 1348, ..Super::small(v6) };
        whole.payload = vec![0xff; MAX_SUPER_PACKET - whole.headers()];
        let packet = whole.packet();
        assert_eq!(packet.len(), 65_489);
        assert_eq!(validate(&whole.header(), &packet), Ok(()));
        assert_eq!(whole.cut(None).len(), whole.payload.len().div_ceil(1348));
        whole.payload.push(0);
        assert_eq!(validate(&whole.header(), &whole.packet()), Err(VirtioError::TooLarge));
    }
}

#[test]
fn segments_are_written_in_place() {
    let whole = Super::small(false);
    let packet = whole.packet();
    let mut segments = Segments::new(&whole.header(), &packet, None).unwrap();
    let mut out = [0; 200];
    assert_eq!(segments.next_len(), 52 + 100);
    assert_eq!(segments.write_next(&mut out[..151]), None, "too short a buffer moves nothing on");
    let mut written = Vec::new();
    while let Some(len) = segments.write_next(&mut out) {
        written.push(out[..len].to_vec());
    }
    assert_eq!(written, whole.cut(None));
    assert_eq!(written.iter().map(Vec::len).collect::<Vec<_>>(), [152, 152, 102]);
    assert_eq!((segments.next_len(), segments.write_next(&mut out)), (0, None));
}

#[test]
fn a_payload_that_fits_is_one_segment() {
    let whole = Super { gso_size: 250, flags: ACK | PSH | FIN | CWR, ..Super::small(true) };
    let segments = whole.cut(None);
    assert_eq!(segments.len(), 1);
    assert_eq!(segments[0][53], whole.flags);
    assert_eq!(whole.cut(Some(249)).len(), 2);
    assert_eq!(whole.cut(Some(1400)).len(), 1, "a limit above the segment size changes nothing");
}

#[test]
fn packets_that_are_not_cut_come_out_completed() {
    for v6 in [false, true] {
        let whole = Super::small(v6);
        let plain = VirtioHeader { gso_type: GSO_NONE, gso_size: 0, ..whole.header() };
        let packet = whole.packet();
        let mut completed = packet.clone();
        complete_checksum(&plain, &mut completed).unwrap();
        let tcp = &completed[whole.ip_len()..];
        assert_eq!(plain_sum(&[plain_pseudo(&completed, tcp.len()).as_slice(), tcp].concat()), 0xffff);
        assert_eq!(validate(&plain, &packet), Ok(()));
        let mut out = Vec::new();
        assert_eq!(segment(&plain, &packet, Some(10), |bytes| out.push(bytes.to_vec())), Ok(1));
        assert_eq!(out, [completed]);

        let untouched = VirtioHeader::default();
        let mut same = packet.clone();
        complete_checksum(&untouched, &mut same).unwrap();
        assert_eq!(same, packet);
    }
}

#[test]
fn plain_tcp_is_cut_like_a_super_packet_of_one_segment() {
    for v6 in [false, true] {
        let whole = Super::small(v6);
        let plain = VirtioHeader { gso_type: GSO_NONE, gso_size: 0, ..whole.header() };
        let cut = |h: &VirtioHeader, packet: &[u8]| {
            let mut out = Vec::new();
            let header = plain_tcp(h, packet)?;
            segment(&header, packet, Some(100), |bytes| out.push(bytes.to_vec())).ok()?;
            Some(out)
        };
        let expected = whole.cut(Some(100));
        assert_eq!(expected.len(), 3);
        assert_eq!(cut(&plain, &whole.packet()), Some(expected.clone()));
        // One that comes from elsewhere, with its checksum: only if that is right.
        let mut completed = whole.packet();
        complete_checksum(&plain, &mut completed).unwrap();
        assert_eq!(cut(&VirtioHeader::default(), &completed), Some(expected));
        *completed.last_mut().unwrap() ^= 1;
        assert_eq!(cut(&VirtioHeader::default(), &completed), None);
        for flags in [SYN, RST | ACK, ACK | 0x20] {
            assert_eq!(cut(&plain, &Super { flags, ..Super::small(v6) }.packet()), None, "{flags:#x}");
        }
        assert_eq!(cut(&plain, &Super { payload: Vec::new(), ..Super::small(v6) }.packet()), None);
        assert_eq!(plain_tcp(&whole.header(), &whole.packet()), None, "it is one already");
        for end in 0..whole.headers() {
            assert_eq!(plain_tcp(&plain, &whole.packet()[..end]), None);
        }
    }
}

/// A UDP checksum that comes out as 0 is sent as ffff (RFC 768).
#[test]
fn zero_checksums_are_sent_as_ones() {
    let header = VirtioHeader { flags: F_NEEDS_CSUM, csum_start: 2, csum_offset: 2, ..Default::default() };
    let mut packet = [9, 9, 0xff, 0xf0, 0x00, 0x0f];
    complete_checksum(&header, &mut packet).unwrap();
    assert_eq!(packet, [9, 9, 0xff, 0xf0, 0xff, 0xff]);
}

#[test]
fn checksum_offsets_outside_the_packet_are_refused() {
    let packet = [0_u8; 60];
    for (csum_start, csum_offset, fits) in
        [(20, 38, true), (20, 39, false), (58, 0, true), (59, 0, false), (61, 0, false), (u16::MAX, u16::MAX, false)]
    {
        let header = VirtioHeader { flags: F_NEEDS_CSUM, csum_start, csum_offset, ..Default::default() };
        let expected = if fits { Ok(()) } else { Err(VirtioError::BadChecksumOffset) };
        assert_eq!(complete_checksum(&header, &mut packet.clone()), expected, "{csum_start}+{csum_offset}");
        assert_eq!(segment(&header, &packet, None, |_| ()).map(drop), expected, "{csum_start}+{csum_offset}");
    }
}

/// One thing wrong at a time.
#[test]
fn what_a_peer_must_not_send() {
    type Damage = (&'static str, fn(&mut VirtioHeader, &mut Vec<u8>), VirtioError);
    let table: [Damage; 22] = [
        ("unknown flag", |h, _| h.flags |= 4, VirtioError::Unsupported),
        ("no checksum to complete", |h, _| h.flags = F_DATA_VALID, VirtioError::Unsupported),
        ("UDP", |h, _| h.gso_type = 3, VirtioError::Unsupported),
        ("USO", |h, _| h.gso_type = 5, VirtioError::NotUdp),
        ("ECN alone", |h, _| h.gso_type = GSO_ECN, VirtioError::Unsupported),
        ("other family", |h, _| h.gso_type = GSO_TCPV6, VirtioError::BadFamily),
        ("no segment size", |h, _| h.gso_size = 0, VirtioError::BadSegmentSize),
        ("too many segments", |h, _| h.gso_size = 1, VirtioError::BadSegmentSize),
        ("checksum start", |h, _| h.csum_start += 1, VirtioError::BadChecksumOffset),
        ("checksum start far away", |h, _| h.csum_start = u16::MAX, VirtioError::BadChecksumOffset),
        ("checksum offset", |h, _| h.csum_offset = 6, VirtioError::BadChecksumOffset),
        ("header length", |h, p| h.hdr_len = p.len() as u16 + 1, VirtioError::Truncated),
        ("trailing byte", |_, p| p.push(0), VirtioError::BadLength),
        ("cut", |_, p| p.truncate(p.len() - 1), VirtioError::Truncated),
        ("not TCP", |_, p| p[9] = 17, VirtioError::NotTcp),
        ("first fragment", |_, p| p[6] = 0x20, VirtioError::NotTcp),
        ("later fragment", |_, p| p[7] = 1, VirtioError::NotTcp),
        ("SYN", |_, p| p[33] |= SYN, VirtioError::NotTcp),
        ("RST", |_, p| p[33] |= RST, VirtioError::NotTcp),
        ("TCP header too short", |_, p| p[32] = 0x40, VirtioError::Truncated),
        ("IP header too short", |_, p| p[0] = 0x44, VirtioError::Truncated),
        ("no IP", |_, p| p[0] = 0x05, VirtioError::Truncated),
    ];
    let whole = Super::small(false);
    for (name, damage, expected) in table {
        let (mut header, mut packet) = (whole.header(), whole.packet());
        assert_eq!(validate(&header, &packet), Ok(()));
        damage(&mut header, &mut packet);
        assert_eq!(validate(&header, &packet), Err(expected), "{name}");
    }
    let empty = Super { payload: vec![], ..whole.clone() };
    assert_eq!(validate(&empty.header(), &empty.packet()), Err(VirtioError::BadSegmentSize), "no payload");
    assert_eq!(segment(&whole.header(), &whole.packet(), Some(0), |_| ()), Err(VirtioError::BadSegmentSize));
}

#[test]
fn exactly_as_many_segments_as_allowed() {
    let mut whole = Super { gso_size: 10, ..Super::small(false) };
    whole.payload = vec![1; 10 * MAX_SEGMENTS];
    assert_eq!(validate(&whole.header(), &whole.packet()), Ok(()));
    whole.payload.push(1);
    assert_eq!(validate(&whole.header(), &whole.packet()), Err(VirtioError::BadSegmentSize));
    assert_eq!(whole.cut(None).len(), MAX_SEGMENTS + 1, "our own kernel's may have more");
}

#[test]
fn a_super_packet_with_ipv6_extensions_is_refused() {
    let whole = Super::small(true);
    let mut packet = whole.packet();
    packet[6] = 0;
    packet.splice(40..40, [6, 0, 1, 4, 0, 0, 0, 0]);
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    let header = VirtioHeader { csum_start: 48, ..whole.header() };
    assert_eq!(packet::parse(&packet).map(|view| (view.proto, view.transport)), Some((6, 48)));
    assert_eq!(validate(&header, &packet), Err(VirtioError::NotTcp));
}

#[test]
fn truncation_at_every_byte() {
    let plaintext = vector("super-packet");
    for len in 0..plaintext.len() {
        let Some(header) = VirtioHeader::parse(&plaintext[..len]) else {
            assert!(len < LEN);
            continue;
        };
        assert!(validate(&header, &plaintext[LEN..len]).is_err(), "cut at {len}");
        assert!(segment(&header, &plaintext[LEN..len], None, |_| panic!("handed out")).is_err(), "cut at {len}");
    }
}

#[test]
fn ipv4_headers() {
    let packet = Super { ip_options: 8, ..Super::small(false) }.packet();
    let expected = IpView {
        src: Ipv4Addr::new(10, 7, 0, 1).into(),
        dst: Ipv4Addr::new(10, 7, 0, 2).into(),
        proto: packet::TCP,
        total_len: packet.len(),
        transport: 28,
        fragment: false,
    };
    assert_eq!(packet::parse(&packet), Some(expected));
    let longer = [packet.as_slice(), &[0; 9]].concat();
    assert_eq!(packet::parse(&longer), Some(expected), "bytes beyond the packet are the caller's to mind");
    for len in 0..packet.len() {
        assert_eq!(packet::parse(&packet[..len]), None, "cut at {len}");
    }
}

#[test]
fn ipv6_headers() {
    let packet = Super::small(true).packet();
    let address = |from: u8| IpAddr::from(std::array::from_fn::<u8, 16, _>(|i| (from + i as u8) * 7));
    let expected = IpView {
        src: address(1),
        dst: address(17),
        proto: packet::TCP,
        total_len: packet.len(),
        transport: 40,
        fragment: false,
    };
    assert_eq!(packet::parse(&packet), Some(expected));
    for len in 0..packet.len() {
        assert_eq!(packet::parse(&packet[..len]), None, "cut at {len}");
    }
}

/// An IPv6 packet from its next-header field and what follows the header.
fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, body.len() as u8, next, 64];
    packet.extend(Ipv6Addr::LOCALHOST.octets());
    packet.extend(Ipv6Addr::LOCALHOST.octets());
    packet.extend(body);
    packet
}

#[test]
fn ipv6_extension_headers() {
    let seen = |next, body: &[u8]| {
        let view = packet::parse(&v6(next, body)).unwrap();
        (view.proto, view.transport, view.fragment)
    };
    assert_eq!(seen(17, &[0; 8]), (17, 40, false));
    assert_eq!(seen(59, &[]), (59, 40, false), "no next header");
    // Hop-by-hop, then destination options of 16 bytes, then UDP.
    let mut options = vec![60, 0, 1, 4, 0, 0, 0, 0, 17, 1];
    options.resize(24 + 8, 0);
    assert_eq!(seen(0, &options), (17, 64, false));
    assert_eq!(seen(0, &options[..20]), (60, 48, false), "stops where the chain is cut");
    // Fragments: first (more to come), middle, and one that is whole all the same (RFC 6946).
    assert_eq!(seen(44, &[6, 0, 0, 1, 0, 0, 0, 9, 1, 2]), (6, 48, true));
    assert_eq!(seen(44, &[60, 0, 5, 0x39, 0, 0, 0, 9, 17, 0, 0, 0, 0, 0, 0, 0]), (60, 48, true));
    assert_eq!(seen(44, &[6, 0, 0, 0, 0, 0, 0, 9, 1, 2]), (6, 48, false));
    // A chain without end.
    assert_eq!(seen(0, &[0; 240]), (0, 40 + 64, false));
}

/// The example of RFC 1071 §3 and the IPv4 header that textbooks use.
#[test]
fn published_checksums() {
    assert_eq!(!checksum(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    let header = hex::decode("450000730000400040110000c0a80001c0a800c7").unwrap();
    assert_eq!(checksum(0, &header), 0xb861);
    assert_eq!(checksum(0, &[]), 0xffff);
}

#[test]
fn pseudo_headers() {
    let v4 = pseudo_header([10, 7, 0, 1].into(), [10, 7, 0, 2].into(), 6, 40);
    assert_eq!(v4 as u16, plain_sum(&[10, 7, 0, 1, 10, 7, 0, 2, 0, 6, 0, 40]));
    let (src, dst) = (Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, 7), Ipv6Addr::LOCALHOST);
    let plain = [&src.octets()[..], &dst.octets(), &70_000_u32.to_be_bytes(), &[0, 0, 0, 17]].concat();
    assert_eq!(pseudo_header(src.into(), dst.into(), 17, 70_000) as u16, plain_sum(&plain));
}
