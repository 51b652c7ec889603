//! The daemon: configuration and profiles in, joined networks out, commands answered on the local socket.

mod health;
mod kernel;
mod links;
mod local;
mod neighbours;
mod network;
mod port_mapping;
mod roaming;
mod settings;
mod shared;
mod state;
mod tun_writer;
mod tunnel;
mod udp;

use crate::cli::RunArgs;
use anyhow::{Context as _, Result, bail};
use edgelink_api::local::{LocalError, LocalErrorKind, UpRequest};
use edgelink_config::{ClientConfig, Config as _, Env, InterfaceName, NetworkConfig, is_network_label};
use edgelink_model::Now;
use edgelink_os::privileges;
use getrandom::SysRng;
use network::Network;
use rand_core::UnwrapErr;
use shared::Shared;
use state::StateDir;
use std::cell::RefCell;
use std::io::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tokio::task::LocalSet;

/// Once one network is usable, others hold up the line that scripts wait for no longer than this.
const READY_GRACE: Duration = Duration::from_secs(10);

/// The daemon's state, for everything on its one thread.
pub(crate) struct Daemon {
    /// The file, and the command line's word on the state directory.
    source: (Option<PathBuf>, Option<PathBuf>),
    env: Rc<Env>,
    shared: Rc<Shared>,
    /// The first is the configuration's top level; then its `networks`; then those that `edgelink up` made, by name.
    networks: RefCell<Vec<Rc<Network>>>,
    /// Held while networks come and go.
    changing: Mutex<()>,
}

/// `edgelink run`: returns when told to end.
pub(crate) fn run(args: RunArgs, socket: PathBuf, env: Env) -> Result<()> {
    let source = (args.config, args.state_dir);
    let config = read_config(&source, &env)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    LocalSet::new().block_on(&runtime, serve(config, source, socket, env))
}

fn read_config((file, state_dir): &(Option<PathBuf>, Option<PathBuf>), env: &Env) -> Result<ClientConfig> {
    let mut config: ClientConfig = edgelink_config::load(file.as_deref(), env)?;
    for warning in config.validate()? {
        tracing::warn!("{warning}");
    }
    if let Some(dir) = state_dir {
        config.state_dir = Some(dir.clone());
    }
    Ok(config)
}

async fn serve(
    config: ClientConfig,
    source: (Option<PathBuf>, Option<PathBuf>),
    socket: PathBuf,
    env: Env,
) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    if !privileges::has_net_admin() {
        bail!(
            "not allowed to create the TUN interface: run as root or grant CAP_NET_ADMIN \
             (setcap cap_net_admin+ep /path/to/edgelink; in a container --cap-add NET_ADMIN)"
        );
    }
    let root = nix::unistd::geteuid().is_root();
    let state = StateDir::open(&config.state_dir(&env, root), config.key_file.as_deref())?;
    tracing::info!("edgelink {}", env!("CARGO_PKG_VERSION"));
    kernel::clean_up(state.path()).await;
    let shared = Rc::new(Shared::new(&kernel::sysctl_file(state.path())));
    let daemon = Rc::new(Daemon::new(&config, state, source, Rc::new(env), shared)?);
    let listener = local::bind(&socket)?;
    if let Err(error) = privileges::drop_to_net_admin() {
        tracing::warn!(%error, "privileges kept");
    }

    tokio::task::spawn_local(local::serve(Rc::clone(&daemon), listener));
    if daemon.all().iter().all(|network| !network.wants_up()) {
        tracing::info!("no network to join yet: edgelink up wss://CONTROLLER --key AUTHKEY");
    }
    for (nth, network) in daemon.all().into_iter().enumerate() {
        let started = network.start_if_wanted().await;
        // The first one's failure is the daemon's; the others' must not cost the first.
        match started {
            Err(error) if nth == 0 => return Err(error),
            _ => {}
        }
    }
    tokio::task::spawn_local(announce_ready(Rc::clone(&daemon)));
    // Commands are answered; the network may be joined later, by `edgelink up`.
    edgelink_os::notify::ready();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => daemon.reload().await,
        }
    }
    tracing::info!("ending");
    edgelink_os::notify::stopping();
    for network in daemon.all() {
        network.end().await;
    }
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::debug!(%error, "the local socket is gone already");
    }
    Ok(())
}

