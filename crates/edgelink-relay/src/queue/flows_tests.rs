use super::*;
use crate::queue::{HEADER_LEN, Lane, Queue};
use proptest::prelude::*;
use std::time::Duration;

#[expect(clippy::disallowed_methods, reason = "any origin will do")]
fn origin() -> Instant {
    Instant::now()
}

fn run(flow: u16, mark: u32, len: usize, queued: Instant) -> Run {
    let mut frame = vec![1, 0x10, 0, 0, 0];
    frame[3..].copy_from_slice(&u16::try_from(len - HEADER_LEN).unwrap().to_be_bytes());
    frame.extend(flow.to_be_bytes());
    frame.extend(mark.to_be_bytes());
    frame.resize(len, 0);
    Run { buffer: len, frames: frame.into(), queued, own: false, flow }
}

/// Flow and mark of each frame.
fn seen(out: &[Bytes]) -> Vec<(u16, u32)> {
    out.iter()
        .flat_map(|bytes| edgelink_wire::frames(bytes))
        .map(|frame| {
            let payload = frame.unwrap().payload;
            let flow = u16::from_be_bytes(*payload.first_chunk().unwrap());
            (flow, u32::from_be_bytes(*payload[2..].first_chunk().unwrap()))
        })
        .collect()
}

struct Bench {
    queue: Queue,
    limits: Limits,
    drops: Drops,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { queue: Queue::mesh(), limits: Limits::default(), drops: Drops::default(), now: origin() }
    }

    fn push(&mut self, flow: u16, mark: u32, len: usize) -> bool {
        let free = self.limits.queued_total - self.queue.held();
        self.queue.push(Lane::Data, run(flow, mark, len, self.now), free, &self.limits, &mut self.drops)
    }

    fn take(&mut self, max: usize) -> Vec<(u16, u32)> {
        let mut out = Vec::new();
        let taken = self.queue.take(max, self.now, &self.limits, &mut out, &mut self.drops);
        assert_eq!(taken, out.iter().map(Bytes::len).sum::<usize>());
        seen(&out)
    }
}

#[test]
fn a_sparse_flow_goes_ahead_of_a_bulk_flow_that_waits() {
    let mut bench = Bench::new();
    for mark in 0..200 {
        bench.push(1, mark, 1_400);
    }
    assert_eq!(bench.take(50_000).len(), 35);
    bench.push(2, 0, 100);
    assert_eq!(bench.take(4_000).first(), Some(&(2, 0)));
}

#[test]
fn two_bulk_flows_share_the_link_by_bytes() {
    let mut bench = Bench::new();
    // One with large frames, one with small ones.
    for mark in 0..20 {
        bench.push(1, mark, 30_000);
    }
    for mark in 0..800 {
        bench.push(2, mark, 700);
    }
    let mut bytes = [0, 0];
    for _ in 0..8 {
        for (flow, _) in bench.take(64 << 10) {
            bytes[usize::from(flow) - 1] += if flow == 1 { 30_000 } else { 700 };
        }
    }
    let [large, small] = bytes.map(f64::from);
    assert!((0.8..1.25).contains(&(large / small)), "{large} and {small} bytes");
}

#[test]
fn when_the_link_is_full_the_fattest_flow_pays() {
    let mut bench = Bench::new();
    for flow in 0..8 {
        for mark in 0..400 {
            assert!(bench.push(flow, mark, 1_400));
        }
    }
    assert!(bench.push(100, 7, 1_400), "a thin flow");
    for mark in 400..1_000 {
        bench.push(3, mark, 1_400);
    }
    assert!(bench.drops.get(DropReason::QueueFull) > 0);
    let mut all = Vec::new();
    loop {
        let some = bench.take(1 << 20);
        if some.is_empty() {
            break;
        }
        all.extend(some);
    }
    assert!(all.contains(&(100, 7)), "the thin flow lost nothing");
    assert_eq!(bench.queue.held(), 0);
}

#[test]
fn codel_thins_the_standing_flow_only() {
    let mut bench = Bench::new();
    let mut lost = [0; 2];
    for ms in 0..3_000_u32 {
        bench.now += Duration::from_millis(1);
        // Twice what is taken, by flow 1; one frame in 20 ms by flow 2.
        bench.push(1, ms, 1_400);
        bench.push(1, ms, 1_400);
        if ms % 20 == 0 {
            bench.push(2, ms, 200);
            lost[1] += 1;
        }
        for (flow, _) in bench.take(1_600) {
            lost[1] -= i32::from(flow == 2);
            lost[0] += i32::from(flow == 1);
        }
    }
    assert!(bench.drops.get(DropReason::Codel) > 10);
    assert!(lost[1] <= 1, "the thin flow waits for its turn at most: {}", lost[1]);
}

proptest! {
    /// Whatever comes and goes: sums are right, order is kept within a flow, everything is sent or counted, and the
    /// bound holds.
    #[test]
    fn nothing_is_lost_uncounted_nor_reordered(
        steps in prop::collection::vec((0u16..6, 20usize..60_000, 0usize..200_000, 0u64..30), 1..200),
    ) {
        let mut bench = Bench::new();
        bench.limits.mesh_queue = 512 << 10;
        bench.limits.data_queue = 256 << 10;
        let (mut pushed, mut taken) = (0, 0);
        let mut last = [None::<u32>; 6];
        for (mark, (flow, len, take, ms)) in steps.into_iter().enumerate() {
            bench.now += Duration::from_millis(ms);
            bench.push(flow, u32::try_from(mark).unwrap(), len);
            pushed += 1;
            prop_assert!(bench.queue.held() <= bench.limits.mesh_queue + 6 * FLOW_OVERHEAD);
            for (flow, mark) in bench.take(take) {
                taken += 1;
                let before = last[usize::from(flow)].replace(mark);
                prop_assert!(before.is_none_or(|before| before < mark));
            }
        }
        loop {
            let rest = bench.take(1 << 20).len();
            taken += rest;
            if rest == 0 { break }
        }
        prop_assert_eq!(pushed, taken + bench.drops.total() as usize);
        prop_assert_eq!(bench.queue.held(), 0);
        prop_assert!(bench.queue.is_empty());
    }
}
