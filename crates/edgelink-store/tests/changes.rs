//! Whoever follows the log knows what a snapshot says, and the follower is told in an order that makes sense.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod common;

use common::*;
use edgelink_model::records::{Change, NodeKeyRecord, RevocationTarget, Snapshot};
use edgelink_model::{NetworkId, NodeId, ServerId};
use edgelink_store::{Changes, NewRoute, NewServer, NodeTouch, Store, StoreError};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

async fn after(store: &Store, position: u64) -> (u64, Vec<(u64, Change)>) {
    match store.changes_after(position).await.unwrap() {
        Changes::Some { version, changes } => (version, changes),
        Changes::Resync => panic!("resync"),
    }
}

fn key(seq: u64, filler: u8) -> NodeKeyRecord {
    NodeKeyRecord { statement: vec![filler; 120], signature: vec![filler; 64], seq }
}

on_both!(several_changes_of_one_thing_come_as_one);

async fn several_changes_of_one_thing_come_as_one(db: Db) {
    let store = db.open().await;
    let node = store.enroll(knock(1)).await.unwrap();
    store.authorize_node(node.id).await.unwrap();
    let renamed = store.rename_node(node.id, "web").await.unwrap();
    assert_eq!(after(&store, 0).await, (3, vec![(3, Change::Node(renamed.clone()))]));
    assert_eq!(after(&store, 2).await, (3, vec![(3, Change::Node(renamed))]));
    assert_eq!(after(&store, 3).await, (3, vec![]));
    store.delete_node(node.id).await.unwrap();
    let (version, changes) = after(&store, 3).await;
    assert_eq!(version, 5);
    assert!(matches!(changes.as_slice(), [(5, Change::Revoked(_)), (4, Change::NodeDeleted(id))] if *id == node.id));
}

on_both!(deauthorizing_and_deleting_void_every_token_issued_so_far);

async fn deauthorizing_and_deleting_void_every_token_issued_so_far(db: Db) {
    let store = db.open().await;
    store.set_revocation_lifetime(Duration::from_secs(1000)).await.unwrap();
    let node = store.enroll(knock(1)).await.unwrap();
    store.deauthorize_node(node.id).await.unwrap();
    let revocations = store.snapshot().await.unwrap().revocations;
    let [revocation] = revocations.as_slice() else { panic!("{revocations:?}") };
    // A token of this very second is void, one of the next is not.
    let issued_before = NOW / 1000 + 1;
    assert_eq!(revocation.target, RevocationTarget::Node { node_id: node.id, issued_before });
    assert_eq!(revocation.expires_at, NOW / 1000 + 1000);

    let store = store.with_clock(|| NOW + 10_000);
    store.delete_node(node.id).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap().revocations.len(), 2, "it outlives the node");
    let much_later = store.with_clock(|| NOW + 1_000_000);
    assert_eq!(much_later.snapshot().await.unwrap().revocations.len(), 1);
    assert_eq!(much_later.prune_revocations().await.unwrap(), 1);
    assert_eq!(much_later.prune_revocations().await.unwrap(), 0);
}

on_both!(a_revoked_token_is_revoked_once);

async fn a_revoked_token_is_revoked_once(db: Db) {
    let store = db.open().await;
    let revocation = store.revoke_token("abc-1", "stolen").await.unwrap();
    assert_eq!(revocation.target, RevocationTarget::Jti("abc-1".into()));
    assert_eq!(revocation.expires_at, NOW / 1000 + 49 * 3600);
    assert_eq!(store.revoke_token("abc-1", "again").await.unwrap(), revocation);
    assert_eq!(after(&store, 0).await, (1, vec![(1, Change::Revoked(revocation))]));
    for bad in ["", "node:1:2", "a b", "é", &"x".repeat(201)] {
        assert!(matches!(store.revoke_token(bad, "").await, Err(StoreError::Invalid(_))), "{bad:?}");
    }
}

on_both!(a_nodes_key_only_rises);

