//! The lease between controllers: one holder at a time, and none of his writes after his time.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail")]

mod common;

use common::*;
use edgelink_store::{Lease, Store, StoreError};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(600);

async fn take(store: &Store, holder: &str, ttl: Duration) -> Lease {
    store.take_lease(holder, &format!("wss://{holder}.example.com"), ttl).await.unwrap()
}

on_both!(one_holds_it_until_it_expires_or_is_released);

async fn one_holds_it_until_it_expires_or_is_released(db: Db) {
    let (a, b) = (db.open().await, db.open().await);
    assert_eq!(a.lease_holder().await.unwrap(), None);
    assert_eq!(take(&a, "a", LONG).await, Lease::Ours { epoch: 1 });
    let Lease::Theirs(holder) = take(&b, "b", LONG).await else { panic!("two") };
    assert_eq!((holder.holder.as_str(), holder.url.as_str()), ("a", "wss://a.example.com"));
    assert!(holder.remaining > LONG / 2 && holder.remaining <= LONG);
    assert_eq!(b.lease_holder().await.unwrap().unwrap().holder, "a");
    assert!(a.renew_lease("a", 1, LONG).await.unwrap());
    assert_eq!(take(&a, "a", LONG).await, Lease::Ours { epoch: 1 }, "taking it again renews it");
    assert!(!b.renew_lease("b", 1, LONG).await.unwrap());

    b.release_lease("b").await.unwrap();
    assert!(matches!(take(&b, "b", LONG).await, Lease::Theirs(_)), "it was not his to release");
    a.release_lease("a").await.unwrap();
    assert_eq!(a.lease_holder().await.unwrap(), None);
    assert!(!a.renew_lease("a", 1, LONG).await.unwrap());
    // It expires at once.
    assert_eq!(take(&b, "b", Duration::ZERO).await, Lease::Ours { epoch: 2 });
    assert!(!b.renew_lease("b", 2, LONG).await.unwrap(), "too late: another may be about to take it");
    assert_eq!(take(&a, "a", LONG).await, Lease::Ours { epoch: 3 });
    assert!(!b.renew_lease("b", 2, LONG).await.unwrap());
}

on_both!(of_many_that_ask_at_once_one_gets_it);

async fn of_many_that_ask_at_once_one_gets_it(db: Db) {
    let (a, b) = (db.open().await, db.open().await);
    let names: Vec<String> = (0..8).map(|n| format!("c{n}")).collect();
    let asked = names.iter().enumerate().map(|(n, name)| take([&a, &b][n % 2], name, LONG));
    let answers = futures_util::future::join_all(asked).await;
    assert_eq!(answers.iter().filter(|a| matches!(a, Lease::Ours { epoch: 1 })).count(), 1, "{answers:?}");
}

on_both!(a_former_holder_writes_nothing);

async fn a_former_holder_writes_nothing(db: Db) {
    let (a, b) = (db.open().await, db.open().await);
    take(&a, "a", Duration::ZERO).await;
    let former = a.fenced(1);
    let node = former.enroll(knock(1)).await.unwrap();
    assert_eq!(take(&b, "b", LONG).await, Lease::Ours { epoch: 2 });
    let before = b.snapshot().await.unwrap();
    assert!(matches!(former.set_setting("k", "v").await, Err(StoreError::LeaseLost)));
    assert!(matches!(former.rename_node(node.id, "x").await, Err(StoreError::LeaseLost)));
    assert_eq!(former.enroll(knock(2)).await, Err(edgelink_model::records::EnrollError::Unavailable));
    assert_eq!(b.snapshot().await.unwrap(), before);
    former.snapshot().await.expect("reading is everybody's");
    b.fenced(2).rename_node(node.id, "x").await.unwrap();
    a.rename_node(node.id, "y").await.expect("an administrator needs no lease");
}

on_both!(a_write_under_way_ends_before_the_lease_moves);

async fn a_write_under_way_ends_before_the_lease_moves(db: Db) {
    let (a, b) = (db.open().await, db.open().await);
    take(&a, "a", Duration::ZERO).await;
    let former = a.fenced(1);
    // Whatever the order in which these meet: a node that was enrolled is in the snapshot of the next holder.
    let (enrolled, taken) = tokio::join!(former.enroll(knock(1)), take(&b, "b", LONG));
    assert_eq!(taken, Lease::Ours { epoch: 2 });
    assert_eq!(b.snapshot().await.unwrap().nodes.len(), usize::from(enrolled.is_ok()));
}

on_both!(controllers_are_known_for_a_week);

async fn controllers_are_known_for_a_week(db: Db) {
    let store = db.open().await;
    assert_eq!(store.controllers().await.unwrap(), [""; 0]);
    let version = store.counts().await.unwrap().version;
    for url in ["wss://b.example.com", "wss://a.example.com", "wss://b.example.com", "", &"x".repeat(191)] {
        store.announce_controller(url).await.unwrap();
    }
    assert_eq!(store.controllers().await.unwrap(), ["wss://a.example.com", "wss://b.example.com"]);
    let later = store.clone().with_clock(|| NOW + 7 * 24 * 3600 * 1000 + 1);
    later.announce_controller("wss://b.example.com").await.unwrap();
    assert_eq!(later.controllers().await.unwrap(), ["wss://b.example.com"]);
    assert_eq!(store.counts().await.unwrap().version, version, "nothing that the change log tells");
}
