//! Pre-auth keys (DESIGN §3). Only their hashes are here.

use crate::entity::auth_key;
use crate::error::StoreError;
use crate::networks;
use crate::store::{Store, from_db, id_from_db, id_to_db, to_db};
use edgelink_model::{NetworkId, UnixMillis};
use sea_orm::{ActiveValue::Set, EntityTrait, QueryOrder};

/// A key to remember.
#[derive(Clone, PartialEq, Eq)]
pub struct NewAuthKey {
    /// Lower-case hex SHA-256 of the key.
    pub key_hash: String,
    /// Nodes that show it join this network.
    pub network_id: NetworkId,
    /// Any number of machines, or one.
    pub reusable: bool,
    /// Its nodes need no administrator.
    pub preauthorized: bool,
    /// Routes that its nodes announce need no administrator either (DESIGN §7).
    pub approve_routes: bool,
    /// Unix ms; `None`: never.
    pub expires_at: Option<UnixMillis>,
}

/// A key as it is on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthKeyRecord {
    /// Row id.
    pub id: u32,
    /// The network that it opens.
    pub network_id: NetworkId,
    /// Any number of machines, or one.
    pub reusable: bool,
    /// Its nodes need no administrator.
    pub preauthorized: bool,
    /// Routes that its nodes announce need no administrator either.
    pub approve_routes: bool,
    /// Unix ms; `None`: never.
    pub expires_at: Option<UnixMillis>,
    /// Last used, Unix ms.
    pub used_at: Option<UnixMillis>,
    /// Unix ms.
    pub created_at: UnixMillis,
}

impl Store {
    /// Remembers a key.
    pub async fn create_auth_key(&self, new: NewAuthKey) -> Result<AuthKeyRecord, StoreError> {
        if new.key_hash.len() != 64 || !new.key_hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(StoreError::Invalid("an auth key's hash is 64 lower-case hex digits".into()));
        }
        let writer = self.write().await?;
        networks::find(&writer.txn, new.network_id).await?;
        let row = auth_key::Entity::insert(auth_key::ActiveModel {
            network_id: Set(id_to_db(new.network_id.0)?),
            key_hash: Set(new.key_hash),
            reusable: Set(new.reusable),
            preauthorized: Set(new.preauthorized),
            approve_routes: Set(new.approve_routes),
            expires_at: Set(new.expires_at.map(to_db).transpose()?),
            created_at: Set(to_db(writer.now)?),
            ..Default::default()
        })
        .exec_with_returning(&writer.txn)
        .await?;
        let record = record(row)?;
        writer
            .audit("auth_key.create", Some(("auth_key", record.id)), Some(format!("network {}", new.network_id)))
            .await?;
        writer.commit().await?;
        Ok(record)
    }

    /// All keys by id.
    pub async fn auth_keys(&self) -> Result<Vec<AuthKeyRecord>, StoreError> {
        let rows = auth_key::Entity::find().order_by_asc(auth_key::Column::Id).all(&self.db).await?;
        rows.into_iter().map(record).collect()
    }

    /// Forgets a key. Nodes that joined with it stay.
    pub async fn delete_auth_key(&self, id: u32) -> Result<(), StoreError> {
        let missing = || StoreError::NotFound { what: "auth key", key: id.to_string() };
        let key = id_to_db(id).map_err(|_| missing())?;
        let writer = self.write().await?;
        if auth_key::Entity::delete_by_id(key).exec(&writer.txn).await?.rows_affected == 0 {
            return Err(missing());
        }
        writer.audit("auth_key.delete", Some(("auth_key", id)), None).await?;
        writer.commit().await?;
        Ok(())
    }
}

pub(crate) fn record(row: auth_key::Model) -> Result<AuthKeyRecord, StoreError> {
    Ok(AuthKeyRecord {
        id: id_from_db(row.id)?,
        network_id: NetworkId(id_from_db(row.network_id)?),
        reusable: row.reusable,
        preauthorized: row.preauthorized,
        approve_routes: row.approve_routes,
        expires_at: row.expires_at.map(from_db).transpose()?,
        used_at: row.used_at.map(from_db).transpose()?,
        created_at: from_db(row.created_at)?,
    })
}
