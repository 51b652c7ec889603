//! Forwarding: exact input, exact output (DESIGN §1, §6).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may, like tests")]

mod common;

use bytes::Bytes;
use common::*;
use edgelink_model::ErrorCode::{InvalidMessage, MessageTooLarge, NodeOffline, UnsupportedVersion};
use edgelink_model::NodeId;
use edgelink_relay::{CloseReason, DropReason, RelayEvent};
use edgelink_wire::ping::Ping;
use edgelink_wire::{FrameType, frames};
use std::time::Duration;

const DATA: u8 = 0x10;

#[test]
fn frames_reach_their_receivers_unchanged_and_in_order() {
    let mut world = World::new();
    let (a, b, c) = (world.join(1, 7), world.join(2, 7), world.join(3, 7));
    let mut odd = data(1, 2, 3);
    odd[2] = 0b1111_1000; // super-packet, local only, and bits of the future
    let message = [data(1, 2, 1), data(1, 2, 2), data(1, 3, 4), odd.clone(), data(1, 3, 5)].concat();
    world.say(a, &message);
    assert_eq!(world.events(), [RelayEvent::Writable(b), RelayEvent::Writable(c)], "each receiver woken once");
    assert_eq!(world.forwarded(b), [data(1, 2, 1), data(1, 2, 2), odd]);
    assert_eq!(world.forwarded(c), [data(1, 3, 4), data(1, 3, 5)]);
    assert_eq!(world.take(a), []);
    let stats = world.relay.stats();
    assert_eq!((stats.forwarded_frames, stats.forwarded_bytes, stats.queued_bytes), (5, message.len() as u64, 0));
    assert_eq!(stats.drops.total(), 0);
    // Drained: the next one wakes again.
    world.say(a, &data(1, 2, 6));
    world.say(a, &data(1, 2, 7));
    assert_eq!(world.events(), [RelayEvent::Writable(b)]);
}

/// What a flow's only run costs beside its bytes.
const RUN: usize = 192 + 640;

#[test]
fn a_run_is_a_slice_of_its_message_unless_that_would_hold_on_to_much_more() {
    let mut world = World::new();
    let (a, b, c) = (world.join(1, 7), world.join(2, 7), world.join(3, 7));
    let same = |part: &Bytes, message: &Bytes| message.as_ptr_range().contains(&part.as_ptr());
    let mut send = |frames: Vec<Vec<u8>>| {
        let message = Bytes::from(frames.concat());
        world.relay.handle_message(a, message.clone(), world.now);
        let held = world.relay.stats().queued_bytes;
        let (mut to_b, mut to_c) = (Vec::new(), Vec::new());
        world.relay.poll_transmit(b, usize::MAX, world.now, &mut to_b);
        world.relay.poll_transmit(c, usize::MAX, world.now, &mut to_c);
        (message, to_b, to_c, held)
    };
    let (message, to_b, _, held) = send(vec![data(1, 2, 1), data(1, 2, 2), data(1, 2, 3)]);
    assert_eq!((&to_b, held), (&vec![message.clone()], message.len() + RUN), "one run");
    assert!(same(&to_b[0], &message));

    let (message, to_b, to_c, held) = send(vec![data(1, 2, 1), data(1, 3, 2), data(1, 3, 3), data(1, 3, 4)]);
    assert!(same(&to_b[0], &message) && same(&to_c[0], &message), "a quarter is worth a slice");
    assert_eq!(held, 2 * (message.len() + RUN), "each counts for the message that it keeps alive");

    let (message, to_b, to_c, held) = send((0..5).map(|n| data(1, if n == 0 { 2 } else { 3 }, n)).collect());
    assert!(!same(&to_b[0], &message) && same(&to_c[0], &message), "a fifth is not");
    assert_eq!(to_b, [data(1, 2, 0)]);
    assert_eq!(held, message.len() + RUN + data(1, 2, 0).len() + RUN);
}

