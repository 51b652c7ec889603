//! A node, its clock, and everybody it talks with.

pub(crate) use crate::packets::*;
use edgelink_auth::{KeyStatement, MachineKey, NodeKey, SignedStatement};
use edgelink_model::records::HostInfo;
use edgelink_model::{NetworkId, NodeId, Now, capabilities};
use edgelink_node::{
    Event, Interface, LinkId, Node, NodeConfig, P2pConfig, PathSettings, PersistedState, PingId, Target,
};
use edgelink_session::trust::Trust;
use edgelink_session::{OpenError, SessionConfig, SessionTable};
use edgelink_wire::control::{ControlMessage, Reassembler, encode, proto};
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::ping::Ping;
use edgelink_wire::{Flags, FrameType, data, frames};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

pub(crate) const HOST: &str = "vpn.example.com";
/// The controller's clock when the world begins.
pub(crate) const START_MS: u64 = 1_700_000_000_000;
pub(crate) const START: u64 = START_MS / 1000;
pub(crate) const NETWORK: NetworkId = NetworkId(7);
pub(crate) const ME: NodeId = NodeId(100);
pub(crate) const PEER: NodeId = NodeId(200);
pub(crate) const MY_IP: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 100);
pub(crate) const PEER_IP: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 200);
pub(crate) const PLAIN: [u8; 10] = [0; 10];

/// How a world begins.
pub(crate) struct Setup {
    pub(crate) persisted: PersistedState,
    pub(crate) trust: Trust,
    pub(crate) capabilities: u32,
    /// The node's clock minus the controller's.
    pub(crate) skew_ms: i64,
    pub(crate) auth_key: Option<&'static str>,
    pub(crate) seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            persisted: PersistedState::default(),
            trust: Trust::Tofu,
            capabilities: capabilities::SUPER_PACKETS,
            skew_ms: 0,
            auth_key: None,
            seed: 7,
        }
    }
}

pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) rng: ChaCha8Rng,
    start: Instant,
    pub(crate) elapsed: Duration,
    pub(crate) skew_ms: i64,
    /// Time that no monotonic clock has counted.
    pub(crate) slept: Duration,
    /// What the node gave to its TUN: virtio header and packet.
    pub(crate) tun: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) control: Option<LinkId>,
    pub(crate) relay: Option<LinkId>,
    /// Controller and relays answer the node's PINGs at once.
    pub(crate) lively: bool,
    /// The last statement that the node told anybody.
    pub(crate) announced: Option<KeyAnnounce>,
    reassemblers: BTreeMap<LinkId, Reassembler>,
}

/// One thing that the node did.
#[derive(Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "tests compare by value")]
pub(crate) enum Seen {
    Dial(LinkId, Target),
    Closed(LinkId),
    Sent(LinkId, Sent),
    Interface(Vec<String>),
    Ready,
    Expelled,
    /// The sequence number that is on disk from now on.
    Persisted(u64),
    Pong(PingId, NodeId, Duration),
}

