//! Best paths for pairs that talk, and the relays' next hops (specification §5.3, DESIGN §4): computed when a figure
//! that they use has moved, told when the choice or its length has.

use crate::fanout::COALESCE;
use crate::latency::{BestPath, Leg, STALE};
use crate::registry::is_member;
use crate::{Control, messages};
use edgelink_model::rtt::{margin, significantly};
use edgelink_model::{NodeId, Now, ServerId};
use edgelink_wire::Flags;
use edgelink_wire::control::{ControlMessage, proto};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Of one report so many peers and relays are looked at.
const MAX_REPORTED: usize = 4_096;
/// Pairs for which paths are kept; more talk without advice.
const MAX_PAIRS: usize = 1 << 20;
/// Stale figures and silent pairs are looked for this often.
const SWEEP: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Paths {
    /// Lower id first; the path as that node sees it.
    pairs: BTreeMap<(NodeId, NodeId), Pair>,
    by_node: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// By destination: at which relay frames for it go to which other relay.
    hops: BTreeMap<NodeId, BTreeMap<ServerId, ServerId>>,
    /// Nodes whose pairs and next hops are to be computed anew, or all.
    dirty: BTreeSet<NodeId>,
    all_dirty: bool,
    pub(crate) flush_at: Option<Instant>,
    pub(crate) sweep_at: Option<Instant>,
}

#[derive(Debug)]
struct Pair {
    /// When one of the two last said that they talk.
    seen: Instant,
    path: Option<BestPath>,
    /// What both ends were told; outer `None`: nothing yet.
    told: Option<Option<BestPath>>,
}

impl Paths {
    pub(crate) fn next(&self) -> Option<Instant> {
        self.flush_at.into_iter().chain(self.sweep_at).min()
    }

    /// The node is gone for good.
    pub(crate) fn forget(&mut self, node: NodeId) {
        for peer in self.by_node.remove(&node).unwrap_or_default() {
            self.pairs.remove(&(node.min(peer), node.max(peer)));
            if let Some(peers) = self.by_node.get_mut(&peer) {
                peers.remove(&node);
            }
        }
    }

    /// The node has a new connection and knows nothing: tell it everything again.
    pub(crate) fn retell(&mut self, node: NodeId) {
        for peer in self.by_node.get(&node).into_iter().flatten() {
            if let Some(pair) = self.pairs.get_mut(&(node.min(*peer), node.max(*peer))) {
                pair.told = None;
            }
        }
    }

    /// The next hops of one relay.
    pub(crate) fn hops_at(&self, relay: ServerId) -> Vec<proto::NextHop> {
        let hop = |(node, hops): (&NodeId, &BTreeMap<ServerId, ServerId>)| {
            hops.get(&relay).map(|to| proto::NextHop { node_id: node.0, server_id: to.0 })
        };
        self.hops.iter().filter_map(hop).collect()
    }

    /// Every pair with a path: (lower id, higher id, the path as the lower sees it).
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, NodeId, BestPath)> + '_ {
        self.pairs.iter().filter_map(|((a, b), pair)| Some((*a, *b, pair.path?)))
    }
}

impl Control {
    /// LATENCY_REPORT of a node.
    pub(crate) fn node_report(&mut self, node: NodeId, report: &proto::LatencyReport, now: Now) {
        let mut moved = false;
        for latency in report.latencies.iter().take(MAX_REPORTED) {
            let relay = ServerId(latency.server_id);
            if self.registry.servers.get(&relay).is_some_and(|server| server.relay) {
                moved |= self.latency.report_node(node, relay, latency.rtt_us, now.mono);
            }
        }
        let connected = report.connected_relays.iter().take(MAX_REPORTED).map(|id| ServerId(*id)).collect();
        self.locations.report(node, &connected, now.mono);
        let network = self.registry.nodes.get(&node).map(|record| record.network_id);
        for peer in report.active_peers.iter().take(MAX_REPORTED).map(|id| NodeId(*id)) {
            let member = self.registry.nodes.get(&peer).is_some_and(|r| is_member(r) && Some(r.network_id) == network);
            if peer != node && member && self.talk(node, peer, now) {
                self.mark_path(peer, now);
                moved = true;
            }
        }
        if moved {
            self.mark_path(node, now);
        }
        self.arm_sweep(now);
        self.locations_changed(now);
    }

