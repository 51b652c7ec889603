//! Nodes and stand-alone relays, each pair of them joined by a link of its own whose delay the test chooses and changes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use edgelink_testbed::{Capture, Captured, Host, Impairment, Link, Process, port, wait};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{Net, NetOptions, SOON, binary, raw::Door};

/// One of a [`Web`]'s machines: nodes and relays count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// A node.
    Node(usize),
    /// A relay.
    Relay(usize),
}

/// A stand-alone relay on a host of its own.
#[derive(Debug)]
pub struct WebRelay {
    /// Where it runs.
    pub host: Host,
    /// Its address, and that of its URL.
    pub address: Ipv4Addr,
    /// As the controller calls it.
    pub id: u64,
    config: PathBuf,
    process: Option<Process>,
}

/// A controller without a relay of its own, nodes, and relays `r1`, `r2` …
///
/// Every node has a link to every relay, and every relay to every other one. Nobody reaches the controller but by the
/// router of [`Net`], and no node another one.
#[derive(Debug)]
pub struct Web {
    /// The relays.
    pub relays: Vec<WebRelay>,
    links: BTreeMap<(At, At), (Link, Mutex<Duration>)>,
    capture: Option<Capture>,
    /// Controller and nodes. Last, since it ends everything.
    pub net: Net,
}

impl Web {
    /// A lab with everything running and every node joined; `round_trip` says how far any two are from each other. `None`,
    /// having said so, where this machine does not permit it.
    ///
    /// # Errors
    ///
    /// When something does not start.
    pub fn start(names: &[&str], relays: usize, round_trip: impl Fn(At, At) -> Duration) -> Result<Option<Self>> {
        Self::build(names, relays, round_trip, false)
    }

    /// [`Web::start`], everything that reaches and leaves the controller being captured.
    ///
    /// # Errors
    ///
    /// As [`Web::start`].
    pub fn start_watched(
        names: &[&str],
        relays: usize,
        round_trip: impl Fn(At, At) -> Duration,
    ) -> Result<Option<Self>> {
        Self::build(names, relays, round_trip, true)
    }

    /// What was captured at the controller since the start; it ends with that.
    ///
    /// # Errors
    ///
    /// When nothing was to be captured, or as [`Capture::stop`].
    pub fn captured(&mut self) -> Result<Captured> {
        self.capture.take().context("nothing was captured")?.stop()
    }

    fn build(
        names: &[&str],
        relays: usize,
        round_trip: impl Fn(At, At) -> Duration,
        watched: bool,
    ) -> Result<Option<Self>> {
        let controller = json!({ "builtin_relay": { "enabled": false } });
        let options = NetOptions { plain: true, controller: Some(controller), ..NetOptions::default() };
        let Some(mut net) = Net::lab(names, options)? else { return Ok(None) };
        let hosts = (0..relays).map(|r| relay_host(&net, r)).collect::<Result<Vec<_>>>()?;
        let mut links = BTreeMap::new();
        for (r, relay) in hosts.iter().enumerate() {
            for (n, node) in net.nodes.iter().enumerate() {
                let ends = (At::Node(n), At::Relay(r));
                let (inner, outer) =
                    (Ipv4Addr::new(10, 50 + n as u8, r as u8, 2), Ipv4Addr::new(10, 50 + n as u8, r as u8, 1));
                let link = net.lab_ref().impaired_link(
                    port(&node.host, &format!("r{}", r + 1), &format!("{inner}/24")),
                    port(&relay.host, &format!("n{}", n + 1), &format!("{outer}/24")),
                    &one_way(round_trip(ends.0, ends.1)),
                )?;
                node.host.route(&format!("{}/32", relay.address), outer.into())?;
                links.insert(ends, (link, Mutex::new(round_trip(ends.0, ends.1))));
            }
            for (s, other) in hosts.iter().enumerate().skip(r + 1) {
                let net_number = (r * 10 + s) as u8;
                let [ours, theirs] = [1, 2].map(|last| Ipv4Addr::new(10, 49, net_number, last));
                let far = round_trip(At::Relay(r), At::Relay(s));
                let link = net.lab_ref().impaired_link(
                    port(&relay.host, &format!("r{}", s + 1), &format!("{ours}/24")),
                    port(&other.host, &format!("r{}", r + 1), &format!("{theirs}/24")),
                    &one_way(far),
                )?;
                relay.host.route(&format!("{}/32", other.address), theirs.into())?;
                other.host.route(&format!("{}/32", relay.address), ours.into())?;
                links.insert((At::Relay(r), At::Relay(s)), (link, Mutex::new(far)));
            }
        }
        let capture = watched.then(|| net.topology.relay.capture("eth0")).transpose()?;
        net.start_controller()?;
        let mut web = Self { relays: hosts, links, capture, net };
        for r in 0..relays {
            web.add_relay(r)?;
        }
        for r in 0..relays {
            web.wait_metric(r, "edgelink_relay_mesh_links", relays as u64 - 1)?;
        }
        for n in 0..names.len() {
            web.net.join(n)?;
        }
        web.wait_connected()?;
        Ok(Some(web))
    }

