//! What a change costs: it grows with who must learn it (DESIGN §4). And what it brings: everybody knows the same.

use crate::world::*;
use bytes::Bytes;
use edgelink_control::{ConnId, Event};
use edgelink_model::records::{Change, NetworkRecord, NodeKeyRecord, NodeRecord};
use edgelink_model::{NetworkId, NodeId};
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

/// Everything that was sent, as it was encoded; nothing else may have happened.
fn sent(world: &mut World) -> Vec<(ConnId, Bytes)> {
    let take = |event| match event {
        Event::Send { conn, message } => (conn, message),
        other => panic!("{other:?}"),
    };
    std::iter::from_fn(|| world.control.poll_event()).map(take).collect()
}

/// Admits a member and takes its first CONFIG as it was encoded.
fn join_and_hold(world: &mut World, client: &Client, record: &NodeRecord) -> (ConnId, Bytes) {
    let conn = world.connect();
    world.authenticate(conn, client);
    world.send(conn, &client.announce_in(record.network_id, record.id, 5, START_MS / 1000));
    let mut configs = std::iter::from_fn(|| world.control.poll_event()).filter_map(|event| match event {
        Event::Send { message, .. } => Some(message),
        _ => None,
    });
    let config = configs.next().unwrap();
    assert!(matches!(decode(&config)[..], [ControlMessage::Config(_)]));
    assert_eq!(configs.next(), None);
    (conn, config)
}

#[test]
fn nothing_is_kept_of_a_network_that_was_deleted() {
    let crowd = crowd(2, 1);
    let mut world = world_of(&crowd);
    let (client, record) = &crowd[0];
    let (other_client, other) = &crowd[1];
    let (conn, config) = join_and_hold(&mut world, client, record);
    let (_, others) = join_and_hold(&mut world, other_client, other);
    assert!(!config.is_unique() && !others.is_unique(), "the controller keeps what it encoded, for the next to join");

    world.apply(20, Change::NodeDeleted(record.id));
    world.apply(21, Change::NetworkDeleted(record.network_id));
    let events = world.events();
    assert!(events.contains(&Seen::Closed(conn)), "{events:?}");
    assert!(config.is_unique(), "and drops it with the network");
    assert!(!others.is_unique(), "other networks' stays");
    world.advance(TICK);
    world.advance(TICK);
    world.events();
    assert!(config.is_unique());

    // A network that gets its id starts afresh.
    let name = "successor".to_owned();
    let subnet = "10.9.9.0/24".parse().unwrap();
    let network = NetworkRecord { id: record.network_id, name, subnet, subnet6: None, description: String::new() };
    world.apply(22, Change::Network(network));
    let newcomer = Client::numbered(999);
    let known = NodeRecord { id: NodeId(999), ..newcomer.record(999, true) };
    world.apply(23, Change::Node(known.clone()));
    world.nodes.push(known);
    world.events();
    let (_, config) = world.join(&newcomer, NodeId(999), 5);
    assert_eq!(config.network.unwrap().name, "successor");
    assert_eq!(config.peers.iter().map(|peer| peer.node_id).collect::<Vec<_>>(), [999]);
}

