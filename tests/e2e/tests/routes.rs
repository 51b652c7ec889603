//! Subnets behind gateways: reached, balanced, failed over, and nothing left behind.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use edgelink_api::local::{Route, RouteWhy, Status};
use edgelink_e2e::{Net, NetOptions, Node, SOON, Site, TUN, bytes};
use edgelink_testbed::Host;
use nix::sys::signal::Signal;
use serde_json::json;

/// What the issue demands of a failover.
const FAILOVER: Duration = Duration::from_secs(5);

fn active(status: &Status, cidr: &str) -> Vec<u32> {
    let active = status.routes.iter().filter(|route| route.cidr.to_string() == cidr && route.active);
    active.map(|route| route.gateway_node_id.0).collect()
}

fn id(node: &Node) -> u32 {
    node.status().unwrap().node_id.unwrap().0
}

fn wait_active(client: &Node, cidr: &str, gateways: usize) -> Status {
    client.wait_status("active gateways", SOON, |status| active(status, cidr).len() == gateways).unwrap()
}

fn nft(host: &Host) -> String {
    host.command("nft").args(["list", "ruleset"]).run().unwrap()
}

/// How long it takes until a new connection to the server is answered, be it by a refusal. Pings would not do: they are one
/// flow, which stays with the gateway that it has.
fn wait_new_flow(client: &Host) -> Duration {
    let began = Instant::now();
    let server = SocketAddr::new(Site::SERVER, 9);
    edgelink_testbed::wait::until("an answer of the server", SOON, || {
        let answer = client.tcp_connect(server, Duration::from_millis(200));
        answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused).then_some(())
    })
    .unwrap();
    began.elapsed()
}

/// A connection to the echo server, and the gateway that it came through.
struct Flow {
    stream: BufReader<TcpStream>,
    gateway: String,
}

impl Flow {
    fn open(client: &Host, server: SocketAddr) -> Self {
        let stream = client.tcp_connect(server, SOON).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut stream = BufReader::new(stream);
        let mut gateway = String::new();
        stream.read_line(&mut gateway).unwrap();
        Self { stream, gateway: gateway.trim().to_owned() }
    }

    fn echoes(&mut self, payload: &[u8]) {
        let mut writer = self.stream.get_ref().try_clone().unwrap();
        let sent = payload.to_vec();
        let writing = std::thread::spawn(move || writer.write_all(&sent));
        let mut received = vec![0; payload.len()];
        self.stream.read_exact(&mut received).unwrap();
        writing.join().unwrap().unwrap();
        assert!(received == payload, "{} bytes came back changed", payload.len());
    }
}

