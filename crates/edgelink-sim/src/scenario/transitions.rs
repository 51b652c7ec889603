//! What each transition does, to the world and to the model, and how it ends.

use super::player::{Player, SECOND};
use super::{IDLE_PATH_DEAD, MAX_NODES, MAX_RELAYS, Quality, Transition};
use crate::streams::{Line, Party};
use crate::world::{NodeIndex, RelayIndex, WorldConfig};
use edgelink_model::NetworkId;
use std::time::Duration;

/// The end of something that lasts for a while.
#[derive(Clone, Copy, Debug)]
pub(super) enum Undo {
    StartNode(NodeIndex),
    StartRelay(RelayIndex),
    StartController,
    EnableRelay(RelayIndex),
    Mend(Party, Party),
    Attach(NodeIndex),
    PassUdp(NodeIndex),
    Reunite,
    Wake(NodeIndex),
    Admit(NodeIndex),
    EndDouble(NodeIndex, NodeIndex),
    HonestRelay(RelayIndex),
    HonestController,
}

impl Player<'_> {
    pub(super) fn apply(&mut self, what: &Transition) {
        let now = self.world.elapsed();
        match *what {
            Transition::Join { second, clock_error_s } => self.join(second, clock_error_s),
            Transition::StopNode { node, power, for_s } => {
                let node = self.node(node);
                if self.world.is_running(node) {
                    self.stop_node(node, power);
                    self.later(for_s, Undo::StartNode(node));
                }
            }
            Transition::StopRelay { relay, power, for_s } => {
                let relay = self.relay(relay);
                if self.world.relay_is_running(relay) {
                    self.stop_relay(relay, power);
                    self.later(for_s, Undo::StartRelay(relay));
                }
            }
            Transition::StopController { relay_too, for_s } => {
                self.stop_controller();
                self.later(for_s, Undo::StartController);
                if relay_too && self.world.relay_is_running(RelayIndex::BUILTIN) {
                    self.stop_relay(RelayIndex::BUILTIN, false);
                    self.later(for_s, Undo::StartRelay(RelayIndex::BUILTIN));
                }
            }
            Transition::StopEverything { for_s } => {
                self.stop_controller();
                self.later(for_s, Undo::StartController);
                for relay in (0..self.world.relay_count()).map(RelayIndex) {
                    if self.world.relay_is_running(relay) {
                        self.stop_relay(relay, true);
                        self.later(for_s, Undo::StartRelay(relay));
                    }
                }
                for node in (0..self.world.node_count()).map(NodeIndex) {
                    if self.world.is_running(node) {
                        self.stop_node(node, true);
                        self.later(for_s, Undo::StartNode(node));
                    }
                }
            }
            Transition::AddRelay => {
                if self.world.relay_count() < MAX_RELAYS {
                    self.add_relay();
                }
            }
            Transition::DisableRelay { relay, for_s } => {
                let relay = self.relay(relay);
                self.enable_relay(relay, false);
                self.later(for_s, Undo::EnableRelay(relay));
            }
            Transition::CutRelay { node, relay, one_way, for_s } => {
                let (node, relay) = (self.node(node), self.relay(relay));
                if one_way {
                    self.world.set_cut_one_way(relay.party(), node.party(), true);
                } else {
                    self.world.set_cut(node.party(), relay.party(), true);
                }
                self.model.cut(node.party(), relay.party(), true, now);
                self.later(for_s, Undo::Mend(node.party(), relay.party()));
            }
            Transition::CutMesh { relay, other, for_s } => {
                let (one, other) = (self.relay(relay).party(), self.relay(other).party());
                self.cut(one, other, true);
                self.later(for_s, Undo::Mend(one, other));
            }
            Transition::CutUplink { relay, for_s } => {
                let relay = self.relay(relay).party();
                self.cut(relay, Party::Controller, true);
                self.later(for_s, Undo::Mend(relay, Party::Controller));
            }
            Transition::CutController { node, for_s } => {
                let node = self.node(node).party();
                self.cut(node, Party::Controller, true);
                self.later(for_s, Undo::Mend(node, Party::Controller));
            }
            Transition::Isolate { node, for_s } => {
                let index = self.node(node);
                self.world.set_attached(index, false);
                self.later(for_s, Undo::Attach(index));
                let node = index.party();
                let relays = (0..self.world.relay_count()).map(Party::Relay);
                for other in relays.chain([Party::Controller]) {
                    self.cut(node, other, true);
                    self.later(for_s, Undo::Mend(node, other));
                }
            }
            Transition::Reset { node } => {
                let node = self.node(node);
                for relay in 0..self.world.relay_count() {
                    self.world.reset(node.party(), Party::Relay(relay));
                }
                self.world.reset(node.party(), Party::Controller);
                self.model.disturb_node(node, now);
            }
            Transition::Roam { node } => {
                let node = self.node(node);
                self.world.roam_node(node);
                self.model.disturb_node(node, now);
            }
            Transition::Sleep { node, suspended, for_s } => {
                let node = self.node(node);
                self.world.put_to_sleep(node, suspended);
                self.model.node_asleep(node, true, now);
                self.later(for_s, Undo::Wake(node));
            }
            Transition::SetClock { node, error_s } => {
                let node = self.node(node);
                let forward = self.world.set_clock_error(node, i64::from(error_s) * 1000);
                self.model.disturb_node(node, now);
                // It cannot tell this from having been suspended: the controller has to tell the time.
                if forward > 0 {
                    self.model.need_controller([node]);
                }
            }
            Transition::SetLines { node, quality } => {
                let node = self.node(node);
                for relay in 0..self.world.relay_count() {
                    self.world.set_line(node.party(), Party::Relay(relay), quality.line());
                }
                self.world.set_line(node.party(), Party::Controller, quality.line());
                self.model.disturb_node(node, now);
            }
            Transition::Expel { node, for_s } => {
                let node = self.node(node);
                if self.is_member(node) && !self.hostile_controller {
                    self.set_member(node, false);
                    self.later(for_s, Undo::Admit(node));
                }
            }
            Transition::RevokeTokens { node } => {
                let node = self.node(node);
                if let Some(id) = self.world.node_id(node) {
                    self.world.database.revoke_tokens(id, self.unix_secs());
                    for each in self.with_identity_of(node) {
                        self.model.disturb_node(each, now);
                        self.model.need_controller([each]);
                    }
                }
            }
            Transition::Double { node, for_s } => {
                let node = self.node(node);
                let room = self.world.node_count() < MAX_NODES;
                if room && !self.hostile_controller && !self.is_liar(node) && self.is_unique(node) {
                    self.double(node, for_s);
                }
            }
            Transition::HostileRelay { relay, kind, for_s } => {
                let relay = self.relay(relay);
                self.world.set_hostile_relay(relay, Some(kind));
                self.model.relay_hostile(relay, true, now);
                self.later(for_s, Undo::HonestRelay(relay));
            }
            Transition::HostileNode { node, kind } => {
                let node = self.node(node);
                // At least two honest ones remain.
                let doubled = self.doubles.contains(&node.0);
                if !self.hostile_controller && !doubled && self.liars.len() + 2 < self.world.node_count() {
                    self.world.set_hostile_node(node, Some(kind));
                    self.model.node_hostile(node, true, now);
                    self.liars.insert(node.0, kind);
                }
            }
            Transition::HostileController { for_s } => {
                // Who meets somebody for the first time has to believe the controller (DESIGN §2).
                if self.model.all_introduced() && self.liars.is_empty() && !self.hostile_controller {
                    self.hostile_controller = true;
                    self.world.set_hostile_controller(true);
                    self.model.controller_hostile(true, now);
                    self.later(for_s, Undo::HonestController);
                }
            }
            Transition::MoveTo { node, site } => {
                let node = self.node(node);
                self.world.move_node(node, site);
                self.model.disturb_node(node, now);
            }
            Transition::RebootRouter { node, new_address } => {
                let node = self.node(node);
                self.world.reboot_router(node, new_address);
                self.disturb_site(node);
            }
            Transition::BlockUdp { node, for_s } => {
                let node = self.node(node);
                self.world.set_udp_blocked(node, true);
                self.later(for_s, Undo::PassUdp(node));
                self.disturb_site(node);
            }
            Transition::OnlyKeepalives { node, for_s } => {
                let node = self.node(node);
                if self.world.has_udp(node) {
                    self.only_keepalives(node, for_s);
                }
            }
            Transition::SetUplink { node, quality } => {
                let node = self.node(node);
                self.set_uplink(node, quality);
            }
            Transition::Partition { parts, for_s } => self.partition(parts, for_s),
            Transition::Rotate { every_s } => {
                // A setting of the controller; it reads it when it starts.
                if !self.hostile_controller {
                    self.world.set_rotation(every_s);
                    self.stop_controller();
                    self.end(Undo::StartController);
                }
            }
            Transition::Burst { from, to, packets, len } => {
                let (from, to) = (self.node(from), self.node(to));
                for _ in 0..if from == to { 0 } else { packets } {
                    self.probe(from, to, len.into());
                }
            }
        }
    }

    pub(super) fn end(&mut self, undo: Undo) {
        let now = self.world.elapsed();
        match undo {
            Undo::StartNode(node) => {
                if !self.retired.contains(&node.0) {
                    self.world.start_node(node);
                    self.model.node_running(node, true, now);
                }
            }
            Undo::StartRelay(relay) => {
                self.world.start_relay(relay);
                self.model.relay_running(relay, true, now);
            }
            Undo::StartController => {
                self.world.start_controller();
                self.model.controller_running(true, now);
            }
            Undo::EnableRelay(relay) => self.enable_relay(relay, true),
            Undo::Mend(a, b) => self.cut(a, b, false),
            Undo::Attach(node) => self.world.set_attached(node, true),
            Undo::Reunite => self.world.reunite(),
            Undo::PassUdp(node) => self.world.set_udp_blocked(node, false),
            Undo::Wake(node) => {
                self.world.wake_node(node);
                self.model.node_asleep(node, false, now);
            }
            Undo::Admit(node) => self.set_member(node, true),
            Undo::EndDouble(original, copy) => {
                self.world.kill_node(copy);
                self.retired.insert(copy.0);
                self.model.node_running(copy, false, now);
                self.model.node_doubled(original, false, now);
            }
            Undo::HonestRelay(relay) => {
                self.world.set_hostile_relay(relay, None);
                self.model.relay_hostile(relay, false, now);
            }
            Undo::HonestController => {
                self.hostile_controller = false;
                self.world.set_hostile_controller(false);
                self.model.controller_hostile(false, now);
                self.model.controller_running(true, now);
                let relay = self.world.relay_is_running(RelayIndex::BUILTIN);
                self.model.relay_running(RelayIndex::BUILTIN, relay, now);
            }
        }
    }

    pub(super) fn partition(&mut self, parts: u16, for_s: u16) {
        let bit = |n: usize| parts >> (n % 16) & 1 == 1;
        let nodes = (0..self.world.node_count()).map(|n| (Party::Node(n), bit(n)));
        let relays = (0..self.world.relay_count()).map(|n| (Party::Relay(n), bit(8 + n)));
        let all: Vec<(Party, bool)> = nodes.chain(relays).chain([(Party::Controller, bit(15))]).collect();
        for (n, (a, one)) in all.iter().enumerate() {
            for (b, other) in all.iter().skip(n + 1) {
                if one != other && !matches!((a, b), (Party::Node(_), Party::Node(_))) {
                    self.cut(*a, *b, true);
                    self.later(for_s, Undo::Mend(*a, *b));
                }
            }
        }
        // Datagrams between nodes do not pass either.
        let (one, other): (Vec<_>, Vec<_>) = (0..self.world.node_count()).map(NodeIndex).partition(|n| bit(n.0));
        self.world.set_apart(&one, &other);
        self.later(for_s, Undo::Reunite);
    }

    /// A keepalive is no sign of life (DESIGN §5): after three of them, each with a sealed PING that is not answered, nobody
    /// may still take the node's direct paths for alive.
    pub(super) fn only_keepalives(&mut self, node: NodeIndex, for_s: u16) {
        self.world.set_only_keepalives(node, true);
        self.disturb_site(node);
        self.quiet = true;
        self.pass(IDLE_PATH_DEAD + Duration::from_secs(for_s.into()));
        self.quiet = false;
        for (a, b) in self.model.living_pairs() {
            if (a == node || b == node) && self.is_direct(a, b) {
                let at = self.world.elapsed();
                self.violations
                    .push(format!("{at:?}: node {} takes a path to node {} for alive by keepalives", a.0, b.0));
            }
        }
        self.world.set_only_keepalives(node, false);
    }

    pub(super) fn set_uplink(&mut self, node: NodeIndex, quality: Quality) {
        self.world.set_uplink(node, quality.line());
        self.disturb_site(node);
        self.model.node_lossy(node, self.world.has_udp(node) && quality.line().loss > 0.0, self.world.elapsed());
    }

    /// What befalls UDP at a site befalls all nodes there. Only some of them have direct paths to lose.
    pub(super) fn disturb_site(&mut self, node: NodeIndex) {
        if self.world.has_udp(node) {
            self.model.disturb_all(self.world.elapsed());
        }
    }

    pub(super) fn later(&mut self, for_s: u16, undo: Undo) {
        self.undos += 1;
        let at = self.world.elapsed() + Duration::from_secs(for_s.into());
        self.undo.insert((at, self.undos), undo);
    }

    pub(super) fn join(&mut self, second: bool, clock_error_s: i32) {
        if self.world.node_count() >= MAX_NODES || self.hostile_controller {
            return;
        }
        let network = if second { SECOND } else { NetworkId(1) };
        let name = format!("n{}", self.world.node_count());
        let sites = self.scenario.setup.sites;
        let site = sites.get(self.world.node_count() % sites.len()).copied().unwrap_or_default();
        let node = self.world.add_node_at(&name, network, i64::from(clock_error_s) * 1000, site);
        for relay in 0..self.world.relay_count() {
            self.world.set_line(node.party(), Party::Relay(relay), self.line(relay));
        }
        self.model.joined(node, network, self.world.elapsed());
    }

    pub(super) fn add_relay(&mut self) {
        let relay = self.world.add_relay("region");
        for node in 0..self.world.node_count() {
            self.world.set_line(Party::Node(node), relay.party(), self.line(relay.0));
        }
        self.model.relay_added(relay, self.world.elapsed());
    }

    /// Relays are at different distances.
    pub(super) fn line(&self, relay: usize) -> Line {
        let line = self.scenario.setup.lines.line();
        Line { delay: line.delay * (2 + relay as u32) / 2, ..line }
    }

    pub(super) fn double(&mut self, node: NodeIndex, for_s: u16) {
        let Some(network) = self.network_of(node) else { return };
        let now = self.world.elapsed();
        let Some(copy) = self.world.clone_node(node) else { return };
        self.model.joined(copy, network, now);
        self.model.node_doubled(copy, true, now);
        self.model.node_doubled(node, true, now);
        self.doubles.extend([node.0, copy.0]);
        self.later(for_s, Undo::EndDouble(node, copy));
    }

    pub(super) fn stop_node(&mut self, node: NodeIndex, power: bool) {
        if power {
            self.world.power_off_node(node)
        } else {
            self.world.kill_node(node)
        }
        self.model.node_asleep(node, false, self.world.elapsed());
        self.model.node_running(node, false, self.world.elapsed());
    }

    pub(super) fn stop_relay(&mut self, relay: RelayIndex, power: bool) {
        if power {
            self.world.power_off_relay(relay)
        } else {
            self.world.kill_relay(relay)
        }
        self.model.relay_running(relay, false, self.world.elapsed());
    }

    pub(super) fn stop_controller(&mut self) {
        self.world.kill_controller();
        self.model.controller_running(false, self.world.elapsed());
    }

    pub(super) fn enable_relay(&mut self, relay: RelayIndex, enabled: bool) {
        if let Some(id) = self.world.server_id(relay) {
            self.world.database.enable_server(id, enabled);
            self.model.relay_enabled(relay, enabled, self.world.elapsed());
        }
    }

    pub(super) fn cut(&mut self, a: Party, b: Party, cut: bool) {
        self.world.set_cut(a, b, cut);
        self.model.cut(a, b, cut, self.world.elapsed());
    }

    pub(super) fn set_member(&mut self, node: NodeIndex, member: bool) {
        let Some(id) = self.world.node_id(node) else { return };
        if member {
            // The subnet has room for more nodes than a scenario makes.
            let _ = self.world.database.authorize(id);
        } else {
            self.world.database.deauthorize(id, self.unix_secs() + 1);
        }
        let version = self.world.database.version();
        for each in self.with_identity_of(node) {
            self.model.node_member(each, member, version, self.world.elapsed());
        }
    }

    /// Everybody who has a node's identity.
    pub(super) fn with_identity_of(&self, node: NodeIndex) -> Vec<NodeIndex> {
        let id = self.world.node_id(node);
        (0..self.world.node_count()).map(NodeIndex).filter(|other| self.world.node_id(*other) == id).collect()
    }

    /// Neither a copy that has ended nor somebody of whom there is a copy now.
    pub(super) fn is_unique(&self, node: NodeIndex) -> bool {
        let all = self.with_identity_of(node);
        let mut others = all.into_iter().filter(|other| *other != node);
        !self.retired.contains(&node.0) && others.all(|other| self.retired.contains(&other.0))
    }

    pub(super) fn is_member(&self, node: NodeIndex) -> bool {
        let row = self.world.node_id(node).and_then(|id| self.world.database.node(id));
        row.is_some_and(|row| row.authorized) && !self.is_liar(node)
    }

    pub(super) fn is_liar(&self, node: NodeIndex) -> bool {
        self.liars.contains_key(&node.0)
    }

    pub(super) fn network_of(&self, node: NodeIndex) -> Option<NetworkId> {
        self.world.node_id(node).and_then(|id| self.world.database.node(id)).map(|row| row.network_id)
    }

    pub(super) fn unix_secs(&self) -> u64 {
        (WorldConfig::default().unix_ms + self.world.elapsed().as_millis() as u64) / 1000
    }

    pub(super) fn node(&self, number: u8) -> NodeIndex {
        NodeIndex(usize::from(number) % self.world.node_count().max(1))
    }

    pub(super) fn relay(&self, number: u8) -> RelayIndex {
        RelayIndex(usize::from(number) % self.world.relay_count().max(1))
    }
}
