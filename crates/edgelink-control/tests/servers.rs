//! `/ws/server`: relays as the controller's core sees them (specification §5.2, §5.3; DESIGN §3, §4, §6).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use bytes::Bytes;
use edgelink_auth::token::{AuthClaims, Issuer, ServerClaims, TokenKeys};
use edgelink_auth::{KeyStatement, MachineKey, NodeKey, SignedStatement, challenge};
use edgelink_control::{ConnId, Control, ControlConfig, Event, StoreOp};
use edgelink_model::records::{
    Change, HostInfo, NetworkRecord, NodeRecord, RevocationRecord, RevocationTarget, ServerKind, ServerRecord, Snapshot,
};
use edgelink_model::{ErrorCode, NetworkId, NodeId, Now, ServerId};
use edgelink_wire::control::{ControlMessage, Reassembler, encode, proto};
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::{Flags, FrameType, frames};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use std::time::{Duration, Instant};

const START_MS: u64 = 1_700_000_000_000;
const MS: u64 = 1_000;

struct World {
    control: Control,
    rng: ChaCha8Rng,
    start: Instant,
    elapsed: Duration,
    version: u64,
}

type Sent = (ConnId, ControlMessage);

impl World {
    /// Relay 1 is built in, 2 and 3 are external; nodes 10, 11 and 12 are in network 1, node 20 is in 2.
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let network = |id, name: &str| NetworkRecord {
            id: NetworkId(id),
            name: name.to_owned(),
            subnet: "10.0.1.0/24".parse().unwrap(),
            subnet6: None,
            description: String::new(),
        };
        let snapshot = Snapshot {
            version: 10,
            networks: vec![network(1, "default"), network(2, "other")],
            nodes: vec![node(10, 1), node(11, 1), node(12, 1), node(20, 2)],
            servers: vec![server(1), server(2), server(3)],
            ..Snapshot::default()
        };
        let control = Control::new(ControlConfig::default(), Issuer::new(&TokenKeys::generate(&mut rng)), snapshot);
        Self { control, rng, start: Instant::now(), elapsed: Duration::ZERO, version: 10 }
    }

    fn now(&self) -> Now {
        Now { mono: self.start + self.elapsed, unix_ms: START_MS + self.elapsed.as_millis() as u64 }
    }

    fn ms(&mut self, ms: u64) {
        let end = self.elapsed + Duration::from_millis(ms);
        while let Some(at) = self.control.poll_timeout().filter(|at| *at <= self.start + end) {
            self.elapsed = self.elapsed.max(at - self.start);
            self.control.handle_timeout(self.now(), &mut self.rng);
        }
        self.elapsed = end;
    }

    fn apply(&mut self, change: Change) {
        self.version += 1;
        let now = self.now();
        self.control.apply(self.version, vec![(self.version, change)], now, &mut self.rng);
    }

    fn say(&mut self, conn: ConnId, message: impl Into<ControlMessage>) {
        let bytes = encode(&message.into(), Flags::default()).unwrap();
        self.say_bytes(conn, &bytes);
    }

    fn say_bytes(&mut self, conn: ConnId, bytes: &[u8]) {
        let now = self.now();
        self.control.handle_message(conn, bytes, now, &mut self.rng);
    }

    fn events(&mut self) -> (Vec<Sent>, Vec<ConnId>, Vec<StoreOp>) {
        let (mut sent, mut closed, mut ops) = (vec![], vec![], vec![]);
        while let Some(event) = self.control.poll_event() {
            match event {
                Event::Send { conn, message } => sent.extend(decode(&message).into_iter().map(|m| (conn, m))),
                Event::Close { conn } => closed.push(conn),
                Event::Store(op) => ops.push(op),
                Event::Revoked(_) => {}
            }
        }
        (sent, closed, ops)
    }

    fn token(&mut self, id: u32) -> String {
        let now = self.now();
        self.control.server_token(ServerId(id), now, &mut self.rng).unwrap()
    }

    /// A relay connects, is accepted, registers and reports its nodes; its CONFIG is returned.
    fn relay(&mut self, id: u32, nodes: &[(u32, u32)]) -> (ConnId, proto::Config, proto::ServerNodeLoc) {
        let token = self.token(id);
        let now = self.now();
        self.events();
        let conn = self.control.connect_server(now);
        self.say(conn, hello(&token));
        let (sent, ..) = self.events();
        assert!(
            matches!(&sent[..], [(to, ControlMessage::AuthResponse(r))] if *to == conn && r.server_id == id),
            "{sent:?}"
        );
        self.say(conn, proto::ServerRegister { version: "1".to_owned(), ..Default::default() });
        let (sent, ..) = self.events();
        let Some((ControlMessage::Config(config), ControlMessage::ServerNodeLoc(loc))) =
            sent.iter().find_map(|(to, message)| match message {
                ControlMessage::Config(_) if *to == conn => {
                    let loc = sent.iter().find(|(to, m)| *to == conn && matches!(m, ControlMessage::ServerNodeLoc(_)));
                    Some((message.clone(), loc.unwrap().1.clone()))
                }
                _ => None,
            })
        else {
            panic!("no CONFIG in {sent:?}")
        };
        self.say(conn, located(id, nodes, true));
        self.ms(100);
        (conn, config, loc)
    }

    /// What the controller gave a node before.
    fn auth_token(&self, id: u32) -> String {
        let (iat, network) = (START_MS / 1000, NetworkId(if id < 20 { 1 } else { 2 }));
        let claims = AuthClaims::new(NodeId(id), &machine(id).public(), network, None, iat, iat + 86_400, "t".into());
        self.control.issuer().auth(&claims).unwrap()
    }

    fn join(&mut self, id: u32) -> ConnId {
        let machine = machine(id);
        let now = self.now();
        self.events();
        let conn = self.control.connect(now);
        self.say(
            conn,
            proto::AuthRequest { protocol_version: 1, machine_pub: machine.public().0.to_vec(), ..Default::default() },
        );
        let (sent, ..) = self.events();
        let ControlMessage::AuthResponse(response) = &sent[0].1 else { panic!() };
        let nonce: [u8; 32] = response.challenge.as_slice().try_into().unwrap();
        let signed = challenge::control_message("host", &nonce, &machine.public());
        self.say(
            conn,
            proto::AuthRequest {
                signature: machine.sign(&signed).to_vec(),
                host: "host".to_owned(),
                token: self.auth_token(id),
                ..Default::default()
            },
        );
        let network_id = NetworkId(if id < 20 { 1 } else { 2 });
        let statement = KeyStatement {
            network_id,
            node_id: NodeId(id),
            machine_pub: machine.public(),
            node_pub: NodeKey::generate(&mut self.rng).public(),
            seq: 1,
            not_before: START_MS / 1000,
            not_after: START_MS / 1000 + 90_000,
            capabilities: 0,
        };
        let signed = SignedStatement::sign(statement, &machine).unwrap();
        let announce =
            KeyAnnounce { src: NodeId(id), dst: NodeId(0), statement: *signed.bytes(), signature: *signed.signature() };
        self.say_bytes(conn, &announce.encode());
        self.ms(100);
        self.events();
        conn
    }

    /// What nodes are told of the place of a node now.
    fn place(&self, node: u32) -> Vec<u32> {
        let place = self.control.locations().find(|(id, _)| id.0 == node);
        place.map(|(_, relays)| relays.into_iter().map(|relay| relay.0).collect()).unwrap_or_default()
    }

    fn locations_told(&mut self, conn: ConnId) -> Vec<(u32, u32, Vec<u32>)> {
        let (sent, ..) = self.events();
        sent.into_iter()
            .filter(|(to, _)| *to == conn)
            .filter_map(|(_, message)| match message {
                ControlMessage::ServerNodeLoc(message) => Some(message.nodes),
                _ => None,
            })
            .flatten()
            .map(|entry| (entry.node_id, entry.network_id, entry.relay_ids))
            .collect()
    }
}

