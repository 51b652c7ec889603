//! `edgelink-ctl`: administration of EdgeLink (specification §1.6), also built into the controller as
//! `edgelink-controller ctl …`.
//!
//! It works on the controller's database, whether the controller runs or not (a running one follows the change log and
//! acts within 200 ms), or, with `--url`, over the controller's REST API: the commands are the same. Results go to stdout,
//! everything else to stderr. Exit codes (DESIGN §8): 0 ok, 1 failed, 2 usage, 3 the database is missing, locked or
//! cannot be opened, or the controller cannot be reached, 4 no permission.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a shell may read the clock")]

mod admins;
mod args;
mod backend;
mod commands;
mod config;
mod database;
mod error;
mod generate;
pub mod introduce;
mod maintenance;
mod networks;
mod nodes;
mod output;
mod password;
mod reports;
mod routes;
pub mod rows;
mod servers;
mod session;
pub mod settings;
mod tokens;

pub use args::Cli;

use clap::Parser;
use edgelink_config::Env;
use error::CtlError;
use output::Output;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

/// Runs one command as a whole program: `args[0]` is the program's name as usage texts show it, such as
/// `edgelink-controller ctl`. Must not be called inside an async runtime; see [`run`].
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args::url_first(args)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors. Nobody is left to tell when printing fails.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(io::stderr(), "edgelink-ctl: {error}");
            return ExitCode::from(1);
        }
    };
    let env = Env::new(std::env::vars_os());
    let root = nix::unistd::geteuid().is_root();
    ExitCode::from(runtime.block_on(run(cli, &env, root, &mut io::stdout().lock(), &mut io::stderr().lock())))
}

/// Runs one command and returns the exit code. `root`: whether the process runs as the superuser.
pub async fn run(cli: Cli, env: &Env, root: bool, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let mut output = Output::new(out, err, cli.quiet, cli.json);
    let result = commands::execute(&cli, env, root, &mut output).await.and_then(|()| Ok(output.flush()?));
    match result {
        Ok(()) => 0,
        // Whoever closed the pipe has seen enough.
        Err(CtlError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            output.error(&error);
            error.exit_code()
        }
    }
}
