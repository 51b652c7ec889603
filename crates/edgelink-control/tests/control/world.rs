//! A controller with a database that accepts everything, a clock, and nodes that speak by hand.

use bytes::Bytes;
use edgelink_auth::token::{AuthClaims, Issuer, TokenKeys};
use edgelink_auth::{KeyStatement, MachineKey, NodeKey, SignedStatement, challenge};
use edgelink_control::{ConnId, Control, ControlConfig, Event, StoreOp};
use edgelink_model::records::{
    Change, HostInfo, NetworkRecord, NodeRecord, RevocationRecord, ServerKind, ServerRecord, Snapshot,
};
use edgelink_model::{ErrorCode, NetworkId, NodeId, Now, ServerId};
use edgelink_wire::control::{ControlMessage, Reassembler, encode, proto};
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::{Flags, FrameType, frames};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use std::time::{Duration, Instant};

pub(crate) const HOST: &str = "vpn.example.com";
pub(crate) const START_MS: u64 = 1_700_000_000_000;

/// A controller with a database that accepts everything, and a clock.
pub(crate) struct World {
    pub(crate) control: Control,
    /// Whom the database knew at the start.
    pub(crate) nodes: Vec<NodeRecord>,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) start: Instant,
    pub(crate) elapsed: Duration,
}

impl World {
    pub(crate) fn new(nodes: Vec<NodeRecord>) -> Self {
        Self::with_config(nodes, ControlConfig { hosts: [HOST.to_owned()].into(), ..ControlConfig::default() })
    }

    pub(crate) fn with_config(nodes: Vec<NodeRecord>, config: ControlConfig) -> Self {
        Self::with_keys(nodes, config, &TokenKeys::generate(&mut ChaCha8Rng::seed_from_u64(8)))
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    pub(crate) fn with_keys(nodes: Vec<NodeRecord>, config: ControlConfig, keys: &TokenKeys) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(7);
        let network = |id, name: &str| NetworkRecord {
            id: NetworkId(id),
            name: name.to_owned(),
            subnet: "10.0.1.0/24".parse().unwrap(),
            subnet6: None,
            description: String::new(),
        };
        let relay = ServerRecord {
            id: ServerId(1),
            name: "builtin".to_owned(),
            kind: ServerKind::Builtin,
            url: None,
            region: String::new(),
            relay: true,
            stun: false,
            stun_ip: None,
            stun_ip2: None,
            stun_port: 3478,
            enabled: true,
        };
        let snapshot = Snapshot {
            version: 10,
            networks: [network(1, "default"), network(2, "other")]
                .into_iter()
                .chain((3..=20).map(|id| network(id, &format!("network-{id}"))))
                .collect(),
            nodes: nodes.clone(),
            servers: vec![relay],
            ..Snapshot::default()
        };
        let control = Control::new(config, Issuer::new(keys), snapshot);
        Self { control, nodes, rng, start: Instant::now(), elapsed: Duration::ZERO }
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono: self.start + self.elapsed, unix_ms: START_MS + self.elapsed.as_millis() as u64 }
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.elapsed += by;
        let now = self.now();
        self.control.handle_timeout(now, &mut self.rng);
    }

    pub(crate) fn connect(&mut self) -> ConnId {
        let now = self.now();
        self.control.connect(now)
    }

    pub(crate) fn send(&mut self, conn: ConnId, message: &[u8]) {
        let now = self.now();
        self.control.handle_message(conn, message, now, &mut self.rng);
    }

    pub(crate) fn apply(&mut self, id: u64, change: Change) {
        let now = self.now();
        self.control.apply(id, vec![(id, change)], now, &mut self.rng);
    }

    pub(crate) fn events(&mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        while let Some(event) = self.control.poll_event() {
            match event {
                Event::Send { conn, message } => seen.extend(decode(&message).into_iter().map(|m| Seen::Sent(conn, m))),
                Event::Close { conn } => seen.push(Seen::Closed(conn)),
                Event::Store(op) => seen.push(Seen::Store(op)),
                Event::Revoked(record) => seen.push(Seen::Revoked(record)),
            }
        }
        seen
    }

    /// Hello and proof of `client`, with a good auth_token if it is known; returns the events of the proof.
    pub(crate) fn authenticate(&mut self, conn: ConnId, client: &Client) -> Vec<Seen> {
        let token = self.auth_token(client, "test");
        self.authenticate_with(conn, client, &token)
    }

    pub(crate) fn authenticate_with(&mut self, conn: ConnId, client: &Client, token: &str) -> Vec<Seen> {
        self.send(conn, &client.hello());
        let [Seen::Sent(_, ControlMessage::AuthResponse(response))] = &self.events()[..] else {
            panic!("no challenge")
        };
        let proof = client.proof_with(&response.challenge, HOST, token);
        self.send(conn, &proof);
        self.events()
    }

    /// What the controller gave `client` an hour ago; nothing for a machine that it does not know.
    pub(crate) fn auth_token(&self, client: &Client, jti: &str) -> String {
        let machine = client.machine.public();
        let Some(node) = self.nodes.iter().find(|node| node.machine_key_pub == machine.0) else {
            return String::new();
        };
        let issued = self.now().unix_secs() - 3600;
        let claims =
            AuthClaims::new(node.id, &machine, node.network_id, node.virtual_ip, issued, issued + 86_400, jti.into());
        self.control.issuer().auth(&claims).unwrap()
    }

    /// A member all the way to its first CONFIG.
    pub(crate) fn join(&mut self, client: &Client, node: NodeId, seq: u64) -> (ConnId, proto::Config) {
        self.join_network(client, node, NetworkId(1), seq)
    }

    pub(crate) fn join_network(
        &mut self,
        client: &Client,
        node: NodeId,
        network: NetworkId,
        seq: u64,
    ) -> (ConnId, proto::Config) {
        let conn = self.connect();
        let events = self.authenticate(conn, client);
        assert!(matches!(&events[..], [Seen::Sent(_, ControlMessage::AuthResponse(_))]), "{events:?}");
        let announce = client.announce_in(network, node, seq, START_MS / 1000);
        self.send(conn, &announce);
        let events = self.events();
        let config = events
            .iter()
            .find_map(|e| match e {
                Seen::Sent(to, ControlMessage::Config(config)) if *to == conn => Some(config.clone()),
                _ => None,
            })
            .unwrap_or_else(|| panic!("no CONFIG in {events:?}"));
        (conn, config)
    }
}

