//! The daemon: configuration and profile in, one joined network out, commands answered on the local socket.

mod health;
mod kernel;
mod links;
mod local;
mod settings;
mod state;
mod tun_writer;
mod tunnel;
mod udp;

use crate::cli::RunArgs;
use anyhow::{Context as _, Result, anyhow, bail};
use edgelink_api::local::{DaemonState, LocalError, LocalErrorKind, Status, UpRequest};
use edgelink_config::{ClientConfig, Config as _, Env, SessionCipher, WsUrl};
use edgelink_model::records::HostInfo;
use edgelink_model::{Now, capabilities};
use edgelink_node::{NodeConfig, P2pConfig, PathSettings};
use edgelink_os::{host, privileges};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use state::{Profile, StateDir};
use std::cell::RefCell;
use std::io::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Notify};
use tokio::task::LocalSet;
use tunnel::{Tunnel, TunnelConfig};
use zeroize::Zeroizing;

/// Path of the control channel when the URL names none (specification §10.2).
const CONTROL_PATH: &str = "/ws/control";

/// The daemon's state, for everything on its one thread.
pub(crate) struct Daemon {
    /// As the file says now; replaced by [`Daemon::reload`].
    config: RefCell<Rc<ClientConfig>>,
    /// The file, and the command line's word on the state directory.
    source: (Option<PathBuf>, Option<PathBuf>),
    env: Env,
    state: Arc<StateDir>,
    profile: RefCell<Profile>,
    tunnel: RefCell<Option<Rc<Tunnel>>>,
    /// A tunnel was started.
    started: Notify,
    /// Held while the tunnel is started or stopped on request.
    switching: Mutex<()>,
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
    // Made now, so that a damaged key stops the daemon at once and not at the first `up`.
    let machine = state.machine_key()?.public();
    tracing::info!(machine = machine.fingerprint(), "edgelink {}", env!("CARGO_PKG_VERSION"));
    let profile = RefCell::new(state.profile()?);
    let daemon = Rc::new(Daemon {
        config: RefCell::new(Rc::new(config)),
        source,
        env,
        state: Arc::new(state),
        profile,
        tunnel: RefCell::default(),
        started: Notify::new(),
        switching: Mutex::new(()),
    });
    kernel::clean_up(daemon.state.path()).await;
    let listener = local::bind(&socket)?;
    if let Err(error) = privileges::drop_to_net_admin() {
        tracing::warn!(%error, "privileges kept");
    }

    tokio::task::spawn_local(local::serve(Rc::clone(&daemon), listener));
    if daemon.wants_up() {
        daemon.start().await?;
    } else {
        tracing::info!("no network to join yet: edgelink up wss://CONTROLLER --key AUTHKEY");
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
    daemon.stop().await;
    if let Err(error) = std::fs::remove_file(&socket) {
        tracing::debug!(%error, "the local socket is gone already");
    }
    Ok(())
}

/// Prints the one line that scripts wait for, once the network is usable (DESIGN §8), and forgets the auth key that
/// has served, each time that one has.
async fn announce_ready(daemon: Rc<Daemon>) {
    let mut announced = false;
    loop {
        let Some(mut progress) = daemon.tunnel().map(|tunnel| tunnel.progress()) else {
            daemon.started.notified().await;
            continue;
        };
        // The channel ends with its tunnel: then there is another one, or none.
        if progress.wait_for(|p| p.ready).await.is_err() {
            continue;
        }
        if !std::mem::replace(&mut announced, true) {
            let status = daemon.status();
            let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
            let network = status.network.unwrap_or_default();
            let line = format!("ready {} {} in network {network}\n", status.name, addresses.join(" "));
            // Whoever started us may have closed the pipe; the network matters more.
            let _ = std::io::stdout().write_all(line.as_bytes());
        }
        if let Err(error) = daemon.forget_auth_key() {
            tracing::warn!(error = format!("{error:#}"), "the used auth key stays in the profile");
        }
        let _ = progress.wait_for(|p| !p.ready).await;
    }
}

impl Daemon {
    pub(crate) fn tunnel(&self) -> Option<Rc<Tunnel>> {
        self.tunnel.borrow().clone()
    }

