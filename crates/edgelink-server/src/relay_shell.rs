//! Drives a relay's core: WebSockets on `/ws/data` and `/ws/mesh`, in both directions, the clock, and the way to the
//! controller, which is a WebSocket for a stand-alone relay and a queue for the controller's own.

use crate::dialler::MeshDialler;
use crate::socket::{self, Core, Handle};
use crate::{now, os_rng};
use bytes::{Bytes, BytesMut};
use edgelink_model::records::RevocationRecord;
use edgelink_net::ws::WebSocket;
use edgelink_relay::{ConnId, ConnectError, DialId, MeshLink, Registration, Relay, RelayEvent, RelayStats};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};

/// Runs of frames shorter than this are copied together into one WebSocket message; longer ones go as they came.
const COALESCE_BELOW: usize = 16 << 10;

/// Messages shorter than this are copied out of the buffer that they were read into.
const COPY_BELOW: usize = 4 << 10;

/// Messages that may wait on their way to the controller; beyond it the connection counts as lost.
pub const TO_CONTROLLER: usize = 4_096;

/// A relay that ends waits at most so long for nodes to move to others …
const DRAIN_AT_MOST: Duration = Duration::from_secs(4);
/// … and is left when no data has come for so long.
const DRAINED_AFTER: Duration = Duration::from_millis(750);
/// Then connections have so long to end.
const CLOSE_AT_MOST: Duration = Duration::from_secs(1);
const CLOSE_POLL: Duration = Duration::from_millis(10);

/// What the relay wants of its connection to the controller. No `Debug`: a message may hold the server_token.
pub enum UplinkEvent {
    /// Connect, and report the outcome.
    Dial,
    /// Send this.
    Message(Bytes),
    /// Close, and report nothing.
    Close,
}

/// The relay of this process.
pub struct RelayShell {
    relay: RefCell<Relay>,
    conns: RefCell<HashMap<ConnId, Rc<Handle>>>,
    dialler: MeshDialler,
    uplink: mpsc::Sender<UplinkEvent>,
    /// Its state changed since it was saved last.
    pub changed: Notify,
    armed: Cell<Option<Instant>>,
    rearm: Notify,
}

impl RelayShell {
    /// A shell around `relay`. Whoever holds the receiver of `uplink` carries messages to the controller.
    pub fn new(relay: Relay, dialler: MeshDialler, uplink: mpsc::Sender<UplinkEvent>) -> Rc<Self> {
        Rc::new(Self {
            relay: RefCell::new(relay),
            conns: RefCell::default(),
            dialler,
            uplink,
            changed: Notify::new(),
            armed: Cell::new(None),
            rearm: Notify::new(),
        })
    }

    /// Starts what runs beside the connections: timers, and the connection to the controller.
    pub fn start(self: &Rc<Self>, registration: Registration) {
        tokio::task::spawn_local(Rc::clone(self).run_timers());
        self.relay.borrow_mut().start_uplink(registration, now());
        self.pump();
    }

    /// Counters and gauges.
    pub fn stats(&self) -> RelayStats {
        self.relay.borrow().stats()
    }

    /// Links to other relays.
    pub fn mesh_links(&self) -> Vec<MeshLink> {
        self.relay.borrow().mesh_links().collect()
    }

    /// What outlives a restart. It holds secrets.
    pub fn saved_state(&self) -> Vec<u8> {
        self.relay.borrow().saved_state()
    }

    /// Where one controller or another may be the active one, as the relay was told.
    pub fn controllers(&self) -> Vec<String> {
        self.relay.borrow().controllers().to_vec()
    }

    /// Whether the controller has ever told which keys to trust, to this process or an earlier one.
    pub fn knows_its_controller(&self) -> bool {
        self.relay.borrow().has_keys()
    }

