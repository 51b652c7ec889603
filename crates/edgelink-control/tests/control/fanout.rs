//! What a change costs: it grows with who must learn it (DESIGN §4). And what it brings: everybody knows the same.

use crate::world::*;
use edgelink_control::Event;
use edgelink_model::NetworkId;
use edgelink_model::records::{Change, NodeKeyRecord, NodeRecord};
use edgelink_wire::control::{ControlMessage, proto};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(300);

/// Nodes `100 k + 1 … 100 k + nodes` of each network `k`.
fn crowd(networks: u32, nodes: u32) -> Vec<(Client, NodeRecord)> {
    let member = |network: u32, n: u32| {
        let client = Client::numbered(network * 100 + n);
        let virtual_ip = Some([10, 0, 1, n as u8].into());
        let record =
            NodeRecord { network_id: NetworkId(network), virtual_ip, ..client.record(network * 100 + n, true) };
        (client, record)
    };
    (1..=networks).flat_map(|network| (1..=nodes).map(move |n| member(network, n))).collect()
}

fn world_of(crowd: &[(Client, NodeRecord)]) -> World {
    World::new(crowd.iter().map(|(_, record)| record.clone()).collect())
}

/// The nodes join one after the other; the database keeps their keys, as it would.
fn join_all(world: &mut World, crowd: &[(Client, NodeRecord)]) {
    for (n, (client, record)) in crowd.iter().enumerate() {
        world.join_network(client, record.id, record.network_id, 5);
        let key = NodeKeyRecord { statement: vec![1; 120], signature: vec![2; 64], seq: 5 };
        world.apply(11 + n as u64, Change::Node(NodeRecord { key: Some(key), ..record.clone() }));
        // A hundred a second.
        world.advance(Duration::from_millis(10));
        world.events();
    }
    world.advance(TICK);
    world.advance(TICK);
    world.events();
}

/// A change in the first network: how many messages went out, in how many buffers, how many entries were encoded.
fn cost_of_a_change(networks: u32, nodes: u32) -> (usize, usize, u64) {
    let crowd = crowd(networks, nodes);
    let mut world = world_of(&crowd);
    join_all(&mut world, &crowd);
    let before = world.control.stats().peers_encoded;
    let renamed = NodeRecord { name: "renamed".to_owned(), ..crowd[0].1.clone() };
    world.apply(10_000, Change::Node(renamed));
    world.advance(TICK);
    let mut buffers = BTreeSet::new();
    let mut messages = 0;
    while let Some(event) = world.control.poll_event() {
        let Event::Send { message, .. } = event else { panic!("{event:?}") };
        messages += 1;
        buffers.insert(message.as_ptr());
    }
    (messages, buffers.len(), world.control.stats().peers_encoded - before)
}

#[test]
fn a_change_costs_one_encoding_and_a_message_for_each_who_must_learn_it() {
    // The renamed node itself is told its identity as well, in a message of its own.
    assert_eq!(cost_of_a_change(1, 10), (10 + 1, 1 + 1, 1));
    assert_eq!(cost_of_a_change(12, 10), (10 + 1, 1 + 1, 1), "other networks cost nothing");
    assert_eq!(cost_of_a_change(2, 40), (40 + 1, 1 + 1, 1), "more peers cost more messages and no more encoding");
}

#[test]
fn a_crowd_that_joins_is_not_encoded_anew_for_each() {
    let encoded = |nodes: u32| {
        let crowd = crowd(1, nodes);
        let mut world = world_of(&crowd);
        join_all(&mut world, &crowd);
        world.control.stats().peers_encoded
    };
    let (ten, eighty) = (encoded(10), encoded(80));
    // For each its own entry once or twice, and the whole now and then; the square would be 80 · 80 / 2 and more.
    assert!(eighty <= 10 * 80, "{eighty} entries for 80 nodes");
    assert!(eighty <= 16 * ten, "{ten} for 10 nodes, {eighty} for 80");
}

/// What a node has made of its messages.
#[derive(Debug, Default)]
struct Known {
    version: u64,
    peers: BTreeMap<u32, proto::Peer>,
}

