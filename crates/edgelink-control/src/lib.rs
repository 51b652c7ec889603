//! The controller's brain, without I/O: who may join, what everybody must know, and who must be told of a change.
//!
//! # The loop
//!
//! A shell owns the sockets, the database and the clock. It feeds [`Control`] by `connect`, `handle_message`,
//! `disconnect`, `apply`, `handle_enrolled` and `handle_timeout`, then drains [`Control::poll_event`] until it is
//! empty, then sleeps until [`Control::poll_timeout`] at the latest.
//!
//! The database is the truth (DESIGN §4): the core never changes its records by itself. It asks for a write with
//! [`StoreOp`] and learns the result like everybody else's writes, from the tail of `change_log` ([`Control::apply`]);
//! a shell applies the tail *before* it reports the outcome of an operation.

mod channel;
mod fanout;
mod messages;
mod registry;
mod signalling;

use channel::Conn;
use edgelink_auth::token::Issuer;
use edgelink_model::records::{
    Change, ChangeId, EnrollError, EnrollRequest, NodeKeyRecord, NodeRecord, RevocationRecord, Snapshot,
};
use edgelink_model::{NetworkId, NodeId, Now};
use messages::Dirty;
use registry::{Effect, Registry};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// One control connection of a node, from accept to close; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

/// How the core is set up.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Host names and addresses under which nodes may dial this controller, lower case, without port (DESIGN §3:
    /// compared with the host that a node signs). Empty: any.
    pub hosts: BTreeSet<String>,
    /// New nodes wait for an administrator unless their auth key says otherwise.
    pub require_authorization: bool,
    /// Lifetime of auth_tokens (specification §4.1: 24 h).
    pub auth_token_lifetime: Duration,
    /// Lifetime of relay_tokens (specification §4.1: 1.5 h).
    pub relay_token_lifetime: Duration,
    /// What nodes are told.
    pub settings: NodeSettings,
}

/// Settings that nodes receive in CONFIG.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    /// Period of node-key rotation, seconds.
    pub node_key_rotate_secs: u32,
    /// NAT keepalive interval, seconds.
    pub keepalive_secs: u32,
    /// Interval of LATENCY_REPORT, seconds.
    pub latency_report_secs: u32,
    /// Path of the built-in relay on the controller's own origin, when there is one.
    pub builtin_relay_path: Option<String>,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeSet::new(),
            require_authorization: true,
            auth_token_lifetime: Duration::from_secs(24 * 3600),
            relay_token_lifetime: Duration::from_secs(90 * 60),
            settings: NodeSettings {
                node_key_rotate_secs: 24 * 3600,
                keepalive_secs: 25,
                latency_report_secs: 30,
                builtin_relay_path: Some("/ws/data".to_owned()),
            },
        }
    }
}

/// What the shell must do.
#[derive(Debug)]
pub enum Event {
    /// Send one WebSocket binary message.
    Send {
        /// To whom.
        conn: ConnId,
        /// Whole frames.
        message: bytes::Bytes,
    },
    /// Close a connection once what was sent before is flushed. The core has forgotten it already.
    Close {
        /// Which.
        conn: ConnId,
    },
    /// Do something in the database.
    Store(StoreOp),
    /// Relays must refuse this token or node from now on and close its connections.
    Revoked(RevocationRecord),
}

/// A write that the core wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreOp {
    /// Register or look up a machine; the outcome goes to [`Control::handle_enrolled`].
    Enroll {
        /// The connection that waits for the outcome.
        conn: ConnId,
        /// What it asks.
        request: EnrollRequest,
    },
    /// Keep a node's new key statement, already verified.
    SetNodeKey {
        /// Whose.
        node: NodeId,
        /// Statement, signature, sequence number.
        key: NodeKeyRecord,
    },
    /// A node came or went: `online`, `last_seen`.
    Seen {
        /// Whose.
        node: NodeId,
        /// Connected now?
        online: bool,
    },
}

/// Counters for `/metrics`; they only rise, except `connections` and `nodes_online`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Open control connections.
    pub connections: u64,
    /// Nodes that are connected and configured.
    pub nodes_online: u64,
    /// Full configurations sent.
    pub configs_sent: u64,
    /// Configuration updates sent.
    pub updates_sent: u64,
    /// Authentications that failed.
    pub auth_failures: u64,
    /// Malformed, oversized or unexpected messages.
    pub bad_messages: u64,
    /// Configurations that a node could not apply.
    pub config_errors: u64,
}

