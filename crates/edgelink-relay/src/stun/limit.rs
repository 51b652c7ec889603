//! Rates of sources in a table of fixed size.
//!
//! A table that forgets (or refuses) when it is full can be filled with forged sources. So there is nothing to fill: a
//! secret hash sends each source to one of many buckets. A flood of forged sources can empty some of them, but whose they
//! are, nobody can tell.

use crate::connection::origin_of;
use crate::rate::{Bucket, Rate};
use rand_core::Rng;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Sources {
    secret: [u8; 16],
    buckets: Box<[Bucket]>,
}

impl Sources {
    pub(super) fn new(buckets: usize, rng: &mut impl Rng) -> Self {
        let mut secret = [0; 16];
        rng.fill_bytes(&mut secret);
        Self { secret, buckets: vec![Bucket::default(); buckets.max(1)].into() }
    }

    pub(super) fn allow(&mut self, source: IpAddr, rate: Rate, now: Instant) -> bool {
        // SipHash with the secret as its first block; who has one IPv6 address has a /64.
        let mut hasher = DefaultHasher::new();
        self.secret.hash(&mut hasher);
        origin_of(source).hash(&mut hasher);
        let index = hasher.finish() % self.buckets.len() as u64;
        self.buckets.get_mut(index as usize).is_some_and(|bucket| bucket.allow(rate, now))
    }
}
