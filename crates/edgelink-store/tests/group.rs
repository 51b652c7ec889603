//! Several nodes' writes in one transaction: each with its own outcome, as if it had been made alone.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod common;

use common::*;
use edgelink_model::NodeId;
use edgelink_model::records::{EnrollError, EnrollRequest, NodeKeyRecord, NodeRecord};
use edgelink_store::{Changes, NewAuthKey, NodeWrite, NodeWritten, Store, StoreError};

fn key(node: u8, seq: u64) -> NodeKeyRecord {
    NodeKeyRecord { statement: vec![node; 120], signature: vec![node; 64], seq }
}

fn set_key(node: u32, seq: u64) -> NodeWrite {
    NodeWrite::SetKey { node: NodeId(node), key: key(node as u8, seq) }
}

fn record(outcome: &NodeWritten) -> &NodeRecord {
    match outcome {
        NodeWritten::Enrolled(record) => record,
        other => panic!("{other:?}"),
    }
}

/// What can meet in one transaction.
async fn a_crowd(store: &Store) -> Vec<NodeWrite> {
    let lab = network(store, "lab", "10.9.0.0/30").await;
    let reusable = |key: &str| NewAuthKey { reusable: true, ..one_shot(key) };
    store.create_auth_key(reusable("all")).await.unwrap();
    store.create_auth_key(NewAuthKey { network_id: lab, ..reusable("lab") }).await.unwrap();
    store.create_auth_key(NewAuthKey { preauthorized: false, ..reusable("wait") }).await.unwrap();
    store.create_auth_key(NewAuthKey { expires_at: Some(NOW), ..reusable("old") }).await.unwrap();
    store.create_auth_key(one_shot("once")).await.unwrap();
    let first = store.enroll(knock_with(1, "all")).await.unwrap();
    store.set_node_key(first.id, key(1, 5)).await.unwrap();
    store.enroll(knock(2)).await.unwrap();

    let host = |machine, like: u8, key: &str| EnrollRequest { host: knock(like).host, ..knock_with(machine, key) };
    vec![
        NodeWrite::Enroll(knock_with(10, "all")),
        set_key(1, 6),
        NodeWrite::Enroll(knock_with(11, "nonsense")),
        NodeWrite::Enroll(knock_with(12, "once")),
        NodeWrite::Enroll(knock_with(13, "once")),
        NodeWrite::Enroll(host(14, 10, "all")),
        NodeWrite::Enroll(host(15, 10, "wait")),
        NodeWrite::Enroll(host(16, 1, "all")),
        set_key(1, 6),
        set_key(1, 3),
        set_key(99, 1),
        // It waits, and its key lets it in; the same again.
        NodeWrite::Enroll(knock_with(2, "all")),
        NodeWrite::Enroll(knock_with(2, "all")),
        NodeWrite::Enroll(knock_with(17, "old")),
        NodeWrite::Enroll(knock_with(20, "lab")),
        NodeWrite::Enroll(knock_with(21, "lab")),
        NodeWrite::Enroll(knock_with(22, "lab")),
        NodeWrite::Enroll(knock_with(10, "lab")),
        NodeWrite::Enroll(knock(23)),
        NodeWrite::SetKey { node: NodeId(2), key: NodeKeyRecord { statement: vec![0; 7], ..key(2, 1) } },
        set_key(2, 1),
    ]
}

/// The IPv6 prefixes of two databases are not the same.
fn anywhere(record: &NodeRecord) -> NodeRecord {
    let interface = |ip: std::net::Ipv6Addr| std::net::Ipv6Addr::from_bits(ip.to_bits() & u128::from(u64::MAX));
    NodeRecord { virtual_ip6: record.virtual_ip6.map(interface), ..record.clone() }
}

on_both!(together_is_the_same_as_one_after_the_other);

async fn together_is_the_same_as_one_after_the_other(db: Db) {
    let (store, other) = (db.open().await, Db::sqlite());
    let alone = other.open().await;
    let writes = a_crowd(&store).await;
    a_crowd(&alone).await;
    let together = store.write_nodes(&writes).await;
    assert_eq!(together.len(), writes.len());
    for (write, outcome) in writes.into_iter().zip(&together) {
        match (write, outcome) {
            (NodeWrite::Enroll(request), NodeWritten::Enrolled(record)) => {
                assert_eq!(Ok(anywhere(record)), alone.enroll(request).await.as_ref().map(anywhere));
            }
            (NodeWrite::Enroll(request), NodeWritten::Refused(error)) => {
                assert_eq!(Err(error.clone()), alone.enroll(request).await);
            }
            (NodeWrite::SetKey { node, key }, outcome) => match (alone.set_node_key(node, key).await, outcome) {
                (Ok(()), NodeWritten::KeySet) => {}
                (Err(error), NodeWritten::Failed(other)) => assert_eq!(error.to_string(), other.to_string()),
                (alone, together) => panic!("{alone:?}, {together:?}"),
            },
            (write, outcome) => panic!("{write:?}: {outcome:?}"),
        }
    }
    let state = async |store: &Store| {
        let snapshot = store.snapshot().await.unwrap();
        (snapshot.version, snapshot.nodes.iter().map(anywhere).collect::<Vec<_>>())
    };
    assert_eq!(state(&store).await, state(&alone).await);
    let used = async |store: &Store| {
        let keys = store.auth_keys().await.unwrap();
        keys.into_iter().map(|key| (key.id, key.used_at)).collect::<Vec<_>>()
    };
    assert_eq!(used(&store).await, used(&alone).await);
}

