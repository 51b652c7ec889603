//! Opening: the schema, made, upgraded after a backup, or refused.

use crate::error::StoreError;
use crate::location::{Location, MariaDbUrl};
use crate::migration::Migrator;
use crate::store::Store;
use crate::{dump, mariadb, sqlite};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, SqliteTransactionMode,
    TransactionOptions, TransactionTrait,
};
use sea_orm_migration::{MigratorTraitSelf, SchemaManager, seaql_migrations};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How long an SQLite statement waits for another process's transaction. Ours take milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a MariaDB statement waits for another's lock, in seconds.
const LOCK_WAIT: u32 = 5;
/// How long a controller waits for another one that is upgrading the same MariaDB.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(120);
/// A table that is there while the first schema is being made: MariaDB cannot undo DDL, but it can begin again.
const UNFINISHED: &str = "edgelink_unfinished";

impl Store {
    /// Opens the SQLite database at `path`.
    ///
    /// With `create` (the controller) a missing file is made with mode 0600 — its directory must exist — and an older
    /// schema is upgraded, after a copy of the file. Without (`edgelink-ctl`) both are refused.
    ///
    /// # Errors
    /// Each names the file and says what to do.
    pub async fn open(path: impl AsRef<Path>, create: bool) -> Result<Self, StoreError> {
        Self::open_with(path.as_ref(), create, &Migrator::CURRENT, BUSY_TIMEOUT).await
    }

    /// Opens the database of a MariaDB server. The database must exist; with `backups` (the controller) its schema is
    /// made, or upgraded after a dump into that directory. Without (`edgelink-ctl`) both are refused.
    ///
    /// # Errors
    /// Each names the database, without the password, and says what to do.
    pub async fn open_mariadb(url: &MariaDbUrl, backups: Option<&Path>) -> Result<Self, StoreError> {
        Self::open_mariadb_with(url, backups, &Migrator::CURRENT, LOCK_WAIT).await
    }

    /// Opens what is there, wherever it is; nothing is made or upgraded.
    ///
    /// # Errors
    /// Each names the database and says what to do.
    pub async fn open_existing(location: &Location) -> Result<Self, StoreError> {
        match location {
            Location::Sqlite(path) => Self::open(path, false).await,
            Location::MariaDb(url) => Self::open_mariadb(url, None).await,
        }
    }

    pub(crate) async fn open_with(
        path: &Path,
        create: bool,
        migrator: &Migrator,
        busy_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let fresh = sqlite::prepare_file(path, create)?;
        let db = sqlite::connect(path, busy_timeout).await.map_err(|e| sqlite::explain_open(path, e))?;
        if let Err(error) = prepare_sqlite(&db, path, create, fresh, migrator).await {
            let _ = db.close().await;
            return Err(match error {
                StoreError::Database(e) => sqlite::explain_open(path, e),
                other => other,
            });
        }
        Ok(Self::from_parts(db, path.into()))
    }

    pub(crate) async fn open_mariadb_with(
        url: &MariaDbUrl,
        backups: Option<&Path>,
        migrator: &Migrator,
        lock_wait: u32,
    ) -> Result<Self, StoreError> {
        let mut db = mariadb::connect(url, lock_wait).await?;
        if backups.is_some() && collate(&db).await.map_err(|e| mariadb::explain(url, e))? {
            // A connection remembers the collation that its database had when it was made.
            let _ = db.close().await;
            db = mariadb::connect(url, lock_wait).await?;
        }
        if let Err(error) = prepare_mariadb(&db, url, backups, migrator).await {
            let _ = db.close().await;
            return Err(match error {
                StoreError::Database(e) => mariadb::explain(url, e),
                other => other,
            });
        }
        Ok(Self::from_parts(db, Location::MariaDb(url.clone())))
    }
}

async fn prepare_sqlite(
    db: &DatabaseConnection,
    path: &Path,
    create: bool,
    fresh: bool,
    migrator: &Migrator,
) -> Result<(), StoreError> {
    let location = Location::from(path);
    let applied = applied(SchemaManager::new(db)).await?;
    if needs_nothing(&applied, &location, migrator)? {
        return Ok(());
    }
    if applied.is_empty() && !fresh && sqlite::has_tables(db).await? {
        return Err(StoreError::Foreign(location));
    }
    if !create {
        return Err(if applied.is_empty() { StoreError::Missing(location) } else { StoreError::SchemaOlder(location) });
    }
    if !applied.is_empty() {
        let copy = sqlite::backup_path(path, &backup_suffix(applied.len()));
        sqlite::copy(db, &copy).await?;
        tracing::info!(backup = %copy.display(), "copied the database before its upgrade");
    }
    let options =
        TransactionOptions { sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate), ..Default::default() };
    let txn = db.begin_with_options(options).await?;
    // Another process may have been faster; `up` applies only what is missing.
    needs_nothing(&self::applied(SchemaManager::new(&txn)).await?, &location, migrator)?;
    migrator.up(&txn, None).await?;
    txn.commit().await?;
    Ok(())
}

