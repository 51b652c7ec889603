//! What waits for one receiver: control and signalling ahead of data, each bounded in bytes and in time.
//!
//! The unit of storage is a *run*: whole frames back to back in one `Bytes`, usually a slice of the message that they
//! arrived in. The unit of dropping is a frame, always the oldest: a slow receiver loses what it would get too late.

mod flows;

pub(crate) use flows::bucket;

use crate::limits::Limits;
use crate::stats::{DropReason, Drops};
use bytes::{Buf, Bytes};
use edgelink_queue::{Codel, FLOOR};
use edgelink_wire::HEADER_LEN;
use flows::Flows;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What a run counts for beside its bytes: its slot (a ring buffer grows to at most twice what it holds) and the
/// buffer's bookkeeping.
pub(crate) const RUN_OVERHEAD: usize = 192;
/// An emptied lane keeps no more slots than this.
pub(crate) const KEPT_RUNS: usize = 64;

const _: () = assert!(2 * size_of::<Run>() + 64 <= RUN_OVERHEAD);

/// Frames on their way to one receiver. `frames` is never empty and consists of whole frames.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) frames: Bytes,
    /// Bytes of the buffer that `frames` keeps alive; at least its length.
    pub(crate) buffer: usize,
    pub(crate) queued: Instant,
    /// The relay's own word (AUTH_RESPONSE, ERROR, PONG): it does not age.
    pub(crate) own: bool,
    /// Which flow of a mesh link it belongs to ([`bucket`]).
    pub(crate) flow: u16,
}

impl Run {
    fn held(&self) -> usize {
        self.buffer + RUN_OVERHEAD
    }
}

/// Which of a receiver's two lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Control,
    Data,
}

/// Everything that waits for one receiver.
#[derive(Debug)]
pub(crate) struct Queue {
    control: Fifo,
    data: Flows,
    /// Of a mesh link, which carries the traffic of many.
    mesh: bool,
    drained: Drained,
}

impl Queue {
    /// The queue of a node's connection.
    pub(crate) fn new() -> Self {
        Self { control: Fifo::new(None), data: Flows::default(), mesh: false, drained: Drained::default() }
    }

    /// The queue of a mesh link.
    pub(crate) fn mesh() -> Self {
        Self { mesh: true, ..Self::new() }
    }

    /// Bytes of memory that the queued frames keep alive.
    pub(crate) fn held(&self) -> usize {
        self.control.held + self.data.held()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.control.runs.is_empty() && self.data.is_empty()
    }

    /// Queues a run, dropping the oldest frames of its lane to make room; tells whether there was room. `free` is what
    /// is left of the budget of all queues.
    pub(crate) fn push(&mut self, lane: Lane, run: Run, free: usize, limits: &Limits, drops: &mut Drops) -> bool {
        match (lane, self.mesh) {
            (Lane::Control, false) => self.control.push(run, limits.control_queue, free, limits, drops),
            (Lane::Control, true) => self.control.push(run, limits.mesh_control_queue, free, limits, drops),
            (Lane::Data, false) => {
                let limit = self.drained.bound(run.queued, limits);
                self.data.push(run, (limit, limit), free, limits, drops)
            }
            (Lane::Data, true) => {
                let most = self.drained.bound(run.queued, limits);
                self.data.push(run, (limits.mesh_queue.max(most), most), free, limits, drops)
            }
        }
    }

    /// Moves up to `max` bytes of whole frames to `out`, and at least one frame if there is any.
    pub(crate) fn take(
        &mut self,
        max: usize,
        now: Instant,
        limits: &Limits,
        out: &mut Vec<Bytes>,
        drops: &mut Drops,
    ) -> usize {
        let taken = self.control.take(max, 0, now, limits, out, drops);
        let taken = self.data.take(max, taken, now, limits, out, drops);
        self.drained.note(taken, now);
        taken
    }

    /// Forgets everything but the relay's own words, which are answers that still have to be read.
    pub(crate) fn abandon(&mut self, drops: &mut Drops) {
        let data = self.data.clear();
        drops.add(DropReason::Closed, data + self.control.keep(|run| run.own));
    }