    /// Replaces all revocations.
    pub fn set_revocations<'a>(&self, records: impl IntoIterator<Item = &'a RevocationRecord>) {
        self.relay.borrow_mut().set_revocations(records, now());
    }

    /// A token or node was revoked: its connections end now.
    pub fn revoke(self: &Rc<Self>, record: &RevocationRecord) {
        self.relay.borrow_mut().revoke(record, now());
        self.pump();
    }

    /// The controller is connected.
    pub fn controller_connected(self: &Rc<Self>) {
        self.relay.borrow_mut().controller_connected(now(), &mut os_rng());
        self.pump();
    }

    /// The controller could not be reached, or its connection ended.
    pub fn controller_lost(self: &Rc<Self>) {
        self.relay.borrow_mut().controller_disconnected(now(), &mut os_rng());
        self.pump();
    }

    /// The controller says something.
    pub fn controller_message(self: &Rc<Self>, message: &[u8]) {
        self.relay.borrow_mut().handle_controller(message, now());
        self.pump();
    }

    /// Lets the relay end without a loss: nodes and other relays are told, have time to move, and the connections are
    /// closed once data has ceased for a moment, or after `DRAIN_AT_MOST`.
    pub async fn drain(self: &Rc<Self>) {
        let useful = self.relay.borrow_mut().drain(now());
        self.pump();
        if useful {
            tracing::info!("nodes move to other relays");
            let begin = Instant::now();
            let (mut forwarded, mut since) = (self.stats().forwarded_data_frames, begin);
            while begin.elapsed() < DRAIN_AT_MOST && since.elapsed() < DRAINED_AFTER {
                tokio::time::sleep(DRAINED_AFTER / 10).await;
                let frames = self.stats().forwarded_data_frames;
                if frames != forwarded {
                    (forwarded, since) = (frames, Instant::now());
                }
            }
        }
        self.conns.borrow().values().for_each(|handle| handle.close(true));
        let closed = async {
            while !self.conns.borrow().is_empty() {
                tokio::time::sleep(CLOSE_POLL).await;
            }
        };
        if tokio::time::timeout(CLOSE_AT_MOST, closed).await.is_err() {
            tracing::debug!("some connections did not end in time");
        }
    }

    /// Sends everybody away at once; whoever comes again is served.
    pub fn close_all(&self) {
        self.conns.borrow().values().for_each(|handle| handle.close(true));
    }

    /// A node's connection, from its upgrade to its end. `remote` is the client's address where no proxy hides it.
    pub async fn connection(self: Rc<Self>, ws: WebSocket, remote: Option<IpAddr>) {
        let connected = self.relay.borrow_mut().connect(remote, now(), &mut os_rng());
        self.accepted(ws, connected).await;
    }

    /// Another relay's connection, likewise.
    pub async fn mesh_connection(self: Rc<Self>, ws: WebSocket, remote: Option<IpAddr>) {
        let connected = self.relay.borrow_mut().connect_mesh(remote, now());
        self.accepted(ws, connected).await;
    }

    async fn accepted(self: Rc<Self>, ws: WebSocket, connected: Result<ConnId, ConnectError>) {
        match connected {
            Ok(id) => self.drive(ws, id).await,
            Err(error) => {
                tracing::debug!(%error, "relay connection refused");
                // RFC 6455 §7.4.1, registered later: try again later.
                ws.close(1013, "overloaded").await;
            }
        }
    }

    async fn dial(self: Rc<Self>, dial: DialId, url: String, path: String) {
        match self.dialler.dial(&url, &path).await {
            Ok(ws) => {
                let id = self.relay.borrow_mut().mesh_dialled(dial, now(), &mut os_rng());
                match id {
                    Some(id) => self.drive(ws, id).await,
                    None => {
                        self.pump();
                        ws.close(1000, "").await;
                    }
                }
            }
            Err(error) => {
                tracing::debug!(url, path, %error, "another relay cannot be reached");
                self.relay.borrow_mut().mesh_dial_failed(dial, now(), &mut os_rng());
                self.pump();
            }
        }
    }

    async fn drive(self: &Rc<Self>, ws: WebSocket, id: ConnId) {
        let handle = Rc::new(Handle::default());
        self.conns.borrow_mut().insert(id, Rc::clone(&handle));
        self.pump();
        socket::drive(ws, handle, &RelaySocket { shell: self, id }).await;
        self.conns.borrow_mut().remove(&id);
        self.relay.borrow_mut().disconnect(id, now());
        self.pump();
    }

    fn tell_uplink(&self, event: UplinkEvent) {
        if self.uplink.try_send(event).is_err() {
            // The controller takes nothing: the core finds out by its silence.
            tracing::debug!("a message to the controller is lost");
        }
    }

    fn pump(self: &Rc<Self>) {
        loop {
            let event = self.relay.borrow_mut().poll_event();
            let Some(event) = event else { break };
            match event {
                RelayEvent::Writable(conn) => {
                    if let Some(handle) = self.conns.borrow().get(&conn) {
                        handle.wake.notify_one();
                    }
                }
                RelayEvent::Close { conn, reason, flush } => {
                    tracing::debug!(%conn, %reason, "relay connection closed");
                    if let Some(handle) = self.conns.borrow().get(&conn) {
                        handle.close(flush);
                    }
                }
                RelayEvent::NodeConnected { node, .. } => tracing::debug!(%node, "node connected to the relay"),
                RelayEvent::NodeDisconnected { node, .. } => tracing::debug!(%node, "node left the relay"),
                RelayEvent::DialMesh { dial, url, path, .. } => {
                    tokio::task::spawn_local(Rc::clone(self).dial(dial, url, path));
                }
                RelayEvent::MeshUp { relay, .. } => tracing::info!(%relay, "linked with another relay"),
                RelayEvent::MeshDown { relay, .. } => tracing::info!(%relay, "link with another relay lost"),
                RelayEvent::DialController => self.tell_uplink(UplinkEvent::Dial),
                RelayEvent::ToController(message) => self.tell_uplink(UplinkEvent::Message(message)),
                RelayEvent::CloseController => self.tell_uplink(UplinkEvent::Close),
                RelayEvent::ControllerRefused { code, message } => {
                    let code = code.map(edgelink_model::ErrorCode::as_u16);
                    tracing::error!(code, "the controller refuses this server: {message}");
                }
                RelayEvent::StateChanged => self.changed.notify_one(),
            }
        }
        let deadline = self.relay.borrow().poll_timeout();
        if deadline != self.armed.get() {
            self.armed.set(deadline);
            self.rearm.notify_one();
        }
    }

    async fn run_timers(self: Rc<Self>) {
        loop {
            let sleep = async {
                match self.armed.get() {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {
                    self.relay.borrow_mut().handle_timeout(now());
                    self.armed.set(None);
                    self.pump();
                }
                () = self.rearm.notified() => {}
            }
        }
    }
}

