//! A stream goes from the relay to a direct path and back. The same many times: `edgelink-switch-bench`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use edgelink_e2e::SOON;
use edgelink_e2e::p2p::{lab, status};
use edgelink_e2e::switching::Pair;
use edgelink_testbed::wait;
use serde_json::Value;
use std::time::Duration;

/// The nodes have told the controller (P2P_STATUS), and administrators are shown: a direct path with its endpoint, or why there
/// is none. Who sends nothing notices the end of a direct path at its next keepalive, which is later than this.
fn wait_shown(pair: &Pair<'_>, direct: bool) {
    let [a, b] = &pair.nodes;
    for (node, peer) in [(a, b), (b, a)].into_iter().take(if direct { 2 } else { 1 }) {
        let (name, peer_id) = (node.host.name(), status(peer).unwrap().node_id.unwrap().0);
        let mut last = String::new();
        let shown = wait::until("what the controller has heard", SOON, || {
            last = pair.sites.ctl_live(&["node", "show", name, "--json"]).ok()?;
            let shown: Value = serde_json::from_str(&last).ok()?;
            let path = shown["p2p"]["peers"].as_array()?.iter().find(|path| path["node_id"] == peer_id)?;
            (path["connected"] == direct).then(|| path.clone())
        });
        let shown = shown.unwrap_or_else(|error| panic!("{name}: {error:#}\n{last}"));
        let table = pair.sites.ctl_live(&["node", "show", name]).unwrap();
        if direct {
            let endpoint = shown["endpoint"].as_str().unwrap();
            assert!(endpoint.starts_with("203.0.113."), "{shown}");
            assert!(shown["rtt_ms"].as_f64().is_some_and(|ms| ms >= 48.0) && shown["reason"].is_null(), "{shown}");
            assert!(table.contains(endpoint), "{table}");
        } else {
            // Of a search that begins or has failed: neither the NATs nor a setting are what is wrong.
            let reason = shown["reason"].as_str().unwrap_or_default();
            assert!(reason.contains("direct path") || reason.contains("punching timed out"), "{shown}");
            assert!(shown["endpoint"].is_null(), "{shown}");
            assert!(table.contains(reason), "{table}");
        }
    }
}

#[test]
fn no_packet_of_a_thousand_a_second_is_lost_on_the_way_to_a_direct_path() {
    let Some(lab) = lab().unwrap() else { return };
    let pair = Pair::start(&lab, Duration::from_millis(12)).unwrap();
    let switches = pair.switch(2, |to_direct, _| wait_shown(&pair, to_direct)).unwrap();
    eprintln!("{switches:#?}");
    assert_eq!(switches.len(), 4);
    for switch in switches.iter().filter(|switch| switch.to_direct) {
        assert!(switch.sent >= 1_000, "{switch:?}");
        assert_eq!((switch.lost, switch.twice), (0, 0), "{switch:?}");
    }
    // Nothing says that a direct path has become a black hole but missing answers: packets go both ways after two seconds.
    for switch in switches.iter().filter(|switch| !switch.to_direct) {
        assert!(switch.gap <= Duration::from_secs(5) && switch.twice == 0, "{switch:?}");
    }
    pair.sites.check_alive(&pair.nodes).unwrap();
}
