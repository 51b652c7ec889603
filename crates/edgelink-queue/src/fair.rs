//! FQ-CoDel: fair queueing between flows, each of them under CoDel.

use crate::{Codel, CodelParams};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Flows that are told apart; more share queues.
pub const FLOWS: u16 = 256;
/// What a flow may send in its turn, in bytes: two packets of a 1,500-byte link.
const QUANTUM: isize = 3_028;

/// What a [`FairQueue`] is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FairParams {
    /// Of each flow.
    pub codel: CodelParams,
    /// What has waited for longer is not worth sending.
    pub max_sojourn: Duration,
}

/// Why an item was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// To make room: from the head of the longest flow.
    Full,
    /// Its flow has kept a standing queue for too long.
    Codel,
    /// It has waited for longer than [`FairParams::max_sojourn`].
    TooOld,
}

/// Items of many flows that wait for one outlet.
///
/// Each flow (a number below [`FLOWS`]; larger ones share) has a first-in-first-out queue of its own. They are served in
/// turn by bytes (deficit round robin). A flow that had nothing waiting comes first, once per turn: so what is sent now and then never
/// waits behind what fills the link, and a flow that fills it delays and loses its own items only.
///
/// Memory: about 24 KiB once it has been used, and its items.
#[derive(Debug)]
pub struct FairQueue<T> {
    /// Empty before the first use.
    flows: Vec<Flow<T>>,
    /// Flows whose turn comes first: they had nothing waiting, so they have a turn to their credit.
    new: VecDeque<u16>,
    /// The others, in turn.
    old: VecDeque<u16>,
    len: usize,
    cost: usize,
}

#[derive(Debug)]
struct Flow<T> {
    waiting: VecDeque<Waiting<T>>,
    cost: usize,
    deficit: isize,
    codel: Codel,
    /// In one of the two lines.
    listed: bool,
}

#[derive(Debug)]
struct Waiting<T> {
    item: T,
    cost: usize,
    since: Instant,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { flows: Vec::new(), new: VecDeque::new(), old: VecDeque::new(), len: 0, cost: 0 }
    }
}

impl<T> FairQueue<T> {
    /// An empty queue; it takes memory when first used.
    pub fn new() -> Self {
        Self::default()
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What all that wait cost together: at most the `limit` of the last [`Self::push`].
    pub fn cost(&self) -> usize {
        self.cost
    }

    /// Queues an item that costs so many bytes. If all together would cost more than `limit`, the flow that has most waiting loses
    /// its oldest items to `dropped` until they do not; that may be this one.
    pub fn push(
        &mut self,
        flow: u16,
        item: T,
        cost: usize,
        now: Instant,
        limit: usize,
        dropped: &mut impl FnMut(T, Reason),
    ) {
        if self.flows.is_empty() {
            self.flows.resize_with(usize::from(FLOWS), Flow::new);
        }
        let index = flow % FLOWS;
        let Some(flow) = self.flows.get_mut(usize::from(index)) else { return };
        flow.waiting.push_back(Waiting { item, cost, since: now });
        flow.cost += cost;
        self.len += 1;
        self.cost += cost;
        if !std::mem::replace(&mut flow.listed, true) {
            flow.deficit = QUANTUM;
            self.new.push_back(index);
        }
        while self.cost > limit
            && let Some(longest) = self.longest()
            && let Some(waiting) = self.flows.get_mut(usize::from(longest)).and_then(Flow::take)
        {
            self.len -= 1;
            self.cost -= waiting.cost;
            dropped(waiting.item, Reason::Full);
        }
    }

    /// The next item. What is not worth sending any more goes to `dropped`.
    pub fn pop(&mut self, now: Instant, params: &FairParams, dropped: &mut impl FnMut(T, Reason)) -> Option<T> {
        loop {
            let fresh = !self.new.is_empty();
            let index = *self.new.front().or(self.old.front())?;
            let flow = self.flows.get_mut(usize::from(index))?;
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM;
                self.turn(fresh);
                self.old.push_back(index);
                continue;
            }
            let (before, waiting) = ((flow.waiting.len(), flow.cost), flow.next(now, params, dropped));
            self.len -= before.0 - flow.waiting.len();
            self.cost -= before.1 - flow.cost;
            if let Some(waiting) = waiting {
                flow.deficit -= isize::try_from(waiting.cost).unwrap_or(isize::MAX);
                return Some(waiting.item);
            }
            if fresh && !self.old.is_empty() {
                // Once through the others' line before it counts as new again (RFC 8290 §4.2).
                self.turn(true);
                self.old.push_back(index);
            } else {
                flow.listed = false;
                self.turn(fresh);
            }
        }
    }

    /// Takes everything out, in no particular order.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        let flows = std::mem::take(self).flows;
        flows.into_iter().flat_map(|flow| flow.waiting).map(|waiting| waiting.item)
    }

    fn turn(&mut self, fresh: bool) {
        if fresh {
            self.new.pop_front();
        } else {
            self.old.pop_front();
        }
    }

    fn longest(&self) -> Option<u16> {
        let listed = self.new.iter().chain(&self.old).copied();
        listed.max_by_key(|index| self.flows.get(usize::from(*index)).map_or(0, |flow| flow.cost))
    }
}

impl<T> Flow<T> {
    fn new() -> Self {
        Self { waiting: VecDeque::new(), cost: 0, deficit: 0, codel: Codel::default(), listed: false }
    }

    fn take(&mut self) -> Option<Waiting<T>> {
        let waiting = self.waiting.pop_front()?;
        self.cost -= waiting.cost;
        if self.waiting.is_empty() {
            self.codel.drained();
            // What a burst has taken is given back, what is common is kept.
            if self.waiting.capacity() > 64 {
                self.waiting = VecDeque::new();
            }
        }
        Some(waiting)
    }

    /// The oldest item that is still worth sending.
    fn next(&mut self, now: Instant, params: &FairParams, dropped: &mut impl FnMut(T, Reason)) -> Option<Waiting<T>> {
        loop {
            let head = self.waiting.front()?;
            let sojourn = now.saturating_duration_since(head.since);
            let behind = self.cost - head.cost;
            let reason = if sojourn > params.max_sojourn {
                Reason::TooOld
            } else if self.codel.drops(&params.codel, now, sojourn, behind) {
                Reason::Codel
            } else {
                return self.take();
            };
            if let Some(waiting) = self.take() {
                dropped(waiting.item, reason);
            }
        }
    }
}
