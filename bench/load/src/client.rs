//! One real client in a network of many nodes and routes: what it costs it to know them, and to have talked to all.
//!
//! The others are synthetic, connected to the controller and to no relay; the first few announce the routes, which their auth
//! key approves in advance. The client is `edgelink run` with a TUN of its own: root, and a network namespace without anything
//! else in it, are wanted (`unshare -n`).

use crate::controller::Controller;
use crate::node::{self, Identity};
use crate::process::{Process, Usage};
use crate::shared::Shared;
use crate::{RunArgs, on_one_thread};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::process::Command;

/// Routes of one gateway; a node may announce 1,024.
const PER_GATEWAY: usize = 1_000;
/// The client's interface.
const TUN: &str = "elload0";

/// Measure a client that knows many nodes and routes.
#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// Nodes beside the client.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(2..=4_000))]
    pub nodes: u16,
    /// Subnets that they serve.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(..=60_000))]
    pub routes: u16,
    /// How long it is watched at rest, in seconds.
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Connections that authenticate at the same time; the controller takes 20 of one address.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub concurrency: u16,
    /// How it is run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What was measured, of the client alone.
#[derive(Clone, Debug)]
pub struct ClientReport {
    /// Peers that its `status` lists.
    pub peers: usize,
    /// Routes that its `status` lists.
    pub routes: usize,
    /// After its start, with everything learnt and every route in the kernel.
    pub ready: Usage,
    /// A while later, nothing having happened.
    pub rest: Usage,
    /// After a packet to every peer and into every subnet.
    pub talked: Usage,
    /// How long it rested.
    pub seconds: u64,
}

/// Starts controller, nodes and client, measures, ends them.
///
/// # Errors
/// When one of them does not start or the client does not learn of all.
pub fn run(args: &ClientArgs) -> Result<ClientReport> {
    on_one_thread(measure(args))
}

async fn measure(args: &ClientArgs) -> Result<ClientReport> {
    let limit = Duration::from_secs(args.run.timeout);
    let (nodes, routes) = (usize::from(args.nodes), usize::from(args.routes));
    let controller = Controller::start(args.run.bin_dir.as_deref(), "", limit).await?;
    let key = controller.add_network(0, nodes + 1).await?;
    let gateway_key = controller.gateway_key().await?;
    let shared = Rc::new(Shared::new(&controller, 1, nodes, args.concurrency.into())?);

    eprintln!("{nodes} nodes join with {routes} routes");
    let gateways = routes.div_ceil(PER_GATEWAY);
    ensure!(gateways < nodes, "{routes} routes need more than {gateways} nodes");
    shared.expect(nodes);
    for n in 0..nodes {
        let served = if n < gateways { n * PER_GATEWAY..routes.min((n + 1) * PER_GATEWAY) } else { 0..0 };
        let key = if served.is_empty() { &key } else { &gateway_key };
        let identity = Identity::new(0, Some(key.clone())).serving(served.map(subnet).collect());
        node::spawn(Rc::clone(&shared), Rc::new(identity));
    }
    shared.complete(limit).await.context("not every node has learnt of all others")?;

    eprintln!("a client joins");
    let client = Client::start(&controller, &args.run, key, limit).await?;
    let (peers, known) = client.until_it_knows(nodes, routes, limit).await?;
    let ready = client.process.usage()?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let rest = client.process.usage()?;
    talk(&peers, routes)?;
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let talked = client.process.usage()?;
    client.process.stop().await?;
    controller.stop().await?;
    Ok(ClientReport { peers: peers.len(), routes: known, ready, rest, talked, seconds: args.seconds })
}

/// The `n`th subnet: 20.0.0.0/24 and those that follow.
fn subnet(n: usize) -> [u8; 4] {
    [20, (n >> 8) as u8, n as u8, 0]
}

