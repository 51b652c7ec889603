//! IPv6 below the tunnel: hosts that have nothing else, hosts that do not have it, and one whose IPv6 leads nowhere.
#![expect(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use edgelink_api::local::{PathKind, Status};
use edgelink_e2e::{Net, NetOptions, Pinger, SOON, binary};
use edgelink_testbed::{Firewall, Host, Process, port, wait};
use serde_json::json;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Controller, built-in relay and STUN server, by name: one address of each family.
const NAME: &str = "vpn.edgelink.test";
/// Far less than the 45 s that waiting for a dead address family costs.
const RACED: Duration = Duration::from_secs(10);

/// A host behind the router with an address of these families.
fn host(net: &mut Net, n: u8, name: &str, v4: bool, v6: bool) -> usize {
    let lab = net.lab_ref();
    let host = lab.host(name).unwrap();
    let (mine, gateway) = (format!("10.{n}.0.2/24"), format!("10.{n}.0.1/24"));
    let (mine6, gateway6) = (format!("2001:db8:{n}::2/64"), format!("2001:db8:{n}::1/64"));
    let interface = format!("host{n}");
    let (one, other) = match (v4, v6) {
        (true, true) => {
            (port(&host, "eth0", &mine).and(&mine6), port(&net.topology.router, &interface, &gateway).and(&gateway6))
        }
        (true, false) => (port(&host, "eth0", &mine), port(&net.topology.router, &interface, &gateway)),
        _ => (port(&host, "eth0", &mine6), port(&net.topology.router, &interface, &gateway6)),
    };
    lab.link(one, other).unwrap();
    if v4 {
        host.default_route(IpAddr::from([10, n, 0, 1])).unwrap();
    } else {
        assert!(host.command("ip").args(["-4", "route"]).run().unwrap().is_empty(), "{name} has no IPv4");
    }
    if v6 {
        host.default_route(format!("2001:db8:{n}::1").parse().unwrap()).unwrap();
    } else {
        host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    }
    net.add_node(host)
}

/// A relay and STUN server that only IPv6 leads to, added as an administrator does it.
fn v6_relay(net: &Net) -> Process {
    let lab = net.lab_ref();
    let host: Host = lab.host("r6").unwrap();
    let router = port(&net.topology.router, "r6", "2001:db8:66::1/64");
    lab.link(port(&host, "eth0", "2001:db8:66::2/64"), router).unwrap();
    host.default_route("2001:db8:66::1".parse().unwrap()).unwrap();
    let url = "ws://[2001:db8:66::2]/ws/data";
    let controller = format!("ws://{NAME}");
    let add = ["server", "add", "--name", "r6", "--url", url, "--controller", &controller];
    let added = net.ctl_json(&[&add[..], &["--capabilities", "relay,stun", "--stun-ip", "2001:db8:66::2"]].concat());
    let mut config = added.unwrap()["config"].clone();
    config["state_dir"] = json!(lab.dir().join("r6"));
    let file = lab.dir().join("r6.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let process = host.command(binary("edgelink-server").unwrap()).arg("--config").arg(file).spawn_logged().unwrap();
    process.wait_line("ready server ", SOON).unwrap();
    process
}

fn relay<'s>(status: &'s Status, name: &str) -> &'s edgelink_api::local::Relay {
    status.relays.iter().find(|relay| relay.name == name).unwrap_or_else(|| panic!("{:?}", status.relays))
}