/// Which nodes are connected.
#[derive(Debug, Default)]
pub(crate) struct Presence {
    by_node: HashMap<NodeId, ConnId>,
}

impl Presence {
    pub(crate) fn is_online(&self, node: NodeId) -> bool {
        self.by_node.contains_key(&node)
    }
}

/// The controller's core. See the crate's documentation for the loop.
pub struct Control {
    config: ControlConfig,
    issuer: Issuer,
    registry: Registry,
    presence: Presence,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
    /// Per network: what changed since the last flush.
    dirty: BTreeMap<NetworkId, Dirty>,
    flush_at: Option<Instant>,
    /// Encoded full CONFIG per network, valid until something in it changes.
    cached: HashMap<NetworkId, bytes::Bytes>,
    events: VecDeque<Event>,
    stats: Stats,
}

impl Control {
    /// A core that starts from what the database holds. Nobody is online yet.
    pub fn new(config: ControlConfig, issuer: Issuer, snapshot: Snapshot) -> Self {
        Self {
            config,
            issuer,
            registry: Registry::new(snapshot),
            presence: Presence::default(),
            conns: BTreeMap::new(),
            next_conn: 1,
            dirty: BTreeMap::new(),
            flush_at: None,
            cached: HashMap::new(),
            events: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// Position in `change_log` up to which changes have been applied.
    pub fn version(&self) -> ChangeId {
        self.registry.version()
    }

    /// Whether the node is connected and configured.
    pub fn is_online(&self, node: NodeId) -> bool {
        self.presence.is_online(node)
    }

    /// The nodes that are connected and configured, in no particular order.
    pub fn online(&self) -> impl Iterator<Item = NodeId> {
        self.presence.by_node.keys().copied()
    }

    /// Revocations that are in force, for relays that register.
    pub fn revocations(&self) -> impl Iterator<Item = &RevocationRecord> {
        self.registry.revocations.values()
    }

    /// What relays need to verify tokens: algorithm, key, RELAY_AUTH_KEY's public half.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats { connections: self.conns.len() as u64, nodes_online: self.presence.by_node.len() as u64, ..self.stats }
    }

    /// Takes over committed changes that lead to the position `version`, each with its id and the record as it is now.
    pub fn apply(
        &mut self,
        version: ChangeId,
        changes: Vec<(ChangeId, Change)>,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) {
        self.registry.advance(version);
        for (id, change) in changes {
            for effect in self.registry.apply(id, change) {
                self.react(effect, now, rng);
            }
        }
    }

    /// Replaces everything known: the position in `change_log` was pruned, or the database came back.
    pub fn resync(&mut self, snapshot: Snapshot, now: Now, rng: &mut impl rand_core::Rng) {
        let version = snapshot.version;
        let changes = self.registry.difference(snapshot);
        self.apply(version, changes.into_iter().map(|change| (version, change)).collect(), now, rng);
    }

    /// What to do next; call until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.conns.values().map(Conn::deadline).chain(self.flush_at).min()
    }

    /// Sends what was coalesced, refreshes tokens, closes connections that took too long.
    pub fn handle_timeout(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        self.registry.expire_revocations(now.unix_secs());
        // Tokens before the relays that they are for.
        self.expire_connections(now, rng);
        if self.flush_at.is_some_and(|at| at <= now.mono) {
            self.flush();
        }
    }

    fn react(&mut self, effect: Effect, now: Now, rng: &mut impl rand_core::Rng) {
        match effect {
            Effect::Peer(network, node) => self.mark(network, now, |d| {
                d.peers.insert(node);
            }),
            Effect::Network(network) => self.mark(network, now, |d| d.network = true),
            Effect::Routes(network) => self.mark(network, now, |d| d.routes = true),
            Effect::Servers => {
                for network in self.registry.networks.keys().copied().collect::<Vec<_>>() {
                    self.mark(network, now, |d| d.servers = true);
                }
                self.renew_all_tokens(now);
            }
            Effect::Identity(node) => self.send_identity(node),
            Effect::Admitted(node) => self.admit(node, now, rng),
            Effect::Expelled(node, deleted) => self.expel(node, deleted, now),
            Effect::Revoked(record) => self.revoked(record, now),
        }
    }
}

/// The outcome of [`StoreOp::Enroll`].
pub type Enrolled = Result<NodeRecord, EnrollError>;
