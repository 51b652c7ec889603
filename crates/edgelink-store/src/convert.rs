//! Rows to records. A row that no EdgeLink wrote is an error that names it, never a panic.

use crate::entity::{network, node, node_route, revocation, server};
use crate::error::StoreError;
use crate::store::{from_db, id_from_db};
use edgelink_model::records::{
    HostInfo, NetworkRecord, NodeKeyRecord, NodeRecord, RevocationRecord, RevocationTarget, RouteRecord, ServerKind,
    ServerRecord,
};
use edgelink_model::{NetworkId, NodeId, ServerId};
use std::fmt::Display;
use std::str::FromStr;

pub(crate) fn network(row: network::Model) -> Result<NetworkRecord, StoreError> {
    Ok(NetworkRecord {
        id: NetworkId(id_from_db(row.id)?),
        subnet: parse("networks.subnet", row.id, &row.subnet)?,
        subnet6: parse_opt("networks.subnet6", row.id, row.subnet6.as_deref())?,
        name: row.name,
        description: row.description,
    })
}

pub(crate) fn node(row: node::Model) -> Result<NodeRecord, StoreError> {
    let key = match (row.node_key_statement, row.node_key_signature, row.node_key_seq) {
        (Some(statement), Some(signature), Some(seq)) => {
            Some(NodeKeyRecord { statement, signature, seq: from_db(seq)? })
        }
        _ => None,
    };
    Ok(NodeRecord {
        id: NodeId(id_from_db(row.id)?),
        network_id: NetworkId(id_from_db(row.network_id)?),
        machine_key_pub: unhex32(&row.machine_key_pub)
            .ok_or_else(|| corrupt("nodes.machine_key_pub", row.id, &row.machine_key_pub))?,
        key,
        virtual_ip: parse_opt("nodes.virtual_ip", row.id, row.virtual_ip.as_deref())?,
        virtual_ip6: parse_opt("nodes.virtual_ip6", row.id, row.virtual_ip6.as_deref())?,
        name: row.name,
        host: HostInfo { hostname: row.hostname, os: row.os, arch: row.arch, version: row.version },
        authorized: row.authorized,
        last_seen: row.last_seen.map(from_db).transpose()?,
    })
}

pub(crate) fn route(row: node_route::Model) -> Result<RouteRecord, StoreError> {
    let number = |name, n: i32| u16::try_from(n).map_err(|_| corrupt(name, row.id, &n.to_string()));
    Ok(RouteRecord {
        id: id_from_db(row.id)?,
        node_id: NodeId(id_from_db(row.node_id)?),
        cidr: parse("node_routes.cidr", row.id, &row.cidr)?,
        priority: number("node_routes.priority", row.priority)?,
        weight: number("node_routes.weight", row.weight)?,
        enabled: row.enabled,
        announced: row.announced,
        snat: row.snat,
    })
}

pub(crate) fn server(row: server::Model) -> Result<ServerRecord, StoreError> {
    let capabilities: Vec<String> = serde_json::from_str(&row.capabilities)
        .map_err(|_| corrupt("servers.capabilities", row.id, &row.capabilities))?;
    Ok(ServerRecord {
        id: ServerId(id_from_db(row.id)?),
        kind: match row.kind.as_str() {
            "builtin" => ServerKind::Builtin,
            "external" => ServerKind::External,
            other => return Err(corrupt("servers.type", row.id, other)),
        },
        url: row.url,
        relay: capabilities.iter().any(|c| c == "relay"),
        stun: capabilities.iter().any(|c| c == "stun"),
        stun_ip: parse_opt("servers.stun_ip", row.id, row.stun_ip.as_deref())?,
        stun_ip2: parse_opt("servers.stun_ip2", row.id, row.stun_ip2.as_deref())?,
        stun_port: u16::try_from(row.stun_port)
            .map_err(|_| corrupt("servers.stun_port", row.id, &row.stun_port.to_string()))?,
        name: row.name,
        region: row.region,
        enabled: row.enabled,
    })
}

/// The JSON of `servers.capabilities`.
pub(crate) fn capabilities(relay: bool, stun: bool) -> String {
    let names: Vec<_> = [relay.then_some("\"relay\""), stun.then_some("\"stun\"")].into_iter().flatten().collect();
    format!("[{}]", names.join(","))
}

pub(crate) fn revocation(row: revocation::Model) -> Result<RevocationRecord, StoreError> {
    let target = match (row.node_id, row.issued_before) {
        (Some(node_id), Some(issued_before)) => {
            RevocationTarget::Node { node_id: NodeId(id_from_db(node_id)?), issued_before: from_db(issued_before)? }
        }
        _ => RevocationTarget::Jti(row.jti.clone()),
    };
    Ok(RevocationRecord { id: row.jti, target, expires_at: from_db(row.expires_at)? })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        // Writing to a String cannot fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}

fn unhex32(s: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let digits: Option<Vec<u8>> = s.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|d| d.len() == 64)?;
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        if let [high, low] = pair {
            *byte = high << 4 | low;
        }
    }
    Some(out)
}

pub(crate) fn parse<T: FromStr>(what: &str, id: impl Display, value: &str) -> Result<T, StoreError> {
    value.parse().map_err(|_| corrupt(what, id, value))
}

fn parse_opt<T: FromStr>(what: &str, id: impl Display, value: Option<&str>) -> Result<Option<T>, StoreError> {
    value.map(|v| parse(what, id, v)).transpose()
}

pub(crate) fn corrupt(what: &str, id: impl Display, value: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} of row {id} is {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_round_trips_and_nothing_else_parses() {
        let key: [u8; 32] = std::array::from_fn(|i| (i * 37) as u8);
        let text = hex(&key);
        assert_eq!(text.len(), 64);
        assert!(text.starts_with("00254a6f"), "{text}");
        assert_eq!(unhex32(&text), Some(key));
        for bad in ["", "00", &text[1..], &format!("{text}0"), &text.replacen('0', "g", 1)] {
            assert_eq!(unhex32(bad), None, "{bad}");
        }
    }

    #[test]
    fn capabilities_are_json() {
        assert_eq!(capabilities(true, true), r#"["relay","stun"]"#);
        assert_eq!(capabilities(false, true), r#"["stun"]"#);
        assert_eq!(capabilities(false, false), "[]");
    }
}
