//! Two nodes that get a network of their own while they are talking through the relay, and lose it again.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use edgelink_api::local::PathKind;
use edgelink_e2e::{Net, Node, Pinger, SOON, TUN};
use edgelink_testbed::port;
use std::time::{Duration, Instant};

const AT_A: &str = "192.168.77.1";
const AT_B: &str = "192.168.77.2";

/// Waits until a node's packets to its peer take this kind of path; returns how long that took.
fn wait_kind(node: &Node, peer: &str, kind: PathKind, timeout: Duration) -> Duration {
    let begin = Instant::now();
    let what = format!("a path of kind {kind:?} to {peer}");
    node.wait_status(&what, timeout, |status| status.peers.iter().any(|p| p.name == peer && p.path.kind == kind))
        .unwrap();
    begin.elapsed()
}

#[test]
fn a_lan_is_found_while_packets_flow_and_left_when_it_is_gone() {
    let Some(net) = Net::start(&["a", "b"]).unwrap() else { return };
    let [a, b] = &net.nodes[..] else { unreachable!() };
    let at_b = b.overlay().unwrap();
    a.wait_peer("b").unwrap();
    b.wait_peer("a").unwrap();
    a.wait_ping(at_b, SOON).unwrap();
    assert_eq!(a.peer("b").unwrap().path.kind, PathKind::Relay);

    let pinger = Pinger::start(a, at_b).unwrap();
    pinger.wait_answers(20).unwrap();
    net.lab_ref()
        .link(port(&a.host, "lan", &format!("{AT_A}/24")), port(&b.host, "lan", &format!("{AT_B}/24")))
        .unwrap();
    let time = wait_kind(a, "b", PathKind::Lan, Duration::from_secs(10));
    println!("direct after {time:?}");
    wait_kind(b, "a", PathKind::Lan, Duration::from_secs(10));
    let path = a.peer("b").unwrap().path;
    assert_eq!(path.endpoint.map(|endpoint| endpoint.ip().to_string()), Some(AT_B.to_owned()));
    assert!(a.peer("b").unwrap().reason.is_none());
    pinger.stop_without_loss().unwrap();

    // Full-size packets too, and none of them through the relay.
    let size = ["-s", "1372", "-M", "do", "-c", "20", "-i", "0.02", "-W", "2"];
    let ping = a.host.command("ping").args(size).arg(at_b.to_string()).run().unwrap();
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    assert!(a.host.has_interface(TUN).unwrap());

    // The cable is pulled.
    let pinger = Pinger::start(a, at_b).unwrap();
    pinger.wait_answers(20).unwrap();
    b.host.set_link("lan", false).unwrap();
    let time = wait_kind(a, "b", PathKind::Relay, Duration::from_secs(2));
    println!("relayed again after {time:?}");
    wait_kind(b, "a", PathKind::Relay, Duration::from_secs(2));
    pinger.wait_answers(10).unwrap();
    let pings = pinger.stop().unwrap();
    let gap = pings.at.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    println!("longest pause: {gap:.2} s");
    assert!(gap <= 2.0, "{pings:?}");
    net.check_alive().unwrap();
}
