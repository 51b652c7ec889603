//! Settings: configuration keys that the database holds.

use super::Api;
use super::extract::{Json, Session};
use super::problem::Failure;
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
    responses((status = 200, description = "Settings in the order of the documentation", body = Vec<rest::Setting>))
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    session: Session,
) -> Result<axum::Json<Vec<rest::Setting>>, Failure> {
    let kept = session.store.configuration().await?;
    let listed = settings::list(api.sources.file.as_deref(), &kept, &api.sources.env);
    // Whoever started the controller has made a configuration of this; now somebody has edited the file.
    listed.map(axum::Json).map_err(|error| Failure::internal(&error))
}

/// Change settings, all or none: an object of keys and values, `null` to unset a key. They outrank the configuration file
/// and are outranked by the environment.
#[utoipa::path(
    put, path = "/api/v1/settings", tag = "settings", operation_id = "updateSettings",
    request_body(content = BTreeMap<String, Value>, example = json!({ "tokens.relay_expire_hours": 1.5 })),
    responses((status = 200, description = "As they are now", body = Vec<rest::Setting>))
)]
pub(super) async fn update(
    State(api): State<Arc<Api>>,
    session: Session,
    Json(change): Json<BTreeMap<String, Value>>,
) -> Result<axum::Json<Vec<rest::Setting>>, Failure> {
    let kept = session.store.configuration().await?;
    let checked = settings::check(api.sources.file.as_deref(), &kept, &api.sources.env, &change);
    let changes = checked.map_err(|error: ConfigError| Failure::invalid(error.to_string()))?;
    session.store.set_configuration(changes).await?;
    api.live.follow().await;
    get(State(api), session).await
}
