//! Nodes: their processes, their disks, their clocks.

use super::*;
use edgelink_model::capabilities;
use edgelink_model::records::HostInfo;
use edgelink_node::{NodeConfig, P2pConfig, PathSettings, PersistedState, Target};
use edgelink_session::trust::Trust;
use zeroize::Zeroizing;

/// A node's host.
pub(super) struct Host {
    /// The machine key.
    pub(super) seed: [u8; 32],
    name: String,
    network: NetworkId,
    rng: ChaCha20Rng,
    /// How wrong the host's clock is, ms.
    clock_error_ms: i64,
    /// For how long the host was suspended so far: its monotonic clock did not run.
    lag: Duration,
    pub(super) asleep: Option<Asleep>,
    /// It has been a member: the shell has forgotten the pre-auth key.
    joined: bool,
    persisted: PersistedState,
    pub(super) node: Option<Node>,
    pub(super) links: BTreeMap<LinkId, StreamId>,
    pub(super) ready: bool,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) malice: Option<HostileNode>,
    pub(super) udp: Option<udp::UdpHost>,
}

pub(super) struct Asleep {
    since: Instant,
    suspended: bool,
}

impl Host {
    pub(super) fn network(&self) -> NetworkId {
        self.network
    }

    /// When the node wants to be woken, in the world's time; never while it sleeps.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.asleep {
            Some(_) => None,
            None => Some(self.node.as_ref()?.poll_timeout()? + self.lag),
        }
    }
}

impl World {
    /// A new node that joins the first network with a pre-authorized key.
    pub fn add_node(&mut self, name: &str) -> NodeIndex {
        self.add_node_with_clock(name, 0)
    }

    /// A new node whose clock is wrong by so many milliseconds.
    pub fn add_node_with_clock(&mut self, name: &str, clock_error_ms: i64) -> NodeIndex {
        self.add_node_to(name, NetworkId(1), clock_error_ms)
    }

    /// A new node for any network.
    pub fn add_node_to(&mut self, name: &str, network: NetworkId, clock_error_ms: i64) -> NodeIndex {
        self.add_node_at(name, network, clock_error_ms, Site::Off)
    }

    /// A node's host, its process not started yet.
    pub(super) fn prepare_node(&mut self, name: &str, network: NetworkId, clock_error_ms: i64) -> NodeIndex {
        let mut rng = self.fork();
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        self.push_host(name, network, clock_error_ms, seed, PersistedState::default(), rng)
    }

    /// A second machine from the image of the first: the same machine key, the same disk.
    pub fn clone_node(&mut self, original: NodeIndex) -> Option<NodeIndex> {
        let rng = self.fork();
        let host = self.nodes.get(original.0)?;
        let (name, network, seed) = (host.name.clone(), host.network, host.seed);
        let (error, joined, persisted) = (host.clock_error_ms, host.joined, host.persisted.clone());
        let copy = self.push_host(&name, network, error, seed, persisted, rng);
        if let Some(host) = self.nodes.get_mut(copy.0) {
            host.joined = joined;
        }
        self.start_node(copy);
        Some(copy)
    }

    fn push_host(
        &mut self,
        name: &str,
        network: NetworkId,
        clock_error_ms: i64,
        seed: [u8; 32],
        persisted: PersistedState,
        rng: ChaCha20Rng,
    ) -> NodeIndex {
        self.nodes.push(Host {
            seed,
            name: name.to_owned(),
            network,
            rng,
            clock_error_ms,
            lag: Duration::ZERO,
            asleep: None,
            joined: false,
            persisted,
            node: None,
            links: BTreeMap::new(),
            ready: false,
            addresses: Vec::new(),
            malice: None,
            udp: None,
        });
        NodeIndex(self.nodes.len() - 1)
    }

    /// Starts a node's process from what its disk holds.
    pub fn start_node(&mut self, index: NodeIndex) {
        self.streams.set_off(index.party(), false, self.now);
        let now = self.node_now(index.0);
        let Some(host) = self.nodes.get_mut(index.0).filter(|host| host.node.is_none()) else { return };
        let config = NodeConfig {
            controller_host: CONTROLLER.to_owned(),
            auth_key: (!host.joined).then(|| Zeroizing::new(auth_key(host.network))),
            host: HostInfo { hostname: host.name.clone(), os: "sim".to_owned(), ..HostInfo::default() },
            trust: Trust::Tofu,
            psk: None,
            // Some processors have AES instructions, others not.
            capabilities: capabilities::SUPER_PACKETS
                | if index.0.is_multiple_of(3) { 0 } else { capabilities::AES_256_GCM },
            paths: PathSettings::default(),
            p2p: P2pConfig { enabled: host.udp.is_some(), ..P2pConfig::default() },
        };
        let machine = MachineKey::from_seed(host.seed);
        host.node = Some(Node::new(config, machine, host.persisted.clone(), now, &mut host.rng));
        self.touched.insert(index.party());
        self.set_udp_power(index.0, true, false);
        self.tell_addresses(index.0);
    }

