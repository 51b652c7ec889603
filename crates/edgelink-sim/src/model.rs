//! What must arrive: the reference model of the network.
//!
//! The model knows the network as an administrator does: who is a member, who runs, which lines are whole. From that it
//! tells for every pair whether it *must* be able to talk, and since when. A probe that is sent while its pair has been
//! undisturbed for the promised time ([`Promise`]), and stays so until it is due, has to arrive. Every other probe may
//! be lost; but what arrives, arrives once, unchanged, at the node that it was sent to, from the address of its sender,
//! inside one network, and not after the receiver has heard that the sender is no member any more.

use crate::packet::Probe;
use crate::streams::Party;
use crate::world::{Delivered, NodeIndex, RelayIndex, World};
use edgelink_model::NetworkId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long the network may take until traffic flows again.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// After anything that befell one of the ends, the relays or the lines between them.
    pub heals_within: Duration,
    /// From a node's TUN to the other's on a whole network.
    pub arrives_within: Duration,
    /// From an administrator's word to the last member that the controller can reach.
    pub told_within: Duration,
}

/// The model.
pub struct Model {
    promise: Promise,
    nodes: BTreeMap<usize, NodeState>,
    relays: BTreeMap<usize, RelayState>,
    controller: bool,
    hostile_controller: bool,
    cuts: BTreeSet<(Party, Party)>,
    /// Pairs that have been members together, undisturbed, long enough to know each other.
    introduced: BTreeSet<(usize, usize)>,
    /// Per pair: since when it must be able to talk; absent while it need not.
    linked_since: BTreeMap<(usize, usize), Duration>,
    probes: BTreeMap<u64, Sent>,
    delivered: BTreeSet<u64>,
    /// Who has heard of whose expulsion.
    told: BTreeSet<(usize, usize)>,
    /// Probes that were sent, that had to arrive, and that arrived.
    pub sent: u64,
    /// Probes that had to arrive.
    pub owed: u64,
    /// Probes that arrived.
    pub arrived: u64,
}

#[derive(Clone, Debug)]
struct NodeState {
    network: NetworkId,
    running: bool,
    asleep: bool,
    member: bool,
    hostile: bool,
    /// Its uplink loses datagrams: what takes a direct path may be lost.
    lossy: bool,
    /// Another host with the same identity runs.
    doubled: bool,
    /// Members may not deliver from it once they have this version.
    expelled_at: Option<(u64, Duration)>,
    /// It needs the controller before it can talk: it is new, was let in again, lost its tokens, or the relays changed.
    needs_controller: bool,
    /// Since when nothing befell its way to the controller.
    guided_since: Duration,
}

#[derive(Clone, Copy, Debug)]
struct RelayState {
    running: bool,
    enabled: bool,
    hostile: bool,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    probe: Probe,
    at: Duration,
    must: bool,
}

impl Model {
    /// A network with a controller, its relay, and nothing else.
    pub fn new(promise: Promise) -> Self {
        let relay = RelayState { running: true, enabled: true, hostile: false };
        Self {
            promise,
            nodes: BTreeMap::new(),
            relays: [(0, relay)].into(),
            controller: true,
            hostile_controller: false,
            cuts: BTreeSet::new(),
            introduced: BTreeSet::new(),
            linked_since: BTreeMap::new(),
            probes: BTreeMap::new(),
            delivered: BTreeSet::new(),
            told: BTreeSet::new(),
            sent: 0,
            owed: 0,
            arrived: 0,
        }
    }

    // ---- what happens ----

    /// A node was made.
    pub fn joined(&mut self, node: NodeIndex, network: NetworkId, now: Duration) {
        let state = NodeState {
            network,
            running: true,
            asleep: false,
            member: true,
            hostile: false,
            lossy: false,
            doubled: false,
            expelled_at: None,
            needs_controller: true,
            guided_since: now,
        };
        self.nodes.insert(node.0, state);
        self.disturb_node(node, now);
    }

    /// A relay was made.
    pub fn relay_added(&mut self, relay: RelayIndex, now: Duration) {
        self.relays.insert(relay.0, RelayState { running: true, enabled: true, hostile: false });
        self.relays_changed(now);
    }

    /// A node's process runs, or does not.
    pub fn node_running(&mut self, node: NodeIndex, running: bool, now: Duration) {
        self.change_node(node, now, |n| n.running = running);
    }

