//! Two nodes on one local network, with UDP between them and without: how soon they are direct (`docs/nat-traversal.md`).

use crate::{
    Node, SOON,
    p2p::{Sites, status, time_to_direct},
};
use anyhow::{Context as _, Result, bail};
use edgelink_api::local::{NatName, Peer};
use edgelink_testbed::{
    Impairment, NatKind,
    topology::{Site, SitePlan},
    wait,
};
use std::{fmt::Write as _, time::Duration};

/// Where UDP gets through on the local network, and where it does not.
pub const SITUATIONS: [(bool, &str); 2] = [(true, "same LAN, UDP"), (false, "same LAN, UDP blocked")];

/// What became of a trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Whether UDP got through.
    pub udp: bool,
    /// From the first packet to the direct path.
    pub time: Option<Duration>,
    /// What `edgelink status` said of the peer then.
    pub peer: Peer,
}

/// Two nodes at one site.
#[derive(Debug)]
pub struct Neighbours {
    /// The site.
    pub site: Site,
    /// The nodes.
    pub nodes: Vec<Node>,
}

impl Neighbours {
    /// Behind a NAT that filters by port and does not hairpin, with a link of this delay, one way.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn start(sites: &Sites<'_>, delay: Duration) -> Result<Self> {
        let plan = SitePlan::behind(NatKind::PortRestricted).hosts(2).link(Impairment::none().delay(delay));
        let site = sites.internet.site("lan", &plan)?;
        let mut nodes: Vec<Node> = site.hosts.iter().map(|host| sites.node(host)).collect();
        for node in &nodes {
            node.host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1")?;
        }
        let mut all: Vec<&mut Node> = nodes.iter_mut().collect();
        sites.join(&mut all)?;
        Ok(Self { site, nodes })
    }

    /// Both situations once, from nodes that know nothing of each other's sockets.
    ///
    /// # Errors
    ///
    /// When something cannot be measured.
    pub fn run(&self, patience: Duration) -> Result<Vec<Trial>> {
        SITUATIONS.iter().map(|(udp, _)| self.trial(*udp, patience)).collect()
    }

    fn trial(&self, udp: bool, patience: Duration) -> Result<Trial> {
        let [from, to] = &self.nodes[..] else { bail!("{} nodes", self.nodes.len()) };
        for node in [from, to] {
            node.edgelink(&["down"])?.run()?;
            // Between the two; STUN servers are outside.
            let rule = "ip saddr @lan ip daddr @lan meta l4proto udp drop";
            let hooks = ["input", "output"]
                .map(|hook| format!(" chain {hook} {{ type filter hook {hook} priority 0; {rule}; }}\n"));
            let net = node.host.command("ip").args(["-4", "-o", "addr", "show", "eth0"]).run()?;
            let net = net.split_whitespace().find(|word| word.ends_with("/24")).context("no address")?.to_owned();
            let set = format!(" set lan {{ type ipv4_addr; flags interval; elements = {{ {net} }}; }}\n");
            let table = format!("table ip lan {{\n{set}{}}}\n", hooks.concat());
            let fresh = "table ip lan {}\ndelete table ip lan\n";
            node.host.nft(&if udp { fresh.to_owned() } else { format!("{fresh}{table}") })?;
        }
        for node in [from, to] {
            node.edgelink(&["up"])?.run()?;
            let named = || status(node).ok().filter(|status| status.nat.name == NatName::PortRestricted);
            wait::until(&format!("{}: its NAT's name", node.host.name()), SOON, named)?;
        }
        let (time, peer) = time_to_direct(from, to, patience)?;
        Ok(Trial { udp, time, peer })
    }
}

/// The trials as a table of Markdown: how many were direct, the median time and the longest, and by what.
#[must_use]
pub fn table(trials: &[Trial]) -> String {
    let mut out = String::from("| situation | direct | median | longest | by |\n|---|---|---|---|---|\n");
    for (udp, name) in SITUATIONS {
        let of: Vec<&Trial> = trials.iter().filter(|trial| trial.udp == udp).collect();
        let mut times: Vec<Duration> = of.iter().filter_map(|trial| trial.time).collect();
        times.sort_unstable();
        let text = |time: Option<&Duration>| time.map_or("–".to_owned(), |t| format!("{:.2} s", t.as_secs_f64()));
        let (median, longest) = (text(times.get(times.len() / 2)), text(times.last()));
        let last = of.last().map(|trial| &trial.peer);
        let by = last.map_or("–".to_owned(), |peer| match (peer.path.transport, &peer.reason) {
            (Some(transport), _) => format!("{:?} by {transport:?}", peer.path.kind).to_lowercase(),
            (None, reason) => format!("relayed: {}", reason.as_deref().unwrap_or("no reason")),
        });
        let _ = writeln!(out, "| {name} | {} of {} | {median} | {longest} | {by} |", times.len(), of.len());
    }
    out
}
