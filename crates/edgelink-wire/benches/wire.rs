//! What the bytes of a packet cost before and after they are sealed: `cargo bench -p edgelink-wire`.
//!
//! `memcpy` of the same run is what to compare with.
#![expect(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use edgelink_model::NodeId;
use edgelink_wire::data::{self, DataHeader};
use edgelink_wire::packet::{self, checksum, pseudo_header};
use edgelink_wire::virtio::{
    F_NEEDS_CSUM, GSO_TCPV4, GSO_UDP_L4, Joiner, MAX_SUPER_PACKET, Segments, VirtioHeader, complete_checksum, slice,
    validate,
};
use edgelink_wire::{Flags, FrameType, frames, put_frame};
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

const SRC: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const DST: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
/// TCP payload of a packet of 1,420 bytes.
const MSS: usize = 1_380;
const SIZES: [usize; 3] = [64, 1_420, MAX_SUPER_PACKET];

/// A super-packet as the kernel hands it out, of `len` bytes and cut after each `size` of payload.
fn super_packet(proto: u8, len: usize, size: usize) -> (VirtioHeader, Vec<u8>) {
    let tcp = proto == packet::TCP;
    let head = if tcp { 40 } else { 28 };
    let mut packet = vec![0x45, 0];
    packet.extend(u16::try_from(len).unwrap().to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
    packet.extend(SRC.octets());
    packet.extend(DST.octets());
    let sum = checksum(0, &packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let partial = !checksum(pseudo_header(SRC.into(), DST.into(), proto, len - 20), &[]);
    if tcp {
        packet.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0]);
        packet.extend(partial.to_be_bytes());
        packet.extend([0, 0]);
    } else {
        packet.extend([0, 7, 0, 7]);
        packet.extend(u16::try_from(len - 20).unwrap().to_be_bytes());
        packet.extend(partial.to_be_bytes());
    }
    packet.extend((head..len).map(|n| n as u8));
    let header = VirtioHeader {
        flags: F_NEEDS_CSUM,
        gso_type: if tcp { GSO_TCPV4 } else { GSO_UDP_L4 },
        hdr_len: head as u16,
        gso_size: size as u16,
        csum_start: 20,
        csum_offset: if tcp { 16 } else { 6 },
    };
    (header, packet)
}

/// A sealed frame of so many bytes of plaintext, as far as the wire can tell.
fn frame(plaintext: usize) -> Vec<u8> {
    let mut frame = vec![7; data::OVERHEAD + plaintext];
    let clear = DataHeader { src: NodeId(1), dst: NodeId(2), nonce: [9; 12] };
    data::write_header(&mut frame, FrameType::Data, Flags::NONE, &clear).unwrap();
    frame
}

fn memory(c: &mut Criterion) {
    let mut group = c.benchmark_group("memcpy");
    for size in SIZES {
        let (from, mut to) = (vec![7_u8; size], vec![0_u8; size]);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &from, |b, from| {
            b.iter(|| to.copy_from_slice(black_box(from)));
        });
    }
}

fn framing(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames");
    for (name, message) in [
        ("one of 64 KiB", frame(data::MAX_PLAINTEXT)),
        ("45 of 1,420", (0..45).flat_map(|_| frame(1_420)).collect()),
        ("600 of 64", (0..600).flat_map(|_| frame(64)).collect()),
    ] {
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_with_input(BenchmarkId::new("parse", name), &message, |b, message| {
            b.iter(|| {
                let headers = frames(black_box(message)).map(|frame| data::parse(frame.unwrap().raw).unwrap());
                headers.fold(0_u32, |sum, header| sum.wrapping_add(header.dst.0))
            });
        });
    }
    for size in SIZES {
        let payload = vec![7; size];
        let mut out = Vec::with_capacity(size + 5);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::new("put", size), &payload, |b, payload| {
            b.iter(|| {
                out.clear();
                put_frame(&mut out, FrameType::Data, Flags::NONE, black_box(payload)).unwrap();
            });
        });
    }
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for size in SIZES {
        let bytes: Vec<u8> = (0..size).map(|n| n as u8).collect();
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &bytes, |b, bytes| {
            b.iter(|| checksum(0, black_box(bytes)));
        });
    }
    let (header, mut packet) = super_packet(packet::TCP, 1_420, MSS);
    group.throughput(Throughput::Bytes(1_420));
    group.bench_function("complete 1,420", |b| b.iter(|| complete_checksum(&header, black_box(&mut packet)).unwrap()));
}

fn super_packets(c: &mut Criterion) {
    let mut group = c.benchmark_group("super-packet");
    group.throughput(Throughput::Bytes(MAX_SUPER_PACKET as u64));
    for (name, proto, size) in [("tcp", packet::TCP, MSS), ("udp", packet::UDP, MSS + 12)] {
        let (header, packet) = super_packet(proto, MAX_SUPER_PACKET, size);
        group.bench_function(BenchmarkId::new("validate", name), |b| {
            b.iter(|| validate(black_box(&header), black_box(&packet)).is_ok());
        });
        let mut out = vec![0; 2_048];
        group.bench_function(BenchmarkId::new("cut", name), |b| {
            b.iter(|| {
                let mut segments = Segments::new(&header, black_box(&packet), None).unwrap();
                while let Some(len) = segments.write_next(&mut out) {
                    black_box(&out[..len]);
                }
            });
        });
        let mut whole = Segments::new(&header, &packet, None).unwrap();
        let mut segments = Vec::new();
        while let Some(len) = whole.write_next(&mut out) {
            segments.push(out[..len].to_vec());
        }
        let mut joiner = Joiner::new(true);
        group.bench_function(BenchmarkId::new("join", name), |b| {
            b.iter(|| {
                let mut written = 0;
                black_box(&segments).iter().for_each(|s| joiner.push(s, &mut |_, packet| written += packet.len()));
                joiner.flush(&mut |_, packet| written += packet.len());
                assert_eq!(written, packet.len());
            });
        });
    }
    let (header, packet) = super_packet(packet::TCP, MAX_SUPER_PACKET, MSS);
    group.bench_function("slice/tcp", |b| {
        b.iter_batched(
            || 0,
            |mut written| {
                slice(&header, black_box(&packet), 16_384, |_, slice| written += slice.len()).unwrap();
                written
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group! {
    name = wire;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = memory, framing, checksums, super_packets
}
criterion_main!(wire);
