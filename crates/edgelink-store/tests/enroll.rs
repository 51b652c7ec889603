//! A node knocks: keys, addresses, limits, and what a lost answer or a dropped transaction may not do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod common;

use common::*;
use edgelink_model::NodeId;
use edgelink_model::records::{EnrollError, EnrollRequest, HostInfo};
use edgelink_store::{Changes, NewAuthKey, NodeFilter};
use std::collections::BTreeSet;

on_both!(a_new_machine_waits_and_gets_its_address_only_when_it_is_authorized);

async fn a_new_machine_waits_and_gets_its_address_only_when_it_is_authorized(db: Db) {
    let store = db.open().await;
    let pending = store.enroll(knock(1)).await.unwrap();
    assert_eq!((pending.authorized, pending.virtual_ip, pending.name.as_str()), (false, None, "host-1"));
    assert_eq!(pending.machine_key_pub, [1; 32]);
    assert_eq!(pending.last_seen, Some(NOW));

    let node = store.authorize_node(pending.id).await.unwrap();
    assert_eq!((node.authorized, node.virtual_ip), (true, Some("10.0.1.1".parse().unwrap())));
    assert_eq!(store.authorize_node(pending.id).await.unwrap(), node, "twice is once");
    assert_eq!(store.enroll(knock(1)).await.unwrap(), node, "it comes back");
}

on_both!(without_required_authorization_everybody_is_let_in_but_the_deauthorized);

async fn without_required_authorization_everybody_is_let_in_but_the_deauthorized(db: Db) {
    let store = db.open().await;
    let open_door = |machine| EnrollRequest { require_authorization: false, ..knock(machine) };
    let waiting = store.enroll(knock(1)).await.unwrap();
    assert!(!waiting.authorized);
    assert!(store.enroll(open_door(1)).await.unwrap().authorized);
    assert!(store.enroll(open_door(2)).await.unwrap().authorized);
    store.deauthorize_node(waiting.id).await.unwrap();
    let barred = store.enroll(open_door(1)).await.unwrap();
    assert!(!barred.authorized);
    assert_eq!(barred.virtual_ip, Some("10.0.1.1".parse().unwrap()), "it keeps its address");
}

on_both!(a_one_shot_key_opens_once_and_again_for_the_machine_that_consumed_it);

async fn a_one_shot_key_opens_once_and_again_for_the_machine_that_consumed_it(db: Db) {
    let store = db.open().await;
    store.create_auth_key(one_shot("k")).await.unwrap();
    let node = store.enroll(knock_with(1, "k")).await.unwrap();
    assert!(node.authorized);
    assert_eq!(store.enroll(knock_with(1, "k")).await.unwrap(), node, "the answer was lost");
    assert_eq!(store.enroll(knock_with(2, "k")).await, Err(EnrollError::UnknownAuthKey));
    assert_eq!(store.nodes(NodeFilter::default()).await.unwrap().len(), 1);

    store.delete_node(node.id).await.unwrap();
    assert_eq!(
        store.enroll(knock_with(1, "k")).await,
        Err(EnrollError::UnknownAuthKey),
        "it was consumed all the same"
    );
}

on_both!(of_many_machines_with_one_one_shot_key_one_gets_in);

async fn of_many_machines_with_one_one_shot_key_one_gets_in(db: Db) {
    let store = db.open().await;
    let other = db.open().await;
    store.create_auth_key(one_shot("k")).await.unwrap();
    let results =
        futures_util::future::join_all((0..16).map(|m| [&store, &other][m % 2].enroll(knock_with(m as u8, "k")))).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert_eq!(results.iter().filter(|r| **r == Err(EnrollError::UnknownAuthKey)).count(), 15);
}

on_both!(bad_keys_are_refused_with_the_reason_and_leave_no_node);

