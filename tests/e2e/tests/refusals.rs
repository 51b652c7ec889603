//! Mistakes that people make: each is refused with a message that says what to do, and nobody else notices.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use edgelink_api::local::{DaemonState, Status};
use edgelink_e2e::{Net, NetOptions, Node, Pinger, SOON, binary};
use edgelink_testbed::{Output, wait};
use serde_json::json;

/// Two nodes that ping each other and more hosts on which nothing runs yet.
fn pair_and(more: &[&str]) -> Option<(Net, Pinger)> {
    let mut net = Net::lab(&[&["a", "b"], more].concat(), NetOptions::default()).unwrap()?;
    net.start_controller().unwrap();
    net.join(0).unwrap();
    net.join(1).unwrap();
    let pinger = Pinger::start(&net.nodes[0], net.nodes[1].overlay().unwrap()).unwrap();
    Some((net, pinger))
}

/// The other pair has noticed nothing, and nobody has panicked.
fn unharmed(net: &Net, pinger: Pinger) {
    net.check_unharmed(pinger).unwrap();
}

fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}{}", output.stdout, output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} is not in: {}", output.stderr);
    }
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

#[test]
fn wrong_and_expired_auth_keys() {
    let Some((mut net, pinger)) = pair_and(&["c"]) else { return };
    let (url, pin) = (net.url().unwrap().to_owned(), net.join_flag("--pin").unwrap().to_owned());
    let short = net.auth_key("default", &["--preauthorize", "--reusable", "--expires", "1s"]).unwrap();
    let made = Instant::now();
    net.nodes[2].run().unwrap();
    let c = &net.nodes[2];

    let wrong = format!("elk_{}", "A".repeat(43));
    let output = c.up(&[&url, "--key", &wrong, "--pin", &pin]).unwrap();
    let advice = "ask an administrator for a new one (`edgelink-ctl token generate --type auth-key`)";
    assert_refused(&output, 4, &["this auth key is unknown or already used", advice, "(error 1001)"]);
    assert_eq!(c.status().unwrap().state, DaemonState::Refused);
    assert!(!c.process().unwrap().stderr().contains(&wrong), "the key is in the log");

    wait::until("the key's end", SOON, || (made.elapsed() > Duration::from_millis(1100)).then_some(())).unwrap();
    let output = c.up(&[&url, "--key", &short, "--pin", &pin]).unwrap();
    assert_refused(&output, 4, &["this auth key has expired", advice, "(error 1002)"]);

    // A one-shot key opens once.
    let once = net.auth_key("default", &["--preauthorize"]).unwrap();
    let output = c.up(&[&url, "--key", &once, "--pin", &pin]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", output.stderr);
    let nodes = net.ctl_json(&["node", "list"]).unwrap();
    assert_eq!(nodes.as_array().unwrap().len(), 3, "refusals left no record");
    unharmed(&net, pinger);
}

#[test]
fn a_wrong_pin_and_no_pin() {
    let Some((mut net, pinger)) = pair_and(&["c"]) else { return };
    let (url, key) = (net.url().unwrap().to_owned(), net.join_flag("--key").unwrap().to_owned());
    let pin = net.join_flag("--pin").unwrap().to_owned();
    net.nodes[2].run().unwrap();
    let c = &net.nodes[2];
    let wrong = format!("sha256:{}=", "A".repeat(43));
    let output = c.up(&[&url, "--key", &key, "--pin", &wrong, "--timeout", "1"]).unwrap();
    let words = ["the configured pin is", &wrong, "but the server presented", &pin, "somebody is in between"];
    assert_refused(&output, 3, &words);
    assert!(c.status().unwrap().node_id.is_none());

    let output = c.up(&[&url, "--pin", "sha256:short", "--timeout", "1"]).unwrap();
    assert_refused(&output, 2, &["\"sha256:short\" is no pin", "as the controller prints it at start"]);
    let output = c.up(&["http://192.0.2.10", "--timeout", "1"]).unwrap();
    assert_refused(&output, 2, &["is no controller URL"]);

    // The right one cures it.
    let output = c.up(&[&url, "--pin", &pin]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", output.stderr);
    unharmed(&net, pinger);
}

#[test]
fn a_configuration_with_an_unknown_key() {
    let Some(net) = Net::lab(&["a"], NetOptions::default()).unwrap() else { return };
    let file = net.lab_ref().dir().join("wrong.json");
    let start = |program: &str, config: serde_json::Value| {
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = net.nodes[0].host.command(binary(program).unwrap());
        if program == "edgelink" {
            command = command.arg("run").arg("--socket").arg(net.nodes[0].socket());
        }
        let state = net.lab_ref().dir().join("state");
        command.arg("--config").arg(&file).arg("--state-dir").arg(state).timeout(SOON).output().unwrap()
    };
    let name = file.to_str().unwrap();
    let output = start("edgelink", json!({ "contoller": "wss://192.0.2.10" }));
    assert_refused(&output, 1, &[name, "contoller", "unknown key", "did you mean `controller`"]);
    let output = start("edgelink", json!({ "tun": { "mtu": "big" } }));
    assert_refused(&output, 1, &[name, "`tun.mtu` must be a whole number", "not a string"]);
    let output = start("edgelink-controller", json!({ "listen": { "htpp": "0.0.0.0:443" } }));
    assert_refused(&output, 1, &[name, "listen.htpp", "unknown key", "did you mean `listen.http`"]);
    let output = start("edgelink-controller", json!({ "jwt": { "secret": "your-secret-key-change-me" } }));
    assert_refused(&output, 1, &["jwt.secret", "openssl rand -base64 48"]);
    assert!(!net.lab_ref().dir().join("state").exists(), "nothing was made on disk");
    net.nodes[0].check_clean().unwrap();
}

#[test]
fn a_port_in_use_and_a_second_daemon() {
    let Some((net, pinger)) = pair_and(&[]) else { return };
    let state = net.lab_ref().dir().join("second");
    let second = net.topology.relay.command(binary("edgelink-controller").unwrap());
    let output = second.arg("--state-dir").arg(&state).timeout(SOON).output().unwrap();
    assert_refused(&output, 1, &["0.0.0.0:443 is already in use", "ss -ltnp", "or listen on another port"]);
    assert!(!state.exists(), "nothing was made on disk");

    // A second client with the same state, with the same socket, and with the same interface.
    let a = &net.nodes[0];
    let output = a.daemon().unwrap().timeout(SOON).output().unwrap();
    assert_refused(&output, 1, &["another edgelink daemon uses", "stop it, or give this one a directory of its own"]);
    let second = |socket: PathBuf| {
        let run = a.host.command(binary("edgelink").unwrap()).arg("run").arg("--socket").arg(socket);
        run.arg("--state-dir")
            .arg(&state)
            .env("EDGELINK_CONTROLLER", net.url().unwrap())
            .timeout(SOON)
            .output()
            .unwrap()
    };
    assert_refused(&second(a.socket()), 1, &["another daemon answers at", "a socket of its own with --socket"]);
    let words = ["interface wss-mesh0 exists already: stop the program that owns it", "tun.name"];
    assert_refused(&second(state.with_extension("sock")), 1, &words);
    unharmed(&net, pinger);
}

#[test]
fn no_permission_for_the_tun() {
    let Some(net) = Net::lab(&["a"], NetOptions::default()).unwrap() else { return };
    let a = &net.nodes[0];
    let run = |words: &[&str]| {
        let arguments = a.daemon_arguments().unwrap();
        a.host.command(words[0]).args(&words[1..]).arg(binary("edgelink").unwrap()).args(arguments).timeout(SOON)
    };
    if edgelink_testbed::tools::find("setpriv").is_some() {
        let output = run(&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]).output().unwrap();
        let words = ["not allowed to create the TUN interface: run as root or grant CAP_NET_ADMIN", "setcap"];
        assert_refused(&output, 1, &words);
        assert!(!a.socket().exists());
    } else {
        eprintln!("NOT TESTED: without CAP_NET_ADMIN, since there is no setpriv (apt-get install util-linux)");
    }
    a.check_clean().unwrap();
}

/// A library that shifts the wall clock of a program, for `LD_PRELOAD`.
fn clock_shifter(net: &Net) -> Option<PathBuf> {
    const SOURCE: &str = r#"
        #define _GNU_SOURCE
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        int clock_gettime(clockid_t id, struct timespec *now) {
            const char *shift = getenv("SHIFT_CLOCK_SECONDS");
            int failed = (int)syscall(SYS_clock_gettime, id, now);
            if (!failed && shift && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += atol(shift);
            return failed;
        }
    "#;
    let (source, library) = (net.lab_ref().dir().join("shift.c"), net.lab_ref().dir().join("shift.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("NOT TESTED: wrong clocks, since there is no working C compiler (apt-get install gcc)");
        return None;
    }
    Some(library)
}

/// The first word of a log line is the time by the program's own clock.
fn own_clock_ahead(node: &Node) -> f64 {
    let log = node.process().unwrap().stderr();
    let stamp = log.split_whitespace().next().unwrap();
    let own = Command::new("date").args(["+%s", "-d", stamp]).output().unwrap();
    let own: f64 = String::from_utf8(own.stdout).unwrap().trim().parse().unwrap();
    own - SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn clocks_that_are_wrong() {
    let Some((mut net, pinger)) = pair_and(&["fast", "slow"]) else { return };
    let Some(library) = clock_shifter(&net) else { return };
    let join = net.join_command().to_owned();
    for (index, shift) in [(2, 600.0), (3, -600.0)] {
        let node = &mut net.nodes[index];
        let shifted = node.daemon().unwrap().env("LD_PRELOAD", &library).env("SHIFT_CLOCK_SECONDS", shift.to_string());
        node.run_as(shifted).unwrap();
        let ahead = own_clock_ahead(node);
        assert!((ahead - shift).abs() < 20.0, "the control: its clock is {ahead} s ahead");
        node.shell(&join).unwrap().run().unwrap();
        node.process().unwrap().wait_line("ready ", SOON).unwrap();
    }
    for (one, other) in [(2, "a"), (3, "b"), (2, "slow"), (3, "fast"), (0, "fast"), (1, "slow")] {
        net.nodes[one].wait_peer(other).unwrap();
    }
    // With a node whose clock is right, and with one that is twenty minutes off.
    for (from, to) in [(2, 0), (3, 1), (2, 3), (3, 2)] {
        net.nodes[from].wait_ping(net.nodes[to].overlay().unwrap(), Duration::from_secs(3)).unwrap();
    }
    for node in &net.nodes {
        let status = node.status().unwrap();
        assert!(status.health.is_empty(), "{:?}", status.health);
    }
    unharmed(&net, pinger);
}

#[test]
fn a_full_address_pool() {
    let Some((mut net, pinger)) = pair_and(&["c", "d", "e"]) else { return };
    net.ctl(&["network", "create", "--name", "tiny", "--subnet", "10.9.9.0/30"]).unwrap().run().unwrap();
    let key = net.auth_key("tiny", &["--reusable", "--preauthorize"]).unwrap();
    let (url, pin) = (net.url().unwrap().to_owned(), net.join_flag("--pin").unwrap().to_owned());
    for (index, address) in [(2, Some("10.9.9.1")), (3, Some("10.9.9.2")), (4, None)] {
        net.nodes[index].run().unwrap();
        let output = net.nodes[index].up(&[&url, "--key", &key, "--pin", &pin]).unwrap();
        match address {
            Some(address) => {
                // Its IPv6 address follows.
                let begin = format!("up: {} is {address}, fd", ["c", "d"][index - 2]);
                assert!(output.stdout.starts_with(&begin), "{}", output.stdout);
                assert!(output.stdout.ends_with(" in network tiny\n"), "{}", output.stdout);
            }
            None => {
                let words = ["no free address is left in the network's subnet 10.9.9.0/30", "delete unused nodes"];
                assert_refused(&output, 4, &words);
            }
        }
    }
    // Networks do not see each other, by name, id or address.
    net.nodes[2].wait_ping("10.9.9.2".parse().unwrap(), SOON).unwrap();
    let names = |status: Status| status.peers.into_iter().map(|peer| peer.name).collect::<Vec<_>>();
    assert_eq!(names(net.nodes[2].status().unwrap()), ["d"]);
    assert_eq!(names(net.nodes[0].status().unwrap()), ["b"]);
    // A place that becomes free is given out again.
    net.ctl(&["node", "delete", "d"]).unwrap().run().unwrap();
    // Its daemon does not come back by itself with the key that has served: it knocks like a stranger.
    net.nodes[3].wait_state(DaemonState::WaitingForAuthorization, SOON).unwrap();
    let output = net.nodes[4].up(&[&url, "--key", &key, "--pin", &pin]).unwrap();
    assert!(output.stdout.starts_with("up: e is 10.9.9.2, fd"), "{}{}", output.stdout, output.stderr);
    unharmed(&net, pinger);
}

#[test]
fn a_node_waits_for_its_authorization_and_loses_it() {
    let Some((mut net, pinger)) = pair_and(&["c"]) else { return };
    let (url, pin) = (net.url().unwrap().to_owned(), net.join_flag("--pin").unwrap().to_owned());
    let at_a = net.nodes[0].overlay().unwrap();
    net.nodes[2].run().unwrap();
    let c = &net.nodes[2];
    let output = c.up(&[&url, "--pin", &pin]).unwrap();
    assert_refused(&output, 4, &["waits for authorization", "edgelink-ctl node authorize 3", "(error 1006)"]);
    let status = c.status().unwrap();
    assert_eq!((status.state, status.addresses.len()), (DaemonState::WaitingForAuthorization, 0));
    let waiting = net.ctl_json(&["node", "show", "c"]).unwrap();
    assert_eq!((&waiting["authorized"], &waiting["virtual_ip"]), (&false.into(), &serde_json::Value::Null));
    assert!(net.nodes[0].status().unwrap().peers.iter().all(|peer| peer.name != "c"), "nobody hears of it");

    net.ctl(&["node", "authorize", "c"]).unwrap().run().unwrap();
    let began = Instant::now();
    c.process().unwrap().wait_line("ready ", Duration::from_secs(2)).unwrap();
    eprintln!("authorized: ready after {:.0?}", began.elapsed());
    c.wait_ping(at_a, Duration::from_secs(2)).unwrap();
    let at_c = c.overlay().unwrap();

    // Barred: within a second the relay and the peers are done with it.
    net.ctl(&["node", "deauthorize", "c"]).unwrap().run().unwrap();
    let began = Instant::now();
    let gone = |status: &Status| status.peers.iter().all(|peer| peer.name != "c");
    net.nodes[0].wait_status("c gone", Duration::from_secs(2), gone).unwrap();
    let status = c.wait_state(DaemonState::WaitingForAuthorization, Duration::from_secs(2)).unwrap();
    eprintln!("deauthorized: cut off after {:.0?}", began.elapsed());
    assert!(status.state_message.unwrap().contains("an administrator withdrew this node's authorization"));
    let nodes = || net.metric("edgelink_relay_nodes").unwrap();
    wait::until("the relay without c", Duration::from_secs(2), || (nodes() == 2).then_some(())).unwrap();
    assert!(!c.host.pings(at_a).unwrap() && !net.nodes[0].host.pings(at_c).unwrap());

    // And let in again, with the same address.
    net.ctl(&["node", "authorize", "c"]).unwrap().run().unwrap();
    c.wait_state(DaemonState::Up, Duration::from_secs(2)).unwrap();
    c.wait_ping(at_a, Duration::from_secs(3)).unwrap();
    assert_eq!(c.overlay().unwrap(), at_c);
    // While it was barred the others' packets to it had no way: those are counted, all else is well.
    pinger.stop_without_loss().unwrap();
    net.check_alive().unwrap();
}
