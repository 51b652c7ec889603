//! How long the relay takes per message: `cargo bench -p edgelink-relay`.
//!
//! A message goes in and its frames come out for their receivers, as slices to be written; a thousand others are connected, so
//! that each look-up is a real one. `memcpy` of the same bytes is what to compare with.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark may fail loudly")]

#[path = "../tests/common/mod.rs"]
mod common;

use bytes::Bytes;
use common::*;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use edgelink_relay::ConnId;
use edgelink_wire::{FrameType, frames};
use std::hint::black_box;
use std::time::Duration;

/// Nodes 2 to 41 of network 7 are receivers.
const RECEIVERS: u32 = 40;

fn forwarding(c: &mut Criterion) {
    // Frames of one message that go to as many receivers in turn.
    let message = |count: u32, len: usize, receivers: u32| -> (u32, Vec<u8>) {
        let frames = (0..count).flat_map(|n| sealed(FrameType::Data, 1, 2 + n % receivers, n as u8, len));
        (receivers, frames.collect())
    };
    let mut world = World::new();
    let source = world.join(1, 7);
    let receivers: Vec<ConnId> = (0..RECEIVERS).map(|n| world.join(2 + n, 7)).collect();
    for node in 100..1_100 {
        world.join(node, 7);
    }
    let mut group = c.benchmark_group("forward");
    for (name, (used, message)) in [
        ("a super-packet of 65,540 bytes", message(1, 65_499, 1)),
        ("45 frames of 1,441 bytes to one", message(45, 1_400, 1)),
        ("45 frames of 1,441 bytes to two in turn", message(45, 1_400, 2)),
        ("45 frames of 1,441 bytes to forty in turn", message(45, 1_400, RECEIVERS)),
        ("600 frames of 105 bytes to one", message(600, 64, 1)),
        ("a frame of 105 bytes", message(1, 64, 1)),
    ] {
        let count = frames(&message).count() as u64;
        let mut copy = vec![0; message.len()];
        group.throughput(Throughput::Elements(count));
        group.bench_with_input(BenchmarkId::new("memcpy", name), &message, |b, message| {
            b.iter(|| copy.copy_from_slice(black_box(message)));
        });
        let message = Bytes::from(message);
        let receivers = &receivers[..used as usize];
        let mut out = Vec::with_capacity(1_024);
        group.bench_function(BenchmarkId::new("relay", name), |b| {
            b.iter(|| {
                world.relay.handle_message(source, black_box(&message).clone(), world.now);
                while world.relay.poll_event().is_some() {}
                for conn in receivers {
                    while world.relay.poll_transmit(*conn, 1 << 17, world.now, &mut out) > 0 {}
                }
                let written: usize = out.drain(..).map(|run: Bytes| run.len()).sum();
                assert_eq!(written, message.len());
            });
        });
    }
}

criterion_group! {
    name = forward;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = forwarding
}
criterion_main!(forward);
