//! Hostile processes: relays that meddle with what they forward, nodes that lie about who they are, and a controller that
//! tries to sit between two nodes. They meddle with genuine messages on their way, so that everything else they do is
//! what an honest one would do, and they get as far as possible.

use super::*;
use edgelink_auth::{KeyStatement, NodeKey, SignedStatement};
use edgelink_session::{DEFAULT_WINDOW, SessionTable};
use edgelink_wire::control::{self as messages, ControlMessage, proto};
use edgelink_wire::{Flags, FrameType, HEADER_LEN, data};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Frames that a hostile relay keeps.
const MEMORY: usize = 64;

/// What a hostile relay does with a quarter of the frames that it forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostileRelay {
    /// Changes a bit.
    Flip,
    /// Sends it back to where it came from, as it is or with source and destination exchanged.
    Reflect,
    /// Sends it again, or one from long ago.
    Replay,
    /// Loses it.
    Drop,
    /// Keeps it and sends it later.
    Delay,
    /// Sends it to somebody else as well.
    Misdeliver,
    /// Adds messages of its own: nonsense, and answers that nobody asked for.
    Inject,
    /// Tells the controller that every node is connected to it.
    LieAboutLocations,
}

/// What a hostile node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostileNode {
    /// Names another node as the source of its frames.
    ForgeSource,
    /// Names other nodes, in other networks too, as the destination of frames.
    ForgeDestination,
    /// Takes the addresses of all others for its own, and sends from them.
    SpoofAddresses,
    /// Takes every address for that of its first peer, so that packets for others are sealed for it.
    SpoofDestinations,
}

/// A hostile relay's state.
pub(super) struct Malice {
    kind: HostileRelay,
    memory: VecDeque<Vec<u8>>,
    rng: ChaCha20Rng,
}

/// A controller that puts itself between nodes: it hands out keys of its own as those of every peer.
pub(super) struct Impostor {
    machine: MachineKey,
    node_key: [u8; 32],
    seq: u64,
    /// What it could open if a node believed it, by the node that it plays.
    tables: BTreeMap<NodeId, SessionTable>,
}

impl World {
    /// Makes a relay hostile, or honest again.
    pub fn set_hostile_relay(&mut self, index: RelayIndex, kind: Option<HostileRelay>) {
        let rng = self.fork();
        if let Some(host) = self.relays.get_mut(index.0) {
            host.malice = kind.map(|kind| Malice { kind, memory: VecDeque::new(), rng });
        }
        // What it says of locations, it says when it connects.
        self.streams.reset_between(index.party(), Party::Controller, self.now, &mut self.rng);
        let lenient = self.relays.iter().any(|host| host.malice.is_some());
        self.watch.set_lenient(lenient, self.now - self.start);
    }

    /// Makes a node hostile, or honest again. It starts anew with what it wants to believe.
    pub fn set_hostile_node(&mut self, index: NodeIndex, kind: Option<HostileNode>) {
        if let Some(host) = self.nodes.get_mut(index.0) {
            host.malice = kind;
        }
        if self.is_running(index) {
            self.kill_node(index);
            self.start_node(index);
        }
    }

    /// Lets the controller hand out false keys for every peer from now on, or makes it honest again. It restarts, so that
    /// everybody gets a whole configuration.
    pub fn set_hostile_controller(&mut self, hostile: bool) {
        let mut rng = self.fork();
        self.impostor = hostile.then(|| {
            let machine = MachineKey::generate(&mut rng);
            let mut node_key = [0; 32];
            rng.fill_bytes(&mut node_key);
            let seq = self.server_now().unix_ms + 1_000_000;
            Impostor { machine, node_key, seq, tables: BTreeMap::new() }
        });
        self.kill_controller();
        self.start_controller();
    }

    /// What a message becomes on its way, if its sender is hostile.
    pub(super) fn corrupt(&mut self, sender: Party, receiver: Party, id: StreamId, message: Bytes) -> Vec<Bytes> {
        match (sender, receiver) {
            (Party::Relay(relay), Party::Node(_) | Party::Relay(_)) if self.is_hostile_relay(relay) => {
                self.meddle(relay, id, &message)
            }
            (Party::Relay(relay), Party::Controller) if self.is_hostile_relay(relay) => {
                self.lie_about_locations(relay, id, message)
            }
            (Party::Node(node), Party::Relay(_)) => {
                self.try_as_impostor(&message);
                match self.nodes.get(node).and_then(|host| host.malice) {
                    Some(kind @ (HostileNode::ForgeSource | HostileNode::ForgeDestination)) => {
                        vec![self.forge(kind, message)]
                    }
                    _ => vec![message],
                }
            }
            (Party::Controller, Party::Node(node)) => {
                let deluded = self
                    .nodes
                    .get(node)
                    .and_then(|host| host.malice)
                    .filter(|kind| matches!(kind, HostileNode::SpoofAddresses | HostileNode::SpoofDestinations));
                if deluded.is_none() && self.impostor.is_none() {
                    return vec![message];
                }
                self.rewrite(node, id, deluded, message)
            }
            _ => vec![message],
        }
    }

