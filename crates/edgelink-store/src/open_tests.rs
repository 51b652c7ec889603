//! Opening: permissions, schema, upgrades, and what a wrong file is called.

use crate::error::StoreError;
use crate::migration::Migrator;
use crate::{NodeFilter, Store};
use edgelink_model::records::{NetworkRecord, ServerKind, ServerRecord};
use edgelink_model::{NetworkId, ServerId};
use sea_orm::ConnectionTrait;
use sea_orm_migration::MigratorTraitSelf;
use sea_orm_migration::prelude::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

struct Extra;

impl MigrationName for Extra {
    fn name(&self) -> &str {
        "m9999_extra"
    }
}

#[async_trait::async_trait]
#[expect(elided_lifetimes_in_paths, reason = "as in the trait")]
impl MigrationTrait for Extra {
    async fn up(&self, schema: &SchemaManager) -> Result<(), DbErr> {
        schema.create_table(Table::create().table("extra").col(ColumnDef::new("id").integer()).take()).await
    }
}

struct Failing;

impl MigrationName for Failing {
    fn name(&self) -> &str {
        "m9999_failing"
    }
}

#[async_trait::async_trait]
#[expect(elided_lifetimes_in_paths, reason = "as in the trait")]
impl MigrationTrait for Failing {
    async fn up(&self, schema: &SchemaManager) -> Result<(), DbErr> {
        schema.drop_table(Table::drop().table("settings").take()).await?;
        schema.drop_table(Table::drop().table("no_such_table").take()).await
    }
}

pub(crate) const NEXT: Migrator = Migrator::with(|| {
    let mut all = Migrator::CURRENT.migrations();
    all.push(Box::new(Extra));
    all
});
pub(crate) const BROKEN: Migrator = Migrator::with(|| {
    let mut all = NEXT.migrations();
    all.push(Box::new(Failing));
    all
});

fn temp() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edgelink.db");
    (dir, path)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

async fn error(path: &Path, create: bool) -> String {
    Store::open(path, create).await.unwrap_err().to_string()
}

pub(crate) fn backups(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let is_copy = |name: &str| name.contains(".backup-") && !name.ends_with("-wal") && !name.ends_with("-shm");
    entries.filter(|p| is_copy(p.to_str().unwrap())).collect()
}

#[tokio::test]
async fn a_new_database_is_private_and_has_its_first_rows() {
    let (_dir, path) = temp();
    let store = Store::open(&path, true).await.unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&path.with_extension("db-wal")), 0o600);
    let snapshot = store.snapshot().await.unwrap();
    let subnet6 = snapshot.networks.first().unwrap().subnet6.unwrap();
    assert!(subnet6.network().is_unique_local() && subnet6.prefix_len() == 64, "{subnet6}");
    assert_eq!(
        snapshot.networks,
        [NetworkRecord {
            id: NetworkId(1),
            name: "default".into(),
            subnet: "10.0.1.0/24".parse().unwrap(),
            subnet6: Some(subnet6),
            description: String::new()
        }]
    );
    assert_eq!(
        snapshot.servers,
        [ServerRecord {
            id: ServerId(1),
            name: "builtin".into(),
            kind: ServerKind::Builtin,
            url: None,
            region: String::new(),
            relay: true,
            stun: true,
            stun_ip: None,
            stun_ip2: None,
            stun_port: 3478,
            enabled: true
        }]
    );
    assert_eq!((snapshot.version, snapshot.nodes, snapshot.routes, snapshot.revocations), (0, vec![], vec![], vec![]));
}

#[tokio::test]
async fn every_table_has_the_columns_of_the_specification() {
    let (_dir, path) = temp();
    let store = Store::open(&path, true).await.unwrap();
    for (table, columns) in [
        ("networks", "id name subnet description created_at updated_at"),
        (
            "nodes",
            "id network_id name machine_key_pub node_key_pub node_key_updated_at virtual_ip hostname os arch version \
             nat_type online last_seen authorized created_at updated_at",
        ),
        ("node_endpoints", "id node_id type ip port priority updated_at"),
        ("node_routes", "id node_id cidr priority weight enabled created_at"),
        (
            "servers",
            "id name type url region capabilities stun_ip stun_ip2 stun_port enabled server_token last_heartbeat created_at",
        ),
        ("latency_records", "id src_type src_id dst_type dst_id rtt_us recorded_at"),
        ("token_blacklist", "jti node_id reason expires_at created_at"),
        ("node_server_connections", "node_id server_id connected_at last_ping"),
        ("settings", "key value updated_at"),
        ("audit_logs", "id actor_type actor_id action target_type target_id details ip_address created_at"),
    ] {
        let rows =
            store.db.query_all_raw(sql(&format!("SELECT name FROM pragma_table_info('{table}')"))).await.unwrap();
        let have: Vec<String> = rows.iter().map(|row| row.try_get("", "name").unwrap()).collect();
        for column in columns.split_whitespace() {
            assert!(have.iter().any(|c| c == column), "{table}.{column} is missing from {have:?}");
        }
    }
}

