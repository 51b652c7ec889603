//! A controller and nodes in a lab.

use std::{env, net::SocketAddr, path::PathBuf, sync::OnceLock};

use anyhow::{Context, Result, anyhow, bail};
use edgelink_testbed::{Host, HostCommand, Impairment, Lab, Process, Tool, tools, topology::TcpOnly};
use serde_json::Value;

use crate::{Node, Pinger, SOON, raw::Door};

/// What may differ from [`Net::start`].
#[derive(Debug, Clone, Default)]
pub struct NetOptions {
    /// Plain `ws://` on port 80 (`tls: null`), so that a capture shows the frames.
    pub plain: bool,
    /// More of the controller's configuration.
    pub controller: Option<Value>,
    /// What is wrong with the nodes' links, in their order.
    pub links: Vec<Option<Impairment>>,
}

/// A controller with its relay, and the hosts of nodes that can reach nothing else. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Net {
    /// The nodes, in the order of their names.
    pub nodes: Vec<Node>,
    /// Hosts, router and firewall.
    pub topology: TcpOnly,
    options: NetOptions,
    controller: Option<Process>,
    join: String,
    metrics: OnceLock<Door>,
    /// Last, since it ends everything.
    lab: Lab,
}

impl Net {
    /// A lab with these hosts; nothing runs in it yet. `None`, having said so, where this machine does not permit it.
    ///
    /// # Errors
    ///
    /// When it should be possible and is not.
    pub fn lab(names: &[&str], options: NetOptions) -> Result<Option<Self>> {
        for program in ["edgelink", "edgelink-controller", "edgelink-ctl", "edgelink-server"] {
            binary(program)?;
        }
        let lab = match Lab::with_tools(&[Tool::Ping]) {
            Ok(lab) => lab,
            Err(error) if format!("{error:#}").contains("the kernel refuses") => {
                eprintln!("NOT TESTED: {error:#}");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if let Err(error) = tools::require_tun() {
            eprintln!("NOT TESTED: {error:#}");
            return Ok(None);
        }
        let topology = TcpOnly::with_links(&lab, if options.plain { 80 } else { 443 }, names, &options.links)?;
        let nodes = topology.nodes.iter().map(|host| Node::new(host.clone(), lab.dir())).collect();
        Ok(Some(Self {
            nodes,
            topology,
            options,
            controller: None,
            join: String::new(),
            metrics: OnceLock::new(),
            lab,
        }))
    }

    /// A controller, and every node joined with the command that it printed.
    ///
    /// # Errors
    ///
    /// When one of them does not start or join.
    pub fn start(names: &[&str]) -> Result<Option<Self>> {
        Self::start_with(names, NetOptions::default())
    }

    /// [`Net::start`], made to order.
    ///
    /// # Errors
    ///
    /// As [`Net::start`].
    pub fn start_with(names: &[&str], options: NetOptions) -> Result<Option<Self>> {
        let Some(mut net) = Self::lab(names, options)? else { return Ok(None) };
        net.start_controller()?;
        for index in 0..net.nodes.len() {
            net.join(index)?;
        }
        Ok(Some(net))
    }

    /// Starts the controller, or starts it again, and waits until it serves.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn start_controller(&mut self) -> Result<()> {
        let mut command = self.topology.relay.command(binary("edgelink-controller")?);
        let mut config = self.options.controller.clone().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        if let Some(map) = config.as_object_mut().filter(|_| self.options.plain) {
            map.insert("tls".to_owned(), Value::Null);
            map.insert("listen".to_owned(), serde_json::json!({ "http": "0.0.0.0:80" }));
        }
        if config.as_object().is_some_and(|map| !map.is_empty()) {
            let file = self.lab.dir().join("controller.json");
            std::fs::write(&file, config.to_string())?;
            command = command.arg("--config").arg(file);
        }
        let process = command.arg("--state-dir").arg(self.controller_dir()).spawn_logged()?;
        process.wait_line("ready ", SOON)?;
        // stderr is another pipe than the one of the ready line.
        let line = process.wait_line("edgelink up ", SOON)?;
        if !line.contains("AUTHKEY") {
            self.join = line.trim().to_owned();
        }
        self.controller = Some(process);
        Ok(())
    }

    /// More of the controller's configuration, for its next start.
    pub fn set_controller_config(&mut self, config: Value) {
        self.options.controller = Some(config);
    }

    /// The controller's process.
    ///
    /// # Errors
    ///
    /// When none was started.
    pub fn controller(&self) -> Result<&Process> {
        self.controller.as_ref().context("no controller was started")
    }

    /// Where the controller keeps its state.
    #[must_use]
    pub fn controller_dir(&self) -> PathBuf {
        self.lab.dir().join("controller")
    }

    /// The lab.
    #[must_use]
    pub fn lab_ref(&self) -> &Lab {
        &self.lab
    }

    /// What the controller printed for people to join with, `edgelink up …`.
    #[must_use]
    pub fn join_command(&self) -> &str {
        &self.join
    }

    /// The word behind this flag in the printed command.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn join_flag(&self, flag: &str) -> Result<&str> {
        let mut words = self.join.split_whitespace().skip_while(|word| *word != flag);
        words.nth(1).with_context(|| format!("no {flag} in {:?}", self.join))
    }

