//! A stream of 1,000 packets a second while its direct path comes and goes: what is lost, doubled and late at each switch.
//!
//! `edgelink-switch-bench [SWITCHES [DELAY_MS]]`: so many switches each way, and the delay of each site's link one way (two
//! of them lie between the nodes). The result is a table for docs/benchmarks.md.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use anyhow::{Context, Result};
use edgelink_e2e::p2p::lab;
use edgelink_e2e::switching::{Pair, Switch};
use std::time::Duration;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let count: usize = arguments.next().map_or(Ok(100), |n| n.parse()).context("SWITCHES is no number")?;
    let delay: u64 = arguments.next().map_or(Ok(12), |n| n.parse()).context("DELAY_MS is no number")?;
    let Some(lab) = lab()? else { return Ok(()) };
    let pair = Pair::start(&lab, Duration::from_millis(delay))?;
    let mut n = 0;
    let switches = pair.switch(count, |to_direct, time| {
        n += 1;
        eprintln!("{n} of {}: {} after {time:.2?}", 2 * count, if to_direct { "direct" } else { "relayed" });
    })?;
    for switch in switches.iter().filter(|s| s.to_direct && s.lost + s.late > 0) {
        eprintln!("{switch:?}");
    }
    println!(
        "| switch | number | packets | lost | twice | overtaken by three | longest gap: median, greatest | time: median, greatest |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for to_direct in [true, false] {
        let these: Vec<&Switch> = switches.iter().filter(|switch| switch.to_direct == to_direct).collect();
        let sum = |of: fn(&Switch) -> u64| these.iter().map(|switch| of(switch)).sum::<u64>();
        let spread = |of: fn(&Switch) -> Duration| {
            let mut times: Vec<Duration> = these.iter().map(|switch| of(switch)).collect();
            times.sort_unstable();
            let (median, greatest) = (times.get(times.len() / 2), times.last());
            let seconds = |time: Option<&Duration>| time.map_or(0.0, Duration::as_secs_f64);
            format!("{:.2} s, {:.2} s", seconds(median), seconds(greatest))
        };
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            if to_direct { "relay → direct" } else { "direct → relay, UDP dropped without a word" },
            these.len(),
            sum(|s| s.sent),
            sum(|s| s.lost),
            sum(|s| s.twice),
            sum(|s| s.late),
            spread(|s| s.gap),
            spread(|s| s.time),
        );
    }
    Ok(())
}
