//! Subnet routes behind nodes (specification §7.1).

use super::extract::{Created, IfMatch, Json, Paging, Path, Query, Session, Versioned};
use super::problem::Failure;
use super::{Api, etag};
use axum::extract::State;
use axum::response::Response;
use edgelink_api::rest;
use edgelink_ctl::rows;
use edgelink_model::NodeId;
use edgelink_store::{NewRoute, Page, RouteChange, RouteDetails, RouteFilter, StoreError};
use http::Uri;
use ipnet::IpNet;
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

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TableParams {
    /// Only this network's (id or name).
    network: Option<String>,
    /// Only this prefix.
    cidr: Option<String>,
    /// Only approved ones, or those that wait.
    enabled: Option<bool>,
}

/// List a node's routes.
#[utoipa::path(
    get, path = "/api/v1/nodes/{id}/routes", tag = "routes", operation_id = "listNodeRoutes",
    params(("id" = u32, Path, description = "The node's id"), ListParams),
    responses((status = 200, description = "Routes by id", body = Vec<rest::NodeRoute>))
)]
pub(super) async fn of_node(
    session: Session,
    uri: Uri,
    Path(id): Path<u32>,
    Query(q): Query<ListParams>,
) -> Result<Response, Failure> {
    let paging = Paging::new(uri, q.limit, q.after)?;
    session.store.node(NodeId(id)).await?;
    let filter = RouteFilter { node: Some(NodeId(id)), ..RouteFilter::default() };
    let routes = session.store.list_routes(&filter, paging.page()).await?;
    Ok(paging.answer(routes.map(rows::route), |r| r.id))
}

/// Add a route to a node.
#[utoipa::path(
    post, path = "/api/v1/nodes/{id}/routes", tag = "routes", operation_id = "addNodeRoute",
    params(("id" = u32, Path, description = "The node's id")), request_body = rest::NewRoute,
    responses((status = 201, description = "Added", body = rest::NodeRoute, headers(("Location" = String))))
)]
pub(super) async fn add(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
    Json(new): Json<rest::NewRoute>,
) -> Result<Created<rest::NodeRoute>, Failure> {
    let rest::NewRoute { priority, weight, enabled, .. } = new;
    let new = NewRoute { node_id: NodeId(id), cidr: cidr(&new.cidr)?, priority, weight, enabled };
    let route = session.store.add_route(new).await?;
    api.live.follow().await;
    let route = rows::route(session.store.route(route.id).await?);
    let location = format!("/api/v1/nodes/{id}/routes/{}", route.id);
    Ok(Created(route, location))
}

/// Show a node's route.
#[utoipa::path(
    get, path = "/api/v1/nodes/{id}/routes/{rid}", tag = "routes", operation_id = "getNodeRoute",
    params(("id" = u32, Path, description = "The node's id"), ("rid" = u32, Path, description = "The route's id")),
    responses((status = 200, description = "The route", body = rest::NodeRoute, headers(("ETag" = String))))
)]
pub(super) async fn get(session: Session, Path(ids): Path<(u32, u32)>) -> Result<Versioned<rest::NodeRoute>, Failure> {
    Ok(versioned(find(&session, ids).await?))
}

/// Change a route's priority, weight or approval.
#[utoipa::path(
    put, path = "/api/v1/nodes/{id}/routes/{rid}", tag = "routes", operation_id = "updateNodeRoute",
    params(
        ("id" = u32, Path, description = "The node's id"), ("rid" = u32, Path, description = "The route's id"),
        ("If-Match" = Option<String>, Header, description = "The ETag that the change is meant for")
    ),
    request_body = rest::UpdateRoute,
    responses((status = 200, description = "As it is now", body = rest::NodeRoute, headers(("ETag" = String))))
)]
pub(super) async fn update(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(ids): Path<(u32, u32)>,
    if_match: IfMatch,
    Json(change): Json<rest::UpdateRoute>,
) -> Result<Versioned<rest::NodeRoute>, Failure> {
    let before = session.store.route(ids.1).await?;
    let check = |record: &edgelink_model::records::RouteRecord| {
        let now = RouteDetails { record: record.clone(), ..before.clone() };
        if_match.accepts(&etag::route(&rows::route(now)))
    };
    let change = RouteChange { priority: change.priority, weight: change.weight, enabled: change.enabled };
    let route = session.store.update_route(NodeId(ids.0), ids.1, change, check).await?;
    api.live.follow().await;
    Ok(versioned(route))
}

/// Delete a route.
#[utoipa::path(
    delete, path = "/api/v1/nodes/{id}/routes/{rid}", tag = "routes", operation_id = "deleteNodeRoute",
    params(("id" = u32, Path, description = "The node's id"), ("rid" = u32, Path, description = "The route's id")),
    responses((status = 200, description = "Deleted", body = rest::Deleted))
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(ids): Path<(u32, u32)>,
) -> Result<axum::Json<rest::Deleted>, Failure> {
    find(&session, ids).await?;
    session.store.delete_route(ids.1).await?;
    api.live.follow().await;
    Ok(axum::Json(rows::deleted(ids.1)))
}

