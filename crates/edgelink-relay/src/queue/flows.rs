//! The data lane of a connection: FQ-CoDel (RFC 8290).
//!
//! Runs are sorted into [`BUCKETS`] by a hash of source, destination and the sender's flow label. Each bucket is a queue
//! with a CoDel of its own; they are served in turn by bytes (deficit round robin), those that have just become busy
//! first. So a bulk flow that fills the connection delays and loses its own frames, not those of the other pairs, nor of
//! the other flows of its pair. The whole lane is bounded; when it is full the fattest bucket pays.

use super::{Fifo, RUN_OVERHEAD, Run, first_frame, frames_in};
use crate::limits::Limits;
use crate::stats::{DropReason, Drops};
use bytes::Bytes;
use edgelink_model::NodeId;
use edgelink_queue::Codel;
use edgelink_wire::Flags;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// Flows that are told apart on one link; more share buckets.
pub(crate) const BUCKETS: u16 = 1_024;
/// What a flow may send in its turn, in bytes: a quarter of what is taken at once, within these bounds.
const MIN_QUANTUM: usize = 8 << 10;
const MAX_QUANTUM: usize = 64 << 10;
/// What a bucket in use costs beside its runs: its entry and its first slots.
pub(super) const FLOW_OVERHEAD: usize = 640;
/// While so many are in use, one that pays for a full lane pays half of what it has: the search costs little per frame then.
const MANY: usize = 16;

const _: () = assert!(2 * size_of::<(u16, Flow)>() + 4 * size_of::<Run>() <= FLOW_OVERHEAD);

/// The bucket of a pair of nodes and a flow between them.
pub(crate) fn bucket(src: NodeId, dst: NodeId, label: Flags) -> u16 {
    let pair = u64::from(src.0) << 32 | u64::from(dst.0);
    let key = (pair ^ u64::from(label.0) << 56).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (key >> 54) as u16 % BUCKETS
}

#[derive(Debug, Default)]
pub(super) struct Flows {
    flows: HashMap<u16, Flow>,
    /// Buckets whose turn comes first: they were empty until now, so they have a turn to their credit.
    new: VecDeque<u16>,
    /// The others, in turn.
    old: VecDeque<u16>,
    cost: usize,
    held: usize,
    /// The bucket that was emptied last: often the next one in use, with what CoDel knows of it.
    last: Option<(u16, Flow)>,
}

#[derive(Debug)]
struct Flow {
    fifo: Fifo,
    deficit: isize,
}

impl Flows {
    pub(super) fn held(&self) -> usize {
        self.held + self.flows.len() * FLOW_OVERHEAD
    }

    /// What waits in a bucket.
    #[cfg(test)]
    pub(super) fn fifo(&self, bucket: u16) -> Option<&Fifo> {
        self.flows.get(&bucket).map(|flow| &flow.fifo)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cost == 0
    }

    /// Queues a run in a lane that may cost `limit` in all, of which one flow may have `most`.
    pub(super) fn push(
        &mut self,
        run: Run,
        (limit, most): (usize, usize),
        free: usize,
        limits: &Limits,
        drops: &mut Drops,
    ) -> bool {
        let cost = run.frames.len() + RUN_OVERHEAD;
        if cost > limit {
            drops.add(DropReason::QueueFull, frames_in(&run.frames));
            return false;
        }
        // Aged first: what is not worth sending pays before what is.
        if let Some(flow) = self.flows.get_mut(&run.flow) {
            let before = (flow.fifo.cost(), flow.fifo.held);
            flow.fifo.drop_aged(run.queued, limits, drops);
            let after = (flow.fifo.cost(), flow.fifo.held);
            self.account(before, after);
        }
        while self.cost + cost > limit {
            self.thin_the_fattest(self.cost + cost - limit, drops);
        }
        let (key, new) = (run.flow, &mut self.new);
        let mut free = free;
        if !self.flows.contains_key(&key) {
            // The bucket itself, and the frame.
            if free < FLOW_OVERHEAD {
                drops.add(DropReason::Budget, frames_in(&run.frames));
                return false;
            }
            free -= FLOW_OVERHEAD;
        }
        let last = &mut self.last;
        let flow = self.flows.entry(key).or_insert_with(|| {
            new.push_back(key);
            let former = last.take_if(|(former, _)| *former == key).map(|(_, flow)| flow.fifo);
            Flow { fifo: former.unwrap_or_else(|| Fifo::new(Some(Codel::default()))), deficit: MIN_QUANTUM as isize }
        });
        // The bound that a lane sets itself (leave to others as much as one takes) is the whole connection's.
        let others = self.held - flow.fifo.held;
        let before = (flow.fifo.cost(), flow.fifo.held);
        let accepted = flow.fifo.push(run, most, free.saturating_sub(others), limits, drops);
        let after = (flow.fifo.cost(), flow.fifo.held);
        self.account(before, after);
        accepted
    }

