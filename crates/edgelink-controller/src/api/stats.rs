//! Numbers for an overview.

use super::extract::Session;
use super::problem::Failure;
use edgelink_api::rest;
use edgelink_ctl::rows;

/// What there is, in numbers.
#[utoipa::path(
    get, path = "/api/v1/stats/overview", tag = "stats", operation_id = "overview",
    responses((status = 200, description = "Numbers", body = rest::Overview))
)]
pub(super) async fn overview(session: Session) -> Result<axum::Json<rest::Overview>, Failure> {
    Ok(axum::Json(rows::overview(session.store.counts().await?)))
}