    /// The controller's URL in the printed command.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn url(&self) -> Result<&str> {
        self.join.split_whitespace().nth(2).with_context(|| format!("no URL in {:?}", self.join))
    }

    /// Starts a node's daemon and joins it with the printed command, word for word; then waits until it and the nodes
    /// that joined before have heard of each other, which takes a moment: changes are gathered for 50 ms.
    ///
    /// # Errors
    ///
    /// When it does not join.
    pub fn join(&mut self, index: usize) -> Result<()> {
        let command = self.nodes.get(index).context("no such node")?.daemon()?;
        self.join_as(index, command)
    }

    /// [`Self::join`] with a command of the caller's making as the daemon.
    ///
    /// # Errors
    ///
    /// As [`Self::join`].
    pub fn join_as(&mut self, index: usize, command: HostCommand) -> Result<()> {
        let join = self.join.clone();
        let node = self.nodes.get_mut(index).context("no such node")?;
        node.run_as(command)?;
        node.shell(&join)?.run().with_context(|| join.clone())?;
        node.process()?.wait_line("ready ", SOON)?;
        let new = self.nodes.get(index).context("no such node")?;
        for old in self.nodes.iter().filter(|old| old.host.name() != new.host.name() && old.process().is_ok()) {
            old.wait_peer(new.host.name())?;
            new.wait_peer(old.host.name())?;
        }
        Ok(())
    }

    /// The first two nodes, which ping each other, have noticed nothing of what went on beside them, and nobody has
    /// panicked.
    ///
    /// # Errors
    ///
    /// Says what they noticed.
    pub fn check_unharmed(&self, pinger: Pinger) -> Result<()> {
        pinger.wait_answers(2)?;
        pinger.stop_without_loss()?;
        self.check_alive()?;
        for node in self.nodes.iter().take(2) {
            let drops = node.status()?.drops;
            // The kernel's own neighbour discovery and the like have no route; nothing else is dropped.
            if drops.keys().any(|reason| reason != "no_route" && reason != "foreign_source") {
                bail!("{} dropped {drops:?}", node.host.name());
            }
        }
        Ok(())
    }

    /// One more node, on a host that the caller made; nothing runs on it yet.
    pub fn add_node(&mut self, host: Host) -> usize {
        self.nodes.push(Node::new(host, self.lab.dir()));
        self.nodes.len() - 1
    }

    /// `edgelink-ctl` beside the running controller, on its database.
    ///
    /// # Errors
    ///
    /// When the binary is missing.
    pub fn ctl(&self, arguments: &[&str]) -> Result<HostCommand> {
        let database = self.controller_dir().join("mesh.db");
        Ok(self.topology.relay.command(binary("edgelink-ctl")?).arg("--db").arg(database).args(arguments))
    }

    /// [`Net::ctl`] with `--json`, and its answer.
    ///
    /// # Errors
    ///
    /// When it does not succeed or does not answer in JSON.
    pub fn ctl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ctl(arguments)?.arg("--json").run()?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// Makes a pre-authorized, reusable key for a network.
    ///
    /// # Errors
    ///
    /// As `edgelink-ctl` says.
    pub fn auth_key(&self, network: &str, more: &[&str]) -> Result<String> {
        let generate = ["token", "generate", "--type", "auth-key", "--network", network];
        let answer = self.ctl_json(&[&generate[..], more].concat())?;
        Ok(answer.get("key").and_then(Value::as_str).context("no key")?.to_owned())
    }

    /// A door for a [`crate::raw`] client: a local port of the test process that leads to the controller from a host.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn door(&self, from: usize) -> Result<Door> {
        self.door_from(&self.nodes.get(from).context("no such node")?.host)
    }

    fn door_from(&self, host: &Host) -> Result<Door> {
        let pin = if self.options.plain { None } else { Some(self.join_flag("--pin")?.to_owned()) };
        Door::open(host.clone(), self.topology.server, pin)
    }

    /// The value of a metric of the controller, with its labels.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let door = match self.metrics.get() {
            Some(door) => door,
            None => {
                let door = self.door_from(&self.topology.relay)?;
                self.metrics.get_or_init(|| door)
            }
        };
        let text = door.get("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no {name} in:\n{text}"))
    }

    /// Fails if any process that should run does not, or has panicked.
    ///
    /// # Errors
    ///
    /// Names it.
    pub fn check_alive(&self) -> Result<()> {
        let nodes = self.nodes.iter().filter_map(|node| node.process().ok());
        for process in nodes.chain(self.controller.as_ref()) {
            if process.has_ended() {
                bail!("{} has ended:\n{}", process.name(), process.stderr());
            }
            if process.stderr().contains("panicked") {
                bail!("{} panicked:\n{}", process.name(), process.stderr());
            }
        }
        Ok(())
    }

    /// The overlay address and port of a node.
    ///
    /// # Errors
    ///
    /// When the node has none.
    pub fn at(&self, node: usize, port: u16) -> Result<SocketAddr> {
        let node = self.nodes.get(node).context("no such node")?;
        Ok(SocketAddr::new(node.overlay()?, port))
    }
}

/// A binary under test.
///
/// # Errors
///
/// When it is not there; says how to make it.
pub fn binary(program: &str) -> Result<PathBuf> {
    let dir = match env::var_os("EDGELINK_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let own = env::current_exe()?;
            let dir = own.parent().and_then(|deps| deps.parent());
            dir.ok_or_else(|| anyhow!("{} lies nowhere", own.display()))?.to_owned()
        }
    };
    let path = dir.join(program);
    if !path.is_file() {
        bail!(
            "{} is missing; run: cargo build -p edgelink -p edgelink-controller -p edgelink-ctl -p edgelink-server (or set EDGELINK_BIN_DIR)",
            path.display()
        );
    }
    Ok(path)
}

/// `len` bytes that look random and are the same every time, for transfers.
#[must_use]
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    // SplitMix64: fast, and every byte differs from its neighbours.
    let mut state = seed;
    let word = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    });
    word.flatten().take(len).collect()
}
