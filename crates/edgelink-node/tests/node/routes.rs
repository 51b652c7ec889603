//! Subnet routes in the whole core: announced, used, served, and what must not pass.

use crate::world::*;
use edgelink_model::NodeId;
use edgelink_model::records::AnnouncedRoute;
use edgelink_node::{RouteFilter, RoutingConfig};
use edgelink_wire::control::ControlMessage;
use edgelink_wire::control::proto;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 9);
const OTHER: NodeId = NodeId(201);
const OTHER_IP: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 201);

fn route(node: NodeId, cidr: [u8; 4], length: u32, priority: u32) -> proto::Route {
    proto::Route {
        cidr: Some(proto::Prefix { address: cidr.to_vec(), length }),
        node_id: node.0,
        priority,
        weight: 100,
        enabled: true,
        ..proto::Route::default()
    }
}

fn announced(cidr: &str) -> AnnouncedRoute {
    AnnouncedRoute { cidr: cidr.parse().unwrap(), priority: 100, weight: 50, snat: true }
}

/// A world with two peers that have met us, and these routes.
fn world(routes: Vec<proto::Route>) -> (World, Peer, Peer) {
    let mut one = Peer::new();
    let mut two = Peer::build(OTHER, OTHER_IP, 3, 0);
    let mut world = World::new(Setup::default());
    let mut config = config(10, vec![one.listed(), two.listed()]);
    config.routes = routes;
    world.join(config);
    world.connect_relay(1);
    for peer in [&mut one, &mut two] {
        peer.meet(&mut world);
        let hello = peer.packet(b"hello");
        world.deliver_raw(world.relay(), &hello);
    }
    world.tun.clear();
    world.events();
    (world, one, two)
}

fn sealed_to(seen: &[Seen]) -> Vec<&[u8]> {
    let frames = seen.iter().filter_map(|e| match e {
        Seen::Sent(_, Sent::Sealed(frame)) => Some(frame.as_slice()),
        _ => None,
    });
    frames.collect()
}

fn presence(node: NodeId, online: bool) -> proto::ConfigUpdate {
    proto::ConfigUpdate {
        from_version: 10,
        version: 10,
        presence: vec![proto::Presence { node_id: node.0, online }],
        ..proto::ConfigUpdate::default()
    }
}

#[test]
fn packets_into_a_subnet_go_to_its_gateway_and_answers_come_from_there_only() {
    let (mut world, mut gateway, mut stranger) = world(vec![route(PEER, [192, 168, 1, 0], 24, 100)]);
    let out = udp(MY_IP, INSIDE, b"out");
    let seen = world.tun(&PLAIN, &out);
    assert_eq!(gateway.open(sealed_to(&seen)[0], world.now()), Ok(out));

    let back = udp(INSIDE, MY_IP, b"back");
    let frame = gateway.seal(&back);
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.tun.pop().unwrap().1, back);

    // Another member that claims the same source; the gateway with a source outside its subnet, with another node's
    // address, or with our own.
    let spoofed = [
        stranger.seal(&back),
        gateway.seal(&udp(Ipv4Addr::new(192, 168, 2, 9), MY_IP, b"x")),
        gateway.seal(&udp(OTHER_IP, MY_IP, b"x")),
        gateway.seal(&udp(MY_IP, MY_IP, b"x")),
    ];
    for frame in &spoofed {
        world.deliver_raw(world.relay(), frame);
    }
    assert_eq!((world.tun.len(), world.drops("spoofed_source")), (0, 4));
    // We serve nothing: a packet for a subnet is none of ours.
    let through = gateway.seal(&udp(INSIDE, Ipv4Addr::new(172, 16, 0, 1), b"x"));
    world.deliver_raw(world.relay(), &through);
    assert_eq!((world.tun.len(), world.drops("foreign_destination")), (0, 1));
    // And nothing leaves from there.
    world.tun(&PLAIN, &udp(Ipv4Addr::new(172, 16, 0, 1), PEER_IP, b"x"));
    assert_eq!(world.drops("foreign_source"), 1);
}

