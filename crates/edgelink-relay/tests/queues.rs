//! Slow receivers: bounded, thinned, and nobody else's trouble (DESIGN §6).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may, like tests")]

mod common;

use bytes::Bytes;
use common::*;
use edgelink_relay::{CloseReason, DropReason, Limits, RelayEvent};
use edgelink_wire::FrameType;
use edgelink_wire::ping::Ping;

/// The mark of each frame.
fn marks(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().map(|frame| frame[40]).collect()
}

#[test]
fn nothing_older_than_a_second_is_delivered() {
    let mut world = World::new();
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    world.say(a, &data(1, 2, 1));
    world.ms(1);
    world.say(a, &data(1, 2, 2));
    world.ms(1_000);
    assert_eq!(marks(&world.forwarded(b)), [2]);
    assert_eq!(world.relay.stats().drops.get(DropReason::TooOld), 1);
}

#[test]
fn a_full_queue_loses_its_oldest_frames() {
    let mut world = World::new();
    let (a, b, c) = (world.join(1, 7), world.join(2, 7), world.join(3, 7));
    let frame = |n: usize, dst| sealed(FrameType::Data, 1, dst, n as u8, 10_000 - 41);
    for n in 0..200 {
        world.say(a, &frame(n, 2));
        assert!(world.relay.stats().queued_bytes <= 1 << 20);
    }
    // 102 × (10,000 + 192) fit 1 MiB.
    assert_eq!(marks(&world.forwarded(b)), (98..200).map(|n| n as u8).collect::<Vec<_>>());
    assert_eq!(world.relay.stats().drops.get(DropReason::QueueFull), 98);
    world.say(a, &frame(7, 3));
    assert_eq!(marks(&world.forwarded(c)), [7], "and the others notice nothing");
}

#[test]
fn a_receiver_that_only_asks_loses_its_oldest_answers() {
    let mut world = World::new();
    let a = world.join(1, 7);
    for seq in 0..1_000 {
        world.say(a, &Ping { sent_us: 0, seq }.encode(FrameType::Ping));
        assert!(world.relay.stats().queued_bytes <= 64 << 10);
    }
    // 313 × (17 + 192) fit 64 KiB.
    let want = (1_000 - 313..1_000).map(|seq| Sent::Pong(Ping { sent_us: 0, seq }));
    assert_eq!(world.take(a), want.collect::<Vec<_>>());
}

#[test]
fn many_slow_receivers_leave_room_for_the_others() {
    let limits = Limits { queued_total: 8 << 20, ..Default::default() };
    let budget = limits.queued_total;
    let mut world = World::with_limits(limits);
    let a = world.join(1, 7);
    let slow: Vec<u32> = (100..150).collect();
    for node in &slow {
        world.join(*node, 7);
    }
    let frame = |dst, mark| sealed(FrameType::Data, 1, dst, mark, 1_400);
    let batch = |dst| (0..40).map(|mark| frame(dst, mark)).collect::<Vec<_>>().concat();
    for round in 0..40 {
        for node in &slow {
            world.say(a, &batch(*node));
            assert!(world.relay.stats().queued_bytes <= budget, "round {round}");
        }
    }
    // 50 hogs that would take 50 MiB share what there is, each with no more than what is left free.
    let queued = world.relay.stats().queued_bytes;
    assert!(queued > budget * 9 / 10, "{queued}");
    let drops = world.relay.stats().drops;
    assert!(drops.get(DropReason::Budget) > 0);
    // A newcomer gets its whole message.
    let b = world.join(2, 7);
    world.say(a, &batch(2));
    assert_eq!(marks(&world.forwarded(b)), (0..40).collect::<Vec<_>>());
    assert_eq!(world.relay.stats().drops.total(), drops.total());
}

