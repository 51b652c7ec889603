//! Settings and the audit log.

use crate::entity::{audit_log, setting};
use crate::error::StoreError;
use crate::store::{Store, from_db, id_from_db, to_db};
use edgelink_model::UnixMillis;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ActiveValue::Set, ConnectionTrait, EntityTrait, QueryOrder, QuerySelect};

/// One line of `audit_logs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Row id, rising.
    pub id: u32,
    /// `system`, `cli`, `admin` or `node`.
    pub actor_type: String,
    /// Such as the user's name.
    pub actor_id: Option<String>,
    /// Such as `node.authorize`.
    pub action: String,
    /// What it was done to, such as `node`.
    pub target_type: Option<String>,
    /// Its row id.
    pub target_id: Option<u32>,
    /// Anything more, never a secret.
    pub details: Option<String>,
    /// Where the request came from.
    pub ip_address: Option<String>,
    /// Unix ms.
    pub created_at: UnixMillis,
}

/// Where the controller keeps the keys that it made for its tokens.
pub const TOKEN_KEYS: &str = "token_keys";

impl Store {
    /// The value of `key`, if somebody set it.
    pub async fn setting(&self, key: &str) -> Result<Option<String>, StoreError> {
        get(&self.db, key).await
    }

    /// Sets `key`, replacing what was there.
    pub async fn set_setting(&self, key: &str, value: &str) -> Result<(), StoreError> {
        let writer = self.write().await?;
        put(&writer.txn, key, value, to_db(writer.now)?).await?;
        writer.commit().await?;
        Ok(())
    }

    /// The value of `key`, which becomes `make()`'s if nobody has set it: of several processes that start at once, all
    /// get the same (generated keys of the controller).
    pub async fn setting_or_insert_with(
        &self,
        key: &str,
        make: impl FnOnce() -> String + Send,
    ) -> Result<String, StoreError> {
        let writer = self.write().await?;
        if let Some(value) = get(&writer.txn, key).await? {
            return Ok(value);
        }
        let value = make();
        put(&writer.txn, key, &value, to_db(writer.now)?).await?;
        writer.commit().await?;
        Ok(value)
    }

    /// Adds a line to the audit log that belongs to no other change, such as a failed login.
    pub async fn audit(
        &self,
        action: &str,
        target: Option<(&str, u32)>,
        details: Option<String>,
    ) -> Result<(), StoreError> {
        let writer = self.write().await?;
        writer.audit(action, target, details).await?;
        writer.commit().await?;
        Ok(())
    }

    /// The newest `limit` lines of the audit log, newest first.
    pub async fn audit_log(&self, limit: u64) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = audit_log::Entity::find().order_by_desc(audit_log::Column::Id).limit(limit).all(&self.db).await?;
        rows.into_iter().map(entry).collect()
    }
}

pub(crate) fn entry(row: audit_log::Model) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        id: id_from_db(row.id)?,
        actor_type: row.actor_type,
        actor_id: row.actor_id,
        action: row.action,
        target_type: row.target_type,
        target_id: row.target_id.map(id_from_db).transpose()?,
        details: row.details,
        ip_address: row.ip_address,
        created_at: from_db(row.created_at)?,
    })
}

pub(crate) async fn get(db: &impl ConnectionTrait, key: &str) -> Result<Option<String>, StoreError> {
    Ok(setting::Entity::find_by_id(key.to_owned()).one(db).await?.and_then(|row| row.value))
}

async fn put(db: &impl ConnectionTrait, key: &str, value: &str, now: i64) -> Result<(), StoreError> {
    setting::Entity::insert(setting::ActiveModel {
        key: Set(key.to_owned()),
        value: Set(Some(value.to_owned())),
        updated_at: Set(now),
    })
    .on_conflict(
        OnConflict::column(setting::Column::Key)
            .update_columns([setting::Column::Value, setting::Column::UpdatedAt])
            .to_owned(),
    )
    .exec_without_returning(db)
    .await?;
    Ok(())
}
