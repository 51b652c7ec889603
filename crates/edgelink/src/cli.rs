//! The command line (DESIGN §7, §8).

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// EdgeLink: a layer-3 mesh VPN that gets through wherever HTTPS does.
#[derive(Debug, Parser)]
#[command(name = "edgelink", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// Unix socket of the daemon.
    #[arg(long, global = true, value_name = "PATH", env = "EDGELINK_SOCKET")]
    pub(crate) socket: Option<PathBuf>,
    /// Print JSON, for scripts.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Which network, where the daemon is in several; the first one without it.
    #[arg(long, global = true, value_name = "NETWORK")]
    pub(crate) network: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon in the foreground.
    Run(RunArgs),
    /// Join a network, or connect again after `down`; with a new name for --network, one more network.
    Up(UpArgs),
    /// Leave the network; keys and configuration are kept.
    Down,
    /// Show what the daemon is doing.
    Status,
    /// List the networks that the daemon is in.
    Networks,
    /// List the other nodes.
    Peers,
    /// List subnet routes and their gateways; explain where an address leads.
    Routes {
        /// Why packets to this address go where they go.
        #[arg(long, value_name = "IP")]
        why: Option<std::net::IpAddr>,
    },
    /// Measure the round trip to a node through the tunnel, and show the path taken.
    Ping(PingArgs),
    /// Find out what the network around this host lets pass: UDP, NAT, port mapping, each relay's round trip.
    Netcheck,
    /// List every path to a node: by which relays, how fast, and why packets take it or not.
    Paths {
        /// Name, overlay address or id of the node.
        target: String,
    },
    /// Wait until the network can be used, or until a node in it can be reached.
    Wait(WaitArgs),
    /// Print what helps others to help you: versions, state, paths. It holds names and addresses, no keys or tokens.
    Bugreport,
    /// Believe what was refused of a node, such as a changed machine key; `status` says what was refused.
    Accept {
        /// Name, overlay address or id of the node.
        target: String,
    },
    /// Configuration files.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Configuration file; without it the network given to `edgelink up` is used.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Directory for keys and state.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The controller, wss://HOST[:PORT]; needed the first time.
    pub(crate) controller: Option<String>,
    /// Pre-auth key (elk_…); without one an administrator must authorize this node.
    #[arg(long, value_name = "AUTHKEY")]
    pub(crate) key: Option<String>,
    /// Pin of the controller's certificate, sha256:…
    #[arg(long, value_name = "PIN")]
    pub(crate) pin: Option<String>,
    /// Name to announce instead of the system's host name.
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Give up waiting after this many seconds (the daemon goes on trying).
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Name, overlay address or id of a node that must answer.
    pub(crate) target: Option<String>,
    /// Give up after this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) timeout: u64,
}

#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// Name, overlay address or id of the node.
    pub(crate) target: String,
    /// Stop after this many probes.
    #[arg(short, long, value_name = "N")]
    pub(crate) count: Option<u32>,
    /// Stop at the first answer over a direct path (after 30 probes at most, unless --count says otherwise).
    #[arg(long)]
    pub(crate) until_direct: bool,
    /// Seconds between probes.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0)]
    pub(crate) interval: f64,
    /// Seconds to wait for each answer.
    #[arg(short = 'W', long, value_name = "SECONDS", default_value_t = 3.0)]
    pub(crate) timeout: f64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print a commented configuration to start from.
    Init,
}
