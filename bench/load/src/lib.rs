//! Many synthetic nodes at one real controller: how fast they join, what that costs it, and how soon all of them know of a
//! change; at one real relay ([`relay`]); and beside one real client ([`client`]).
//!
//! Each node has a machine key and a WebSocket of its own, authenticates as real ones do, announces a node key, takes and
//! acknowledges its configuration and every update. What it is told is checked: nothing of another network, and in the
//! end every member of its own, with its key. The tool starts `edgelink-controller` on an empty state directory and does
//! what an administrator would with `edgelink-ctl`. The measured process is the controller alone (`/proc/PID`).
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a measuring tool works on the real clock")]

pub mod client;
mod controller;
#[cfg(test)]
mod crash_tests;
mod node;
mod process;
pub mod relay;
mod shared;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use controller::Controller;
use node::Identity;
use serde_json::json;
use shared::Shared;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;

/// Load a controller, a relay or a client with synthetic nodes and measure it.
#[derive(Clone, Debug, Parser)]
#[command(name = "edgelink-load", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    controller: Args,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Load a relay instead.
    Relay(relay::RelayArgs),
    /// Let a client know many nodes and routes instead; to be run as root in a network namespace.
    Client(client::ClientArgs),
}

/// Load a controller with synthetic nodes and measure it.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Networks, all with the same subnet.
    #[arg(long, default_value_t = 50)]
    pub networks: usize,
    /// Nodes in each network.
    #[arg(long, default_value_t = 100)]
    pub nodes: usize,
    /// Changes to measure, each in the first network.
    #[arg(long, default_value_t = 5)]
    pub changes: usize,
    /// Connections that authenticate at the same time; the controller takes 20 of one address.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub concurrency: u16,
    /// How it is run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// How a load is run, whatever it is.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArgs {
    /// Directory with the product's binaries. Left out: the one of this program.
    #[arg(long, env = "EDGELINK_BIN_DIR", value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// How long a step may take, in seconds.
    #[arg(long, default_value_t = 300)]
    pub timeout: u64,
    /// Print the figures as JSON.
    #[arg(long)]
    pub json: bool,
}

/// What was measured. CPU time is the controller's, user and system, in seconds; memory its resident set, in bytes.
#[derive(Clone, Debug)]
pub struct Report {
    /// Nodes in all.
    pub nodes: usize,
    /// From the first connection until every node knew every other of its network, with its key.
    pub join: Phase,
    /// All at once again, with their auth_tokens, as after a restart of the network between.
    pub rejoin: Phase,
    /// Resident set of the controller before anybody joined.
    pub rss_empty: u64,
    /// Resident set with all nodes connected.
    pub rss_full: u64,
    /// Per change, from the start of `edgelink-ctl node authorize` (a process that opens the database and commits) until
    /// the last node of the network had acknowledged it.
    pub changes: Vec<Duration>,
    /// The same from the return of `edgelink-ctl`; the node may know before.
    pub after_commit: Vec<Duration>,
    /// CPU time of all changes together.
    pub change_cpu: f64,
    /// Messages to nodes of other networks than the one that changed, while it did.
    pub stray_messages: u64,
}

/// One crowd.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Wall clock.
    pub wall: Duration,
    /// Controller's CPU seconds.
    pub cpu: f64,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Some(Command::Relay(args)) => {
            relay::run(&args).map(|report| if args.run.json { report.json().to_string() } else { report.text() })
        }
        Some(Command::Client(args)) => {
            client::run(&args).map(|report| if args.run.json { report.json().to_string() } else { report.text() })
        }
        None => {
            let args = cli.controller;
            run(&args).map(|report| if args.run.json { report.json().to_string() } else { report.text() })
        }
    };
    match outcome {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("edgelink-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts a controller, loads it, measures, ends it.
///
/// # Errors
/// When the controller does not start, refuses a node, tells one something of another network, or is too slow.
pub fn run(args: &Args) -> Result<Report> {
    on_one_thread(measure(args))
}

fn on_one_thread<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    edgelink_os::open_files::raise_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, work)
}

