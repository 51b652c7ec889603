//! Drives the control core: WebSockets on `/ws/control`, the database, the clock.

mod presence;
mod writes;

use crate::leader::Role;
use crate::live::Ask;
use crate::{figures, now, os_rng};
use bytes::Bytes;
use edgelink_control::{ConnId, Control, ControlConfig, Event, Stats, StoreOp};
use edgelink_model::records::{Change, NodeEndpoints, ServerRecord};
use edgelink_model::{NodeId, ServerId};
use edgelink_net::server::Entered;
use edgelink_net::ws::WebSocket;
use edgelink_server::relay_shell::{RelayShell, UplinkEvent};
use edgelink_server::socket::{self, Core, Handle, Outbox};
use edgelink_store::{Changes, NodeWrite, Store, StoreError};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify, mpsc};
use writes::Writing;

/// The change log is looked at this often; our own writes are looked at at once (DESIGN §4).
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// A node that reads so slowly that this much waits for it is disconnected; it gets everything when it comes back.
const OUTBOX_LIMIT: usize = 16 << 20;
/// Changes kept for controllers and tools that follow the log.
const KEEP_CHANGES: u64 = 100_000;
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// How long the last of them may take when the controller ends.
const LAST_WRITES: Duration = Duration::from_secs(3);

/// A database that takes longer to answer is away.
const DATABASE_PATIENCE: Duration = Duration::from_secs(10);

/// The control plane of this process.
pub(crate) struct Hub {
    control: RefCell<Control>,
    store: Store,
    relay: Option<Rc<RelayShell>>,
    conns: RefCell<HashMap<ConnId, Rc<Conn>>>,
    presence: RefCell<BTreeMap<NodeId, bool>>,
    servers: RefCell<BTreeMap<ServerId, bool>>,
    endpoints: RefCell<BTreeMap<NodeId, NodeEndpoints>>,
    /// What nodes want written, in the order in which they came.
    writes: RefCell<VecDeque<Writing>>,
    to_write: Notify,
    /// Some of them are being written.
    writing: Cell<bool>,
    written: Notify,
    armed: Cell<Option<Instant>>,
    rearm: Notify,
    /// One reader of the change log at a time, so that changes are applied in their order.
    tail: Mutex<()>,
    /// A setting in the database changed.
    settings: Notify,
    /// The database failed at the last attempt.
    database_away: Cell<bool>,
    /// The database is being closed: nothing is read from it any more.
    ended: Cell<bool>,
    role: RefCell<Role>,
    /// Told when this controller becomes the active one.
    activated: Notify,
    /// The core's settings as configured, and the controllers of this database beside those that are configured.
    settings_of_core: RefCell<ControlConfig>,
    controllers: RefCell<Vec<String>>,
}

/// What a control connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// `/ws/control`.
    Node,
    /// `/ws/server`.
    Server,
}

#[derive(Default)]
struct Conn {
    handle: Rc<Handle>,
    outbox: Outbox,
    entered: Cell<Option<Entered>>,
}

impl Hub {
    /// `config` is what `control` was made with.
    pub(crate) fn new(
        control: Control,
        config: ControlConfig,
        store: Store,
        relay: Option<Rc<RelayShell>>,
        role: Role,
    ) -> Rc<Self> {
        Rc::new(Self {
            control: RefCell::new(control),
            settings_of_core: RefCell::new(config),
            controllers: RefCell::default(),
            store,
            relay,
            conns: RefCell::default(),
            presence: RefCell::default(),
            servers: RefCell::default(),
            endpoints: RefCell::default(),
            writes: RefCell::default(),
            to_write: Notify::new(),
            writing: Cell::new(false),
            written: Notify::new(),
            armed: Cell::new(None),
            rearm: Notify::new(),
            tail: Mutex::new(()),
            settings: Notify::new(),
            database_away: Cell::new(false),
            ended: Cell::new(false),
            role: RefCell::new(role),
            activated: Notify::new(),
        })
    }

    pub(crate) fn role(&self) -> Role {
        self.role.borrow().clone()
    }

    pub(crate) fn is_active(&self) -> bool {
        matches!(*self.role.borrow(), Role::Active { .. })
    }

    /// The database as the core's writes reach it: not any more, once another controller is the active one.
    fn writer(&self) -> Store {
        match *self.role.borrow() {
            Role::Active { epoch: Some(epoch) } => self.store.fenced(epoch),
            _ => self.store.clone(),
        }
    }