/// One frame that the node sent.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "tests compare by value")]
pub(crate) enum Sent {
    Message(ControlMessage),
    Announce(KeyAnnounce),
    Ping(Ping),
    Pong(Ping),
    /// A whole frame: DATA, P2P_PING or P2P_PONG.
    Sealed(Vec<u8>),
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    pub(crate) fn new(setup: Setup) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(setup.seed);
        let start = Instant::now();
        let config = NodeConfig {
            controller_host: HOST.to_owned(),
            auth_key: setup.auth_key.map(|k| Zeroizing::new(k.to_owned())),
            host: HostInfo { hostname: "me".to_owned(), os: "linux".to_owned(), ..HostInfo::default() },
            trust: setup.trust,
            psk: None,
            capabilities: setup.capabilities,
            paths: PathSettings::default(),
            p2p: P2pConfig::default(),
        };
        let now = Now { mono: start, unix_ms: START_MS.saturating_add_signed(setup.skew_ms) };
        let node = Node::new(config, machine(1), setup.persisted, now, &mut rng);
        Self {
            node,
            rng,
            start,
            elapsed: Duration::ZERO,
            skew_ms: setup.skew_ms,
            slept: Duration::ZERO,
            tun: Vec::new(),
            control: None,
            relay: None,
            lively: false,
            announced: None,
            reassemblers: BTreeMap::new(),
        }
    }

    /// A member with one peer, one connected relay, and nothing left to be seen.
    pub(crate) fn joined(peer: &Peer) -> Self {
        Self::joined_with(Setup::default(), peer)
    }

    pub(crate) fn joined_with(setup: Setup, peer: &Peer) -> Self {
        let mut world = Self::new(setup);
        world.join(config(10, vec![peer.listed()]));
        world.connect_relay(1);
        world
    }

    /// From the dialled control channel to the first CONFIG; returns what the node did after that.
    pub(crate) fn join(&mut self, config: proto::Config) -> Vec<Seen> {
        self.enter();
        self.config(config)
    }

    /// The control channel up to the admission.
    pub(crate) fn enter(&mut self) -> Vec<Seen> {
        let link = self.dialled_control();
        self.connected(link);
        self.events();
        self.challenge();
        self.events();
        self.admit();
        self.events()
    }

    /// Waits until the controller is dialled again, the clock standing at that very moment.
    pub(crate) fn redial_control(&mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        loop {
            let due = self.node.poll_timeout().expect("nothing will ever happen");
            seen.extend(self.advance(due.saturating_duration_since(self.now().mono)).into_iter().map(|(_, e)| e));
            let dialled = seen.iter().find_map(|e| match e {
                Seen::Dial(link, Target::Control) => Some(*link),
                _ => None,
            });
            if let Some(link) = dialled {
                self.control = Some(link);
                return seen;
            }
        }
    }

    pub(crate) fn dialled_control(&mut self) -> LinkId {
        let events = self.events();
        let link = events.iter().find_map(|e| match e {
            Seen::Dial(link, Target::Control) => Some(*link),
            _ => None,
        });
        self.control = link.or(self.control);
        self.control.unwrap_or_else(|| panic!("the controller was not dialled: {events:?}"))
    }

    /// Dials, authenticates and pings over the relay that the node has just asked for.
    pub(crate) fn connect_relay(&mut self, id: u32) -> Vec<Seen> {
        let link = self.dialled_relay(id);
        self.connected(link);
        self.deliver(link, relay_challenge(id));
        self.deliver(link, ControlMessage::AuthResponse(proto::AuthResponse::default()));
        self.events()
    }

    pub(crate) fn dialled_relay(&mut self, id: u32) -> LinkId {
        let seen = self.advance(Duration::ZERO);
        let link = seen.iter().find_map(|(_, e)| match e {
            Seen::Dial(link, Target::Relay { id: relay, .. }) if relay.0 == id => Some(*link),
            _ => None,
        });
        let link = link.unwrap_or_else(|| panic!("relay {id} was not dialled: {seen:?}"));
        self.relay = Some(link);
        link
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono: self.start + self.elapsed, unix_ms: self.controller_ms().saturating_add_signed(self.skew_ms) }
    }

    pub(crate) fn controller_ms(&self) -> u64 {
        START_MS + u64::try_from((self.elapsed + self.slept).as_millis()).unwrap()
    }

    pub(crate) fn control(&self) -> LinkId {
        self.control.unwrap()
    }

    pub(crate) fn relay(&self) -> LinkId {
        self.relay.unwrap()
    }

    pub(crate) fn connected(&mut self, link: LinkId) {
        let now = self.now();
        self.node.link_connected(link, now);
    }

    pub(crate) fn closed(&mut self, link: LinkId, reason: &str) {
        let now = self.now();
        self.node.link_closed(link, reason, now, &mut self.rng);
    }

    pub(crate) fn deliver_raw(&mut self, link: LinkId, message: &[u8]) {
        let now = self.now();
        let tun = &mut self.tun;
        let mut message = message.to_vec();
        self.node.handle_message(link, &mut message, now, &mut self.rng, &mut |header, packet| {
            tun.push((header.to_vec(), packet.to_vec()));
        });
    }

    pub(crate) fn deliver(&mut self, link: LinkId, message: ControlMessage) {
        self.deliver_raw(link, &encode(&message, Flags::NONE).unwrap());
    }

    pub(crate) fn challenge(&mut self) {
        let response = proto::AuthResponse {
            challenge: vec![9; 32],
            server_time_ms: self.controller_ms(),
            ..proto::AuthResponse::default()
        };
        self.deliver(self.control(), ControlMessage::AuthResponse(response));
    }

    pub(crate) fn admit(&mut self) {
        self.deliver(self.control(), admission("relay-token-1"));
    }

    /// A CONFIG as controllers send it: with a wish for an ACK.
    pub(crate) fn config(&mut self, config: proto::Config) -> Vec<Seen> {
        let message = encode(&ControlMessage::Config(config), Flags::ACK_REQUESTED).unwrap();
        self.deliver_raw(self.control(), &message);
        self.events()
    }

    pub(crate) fn update(&mut self, update: proto::ConfigUpdate) -> Vec<Seen> {
        let flags = if update.version == update.from_version { Flags::NONE } else { Flags::ACK_REQUESTED };
        let message = encode(&ControlMessage::ConfigUpdate(update), flags).unwrap();
        self.deliver_raw(self.control(), &message);
        self.events()
    }

    /// A packet from the TUN.
    pub(crate) fn tun(&mut self, header: &[u8], packet: &[u8]) -> Vec<Seen> {
        let mut frame = [header, packet].concat();
        let now = self.now();
        self.node.handle_tun(&mut frame, now);
        self.events()
    }

    /// Lets time pass, stopping at each deadline as a shell does; returns what happened and when.
    pub(crate) fn advance(&mut self, by: Duration) -> Vec<(Duration, Seen)> {
        let end = self.elapsed + by;
        let mut seen = Vec::new();
        for _ in 0..10_000 {
            seen.extend(self.events().into_iter().map(|e| (self.elapsed, e)));
            let due = self.node.poll_timeout().map(|at| at.saturating_duration_since(self.start));
            match due.filter(|at| *at <= end) {
                Some(at) => self.elapsed = self.elapsed.max(at),
                None => {
                    self.elapsed = end;
                    return seen;
                }
            }
            let now = self.now();
            self.node.handle_timeout(now, &mut self.rng);
        }
        panic!("the node's timers spin");
    }

    /// Drains events as a shell does; what a link is reported writable for is written at once.
    pub(crate) fn events(&mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut asked = Vec::new();
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Dial { link, target } => seen.push(Seen::Dial(link, target)),
                Event::Close { link, .. } => seen.push(Seen::Closed(link)),
                Event::Writable(link) => {
                    while let Some(message) = self.node.poll_transmit(link, self.now()) {
                        let reassembler = self.reassemblers.entry(link).or_default();
                        for sent in decode(reassembler, &message) {
                            if let Sent::Announce(announce) = &sent {
                                self.announced = Some(announce.clone());
                            }
                            if let Sent::Ping(ping) = sent
                                && self.lively
                            {
                                asked.push((link, ping));
                            }
                            seen.push(Seen::Sent(link, sent));
                        }
                    }
                }
                Event::Interface(Interface { addresses, .. }) => {
                    seen.push(Seen::Interface(addresses.iter().map(ToString::to_string).collect()));
                }
                Event::Ready => seen.push(Seen::Ready),
                Event::Expelled => seen.push(Seen::Expelled),
                Event::Persist(state) => seen.push(Seen::Persisted(state.seq_floor)),
                Event::OpenSocket { .. }
                | Event::CloseSocket { .. }
                | Event::Listen { .. }
                | Event::Datagrams
                | Event::Packet(_) => {
                    panic!("direct paths are disabled: {event:?}")
                }
                Event::Pong { ping, peer, rtt, .. } => seen.push(Seen::Pong(ping, peer, rtt)),
            }
        }
        if asked.is_empty() {
            return seen;
        }
        for (link, ping) in asked {
            self.deliver_raw(link, &ping.encode(FrameType::Pong));
        }
        seen.extend(self.events());
        seen
    }

    /// The last state that the node wants on disk; other events are lost.
    pub(crate) fn persisted(&mut self) -> PersistedState {
        let mut last = None;
        while let Some(event) = self.node.poll_event() {
            if let Event::Persist(state) = event {
                last = Some(*state);
            }
        }
        last.expect("nothing was persisted")
    }

    pub(crate) fn drops(&self, reason: &str) -> u64 {
        self.status().drops.get(reason).copied().unwrap_or(0)
    }

    pub(crate) fn status(&self) -> edgelink_api::local::Status {
        self.node.status("wss://vpn.example.com/ws/control", self.now())
    }

    pub(crate) fn peer_status(&self, id: NodeId) -> edgelink_api::local::Peer {
        let peers = self.status().peers;
        peers.into_iter().find(|p| p.node_id == id).unwrap_or_else(|| panic!("no peer {id}"))
    }
}

