//! Subnet routes: which are used, what we serve ourselves, and which gateways live (specification §7, DESIGN §7).
//!
//! A gateway is *down* when the controller says that it is offline while no path shows otherwise, or when no path to it
//! answers. It comes back with an authenticated PONG or with the controller's word, and is *held* for a while then:
//! new flows take it only when there is nobody else. [`table`] holds the routes and chooses.

mod explain;
mod flow;
mod table;

use crate::control::ip;
use crate::timers::Timer;
use crate::{Drop, Node};
use edgelink_api::local::Route as RouteStatus;
use edgelink_model::records::AnnouncedRoute;
use edgelink_model::{NodeId, Now, cidr};
use edgelink_path::Standing;
use edgelink_wire::control::{ControlMessage, proto};
use edgelink_wire::packet::IpView;
use edgelink_wire::probe::Probe;
use edgelink_wire::{Flags, FrameType};
use flow::Flow;
use ipnet::IpNet;
use prefix_trie::joint::set::JointPrefixSet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use table::{Gateway, Health, Prefix, RouteTable, Skip};

/// A gateway that has recovered takes no new flows for this long, unless there is nobody else.
const HOLD_DOWN: Duration = Duration::from_secs(10);
/// A gateway that is down, and online as far as the controller knows, is probed this often at first.
const PROBE_DOWN: Duration = Duration::from_secs(2);
/// And this often when it stays down.
const PROBE_DOWN_MAX: Duration = Duration::from_secs(30);

/// What the configuration says of routes; may change while the node runs ([`Node::set_routing`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingConfig {
    /// Use the subnets that other nodes offer (`accept_routes`).
    pub accept: bool,
    /// Subnets to announce (`advertise_routes`).
    pub advertise: Vec<AnnouncedRoute>,
    /// Serve whatever an administrator routes here (`gateway_mode.enabled`), not only what is announced.
    pub gateway: bool,
    /// Gateways to take before others, whatever their priority, while they live.
    pub prefer: Vec<RouteFilter>,
    /// Routes not to use.
    pub deny: Vec<RouteFilter>,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        Self { accept: true, advertise: Vec::new(), gateway: false, prefer: Vec::new(), deny: Vec::new() }
    }
}

/// Names routes: those of a prefix, those of a gateway, or those of both together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Exactly this prefix; any without.
    pub cidr: Option<IpNet>,
    /// The gateway's name or id; any without.
    pub gateway: Option<String>,
}

impl RouteFilter {
    fn matches(&self, cidr: IpNet, node: NodeId, name: Option<&str>) -> bool {
        let gateway =
            |wanted: &String| wanted.parse() == Ok(node) || name.is_some_and(|name| name.eq_ignore_ascii_case(wanted));
        (self.cidr.is_some() || self.gateway.is_some())
            && self.cidr.is_none_or(|wanted| wanted == cidr)
            && self.gateway.as_ref().is_none_or(gateway)
    }
}

/// A node that serves subnets.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    health: Health,
    /// It has been up before: coming back, it is held.
    was_up: bool,
    held_until: Option<Instant>,
    /// Interval of probes while it is down.
    probe: Duration,
}

#[derive(Default)]
pub(crate) struct Routing {
    config: RoutingConfig,
    table: RouteTable,
    gateways: BTreeMap<NodeId, State>,
    /// Gateways whose side of a prefix answers again, and until when they are held.
    recovered: BTreeMap<(IpNet, NodeId), Instant>,
    /// What we serve, and may therefore send from and deliver to.
    served: JointPrefixSet<IpNet>,
    served_list: Vec<IpNet>,
    /// Networks that this host is directly connected to.
    connected: Vec<IpNet>,
    /// Overlays of other networks that it is in.
    others: Vec<IpNet>,
    /// Our subnets that do not answer on our side.
    dead: BTreeSet<IpNet>,
    /// What the controller was told on the present connection.
    announced: Option<proto::RouteList>,
    /// The last configuration, so that an unchanged one costs nothing.
    known: Vec<proto::Route>,
    last_source: Option<(NodeId, IpAddr)>,
    /// What the shell was told last.
    published: (Vec<IpNet>, Vec<IpNet>),
}

