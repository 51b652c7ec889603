//! Whether the other end of a connection is alive, by when it was heard.

use std::time::{Duration, Instant};

/// A connection that has been silent for this long is dead.
const SILENCE: Duration = Duration::from_secs(45);

/// When the other end was heard last, and when it was asked whether it is there.
#[derive(Debug, Default)]
pub(crate) struct Hearing {
    last: Option<Instant>,
    /// It was asked at this time, and has as long to answer.
    asked: Option<(Instant, Duration)>,
}

impl Hearing {
    /// How long an answer may take: four round trips, `least` at the least.
    pub(crate) fn patience(rtt: Option<Duration>, least: Duration) -> Duration {
        rtt.map_or(least, |rtt| (rtt * 4).clamp(least, SILENCE))
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        self.last = Some(now);
    }

    pub(crate) fn last(&self) -> Option<Instant> {
        self.last
    }

    pub(crate) fn ask(&mut self, now: Instant, patience: Duration) {
        self.asked = Some((now, patience));
    }

    /// The connection has ended; whoever asked it is not answered any more.
    pub(crate) fn forget_question(&mut self) {
        self.asked = None;
    }

    /// Whether a question with no more patience than that is open.
    pub(crate) fn is_asked(&self, patience: Duration) -> bool {
        self.open().is_some_and(|(_, given)| given <= patience)
    }

    /// Until when it must say something, having been asked.
    pub(crate) fn answer_by(&self) -> Option<Instant> {
        self.open().map(|(asked, patience)| asked + patience)
    }

    /// Whether nothing was heard for too long: since it was asked, or at all.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        let Some(heard) = self.last else { return true };
        let unanswered = self.answer_by().is_some_and(|at| now >= at);
        unanswered || now.saturating_duration_since(heard) >= SILENCE
    }

    fn open(&self) -> Option<(Instant, Duration)> {
        self.asked.filter(|(asked, _)| self.last.is_none_or(|heard| heard < *asked))
    }
}
