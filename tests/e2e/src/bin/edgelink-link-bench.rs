//! TCP over bad links: a plain connection, the same through a direct path, and through a relay. A Markdown table on stdout.
//!
//! `edgelink-link-bench [SECONDS [CASE…]]`, a case being `RTT_MS/LOSS_PERCENT/RATE_MBIT[/LEGS]`, such as `80/0.1/100`. The bad link is between node a and the router, and with
//! LEGS 2 there is another like it, each with half of the round trip, between the router and node b. Every case is measured with `bbr` and
//! `cubic` as the congestion control of the connection inside; `EDGELINK_OUTER` names that of the connections to the relay
//! (otherwise it is this machine's).
#![expect(clippy::print_stdout, reason = "a program for people")]

use anyhow::{Context, Result, bail};
use edgelink_api::local::PathKind;
use edgelink_e2e::{Net, NetOptions, SOON};
use edgelink_testbed::{Firewall, Impairment, Queue, measure, probe::Inside};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const DEFAULT: [&str; 7] = ["20/0/100", "20/1/100", "80/0/100", "80/0.1/100", "80/1/100", "150/0/20", "150/0/200/2"];
/// Queue before the rate of a link.
const QUEUE: Duration = Duration::from_millis(50);
/// Until a direct path is there.
const PATIENCE: Duration = Duration::from_secs(30);

struct Case {
    rtt: Duration,
    loss: f64,
    rate: u64,
    legs: u32,
}

impl Case {
    fn parse(text: &str) -> Result<Self> {
        let parts: Vec<f64> =
            text.split('/').map(str::parse).collect::<Result<_, _>>().with_context(|| text.to_owned())?;
        let [rtt, loss, rate, ..] = parts[..] else { bail!("{text} is no RTT/LOSS/RATE") };
        let legs = parts.get(3).map_or(1, |legs| *legs as u32).clamp(1, 2);
        Ok(Self { rtt: Duration::from_secs_f64(rtt / 1e3), loss: loss / 100.0, rate: (rate * 1e6) as u64, legs })
    }

    fn link(&self) -> Impairment {
        let delay = self.rtt / 2 / self.legs;
        Impairment::none().delay(delay).loss(self.loss).rate(self.rate).queue(Queue::Time(QUEUE))
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
        let mut rows = [["bbr".to_owned(), String::new()], ["cubic".to_owned(), String::new()]];
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

/// Measures the plain and the direct path, or the relayed one, and appends the cells.
fn run(case: &Case, p2p: bool, seconds: u32, rows: &mut [[String; 2]; 2]) -> Result<()> {
    let links = vec![Some(case.link()), (case.legs > 1).then(|| case.link())];
    let Some(mut net) = Net::lab(&["a", "b"], NetOptions { links, ..NetOptions::default() })? else { return Ok(()) };
    net.topology.router.firewall(&Firewall::Open)?;
    if let Ok(outer) = std::env::var("EDGELINK_OUTER") {
        for host in net.topology.nodes.iter().chain([&net.topology.relay]) {
            host.sysctl("net.ipv4.tcp_congestion_control", &outer)?;
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
        for (wanted, address) in [(p2p, under), (true, b.overlay()?)] {
            if wanted {
                let target = Inside { host: &b.host, address };
                let bits = measure::throughput(&a.host, target, seconds, Some(name));
                let cell =
                    bits.map_or_else(|error| format!(" failed: {error:#} |"), |bits| format!(" {:.1} |", bits / 1e6));
                cells.push_str(&cell);
            }
        }
    }
    Ok(())
}