async fn measure(args: &Args) -> Result<Report> {
    ensure!(args.networks > 0 && args.nodes > 1, "at least one network of two nodes is needed");
    let limit = Duration::from_secs(args.run.timeout);
    let controller = Controller::start(args.run.bin_dir.as_deref(), "", limit).await?;
    let mut identities = Vec::new();
    for network in 0..args.networks {
        let key = controller.add_network(network, args.nodes + args.changes).await?;
        identities.extend((0..args.nodes).map(|_| Rc::new(Identity::new(network, Some(key.clone())))));
    }
    let total = identities.len();
    let shared = Rc::new(Shared::new(&controller, args.networks, args.nodes, args.concurrency.into())?);
    let empty = controller.usage()?;

    eprintln!("{total} nodes join {} networks", args.networks);
    let join = phase(&controller, &shared, &identities, limit).await?;
    let full = controller.usage()?;

    let strays = shared.messages_outside(0);
    let mut changes = Vec::new();
    let mut after_commit = Vec::new();
    for change in 0..args.changes {
        let waiting = Rc::new(Identity::new(0, Some(controller.waiting_key().await?)));
        let (took, since_commit) =
            authorize(&controller, &shared, waiting, limit).await.with_context(|| format!("change {change}"))?;
        changes.push(took);
        after_commit.push(since_commit);
    }
    let changed = controller.usage()?;
    let stray_messages = shared.messages_outside(0) - strays;

    eprintln!("all of them come back at once");
    shared.hang_up(&controller, limit).await?;
    let rejoin = phase(&controller, &shared, &identities, limit).await?;
    controller.stop().await?;
    Ok(Report {
        nodes: total,
        join,
        rejoin,
        rss_empty: empty.rss,
        rss_full: full.rss,
        changes,
        after_commit,
        change_cpu: changed.cpu - full.cpu,
        stray_messages,
    })
}

/// All nodes connect; over when each knows its whole network.
async fn phase(
    controller: &Controller,
    shared: &Rc<Shared>,
    identities: &[Rc<Identity>],
    limit: Duration,
) -> Result<Phase> {
    let (begin, before) = (Instant::now(), controller.usage()?);
    shared.expect(identities.len());
    for identity in identities {
        node::spawn(Rc::clone(shared), Rc::clone(identity));
    }
    shared.complete(limit).await.context("not every node has learnt of all others")?;
    let wall = begin.elapsed();
    Ok(Phase { wall, cpu: controller.usage()?.cpu - before.cpu })
}

/// A machine knocks and waits; then it is authorized. The time from the command, and from its return, to the last node's
/// acknowledgement.
async fn authorize(
    controller: &Controller,
    shared: &Rc<Shared>,
    identity: Rc<Identity>,
    limit: Duration,
) -> Result<(Duration, Duration)> {
    node::spawn(Rc::clone(shared), Rc::clone(&identity));
    let id = shared.waiting(limit).await.context("the new node was not told to wait")?;
    shared.watch(id);
    let begin = Instant::now();
    controller.ctl(&["node", "authorize", &id.to_string()]).await?;
    let committed = Instant::now();
    let last = shared.known_to_all(limit).await.context("the new node is not known to all others")?;
    Ok((last.duration_since(begin), last.saturating_duration_since(committed)))
}

impl Report {
    /// CPU seconds per 1,000 nodes that join.
    pub fn cpu_per_thousand(&self) -> f64 {
        self.join.cpu * 1000.0 / self.nodes as f64
    }

    /// Bytes per node, beyond the empty controller.
    pub fn rss_per_node(&self) -> u64 {
        self.rss_full.saturating_sub(self.rss_empty) / self.nodes as u64
    }

    fn json(&self) -> serde_json::Value {
        let ms = |times: &[Duration]| times.iter().map(|t| t.as_secs_f64() * 1e3).collect::<Vec<_>>();
        json!({
            "nodes": self.nodes,
            "join": {"wall_s": self.join.wall.as_secs_f64(), "cpu_s": self.join.cpu,
                     "cpu_s_per_1000": self.cpu_per_thousand()},
            "rejoin": {"wall_s": self.rejoin.wall.as_secs_f64(), "cpu_s": self.rejoin.cpu},
            "rss_empty": self.rss_empty, "rss_full": self.rss_full, "rss_per_node": self.rss_per_node(),
            "authorize_ms": ms(&self.changes), "authorize_after_commit_ms": ms(&self.after_commit),
            "change_cpu_s": self.change_cpu, "stray_messages": self.stray_messages,
        })
    }

    fn text(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let ms = |times: &[Duration]| {
            times.iter().map(|t| format!("{:.0}", t.as_secs_f64() * 1e3)).collect::<Vec<_>>().join(" ")
        };
        let phase = |name: &str, phase: &Phase| {
            let per = 1000.0 / self.nodes as f64;
            format!(
                "{name}: {} nodes in {:.2} s ({:.0} a second); controller {:.2} CPU s, {:.2} per 1,000 nodes\n",
                self.nodes,
                phase.wall.as_secs_f64(),
                self.nodes as f64 / phase.wall.as_secs_f64(),
                phase.cpu,
                phase.cpu * per,
            )
        };
        phase("join", &self.join)
            + &phase("come back", &self.rejoin)
            + &format!(
                "memory: {:.0} MiB empty, {:.0} MiB full, {:.1} KiB per node\n",
                mib(self.rss_empty),
                mib(self.rss_full),
                self.rss_per_node() as f64 / 1024.0
            )
            + &format!(
                "authorize, command to last ACK: {} ms; from its return: {} ms; {:.3} CPU s in all; {} messages to others",
                ms(&self.changes),
                ms(&self.after_commit),
                self.change_cpu,
                self.stray_messages
            )
    }
}
