//! The other nodes of the network, as CONFIG names them.

use crate::announce::Announce;
use crate::control::{ip, printable};
use crate::neighbours::Neighbour;
use crate::timers::Timer;
use crate::{Drop, Node};
use edgelink_auth::{MachinePublic, SignedStatement};
use edgelink_model::{NodeId, Now};
use edgelink_path::{Advice, Arrivals, Behaviour, PeerPaths, Punch};
use edgelink_wire::control::proto;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// LATENCY_REPORT lists the peers with data in this time (DESIGN §1).
const TALKING: Duration = Duration::from_secs(60);
/// A peer that asks for our endpoints is answered at most this often.
const ANSWER_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Peers {
    by_id: BTreeMap<NodeId, Peer>,
    /// Overlay addresses of peers; never iterated.
    by_address: HashMap<IpAddr, NodeId>,
}

pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) online: bool,
    /// The statement in use, so that an unchanged one is not verified again.
    statement: Option<Vec<u8>>,
    /// Why what the controller says of this peer is not believed.
    pub(crate) refused: Option<String>,
    /// The relay's last word on why frames did not arrive.
    pub(crate) undeliverable: Option<String>,
    pub(crate) announce: Announce,
    /// The first and the last of its frames that no key of ours opens, since one was opened.
    pub(crate) unopened: Option<(Instant, Instant)>,
    pub(crate) last_rx: Option<Instant>,
    pub(crate) last_tx: Option<Instant>,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_bytes: u64,
    /// When data last went either way.
    pub(crate) last_data: Option<Instant>,
    /// The controller's best path.
    pub(crate) advice: Option<Advice>,
    /// Made by the first packet, and kept: without traffic it costs memory (at most 4 KiB) and nothing else.
    pub(crate) paths: Option<Box<PeerPaths>>,
    pub(crate) arrivals: Arrivals,
    /// The search for a direct path, while there is one.
    pub(crate) punch: Option<Box<Punch>>,
    /// As one that can be reached in a local network.
    pub(crate) neighbour: Neighbour,
    /// It wants no direct paths.
    pub(crate) refuses_direct: bool,
    /// No UDP gets through to it.
    pub(crate) is_blocked: bool,
    /// Mapping and filtering of its NAT, as it says.
    pub(crate) nat: (Behaviour, Behaviour),
    /// Where STUN servers see it.
    pub(crate) mapped: Vec<SocketAddr>,
    /// It waits for our endpoints in this attempt of its own; 0: it does not.
    pub(crate) asked_for: u32,
    /// When it was last told our endpoints because it asked.
    answered_at: Option<Instant>,
}

impl Peers {
    pub(crate) fn get(&self, id: NodeId) -> Option<&Peer> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: NodeId) -> Option<&mut Peer> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn by_address(&self, address: IpAddr) -> Option<NodeId> {
        self.by_address.get(&address).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &Peer)> {
        self.by_id.iter().map(|(id, peer)| (*id, peer))
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn note_undeliverable(&mut self, id: NodeId, why: &str) {
        if let Some(peer) = self.by_id.get_mut(&id) {
            peer.undeliverable = Some(why.to_owned());
        }
    }

    fn remove(&mut self, id: NodeId) {
        if let Some(peer) = self.by_id.remove(&id) {
            self.by_address.retain(|_, owner| *owner != id);
            drop(peer);
        }
    }

    fn set_addresses(&mut self, id: NodeId, addresses: Vec<IpAddr>) {
        let Some(peer) = self.by_id.get_mut(&id) else { return };
        if peer.addresses == addresses {
            return;
        }
        for old in std::mem::take(&mut peer.addresses) {
            if self.by_address.get(&old) == Some(&id) {
                self.by_address.remove(&old);
            }
        }
        for address in &addresses {
            self.by_address.insert(*address, id);
        }
        peer.addresses = addresses;
    }
}

impl Node {
    /// Takes over the full list of peers: who is not in it is gone.
    pub(crate) fn set_peers(&mut self, peers: &[proto::Peer], now: Now) {
        let listed: std::collections::BTreeSet<NodeId> = peers.iter().map(|p| NodeId(p.node_id)).collect();
        let gone: Vec<NodeId> = self.peers.by_id.keys().filter(|id| !listed.contains(id)).copied().collect();
        for id in gone {
            self.remove_peer(id);
        }
        for peer in peers {
            self.learn_peer(peer, now);
        }
    }

    /// Takes over what the controller says of one peer, as far as it agrees with what we have pinned (DESIGN §2).
    pub(crate) fn learn_peer(&mut self, message: &proto::Peer, now: Now) {
        let id = NodeId(message.node_id);
        let Some((me, network)) = self.identity.as_ref().map(|i| (i.node, i.network)) else { return };
        if id == me {
            return;
        }
        let Ok(machine) = <[u8; 32]>::try_from(message.machine_pub.as_slice()).map(MachinePublic) else {
            return self.drops.count(Drop::Malformed);
        };
        let addresses: Vec<IpAddr> = message.addresses.iter().filter_map(|b| ip(b)).collect();
        let name = printable(&message.name);
        if self.peers.get(id).is_none_or(|known| known.online != message.online) {
            self.gateway_presence(id, message.online, now);
        }
        let believed = self.pins.check_config(network, id, &machine, &addresses);
        let peer = self.peers.by_id.entry(id).or_insert_with(|| Peer::new(name.clone()));
        peer.online = message.online;
        peer.name = name;
        if let Err(refusal) = believed {
            let text = refusal.to_string();
            if peer.refused.as_ref() != Some(&text) {
                tracing::warn!(peer = peer.name, reason = text, "what the controller says of a peer is not believed");
            }
            peer.refused = Some(text);
            // What was believed before goes on: after a restart the peer's own announces need somewhere to arrive.
            if peer.addresses.is_empty()
                && let Some(pinned) = self.pins.pin(network, id)
            {
                self.peers.set_addresses(id, pinned.addresses.clone());
            }
            return;
        }
        peer.refused = None;
        self.peers.set_addresses(id, addresses);
        if !message.statement.is_empty() && !self.knows_statement(id, &message.statement) {
            match SignedStatement::verify(&message.statement, &message.signature) {
                // The controller lists members only, so what it lists is not revoked, whenever the statement was made.
                Ok(statement) if statement.statement().machine_pub == machine => {
                    self.adopt_statement(id, &statement, now)
                }
                _ => self.refuse_statement(id, "the controller's copy of its key statement does not verify"),
            }
        }
    }

