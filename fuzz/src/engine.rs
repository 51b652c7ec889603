//! The engine of `make test`: replays seeds and corpus, then mutates them at random. It needs nothing but stable Rust
//! and is not guided by coverage; what it finds, it finds because inputs begin valid and are changed a little.
//!
//! All randomness follows from a seed. The time bound only decides how far the sequence is followed.

use crate::Target;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Values that sit at the edges of lengths, counts and types.
const INTERESTING: [u8; 10] = [0, 1, 2, 4, 0x10, 0x7f, 0x80, 0xfe, 0xff, 20];

/// What a run did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Inputs replayed.
    pub replayed: usize,
    /// Inputs made and run.
    pub mutated: u64,
}

/// The directory of a target's corpus in the checkout.
pub fn corpus_dir(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// Seeds and corpus, in a fixed order.
///
/// # Panics
/// When the corpus cannot be read.
pub fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let mut inputs = (target.seeds)();
    let Ok(entries) = corpus_dir(target).read_dir() else { return inputs };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    inputs.extend(files.iter().map(|file| std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))));
    inputs
}

/// Replays everything and then mutates for `time`. An input that fails is written to `failures`, and how to replay it
/// is told, before the panic goes on.
///
/// # Panics
/// When the target does.
#[expect(clippy::disallowed_methods, reason = "the bound on time is this engine's own, outside every core")]
pub fn run(target: &Target, seed: u64, time: Duration, failures: &Path) -> Summary {
    let inputs = inputs(target);
    assert!(!inputs.is_empty(), "{} has neither seeds nor corpus", target.name);
    inputs.iter().for_each(|input| run_one(target, input, failures));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let until = std::time::Instant::now() + time;
    let mut mutated = 0;
    while std::time::Instant::now() < until {
        let input = mutate(&inputs, target.max_len, &mut rng);
        run_one(target, &input, failures);
        mutated += 1;
    }
    Summary { replayed: inputs.len(), mutated }
}

fn run_one(target: &Target, input: &[u8], failures: &Path) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| target.check(input))) else { return };
    let file = failures.join(format!("{}-{}", target.name, name_of(input)));
    match std::fs::create_dir_all(failures).and_then(|()| std::fs::write(&file, input)) {
        Ok(()) => {
            eprintln!("{} fails; replay it with: scripts/fuzz replay {} {}", target.name, target.name, file.display())
        }
        Err(error) => eprintln!("{} fails with {} ({}: {error})", target.name, hex::encode(input), file.display()),
    }
    std::panic::resume_unwind(panic)
}

/// A file name for an input: the beginning of its SHA-256.
pub fn name_of(input: &[u8]) -> String {
    hex::encode(&Sha256::digest(input)[..8])
}

/// One of `inputs`, changed in one to eight places.
fn mutate(inputs: &[Vec<u8>], max_len: usize, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut input = inputs[below(inputs.len(), rng)].clone();
    // Mostly few changes, so that the rest stays valid.
    let changes = 1 + (rng.next_u32() % 256).trailing_zeros();
    for _ in 0..changes.min(8) {
        let (at, len) = (below(input.len() + 1, rng), 1 + below(8, rng));
        let end = (at + len).min(input.len());
        match rng.next_u32() % 9 {
            0 | 1 => edit(&mut input, at, |byte| *byte ^= 1 << (at % 8)),
            2 => edit(&mut input, at, |byte| *byte = INTERESTING[at % INTERESTING.len()]),
            3 => {
                let value = rng.next_u32() as u8;
                edit(&mut input, at, |byte| *byte = value);
            }
            4 => drop(input.drain(at.min(end)..end)),
            5 => {
                let mut bytes = vec![0; len];
                rng.fill_bytes(&mut bytes);
                input.splice(at..at, bytes);
            }
            // A piece of itself again, as frames in a message and attributes in a datagram are.
            6 => {
                let from = below(input.len() + 1, rng);
                let piece = input[from..(from + 1 + below(64, rng)).min(input.len())].to_vec();
                input.splice(at..at, piece);
            }
            // The end of another input.
            7 => {
                let other = &inputs[below(inputs.len(), rng)];
                input.truncate(at);
                input.extend(&other[below(other.len() + 1, rng)..]);
            }
            _ => input.truncate(at),
        }
    }
    input.truncate(max_len);
    input
}

fn edit(input: &mut [u8], at: usize, change: impl FnOnce(&mut u8)) {
    if let Some(byte) = input.get_mut(at) {
        change(byte);
    }
}

/// A number below `bound`, which is not 0.
fn below(bound: usize, rng: &mut ChaCha8Rng) -> usize {
    rng.next_u64() as usize % bound
}
