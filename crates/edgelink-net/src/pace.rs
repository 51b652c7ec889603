//! How much to hand to a TCP connection at once (DESIGN §6): about 5 ms of what it has been seen to deliver.
//!
//! What is written is out of reach: it waits in the kernel, and whatever is more urgent waits behind it. So a slow
//! connection gets little at a time, and a fast one as much as makes system calls cheap.

use std::time::{Duration, Instant};

/// What is written at once should leave within this time.
const TIME: Duration = Duration::from_millis(5);
/// The rate is the highest of at least this time, and at most twice that: a moment's dent costs nothing, and a connection
/// that has become slow is noticed soon.
const WINDOW: Duration = Duration::from_secs(1);
/// The kernel is asked this often.
const INTERVAL: Duration = Duration::from_millis(10);
/// A change of the kernel's bound by less than this part is not worth a system call.
const WORTH: u32 = 4;

/// Most that is handed over at once, in bytes: beyond it nothing is gained.
pub const MAX_BUDGET: usize = 192 << 10;
/// Least: a packet of a 1,500-byte link.
pub const MIN_BUDGET: usize = 1_448;
/// Bounds of what may be unsent in the kernel (`TCP_NOTSENT_LOWAT`), in bytes. The lower one is room for a TLS record of a
/// packet beside the one that is leaving.
pub const MAX_UNSENT: u32 = crate::tcp::NOTSENT_LOWAT;
/// See [`MAX_UNSENT`].
pub const MIN_UNSENT: u32 = 4 << 10;

/// What the kernel says of the sending side of a TCP connection (`TCP_INFO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSample {
    /// What was delivered lately, in bytes per second; 0 before anything was. The kernel keeps the last rate that the
    /// network set, and takes one that the application set only when it is higher.
    pub delivery_rate: u64,
    /// Packets that may be on their way.
    pub cwnd: u32,
    /// Payload of a packet, in bytes.
    pub mss: u32,
    /// Smoothed round trip.
    pub rtt: Duration,
}

impl TcpSample {
    /// Bytes per second; 0 when nothing is known.
    fn rate(&self) -> u64 {
        if self.delivery_rate > 0 {
            return self.delivery_rate;
        }
        // Nothing was acknowledged yet: what the window allows.
        let window = u128::from(self.cwnd) * u128::from(self.mss) * 1_000_000;
        u64::try_from(window.checked_div(self.rtt.as_micros()).unwrap_or(0)).unwrap_or(u64::MAX)
    }
}

/// Sizes what is written to one connection by what it delivers. No clock and no socket of its own.
///
/// An estimate that is too low costs system calls and no throughput, since whoever writes goes on at once while the socket
/// takes more; what it then delivers raises the estimate.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// Highest rates of the present window and the one before it.
    rates: [u64; 2],
    began: Option<Instant>,
    asked: Option<Instant>,
    unsent: Option<u32>,
}

impl Pace {
    /// Nothing is known: everything is allowed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it is time for another [`Self::update`].
    pub fn is_due(&self, now: Instant) -> bool {
        self.asked.is_none_or(|at| now.saturating_duration_since(at) >= INTERVAL)
    }

    /// Takes what the kernel says. Returns a new bound for what may be unsent in the kernel, if it is to be changed.
    pub fn update(&mut self, sample: &TcpSample, now: Instant) -> Option<u32> {
        self.asked = Some(now);
        let rate = sample.rate();
        let since = now.saturating_duration_since(*self.began.get_or_insert(now));
        let [present, before] = self.rates;
        self.rates = if since < WINDOW {
            [present.max(rate), before]
        } else {
            self.began = Some(now);
            // Nothing was asked for so long: what was is no longer.
            if since < 2 * WINDOW { [rate, present] } else { [rate, 0] }
        };
        if self.rate() == 0 {
            return None;
        }
        let unsent = u32::try_from(self.in_time()).unwrap_or(u32::MAX).clamp(MIN_UNSENT, MAX_UNSENT);
        let before = self.unsent.unwrap_or(MAX_UNSENT);
        let worth = unsent.abs_diff(before) >= before / WORTH || (unsent == MAX_UNSENT && before != unsent);
        worth.then(|| *self.unsent.insert(unsent))
    }

    /// Bytes per second; 0 when nothing is known.
    pub fn rate(&self) -> u64 {
        self.rates.into_iter().max().unwrap_or(0)
    }