/// A packet to every peer and into every subnet. Many are lost, since nobody is there: what the client keeps of them counts.
fn talk(peers: &[Ipv4Addr], routes: usize) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let hosts = (0..routes).map(|n| {
        let [a, b, c, _] = subnet(n);
        Ipv4Addr::new(a, b, c, 1)
    });
    for host in peers.iter().copied().chain(hosts) {
        socket.send_to(b"hello", (host, 7)).with_context(|| format!("to {host}"))?;
    }
    Ok(())
}

struct Client {
    process: Process,
    program: PathBuf,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Client {
    async fn start(controller: &Controller, run: &RunArgs, key: String, limit: Duration) -> Result<Self> {
        let program = crate::process::bin_dir(run.bin_dir.as_deref())?.join("edgelink");
        let dir = tempfile::tempdir()?;
        let (file, socket) = (dir.path().join("client.json"), dir.path().join("client.sock"));
        let config = json!({
            "controller": format!("wss://{}", controller.address()), "pin": controller.pin.to_string(), "auth_key": key,
            "state_dir": dir.path().join("state"), "tun": {"name": TUN}, "accept_routes": true,
            "relay": {"allow_local_addresses": true},
        });
        std::fs::write(&file, config.to_string())?;
        let args: [&std::path::Path; 5] = ["run".as_ref(), "--config".as_ref(), &file, "--socket".as_ref(), &socket];
        let process = Process::start(&program, &args, limit).await?;
        Ok(Self { process, program, socket, _dir: dir })
    }

    /// Waits until it lists all of them as it should; the peers' addresses, and how many routes.
    async fn until_it_knows(&self, nodes: usize, routes: usize, limit: Duration) -> Result<(Vec<Ipv4Addr>, usize)> {
        let known = async {
            loop {
                let status = self.status().await?;
                let list = |name: &str| status[name].as_array().map(Vec::as_slice).unwrap_or_default().to_vec();
                let peers: Vec<Ipv4Addr> = list("peers")
                    .iter()
                    .filter(|peer| peer["online"] == true)
                    .filter_map(|peer| peer["addresses"][0].as_str()?.parse().ok())
                    .collect();
                let active = list("routes").iter().filter(|route| route["active"] == true).count();
                if peers.len() >= nodes && active >= routes && kernel_routes().await? >= routes {
                    return Ok((peers, active));
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        tokio::time::timeout(limit, known).await.context("the client has not learnt of all")?
    }

    async fn status(&self) -> Result<Value> {
        let output =
            Command::new(&self.program).args(["status", "--json", "--socket"]).arg(&self.socket).output().await?;
        ensure!(output.status.success(), "edgelink status: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Routes into the client's interface, in whatever table.
async fn kernel_routes() -> Result<usize> {
    let output = Command::new("ip").args(["-4", "route", "show", "table", "all", "dev", TUN]).output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("20.")).count())
}

impl ClientReport {
    pub(crate) fn json(&self) -> Value {
        json!({
            "peers": self.peers, "routes": self.routes,
            "rss_ready": self.ready.rss, "rss_rest": self.rest.rss, "rss_talked": self.talked.rss,
            "cpu_s_start": self.ready.cpu, "cpu_s_rest": self.rest.cpu - self.ready.cpu,
            "cpu_s_talked": self.talked.cpu - self.rest.cpu, "seconds": self.seconds,
        })
    }

    pub(crate) fn text(&self) -> String {
        let mib = |usage: &Usage| usage.rss as f64 / f64::from(1 << 20);
        format!(
            "{} peers, {} routes\nmemory: {:.1} MiB with all learnt, {:.1} MiB after {} s of rest, {:.1} MiB after a packet to each\n\
             CPU: {:.2} s to start and learn, {:.2} s in {} s of rest, {:.2} s for a packet to each and {} s",
            self.peers,
            self.routes,
            mib(&self.ready),
            mib(&self.rest),
            self.seconds,
            mib(&self.talked),
            self.ready.cpu,
            self.rest.cpu - self.ready.cpu,
            self.seconds,
            self.talked.cpu - self.rest.cpu,
            self.seconds,
        )
    }
}