#[test]
fn what_the_controller_calls_a_route_is_checked() {
    let mapped = proto::Route {
        cidr: Some(proto::Prefix {
            address: "::ffff:0.0.0.0".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec(),
            length: 96,
        }),
        ..route(PEER, [0; 4], 0, 1)
    };
    let bad = vec![
        route(PEER, [10, 7, 0, 201], 32, 100), // another node's address
        route(PEER, [127, 0, 0, 0], 8, 100),
        route(PEER, [192, 168, 3, 0], 24, 70_000), // priority beyond 65,535
        proto::Route { weight: 0, ..route(PEER, [192, 168, 4, 0], 24, 1) },
        route(PEER, [192, 168, 5, 0], 33, 1),
        route(PEER, [192, 168, 6, 1], 24, 1), // host bits
        mapped,
        proto::Route { enabled: false, ..route(PEER, [192, 168, 7, 0], 24, 1) },
        proto::Route::default(),
        route(PEER, [192, 168, 1, 0], 24, 65_535),
    ];
    let (mut world, mut gateway, mut other) = world(bad);
    let routes = world.status().routes;
    assert_eq!(routes.iter().map(|r| r.cidr.to_string()).collect::<Vec<_>>(), ["192.168.1.0/24"]);
    let out = udp(MY_IP, OTHER_IP, b"to the node itself");
    let seen = world.tun(&PLAIN, &out);
    assert_eq!(other.open(sealed_to(&seen)[0], world.now()), Ok(out));
    for (n, nowhere) in (1..).zip([[192, 168, 3, 1], [192, 168, 7, 1], [127, 0, 0, 1]]) {
        assert!(sealed_to(&world.tun(&PLAIN, &udp(MY_IP, nowhere.into(), b"x"))).is_empty());
        assert_eq!(world.drops("no_route"), n);
    }
    let seen = world.tun(&PLAIN, &udp(MY_IP, INSIDE, b"fine"));
    assert!(gateway.open(sealed_to(&seen)[0], world.now()).is_ok());
}

#[test]
fn overlapping_routes_of_two_nodes_go_by_prefix_priority_and_life() {
    let routes = vec![
        route(PEER, [192, 168, 0, 0], 16, 65_535),
        route(OTHER, [192, 168, 1, 0], 24, 0),
        route(PEER, [10, 9, 0, 0], 16, 200),
        route(OTHER, [10, 9, 0, 0], 16, 100),
    ];
    let (mut world, mut one, mut two) = world(routes);
    let to = |world: &mut World, dst: [u8; 4]| {
        let seen = world.tun(&PLAIN, &udp(MY_IP, dst.into(), b"x"));
        sealed_to(&seen).iter().map(|f| f.to_vec()).collect::<Vec<_>>()
    };
    let frames = to(&mut world, [192, 168, 1, 9]);
    assert!(two.open(&frames[0], world.now()).is_ok(), "the longest prefix, whatever its priority");
    let frames = to(&mut world, [10, 9, 0, 1]);
    assert!(one.open(&frames[0], world.now()).is_ok(), "the highest priority");

    world.update(presence(OTHER, false));
    let frames = to(&mut world, [192, 168, 1, 9]);
    assert!(one.open(&frames[0], world.now()).is_ok(), "whoever is offline does not count");
    let active = |world: &World| {
        let routes = world.status().routes;
        routes.iter().filter(|r| r.active).map(|r| (r.cidr.to_string(), r.gateway_node_id)).collect::<Vec<_>>()
    };
    assert_eq!(active(&world), [("10.9.0.0/16".to_owned(), PEER), ("192.168.0.0/16".to_owned(), PEER)]);
    // It comes back, and is held for ten seconds.
    world.update(presence(OTHER, true));
    let frames = to(&mut world, [192, 168, 1, 9]);
    assert!(one.open(&frames[0], world.now()).is_ok());
    world.lively = true;
    world.advance(Duration::from_millis(10_001));
    let frames = to(&mut world, [192, 168, 1, 9]);
    assert!(two.open(&frames[0], world.now()).is_ok(), "the longest prefix again");
}

