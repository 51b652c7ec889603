//! One direction of a link: what happens to a frame and when it comes out, as a queue without a clock or sockets.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::impairment::Impairment;

/// Bytes in flight per direction, e.g. 1 s at 2 Gbit/s; what comes beyond that is dropped and counted.
pub(crate) const MAX_HELD: usize = 256 << 20;

/// Longest time for which frames are collected.
const NAP: Duration = Duration::from_micros(100);

/// What one direction of a link has done so far, in frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Came in.
    pub offered: u64,
    /// Came out, duplicates among them.
    pub delivered: u64,
    /// Lost at random, as asked.
    pub lost: u64,
    /// Delivered twice, as asked.
    pub duplicated: u64,
    /// Held back, as asked.
    pub held_back: u64,
    /// Dropped since the queue before the rate was full.
    pub queue_full: u64,
    /// Dropped since 256 MiB were in flight. Not asked for: the delay and rate are beyond what this link can do.
    pub overflowed: u64,
    /// Refused by the interface at the far end (pulled, or out of buffers).
    pub refused: u64,
    /// Super-frames of several segments (GSO) among those that came in.
    pub super_frames: u64,
    /// Dropped by the kernel before they were read. Not asked for: the machine was too slow.
    pub overruns: u64,
}

/// A queue of frames on their way.
#[derive(Debug)]
pub(crate) struct Pipe {
    impairment: Impairment,
    rng: ChaCha8Rng,
    flight: BinaryHeap<Flying>,
    held: usize,
    sequence: u64,
    /// When the last bit of all that waits before the rate will have left.
    busy_until: Option<Instant>,
    /// When the last frame that keeps its place comes out.
    last_due: Option<Instant>,
    pub(crate) counters: Counters,
}

#[derive(Debug)]
struct Flying {
    due: Instant,
    sequence: u64,
    frame: Vec<u8>,
}

impl Pipe {
    pub(crate) fn new(impairment: Impairment, seed: u64) -> Self {
        Self {
            impairment,
            rng: ChaCha8Rng::seed_from_u64(seed),
            flight: BinaryHeap::new(),
            held: 0,
            sequence: 0,
            busy_until: None,
            last_due: None,
            counters: Counters::default(),
        }
    }

    /// Treats frames like this from now on; those in flight come out as they were to.
    pub(crate) fn set(&mut self, impairment: Impairment) {
        if impairment.rate != self.impairment.rate {
            self.busy_until = None;
        }
        self.impairment = impairment;
    }

    pub(crate) fn seed(&mut self, seed: u64) {
        self.rng = ChaCha8Rng::seed_from_u64(seed);
    }

    /// Takes a frame that arrived at `now`; its first `header` bytes are not on the wire.
    pub(crate) fn push(&mut self, now: Instant, frame: &[u8], header: usize) {
        self.counters.offered += 1;
        let Some(left) = self.transmit(now, frame.len().saturating_sub(header)) else {
            self.counters.queue_full += 1;
            return;
        };
        let Impairment { loss, duplicate, reorder, hold, .. } = self.impairment;
        // All dice are thrown for every frame, so that changing one probability leaves the others' outcomes as they are.
        let [lost, twice, back] = [loss, duplicate, reorder].map(|probability| self.happens(probability));
        let jitter = self.jitter();
        if lost {
            self.counters.lost += 1;
            return;
        }
        let in_order = self.last_due.map_or(left + jitter, |last| last.max(left + jitter));
        let due = if back { left + jitter + hold } else { in_order };
        if back {
            self.counters.held_back += 1;
        } else {
            self.last_due = Some(in_order);
        }
        self.counters.duplicated += u64::from(twice);
        for _ in 0..=u8::from(twice) {
            if self.held + frame.len() > MAX_HELD {
                self.counters.overflowed += 1;
                return;
            }
            self.held += frame.len();
            self.flight.push(Flying { due, sequence: self.sequence, frame: frame.to_vec() });
            self.sequence += 1;
        }
    }

    /// How long a frame may lie before it is pushed without coming out late, or little late behind a rate.
    pub(crate) fn nap(&self) -> Duration {
        let Impairment { delay, jitter, rate, .. } = self.impairment;
        let least = (delay.saturating_sub(jitter) / 2).min(NAP);
        if rate.is_some() { least.max(NAP / 2) } else { least }
    }

