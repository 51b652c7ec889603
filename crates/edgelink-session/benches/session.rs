//! What a session adds to its cipher: `cargo bench -p edgelink-session`.
//!
//! `aws-lc-rs` of the same run is the cipher alone, under the same key for each frame, without header, replay window or
//! look-up.
#![expect(clippy::unwrap_used, reason = "a benchmark may fail loudly")]

#[path = "../tests/common/mod.rs"]
mod common;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use common::{Side, epoch};
use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use edgelink_model::NodeId;
use edgelink_wire::{Flags, FrameType, data};
use std::hint::black_box;
use std::time::Duration;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
/// Plaintext of the smallest packets, of one that fills a direct path, and of a super-packet.
const SIZES: [usize; 3] = [64, 1_420, data::MAX_PLAINTEXT];

/// Two nodes that know each other, in a generation whose cipher it is ([`Side::key`]).
fn pair(generation: u64) -> (Side, Side) {
    let now = epoch();
    let mut sides = [A, B].map(|id| Side::new(id, now));
    for side in &mut sides {
        (1..generation).for_each(|_| side.rotate(now));
    }
    let [mut a, mut b] = sides;
    a.table.set_peer(b.table.local_statement().unwrap(), now).unwrap();
    b.table.set_peer(a.table.local_statement().unwrap(), now).unwrap();
    (a, b)
}

fn sealing(c: &mut Criterion) {
    for (name, algorithm, generation) in
        [("AES-256-GCM", &AES_256_GCM, 1), ("ChaCha20-Poly1305", &CHACHA20_POLY1305, 3)]
    {
        let mut group = c.benchmark_group(name);
        for size in SIZES {
            group.throughput(Throughput::Bytes(size as u64));
            raw(&mut group, algorithm, size);
            session(&mut group, generation, size);
        }
    }
}

fn raw(group: &mut BenchmarkGroup<'_, WallTime>, algorithm: &'static Algorithm, size: usize) {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, &[7; 32]).unwrap());
    let nonce = || Nonce::assume_unique_for_key([9; 12]);
    let mut text = vec![7; size];
    group.bench_function(BenchmarkId::new("seal by aws-lc-rs", size), |b| {
        b.iter(|| {
            key.seal_in_place_separate_tag(nonce(), Aad::from([0; data::AAD_LEN]), black_box(&mut text)).unwrap()
        });
    });
    let mut sealed = vec![7; size];
    key.seal_in_place_append_tag(nonce(), Aad::from([0; data::AAD_LEN]), &mut sealed).unwrap();
    group.bench_function(BenchmarkId::new("open by aws-lc-rs", size), |b| {
        b.iter_batched_ref(
            || sealed.clone(),
            |sealed| key.open_in_place(nonce(), Aad::from([0; data::AAD_LEN]), sealed).map(|text| text.len()).unwrap(),
            BatchSize::NumIterations(64),
        );
    });
}

fn session(group: &mut BenchmarkGroup<'_, WallTime>, generation: u64, size: usize) {
    let (mut a, mut b) = pair(generation);
    let now = epoch();
    let mut frame = vec![7; data::OVERHEAD + size];
    group.bench_function(BenchmarkId::new("seal", size), |bench| {
        bench.iter(|| {
            let mut sealer = a.table.sealer(B).unwrap();
            sealer.seal(FrameType::Data, Flags::NONE, black_box(&mut frame)).unwrap();
        });
    });
    // Each frame opens once only, and the frames of a batch within the replay window.
    group.bench_function(BenchmarkId::new("open", size), |bench| {
        bench.iter_batched_ref(
            || {
                a.table.sealer(B).unwrap().seal(FrameType::Data, Flags::NONE, &mut frame).unwrap();
                frame.clone()
            },
            |frame| b.table.open(frame, now).map(|opened| opened.plaintext.len()).unwrap(),
            BatchSize::NumIterations(64),
        );
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = sealing
}
criterion_main!(benches);
