//! `route …`: subnets behind nodes.

use crate::args::{RouteCommand, RouteRef};
use crate::backend::Backend;
use crate::commands::yes_no;
use crate::error::CtlError;
use crate::output::Output;
use edgelink_api::rest;

pub(crate) async fn execute(
    backend: &impl Backend,
    command: &RouteCommand,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        RouteCommand::List { network, node } => list(backend, network.as_deref(), node.as_deref(), out).await,
        RouteCommand::Add { cidr, node, network, priority, weight, disabled } => {
            let node = backend.find_node(node, network.as_deref()).await?;
            let (priority, weight, enabled) = (*priority, *weight, !disabled);
            let new = rest::NewRoute { cidr: cidr.to_string(), priority, weight, enabled };
            let route = backend.add_route(node.id, new).await?;
            let done = if enabled { "goes to" } else { "waits for `route enable` before it goes to" };
            tell(&route, &format!("{done} node {} ({})", node.name, node.id), out)
        }
        RouteCommand::Update { route, priority, weight } => {
            let change = rest::UpdateRoute { priority: *priority, weight: *weight, enabled: None };
            let route = update(backend, route, change).await?;
            tell(&route, &format!("has priority {} and weight {}", route.priority, route.weight), out)
        }
        RouteCommand::Enable(route) => {
            let route = update(backend, route, enabled(true)).await?;
            tell(&route, &format!("goes to node {}", route.node_id), out)
        }
        RouteCommand::Disable(route) => {
            let route = update(backend, route, enabled(false)).await?;
            tell(&route, &format!("does not go to node {} any more", route.node_id), out)
        }
        RouteCommand::Delete(route) => {
            let route = backend.route(route.route).await?;
            let deleted = backend.delete_route(&route).await?;
            if out.json {
                return out.json(&deleted);
            }
            out.remark(&format!("route {} to {} deleted", route.id, route.cidr))
        }
    }
}

async fn list(
    backend: &impl Backend,
    network: Option<&str>,
    node: Option<&str>,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    let node = match node {
        Some(node) => Some(backend.find_node(node, network).await?.id),
        None => None,
    };
    let mut groups = backend.routes(network).await?;
    if let Some(node) = node {
        groups.iter_mut().for_each(|group| group.gateways.retain(|gateway| gateway.node_id == node));
    }
    if out.json {
        let routes: Vec<rest::NodeRoute> = groups.into_iter().flat_map(flat).collect();
        return out.json(&routes);
    }
    let networks = backend.networks().await?;
    let network_name = |id| networks.iter().find(|n| n.id == id).map_or_else(|| "-".to_owned(), |n| n.name.clone());
    let mut table = Vec::new();
    for group in groups {
        for g in group.gateways {
            table.push([
                g.route_id.to_string(),
                group.cidr.clone(),
                network_name(group.network_id),
                format!("{} ({})", g.node_name, g.node_id),
                g.priority.to_string(),
                g.weight.to_string(),
                yes_no(g.enabled),
                yes_no(g.online),
            ]);
        }
    }
    if table.is_empty() {
        return out.remark("no routes");
    }
    let waiting = table.iter().filter(|row| row[6] == "no").count();
    out.table(["ID", "CIDR", "NETWORK", "GATEWAY", "PRIORITY", "WEIGHT", "ENABLED", "ONLINE"], &table)?;
    if waiting > 0 {
        out.remark(&format!("{waiting} not enabled; approve one with: edgelink-ctl route enable ID"))?;
    }
    Ok(())
}

/// The routes of one group.
fn flat(group: rest::RouteGroup) -> Vec<rest::NodeRoute> {
    let cidr = group.cidr;
    let route = |g: rest::Gateway| rest::NodeRoute {
        id: g.route_id,
        node_id: g.node_id,
        cidr: cidr.clone(),
        priority: g.priority,
        weight: g.weight,
        enabled: g.enabled,
        created_at: g.created_at,
    };
    group.gateways.into_iter().map(route).collect()
}

async fn update(
    backend: &impl Backend,
    route: &RouteRef,
    change: rest::UpdateRoute,
) -> Result<rest::NodeRoute, CtlError> {
    let route = backend.route(route.route).await?;
    backend.update_route(&route, change).await
}

fn enabled(enabled: bool) -> rest::UpdateRoute {
    rest::UpdateRoute { enabled: Some(enabled), ..rest::UpdateRoute::default() }
}

fn tell(route: &rest::NodeRoute, done: &str, out: &mut Output<'_>) -> Result<(), CtlError> {
    if out.json {
        return out.json(route);
    }
    out.remark(&format!("route {}: {} {done}", route.id, route.cidr))
}
