//! Two nodes behind NATs, a relay and a controller between them, STUN servers, and one virtual clock.

use crate::nat::Nat;
use edgelink_api::local::{Path, Peer};
use edgelink_auth::MachineKey;
use edgelink_model::records::HostInfo;
use edgelink_model::{NodeId, Now};
use edgelink_node::{Event, LinkId, Node, NodeConfig, P2pConfig, PathSettings, PersistedState, SocketId, Target};
use edgelink_session::trust::Trust;
use edgelink_wire::control::{ControlMessage, Reassembler, encode, proto};
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::packet::{UDP, checksum};
use edgelink_wire::ping::Ping;
use edgelink_wire::stun::Message;
use edgelink_wire::stun::binding::{Request, Response, Success};
use edgelink_wire::{Flags, FrameType, frames, keepalive};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
const START_MS: u64 = 1_700_000_000_000;
const PORT: u16 = 41_641;
/// One way between any two places of the world.
const DELAY: Duration = Duration::from_millis(25);
const LAN_DELAY: Duration = Duration::from_millis(1);

/// Both hosts' STUN servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stun {
    /// One server with two addresses (RFC 5780).
    TwoAddresses,
    /// Two servers with one address each.
    TwoServers,
}

pub(crate) struct Setup {
    pub(crate) stun: Stun,
    /// The controller forwards P2P_INIT and P2P_ENDPOINT.
    pub(crate) controller_forwards: bool,
    pub(crate) enabled: [bool; 2],
    /// Index of the NAT that each is behind; `None`: on the open Internet.
    pub(crate) behind: [Option<usize>; 2],
    pub(crate) nats: Vec<Nat>,
    pub(crate) addresses: [Ipv4Addr; 2],
    /// The id of their network.
    pub(crate) network: u32,
}

impl Setup {
    /// Each behind a NAT of its own.
    pub(crate) fn behind(a: &str, b: &str) -> Self {
        Self {
            stun: Stun::TwoAddresses,
            controller_forwards: true,
            enabled: [true; 2],
            behind: [Some(0), Some(1)],
            nats: vec![Nat::named([203, 0, 114, 1].into(), a), Nat::named([203, 0, 114, 2].into(), b)],
            addresses: [[192, 168, 1, 10].into(), [192, 168, 2, 20].into()],
            network: 7,
        }
    }
}

struct Host {
    node: Node,
    rng: ChaCha8Rng,
    ip: Ipv4Addr,
    behind: Option<usize>,
    control: Option<LinkId>,
    relay: Option<LinkId>,
    reassembler: Reassembler,
    announced: Option<KeyAnnounce>,
    /// Open sockets and their ports.
    sockets: BTreeMap<SocketId, u16>,
    next_port: u16,
    /// Where it listens for TCP.
    listening: Vec<SocketAddr>,
    /// Ends of TCP connections that are open, with what has come and was not taken yet.
    streams: BTreeMap<LinkId, (Far, Vec<u8>)>,
    /// Dialled neighbours, with the time.
    dialled: Vec<(Duration, SocketAddr)>,
    /// IP packets of the core's own making for the TUN.
    complaints: Vec<Vec<u8>>,
    /// Payloads that came out of the TUN, with the time.
    received: Vec<(Duration, u32)>,
}

/// The other end of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Far {
    /// Of the other host.
    Host(LinkId),
    /// A test plays it: what is written there is kept under this number.
    Test(usize),
}

