//! Networks with the same subnet on one controller: whatever happens in one, the other hears nothing of it.

use crate::world::*;
use edgelink_model::records::{
    Change, NetworkRecord, NodeKeyRecord, NodeRecord, RevocationRecord, RevocationTarget, RouteRecord,
};
use edgelink_model::{NetworkId, NodeId};
use edgelink_wire::control::{ControlMessage, proto};
use std::collections::BTreeSet;
use std::time::Duration;

/// Nodes 1 and 2 in network 1, 11 and 12 in network 2, which has the same subnet and hands out the same addresses.
fn record(client: &Client, id: u32) -> NodeRecord {
    let network_id = NetworkId(if id < 10 { 1 } else { 2 });
    NodeRecord { network_id, virtual_ip: Some([10, 0, 1, (id % 10) as u8].into()), ..client.record(id, true) }
}

/// Every node and network that a message names.
fn named(message: &ControlMessage) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let mut nodes = BTreeSet::new();
    let mut networks = BTreeSet::new();
    let mut routes: Vec<proto::Route> = Vec::new();
    match message {
        ControlMessage::Config(config) => {
            nodes.extend(config.peers.iter().map(|peer| peer.node_id));
            nodes.extend(config.revocations.iter().map(|revocation| revocation.node_id));
            networks.extend(config.network.iter().map(|network| network.id));
            routes.extend(config.routes.iter().cloned());
        }
        ControlMessage::ConfigUpdate(update) => {
            nodes.extend(update.peers.iter().map(|peer| peer.node_id));
            nodes.extend(update.removed_peers.iter());
            nodes.extend(update.presence.iter().map(|presence| presence.node_id));
            nodes.extend(update.revocations.iter().map(|revocation| revocation.node_id));
            nodes.extend(update.paths.iter().map(|path| path.node_id));
            nodes.extend(update.identity.iter().map(|identity| identity.node_id));
            networks.extend(update.identity.iter().map(|identity| identity.network_id));
            networks.extend(update.network.iter().map(|network| network.id));
            routes.extend(update.routes.iter().flat_map(|list| list.routes.clone()));
        }
        ControlMessage::P2pEndpoint(endpoint) => nodes.extend([endpoint.node_id]),
        ControlMessage::P2pInit(init) => nodes.extend([init.node_id]),
        _ => {}
    }
    nodes.extend(routes.iter().map(|route| route.node_id));
    (nodes, networks)
}

#[test]
fn nothing_of_one_network_is_said_in_another() {
    let clients: Vec<(u32, Client)> = [1, 2, 11, 12].into_iter().map(|id| (id, Client::new(id as u8))).collect();
    let mut world = World::new(clients.iter().map(|(id, client)| record(client, *id)).collect());
    let mut joined = Vec::new();
    for (id, client) in &clients {
        let network = if *id < 10 { 1 } else { 2 };
        let (conn, config) = world.join_network(client, NodeId(*id), NetworkId(network), 5);
        let (nodes, networks) = named(&ControlMessage::Config(config));
        assert_eq!(networks, [network].into());
        assert_eq!(nodes, if network == 1 { [1, 2].into() } else { [11, 12].into() }, "CONFIG of node {id}");
        joined.push((conn, network));
    }
    world.advance(Duration::from_millis(50));
    world.events();
    // Everything that can happen to nodes of the first network.
    let [one, two] = [&clients[0].1, &clients[1].1];
    let key = NodeKeyRecord { statement: vec![1; 120], signature: vec![2; 64], seq: 9 };
    let route = RouteRecord {
        id: 1,
        node_id: NodeId(2),
        cidr: "192.168.0.0/16".parse().unwrap(),
        priority: 100,
        weight: 100,
        enabled: true,
        announced: false,
        snat: true,
    };
    let network = NetworkRecord {
        id: NetworkId(1),
        name: "renamed".to_owned(),
        subnet: "10.0.1.0/24".parse().unwrap(),
        subnet6: None,
        description: String::new(),
    };
    let revocation = RevocationRecord {
        id: "node:1:x".to_owned(),
        target: RevocationTarget::Node { node_id: NodeId(1), issued_before: START_MS / 1000 - 4000 },
        expires_at: START_MS / 1000 + 90_000,
    };
    let renamed = NodeRecord { name: "renamed".to_owned(), ..record(one, 1) };
    let changes = [
        Change::Node(NodeRecord { key: Some(key), ..record(two, 2) }),
        Change::Node(renamed),
        Change::Routes(NodeId(2), vec![route]),
        Change::Network(network),
        Change::Revoked(revocation),
        Change::Node(NodeRecord { authorized: false, ..record(two, 2) }),
        Change::NodeDeleted(NodeId(2)),
    ];
    let mut heard = 0;
    for (id, change) in (11..).zip(changes) {
        world.apply(id, change);
        world.advance(Duration::from_millis(50));
        for event in world.events() {
            let Seen::Sent(to, message) = event else { continue };
            let network = joined.iter().find(|(conn, _)| *conn == to).unwrap().1;
            assert_eq!(network, 1, "the second network hears {message:?}");
            heard += 1;
        }
    }
    assert!(heard >= 7, "the first network heard {heard} messages");
    // And what a node says to a node of the other network reaches nobody.
    for to in [11, 12] {
        let init = proto::P2pInit { node_id: to, ..Default::default() };
        world.send(joined[0].0, &message(ControlMessage::P2pInit(init)));
        let endpoint = proto::P2pEndpoint { node_id: to, ..Default::default() };
        world.send(joined[0].0, &message(ControlMessage::P2pEndpoint(endpoint)));
    }
    assert_eq!(world.events(), []);
    // Nor do reports make a path between them.
    let report = proto::LatencyReport { active_peers: vec![11, 12], ..Default::default() };
    world.send(joined[0].0, &message(ControlMessage::LatencyReport(report)));
    world.advance(Duration::from_millis(50));
    assert_eq!(world.control.best_paths().count(), 0);
}
