//! The choice against the specification's pseudo-code, with its order put right, and what a flow may count on.

use super::flow::Flow;
use super::table::{Gateway, Health, Prefix, RouteTable, Skip};
use edgelink_model::NodeId;
use edgelink_wire::packet;
use ipnet::IpNet;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// A route as the specification's table has it, with what a node knows of its gateway.
#[derive(Clone, Debug)]
struct Row {
    cidr: IpNet,
    node: NodeId,
    priority: u16,
    weight: u16,
    online: bool,
}

/// Specification §7.2 taken literally, but with steps 1 and 4 before 2 and 3: what is left for the weights to decide.
fn reference(rows: &[Row], dst: IpAddr) -> BTreeSet<NodeId> {
    let mut candidates: Vec<&Row> = rows.iter().filter(|r| r.cidr.contains(&dst) && r.online).collect();
    let longest = candidates.iter().map(|r| r.cidr.prefix_len()).max();
    candidates.retain(|r| Some(r.cidr.prefix_len()) == longest);
    let highest = candidates.iter().map(|r| r.priority).max();
    candidates.retain(|r| Some(r.priority) == highest);
    candidates.iter().map(|r| r.node).collect()
}

fn gateway(row: &Row) -> Gateway {
    Gateway {
        node: row.node,
        priority: row.priority,
        weight: row.weight,
        single: false,
        dead: false,
        held: false,
        preferred: false,
        denied: false,
        health: if row.online { Health::Up } else { Health::Down },
    }
}

fn table(rows: &[Row]) -> RouteTable {
    let mut prefixes: BTreeMap<IpNet, Prefix> = BTreeMap::new();
    for row in rows {
        prefixes.entry(row.cidr).or_default().gateways.push(gateway(row));
    }
    let mut table = RouteTable::default();
    table.set(prefixes);
    table
}

fn flow_to(dst: Ipv4Addr, port: u16) -> Flow {
    let mut bytes = vec![0x45, 0, 0, 24, 0, 0, 0, 0, 64, packet::TCP, 0, 0, 10, 7, 0, 1];
    bytes.extend_from_slice(&dst.octets());
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend_from_slice(&[0, 80]);
    Flow::of(&packet::parse(&bytes).unwrap(), &bytes)
}

fn row(cidr: &str, node: u32, priority: u16, weight: u16) -> Row {
    Row { cidr: cidr.parse().unwrap(), node: NodeId(node), priority, weight, online: true }
}

/// Few addresses, priorities and nodes, so that routes overlap and tie.
fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row = (0u32..4, 0u8..=32, 1u32..6, 0u16..3, prop_oneof![Just(1u16), Just(50), Just(65535)], any::<bool>());
    proptest::collection::vec(row, 0..24).prop_map(|rows| {
        let mut unique = BTreeMap::new();
        for (base, length, node, priority, weight, online) in rows {
            let address = Ipv4Addr::from(0xc0a8_0000 | base << 8 | base);
            let cidr = IpNet::new(address.into(), length).unwrap().trunc();
            unique.insert((cidr, node), Row { cidr, node: NodeId(node), priority, weight, online });
        }
        // A node is up or down as a whole.
        let online: BTreeMap<NodeId, bool> = unique.values().map(|r| (r.node, r.online)).collect();
        unique.into_values().map(|r| Row { online: online[&r.node], ..r }).collect()
    })
}

proptest! {
    #[test]
    fn the_choice_is_the_specifications_with_its_order_put_right(rows in rows(), host in 0u32..0x400, port: u16) {
        let dst = Ipv4Addr::from(0xc0a8_0000 | host);
        let chosen = table(&rows).select(&flow_to(dst, port));
        let allowed = reference(&rows, dst.into());
        match chosen {
            Some(node) => prop_assert!(allowed.contains(&node), "{node} is not in {allowed:?}"),
            None => prop_assert!(allowed.is_empty(), "nothing, but {allowed:?} would do"),
        }
    }

    /// Whoever is chosen may answer, and what a peer may send from is never someone else's while that one lives.
    #[test]
    fn cryptokey_routing_lets_through_what_was_chosen_and_nobody_without_a_route(rows in rows(), host in 0u32..0x400) {
        let dst = Ipv4Addr::from(0xc0a8_0000 | host);
        let table = table(&rows);
        if let Some(node) = table.select(&flow_to(dst, 1)) {
            prop_assert!(table.may_source(dst.into(), node));
        }
        for node in (1..6).map(NodeId) {
            let serving = |r: &&Row| r.node == node && r.cidr.contains(&IpAddr::from(dst));
            let Some(own) = rows.iter().filter(serving).map(|r| r.cidr.prefix_len()).max() else {
                prop_assert!(!table.may_source(dst.into(), node), "{node} serves no prefix that holds it");
                continue;
            };
            let longer = |r: &&Row| r.cidr.contains(&IpAddr::from(dst)) && r.online && r.cidr.prefix_len() > own;
            prop_assert_eq!(table.may_source(dst.into(), node), !rows.iter().any(|r| longer(&r)));
        }
    }

    /// A gateway that goes takes along its own flows only; the others stay.
    #[test]
    fn no_flow_moves_but_those_of_the_gateway_that_dies(weights in proptest::collection::vec(1u16..=1000, 2..6), seed: u16) {
        let rows: Vec<Row> = weights.iter().zip(1..).map(|(w, n)| row("192.168.1.0/24", n, 100, *w)).collect();
        let mut table = table(&rows);
        let dst = Ipv4Addr::new(192, 168, 1, 9);
        let flows: Vec<Flow> = (0..64).map(|n| flow_to(dst, seed.wrapping_add(n))).collect();
        let before: Vec<NodeId> = flows.iter().map(|f| table.route(f).unwrap()).collect();
        table.set_health(NodeId(1), Health::Down);
        for (flow, before) in flows.iter().zip(&before) {
            let after = table.route(flow).unwrap();
            prop_assert!(after != NodeId(1));
            prop_assert!(*before == NodeId(1) || after == *before);
        }
        // It is back: nobody returns to it, but new flows take it.
        table.set_health(NodeId(1), Health::Up);
        for (flow, before) in flows.iter().zip(&before) {
            prop_assert!(*before != NodeId(1) || table.route(flow) != Some(NodeId(1)));
        }
    }
}