    /// Reads the change log now, for a controller that is about to become the active one.
    pub(crate) async fn catch_up(self: &Rc<Self>) -> Result<(), StoreError> {
        self.try_follow().await
    }

    /// Serves nodes and relays from now on.
    pub(crate) fn activate(&self, epoch: u64) {
        tracing::info!("this controller is the active one now");
        *self.role.borrow_mut() = Role::Active { epoch: Some(epoch) };
        self.activated.notify_one();
    }

    /// Serves nodes and relays no more: they are sent away, and find the active controller by themselves.
    pub(crate) fn step_down(self: &Rc<Self>, role: Role) {
        match role {
            Role::Cut => tracing::warn!("the database cannot be reached: another controller may become the active one"),
            _ => tracing::warn!("this controller is not the active one any more"),
        }
        *self.role.borrow_mut() = role;
        self.conns.borrow().values().for_each(|conn| conn.handle.close(true));
        self.presence.borrow_mut().clear();
        self.servers.borrow_mut().clear();
    }

    /// Another controller is the active one, or none is yet.
    pub(crate) fn stand_by(&self, role: Role) {
        let before = self.role.replace(role.clone());
        if before == role {
            return;
        }
        if let Role::Standby { active: Some(url) } = &role {
            tracing::info!(active = url, "this controller stands by");
        }
        // Nodes must not be divided between two built-in relays that go by one name.
        if let (Role::Cut | Role::Active { .. } | Role::Standby { active: None }, Some(relay)) = (before, &self.relay) {
            relay.close_all();
        }
    }

    /// Starts what runs beside the connections.
    pub(crate) fn start(self: &Rc<Self>) {
        tokio::task::spawn_local(Rc::clone(self).run_timers());
        tokio::task::spawn_local(Rc::clone(self).run_writes());
        tokio::task::spawn_local(Rc::clone(self).run_tail());
        tokio::task::spawn_local(Rc::clone(self).run_presence());
        tokio::task::spawn_local(Rc::clone(self).run_pruning());
        tokio::task::spawn_local(Rc::clone(self).run_measurements());
    }

    pub(crate) fn stats(&self) -> Stats {
        self.control.borrow().stats()
    }

    /// Waits until somebody changes a setting in the database.
    pub(crate) async fn settings_changed(&self) {
        self.settings.notified().await;
    }

    /// Goes on with another configuration.
    pub(crate) fn reconfigure(self: &Rc<Self>, config: ControlConfig) {
        *self.settings_of_core.borrow_mut() = config.clone();
        let mut config = config;
        for url in self.controllers.borrow().iter() {
            if !config.settings.controllers.contains(url) {
                config.settings.controllers.push(url.clone());
            }
        }
        self.control.borrow_mut().reconfigure(config, now());
        self.pump();
    }

    /// The controllers of this database: nodes and relays learn of them.
    pub(crate) fn set_controllers(self: &Rc<Self>, urls: Vec<String>) {
        if self.controllers.replace(urls.clone()) != urls {
            let config = self.settings_of_core.borrow().clone();
            self.reconfigure(config);
        }
    }

    pub(crate) fn database_works(&self) -> bool {
        !self.database_away.get()
    }

    /// A node's or server's connection, from its upgrade to its end. `entered` counts it as unauthenticated until the
    /// other side has proved who it is.
    pub(crate) async fn connection(self: Rc<Self>, ws: WebSocket, channel: Channel, entered: Option<Entered>) {
        let conn = Rc::new(Conn { entered: Cell::new(entered), ..Conn::default() });
        let id = self.open(channel, &conn);
        let handle = Rc::clone(&conn.handle);
        socket::drive(ws, handle, &NodeSocket { hub: &self, id, conn: &conn }).await;
        self.close(id);
    }

    /// The built-in relay's connection: the same messages as any relay's, without a socket between.
    pub(crate) async fn builtin(self: Rc<Self>, relay: Rc<RelayShell>, mut events: mpsc::Receiver<UplinkEvent>) {
        while let Some(event) = events.recv().await {
            if !matches!(event, UplinkEvent::Dial) {
                continue;
            }
            while !self.is_active() {
                self.activated.notified().await;
            }
            let conn = Rc::new(Conn::default());
            let id = self.open(Channel::Server, &conn);
            relay.controller_connected();
            let ended_by_relay = loop {
                tokio::select! {
                    event = events.recv() => match event {
                        Some(UplinkEvent::Message(message)) => {
                            self.control.borrow_mut().handle_message(id, &message, now(), &mut os_rng());
                            self.pump();
                        }
                        Some(UplinkEvent::Close | UplinkEvent::Dial) | None => break true,
                    },
                    () = conn.handle.wake.notified() => {
                        let mut messages = Vec::new();
                        conn.outbox.take(usize::MAX, &mut messages);
                        messages.iter().for_each(|message| relay.controller_message(message));
                        if conn.handle.closing.get().is_some() {
                            break false;
                        }
                    }
                }
            };
            self.close(id);
            if !ended_by_relay {
                relay.controller_lost();
            }
        }
    }

