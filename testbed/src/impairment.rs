//! What a bad link does to packets, in one direction.

use std::time::Duration;

use thiserror::Error;

/// Longest delay, jitter, hold-back and queue.
const MAX_TIME: Duration = Duration::from_secs(60);
/// Highest rate, in bits per second.
const MAX_RATE: u64 = 100_000_000_000;
/// Lowest rate, in bits per second: slower than the slowest modem.
const MIN_RATE: u64 = 300;

/// What one direction of a [`Link`](crate::Link) does to every Ethernet frame, in this order:
///
/// 1. **rate and queue**: frames leave one after the other at the rate; one that finds the queue full is dropped;
/// 2. **loss**, each frame independently of the others;
/// 3. **duplicate**: delivered twice, one directly after the other;
/// 4. **delay ± jitter**, evenly distributed. Order is kept, as on one path: a frame never passes an earlier one, so among
///    frames closer to each other than the jitter the later ones wait for the earlier ones;
/// 5. **reorder**: held back for longer, while later ones pass.
///
/// ```
/// use std::time::Duration;
/// use edgelink_testbed::Impairment;
///
/// let dsl = Impairment::none().delay(Duration::from_millis(20)).loss(0.01).rate(50_000_000);
/// assert!(dsl.check().is_ok());
/// assert!(dsl.loss(1.5).check().unwrap_err().to_string().contains("150 %"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Impairment {
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) reorder: f64,
    pub(crate) hold: Duration,
    pub(crate) rate: Option<u64>,
    pub(crate) queue: Queue,
}

/// How much waits at the entrance of a link that has a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// As many bytes of frames.
    Bytes(u64),
    /// As many bytes as leave in this time.
    Time(Duration),
}

/// An impairment that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct ImpairmentError(String);

impl Default for Impairment {
    fn default() -> Self {
        Self::none()
    }
}

impl Impairment {
    /// A perfect link.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            hold: Duration::ZERO,
            rate: None,
            queue: Queue::Time(Duration::from_millis(50)),
        }
    }

    /// Delays every frame by this, at most 60 s.
    #[must_use]
    pub const fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Makes the delay even between `delay - jitter` and `delay + jitter`; at most the delay.
    #[must_use]
    pub const fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// Loses frames with this probability, 0 to 1.
    #[must_use]
    pub const fn loss(mut self, probability: f64) -> Self {
        self.loss = probability;
        self
    }

    /// Duplicates frames with this probability, 0 to 1.
    #[must_use]
    pub const fn duplicate(mut self, probability: f64) -> Self {
        self.duplicate = probability;
        self
    }

    /// Holds frames back with this probability, 0 to 1, by so much, while later ones pass.
    #[must_use]
    pub const fn reorder(mut self, probability: f64, hold: Duration) -> Self {
        self.reorder = probability;
        self.hold = hold;
        self
    }

    /// Lets so many bits per second pass, 300 to 100 Gbit/s, counted as Ethernet frames without preamble and checksum.
    #[must_use]
    pub const fn rate(mut self, bits_per_second: u64) -> Self {
        self.rate = Some(bits_per_second);
        self
    }

    /// How much waits before the rate, 50 ms unless told otherwise; never less than one frame.
    #[must_use]
    pub const fn queue(mut self, queue: Queue) -> Self {
        self.queue = queue;
        self
    }

    /// Checks that all this can be.
    ///
    /// # Errors
    ///
    /// Says which value is out of its range.
    pub fn check(&self) -> Result<(), ImpairmentError> {
        let refuse = |why: String| Err(ImpairmentError(why));
        for (what, share) in [("loss", self.loss), ("duplication", self.duplicate), ("reordering", self.reorder)] {
            if !(0.0..=1.0).contains(&share) {
                return refuse(format!("a {what} of {} % is out of 0 % to 100 %", share * 100.0));
            }
        }
        let queue = if let Queue::Time(time) = self.queue { time } else { Duration::ZERO };
        for (what, time) in [("delay", self.delay), ("hold-back", self.hold), ("queue", queue)] {
            if time > MAX_TIME {
                return refuse(format!("a {what} of {time:?} is longer than {MAX_TIME:?}"));
            }
        }
        if self.jitter > self.delay {
            return refuse(format!("a jitter of {:?} is more than the delay of {:?}", self.jitter, self.delay));
        }
        if self.reorder > 0.0 && self.hold.is_zero() {
            return refuse("reordering needs a time by which frames are held back".to_owned());
        }
        match self.rate {
            Some(rate) if !(MIN_RATE..=MAX_RATE).contains(&rate) => {
                refuse(format!("a rate of {rate} bit/s is out of {MIN_RATE} bit/s to 100 Gbit/s"))
            }
            _ => Ok(()),
        }
    }

    /// Whether it treats frames differently from each other. Then senders must hand over single segments, not
    /// super-frames of up to 64 KiB, of which one lost would be 44 segments lost.
    pub(crate) fn needs_segments(&self) -> bool {
        self.loss > 0.0 || self.duplicate > 0.0 || self.reorder > 0.0 || !self.jitter.is_zero() || self.rate.is_some()
    }

    /// The queue in bytes at this rate.
    pub(crate) fn queue_bytes(&self, rate: u64) -> u64 {
        match self.queue {
            Queue::Bytes(bytes) => bytes,
            Queue::Time(time) => {
                let bytes = u128::from(rate) * time.as_nanos() / 8_000_000_000;
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_cannot_be_is_refused_with_its_value() {
        let none = Impairment::none();
        for (bad, why) in [
            (none.loss(1.5), "loss of 150 %"),
            (none.loss(-0.01), "loss of -1 %"),
            (none.loss(f64::NAN), "loss of NaN"),
            (none.duplicate(2.0), "duplication of 200 %"),
            (none.reorder(1.1, MS), "reordering of 110"),
            (none.reorder(0.1, Duration::ZERO), "held back"),
            (none.delay(Duration::from_secs(61)), "delay of 61s"),
            (none.delay(MS).jitter(2 * MS), "jitter of 2ms is more than the delay of 1ms"),
            (none.rate(0), "rate of 0 bit/s"),
            (none.rate(u64::MAX), "100 Gbit/s"),
            (none.rate(1_000_000).queue(Queue::Time(Duration::MAX)), "queue of"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(none.check().is_ok());
    }

    #[test]
    fn only_what_is_alike_for_all_frames_leaves_super_frames_whole() {
        let none = Impairment::none();
        assert!(!none.needs_segments() && !none.delay(MS).needs_segments());
        for picky in [none.loss(0.01), none.duplicate(0.01), none.reorder(0.01, MS), none.rate(1000)] {
            assert!(picky.needs_segments());
        }
        assert!(none.delay(MS).jitter(MS).needs_segments());
        assert_eq!(none.queue_bytes(8_000_000), 50_000);
        assert_eq!(none.queue(Queue::Bytes(7)).queue_bytes(8_000_000), 7);
    }
}
