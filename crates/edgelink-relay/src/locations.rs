//! Which node is at which relays, as the controller says (SERVER_NODE_LOC), and the way that it advises (next hops).

use crate::ids::NodeMap;
use edgelink_model::{NetworkId, NodeId, ServerId};
use edgelink_wire::control::proto;
use std::time::Instant;

/// Relays remembered per node; a node of a larger mesh is known at some of them.
const RELAYS_PER_NODE: usize = 64;

/// The location cache (specification §2.4.2) and the next-hop table (DESIGN §4). Bounded by the capacity given.
#[derive(Debug)]
pub(crate) struct Locations {
    nodes: NodeMap<Location>,
    next_hops: NodeMap<ServerId>,
    capacity: usize,
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
}

impl Locations {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { nodes: NodeMap::default(), next_hops: NodeMap::default(), capacity }
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Takes the controller's word. A node without relays is forgotten.
    pub(crate) fn update(&mut self, message: &proto::ServerNodeLoc) {
        if message.full {
            self.nodes.clear();
        }
        for entry in &message.nodes {
            let node = NodeId(entry.node_id);
            if entry.relay_ids.is_empty() {
                self.nodes.remove(&node);
                continue;
            }
            if self.nodes.len() >= self.capacity && !self.nodes.contains_key(&node) {
                continue;
            }
            let place = |id: &u32| Place { relay: ServerId(*id), absent_until: None };
            let relays = entry.relay_ids.iter().take(RELAYS_PER_NODE).map(place).collect();
            self.nodes.insert(node, Location { network: NetworkId(entry.network_id), relays });
        }
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
    pub(crate) fn network_at(&self, node: NodeId, relay: ServerId) -> Option<NetworkId> {
        let location = self.nodes.get(&node)?;
        location.relays.iter().any(|place| place.relay == relay).then_some(location.network)
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
        places.iter().filter(move |place| place.absent_until.is_none_or(|at| at <= now)).map(|place| place.relay)
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
