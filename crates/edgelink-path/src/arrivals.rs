//! Over how many ways authenticated frames of a peer arrive: the replay window must be wide while they are several,
//! or a switch from a slow way to a fast one loses what is still under way (DESIGN §2).

use crate::Way;
use std::time::{Duration, Instant};

/// Two ways are in use while frames came over both within this time. It covers the pause between two measurements of a
/// candidate, so that the window is wide before the first packet comes over it.
pub const SEVERAL_FOR: Duration = Duration::from_secs(60);

/// What has arrived over which way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrivals {
    last: Option<Way>,
    /// When a frame last came over another way than the one before.
    changed: Option<Instant>,
    wide: bool,
}

impl Arrivals {
    /// An authenticated frame came over `way`. Returns `true` when the window must grow.
    pub fn note(&mut self, way: Way, now: Instant) -> bool {
        if self.last.replace(way).is_none_or(|last| last == way) {
            return false;
        }
        self.changed = Some(now);
        !std::mem::replace(&mut self.wide, true)
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.changed.filter(|_| self.wide).map(|at| at + SEVERAL_FOR)
    }

    /// Returns `true` when the window may shrink again.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let over = self.poll_timeout().is_some_and(|at| at <= now);
        if over {
            self.wide = false;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hops;
    use edgelink_model::ServerId;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn the_window_is_wide_while_two_ways_are_used_and_a_minute_longer() {
        let (one, two) =
            (Way::Relay { relay: ServerId(1), hops: Hops::Any }, Way::Relay { relay: ServerId(2), hops: Hops::Any });
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut arrivals = Arrivals::default();
        assert!(!arrivals.note(one, start));
        assert!(!arrivals.note(one, start));
        assert_eq!(arrivals.poll_timeout(), None);
        assert!(arrivals.note(two, start + second));
        assert!(!arrivals.note(one, start + 2 * second), "it is wide already");
        assert!(!arrivals.note(one, start + 30 * second));
        let over = start + 62 * second;
        assert_eq!(arrivals.poll_timeout(), Some(over));
        assert!(!arrivals.handle_timeout(over - Duration::from_nanos(1)));
        assert!(arrivals.handle_timeout(over));
        assert!(!arrivals.handle_timeout(over));
        assert_eq!(arrivals.poll_timeout(), None);
        assert!(arrivals.note(two, over + second), "and again");
    }
}