enum What {
    /// A neighbour's SYN.
    Connect {
        link: LinkId,
        from: SocketAddr,
        to: SocketAddr,
    },
    /// The answer to it: the other end's link, or a refusal.
    Connected(LinkId, Option<LinkId>),
    Bytes(LinkId, Vec<u8>),
    Closed(LinkId),
    /// Frames from the relay.
    Relay(Vec<u8>),
    Control(Box<ControlMessage>),
    /// A connection was dialled anew.
    Dialled(LinkId),
    Datagram {
        port: u16,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
}

pub(crate) struct Duo {
    hosts: [Host; 2],
    start: Instant,
    pub(crate) elapsed: Duration,
    queue: BTreeMap<(Duration, u64), (usize, What)>,
    seq: u64,
    pub(crate) nats: Vec<Nat>,
    network: u32,
    stun: Stun,
    controller_forwards: bool,
    /// Every datagram that a node sent: when, who, whereto, what.
    pub(crate) sent: Vec<(Duration, usize, SocketAddr, Vec<u8>)>,
    /// DATA frames that went through the relay.
    pub(crate) relayed: usize,
    /// Datagrams larger than this vanish.
    pub(crate) narrow: Option<usize>,
    /// UDP between the two vanishes.
    pub(crate) cut: bool,
    /// So does TCP, or it is refused as if nobody listened.
    pub(crate) tcp_cut: bool,
    pub(crate) tcp_refused: bool,
    /// From SYN to SYN-ACK.
    pub(crate) tcp_delay: Duration,
    /// What is written to TCP connections is kept from the other end.
    pub(crate) swallow_streams: bool,
    /// What the nodes wrote to the connections that tests have made, and whether they have closed them.
    pub(crate) to_test: Vec<(Vec<u8>, bool)>,
    next_payload: u32,
    /// Numbers of the packets, with who sent them.
    numbers: Vec<(usize, u32)>,
    /// What was written to TCP connections between the two, with who wrote it.
    said: Vec<(usize, Vec<u8>)>,
    /// Bytes of the packets that are sent.
    pub(crate) size: u16,
    /// Hosts that sleep: what comes is lost, and no deadline is met.
    pub(crate) asleep: [bool; 2],
    /// Connections through which nothing passes any more, though nobody has closed them.
    dead: BTreeSet<(usize, LinkId)>,
    joined: bool,
    /// Signalling to each of the two, whatever way it takes, takes so much longer.
    pub(crate) signal_delay: [Duration; 2],
}

impl Duo {
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    pub(crate) fn new(setup: Setup) -> Self {
        let start = Instant::now();
        let now = Now { mono: start, unix_ms: START_MS };
        let host = |index: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(index as u64 + 1);
            let config = NodeConfig {
                controller_host: "vpn.example.com".to_owned(),
                auth_key: None,
                host: HostInfo::default(),
                trust: Trust::Tofu,
                psk: None,
                capabilities: 1,
                paths: PathSettings::default(),
                p2p: P2pConfig { enabled: setup.enabled[index], port: PORT, ..P2pConfig::default() },
            };
            let mut node = Node::new(config, machine(index), PersistedState::default(), now, &mut rng);
            let net = format!("{}/24", setup.addresses[index]).parse().unwrap();
            node.set_local_addresses(&[net], now);
            Host {
                node,
                rng,
                ip: setup.addresses[index],
                behind: setup.behind[index],
                control: None,
                relay: None,
                reassembler: Reassembler::new(),
                announced: None,
                sockets: BTreeMap::new(),
                next_port: 50_000,
                listening: Vec::new(),
                streams: BTreeMap::new(),
                dialled: Vec::new(),
                complaints: Vec::new(),
                received: Vec::new(),
            }
        };
        let mut this = Self {
            hosts: [host(0), host(1)],
            start,
            elapsed: Duration::ZERO,
            queue: BTreeMap::new(),
            seq: 0,
            nats: setup.nats,
            network: setup.network,
            stun: setup.stun,
            controller_forwards: setup.controller_forwards,
            sent: Vec::new(),
            relayed: 0,
            narrow: None,
            cut: false,
            tcp_cut: false,
            tcp_refused: false,
            tcp_delay: 2 * LAN_DELAY,
            swallow_streams: false,
            to_test: Vec::new(),
            next_payload: 0,
            numbers: Vec::new(),
            said: Vec::new(),
            size: 1400,
            asleep: [false; 2],
            dead: BTreeSet::new(),
            joined: false,
            signal_delay: [Duration::ZERO; 2],
        };
        this.join();
        this
    }

