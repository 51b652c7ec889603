//! The data lane of a mesh link, which carries many flows: FQ-CoDel (RFC 8290).
//!
//! Runs are sorted into [`BUCKETS`] by a hash of source and destination. Each bucket is a queue with a CoDel of its own;
//! they are served in turn by bytes (deficit round robin), those that have just become busy first. So a bulk flow that
//! fills the link delays and loses its own frames, not those of the other pairs that share the link. The whole lane is
//! bounded ([`Limits::mesh_queue`]); when it is full the fattest bucket pays.

use super::{Fifo, RUN_OVERHEAD, Run, first_frame, frames_in};
use crate::codel::Codel;
use crate::limits::Limits;
use crate::stats::{DropReason, Drops};
use bytes::Bytes;
use edgelink_model::NodeId;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// Flows that are told apart on one link; more share buckets.
pub(crate) const BUCKETS: u16 = 1_024;
/// What a flow may send in its turn, in bytes.
const QUANTUM: isize = 16 << 10;

/// The bucket of a pair of nodes.
pub(crate) fn bucket(src: NodeId, dst: NodeId) -> u16 {
    let key = (u64::from(src.0) << 32 | u64::from(dst.0)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
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
}

#[derive(Debug)]
struct Flow {
    fifo: Fifo,
    deficit: isize,
}

impl Flows {
    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cost == 0
    }

    pub(super) fn push(&mut self, run: Run, free: usize, limits: &Limits, drops: &mut Drops) -> bool {
        let cost = run.frames.len() + RUN_OVERHEAD;
        if cost > limits.mesh_queue {
            drops.add(DropReason::QueueFull, frames_in(&run.frames));
            return false;
        }
        // Ends: each round empties a queue by half, or altogether.
        while self.cost + cost > limits.mesh_queue {
            self.halve_the_fattest(drops);
        }
        let (key, new, held) = (run.flow, &mut self.new, self.held);
        let flow = self.flows.entry(key).or_insert_with(|| {
            new.push_back(key);
            Flow { fifo: Fifo::new(Some(Codel::default())), deficit: QUANTUM }
        });
        // The bound that a lane sets itself (leave to others as much as one takes) is the whole link's.
        let others = held - flow.fifo.held;
        let before = (flow.fifo.cost(), flow.fifo.held);
        let accepted = flow.fifo.push(run, limits.data_queue, free.saturating_sub(others), limits, drops);
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
        loop {
            let fresh = !self.new.is_empty();
            let Some(&key) = self.new.front().or(self.old.front()) else { break };
            let Some(flow) = self.flows.get_mut(&key) else {
                self.turn(fresh);
                continue;
            };
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM;
                self.turn(fresh);
                self.old.push_back(key);
                continue;
            }
            let before = (flow.fifo.cost(), flow.fifo.held);
            flow.fifo.thin(now, limits, drops);
            let first = flow.fifo.runs.front().map(|run| first_frame(&run.frames));
            let room = max.saturating_sub(taken);
            let blocked = first.is_some_and(|first| taken > 0 && first > room);
            if let Some(first) = first
                && !blocked
            {
                // A flow with credit may send one frame beyond it, and pays with its next turn.
                let burst = first.max(flow.deficit.unsigned_abs()).min(room.max(first));
                let sent = flow.fifo.take(burst, 0, now, limits, out, drops);
                flow.deficit -= sent as isize;
                taken += sent;
            }
            let after = (flow.fifo.cost(), flow.fifo.held);
            let drained = flow.fifo.runs.is_empty();
            self.account(before, after);
            if blocked {
                break;
            }
            if drained {
                self.turn(fresh);
                if fresh {
                    // Once through the others' line before it counts as new again (RFC 8290 §4.2).
                    self.old.push_back(key);
                } else {
                    self.flows.remove(&key);
                }
            } else if taken >= max {
                break;
            }
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

    /// Drops from the head of the fattest bucket until half of it is gone (RFC 8290 §4.1.3 drops in batches, so that the
    /// search for it costs little per frame).
    fn halve_the_fattest(&mut self, drops: &mut Drops) {
        let Some(flow) = self.flows.values_mut().max_by_key(|flow| flow.fifo.cost()) else { return };
        let before = (flow.fifo.cost(), flow.fifo.held);
        let mut dropped = 0;
        while flow.fifo.cost() > before.0 / 2 {
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
