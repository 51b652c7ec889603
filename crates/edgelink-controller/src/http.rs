//! The HTTPS front: WebSocket upgrades, the REST API, health and metrics.

use crate::api;
use crate::hub::{Channel, Hub};
use crate::leader::Role;
use axum::body::Body;
use edgelink_model::ErrorCode;
use edgelink_net::server::{Entered, Peer, Unauthenticated};
use edgelink_net::ws;
use edgelink_server::front::{client_address, relay_metrics, text, upgrade};
use edgelink_server::relay_shell::RelayShell;
use edgelink_server::stun::StunShell;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use ipnet::IpNet;
use std::cell::RefCell;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Control messages are small: reports and key statements; the longest is a relay's list of its nodes.
const MAX_CONTROL_MESSAGE: usize = 1 << 20;

/// What requests are answered from.
pub(crate) struct Front {
    pub(crate) hub: Rc<Hub>,
    pub(crate) relay: Option<Rc<RelayShell>>,
    pub(crate) stun: Option<Rc<StunShell>>,
    pub(crate) api: api::Service,
    pub(crate) control_path: String,
    pub(crate) server_path: String,
    pub(crate) data_path: String,
    pub(crate) mesh_path: String,
    pub(crate) trusted_proxies: RefCell<Vec<IpNet>>,
    /// Control connections that have not proved who they are, per address (DESIGN §6).
    pub(crate) unauthenticated: Unauthenticated,
    /// Connections that have not become WebSockets, per address.
    pub(crate) connections: Unauthenticated,
    /// The same, all together.
    pub(crate) open: Arc<Semaphore>,
}

impl Front {
    /// Answers one request.
    pub(crate) async fn handle(self: Rc<Self>, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        if api::is_ours(request.uri().path()) {
            let client = client_address(&self.trusted_proxies.borrow(), request.headers(), peer.remote.ip());
            return self.api.clone().handle(request.map(Body::new), client).await;
        }
        self.answer(request, peer).map(Body::from)
    }

    /// Lets a connection in; what is returned counts it until it is dropped.
    pub(crate) fn admit(&self, peer: Peer) -> Option<(Option<Entered>, OwnedSemaphorePermit)> {
        let address = peer.remote.ip();
        let proxy = self.trusted_proxies.borrow().iter().any(|net| net.contains(&address));
        let entered = if proxy { None } else { Some(self.connections.enter(address)?) };
        Some((entered, Arc::clone(&self.open).try_acquire_owned().ok()?))
    }

    fn answer(self: &Rc<Self>, mut request: Request<Incoming>, peer: Peer) -> Response<String> {
        let remote = client_address(&self.trusted_proxies.borrow(), request.headers(), peer.remote.ip());
        let path = request.uri().path();
        let kind = match path {
            path if path == self.control_path => Some(Channel::Node),
            path if path == self.server_path => Some(Channel::Server),
            _ => None,
        };
        if let Some(kind) = kind {
            return self.control(&mut request, kind, remote);
        }
        if let Some(relay) = self.relay.clone() {
            // Both would go by one name; whose database is away goes on with those who know it.
            let elsewhere = matches!(self.hub.role(), Role::Standby { .. });
            if elsewhere && (path == self.data_path || path == self.mesh_path) {
                return self.standing_by();
            }
            if path == self.data_path {
                return upgrade(&mut request, ws::MAX_MESSAGE, move |ws| relay.connection(ws, remote));
            }
            if path == self.mesh_path {
                return upgrade(&mut request, ws::MAX_MESSAGE, move |ws| relay.mesh_connection(ws, remote));
            }
        }
        match path {
            "/healthz/active" if self.hub.is_active() => text(StatusCode::OK, "active\n"),
            "/healthz/active" => text(StatusCode::SERVICE_UNAVAILABLE, "standing by\n"),
            "/healthz" if self.hub.database_works() => text(StatusCode::OK, "ok\n"),
            "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
            "/metrics" => text(StatusCode::OK, &self.metrics()),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// A node's or a server's control channel.
    fn control(&self, request: &mut Request<Incoming>, channel: Channel, remote: Option<IpAddr>) -> Response<String> {
        if !self.hub.is_active() {
            return self.standing_by();
        }
        let entered = match remote {
            Some(address) => match self.unauthenticated.enter(address) {
                Some(entered) => Some(entered),
                None => {
                    let why = "too many connections that are not authenticated\n";
                    return text(StatusCode::TOO_MANY_REQUESTS, why);
                }
            },
            None => None,
        };
        let hub = Rc::clone(&self.hub);
        upgrade(request, MAX_CONTROL_MESSAGE, move |ws| hub.connection(ws, channel, entered))
    }

    /// What nodes and relays are told by a controller that is not the active one; they dial the next address.
    fn standing_by(&self) -> Response<String> {
        let code = ErrorCode::Unavailable as u32;
        let mut response = text(
            StatusCode::SERVICE_UNAVAILABLE,
            &match self.hub.role() {
                Role::Standby { active: Some(url) } => {
                    format!("{code}: this controller stands by; the active one is {url}\n")
                }
                _ => format!("{code}: this controller stands by; no other one is known\n"),
            },
        );
        response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("1"));
        if let Role::Standby { active: Some(url) } = self.hub.role()
            && let Ok(active) = http::HeaderValue::from_str(&url)
        {
            response.headers_mut().insert(ws::ACTIVE, active);
        }
        response
    }

    /// Prometheus text format.
    fn metrics(&self) -> String {
        let control = self.hub.stats();
        let mut out = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
            let _ =
                writeln!(out, "# HELP edgelink_{name} {help}\n# TYPE edgelink_{name} {kind}\nedgelink_{name} {value}");
        };
        metric("control_connections", "gauge", "Open control connections.", control.connections);
        metric("nodes_online", "gauge", "Nodes that are connected and configured.", control.nodes_online);
        metric("servers_online", "gauge", "Relays and STUN servers that are connected.", control.servers_online);
        metric("path_updates_total", "counter", "Messages with best paths sent to nodes.", control.path_updates);
        metric("configs_sent_total", "counter", "Full configurations sent.", control.configs_sent);
        metric("config_updates_sent_total", "counter", "Configuration updates sent.", control.updates_sent);
        metric("config_peers_encoded_total", "counter", "Nodes encoded in configurations.", control.peers_encoded);
        metric("auth_failures_total", "counter", "Authentications that failed.", control.auth_failures);
        metric("bad_messages_total", "counter", "Malformed or unexpected control messages.", control.bad_messages);
        metric("config_errors_total", "counter", "Configurations that a node could not apply.", control.config_errors);
        if let Some(relay) = &self.relay {
            relay_metrics(&mut out, &relay.stats());
        }
        if let Some(stun) = &self.stun {
            stun.metrics(&mut out);
        }
        out
    }
}