    fn join(&mut self) {
        for index in 0..2 {
            self.drain(index);
            self.admit(index);
            self.drain(index);
        }
        for index in 0..2 {
            let announce = self.hosts[1 - index].announced.clone().expect("no key was announced");
            let peer = proto::Peer {
                node_id: id(1 - index).0,
                name: format!("node-{}", 1 - index),
                machine_pub: machine(1 - index).public().0.to_vec(),
                statement: announce.statement.to_vec(),
                signature: announce.signature.to_vec(),
                addresses: identity(1 - index, self.network).addresses,
                online: true,
                ..Default::default()
            };
            let config = proto::Config {
                version: 1,
                network: Some(proto::Network {
                    id: self.network,
                    name: "default".to_owned(),
                    subnets: vec![proto::Prefix { address: vec![10, 7, 0, 0], length: 24 }],
                }),
                peers: vec![peer],
                relays: vec![proto::Relay { id: 1, path: "/ws/data".to_owned(), ..Default::default() }],
                stun_servers: self.stun_servers(),
                ..Default::default()
            };
            self.control(index, ControlMessage::Config(config));
        }
        self.advance(Duration::ZERO);
        for index in 0..2 {
            self.hosts[index].relay.expect("the relay was not dialled");
            self.connect_relay(index);
        }
        self.joined = true;
        self.advance(SECOND);
    }

    /// The control channel's handshake.
    fn admit(&mut self, index: usize) {
        let link = self.hosts[index].control.unwrap();
        let now = self.now();
        self.hosts[index].node.link_connected(link, now);
        let server_time_ms = now.unix_ms;
        let challenge = proto::AuthResponse { challenge: vec![9; 32], server_time_ms, ..Default::default() };
        self.control(index, ControlMessage::AuthResponse(challenge));
        let tokens = proto::Tokens { relay_token: "token".to_owned(), ..Default::default() };
        let admission = proto::AuthResponse {
            identity: Some(identity(index, self.network)),
            tokens: Some(tokens),
            ..Default::default()
        };
        self.control(index, ControlMessage::AuthResponse(admission));
    }

    fn connect_relay(&mut self, index: usize) {
        let link = self.hosts[index].relay.unwrap();
        let now = self.now();
        self.hosts[index].node.link_connected(link, now);
        let challenge = proto::AuthResponse { challenge: vec![3; 32], server_id: 1, ..Default::default() };
        for message in [challenge, proto::AuthResponse::default()] {
            let frame = encode(&ControlMessage::AuthResponse(message), Flags::NONE).unwrap();
            self.relayed_to(index, &frame);
        }
    }

    /// Sleeps: what comes is lost, and every connection with it, though nobody says so. A suspended host's monotonic clock
    /// stands still meanwhile; that of a stopped process goes on.
    pub(crate) fn sleep(&mut self, index: usize, time: Duration) {
        self.asleep[index] = true;
        let links = [self.hosts[index].control, self.hosts[index].relay];
        self.dead.extend(links.into_iter().flatten().map(|link| (index, link)));
        let end = self.elapsed + time;
        while self.elapsed < end {
            self.send(1 - index);
            self.advance((20 * MS).min(end - self.elapsed));
        }
        self.asleep[index] = false;
    }

    /// As the shell does when the kernel says so.
    pub(crate) fn resume(&mut self, index: usize) {
        let now = self.now();
        self.hosts[index].node.resumed(now);
        self.drain(index);
    }

    /// As the shell does for connections whose address is gone.
    pub(crate) fn strand(&mut self, index: usize) {
        let now = self.now();
        let host = &mut self.hosts[index];
        let links: Vec<LinkId> = [host.control, host.relay].into_iter().flatten().collect();
        self.dead.extend(links.iter().map(|link| (index, *link)));
        host.node.links_stranded(&links, now, &mut host.rng);
        self.drain(index);
    }

    fn stun_servers(&self) -> Vec<proto::StunServer> {
        let server = |server_id, ip: u8, ip2: Option<u8>| proto::StunServer {
            server_id,
            ip: vec![198, 51, 101, ip],
            ip2: ip2.map(|ip| vec![198, 51, 101, ip]).unwrap_or_default(),
            port: 3478,
        };
        match self.stun {
            Stun::TwoAddresses => vec![server(1, 1, Some(2))],
            Stun::TwoServers => vec![server(1, 1, None), server(2, 2, None)],
        }
    }

    pub(crate) fn now(&self) -> Now {
        let passed = u64::try_from(self.elapsed.as_millis()).unwrap();
        Now { mono: self.start + self.elapsed, unix_ms: START_MS + passed }
    }

    pub(crate) fn peer(&self, index: usize) -> Peer {
        self.hosts[index].node.status("wss://vpn.example.com", self.now()).peers.remove(0)
    }

    pub(crate) fn path(&self, index: usize) -> Path {
        self.peer(index).path
    }

    pub(crate) fn status(&self, index: usize) -> edgelink_api::local::Status {
        self.hosts[index].node.status("wss://vpn.example.com", self.now())
    }

