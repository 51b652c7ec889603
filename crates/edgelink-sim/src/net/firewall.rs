//! A stateful firewall without translation: what most home routers do for IPv6 (RFC 6092).

use super::after;
use super::counters::DropReason;
use super::nat::Filtering;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How a router filters what it routes without translating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirewallConfig {
    /// Who may answer what an internal endpoint has sent.
    pub filtering: Filtering,
    /// Life of a permission after the last datagram.
    pub timeout: Duration,
    /// Whether inbound datagrams refresh it too.
    pub inbound_refresh: bool,
    /// Permissions held at most; new flows are dropped beyond that.
    pub max_entries: usize,
}

impl Default for FirewallConfig {
    /// Address-and-port-dependent filtering, 120 s (RFC 6092 §3.2.3), refreshed both ways, 65,536 entries.
    fn default() -> Self {
        Self {
            filtering: Filtering::AddressAndPortDependent,
            timeout: Duration::from_secs(120),
            inbound_refresh: true,
            max_entries: 65_536,
        }
    }
}

/// The permissions: (internal endpoint, what of the remote endpoint counts) → end of life.
#[derive(Clone, Debug)]
pub(super) struct Firewall {
    config: FirewallConfig,
    entries: BTreeMap<(SocketAddr, Remote), Instant>,
}

/// As much of the remote endpoint as the filter looks at.
type Remote = (Option<IpAddr>, Option<u16>);

impl Firewall {
    pub(super) fn new(config: FirewallConfig) -> Self {
        Self { config, entries: BTreeMap::new() }
    }

    /// Forgets everything.
    pub(super) fn reboot(&mut self) {
        self.entries.clear();
    }

    pub(super) fn outbound(&mut self, now: Instant, local: SocketAddr, remote: SocketAddr) -> Result<(), DropReason> {
        let key = (local, self.remote(remote));
        if self.entries.len() >= self.config.max_entries && !self.entries.contains_key(&key) {
            self.entries.retain(|_, expires| *expires > now);
            if self.entries.len() >= self.config.max_entries {
                return Err(DropReason::TableFull);
            }
        }
        self.entries.insert(key, after(now, self.config.timeout));
        Ok(())
    }

    pub(super) fn inbound(&mut self, now: Instant, local: SocketAddr, remote: SocketAddr) -> Result<(), DropReason> {
        let key = (local, self.remote(remote));
        match self.entries.get_mut(&key) {
            Some(expires) if *expires > now => {
                if self.config.inbound_refresh {
                    *expires = after(now, self.config.timeout);
                }
                Ok(())
            }
            _ => Err(DropReason::Filtered),
        }
    }

    fn remote(&self, remote: SocketAddr) -> Remote {
        match self.config.filtering {
            Filtering::EndpointIndependent => (None, None),
            Filtering::AddressDependent => (Some(remote.ip()), None),
            Filtering::AddressAndPortDependent => (Some(remote.ip()), Some(remote.port())),
        }
    }
}
