//! Pairs of nodes behind NATs of all kinds, on bad links (specification §6.1); thousands more by `edgelink-sim pairs`.

use edgelink_sim::pairs::{Outcome, Pair, report};

#[test]
fn every_pair_keeps_what_the_matrix_says_of_it() {
    // Eight worlds of each cell, half of them on each of two threads.
    let play = |seeds: std::ops::Range<u64>| -> Vec<Outcome> { seeds.map(|s| Pair::generate(s).play()).collect() };
    let outcomes = std::thread::scope(|scope| {
        let other = scope.spawn(|| play(64..128));
        [play(0..64), other.join().unwrap()].concat()
    });
    let (text, kept) = report(&outcomes);
    println!("{text}");
    assert!(kept, "{text}");
}

#[test]
fn one_seed_has_one_outcome() {
    let outcomes = [7, 7].map(|seed| Pair::generate(seed).play());
    assert_eq!(outcomes[0].time, outcomes[1].time);
    assert_eq!(outcomes[0].reason, outcomes[1].reason);
}
