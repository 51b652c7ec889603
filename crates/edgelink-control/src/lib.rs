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
mod connections;
mod direct;
mod fanout;
pub mod latency;
mod locations;
mod messages;
mod paths;
mod registry;
mod routes;
mod server_messages;
mod servers;
mod signalling;
mod timers;
mod tokens;

use connections::Connections;
pub use direct::DirectStatus;
use edgelink_auth::token::Issuer;
use edgelink_model::records::{
    AnnouncedRoute, Change, ChangeId, EnrollError, EnrollRequest, NodeEndpoints, NodeKeyRecord, NodeRecord,
    RevocationRecord, RevocationTarget, ServerRecord, Snapshot,
};
use edgelink_model::{NetworkId, NodeId, Now, ServerId};
use latency::{BestPath, LatencyMatrix};
use locations::Locations;
use messages::Dirty;
use paths::Paths;
use registry::{Effect, Registry};
use routes::DeadRoutes;
use servers::Servers;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};
use timers::Timers;

/// One control connection of a node or relay, from accept to close; never reused.
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
    /// Routes that nodes announce wait for an administrator unless their network or auth key approves them.
    pub require_route_approval: bool,
    /// Lifetime of auth_tokens (specification §4.1: 24 h).
    pub auth_token_lifetime: Duration,
    /// Lifetime of relay_tokens (specification §4.1: 1.5 h).
    pub relay_token_lifetime: Duration,
    /// Lifetime of mesh tokens, which are renewed when a quarter of it is left.
    pub mesh_token_lifetime: Duration,
    /// Lifetime of server_tokens (specification §4.1: 1 year).
    pub server_token_lifetime: Duration,
    /// Path of the built-in relay's mesh channel on the controller's own origin, when others may dial it there.
    pub builtin_mesh_path: Option<String>,
    /// What nodes are told.
    pub settings: NodeSettings,
}

/// Settings that nodes receive in CONFIG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// Period of node-key rotation, seconds.
    pub node_key_rotate_secs: u32,
    /// NAT keepalive interval, seconds.
    pub keepalive_secs: u32,
    /// Interval of LATENCY_REPORT, seconds.
    pub latency_report_secs: u32,
    /// Path of the built-in relay on the controller's own origin, when there is one.
    pub builtin_relay_path: Option<String>,
    /// Origins (`wss://HOST[:PORT]`) of all controllers of this database, for nodes and relays.
    pub controllers: Vec<String>,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeSet::new(),
            require_authorization: true,
            require_route_approval: true,
            auth_token_lifetime: Duration::from_secs(24 * 3600),
            relay_token_lifetime: Duration::from_secs(90 * 60),
            mesh_token_lifetime: Duration::from_secs(3600),
            server_token_lifetime: Duration::from_secs(365 * 24 * 3600),
            builtin_mesh_path: Some("/ws/mesh".to_owned()),
            settings: NodeSettings {
                node_key_rotate_secs: 24 * 3600,
                keepalive_secs: 25,
                latency_report_secs: 30,
                builtin_relay_path: Some("/ws/data".to_owned()),
                controllers: Vec::new(),
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
    /// A relay or STUN server came or went: `last_heartbeat`.
    ServerSeen {
        /// Whose.
        server: ServerId,
        /// Connected now?
        online: bool,
    },
    /// A node announces its routes; the database decides which of them wait for approval.
    AnnounceRoutes {
        /// Whose.
        node: NodeId,
        /// All of them.
        routes: Vec<AnnouncedRoute>,
        /// New ones need no administrator (`security.require_route_approval: false`).
        approve: bool,
    },
    /// What a node says of its NAT and endpoints, for people; nodes get nothing of it from there. The newest of a node
    /// counts, so they may be gathered.
    SetEndpoints(NodeEndpoints),
    /// A server registered with another URL, STUN address or set of functions than its record says.
    UpdateServer(ServerRecord),
}

/// Counters for `/metrics`; they only rise, except `connections`, `nodes_online` and `servers_online`.
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
    /// Configurations that a node or relay could not apply.
    pub config_errors: u64,
    /// Relays and STUN servers that are connected.
    pub servers_online: u64,
    /// Messages with best paths sent to nodes.
    pub path_updates: u64,
    /// Entries of nodes encoded in configurations and updates: what changes cost, however many nodes are told.
    pub peers_encoded: u64,
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

    pub(crate) fn conn(&self, node: NodeId) -> Option<ConnId> {
        self.by_node.get(&node).copied()
    }
}

