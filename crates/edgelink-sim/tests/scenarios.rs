//! Random scenarios against the model, and those that once went wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use edgelink_sim::{Scenario, run, shrink};
use std::path::Path;

/// Seeds per test; there are four, so that they use several cores. `edgelink-sim soak` plays more.
const SEEDS: u64 = 50;

fn play(from: u64) {
    let (mut owed, mut arrived) = (0, 0);
    for seed in from..from + SEEDS {
        match run(&Scenario::generate(seed)) {
            Ok(report) => {
                owed += report.probes.1;
                arrived += report.probes.2;
            }
            Err(failure) => {
                println!("{failure}\nshrinking …");
                match shrink(seed, 200) {
                    Some(smaller) => panic!("{smaller}"),
                    None => panic!("seed {seed} went wrong once and not again: something is not deterministic"),
                }
            }
        }
    }
    assert!(owed > 20 * SEEDS && arrived > owed, "hardly anything was demanded: {owed} of {arrived}");
}

#[test]
fn first_seeds() {
    play(0);
}

#[test]
fn second_seeds() {
    play(SEEDS);
}

#[test]
fn third_seeds() {
    play(2 * SEEDS);
}

#[test]
fn fourth_seeds() {
    play(3 * SEEDS);
}

#[test]
fn one_seed_has_one_outcome_bit_for_bit() {
    for seed in 0..8 {
        let scenario = Scenario::generate(seed);
        assert_eq!(scenario, Scenario::generate(seed));
        let once = run(&scenario).unwrap();
        assert_eq!(once, run(&scenario).unwrap(), "seed {seed}");
        let other = Scenario { seed: seed + 1000, ..scenario };
        assert_ne!(once.fingerprint, run(&other).unwrap().fingerprint, "another seed makes other keys");
    }
}

#[test]
fn what_once_went_wrong_stays_mended() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut played = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let scenario: Scenario = serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            if let Err(failure) = run(&scenario) {
                panic!("{}: {failure}", path.display());
            }
            played += 1;
        }
    }
    assert!(played > 0, "there is nothing to play");
}
