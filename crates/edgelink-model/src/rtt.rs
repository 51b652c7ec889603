//! Round-trip times: smoothed against noise, quick to follow a step (DESIGN §4). Microseconds throughout.

/// A smoothed round-trip time.
///
/// An exponentially weighted mean (weight 1/4) irons out noise. Two samples in a row that differ [`significantly`] from
/// it in the same direction are no noise: the route has changed, and the mean starts anew from them. A change is thus
/// followed after two samples, and a single outlier moves the figure by a quarter of its error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmoothedRtt {
    value: Option<u64>,
    /// The last sample, if it differed significantly.
    outlier: Option<u64>,
}

impl SmoothedRtt {
    /// No sample yet: missing, which is not zero.
    pub const fn new() -> Self {
        Self { value: None, outlier: None }
    }

    /// Takes a sample in µs and returns the smoothed value.
    pub fn update(&mut self, sample_us: u64) -> u64 {
        let Some(value) = self.value else {
            self.value = Some(sample_us);
            return sample_us;
        };
        let odd = significantly(value, sample_us);
        let next = match self.outlier.take() {
            Some(before) if odd && (before > value) == (sample_us > value) => before.midpoint(sample_us),
            _ => {
                self.outlier = odd.then_some(sample_us);
                (3 * u128::from(value) + u128::from(sample_us)).div_ceil(4) as u64
            }
        };
        self.value = Some(next);
        next
    }

    /// Whether the last sample differed so much that the next one decides whether it was noise: worth asking soon.
    pub const fn is_in_doubt(&self) -> bool {
        self.outlier.is_some()
    }

    /// The smoothed value in µs; `None` before the first sample.
    pub fn get(&self) -> Option<u64> {
        self.value
    }
}

/// Whether two RTTs (µs) differ by more than max(5 ms, 15 % of `before`): what moves best paths (DESIGN §4).
pub fn significantly(before: u64, after: u64) -> bool {
    before.abs_diff(after) > margin(before)
}

/// max(5 ms, 15 %) of an RTT in µs.
pub fn margin(rtt_us: u64) -> u64 {
    const FLOOR_US: u64 = 5_000;
    FLOOR_US.max((u128::from(rtt_us) * 15 / 100) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_followed_after_two_samples_and_an_outlier_is_not() {
        let mut rtt = SmoothedRtt::new();
        assert_eq!(rtt.get(), None);
        assert_eq!(rtt.update(20_000), 20_000);
        assert_eq!(rtt.update(150_000), 52_500, "one odd sample weighs a quarter");
        assert_eq!(rtt.update(150_000), 150_000, "two are a step");
        assert_eq!(rtt.update(20_000), 117_500);
        assert_eq!(rtt.update(117_500), 117_500, "back to normal: it was an outlier");
        assert_eq!(rtt.update(20_000), 93_125);
    }

    #[test]
    fn outliers_in_turn_are_no_step() {
        let mut rtt = SmoothedRtt::new();
        for sample in [100_000, 200_000, 20_000, 200_000, 20_000] {
            rtt.update(sample);
        }
        assert!((20_001..200_000).contains(&rtt.get().unwrap()));
    }

    #[test]
    fn what_is_significant() {
        assert!(!significantly(1_000, 6_000) && significantly(1_000, 6_001));
        assert!(!significantly(100_000, 115_000) && significantly(100_000, 115_001));
        assert!(!significantly(100_000, 85_000) && significantly(100_000, 84_999));
        let mut rtt = SmoothedRtt::new();
        rtt.update(u64::MAX);
        assert_eq!(rtt.update(u64::MAX), u64::MAX);
    }
}
