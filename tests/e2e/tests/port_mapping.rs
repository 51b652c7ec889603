//! Port mappings by a real `miniupnpd` on the sites' routers: PCP, NAT-PMP and UPnP-IGD.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use edgelink_api::local::{Netcheck, PathKind};
use edgelink_e2e::p2p::{Sites, status, time_to_direct};
use edgelink_e2e::{Node, SOON};
use edgelink_testbed::{
    Lab, NatKind, PortMappings, Tool,
    topology::{Site, SitePlan},
    wait,
};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const ALL: PortMappings =
    PortMappings { upnp: true, pcp_and_nat_pmp: true, external: None, max_lifetime: Duration::from_secs(20) };

fn lab() -> Option<Lab> {
    match Lab::with_tools(&[Tool::Ping, Tool::Miniupnpd]) {
        Ok(lab) => Some(lab),
        Err(error) if format!("{error:#}").contains("the kernel refuses") => {
            eprintln!("NOT TESTED: {error:#}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

/// A site of one host that has IPv4 only, and its node.
fn site(sites: &Sites<'_>, name: &str, plan: &SitePlan) -> (Site, Node) {
    let site = sites.internet.site(name, plan).unwrap();
    site.hosts[0].sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    let node = sites.node(&site.hosts[0]);
    (site, node)
}

fn netcheck(node: &Node) -> Netcheck {
    let text = node.edgelink(&["netcheck", "--json"]).unwrap().run().unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What miniupnpd has put into its chain for incoming packets.
fn rules(site: &Site) -> String {
    site.first.router.command("nft").args(["list", "chain", "inet", "filter", "prerouting_miniupnpd"]).run().unwrap()
}

#[test]
fn a_port_that_the_router_maps_makes_symmetric_nats_reachable() {
    let Some(lab) = lab() else { return };
    let sites = Sites::start(&lab).unwrap();
    let symmetric = SitePlan::behind(NatKind::Symmetric);
    let (pcp, mut by_pcp) = site(&sites, "pcp", &symmetric);
    let (nat_pmp, mut by_nat_pmp) = site(&sites, "natpmp", &symmetric);
    let (upnp, mut by_upnp) = site(&sites, "upnp", &symmetric);
    let (double, mut doubled) = site(&sites, "double", &symmetric.clone().carrier(NatKind::Symmetric));
    let (_none, mut unmapped) = site(&sites, "none", &symmetric);

    nat_pmp.first.router.without_pcp().unwrap();
    let services = [
        (&pcp, "pcp", ALL),
        (&nat_pmp, "nat_pmp", PortMappings { upnp: false, ..ALL }),
        (&upnp, "upnp", PortMappings { pcp_and_nat_pmp: false, ..ALL }),
    ];
    let started: Vec<_> = services
        .iter()
        .map(|(site, protocol, service)| (*protocol, sites.internet.port_mappings(&site.first, service).unwrap()))
        .collect();
    // Its own address is private: it refuses, by whatever protocol.
    let _refusing = double.first.router.port_mappings(&ALL, lab.dir()).unwrap();
    sites.join(&mut [&mut by_pcp, &mut by_nat_pmp, &mut by_upnp, &mut doubled, &mut unmapped]).unwrap();

    let mapped = |node: &Node, protocol: &str, public: Ipv4Addr| {
        let found = wait::until(&format!("a mapping by {protocol}"), SOON, || {
            let check = netcheck(node);
            check.port_mapping.external.is_some().then_some(check)
        });
        let check = found.unwrap_or_else(|error| panic!("{error:#}: {:?}", netcheck(node)));
        let external = check.port_mapping.external.unwrap();
        assert_eq!(check.port_mapping.protocol.as_deref(), Some(protocol), "{check:?}");
        assert_eq!(external.ip(), IpAddr::from(public));
        let told = check.endpoints.iter().any(|e| e.kind == "upnp" && e.address == external && e.priority == 2);
        assert!(told, "{check:?}");
        external
    };
    let nodes = [&by_pcp, &by_nat_pmp, &by_upnp];
    let externals: Vec<_> =
        nodes.iter().zip(&started).map(|(node, (protocol, (_, public)))| mapped(node, protocol, *public)).collect();
    for ((site, ..), external) in services.iter().zip(&externals) {
        assert!(rules(site).contains(&format!("dport {}", external.port())), "{}", rules(site));
    }
    let text = by_upnp.edgelink(&["netcheck"]).unwrap().run().unwrap();
    assert!(text.contains(&format!("port mapping  {} by upnp", externals[2])), "{text}");

    // Both NATs are symmetric: without the mapping there is no way (specification §6.1).
    for (node, external) in nodes.iter().zip(&externals) {
        let (time, seen) = time_to_direct(&unmapped, node, 25 * Duration::from_secs(1)).unwrap();
        println!("{external}: {time:?}");
        // miniupnpd translates what comes to any address of the router.
        let at_port = seen.path.endpoint.is_some_and(|endpoint| endpoint.port() == external.port());
        assert!(seen.path.kind == PathKind::P2p && at_port, "{seen:?}");
    }
    // Behind another NAT a mapping is of no use, and none is announced.
    let check = wait::until("the reason", 3 * SOON, || {
        let check = netcheck(&doubled);
        check.port_mapping.problem.is_some().then_some(check)
    })
    .unwrap();
    assert!(check.port_mapping.external.is_none() && check.endpoints.iter().all(|e| e.kind != "upnp"), "{check:?}");

    // `ping --until-direct` ends with the path, or with the reason why there is none.
    let until_direct = |to: &str| {
        let command = unmapped.edgelink(&["ping", "--until-direct", "--count", "3", "--interval", "0.2", to]).unwrap();
        let output = command.output().unwrap();
        (output.status.code(), output.stdout, output.stderr)
    };
    let (code, text, _) = until_direct("upnp-1");
    assert!(code == Some(0) && text.contains(&format!(":{}", externals[2].port())), "{code:?} {text}");
    let (time, seen) = time_to_direct(&unmapped, &doubled, 2 * Duration::from_secs(1)).unwrap();
    assert!(time.is_none(), "{seen:?}");
    let (code, text, why) = until_direct("double-1");
    assert!(code == Some(1) && why.contains("no direct path: symmetric NAT on both sides"), "{code:?} {text} {why}");

    // At the end the router is told; nothing is left but the lease of a node that was killed.
    for (node, (site, ..)) in [&mut by_pcp, &mut by_nat_pmp, &mut by_upnp].into_iter().zip(&services) {
        node.end(nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(!rules(site).contains("dport"), "{}: {}", node.host.name(), rules(site));
    }
    sites.check_alive([&doubled, &unmapped]).unwrap();
}

#[test]
fn a_mapping_follows_the_gateway_and_is_renewed() {
    let Some(lab) = lab() else { return };
    let sites = Sites::start(&lab).unwrap();
    let plan = SitePlan::behind(NatKind::PortRestricted)
        .second(edgelink_testbed::topology::UplinkPlan::new(NatKind::PortRestricted));
    let (home, mut node) = site(&sites, "home", &plan);
    let (off, mut disabled) = site(&sites, "off", &SitePlan::behind(NatKind::PortRestricted));
    node.host.sysctl("net.ipv6.conf.eth1.disable_ipv6", "1").unwrap();
    let second = home.second.as_ref().unwrap();
    let (first_service, first_public) = sites.internet.port_mappings(&home.first, &ALL).unwrap();
    let (_second_service, second_public) = sites.internet.port_mappings(second, &ALL).unwrap();
    let (_off_service, _) = sites.internet.port_mappings(&off.first, &ALL).unwrap();

    let capture = disabled.host.capture("eth0").unwrap();
    disabled.configure(&serde_json::json!({ "p2p": { "enabled": false } })).unwrap();
    sites.join(&mut [&mut node, &mut disabled]).unwrap();
    let external = |node: &Node| netcheck(node).port_mapping.external.map(|external| external.ip());
    let wait_at = |public: Ipv4Addr| {
        wait::until("the mapping", SOON, || (external(&node) == Some(public.into())).then_some(()))
            .unwrap_or_else(|error| panic!("{error:#}: {:?}", netcheck(&node).port_mapping));
    };
    wait_at(first_public);

    // Another gateway, with the same addresses on the host.
    node.host.switch_default_route(second.gateway.into()).unwrap();
    wait_at(second_public);
    let seen = status(&node).unwrap();
    assert!(seen.controller.connected || !seen.relays.is_empty(), "{seen:?}");
    node.host.switch_default_route(home.first.gateway.into()).unwrap();
    wait_at(first_public);

    // The router has forgotten it, as after a restart: within the lease, which is 20 s here, it is there again.
    assert!(rules(&home).contains("dport"));
    home.first.router.nft("flush chain inet filter prerouting_miniupnpd\n").unwrap();
    drop(first_service);
    let restarted = sites.internet.port_mappings(&home.first, &ALL);
    assert!(restarted.is_err(), "the address is there already");
    let again = PortMappings { external: Some(first_public), ..ALL };
    let _again = home.first.router.port_mappings(&again, lab.dir()).unwrap();
    wait::until("the renewed mapping", 4 * SOON, || rules(&home).contains("dport").then_some(())).unwrap();

    // Not one UDP packet, neither to the router, which announces itself, nor to anybody else.
    assert!(netcheck(&disabled).port_mapping.external.is_none());
    let own = IpAddr::from(off.address(0));
    let captured = capture.stop().unwrap();
    assert!(captured.udp().count() > 0 && captured.tcp().count() > 0, "the capture sees what passes");
    assert_eq!(captured.udp().filter(|packet| packet.ip().is_some_and(|ip| ip.source == own)).count(), 0);
    sites.check_alive([&node, &disabled]).unwrap();
}
