//! Relays: their processes, their disks, and their connections: of nodes, to other relays, to the controller.

use super::*;
use crate::streams::CAPACITY;
use edgelink_auth::token::Issuer;
use edgelink_model::records::{ServerKind, ServerRecord};
pub(super) use edgelink_relay::ConnId;
use edgelink_relay::{Registration, RelayConfig, RelayEvent};
use edgelink_wire::control::proto;

/// A relay's host.
pub(super) struct Host {
    pub(super) id: ServerId,
    rng: ChaCha20Rng,
    process: Option<Process>,
    /// The server_token in its configuration, once the controller has made one.
    token: Option<String>,
    /// What it keeps on its disk.
    saved: Option<Vec<u8>>,
    pub(super) malice: Option<malice::Malice>,
}

struct Process {
    core: Relay,
    /// The stream of each connection, and the end towards which this relay sends.
    conns: BTreeMap<ConnId, (StreamId, End)>,
    uplink: Option<StreamId>,
}

/// Which of a relay's endpoints is dialled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/ws/data`.
    Data,
    /// `/ws/mesh`.
    Mesh,
}

/// A connection that a relay has dialled to another one.
#[derive(Clone, Copy)]
pub(super) enum MeshEnd {
    Dialling(edgelink_relay::DialId),
    Linked(ConnId),
}

impl Host {
    pub(super) fn new(id: ServerId, rng: ChaCha20Rng) -> Self {
        Self { id, rng, process: None, token: None, saved: None, malice: None }
    }

    pub(super) fn core(&self) -> Option<&Relay> {
        self.process.as_ref().map(|p| &p.core)
    }

    pub(super) fn core_mut(&mut self) -> Option<&mut Relay> {
        self.process.as_mut().map(|p| &mut p.core)
    }
}

impl World {
    /// Another relay, known to the controller and running.
    pub fn add_relay(&mut self, region: &str) -> RelayIndex {
        let index = RelayIndex(self.relays.len());
        let id = ServerId(index.0 as u32 + 1);
        let rng = self.fork();
        self.relays.push(Host::new(id, rng));
        self.database.put_server(ServerRecord {
            id,
            name: format!("relay-{id}"),
            kind: ServerKind::External,
            url: Some(format!("wss://relay-{id}.sim/ws/data")),
            region: region.to_owned(),
            relay: true,
            stun: false,
            stun_ip: None,
            stun_ip2: None,
            stun_port: 3478,
            enabled: true,
        });
        self.tail_change_log();
        self.start_relay(index);
        index
    }

    /// Starts a relay's process from what its disk holds.
    pub fn start_relay(&mut self, index: RelayIndex) {
        self.streams.set_off(index.party(), false, self.now);
        let now = self.server_now();
        self.give_token(index.0);
        let issuer = Issuer::new(&self.token_keys);
        // The issuer made the keys: that its public half is one is its own promise.
        #[expect(clippy::expect_used, reason = "the simulator itself is broken when this fails")]
        let verifier = issuer.relay_verifier().expect("own keys make a verifier");
        let Some(host) = self.relays.get_mut(index.0).filter(|host| host.process.is_none()) else { return };
        let mut core = Relay::new(RelayConfig::new(host.id), verifier);
        if let Some(saved) = &host.saved
            && let Err(error) = core.restore(saved, now)
        {
            tracing::error!(%error, "a relay cannot read what it has saved");
        }
        if let Some(token) = host.token.clone() {
            let register = proto::ServerRegister {
                name: format!("relay-{}", host.id),
                capabilities: vec!["relay".to_owned()],
                ..proto::ServerRegister::default()
            };
            core.start_uplink(Registration { token, register }, now);
        }
        host.process = Some(Process { core, conns: BTreeMap::new(), uplink: None });
        self.touched.insert(index.party());
    }

    /// `edgelink-ctl server add` prints the token that goes into a relay's configuration.
    fn give_token(&mut self, index: usize) {
        let now = self.server_now();
        let Some(host) = self.relays.get_mut(index).filter(|host| host.token.is_none()) else { return };
        host.token = self.controller.as_ref().and_then(|c| c.core.server_token(host.id, now, &mut self.rng));
    }