/// What `message` holds.
fn decode(reassembler: &mut Reassembler, message: &[u8]) -> Vec<Sent> {
    frames(message)
        .filter_map(|frame| {
            let frame = frame.unwrap();
            Some(match frame.frame_type().unwrap() {
                FrameType::Ping => Sent::Ping(Ping::parse(frame.payload).unwrap()),
                FrameType::Pong => Sent::Pong(Ping::parse(frame.payload).unwrap()),
                FrameType::KeyAnnounce => Sent::Announce(KeyAnnounce::parse(frame.payload).unwrap()),
                FrameType::Data | FrameType::P2pPing | FrameType::P2pPong => Sent::Sealed(frame.raw.to_vec()),
                _ => Sent::Message(reassembler.push(&frame).unwrap()?.message),
            })
        })
        .collect()
}

pub(crate) fn machine(seed: u8) -> MachineKey {
    MachineKey::from_seed([seed; 32])
}

/// The AUTH_RESPONSE that makes the node a member.
pub(crate) fn admission(relay_token: &str) -> ControlMessage {
    ControlMessage::AuthResponse(proto::AuthResponse {
        identity: Some(identity()),
        tokens: Some(tokens(relay_token)),
        ..proto::AuthResponse::default()
    })
}

pub(crate) fn identity() -> proto::NodeIdentity {
    proto::NodeIdentity {
        node_id: ME.0,
        network_id: NETWORK.0,
        name: "me".to_owned(),
        addresses: vec![MY_IP.octets().to_vec()],
    }
}

