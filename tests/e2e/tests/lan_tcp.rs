//! Two nodes on one local network that lets no UDP through between them.
#![expect(clippy::unwrap_used, reason = "tests")]

use edgelink_api::local::{Peer, Transport};
use edgelink_e2e::{Net, Node, Pinger, SOON, TcpFlow};
use edgelink_testbed::topology::TcpOnly;
use edgelink_testbed::{Host, port};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

const AT_A: &str = "192.168.77.1";
const AT_B: &str = "192.168.77.2";
const SENT: &str = "edgelink_relay_sent_bytes_total";
const FLOW: u16 = 4000;

fn wait_transport(node: &Node, peer: &str, wanted: Option<Transport>, timeout: Duration) -> Peer {
    let what = format!("a path to {peer} by {wanted:?}");
    let is = |p: &&Peer| p.name == peer && p.path.transport == wanted;
    node.wait_status(&what, timeout, |status| status.peers.iter().any(|p| is(&p))).unwrap();
    node.peer(peer).unwrap()
}

/// What is dropped on the way in and out of the local network.
fn drop_on_lan(host: &Host, what: &str) {
    let rules = ["input hook input", "output hook output"].map(|chain| {
        let (name, hook) = chain.split_once(' ').unwrap();
        let direction = if name == "input" { "iifname" } else { "oifname" };
        format!("chain {name} {{ type filter {hook} priority 0; {direction} \"lan\" {what} drop; }}\n")
    });
    host.nft(&format!("table inet hole\ndelete table inet hole\ntable inet hole {{\n{}\n}}\n", rules.concat()))
        .unwrap();
}

fn let_all_pass(host: &Host) {
    host.nft("delete table inet hole\n").unwrap();
}

#[test]
fn tcp_is_used_where_udp_does_not_get_through_and_left_when_it_does() {
    let Some(net) = Net::start(&["a", "b"]).unwrap() else { return };
    let [a, b] = &net.nodes[..] else { unreachable!() };
    let at_b = b.overlay().unwrap();
    for node in [a, b] {
        drop_on_lan(&node.host, "meta l4proto udp");
    }
    net.lab_ref()
        .link(port(&a.host, "lan", &format!("{AT_A}/24")), port(&b.host, "lan", &format!("{AT_B}/24")))
        .unwrap();
    a.wait_ping(at_b, SOON).unwrap();

    // The switch from the relay loses nothing.
    let pinger = Pinger::start(a, at_b).unwrap();
    let flow = TcpFlow::start(a, b, FLOW).unwrap();
    let path = wait_transport(a, "b", Some(Transport::Tcp), SOON).path;
    wait_transport(b, "a", Some(Transport::Tcp), SOON);
    assert_eq!(path.endpoint.map(|endpoint| endpoint.ip().to_string()), Some(AT_B.to_owned()));
    let json = a.edgelink(&["peers", "--json"]).unwrap().run().unwrap();
    assert!(json.contains("\"kind\":\"lan\"") && json.contains("\"transport\":\"tcp\""), "{json}");
    pinger.wait_answers(10).unwrap();

    // Nothing of it goes by the relay: what that sends are PONGs of both nodes' candidate paths.
    let before = net.metric(SENT).unwrap();
    assert!(before > 10_000, "what went by the relay before is counted: {before}");
    let iperf = b.host.command("iperf3").args(["-s", "-1", "-p", "5201", "--forceflush"]).spawn_logged().unwrap();
    iperf.wait_line("Server listening", SOON).unwrap();
    let client = ["-c", &at_b.to_string(), "-p", "5201", "-n", "64M", "-J"].map(ToOwned::to_owned);
    let report: serde_json::Value =
        serde_json::from_str(&a.host.command("iperf3").args(client).run().unwrap()).unwrap();
    let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
    assert!(received >= 60 << 20, "{report}");
    let relayed = net.metric(SENT).unwrap() - before;
    println!("{relayed} bytes by the relay beside {received} by TCP");
    assert!(relayed < 1 << 20, "{relayed} bytes went by the relay");
    wait_transport(a, "b", Some(Transport::Tcp), SOON);

    // Strangers: a scanner, a client of something else, one that says nothing. They hear nothing and harm nobody.
    let listener: SocketAddr = path.endpoint.unwrap();
    for said in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[1, 0x13, 0, 0, 200], &[0xff; 4096], &[0; 100]] {
        let mut stranger = a.host.tcp_connect(listener, SOON).unwrap();
        let _ = stranger.write_all(said);
        stranger.set_read_timeout(Some(SOON)).unwrap();
        // The end, or a reset since something was unread; no byte in any case.
        let heard = stranger.read(&mut [0; 16]).unwrap_or(0);
        assert_eq!(heard, 0, "{said:?}");
    }
    let crowd: Vec<_> = (0..64).filter_map(|_| a.host.tcp_connect(listener, SOON).ok()).collect();
    pinger.wait_answers(10).unwrap();
    drop(crowd);
    let drops = b.status().unwrap().drops;
    assert!(drops.get("refused_stream").is_some_and(|count| *count >= 5), "{drops:?}");
    let path = wait_transport(a, "b", Some(Transport::Tcp), SOON).path;
    assert_eq!(path.endpoint, Some(listener));
    pinger.stop_without_loss().unwrap();

    // Nothing passes the local network any more: the relay takes over, and the connection inside goes on.
    for node in [a, b] {
        drop_on_lan(&node.host, "meta l4proto { tcp, udp }");
    }
    wait_transport(a, "b", None, SOON);
    wait_transport(b, "a", None, SOON);
    let pinger = Pinger::start(a, at_b).unwrap();
    pinger.wait_answers(10).unwrap();

    // And when all passes again, UDP is found: by the search, or from TCP.
    for node in [a, b] {
        let_all_pass(&node.host);
    }
    wait_transport(a, "b", Some(Transport::Udp), 4 * SOON);
    wait_transport(b, "a", Some(Transport::Udp), SOON);
    pinger.wait_answers(10).unwrap();
    pinger.stop_without_loss().unwrap();
    println!("{} numbers through the connection inside", flow.stop().unwrap());
    net.check_alive().unwrap();
}

