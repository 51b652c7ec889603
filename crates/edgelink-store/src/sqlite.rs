//! SQLite: the file, its permissions, the copy before an upgrade, and SQLite's words about a file.

use crate::error::{StoreError, is_locked, sqlite_code};
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr, Statement};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// One writes at a time, the others read.
const CONNECTIONS: u32 = 4;
/// Between two attempts to open a file that others are making.
const RETRY: Duration = Duration::from_millis(10);

/// Whether the file is (still) empty. Makes it, for our eyes only, if it is missing and may be made.
pub(crate) fn prepare_file(path: &Path, create: bool) -> Result<bool, StoreError> {
    let refuse = |reason: String| StoreError::Open { location: path.into(), reason, denied: false };
    let deny = |e: io::Error, advice: &str| StoreError::Open {
        location: path.into(),
        reason: format!("{e}; {advice}"),
        denied: e.kind() == io::ErrorKind::PermissionDenied,
    };
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(refuse("it is a directory; give a file".into())),
        Ok(meta) => {
            warn_if_readable_by_others(path, &meta);
            if meta.len() == 0 && !create { Err(StoreError::Missing(path.into())) } else { Ok(meta.len() == 0) }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && !create => Err(StoreError::Missing(path.into())),
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

/// To make a file that only we may read.
pub(crate) fn private(_path: &Path) -> fs::OpenOptions {
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

pub(crate) async fn connect(path: &Path, busy_timeout: Duration) -> Result<DatabaseConnection, DbErr> {
    let until = Instant::now() + busy_timeout;
    loop {
        match connect_once(path, busy_timeout).await {
            // Of several processes that give a fresh file its WAL at once, SQLite refuses some without waiting.
            Err(error) if is_locked(&error) && Instant::now() < until => sleep(RETRY).await,
            outcome => return outcome,
        }
    }
}

async fn connect_once(path: &Path, busy_timeout: Duration) -> Result<DatabaseConnection, DbErr> {
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

pub(crate) async fn has_tables(db: &DatabaseConnection) -> Result<bool, DbErr> {
    let any = Statement::from_string(db.get_database_backend(), "SELECT 1 FROM sqlite_master LIMIT 1");
    Ok(db.query_one_raw(any).await?.is_some())
}

/// A consistent copy at `target`, which must not exist, for our eyes only.
pub(crate) async fn copy(db: &DatabaseConnection, target: &Path) -> Result<(), StoreError> {
    let fail = |reason: String| StoreError::Backup { path: target.to_owned(), reason };
    let Some(name) = target.to_str() else { return Err(fail("its name is not UTF-8".into())) };
    private(target).create_new(true).open(target).map_err(|e| fail(e.to_string()))?;
    let statement = Statement::from_sql_and_values(db.get_database_backend(), "VACUUM INTO ?", [name.into()]);
    if let Err(error) = db.execute_raw(statement).await {
        // Half a copy looks like a whole one.
        let _ = fs::remove_file(target);
        return Err(fail(error.to_string()));
    }
    Ok(())
}

/// Where the copy before an upgrade goes.
pub(crate) fn backup_path(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// SQLite's words about a file, with the file and what to do.
pub(crate) fn explain_open(path: &Path, error: DbErr) -> StoreError {
    if is_locked(&error) {
        return StoreError::Locked(path.into());
    }
    let code = sqlite_code(&error);
    let reason = match code {
        Some(26) => return StoreError::NotADatabase(path.to_owned()),
        Some(11) => "it is damaged; restore a backup".to_owned(),
        Some(8) => "it is read-only; run as the controller's user, or as root".to_owned(),
        Some(14) => {
            "permission denied, or its directory is read-only; run as the controller's user, or as root".to_owned()
        }
        Some(13) => "the disk is full".to_owned(),
        _ => error.to_string(),
    };
    StoreError::Open { location: path.into(), reason, denied: matches!(code, Some(8 | 14)) }
}
