//! Copies of the whole database, consistent and taken while others write: SQLite's own, or SQL text that the `mariadb`
//! client reads.

use crate::error::StoreError;
use crate::location::Location;
use crate::store::Store;
use crate::{mariadb, sqlite};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, IsolationLevel, TransactionTrait};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Rows read at once.
const PAGE: usize = 2000;
/// Bytes after which an INSERT ends, far below any server's `max_allowed_packet`.
const STATEMENT: usize = 512 << 10;

impl Store {
    /// Copies the database as it is at this moment to `target`, a file that must not exist, readable by us only. Others
    /// may write meanwhile. From SQLite it is a database file; from MariaDB it is SQL for `mariadb DATABASE < FILE`, which
    /// replaces the tables there.
    ///
    /// # Errors
    /// [`StoreError::Backup`]; then there is no file.
    pub async fn backup_to(&self, target: &Path) -> Result<(), StoreError> {
        match self.location() {
            Location::Sqlite(_) => sqlite::copy(&self.db, target).await,
            Location::MariaDb(_) => write(&self.db, target).await,
        }
    }
}

/// Dumps MariaDB to `target`.
pub(crate) async fn write(db: &DatabaseConnection, target: &Path) -> Result<(), StoreError> {
    let fail = |reason: String| StoreError::Backup { path: target.to_owned(), reason };
    let file = sqlite::private(target).create_new(true).open(target).map_err(|e| fail(e.to_string()))?;
    if let Err(error) = dump(db, file).await {
        // Half a copy looks like a whole one.
        let _ = fs::remove_file(target);
        return Err(fail(error.to_string()));
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum DumpError {
    #[error("{0}")]
    Database(#[from] DbErr),
    #[error("{0}")]
    File(#[from] io::Error),
}

async fn dump(db: &DatabaseConnection, file: File) -> Result<(), DumpError> {
    let mut out = BufWriter::new(file);
    let txn = db.begin_with_config(Some(IsolationLevel::RepeatableRead), None).await?;
    writeln!(out, "-- EdgeLink. Restore with: mariadb DATABASE < THIS-FILE (it replaces EdgeLink's tables there).")?;
    writeln!(out, "SET NAMES utf8mb4;\nSET foreign_key_checks = 0;\nSET sql_mode = 'NO_AUTO_VALUE_ON_ZERO';")?;
    writeln!(out, "ALTER DATABASE CHARACTER SET utf8mb4 COLLATE {};", mariadb::COLLATION)?;
    for table in strings(
        &txn,
        "SELECT table_name FROM information_schema.tables \
         WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' ORDER BY table_name",
    )
    .await?
    {
        dump_table(&txn, &table, &mut out).await?;
    }
    writeln!(out, "SET foreign_key_checks = 1;\n-- complete")?;
    out.flush()?;
    out.get_ref().sync_all()?;
    txn.commit().await?;
    Ok(())
}

async fn dump_table(txn: &DatabaseTransaction, table: &str, out: &mut impl Write) -> Result<(), DumpError> {
    let name = quoted(table);
    let create = txn.query_one_raw(mariadb::sql(&format!("SHOW CREATE TABLE {name}"))).await?;
    let create: String = match create {
        Some(row) => row.try_get_by_index(1)?,
        None => return Err(DbErr::RecordNotFound(format!("table {table}")).into()),
    };
    writeln!(out, "DROP TABLE IF EXISTS {name};\n{create};")?;

    let about = |what: &str, only: &str| {
        format!(
            "SELECT {what} FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = '{}' {only} \
             ORDER BY ordinal_position",
            table.replace('\'', "''")
        )
    };
    let columns = strings(txn, &about("column_name", "")).await?;
    let binary = strings(
        txn,
        &about(
            "column_name",
            "AND character_set_name IS NULL \
         AND data_type REGEXP 'binary|blob'",
        ),
    )
    .await?;
    let order = strings(txn, &about("column_name", "AND column_key = 'PRI'")).await?;
    let values: Vec<String> = columns
        .iter()
        .map(|column| {
            let name = quoted(column);
            // The server quotes its own text; bytes travel as hex digits.
            match binary.contains(column) {
                true => format!("IF({name} IS NULL, 'NULL', CONCAT('x''', HEX({name}), ''''))"),
                false => format!("QUOTE({name})"),
            }
        })
        .collect();
    let list = |names: &[String]| names.iter().map(|n| quoted(n)).collect::<Vec<_>>().join(", ");
    let order = if order.is_empty() { String::new() } else { format!("ORDER BY {}", list(&order)) };
    let head = format!("INSERT INTO {name} ({}) VALUES\n", list(&columns));
    for page in 0.. {
        let select = format!(
            "SELECT CONCAT('(', {}, ')') FROM {name} {order} LIMIT {PAGE} OFFSET {}",
            values.join(", ',', "),
            page * PAGE
        );
        let rows = strings(txn, &select).await?;
        let mut written = 0;
        for (i, row) in rows.iter().enumerate() {
            out.write_all(if written == 0 { head.as_bytes() } else { b",\n" })?;
            out.write_all(row.as_bytes())?;
            written += row.len();
            if written > STATEMENT || i + 1 == rows.len() {
                out.write_all(b";\n")?;
                written = 0;
            }
        }
        if rows.len() < PAGE {
            return Ok(());
        }
    }
    Ok(())
}

async fn strings(txn: &DatabaseTransaction, statement: &str) -> Result<Vec<String>, DbErr> {
    txn.query_all_raw(mariadb::sql(statement)).await?.iter().map(|row| row.try_get_by_index(0)).collect()
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
