//! The targets, one per file.

mod config;
mod control;
mod node;
mod relay;
mod session;
mod sim;
mod stun;
mod tokens;
mod virtio;
mod wire;

use crate::Target;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "wire", run: wire::run, seeds: wire::seeds, max_len: 4_096, max_memory: 64 << 10 },
    Target {
        name: "control",
        run: control::run,
        seeds: control::seeds,
        max_len: 16_384,
        max_memory: control::MAX_MEMORY,
    },
    Target { name: "session", run: session::run, seeds: session::seeds, max_len: 2_048, max_memory: 1 << 20 },
    Target { name: "stun", run: stun::run, seeds: stun::seeds, max_len: 1_500, max_memory: 64 << 10 },
    Target { name: "virtio", run: virtio::run, seeds: virtio::seeds, max_len: 8_192, max_memory: 8 << 20 },
    Target { name: "config", run: config::run, seeds: config::seeds, max_len: 8_192, max_memory: 4 << 20 },
    Target { name: "tokens", run: tokens::run, seeds: tokens::seeds, max_len: 4_200, max_memory: 1 << 20 },
    Target { name: "relay", run: relay::run, seeds: relay::seeds, max_len: 4_096, max_memory: 4 << 20 },
    Target { name: "node", run: node::run, seeds: node::seeds, max_len: 4_096, max_memory: 16 << 20 },
    Target { name: "sim", run: sim::run, seeds: sim::seeds, max_len: 128, max_memory: 64 << 20 },
];
