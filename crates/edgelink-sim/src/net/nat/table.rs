//! A NAT's state: mappings, the permissions in their filters, and claimed tuples.

use super::forwards::Forwards;
use super::ports::Blocks;
use super::{Hairpin, NatConfig, Overflow, Pooling, Scope};
use crate::net::after;
use crate::net::counters::DropReason;
use rand_core::Rng;
use slab::Slab;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

/// A translator for IPv4.
///
/// What has expired counts for nothing at once, and is removed when somebody stumbles over it or the table has doubled.
#[derive(Clone, Debug)]
pub(in crate::net) struct Nat {
    pub(super) config: NatConfig,
    pub(super) external: Vec<Ipv4Addr>,
    mappings: Slab<Entry>,
    outbound: BTreeMap<(SocketAddrV4, Scope), usize>,
    /// More than one mapping at an external endpoint only where ports are overloaded.
    inbound: BTreeMap<SocketAddrV4, Vec<usize>>,
    /// (external, remote) that the router itself has taken, until when.
    claims: BTreeMap<(SocketAddrV4, SocketAddrV4), Instant>,
    pub(super) forwards: Forwards,
    pub(super) blocks: Blocks,
    /// Where [`PortAssignment::Sequential`](super::PortAssignment::Sequential) goes on.
    pub(super) next_port: Option<u16>,
    /// One-to-one: the internal owner of each external address.
    owners: Vec<Option<Ipv4Addr>>,
    /// Permissions and claims.
    entries: usize,
    /// Number of entries at which to look for expired ones.
    sweep_at: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    internal: SocketAddrV4,
    scope: Scope,
    external: SocketAddrV4,
    /// The latest end of life in `permitted`.
    expires: Instant,
    permitted: BTreeMap<Scope, Instant>,
}

const SWEEP_AT_LEAST: usize = 1024;

impl Nat {
    pub(in crate::net) fn new(config: NatConfig, external: Vec<Ipv4Addr>) -> Self {
        let owners = vec![None; external.len()];
        Self {
            config,
            external,
            mappings: Slab::new(),
            outbound: BTreeMap::new(),
            inbound: BTreeMap::new(),
            claims: BTreeMap::new(),
            forwards: Forwards::default(),
            blocks: Blocks::default(),
            next_port: None,
            owners,
            entries: 0,
            sweep_at: SWEEP_AT_LEAST,
        }
    }

    /// Forgets everything but the configuration; one-to-one pairs belong to that.
    pub(in crate::net) fn reboot(&mut self, external: Vec<Ipv4Addr>) {
        let mut owners = std::mem::take(&mut self.owners);
        owners.resize(external.len(), None);
        *self = Self { owners, ..Self::new(self.config, external) };
    }

    pub(in crate::net) fn external(&self) -> &[Ipv4Addr] {
        &self.external
    }

    /// An internal host has come: with one-to-one it takes the first external address that is free, unless it has one.
    pub(in crate::net) fn join(&mut self, internal: Ipv4Addr) {
        if self.owners.contains(&Some(internal)) {
            return;
        }
        if let Some(free) = self.owners.iter_mut().find(|owner| owner.is_none()) {
            *free = Some(internal);
        }
    }

    /// An internal host has gone.
    pub(in crate::net) fn leave(&mut self, internal: Ipv4Addr) {
        for owner in self.owners.iter_mut().filter(|owner| **owner == Some(internal)) {
            *owner = None;
        }
    }

    /// The internal owner of an external address, one-to-one only.
    pub(in crate::net) fn owner(&self, external: Ipv4Addr) -> Option<Ipv4Addr> {
        let index = self.external.iter().position(|e| *e == external)?;
        self.owners.get(index).copied().flatten().filter(|_| self.config.one_to_one)
    }

    /// The external address under which an internal host's connections appear.
    pub(in crate::net) fn address_of(&self, internal: Ipv4Addr) -> Option<Ipv4Addr> {
        if self.config.one_to_one {
            let index = self.owners.iter().position(|owner| *owner == Some(internal))?;
            return self.external.get(index).copied();
        }
        self.paired(internal)
    }

