//! Versions of what can be changed. They cover what an administrator sets and nothing that changes by itself, such as
//! who is online, so that `If-Match` fails only when somebody else's change would be overwritten.

use edgelink_api::rest::{Admin, Network, Node, NodeRoute, Server};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub(super) fn network(n: &Network) -> String {
    of(&(n.id, &n.name, &n.subnet, &n.subnet6, &n.description))
}

pub(super) fn node(n: &Node) -> String {
    of(&(n.id, n.network_id, &n.name, &n.virtual_ip, n.authorized))
}

pub(super) fn route(r: &NodeRoute) -> String {
    of(&(r.id, r.node_id, &r.cidr, r.priority, r.weight, r.enabled))
}

pub(super) fn server(s: &Server) -> String {
    let stun = (&s.stun_ip, &s.stun_ip2, s.stun_port);
    of(&(s.id, &s.name, &s.kind, &s.url, &s.region, &s.capabilities, stun, s.enabled))
}

pub(super) fn admin(a: &Admin) -> String {
    of(&(a.id, &a.username, a.enabled, &a.updated_at))
}

/// A strong ETag of a value's JSON.
pub(super) fn of(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).unwrap_or_default();
    let digest = Sha256::digest(&json);
    let hex: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}
