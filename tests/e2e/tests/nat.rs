//! Nodes behind NATs of every kind reach each other, or know why not (specification §6.1). The same as a bench, many times:
//! `cargo run -p edgelink-e2e --bin edgelink-nat-bench`.
#![expect(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![expect(clippy::unwrap_used, reason = "tests")]

use edgelink_api::local::{NatName, PathKind};
use edgelink_e2e::p2p::{KINDS, Matrix, Sites, is_direct, lab, peer, status, table, time_to_direct};
use edgelink_e2e::{Node, Pinger, SOON};
use edgelink_testbed::{
    Capture, Captured, Host, Nat, NatKind,
    topology::{Site, SitePlan},
    wait,
};
use edgelink_wire::FrameType;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn all_sixteen_pairs_of_nats_behave_as_the_specification_has_it() {
    let Some(lab) = lab().unwrap() else { return };
    let matrix = Matrix::start(&lab, Duration::from_millis(12)).unwrap();
    matrix.wait_named().unwrap();
    let routers = matrix.nodes.iter().flatten().map(|(site, _)| &site.first.router);
    let captures: Vec<Capture> = routers.map(|router| router.capture("wan").unwrap()).collect();
    let cells = matrix.run([20 * SECOND, 25 * SECOND]).unwrap();
    println!("{}", table(std::slice::from_ref(&cells)));
    assert_eq!(cells.len(), 16);
    for cell in &cells {
        let names = cell.kinds.map(|kind| KINDS[kind].2);
        match cell.mark() {
            "✅" => assert!(cell.time.is_some(), "{names:?}: {}", cell.reason),
            // Guessing takes up to a minute and succeeds nine times of ten: the simulator and the bench measure that.
            "⚠️" => {
                let why = ["symmetric NAT", "a direct path was found"];
                let told = why.iter().any(|words| cell.reason.contains(words));
                assert!(cell.time.is_some() || told, "{names:?}: {}", cell.reason)
            }
            _ => assert!(
                cell.time.is_none() && cell.reason.contains("symmetric NAT on both sides"),
                "{names:?}: {:?} {}",
                cell.time,
                cell.reason
            ),
        }
    }
    // However many peers are looked for in vain and ports guessed meanwhile.
    for (capture, (site, node)) in captures.into_iter().zip(matrix.nodes.iter().flatten()) {
        let captured = capture.stop().unwrap();
        assert_eq!(captured.lost, 0);
        let probes = probes(&captured, site.first.public.into());
        let within = |(n, from): (usize, &Duration)| probes[n..].iter().take_while(|at| **at < *from + SECOND).count();
        let busiest = probes.iter().enumerate().map(within).max().unwrap_or(0);
        println!("{}: {} probes, at most {busiest} within a second", node.host.name(), probes.len());
        assert!((1..=20).contains(&busiest), "{}: {busiest} probes within a second", node.host.name());
    }
    // The controller has heard of the NATs.
    let named = |kind: &str| {
        let nodes = matrix.sites.ctl(&["node", "list"]).ok()?;
        let count = nodes.as_array()?.iter().filter(|node| node["nat_type"] == kind).count();
        (count == 2).then_some(())
    };
    for kind in ["full_cone", "restricted_cone", "port_restricted", "symmetric"] {
        wait::until(&format!("two nodes with nat_type {kind}"), SOON, || named(kind)).unwrap();
    }
    matrix.sites.check_alive(matrix.nodes.iter().flatten().map(|(_, node)| node)).unwrap();
}

/// When each probe left a site: sealed PINGs to whoever has not answered one. What goes to the STUN servers, keepalives (which
/// are of paths) and the probes of living paths are outside the budget.
fn probes(captured: &Captured, public: IpAddr) -> Vec<Duration> {
    const PING: u8 = FrameType::P2pPing as u8;
    const PONG: u8 = FrameType::P2pPong as u8;
    let (mut answered, mut probes) = (BTreeSet::new(), Vec::new());
    for packet in captured.udp() {
        let (ip, (from, to)) = packet.ip().and_then(|ip| Some((ip, ip.ports()?))).unwrap();
        // Behind the UDP header: version and type.
        let ty = match ip.transport.get(8..) {
            Some([1, ty, ..]) => *ty,
            _ => continue,
        };
        if ip.source != public && ty == PONG {
            answered.insert((ip.source, from, to));
        }
        if ip.source == public && ty == PING && !answered.contains(&(ip.destination, to, from)) {
            probes.push(packet.at);
        }
    }
    probes
}

