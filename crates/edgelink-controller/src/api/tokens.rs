//! Revoked tokens, and keys with which nodes join.

use super::Api;
use super::extract::{Created, Json, Paging, Path, Query, Session};
use super::problem::Failure;
use crate::os_rng;
use axum::extract::State;
use axum::response::Response;
use edgelink_api::rest;
use edgelink_api::rest::Timestamp;
use edgelink_auth::auth_key;
use edgelink_ctl::rows;
use edgelink_model::{NetworkId, NodeId};
use edgelink_store::{AuthKeyFilter, NewAuthKey};
use http::Uri;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// Longest life of an auth key that ends, seconds.
const MAX_KEY_LIFETIME: u64 = 3650 * 86_400;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BlacklistParams {
    /// Only what concerns this node.
    node_id: Option<u32>,
    /// At most so many entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// Leave out so many of the oldest entries.
    after: Option<u32>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct KeyParams {
    /// Only this network's (id or name).
    network: Option<String>,
    /// At most so many entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// Entries after this id.
    after: Option<u32>,
}

/// List what is revoked and has not expired.
#[utoipa::path(
    get, path = "/api/v1/blacklist", tag = "tokens", operation_id = "listBlacklist", params(BlacklistParams),
    responses((status = 200, description = "Revocations, oldest first", body = Vec<rest::Revocation>))
)]
pub(super) async fn blacklist(
    session: Session,
    uri: Uri,
    Query(q): Query<BlacklistParams>,
) -> Result<Response, Failure> {
    // A jti is no number to continue after, so `after` counts here.
    let paging = Paging::new(uri, q.limit, q.after)?;
    let offset = paging.after.unwrap_or(0);
    let page = paging.page();
    let revocations = session.store.list_revocations(q.node_id.map(NodeId), u64::from(offset), page.limit).await?;
    let next = offset.saturating_add(u32::try_from(revocations.items.len().saturating_sub(1)).unwrap_or(u32::MAX));
    Ok(paging.answer(revocations.map(rows::revocation), |_| next))
}

/// Revoke one token, or every token that a node holds. Relays and nodes know within a second.
#[utoipa::path(
    post, path = "/api/v1/blacklist", tag = "tokens", operation_id = "revokeToken", request_body = rest::Revoke,
    responses((status = 201, description = "Revoked", body = rest::Revocation, headers(("Location" = String))))
)]
pub(super) async fn revoke(
    State(api): State<Arc<Api>>,
    session: Session,
    Json(revoke): Json<rest::Revoke>,
) -> Result<Created<rest::Revocation>, Failure> {
    if revoke.reason.chars().count() > 255 {
        return Err(Failure::invalid("the reason is longer than 255 characters"));
    }
    let record = match (revoke.jti, revoke.node_id) {
        (Some(jti), None) => session.store.revoke_token(&jti, &revoke.reason).await?,
        (None, Some(node)) => session.store.revoke_node(NodeId(node), &revoke.reason).await?,
        _ => return Err(Failure::invalid("give either jti or node_id")),
    };
    api.live.follow().await;
    let listed = session.store.revocations().await?;
    let found = listed.into_iter().find(|details| details.record.id == record.id).map(rows::revocation);
    let revocation = found.ok_or_else(|| Failure::internal(&"a revocation that was just made is gone"))?;
    Ok(Created(revocation, "/api/v1/blacklist".to_owned()))
}

/// List auth keys. The keys themselves are not on record.
#[utoipa::path(
    get, path = "/api/v1/auth-keys", tag = "tokens", operation_id = "listAuthKeys", params(KeyParams),
    responses((status = 200, description = "Auth keys by id", body = Vec<rest::AuthKey>))
)]
pub(super) async fn auth_keys(session: Session, uri: Uri, Query(q): Query<KeyParams>) -> Result<Response, Failure> {
    let paging = Paging::new(uri, q.limit, q.after)?;
    let network = match &q.network {
        Some(network) => Some(session.store.find_network(network).await?.record.id),
        None => None,
    };
    let keys = session.store.list_auth_keys(&AuthKeyFilter { network }, paging.page()).await?;
    Ok(paging.answer(keys.map(rows::auth_key), |k| k.id))
}

/// Make a key with which nodes join a network. It is not shown again.
#[utoipa::path(
    post, path = "/api/v1/auth-keys", tag = "tokens", operation_id = "createAuthKey", request_body = rest::CreateAuthKey,
    responses((status = 201, description = "Made", body = rest::NewAuthKey, headers(("Location" = String))))
)]
pub(super) async fn create_auth_key(
    session: Session,
    Json(wanted): Json<rest::CreateAuthKey>,
) -> Result<Created<rest::NewAuthKey>, Failure> {
    let lifetime = wanted.expires_in;
    if lifetime.is_some_and(|seconds| seconds == 0 || seconds > MAX_KEY_LIFETIME) {
        return Err(Failure::malformed(format!("expires_in is 1 to {MAX_KEY_LIFETIME} seconds, or null")));
    }
    let key = auth_key::generate(&mut os_rng());
    let rest::CreateAuthKey { network_id, reusable, preauthorized, approve_routes, .. } = wanted;
    let record = session
        .store
        .create_auth_key(NewAuthKey {
            key_hash: auth_key::hash(&key),
            network_id: NetworkId(network_id),
            reusable,
            preauthorized,
            approve_routes,
            expires_at: lifetime.map(|seconds| crate::now().unix_ms.saturating_add(seconds * 1000)),
        })
        .await?;
    let expires_at = record.expires_at.map(Timestamp::from_unix_ms);
    let new = rest::NewAuthKey { key: key.to_string(), id: record.id, network_id, reusable, preauthorized, expires_at };
    Ok(Created(new, "/api/v1/auth-keys".to_owned()))
}

/// Forget an auth key. Nodes that joined with it stay.
#[utoipa::path(
    delete, path = "/api/v1/auth-keys/{id}", tag = "tokens", operation_id = "deleteAuthKey",
    params(("id" = u32, Path, description = "The key's id")),
    responses((status = 200, description = "Forgotten", body = rest::Deleted))
)]
pub(super) async fn delete_auth_key(
    session: Session,
    Path(id): Path<u32>,
) -> Result<axum::Json<rest::Deleted>, Failure> {
    session.store.delete_auth_key(id).await?;
    Ok(axum::Json(rows::deleted(id)))
}