    /// Relays that were made while there was no controller get their tokens when there is one.
    pub(super) fn give_tokens(&mut self) {
        let now = self.server_now();
        for index in 0..self.relays.len() {
            let without = self.relays.get(index).is_some_and(|host| host.token.is_none());
            self.give_token(index);
            let Some(host) = self.relays.get_mut(index).filter(|_| without) else { continue };
            if let (Some(token), Some(process)) = (host.token.clone(), &mut host.process) {
                let register = proto::ServerRegister { name: format!("relay-{}", host.id), ..Default::default() };
                process.core.start_uplink(Registration { token, register }, now);
                self.touched.insert(Party::Relay(index));
            }
        }
    }

    /// Ends a relay's process; its kernel closes its connections.
    pub fn kill_relay(&mut self, index: RelayIndex) {
        self.streams.close_all(index.party(), self.now, &mut self.rng);
        self.end_relay(index);
    }

    /// Takes the power from a relay's host: nobody is told.
    pub fn power_off_relay(&mut self, index: RelayIndex) {
        self.streams.vanish(index.party());
        self.streams.set_off(index.party(), true, self.now);
        self.end_relay(index);
    }

    fn end_relay(&mut self, index: RelayIndex) {
        let Some(process) = self.relays.get_mut(index.0).and_then(|host| host.process.take()) else { return };
        for (stream, to) in process.conns.into_values() {
            self.leave(stream, to.other());
        }
        if let Some(stream) = process.uplink {
            self.leave(stream, End::Client);
        }
    }

    /// Whether a relay's process runs.
    pub fn relay_is_running(&self, index: RelayIndex) -> bool {
        self.relays.get(index.0).is_some_and(|host| host.process.is_some())
    }

    pub(super) fn relay_timeout(&mut self, index: usize) {
        let now = self.server_now();
        if let Some(core) = self.relays.get_mut(index).and_then(Host::core_mut)
            && core.poll_timeout().is_some_and(|at| at <= now.mono)
        {
            core.handle_timeout(now);
            self.touched.insert(Party::Relay(index));
        }
    }

    // ---- connections that others have dialled ----

    pub(super) fn arrive_at_relay(
        &mut self,
        (index, endpoint, conn): (usize, Endpoint, Option<ConnId>),
        id: StreamId,
        arrival: Arrival,
    ) {
        let now = self.server_now();
        let Some(host) = self.relays.get_mut(index) else { return };
        let Some(process) = &mut host.process else {
            return self.hang_up(id, End::Server, "connection refused");
        };
        self.touched.insert(Party::Relay(index));
        match (arrival, conn) {
            (Arrival::Opened, _) => {
                let accepted = match endpoint {
                    Endpoint::Data => process.core.connect(None, now, &mut host.rng),
                    Endpoint::Mesh => process.core.connect_mesh(None, now),
                };
                let Ok(conn) = accepted else { return self.hang_up(id, End::Server, "the relay is full") };
                process.conns.insert(conn, (id, End::Client));
                if let Some(ends) = self.ends.get_mut(&id) {
                    ends.server = Some(Server::Relay(index, endpoint, Some(conn)));
                }
                self.streams.accept(id, self.now, &mut self.rng);
            }
            (arrival, Some(conn)) => self.arrive_on_conn(index, conn, id, End::Server, arrival),
            (_, None) => {}
        }
    }

    fn arrive_on_conn(&mut self, index: usize, conn: ConnId, id: StreamId, end: End, arrival: Arrival) {
        let now = self.server_now();
        let Some(process) = self.relays.get_mut(index).and_then(|host| host.process.as_mut()) else { return };
        match arrival {
            Arrival::Opened => {}
            Arrival::Message(message) => {
                if self.config.capture {
                    self.relayed.push(message.clone());
                }
                process.core.handle_message(conn, message, now);
            }
            Arrival::Closed(_) => {
                process.conns.remove(&conn);
                process.core.disconnect(conn, now);
                self.leave(id, end);
            }
        }
    }

    // ---- connections that it dials ----

    pub(super) fn arrive_at_mesh_dialler(&mut self, index: usize, end: MeshEnd, id: StreamId, arrival: Arrival) {
        let now = self.server_now();
        let Some(host) = self.relays.get_mut(index) else { return };
        let Some(process) = &mut host.process else { return };
        self.touched.insert(Party::Relay(index));
        match (end, arrival) {
            (MeshEnd::Dialling(dial), Arrival::Opened) => match process.core.mesh_dialled(dial, now, &mut host.rng) {
                Some(conn) => {
                    process.conns.insert(conn, (id, End::Server));
                    if let Some(ends) = self.ends.get_mut(&id) {
                        ends.client = Some(Client::Mesh(index, MeshEnd::Linked(conn)));
                    }
                }
                None => self.hang_up(id, End::Client, "no longer wanted"),
            },
            (MeshEnd::Dialling(dial), Arrival::Closed(_)) => {
                process.core.mesh_dial_failed(dial, now, &mut host.rng);
                self.leave(id, End::Client);
            }
            (MeshEnd::Dialling(_), Arrival::Message(_)) => {}
            (MeshEnd::Linked(conn), arrival) => self.arrive_on_conn(index, conn, id, End::Client, arrival),
        }
    }

