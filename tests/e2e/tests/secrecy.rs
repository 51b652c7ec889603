//! The relay carries what it cannot read: not in its packets, not in its memory.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    io::{Read, Write},
    net::IpAddr,
    time::Duration,
};

use edgelink_e2e::{Net, SOON, TUN, random};
use edgelink_testbed::topology::TcpOnly;

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
