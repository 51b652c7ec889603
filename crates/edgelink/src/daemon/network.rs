//! One of the daemon's networks: a configuration, a profile, an identity, and the tunnel while it is joined.

use super::shared::Shared;
use super::state::{Profile, StateDir};
use super::tunnel::{self, Tunnel, TunnelConfig};
use super::{links, local, settings};
use anyhow::{Result, anyhow, bail};
use edgelink_api::local::{DaemonState, JoinedNetwork, LocalError, LocalErrorKind, Status, UpRequest};
use edgelink_config::{ClientConfig, Env, SessionCipher, WsUrl};
use edgelink_model::capabilities;
use edgelink_model::records::HostInfo;
use edgelink_node::{NodeConfig, P2pConfig, PathSettings};
use edgelink_os::host;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Mutex, Notify};
use tokio::task::AbortHandle;
use zeroize::Zeroizing;

/// Path of the control channel when the URL names none (specification §10.2).
const CONTROL_PATH: &str = "/ws/control";

pub(crate) struct Network {
    /// What this host calls it; the first network has no label.
    label: Option<String>,
    /// It stands in the configuration file under this label, and goes when it is no longer there.
    from_file: Cell<bool>,
    /// As the file says now; replaced by [`Network::reload`].
    config: RefCell<Rc<ClientConfig>>,
    env: Rc<Env>,
    shared: Rc<Shared>,
    state: Arc<StateDir>,
    profile: RefCell<Profile>,
    tunnel: RefCell<Option<Rc<Tunnel>>>,
    /// Why there is no tunnel although there should be one.
    failure: RefCell<Option<String>>,
    /// A tunnel was started.
    started: Notify,
    ready: Cell<bool>,
    /// Held while the tunnel is started or stopped on request.
    switching: Mutex<()>,
    follower: RefCell<Option<AbortHandle>>,
}

impl Network {
    /// Must be called on a `LocalSet`. The label comes with whether it stands in the configuration file.
    pub(crate) fn new(
        label: Option<(String, bool)>,
        config: ClientConfig,
        state: StateDir,
        env: &Rc<Env>,
        shared: &Rc<Shared>,
    ) -> Result<Rc<Self>> {
        // Made now, so that a damaged key stops the daemon at once and not at the first `up`.
        let machine = state.machine_key()?.public();
        let (label, from_file) = label.map_or((None, false), |(label, from_file)| (Some(label), from_file));
        tracing::info!(machine = machine.fingerprint(), network = label, "this host's identity");
        let this = Rc::new(Self {
            label,
            from_file: Cell::new(from_file),
            config: RefCell::new(Rc::new(config)),
            env: Rc::clone(env),
            shared: Rc::clone(shared),
            profile: RefCell::new(state.profile()?),
            state: Arc::new(state),
            tunnel: RefCell::default(),
            failure: RefCell::default(),
            started: Notify::new(),
            ready: Cell::new(false),
            switching: Mutex::new(()),
            follower: RefCell::default(),
        });
        let follower = tokio::task::spawn_local(Rc::clone(&this).follow());
        *this.follower.borrow_mut() = Some(follower.abort_handle());
        Ok(this)
    }

    pub(super) fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    pub(super) fn is_from_file(&self) -> bool {
        self.from_file.get()
    }

    pub(super) fn set_from_file(&self) {
        self.from_file.set(true);
    }

    /// The network's own name, once the controller has told it.
    pub(super) fn name(&self) -> Option<String> {
        self.status().network
    }

    pub(super) fn state_path(&self) -> PathBuf {
        self.state.path().to_owned()
    }

    /// Whether it is known whom to ask to be let in.
    pub(super) fn has_controller(&self) -> bool {
        self.config().controller.is_some() || self.profile.borrow().controller.is_some()
    }

    pub(super) fn wants_up(&self) -> bool {
        let profile = self.profile.borrow();
        self.config().controller.is_some() || (profile.controller.is_some() && !profile.down)
    }

