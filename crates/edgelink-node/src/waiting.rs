//! Packets from the TUN that wait because the way out of here is busy: fair between flows, each under CoDel (DESIGN §6).
//!
//! They wait unsealed, so that what is sealed leaves in the order of its counters, and before the kernel's own queues,
//! which know no flows. The TUN is always read: its queue is one line for everything.

use crate::link::LinkId;
use crate::paths::Exit;
use crate::{Drop, Node};
use edgelink_model::{NodeId, Now};
use edgelink_queue::{CodelParams, FLOWS, FairParams, FairQueue, Reason};
use edgelink_wire::Flags;
use std::time::{Duration, Instant};

/// DESIGN §6.
const PARAMS: FairParams = FairParams {
    codel: CodelParams { target: Duration::from_millis(15), interval: Duration::from_millis(200) },
    max_sojourn: Duration::from_secs(1),
};
/// Bound of what waits for the UDP sockets, in bytes. A packet of at least [`KEEP`] bytes holds the buffer that it was read
/// into, up to twice its size; so memory is bounded by twice this.
pub(crate) const MAX_WAITING: usize = 4 << 20;
/// The same for a connection. It mends a loss for a round trip, and BBR pauses for 200 ms now and then; what comes
/// meanwhile is a burst and no standing queue, which CoDel shortens.
const MAX_WAITING_FOR_LINK: usize = 8 << 20;
/// A slower connection may have less waiting: this many budgets, 300 ms of what it delivers.
const BUDGETS: usize = 150;
/// … but at least this.
const MIN_WAITING: usize = 128 << 10;
/// What a packet costs beside its bytes.
const OVERHEAD: usize = 128;
/// A packet at least so long keeps the buffer that it was read into; a shorter one is copied.
const KEEP: usize = 32 << 10;
/// Buffers kept for later.
const SPARE: usize = 16;
/// Flows that have sent at most so many bytes, and no more than [`SPARSE_RATE`] since, are sparse.
const SPARSE_BURST: u64 = 16 << 10;
/// Bytes per second.
const SPARSE_RATE: u64 = 64 << 10;

/// The packets that wait for one outlet.
pub(crate) type Queue = FairQueue<Packet>;

/// One packet that waits.
#[derive(Debug)]
pub(crate) struct Packet {
    peer: NodeId,
    /// The virtio header and the packet fill the first `len` bytes.
    frame: Vec<u8>,
    len: usize,
}

/// Where a packet that was read would have to wait.
pub(crate) struct Wait {
    pub(crate) exit: Exit,
    pub(crate) peer: NodeId,
    pub(crate) flow: u16,
}

/// Buffers of packets that have left.
#[derive(Debug, Default)]
pub(crate) struct Spare(Vec<Vec<u8>>);

impl Spare {
    fn put(&mut self, frame: Vec<u8>) {
        if frame.len() > KEEP && self.0.len() < SPARE {
            self.0.push(frame);
        }
    }
}

/// How many bytes may wait for a connection with this budget.
fn limit_of(budget: usize) -> usize {
    (budget * BUDGETS).clamp(MIN_WAITING, MAX_WAITING_FOR_LINK)
}

impl Node {
    /// Queues a packet whose outlet is busy.
    pub(crate) fn wait(&mut self, wait: &Wait, frame: Vec<u8>, len: usize, now: Now) {
        let (queue, limit) = match wait.exit {
            Exit::Link(id) => match self.links.get_mut(&id) {
                Some(link) => {
                    let limit = limit_of(link.packet_limit());
                    (link.waiting(), limit)
                }
                None => return self.drops.count(Drop::NoPath),
            },
            Exit::Udp(..) => (&mut self.direct.waiting, MAX_WAITING),
        };
        let (drops, spare) = (&mut self.drops, &mut self.spare);
        let packet = Packet { peer: wait.peer, frame, len };
        queue.push(wait.flow, packet, len + OVERHEAD, now.mono, limit, &mut |packet: Packet, reason| {
            drops.count(reason.into());
            spare.put(packet.frame);
        });
        self.crowded = true;
        match wait.exit {
            Exit::Link(id) => self.writable(id),
            Exit::Udp(..) => self.udp_queued(),
        }
    }

    /// A long packet keeps the buffer that it was read into, which gets another; a short one is copied.
    pub(crate) fn take_frame(&mut self, buffer: &mut Vec<u8>, len: usize) -> Vec<u8> {
        if len < KEEP {
            return buffer.get(..len).unwrap_or_default().to_vec();
        }
        let size = buffer.len();
        let mut other = self.spare.0.pop().unwrap_or_default();
        other.resize(size, 0);
        std::mem::replace(buffer, other)
    }

