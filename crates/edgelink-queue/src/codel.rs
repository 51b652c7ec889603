//! CoDel (RFC 8289): tells a standing queue from a burst by how long frames wait, and thins it at the head.

use std::time::{Duration, Instant};

/// Queues of no more than this many bytes are never thinned: RFC 8289's `maxpacket`.
pub const FLOOR: usize = 1_500;

/// When CoDel begins to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodelParams {
    /// Waiting at least this long is too long …
    pub target: Duration,
    /// … once every frame for this long has.
    pub interval: Duration,
}

/// The state of one queue.
#[derive(Clone, Debug, Default)]
pub struct Codel {
    /// When dropping may begin; set while every frame has waited for at least the target.
    first_above: Option<Instant>,
    dropping: bool,
    drop_next: Option<Instant>,
    /// Whether `drop_next` moves on if the frame after the dropped one waits too long as well.
    dropped: bool,
    /// Drops in this dropping state, and what `count` was when it began.
    count: u32,
    last_count: u32,
}

impl Codel {
    /// Whether the head frame, which has waited for `sojourn`, is to be dropped. After a drop, ask for the next head.
    ///
    /// `behind` is how many bytes are queued behind it.
    pub fn drops(&mut self, params: &CodelParams, now: Instant, sojourn: Duration, behind: usize) -> bool {
        let too_long = self.too_long(params, now, sojourn, behind);
        let dropped = std::mem::take(&mut self.dropped);
        if self.dropping {
            if !too_long {
                self.dropping = false;
                return false;
            }
            if dropped {
                self.drop_next = self.drop_next.map(|at| at + spacing(params, self.count));
            }
            if self.drop_next.is_some_and(|at| now < at) {
                return false;
            }
            self.count = self.count.saturating_add(1);
            self.dropped = true;
            return true;
        }
        if too_long {
            self.start(params, now);
        }
        too_long
    }

    /// The queue has drained to [`FLOOR`] or below.
    pub fn drained(&mut self) {
        self.first_above = None;
        self.dropping = false;
        self.dropped = false;
    }

    fn too_long(&mut self, params: &CodelParams, now: Instant, sojourn: Duration, behind: usize) -> bool {
        if sojourn < params.target || behind <= FLOOR {
            self.first_above = None;
            return false;
        }
        let first_above = *self.first_above.get_or_insert(now + params.interval);
        now >= first_above
    }

    fn start(&mut self, params: &CodelParams, now: Instant) {
        self.dropping = true;
        // Back above the target soon after the last time: the former rate is a good one to begin with.
        let delta = self.count.saturating_sub(self.last_count);
        let recent = self.drop_next.is_some_and(|at| now.saturating_duration_since(at) < 16 * params.interval);
        self.count = if delta > 1 && recent { delta } else { 1 };
        self.last_count = self.count;
        self.drop_next = Some(now + spacing(params, self.count));
    }
}

/// RFC 8289's control law: the time between drops falls with the square root of their number.
fn spacing(params: &CodelParams, count: u32) -> Duration {
    params.interval.div_f64(f64::from(count.max(1)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: CodelParams = CodelParams { target: Duration::from_millis(15), interval: Duration::from_millis(200) };
    const LONG: Duration = Duration::from_millis(15);
    const SHORT: Duration = Duration::from_nanos(14_999_999);

    #[expect(clippy::disallowed_methods, reason = "any origin will do")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A standing queue, one frame dequeued each millisecond: the milliseconds at which a frame was dropped.
    fn drops_of(codel: &mut Codel, start: Instant, from: u64, to: u64) -> Vec<u64> {
        let mut at = Vec::new();
        for t in from..to {
            while codel.drops(&PARAMS, start + ms(t), LONG, FLOOR + 1) {
                at.push(t);
            }
        }
        at
    }

    #[test]
    fn the_first_drop_comes_exactly_one_interval_after_the_target_was_reached() {
        let (start, mut codel) = (origin(), Codel::default());
        assert!(!codel.drops(&PARAMS, start, SHORT, FLOOR + 1));
        assert!(!codel.drops(&PARAMS, start + ms(1), LONG, FLOOR + 1));
        assert!(!codel.drops(&PARAMS, start + ms(201) - Duration::from_nanos(1), LONG, FLOOR + 1));
        assert!(codel.drops(&PARAMS, start + ms(201), LONG, FLOOR + 1));
        assert!(!codel.drops(&PARAMS, start + ms(201), LONG, FLOOR + 1), "one at a time");
    }

    #[test]
    fn drops_follow_the_reference_timeline() {
        // 200, + 200/√1, + 200/√2, + 200/√3 …, each at the first whole millisecond not before it.
        let (start, mut codel) = (origin(), Codel::default());
        let mut want = vec![200];
        let mut next = 400.0_f64;
        for n in 2..10 {
            want.push(next.ceil() as u64);
            next += 200.0 / f64::from(n).sqrt();
        }
        assert_eq!(drops_of(&mut codel, start, 0, 1_100)[..9], want[..9]);
        assert_eq!(want[..5], [200, 400, 542, 657, 757]);
    }

    #[test]
    fn a_short_wait_or_a_short_queue_ends_it() {
        for (sojourn, behind) in [(SHORT, FLOOR + 1), (LONG, FLOOR)] {
            let (start, mut codel) = (origin(), Codel::default());
            drops_of(&mut codel, start, 0, 300);
            assert!(codel.dropping);
            assert!(!codel.drops(&PARAMS, start + ms(300), sojourn, behind));
            assert!(!codel.dropping);
            // 16 intervals are not over, but there was one drop only: begin anew.
            assert_eq!(drops_of(&mut codel, start, 301, 703), [501, 701]);
        }
    }

    #[test]
    fn a_relapse_within_16_intervals_goes_on_at_the_former_rate() {
        let relapse = |pause: u64| {
            let (start, mut codel) = (origin(), Codel::default());
            assert_eq!(drops_of(&mut codel, start, 0, 760).len(), 5); // next would be 757 + 200/√5 = 846
            codel.drained();
            let from = 760 + pause;
            drops_of(&mut codel, start, from, from + 302).iter().map(|t| t - from).collect::<Vec<_>>()
        };
        assert_eq!(relapse(0), [200, 300], "count resumes at 5 − 1: 200/√4 apart");
        // drop_next was left at 846.4 ms (the fifth drop was followed by a frame that waited too long as well).
        assert_eq!(relapse(846 + 3_200 - 760 - 200), [200, 300]);
        assert_eq!(relapse(847 + 3_200 - 760 - 200), [200]);
    }
}
