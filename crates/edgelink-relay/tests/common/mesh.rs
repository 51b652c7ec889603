//! Several relays, wired together by the test: what a shell and the network between would do, at once and in order.

use super::*;
use edgelink_auth::token::MeshClaims;
use edgelink_relay::DialId;
use rand_core::Rng as _;
use std::collections::{BTreeMap, VecDeque};

/// Relays 1, 2, 3 … of one controller.
pub struct Mesh {
    pub now: Now,
    pub rng: ChaCha12Rng,
    pub issuer: Issuer,
    pub relays: BTreeMap<u32, Relay>,
    /// Which connection of which relay is whose other end.
    pub wires: BTreeMap<(u32, ConnId), (u32, ConnId)>,
    /// Pairs of relays between which no new connection comes up.
    pub cut: Vec<(u32, u32)>,
    /// Bytes between relays are neither delivered nor refused.
    pub black_hole: bool,
    pub nodes: BTreeMap<(u32, u32), ConnId>,
    /// What nodes received: (relay, node, frame).
    pub received: Vec<(u32, u32, Sent)>,
    pub up: Vec<(u32, u32)>,
    pub down: Vec<(u32, u32)>,
    pub closes: Vec<(u32, CloseReason)>,
    /// Messages to the controller, by relay.
    pub to_controller: Vec<(u32, Bytes)>,
    pub controller_dials: u32,
    /// Frames that crossed each wire, by sending relay.
    pub crossed: Vec<(u32, Vec<u8>)>,
}

