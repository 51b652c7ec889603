//! Lists in pages: rows by rising id, the next page after the last id that was seen.

use crate::error::StoreError;
use crate::store::id_to_db;
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, Select,
};

/// Which part of a list; the default is all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Rows after this id only (for the audit log, which comes newest first: before it).
    pub after: Option<u32>,
    /// At most so many.
    pub limit: Option<u64>,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T> {
    /// What was asked for.
    pub items: Vec<T>,
    /// How many there are, all pages together.
    pub total: u64,
}

impl<T> Listed<T> {
    /// The same list of what `f` makes of each.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Listed<U> {
        Listed { items: self.items.into_iter().map(f).collect(), total: self.total }
    }

    /// As [`Self::map`], stopping at the first failure.
    pub(crate) fn try_map<U>(self, f: impl FnMut(T) -> Result<U, StoreError>) -> Result<Listed<U>, StoreError> {
        Ok(Listed { items: self.items.into_iter().map(f).collect::<Result<_, _>>()?, total: self.total })
    }
}

/// The rows of `query` that `page` means, by `id`, rising or falling.
pub(crate) async fn list<E>(
    txn: &DatabaseTransaction,
    query: Select<E>,
    id: E::Column,
    falling: bool,
    page: Page,
) -> Result<Listed<E::Model>, StoreError>
where
    E: EntityTrait,
    E::Model: Send + Sync,
{
    let total = query.clone().count(txn).await?;
    let mut query = if falling { query.order_by_desc(id) } else { query.order_by_asc(id) };
    if let Some(after) = page.after {
        // Ids beyond the column's range were never handed out: after them comes nothing, before them everything.
        let after = id_to_db(after).unwrap_or(i32::MAX);
        query = query.filter(if falling { id.lt(after) } else { id.gt(after) });
    }
    if let Some(limit) = page.limit {
        query = query.limit(limit);
    }
    Ok(Listed { items: query.all(txn).await?, total })
}
