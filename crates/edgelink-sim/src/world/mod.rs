//! The simulated network: processes on one virtual clock, the connections between them, and what befalls both.

mod controller;
mod malice;
mod node;
mod relay;
mod udp;

pub use malice::{HostileNode, HostileRelay};
pub use udp::Site;

use crate::database::Database;
use crate::packet::{Probe, udp_packet};
use crate::streams::{Arrival, End, Line, Party, Popped, StreamId, Streams};
use crate::watch::Watch;
use bytes::Bytes;
use controller::Controller;
use edgelink_auth::MachineKey;
use edgelink_auth::token::TokenKeys;
use edgelink_control as control;
use edgelink_model::{NetworkId, NodeId, Now, ServerId};
use edgelink_node::{self as edge, LinkId, Node, PingId};
use edgelink_relay::Relay;
use node::Host;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Host name that simulated nodes dial.
pub(crate) const CONTROLLER: &str = "controller.sim";
/// More turns than this without time passing is a loop between cores.
const MAX_TURNS: u32 = 100_000;

/// How a world begins.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// Seed of all randomness.
    pub seed: u64,
    /// One-way delay of every connection, unless [`World::set_line`] says otherwise.
    pub delay: Duration,
    /// Unix time of the controller at the beginning, ms.
    pub unix_ms: u64,
    /// Period of node-key rotation, seconds.
    pub rotate_secs: u32,
    /// Keep every message that a relay is handed ([`World::relayed`]).
    pub capture: bool,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            delay: Duration::from_millis(10),
            unix_ms: 1_700_000_000_000,
            rotate_secs: 24 * 3600,
            capture: true,
        }
    }
}

/// Number of a node in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeIndex(pub(crate) usize);

/// Number of a relay in the order of creation; the controller's own comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RelayIndex(pub(crate) usize);

impl NodeIndex {
    /// The node as a process.
    pub fn party(self) -> Party {
        Party::Node(self.0)
    }
}

impl RelayIndex {
    /// The controller's own.
    pub const BUILTIN: Self = Self(0);

    /// The relay as a process.
    pub fn party(self) -> Party {
        Party::Relay(self.0)
    }
}

/// A packet that came out of a TUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Where.
    pub node: NodeIndex,
    /// When, since the beginning.
    pub at: Duration,
    /// The IP packet.
    pub packet: Vec<u8>,
}

/// The simulated network. See the crate's documentation.
pub struct World {
    config: WorldConfig,
    start: Instant,
    now: Instant,
    rng: ChaCha20Rng,
    /// The tables; change them as an administrator would.
    pub database: Database,
    token_keys: TokenKeys,
    controller: Option<Controller>,
    relays: Vec<relay::Host>,
    nodes: Vec<Host>,
    streams: Streams,
    net: crate::net::Internet,
    owners: udp::Owners,
    ends: BTreeMap<StreamId, Ends>,
    /// Processes that may have something to say.
    touched: BTreeSet<Party>,
    delivered: Vec<Delivered>,
    pongs: Vec<(NodeIndex, PingId, Duration)>,
    watch: Watch,
    relayed: Vec<Bytes>,
    next_probe: u64,
    impostor: Option<malice::Impostor>,
    /// What hostile nodes have read of their controller's messages.
    rewriters: BTreeMap<StreamId, edgelink_wire::control::Reassembler>,
}

/// What a stream is to the processes at its ends. The halves are forgotten one by one.
#[derive(Clone, Copy)]
struct Ends {
    client: Option<Client>,
    server: Option<Server>,
}

#[derive(Clone, Copy)]
enum Client {
    /// A node's connection to the controller or a relay.
    Node(usize, LinkId),
    /// A relay's connection to the controller.
    Uplink(usize),
    /// A relay's connection to another one.
    Mesh(usize, relay::MeshEnd),
}

#[derive(Clone, Copy)]
enum Server {
    Control(controller::Endpoint, Option<control::ConnId>),
    Relay(usize, relay::Endpoint, Option<relay::ConnId>),
}