fn decode(message: &Bytes) -> Vec<ControlMessage> {
    let mut reassembler = Reassembler::new();
    frames(message)
        .filter_map(|frame| {
            let frame = frame.unwrap();
            (frame.ty != FrameType::Pong as u8).then(|| reassembler.push(&frame).unwrap()).flatten()
        })
        .map(|received| received.message)
        .collect()
}

fn machine(id: u32) -> MachineKey {
    let mut seed = [3; 32];
    seed[..4].copy_from_slice(&id.to_be_bytes());
    MachineKey::from_seed(seed)
}

fn node(id: u32, network: u32) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        network_id: NetworkId(network),
        name: format!("node-{id}"),
        machine_key_pub: machine(id).public().0,
        key: None,
        virtual_ip: Some([10, 0, 1, id as u8].into()),
        virtual_ip6: None,
        host: HostInfo::default(),
        authorized: true,
        last_seen: None,
    }
}

fn server(id: u32) -> ServerRecord {
    let external = id > 1;
    ServerRecord {
        id: ServerId(id),
        name: format!("relay-{id}"),
        kind: if external { ServerKind::External } else { ServerKind::Builtin },
        url: external.then(|| format!("wss://relay-{id}.example.com/ws/data")),
        region: String::new(),
        relay: true,
        stun: false,
        stun_ip: None,
        stun_ip2: None,
        stun_port: 3478,
        enabled: true,
    }
}