struct RelaySocket<'a> {
    shell: &'a Rc<RelayShell>,
    id: ConnId,
}

impl Core for RelaySocket<'_> {
    fn message(&self, message: Bytes) {
        // Small messages share the read buffer they came in; queued, one of them would keep all of it alive.
        let message = if message.len() < COPY_BELOW { Bytes::copy_from_slice(&message) } else { message };
        self.shell.relay.borrow_mut().handle_message(self.id, message, now());
    }

    fn text(&self) {
        self.shell.relay.borrow_mut().handle_text(self.id, now());
    }

    fn pump(&self) {
        self.shell.pump();
    }

    fn transmit(&self, bytes: usize, out: &mut Vec<Bytes>) {
        let mut runs = Vec::new();
        self.shell.relay.borrow_mut().poll_transmit(self.id, bytes, now(), &mut runs);
        coalesce(runs, out);
    }
}

/// Joins neighbouring short runs, so that many small packets cost one WebSocket message, and leaves long ones uncopied.
fn coalesce(runs: Vec<Bytes>, out: &mut Vec<Bytes>) {
    let mut joined = BytesMut::new();
    for run in runs {
        if run.len() >= COALESCE_BELOW {
            if !joined.is_empty() {
                out.push(joined.split().freeze());
            }
            out.push(run);
        } else {
            joined.extend_from_slice(&run);
        }
    }
    if !joined.is_empty() {
        out.push(joined.freeze());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_and_long_runs_are_not_copied() {
        let long = Bytes::from(vec![7; COALESCE_BELOW]);
        let runs = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b"), long.clone(), Bytes::from_static(b"c")];
        let mut out = Vec::new();
        coalesce(runs, &mut out);
        assert_eq!(out, [Bytes::from_static(b"ab"), long.clone(), Bytes::from_static(b"c")]);
        assert_eq!(out[1].as_ptr(), long.as_ptr());
    }
}
