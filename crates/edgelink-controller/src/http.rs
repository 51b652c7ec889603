//! The HTTPS front: WebSocket upgrades, health and metrics.

use crate::hub::Hub;
use crate::relay_shell::RelayShell;
use edgelink_net::server::{Peer, Unauthenticated};
use edgelink_net::ws;
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use ipnet::IpNet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::rc::Rc;

/// Control messages from nodes are small: reports and key statements.
const MAX_CONTROL_MESSAGE: usize = 1 << 20;

/// What requests are answered from.
pub(crate) struct Front {
    pub(crate) hub: Rc<Hub>,
    pub(crate) relay: Option<Rc<RelayShell>>,
    pub(crate) control_path: String,
    pub(crate) data_path: String,
    pub(crate) trusted_proxies: Vec<IpNet>,
    /// Control connections that have not proved who they are, per address (DESIGN §6).
    pub(crate) unauthenticated: Unauthenticated,
}

impl Front {
    /// Answers one request.
    pub(crate) fn handle(self: &Rc<Self>, mut request: Request<Incoming>, peer: Peer) -> Response<String> {
        let path = request.uri().path();
        if path == self.control_path {
            let entered = match self.client_address(request.headers(), peer.remote.ip()) {
                Some(address) => match self.unauthenticated.enter(address) {
                    Some(entered) => Some(entered),
                    None => {
                        return text(
                            StatusCode::TOO_MANY_REQUESTS,
                            "too many connections that are not authenticated\n",
                        );
                    }
                },
                None => None,
            };
            let hub = Rc::clone(&self.hub);
            return upgrade(&mut request, MAX_CONTROL_MESSAGE, move |ws| hub.connection(ws, entered));
        }
        if path == self.data_path
            && let Some(relay) = &self.relay
        {
            let (relay, remote) = (Rc::clone(relay), self.client_address(request.headers(), peer.remote.ip()));
            return upgrade(&mut request, ws::MAX_MESSAGE, move |ws| relay.connection(ws, remote));
        }
        match path {
            "/healthz" if self.hub.database_works() => text(StatusCode::OK, "ok\n"),
            "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n"),
            "/metrics" => text(StatusCode::OK, &self.metrics()),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// The client's own address: the TCP peer's, or what a trusted proxy says (the last hop that we do not trust).
    fn client_address(&self, headers: &HeaderMap, peer: IpAddr) -> Option<IpAddr> {
        let trusted = |ip: &IpAddr| self.trusted_proxies.iter().any(|net| net.contains(ip));
        if !trusted(&peer) {
            return Some(peer);
        }
        let values = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok());
        let hops: Vec<&str> = values.flat_map(|v| v.split(',')).collect();
        hops.iter().rev().map(|hop| hop.trim().parse::<IpAddr>()).find(|hop| !hop.as_ref().is_ok_and(trusted))?.ok()
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
        metric("configs_sent_total", "counter", "Full configurations sent.", control.configs_sent);
        metric("config_updates_sent_total", "counter", "Configuration updates sent.", control.updates_sent);
        metric("auth_failures_total", "counter", "Authentications that failed.", control.auth_failures);
        metric("bad_messages_total", "counter", "Malformed or unexpected control messages.", control.bad_messages);
        metric("config_errors_total", "counter", "Configurations that a node could not apply.", control.config_errors);
        if let Some(relay) = &self.relay {
            let stats = relay.stats();
            metric("relay_connections", "gauge", "Open relay connections.", stats.connections as u64);
            metric("relay_nodes", "gauge", "Nodes connected to the relay.", stats.nodes as u64);
            metric(
                "relay_forwarded_bytes_total",
                "counter",
                "Bytes of frames accepted for forwarding.",
                stats.forwarded_bytes,
            );
            metric("relay_sent_bytes_total", "counter", "Bytes of frames sent.", stats.sent_bytes);
            metric("relay_queued_bytes", "gauge", "Bytes that wait for receivers.", stats.queued_bytes as u64);
            let name = "edgelink_relay_dropped_total";
            let _ = writeln!(out, "# HELP {name} Frames dropped.\n# TYPE {name} counter");
            for (reason, count) in stats.drops.iter() {
                let _ = writeln!(out, "{name}{{reason=\"{}\"}} {count}", reason.label());
            }
        }
        out
    }
}

/// Answers a WebSocket upgrade and hands the connection to `run` once the answer is out.
fn upgrade<F>(
    request: &mut Request<Incoming>,
    max_message: usize,
    run: impl FnOnce(ws::WebSocket) -> F + 'static,
) -> Response<String>
where
    F: Future<Output = ()> + 'static,
{
    let response = match ws::upgrade_response(request, ws::SUBPROTOCOL) {
        Ok(response) => response.map(|()| String::new()),
        Err(error) => return error.response(),
    };
    let upgrade: OnUpgrade = hyper::upgrade::on(request);
    tokio::task::spawn_local(async move {
        match ws::accept_after(upgrade, max_message).await {
            Ok(ws) => run(ws).await,
            Err(error) => tracing::debug!(%error, "the client was gone before its upgrade"),
        }
    });
    response
}

fn text(status: StatusCode, body: &str) -> Response<String> {
    let mut response = Response::new(body.to_owned());
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
