//! Rate limits of bounded size (the generic cell rate algorithm: one instant per key).

use edgelink_model::NodeId;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// One more each …
    pub period: Duration,
    /// … and so many at once. At least 1.
    pub burst: u32,
}

/// One thing that is limited.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    /// When the bucket is full again.
    full_at: Option<Instant>,
}

impl Bucket {
    pub(crate) fn allow(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at - now > rate.period * rate.burst.saturating_sub(1) {
            return false;
        }
        self.full_at = Some(full_at + rate.period);
        true
    }

    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

/// The same per node, for at most `capacity` nodes at once; beyond that nothing is allowed for the others.
#[derive(Debug, Default)]
pub(crate) struct PerNode {
    buckets: HashMap<NodeId, Bucket>,
    /// Not before then is it worth looking for buckets to forget.
    purge_at: Option<Instant>,
}

impl PerNode {
    pub(crate) fn allow(&mut self, node: NodeId, rate: Rate, capacity: usize, now: Instant) -> bool {
        if let Some(bucket) = self.buckets.get_mut(&node) {
            return bucket.allow(rate, now);
        }
        if self.buckets.len() >= capacity && !self.purge(rate, capacity, now) {
            return false;
        }
        self.buckets.entry(node).or_default().allow(rate, now)
    }

    /// Forgets the buckets that are full again, at most once per period, so that a flood of names costs no scan each.
    fn purge(&mut self, rate: Rate, capacity: usize, now: Instant) -> bool {
        if self.purge_at.is_some_and(|at| now < at) {
            return false;
        }
        self.purge_at = Some(now + rate.period);
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        self.buckets.len() < capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { period: Duration::from_millis(250), burst: 8 };

    #[expect(clippy::disallowed_methods, reason = "any origin will do")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_burst_then_one_per_period() {
        let (start, mut bucket) = (origin(), Bucket::default());
        let mut at = |ms| bucket.allow(RATE, start + Duration::from_millis(ms));
        assert_eq!((0..9).map(|_| at(0)).collect::<Vec<_>>(), [[true; 8].as_slice(), &[false]].concat());
        assert!(!at(249));
        assert!(at(250));
        assert!(!at(250));
        assert_eq!((0..9).filter(|_| at(60_000)).count(), 8, "a rest saves no more than the burst");
    }

    #[test]
    fn nodes_are_limited_apart_and_their_number_is_bounded() {
        let (start, mut limiter) = (origin(), PerNode::default());
        let rate = Rate { period: Duration::from_secs(1), burst: 1 };
        let mut at = |node, ms| limiter.allow(NodeId(node), rate, 2, start + Duration::from_millis(ms));
        assert!(at(1, 0) && at(2, 500));
        assert!(!at(1, 999) && !at(3, 999), "no room for a third");
        assert!(!at(3, 1_500), "looked in vain at 999, so not again before 1,999");
        assert!(at(3, 1_999) && at(1, 1_999), "both were full again");
        assert!(!at(2, 1_999));
    }
}