/// Approve a route: from now on it is used.
#[utoipa::path(
    post, path = "/api/v1/nodes/{id}/routes/{rid}/enable", tag = "routes", operation_id = "enableNodeRoute",
    params(("id" = u32, Path, description = "The node's id"), ("rid" = u32, Path, description = "The route's id")),
    responses((status = 200, description = "As it is now", body = rest::NodeRoute, headers(("ETag" = String))))
)]
pub(super) async fn enable(
    state: State<Arc<Api>>,
    session: Session,
    Path(ids): Path<(u32, u32)>,
) -> Result<Versioned<rest::NodeRoute>, Failure> {
    switch(state, session, ids, true).await
}

/// Withdraw a route: it stays on record and is not used.
#[utoipa::path(
    post, path = "/api/v1/nodes/{id}/routes/{rid}/disable", tag = "routes", operation_id = "disableNodeRoute",
    params(("id" = u32, Path, description = "The node's id"), ("rid" = u32, Path, description = "The route's id")),
    responses((status = 200, description = "As it is now", body = rest::NodeRoute, headers(("ETag" = String))))
)]
pub(super) async fn disable(
    state: State<Arc<Api>>,
    session: Session,
    Path(ids): Path<(u32, u32)>,
) -> Result<Versioned<rest::NodeRoute>, Failure> {
    switch(state, session, ids, false).await
}

/// Approve a route that a node announced; the same as `enable`.
#[utoipa::path(
    post, path = "/api/v1/nodes/{id}/routes/{rid}/approve", tag = "routes", operation_id = "approveNodeRoute",
    params(("id" = u32, Path, description = "The node's id"), ("rid" = u32, Path, description = "The route's id")),
    responses((status = 200, description = "As it is now", body = rest::NodeRoute, headers(("ETag" = String))))
)]
pub(super) async fn approve(
    state: State<Arc<Api>>,
    session: Session,
    Path(ids): Path<(u32, u32)>,
) -> Result<Versioned<rest::NodeRoute>, Failure> {
    switch(state, session, ids, true).await
}

/// The routing table: prefixes of each network with their gateways, the most preferred first.
#[utoipa::path(
    get, path = "/api/v1/routes", tag = "routes", operation_id = "listRoutes", params(TableParams),
    responses((status = 200, description = "By network, then by prefix", body = Vec<rest::RouteGroup>))
)]
pub(super) async fn table(
    session: Session,
    Query(q): Query<TableParams>,
) -> Result<axum::Json<Vec<rest::RouteGroup>>, Failure> {
    let network = match &q.network {
        Some(network) => Some(session.store.find_network(network).await?.record.id),
        None => None,
    };
    let cidr = q.cidr.as_deref().map(cidr).transpose()?.map(|cidr| cidr.to_string());
    let filter = RouteFilter { network, cidr, enabled: q.enabled, node: None };
    let routes = session.store.list_routes(&filter, Page::default()).await?;
    Ok(axum::Json(rows::route_groups(routes.items)))
}

/// Show a route, whichever node's it is.
#[utoipa::path(
    get, path = "/api/v1/routes/{rid}", tag = "routes", operation_id = "getRoute",
    params(("rid" = u32, Path, description = "The route's id")),
    responses((status = 200, description = "The route", body = rest::NodeRoute, headers(("ETag" = String))))
)]
pub(super) async fn one(session: Session, Path(id): Path<u32>) -> Result<Versioned<rest::NodeRoute>, Failure> {
    Ok(versioned(session.store.route(id).await?))
}

async fn switch(
    State(api): State<Arc<Api>>,
    session: Session,
    (node, id): (u32, u32),
    enabled: bool,
) -> Result<Versioned<rest::NodeRoute>, Failure> {
    let change = RouteChange { enabled: Some(enabled), ..RouteChange::default() };
    let route = session.store.update_route(NodeId(node), id, change, |_| true).await?;
    api.live.follow().await;
    Ok(versioned(route))
}

/// The route, if it is the node's.
async fn find(session: &Session, (node, id): (u32, u32)) -> Result<RouteDetails, Failure> {
    session.store.node(NodeId(node)).await?;
    let route = session.store.route(id).await?;
    if route.record.node_id != NodeId(node) {
        return Err(StoreError::NotFound { what: "route", key: id.to_string() }.into());
    }
    Ok(route)
}

fn cidr(text: &str) -> Result<IpNet, Failure> {
    text.parse().map_err(|_| {
        Failure::invalid(format!("{text:?} is not a prefix; give an address and a length, such as 192.168.1.0/24"))
    })
}

fn versioned(route: RouteDetails) -> Versioned<rest::NodeRoute> {
    let route = rows::route(route);
    let etag = etag::route(&route);
    Versioned(route, etag)
}
