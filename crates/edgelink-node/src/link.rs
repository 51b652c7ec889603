//! One connection to the controller, a relay or a neighbour, and what waits to be written to it.

use crate::waiting::Queue;
use crate::{Drop, Event, Node};
use bytes::{Bytes, BytesMut};
use edgelink_model::{Now, ServerId};
use edgelink_path::StreamId;
use edgelink_wire::data;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Name of one connection; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(u64);

impl LinkId {
    /// As paths name a connection to a neighbour.
    pub(crate) fn stream(self) -> StreamId {
        StreamId(self.0)
    }

    pub(crate) fn of_stream(stream: StreamId) -> Self {
        Self(stream.0)
    }
}

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/ws/control` of the controller.
    Control,
    /// `/ws/data` of a relay.
    Relay {
        /// The relay.
        id: ServerId,
        /// Its URL; empty: the origin at which the controller is dialled, with path `path`.
        url: String,
        /// Path to use with an empty URL.
        path: String,
    },
    /// A neighbour, by plain TCP: what is sealed end to end needs no other cover.
    Neighbour {
        /// The address at the other end.
        address: SocketAddr,
    },
}

/// Data frames are gathered into messages of at most this many bytes, or of the link's budget if that is less: large enough
/// that WebSocket and TLS cost little, small enough that a control message does not wait long behind one.
pub(crate) const MAX_BATCH: usize = 192 << 10;
/// The least that a budget can be: the largest packet of a 1,500-byte path.
const MIN_BUDGET: usize = 1_500;
/// Bound of what waits for one link. Beyond it data is dropped.
pub(crate) const MAX_QUEUE: usize = 1 << 20;
/// Bound with control frames included. Nobody honest reaches it: a relay that pings without reading our answers would.
const MAX_CONTROL_QUEUE: usize = MAX_QUEUE + (256 << 10);

#[derive(Debug)]
pub(crate) struct Link {
    target: Target,
    /// Control frames; they go first.
    control: VecDeque<Bytes>,
    /// Batches of DATA frames; the last one is still being filled.
    data: VecDeque<BytesMut>,
    queued: usize,
    /// Bytes that should be sent at once, by what the connection delivers.
    budget: usize,
    announced: bool,
    /// Where the last frame begins in the last batch.
    last_frame: usize,
    /// What waits unsealed until there is room.
    waiting: Queue,
}

impl Link {
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Appends one frame to the current batch: room for the header, the parts of the plaintext, room for the tag; then
    /// lets `seal` finish it in place. A frame that could not be sealed leaves nothing behind.
    pub(crate) fn push_frame(
        &mut self,
        parts: &[&[u8]],
        seal: impl FnOnce(&mut [u8]) -> Result<(), Drop>,
    ) -> Result<(), Drop> {
        let len = data::OVERHEAD + parts.iter().map(|p| p.len()).sum::<usize>();
        if self.queued + len > MAX_QUEUE {
            return Err(Drop::QueueFull);
        }
        if self.data.back().is_none_or(|batch| batch.len() + len > self.budget) {
            self.data.push_back(BytesMut::with_capacity(self.budget.max(len)));
        }
        let Some(batch) = self.data.back_mut() else { return Err(Drop::QueueFull) };
        let start = batch.len();
        batch.extend_from_slice(&[0; data::PLAINTEXT_OFFSET]);
        for part in parts {
            batch.extend_from_slice(part);
        }
        batch.extend_from_slice(&[0; data::TAG_LEN]);
        let sealed = seal(batch.get_mut(start..).unwrap_or_default());
        match sealed {
            Ok(()) => {
                self.queued += len;
                self.last_frame = start;
            }
            Err(_) => batch.truncate(start),
        }
        sealed
    }

    /// The frame that [`Self::push_frame`] has just queued.
    pub(crate) fn last_frame(&self) -> &[u8] {
        self.data.back().and_then(|batch| batch.get(self.last_frame..)).unwrap_or_default()
    }

    /// Whether a packet would have to wait.
    pub(crate) fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.takes_more()
    }

    /// Whether less is sealed than the connection should get at once.
    pub(crate) fn takes_more(&self) -> bool {
        self.queued < self.budget
    }

    pub(crate) fn waiting(&mut self) -> &mut Queue {
        &mut self.waiting
    }

    /// The largest packet to send in one frame.
    pub(crate) fn packet_limit(&self) -> usize {
        self.budget
    }
}

impl Node {
    /// Asks the shell to dial, and returns the link's name.
    pub(crate) fn dial(&mut self, target: Target) -> LinkId {
        let id = self.new_link(target.clone());
        self.events.push_back(Event::Dial { link: id, target });
        id
    }

    pub(crate) fn new_link(&mut self, target: Target) -> LinkId {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let link = Link {
            target,
            control: VecDeque::new(),
            data: VecDeque::new(),
            queued: 0,
            budget: MAX_BATCH,
            announced: false,
            last_frame: 0,
            waiting: Queue::new(),
        };
        self.links.insert(id, link);
        id
    }

    /// How many bytes should be handed to a link's connection at once: about 2 ms of what it delivers (DESIGN §6). Messages
    /// are made no longer, and TCP super-packets that are longer are sent as several; single packets are what they are.
    pub fn set_link_budget(&mut self, id: LinkId, bytes: usize) {
        if let Some(link) = self.links.get_mut(&id) {
            link.budget = bytes.clamp(MIN_BUDGET, MAX_BATCH);
            self.crowded |= link.is_busy();
        }
    }

    /// Forgets a link and asks the shell to close it.
    pub(crate) fn hang_up(&mut self, id: LinkId, last: Option<Bytes>) {
        if self.links.remove(&id).is_some() {
            self.events.push_back(Event::Close { link: id, last });
        }
    }

    /// Queues whole control frames.
    pub(crate) fn send(&mut self, id: LinkId, frames: impl Into<Bytes>) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let frames = frames.into();
        if link.queued + frames.len() > MAX_CONTROL_QUEUE {
            return self.drops.count(Drop::QueueFull);
        }
        link.queued += frames.len();
        link.control.push_back(frames);
        self.writable(id);
    }

    /// Tells the shell, once until it asks, that there is something to write.
    pub(crate) fn writable(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id)
            && !std::mem::replace(&mut link.announced, true)
        {
            self.events.push_back(Event::Writable(id));
        }
    }

    /// The next WebSocket message for a link, or bytes for a neighbour's stream; call until `None`. Call it when the link can take one, not before: what
    /// waits here is still subject to the queues' bounds, and packets of sparse flows go ahead of others until they are taken.
    pub fn poll_transmit(&mut self, id: LinkId, now: Now) -> Option<Bytes> {
        if self.links.get(&id)?.control.is_empty() {
            self.refill_link(id, now);
        }
        let link = self.links.get_mut(&id)?;
        let message = match link.control.pop_front() {
            Some(message) => message,
            None => loop {
                match link.data.pop_front() {
                    Some(batch) if batch.is_empty() => {}
                    Some(batch) => break batch.freeze(),
                    None => {
                        link.announced = false;
                        return None;
                    }
                }
            },
        };
        link.queued = link.queued.saturating_sub(message.len());
        Some(message)
    }
}
