//! The matrix of specification §6.1 many times over, in namespaces with real NAT routers: how soon each pair is direct, and
//! how often.
//!
//! `edgelink-nat-bench [RUNS [DELAY_MS [FILE]]]`: the delay of each site's link one way (two of them lie between two
//! nodes), and a file of Markdown whose table between `<!-- matrix -->` and `<!-- end -->` is replaced.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use anyhow::{Context, Result};
use edgelink_e2e::p2p::{Cell, Matrix, lab, table};
use std::time::Duration;

const BEGIN: &str = "<!-- matrix -->\n";
const END: &str = "<!-- end -->";
/// Easy pairs need a second, hard ones three attempts and a minute of guessing.
const PATIENCE: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(95)];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let runs: usize = arguments.next().map_or(Ok(10), |n| n.parse()).context("RUNS is no number")?;
    let delay: u64 = arguments.next().map_or(Ok(12), |n| n.parse()).context("DELAY_MS is no number")?;
    let file = arguments.next();
    let Some(lab) = lab()? else { return Ok(()) };
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
    let text = table(&all);
    println!("{text}");
    if let Some(file) = file {
        let page = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        let (head, rest) = page.split_once(BEGIN).with_context(|| format!("no {BEGIN:?} in {file}"))?;
        let (_, tail) = rest.split_once(END).with_context(|| format!("no {END:?} in {file}"))?;
        std::fs::write(&file, [head, BEGIN, "\n", &text, "\n", END, tail].concat())?;
    }
    Ok(())
}