#[test]
fn signalling_and_answers_go_ahead_of_data() {
    let mut world = World::new();
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    let ping = sealed(FrameType::P2pPing, 1, 2, 2, 20);
    let pong = sealed(FrameType::P2pPong, 1, 2, 3, 20);
    world.say(a, &[data(1, 2, 1), ping.clone(), data(1, 2, 4), announce(1, 2, 5), pong.clone()].concat());
    let echo = Ping { sent_us: 77, seq: 5 };
    world.say(b, &echo.encode(FrameType::Ping));
    let forwarded = [ping, announce(1, 2, 5), pong].map(Sent::Forwarded);
    let want =
        forwarded.into_iter().chain([Sent::Pong(echo)]).chain([data(1, 2, 1), data(1, 2, 4)].map(Sent::Forwarded));
    assert_eq!(world.take(b), want.collect::<Vec<_>>());
}

#[test]
fn a_forged_source_is_never_forwarded() {
    let mut world = World::new();
    let (a, b, c) = (world.join(1, 7), world.join(2, 7), world.join(3, 7));
    let forged = [data(2, 3, 1), sealed(FrameType::P2pPing, 3, 2, 1, 9), announce(2, 3, 1), data(0, 2, 1)];
    world.say(a, &[data(1, 2, 1), forged.concat(), data(1, 2, 2)].concat());
    assert_eq!(world.forwarded(b), [data(1, 2, 1), data(1, 2, 2)]);
    assert_eq!(world.take(c), []);
    let answers = [(DATA, 2), (0x32, 3), (0x13, 2), (DATA, 0)];
    assert_eq!(world.take(a), answers.map(|(ty, about)| error(InvalidMessage, ty, about)));
    assert_eq!(world.relay.stats().drops.get(DropReason::ForgedSource), 4);
    // The connection stays, and a flood of them is not answered one by one.
    world.say(a, &data(2, 3, 1).repeat(100));
    assert_eq!(world.take(a).len(), 4, "the rest of the burst of 8");
    world.ms(250);
    world.say(a, &data(2, 3, 1).repeat(100));
    assert_eq!(world.take(a).len(), 1);
    assert_eq!(world.relay.stats().drops.get(DropReason::ForgedSource), 204);
    assert_eq!((world.take(b), world.take(c)), (vec![], vec![]));
}

#[test]
fn another_network_looks_exactly_like_nobody() {
    let mut world = World::new();
    let (a, foreign) = (world.join(1, 7), world.join(2, 8));
    world.events();
    // The same steps with a node of another network (2), one that was here and left (3), and one that never was (4).
    let left = world.join(3, 7);
    world.relay.disconnect(left, world.now);
    world.events();
    let mut replies = Vec::new();
    for dst in [2_u32, 3, 4] {
        let mut reply = Vec::new();
        let mut step = |world: &mut World, message: &[u8]| {
            world.say(a, message);
            let mut out = Vec::new();
            world.relay.poll_transmit(a, usize::MAX, world.now, &mut out);
            // The destination's own id is what differs.
            let id = dst.to_be_bytes()[3];
            reply.push(out.concat().iter().map(|byte| if *byte == id { 0 } else { *byte }).collect::<Vec<_>>());
        };
        step(&mut world, &data(1, dst, 9).repeat(3));
        step(&mut world, &sealed(FrameType::P2pPing, 1, dst, 9, 9));
        world.ms(999);
        step(&mut world, &announce(1, dst, 9));
        world.ms(1);
        step(&mut world, &announce(1, dst, 9));
        replies.push(reply);
        world.ms(5_000);
    }
    assert_eq!(replies[0], replies[1]);
    assert_eq!(replies[0], replies[2]);
    assert_eq!(replies[0].iter().map(|bytes| bytes.is_empty()).collect::<Vec<_>>(), [false, true, true, false]);
    assert_eq!(world.take(foreign), []);
    let drops = world.relay.stats().drops;
    assert_eq!((drops.get(DropReason::OtherNetwork), drops.get(DropReason::NotConnected)), (6, 12));
}

