//! How much to hand to a TCP connection at once (DESIGN §6): about 2 ms of what it has been seen to deliver.
//!
//! What is written is out of reach: it waits in the kernel, and whatever is more urgent waits behind it. So a slow
//! connection gets little at a time, and a fast one as much as makes system calls cheap.
//!
//! And how fast the kernel may send. A relay sends what others send it, so its connections hardly ever have more to send than
//! their window allows. BBR learns nothing from such times, and stays in its start-up, where it sends at 2.9 times the
//! link's rate: whenever a lost segment arrives at last, what had to wait for it, a round trip's worth, overflows the queue before the
//! link, and more is lost. So a connection that loses much while its segments wait before the link is held to what it has
//! been seen to deliver, for a second, and then to a quarter more, until it has been calm for long.

use std::time::{Duration, Instant};

/// What is written at once should leave within this time …
const TIME: Duration = Duration::from_millis(2);
/// … and what the kernel has not sent yet within this: as long as a busy machine may need to bring more.
const UNSENT_TIME: Duration = Duration::from_millis(3);
/// The rate is the highest of at least this time, and at most twice that: a moment's dent costs nothing, and a connection
/// that has become slow is noticed soon.
const WINDOW: Duration = Duration::from_secs(1);
/// The kernel is asked this often.
const INTERVAL: Duration = Duration::from_millis(10);
/// A change of the kernel's bound by less than this part is not worth a system call.
const WORTH: u32 = 4;
/// A connection loses much when one of so many segments was sent again …
const LOSSY: u32 = 50;
/// … of those sent in this time …
const LOSS_WINDOW: Duration = Duration::from_millis(100);
/// … and at least so many.
const MIN_LOST: u32 = 8;
/// … while a round trip took longer than the shortest one by this part: what is lost at random says nothing of the rate.
const QUEUED: u32 = 8;
/// For so long it may send no faster than was delivered, so that the queue before the link can drain …
const DRAIN: Duration = Duration::from_secs(1);
/// … and freely again after so long without losses.
const CALM: Duration = Duration::from_secs(10);
/// No bound on what the kernel sends.
pub const UNPACED: u64 = u64::MAX;

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
    /// The shortest one lately.
    pub min_rtt: Duration,
    /// Segments with data sent since the beginning, modulo 2³², those sent again among them.
    pub sent: u32,
    /// Segments sent again since the beginning, modulo 2³².
    pub resent: u32,
}

/// What to tell the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A new bound for what may be unsent, in bytes (`TCP_NOTSENT_LOWAT`).
    pub unsent: Option<u32>,
    /// A new bound for the rate, in bytes per second (`SO_MAX_PACING_RATE`), or [`UNPACED`].
    pub rate: Option<u64>,
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
    losses: Losses,
    /// The kernel's bound for the rate.
    bound: Option<u64>,
}

/// Whether a connection loses much.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    /// What had been sent, and sent again, when the present window began.
    sent: u32,
    resent: u32,
    began: Option<Instant>,
    /// When a window with many losses ended.
    last: Option<Instant>,
}

impl Losses {
    fn update(&mut self, sample: &TcpSample, now: Instant) {
        let began = *self.began.get_or_insert(now);
        if now.saturating_duration_since(began) < LOSS_WINDOW {
            return;
        }
        let (sent, resent) = (sample.sent.wrapping_sub(self.sent), sample.resent.wrapping_sub(self.resent));
        let queued = sample.rtt > sample.min_rtt + sample.min_rtt / QUEUED;
        if queued && resent >= MIN_LOST && resent.saturating_mul(LOSSY) >= sent {
            self.last = Some(now);
        }
        (self.sent, self.resent, self.began) = (sample.sent, sample.resent, Some(now));
    }

    /// What a connection that has been seen to deliver so much may send.
    fn bound(&self, rate: u64, now: Instant) -> u64 {
        let since = self.last.map_or(CALM, |last| now.saturating_duration_since(last));
        match since {
            _ if since < DRAIN => rate,
            // As BBR looks for more once it knows the link: what has become free is found within some round trips.
            _ if since < CALM => rate.saturating_add(rate / 4),
            _ => UNPACED,
        }
    }
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

