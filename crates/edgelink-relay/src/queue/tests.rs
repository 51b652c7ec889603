use super::*;
use edgelink_model::NodeId;
use edgelink_wire::Flags;
use proptest::prelude::*;
use std::time::Duration;

#[expect(clippy::disallowed_methods, reason = "any origin will do")]
fn origin() -> Instant {
    Instant::now()
}

fn frame(mark: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![1, 0x10, 0, 0, 0];
    frame[3..].copy_from_slice(&u16::try_from(len - HEADER_LEN).unwrap().to_be_bytes());
    frame.extend(mark.to_be_bytes());
    frame.resize(len, 0);
    frame
}

fn run(marks: impl IntoIterator<Item = u32>, len: usize, queued: Instant) -> Run {
    let frames: Bytes = marks.into_iter().flat_map(|mark| frame(mark, len)).collect();
    Run { buffer: frames.len(), frames, queued, own: false, flow: 0 }
}

/// The only flow of these tests.
fn fifo(queue: &Queue) -> Option<&Fifo> {
    queue.data.fifo(0)
}

fn marks(out: &[Bytes]) -> Vec<u32> {
    let mut marks = Vec::new();
    for bytes in out {
        for frame in edgelink_wire::frames(bytes) {
            marks.push(u32::from_be_bytes(*frame.unwrap().payload.first_chunk().unwrap()));
        }
    }
    marks
}

struct Bench {
    queue: Queue,
    limits: Limits,
    drops: Drops,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self { queue: Queue::new(), limits, drops: Drops::default() }
    }

    fn push(&mut self, lane: Lane, run: Run) -> bool {
        let free = self.limits.queued_total - self.queue.held();
        let accepted = self.queue.push(lane, run, free, &self.limits, &mut self.drops);
        self.check();
        accepted
    }

    fn take(&mut self, max: usize, now: Instant) -> Vec<u32> {
        let marks = self.take_unchecked(max, now);
        self.check();
        marks
    }

    /// For tests with several flows, or more than [`Limits::data_queue`].
    fn push_unchecked(&mut self, run: Run) -> bool {
        let free = self.limits.queued_total - self.queue.held();
        self.queue.push(Lane::Data, run, free, &self.limits, &mut self.drops)
    }

    fn take_unchecked(&mut self, max: usize, now: Instant) -> Vec<u32> {
        let mut out = Vec::new();
        let taken = self.queue.take(max, now, &self.limits, &mut out, &mut self.drops);
        assert_eq!(taken, out.iter().map(Bytes::len).sum::<usize>());
        marks(&out)
    }

    /// The sums are what they sum up, and within the bounds.
    fn check(&self) {
        let lanes =
            [(Some(&self.queue.control), self.limits.control_queue), (fifo(&self.queue), self.limits.data_queue)];
        for (lane, bound) in lanes.into_iter().filter_map(|(lane, bound)| lane.map(|lane| (lane, bound))) {
            assert_eq!(lane.bytes, lane.runs.iter().map(|run| run.frames.len()).sum::<usize>());
            assert_eq!(lane.held, lane.runs.iter().map(Run::held).sum::<usize>());
            assert!(lane.cost() <= bound);
            assert!(lane.runs.iter().all(|run| !run.frames.is_empty()));
        }
        assert!(self.queue.held() <= self.limits.queued_total);
    }
}

#[test]
fn a_second_is_the_most_and_the_relays_own_words_do_not_age() {
    let (start, second) = (origin(), Duration::from_secs(1));
    let mut bench = Bench::new(Limits::default());
    bench.push(Lane::Data, run([1], 100, start));
    bench.push(Lane::Control, run([2], 100, start));
    bench.push(Lane::Control, Run { own: true, ..run([3], 100, start) });
    bench.push(Lane::Data, run([4], 100, start + Duration::from_nanos(1)));
    assert_eq!(bench.take(9_999, start + second + Duration::from_nanos(1)), [3, 4]);
    assert_eq!(bench.drops.get(DropReason::TooOld), 2);
    bench.push(Lane::Data, run([5, 6], 100, start + second));
    assert_eq!(bench.take(9_999, start + 2 * second), [5, 6], "exactly a second is not too much");
}

#[test]
fn pushing_makes_room_of_what_is_too_old() {
    let start = origin();
    let mut bench = Bench::new(Limits { data_queue: 10_000, fast_data_queue: 0, message: 9_000, ..Limits::default() });
    bench.push(Lane::Data, run(0..8, 1_000, start));
    assert!(bench.push(Lane::Data, run(8..16, 1_000, start + Duration::from_millis(1_001))));
    assert_eq!((bench.drops.get(DropReason::TooOld), bench.drops.total()), (8, 8));
}

