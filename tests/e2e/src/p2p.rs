//! Nodes at sites behind NATs of a public network, with a controller whose STUN server has two addresses: who reaches whom
//! directly, how soon, and why not (specification §6.1, `docs/nat-traversal.md`).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use edgelink_api::local::{
    LocalRequest, LocalResponse, NatName, NetworkChoice, PathKind, Peer, Status, from_line, to_line,
};
use edgelink_testbed::{
    Host, Impairment, Lab, NatKind, Process, Tool, tools,
    topology::{Internet, Site, SitePlan},
    wait,
};

use crate::{Node, SOON, binary};

/// The four kinds of specification §6.1, as the testbed makes them and as `status` names them.
pub const KINDS: [(NatKind, NatName, &str); 4] = [
    (NatKind::FullCone, NatName::FullCone, "full cone"),
    (NatKind::RestrictedCone, NatName::RestrictedCone, "restricted"),
    (NatKind::PortRestricted, NatName::PortRestricted, "port restr."),
    (NatKind::Symmetric, NatName::Symmetric, "symmetric"),
];
/// What is looked at so often.
const LOOK: Duration = Duration::from_millis(20);

/// A lab, or `None`, having said so, where this machine does not permit it.
///
/// # Errors
///
/// When it should be possible and is not.
pub fn lab() -> Result<Option<Lab>> {
    match Lab::with_tools(&[Tool::Ping]) {
        Ok(lab) => match tools::require_tun() {
            Ok(()) => Ok(Some(lab)),
            Err(error) => {
                eprintln!("NOT TESTED: {error:#}");
                Ok(None)
            }
        },
        Err(error) if format!("{error:#}").contains("the kernel refuses") => {
            eprintln!("NOT TESTED: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A public network with a controller on it, and the sites of nodes.
#[derive(Debug)]
pub struct Sites<'a> {
    /// The public network.
    pub internet: Internet<'a>,
    /// Where the controller runs, at 203.0.113.10 and 2001:db8::a.
    pub controller: Host,
    lab: &'a Lab,
    process: Process,
    join: String,
}

impl<'a> Sites<'a> {
    /// Starts the controller.
    ///
    /// # Errors
    ///
    /// When it does not serve.
    pub fn start(lab: &'a Lab) -> Result<Self> {
        let internet = Internet::new(lab)?;
        let (controller, addresses) = internet.server("controller", 2)?;
        let [first, second] = addresses[..] else { bail!("a server with two addresses has {addresses:?}") };
        let config = serde_json::json!({
            "tls": null,
            "listen": { "http": "[::]:80" },
            "builtin_stun": { "external_ip": first, "secondary_ip": second },
        });
        let file = lab.dir().join("controller.json");
        std::fs::write(&file, config.to_string())?;
        let command = controller.command(binary("edgelink-controller")?).arg("--config").arg(file);
        let process = command.arg("--state-dir").arg(lab.dir().join("controller")).spawn_logged()?;
        process.wait_line("ready ", SOON)?;
        let line = process.wait_line("edgelink up ", SOON)?;
        let key = line.split_whitespace().skip_while(|word| *word != "--key").nth(1).context("no key to join with")?;
        let join = format!("ws://203.0.113.10:80 --key {key}");
        Ok(Self { internet, controller, lab, process, join })
    }

    /// A node on a host of a site, not started yet.
    #[must_use]
    pub fn node(&self, host: &Host) -> Node {
        Node::new(host.clone(), self.lab.dir())
    }

    /// Starts nodes and joins them.
    ///
    /// # Errors
    ///
    /// When one does not join.
    pub fn join(&self, nodes: &mut [&mut Node]) -> Result<()> {
        for node in nodes.iter_mut() {
            node.run()?;
        }
        for node in nodes.iter() {
            self.up(node)?;
        }
        Ok(())
    }

    /// Joins a node that runs.
    ///
    /// # Errors
    ///
    /// When it does not join.
    pub fn up(&self, node: &Node) -> Result<()> {
        // Without IPv4 by the controller's other address.
        let v4 = node.host.command("ip").args(["-4", "route", "get", "203.0.113.10"]).output()?.status.success();
        let join = if v4 { self.join.clone() } else { self.join.replace("203.0.113.10", "[2001:db8::a]") };
        node.shell(&format!("edgelink up {join}"))?.run().with_context(|| node.host.name().to_owned())?;
        node.process()?.wait_line("ready ", SOON)?;
        Ok(())
    }

    /// `edgelink-ctl … --json` on the controller's database.
    ///
    /// # Errors
    ///
    /// When it does not succeed or does not answer in JSON.
    pub fn ctl(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let database = self.lab.dir().join("controller").join("mesh.db");
        let command = self.controller.command(binary("edgelink-ctl")?).arg("--db").arg(database);
        let text = command.args(arguments).arg("--json").run()?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// `edgelink-ctl …` on the running controller's REST API, which knows what is in no database.
    ///
    /// # Errors
    ///
    /// When it does not succeed.
    pub fn ctl_live(&self, arguments: &[&str]) -> Result<String> {
        let socket = self.lab.dir().join("controller").join("controller.sock");
        let command = self.controller.command(binary("edgelink-ctl")?).arg("--socket").arg(socket);
        command.args(arguments).run()
    }

    /// Fails if the controller or one of these nodes has ended or panicked.
    ///
    /// # Errors
    ///
    /// Names it.
    pub fn check_alive<'n>(&self, nodes: impl IntoIterator<Item = &'n Node>) -> Result<()> {
        let processes = nodes.into_iter().filter_map(|node| node.process().ok());
        for process in processes.chain([&self.process]) {
            if process.has_ended() || process.stderr().contains("panicked") {
                bail!("{} has ended or panicked:\n{}", process.name(), process.stderr());
            }
        }
        Ok(())
    }
}

/// The daemon's status straight from its socket: cheaper than a command.
///
/// # Errors
///
/// When it does not answer.
pub fn status(node: &Node) -> Result<Status> {
    let mut stream = UnixStream::connect(node.socket())?;
    stream.write_all(to_line(&LocalRequest::Status(NetworkChoice::default()))?.as_bytes())?;
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line)?;
    match from_line(&line)? {
        LocalResponse::Status(status) => Ok(*status),
        other => bail!("{other:?}"),
    }
}

/// What a node says of a peer.
///
/// # Errors
///
/// When it knows none of this name.
pub fn peer(node: &Node, name: &str) -> Result<Peer> {
    status(node)?.peers.into_iter().find(|peer| peer.name == name).with_context(|| format!("no peer {name}"))
}

/// Whether this is a direct path.
#[must_use]
pub fn is_direct(kind: PathKind) -> bool {
    matches!(kind, PathKind::Lan | PathKind::P2p)
}

/// Pings a peer until the path is direct, or the time is over; how long that took, and what was seen last.
///
/// # Errors
///
/// When nothing can be pinged.
pub fn time_to_direct(from: &Node, to: &Node, patience: Duration) -> Result<(Option<Duration>, Peer)> {
    let (address, name) = (to.overlay()?.to_string(), to.host.name());
    wait::until("the peer", SOON, || peer(from, name).ok().filter(|peer| peer.online))?;
    let begin = Instant::now();
    let ping = from.host.command("ping").args(["-n", "-q", "-i", "0.2", &address]).spawn_logged()?;
    let time = wait_direct(from, name, begin, patience);
    let peer = peer(from, name)?;
    // It may have happened at the last moment.
    let time = time.or_else(|| is_direct(peer.path.kind).then(|| begin.elapsed()));
    ping.kill()?;
    Ok((time, peer))
}

fn wait_direct(from: &Node, name: &str, begin: Instant, patience: Duration) -> Option<Duration> {
    while begin.elapsed() < patience {
        if peer(from, name).is_ok_and(|peer| is_direct(peer.path.kind)) {
            return Some(begin.elapsed());
        }
        std::thread::sleep(LOOK);
    }
    None
}

/// Every pair of the four kinds, left to right.
pub struct Matrix<'a> {
    /// The controller and its network.
    pub sites: Sites<'a>,
    /// A site and a node per kind, left and right.
    pub nodes: [Vec<(Site, Node)>; 2],
}

/// What became of one cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Kinds of the left and right side, as in [`KINDS`].
    pub kinds: [usize; 2],
    /// From the first packet to the direct path.
    pub time: Option<Duration>,
    /// What `edgelink status` said when it had been tried for long enough.
    pub reason: String,
}

