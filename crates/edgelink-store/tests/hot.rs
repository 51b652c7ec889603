//! Hot state arrives in batches, over what was there, and moves nothing that is followed.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use common::*;
use edgelink_model::{NodeId, ServerId};

on_both!(connections_keep_their_beginning_and_end_with_the_batch_that_does_not_name_them);

async fn connections_keep_their_beginning_and_end_with_the_batch_that_does_not_name_them(db: Db) {
    let store = db.open().await;
    let mut nodes = Vec::new();
    for machine in 1..=3 {
        nodes.push(store.enroll(knock(machine)).await.unwrap().id);
    }
    let version = store.counts().await.unwrap().version;
    let (gone, relay) = (NodeId(99), ServerId(1));
    store.touch_connections(&[(nodes[0], relay), (nodes[1], relay), (gone, relay)], NOW).await.unwrap();
    store.touch_connections(&[(nodes[0], relay), (nodes[2], relay), (nodes[2], ServerId(7))], NOW + 5).await.unwrap();
    assert_eq!(store.connections().await.unwrap(), [(nodes[0], relay, NOW), (nodes[2], relay, NOW + 5)]);
    store.delete_node(nodes[0]).await.unwrap();
    assert_eq!(store.connections().await.unwrap(), [(nodes[2], relay, NOW + 5)]);
    store.touch_connections(&[], NOW + 9).await.unwrap();
    assert_eq!(store.connections().await.unwrap(), []);
    assert!(store.counts().await.unwrap().version > version, "the deletion alone");
}
