//! The connections between nodes and servers: ordered, reliable, with a delay, and liable to be cut.

use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

/// Name of one connection in the simulated network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(u64);

/// What arrives at an end of a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arrival {
    /// The connection is there: first at the server, then at the client.
    Opened,
    Message(Bytes),
    Closed(&'static str),
}

/// Which end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Client,
    Server,
}

/// When, in which order, where and what.
type InFlight = (Instant, u64, StreamId, End, Arrival);

#[derive(Debug, Default)]
pub(crate) struct Streams {
    delay: Duration,
    next: u64,
    order: u64,
    open: BTreeMap<StreamId, ()>,
    in_flight: BinaryHeap<Reverse<InFlight>>,
}

impl Streams {
    pub(crate) fn new(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// A client dials; the server sees it after the delay, the client after both ways.
    pub(crate) fn dial(&mut self, now: Instant) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        self.open.insert(id, ());
        self.schedule(now + self.delay, id, End::Server, Arrival::Opened);
        id
    }

    /// The server took the connection.
    pub(crate) fn accept(&mut self, id: StreamId, now: Instant) {
        self.schedule(now + self.delay, id, End::Client, Arrival::Opened);
    }

    /// Sends a message to the other end. Into a closed stream nothing is sent.
    pub(crate) fn send(&mut self, id: StreamId, to: End, message: Bytes, now: Instant) {
        if self.open.contains_key(&id) {
            self.schedule(now + self.delay, id, to, Arrival::Message(message));
        }
    }

    /// Closes in order: what was sent before arrives before.
    pub(crate) fn close(&mut self, id: StreamId, to: End, why: &'static str, now: Instant) {
        if self.open.remove(&id).is_some() {
            self.schedule(now + self.delay, id, to, Arrival::Closed(why));
        }
    }

    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.in_flight.peek().map(|Reverse((at, ..))| *at)
    }

    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(StreamId, End, Arrival)> {
        if self.next_due()? > now {
            return None;
        }
        self.in_flight.pop().map(|Reverse((_, _, id, end, arrival))| (id, end, arrival))
    }

    fn schedule(&mut self, at: Instant, id: StreamId, end: End, arrival: Arrival) {
        self.order += 1;
        self.in_flight.push(Reverse((at, self.order, id, end, arrival)));
    }
}