pub(crate) fn tokens(relay_token: &str) -> proto::Tokens {
    proto::Tokens {
        auth_token: "auth-token".to_owned(),
        auth_expires: START + 86_400,
        relay_token: relay_token.to_owned(),
        relay_expires: START + 5400,
    }
}

pub(crate) fn relay(id: u32) -> proto::Relay {
    proto::Relay { id, name: format!("relay-{id}"), path: "/ws/data".to_owned(), ..proto::Relay::default() }
}

pub(crate) fn relay_challenge(id: u32) -> ControlMessage {
    ControlMessage::AuthResponse(proto::AuthResponse {
        challenge: vec![3; 32],
        server_id: id,
        ..proto::AuthResponse::default()
    })
}

pub(crate) fn error(code: u16, message: &str) -> ControlMessage {
    ControlMessage::Error(proto::Error { code: code.into(), message: message.to_owned(), ..proto::Error::default() })
}

/// A CONFIG of our network with one relay.
pub(crate) fn config(version: u64, peers: Vec<proto::Peer>) -> proto::Config {
    proto::Config {
        version,
        network: Some(proto::Network {
            id: NETWORK.0,
            name: "default".to_owned(),
            subnets: vec![proto::Prefix { address: vec![10, 7, 0, 0], length: 24 }],
        }),
        peers,
        relays: vec![relay(1)],
        ..proto::Config::default()
    }
}

