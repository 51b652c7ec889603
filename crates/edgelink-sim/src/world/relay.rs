//! Relays: their processes, and the connections of nodes to them.

use super::*;
use crate::streams::CAPACITY;
use edgelink_auth::token::Issuer;
use edgelink_model::records::{ServerKind, ServerRecord};
pub(super) use edgelink_relay::ConnId;
use edgelink_relay::{RelayConfig, RelayEvent};

/// A relay's host.
pub(super) struct Host {
    pub(super) id: ServerId,
    pub(super) rng: ChaCha20Rng,
    process: Option<Process>,
    pub(super) malice: Option<malice::Malice>,
}

struct Process {
    core: Relay,
    conns: BTreeMap<ConnId, StreamId>,
}

impl Host {
    pub(super) fn new(id: ServerId, rng: ChaCha20Rng) -> Self {
        Self { id, rng, process: None, malice: None }
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
        self.start_relay(index);
        index
    }

    /// Starts a relay's process.
    pub fn start_relay(&mut self, index: RelayIndex) {
        self.streams.set_off(index.party(), false, self.now);
        let now = self.server_now();
        let issuer = Issuer::new(&self.token_keys);
        // The issuer made the keys: that its public half is one is its own promise.
        #[expect(clippy::expect_used, reason = "the simulator itself is broken when this fails")]
        let verifier = issuer.relay_verifier().expect("own keys make a verifier");
        let revocations = self.database.revocations();
        let Some(host) = self.relays.get_mut(index.0).filter(|host| host.process.is_none()) else { return };
        let mut core = Relay::new(RelayConfig::new(host.id), verifier);
        core.set_revocations(&revocations, now);
        host.process = Some(Process { core, conns: BTreeMap::new() });
        self.touched.insert(index.party());
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
        let process = self.relays.get_mut(index.0).and_then(|host| host.process.take());
        for stream in process.into_iter().flat_map(|p| p.conns.into_values()) {
            self.leave(stream, End::Server);
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

    pub(super) fn arrive_at_relay(&mut self, index: usize, conn: Option<ConnId>, id: StreamId, arrival: Arrival) {
        let now = self.server_now();
        let Some(host) = self.relays.get_mut(index) else { return };
        let Some(process) = &mut host.process else {
            return self.hang_up(id, End::Server, "connection refused");
        };
        self.touched.insert(Party::Relay(index));
        match (arrival, conn) {
            (Arrival::Opened, _) => match process.core.connect(None, now, &mut host.rng) {
                Ok(conn) => {
                    process.conns.insert(conn, id);
                    if let Some(ends) = self.ends.get_mut(&id) {
                        ends.server = Some(Server::Relay(index, Some(conn)));
                    }
                    self.streams.accept(id, self.now, &mut self.rng);
                }
                Err(_) => self.hang_up(id, End::Server, "the relay is full"),
            },
            (Arrival::Message(message), Some(conn)) => {
                if self.config.capture {
                    self.relayed.push(message.clone());
                }
                process.core.handle_message(conn, message, now);
            }
            (Arrival::Closed(_), Some(conn)) => {
                process.conns.remove(&conn);
                process.core.disconnect(conn, now);
                self.leave(id, End::Server);
            }
            (Arrival::Message(_) | Arrival::Closed(_), None) => {}
        }
    }

    pub(super) fn drain_relay(&mut self, index: usize) {
        let now = self.server_now();
        while let Some(event) = self.relays.get_mut(index).and_then(|h| h.core_mut()?.poll_event()) {
            match event {
                RelayEvent::Writable(conn) => self.flush_relay(index, conn),
                RelayEvent::Close { conn, flush, .. } => {
                    let Some(process) = self.relays.get_mut(index).and_then(|h| h.process.as_mut()) else { return };
                    let Some(stream) = process.conns.remove(&conn) else { continue };
                    let mut last = Vec::new();
                    if flush {
                        process.core.poll_transmit(conn, CAPACITY, now, &mut last);
                    }
                    process.core.disconnect(conn, now);
                    for run in last {
                        self.transmit(stream, End::Client, run);
                    }
                    self.hang_up(stream, End::Server, "closed by the relay");
                }
                RelayEvent::NodeConnected { .. } | RelayEvent::NodeDisconnected { .. } => {}
            }
        }
    }

    pub(super) fn flush_relay(&mut self, index: usize, conn: ConnId) {
        let now = self.server_now();
        let mut out = Vec::new();
        while let Some(process) = self.relays.get_mut(index).and_then(|h| h.process.as_mut())
            && let Some(stream) = process.conns.get(&conn).copied()
        {
            let free = self.streams.free(stream, End::Client).min(64 << 10);
            if free == 0 || process.core.poll_transmit(conn, free, now, &mut out) == 0 {
                return;
            }
            for run in out.drain(..) {
                self.transmit(stream, End::Client, run);
            }
        }
    }
}
