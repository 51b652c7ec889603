//! `node …`

use crate::args::{NodeCommand, NodeRef};
use crate::backend::{Backend, NodeListing};
use crate::commands::{or_dash, yes_no};
use crate::error::CtlError;
use crate::output::Output;
use edgelink_api::rest;

pub(crate) async fn execute(
    backend: &impl Backend,
    command: &NodeCommand,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        NodeCommand::List { network, online } => {
            list(backend, NodeListing { network: network.clone(), online: *online }, out).await
        }
        NodeCommand::Show(node) => {
            let node = find(backend, node).await?;
            if out.json { out.json(&node) } else { show(node, out) }
        }
        NodeCommand::Authorize(node) => {
            let id = find(backend, node).await?.id;
            let node = backend.authorize_node(id).await?;
            if out.json {
                return out.json(&node);
            }
            let address = node.virtual_ip.or(node.virtual_ip6);
            out.remark(&format!("node {} ({}) may join as {}", node.name, node.id, or_dash(address)))
        }
        NodeCommand::Deauthorize(node) => {
            let id = find(backend, node).await?.id;
            let node = backend.deauthorize_node(id).await?;
            if out.json {
                return out.json(&node);
            }
            out.remark(&format!("node {} ({}) is barred, its tokens are revoked", node.name, node.id))
        }
        NodeCommand::Rename { node, name } => {
            let before = find(backend, node).await?;
            let node = backend.rename_node(before.id, name).await?;
            if out.json {
                return out.json(&node);
            }
            out.remark(&format!("node {} ({}) is now {name}", before.name, before.id))
        }
        NodeCommand::Delete(node) => {
            let node = find(backend, node).await?;
            let deleted = backend.delete_node(node.id).await?;
            if out.json {
                return out.json(&deleted);
            }
            out.remark(&format!("node {} ({}) deleted, its tokens are revoked", node.name, node.id))
        }
    }
}

async fn find(backend: &impl Backend, node: &NodeRef) -> Result<rest::Node, CtlError> {
    backend.find_node(&node.node, node.network.as_deref()).await
}

async fn list(backend: &impl Backend, listing: NodeListing, out: &mut Output<'_>) -> Result<(), CtlError> {
    let nodes = backend.nodes(listing).await?;
    if out.json {
        return out.json(&nodes);
    }
    let networks = backend.networks().await?;
    let network_name = |id| networks.iter().find(|n| n.id == id).map(|n| n.name.clone());
    let waiting = nodes.iter().filter(|n| !n.authorized).count();
    let table: Vec<_> = nodes
        .into_iter()
        .map(|n| {
            [
                n.id.to_string(),
                n.name,
                or_dash(network_name(n.network_id)),
                or_dash(n.virtual_ip),
                yes_no(n.authorized),
                yes_no(n.online),
                or_dash(n.last_seen),
                n.os,
                n.version,
            ]
        })
        .collect();
    if table.is_empty() {
        return out.remark("no nodes");
    }
    let header = ["ID", "NAME", "NETWORK", "ADDRESS", "AUTHORIZED", "ONLINE", "LAST SEEN", "OS", "VERSION"];
    out.table(header, &table)?;
    if waiting > 0 {
        out.remark(&format!("{waiting} not authorized; let one join with: edgelink-ctl node authorize ID"))?;
    }
    Ok(())
}

fn show(node: rest::Node, out: &mut Output<'_>) -> Result<(), CtlError> {
    let p2p = node.p2p.unwrap_or_default();
    let endpoints: Vec<String> = p2p.endpoints.iter().map(|e| format!("{} ({})", e.address, e.kind)).collect();
    let fields = [
        ("id", node.id.to_string()),
        ("name", node.name),
        ("network", node.network_id.to_string()),
        ("address", or_dash(node.virtual_ip)),
        ("address6", or_dash(node.virtual_ip6)),
        ("authorized", yes_no(node.authorized)),
        ("online", yes_no(node.online)),
        ("last seen", or_dash(node.last_seen)),
        ("machine key", node.machine_key_pub),
        ("node key", or_dash(node.node_key_pub)),
        ("node key since", or_dash(node.node_key_updated_at)),
        ("host", node.hostname),
        ("system", format!("{} {}", node.os, node.arch)),
        ("version", node.version),
        ("NAT", or_dash(node.nat_type)),
        ("created", node.created_at.to_string()),
        ("updated", node.updated_at.to_string()),
        ("endpoints", or_dash(Some(endpoints.join(", ")).filter(|list| !list.is_empty()))),
    ];
    out.fields(&fields)?;
    if p2p.peers.is_empty() {
        return Ok(());
    }
    let table: Vec<_> = p2p
        .peers
        .into_iter()
        .map(|peer| {
            let rtt = peer.rtt_ms.map(|rtt| format!("{rtt:.1} ms"));
            [
                peer.node_id.to_string(),
                yes_no(peer.connected),
                or_dash(peer.endpoint),
                or_dash(rtt),
                or_dash(peer.reason),
            ]
        })
        .collect();
    out.table(["PEER", "DIRECT", "ENDPOINT", "RTT", "WHY NOT"], &table)
}