    /// Seals what waits for a link while the link takes it.
    pub(crate) fn refill_link(&mut self, id: LinkId, now: Now) {
        while let Some(link) = self.links.get_mut(&id)
            && link.takes_more()
        {
            let (drops, spare) = (&mut self.drops, &mut self.spare);
            let Some(packet) = link.waiting().pop(now.mono, &PARAMS, &mut |packet: Packet, reason| {
                drops.count(reason.into());
                spare.put(packet.frame);
            }) else {
                return;
            };
            self.send_waiting(packet, now);
        }
    }

    /// Seals what waits for the sockets while they take it.
    pub(crate) fn refill_udp(&mut self, now: Now) {
        while self.direct.queue.takes_more() {
            let (drops, spare) = (&mut self.drops, &mut self.spare);
            let Some(packet) = self.direct.waiting.pop(now.mono, &PARAMS, &mut |packet: Packet, reason| {
                drops.count(reason.into());
                spare.put(packet.frame);
            }) else {
                return;
            };
            self.send_waiting(packet, now);
        }
    }

    /// What waited for a connection that is gone takes the other ways.
    pub(crate) fn send_orphans(&mut self, mut orphans: Queue, now: Now) {
        orphans.drain().for_each(|packet| self.send_waiting(packet, now));
    }

    fn send_waiting(&mut self, packet: Packet, now: Now) {
        let Packet { peer, mut frame, len } = packet;
        let bytes = frame.get_mut(..len).unwrap_or_default();
        let ip = bytes.get(edgelink_wire::virtio::LEN..).and_then(edgelink_wire::packet::parse).ok_or(Drop::NotIp);
        if let Err(reason) = ip.and_then(|ip| self.send_packet(peer, &ip, bytes, now)) {
            self.drops.count(reason);
        }
        self.spare.put(frame);
    }
}

impl From<Reason> for Drop {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Full => Self::QueueFull,
            Reason::Codel => Self::Codel,
            Reason::TooOld => Self::TooOld,
        }
    }
}

/// Tells sparse flows from others, for the label that relays queue by: sparse ones are 0, the others one of seven.
///
/// A flow keeps its label while it sends, so that none overtakes itself: it is sparse again only when it has been silent
/// for longer than anything waits in a relay.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    /// By flow; empty before the first use.
    meters: Vec<Meter>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    last: Option<Instant>,
    level: u64,
    bulk: bool,
}

/// As long as anything waits in a relay.
const FORGET: Duration = Duration::from_secs(1);

impl Labels {
    /// The label of a packet of so many bytes.
    pub(crate) fn label(&mut self, flow: u16, bytes: usize, now: Instant) -> Flags {
        if self.meters.is_empty() {
            self.meters.resize(usize::from(FLOWS), Meter::default());
        }
        let Some(meter) = self.meters.get_mut(usize::from(flow % FLOWS)) else { return Flags::NONE };
        let since = meter.last.map_or(FORGET, |last| now.saturating_duration_since(last));
        meter.last = Some(now);
        if since >= FORGET {
            *meter = Meter { last: Some(now), ..Meter::default() };
        }
        if !meter.bulk {
            let drained = u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_mul(SPARSE_RATE) / 1_000_000;
            meter.level = meter.level.saturating_sub(drained).saturating_add(bytes as u64);
            meter.bulk = meter.level > SPARSE_BURST;
        }
        if meter.bulk { Flags::of_flow(1 + (flow % u16::from(Flags::LABELS - 1)) as u8) } else { Flags::NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any origin will do")]
    fn origin() -> Instant {
        Instant::now()
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pings_and_calls_are_sparse_and_transfers_are_not() {
        let start = origin();
        let mut labels = Labels::default();
        for n in 0..1_000_u32 {
            // A ping every 50 ms, and a call of 50 packets of 200 bytes each second.
            assert_eq!(labels.label(1, 84, start + 50 * MS * n), Flags::NONE);
            assert_eq!(labels.label(2, 200, start + 20 * MS * n), Flags::NONE);
        }
        let first = (0..100_u32).position(|n| labels.label(3, 1_400, start + MS * n) != Flags::NONE);
        assert_eq!(first, Some(12), "16 KiB of a transfer go before it is found out");
    }

    #[test]
    fn a_flow_keeps_its_label_until_it_has_been_silent() {
        let start = origin();
        let mut labels = Labels::default();
        let bulk = labels.label(300, 60_000, start);
        assert_eq!((bulk.label(), bulk), (bulk, Flags::of_flow(1 + (300 % 7) as u8)));
        assert_eq!(labels.label(300, 40, start + 999 * MS), bulk);
        assert_eq!(labels.label(300, 40, start + 1_998 * MS), bulk);
        assert_eq!(labels.label(300, 40, start + 2_998 * MS), Flags::NONE);
    }

    #[test]
    fn what_may_wait_follows_the_connection() {
        let limits = [800, 5_000, 192 << 10].map(limit_of);
        assert_eq!(limits, [MIN_WAITING, 750_000, MAX_WAITING_FOR_LINK]);
    }
}
