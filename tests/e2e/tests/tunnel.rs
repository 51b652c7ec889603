//! Two nodes behind a router that lets only TCP to the relay's port through.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use edgelink_api::local::{DaemonState, PathKind};
use edgelink_e2e::{Net, Node, SOON, TUN, bytes};
use edgelink_testbed::topology::TcpOnly;
use nix::sys::signal::Signal;
use serde_json::Value;
use sha2::{Digest, Sha256};

#[test]
fn two_nodes_join_with_the_printed_command_and_ping() {
    let Some(net) = Net::start(&["a", "b"]).unwrap() else { return };
    let [a, b] = &net.nodes[..] else { unreachable!() };
    assert_eq!(net.url().unwrap(), format!("wss://{}", TcpOnly::RELAY), "443 needs no port");
    let (at_a, at_b) = (a.overlay().unwrap(), b.overlay().unwrap());

    // There is no other way than the relay.
    assert!(!a.host.pings(TcpOnly::node_address(2).into()).unwrap());
    assert!(!a.host.pings(TcpOnly::RELAY.into()).unwrap());

    // EdgeLink's own ping, for people and for scripts.
    let text = a.edgelink(&["ping", "-c", "3", "-i", "0.05", "b"]).unwrap().run().unwrap();
    assert!(text.contains("3 received"), "{text}");
    let text = b.edgelink(&["ping", "--json", "-c", "2", "-i", "0.05", &at_a.to_string()]).unwrap().run().unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "two replies and the sum");
    for (line, seq) in lines[..2].iter().zip(1..) {
        assert_eq!((line["seq"].as_u64(), line["name"].as_str()), (Some(seq), Some("a")));
        assert_eq!(line["path"]["kind"], "relay");
        assert!(line["rtt_ms"].as_f64().unwrap() > 0.0);
    }
    assert_eq!((lines[2]["sent"].as_u64(), lines[2]["received"].as_u64()), (Some(2), Some(2)));

    // The system's ping, from small to fragmented (the MTU is 1400), both ways.
    for (from, to) in [(a, at_b), (b, at_a)] {
        for size in ["0", "56", "1300", "1372", "4000", "20000"] {
            let ping = ["-n", "-q", "-c", "5", "-i", "0.02", "-W", "2", "-s", size];
            let text = from.host.command("ping").args(ping).arg(to.to_string()).run().unwrap();
            assert!(text.contains("5 packets transmitted, 5 received"), "{size}: {text}");
        }
    }
    let link = a.host.command("ip").args(["link", "show", "dev", TUN]).run().unwrap();
    assert!(link.contains("mtu 1400"), "{link}");
    net.check_alive().unwrap();
}

#[test]
fn status_in_json_keeps_its_contract() {
    let Some(net) = Net::start(&["a", "b"]).unwrap() else { return };
    let [a, b] = &net.nodes[..] else { unreachable!() };
    let at_b = b.overlay().unwrap();
    a.wait_ping(at_b, SOON).unwrap();
    a.edgelink(&["ping", "-c", "1", "b"]).unwrap().run().unwrap();
    // A round trip to the relay and the controller is measured soon after connecting.
    let measured = |s: &edgelink_api::local::Status| {
        s.controller.rtt_ms.is_some() && s.relays.iter().all(|r| r.rtt_ms.is_some()) && s.peers.iter().all(|p| p.online)
    };
    a.wait_status("round trips", SOON, measured).unwrap();

    let status: Value = serde_json::from_str(&a.status_json().unwrap()).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let has = |value: &Value, wanted: &[&str]| {
        let found = keys(value);
        for key in wanted {
            assert!(found.iter().any(|k| k == key), "{key} is not among {found:?}");
        }
    };
    has(
        &status,
        &[
            "node_id",
            "name",
            "network",
            "addresses",
            "controller",
            "relays",
            "nat",
            "peers",
            "routes",
            "drops",
            "config_version",
            "health",
        ],
    );
    has(&status["controller"], &["connected", "rtt_ms"]);
    has(&status["nat"], &["mapping", "filtering", "name"]);
    assert_eq!((&status["name"], &status["network"]), (&"a".into(), &"default".into()));
    assert_eq!(status["controller"]["connected"], true);
    assert!(status["config_version"].as_u64().unwrap() > 0);
    assert_eq!(status["health"], Value::Array(vec![]), "all is well");
    assert_eq!(status["routes"], Value::Array(vec![]));

    let [relay] = &status["relays"].as_array().unwrap()[..] else { panic!("one relay: {status}") };
    has(relay, &["id", "name", "url", "connected", "rtt_ms"]);
    assert_eq!(
        (&relay["connected"], &relay["url"]),
        (&true.into(), &format!("wss://{}/ws/data", TcpOnly::RELAY).into())
    );

    let [peer] = &status["peers"].as_array().unwrap()[..] else { panic!("one peer: {status}") };
    has(peer, &["node_id", "name", "addresses", "online", "path", "reason", "last_rx_ms", "rx_bytes", "tx_bytes"]);
    has(&peer["path"], &["kind", "relay_id", "via_relay_id", "endpoint", "rtt_ms"]);
    assert_eq!((&peer["name"], &peer["online"]), (&"b".into(), &true.into()));
    // Why it is relayed, once that is known.
    assert!(peer["reason"].is_null() || peer["reason"].is_string(), "{peer}");
    assert_eq!(peer["addresses"][0], at_b.to_string());
    assert_eq!((&peer["path"]["kind"], &peer["path"]["relay_id"]), (&"relay".into(), &relay["id"]));
    assert!(peer["rx_bytes"].as_u64().unwrap() >= 84 && peer["tx_bytes"].as_u64().unwrap() >= 84, "{peer}");
    assert!(peer["path"]["rtt_ms"].as_f64().unwrap() > 0.0);

    // `peers` is the same list; tables are for people.
    let peers: Value = serde_json::from_str(&a.edgelink(&["peers", "--json"]).unwrap().run().unwrap()).unwrap();
    assert_eq!(keys(&peers[0]), keys(peer));
    let table = a.edgelink(&["status"]).unwrap().run().unwrap();
    assert!(table.contains("NODE") && table.contains(&at_b.to_string()), "{table}");

    // The controller's side of it.
    let nodes = net.ctl_json(&["node", "list"]).unwrap();
    let names: Vec<_> = nodes.as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(nodes[0]["id"], status["node_id"]);
    assert_eq!(nodes[1]["virtual_ip"], at_b.to_string());

    // A daemon that does not run: exit code 3 and what to do; a peer that there is not: 2.
    let output = a.edgelink(&["status", "--socket", "/nonexistent.sock"]).unwrap().output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stderr.contains("start it with `edgelink run`"), "{}", output.stderr);
    let output = a.edgelink(&["ping", "-c", "1", "nobody"]).unwrap().output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", output.stderr);
}

