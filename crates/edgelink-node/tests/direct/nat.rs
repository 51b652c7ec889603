//! NATs per RFC 4787, as far as hole punching meets them.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

/// What a mapping or filter depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum By {
    Nothing,
    Address,
    AddressAndPort,
}

#[derive(Debug)]
pub(crate) struct Nat {
    pub(crate) public: Ipv4Addr,
    mapping: By,
    filtering: By,
    next_port: u16,
    /// Inner socket and what the mapping depends on → outer port.
    ports: HashMap<(SocketAddr, Option<SocketAddr>), u16>,
    inner: HashMap<u16, SocketAddr>,
    sent_to: HashMap<u16, HashSet<SocketAddr>>,
    /// A stranger's packet that comes before the inner host has sent claims the tuple for the router itself: the inner
    /// host gets another port for that destination (docs/testbed.md).
    pub(crate) early_claims: bool,
    claimed: HashSet<(SocketAddr, u16)>,
    /// UDP does not pass.
    pub(crate) blocks: bool,
    /// A mapped port and where it leads.
    pub(crate) forwarded: Option<(u16, SocketAddr)>,
    /// Who has come in by it, and is answered from it.
    visitors: HashSet<SocketAddr>,
}

impl Nat {
    pub(crate) fn new(public: Ipv4Addr, mapping: By, filtering: By) -> Self {
        Self {
            public,
            mapping,
            filtering,
            next_port: 40_000,
            ports: HashMap::new(),
            inner: HashMap::new(),
            sent_to: HashMap::new(),
            early_claims: false,
            claimed: HashSet::new(),
            blocks: false,
            forwarded: None,
            visitors: HashSet::new(),
        }
    }

    /// The four names of specification §6.1.
    pub(crate) fn named(public: Ipv4Addr, name: &str) -> Self {
        let (mapping, filtering) = match name {
            "full_cone" => (By::Nothing, By::Nothing),
            "restricted_cone" => (By::Nothing, By::Address),
            "port_restricted" => (By::Nothing, By::AddressAndPort),
            "symmetric" => (By::AddressAndPort, By::AddressAndPort),
            other => panic!("{other} is no NAT"),
        };
        Self::new(public, mapping, filtering)
    }

    pub(crate) fn outbound(&mut self, from: SocketAddr, to: SocketAddr) -> Option<SocketAddr> {
        if self.blocks {
            return None;
        }
        if let Some((port, _)) = self.forwarded.filter(|(_, inner)| *inner == from && self.visitors.contains(&to)) {
            return Some(SocketAddr::new(self.public.into(), port));
        }
        let key = match self.mapping {
            By::Nothing => None,
            By::Address => Some(SocketAddr::new(to.ip(), 0)),
            By::AddressAndPort => Some(to),
        };
        let mut port = self.port_of(from, key);
        if self.claimed.contains(&(to, port)) {
            port = self.port_of(from, Some(to));
        }
        self.inner.insert(port, from);
        self.sent_to.entry(port).or_default().insert(to);
        Some(SocketAddr::new(self.public.into(), port))
    }

    fn port_of(&mut self, from: SocketAddr, key: Option<SocketAddr>) -> u16 {
        let next = &mut self.next_port;
        *self.ports.entry((from, key)).or_insert_with(|| {
            *next += 7;
            *next
        })
    }

    pub(crate) fn inbound(&mut self, from: SocketAddr, port: u16) -> Option<SocketAddr> {
        if let Some((_, inner)) = self.forwarded.filter(|(mapped, _)| *mapped == port && !self.blocks) {
            self.visitors.insert(from);
            return Some(inner);
        }
        let sent = self.sent_to.get(&port)?;
        let passes = match self.filtering {
            By::Nothing => true,
            By::Address => sent.iter().any(|to| to.ip() == from.ip()),
            By::AddressAndPort => sent.contains(&from),
        };
        if self.early_claims && !passes {
            self.claimed.insert((from, port));
        }
        self.inner.get(&port).copied().filter(|_| passes && !self.blocks)
    }

    /// The router starts anew.
    pub(crate) fn reboot(&mut self) {
        self.ports.clear();
        self.inner.clear();
        self.sent_to.clear();
        self.claimed.clear();
    }
}
