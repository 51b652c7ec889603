//! WSS connections: ordered and reliable, with a delay, a rate and a bounded buffer; they can be stalled, cut and reset.
//!
//! A stream is a pair of halves, one towards each end. What is sent into a half arrives in order, after its line's
//! delay, jitter and rate. A half holds at most [`CAPACITY`] bytes (the kernel's buffers on both sides): the sender asks
//! [`Streams::free`] first, and [`Streams::next_roomy`] tells it when there is room again. Nothing arrives at an end
//! whose line is cut or whose process is asleep; it waits, as TCP's retransmissions would have it.

use bytes::Bytes;
use rand_core::Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Bytes that a half holds before its sender has to wait.
pub(crate) const CAPACITY: usize = 256 << 10;
/// A dial that has not been answered by then fails, as the shells have it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// What a lost segment costs a stream: TCP notices and repeats it.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// A process in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// The controller.
    Controller,
    /// A relay, in the order of creation; 0 is the controller's own.
    Relay(usize),
    /// A node, in the order of creation.
    Node(usize),
}

/// Name of one connection in the simulated network; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(u64);

/// What arrives at an end of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl End {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// How good the way between two parties is, in each direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// One-way delay.
    pub delay: Duration,
    /// Up to so much more, uniformly; order is kept.
    pub jitter: Duration,
    /// Chance that a message has to be retransmitted.
    pub loss: f64,
    /// Bytes per second; `None`: any.
    pub rate: Option<u64>,
}

impl Line {
    /// Nothing but a delay.
    pub fn of(delay: Duration) -> Self {
        Self { delay, jitter: Duration::ZERO, loss: 0.0, rate: None }
    }
}

/// Something that came out of a stream.
pub(crate) struct Popped {
    pub(crate) id: StreamId,
    /// The end that it arrived at.
    pub(crate) end: End,
    pub(crate) arrival: Arrival,
}

#[derive(Debug)]
struct Stream {
    client: Party,
    server: Party,
    to_client: Half,
    to_server: Half,
    dial_deadline: Option<Instant>,
}

/// One direction.
#[derive(Debug, Default)]
struct Half {
    queue: VecDeque<(Instant, Arrival)>,
    bytes: usize,
    /// When the line has carried what was sent so far.
    line_free: Option<Instant>,
    last_due: Option<Instant>,
    /// The sender has closed: nothing more is accepted.
    ended: bool,
    /// The sender's process is gone without a word: nothing more is sent, and the receiver does not know.
    mute: bool,
    /// The receiver's process is gone without a word: what arrives is answered with a reset.
    gone: bool,
    /// The sender waits for room.
    starving: bool,
    scheduled: Option<(Instant, u64)>,
}

#[derive(Debug)]
pub(crate) struct Streams {
    standard: Line,
    lines: BTreeMap<(Party, Party), Line>,
    streams: BTreeMap<StreamId, Stream>,
    /// Heads of the halves that can deliver, by time and order of sending.
    due: BTreeSet<(Instant, u64, StreamId, End)>,
    deadlines: BTreeSet<(Instant, StreamId)>,
    cut: BTreeSet<(Party, Party)>,
    asleep: BTreeSet<Party>,
    /// Hosts without power: nothing answers there.
    off: BTreeSet<Party>,
    roomy: VecDeque<(StreamId, End)>,
    next: u64,
    order: u64,
}

impl Streams {
    pub(crate) fn new(standard: Line) -> Self {
        Self {
            standard,
            lines: BTreeMap::new(),
            streams: BTreeMap::new(),
            due: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            cut: BTreeSet::new(),
            asleep: BTreeSet::new(),
            off: BTreeSet::new(),
            roomy: VecDeque::new(),
            next: 0,
            order: 0,
        }
    }

    // ---- what processes do ----

