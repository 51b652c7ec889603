//! TCP over bad links: a plain connection, the same through a direct path, and through a relay. A Markdown table on stdout.
//!
//! `edgelink-link-bench [SECONDS [CASE…]]`, a case being `RTT_MS/LOSS_PERCENT/RATE_MBIT[/LEGS[/QUEUE_MS]]`, such as `80/0.1/100`. The bad link is between node a and the router, and with
//! LEGS 2 there is another like it, each with half of the round trip, between the router and node b. Every case is measured with `bbr` and
//! `cubic` as the congestion control of the connection inside. A cell is what arrived in Mbit/s: of the whole connection, and
//! after the first quarter of its time; relayed ones also have the round trip of a ping beside it, idle and meanwhile.
//!
//! `LINK_BENCH_OUTER` names the congestion control of the connections to the relay (otherwise it is this machine's),
//! `LINK_BENCH_WMEM` is `net.ipv4.tcp_wmem` on all hosts, `LINK_BENCH_WAYS` a part of `plain,direct,relayed`, `LINK_BENCH_INSIDE` of `bbr,cubic`, and `LINK_BENCH_SAMPLES` a
//! directory for what `ss` says of every TCP connection twice a second, with what client and relay dropped.
#![expect(clippy::print_stdout, reason = "a program for people")]
#![expect(clippy::disallowed_methods, reason = "it works on the real clock")]

use anyhow::{Context, Result, anyhow, bail};
use edgelink_api::local::PathKind;
use edgelink_e2e::{Net, NetOptions, SOON};
use edgelink_testbed::{Firewall, Host, Impairment, Queue, measure, probe::Inside};
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const DEFAULT: [&str; 7] = ["20/0/100", "20/1/100", "80/0/100", "80/0.1/100", "80/1/100", "150/0/20", "150/0/200/2"];
/// Queue before the rate of a link, unless the case says otherwise.
const QUEUE_MS: f64 = 50.0;
/// Until a direct path is there.
const PATIENCE: Duration = Duration::from_secs(30);

struct Case {
    rtt: Duration,
    loss: f64,
    rate: u64,
    legs: u32,
    queue: Duration,
}

impl Case {
    fn parse(text: &str) -> Result<Self> {
        let parts: Vec<f64> =
            text.split('/').map(str::parse).collect::<Result<_, _>>().with_context(|| text.to_owned())?;
        let [rtt, loss, rate, ..] = parts[..] else { bail!("{text} is no RTT/LOSS/RATE") };
        let legs = parts.get(3).map_or(1, |legs| *legs as u32).clamp(1, 2);
        let queue = parts.get(4).copied().unwrap_or(QUEUE_MS);
        let [rtt, queue] = [rtt, queue].map(|ms| Duration::from_secs_f64(ms / 1e3));
        Ok(Self { rtt, loss: loss / 100.0, rate: (rate * 1e6) as u64, legs, queue })
    }