/// Prints the one line that scripts wait for, once every network that is to be joined is usable (DESIGN §8), or some
/// seconds after the first of them is.
async fn announce_ready(daemon: Rc<Daemon>) {
    let mut deadline = None;
    loop {
        let wanted: Vec<Rc<Network>> = daemon.all().into_iter().filter(|network| network.wants_up()).collect();
        let ready: Vec<String> =
            wanted.iter().filter(|network| network.is_ready()).map(|network| network.summary()).collect();
        if !ready.is_empty() {
            let late = *deadline.get_or_insert_with(|| Instant::now() + READY_GRACE) <= Instant::now();
            if ready.len() == wanted.len() || late {
                // Whoever started us may have closed the pipe; the network matters more.
                let _ = std::io::stdout().write_all(format!("ready {}\n", ready.join("; ")).as_bytes());
                return;
            }
        }
        let grace = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = daemon.shared.turned.notified() => {}
            () = grace => {}
        }
    }
}

impl Daemon {
    fn new(
        config: &ClientConfig,
        state: StateDir,
        source: (Option<PathBuf>, Option<PathBuf>),
        env: Rc<Env>,
        shared: Rc<Shared>,
    ) -> Result<Self> {
        let made = state.further_networks()?;
        let first = Network::new(None, top_level(config), state, &env, &shared)?;
        let this = Self { source, env, shared, networks: RefCell::new(vec![first]), changing: Mutex::new(()) };
        for network in config.further_networks() {
            this.add(network, true)?;
        }
        for (name, profile) in made {
            if this.labelled(&name).is_none() {
                this.add(made_by_up(config, name, profile.tun), false)?;
            }
        }
        Ok(this)
    }

    /// All networks, the first one first.
    pub(crate) fn all(&self) -> Vec<Rc<Network>> {
        self.networks.borrow().clone()
    }

    /// The network that is meant: by its label here, or by its own name; without a name the first one that there is anything
    /// to say of.
    pub(crate) fn network(&self, name: Option<&str>) -> Result<Rc<Network>, LocalError> {
        let all = self.all();
        let Some(name) = name else {
            let first = all.iter().find(|network| network.has_controller()).or(all.first());
            return first.cloned().ok_or_else(|| LocalError::new(LocalErrorKind::Failed, "there is no network"));
        };
        let own = || all.iter().find(|network| network.name().as_deref() == Some(name)).cloned();
        self.labelled(name).or_else(own).ok_or_else(|| {
            let text = format!("this daemon is not in a network called {name:?}; `edgelink networks` lists them");
            LocalError::new(LocalErrorKind::Usage, text)
        })
    }

    fn labelled(&self, label: &str) -> Option<Rc<Network>> {
        self.networks.borrow().iter().find(|network| network.label() == Some(label)).cloned()
    }

    fn add(&self, network: NetworkConfig, from_file: bool) -> Result<Rc<Network>> {
        let root = self.all().first().map(|first| first.state_path()).context("there is no first network")?;
        let NetworkConfig { name, config, .. } = network;
        let directory = StateDir::of_network(&root, &name);
        let context = || format!("network {name}");
        let state = StateDir::open(&directory, config.key_file.as_deref()).with_context(context)?;
        let network = Network::new(Some((name.clone(), from_file)), config, state, &self.env, &self.shared);
        let network = network.with_context(context)?;
        self.networks.borrow_mut().push(Rc::clone(&network));
        Ok(network)
    }

