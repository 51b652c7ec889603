//! The laboratory by hand.
#![allow(clippy::disallowed_methods, reason = "the testbed works on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
};

use common::SOON;
use edgelink_testbed::wait;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn testbed(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edgelink-testbed")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn two_nats_are_described_and_a_command_runs_behind_one() {
    let output = testbed(&["nat", "--left", "symmetric", "--right", "full-cone", "--delay", "5ms"]);
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    let has = |part: &str| assert!(out.contains(part), "{part:?} is not in\n{out}");
    has("left   symmetric: mapping address-and-port-dependent, filtering address-and-port-dependent, ports not kept");
    has("right  full cone: mapping endpoint-independent, filtering endpoint-independent, ports kept");
    has("outer address 203.0.113.101");
    has("the two hosts reach each other");
    let out = text(&testbed(&["nat", "--left", "symmetric", "--right", "port-restricted"]).stdout);
    assert!(out.contains("do not reach"), "{out}");

    let ping = ["ping", "-n", "-q", "-c", "12", "-i", "0.02", "203.0.113.10"];
    let nat = ["nat", "--left", "symmetric", "--right", "udp-blocked", "--host", "right", "--delay", "20ms", "--"];
    let output = testbed(&[&nat[..], &ping].concat());
    let out = text(&output.stdout);
    assert!(output.status.success() && out.contains("12 received") && out.contains("min/avg/max/mdev = 40."), "{out}");
    assert_eq!(testbed(&["nat", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
}

#[test]
fn a_link_is_measured() {
    let output = testbed(&["measure-link", "--delay", "40ms", "--rate", "20mbit", "--seconds", "1"]);
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    let number = |row: &str| -> f64 {
        let line = out.lines().find(|line| line.starts_with(row)).unwrap_or_else(|| panic!("{row} is not in\n{out}"));
        line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
    };
    assert!((80.0..82.0).contains(&number("ping")), "{out}");
    assert!((40.0..41.0).contains(&number("one way")), "{out}");
    assert_eq!(number("packets"), 0.0, "{out}");
    assert!((5.0..25.0).contains(&number("TCP")), "{out}");
}

#[test]
fn bad_input_is_explained() {
    for (arguments, wanted) in [
        (&["nat", "--left", "cone"][..], "there is no NAT called \"cone\"; there are none, full-cone, restricted-cone"),
        (&["nat", "--loss", "150%"], "150% is out of 0% to 100%"),
        (&["nat", "--loss", "0.1"], "is no share; write it like 1% or 0.5%"),
        (&["nat", "--delay", "40"], "is no time; write it like 40ms"),
        (&["measure-link", "--rate", "fast"], "is no rate; write it like"),
        (&["measure-link", "--rate", "1bit"], "rate of 1 bit/s is out of"),
        (&["measure-link", "--delay", "10ms", "--jitter", "20ms"], "jitter of 20ms is more than the delay of 10ms"),
        (&["nat", "--left", "none", "--left-carrier", "symmetric"], "needs one of its own"),
        (&["nat", "--", "/no/such/program"], "cannot start \"/no/such/program\""),
    ] {
        let output = testbed(arguments);
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains(wanted), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
    }
    let help = text(&testbed(&["nat", "--help"]).stdout);
    assert!(help.contains("--left <NAT>") && help.contains("Examples:"), "{help}");
}

/// Networks, processes, files: whatever way it ends.
#[test]
fn nothing_is_left_however_it_ends() {
    for signal in [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM] {
        let script = "echo $$ $PPID; readlink /proc/self/ns/net; trap '' INT TERM; while :; do sleep 1; done";
        let mut victim = Command::new(env!("CARGO_BIN_EXE_edgelink-testbed"))
            .args(["nat", "--delay", "10ms", "--loss", "1%", "--", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines().map_while(Result::ok);
        lines.next().unwrap();
        let net = lines.next().unwrap();
        assert!(net.starts_with("net:["), "{net}");
        let users = || {
            let links = fs::read_dir("/proc").unwrap().map_while(Result::ok).map(|entry| entry.path().join("ns/net"));
            links.filter(|link| fs::read_link(link).is_ok_and(|target| target.as_os_str() == net.as_str())).count()
        };
        assert!(users() > 0);
        kill(Pid::from_raw(i32::try_from(victim.id()).unwrap()), signal).unwrap();
        assert!(!victim.wait().unwrap().success());
        wait::until("the end of everything", SOON, || (users() == 0).then_some(())).unwrap();
    }
}
