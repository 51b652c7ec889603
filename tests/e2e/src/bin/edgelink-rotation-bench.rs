//! Node keys that rotate every ten seconds for ten minutes, under iperf3 and ping: what is lost.
//!
//! `edgelink-rotation-bench [SECONDS [relay|direct [MBIT]]]`; the result is a line for docs/benchmarks.md. Fails when a ping
//! was lost, a second passed without a byte, or keys did not rotate.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]
#![expect(clippy::disallowed_methods, reason = "it works on the real clock")]

use anyhow::{Context, Result, bail};
use edgelink_api::local::PathKind;
use edgelink_e2e::{Net, NetOptions, Pinger, SOON};
use edgelink_testbed::wait;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

/// The least period that can be set.
const PERIOD: u32 = 10;
const PORT: u16 = 5201;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u32 = arguments.next().map_or(Ok(600), |n| n.parse()).context("SECONDS is no number")?;
    let path = arguments.next().unwrap_or_else(|| "relay".to_owned());
    let mbit: u32 = arguments.next().map_or(Ok(50), |n| n.parse()).context("MBIT is no number")?;
    let direct = match path.as_str() {
        "relay" => false,
        "direct" => true,
        other => bail!("there is no path {other}; there are relay, direct"),
    };
    let controller = json!({ "security": { "node_key_rotate_hours": f64::from(PERIOD) / 3600.0 } });
    let options = NetOptions { controller: Some(controller), ..NetOptions::default() };
    let Some(net) = Net::start_with(&["a", "b"], options)? else { return Ok(()) };
    let [a, b] = net.nodes.as_slice() else { bail!("two nodes") };
    if direct {
        net.topology.router.nft("flush ruleset")?;
        let wanted = |kind| matches!(kind, PathKind::Lan | PathKind::P2p);
        let pinger = Pinger::start(a, b.overlay()?)?;
        wait::until("a direct path", Duration::from_secs(90), || a.peer("b").ok().filter(|b| wanted(b.path.kind)))?;
        drop(pinger);
    }

    let at_b = b.overlay()?.to_string();
    let pingers = [Pinger::start(a, b.overlay()?)?, Pinger::start(b, a.overlay()?)?];
    let server = b.host.command("iperf3").args(["-s", "-1", "--forceflush", "-p", &PORT.to_string()]).spawn_logged()?;
    server.wait_line("Server listening", SOON)?;
    let (time, rate, port) = (seconds.to_string(), format!("{mbit}M"), PORT.to_string());
    let client = a.host.command("iperf3").args(["-c", &at_b, "-p", &port, "-t", &time, "-b", &rate, "-i", "1", "-J"]);
    let client = client.timeout(Duration::from_secs(u64::from(seconds) + 120));
    let running = thread::spawn(move || client.run());

    // Every key that the controller has heard of.
    let mut keys: [BTreeSet<String>; 2] = Default::default();
    let began = Instant::now();
    while !running.is_finished() {
        let nodes = net.ctl_json(&["node", "list"])?;
        for (seen, node) in keys.iter_mut().zip(nodes.as_array().context("no list")?) {
            seen.insert(node.get("node_key_pub").and_then(Value::as_str).unwrap_or_default().to_owned());
        }
        thread::sleep(Duration::from_secs(2));
    }
    let took = began.elapsed();
    let text = running.join().map_err(|_| anyhow::anyhow!("iperf3's thread panicked"))??;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).unwrap_or_default();
    let intervals = report.get("intervals").and_then(Value::as_array).context("no intervals")?;
    let moved = |interval: &&Value| interval.pointer("/sum/bytes").and_then(Value::as_f64).unwrap_or_default();
    let silent = intervals.iter().filter(|interval| moved(interval) == 0.0).count();

    let mut pings = (0, 0);
    for pinger in pingers {
        let seen = pinger.stop()?;
        // The last may still have been on its way.
        let lost = seen.sent.saturating_sub(seen.answered.len() as u64);
        pings = (pings.0 + seen.sent, pings.1 + if lost == 1 { 0 } else { lost });
    }
    let rotations: usize = keys.iter().map(|seen| seen.len().saturating_sub(1)).sum();
    let drops: Vec<_> =
        net.nodes.iter().map(|node| Ok((node.host.name().to_owned(), node.status()?.drops))).collect::<Result<_>>()?;
    println!(
        "| path | seconds | rotations | MB moved | of Mbit/s offered | retransmits | seconds without a byte | pings | lost |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    println!(
        "| {path} | {:.0} | {rotations} | {:.0} | {:.1} of {mbit} | {:.0} | {silent} | {} | {} |",
        took.as_secs_f64(),
        number("/end/sum_received/bytes") / 1e6,
        number("/end/sum_received/bits_per_second") / 1e6,
        number("/end/sum_sent/retransmits"),
        pings.0,
        pings.1,
    );
    eprintln!("drops: {drops:?}");
    net.check_alive()?;
    let least = usize::try_from(seconds / PERIOD).unwrap_or_default().saturating_sub(2) * 2;
    if pings.1 > 0 || silent > 0 || rotations < least {
        bail!("lost: {} pings, {silent} seconds; rotations: {rotations}, at least {least} expected", pings.1);
    }
    Ok(())
}