    /// As an administrator does it: the printed configuration is pasted as it is, but for the state directory.
    fn add_relay(&mut self, r: usize) -> Result<()> {
        let relay = self.relays.get_mut(r).context("no such relay")?;
        let (name, url) = (relay.host.name().to_owned(), format!("ws://{}/ws/data", relay.address));
        let add = ["server", "add", "--name", &name, "--url", &url, "--controller", self.net.url()?];
        let added = self.net.ctl_json(&add)?;
        let mut config = added["config"].clone();
        config["state_dir"] = json!(self.net.lab_ref().dir().join(&name));
        std::fs::write(&relay.config, config.to_string())?;
        relay.id = added["id"].as_u64().context("no id")?;
        self.start_relay(r)
    }

    /// Starts a relay's process, or starts it again.
    ///
    /// # Errors
    ///
    /// When it does not serve.
    pub fn start_relay(&mut self, r: usize) -> Result<()> {
        let relay = self.relays.get_mut(r).context("no such relay")?;
        let command = relay.host.command(binary("edgelink-server")?).arg("--config").arg(&relay.config);
        let process = command.spawn_logged()?;
        process.wait_line("ready server ", SOON)?;
        relay.process = Some(process);
        Ok(())
    }

    /// Ends a relay's process with this signal and waits until it has ended.
    ///
    /// # Errors
    ///
    /// When it does not end, or has panicked.
    pub fn end_relay(&mut self, r: usize, signal: Signal) -> Result<()> {
        let process = self.relays.get_mut(r).and_then(|relay| relay.process.take()).context("it does not run")?;
        process.signal(signal)?;
        process.wait(SOON)?;
        if process.stderr().contains("panicked") {
            bail!("{}", process.stderr());
        }
        Ok(())
    }

    /// Changes how far two machines are from each other.
    ///
    /// # Errors
    ///
    /// When they have no link.
    pub fn set_round_trip(&self, one: At, other: At, round_trip: Duration) -> Result<()> {
        let (link, present) = self.link(one, other)?;
        *present.lock().map_err(|_| anyhow!("somebody has panicked"))? = round_trip;
        link.set_both(&one_way(round_trip))
    }

    /// How far two machines are from each other; zero for those without a link.
    #[must_use]
    pub fn round_trip(&self, one: At, other: At) -> Duration {
        let link = self.links.get(&(one, other)).or_else(|| self.links.get(&(other, one)));
        link.and_then(|(_, present)| present.lock().ok().map(|far| *far)).unwrap_or_default()
    }