fn hello(token: &str) -> proto::AuthRequest {
    proto::AuthRequest { protocol_version: 1, token: token.to_owned(), ..Default::default() }
}

fn located(relay: u32, nodes: &[(u32, u32)], full: bool) -> proto::ServerNodeLoc {
    let entry = |(node, network): &(u32, u32)| proto::NodeLocation {
        node_id: *node,
        network_id: *network,
        relay_ids: vec![relay],
    };
    proto::ServerNodeLoc { nodes: nodes.iter().map(entry).collect(), full }
}

fn gone(node: u32) -> proto::ServerNodeLoc {
    let entry = proto::NodeLocation { node_id: node, ..Default::default() };
    proto::ServerNodeLoc { nodes: vec![entry], full: false }
}

fn latencies(rtts: &[(u32, u64)], active: &[u32], connected: &[u32]) -> proto::LatencyReport {
    let latency = |(server_id, ms): &(u32, u64)| proto::Latency { server_id: *server_id, rtt_us: ms * MS };
    proto::LatencyReport {
        latencies: rtts.iter().map(latency).collect(),
        active_peers: active.to_vec(),
        connected_relays: connected.to_vec(),
    }
}

fn ids(relays: &[proto::Relay]) -> Vec<u32> {
    relays.iter().map(|relay| relay.id).collect()
}

#[test]
fn a_relay_gets_keys_relays_tokens_and_where_they_are() {
    let mut world = World::new();
    let (_, config, loc) = world.relay(2, &[]);
    assert_eq!(ids(&config.relays), [1, 2, 3]);
    let keys = config.relay_keys.unwrap();
    let verifier =
        edgelink_auth::token::RelayVerifier::from_parts(&keys.algorithm, &keys.key, &keys.relay_auth_pub).unwrap();
    let addresses: Vec<_> = config.mesh_tokens.iter().map(|t| (t.server_id, t.url.as_str(), t.path.as_str())).collect();
    assert_eq!(addresses, [(1, "", "/ws/mesh"), (3, "wss://relay-3.example.com/ws/mesh", "")]);
    for token in &config.mesh_tokens {
        let claims = verifier.verify_mesh(&token.token, ServerId(token.server_id), START_MS / 1000, 0).unwrap();
        assert_eq!((claims.server_id, claims.exp - claims.iat), (ServerId(2), 3600));
        assert!(verifier.verify_mesh(&token.token, ServerId(2), START_MS / 1000, 0).is_err(), "for that relay only");
    }
    assert!(loc.full);
    assert_eq!(world.control.servers_online().collect::<Vec<_>>(), [ServerId(2)]);
}