    /// The waiting data goes to the receiver's new connection.
    pub(crate) fn inherit(&mut self, former: &mut Self) {
        std::mem::swap(&mut self.data, &mut former.data);
    }
}

/// How fast a receiver takes what is for it, so that one that takes much may have more than [`Limits::data_queue`] waiting.
///
/// A connection that has lost a segment hands over nothing for a round trip and then all at once: a sender's to us as well as
/// ours to the receiver. What a fast flow has in flight then waits here, in bursts that are no standing queue; CoDel
/// tells one from the other, and the bound must not come before it.
#[derive(Debug, Default)]
struct Drained {
    /// Bytes taken in the present window.
    taken: usize,
    began: Option<Instant>,
    /// Most that was taken in a window of the present time and of the one before.
    fastest: [usize; 2],
    since: Option<Instant>,
}

impl Drained {
    /// Long enough that a pause of the scheduler does not look like a slow receiver.
    const WINDOW: Duration = Duration::from_millis(50);
    /// What may wait: what is taken in so many windows, 300 ms.
    const WINDOWS: usize = 6;
    /// A rate is remembered for at least so long, and at most twice that: longer than a connection takes to mend a loss.
    const MEMORY: Duration = Duration::from_secs(1);

    fn note(&mut self, taken: usize, now: Instant) {
        self.turn(now);
        self.taken = self.taken.saturating_add(taken);
    }

    /// How many bytes of data may wait.
    fn bound(&mut self, now: Instant, limits: &Limits) -> usize {
        self.turn(now);
        let fastest = self.fastest.into_iter().fold(self.taken, usize::max);
        fastest.saturating_mul(Self::WINDOWS).clamp(limits.data_queue, limits.fast_data_queue.max(limits.data_queue))
    }

    fn turn(&mut self, now: Instant) {
        if now.saturating_duration_since(*self.began.get_or_insert(now)) >= Self::WINDOW {
            let [present, _] = &mut self.fastest;
            *present = (*present).max(std::mem::take(&mut self.taken));
            self.began = Some(now);
        }
        let since = now.saturating_duration_since(*self.since.get_or_insert(now));
        if since >= Self::MEMORY {
            let [present, _] = self.fastest;
            self.fastest = if since < 2 * Self::MEMORY { [0, present] } else { [0, 0] };
            self.since = Some(now);
        }
    }
}

/// One lane.
#[derive(Debug)]
struct Fifo {
    runs: VecDeque<Run>,
    /// Sum of the runs' lengths, and of what they hold.
    bytes: usize,
    held: usize,
    codel: Option<Codel>,
}

impl Fifo {
    fn new(codel: Option<Codel>) -> Self {
        Self { runs: VecDeque::new(), bytes: 0, held: 0, codel }
    }

    /// `limit` bounds what the lane costs. `free` is how much memory all queues may still keep alive: the lane gets no
    /// more of it than it leaves to others, so that however many are full, there is room for one more.
    fn push(&mut self, run: Run, limit: usize, free: usize, limits: &Limits, drops: &mut Drops) -> bool {
        let before = self.held;
        self.drop_aged(run.queued, limits, drops);
        let (cost, held) = (run.frames.len() + RUN_OVERHEAD, run.held());
        // Not even an emptied lane would have room: keep what there is.
        if cost > limit || held > free + before {
            let reason = if cost > limit { DropReason::QueueFull } else { DropReason::Budget };
            drops.add(reason, frames_in(&run.frames));
            return false;
        }
        loop {
            let full = self.cost() + cost > limit;
            if !full && self.held + held <= free + (before - self.held) {
                break;
            }
            // Ends: an emptied lane has room, as just found.
            self.drop_head();
            drops.add(if full { DropReason::QueueFull } else { DropReason::Budget }, 1);
        }
        self.append(run);
        true
    }

    fn append(&mut self, run: Run) {
        self.bytes += run.frames.len();
        self.held += run.held();
        self.runs.push_back(run);
    }