async fn a_nodes_key_only_rises(db: Db) {
    let store = db.open().await;
    let id = store.enroll(knock(1)).await.unwrap().id;
    store.set_node_key(id, key(5, 1)).await.unwrap();
    store.set_node_key(id, key(5, 1)).await.unwrap();
    assert_eq!(after(&store, 0).await.0, 2, "the same again is no change");
    for stale in [key(4, 2), key(5, 2)] {
        let given = stale.seq;
        match store.set_node_key(id, stale).await {
            Err(StoreError::StaleKey { stored: 5, given: g }) => assert_eq!(g, given),
            other => panic!("{other:?}"),
        }
    }
    store.set_node_key(id, key(6, 2)).await.unwrap();
    let node = store.node(id).await.unwrap();
    assert_eq!((node.record.key, node.node_key_pub), (Some(key(6, 2)), Some("02".repeat(32))));
    let short = NodeKeyRecord { statement: vec![0; 119], ..key(7, 3) };
    assert!(matches!(store.set_node_key(id, short).await, Err(StoreError::Invalid(_))));
    let huge = key(u64::MAX, 3);
    assert!(matches!(store.set_node_key(id, huge).await, Err(StoreError::Invalid(_))));
    assert!(matches!(store.set_node_key(NodeId(99), key(7, 3)).await, Err(StoreError::NotFound { .. })));
    assert!(matches!(store.set_node_key(NodeId(u32::MAX), key(7, 3)).await, Err(StoreError::NotFound { .. })));
}

on_both!(presence_is_no_change_and_is_forgotten);

async fn presence_is_no_change_and_is_forgotten(db: Db) {
    let store = db.open().await;
    let id = store.enroll(knock(1)).await.unwrap().id;
    let version = after(&store, 0).await.0;
    let batch =
        [NodeTouch { id, online: true, last_seen: NOW }, NodeTouch { id: NodeId(9), online: true, last_seen: NOW }];
    store.touch_nodes(&batch).await.unwrap();
    assert!(store.node(id).await.unwrap().online);
    assert_eq!(after(&store, 0).await.0, version);
    assert!(!store.with_clock(|| NOW + 180_000).node(id).await.unwrap().online, "nobody has said so for too long");
    assert!(store.with_clock(|| NOW + 179_999).node(id).await.unwrap().online);
    store.reset_presence().await.unwrap();
    let node = store.node(id).await.unwrap();
    assert_eq!((node.online, node.record.last_seen), (false, Some(NOW)));
}

on_both!(a_pruned_or_foreign_position_must_resync);

async fn a_pruned_or_foreign_position_must_resync(db: Db) {
    let store = db.open().await;
    for machine in 1..=5 {
        store.enroll(knock(machine)).await.unwrap();
    }
    assert_eq!(store.prune_changes(2).await.unwrap(), 3);
    assert_eq!(store.prune_changes(2).await.unwrap(), 0);
    assert_eq!(store.changes_after(2).await.unwrap(), Changes::Resync);
    assert_eq!(after(&store, 3).await.1.len(), 2);
    assert_eq!(store.changes_after(6).await.unwrap(), Changes::Resync, "a restored backup");
    store.prune_changes(0).await.unwrap();
    assert_eq!(after(&store, 5).await, (5, vec![]));
    assert_eq!(store.changes_after(4).await.unwrap(), Changes::Resync);
    store.enroll(knock(6)).await.unwrap();
    assert_eq!(after(&store, 5).await.0, 6, "the counter goes on");
}

on_both!(a_network_is_told_before_its_nodes_and_a_freed_address_before_its_new_owner);