    /// A hostile relay's hands.
    fn meddle(&mut self, relay: usize, id: StreamId, message: &[u8]) -> Vec<Bytes> {
        let others = self.streams_of_relay(relay);
        let Some(malice) = self.relays.get_mut(relay).and_then(|host| host.malice.as_mut()) else { return Vec::new() };
        let mut own = Vec::new();
        let mut elsewhere = Vec::new();
        for frame in edgelink_wire::frames(message).flatten() {
            let mut raw = frame.raw.to_vec();
            let Ok(clear) = data::parse(&raw) else {
                own.extend(raw);
                continue;
            };
            if malice.rng.next_u32() % 4 != 0 {
                own.extend(&raw);
                malice.keep(raw);
                continue;
            }
            let somebody = pick(&others, &mut malice.rng);
            match malice.kind {
                HostileRelay::Flip => {
                    // The clear part tells more than the sealed one: source, destination, key, counter.
                    let clear = malice.rng.next_u32().is_multiple_of(2);
                    let room = if clear { data::PLAINTEXT_OFFSET } else { raw.len() } - HEADER_LEN;
                    let at = HEADER_LEN + malice.rng.next_u32() as usize % room;
                    if let Some(byte) = raw.get_mut(at) {
                        *byte ^= 1 << (malice.rng.next_u32() % 8);
                    }
                    own.extend(&raw);
                }
                HostileRelay::Reflect => {
                    own.extend(&raw);
                    if malice.rng.next_u32().is_multiple_of(2) {
                        let (source, destination) = (clear.src.0.to_be_bytes(), clear.dst.0.to_be_bytes());
                        put(&mut raw, HEADER_LEN, &destination);
                        put(&mut raw, HEADER_LEN + 4, &source);
                    }
                    elsewhere.extend(others.iter().map(|other| (*other, raw.clone())));
                }
                HostileRelay::Replay => {
                    own.extend(&raw);
                    let old = malice.memory.get(malice.rng.next_u32() as usize % malice.memory.len().max(1)).cloned();
                    let again = old.filter(|_| malice.rng.next_u32().is_multiple_of(2)).unwrap_or_else(|| raw.clone());
                    elsewhere.extend(others.iter().map(|other| (*other, again.clone())));
                    malice.keep(raw);
                }
                HostileRelay::Drop => {}
                HostileRelay::LieAboutLocations => own.extend(&raw),
                HostileRelay::Delay => {
                    if let Some(old) = malice.memory.pop_front() {
                        own.extend(old);
                    }
                    malice.keep(raw);
                }
                HostileRelay::Misdeliver => {
                    own.extend(&raw);
                    elsewhere.extend(somebody.map(|other| (other, raw.clone())));
                    if let Some(other) = somebody {
                        // Readdressed to whoever is there.
                        put(&mut raw, HEADER_LEN + 4, &(malice.rng.next_u32() % 8).to_be_bytes());
                        elsewhere.push((other, raw));
                    }
                }
                HostileRelay::Inject => {
                    own.extend(&raw);
                    elsewhere.extend(somebody.map(|other| (other, invent(&mut malice.rng, clear.src))));
                }
            }
        }
        for ((stream, to), bytes) in elsewhere {
            if stream == id {
                own.extend(bytes);
            } else {
                self.streams.send(stream, to, bytes.into(), self.now, &mut self.rng);
            }
        }
        if own.is_empty() { Vec::new() } else { vec![own.into()] }
    }

    /// A hostile node's frames, outside of what is sealed.
    fn forge(&mut self, kind: HostileNode, message: Bytes) -> Bytes {
        let mut out = message.to_vec();
        let somebody = 1 + self.rng.next_u32() % (self.nodes.len() as u32 + 1);
        for frame in edgelink_wire::frames_mut(&mut out).flatten() {
            let sealed = matches!(frame.frame_type(), Some(FrameType::Data | FrameType::P2pPing | FrameType::P2pPong));
            if sealed || frame.frame_type() == Some(FrameType::KeyAnnounce) {
                let at = HEADER_LEN + if kind == HostileNode::ForgeSource { 0 } else { 4 };
                put(frame.raw, at, &somebody.to_be_bytes());
            }
        }
        out.into()
    }