#[test]
fn a_bulk_transfer_to_a_receiver_at_its_limit_is_thinned_by_codel() {
    let mut world = World::new();
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    // 2 frames a millisecond come, 1 goes.
    let mut delivered = 0;
    let mut first_drop = None;
    for ms in 0..400_u64 {
        world.say(a, &data(1, 2, ms as u8).repeat(2));
        let mut out = Vec::new();
        world.relay.poll_transmit(b, 150, world.now, &mut out);
        delivered += out.len();
        if world.relay.stats().drops.get(DropReason::Codel) > 0 {
            first_drop.get_or_insert(ms);
        }
        world.ms(1);
    }
    // The frame taken at 29 ms came at 14 ms, the first to have waited for 15 ms; 200 ms later one is dropped.
    assert_eq!((delivered, first_drop), (400, Some(229)));
    assert_eq!(world.relay.stats().drops.get(DropReason::Codel), 1);
}

#[test]
fn a_receiver_that_takes_nothing_for_15_s_is_closed() {
    let mut world = World::new();
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    world.events();
    world.say(a, &data(1, 2, 1));
    for _ in 0..14 {
        world.ms(1_000);
        world.say(a, &data(1, 2, 1));
        world.say(b, &frame(0x21, &[0; 12])); // it speaks, but does not listen
    }
    world.ms(999);
    assert_eq!(world.events(), [RelayEvent::Writable(b)]);
    world.ms(1);
    assert_eq!(world.closed(b), Some((CloseReason::Stalled, false)));
    assert_eq!(world.take(b), []);
    assert_eq!(world.relay.stats().queued_bytes, 0);
    let drops = world.relay.stats().drops;
    assert_eq!((drops.get(DropReason::TooOld), drops.get(DropReason::Closed)), (13, 2));
}

#[test]
fn a_slow_receiver_that_makes_progress_is_not() {
    let mut world = World::new();
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    world.events();
    for _ in 0..10 {
        world.say(a, &data(1, 2, 1).repeat(5));
        world.ms(14_000);
        world.say(a, &frame(0x21, &[0; 12]));
        world.say(b, &frame(0x21, &[0; 12]));
        world.say(a, &data(1, 2, 1).repeat(5));
        let mut out = Vec::new();
        assert_eq!(world.relay.poll_transmit(b, 200, world.now, &mut out), 141);
    }
    assert_eq!(world.closed(b), None);
}

#[test]
fn writable_comes_once_until_everything_was_taken() {
    let mut world = World::new();
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    world.events();
    let mut out: Vec<Bytes> = Vec::new();
    world.say(a, &data(1, 2, 1).repeat(3));
    world.say(a, &data(1, 2, 1));
    assert_eq!(world.events(), [RelayEvent::Writable(b)]);
    world.relay.poll_transmit(b, 300, world.now, &mut out);
    world.say(a, &data(1, 2, 1));
    assert_eq!(world.events(), [], "the shell is not done yet");
    world.relay.poll_transmit(b, 10_000, world.now, &mut out);
    assert_eq!(world.relay.poll_transmit(b, 10_000, world.now, &mut out), 0);
    world.say(a, &data(1, 2, 1));
    assert_eq!(world.events(), [RelayEvent::Writable(b)]);
}

#[test]
fn an_error_is_told_even_if_the_queues_are_full() {
    let limits = Limits { queued_total: 1 << 20, ..Default::default() };
    let mut world = World::with_limits(limits);
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    for _ in 0..200 {
        world.say(a, &sealed(FrameType::Data, 1, 2, 1, 10_000));
        world.say(b, &Ping { sent_us: 0, seq: 0 }.encode(FrameType::Ping));
    }
    world.events();
    world.relay.handle_text(b, world.now);
    assert_eq!(world.closed(b), Some((CloseReason::Protocol(edgelink_model::ErrorCode::InvalidMessage), true)));
    assert_eq!(world.take(b).last(), Some(&error(edgelink_model::ErrorCode::InvalidMessage, 0, 0)));
}