async fn a_network_is_told_before_its_nodes_and_a_freed_address_before_its_new_owner(db: Db) {
    let store = db.open().await;
    let old = store.enroll(knock(1)).await.unwrap();
    store.authorize_node(old.id).await.unwrap();
    let position = after(&store, 0).await.0;
    let lab = network(&store, "lab", "10.9.0.0/24").await;
    let new = store.enroll(knock(2)).await.unwrap();
    store.delete_node(old.id).await.unwrap();
    let new = store.authorize_node(new.id).await.unwrap();
    let kinds: Vec<_> = after(&store, position)
        .await
        .1
        .into_iter()
        .map(|(_, change)| match change {
            Change::Revoked(_) => "revoked".to_owned(),
            Change::NodeDeleted(id) => format!("gone {id}"),
            Change::Network(n) => format!("network {}", n.id),
            Change::Node(n) => format!("node {} {}", n.id, n.virtual_ip.unwrap()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "revoked".to_owned(),
            format!("gone {}", old.id),
            format!("network {lab}"),
            format!("node {} 10.0.1.1", new.id)
        ]
    );
}

/// What a follower keeps.
#[derive(Default)]
struct Follower {
    position: u64,
    snapshot: Snapshot,
}

impl Follower {
    async fn catch_up(&mut self, store: &Store) {
        match store.changes_after(self.position).await.unwrap() {
            Changes::Resync => {
                self.snapshot = store.snapshot().await.unwrap();
                self.position = self.snapshot.version;
            }
            Changes::Some { version, changes } => {
                for (_, change) in changes {
                    self.apply(change);
                }
                self.position = version;
                self.snapshot.version = version;
            }
        }
    }

    /// As strict as a follower may be: nothing may come before what it stands on.
    fn apply(&mut self, change: Change) {
        let s = &mut self.snapshot;
        match change {
            Change::Network(n) => replace(&mut s.networks, n, |n| n.id),
            Change::NetworkDeleted(id) => {
                assert!(s.nodes.iter().all(|n| n.network_id != id));
                s.networks.retain(|n| n.id != id);
            }
            Change::Node(n) => {
                assert!(s.networks.iter().any(|known| known.id == n.network_id));
                let same = |o: &&edgelink_model::records::NodeRecord| {
                    o.id != n.id
                        && o.network_id == n.network_id
                        && o.virtual_ip == n.virtual_ip
                        && n.virtual_ip.is_some()
                };
                assert_eq!(s.nodes.iter().find(same), None);
                replace(&mut s.nodes, n, |n| n.id);
            }
            Change::NodeDeleted(id) => {
                s.nodes.retain(|n| n.id != id);
                s.routes.retain(|r| r.node_id != id);
            }
            Change::Routes(id, routes) => {
                assert!(s.nodes.iter().any(|n| n.id == id));
                s.routes.retain(|r| r.node_id != id);
                for route in routes {
                    replace(&mut s.routes, route, |r| r.id);
                }
            }
            Change::Server(server) => replace(&mut s.servers, server, |s| s.id),
            Change::ServerDeleted(id) => s.servers.retain(|s| s.id != id),
            Change::Revoked(r) => replace(&mut s.revocations, r, |r| r.id.clone()),
            Change::Setting(_) => {}
        }
    }
}

fn replace<T: Clone, K: Ord>(list: &mut Vec<T>, item: T, key: impl Fn(&T) -> K) {
    let mut map: BTreeMap<K, T> = list.drain(..).map(|i| (key(&i), i)).collect();
    map.insert(key(&item), item);
    list.extend(map.into_values());
}

#[derive(Clone, Debug)]
enum Op {
    CreateNetwork(u8),
    DeleteNetwork(u32),
    Enroll { machine: u8, key: Option<u8>, require: bool },
    CreateKey { key: u8, network: u32, reusable: bool, preauthorized: bool },
    Authorize(u32),
    Deauthorize(u32),
    Delete(u32),
    Rename(u32, u8),
    SetKey(u32, u64),
    AddRoute(u32, u8),
    EnableRoute(u32, bool),
    DeleteRoute(u32),
    AddServer(u8),
    UpdateServer(u32, bool),
    DeleteServer(u32),
    RevokeToken(u8),
    Touch(u32),
    Prune(u64),
    CatchUp,
}

fn op() -> impl Strategy<Value = Op> {
    let id = 1u32..8;
    prop_oneof![
        1 => (2u8..5).prop_map(Op::CreateNetwork),
        1 => (1u32..5).prop_map(Op::DeleteNetwork),
        6 => (0u8..8, proptest::option::of(0u8..6), any::<bool>())
            .prop_map(|(machine, key, require)| Op::Enroll { machine, key, require }),
        3 => (0u8..6, 1u32..4, any::<bool>(), any::<bool>())
            .prop_map(|(key, network, reusable, preauthorized)| Op::CreateKey { key, network, reusable, preauthorized }),
        3 => id.clone().prop_map(Op::Authorize),
        2 => id.clone().prop_map(Op::Deauthorize),
        2 => id.clone().prop_map(Op::Delete),
        1 => (id.clone(), 0u8..4).prop_map(|(i, n)| Op::Rename(i, n)),
        2 => (id.clone(), 0u64..6).prop_map(|(i, s)| Op::SetKey(i, s)),
        3 => (id.clone(), 0u8..4).prop_map(|(i, r)| Op::AddRoute(i, r)),
        1 => (id.clone(), any::<bool>()).prop_map(|(i, e)| Op::EnableRoute(i, e)),
        1 => id.clone().prop_map(Op::DeleteRoute),
        1 => (0u8..3).prop_map(Op::AddServer),
        1 => (1u32..4, any::<bool>()).prop_map(|(i, e)| Op::UpdateServer(i, e)),
        1 => (1u32..4).prop_map(Op::DeleteServer),
        1 => (0u8..3).prop_map(Op::RevokeToken),
        1 => id.prop_map(Op::Touch),
        1 => (0u64..10).prop_map(Op::Prune),
        4 => Just(Op::CatchUp),
    ]
}

/// Refusals are part of the game; what counts is what the database says afterwards.
async fn run(store: &Store, op: Op) {
    match op {
        Op::CreateNetwork(n) => {
            // /30: the pool runs out.
            let new = edgelink_store::NewNetwork {
                name: format!("net{n}"),
                subnet: "10.9.0.0/30".parse().unwrap(),
                description: String::new(),
            };
            let _ = store.create_network(new).await;
        }
        Op::DeleteNetwork(id) => drop(store.delete_network(NetworkId(id)).await),
        Op::Enroll { machine, key, require } => {
            let auth_key_hash = key.map(|k| key_hash(&format!("k{k}")));
            let request = edgelink_model::records::EnrollRequest {
                auth_key_hash,
                require_authorization: require,
                ..knock(machine)
            };
            let _ = store.enroll(request).await;
        }
        Op::CreateKey { key, network, reusable, preauthorized } => {
            let new = edgelink_store::NewAuthKey {
                network_id: NetworkId(network),
                reusable,
                preauthorized,
                approve_routes: false,
                ..one_shot(&format!("k{key}"))
            };
            let _ = store.create_auth_key(new).await;
        }
        Op::Authorize(id) => drop(store.authorize_node(NodeId(id)).await),
        Op::Deauthorize(id) => drop(store.deauthorize_node(NodeId(id)).await),
        Op::Delete(id) => drop(store.delete_node(NodeId(id)).await),
        Op::Rename(id, n) => drop(store.rename_node(NodeId(id), &format!("name{n}")).await),
        Op::SetKey(id, seq) => drop(store.set_node_key(NodeId(id), key(seq, seq as u8)).await),
        Op::AddRoute(id, r) => {
            let cidr = format!("192.168.{r}.0/24").parse().unwrap();
            let new = NewRoute { node_id: NodeId(id), cidr, priority: 100, weight: 100, enabled: false };
            let _ = store.add_route(new).await;
        }
        Op::EnableRoute(id, enabled) => drop(store.set_route_enabled(id, enabled).await),
        Op::DeleteRoute(id) => drop(store.delete_route(id).await),
        Op::AddServer(n) => {
            let new = NewServer {
                name: format!("relay-{n}"),
                url: Some("wss://relay.example.com/ws/data".into()),
                region: "asia".into(),
                relay: true,
                stun: n == 0,
                stun_ip: None,
                stun_ip2: None,
                stun_port: 3478,
            };
            let _ = store.add_server(new).await;
        }
        Op::UpdateServer(id, enabled) => {
            if let Ok(server) = store.find_server(&id.to_string()).await {
                let _ = store.update_server(&edgelink_model::records::ServerRecord { enabled, ..server.record }).await;
            }
        }
        Op::DeleteServer(id) => drop(store.delete_server(ServerId(id)).await),
        Op::RevokeToken(n) => drop(store.revoke_token(&format!("jti-{n}"), "").await),
        Op::Touch(id) => {
            store.touch_nodes(&[NodeTouch { id: NodeId(id), online: true, last_seen: NOW }]).await.unwrap();
        }
        Op::Prune(keep) => drop(store.prune_changes(keep).await.unwrap()),
        Op::CatchUp => {}
    }
}

/// What a follower knows at the end, having looked now and then, is what the database says.
fn follow(db: Db, ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = db.open().await;
        let mut follower = Follower { snapshot: store.snapshot().await.unwrap(), ..Follower::default() };
        for op in ops {
            let catch_up = matches!(op, Op::CatchUp);
            let before = store.snapshot().await.unwrap();
            run(&store, op.clone()).await;
            let after = store.snapshot().await.unwrap();
            // Nothing that a follower must know changes without a word in the log.
            if after.version == before.version {
                let still = |mut s: Snapshot| {
                    s.nodes.iter_mut().for_each(|n| n.last_seen = None);
                    s
                };
                assert_eq!(still(after), still(before), "{op:?}");
            }
            if catch_up {
                follower.catch_up(&store).await;
            }
        }
        follower.catch_up(&store).await;
        let mut want = store.snapshot().await.unwrap();
        for s in [&mut want, &mut follower.snapshot] {
            s.nodes.iter_mut().for_each(|n| n.last_seen = None);
        }
        assert_eq!(follower.snapshot, want);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn following_the_log_ends_where_a_snapshot_is(ops in proptest::collection::vec(op(), 1..60)) {
        follow(Db::sqlite(), ops);
    }
}

proptest! {
    // Each makes a database.
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn following_the_log_ends_where_a_snapshot_is_on_mariadb(ops in proptest::collection::vec(op(), 20..60)) {
        follow(Db::mariadb(), ops);
    }
}