    /// Ends a node's process; its kernel closes its connections, its disk remains.
    pub fn kill_node(&mut self, index: NodeIndex) {
        self.streams.close_all(index.party(), self.now, &mut self.rng);
        self.forget_process(index);
    }

    /// Takes the power from a node's host: nobody is told.
    pub fn power_off_node(&mut self, index: NodeIndex) {
        self.streams.vanish(index.party());
        self.streams.set_off(index.party(), true, self.now);
        self.set_udp_power(index.0, false, false);
        self.forget_process(index);
    }

    fn forget_process(&mut self, index: NodeIndex) {
        self.wake_node(index);
        let Some(host) = self.nodes.get_mut(index.0) else { return };
        host.node = None;
        host.ready = false;
        host.addresses.clear();
        let links = std::mem::take(&mut host.links);
        self.forget_sockets(index.0);
        for stream in links.into_values() {
            self.leave(stream, End::Client);
        }
    }

    /// The host gets another address: its connections are dead, and nobody tells either end.
    pub fn roam_node(&mut self, index: NodeIndex) {
        let Some(host) = self.nodes.get(index.0) else { return };
        let streams: Vec<(LinkId, StreamId)> = host.links.iter().map(|(link, stream)| (*link, *stream)).collect();
        self.streams.vanish(index.party());
        // The kernel notices at the next write; the daemon is told by netlink at once. Both end in this word.
        for (link, stream) in streams {
            self.leave(stream, End::Client);
            self.link_lost(index.0, link, "the address is gone");
        }
    }

    /// Stops a node's process (SIGSTOP), or suspends its host: then its monotonic clock stands still as well.
    pub fn put_to_sleep(&mut self, index: NodeIndex, suspended: bool) {
        let now = self.now;
        let Some(host) = self.nodes.get_mut(index.0).filter(|host| host.asleep.is_none()) else { return };
        host.asleep = Some(Asleep { since: now, suspended });
        self.streams.set_asleep(index.party(), true, now);
        self.set_udp_power(index.0, true, true);
    }

    /// Lets it go on.
    pub fn wake_node(&mut self, index: NodeIndex) {
        let now = self.now;
        let Some(host) = self.nodes.get_mut(index.0) else { return };
        if let Some(asleep) = host.asleep.take() {
            if asleep.suspended {
                host.lag += now - asleep.since;
            }
            self.streams.set_asleep(index.party(), false, now);
            self.set_udp_power(index.0, true, false);
            self.touched.insert(index.party());
        }
    }

    /// Sets a host's clock: from now on it is wrong by so many milliseconds.
    /// Returns by how much that sets it forward.
    pub fn set_clock_error(&mut self, index: NodeIndex, clock_error_ms: i64) -> i64 {
        let Some(host) = self.nodes.get_mut(index.0) else { return 0 };
        clock_error_ms - std::mem::replace(&mut host.clock_error_ms, clock_error_ms)
    }

    /// Whether the node's process runs (asleep or not).
    pub fn is_running(&self, index: NodeIndex) -> bool {
        self.nodes.get(index.0).is_some_and(|host| host.node.is_some())
    }

    /// The node's time, on its own clocks.
    pub(super) fn node_now(&self, index: usize) -> Now {
        let now = self.server_now();
        let Some(host) = self.nodes.get(index) else { return now };
        let running = host.asleep.as_ref().filter(|a| a.suspended).map_or(self.now, |a| a.since);
        Now { mono: running - host.lag, unix_ms: now.unix_ms.saturating_add_signed(host.clock_error_ms) }
    }

    pub(super) fn awake_mut(&mut self, index: usize) -> Option<&mut Node> {
        self.nodes.get_mut(index).filter(|host| host.asleep.is_none())?.node.as_mut()
    }