    /// LATENCY_REPORT of a relay: its links. A relay that it does not name is not linked with it.
    pub(crate) fn relay_report(&mut self, relay: ServerId, report: &proto::LatencyReport, now: Now) {
        let mut moved = false;
        let linked: BTreeSet<ServerId> =
            report.connected_relays.iter().take(MAX_REPORTED).map(|id| ServerId(*id)).collect();
        for latency in report.latencies.iter().take(MAX_REPORTED) {
            let other = ServerId(latency.server_id);
            if linked.contains(&other) && self.registry.servers.get(&other).is_some_and(|server| server.relay) {
                moved |= self.latency.report_mesh(relay, other, latency.rtt_us, now.mono);
            }
        }
        for other in self.registry.servers.keys().filter(|other| !linked.contains(other)) {
            moved |= self.latency.forget_mesh(relay, *other);
        }
        if moved {
            self.mark_all_paths(now);
        }
        self.arm_sweep(now);
    }

    /// A node's place has changed.
    pub(crate) fn mark_path(&mut self, node: NodeId, now: Now) {
        self.paths.dirty.insert(node);
        self.paths.flush_at.get_or_insert(now.mono + COALESCE);
    }

    pub(crate) fn mark_all_paths(&mut self, now: Now) {
        self.paths.all_dirty = true;
        self.paths.flush_at.get_or_insert(now.mono + COALESCE);
    }

    pub(crate) fn arm_sweep(&mut self, now: Now) {
        self.paths.sweep_at.get_or_insert(now.mono + SWEEP);
    }

    /// Computes and tells what is due; forgets what is stale.
    pub(crate) fn paths_due(&mut self, now: Now) {
        if self.paths.sweep_at.is_some_and(|at| at <= now.mono) {
            self.sweep(now);
        }
        if self.paths.flush_at.is_some_and(|at| at <= now.mono) {
            self.flush_paths();
        }
    }

    /// Notes that two nodes talk; whether that is news.
    fn talk(&mut self, node: NodeId, peer: NodeId, now: Now) -> bool {
        let key = (node.min(peer), node.max(peer));
        if let Some(pair) = self.paths.pairs.get_mut(&key) {
            pair.seen = now.mono;
            return false;
        }
        if self.paths.pairs.len() >= MAX_PAIRS {
            return false;
        }
        self.paths.pairs.insert(key, Pair { seen: now.mono, path: None, told: None });
        self.paths.by_node.entry(node).or_default().insert(peer);
        self.paths.by_node.entry(peer).or_default().insert(node);
        true
    }

    fn sweep(&mut self, now: Now) {
        self.paths.sweep_at = None;
        for leg in self.latency.expire(now.mono) {
            match leg {
                Leg::Node(node, _) => self.mark_path(node, now),
                Leg::Mesh(..) => self.mark_all_paths(now),
            }
        }
        let silent = |pair: &Pair| now.mono.saturating_duration_since(pair.seen) >= STALE;
        let over: Vec<(NodeId, NodeId)> =
            self.paths.pairs.iter().filter(|(_, pair)| silent(pair)).map(|(key, _)| *key).collect();
        for (a, b) in over {
            self.paths.pairs.remove(&(a, b));
            for (node, peer) in [(a, b), (b, a)] {
                if let Some(peers) = self.paths.by_node.get_mut(&node) {
                    peers.remove(&peer);
                    if peers.is_empty() {
                        self.paths.by_node.remove(&node);
                    }
                }
                self.mark_path(node, now);
            }
        }
        self.expire_lost_relays(now);
        if !self.latency.is_empty() || !self.paths.pairs.is_empty() || self.relays_lost() {
            self.arm_sweep(now);
        }
    }

    fn flush_paths(&mut self) {
        self.paths.flush_at = None;
        let dirty = std::mem::take(&mut self.paths.dirty);
        let all = std::mem::take(&mut self.paths.all_dirty);
        let pairs: BTreeSet<(NodeId, NodeId)> = match all {
            true => self.paths.pairs.keys().copied().collect(),
            false => dirty
                .iter()
                .filter_map(|node| Some((node, self.paths.by_node.get(node)?)))
                .flat_map(|(node, peers)| peers.iter().map(move |peer| (*node.min(peer), *node.max(peer))))
                .collect(),
        };
        let mut news: BTreeMap<NodeId, Vec<proto::Path>> = BTreeMap::new();
        for (a, b) in pairs {
            self.choose(a, b, &mut news);
        }
        for (node, paths) in news {
            self.send_paths(node, paths);
        }
        let destinations: BTreeSet<NodeId> = match all {
            true => self.paths.by_node.keys().chain(self.paths.hops.keys()).copied().collect(),
            false => dirty,
        };
        self.flush_hops(&destinations);
    }

