//! The EdgeLink controller: HTTPS and WSS on one port, the database, the built-in relay and STUN server, on one thread.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a shell: the place where clocks are read")]

mod api;
mod figures;
mod http;
mod hub;
mod leader;
mod live;
mod local;
mod reload;
mod setup;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use edgelink_config::{Config as _, ControllerConfig, Env, Tls};
use edgelink_control::Control;
use edgelink_model::Now;
use edgelink_net::server::{self, Peer, Unauthenticated};
use edgelink_net::tcp::Listener;
use edgelink_relay::{Registration, Relay, RelayConfig};
use edgelink_server::addresses;
use edgelink_server::relay_shell::{RelayShell, TO_CONTROLLER};
use edgelink_server::stun::StunShell;
use edgelink_wire::control::proto;
use getrandom::SysRng;
use http::Front;
use hub::Hub;
use leader::{Leader, Role};
use rand_core::UnwrapErr;
use reload::{Certificate, Reloader};
use setup::Announcement;
use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::LocalSet;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry};

/// Control connections of one address that have not proved who they are (DESIGN §6).
const MAX_UNAUTHENTICATED: usize = 20;
/// Connections that have not become WebSockets, per address and together: nodes and relays that are about to upgrade,
/// and users of the REST API. Proxies that are trusted count together only.
const MAX_HTTP_PER_ADDRESS: usize = 256;
const MAX_HTTP: usize = 4_096;
/// Without EDGELINK_LOG: what an operator wants to read.
const DEFAULT_LOG: &str = "info,sea_orm_migration=warn,sqlx=warn";

/// The EdgeLink controller.
#[derive(Debug, Parser)]
#[command(name = "edgelink-controller", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Debug, Args)]
struct RunArgs {
    /// Configuration file; without it embedded defaults are used.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Directory for database, CA and keys.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl RunArgs {
    /// Flags outrank everything.
    fn outrank(&self, config: &mut ControllerConfig) {
        if let Some(listen) = self.listen {
            config.listen.http = listen;
        }
        if let Some(dir) = &self.state_dir {
            config.state_dir = Some(dir.clone());
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Administration: the same commands as edgelink-ctl.
    #[command(disable_help_flag = true)]
    Ctl {
        /// See `edgelink-controller ctl --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a commented configuration to start from.
    Init,
}

/// Freed buffers kept for the next messages, in bytes.
const KEEP_FREED: usize = 16 << 20;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    edgelink_os::memory::keep_freed_buffers(KEEP_FREED);
    edgelink_os::open_files::raise_limit();
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Ctl { arguments }) => {
            let name = OsString::from("edgelink-controller ctl");
            return edgelink_ctl::main(std::iter::once(name).chain(arguments));
        }
        Some(Command::Config(ConfigCommand::Init)) => {
            // A reader that has gone away (`| head`) is no error.
            let _ = std::io::stdout().write_all(edgelink_config::starter::<ControllerConfig>().as_bytes());
            return ExitCode::SUCCESS;
        }
        None => {}
    }
    let (filter, log) = tracing_subscriber::reload::Layer::new(default_filter());
    let ansi = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_ansi(ansi).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    match run(cli.run, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgelink-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Changes what is logged.
pub(crate) type LogHandle = tracing_subscriber::reload::Handle<EnvFilter, Registry>;

fn default_filter() -> EnvFilter {
    EnvFilter::new(DEFAULT_LOG)
}

/// What the configuration wants logged.
pub(crate) fn log_filter(config: &ControllerConfig) -> Result<EnvFilter> {
    match &config.log {
        Some(filter) => EnvFilter::try_new(filter.as_str()).context("`log` cannot be used"),
        None => Ok(default_filter()),
    }
}

fn run(args: RunArgs, log: LogHandle) -> Result<()> {
    let env = Env::new(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v))));
    let mut config: ControllerConfig = edgelink_config::load(args.config.as_deref(), &env)?;
    args.outrank(&mut config);
    log.reload(log_filter(&config)?)?;
    // Said before anything is made on disk; the database may say more.
    config.validate()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    LocalSet::new().block_on(&runtime, serve(config, args, env, log))
}