    pub(crate) fn status(&self) -> Status {
        match self.tunnel() {
            Some(tunnel) => tunnel.status(),
            None => Status {
                state: DaemonState::Down,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                name: self.hostname(),
                ..Status::default()
            },
        }
    }

    fn config(&self) -> Rc<ClientConfig> {
        Rc::clone(&self.config.borrow())
    }

    /// SIGHUP: takes over the configuration file as it is now. Routes and gateways change while the network is joined;
    /// for anything else the network is left and joined again. A file that is not understood changes nothing.
    async fn reload(&self) {
        let _alone = self.switching.lock().await;
        let new = match read_config(&self.source, &self.env) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the configuration is not taken over");
                return;
            }
        };
        let old = self.config();
        if (&new.state_dir, &new.key_file) != (&old.state_dir, &old.key_file) {
            tracing::warn!("state_dir and key_file change with a restart of the daemon only");
        }
        let new = ClientConfig { state_dir: old.state_dir.clone(), key_file: old.key_file.clone(), ..new };
        if new == *old {
            tracing::info!("the configuration is the same as before");
            return;
        }
        let routes = settings::routes(&new);
        let only_routes = ClientConfig {
            advertise_routes: new.advertise_routes.clone(),
            accept_routes: new.accept_routes,
            routes: new.routes.clone(),
            gateway_mode: new.gateway_mode.clone(),
            ..(*old).clone()
        } == new;
        *self.config.borrow_mut() = Rc::new(new);
        match self.tunnel() {
            Some(tunnel) if only_routes => {
                tunnel.set_routes(&routes).await;
                tracing::info!("took over the configuration");
            }
            _ if !self.wants_up() => tracing::info!("took over the configuration"),
            _ => {
                tracing::info!("took over the configuration; joining the network again");
                self.stop().await;
                if let Err(error) = self.start().await {
                    tracing::error!(error = format!("{error:#}"), "the network could not be joined again");
                }
            }
        }
    }

    /// Joins: with what was given, or as the last time.
    pub(crate) async fn up(&self, request: UpRequest) -> Result<(), LocalError> {
        let _alone = self.switching.lock().await;
        let usage = |text: String| LocalError::new(LocalErrorKind::Usage, text);
        if let Some(url) = &request.controller {
            if self.config().controller.is_some() {
                return Err(usage("the configuration file names the controller; change it there".to_owned()));
            }
            url.parse::<WsUrl>().map_err(|e| usage(format!("{url:?} is no controller URL: {e}")))?;
        }
        if let Some(pin) = &request.pin {
            pin.parse::<edgelink_net::tls::Pin>().map_err(|e| usage(format!("{pin:?} is no pin: {e}")))?;
        }
        let old = self.profile.borrow().clone();
        let new = Profile {
            controller: request.controller.or_else(|| old.controller.clone()),
            pin: request.pin.or_else(|| old.pin.clone()),
            auth_key: request.auth_key.map(|k| k.expose().to_owned()).or_else(|| old.auth_key.clone()),
            hostname: request.hostname.or_else(|| old.hostname.clone()),
            down: false,
        };
        if new.controller.is_none() && self.config().controller.is_none() {
            return Err(usage("which controller? edgelink up wss://HOST[:PORT] --key AUTHKEY".to_owned()));
        }
        let changed = new != old;
        self.state.save_profile(&new).map_err(local::failed)?;
        *self.profile.borrow_mut() = new;
        let settled = matches!(self.status().state, DaemonState::Up | DaemonState::WaitingForAuthorization);
        // Otherwise try anew at once: the person may have removed the cause of a refusal or failure.
        if settled && !changed {
            return Ok(());
        }
        self.stop().await;
        self.start().await.map_err(local::failed)
    }

    pub(crate) async fn down(&self) -> Result<()> {
        let _alone = self.switching.lock().await;
        let profile = Profile { down: true, ..self.profile.borrow().clone() };
        self.state.save_profile(&profile)?;
        *self.profile.borrow_mut() = profile;
        self.stop().await;
        Ok(())
    }

    fn wants_up(&self) -> bool {
        let profile = self.profile.borrow();
        self.config().controller.is_some() || (profile.controller.is_some() && !profile.down)
    }

    async fn start(&self) -> Result<()> {
        let config = self.config();
        let profile = self.profile.borrow().clone();
        let url = match (&config.controller, &profile.controller) {
            (Some(url), _) => url.clone(),
            (None, Some(text)) => text.parse().map_err(|why| anyhow!("{text:?} is no controller URL: {why}"))?,
            (None, None) => bail!("no controller is configured"),
        };
        let url = url.or_path(CONTROL_PATH);
        let dialer = links::Dialer::new(&config, profile.pin.as_deref(), &url, &self.env)?;
        // Before anything is joined: without a TUN there is no point, and its offloads decide our capabilities.
        let tun = tunnel::open_tun(config.tun.name.as_str(), config.tun.mtu.into())?;
        let node = NodeConfig {
            controller_host: url.host().trim_matches(['[', ']']).to_ascii_lowercase(),
            auth_key: self.auth_key(&profile)?,
            host: HostInfo {
                hostname: self.hostname(),
                os: host::os().to_owned(),
                arch: host::arch().to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            trust: links::trust(&config.trust)?,
            psk: None,
            capabilities: self.capabilities(&tun),
            paths: PathSettings { latency_report: config.relay.latency_report_interval_seconds.duration() },
            p2p: P2pConfig {
                enabled: config.p2p.enabled,
                keepalive: config.p2p.keepalive_interval_seconds.duration(),
                mtu: config.tun.mtu,
                ..P2pConfig::default()
            },
        };
        let routes = settings::routes(&config);
        let tunnel = TunnelConfig { node, controller: url.to_string(), dialer, tun, routes };
        let tunnel = Tunnel::start(tunnel, self.state.machine_key()?, Arc::clone(&self.state))?;
        *self.tunnel.borrow_mut() = Some(tunnel);
        self.started.notify_one();
        Ok(())
    }

    /// What this node announces that it understands.
    fn capabilities(&self, tun: &edgelink_os::tun::Tun) -> u32 {
        let aes = self.config().session_cipher == SessionCipher::Auto && host::has_aes_gcm();
        let super_packets = if tun.offload() { capabilities::SUPER_PACKETS } else { 0 };
        super_packets | if aes { capabilities::AES_256_GCM } else { 0 }
    }

    async fn stop(&self) {
        let tunnel = self.tunnel.borrow_mut().take();
        if let Some(tunnel) = tunnel {
            tunnel.stop().await;
        }
    }

    fn hostname(&self) -> String {
        let given = self.profile.borrow().hostname.clone();
        given.or_else(|| self.config().hostname.clone()).unwrap_or_else(host::hostname)
    }

    fn auth_key(&self, profile: &Profile) -> Result<Option<Zeroizing<String>>> {
        if let Some(key) = &profile.auth_key {
            return Ok(Some(Zeroizing::new(key.clone())));
        }
        if let Some(key) = &self.config().auth_key {
            return Ok(Some(Zeroizing::new(key.expose().to_owned())));
        }
        let config = self.config();
        let Some(path) = &config.auth_key_file else { return Ok(None) };
        let text = edgelink_os::files::read_private(path)?;
        Ok(Some(Zeroizing::new(text.trim().to_owned())))
    }

    fn forget_auth_key(&self) -> Result<()> {
        let mut profile = self.profile.borrow_mut();
        if profile.auth_key.take().is_some() {
            self.state.save_profile(&profile)?;
        }
        Ok(())
    }
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
