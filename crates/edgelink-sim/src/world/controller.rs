//! The controller: its process, its database, and the connections of nodes to it.

use super::*;
use crate::streams::CAPACITY;
use edgelink_auth::token::Issuer;
use edgelink_control::{Control, ControlConfig, NodeSettings, StoreOp};
use std::collections::VecDeque;

/// Which of the controller's endpoints is dialled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/ws/control`: a node.
    Control,
    /// `/ws/server`: a relay.
    Server,
}

/// The controller's process.
pub(super) struct Controller {
    pub(super) core: Control,
    conns: BTreeMap<control::ConnId, StreamId>,
    /// What waits for room in a stream.
    waiting: BTreeMap<StreamId, VecDeque<Bytes>>,
}

impl World {
    /// Starts the controller from its database, and its built-in relay.
    pub fn start_server(&mut self) {
        self.start_controller();
        self.start_relay(RelayIndex::BUILTIN);
    }

    /// Starts the control plane only.
    pub fn start_controller(&mut self) {
        if self.controller.is_none() {
            let standard = ControlConfig::default();
            let settings = NodeSettings { node_key_rotate_secs: self.config.rotate_secs, ..standard.settings.clone() };
            let config = ControlConfig { hosts: [CONTROLLER.to_owned()].into(), settings, ..standard };
            let core = Control::new(config, Issuer::new(&self.token_keys), self.database.snapshot());
            self.controller = Some(Controller { core, conns: BTreeMap::new(), waiting: BTreeMap::new() });
            self.touched.insert(Party::Controller);
            self.give_tokens();
        }
    }

    /// The period of key rotation, from the controller's next start on.
    pub fn set_rotation(&mut self, secs: u32) {
        self.config.rotate_secs = secs;
    }

    /// Ends the controller's process and its relay; the kernel closes their connections.
    pub fn kill_server(&mut self) {
        self.kill_controller();
        self.kill_relay(RelayIndex::BUILTIN);
    }

    /// Ends the control plane only, as if the built-in relay were a process of its own.
    pub fn kill_controller(&mut self) {
        self.streams.close_all(Party::Controller, self.now, &mut self.rng);
        for stream in self.controller.take().into_iter().flat_map(|c| c.conns.into_values()) {
            self.leave(stream, End::Server);
        }
    }

    /// Whether the controller's process runs.
    pub fn controller_is_running(&self) -> bool {
        self.controller.is_some()
    }

    /// The controller's core, to look into, while its process runs.
    pub fn control(&self) -> Option<&Control> {
        self.controller.as_ref().map(|c| &c.core)
    }

    /// Applies what is new in the change log, as the controller's shell does within 200 ms.
    pub(super) fn tail_change_log(&mut self) {
        let Some(controller) = &self.controller else { return };
        if controller.core.version() == self.database.version() {
            return;
        }
        self.apply_changes();
        self.touched.insert(Party::Controller);
    }

    fn apply_changes(&mut self) {
        let now = self.server_now();
        let Some(controller) = &mut self.controller else { return };
        let changes = self.database.changes_after(controller.core.version());
        controller.core.apply(self.database.version(), changes, now, &mut self.rng);
    }

    pub(super) fn controller_timeout(&mut self) {
        let now = self.server_now();
        if let Some(controller) = &mut self.controller
            && controller.core.poll_timeout().is_some_and(|at| at <= now.mono)
        {
            controller.core.handle_timeout(now, &mut self.rng);
            self.touched.insert(Party::Controller);
        }
    }

    pub(super) fn arrive_at_controller(
        &mut self,
        endpoint: Endpoint,
        conn: Option<control::ConnId>,
        id: StreamId,
        arrival: Arrival,
    ) {
        let now = self.server_now();
        let Some(controller) = &mut self.controller else {
            return self.hang_up(id, End::Server, "connection refused");
        };
        self.touched.insert(Party::Controller);
        match (arrival, conn) {
            (Arrival::Opened, _) => {
                let conn = match endpoint {
                    Endpoint::Control => controller.core.connect(now),
                    Endpoint::Server => controller.core.connect_server(now),
                };
                controller.conns.insert(conn, id);
                if let Some(ends) = self.ends.get_mut(&id) {
                    ends.server = Some(Server::Control(endpoint, Some(conn)));
                }
                self.streams.accept(id, self.now, &mut self.rng);
            }
            (Arrival::Message(message), Some(conn)) => {
                controller.core.handle_message(conn, &message, now, &mut self.rng);
            }
            (Arrival::Closed(_), Some(conn)) => {
                controller.conns.remove(&conn);
                controller.waiting.remove(&id);
                controller.core.disconnect(conn, now);
                self.leave(id, End::Server);
            }
            (Arrival::Message(_) | Arrival::Closed(_), None) => {}
        }
    }

    pub(super) fn drain_controller(&mut self) {
        let now = self.server_now();
        while let Some(controller) = &mut self.controller
            && let Some(event) = controller.core.poll_event()
        {
            match event {
                control::Event::Send { conn, message } => {
                    if let Some(stream) = controller.conns.get(&conn).copied() {
                        controller.waiting.entry(stream).or_default().push_back(message);
                        self.flush_controller(stream);
                    }
                }
                control::Event::Close { conn } => {
                    if let Some(stream) = controller.conns.remove(&conn) {
                        // The shell flushes what was sent before; a stream takes it beyond its bound then.
                        for message in controller.waiting.remove(&stream).unwrap_or_default() {
                            self.transmit(stream, End::Client, message);
                        }
                        self.hang_up(stream, End::Server, "closed by the controller");
                    }
                }
                // Every relay is told on its own connection, the built-in one as well.
                control::Event::Revoked(_) => {}
                control::Event::Store(StoreOp::Enroll { conn, request }) => {
                    let outcome = self.database.enroll(&request);
                    self.apply_changes();
                    if let Some(controller) = &mut self.controller {
                        controller.core.handle_enrolled(conn, outcome, now, &mut self.rng);
                    }
                }
                control::Event::Store(StoreOp::SetNodeKey { node, key }) => {
                    self.database.set_node_key(node, key);
                    self.apply_changes();
                }
                control::Event::Store(StoreOp::UpdateServer(record)) => {
                    self.database.put_server(record);
                    self.apply_changes();
                }
                control::Event::Store(StoreOp::AnnounceRoutes { node, routes, approve }) => {
                    self.database.announce_routes(node, &routes, approve);
                    self.apply_changes();
                }
                control::Event::Store(StoreOp::Seen { .. } | StoreOp::ServerSeen { .. } | StoreOp::SetEndpoints(_)) => {
                }
            }
        }
    }

    /// Sends what waits for a stream, as far as there is room.
    pub(super) fn flush_controller(&mut self, stream: StreamId) {
        const { assert!(CAPACITY > 0) };
        while let Some(controller) = &mut self.controller
            && let Some(waiting) = controller.waiting.get_mut(&stream)
            && !waiting.is_empty()
            && self.streams.free(stream, End::Client) > 0
            && let Some(message) = waiting.pop_front()
        {
            self.transmit(stream, End::Client, message);
        }
    }
}
