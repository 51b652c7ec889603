//! Behind other people's boxes: TLS ended by nginx and HAProxy in front of controller and relay, and a node that gets out
//! by an HTTP proxy only (DESIGN §9).
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use edgelink_auth::MachineKey;
use edgelink_e2e::raw::{Answer, Door, hello};
use edgelink_e2e::{Net, NetOptions, Pinger, SOON, binary};
use edgelink_net::tls;
use edgelink_testbed::{Host, Process, port, topology::TcpOnly};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

const RELAY: Ipv4Addr = Ipv4Addr::new(10, 101, 0, 2);
/// Proxies and CDNs give idle connections up after a minute. These do after a second more than a PING may be late
/// (DESIGN §9: at most 25 s apart), so that the test ends.
const IDLE: u64 = 26;
/// Connections of one address that have not said who they are (DESIGN §6).
const LIMIT: usize = 20;

#[derive(Clone, Copy, Debug)]
enum Front {
    Nginx,
    Haproxy,
}

/// A certificate authority, and a certificate for these addresses.
struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    fn new(host: &Host, dir: &Path, addresses: [Ipv4Addr; 2]) -> Self {
        let dir = dir.join("certificates");
        std::fs::create_dir(&dir).unwrap();
        let names = addresses.map(|address| format!("IP:{address}")).join(",");
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        let script = format!(
            "set -e; cd {}; openssl req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=lab -days 30; \
             openssl req {key} -keyout key.pem -out request.pem -subj /CN=lab-server; \
             echo subjectAltName={names} >names; \
             openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 30 -extfile names; \
             cat cert.pem key.pem >both.pem",
            dir.display()
        );
        host.command("sh").args(["-c", &script]).run().unwrap();
        Self { dir }
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn pin(&self) -> String {
        tls::spki_pin(&std::fs::read(self.dir.join("cert.pem")).unwrap()).unwrap().to_string()
    }
}

/// TLS at `address`:443, plain HTTP to 127.0.0.1:8080.
fn front(kind: Front, host: &Host, address: Ipv4Addr, dir: &Path, certificates: &Certificates) -> Process {
    let dir = dir.join(format!("{kind:?}-{address}"));
    std::fs::create_dir(&dir).unwrap();
    let (config, command) = match kind {
        Front::Nginx => {
            let (cert, key, dir) = (certificates.file("cert.pem"), certificates.file("key.pem"), dir.display());
            let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|what| format!("{what}_temp_path {dir}/{what};"));
            let config = format!(
                "daemon off; pid {dir}/pid; worker_processes 1; error_log stderr; events {{}}\n\
                 http {{ access_log off; {}\n\
                 map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}\n\
                 server {{ listen {address}:443 ssl; ssl_certificate {cert}; ssl_certificate_key {key};\n\
                 location / {{ proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_set_header Host $host;\n\
                 proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;\n\
                 proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
                 proxy_read_timeout {IDLE}s; proxy_send_timeout {IDLE}s; }} }} }}\n",
                temporary.concat()
            );
            (config, host.command("nginx").args(["-e", "stderr", "-c"]))
        }
        Front::Haproxy => {
            let config = format!(
                "defaults\n  mode http\n  timeout connect 5s\n  timeout client {IDLE}s\n  timeout server {IDLE}s\n  \
                 timeout tunnel {IDLE}s\n  option forwardfor\nfrontend https\n  bind {address}:443 ssl crt {}\n  \
                 default_backend edgelink\nbackend edgelink\n  server here 127.0.0.1:8080\n",
                certificates.file("both.pem")
            );
            (config, host.command("haproxy").args(["-db", "-f"]))
        }
    };
    let file = dir.join("config");
    std::fs::write(&file, config).unwrap();
    let process = command.arg(&file).spawn_logged().unwrap();
    host.wait_tcp(SocketAddr::new(address.into(), 443), SOON).unwrap();
    process
}

