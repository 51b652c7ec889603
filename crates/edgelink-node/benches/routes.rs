//! What it costs to find the peer that a packet is for: `cargo bench -p edgelink-node`.
//!
//! Packets of 64 bytes go from the TUN into the batch of a link, sealed. One to a peer's own address needs neither flow table
//! nor routes; so the others less that one is what these cost.
#![expect(dead_code, reason = "the world of the tests has more in it")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark may fail loudly")]

#[path = "../tests/node/packets.rs"]
mod packets;
#[path = "../tests/node/world.rs"]
mod world;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;
use world::*;

/// More flows than the flow table remembers: each is forgotten before it comes again.
const FLOWS: usize = 40_000;
/// Packets before the link takes them.
const BATCH: usize = 64;
/// UDP payload of a packet of 64 bytes.
const PAYLOAD: [u8; 36] = [7; 36];

/// Sends the packets in turn, for ever.
struct Sender {
    world: World,
    frames: Vec<Vec<u8>>,
    sent: usize,
}

impl Sender {
    fn new((world, _): (World, Peer), to: impl Iterator<Item = Ipv4Addr>) -> Self {
        let frames = to.map(|to| [&PLAIN[..], &udp(MY_IP, to, &PAYLOAD)].concat()).collect();
        Self { world, frames, sent: 0 }
    }

    fn send(&mut self) {
        let now = self.world.now();
        let next = self.sent % self.frames.len();
        self.world.node.handle_tun(black_box(&mut self.frames[next]), now);
        self.sent += 1;
        if self.sent.is_multiple_of(BATCH) {
            while self.world.node.poll_event().is_some() {}
            let relay = self.world.relay();
            while let Some(message) = self.world.node.poll_transmit(relay, now) {
                black_box(message.len());
            }
        }
    }

    fn check(&self) {
        let drops = self.world.status().drops;
        assert!(drops.is_empty(), "{drops:?}");
    }
}

fn looking_up(c: &mut Criterion) {
    let mut group = c.benchmark_group("to");
    group.throughput(Throughput::Elements(1));
    let mut sender = Sender::new(behind(0), std::iter::once(PEER_IP));
    group.bench_function("a peer's own address", |b| b.iter(|| sender.send()));
    sender.check();
    for subnets in [10, 10_000] {
        // A host of some subnet; the first of a subnet comes again only after all others.
        let host = |n: usize| {
            let [a, b, c, _] = subnet(n * 7 % subnets);
            Ipv4Addr::new(a, b, c, 1 + (n / subnets % 250) as u8)
        };
        let mut known = Sender::new(behind(subnets), std::iter::once(host(5)));
        group.bench_function(BenchmarkId::new("a known flow, subnets", subnets), |b| b.iter(|| known.send()));
        known.check();
        // Ports differ where ten subnets have too few hosts for so many flows.
        let mut fresh = Sender::new(behind(subnets), (0..FLOWS).map(host));
        for (n, frame) in fresh.frames.iter_mut().enumerate() {
            frame[30..32].copy_from_slice(&(n as u16).to_be_bytes());
        }
        group.bench_function(BenchmarkId::new("a new flow, subnets", subnets), |b| b.iter(|| fresh.send()));
        fresh.check();
    }
}

criterion_group! {
    name = routes;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = looking_up
}
criterion_main!(routes);