    /// Bytes that should be handed over at once, from [`MIN_BUDGET`] to [`MAX_BUDGET`].
    pub fn budget(&self) -> usize {
        if self.rate() == 0 { MAX_BUDGET } else { self.in_time().clamp(MIN_BUDGET, MAX_BUDGET) }
    }

    /// Whether the connection is so slow that every write should be a segment of its own: the kernel fills a segment that
    /// waits, up to 64 KiB, without looking at the bound.
    pub fn is_slow(&self) -> bool {
        self.unsent.is_some_and(|unsent| unsent < MAX_UNSENT)
    }

    fn in_time(&self) -> usize {
        let bytes = u128::from(self.rate()) * TIME.as_micros() / 1_000_000;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any origin will do")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn delivered(bits_per_second: u64) -> TcpSample {
        TcpSample { delivery_rate: bits_per_second / 8, cwnd: 10, mss: 1_448, rtt: Duration::from_millis(20) }
    }

    #[test]
    fn five_milliseconds_of_the_rate_between_a_packet_and_192_kib() {
        let now = origin();
        for (bits, budget, unsent) in [
            (100_000, MIN_BUDGET, MIN_UNSENT),
            (10_000_000, 6_250, 6_250),
            (100_000_000, 62_500, 62_500),
            (200_000_000, 125_000, MAX_UNSENT),
            (1_000_000_000, MAX_BUDGET, MAX_UNSENT),
            (u64::MAX, MAX_BUDGET, MAX_UNSENT),
        ] {
            let mut pace = Pace::new();
            assert_eq!(pace.budget(), MAX_BUDGET, "nothing is known yet");
            let changed = pace.update(&delivered(bits), now);
            assert_eq!((pace.budget(), pace.unsent.unwrap_or(MAX_UNSENT)), (budget, unsent), "{bits}");
            // 125,000 is too near to the bound that every socket begins with to be worth a system call.
            assert_eq!(changed.is_some(), unsent < MAX_UNSENT, "{bits}");
            assert_eq!(pace.is_slow(), changed.is_some());
        }
    }

    #[test]
    fn before_anything_was_delivered_the_window_tells() {
        let mut pace = Pace::new();
        assert_eq!(pace.update(&TcpSample::default(), origin()), None);
        assert_eq!(pace.budget(), MAX_BUDGET);
        pace.update(&TcpSample { delivery_rate: 0, ..delivered(0) }, origin());
        // 10 × 1,448 bytes in 20 ms.
        assert_eq!((pace.rate(), pace.budget()), (724_000, 3_620));
    }

    #[test]
    fn a_dent_is_ignored_and_a_lasting_fall_is_noticed_within_two_seconds() {
        let start = origin();
        let mut pace = Pace::new();
        let mut fell = None;
        for ms in (0..6_000).step_by(10) {
            let bits = match ms {
                500..700 => 1_000_000,
                3_000.. => 10_000_000,
                _ => 100_000_000,
            };
            pace.update(&delivered(bits), start + Duration::from_millis(ms));
            if ms < 3_000 {
                assert_eq!(pace.budget(), 62_500, "{ms}");
            } else if pace.budget() == 6_250 {
                fell.get_or_insert(ms - 3_000);
            }
        }
        assert!(fell.is_some_and(|after| (1_000..=2_000).contains(&after)), "{fell:?}");
    }

    #[test]
    fn a_rise_counts_at_once_and_little_changes_are_not_told_to_the_kernel() {
        let start = origin();
        let mut pace = Pace::new();
        assert_eq!(pace.update(&delivered(10_000_000), start), Some(6_250));
        assert_eq!(pace.update(&delivered(11_000_000), start + INTERVAL), None);
        assert_eq!(pace.budget(), 6_875);
        assert_eq!(pace.update(&delivered(100_000_000), start + 2 * INTERVAL), Some(62_500));
        assert_eq!(pace.update(&delivered(1_000_000_000), start + 3 * INTERVAL), Some(MAX_UNSENT));
        assert!(!pace.is_slow());
        assert!(!pace.is_due(start + 3 * INTERVAL + INTERVAL / 2) && pace.is_due(start + 4 * INTERVAL));
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let start = origin();
        let mut pace = Pace::new();
        pace.update(&delivered(100_000_000), start);
        pace.update(&delivered(10_000_000), start + 2 * WINDOW);
        assert_eq!(pace.budget(), 6_250);
    }
}