    fn link(&self) -> Impairment {
        let delay = self.rtt / 2 / self.legs;
        Impairment::none().delay(delay).loss(self.loss).rate(self.rate).queue(Queue::Time(self.queue))
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u32 = arguments.next().map_or(Ok(6), |n| n.parse()).context("SECONDS is no number")?;
    let mut cases: Vec<String> = arguments.collect();
    if cases.is_empty() {
        cases = DEFAULT.map(str::to_owned).to_vec();
    }
    println!("| RTT ms | loss % | Mbit/s | inside | plain | direct | relayed |\n|---|---|---|---|---|---|---|");
    for case in &cases {
        let case = Case::parse(case)?;
        let inside = std::env::var("LINK_BENCH_INSIDE").unwrap_or_else(|_| "bbr,cubic".to_owned());
        let mut rows: Vec<_> = inside.split(',').map(|name| [name.to_owned(), String::new()]).collect();
        for p2p in [true, false] {
            run(&case, p2p, seconds, &mut rows)?;
        }
        let legs = if case.legs > 1 { format!(" over {} legs", case.legs) } else { String::new() };
        for [name, cells] in rows {
            let (rtt, loss) = (case.rtt.as_millis(), case.loss * 100.0);
            println!("| {rtt}{legs} | {loss} | {} | {name} |{cells}", case.rate / 1_000_000);
        }
    }
    Ok(())
}

/// Whether a way is to be measured.
fn wanted(way: &str) -> bool {
    std::env::var("LINK_BENCH_WAYS").map_or(true, |ways| ways.split(',').any(|one| one == way))
}

/// Measures the plain and the direct path, or the relayed one, and appends the cells.
fn run(case: &Case, p2p: bool, seconds: u32, rows: &mut [[String; 2]]) -> Result<()> {
    let ways: &[&str] = if p2p { &["plain", "direct"] } else { &["relayed"] };
    if !ways.iter().any(|way| wanted(way)) {
        rows.iter_mut().for_each(|[_, cells]| cells.push_str(&" – |".repeat(ways.len())));
        return Ok(());
    }
    let links = vec![Some(case.link()), (case.legs > 1).then(|| case.link())];
    let Some(mut net) = Net::lab(&["a", "b"], NetOptions { links, ..NetOptions::default() })? else { return Ok(()) };
    net.topology.router.firewall(&Firewall::Open)?;
    for (name, key) in
        [("LINK_BENCH_OUTER", "net.ipv4.tcp_congestion_control"), ("LINK_BENCH_WMEM", "net.ipv4.tcp_wmem")]
    {
        if let Ok(value) = std::env::var(name) {
            for host in net.topology.nodes.iter().chain([&net.topology.relay]) {
                host.sysctl(key, &value)?;
            }
        }
    }
    for node in &mut net.nodes {
        node.configure(&json!({ "p2p": { "enabled": p2p } }))?;
    }
    net.start_controller()?;
    (0..2).try_for_each(|index| net.join(index))?;
    let [a, b] = &net.nodes[..] else { bail!("two nodes") };
    a.wait_ping(b.overlay()?, SOON)?;
    a.wait_status("the path to be measured", PATIENCE, |status| {
        let kind = status.peers.iter().find(|peer| peer.name == "b").map(|peer| peer.path.kind);
        kind.is_some_and(|kind| matches!(kind, PathKind::P2p | PathKind::Lan) == p2p)
    })?;
    let under = IpAddr::from(Ipv4Addr::new(10, 2, 0, 2));
    for [name, cells] in rows {
        for (way, address) in ways.iter().zip([if p2p { under } else { b.overlay()? }, b.overlay()?]) {
            let cell = if wanted(way) {
                measured(&net, way, address, seconds, name).unwrap_or_else(|error| format!("failed: {error:#}"))
            } else {
                "–".to_owned()
            };
            write!(cells, " {cell} |")?;
        }
    }
    Ok(())
}

/// One cell.
fn measured(net: &Net, way: &str, address: IpAddr, seconds: u32, congestion: &str) -> Result<String> {
    let [a, b] = &net.nodes[..] else { bail!("two nodes") };
    let target = Inside { host: &b.host, address };
    let done = AtomicBool::new(false);
    let idle = median(&a.host, address, 10)?;
    let (moved, pinged) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(net, &format!("{way}-{congestion}"), &done));
        // From the third second, when the queues are what they will be.
        let pinging = scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(3));
            median(&a.host, address, seconds.saturating_sub(4) * 10)
        });
        let moved = measure::throughput(&a.host, target, seconds, Some(congestion));
        done.store(true, Ordering::Relaxed);
        let pinged = pinging.join().map_err(|_| anyhow!("the ping's thread panicked"));
        sampler.join().map_err(|_| anyhow!("the sampler panicked"))??;
        anyhow::Ok((moved?, pinged?))
    })?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let ping = pinged.map_or_else(|_| "?".to_owned(), |time| format!("{:.0}", ms(time)));
    Ok(format!("{:.1} / {:.1}, {:.0} → {ping} ms", moved.whole / 1e6, moved.settled / 1e6, ms(idle)))
}

/// The median round trip of so many pings, a tenth of a second apart.
fn median(from: &Host, to: IpAddr, count: u32) -> Result<Duration> {
    let (count, to) = (count.to_string(), to.to_string());
    let printed = from.command("ping").args(["-n", "-c", &count, "-i", "0.1", "-W", "5", &to]).output()?.stdout;
    let times = printed.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok());
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).with_context(|| format!("no answer: {printed}"))?;
    Ok(Duration::from_secs_f64(median / 1e3))
}

/// Writes down what the kernel says of all connections until it is `done`, and what was dropped.
fn sample(net: &Net, name: &str, done: &AtomicBool) -> Result<()> {
    let Ok(dir) = std::env::var("LINK_BENCH_SAMPLES") else { return Ok(()) };
    let mut out = std::fs::File::create(std::path::Path::new(&dir).join(name))?;
    let began = Instant::now();
    let hosts = || net.topology.nodes.iter().chain([&net.topology.relay]);
    while !done.load(Ordering::Relaxed) {
        for host in hosts() {
            let sockets = host.command("ss").args(["-tinmOH"]).run()?;
            writeln!(out, "== {:.2} {}\n{}", began.elapsed().as_secs_f64(), host.name(), sockets.trim_end())?;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    for node in &net.nodes {
        writeln!(out, "== drops {}: {:?}", node.host.name(), node.status()?.drops)?;
    }
    for reason in ["codel", "queue_full", "too_old", "budget", "not_connected"] {
        let count = net.metric(&format!("edgelink_relay_dropped_total{{reason=\"{reason}\"}}"));
        writeln!(out, "== drops relay: {reason} {count:?}")?;
    }
    Ok(())
}
