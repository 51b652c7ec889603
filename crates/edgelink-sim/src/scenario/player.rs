//! A scenario is played: time passes, packets are sent, and the model is asked.

use super::transitions::Undo;
use super::{MAX_NODES, MAX_RELAYS, PROMISE, Quality, Report, Scenario, TICK};
use crate::model::Model;
use crate::world::{HostileNode, NodeIndex, RelayIndex, Site, World, WorldConfig};
use edgelink_api::local::PathKind;
use edgelink_model::NetworkId;
use edgelink_model::records::NetworkRecord;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Plays a scenario step by step.
pub(super) struct Player<'s> {
    pub(super) scenario: &'s Scenario,
    pub(super) world: World,
    pub(super) model: Model,
    pub(super) rng: ChaCha20Rng,
    /// What ends when; the number keeps the order of what ends at once.
    pub(super) undo: BTreeMap<(Duration, u32), Undo>,
    pub(super) undos: u32,
    pub(super) next_probe: Duration,
    pub(super) hostile_controller: bool,
    /// Nothing is sent at random.
    pub(super) quiet: bool,
    /// Nodes that only lie.
    pub(super) liars: BTreeMap<usize, HostileNode>,
    /// Machines that were copied, and their copies; a copy that has ended stays off.
    pub(super) doubles: BTreeSet<usize>,
    pub(super) retired: BTreeSet<usize>,
    pub(super) violations: Vec<String>,
    pub(super) node_seconds: f64,
}

impl<'s> Player<'s> {
    pub(super) fn new(scenario: &'s Scenario) -> Self {
        let setup = scenario.setup;
        let mut world = World::new(WorldConfig {
            seed: scenario.seed,
            delay: setup.lines.line().delay,
            rotate_secs: setup.rotate_secs.max(10),
            capture: false,
            ..WorldConfig::default()
        });
        world.database.add_network(second_network());
        world.database.add_auth_key(&crate::world::auth_key(SECOND), SECOND);
        let mut this = Self {
            scenario,
            world,
            model: Model::new(PROMISE),
            rng: ChaCha20Rng::seed_from_u64(!scenario.seed),
            undo: BTreeMap::new(),
            undos: 0,
            next_probe: Duration::ZERO,
            hostile_controller: false,
            quiet: false,
            liars: BTreeMap::new(),
            doubles: BTreeSet::new(),
            retired: BTreeSet::new(),
            violations: Vec::new(),
            node_seconds: 0.0,
        };
        let udp = setup.sites.iter().any(|site| *site != Site::Off);
        for _ in 0..setup.relays.min(MAX_RELAYS as u8 - 1) {
            this.add_relay();
        }
        for relay in 0..if udp { this.world.relay_count() } else { 0 } {
            this.world.add_stun(RelayIndex(relay));
        }
        for n in 0..setup.nodes.clamp(2, MAX_NODES as u8) {
            this.join(setup.two_networks && n % 3 == 2, 0);
        }
        this
    }

    pub(super) fn play(mut self) -> (Report, Vec<String>) {
        self.pass(Duration::from_secs(3));
        for step in &self.scenario.steps {
            self.apply(&step.what);
            self.pass(Duration::from_millis(step.wait_ms.into()));
            if !self.violations.is_empty() {
                break;
            }
        }
        if self.violations.is_empty() {
            self.finale();
        }
        let mut violations = std::mem::take(&mut self.violations);
        violations.extend(self.world.watch().violations().iter().cloned());
        if !violations.is_empty() {
            violations.extend(self.counters());
        }
        let report = Report {
            elapsed: self.world.elapsed(),
            nodes: self.world.node_count(),
            node_seconds: self.node_seconds as u64,
            probes: (self.model.sent, self.model.owed, self.model.arrived),
            pairs: self.pairs(),
            frames: self.world.watch().frames,
            fingerprint: self.world.fingerprint(),
        };
        (report, violations)
    }

    /// What was dropped, by whom: the first thing that one wants to know.
    pub(super) fn counters(&self) -> Vec<String> {
        let nodes = (0..self.world.node_count()).filter_map(|n| {
            let status = self.world.status(NodeIndex(n))?;
            Some(format!("node {n} has dropped {:?}", status.drops))
        });
        let relays = (0..self.world.relay_count()).filter_map(|r| {
            let stats = self.world.relay_at(RelayIndex(r))?.stats();
            let drops: Vec<_> = stats.drops.iter().filter(|(_, n)| *n > 0).collect();
            Some(format!("relay {r} has dropped {drops:?}"))
        });
        let udp: Vec<_> = self.world.internet().drops().iter().collect();
        nodes.chain(relays).chain([format!("the internet has dropped {udp:?}")]).collect()
    }

    pub(super) fn pairs(&self) -> (usize, usize) {
        let pairs = self.model.living_pairs();
        (pairs.len(), pairs.iter().filter(|(a, b)| self.is_direct(*a, *b)).count())
    }

    pub(super) fn is_direct(&self, a: NodeIndex, b: NodeIndex) -> bool {
        let id = self.world.node_id(b);
        let peers = self.world.status(a).map(|status| status.peers).unwrap_or_default();
        peers.iter().any(|p| Some(p.node_id) == id && matches!(p.path.kind, PathKind::Lan | PathKind::P2p))
    }

