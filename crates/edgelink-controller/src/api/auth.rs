//! Login, logout, and the guard before everything else.

use super::extract::{Client, Json, Local, Login, Session};
use super::problem::Failure;
use super::{ADMIN_TOKEN_LIFETIME, Api};
use crate::os_rng;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use edgelink_api::rest;
use edgelink_api::rest::Timestamp;
use edgelink_auth::password;
use edgelink_auth::token::{AdminClaims, new_jti};
use edgelink_ctl::rows;
use edgelink_model::ErrorCode;
use edgelink_store::{Actor, Store};
use http::{StatusCode, header};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

/// Log in.
///
/// The token goes into the header `Authorization: Bearer …` of other requests. It ends after 8 hours, at logout, and
/// when the administrator is changed or deleted. Failed attempts are throttled per account and per address.
#[utoipa::path(
    post, path = "/api/v1/auth/login", tag = "auth", operation_id = "login", request_body = rest::LoginRequest,
    responses(
        (status = 200, description = "Logged in", body = rest::Login),
        (status = 401, description = "Wrong name or password", body = rest::Problem, content_type = "application/problem+json"),
        (status = 429, description = "Too many attempts", body = rest::Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn login(
    State(api): State<Arc<Api>>,
    Client(address): Client,
    Json(request): Json<rest::LoginRequest>,
) -> Result<axum::Json<rest::Login>, Failure> {
    let name = request.username;
    let denied = api.store.acting_as(Actor { kind: "admin".into(), id: Some(shown(&name)), ip_address: address });
    let attempt = throttle(&api).attempt(&name, address, Instant::now());
    if let Err(refused) = attempt {
        match refused.report {
            Some(1) => deny(&denied, "throttled").await?,
            Some(attempts) => deny(&denied, &format!("throttled, {attempts} attempts")).await?,
            None => {}
        }
        return Err(Failure::throttled(refused.wait.as_secs() + 1));
    }
    let found = api.store.credentials(&name).await?;
    let hash = found.as_ref().map_or_else(|| password::decoy().to_owned(), |found| found.password_hash.clone());
    let fits = {
        let _permit = super::admins::permit(&api).await?;
        let given = request.password;
        let verified = tokio::task::spawn_blocking(move || password::verify(given.expose(), &hash)).await;
        verified.map_err(|e| Failure::internal(&e))?
    };
    let why = match &found {
        None => "unknown account",
        Some(_) if !fits => "wrong password",
        Some(found) if !found.admin.enabled => "account disabled",
        Some(found) => return welcome(&api, found.admin.id, &name, address).await.map(axum::Json),
    };
    deny(&denied, why).await?;
    // Which of them it was is for the audit log only.
    Err(Failure::unauthenticated(ErrorCode::InvalidToken, "the name or the password is wrong"))
}

async fn welcome(api: &Api, id: u32, name: &str, address: Option<IpAddr>) -> Result<rest::Login, Failure> {
    throttle(api).succeeded(name, address);
    let store = api.store.acting_as(Actor { kind: "admin".into(), id: Some(name.to_owned()), ip_address: address });
    let admin = store.admin_logged_in(id).await?;
    let iat = crate::now().unix_ms / 1000;
    let exp = iat + ADMIN_TOKEN_LIFETIME.as_secs();
    let jti = new_jti(&mut os_rng());
    let claims = AdminClaims { admin_id: admin.id, username: admin.username.clone(), iat, exp, jti };
    Ok(rest::Login {
        token: api.issuer.admin(&claims)?,
        token_type: "Bearer".to_owned(),
        expires_at: Timestamp::from_unix_ms(exp * 1000),
        admin: rows::admin(admin),
    })
}

async fn deny(store: &Store, why: &str) -> Result<(), Failure> {
    Ok(store.audit("admin.login_denied", None, Some(why.to_owned())).await?)
}

/// Log out: the token that is shown is void from now on.
#[utoipa::path(
    post, path = "/api/v1/auth/logout", tag = "auth", operation_id = "logout",
    responses((status = 204, description = "Logged out"))
)]
pub(super) async fn logout(State(api): State<Arc<Api>>, session: Session) -> Result<StatusCode, Failure> {
    let store = session.store.clone();
    store.revoke_token(&session.login()?.claims.jti, "logout").await?;
    api.live.follow().await;
    Ok(StatusCode::NO_CONTENT)
}

/// Who is logged in.
#[utoipa::path(
    get, path = "/api/v1/auth/me", tag = "auth", operation_id = "me",
    responses((status = 200, description = "The administrator and his token", body = rest::Me))
)]
pub(super) async fn me(session: Session) -> Result<axum::Json<rest::Me>, Failure> {
    let Login { admin, claims } = session.login()?;
    Ok(axum::Json(rest::Me {
        admin: rows::admin(admin),
        jti: claims.jti,
        expires_at: Timestamp::from_unix_ms(claims.exp.saturating_mul(1000)),
    }))
}

/// Lets a request through whose admin_token is good, or whose user the local socket has let in, and nothing else.
pub(super) async fn guard(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Result<Response, Failure> {
    if let Some(Local(user)) = request.extensions().get() {
        let store = api.store.acting_as(Actor::cli(Some(user.clone())));
        request.extensions_mut().insert(Session { store, login: None });
        return Ok(next.run(request).await);
    }
    let address = request.extensions().get::<Client>().and_then(|client| client.0);
    let token = bearer(request.headers())?;
    let claims = api.issuer.verify_admin(token, crate::now().unix_ms / 1000)?;
    let admin = match api.store.admin_session(claims.admin_id, &claims.jti, claims.iat).await? {
        edgelink_store::Session::Valid(admin) => admin,
        edgelink_store::Session::Revoked | edgelink_store::Session::Void => {
            return Err(edgelink_auth::token::TokenError::Revoked.into());
        }
    };
    let actor = Actor { kind: "admin".into(), id: Some(admin.username.clone()), ip_address: address };
    let session = Session { store: api.store.acting_as(actor), login: Some(Login { admin, claims }) };
    request.extensions_mut().insert(session);
    Ok(next.run(request).await)
}

fn bearer(headers: &http::HeaderMap) -> Result<&str, Failure> {
    let missing = || {
        let detail = "log in (POST /api/v1/auth/login) and send the token: Authorization: Bearer TOKEN";
        Failure::unauthenticated(ErrorCode::InvalidToken, detail)
    };
    let value = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).ok_or_else(missing)?;
    let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(missing()) }
}

pub(super) fn throttle(api: &Api) -> std::sync::MutexGuard<'_, super::Throttle> {
    api.throttle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name that anybody may have made up, fit for a log.
fn shown(name: &str) -> String {
    name.chars().take(63).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
