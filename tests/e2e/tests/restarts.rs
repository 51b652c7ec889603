//! Any one process may be killed and started again: the ping heals, and nothing is left behind.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use edgelink_api::local::DaemonState;
use edgelink_e2e::{Net, Node, Pinger, SOON};
use nix::sys::signal::Signal;

/// What a node's restart may take from its reconnect (its ready line) to the next answered ping.
const HEALS_WITHIN: Duration = Duration::from_secs(2);

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn a_killed_controller_and_relay_comes_back() {
    let Some(mut net) = Net::start(&["a", "b"]).unwrap() else { return };
    let target = net.nodes[1].overlay().unwrap();
    let pinger = Pinger::start(&net.nodes[0], target).unwrap();
    let before = net.ctl_json(&["node", "list"]).unwrap();

    net.controller().unwrap().kill().unwrap();
    pinger.wait_silence(SOON).unwrap();
    let away = |s: &edgelink_api::local::Status| !s.controller.connected && s.relays.iter().all(|r| !r.connected);
    let status = net.nodes[0].wait_status("controller and relay away", SOON, away).unwrap();
    // Still a member, and the reason is told.
    assert_eq!((status.state, status.addresses.first()), (DaemonState::Up, net.nodes[0].overlay().ok().as_ref()));
    assert!(status.health.iter().any(|problem| problem.starts_with("controller: ")), "{:?}", status.health);
    assert!(net.nodes[0].has_tun().unwrap(), "the interface stays");

    net.start_controller().unwrap();
    let began = Instant::now();
    pinger.wait_answer(SOON).unwrap();
    eprintln!("controller and relay killed: pings answered {:.0?} after they were back", began.elapsed());
    for node in &net.nodes {
        node.wait_status("the controller", SOON, |s| s.controller.connected && s.health.is_empty()).unwrap();
    }
    // The same network: same ids, names, addresses; nobody had to join again.
    let after = net.ctl_json(&["node", "list"]).unwrap();
    let identity = |nodes: &serde_json::Value| {
        let nodes = nodes.as_array().unwrap().iter();
        nodes.map(|n| (n["id"].clone(), n["name"].clone(), n["virtual_ip"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(identity(&before), identity(&after));
    net.check_alive().unwrap();
}

/// Kills a node, restarts it, and measures on the ping that the other node goes on sending.
fn kill_and_restart(victim: usize, witness: usize) {
    let Some(mut net) = Net::start(&["a", "b"]).unwrap() else { return };
    let target = net.nodes[victim].overlay().unwrap();
    let pinger = Pinger::start(&net.nodes[witness], target).unwrap();
    let old_key = net.ctl_json(&["node", "show", ["a", "b"][victim]]).unwrap()["node_key_pub"].clone();

    net.nodes[victim].kill().unwrap();
    net.nodes[victim].check_clean().unwrap();
    pinger.wait_silence(SOON).unwrap();

    let process = net.nodes[victim].spawn().unwrap();
    process.wait_line("ready ", SOON).unwrap();
    let ready = now();
    pinger.wait_answer(SOON).unwrap();
    let pings = pinger.stop().unwrap();
    // Ten pings a second: the one answer behind a gap is the first one after the restart.
    let healed = pings.at.windows(2).find(|pair| pair[1] - pair[0] > 0.3).expect("a gap, and an answer behind it")[1];
    eprintln!("node killed: pings answered {:.0} ms after its ready line", (healed - ready) * 1e3);
    assert!(healed - ready < HEALS_WITHIN.as_secs_f64(), "{} s", healed - ready);

    // It came back as itself, with a new session key.
    assert_eq!(net.nodes[victim].overlay().unwrap(), target);
    let key = || net.ctl_json(&["node", "show", ["a", "b"][victim]]).unwrap()["node_key_pub"].clone();
    edgelink_testbed::wait::until("the new key in the database", SOON, || (key() != old_key).then_some(())).unwrap();
    // And in the other direction.
    let back = net.nodes[witness].overlay().unwrap();
    net.nodes[victim].wait_ping(back, HEALS_WITHIN).unwrap();
    net.check_alive().unwrap();
}

#[test]
fn a_killed_node_comes_back() {
    kill_and_restart(0, 1);
}

#[test]
fn the_other_killed_node_comes_back() {
    kill_and_restart(1, 0);
}

#[test]
fn an_orderly_end_leaves_nothing() {
    let Some(mut net) = Net::start(&["a", "b"]).unwrap() else { return };
    for (index, signal) in [(0, Signal::SIGTERM), (1, Signal::SIGINT)] {
        let node = &mut net.nodes[index];
        assert!(node.has_tun().unwrap() && node.socket().exists());
        let began = Instant::now();
        let (status, log) = node.end(signal).unwrap();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(began.elapsed() < Duration::from_secs(2), "{signal}: took {:?}", began.elapsed());
        node.check_clean().unwrap();
        assert!(!node.socket().exists(), "the socket is left");
        let output = node.edgelink(&["status"]).unwrap().output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{}", output.stderr);
    }
    // The controller says that they are gone, and ends as well.
    let online = || {
        let nodes = net.ctl_json(&["node", "list"]).unwrap();
        nodes.as_array().unwrap().iter().any(|node| node["online"].as_bool().unwrap())
    };
    edgelink_testbed::wait::until("both offline", SOON, || (!online()).then_some(())).unwrap();
    let controller = net.controller().unwrap();
    let status = controller.terminate(SOON).unwrap();
    assert_eq!(status.code(), Some(0), "{}", controller.stderr());
    assert!(!controller.stderr().contains("ERROR"), "{}", controller.stderr());
    // Its database is whole: no journal to replay, and the tool reads it.
    assert!(!net.controller_dir().join("mesh.db-wal").exists());
    assert_eq!(net.ctl_json(&["status"]).unwrap()["nodes"]["total"], 2);
}

#[test]
fn down_and_up_again() {
    let Some(net) = Net::start(&["a", "b"]).unwrap() else { return };
    let [a, b] = &net.nodes[..] else { unreachable!() };
    let (at_a, at_b) = (a.overlay().unwrap(), b.overlay().unwrap());
    b.wait_ping(at_a, SOON).unwrap();
    let before = remembered_seq(a);
    a.edgelink(&["down"]).unwrap().run().unwrap();
    assert_eq!(a.status().unwrap().state, DaemonState::Down);
    a.check_clean().unwrap();
    assert!(!b.host.pings(at_a).unwrap());
    let up = a.up(&[]).unwrap().stdout;
    assert!(up.starts_with(&format!("up: a is {at_a}, fd")) && up.ends_with(" in network default\n"), "{up}");
    b.wait_ping(at_a, HEALS_WITHIN).unwrap();
    a.wait_ping(at_b, HEALS_WITHIN).unwrap();
    assert!(remembered_seq(a) > before, "the new key's sequence number is on the disk before the key is used");
}

/// The sequence number that a node's disk holds.
fn remembered_seq(node: &Node) -> u64 {
    let files = std::fs::read_dir(node.state_dir()).unwrap().map(|entry| entry.unwrap().path());
    let state = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("node-");
    let text = std::fs::read_to_string(files.into_iter().find(state).unwrap()).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()["seq_floor"].as_u64().unwrap()
}
