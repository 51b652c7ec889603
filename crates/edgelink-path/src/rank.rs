//! Which path is better, and by how much it must be to be worth a change (DESIGN §5).

use crate::{Class, Way};
use std::time::Duration;

/// A path is left for another one only when that is better by this or by a fifth, whichever is more.
pub const MIN_GAIN: Duration = Duration::from_millis(10);

/// What is known of a path's liveness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// PONGs come back.
    Alive,
    /// A PONG is missing.
    Doubted,
    /// Not known yet.
    Unproved,
    /// [`crate::DEAD_AFTER`] PONGs in a row are missing, or a relay said so.
    Dead,
}

/// What is known of a path's round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// It was measured, or the controller advises the path.
    Known,
    /// It is guessed from the round trip to the relay.
    Guessed,
    /// The same, and the relay has to have the peer itself: nobody said that it has.
    Blind,
}

/// A path's place among the others; the least is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Living ones first.
    pub standing: Standing,
    /// Then the class.
    pub class: Class,
    /// Then what its round trip rests upon.
    pub evidence: Evidence,
    /// No round trip is known, which is not a round trip of zero.
    pub unknown: bool,
    /// Then the round trip; zero when it is unknown.
    pub rtt: Duration,
    /// Then the fewer hops, then any fixed order.
    pub tie: (bool, Way),
}

/// Whether `candidate` is so much better than `current` that a change is worth while.
pub fn is_better(candidate: Duration, current: Duration) -> bool {
    candidate.saturating_add(MIN_GAIN.max(current / 5)) <= current
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hops;
    use edgelink_model::ServerId;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_margin_is_the_greater_of_10_ms_and_a_fifth_and_exact() {
        for (candidate, current, better) in [
            (10 * MS, 20 * MS, true),
            (10 * MS + Duration::from_nanos(1), 20 * MS, false),
            (40 * MS, 50 * MS, true),
            (40 * MS + Duration::from_nanos(1), 50 * MS, false),
            (80 * MS, 100 * MS, true),
            (80 * MS + Duration::from_nanos(1), 100 * MS, false),
            (Duration::ZERO, 10 * MS, true),
            (Duration::ZERO, 9 * MS, false),
            (Duration::MAX, 10 * MS, false),
            (Duration::ZERO, Duration::MAX, true),
        ] {
            assert_eq!(is_better(candidate, current), better, "{candidate:?} against {current:?}");
        }
    }

    #[test]
    fn the_order_is_that_of_the_design() {
        let way = Way::Relay { relay: ServerId(1), hops: Hops::One };
        let base = Rank {
            standing: Standing::Alive,
            class: Class::Relay,
            evidence: Evidence::Known,
            unknown: false,
            rtt: 50 * MS,
            tie: (false, way),
        };
        let worse = [
            Rank { tie: (true, way), ..base },
            Rank { rtt: 51 * MS, tie: (false, way), ..base },
            Rank { unknown: true, rtt: Duration::ZERO, ..base },
            Rank { evidence: Evidence::Guessed, rtt: MS, ..base },
            Rank { evidence: Evidence::Blind, rtt: MS, ..base },
            Rank { standing: Standing::Doubted, rtt: MS, ..base },
            Rank { standing: Standing::Unproved, rtt: MS, ..base },
            Rank { standing: Standing::Dead, rtt: MS, ..base },
        ];
        let mut sorted = worse.to_vec();
        sorted.push(base);
        sorted.sort();
        assert_eq!(sorted, [&[base], &worse[..]].concat());
    }
}
