//! Many failovers in a row, with a packet every 10 ms: how long traffic stops, and how much of it is lost.
//!
//! `edgelink-failover-bench [TRIALS [EVENT…]]`; the results are lines for docs/benchmarks.md.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use anyhow::{Context, Result, bail};
use edgelink_e2e::failover::{Event, trial, web};
use std::time::Duration;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let trials: usize = arguments.next().map_or(Ok(20), |n| n.parse()).context("TRIALS is no number")?;
    let wanted: Vec<String> = arguments.collect();
    let known = Event::ALL.map(Event::name);
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no event {unknown}; there are {}", known.join(", "));
    }
    let Some(mut web) = web()? else { return Ok(()) };
    println!("| event | trials | gap ms: median | greatest | bound | packets lost: median | greatest | TCP survived |");
    println!("|---|---|---|---|---|---|---|---|");
    for event in Event::ALL.into_iter().filter(|event| wanted.is_empty() || wanted.iter().any(|w| w == event.name())) {
        let (mut gaps, mut lost, mut survived) = (Vec::new(), Vec::new(), 0);
        for number in 1..=trials {
            let outcome = trial(&mut web, event).with_context(|| format!("{}, trial {number}", event.name()))?;
            eprintln!("{} {number}/{trials}: {:?}", event.name(), outcome.udp);
            survived += 1;
            gaps.push(outcome.udp.gap);
            lost.push(outcome.udp.lost);
        }
        gaps.sort_unstable();
        lost.sort_unstable();
        let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
        println!(
            "| {} | {trials} | {:.0} | {:.0} | {:.0} | {} | {} | {survived} |",
            event.name(),
            ms(gaps.get(gaps.len() / 2)),
            ms(gaps.last()),
            ms(Some(&event.bound())),
            lost.get(lost.len() / 2).copied().unwrap_or_default(),
            lost.last().copied().unwrap_or_default(),
        );
    }
    Ok(())
}
