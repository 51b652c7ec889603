//! What the HTTPS fronts of relay and controller have in common.

use edgelink_net::ws;
use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use ipnet::IpNet;
use std::net::IpAddr;

/// Answers a WebSocket upgrade and hands the connection to `run` once the answer is out.
pub fn upgrade<F>(
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

/// The client's own address: the TCP peer's, or what a trusted proxy says (the last hop that we do not trust).
pub fn client_address(trusted_proxies: &[IpNet], headers: &HeaderMap, peer: IpAddr) -> Option<IpAddr> {
    let trusted = |ip: &IpAddr| trusted_proxies.iter().any(|net| net.contains(ip));
    if !trusted(&peer) {
        return Some(peer);
    }
    let values = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok());
    let hops: Vec<&str> = values.flat_map(|v| v.split(',')).collect();
    hops.iter().rev().map(|hop| hop.trim().parse::<IpAddr>()).find(|hop| !hop.as_ref().is_ok_and(trusted))?.ok()
}

/// A plain answer.
pub fn text(status: StatusCode, body: &str) -> Response<String> {
    let mut response = Response::new(body.to_owned());
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// The relay's counters in Prometheus' text format.
pub fn relay_metrics(out: &mut String, stats: &edgelink_relay::RelayStats) {
    use std::fmt::Write as _;
    let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
        let _ = writeln!(
            out,
            "# HELP edgelink_relay_{name} {help}\n# TYPE edgelink_relay_{name} {kind}\nedgelink_relay_{name} {value}"
        );
    };
    metric("connections", "gauge", "Open relay connections.", stats.connections as u64);
    metric("nodes", "gauge", "Nodes connected to the relay.", stats.nodes as u64);
    metric("mesh_links", "gauge", "Links to other relays.", stats.mesh_links as u64);
    metric("locations", "gauge", "Nodes whose relays are known.", stats.locations as u64);
    let forwarded = "Bytes of frames accepted for forwarding.";
    metric("forwarded_bytes_total", "counter", forwarded, stats.forwarded_bytes);
    metric("mesh_out_frames_total", "counter", "Frames sent to other relays.", stats.mesh_out_frames);
    metric("mesh_in_frames_total", "counter", "Frames from other relays for nodes here.", stats.mesh_in_frames);
    metric("sent_bytes_total", "counter", "Bytes of frames sent.", stats.sent_bytes);
    metric("queued_bytes", "gauge", "Bytes that wait for receivers.", stats.queued_bytes as u64);
    let name = "edgelink_relay_dropped_total";
    let _ = writeln!(out, "# HELP {name} Frames dropped.\n# TYPE {name} counter");
    for (reason, count) in stats.drops.iter() {
        let _ = writeln!(out, "{name}{{reason=\"{}\"}} {count}", reason.label());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "192.0.2.66, 198.51.100.7, 10.1.2.3".parse().unwrap());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(client_address(&trusted, &headers, ip("203.0.113.5")), Some(ip("203.0.113.5")));
        assert_eq!(client_address(&trusted, &headers, ip("10.0.0.1")), Some(ip("198.51.100.7")));
        assert_eq!(client_address(&trusted, &HeaderMap::new(), ip("10.0.0.1")), None, "unknown");
    }
}
