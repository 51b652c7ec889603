//! Direct paths over networks that are narrower than usual: what is too large is cut, refused or goes by relay, and nothing
//! vanishes (DESIGN §5, MTU), whether routers say that packets are too large or say nothing.
#![expect(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use edgelink_e2e::{Net, Node, SOON, bytes};
use edgelink_testbed::{Host, Impairment, Link, Queue, Router, port, wait};
use serde_json::Value;

/// The network in the middle, and what a tunnel over it carries: 41 bytes are ours, 28 are UDP's and IPv4's. The TUN has
/// 1400.
const WIDTHS: [(u16, u16); 3] = [(1500, 1400), (1420, 1351), (1280, 1211)];
const TUN_MTU: u16 = 1400;
/// What every IPv6 link has to carry.
const LEAST_V6: u16 = 1280;
const RATE: u64 = 100_000_000;
const DELAY: Duration = Duration::from_millis(2);
const TRANSFER: usize = 4 << 20;
const AT_A: &str = "192.168.71.2";
const AT_B: &str = "192.168.72.2";

/// Beside the way to the relay, two routers with the narrow network between them.
struct Middle {
    routers: [Router; 2],
    _link: Link,
}

impl Middle {
    fn between(net: &Net) -> Self {
        let [a, b] = &net.nodes[..] else { panic!("two nodes") };
        let lab = net.lab_ref();
        let routers = ["ra", "rb"].map(|name| lab.router(name).unwrap());
        let [ra, rb] = &routers;
        lab.link(port(&a.host, "lan", &format!("{AT_A}/24")), port(ra, "lan", "192.168.71.1/24")).unwrap();
        lab.link(port(&b.host, "lan", &format!("{AT_B}/24")), port(rb, "lan", "192.168.72.1/24")).unwrap();
        let full = Impairment::none().rate(RATE).delay(DELAY).queue(Queue::Time(Duration::from_millis(40)));
        let ends = (port(ra, "wan", "192.168.79.1/24"), port(rb, "wan", "192.168.79.2/24"));
        let link = lab.impaired_link(ends.0, ends.1, &full).unwrap();
        let via = |address: &str| -> IpAddr { address.parse().unwrap() };
        ra.route("192.168.72.0/24", via("192.168.79.2")).unwrap();
        rb.route("192.168.71.0/24", via("192.168.79.1")).unwrap();
        a.host.route("192.168.72.0/24", via("192.168.71.1")).unwrap();
        b.host.route("192.168.71.0/24", via("192.168.72.1")).unwrap();
        Self { routers, _link: link }
    }

    /// Both ends: a receiver drops what is larger than its own MTU.
    fn width(&self, mtu: u16) {
        for router in &self.routers {
            router.ip(&["link", "set", "wan", "mtu", &mtu.to_string()]).unwrap();
        }
    }

    /// Whether the routers tell senders that packets are too large, or swallow them without a word.
    fn told(&self, told: bool) {
        let rule = if told { "" } else { "icmp type destination-unreachable icmp code frag-needed counter drop" };
        for router in &self.routers {
            let chain = format!("chain output {{\n type filter hook output priority 0;\n {rule}\n }}");
            router
                .nft(&format!("table ip silent\ndelete table ip silent\ntable ip silent {{\n {chain}\n}}\n"))
                .unwrap();
        }
    }
}

/// The direct path that packets take from `node` to `peer`, once it carries this much.
fn wait_direct(node: &Node, peer: &str, limit: u16) {
    let mut last = String::new();
    let found = wait::until(&format!("a direct path that carries {limit} bytes"), 3 * SOON, || {
        // Traffic, without which nobody looks for a path.
        let _ = node.edgelink(&["ping", "-c", "1", "-i", "0.05", peer]).ok()?.output();
        last = node.edgelink(&["paths", peer, "--json"]).ok()?.run().ok()?;
        let paths: Value = serde_json::from_str(&last).ok()?;
        let paths = paths.as_array().or_else(|| paths["paths"].as_array())?;
        let used = paths.iter().find(|path| path["current"] == true)?;
        (used["mtu"] == limit).then_some(())
    });
    found.unwrap_or_else(|error| panic!("{}: {error:#}\n{last}", node.host.name()));
}

