//! Settings: configuration keys that the database holds.

use super::extract::{IfMatch, Json, Session, Versioned};
use super::problem::Failure;
use super::{Api, etag};
use axum::extract::State;
use edgelink_api::rest;
use edgelink_config::{ConfigError, Env};
use edgelink_ctl::settings;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What the configuration is made of beside the database.
pub(crate) struct Sources {
    pub(crate) file: Option<PathBuf>,
    pub(crate) env: Env,
}

/// Every setting with its value, and whether a change needs a restart. Secrets are no settings.
#[utoipa::path(
    get, path = "/api/v1/settings", tag = "settings", operation_id = "getSettings",
    responses((status = 200, description = "Settings in the order of the documentation", body = Vec<rest::Setting>, headers(("ETag" = String))))
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    session: Session,
) -> Result<Versioned<Vec<rest::Setting>>, Failure> {
    let kept = session.store.configuration().await?;
    let version = etag::of(&kept);
    let listed = settings::list(api.sources.file.as_deref(), &kept, &api.sources.env);
    // Whoever started the controller has made a configuration of this; now somebody has edited the file.
    listed.map(|listed| Versioned(listed, version)).map_err(|error| Failure::internal(&error))
}

/// Change settings, all or none: an object of keys and values, `null` to unset a key. They outrank the configuration file
/// and are outranked by the environment.
#[utoipa::path(
    put, path = "/api/v1/settings", tag = "settings", operation_id = "updateSettings",
    params(("If-Match" = Option<String>, Header, description = "The ETag that the change is meant for")),
    request_body(content = BTreeMap<String, Value>, example = json!({ "tokens.relay_expire_hours": 1.5 })),
    responses((status = 200, description = "As they are now", body = Vec<rest::Setting>, headers(("ETag" = String))))
)]
pub(super) async fn update(
    State(api): State<Arc<Api>>,
    session: Session,
    if_match: IfMatch,
    Json(change): Json<BTreeMap<String, Value>>,
) -> Result<Versioned<Vec<rest::Setting>>, Failure> {
    let kept = session.store.configuration().await?;
    let checked = settings::check(api.sources.file.as_deref(), &kept, &api.sources.env, &change);
    let changes = checked.map_err(|error: ConfigError| Failure::invalid(error.to_string()))?;
    session.store.change_configuration(changes, |kept| if_match.accepts(&etag::of(kept))).await?;
    api.live.follow().await;
    get(State(api), session).await
}
