//! The STUN servers of controller and `edgelink-server`, seen by foreign clients from behind NATs, and by nodes.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use edgelink_e2e::{SOON, binary};
use edgelink_testbed::{
    Host, Lab, NatKind, Process,
    topology::{Internet, Site, SitePlan},
    wait,
};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

fn lab() -> Option<Lab> {
    match Lab::new() {
        Ok(lab) => Some(lab),
        Err(error) if format!("{error:#}").contains("the kernel refuses") => {
            eprintln!("NOT TESTED: {error:#}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

/// A controller on a host, from this configuration, with its state directory.
fn controller(host: &Host, lab: &Lab, mut config: Value) -> Process {
    config["tls"] = Value::Null;
    config["listen"] = json!({ "http": "0.0.0.0:80" });
    config["state_dir"] = json!(lab.dir().join("controller"));
    let file = lab.dir().join("controller.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let command = host.command(binary("edgelink-controller").unwrap()).arg("--config").arg(&file);
    let process = command.spawn_logged().unwrap();
    process.wait_line("ready ws://", SOON).unwrap();
    process
}

fn ctl(host: &Host, lab: &Lab, arguments: &[&str]) -> Value {
    let database = lab.dir().join("controller").join("mesh.db");
    let ctl = host.command(binary("edgelink-ctl").unwrap()).arg("--db").arg(database).args(arguments).arg("--json");
    serde_json::from_str(&ctl.run().unwrap()).unwrap()
}

fn server(host: &Host, config: &Value, file: &Path) -> Process {
    std::fs::write(file, config.to_string()).unwrap();
    let command = host.command(binary("edgelink-server").unwrap()).arg("--config").arg(file);
    let process = command.spawn_logged().unwrap();
    process.wait_line("ready server ", SOON).unwrap();
    process
}

/// What a foreign client says, within the time that it takes at most.
fn said(question: &Process) -> String {
    question.wait(3 * SOON).unwrap();
    [question.stdout(), question.stderr()].concat()
}

fn ask(host: &Host, program: &str, arguments: &[&str]) -> Process {
    host.command(program).args(arguments).spawn_logged().unwrap()
}

/// The addresses behind `label`.
fn named(said: &str, label: &str) -> Vec<SocketAddr> {
    said.lines().filter_map(|line| line.split_once(label)?.1.trim_start_matches([':', ' ']).parse().ok()).collect()
}

#[test]
fn the_controllers_own_server_needs_no_configuration() {
    let Some(lab) = lab() else { return };
    let internet = Internet::new(&lab).unwrap();
    let (host, addresses) = internet.server("controller", 1).unwrap();
    let site = internet.site("site", &SitePlan::behind(NatKind::Symmetric)).unwrap();
    let process = controller(&host, &lab, json!({}));
    let note = process.wait_line("STUN on ports 3478 and 3479", SOON).unwrap();
    assert!(note.contains("203.0.113.10"), "the address of the interface with the default route: {note}");
    let record = &ctl(&host, &lab, &["server", "list"])[0];
    assert_eq!((&record["stun_ip"], &record["stun_port"]), (&json!("203.0.113.10"), &json!(3478)), "{record}");
    let target = addresses[0].to_string();
    for port in ["3478", "3479"] {
        let client = ask(&site.hosts[0], "turnutils_stunclient", &["-p", port, &target]);
        let said = said(&client);
        let mapped = named(&said, "UDP reflexive addr");
        let public = IpAddr::from(site.first.public);
        assert!(!mapped.is_empty() && mapped.iter().all(|mapped| mapped.ip() == public), "{said}");
    }
    process.terminate(SOON).unwrap();

    // Another program has the port: the network works all the same.
    let taken = host.udp_socket("0.0.0.0:3479".parse().unwrap()).unwrap();
    let process = controller(&host, &lab, json!({}));
    let note = process.wait_line("no built-in STUN server", SOON).unwrap();
    assert!(note.contains("3479"), "{note}");
    assert_eq!(ctl(&host, &lab, &["server", "list"])[0]["stun_ip"], Value::Null);
    drop(taken);
}

/// What each kind is for `turnutils_natdiscovery` (mapping, filtering) and for `stun`.
fn meaning(kind: NatKind) -> [&'static str; 3] {
    let [ei, ad, apd] = ["Endpoint Independent", "Address Dependent", "Address and Port Dependent"];
    match kind {
        NatKind::None => [ei, ei, "Open"],
        NatKind::FullCone => [ei, ei, "Independent Mapping, Independent Filter"],
        NatKind::RestrictedCone => [ei, ad, "Independent Mapping, Address Dependent Filter"],
        NatKind::PortRestricted => [ei, apd, "Independent Mapping, Port Dependent Filter"],
        NatKind::Symmetric => [apd, apd, "Dependent Mapping"],
        _ => unreachable!(),
    }
}

fn discovered(question: &Process) -> String {
    let text = said(question);
    let names = ["Endpoint Independent", "Address Dependent", "Address and Port Dependent"];
    let found = |name: &&str| {
        ["Mapping!", "Filtering!"].iter().any(|noun| text.contains(&format!("NAT with {name} {noun}")))
            || text.contains(&format!("No NAT! ({name} Mapping)"))
    };
    let mut found = names.into_iter().filter(found);
    let (Some(name), None) = (found.next(), found.next()) else { panic!("{text}") };
    name.to_owned()
}

#[test]
fn foreign_clients_agree_behind_every_nat() {
    let Some(lab) = lab() else { return };
    let internet = Internet::new(&lab).unwrap();
    let (host, addresses) = internet.server("controller", 1).unwrap();
    let (stun, own) = internet.server("stun", 2).unwrap();
    let [first, second] = [own[0].to_string(), own[1].to_string()];
    // The laboratory's addresses are those that the documentation uses, and that draws the warning.
    let builtin = json!({ "external_ip": addresses[0], "listen": "0.0.0.0:3478" });
    let control = controller(&host, &lab, json!({ "builtin_stun": builtin }));
    control.wait_line("builtin_stun.external_ip is 203.0.113.10, an address for documentation", SOON).unwrap();

    // As an administrator does it: the printed configuration is pasted as it is.
    let added = ctl(
        &host,
        &lab,
        &[
            "server",
            "add",
            "--name",
            "s1",
            "--capabilities",
            "stun",
            "--stun-ip",
            &first,
            "--stun-ip2",
            &second,
            "--controller",
            "ws://203.0.113.10",
        ],
    );
    let mut config = added["config"].clone();
    config["state_dir"] = json!(lab.dir().join("s1"));
    assert_eq!((&config["relay"]["enabled"], &config["stun"]["secondary_ip"]), (&json!(false), &json!(second)));
    let wildcard = server(&stun, &config, &lab.dir().join("s1.json"));
    wildcard.wait_line("connected to the controller", SOON).unwrap();
    agree(&internet, &first, &second);
    let record = || ctl(&host, &lab, &["server", "list"]).as_array().unwrap()[1].clone();
    let heard = wait::until("s1 is heard of", SOON, || (!record()["last_heartbeat"].is_null()).then(record));
    let record = heard.unwrap();
    assert_eq!((&record["stun_ip"], &record["stun_ip2"]), (&json!(first), &json!(second)), "{record}");
    // coturn's other client: its first answer is right. Then it wants one sent to another port (RESPONSE-PORT), is refused
    // (420, which goes to where it asked from), and listens at that other port only, for ever.
    let site = internet.site("asker", &SitePlan::behind(NatKind::PortRestricted)).unwrap();
    let client = ask(&site.hosts[0], "turnutils_stunclient", &[&first]);
    client.wait_line("UDP reflexive addr", SOON).unwrap();
    let told = client.stdout();
    assert_eq!(named(&told, "UDP reflexive addr")[0].ip(), IpAddr::from(site.first.public), "{told}");
    assert_eq!(named(&told, "Other addr")[0].ip().to_string(), second, "{told}");
    client.kill().unwrap();
    assert!(wildcard.terminate(SOON).unwrap().success());

    // The same on sockets of single addresses.
    config["stun"]["listen"] = json!(format!("{first}:3478"));
    let single = server(&stun, &config, &lab.dir().join("s1.json"));
    single.wait_line("STUN on ports", SOON).unwrap();
    agree(&internet, &first, &second);
    assert!(single.terminate(SOON).unwrap().success());

    // A port that somebody else has is told, with its number.
    let _taken = stun.udp_socket(SocketAddr::new(own[0], 3479)).unwrap();
    let output = stun.command(binary("edgelink-server").unwrap()).arg("--config").arg(lab.dir().join("s1.json"));
    let output = output.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.contains("stun.listen") && output.stderr.contains(":3479"), "{}", output.stderr);
}

/// All clients behind all NATs at once, for they wait long for what does not come.
fn agree(internet: &Internet<'_>, first: &str, second: &str) {
    static ROUND: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let round = ROUND.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let kinds =
        [NatKind::None, NatKind::FullCone, NatKind::RestrictedCone, NatKind::PortRestricted, NatKind::Symmetric];
    let asked: Vec<(NatKind, Site, [Process; 3])> = kinds
        .into_iter()
        .map(|kind| {
            let site = internet.site(&format!("{kind}{round}"), &SitePlan::behind(kind)).unwrap();
            let local = site.address(0).to_string();
            // Ports of their own: a filter must not have seen packets to the other address.
            let discover =
                |what, port| ask(&site.hosts[0], "turnutils_natdiscovery", &[what, "-L", &local, "-l", port, first]);
            let questions = [
                discover("-m", "17000"),
                discover("-f", "17001"),
                ask(&site.hosts[0], "stun", &[first, "-p", "18000"]),
            ];
            (kind, site, questions)
        })
        .collect();
    for (kind, _site, [mapping, filtering, classic]) in asked {
        let [map, filter, old] = meaning(kind);
        assert_eq!([discovered(&mapping), discovered(&filtering)], [map, filter], "{kind}");
        let text = said(&classic);
        assert!(text.contains(&format!("Primary: {old}")), "{kind}: {text}");
        let told = mapping.stdout();
        let other = named(&told, "Other addr").first().map(|other| other.ip().to_string());
        assert_eq!(other.as_deref(), Some(second), "{kind}: {told}");
    }
}

#[test]
fn a_relay_with_stun_says_where_it_is_and_nodes_ask_it() {
    let Some(lab) = lab() else { return };
    if let Err(error) = edgelink_testbed::tools::require_tun() {
        eprintln!("NOT TESTED: {error:#}");
        return;
    }
    let internet = Internet::new(&lab).unwrap();
    let (host, _) = internet.server("controller", 1).unwrap();
    let (relay, own) = internet.server("relay", 2).unwrap();
    let site = internet.site("site", &SitePlan::behind(NatKind::PortRestricted)).unwrap();
    let [first, second] = [own[0].to_string(), own[1].to_string()];
    let control = controller(&host, &lab, json!({ "builtin_stun": { "enabled": false } }));
    let add = ["server", "add", "--name", "r1", "--url", "ws://203.0.113.11", "--controller", "ws://203.0.113.10"];
    let stun = ["--capabilities", "relay,stun", "--stun-ip", &first, "--stun-ip2", &second];
    let added = ctl(&host, &lab, &[&add[..], &stun].concat());
    let mut config = added["config"].clone();
    config["state_dir"] = json!(lab.dir().join("r1"));
    let process = server(&relay, &config, &lab.dir().join("r1.json"));
    process.wait_line("connected to the controller", SOON).unwrap();

    let join = control.wait_line("edgelink up ", SOON).unwrap();
    let (dir, socket) = (lab.dir().join("node"), lab.dir().join("node.sock"));
    let edgelink = |arguments: &[&str]| {
        let command = site.hosts[0].command(binary("edgelink").unwrap()).args(arguments);
        command.env("EDGELINK_SOCKET", &socket)
    };
    let daemon = edgelink(&["run"]).arg("--state-dir").arg(&dir).spawn_logged().unwrap();
    wait::file(&socket, SOON).unwrap();
    let words: Vec<&str> = join.split_whitespace().skip(1).collect();
    edgelink(&words).run().unwrap();
    daemon.wait_line("ready ", SOON).unwrap();
    let capture = relay.capture("eth0").unwrap();
    // Its mapping is asked for at both addresses, which finds out what NAT it sits behind.
    let nat = wait::until("the node's NAT", Duration::from_secs(60), || {
        let status: Value = serde_json::from_str(&edgelink(&["status", "--json"]).run().ok()?).ok()?;
        let known = status["nat"]["mapping"].as_str().is_some_and(|mapping| mapping != "unknown");
        known.then(|| status["nat"].clone())
    });
    drop(capture);
    let nat = nat.unwrap();
    assert_eq!(nat["mapping"], json!("endpoint_independent"), "{nat}");
    let metrics = edgelink_e2e::raw::Door::open(relay.clone(), SocketAddr::new(own[0], 80), None).unwrap();
    let text = metrics.get("/metrics").unwrap();
    let answered =
        text.lines().find_map(|line| line.strip_prefix("edgelink_stun_requests_total{outcome=\"answered\"} "));
    assert!(answered.unwrap().parse::<u64>().unwrap() >= 2, "{text}");

    // Disabled in its configuration: nodes are told nothing of it any more.
    assert!(process.terminate(SOON).unwrap().success());
    config["stun"] = json!({ "enabled": false });
    let process = server(&relay, &config, &lab.dir().join("r1.json"));
    wait::until("no STUN address", SOON, || {
        let record = ctl(&host, &lab, &["server", "list"]).as_array()?.last()?.clone();
        (record["stun_ip"].is_null() && record["url"].is_string()).then_some(())
    })
    .unwrap();
    assert!(process.terminate(SOON).unwrap().success());
}