impl Known {
    fn take(&mut self, message: ControlMessage) {
        match message {
            ControlMessage::Config(config) => {
                self.version = config.version;
                self.peers = config.peers.into_iter().map(|peer| (peer.node_id, peer)).collect();
            }
            ControlMessage::ConfigUpdate(update) => {
                assert_eq!(update.from_version, self.version, "an update that does not fit");
                self.version = update.version;
                update.removed_peers.iter().for_each(|id| _ = self.peers.remove(id));
                self.peers.extend(update.peers.into_iter().map(|peer| (peer.node_id, peer)));
                for presence in update.presence {
                    if let Some(peer) = self.peers.get_mut(&presence.node_id) {
                        peer.online = presence.online;
                    }
                }
            }
            _ => {}
        }
    }

    fn shown(&self) -> Vec<(u32, String, bool)> {
        self.peers.values().map(|peer| (peer.node_id, peer.name.clone(), peer.online)).collect()
    }
}

mod any_order {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Join(usize),
        Leave(usize),
        Rename(usize, u8),
        Expel(usize),
        Wait(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..12usize).prop_map(Step::Join),
            1 => (0..12usize).prop_map(Step::Leave),
            4 => (0..12usize, any::<u8>()).prop_map(|(node, name)| Step::Rename(node, name)),
            1 => (0..12usize).prop_map(Step::Expel),
            4 => (0..400u16).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whenever a node joins, however changes fall between: in the end all know the same, which is the truth, and no
        /// update ever fails to fit.
        #[test]
        fn all_nodes_end_with_the_same_knowledge(steps in proptest::collection::vec(step(), 1..60)) {
            let crowd = crowd(1, 12);
            let mut world = world_of(&crowd);
            let mut records: Vec<NodeRecord> = crowd.iter().map(|(_, record)| record.clone()).collect();
            let mut conns: BTreeMap<usize, (edgelink_control::ConnId, Known)> = BTreeMap::new();
            let (mut id, mut seq) = (10, 5);
            let read = |world: &mut World, conns: &mut BTreeMap<usize, (edgelink_control::ConnId, Known)>| {
                for event in world.events() {
                    let Seen::Sent(to, message) = event else { continue };
                    if let Some((_, known)) = conns.values_mut().find(|(conn, _)| *conn == to) {
                        known.take(message);
                    }
                }
            };
            for step in steps {
                match step {
                    Step::Join(n) if !conns.contains_key(&n) && records[n].authorized => {
                        read(&mut world, &mut conns);
                        let (client, record) = &crowd[n];
                        let conn = world.connect();
                        let events = world.authenticate(conn, client);
                        let admitted = |e: &Seen| matches!(e, Seen::Sent(to, ControlMessage::AuthResponse(_)) if *to == conn);
                        prop_assert!(events.iter().any(admitted), "{events:?}");
                        seq += 1;
                        world.send(conn, &client.announce_in(record.network_id, record.id, seq, START_MS / 1000));
                        conns.insert(n, (conn, Known::default()));
                    }
                    Step::Leave(n) => {
                        if let Some((conn, _)) = conns.remove(&n) {
                            let now = world.now();
                            world.control.disconnect(conn, now);
                        }
                    }
                    Step::Rename(n, name) => {
                        id += 1;
                        records[n].name = format!("n{name}");
                        world.apply(id, Change::Node(records[n].clone()));
                    }
                    Step::Expel(n) => {
                        id += 1;
                        records[n].authorized = !records[n].authorized;
                        world.apply(id, Change::Node(records[n].clone()));
                        if !records[n].authorized && let Some((conn, _)) = conns.remove(&n) {
                            let now = world.now();
                            world.control.disconnect(conn, now);
                        }
                    }
                    Step::Wait(ms) => world.advance(Duration::from_millis(ms.into())),
                    Step::Join(_) => {}
                }
                read(&mut world, &mut conns);
            }
            for _ in 0..4 {
                world.advance(TICK);
                read(&mut world, &mut conns);
            }
            let truth: Vec<(u32, String, bool)> = records
                .iter()
                .filter(|record| record.authorized)
                .map(|record| (record.id.0, record.name.clone(), world.control.is_online(record.id)))
                .collect();
            for (n, (_, known)) in &conns {
                prop_assert_eq!(known.shown(), truth.clone(), "node {}", n);
            }
        }
    }
}