impl Mesh {
    #[expect(clippy::disallowed_methods, reason = "any origin will do; tests only look at differences")]
    pub fn new(ids: &[u32]) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(7);
        let issuer = Issuer::new(&TokenKeys::generate(&mut rng));
        let now = Now { mono: Instant::now(), unix_ms: T0 * 1_000 };
        let relay = |id: u32| Relay::new(RelayConfig::new(ServerId(id)), issuer.relay_verifier().unwrap());
        let relays = ids.iter().map(|id| (*id, relay(*id))).collect();
        Self {
            now,
            rng,
            issuer,
            relays,
            wires: BTreeMap::new(),
            cut: vec![],
            black_hole: false,
            nodes: BTreeMap::new(),
            received: vec![],
            up: vec![],
            down: vec![],
            closes: vec![],
            to_controller: vec![],
            controller_dials: 0,
            crossed: vec![],
        }
    }

    /// Every relay knows the others, has tokens for them, and links come up.
    pub fn linked(ids: &[u32]) -> Self {
        let mut this = Self::new(ids);
        for id in ids {
            let config = this.config(*id, ids);
            this.configure(*id, config);
        }
        this.run();
        this
    }

    pub fn mesh_token(&self, from: u32, to: u32, exp: u64) -> String {
        let iat = self.now.unix_secs();
        let claims = MeshClaims { server_id: ServerId(from), iat, exp, jti: format!("mesh-{from}-{to}-{iat}") };
        self.issuer.mesh(&claims, ServerId(to)).unwrap()
    }

    pub fn config(&self, id: u32, ids: &[u32]) -> proto::Config {
        let exp = self.now.unix_secs() + 3_600;
        proto::Config {
            version: 1,
            relays: ids.iter().map(|id| proto::Relay { id: *id, ..Default::default() }).collect(),
            mesh_tokens: ids
                .iter()
                .filter(|other| **other != id)
                .map(|other| proto::MeshToken {
                    server_id: *other,
                    token: self.mesh_token(id, *other, exp),
                    url: format!("wss://relay-{other}/ws/mesh"),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    /// Hands a configuration to a relay as its saved state would.
    pub fn configure(&mut self, id: u32, config: proto::Config) {
        let saved = control::encode(&config, Flags::NONE).unwrap();
        self.relays.get_mut(&id).unwrap().restore(&saved, self.now).unwrap();
    }

    /// What the controller says of nodes: (node, network, relays).
    pub fn locate(&mut self, nodes: &[(u32, u32, &[u32])]) {
        let nodes = nodes.iter().map(|(node, network, relays)| proto::NodeLocation {
            node_id: *node,
            network_id: *network,
            relay_ids: relays.to_vec(),
        });
        let message = proto::ServerNodeLoc { nodes: nodes.collect(), full: true };
        let saved = control::encode(&message, Flags::NONE).unwrap();
        for relay in self.relays.values_mut() {
            relay.restore(&saved, self.now).unwrap();
        }
    }

    pub fn next_hops(&mut self, id: u32, ids: &[u32], hops: &[(u32, u32)]) {
        let mut config = self.config(id, ids);
        let hop = |(node, relay): &(u32, u32)| proto::NextHop { node_id: *node, server_id: *relay };
        config.next_hops = hops.iter().map(hop).collect();
        self.configure(id, config);
        self.run();
    }

    /// A node connects to a relay and authenticates.
    pub fn join(&mut self, id: u32, node: u32, network: u32) {
        let now = self.now.unix_secs();
        let claims = RelayClaims::new(
            NodeId(node),
            &machine(node).public(),
            NetworkId(network),
            vec![ServerId(id)],
            now,
            now + LIFE,
            format!("jti-{node}-{}", self.rng.next_u32()),
        );
        let token = self.issuer.relay(&claims).unwrap();
        let relay = self.relays.get_mut(&id).unwrap();
        let conn = relay.connect(None, self.now, &mut self.rng).unwrap();
        relay.handle_message(conn, offer(node, &token).into(), self.now);
        let mut out = Vec::new();
        relay.poll_transmit(conn, 1 << 16, self.now, &mut out);
        let response = frames(&out[0]).next().unwrap().unwrap();
        let challenge = proto::AuthResponse::decode(response.payload).unwrap().challenge.try_into().unwrap();
        let proof = machine(node).sign(&challenge::relay_message(ServerId(id), &token, &challenge));
        relay.handle_message(conn, signed(proof.to_vec()).into(), self.now);
        out.clear();
        relay.poll_transmit(conn, 1 << 16, self.now, &mut out);
        self.nodes.insert((id, node), conn);
        self.run();
    }

    pub fn say(&mut self, id: u32, node: u32, message: &[u8]) {
        let conn = self.nodes[&(id, node)];
        self.relays.get_mut(&id).unwrap().handle_message(conn, Bytes::copy_from_slice(message), self.now);
        self.run();
    }

    /// Bytes as if from the other end of a mesh connection.
    pub fn say_over_link(&mut self, to: u32, from: u32, message: &[u8]) {
        let conn = self.link(to, from).unwrap();
        self.relays.get_mut(&to).unwrap().handle_message(conn, Bytes::copy_from_slice(message), self.now);
        self.run();
    }

    pub fn link(&self, of: u32, with: u32) -> Option<ConnId> {
        self.relays[&of].mesh_links().find(|link| link.relay.0 == with).map(|link| link.conn)
    }

    pub fn links(&self) -> Vec<(u32, u32)> {
        let links = self.relays.iter().flat_map(|(id, relay)| relay.mesh_links().map(|link| (*id, link.relay.0)));
        links.collect()
    }

    /// What a node received, frames only.
    pub fn got(&mut self, id: u32, node: u32) -> Vec<Vec<u8>> {
        let mine = |(relay, to, _): &(u32, u32, Sent)| (*relay, *to) == (id, node);
        let all = std::mem::take(&mut self.received);
        let (mine, others) = all.into_iter().partition(mine);
        self.received = others;
        let frame = |(_, _, sent)| match sent {
            Sent::Forwarded(frame) => Some(frame),
            _ => None,
        };
        mine.into_iter().filter_map(frame).collect()
    }

    pub fn errors(&mut self, id: u32, node: u32) -> Vec<Sent> {
        let all = std::mem::take(&mut self.received);
        let mine = all
            .into_iter()
            .filter(|(relay, to, sent)| (*relay, *to) == (id, node) && matches!(sent, Sent::Error { .. }));
        mine.map(|(_, _, sent)| sent).collect()
    }

    pub fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        loop {
            self.run();
            let due = self.relays.values().filter_map(Relay::poll_timeout).min();
            let Some(at) = due.filter(|at| *at <= end) else { break };
            self.now = self.now.plus(at.saturating_duration_since(self.now.mono));
            for relay in self.relays.values_mut() {
                relay.handle_timeout(self.now);
            }
        }
        self.now = self.now.plus(end - self.now.mono);
    }

    /// Ends a wire on both sides, as a reset connection does.
    pub fn reset(&mut self, id: u32, conn: ConnId) {
        if let Some((other, theirs)) = self.wires.remove(&(id, conn)) {
            self.wires.remove(&(other, theirs));
            self.relays.get_mut(&other).unwrap().disconnect(theirs, self.now);
        }
        self.relays.get_mut(&id).unwrap().disconnect(conn, self.now);
    }

    /// Lets everything happen that can happen now.
    pub fn run(&mut self) {
        for _ in 0..100_000 {
            let mut queue: VecDeque<(u32, RelayEvent)> = VecDeque::new();
            for (id, relay) in &mut self.relays {
                relay.handle_timeout(self.now);
                queue.extend(std::iter::from_fn(|| relay.poll_event()).map(|event| (*id, event)));
            }
            if queue.is_empty() {
                return;
            }
            for (id, event) in queue {
                self.event(id, event);
            }
        }
        panic!("the relays keep each other busy for ever");
    }

    fn event(&mut self, id: u32, event: RelayEvent) {
        match event {
            RelayEvent::Writable(conn) => self.transmit(id, conn),
            RelayEvent::Close { conn, reason, flush } => {
                self.closes.push((id, reason));
                if flush {
                    self.transmit(id, conn);
                }
                self.reset(id, conn);
            }
            RelayEvent::DialMesh { dial, url, .. } => self.dial(id, dial, &url),
            RelayEvent::MeshUp { relay, .. } => self.up.push((id, relay.0)),
            RelayEvent::MeshDown { relay, .. } => self.down.push((id, relay.0)),
            RelayEvent::ToController(message) => self.to_controller.push((id, message)),
            RelayEvent::DialController => self.controller_dials += 1,
            _ => {}
        }
    }

    fn dial(&mut self, id: u32, dial: DialId, url: &str) {
        let to: Option<u32> =
            url.strip_prefix("wss://relay-").and_then(|rest| rest.strip_suffix("/ws/mesh")?.parse().ok());
        let to = to.filter(|to| self.relays.contains_key(to) && !self.cut.contains(&(id.min(*to), id.max(*to))));
        let relay = self.relays.get_mut(&id).unwrap();
        let Some(to) = to else { return relay.mesh_dial_failed(dial, self.now, &mut self.rng) };
        let Some(ours) = relay.mesh_dialled(dial, self.now, &mut self.rng) else { return };
        let theirs = self.relays.get_mut(&to).unwrap().connect_mesh(None, self.now).unwrap();
        self.wires.insert((id, ours), (to, theirs));
        self.wires.insert((to, theirs), (id, ours));
    }

    fn transmit(&mut self, id: u32, conn: ConnId) {
        let mut out = Vec::new();
        while self.relays.get_mut(&id).unwrap().poll_transmit(conn, 1 << 16, self.now, &mut out) > 0 {}
        let node =
            self.nodes.iter().find(|((relay, _), theirs)| *relay == id && **theirs == conn).map(|(key, _)| key.1);
        for message in out {
            if let Some(node) = node {
                let all = frames(&message).map(|frame| (id, node, any(&frame.unwrap())));
                self.received.extend(all);
            } else if let Some(&(other, theirs)) = self.wires.get(&(id, conn))
                && !self.black_hole
            {
                self.crossed.extend(frames(&message).map(|frame| (id, frame.unwrap().raw.to_vec())));
                self.relays.get_mut(&other).unwrap().handle_message(theirs, message, self.now);
            }
        }
    }
}

fn any(frame: &edgelink_wire::Frame<'_>) -> Sent {
    match frame.frame_type().unwrap() {
        FrameType::AuthResponse => Sent::Welcome { observed_ip: vec![] },
        _ => sent(frame),
    }
}