#[test]
fn bad_tokens_are_refused_with_the_reason() {
    let mut world = World::new();
    let other = Issuer::new(&TokenKeys::generate(&mut ChaCha8Rng::seed_from_u64(9)));
    let claims = |record: &ServerRecord, life| {
        ServerClaims::new(record, START_MS / 1000 - 1_000, START_MS / 1000 - 1_000 + life, "j".to_owned())
    };
    let good = world.token(2);
    let mine =
        |world: &World, record: &ServerRecord, life| world.control.issuer().server(&claims(record, life)).unwrap();
    let cases = [
        ("forged", other.server(&claims(&server(2), 9_999)).unwrap(), ErrorCode::InvalidToken),
        ("expired", mine(&world, &server(2), 10), ErrorCode::TokenExpired),
        ("deleted server", mine(&world, &server(77), 9_999), ErrorCode::InvalidToken),
        ("nothing", String::new(), ErrorCode::InvalidToken),
    ];
    let fresh = ServerClaims::new(&server(77), START_MS / 1000 - 59, START_MS / 1000 + 9_999, "j".to_owned());
    let fresh = world.control.issuer().server(&fresh).unwrap();
    let cases = cases.into_iter().chain([("added a moment ago", fresh, ErrorCode::Unavailable)]);
    for (what, token, code) in cases {
        let now = world.now();
        let conn = world.control.connect_server(now);
        world.say(conn, hello(&token));
        let (sent, closed, _) = world.events();
        let [(_, ControlMessage::Error(error))] = &sent[..] else { panic!("{what}: {sent:?}") };
        assert_eq!((error.error_code(), &closed[..]), (Some(code), &[conn][..]), "{what}");
        assert!(!world.control.is_authenticated(conn));
    }
    // Anything but AUTH_REQUEST first, and data ever.
    for message in [encode(&proto::ServerRegister::default(), Flags::default()).unwrap(), vec![1, 0x10, 0, 0, 0]] {
        let now = world.now();
        let conn = world.control.connect_server(now);
        world.say_bytes(conn, &message);
        assert_eq!(world.events().1, [conn]);
    }
    let now = world.now();
    let conn = world.control.connect_server(now);
    world.say(conn, hello(&good));
    assert!(world.control.is_authenticated(conn));
    world.events();
    world.say_bytes(conn, &[1, 0x10, 0, 0, 0]);
    assert_eq!(world.events().1, [conn], "no data on the server channel");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever a server says, accepted or not: no panic, and other relays go on.
    #[test]
    fn arbitrary_bytes_from_a_server(
        messages in proptest::collection::vec(
            (0u8..=255, proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)),
            1..20,
        ),
        authenticated: bool,
    ) {
        let mut world = World::new();
        let (three, ..) = world.relay(3, &[(10, 1)]);
        let conn = if authenticated {
            world.relay(2, &[(11, 1)]).0
        } else {
            let now = world.now();
            world.control.connect_server(now)
        };
        for (ty, payload) in &messages {
            let mut frame = vec![1, *ty, 0, 0, payload.len() as u8];
            frame.extend(payload);
            world.say_bytes(conn, &frame);
            world.ms(100);
        }
        world.events();
        world.say(three, located(3, &[(10, 1), (12, 1)], true));
        proptest::prop_assert_eq!(world.place(12), [3]);
    }
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let mut world = World::new();
    let now = world.now();
    let conn = world.control.connect_server(now);
    world.ms(9_999);
    assert_eq!(world.events().1, []);
    world.ms(1);
    assert_eq!(world.events().1, [conn]);
    let (relay, ..) = world.relay(2, &[]);
    world.ms(60_000);
    assert_eq!(world.events().1, []);
    world.ms(20_000);
    let (_, closed, ops) = world.events();
    assert_eq!(closed, [relay]);
    assert_eq!(ops, [StoreOp::ServerSeen { server: ServerId(2), online: false }]);
}

#[test]
fn places_reach_the_other_relays_coalesced() {
    let mut world = World::new();
    let (two, ..) = world.relay(2, &[(10, 1)]);
    let (three, _, loc) = world.relay(3, &[]);
    let places: Vec<_> = loc.nodes.iter().map(|n| (n.node_id, n.network_id, n.relay_ids.clone())).collect();
    assert_eq!(places, [(10, 1, vec![2])], "what is known already");
    world.events();
    world.say(two, located(2, &[(11, 1)], false));
    world.say(two, gone(10));
    world.say(two, located(2, &[(20, 2)], false));
    assert_eq!(world.locations_told(three), []);
    world.ms(50);
    assert_eq!(world.locations_told(three), [(10, 1, vec![]), (11, 1, vec![2]), (20, 2, vec![2])]);
    // A report that says nothing new is not passed on.
    world.say(two, located(2, &[(11, 1), (20, 2)], true));
    world.ms(50);
    assert_eq!(world.locations_told(three), []);
}

#[test]
fn a_relay_cannot_place_what_it_does_not_know() {
    let mut world = World::new();
    let (two, ..) = world.relay(2, &[]);
    world.say(two, located(2, &[(10, 2), (99, 1), (11, 1)], true));
    assert_eq!((world.place(10), world.place(99), world.place(11)), (vec![], vec![], vec![2]));
}

