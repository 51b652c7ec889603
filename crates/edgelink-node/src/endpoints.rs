//! The exchange of endpoints (specification §6.2, §6.3): through the controller, and sealed end to end through a relay, so
//! that it works while the controller is away. What the controller says of endpoints is a hint as any other: an address is
//! probed within the budget, and counts once it is proved.

use crate::control::ip;
use crate::p2p_status;
use crate::punching::LEAD;
use crate::sockets::MAPPING_PATIENCE;
use crate::timers::Timer;
use crate::{Drop, Node};
use edgelink_model::{NodeId, Now};
use edgelink_path::{ATTEMPTS, Behaviour, Endpoint, EndpointKind, MAX_ENDPOINTS, Punch, PunchState, usable};
use edgelink_wire::control::{ControlMessage, proto};
use edgelink_wire::probe::{self, Probe};
use edgelink_wire::{Flags, FrameType};
use ipnet::IpNet;
use prost::Message as _;
use std::net::SocketAddr;
use std::time::Duration;

/// What follows the fixed part of a P2P_PING: nothing, zeros, or this and a P2P_ENDPOINT message.
const ENDPOINTS_TAG: u8 = 1;
/// In P2P_ENDPOINT's `nat_mapping`: this node does not want direct paths.
const DISABLED: &str = "disabled";
/// A mapping that was seen this recently is still there.
const FRESH: Duration = Duration::from_secs(20);

impl Node {
    /// Our endpoints for a peer, best first.
    pub(crate) fn endpoints(&self, peer: NodeId) -> Vec<Endpoint> {
        let Some(port) = self.direct.port else { return Vec::new() };
        let overlay = self.inside();
        let of = |kind, address| Endpoint { kind, address };
        let lan = self.direct.local.iter().map(|net| of(EndpointKind::Lan, SocketAddr::new(net.addr(), port)));
        // What was made for this peer lately before what has failed.
        let mapped = self.extra_mappings(peer).into_iter().chain(self.direct.mapped());
        let stun = mapped.map(|address| of(EndpointKind::Stun, address));
        let upnp = self.direct.mappings.iter().map(|address| of(EndpointKind::Upnp, *address));
        let seen =
            self.direct.observed.values().map(|address| of(EndpointKind::Relay, SocketAddr::new(*address, port)));
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for endpoint in lan.chain(stun).chain(upnp).chain(seen) {
            let known = endpoints.iter().any(|other| other.address == endpoint.address);
            if !known && usable(endpoint.address, &overlay) && !self.captures(endpoint.address.ip()) {
                endpoints.push(endpoint);
            }
        }
        endpoints.sort_by_key(|endpoint| endpoint.kind.priority());
        endpoints.truncate(MAX_ENDPOINTS);
        endpoints
    }

    /// The overlay's own addresses.
    pub(crate) fn overlay(&self) -> Vec<IpNet> {
        self.network.as_ref().map(|network| network.subnets.clone()).unwrap_or_default()
    }

    /// Addresses that lie inside the tunnel, the overlay's own and those of peers' routes: a path through itself would be
    /// none. A route to a network that this host is connected to is not taken, so its addresses are outside.
    fn inside(&self) -> Vec<IpNet> {
        let own = self.network.iter().flat_map(|network| network.subnets.iter().copied());
        let me = self.identity.as_ref().map_or(0, |identity| identity.node.0);
        let routes = self.latest.routes.iter().filter(|route| route.enabled && route.node_id != me);
        let routes = routes.filter_map(|route| {
            let cidr = route.cidr.as_ref()?;
            IpNet::new(ip(&cidr.address)?, u8::try_from(cidr.length).ok()?).ok()
        });
        let elsewhere = |net: &IpNet| {
            let here = |local: &IpNet| net.contains(&local.addr()) || local.contains(&net.addr());
            net.prefix_len() > 0 && !self.direct.local.iter().any(here)
        };
        own.chain(routes.filter(elsewhere)).collect()
    }

