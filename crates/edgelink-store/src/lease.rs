//! The lease: of several controllers on one database, who is the active one (DESIGN §4, ADR 0010).
//!
//! Times are the database's, so the controllers' clocks need not agree. Taking the lease goes through the lock of all writers
//! and raises the epoch; a handle that is [`Store::fenced`] compares it under the same lock. So once somebody else holds
//! the lease, nothing that the former holder still has under way can be written.

use crate::entity::controller_lease;
use crate::error::StoreError;
use crate::mariadb;
use crate::store::{Store, from_db, to_db};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryFilter,
};
use std::time::Duration;

/// Who is the active controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its name for itself, random.
    pub holder: String,
    /// Where nodes reach it.
    pub url: String,
    /// How long it remains so unless it renews.
    pub remaining: Duration,
}

/// The outcome of asking for the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// It is ours, under this epoch.
    Ours {
        /// For [`Store::fenced`].
        epoch: u64,
    },
    /// Another controller's.
    Theirs(Holder),
}

impl Store {
    /// Takes the lease for `holder`, or renews it, for `ttl` from now; unless another holder's has not expired.
    pub async fn take_lease(&self, holder: &str, url: &str, ttl: Duration) -> Result<Lease, StoreError> {
        let writer = self.write().await?;
        let row = find(&writer.txn).await?;
        let now = self.database_now(&writer.txn).await?;
        if row.holder != holder && !row.holder.is_empty() && row.expires_at > now {
            let remaining = Duration::from_millis(from_db(row.expires_at - now)?);
            return Ok(Lease::Theirs(Holder { holder: row.holder, url: row.url, remaining }));
        }
        let epoch = if row.holder == holder { row.epoch } else { row.epoch.saturating_add(1) };
        let mut change = row.into_active_model();
        change.holder = Set(holder.to_owned());
        change.url = Set(url.chars().take(1024).collect());
        change.epoch = Set(epoch);
        change.expires_at = Set(now.saturating_add(millis(ttl)?));
        controller_lease::Entity::update(change).exec(&writer.txn).await?;
        writer.commit().await?;
        Ok(Lease::Ours { epoch: from_db(epoch)? })
    }

    /// Renews the lease of `epoch` for `ttl` from now, without waiting for writers. `false`: it is no longer ours.
    pub async fn renew_lease(&self, holder: &str, epoch: u64, ttl: Duration) -> Result<bool, StoreError> {
        let now = self.database_now(&self.db).await?;
        let renewed = controller_lease::Entity::update_many()
            .col_expr(controller_lease::Column::ExpiresAt, Expr::value(now.saturating_add(millis(ttl)?)))
            .filter(controller_lease::Column::Holder.eq(holder))
            .filter(controller_lease::Column::Epoch.eq(to_db(epoch)?))
            // Who let it expire must take it anew, since another may be about to.
            .filter(controller_lease::Column::ExpiresAt.gt(now))
            .exec(&self.db)
            .await?;
        Ok(renewed.rows_affected == 1)
    }

    /// Gives the lease up, so that another controller need not wait for its end. Nothing happens if it is not ours.
    pub async fn release_lease(&self, holder: &str) -> Result<(), StoreError> {
        controller_lease::Entity::update_many()
            .col_expr(controller_lease::Column::Holder, Expr::value(""))
            .col_expr(controller_lease::Column::ExpiresAt, Expr::value(0i64))
            .filter(controller_lease::Column::Holder.eq(holder))
            .exec(&self.db)
            .await?;
        Ok(())
    }

    /// Who holds the lease at this moment.
    pub async fn lease_holder(&self) -> Result<Option<Holder>, StoreError> {
        let txn = self.read().await?;
        let row = find(&txn).await?;
        let remaining = row.expires_at.saturating_sub(self.database_now(&txn).await?);
        Ok((remaining > 0 && !row.holder.is_empty()).then(|| Holder {
            holder: row.holder,
            url: row.url,
            remaining: Duration::from_millis(remaining.unsigned_abs()),
        }))
    }

    /// The same database, written under the lease of `epoch`: after another controller has taken it, every write of this
    /// handle is [`StoreError::LeaseLost`].
    pub fn fenced(&self, epoch: u64) -> Self {
        self.with_fence(epoch)
    }

    /// Unix ms by the clock that all controllers of this database share.
    async fn database_now(&self, db: &impl ConnectionTrait) -> Result<i64, StoreError> {
        if !self.location().is_shared() {
            return to_db(self.now());
        }
        let question = "SELECT CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)";
        match db.query_one_raw(mariadb::sql(question)).await? {
            Some(row) => Ok(row.try_get_by_index(0)?),
            None => Err(StoreError::Corrupt("the server does not tell the time".into())),
        }
    }
}

/// The epoch of whoever holds the lease, or held it last.
pub(crate) async fn epoch(txn: &DatabaseTransaction) -> Result<u64, StoreError> {
    from_db(find(txn).await?.epoch)
}

async fn find(db: &impl ConnectionTrait) -> Result<controller_lease::Model, StoreError> {
    let row = controller_lease::Entity::find_by_id(1).one(db).await?;
    row.ok_or_else(|| StoreError::Corrupt("controller_lease is empty".into()))
}

fn millis(time: Duration) -> Result<i64, StoreError> {
    to_db(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
