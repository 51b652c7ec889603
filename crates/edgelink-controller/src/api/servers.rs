//! Relays and STUN servers.

use super::extract::{Created, IfMatch, Json, Paging, Path, Query, Session, Versioned};
use super::problem::Failure;
use super::{Api, etag};
use axum::extract::State;
use axum::response::Response;
use edgelink_api::rest;
use edgelink_api::rest::Capability;
use edgelink_config::WsUrl;
use edgelink_ctl::{introduce, rows};
use edgelink_model::ServerId;
use edgelink_model::records::{ServerKind, ServerRecord};
use edgelink_store::{NewServer, ServerChange, ServerFilter};
use http::Uri;
use serde::Deserialize;
use std::net::IpAddr;
use std::sync::Arc;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// The one with this name.
    name: Option<String>,
    /// Only those that nodes may use, or may not.
    enabled: Option<bool>,
    /// Only those of this region.
    region: Option<String>,
    /// At most so many entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// Entries after this id.
    after: Option<u32>,
}

/// List servers.
#[utoipa::path(
    get, path = "/api/v1/servers", tag = "servers", operation_id = "listServers", params(ListParams),
    responses((status = 200, description = "Servers by id", body = Vec<rest::Server>))
)]
pub(super) async fn list(session: Session, uri: Uri, Query(q): Query<ListParams>) -> Result<Response, Failure> {
    let paging = Paging::new(uri, q.limit, q.after)?;
    let filter = ServerFilter { name: q.name, enabled: q.enabled, region: q.region };
    let servers = session.store.list_servers(&filter, paging.page()).await?;
    Ok(paging.answer(servers.map(rows::server), |s| s.id))
}

/// Add a server. The answer holds its token, which is not shown again.
#[utoipa::path(
    post, path = "/api/v1/servers", tag = "servers", operation_id = "addServer", request_body = rest::NewServer,
    responses((status = 201, description = "Added", body = rest::ServerToken, headers(("Location" = String))))
)]
pub(super) async fn add(
    State(api): State<Arc<Api>>,
    session: Session,
    Json(new): Json<rest::NewServer>,
) -> Result<Created<rest::ServerToken>, Failure> {
    let controller = new.controller.as_deref().map(|url| ws_url("controller", url)).transpose()?;
    let (relay, stun) = functions(&new.capabilities)?;
    let stun_ip = new.stun_ip.as_deref().map(|ip| address("stun_ip", ip)).transpose()?;
    let stun_ip2 = new.stun_ip2.as_deref().map(|ip| address("stun_ip2", ip)).transpose()?;
    if stun && stun_ip.is_none() {
        return Err(Failure::invalid("a STUN server needs its public address (stun_ip)"));
    }
    let url = new.url.as_deref().map(data_url).transpose()?;
    let (stun_port, region, name) = (port(new.stun_port)?, new.region, new.name);
    let new = NewServer { name, url, region, relay, stun, stun_ip, stun_ip2, stun_port };
    let record = session.store.add_server(new).await?;
    api.live.follow().await;
    let token = server_token(&api, &session, &record, controller).await?;
    Ok(Created(token, format!("/api/v1/servers/{}", record.id)))
}

/// Show a server.
#[utoipa::path(
    get, path = "/api/v1/servers/{id}", tag = "servers", operation_id = "getServer",
    params(("id" = u32, Path, description = "The server's id")),
    responses((status = 200, description = "The server", body = rest::Server, headers(("ETag" = String))))
)]
pub(super) async fn get(session: Session, Path(id): Path<u32>) -> Result<Versioned<rest::Server>, Failure> {
    Ok(versioned(rows::server(session.store.server(ServerId(id)).await?)))
}

/// Change a server.
#[utoipa::path(
    put, path = "/api/v1/servers/{id}", tag = "servers", operation_id = "updateServer",
    params(("id" = u32, Path, description = "The server's id"), ("If-Match" = Option<String>, Header, description = "The ETag that the change is meant for")),
    request_body = rest::UpdateServer,
    responses((status = 200, description = "As it is now", body = rest::Server, headers(("ETag" = String))))
)]
pub(super) async fn update(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
    if_match: IfMatch,
    Json(change): Json<rest::UpdateServer>,
) -> Result<Versioned<rest::Server>, Failure> {
    let functions = change.capabilities.as_deref().map(functions).transpose()?;
    let optional = |name, ip: Option<Option<String>>| {
        ip.map(|ip| ip.as_deref().map(|ip| address(name, ip)).transpose()).transpose()
    };
    let change = ServerChange {
        name: change.name,
        url: change.url.map(|url| url.as_deref().map(data_url).transpose()).transpose()?,
        region: change.region,
        relay: functions.map(|f| f.0),
        stun: functions.map(|f| f.1),
        stun_ip: optional("stun_ip", change.stun_ip)?,
        stun_ip2: optional("stun_ip2", change.stun_ip2)?,
        stun_port: change.stun_port.map(port).transpose()?,
        enabled: change.enabled,
    };
    let check = |s: &edgelink_store::ServerDetails| if_match.accepts(&etag::server(&rows::server(s.clone())));
    let server = session.store.change_server(ServerId(id), change, check).await?;
    api.live.follow().await;
    Ok(versioned(rows::server(server)))
}

