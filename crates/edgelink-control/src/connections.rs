//! Nodes' control connections, found by node and by network without looking at the others.

use crate::ConnId;
use crate::signalling::Signalling;
use crate::timers::Timers;
use crate::tokens::Held;
use edgelink_auth::MachinePublic;
use edgelink_model::records::{ChangeId, HostInfo};
use edgelink_model::{NetworkId, NodeId, Now};
use edgelink_wire::control::Reassembler;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Time from accept to the proof of the machine key (DESIGN §6).
pub(crate) const AUTH_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes send a PING at least every 25 s (DESIGN §9); three missed ones mean the connection is gone.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Time from the admission to the first valid KEY_ANNOUNCE: generous, since a crowd that joins keeps the controller busy.
pub(crate) const KEY_TIMEOUT: Duration = Duration::from_secs(60);
/// Until a node is authenticated its messages are small, in pieces as well (DESIGN §6).
pub(crate) const UNAUTHENTICATED_LIMIT: usize = 4096;

/// One node's connection.
pub(crate) struct Conn {
    state: State,
    pub(crate) reassembler: Reassembler,
    id: ConnId,
    /// The next moment at which the connection needs attention, and the earliest timer that is set for it.
    pub(crate) deadline: Instant,
    pub(crate) armed: Option<Instant>,
    pub(crate) last_received: Instant,
    pub(crate) signalling: Signalling,
}

pub(crate) enum State {
    /// Waits for the first AUTH_REQUEST.
    Hello,
    /// Waits for the signature.
    Challenged { machine: MachinePublic, challenge: [u8; 32], host: HostInfo },
    /// Waits for the database.
    Enrolling { machine: MachinePublic },
    /// Authenticated, waits for an administrator.
    Pending { node: NodeId },
    /// A member of its network.
    Ready(Ready),
}

pub(crate) struct Ready {
    pub(crate) node: NodeId,
    pub(crate) network: NetworkId,
    /// Until when it must have announced a key; `None` once it has.
    pub(crate) key_due: Option<Instant>,
    /// Version that the node was sent last; `None` before its first CONFIG.
    pub(crate) sent_version: Option<ChangeId>,
    pub(crate) tokens: Held,
    pub(crate) last_resend: Option<Instant>,
}

impl Conn {
    pub(crate) fn new(id: ConnId, now: Now) -> Self {
        Self {
            state: State::Hello,
            reassembler: Reassembler::with_limit(UNAUTHENTICATED_LIMIT),
            id,
            deadline: now.mono + AUTH_TIMEOUT,
            armed: None,
            last_received: now.mono,
            signalling: Signalling::default(),
        }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn ready(&self) -> Option<&Ready> {
        match &self.state {
            State::Ready(ready) => Some(ready),
            _ => None,
        }
    }

    pub(crate) fn ready_mut(&mut self) -> Option<&mut Ready> {
        match &mut self.state {
            State::Ready(ready) => Some(ready),
            _ => None,
        }
    }

    pub(crate) fn network(&self) -> Option<NetworkId> {
        self.ready().map(|ready| ready.network)
    }

    pub(crate) fn sent_version(&self) -> Option<ChangeId> {
        self.ready()?.sent_version
    }

    pub(crate) fn node(&self) -> Option<NodeId> {
        match &self.state {
            State::Pending { node } => Some(*node),
            State::Ready(ready) => Some(ready.node),
            _ => None,
        }
    }

    pub(crate) fn authenticated(&self) -> bool {
        matches!(self.state, State::Pending { .. } | State::Ready(_))
    }

    /// Sets the next moment of attention from the state.
    pub(crate) fn schedule(&mut self, timers: &mut Timers) {
        let idle = self.last_received + IDLE_TIMEOUT;
        self.deadline = match &self.state {
            State::Hello | State::Challenged { .. } => self.deadline,
            State::Enrolling { .. } | State::Pending { .. } => idle,
            State::Ready(ready) => [ready.tokens.due(), ready.key_due].into_iter().flatten().fold(idle, Instant::min),
        };
        timers.set(self.id, self.deadline, &mut self.armed);
    }
}

/// All of them.
#[derive(Default)]
pub(crate) struct Connections {
    all: HashMap<ConnId, Conn>,
    /// Those that wait or are members.
    by_node: HashMap<NodeId, BTreeSet<ConnId>>,
    /// Those of members.
    by_network: HashMap<NetworkId, BTreeSet<ConnId>>,
}

impl Connections {
    pub(crate) fn insert(&mut self, id: ConnId, conn: Conn) {
        self.all.insert(id, conn);
    }

    pub(crate) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.all.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.all.get_mut(&id)
    }

    pub(crate) fn contains(&self, id: ConnId) -> bool {
        self.all.contains_key(&id)
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Those of members, in no order.
    pub(crate) fn ready(&self) -> impl Iterator<Item = (ConnId, &Ready)> {
        self.all.iter().filter_map(|(id, conn)| Some((*id, conn.ready()?)))
    }

    /// Those of members, in no order; what they are is not to be changed.
    pub(crate) fn ready_mut(&mut self) -> impl Iterator<Item = &mut Conn> {
        self.all.values_mut().filter(|conn| conn.ready().is_some())
    }

    /// Those of a node, whether it waits or is a member, oldest first.
    pub(crate) fn of_node(&self, node: NodeId) -> Vec<ConnId> {
        self.by_node.get(&node).into_iter().flatten().copied().collect()
    }

    /// Those of a network's members, oldest first.
    pub(crate) fn of_network(&self, network: NetworkId) -> Vec<ConnId> {
        self.by_network.get(&network).into_iter().flatten().copied().collect()
    }

    /// Changes what a connection is. `None` when there is no such connection.
    pub(crate) fn set_state(&mut self, id: ConnId, state: State) -> Option<&mut Conn> {
        self.unlist(id);
        let conn = self.all.get_mut(&id)?;
        conn.state = state;
        if let Some(node) = conn.node() {
            self.by_node.entry(node).or_default().insert(id);
        }
        if let Some(network) = conn.network() {
            self.by_network.entry(network).or_default().insert(id);
        }
        Some(conn)
    }

    pub(crate) fn remove(&mut self, id: ConnId) {
        self.unlist(id);
        self.all.remove(&id);
    }

    fn unlist(&mut self, id: ConnId) {
        let Some(conn) = self.all.get(&id) else { return };
        if let Some(node) = conn.node()
            && let Some(conns) = self.by_node.get_mut(&node)
        {
            conns.remove(&id);
            if conns.is_empty() {
                self.by_node.remove(&node);
            }
        }
        if let Some(network) = conn.network()
            && let Some(conns) = self.by_network.get_mut(&network)
        {
            conns.remove(&id);
            if conns.is_empty() {
                self.by_network.remove(&network);
            }
        }
    }
}