    /// One packet from a node to the other; returns the number that it carries.
    pub(crate) fn send(&mut self, from: usize) -> u32 {
        self.send_sized(from, self.size, true)
    }

    /// One packet of so many bytes, which may be cut or not.
    pub(crate) fn send_sized(&mut self, from: usize, size: u16, whole: bool) -> u32 {
        self.next_payload += 1;
        let payload = self.next_payload;
        self.numbers.push((from, payload));
        let mut frame = [vec![0; 10], packet(from, payload, size, whole)].concat();
        let now = self.now();
        self.hosts[from].node.handle_tun(&mut frame, now);
        self.drain(from);
        payload
    }

    /// How many packets were refused as too large.
    pub(crate) fn complaints(&self, index: usize) -> usize {
        self.hosts[index].complaints.len()
    }

    pub(crate) fn open_sockets(&self, index: usize) -> usize {
        self.hosts[index].sockets.len()
    }

    /// TCP connections that a node has, whoever has dialled.
    pub(crate) fn open_streams(&self, index: usize) -> usize {
        self.hosts[index].streams.len()
    }

    pub(crate) fn listening(&self, index: usize) -> &[SocketAddr] {
        &self.hosts[index].listening
    }

    /// Neighbours that a node has dialled, with the time.
    pub(crate) fn dialled(&self, index: usize) -> &[(Duration, SocketAddr)] {
        &self.hosts[index].dialled
    }

    /// Numbers of the packets that a host has sent.
    pub(crate) fn sent_by(&self, index: usize) -> Vec<u32> {
        self.numbers.iter().filter(|(from, _)| *from == index).map(|(_, number)| *number).collect()
    }

    pub(crate) fn paths(&self, index: usize) -> Vec<edgelink_api::local::KnownPath> {
        self.hosts[index].node.paths_to(id(1 - index), self.now())
    }

    /// All TCP connections between the two are reset.
    pub(crate) fn reset_streams(&mut self) {
        for index in 0..2 {
            for link in self.hosts[index].streams.keys().copied().collect::<Vec<_>>() {
                self.push(Duration::ZERO, index, What::Closed(link));
            }
        }
        self.advance(Duration::ZERO);
    }

    /// Something that is no frame comes over the TCP connections to the second host.
    pub(crate) fn corrupt_streams(&mut self) {
        for link in self.hosts[1].streams.keys().copied().collect::<Vec<_>>() {
            self.push(Duration::ZERO, 1, What::Bytes(link, vec![0xff; 100]));
        }
        self.advance(2 * LAN_DELAY);
    }

    /// A stranger connects to a node; its place in [`Self::to_test`], if it is let in.
    pub(crate) fn stranger(&mut self, index: usize, from: SocketAddr) -> Option<usize> {
        let now = self.now();
        let link = self.hosts[index].node.stream_accepted(from, now)?;
        self.to_test.push((Vec::new(), false));
        let number = self.to_test.len() - 1;
        self.hosts[index].streams.insert(link, (Far::Test(number), Vec::new()));
        Some(number)
    }

    /// The stranger says something.
    pub(crate) fn say(&mut self, index: usize, stranger: usize, bytes: &[u8]) {
        let mut ends = self.hosts[index].streams.iter();
        if let Some(link) = ends.find(|(_, (far, _))| *far == Far::Test(stranger)).map(|(link, _)| *link) {
            self.push(Duration::ZERO, index, What::Bytes(link, bytes.to_vec()));
        }
        self.advance(Duration::ZERO);
    }

    /// What a node says when it dials, and to whom it is said: the frames of the hello.
    pub(crate) fn hello(&mut self, index: usize) -> Option<Vec<u8>> {
        let said: Vec<&Vec<u8>> = self.said.iter().filter(|(from, _)| *from == index).map(|(_, said)| said).collect();
        said.first().map(|said| (*said).clone())
    }

    pub(crate) fn received(&self, index: usize) -> &[(Duration, u32)] {
        &self.hosts[index].received
    }

    /// A packet every `interval` from `from`, and as many back.
    pub(crate) fn stream(&mut self, time: Duration, interval: Duration) {
        let end = self.elapsed + time;
        while self.elapsed < end {
            self.send(0);
            self.send(1);
            self.advance(interval);
        }
    }