    /// A node's process is stopped, or goes on.
    pub fn node_asleep(&mut self, node: NodeIndex, asleep: bool, now: Duration) {
        self.change_node(node, now, |n| n.asleep = asleep);
    }

    /// An administrator has taken a node out, or let it in again; `version` is the change log's after that.
    pub fn node_member(&mut self, node: NodeIndex, member: bool, version: u64, now: Duration) {
        self.change_node(node, now, |n| {
            n.member = member;
            n.expelled_at = (!member).then_some((version, now));
            n.needs_controller = true;
        });
        self.introduced.retain(|(a, b)| *a != node.0 && *b != node.0);
        self.told.retain(|(_, gone)| *gone != node.0);
    }

    /// A node lies from now on, or not any more.
    pub fn node_hostile(&mut self, node: NodeIndex, hostile: bool, now: Duration) {
        self.change_node(node, now, |n| n.hostile = hostile);
    }

    /// A node's uplink loses datagrams, or not any more.
    pub fn node_lossy(&mut self, node: NodeIndex, lossy: bool, now: Duration) {
        self.change_node(node, now, |n| n.lossy = lossy);
    }

    /// Another host with a node's identity runs, or not any more.
    pub fn node_doubled(&mut self, node: NodeIndex, doubled: bool, now: Duration) {
        self.change_node(node, now, |n| n.doubled = doubled);
    }

    /// Anything else befell a node: an address, a clock, a reset connection, revoked tokens.
    pub fn disturb_node(&mut self, node: NodeIndex, now: Duration) {
        self.change_node(node, now, |_| {});
    }

    /// A relay runs, or does not.
    pub fn relay_running(&mut self, relay: RelayIndex, running: bool, now: Duration) {
        self.change_relay(relay, now, |r| r.running = running);
    }

    /// A relay may be used, or not.
    pub fn relay_enabled(&mut self, relay: RelayIndex, enabled: bool, now: Duration) {
        self.change_relay(relay, now, |r| r.enabled = enabled);
        self.relays_changed(now);
    }

    /// A relay meddles with what it forwards, or not any more.
    pub fn relay_hostile(&mut self, relay: RelayIndex, hostile: bool, now: Duration) {
        self.change_relay(relay, now, |r| r.hostile = hostile);
    }

    /// The controller runs, or does not. That disturbs nobody who knows each other (DESIGN §5).
    pub fn controller_running(&mut self, running: bool, now: Duration) {
        self.controller = running;
        self.controller_changed(now);
    }

    /// The controller hands out false keys, or not any more.
    pub fn controller_hostile(&mut self, hostile: bool, now: Duration) {
        self.hostile_controller = hostile;
        self.controller_changed(now);
    }

    fn controller_changed(&mut self, now: Duration) {
        for node in self.nodes.values_mut() {
            node.guided_since = now;
        }
        self.update(now);
    }

    /// Nodes have to learn something from the controller before the model counts on it.
    pub fn need_controller(&mut self, nodes: impl IntoIterator<Item = NodeIndex>) {
        for node in nodes {
            if let Some(state) = self.nodes.get_mut(&node.0) {
                state.needs_controller = true;
            }
        }
    }

    /// Whether all members of all networks know each other.
    pub fn all_introduced(&self) -> bool {
        let mut pairs = self.nodes.keys().flat_map(|a| self.nodes.keys().map(move |b| (*a, *b)));
        pairs.all(|(a, b)| {
            let same = self.nodes.get(&a).map(|n| n.network) == self.nodes.get(&b).map(|n| n.network);
            a == b || !same || self.introduced.contains(&(a, b))
        })
    }

    /// A line was cut or mended.
    pub fn cut(&mut self, a: Party, b: Party, cut: bool, now: Duration) {
        for pair in [(a, b), (b, a)] {
            if cut {
                self.cuts.insert(pair);
            } else {
                self.cuts.remove(&pair);
            }
        }
        if matches!((a, b), (Party::Relay(_), _) | (Party::Controller, Party::Relay(_))) {
            return self.disturb_all(now);
        }
        if a == Party::Controller || b == Party::Controller {
            return self.controller_changed(now);
        }
        for party in [a, b] {
            if let Party::Node(node) = party {
                self.disturb_node(NodeIndex(node), now);
            }
        }
    }