/// The controller's core. See the crate's documentation for the loop.
pub struct Control {
    config: ControlConfig,
    issuer: Issuer,
    registry: Registry,
    presence: Presence,
    conns: Connections,
    next_conn: u64,
    timers: Timers,
    servers: Servers,
    locations: Locations,
    latency: LatencyMatrix,
    direct: direct::DirectStatuses,
    paths: Paths,
    /// Subnets that their gateway says are dead on its side. Hot state, never written.
    dead_routes: DeadRoutes,
    /// Per network: what changed since the last flush.
    dirty: BTreeMap<NetworkId, Dirty>,
    flush_at: Option<Instant>,
    /// Encoded full CONFIG per network with what was sent since.
    cached: HashMap<NetworkId, fanout::Cached>,
    /// Before this a network that has just been told something is not told more.
    paced: HashMap<NetworkId, Instant>,
    /// Revoked by the changes that are being applied; connections end when they are all known.
    revoked: Vec<RevocationTarget>,
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
            conns: Connections::default(),
            next_conn: 1,
            timers: Timers::default(),
            servers: Servers::default(),
            locations: Locations::default(),
            latency: LatencyMatrix::default(),
            direct: direct::DirectStatuses::default(),
            paths: Paths::default(),
            dead_routes: DeadRoutes::default(),
            dirty: BTreeMap::new(),
            flush_at: None,
            cached: HashMap::new(),
            paced: HashMap::new(),
            revoked: Vec::new(),
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
        Stats {
            connections: self.conns.len() as u64,
            nodes_online: self.presence.by_node.len() as u64,
            servers_online: self.servers_online().count() as u64,
            ..self.stats
        }
    }

    /// Round-trip times as they are known now.
    pub fn latency_matrix(&self) -> &LatencyMatrix {
        &self.latency
    }

    /// The network that a node belongs to, authorized or not.
    pub fn network_of(&self, node: NodeId) -> Option<NetworkId> {
        self.registry.nodes.get(&node).map(|record| record.network_id)
    }

    /// The path of every pair that talks: lower id, higher id, and the path as the lower sees it.
    pub fn best_paths(&self) -> impl Iterator<Item = (NodeId, NodeId, BestPath)> + '_ {
        self.paths.iter()
    }

    /// Where every connected node is: the relays at which it can be reached, by id.
    pub fn locations(&self) -> impl Iterator<Item = (NodeId, Vec<ServerId>)> + '_ {
        self.locations.nodes().map(|node| (node, self.located(node))).filter(|(_, relays)| !relays.is_empty())
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
            if let Change::NetworkDeleted(network) = &change {
                // Another may get its id.
                self.cached.remove(network);
                self.paced.remove(network);
            }
            for effect in self.registry.apply(id, change) {
                self.react(effect, now, rng);
            }
        }
        self.end_revoked(now);
    }

    /// Goes on with another configuration: nodes are told what is theirs to know, and get tokens of the new lifetimes.
    pub fn reconfigure(&mut self, config: ControlConfig, now: Now) {
        let old = std::mem::replace(&mut self.config, config);
        let lifetimes = |config: &ControlConfig| (config.auth_token_lifetime, config.relay_token_lifetime);
        if lifetimes(&old) != lifetimes(&self.config) {
            self.renew_all_tokens(true, now);
        }
        if old.settings != self.config.settings {
            for network in self.registry.networks.keys().copied().collect::<Vec<_>>() {
                self.mark(network, now, |d| d.settings = true);
            }
            if old.settings.controllers != self.config.settings.controllers {
                self.tell_servers_of_controllers();
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

    /// When [`Self::handle_timeout`] wants to be called; may be early, never late.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.timers.next(), self.flush_at, self.servers.flush_at, self.paths.next()].into_iter().flatten().min()
    }

    /// Sends what was coalesced, refreshes tokens, closes connections that took too long.
    pub fn handle_timeout(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        self.registry.expire_revocations(now.unix_secs());
        // Tokens before the relays that they are for.
        self.expire_connections(now, rng);
        if self.flush_at.is_some_and(|at| at <= now.mono) {
            self.flush(now);
        }
        self.servers_due(now, rng);
        self.paths_due(now);
    }

    fn react(&mut self, effect: Effect, now: Now, rng: &mut impl rand_core::Rng) {
        match effect {
            Effect::Peer(network, node) => self.mark(network, now, |d| {
                d.peers.insert(node);
            }),
            Effect::Network(network) => self.mark(network, now, |d| d.network = true),
            Effect::Routes(network) => self.mark(network, now, |d| d.routes = true),
            Effect::Servers => {
                self.servers_changed(now);
                for network in self.registry.networks.keys().copied().collect::<Vec<_>>() {
                    self.mark(network, now, |d| d.servers = true);
                }
                self.renew_all_tokens(false, now);
            }
            Effect::Identity(node) => self.send_identity(node),
            Effect::Admitted(node) => {
                self.admit(node, now, rng);
                self.node_barred(node, false, now);
            }
            Effect::Expelled(node, deleted) => {
                self.expel(node, deleted, now);
                if deleted {
                    self.dead_routes.forget(node);
                }
                self.node_barred(node, deleted, now);
            }
            Effect::Revoked(record) => self.revoked(record, now),
        }
    }
}

/// The outcome of [`StoreOp::Enroll`].
pub type Enrolled = Result<NodeRecord, EnrollError>;
