//! `edgelink-sim`: scenarios by the thousand, one again, and how fast they are.
#![allow(clippy::disallowed_methods, reason = "how long a run takes is told by the real clock")]

use clap::{Parser, Subcommand};
use edgelink_sim::{Scenario, run, shrink};
use std::io::BufRead as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// EdgeLink in one thread on a virtual clock.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Play random scenarios until one goes wrong, and shrink that.
    Soak {
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many; without it, until interrupted.
        #[arg(long)]
        seeds: Option<u64>,
        /// For at most so many minutes.
        #[arg(long)]
        minutes: Option<u64>,
        /// Runs that may be spent on making a failing scenario smaller.
        #[arg(long, default_value_t = 500)]
        shrink: u32,
        /// Go on after a failure, and only list the seeds.
        #[arg(long)]
        keep_going: bool,
    },
    /// Pairs of nodes behind NATs of all kinds on bad links: who is direct, how soon, and why not.
    Pairs {
        /// The first seed; sixteen in a row are the sixteen cells of the matrix.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many.
        #[arg(long, default_value_t = 1600)]
        seeds: u64,
    },
    /// Play one again: a seed, or a file with one scenario per line.
    Replay {
        /// Seed or file.
        what: String,
    },
    /// Measure how many node-seconds are simulated in a second: 20 nodes and 3 relays with traffic.
    Rate {
        /// Virtual seconds.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Action::Soak { from, seeds, minutes, shrink, keep_going } => soak(from, seeds, minutes, shrink, keep_going),
        Action::Pairs { from, seeds } => pairs(from, seeds),
        Action::Replay { what } => replay(&what),
        Action::Rate { seconds } => {
            rate(Duration::from_secs(seconds));
            ExitCode::SUCCESS
        }
    }
}

fn soak(from: u64, seeds: Option<u64>, minutes: Option<u64>, runs: u32, keep_going: bool) -> ExitCode {
    let begin = Instant::now();
    let limit = minutes.map(|m| Duration::from_secs(60 * m));
    let end = seeds.map_or(u64::MAX, |n| from.saturating_add(n));
    let (mut played, mut failed, mut node_seconds, mut owed) = (0u64, Vec::new(), 0u64, 0u64);
    let (mut pairs, mut direct) = (0, 0);
    for seed in from..end {
        if limit.is_some_and(|limit| begin.elapsed() >= limit) {
            break;
        }
        match run(&Scenario::generate(seed)) {
            Ok(report) => {
                node_seconds += report.node_seconds;
                owed += report.probes.1;
                pairs += report.pairs.0;
                direct += report.pairs.1;
            }
            Err(failure) if keep_going => {
                println!("seed {seed}: {}", failure.violations.first().map(String::as_str).unwrap_or_default());
                failed.push(seed);
            }
            Err(failure) => {
                println!("{failure}\nshrinking …");
                match shrink(seed, runs) {
                    Some(smaller) => println!("{smaller}"),
                    None => println!("it did not go wrong again: something is not deterministic"),
                }
                return ExitCode::FAILURE;
            }
        }
        played += 1;
        if played.is_multiple_of(100) {
            println!("{played} seeds in {:.0} s", begin.elapsed().as_secs_f64());
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{played} seeds, {} failed {failed:?}; {owed} probes had to arrive; {direct} of {pairs} pairs ended on direct paths; {node_seconds} node-seconds in {seconds:.1} s",
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn pairs(from: u64, seeds: u64) -> ExitCode {
    use edgelink_sim::pairs::{Outcome, Pair, report};
    let begin = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).clamp(1, 64);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let share = |n: u64| (from + n..from.saturating_add(seeds)).step_by(usize::try_from(threads).unwrap_or(1));
        let play = |n: u64| scope.spawn(move || share(n).map(|seed| Pair::generate(seed).play()).collect::<Vec<_>>());
        let playing: Vec<_> = (0..threads).map(play).collect();
        playing.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let (text, kept) = report(&outcomes);
    print!("{text}");
    println!("in {:.0} s; the first seeds were {from} to {}", begin.elapsed().as_secs_f64(), from + seeds);
    let complete = outcomes.len() as u64 == seeds;
    if kept && complete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(what: &str) -> ExitCode {
    let scenarios = match what.parse() {
        Ok(seed) => vec![Scenario::generate(seed)],
        Err(_) => match read(Path::new(what)) {
            Ok(scenarios) => scenarios,
            Err(error) => {
                eprintln!("edgelink-sim: {what} is no seed, and as a file: {error}");
                return ExitCode::from(2);
            }
        },
    };
    let mut code = ExitCode::SUCCESS;
    for scenario in scenarios {
        match run(&scenario) {
            Ok(report) => println!("{report:?}"),
            Err(failure) => {
                println!("{failure}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn read(path: &Path) -> Result<Vec<Scenario>, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let lines = std::io::BufReader::new(file).lines().map_while(Result::ok);
    let scenarios = lines.filter(|line| line.starts_with('{'));
    scenarios.map(|line| serde_json::from_str(&line).map_err(|error| error.to_string())).collect()
}

fn rate(virtual_time: Duration) {
    use edgelink_sim::{World, WorldConfig};
    let mut world = World::new(WorldConfig { capture: false, ..WorldConfig::default() });
    world.add_relay("a");
    world.add_relay("b");
    let nodes: Vec<_> = (0..20).map(|n| world.add_node(&format!("n{n}"))).collect();
    world.advance(Duration::from_secs(5));
    let (begin, first) = (Instant::now(), world.watch().frames);
    let end = world.elapsed() + virtual_time;
    let (mut turn, mut sent) = (0usize, 0u64);
    while world.elapsed() < end {
        // Every node sends a packet a second, each time to another one.
        for (n, from) in nodes.iter().enumerate() {
            if let Some(to) = nodes.get((n + 1 + turn % 19) % 20) {
                sent += u64::from(world.send_numbered(*from, *to, 500).is_some());
            }
        }
        turn += 1;
        world.advance(Duration::from_secs(1));
    }
    let arrived = world.take_delivered().len();
    let wall = begin.elapsed().as_secs_f64();
    println!(
        "20 nodes, 3 relays, {} virtual seconds in {wall:.2} s: {:.0} node-seconds per second; {sent} packets sent, {arrived} arrived, {} frames",
        virtual_time.as_secs(),
        20.0 * virtual_time.as_secs_f64() / wall,
        world.watch().frames - first,
    );
}
