//! Drives the built-in relay's core: WebSockets on `/ws/data` and the clock.

use crate::socket::{self, Core, Handle};
use crate::{now, os_rng};
use bytes::{Bytes, BytesMut};
use edgelink_model::records::RevocationRecord;
use edgelink_net::ws::WebSocket;
use edgelink_relay::{ConnId, Relay, RelayEvent, RelayStats};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;
use tokio::sync::Notify;

/// Runs of frames shorter than this are copied together into one WebSocket message; longer ones go as they came.
const COALESCE_BELOW: usize = 16 << 10;

/// Messages shorter than this are copied out of the buffer that they were read into.
const COPY_BELOW: usize = 4 << 10;

/// The relay of this process.
pub(crate) struct RelayShell {
    relay: RefCell<Relay>,
    conns: RefCell<HashMap<ConnId, Rc<Handle>>>,
    armed: Cell<Option<Instant>>,
    rearm: Notify,
}

impl RelayShell {
    pub(crate) fn new(relay: Relay) -> Rc<Self> {
        Rc::new(Self {
            relay: RefCell::new(relay),
            conns: RefCell::default(),
            armed: Cell::new(None),
            rearm: Notify::new(),
        })
    }

    pub(crate) fn start(self: &Rc<Self>) {
        tokio::task::spawn_local(Rc::clone(self).run_timers());
    }

    pub(crate) fn stats(&self) -> RelayStats {
        self.relay.borrow().stats()
    }

    pub(crate) fn set_revocations<'a>(&self, records: impl IntoIterator<Item = &'a RevocationRecord>) {
        self.relay.borrow_mut().set_revocations(records, now());
    }

    /// A token or node was revoked: its connections end now.
    pub(crate) fn revoke(self: &Rc<Self>, record: &RevocationRecord) {
        self.relay.borrow_mut().revoke(record, now());
        self.pump();
    }

    /// A node's connection, from its upgrade to its end. `remote` is the client's address where no proxy hides it.
    pub(crate) async fn connection(self: Rc<Self>, ws: WebSocket, remote: Option<IpAddr>) {
        let connected = self.relay.borrow_mut().connect(remote, now(), &mut os_rng());
        let id = match connected {
            Ok(id) => id,
            Err(error) => {
                tracing::debug!(%error, "relay connection refused");
                // RFC 6455 §7.4.1, registered later: try again later.
                return ws.close(1013, "overloaded").await;
            }
        };
        let handle = Rc::new(Handle::default());
        self.conns.borrow_mut().insert(id, Rc::clone(&handle));
        self.pump();
        socket::drive(ws, handle, &RelaySocket { shell: &self, id }).await;
        self.conns.borrow_mut().remove(&id);
        self.relay.borrow_mut().disconnect(id, now());
        self.pump();
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
                _ => {}
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
