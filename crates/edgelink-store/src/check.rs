//! Whether the database is sound: its pages, its references, its schema, its change log, and whether every row can be
//! read.

use crate::entity::change_log;
use crate::error::StoreError;
use crate::location::Location;
use crate::open::applied;
use crate::store::{Store, counter, from_db};
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, DbErr, EntityTrait, FromQueryResult, PaginatorTrait, QuerySelect, Statement,
};
use sea_orm_migration::SchemaManager;

/// What [`Store::check`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The schema's migrations, oldest first.
    pub schema: Vec<String>,
    /// Newest change.
    pub version: u64,
    /// What was looked at, in order.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.checks.iter().all(|check| check.problems.is_empty())
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `integrity`, `foreign_keys`, `change_log` or `records`.
    pub name: &'static str,
    /// What is wrong, in sentences.
    pub problems: Vec<String>,
}

/// More of one kind help nobody.
const MAX_PROBLEMS: usize = 100;

impl Store {
    /// Looks at everything, changing nothing. On a large database this takes seconds; others go on meanwhile.
    pub async fn check(&self) -> Result<Report, StoreError> {
        let schema = applied(SchemaManager::new(&self.db)).await?;
        let txn = self.read().await?;
        let (version, pruned) = match counter(&txn).await {
            Ok(counter) => counter,
            Err(StoreError::Corrupt(_)) => (0, 0),
            Err(error) => return Err(error),
        };
        let mut checks = Vec::new();
        let mut add = |name, mut problems: Vec<String>| {
            problems.truncate(MAX_PROBLEMS);
            checks.push(Check { name, problems });
        };
        match self.location() {
            Location::Sqlite(_) => {
                add("integrity", sqlite_integrity(&txn).await?);
                add("foreign_keys", sqlite_references(&txn).await?);
            }
            Location::MariaDb(_) => {
                add("integrity", mariadb_integrity(&self.db).await?);
                add("foreign_keys", mariadb_references(&txn).await?);
            }
        }
        add("change_log", change_log(&txn, version, pruned).await?);
        txn.commit().await?;
        add("records", self.snapshot().await.err().map(|error| error.to_string()).into_iter().collect());
        Ok(Report { schema, version, checks })
    }
}

/// The ids are those after the pruned ones up to the counter, without a gap.
async fn change_log(txn: &DatabaseTransaction, version: u64, pruned: u64) -> Result<Vec<String>, StoreError> {
    #[derive(FromQueryResult)]
    struct Ends {
        first: Option<i64>,
        last: Option<i64>,
    }
    if let Err(error) = counter(txn).await {
        return Ok(vec![error.to_string()]);
    }
    let count = change_log::Entity::find().count(txn).await?;
    let ends = change_log::Entity::find()
        .select_only()
        .column_as(sea_orm::ColumnTrait::min(&change_log::Column::Id), "first")
        .column_as(sea_orm::ColumnTrait::max(&change_log::Column::Id), "last")
        .into_model::<Ends>()
        .one(txn)
        .await?;
    let (first, last) = match ends {
        Some(Ends { first: Some(first), last: Some(last) }) => (from_db(first)?, from_db(last)?),
        // Nothing happened yet, or all of it was pruned.
        _ => (pruned + 1, pruned),
    };
    let whole = first == pruned + 1 && last == version && count == version.saturating_sub(pruned);
    Ok(if whole {
        Vec::new()
    } else {
        vec![format!(
            "the change log holds {count} changes from {first} to {last}, but the counter says {} to {version}: \
             controllers may have missed something; restart them",
            pruned + 1
        )]
    })
}

async fn sqlite_integrity(txn: &DatabaseTransaction) -> Result<Vec<String>, DbErr> {
    let rows = all(txn, "PRAGMA integrity_check").await?;
    let lines: Vec<String> = rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?;
    Ok(lines.into_iter().filter(|line| line != "ok").collect())
}

async fn sqlite_references(txn: &DatabaseTransaction) -> Result<Vec<String>, DbErr> {
    let rows = all(txn, "PRAGMA foreign_key_check").await?;
    rows.iter()
        .map(|row| {
            let (table, row_id, parent): (String, Option<i64>, String) =
                (row.try_get_by_index(0)?, row.try_get_by_index(1)?, row.try_get_by_index(2)?);
            let row_id = row_id.map_or_else(|| "?".to_owned(), |id| id.to_string());
            Ok(format!("row {row_id} of {table} refers to a row of {parent} that does not exist"))
        })
        .collect()
}

async fn mariadb_integrity(db: &impl ConnectionTrait) -> Result<Vec<String>, DbErr> {
    let tables = "SELECT table_name FROM information_schema.tables \
         WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE' ORDER BY table_name";
    let mut problems = Vec::new();
    for row in all(db, tables).await? {
        let table: String = row.try_get_by_index(0)?;
        for row in all(db, &format!("CHECK TABLE `{}`", table.replace('`', "``"))).await? {
            let (kind, text): (String, String) = (row.try_get("", "Msg_type")?, row.try_get("", "Msg_text")?);
            if !(kind == "status" && text == "OK") {
                problems.push(format!("{table}: {text}"));
            }
        }
    }
    Ok(problems)
}

async fn mariadb_references(txn: &DatabaseTransaction) -> Result<Vec<String>, DbErr> {
    let keys = "SELECT table_name, column_name, referenced_table_name, referenced_column_name \
         FROM information_schema.key_column_usage \
         WHERE table_schema = DATABASE() AND referenced_table_name IS NOT NULL ORDER BY table_name, column_name";
    let mut problems = Vec::new();
    for row in all(txn, keys).await? {
        let [table, column, parent, key]: [String; 4] =
            [row.try_get_by_index(0)?, row.try_get_by_index(1)?, row.try_get_by_index(2)?, row.try_get_by_index(3)?];
        let orphans = format!(
            "SELECT CAST(COUNT(*) AS SIGNED) FROM `{table}` c LEFT JOIN `{parent}` p ON c.`{column}` = p.`{key}` \
             WHERE c.`{column}` IS NOT NULL AND p.`{key}` IS NULL"
        );
        for row in all(txn, &orphans).await? {
            let count: i64 = row.try_get_by_index(0)?;
            if count > 0 {
                problems.push(format!("{count} rows of {table} refer to rows of {parent} that do not exist"));
            }
        }
    }
    Ok(problems)
}

async fn all(db: &impl ConnectionTrait, statement: &str) -> Result<Vec<sea_orm::QueryResult>, DbErr> {
    db.query_all_raw(Statement::from_string(db.get_database_backend(), statement)).await
}
