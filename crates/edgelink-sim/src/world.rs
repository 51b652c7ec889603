//! Controller, relay and nodes on one virtual clock.

use crate::database::Database;
use crate::packet::udp_packet;
use crate::streams::{Arrival, End, StreamId, Streams};
use bytes::Bytes;
use edgelink_auth::MachineKey;
use edgelink_auth::token::{Issuer, TokenKeys};
use edgelink_control::{self as control, Control, ControlConfig, StoreOp};
use edgelink_model::records::HostInfo;
use edgelink_model::{NodeId, Now, ServerId, capabilities};
use edgelink_node::{self as node, LinkId, Node, NodeConfig, P2pConfig, PathSettings, PersistedState, PingId, Target};
use edgelink_relay::{self as relay, Relay, RelayConfig, RelayEvent};
use edgelink_session::trust::Trust;
use edgelink_wire::virtio;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Host name that simulated nodes dial.
const CONTROLLER: &str = "controller.sim";
/// The pre-auth key that simulated nodes join with.
const AUTH_KEY: &str = "elk_sim";
/// More turns than this without time passing is a loop between cores.
const MAX_TURNS: u32 = 100_000;

/// How a world begins.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// Seed of all randomness.
    pub seed: u64,
    /// One-way delay of every connection.
    pub delay: Duration,
    /// Unix time of the controller at the beginning, ms.
    pub unix_ms: u64,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self { seed: 1, delay: Duration::from_millis(10), unix_ms: 1_700_000_000_000 }
    }
}

/// Number of a node in the order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeIndex(usize);

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
    start: Instant,
    now: Instant,
    unix_ms: u64,
    rng: ChaCha20Rng,
    /// The tables; change them as an administrator would.
    pub database: Database,
    token_keys: TokenKeys,
    server: Option<Server>,
    nodes: Vec<Host>,
    streams: Streams,
    ends: BTreeMap<StreamId, Ends>,
    delivered: Vec<Delivered>,
    pongs: Vec<(NodeIndex, PingId, Duration)>,
    /// Every message that a relay saw, for what it must not contain.
    relayed: Vec<Bytes>,
}

/// The controller's process with its built-in relay.
struct Server {
    control: Control,
    relay: Relay,
    control_conns: BTreeMap<control::ConnId, StreamId>,
    relay_conns: BTreeMap<relay::ConnId, StreamId>,
}

struct Host {
    seed: [u8; 32],
    name: String,
    /// How wrong the host's clock is, ms.
    clock_error_ms: i64,
    persisted: PersistedState,
    node: Option<Node>,
    links: BTreeMap<LinkId, StreamId>,
    ready: bool,
    addresses: Vec<IpAddr>,
}

struct Ends {
    node: usize,
    link: LinkId,
    target: ServerEnd,
}