#[test]
fn no_kind_of_frame_tells_another_networks_node_from_nobody() {
    let mut world = World::new();
    let (a, foreign) = (world.join(1, 7), world.join(2, 8));
    world.events();
    let frame = |ty, dst| match ty {
        DATA => data(1, dst, 9),
        0x13 => announce(1, dst, 9),
        0x32 => sealed(FrameType::P2pPing, 1, dst, 9, 20),
        _ => sealed(FrameType::P2pPong, 1, dst, 9, 20),
    };
    for ty in [DATA, 0x13, 0x32, 0x33] {
        // A node of another network (2) and one that never was (3); both are asked for at the same moments.
        let answers: [Vec<Vec<u8>>; 2] = [2, 3].map(|dst: u32| {
            let at = |world: &mut World, ms| {
                world.ms(ms);
                world.say(a, &frame(ty, dst).repeat(2));
                let mut out = Vec::new();
                world.relay.poll_transmit(a, usize::MAX, world.now, &mut out);
                out.concat()
            };
            let steps = [at(&mut world, 1_000), at(&mut world, 999), at(&mut world, 1), at(&mut world, 500)];
            let told = steps.each_ref().map(|bytes| match &bytes[..] {
                [] => vec![],
                bytes => frames(bytes).map(|frame| sent(&frame.unwrap())).collect(),
            });
            let once = vec![error(NodeOffline, ty, dst)];
            assert_eq!(told, [once.clone(), vec![], once, vec![]], "type {ty:#04x} to {dst}: once a second");
            // But for the destination's own id.
            let id = dst.to_be_bytes()[3];
            steps.into_iter().map(|bytes| bytes.into_iter().map(|b| if b == id { 0 } else { b }).collect()).collect()
        });
        assert_eq!(answers[0], answers[1], "type {ty:#04x}");
        assert_eq!(world.take(foreign), [], "type {ty:#04x}");
    }
    let woken = world.events();
    assert!(woken.iter().all(|event| *event == RelayEvent::Writable(a)), "nobody else is: {woken:?}");
}

#[test]
fn offline_is_told_once_a_second_per_destination() {
    let mut world = World::new();
    let a = world.join(1, 7);
    world.say(a, &[data(1, 50, 1), data(1, 51, 1), data(1, 50, 1)].concat());
    assert_eq!(world.take(a), [error(NodeOffline, DATA, 50), error(NodeOffline, DATA, 51)]);
    world.ms(999);
    world.say(a, &data(1, 50, 1));
    assert_eq!(world.take(a), []);
    world.ms(1);
    world.say(a, &data(1, 50, 1));
    assert_eq!(world.take(a), [error(NodeOffline, DATA, 50)]);
    // A scan is answered for as many as are tracked; nothing grows without bound.
    world.ms(5_000);
    for dst in 1_000..3_000 {
        world.say(a, &data(1, dst, 1));
    }
    assert_eq!(world.take(a).len(), 256);
}

#[test]
fn announces_are_limited_per_source_and_destination() {
    let mut world = World::new();
    let (a, b, c) = (world.join(1, 7), world.join(2, 7), world.join(3, 7));
    world.say(a, &announce(1, 2, 1).repeat(20));
    world.say(c, &announce(3, 2, 1));
    world.say(a, &announce(1, 3, 1));
    assert_eq!((world.forwarded(b).len(), world.forwarded(c).len()), (8 + 1, 1));
    world.ms(249);
    world.say(a, &announce(1, 2, 1));
    assert_eq!(world.take(b), []);
    world.ms(1);
    world.say(a, &announce(1, 2, 2).repeat(2));
    assert_eq!(world.forwarded(b), [announce(1, 2, 2)]);
    assert_eq!(world.relay.stats().drops.get(DropReason::RateLimited), 12 + 1 + 1);
    // To the controller, an announce goes elsewhere.
    world.say(a, &announce(1, 0, 1));
    assert_eq!(world.take(a), [error(InvalidMessage, 0x13, 0)]);
}