#[test]
fn flows_are_shared_by_weight() {
    let mut table = table(&[row("192.168.1.0/24", 1, 100, 300), row("192.168.1.0/24", 2, 100, 100)]);
    let dst = Ipv4Addr::new(192, 168, 1, 9);
    let first = (0..4000).filter(|port| table.route(&flow_to(dst, *port)) == Some(NodeId(1))).count();
    // 3000 expected; five standard deviations are 137.
    assert!((2863..=3137).contains(&first), "{first}");
}

#[test]
fn a_recovered_gateway_waits_unless_there_is_nobody_else() {
    let mut table = table(&[row("192.168.1.0/24", 1, 200, 1), row("192.168.1.0/24", 2, 100, 1)]);
    let flow = |port| flow_to(Ipv4Addr::new(192, 168, 1, 9), port);
    assert_eq!(table.route(&flow(1)), Some(NodeId(1)));
    table.set_health(NodeId(1), Health::Down);
    assert_eq!(table.route(&flow(1)), Some(NodeId(2)));
    table.set_health(NodeId(1), Health::Held);
    assert_eq!(table.route(&flow(2)), Some(NodeId(2)), "held down");
    table.set_health(NodeId(2), Health::Down);
    assert_eq!(table.route(&flow(3)), Some(NodeId(1)), "nobody else");
    table.set_health(NodeId(2), Health::Up);
    table.set_health(NodeId(1), Health::Up);
    assert_eq!(table.route(&flow(3)), Some(NodeId(1)));
    assert_eq!(table.route(&flow(4)), Some(NodeId(1)), "new flows take the higher priority again");
    for node in [1, 2] {
        table.set_health(NodeId(node), Health::Down);
    }
    assert_eq!(table.select(&flow(5)), None, "nobody is online");
    assert_eq!(table.route(&flow(5)), Some(NodeId(1)), "but what is sent shows who is");
}

#[test]
fn without_snat_one_gateway_serves_all_flows() {
    let single = |mut rows: Vec<Row>| {
        let mut prefixes: BTreeMap<IpNet, Prefix> = BTreeMap::new();
        for row in rows.drain(..) {
            prefixes.entry(row.cidr).or_default().gateways.push(Gateway { single: true, ..gateway(&row) });
        }
        let mut table = RouteTable::default();
        table.set(prefixes);
        table
    };
    let mut table = single(vec![row("192.168.1.0/24", 5, 100, 50), row("192.168.1.0/24", 3, 100, 50)]);
    let dst = Ipv4Addr::new(192, 168, 1, 9);
    let used: BTreeSet<_> = (0..100).filter_map(|port| table.route(&flow_to(dst, port))).collect();
    assert_eq!(used, [NodeId(3)].into(), "every node picks the same");
    table.set_health(NodeId(3), Health::Down);
    assert_eq!(table.route(&flow_to(dst, 1)), Some(NodeId(5)));
    table.set_health(NodeId(3), Health::Up);
    assert_eq!(table.route(&flow_to(dst, 1)), Some(NodeId(3)), "and all flows go back");
}

#[test]
fn skipped_and_unroutable_addresses_never_enter_the_tunnel() {
    let default = row("0.0.0.0/0", 1, 1, 1);
    let local = row("192.168.1.0/24", 2, 1, 1);
    let mut prefixes: BTreeMap<IpNet, Prefix> = BTreeMap::new();
    prefixes.insert(default.cidr, Prefix { gateways: vec![gateway(&default)], skip: None });
    prefixes.insert(local.cidr, Prefix { gateways: vec![gateway(&local)], skip: Some(Skip::Local) });
    prefixes.insert("::/0".parse().unwrap(), Prefix { gateways: vec![gateway(&default)], skip: None });
    let mut table = RouteTable::default();
    table.set(prefixes);
    assert!(!table.may_source("192.168.1.9".parse().unwrap(), NodeId(2)), "our own LAN does not come out of it");
    assert!(!table.may_source("192.168.1.9".parse().unwrap(), NodeId(1)));
    assert!(table.may_source("192.168.2.9".parse().unwrap(), NodeId(1)));
    assert!(table.may_source("2001:db8::1".parse().unwrap(), NodeId(1)));
    for never in ["::ffff:10.7.0.2", "127.0.0.1", "fe80::1", "::1"] {
        assert!(!table.may_source(never.parse().unwrap(), NodeId(1)), "{never}");
    }
    for never in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::BROADCAST] {
        assert_eq!(table.route(&flow_to(never, 1)), None, "{never}");
    }
    assert_eq!(table.installed().collect::<Vec<_>>(), ["0.0.0.0/0", "::/0"].map(|c| c.parse().unwrap()));
    assert!(!table.captures("8.8.8.8".parse().unwrap()), "a default route makes nobody's address ours");
}
