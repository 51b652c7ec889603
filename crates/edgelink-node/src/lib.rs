//! The client's brain, without I/O: it keeps the control channel and the relays, learns peers from CONFIG, and turns
//! packets of the TUN into sealed frames and back.
//!
//! # The loop
//!
//! A shell owns the sockets, the TUN and the clock. It feeds [`Node`] by `handle_tun`, `link_connected`,
//! `handle_message`, `link_closed` and `handle_timeout`; then drains [`Node::poll_event`] until it is empty; then writes
//! what [`Node::poll_transmit`] has for the links that were reported writable; then sleeps until
//! [`Node::poll_timeout`] at the latest.
//!
//! Every connection is a *link*: the shell dials when told by [`Event::Dial`] and names the link by the id that came
//! with it. An id is never reused, so a late word about an old connection cannot be mistaken for one about its heir.

mod announce;
mod backoff;
mod configure;
mod control;
mod cut;
mod data;
mod direct;
mod drops;
mod endpoints;
mod hearing;
mod latency;
mod link;
mod neighbours;
mod p2p_status;
mod path_report;
mod paths;
mod peers;
mod persist;
mod ping;
mod punching;
mod relays;
mod roaming;
mod routing;
mod sockets;
mod status;
mod streams;
mod timers;
mod udp;
mod waiting;

pub use direct::P2pConfig;
pub use drops::Drop;
pub use edgelink_path::{Budget as ProbeBudget, SocketId};
pub use link::{LinkId, Target};
pub use persist::PersistedState;
pub use ping::{PingError, PingId};
pub use routing::{RouteFilter, RoutingConfig};
pub use udp::Transmit;

use control::Control;
use drops::Drops;
use edgelink_auth::MachineKey;
use edgelink_model::records::HostInfo;
use edgelink_model::{NetworkId, NodeId, Now, ServerId};
use edgelink_path::{RelayWay, StunServer};
use edgelink_session::SessionTable;
use edgelink_session::trust::{PinStore, Trust};
use edgelink_wire::control::proto;
use ipnet::IpNet;
use link::Link;
use peers::Peers;
use relays::Relay;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use timers::{Timer, Timers};
use zeroize::Zeroizing;

/// How the node is set up; fixed while it runs.
pub struct NodeConfig {
    /// Host of the controller as dialled, lower case, without port: it is signed at authentication (DESIGN §3). See
    /// [`Node::set_controller_host`].
    pub controller_host: String,
    /// Pre-auth key for enrolment.
    pub auth_key: Option<Zeroizing<String>>,
    /// What the controller is told of this machine.
    pub host: HostInfo,
    /// How machine keys of peers are trusted (DESIGN §2).
    pub trust: Trust,
    /// Pre-shared key mixed into every session.
    pub psk: Option<Zeroizing<[u8; 32]>>,
    /// Capability bits of our key statements ([`edgelink_model::capabilities`]).
    pub capabilities: u32,
    /// How relays are used.
    pub paths: PathSettings,
    /// How direct paths are used.
    pub p2p: P2pConfig,
}

/// How relays are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathSettings {
    /// Time between two LATENCY_REPORTs, unless the controller wants another (specification §12.3: 30 s). Changes are
    /// reported within a second in any case.
    pub latency_report: Duration,
}

impl Default for PathSettings {
    fn default() -> Self {
        Self { latency_report: Duration::from_secs(30) }
    }
}