    fn open(self: &Rc<Self>, channel: Channel, conn: &Rc<Conn>) -> ConnId {
        let id = match channel {
            Channel::Node => self.control.borrow_mut().connect(now()),
            Channel::Server => self.control.borrow_mut().connect_server(now()),
        };
        self.conns.borrow_mut().insert(id, Rc::clone(conn));
        self.pump();
        id
    }

    fn close(self: &Rc<Self>, id: ConnId) {
        self.conns.borrow_mut().remove(&id);
        self.control.borrow_mut().disconnect(id, now());
        self.pump();
    }

    /// A server_token for the built-in relay, made at every start.
    pub(crate) fn server_token(&self, server: ServerId) -> Option<String> {
        self.control.borrow().server_token(server, now(), &mut os_rng())
    }

    /// Does what the core wants done. Called after everything that was fed to it.
    fn pump(self: &Rc<Self>) {
        loop {
            let event = self.control.borrow_mut().poll_event();
            let Some(event) = event else { break };
            match event {
                Event::Send { conn, message } => self.send(conn, message),
                Event::Close { conn } => {
                    if let Some(conn) = self.conns.borrow().get(&conn) {
                        conn.handle.close(true);
                    }
                }
                Event::Store(op) => self.store(op),
                Event::Revoked(record) => {
                    if let Some(relay) = &self.relay {
                        relay.revoke(&record);
                    }
                }
            }
        }
        let deadline = self.control.borrow().poll_timeout();
        if deadline != self.armed.get() {
            self.armed.set(deadline);
            self.rearm.notify_one();
        }
    }

    fn send(&self, id: ConnId, message: Bytes) {
        let Some(conn) = self.conns.borrow().get(&id).cloned() else { return };
        if conn.outbox.push(message, OUTBOX_LIMIT) {
            conn.handle.wake.notify_one();
        } else {
            tracing::debug!("a node does not read its control channel; disconnected");
            conn.handle.close(false);
        }
    }

    fn store(self: &Rc<Self>, op: StoreOp) {
        if !self.is_active() {
            // Of connections that are being closed.
            return;
        }
        let this = Rc::clone(self);
        match op {
            StoreOp::Seen { node, online } => {
                self.presence.borrow_mut().insert(node, online);
            }
            StoreOp::ServerSeen { server, online } => {
                self.servers.borrow_mut().insert(server, online);
            }
            StoreOp::SetEndpoints(told) => {
                self.endpoints.borrow_mut().insert(told.node, told);
            }
            StoreOp::UpdateServer(record) => {
                tokio::task::spawn_local(async move {
                    match this.register(&record).await {
                        Ok(()) => this.follow().await,
                        Err(error) => {
                            tracing::warn!(server = %record.id, %error, "what a server says of itself was not kept");
                        }
                    }
                });
            }
            StoreOp::SetNodeKey { node, key } => {
                self.write(Writing { conn: None, write: NodeWrite::SetKey { node, key } })
            }
            StoreOp::AnnounceRoutes { node, routes, approve } => {
                tokio::task::spawn_local(async move {
                    match this.writer().announce_routes(node, &routes, approve).await {
                        Ok(()) => this.follow().await,
                        // It announces them again when it comes back.
                        Err(error) => tracing::warn!(%node, %error, "a node's routes were not kept"),
                    }
                });
            }
            StoreOp::Enroll { conn, request } => {
                self.write(Writing { conn: Some(conn), write: NodeWrite::Enroll(request) });
            }
        }
    }

    /// Keeps where a server says it is; what it may do is what the database says now.
    async fn register(&self, said: &ServerRecord) -> Result<(), StoreError> {
        let kept = self.store.find_server(&said.id.to_string()).await?.record;
        let (url, stun_ip, stun_ip2, stun_port) = (said.url.clone(), said.stun_ip, said.stun_ip2, said.stun_port);
        self.writer().update_server(&ServerRecord { url, stun_ip, stun_ip2, stun_port, ..kept }).await
    }

