//! What `edgelink status` shows (DESIGN §8).

use crate::control::Phase;
use crate::peers::Peer;
use crate::{Node, control};
use edgelink_api::local::{
    ControllerLink, DaemonState, Endpoint, Nat, NatBehaviour, NatName, Netcheck, Path, PathKind, Peer as PeerStatus,
    PortMapping, Relay, Status,
};
use edgelink_model::{NodeId, Now};
use edgelink_path::{Behaviour, EndpointKind, Standing, View};
use std::time::{Duration, Instant};

/// A peer is talked with while packets went either way within this time.
const ACTIVE: Duration = Duration::from_secs(120);

/// Missed keys are made up for within a second or two; what lasts longer is no missed key.
const UNOPENED_FOR: Duration = Duration::from_secs(3);
/// And this long ago it may have ended.
const UNOPENED_SINCE: Duration = Duration::from_secs(30);
const UNOPENED: &str =
    "its packets cannot be opened, although its key is known: is the pre-shared key (psk) the same there?";

impl Peer {
    /// Its frames have come for a while, and no key of ours opens them.
    fn cannot_be_opened(&self, now: Instant) -> bool {
        self.unopened.is_some_and(|(first, last)| {
            last.saturating_duration_since(first) >= UNOPENED_FOR
                && now.saturating_duration_since(last) < UNOPENED_SINCE
        })
    }

    pub(crate) fn is_active(&self, now: Instant) -> bool {
        let recent = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) < ACTIVE);
        recent(self.last_tx) || recent(self.last_rx)
    }
}

impl Node {
    /// The state of everything, for people and scripts. `controller_url` is what the shell dials.
    pub fn status(&self, controller_url: &str, now: Now) -> Status {
        let (state, state_message) = self.state();
        Status {
            state,
            state_message,
            version: self.config.host.version.clone(),
            node_id: self.identity.as_ref().map(|i| i.node),
            name: self.identity.as_ref().map_or_else(|| self.config.host.hostname.clone(), |i| i.name.clone()),
            network: self.network.as_ref().map(|n| n.name.clone()),
            addresses: self.identity.as_ref().map(|i| i.addresses.clone()).unwrap_or_default(),
            controller: ControllerLink {
                connected: self.control.phase() == Phase::Ready,
                rtt_ms: self.control.rtt.map(millis),
                url: Some(controller_url.to_owned()),
            },
            relays: self.relay_status(controller_url),
            nat: self.nat_status(),
            peers: self.peer_status(now),
            routes: self.route_status(),
            drops: self.drops.report(),
            config_version: self.network.as_ref().map_or(0, |n| n.version),
            health: self.health(),
        }
    }

    fn state(&self) -> (DaemonState, Option<String>) {
        let refusal = self.control.refusal.as_ref().map(|r| format!("{} (error {})", r.message, r.code.as_u16()));
        if self.control.phase() == Phase::Waiting {
            (DaemonState::WaitingForAuthorization, refusal)
        } else if self.network.is_some() {
            (DaemonState::Up, refusal)
        } else if refusal.is_some() {
            (DaemonState::Refused, refusal)
        } else {
            (DaemonState::Connecting, self.control.problem.clone())
        }
    }

    fn health(&self) -> Vec<String> {
        let mut health = Vec::new();
        if self.control.phase() != Phase::Ready
            && let Some(problem) = &self.control.problem
        {
            health.push(format!("controller: {problem}"));
        }
        for relay in self.relays.values().filter(|r| !r.connected()) {
            if let Some(problem) = &relay.problem {
                health.push(format!("relay {}: {problem}", relay.message.name));
            }
        }
        for (_, peer) in self.peers.iter() {
            if let Some(refused) = &peer.refused {
                health.push(format!("peer {}: {refused} (edgelink accept {})", peer.name, peer.name));
            }
        }
        self.route_health(&mut health);
        health
    }

    fn relay_status(&self, controller_url: &str) -> Vec<Relay> {
        let url = |r: &edgelink_wire::control::proto::Relay| {
            if r.url.is_empty() { origin(controller_url).to_owned() + &r.path } else { r.url.clone() }
        };
        self.relays
            .iter()
            .map(|(id, relay)| Relay {
                id: *id,
                name: control::printable(&relay.message.name),
                url: url(&relay.message),
                connected: relay.connected(),
                rtt_ms: relay.rtt.map(millis),
            })
            .collect()
    }

    fn peer_status(&self, now: Now) -> Vec<PeerStatus> {
        let mut peers: Vec<PeerStatus> = self.peers.iter().map(|(id, peer)| self.one_peer(id, peer, now)).collect();
        peers.sort_by(|a, b| (&a.name, a.node_id).cmp(&(&b.name, b.node_id)));
        peers
    }

