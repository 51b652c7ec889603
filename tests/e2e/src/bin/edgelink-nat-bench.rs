//! The matrix of specification §6.1 many times over, in namespaces with real NAT routers: how soon each pair is direct, and
//! how often.
//!
//! `edgelink-nat-bench [lan] [RUNS [DELAY_MS [FILE]]]`: the delay of each site's link one way (two of them lie between two
//! nodes), and a file of Markdown whose table between `<!-- matrix -->` and `<!-- end -->` is replaced; with `lan` two nodes
//! on one network, and the table between `<!-- lan -->` and `<!-- end lan -->`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use anyhow::{Context, Result};
use edgelink_e2e::lan::{self, Neighbours};
use edgelink_e2e::p2p::{Cell, Matrix, Sites, lab, table};
use std::time::Duration;

const BEGIN: &str = "<!-- matrix -->\n";
const END: &str = "<!-- end -->";
/// Easy pairs need a second, hard ones three attempts and a minute of guessing.
const PATIENCE: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(95)];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let lan = arguments.next_if(|word| word == "lan").is_some();
    let runs: usize = arguments.next().map_or(Ok(10), |n| n.parse()).context("RUNS is no number")?;
    let delay: u64 = arguments.next().map_or(Ok(12), |n| n.parse()).context("DELAY_MS is no number")?;
    let file = arguments.next();
    let Some(lab) = lab()? else { return Ok(()) };
    if lan {
        let sites = Sites::start(&lab)?;
        let neighbours = Neighbours::start(&sites, Duration::from_millis(delay))?;
        let mut all = Vec::new();
        for run in 1..=runs {
            let trials = neighbours.run(PATIENCE[0])?;
            eprintln!("run {run} of {runs}\n{}", lan::table(&trials));
            all.extend(trials);
        }
        return report(&lan::table(&all), file.as_deref(), ["<!-- lan -->\n", "<!-- end lan -->"]);
    }
    let matrix = Matrix::start(&lab, Duration::from_millis(delay))?;
    matrix.wait_named()?;
    let mut all: Vec<Vec<Cell>> = Vec::new();
    for run in 1..=runs {
        if run > 1 {
            matrix.reset()?;
        }
        let cells = matrix.run(PATIENCE)?;
        eprintln!("run {run} of {runs}\n{}", table(std::slice::from_ref(&cells)));
        all.push(cells);
    }
    report(&table(&all), file.as_deref(), [BEGIN, END])
}

/// Prints a table, and puts it into its place in a file.
fn report(text: &str, file: Option<&str>, [begin, end]: [&str; 2]) -> Result<()> {
    println!("{text}");
    if let Some(file) = file {
        let page = std::fs::read_to_string(file).with_context(|| file.to_owned())?;
        let (head, rest) = page.split_once(begin).with_context(|| format!("no {begin:?} in {file}"))?;
        let (_, tail) = rest.split_once(end).with_context(|| format!("no {end:?} in {file}"))?;
        std::fs::write(file, [head, begin, "\n", text, "\n", end, tail].concat())?;
    }
    Ok(())
}
