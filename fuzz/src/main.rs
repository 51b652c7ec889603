//! The command behind `scripts/fuzz`: list, replay, run at random, write seeds out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a target fails by panicking, as a test does"
)]

use edgelink_fuzz::{TARGETS, Target, engine};
use std::path::{Path, PathBuf};
use std::time::Duration;

const USAGE: &str =
    "usage: edgelink-fuzz list | replay TARGET FILE… | random TARGET SECONDS SEED | seeds TARGET DIRECTORY";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list"] => TARGETS.iter().for_each(|target| println!("{}", target.name)),
        ["max-len", target] => println!("{}", named(target).max_len),
        ["replay", target, ref files @ ..] => files.iter().for_each(|file| {
            named(target).check(&std::fs::read(file).unwrap_or_else(|error| fail(&format!("{file}: {error}"))));
            println!("{file}: well");
        }),
        ["random", target, seconds, seed] => {
            let number = |text: &str| text.parse().unwrap_or_else(|_| fail(&format!("{text} is no number")));
            let failures = Path::new(env!("CARGO_MANIFEST_DIR")).join("failures");
            let summary = engine::run(named(target), number(seed), Duration::from_secs(number(seconds)), &failures);
            println!("{target}: {} inputs replayed, {} made and run", summary.replayed, summary.mutated);
        }
        ["seeds", target, directory] => {
            for seed in (named(target).seeds)() {
                let file = PathBuf::from(directory).join(format!("seed-{}", engine::name_of(&seed)));
                std::fs::write(&file, seed).unwrap_or_else(|error| fail(&format!("{}: {error}", file.display())));
            }
        }
        _ => fail(USAGE),
    }
}

fn named(name: &str) -> &'static Target {
    Target::named(name).unwrap_or_else(|| {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        fail(&format!("no target {name}; there are {}", names.join(", ")))
    })
}

fn fail(why: &str) -> ! {
    eprintln!("error: {why}");
    std::process::exit(2)
}