    fn one_peer(&self, id: NodeId, peer: &Peer, now: Now) -> PeerStatus {
        let has_session = self.sessions.as_ref().is_some_and(|s| s.has_peer(id));
        let path = self.path(peer);
        let reason = match (&peer.refused, &peer.undeliverable, has_session) {
            (Some(refused), _, _) => Some(refused.clone()),
            _ if peer.cannot_be_opened(now.mono) => Some(UNOPENED.to_owned()),
            (None, Some(undeliverable), _) if !peer.online => Some(undeliverable.clone()),
            (None, _, false) => Some("it has not announced a key yet".to_owned()),
            (None, _, true) if path.kind == PathKind::None => {
                let why = if self.relay_ways.is_empty() { "no relay is connected" } else { "no path answers" };
                Some(why.to_owned())
            }
            (None, _, true) => self.path_problem(peer, now).or_else(|| {
                let direct = matches!(path.kind, PathKind::Lan | PathKind::P2p);
                if direct { None } else { self.why_relayed(id, now) }
            }),
        };
        PeerStatus {
            node_id: id,
            name: peer.name.clone(),
            addresses: peer.addresses.clone(),
            online: peer.online,
            path: if has_session { path } else { Path::default() },
            reason,
            last_rx_ms: peer
                .last_rx
                .map(|at| u64::try_from(now.mono.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX)),
            rx_bytes: peer.rx_bytes,
            tx_bytes: peer.tx_bytes,
        }
    }

    /// The path that packets to `peer` take, for ping replies.
    pub fn path_to(&self, peer: NodeId) -> Path {
        self.peers.get(peer).map(|p| self.path(p)).unwrap_or_default()
    }

    fn path(&self, peer: &Peer) -> Path {
        // A direct path that is dead and stays for want of another carries nothing.
        let dead = |view: &View| view.standing == Standing::Dead && view.way.is_direct();
        let view = self.path_view(peer).filter(|view| !dead(view));
        view.map(|view| crate::path_report::path_of(&view)).unwrap_or_default()
    }

    /// What is known of the network around us, for `edgelink netcheck`; the port mapping is the shell's to add.
    pub fn netcheck(&self, controller_url: &str) -> Netcheck {
        let enabled = self.config.p2p.enabled;
        let asked = self.direct.nat();
        let udp = asked.filter(|_| enabled).and_then(|nat| match (nat.answered_at(), nat.is_blocked()) {
            (Some(_), _) => Some(true),
            (None, true) => Some(false),
            (None, false) => None,
        });
        let endpoint = |endpoint: edgelink_path::Endpoint| Endpoint {
            kind: match endpoint.kind {
                EndpointKind::Lan => "lan",
                EndpointKind::Stun => "stun",
                EndpointKind::Upnp => "upnp",
                EndpointKind::Relay => "relay",
            }
            .to_owned(),
            address: endpoint.address,
            priority: endpoint.kind.priority(),
        };
        let nat = self.nat_status();
        let mut problems = Vec::new();
        if !enabled {
            problems.push(
                "direct connections are disabled here (p2p.enabled): peers are reached through relays".to_owned(),
            );
        } else if let Some(problem) = &self.direct.problem {
            problems.push(format!("no UDP socket: {problem}"));
        } else if asked.is_none() {
            problems.push("no STUN server is known: peers elsewhere find this node by luck only".to_owned());
        } else if udp == Some(false) {
            problems.push(
                "UDP seems to be blocked: no STUN server answers; peers elsewhere are reached through relays"
                    .to_owned(),
            );
        } else if nat.name == NatName::Symmetric && self.direct.mappings.is_empty() {
            problems.push("the NAT is symmetric: peers behind NATs that filter by port are reached with luck, other symmetric ones through relays".to_owned());
        }
        Netcheck {
            p2p_enabled: enabled,
            udp,
            nat,
            endpoints: self.endpoints(NodeId::CONTROLLER).into_iter().map(endpoint).collect(),
            // The shell knows it.
            port_mapping: PortMapping::default(),
            relays: self.relay_status(controller_url),
            problems,
        }
    }

    fn nat_status(&self) -> Nat {
        let behaviour = |behaviour| match behaviour {
            Behaviour::Unknown => NatBehaviour::Unknown,
            Behaviour::None => NatBehaviour::None,
            Behaviour::EndpointIndependent => NatBehaviour::EndpointIndependent,
            Behaviour::AddressDependent => NatBehaviour::AddressDependent,
            Behaviour::AddressAndPortDependent => NatBehaviour::AddressAndPortDependent,
        };
        let (mapping, filtering) = self.nat_behaviour();
        let name = match self.nat_name() {
            edgelink_path::NatName::Unknown => NatName::Unknown,
            edgelink_path::NatName::Open => NatName::Open,
            edgelink_path::NatName::FullCone => NatName::FullCone,
            edgelink_path::NatName::RestrictedCone => NatName::RestrictedCone,
            edgelink_path::NatName::PortRestricted => NatName::PortRestricted,
            edgelink_path::NatName::Symmetric => NatName::Symmetric,
            edgelink_path::NatName::UdpBlocked => NatName::UdpBlocked,
        };
        Nat { mapping: behaviour(mapping), filtering: behaviour(filtering), name }
    }

    /// What is wrong with the path in use.
    fn path_problem(&self, peer: &Peer, now: Now) -> Option<String> {
        let paths = peer.paths.as_ref().filter(|paths| !paths.is_asleep(now.mono))?;
        match paths.view()?.standing {
            Standing::Alive | Standing::Unproved => None,
            Standing::Doubted => Some("answers are missing over this path".to_owned()),
            Standing::Dead => Some("no path answers".to_owned()),
        }
    }
}

/// Scheme and authority of a URL: where an empty relay URL leads.
fn origin(url: &str) -> &str {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url.get(authority..).and_then(|rest| rest.find('/')).map_or(url.len(), |at| authority + at);
    url.get(..end).unwrap_or(url)
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
