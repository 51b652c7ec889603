//! The controller's core and three relays' cores, wired together without I/O: what one says the other understands.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and any instant will do as origin"
)]

use bytes::Bytes;
use edgelink_auth::MachineKey;
use edgelink_auth::token::{Issuer, TokenKeys};
use edgelink_control::{self as control, Control, ControlConfig, Event};
use edgelink_model::records::{Change, ServerKind, ServerRecord, Snapshot};
use edgelink_model::{Now, ServerId};
use edgelink_relay::{self as relay, Registration, Relay, RelayConfig, RelayEvent};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

struct World {
    now: Now,
    rng: ChaCha8Rng,
    control: Option<Control>,
    keys: TokenKeys,
    relays: BTreeMap<u32, Relay>,
    uplinks: BTreeMap<u32, control::ConnId>,
    wires: BTreeMap<(u32, relay::ConnId), (u32, relay::ConnId)>,
    saved: BTreeMap<u32, Vec<u8>>,
}

fn server(id: u32) -> ServerRecord {
    ServerRecord {
        id: ServerId(id),
        name: format!("relay-{id}"),
        kind: if id == 1 { ServerKind::Builtin } else { ServerKind::External },
        url: (id > 1).then(|| format!("wss://{id}/ws/data")),
        region: String::new(),
        relay: true,
        stun: false,
        stun_ip: None,
        stun_ip2: None,
        stun_port: 3478,
        enabled: true,
    }
}

impl World {
    fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let keys = TokenKeys::generate(&mut rng);
        let now = Now { mono: Instant::now(), unix_ms: 1_700_000_000_000 };
        let mut this = Self {
            now,
            rng,
            control: None,
            keys,
            relays: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            wires: BTreeMap::new(),
            saved: BTreeMap::new(),
        };
        this.start_control();
        for id in [1, 2, 3] {
            this.start_relay(id);
        }
        this
    }

    fn start_control(&mut self) {
        let snapshot = Snapshot { version: 5, servers: vec![server(1), server(2), server(3)], ..Snapshot::default() };
        self.control = Some(Control::new(ControlConfig::default(), Issuer::new(&self.keys), snapshot));
    }

    /// A relay that knows nothing but its token (and what its disk holds).
    fn start_relay(&mut self, id: u32) {
        let token = self.control.as_ref().unwrap().server_token(ServerId(id), self.now, &mut self.rng).unwrap();
        let nobody = MachineKey::generate(&mut self.rng).public().0;
        let verifier = edgelink_auth::token::RelayVerifier::from_parts("EdDSA", &nobody, &nobody).unwrap();
        let mut relay = Relay::new(RelayConfig::new(ServerId(id)), verifier);
        if let Some(saved) = self.saved.get(&id) {
            relay.restore(saved, self.now).unwrap();
        }
        relay.start_uplink(Registration { token, register: Default::default() }, self.now);
        self.relays.insert(id, relay);
    }

    fn stop_control(&mut self) {
        self.control = None;
        for (id, _) in std::mem::take(&mut self.uplinks) {
            self.relays.get_mut(&id).unwrap().controller_disconnected(self.now, &mut self.rng);
        }
    }

    fn stop_relay(&mut self, id: u32) {
        self.relays.remove(&id);
        if let (Some(conn), Some(control)) = (self.uplinks.remove(&id), &mut self.control) {
            control.disconnect(conn, self.now);
        }
        let ends: Vec<_> = self.wires.extract_if(.., |(from, _), (to, _)| *from == id || *to == id).collect();
        for ((from, conn), _) in ends {
            if let Some(relay) = self.relays.get_mut(&from) {
                relay.disconnect(conn, self.now);
            }
        }
    }

    fn run(&mut self) {
        for _ in 0..10_000 {
            let mut idle = true;
            for id in self.relays.keys().copied().collect::<Vec<_>>() {
                self.relays.get_mut(&id).unwrap().handle_timeout(self.now);
                while let Some(event) = self.relays.get_mut(&id).unwrap().poll_event() {
                    idle = false;
                    self.relay_event(id, event);
                }
            }
            if let Some(control) = &mut self.control {
                control.handle_timeout(self.now, &mut self.rng);
                while let Some(event) = control.poll_event() {
                    idle = false;
                    let relay_of = |conn| self.uplinks.iter().find(|(_, c)| **c == conn).map(|(id, _)| *id);
                    match event {
                        Event::Send { conn, message } => {
                            let id = relay_of(conn).unwrap();
                            self.relays.get_mut(&id).unwrap().handle_controller(&message, self.now);
                        }
                        Event::Close { conn } => {
                            let id = relay_of(conn).unwrap();
                            self.uplinks.remove(&id);
                            self.relays.get_mut(&id).unwrap().controller_disconnected(self.now, &mut self.rng);
                        }
                        _ => {}
                    }
                }
            }
            if idle {
                return;
            }
        }
        panic!("the cores keep each other busy for ever");
    }

    fn relay_event(&mut self, id: u32, event: RelayEvent) {
        let now = self.now;
        match event {
            RelayEvent::DialController => match &mut self.control {
                Some(control) => {
                    self.uplinks.insert(id, control.connect_server(now));
                    self.relays.get_mut(&id).unwrap().controller_connected(now, &mut self.rng);
                }
                None => self.relays.get_mut(&id).unwrap().controller_failed(now, &mut self.rng),
            },
            RelayEvent::ToController(message) => {
                if let (Some(conn), Some(control)) = (self.uplinks.get(&id), &mut self.control) {
                    control.handle_message(*conn, &message, now, &mut self.rng);
                }
            }
            RelayEvent::DialMesh { dial, url, path, .. } => {
                let to = if url.is_empty() { Some(1) } else { url[6..7].parse().ok() };
                assert!(url.is_empty() == (path == "/ws/mesh") && (url.is_empty() || url.ends_with("/ws/mesh")));
                let Some(to) = to.filter(|to| self.relays.contains_key(to)) else {
                    return self.relays.get_mut(&id).unwrap().mesh_dial_failed(dial, now, &mut self.rng);
                };
                let Some(ours) = self.relays.get_mut(&id).unwrap().mesh_dialled(dial, now, &mut self.rng) else {
                    return;
                };
                let theirs = self.relays.get_mut(&to).unwrap().connect_mesh(None, now).unwrap();
                self.wires.insert((id, ours), (to, theirs));
                self.wires.insert((to, theirs), (id, ours));
            }
            RelayEvent::Writable(conn) => {
                let mut out: Vec<Bytes> = Vec::new();
                while self.relays.get_mut(&id).unwrap().poll_transmit(conn, 1 << 16, now, &mut out) > 0 {}
                if let Some((to, theirs)) = self.wires.get(&(id, conn)) {
                    for message in out {
                        self.relays.get_mut(to).unwrap().handle_message(*theirs, message, now);
                    }
                }
            }
            RelayEvent::Close { conn, .. } => {
                if let Some((to, theirs)) = self.wires.remove(&(id, conn)) {
                    self.wires.remove(&(to, theirs));
                    self.relays.get_mut(&to).unwrap().disconnect(theirs, now);
                }
                self.relays.get_mut(&id).unwrap().disconnect(conn, now);
            }
            RelayEvent::StateChanged => {
                let saved = self.relays[&id].saved_state();
                self.saved.insert(id, saved);
            }
            RelayEvent::ControllerRefused { message, .. } => panic!("relay {id} refused: {message}"),
            _ => {}
        }
    }

    fn pass(&mut self, secs: u64) {
        for _ in 0..secs * 10 {
            self.run();
            self.now = self.now.plus(Duration::from_millis(100));
        }
        self.run();
    }

    fn links(&self) -> usize {
        self.relays.values().map(|relay| relay.mesh_links().count()).sum()
    }
}

