//! The EdgeLink client: the daemon `edgelink run` and the everyday commands.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a shell: the place where clocks are read")]

mod cli;
mod commands;
mod daemon;
mod output;
mod waiting;

use clap::Parser as _;
use cli::{Cli, Command, ConfigCommand};
use edgelink_config::Env;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Freed buffers kept for the next messages, in bytes.
const KEEP_FREED: usize = 16 << 20;

/// Runs the command line of this process; the exit codes are those of DESIGN §8.
pub fn main() -> ExitCode {
    edgelink_os::memory::keep_freed_buffers(KEEP_FREED);
    let env = Env::new(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v))));
    let cli = Cli::parse();
    let filter = std::env::var("EDGELINK_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter = EnvFilter::try_new(&filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();

    let socket = cli.socket.unwrap_or_else(|| edgelink_config::socket_path(&env));
    let at = commands::Daemon { socket: &socket, json: cli.json, network: cli.network.as_deref() };
    let outcome = match cli.command {
        Command::Run(args) => {
            return match daemon::run(args, socket.clone(), env) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("edgelink: {error:#}");
                    ExitCode::FAILURE
                }
            };
        }
        Command::Up(args) => commands::up(&at, args),
        Command::Down => commands::down(&at),
        Command::Status => commands::status(&at),
        Command::Networks => commands::networks(&at),
        Command::Peers => commands::peers(&at),
        Command::Routes { why } => commands::routes(&at, why),
        Command::Netcheck => commands::netcheck(&at),
        Command::Accept { target } => commands::accept(&at, target),
        Command::Paths { target } => commands::paths(&at, target),
        Command::Ping(args) => commands::ping(&at, args),
        Command::Wait(args) => waiting::wait(&at, &args),
        Command::Bugreport => commands::bugreport(&at),
        Command::Config(ConfigCommand::Init) => {
            commands::print(&edgelink_config::starter::<edgelink_config::ClientConfig>())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgelink: {error}");
            ExitCode::from(error.kind.exit_code())
        }
    }
}