impl Node {
    /// What the configuration says of routes, from now on.
    pub fn set_routing(&mut self, config: RoutingConfig, now: Now) {
        if self.routing.config != config {
            self.routing.config = config;
            self.rebuild_routes(now);
            self.announce_routes();
        }
    }

    /// Which of our subnets do not answer on our side: their gateways elsewhere take over (`gateway_mode.health_target`).
    pub fn set_dead_routes(&mut self, dead: BTreeSet<IpNet>) {
        if self.routing.dead != dead {
            self.routing.dead = dead;
            self.announce_routes();
        }
    }

    /// The overlay prefixes of other networks that this host is in: like networks that it is directly connected to, no
    /// route of this one may take a part of them.
    pub fn set_other_networks(&mut self, prefixes: &[IpNet], now: Now) {
        if self.routing.others != prefixes {
            self.routing.others = prefixes.to_vec();
            self.rebuild_routes(now);
        }
    }

    /// What this node serves now: announced or given to it, and approved.
    pub fn served_routes(&self) -> &[IpNet] {
        &self.routing.served_list
    }

    /// Tells the controller what we serve, unless it has been told on this connection.
    pub(crate) fn announce_routes(&mut self) {
        let Some(link) = self.control_link() else { return };
        let overlay = self.overlay();
        let routes = self.routing.config.advertise.iter().filter(|route| cidr::check(route.cidr, &overlay).is_ok());
        let message = |route: &AnnouncedRoute| proto::Route {
            cidr: Some(prefix_message(route.cidr)),
            node_id: 0,
            priority: route.priority.into(),
            weight: route.weight.into(),
            enabled: true,
            single: !route.snat,
            down: self.routing.dead.contains(&route.cidr),
        };
        let list = proto::RouteList { routes: routes.take(cidr::MAX_ANNOUNCED).map(message).collect() };
        let me = self.identity.as_ref().map_or(0, |me| me.node.0);
        // Nothing to announce, and nothing to take back.
        let silent = list.routes.is_empty()
            && self.routing.announced.as_ref().is_none_or(|told| told.routes.is_empty())
            && !self.latest.routes.iter().any(|route| route.node_id == me);
        if silent || self.routing.announced.as_ref() == Some(&list) {
            return;
        }
        self.routing.announced = Some(list.clone());
        let update = proto::ConfigUpdate { routes: Some(list), ..proto::ConfigUpdate::default() };
        self.send_message(link, ControlMessage::ConfigUpdate(update));
    }

    /// A new control connection: the controller has heard nothing on it.
    pub(crate) fn forget_announced_routes(&mut self) {
        self.routing.announced = None;
    }

    /// The host's networks have changed.
    pub(crate) fn set_connected(&mut self, addresses: &[IpNet], now: Now) {
        let mut connected: Vec<IpNet> = addresses.iter().map(IpNet::trunc).collect();
        connected.sort_unstable();
        connected.dedup();
        if self.routing.connected != connected {
            self.routing.connected = connected;
            self.rebuild_routes(now);
        }
    }

    /// What was made of the configuration's routes is made anew with the next look at them.
    pub(crate) fn forget_known_routes(&mut self) {
        self.routing.known.clear();
    }

    /// Takes over the routes of the latest configuration, if they have changed.
    pub(crate) fn routes_changed(&mut self, now: Now) {
        if self.routing.known != self.latest.routes {
            self.rebuild_routes(now);
        }
        self.announce_routes();
    }

    pub(crate) fn clear_routes(&mut self) {
        let Routing { config, connected, others, dead, .. } = std::mem::take(&mut self.routing);
        self.routing = Routing { config, connected, others, dead, ..Routing::default() };
        self.routing.table.clear();
    }