    /// SIGHUP: takes over the configuration file as it is now. A file that is not understood changes nothing.
    async fn reload(&self) {
        let _alone = self.changing.lock().await;
        let new = match read_config(&self.source, &self.env) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the configuration is not taken over");
                return;
            }
        };
        let further = new.further_networks();
        for network in self.all() {
            if network.is_from_file() && !further.iter().any(|other| network.label() == Some(other.name.as_str())) {
                tracing::info!(network = network.label(), "no longer in the configuration");
                network.end().await;
                self.networks.borrow_mut().retain(|other| !Rc::ptr_eq(other, &network));
            }
        }
        for network in self.all().into_iter().filter(|network| !network.is_from_file()) {
            match network.label() {
                None => network.reload(top_level(&new)).await,
                Some(name) if further.iter().any(|other| other.name == name) => {}
                Some(name) => network.reload(made_by_up(&new, name.to_owned(), network.tun_of_profile()).config).await,
            }
        }
        for network in further {
            match self.labelled(&network.name) {
                Some(known) => {
                    known.set_from_file();
                    known.reload(network.config).await;
                }
                None => match self.add(network, true) {
                    // What does not start says so, in the log and in `status`.
                    Ok(added) => drop(added.start_if_wanted().await),
                    Err(error) => tracing::error!(error = format!("{error:#}"), "a network is not joined"),
                },
            }
        }
    }

    /// Joins: with what was given, or as the last time. A name that is not known yet makes one more network.
    pub(crate) async fn up(&self, request: UpRequest) -> Result<Rc<Network>, LocalError> {
        let _alone = self.changing.lock().await;
        let usage = |text: String| LocalError::new(LocalErrorKind::Usage, text);
        let Some(name) = request.network.clone() else {
            let first = self.all().into_iter().next();
            let first = first.ok_or_else(|| usage("there is no network".to_owned()))?;
            return first.up(request).await.map(|()| first);
        };
        if let Ok(known) = self.network(Some(&name)) {
            return known.up(request).await.map(|()| known);
        }
        if request.controller.is_none() {
            let text = "this daemon is not in a network called";
            return Err(usage(format!(
                "{text} {name:?}; to join one more: edgelink up wss://HOST --network {name} --key …"
            )));
        }
        if !is_network_label(&name) {
            return Err(usage(format!(
                "{name:?} is no name for a network here: use letters, digits, `.`, `_` and `-`"
            )));
        }
        let Some(first) = self.all().into_iter().next() else { return Err(usage("there is no network".to_owned())) };
        let made = made_by_up(&first.config(), name, Some(self.free_interface()));
        let network = self.add(made, false).map_err(local::failed)?;
        let joined = network.up(request).await;
        if joined.as_ref().is_err_and(|error| error.kind == LocalErrorKind::Usage) {
            self.networks.borrow_mut().retain(|other| !Rc::ptr_eq(other, &network));
        }
        joined.map(|()| network)
    }

    /// The first of wss-mesh1, wss-mesh2 … that no network here has.
    fn free_interface(&self) -> String {
        let used: Vec<String> = self.all().iter().map(|network| network.interface()).collect();
        let names = (1..).map(|n| InterfaceName::numbered(n).as_str().to_owned());
        let mut free = names.filter(|name| !used.contains(name));
        free.next().unwrap_or_default()
    }
}

/// The first network's part of the configuration.
fn top_level(config: &ClientConfig) -> ClientConfig {
    ClientConfig { networks: Vec::new(), ..config.clone() }
}

/// A network that `edgelink up --network` made: how this host is connected is as the file says; whom it joins and what it
/// serves there is not.
fn made_by_up(config: &ClientConfig, name: String, tun: Option<String>) -> NetworkConfig {
    let defaults = ClientConfig::default();
    let mut config = ClientConfig {
        controller: None,
        auth_key: None,
        auth_key_file: None,
        ca_file: config.ca_file.clone(),
        pin: None,
        state_dir: None,
        key_file: None,
        trust: defaults.trust.clone(),
        advertise_routes: Vec::new(),
        routes: defaults.routes.clone(),
        gateway_mode: defaults.gateway_mode.clone(),
        networks: Vec::new(),
        ..config.clone()
    };
    if let Some(name) = tun.and_then(|name| InterfaceName::new(&name)) {
        config.tun.name = name;
    }
    NetworkConfig::new(name, config)
}

/// The present on both clocks.
pub(crate) fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Instant::now(), unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
}

/// The kernel's random numbers.
pub(crate) fn os_rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}
