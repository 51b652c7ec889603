//! `status`, `latency` and `audit`.

use crate::args::AuditArgs;
use crate::backend::{AuditListing, Backend};
use crate::commands::or_dash;
use crate::error::CtlError;
use crate::output::Output;
use edgelink_api::rest;
use serde::Serialize;
use std::collections::BTreeMap;

pub(crate) async fn status(backend: &impl Backend, out: &mut Output<'_>) -> Result<(), CtlError> {
    let overview = backend.overview().await?;
    if out.json {
        return out.json(&overview);
    }
    let (nodes, servers) = (overview.nodes, overview.servers);
    let (kind, place) = backend.place();
    out.fields(&[
        (kind, place),
        ("config version", overview.config_version.to_string()),
        ("networks", overview.networks.to_string()),
        (
            "nodes",
            format!(
                "{} ({} online, {} authorized, {} not authorized)",
                nodes.total, nodes.online, nodes.authorized, nodes.unauthorized
            ),
        ),
        ("servers", format!("{} ({} online, {} enabled)", servers.total, servers.online, servers.enabled)),
        ("revocations", overview.revocations.to_string()),
    ])
}

/// What `latency --json` prints.
#[derive(Serialize)]
struct Latencies {
    matrix: Vec<rest::Latency>,
    /// `null` on a database: only a running controller knows.
    paths: Option<Vec<rest::LatencyPath>>,
}

pub(crate) async fn latency(
    backend: &impl Backend,
    network: Option<&str>,
    only_paths: bool,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    let matrix = if only_paths { Vec::new() } else { backend.latencies(network).await? };
    let paths = backend.paths(network).await?;
    if out.json {
        return out.json(&Latencies { matrix, paths });
    }
    let nodes = backend.nodes(crate::backend::NodeListing::default()).await?;
    let servers = backend.servers().await?;
    let nodes: BTreeMap<u32, &str> = nodes.iter().map(|node| (node.id, node.name.as_str())).collect();
    let servers: BTreeMap<u32, &str> = servers.iter().map(|server| (server.id, server.name.as_str())).collect();
    let name = |names: &BTreeMap<u32, &str>, id: u32| match names.get(&id) {
        Some(name) => format!("{name} ({id})"),
        None => id.to_string(),
    };
    if !only_paths {
        let table: Vec<_> = matrix
            .into_iter()
            .map(|l| {
                let from = name(if l.src_type == "node" { &nodes } else { &servers }, l.src_id);
                let to = name(&servers, l.dst_id);
                [l.src_type, from, to, format!("{:.1} ms", l.rtt_ms), l.recorded_at.to_string()]
            })
            .collect();
        if table.is_empty() {
            out.remark("nothing has been measured in the last 90 s")?;
        }
        out.table(["FROM", "NAME", "TO RELAY", "RTT", "MEASURED"], &table)?;
    }
    let Some(paths) = paths else {
        return out.remark("the best paths are known to a running controller only: edgelink-ctl --url URL latency");
    };
    let table: Vec<_> = paths
        .into_iter()
        .map(|p| {
            let via = p.via_relay_id.map(|via| name(&servers, via));
            let (a, b) = (name(&nodes, p.src_node_id), name(&nodes, p.dst_node_id));
            [a, b, name(&servers, p.relay_id), or_dash(via), format!("{:.1} ms", p.rtt_ms)]
        })
        .collect();
    if table.is_empty() {
        return out.remark("no two nodes have talked over relays in the last 90 s");
    }
    out.table(["NODE", "NODE", "RELAY", "VIA", "RTT"], &table)
}

pub(crate) async fn audit(backend: &impl Backend, args: &AuditArgs, out: &mut Output<'_>) -> Result<(), CtlError> {
    let (target_type, target_id) = match &args.target {
        Some((kind, id)) => (Some(kind.clone()), *id),
        None => (None, None),
    };
    let listing = AuditListing {
        actor: args.actor.clone(),
        action: args.action.clone(),
        target_type,
        target_id,
        limit: args.limit,
    };
    let lines = backend.audit(listing).await?;
    if out.json {
        return out.json(&lines);
    }
    if lines.is_empty() {
        return out.remark("nothing is on record");
    }
    let table: Vec<_> = lines
        .into_iter()
        .map(|line| {
            let actor = match line.actor_id {
                Some(id) => format!("{} {id}", line.actor_type),
                None => line.actor_type,
            };
            let target = match (line.target_type, line.target_id) {
                (Some(kind), Some(id)) => format!("{kind} {id}"),
                (kind, _) => or_dash(kind),
            };
            let (at, from) = (line.created_at.to_string(), or_dash(line.ip_address));
            [at, actor, from, line.action, target, line.details.unwrap_or_default()]
        })
        .collect();
    out.table(["WHEN", "WHO", "FROM", "WHAT", "TARGET", "DETAILS"], &table)
}