    /// The external endpoint for a datagram from `internal` to `remote`.
    pub(in crate::net) fn outbound(
        &mut self,
        now: Instant,
        internal: SocketAddrV4,
        remote: SocketAddrV4,
        rng: &mut impl Rng,
    ) -> Result<SocketAddrV4, DropReason> {
        if self.config.one_to_one {
            let address = self.address_of(*internal.ip()).ok_or(DropReason::PortsExhausted)?;
            return Ok(SocketAddrV4::new(address, internal.port()));
        }
        if let Some(external) = self.forwards.external(now, internal) {
            return Ok(external);
        }
        let permission = self.config.filtering.scope(remote);
        let mut found = self.find(now, internal, remote);
        if found.is_none_or(|id| !self.mappings[id].permitted.contains_key(&permission)) {
            self.make_room(now)?;
            found = self.find(now, internal, remote); // it may have been what yielded
        }
        let id = match found {
            Some(id) => id,
            None => self.map(now, internal, remote, rng)?,
        };
        let entry = &mut self.mappings[id];
        entry.expires = after(now, self.config.timeout);
        if entry.permitted.insert(permission, entry.expires).is_none() {
            self.entries += 1;
        }
        Ok(entry.external)
    }

    /// The internal endpoint for a datagram from `remote` to `external`.
    pub(in crate::net) fn inbound(
        &mut self,
        now: Instant,
        external: SocketAddrV4,
        remote: SocketAddrV4,
    ) -> Result<SocketAddrV4, DropReason> {
        if self.config.one_to_one {
            let owner = self.owner(*external.ip()).ok_or(DropReason::NoMapping)?;
            return Ok(SocketAddrV4::new(owner, external.port()));
        }
        if let Some(internal) = self.forwards.internal(now, external) {
            return Ok(internal);
        }
        let permission = self.config.filtering.scope(remote);
        let mut mapped = false;
        for &id in self.inbound.get(&external).map_or(&[][..], Vec::as_slice) {
            let entry = &mut self.mappings[id];
            mapped |= entry.expires > now;
            if let Some(expires) = entry.permitted.get_mut(&permission).filter(|expires| **expires > now) {
                if self.config.inbound_refresh {
                    *expires = after(now, self.config.timeout);
                    entry.expires = *expires;
                }
                return Ok(entry.internal);
            }
        }
        if self.config.inbound_claims {
            self.claim(now, external, remote);
        }
        Err(if mapped { DropReason::Filtered } else { DropReason::NoMapping })
    }

    /// Source and destination of a datagram from `internal` to an external endpoint of this NAT, once turned round.
    pub(in crate::net) fn hairpin(
        &mut self,
        now: Instant,
        internal: SocketAddrV4,
        external: SocketAddrV4,
        rng: &mut impl Rng,
    ) -> Result<(SocketAddrV4, SocketAddrV4), DropReason> {
        if self.config.hairpin == Hairpin::None {
            return Err(DropReason::NoHairpin);
        }
        let sender = self.outbound(now, internal, external, rng)?;
        let receiver = self.inbound(now, external, sender)?;
        Ok((if self.config.hairpin == Hairpin::InternalSource { internal } else { sender }, receiver))
    }

    /// The living mapping for this flow. One that was moved away from the mapping that its internal endpoint shares
    /// with its other flows comes first.
    fn find(&self, now: Instant, internal: SocketAddrV4, remote: SocketAddrV4) -> Option<usize> {
        [Scope::Endpoint(remote), self.config.mapping.scope(remote)].into_iter().find_map(|scope| {
            let id = *self.outbound.get(&(internal, scope))?;
            let entry = &self.mappings[id];
            (entry.expires > now && self.distinct(now, entry.external, remote, Some(id))).then_some(id)
        })
    }

    /// Makes a mapping, without permissions yet.
    fn map(
        &mut self,
        now: Instant,
        internal: SocketAddrV4,
        remote: SocketAddrV4,
        rng: &mut impl Rng,
    ) -> Result<usize, DropReason> {
        let mut scope = self.config.mapping.scope(remote);
        let alive = |id: &usize| self.mappings[*id].expires > now;
        if self.outbound.get(&(internal, scope)).is_some_and(alive) {
            scope = Scope::Endpoint(remote); // the shared mapping lives, but its tuple with this remote is taken
        }
        if let Some(&old) = self.outbound.get(&(internal, scope)) {
            self.remove(old);
        }
        let external = match self.allocate(now, internal, remote, rng) {
            Some(external) => external,
            None => {
                self.sweep(now);
                self.allocate(now, internal, remote, rng).ok_or(DropReason::PortsExhausted)?
            }
        };
        let entry = Entry { internal, scope, external, expires: now, permitted: BTreeMap::new() };
        let id = self.mappings.insert(entry);
        self.outbound.insert((internal, scope), id);
        self.inbound.entry(external).or_default().push(id);
        self.blocks.taken(external);
        Ok(id)
    }