    /// When the next frame comes out.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.flight.peek().map(|next| next.due)
    }

    /// The next frame that has come out by `now`.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.due()? > now {
            return None;
        }
        let frame = self.flight.pop()?.frame;
        self.held -= frame.len();
        Some(frame)
    }

    /// When the frame's last bit has passed the rate; `None` when the queue is full.
    fn transmit(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        let Some(rate) = self.impairment.rate else { return Some(now) };
        let time_of = |bytes: u64| Duration::from_nanos_u128(u128::from(bytes) * 8_000_000_000 / u128::from(rate));
        let begins = self.busy_until.map_or(now, |busy| busy.max(now));
        let waiting = begins.saturating_duration_since(now);
        if !waiting.is_zero() && waiting + time_of(bytes as u64) > time_of(self.impairment.queue_bytes(rate)) {
            return None;
        }
        let left = begins + time_of(bytes as u64);
        self.busy_until = Some(left);
        Some(left)
    }

    fn happens(&mut self, probability: f64) -> bool {
        // 53 bits, as many as an f64 between 0 and 1 tells apart.
        let dice = (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        dice < probability
    }

    /// The delay of one frame.
    fn jitter(&mut self) -> Duration {
        let Impairment { delay, jitter, .. } = self.impairment;
        let dice = self.rng.next_u64();
        let spread = u64::try_from(jitter.as_nanos() * 2).unwrap_or(u64::MAX);
        // The upper half of the product is even between 0 and `spread`.
        let more = (u128::from(dice) * (u128::from(spread) + 1)) >> 64;
        delay.saturating_sub(jitter) + Duration::from_nanos_u128(more)
    }
}