    pub(super) fn arrive_at_uplink(&mut self, index: usize, id: StreamId, arrival: Arrival) {
        let now = self.server_now();
        let Some(host) = self.relays.get_mut(index) else { return };
        let Some(process) = host.process.as_mut().filter(|p| p.uplink == Some(id)) else { return };
        self.touched.insert(Party::Relay(index));
        match arrival {
            Arrival::Opened => process.core.controller_connected(now, &mut host.rng),
            Arrival::Message(message) => process.core.handle_controller(&message, now),
            Arrival::Closed(_) => {
                process.uplink = None;
                process.core.controller_disconnected(now, &mut host.rng);
                self.leave(id, End::Client);
            }
        }
    }

    // ---- what it wants ----

    pub(super) fn drain_relay(&mut self, index: usize) {
        let now = self.server_now();
        while let Some(event) = self.relays.get_mut(index).and_then(|h| h.core_mut()?.poll_event()) {
            match event {
                RelayEvent::Writable(conn) => self.flush_relay(index, conn),
                RelayEvent::Close { conn, flush, .. } => {
                    let Some(process) = self.relays.get_mut(index).and_then(|h| h.process.as_mut()) else { return };
                    let Some((stream, to)) = process.conns.remove(&conn) else { continue };
                    let mut last = Vec::new();
                    if flush {
                        process.core.poll_transmit(conn, CAPACITY, now, &mut last);
                    }
                    process.core.disconnect(conn, now);
                    for run in last {
                        self.transmit(stream, to, run);
                    }
                    self.hang_up(stream, to.other(), "closed by the relay");
                }
                RelayEvent::DialMesh { dial, relay, .. } => {
                    let other = self.relays.iter().position(|r| Some(r.id) == relay).unwrap_or_default();
                    let client = Client::Mesh(index, MeshEnd::Dialling(dial));
                    self.dial(
                        Party::Relay(index),
                        client,
                        Party::Relay(other),
                        Server::Relay(other, Endpoint::Mesh, None),
                    );
                }
                RelayEvent::DialController => {
                    let server = Server::Control(controller::Endpoint::Server, None);
                    let stream = self.dial(Party::Relay(index), Client::Uplink(index), Party::Controller, server);
                    if let Some(process) = self.relays.get_mut(index).and_then(|h| h.process.as_mut()) {
                        process.uplink = Some(stream);
                    }
                }
                RelayEvent::ToController(message) => {
                    let process = self.relays.get(index).and_then(|h| h.process.as_ref());
                    // Little is said on this channel: it never waits for room.
                    if let Some(stream) = process.and_then(|p| p.uplink) {
                        self.transmit(stream, End::Server, message);
                    }
                }
                RelayEvent::CloseController => {
                    let process = self.relays.get_mut(index).and_then(|h| h.process.as_mut());
                    if let Some(stream) = process.and_then(|p| p.uplink.take()) {
                        self.hang_up(stream, End::Client, "closed by the relay");
                    }
                }
                RelayEvent::StateChanged => {
                    if let Some(host) = self.relays.get_mut(index) {
                        host.saved = host.core().map(Relay::saved_state);
                    }
                }
                RelayEvent::ControllerRefused { code, message } => {
                    tracing::info!(relay = index, ?code, message, "the controller refuses a relay");
                }
                RelayEvent::NodeConnected { .. }
                | RelayEvent::NodeDisconnected { .. }
                | RelayEvent::MeshUp { .. }
                | RelayEvent::MeshDown { .. } => {}
            }
        }
    }

    pub(super) fn flush_relay(&mut self, index: usize, conn: ConnId) {
        let now = self.server_now();
        let mut out = Vec::new();
        while let Some(process) = self.relays.get_mut(index).and_then(|h| h.process.as_mut())
            && let Some((stream, to)) = process.conns.get(&conn).copied()
        {
            let free = self.streams.free(stream, to).min(64 << 10);
            if free == 0 || process.core.poll_transmit(conn, free, now, &mut out) == 0 {
                return;
            }
            for run in out.drain(..) {
                self.transmit(stream, to, run);
            }
        }
    }
}