    /// Whether no living mapping or forward uses the external endpoint, nor the router its tuple with `remote`.
    pub(super) fn free(&self, now: Instant, external: SocketAddrV4, remote: SocketAddrV4) -> bool {
        let used = |ids: &Vec<usize>| ids.iter().any(|id| self.mappings[*id].expires > now);
        !self.inbound.get(&external).is_some_and(used) && !self.taken(now, external, remote)
    }

    /// Whether what `remote` sends to the external endpoint could only be meant for mapping `own`.
    pub(super) fn distinct(
        &self,
        now: Instant,
        external: SocketAddrV4,
        remote: SocketAddrV4,
        own: Option<usize>,
    ) -> bool {
        let permission = self.config.filtering.scope(remote);
        let permits = |id: &usize| self.mappings[*id].permitted.get(&permission).is_some_and(|at| *at > now);
        let others = |ids: &Vec<usize>| ids.iter().any(|id| Some(*id) != own && permits(id));
        !self.inbound.get(&external).is_some_and(others) && !self.taken(now, external, remote)
    }

    /// Whether a living mapping at the external endpoint belongs to another internal endpoint.
    pub(super) fn used_by_others(&self, now: Instant, external: SocketAddrV4, internal: SocketAddrV4) -> bool {
        let ids = self.inbound.get(&external).map_or(&[][..], Vec::as_slice);
        ids.iter().map(|id| &self.mappings[*id]).any(|entry| entry.expires > now && entry.internal != internal)
    }

    pub(super) fn paired(&self, internal: Ipv4Addr) -> Option<Ipv4Addr> {
        let index = u32::from(internal).checked_rem(u32::try_from(self.external.len()).ok()?)?;
        self.external.get(index as usize).copied()
    }

    pub(super) fn is_paired(&self) -> bool {
        self.config.pooling == Pooling::Paired
    }

    /// Whether a forward has the external endpoint, or the router its tuple with `remote`.
    fn taken(&self, now: Instant, external: SocketAddrV4, remote: SocketAddrV4) -> bool {
        let claimed = || self.claims.get(&(external, remote)).is_some_and(|expires| *expires > now);
        self.forwards.internal(now, external).is_some() || claimed()
    }

    fn claim(&mut self, now: Instant, external: SocketAddrV4, remote: SocketAddrV4) {
        if !self.claims.contains_key(&(external, remote)) {
            if self.make_room(now).is_err() {
                return;
            }
            self.entries += 1;
        }
        self.claims.insert((external, remote), after(now, self.config.timeout));
    }

    /// Sees to it that one more entry fits.
    fn make_room(&mut self, now: Instant) -> Result<(), DropReason> {
        if self.entries >= self.sweep_at.min(self.config.max_entries) {
            self.sweep(now);
            self.sweep_at = SWEEP_AT_LEAST.max(2 * self.entries);
        }
        if self.entries < self.config.max_entries {
            return Ok(());
        }
        let yielded = self.config.overflow == Overflow::DropOldest && self.yield_oldest();
        if yielded { Ok(()) } else { Err(DropReason::TableFull) }
    }

    /// Removes the permission that would expire first; false if there is none.
    fn yield_oldest(&mut self) -> bool {
        let all = self.mappings.iter().flat_map(|(id, entry)| entry.permitted.iter().map(move |(s, at)| (*at, id, *s)));
        let Some((_, id, scope)) = all.min() else { return false };
        let entry = &mut self.mappings[id];
        if entry.permitted.remove(&scope).is_some() {
            self.entries -= 1;
        }
        if entry.permitted.is_empty() {
            self.remove(id);
        }
        true
    }

    /// Removes what has expired.
    fn sweep(&mut self, now: Instant) {
        let mut dead = Vec::new();
        for (id, entry) in &mut self.mappings {
            let before = entry.permitted.len();
            entry.permitted.retain(|_, expires| *expires > now);
            self.entries -= before - entry.permitted.len();
            if entry.permitted.is_empty() {
                dead.push(id);
            }
        }
        for id in dead {
            self.remove(id);
        }
        let before = self.claims.len();
        self.claims.retain(|_, expires| *expires > now);
        self.entries -= before - self.claims.len();
    }

    fn remove(&mut self, id: usize) {
        let Some(entry) = self.mappings.try_remove(id) else { return };
        self.entries -= entry.permitted.len();
        self.outbound.remove(&(entry.internal, entry.scope));
        if let Some(ids) = self.inbound.get_mut(&entry.external) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.inbound.remove(&entry.external);
            }
        }
        self.blocks.released(entry.external);
    }
}