async fn bad_keys_are_refused_with_the_reason_and_leave_no_node(db: Db) {
    let store = db.open().await;
    store.create_auth_key(NewAuthKey { expires_at: Some(NOW), ..one_shot("old") }).await.unwrap();
    store.create_auth_key(NewAuthKey { expires_at: Some(NOW + 1), ..one_shot("fresh") }).await.unwrap();
    assert_eq!(store.enroll(knock_with(1, "nonsense")).await, Err(EnrollError::UnknownAuthKey));
    assert_eq!(store.enroll(knock_with(1, "old")).await, Err(EnrollError::AuthKeyExpired));
    assert_eq!(store.nodes(NodeFilter::default()).await.unwrap(), []);
    assert!(store.enroll(knock_with(1, "fresh")).await.unwrap().authorized, "until the very moment of its expiry");
    assert!(store.enroll(knock_with(1, "old")).await.unwrap().authorized, "a member needs no key");

    let waiting = store.enroll(knock(2)).await.unwrap();
    assert_eq!(store.enroll(knock_with(2, "nonsense")).await, Err(EnrollError::UnknownAuthKey));
    assert_eq!(store.enroll(knock_with(2, "old")).await, Err(EnrollError::AuthKeyExpired));
    assert_eq!(store.enroll(knock(2)).await.unwrap(), waiting);
}

on_both!(the_key_names_the_network);

async fn the_key_names_the_network(db: Db) {
    let store = db.open().await;
    let lab = network(&store, "lab", "10.9.0.0/24").await;
    let key = NewAuthKey { network_id: lab, reusable: true, ..one_shot("lab") };
    store.create_auth_key(key).await.unwrap();
    let node = store.enroll(knock_with(1, "lab")).await.unwrap();
    assert_eq!((node.network_id, node.virtual_ip), (lab, Some("10.9.0.1".parse().unwrap())));
    // Same address in another network, and the same host name: they never meet.
    let twin = network(&store, "twin", "10.9.0.0/24").await;
    store.create_auth_key(NewAuthKey { network_id: twin, ..one_shot("twin") }).await.unwrap();
    let request = EnrollRequest { host: knock(1).host, ..knock_with(2, "twin") };
    let other = store.enroll(request).await.unwrap();
    assert_eq!((other.network_id, other.virtual_ip, &other.name), (twin, node.virtual_ip, &node.name));

    store.enroll(knock(3)).await.unwrap();
    assert_eq!(store.enroll(knock_with(3, "lab")).await, Err(EnrollError::OtherNetwork));
}

on_both!(a_key_without_preauthorization_only_chooses_the_network);

async fn a_key_without_preauthorization_only_chooses_the_network(db: Db) {
    let store = db.open().await;
    store.create_auth_key(NewAuthKey { preauthorized: false, ..one_shot("k") }).await.unwrap();
    let node = store.enroll(knock_with(1, "k")).await.unwrap();
    assert!(!node.authorized);
    assert_eq!(store.enroll(knock_with(1, "k")).await.unwrap(), node);
    assert_eq!(store.enroll(knock_with(2, "k")).await, Err(EnrollError::UnknownAuthKey), "consumed");
}

on_both!(a_pending_machine_may_come_again_with_a_preauthorized_key);

async fn a_pending_machine_may_come_again_with_a_preauthorized_key(db: Db) {
    let store = db.open().await;
    let waiting = store.enroll(knock(1)).await.unwrap();
    store.create_auth_key(one_shot("k")).await.unwrap();
    let node = store.enroll(knock_with(1, "k")).await.unwrap();
    assert_eq!((node.id, node.authorized, node.virtual_ip), (waiting.id, true, Some("10.0.1.1".parse().unwrap())));
    assert_eq!(store.enroll(knock_with(2, "k")).await, Err(EnrollError::UnknownAuthKey), "consumed");
}

on_both!(a_deauthorized_machine_stays_out_until_a_newer_key_or_an_administrator);

