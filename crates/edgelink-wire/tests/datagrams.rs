//! UDP super-packets: cut, sliced and joined against a reference of this file's own, and what a peer must not send.

#![expect(clippy::unwrap_used, reason = "tests may")]

use edgelink_wire::virtio::{
    F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_UDP_L4, Joiner, LEN, MAX_SEGMENTS, MAX_SUPER_PACKET,
    VirtioError, VirtioHeader, segment, slice, validate,
};
use proptest::prelude::*;

/// Sum of 16-bit words in one's complement, carried at each step (RFC 1071).
fn ones(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// What a program gave to one call with `UDP_SEGMENT`.
#[derive(Clone, Debug)]
struct Given {
    v6: bool,
    id: u16,
    payload: Vec<u8>,
    size: u16,
}

impl Given {
    fn small(v6: bool) -> Self {
        Self { v6, id: 0xfffe, payload: (0..250).collect(), size: 100 }
    }

    fn ip_len(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn head(&self) -> usize {
        self.ip_len() + 8
    }

    /// IP header of the `n`th datagram with so much behind it.
    fn ip(&self, n: u16, udp_len: usize) -> Vec<u8> {
        let udp_len = udp_len as u16;
        if self.v6 {
            let mut ip = vec![0x60, 5, 0, 9];
            ip.extend(udp_len.to_be_bytes());
            ip.extend([17, 64]);
            ip.extend((1..=32).map(|n| n * 7));
            return ip;
        }
        let mut ip = vec![0x45, 0xb8];
        ip.extend((20 + udp_len).to_be_bytes());
        ip.extend(self.id.wrapping_add(n).to_be_bytes());
        ip.extend([0x00, 0, 64, 17, 0, 0, 10, 7, 0, 1, 10, 7, 0, 2]);
        let sum = !ones(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    }

    fn pseudo(&self, udp_len: usize) -> Vec<u8> {
        let ip = self.ip(0, udp_len);
        let addresses = if self.v6 { &ip[8..40] } else { &ip[12..20] };
        [addresses, &(udp_len as u32).to_be_bytes(), &[0, 0, 0, 17]].concat()
    }

    fn udp(&self, payload: &[u8]) -> Vec<u8> {
        let len = 8 + payload.len();
        let mut udp = vec![0x9c, 0x40, 0, 53];
        udp.extend((len as u16).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(payload);
        udp
    }

    /// As the kernel hands it out: the checksum field holds the pseudo-header's sum.
    fn packet(&self) -> Vec<u8> {
        let mut udp = self.udp(&self.payload);
        let sum = ones(&[&self.pseudo(udp.len())]);
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        [self.ip(0, udp.len()), udp].concat()
    }

    fn header(&self) -> VirtioHeader {
        VirtioHeader {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            hdr_len: self.head() as u16,
            gso_size: self.size,
            csum_start: self.ip_len() as u16,
            csum_offset: 6,
        }
    }

    /// The datagrams that it stands for.
    fn datagrams(&self) -> Vec<Vec<u8>> {
        let cut = self.payload.chunks(usize::from(self.size)).zip(0_u16..);
        cut.map(|(payload, n)| {
            let mut udp = self.udp(payload);
            let sum = match !ones(&[&self.pseudo(udp.len()), &udp]) {
                0 => 0xffff,
                sum => sum,
            };
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
            [self.ip(n, udp.len()), udp].concat()
        })
        .collect()
    }
}

fn cut(header: &VirtioHeader, packet: &[u8], limit: Option<u16>) -> Vec<Vec<u8>> {
    let mut datagrams = Vec::new();
    segment(header, packet, limit, |datagram| datagrams.push(datagram.to_vec())).unwrap();
    datagrams
}

fn any_given() -> impl Strategy<Value = Given> {
    let sizes = (proptest::collection::vec(any::<u8>(), 1..9_000), 1_u16..1_500);
    (any::<bool>(), any::<u16>(), sizes).prop_map(|(v6, id, (payload, size))| Given { v6, id, payload, size })
}

proptest! {
    #[test]
    fn what_is_cut_is_what_was_given(given in any_given(), limit in proptest::option::of(1_u16..1_500)) {
        // A path's limit is no reason to make other datagrams than the program did.
        prop_assert!(cut(&given.header(), &given.packet(), limit) == given.datagrams());
        let many = given.payload.len().div_ceil(usize::from(given.size)) > MAX_SEGMENTS;
        prop_assert_eq!(validate(&given.header(), &given.packet()).is_err(), many);
    }

    #[test]
    fn slices_are_super_packets_that_stand_for_the_same_datagrams(given in any_given(), limit in 0_usize..12_000) {
        let mut again = Vec::new();
        let one = given.head() + usize::from(given.size);
        slice(&given.header(), &given.packet(), limit, |header, slice| {
            let header = VirtioHeader::parse(header).unwrap();
            let segments = (slice.len() - given.head()).div_ceil(usize::from(given.size));
            assert!(!header.is_gso() || segments > MAX_SEGMENTS || validate(&header, slice).is_ok());
            assert!(slice.len() <= limit.max(one));
            again.extend(cut(&header, slice, None));
        }).unwrap();
        prop_assert!(again == given.datagrams());
    }

    #[test]
    fn what_is_joined_is_valid_and_cuts_into_what_went_in(given in any_given()) {
        let (datagrams, mut again) = (given.datagrams(), Vec::new());
        let mut joiner = Joiner::new(true);
        let mut out = |header: &[u8; LEN], packet: &[u8]| {
            let header = VirtioHeader::parse(header).unwrap();
            assert!(!header.is_gso() || validate(&header, packet).is_ok());
            again.extend(cut(&header, packet, None));
        };
        datagrams.iter().for_each(|datagram| joiner.push(datagram, &mut out));
        joiner.flush(&mut out);
        prop_assert!(again == datagrams);
    }

    #[test]
    fn one_wrong_byte_never_panics_and_never_gets_other_lengths_past(
        given in any_given(), at in any::<proptest::sample::Index>(), flip in 1_u8..,
    ) {
        let mut bytes = [&given.header().to_bytes()[..], &given.packet()].concat();
        // The headers only.
        let at = at.index(LEN + given.head());
        bytes[at] ^= flip;
        let (header, packet) = bytes.split_at(LEN);
        let header = VirtioHeader::parse(header).unwrap();
        if validate(&header, packet).is_ok() && header.gso_type == GSO_UDP_L4 {
            let datagrams = cut(&header, packet, None);
            let carried: usize = datagrams.iter().map(|datagram| datagram.len() - given.head()).sum();
            prop_assert_eq!(carried, given.payload.len());
            prop_assert!(datagrams.len() <= MAX_SEGMENTS);
        }
    }
}

/// One thing wrong at a time.
#[test]
fn what_a_peer_must_not_send() {
    type Damage = (&'static str, fn(&mut VirtioHeader, &mut Vec<u8>), VirtioError);
    let table: [Damage; 21] = [
        ("unknown flag", |h, _| h.flags |= 4, VirtioError::Unsupported),
        ("no checksum to complete", |h, _| h.flags = 0, VirtioError::Unsupported),
        ("checksum verified, none to complete", |h, _| h.flags = F_DATA_VALID, VirtioError::Unsupported),
        ("UFO, whose pieces are fragments", |h, _| h.gso_type = 3, VirtioError::Unsupported),
        ("ECN beside UDP", |h, _| h.gso_type |= GSO_ECN, VirtioError::Unsupported),
        ("said to be TCP", |h, _| h.gso_type = GSO_TCPV4, VirtioError::NotTcp),
        ("no segment size", |h, _| h.gso_size = 0, VirtioError::BadSegmentSize),
        ("too many segments", |h, _| h.gso_size = 1, VirtioError::BadSegmentSize),
        ("checksum start", |h, _| h.csum_start += 1, VirtioError::BadChecksumOffset),
        ("checksum start far away", |h, _| h.csum_start = u16::MAX, VirtioError::BadChecksumOffset),
        ("TCP's checksum offset", |h, _| h.csum_offset = 16, VirtioError::BadChecksumOffset),
        ("header length", |h, p| h.hdr_len = p.len() as u16 + 1, VirtioError::Truncated),
        ("trailing byte", |_, p| p.push(0), VirtioError::BadLength),
        ("cut", |_, p| p.truncate(p.len() - 1), VirtioError::Truncated),
        ("UDP length too short", |_, p| p[25] -= 1, VirtioError::BadLength),
        ("UDP length too long", |_, p| p[25] += 1, VirtioError::BadLength),
        ("not UDP", |_, p| p[9] = 6, VirtioError::NotUdp),
        ("first fragment", |_, p| p[6] = 0x20, VirtioError::NotUdp),
        ("later fragment", |_, p| p[7] = 1, VirtioError::NotUdp),
        ("IP header too short", |_, p| p[0] = 0x44, VirtioError::Truncated),
        ("no IP", |_, p| p[0] = 0x05, VirtioError::Truncated),
    ];
    let given = Given::small(false);
    for (name, damage, expected) in table {
        let (mut header, mut packet) = (given.header(), given.packet());
        assert_eq!(validate(&header, &packet), Ok(()));
        damage(&mut header, &mut packet);
        assert_eq!(validate(&header, &packet), Err(expected), "{name}");
    }
    let empty = Given { payload: vec![], ..given };
    assert_eq!(validate(&empty.header(), &empty.packet()), Err(VirtioError::BadSegmentSize), "no payload");
}

#[test]
fn ipv6_extensions_are_refused() {
    let given = Given::small(true);
    let mut packet = given.packet();
    packet[6] = 0;
    packet.splice(40..40, [17, 0, 1, 4, 0, 0, 0, 0]);
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    let header = VirtioHeader { csum_start: 48, ..given.header() };
    assert_eq!(validate(&header, &packet), Err(VirtioError::NotUdp));
}

#[test]
fn truncation_at_every_byte() {
    for v6 in [false, true] {
        let given = Given::small(v6);
        let packet = given.packet();
        for len in 0..packet.len() {
            assert!(validate(&given.header(), &packet[..len]).is_err(), "cut at {len}");
            let handed_out = segment(&given.header(), &packet[..len], None, |_| panic!("handed out"));
            assert!(handed_out.is_err(), "cut at {len}");
        }
    }
}

#[test]
fn the_longest_and_the_most() {
    let longest = Given { payload: vec![7; MAX_SUPER_PACKET - 28], size: 1_372, ..Given::small(false) };
    assert_eq!(validate(&longest.header(), &longest.packet()), Ok(()));
    let longer = Given { payload: vec![7; MAX_SUPER_PACKET - 27], ..longest };
    assert_eq!(validate(&longer.header(), &longer.packet()), Err(VirtioError::TooLarge));
    let most = Given { payload: vec![7; 10 * MAX_SEGMENTS], size: 10, ..longer };
    assert_eq!(validate(&most.header(), &most.packet()), Ok(()));
    let more = Given { payload: vec![7; 10 * MAX_SEGMENTS + 1], ..most };
    assert_eq!(validate(&more.header(), &more.packet()), Err(VirtioError::BadSegmentSize));
}

/// Datagrams whose lengths vary, whose checksums are wrong or missing, or that another's come between stay what they were.
#[test]
fn datagrams_that_do_not_belong_together_stay_apart() {
    let given = Given { payload: vec![1; 400], ..Given::small(false) };
    let mut datagrams = given.datagrams();
    // Payload damaged on the way to the sender's kernel: it is its receiver who must find out.
    datagrams[1][60] ^= 1;
    // No checksum.
    datagrams[2][26..28].fill(0);
    let mut joiner = Joiner::new(true);
    let mut written = Vec::new();
    let mut out = |header: &[u8; LEN], packet: &[u8]| written.push((*header, packet.to_vec()));
    datagrams.iter().for_each(|datagram| joiner.push(datagram, &mut out));
    joiner.flush(&mut out);
    assert_eq!(written.len(), 4);
    for ((header, packet), datagram) in written.iter().zip(&datagrams) {
        assert_eq!((header, packet), (&[0; LEN], datagram));
    }
}
