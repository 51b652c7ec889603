//! What the store says, as REST objects.

use edgelink_api::rest;
use edgelink_api::rest::Timestamp;
use edgelink_model::records::{EndpointRecord, RevocationTarget, ServerKind};
use edgelink_store::{
    AdminRecord, AuditEntry, AuthKeyRecord, Counts, LatencyRecord, NetworkDetails, NodeDetails, RevocationDetails,
    RouteDetails, ServerDetails,
};
use ipnet::IpNet;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// A row of `networks`.
pub fn network(details: NetworkDetails) -> rest::Network {
    let record = details.record;
    rest::Network {
        id: record.id.0,
        name: record.name,
        subnet: record.subnet.to_string(),
        subnet6: record.subnet6.map(|s| s.to_string()),
        description: record.description,
        nodes: details.nodes,
        created_at: Timestamp::from_unix_ms(details.created_at),
        updated_at: Timestamp::from_unix_ms(details.updated_at),
    }
}

/// A row of `nodes`.
pub fn node(details: NodeDetails) -> rest::Node {
    let record = details.record;
    rest::Node {
        id: record.id.0,
        network_id: record.network_id.0,
        name: record.name,
        machine_key_pub: record.machine_key_pub.iter().map(|b| format!("{b:02x}")).collect(),
        node_key_pub: details.node_key_pub,
        node_key_updated_at: details.node_key_updated_at.map(Timestamp::from_unix_ms),
        virtual_ip: record.virtual_ip.map(|ip| ip.to_string()),
        virtual_ip6: record.virtual_ip6.map(|ip| ip.to_string()),
        hostname: record.host.hostname,
        os: record.host.os,
        arch: record.host.arch,
        version: record.host.version,
        nat_type: details.nat_type,
        online: details.online,
        last_seen: record.last_seen.map(Timestamp::from_unix_ms),
        authorized: record.authorized,
        created_at: Timestamp::from_unix_ms(details.created_at),
        updated_at: Timestamp::from_unix_ms(details.updated_at),
        p2p: None,
    }
}

/// A row of `node_endpoints`.
pub fn endpoint(record: EndpointRecord) -> rest::NodeEndpoint {
    rest::NodeEndpoint { kind: record.kind, address: record.address.to_string(), priority: record.priority }
}

/// A row of `node_routes`.
pub fn route(details: RouteDetails) -> rest::NodeRoute {
    let record = details.record;
    rest::NodeRoute {
        created_at: Timestamp::from_unix_ms(details.created_at),
        id: record.id,
        node_id: record.node_id.0,
        cidr: record.cidr.to_string(),
        priority: record.priority,
        weight: record.weight,
        enabled: record.enabled,
    }
}

fn gateway(details: RouteDetails) -> rest::Gateway {
    rest::Gateway {
        route_id: details.record.id,
        node_id: details.record.node_id.0,
        node_name: details.node_name,
        online: details.node_online,
        priority: details.record.priority,
        weight: details.record.weight,
        enabled: details.record.enabled,
        created_at: Timestamp::from_unix_ms(details.created_at),
    }
}

/// The routing table: by network, then by prefix; the most preferred gateway first.
pub fn route_groups(routes: Vec<RouteDetails>) -> Vec<rest::RouteGroup> {
    let mut groups: BTreeMap<(u32, IpNet), Vec<rest::Gateway>> = BTreeMap::new();
    for route in routes {
        groups.entry((route.network_id.0, route.record.cidr)).or_default().push(gateway(route));
    }
    let group = |((network_id, cidr), mut gateways): ((u32, IpNet), Vec<rest::Gateway>)| {
        gateways.sort_by_key(|gateway| (Reverse(gateway.priority), gateway.route_id));
        rest::RouteGroup { network_id, cidr: cidr.to_string(), gateways }
    };
    groups.into_iter().map(group).collect()
}