    pub(super) fn node_timeout(&mut self, index: usize) {
        let now = self.node_now(index);
        let world = self.now;
        let Some(host) = self.nodes.get_mut(index) else { return };
        if host.poll_timeout().is_some_and(|at| at <= world)
            && let Some(node) = &mut host.node
        {
            node.handle_timeout(now, &mut host.rng);
            self.touched.insert(Party::Node(index));
        }
    }

    pub(super) fn arrive_at_node(&mut self, index: usize, link: LinkId, id: StreamId, arrival: Arrival) {
        let now = self.node_now(index);
        let at = self.elapsed();
        let Some(host) = self.nodes.get_mut(index) else { return };
        let Some(node) = host.node.as_mut().filter(|_| host.links.get(&link) == Some(&id)) else { return };
        self.touched.insert(Party::Node(index));
        match arrival {
            Arrival::Opened => node.link_connected(link, now),
            Arrival::Message(message) => {
                let (delivered, watch) = (&mut self.delivered, &mut self.watch);
                let mut tun = |_: &[u8], packet: &[u8]| {
                    watch.delivered(at, index, packet);
                    delivered.push(Delivered { node: NodeIndex(index), at, packet: packet.to_vec() });
                };
                node.handle_message(link, &mut message.to_vec(), now, &mut host.rng, &mut tun);
            }
            Arrival::Closed(why) => {
                self.leave(id, End::Client);
                self.link_lost(index, link, why);
            }
        }
    }

    fn link_lost(&mut self, index: usize, link: LinkId, why: &'static str) {
        let now = self.node_now(index);
        self.touched.insert(Party::Node(index));
        let Some(host) = self.nodes.get_mut(index) else { return };
        host.links.remove(&link);
        if let Some(node) = &mut host.node {
            node.link_closed(link, why, now, &mut host.rng);
        }
    }

    pub(super) fn drain_node(&mut self, index: usize) {
        loop {
            let Some(host) = self.nodes.get_mut(index).filter(|host| host.asleep.is_none()) else { return };
            let Some(event) = host.node.as_mut().and_then(Node::poll_event) else { return };
            match event {
                edge::Event::Dial { link, target } => self.dial_from_node(index, link, &target),
                edge::Event::Close { link, last } => {
                    if let Some(stream) = host.links.remove(&link) {
                        if let Some(last) = last {
                            self.transmit(stream, End::Server, last);
                        }
                        self.hang_up(stream, End::Client, "closed by the node");
                    }
                }
                edge::Event::Writable(link) => self.flush_link(index, link),
                edge::Event::Interface(interface) => {
                    host.addresses = interface.addresses.iter().map(|a| a.addr()).collect();
                }
                edge::Event::Ready => {
                    host.ready = true;
                    host.joined = true;
                }
                edge::Event::Expelled => {
                    host.ready = false;
                    host.addresses.clear();
                }
                // Nodes have no TCP between them here.
                edge::Event::Listen { .. } => {}
                edge::Event::OpenSocket { socket, port } => self.open_socket(index, socket, port),
                edge::Event::CloseSocket { socket } => self.close_socket(index, socket),
                edge::Event::Datagrams => self.flush_datagrams(index),
                edge::Event::Persist(state) => host.persisted = *state,
                // No packet of a scenario is larger than its path.
                edge::Event::Packet(_) => {}
                edge::Event::Pong { ping, rtt, .. } => self.pongs.push((NodeIndex(index), ping, rtt)),
            }
        }
    }

    fn dial_from_node(&mut self, index: usize, link: LinkId, target: &Target) {
        let (party, server) = match target {
            Target::Control => (Party::Controller, Server::Control(controller::Endpoint::Control, None)),
            Target::Relay { id, .. } => {
                let relay = self.relays.iter().position(|r| r.id == *id).unwrap_or_default();
                (Party::Relay(relay), Server::Relay(relay, relay::Endpoint::Data, None))
            }
            Target::Neighbour { .. } => return self.link_lost(index, link, "nobody listens"),
        };
        let stream = self.dial(Party::Node(index), Client::Node(index, link), party, server);
        if let Some(host) = self.nodes.get_mut(index) {
            host.links.insert(link, stream);
        }
    }

    pub(super) fn flush_link(&mut self, index: usize, link: LinkId) {
        let now = self.node_now(index);
        while let Some(host) = self.nodes.get_mut(index).filter(|host| host.asleep.is_none())
            && let Some(stream) = host.links.get(&link).copied()
            && self.streams.free(stream, End::Server) > 0
            && let Some(message) = host.node.as_mut().and_then(|node| node.poll_transmit(link, now))
        {
            self.transmit(stream, End::Server, message);
        }
    }
}