#[test]
fn without_direct_paths_no_port_is_open() {
    let Some(mut net) = Net::start(&["a"]).unwrap() else { return };
    let listens = |net: &Net| -> Vec<String> {
        let text = net.nodes[0].host.command("ss").args(["-Hltn"]).run().unwrap();
        text.lines().filter_map(|line| line.split_whitespace().nth(3).map(ToOwned::to_owned)).collect()
    };
    // On the private address of its own interface, neither on all nor in the tunnel; at the UDP port's number.
    let own = TcpOnly::node_address(1).to_string();
    let one = |net: &Net| listens(net).iter().all(|at| at.starts_with(&own)).then(|| listens(net).len());
    edgelink_testbed::wait::until("a listener", SOON, || one(&net).filter(|count| *count == 1)).unwrap();
    let udp = net.nodes[0].host.command("ss").args(["-Hlun"]).run().unwrap();
    let number = listens(&net)[0].rsplit_once(':').unwrap().1.to_owned();
    assert!(udp.contains(&format!(":{number} ")), "{udp}");

    let a = &mut net.nodes[0];
    a.end(nix::sys::signal::Signal::SIGTERM).unwrap();
    a.configure(&serde_json::json!({ "p2p": { "port": 41700 } })).unwrap();
    a.run().unwrap();
    let wanted = vec![format!("{own}:41700")];
    edgelink_testbed::wait::until("the port wanted", SOON, || (listens(&net) == wanted).then_some(())).unwrap();

    let a = &mut net.nodes[0];
    a.end(nix::sys::signal::Signal::SIGTERM).unwrap();
    a.configure(&serde_json::json!({ "p2p": { "enabled": false } })).unwrap();
    a.run().unwrap();
    a.process().unwrap().wait_line("ready ", SOON).unwrap();
    assert_eq!(listens(&net), Vec::<String>::new());
}
