//! Administrators.

use super::extract::{Created, IfMatch, Json, Paging, Path, Query, Session, Versioned};
use super::problem::Failure;
use super::{Api, etag};
use crate::os_rng;
use axum::extract::State;
use axum::response::Response;
use edgelink_api::{Secret, rest};
use edgelink_auth::password;
use edgelink_ctl::rows;
use edgelink_model::ErrorCode;
use edgelink_store::AdminChange;
use http::Uri;
use rand_core::Rng as _;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// At most so many entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// Entries after this id.
    after: Option<u32>,
}

/// List administrators.
#[utoipa::path(
    get, path = "/api/v1/admins", tag = "admins", operation_id = "listAdmins", params(ListParams),
    responses((status = 200, description = "Administrators by id", body = Vec<rest::Admin>))
)]
pub(super) async fn list(session: Session, uri: Uri, Query(q): Query<ListParams>) -> Result<Response, Failure> {
    let paging = Paging::new(uri, q.limit, q.after)?;
    let admins = session.store.admins(paging.page()).await?;
    Ok(paging.answer(admins.map(rows::admin), |a| a.id))
}

/// Make an administrator.
#[utoipa::path(
    post, path = "/api/v1/admins", tag = "admins", operation_id = "createAdmin", request_body = rest::NewAdmin,
    responses((status = 201, description = "Made", body = rest::Admin, headers(("Location" = String))))
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    session: Session,
    Json(new): Json<rest::NewAdmin>,
) -> Result<Created<rest::Admin>, Failure> {
    let hash = hash(&api, new.password).await?;
    let admin = rows::admin(session.store.create_admin(&new.username, hash).await?);
    let location = format!("/api/v1/admins/{}", admin.id);
    Ok(Created(admin, location))
}

/// Show an administrator.
#[utoipa::path(
    get, path = "/api/v1/admins/{id}", tag = "admins", operation_id = "getAdmin",
    params(("id" = u32, Path, description = "The administrator's id")),
    responses((status = 200, description = "The administrator", body = rest::Admin, headers(("ETag" = String))))
)]
pub(super) async fn get(session: Session, Path(id): Path<u32>) -> Result<Versioned<rest::Admin>, Failure> {
    Ok(versioned(rows::admin(session.store.admin(id).await?)))
}

/// Change an administrator. His tokens are void afterwards, also those of whoever changes himself.
#[utoipa::path(
    put, path = "/api/v1/admins/{id}", tag = "admins", operation_id = "updateAdmin",
    params(("id" = u32, Path, description = "The administrator's id"), ("If-Match" = Option<String>, Header, description = "The ETag that the change is meant for")),
    request_body = rest::UpdateAdmin,
    responses(
        (status = 200, description = "As he is now", body = rest::Admin, headers(("ETag" = String))),
        (status = 403, description = "The present password is missing or wrong", body = rest::Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn update(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
    if_match: IfMatch,
    Json(change): Json<rest::UpdateAdmin>,
) -> Result<Versioned<rest::Admin>, Failure> {
    // Who is not there cannot be changed, whatever else is wrong.
    session.store.admin(id).await?;
    let password_hash = match change.password {
        Some(password) => {
            // A stolen token must not be enough to take an account over.
            verify(&api, &session, change.current_password).await?;
            Some(hash(&api, password).await?)
        }
        None => None,
    };
    let change = AdminChange { username: change.username, password_hash, enabled: change.enabled };
    let check = |a: &edgelink_store::AdminRecord| if_match.accepts(&etag::admin(&rows::admin(a.clone())));
    Ok(versioned(rows::admin(session.store.update_admin(id, change, check).await?)))
}

/// Delete an administrator. His tokens are void afterwards.
#[utoipa::path(
    delete, path = "/api/v1/admins/{id}", tag = "admins", operation_id = "deleteAdmin",
    params(("id" = u32, Path, description = "The administrator's id")),
    responses((status = 200, description = "Deleted", body = rest::Deleted))
)]
pub(super) async fn delete(session: Session, Path(id): Path<u32>) -> Result<axum::Json<rest::Deleted>, Failure> {
    session.store.delete_admin(id).await?;
    Ok(axum::Json(rows::deleted(id)))
}

async fn verify(api: &Api, session: &Session, password: Option<Secret>) -> Result<(), Failure> {
    let forbidden = || Failure::forbidden("to change a password, send your own present one as current_password");
    // Who may write the database needs no password for it.
    let Some(login) = &session.login else { return Ok(()) };
    let password = password.ok_or_else(forbidden)?;
    let name = &login.admin.username;
    let attempt = super::auth::throttle(api).attempt(name, None, std::time::Instant::now());
    attempt.map_err(|refused| Failure::throttled(refused.wait.as_secs() + 1))?;
    let found = api.store.credentials(name).await?.ok_or_else(forbidden)?;
    let _permit = permit(api).await?;
    let fits = tokio::task::spawn_blocking(move || password::verify(password.expose(), &found.password_hash));
    if !fits.await.map_err(|e| Failure::internal(&e))? {
        session.store.audit("admin.password_denied", None, None).await?;
        return Err(forbidden());
    }
    super::auth::throttle(api).succeeded(name, None);
    Ok(())
}

async fn hash(api: &Api, password: Secret) -> Result<String, Failure> {
    let mut salt = [0; 16];
    os_rng().fill_bytes(&mut salt);
    let _permit = permit(api).await?;
    let hashed = tokio::task::spawn_blocking(move || password::hash(password.expose(), salt)).await;
    Ok(hashed.map_err(|e| Failure::internal(&e))??)
}

/// A turn to hash.
pub(super) async fn permit(api: &Api) -> Result<tokio::sync::SemaphorePermit<'_>, Failure> {
    match tokio::time::timeout(super::HASHING_TIMEOUT, api.hashing.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(Failure::unavailable(ErrorCode::Overloaded, "too many passwords at once; try again")),
    }
}

fn versioned(admin: rest::Admin) -> Versioned<rest::Admin> {
    let etag = etag::admin(&admin);
    Versioned(admin, etag)
}