    /// Undoes every black hole.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn mend(&self) -> Result<()> {
        self.links.keys().try_for_each(|(one, other)| self.set_round_trip(*one, *other, self.round_trip(*one, *other)))
    }

    /// Lets nothing pass between two machines any more, without a reset or a lost carrier.
    ///
    /// # Errors
    ///
    /// When they have no link.
    pub fn black_hole(&self, one: At, other: At) -> Result<()> {
        self.link(one, other)?.0.set_both(&Impairment::none().loss(1.0))
    }

    /// The same with everybody whom a relay reaches, the controller excepted.
    ///
    /// # Errors
    ///
    /// As [`Web::black_hole`].
    pub fn black_hole_relay(&self, r: usize) -> Result<()> {
        let relay = At::Relay(r);
        let theirs = self.links.keys().filter(|(one, other)| *one == relay || *other == relay);
        theirs.clone().try_for_each(|(one, other)| self.black_hole(*one, *other))
    }

    fn link(&self, one: At, other: At) -> Result<&(Link, Mutex<Duration>)> {
        self.links.get(&(one, other)).with_context(|| format!("no link between {one:?} and {other:?}"))
    }

    /// Waits until every node is connected to every relay that runs, and knows how far it is.
    ///
    /// # Errors
    ///
    /// When the time is over.
    pub fn wait_connected(&self) -> Result<()> {
        let up = self.relays.iter().filter(|relay| relay.process.is_some()).map(|relay| relay.host.name());
        let up: Vec<&str> = up.collect();
        for node in self.net.nodes.iter().filter(|node| node.process().is_ok()) {
            node.wait_status(&format!("connections to {up:?}"), 2 * SOON, |status| {
                let ready = |name: &&str| {
                    let of = |relay: &&edgelink_api::local::Relay| relay.name == **name;
                    status.relays.iter().find(of).is_some_and(|relay| relay.connected && relay.rtt_ms.is_some())
                };
                up.iter().all(ready)
            })?;
        }
        Ok(())
    }

    /// A number of a relay's metrics.
    ///
    /// # Errors
    ///
    /// When the relay does not tell it.
    pub fn metric(&self, r: usize, name: &str) -> Result<u64> {
        let relay = self.relays.get(r).context("no such relay")?;
        let door = Door::open(relay.host.clone(), SocketAddr::new(relay.address.into(), 80), None)?;
        let text = door.get("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).with_context(|| format!("no {name} in:\n{text}"))
    }

    /// Waits until a metric has this value.
    ///
    /// # Errors
    ///
    /// When the time is over.
    pub fn wait_metric(&self, r: usize, name: &str, wanted: u64) -> Result<()> {
        wait::until(&format!("{name} = {wanted} at relay {}", r + 1), SOON, || {
            (self.metric(r, name).ok()? == wanted).then_some(())
        })
    }

    /// What a relay has written.
    #[must_use]
    pub fn relay_log(&self, r: usize) -> String {
        self.relays.get(r).and_then(|relay| relay.process.as_ref()).map(Process::stderr).unwrap_or_default()
    }

    /// Fails if anybody has panicked or ended by itself.
    ///
    /// # Errors
    ///
    /// Names who.
    pub fn check_alive(&self) -> Result<()> {
        self.net.check_alive()?;
        for process in self.relays.iter().filter_map(|relay| relay.process.as_ref()) {
            if process.has_ended() || process.stderr().contains("panicked") {
                bail!("{}:\n{}", process.name(), process.stderr());
            }
        }
        Ok(())
    }
}

fn relay_host(net: &Net, r: usize) -> Result<WebRelay> {
    let (lab, n) = (net.lab_ref(), r as u8 + 1);
    let host = lab.host(&format!("r{n}"))?;
    let (inside, gateway) = (format!("10.{}.0.2/24", 100 + n), Ipv4Addr::new(10, 100 + n, 0, 1));
    lab.link(port(&host, "eth0", &inside), port(&net.topology.router, &format!("relay{n}"), &format!("{gateway}/24")))?;
    host.default_route(IpAddr::V4(gateway))?;
    let address = Ipv4Addr::new(198, 18, 0, n);
    host.address("lo", &format!("{address}/32"))?;
    Ok(WebRelay { config: lab.dir().join(format!("r{n}.json")), host, address, id: 0, process: None })
}

fn one_way(round_trip: Duration) -> Impairment {
    Impairment::none().delay(round_trip / 2)
}
