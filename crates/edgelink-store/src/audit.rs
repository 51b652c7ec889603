//! Searching the audit log.

use crate::entity::audit_log;
use crate::error::StoreError;
use crate::page::{self, Listed, Page};
use crate::settings::{self, AuditEntry};
use crate::store::{Store, id_to_db, to_db};
use edgelink_model::UnixMillis;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter};

/// Which lines; the default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Of this kind of actor.
    pub actor_type: Option<String>,
    /// Of this actor.
    pub actor_id: Option<String>,
    /// This action.
    pub action: Option<String>,
    /// Done to this kind of thing.
    pub target_type: Option<String>,
    /// Done to the thing with this row id.
    pub target_id: Option<u32>,
    /// At this moment or later, Unix ms.
    pub since: Option<UnixMillis>,
    /// Before this moment, Unix ms.
    pub until: Option<UnixMillis>,
}

impl Store {
    /// Lines of the audit log, newest first; `page.after` is the last id seen, below which it goes on.
    pub async fn list_audit(&self, filter: &AuditFilter, page: Page) -> Result<Listed<AuditEntry>, StoreError> {
        let mut query = audit_log::Entity::find();
        for (column, value) in [
            (audit_log::Column::ActorType, &filter.actor_type),
            (audit_log::Column::ActorId, &filter.actor_id),
            (audit_log::Column::Action, &filter.action),
            (audit_log::Column::TargetType, &filter.target_type),
        ] {
            if let Some(value) = value {
                query = query.filter(column.eq(value.as_str()));
            }
        }
        if let Some(id) = filter.target_id {
            // No row has an id beyond the column's range.
            query = query.filter(audit_log::Column::TargetId.eq(id_to_db(id).unwrap_or(-1)));
        }
        if let Some(since) = filter.since {
            query = query.filter(audit_log::Column::CreatedAt.gte(to_db(since)?));
        }
        if let Some(until) = filter.until {
            query = query.filter(audit_log::Column::CreatedAt.lt(to_db(until)?));
        }
        let txn = self.read().await?;
        page::list(&txn, query, audit_log::Column::Id, true, page).await?.try_map(settings::entry)
    }
}