#[tokio::test]
async fn the_schema_itself_refuses_what_must_not_be() {
    let (_dir, path) = temp();
    let store = Store::open(&path, true).await.unwrap();
    let node = |network: u32, key: &str, name: &str, ip: &str| {
        format!(
            "INSERT INTO nodes (network_id, name, machine_key_pub, virtual_ip, created_at, updated_at) \
             VALUES ({network}, '{name}', '{key}', {ip}, 0, 0)"
        )
    };
    let run =
        async |statement: String| store.db.execute_raw(sql(&statement)).await.map(|_| ()).map_err(|e| e.to_string());
    run("INSERT INTO networks (name, subnet, created_at, updated_at) VALUES ('two', '10.0.1.0/24', 0, 0)".into())
        .await
        .unwrap();
    run(node(1, "a", "a", "'10.0.1.1'")).await.unwrap();
    run(node(2, "b", "a", "'10.0.1.1'")).await.unwrap();
    run(node(1, "c", "c", "NULL")).await.unwrap();
    run(node(1, "d", "d", "NULL")).await.unwrap();
    for (statement, reason) in [
        (node(9, "e", "e", "NULL"), "FOREIGN KEY"),
        (node(1, "e", "e", "'10.0.1.1'"), "UNIQUE"),
        (node(1, "e", "a", "NULL"), "UNIQUE"),
        (node(2, "a", "e", "NULL"), "UNIQUE"),
        ("DELETE FROM networks WHERE id = 1".into(), "FOREIGN KEY"),
    ] {
        let error = run(statement.clone()).await.unwrap_err();
        assert!(error.contains(reason), "{statement}: {error}");
    }
}

#[tokio::test]
async fn a_database_keeps_what_it_was_told() {
    let (_dir, path) = temp();
    let store = Store::open(&path, true).await.unwrap();
    assert_eq!(store.setting("k").await.unwrap(), None);
    store.set_setting("k", "1").await.unwrap();
    store.set_setting("k", "2").await.unwrap();
    assert_eq!(store.setting_or_insert_with("k", || "3".into()).await.unwrap(), "2");
    assert_eq!(store.setting_or_insert_with("n", || "3".into()).await.unwrap(), "3");
    let before = store.snapshot().await.unwrap();
    store.close().await.unwrap();
    let again = Store::open(&path, false).await.unwrap();
    assert_eq!(again.setting("k").await.unwrap().as_deref(), Some("2"));
    assert_eq!(again.setting("n").await.unwrap().as_deref(), Some("3"));
    assert_eq!(again.snapshot().await.unwrap(), before);
}

#[tokio::test]
async fn any_character_may_be_in_the_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a b?mode=ro#x%20é'.db");
    drop(Store::open(&path, true).await.unwrap());
    assert!(path.exists());
    Store::open(&path, false).await.unwrap().nodes(NodeFilter::default()).await.unwrap();
}

#[tokio::test]
async fn wrong_files_are_named_with_what_to_do() {
    let (dir, path) = temp();
    let shown = path.display();
    let missing = format!("there is no database at {shown}; start the controller once to make it, or check the path");
    assert_eq!(error(&path, false).await, missing);
    assert!(!path.exists(), "looking makes no file");
    fs::write(&path, "").unwrap();
    assert_eq!(error(&path, false).await, missing);

    fs::write(&path, "this is a text file, ".repeat(100)).unwrap();
    let text = format!("{shown} is not an SQLite database; give the controller's database, or move the file away");
    assert_eq!(error(&path, false).await, text);
    assert_eq!(error(&path, true).await, text);
    assert!(fs::read_to_string(&path).unwrap().starts_with("this is a text file"), "and left alone");

    assert_eq!(
        error(dir.path(), true).await,
        format!("cannot open the database {}: it is a directory; give a file", dir.path().display())
    );
    let lost = dir.path().join("no/where.db");
    assert_eq!(
        error(&lost, true).await,
        format!(
            "cannot open the database {}: its directory does not exist; make it, or give another path",
            lost.display()
        )
    );
}

#[tokio::test]
async fn another_programs_database_is_left_alone() {
    let (_dir, path) = temp();
    fs::write(&path, "").unwrap();
    let other = sea_orm::Database::connect(format!("sqlite://{}", path.display())).await.unwrap();
    other.execute_raw(sql("CREATE TABLE bookmarks (id INTEGER)")).await.unwrap();
    other.close().await.unwrap();
    for create in [false, true] {
        assert_eq!(
            error(&path, create).await,
            format!("{} is a database, but not EdgeLink's; give another path", path.display())
        );
    }
}

#[tokio::test]
async fn a_lock_held_too_long_is_reported() {
    let (_dir, path) = temp();
    let holder = Store::open(&path, true).await.unwrap();
    let waiting = Store::open_with(&path, false, &Migrator::CURRENT, Duration::from_millis(20)).await.unwrap();
    let writer = holder.write().await.unwrap();
    let error = waiting.set_setting("k", "v").await.unwrap_err();
    assert!(matches!(&error, StoreError::Locked(p) if p.file() == Some(&*path)), "{error}");
    waiting.snapshot().await.expect("readers never wait");
    drop(writer);
    // Its rollback is on its way; the patient get through.
    Store::open(&path, false).await.unwrap().set_setting("k", "v").await.unwrap();
}

