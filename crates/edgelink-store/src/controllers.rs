//! Where the controllers of this database are reached: nodes and relays are told all of them, so that they find whichever is
//! the active one (ADR 0017). Nobody follows these rows; the active controller reads them now and then.

use crate::entity::controller;
use crate::error::StoreError;
use crate::store::{Store, to_db};
use sea_orm::sea_query::OnConflict;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use std::time::Duration;

/// Longer URLs are not told; the column's length.
const LONGEST: usize = 190;
/// A controller that was not heard of for so long is gone.
const FORGET: Duration = Duration::from_secs(7 * 24 * 3600);

impl Store {
    /// A controller of this database is reached at `url` (`wss://HOST[:PORT]`), as of now. Those that were not heard of for a
    /// week are forgotten. A URL of more than 190 bytes is not kept.
    pub async fn announce_controller(&self, url: &str) -> Result<(), StoreError> {
        let writer = self.write().await?;
        let now = to_db(writer.now)?;
        let old = now.saturating_sub(to_db(u64::try_from(FORGET.as_millis()).unwrap_or(u64::MAX))?);
        controller::Entity::delete_many().filter(controller::Column::SeenAt.lt(old)).exec(&writer.txn).await?;
        if !url.is_empty() && url.len() <= LONGEST {
            let again =
                OnConflict::column(controller::Column::Url).update_column(controller::Column::SeenAt).to_owned();
            let row = controller::ActiveModel { url: Set(url.to_owned()), seen_at: Set(now) };
            controller::Entity::insert(row).on_conflict(again).exec_without_returning(&writer.txn).await?;
        }
        writer.commit().await?;
        Ok(())
    }

    /// The URLs of this database's controllers, in their alphabetical order.
    pub async fn controllers(&self) -> Result<Vec<String>, StoreError> {
        let rows = controller::Entity::find().order_by_asc(controller::Column::Url).all(&self.db).await?;
        Ok(rows.into_iter().map(|row| row.url).collect())
    }
}
