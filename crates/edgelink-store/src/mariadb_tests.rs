//! Opening a MariaDB: schema, upgrades, what a wrong database is called, and connections that were left half way.

use crate::error::StoreError;
use crate::location::MariaDbUrl;
use crate::migration::Migrator;
use crate::open_tests::{BROKEN, NEXT, backups};
use crate::{NewNetwork, Store, mariadb};
use edgelink_test_mariadb::{Database, PASSWORD};
use sea_orm::ConnectionTrait;
use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::pin::pin;
use std::task::Poll;

fn url(database: &Database) -> MariaDbUrl {
    MariaDbUrl::parse(&database.url()).unwrap()
}

async fn open(database: &Database, dir: &tempfile::TempDir) -> Store {
    Store::open_mariadb(&url(database), Some(dir.path())).await.unwrap()
}

fn place() -> (Database, tempfile::TempDir) {
    (Database::new(), tempfile::tempdir().unwrap())
}

/// The words of a refusal, which never hold the password.
async fn refusal(url: &str, migrator: &Migrator, backups: Option<&tempfile::TempDir>) -> String {
    let url = MariaDbUrl::parse(url).unwrap();
    let error = Store::open_mariadb_with(&url, backups.map(tempfile::TempDir::path), migrator, 5).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains(PASSWORD) && !text.contains("s3cret"), "{text}");
    error.to_string()
}

#[tokio::test]
async fn the_schema_is_the_same_and_compares_bytes() {
    let (database, dir) = place();
    let store = open(&database, &dir).await;
    for table in database.sql("SHOW TABLES").lines() {
        let status = database.sql(&format!(
            "SELECT engine, table_collation FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '{table}'"
        ));
        assert_eq!(status, "InnoDB\tutf8mb4_nopad_bin\n", "{table}");
    }
    let file = tempfile::tempdir().unwrap();
    let sqlite = Store::open(file.path().join("x.db"), true).await.unwrap();
    let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let statement = |text: &str| sea_orm::Statement::from_string(sea_orm::DbBackend::Sqlite, text);
    let mut names = Vec::new();
    for row in sqlite.db.query_all_raw(statement(tables)).await.unwrap() {
        let table: String = row.try_get("", "name").unwrap();
        let columns = format!("SELECT name FROM pragma_table_info('{table}') ORDER BY name");
        let columns: Vec<String> = sqlite
            .db
            .query_all_raw(statement(&columns))
            .await
            .unwrap()
            .iter()
            .map(|row| row.try_get("", "name").unwrap())
            .collect();
        let here = database.sql(&format!(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = '{table}' \
             ORDER BY CAST(column_name AS CHAR CHARACTER SET binary)"
        ));
        assert_eq!(here.lines().collect::<Vec<_>>(), columns, "{table}");
        names.push(table);
    }
    let here = database.sql("SHOW TABLES");
    let mut here: Vec<_> = here.lines().map(str::to_owned).collect();
    here.sort();
    assert_eq!(here, names);
    for name in ["lab", "Lab", "läb", "lab."] {
        let new = NewNetwork { name: name.into(), subnet: "10.9.0.0/24".parse().unwrap(), description: String::new() };
        store.create_network(new).await.unwrap();
    }
    assert_eq!(store.find_network("Lab").await.unwrap().record.name, "Lab");
    assert!(store.find_network("lab ").await.is_err());
}

#[tokio::test]
async fn the_schema_itself_refuses_what_must_not_be() {
    let (database, dir) = place();
    let store = open(&database, &dir).await;
    let node = |network: u32, key: &str, name: &str, ip: &str| {
        format!(
            "INSERT INTO nodes (network_id, name, machine_key_pub, virtual_ip, created_at, updated_at) \
             VALUES ({network}, '{name}', '{key}', {ip}, 0, 0)"
        )
    };
    let run = async |statement: String| {
        store.db.execute_raw(mariadb::sql(&statement)).await.map(|_| ()).map_err(|e| e.to_string())
    };
    run("INSERT INTO networks (name, subnet, created_at, updated_at) VALUES ('two', '10.0.1.0/24', 0, 0)".into())
        .await
        .unwrap();
    run(node(1, "a", "a", "'10.0.1.1'")).await.unwrap();
    run(node(2, "b", "a", "'10.0.1.1'")).await.unwrap();
    run(node(1, "c", "c", "NULL")).await.unwrap();
    run(node(1, "d", "d", "NULL")).await.unwrap();
    for (statement, reason) in [
        (node(9, "e", "e", "NULL"), "foreign key"),
        (node(1, "e", "e", "'10.0.1.1'"), "Duplicate"),
        (node(1, "e", "a", "NULL"), "Duplicate"),
        (node(2, "a", "e", "NULL"), "Duplicate"),
        (node(1, "f", &"x".repeat(256), "NULL"), "too long"),
        ("DELETE FROM networks WHERE id = 1".into(), "foreign key"),
    ] {
        let error = run(statement.clone()).await.unwrap_err();
        assert!(error.contains(reason), "{statement}: {error}");
    }
}

