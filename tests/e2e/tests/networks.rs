//! One daemon in several networks: each with an interface, an identity and a state of its own (DESIGN §8).
#![expect(clippy::unwrap_used, reason = "tests")]

use edgelink_api::local::{DaemonState, JoinedNetwork, Status};
use edgelink_e2e::{Net, NetOptions, Node, Pinger, SOON, Site, TUN};
use edgelink_testbed::{Host, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The interface of the second network.
const SECOND: &str = "wss-mesh1";

fn status_in(node: &Node, network: &str) -> Status {
    let text = node.edgelink(&["status", "--json", "--network", network]).unwrap().run().unwrap();
    serde_json::from_str(&text).unwrap()
}

fn wait_in(node: &Node, network: &str, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
    wait::until(what, SOON, || Some(status_in(node, network)).filter(|status| wanted(status))).unwrap()
}

fn networks(node: &Node) -> Vec<JoinedNetwork> {
    serde_json::from_str(&node.edgelink(&["networks", "--json"]).unwrap().run().unwrap()).unwrap()
}

fn show(host: &Host, words: &[&str]) -> String {
    host.command(words[0]).args(&words[1..]).run().unwrap()
}

/// A second network, a key for it, and what a configuration says to join it.
fn second_network(net: &Net, name: &str, subnet: &str) -> Value {
    net.ctl(&["network", "create", "--name", name, "--subnet", subnet]).unwrap().run().unwrap();
    let key = net.auth_key(name, &["--preauthorize", "--reusable", "--approve-routes"]).unwrap();
    json!({ "controller": net.url().unwrap(), "pin": net.join_flag("--pin").unwrap(), "auth_key": key })
}

fn with(config: &Value, more: Value) -> Value {
    let mut config = config.clone();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

#[test]
fn a_host_is_a_gateway_in_two_networks_that_stay_apart() {
    let controller = json!({ "security": { "require_route_approval": false } });
    let options = NetOptions { controller: Some(controller), ..NetOptions::default() };
    let Some(mut net) = Net::lab(&["a", "b", "both"], options).unwrap() else { return };
    let _site = Site::new(&net, &[2]).unwrap();
    // One that would take a part of the other network's overlay from a host that is in both.
    let thief = json!({ "advertise_routes": [{ "cidr": "10.9.0.0/25" }], "gateway_mode": { "enabled": true } });
    net.nodes[0].configure(&thief).unwrap();
    net.start_controller().unwrap();
    net.join(0).unwrap();
    let lab = second_network(&net, "lab", "10.9.0.0/24");
    net.nodes[1].configure(&lab).unwrap();
    net.nodes[1].run().unwrap();
    let first = json!({
        "controller": net.url().unwrap(),
        "pin": net.join_flag("--pin").unwrap(),
        "auth_key": net.join_flag("--key").unwrap(),
    });
    let gateway = Site::gateway(100, 100);
    let further = with(&with(&lab, gateway.clone()), json!({ "name": "lab" }));
    let config = with(&with(&first, gateway), json!({ "networks": [further] }));
    net.nodes[2].configure(&config).unwrap();
    net.nodes[2].run().unwrap();
    let ready = net.nodes[2].process().unwrap().wait_line("ready ", SOON).unwrap();
    assert!(ready.contains("in network default; both 10.9.0.") && ready.ends_with("in network lab"), "{ready}");

    let [a, b, both] = &net.nodes[..] else { panic!() };
    let listed = networks(both);
    let told: Vec<_> =
        listed.iter().map(|n| (n.label.as_deref(), n.network.as_deref(), n.interface.as_str())).collect();
    assert_eq!(told, [(None, Some("default"), TUN), (Some("lab"), Some("lab"), SECOND)]);
    // Without a name the first answers; with its own name too.
    assert_eq!(both.status().unwrap().network.as_deref(), Some("default"));
    assert_eq!(status_in(both, "default").node_id, both.status().unwrap().node_id);
    let in_lab = status_in(both, "lab");
    assert_ne!(
        (in_lab.node_id, &in_lab.addresses),
        (both.status().unwrap().node_id, &both.status().unwrap().addresses)
    );
    let unknown = both.edgelink(&["status", "--network", "nowhere"]).unwrap().output().unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("not in a network called \"nowhere\""), "{}", unknown.stderr);
    let nodes = net.ctl_json(&["node", "list"]).unwrap();
    let keys: BTreeSet<&str> =
        nodes.as_array().unwrap().iter().map(|node| node["machine_key_pub"].as_str().unwrap()).collect();
    assert_eq!(keys.len(), 4, "an identity for each network: {nodes}");

    // Waiting, and a report for others.
    let waited = |words: &[&str]| both.edgelink(words).unwrap().output().unwrap();
    let there = waited(&["wait", "b", "--network", "lab"]);
    assert!(there.status.success() && there.stdout.contains("in network lab"), "{there:?}");
    let not_there = waited(&["wait", "b", "--timeout", "1"]);
    assert_eq!(not_there.status.code(), Some(2), "b is not in the first network: {}", not_there.stderr);
    let report: Value = serde_json::from_str(&waited(&["bugreport", "--json"]).stdout).unwrap();
    assert_eq!(report["status"]["state"], json!("up"), "{report}");
    assert_eq!(report["networks"]["networks"].as_array().unwrap().len(), 2, "{report}");
    assert!(report["host"]["kernel"].is_string() && report["netcheck"]["p2p_enabled"].is_boolean(), "{report}");
    assert!(!report.to_string().contains("elk_"));

    // Both ways in each network, and into the site behind; nothing from one network into the other.
    a.wait_peer("both").unwrap();
    b.wait_peer("both").unwrap();
    for (from, to) in [(a, both.overlay().unwrap()), (b, in_lab.addresses[0])] {
        from.wait_ping(to, SOON).unwrap();
        from.wait_ping(Site::SERVER, SOON).unwrap();
    }
    let lab_ping = both.edgelink(&["ping", "b", "-c", "1", "--network", "lab"]).unwrap().output().unwrap();
    assert!(lab_ping.status.success(), "{}", lab_ping.stderr);
    let first_ping = both.edgelink(&["ping", "b", "-c", "1"]).unwrap().output().unwrap();
    assert_eq!(first_ping.status.code(), Some(2), "b is not in the first network: {}", first_ping.stderr);
    let b_at = b.overlay().unwrap().to_string();
    assert!(!a.host.command("ping").args(["-c", "1", "-W", "1", &b_at]).output().unwrap().status.success());
    let taken = both.wait_status("a's route", SOON, |status| !status.routes.is_empty()).unwrap();
    assert_eq!(taken.routes[0].skipped.as_deref(), Some("local"), "{:?}", taken.routes);
    // Tables and sockets for each.
    let tables = || show(&both.host, &["nft", "list", "tables"]);
    assert_eq!(tables().lines().filter(|line| line.contains("edgelink_wss_mesh")).count(), 2, "{}", tables());

    // One goes, the other notices nothing, and goes on to forward.
    let forwarding = |host: &Host| show(host, &["cat", "/proc/sys/net/ipv4/conf/eth1/forwarding"]).trim().to_owned();
    let pinger = Pinger::start(a, both.overlay().unwrap()).unwrap();
    let into_site = Pinger::start(a, Site::SERVER).unwrap();
    both.edgelink(&["down", "--network", "lab"]).unwrap().run().unwrap();
    assert!(!both.host.has_interface(SECOND).unwrap() && both.has_tun().unwrap());
    assert_eq!(status_in_label(both, "lab").state, DaemonState::Down);
    assert_eq!(forwarding(&both.host), "1");
    assert_eq!(tables().lines().filter(|line| line.contains("edgelink_wss_mesh")).count(), 1, "{}", tables());
    both.edgelink(&["up", "--network", "lab"]).unwrap().run().unwrap();
    b.wait_ping(Site::SERVER, SOON).unwrap();

    // Out of the configuration, and in again.
    net.nodes[2].configure(&with(&config, json!({ "networks": [] }))).unwrap();
    net.nodes[2].process().unwrap().signal(Signal::SIGHUP).unwrap();
    wait::until("one network", SOON, || (networks(&net.nodes[2]).len() == 1).then_some(())).unwrap();
    assert!(!net.nodes[2].host.has_interface(SECOND).unwrap());
    net.nodes[2].configure(&config).unwrap();
    net.nodes[2].process().unwrap().signal(Signal::SIGHUP).unwrap();
    net.nodes[1].wait_ping(Site::SERVER, SOON).unwrap();
    for pinger in [pinger, into_site] {
        pinger.wait_answers(2).unwrap();
        pinger.stop_without_loss().unwrap();
    }
    let again = status_in(&net.nodes[2], "lab");
    assert_eq!((again.node_id, &again.addresses), (in_lab.node_id, &in_lab.addresses), "the same node as before");

    // Killed, it leaves rules of both; the next start, in no network, removes them.
    let tables = |net: &Net| show(&net.nodes[2].host, &["nft", "list", "tables"]);
    net.nodes[2].kill().unwrap();
    assert!(tables(&net).contains("edgelink_wss_mesh0") && tables(&net).contains("edgelink_wss_mesh1"));
    net.nodes[2].configure(&json!({})).unwrap();
    net.nodes[2].run().unwrap();
    assert_eq!((tables(&net).as_str(), forwarding(&net.nodes[2].host).as_str()), ("", "0"));
    net.nodes[2].end(Signal::SIGTERM).unwrap();
    net.check_alive().unwrap();
}

/// The state of a network that is down: it has no name of its own then.
fn status_in_label(node: &Node, label: &str) -> JoinedNetwork {
    networks(node).into_iter().find(|network| network.label.as_deref() == Some(label)).unwrap()
}

#[test]
fn a_network_whose_subnet_is_taken_is_told_and_waits_its_turn() {
    let Some(mut net) = Net::lab(&["a", "both", "b"], NetOptions::default()).unwrap() else { return };
    net.start_controller().unwrap();
    net.join(0).unwrap();
    net.join(1).unwrap();
    let other = second_network(&net, "other", "10.0.1.0/24");
    net.nodes[2].configure(&other).unwrap();
    net.nodes[2].run().unwrap();
    let b_status = net.nodes[2].wait_state(DaemonState::Up, SOON).unwrap();

    // A network more by a command: its IPv4 is the first one's, its IPv6 is not.
    let text = |key: &str| other[key].as_str().unwrap().to_owned();
    let pinger = Pinger::start(&net.nodes[0], net.nodes[1].overlay().unwrap()).unwrap();
    let both = &net.nodes[1];
    let bad = both.up(&["--network", "other"]).unwrap();
    assert_eq!(bad.status.code(), Some(2), "{}", bad.stderr);
    let joined = both
        .up(&[&text("controller"), "--key", &text("auth_key"), "--pin", &text("pin"), "--network", "other"])
        .unwrap();
    assert!(joined.status.success(), "{}", joined.stderr);
    let status = wait_in(both, "other", "the problem", |status| !status.health.is_empty());
    let problem = status.health.join("\n");
    assert!(problem.contains("10.0.1.0/24 belongs to the network on wss-mesh0 already"), "{problem}");
    assert!(both.status().unwrap().health.is_empty(), "the first has no problem");
    let v6 = |status: &Status| status.addresses.iter().copied().find(IpAddr::is_ipv6).unwrap();
    both.wait_ping(v6(&b_status), SOON).unwrap();
    pinger.wait_answers(3).unwrap();
    pinger.stop_without_loss().unwrap();

    // The first leaves: the other one has its turn. And the first finds it taken when it is back.
    both.edgelink(&["down"]).unwrap().run().unwrap();
    wait_in(both, "other", "no problem", |status| status.health.is_empty());
    both.wait_ping(b_status.addresses[0], SOON).unwrap();
    assert!(both.up(&[]).unwrap().status.success());
    let first = both.wait_status("the first's problem", SOON, |status| !status.health.is_empty()).unwrap();
    assert!(first.health.join("\n").contains("the network on wss-mesh1"), "{:?}", first.health);

    // What `up` made is there after a restart, the first one first.
    net.nodes[1].end(Signal::SIGTERM).unwrap();
    assert!(!net.nodes[1].host.has_interface(SECOND).unwrap());
    net.nodes[1].check_clean().unwrap();
    net.nodes[1].run().unwrap();
    let both = &net.nodes[1];
    wait_in(both, "other", "its peer", |status| status.state == DaemonState::Up && !status.peers.is_empty());
    both.wait_ping(v6(&b_status), SOON).unwrap();
    assert_eq!(both.status().unwrap().network.as_deref(), Some("default"));
    net.check_alive().unwrap();
}