    fn cost(&self) -> usize {
        self.bytes + self.runs.len() * RUN_OVERHEAD
    }

    fn take(
        &mut self,
        max: usize,
        mut taken: usize,
        now: Instant,
        limits: &Limits,
        out: &mut Vec<Bytes>,
        drops: &mut Drops,
    ) -> usize {
        loop {
            let room = max.saturating_sub(taken);
            if taken > 0 && self.runs.front().is_some_and(|run| first_frame(&run.frames) > room) {
                break;
            }
            self.thin(now, limits, drops);
            let Some(run) = self.runs.front_mut() else { break };
            let mut len = whole_frames(&run.frames, room);
            if len == 0 {
                if taken > 0 {
                    break;
                }
                len = first_frame(&run.frames);
            }
            out.push(run.frames.split_to(len));
            self.shorten(len);
            taken += len;
        }
        if self.runs.is_empty() && self.runs.capacity() > KEPT_RUNS {
            self.runs.shrink_to(KEPT_RUNS);
        }
        taken
    }

    /// Drops what is too old at the head, then what CoDel wants dropped.
    fn thin(&mut self, now: Instant, limits: &Limits, drops: &mut Drops) {
        self.drop_aged(now, limits, drops);
        while let Some(head) = self.runs.front() {
            let behind = self.bytes - first_frame(&head.frames);
            let sojourn = now.saturating_duration_since(head.queued);
            let Some(codel) = &mut self.codel else { break };
            if !codel.drops(&limits.codel(), now, sojourn, behind) {
                break;
            }
            self.drop_head();
            drops.add(DropReason::Codel, 1);
        }
    }

    fn drop_aged(&mut self, now: Instant, limits: &Limits, drops: &mut Drops) {
        while let Some(head) = self.runs.front() {
            if head.own || now.saturating_duration_since(head.queued) <= limits.max_sojourn {
                break;
            }
            drops.add(DropReason::TooOld, frames_in(&head.frames));
            self.drop_run();
        }
    }

    fn drop_head(&mut self) {
        let Some(run) = self.runs.front_mut() else { return };
        let len = first_frame(&run.frames);
        run.frames.advance(len);
        self.shorten(len);
    }

    fn drop_run(&mut self) {
        let Some(run) = self.runs.front_mut() else { return };
        let len = std::mem::take(&mut run.frames).len();
        self.shorten(len);
    }

    /// `len` bytes have just been taken from the head run.
    fn shorten(&mut self, len: usize) {
        self.bytes -= len;
        if let Some(run) = self.runs.pop_front_if(|run| run.frames.is_empty()) {
            self.held -= run.held();
        }
        if self.bytes <= FLOOR
            && let Some(codel) = &mut self.codel
        {
            codel.drained();
        }
    }

    /// Drops all runs but those to `keep`, and tells how many frames they had.
    fn keep(&mut self, keep: impl Fn(&Run) -> bool) -> u64 {
        let mut dropped = 0;
        (self.bytes, self.held) = (0, 0);
        for run in std::mem::take(&mut self.runs) {
            if keep(&run) {
                self.append(run);
            } else {
                dropped += frames_in(&run.frames);
            }
        }
        dropped
    }
}

/// Length of the first frame; never more than what is there.
fn first_frame(frames: &[u8]) -> usize {
    match frames.first_chunk() {
        Some(&[_, _, _, high, low]) => frames.len().min(HEADER_LEN + usize::from(u16::from_be_bytes([high, low]))),
        None => frames.len(),
    }
}

/// Length of as many whole frames as `room` bytes can take.
fn whole_frames(frames: &[u8], room: usize) -> usize {
    if frames.len() <= room {
        return frames.len();
    }
    let mut end = 0;
    loop {
        let next = end + first_frame(frames.get(end..).unwrap_or_default());
        if next > room || next == end {
            return end;
        }
        end = next;
    }
}

fn frames_in(mut frames: &[u8]) -> u64 {
    let mut count = 0;
    while !frames.is_empty() {
        frames = frames.get(first_frame(frames)..).unwrap_or_default();
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests;