#[test]
fn only_as_many_of_the_oldest_frames_are_dropped_as_needed() {
    let start = origin();
    let mut bench = Bench::new(Limits { data_queue: 10_000, fast_data_queue: 0, message: 9_000, ..Limits::default() });
    bench.push(Lane::Data, run(0..6, 1_000, start));
    // 6,192 + 4,192 is 384 too much: one frame.
    assert!(bench.push(Lane::Data, run(6..10, 1_000, start)));
    assert_eq!(bench.drops.get(DropReason::QueueFull), 1);
    assert_eq!(bench.take(99_999, start), (1..10).collect::<Vec<_>>());
    // What does not even fit an empty queue takes nothing with it.
    bench.push(Lane::Data, run(0..6, 1_000, start));
    assert!(!bench.push(Lane::Data, run(6..16, 1_000, start)));
    assert_eq!(bench.drops.get(DropReason::QueueFull), 11);
    assert_eq!(bench.take(99_999, start), (0..6).collect::<Vec<_>>());
}

#[test]
fn a_run_is_split_between_frames_and_holds_its_buffer_until_its_end() {
    let start = origin();
    let mut bench = Bench::new(Limits::default());
    bench.push(Lane::Data, Run { buffer: 5_000, ..run(0..4, 1_000, start) });
    assert_eq!(bench.take(1, start), [0], "at least one");
    assert_eq!(bench.take(2_999, start), [1, 2]);
    assert_eq!(bench.queue.held(), 5_000 + RUN_OVERHEAD + flows::FLOW_OVERHEAD);
    assert_eq!(bench.take(999, start), [3]);
    assert_eq!(bench.queue.held(), 0);
    assert_eq!(bench.take(999, start), [0; 0]);
}

#[test]
fn the_lanes_share_a_batch_control_first() {
    let start = origin();
    let mut bench = Bench::new(Limits::default());
    bench.push(Lane::Data, run([10, 11], 1_000, start));
    bench.push(Lane::Control, run([20, 21], 100, start));
    assert_eq!(bench.take(1_200, start), [20, 21, 10]);
    assert_eq!(bench.take(1_200, start), [11]);
    bench.push(Lane::Data, run([10], 1_000, start));
    bench.push(Lane::Control, run([20], 100, start));
    assert_eq!(bench.take(500, start), [20], "no room for the data frame, and there was one already");
    assert_eq!(bench.take(500, start), [10]);
}

#[test]
fn an_emptied_queue_gives_its_slots_back() {
    let start = origin();
    let mut bench = Bench::new(Limits::default());
    for mark in 0..3_000 {
        bench.push(Lane::Data, run([mark], 100, start));
    }
    while !bench.take(10_000, start).is_empty() {}
    assert!(fifo(&bench.queue).is_none_or(|fifo| fifo.runs.capacity() <= 2 * KEPT_RUNS));
}

#[test]
fn a_fast_receiver_may_have_300_ms_waiting_even_after_a_pause_and_one_that_has_stopped_may_not() {
    let (start, ms) = (origin(), Duration::from_millis(1));
    let mut bench = Bench::new(Limits::default());
    // 18 KB each millisecond: 144 Mbit/s. 300 ms of that are 5.4 MB, and with it goes what is kept of each frame.
    for n in 0..200 {
        bench.push_unchecked(run(0..12, 1_500, start + ms * n));
        bench.take_unchecked(18_000, start + ms * n);
    }
    // A lost segment has held up the connection for half a second, and all that waited behind it comes at once.
    let burst = start + 700 * ms;
    for _ in 0..170 {
        assert!(bench.push_unchecked(run(0..20, 1_500, burst)));
    }
    assert_eq!(bench.drops.total(), 0);
    assert!(bench.queue.held() > 5_000_000, "{}", bench.queue.held());
    for _ in 0..40 {
        bench.push_unchecked(run(0..20, 1_500, burst));
    }
    assert!(bench.drops.get(DropReason::QueueFull) > 0, "there is a bound");
    assert!(bench.queue.held() < 5_500_000, "{}", bench.queue.held());
    // Then it takes nothing: two seconds later it is one like others.
    bench.push_unchecked(run(0..1, 1_500, burst + 2_000 * ms));
    // A message that is partly sent counts as a whole.
    assert!(bench.queue.held() <= bench.limits.data_queue + 30_000, "{}", bench.queue.held());
}

#[test]
fn one_flow_of_a_pair_does_not_wait_for_another() {
    let start = origin();
    let mut bench = Bench::new(Limits::default());
    let [sparse, bulk] = [0, 3].map(|n| bucket(NodeId(1), NodeId(2), Flags::of_flow(n)));
    assert_ne!(sparse, bulk);
    for mark in 0..500 {
        bench.push_unchecked(Run { flow: bulk, ..run([mark], 1_400, start) });
    }
    bench.take_unchecked(50_000, start);
    bench.push_unchecked(Run { flow: sparse, ..run([999], 100, start) });
    assert_eq!(bench.take_unchecked(3_000, start).first(), Some(&999));
    // To make room, too, is the bulk flow's.
    for mark in 500..1_500 {
        bench.push_unchecked(Run { flow: bulk, ..run([mark], 1_400, start) });
    }
    bench.push_unchecked(Run { flow: sparse, ..run([1_000], 100, start) });
    assert!(bench.drops.get(DropReason::QueueFull) > 500);
    // It has just had its turn: the other has one before it.
    assert!(bench.take_unchecked(12_000, start).contains(&1_000));
}

