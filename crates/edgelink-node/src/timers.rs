//! Deadlines with a reason. Setting a timer again replaces its former deadline.

use edgelink_model::{NodeId, ServerId};
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::link::LinkId;
use crate::ping::PingId;

/// Why the node wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    /// Dial the controller, give up a handshake, or send a PING.
    Control,
    /// The same for a relay.
    Relay(ServerId),
    /// Repeat KEY_ANNOUNCE to a peer that has not confirmed our key.
    Announce(NodeId),
    /// Give up an overlay ping.
    Ping(PingId),
    /// Probe the paths to a peer, or conclude that PONGs are missing.
    Path(NodeId),
    /// Look for a direct path to a peer.
    Punch(NodeId),
    /// Dial a peer in the local network by TCP, or see whether UDP gets through to it by now.
    Neighbour(NodeId),
    /// A connection to a neighbour has not authenticated in time, or is to be looked at.
    Stream(LinkId),
    /// Tell a peer our endpoints, whether or not an additional socket's mapping is known.
    Tell(NodeId),
    /// Ask STUN servers.
    Stun,
    /// A peer's replay window may shrink again.
    Window(NodeId),
    /// A gateway's hold-down ends, or a dead one is probed again.
    Gateway(NodeId),
    /// A gateway's side of a prefix has answered again for long enough.
    Recovered,
    /// Tell the controller our latencies.
    Report,
    /// Make a new node key.
    Rotate,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Instant, Timer)>,
    at: HashMap<Timer, Instant>,
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        if let Some(old) = self.at.insert(timer, at) {
            self.due.remove(&(old, timer));
        }
        self.due.insert((at, timer));
    }

    /// Sets a timer unless it is due earlier anyway.
    pub(crate) fn set_earlier(&mut self, timer: Timer, at: Instant) {
        if self.at.get(&timer).is_none_or(|old| at < *old) {
            self.set(timer, at);
        }
    }

    pub(crate) fn clear(&mut self, timer: Timer) {
        if let Some(old) = self.at.remove(&timer) {
            self.due.remove(&(old, timer));
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.due.remove(&(at, timer));
        self.at.remove(&timer);
        Some(timer)
    }
}
