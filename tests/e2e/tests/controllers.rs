//! Two controllers at two addresses on one MariaDB, nodes and a relay that each were told of one of them: the active controller
//! is killed, and everybody finds the other.
#![expect(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use edgelink_e2e::{Net, NetOptions, Node, Pinger, SOON, binary};
use edgelink_test_mariadb::Database;
use edgelink_testbed::{Host, Process, port, topology::TcpOnly, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// DESIGN §4: a change reaches nodes, whoever made it.
const ARRIVES_WITHIN: Duration = Duration::from_secs(2);
/// DESIGN §4: a standby takes over within 10 s; nodes and relays dial again within a second or two of that.
const MOVED_WITHIN: Duration = Duration::from_secs(13);

const PASSWORD: &str = "correct horse";

/// Controller 1 is `net`'s; the second one and the relay have hosts of their own.
struct Pair {
    second: Controller,
    relay: Relay,
    net: Net,
    /// Last, since it goes when nobody uses it any more.
    _database: Database,
}

struct Controller {
    host: Host,
    url: String,
    config: PathBuf,
    state: PathBuf,
    process: Option<Process>,
}

struct Relay {
    host: Host,
    config: PathBuf,
    process: Option<Process>,
}

/// A host behind the lab's router.
fn host(net: &Net, name: &str, n: u8) -> (Host, Ipv4Addr) {
    let (lab, router) = (net.lab_ref(), &net.topology.router);
    let host = lab.host(name).unwrap();
    let (address, gateway) = (Ipv4Addr::new(10, 100 + n, 0, 2), Ipv4Addr::new(10, 100 + n, 0, 1));
    let (inside, outside) = (format!("{address}/24"), format!("{gateway}/24"));
    lab.link(port(&host, "eth0", &inside), port(router, name, &outside)).unwrap();
    host.default_route(IpAddr::V4(gateway)).unwrap();
    (host, address)
}

impl Controller {
    fn start(&mut self) {
        let command = self.host.command(binary("edgelink-controller").unwrap()).arg("--config").arg(&self.config);
        let process = command.arg("--state-dir").arg(&self.state).spawn_logged().unwrap();
        process.wait_line("ready ", SOON).unwrap();
        self.process = Some(process);
    }
}

impl Relay {
    fn start(&mut self) {
        let command = self.host.command(binary("edgelink-server").unwrap()).arg("--config").arg(&self.config);
        let process = command.spawn_logged().unwrap();
        process.wait_line("ready server ", SOON).unwrap();
        self.process = Some(process);
    }
}

impl Pair {
    fn start() -> Option<Self> {
        let database = Database::new();
        let config = json!({ "database": { "type": "mariadb", "url": database.socket_url() } });
        let options = NetOptions { controller: Some(config.clone()), ..NetOptions::default() };
        let mut net = Net::lab(&["a", "b"], options).unwrap()?;
        let ((c2, c2_at), (r, r_at)) = (host(&net, "c2", 1), host(&net, "r", 2));
        let c1_at = TcpOnly::RELAY;
        net.topology
            .router
            .nft(&format!(
                "table inet lab_filter\ndelete table inet lab_filter\ntable inet lab_filter {{\n  chain forward {{\n    \
                 type filter hook forward priority 0; policy drop;\n    ct state established,related accept\n    \
                 ip daddr {{ {c1_at}, {c2_at}, {r_at} }} tcp dport 443 accept\n  }}\n}}\n"
            ))
            .unwrap();
        net.start_controller().unwrap();
        let dir = net.lab_ref().dir().to_owned();
        let (file, state) = (dir.join("c2.json"), dir.join("c2"));
        std::fs::write(&file, config.to_string()).unwrap();
        let url = format!("wss://{c2_at}");
        let mut second = Controller { host: c2, url, config: file, state, process: None };
        second.start();
        let relay = Relay { host: r, config: dir.join("r.json"), process: None };
        let mut this = Self { second, relay, net, _database: database };

        // The relay hears of the first controller only.
        let url = format!("wss://{r_at}/ws/data");
        let add = ["server", "add", "--name", "r", "--url", &url, "--controller", this.net.url().unwrap()];
        let added = this.ctl(&add);
        let mut config = added["config"].clone();
        config["state_dir"] = json!(dir.join("relay"));
        config["relay"] = json!({ "listen": "0.0.0.0:443" });
        config["relay"]["public_url"] = json!(url);
        std::fs::write(&this.relay.config, config.to_string()).unwrap();
        this.relay.start();
        for node in &mut this.net.nodes {
            node.configure(&json!({ "ca_file": dir.join("relay").join("ca.pem") })).unwrap();
        }

        // Node a is told of the first controller, node b of the one that stands by.
        let first = this.net.url().unwrap().to_owned();
        for (n, url) in [first, this.second.url.clone()].into_iter().enumerate() {
            let (key, pin) = (this.net.join_flag("--key").unwrap(), this.net.join_flag("--pin").unwrap());
            let (key, pin) = (key.to_owned(), pin.to_owned());
            let node = &mut this.net.nodes[n];
            node.run().unwrap();
            let up = node.up(&[&url, "--key", &key, "--pin", &pin]).unwrap();
            assert!(up.status.success(), "{url}: {}", up.stderr);
            node.process().unwrap().wait_line("ready ", SOON).unwrap();
        }
        this.net.nodes[0].wait_peer("b").unwrap();
        this.net.nodes[1].wait_peer("a").unwrap();
        Some(this)
    }

    /// `edgelink-controller ctl --config …` beside the second controller.
    fn ctl(&self, arguments: &[&str]) -> Value {
        let command = self.second.host.command(binary("edgelink-controller").unwrap());
        let command = command.args(["ctl", "--json", "--config"]).arg(&self.second.config).args(arguments);
        serde_json::from_str(&command.run().unwrap()).unwrap()
    }

    /// `edgelink-ctl --url …`, the REST API of the second controller.
    fn rest(&self, arguments: &[&str]) -> Value {
        let url = self.second.url.replace("wss://", "https://");
        let command = self.second.host.command(binary("edgelink-ctl").unwrap());
        let command = command.env("HOME", self.net.lab_ref().dir()).env("EDGELINK_PASSWORD", PASSWORD);
        let command = command.args(["--json", "--url", &url, "--pin", self.net.join_flag("--pin").unwrap()]);
        serde_json::from_str(&command.args(arguments).run().unwrap()).unwrap()
    }

    /// `root`, with the password that [`Self::rest`] logs in with.
    fn make_administrator(&self) {
        let command = self.second.host.command(binary("edgelink-controller").unwrap()).args(["ctl", "--config"]);
        let command = command.arg(&self.second.config).env("EDGELINK_PASSWORD", PASSWORD);
        command.args(["admin", "create", "--username", "root"]).run().unwrap();
    }

    /// Node b is renamed by `rename`; until node a knows.
    fn renamed(&self, name: &str, rename: impl FnOnce()) {
        let began = Instant::now();
        rename();
        let known = |s: &edgelink_api::local::Status| s.peers.iter().any(|peer| peer.name == name);
        self.net.nodes[0].wait_status(name, SOON, known).unwrap();
        let took = began.elapsed();
        eprintln!("the name {name} arrived {took:.0?} after it was given");
        assert!(took < ARRIVES_WITHIN, "{name}: {took:?}");
    }

    /// Until the relay and the nodes have been told where the second controller is.
    fn wait_until_known(&self) {
        let dir = self.net.lab_ref().dir();
        let url = self.second.url.as_bytes();
        let holds = |bytes: &[u8]| bytes.windows(url.len()).any(|window| window == url);
        let remembered = |file: PathBuf| {
            let state: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
            BASE64.decode(state["config"].as_str()?).ok()
        };
        let known = || {
            let relay = std::fs::read(dir.join("relay").join("relay.state")).ok();
            let relay = relay.and_then(|text| BASE64.decode(text).ok()).is_some_and(|state| holds(&state));
            let files = self.net.nodes.iter().map(|node| std::fs::read_dir(node.state_dir()).unwrap());
            let mut nodes = files.map(|mut files| {
                files.any(|file| remembered(file.unwrap().path()).is_some_and(|config| holds(&config)))
            });
            (relay && nodes.all(|one| one)).then_some(())
        };
        wait::until("the second controller is known", SOON, known).unwrap();
    }

    fn wait_relay(&self, server: &str) {
        let online = || {
            let servers = self.ctl(&["server", "list"]);
            let found = servers.as_array().unwrap().iter().find(|s| s["name"] == server)?.clone();
            (found["online"] == true).then_some(())
        };
        wait::until(&format!("{server} online"), SOON, online).unwrap();
    }
}

fn connected_to(node: &Node, controller: &str, within: Duration) {
    let there = |s: &edgelink_api::local::Status| {
        s.controller.connected && s.controller.url.as_ref().is_some_and(|url| url.starts_with(controller))
    };
    node.wait_status(controller, within, there).unwrap();
}

#[test]
fn nodes_and_relays_find_whichever_controller_is_active() {
    let Some(mut pair) = Pair::start() else { return };
    let first = pair.net.url().unwrap().to_owned();
    let second = pair.second.url.clone();
    for node in &pair.net.nodes {
        connected_to(node, &first, SOON);
    }
    pair.wait_relay("r");
    pair.wait_until_known();

    // Whoever changes something, wherever: the nodes of the active controller know it.
    pair.renamed("b1", || drop(pair.ctl(&["node", "rename", "b", "b1"])));
    pair.make_administrator();
    pair.rest(&["login", "--username", "root"]);
    pair.renamed("b2", || drop(pair.rest(&["node", "rename", "b1", "b2"])));

    // The relay that stays carries the traffic on; the controllers' own ones come and go.
    let target = pair.net.nodes[1].overlay().unwrap();
    let pinger = Pinger::start(&pair.net.nodes[0], target).unwrap();
    pinger.wait_answers(2).unwrap();
    pair.net.controller().unwrap().kill().unwrap();
    let killed = Instant::now();
    for node in &pair.net.nodes {
        connected_to(node, &second, MOVED_WITHIN);
    }
    let took = killed.elapsed();
    eprintln!("both nodes at the second controller {took:.1?} after the first was killed");
    assert!(took < MOVED_WITHIN, "{took:?}");
    pair.wait_relay("r");
    let left = MOVED_WITHIN.saturating_sub(killed.elapsed()) + SOON;
    pair.net.nodes[0]
        .wait_status("the relays", left, |s| s.relays.iter().filter(|relay| relay.connected).count() == 2)
        .unwrap();
    pinger.wait_answer(SOON).unwrap();
    pair.renamed("b3", || drop(pair.ctl(&["node", "rename", "b2", "b3"])));

    // Who starts while the controller that it was told of is away remembers the other.
    pair.net.nodes[0].end(Signal::SIGTERM).unwrap();
    pair.net.nodes[0].run().unwrap();
    connected_to(&pair.net.nodes[0], &second, SOON);
    pair.relay.process.take().unwrap().kill().unwrap();
    pair.relay.start();
    let known = |s: &edgelink_api::local::Status| s.relays.iter().any(|r| r.name == "r" && r.connected);
    pair.net.nodes[0].wait_status("the relay", SOON, known).unwrap();
    pair.wait_relay("r");

    // And back.
    let dir = pair.net.lab_ref().dir();
    let (config, state) = (dir.join("controller.json"), pair.net.controller_dir());
    let host = pair.net.topology.relay.clone();
    let mut again = Controller { host, url: first.clone(), config, state, process: None };
    again.start();
    pair.second.process.take().unwrap().kill().unwrap();
    for node in &pair.net.nodes {
        connected_to(node, &first, MOVED_WITHIN);
    }
    let nodes = pair.net.nodes.iter().map(|node| node.process().unwrap());
    for process in nodes.chain([pair.relay.process.as_ref().unwrap(), again.process.as_ref().unwrap()]) {
        assert!(!process.has_ended() && !process.stderr().contains("panicked"), "{}", process.stderr());
    }
}