    /// A mapping is known or has changed, or there is a way again to tell them: peers that are being looked for get our
    /// endpoints.
    pub(crate) fn endpoints_changed(&mut self, now: Now) {
        let searching = |state| matches!(state, PunchState::Trying(_) | PunchState::Waiting(_));
        let searched: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.punch.as_ref().is_some_and(|punch| searching(punch.state())))
            .map(|(id, _)| id)
            .collect();
        for id in searched {
            self.tell_endpoints(id, 0, now);
        }
    }

    /// Tells a peer our endpoints: through the controller (specification §6.3); sealed through a relay when that is
    /// away, or when the peer has come to us that way. `attempt` is the one that begins, 0 when nothing is asked for.
    pub(crate) fn tell_endpoints(&mut self, id: NodeId, attempt: u32, now: Now) {
        for nat in &mut self.direct.nats {
            let stale = nat.answered_at().is_none_or(|at| now.mono.saturating_duration_since(at) > FRESH);
            if stale && self.direct.port.is_some() {
                nat.refresh();
                self.timers.set_earlier(Timer::Stun, now.mono);
            }
        }
        let message = self.endpoint_message(id, attempt);
        if let Some(link) = self.control_link() {
            if attempt > 0 {
                let init = proto::P2pInit { node_id: id.0, attempt: message.attempt };
                self.send_message(link, ControlMessage::P2pInit(init));
            }
            self.send_message(link, ControlMessage::P2pEndpoint(message.clone()));
        }
        self.seal_endpoints(id, &message, now);
    }

    pub(crate) fn endpoint_message(&self, id: NodeId, attempt: u32) -> proto::P2pEndpoint {
        let endpoint = |endpoint: Endpoint| {
            let kind = match endpoint.kind {
                EndpointKind::Lan => proto::endpoint::Kind::Lan,
                EndpointKind::Stun => proto::endpoint::Kind::Stun,
                EndpointKind::Upnp => proto::endpoint::Kind::Upnp,
                EndpointKind::Relay => proto::endpoint::Kind::Relay,
            };
            p2p_status::endpoint(kind, endpoint.address, endpoint.kind.priority().into())
        };
        let (mapping, filtering) = self.nat_behaviour();
        let enabled = self.config.p2p.enabled;
        proto::P2pEndpoint {
            node_id: id.0,
            endpoints: self.endpoints(id).into_iter().map(endpoint).collect(),
            attempt,
            nat_mapping: if enabled { mapping.name() } else { DISABLED }.to_owned(),
            nat_filtering: filtering.name().to_owned(),
            nat_name: self.nat_name_text().to_owned(),
        }
    }

    /// As room after the fixed part of a P2P_PING through a relay: sealed end to end, and older nodes ignore it.
    pub(crate) fn seal_endpoints(&mut self, id: NodeId, message: &proto::P2pEndpoint, now: Now) {
        let probe = Probe { path: 0, sent_us: self.probe_time(now) }.encode();
        let body = message.encode_to_vec();
        let Some(relay) = self.relay_way(id) else { return };
        let plan = crate::paths::Plan::only(relay);
        let parts: [&[u8]; 3] = [&probe, &[ENDPOINTS_TAG], &body];
        if let Err(reason) = self.send_sealed(id, FrameType::P2pPing, Flags::default(), &parts, plan, now) {
            tracing::trace!(peer = %id, ?reason, "endpoints not told");
        }
    }

    /// Endpoints inside an authenticated P2P_PING.
    pub(crate) fn handle_sealed_endpoints(&mut self, from: NodeId, plaintext: &[u8], now: Now) {
        let Some((&ENDPOINTS_TAG, body)) = plaintext.get(probe::LEN..).and_then(|rest| rest.split_first()) else {
            return;
        };
        match proto::P2pEndpoint::decode(body) {
            Ok(message) => self.handle_endpoints(from, &message, now),
            Err(_) => self.drops.count(Drop::Malformed),
        }
    }

    /// The answer to a peer that asked for our endpoints.
    pub(crate) fn answer_endpoints(&mut self, to: NodeId, now: Now) {
        let answer = self.endpoint_message(to, 0);
        if let Some(link) = self.control_link() {
            self.send_message(link, ControlMessage::P2pEndpoint(answer.clone()));
        }
        self.seal_endpoints(to, &answer, now);
    }

    /// A peer tells its endpoints (`attempt` above 0: and asks for ours).
    pub(crate) fn handle_endpoints(&mut self, from: NodeId, message: &proto::P2pEndpoint, now: Now) {
        if self.peers.get(from).is_none() || !self.sessions.as_ref().is_some_and(|s| s.has_peer(from)) {
            return;
        }
        let attempt = message.attempt.min(ATTEMPTS + 1);
        let due = |peer: &mut crate::peers::Peer| peer.may_answer(now.mono);
        let answers = attempt > 0 && self.peers.get_mut(from).is_some_and(due);
        // The peer has opened another socket for this attempt, and so do we: its mapping is learnt first.
        let retries = answers && (2..=ATTEMPTS).contains(&attempt) && self.direct.port.is_some();
        if retries && self.open_retry(from) {
            if let Some(peer) = self.peers.get_mut(from) {
                peer.asked_for = attempt;
            }
            self.timers.set(Timer::Tell(from), now.mono + MAPPING_PATIENCE);
        } else if answers {
            if attempt > ATTEMPTS {
                self.close_retries(from);
            }
            self.answer_endpoints(from, now);
        }
        let overlay = self.inside();
        let mut candidates: Vec<(u32, SocketAddr)> = Vec::new();
        let (mut mapped, mut lan) = (Vec::new(), Vec::new());
        for endpoint in message.endpoints.iter().take(8 * MAX_ENDPOINTS) {
            let (Some(ip), Ok(port)) = (ip(&endpoint.ip), u16::try_from(endpoint.port)) else { continue };
            let address = SocketAddr::new(ip.to_canonical(), port);
            let known = candidates.iter().any(|(_, other)| *other == address);
            let outside = usable(address, &overlay) && !self.captures(address.ip());
            if !known && outside && !self.direct.is_own(address) {
                candidates.push((endpoint.priority, address));
                if endpoint.kind == i32::from(proto::endpoint::Kind::Stun) {
                    mapped.push(address);
                } else if endpoint.kind == i32::from(proto::endpoint::Kind::Lan) {
                    lan.push(address);
                }
            }
        }
        candidates.sort_by_key(|(priority, _)| *priority);
        candidates.truncate(MAX_ENDPOINTS);
        mapped.truncate(MAX_ENDPOINTS);
        lan.truncate(MAX_ENDPOINTS);
        let half_way = self.half_way(from);
        let sockets = self.sockets_for(from);
        let largest = self.config.p2p.mtu;
        let Some(peer) = self.peers.get_mut(from) else { return };
        // P2P_INIT says nothing of all this.
        let mut remapped = false;
        if !message.nat_mapping.is_empty() {
            remapped = peer.mapped != mapped;
            peer.refuses_direct = message.nat_mapping == DISABLED;
            peer.is_blocked = message.nat_name == "udp_blocked";
            peer.nat = (Behaviour::from_name(&message.nat_mapping), Behaviour::from_name(&message.nat_filtering));
            peer.mapped = mapped;
            peer.neighbour.learn(lan);
            self.arm_neighbour(from, now);
        }
        let may_spray = self.may_spray(from);
        let Some(peer) = self.peers.get_mut(from) else { return };
        if sockets.is_empty() || candidates.is_empty() {
            return;
        }
        let candidates: Vec<SocketAddr> = candidates.into_iter().map(|(_, address)| address).collect();
        let has_direct = peer.paths.as_ref().is_some_and(|paths| paths.has_direct());
        let punch = peer.punch.get_or_insert_with(|| Box::new(Punch::new(largest)));
        if has_direct && punch.state() == PunchState::Idle {
            punch.done();
        }
        punch.set_may_spray(may_spray);
        if remapped {
            // What was known when guessing began were perhaps the mappings of former attempts' sockets, which are closed.
            punch.forget_spray();
        }
        // Whoever asked begins when our answer arrives; in the third attempt whoever was asked leads.
        let delay = match (attempt, punch.attempt()) {
            (0, ATTEMPTS) => LEAD,
            (0, _) => Duration::ZERO,
            (2, _) => half_way + LEAD,
            _ => half_way,
        };
        // It has moved, or its direct path is gone: what we send it directly may be lost until that is proved again.
        let moved = has_direct && (answers || punch.is_news(&candidates));
        punch.set_candidates(candidates, attempt, &sockets, delay, now.mono);
        if moved && let Some(paths) = &mut peer.paths {
            paths.probe_all(now.mono);
            self.arm_path(from);
        }
        self.timers.set_earlier(Timer::Punch(from), now.mono);
    }

    /// How long our words take to a peer, roughly.
    pub(crate) fn half_way(&self, id: NodeId) -> Duration {
        let Some(peer) = self.peers.get(id) else { return Duration::ZERO };
        let measured = self.path_view(peer).and_then(|view| view.rtt);
        let relay = || self.relays.values().filter_map(|relay| relay.rtt).min().map(|rtt| rtt * 2);
        (measured.or_else(relay).unwrap_or_default() / 2).min(Duration::from_millis(500))
    }
}