#[tokio::test]
async fn wrong_servers_and_databases_are_named_with_what_to_do() {
    let (database, dir) = place();
    let good = database.url();
    let shown = url(&database).to_string();
    let missing = format!("there is no database at {shown}; start the controller once to make it, or check the URL");
    assert_eq!(refusal(&good, &Migrator::CURRENT, None).await, missing);
    assert_eq!(database.sql("SHOW TABLES"), "", "looking makes nothing");

    let denied = refusal(&good.replace("s3cret", "wrong"), &Migrator::CURRENT, Some(&dir)).await;
    assert!(
        denied.contains("Access denied for user 'edgelink'") && denied.contains("check the URL's user"),
        "{denied}"
    );
    let name = good.rsplit('/').next().unwrap();
    let unknown = refusal(&good.replace(name, "edgelink_nowhere"), &Migrator::CURRENT, Some(&dir)).await;
    assert!(unknown.ends_with("the server has no such database; make it: CREATE DATABASE …"), "{unknown}");
    let closed = format!("mysql://el:s3cret@127.0.0.1:1/{name}");
    let unreachable = refusal(&closed, &Migrator::CURRENT, Some(&dir)).await;
    assert!(
        unreachable.starts_with(&format!("cannot open the database mysql://el@127.0.0.1:1/{name}: "))
            && unreachable.ends_with("; is the server running, and the URL right?"),
        "{unreachable}"
    );

    database.sql("CREATE TABLE bookmarks (id INTEGER)");
    for backups in [None, Some(&dir)] {
        let foreign = format!("{shown} is a database, but not EdgeLink's; give another URL");
        assert_eq!(refusal(&good, &Migrator::CURRENT, backups).await, foreign);
    }
}

#[tokio::test]
async fn an_upgrade_keeps_a_private_dump_that_can_be_restored() {
    let (database, dir) = place();
    let old = open(&database, &dir).await;
    let odd = "it's \"odd\" \\ \n\t%_`ß—🦀";
    old.set_setting("k", odd).await.unwrap();
    let refused = refusal(&database.url(), &NEXT, None).await;
    assert!(refused.ends_with("has an older schema; start this version's controller once to upgrade it"), "{refused}");
    let before = old.snapshot().await.unwrap();

    let new = Store::open_mariadb_with(&url(&database), Some(dir.path()), &NEXT, 5).await.unwrap();
    new.db.execute_raw(mariadb::sql("INSERT INTO extra VALUES (1)")).await.unwrap();
    let copies = backups(dir.path());
    let [copy] = copies.as_slice() else { panic!("{copies:?}") };
    assert_eq!(fs::metadata(copy).unwrap().permissions().mode() & 0o777, 0o600);

    let newer = refusal(&database.url(), &Migrator::CURRENT, Some(&dir)).await;
    assert!(newer.contains("has schema m9999_extra, but this program knows only up to"), "{newer}");
    drop(Store::open_mariadb_with(&url(&database), Some(dir.path()), &NEXT, 5).await.unwrap());
    assert_eq!(backups(dir.path()).len(), 1, "only an upgrade dumps");

    let elsewhere = Database::new();
    elsewhere.sql(&format!("SOURCE {}", copy.display()));
    let restored = Store::open_mariadb(&url(&elsewhere), None).await.unwrap();
    assert_eq!(restored.snapshot().await.unwrap(), before);
    assert_eq!(restored.setting("k").await.unwrap().as_deref(), Some(odd));
    assert!(restored.check().await.unwrap().is_sound());
}

