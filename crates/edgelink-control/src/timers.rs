//! Deadlines of many connections: cheap to postpone, since a timer that fires early is just set again.

use crate::ConnId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Timers that may fire. Whether one still counts, its connection knows: it remembers the earliest that it has set.
#[derive(Debug, Default)]
pub(crate) struct Timers(BinaryHeap<Reverse<(Instant, ConnId)>>);

impl Timers {
    /// Sets a connection's timer, unless an earlier one is set already. `armed` is what the connection remembers.
    pub(crate) fn set(&mut self, conn: ConnId, at: Instant, armed: &mut Option<Instant>) {
        if armed.is_none_or(|earlier| at < earlier) {
            *armed = Some(at);
            self.0.push(Reverse((at, conn)));
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, ConnId)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse(due)| due)
    }
}
