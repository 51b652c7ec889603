//! Settings and the audit log.

use crate::entity::{audit_log, setting};
use crate::error::StoreError;
use crate::store::{Store, Subject, from_db, id_from_db, to_db};
use edgelink_model::UnixMillis;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use std::collections::BTreeMap;

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

/// Keys of the controller's configuration are kept under this prefix, beside what programs keep for themselves.
const CONFIGURATION: &str = "config.";

/// Where the controller keeps the keys that it made for its tokens.
pub const TOKEN_KEYS: &str = "token_keys";
/// Where controllers that share a database keep the CA that they all use: JSON with `certificate` and `key`, PEM.
pub const SHARED_CA: &str = "shared_ca";

impl Store {
    /// The value of `key`, if somebody set it.
    pub async fn setting(&self, key: &str) -> Result<Option<String>, StoreError> {
        get(&self.db, key).await
    }

    /// The configuration keys that are set here, with their text. What they mean is the configuration's business.
    pub async fn configuration(&self) -> Result<BTreeMap<String, String>, StoreError> {
        configuration(&self.db).await
    }

    /// Sets configuration keys (`None`: unsets), all or none, and tells controllers, which read their configuration again.
    /// The caller has checked keys and values. What is so already is no change.
    pub async fn set_configuration(
        &self,
        settings: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<(), StoreError> {
        self.change_configuration(settings, |_| true).await
    }

    /// [`Self::set_configuration`], if `check` accepts what is set at this moment; otherwise [`StoreError::Stale`].
    pub async fn change_configuration(
        &self,
        settings: impl IntoIterator<Item = (String, Option<String>)>,
        check: impl FnOnce(&BTreeMap<String, String>) -> bool,
    ) -> Result<(), StoreError> {
        let mut writer = self.write().await?;
        if !check(&configuration(&writer.txn).await?) {
            return Err(StoreError::Stale);
        }
        for (key, value) in settings {
            let row = format!("{CONFIGURATION}{key}");
            if get(&writer.txn, &row).await? == value {
                continue;
            }
            let (action, details) = match &value {
                Some(value) => {
                    put(&writer.txn, &row, value, to_db(writer.now)?).await?;
                    ("config.set", format!("{key} = {value}"))
                }
                None => {
                    setting::Entity::delete_by_id(row).exec(&writer.txn).await?;
                    ("config.unset", key.clone())
                }
            };
            writer.log(&Subject::Setting(key)).await?;
            writer.audit(action, None, Some(details)).await?;
        }
        writer.commit().await?;
        Ok(())
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

async fn configuration(db: &impl ConnectionTrait) -> Result<BTreeMap<String, String>, StoreError> {
    let rows = setting::Entity::find().filter(setting::Column::Key.starts_with(CONFIGURATION)).all(db).await?;
    let key = |row: setting::Model| Some((row.key.strip_prefix(CONFIGURATION)?.to_owned(), row.value?));
    Ok(rows.into_iter().filter_map(key).collect())
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
