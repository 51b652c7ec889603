//! Programs that send many datagrams by one call (`UDP_SEGMENT`, as QUIC does): the kernel gives them to us as one packet, and
//! whatever becomes of it on the way, the same datagrams come out.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use edgelink_api::local::PathKind;
use edgelink_e2e::{Net, NetOptions, Node, SOON, binary, bytes};
use edgelink_testbed::port;
use nix::sys::socket::{setsockopt, sockopt};

/// Datagrams of one call at most; kernels before 6.9 take 64.
const DATAGRAMS: usize = 60;
/// Bytes of one call at most; no UDP packet is longer.
const BYTES: usize = 65_000;
const FORWARDED: &str = "edgelink_relay_forwarded_bytes_total";
/// `TUN_F_USO4` and `TUN_F_USO6`, unknown before Linux 6.2.
const USO: &str = "60";
/// All of them.
const ALL: &str = "ffffffff";

/// Sends so many calls of datagrams of this size (the last of each half as long) and compares what comes out, each datagram
/// with its boundaries. Each call waits for the one before to have arrived, so that no queue overflows.
fn exchange(from: &Node, to: &Node, size: usize, calls: usize) -> usize {
    let mut payload = 0;
    for (at, addressed) in both(from, to) {
        let receiver = to.host.udp_socket(addressed).unwrap();
        receiver.set_read_timeout(Some(SOON)).unwrap();
        let sender: UdpSocket = from.host.udp_socket(at).unwrap();
        sender.connect(addressed).unwrap();
        setsockopt(&sender, sockopt::UdpGsoSegment, &i32::try_from(size).unwrap()).unwrap();
        let mut buffer = vec![0; 65_536];
        for call in 0..calls {
            let whole = DATAGRAMS.min(BYTES / size) - 1;
            let sent = bytes(whole * size + size.div_ceil(2), (size * calls + call) as u64);
            assert_eq!(sender.send(&sent).unwrap(), sent.len());
            let mut expected: Vec<&[u8]> = sent.chunks(size).collect();
            let receive = |n| {
                let len = receiver.recv(&mut buffer).unwrap_or_else(|error| panic!("{n} of call {call}: {error}"));
                buffer[..len].to_vec()
            };
            // Some may overtake others in a relay, once, when it is found out that the flow is not a sparse one.
            let mut received: Vec<Vec<u8>> = (0..expected.len()).map(receive).collect();
            received.sort_unstable();
            expected.sort_unstable();
            assert!(received == expected, "{} to {}: call {call} of {size}", from.host.name(), to.host.name());
            payload += sent.len();
        }
    }
    payload
}

/// The addresses of two nodes, family by family.
fn both(from: &Node, to: &Node) -> Vec<(SocketAddr, SocketAddr)> {
    let (ours, theirs) = (from.status().unwrap().addresses, to.status().unwrap().addresses);
    let pairs = ours.iter().zip(&theirs).map(|(a, b)| (SocketAddr::new(*a, 7_000), SocketAddr::new(*b, 7_000)));
    pairs.collect()
}

/// How many bytes the relay forwarded for each byte of payload, while small datagrams went this way.
fn cost(net: &Net, from: &Node, to: &Node) -> f64 {
    let before = net.metric(FORWARDED).unwrap();
    let payload = exchange(from, to, 100, 30);
    (net.metric(FORWARDED).unwrap() - before) as f64 / payload as f64
}

/// With headers of their own and sealed one by one, datagrams of 100 bytes cost 69 more each.
const ONE_BY_ONE: f64 = 1.6;
const TOGETHER: f64 = 1.2;

#[test]
fn datagrams_of_one_call_come_out_as_they_were_relayed_and_direct() {
    let Some(net) = Net::start(&["a", "b"]).unwrap() else { return };
    let [a, b] = &net.nodes[..] else { unreachable!() };
    a.wait_ping(b.overlay().unwrap(), SOON).unwrap();
    for (from, to) in [(a, b), (b, a)] {
        for size in [1, 700, 1_352] {
            exchange(from, to, size, 3);
        }
        let cost = cost(&net, from, to);
        assert!(cost < TOGETHER, "one frame for many datagrams: {cost}");
    }

    net.lab_ref().link(port(&a.host, "lan", "192.168.77.1/24"), port(&b.host, "lan", "192.168.77.2/24")).unwrap();
    let direct = |node: &Node| {
        let kind = |status: &edgelink_api::local::Status| status.peers.iter().all(|p| p.path.kind == PathKind::Lan);
        node.wait_status("a direct path", SOON, kind).unwrap();
    };
    direct(a);
    direct(b);
    let before = net.metric(FORWARDED).unwrap();
    let mut payload = 0;
    for (from, to) in [(a, b), (b, a)] {
        for size in [1, 700, 1_352] {
            payload += exchange(from, to, size, 3);
        }
    }
    let relayed = net.metric(FORWARDED).unwrap() - before;
    assert!(relayed < payload as u64 / 10, "{relayed} of {payload} went through the relay");
    net.check_alive().unwrap();
}

/// Clients to which the kernel grants less announce less, and get what they can take: a build before this capability does
/// not announce it either.
#[test]
fn who_announces_less_gets_datagrams_one_by_one() {
    let Some(mut net) = Net::lab(&["new", "older", "plain"], NetOptions::default()).unwrap() else { return };
    net.start_controller().unwrap();
    net.join(0).unwrap();
    for (node, refused) in [(1, USO), (2, ALL)] {
        let client = binary("edgelink").unwrap();
        let command = net.nodes[node].host.command(binary("edgelink-less-kernel").unwrap());
        let command = command.arg(refused).arg(client).args(net.nodes[node].daemon_arguments().unwrap());
        net.join_as(node, command).unwrap();
    }
    let [new, older, plain] = &net.nodes[..] else { unreachable!() };
    for to in [older, plain] {
        new.wait_ping(to.overlay().unwrap(), SOON).unwrap();
        let there = cost(&net, new, to);
        assert!(there > ONE_BY_ONE, "{}: {there}", to.host.name());
        exchange(new, to, 1_352, 3);
        // Its own kernel cuts what its programs send.
        let back = cost(&net, to, new);
        assert!(back > ONE_BY_ONE, "{}: {back}", to.host.name());
        exchange(to, new, 1_352, 3);
        // TCP both ways, in super-packets to the one and without to the other.
        for (from, to) in [(new, to), (to, new)] {
            tcp(from, to);
        }
    }
    for node in [new, older, plain] {
        let drops = node.status().unwrap().drops;
        assert!(!drops.contains_key("bad_super_packet") && !drops.contains_key("tun_write"), "{drops:?}");
    }
    net.check_alive().unwrap();
}

/// Two MiB, compared byte by byte.
fn tcp(from: &Node, to: &Node) {
    use std::io::{Read as _, Write as _};
    let at = SocketAddr::new(to.overlay().unwrap(), 7_001);
    let listener = to.host.tcp_listener(at).unwrap();
    let sent = bytes(2 << 20, 7);
    let expected = sent.clone();
    let mut stream = from.host.tcp_connect(at, Duration::from_secs(5)).unwrap();
    let sender = std::thread::spawn(move || stream.write_all(&sent));
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.set_read_timeout(Some(SOON)).unwrap();
    let mut received = Vec::new();
    accepted.read_to_end(&mut received).unwrap();
    sender.join().unwrap().unwrap();
    assert!(received == expected, "{} bytes of {}", received.len(), expected.len());
}
