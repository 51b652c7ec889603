//! The audit log.

use super::extract::{Paging, Query, Session};
use super::problem::Failure;
use axum::response::Response;
use edgelink_api::rest;
use edgelink_api::rest::Timestamp;
use edgelink_ctl::rows;
use edgelink_store::AuditFilter;
use http::Uri;
use serde::Deserialize;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// `system`, `cli`, `admin` or `node`.
    actor_type: Option<String>,
    /// Such as an administrator's name.
    actor_id: Option<String>,
    /// Such as `node.authorize`.
    action: Option<String>,
    /// Such as `node`.
    target_type: Option<String>,
    /// The row id of what it was done to.
    target_id: Option<u32>,
    /// At this moment or later.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Before this moment.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// At most so many entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// Entries older than the one with this id.
    after: Option<u32>,
}

/// Who did what, to what, from where; the newest first. Denied logins are in it too.
#[utoipa::path(
    get, path = "/api/v1/audit", tag = "audit", operation_id = "listAudit", params(ListParams),
    responses((status = 200, description = "Lines of the audit log, newest first", body = Vec<rest::AuditEntry>))
)]
pub(super) async fn list(session: Session, uri: Uri, Query(q): Query<ListParams>) -> Result<Response, Failure> {
    let paging = Paging::new(uri, q.limit, q.after)?;
    let moment = |name: &str, moment: Option<Timestamp>| {
        let bad = || Failure::invalid(format!("{name} is a moment such as 2023-11-14T22:13:20Z"));
        moment.map(|moment| moment.to_unix_ms().ok_or_else(bad)).transpose()
    };
    let filter = AuditFilter {
        since: moment("since", q.since)?,
        until: moment("until", q.until)?,
        actor_type: q.actor_type,
        actor_id: q.actor_id,
        action: q.action,
        target_type: q.target_type,
        target_id: q.target_id,
    };
    let lines = session.store.list_audit(&filter, paging.page()).await?;
    Ok(paging.answer(lines.map(rows::audit), |line| line.id))
}