    pub(crate) fn netcheck(&self, index: usize) -> edgelink_api::local::Netcheck {
        self.hosts[index].node.netcheck("wss://vpn.example.com")
    }

    /// The router maps a port to the node's, and the node is told.
    pub(crate) fn map_port(&mut self, index: usize) -> SocketAddr {
        let inner = SocketAddr::new(self.hosts[index].ip.into(), PORT);
        let nat = &mut self.nats[self.hosts[index].behind.unwrap()];
        nat.forwarded = Some((PORT, inner));
        let external = SocketAddr::new(nat.public.into(), PORT);
        let now = self.now();
        self.hosts[index].node.set_port_mappings(&[external], now);
        self.drain(index);
        external
    }

    pub(crate) fn unmap_port(&mut self, index: usize) {
        let now = self.now();
        self.hosts[index].node.set_port_mappings(&[], now);
        self.drain(index);
    }

    pub(crate) fn move_host(&mut self, index: usize, ip: Ipv4Addr, behind: Option<usize>) {
        self.hosts[index].ip = ip;
        self.hosts[index].behind = behind;
        let now = self.now();
        let net = format!("{ip}/24").parse().unwrap();
        self.hosts[index].node.set_local_addresses(&[net], now);
        self.drain(index);
    }

    /// The controller tells a node a peer's endpoints.
    pub(crate) fn tell(&mut self, index: usize, message: proto::P2pEndpoint) {
        self.control(index, ControlMessage::P2pEndpoint(message));
        self.drain(index);
    }

    /// A node asks STUN servers anew.
    pub(crate) fn look_again(&mut self, index: usize) {
        let now = self.now();
        self.hosts[index].node.check_nat(now);
        let host = &mut self.hosts[index];
        host.node.handle_timeout(now, &mut host.rng);
        self.drain(index);
    }

    /// A datagram from anywhere into a host's socket.
    pub(crate) fn inject(&mut self, index: usize, from: SocketAddr, bytes: &[u8]) {
        self.push(Duration::ZERO, index, What::Datagram { port: PORT, from, bytes: bytes.to_vec() });
        self.advance(Duration::ZERO);
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        let end = self.elapsed + by;
        for _ in 0..2_000_000 {
            for index in 0..2 {
                self.drain(index);
            }
            let timer = |host: &Host| host.node.poll_timeout().map(|at| at.saturating_duration_since(self.start));
            let awake = self.hosts.iter().zip(self.asleep).filter(|(_, asleep)| !asleep).map(|(host, _)| host);
            let timers = awake.filter_map(timer);
            let due = self.queue.keys().next().map(|(at, _)| *at);
            let Some(next) = timers.chain(due).min().filter(|at| *at <= end) else {
                self.elapsed = end;
                return;
            };
            self.elapsed = self.elapsed.max(next);
            if due == Some(next) {
                let (_, (index, what)) = self.queue.pop_first().unwrap();
                self.deliver(index, what);
            } else {
                let now = self.now();
                for (host, _) in self.hosts.iter_mut().zip(self.asleep).filter(|(_, asleep)| !asleep) {
                    host.node.handle_timeout(now, &mut host.rng);
                }
            }
        }
        panic!("the world spins at {:?}", self.elapsed);
    }

    fn is_dead(&self, index: usize, link: Option<LinkId>) -> bool {
        link.is_some_and(|link| self.dead.contains(&(index, link)))
    }

    fn push(&mut self, delay: Duration, index: usize, what: What) {
        self.seq += 1;
        self.queue.insert((self.elapsed + delay, self.seq), (index, what));
    }

