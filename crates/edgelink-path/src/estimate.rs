//! Round trips of one path, and the probes that are under way.

use crate::rank::is_better;
use std::time::{Duration, Instant};

/// Round trips that are remembered.
const SAMPLES: usize = 3;
/// Probes that can be under way: a PONG may take 3 s, and there is a probe a second.
const IN_FLIGHT: usize = 4;
/// A PONG is missing after twice the round trip, within these bounds.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));

/// The median of the last three round trips: one outlier moves nothing, and a change shows with the second probe.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    samples: [Option<Duration>; SAMPLES],
    next: usize,
}

impl Estimate {
    pub(crate) fn add(&mut self, sample: Duration) {
        if let Some(slot) = self.samples.get_mut(self.next) {
            *slot = Some(sample);
        }
        self.next = (self.next + 1) % SAMPLES;
    }

    /// Whether each of the last three is better than `present` by the margin.
    pub(crate) fn all_better_than(&self, present: Duration) -> bool {
        self.samples.iter().all(|sample| sample.is_some_and(|sample| is_better(sample, present)))
    }

    /// The lower one of two, the median of three.
    pub(crate) fn get(&self) -> Option<Duration> {
        let mut known = self.samples;
        // `None` sorts first.
        known.sort_unstable();
        let [_, median, highest] = known;
        median.or(highest)
    }
}

/// Probes that wait for their PONG, or have waited too long but would still be welcome.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InFlight([Option<Waiting>; IN_FLIGHT]);

#[derive(Clone, Copy, Debug)]
struct Waiting {
    sent_us: u64,
    at: Instant,
    missing: bool,
}

impl InFlight {
    /// Notes a probe in the place of the oldest.
    pub(crate) fn sent(&mut self, sent_us: u64, now: Instant) {
        if let Some(slot) = self.0.iter_mut().min_by_key(|slot| slot.map(|waiting| waiting.at)) {
            *slot = Some(Waiting { sent_us, at: now, missing: false });
        }
    }

    /// Takes out the probe that a PONG answers, and those sent before it: the path works, whatever became of them.
    pub(crate) fn answered(&mut self, sent_us: u64) -> Option<Instant> {
        let at = self.0.iter().flatten().find(|waiting| waiting.sent_us == sent_us)?.at;
        for slot in &mut self.0 {
            slot.take_if(|waiting| waiting.at <= at);
        }
        Some(at)
    }

    /// How many have waited too long since the last call. They are kept a while: a path that has become slow must not
    /// look dead for ever.
    pub(crate) fn expire(&mut self, rtt: Option<Duration>, now: Instant) -> u32 {
        let patience = patience(rtt);
        let mut missing = 0;
        for waiting in self.0.iter_mut().flatten() {
            if !waiting.missing && waiting.at + patience <= now {
                waiting.missing = true;
                missing += 1;
            }
        }
        missing
    }

    /// When the oldest will have waited too long.
    pub(crate) fn next_timeout(&self, rtt: Option<Duration>) -> Option<Instant> {
        self.0.iter().flatten().filter(|waiting| !waiting.missing).map(|waiting| waiting.at + patience(rtt)).min()
    }
}

fn patience(rtt: Option<Duration>) -> Duration {
    rtt.map_or(PATIENCE.0, |rtt| (rtt * 2).clamp(PATIENCE.0, PATIENCE.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_outlier_moves_nothing_and_a_change_shows_with_the_second_probe() {
        let mut estimate = Estimate::default();
        assert_eq!(estimate.get(), None);
        estimate.add(30 * MS);
        assert_eq!(estimate.get(), Some(30 * MS));
        estimate.add(20 * MS);
        assert_eq!(estimate.get(), Some(20 * MS), "the lower one of two");
        estimate.add(500 * MS);
        assert_eq!(estimate.get(), Some(30 * MS));
        estimate.add(500 * MS);
        assert_eq!(estimate.get(), Some(500 * MS));
    }

    #[test]
    fn patience_follows_the_round_trip_within_its_bounds() {
        assert_eq!(patience(None), 1000 * MS);
        assert_eq!(patience(Some(500 * MS)), 1000 * MS);
        assert_eq!(patience(Some(501 * MS)), 1002 * MS);
        assert_eq!(patience(Some(9000 * MS)), 3000 * MS);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn a_probe_is_missing_once_and_answered_once_even_then() {
        let start = Instant::now();
        let mut probes = InFlight::default();
        probes.sent(1, start);
        probes.sent(2, start + 100 * MS);
        assert_eq!(probes.next_timeout(None), Some(start + 1000 * MS));
        assert_eq!(probes.expire(None, start + 999 * MS), 0);
        assert_eq!(probes.expire(None, start + 1000 * MS), 1);
        assert_eq!(probes.expire(None, start + 1000 * MS), 0);
        assert_eq!(probes.answered(1), Some(start), "late, and welcome");
        assert_eq!(probes.answered(1), None);
        assert_eq!(probes.next_timeout(None), Some(start + 1100 * MS));
        assert_eq!(probes.answered(2), Some(start + 100 * MS));
        assert_eq!(probes.next_timeout(None), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn an_answer_settles_what_was_sent_before_it() {
        let start = Instant::now();
        let mut probes = InFlight::default();
        for n in 0..5 {
            probes.sent(n, start + u32::try_from(n).unwrap() * 1000 * MS);
        }
        assert_eq!(probes.answered(0), None, "four are remembered");
        assert_eq!(probes.answered(3), Some(start + 3000 * MS));
        assert_eq!((probes.answered(1), probes.answered(2)), (None, None));
        assert_eq!(probes.expire(None, start + 9000 * MS), 1, "the fourth");
    }
}
