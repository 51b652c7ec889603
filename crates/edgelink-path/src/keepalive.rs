//! How often an idle direct path is refreshed (specification §6.4).

use std::time::Duration;

/// The default interval: below the shortest mapping lifetime that is common.
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// The longest, for mappings that prove to hold.
pub const LONGEST_KEEPALIVE: Duration = Duration::from_secs(55);
const STEP: Duration = Duration::from_secs(5);
/// So many successes in a row allow the next step.
const SUCCESSES: u32 = 10;

/// Begins with the least interval; a loss begins anew. Success is an authenticated PONG, not the keepalive itself, which
/// nobody answers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Keepalive {
    steps: u32,
    successes: u32,
}

impl Keepalive {
    pub(crate) fn interval(&self, least: Duration) -> Duration {
        (least + STEP * self.steps).min(LONGEST_KEEPALIVE.max(least))
    }

    /// A PONG came; only one that ends a whole idle interval says something of the mapping's lifetime.
    pub(crate) fn succeeded(&mut self, idle: bool, least: Duration) {
        self.successes += u32::from(idle);
        if self.successes >= SUCCESSES && self.interval(least) < LONGEST_KEEPALIVE {
            self.steps += 1;
            self.successes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_successes_are_a_step_up_to_55_s() {
        let mut keepalive = Keepalive::default();
        let mut intervals = Vec::new();
        for _ in 0..100 {
            intervals.push(keepalive.interval(KEEPALIVE).as_secs());
            keepalive.succeeded(true, KEEPALIVE);
            keepalive.succeeded(false, KEEPALIVE);
        }
        assert_eq!((intervals[9], intervals[10], intervals[20]), (25, 30, 35));
        assert_eq!(intervals[99], 55);
        assert_eq!(Keepalive::default().interval(Duration::from_secs(60)), Duration::from_secs(60), "as configured");
    }
}