/// Another node, with its own sessions.
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) ip: Ipv4Addr,
    pub(crate) machine: MachineKey,
    pub(crate) sessions: SessionTable,
    pub(crate) statement: SignedStatement,
    capabilities: u32,
}

impl Peer {
    pub(crate) fn new() -> Self {
        Self::build(PEER, PEER_IP, 2, capabilities::SUPER_PACKETS)
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    pub(crate) fn build(id: NodeId, ip: Ipv4Addr, seed: u8, capabilities: u32) -> Self {
        let machine = machine(seed);
        let sessions = SessionTable::new(SessionConfig { network_id: NETWORK, node_id: id, psk: None, window: 8192 });
        let (key, statement) = fresh_key(&machine, id, 5, START, capabilities);
        let mut this = Self { id, ip, machine, sessions, statement: statement.clone(), capabilities };
        this.sessions.set_local(key, statement, Instant::now()).unwrap();
        this
    }

    /// A new node key, as after a rotation.
    pub(crate) fn rotate(&mut self, seq: u64, now: Now) {
        let (key, statement) = fresh_key(&self.machine, self.id, seq, now.unix_secs(), self.capabilities);
        self.sessions.set_local(key, statement.clone(), now.mono).unwrap();
        self.statement = statement;
    }

    /// A new process with the same machine key, which knows the node's statement from a CONFIG.
    pub(crate) fn restart(&mut self, seq: u64, now: Now) {
        let theirs = self.sessions.peer_statement(ME).cloned();
        self.sessions =
            SessionTable::new(SessionConfig { network_id: NETWORK, node_id: self.id, psk: None, window: 8192 });
        self.rotate(seq, now);
        if let Some(theirs) = theirs {
            self.sessions.set_peer(&theirs, now.mono).unwrap();
        }
    }

    /// As CONFIG lists it.
    pub(crate) fn listed(&self) -> proto::Peer {
        proto::Peer {
            node_id: self.id.0,
            name: format!("peer-{}", self.id),
            machine_pub: self.machine.public().0.to_vec(),
            statement: self.statement.bytes().to_vec(),
            signature: self.statement.signature().to_vec(),
            addresses: vec![self.ip.octets().to_vec()],
            online: true,
            endpoints: Vec::new(),
        }
    }

    pub(crate) fn announce(&self) -> Vec<u8> {
        announce(&self.statement)
    }

    /// Learns the node's statement, as from a KEY_ANNOUNCE.
    pub(crate) fn learn(&mut self, announce: &KeyAnnounce, now: Now) {
        let statement = SignedStatement::verify(&announce.statement, &announce.signature).unwrap();
        self.sessions.set_peer(&statement, now.mono).unwrap();
    }

    /// Learns the statement that the node uses now, whoever told it.
    pub(crate) fn meet(&mut self, world: &mut World) {
        let announce = world.announced.clone().expect("the node has announced no key");
        self.learn(&announce, world.now());
    }

    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        self.seal_as(FrameType::Data, Flags::NONE, plaintext)
    }

    pub(crate) fn seal_as(&mut self, ty: FrameType, flags: Flags, plaintext: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; data::PLAINTEXT_OFFSET];
        frame.extend(plaintext);
        frame.extend([0; data::TAG_LEN]);
        self.sessions.sealer(ME).unwrap().seal(ty, flags, &mut frame).unwrap();
        frame
    }

    pub(crate) fn open(&mut self, frame: &[u8], now: Now) -> Result<Vec<u8>, OpenError> {
        let mut frame = frame.to_vec();
        self.sessions.open(&mut frame, now.mono).map(|opened| opened.plaintext.to_vec())
    }

    /// A packet from this peer to the node, sealed.
    pub(crate) fn packet(&mut self, payload: &[u8]) -> Vec<u8> {
        self.seal(&udp(self.ip, MY_IP, payload))
    }
}

