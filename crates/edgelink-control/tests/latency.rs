//! The best path, beside one that is found by trying everything (specification §5.3).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use edgelink_control::latency::{BestPath, LatencyMatrix, Leg, STALE};
use edgelink_model::rtt::margin;
use edgelink_model::{NodeId, ServerId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

#[expect(clippy::disallowed_methods, reason = "any origin will do")]
fn origin() -> Instant {
    Instant::now()
}

fn relay(id: u32) -> ServerId {
    ServerId(id)
}

/// What was measured between A or B and relays, and between relays.
#[derive(Clone, Debug)]
struct Measured {
    nodes: BTreeMap<(u32, u32), u64>,
    mesh: BTreeMap<(u32, u32), u64>,
    from: Vec<ServerId>,
    to: Vec<ServerId>,
}

fn measured() -> impl Strategy<Value = Measured> {
    // Few distinct values, so that ties are common; zero is a value.
    let rtt = || prop_oneof![3 => (0u64..6).prop_map(|n| n * 10_000), 1 => 0u64..300_000];
    (
        prop::collection::btree_map((1u32..3, 1u32..7), rtt(), 0..12),
        prop::collection::btree_map((1u32..7, 1u32..7), rtt(), 0..20),
        prop::collection::btree_set(1u32..7, 0..7),
        prop::collection::btree_set(1u32..7, 0..7),
    )
        .prop_map(|(nodes, mesh, from, to)| Measured {
            nodes,
            mesh: mesh.into_iter().filter(|((a, b), _)| a < b).collect(),
            from: from.into_iter().map(relay).collect(),
            to: to.into_iter().map(relay).collect(),
        })
}

fn matrix(measured: &Measured, now: Instant) -> LatencyMatrix {
    let mut matrix = LatencyMatrix::default();
    for ((node, at), rtt) in &measured.nodes {
        matrix.report_node(NodeId(*node), relay(*at), *rtt, now);
    }
    for ((a, b), rtt) in &measured.mesh {
        matrix.report_mesh(relay(*a), relay(*b), *rtt, now);
    }
    matrix
}

/// Every way there is, by the specification's own words, from the numbers that were measured.
fn all_ways(m: &Measured) -> Vec<(u64, usize, ServerId, Option<ServerId>)> {
    let node = |node: NodeId, at: ServerId| m.nodes.get(&(node.0, at.0)).copied();
    let mut ways = Vec::new();
    for common in m.from.iter().filter(|at| m.to.contains(at)) {
        if let (Some(first), Some(last)) = (node(A, *common), node(B, *common)) {
            ways.push((first + last, 1, *common, None));
        }
    }
    for src in &m.from {
        for dst in m.to.iter().filter(|dst| *dst != src) {
            let link = m.mesh.get(&(src.0.min(dst.0), src.0.max(dst.0)));
            if let (Some(first), Some(link), Some(last)) = (node(A, *src), link, node(B, *dst)) {
                ways.push((first + link + last, 2, *src, Some(*dst)));
            }
        }
    }
    ways
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_best_path_is_the_best_of_all(m in measured()) {
        let matrix = matrix(&m, origin());
        let ways = all_ways(&m);
        let best = matrix.best_path(A, &m.from, B, &m.to);
        match ways.iter().min() {
            None => prop_assert_eq!(best, None),
            Some((latency, hops, ..)) => {
                let best = best.unwrap();
                prop_assert_eq!(best.latency_us, *latency);
                prop_assert_eq!(1 + usize::from(best.via.is_some()), *hops, "the fewer hops on a tie");
                prop_assert!(ways.contains(&(*latency, *hops, best.relay, best.via)));
            }
        }
        // The other way round it is as long.
        let back = matrix.best_path(B, &m.to, A, &m.from);
        prop_assert_eq!(back.map(|path| path.latency_us), best.map(|path| path.latency_us));
    }

    /// Whatever was chosen before, what is chosen now exists, and is no worse than the best by more than the hysteresis.
    #[test]
    fn the_choice_is_within_hysteresis_of_the_best(m in measured(), relay_id in 1u32..7, via in 0u32..7) {
        let matrix = matrix(&m, origin());
        let via = (via != 0 && via != relay_id).then_some(relay(via));
        let present = BestPath { relay: relay(relay_id), via, latency_us: 1 };
        let ways = all_ways(&m);
        let chosen = matrix.with_hysteresis(Some(present), A, &m.from, B, &m.to);
        match ways.iter().map(|way| way.0).min() {
            None => prop_assert_eq!(chosen, None),
            Some(best) => {
                let chosen = chosen.unwrap();
                let found = ways.iter().find(|way| (way.2, way.3) == (chosen.relay, chosen.via));
                prop_assert_eq!(found.map(|way| way.0), Some(chosen.latency_us), "it exists and is as long as it says");
                prop_assert!(chosen.latency_us <= best + margin(chosen.latency_us));
                let kept = (chosen.relay, chosen.via) == (present.relay, present.via);
                prop_assert!(kept || chosen.latency_us == best, "what is left is left for the best");
            }
        }
    }
}

#[test]
fn hysteresis_is_exactly_the_greater_of_5_ms_and_15_percent() {
    let now = origin();
    let (at, to) = ([relay(1), relay(2)], [relay(1), relay(2)]);
    let stays = |present: u64, other: u64| {
        let mut matrix = LatencyMatrix::default();
        for (id, rtt) in [(1, present), (2, other)] {
            matrix.report_node(A, relay(id), rtt, now);
            matrix.report_node(B, relay(id), 0, now);
        }
        let path = BestPath { relay: relay(1), via: None, latency_us: present };
        matrix.with_hysteresis(Some(path), A, &at, B, &to).unwrap().relay == relay(1)
    };
    assert!(stays(20_000, 15_000) && !stays(20_000, 14_999));
    assert!(stays(100_000, 85_000) && !stays(100_000, 84_999));
}

#[test]
fn what_is_not_renewed_for_90_s_is_missing_and_not_zero() {
    let now = origin();
    let mut matrix = LatencyMatrix::default();
    matrix.report_node(A, relay(1), 7, now);
    matrix.report_node(B, relay(1), 0, now + Duration::from_secs(1));
    matrix.report_mesh(relay(2), relay(1), 9, now + Duration::from_secs(1));
    assert_eq!(matrix.mesh(relay(1), relay(2)), Some(9), "one relay's word suffices");
    assert!(matrix.expire(now + STALE - Duration::from_millis(1)).is_empty());
    assert_eq!(matrix.expire(now + STALE), [Leg::Node(A, relay(1))]);
    assert_eq!(matrix.node(A, relay(1)), None);
    assert_eq!(matrix.best_path(A, &[relay(1)], B, &[relay(1)]), None);
    assert_eq!(matrix.node(B, relay(1)), Some(0));
    assert_eq!(matrix.expire(now + STALE + Duration::from_secs(1)).len(), 2);
    assert!(matrix.is_empty());
}

#[test]
fn a_figure_counts_as_moved_when_it_left_what_paths_were_computed_with() {
    let now = origin();
    let mut matrix = LatencyMatrix::default();
    let mut mesh = |rtt| matrix.report_mesh(relay(1), relay(2), rtt, now);
    assert!(mesh(20_000), "new");
    assert!(!mesh(24_000) && !mesh(25_000), "small steps, not yet 5 ms away");
    assert!(mesh(25_001));
    assert!(!mesh(25_001) && !mesh(30_001) && mesh(30_002));
    assert!(!matrix.report_mesh(relay(1), relay(1), 5, now), "no relay is far from itself");
    assert!(!matrix.report_node(A, relay(1), u64::MAX, now) && matrix.node(A, relay(1)).is_none(), "a mistake");
}