impl World {
    /// A controller with a built-in relay and no nodes.
    #[expect(
        clippy::disallowed_methods,
        reason = "any instant serves as the origin of virtual time; only differences are used"
    )]
    pub fn new(config: WorldConfig) -> Self {
        let start = Instant::now();
        let mut rng = ChaCha20Rng::seed_from_u64(config.seed);
        let mut database = Database::new();
        database.add_auth_key(&auth_key(NetworkId(1)), NetworkId(1));
        let token_keys = TokenKeys::generate(&mut rng);
        let mut this = Self {
            start,
            now: start,
            rng,
            database,
            token_keys,
            controller: None,
            relays: Vec::new(),
            nodes: Vec::new(),
            streams: Streams::new(Line::of(config.delay)),
            net: crate::net::Internet::new(),
            owners: udp::Owners::default(),
            ends: BTreeMap::new(),
            touched: BTreeSet::new(),
            delivered: Vec::new(),
            pongs: Vec::new(),
            watch: Watch::default(),
            relayed: Vec::new(),
            next_probe: 0,
            impostor: None,
            rewriters: BTreeMap::new(),
            config,
        };
        let own = this.fork();
        this.relays.push(relay::Host::new(ServerId(1), own));
        this.start_server();
        this
    }

    // ---- time ----

    /// Time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// Lets `by` pass.
    pub fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        let mut turns = 0;
        loop {
            self.drain();
            let Some(at) = self.next_due().filter(|at| *at <= end) else { break };
            turns = if at > self.now { 0 } else { turns + 1 };
            assert!(turns < MAX_TURNS, "the cores keep each other busy without time passing at {:?}", self.elapsed());
            self.now = self.now.max(at);
            crate::trap::set_time(self.now - self.start);
            if !self.deliver_one() {
                self.handle_timeouts();
            }
        }
        self.now = end;
    }

    /// Advances until `done`, for at most `limit`; returns how long it took.
    pub fn advance_until(&mut self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let begin = self.now;
        while !done(self) {
            if self.now - begin >= limit {
                return None;
            }
            self.advance(Duration::from_millis(1));
        }
        Some(self.now - begin)
    }

    // ---- packets ----

    /// Puts an IP packet into a node's TUN.
    pub fn send_packet(&mut self, from: NodeIndex, packet: &[u8]) {
        let now = self.node_now(from.0);
        let mut frame = vec![0; edgelink_wire::virtio::LEN];
        frame.extend_from_slice(packet);
        if let Some(node) = self.awake_mut(from.0) {
            node.handle_tun(&mut frame, now);
            self.touched.insert(from.party());
        }
    }

    /// Sends `payload` from one node to another in a UDP packet between their overlay addresses.
    pub fn send_probe(&mut self, from: NodeIndex, to: NodeIndex, payload: &[u8]) {
        if let (Some(src), Some(dst)) = (self.address(from), self.address(to)) {
            self.send_packet(from, &udp_packet(src, dst, payload));
        }
    }

    /// Sends a numbered probe of `len` bytes; `None` when either end has no address.
    pub fn send_numbered(&mut self, from: NodeIndex, to: NodeIndex, len: usize) -> Option<Probe> {
        let (src, dst) = (self.address(from)?, self.address(to)?);
        self.next_probe += 1;
        let probe = Probe { id: self.next_probe, from: from.0 as u32, to: to.0 as u32 };
        self.send_packet(from, &udp_packet(src, dst, &probe.encode(len)));
        Some(probe)
    }

    /// A hostile node sends a numbered probe from another node's address.
    pub fn send_spoofed(&mut self, from: NodeIndex, victim: NodeIndex, to: NodeIndex, len: usize) -> Option<Probe> {
        let (src, dst) = (self.address(victim)?, self.address(to)?);
        self.next_probe += 1;
        let probe = Probe { id: self.next_probe, from: from.0 as u32, to: to.0 as u32 };
        self.send_packet(from, &udp_packet(src, dst, &probe.encode(len)));
        Some(probe)
    }

    /// An overlay ping; the outcome appears in [`Self::pongs`].
    ///
    /// # Errors
    /// As [`Node::ping`].
    pub fn ping(&mut self, from: NodeIndex, to: NodeIndex) -> Result<PingId, edge::PingError> {
        let now = self.node_now(from.0);
        let peer = self.node_id(to).unwrap_or(NodeId(0));
        self.touched.insert(from.party());
        match self.awake_mut(from.0) {
            Some(node) => node.ping(peer, Duration::from_secs(3), now),
            None => Err(edge::PingError::NoPath),
        }
    }

    /// Packets that came out of TUNs since the last call.
    pub fn take_delivered(&mut self) -> Vec<Delivered> {
        std::mem::take(&mut self.delivered)
    }

    /// Packets that came out of TUNs since they were taken the last time.
    pub fn delivered(&self) -> &[Delivered] {
        &self.delivered
    }

    /// Answered overlay pings.
    pub fn pongs(&self) -> &[(NodeIndex, PingId, Duration)] {
        &self.pongs
    }

    /// Everything that relays were handed.
    pub fn relayed(&self) -> &[Bytes] {
        &self.relayed
    }

    // ---- looking in ----

    /// The observer of all wires.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// A hash of everything that was sent and delivered so far, with times and parties: two runs of one seed agree.
    pub fn fingerprint(&self) -> u64 {
        self.watch.fingerprint()
    }

    /// How many nodes were ever made.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How many relays were ever made.
    pub fn relay_count(&self) -> usize {
        self.relays.len()
    }

    /// Has the node applied a configuration?
    pub fn is_ready(&self, index: NodeIndex) -> bool {
        self.nodes.get(index.0).is_some_and(|h| h.ready)
    }

    /// The node's overlay IPv4 address, once it has one.
    pub fn address(&self, index: NodeIndex) -> Option<Ipv4Addr> {
        self.nodes.get(index.0)?.addresses.iter().find_map(|a| match a {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    /// The id that the controller gave.
    pub fn node_id(&self, index: NodeIndex) -> Option<NodeId> {
        let host = self.nodes.get(index.0)?;
        self.database.node_of(&MachineKey::from_seed(host.seed).public().0).map(|n| n.id)
    }

    /// What `edgelink status` would show.
    pub fn status(&self, index: NodeIndex) -> Option<edgelink_api::local::Status> {
        let node = self.nodes.get(index.0)?.node.as_ref()?;
        Some(node.status("wss://controller.sim/ws/control", self.node_now(index.0)))
    }

    /// The built-in relay's core, to look into.
    pub fn relay(&self) -> Option<&Relay> {
        self.relay_at(RelayIndex::BUILTIN)
    }

    /// A relay's core, to look into, while its process runs.
    pub fn relay_at(&self, index: RelayIndex) -> Option<&Relay> {
        self.relays.get(index.0)?.core()
    }

    /// The server id of a relay.
    pub fn server_id(&self, index: RelayIndex) -> Option<ServerId> {
        Some(self.relays.get(index.0)?.id)
    }

    // ---- lines ----

    /// How good the line between two processes is from now on, both ways.
    pub fn set_line(&mut self, a: Party, b: Party, line: Line) {
        self.streams.set_line(a, b, line);
    }

    /// Cuts or mends the line between two processes. Nobody is told; what was sent waits.
    pub fn set_cut(&mut self, a: Party, b: Party, cut: bool) {
        self.streams.set_cut(a, b, cut, self.now);
        self.streams.set_cut(b, a, cut, self.now);
    }

    /// Cuts or mends one direction only.
    pub fn set_cut_one_way(&mut self, from: Party, to: Party, cut: bool) {
        self.streams.set_cut(from, to, cut, self.now);
    }

    /// A middlebox resets all connections between two processes.
    pub fn reset(&mut self, a: Party, b: Party) {
        self.streams.reset_between(a, b, self.now, &mut self.rng);
    }

    // ---- the loop ----

    /// A generator of its own for a process, so that what one draws does not change another's luck.
    fn fork(&mut self) -> ChaCha20Rng {
        ChaCha20Rng::seed_from_u64(self.rng.next_u64())
    }

    /// True time.
    fn server_now(&self) -> Now {
        let passed = u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { mono: self.now, unix_ms: self.config.unix_ms + passed }
    }

    fn next_due(&self) -> Option<Instant> {
        let controller = self.controller.as_ref().and_then(|c| c.core.poll_timeout());
        let relays = self.relays.iter().filter_map(|r| r.core()?.poll_timeout());
        let nodes = self.nodes.iter().filter_map(Host::poll_timeout);
        controller
            .into_iter()
            .chain(relays)
            .chain(nodes)
            .chain(self.streams.next_due())
            .chain(self.net.next_due())
            .min()
    }

    /// Drains every core that was touched until none has anything to say.
    fn drain(&mut self) {
        let mut turns = 0;
        loop {
            while let Some((id, to)) = self.streams.next_roomy() {
                self.room(id, to);
            }
            self.tail_change_log();
            let Some(party) = self.touched.pop_first() else { return };
            turns += 1;
            assert!(turns < MAX_TURNS, "the cores never fall silent at {:?}", self.elapsed());
            match party {
                Party::Controller => self.drain_controller(),
                Party::Relay(index) => self.drain_relay(index),
                Party::Node(index) => self.drain_node(index),
            }
        }
    }

    fn handle_timeouts(&mut self) {
        self.controller_timeout();
        for index in 0..self.relays.len() {
            self.relay_timeout(index);
        }
        for index in 0..self.nodes.len() {
            self.node_timeout(index);
        }
    }

    fn deliver_one(&mut self) -> bool {
        let Some(Popped { id, end, arrival }) = self.streams.pop_due(self.now) else {
            return self.streams.next_due().is_some_and(|at| at <= self.now) || self.deliver_datagram();
        };
        let Some(ends) = self.ends.get(&id).copied() else { return true };
        match end {
            End::Client => match ends.client {
                Some(Client::Node(index, link)) => self.arrive_at_node(index, link, id, arrival),
                Some(Client::Uplink(index)) => self.arrive_at_uplink(index, id, arrival),
                Some(Client::Mesh(index, end)) => self.arrive_at_mesh_dialler(index, end, id, arrival),
                None => {}
            },
            End::Server => match ends.server {
                Some(Server::Control(endpoint, conn)) => self.arrive_at_controller(endpoint, conn, id, arrival),
                Some(Server::Relay(index, endpoint, conn)) => {
                    self.arrive_at_relay((index, endpoint, conn), id, arrival);
                }
                None => {}
            },
        }
        true
    }

    /// There is room again towards an end of a stream, whose other end found none.
    fn room(&mut self, id: StreamId, to: End) {
        let Some(ends) = self.ends.get(&id).copied() else { return };
        match (to, ends) {
            (End::Server, Ends { client: Some(Client::Node(index, link)), .. }) => self.flush_link(index, link),
            (End::Server, Ends { client: Some(Client::Mesh(index, relay::MeshEnd::Linked(conn))), .. })
            | (End::Client, Ends { server: Some(Server::Relay(index, _, Some(conn))), .. }) => {
                self.flush_relay(index, conn);
            }
            (End::Client, Ends { server: Some(Server::Control(..)), .. }) => self.flush_controller(id),
            _ => {}
        }
    }

    /// A process dials another one.
    fn dial(&mut self, from: Party, client: Client, to: Party, server: Server) -> StreamId {
        let stream = self.streams.dial(from, to, self.now, &mut self.rng);
        self.ends.insert(stream, Ends { client: Some(client), server: Some(server) });
        stream
    }

    /// One end of a stream is done with it.
    fn leave(&mut self, id: StreamId, end: End) {
        let Some(ends) = self.ends.get_mut(&id) else { return };
        match end {
            End::Client => ends.client = None,
            End::Server => ends.server = None,
        }
        if ends.client.is_none() && ends.server.is_none() {
            self.ends.remove(&id);
        }
    }

    /// A core's message on its way.
    fn transmit(&mut self, id: StreamId, to: End, message: Bytes) {
        let Some((receiver, sender)) = self.streams.parties(id, to) else { return };
        self.watch.message(self.now - self.start, sender, receiver, &message);
        for message in self.corrupt(sender, receiver, id, message) {
            self.streams.send(id, to, message, self.now, &mut self.rng);
        }
    }

    /// Closes a stream from one end.
    fn hang_up(&mut self, id: StreamId, from: End, why: &'static str) {
        self.streams.close(id, from.other(), why, self.now, &mut self.rng);
        self.leave(id, from);
    }
}

/// The pre-auth key that simulated nodes join a network with.
pub(crate) fn auth_key(network: NetworkId) -> String {
    format!("elk_sim_{network}")
}