    /// Messages from the controller, as somebody wants the node to read them.
    fn rewrite(&mut self, node: usize, stream: StreamId, deluded: Option<HostileNode>, message: Bytes) -> Vec<Bytes> {
        let everybody: Vec<IpAddr> = self.nodes.iter().flat_map(|host| host.addresses.clone()).collect();
        let now = self.server_now();
        let network = self.nodes.get(node).map_or(NetworkId(0), |host| host.network());
        let reassembler = self.rewriters.entry(stream).or_default();
        let mut out = Vec::new();
        for frame in edgelink_wire::frames(&message).flatten() {
            let received = match frame.frame_type() {
                Some(ty) if ty.is_control() => reassembler.push(&frame),
                _ => {
                    out.extend_from_slice(frame.raw);
                    continue;
                }
            };
            let Ok(Some(received)) = received else { continue };
            let mut message = received.message;
            match deluded {
                Some(HostileNode::SpoofAddresses) => widen(&mut message, &everybody),
                Some(HostileNode::SpoofDestinations) => readdress(&mut message, &everybody),
                _ => {}
            }
            if let Some(impostor) = &mut self.impostor {
                impostor.swap_keys(&mut message, network, now);
            }
            let flags = if received.ack_requested { Flags::ACK_REQUESTED } else { Flags::NONE };
            if let Ok(frames) = messages::encode(&message, flags) {
                out.extend(frames);
            }
        }
        if out.is_empty() { Vec::new() } else { vec![out.into()] }
    }

    /// A node that believed the impostor would seal for its key: then it can open the frame.
    fn try_as_impostor(&mut self, message: &[u8]) {
        let Some(impostor) = &mut self.impostor else { return };
        let now = self.now;
        for frame in edgelink_wire::frames(message).flatten() {
            let Ok(clear) = data::parse(frame.raw) else { continue };
            let Some(table) = impostor.tables.get_mut(&clear.dst) else { continue };
            let Some(key) = self.database.node(clear.src).and_then(|row| row.key.as_ref()) else { continue };
            if let Ok(statement) = SignedStatement::verify(&key.statement, &key.signature) {
                // An older one than known changes nothing.
                let _ = table.set_peer(&statement, now);
            }
            if table.open(&mut frame.raw.to_vec(), now).is_ok() {
                let at = self.now - self.start;
                self.watch.violation(at, format_args!("node {} seals for an impostor of {}", clear.src, clear.dst));
            }
        }
    }

    fn is_hostile_relay(&self, relay: usize) -> bool {
        self.relays.get(relay).is_some_and(|host| host.malice.is_some())
    }

    /// Every node of every network is here, says a relay that lies.
    fn lie_about_locations(&mut self, relay: usize, id: StreamId, message: Bytes) -> Vec<Bytes> {
        let lies = |host: &relay::Host| host.malice.as_ref().is_some_and(|m| m.kind == HostileRelay::LieAboutLocations);
        let Some(own) = self.relays.get(relay).filter(|host| lies(host)).map(|host| host.id) else {
            return vec![message];
        };
        let everybody: Vec<proto::NodeLocation> = self
            .database
            .nodes()
            .map(|row| proto::NodeLocation { node_id: row.id.0, network_id: row.network_id.0, relay_ids: vec![own.0] })
            .collect();
        let reassembler = self.rewriters.entry(id).or_default();
        let mut out = Vec::new();
        for frame in edgelink_wire::frames(&message).flatten() {
            if frame.frame_type() != Some(FrameType::ServerNodeLoc) {
                out.extend_from_slice(frame.raw);
                continue;
            }
            if let Ok(Some(received)) = reassembler.push(&frame)
                && let ControlMessage::ServerNodeLoc(mut locations) = received.message
            {
                locations.nodes.retain(|said| everybody.iter().all(|known| known.node_id != said.node_id));
                locations.nodes.extend(everybody.clone());
                out.extend(messages::encode(&locations, Flags::NONE).unwrap_or_default());
            }
        }
        if out.is_empty() { Vec::new() } else { vec![out.into()] }
    }