#[test]
fn a_gateway_whose_side_answers_again_is_held() {
    let mut first = route(PEER, [10, 9, 0, 0], 16, 200);
    let routes = vec![first.clone(), route(OTHER, [10, 9, 0, 0], 16, 100)];
    let (mut world, _, _) = world(routes.clone());
    let active = |world: &World| {
        let routes = world.status().routes;
        routes.iter().filter(|r| r.active).map(|r| r.gateway_node_id).collect::<Vec<_>>()
    };
    let say = |world: &mut World, version, routes: Vec<proto::Route>| {
        let list = proto::RouteList { routes };
        world.update(proto::ConfigUpdate {
            from_version: version - 1,
            version,
            routes: Some(list),
            ..proto::ConfigUpdate::default()
        });
    };
    assert_eq!(active(&world), [PEER]);
    first.down = true;
    say(&mut world, 11, vec![first.clone(), routes[1].clone()]);
    assert_eq!(active(&world), [OTHER], "its side is dead");
    first.down = false;
    world.lively = true;
    say(&mut world, 12, vec![first.clone(), routes[1].clone()]);
    assert_eq!(active(&world), [OTHER], "and answers again: held");
    world.advance(Duration::from_millis(9_000));
    // Another change of routes does not cut the time short.
    let third = route(OTHER, [10, 10, 0, 0], 16, 100);
    say(&mut world, 13, vec![first.clone(), routes[1].clone(), third]);
    assert!(!active(&world).contains(&PEER));
    world.advance(Duration::from_millis(1_001));
    assert!(active(&world).contains(&PEER), "after ten seconds");

    // Without anybody else it is used at once.
    first.down = true;
    say(&mut world, 14, vec![first.clone()]);
    first.down = false;
    say(&mut world, 15, vec![first.clone()]);
    assert_eq!(active(&world), [PEER]);
}

#[test]
fn a_relays_word_that_a_gateway_is_gone_moves_its_flows_at_once() {
    let routes = vec![route(PEER, [10, 9, 0, 0], 16, 200), route(OTHER, [10, 9, 0, 0], 16, 100)];
    let (mut world, mut one, mut two) = world(routes);
    let packet = udp(MY_IP, [10, 9, 0, 1].into(), b"x");
    let seen = world.tun(&PLAIN, &packet);
    assert!(one.open(sealed_to(&seen)[0], world.now()).is_ok());
    let gone = proto::Error { code: 3002, about_node: PEER.0, message: "offline".into(), ..Default::default() };
    world.deliver(world.relay(), ControlMessage::Error(gone));
    world.events();
    let seen = world.tun(&PLAIN, &packet);
    assert!(two.open(sealed_to(&seen)[0], world.now()).is_ok(), "{:?}", world.status().routes);
}