async fn serve(config: ControllerConfig, args: RunArgs, env: Env, log: LogHandle) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Before anything is made on disk: a port in use is the commonest mistake.
    let listener = Listener::bind(config.listen.http)?;
    let address = listener.local_addr();
    let own = addresses::own().await;
    let stun = stun(&config, &own);
    // Before the database starts threads of its own: capabilities are a thread's.
    if let Err(error) = edgelink_os::privileges::drop_all() {
        tracing::warn!(%error, "privileges kept");
    }
    let state = setup::State::open(&config, &env).await?;
    let config = reload::read(&args, &env, &state.store).await?;
    log.reload(log_filter(&config)?)?;
    let issuer = setup::issuer(&config, &state.store).await?;
    if state.store.location().is_shared() && config.tls == Tls::OwnCertificate {
        setup::share_ca(&state.dir, &state.store).await?;
    }
    let identity = setup::identity(&config, &state.dir, address.port(), &own)?;
    // Of several controllers on one database, one is active. Alone, we are.
    let asked = Instant::now();
    let leader = state.store.location().is_shared().then(|| Leader::new(&state.store, &identity.url));
    let role = match &leader {
        Some(leader) => leader.ask().await?,
        None => Role::Active { epoch: None },
    };
    let builtin = if matches!(role, Role::Active { .. }) {
        // Nobody is connected to a controller that has just begun.
        state.store.reset_presence().await?;
        state.store.set_revocation_lifetime(setup::longest_token_life(&config)).await?;
        setup::builtin_server(&config, &state.store, stun.as_deref()).await?
    } else {
        setup::builtin_record(&state.store).await?
    };

    let (uplink, events) = mpsc::channel(TO_CONTROLLER);
    let relay = match config.builtin_relay.enabled {
        true => {
            let builtin = Relay::new(RelayConfig::new(builtin.id), issuer.relay_verifier()?);
            Some(RelayShell::new(builtin, setup::mesh_dialler(&config)?, uplink))
        }
        false => None,
    };
    let algorithm = setup::algorithm_name(&issuer);
    let control_config = setup::control_config(&config, identity.hosts.clone());
    let control = Control::new(control_config.clone(), issuer, state.store.snapshot().await?);
    if let Some(relay) = &relay {
        relay.set_revocations(control.revocations());
    }
    let hub = Hub::new(control, control_config, state.store.clone(), relay.clone(), role.clone());
    hub.start();
    let (live, questions) = live::channel();
    tokio::task::spawn_local(Rc::clone(&hub).answer(questions));
    let own = Arc::new(setup::issuer(&config, &state.store).await?);
    let sources = api::Sources { file: args.config.clone(), env: env.clone() };
    let public_url = config.public_url.0.first().cloned();
    let api = api::Service::new(api::Api::new(state.store.clone(), own, live, sources, public_url, identity.pin));
    let local = local::open(&config, &state.dir)?.map(|socket| {
        let (stop, stopped) = oneshot::channel::<()>();
        (stop, tokio::task::spawn_local(socket.serve(api.clone(), stopped)))
    });
    let running = Rc::new(RefCell::new(config.clone()));
    if let Some(leader) = &leader {
        let announcement = Announcement { config: Rc::clone(&running), stun: stun.clone() };
        tokio::task::spawn_local(Rc::clone(leader).run(Rc::clone(&hub), announcement, asked));
    }
    if let Some(relay) = &relay {
        let token = hub.server_token(builtin.id).context("no token for the built-in relay can be made")?;
        let register = proto::ServerRegister { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
        tokio::task::spawn_local(Rc::clone(&hub).builtin(Rc::clone(relay), events));
        relay.start(Registration { token, register });
    }

    if let Some(stun) = &stun {
        stun.start();
    }
    let (draining, ending) = (relay.clone(), Rc::clone(&hub));
    let front = Rc::new(Front {
        hub: Rc::clone(&hub),
        relay,
        stun,
        api,
        control_path: config.listen.ws_control.as_str().to_owned(),
        server_path: config.listen.ws_server.as_str().to_owned(),
        data_path: config.builtin_relay.ws_data.as_str().to_owned(),
        mesh_path: config.builtin_relay.ws_mesh.as_str().to_owned(),
        trusted_proxies: RefCell::new(config.trusted_proxies.clone()),
        unauthenticated: Unauthenticated::new(MAX_UNAUTHENTICATED),
        connections: Unauthenticated::new(MAX_HTTP_PER_ADDRESS),
        open: Arc::new(Semaphore::new(MAX_HTTP)),
    });
    tracing::info!(%address, algorithm, state = %state.dir.display(), "edgelink-controller {}", env!("CARGO_PKG_VERSION"));
    match &role {
        Role::Active { .. } => print_join_command(&identity, setup::first_auth_key(&state.store).await?),
        Role::Standby { active } => {
            tracing::info!(
                active = active.as_deref().unwrap_or("?"),
                "another controller is the active one; this one stands by"
            );
        }
        Role::Cut => {}
    }
    // Whoever started us may have closed the pipe; serving matters more.
    let _ = std::io::stdout().write_all(format!("ready {} on {address}\n", identity.url).as_bytes());
    edgelink_os::notify::ready();

    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if let Some(leader) = &leader {
            // At once, so that nodes find the next controller while this one's relay still serves them.
            ending.step_down(Role::Standby { active: None });
            leader.release().await;
        }
        let Some(relay) = draining else { return };
        // Whoever asks twice is in a hurry.
        tokio::select! {
            () = relay.drain() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let certificate = Certificate::new(RefCell::new(identity.tls));
    let reloader = Reloader {
        args,
        env,
        store: state.store.clone(),
        hub: Rc::clone(&hub),
        front: Rc::clone(&front),
        certificate: Rc::clone(&certificate),
        hosts: identity.hosts,
        log,
        running,
    };
    tokio::task::spawn_local(async move {
        if let Err(error) = reloader.run().await {
            tracing::warn!(%error, "the configuration cannot be read again while this runs");
        }
    });
    server::serve(
        listener,
        || certificate.borrow().clone(),
        |peer: Peer| {
            // Counted until it ends or has become a WebSocket.
            let open = front.admit(peer)?;
            let front = Rc::clone(&front);
            Some(hyper::service::service_fn(move |request| {
                let (front, _open) = (Rc::clone(&front), &open);
                async move { Ok::<_, Infallible>(front.handle(request, peer).await) }
            }))
        },
        shutdown,
    )
    .await;
    tracing::info!("ending");
    if let Some((stop, served)) = local {
        drop(stop);
        let _ = served.await;
    }
    hub.write_presence().await;
    hub.end().await;
    state.store.close().await?;
    Ok(())
}

/// The built-in STUN server. The network works without it, only less directly, so nothing ends for its sake.
fn stun(config: &ControllerConfig, own: &[IpAddr]) -> Option<Rc<StunShell>> {
    if !config.builtin_stun.enabled {
        return None;
    }
    match StunShell::bind(&config.builtin_stun, "builtin_stun", own) {
        Ok(stun) => Some(stun),
        Err(error) => {
            tracing::error!("no built-in STUN server: {error:#}");
            None
        }
    }
}

/// Tells the person at the terminal how a node joins. The key is in no log: it is printed once, at the first start, and
/// is valid for an hour.
fn print_join_command(identity: &setup::Identity, key: Option<String>) {
    let pin = identity.pin.map(|pin| format!(" --pin {pin}")).unwrap_or_default();
    let (when, key) = match key {
        Some(key) => ("within the next hour (start its daemon with `edgelink run` first)", key),
        None => {
            let how = "(make an AUTHKEY with `edgelink-ctl token generate --type auth-key --network default`)";
            (how, "AUTHKEY".to_owned())
        }
    };
    let text = format!("\nJoin a node {when}:\n\n    edgelink up {} --key {key}{pin}\n\n", identity.url);
    // Nobody may be listening.
    let _ = std::io::stderr().write_all(text.as_bytes());
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