impl PartialEq for Flying {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Flying {}

impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flying {
    /// The heap's greatest is the one that comes out first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::impairment::Queue;

    const MS: Duration = Duration::from_millis(1);
    const SEED: u64 = 7;

    fn base() -> Instant {
        Instant::now()
    }

    /// Sends `n` numbered frames of `len` bytes, `gap` apart, and returns (number, time on the way) as they come out.
    fn send(pipe: &mut Pipe, n: u32, gap: Duration, len: usize) -> Vec<(u32, Duration)> {
        let start = base();
        let mut out = Vec::new();
        for i in 0..n {
            let mut frame = vec![0; len];
            frame[..4].copy_from_slice(&i.to_be_bytes());
            pipe.push(start + gap * i, &frame, 0);
        }
        while let Some(due) = pipe.due() {
            assert!(pipe.pop(due - Duration::from_nanos(1)).is_none(), "not before its time");
            let frame = pipe.pop(due).unwrap();
            let i = u32::from_be_bytes(frame[..4].try_into().unwrap());
            out.push((i, due - (start + gap * i)));
        }
        assert_eq!(pipe.held, 0);
        out
    }

    #[test]
    fn delay_is_exact_and_jitter_even_and_in_order() {
        let mut pipe = Pipe::new(Impairment::none().delay(40 * MS), SEED);
        let out = send(&mut pipe, 100, MS, 100);
        assert!(out.iter().enumerate().all(|(i, (n, time))| (i as u32, 40 * MS) == (*n, *time)));

        let mut pipe = Pipe::new(Impairment::none().delay(40 * MS).jitter(10 * MS), SEED);
        let out = send(&mut pipe, 10_000, 20 * MS, 100);
        assert!(out.iter().all(|(_, time)| (30 * MS..=50 * MS).contains(time)));
        let mean = out.iter().map(|(_, time)| time.as_secs_f64()).sum::<f64>() / out.len() as f64;
        assert!((mean - 0.040).abs() < 0.000_3, "{mean}: 10 ms even has a deviation of 5.8 ms, its mean of 0.06 ms");
        let quarter = out.iter().filter(|(_, time)| *time < 35 * MS).count();
        assert!((2_250..2_750).contains(&quarter), "{quarter} of 10,000 in the first quarter");
        // Closer than the jitter: order is kept.
        let out = send(&mut Pipe::new(Impairment::none().delay(40 * MS).jitter(10 * MS), SEED), 1_000, MS, 100);
        assert!(out.is_sorted_by_key(|(n, _)| *n));
    }

    #[test]
    fn loss_and_duplicates_are_as_many_as_asked_and_seeded() {
        let run = |seed| {
            let mut pipe = Pipe::new(Impairment::none().loss(0.01).duplicate(0.02), seed);
            (send(&mut pipe, 100_000, MS, 60).iter().map(|(n, _)| *n).collect::<Vec<_>>(), pipe.counters)
        };
        let (out, counters) = run(SEED);
        // Five deviations: of 1,000 ± 31 and 1,980 ± 44.
        assert!((845..=1_155).contains(&counters.lost), "{counters:?}");
        assert!((1_760..=2_200).contains(&counters.duplicated), "{counters:?}");
        assert_eq!(counters.offered - counters.lost + counters.duplicated, out.len() as u64);
        assert_eq!(run(SEED).0, out);
        assert_ne!(run(SEED + 1).0, out);
        let (all, none) = (Impairment::none().loss(1.0), Impairment::none());
        assert_eq!(send(&mut Pipe::new(all, SEED), 1_000, MS, 60).len(), 0);
        assert_eq!(send(&mut Pipe::new(none, SEED), 1_000, MS, 60).len(), 1_000);
    }

    #[test]
    fn held_back_frames_are_passed_by_later_ones_only() {
        let mut pipe = Pipe::new(Impairment::none().delay(10 * MS).reorder(0.1, 5 * MS), SEED);
        let out = send(&mut pipe, 1_000, MS, 60);
        let held: Vec<_> = out.iter().filter(|(_, time)| *time == 15 * MS).map(|(n, _)| *n).collect();
        assert_eq!(held.len() as u64, pipe.counters.held_back);
        assert!((50..150).contains(&held.len()));
        assert!(out.iter().all(|(_, time)| *time == 10 * MS || *time == 15 * MS));
        let rest: Vec<_> = out.iter().filter(|(_, time)| *time == 10 * MS).map(|(n, _)| *n).collect();
        assert!(rest.is_sorted() && !out.is_sorted_by_key(|(n, _)| *n));
    }

    #[test]
    fn the_rate_spaces_frames_and_the_queue_is_bounded() {
        // 1,000 bytes take 1 ms. All 100 come at once; the queue holds 20.
        let impairment = Impairment::none().rate(8_000_000).queue(Queue::Bytes(20_000));
        let mut pipe = Pipe::new(impairment, SEED);
        let out = send(&mut pipe, 100, Duration::ZERO, 1_000);
        let expected: Vec<_> = (0..20).map(|n| (n, MS * (n + 1))).collect();
        assert_eq!(out, expected);
        assert_eq!(pipe.counters.queue_full, 80);
        // At exactly the rate nothing waits longer than its own time, and nothing is dropped.
        let mut pipe = Pipe::new(impairment, SEED);
        assert!(send(&mut pipe, 1_000, MS, 1_000).iter().all(|(_, time)| *time == MS));
        assert_eq!(pipe.counters.queue_full, 0);
        // A frame passes even where the queue is smaller.
        let mut pipe = Pipe::new(impairment.queue(Queue::Bytes(1)), SEED);
        assert_eq!(send(&mut pipe, 2, Duration::ZERO, 1_000).len(), 1);
    }

    #[test]
    fn memory_is_bounded() {
        let mut pipe = Pipe::new(Impairment::none().delay(Duration::from_secs(60)), SEED);
        let (now, frame) = (base(), vec![0; 1 << 20]);
        for _ in 0..300 {
            pipe.push(now, &frame, 0);
        }
        assert_eq!((pipe.flight.len(), pipe.counters.overflowed), (256, 44));
    }

    #[test]
    fn a_change_leaves_what_is_in_flight_and_its_order() {
        let mut pipe = Pipe::new(Impairment::none().delay(40 * MS), SEED);
        let now = base();
        pipe.push(now, b"slow", 0);
        pipe.set(Impairment::none());
        pipe.push(now + MS, b"fast", 0);
        assert_eq!(pipe.due(), Some(now + 40 * MS));
        assert_eq!(pipe.pop(now + 40 * MS).unwrap(), b"slow");
        assert_eq!(pipe.pop(now + 40 * MS).unwrap(), b"fast");
    }
}