    /// A relay's connections, with the ends towards which it sends.
    fn streams_of_relay(&self, relay: usize) -> Vec<(StreamId, End)> {
        let of = |ends: &Ends| match (ends.client, ends.server) {
            (_, Some(Server::Relay(index, _, Some(_)))) if index == relay => Some(End::Client),
            (Some(Client::Mesh(index, relay::MeshEnd::Linked(_))), _) if index == relay => Some(End::Server),
            _ => None,
        };
        self.ends.iter().filter_map(|(id, ends)| Some((*id, of(ends)?))).collect()
    }
}

impl Malice {
    fn keep(&mut self, frame: Vec<u8>) {
        self.memory.push_back(frame);
        if self.memory.len() > MEMORY {
            self.memory.pop_front();
        }
    }
}

impl Impostor {
    fn swap_keys(&mut self, message: &mut ControlMessage, network: NetworkId, now: Now) {
        let now_secs = now.unix_secs();
        let now = now.mono;
        let peers = match message {
            ControlMessage::Config(config) => &mut config.peers,
            ControlMessage::ConfigUpdate(update) => &mut update.peers,
            _ => return,
        };
        for peer in peers {
            self.seq += 1;
            let node_id = NodeId(peer.node_id);
            let key = NodeKey::from_bytes(self.node_key);
            let statement = KeyStatement {
                network_id: network,
                node_id,
                machine_pub: self.machine.public(),
                node_pub: key.public(),
                seq: self.seq,
                not_before: now_secs.saturating_sub(30),
                not_after: now_secs + 3600,
                capabilities: 0,
            };
            let Ok(signed) = SignedStatement::sign(statement, &self.machine) else { continue };
            peer.machine_pub = self.machine.public().0.to_vec();
            peer.statement = signed.bytes().to_vec();
            peer.signature = signed.signature().to_vec();
            let table = self.tables.entry(node_id).or_insert_with(|| {
                SessionTable::new(edgelink_session::SessionConfig {
                    network_id: network,
                    node_id,
                    psk: None,
                    window: DEFAULT_WINDOW,
                })
            });
            // Its sequence number is higher than any before.
            let _ = table.set_local(key, signed, now);
        }
    }
}

/// Makes a node believe that all these addresses are its own.
fn widen(message: &mut ControlMessage, addresses: &[IpAddr]) {
    let identity = match message {
        ControlMessage::AuthResponse(response) => response.identity.as_mut(),
        ControlMessage::Config(config) => config.identity.as_mut(),
        ControlMessage::ConfigUpdate(update) => update.identity.as_mut(),
        _ => None,
    };
    if let Some(identity) = identity {
        let more: Vec<Vec<u8>> = addresses.iter().map(|a| octets(*a)).collect();
        identity.addresses.extend(more.into_iter().filter(|a| !identity.addresses.contains(a)).collect::<Vec<_>>());
    }
    if let ControlMessage::Config(proto::Config { peers, .. })
    | ControlMessage::ConfigUpdate(proto::ConfigUpdate { peers, .. }) = message
    {
        // Whoever shares an address with it keeps one that tells them apart.
        peers.retain(|peer| !peer.addresses.is_empty());
    }
}

/// Makes a node believe that its first peer has all these addresses.
fn readdress(message: &mut ControlMessage, addresses: &[IpAddr]) {
    let peers = match message {
        ControlMessage::Config(config) => &mut config.peers,
        ControlMessage::ConfigUpdate(update) => &mut update.peers,
        _ => return,
    };
    if let Some((first, others)) = peers.split_first_mut() {
        first.addresses.extend(addresses.iter().map(|a| octets(*a)));
        for other in others {
            other.addresses.clear();
        }
    }
}

/// Something that no relay has a reason to send.
fn invent(rng: &mut ChaCha20Rng, about: NodeId) -> Vec<u8> {
    let code = 1001 + rng.next_u32() % 4 + 1000 * (rng.next_u32() % 4);
    match rng.next_u32() % 4 {
        0 => {
            let mut nonsense = vec![0; 1 + rng.next_u32() as usize % 300];
            rng.fill_bytes(&mut nonsense);
            nonsense
        }
        1 => {
            let error = proto::Error {
                code,
                answers_type: 0x10,
                about_node: about.0,
                message: "trust me".to_owned(),
                ..proto::Error::default()
            };
            messages::encode(&error, Flags::NONE).unwrap_or_default()
        }
        2 => messages::encode(&proto::AuthResponse::default(), Flags::NONE).unwrap_or_default(),
        _ => messages::encode(&proto::Config::default(), Flags::ACK_REQUESTED).unwrap_or_default(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

fn pick<T: Copy>(of: &[T], rng: &mut ChaCha20Rng) -> Option<T> {
    of.get(rng.next_u32() as usize % of.len().max(1)).copied()
}