#[test]
fn a_site_is_reached_through_its_gateway_and_nothing_is_left_behind() {
    let Some((mut net, site)) = Site::start(&[Site::gateway(100, 100)]).unwrap() else { return };
    // Somebody else's firewall, as docker and the like make it.
    let foreign = "table ip docker {\n\
                   chain FORWARD {\n type filter hook forward priority filter; policy accept;\n \
                   iifname \"docker0\" counter accept\n }\n\
                   chain POSTROUTING {\n type nat hook postrouting priority srcnat;\n \
                   ip saddr 172.17.0.0/16 masquerade\n }\n}\n";
    net.nodes[1].host.nft(foreign).unwrap();
    let forwarding = |host: &Host, interface: &str| {
        host.command("cat").arg(format!("/proc/sys/net/ipv4/conf/{interface}/forwarding")).run().unwrap()
    };
    // The gateway may be at work already: what was there before it are the foreign rules, and no forwarding.
    let theirs = net.nodes[1].host.command("nft").args(["list", "table", "ip", "docker"]).run().unwrap();
    let before = (theirs, "0\n".to_owned());
    let echo = site.serve_echo(7000).unwrap();

    let [client, gateway] = &net.nodes[..] else { unreachable!() };
    let status = wait_active(client, Site::CIDR, 1);
    let [route] = &status.routes[..] else { panic!("{:?}", status.routes) };
    let gateway_id = gateway.status().unwrap().node_id.unwrap();
    let expected = Route {
        cidr: Site::CIDR.parse().unwrap(),
        gateway_node_id: gateway_id,
        priority: 100,
        weight: 100,
        active: true,
        skipped: None,
    };
    assert_eq!(route, &expected);
    client.wait_ping(Site::SERVER, SOON).unwrap();
    let mut flow = Flow::open(&client.host, echo);
    assert_eq!(flow.gateway, "192.168.77.1", "the server sees the gateway's address");
    flow.echoes(&bytes(2 << 20, 7));

    // For people, and exactly in the kernel.
    let why: RouteWhy =
        serde_json::from_str(&client.edgelink(&["routes", "--json", "--why", "192.168.77.10"]).unwrap().run().unwrap())
            .unwrap();
    assert_eq!((why.gateways, why.cidr), (vec![gateway_id], Some(expected.cidr)));
    let ours = |host: &Host| host.command("ip").args(["route", "show", "proto", "237"]).run().unwrap();
    let [line] = &ours(&client.host).lines().map(str::to_owned).collect::<Vec<_>>()[..] else { panic!("one route") };
    assert!(line.starts_with(&format!("{} dev {TUN} ", Site::CIDR)), "{line}");
    assert_eq!(ours(&gateway.host), "", "its own LAN is not in the tunnel");
    let table = nft(&gateway.host);
    assert!(table.contains("table inet edgelink_wss_mesh0") && table.contains("masquerade"), "{table}");

    // Withdrawn at SIGHUP, and announced again.
    let mut config = Site::gateway(100, 100);
    config["advertise_routes"] = json!([]);
    let gateway = &mut net.nodes[1];
    gateway.configure(&config).unwrap();
    gateway.process().unwrap().signal(Signal::SIGHUP).unwrap();
    net.nodes[0].wait_status("no route", SOON, |status| status.routes.is_empty()).unwrap();
    edgelink_testbed::wait::until("the route to go", SOON, || ours(&net.nodes[0].host).is_empty().then_some(()))
        .unwrap();
    let gone = || (!nft(&net.nodes[1].host).contains("edgelink")).then_some(());
    edgelink_testbed::wait::until("the gateway's rules to go", SOON, gone).unwrap();
    net.nodes[1].configure(&Site::gateway(200, 100)).unwrap();
    net.nodes[1].process().unwrap().signal(Signal::SIGHUP).unwrap();
    let higher = |status: &Status| status.routes.iter().any(|route| route.priority == 200 && route.active);
    net.nodes[0].wait_status("the new priority", SOON, higher).unwrap();
    net.nodes[0].wait_ping(Site::SERVER, SOON).unwrap();

    // Killed, it leaves rules; the next start removes them although it is no gateway any more.
    net.nodes[1].kill().unwrap();
    assert!(nft(&net.nodes[1].host).contains("edgelink_wss_mesh0"));
    net.nodes[1].configure(&json!({})).unwrap();
    net.nodes[1].run().unwrap();
    let now = (nft(&net.nodes[1].host), forwarding(&net.nodes[1].host, "eth1"));
    assert_eq!(now, before, "as it was, the foreign rules too");

    // A gateway again, ended as one should.
    let (status, _) = net.nodes[1].end(Signal::SIGTERM).unwrap();
    assert!(status.success());
    net.nodes[1].configure(&Site::gateway(100, 100)).unwrap();
    net.nodes[1].run().unwrap();
    net.nodes[0].wait_ping(Site::SERVER, SOON).unwrap();
    net.nodes[1].end(Signal::SIGTERM).unwrap();
    net.nodes[0].end(Signal::SIGTERM).unwrap();
    let now = (nft(&net.nodes[1].host), forwarding(&net.nodes[1].host, "eth1"));
    assert_eq!(now, before, "as it was, the foreign rules too");
    net.nodes[0].check_clean().unwrap();
}

