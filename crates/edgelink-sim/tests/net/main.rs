//! The simulated datagram network: NATs by an RFC 5780 prober and a reference model, hole punching, links, topology.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod conservation;
mod links;
mod model;
mod nat;
mod prober;
mod punch;
mod topology;

use bytes::Bytes;
use edgelink_sim::net::{Arrival, DropReason, HostId, Internet, LanConfig, LanId, NatConfig};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// An internet, its clock and its randomness.
pub(crate) struct Lab {
    pub(crate) net: Internet,
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) rng: ChaCha20Rng,
}

impl Lab {
    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time; only differences are used")]
    pub(crate) fn new(seed: u64) -> Self {
        let start = Instant::now();
        Self { net: Internet::new(), start, now: start, rng: ChaCha20Rng::seed_from_u64(seed) }
    }

    pub(crate) fn host(&mut self, address: &str) -> HostId {
        self.net.add_host(&[ip(address)]).unwrap()
    }

    /// A LAN behind this NAT on the internet, all with the same prefix.
    pub(crate) fn site(&mut self, nat: NatConfig) -> LanId {
        self.net.add_lan(LanConfig::behind(nat, "192.168.1.0/24".parse().unwrap())).unwrap()
    }

    pub(crate) fn address(&self, host: HostId) -> IpAddr {
        self.net.addresses(host)[0]
    }

    pub(crate) fn try_send(
        &mut self,
        from: HostId,
        port: u16,
        dst: SocketAddr,
        payload: impl Into<Bytes>,
    ) -> Result<(), DropReason> {
        self.net.send(self.now, from, port, dst, payload.into(), &mut self.rng)
    }

    pub(crate) fn send(&mut self, from: HostId, port: u16, dst: SocketAddr, payload: impl Into<Bytes>) {
        self.try_send(from, port, dst, payload).expect("the host can send");
    }

    /// Lets time pass, from event to event; what arrived.
    pub(crate) fn advance(&mut self, span: Duration) -> Vec<Arrival> {
        let end = self.now + span;
        let mut arrivals = Vec::new();
        while let Some(due) = self.net.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            while let Some(arrival) = self.net.pop_due(self.now, &mut self.rng) {
                assert_eq!(arrival.at, due, "an arrival is told when it is due");
                arrivals.push(arrival);
            }
        }
        self.now = end;
        arrivals
    }

    /// Sends one datagram and gives its arrival, if there is one within a second.
    pub(crate) fn deliver(&mut self, from: HostId, port: u16, dst: SocketAddr) -> Option<Arrival> {
        self.send(from, port, dst, &b"x"[..]);
        let arrivals = self.advance(SECOND);
        assert!(arrivals.len() <= 1, "one datagram arrives once: {arrivals:?}");
        arrivals.into_iter().next()
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
