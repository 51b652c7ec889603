//! Who is how far from whom, and the best way between two nodes (specification §5.3). Microseconds throughout.

use edgelink_model::rtt::{margin, significantly};
use edgelink_model::{NodeId, ServerId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A figure that is not renewed for so long is forgotten (DESIGN §4).
pub const STALE: Duration = Duration::from_secs(90);
/// What is longer than this is no round trip but a mistake, and not taken.
pub const MAX_RTT_US: u64 = 60_000_000;

/// Round-trip times node ↔ relay and relay ↔ relay, as smoothed by the node or relay that measures them: to smooth them
/// again here would only delay what has changed. A missing figure is missing, not zero.
#[derive(Clone, Debug, Default)]
pub struct LatencyMatrix {
    nodes: BTreeMap<NodeId, BTreeMap<ServerId, Sample>>,
    /// The relay that measured first. The way is as long in either direction, so one of the two words suffices.
    mesh: BTreeMap<(ServerId, ServerId), Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    rtt_us: u64,
    at: Instant,
    /// What it was when paths were computed last.
    basis: u64,
}

/// The two ends of a measured way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leg {
    /// A node and a relay.
    Node(NodeId, ServerId),
    /// Two relays, the one that measured first.
    Mesh(ServerId, ServerId),
}

/// A way through one relay or two, as seen from its first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BestPath {
    /// The relay that the first node sends to.
    pub relay: ServerId,
    /// The relay that the second node is at, if that is another one.
    pub via: Option<ServerId>,
    /// Round-trip time end to end.
    pub latency_us: u64,
}

impl LatencyMatrix {
    /// A node measured a relay. Tells whether the figure is new or has moved by more than max(5 ms, 15 %) since paths
    /// were computed last.
    pub fn report_node(&mut self, node: NodeId, relay: ServerId, rtt_us: u64, now: Instant) -> bool {
        let sample = self.nodes.entry(node).or_default();
        take(sample, relay, rtt_us, now)
    }

    /// A relay measured another. Tells the same.
    pub fn report_mesh(&mut self, a: ServerId, b: ServerId, rtt_us: u64, now: Instant) -> bool {
        a != b && take(&mut self.mesh, (a, b), rtt_us, now)
    }

    /// Node ↔ relay, if known.
    pub fn node(&self, node: NodeId, relay: ServerId) -> Option<u64> {
        Some(self.nodes.get(&node)?.get(&relay)?.rtt_us)
    }

    /// Relay ↔ relay, if known: the newer of what the two say.
    pub fn mesh(&self, a: ServerId, b: ServerId) -> Option<u64> {
        let words = [self.mesh.get(&(a, b)), self.mesh.get(&(b, a))];
        Some(words.into_iter().flatten().max_by_key(|sample| sample.at)?.rtt_us)
    }

    /// Relay `a` is not linked with `b` any more.
    pub fn forget_mesh(&mut self, a: ServerId, b: ServerId) -> bool {
        self.mesh.remove(&(a, b)).is_some()
    }

    /// Forgets what was not renewed, and says what that was.
    pub fn expire(&mut self, now: Instant) -> Vec<Leg> {
        let stale = |sample: &Sample| now.saturating_duration_since(sample.at) >= STALE;
        let mut gone = Vec::new();
        self.nodes.retain(|node, relays| {
            relays.retain(|relay, sample| {
                let stale = stale(sample);
                if stale {
                    gone.push(Leg::Node(*node, *relay));
                }
                !stale
            });
            !relays.is_empty()
        });
        self.mesh.retain(|(a, b), sample| {
            let stale = stale(sample);
            if stale {
                gone.push(Leg::Mesh(*a, *b));
            }
            !stale
        });
        gone
    }

