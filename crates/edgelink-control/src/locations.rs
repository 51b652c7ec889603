//! Which node is at which relays: a relay's word, together with the node's own (DESIGN §6).
//!
//! A relay says who is connected to it (SERVER_NODE_LOC on `/ws/server`); a node says to which relays it is connected
//! (LATENCY_REPORT on `/ws/control`). What counts:
//! - A node that has not reported yet on its present control connection, or has none: the relay's word suffices, or
//!   nodes could not be reached while they are away from the controller.
//! - A report that names the relay confirms its claim. A report that does not name it, and comes more than
//!   [`PROVISIONAL`] after the claim, voids the claim, and later ones of that relay too, until a report names it. So a
//!   relay that lies about a node that is there is believed for one report at most.
//! - The word of a relay whose channel is lost stays in force for [`KEPT`].

use edgelink_model::{NodeId, ServerId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A fresh claim may be newer than the report that is under way.
const PROVISIONAL: Duration = Duration::from_secs(5);
/// How long a relay's word outlives its channel.
pub(crate) const KEPT: Duration = Duration::from_secs(90);

#[derive(Debug, Default)]
pub(crate) struct Locations {
    nodes: BTreeMap<NodeId, Where>,
    /// Nodes whose place may have changed since [`Locations::take_dirty`].
    dirty: BTreeSet<NodeId>,
}

#[derive(Debug, Default)]
struct Where {
    claims: BTreeMap<ServerId, Instant>,
    /// Relays that the node said it is not at although they claimed it.
    void: BTreeSet<ServerId>,
}

impl Locations {
    /// `relay` says that it has the node.
    pub(crate) fn claim(&mut self, relay: ServerId, node: NodeId, now: Instant) {
        if self.nodes.entry(node).or_default().claims.insert(relay, now).is_none() {
            self.dirty.insert(node);
        }
    }

    /// `relay` says that it does not have it any more.
    pub(crate) fn withdraw(&mut self, relay: ServerId, node: NodeId) {
        let Some(place) = self.nodes.get_mut(&node) else { return };
        if place.claims.remove(&relay).is_some() {
            self.dirty.insert(node);
        }
        self.tidy(node);
    }

    /// Everything that `relay` has.
    pub(crate) fn claim_all(&mut self, relay: ServerId, nodes: &BTreeSet<NodeId>, now: Instant) {
        for gone in self.claimed_by(relay).into_iter().filter(|node| !nodes.contains(node)) {
            self.withdraw(relay, gone);
        }
        nodes.iter().for_each(|node| self.claim(relay, *node, now));
    }

    /// The relay is gone for good, or for too long.
    pub(crate) fn withdraw_all(&mut self, relay: ServerId) {
        self.claimed_by(relay).into_iter().for_each(|node| self.withdraw(relay, node));
    }

    /// The node's own word.
    pub(crate) fn report(&mut self, node: NodeId, connected: &BTreeSet<ServerId>, now: Instant) {
        let Some(place) = self.nodes.get_mut(&node) else { return };
        let before = place.void.clone();
        place.void.retain(|relay| !connected.contains(relay));
        for (relay, since) in &place.claims {
            if !connected.contains(relay) && now.saturating_duration_since(*since) > PROVISIONAL {
                place.void.insert(*relay);
            }
        }
        if before != place.void {
            self.dirty.insert(node);
        }
        self.tidy(node);
    }

    /// The node's control connection ended: its former word means nothing any more.
    pub(crate) fn forget_report(&mut self, node: NodeId) {
        let Some(place) = self.nodes.get_mut(&node) else { return };
        if !std::mem::take(&mut place.void).is_empty() {
            self.dirty.insert(node);
        }
        self.tidy(node);
    }

    /// The relays where the node is, by id.
    pub(crate) fn of(&self, node: NodeId) -> impl Iterator<Item = ServerId> + '_ {
        let place = self.nodes.get(&node);
        place.into_iter().flat_map(|place| place.claims.keys().filter(|relay| !place.void.contains(relay)).copied())
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.keys().copied()
    }

    pub(crate) fn mark(&mut self, node: NodeId) {
        self.dirty.insert(node);
    }

    pub(crate) fn mark_all(&mut self) {
        self.dirty.extend(self.nodes.keys());
    }

    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn take_dirty(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.dirty)
    }

    fn claimed_by(&self, relay: ServerId) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, place)| place.claims.contains_key(&relay)).map(|(node, _)| *node).collect()
    }

    fn tidy(&mut self, node: NodeId) {
        if self.nodes.get(&node).is_some_and(|place| place.claims.is_empty() && place.void.is_empty()) {
            self.nodes.remove(&node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(10);
    const A: ServerId = ServerId(1);
    const B: ServerId = ServerId(2);

    #[expect(clippy::disallowed_methods, reason = "any origin will do")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn at(locations: &Locations) -> Vec<u32> {
        locations.of(NODE).map(|relay| relay.0).collect()
    }

    #[test]
    fn a_relays_word_suffices_until_the_node_says_otherwise() {
        let (t, mut it) = (origin(), Locations::default());
        it.claim(A, NODE, t);
        it.claim(B, NODE, t);
        assert_eq!(at(&it), [1, 2]);
        it.report(NODE, &[A].into(), t + Duration::from_secs(5));
        assert_eq!(at(&it), [1, 2], "the claim may be newer than the report");
        it.report(NODE, &[A].into(), t + Duration::from_millis(5_001));
        assert_eq!(at(&it), [1]);
        // Claiming it again does not help.
        it.withdraw(B, NODE);
        it.claim(B, NODE, t + Duration::from_secs(6));
        assert_eq!(at(&it), [1]);
        it.report(NODE, &[A, B].into(), t + Duration::from_secs(7));
        assert_eq!(at(&it), [1, 2], "the node confirms");
        it.report(NODE, &BTreeSet::new(), t + Duration::from_secs(20));
        it.forget_report(NODE);
        assert_eq!(at(&it), [1, 2], "its word went with its connection");
    }

    #[test]
    fn a_node_alone_is_nowhere_and_nothing_is_kept_of_nobody() {
        let (t, mut it) = (origin(), Locations::default());
        it.report(NODE, &[A].into(), t);
        assert_eq!((at(&it), it.nodes.len(), it.is_dirty()), (vec![], 0, false));
        it.claim_all(A, &[NODE, NodeId(11)].into(), t);
        it.claim_all(A, &[NodeId(11)].into(), t);
        assert_eq!((at(&it), it.nodes.len()), (vec![], 1));
        it.withdraw_all(A);
        assert_eq!(it.nodes.len(), 0);
        assert_eq!(it.take_dirty().len(), 2);
    }
}