#[test]
fn the_nodes_own_word_counts_once_it_has_spoken() {
    let mut world = World::new();
    let (_two, ..) = world.relay(2, &[(10, 1)]);
    let (_three, ..) = world.relay(3, &[(10, 1)]);
    assert_eq!(world.place(10), [2, 3], "before any report the relays' word suffices");
    let node = world.join(10);
    world.ms(6_000);
    world.say(node, latencies(&[], &[], &[2]));
    assert_eq!(world.place(10), [2], "relay 3 lies, or is late");
    world.say(node, latencies(&[], &[], &[2, 3]));
    assert_eq!(world.place(10), [2, 3]);
    world.say(node, latencies(&[], &[], &[]));
    assert_eq!(world.place(10), Vec::<u32>::new());
    let now = world.now();
    world.control.disconnect(node, now);
    assert_eq!(world.place(10), [2, 3], "while it is away from the controller, the relays' word suffices again");
}

#[test]
fn a_lost_relays_word_stays_for_90_s() {
    let mut world = World::new();
    let (two, ..) = world.relay(2, &[(10, 1)]);
    let (three, ..) = world.relay(3, &[]);
    world.events();
    let now = world.now();
    world.control.disconnect(two, now);
    for _ in 0..8 {
        world.ms(10_000);
        world.say_bytes(three, &ping());
    }
    assert_eq!(world.place(10), [2]);
    world.ms(16_000);
    assert_eq!(world.place(10), Vec::<u32>::new());
    assert_eq!(world.locations_told(three), [(10, 1, vec![])]);
}

fn ping() -> [u8; 17] {
    edgelink_wire::ping::Ping { sent_us: 1, seq: 1 }.encode(FrameType::Ping)
}

#[test]
fn an_expelled_node_is_nowhere() {
    let mut world = World::new();
    let (_two, ..) = world.relay(2, &[(10, 1)]);
    let (three, ..) = world.relay(3, &[]);
    world.events();
    world.apply(Change::Node(NodeRecord { authorized: false, ..node(10, 1) }));
    world.ms(60);
    assert_eq!(world.locations_told(three), [(10, 1, vec![])]);
    world.apply(Change::Node(node(10, 1)));
    world.ms(60);
    assert_eq!(world.locations_told(three), [(10, 1, vec![2])], "and is back when it is admitted again");
}

#[test]
fn revocations_reach_every_relay_at_once() {
    let mut world = World::new();
    let (two, ..) = world.relay(2, &[]);
    let (three, ..) = world.relay(3, &[]);
    world.events();
    let target = RevocationTarget::Node { node_id: NodeId(10), issued_before: 5 };
    world.apply(Change::Revoked(RevocationRecord { id: "r".to_owned(), target, expires_at: START_MS / 1000 + 99 }));
    let (sent, ..) = world.events();
    let told: Vec<ConnId> = sent
        .iter()
        .filter(|(_, m)| matches!(m, ControlMessage::ServerBlacklist(b) if b.revocations[0].node_id == 10 && !b.full))
        .map(|(to, _)| *to)
        .collect();
    assert_eq!(told, [two, three], "without waiting");
    let (_, config, _) = world.relay(1, &[]);
    assert_eq!(config.revocations.len(), 1, "and one that comes later gets it too");
}

#[test]
fn a_revoked_server_token_ends_the_connection_and_opens_no_other() {
    let mut world = World::new();
    let claims = ServerClaims::new(&server(2), START_MS / 1000, START_MS / 1000 + 9_999, "stolen".to_owned());
    let token = world.control.issuer().server(&claims).unwrap();
    let now = world.now();
    let conn = world.control.connect_server(now);
    world.say(conn, hello(&token));
    world.events();
    let target = RevocationTarget::Jti("stolen".to_owned());
    world.apply(Change::Revoked(RevocationRecord { id: "s".to_owned(), target, expires_at: START_MS / 1000 + 99 }));
    let (sent, closed, _) = world.events();
    assert_eq!(closed, [conn]);
    assert!(matches!(&sent[..], [(_, ControlMessage::Error(e))] if e.error_code() == Some(ErrorCode::TokenRevoked)));
    let conn = world.control.connect_server(now);
    world.say(conn, hello(&token));
    assert_eq!(world.events().1, [conn]);
    world.relay(2, &[]);
}