#[test]
fn hosts_of_either_family_join_and_talk() {
    let controller = json!({ "tls": null, "listen": { "http": "[::]:80" }, "public_url": format!("ws://{NAME}") });
    let options = NetOptions { controller: Some(controller), ..NetOptions::default() };
    let Some(mut net) = Net::lab(&["four"], options).unwrap() else { return };
    net.topology.router.firewall(&Firewall::Open).unwrap();
    net.topology.router.address("wan", "2001:db8:1::1/64").unwrap();
    net.topology.relay.address("eth0", "2001:db8:1::a/64").unwrap();
    net.topology.relay.default_route("2001:db8:1::1".parse().unwrap()).unwrap();
    net.nodes[0].host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    let six = host(&mut net, 61, "six", false, true);
    let other = host(&mut net, 62, "other", false, true);
    let dead = host(&mut net, 63, "dead", true, true);
    // The host has an address and a route; its packets vanish on the way.
    net.topology
        .router
        .nft("table ip6 hole {\n chain f { type filter hook forward priority 0; ip6 saddr 2001:db8:63::/64 drop\n }\n}\n")
        .unwrap();
    // The lab's own view of the file system, not this machine's.
    let names = net.lab_ref().dir().join("hosts");
    std::fs::write(&names, format!("127.0.0.1 localhost\n2001:db8:1::a {NAME}\n192.0.2.10 {NAME}\n")).unwrap();
    let bind = ["--bind", names.to_str().unwrap(), "/etc/hosts"];
    net.topology.relay.command("mount").args(bind).run().unwrap();
    net.start_controller().unwrap();
    let r6 = v6_relay(&net);

    // Everybody joins with the same printed command. The dead family costs a fraction of a second.
    net.join(0).unwrap();
    net.join(six).unwrap();
    net.join(other).unwrap();
    net.nodes[dead].run().unwrap();
    let began = Instant::now();
    net.nodes[dead].shell(net.join_command()).unwrap().run().unwrap();
    assert!(began.elapsed() < RACED, "{:?}", began.elapsed());
    let sockets = net.nodes[dead].host.command("ss").args(["-Htn", "state", "established"]).run().unwrap();
    assert!(sockets.contains("192.0.2.10:80") && !sockets.contains("[2001:db8:1::a]"), "{sockets}");

    // IPv6 alone and IPv4 alone: by the relay that both reach, and status says what is missing.
    let [four, six, other, dead] = [0, six, other, dead].map(|n| &net.nodes[n]);
    four.wait_peer("six").unwrap();
    six.wait_peer("four").unwrap();
    for (from, to) in [(four, six), (six, four), (dead, six), (four, dead)] {
        from.wait_ping(to.overlay().unwrap(), SOON).unwrap();
    }
    let pinger = Pinger::start(four, six.overlay().unwrap()).unwrap();
    pinger.wait_answers(20).unwrap();
    let relayed = four.peer("six").unwrap();
    assert!(matches!(relayed.path.kind, PathKind::Relay | PathKind::Mesh), "{relayed:?}");
    pinger.stop_without_loss().unwrap();
    let status = six.wait_status("both relays", SOON, |s| s.relays.iter().all(|r| r.connected)).unwrap();
    assert_eq!(status.relays.len(), 2, "{:?}", status.relays);
    let status = four.status().unwrap();
    assert!(!relay(&status, "r6").connected);
    assert!(status.health.iter().any(|problem| problem.contains("relay r6")), "{:?}", status.health);

    // Two hosts with IPv6 alone need no relay, and STUN answers them.
    let pinger = Pinger::start(six, other.overlay().unwrap()).unwrap();
    let direct = wait::until("a direct path", 2 * SOON, || {
        let peer = six.peer("other").ok()?;
        matches!(peer.path.kind, PathKind::Lan | PathKind::P2p).then_some(peer)
    });
    let endpoint = direct.unwrap().path.endpoint.unwrap();
    assert!(endpoint.is_ipv6(), "{endpoint}");
    pinger.wait_answers(3).unwrap();
    pinger.stop_without_loss().unwrap();
    let check = six.edgelink(&["netcheck", "--json"]).unwrap().run().unwrap();
    let check: serde_json::Value = serde_json::from_str(&check).unwrap();
    assert_eq!(check["udp"], json!(true), "{check}");
    // And so do the host without IPv6 and the one whose IPv6 is dead: over IPv4.
    let direct = wait::until("a direct path", 2 * SOON, || {
        let _ = four.edgelink(&["ping", "dead", "-c", "1"]).ok()?.output();
        let peer = four.peer("dead").ok()?;
        matches!(peer.path.kind, PathKind::Lan | PathKind::P2p).then_some(peer)
    });
    assert!(direct.unwrap().path.endpoint.unwrap().is_ipv4());

    // After a restart of the controller all of them are back, each by the family that it has.
    net.controller().unwrap().kill().unwrap();
    net.start_controller().unwrap();
    let back = |status: &Status| status.controller.connected && relay(status, "builtin").connected;
    for node in &net.nodes {
        node.wait_status("controller and relay", 2 * SOON, back).unwrap();
    }
    assert!(!r6.has_ended() && !r6.stderr().contains("panicked"), "{}", r6.stderr());
    net.check_alive().unwrap();
}
