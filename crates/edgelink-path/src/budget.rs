//! One budget for everything that is sent to addresses where perhaps nobody is (DESIGN §5): no provider may take it for
//! an attack.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// No time of this length sees more datagrams than a second may: what is late in leaving the host, by up to 50 ms, does
/// not come too soon before the next ones.
const WINDOW: Duration = Duration::from_millis(1050);
/// What [`Budget::take_spare`] leaves to others: they begin at once, and go on as room is made.
const RESERVE: usize = 2;

/// So many datagrams in any second, all of them at once if they are wanted so. Clones have one budget together: a host that
/// is in several networks has one for all.
///
/// Memory: one time per datagram of a second.
#[derive(Clone, Debug)]
pub struct Budget {
    per_second: u32,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    /// When the last ones were taken, the oldest first.
    at: VecDeque<Instant>,
    /// When the last one for what may wait was taken.
    spare_at: Option<Instant>,
}

impl Budget {
    /// `per_second` datagrams; 0: none ever.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, taken: Arc::default() }
    }

    /// Takes one datagram, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        self.lock().take(self.size(), now)
    }

    /// Whether there is none now.
    pub fn is_empty(&self, now: Instant) -> bool {
        self.lock().at.iter().filter(|at| counts(**at, now)).count() >= self.size()
    }

    /// Takes one datagram for what may wait, if there are some left for others then. They are spread evenly, so that others find
    /// room all the time.
    pub fn take_spare(&self, now: Instant) -> bool {
        let mut taken = self.lock();
        let early = taken.spare_at.is_some_and(|at| now.saturating_duration_since(at) < self.wait());
        let left = !early && taken.take(self.size().saturating_sub(RESERVE).max(self.size().min(1)), now);
        if left {
            taken.spare_at = Some(now);
        }
        left
    }

    /// How long to wait for the next datagram when there is none.
    pub fn wait(&self) -> Duration {
        WINDOW / self.per_second.max(1)
    }

    fn size(&self) -> usize {
        usize::try_from(self.per_second).unwrap_or(usize::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same budget, not one as large.
impl PartialEq for Budget {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.taken, &other.taken)
    }
}

impl Eq for Budget {}

impl Taken {
    /// One more, if there are fewer than `most`.
    fn take(&mut self, most: usize, now: Instant) -> bool {
        while self.at.front().is_some_and(|at| !counts(*at, now)) {
            self.at.pop_front();
        }
        let left = self.at.len() < most;
        if left {
            self.at.push_back(now);
        }
        left
    }
}

fn counts(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;

    /// The most of these times, in ms, that lie within one second.
    fn busiest(taken: &[u64]) -> usize {
        let within = |(n, from): (usize, &u64)| taken[n..].iter().take_while(|at| **at < from + SECOND).count();
        taken.iter().enumerate().map(within).max().unwrap_or(0)
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn no_second_sees_more_than_its_rate_and_no_minute_much_less() {
        let start = Instant::now();
        let budget = Budget::new(20);
        let mut taken = Vec::new();
        for ms in 0..60 * SECOND {
            let now = start + Duration::from_millis(ms);
            // Greedy, then at times of its own choice, then greedy again.
            while (!(20_000..40_000).contains(&ms) || ms % 37 == 0) && budget.take(now) {
                taken.push(ms);
            }
            let empty = budget.lock().at.iter().filter(|at| counts(**at, now)).count() == 20;
            assert_eq!(budget.is_empty(now), empty);
        }
        assert!((1_100..=1_160).contains(&taken.len()), "{}", taken.len());
        assert_eq!(busiest(&taken), 20);
        assert!(!Budget::new(0).take(start) && Budget::new(0).is_empty(start));
        assert!(budget.lock().at.len() <= 20);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn what_may_wait_leaves_some_to_others_and_gives_way_to_them() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let budget = Budget::new(20);
        let mut spare = Vec::new();
        for ms in 0..60 * SECOND {
            while budget.take_spare(at(ms)) {
                spare.push(ms);
            }
        }
        assert!((1_000..=1_050).contains(&spare.len()), "{}", spare.len());
        let end = 60 * SECOND;
        let at_once = (0..20).filter(|_| budget.take(at(end))).count();
        assert!((RESERVE..=RESERVE + 1).contains(&at_once), "{at_once}");
        // Whatever becomes free from now on is others' first, as long as they want it.
        let (mut others, mut more) = (0, 0);
        for ms in end..end + 2 * SECOND {
            more += usize::from(budget.take_spare(at(ms)));
            others += usize::from(budget.take(at(ms)));
        }
        assert!(others >= 36 && more <= 2, "{others} {more}");
        assert!(!Budget::new(0).take_spare(start) && Budget::new(1).take_spare(start));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn clones_have_one_budget_together() {
        let (start, one) = (Instant::now(), Budget::new(20));
        let other = one.clone();
        let taken = (0..40).filter(|n| if n % 2 == 0 { one.take(start) } else { other.take(start) }).count();
        assert_eq!((taken, one.is_empty(start), other.is_empty(start)), (20, true, true));
        assert!(one == other && one != Budget::new(20));
    }
}
