//! Which node is at which relays, as the controller says (SERVER_NODE_LOC), and the way that it advises (next hops).

use crate::ids::NodeMap;
use edgelink_model::{NetworkId, NodeId, ServerId};
use edgelink_wire::control::proto;
use std::time::{Duration, Instant};

/// Relays remembered per node; a node of a larger mesh is known at some of them.
const RELAYS_PER_NODE: usize = 64;

/// A controller that was restarted hears of nodes one relay after the other. What it said before holds for so long beside
/// its new word, so that its restart interrupts nobody.
const FADE: Duration = Duration::from_secs(10);

/// The location cache (specification §2.4.2) and the next-hop table (DESIGN §4). Bounded by the capacity given.
#[derive(Debug)]
pub(crate) struct Locations {
    nodes: NodeMap<Location>,
    next_hops: NodeMap<ServerId>,
    capacity: usize,
    /// When the last place that fades is gone.
    faded_at: Option<Instant>,
}

#[derive(Debug)]
struct Location {
    network: NetworkId,
    relays: Vec<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    relay: ServerId,
    /// The relay itself said that the node is not there: not sought there before then.
    absent_until: Option<Instant>,
    /// Said before the controller's last start: good until then.
    until: Option<Instant>,
}

impl Place {
    fn is_valid(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

impl Locations {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { nodes: NodeMap::default(), next_hops: NodeMap::default(), capacity, faded_at: None }
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Takes the controller's word. A node without relays is forgotten.
    pub(crate) fn update(&mut self, message: &proto::ServerNodeLoc, now: Instant) {
        if self.faded_at.is_some_and(|at| at <= now) {
            self.faded_at = None;
            self.nodes.retain(|_, location| {
                location.relays.retain(|place| place.is_valid(now));
                !location.relays.is_empty()
            });
        }
        if message.full {
            self.nodes.clear();
        }
        for entry in &message.nodes {
            let (node, network) = (NodeId(entry.node_id), NetworkId(entry.network_id));
            let former = self.nodes.remove(&node);
            let place = |id: &u32| Place { relay: ServerId(*id), absent_until: None, until: None };
            let mut relays: Vec<Place> = entry.relay_ids.iter().take(RELAYS_PER_NODE).map(place).collect();
            if let Some(former) = former {
                // The network of a node never changes; an entry without relays need not name it.
                let stays = |old: &&Place| old.until.is_some() && relays.iter().all(|new| new.relay != old.relay);
                let fading: Vec<Place> = former.relays.iter().filter(stays).copied().collect();
                relays.extend(fading);
                if entry.relay_ids.is_empty() && !relays.is_empty() {
                    self.nodes.insert(node, Location { network: former.network, relays });
                    continue;
                }
            }
            if !relays.is_empty() && self.nodes.len() < self.capacity {
                self.nodes.insert(node, Location { network, relays });
            }
        }
    }

    /// The controller begins anew: what it said before fades.
    pub(crate) fn fade(&mut self, now: Instant) {
        let until = now + FADE;
        for place in self.nodes.values_mut().flat_map(|location| &mut location.relays) {
            place.until.get_or_insert(until);
        }
        self.faded_at = Some(until);
    }

    /// A node was barred: nobody speaks for it any more.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// Takes next hops; relay 0 takes one back.
    pub(crate) fn set_next_hops(&mut self, full: bool, hops: &[proto::NextHop]) {
        if full {
            self.next_hops.clear();
        }
        for hop in hops {
            let node = NodeId(hop.node_id);
            if hop.server_id == 0 {
                self.next_hops.remove(&node);
            } else if self.next_hops.len() < self.capacity || self.next_hops.contains_key(&node) {
                self.next_hops.insert(node, ServerId(hop.server_id));
            }
        }
    }

    /// The network of a node, if it is known to be at `relay`.
    pub(crate) fn network_at(&self, node: NodeId, relay: ServerId, now: Instant) -> Option<NetworkId> {
        let location = self.nodes.get(&node)?;
        location.relays.iter().any(|place| place.relay == relay && place.is_valid(now)).then_some(location.network)
    }

    /// The relays at which a node of `network` may be sought now.
    pub(crate) fn relays_of(
        &self,
        node: NodeId,
        network: NetworkId,
        now: Instant,
    ) -> impl Iterator<Item = ServerId> + '_ {
        let location = self.nodes.get(&node).filter(|location| location.network == network);
        let places = location.map(|location| location.relays.as_slice()).unwrap_or_default();
        let sought = move |place: &&Place| place.is_valid(now) && place.absent_until.is_none_or(|at| at <= now);
        places.iter().filter(sought).map(|place| place.relay)
    }

    /// The controller's advice for frames to `node`.
    pub(crate) fn next_hop(&self, node: NodeId) -> Option<ServerId> {
        self.next_hops.get(&node).copied()
    }

    /// `relay` says that it does not have the node.
    pub(crate) fn absent(&mut self, node: NodeId, relay: ServerId, until: Instant) {
        let places = self.nodes.get_mut(&node).map(|location| location.relays.as_mut_slice()).unwrap_or_default();
        for place in places.iter_mut().filter(|place| place.relay == relay) {
            place.absent_until = Some(until);
        }
    }

    /// Everything, as one message.
    pub(crate) fn to_message(&self) -> proto::ServerNodeLoc {
        let nodes = self.nodes.iter().map(|(node, location)| proto::NodeLocation {
            node_id: node.0,
            network_id: location.network.0,
            relay_ids: location.relays.iter().map(|place| place.relay.0).collect(),
        });
        proto::ServerNodeLoc { nodes: nodes.collect(), full: true }
    }

    /// All next hops.
    pub(crate) fn hops_message(&self) -> Vec<proto::NextHop> {
        self.next_hops.iter().map(|(node, relay)| proto::NextHop { node_id: node.0, server_id: relay.0 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: NetworkId = NetworkId(7);

    fn told(full: bool, nodes: &[(u32, &[u32])]) -> proto::ServerNodeLoc {
        let entry = |(node, relays): &(u32, &[u32])| proto::NodeLocation {
            node_id: *node,
            network_id: if relays.is_empty() { 0 } else { NETWORK.0 },
            relay_ids: relays.to_vec(),
        };
        proto::ServerNodeLoc { nodes: nodes.iter().map(entry).collect(), full }
    }

    fn at(locations: &Locations, node: u32, now: Instant) -> Vec<u32> {
        let mut relays: Vec<u32> = locations.relays_of(NodeId(node), NETWORK, now).map(|relay| relay.0).collect();
        relays.sort_unstable();
        relays
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn what_a_former_controller_said_fades_instead_of_vanishing() {
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        let mut locations = Locations::new(10);
        locations.update(&told(true, &[(1, &[2, 3]), (4, &[2]), (5, &[2])]), start);

        // A new controller has heard of relay 3 only, and of node 5 that it has gone.
        locations.fade(start);
        locations.update(&told(false, &[(1, &[3]), (5, &[])]), start);
        assert_eq!((at(&locations, 1, later(9_999)), at(&locations, 4, later(9_999))), (vec![2, 3], vec![2]));
        assert_eq!(at(&locations, 5, later(9_999)), [2], "relay 2 has not said so to this controller yet");
        assert_eq!(locations.network_at(NodeId(4), ServerId(2), later(9_999)), Some(NETWORK));
        // Its restart does not begin the time anew.
        locations.fade(later(5_000));
        locations.update(&told(false, &[(6, &[2])]), later(5_000));
        assert_eq!((at(&locations, 4, later(10_000)), at(&locations, 1, later(10_000))), (vec![], vec![3]));
        assert_eq!(locations.network_at(NodeId(4), ServerId(2), later(10_000)), None);
        locations.update(&told(false, &[]), later(15_000));
        assert_eq!(locations.len(), 1, "only what was said since is kept: {locations:?}");

        // Said again it is as good as new; a barred node is nowhere at once.
        locations.update(&told(false, &[(4, &[2])]), later(15_000));
        assert_eq!(at(&locations, 4, later(60_000)), [2]);
        locations.fade(later(60_000));
        locations.forget(NodeId(4));
        assert!(at(&locations, 4, later(60_000)).is_empty());
    }
}