#[tokio::test]
async fn an_upgrade_keeps_a_private_copy_of_what_was() {
    let (dir, path) = temp();
    let old = Store::open(&path, true).await.unwrap();
    old.set_setting("k", "v").await.unwrap();
    let refused = Store::open_with(&path, false, &NEXT, PATIENCE).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!(
            "the database {} has an older schema; start this version's controller once to upgrade it",
            path.display()
        )
    );
    assert_eq!(backups(dir.path()), [] as [PathBuf; 0]);

    let new = Store::open_with(&path, true, &NEXT, PATIENCE).await.unwrap();
    new.db.execute_raw(sql("INSERT INTO extra VALUES (1)")).await.unwrap();
    assert_eq!(new.setting("k").await.unwrap().as_deref(), Some("v"));
    let copies = backups(dir.path());
    let [copy] = copies.as_slice() else { panic!("{copies:?}") };
    let named = format!(".backup-schema{}-", Migrator::CURRENT.names().len());
    assert!(copy.to_str().unwrap().contains(&named), "{copy:?}");
    assert_eq!(mode(copy), 0o600);
    let restored = Store::open(copy, false).await.unwrap();
    assert_eq!(restored.setting("k").await.unwrap().as_deref(), Some("v"));
    drop(Store::open_with(&path, true, &NEXT, PATIENCE).await.unwrap());
    assert_eq!(backups(dir.path()).len(), 1, "only an upgrade copies");
}

#[tokio::test]
async fn nodes_and_networks_of_older_databases_get_ipv6_addresses() {
    const OLD: Migrator = Migrator::with(|| Migrator::CURRENT.migrations().into_iter().take(1).collect());
    let (_dir, path) = temp();
    let old = Store::open_with(&path, true, &OLD, PATIENCE).await.unwrap();
    let node = "INSERT INTO nodes (network_id, name, machine_key_pub, virtual_ip, created_at, updated_at)";
    for (name, key, ip) in [("a", "01", "'10.0.1.1'"), ("waits", "02", "NULL")] {
        let key = key.repeat(32);
        old.db.execute_raw(sql(&format!("{node} VALUES (1, '{name}', '{key}', {ip}, 0, 0)"))).await.unwrap();
    }
    old.close().await.unwrap();
    let new = Store::open(&path, true).await.unwrap();
    let snapshot = new.snapshot().await.unwrap();
    let subnet6 = snapshot.networks.first().unwrap().subnet6.unwrap();
    let [member, waiting] = snapshot.nodes.as_slice() else { panic!("{:?}", snapshot.nodes) };
    let address = member.virtual_ip6.unwrap();
    assert!(subnet6.contains(&address), "{subnet6} {address}");
    assert_eq!(address.segments()[4..], [0, 0, 0, 1]);
    assert_eq!(waiting.virtual_ip6, None);
    // Whoever is authorized later gets one too, of the same prefix.
    let later = new.authorize_node(waiting.id).await.unwrap();
    assert!(subnet6.contains(&later.virtual_ip6.unwrap()));
    let other =
        crate::NewNetwork { name: "other".into(), subnet: "10.9.0.0/24".parse().unwrap(), description: String::new() };
    assert_ne!(new.create_network(other).await.unwrap().subnet6, Some(subnet6), "each network has its own");
}

#[tokio::test]
async fn a_failed_upgrade_changes_nothing() {
    let (dir, path) = temp();
    let store = Store::open(&path, true).await.unwrap();
    store.set_setting("k", "v").await.unwrap();
    let error = Store::open_with(&path, true, &BROKEN, PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("no_such_table"), "{error}");
    assert_eq!(backups(dir.path()).len(), 1);
    let again = Store::open(&path, false).await.unwrap();
    assert_eq!(again.setting("k").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (_dir, path) = temp();
    drop(Store::open_with(&path, true, &NEXT, PATIENCE).await.unwrap());
    for create in [false, true] {
        assert_eq!(
            error(&path, create).await,
            format!(
                "the database {} has schema m9999_extra, but this program knows only up to {}: a newer EdgeLink upgraded it; \
                 use that version, or restore the backup that it made",
                path.display(),
                Migrator::CURRENT.names().last().unwrap()
            )
        );
    }
}

#[tokio::test]
async fn several_processes_may_make_the_database_at_once() {
    let (_dir, path) = temp();
    let stores = futures_util::future::join_all((0..8).map(|_| Store::open(&path, true))).await;
    for store in stores {
        assert_eq!(store.unwrap().snapshot().await.unwrap().networks.len(), 1);
    }
}

fn sql(statement: &str) -> sea_orm::Statement {
    sea_orm::Statement::from_string(sea_orm::DbBackend::Sqlite, statement)
}
