//! One network joined: drives the node's core with sockets, the TUN and the clock.
//!
//! Everything here runs on one thread ([`tokio::task::LocalSet`]), so the core needs no lock and a packet crosses no
//! channel: the TUN task seals straight into a link's batch, a link's reader opens in place and writes to the TUN.

use super::kernel::{GatewaySettings, Kernel};
use super::port_mapping::{self, PortMapper};
use super::shared::Shared;
use super::state::StateDir;
use super::tun_writer::TunWriter;
use super::{health, links, neighbours, now, os_rng, roaming, udp};
use anyhow::Result;
use edgelink_api::local::{Netcheck, Status};
use edgelink_auth::MachineKey;
use edgelink_model::Now;
use edgelink_node::{
    Drop as DropReason, Event, Interface, LinkId, Node, NodeConfig, PersistedState, PingId, RoutingConfig, SocketId,
    Target,
};
use edgelink_os::tun::{READ_BUFFER_LEN, Tun, TunConfig};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

/// How soon a failed configuration of the interface is tried again.
const INTERFACE_RETRY: Duration = Duration::from_secs(1);
/// States are gathered for this long before they go to the disk.
const SAVE_DELAY: Duration = Duration::from_millis(500);
/// Packets read from the TUN before others get a turn.
const TUN_BATCH: usize = 64;

/// How a network is joined.
pub(crate) struct TunnelConfig {
    pub(crate) node: NodeConfig,
    /// `wss://host:port/ws/control`, as configured.
    pub(crate) controller: String,
    pub(crate) dialer: links::Dialer,
    pub(crate) tun: Rc<Tun>,
    pub(crate) routes: RouteSettings,
    pub(crate) shared: Rc<Shared>,
}

/// What the configuration says of routes and gateways; may change while the network is joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RouteSettings {
    pub(crate) routing: RoutingConfig,
    pub(crate) gateway: Option<GatewaySettings>,
    /// `gateway_mode.health_target`.
    pub(crate) health_target: Option<SocketAddr>,
}

/// What is known of the tunnel from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The first configuration was applied and the TUN carries it.
    pub(crate) ready: bool,
    /// Bumped at every event, so that waiters look again.
    pub(crate) turns: u64,
}

/// A ping's outcome: round trip.
type PingWaiter = oneshot::Sender<Duration>;

pub(crate) struct Tunnel {
    pub(super) node: RefCell<Node>,
    pub(super) controller: String,
    pub(super) dialer: links::Dialer,
    pub(super) tun: Rc<Tun>,
    pub(super) tun_writer: TunWriter,
    state: Arc<StateDir>,
    /// The sequence number that is on the disk.
    seq_floor: Cell<u64>,
    /// A state, with its number, that may wait a moment before it goes to the disk.
    unsaved: RefCell<Option<(u64, Box<PersistedState>)>>,
    save: Notify,
    pub(super) links: RefCell<HashMap<LinkId, LinkHandle>>,
    pub(super) udp: udp::Sockets,
    pub(super) listeners: neighbours::Listeners,
    pub(super) port_mapper: PortMapper,
    /// The timer task sleeps until this deadline.
    armed: Cell<Option<Instant>>,
    rearm: Notify,
    interface: watch::Sender<Option<Interface>>,
    pub(super) shared: Rc<Shared>,
    kernel: tokio::sync::Mutex<Kernel>,
    /// What the kernel would not do, for `status`.
    problems: RefCell<Vec<String>>,
    /// Looks at the health target.
    health: RefCell<Option<AbortHandle>>,
    progress: watch::Sender<Progress>,
    first_config: Cell<bool>,
    pings: RefCell<HashMap<PingId, PingWaiter>>,
    pub(super) tasks: RefCell<JoinSet<()>>,
}

/// What the tunnel keeps of a link's task.
pub(super) struct LinkHandle {
    /// There is something to write.
    pub(super) writable: Rc<Notify>,
    /// Finish: write these frames, then close.
    pub(super) close: Option<oneshot::Sender<Option<bytes::Bytes>>>,
    /// It leads to a neighbour, by LAN TCP.
    pub(super) neighbour: bool,
    /// Our address and the other end's, once connected.
    pub(super) ends: Option<(SocketAddr, SocketAddr)>,
    pub(super) task: AbortHandle,
}