    /// The interface carries the configuration.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.get()
    }

    pub(super) fn interface(&self) -> String {
        self.config().tun.name.as_str().to_owned()
    }

    pub(super) fn tun_of_profile(&self) -> Option<String> {
        self.profile.borrow().tun.clone()
    }

    pub(super) fn config(&self) -> Rc<ClientConfig> {
        Rc::clone(&self.config.borrow())
    }

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
                health: self.failure.borrow().iter().cloned().collect(),
                ..Status::default()
            },
        }
    }

    /// In a list of networks.
    pub(super) fn listed(&self) -> JoinedNetwork {
        let status = self.status();
        JoinedNetwork {
            label: self.label.clone(),
            network: status.network,
            state: status.state,
            interface: self.interface(),
            addresses: status.addresses,
            controller: status.controller.url,
        }
    }

    /// Who we are in it, in the line that scripts wait for.
    pub(super) fn summary(&self) -> String {
        let status = self.status();
        let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
        format!("{} {} in network {}", status.name, addresses.join(" "), status.network.unwrap_or_default())
    }

    /// Joins, if that is wanted.
    ///
    /// # Errors
    /// As [`Network::start`]; `status` shows it too.
    pub(super) async fn start_if_wanted(&self) -> Result<()> {
        let _alone = self.switching.lock().await;
        if self.wants_up() { self.start() } else { Ok(()) }
    }

    /// Leaves for good: the daemon ends, or does without this network from now on.
    pub(super) async fn end(&self) {
        let _alone = self.switching.lock().await;
        self.stop().await;
        if let Some(follower) = self.follower.borrow_mut().take() {
            follower.abort();
        }
    }

    /// Takes over another configuration. Routes and gateways change while the network is joined; for anything else the
    /// network is left and joined again.
    pub(super) async fn reload(&self, new: ClientConfig) {
        let _alone = self.switching.lock().await;
        let old = self.config();
        if (&new.state_dir, &new.key_file) != (&old.state_dir, &old.key_file) {
            tracing::warn!("state_dir and key_file change with a restart of the daemon only");
        }
        let new = ClientConfig { state_dir: old.state_dir.clone(), key_file: old.key_file.clone(), ..new };
        if new == *old {
            tracing::info!(network = self.label, "the configuration is the same as before");
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
                tracing::info!(network = self.label, "took over the configuration");
            }
            _ if !self.wants_up() => tracing::info!(network = self.label, "took over the configuration"),
            _ => {
                tracing::info!(network = self.label, "took over the configuration; joining the network again");
                self.stop().await;
                // Logged, and shown by `status`.
                let _ = self.start();
            }
        }
    }

    /// Joins: with what was given, or as the last time.
    pub(super) async fn up(&self, request: UpRequest) -> Result<(), LocalError> {
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
            // A network that `up` makes keeps the interface that it was given first.
            tun: old.tun.clone().or_else(|| self.label.is_some().then(|| self.interface())),
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
        self.start().map_err(local::failed)
    }

    pub(super) async fn down(&self) -> Result<()> {
        let _alone = self.switching.lock().await;
        let profile = Profile { down: true, ..self.profile.borrow().clone() };
        self.state.save_profile(&profile)?;
        *self.profile.borrow_mut() = profile;
        self.stop().await;
        Ok(())
    }

    /// Joins.
    ///
    /// # Errors
    /// When the network cannot even be tried: no interface, unreadable files.
    fn start(&self) -> Result<()> {
        let outcome = self.try_start();
        if let Err(error) = &outcome {
            tracing::error!(network = self.label, error = format!("{error:#}"), "the network is not joined");
        }
        *self.failure.borrow_mut() = outcome.as_ref().err().map(|error| format!("{error:#}"));
        outcome
    }

    fn try_start(&self) -> Result<()> {
        let config = self.config();
        let profile = self.profile.borrow().clone();
        let url = match (&config.controller, &profile.controller) {
            (Some(url), _) => url.clone(),
            (None, Some(text)) => text.parse().map_err(|why| anyhow!("{text:?} is no controller URL: {why}"))?,
            (None, None) => bail!("no controller is configured"),
        };
        let url = url.or_path(CONTROL_PATH);
        let dialled = (self.shared.dialled(), self.interface());
        let dialer = links::Dialer::new(&config, profile.pin.as_deref(), &url, &self.env, dialled)?;
        // Before anything is joined: without a TUN there is no point, and its offloads decide our capabilities.
        let tun = tunnel::open_tun(config.tun.name.as_str(), config.tun.mtu.into())?;
        let node = NodeConfig {
            controller_host: links::host(&url),
            auth_key: self.auth_key(&profile)?,
            host: HostInfo {
                hostname: self.hostname(),
                os: host::os().to_owned(),
                arch: host::arch().to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            trust: links::trust(&config.trust)?,
            psk: psk(&config)?,
            capabilities: self.capabilities(&tun),
            paths: PathSettings { latency_report: config.relay.latency_report_interval_seconds.duration() },
            p2p: P2pConfig {
                enabled: config.p2p.enabled,
                port: config.p2p.port,
                keepalive: config.p2p.keepalive_interval_seconds.duration(),
                mtu: config.tun.mtu,
                budget: self.shared.probes.clone(),
            },
        };
        let routes = settings::routes(&config);
        let shared = Rc::clone(&self.shared);
        let tunnel = TunnelConfig { node, controller: url.to_string(), dialer, tun, routes, shared };
        let tunnel = Tunnel::start(tunnel, self.state.machine_key()?, Arc::clone(&self.state))?;
        *self.tunnel.borrow_mut() = Some(tunnel);
        self.started.notify_one();
        Ok(())
    }

    async fn stop(&self) {
        let tunnel = self.tunnel.borrow_mut().take();
        if let Some(tunnel) = tunnel {
            tunnel.stop().await;
        }
    }

    /// Notes when the network becomes usable and when no longer, and forgets the auth key that has served, each time that
    /// one has.
    async fn follow(self: Rc<Self>) {
        loop {
            let Some(mut progress) = self.tunnel().map(|tunnel| tunnel.progress()) else {
                self.started.notified().await;
                continue;
            };
            // The channel ends with its tunnel: then there is another one, or none.
            if progress.wait_for(|p| p.ready).await.is_ok() {
                self.ready.set(true);
                self.shared.turned.notify_one();
                if let Err(error) = self.forget_auth_key() {
                    tracing::warn!(error = format!("{error:#}"), "the used auth key stays in the profile");
                }
                let _ = progress.wait_for(|p| !p.ready).await;
            }
            self.ready.set(false);
        }
    }

    /// What this node announces that it understands.
    fn capabilities(&self, tun: &edgelink_os::tun::Tun) -> u32 {
        let aes = self.config().session_cipher == SessionCipher::Auto && host::has_aes_gcm();
        let of = |has: bool, capability: u32| if has { capability } else { 0 };
        of(tun.offload(), capabilities::SUPER_PACKETS)
            | of(tun.udp_offload(), capabilities::UDP_SUPER_PACKETS)
            | of(aes, capabilities::AES_256_GCM)
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

fn psk(config: &ClientConfig) -> Result<Option<Zeroizing<[u8; 32]>>> {
    let text = match (&config.psk, &config.psk_file) {
        (Some(psk), _) => Zeroizing::new(psk.expose().to_owned()),
        (None, Some(file)) => Zeroizing::new(edgelink_os::files::read_private(file)?),
        (None, None) => return Ok(None),
    };
    let parsed = edgelink_config::parse_psk(&text);
    let psk = parsed.map_err(|problem| match &config.psk_file {
        Some(file) => anyhow!("{}: {problem}", file.display()),
        None => anyhow!("psk: {problem}"),
    })?;
    Ok(Some(Zeroizing::new(psk)))
}