#[test]
fn a_gateway_serves_what_it_announced_and_what_was_approved() {
    let (mut world, mut peer, _) =
        world(vec![route(ME, [192, 168, 1, 0], 24, 100), route(ME, [172, 16, 0, 0], 12, 100)]);
    // Given by an administrator, but this node is no gateway and has announced nothing.
    let frame = peer.seal(&udp(PEER_IP, INSIDE, b"in"));
    world.deliver_raw(world.relay(), &frame);
    assert_eq!((world.tun.len(), world.drops("foreign_destination")), (0, 1));

    let config =
        RoutingConfig { advertise: vec![announced("192.168.1.0/24"), announced("10.50.0.0/16")], ..Default::default() };
    let now = world.now();
    world.node.set_routing(config.clone(), now);
    let told = |seen: &[Seen]| {
        seen.iter().find_map(|e| match e {
            Seen::Sent(_, Sent::Message(ControlMessage::ConfigUpdate(update))) => update.routes.clone(),
            _ => None,
        })
    };
    let list = told(&world.events()).expect("the controller is told");
    assert_eq!(list.routes.iter().map(|r| (r.priority, r.weight, r.down)).collect::<Vec<_>>(), [(100, 50, false); 2]);
    let frame = peer.seal(&udp(PEER_IP, INSIDE, b"in"));
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.tun.pop().unwrap().1, udp(PEER_IP, INSIDE, b"in"));
    // The answer, which a gateway with SNAT gives the host's own address.
    let back = udp(INSIDE, PEER_IP, b"out");
    let seen = world.tun(&PLAIN, &back);
    assert_eq!(peer.open(sealed_to(&seen)[0], world.now()), Ok(back));
    // Announced but not approved, and given but not announced.
    for foreign in [[10, 50, 0, 1], [172, 16, 0, 1]] {
        let frame = peer.seal(&udp(PEER_IP, foreign.into(), b"in"));
        world.deliver_raw(world.relay(), &frame);
    }
    assert_eq!((world.tun.len(), world.drops("foreign_destination")), (0, 3));
    let health = world.status().health.join("\n");
    assert!(health.contains("10.50.0.0/16 waits for approval"), "{health}");

    // In gateway mode an administrator's word is enough.
    world.node.set_routing(RoutingConfig { gateway: true, ..config }, now);
    assert!(told(&world.events()).is_none(), "nothing new is announced");
    let frame = peer.seal(&udp(PEER_IP, [172, 16, 0, 1].into(), b"in"));
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.tun.len(), 1);

    // Its LAN side dies.
    world.node.set_dead_routes(BTreeSet::from(["192.168.1.0/24".parse().unwrap()]));
    let list = told(&world.events()).expect("the controller is told");
    assert_eq!(list.routes.iter().map(|r| r.down).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn local_networks_and_what_the_configuration_denies_are_skipped() {
    let routes = vec![
        route(PEER, [192, 168, 1, 0], 24, 100),
        route(OTHER, [192, 168, 1, 0], 24, 50),
        route(PEER, [10, 1, 0, 0], 16, 100),
        route(PEER, [10, 1, 7, 0], 24, 100),
        route(PEER, [0, 0, 0, 0], 0, 100),
    ];
    let (mut world, _, _) = world(routes);
    let now = world.now();
    // Directly connected to 10.1.7.0/24: that one is local, the larger one is not.
    world.node.set_local_addresses(&["10.1.7.2/24".parse().unwrap()], now);
    let filter = |cidr: &str, gateway: Option<&str>| RouteFilter {
        cidr: Some(cidr.parse().unwrap()),
        gateway: gateway.map(str::to_owned),
    };
    let config = RoutingConfig {
        deny: vec![filter("0.0.0.0/0", None), filter("192.168.1.0/24", Some("200"))],
        ..RoutingConfig::default()
    };
    world.node.set_routing(config, now);
    let routes = world.status().routes;
    let found: Vec<_> = routes
        .iter()
        .map(|r| (r.cidr.to_string(), r.gateway_node_id.0, r.active, r.skipped.as_deref().unwrap_or("-").to_owned()))
        .collect();
    let row = |cidr: &str, node, active, skipped: &str| (cidr.to_owned(), node, active, skipped.to_owned());
    assert_eq!(
        found,
        [
            row("0.0.0.0/0", 200, false, "denied"),
            row("10.1.0.0/16", 200, true, "-"),
            row("10.1.7.0/24", 200, false, "local"),
            row("192.168.1.0/24", 200, false, "denied"),
            row("192.168.1.0/24", 201, true, "-"),
        ]
    );
    let why = world.node.explain_route("10.1.7.9".parse().unwrap());
    assert!(why.reasons[0].contains("directly connected"), "{why:?}");
    let why = world.node.explain_route(INSIDE.into());
    assert_eq!((why.gateways, why.cidr), (vec![OTHER], Some("192.168.1.0/24".parse().unwrap())));

    // Preferred against the priority, by name.
    let prefer = vec![RouteFilter { cidr: None, gateway: Some("201".to_owned()) }];
    world.node.set_routing(RoutingConfig { prefer, ..RoutingConfig::default() }, now);
    let active: Vec<_> =
        world.status().routes.into_iter().filter(|r| r.active && r.cidr.to_string() == "192.168.1.0/24").collect();
    assert_eq!(active.iter().map(|r| r.gateway_node_id).collect::<Vec<_>>(), [OTHER]);
    world.node.set_routing(RoutingConfig { accept: false, ..RoutingConfig::default() }, now);
    assert!(world.status().routes.iter().all(|r| r.skipped.as_deref() == Some("not accepted")));
}