/// A row of `servers`.
pub fn server(details: ServerDetails) -> rest::Server {
    let record = details.record;
    let capabilities = [(record.relay, "relay"), (record.stun, "stun")];
    rest::Server {
        id: record.id.0,
        name: record.name,
        kind: match record.kind {
            ServerKind::Builtin => "builtin",
            ServerKind::External => "external",
        }
        .into(),
        url: record.url,
        region: record.region,
        capabilities: capabilities.iter().filter(|(has, _)| *has).map(|(_, name)| (*name).to_owned()).collect(),
        stun_ip: record.stun_ip.map(|ip| ip.to_string()),
        stun_ip2: record.stun_ip2.map(|ip| ip.to_string()),
        stun_port: record.stun_port,
        enabled: record.enabled,
        online: details.online,
        last_heartbeat: details.last_heartbeat.map(Timestamp::from_unix_ms),
        created_at: Timestamp::from_unix_ms(details.created_at),
    }
}

/// A row of `token_blacklist`.
pub fn revocation(details: RevocationDetails) -> rest::Revocation {
    let seconds = |s: u64| Timestamp::from_unix_ms(s.saturating_mul(1000));
    let (node_id, issued_before) = match details.record.target {
        RevocationTarget::Jti(_) => (None, None),
        RevocationTarget::Node { node_id, issued_before } => (Some(node_id.0), Some(seconds(issued_before))),
    };
    rest::Revocation {
        jti: details.record.id,
        node_id,
        issued_before,
        reason: details.reason,
        expires_at: seconds(details.record.expires_at),
        created_at: Timestamp::from_unix_ms(details.created_at),
    }
}

/// A row of `auth_keys`.
pub fn auth_key(record: AuthKeyRecord) -> rest::AuthKey {
    rest::AuthKey {
        id: record.id,
        network_id: record.network_id.0,
        reusable: record.reusable,
        preauthorized: record.preauthorized,
        expires_at: record.expires_at.map(Timestamp::from_unix_ms),
        used_at: record.used_at.map(Timestamp::from_unix_ms),
        created_at: Timestamp::from_unix_ms(record.created_at),
    }
}

/// A row of `admins`, without the password's hash.
pub fn admin(record: AdminRecord) -> rest::Admin {
    rest::Admin {
        id: record.id,
        username: record.username,
        enabled: record.enabled,
        last_login: record.last_login.map(Timestamp::from_unix_ms),
        created_at: Timestamp::from_unix_ms(record.created_at),
        updated_at: Timestamp::from_unix_ms(record.updated_at),
    }
}

/// A row of `latency_records`.
#[expect(clippy::cast_precision_loss, reason = "microseconds of a minute fit exactly")]
pub fn latency(record: LatencyRecord) -> rest::Latency {
    rest::Latency {
        src_type: record.src_type,
        src_id: record.src_id,
        dst_type: record.dst_type,
        dst_id: record.dst_id,
        rtt_ms: record.rtt_us as f64 / 1000.0,
        recorded_at: Timestamp::from_unix_ms(record.recorded_at),
    }
}

/// A row of `audit_logs`.
pub fn audit(entry: AuditEntry) -> rest::AuditEntry {
    rest::AuditEntry {
        id: entry.id,
        actor_type: entry.actor_type,
        actor_id: entry.actor_id,
        action: entry.action,
        target_type: entry.target_type,
        target_id: entry.target_id,
        details: entry.details,
        ip_address: entry.ip_address,
        created_at: Timestamp::from_unix_ms(entry.created_at),
    }
}

/// The overview.
pub fn overview(counts: Counts) -> rest::Overview {
    rest::Overview {
        version: env!("CARGO_PKG_VERSION").into(),
        config_version: counts.version,
        networks: counts.networks,
        nodes: rest::NodeCounts {
            total: counts.nodes,
            authorized: counts.authorized,
            unauthorized: counts.nodes.saturating_sub(counts.authorized),
            online: counts.online,
        },
        servers: rest::ServerCounts {
            total: counts.servers,
            enabled: counts.servers_enabled,
            online: counts.servers_online,
        },
        revocations: counts.revocations,
    }
}

/// What is left of a deleted row.
pub fn deleted(id: u32) -> rest::Deleted {
    rest::Deleted { id, deleted: true }
}
