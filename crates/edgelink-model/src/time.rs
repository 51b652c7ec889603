//! Time as an argument: every core gets a [`Now`] from its shell and keeps no clock of its own.

use std::time::{Duration, Instant};

/// Milliseconds since the Unix epoch.
pub type UnixMillis = u64;

/// The present, on both clocks: `mono` for timers, `unix_ms` for tokens and key statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time; only differences mean anything.
    pub mono: Instant,
    /// Wall-clock time as this host believes it, in ms since the Unix epoch; may be wrong and may jump.
    pub unix_ms: UnixMillis,
}

impl Now {
    /// Whole seconds since the Unix epoch.
    pub fn unix_secs(&self) -> u64 {
        self.unix_ms / 1000
    }

    /// The same moment plus `d` on both clocks.
    pub fn plus(&self, d: Duration) -> Self {
        Self { mono: self.mono + d, unix_ms: self.unix_ms.saturating_add(d.as_millis() as u64) }
    }
}