/// What the shell must do.
#[derive(Debug)]
pub enum Event {
    /// Dial, then report [`Node::link_connected`] or [`Node::link_closed`].
    Dial {
        /// Name of the connection to be.
        link: LinkId,
        /// Where to.
        target: Target,
    },
    /// Close a connection (or give up dialling it) once what was queued is written; the core has forgotten it already.
    Close {
        /// Which.
        link: LinkId,
        /// Whole frames to be sent before.
        last: Option<bytes::Bytes>,
    },
    /// [`Node::poll_transmit`] has something for this link.
    Writable(LinkId),
    /// Give the TUN these addresses and routes, replacing former ones.
    Interface(Interface),
    /// The network is usable: the first configuration is applied.
    Ready,
    /// Take the interface down: we are no member any more.
    Expelled,
    /// Keep this on disk before doing anything that follows.
    Persist(Box<PersistedState>),
    /// Open a UDP socket, then report [`Node::socket_opened`] or [`Node::socket_failed`].
    OpenSocket {
        /// Name of the socket to be.
        socket: SocketId,
        /// The port to bind if it is free; 0: any.
        port: u16,
    },
    /// Close a UDP socket.
    CloseSocket {
        /// Which.
        socket: SocketId,
    },
    /// Listen for TCP at exactly these addresses from now on, and offer what connects to [`Node::stream_accepted`].
    Listen {
        /// Of interfaces; none: nowhere.
        addresses: Vec<SocketAddr>,
    },
    /// [`Node::poll_datagram`] has something. Told once until it has returned `None`.
    Datagrams,
    /// Write this IP packet to the TUN: an answer to one of ours that is too large for its path.
    Packet(Vec<u8>),
    /// The answer to [`Node::ping`].
    Pong {
        /// Which ping.
        ping: PingId,
        /// Who answered.
        peer: NodeId,
        /// The path that packets to it take now.
        path: edgelink_api::local::Path,
        /// End to end.
        rtt: Duration,
    },
}

/// What the TUN looks like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Our overlay addresses with the network's prefix length.
    pub addresses: Vec<IpNet>,
    /// Subnets behind other nodes whose packets go into the tunnel, sorted. The shell leaves out of them what the
    /// tunnel itself needs: the addresses of controller, relays and `stun_servers` (DESIGN §7).
    pub routes: Vec<IpNet>,
    /// Addresses of STUN servers.
    pub stun_servers: Vec<IpAddr>,
    /// Subnets that this node serves, sorted: a gateway forwards between them and the tunnel.
    pub served: Vec<IpNet>,
}

/// Who we are in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) network: NetworkId,
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
}

/// The network as CONFIG describes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) subnets: Vec<IpNet>,
    pub(crate) version: u64,
    pub(crate) key_period: Duration,
}

/// The client's core. See the crate's documentation for the loop.
pub struct Node {
    config: NodeConfig,
    machine: MachineKey,
    /// Controller's clock minus ours, ms; learnt at authentication.
    clock_offset_ms: i64,
    /// What the clocks showed when we looked last.
    clocks: Now,
    seq_floor: u64,
    pins: PinStore,
    identity: Option<Identity>,
    network: Option<Network>,
    /// The configuration as it would be sent in one piece, with tokens: kept on disk.
    latest: proto::Config,
    sessions: Option<SessionTable>,
    peers: Peers,
    control: Control,
    relays: BTreeMap<ServerId, Relay>,
    links: BTreeMap<LinkId, Link>,
    streams: streams::Streams,
    next_link: u64,
    /// What the connected relays offer, the same for all peers.
    relay_ways: Vec<RelayWay>,
    direct: direct::Direct,
    routing: routing::Routing,
    stun_servers: Vec<StunServer>,
    report: latency::Report,
    /// Names the last probe.
    last_probe_us: u64,
    pings: ping::Pings,
    timers: Timers,
    drops: Drops,
    /// Some way out may be busy: see before each packet.
    crowded: bool,
    labels: waiting::Labels,
    spare: waiting::Spare,
    /// When a newer statement of ours that we have not made was heard.
    own_heard_at: Option<Instant>,
    /// When the TUN was last told that a packet is too large.
    complained_at: Option<Instant>,
    events: VecDeque<Event>,
    /// Origin of the times in our PINGs.
    epoch: Instant,
}