#[tokio::test]
async fn a_failed_upgrade_can_be_tried_again() {
    let (database, dir) = place();
    open(&database, &dir).await.set_setting("k", "v").await.unwrap();
    let error = refusal(&database.url(), &BROKEN, Some(&dir)).await;
    assert!(error.contains("no_such_table"), "{error}");
    assert_eq!(backups(dir.path()).len(), 1);
    // What came before the failure stays, and is not done again.
    Store::open_mariadb_with(&url(&database), Some(dir.path()), &NEXT, 5).await.unwrap();
}

#[tokio::test]
async fn a_first_schema_that_was_cut_off_is_begun_again() {
    for cut_after in ["networks", "nodes", "servers", "change_counter"] {
        let (database, dir) = place();
        drop(open(&database, &dir).await);
        // As a process leaves it that was killed while it made the tables: the last ones are missing, and nothing is
        // recorded.
        database.sql(
            "CREATE TABLE edgelink_unfinished (id INTEGER); DELETE FROM seaql_migrations; SET foreign_key_checks = 0",
        );
        let order = [
            "networks",
            "auth_keys",
            "nodes",
            "node_endpoints",
            "node_routes",
            "servers",
            "latency_records",
            "token_blacklist",
            "node_server_connections",
            "settings",
            "audit_logs",
            "admins",
            "change_log",
            "change_counter",
        ];
        let from = order.iter().position(|t| *t == cut_after).unwrap() + 1;
        for table in order.iter().skip(from) {
            database.sql(&format!("SET foreign_key_checks = 0; DROP TABLE {table}"));
        }
        let missing = refusal(&database.url(), &Migrator::CURRENT, None).await;
        assert!(missing.starts_with("there is no database"), "{missing}");
        let store = open(&database, &dir).await;
        assert!(store.check().await.unwrap().is_sound());
        assert_eq!(store.snapshot().await.unwrap().networks.len(), 1);
        assert_eq!(database.sql("SHOW TABLES LIKE 'edgelink_unfinished'"), "");
    }
}

#[tokio::test]
async fn several_controllers_may_make_the_database_at_once() {
    let (database, dir) = place();
    let at = url(&database);
    let stores = futures_util::future::join_all((0..4).map(|_| Store::open_mariadb(&at, Some(dir.path())))).await;
    for store in stores {
        assert_eq!(store.unwrap().snapshot().await.unwrap().networks.len(), 1);
    }
}

#[tokio::test]
async fn a_lock_held_too_long_is_reported() {
    let (database, dir) = place();
    let (holder, waiting) = (open(&database, &dir).await, open(&database, &dir).await);
    let writer = holder.write().await.unwrap();
    let impatient = Store::open_mariadb_with(&url(&database), None, &Migrator::CURRENT, 0).await.unwrap();
    let error = impatient.set_setting("k", "v").await.unwrap_err();
    assert!(matches!(&error, StoreError::Locked(_)), "{error}");
    waiting.snapshot().await.expect("readers never wait");
    drop(writer);
    waiting.set_setting("k", "v").await.unwrap();
}

/// Polls `future` at most `polls` times, then drops it.
async fn cut<F: Future>(polls: usize, future: F) -> bool {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        future.as_mut().poll(cx).map(|_| true)
    })
    .await
}

#[tokio::test]
async fn whoever_gets_a_connection_after_a_dropped_future_gets_his_own_answers() {
    let (database, dir) = place();
    let store = open(&database, &dir).await;
    store.set_setting("k", "v").await.unwrap();
    let mut cuts = 0;
    for polls in 1..60 {
        for _ in 0..3 {
            let done = cut(polls, store.snapshot()).await & cut(polls, store.set_setting("k", "v")).await;
            cuts += usize::from(!done);
            assert_eq!(store.setting("k").await.unwrap().as_deref(), Some("v"), "{polls}");
            assert_eq!(store.networks().await.unwrap().len(), 1, "{polls}");
        }
    }
    assert!(cuts > 8, "{cuts}");
    // The pool rolls back what was cut off in a task of its own, which may have to be let run first.
    let open = || {
        database.sql(
            "SELECT COUNT(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p \
             ON p.id = t.trx_mysql_thread_id WHERE p.db = DATABASE()",
        )
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while open() != "0\n" {
        assert!(std::time::Instant::now() < deadline, "a transaction was left open");
        // InnoDB renews that table only when nobody has read it for 0.1 s.
        tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    }
}
