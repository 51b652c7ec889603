//! One direction of a link: delay, jitter, loss, duplication, reordering, rate, MTU.

use super::counters::DropReason;
use super::{after, random};
use rand_core::Rng;
use std::time::{Duration, Instant};

/// How one direction of a link treats datagrams. Probabilities are clamped to 0..=1; sizes are those of IP packets.
///
/// The default is a perfect link: no delay, no loss, no limit but an MTU of 1500 bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkProfile {
    /// One-way propagation delay.
    pub delay: Duration,
    /// Added delay, uniform in 0..=jitter for each datagram. The link stays first-in, first-out: only
    /// [`reorder`](Self::reorder) changes the order.
    pub jitter: Duration,
    /// What is lost.
    pub loss: Loss,
    /// Probability that a datagram arrives twice.
    pub duplicate: f64,
    /// Probability that a datagram is held back by [`reorder_delay`](Self::reorder_delay) so that later ones overtake it.
    pub reorder: f64,
    /// Extra delay of a datagram that is held back.
    pub reorder_delay: Duration,
    /// Bits a second; `None` is unlimited.
    pub rate: Option<u64>,
    /// What may wait (the datagram being sent included) when there is a rate, bytes; beyond it the newest is dropped.
    pub queue: u64,
    /// Largest IP packet, bytes.
    pub mtu: usize,
    /// Whether the sender of an oversize datagram is told ([`TooBig`](super::TooBig)); otherwise a black hole.
    pub signal_too_big: bool,
    /// Nothing passes. What is already on the way arrives.
    pub down: bool,
}

impl Default for LinkProfile {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: Loss::None,
            duplicate: 0.0,
            reorder: 0.0,
            reorder_delay: Duration::ZERO,
            rate: None,
            queue: 256 * 1024,
            mtu: 1500,
            signal_too_big: false,
            down: false,
        }
    }
}

impl LinkProfile {
    /// A perfect link with a one-way delay.
    pub fn delay(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// Which datagrams a link loses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each with this probability, independently.
    Independent(f64),
    /// In bursts: a two-state chain that steps once per datagram (Gilbert–Elliott).
    GilbertElliott {
        /// Probability of going from the good to the bad state.
        to_bad: f64,
        /// Probability of going from the bad to the good state; 1/`to_good` is the mean length of a burst, datagrams.
        to_good: f64,
        /// Loss in the good state.
        good: f64,
        /// Loss in the bad state.
        bad: f64,
    },
}

/// Direction of a link, seen from the host or router that owns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Away from the host, or from the LAN to its parent.
    Up,
    /// To the host, or from the parent to the LAN.
    Down,
}

/// What a link has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Datagrams that came to the link.
    pub offered: u64,
    /// Datagrams that were let through, duplicates not included.
    pub passed: u64,
    /// IP bytes that were let through, duplicates not included.
    pub passed_bytes: u64,
    /// Datagrams that were let through twice.
    pub duplicated: u64,
    /// Datagrams that were held back.
    pub reordered: u64,
}

/// A profile and where the link stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    pub(super) profile: LinkProfile,
    pub(super) stats: LinkStats,
    /// Gilbert–Elliott's state.
    bad: bool,
    /// When the last bit that waits will have been sent.
    busy_until: Option<Instant>,
    /// When the last datagram in order arrives.
    last_arrival: Option<Instant>,
}

/// When a datagram comes out of a link, and its duplicate if it has one.
pub(super) struct Passage {
    pub(super) at: Instant,
    pub(super) duplicate: bool,
}

impl Link {
    pub(super) fn new(profile: LinkProfile) -> Self {
        Self { profile, ..Self::default() }
    }

    /// Sends an IP packet of `size` bytes at `now`.
    pub(super) fn offer(&mut self, now: Instant, size: usize, rng: &mut impl Rng) -> Result<Passage, DropReason> {
        let profile = self.profile;
        self.stats.offered += 1;
        if profile.down {
            return Err(DropReason::LinkDown);
        }
        if size > profile.mtu {
            return Err(DropReason::TooBig);
        }
        let sent = self.enqueue(now, size)?;
        if self.loses(rng) {
            return Err(DropReason::Loss);
        }
        let mut at = after(after(sent, profile.delay), random::up_to(profile.jitter, rng));
        if let Some(last) = self.last_arrival {
            at = at.max(last);
        }
        if random::chance(profile.reorder, rng) {
            self.stats.reordered += 1;
            at = after(at, profile.reorder_delay);
        } else {
            self.last_arrival = Some(at);
        }
        let duplicate = random::chance(profile.duplicate, rng);
        self.stats.passed += 1;
        self.stats.passed_bytes += size as u64;
        self.stats.duplicated += u64::from(duplicate);
        Ok(Passage { at, duplicate })
    }

    /// When the datagram's last bit has left, or that the queue is full.
    fn enqueue(&mut self, now: Instant, size: usize) -> Result<Instant, DropReason> {
        let Some(rate) = self.profile.rate else { return Ok(now) };
        let rate = u128::from(rate.max(1));
        let start = self.busy_until.unwrap_or(now).max(now);
        let waiting = (start - now).as_nanos() * rate / 8_000_000_000;
        if waiting + size as u128 > u128::from(self.profile.queue) {
            return Err(DropReason::QueueFull);
        }
        let span = (size as u128 * 8_000_000_000).div_ceil(rate);
        let sent = after(start, Duration::from_nanos(u64::try_from(span).unwrap_or(u64::MAX)));
        self.busy_until = Some(sent);
        Ok(sent)
    }

    fn loses(&mut self, rng: &mut impl Rng) -> bool {
        match self.profile.loss {
            Loss::None => false,
            Loss::Independent(loss) => random::chance(loss, rng),
            Loss::GilbertElliott { to_bad, to_good, good, bad } => {
                if random::chance(if self.bad { to_good } else { to_bad }, rng) {
                    self.bad = !self.bad;
                }
                random::chance(if self.bad { bad } else { good }, rng)
            }
        }
    }
}
