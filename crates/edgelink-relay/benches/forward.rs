//! How long the relay takes per message: `cargo bench -p edgelink-relay`.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark reads the clock and may fail loudly"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use bytes::Bytes;
use common::*;
use edgelink_wire::FrameType;
use std::time::{Duration, Instant};

fn main() {
    let full = sealed(FrameType::Data, 1, 2, 7, 65_499);
    let many: Vec<u8> = (0..45).flat_map(|n| sealed(FrameType::Data, 1, 2, n, 1_400)).collect();
    let mixed: Vec<u8> = (0..45).flat_map(|n| sealed(FrameType::Data, 1, 2 + u32::from(n) % 2, n, 1_400)).collect();
    let small = sealed(FrameType::Data, 1, 2, 7, 64);
    println!("message                                    ns/message    GB/s");
    for (name, message) in [
        ("one super-packet of 65,540 bytes", full),
        ("45 frames of 1,441 bytes, one receiver", many),
        ("45 frames of 1,441 bytes, two in turn", mixed),
        ("one frame of 105 bytes", small),
    ] {
        let nanos = measure(&Bytes::from(message.clone()));
        println!("{name:<42} {nanos:>10.0} {:>7.1}", message.len() as f64 / nanos);
    }
}

/// Nanoseconds to handle a message and to take everything for its receivers; the best of several rounds.
fn measure(message: &Bytes) -> f64 {
    const ROUND: u32 = 20_000;
    let mut world = World::new();
    let source = world.join(1, 7);
    let receivers = [world.join(2, 7), world.join(3, 7)];
    // A thousand others, so that the look-up is a real one.
    for node in 10..1_010 {
        world.join(node, 7);
    }
    let mut out = Vec::with_capacity(64);
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        for _ in 0..ROUND {
            world.relay.handle_message(source, message.clone(), world.now);
            while world.relay.poll_event().is_some() {}
            for conn in receivers {
                while world.relay.poll_transmit(conn, 1 << 17, world.now, &mut out) > 0 {}
            }
            out.clear();
        }
        best = best.min(start.elapsed());
    }
    best.as_nanos() as f64 / f64::from(ROUND)
}