impl Cell {
    /// What specification §6.1 says of it: ✅, ⚠️ or ❌.
    #[must_use]
    pub fn mark(&self) -> &'static str {
        match self.kinds {
            [3, 3] => "❌",
            [3, 2] | [2, 3] => "⚠️",
            _ => "✅",
        }
    }
}

impl<'a> Matrix<'a> {
    /// Eight sites on links of this delay, one way, and a node at each.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn start(lab: &'a Lab, delay: Duration) -> Result<Self> {
        let sites = Sites::start(lab)?;
        let mut nodes = [Vec::new(), Vec::new()];
        for (side, nodes) in ["left", "right"].into_iter().zip(&mut nodes) {
            for (kind, ..) in KINDS {
                let plan = SitePlan::behind(kind).link(Impairment::none().delay(delay));
                let site = sites.internet.site(&format!("{side}-{}", kind.name()), &plan)?;
                let host = site.hosts.first().context("a site without hosts")?;
                // What is measured is the way through the NATs; IPv6 has none.
                host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1")?;
                let node = sites.node(host);
                nodes.push((site, node));
            }
        }
        let mut all: Vec<&mut Node> = nodes.iter_mut().flatten().map(|(_, node)| node).collect();
        sites.join(&mut all)?;
        Ok(Self { sites, nodes })
    }

    /// Waits until every node has named its NAT rightly.
    ///
    /// # Errors
    ///
    /// When one does not.
    pub fn wait_named(&self) -> Result<()> {
        for ((_, node), (_, name, text)) in self.nodes.iter().flat_map(|side| side.iter().zip(KINDS)) {
            let what = format!("{}: a NAT called {text}", node.host.name());
            wait::until(&what, SOON, || status(node).ok().filter(|status| status.nat.name == name))
                .with_context(|| format!("{:?}", status(node).map(|status| status.nat)))?;
        }
        Ok(())
    }

    /// Tries all pairs, four at a time and each node in one of them; those that take longer go on beside the others.
    ///
    /// # Errors
    ///
    /// When something cannot be measured.
    pub fn run(&self, patience: [Duration; 2]) -> Result<Vec<Cell>> {
        let [easy, hard] = patience;
        let [left, right] = &self.nodes;
        let mut cells = BTreeMap::new();
        std::thread::scope(|scope| -> Result<()> {
            let mut slow = Vec::new();
            for shift in 0..KINDS.len() {
                let mut wave = Vec::new();
                for (l, (_, from)) in left.iter().enumerate() {
                    let r = (l + shift) % KINDS.len();
                    let Some((_, to)) = right.get(r) else { continue };
                    let is_hard = l >= 2 && r >= 2 && l + r >= 5;
                    let patience = if is_hard { hard } else { easy };
                    let trial = scope.spawn(move || time_to_direct(from, to, patience));
                    if is_hard { slow.push(([l, r], trial)) } else { wave.push(([l, r], trial)) }
                }
                for (kinds, trial) in wave {
                    let outcome = trial.join().map_err(|_| anyhow::anyhow!("a trial panicked"))??;
                    cells.insert(kinds, outcome);
                }
            }
            for (kinds, trial) in slow {
                let outcome = trial.join().map_err(|_| anyhow::anyhow!("a trial panicked"))??;
                cells.insert(kinds, outcome);
            }
            Ok(())
        })?;
        let cell = |(kinds, (time, peer)): ([usize; 2], (Option<Duration>, Peer))| Cell {
            kinds,
            time,
            reason: peer.reason.unwrap_or_default(),
        };
        Ok(cells.into_iter().map(cell).collect())
    }

    /// Forgets everything: routers their mappings, nodes their sockets and searches.
    ///
    /// # Errors
    ///
    /// When a node does not join again.
    pub fn reset(&self) -> Result<()> {
        for (site, node) in self.nodes.iter().flatten() {
            node.edgelink(&["down"])?.run()?;
            site.first.router.reboot()?;
            node.edgelink(&["up"])?.run()?;
        }
        self.wait_named()
    }
}