async fn prepare_mariadb(
    db: &DatabaseConnection,
    url: &MariaDbUrl,
    backups: Option<&Path>,
    migrator: &Migrator,
) -> Result<(), StoreError> {
    let location = Location::MariaDb(url.clone());
    let applied = applied(SchemaManager::new(db)).await?;
    if needs_nothing(&applied, &location, migrator)? {
        return Ok(());
    }
    let Some(backups) = backups else {
        return Err(match (applied.is_empty(), tables(db).await?.is_empty()) {
            (false, _) => StoreError::SchemaOlder(location),
            (true, true) => StoreError::Missing(location),
            (true, false) if has_table(db, UNFINISHED).await? => StoreError::Missing(location),
            (true, false) => StoreError::Foreign(location),
        });
    };
    // The lock belongs to this connection, which the transaction keeps; it ends with the process, however that ends.
    let lock = lock_schema(db, &location).await?;
    let outcome = migrate_mariadb(db, &location, backups, migrator).await;
    let _ = lock.execute_raw(mariadb::sql("DO RELEASE_ALL_LOCKS()")).await;
    let _ = lock.rollback().await;
    outcome
}

/// Gives an empty database the collation that its tables will inherit. Whether that was necessary.
async fn collate(db: &DatabaseConnection) -> Result<bool, DbErr> {
    if !tables(db).await?.is_empty() {
        return Ok(false);
    }
    let statement = format!("ALTER DATABASE CHARACTER SET utf8mb4 COLLATE {}", mariadb::COLLATION);
    db.execute_raw(mariadb::sql(&statement)).await?;
    Ok(true)
}

async fn lock_schema(db: &DatabaseConnection, location: &Location) -> Result<DatabaseTransaction, StoreError> {
    let txn = db.begin().await?;
    let question = format!("SELECT GET_LOCK(CONCAT('edgelink:', MD5(DATABASE())), {})", UPGRADE_PATIENCE.as_secs());
    let got: Option<i64> = match txn.query_one_raw(mariadb::sql(&question)).await? {
        Some(row) => row.try_get_by_index(0)?,
        None => None,
    };
    if got == Some(1) { Ok(txn) } else { Err(StoreError::Locked(location.clone())) }
}

async fn migrate_mariadb(
    db: &DatabaseConnection,
    location: &Location,
    backups: &Path,
    migrator: &Migrator,
) -> Result<(), StoreError> {
    // Another controller may have been faster.
    let applied = applied(SchemaManager::new(db)).await?;
    if needs_nothing(&applied, location, migrator)? {
        return Ok(());
    }
    if !applied.is_empty() {
        let copy = backups.join(format!("mariadb{}.sql", backup_suffix(applied.len())));
        dump::write(db, &copy).await?;
        tracing::info!(backup = %copy.display(), "dumped the database before its upgrade");
        migrator.up(db, None).await?;
        db.execute_raw(mariadb::sql(&format!("DROP TABLE IF EXISTS {UNFINISHED}"))).await?;
        return Ok(());
    }
    let found = tables(db).await?;
    if !found.is_empty() && !found.iter().any(|table| table == UNFINISHED) {
        return Err(StoreError::Foreign(location.clone()));
    }
    let run = async |statement: &str| db.execute_raw(mariadb::sql(statement)).await;
    let mut left: Vec<String> = found.into_iter().filter(|table| table != UNFINISHED).collect();
    if !left.is_empty() {
        tracing::warn!("the database's first schema was not finished; begun again");
    }
    // Foreign keys demand an order: whatever nobody refers to any more goes, until nothing is left.
    while !left.is_empty() {
        let before = left.len();
        let mut refusal = None;
        for table in std::mem::take(&mut left) {
            if let Err(error) = run(&format!("DROP TABLE `{}`", table.replace('`', "``"))).await {
                refusal = Some(error);
                left.push(table);
            }
        }
        if let (Some(error), true) = (refusal, left.len() == before) {
            return Err(error.into());
        }
    }
    run(&format!("CREATE TABLE IF NOT EXISTS {UNFINISHED} (id INTEGER)")).await?;
    migrator.up(db, None).await?;
    run(&format!("DROP TABLE {UNFINISHED}")).await?;
    Ok(())
}

/// Whether the database has all of this build's migrations, and no others.
fn needs_nothing(applied: &[String], location: &Location, migrator: &Migrator) -> Result<bool, StoreError> {
    let known = migrator.names();
    if let Some(found) = applied.iter().rfind(|name| !known.contains(name)) {
        return Err(StoreError::SchemaNewer {
            location: location.clone(),
            found: found.clone(),
            known: known.last().cloned().unwrap_or_default(),
        });
    }
    Ok(applied.len() == known.len())
}

/// The migrations that a database has, oldest first.
pub(crate) async fn applied(schema: SchemaManager<'_>) -> Result<Vec<String>, DbErr> {
    if !schema.has_table("seaql_migrations").await? {
        return Ok(Vec::new());
    }
    let rows = seaql_migrations::Entity::find().all(schema.get_connection()).await?;
    let mut names: Vec<String> = rows.into_iter().map(|row| row.version).collect();
    names.sort();
    Ok(names)
}

async fn tables(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let list = "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()";
    db.query_all_raw(mariadb::sql(list)).await?.iter().map(|row| row.try_get_by_index(0)).collect()
}

async fn has_table(db: &DatabaseConnection, name: &str) -> Result<bool, DbErr> {
    SchemaManager::new(db).has_table(name).await
}

/// Backups are named after the schema that they have.
fn backup_suffix(schema: usize) -> String {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    format!(".backup-schema{schema}-{seconds}")
}
