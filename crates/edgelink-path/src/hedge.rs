//! Packets that go both ways while a path is in doubt (DESIGN §5).

use std::time::{Duration, Instant};

/// Packets are doubled for at most this long.
pub const HEDGE_FOR: Duration = Duration::from_secs(3);
/// And at most at this rate, in bytes per second: 20 Mbit/s.
pub const HEDGE_RATE: u64 = 20_000_000 / 8;
/// Bytes that may be doubled at once.
const BURST: u64 = HEDGE_RATE / 10;

/// Why packets are doubled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Doubt {
    /// The path has not been used for a while, or never.
    Unproved,
    /// PONGs are missing.
    Missing,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Hedge {
    pub(crate) doubt: Doubt,
    pub(crate) since: Instant,
    tokens: u64,
    refilled: Instant,
}

impl Hedge {
    pub(crate) fn new(doubt: Doubt, now: Instant) -> Self {
        Self { doubt, since: now, tokens: BURST, refilled: now }
    }

    /// Whether `bytes` more may be doubled.
    pub(crate) fn allows(&mut self, bytes: usize, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= HEDGE_FOR {
            return false;
        }
        let micros = now.saturating_duration_since(self.refilled).as_micros();
        let earned = u64::try_from(micros.saturating_mul(HEDGE_RATE.into()) / 1_000_000).unwrap_or(u64::MAX);
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(BURST);
            self.refilled = now;
        }
        match self.tokens.checked_sub(bytes as u64) {
            Some(rest) => {
                self.tokens = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn it_is_bounded_in_time_and_rate() {
        let start = Instant::now();
        let mut hedge = Hedge::new(Doubt::Missing, start);
        let mut doubled = 0u64;
        for ms in 0..4000u64 {
            let now = start + Duration::from_millis(ms);
            // 100 Mbit/s are offered.
            for _ in 0..10 {
                if hedge.allows(1250, now) {
                    assert!(ms < 3000, "doubled after {ms} ms");
                    doubled += 1250;
                }
            }
        }
        let allowed = HEDGE_RATE * 3 + BURST;
        assert!((allowed * 9 / 10..=allowed).contains(&doubled), "{doubled} of {allowed}");
    }
}
