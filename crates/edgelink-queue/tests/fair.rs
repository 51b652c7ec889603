//! Fair queueing on a virtual clock, against a model that is too simple to be wrong.
#![expect(clippy::unwrap_used, reason = "tests may")]

use edgelink_queue::{CodelParams, FLOWS, FairParams, FairQueue, Reason};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);
const PARAMS: FairParams = FairParams {
    codel: CodelParams { target: Duration::from_millis(15), interval: Duration::from_millis(200) },
    max_sojourn: Duration::from_secs(1),
};
const BULK: u16 = 1;
const SPARSE: u16 = 2;

#[expect(clippy::disallowed_methods, reason = "any origin will do")]
fn origin() -> Instant {
    Instant::now()
}

/// An item: its flow, its number there, its cost.
type Item = (u16, u32, usize);

/// A queue, and what came of its items.
struct Bench {
    queue: FairQueue<Item>,
    now: Instant,
    limit: usize,
    next: BTreeMap<u16, u32>,
    sent: Vec<Item>,
    dropped: Vec<(Item, Reason)>,
}

impl Bench {
    fn new(limit: usize) -> Self {
        Self { queue: FairQueue::new(), now: origin(), limit, next: BTreeMap::new(), sent: vec![], dropped: vec![] }
    }

    fn push(&mut self, flow: u16, cost: usize) {
        let number = self.next.entry(flow).or_default();
        let (item, dropped) = ((flow, *number, cost), &mut self.dropped);
        *number += 1;
        self.queue.push(flow, item, cost, self.now, self.limit, &mut |item, why| dropped.push((item, why)));
    }

    fn pop(&mut self) -> Option<Item> {
        let dropped = &mut self.dropped;
        let item = self.queue.pop(self.now, &PARAMS, &mut |item, why| dropped.push((item, why)))?;
        self.sent.push(item);
        Some(item)
    }
}

/// How a link of so many bytes per millisecond treats a ping every 20 ms beside `bulk` bytes that come each millisecond:
/// the longest wait of a ping, and how many bytes of bulk came through.
fn ping_beside_bulk(rate: usize, bulk: usize, packet: usize) -> (Duration, usize, Bench) {
    let mut bench = Bench::new(1 << 20);
    let (mut credit, mut pings, mut worst, mut through) = (0_usize, VecDeque::new(), Duration::ZERO, 0);
    for ms in 0..5_000 {
        for _ in 0..bulk / packet {
            bench.push(BULK, packet);
        }
        if ms % 20 == 0 {
            bench.push(SPARSE, 84);
            pings.push_back(bench.now);
        }
        credit += rate;
        while credit >= packet
            && let Some((flow, _, cost)) = bench.pop()
        {
            credit -= cost;
            if flow == SPARSE {
                worst = worst.max(bench.now - pings.pop_front().unwrap());
            } else {
                through += cost;
            }
        }
        credit = credit.min(rate + packet);
        bench.now += MS;
    }
    (worst, through, bench)
}

#[test]
fn a_ping_never_waits_behind_a_bulk_transfer() {
    // 10 Mbit/s, and twice as much comes: 1 MiB would be 840 ms.
    let (worst, through, bench) = ping_beside_bulk(1_250, 2_800, 1_400);
    // A packet takes 1.1 ms, and a flow that has just begun three of them.
    assert!(worst <= 5 * MS, "{worst:?}");
    assert!(through >= 1_250 * 4_900, "the link is not idle: {through}");
    assert!(bench.dropped.iter().all(|((flow, ..), _)| *flow == BULK));
    // The same through one queue, which is what a test that cannot fail would not notice.
    let mut one = VecDeque::new();
    let (mut waiting, mut worst) = (0_usize, Duration::ZERO);
    for ms in 0..5_000_u32 {
        one.push_back((BULK, ms));
        one.push_back((BULK, ms));
        waiting += 2_800;
        if ms % 20 == 0 {
            one.push_back((SPARSE, ms));
        }
        while waiting > 1 << 20 {
            one.pop_front();
            waiting -= 1_400;
        }
        if let Some((flow, since)) = one.pop_front() {
            waiting = waiting.saturating_sub(1_400);
            if flow == SPARSE {
                worst = worst.max(MS * (ms - since));
            }
        }
    }
    assert!(worst > 400 * MS, "{worst:?}");
}

#[test]
fn bulk_flows_share_by_bytes_whatever_their_packets() {
    let mut bench = Bench::new(1 << 20);
    for _ in 0..200 {
        (0..20).for_each(|_| bench.push(1, 1_400));
        (0..50).for_each(|_| bench.push(2, 600));
        bench.push(3, 28_000);
        let mut sent = 0;
        while sent < 30_000 {
            sent += bench.pop().unwrap().2;
        }
        bench.now += MS / 10;
    }
    let of = |flow| bench.sent.iter().filter(|item| item.0 == flow).map(|item| item.2).sum::<usize>() as f64;
    let all = of(1) + of(2) + of(3);
    for flow in 1..=3 {
        assert!((0.30..=0.37).contains(&(of(flow) / all)), "{flow}: {}", of(flow) / all);
    }
}

