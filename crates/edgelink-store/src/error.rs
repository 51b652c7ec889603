//! What can go wrong, in sentences that say what to do.

use sea_orm::{DbErr, RuntimeErr};
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
    /// The file does not exist and may not be made.
    #[error("there is no database at {}; start the controller once to make it, or check the path", .0.display())]
    Missing(PathBuf),
    /// The file exists, and is no SQLite database.
    #[error("{} is not an SQLite database; give the controller's database, or move the file away", .0.display())]
    NotADatabase(PathBuf),
    /// An SQLite database of some other program.
    #[error("{} is a database, but not EdgeLink's; give another path", .0.display())]
    Foreign(PathBuf),
    /// The file or its directory cannot be opened.
    #[error("cannot open the database {}: {reason}", .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
        /// Whether this user lacks the permission.
        denied: bool,
    },
    /// Another process holds the database too long.
    #[error("the database {} is locked by another process; try again, or stop the process that holds it", .0.display())]
    Locked(PathBuf),
    /// Made by a newer EdgeLink.
    #[error(
        "the database {} has schema {found}, but this program knows only up to {known}: a newer EdgeLink upgraded it; \
         use that version, or restore the backup that it made", .path.display()
    )]
    SchemaNewer {
        /// The file.
        path: PathBuf,
        /// Newest migration in the database.
        found: String,
        /// Newest migration of this program.
        known: String,
    },
    /// Made by an older EdgeLink and not upgraded yet.
    #[error("the database {} has an older schema; start this version's controller once to upgrade it", .0.display())]
    SchemaOlder(PathBuf),
    /// The copy before an upgrade failed, so the upgrade did not begin.
    #[error("cannot back up the database to {} before its upgrade, so nothing was changed: {reason}", .path.display())]
    Backup {
        /// Where the copy should have gone.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A row holds something that no EdgeLink wrote.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// Anything else that the database said.
    #[error("the database failed: {0}")]
    Database(DbErr),
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        Self::Database(error)
    }
}

/// SQLite's primary result code, if `error` carries one.
pub(crate) fn sqlite_code(error: &DbErr) -> Option<u32> {
    let (DbErr::Conn(RuntimeErr::SqlxError(e))
    | DbErr::Exec(RuntimeErr::SqlxError(e))
    | DbErr::Query(RuntimeErr::SqlxError(e))) = error
    else {
        return None;
    };
    let code: u32 = e.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

/// `SQLITE_BUSY` or `SQLITE_LOCKED`.
pub(crate) fn is_locked(error: &DbErr) -> bool {
    matches!(sqlite_code(error), Some(5 | 6))
}