on_both!(each_has_its_own_outcome_and_the_log_a_line_for_each_that_was_written);

async fn each_has_its_own_outcome_and_the_log_a_line_for_each_that_was_written(db: Db) {
    let store = db.open().await;
    let writes = a_crowd(&store).await;
    let before = store.snapshot().await.unwrap().version;
    let outcomes = store.write_nodes(&writes).await;
    let refused: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            NodeWritten::Refused(error) => Some(error.clone()),
            _ => None,
        })
        .collect();
    use EnrollError::{AuthKeyExpired, OtherNetwork, PoolExhausted, UnknownAuthKey};
    let full = PoolExhausted("10.9.0.0/30".into());
    assert_eq!(refused, [UnknownAuthKey, UnknownAuthKey, AuthKeyExpired, full, OtherNetwork]);
    let stale = outcomes.iter().filter_map(|outcome| match outcome {
        NodeWritten::Failed(error) => Some(&**error),
        _ => None,
    });
    let stale: Vec<_> = stale.collect();
    assert!(
        matches!(
            stale[..],
            [StoreError::StaleKey { stored: 6, given: 3 }, StoreError::NotFound { .. }, StoreError::Invalid(_)]
        ),
        "{stale:?}"
    );
    // Eight new machines, one that waited and was let in, two keys.
    let Changes::Some { version, changes } = store.changes_after(before).await.unwrap() else { panic!("resync") };
    assert_eq!(version, before + 11);
    assert_eq!(changes.len(), 10, "one node has joined and announced a key");
    assert_eq!(record(&outcomes[5]).name, "host-10-2");
    assert_eq!(record(&outcomes[0]).virtual_ip, Some("10.0.1.2".parse().unwrap()));
}

on_both!(one_that_the_database_cannot_take_does_not_hurt_the_others);

async fn one_that_the_database_cannot_take_does_not_hurt_the_others(db: Db) {
    let store = db.open().await;
    store.create_auth_key(NewAuthKey { reusable: true, ..one_shot("all") }).await.unwrap();
    // Beyond what BIGINT holds.
    let poison = EnrollRequest { now_unix_ms: u64::MAX, ..knock_with(2, "all") };
    let poison = EnrollRequest { auth_key_hash: None, ..poison };
    let before = store.snapshot().await.unwrap().version;
    let writes =
        [NodeWrite::Enroll(knock_with(1, "all")), NodeWrite::Enroll(poison), NodeWrite::Enroll(knock_with(3, "all"))];
    let outcomes = store.write_nodes(&writes).await;
    assert!(matches!(outcomes[1], NodeWritten::Refused(EnrollError::Unavailable)), "{:?}", outcomes[1]);
    let addresses = [&outcomes[0], &outcomes[2]].map(|outcome| record(outcome).virtual_ip.unwrap().to_string());
    assert_eq!(addresses, ["10.0.1.1", "10.0.1.2"]);
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!((snapshot.nodes.len(), snapshot.version), (2, before + 2), "nothing is there twice");
}

on_both!(dropped_anywhere_all_of_them_happened_or_none);

async fn dropped_anywhere_all_of_them_happened_or_none(db: Db) {
    let store = db.open().await;
    store.create_auth_key(NewAuthKey { reusable: true, ..one_shot("all") }).await.unwrap();
    let (mut nothing, mut done) = (0, 0);
    // A few polls more each time until they are done. How many that takes depends on how quickly the database answers, so
    // it goes on from the start until enough were cut.
    let mut polls = 0;
    for n in 1..80u8 {
        polls += 2;
        let before = store.snapshot().await.unwrap();
        let machines = [3 * n, 3 * n + 1, 3 * n + 2];
        let writes = machines.map(|machine| NodeWrite::Enroll(knock_with(machine, "all")));
        let answer = poll_at_most(polls, store.write_nodes(&writes)).await;
        // The next writer gets its turn, and sees the same as everybody.
        store.set_setting("probe", "x").await.unwrap();
        let after = store.snapshot().await.unwrap();
        let joined = after.nodes.len() - before.nodes.len();
        assert!(joined == 0 || joined == 3, "{joined}");
        assert_eq!(after.version, before.version + joined as u64);
        nothing += usize::from(joined == 0);
        if answer.is_some() {
            assert_eq!(joined, 3);
            done += 1;
            polls = 0;
            if nothing > 3 {
                break;
            }
        }
    }
    assert!(done > 0, "they take fewer polls than that");
    assert!(nothing > 3, "they were cut in the middle of their transaction");
}