/// RFC 8289 §5's pseudo-code, frame by frame, over a plain queue of (mark, length, queued).
#[derive(Default)]
struct Reference {
    frames: VecDeque<(u32, usize, Instant)>,
    first_above_time: Option<Instant>,
    drop_next: Option<Instant>,
    count: u32,
    lastcount: u32,
    dropping: bool,
    dropped: u64,
}

const TARGET: Duration = Duration::from_millis(15);
const INTERVAL: Duration = Duration::from_millis(200);

impl Reference {
    fn bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.1).sum()
    }

    fn control_law(t: Instant, count: u32) -> Instant {
        t + INTERVAL.div_f64(f64::from(count).sqrt())
    }

    fn dodequeue(&mut self, now: Instant) -> Option<(u32, bool)> {
        let Some((mark, _, queued)) = self.frames.pop_front() else {
            self.first_above_time = None;
            return None;
        };
        let mut ok_to_drop = false;
        if now - queued < TARGET || self.bytes() <= FLOOR {
            self.first_above_time = None;
        } else if let Some(at) = self.first_above_time {
            ok_to_drop = now >= at;
        } else {
            self.first_above_time = Some(now + INTERVAL);
        }
        Some((mark, ok_to_drop))
    }

    fn dequeue(&mut self, now: Instant) -> Option<u32> {
        let mut r = self.dodequeue(now);
        if self.dropping {
            if r.is_none_or(|r| !r.1) {
                self.dropping = false;
            }
            while self.dropping && self.drop_next.is_some_and(|at| now >= at) {
                self.dropped += 1;
                self.count += 1;
                r = self.dodequeue(now);
                if r.is_none_or(|r| !r.1) {
                    self.dropping = false;
                } else {
                    self.drop_next = self.drop_next.map(|at| Self::control_law(at, self.count));
                }
            }
        } else if r.is_some_and(|r| r.1) {
            self.dropped += 1;
            r = self.dodequeue(now);
            self.dropping = true;
            let delta = self.count - self.lastcount;
            self.count = 1;
            if delta > 1 && self.drop_next.is_some_and(|at| now.saturating_duration_since(at) < 16 * INTERVAL) {
                self.count = delta;
            }
            self.drop_next = Some(Self::control_law(now, self.count));
            self.lastcount = self.count;
        }
        r.map(|r| r.0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Queueing runs, thinning and splitting them is the same as CoDel frame by frame.
    #[test]
    fn thinning_is_rfc_8289(
        len in 50usize..1_600,
        steps in prop::collection::vec((0u32..6, 0usize..4, 0u64..40_000), 20..400),
    ) {
        let mut now = origin();
        let mut bench = Bench::new(Limits { data_queue: 64 << 20, max_sojourn: Duration::MAX, ..Limits::default() });
        let mut reference = Reference::default();
        let mut next = 0;
        for (arrive, leave, micros) in steps {
            if arrive > 0 {
                bench.push(Lane::Data, run(next..next + arrive, len, now));
                reference.frames.extend((next..next + arrive).map(|mark| (mark, len, now)));
                next += arrive;
            }
            now += Duration::from_micros(micros);
            if leave > 0 {
                let want: Vec<u32> = (0..leave).map_while(|_| reference.dequeue(now)).collect();
                prop_assert_eq!(bench.take(leave * len, now), want);
                prop_assert_eq!(bench.drops.get(DropReason::Codel), reference.dropped);
            }
        }
        prop_assert_eq!(fifo(&bench.queue).map_or(0, |fifo| fifo.bytes), reference.bytes());
    }

    /// Whatever comes and goes: the sums are right, the bounds hold, the order is kept.
    #[test]
    fn bounds_hold(steps in prop::collection::vec((0u32..30, 5usize..3_000, 0usize..9_000, 0u64..400, 1usize..4), 1..200)) {
        let mut now = origin();
        let (data_queue, control_queue, queued_total) = (40_000, 8_000, 60_000);
        let limits =
            Limits { data_queue, fast_data_queue: data_queue, control_queue, queued_total, ..Limits::default() };
        let mut bench = Bench::new(limits);
        let (mut next, mut newest, mut delivered, mut pushed) = (0, 0, 0_u64, 0_u64);
        for (count, len, max, millis, share) in steps {
            let mut run = run(next..next + count, len.max(9), now);
            next += count;
            if count > 0 {
                run.buffer *= share;
                pushed += u64::from(count);
                bench.push(Lane::Data, run);
            }
            now += Duration::from_millis(millis);
            if max > 0 {
                for mark in bench.take(max, now) {
                    prop_assert!(mark >= newest, "out of order or twice");
                    newest = mark + 1;
                    delivered += 1;
                }
            }
        }
        let runs = fifo(&bench.queue).into_iter().flat_map(|fifo| &fifo.runs);
        let left: u64 = runs.map(|run| frames_in(&run.frames)).sum();
        prop_assert_eq!(pushed, delivered + left + bench.drops.total());
        bench.queue.abandon(&mut bench.drops);
        prop_assert_eq!((bench.drops.get(DropReason::Closed), bench.queue.held()), (left, 0));
    }
}