    fn rebuild_routes(&mut self, now: Now) {
        self.routing.known.clone_from(&self.latest.routes);
        let Some(me) = self.identity.as_ref().map(|identity| identity.node) else { return };
        let overlay = self.overlay();
        let routing = &self.routing;
        let config = &routing.config;
        let mut prefixes: BTreeMap<IpNet, Prefix> = BTreeMap::new();
        let mut served = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        for message in self.latest.routes.iter().filter(|message| message.enabled) {
            // What the controller says is checked as well: a route into the overlay would take a peer's address.
            let Some((cidr, priority, weight)) = parse(message, &overlay) else {
                self.drops.count(Drop::Malformed);
                continue;
            };
            let node = NodeId(message.node_id);
            if node == me {
                if config.gateway || config.advertise.iter().any(|route| route.cidr == cidr) {
                    served.insert(cidr);
                }
                continue;
            }
            let name = self.peers.get(node).map(|peer| peer.name.as_str());
            let named = |filters: &[RouteFilter]| filters.iter().any(|filter| filter.matches(cidr, node, name));
            nodes.insert(node);
            prefixes.entry(cidr).or_default().gateways.push(Gateway {
                node,
                priority,
                weight,
                single: message.single,
                dead: message.down,
                held: false,
                preferred: named(&config.prefer),
                denied: named(&config.deny),
                health: Health::Up,
            });
        }
        let health: BTreeMap<NodeId, State> = nodes.iter().map(|node| (*node, self.state_of(*node))).collect();
        for (cidr, prefix) in &mut prefixes {
            prefix.gateways.sort_by_key(|gateway| (std::cmp::Reverse(gateway.priority), gateway.node));
            for gateway in &mut prefix.gateways {
                gateway.health = health.get(&gateway.node).map_or(Health::Down, |state| state.health);
            }
            prefix.skip = if !config.accept {
                Some(Skip::NotAccepted)
            } else if served.contains(cidr) {
                Some(Skip::Own)
            } else if routing.connected.iter().chain(&routing.others).any(|net| net.contains(cidr)) {
                Some(Skip::Local)
            } else if prefix.gateways.iter().all(|gateway| gateway.denied) {
                Some(Skip::Denied)
            } else {
                None
            };
        }
        self.hold_recovered(&mut prefixes, now);
        self.routing.served = served.iter().copied().collect();
        self.routing.served_list = served.into_iter().collect();
        self.routing.gateways = health;
        self.routing.last_source = None;
        self.routing.table.set(prefixes);
        let down: Vec<NodeId> = self.down_gateways().collect();
        for node in down {
            self.timers.set_earlier(Timer::Gateway(node), now.mono + PROBE_DOWN);
        }
        let wanted = (self.installed_routes(), self.routing.served_list.clone());
        if self.routing.published != wanted {
            self.routing.published = wanted;
            self.publish_interface();
        }
    }

    /// A gateway whose side of a prefix was dead takes no new flows at first, like one that was dead itself.
    fn hold_recovered(&mut self, prefixes: &mut BTreeMap<IpNet, Prefix>, now: Now) {
        let routing = &mut self.routing;
        let was_dead: BTreeSet<(IpNet, NodeId)> = routing
            .table
            .iter()
            .flat_map(|(cidr, prefix)| prefix.gateways.iter().filter(|g| g.dead).map(move |g| (cidr, g.node)))
            .collect();
        let mut held = BTreeMap::new();
        for (cidr, prefix) in prefixes {
            for gateway in prefix.gateways.iter_mut().filter(|gateway| !gateway.dead) {
                let key = (*cidr, gateway.node);
                let until = if was_dead.contains(&key) {
                    Some(now.mono + HOLD_DOWN)
                } else {
                    routing.recovered.get(&key).copied().filter(|until| *until > now.mono)
                };
                gateway.held = until.is_some();
                held.extend(until.map(|until| (key, until)));
            }
        }
        routing.recovered = held;
        match routing.recovered.values().min() {
            Some(first) => self.timers.set(Timer::Recovered, *first),
            None => self.timers.clear(Timer::Recovered),
        }
    }

    /// The hold-down of some gateway's side is over.
    pub(crate) fn recovered_timeout(&mut self, now: Now) {
        self.rebuild_routes(now);
    }

    fn state_of(&self, node: NodeId) -> State {
        if let Some(state) = self.routing.gateways.get(&node) {
            return *state;
        }
        let up = self.peers.get(node).is_some_and(|peer| peer.online);
        State { health: if up { Health::Up } else { Health::Down }, was_up: up, held_until: None, probe: PROBE_DOWN }
    }

