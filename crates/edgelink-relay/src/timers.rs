//! Deadlines of many connections: cheap to postpone, since a timer that fires early is just set again.

use crate::event::ConnId;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Timers that may fire. Whether one still counts, its connection knows ([`crate::connection::Connection::timer`]).
#[derive(Debug, Default)]
pub(crate) struct Timers(BinaryHeap<Reverse<(Instant, ConnId)>>);

impl Timers {
    /// Sets a connection's timer, unless an earlier one is set already. `current` is what the connection remembers.
    pub(crate) fn set(&mut self, conn: ConnId, at: Instant, current: &mut Option<Instant>) {
        if current.is_none_or(|earlier| at < earlier) {
            *current = Some(at);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any origin will do")]
    fn postponing_costs_nothing_and_advancing_one_entry() {
        let (start, conn) = (Instant::now(), ConnId { serial: 0, slot: 0 });
        let at = |secs| start + Duration::from_secs(secs);
        let (mut timers, mut current) = (Timers::default(), None);
        for secs in [60, 61, 60, 99, 15, 15, 16] {
            timers.set(conn, at(secs), &mut current);
        }
        assert_eq!((timers.0.len(), timers.next(), current), (2, Some(at(15)), Some(at(15))));
        assert_eq!(timers.pop_due(at(14)), None);
        assert_eq!(timers.pop_due(at(15)), Some((at(15), conn)));
        assert_eq!(timers.pop_due(at(60)), Some((at(60), conn)));
        assert_eq!(timers.pop_due(at(60)), None);
    }
}