/// Node a reaches the two fronts, node b an HTTP proxy on its router and nothing else.
struct World {
    net: Net,
    certificates: Certificates,
    relay: Process,
    relay_host: Host,
    _fronts: [Process; 2],
    tinyproxy: Process,
}

impl World {
    fn start(before_controller: Front, before_relay: Front) -> Option<Self> {
        let mut net = Net::lab(&["a", "b"], NetOptions::default()).unwrap()?;
        let (lab, router) = (net.lab_ref(), &net.topology.router);
        let relay_host = lab.host("r1").unwrap();
        lab.link(port(&relay_host, "eth0", &format!("{RELAY}/24")), port(router, "relay1", "10.101.0.1/24")).unwrap();
        relay_host.default_route(IpAddr::from([10, 101, 0, 1])).unwrap();
        let (a, c) = (TcpOnly::node_address(1), TcpOnly::RELAY);
        router
            .nft(&format!(
                "table inet lab_filter\ndelete table inet lab_filter\ntable inet lab_filter {{\n  chain forward {{\n    \
                 type filter hook forward priority 0; policy drop;\n    ct state established,related accept\n    \
                 ip saddr {{ {a}, {RELAY} }} ip daddr {c} tcp dport 443 accept\n    \
                 ip saddr {{ {a}, {c} }} ip daddr {RELAY} tcp dport 443 accept\n  }}\n}}\n"
            ))
            .unwrap();
        let dir = lab.dir().to_owned();
        let certificates = Certificates::new(&net.topology.relay, &dir, [c, RELAY]);
        let ca = certificates.file("ca.pem");
        net.set_controller_config(json!({
            "tls": null, "listen": { "http": "127.0.0.1:8080" }, "public_url": format!("wss://{c}"),
            "trusted_proxies": ["127.0.0.0/8"], "builtin_relay": { "ca_file": ca },
        }));
        let first = front(before_controller, &net.topology.relay, c, &dir, &certificates);
        let second = front(before_relay, &relay_host, RELAY, &dir, &certificates);
        net.start_controller().unwrap();
        assert!(net.join_command().starts_with(&format!("edgelink up wss://{c} ")), "{}", net.join_command());

        let url = format!("wss://{RELAY}/ws/data");
        let add = ["server", "add", "--name", "r1", "--url", &url, "--controller", &format!("wss://{c}")];
        let mut config: Value = net.ctl_json(&add).unwrap()["config"].clone();
        config["state_dir"] = json!(dir.join("r1"));
        config["controller"]["ca_file"] = json!(ca);
        config["controller"].as_object_mut().unwrap().remove("pin");
        let relay = config["relay"].as_object_mut().unwrap();
        relay.insert("tls".to_owned(), Value::Null);
        relay.insert("listen".to_owned(), json!("127.0.0.1:8080"));
        relay.insert("trusted_proxies".to_owned(), json!(["127.0.0.0/8"]));
        let file = dir.join("r1.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let command = relay_host.command(binary("edgelink-server").unwrap()).arg("--config").arg(&file);
        let relay = command.spawn_logged().unwrap();
        relay.wait_line("linked with another relay", SOON).unwrap();

        let file = dir.join("tinyproxy.conf");
        let proxy = "Port 8888\nListen 10.2.0.1\nAllow 10.2.0.0/24\nConnectPort 443\nTimeout 26\nLogLevel Connect\n";
        std::fs::write(&file, proxy).unwrap();
        let tinyproxy = net.topology.router.command("tinyproxy").args(["-d", "-c"]).arg(&file).spawn_logged().unwrap();
        let proxy: SocketAddr = "10.2.0.1:8888".parse().unwrap();
        net.nodes[1].host.wait_tcp(proxy, SOON).unwrap();
        let join = net.join_command().to_owned();
        let clients = [json!({ "ca_file": ca }), json!({ "ca_file": ca, "proxy": format!("http://{proxy}") })];
        for (node, config) in net.nodes.iter_mut().zip(clients) {
            let file = dir.join(format!("{}.json", node.host.name()));
            std::fs::write(&file, config.to_string()).unwrap();
            let command = node.daemon().unwrap().arg("--config").arg(&file);
            node.run_as(command).unwrap();
            node.shell(&join).unwrap().run().unwrap();
            node.process().unwrap().wait_line("ready ", SOON).unwrap();
        }
        for (node, peer) in [(0, "b"), (1, "a")] {
            let node = &net.nodes[node];
            node.wait_peer(peer).unwrap();
            node.wait_status("both relays", SOON, |status| status.relays.iter().filter(|r| r.connected).count() == 2)
                .unwrap();
        }
        Some(Self { net, certificates, relay, relay_host, _fronts: [first, second], tinyproxy })
    }

    /// Packets pass, and those of one node only by the HTTP proxy.
    fn talk(&self) {
        let target = self.net.nodes[1].overlay().unwrap();
        self.net.nodes[0].wait_ping(target, SOON).unwrap();
        let pinger = Pinger::start(&self.net.nodes[0], target).unwrap();
        pinger.wait_answers(10).unwrap();
        pinger.stop_without_loss().unwrap();
        let connects = self.tinyproxy.lines().iter().filter(|line| line.text.contains("CONNECT")).count();
        assert!(connects >= 3, "to the controller and two relays: {}", self.tinyproxy.stdout());
    }

    /// Somebody who opens connections and says nothing is limited by his own address, not by the front's, and not by
    /// one that he claims.
    fn limits_tell_clients_apart(&self) {
        let pin = self.certificates.pin();
        for (address, path) in [(TcpOnly::RELAY, "/ws/control"), (RELAY, "/ws/data")] {
            let to = SocketAddr::new(address.into(), 443);
            let greedy = Door::open(self.net.nodes[0].host.clone(), to, Some(pin.clone())).unwrap();
            // The controller refuses the upgrade, the relay takes it and closes: try again later.
            let mut open = Vec::new();
            for _ in 0..LIMIT {
                open.push(greedy.dial(path).unwrap());
            }
            if let Ok(mut one_too_many) = greedy.dial(path) {
                assert_eq!(one_too_many.wait_closed().unwrap(), Some(1013), "{path}");
            }
            let host = if address == RELAY { &self.net.topology.relay } else { &self.relay_host };
            let other = Door::open(host.clone(), to, Some(pin.clone())).unwrap();
            let mut other = other.dial(path).unwrap();
            other.say(hello(&MachineKey::generate(&mut UnwrapErr(SysRng)), "no token")).unwrap();
            let answered = other.wait("an answer", |answer| matches!(answer, Answer::Control(_)).then_some(()));
            answered.unwrap();
        }
    }

    fn stop(self) {
        self.net.check_alive().unwrap();
        assert!(self.relay.terminate(SOON).unwrap().success());
        assert!(!self.relay.stderr().contains("panicked"), "{}", self.relay.stderr());
    }
}

#[test]
fn nginx_before_the_controller_and_haproxy_before_a_relay() {
    let Some(world) = World::start(Front::Nginx, Front::Haproxy) else { return };
    world.talk();
    // Nothing is said by anybody for longer than the boxes wait: PINGs keep every connection open.
    let before = world.relay.stderr().len();
    std::thread::sleep(Duration::from_secs(IDLE + 6));
    for node in &world.net.nodes {
        let log = node.process().unwrap().stderr();
        assert!(!log.contains("relay lost") && !log.contains("is away"), "{}: {log}", node.host.name());
        let status = node.status().unwrap();
        assert!(status.controller.connected && status.relays.iter().all(|relay| relay.connected), "{status:#?}");
    }
    let log = world.relay.stderr().split_off(before);
    assert!(
        !log.contains("the connection to the controller ended") && !log.contains("link with another relay lost"),
        "{log}"
    );
    world.talk();
    world.stop();
}

#[test]
fn haproxy_before_the_controller_and_nginx_before_a_relay() {
    let Some(world) = World::start(Front::Haproxy, Front::Nginx) else { return };
    world.talk();
    world.limits_tell_clients_apart();
    world.talk();
    world.stop();
}