async fn a_deauthorized_machine_stays_out_until_a_newer_key_or_an_administrator(db: Db) {
    let store = db.open().await;
    store.create_auth_key(NewAuthKey { reusable: true, ..one_shot("k") }).await.unwrap();
    let node = store.enroll(knock_with(1, "k")).await.unwrap();
    store.deauthorize_node(node.id).await.unwrap();
    assert!(!store.enroll(knock_with(1, "k")).await.unwrap().authorized, "its old key does not undo it");

    let later = store.with_clock(|| NOW + 1);
    later.create_auth_key(one_shot("new")).await.unwrap();
    assert!(store.enroll(knock_with(1, "new")).await.unwrap().authorized);
    store.deauthorize_node(node.id).await.unwrap();
    assert_eq!(store.authorize_node(node.id).await.unwrap().virtual_ip, node.virtual_ip);
}

on_both!(a_full_pool_is_refused_and_a_deleted_node_makes_room);

async fn a_full_pool_is_refused_and_a_deleted_node_makes_room(db: Db) {
    let store = db.open().await;
    let tiny = network(&store, "tiny", "10.9.0.0/30").await;
    store.create_auth_key(NewAuthKey { network_id: tiny, reusable: true, ..one_shot("k") }).await.unwrap();
    let first = store.enroll(knock_with(1, "k")).await.unwrap();
    store.enroll(knock_with(2, "k")).await.unwrap();
    let full = store.enroll(knock_with(3, "k")).await.unwrap_err();
    assert_eq!(full, EnrollError::PoolExhausted("10.9.0.0/30".into()));
    assert_eq!(
        full.to_string(),
        "no free address is left in the network's subnet 10.9.0.0/30; delete unused nodes or enlarge the subnet"
    );
    assert_eq!(store.nodes(NodeFilter::default()).await.unwrap().len(), 2, "the third left nothing");
    store.delete_node(first.id).await.unwrap();
    let third = store.enroll(knock_with(3, "k")).await.unwrap();
    assert_eq!(third.virtual_ip, first.virtual_ip);
    assert_ne!(third.id, first.id, "ids are never used again");
}

on_both!(pending_nodes_are_capped_per_network);

async fn pending_nodes_are_capped_per_network(db: Db) {
    let store = db.open().await;
    let store = store.with_max_pending(2);
    let first = store.enroll(knock(1)).await.unwrap();
    store.enroll(knock(2)).await.unwrap();
    assert_eq!(store.enroll(knock(3)).await, Err(EnrollError::TooManyPending));
    assert!(store.enroll(knock(1)).await.is_ok(), "who waits already may come again");
    store.authorize_node(first.id).await.unwrap();
    assert!(store.enroll(knock(3)).await.is_ok());
    store.create_auth_key(one_shot("k")).await.unwrap();
    assert!(store.enroll(knock_with(4, "k")).await.unwrap().authorized, "a preauthorized key needs no waiting room");
}

on_both!(host_info_is_refreshed_and_cleaned_and_only_a_difference_is_a_change);

async fn host_info_is_refreshed_and_cleaned_and_only_a_difference_is_a_change(db: Db) {
    let store = db.open().await;
    let node = store.enroll(knock(1)).await.unwrap();
    let version = store.snapshot().await.unwrap().version;
    let later = EnrollRequest { now_unix_ms: NOW + 5000, ..knock(1) };
    assert_eq!(store.enroll(later.clone()).await.unwrap().last_seen, Some(NOW + 5000));
    assert_eq!(store.snapshot().await.unwrap().version, version, "a node that comes back is news to nobody");

    let host = HostInfo { hostname: "evil\u{1b}[2J".into(), version: "v".repeat(1000), ..later.host.clone() };
    let changed = store.enroll(EnrollRequest { host, ..later }).await.unwrap();
    assert_eq!((changed.host.hostname.as_str(), changed.host.version.len()), ("evil[2J", 255));
    assert_eq!(changed.name, node.name, "the name is the administrator's");
    assert_eq!(store.snapshot().await.unwrap().version, version + 1);
}

