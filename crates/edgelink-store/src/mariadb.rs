//! MariaDB: the pool, what a session must be like, the collation, and the server's words when it refuses.

use crate::error::{StoreError, mariadb_number};
use crate::location::{Location, MariaDbUrl};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, RuntimeErr, SqlxMySqlConnector, Statement};
use sqlx::mysql::{MySqlConnection, MySqlPoolOptions};
use sqlx::{ConnectOptions as _, Executor as _, Row as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Writers queue for one row anyway; the others read.
const CONNECTIONS: u32 = 8;
/// To get a connection, a new one included.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that takes longer to answer when it is given back is closed instead.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// The oldest release series that is looked after by anybody: names, collations and `@@in_transaction` are all older.
const OLDEST: (u32, u32) = (10, 5);

/// What every session is told, whatever the server's defaults are.
///
/// READ COMMITTED for writers: they hold the counter's row, so nothing else that they read can change, and the gaps that
/// REPEATABLE READ would lock are not. Readers that need one moment ask for REPEATABLE READ (`Store::read`).
const SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_AUTO_VALUE_ON_ZERO', \
     SESSION foreign_key_checks = 1, \
     SESSION default_storage_engine = 'InnoDB', SESSION autocommit = 1";
const ISOLATION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// Names compare as on SQLite: byte by byte, spaces at the end included.
pub(crate) const COLLATION: &str = "utf8mb4_nopad_bin";

/// `lock_wait`: how long a statement waits for somebody's lock, in seconds.
pub(crate) async fn connect(url: &MariaDbUrl, lock_wait: u32) -> Result<DatabaseConnection, StoreError> {
    let pool = MySqlPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(Duration::from_secs(600))
        .max_lifetime(Duration::from_secs(3600))
        // The server may have been restarted, or have closed an idle connection.
        .test_before_acquire(true)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                connection.execute(SESSION).await?;
                let wait = format!("SET SESSION innodb_lock_wait_timeout = {lock_wait}");
                connection.execute(sqlx::AssertSqlSafe(wait)).await?;
                connection.execute(ISOLATION).await?;
                Ok(())
            })
        })
        .after_release(|connection, _| Box::pin(async move { Ok(is_clean(connection).await) }));
    let options = url.options().charset("utf8mb4").collation(COLLATION).disable_statement_logging();
    let pool = pool.connect_with(options).await.map_err(|e| explain_connect(url, e))?;
    let db = SqlxMySqlConnector::from_sqlx_mysql_pool(pool);
    if let Err(error) = check_version(&db, url).await {
        let _ = db.close().await;
        return Err(error);
    }
    Ok(db)
}

/// Whether a connection may be used again. A future of sqlx that was dropped half way leaves answers in the stream, or a
/// transaction open; only a connection that answers just what it is asked, outside any transaction, is given to others.
async fn is_clean(connection: &mut MySqlConnection) -> bool {
    static QUESTION: AtomicU64 = AtomicU64::new(0);
    let question = QUESTION.fetch_add(1, Ordering::Relaxed);
    let statement = format!("SELECT CAST({question} AS UNSIGNED), CAST(@@in_transaction AS UNSIGNED)");
    let answer = async {
        let row = connection.fetch_one(sqlx::AssertSqlSafe(statement)).await?;
        Ok::<_, sqlx::Error>((row.try_get::<u64, _>(0)?, row.try_get::<u64, _>(1)?))
    };
    matches!(tokio::time::timeout(RELEASE_TIMEOUT, answer).await, Ok(Ok((echo, 0))) if echo == question)
}

async fn check_version(db: &DatabaseConnection, url: &MariaDbUrl) -> Result<(), StoreError> {
    let version: String = match db.query_one_raw(sql("SELECT VERSION()")).await {
        Ok(Some(row)) => row.try_get_by_index(0)?,
        Ok(None) => String::new(),
        Err(error) => return Err(explain(url, error)),
    };
    if is_new_enough(&version) {
        return Ok(());
    }
    Err(StoreError::Open {
        location: Location::MariaDb(url.clone()),
        reason: format!("the server is {version:?}; EdgeLink needs MariaDB {}.{} or newer", OLDEST.0, OLDEST.1),
        denied: false,
    })
}

fn is_new_enough(version: &str) -> bool {
    // Some servers put the version that old replicas expect in front.
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    version.contains("MariaDB") && found >= OLDEST
}

pub(crate) fn sql(statement: &str) -> Statement {
    Statement::from_string(DbBackend::MySql, statement)
}

fn explain_connect(url: &MariaDbUrl, error: sqlx::Error) -> StoreError {
    explain(url, DbErr::Conn(RuntimeErr::SqlxError(error.into())))
}

/// The server's words, with the database and what to do.
pub(crate) fn explain(url: &MariaDbUrl, error: DbErr) -> StoreError {
    let number = mariadb_number(&error);
    let reason = match number {
        Some(1044 | 1045 | 1142 | 1698) => {
            format!("{}; check the URL's user and password, and its GRANTs", bare(&error))
        }
        Some(1049) => "the server has no such database; make it: CREATE DATABASE …".to_owned(),
        Some(1040 | 1203) => format!("{}; raise max_connections, or stop somebody", bare(&error)),
        Some(1205 | 1213) => return StoreError::Locked(Location::MariaDb(url.clone())),
        None => format!("{}; is the server running, and the URL right?", bare(&error)),
        Some(_) => bare(&error),
    };
    StoreError::Open {
        location: Location::MariaDb(url.clone()),
        reason,
        denied: matches!(number, Some(1044 | 1045 | 1142 | 1698)),
    }
}

/// Without the wrappings of three libraries.
fn bare(error: &DbErr) -> String {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(e))
        | DbErr::Exec(RuntimeErr::SqlxError(e))
        | DbErr::Query(RuntimeErr::SqlxError(e)) => match &**e {
            sqlx::Error::Io(io) => io.to_string(),
            sqlx::Error::Database(database) => database.message().to_owned(),
            sqlx::Error::PoolTimedOut => "it does not answer".to_owned(),
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        for good in ["10.11.14-MariaDB-0+deb12u2", "11.4.2-MariaDB-log", "5.5.5-10.6.7-MariaDB", "10.5.0-MariaDB"] {
            assert!(is_new_enough(good), "{good}");
        }
        for bad in ["8.0.36", "10.4.34-MariaDB", "5.5.5-10.1.1-MariaDB", "", "MariaDB"] {
            assert!(!is_new_enough(bad), "{bad}");
        }
    }
}