    /// Takes what the kernel says. Returns the new bounds, where they are to be changed.
    pub fn update(&mut self, sample: &TcpSample, now: Instant) -> Changes {
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
        self.losses.update(sample, now);
        if self.rate() == 0 {
            return Changes::default();
        }
        let unsent = u32::try_from(self.within(UNSENT_TIME)).unwrap_or(u32::MAX).clamp(MIN_UNSENT, MAX_UNSENT);
        let before = self.unsent.unwrap_or(MAX_UNSENT);
        let worth = unsent.abs_diff(before) >= before / WORTH || (unsent == MAX_UNSENT && before != unsent);
        let unsent = worth.then(|| *self.unsent.insert(unsent));
        Changes { unsent, rate: self.rate_bound(now) }
    }

    /// The kernel's new bound for the rate, if it is to be changed.
    fn rate_bound(&mut self, now: Instant) -> Option<u64> {
        let before = self.bound.unwrap_or(UNPACED);
        let rate = self.losses.bound(self.rate(), now);
        let worth = if rate == UNPACED || before == UNPACED {
            rate != before
        } else {
            rate.abs_diff(before) >= before / u64::from(4 * WORTH)
        };
        worth.then(|| *self.bound.insert(rate))
    }

    /// Bytes per second; 0 when nothing is known.
    pub fn rate(&self) -> u64 {
        self.rates.into_iter().max().unwrap_or(0)
    }

    /// Bytes that should be handed over at once, from [`MIN_BUDGET`] to [`MAX_BUDGET`].
    pub fn budget(&self) -> usize {
        if self.rate() == 0 { MAX_BUDGET } else { self.within(TIME).clamp(MIN_BUDGET, MAX_BUDGET) }
    }

    /// Whether the connection is so slow that every write should be a segment of its own: the kernel fills a segment that
    /// waits, up to 64 KiB, without looking at the bound.
    pub fn is_slow(&self) -> bool {
        self.unsent.is_some_and(|unsent| unsent < MAX_UNSENT)
    }

    fn within(&self, time: Duration) -> usize {
        let bytes = u128::from(self.rate()) * time.as_micros() / 1_000_000;
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
        let [min_rtt, rtt] = [20, 30].map(Duration::from_millis);
        TcpSample { delivery_rate: bits_per_second / 8, cwnd: 10, mss: 1_448, rtt, min_rtt, ..TcpSample::default() }
    }

    #[test]
    fn two_milliseconds_of_the_rate_between_a_packet_and_192_kib() {
        let now = origin();
        for (bits, budget, unsent) in [
            (100_000, MIN_BUDGET, MIN_UNSENT),
            (10_000_000, 2_500, MIN_UNSENT),
            (20_000_000, 5_000, 7_500),
            (100_000_000, 25_000, 37_500),
            (340_000_000, 85_000, MAX_UNSENT),
            (1_000_000_000, MAX_BUDGET, MAX_UNSENT),
            (u64::MAX, MAX_BUDGET, MAX_UNSENT),
        ] {
            let mut pace = Pace::new();
            assert_eq!(pace.budget(), MAX_BUDGET, "nothing is known yet");
            let changed = pace.update(&delivered(bits), now);
            assert_eq!((pace.budget(), pace.unsent.unwrap_or(MAX_UNSENT)), (budget, unsent), "{bits}");
            // 127,500 is too near to the bound that every socket begins with to be worth a system call.
            assert_eq!(changed.unsent.is_some(), unsent < MAX_UNSENT, "{bits}");
            assert_eq!((pace.is_slow(), changed.rate), (changed.unsent.is_some(), None));
        }
    }

