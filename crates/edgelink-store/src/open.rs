//! Opening: the file, its permissions, its schema, and errors that name it.

use crate::error::{StoreError, is_locked, sqlite_code};
use crate::migration::Migrator;
use crate::store::Store;
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr, EntityTrait, SqliteTransactionMode,
    Statement, TransactionOptions, TransactionTrait,
};
use sea_orm_migration::{MigratorTraitSelf, SchemaManager, seaql_migrations};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a statement waits for another process's transaction. Ours take milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// One writes at a time, the others read.
const CONNECTIONS: u32 = 4;

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

    pub(crate) async fn open_with(
        path: &Path,
        create: bool,
        migrator: &Migrator,
        busy_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let fresh = prepare_file(path, create)?;
        let db = connect(path, busy_timeout).await.map_err(|e| explain_open(path, e))?;
        if let Err(error) = check_schema(&db, path, create, fresh, migrator).await {
            let _ = db.close().await;
            return Err(match error {
                StoreError::Database(e) => explain_open(path, e),
                other => other,
            });
        }
        Ok(Self::from_parts(db, path.to_owned()))
    }
}

/// Whether the file is (still) empty. Makes it, for our eyes only, if it is missing and may be made.
fn prepare_file(path: &Path, create: bool) -> Result<bool, StoreError> {
    let refuse = |reason: String| StoreError::Open { path: path.to_owned(), reason, denied: false };
    let deny = |e: io::Error, advice: &str| StoreError::Open {
        path: path.to_owned(),
        reason: format!("{e}; {advice}"),
        denied: e.kind() == io::ErrorKind::PermissionDenied,
    };
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(refuse("it is a directory; give a file".into())),
        Ok(meta) => {
            warn_if_readable_by_others(path, &meta);
            if meta.len() == 0 && !create { Err(StoreError::Missing(path.to_owned())) } else { Ok(meta.len() == 0) }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && !create => Err(StoreError::Missing(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => match private(path).create_new(true).open(path) {
            Ok(_) => Ok(true),
            // Another process was faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(refuse("its directory does not exist; make it, or give another path".into()))
            }
            Err(e) => Err(deny(e, "give a path that this user may write")),
        },
        Err(e) => Err(deny(e, "run as the controller's user, or as root")),
    }
}

fn private(_path: &Path) -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg_attr(not(unix), expect(unused_variables, reason = "no modes there"))]
fn warn_if_readable_by_others(path: &Path, meta: &fs::Metadata) {
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the database holds keys but others may read it; run chmod 600 on it");
    }
}

async fn connect(path: &Path, busy_timeout: Duration) -> Result<DatabaseConnection, DbErr> {
    // The URL only chooses the driver: a path may hold any character.
    let mut options = ConnectOptions::new("sqlite://edgelink");
    let file = path.to_owned();
    options
        .max_connections(CONNECTIONS)
        .acquire_timeout(Duration::from_secs(30))
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(move |sqlite| {
            sqlite
                .filename(&file)
                .create_if_missing(false)
                .journal_mode(SqliteJournalMode::Wal)
                // Whoever was told of his address keeps it, even if the power fails.
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true)
                .busy_timeout(busy_timeout)
        });
    Database::connect(options).await
}

async fn check_schema(
    db: &DatabaseConnection,
    path: &Path,
    create: bool,
    fresh: bool,
    migrator: &Migrator,
) -> Result<(), StoreError> {
    let applied = applied(SchemaManager::new(db)).await?;
    if needs_nothing(&applied, path, migrator)? {
        return Ok(());
    }
    if applied.is_empty() && !fresh && has_tables(db).await? {
        return Err(StoreError::Foreign(path.to_owned()));
    }
    if !create {
        return Err(if applied.is_empty() {
            StoreError::Missing(path.to_owned())
        } else {
            StoreError::SchemaOlder(path.to_owned())
        });
    }
    if !applied.is_empty() {
        backup(db, path, applied.len()).await?;
    }
    let options =
        TransactionOptions { sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate), ..Default::default() };
    let txn = db.begin_with_options(options).await?;
    // Another process may have been faster; `up` applies only what is missing.
    needs_nothing(&self::applied(SchemaManager::new(&txn)).await?, path, migrator)?;
    migrator.up(&txn, None).await?;
    txn.commit().await?;
    Ok(())
}

/// Whether the database has all of this build's migrations, and no others.
fn needs_nothing(applied: &[String], path: &Path, migrator: &Migrator) -> Result<bool, StoreError> {
    let known = migrator.names();
    if let Some(found) = applied.iter().rfind(|name| !known.contains(name)) {
        return Err(StoreError::SchemaNewer {
            path: path.to_owned(),
            found: found.clone(),
            known: known.last().cloned().unwrap_or_default(),
        });
    }
    Ok(applied.len() == known.len())
}

async fn applied(schema: SchemaManager<'_>) -> Result<Vec<String>, DbErr> {
    if !schema.has_table("seaql_migrations").await? {
        return Ok(Vec::new());
    }
    let rows = seaql_migrations::Entity::find().all(schema.get_connection()).await?;
    let mut names: Vec<String> = rows.into_iter().map(|row| row.version).collect();
    names.sort();
    Ok(names)
}

async fn has_tables(db: &DatabaseConnection) -> Result<bool, DbErr> {
    let any = Statement::from_string(db.get_database_backend(), "SELECT 1 FROM sqlite_master LIMIT 1");
    Ok(db.query_one_raw(any).await?.is_some())
}

/// A consistent copy beside the file, for our eyes only, named after the schema that it has.
async fn backup(db: &DatabaseConnection, path: &Path, schema: usize) -> Result<(), StoreError> {
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".backup-schema{schema}-{seconds}"));
    let copy = PathBuf::from(name);
    let fail = |reason: String| StoreError::Backup { path: copy.clone(), reason };
    private(&copy).create_new(true).open(&copy).map_err(|e| fail(e.to_string()))?;
    let Some(target) = copy.to_str() else { return Err(fail("its name is not UTF-8".into())) };
    let statement = Statement::from_sql_and_values(db.get_database_backend(), "VACUUM INTO ?", [target.into()]);
    db.execute_raw(statement).await.map_err(|e| fail(e.to_string()))?;
    tracing::info!(backup = %copy.display(), "copied the database before its upgrade");
    Ok(())
}

/// SQLite's words about a file, with the file and what to do.
fn explain_open(path: &Path, error: DbErr) -> StoreError {
    let path = path.to_owned();
    if is_locked(&error) {
        return StoreError::Locked(path);
    }
    let code = sqlite_code(&error);
    let reason = match code {
        Some(26) => return StoreError::NotADatabase(path),
        Some(11) => "it is damaged; restore a backup".to_owned(),
        Some(8) => "it is read-only; run as the controller's user, or as root".to_owned(),
        Some(14) => {
            "permission denied, or its directory is read-only; run as the controller's user, or as root".to_owned()
        }
        Some(13) => "the disk is full".to_owned(),
        _ => error.to_string(),
    };
    StoreError::Open { path, reason, denied: matches!(code, Some(8 | 14)) }
}
