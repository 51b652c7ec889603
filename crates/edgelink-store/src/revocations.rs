//! Revoked tokens and nodes (specification §4.3, DESIGN §3).

use crate::convert;
use crate::entity::revocation;
use crate::error::StoreError;
use crate::nodes;
use crate::settings;
use crate::store::{Store, Subject, Writer, from_db, id_to_db, to_db};
use edgelink_model::records::RevocationRecord;
use edgelink_model::{NodeId, UnixMillis};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use std::time::Duration;

/// How long a revocation is remembered unless the controller says otherwise: an auth_token's 24 h, the 24 h for which a
/// relay without its controller honours expired tokens, and an hour for clocks.
pub const DEFAULT_REVOCATION_LIFETIME: Duration = Duration::from_secs(49 * 3600);

/// In `settings`, so that every writer knows it, whichever process it lives in. Seconds.
const LIFETIME_KEY: &str = "revocation_lifetime_seconds";

/// A revocation with what only people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationDetails {
    /// What the control core knows too.
    pub record: RevocationRecord,
    /// Why.
    pub reason: String,
    /// Unix ms.
    pub created_at: UnixMillis,
}

impl Store {
    /// Revocations that have not expired, oldest first.
    pub async fn revocations(&self) -> Result<Vec<RevocationDetails>, StoreError> {
        let rows = revocation::Entity::find()
            .filter(revocation::Column::ExpiresAt.gt(to_db(self.now() / 1000)?))
            .order_by_asc(revocation::Column::CreatedAt)
            .order_by_asc(revocation::Column::Jti)
            .all(&self.db)
            .await?;
        rows.into_iter().map(details).collect()
    }

    /// Says how long the longest-lived token may still be honoured anywhere (lifetime, grace and leeway). The controller
    /// calls this when it starts and when its configuration changes; other processes read it from the database.
    pub async fn set_revocation_lifetime(&self, lifetime: Duration) -> Result<(), StoreError> {
        let seconds = lifetime.as_secs().to_string();
        if self.setting(LIFETIME_KEY).await?.as_deref() == Some(seconds.as_str()) {
            return Ok(());
        }
        self.set_setting(LIFETIME_KEY, &seconds).await
    }

    /// Revokes one token by its jti. Revoking it again changes nothing.
    pub async fn revoke_token(&self, jti: &str, reason: &str) -> Result<RevocationRecord, StoreError> {
        if jti.is_empty()
            || jti.len() > 200
            || jti.starts_with(NODE_PREFIX)
            || !jti.chars().all(|c| c.is_ascii_graphic())
        {
            return Err(StoreError::Invalid(format!("{jti:?} is not a token's jti")));
        }
        let mut writer = self.write().await?;
        if let Some(row) = revocation::Entity::find_by_id(jti.to_owned()).one(&writer.txn).await? {
            return convert::revocation(row);
        }
        let record = insert(&mut writer, jti.to_owned(), None, reason).await?;
        writer.audit("token.blacklist", None, Some(jti.to_owned())).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Revokes every token that a node holds. It may authenticate anew as long as it is authorized.
    pub async fn revoke_node(&self, id: NodeId, reason: &str) -> Result<RevocationRecord, StoreError> {
        let mut writer = self.write().await?;
        nodes::find(&writer.txn, id).await?;
        let record = node_wide(&mut writer, id, reason).await?;
        writer.audit("node.blacklist", Some(("node", id.0)), Some(reason.to_owned())).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Forgets revocations whose tokens have expired. Followers forget them by themselves, so nothing is logged.
    /// Returns how many.
    pub async fn prune_revocations(&self) -> Result<u64, StoreError> {
        let writer = self.write().await?;
        let result = revocation::Entity::delete_many()
            .filter(revocation::Column::ExpiresAt.lte(to_db(writer.now / 1000)?))
            .exec(&writer.txn)
            .await?;
        writer.commit().await?;
        Ok(result.rows_affected)
    }
}

pub(crate) fn details(row: revocation::Model) -> Result<RevocationDetails, StoreError> {
    Ok(RevocationDetails {
        reason: row.reason.clone(),
        created_at: from_db(row.created_at)?,
        record: convert::revocation(row)?,
    })
}

/// Synthetic ids of node-wide revocations start so; no jti does.
const NODE_PREFIX: &str = "node:";

/// Voids every token of `id` issued until now, this second included.
pub(crate) async fn node_wide(writer: &mut Writer, id: NodeId, reason: &str) -> Result<RevocationRecord, StoreError> {
    // `iat` has whole seconds, and only those below `issued_before` are void.
    let issued_before = writer.now / 1000 + 1;
    insert(writer, format!("{NODE_PREFIX}{id}:{issued_before}"), Some((id, issued_before)), reason).await
}

async fn insert(
    writer: &mut Writer,
    jti: String,
    node: Option<(NodeId, u64)>,
    reason: &str,
) -> Result<RevocationRecord, StoreError> {
    let lifetime = match settings::get(&writer.txn, LIFETIME_KEY).await?.and_then(|s| s.parse().ok()) {
        Some(seconds) => seconds,
        None => DEFAULT_REVOCATION_LIFETIME.as_secs(),
    };
    // Twice within one second is once.
    let row = match revocation::Entity::find_by_id(jti.clone()).one(&writer.txn).await? {
        Some(row) => row,
        None => {
            revocation::Entity::insert(revocation::ActiveModel {
                jti: Set(jti.clone()),
                node_id: Set(node.map(|(id, _)| id_to_db(id.0)).transpose()?),
                issued_before: Set(node.map(|(_, before)| to_db(before)).transpose()?),
                reason: Set(reason.chars().take(255).collect()),
                expires_at: Set(to_db((writer.now / 1000).saturating_add(lifetime))?),
                created_at: Set(to_db(writer.now)?),
            })
            .exec_with_returning(&writer.txn)
            .await?
        }
    };
    writer.log(&Subject::Revocation(jti)).await?;
    convert::revocation(row)
}