#[test]
fn what_is_for_the_relay_itself() {
    let mut world = World::new();
    let a = world.join(1, 7);
    let ping = Ping { sent_us: u64::MAX, seq: 3 };
    world.say(a, &[ping.encode(FrameType::Ping), ping.encode(FrameType::Pong)].concat());
    assert_eq!(world.take(a), [Sent::Pong(ping)]);
    // ERROR and ACK are never answered; what belongs on another channel and what is unknown is, and the connection stays.
    world.say(a, &[frame(0xff, &[]), frame(0x05, &[])].concat());
    assert_eq!(world.take(a), []);
    for ty in [0x02, 0x03, 0x04, 0x22, 0x30, 0x31, 0x34, 0x35, 0x40, 0x41, 0x42, 0x00, 0x11, 0x12, 0x77, 0xfe] {
        world.ms(250);
        world.say(a, &frame(ty, &[1, 2, 3]));
        assert_eq!(world.take(a), [error(InvalidMessage, ty, 0)]);
    }
    let drops = world.relay.stats().drops;
    assert_eq!((drops.get(DropReason::Unexpected), drops.get(DropReason::UnknownType)), (11, 5));
    assert_eq!(world.closed(a), None);
}

#[test]
fn malformed_messages_end_the_connection_after_what_was_whole() {
    let cases: Vec<(Vec<u8>, _, u8)> = vec![
        (vec![], InvalidMessage, 0),
        (vec![1], InvalidMessage, 0),
        (vec![1, DATA, 0, 0, 9, 1], InvalidMessage, 0),
        ([data(1, 2, 1), vec![1, DATA]].concat(), InvalidMessage, 0),
        ([data(1, 2, 1), vec![0]].concat(), UnsupportedVersion, 0),
        ([data(1, 2, 1), frame(DATA, &[0; 35])].concat(), InvalidMessage, DATA),
        (frame(0x32, &[0; 35]), InvalidMessage, 0x32),
        ([data(1, 2, 1), frame(0x13, &[0; 191])].concat(), InvalidMessage, 0x13),
        (frame(0x13, &[0; 193]), InvalidMessage, 0x13),
        (frame(0x20, &[0; 11]), InvalidMessage, 0x20),
        (frame(0x21, &[0; 13]), InvalidMessage, 0x21),
        (frame(0x01, &[0xff; 9]), InvalidMessage, 0x01),
        (vec![9; 300], UnsupportedVersion, 0),
        (vec![1; (256 << 10) + 1], MessageTooLarge, 0),
    ];
    for (message, code, answers) in cases {
        let mut world = World::new();
        let (a, b) = (world.join(1, 7), world.join(2, 7));
        world.say(a, &message);
        assert_eq!(world.take(a), [error(code, answers, 0)]);
        assert_eq!(world.closed(a), Some((CloseReason::Protocol(code), true)));
        let whole = if message.starts_with(&data(1, 2, 1)) { vec![data(1, 2, 1)] } else { vec![] };
        assert_eq!(world.forwarded(b), whole);
        world.say(a, &data(1, 2, 2));
        assert_eq!(world.take(b), []);
        assert_eq!(world.relay.connection_of(NodeId(1)), None);
    }
    let mut world = World::new();
    let a = world.join(1, 7);
    world.relay.handle_text(a, world.now);
    assert_eq!(world.take(a), [error(InvalidMessage, 0, 0)]);
    assert_eq!(world.closed(a), Some((CloseReason::Protocol(InvalidMessage), true)));
}

#[test]
fn a_message_cut_at_every_byte_forwards_its_whole_frames_only() {
    let frames = [data(1, 2, 1), sealed(FrameType::Data, 1, 2, 2, 0), announce(1, 2, 3)];
    let message = frames.concat();
    let ends = [141, 141 + 41, 141 + 41 + 197];
    for len in 1..=message.len() {
        let mut world = World::new();
        let (a, b) = (world.join(1, 7), world.join(2, 7));
        world.say(a, &message[..len]);
        let whole = ends.iter().filter(|end| **end <= len).count();
        let mut got = world.forwarded(b);
        got.sort_by_key(|frame| frames.iter().position(|f| f == frame));
        assert_eq!(got, frames[..whole]);
        assert_eq!(world.closed(a).is_none(), ends.contains(&len));
    }
}

