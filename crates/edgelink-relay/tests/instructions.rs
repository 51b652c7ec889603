//! Forwarding, for `scripts/check-instructions`: it counts what happens inside the functions called `measured_…`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may, like tests")]

mod common;

use bytes::Bytes;
use common::*;
use edgelink_relay::ConnId;
use std::hint::black_box;

/// Frames per count. The script divides by it.
const FRAMES: usize = 2_000;
const PER_MESSAGE: usize = 20;

#[inline(never)]
fn measured_forwarding(world: &mut World, from: ConnId, to: ConnId, messages: Vec<Bytes>) -> usize {
    let (now, mut out, mut bytes) = (world.now, Vec::new(), 0);
    for message in messages {
        world.relay.handle_message(from, message, now);
        while world.relay.poll_event().is_some() {}
        world.relay.poll_transmit(to, usize::MAX, now, &mut out);
        bytes += black_box(&out).iter().map(Bytes::len).sum::<usize>();
        out.clear();
    }
    bytes
}

fn forward(nodes: u32) {
    let mut world = World::new();
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    for node in 3..=nodes {
        world.join(node, 7);
    }
    world.events();
    let frame = sealed(edgelink_wire::FrameType::Data, 1, 2, 7, 1_200);
    let messages = vec![Bytes::from(frame.repeat(PER_MESSAGE)); FRAMES / PER_MESSAGE];
    assert_eq!(measured_forwarding(&mut world, a, b, messages), frame.len() * FRAMES);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_forward_among_2_nodes() {
    forward(2);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_forward_among_1000_nodes() {
    forward(1_000);
}
