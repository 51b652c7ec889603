//! Which external endpoint a new mapping gets (RFC 4787 §4.2).

use super::table::Nat;
use super::{NatConfig, PortAssignment};
use crate::net::random;
use rand_core::Rng;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

impl Nat {
    /// An external endpoint that is free, `None` if there is none.
    pub(super) fn allocate(
        &mut self,
        now: Instant,
        internal: SocketAddrV4,
        remote: SocketAddrV4,
        rng: &mut impl Rng,
    ) -> Option<SocketAddrV4> {
        let address = if self.is_paired() {
            self.paired(*internal.ip())?
        } else {
            let count = u32::try_from(self.external.len()).ok()?;
            *self.external.get(random::below(count, rng) as usize)?
        };
        let kept = SocketAddrV4::new(address, internal.port());
        let range = Range::of(&self.config);
        match self.config.ports {
            PortAssignment::Preserving if kept.port() != 0 && self.free(now, kept, remote) => Some(kept),
            PortAssignment::Overloading if kept.port() != 0 && self.distinct(now, kept, remote, None) => Some(kept),
            PortAssignment::Preserving | PortAssignment::Overloading | PortAssignment::Random => {
                let start = random::below(range.len, rng);
                self.scan(now, address, remote, range, start, 1)
            }
            PortAssignment::ParityPreserving => {
                // From a port of the right parity in steps of two, to the end and then from the beginning.
                let odd = u32::from((internal.port() ^ range.first) & 1);
                let same = Range { first: range.first, len: range.len.saturating_sub(odd).div_ceil(2) * 2 };
                let start = random::below(same.len / 2, rng) * 2;
                let same = Range { first: range.first.saturating_add(u16::from(odd == 1)), ..same };
                self.scan(now, address, remote, same, start, 2)
            }
            PortAssignment::Sequential(delta) => {
                let start = match self.next_port {
                    Some(next) => u32::from(next.saturating_sub(range.first)),
                    None => random::below(range.len, rng),
                };
                let found = self.scan(now, address, remote, range, start, u32::from(delta.max(1)))?;
                let next = u64::from(found.port() - range.first) + u64::from(delta.max(1));
                self.next_port = Some(range.port(next));
                Some(found)
            }
            PortAssignment::Blocks(size) => {
                let block = self.blocks.of(*internal.ip(), address, range, size)?;
                let start = random::below(block.len, rng);
                self.scan(now, address, remote, block, start, 1)
            }
        }
    }

    /// The first free port from `start` on in steps of `step`, once round the range.
    fn scan(
        &self,
        now: Instant,
        address: Ipv4Addr,
        remote: SocketAddrV4,
        range: Range,
        start: u32,
        step: u32,
    ) -> Option<SocketAddrV4> {
        (0..range.len.div_ceil(if range.len.is_multiple_of(step) { step } else { 1 }))
            .map(|n| SocketAddrV4::new(address, range.port(u64::from(start) + u64::from(n) * u64::from(step))))
            .find(|external| self.free(now, *external, remote))
    }
}

/// Consecutive ports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    first: u16,
    len: u32,
}

impl Range {
    fn of(config: &NatConfig) -> Self {
        let first = config.first_port.max(1);
        Self { first, len: u32::from(config.last_port.max(first) - first) + 1 }
    }

    /// The port `offset` after the first, round and round.
    fn port(self, offset: u64) -> u16 {
        // Within `len` of `first`, so it fits 16 bits by construction.
        self.first.saturating_add(u16::try_from(offset % u64::from(self.len.max(1))).unwrap_or(0))
    }
}

/// Who holds which block of ports: the lowest free one is given at the first mapping, taken back with the last.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    size: u16,
    first: u16,
    /// (external address, number of the block) → owner and how many mappings it has there.
    held: BTreeMap<(Ipv4Addr, u32), (Ipv4Addr, usize)>,
    /// Owner and external address → number of the block.
    of: BTreeMap<(Ipv4Addr, Ipv4Addr), u32>,
}

impl Blocks {
    /// The internal host's block on this external address, which may be new.
    fn of(&mut self, internal: Ipv4Addr, external: Ipv4Addr, range: Range, size: u16) -> Option<Range> {
        (self.size, self.first) = (size.max(1), range.first);
        let size = u32::from(self.size);
        let number = match self.of.get(&(internal, external)) {
            Some(number) => *number,
            None => {
                let number = (0..range.len / size).find(|n| !self.held.contains_key(&(external, *n)))?;
                self.held.insert((external, number), (internal, 0));
                self.of.insert((internal, external), number);
                number
            }
        };
        Some(Range { first: range.port(u64::from(number * size)), len: size })
    }

    pub(super) fn taken(&mut self, external: SocketAddrV4) {
        if let Some((_, mappings)) = self.block(external).and_then(|block| self.held.get_mut(&block)) {
            *mappings += 1;
        }
    }

    pub(super) fn released(&mut self, external: SocketAddrV4) {
        let Some(block) = self.block(external) else { return };
        let Some((owner, mappings)) = self.held.get_mut(&block) else { return };
        *mappings -= 1;
        if *mappings == 0 {
            let owner = *owner;
            self.held.remove(&block);
            self.of.remove(&(owner, block.0));
        }
    }

    /// The block that a port belongs to; `None` unless the NAT assigns blocks.
    fn block(&self, external: SocketAddrV4) -> Option<(Ipv4Addr, u32)> {
        let offset = u32::from(external.port().checked_sub(self.first)?);
        Some((*external.ip(), offset.checked_div(u32::from(self.size))?))
    }
}
