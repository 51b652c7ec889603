//! What nodes say of their direct paths: NAT behaviour and endpoints for the database, P2P_STATUS for people
//! (specification §6, DESIGN §5). Nothing here decides anything: the controller only keeps and shows it.

use crate::{Control, StoreOp};
use edgelink_model::records::{EndpointRecord, NodeEndpoints};
use edgelink_model::{NodeId, Now, UnixMillis};
use edgelink_wire::control::proto;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The most peers of one node whose state is kept; a node tells of those that it talks with.
const MAX_PEERS: usize = 1024;
/// The most endpoints that are kept of one node (specification §6.2); nodes tell 16.
const MAX_ENDPOINTS: usize = 16;
/// The longest reason, in characters.
const MAX_REASON: usize = 200;
/// The names that a node may give its NAT (specification §6.1).
const NAT_NAMES: [&str; 7] =
    ["open", "full_cone", "restricted_cone", "port_restricted", "symmetric", "udp_blocked", "unknown"];

/// How one node reaches another, as it said last in P2P_STATUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectStatus {
    /// Is there a direct path?
    pub connected: bool,
    /// Where the peer is reached, when there is.
    pub endpoint: Option<SocketAddr>,
    /// Round trip over it, when known.
    pub rtt: Option<Duration>,
    /// Why there is none, in words for people; empty when there is one.
    pub reason: String,
    /// When it was said, Unix ms.
    pub at: UnixMillis,
}

/// By the node that said it, then by its peer.
#[derive(Debug, Default)]
pub(crate) struct DirectStatuses(BTreeMap<NodeId, BTreeMap<NodeId, DirectStatus>>);

impl DirectStatuses {
    /// A node has gone: what it said is not true any more.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

impl Control {
    /// What a connected node said of its paths to its peers, by peer.
    pub fn direct(&self, node: NodeId) -> impl Iterator<Item = (NodeId, &DirectStatus)> {
        self.direct.0.get(&node).into_iter().flatten().map(|(peer, status)| (*peer, status))
    }

    /// P2P_STATUS: about a peer of the same network, or about nobody.
    pub(crate) fn note_direct(&mut self, node: NodeId, message: proto::P2pStatus, now: Now) {
        let peer = NodeId(message.node_id);
        let network = |id| self.registry.nodes.get(&id).map(|record| record.network_id);
        if peer == node || network(peer).is_none() || network(peer) != network(node) {
            return;
        }
        let endpoint = message.endpoint.as_ref().and_then(address);
        let status = DirectStatus {
            connected: message.connected,
            endpoint: endpoint.filter(|_| message.connected),
            rtt: (message.connected && message.rtt_us > 0).then(|| Duration::from_micros(message.rtt_us)),
            reason: if message.connected { String::new() } else { printable(&message.reason) },
            at: now.unix_ms,
        };
        let told = self.direct.0.entry(node).or_default();
        if told.len() < MAX_PEERS || told.contains_key(&peer) {
            told.insert(peer, status);
        }
    }

    /// P2P_ENDPOINT to nobody in particular: for the record.
    pub(crate) fn note_endpoints(&mut self, node: NodeId, message: &proto::P2pEndpoint) {
        let nat_type = NAT_NAMES.into_iter().find(|name| *name == message.nat_name);
        let mut endpoints = Vec::new();
        for endpoint in message.endpoints.iter().take(MAX_ENDPOINTS) {
            let Some(address) = address(endpoint) else { continue };
            let kind = match proto::endpoint::Kind::try_from(endpoint.kind) {
                Ok(proto::endpoint::Kind::Lan) => "lan",
                Ok(proto::endpoint::Kind::Stun) => "stun",
                Ok(proto::endpoint::Kind::Upnp) => "upnp",
                Ok(proto::endpoint::Kind::Relay) => "relay",
                _ => continue,
            };
            let priority = u8::try_from(endpoint.priority).unwrap_or(u8::MAX).clamp(1, 3);
            let record = EndpointRecord { kind: kind.to_owned(), address, priority };
            if !endpoints.contains(&record) {
                endpoints.push(record);
            }
        }
        let nat_type = nat_type.map(str::to_owned);
        self.events.push_back(crate::Event::Store(StoreOp::SetEndpoints(NodeEndpoints { node, nat_type, endpoints })));
    }
}

fn address(endpoint: &proto::Endpoint) -> Option<SocketAddr> {
    let ip: IpAddr = match endpoint.ip.len() {
        4 => <[u8; 4]>::try_from(endpoint.ip.as_slice()).ok()?.into(),
        16 => <[u8; 16]>::try_from(endpoint.ip.as_slice()).ok()?.into(),
        _ => return None,
    };
    let port = u16::try_from(endpoint.port).ok().filter(|port| *port != 0)?;
    Some(SocketAddr::new(ip, port))
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
}
