//! Every target, replayed and mutated for a bounded time: `EDGELINK_FUZZ_MS` milliseconds each, 2,500 if not set.
//! The sequence of inputs is the same in each run (`EDGELINK_FUZZ_SEED` changes it).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use edgelink_fuzz::{TARGETS, Target, engine};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn run(name: &str) {
    let target = Target::named(name).unwrap();
    let time = Duration::from_millis(setting("EDGELINK_FUZZ_MS", 2_500));
    let failures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz-failures");
    let summary = engine::run(target, setting("EDGELINK_FUZZ_SEED", 1), time, &failures);
    println!("{name}: {summary:?}");
    assert!(summary.mutated > 0, "nothing was tried");
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(stringify!($name)); })*

        #[test]
        fn every_target_is_run() {
            let run = BTreeSet::from([$(stringify!($name)),*]);
            assert_eq!(run, TARGETS.iter().map(|target| target.name).collect());
        }
    };
}

targets! { wire control session stun virtio config tokens relay node sim }

#[test]
fn the_corpus_is_small_and_belongs_to_targets() {
    let mut bytes = 0;
    for directory in Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").read_dir().unwrap() {
        let directory = directory.unwrap();
        let name = directory.file_name().into_string().unwrap();
        assert!(Target::named(&name).is_some(), "corpus/{name} belongs to no target");
        bytes += directory.path().read_dir().unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
    }
    assert!(bytes < 300 << 10, "{bytes} bytes; minimise it: scripts/fuzz grow TARGET");
}

/// The engine must be able to find something.
#[test]
fn a_planted_bug_is_found_and_written_down() {
    fn bug(input: &[u8]) {
        assert!(!input.starts_with(b"fuzz") || input.len() < 6 || input[5] != 0xff, "planted");
    }
    let seeds = || vec![b"fuzz: a seed that is almost there".to_vec()];
    let target = Target { name: "planted", run: bug, seeds, max_len: 64, max_memory: 1 << 20 };
    let failures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("planted");
    let _ = std::fs::remove_dir_all(&failures);
    let found = std::panic::catch_unwind(|| engine::run(&target, 1, Duration::from_secs(20), &failures));
    assert!(found.is_err(), "20 seconds were not enough");
    let file = failures.read_dir().unwrap().next().unwrap().unwrap().path();
    let input = std::fs::read(file).unwrap();
    assert!(std::panic::catch_unwind(|| target.check(&input)).is_err(), "what was written down fails again");
}

#[test]
fn memory_beyond_the_bound_is_noticed() {
    fn hog(_: &[u8]) {
        std::hint::black_box(vec![0u8; 2 << 20]);
    }
    let target = Target { name: "hog", run: hog, seeds: Vec::new, max_len: 1, max_memory: 1 << 20 };
    assert!(std::panic::catch_unwind(|| target.check(b"")).is_err());
    let allowed = Target { max_memory: 3 << 20, ..target };
    allowed.check(b"");
}
