//! Jittered exponential back-off: quick while an outage is young, so that a restarted server is found within a second
//! or two; slow later, so that a crowd of nodes does not fall upon it.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(200);
/// Ceiling while the outage is younger than [`YOUNG`].
const QUICK: Duration = Duration::from_secs(1);
const YOUNG: Duration = Duration::from_secs(60);
const SLOW: Duration = Duration::from_secs(30);
/// An outage is over once a connection has lasted this long: a server that accepts and closes at once is not back.
const STABLE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
    since: Option<Instant>,
    connected_at: Option<Instant>,
}

impl Backoff {
    /// How long to wait before the next attempt: 50–100 % of the doubled interval.
    pub(crate) fn next(&mut self, now: Instant, rng: &mut impl rand_core::Rng) -> Duration {
        if self.connected_at.take().is_some_and(|at| now.saturating_duration_since(at) >= STABLE) {
            *self = Self::default();
        }
        let since = *self.since.get_or_insert(now);
        let ceiling = if now.saturating_duration_since(since) < YOUNG { QUICK } else { SLOW };
        let interval = FIRST.saturating_mul(1 << self.failures.min(16)).min(ceiling);
        self.failures = self.failures.saturating_add(1);
        jitter(interval, rng)
    }

    /// The outage is over, if the connection lasts.
    pub(crate) fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// Waits at its longest from now on: trying again soon cannot help.
    pub(crate) fn discourage(&mut self, now: Instant) {
        self.since = now.checked_sub(YOUNG).or(self.since);
        self.failures = self.failures.max(16);
    }
}

/// Between half of `interval` and the whole.
pub(crate) fn jitter(interval: Duration, rng: &mut impl rand_core::Rng) -> Duration {
    interval / 2 + interval.mul_f64(f64::from(rng.next_u32()) / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng as _;

    #[test]
    fn stays_within_its_bounds_and_grows_with_the_outage() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut backoff = Backoff::default();
        #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
        let start = Instant::now();
        let first = backoff.next(start, &mut rng);
        assert!((FIRST / 2..=FIRST).contains(&first));
        for _ in 0..10 {
            assert!(backoff.next(start, &mut rng) <= QUICK);
        }
        let late = backoff.next(start + YOUNG, &mut rng);
        assert!((SLOW / 2..=SLOW).contains(&late));
        backoff.connected(start + YOUNG);
        let brief = backoff.next(start + YOUNG + STABLE / 2, &mut rng);
        assert!((SLOW / 2..=SLOW).contains(&brief), "it did not last");
        backoff.connected(start + YOUNG);
        assert!(backoff.next(start + YOUNG + STABLE, &mut rng) <= FIRST);
    }
}
