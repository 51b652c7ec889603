//! Segments rejoined: against the segmenting reference, whose own tests are in `packets.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use edgelink_wire::packet::{TCP, UDP, checksum, pseudo_header};
use edgelink_wire::virtio::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Joiner, MAX_SEGMENTS, VirtioHeader, segment, validate};
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::IpAddr;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;

/// One flow's next packet.
#[derive(Clone, Debug)]
struct Flow {
    v6: bool,
    proto: u8,
    port: u16,
    seq: u32,
    id: u16,
    /// IPv4: what the identification rises by.
    id_step: u16,
    df: bool,
    tcp_options: usize,
}

impl Flow {
    fn tcp(port: u16) -> Self {
        Self { v6: false, proto: TCP, port, seq: 1000, id: 7, id_step: 1, df: true, tcp_options: 12 }
    }

    fn ip_len(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    fn head(&self) -> usize {
        self.ip_len() + if self.proto == UDP { 8 } else { 20 + self.tcp_options }
    }

    /// A packet with right checksums, and the flow moves on.
    fn packet(&mut self, len: usize, flags: u8) -> Vec<u8> {
        let l4_len = self.head() - self.ip_len() + len;
        let mut packet = if self.v6 {
            let mut ip = [&[0x60, 0, 0, 0][..], &(l4_len as u16).to_be_bytes(), &[self.proto, 64]].concat();
            ip.extend((1..=32).map(|n| n * 7));
            ip
        } else {
            let mut ip = [&[0x45, 0][..], &(20 + l4_len as u16).to_be_bytes(), &self.id.to_be_bytes()].concat();
            ip.extend([if self.df { 0x40 } else { 0 }, 0, 64, self.proto, 0, 0, 10, 7, 0, 1, 10, 7, 0, 2]);
            ip
        };
        packet.extend(self.port.to_be_bytes());
        packet.extend([0, 80]);
        if self.proto == UDP {
            packet.extend((l4_len as u16).to_be_bytes());
            packet.extend([0, 0]);
        } else {
            packet.extend(self.seq.to_be_bytes());
            packet.extend(99_u32.to_be_bytes());
            packet.extend([(((20 + self.tcp_options) / 4) << 4) as u8, flags, 2, 0, 0, 0, 0, 0]);
            packet.resize(self.head(), 1);
        }
        packet.extend((0..len).map(|n| (n as u32).wrapping_add(self.seq) as u8));
        self.seq = self.seq.wrapping_add(len as u32);
        self.id = self.id.wrapping_add(self.id_step);
        sum_up(&mut packet);
        packet
    }
}

/// Makes the checksums right, as far as the packet has any.
fn sum_up(packet: &mut [u8]) {
    let Some(ip) = edgelink_wire::packet::parse(packet) else { return };
    let at = ip.transport + if ip.proto == UDP { 6 } else { 16 };
    if packet.len() < at + 2 || (ip.src.is_ipv4() && packet.len() < 20) {
        return;
    }
    if ip.src.is_ipv4() {
        packet[10..12].fill(0);
        let sum = checksum(0, &packet[..ip.transport]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet[at..at + 2].fill(0);
    let pseudo = pseudo_header(ip.src, ip.dst, ip.proto, packet.len() - ip.transport);
    let sum = match checksum(pseudo, &packet[ip.transport..]) {
        // Zero would mean "no checksum" (RFC 768).
        0 if ip.proto == UDP => 0xffff,
        sum => sum,
    };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

type Written = Vec<(VirtioHeader, Vec<u8>)>;

fn join(packets: &[Vec<u8>], udp: bool) -> Written {
    let mut joiner = Joiner::new(udp);
    let mut written = Vec::new();
    let mut out = |h: &[u8; 10], p: &[u8]| written.push((VirtioHeader::parse(h).unwrap(), p.to_vec()));
    packets.iter().for_each(|packet| joiner.push(packet, &mut out));
    joiner.flush(&mut out);
    assert!(joiner.is_empty());
    written
}

/// What the kernel would make of it.
fn cut(written: &Written) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for (header, packet) in written {
        if header.is_gso() {
            if header.gso_type != GSO_UDP_L4 {
                assert_eq!(validate(header, packet), Ok(()));
            }
            let count = segment(header, packet, None, |one| packets.push(one.to_vec())).unwrap();
            assert!((2..=MAX_SEGMENTS).contains(&count));
        } else {
            assert_eq!(*header, VirtioHeader::default());
            packets.push(packet.clone());
        }
    }
    packets
}

/// Addresses, protocol, ports.
type FlowName = (IpAddr, IpAddr, u8, Vec<u8>);

/// Packets by flow; the identification, which means nothing without fragmentation, wiped.
fn by_flow(packets: &[Vec<u8>]) -> HashMap<FlowName, Vec<Vec<u8>>> {
    let mut flows: HashMap<_, Vec<_>> = HashMap::new();
    for packet in packets {
        let Some(ip) = edgelink_wire::packet::parse(packet) else { continue };
        let mut wiped = packet.clone();
        if ip.src.is_ipv4() && packet[6] & 0x40 != 0 {
            wiped[4..6].fill(0);
            wiped[10..12].fill(0);
        }
        let ports = packet[..ip.total_len].get(ip.transport..ip.transport + 4).unwrap_or_default().to_vec();
        flows.entry((ip.src, ip.dst, ip.proto, ports)).or_default().push(wiped);
    }
    flows
}

/// What may happen to a packet, and where the flow goes.
#[derive(Clone, Debug)]
enum Step {
    Data {
        flow: usize,
        len: usize,
        flags: u8,
    },
    /// Some byte is another, and the checksums are made right.
    Odd {
        flow: usize,
        len: usize,
        at: usize,
        xor: u8,
    },
    /// Some byte is another.
    Broken {
        flow: usize,
        len: usize,
        at: usize,
        xor: u8,
    },
    /// Lost on the way.
    Gap {
        flow: usize,
        len: usize,
    },
    Garbage(Vec<u8>),
}

fn step(flows: usize) -> impl Strategy<Value = Step> {
    let flow = 0..flows;
    let len = prop_oneof![6 => Just(100_usize), 1 => 0_usize..100, 1 => 101_usize..300];
    let flags = prop_oneof![8 => Just(ACK), 2 => Just(ACK | PSH), 1 => Just(ACK | FIN), 1 => any::<u8>()];
    let at = prop_oneof![0_usize..20, 0_usize..80];
    prop_oneof![
        12 => (flow.clone(), len.clone(), flags).prop_map(|(flow, len, flags)| Step::Data { flow, len, flags }),
        2 => (flow.clone(), len.clone(), at.clone(), 1_u8..)
            .prop_map(|(flow, len, at, xor)| Step::Odd { flow, len, at, xor }),
        1 => (flow.clone(), len.clone(), at, 1_u8..).prop_map(|(flow, len, at, xor)| Step::Broken { flow, len, at, xor }),
        1 => (flow, len).prop_map(|(flow, len)| Step::Gap { flow, len }),
        1 => proptest::collection::vec(any::<u8>(), 0..60).prop_map(Step::Garbage),
    ]
}

fn any_flow(port: u16) -> impl Strategy<Value = Flow> {
    let id_step = prop_oneof![4 => Just(1_u16), 1 => Just(0_u16), 1 => any::<u16>()];
    (any::<bool>(), any::<bool>(), any::<u32>(), any::<u16>(), id_step, any::<bool>(), 0_usize..=10).prop_map(
        move |(v6, udp, seq, id, id_step, df, options)| Flow {
            v6,
            proto: if udp { UDP } else { TCP },
            port,
            seq,
            id,
            id_step,
            df,
            tcp_options: options * 4,
        },
    )
}

proptest! {
    /// Whatever comes: cut again it is the same packets, in the same order within each flow.
    #[test]
    fn joining_changes_nothing_that_a_receiver_could_see(
        flows in (any_flow(1), any_flow(2), any_flow(3)), steps in proptest::collection::vec(step(3), 1..80), udp in any::<bool>(),
    ) {
        let mut flows = [flows.0, flows.1, flows.2];
        let mut packets = Vec::new();
        for step in steps {
            match step {
                Step::Data { flow, len, flags } => packets.push(flows[flow].packet(len, flags)),
                Step::Odd { flow, len, at, xor } => {
                    let mut packet = flows[flow].packet(len, ACK);
                    let at = at % packet.len();
                    packet[at] ^= xor;
                    sum_up(&mut packet);
                    packets.push(packet);
                }
                Step::Broken { flow, len, at, xor } => {
                    let mut packet = flows[flow].packet(len, ACK);
                    let at = at % packet.len();
                    packet[at] ^= xor;
                    packets.push(packet);
                }
                Step::Gap { flow, len } => drop(flows[flow].packet(len, ACK)),
                Step::Garbage(bytes) => packets.push(bytes),
            }
        }
        let again = cut(&join(&packets, udp));
        prop_assert_eq!(again.len(), packets.len());
        let (again, sent) = (by_flow(&again), by_flow(&packets));
        for (flow, packets) in &sent {
            for (n, (got, packet)) in again[flow].iter().zip(packets).enumerate() {
                prop_assert!(got == packet, "{flow:?} packet {n}: {:?} was {:?}", &got[..got.len().min(60)], &packet[..packet.len().min(60)]);
            }
        }
        prop_assert_eq!(again.len(), sent.len());
    }

    /// The segments of super-packets come out as these super-packets, even when flows take turns.
    #[test]
    fn what_was_cut_is_whole_again(flows in proptest::collection::vec(any_flow(0), 1..8), sizes in 2_usize..40, size in 1_usize..1400, last in 1_usize..1400) {
        let mut packets = vec![Vec::new(); flows.len()];
        let mut flows = flows;
        let count = sizes.min(60_000 / size);
        for (port, flow) in flows.iter_mut().enumerate() {
            (flow.port, flow.id_step) = (port as u16, 1);
            let tail = last.min(size);
            packets[port] = (0..count).map(|_| flow.packet(size, ACK)).collect();
            packets[port].push(flow.packet(tail, ACK | PSH));
        }
        let turns: Vec<Vec<u8>> =
            (0..=count).flat_map(|n| packets.iter().map(|of| of[n].clone()).collect::<Vec<_>>()).collect();
        let written = join(&turns, true);
        prop_assert_eq!(written.len(), flows.len());
        for (header, packet) in &written {
            prop_assert_eq!(usize::from(header.gso_size), size);
            prop_assert!(packet.len() > count * size);
        }
        prop_assert_eq!(by_flow(&cut(&written)), by_flow(&turns));
    }
}

/// Two segments of which the second was changed: how many come out.
fn joined_with(flow: &Flow, change: impl FnOnce(&mut Vec<u8>)) -> usize {
    let mut flow = flow.clone();
    let first = flow.packet(100, ACK);
    let mut second = flow.packet(100, ACK);
    change(&mut second);
    if second.len() >= flow.ip_len() {
        sum_up(&mut second);
    }
    join(&[first, second], true).len()
}

#[test]
fn what_must_not_be_joined() {
    let v4 = Flow::tcp(1);
    let v6 = Flow { v6: true, ..v4.clone() };
    assert_eq!((joined_with(&v4, |_| {}), joined_with(&v6, |_| {})), (1, 1));
    let set = |at: usize, value: u8| move |packet: &mut Vec<u8>| packet[at] = value;
    let t = 20;
    for (what, at, value) in [
        ("TOS", 1, 4),
        ("CE", 1, 3),
        ("identification", 5, 99),
        ("don't fragment", 6, 0),
        ("more fragments", 6, 0x60),
        ("fragment offset", 7, 1),
        ("TTL", 8, 63),
        ("source", 15, 9),
        ("port", t + 1, 9),
        ("gap", t + 7, 0),
        ("acknowledgement", t + 11, 98),
        ("reserved bits", t + 12, 0x81),
        ("URG", t + 13, ACK | 0x20),
        ("SYN", t + 13, ACK | 0x02),
        ("RST", t + 13, ACK | 0x04),
        ("CWR", t + 13, ACK | 0x80),
        ("ECE appears", t + 13, ACK | 0x40),
        ("no ACK", t + 13, 0),
        ("window", t + 15, 1),
        ("urgent pointer", t + 19, 1),
        ("options", t + 25, 9),
    ] {
        assert_eq!(joined_with(&v4, set(at, value)), 2, "{what}");
    }
    for (what, at, value) in [
        ("traffic class", 1, 0x10),
        ("flow label", 3, 1),
        ("hop limit", 7, 63),
        ("extension header", 6, 60),
        ("source", 23, 9),
        ("gap", 47, 0),
    ] {
        assert_eq!(joined_with(&v6, set(at, value)), 2, "{what}");
    }
    for (what, at, value) in [("PSH", t + 13, ACK | PSH), ("FIN", t + 13, ACK | FIN)] {
        assert_eq!(joined_with(&v4, set(at, value)), 1, "{what} on the last");
    }
}

#[test]
fn wrong_checksums_pass_as_they_are() {
    for proto in [TCP, UDP] {
        for at in [10, 20 + if proto == UDP { 6 } else { 16 }, 70] {
            for which in 0..2 {
                let mut flow = Flow { proto, ..Flow::tcp(1) };
                let mut packets = [flow.packet(100, ACK), flow.packet(100, ACK)];
                packets[which][at] ^= 1;
                let written = join(&packets, true);
                assert_eq!(written.len(), 2, "{proto} {at} {which}");
                assert!(
                    written
                        .iter()
                        .zip(&packets)
                        .all(|(out, packet)| out.0 == VirtioHeader::default() && out.1 == *packet)
                );
            }
        }
    }
}

#[test]
fn identifications_rise_or_may_stay_where_they_mean_nothing() {
    let three = |df, steps: [u16; 2]| {
        let mut flow = Flow { df, ..Flow::tcp(1) };
        let mut packets = vec![flow.packet(100, ACK)];
        for step in steps {
            flow.id = flow.id.wrapping_sub(1).wrapping_add(step);
            packets.push(flow.packet(100, ACK));
        }
        join(&packets, true).len()
    };
    assert_eq!(three(true, [1, 1]), 1);
    assert_eq!(three(false, [1, 1]), 1);
    assert_eq!(three(true, [0, 0]), 1);
    assert_eq!(three(false, [0, 0]), 3);
    assert_eq!(three(true, [0, 1]), 2);
    assert_eq!(three(true, [1, 0]), 2);
    assert_eq!(three(true, [2, 2]), 3);
}

#[test]
fn a_longer_one_begins_anew_and_a_shorter_one_ends() {
    let mut flow = Flow::tcp(1);
    let packets: Vec<_> = [100, 100, 101, 101, 50, 50].into_iter().map(|len| flow.packet(len, ACK)).collect();
    let lens: Vec<usize> = join(&packets, true).iter().map(|(_, packet)| packet.len() - flow.head()).collect();
    assert_eq!(lens, [200, 252, 50]);
}

#[test]
fn an_acknowledgement_keeps_its_place() {
    let mut flow = Flow::tcp(1);
    let packets = [flow.packet(100, ACK), flow.packet(100, ACK), flow.packet(0, ACK), flow.packet(100, ACK)];
    let lens: Vec<usize> = join(&packets, true).iter().map(|(_, packet)| packet.len() - flow.head()).collect();
    assert_eq!(lens, [200, 0, 100]);
}

#[test]
fn super_packets_are_bounded() {
    for (len, at_most) in [(1, MAX_SEGMENTS), (1400, 46)] {
        let mut flow = Flow::tcp(1);
        let packets: Vec<_> = (0..300).map(|_| flow.packet(len, ACK)).collect();
        let written = join(&packets, true);
        assert_eq!(written.len(), 300_usize.div_ceil(at_most));
        assert_eq!(cut(&written), packets);
    }
}

#[test]
fn types_are_the_kernels() {
    for (v6, proto, gso_type) in
        [(false, TCP, GSO_TCPV4), (true, TCP, GSO_TCPV6), (false, UDP, GSO_UDP_L4), (true, UDP, GSO_UDP_L4)]
    {
        let mut flow = Flow { v6, proto, ..Flow::tcp(1) };
        let written = join(&[flow.packet(100, ACK), flow.packet(60, ACK)], true);
        let [(header, packet)] = &written[..] else { panic!("{written:?}") };
        assert_eq!((header.gso_type, usize::from(header.gso_size)), (gso_type, 100));
        assert_eq!((usize::from(header.csum_start), usize::from(header.hdr_len)), (flow.ip_len(), flow.head()));
        assert_eq!(packet.len(), flow.head() + 160);
    }
    let mut flow = Flow { proto: UDP, ..Flow::tcp(1) };
    assert_eq!(join(&[flow.packet(100, 0), flow.packet(100, 0)], false).len(), 2, "UDP only where the kernel can");
}

/// For `scripts/check-instructions`, which counts what happens in here.
#[inline(never)]
fn measured_joining(joiner: &mut Joiner, packets: &[Vec<u8>]) -> usize {
    let mut written = 0;
    packets.iter().for_each(|packet| joiner.push(packet, &mut |_, packet| written += packet.len()));
    joiner.flush(&mut |_, packet| written += packet.len());
    written
}

/// Per super-packet of 45 segments.
#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_join_segments() {
    let mut joiner = Joiner::new(true);
    let mut flow = Flow::tcp(1);
    for _ in 0..20 {
        let packets: Vec<_> = (0..45).map(|_| flow.packet(1348, ACK)).collect();
        assert_eq!(measured_joining(&mut joiner, &packets), flow.head() + 45 * 1348);
    }
}