impl Tunnel {
    /// Opens what the network needs and starts to join. Must be called on a `LocalSet`.
    pub(crate) fn start(config: TunnelConfig, machine: MachineKey, state: Arc<StateDir>) -> Result<Rc<Self>> {
        let persisted = state.node_state(&config.controller)?;
        let p2p = config.node.p2p.enabled;
        let mut node = Node::new(config.node, machine, persisted, now(), &mut os_rng());
        node.set_routing(config.routes.routing.clone(), now());
        let kernel = Kernel::new(Rc::clone(&config.tun), config.routes.gateway.clone(), Rc::clone(&config.shared));
        let this = Rc::new(Self {
            node: RefCell::new(node),
            controller: config.controller,
            shared: config.shared,
            dialer: config.dialer,
            tun_writer: TunWriter::new(Rc::clone(&config.tun)),
            tun: config.tun,
            state,
            seq_floor: Cell::new(0),
            unsaved: RefCell::new(None),
            save: Notify::new(),
            links: RefCell::default(),
            udp: udp::Sockets::default(),
            listeners: neighbours::Listeners::default(),
            port_mapper: PortMapper::default(),
            armed: Cell::new(None),
            rearm: Notify::new(),
            interface: watch::Sender::new(None),
            kernel: tokio::sync::Mutex::new(kernel),
            problems: RefCell::default(),
            health: RefCell::default(),
            progress: watch::Sender::new(Progress::default()),
            first_config: Cell::new(false),
            pings: RefCell::default(),
            tasks: RefCell::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn_local(Rc::clone(&this).run_timers());
        tasks.spawn_local(Rc::clone(&this).run_tun());
        tasks.spawn_local(Rc::clone(&this).run_saving());
        tasks.spawn_local(Rc::clone(&this).run_interface());
        tasks.spawn_local(udp::write(Rc::clone(&this)));
        tasks.spawn_local(roaming::watch(Rc::clone(&this)));
        tasks.spawn_local(roaming::watch_clock(Rc::clone(&this)));
        if p2p {
            tasks.spawn_local(port_mapping::run(Rc::clone(&this)));
        }
        // Links join the set later, so it must be in place before the first event is handled.
        *this.tasks.borrow_mut() = tasks;
        this.watch_health(&config.routes);
        this.pump();
        Ok(this)
    }

    /// Ends every task; the TUN goes with the last reference to it.
    pub(crate) async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        tasks.shutdown().await;
        self.port_mapper.end().await;
        self.links.borrow_mut().clear();
        self.udp.close_all();
        if let Some((number, state)) = self.unsaved.take() {
            log_saved(self.state.save_node_state(&self.controller, number, &state));
        }
        self.kernel.lock().await.clear().await;
    }

    /// What the configuration says of routes and gateways from now on.
    pub(crate) async fn set_routes(self: &Rc<Self>, settings: &RouteSettings) {
        self.kernel.lock().await.set_gateway(settings.gateway.clone());
        self.feed(|node, now| {
            node.set_dead_routes(BTreeSet::new());
            node.set_routing(settings.routing.clone(), now);
        });
        self.watch_health(settings);
        // The same wish again, for a gateway that serves the same subnets otherwise.
        self.interface.send_modify(|_| {});
    }

    fn watch_health(self: &Rc<Self>, settings: &RouteSettings) {
        if let Some(former) = self.health.borrow_mut().take() {
            former.abort();
        }
        let Some(target) = settings.health_target else { return };
        let subnets = settings.routing.advertise.iter().map(|route| route.cidr).collect();
        let task = health::watch(Rc::clone(self), target, subnets);
        *self.health.borrow_mut() = Some(self.tasks.borrow_mut().spawn_local(task));
    }

    pub(crate) fn status(&self) -> Status {
        let mut status = self.node.borrow().status(&self.dialer.controller(), now());
        status.health.extend(self.problems.borrow().iter().cloned());
        status
    }

    pub(crate) fn netcheck(&self) -> Netcheck {
        let mut check = self.node.borrow().netcheck(&self.dialer.controller());
        check.port_mapping = self.port_mapper.status();
        check
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Sends one probe; the receiver gets the round trip, or is dropped when no answer came within `timeout`.
    pub(crate) fn ping(
        self: &Rc<Self>,
        peer: edgelink_model::NodeId,
        timeout: Duration,
    ) -> Result<oneshot::Receiver<Duration>, edgelink_node::PingError> {
        let ping = self.node.borrow_mut().ping(peer, timeout, now())?;
        let (answer, receiver) = oneshot::channel();
        self.pings.borrow_mut().insert(ping, answer);
        self.pump();
        Ok(receiver)
    }

    /// Does what the core wants done. Called after everything that was fed to it.
    pub(super) fn pump(self: &Rc<Self>) {
        loop {
            let event = self.node.borrow_mut().poll_event();
            let Some(event) = event else { break };
            self.handle(event);
        }
        let deadline = self.node.borrow().poll_timeout();
        if deadline != self.armed.get() {
            self.armed.set(deadline);
            self.rearm.notify_one();
        }
        self.pings.borrow_mut().retain(|_, waiter| !waiter.is_closed());
        self.progress.send_modify(|p| p.turns += 1);
    }

    fn handle(self: &Rc<Self>, event: Event) {
        match event {
            Event::Dial { link, target } => self.dial(link, target),
            Event::Close { link, last } => {
                if let Some(mut handle) = self.links.borrow_mut().remove(&link) {
                    match handle.close.take().map(|close| close.send(last)) {
                        Some(Ok(())) => {}
                        _ => handle.task.abort(),
                    }
                }
            }
            Event::Writable(link) => {
                if let Some(handle) = self.links.borrow().get(&link) {
                    handle.writable.notify_one();
                }
            }
            Event::Interface(interface) => {
                self.interface.send_replace(Some(interface));
            }
            Event::Ready => self.first_config.set(true),
            Event::Expelled => {
                self.first_config.set(false);
                self.interface.send_replace(Some(Interface::default()));
            }
            Event::Persist(state) => self.persist(state),
            Event::OpenSocket { socket, port } => self.open_socket(socket, port),
            Event::CloseSocket { socket } => {
                self.udp.close(socket);
                self.port_mapper.wake();
            }
            Event::Listen { addresses } => neighbours::listen_on(self, &addresses),
            Event::Datagrams => {
                self.udp.wake();
            }
            Event::Packet(packet) => {
                self.tun_writer.push(&[0; edgelink_wire::virtio::LEN], &packet);
                self.flush_tun();
            }
            Event::Pong { ping, rtt, .. } => {
                if let Some(waiter) = self.pings.borrow_mut().remove(&ping) {
                    // Nobody waits any more: the command was interrupted.
                    let _ = waiter.send(rtt);
                }
            }
        }
    }

    /// A new sequence number must be on disk before it is used; everything else may wait, so that a busy network does not
    /// make the packet path wait for the disk.
    fn persist(&self, state: Box<PersistedState>) {
        let number = self.state.number();
        if self.seq_floor.replace(state.seq_floor) != state.seq_floor {
            self.unsaved.take();
            log_saved(self.state.save_node_state(&self.controller, number, &state));
        } else {
            self.unsaved.replace(Some((number, state)));
            self.save.notify_one();
        }
    }

    async fn run_saving(self: Rc<Self>) {
        loop {
            self.save.notified().await;
            tokio::time::sleep(SAVE_DELAY).await;
            let Some((number, state)) = self.unsaved.take() else { continue };
            let (directory, controller) = (Arc::clone(&self.state), self.controller.clone());
            let saved =
                tokio::task::spawn_blocking(move || directory.save_node_state(&controller, number, &state)).await;
            log_saved(saved.unwrap_or_else(|panic| Err(panic.into())));
        }
    }

    fn open_socket(self: &Rc<Self>, socket: SocketId, port: u16) {
        match udp::open(self, socket, port) {
            Ok(port) => {
                self.node.borrow_mut().socket_opened(socket, port, now());
                self.port_mapper.wake();
            }
            Err(error) => self.node.borrow_mut().socket_failed(socket, &format!("{error:#}"), now()),
        }
    }

    fn dial(self: &Rc<Self>, link: LinkId, target: Target) {
        if let Target::Neighbour { address } = target {
            return self.spawn_neighbour(link, neighbours::Begin::Dial(address));
        }
        self.spawn_link(link, false, |writable, closed| links::run(Rc::clone(self), link, target, writable, closed));
    }

    /// A connection by LAN TCP gets its task.
    pub(super) fn spawn_neighbour(self: &Rc<Self>, link: LinkId, begin: neighbours::Begin) {
        self.spawn_link(link, true, |writable, closed| neighbours::run(Rc::clone(self), link, begin, writable, closed));
    }

    /// Spawns a link's task, which is told when there is something to write and when to end.
    fn spawn_link<F: Future<Output = ()> + 'static>(
        &self,
        link: LinkId,
        neighbour: bool,
        run: impl FnOnce(Rc<Notify>, oneshot::Receiver<Option<bytes::Bytes>>) -> F,
    ) {
        let writable = Rc::new(Notify::new());
        let (close, closed) = oneshot::channel();
        let task = self.tasks.borrow_mut().spawn_local(run(Rc::clone(&writable), closed));
        let handle = LinkHandle { writable, close: Some(close), neighbour, ends: None, task };
        self.links.borrow_mut().insert(link, handle);
    }

    /// A link has been connected, between these addresses.
    pub(super) fn set_link_ends(&self, link: LinkId, ends: Option<(SocketAddr, SocketAddr)>) {
        if let Some(handle) = self.links.borrow_mut().get_mut(&link) {
            handle.ends = ends;
        }
    }

    /// A link's task is through; without a reason the core ended it, and knows.
    pub(super) fn link_ended(self: &Rc<Self>, link: LinkId, reason: Option<String>) {
        if let Some(reason) = reason {
            self.links.borrow_mut().remove(&link);
            self.feed(|node, now| node.link_closed(link, &reason, now, &mut os_rng()));
        }
    }

    /// Feeds the core's timers.
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
                    self.node.borrow_mut().handle_timeout(now(), &mut os_rng());
                    // Even an unchanged deadline must be looked at again.
                    self.armed.set(None);
                    self.pump();
                }
                () = self.rearm.notified() => {}
            }
            // Finished link tasks leave their result behind.
            while self.tasks.borrow_mut().try_join_next().is_some() {}
        }
    }

    /// TUN → core: batches, sealed in place, or queued there by flows while the way out is busy. The TUN is always read: its
    /// own queue is one line for all flows.
    async fn run_tun(self: Rc<Self>) {
        let mut buffer = vec![0; READ_BUFFER_LEN];
        loop {
            if let Err(error) = self.tun.readable().await {
                tracing::error!(%error, "the TUN interface cannot be read any more");
                return;
            }
            let at = now();
            for _ in 0..TUN_BATCH {
                match self.tun.try_read(&mut buffer) {
                    Ok(len) => {
                        self.node.borrow_mut().handle_tun_buffer(&mut buffer, len, at);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        tracing::error!(%error, "the TUN interface cannot be read; was it deleted?");
                        return;
                    }
                }
            }
            self.pump();
            // Let the writers work before the next batch is read.
            tokio::task::yield_now().await;
        }
    }

    /// Writes what the core has delivered in this turn, and counts what the kernel would not have.
    pub(super) fn flush_tun(&self) {
        let refused = self.tun_writer.flush();
        if refused > 0 {
            let mut node = self.node.borrow_mut();
            (0..refused).for_each(|_| node.count_drop(DropReason::TunWrite));
        }
    }

    /// Applies the wanted addresses to the interface, the newest wish only.
    async fn run_interface(self: Rc<Self>) {
        let mut wishes = self.interface.subscribe();
        let mut dialled = self.shared.dialled().subscribe();
        let mut overlays = self.shared.overlays();
        // A restored configuration has expressed its wish before this task began.
        wishes.mark_changed();
        // So may other networks have taken their prefixes.
        overlays.mark_changed();
        let mut failed = false;
        loop {
            // After a failure the same wish is tried again, unless a newer one comes first.
            let again = async {
                if failed {
                    tokio::time::sleep(INTERFACE_RETRY).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                changed = wishes.changed() => if changed.is_err() { return },
                changed = dialled.changed() => if changed.is_err() { return },
                changed = overlays.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    overlays.mark_unchanged();
                    let others = self.shared.others(self.tun.name());
                    self.feed(|node, now| node.set_other_networks(&others, now));
                }
                () = again => {}
            }
            let wish = wishes.borrow_and_update().clone();
            let Some(interface) = wish else { continue };
            dialled.mark_unchanged();
            let around = self.shared.protected();
            let outcome = self.configure(&interface, &around).await;
            failed = outcome.is_err();
            match outcome {
                Ok(()) => {
                    let ready = self.first_config.get() && !interface.addresses.is_empty();
                    self.progress.send_modify(|p| p.ready = ready);
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "the interface could not be configured"),
            }
        }
    }

    async fn configure(&self, interface: &Interface, protected: &BTreeSet<IpAddr>) -> Result<()> {
        let mut kernel = self.kernel.lock().await;
        let outcome = kernel.apply(interface, protected).await;
        *self.problems.borrow_mut() = kernel.problems().to_vec();
        outcome?;
        tracing::info!(interface = self.tun.name(), routes = interface.routes.len(), "interface configured");
        tracing::debug!(addresses = ?interface.addresses);
        Ok(())
    }

    pub(super) fn feed<R>(self: &Rc<Self>, feed: impl FnOnce(&mut Node, Now) -> R) -> R {
        let result = feed(&mut self.node.borrow_mut(), now());
        self.pump();
        result
    }
}

fn log_saved(saved: Result<()>) {
    if let Err(error) = saved {
        tracing::error!(error = format!("{error:#}"), "cannot keep the node's state on disk");
    }
}

/// Opens the TUN, before anything else needs it: without permission there is no point in going on.
pub(crate) fn open_tun(name: &str, mtu: u32) -> Result<Rc<Tun>> {
    Ok(Rc::new(Tun::open(&TunConfig::new(name, mtu))?))
}