    fn down_gateways(&self) -> impl Iterator<Item = NodeId> {
        self.routing.gateways.iter().filter(|(_, state)| state.health == Health::Down).map(|(node, _)| *node)
    }

    /// The gateway that a packet takes.
    pub(crate) fn gateway_for(&mut self, ip: &IpView, packet: &[u8]) -> Option<NodeId> {
        if self.routing.table.is_empty() || self.is_overlay(ip.dst) {
            return None;
        }
        self.routing.table.route(&Flow::of(ip, packet))
    }

    /// Cryptokey routing: whether this peer may send from an address that is not its own.
    pub(crate) fn may_source(&mut self, address: IpAddr, from: NodeId) -> bool {
        if self.routing.last_source == Some((from, address)) {
            return true;
        }
        let allowed = !self.is_overlay(address) && self.routing.table.may_source(address, from);
        if allowed {
            self.routing.last_source = Some((from, address));
        }
        allowed
    }

    /// Whether an address lies in a subnet that we serve.
    pub(crate) fn serves(&self, address: IpAddr) -> bool {
        !self.routing.served_list.is_empty()
            && cidr::is_routable(address)
            && !self.is_overlay(address)
            && self.routing.served.get_lpm(&IpNet::from(address)).is_some()
    }

    /// Whether packets to this address go into the tunnel because of a subnet route.
    pub(crate) fn captures(&self, address: IpAddr) -> bool {
        self.routing.table.captures(address)
    }

    /// Prefixes that the kernel must send into the tunnel.
    pub(crate) fn installed_routes(&self) -> Vec<IpNet> {
        self.routing.table.installed().collect()
    }

    fn is_overlay(&self, address: IpAddr) -> bool {
        self.network.as_ref().is_some_and(|network| network.subnets.iter().any(|subnet| subnet.contains(&address)))
    }

    /// A peer's presence has changed, or it is gone (`online` false).
    pub(crate) fn gateway_presence(&mut self, node: NodeId, online: bool, now: Now) {
        if !self.routing.gateways.contains_key(&node) {
            return;
        }
        if online {
            return self.gateway_back(node, now);
        }
        let alive = |peer: &crate::peers::Peer| {
            let paths = peer.paths.as_ref().filter(|paths| !paths.is_asleep(now.mono));
            paths.and_then(|paths| paths.view()).is_some_and(|view| view.standing == Standing::Alive)
        };
        // Packets that come prove more than the controller's word, which may only have lost its connection.
        if !self.peers.get(node).is_some_and(alive) {
            self.gateway_lost(node, now);
        }
    }

    /// The paths to a peer were judged anew.
    pub(crate) fn gateway_judged(&mut self, node: NodeId, now: Now) {
        if !self.routing.gateways.contains_key(&node) {
            return;
        }
        let dead = |peer: &crate::peers::Peer| {
            let view = peer.paths.as_ref().and_then(|paths| paths.view());
            view.is_some_and(|view| view.standing == Standing::Dead)
        };
        if self.peers.get(node).is_some_and(dead) {
            self.gateway_lost(node, now);
        }
    }

    /// No path answers, or it is offline.
    fn gateway_lost(&mut self, node: NodeId, now: Now) {
        let Some(state) = self.routing.gateways.get_mut(&node).filter(|s| s.health != Health::Down) else { return };
        tracing::info!(gateway = %node, "a gateway does not answer; its flows move to others");
        state.health = Health::Down;
        state.held_until = None;
        state.probe = PROBE_DOWN;
        self.routing.last_source = None;
        self.routing.table.set_health(node, Health::Down);
        self.timers.set(Timer::Gateway(node), now.mono + PROBE_DOWN);
    }

    /// It answers again, or is online again.
    pub(crate) fn gateway_back(&mut self, node: NodeId, now: Now) {
        let Some(state) = self.routing.gateways.get_mut(&node).filter(|s| s.health == Health::Down) else { return };
        state.health = if state.was_up { Health::Held } else { Health::Up };
        state.was_up = true;
        let health = state.health;
        if health == Health::Held {
            state.held_until = Some(now.mono + HOLD_DOWN);
            self.timers.set(Timer::Gateway(node), now.mono + HOLD_DOWN);
        } else {
            self.timers.clear(Timer::Gateway(node));
        }
        tracing::info!(gateway = %node, held = health == Health::Held, "a gateway is back");
        self.routing.last_source = None;
        self.routing.table.set_health(node, health);
    }

