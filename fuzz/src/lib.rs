//! Fuzz targets: whatever arrives, nothing panics, nothing grows, nothing false gets in (docs/fuzzing.md).
//!
//! A [`Target`] is a function of bytes that panics when a promise is broken. Two engines feed it: [`engine`], which
//! replays the corpus and mutates it at random, on any toolchain and for a bounded time (`tests/targets.rs`, part of
//! `make test`); and LLVM's libFuzzer, guided by coverage (`scripts/fuzz`).
//!
//! The worlds in which relay and node are fuzzed are those of these crates' own tests, by `#[path]`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a target fails by panicking, as a test does"
)]

pub mod engine;
mod input;
mod memory;
mod targets;

pub use targets::TARGETS;

#[path = "../../crates/edgelink-wire/tests/common/mod.rs"]
mod golden;
#[path = "../../crates/edgelink-relay/tests/common/mod.rs"]
mod relay_world;

// `world` expects `packets` beside it, at the root.
#[allow(dead_code, clippy::large_enum_variant, reason = "a target uses its part")]
#[path = "../../crates/edgelink-node/tests/node/packets.rs"]
mod packets;
#[allow(dead_code, clippy::large_enum_variant, reason = "a target uses its part")]
#[path = "../../crates/edgelink-node/tests/node/world.rs"]
mod world;

/// One thing that is fuzzed.
pub struct Target {
    /// Its name, and that of its directory in `corpus/`.
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs to begin with, made by the real encoders or taken from `docs/protocol.md`; never stale, hence no files.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest input that is worth its time, in bytes.
    pub max_len: usize,
    /// The most memory that one run may hold at once, in bytes (Rust's allocator; libzstd's own is bounded by its window).
    pub max_memory: usize,
}

impl Target {
    /// The target of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Runs one input, and checks what it held in memory. Longer inputs than [`Target::max_len`] are cut.
    ///
    /// # Panics
    /// When a promise is broken.
    pub fn check(&self, input: &[u8]) {
        let input = input.get(..self.max_len).unwrap_or(input);
        let peak = memory::peak_of(|| (self.run)(input));
        assert!(peak <= self.max_memory, "{} held {peak} bytes at once, more than {}", self.name, self.max_memory);
    }
}