    fn deliver(&mut self, index: usize, what: What) {
        let (now, elapsed) = (self.now(), self.elapsed);
        if self.asleep[index] {
            return;
        }
        match what {
            What::Relay(_) if self.is_dead(index, self.hosts[index].relay) => {}
            What::Control(_) if self.is_dead(index, self.hosts[index].control) => {}
            What::Relay(frame) => self.relayed_to(index, &frame),
            What::Control(message) => self.control(index, *message),
            What::Dialled(link) if self.hosts[index].control == Some(link) => self.admit(index),
            What::Dialled(link) if self.hosts[index].relay == Some(link) => self.connect_relay(index),
            What::Dialled(_) => {}
            What::Connect { link, from, to } => {
                let host = &mut self.hosts[index];
                let here = host.listening.contains(&to) && !self.tcp_refused;
                let accepted = if here { host.node.stream_accepted(from, now) } else { None };
                if let Some(accepted) = accepted {
                    host.streams.insert(accepted, (Far::Host(link), Vec::new()));
                }
                let back = self.tcp_delay / 2;
                self.push(back, 1 - index, What::Connected(link, accepted));
            }
            What::Connected(link, None) => {
                let host = &mut self.hosts[index];
                host.node.link_closed(link, "refused", now, &mut host.rng);
            }
            What::Connected(link, Some(far)) => {
                self.hosts[index].streams.insert(link, (Far::Host(far), Vec::new()));
                self.hosts[index].node.link_connected(link, now);
            }
            What::Bytes(link, bytes) => {
                let host = &mut self.hosts[index];
                let Some((_, buffer)) = host.streams.get_mut(&link) else { return };
                buffer.extend(bytes);
                let received = &mut host.received;
                let mut tun = |_: &[u8], packet: &[u8]| received.push((elapsed, payload_of(packet)));
                let taken = host.node.handle_stream(link, buffer, now, &mut tun);
                buffer.drain(..taken);
                assert!(buffer.len() < host.node.stream_buffer(link), "no room for the rest of a frame");
            }
            What::Closed(link) => {
                let host = &mut self.hosts[index];
                if host.streams.remove(&link).is_some() {
                    host.node.link_closed(link, "closed by the other end", now, &mut host.rng);
                }
            }
            What::Datagram { port, from, mut bytes } => {
                let host = &mut self.hosts[index];
                let socket = host.sockets.iter().find(|(_, at)| **at == port).map(|(socket, _)| *socket);
                let Some(socket) = socket else { return };
                let received = &mut host.received;
                let mut tun = |_: &[u8], packet: &[u8]| received.push((elapsed, payload_of(packet)));
                host.node.handle_datagram(socket, from, &mut bytes, now, &mut tun);
            }
        }
    }

    fn relayed_to(&mut self, index: usize, frame: &[u8]) {
        let (now, elapsed) = (self.now(), self.elapsed);
        let host = &mut self.hosts[index];
        let received = &mut host.received;
        let mut tun = |_: &[u8], packet: &[u8]| received.push((elapsed, payload_of(packet)));
        host.node.handle_message(host.relay.unwrap(), &mut frame.to_vec(), now, &mut host.rng, &mut tun);
    }

    fn control(&mut self, index: usize, message: ControlMessage) {
        let now = self.now();
        let host = &mut self.hosts[index];
        let mut frame = encode(&message, Flags::NONE).unwrap();
        host.node.handle_message(host.control.unwrap(), &mut frame, now, &mut host.rng, &mut |_, _| {});
    }