    /// Uses a peer's verified statement from now on. A new one is answered, so that the peer learns that we have it
    /// and which is ours.
    pub(crate) fn adopt_statement(&mut self, id: NodeId, statement: &SignedStatement, now: Now) {
        use edgelink_session::PeerChange;
        if statement.statement().node_id != id {
            return self.refuse_statement(id, "its key statement names another node");
        }
        let Some(sessions) = &mut self.sessions else { return };
        match sessions.set_peer(statement, now.mono) {
            Ok(change) => {
                let Some(peer) = self.peers.get_mut(id) else { return };
                peer.statement = Some(statement.bytes().to_vec());
                if change == PeerChange::Rotated {
                    tracing::debug!(peer = %id, "the peer has a new node key");
                    self.greet(id, now);
                }
            }
            Err(error) => self.refuse_statement(id, &error.to_string()),
        }
    }

    /// A person believes what was refused of a peer (DESIGN §2): its new machine key or address is pinned from now on.
    /// `false` when nothing is refused, or the key is not in the list of `trust`.
    pub fn accept_peer(&mut self, id: NodeId, now: Now) -> bool {
        let Some(network) = self.identity.as_ref().map(|i| i.network) else { return false };
        if !self.pins.accept(network, id) {
            return false;
        }
        if let Some(message) = self.latest.peers.iter().find(|p| p.node_id == id.0).cloned() {
            self.learn_peer(&message, now);
        }
        self.persist();
        true
    }

    pub(crate) fn remove_peer(&mut self, id: NodeId) {
        self.peers.remove(id);
        for timer in [Timer::Announce(id), Timer::Path(id), Timer::Window(id), Timer::Punch(id), Timer::Tell(id)] {
            self.timers.clear(timer);
        }
        self.timers.clear(Timer::Neighbour(id));
        self.forget_streams(id);
        self.close_idle_sockets(id);
        if let Some(sessions) = &mut self.sessions {
            sessions.remove_peer(id);
        }
    }

    /// A node was revoked: sessions with it end at once, direct paths included (DESIGN §3).
    pub(crate) fn apply_revocations(&mut self, revocations: &[proto::Revocation], now: Now) {
        for revocation in revocations.iter().filter(|r| r.node_id != 0) {
            let id = NodeId(revocation.node_id);
            let Some(peer) = self.peers.get_mut(id) else { continue };
            peer.statement = None;
            if let Some(sessions) = &mut self.sessions {
                sessions.wipe_peer(id);
            }
            self.drop_direct(id, now);
        }
    }

    pub(crate) fn knows_statement(&self, id: NodeId, statement: &[u8]) -> bool {
        self.peers.get(id).and_then(|p| p.statement.as_deref()) == Some(statement)
    }

    pub(crate) fn refuse_statement(&mut self, id: NodeId, why: &str) {
        self.drops.count(Drop::RefusedStatement);
        tracing::debug!(peer = %id, why, "key statement refused");
    }

    pub(crate) fn is_revoked(&self, id: NodeId, not_before: u64) -> bool {
        self.latest.revocations.iter().any(|r| r.node_id == id.0 && not_before < r.issued_before)
    }
}

impl Peer {
    fn new(name: String) -> Self {
        Self {
            name,
            addresses: Vec::new(),
            online: false,
            statement: None,
            refused: None,
            undeliverable: None,
            unopened: None,
            announce: Announce::default(),
            last_rx: None,
            last_tx: None,
            rx_bytes: 0,
            tx_bytes: 0,
            last_data: None,
            advice: None,
            paths: None,
            arrivals: Arrivals::default(),
            punch: None,
            neighbour: Neighbour::default(),
            refuses_direct: false,
            is_blocked: false,
            nat: (Behaviour::Unknown, Behaviour::Unknown),
            mapped: Vec::new(),
            asked_for: 0,
            answered_at: None,
        }
    }

    /// Data went either way. Returns `true` when it is the first in a while.
    pub(crate) fn note_data(&mut self, now: Instant) -> bool {
        let was_active = self.has_data(now);
        self.last_data = Some(now);
        !was_active
    }

    /// Whether it may be told our endpoints again: it may ask twice, over two channels.
    pub(crate) fn may_answer(&mut self, now: Instant) -> bool {
        let due = self.answered_at.is_none_or(|at| now.saturating_duration_since(at) >= ANSWER_INTERVAL);
        if due {
            self.answered_at = Some(now);
        }
        due
    }

    /// Whether data went either way within [`TALKING`].
    pub(crate) fn has_data(&self, now: Instant) -> bool {
        self.last_data.is_some_and(|at| now.saturating_duration_since(at) < TALKING)
    }
}