    /// A gateway's time of trial is over, or a dead one is asked again.
    pub(crate) fn gateway_timeout(&mut self, node: NodeId, now: Now) {
        let Some(state) = self.routing.gateways.get_mut(&node) else { return };
        match state.health {
            Health::Up => {}
            Health::Held if state.held_until.is_some_and(|until| until > now.mono) => {
                let until = state.held_until.unwrap_or(now.mono);
                self.timers.set(Timer::Gateway(node), until);
            }
            Health::Held => {
                state.health = Health::Up;
                state.held_until = None;
                self.routing.table.set_health(node, Health::Up);
            }
            Health::Down => {
                state.probe = (state.probe * 2).min(PROBE_DOWN_MAX);
                let next = now.mono + state.probe;
                self.timers.set(Timer::Gateway(node), next);
                self.probe_gateway(node, now);
            }
        }
    }

    /// One sealed probe over the way that packets would take; its PONG brings the gateway back.
    fn probe_gateway(&mut self, node: NodeId, now: Now) {
        if !self.peers.get(node).is_some_and(|peer| peer.online) {
            return;
        }
        self.retry_paths(node, now);
        let sent_us = self.probe_time(now);
        let Some(plan) = self.aside(node, edgelink_wire::probe::LEN, now) else { return };
        let probe = Probe { path: 0, sent_us }.encode();
        if let Err(reason) = self.send_sealed(node, FrameType::P2pPing, Flags::default(), &[&probe], plan, now) {
            tracing::trace!(gateway = %node, ?reason, "probe not sent");
        }
    }

    /// For `status`: every route of others, whether it is used, and why not.
    pub(crate) fn route_status(&self) -> Vec<RouteStatus> {
        let rows = self.routing.table.iter().flat_map(|(cidr, prefix)| {
            prefix.gateways.iter().map(move |gateway| RouteStatus {
                cidr,
                gateway_node_id: gateway.node,
                priority: gateway.priority,
                weight: gateway.weight,
                active: prefix.is_active(gateway.node),
                skipped: match prefix.skip {
                    Some(skip) => Some(skip.as_str().to_owned()),
                    None => gateway.denied.then(|| Skip::Denied.as_str().to_owned()),
                },
            })
        });
        rows.collect()
    }

    /// What is wrong with routes, one sentence each.
    pub(crate) fn route_health(&self, health: &mut Vec<String>) {
        let overlay = self.overlay();
        for route in &self.routing.config.advertise {
            if let Err(bad) = cidr::check(route.cidr, &overlay) {
                health.push(format!("advertise_routes: {bad}"));
            }
        }
        if self.network.is_some() {
            let waits = |route: &&AnnouncedRoute| {
                !self.routing.served_list.contains(&route.cidr) && cidr::check(route.cidr, &overlay).is_ok()
            };
            for route in self.routing.config.advertise.iter().filter(waits) {
                health.push(format!(
                    "advertise_routes: {} waits for approval; on the controller: edgelink-ctl route enable",
                    route.cidr
                ));
            }
        }
        for cidr in &self.routing.dead {
            health.push(format!("gateway: nothing answers in {cidr}; other gateways take over"));
        }
    }
}

/// Prefix, priority and weight; `None` for what is no route.
fn parse(message: &proto::Route, overlay: &[IpNet]) -> Option<(IpNet, u16, u16)> {
    let prefix = message.cidr.as_ref()?;
    let cidr = IpNet::new(ip(&prefix.address)?, u8::try_from(prefix.length).ok()?).ok()?;
    cidr::check(cidr, overlay).ok()?;
    let weight = u16::try_from(message.weight).ok().filter(|weight| *weight > 0)?;
    Some((cidr, u16::try_from(message.priority).ok()?, weight))
}

fn prefix_message(net: IpNet) -> proto::Prefix {
    let address = match net.network() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    proto::Prefix { address, length: net.prefix_len().into() }
}

#[cfg(test)]
mod tests;