    /// Everything ends that lasts for a while; then all members must be able to talk to each other, and all must know the
    /// same network.
    pub(super) fn finale(&mut self) {
        for undo in std::mem::take(&mut self.undo).into_values() {
            self.end(undo);
        }
        for node in (0..self.world.node_count()).map(NodeIndex) {
            self.set_uplink(node, Quality::Usual);
        }
        self.pass(PROMISE.heals_within + TICK);
        let (must, settled) = (self.model.living_pairs(), self.model.settled_pairs(self.world.elapsed()));
        if must != settled {
            self.violations.push(format!("the model itself is at a loss: {must:?} must talk, {settled:?} may"));
        }
        for _ in 0..3 {
            for (from, to) in &must {
                self.probe(*from, *to, 100);
            }
            self.pass(Duration::from_millis(300));
        }
        self.pass(PROMISE.arrives_within + TICK);
        // A key may be rotated this very moment: everybody is told of it in time.
        for _ in 0..4 * PROMISE.told_within.as_secs() {
            if self.strangers().is_empty() {
                break;
            }
            self.pass(TICK);
        }
        let strangers = self.strangers();
        self.violations.extend(strangers);
        for index in 0..self.world.relay_count() {
            let queued = self.world.relay_at(RelayIndex(index)).map_or(0, |r| r.stats().queued_bytes);
            if queued > 0 {
                self.violations.push(format!("relay {index} still holds {queued} bytes in a network at rest"));
            }
        }
    }

    /// Members of a network that do not have the same configuration, or do not see each other online.
    pub(super) fn strangers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (a, b) in self.model.living_pairs() {
            let (Some(one), Some(other)) = (self.world.status(a), self.world.status(b)) else { continue };
            if one.config_version < other.config_version {
                let versions = (one.config_version, other.config_version);
                found.push(format!("at rest nodes {} and {} have different configurations: {versions:?}", a.0, b.0));
            }
            if !one.peers.iter().any(|peer| Some(peer.node_id) == other.node_id && peer.online) {
                found.push(format!("at rest node {} does not see node {} online", a.0, b.0));
            }
        }
        found
    }

    /// Lets time pass, with traffic.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.world.elapsed() + time;
        while self.world.elapsed() < end {
            while let Some(entry) = self.undo.first_entry().filter(|e| e.key().0 <= self.world.elapsed()) {
                let undo = entry.remove();
                self.end(undo);
            }
            self.traffic();
            let next = self.undo.keys().next().map_or(end, |(at, _)| *at).clamp(self.world.elapsed(), end);
            let slice = (next - self.world.elapsed()).clamp(Duration::from_millis(1), TICK);
            self.world.advance(slice);
            self.node_seconds += slice.as_secs_f64() * self.world.node_count() as f64;
            self.check();
        }
    }

    pub(super) fn check(&mut self) {
        let now = self.world.elapsed();
        let packets = self.world.take_delivered();
        self.violations.extend(self.model.check_delivered(packets, &self.world));
        self.violations.extend(self.model.check_overdue(now));
        self.violations.extend(self.model.check_told(&self.world, now));
        for index in 0..self.world.relay_count() {
            let Some(relay) = self.world.relay_at(RelayIndex(index)) else { continue };
            let (held, limit) = (relay.stats().queued_bytes, edgelink_relay::Limits::DEFAULT.queued_total);
            if held > limit {
                self.violations.push(format!("{now:?}: relay {index} holds {held} bytes, more than {limit}"));
            }
        }
    }

    pub(super) fn traffic(&mut self) {
        let now = self.world.elapsed();
        while self.next_probe <= now && !self.quiet {
            self.next_probe = now + Duration::from_millis(self.scenario.setup.traffic_ms.max(50).into());
            let count = self.world.node_count();
            let (from, to) = (self.draw(count), self.draw(count));
            if from != to {
                let len = 32 + self.draw(1200);
                self.probe(NodeIndex(from), NodeIndex(to), len);
            }
            for (liar, kind) in self.liars.clone() {
                self.lie(NodeIndex(liar), kind);
            }
        }
    }

    pub(super) fn probe(&mut self, from: NodeIndex, to: NodeIndex, len: usize) {
        let now = self.world.elapsed();
        // Networks overlap: the address means whoever has it in the sender's own.
        let to = self.namesake(from, to).unwrap_or(to);
        if let Some(probe) = self.world.send_numbered(from, to, len) {
            self.model.probe_sent(probe, now);
        }
    }

    /// Who has a node's address in the network of another.
    pub(super) fn namesake(&self, in_network_of: NodeIndex, node: NodeIndex) -> Option<NodeIndex> {
        let network = self.network_of(in_network_of)?;
        if self.network_of(node) == Some(network) {
            return Some(node);
        }
        let address = self.world.address(node)?;
        let others = (0..self.world.node_count()).map(NodeIndex);
        let mut same = others.filter(|o| *o != in_network_of && self.world.address(*o) == Some(address));
        same.find(|other| self.network_of(*other) == Some(network))
    }

    /// A hostile node sends from an address that is not its own.
    pub(super) fn lie(&mut self, liar: NodeIndex, kind: HostileNode) {
        if kind != HostileNode::SpoofAddresses {
            return;
        }
        let count = self.world.node_count();
        let (victim, to) = (NodeIndex(self.draw(count)), NodeIndex(self.draw(count)));
        let now = self.world.elapsed();
        let to = self.namesake(liar, to).unwrap_or(to);
        if victim != liar
            && to != liar
            && let Some(probe) = self.world.send_spoofed(liar, victim, to, 64)
        {
            self.model.probe_sent(probe, now);
        }
    }

    pub(super) fn draw(&mut self, below: usize) -> usize {
        self.rng.next_u32() as usize % below.max(1)
    }
}

pub(super) const SECOND: NetworkId = NetworkId(2);

/// The second network, with the subnet of the first.
fn second_network() -> NetworkRecord {
    NetworkRecord {
        id: SECOND,
        name: "second".to_owned(),
        subnet: ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 1, 0), 24),
        subnet6: None,
        description: String::new(),
    }
}