#[test]
fn a_disabled_relay_is_in_nobodys_list_and_comes_back() {
    let mut world = World::new();
    let (two, ..) = world.relay(2, &[(10, 1)]);
    let (three, ..) = world.relay(3, &[(11, 1)]);
    world.events();
    world.apply(Change::Server(ServerRecord { enabled: false, ..server(2) }));
    world.ms(60);
    let (sent, closed, _) = world.events();
    let lists: Vec<_> = sent
        .iter()
        .filter_map(|(to, message)| match message {
            ControlMessage::ConfigUpdate(update) => {
                Some((*to, ids(&update.relays.as_ref()?.relays), update.mesh_tokens.len()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(lists, [(two, vec![], 0), (three, vec![1, 3], 1)]);
    assert_eq!((closed, world.place(10)), (vec![], vec![]));
    world.apply(Change::Server(server(2)));
    world.ms(60);
    let (sent, ..) = world.events();
    assert!(
        sent.iter().any(|(to, message)| *to == two
            && matches!(message, ControlMessage::ConfigUpdate(u) if u.mesh_tokens.len() == 2))
    );
    assert_eq!(world.place(10), [2]);
    world.apply(Change::ServerDeleted(ServerId(2)));
    assert_eq!(world.events().1, [two], "a deleted one may not stay");
    let claims = ServerClaims::new(&server(2), START_MS / 1000, START_MS / 1000 + 9_999, "j".to_owned());
    let token = world.control.issuer().server(&claims).unwrap();
    let now = world.now();
    let conn = world.control.connect_server(now);
    world.say(conn, hello(&token));
    let (sent, ..) = world.events();
    assert!(
        matches!(&sent[..], [(_, ControlMessage::Error(e))] if e.error_code() == Some(ErrorCode::InvalidToken)),
        "nor come back, however fresh its token is"
    );
}

#[test]
fn mesh_tokens_are_renewed_before_they_expire() {
    let mut world = World::new();
    let (two, ..) = world.relay(2, &[]);
    world.events();
    let mut renewed = None;
    for second in 0..2_800 {
        if second % 20 == 0 {
            world.say_bytes(two, &ping());
        }
        world.ms(1_000);
        let (sent, closed, _) = world.events();
        assert_eq!(closed, []);
        if sent.iter().any(|(_, m)| matches!(m, ControlMessage::ConfigUpdate(u) if u.mesh_tokens.len() == 2)) {
            assert_eq!(renewed.replace(second), None);
        }
    }
    assert_eq!(renewed.map(|second| second / 10), Some(269), "after three quarters of an hour");
}

#[test]
fn the_newest_connection_of_a_server_wins() {
    let mut world = World::new();
    let (old, ..) = world.relay(2, &[(10, 1)]);
    world.events();
    let token = world.token(2);
    let now = world.now();
    let new = world.control.connect_server(now);
    world.say(new, hello(&token));
    assert_eq!(world.events().1, [old]);
    world.control.disconnect(old, now);
    world.ms(100_000 - 40_000);
    assert_eq!(world.control.servers_online().count(), 1, "the end of the old one does not take the new one along");
}

#[test]
fn what_a_server_says_of_itself_goes_to_the_database() {
    let mut world = World::new();
    let (two, ..) = world.relay(2, &[]);
    world.events();
    world.say(
        two,
        proto::ServerRegister {
            public_url: "wss://new.example.com/x/data".to_owned(),
            stun_ip: vec![203, 0, 113, 9],
            stun_port: 3479,
            capabilities: vec!["relay".to_owned(), "stun".to_owned()],
            ..Default::default()
        },
    );
    let (_, _, ops) = world.events();
    let [StoreOp::UpdateServer(record), StoreOp::ServerSeen { .. }] = &ops[..] else { panic!("{ops:?}") };
    assert_eq!(record.url.as_deref(), Some("wss://new.example.com/x/data"));
    assert_eq!((record.stun_ip, record.stun_port), (Some([203, 0, 113, 9].into()), 3479));
    // Who does not run it has no address for it.
    world.say(
        two,
        proto::ServerRegister {
            public_url: "wss://other.example.com/x/data".to_owned(),
            stun_ip: vec![203, 0, 113, 9],
            capabilities: vec!["relay".to_owned()],
            ..Default::default()
        },
    );
    let (_, _, ops) = world.events();
    let [StoreOp::UpdateServer(record), StoreOp::ServerSeen { .. }] = &ops[..] else { panic!("{ops:?}") };
    assert_eq!((record.url.as_deref(), record.stun_ip), (Some("wss://other.example.com/x/data"), None));
    // Nonsense is not taken.
    world.say(
        two,
        proto::ServerRegister { public_url: "javascript:alert(1)".to_owned(), stun_ip: vec![1], ..Default::default() },
    );
    let (_, _, ops) = world.events();
    assert!(matches!(&ops[..], [StoreOp::ServerSeen { .. }]), "{ops:?}");
}

#[test]
fn a_relay_that_cannot_apply_a_change_gets_everything() {
    let mut world = World::new();
    let (two, ..) = world.relay(2, &[]);
    world.ms(2_000);
    world.events();
    for _ in 0..5 {
        world.say(
            two,
            proto::Ack { acked_type: 4, error: "version 3 is applied, not 10".to_owned(), ..Default::default() },
        );
    }
    let (sent, ..) = world.events();
    assert_eq!(sent.iter().filter(|(_, m)| matches!(m, ControlMessage::Config(_))).count(), 1, "once a second");
}

/// At the relay, frames for the node go first to the other relay (0: straight to it again).
type Hop = (usize, u32, u32);

/// The example of the specification's heart: two nodes, three relays.
struct Talking {
    world: World,
    relays: [ConnId; 3],
    a: ConnId,
    b: ConnId,
}

impl Talking {
    fn new() -> Self {
        let mut world = World::new();
        let all = [(10, 1), (11, 1)];
        let relays = [1, 2, 3].map(|id| world.relay(id, &all).0);
        let (a, b) = (world.join(10), world.join(11));
        world.events();
        Self { world, relays, a, b }
    }

    /// Everybody reports; mesh links are 1–2, 1–3, 2–3.
    fn report(&mut self, a: [u64; 3], b: [u64; 3], mesh: [u64; 3]) {
        let [one, two, three] = self.relays;
        let each = |rtts: [u64; 3]| [(1, rtts[0]), (2, rtts[1]), (3, rtts[2])];
        self.world.say(one, latencies(&[(2, mesh[0]), (3, mesh[1])], &[], &[2, 3]));
        self.world.say(two, latencies(&[(1, mesh[0]), (3, mesh[2])], &[], &[1, 3]));
        self.world.say(three, latencies(&[(1, mesh[1]), (2, mesh[2])], &[], &[1, 2]));
        self.world.say(self.a, latencies(&each(a), &[11], &[1, 2, 3]));
        self.world.say(self.b, latencies(&each(b), &[], &[1, 2, 3]));
        self.world.ms(50);
    }

    fn told(&mut self) -> (Vec<proto::Path>, Vec<proto::Path>, Vec<Hop>) {
        let (sent, ..) = self.world.events();
        let (mut a, mut b, mut hops) = (vec![], vec![], vec![]);
        for (to, message) in sent {
            let ControlMessage::ConfigUpdate(update) = message else { continue };
            if to == self.a {
                a.extend(update.paths);
            } else if to == self.b {
                b.extend(update.paths);
            } else if let Some(at) = self.relays.iter().position(|conn| *conn == to) {
                hops.extend(update.next_hops.iter().map(|hop| (at + 1, hop.node_id, hop.server_id)));
            }
        }
        (a, b, hops)
    }
}

fn path(node_id: u32, relay_id: u32, via_relay_id: u32, ms: u64) -> proto::Path {
    proto::Path { node_id, relay_id, via_relay_id, latency_us: ms * MS }
}

#[test]
fn pairs_that_talk_get_the_best_path_and_relays_the_next_hops() {
    let mut t = Talking::new();
    // A is near 1, B is near 3, the link 1–3 is fast: two hops beat every single relay.
    t.report([10, 60, 150], [150, 60, 10], [40, 30, 40]);
    let (a, b, hops) = t.told();
    assert_eq!(a, [path(11, 1, 3, 50)]);
    assert_eq!(b, [path(10, 3, 1, 50)], "the same way from the other end");
    assert_eq!(hops, [(1, 11, 3), (2, 10, 1), (2, 11, 3), (3, 10, 1)]);
    // The same figures again say nothing new.
    t.report([10, 60, 150], [150, 60, 10], [40, 30, 40]);
    assert_eq!(t.told(), (vec![], vec![], vec![]));
    // Small movements neither.
    t.report([13, 60, 150], [150, 60, 12], [40, 33, 40]);
    assert_eq!(t.told(), (vec![], vec![], vec![]));
    // The link 1–3 becomes slow: relay 2 alone is the best now.
    t.report([10, 60, 150], [150, 60, 10], [140, 130, 140]);
    let (a, b, hops) = t.told();
    assert_eq!((a, b), (vec![path(11, 2, 0, 120)], vec![path(10, 2, 0, 120)]));
    assert_eq!(hops, [(2, 10, 0), (2, 11, 0)], "at relay 2 frames go straight to both; elsewhere nothing is better");
}

#[test]
fn silence_advises_nobody() {
    let mut t = Talking::new();
    let (a, b) = (t.a, t.b);
    t.world.say(a, latencies(&[(1, 10)], &[], &[1, 2, 3]));
    t.world.say(b, latencies(&[(1, 10)], &[20, 99, 11], &[1, 2, 3]));
    t.world.ms(100);
    assert_eq!(t.told(), (vec![], vec![], vec![]), "another network's node, an unknown one, and itself");
    assert_eq!(t.world.control.best_paths().count(), 0);
}

#[test]
fn a_node_that_comes_back_is_told_again() {
    let mut t = Talking::new();
    t.report([10, 60, 150], [150, 60, 10], [40, 30, 40]);
    t.told();
    t.a = {
        let now = t.world.now();
        t.world.control.disconnect(t.a, now);
        let machine = machine(10);
        let conn = t.world.control.connect(now);
        t.world.say(
            conn,
            proto::AuthRequest { protocol_version: 1, machine_pub: machine.public().0.to_vec(), ..Default::default() },
        );
        let (sent, ..) = t.world.events();
        let ControlMessage::AuthResponse(response) = &sent.last().unwrap().1 else { panic!() };
        let nonce: [u8; 32] = response.challenge.as_slice().try_into().unwrap();
        let signature = machine.sign(&challenge::control_message("host", &nonce, &machine.public())).to_vec();
        let token = t.world.auth_token(10);
        t.world.say(conn, proto::AuthRequest { signature, token, host: "host".to_owned(), ..Default::default() });
        let statement = KeyStatement {
            network_id: NetworkId(1),
            node_id: NodeId(10),
            machine_pub: machine.public(),
            node_pub: NodeKey::generate(&mut t.world.rng).public(),
            seq: 2,
            not_before: START_MS / 1000,
            not_after: START_MS / 1000 + 90_000,
            capabilities: 0,
        };
        let signed = SignedStatement::sign(statement, &machine).unwrap();
        let announce =
            KeyAnnounce { src: NodeId(10), dst: NodeId(0), statement: *signed.bytes(), signature: *signed.signature() };
        t.world.say_bytes(conn, &announce.encode());
        conn
    };
    t.world.ms(100);
    assert_eq!(t.told().0, [path(11, 1, 3, 50)]);
}

#[test]
fn advice_ends_with_what_it_rests_on() {
    let mut t = Talking::new();
    t.report([10, 60, 150], [150, 60, 10], [40, 30, 40]);
    t.told();
    // Relay 3 is disabled: the way leads through what is left.
    t.world.apply(Change::Server(ServerRecord { enabled: false, ..server(3) }));
    t.world.ms(100);
    let (a, _, hops) = t.told();
    assert_eq!(a, [path(11, 1, 2, 110)]);
    assert!(hops.contains(&(1, 11, 2)), "{hops:?}");
    // Nothing is heard any more: figures are forgotten, and so is the advice.
    for _ in 0..10 {
        let conns = [t.relays[0], t.relays[1], t.relays[2], t.a, t.b];
        for conn in conns {
            t.world.say_bytes(conn, &ping());
        }
        t.world.ms(10_000);
    }
    assert!(t.world.control.latency_matrix().is_empty());
    assert_eq!(t.world.control.best_paths().count(), 0);
}