#[test]
fn flows_move_from_a_dead_gateway_within_five_seconds() {
    let mut first = Site::gateway(200, 100);
    // The server itself tells whether the first gateway's side lives.
    first["gateway_mode"]["health_target"] = json!("192.168.77.10:7");
    let Some((mut net, _site)) = Site::start(&[first, Site::gateway(100, 100)]).unwrap() else { return };
    let second = id(&net.nodes[2]);
    let first = id(&net.nodes[1]);
    let settled = |net: &Net, gateway: u32| {
        let one = |status: &Status| active(status, Site::CIDR) == [gateway];
        // A gateway that has recovered is held for ten seconds.
        net.nodes[0].wait_status("the preferred gateway", Duration::from_secs(40), one).unwrap();
        wait_new_flow(&net.nodes[0].host);
    };
    let moved = |net: &Net, what: &str| {
        let took = wait_new_flow(&net.nodes[0].host);
        eprintln!("failover, {what}: {} ms", took.as_millis());
        assert!(took < FAILOVER, "{what}: {took:?}");
        assert_eq!(active(&net.nodes[0].status().unwrap(), Site::CIDR), [second], "{what}");
    };

    settled(&net, first);
    net.nodes[1].kill().unwrap();
    moved(&net, "kill -9");
    net.nodes[1].run().unwrap();
    settled(&net, first);

    net.nodes[1].host.set_link("eth0", false).unwrap();
    moved(&net, "cable pulled");
    net.nodes[1].host.set_link("eth0", true).unwrap();
    net.nodes[1].host.default_route(IpAddr::from([10, 2, 0, 1])).unwrap();
    settled(&net, first);

    net.nodes[1].process().unwrap().signal(Signal::SIGSTOP).unwrap();
    moved(&net, "SIGSTOP");
    net.nodes[1].process().unwrap().signal(Signal::SIGCONT).unwrap();
    settled(&net, first);

    // The LAN's side: nothing wrong with the tunnel.
    net.nodes[1].host.set_link("eth1", false).unwrap();
    moved(&net, "LAN side dead");
    net.nodes[1].host.set_link("eth1", true).unwrap();
    settled(&net, first);
    net.check_alive().unwrap();
}

#[test]
fn established_connections_of_the_surviving_gateway_are_not_touched() {
    let Some((mut net, site)) = Site::start(&[Site::gateway(100, 100), Site::gateway(100, 100)]).unwrap() else {
        return;
    };
    let echo = site.serve_echo(7000).unwrap();
    wait_active(&net.nodes[0], Site::CIDR, 2);
    net.nodes[0].wait_ping(Site::SERVER, SOON).unwrap();
    // Both gateways get flows; 24 of them on one side only would be a chance of one in eight million.
    let mut flows: Vec<Flow> = (0..24).map(|_| Flow::open(&net.nodes[0].host, echo)).collect();
    let used: BTreeSet<String> = flows.iter().map(|flow| flow.gateway.clone()).collect();
    assert_eq!(used, ["192.168.77.1", "192.168.77.2"].map(str::to_owned).into());
    let payload = bytes(64 << 10, 3);
    flows.iter_mut().for_each(|flow| flow.echoes(&payload));

    net.nodes[1].kill().unwrap();
    let mut surviving: Vec<&mut Flow> = flows.iter_mut().filter(|flow| flow.gateway == "192.168.77.2").collect();
    surviving.iter_mut().for_each(|flow| flow.echoes(&payload));
    wait_active(&net.nodes[0], Site::CIDR, 1);
    surviving.iter_mut().for_each(|flow| flow.echoes(&payload));
    // New flows take the survivor, and stay there when the other one is back.
    let mut new = Flow::open(&net.nodes[0].host, echo);
    assert_eq!(new.gateway, "192.168.77.2");
    net.nodes[1].run().unwrap();
    net.nodes[0].wait_status("both gateways", Duration::from_secs(40), |s| active(s, Site::CIDR).len() == 2).unwrap();
    new.echoes(&payload);
    surviving.iter_mut().for_each(|flow| flow.echoes(&payload));
}