#[derive(Clone, Copy)]
enum ServerEnd {
    Control(Option<control::ConnId>),
    Relay(Option<relay::ConnId>),
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
        database.add_auth_key(AUTH_KEY, edgelink_model::NetworkId(1));
        let token_keys = TokenKeys::generate(&mut rng);
        let mut this = Self {
            start,
            now: start,
            unix_ms: config.unix_ms,
            rng,
            database,
            token_keys,
            server: None,
            nodes: Vec::new(),
            streams: Streams::new(config.delay),
            ends: BTreeMap::new(),
            delivered: Vec::new(),
            pongs: Vec::new(),
            relayed: Vec::new(),
        };
        this.start_server();
        this
    }

    /// A new node that joins with a pre-authorized key.
    pub fn add_node(&mut self, name: &str) -> NodeIndex {
        self.add_node_with_clock(name, 0)
    }

    /// A new node whose clock is wrong by so many milliseconds.
    pub fn add_node_with_clock(&mut self, name: &str, clock_error_ms: i64) -> NodeIndex {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        self.nodes.push(Host {
            seed,
            name: name.to_owned(),
            clock_error_ms,
            persisted: PersistedState::default(),
            node: None,
            links: BTreeMap::new(),
            ready: false,
            addresses: Vec::new(),
        });
        let index = NodeIndex(self.nodes.len() - 1);
        self.start_node(index);
        index
    }

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
            let due = self.next_due().filter(|at| *at <= end);
            let Some(at) = due else { break };
            turns = if at > self.now { 0 } else { turns + 1 };
            assert!(turns < MAX_TURNS, "the cores keep each other busy without time passing at {:?}", self.elapsed());
            self.now = self.now.max(at);
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

    /// Ends the controller's process (and its relay) without a word.
    pub fn kill_server(&mut self) {
        self.server = None;
        for ends in self.ends.values_mut() {
            // What is still under way must not reach a connection of the next process that happens to have the same name.
            ends.target = match ends.target {
                ServerEnd::Control(_) => ServerEnd::Control(None),
                ServerEnd::Relay(_) => ServerEnd::Relay(None),
            };
        }
        let all: Vec<StreamId> = self.ends.keys().copied().collect();
        for id in all {
            self.streams.close(id, End::Client, "connection reset by peer", self.now);
        }
    }

    /// Starts the controller from its database.
    pub fn start_server(&mut self) {
        let config = ControlConfig { hosts: [CONTROLLER.to_owned()].into(), ..ControlConfig::default() };
        let issuer = Issuer::new(&self.token_keys);
        // The issuer made the keys: that its public half is one is its own promise.
        #[expect(clippy::expect_used, reason = "the simulator itself is broken when this fails")]
        let verifier = issuer.relay_verifier().expect("own keys make a verifier");
        let mut relay = Relay::new(RelayConfig::new(ServerId(1)), verifier);
        let control = Control::new(config, issuer, self.database.snapshot());
        let now = self.server_now();
        relay.set_revocations(control.revocations(), now);
        self.server = Some(Server { control, relay, control_conns: BTreeMap::new(), relay_conns: BTreeMap::new() });
    }

    /// Ends a node's process without a word; its disk remains.
    pub fn kill_node(&mut self, index: NodeIndex) {
        let Some(host) = self.nodes.get_mut(index.0) else { return };
        host.node = None;
        host.ready = false;
        for (_, stream) in std::mem::take(&mut host.links) {
            self.streams.close(stream, End::Server, "connection reset by peer", self.now);
        }
    }

    /// Starts a node's process from what its disk holds.
    pub fn start_node(&mut self, index: NodeIndex) {
        let now = self.node_now(index);
        let Some(host) = self.nodes.get_mut(index.0) else { return };
        let config = NodeConfig {
            controller_host: CONTROLLER.to_owned(),
            auth_key: Some(Zeroizing::new(AUTH_KEY.to_owned())),
            host: HostInfo { hostname: host.name.clone(), os: "sim".to_owned(), ..HostInfo::default() },
            trust: Trust::Tofu,
            psk: None,
            capabilities: capabilities::SUPER_PACKETS,
            paths: PathSettings::default(),
            p2p: P2pConfig::default(),
        };
        let machine = MachineKey::from_seed(host.seed);
        host.node = Some(Node::new(config, machine, host.persisted.clone(), now, &mut self.rng));
    }

    /// Puts an IP packet into a node's TUN.
    pub fn send_packet(&mut self, from: NodeIndex, packet: &[u8]) {
        let now = self.node_now(from);
        let mut frame = vec![0; virtio::LEN];
        frame.extend_from_slice(packet);
        if let Some(node) = self.node_mut(from) {
            node.handle_tun(&mut frame, now);
        }
    }

    /// Sends `payload` from one node to another in a UDP packet between their overlay addresses.
    pub fn send_probe(&mut self, from: NodeIndex, to: NodeIndex, payload: &[u8]) {
        if let (Some(src), Some(dst)) = (self.address(from), self.address(to)) {
            self.send_packet(from, &udp_packet(src, dst, payload));
        }
    }

    /// An overlay ping; the outcome appears in [`Self::pongs`].
    ///
    /// # Errors
    /// As [`Node::ping`].
    pub fn ping(&mut self, from: NodeIndex, to: NodeIndex) -> Result<PingId, node::PingError> {
        let now = self.node_now(from);
        let peer = self.node_id(to).unwrap_or(NodeId(0));
        match self.node_mut(from) {
            Some(node) => node.ping(peer, Duration::from_secs(3), now),
            None => Err(node::PingError::NoPath),
        }
    }

    /// Packets that came out of TUNs since the last call.
    pub fn take_delivered(&mut self) -> Vec<Delivered> {
        std::mem::take(&mut self.delivered)
    }

    /// Packets that came out of TUNs so far.
    pub fn delivered(&self) -> &[Delivered] {
        &self.delivered
    }

    /// Answered overlay pings.
    pub fn pongs(&self) -> &[(NodeIndex, PingId, Duration)] {
        &self.pongs
    }

    /// Everything that the relay was handed.
    pub fn relayed(&self) -> &[Bytes] {
        &self.relayed
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
        Some(node.status("wss://controller.sim/ws/control", self.node_now(index)))
    }

    /// The relay's core, to look into.
    pub fn relay(&self) -> Option<&Relay> {
        self.server.as_ref().map(|s| &s.relay)
    }

    fn node_mut(&mut self, index: NodeIndex) -> Option<&mut Node> {
        self.nodes.get_mut(index.0)?.node.as_mut()
    }

    fn server_now(&self) -> Now {
        Now { mono: self.now, unix_ms: self.unix_ms + u64::try_from(self.elapsed().as_millis()).unwrap_or(u64::MAX) }
    }

    fn node_now(&self, index: NodeIndex) -> Now {
        let error = self.nodes.get(index.0).map_or(0, |h| h.clock_error_ms);
        let now = self.server_now();
        Now { unix_ms: now.unix_ms.saturating_add_signed(error), ..now }
    }

    fn next_due(&self) -> Option<Instant> {
        let server = self.server.iter().flat_map(|s| [s.control.poll_timeout(), s.relay.poll_timeout()]).flatten();
        let nodes = self.nodes.iter().filter_map(|h| h.node.as_ref()?.poll_timeout());
        self.streams.next_due().into_iter().chain(server).chain(nodes).min()
    }

    /// Drains every core until none has anything to say.
    fn drain(&mut self) {
        let mut turns = 0;
        while self.drain_server() | (0..self.nodes.len()).fold(false, |any, i| any | self.drain_node(i)) {
            turns += 1;
            assert!(turns < MAX_TURNS, "the cores never fall silent at {:?}", self.elapsed());
        }
    }

    fn handle_timeouts(&mut self) {
        let now = self.server_now();
        if let Some(server) = &mut self.server {
            if server.control.poll_timeout().is_some_and(|at| at <= now.mono) {
                server.control.handle_timeout(now, &mut self.rng);
            }
            if server.relay.poll_timeout().is_some_and(|at| at <= now.mono) {
                server.relay.handle_timeout(now);
            }
        }
        for index in 0..self.nodes.len() {
            let now = self.node_now(NodeIndex(index));
            let rng = &mut self.rng;
            if let Some(node) = self.nodes.get_mut(index).and_then(|h| h.node.as_mut())
                && node.poll_timeout().is_some_and(|at| at <= now.mono)
            {
                node.handle_timeout(now, rng);
            }
        }
    }

    fn deliver_one(&mut self) -> bool {
        let Some((id, end, arrival)) = self.streams.pop_due(self.now) else { return false };
        match end {
            End::Client => self.arrive_at_node(id, arrival),
            End::Server => self.arrive_at_server(id, arrival),
        }
        true
    }

    fn arrive_at_node(&mut self, id: StreamId, arrival: Arrival) {
        let Some(Ends { node: index, link, .. }) = self.ends.get(&id) else { return };
        let (index, link) = (*index, *link);
        let now = self.node_now(NodeIndex(index));
        let at = self.elapsed();
        let Some(host) = self.nodes.get_mut(index) else { return };
        let Some(node) = host.node.as_mut().filter(|_| host.links.get(&link) == Some(&id)) else { return };
        match arrival {
            Arrival::Opened => node.link_connected(link, now),
            Arrival::Message(message) => {
                let delivered = &mut self.delivered;
                let mut tun = |_: &[u8], packet: &[u8]| {
                    delivered.push(Delivered { node: NodeIndex(index), at, packet: packet.to_vec() });
                };
                node.handle_message(link, &mut message.to_vec(), now, &mut self.rng, &mut tun);
            }
            Arrival::Closed(why) => {
                host.links.remove(&link);
                node.link_closed(link, why, now, &mut self.rng);
                self.ends.remove(&id);
            }
        }
    }

    fn arrive_at_server(&mut self, id: StreamId, arrival: Arrival) {
        let now = self.server_now();
        let Some(server) = &mut self.server else {
            self.streams.close(id, End::Client, "connection refused", self.now);
            return;
        };
        let Some(ends) = self.ends.get_mut(&id) else { return };
        match (arrival, &mut ends.target) {
            (Arrival::Opened, ServerEnd::Control(conn)) => {
                let new = server.control.connect(now);
                *conn = Some(new);
                server.control_conns.insert(new, id);
                self.streams.accept(id, self.now);
            }
            (Arrival::Opened, ServerEnd::Relay(conn)) => match server.relay.connect(None, now, &mut self.rng) {
                Ok(new) => {
                    *conn = Some(new);
                    server.relay_conns.insert(new, id);
                    self.streams.accept(id, self.now);
                }
                Err(_) => self.streams.close(id, End::Client, "the relay is full", self.now),
            },
            (Arrival::Message(message), ServerEnd::Control(Some(conn))) => {
                server.control.handle_message(*conn, &message, now, &mut self.rng);
            }
            (Arrival::Message(message), ServerEnd::Relay(Some(conn))) => {
                self.relayed.push(message.clone());
                server.relay.handle_message(*conn, message, now);
            }
            (Arrival::Closed(_), ServerEnd::Control(Some(conn))) => {
                server.control_conns.remove(conn);
                server.control.disconnect(*conn, now);
                self.ends.remove(&id);
            }
            (Arrival::Closed(_), ServerEnd::Relay(Some(conn))) => {
                server.relay_conns.remove(conn);
                server.relay.disconnect(*conn, now);
                self.ends.remove(&id);
            }
            // Of a connection that an earlier process of the server had taken.
            (Arrival::Message(_) | Arrival::Closed(_), _) => {}
        }
    }

    fn drain_node(&mut self, index: usize) -> bool {
        let mut any = false;
        loop {
            let Some(host) = self.nodes.get_mut(index) else { return any };
            let Some(event) = host.node.as_mut().and_then(Node::poll_event) else { return any };
            any = true;
            match event {
                node::Event::Dial { link, target } => {
                    let stream = self.streams.dial(self.now);
                    host.links.insert(link, stream);
                    let target = match target {
                        Target::Control => ServerEnd::Control(None),
                        Target::Relay { .. } => ServerEnd::Relay(None),
                    };
                    self.ends.insert(stream, Ends { node: index, link, target });
                }
                node::Event::Close { link, last } => {
                    if let Some(stream) = host.links.remove(&link) {
                        if let Some(last) = last {
                            self.streams.send(stream, End::Server, last, self.now);
                        }
                        self.streams.close(stream, End::Server, "closed by the node", self.now);
                    }
                }
                node::Event::Writable(link) => {
                    let Some(stream) = host.links.get(&link).copied() else { continue };
                    while let Some(message) = host.node.as_mut().and_then(|n| n.poll_transmit(link)) {
                        self.streams.send(stream, End::Server, message, self.now);
                    }
                }
                node::Event::Interface(interface) => {
                    host.addresses = interface.addresses.iter().map(|a| a.addr()).collect();
                }
                node::Event::Ready => host.ready = true,
                node::Event::Expelled => {
                    host.ready = false;
                    host.addresses.clear();
                }
                node::Event::Persist(state) => host.persisted = *state,
                // There is no UDP in this world.
                node::Event::OpenSocket { .. } | node::Event::CloseSocket { .. } | node::Event::Datagrams => {}
                node::Event::Pong { ping, rtt, .. } => self.pongs.push((NodeIndex(index), ping, rtt)),
            }
        }
    }

    fn drain_server(&mut self) -> bool {
        let now = self.server_now();
        let Some(server) = &mut self.server else { return false };
        let changes = self.database.changes_after(server.control.version());
        let mut any = !changes.is_empty();
        if any {
            server.control.apply(self.database.version(), changes, now, &mut self.rng);
        }
        while let Some(event) = server.control.poll_event() {
            any = true;
            match event {
                control::Event::Send { conn, message } => {
                    if let Some(stream) = server.control_conns.get(&conn) {
                        self.streams.send(*stream, End::Client, message, self.now);
                    }
                }
                control::Event::Close { conn } => {
                    if let Some(stream) = server.control_conns.remove(&conn) {
                        self.streams.close(stream, End::Client, "closed by the controller", self.now);
                    }
                }
                control::Event::Revoked(record) => server.relay.revoke(&record, now),
                control::Event::Store(StoreOp::Enroll { conn, request }) => {
                    let outcome = self.database.enroll(&request);
                    let changes = self.database.changes_after(server.control.version());
                    server.control.apply(self.database.version(), changes, now, &mut self.rng);
                    server.control.handle_enrolled(conn, outcome, now, &mut self.rng);
                }
                control::Event::Store(StoreOp::SetNodeKey { node, key }) => self.database.set_node_key(node, key),
                control::Event::Store(StoreOp::Seen { .. }) => {}
            }
        }
        let mut out = Vec::new();
        while let Some(event) = server.relay.poll_event() {
            any = true;
            match event {
                RelayEvent::Writable(conn) => {
                    let Some(stream) = server.relay_conns.get(&conn) else { continue };
                    while server.relay.poll_transmit(conn, 64 << 10, now, &mut out) > 0 {
                        for run in out.drain(..) {
                            self.streams.send(*stream, End::Client, run, self.now);
                        }
                    }
                }
                RelayEvent::Close { conn, flush, .. } => {
                    let Some(stream) = server.relay_conns.remove(&conn) else { continue };
                    if flush {
                        server.relay.poll_transmit(conn, usize::MAX, now, &mut out);
                        for run in out.drain(..) {
                            self.streams.send(stream, End::Client, run, self.now);
                        }
                    }
                    server.relay.disconnect(conn, now);
                    self.streams.close(stream, End::Client, "closed by the relay", self.now);
                }
                RelayEvent::NodeConnected { .. } | RelayEvent::NodeDisconnected { .. } => {}
            }
        }
        any
    }
}
