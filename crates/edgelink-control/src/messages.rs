//! CONFIG and CONFIG_UPDATE built from the registry (DESIGN §4). One encoding serves every node of a network.

use crate::registry::{Registry, is_member};
use crate::routes::DeadRoutes;
use crate::{NodeSettings, Presence};
use edgelink_model::records::{NodeRecord, RevocationRecord, RevocationTarget, RouteRecord, ServerKind, ServerRecord};
use edgelink_model::{NetworkId, NodeId};
use edgelink_wire::control::proto;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

/// What of a network changed since the last flush.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// When it is sent.
    pub(crate) due: Option<Instant>,
    pub(crate) peers: BTreeSet<NodeId>,
    pub(crate) presence: BTreeSet<NodeId>,
    pub(crate) network: bool,
    pub(crate) routes: bool,
    pub(crate) servers: bool,
    pub(crate) settings: bool,
    pub(crate) revocations: Vec<RevocationRecord>,
}

/// The full configuration that every node of `network` shares. `None` when the network is gone.
pub(crate) fn config(
    registry: &Registry,
    presence: &Presence,
    dead: &DeadRoutes,
    settings: &NodeSettings,
    network: NetworkId,
) -> Option<proto::Config> {
    let net = registry.networks.get(&network)?;
    Some(proto::Config {
        version: net.version,
        network: Some(network_message(registry, network)?),
        peers: registry.members(network).map(|n| peer(n, presence)).collect(),
        relays: relays(registry, settings),
        stun_servers: stun_servers(registry),
        routes: registry.network_routes(network).map(|r| route(r, dead)).collect(),
        revocations: registry.revocations.values().filter(|r| concerns(registry, r, network)).map(revocation).collect(),
        settings: Some(settings_message(settings)),
        ..proto::Config::default()
    })
}

/// What changed since `from_version`. `None` when the network is gone.
pub(crate) fn update(
    registry: &Registry,
    presence: &Presence,
    dead: &DeadRoutes,
    settings: &NodeSettings,
    network: NetworkId,
    from_version: u64,
    dirty: &Dirty,
) -> Option<proto::ConfigUpdate> {
    let net = registry.networks.get(&network)?;
    let member = |id: &&NodeId| registry.nodes.get(id).is_some_and(|n| is_member(n) && n.network_id == network);
    let (changed, removed): (Vec<&NodeId>, Vec<&NodeId>) = dirty.peers.iter().partition(member);
    Some(proto::ConfigUpdate {
        from_version,
        version: net.version,
        peers: changed.iter().filter_map(|id| registry.nodes.get(id)).map(|n| peer(n, presence)).collect(),
        removed_peers: removed.iter().map(|id| id.0).collect(),
        presence: dirty
            .presence
            .difference(&dirty.peers)
            .map(|id| proto::Presence { node_id: id.0, online: presence.is_online(*id) })
            .collect(),
        network: if dirty.network { network_message(registry, network) } else { None },
        routes: dirty
            .routes
            .then(|| proto::RouteList { routes: registry.network_routes(network).map(|r| route(r, dead)).collect() }),
        relays: dirty.servers.then(|| proto::RelayList { relays: relays(registry, settings) }),
        stun_servers: dirty.servers.then(|| proto::StunList { servers: stun_servers(registry) }),
        settings: dirty.settings.then(|| settings_message(settings)),
        revocations: dirty.revocations.iter().filter(|r| concerns(registry, r, network)).map(revocation).collect(),
        ..proto::ConfigUpdate::default()
    })
}

/// Ids and addresses of the node itself.
pub(crate) fn identity(node: &NodeRecord) -> proto::NodeIdentity {
    proto::NodeIdentity {
        node_id: node.id.0,
        network_id: node.network_id.0,
        name: node.name.clone(),
        addresses: node.addresses().into_iter().map(ip_bytes).collect(),
    }
}