impl Node {
    /// A node with its identity and what it remembered. It begins by dialling the controller, and the relays too when
    /// it remembers a configuration: a dead controller is not a dead network (DESIGN §2).
    pub fn new(
        config: NodeConfig,
        machine: MachineKey,
        persisted: PersistedState,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Self {
        let mut this = Self {
            pins: PinStore::import(config.trust.clone(), persisted.pins),
            clock_offset_ms: persisted.clock_offset_ms,
            clocks: now,
            seq_floor: persisted.seq_floor,
            direct: direct::Direct::new(&config.p2p),
            config,
            machine,
            identity: None,
            network: None,
            latest: proto::Config::default(),
            sessions: None,
            peers: Peers::default(),
            control: Control::default(),
            relays: BTreeMap::new(),
            links: BTreeMap::new(),
            streams: streams::Streams::default(),
            next_link: 1,
            relay_ways: Vec::new(),
            routing: routing::Routing::default(),
            stun_servers: Vec::new(),
            report: latency::Report::default(),
            last_probe_us: 0,
            pings: ping::Pings::default(),
            timers: Timers::default(),
            drops: Drops::default(),
            crowded: false,
            labels: waiting::Labels::default(),
            spare: waiting::Spare::default(),
            own_heard_at: None,
            complained_at: None,
            events: VecDeque::new(),
            epoch: now.mono,
        };
        if let Some(remembered) = persisted.config {
            this.restore(&remembered, now, rng);
        }
        this.dial_control();
        this
    }

    /// What to do next; call until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.sessions.as_ref().and_then(SessionTable::poll_timeout);
        self.timers.next().into_iter().chain(sessions).min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        let late = self.poll_timeout().is_some_and(|due| now.mono.saturating_duration_since(due) > roaming::LATE);
        let stepped = self.look_at_clocks(now, rng);
        if late || stepped {
            self.resumed(now);
        }
        if let Some(sessions) = &mut self.sessions {
            sessions.handle_timeout(now.mono);
            if sessions.rekey_due() {
                // A counter has come far: long before it could end.
                self.rotate(now, rng);
            }
        }
        while let Some(timer) = self.timers.pop_due(now.mono) {
            match timer {
                Timer::Control => self.control_timeout(now, rng),
                Timer::Relay(relay) => self.relay_timeout(relay, now, rng),
                Timer::Announce(peer) => self.announce_timeout(peer, now),
                Timer::Ping(ping) => self.pings.forget(ping),
                Timer::Path(peer) => self.path_timeout(peer, now),
                Timer::Punch(peer) => self.punch_timeout(peer, now, rng),
                Timer::Neighbour(peer) => self.neighbour_timeout(peer, now),
                Timer::Stream(link) => self.stream_timeout(link, now),
                Timer::Tell(peer) => self.tell_timeout(peer, now),
                Timer::Stun => self.stun_timeout(now, rng),
                Timer::Window(peer) => self.window_timeout(peer, now),
                Timer::Gateway(node) => self.gateway_timeout(node, now),
                Timer::Recovered => self.recovered_timeout(now),
                Timer::Report => self.report_timeout(now),
                Timer::Rotate => self.rotate(now, rng),
            }
        }
    }

    /// The connection that [`Event::Dial`] asked for is open.
    pub fn link_connected(&mut self, link: LinkId, now: Now) {
        match self.links.get(&link).map(|l| l.target()) {
            Some(Target::Control) => self.control_connected(link, now),
            Some(Target::Relay { id, .. }) => self.relay_connected(*id, link, now),
            Some(Target::Neighbour { .. }) => self.stream_connected(link, now),
            None => self.events.push_back(Event::Close { link, last: None }),
        }
    }

    /// The connection ended or could not be made; `reason` is shown to the user.
    pub fn link_closed(&mut self, link: LinkId, reason: &str, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(mut gone) = self.links.remove(&link) else { return };
        match gone.target() {
            Target::Control => self.control_closed(reason, now, rng),
            Target::Relay { id, .. } => self.relay_closed(*id, reason, now, rng),
            Target::Neighbour { .. } => self.stream_closed(link, reason, now),
        }
        self.send_orphans(std::mem::take(gone.waiting()), now);
    }

    /// One WebSocket binary message arrived; DATA is opened in place and handed to `tun`, which gets a virtio header
    /// and an IP packet each time.
    pub fn handle_message(
        &mut self,
        link: LinkId,
        message: &mut [u8],
        now: Now,
        rng: &mut impl rand_core::Rng,
        tun: &mut impl FnMut(&[u8], &[u8]),
    ) {
        match self.links.get(&link).map(|l| l.target()) {
            Some(Target::Control) => self.handle_control_message(link, message, now, rng),
            Some(Target::Relay { id, .. }) => {
                let id = *id;
                self.handle_relay_message(id, link, message, now, rng, tun);
            }
            // [`Self::handle_stream`]
            Some(Target::Neighbour { .. }) | None => {}
        }
    }

    /// Counts something that the shell had to drop.
    pub fn count_drop(&mut self, reason: Drop) {
        self.drops.count(reason);
    }

    /// The present by the controller's clock.
    pub(crate) fn controller_time(&self, now: Now) -> Now {
        Now { mono: now.mono, unix_ms: now.unix_ms.saturating_add_signed(self.clock_offset_ms) }
    }
}