/// A site and a node on each of its hosts.
fn nodes(sites: &Sites<'_>, name: &str, plan: &SitePlan) -> (Site, Vec<Node>) {
    let site = sites.internet.site(name, plan).unwrap();
    let nodes = site.hosts.iter().map(|host| sites.node(host)).collect();
    (site, nodes)
}

fn only_v4(host: &Host) {
    host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
}

#[test]
fn what_else_networks_do_is_coped_with() {
    let Some(lab) = lab().unwrap() else { return };
    let sites = Sites::start(&lab).unwrap();
    let home = |kind| SitePlan::behind(kind);
    let (_lan, mut lan) = nodes(&sites, "lan", &home(NatKind::PortRestricted).hosts(2));
    let (hairpin, mut hairpins) = nodes(&sites, "hairpin", &home(NatKind::FullCone).hosts(2));
    let (_none, mut no_hairpins) = nodes(&sites, "noloop", &home(NatKind::FullCone).hosts(2));
    let (_double, mut double) =
        nodes(&sites, "double", &home(NatKind::PortRestricted).carrier(NatKind::PortRestricted));
    let (_docker, mut docker) = nodes(&sites, "docker", &home(NatKind::PortRestricted));
    let (v6_a, mut v6_as) = nodes(&sites, "six-a", &home(NatKind::PortRestricted));
    let (v6_b, mut v6_bs) = nodes(&sites, "six-b", &home(NatKind::PortRestricted));
    let (_blocked, mut blocked) = nodes(&sites, "blocked", &home(NatKind::UdpBlocked));
    let (_disabled, mut disabled) = nodes(&sites, "disabled", &home(NatKind::FullCone));
    let (peer_site, mut peers) = nodes(&sites, "peer", &home(NatKind::PortRestricted));

    // All but two are about IPv4.
    let v4: Vec<&Node> =
        [&lan, &hairpins, &no_hairpins, &double, &docker, &blocked, &disabled].into_iter().flatten().collect();
    v4.iter().for_each(|node| only_v4(&node.host));
    // Hosts of one site that cannot reach each other but through their router.
    hairpin.nat(&Nat::full_cone("wan").hairpin(true)).unwrap();
    for pair in [&hairpins, &no_hairpins] {
        let net = pair[0].host.command("ip").args(["-4", "-o", "addr", "show", "eth0"]).run().unwrap();
        let net =
            net.split_whitespace().find(|word| word.ends_with("/24")).unwrap().trim_end_matches("2/24").to_owned();
        pair[0]
            .host
            .nft(&format!(
                "table ip apart {{\n chain out {{ type filter hook output priority 0; ip daddr {net}3 drop\n }}\n}}\n"
            ))
            .unwrap();
        pair[1]
            .host
            .nft(&format!(
                "table ip apart {{\n chain out {{ type filter hook output priority 0; ip daddr {net}2 drop\n }}\n}}\n"
            ))
            .unwrap();
    }
    // Docker's network, another VPN's, and one that both homes use: addresses that mean something else elsewhere.
    for (host, own) in [(&docker[0].host, 5), (&peers[0].host, 6)] {
        for (name, net) in [
            ("docker0", "172.17.0.1/16".to_owned()),
            ("vpn0", format!("100.99.0.{own}/10")),
            ("lan1", format!("192.168.1.{own}/24")),
        ] {
            let other_end = format!("{name}x");
            host.ip(&["link", "add", name, "type", "veth", "peer", "name", &other_end]).unwrap();
            host.ip(&["link", "set", &other_end, "up"]).unwrap();
            host.ip(&["address", "add", &net, "dev", name]).unwrap();
            host.ip(&["link", "set", name, "up"]).unwrap();
        }
    }
    // IPv6 alone, behind firewalls; and both.
    for site in [&v6_a, &v6_b] {
        site.nat(&Nat::port_restricted("wan").ipv6_firewall(true)).unwrap();
    }
    peer_site.nat(&Nat::port_restricted("wan").ipv6_firewall(true).lifetime(30 * SECOND)).unwrap();
    for node in [&v6_as[0], &v6_bs[0]] {
        node.host.ip(&["-4", "address", "flush", "dev", "eth0"]).unwrap();
    }

    let capture = disabled[0].host.capture("eth0").unwrap();
    let command = disabled[0].daemon().unwrap().env("EDGELINK_P2P__ENABLED", "false");
    disabled[0].run_as(command).unwrap();
    sites.up(&disabled[0]).unwrap();
    let mut all: Vec<&mut Node> = [
        &mut lan,
        &mut hairpins,
        &mut no_hairpins,
        &mut double,
        &mut docker,
        &mut v6_as,
        &mut v6_bs,
        &mut blocked,
        &mut peers,
    ]
    .into_iter()
    .flatten()
    .collect();
    sites.join(&mut all).unwrap();
    let peer_node = &peers[0];

    let direct = |from: &Node, to: &Node, kind: PathKind, what: &str| {
        let (time, seen) = time_to_direct(from, to, 25 * SECOND).unwrap();
        println!("{what}: {time:?} {:?}", seen.path);
        assert!(time.is_some() && seen.path.kind == kind, "{what}: {seen:?}");
        seen
    };
    let relayed = |from: &Node, to: &Node, reason: &str, what: &str| {
        let (time, seen) = time_to_direct(from, to, 8 * SECOND).unwrap();
        println!("{what}: {time:?} {:?}", seen.reason);
        assert!(time.is_none() && seen.reason.as_deref().is_some_and(|said| said.contains(reason)), "{what}: {seen:?}");
    };
    direct(&lan[0], &lan[1], PathKind::Lan, "one NAT, one network");
    let seen = direct(&hairpins[0], &hairpins[1], PathKind::P2p, "one NAT with hairpinning, hosts apart");
    assert_eq!(seen.path.endpoint.unwrap().ip(), IpAddr::from(hairpin.first.public));
    relayed(&no_hairpins[0], &no_hairpins[1], "", "one NAT without hairpinning, hosts apart");
    direct(&double[0], peer_node, PathKind::P2p, "two NATs one behind the other");
    let quiet_since = Instant::now();
    let seen = direct(&docker[0], peer_node, PathKind::P2p, "docker, a VPN, and the same private network elsewhere");
    assert_eq!(seen.path.endpoint.unwrap().ip(), IpAddr::from(peer_site.first.public));
    let seen = direct(&v6_as[0], &v6_bs[0], PathKind::P2p, "IPv6 alone");
    assert!(seen.path.endpoint.unwrap().is_ipv6());
    let seen = direct(&v6_as[0], peer_node, PathKind::P2p, "IPv6 alone and dual stack");
    assert!(seen.path.endpoint.unwrap().is_ipv6());
    relayed(&blocked[0], peer_node, "UDP seems to be blocked here", "UDP blocked");
    assert_eq!(status(&blocked[0]).unwrap().nat.name, NatName::UdpBlocked);
    relayed(&disabled[0], peer_node, "disabled here", "p2p.enabled: false");
    relayed(&docker[0], &disabled[0], "disabled there", "p2p.enabled: false on the other side");
    let captured = capture.stop().unwrap();
    assert!(captured.tcp().count() > 10, "the capture sees what passes");
    assert_eq!(captured.udp().count(), 0, "not one UDP packet");

    // Nothing was said on the way to the peer for longer than its router remembers.
    std::thread::sleep((45 * SECOND).saturating_sub(quiet_since.elapsed()));
    let seen = peer(&double[0], "peer-1").unwrap();
    assert!(is_direct(seen.path.kind), "mappings of 30 s are kept open: {seen:?}");

    // The router forgets everything: packets go round until the way is found again.
    let pinger = Pinger::start(&double[0], peer_node.overlay().unwrap()).unwrap();
    pinger.wait_answers(10).unwrap();
    peer_site.first.router.reboot().unwrap();
    pinger.wait_answers(30).unwrap();
    wait::until("a direct path again", 40 * SECOND, || {
        peer(&double[0], "peer-1").ok().filter(|seen| is_direct(seen.path.kind))
    })
    .unwrap();
    let pings = pinger.stop().unwrap();
    let gap = pings.at.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    println!("a router reboots: longest pause {gap:.2} s");
    assert!(gap <= 5.0, "{pings:?}");
    sites
        .check_alive([&lan[0], &lan[1], &double[0], &docker[0], peer_node, &v6_as[0], &blocked[0], &disabled[0]])
        .unwrap();
}