#[test]
fn relays_that_know_only_their_tokens_find_each_other_and_are_measured() {
    let mut world = World::new();
    world.pass(2);
    assert_eq!(world.links(), 6);
    assert!(world.relays.values().all(Relay::controller_is_up));
    let control = world.control.as_ref().unwrap();
    assert_eq!(control.servers_online().count(), 3);
    let pairs = [(1, 2), (1, 3), (2, 3)];
    assert!(pairs.iter().all(|(a, b)| control.latency_matrix().mesh(ServerId(*a), ServerId(*b)) == Some(0)));
    // For hours: tokens are renewed, nothing is closed, figures stay fresh.
    let links: Vec<_> = world.wires.keys().copied().collect();
    for _ in 0..3 {
        world.pass(3_000);
        assert_eq!(world.control.as_ref().unwrap().latency_matrix().iter().count(), 6);
    }
    assert_eq!(world.wires.keys().copied().collect::<Vec<_>>(), links);
}

#[test]
fn the_mesh_lives_without_the_controller_and_survives_a_relays_restart_then() {
    let mut world = World::new();
    world.pass(2);
    world.stop_control();
    world.pass(3 * 3_600);
    assert_eq!(world.links(), 6, "hours after the mesh tokens have expired");
    // A relay's token can only be made by a controller; it is the disk's here.
    world.start_control();
    world.pass(60);
    assert!(world.relays.values().all(Relay::controller_is_up));
    world.stop_control();
    world.start_control();
    world.stop_relay(2);
    world.start_relay(2);
    world.control = None;
    world.pass(60);
    assert_eq!(world.links(), 6, "from what it saved");
}

#[test]
fn a_disabled_relay_leaves_the_mesh_and_comes_back() {
    let mut world = World::new();
    world.pass(2);
    let apply = |world: &mut World, version, record: ServerRecord| {
        let now = world.now;
        world.control.as_mut().unwrap().apply(version, vec![(version, Change::Server(record))], now, &mut world.rng);
        world.pass(5);
    };
    apply(&mut world, 6, ServerRecord { enabled: false, ..server(3) });
    assert_eq!(world.links(), 2);
    apply(&mut world, 7, server(3));
    assert_eq!(world.links(), 6);
    assert_eq!(world.control.as_ref().unwrap().stats().config_errors, 0);
}