#[derive(Debug, PartialEq)]
pub(crate) enum Seen {
    Sent(ConnId, ControlMessage),
    Closed(ConnId),
    Store(StoreOp),
    Revoked(RevocationRecord),
}

pub(crate) fn decode(message: &Bytes) -> Vec<ControlMessage> {
    let mut reassembler = Reassembler::new();
    frames(message)
        .filter_map(|frame| {
            let frame = frame.unwrap();
            (frame.ty != FrameType::Pong as u8).then(|| reassembler.push(&frame).unwrap()).flatten()
        })
        .map(|received| received.message)
        .collect()
}

pub(crate) struct Client {
    pub(crate) machine: MachineKey,
    pub(crate) auth_key: String,
}

impl Client {
    pub(crate) fn new(seed: u8) -> Self {
        Self { machine: MachineKey::from_seed([seed; 32]), auth_key: String::new() }
    }

    /// One of more than 255.
    pub(crate) fn numbered(number: u32) -> Self {
        let mut seed = [9; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        Self { machine: MachineKey::from_seed(seed), auth_key: String::new() }
    }

    pub(crate) fn record(&self, id: u32, authorized: bool) -> NodeRecord {
        NodeRecord {
            id: NodeId(id),
            network_id: NetworkId(1),
            name: format!("node-{id}"),
            machine_key_pub: self.machine.public().0,
            key: None,
            virtual_ip: authorized.then(|| [10, 0, 1, id as u8].into()),
            virtual_ip6: None,
            host: HostInfo { hostname: "host".to_owned(), ..HostInfo::default() },
            authorized,
            last_seen: None,
        }
    }

    pub(crate) fn hello(&self) -> Vec<u8> {
        message(ControlMessage::AuthRequest(proto::AuthRequest {
            protocol_version: 1,
            machine_pub: self.machine.public().0.to_vec(),
            host_info: Some(proto::HostInfo { hostname: "host".to_owned(), ..Default::default() }),
            ..Default::default()
        }))
    }

    pub(crate) fn proof(&self, challenge: &[u8], host: &str) -> Vec<u8> {
        self.proof_with(challenge, host, "")
    }

    pub(crate) fn proof_with(&self, challenge: &[u8], host: &str, token: &str) -> Vec<u8> {
        let challenge = challenge.try_into().unwrap();
        let signed = challenge::control_message(host, &challenge, &self.machine.public());
        message(ControlMessage::AuthRequest(proto::AuthRequest {
            signature: self.machine.sign(&signed).to_vec(),
            host: host.to_owned(),
            auth_key: self.auth_key.clone(),
            token: token.to_owned(),
            ..Default::default()
        }))
    }

    pub(crate) fn announce(&self, node: NodeId, seq: u64, now_secs: u64) -> Vec<u8> {
        self.announce_in(NetworkId(1), node, seq, now_secs)
    }

    pub(crate) fn announce_in(&self, network_id: NetworkId, node: NodeId, seq: u64, now_secs: u64) -> Vec<u8> {
        let statement = KeyStatement {
            network_id,
            node_id: node,
            machine_pub: self.machine.public(),
            node_pub: NodeKey::generate(&mut ChaCha8Rng::seed_from_u64(seq)).public(),
            seq,
            not_before: now_secs,
            not_after: now_secs + 90_000,
            capabilities: 1,
        };
        let signed = SignedStatement::sign(statement, &self.machine).unwrap();
        KeyAnnounce { src: node, dst: NodeId(0), statement: *signed.bytes(), signature: *signed.signature() }.encode()
    }
}

pub(crate) fn message(message: ControlMessage) -> Vec<u8> {
    encode(&message, Flags::default()).unwrap()
}

pub(crate) fn error_code(events: &[Seen]) -> Option<ErrorCode> {
    events.iter().find_map(|e| match e {
        Seen::Sent(_, ControlMessage::Error(error)) => ErrorCode::from_u16(error.code as u16),
        _ => None,
    })
}