    /// Something befell everybody.
    pub fn disturb_all(&mut self, now: Duration) {
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.disturb_node(NodeIndex(node), now);
        }
    }

    /// A probe was put into a TUN.
    pub fn probe_sent(&mut self, probe: Probe, now: Duration) {
        let pair = (probe.from as usize, probe.to as usize);
        let settled = |since: &Duration| now >= *since + self.promise.heals_within;
        let must = self.linked_since.get(&pair).is_some_and(settled);
        self.sent += 1;
        self.owed += u64::from(must);
        self.probes.insert(probe.id, Sent { probe, at: now, must });
    }

    // ---- what is seen ----

    /// Packets that came out of TUNs; returns what is wrong with them.
    pub fn check_delivered(&mut self, packets: Vec<Delivered>, world: &World) -> Vec<String> {
        let mut wrong = Vec::new();
        for packet in packets {
            if let Some(fault) = self.fault_of(&packet, world) {
                wrong.push(format!("{:?}: node {}: {fault}", packet.at, packet.node.0));
            }
        }
        wrong
    }

    fn fault_of(&mut self, packet: &Delivered, world: &World) -> Option<String> {
        let Some(probe) = Probe::parse(&packet.packet) else { return Some("a packet that nobody sent".to_owned()) };
        if self.probes.get(&probe.id).is_none_or(|sent| sent.probe != probe) {
            return Some(format!("{probe:?} was never sent like this"));
        }
        if !self.delivered.insert(probe.id) {
            return Some(format!("{probe:?} arrives twice"));
        }
        self.arrived += 1;
        if self.nodes.get(&packet.node.0).is_some_and(|node| node.hostile) {
            // A liar may well believe another liar.
            return None;
        }
        if probe.to as usize != packet.node.0 && !self.same_identity(probe.to as usize, packet.node.0, world) {
            return Some(format!("{probe:?} arrives at the wrong node"));
        }
        let (from, to) = (self.nodes.get(&(probe.from as usize))?, self.nodes.get(&packet.node.0)?);
        if from.network != to.network {
            return Some(format!("{probe:?} crosses from network {} to {}", from.network, to.network));
        }
        let source = edgelink_wire::packet::parse(&packet.packet)?.src;
        let truth = world.database.node(world.node_id(NodeIndex(probe.from as usize))?)?.addresses();
        if !truth.contains(&source) {
            return Some(format!("{probe:?} arrives from the address {source}, which is not its sender's"));
        }
        if self.told.contains(&(packet.node.0, probe.from as usize)) {
            return Some(format!("{probe:?} arrives from a node whose expulsion the receiver has heard of"));
        }
        None
    }

    /// Finds out who has heard of which expulsion: what arrives from then on is checked against it. Also says who should
    /// have heard, and has not.
    pub fn check_told(&mut self, world: &World, now: Duration) -> Vec<String> {
        self.told.clear();
        let mut wrong = Vec::new();
        for (gone, state) in &self.nodes {
            let Some((version, since)) = state.expelled_at else { continue };
            for (index, other) in self.nodes.iter().filter(|(_, n)| n.network == state.network && n.running) {
                let Some(status) = world.status(NodeIndex(*index)) else { continue };
                let knows = status.config_version >= version;
                if knows {
                    self.told.insert((*index, *gone));
                }
                let reached =
                    self.is_guided(*index) && !other.asleep && other.member && !other.doubled && !other.hostile;
                let due = (since + self.promise.told_within).max(other.guided_since + self.promise.heals_within);
                if reached && !knows && now > due {
                    wrong.push(format!(
                        "{now:?}: node {index} has not heard that node {gone} was expelled at {since:?}"
                    ));
                }
            }
        }
        wrong
    }

    fn same_identity(&self, a: usize, b: usize, world: &World) -> bool {
        world.node_id(NodeIndex(a)).is_some_and(|id| world.node_id(NodeIndex(b)) == Some(id))
    }

    /// Probes that had to be there by now and are not.
    pub fn check_overdue(&mut self, now: Duration) -> Vec<String> {
        let due = now.saturating_sub(self.promise.arrives_within);
        let settled: Vec<u64> = self.probes.iter().filter(|(_, s)| s.at < due).map(|(id, _)| *id).collect();
        let mut wrong = Vec::new();
        for id in settled {
            let Some(sent) = self.probes.get_mut(&id) else { continue };
            if sent.must && !self.delivered.contains(&id) {
                sent.must = false;
                wrong.push(format!(
                    "{now:?}: {:?}, sent at {:?}, has not arrived, though the pair was undisturbed for {:?}",
                    sent.probe, sent.at, self.promise.heals_within
                ));
            }
        }
        wrong
    }

    /// Pairs that must be able to talk by now.
    pub fn settled_pairs(&self, now: Duration) -> Vec<(NodeIndex, NodeIndex)> {
        let settled = self.linked_since.iter().filter(|(_, since)| now >= **since + self.promise.heals_within);
        settled.map(|((a, b), _)| (NodeIndex(*a), NodeIndex(*b))).collect()
    }

    /// Pairs of members that run, whatever lies between them.
    pub fn living_pairs(&self) -> Vec<(NodeIndex, NodeIndex)> {
        let alive = |n: &NodeState| n.running && n.member && !n.doubled && !n.hostile;
        let mut pairs = Vec::new();
        for (a, one) in self.nodes.iter().filter(|(_, n)| alive(n)) {
            for (b, other) in self.nodes.iter().filter(|(_, n)| alive(n)) {
                if a != b && one.network == other.network {
                    pairs.push((NodeIndex(*a), NodeIndex(*b)));
                }
            }
        }
        pairs
    }

    /// Lets time pass for what depends on it: who has got to know whom.
    pub fn settle(&mut self, now: Duration) {
        for (pair, since) in &self.linked_since {
            if now >= *since + self.promise.heals_within {
                self.introduced.insert(*pair);
            }
        }
        let settled: BTreeSet<usize> = self.settled_pairs(now).into_iter().map(|(a, _)| a.0).collect();
        for index in settled {
            let guided = self.is_guided(index);
            if let Some(node) = self.nodes.get_mut(&index) {
                node.needs_controller &= !guided;
            }
        }
    }

    // ---- helpers ----

    fn change_node(&mut self, node: NodeIndex, now: Duration, change: impl FnOnce(&mut NodeState)) {
        self.settle(now);
        if let Some(state) = self.nodes.get_mut(&node.0) {
            change(state);
            state.guided_since = now;
        }
        self.linked_since.retain(|(a, b), _| *a != node.0 && *b != node.0);
        for sent in self.probes.values_mut() {
            if sent.probe.from as usize == node.0 || sent.probe.to as usize == node.0 {
                sent.must = false;
            }
        }
        self.update(now);
    }

    fn relays_changed(&mut self, now: Duration) {
        for node in self.nodes.values_mut() {
            node.needs_controller = true;
        }
        self.disturb_all(now);
    }

    fn change_relay(&mut self, relay: RelayIndex, now: Duration, change: impl FnOnce(&mut RelayState)) {
        self.settle(now);
        if let Some(state) = self.relays.get_mut(&relay.0) {
            change(state);
        }
        self.disturb_all(now);
    }

    /// Finds out anew which pairs must be able to talk.
    fn update(&mut self, now: Duration) {
        self.settle(now);
        let linked: BTreeSet<(usize, usize)> =
            self.living_pairs().into_iter().map(|(a, b)| (a.0, b.0)).filter(|pair| self.is_linked(*pair)).collect();
        self.linked_since.retain(|pair, _| linked.contains(pair));
        for sent in self.probes.values_mut() {
            sent.must &= linked.contains(&(sent.probe.from as usize, sent.probe.to as usize));
        }
        for pair in linked {
            self.linked_since.entry(pair).or_insert(now);
        }
    }

    fn is_guided(&self, node: usize) -> bool {
        let whole = !self.cuts.contains(&(Party::Node(node), Party::Controller));
        self.controller && !self.hostile_controller && whole
    }

    fn is_linked(&self, (a, b): (usize, usize)) -> bool {
        let awake = |n: usize| self.nodes.get(&n).is_some_and(|state| !state.asleep && !state.lossy);
        if !awake(a) || !awake(b) || self.relays.values().any(|r| r.hostile && r.running && r.enabled) {
            return false;
        }
        let in_need = |n: usize| self.nodes.get(&n).is_some_and(|state| state.needs_controller);
        let guided = self.is_guided(a) && self.is_guided(b);
        if !guided && (!self.introduced.contains(&(a, b)) || in_need(a) || in_need(b)) {
            return false;
        }
        let whole = |a: Party, b: Party| !self.cuts.contains(&(a, b));
        let usable = self.relays.iter().filter(|(_, r)| r.running && r.enabled).map(|(index, _)| *index);
        let relays: Vec<usize> = usable.collect();
        let of = |n: usize| relays.iter().copied().filter(move |r| whole(Party::Node(n), Party::Relay(*r)));
        if of(a).any(|r| of(b).any(|other| other == r)) {
            return true;
        }
        // Over the mesh. The controller says which relays have whom, and lets relays link with each other.
        let reported = |r: usize| self.controller && whole(Party::Relay(r), Party::Controller);
        let linked =
            |r: usize, other: usize| whole(Party::Relay(r), Party::Relay(other)) && reported(r) && reported(other);
        of(a).any(|r| of(b).any(|other| linked(r, other))) && guided
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::udp_packet;
    use crate::world::WorldConfig;

    const SECOND: Duration = Duration::from_secs(1);
    const PROMISE: Promise =
        Promise { heals_within: Duration::from_secs(2), arrives_within: SECOND, told_within: SECOND };

    /// Two nodes that know each other, and a probe on its way between them.
    fn two() -> (World, Model, Probe) {
        let mut world = World::new(WorldConfig::default());
        let mut model = Model::new(PROMISE);
        let (a, b) = (world.add_node("a"), world.add_node("b"));
        model.joined(a, NetworkId(1), world.elapsed());
        model.joined(b, NetworkId(1), world.elapsed());
        world.advance(3 * SECOND);
        let probe = world.send_numbered(a, b, 64).unwrap();
        model.probe_sent(probe, world.elapsed());
        world.advance(SECOND / 2);
        (world, model, probe)
    }

    fn fault(change: impl FnOnce(&mut Delivered, &mut Model, Probe)) -> Vec<String> {
        let (mut world, mut model, probe) = two();
        let mut packets = world.take_delivered();
        assert_eq!(packets.len(), 1);
        change(&mut packets[0], &mut model, probe);
        model.check_delivered(packets, &world)
    }

    #[test]
    fn what_arrives_as_it_was_sent_is_fine_and_settles_the_debt() {
        let (mut world, mut model, _) = two();
        assert_eq!(model.owed, 1, "an undisturbed pair must be able to talk");
        assert_eq!(model.check_delivered(world.take_delivered(), &world), [""; 0]);
        assert_eq!(model.check_overdue(world.elapsed() + 5 * SECOND), [""; 0]);
    }

    #[test]
    fn every_fault_of_a_delivery_is_found() {
        let found = fault(|packet, _, _| packet.node = NodeIndex(0));
        assert!(found[0].contains("wrong node"), "{found:?}");
        let found = fault(|packet, _, probe| {
            let stranger = "10.0.1.99".parse().unwrap();
            packet.packet = udp_packet(stranger, "10.0.1.2".parse().unwrap(), &probe.encode(64));
        });
        assert!(found[0].contains("not its sender's"), "{found:?}");
        let found = fault(|packet, _, _| *packet.packet.last_mut().unwrap() ^= 1);
        assert!(found[0].contains("nobody sent"), "{found:?}");
        let found = fault(|_, model, probe| assert!(model.delivered.insert(probe.id)));
        assert!(found[0].contains("twice"), "{found:?}");
        let found = fault(|_, model, _| model.nodes.get_mut(&1).unwrap().network = NetworkId(2));
        assert!(found[0].contains("crosses"), "{found:?}");
        let found = fault(|_, model, _| assert!(model.told.insert((1, 0))));
        assert!(found[0].contains("expulsion"), "{found:?}");
    }

    #[test]
    fn what_had_to_arrive_and_does_not_is_found_unless_something_befell_the_pair() {
        let (world, mut model, _) = two();
        let later = world.elapsed() + 2 * SECOND;
        let found = model.check_overdue(later);
        assert!(found.len() == 1 && found[0].contains("has not arrived"), "{found:?}");
        let (world, mut model, _) = two();
        model.disturb_node(NodeIndex(1), world.elapsed());
        assert_eq!(model.check_overdue(world.elapsed() + 2 * SECOND), [""; 0]);
    }

    #[test]
    fn a_member_that_is_not_told_of_an_expulsion_is_found() {
        let (world, mut model, _) = two();
        // The model believes that it happened, the network does not know.
        model.node_member(NodeIndex(0), false, 1_000, world.elapsed());
        let found = model.check_told(&world, world.elapsed() + 4 * SECOND);
        assert!(found.len() == 1 && found[0].contains("has not heard"), "{found:?}");
    }
}