/// A member and its peer, which have each other's keys: nothing is announced from here on.
pub(crate) fn pair() -> (World, Peer) {
    pair_with(Peer::new(), Vec::new())
}

/// The same with this peer, and these routes in the configuration.
pub(crate) fn pair_with(mut peer: Peer, routes: Vec<proto::Route>) -> (World, Peer) {
    let mut world = World::joined(&peer);
    if !routes.is_empty() {
        world.config(proto::Config { routes, ..config(11, vec![peer.listed()]) });
    }
    peer.meet(&mut world);
    let hello = peer.packet(b"hello");
    world.deliver_raw(world.relay(), &hello);
    world.tun.clear();
    world.events();
    (world, peer)
}

/// An enabled route through a node.
pub(crate) fn route(subnet: [u8; 4], node: NodeId) -> proto::Route {
    proto::Route {
        cidr: Some(proto::Prefix { address: subnet.to_vec(), length: 24 }),
        node_id: node.0,
        priority: 100,
        weight: 100,
        enabled: true,
        ..proto::Route::default()
    }
}

/// The `n`th subnet of [`behind`].
pub(crate) fn subnet(n: usize) -> [u8; 4] {
    [20 + (n >> 8) as u8, n as u8, 7, 0]
}

/// A pair whose peer serves so many subnets.
pub(crate) fn behind(subnets: usize) -> (World, Peer) {
    pair_with(Peer::new(), (0..subnets).map(|n| route(subnet(n), PEER)).collect())
}

pub(crate) fn fresh_key(
    machine: &MachineKey,
    id: NodeId,
    seq: u64,
    not_before: u64,
    capabilities: u32,
) -> (NodeKey, SignedStatement) {
    let mut rng = ChaCha8Rng::seed_from_u64(seq ^ (u64::from(id.0) << 32));
    let key = NodeKey::generate(&mut rng);
    let statement = KeyStatement {
        network_id: NETWORK,
        node_id: id,
        machine_pub: machine.public(),
        node_pub: key.public(),
        seq,
        not_before,
        not_after: not_before + 90_000,
        capabilities,
    };
    (key, SignedStatement::sign(statement, machine).unwrap())
}

/// A whole KEY_ANNOUNCE frame to the node.
pub(crate) fn announce(statement: &SignedStatement) -> Vec<u8> {
    let src = statement.statement().node_id;
    KeyAnnounce { src, dst: ME, statement: *statement.bytes(), signature: *statement.signature() }.encode()
}

/// The sealed frames among what the node sent over a link.
pub(crate) fn sealed(seen: &[Seen], link: LinkId) -> Vec<Vec<u8>> {
    seen.iter()
        .filter_map(|e| match e {
            Seen::Sent(to, Sent::Sealed(frame)) if *to == link => Some(frame.clone()),
            _ => None,
        })
        .collect()
}

/// The announces among what the node sent over a link.
pub(crate) fn announces(seen: &[Seen], link: LinkId) -> Vec<KeyAnnounce> {
    seen.iter()
        .filter_map(|e| match e {
            Seen::Sent(to, Sent::Announce(announce)) if *to == link => Some(announce.clone()),
            _ => None,
        })
        .collect()
}

/// What the node sent over a link that is a control message.
pub(crate) fn messages(seen: &[Seen], link: LinkId) -> Vec<ControlMessage> {
    seen.iter()
        .filter_map(|e| match e {
            Seen::Sent(to, Sent::Message(message)) if *to == link => Some(message.clone()),
            _ => None,
        })
        .collect()
}

pub(crate) fn frame_type(frame: &[u8]) -> FrameType {
    FrameType::from_u8(frame[1]).unwrap()
}

/// A frame's flags without its flow's label.
pub(crate) fn flags(frame: &[u8]) -> Flags {
    Flags(frame[2]).without(Flags::LABEL)
}

pub(crate) fn ip(v4: Ipv4Addr) -> IpAddr {
    v4.into()
}
