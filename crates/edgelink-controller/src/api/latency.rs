//! What nodes and relays measure, and the best paths that follow (specification §5.3): the control core's own figures.

use super::Api;
use super::extract::{Query, Session};
use super::problem::Failure;
use axum::extract::State;
use edgelink_api::rest;
use edgelink_model::NetworkId;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Params {
    /// Only this network's nodes (id or name), and relays among each other.
    network: Option<String>,
}

/// Round-trip times between nodes and relays, and between relays, that are not older than 90 s.
#[utoipa::path(
    get, path = "/api/v1/latency/matrix", tag = "latency", operation_id = "latencyMatrix", params(Params),
    responses((status = 200, description = "One entry per measured pair", body = Vec<rest::Latency>))
)]
pub(super) async fn matrix(
    State(api): State<Arc<Api>>,
    session: Session,
    Query(q): Query<Params>,
) -> Result<axum::Json<Vec<rest::Latency>>, Failure> {
    let network = network(&session, q.network).await?;
    Ok(axum::Json(api.live.latencies(network).await))
}

/// The best path of every pair of nodes that talk.
#[utoipa::path(
    get, path = "/api/v1/latency/paths", tag = "latency", operation_id = "latencyPaths", params(Params),
    responses((status = 200, description = "One entry per pair, as the node with the lower id sees it", body = Vec<rest::LatencyPath>))
)]
pub(super) async fn paths(
    State(api): State<Arc<Api>>,
    session: Session,
    Query(q): Query<Params>,
) -> Result<axum::Json<Vec<rest::LatencyPath>>, Failure> {
    let network = network(&session, q.network).await?;
    Ok(axum::Json(api.live.paths(network).await))
}

async fn network(session: &Session, network: Option<String>) -> Result<Option<NetworkId>, Failure> {
    match network {
        Some(network) => Ok(Some(session.store.find_network(&network).await?.record.id)),
        None => Ok(None),
    }
}
