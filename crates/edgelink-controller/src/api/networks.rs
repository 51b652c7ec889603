//! Virtual networks.

use super::extract::{Created, IfMatch, Json, Paging, Path, Query, Session, Versioned};
use super::problem::Failure;
use super::{Api, etag};
use axum::extract::State;
use axum::response::Response;
use edgelink_api::rest;
use edgelink_ctl::rows;
use edgelink_model::NetworkId;
use edgelink_store::{NetworkChange, NetworkFilter, NewNetwork, parse_subnet};
use http::Uri;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// The one with this name.
    name: Option<String>,
    /// At most so many entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// Entries after this id.
    after: Option<u32>,
}

/// List networks.
#[utoipa::path(
    get, path = "/api/v1/networks", tag = "networks", operation_id = "listNetworks", params(ListParams),
    responses((status = 200, description = "Networks by id", body = Vec<rest::Network>))
)]
pub(super) async fn list(session: Session, uri: Uri, Query(q): Query<ListParams>) -> Result<Response, Failure> {
    let paging = Paging::new(uri, q.limit, q.after)?;
    let networks = session.store.list_networks(&NetworkFilter { name: q.name }, paging.page()).await?;
    Ok(paging.answer(networks.map(rows::network), |n| n.id))
}

/// Make a network.
#[utoipa::path(
    post, path = "/api/v1/networks", tag = "networks", operation_id = "createNetwork", request_body = rest::NewNetwork,
    responses((status = 201, description = "Made", body = rest::Network, headers(("Location" = String))))
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    session: Session,
    Json(new): Json<rest::NewNetwork>,
) -> Result<Created<rest::Network>, Failure> {
    let new = NewNetwork { name: new.name, subnet: parse_subnet(&new.subnet)?, description: new.description };
    let id = session.store.create_network(new).await?.id;
    api.live.follow().await;
    let network = rows::network(session.store.network(id).await?);
    Ok(Created(network, format!("/api/v1/networks/{id}")))
}

/// Show a network.
#[utoipa::path(
    get, path = "/api/v1/networks/{id}", tag = "networks", operation_id = "getNetwork",
    params(("id" = u32, Path, description = "The network's id")),
    responses((status = 200, description = "The network", body = rest::Network, headers(("ETag" = String))))
)]
pub(super) async fn get(session: Session, Path(id): Path<u32>) -> Result<Versioned<rest::Network>, Failure> {
    Ok(versioned(rows::network(session.store.network(NetworkId(id)).await?)))
}

/// Change a network.
#[utoipa::path(
    put, path = "/api/v1/networks/{id}", tag = "networks", operation_id = "updateNetwork",
    params(("id" = u32, Path, description = "The network's id"), ("If-Match" = Option<String>, Header, description = "The ETag that the change is meant for")),
    request_body = rest::UpdateNetwork,
    responses((status = 200, description = "As it is now", body = rest::Network, headers(("ETag" = String))))
)]
pub(super) async fn update(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
    if_match: IfMatch,
    Json(change): Json<rest::UpdateNetwork>,
) -> Result<Versioned<rest::Network>, Failure> {
    let subnet = change.subnet.as_deref().map(parse_subnet).transpose()?;
    let change = NetworkChange { name: change.name, subnet, description: change.description };
    let check = |n: &edgelink_store::NetworkDetails| if_match.accepts(&etag::network(&rows::network(n.clone())));
    let network = session.store.update_network(NetworkId(id), change, check).await?;
    api.live.follow().await;
    Ok(versioned(rows::network(network)))
}

/// Delete a network that has no nodes, with its auth keys.
#[utoipa::path(
    delete, path = "/api/v1/networks/{id}", tag = "networks", operation_id = "deleteNetwork",
    params(("id" = u32, Path, description = "The network's id")),
    responses((status = 200, description = "Deleted", body = rest::Deleted))
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
) -> Result<axum::Json<rest::Deleted>, Failure> {
    session.store.delete_network(NetworkId(id)).await?;
    api.live.follow().await;
    Ok(axum::Json(rows::deleted(id)))
}

fn versioned(network: rest::Network) -> Versioned<rest::Network> {
    let etag = etag::network(&network);
    Versioned(network, etag)
}