/// Pings with packets around everything that could matter, with and without DF.
fn ping_all(from: &Node, to: IpAddr, limit: u16) {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    // IPv6 packets up to 1280 bytes must be carried: by relay if need be.
    let refused_above = if to.is_ipv4() { limit } else { limit.max(LEAST_V6) };
    let sizes = BTreeSet::from([84, 1000, 8000, limit, limit + 1, LEAST_V6, LEAST_V6 + 1, TUN_MTU, TUN_MTU + 1]);
    let ping = |mode: &str, size: u16, count: &str| {
        let size = size.to_string();
        let ping = ["-n", "-c", count, "-i", "0.02", "-W", "2", "-M", mode, "-s", &size];
        let out = from.host.command("ping").args(ping).arg(to.to_string()).output().unwrap();
        format!("{}{}", out.stdout, out.stderr)
    };
    for packet in sizes {
        let size = packet - headers;
        let text = ping("do", size, "2");
        if packet <= refused_above {
            assert!(text.contains("2 received"), "{packet} bytes with DF over {limit}: {text}");
        } else {
            // By our ICMP, or by the host itself, which has heard it before or knows its own interface.
            let mtu = refused_above;
            let said = [
                format!("Frag needed and DF set (mtu = {mtu})"),
                format!("Packet too big: mtu={mtu}"),
                format!("message too long, mtu={mtu}"),
                format!("message too long, mtu: {mtu}"),
                "message too long, mtu=1400".to_owned(),
                "message too long, mtu: 1400".to_owned(),
            ];
            let said = if packet > TUN_MTU { &said[..] } else { &said[..4] };
            assert!(
                text.contains("0 received") && said.iter().any(|words| text.contains(words)),
                "{packet} bytes with DF over {limit}: {text}"
            );
        }
        // IPv4 is cut on its way; in IPv6 each end hears of the first that is too large, and cuts the next ones itself.
        let (count, answered) = if to.is_ipv4() { ("2", 2..=2) } else { ("5", 3..=5) };
        let text = ping("dont", size, count);
        let received = text.split(", ").find_map(|words| words.strip_suffix(" received")?.parse::<u32>().ok());
        assert!(received.is_some_and(|n| answered.contains(&n)), "{packet} bytes that may be cut over {limit}: {text}");
    }
}

/// Sends so many bytes by one TCP connection; how long until all of them had arrived, and whole.
fn transfer(from: &Host, to: &Host, address: SocketAddr) -> Duration {
    let listener = to.tcp_listener(address).unwrap();
    let mut stream = from.tcp_connect(address, SOON).unwrap();
    let (mut received, _) = listener.accept().unwrap();
    let sent = bytes(TRANSFER, 7);
    let begin = Instant::now();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            received.set_read_timeout(Some(SOON)).unwrap();
            let mut all = Vec::with_capacity(TRANSFER);
            received.read_to_end(&mut all).unwrap();
            (all, begin.elapsed())
        });
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let (all, time) = receiver.join().unwrap();
        assert!(all == sent, "{} of {TRANSFER} bytes, or others", all.len());
        time
    })
}

fn mbit(time: Duration) -> f64 {
    TRANSFER as f64 * 8.0 / time.as_secs_f64() / 1e6
}

#[test]
fn narrow_networks_swallow_nothing_and_cost_tcp_little() {
    let Some(net) = Net::start(&["a", "b"]).unwrap() else { return };
    let [a, b] = &net.nodes[..] else { panic!("two nodes") };
    let middle = Middle::between(&net);
    let at_b = b.status().unwrap().addresses;
    assert_eq!(at_b.len(), 2, "one address of each family: {at_b:?}");
    for (width, limit) in WIDTHS {
        middle.width(width);
        middle.told(true);
        let plain = mbit(transfer(&a.host, &b.host, SocketAddr::new(AT_B.parse().unwrap(), 7_000)));
        // From here on every other thing that is too large for the network would vanish without a word.
        for told in [false, true] {
            middle.told(told);
            for node in [a, b] {
                // What the kernel has learnt of a wider network.
                node.host.ip(&["-4", "route", "flush", "cache"]).unwrap();
                node.host.ip(&["-6", "route", "flush", "cache"]).unwrap();
            }
            wait_direct(a, "b", limit);
            wait_direct(b, "a", limit);
            for to in &at_b {
                ping_all(a, *to, limit);
                let inside = mbit(transfer(&a.host, &b.host, SocketAddr::new(*to, 7_000)));
                eprintln!("{width}, told: {told}, to {to}: {inside:.0} Mbit/s, {plain:.0} without tunnel");
                assert!(inside > plain / 2.0, "{inside:.0} Mbit/s of {plain:.0}");
            }
            let peer = a.peer("b").unwrap();
            assert_eq!(peer.path.endpoint.map(|at| at.ip().to_string()).as_deref(), Some(AT_B), "{peer:?}");
        }
    }
    net.check_alive().unwrap();
}
