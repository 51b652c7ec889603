//! One budget for everything that is sent to addresses where perhaps nobody is (DESIGN §5): no provider may take it for
//! an attack.

use std::time::{Duration, Instant};

/// A token bucket of datagrams. A second's worth may go at once.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    per_second: u32,
    /// In millionths of a datagram.
    tokens: u64,
    refilled: Option<Instant>,
}

const DATAGRAM: u64 = 1_000_000;
/// What [`Budget::take_spare`] leaves to others.
const RESERVE: u32 = 5;

impl Budget {
    /// `per_second` datagrams; 0: none ever.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, tokens: u64::from(per_second) * DATAGRAM, refilled: None }
    }

    /// Takes one datagram, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let since = self.refilled.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let earned = u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_mul(self.per_second.into());
        self.tokens = self.tokens.saturating_add(earned).min(u64::from(self.per_second) * DATAGRAM);
        self.refilled = Some(now);
        match self.tokens.checked_sub(DATAGRAM) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }

    /// Whether there is none now.
    pub fn is_empty(&self, now: Instant) -> bool {
        !Self { ..*self }.take(now)
    }

    /// Takes one datagram for what may wait, if there are some left for others then.
    pub fn take_spare(&mut self, now: Instant) -> bool {
        let reserve = u64::from(self.per_second.min(RESERVE)) * DATAGRAM;
        let has = *self;
        if self.take(now) && self.tokens >= reserve {
            return true;
        }
        // What was earned meanwhile stays earned.
        *self = Self { tokens: has.tokens, refilled: has.refilled, ..*self };
        false
    }

    /// How long to wait for the next datagram when there is none.
    pub fn wait(&self) -> Duration {
        Duration::from_secs(1) / self.per_second.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn no_second_sees_more_than_two_seconds_worth_and_no_minute_more_than_its_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(20);
        let mut taken = Vec::new();
        for ms in 0..60_000u64 {
            while budget.take(start + Duration::from_millis(ms)) {
                taken.push(ms);
            }
        }
        assert!((20 * 60..=20 * 61).contains(&taken.len()), "{}", taken.len());
        assert!(taken.iter().filter(|ms| **ms < 1000).count() <= 40);
        assert!(!Budget::new(0).take(start));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn what_may_wait_leaves_some_to_others_and_gets_the_whole_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(20);
        let mut spare = 0;
        for ms in 0..60_000u64 {
            let now = start + Duration::from_millis(ms);
            while budget.take_spare(now) {
                spare += 1;
            }
        }
        assert!((1190..=1220).contains(&spare), "{spare}");
        let end = start + Duration::from_millis(59_999);
        assert_eq!((0..20).filter(|_| budget.take(end)).count(), 5);
        assert!(!Budget::new(0).take_spare(start));
    }
}