    /// Every figure.
    pub fn iter(&self) -> impl Iterator<Item = (Leg, u64)> + '_ {
        let nodes = self
            .nodes
            .iter()
            .flat_map(|(node, relays)| relays.iter().map(|(relay, sample)| (Leg::Node(*node, *relay), sample.rtt_us)));
        nodes.chain(self.mesh.iter().map(|((a, b), sample)| (Leg::Mesh(*a, *b), sample.rtt_us)))
    }

    /// Every figure with the moment at which it was measured last.
    pub fn samples(&self) -> impl Iterator<Item = (Leg, u64, Instant)> + '_ {
        let nodes = self.nodes.iter().flat_map(|(node, relays)| {
            relays.iter().map(|(relay, sample)| (Leg::Node(*node, *relay), sample.rtt_us, sample.at))
        });
        nodes.chain(self.mesh.iter().map(|((a, b), sample)| (Leg::Mesh(*a, *b), sample.rtt_us, sample.at)))
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.mesh.is_empty()
    }

    /// How long a given way is, if all its parts are known.
    pub fn length(&self, src: NodeId, dst: NodeId, relay: ServerId, via: Option<ServerId>) -> Option<u64> {
        let first = self.node(src, relay)?;
        match via {
            None => Some(first + self.node(dst, relay)?),
            Some(via) => Some(first + self.mesh(relay, via)? + self.node(dst, via)?),
        }
    }

    /// The best way from `src`, which is at the relays `from`, to `dst`, at the relays `to`: the shortest; of equal ones
    /// the one with fewer hops; of those the one with the lowest ids. Specification §5.3's algorithm: one relay that
    /// both are at, or two with a measured link.
    pub fn best_path(&self, src: NodeId, from: &[ServerId], dst: NodeId, to: &[ServerId]) -> Option<BestPath> {
        // Least first leg, then least rest: each relay of `to` once per relay of `from`.
        let last: Vec<(ServerId, u64)> =
            to.iter().filter_map(|relay| Some((*relay, self.node(dst, *relay)?))).collect();
        let mut best: Option<(u64, u8, ServerId, ServerId)> = None;
        for relay in from {
            let Some(first) = self.node(src, *relay) else { continue };
            for (via, rest) in &last {
                let (middle, hops) = match via == relay {
                    true => (Some(0), 1),
                    false => (self.mesh(*relay, *via), 2),
                };
                let Some(middle) = middle else { continue };
                let candidate = (first + middle + rest, hops, *relay, *via);
                if best.is_none_or(|best| candidate < best) {
                    best = Some(candidate);
                }
            }
        }
        let (latency_us, _, relay, via) = best?;
        Some(BestPath { relay, via: (via != relay).then_some(via), latency_us })
    }

    /// The present way if it still exists and the best is not better by more than max(5 ms, 15 %); else the best.
    pub fn with_hysteresis(
        &self,
        present: Option<BestPath>,
        src: NodeId,
        from: &[ServerId],
        dst: NodeId,
        to: &[ServerId],
    ) -> Option<BestPath> {
        let best = self.best_path(src, from, dst, to)?;
        let present = present.filter(|path| from.contains(&path.relay) && to.contains(&path.via.unwrap_or(path.relay)));
        let present = present
            .and_then(|path| Some(BestPath { latency_us: self.length(src, dst, path.relay, path.via)?, ..path }));
        match present {
            Some(present) if best.latency_us.saturating_add(margin(present.latency_us)) >= present.latency_us => {
                Some(present)
            }
            _ => Some(best),
        }
    }
}

fn take<K: Ord>(samples: &mut BTreeMap<K, Sample>, key: K, rtt_us: u64, now: Instant) -> bool {
    if rtt_us > MAX_RTT_US {
        return false;
    }
    match samples.get_mut(&key) {
        Some(sample) => {
            (sample.rtt_us, sample.at) = (rtt_us, now);
            let moved = significantly(sample.basis, rtt_us);
            if moved {
                sample.basis = rtt_us;
            }
            moved
        }
        None => {
            samples.insert(key, Sample { rtt_us, at: now, basis: rtt_us });
            true
        }
    }
}