on_both!(equal_host_names_get_numbers);

async fn equal_host_names_get_numbers(db: Db) {
    let store = db.open().await;
    let mut names = Vec::new();
    for machine in 1..=3 {
        names.push(store.enroll(EnrollRequest { host: knock(7).host, ..knock(machine) }).await.unwrap().name);
    }
    assert_eq!(names, ["host-7", "host-7-2", "host-7-3"]);
}

on_both!(concurrent_enrolments_through_two_handles_never_share_an_address);

async fn concurrent_enrolments_through_two_handles_never_share_an_address(db: Db) {
    let store = db.open().await;
    let other = db.open().await;
    let many = network(&store, "many", "10.9.0.0/26").await;
    store.create_auth_key(NewAuthKey { network_id: many, reusable: true, ..one_shot("k") }).await.unwrap();
    let results =
        futures_util::future::join_all((0..64).map(|m| [&store, &other][m % 2].enroll(knock_with(m as u8, "k")))).await;
    let addresses: Vec<_> = results.iter().flatten().filter_map(|node| node.virtual_ip).collect();
    let unique: BTreeSet<_> = addresses.iter().copied().collect();
    let all: BTreeSet<_> = "10.9.0.0/26".parse::<ipnet::Ipv4Net>().unwrap().hosts().collect();
    assert_eq!((addresses.len(), unique), (62, all));
    assert_eq!(results.iter().filter(|r| **r == Err(EnrollError::PoolExhausted("10.9.0.0/26".into()))).count(), 2);
}

on_both!(an_enrolment_dropped_anywhere_happened_wholly_or_not_at_all);

async fn an_enrolment_dropped_anywhere_happened_wholly_or_not_at_all(db: Db) {
    let store = db.open().await;
    let (mut nothing, mut done) = (0, 0);
    // One poll more each time until it is done. How many that takes depends on how quickly the database answers, so it
    // goes on from one poll until enough were cut.
    let mut polls = 0;
    for n in 1..200u8 {
        polls += 1;
        let before = store.snapshot().await.unwrap();
        let key = store.create_auth_key(one_shot(&format!("k{n}"))).await.unwrap();
        let answer = poll_at_most(polls, store.enroll(knock_with(n, &format!("k{n}")))).await;
        // The next writer gets its turn, and sees the same as everybody.
        store.set_setting("probe", "x").await.unwrap();
        let after = store.snapshot().await.unwrap();
        let consumed = store.auth_keys().await.unwrap().iter().any(|k| k.id == key.id && k.used_at.is_some());
        let joined = after.nodes.iter().any(|node| node.machine_key_pub == [n; 32]);
        assert_eq!(joined, consumed);
        assert_eq!(after.version, before.version + u64::from(joined));
        if !joined {
            assert_eq!(after, before);
            nothing += 1;
        }
        if answer.is_some() {
            assert!(joined);
            done += 1;
            polls = 0;
            if nothing > 3 {
                break;
            }
        }
    }
    assert!(done > 0, "an enrolment takes fewer polls than that");
    assert!(nothing > 3, "it was cut in the middle of its transaction");
}

on_both!(another_handle_sees_it_at_once);

async fn another_handle_sees_it_at_once(db: Db) {
    let store = db.open().await;
    let other = db.open().await;
    let Changes::Some { version, changes } = other.changes_after(0).await.unwrap() else { panic!("resync") };
    assert_eq!((version, changes), (0, vec![]));
    let node = store.enroll(knock(1)).await.unwrap();
    let Changes::Some { version, changes } = other.changes_after(0).await.unwrap() else { panic!("resync") };
    assert_eq!((version, changes), (1, vec![(1, edgelink_model::records::Change::Node(node.clone()))]));
    assert_eq!(node.id, NodeId(1));
}
