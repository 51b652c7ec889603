//! The EdgeLink stand-alone server: a relay of the mesh and a STUN server, each on or off (specification §1.2, §5.2), on
//! one thread.
//!
//! [`relay_shell`], [`socket`], [`front`], [`certificate`], [`dialler`] and [`stun`] also serve the controller's built-in
//! relay and STUN server.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a shell: the place where clocks are read")]

pub mod addresses;
pub mod certificate;
pub mod dialler;
pub mod front;
pub mod relay_shell;
pub mod reload;
pub mod socket;
mod state;
pub mod stun;
mod uplink;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use dialler::{MeshDialler, ToController};
use edgelink_auth::MachineKey;
use edgelink_auth::token::{RelayVerifier, ServerClaims};
use edgelink_config::{Config as _, Env, ServerConfig, Tls, TlsFiles};
use edgelink_model::Now;
use edgelink_net::server::{self, Peer};
use edgelink_net::tcp::Listener;
use edgelink_net::tls::{self, Pin};
use edgelink_net::ws;
use edgelink_relay::{Registration, Relay, RelayConfig};
use edgelink_wire::control::proto;
use getrandom::SysRng;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use ipnet::IpNet;
use rand_core::UnwrapErr;
use relay_shell::RelayShell;
use reload::Reloader;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::{IsTerminal as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use stun::StunShell;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tracing_subscriber::EnvFilter;

/// Without EDGELINK_LOG: what an operator wants to read.
const DEFAULT_LOG: &str = "info";
/// Freed buffers kept for the next messages, in bytes.
const KEEP_FREED: usize = 16 << 20;

/// The EdgeLink stand-alone relay and STUN server.
#[derive(Debug, Parser)]
#[command(name = "edgelink-server", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
struct Cli {
    /// Configuration file, as `edgelink-ctl server add` prints it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a commented configuration to start from.
    Init,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    edgelink_os::memory::keep_freed_buffers(KEEP_FREED);
    edgelink_os::open_files::raise_limit();
    let cli = Cli::parse();
    if let Some(Command::Config(ConfigCommand::Init)) = cli.command {
        // A reader that has gone away (`| head`) is no error.
        let _ = std::io::stdout().write_all(edgelink_config::starter::<ServerConfig>().as_bytes());
        return ExitCode::SUCCESS;
    }
    let filter = std::env::var("EDGELINK_LOG").unwrap_or_else(|_| DEFAULT_LOG.to_owned());
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    match run(cli.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgelink-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(file: Option<PathBuf>) -> Result<()> {
    let env = Env::new(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v))));
    let config: ServerConfig = edgelink_config::load(file.as_deref(), &env)?;
    for warning in config.validate()? {
        tracing::warn!("{warning}");
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    LocalSet::new().block_on(&runtime, serve(config, file, env))
}

async fn serve(config: ServerConfig, file: Option<PathBuf>, env: Env) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    // Before anything is made on disk: a port in use is the commonest mistake.
    let listener = config.relay.enabled.then(|| Listener::bind(config.relay.listen)).transpose()?;
    let stun = stun(&config).await?;
    if let Err(error) = edgelink_os::privileges::drop_all() {
        tracing::warn!(%error, "privileges kept");
    }
    let root = nix::unistd::geteuid().is_root();
    let state = state::StateDir::open(config.state_dir(&env, root))?;

    let token = config.controller.token.as_ref().map(|token| token.expose().to_owned()).unwrap_or_default();
    let claims = ServerClaims::peek(&token).context(
        "controller.token is no server_token: copy the one that `edgelink-ctl server add` printed, whole and without spaces",
    )?;
    let mut relay = relay(&config, &claims, &state)?;
    let peers = config
        .mesh
        .peers
        .iter()
        .filter(|_| config.relay.enabled)
        .map(|url| url.clone().or_path("/ws/mesh").to_string());
    relay.set_static_peers(peers, now());

    let (controller, dialler) = diallers(&config)?;
    let (uplink, events) = mpsc::channel(relay_shell::TO_CONTROLLER);
    let shell = RelayShell::new(relay, dialler, uplink);
    shell.start(Registration { token, register: register(&config, &claims, stun.as_deref()) });
    tokio::task::spawn_local(uplink::run(Rc::clone(&shell), controller, events));
    tokio::task::spawn_local(state::keep(Rc::clone(&shell), state.file()));

    if let Some(stun) = &stun {
        stun.start();
    }
    let (id, name) = (claims.server_id, &claims.server_name);
    tracing::info!(server = %id, name, state = %state.dir.display(), "edgelink-server {}", env!("CARGO_PKG_VERSION"));
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Whoever asks twice is in a hurry.
        tokio::select! {
            () = shell.drain() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let certificate = Rc::new(RefCell::new(match config.relay.enabled {
        true => server_tls(&config, &state.dir)?,
        false => None,
    }));
    let trusted_proxies = Rc::new(RefCell::new(config.relay.trusted_proxies.clone()));
    let reloader = Reloader {
        file,
        env,
        running: config.clone(),
        certificate: Rc::clone(&certificate),
        trusted_proxies: Rc::clone(&trusted_proxies),
    };
    tokio::task::spawn_local(reloader.run(hangup));
    // Whoever started us may have closed the pipe; serving matters more.
    let ready = |place: String| {
        let _ = std::io::stdout().write_all(format!("ready server {id} ({name}) on {place}\n").as_bytes());
        edgelink_os::notify::ready();
    };
    match listener {
        Some(listener) => {
            let front = Rc::new(Front {
                relay: Rc::clone(&shell),
                stun,
                data_path: config.relay.ws_data.as_str().to_owned(),
                mesh_path: config.relay.ws_mesh.as_str().to_owned(),
                trusted_proxies,
            });
            ready(listener.local_addr().to_string());
            relay_until(shutdown, listener, certificate, front).await;
        }
        None => {
            ready(format!("UDP {}", config.stun.listen));
            shutdown.await;
        }
    }
    tracing::info!("ending");
    // A relay that never heard of its controller has nothing to keep.
    if shell.knows_its_controller() {
        state::save(&state.file(), &shell.saved_state())?;
    }
    Ok(())
}

/// Serves HTTPS and WSS until `shutdown`.
async fn relay_until(
    shutdown: impl Future<Output = ()>,
    listener: Listener,
    certificate: Rc<RefCell<Option<Arc<rustls::ServerConfig>>>>,
    front: Rc<Front>,
) {
    server::serve(
        listener,
        || certificate.borrow().clone(),
        |peer: Peer| {
            let front = Rc::clone(&front);
            Some(hyper::service::service_fn(move |request| {
                let response = front.handle(request, peer);
                async move { Ok::<_, Infallible>(response) }
            }))
        },
        shutdown,
    )
    .await;
}

/// The STUN server. A relay without its STUN server is worth more than neither.
async fn stun(config: &ServerConfig) -> Result<Option<Rc<StunShell>>> {
    if !config.stun.enabled {
        return Ok(None);
    }
    match StunShell::bind(&config.stun, "stun", &addresses::own().await) {
        Ok(stun) => Ok(Some(stun)),
        Err(error) if config.relay.enabled => {
            tracing::error!("no STUN server, the relay alone: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The relay's core, with what an earlier process saved.
fn relay(config: &ServerConfig, claims: &ServerClaims, state: &state::StateDir) -> Result<Relay> {
    // Until the controller has said which keys to trust: one whose private half nobody has.
    let nobody = MachineKey::generate(&mut os_rng()).public().0;
    let secret = config.jwt.as_ref().and_then(|jwt| jwt.secret.as_ref());
    let verifier = match secret {
        Some(secret) => RelayVerifier::from_parts("HS256", secret.expose().as_bytes(), &nobody)?,
        None => RelayVerifier::from_parts("EdDSA", &nobody, &nobody)?,
    };
    if config.jwt.as_ref().is_some_and(|jwt| jwt.public_key.is_some()) {
        tracing::info!("jwt.public_key is not needed: the controller tells its public key at registration");
    }
    let settings = RelayConfig {
        expired_grace: config.relay.expired_token_grace_hours.duration(),
        meshed: config.relay.enabled,
        ..RelayConfig::new(claims.server_id)
    };
    let mut relay = Relay::new(settings, verifier);
    if let Some(saved) = state::load(&state.file())?
        && let Err(error) = relay.restore(&saved, now())
    {
        tracing::warn!(file = %state.file().display(), %error, "the controller will say everything again");
    }
    Ok(relay)
}

/// Ways to the controller, and to other relays.
fn diallers(config: &ServerConfig) -> Result<(ToController, MeshDialler)> {
    let controller = &config.controller;
    let url = controller.url.clone().context("controller.url is missing")?.or_path("/ws/server");
    let pin = controller.pin.as_ref().map(|pin| Pin(pin.hash()));
    let allow_local = config.mesh.allow_local_addresses;
    let to_controller = dialler::controller(&url, controller.ca_file.clone(), pin, allow_local)?;
    let mesh = MeshDialler::new(controller.ca_file.clone(), !url.is_tls(), allow_local)?
        .with_controller(to_controller.clone());
    Ok((to_controller, mesh))
}

/// What the server says of itself: what runs here, and where.
fn register(config: &ServerConfig, claims: &ServerClaims, stun: Option<&StunShell>) -> proto::ServerRegister {
    let mut register = proto::ServerRegister {
        name: claims.server_name.clone(),
        region: claims.region.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    if config.relay.enabled {
        let data = config.relay.public_url.clone().map(|url| url.or_path(config.relay.ws_data.as_str()));
        let beside = data.as_ref().map(|url| format!("{}{}", url.origin(), config.relay.ws_mesh.as_str()));
        register.capabilities.push("relay".to_owned());
        register.public_url = data.map(|url| url.to_string()).unwrap_or_default();
        register.mesh_url = match &config.mesh.public_url {
            Some(own) => own.clone().or_path(config.relay.ws_mesh.as_str()).to_string(),
            None => beside.unwrap_or_default(),
        };
    }
    if let Some(stun) = stun {
        let addresses = stun.addresses();
        register.capabilities.push("stun".to_owned());
        register.stun_ip = octets(addresses.ip);
        register.stun_ip2 = addresses.other_ip.map(octets).unwrap_or_default();
        register.stun_port = addresses.ports[0].into();
    }
    register
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn server_tls(config: &ServerConfig, dir: &Path) -> Result<Option<Arc<rustls::ServerConfig>>> {
    match &config.relay.tls {
        Tls::Plain => Ok(None),
        Tls::Files(files) => Ok(Some(tls_from_files(files)?)),
        Tls::OwnCertificate => {
            let mut names: BTreeSet<String> = BTreeSet::from(["localhost".to_owned()]);
            let urls = [&config.relay.public_url, &config.mesh.public_url];
            names.extend(urls.into_iter().flatten().map(|url| url.host().trim_matches(['[', ']']).to_owned()));
            let own = certificate::own(dir, &names, SystemTime::now())?;
            tracing::warn!(
                ca = %dir.join("ca.pem").display(),
                "relay.tls is not configured: nodes and other relays must trust this CA (ca_file)"
            );
            Ok(Some(tls::server_config(own.chain.as_bytes(), own.key.as_bytes())?))
        }
    }
}

pub(crate) fn tls_from_files(files: &TlsFiles) -> Result<Arc<rustls::ServerConfig>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(tls::server_config(&read(&files.cert)?, &read(&files.key)?)?)
}

/// The HTTPS front: WebSocket upgrades, health and metrics.
struct Front {
    relay: Rc<RelayShell>,
    stun: Option<Rc<StunShell>>,
    data_path: String,
    mesh_path: String,
    trusted_proxies: Rc<RefCell<Vec<IpNet>>>,
}

impl Front {
    fn handle(self: &Rc<Self>, mut request: Request<Incoming>, peer: Peer) -> Response<String> {
        let remote = front::client_address(&self.trusted_proxies.borrow(), request.headers(), peer.remote.ip());
        let relay = Rc::clone(&self.relay);
        match request.uri().path() {
            path if path == self.data_path => {
                front::upgrade(&mut request, ws::MAX_MESSAGE, move |ws| relay.connection(ws, remote))
            }
            path if path == self.mesh_path => {
                front::upgrade(&mut request, ws::MAX_MESSAGE, move |ws| relay.mesh_connection(ws, remote))
            }
            "/healthz" => front::text(StatusCode::OK, "ok\n"),
            "/metrics" => {
                let mut out = String::new();
                front::relay_metrics(&mut out, &self.relay.stats());
                if let Some(stun) = &self.stun {
                    stun.metrics(&mut out);
                }
                front::text(StatusCode::OK, &out)
            }
            _ => front::text(StatusCode::NOT_FOUND, "not found\n"),
        }
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
