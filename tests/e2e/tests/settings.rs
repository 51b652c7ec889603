//! The controller's configuration changes while it runs, and networks with one subnet stay apart.
#![expect(clippy::unwrap_used, reason = "tests")]

use edgelink_api::local::DaemonState;
use edgelink_e2e::raw::Door;
use edgelink_e2e::{Net, NetOptions, Pinger, SOON};
use edgelink_net::tls;
use edgelink_testbed::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;

/// A certificate of its own for the controller's address, written over the old one; its pin.
fn certificate(dir: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(["192.0.2.10".to_owned()]).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    tls::spki_pin(made.cert.pem().as_bytes()).unwrap().to_string()
}

#[test]
fn a_changed_configuration_is_in_force_without_a_restart() {
    let Some(mut net) = Net::lab(&["a", "b", "c"], NetOptions::default()).unwrap() else { return };
    let dir = net.lab_ref().dir().to_owned();
    let first = certificate(&dir);
    let config = |more: Value| {
        let mut config = json!({
            "tls": { "cert": dir.join("cert.pem"), "key": dir.join("key.pem") },
            "public_url": "wss://192.0.2.10",
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    net.set_controller_config(config(json!({})));
    net.start_controller().unwrap();
    let key = net.join_flag("--key").unwrap().to_owned();
    let url = net.url().unwrap().to_owned();
    for node in &mut net.nodes[..2] {
        node.run().unwrap();
        assert!(node.up(&[&url, "--key", &key, "--pin", &first]).unwrap().status.success());
    }
    net.nodes[0].wait_peer("b").unwrap();
    net.nodes[1].wait_peer("a").unwrap();
    let pinger = Pinger::start(&net.nodes[0], net.nodes[1].overlay().unwrap()).unwrap();
    let file = dir.join("controller.json");
    let rewrite = |text: &str| {
        // As editors do: another file takes the name.
        std::fs::write(dir.join("new.json"), text).unwrap();
        std::fs::rename(dir.join("new.json"), &file).unwrap();
    };
    let mark = |net: &Net| net.controller().unwrap().mark();
    let logged = |net: &Net, mark, words: &str| net.controller().unwrap().wait_line_after(mark, words, SOON).unwrap();

    // The file changes: what can change does, and what cannot is named.
    let before = mark(&net);
    rewrite(
        &config(json!({ "tokens": { "relay_expire_hours": 0.5 }, "builtin_relay": { "ws_mesh": "/x" } })).to_string(),
    );
    logged(&net, before, "a file changed: configuration changed: tokens.relay_expire_hours 1.5 → 0.5");
    logged(&net, before, "in force only after a restart: builtin_relay.ws_mesh");

    // A bad one is refused with its place, whoever asks for it.
    let before = mark(&net);
    rewrite(r#"{ "tokens": { "relay_expire_hours": "soon" } }"#);
    let line = logged(&net, before, "the new configuration is refused, the old one stays in force");
    assert!(line.contains("controller.json:1") && line.contains("`tokens.relay_expire_hours`"), "{line}");
    let before = mark(&net);
    rewrite(&config(json!({ "security": { "require_authorization": false } })).to_string());
    net.controller().unwrap().signal(Signal::SIGHUP).unwrap();
    logged(&net, before, "security.require_authorization true → false");

    // From now on a node needs neither a key nor an administrator.
    net.nodes[2].run().unwrap();
    let output = net.nodes[2].up(&[&url, "--pin", &first]).unwrap();
    assert!(output.status.success(), "{}", output.stderr);
    assert_eq!(net.nodes[2].status().unwrap().state, DaemonState::Up);

    // Another certificate: for new connections, while the old ones go on.
    let second = certificate(&dir);
    assert_ne!(first, second);
    let door = |pin: &str| Door::open(net.nodes[0].host.clone(), net.topology.server, Some(pin.to_owned())).unwrap();
    wait::until("the new certificate", SOON, || door(&second).dial("/ws/control").ok().map(drop)).unwrap();
    assert!(door(&first).dial("/ws/control").is_err());

    // A certificate that does not fit its key is refused, and the last one serves on.
    let before = mark(&net);
    std::fs::write(dir.join("cert.pem"), "no certificate").unwrap();
    logged(&net, before, "the new configuration is refused");
    assert!(door(&second).dial("/ws/control").is_ok());

    pinger.wait_answers(2).unwrap();
    pinger.stop_without_loss().unwrap();
    net.check_alive().unwrap();
}

#[test]
fn networks_with_one_subnet_stay_apart() {
    let Some(mut net) = Net::lab(&["a", "b", "c", "d"], NetOptions::default()).unwrap() else { return };
    net.start_controller().unwrap();
    net.join(0).unwrap();
    net.join(1).unwrap();
    net.ctl(&["network", "create", "--name", "other", "--subnet", "10.0.1.0/24"]).unwrap().run().unwrap();
    let key = net.auth_key("other", &["--preauthorize", "--reusable"]).unwrap();
    let (url, pin) = (net.url().unwrap().to_owned(), net.join_flag("--pin").unwrap().to_owned());
    for node in &mut net.nodes[2..] {
        node.run().unwrap();
        let output = node.up(&[&url, "--key", &key, "--pin", &pin]).unwrap();
        assert!(output.status.success(), "{}", output.stderr);
    }
    net.nodes[2].wait_peer("d").unwrap();
    net.nodes[3].wait_peer("c").unwrap();
    let [a, b, c, d] = &net.nodes[..] else { panic!() };
    // The same addresses on both sides.
    assert_eq!((a.overlay().unwrap(), b.overlay().unwrap()), (c.overlay().unwrap(), d.overlay().unwrap()));
    for (from, to, name) in [(a, b, "b"), (b, a, "a"), (c, d, "d"), (d, c, "c")] {
        from.wait_ping(to.overlay().unwrap(), SOON).unwrap();
        let status = from.status().unwrap();
        let peers: Vec<&str> = status.peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(peers, [name], "{} sees its own network and nothing else", from.host.name());
    }
    // What a sends to b's address arrives at b; d, which has the same address at the same relay, gets nothing of it.
    let received =
        |node: &edgelink_e2e::Node| node.status().unwrap().peers.iter().map(|peer| peer.rx_bytes).sum::<u64>();
    let (before_b, before_d) = (received(b), received(d));
    let pinger = Pinger::start(a, b.overlay().unwrap()).unwrap();
    pinger.wait_answers(20).unwrap();
    pinger.stop_without_loss().unwrap();
    let (gained_b, gained_d) = (received(b) - before_b, received(d) - before_d);
    assert!(gained_b > 20 * 84, "b got {gained_b} bytes");
    // Probes and announcements of its own peer are all that d gets.
    assert!(gained_d < gained_b / 2, "d got {gained_d} bytes while b got {gained_b}");
    net.check_alive().unwrap();
}
