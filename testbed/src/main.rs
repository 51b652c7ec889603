//! `edgelink-testbed`: what the testbed needs, and a network to look at.
#![allow(clippy::disallowed_methods, reason = "the testbed works on the real clock")]

mod bad_network;
mod demo;
mod demo_site;
mod units;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};
use edgelink_testbed::{Isolation, Lab, Tool, support, tools, topology::TcpOnly};

/// Networks of namespaces for EdgeLink's tests and demonstration.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Tell whether this machine can run the testbed, and what is missing.
    Check,
    /// Show EdgeLink: a controller and two nodes behind a router that lets one TCP port through.
    Demo {
        /// Where the binaries are.
        #[arg(long, value_name = "DIR", env = "EDGELINK_BIN_DIR")]
        bin_dir: PathBuf,
    },
    /// Build two nodes that reach only one TCP port of a relay, and run a command on one of them.
    Run {
        /// Where: relay, router, a or b.
        #[arg(long, default_value = "a")]
        host: String,
        /// The TCP port of 192.0.2.10 that is open.
        #[arg(long, default_value_t = 443)]
        port: u16,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Build two hosts behind NATs of choice and a public server; say what the NATs do, or run a command on one of them.
    #[command(after_help = bad_network::EXAMPLES)]
    Nat(bad_network::NatArguments),
    /// Build a bad link and measure it: round trips, delay, jitter, loss, throughput.
    #[command(after_help = bad_network::LINK_EXAMPLES)]
    MeasureLink(bad_network::MeasureArguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Action::Check => check(),
        Action::Demo { bin_dir } => demo(&bin_dir),
        Action::Run { host, port, command } => run(&host, port, &command),
        Action::Nat(arguments) => bad_network::nat(&arguments),
        Action::MeasureLink(arguments) => bad_network::measure_link(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("edgelink-testbed: {error:#}");
        ExitCode::FAILURE
    })
}

fn demo(bin_dir: &std::path::Path) -> Result<ExitCode> {
    match demo::run(bin_dir) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.downcast_ref::<demo::Interrupted>() {
            Some(demo::Interrupted(signal)) => {
                eprintln!("\nInterrupted; everything is cleaned up.");
                Ok(ExitCode::from(128 + u8::try_from(*signal).unwrap_or(0)))
            }
            None => Err(error),
        },
    }
}

fn check() -> Result<ExitCode> {
    let tools = tools::require(&Tool::ALL);
    let kernel = support();
    match &kernel {
        Ok(Isolation::Root) => println!("namespaces: yes, as root"),
        Ok(Isolation::UserNamespace) => println!("namespaces: yes, without root"),
        Err(error) => println!("namespaces: no: {error:#}"),
    }
    match &tools {
        Ok(()) => println!("tools: all there"),
        Err(error) => println!("tools: {error}"),
    }
    let tun = tools::require_tun();
    match &tun {
        Ok(()) => println!("TUN: yes"),
        Err(error) => println!("TUN: no: {error}"),
    }
    let all = tools.is_ok() && kernel.is_ok() && tun.is_ok();
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(host: &str, port: u16, command: &[String]) -> Result<ExitCode> {
    let lab = Lab::new()?;
    let net = TcpOnly::new(&lab, port, &["a", "b"])?;
    let hosts = [&net.relay, &*net.router].into_iter().chain(&net.nodes);
    let host = hosts.into_iter().find(|h| h.name() == host).ok_or_else(|| anyhow::anyhow!("no host {host}"))?;
    let Some((program, arguments)) = command.split_first() else { anyhow::bail!("no command") };
    let status = host.command(program).args(arguments).timeout(Duration::from_secs(3600)).show()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
