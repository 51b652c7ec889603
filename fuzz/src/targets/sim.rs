//! The simulator's list of transitions: whatever happens to a network, what must arrive does, and nothing else.

use edgelink_sim::{Scenario, run as play};

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // The bytes are drawn like random numbers; any do.
    let seed = |n: u8| (0..64u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ n.wrapping_mul(37)).collect();
    (0..6).map(seed).collect()
}

pub(crate) fn run(data: &[u8]) {
    if let Err(failure) = play(&Scenario::from_bytes(data)) {
        panic!("{failure}");
    }
}