#[test]
fn the_longest_flow_makes_room() {
    let mut bench = Bench::new(20_000);
    (0..13).for_each(|_| bench.push(BULK, 1_400));
    (0..10).for_each(|_| bench.push(SPARSE, 400));
    // 22,200 are 2,200 too many: two of the bulk flow's oldest.
    assert_eq!(bench.dropped, [((BULK, 0, 1_400), Reason::Full), ((BULK, 1, 1_400), Reason::Full)]);
    // What is larger than the whole queue takes nothing with it that is smaller than itself.
    bench.push(SPARSE, 30_000);
    assert!(bench.queue.cost() <= 20_000);
    assert_eq!(bench.dropped.last().unwrap(), &((SPARSE, 10, 30_000), Reason::Full));
}

#[test]
fn what_is_too_old_is_not_sent() {
    let mut bench = Bench::new(1 << 20);
    bench.push(BULK, 1_400);
    bench.now += Duration::from_millis(1_001);
    bench.push(BULK, 1_400);
    assert_eq!(bench.pop(), Some((BULK, 1, 1_400)));
    assert_eq!(bench.dropped, [((BULK, 0, 1_400), Reason::TooOld)]);
    assert!(bench.queue.is_empty() && bench.queue.cost() == 0);
}

#[test]
fn a_standing_queue_is_thinned_and_a_burst_is_not() {
    // A burst of 100 ms of packets, drained at the link's speed, and 10 % less than the link carries.
    let mut bench = Bench::new(1 << 20);
    (0..89).for_each(|_| bench.push(BULK, 1_400));
    for ms in 0..2_000 {
        if ms % 10 != 0 {
            bench.push(BULK, 1_400);
        }
        bench.pop();
        bench.now += MS;
    }
    let drops = bench.dropped.len();
    assert!(bench.dropped.iter().all(|(_, why)| *why == Reason::Codel));
    assert!((1..=20).contains(&drops), "{drops}");
    assert!(bench.queue.len() <= 15, "{}", bench.queue.len());
}

proptest! {
    #[test]
    fn nothing_is_lost_doubled_reordered_or_starved(
        steps in proptest::collection::vec((0_u16..6, 0_usize..5, 1_usize..9_000, 0_u64..12), 1..400),
        limit in 9_000_usize..200_000,
    ) {
        let mut bench = Bench::new(limit);
        let mut model: BTreeMap<u16, VecDeque<Item>> = BTreeMap::new();
        for (flow, pops, cost, pause) in steps {
            // Some share a queue with others.
            let flow = if flow == 5 { FLOWS + 1 } else { flow };
            let number = bench.next.get(&flow).copied().unwrap_or(0);
            let lost = bench.dropped.len();
            let before = bench.queue.len();
            bench.push(flow, cost);
            model.entry(flow % FLOWS).or_default().push_back((flow, number, cost));
            for (item, why) in &bench.dropped[lost..] {
                prop_assert_eq!(*why, Reason::Full);
                let queue = model.get_mut(&(item.0 % FLOWS)).unwrap();
                prop_assert_eq!(queue.pop_front(), Some(*item));
            }
            prop_assert!(bench.queue.cost() <= limit);
            prop_assert_eq!(bench.queue.len(), before + 1 - (bench.dropped.len() - lost));
            for _ in 0..pops {
                let lost = bench.dropped.len();
                let item = bench.pop();
                for (dropped, why) in &bench.dropped[lost..] {
                    prop_assert!(*why != Reason::Full);
                    prop_assert_eq!(model.get_mut(&(dropped.0 % FLOWS)).unwrap().pop_front(), Some(*dropped));
                }
                match item {
                    Some(item) => prop_assert_eq!(model.get_mut(&(item.0 % FLOWS)).unwrap().pop_front(), Some(item)),
                    None => prop_assert!(model.values().all(VecDeque::is_empty)),
                }
            }
            let waiting: Vec<_> = model.values().flatten().collect();
            prop_assert_eq!(bench.queue.len(), waiting.len());
            prop_assert_eq!(bench.queue.cost(), waiting.iter().map(|item| item.2).sum::<usize>());
            bench.now += MS * u32::try_from(pause).unwrap();
        }
        // Who has something waiting is served within so many bytes: nobody starves. (No time passes: CoDel rests.)
        let mut since: BTreeMap<u16, usize> = BTreeMap::new();
        while let Some(item) = bench.pop() {
            model.get_mut(&(item.0 % FLOWS)).unwrap().retain(|other| other != &item);
            since.insert(item.0 % FLOWS, 0);
            for (flow, queue) in &model {
                let bytes = since.entry(*flow).or_default();
                *bytes = if queue.is_empty() || *flow == item.0 % FLOWS { 0 } else { *bytes + item.2 };
                // Five others, each at most one item beyond its share; a flow's own debt is one item too.
                prop_assert!(*bytes <= 5 * 2 * (9_000 + 3_028) + 5 * 9_000, "flow {} waits for {} bytes", flow, bytes);
            }
        }
    }

    #[test]
    fn whoever_was_silent_is_next(
        bulk in proptest::collection::vec(proptest::collection::vec(3_028_usize..9_000, 3..6), 1..50), more in 0_usize..100,
    ) {
        let mut bench = Bench::new(usize::MAX);
        for (flow, costs) in (0..).zip(&bulk) {
            costs.iter().for_each(|cost| bench.push(flow, *cost));
        }
        // Everybody has had the turn of a newcomer.
        for _ in 0..bulk.len() + more {
            bench.pop();
        }
        bench.push(99, 84);
        prop_assert_eq!(bench.pop(), Some((99, 0, 84)));
    }
}