    /// A client dials; the server sees it after the delay, the client after both ways.
    pub(crate) fn dial(&mut self, client: Party, server: Party, now: Instant, rng: &mut impl Rng) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        let deadline = now + DIAL_TIMEOUT;
        let stream = Stream {
            client,
            server,
            to_client: Half::default(),
            to_server: Half::default(),
            dial_deadline: Some(deadline),
        };
        self.streams.insert(id, stream);
        self.deadlines.insert((deadline, id));
        self.push(id, End::Server, Arrival::Opened, now, rng);
        id
    }

    /// The server took the connection.
    pub(crate) fn accept(&mut self, id: StreamId, now: Instant, rng: &mut impl Rng) {
        self.push(id, End::Client, Arrival::Opened, now, rng);
    }

    /// Sends a message towards an end. Into a closed stream nothing is sent.
    pub(crate) fn send(&mut self, id: StreamId, to: End, message: Bytes, now: Instant, rng: &mut impl Rng) {
        self.push(id, to, Arrival::Message(message), now, rng);
    }

    /// The process at the other end closes: what it sent before arrives before, what comes towards it is lost.
    pub(crate) fn close(&mut self, id: StreamId, to: End, why: &'static str, now: Instant, rng: &mut impl Rng) {
        self.push(id, to, Arrival::Closed(why), now, rng);
        if let Some(half) = self.half_mut(id, to) {
            half.ended = true;
        }
        self.forsake(id, to.other());
        self.sweep(id);
    }

    /// Room for messages towards an end, in bytes. A sender that finds none is told by [`Self::next_roomy`].
    pub(crate) fn free(&mut self, id: StreamId, to: End) -> usize {
        let Some(half) = self.half_mut(id, to) else { return 0 };
        let free = CAPACITY.saturating_sub(half.bytes);
        half.starving |= free == 0;
        free
    }

    /// A sender that found no room may go on: the stream, and the end towards which there is room.
    pub(crate) fn next_roomy(&mut self) -> Option<(StreamId, End)> {
        self.roomy.pop_front()
    }

    // ---- what befalls them ----

    /// The process ended and its kernel tells so: every connection of it is closed.
    pub(crate) fn close_all(&mut self, party: Party, now: Instant, rng: &mut impl Rng) {
        for (id, end) in self.of(party) {
            self.close(id, end.other(), "connection reset by peer", now, rng);
        }
    }

    /// The host lost its connections without a word: its power, its addresses, or a router's table in between. Whoever
    /// sends on one of them is answered with a reset, if the host is on.
    pub(crate) fn vanish(&mut self, party: Party) {
        for (id, end) in self.of(party) {
            self.forsake(id, end);
            if let Some(half) = self.half_mut(id, end.other()) {
                half.mute = true;
            }
            self.sweep(id);
        }
    }

    /// Switches a host off or on. Off, it does not even answer.
    pub(crate) fn set_off(&mut self, party: Party, off: bool, now: Instant) {
        let changed = if off { self.off.insert(party) } else { self.off.remove(&party) };
        if changed {
            self.reschedule(|stream| stream.client == party || stream.server == party, now);
        }
    }

    /// A middlebox resets every connection between two parties: both ends hear of it.
    pub(crate) fn reset_between(&mut self, a: Party, b: Party, now: Instant, rng: &mut impl Rng) {
        for id in self.between(a, b) {
            for end in [End::Client, End::Server] {
                if let Some(stream) = self.streams.get_mut(&id) {
                    let half = stream.half(end);
                    half.queue.clear();
                    half.bytes = 0;
                    Self::unschedule(&mut self.due, half, id, end);
                }
                self.push(id, end, Arrival::Closed("connection reset by peer"), now, rng);
                if let Some(half) = self.half_mut(id, end) {
                    half.ended = true;
                }
            }
        }
    }

    /// Cuts (or mends) the line from one party to another, in that direction. What was sent waits.
    pub(crate) fn set_cut(&mut self, from: Party, to: Party, cut: bool, now: Instant) {
        let changed = if cut { self.cut.insert((from, to)) } else { self.cut.remove(&(from, to)) };
        if changed {
            self.reschedule(|stream| stream.joins(from, to), now);
        }
    }

    /// A sleeping process reads nothing.
    pub(crate) fn set_asleep(&mut self, party: Party, asleep: bool, now: Instant) {
        let changed = if asleep { self.asleep.insert(party) } else { self.asleep.remove(&party) };
        if changed {
            self.reschedule(|stream| stream.client == party || stream.server == party, now);
        }
    }

    /// How good the line between two parties is from now on, both ways.
    pub(crate) fn set_line(&mut self, a: Party, b: Party, line: Line) {
        self.lines.insert((a, b), line);
        self.lines.insert((b, a), line);
    }

    pub(crate) fn line(&self, a: Party, b: Party) -> Line {
        self.lines.get(&(a, b)).copied().unwrap_or(self.standard)
    }

    // ---- time ----

    pub(crate) fn next_due(&self) -> Option<Instant> {
        let arrival = self.due.first().map(|(at, ..)| *at);
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        arrival.into_iter().chain(deadline).min()
    }

    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Popped> {
        while let Some((at, id)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.remove(&(at, id));
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.dial_deadline = None;
                stream.to_client.ended = true;
                self.forsake(id, End::Client);
                self.forsake(id, End::Server);
                if let Some(half) = self.half_mut(id, End::Server) {
                    half.ended = true;
                }
                self.sweep(id);
                return Some(Popped { id, end: End::Client, arrival: Arrival::Closed("timed out") });
            }
        }
        let (at, order, id, end) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.due.remove(&(at, order, id, end));
        let half = self.half_mut(id, end)?;
        half.scheduled = None;
        let (_, arrival) = half.queue.pop_front()?;
        let gone = half.gone;
        if let Arrival::Message(message) = &arrival {
            half.bytes = half.bytes.saturating_sub(message.len());
            if half.starving && half.bytes <= CAPACITY / 2 {
                half.starving = false;
                self.roomy.push_back((id, end));
            }
        }
        if (end, &arrival) == (End::Client, &Arrival::Opened)
            && let Some(deadline) = self.streams.get_mut(&id).and_then(|s| s.dial_deadline.take())
        {
            self.deadlines.remove(&(deadline, id));
        }
        self.schedule(id, end, now);
        self.sweep(id);
        if gone { self.pop_due(now) } else { Some(Popped { id, end, arrival }) }
    }

    // ---- helpers ----

    /// The parties at an end and opposite.
    pub(crate) fn parties(&self, id: StreamId, end: End) -> Option<(Party, Party)> {
        let stream = self.streams.get(&id)?;
        Some(match end {
            End::Client => (stream.client, stream.server),
            End::Server => (stream.server, stream.client),
        })
    }

    fn push(&mut self, id: StreamId, to: End, arrival: Arrival, now: Instant, rng: &mut impl Rng) {
        let Some((receiver, sender)) = self.parties(id, to) else { return };
        let line = self.line(sender, receiver);
        let jitter = line.jitter.mul_f64(fraction(rng));
        let lost = line.loss > 0.0 && fraction(rng) < line.loss;
        let reachable = !self.off.contains(&receiver)
            && !self.cut.contains(&(sender, receiver))
            && !self.cut.contains(&(receiver, sender));
        let Some(half) = self.half_mut(id, to).filter(|half| !half.ended && !half.mute) else { return };
        if half.gone {
            if reachable {
                self.answer_with_reset(id, to.other(), now + 2 * line.delay, now);
            }
            return;
        }
        let len = if let Arrival::Message(message) = &arrival { message.len() } else { 0 };
        let start = half.line_free.map_or(now, |free| free.max(now));
        let sent = line.rate.map_or(start, |rate| start + Duration::from_secs_f64(len as f64 / rate.max(1) as f64));
        half.line_free = Some(sent);
        let mut due = sent + line.delay + jitter;
        if lost {
            due += RETRANSMISSION + 2 * line.delay;
        }
        let due = half.last_due.map_or(due, |last| last.max(due));
        half.last_due = Some(due);
        half.bytes += len;
        half.queue.push_back((due, arrival));
        if half.queue.len() == 1 {
            self.schedule(id, to, now);
        }
    }

    /// Lets the head of a half be delivered at its time, unless something is in the way.
    fn schedule(&mut self, id: StreamId, end: End, now: Instant) {
        let Some((receiver, sender)) = self.parties(id, end) else { return };
        let in_the_way =
            self.cut.contains(&(sender, receiver)) || self.asleep.contains(&receiver) || self.off.contains(&receiver);
        if in_the_way {
            return;
        }
        let order = self.order;
        let Some(half) = self.half_mut(id, end).filter(|half| half.scheduled.is_none()) else { return };
        let Some(at) = half.queue.front().map(|(due, _)| (*due).max(now)) else { return };
        half.scheduled = Some((at, order));
        self.order += 1;
        self.due.insert((at, order, id, end));
    }

    fn reschedule(&mut self, concerned: impl Fn(&Stream) -> bool, now: Instant) {
        let ids: Vec<StreamId> = self.streams.iter().filter(|(_, s)| concerned(s)).map(|(id, _)| *id).collect();
        for id in ids {
            for end in [End::Client, End::Server] {
                if let Some(stream) = self.streams.get_mut(&id) {
                    Self::unschedule(&mut self.due, stream.half(end), id, end);
                }
                self.schedule(id, end, now);
            }
        }
    }

    fn unschedule(due: &mut BTreeSet<(Instant, u64, StreamId, End)>, half: &mut Half, id: StreamId, end: End) {
        if let Some((at, order)) = half.scheduled.take() {
            due.remove(&(at, order, id, end));
        }
    }

    fn answer_with_reset(&mut self, id: StreamId, sender: End, at: Instant, now: Instant) {
        let Some(half) = self.half_mut(id, sender).filter(|half| !half.ended && !half.gone) else { return };
        half.ended = true;
        half.queue.push_back((at, Arrival::Closed("connection reset by peer")));
        self.schedule(id, sender, now);
    }

    /// The receiver at `end` is gone.
    fn forsake(&mut self, id: StreamId, end: End) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let half = stream.half(end);
        half.gone = true;
        half.queue.clear();
        half.bytes = 0;
        half.starving = false;
        Self::unschedule(&mut self.due, half, id, end);
    }

    /// Forgets a stream on which nothing can happen any more.
    fn sweep(&mut self, id: StreamId) {
        let done = |half: &Half| half.queue.is_empty() && half.ended;
        let both = self
            .streams
            .get(&id)
            .is_some_and(|s| (done(&s.to_client) || s.to_client.gone) && (done(&s.to_server) || s.to_server.gone));
        if both
            && let Some(stream) = self.streams.remove(&id)
            && let Some(deadline) = stream.dial_deadline
        {
            self.deadlines.remove(&(deadline, id));
        }
    }

    fn half_mut(&mut self, id: StreamId, end: End) -> Option<&mut Half> {
        self.streams.get_mut(&id).map(|stream| stream.half(end))
    }

    fn of(&self, party: Party) -> Vec<(StreamId, End)> {
        let ends = self.streams.iter().flat_map(|(id, s)| [(*id, End::Client, s.client), (*id, End::Server, s.server)]);
        ends.filter(|(_, _, at)| *at == party).map(|(id, end, _)| (id, end)).collect()
    }

    fn between(&self, a: Party, b: Party) -> Vec<StreamId> {
        self.streams.iter().filter(|(_, s)| s.joins(a, b)).map(|(id, _)| *id).collect()
    }
}

impl Stream {
    fn half(&mut self, end: End) -> &mut Half {
        match end {
            End::Client => &mut self.to_client,
            End::Server => &mut self.to_server,
        }
    }

    fn joins(&self, a: Party, b: Party) -> bool {
        (self.client, self.server) == (a, b) || (self.client, self.server) == (b, a)
    }
}

/// Uniform in [0, 1).
pub(crate) fn fraction(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}