#[test]
fn a_super_packet_of_the_largest_size_passes() {
    let mut world = World::new();
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    let frame = sealed(FrameType::Data, 1, 2, 6, 65_499);
    world.say(a, &frame.repeat(3));
    let mut out = Vec::new();
    assert_eq!(world.relay.poll_transmit(b, 1_000, world.now, &mut out), frame.len(), "one frame, however large");
    assert_eq!(world.relay.poll_transmit(b, 2 * frame.len() - 1, world.now, &mut out), frame.len());
    assert_eq!(world.relay.poll_transmit(b, 0, world.now, &mut out), 0);
    assert_eq!(world.relay.poll_transmit(b, usize::MAX, world.now, &mut out), frame.len());
    assert_eq!(world.relay.poll_transmit(b, usize::MAX, world.now, &mut out), 0);
    assert_eq!(out, [frame.clone(), frame.clone(), frame]);
}

/// 64 KiB of the smallest frames: those for others arrive as they are, the rest is counted, and what is answered is bounded.
#[test]
fn tiny_frames_by_the_thousand_cost_no_more_than_they_are() {
    const MESSAGE: usize = 64 << 10;
    let mut world = World::new();
    let (a, b, c) = (world.join(1, 7), world.join(2, 7), world.join(3, 7));
    let size = sealed(FrameType::Data, 1, 2, 0, 0).len();
    let count = MESSAGE / size;
    // For two in turn, the worst for runs.
    let tiny = |n: usize| sealed(FrameType::Data, 1, 2 + (n % 2) as u32, n as u8, 0);
    world.say(a, &(0..count).flat_map(tiny).collect::<Vec<u8>>());
    assert!(world.relay.stats().queued_bytes <= 16 * MESSAGE, "{}", world.relay.stats().queued_bytes);
    for (conn, odd) in [(b, 0), (c, 1)] {
        let expected: Vec<Vec<u8>> = (0..count).filter(|n| n % 2 == odd).map(tiny).collect();
        assert!(world.forwarded(conn) == expected);
    }
    assert_eq!(world.relay.stats().queued_bytes, 0);

    // Of no known type, and to nobody: counted each, and the answers fit the lane for them.
    let unknown = frame(0xee, b"").repeat(MESSAGE / 5);
    world.say(a, &unknown);
    assert_eq!(world.relay.stats().drops.get(DropReason::UnknownType), (MESSAGE / 5) as u64);
    assert!(world.relay.stats().queued_bytes <= 2 * MESSAGE);
    let told = world.take(a).len();
    assert!(told < MESSAGE / 5, "{told}");
    let nobody: Vec<u8> = (0..count).flat_map(|_| sealed(FrameType::Data, 1, 99, 0, 0)).collect();
    world.say(a, &nobody);
    assert_eq!(world.take(a).len(), 1, "once a second");
    world.say(a, &data(1, 2, 1));
    assert_eq!(world.forwarded(b), [data(1, 2, 1)], "the connection lives");
}

#[test]
fn silence_for_a_minute_ends_a_connection() {
    let mut world = World::new();
    let (a, b) = (world.join(1, 7), world.join(2, 7));
    world.events();
    world.ms(30_000);
    world.say(a, &frame(0x21, &[0; 12]));
    for _ in 0..29 {
        world.ms(1_000);
        world.say(a, &data(1, 2, 1)); // b receives, but says nothing
        world.take(b);
    }
    world.ms(999);
    assert_eq!(world.closed(b), None);
    world.ms(1);
    assert_eq!(world.closed(b), Some((CloseReason::Idle, false)));
    assert_eq!(world.take(b), []);
    world.ms(58_999);
    assert_eq!(world.closed(a), None);
    world.ms(1);
    assert_eq!(world.closed(a), Some((CloseReason::Idle, false)));
    world.relay.disconnect(a, world.now);
    world.relay.disconnect(b, world.now);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.relay.poll_timeout(), None);
}