/// Sends `payload` from one node to another and returns the receiver's SHA-256 and the time it took.
fn transfer(from: &Node, to: &Node, address: SocketAddr, payload: &[u8]) -> (Vec<u8>, Duration) {
    let listener = to.host.tcp_listener(address).unwrap();
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        hash.finalize().to_vec()
    });
    let began = Instant::now();
    let mut stream = from.host.tcp_connect(address, SOON).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream.write_all(payload).unwrap();
    drop(stream);
    (receiver.join().unwrap(), began.elapsed())
}

#[test]
fn tcp_crosses_the_tunnel_unharmed_both_ways() {
    let Some(net) = Net::start(&["a", "b"]).unwrap() else { return };
    let [a, b] = &net.nodes[..] else { unreachable!() };
    for (from, to, target, seed) in [(a, b, 1, 1), (b, a, 0, 2)] {
        let payload = bytes(24 << 20, seed);
        let (received, took) = transfer(from, to, net.at(target, 7000).unwrap(), &payload);
        assert_eq!(received, Sha256::digest(&payload).to_vec(), "{} to {}", from.host.name(), to.host.name());
        let mbit = payload.len() as f64 * 8e-6 / took.as_secs_f64();
        eprintln!("{} to {}: 24 MiB in {took:.2?}, {mbit:.0} Mbit/s", from.host.name(), to.host.name());
    }
    // Both at once.
    let (one, other) = (bytes(8 << 20, 3), bytes(8 << 20, 4));
    let (to_b, to_a) = (net.at(1, 7001).unwrap(), net.at(0, 7001).unwrap());
    thread::scope(|scope| {
        let there = scope.spawn(|| transfer(a, b, to_b, &one).0);
        let back = scope.spawn(|| transfer(b, a, to_a, &other).0);
        assert_eq!(there.join().unwrap(), Sha256::digest(&one).to_vec());
        assert_eq!(back.join().unwrap(), Sha256::digest(&other).to_vec());
    });
    assert_eq!(a.peer("b").unwrap().path.kind, PathKind::Relay);
    net.check_alive().unwrap();
}

#[test]
fn a_node_is_usable_within_a_second() {
    let Some(mut net) = Net::start(&["a", "b"]).unwrap() else { return };
    let at_b: IpAddr = net.nodes[1].overlay().unwrap();
    // The best of three: other work on the machine may take the first second of one.
    let times: Vec<Duration> = (0..3)
        .map(|_| {
            let a = &mut net.nodes[0];
            let (status, log) = a.end(Signal::SIGTERM).unwrap();
            assert_eq!(status.code(), Some(0), "{log}");
            let began = Instant::now();
            a.spawn().unwrap().wait_line("ready ", SOON).unwrap();
            let ready = began.elapsed();
            a.wait_ping(at_b, SOON).unwrap();
            let answered = began.elapsed();
            eprintln!("ready {ready:.0?} and first ping answered {answered:.0?} after `edgelink run`");
            answered
        })
        .collect();
    assert!(times.iter().min().unwrap() < &Duration::from_secs(1), "first pings answered after {times:?}");
    net.nodes[0].wait_state(DaemonState::Up, SOON).unwrap();
}