/// Forget a server; its token is worth nothing from then on.
#[utoipa::path(
    delete, path = "/api/v1/servers/{id}", tag = "servers", operation_id = "deleteServer",
    params(("id" = u32, Path, description = "The server's id")),
    responses((status = 200, description = "Deleted", body = rest::Deleted))
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
) -> Result<axum::Json<rest::Deleted>, Failure> {
    session.store.delete_server(ServerId(id)).await?;
    api.live.follow().await;
    Ok(axum::Json(rows::deleted(id)))
}

/// Make another token for a server. Earlier ones stay good until they are revoked.
#[utoipa::path(
    post, path = "/api/v1/servers/{id}/token", tag = "servers", operation_id = "newServerToken",
    params(("id" = u32, Path, description = "The server's id")), request_body = Option<rest::NewServerToken>,
    responses((status = 200, description = "The token, which is not shown again", body = rest::ServerToken))
)]
pub(super) async fn token(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
    body: super::extract::OptionalJson<rest::NewServerToken>,
) -> Result<axum::Json<rest::ServerToken>, Failure> {
    let wanted = body.0.unwrap_or_default();
    let controller = wanted.controller.as_deref().map(|url| ws_url("controller", url)).transpose()?;
    let record = session.store.server(ServerId(id)).await?.record;
    if record.kind == ServerKind::Builtin {
        let detail = "the built-in server is part of the controller and needs no token";
        return Err(edgelink_store::StoreError::InUse(detail.into()).into());
    }
    Ok(axum::Json(server_token(&api, &session, &record, controller).await?))
}

/// Let nodes use a server.
#[utoipa::path(
    post, path = "/api/v1/servers/{id}/enable", tag = "servers", operation_id = "enableServer",
    params(("id" = u32, Path, description = "The server's id")),
    responses((status = 200, description = "As it is now", body = rest::Server, headers(("ETag" = String))))
)]
pub(super) async fn enable(
    state: State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
) -> Result<Versioned<rest::Server>, Failure> {
    switch(state, session, id, true).await
}

/// Take a server away from nodes; it stays connected to the controller.
#[utoipa::path(
    post, path = "/api/v1/servers/{id}/disable", tag = "servers", operation_id = "disableServer",
    params(("id" = u32, Path, description = "The server's id")),
    responses((status = 200, description = "As it is now", body = rest::Server, headers(("ETag" = String))))
)]
pub(super) async fn disable(
    state: State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
) -> Result<Versioned<rest::Server>, Failure> {
    switch(state, session, id, false).await
}

async fn switch(
    State(api): State<Arc<Api>>,
    session: Session,
    id: u32,
    enabled: bool,
) -> Result<Versioned<rest::Server>, Failure> {
    session.store.set_server_enabled(ServerId(id), enabled).await?;
    api.live.follow().await;
    get(session, Path(id)).await
}

async fn server_token(
    api: &Api,
    session: &Session,
    record: &ServerRecord,
    controller: Option<WsUrl>,
) -> Result<rest::ServerToken, Failure> {
    let token = introduce::server_token(&session.store, record).await.map_err(|error| match error {
        introduce::IntroduceError::Store(error) => error.into(),
        error => Failure::internal(&error),
    })?;
    let controller = controller.or_else(|| api.public_url.clone());
    let pin = api.pin.map(|pin| pin.to_string());
    let config = introduce::server_configuration(record, &token, controller, pin);
    Ok(rest::ServerToken { id: record.id.0, token, config })
}

fn functions(capabilities: &[Capability]) -> Result<(bool, bool), Failure> {
    let has = |capability| capabilities.contains(&capability);
    match (has(Capability::Relay), has(Capability::Stun)) {
        (false, false) => Err(Failure::invalid("a server needs a capability: relay, stun or both")),
        functions => Ok(functions),
    }
}

fn data_url(text: &str) -> Result<String, Failure> {
    Ok(ws_url("url", text)?.or_path("/ws/data").to_string())
}

fn ws_url(field: &str, text: &str) -> Result<WsUrl, Failure> {
    text.parse().map_err(|error| Failure::invalid(format!("{field}: {error}")))
}

fn address(field: &str, text: &str) -> Result<IpAddr, Failure> {
    text.parse().map_err(|_| Failure::invalid(format!("{field}: {text:?} is not an IP address")))
}

fn port(port: u16) -> Result<u16, Failure> {
    if port == 0 { Err(Failure::malformed("stun_port is 1 to 65535")) } else { Ok(port) }
}

fn versioned(server: rest::Server) -> Versioned<rest::Server> {
    let etag = etag::server(&server);
    Versioned(server, etag)
}