/// A revocation as relays and nodes get it.
pub(crate) fn revocation(record: &RevocationRecord) -> proto::Revocation {
    let (jti, node_id, issued_before) = match &record.target {
        RevocationTarget::Jti(jti) => (jti.clone(), 0, 0),
        RevocationTarget::Node { node_id, issued_before } => (String::new(), node_id.0, *issued_before),
    };
    proto::Revocation { jti, node_id, issued_before, expires: record.expires_at }
}

/// Nodes hear of revoked nodes of their own network only; single tokens are the relays' business.
fn concerns(registry: &Registry, record: &RevocationRecord, network: NetworkId) -> bool {
    match &record.target {
        RevocationTarget::Node { node_id, .. } => registry.nodes.get(node_id).is_some_and(|n| n.network_id == network),
        RevocationTarget::Jti(_) => false,
    }
}

fn network_message(registry: &Registry, network: NetworkId) -> Option<proto::Network> {
    let record = &registry.networks.get(&network)?.record;
    let subnets = [Some(IpNet::V4(record.subnet)), record.subnet6.map(IpNet::V6)];
    Some(proto::Network {
        id: record.id.0,
        name: record.name.clone(),
        subnets: subnets.into_iter().flatten().map(prefix).collect(),
    })
}

fn peer(node: &NodeRecord, presence: &Presence) -> proto::Peer {
    let (statement, signature) =
        node.key.as_ref().map(|k| (k.statement.clone(), k.signature.clone())).unwrap_or_default();
    proto::Peer {
        node_id: node.id.0,
        name: node.name.clone(),
        machine_pub: node.machine_key_pub.to_vec(),
        statement,
        signature,
        addresses: node.addresses().into_iter().map(ip_bytes).collect(),
        online: presence.is_online(node.id),
        endpoints: Vec::new(),
    }
}

fn route(record: &RouteRecord, dead: &DeadRoutes) -> proto::Route {
    proto::Route {
        cidr: Some(prefix(record.cidr)),
        node_id: record.node_id.0,
        priority: record.priority.into(),
        weight: record.weight.into(),
        enabled: record.enabled,
        single: !record.snat,
        down: dead.contains(record.node_id, record.cidr),
    }
}

/// Relays that nodes may use and that are linked with each other.
pub(crate) fn usable_relays(registry: &Registry) -> impl Iterator<Item = &ServerRecord> {
    registry.servers.values().filter(|s| s.enabled && s.relay)
}

pub(crate) fn relays(registry: &Registry, settings: &NodeSettings) -> Vec<proto::Relay> {
    usable_relays(registry)
        .filter_map(|s| {
            let (url, path) = match (&s.url, s.kind) {
                (Some(url), _) => (url.clone(), String::new()),
                (None, ServerKind::Builtin) => (String::new(), settings.builtin_relay_path.clone()?),
                (None, ServerKind::External) => return None,
            };
            Some(proto::Relay { id: s.id.0, name: s.name.clone(), url, region: s.region.clone(), path })
        })
        .collect()
}

fn stun_servers(registry: &Registry) -> Vec<proto::StunServer> {
    let usable = registry.servers.values().filter(|s| s.enabled && s.stun);
    usable
        .filter_map(|s| {
            Some(proto::StunServer {
                server_id: s.id.0,
                ip: ip_bytes(s.stun_ip?),
                ip2: s.stun_ip2.map(ip_bytes).unwrap_or_default(),
                port: s.stun_port.into(),
            })
        })
        .collect()
}

pub(crate) fn settings_message(settings: &NodeSettings) -> proto::Settings {
    proto::Settings {
        node_key_rotate_secs: settings.node_key_rotate_secs,
        keepalive_secs: settings.keepalive_secs,
        latency_report_secs: settings.latency_report_secs,
        controllers: settings.controllers.clone(),
    }
}

fn prefix(net: IpNet) -> proto::Prefix {
    proto::Prefix { address: ip_bytes(net.network()), length: net.prefix_len().into() }
}

fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
