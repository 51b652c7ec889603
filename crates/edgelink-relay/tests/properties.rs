//! What holds whatever nodes send, and however slowly they read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may, like tests")]

mod common;

use bytes::Bytes;
use common::*;
use edgelink_relay::{ConnId, DropReason, Limits, RelayEvent};
use edgelink_wire::{Frame, FrameType, frames};
use proptest::prelude::*;
use std::collections::{HashMap, VecDeque};

/// Nodes 1–3 are in network 7, 4–5 in 8, 6 in 9; 7 is nowhere.
const NODES: [(u32, u32); 6] = [(1, 7), (2, 7), (3, 7), (4, 8), (5, 8), (6, 9)];

fn network(node: u32) -> Option<u32> {
    NODES.iter().find(|(id, _)| *id == node).map(|(_, network)| *network)
}

#[derive(Clone, Debug)]
enum Step {
    /// A message of frames (type, claimed source or the true one, destination, size of the plaintext).
    Say {
        node: usize,
        frames: Vec<(FrameType, Option<u32>, u32, usize)>,
    },
    /// The shell of a node's connection takes so much.
    Take {
        node: usize,
        max: usize,
    },
    /// A node comes back on a new connection; the old one ends then or, if `late`, later.
    Rejoin {
        node: usize,
        late: bool,
    },
    Pass {
        ms: u64,
    },
}

fn steps(slow: bool) -> impl Strategy<Value = Vec<Step>> {
    let ty = prop_oneof![8 => Just(FrameType::Data), 1 => Just(FrameType::P2pPing), 1 => Just(FrameType::P2pPong)];
    let src = prop_oneof![9 => Just(None), 1 => (0u32..8).prop_map(Some)];
    let size = prop_oneof![4 => 0usize..200, 4 => 1_000usize..1_500, 1 => 1_500usize..20_000];
    let frame = (ty, src, 1u32..8, size);
    let say =
        (0..NODES.len(), prop::collection::vec(frame, 1..12)).prop_map(|(node, frames)| Step::Say { node, frames });
    let take = (0..NODES.len(), 1usize..40_000).prop_map(|(node, max)| Step::Take { node, max });
    let rejoin = (0..NODES.len(), any::<bool>()).prop_map(|(node, late)| Step::Rejoin { node, late });
    let pass = (1u64..60).prop_map(|ms| Step::Pass { ms });
    let step = if slow {
        prop_oneof![4 => say, 1 => take, 2 => pass].boxed()
    } else {
        prop_oneof![4 => say, 2 => take, 1 => rejoin].boxed()
    };
    prop::collection::vec(step, 1..80)
}

/// What keeps its order: signalling of a pair, and each flow of its data.
fn key_of(src: u32, dst: u32, ty: Option<FrameType>, flags: u8) -> (u32, u32, bool, u8) {
    let data = ty == Some(FrameType::Data);
    (src, dst, data, if data { flags >> 5 } else { 0 })
}

/// Runs the steps and checks every frame that comes out against what went in.
struct Model {
    world: World,
    conns: Vec<ConnId>,
    former: Vec<ConnId>,
    /// Frames that may still come out, by source, destination, lane and label, oldest first.
    expected: HashMap<(u32, u32, bool, u8), VecDeque<Vec<u8>>>,
    valid: u64,
    delivered: u64,
    errors: u64,
    next_mark: u64,
}

