//! `edgelink routes --why IP`: the decision in words.

use super::table::{Gateway, Health, Skip};
use crate::Node;
use edgelink_api::local::RouteWhy;
use edgelink_model::{NodeId, cidr};
use std::net::IpAddr;

impl Node {
    /// Why packets to an address go where they go.
    pub fn explain_route(&self, address: IpAddr) -> RouteWhy {
        let mut why = RouteWhy { address, cidr: None, gateways: Vec::new(), reasons: Vec::new() };
        let name = |node: NodeId| {
            self.peers.get(node).map_or_else(|| format!("node {node}"), |peer| format!("{} ({node})", peer.name))
        };
        let identity = self.identity.as_ref();
        if identity.is_some_and(|me| me.addresses.contains(&address)) {
            why.reasons.push("it is an address of this node".to_owned());
            return why;
        }
        if let Some(peer) = self.peers.by_address(address) {
            why.gateways.push(peer);
            why.reasons.push(format!("it is the overlay address of {}", name(peer)));
            return why;
        }
        if self.is_overlay(address) {
            why.reasons.push("it lies in the network's own subnet, and no node has it".to_owned());
            return why;
        }
        if !cidr::is_routable(address) {
            why.reasons.push("such addresses never leave their host or link".to_owned());
            return why;
        }
        let explanation = self.routing.table.explain(address);
        if explanation.prefixes.is_empty() {
            why.reasons.push("no subnet route holds it: it does not go into the tunnel".to_owned());
        }
        for (net, gateways, skip) in &explanation.prefixes {
            let used = explanation.used == Some(*net);
            if let Some(skip) = skip {
                why.reasons.push(format!("{net} is not used: {}", skipped(*skip)));
                continue;
            }
            for gateway in gateways {
                let active = used && self.is_active(*net, gateway.node);
                if active {
                    why.cidr = Some(*net);
                    why.gateways.push(gateway.node);
                }
                why.reasons.push(format!(
                    "{net} via {}, priority {}, weight {}: {}",
                    name(gateway.node),
                    gateway.priority,
                    gateway.weight,
                    standing(gateway, used, active)
                ));
            }
        }
        why
    }

    fn is_active(&self, net: ipnet::IpNet, node: NodeId) -> bool {
        self.routing.table.iter().any(|(cidr, prefix)| cidr == net && prefix.is_active(node))
    }
}

fn skipped(skip: Skip) -> &'static str {
    match skip {
        Skip::Local => "this host is directly connected to it (local)",
        Skip::Own => "this node serves it itself (own)",
        Skip::NotAccepted => "accept_routes is off (not accepted)",
        Skip::Denied => "routes.deny names it (denied)",
    }
}

fn standing(gateway: &Gateway, used: bool, active: bool) -> &'static str {
    match () {
        () if gateway.denied => "routes.deny names it",
        () if gateway.health == Health::Down => "offline, or no path answers",
        () if gateway.dead => "it says that nothing answers on its side",
        () if active && gateway.preferred => "used, routes.prefer names it",
        () if active => "used",
        () if gateway.held || gateway.health == Health::Held => "it has recovered, and takes new flows in a moment",
        () if !used => "a longer prefix is used",
        () => "another gateway of this prefix is used",
    }
}