#[test]
fn an_exit_node_takes_everything_but_the_tunnels_own_traffic() {
    let mut config = Site::gateway(100, 100);
    config["advertise_routes"] = json!([{ "cidr": "0.0.0.0/0" }, { "cidr": "::/0" }]);
    let Some((mut net, site)) = Site::start(&[config]).unwrap() else { return };
    let echo = site.serve_echo(7000).unwrap();
    wait_active(&net.nodes[0], "0.0.0.0/0", 1);
    net.nodes[0].wait_ping(Site::SERVER, SOON).unwrap();
    Flow::open(&net.nodes[0].host, echo).echoes(&bytes(1 << 20, 5));
    let leads = |address: &str| net.nodes[0].host.command("ip").args(["route", "get", address]).run().unwrap();
    assert!(leads("198.51.100.1").contains(TUN));
    assert!(leads("192.0.2.10").contains("eth0"), "controller and relay are reached directly");
    assert!(leads("10.1.0.1").contains("eth0"), "so is the local network");
    // The connections can be made anew beside the default route.
    net.controller().unwrap().kill().unwrap();
    net.start_controller().unwrap();
    let back = |status: &Status| status.controller.connected && status.relays.iter().all(|relay| relay.connected);
    net.nodes[0].wait_status("controller and relay", Duration::from_secs(40), back).unwrap();
    net.nodes[0].wait_ping(Site::SERVER, SOON).unwrap();

    // Killed, the client leaves rules; the next start removes them.
    net.nodes[0].kill().unwrap();
    let rules = |net: &Net| net.nodes[0].host.command("ip").args(["rule", "show"]).run().unwrap();
    assert!(rules(&net).lines().count() > 3, "{}", rules(&net));
    net.nodes[0].configure(&json!({ "accept_routes": false })).unwrap();
    net.nodes[0].run().unwrap();
    assert_eq!(rules(&net).lines().count(), 3, "{}", rules(&net));
    net.nodes[0].end(Signal::SIGTERM).unwrap();
    net.nodes[0].check_clean().unwrap();
}

#[test]
fn bad_routes_are_skipped_or_refused_and_said() {
    let controller = json!({ "security": { "require_route_approval": false } });
    let options = NetOptions { controller: Some(controller), ..NetOptions::default() };
    let Some(mut net) = Net::lab(&["client", "gw1"], options).unwrap() else { return };
    // The client's own LAN, the controller's network, the overlay itself, and one that is fine.
    let routes = ["10.1.0.0/24", "192.0.2.0/24", "10.0.1.0/24", "192.168.77.0/24"];
    let routes: Vec<_> = routes.iter().map(|cidr| json!({ "cidr": cidr })).collect();
    net.nodes[1].configure(&json!({ "advertise_routes": routes, "gateway_mode": { "enabled": true } })).unwrap();
    net.start_controller().unwrap();
    for index in 0..2 {
        net.join(index).unwrap();
    }
    let client = &net.nodes[0];
    let status = client.wait_status("the routes", SOON, |status| status.routes.len() == 3).unwrap();
    let skipped = |cidr: &str| {
        let route = status.routes.iter().find(|route| route.cidr.to_string() == cidr);
        route.map(|route| (route.skipped.clone(), route.active)).unwrap()
    };
    assert_eq!(skipped("10.1.0.0/24"), (Some("local".to_owned()), false));
    assert_eq!(skipped("192.168.77.0/24"), (None, true));
    assert_eq!(skipped("192.0.2.0/24"), (None, true));
    let health = net.nodes[1].status().unwrap().health.join("\n");
    assert!(health.contains("10.0.1.0/24") && health.contains("the network's own subnet"), "{health}");
    let leads = |address: &str| client.host.command("ip").args(["route", "get", address]).run().unwrap();
    assert!(leads("192.0.2.99").contains(TUN), "{}", leads("192.0.2.99"));
    assert!(leads("192.0.2.10").contains("eth0"), "not the controller: {}", leads("192.0.2.10"));
    assert!(leads("10.1.0.77").contains("eth0"));
    let connected = |status: &Status| status.controller.connected && status.relays.iter().all(|relay| relay.connected);
    client.wait_status("connections", SOON, connected).unwrap();
}

#[test]
fn ipv6_works_inside_and_into_subnets() {
    let mut config = Site::gateway(100, 100);
    config["advertise_routes"] = json!([{ "cidr": Site::CIDR }, { "cidr": Site::CIDR6 }]);
    let Some((net, _site)) = Site::start(&[config]).unwrap() else { return };
    let [client, gateway] = &net.nodes[..] else { unreachable!() };
    let addresses = gateway.status().unwrap().addresses;
    let [IpAddr::V4(_), v6 @ IpAddr::V6(_)] = addresses[..] else { panic!("{addresses:?}") };
    client.wait_ping(v6, SOON).unwrap();
    wait_active(client, Site::CIDR6, 1);
    client.wait_ping(Site::SERVER6, SOON).unwrap();
    client.wait_ping(Site::SERVER, SOON).unwrap();
}