    fn drain(&mut self, index: usize) {
        while let Some(event) = self.hosts[index].node.poll_event() {
            match event {
                Event::Dial { link, target } => {
                    match target {
                        Target::Control => self.hosts[index].control = Some(link),
                        Target::Relay { .. } => self.hosts[index].relay = Some(link),
                        Target::Neighbour { address } => {
                            self.connect(index, link, address);
                            continue;
                        }
                    }
                    if self.joined {
                        // TCP, TLS, the upgrade and the authentication.
                        self.push(8 * DELAY, index, What::Dialled(link));
                    }
                }
                Event::Listen { addresses } => self.hosts[index].listening = addresses,
                Event::Close { link, .. } => {
                    if let Some((far, _)) = self.hosts[index].streams.remove(&link) {
                        match far {
                            Far::Host(far) => self.push(LAN_DELAY, 1 - index, What::Closed(far)),
                            Far::Test(number) => self.to_test[number].1 = true,
                        }
                    }
                }
                Event::Writable(link) if self.hosts[index].streams.contains_key(&link) => {
                    let now = self.now();
                    while let Some(bytes) = self.hosts[index].node.poll_transmit(link, now) {
                        match self.hosts[index].streams[&link].0 {
                            // What TCP cannot deliver now it will not deliver in time.
                            Far::Host(_) if self.tcp_cut => {}
                            Far::Host(far) => {
                                self.said.push((index, bytes.to_vec()));
                                if self.swallow_streams {
                                    continue;
                                }
                                // In pieces that end anywhere.
                                let at = self.said.len() * 37 % bytes.len();
                                for piece in [&bytes[..at], &bytes[at..]] {
                                    self.push(LAN_DELAY, 1 - index, What::Bytes(far, piece.to_vec()));
                                }
                            }
                            Far::Test(number) => self.to_test[number].0.extend_from_slice(&bytes),
                        }
                    }
                }
                Event::Writable(link) => {
                    let now = self.now();
                    while let Some(message) = self.hosts[index].node.poll_transmit(link, now) {
                        self.written(index, link, &message);
                    }
                }
                Event::OpenSocket { socket, port } => {
                    let now = self.now();
                    let host = &mut self.hosts[index];
                    host.next_port += 1;
                    let port = if port == PORT { port } else { host.next_port };
                    host.sockets.insert(socket, port);
                    self.hosts[index].node.socket_opened(socket, port, now);
                }
                Event::CloseSocket { socket } => {
                    self.hosts[index].sockets.remove(&socket);
                }
                Event::Packet(packet) => self.hosts[index].complaints.push(packet),
                Event::Datagrams => {
                    let now = self.now();
                    while let Some(transmit) = self.hosts[index].node.poll_datagram(now) {
                        let port = self.hosts[index].sockets[&transmit.socket];
                        for bytes in transmit.bytes.chunks(transmit.segment) {
                            self.datagram(index, port, transmit.to, bytes);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// A node dials a neighbour.
    fn connect(&mut self, index: usize, link: LinkId, to: SocketAddr) {
        self.hosts[index].dialled.push((self.elapsed, to));
        let from = SocketAddr::new(self.hosts[index].ip.into(), 60_000);
        let other = &self.hosts[1 - index];
        let together = other.behind == self.hosts[index].behind && other.behind.is_some();
        if together && to.ip() == IpAddr::V4(other.ip) && !self.tcp_cut {
            self.push(self.tcp_delay / 2, 1 - index, What::Connect { link, from, to });
        }
    }

    fn written(&mut self, index: usize, link: LinkId, message: &[u8]) {
        let control = self.hosts[index].control == Some(link);
        if self.is_dead(index, Some(link)) {
            return;
        }
        for frame in frames(message) {
            let frame = frame.unwrap();
            match frame.frame_type().unwrap() {
                FrameType::Ping => {
                    let pong = Ping::parse(frame.payload).unwrap().encode(FrameType::Pong);
                    if control {
                        let now = self.now();
                        let host = &mut self.hosts[index];
                        host.node.handle_message(link, &mut pong.to_vec(), now, &mut host.rng, &mut |_, _| {});
                    } else {
                        self.push(2 * DELAY, index, What::Relay(pong.to_vec()));
                    }
                }
                FrameType::KeyAnnounce if control => {
                    self.hosts[index].announced = Some(KeyAnnounce::parse(frame.payload).unwrap());
                }
                FrameType::Data | FrameType::P2pPing | FrameType::P2pPong | FrameType::KeyAnnounce => {
                    self.relayed += usize::from(frame.ty == FrameType::Data.as_u8());
                    let late = if frame.ty == FrameType::P2pPing.as_u8() {
                        self.signal_delay[1 - index]
                    } else {
                        Duration::ZERO
                    };
                    self.push(2 * DELAY + late, 1 - index, What::Relay(frame.raw.to_vec()));
                }
                _ => {
                    let Some(received) = self.hosts[index].reassembler.push(&frame).unwrap() else { continue };
                    let from = id(index).0;
                    let forwarded = match received.message {
                        ControlMessage::P2pInit(message) => {
                            ControlMessage::P2pInit(proto::P2pInit { node_id: from, ..message })
                        }
                        // What is for the controller itself goes no further.
                        ControlMessage::P2pEndpoint(message) if message.node_id == 0 => continue,
                        ControlMessage::P2pEndpoint(message) => {
                            ControlMessage::P2pEndpoint(proto::P2pEndpoint { node_id: from, ..message })
                        }
                        _ => continue,
                    };
                    if self.controller_forwards {
                        let late = self.signal_delay[1 - index];
                        self.push(2 * DELAY + late, 1 - index, What::Control(Box::new(forwarded)));
                    }
                }
            }
        }
    }

    fn datagram(&mut self, index: usize, port: u16, to: SocketAddr, bytes: &[u8]) {
        self.sent.push((self.elapsed, index, to, bytes.to_vec()));
        if bytes.len() == keepalive::LEN {
            assert_eq!(bytes[..2], [1, 0x34]);
        }
        let (ip, behind) = (self.hosts[index].ip, self.hosts[index].behind);
        let from = SocketAddr::new(ip.into(), port);
        // On the same network.
        let other = 1 - index;
        let neighbour = self.hosts[other].behind == behind && behind.is_some();
        if neighbour && to.ip() == IpAddr::V4(self.hosts[other].ip) {
            if !self.cut {
                let port = to.port();
                self.push(LAN_DELAY, other, What::Datagram { port, from, bytes: bytes.to_vec() });
            }
            return;
        }
        let outer = match behind {
            Some(nat) => self.nats[nat].outbound(from, to),
            None => Some(from),
        };
        let Some(outer) = outer else { return };
        let IpAddr::V4(target) = to.ip() else { return };
        if target.octets()[..3] == [198, 51, 101] {
            return self.stun_server(outer, to, bytes);
        }
        if self.cut || self.narrow.is_some_and(|narrow| bytes.len() > narrow) {
            return;
        }
        let host = &self.hosts[other];
        let inner = match host.behind {
            None => Some(to),
            // Hairpinning is not offered.
            Some(nat) if self.nats[nat].public == target && host.behind != behind => {
                self.nats[nat].inbound(outer, to.port())
            }
            Some(_) => None,
        };
        if let Some(inner) = inner.filter(|inner| inner.ip() == IpAddr::V4(host.ip)) {
            let what = What::Datagram { port: inner.port(), from: outer, bytes: bytes.to_vec() };
            self.push(DELAY, other, what);
        }
    }

    fn stun_server(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let (request, _) = Request::parse(&Message::parse(bytes).unwrap()).unwrap();
        let two = self.stun == Stun::TwoAddresses;
        let alone = |ip: Ipv4Addr| if two { Ipv4Addr::new(198, 51, 101, 3 - ip.octets()[3]) } else { ip };
        let IpAddr::V4(ip) = to.ip() else { return };
        if request.change_ip && !two {
            return;
        }
        let other_port = if to.port() == 3478 { 3479 } else { 3478 };
        let origin = SocketAddr::new(
            if request.change_ip { alone(ip) } else { ip }.into(),
            if request.change_port { other_port } else { to.port() },
        );
        let other = two.then(|| SocketAddr::new(alone(ip).into(), other_port));
        let response = Response {
            transaction: request.transaction,
            result: Ok(Success { mapped: from, origin: Some(origin), other }),
            fingerprint: request.fingerprint,
        };
        let (bytes, len) = response.encode();
        for index in 0..2 {
            let ip = IpAddr::V4(self.hosts[index].ip);
            let inner = match self.hosts[index].behind {
                None => Some(from),
                Some(nat) if IpAddr::V4(self.nats[nat].public) == from.ip() => {
                    self.nats[nat].inbound(origin, from.port())
                }
                Some(_) => None,
            };
            if let Some(inner) = inner.filter(|inner| inner.ip() == ip) {
                let what = What::Datagram { port: inner.port(), from: origin, bytes: bytes[..len].to_vec() };
                self.push(2 * DELAY, index, what);
            }
        }
    }
}

fn machine(index: usize) -> MachineKey {
    MachineKey::from_seed([index as u8 + 1; 32])
}

pub(crate) fn id(index: usize) -> NodeId {
    NodeId(100 + index as u32)
}

fn overlay(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 7, 0, 100 + index as u8)
}

fn identity(index: usize, network_id: u32) -> proto::NodeIdentity {
    proto::NodeIdentity {
        node_id: id(index).0,
        network_id,
        name: format!("node-{index}"),
        addresses: vec![overlay(index).octets().to_vec()],
    }
}

/// A UDP packet between the overlay addresses that carries a number.
fn packet(from: usize, payload: u32, len: u16, whole: bool) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0, if whole { 0x40 } else { 0 }, 0, 64, UDP, 0, 0]);
    packet.extend(overlay(from).octets());
    packet.extend(overlay(1 - from).octets());
    let sum = checksum(0, &packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0, 7, 0, 7]);
    packet.extend((len - 20).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload.to_be_bytes());
    packet.resize(len.into(), 0);
    packet
}

fn payload_of(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[28..32].try_into().unwrap())
}
