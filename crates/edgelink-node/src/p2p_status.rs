//! What people and the controller are told of direct paths: P2P_STATUS, our NAT and endpoints, and why a peer is relayed.

use crate::Node;
use edgelink_model::{NodeId, Now};
use edgelink_path::{ATTEMPTS, Behaviour, NatName, PunchState};
use edgelink_wire::control::{ControlMessage, proto};
use std::net::{IpAddr, SocketAddr};

impl Node {
    /// P2P_STATUS: whether we reach a peer directly, and why not.
    pub(crate) fn report_direct(&mut self, id: NodeId, now: Now) {
        let Some(link) = self.control_link() else { return };
        let Some(peer) = self.peers.get(id) else { return };
        let view = self.path_view(peer).filter(|view| view.way.is_direct());
        let endpoint = view.and_then(|view| view.way.remote()).map(|remote| {
            let lan = |class| matches!(class, edgelink_path::Class::Lan | edgelink_path::Class::LanTcp);
            let kind = if view.is_some_and(|view| lan(view.way.class())) {
                proto::endpoint::Kind::Lan
            } else {
                proto::endpoint::Kind::Unknown
            };
            endpoint(kind, remote, 0)
        });
        let rtt = view.and_then(|view| view.rtt).unwrap_or_default();
        let status = proto::P2pStatus {
            node_id: id.0,
            connected: view.is_some(),
            endpoint,
            rtt_us: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
            reason: if view.is_some() { String::new() } else { self.why_relayed(id, now).unwrap_or_default() },
        };
        self.send_message(link, ControlMessage::P2pStatus(status));
    }

    /// A controller that has just let us in knows nothing of our paths.
    pub(crate) fn report_all_direct(&mut self, now: Now) {
        self.direct.nat_changed = true;
        self.report_nat(now);
        let told: Vec<NodeId> = self.peers.iter().filter(|(_, p)| p.paths.is_some()).map(|(id, _)| id).collect();
        for id in told {
            self.report_direct(id, now);
        }
    }

    /// Our NAT and endpoints for the controller's records, once they are found out and whenever they change.
    pub(crate) fn report_nat(&mut self, now: Now) {
        let settled = self.direct.port.is_some() && self.nat_is_settled();
        let Some(link) = self.control_link().filter(|_| settled && self.direct.nat_changed) else { return };
        self.direct.nat_changed = false;
        let message = self.endpoint_message(NodeId::CONTROLLER, 0);
        self.send_message(link, ControlMessage::P2pEndpoint(message));
        // What was said of a relayed peer before may be said otherwise now.
        let relayed = |peer: &crate::peers::Peer| peer.punch.as_ref().is_some_and(|p| p.state() != PunchState::Done);
        let told: Vec<NodeId> = self.peers.iter().filter(|(_, p)| relayed(p)).map(|(id, _)| id).collect();
        for id in told {
            self.report_direct(id, now);
        }
    }

    /// Why a peer is relayed, in words for the user; `None` while nobody has asked for more.
    pub(crate) fn why_relayed(&self, id: NodeId, now: Now) -> Option<String> {
        let peer = self.peers.get(id).filter(|peer| peer.paths.is_some())?;
        if !self.config.p2p.enabled {
            return Some("direct connections are disabled here (p2p.enabled)".to_owned());
        }
        if peer.refuses_direct {
            return Some("direct connections are disabled there".to_owned());
        }
        if let Some(problem) = &self.direct.problem {
            return Some(format!("no UDP socket: {problem}"));
        }
        let punch = peer.punch.as_ref()?;
        let next = match punch.state() {
            PunchState::Trying(attempt) if attempt > ATTEMPTS => "guessing ports for up to a minute".to_owned(),
            PunchState::Trying(attempt) => format!("attempt {attempt} of {ATTEMPTS}"),
            PunchState::Waiting(at) => {
                format!("next try in {} s", at.saturating_duration_since(now.mono).as_secs())
            }
            PunchState::Done => return Some("a direct path was found and has yet to prove itself".to_owned()),
            PunchState::Idle => {
                return Some("the direct path is lost; another is looked for with the next packet".to_owned());
            }
        };
        let symmetric = |mapping| matches!(mapping, Behaviour::AddressDependent | Behaviour::AddressAndPortDependent);
        let (ours, theirs) = (symmetric(self.nat_behaviour().0), symmetric(peer.nat.0));
        Some(match () {
            () if punch.is_too_narrow() => format!("the direct path is too narrow (MTU); {next}"),
            () if self.direct.is_blocked() => format!("UDP seems to be blocked here; {next}"),
            () if peer.is_blocked => format!("UDP seems to be blocked there; {next}"),
            () if !punch.has_candidates() => format!("no endpoints of the peer are known; {next}"),
            () if ours && theirs => format!("symmetric NAT on both sides; {next}"),
            () if ours => format!("symmetric NAT here; {next}"),
            () if theirs => format!("symmetric NAT there; {next}"),
            () if self.direct.budget.is_empty(now.mono) => format!("the probe budget is spent; {next}"),
            () if matches!(punch.state(), PunchState::Waiting(_)) => format!("punching timed out; {next}"),
            () => format!("looking for a direct path; {next}"),
        })
    }

    /// Our NAT's name, as in `edgelink status`.
    pub(crate) fn nat_name_text(&self) -> &'static str {
        match self.nat_name() {
            NatName::Unknown => "unknown",
            NatName::Open => "open",
            NatName::FullCone => "full_cone",
            NatName::RestrictedCone => "restricted_cone",
            NatName::PortRestricted => "port_restricted",
            NatName::Symmetric => "symmetric",
            NatName::UdpBlocked => "udp_blocked",
        }
    }
}

/// An endpoint as it travels.
pub(crate) fn endpoint(kind: proto::endpoint::Kind, address: SocketAddr, priority: u32) -> proto::Endpoint {
    proto::Endpoint {
        kind: kind.into(),
        ip: match address.ip() {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        },
        port: address.port().into(),
        priority,
    }
}
