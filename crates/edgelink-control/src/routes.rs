//! Routes that nodes announce (`advertise_routes`, specification §12.3) and the subnets that they say are dead.

use crate::{Control, Event, StoreOp};
use edgelink_model::records::{AnnouncedRoute, RouteRecord};
use edgelink_model::{NodeId, Now, cidr};
use edgelink_wire::control::proto;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Subnets that their gateway cannot reach now, by gateway. A gateway that goes offline is passed over anyway, so its
/// last word stays until it comes back with another.
#[derive(Debug, Default)]
pub(crate) struct DeadRoutes(BTreeMap<NodeId, BTreeSet<IpNet>>);

impl DeadRoutes {
    pub(crate) fn contains(&self, node: NodeId, cidr: IpNet) -> bool {
        self.0.get(&node).is_some_and(|dead| dead.contains(&cidr))
    }

    /// Returns whether anything changed.
    fn set(&mut self, node: NodeId, dead: BTreeSet<IpNet>) -> bool {
        let before = if dead.is_empty() { self.0.remove(&node) } else { self.0.insert(node, dead.clone()) };
        before.unwrap_or_default() != dead
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

impl Control {
    /// A node says what it serves. The database keeps it, with approval; what is dead concerns the present only.
    pub(crate) fn routes_announced(&mut self, node: NodeId, list: &proto::RouteList, now: Now) {
        let Some(network) = self.registry.nodes.get(&node).map(|n| n.network_id) else { return };
        let overlay = self.registry.overlay(network);
        let mut routes: BTreeMap<IpNet, AnnouncedRoute> = BTreeMap::new();
        let mut dead = BTreeSet::new();
        for message in list.routes.iter().take(cidr::MAX_ANNOUNCED) {
            match announced(message, &overlay) {
                Ok(route) => {
                    if message.down {
                        dead.insert(route.cidr);
                    }
                    routes.insert(route.cidr, route);
                }
                Err(reason) => {
                    self.stats.bad_messages += 1;
                    tracing::warn!(%node, reason, "a node announces something that is no route");
                }
            }
        }
        if self.dead_routes.set(node, dead) {
            self.mark(network, now, |d| d.routes = true);
        }
        let known = self.registry.routes.get(&node).map(Vec::as_slice).unwrap_or_default();
        if !agrees(known, &routes) {
            let routes = routes.into_values().collect();
            let approve = !self.config.require_route_approval;
            self.events.push_back(Event::Store(StoreOp::AnnounceRoutes { node, routes, approve }));
        }
    }
}

/// Whether the database would change nothing: a node that only comes back costs no write.
fn agrees(known: &[RouteRecord], routes: &BTreeMap<IpNet, AnnouncedRoute>) -> bool {
    let same = |record: &RouteRecord| match routes.get(&record.cidr) {
        Some(route) if record.announced => {
            (route.priority, route.weight, route.snat) == (record.priority, record.weight, record.snat)
        }
        Some(route) => route.snat == record.snat,
        None => !record.announced,
    };
    known.iter().all(same) && routes.keys().all(|cidr| known.iter().any(|record| record.cidr == *cidr))
}

fn announced(message: &proto::Route, overlay: &[IpNet]) -> Result<AnnouncedRoute, String> {
    let prefix = message.cidr.as_ref().ok_or("no prefix")?;
    let address = match prefix.address.len() {
        4 => <[u8; 4]>::try_from(prefix.address.as_slice()).map(IpAddr::from),
        _ => <[u8; 16]>::try_from(prefix.address.as_slice()).map(IpAddr::from),
    };
    let address = address.map_err(|_| format!("an address of {} bytes", prefix.address.len()))?;
    let length = u8::try_from(prefix.length).map_err(|_| format!("a prefix of {} bits", prefix.length))?;
    let cidr = IpNet::new(address, length).map_err(|_| format!("a prefix of {length} bits"))?;
    cidr::check(cidr, overlay).map_err(|bad| bad.to_string())?;
    let priority = u16::try_from(message.priority);
    let priority = priority.map_err(|_| format!("{cidr}: priority {} is not 0 to 65535", message.priority))?;
    let weight = u16::try_from(message.weight).ok().filter(|weight| *weight > 0);
    let weight = weight.ok_or_else(|| format!("{cidr}: weight {} is not 1 to 65535", message.weight))?;
    Ok(AnnouncedRoute { cidr, priority, weight, snat: !message.single })
}