impl Model {
    fn new(limits: Limits) -> Self {
        let mut world = World::with_limits(limits);
        let conns = NODES.iter().map(|(node, network)| world.join(*node, *network)).collect();
        Self { world, conns, former: vec![], expected: HashMap::new(), valid: 0, delivered: 0, errors: 0, next_mark: 0 }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Say { node, frames } => {
                let me = NODES[*node].0;
                let message: Vec<u8> =
                    frames.iter().flat_map(|frame| self.frame(me, frame.0, frame.1, frame.2, frame.3)).collect();
                self.world.say(self.conns[*node], &message);
            }
            Step::Take { node, max } => {
                self.take(*node, *max);
            }
            Step::Rejoin { node, late } => self.rejoin(*node, *late),
            Step::Pass { ms } => self.world.ms(*ms),
        }
        for event in self.world.events() {
            assert!(
                !matches!(event, RelayEvent::Close { reason, .. } if reason != edgelink_relay::CloseReason::Replaced)
            );
        }
    }

    fn frame(&mut self, me: u32, ty: FrameType, claimed: Option<u32>, dst: u32, size: usize) -> Vec<u8> {
        let src = claimed.unwrap_or(me);
        let mut frame = sealed(ty, src, dst, 0xee, size);
        frame[13..21].copy_from_slice(&self.next_mark.to_be_bytes()); // unique: the nonce
        frame[2] = self.next_mark as u8 & 0xf8;
        self.next_mark += 1;
        if src == me && network(dst) == network(me) {
            self.valid += 1;
            self.expected.entry(key_of(src, dst, Some(ty), frame[2])).or_default().push_back(frame.clone());
        }
        frame
    }

    fn take(&mut self, node: usize, max: usize) -> usize {
        let mut out: Vec<Bytes> = Vec::new();
        let taken = self.world.relay.poll_transmit(self.conns[node], max, self.world.now, &mut out);
        assert_eq!(taken, out.iter().map(Bytes::len).sum::<usize>());
        let count: usize = out.iter().map(|run| frames(run).count()).sum();
        assert!(taken <= max || count == 1);
        for run in &out {
            for frame in frames(run) {
                let frame = frame.unwrap();
                match frame.frame_type() {
                    Some(FrameType::Error) => self.errors += 1,
                    Some(FrameType::AuthResponse) => {}
                    _ => self.check(node, &frame),
                }
            }
        }
        taken
    }

    fn check(&mut self, node: usize, frame: &Frame<'_>) {
        let clear = edgelink_wire::data::parse(frame.raw).unwrap();
        assert_eq!(clear.dst.0, NODES[node].0, "delivered to the wrong node");
        let key = key_of(clear.src.0, clear.dst.0, frame.frame_type(), frame.flags.0);
        // Older ones may have been dropped; then they never come any more.
        let waiting = self.expected.get_mut(&key).expect("nobody sent that");
        while waiting.pop_front().expect("sent once, in this order, unchanged") != frame.raw {}
        self.delivered += 1;
    }

    fn rejoin(&mut self, node: usize, late: bool) {
        let (id, network) = NODES[node];
        // Everything for the old connection is taken first: signalling is not handed over.
        while self.take(node, 1 << 20) > 0 {}
        let (world, old) = (&mut self.world, self.conns[node]);
        self.conns[node] = world.join(id, network);
        if late { self.former.push(old) } else { world.relay.disconnect(old, world.now) }
    }

    fn finish(&mut self) {
        for old in std::mem::take(&mut self.former) {
            self.world.relay.disconnect(old, self.world.now);
        }
        for node in 0..NODES.len() {
            while self.take(node, 1 << 20) > 0 {}
        }
        assert_eq!(self.world.relay.stats().queued_bytes, 0);
        assert_eq!(self.world.relay.stats().nodes, NODES.len());
        let drops = self.world.relay.stats().drops;
        let queue = [DropReason::TooOld, DropReason::Codel, DropReason::QueueFull, DropReason::Budget];
        let dropped: u64 = queue.iter().map(|reason| drops.get(*reason)).sum();
        // The relay's own ERRORs are dropped and counted like frames when their lane is full.
        let lost_errors = self.world.relay.stats().errors - self.errors;
        assert_eq!(self.valid + lost_errors, self.delivered + dropped, "every frame is accounted for");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With room enough, every frame is delivered exactly once, to the right node, in order, unchanged.
    #[test]
    fn everything_arrives_exactly_once(steps in steps(false)) {
        let mut model = Model::new(Limits { data_queue: 64 << 20, control_queue: 64 << 20, ..Limits::default() });
        for step in &steps {
            model.run(step);
        }
        model.finish();
        prop_assert_eq!(model.valid, model.delivered);
        prop_assert!(model.expected.values().all(VecDeque::is_empty));
    }

    /// With slow readers and tight bounds, what arrives is still in order and at most once, memory is bounded, and every
    /// frame that does not arrive is counted.
    #[test]
    fn slow_readers_lose_frames_but_nothing_else(steps in steps(true)) {
        let limits = Limits {
            data_queue: 48 << 10,
            fast_data_queue: 0,
            control_queue: 4 << 10,
            queued_total: 160 << 10,
            message: 1 << 20,
            ..Limits::default()
        };
        let mut model = Model::new(limits.clone());
        for step in &steps {
            model.run(step);
            prop_assert!(model.world.relay.stats().queued_bytes <= limits.queued_total);
        }
        model.finish();
    }

    /// Whatever bytes come, before or after authentication: no panic, no forged frame, and other nodes go on.
    #[test]
    fn arbitrary_bytes(
        messages in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                // Right headers, arbitrary payloads, sometimes cut.
                (prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..220)), 1..5), 0usize..3)
                    .prop_map(|(list, cut)| {
                        let mut message: Vec<u8> = list.iter().flat_map(|(ty, payload)| frame(*ty, payload)).collect();
                        message.truncate(message.len() - cut);
                        message
                    }),
            ],
            1..20,
        ),
        authenticated: bool,
    ) {
        let mut world = World::new();
        let (b, c) = (world.join(2, 7), world.join(3, 7));
        let mut conn = None;
        for message in &messages {
            let id = *conn.get_or_insert_with(|| if authenticated { world.join(1, 7) } else { world.connect() });
            world.say(id, message);
            world.ms(100);
            if world.closed(id).is_some() {
                world.relay.disconnect(id, world.now);
                conn = None;
            }
        }
        for other in [b, c] {
            for frame in world.forwarded(other) {
                prop_assert!(authenticated);
                prop_assert_eq!(&frame[5..9], &1u32.to_be_bytes());
            }
        }
        world.say(b, &data(2, 3, 1));
        prop_assert_eq!(world.forwarded(c), [data(2, 3, 1)]);
    }
}