    fn choose(&mut self, a: NodeId, b: NodeId, news: &mut BTreeMap<NodeId, Vec<proto::Path>>) {
        let (from, to) = (self.located(a), self.located(b));
        let Some(pair) = self.paths.pairs.get_mut(&(a, b)) else { return };
        pair.path = self.latency.with_hysteresis(pair.path, a, &from, b, &to);
        let same_way = |told: &BestPath, path: &BestPath| {
            (told.relay, told.via) == (path.relay, path.via) && !significantly(told.latency_us, path.latency_us)
        };
        let known = match (&pair.told, &pair.path) {
            (Some(Some(told)), Some(path)) => same_way(told, path),
            // Nothing was said, and there is nothing to say.
            (None | Some(None), None) => true,
            _ => false,
        };
        if known {
            return;
        }
        pair.told = Some(pair.path);
        news.entry(a).or_default().push(message(b, pair.path));
        news.entry(b).or_default().push(message(a, pair.path.map(reversed)));
    }

    fn send_paths(&mut self, node: NodeId, paths: Vec<proto::Path>) {
        let Some(conn) = self.presence.conn(node) else { return };
        let Some(version) = self.sent_version(conn) else { return };
        let update = proto::ConfigUpdate { from_version: version, version, paths, ..proto::ConfigUpdate::default() };
        self.stats.path_updates += 1;
        self.send(conn, ControlMessage::ConfigUpdate(update), Flags::default());
    }

    /// For every relay and each of these destinations: the relay to which frames go first, if not straight to the node.
    fn flush_hops(&mut self, destinations: &BTreeSet<NodeId>) {
        let relays: Vec<ServerId> = messages::usable_relays(&self.registry).map(|server| server.id).collect();
        let mut news: BTreeMap<ServerId, Vec<proto::NextHop>> = BTreeMap::new();
        for node in destinations {
            let mut fresh = BTreeMap::new();
            if self.paths.by_node.contains_key(node) {
                let places = self.located(*node);
                for relay in &relays {
                    let present = self.paths.hops.get(node).and_then(|hops| hops.get(relay)).copied();
                    if let Some(to) = self.next_hop(*relay, *node, &places, present) {
                        fresh.insert(*relay, to);
                    }
                }
            }
            let old = match fresh.is_empty() {
                true => self.paths.hops.remove(node),
                false => self.paths.hops.insert(*node, fresh.clone()),
            }
            .unwrap_or_default();
            for (relay, to) in &fresh {
                if old.get(relay) != Some(to) {
                    news.entry(*relay).or_default().push(proto::NextHop { node_id: node.0, server_id: to.0 });
                }
            }
            for relay in old.keys().filter(|relay| !fresh.contains_key(relay)) {
                news.entry(*relay).or_default().push(proto::NextHop { node_id: node.0, server_id: 0 });
            }
        }
        for (relay, hops) in news {
            self.send_hops(relay, hops);
        }
    }

    /// The least of mesh RTT + last-leg RTT; `None`: straight to the node, or unknown.
    fn next_hop(
        &self,
        relay: ServerId,
        node: NodeId,
        places: &[ServerId],
        present: Option<ServerId>,
    ) -> Option<ServerId> {
        let length = |at: ServerId| {
            let last = self.latency.node(node, at)?;
            if at == relay { Some(last) } else { Some(last + self.latency.mesh(relay, at)?) }
        };
        let best = places.iter().filter_map(|at| Some((length(*at)?, *at != relay, *at))).min()?;
        // What is in force now: the advice, or the node itself if it is here.
        let present = present.or_else(|| places.contains(&relay).then_some(relay)).filter(|at| places.contains(at));
        let chosen = match present.and_then(|at| Some((length(at)?, at))) {
            Some((now, at)) if best.0.saturating_add(margin(now)) >= now => at,
            _ => best.2,
        };
        (chosen != relay).then_some(chosen)
    }
}

fn reversed(path: BestPath) -> BestPath {
    match path.via {
        Some(via) => BestPath { relay: via, via: Some(path.relay), ..path },
        None => path,
    }
}

fn message(peer: NodeId, path: Option<BestPath>) -> proto::Path {
    proto::Path {
        node_id: peer.0,
        relay_id: path.map_or(0, |path| path.relay.0),
        via_relay_id: path.and_then(|path| path.via).map_or(0, |via| via.0),
        latency_us: path.map_or(0, |path| path.latency_us),
    }
}
