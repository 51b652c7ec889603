//! Nodes. Their routes are in `routes`.

use super::extract::{IfMatch, Json, Paging, Path, Query, Session, Versioned};
use super::problem::Failure;
use super::{Api, etag};
use axum::extract::State;
use axum::response::Response;
use edgelink_api::rest;
use edgelink_ctl::rows;
use edgelink_model::NodeId;
use edgelink_store::NodeQuery;
use http::Uri;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only this network's (id or name).
    network: Option<String>,
    /// Those with this name; it is unique in a network.
    name: Option<String>,
    /// Only those that are connected, or are not.
    online: Option<bool>,
    /// Only those that may join, or may not.
    authorized: Option<bool>,
    /// At most so many entries.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// Entries after this id.
    after: Option<u32>,
}

/// List nodes.
#[utoipa::path(
    get, path = "/api/v1/nodes", tag = "nodes", operation_id = "listNodes", params(ListParams),
    responses((status = 200, description = "Nodes by id", body = Vec<rest::Node>))
)]
pub(super) async fn list(session: Session, uri: Uri, Query(q): Query<ListParams>) -> Result<Response, Failure> {
    let paging = Paging::new(uri, q.limit, q.after)?;
    let network = match &q.network {
        Some(network) => Some(session.store.find_network(network).await?.record.id),
        None => None,
    };
    let query = NodeQuery { network, name: q.name, online: q.online, authorized: q.authorized };
    let nodes = session.store.list_nodes(&query, paging.page()).await?;
    Ok(paging.answer(nodes.map(rows::node), |n| n.id))
}

/// Show a node, with its endpoints and what it says of its direct paths.
#[utoipa::path(
    get, path = "/api/v1/nodes/{id}", tag = "nodes", operation_id = "getNode",
    params(("id" = u32, Path, description = "The node's id")),
    responses((status = 200, description = "The node", body = rest::Node, headers(("ETag" = String))))
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
) -> Result<Versioned<rest::Node>, Failure> {
    let node = rows::node(session.store.node(NodeId(id)).await?);
    let endpoints = session.store.endpoints(NodeId(id)).await?.into_iter().map(rows::endpoint).collect();
    let p2p = rest::NodeP2p { endpoints, peers: api.live.direct(NodeId(id)).await };
    Ok(versioned(rest::Node { p2p: Some(p2p), ..node }))
}

/// Rename a node.
#[utoipa::path(
    put, path = "/api/v1/nodes/{id}", tag = "nodes", operation_id = "updateNode",
    params(("id" = u32, Path, description = "The node's id"), ("If-Match" = Option<String>, Header, description = "The ETag that the change is meant for")),
    request_body = rest::UpdateNode,
    responses((status = 200, description = "As it is now", body = rest::Node, headers(("ETag" = String))))
)]
pub(super) async fn update(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
    if_match: IfMatch,
    Json(change): Json<rest::UpdateNode>,
) -> Result<Versioned<rest::Node>, Failure> {
    let check = |n: &edgelink_store::NodeDetails| if_match.accepts(&etag::node(&rows::node(n.clone())));
    let node = session.store.update_node(NodeId(id), change.name, check).await?;
    api.live.follow().await;
    Ok(versioned(rows::node(node)))
}

/// Forget a node, free its address and revoke its tokens.
#[utoipa::path(
    delete, path = "/api/v1/nodes/{id}", tag = "nodes", operation_id = "deleteNode",
    params(("id" = u32, Path, description = "The node's id")),
    responses((status = 200, description = "Deleted", body = rest::Deleted))
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
) -> Result<axum::Json<rest::Deleted>, Failure> {
    session.store.delete_node(NodeId(id)).await?;
    api.live.follow().await;
    Ok(axum::Json(rows::deleted(id)))
}

/// Let a node join, with an address of its network.
#[utoipa::path(
    post, path = "/api/v1/nodes/{id}/authorize", tag = "nodes", operation_id = "authorizeNode",
    params(("id" = u32, Path, description = "The node's id")),
    responses((status = 200, description = "As it is now", body = rest::Node, headers(("ETag" = String))))
)]
pub(super) async fn authorize(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
) -> Result<Versioned<rest::Node>, Failure> {
    session.store.authorize_node(NodeId(id)).await?;
    api.live.follow().await;
    get(State(api), session, Path(id)).await
}

/// Bar a node and revoke its tokens. It keeps its address.
#[utoipa::path(
    post, path = "/api/v1/nodes/{id}/deauthorize", tag = "nodes", operation_id = "deauthorizeNode",
    params(("id" = u32, Path, description = "The node's id")),
    responses((status = 200, description = "As it is now", body = rest::Node, headers(("ETag" = String))))
)]
pub(super) async fn deauthorize(
    State(api): State<Arc<Api>>,
    session: Session,
    Path(id): Path<u32>,
) -> Result<Versioned<rest::Node>, Failure> {
    session.store.deauthorize_node(NodeId(id)).await?;
    api.live.follow().await;
    get(State(api), session, Path(id)).await
}

fn versioned(node: rest::Node) -> Versioned<rest::Node> {
    let etag = etag::node(&node);
    Versioned(node, etag)
}
