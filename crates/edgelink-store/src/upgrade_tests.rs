//! Upgrades from every earlier schema, on both databases, and migrations that were cut off.

use crate::location::MariaDbUrl;
use crate::migration::Migrator;
use crate::{Store, mariadb};
use edgelink_test_mariadb::Database;
use sea_orm::ConnectionTrait;
use sea_orm_migration::{MigrationTrait, MigratorTraitSelf};
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

fn first<const N: usize>() -> Vec<Box<dyn MigrationTrait>> {
    let mut all = Migrator::CURRENT.migrations();
    all.truncate(N);
    all
}

/// The schemas before this build's, oldest first. Whoever adds a migration adds the one before it here.
const EARLIER: [Migrator; 3] = [Migrator::with(first::<1>), Migrator::with(first::<2>), Migrator::with(first::<3>)];

#[test]
fn every_earlier_schema_is_tested() {
    assert_eq!(
        EARLIER.len() + 1,
        Migrator::CURRENT.names().len(),
        "add the schema before the new migration to EARLIER"
    );
}

/// By plain SQL of the first schema: this build's entities may know columns that an earlier one lacks.
async fn fill(store: &Store) {
    let (key, statement, signature) = ("07".repeat(32), "07".repeat(120), "07".repeat(64));
    for sql in [
        format!(
            "INSERT INTO nodes (network_id, name, machine_key_pub, virtual_ip, authorized, node_key_statement, \
             node_key_signature, node_key_seq, created_at, updated_at) \
             VALUES (1, 'web', '{key}', '10.0.1.1', 1, x'{statement}', x'{signature}', 7, 5, 5)"
        ),
        "INSERT INTO token_blacklist (jti, reason, expires_at, created_at) VALUES ('jti-1', 'lost', 9999999999, 5)".into(),
        "INSERT INTO settings (`key`, value, updated_at) VALUES ('k', 'it''s kept', 5)".into(),
        "INSERT INTO change_log (id, entity, entity_key, created_at) VALUES (1, 'node', '1', 5), (2, 'revocation', 'jti-1', 5)"
            .into(),
        "UPDATE change_counter SET value = 2".into(),
    ] {
        store.db.execute_unprepared(&sql).await.unwrap();
    }
}

async fn is_as_filled(store: &Store) {
    let snapshot = store.snapshot().await.unwrap();
    let [node] = snapshot.nodes.as_slice() else { panic!("{:?}", snapshot.nodes) };
    assert_eq!((node.name.as_str(), node.virtual_ip, node.authorized), ("web", "10.0.1.1".parse().ok(), true));
    assert_eq!(node.key.as_ref().map(|k| (k.seq, k.statement.clone())), Some((7, vec![7; 120])));
    assert_eq!((snapshot.version, snapshot.revocations.len()), (2, 1));
    assert_eq!(store.setting("k").await.unwrap().as_deref(), Some("it's kept"));
    let report = store.check().await.unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.schema, Migrator::CURRENT.names());
    // And it can be written.
    store.rename_node(node.id, "db").await.unwrap();
}

#[tokio::test]
async fn every_earlier_sqlite_is_upgraded() {
    for migrator in &EARLIER {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edgelink.db");
        let old = Store::open_with(&path, true, migrator, PATIENCE).await.unwrap();
        fill(&old).await;
        old.close().await.unwrap();
        is_as_filled(&Store::open(&path, true).await.unwrap()).await;
    }
}

#[tokio::test]
async fn every_earlier_mariadb_is_upgraded() {
    for migrator in &EARLIER {
        let (database, dir) = (Database::new(), tempfile::tempdir().unwrap());
        let url = MariaDbUrl::parse(&database.url()).unwrap();
        let old = Store::open_mariadb_with(&url, Some(dir.path()), migrator, 5).await.unwrap();
        fill(&old).await;
        old.close().await.unwrap();
        is_as_filled(&Store::open_mariadb(&url, Some(dir.path())).await.unwrap()).await;
    }
}

#[tokio::test]
async fn a_migration_of_mariadb_that_was_cut_off_before_its_record_is_repeated() {
    for name in Migrator::CURRENT.names().iter().skip(1) {
        let (database, dir) = (Database::new(), tempfile::tempdir().unwrap());
        let url = MariaDbUrl::parse(&database.url()).unwrap();
        let old = Store::open_mariadb(&url, Some(dir.path())).await.unwrap();
        fill(&old).await;
        let forget = format!("DELETE FROM seaql_migrations WHERE version >= '{name}'");
        old.db.execute_raw(mariadb::sql(&forget)).await.unwrap();
        is_as_filled(&Store::open_mariadb(&url, Some(dir.path())).await.unwrap()).await;
    }
}

/// As an earlier version left it: made and used by its controller, not by this build's idea of that schema.
#[tokio::test]
async fn the_database_of_an_earlier_version_opens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.db");
    make(&path, include_str!("../tests/fixtures/schema1.sql")).await;
    let store = Store::open(&path, true).await.unwrap();
    let snapshot = store.snapshot().await.unwrap();
    assert_eq!(snapshot.version, 6);
    let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    assert_eq!(snapshot.networks.iter().map(|n| n.name.clone()).collect::<Vec<_>>(), names(&["default", "lab"]));
    assert_eq!(snapshot.networks[1].description, "it's a \"lab\"");
    let nodes: Vec<_> = snapshot.nodes.iter().map(|n| (n.name.clone(), n.virtual_ip.unwrap().to_string())).collect();
    assert_eq!(nodes, [("web".to_owned(), "10.0.1.1".to_owned()), ("db".to_owned(), "10.9.0.1".to_owned())]);
    assert!(snapshot.nodes.iter().all(|n| n.authorized && n.key.as_ref().is_some_and(|k| k.seq == 7)));
    assert_eq!((snapshot.routes.len(), snapshot.servers.len()), (1, 2));
    assert_eq!(store.setting(crate::TOKEN_KEYS).await.unwrap().as_deref(), Some("kept"));
    assert_eq!(store.auth_keys().await.unwrap().len(), 2);
    let report = store.check().await.unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.schema, Migrator::CURRENT.names());
}

async fn make(path: &Path, dump: &str) {
    std::fs::write(path, "").unwrap();
    let db = sea_orm::Database::connect(format!("sqlite://{}", path.display())).await.unwrap();
    db.execute_unprepared(dump).await.unwrap();
    db.close().await.unwrap();
}
