//! The control core's measurements as REST objects.

use edgelink_api::rest;
use edgelink_api::rest::Timestamp;
use edgelink_control::Control;
use edgelink_control::latency::Leg;
use edgelink_model::{NetworkId, NodeId, Now};
use edgelink_store::LatencyRecord;
use std::time::Instant;

/// What a node said of its paths to its peers.
pub(crate) fn direct(control: &Control, node: NodeId) -> Vec<rest::PeerPath> {
    let path = |(peer, status): (NodeId, &edgelink_control::DirectStatus)| rest::PeerPath {
        node_id: peer.0,
        connected: status.connected,
        endpoint: status.endpoint.map(|endpoint| endpoint.to_string()),
        rtt_ms: status.rtt.map(|rtt| ms(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX))),
        reason: Some(status.reason.clone()).filter(|reason| !reason.is_empty()),
        updated_at: Timestamp::from_unix_ms(status.at),
    };
    control.direct(node).map(path).collect()
}

/// Every measured time as it is kept in the database.
pub(crate) fn records(control: &Control, now: Now) -> Vec<LatencyRecord> {
    let record = |(leg, rtt_us, at): (Leg, u64, Instant)| {
        let (src_type, src_id, dst_id) = ends(leg);
        let recorded_at = moment(at, now);
        let (src_type, dst_type) = (src_type.to_owned(), "server".to_owned());
        LatencyRecord { src_type, src_id, dst_type, dst_id, rtt_us, recorded_at }
    };
    control.latency_matrix().samples().map(record).collect()
}

/// Measured times: of one network's nodes, or of all; relays among each other serve every network.
pub(crate) fn latencies(control: &Control, network: Option<NetworkId>, now: Now) -> Vec<rest::Latency> {
    let samples = control.latency_matrix().samples().filter(|(leg, _, _)| match leg {
        Leg::Node(node, _) => network.is_none() || control.network_of(*node) == network,
        Leg::Mesh(..) => true,
    });
    samples
        .map(|(leg, rtt_us, at)| {
            let (src_type, src_id, dst_id) = ends(leg);
            rest::Latency {
                src_type: src_type.to_owned(),
                src_id,
                dst_type: "server".to_owned(),
                dst_id,
                rtt_ms: ms(rtt_us),
                recorded_at: Timestamp::from_unix_ms(moment(at, now)),
            }
        })
        .collect()
}

/// Best paths of the pairs of one network, or of all.
pub(crate) fn paths(control: &Control, network: Option<NetworkId>) -> Vec<rest::LatencyPath> {
    let path =
        |(src, dst, path): (edgelink_model::NodeId, edgelink_model::NodeId, edgelink_control::latency::BestPath)| {
            let of = control.network_of(src)?;
            let wanted = network.is_none_or(|network| network == of);
            wanted.then(|| rest::LatencyPath {
                network_id: of.0,
                src_node_id: src.0,
                dst_node_id: dst.0,
                relay_id: path.relay.0,
                via_relay_id: path.via.map(|via| via.0),
                rtt_ms: ms(path.latency_us),
            })
        };
    control.best_paths().filter_map(path).collect()
}

/// Kind and id of who measured, and the relay.
fn ends(leg: Leg) -> (&'static str, u32, u32) {
    match leg {
        Leg::Node(node, relay) => ("node", node.0, relay.0),
        Leg::Mesh(a, b) => ("server", a.0, b.0),
    }
}

/// `at` in Unix ms.
fn moment(at: Instant, now: Now) -> u64 {
    let age = now.mono.saturating_duration_since(at).as_millis();
    now.unix_ms.saturating_sub(u64::try_from(age).unwrap_or(u64::MAX))
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a minute fit exactly")]
fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}