    pub(super) fn take(
        &mut self,
        max: usize,
        mut taken: usize,
        now: Instant,
        limits: &Limits,
        out: &mut Vec<Bytes>,
        drops: &mut Drops,
    ) -> usize {
        let quantum = (max / 4).clamp(MIN_QUANTUM, MAX_QUANTUM) as isize;
        loop {
            let (fresh, alone) = (!self.new.is_empty(), self.new.len() + self.old.len() == 1);
            let Some(&key) = self.new.front().or(self.old.front()) else { break };
            let Some(flow) = self.flows.get_mut(&key) else {
                self.turn(fresh);
                continue;
            };
            if flow.deficit <= 0 && !alone {
                flow.deficit += quantum;
                self.turn(fresh);
                self.old.push_back(key);
                continue;
            }
            let before = (flow.fifo.cost(), flow.fifo.held);
            let first = flow.fifo.runs.front().map(|run| first_frame(&run.frames));
            let room = max.saturating_sub(taken);
            let blocked = first.is_some_and(|first| taken > 0 && first > room);
            if let Some(first) = first
                && !blocked
            {
                // A flow with credit may send one frame beyond it, and pays with its next turn. One that is alone owes nobody.
                let credit = if alone { room } else { flow.deficit.unsigned_abs().min(room) };
                let all = flow.fifo.take(taken + credit.max(first), taken, now, limits, out, drops);
                flow.deficit = if alone { 0 } else { flow.deficit - (all - taken) as isize };
                taken = all;
            }
            let after = (flow.fifo.cost(), flow.fifo.held);
            let drained = flow.fifo.runs.is_empty();
            self.account(before, after);
            if blocked {
                break;
            }
            if drained {
                self.turn(fresh);
                if fresh && !self.old.is_empty() {
                    // Once through the others' line before it counts as new again (RFC 8290 §4.2).
                    self.old.push_back(key);
                } else if let Some(flow) = self.flows.remove(&key) {
                    self.last = Some((key, flow));
                }
            } else if taken >= max {
                break;
            }
        }
        if self.flows.is_empty() && self.flows.capacity() > 2 * MANY {
            *self = Self { last: self.last.take(), ..Self::default() };
        }
        taken
    }

    /// Forgets everything, and tells how many frames that were.
    pub(super) fn clear(&mut self) -> u64 {
        let frames = self.flows.values_mut().map(|flow| flow.fifo.keep(|_| false)).sum();
        *self = Self::default();
        frames
    }

    fn turn(&mut self, fresh: bool) {
        if fresh {
            self.new.pop_front()
        } else {
            self.old.pop_front()
        };
    }

    fn account(&mut self, before: (usize, usize), after: (usize, usize)) {
        self.cost = self.cost - before.0 + after.0;
        self.held = self.held - before.1 + after.1;
    }

    /// Drops from the head of the fattest bucket: at least one frame, about `excess` bytes, or half of it among many (RFC 8290
    /// §4.1.3 drops in batches, so that the search for it costs little per frame).
    fn thin_the_fattest(&mut self, excess: usize, drops: &mut Drops) {
        let many = self.flows.len() > MANY;
        let mut costs = self.flows.values().map(|flow| flow.fifo.cost());
        let (first, second) = costs
            .by_ref()
            .fold((0, 0), |(first, second), cost| if cost > first { (cost, first) } else { (first, second.max(cost)) });
        let Some(flow) = self.flows.values_mut().find(|flow| flow.fifo.cost() == first) else { return };
        let before = (flow.fifo.cost(), flow.fifo.held);
        // Down to what is asked for, but not below the next fattest.
        let until = if many { before.0 / 2 } else { before.0.saturating_sub(excess).max(second.min(before.0 - 1)) };
        let mut dropped = 0;
        while flow.fifo.cost() > until && !flow.fifo.runs.is_empty() {
            flow.fifo.drop_head();
            dropped += 1;
        }
        let after = (flow.fifo.cost(), flow.fifo.held);
        self.account(before, after);
        drops.add(DropReason::QueueFull, dropped);
    }
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;