#[test]
fn a_node_that_cannot_apply_an_update_gets_the_whole_once_a_second() {
    let crowd = crowd(1, 2);
    let mut world = world_of(&crowd);
    let conns: Vec<ConnId> =
        crowd.iter().map(|(client, record)| world.join_network(client, record.id, record.network_id, 5).0).collect();
    world.advance(TICK);
    world.advance(TICK);
    world.events();
    let renamed = |name: &str| Change::Node(NodeRecord { name: name.to_owned(), ..crowd[1].1.clone() });
    let failed = |version| {
        let error = "an update that does not fit".to_owned();
        message(ControlMessage::Ack(proto::Ack { acked_type: 4, config_version: version, error, ..Default::default() }))
    };
    // What it is sent is one CONFIG with all that the updates since said, and no update: those would not fit again.
    let whole = |world: &mut World, name: &str| {
        let events = world.events();
        let [Seen::Sent(to, ControlMessage::Config(config))] = &events[..] else { panic!("{events:?}") };
        assert_eq!((*to, config.version), (conns[0], world.control.version()), "to the one that asked, and current");
        assert_eq!(config.peers.iter().find(|peer| peer.node_id == crowd[1].1.id.0).unwrap().name, name);
    };
    world.apply(30, renamed("once"));
    world.advance(TICK);
    assert!(world.events().iter().any(|e| matches!(e, Seen::Sent(_, ControlMessage::ConfigUpdate(_)))));
    world.send(conns[0], &failed(29));
    whole(&mut world, "once");
    let before = world.control.stats();
    for _ in 0..10 {
        world.send(conns[0], &failed(29));
        world.advance(Duration::from_millis(99));
    }
    assert_eq!(world.events(), [], "not again within a second");
    world.apply(31, renamed("twice"));
    world.advance(Duration::from_millis(10));
    world.send(conns[0], &failed(29));
    // What is being gathered follows as an update, with everybody's.
    let events = world.events();
    let configs = |events: &[Seen]| {
        let config = |e: &&Seen| matches!(e, Seen::Sent(to, ControlMessage::Config(_)) if *to == conns[0]);
        events.iter().filter(config).count()
    };
    assert_eq!(configs(&events), 1, "{events:?}");
    let after = world.control.stats();
    assert_eq!(after.configs_sent - before.configs_sent, 1);
    assert_eq!(after.config_errors - before.config_errors, 11, "each is counted");
    // One that says that all is well is sent nothing.
    world.advance(Duration::from_secs(2));
    world.events();
    let fine = proto::Ack { acked_type: 4, config_version: 31, ..Default::default() };
    world.send(conns[0], &message(ControlMessage::Ack(fine)));
    assert_eq!(world.events(), []);
}

/// How often in a second of continuous changes a network of so many connected nodes is told, and how long a lone change after
/// a quiet time takes.
fn pace(nodes: u32) -> (usize, Duration) {
    let crowd: Vec<(Client, NodeRecord)> = (1..=nodes)
        .map(|n| {
            let client = Client::numbered(n);
            let record = NodeRecord { virtual_ip: Some((0x0a00_0100 + n).into()), ..client.record(n, true) };
            (client, record)
        })
        .chain([(
            Client::numbered(9_999),
            NodeRecord { network_id: NetworkId(2), ..Client::numbered(9_999).record(9_999, true) },
        )])
        .collect();
    let mut world = world_of(&crowd);
    for (client, record) in &crowd {
        join_and_hold(&mut world, client, record);
    }
    world.advance(Duration::from_secs(1));
    world.advance(Duration::from_secs(1));
    sent(&mut world);
    let mut id = 100_000;
    let rename = |world: &mut World, (_, record): &(Client, NodeRecord), id: u64| {
        world.apply(id, Change::Node(NodeRecord { name: format!("n{id}"), ..record.clone() }));
    };
    let (large, small) = (&crowd[0], crowd.last().unwrap());

    // Alone.
    id += 1;
    rename(&mut world, large, id);
    let identity = sent(&mut world).len();
    let mut lone = Duration::ZERO;
    while sent(&mut world).len() < nodes as usize {
        world.advance(Duration::from_millis(5));
        lone += Duration::from_millis(5);
        assert!(lone < Duration::from_secs(2), "told to all");
    }
    assert_eq!(identity, 1, "its own identity goes to the renamed node at once");

    // A change every 5 ms.
    let mut told = 0;
    for _ in 0..200 {
        id += 1;
        rename(&mut world, large, id);
        world.advance(Duration::from_millis(5));
        told += usize::from(sent(&mut world).len() >= nodes as usize);
    }
    // Meanwhile another network waits for nobody.
    id += 1;
    rename(&mut world, large, id);
    rename(&mut world, small, id + 1);
    sent(&mut world);
    world.advance(Duration::from_millis(50));
    let messages = sent(&mut world).into_iter().flat_map(|(_, message)| decode(&message));
    let names = messages.filter_map(|message| match message {
        ControlMessage::ConfigUpdate(update) => update.peers.into_iter().next().map(|peer| peer.node_id),
        _ => None,
    });
    assert!(names.collect::<Vec<_>>().contains(&small.1.id.0), "a small network's change is late");
    (told, lone)
}

#[test]
fn the_larger_a_network_the_seldomer_it_is_told_of_continuous_changes() {
    let coalesced = Duration::from_millis(50);
    assert_eq!(pace(20), (20, coalesced), "every 50 ms");
    let (told, lone) = pace(400);
    assert!((9..=10).contains(&told), "every 100 ms: {told}");
    assert_eq!(lone, coalesced, "a lone change waits for nothing else");
    let (told, lone) = pace(1_200);
    assert!((4..=5).contains(&told), "every 250 ms and not every 300: {told}");
    assert_eq!(lone, coalesced);
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