/// The matrix as a table of Markdown; of several runs the median time and how many were direct.
#[must_use]
pub fn table(runs: &[Vec<Cell>]) -> String {
    let mut out = String::from("| left ↓ right → |");
    KINDS.iter().for_each(|(.., name)| {
        let _ = write!(out, " {name} |");
    });
    out += "\n|---|---|---|---|---|\n";
    for (l, (.., name)) in KINDS.iter().enumerate() {
        let _ = write!(out, "| {name} |");
        for r in 0..KINDS.len() {
            let cells: Vec<&Cell> = runs.iter().flatten().filter(|cell| cell.kinds == [l, r]).collect();
            let mut times: Vec<Duration> = cells.iter().filter_map(|cell| cell.time).collect();
            times.sort_unstable();
            let mark = cells.first().map_or("", |cell| cell.mark());
            let median = times.get(times.len() / 2).map(|time| format!("{:.2} s", time.as_secs_f64()));
            let count = if runs.len() > 1 { format!(", {} of {}", times.len(), runs.len()) } else { String::new() };
            let text = median.unwrap_or_else(|| {
                let reason = cells.last().map_or("", |cell| cell.reason.as_str());
                format!("relayed: {}", reason.split(';').next().unwrap_or(reason))
            });
            let _ = write!(out, " {mark} {text}{count} |");
        }
        out.push('\n');
    }
    out
}