    #[test]
    fn before_anything_was_delivered_the_window_tells() {
        let mut pace = Pace::new();
        assert_eq!(pace.update(&TcpSample::default(), origin()), Changes::default());
        assert_eq!(pace.budget(), MAX_BUDGET);
        pace.update(&TcpSample { delivery_rate: 0, ..delivered(0) }, origin());
        // 10 × 1,448 bytes in 30 ms.
        assert_eq!((pace.rate(), pace.budget()), (482_666, MIN_BUDGET));
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
                assert_eq!(pace.budget(), 25_000, "{ms}");
            } else if pace.budget() == 2_500 {
                fell.get_or_insert(ms - 3_000);
            }
        }
        assert!(fell.is_some_and(|after| (1_000..=2_000).contains(&after)), "{fell:?}");
    }

    #[test]
    fn a_rise_counts_at_once_and_little_changes_are_not_told_to_the_kernel() {
        let start = origin();
        let mut pace = Pace::new();
        assert_eq!(pace.update(&delivered(20_000_000), start).unsent, Some(7_500));
        assert_eq!(pace.update(&delivered(22_000_000), start + INTERVAL).unsent, None);
        assert_eq!(pace.budget(), 5_500);
        assert_eq!(pace.update(&delivered(100_000_000), start + 2 * INTERVAL).unsent, Some(37_500));
        assert_eq!(pace.update(&delivered(1_000_000_000), start + 3 * INTERVAL).unsent, Some(MAX_UNSENT));
        assert!(!pace.is_slow());
        assert!(!pace.is_due(start + 3 * INTERVAL + INTERVAL / 2) && pace.is_due(start + 4 * INTERVAL));
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let start = origin();
        let mut pace = Pace::new();
        pace.update(&delivered(100_000_000), start);
        pace.update(&delivered(10_000_000), start + 2 * WINDOW);
        assert_eq!(pace.budget(), 2_500);
    }

    /// A connection that delivers 100 Mbit/s, and of 1,000 segments each 100 ms so many are sent again: what the kernel was told.
    fn told(pace: &mut Pace, start: Instant, from: u32, to: u32, resent: impl Fn(u32) -> u32) -> Vec<(u32, u64)> {
        let mut told = Vec::new();
        for tenth in from..to {
            let sample = TcpSample { sent: 1_000 * tenth, resent: resent(tenth), ..delivered(100_000_000) };
            let rate = pace.update(&sample, start + LOSS_WINDOW * tenth).rate;
            told.extend(rate.map(|rate| (tenth, rate)));
        }
        told
    }

    #[test]
    fn who_loses_much_may_send_what_was_delivered_then_a_quarter_more_and_all_when_it_has_long_been_calm() {
        let (start, mut pace) = (origin(), Pace::new());
        assert_eq!(told(&mut pace, start, 0, 20, |tenth| 19 * tenth), [], "1.9 % are not much");
        // From the 20th to the 29th tenth of a second 2 % are lost, and none afterwards.
        let resent = |tenth: u32| 19 * tenth.min(20) + 20 * (tenth.clamp(20, 29) - 20);
        assert_eq!(told(&mut pace, start, 20, 35, resent), [(21, 12_500_000)]);
        assert_eq!(told(&mut pace, start, 35, 100, resent), [(29 + 10, 15_625_000)]);
        assert_eq!(told(&mut pace, start, 100, 200, resent), [(29 + 100, UNPACED)]);
    }

    #[test]
    fn what_is_lost_without_a_queue_is_lost_at_random() {
        let (start, mut pace) = (origin(), Pace::new());
        for tenth in 0..50 {
            let rtt = Duration::from_millis(22);
            let sample = TcpSample { sent: 1_000 * tenth, resent: 200 * tenth, rtt, ..delivered(100_000_000) };
            assert_eq!(pace.update(&sample, start + LOSS_WINDOW * tenth).rate, None);
        }
    }

    #[test]
    fn a_few_losses_of_a_few_segments_are_not_many() {
        let (start, mut pace) = (origin(), Pace::new());
        for tenth in 0..50 {
            let (sent, resent) = (20 * tenth, (MIN_LOST - 1) * tenth);
            let sample = TcpSample { sent, resent, ..delivered(100_000) };
            assert_eq!(pace.update(&sample, start + LOSS_WINDOW * tenth).rate, None);
        }
    }

    #[test]
    fn the_bound_follows_the_rate() {
        let (start, mut pace) = (origin(), Pace::new());
        let mut told = Vec::new();
        for tenth in 0..30_u32 {
            let bits = if tenth < 10 { 80_000_000 } else { 160_000_000 };
            let sample = TcpSample { sent: 1_000 * tenth, resent: 100 * tenth, ..delivered(bits) };
            told.extend(pace.update(&sample, start + LOSS_WINDOW * tenth).rate);
        }
        assert_eq!(told, [10_000_000, 20_000_000]);
    }
}