    /// Applies what any process has committed since the last look.
    async fn follow(self: &Rc<Self>) {
        let outcome = self.try_follow().await;
        if self.ended.get() {
            return;
        }
        match outcome {
            Ok(()) if self.database_away.replace(false) => tracing::info!("the database answers again"),
            Ok(()) => {}
            Err(error) if !self.database_away.replace(true) => {
                tracing::error!(%error, "the database does not answer; the network goes on with what is known");
            }
            Err(_) => {}
        }
    }

    /// Answers the REST API until nobody can ask any more.
    pub(crate) async fn answer(self: Rc<Self>, mut questions: mpsc::Receiver<Ask>) {
        while let Some(question) = questions.recv().await {
            // Whoever asked may have gone away.
            match question {
                Ask::Follow(done) => {
                    self.follow().await;
                    let _ = done.send(());
                }
                Ask::Latencies(network, answer) => {
                    let _ = answer.send(figures::latencies(&self.control.borrow(), network, now()));
                }
                Ask::Paths(network, answer) => {
                    let _ = answer.send(figures::paths(&self.control.borrow(), network));
                }
                Ask::Direct(node, answer) => {
                    let _ = answer.send(figures::direct(&self.control.borrow(), node));
                }
            }
        }
    }

    async fn try_follow(self: &Rc<Self>) -> Result<(), StoreError> {
        let _one_at_a_time = self.tail.lock().await;
        let position = self.control.borrow().version();
        match patiently(self.store.changes_after(position)).await? {
            Changes::Some { changes, .. } if changes.is_empty() => Ok(()),
            Changes::Some { version, changes } => {
                if changes.iter().any(|(_, change)| matches!(change, Change::Setting(_))) {
                    self.settings.notify_one();
                }
                self.control.borrow_mut().apply(version, changes, now(), &mut os_rng());
                self.pump();
                Ok(())
            }
            Changes::Resync => self.resync().await,
        }
    }

    async fn resync(self: &Rc<Self>) -> Result<(), StoreError> {
        let snapshot = patiently(self.store.snapshot()).await?;
        tracing::info!(version = snapshot.version, "read the whole database again");
        self.settings.notify_one();
        self.control.borrow_mut().resync(snapshot, now(), &mut os_rng());
        self.pump();
        Ok(())
    }

    async fn run_tail(self: Rc<Self>) {
        let mut interval = tokio::time::interval(POLL_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.follow().await;
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
                    self.control.borrow_mut().handle_timeout(now(), &mut os_rng());
                    self.armed.set(None);
                    self.pump();
                }
                () = self.rearm.notified() => {}
            }
        }
    }

    /// The database is closed next: what nodes wanted written is, unless that takes long; what still looks at it then has
    /// nothing to report.
    pub(crate) async fn end(&self) {
        let written = async {
            while self.writing.get() || !self.writes.borrow().is_empty() {
                self.written.notified().await;
            }
        };
        if tokio::time::timeout(LAST_WRITES, written).await.is_err() {
            tracing::debug!("some nodes' keys were not written; they announce them again");
        }
        self.ended.set(true);
    }

    async fn run_pruning(self: Rc<Self>) {
        let mut interval = tokio::time::interval(PRUNE_INTERVAL);
        loop {
            interval.tick().await;
            if !self.is_active() {
                continue;
            }
            let changes = self.writer().prune_changes(KEEP_CHANGES).await;
            let revocations = self.writer().prune_revocations().await;
            if let Err(error) = changes.and(revocations) {
                tracing::debug!(%error, "old records not pruned");
            }
        }
    }
}

/// A database that swallows questions is away, too; its connections are given up.
async fn patiently<T>(question: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(DATABASE_PATIENCE, question).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Silent),
    }
}

struct NodeSocket<'a> {
    hub: &'a Rc<Hub>,
    id: ConnId,
    conn: &'a Conn,
}

impl Core for NodeSocket<'_> {
    fn message(&self, message: Bytes) {
        self.hub.control.borrow_mut().handle_message(self.id, &message, now(), &mut os_rng());
    }

    fn text(&self) {
        self.hub.control.borrow_mut().handle_text(self.id, now());
    }

    fn pump(&self) {
        self.hub.pump();
        if self.hub.control.borrow().is_authenticated(self.id) {
            self.conn.entered.take();
        }
    }

    fn transmit(&self, bytes: usize, out: &mut Vec<Bytes>) {
        self.conn.outbox.take(bytes, out);
    }
}
