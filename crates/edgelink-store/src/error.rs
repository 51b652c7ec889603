//! What can go wrong, in sentences that say what to do.

use crate::location::Location;
use sea_orm::{DbErr, RuntimeErr};
use sqlx::mysql::MySqlDatabaseError;
use sqlx::sqlite::SqliteError;
use std::path::PathBuf;

/// Why a store operation failed. The texts are fit for an administrator; nothing of a secret is in them.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The row does not exist.
    #[error("there is no {what} {key}")]
    NotFound {
        /// `node`, `network`, …
        what: &'static str,
        /// The id or name that was asked for.
        key: String,
    },
    /// A unique name or value is taken.
    #[error("{0}")]
    Conflict(String),
    /// The value is malformed.
    #[error("{0}")]
    Invalid(String),
    /// The caller's idea of the row is out of date.
    #[error("it was changed meanwhile; read it again, and repeat the change if it is still wanted")]
    Stale,
    /// Something still refers to the row.
    #[error("{0}")]
    InUse(String),
    /// No free overlay address.
    #[error("no free address is left in the network's subnet {0}; delete unused nodes or enlarge the subnet")]
    PoolExhausted(String),
    /// A key statement older than the one on record, or another one with its number (DESIGN §2: seq only rises).
    #[error("the key statement's sequence number {given} is not above the stored {stored}")]
    StaleKey {
        /// On record.
        stored: u64,
        /// Offered.
        given: u64,
    },
    /// The database does not exist, or is empty, and may not be made.
    #[error("there is no database at {0}; start the controller once to make it, or check the {what}", what = what(.0))]
    Missing(Location),
    /// The file exists, and is no SQLite database.
    #[error("{} is not an SQLite database; give the controller's database, or move the file away", .0.display())]
    NotADatabase(PathBuf),
    /// A database of some other program.
    #[error("{0} is a database, but not EdgeLink's; give another {what}", what = what(.0))]
    Foreign(Location),
    /// The file or its directory cannot be opened, or the server does not let us in.
    #[error("cannot open the database {location}: {reason}")]
    Open {
        /// The file or server.
        location: Location,
        /// Why, and what to do.
        reason: String,
        /// Whether this user lacks the permission.
        denied: bool,
    },
    /// Another process holds the database too long.
    #[error("the database {0} is locked by another process; try again, or stop the process that holds it")]
    Locked(Location),
    /// Made by a newer EdgeLink.
    #[error(
        "the database {location} has schema {found}, but this program knows only up to {known}: a newer EdgeLink upgraded \
         it; use that version, or restore the backup that it made"
    )]
    SchemaNewer {
        /// The file or server.
        location: Location,
        /// Newest migration in the database.
        found: String,
        /// Newest migration of this program.
        known: String,
    },
    /// Made by an older EdgeLink and not upgraded yet.
    #[error("the database {0} has an older schema; start this version's controller once to upgrade it")]
    SchemaOlder(Location),
    /// A copy failed. Before an upgrade: the upgrade did not begin.
    #[error("cannot back up the database to {}, so nothing was changed: {reason}", .path.display())]
    Backup {
        /// Where the copy should have gone.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A row holds something that no EdgeLink wrote.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// It accepts connections, perhaps, and says nothing.
    #[error("the database does not answer")]
    Silent,
    /// Another controller has become the active one: what the former one still wanted to write is not written.
    #[error("another controller is the active one now; nothing was written")]
    LeaseLost,
    /// Anything else that the database said.
    #[error("the database failed: {0}")]
    Database(DbErr),
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

/// What the administrator gave: a path, or a URL.
fn what(location: &Location) -> &'static str {
    if location.is_shared() { "URL" } else { "path" }
}

fn driver_error(error: &DbErr) -> Option<&dyn sqlx::error::DatabaseError> {
    let (DbErr::Conn(RuntimeErr::SqlxError(e))
    | DbErr::Exec(RuntimeErr::SqlxError(e))
    | DbErr::Query(RuntimeErr::SqlxError(e))) = error
    else {
        return None;
    };
    e.as_database_error()
}

/// SQLite's primary result code, if `error` carries one.
pub(crate) fn sqlite_code(error: &DbErr) -> Option<u32> {
    let error = driver_error(error)?.try_downcast_ref::<SqliteError>()?;
    let code: u32 = sqlx::error::DatabaseError::code(error)?.parse().ok()?;
    Some(code & 0xff)
}

/// MariaDB's error number, if `error` carries one.
pub(crate) fn mariadb_number(error: &DbErr) -> Option<u16> {
    Some(driver_error(error)?.try_downcast_ref::<MySqlDatabaseError>()?.number())
}

/// Somebody else holds what we need: `SQLITE_BUSY` and `SQLITE_LOCKED`, MariaDB's lock wait timeout and deadlock. Trying
/// again may help.
pub(crate) fn is_locked(error: &DbErr) -> bool {
    matches!(sqlite_code(error), Some(5 | 6)) || matches!(mariadb_number(error), Some(1205 | 1213))
}

/// The database answers and does not like what it was given, or what it holds: another write may fare better.
pub(crate) fn answered(error: &StoreError) -> bool {
    match error {
        StoreError::Database(error) => driver_error(error).is_some(),
        StoreError::Locked(_) | StoreError::Silent | StoreError::LeaseLost => false,
        _ => true,
    }
}
