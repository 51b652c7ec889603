//! A hash map by node id. Ids are handed out by the controller, so nobody can choose them to collide; that one look-up
//! per run of frames is the relay's hot path.

use edgelink_model::NodeId;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

pub(crate) type NodeMap<V> = HashMap<NodeId, V, BuildHasherDefault<IdHasher>>;

/// Fibonacci hashing of one u32.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32((*byte).into());
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(id)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        // The table takes its slot from the low bits and its tag from the high ones.
        self.0 ^ (self.0 >> 32)
    }
}
