//! The relay carries what it cannot read: not in its packets, not in its memory.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    fs::Permissions,
    io::{Read, Write},
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use edgelink_api::local::Status;
use edgelink_e2e::{Net, NetOptions, SOON, TUN, random};
use edgelink_testbed::topology::TcpOnly;
use serde_json::json;

#[test]
fn a_payload_marker_is_nowhere_at_the_relay() {
    let Some(net) = Net::start(&["a", "b"]).unwrap() else { return };
    let [a, b] = &net.nodes[..] else { unreachable!() };
    let at_relay = net.topology.relay.capture("eth0").unwrap();
    let at_b_wire = b.host.capture("eth0").unwrap();
    let at_b_tun = b.host.capture(TUN).unwrap();
    let (datagram_marker, stream_marker) = (random::<32>().unwrap(), random::<32>().unwrap());

    // Many datagrams, so that every buffer on the way is used.
    let receiver = b.host.udp_socket(net.at(1, 5000).unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let sender = a.host.udp_socket(net.at(0, 5000).unwrap()).unwrap();
    let mut buffer = [0; 2048];
    for n in 0..200_u16 {
        let mut datagram = n.to_be_bytes().to_vec();
        (0..n % 40).for_each(|_| datagram.extend_from_slice(&datagram_marker));
        datagram.extend_from_slice(&datagram_marker);
        sender.send_to(&datagram, net.at(1, 5000).unwrap()).unwrap();
        let len = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], datagram, "really received");
    }

    // A stream, so that super-packets carry it too.
    let address = net.at(1, 5001).unwrap();
    let listener = b.host.tcp_listener(address).unwrap();
    let mut to_b = a.host.tcp_connect(address, SOON).unwrap();
    let (mut from_a, _) = listener.accept().unwrap();
    let payload = stream_marker.repeat((2 << 20) / stream_marker.len());
    let expected = payload.clone();
    let writer = std::thread::spawn(move || to_b.write_all(&payload).map(|()| drop(to_b)));
    let mut received = Vec::new();
    from_a.set_read_timeout(Some(SOON)).unwrap();
    from_a.read_to_end(&mut received).unwrap();
    writer.join().unwrap().unwrap();
    assert!(received == expected, "really received");

    // While the relay still runs: its memory, and as a control that looking into it works.
    let controller = net.controller().unwrap();
    for marker in [&datagram_marker, &stream_marker] {
        for half in marker.chunks(16) {
            assert!(!controller.memory_contains(half).unwrap(), "a marker is in the relay's memory");
        }
    }
    let statement = net.ctl_json(&["node", "show", "a"]).unwrap();
    let machine = hex::decode(statement["machine_key_pub"].as_str().unwrap()).unwrap();
    assert!(controller.memory_contains(&machine).unwrap(), "the control: what it knows is found");
    let receiver_holds = b.process().unwrap().memory_contains(&datagram_marker).unwrap();
    eprintln!("the receiving daemon's memory holds the marker still: {receiver_holds}");

    // What passed.
    let relay = at_relay.stop().unwrap();
    let wire = at_b_wire.stop().unwrap();
    let tun = at_b_tun.stop().unwrap();
    assert_eq!((relay.lost, wire.lost, tun.lost), (0, 0, 0), "an absence needs a complete capture");
    for marker in [&datagram_marker, &stream_marker] {
        assert!(tun.contains(marker), "the control: what is there is found");
        for half in marker.chunks(16) {
            assert!(!relay.contains(half), "a marker passed the relay's interface in clear");
            assert!(!wire.contains(half), "a marker passed the receiver's wire in clear");
        }
    }
    let bytes: usize = relay.tcp().map(|packet| packet.bytes.len()).sum();
    assert!(bytes > 2 * (2 << 20), "the relay's interface was the way, in and out: {bytes}");
    assert_eq!(relay.udp().count(), 0);
    for n in [1, 2] {
        let node = IpAddr::from(TcpOnly::node_address(n));
        assert!(relay.tcp().any(|packet| packet.ip().is_some_and(|ip| ip.source == node)));
    }

    // Keys and tokens appear in no log either.
    let key = net.join_flag("--key").unwrap();
    let log = controller.stderr();
    assert_eq!(log.matches(key).count(), 1, "printed once, for the person at the terminal");
    for node in &net.nodes {
        assert!(!node.process().unwrap().stderr().contains(key));
    }
    net.check_alive().unwrap();
}

#[test]
fn only_nodes_with_the_same_pre_shared_key_talk() {
    let Some(mut net) = Net::lab(&["a", "b", "c"], NetOptions::default()).unwrap() else { return };
    let dir = net.lab_ref().dir().to_owned();
    // 32 bytes of 1 and of 2.
    let psk = |letters: &str| format!("{}{}", letters.repeat(10), if letters == "AQEB" { "AQE=" } else { "AgI=" });
    // One by the file, one in the configuration, and one that does not know it.
    let file = dir.join("psk");
    std::fs::write(&file, psk("AQEB") + "\n").unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    net.nodes[0].configure(&json!({ "psk_file": file })).unwrap();
    net.nodes[1].configure(&json!({ "psk": psk("AQEB") })).unwrap();
    net.nodes[2].configure(&json!({ "psk": psk("AgIC") })).unwrap();
    net.start_controller().unwrap();

    // A file that others may read is refused.
    net.nodes[0].run().unwrap();
    let join = net.join_command().to_owned();
    let refused = net.nodes[0].shell(&join).unwrap().output().unwrap();
    assert!(!refused.status.success() && refused.stderr.contains("chmod 600"), "{}", refused.stderr);
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    net.nodes[0].shell(&join).unwrap().run().unwrap();
    net.join(1).unwrap();
    net.nodes[1].wait_ping(net.nodes[0].overlay().unwrap(), SOON).unwrap();

    // The other one gets nothing through, either way, and both ends say why.
    net.nodes[2].run().unwrap();
    net.nodes[2].shell(&join).unwrap().run().unwrap();
    net.nodes[2].wait_peer("a").unwrap();
    let to_a = net.nodes[0].overlay().unwrap().to_string();
    let pings = net.nodes[2].host.command("ping").args(["-n", "-i", "0.3", &to_a]).spawn_logged().unwrap();
    for (node, peer) in [(0, "c"), (2, "a")] {
        let told = |status: &Status| {
            let peer = status.peers.iter().find(|other| other.name == peer);
            peer.and_then(|peer| peer.reason.as_ref()).is_some_and(|reason| reason.contains("pre-shared key"))
        };
        let status = net.nodes[node].wait_status("the reason", SOON, told).unwrap();
        assert!(status.peers.iter().all(|other| other.name != peer || other.rx_bytes == 0), "{:?}", status.peers);
    }
    pings.terminate(SOON).unwrap();
    net.check_alive().unwrap();
}
