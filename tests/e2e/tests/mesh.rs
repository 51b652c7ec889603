//! Two stand-alone relays, and nodes that reach one of them each: their packets cross the mesh.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use edgelink_e2e::{Net, NetOptions, Pinger, SOON, binary, raw::Door};
use edgelink_testbed::{Host, Process, port, topology::TcpOnly, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A stand-alone relay on a host of its own.
struct Relay {
    host: Host,
    address: Ipv4Addr,
    id: u64,
    process: Option<Process>,
    config: std::path::PathBuf,
}

impl Relay {
    fn start(&mut self) {
        let command = self.host.command(binary("edgelink-server").unwrap()).arg("--config").arg(&self.config);
        let process = command.spawn_logged().unwrap();
        process.wait_line("ready server ", SOON).unwrap();
        self.process = Some(process);
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    fn metric(&self, name: &str) -> u64 {
        let door = Door::open(self.host.clone(), (self.address, 80).into(), None).unwrap();
        let text = door.get("/metrics").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().unwrap()
    }

    fn wait_metric(&self, name: &str, wanted: u64) {
        let reached = wait::until(name, SOON, || (self.metric(name) == wanted).then_some(()));
        assert!(reached.is_ok(), "{name} is {}, not {wanted}:\n{}", self.metric(name), self.process().stderr());
    }
}

/// Node a reaches relay 1 only, node b relay 2 only; both reach the controller, which has no relay of its own.
struct Meshed {
    net: Net,
    relays: [Relay; 2],
}

/// Which of the two relays the network lets dial the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dials {
    /// The one that the controller's word suffices for: the lower id dials.
    First,
    /// The other, which must be configured to (`mesh.peers`).
    Second,
}

impl Meshed {
    fn start() -> Option<Self> {
        let mut this = Self::new(Dials::First)?;
        for n in [1, 2] {
            this.add_relay(n, &[]);
        }
        this.join();
        Some(this)
    }

    fn new(dials: Dials) -> Option<Self> {
        let controller = json!({ "builtin_relay": { "enabled": false } });
        let options = NetOptions { plain: true, controller: Some(controller), ..NetOptions::default() };
        let mut net = Net::lab(&["a", "b"], options).unwrap()?;
        let relays = [1_u8, 2].map(|n| {
            let (lab, router) = (net.lab_ref(), &net.topology.router);
            let host = lab.host(&format!("r{n}")).unwrap();
            let address = Ipv4Addr::new(10, 100 + n, 0, 2);
            let gateway = Ipv4Addr::new(10, 100 + n, 0, 1);
            let (inside, outside) = (format!("{address}/24"), format!("{gateway}/24"));
            lab.link(port(&host, "eth0", &inside), port(router, &format!("relay{n}"), &outside)).unwrap();
            host.default_route(IpAddr::V4(gateway)).unwrap();
            Relay { host, address, id: 0, process: None, config: lab.dir().join(format!("r{n}.json")) }
        });
        let [r1, r2] = [relays[0].address, relays[1].address];
        let (a, b, c) = (TcpOnly::node_address(1), TcpOnly::node_address(2), TcpOnly::RELAY);
        let (from, to) = if dials == Dials::First { (r1, r2) } else { (r2, r1) };
        net.topology
            .router
            .nft(&format!(
                "table inet lab_filter\ndelete table inet lab_filter\ntable inet lab_filter {{\n  chain forward {{\n    \
                 type filter hook forward priority 0; policy drop;\n    ct state established,related accept\n    \
                 ip daddr {c} tcp dport 80 accept\n    ip saddr {a} ip daddr {r1} tcp dport 80 accept\n    \
                 ip saddr {b} ip daddr {r2} tcp dport 80 accept\n    ip saddr {from} ip daddr {to} tcp dport 80 accept\n  }}\n}}\n"
            ))
            .unwrap();
        net.start_controller().unwrap();
        Some(Self { net, relays })
    }

    fn join(&mut self) {
        self.relays[0].wait_metric("edgelink_relay_mesh_links", 1);
        self.net.join(0).unwrap();
        self.net.join(1).unwrap();
    }

    /// As an administrator does it: the printed configuration is pasted as it is, but for the state directory and for
    /// relays that it shall dial.
    fn add_relay(&mut self, n: usize, peers: &[String]) {
        let relay = &mut self.relays[n - 1];
        let (name, url) = (format!("r{n}"), format!("ws://{}/ws/data", relay.address));
        let controller = self.net.url().unwrap();
        let add = ["server", "add", "--name", &name, "--url", &url, "--controller", controller];
        let added = self.net.ctl_json(&add).unwrap();
        let mut config = added["config"].clone();
        config["state_dir"] = json!(self.net.lab_ref().dir().join(&name));
        if !peers.is_empty() {
            config["mesh"]["peers"] = json!(peers);
        }
        std::fs::write(&relay.config, config.to_string()).unwrap();
        relay.id = added["id"].as_u64().unwrap();
        relay.start();
    }

    fn ping(&self) -> Pinger {
        let target = self.net.nodes[1].overlay().unwrap();
        self.net.nodes[0].wait_ping(target, SOON).unwrap();
        Pinger::start(&self.net.nodes[0], target).unwrap()
    }
}

#[test]
fn nodes_at_different_relays_reach_each_other_over_the_mesh() {
    let Some(mut meshed) = Meshed::start() else { return };
    let pinger = meshed.ping();
    pinger.wait_answers(20).unwrap();
    let [r1, r2] = &meshed.relays;
    for (relay, name) in [(r1, "r1"), (r2, "r2")] {
        let frames = ["edgelink_relay_mesh_out_frames_total", "edgelink_relay_mesh_in_frames_total"];
        assert!(frames.iter().all(|frames| relay.metric(frames) >= 20), "{name}");
    }
    let servers = meshed.net.ctl(&["server", "list"]).unwrap().run().unwrap();
    assert_eq!(servers.matches("online").count(), 2, "{servers}");
    let status = meshed.net.nodes[0].status().unwrap();
    assert_eq!(
        status.relays.iter().filter(|relay| relay.connected).map(|r| r.name.as_str()).collect::<Vec<_>>(),
        ["r1"]
    );
    pinger.stop_without_loss().unwrap();

    // Relay 2 is killed and comes back: the mesh and node b's connection heal by themselves.
    let pinger = meshed.ping();
    meshed.relays[1].process().kill().unwrap();
    pinger.wait_silence(SOON).unwrap();
    meshed.relays[1].start();
    let back = Instant::now();
    pinger.wait_answer(SOON).unwrap();
    eprintln!("relay 2 killed: pings answered {:.0?} after it was back", back.elapsed());
    pinger.wait_answers(5).unwrap();

    // The controller is killed: nobody notices.
    meshed.net.controller().unwrap().kill().unwrap();
    let before = Instant::now();
    let quiet = meshed.ping();
    quiet.wait_answers(30).unwrap();
    quiet.stop_without_loss().unwrap();
    assert!(before.elapsed() > Duration::from_secs(1), "long enough to notice");

    // Without it, even a relay's restart heals: what it must know is on its disk.
    meshed.relays[1].process().kill().unwrap();
    pinger.wait_silence(SOON).unwrap();
    meshed.relays[1].start();
    pinger.wait_answer(SOON).unwrap();
    pinger.stop().unwrap();
    let state = meshed.net.lab_ref().dir().join("r2").join("relay.state");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(state).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    // The end is clean.
    for relay in &meshed.relays {
        let process = relay.process();
        process.signal(Signal::SIGTERM).unwrap();
        assert!(process.wait(SOON).unwrap().success());
        assert!(!process.stderr().contains("panicked"), "{}", process.stderr());
    }
}

#[test]
fn a_relay_that_cannot_be_dialled_dials_its_configured_peers() {
    let Some(mut meshed) = Meshed::new(Dials::Second) else { return };
    meshed.add_relay(1, &[]);
    // Relay 1 has the lower id and is told where relay 2 is, in vain: nothing gets there.
    let peer = format!("ws://{}/ws/mesh", meshed.relays[0].address);
    meshed.add_relay(2, &[peer]);
    meshed.join();
    let pinger = meshed.ping();
    pinger.wait_answers(20).unwrap();
    for relay in &meshed.relays {
        assert!(relay.metric("edgelink_relay_mesh_out_frames_total") >= 20);
        assert_eq!(relay.metric("edgelink_relay_mesh_links"), 1, "one link per pair");
    }
    // The one that waits is killed and comes back: it is dialled again, though the controller is gone.
    meshed.net.controller().unwrap().kill().unwrap();
    meshed.relays[0].process().kill().unwrap();
    pinger.wait_silence(SOON).unwrap();
    meshed.relays[0].start();
    pinger.wait_answer(SOON).unwrap();
    pinger.stop().unwrap();
}

#[test]
fn a_disabled_relay_is_left_and_taken_up_again() {
    let Some(meshed) = Meshed::start() else { return };
    let pinger = meshed.ping();
    pinger.wait_answers(3).unwrap();
    meshed.net.ctl(&["server", "disable", "r2"]).unwrap().run().unwrap();
    pinger.wait_silence(SOON).unwrap();
    meshed.relays[0].wait_metric("edgelink_relay_mesh_links", 0);
    meshed.net.ctl(&["server", "enable", "r2"]).unwrap().run().unwrap();
    pinger.wait_answer(SOON).unwrap();
    pinger.stop().unwrap();
    // Removed: its token is worth nothing any more.
    meshed.net.ctl(&["server", "remove", "r2"]).unwrap().run().unwrap();
    meshed.relays[1].process().wait_line("the controller refuses this server", SOON).unwrap();
    let servers = meshed.net.ctl_json(&["server", "list"]).unwrap();
    let ids: Vec<&Value> = servers.as_array().unwrap().iter().map(|server| &server["id"]).collect();
    assert!(!ids.contains(&&json!(meshed.relays[1].id)));
}

#[test]
fn the_built_in_relay_is_one_of_the_mesh_over_tls() {
    let Some(mut net) = Net::lab(&[], NetOptions::default()).unwrap() else { return };
    net.start_controller().unwrap();
    // Beside the controller, on another port: both make their own certificates, and trust each other's by name.
    let address = TcpOnly::RELAY;
    let url = format!("wss://{address}:8443");
    let controller = net.url().unwrap().to_owned();
    let added = net.ctl_json(&["server", "add", "--name", "r1", "--url", &url, "--controller", &controller]).unwrap();
    let mut config = added["config"].clone();
    assert!(config["controller"]["pin"].as_str().unwrap().starts_with("sha256:"), "{config}");
    let dir = net.lab_ref().dir().join("r1");
    config["state_dir"] = json!(dir);
    config["relay"].as_object_mut().unwrap().remove("tls");
    let file = net.lab_ref().dir().join("r1.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let command = net.topology.relay.command(binary("edgelink-server").unwrap()).arg("--config").arg(&file);
    let relay = command.spawn_logged().unwrap();
    relay.wait_line("ready server ", SOON).unwrap();
    relay.wait_line("connected to the controller", SOON).unwrap();

    // Its certificate is not trusted yet: no link.
    assert_eq!(net.metric("edgelink_relay_mesh_links").unwrap(), 0);
    net.controller().unwrap().kill().unwrap();
    net.set_controller_config(json!({ "builtin_relay": { "ca_file": dir.join("ca.pem") } }));
    net.start_controller().unwrap();
    relay.wait_line("linked with another relay", SOON).unwrap();
    // The accepting side knows a moment before the dialling one.
    for (name, wanted) in [("edgelink_relay_mesh_links", 1), ("edgelink_servers_online", 2)] {
        wait::until(name, SOON, || (net.metric(name).unwrap() == wanted).then_some(())).unwrap();
    }
    assert!(relay.terminate(SOON).unwrap().success());
}

#[test]
fn bad_configurations_are_refused_with_the_reason() {
    let Some(net) = Net::lab(&[], NetOptions::default()).unwrap() else { return };
    let run = |config: Value| {
        let file = net.lab_ref().dir().join("server.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let command = net.topology.relay.command(binary("edgelink-server").unwrap());
        let output = command.arg("--config").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        output.stderr
    };
    let dir = net.lab_ref().dir().join("state");
    let with = |token: &str| {
        json!({
            "controller": { "url": "wss://192.0.2.10", "token": token },
            "relay": { "tls": null, "listen": "127.0.0.1:0" }, "state_dir": dir,
        })
    };
    for (config, why) in [
        (json!({}), "controller.url"),
        (with("CHANGE_ME"), "placeholder"),
        (with("not a token"), "no server_token"),
        (json!({ "relay": { "lisen": "0.0.0.0:443" } }), "lisen"),
    ] {
        let said = run(config);
        assert!(said.contains(why), "{why}: {said}");
    }
}
