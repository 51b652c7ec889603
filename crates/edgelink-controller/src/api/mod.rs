//! The REST API (specification §10.1): one file per resource. Handlers are thin: they read a request, call the store,
//! whose methods are transactions that write the change and its audit line together, let the hub follow at once, and
//! answer with the objects of `edgelink_api::rest`. docs/api.md is for users.

mod admins;
mod audit;
mod auth;
mod etag;
mod extract;
mod latency;
mod networks;
mod nodes;
mod problem;
mod routes;
mod servers;
mod settings;
mod spec;
mod stats;
mod throttle;
mod tokens;

pub(crate) use extract::{Client, Local};
pub(crate) use settings::Sources;

use crate::live::Live;
use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use edgelink_auth::token::Issuer;
use edgelink_net::tls::Pin;
use edgelink_store::Store;
use http::{HeaderValue, Request, Uri, header};
use problem::Failure;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use throttle::Throttle;
use tokio::sync::Semaphore;
use tower::ServiceExt as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Longest request body, in bytes; the largest sensible one has a few kilobytes.
const MAX_BODY: usize = 64 * 1024;
/// A request is answered within this time, or with 503.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Passwords hashed at the same time; each takes 19 MiB and some tens of milliseconds of a core.
const MAX_HASHING: usize = 2;
/// A password waits so long for its turn to be hashed.
const HASHING_TIMEOUT: Duration = Duration::from_secs(10);
/// Life of an admin_token (specification §4.1).
const ADMIN_TOKEN_LIFETIME: Duration = Duration::from_secs(8 * 3600);

/// Routes with their descriptions.
type Routes = OpenApiRouter<Arc<Api>>;

/// What the handlers share.
pub(crate) struct Api {
    store: Store,
    issuer: Arc<Issuer>,
    live: Live,
    throttle: Mutex<Throttle>,
    hashing: Semaphore,
    sources: Sources,
    /// For the configurations of servers: where the controller is, and what to pin.
    public_url: Option<edgelink_config::WsUrl>,
    pin: Option<Pin>,
}

/// The API, ready to answer requests.
#[derive(Clone)]
pub(crate) struct Service {
    router: Router,
}

impl Api {
    pub(crate) fn new(
        store: Store,
        issuer: Arc<Issuer>,
        live: Live,
        sources: Sources,
        public_url: Option<edgelink_config::WsUrl>,
        pin: Option<Pin>,
    ) -> Self {
        let (throttle, hashing) = (Mutex::default(), Semaphore::new(MAX_HASHING));
        Self { store, issuer, live, throttle, hashing, sources, public_url, pin }
    }
}

impl Service {
    pub(crate) fn new(api: Api) -> Self {
        let api = Arc::new(api);
        Self { router: router(&api).with_state(api) }
    }

    /// Answers one request that came from `client`.
    pub(crate) async fn handle(self, mut request: Request<Body>, client: Option<IpAddr>) -> Response {
        request.extensions_mut().insert(Client(client));
        self.answer(request).await
    }

    /// Answers one request from this host's `user`; `None`: one who may not ask.
    pub(crate) async fn handle_local(self, mut request: Request<Body>, user: Option<Local>) -> Response {
        let Some(user) = user else {
            let detail = "only root and the user that the controller runs as may use its socket; \
                          log in over HTTPS instead (edgelink-ctl --url)";
            return Failure::forbidden(detail).into_response();
        };
        request.extensions_mut().insert(user);
        self.answer(request).await
    }

    async fn answer(self, mut request: Request<Body>) -> Response {
        if let Some(uri) = canonical(request.uri()) {
            *request.uri_mut() = uri;
        }
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.router.oneshot(request)).await;
        let mut response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => {
                let detail = "the request took too long; try again";
                Failure::unavailable(edgelink_model::ErrorCode::Overloaded, detail).into_response()
            }
        };
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
}

/// Whether a request is the API's.
pub(crate) fn is_ours(path: &str) -> bool {
    path.strip_prefix("/api").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `/api/v1/network/…` means `/api/v1/networks/…` (specification §5.1 names it so, §10.1 the other way).
fn canonical(uri: &Uri) -> Option<Uri> {
    let rest = uri.path().strip_prefix("/api/v1/network").filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    format!("/api/v1/networks{rest}{query}").parse().ok()
}

/// Every route.
fn router(api: &Arc<Api>) -> Router<Arc<Api>> {
    let guard = middleware::from_fn_with_state(Arc::clone(api), auth::guard);
    let (router, _) = open().merge(guarded().route_layer(guard)).split_for_parts();
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed).layer(DefaultBodyLimit::max(MAX_BODY))
}

/// What anybody may ask.
fn open() -> Routes {
    OpenApiRouter::with_openapi(spec::base()).routes(routes!(auth::login)).routes(routes!(spec::serve))
}

/// What takes an admin_token.
fn guarded() -> Routes {
    OpenApiRouter::new()
        .routes(routes!(auth::logout))
        .routes(routes!(auth::me))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::get, nodes::update, nodes::delete))
        .routes(routes!(nodes::authorize))
        .routes(routes!(nodes::deauthorize))
        .routes(routes!(routes::of_node, routes::add))
        .routes(routes!(routes::get, routes::update, routes::delete))
        .routes(routes!(routes::enable))
        .routes(routes!(routes::disable))
        .routes(routes!(routes::approve))
        .routes(routes!(routes::table))
        .routes(routes!(routes::one))
        .routes(routes!(networks::list, networks::create))
        .routes(routes!(networks::get, networks::update, networks::delete))
        .routes(routes!(servers::list, servers::add))
        .routes(routes!(servers::get, servers::update, servers::delete))
        .routes(routes!(servers::token))
        .routes(routes!(servers::enable))
        .routes(routes!(servers::disable))
        .routes(routes!(tokens::blacklist, tokens::revoke))
        .routes(routes!(tokens::auth_keys, tokens::create_auth_key))
        .routes(routes!(tokens::delete_auth_key))
        .routes(routes!(admins::list, admins::create))
        .routes(routes!(admins::get, admins::update, admins::delete))
        .routes(routes!(audit::list))
        .routes(routes!(latency::matrix))
        .routes(routes!(latency::paths))
        .routes(routes!(settings::get, settings::update))
        .routes(routes!(stats::overview))
}

async fn not_found() -> Failure {
    Failure::not_found("there is nothing at this path; GET /api/v1/openapi.json lists what there is")
}

async fn method_not_allowed() -> Failure {
    Failure::method_not_allowed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_singular_means_the_plural() {
        for (given, want) in [
            ("/api/v1/network", Some("/api/v1/networks")),
            ("/api/v1/network/3?x=1", Some("/api/v1/networks/3?x=1")),
            ("/api/v1/networks/3", None),
            ("/api/v1/networked", None),
            ("/api/v1/nodes", None),
        ] {
            assert_eq!(canonical(&given.parse().unwrap()).map(|uri| uri.to_string()).as_deref(), want, "{given}");
        }
        assert!(is_ours("/api") && is_ours("/api/v1/nodes") && !is_ours("/apix") && !is_ours("/healthz"));
    }
}
