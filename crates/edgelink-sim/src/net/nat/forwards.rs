//! Ports that internal hosts asked for (UPnP-IGD, NAT-PMP, PCP).

use super::table::Nat;
use crate::net::after;
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

/// Held at most by one router.
const MAX_FORWARDS: usize = 1024;

/// One external endpoint for each internal one, both ways.
#[derive(Clone, Debug, Default)]
pub(super) struct Forwards {
    inwards: BTreeMap<SocketAddrV4, (SocketAddrV4, Instant)>,
    outwards: BTreeMap<SocketAddrV4, SocketAddrV4>,
}

impl Forwards {
    pub(super) fn internal(&self, now: Instant, external: SocketAddrV4) -> Option<SocketAddrV4> {
        self.inwards.get(&external).filter(|(_, expires)| *expires > now).map(|(internal, _)| *internal)
    }

    pub(super) fn external(&self, now: Instant, internal: SocketAddrV4) -> Option<SocketAddrV4> {
        let external = *self.outwards.get(&internal)?;
        self.internal(now, external).map(|_| external)
    }

    fn remove(&mut self, internal: SocketAddrV4) {
        if let Some(external) = self.outwards.remove(&internal) {
            self.inwards.remove(&external);
        }
    }

    fn remove_expired(&mut self, now: Instant) {
        self.inwards.retain(|_, (_, expires)| *expires > now);
        self.outwards.retain(|_, external| self.inwards.contains_key(external));
    }
}

impl Nat {
    /// Forwards an external port, `wanted` or the next that is free, to `internal`. A living one is renewed; a lifetime
    /// of zero ends it. `None` if there is none then, or the router does not offer this.
    pub(in crate::net) fn forward(
        &mut self,
        now: Instant,
        internal: SocketAddrV4,
        wanted: u16,
        lifetime: Duration,
    ) -> Option<SocketAddrV4> {
        if !self.config.port_mapping {
            return None;
        }
        let living = self.forwards.external(now, internal);
        self.forwards.remove_expired(now);
        if lifetime.is_zero() {
            self.forwards.remove(internal);
            return None;
        }
        if living.is_none() && self.forwards.inwards.len() >= MAX_FORWARDS {
            return None;
        }
        let address = self.paired(*internal.ip())?;
        let external = living.or_else(|| {
            (wanted.max(1)..=u16::MAX)
                .map(|port| SocketAddrV4::new(address, port))
                .find(|external| self.forwardable(now, *external, internal))
        })?;
        self.forwards.inwards.insert(external, (internal, after(now, lifetime)));
        self.forwards.outwards.insert(internal, external);
        Some(external)
    }

    fn forwardable(&self, now: Instant, external: SocketAddrV4, internal: SocketAddrV4) -> bool {
        self.forwards.internal(now, external).is_none() && !self.used_by_others(now, external, internal)
    }
}
