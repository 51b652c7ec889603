//! The STUN client: which address the world sees, and how the NAT in front of us behaves (RFC 5780, specification §6.1).
//!
//! Tests run one after the other over one socket, filtering before mapping, because a mapping test opens the very filter
//! that the other asks about. Two servers with one address each do too; only endpoint-independent filtering is then not
//! told from address-dependent filtering, and the stricter one is assumed.

use crate::{Budget, usable};
use edgelink_wire::stun::binding::{Request, Response};
use edgelink_wire::stun::{Message, TransactionId};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A request is sent at 0, 250 and 750 ms and given up a second later (RFC 8489 §6.2.1 with a shorter start).
const WAITS: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1000)];
/// The most servers that are asked.
const MAX_SERVERS: usize = 4;
/// The most mapped addresses that are remembered.
const MAX_MAPPED: usize = 8;

/// A STUN server as CONFIG names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StunServer {
    /// Its first address and port; the next port is its second one.
    pub primary: SocketAddr,
    /// Its second address, for RFC 5780.
    pub second: Option<IpAddr>,
}

/// How a mapping or filter depends on the destination (RFC 4787).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Not (yet) known.
    #[default]
    Unknown,
    /// No translation at all.
    None,
    /// The same for all destinations.
    EndpointIndependent,
    /// Per destination address.
    AddressDependent,
    /// Per destination address and port.
    AddressAndPortDependent,
}

impl Behaviour {
    /// The behaviour of this name; unknown ones are unknown.
    pub fn from_name(name: &str) -> Self {
        let all = [Self::None, Self::EndpointIndependent, Self::AddressDependent, Self::AddressAndPortDependent];
        all.into_iter().find(|behaviour| behaviour.name() == name).unwrap_or_default()
    }

    /// As in P2P_ENDPOINT.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::EndpointIndependent => "endpoint_independent",
            Self::AddressDependent => "address_dependent",
            Self::AddressAndPortDependent => "address_and_port_dependent",
        }
    }
}

/// The names of specification §6.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NatName {
    /// Not (yet) known.
    Unknown,
    /// No NAT and no filter.
    Open,
    /// Full cone.
    FullCone,
    /// Restricted cone.
    RestrictedCone,
    /// Port restricted cone.
    PortRestricted,
    /// Symmetric.
    Symmetric,
    /// No UDP gets through.
    UdpBlocked,
}

/// A datagram for a STUN server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StunQuery {
    /// The server.
    pub to: SocketAddr,
    /// The request.
    pub bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    /// Our address as the n-th server sees it.
    First(usize),
    /// An answer from another address and port (`true`) or another port only.
    Filter { address: bool },
    /// Our address as another server address sees it.
    Second(SocketAddr),
    /// The same address, another port.
    Third(SocketAddr),
    /// The known address again: is the mapping still there?
    Refresh(SocketAddr),
}

#[derive(Clone, Copy, Debug)]
struct Running {
    test: Test,
    to: SocketAddr,
    transaction: TransactionId,
    sent: usize,
    next: Instant,
}

/// The tests of one socket, and what they have shown.
#[derive(Debug, Default)]
pub struct NatDiscovery {
    servers: Vec<StunServer>,
    running: Option<Running>,
    waiting: Option<Test>,
    /// When the next request may go; the budget was empty.
    not_before: Option<Instant>,
    server: Option<StunServer>,
    other: Option<SocketAddr>,
    first: Option<SocketAddr>,
    second: Option<SocketAddr>,
    mapped: Vec<(SocketAddr, SocketAddr)>,
    mapping: Behaviour,
    filtering: Behaviour,
    blocked: bool,
    answered_at: Option<Instant>,
    /// Only the mapped address is wanted.
    brief: bool,
}

impl NatDiscovery {
    /// Begins all tests with these servers, of which the first four are asked. What was known is forgotten.
    pub fn start(&mut self, servers: &[StunServer]) {
        let servers: Vec<StunServer> =
            servers.iter().filter(|server| usable(server.primary, &[])).take(MAX_SERVERS).copied().collect();
        *self = Self { waiting: (!servers.is_empty()).then_some(Test::First(0)), servers, ..Self::default() };
    }

    /// Asks for the mapped address of this socket and nothing else. What was known is forgotten.
    pub fn start_brief(&mut self, servers: &[StunServer]) {
        self.start(servers);
        self.brief = true;
    }

    /// Asks for the mapped address alone, once more, unless something is being asked anyway.
    pub fn refresh(&mut self) {
        if self.running.is_none() && self.waiting.is_none() {
            self.waiting = match self.server {
                Some(server) => Some(Test::Refresh(server.primary)),
                None if !self.servers.is_empty() => Some(Test::First(0)),
                None => None,
            };
        }
    }

    /// When [`Self::poll`] has something to do; `None`: nothing is under way.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        match (&self.running, self.waiting) {
            (Some(running), _) => Some(running.next),
            (None, Some(_)) => Some(self.not_before.unwrap_or(now)),
            (None, None) => None,
        }
    }

    /// The request that is due, if the budget allows one; call until `None`.
    pub fn poll(&mut self, budget: &Budget, now: Instant, rng: &mut impl rand_core::Rng) -> Option<StunQuery> {
        if self.running.is_some_and(|running| running.sent >= WAITS.len() && running.next <= now) {
            let test = self.running.take()?.test;
            self.failed(test);
        }
        if let Some(test) = self.waiting.filter(|_| self.running.is_none()) {
            let Some(to) = self.target(test) else {
                self.waiting = None;
                self.failed(test);
                return None;
            };
            let mut transaction = [0; 12];
            rng.fill_bytes(&mut transaction);
            self.waiting = None;
            self.running = Some(Running { test, to, transaction: TransactionId(transaction), sent: 0, next: now });
        }
        let running = self.running.as_mut().filter(|running| running.next <= now)?;
        if !budget.take(now) {
            running.next = now + budget.wait();
            return None;
        }
        running.next = now + WAITS.get(running.sent).copied().unwrap_or(WAITS[2]);
        running.sent += 1;
        let (change_ip, change_port) = match running.test {
            Test::Filter { address } => (address, true),
            _ => (false, false),
        };
        let request = Request { transaction: running.transaction, change_ip, change_port, fingerprint: true };
        let (bytes, len) = request.encode();
        Some(StunQuery { to: running.to, bytes: bytes.get(..len)?.to_vec() })
    }

    /// A STUN message arrived. Only a response to the running request, from where it may come from, means anything.
    /// Returns whether a mapped address is new or has changed.
    pub fn handle(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let Some(running) = self.running else { return false };
        let Ok(response) = Message::parse(datagram).and_then(|message| Response::parse(&message)) else { return false };
        let expected = match running.test {
            Test::Filter { address: true } => {
                from.ip() != running.to.ip() && Some(from.ip()) == self.other.map(|o| o.ip())
            }
            Test::Filter { address: false } => from.ip() == running.to.ip() && from.port() != running.to.port(),
            _ => from == running.to,
        };
        if response.transaction != running.transaction || !expected {
            return false;
        }
        self.running = None;
        self.not_before = None;
        let Ok(success) = response.result else {
            self.failed(running.test);
            return false;
        };
        let mapped = SocketAddr::new(success.mapped.ip().to_canonical(), success.mapped.port());
        if !usable(mapped, &[]) {
            self.failed(running.test);
            return false;
        }
        self.answered_at = Some(now);
        self.blocked = false;
        let mut changed = false;
        if !matches!(running.test, Test::Filter { .. }) {
            changed = self.note(running.to, mapped);
        }
        self.succeeded(running.test, running.to, mapped, success.other);
        changed
    }

    /// Our addresses as servers saw them, each once.
    pub fn mapped(&self) -> Vec<SocketAddr> {
        let mut mapped: Vec<SocketAddr> = self.mapped.iter().map(|(_, mapped)| *mapped).collect();
        mapped.sort_unstable();
        mapped.dedup();
        mapped
    }

    /// When a server last answered.
    pub fn answered_at(&self) -> Option<Instant> {
        self.answered_at
    }

    /// Whether every server was asked and none has answered.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether there are servers to be asked.
    pub fn is_asked(&self) -> bool {
        !self.servers.is_empty()
    }

    /// Whether no test is under way.
    pub fn is_done(&self) -> bool {
        self.running.is_none() && self.waiting.is_none()
    }

    /// Mapping and filtering. `local` are this socket's own addresses: who is seen under one of these has no NAT.
    pub fn behaviour(&self, local: impl Fn(SocketAddr) -> bool) -> (Behaviour, Behaviour) {
        let none = self.first.is_some_and(local);
        (if none { Behaviour::None } else { self.mapping }, self.filtering)
    }

    /// The name of specification §6.1.
    pub fn name(&self, local: impl Fn(SocketAddr) -> bool) -> NatName {
        use Behaviour::{AddressAndPortDependent, AddressDependent, EndpointIndependent, None, Unknown};
        if self.blocked {
            return NatName::UdpBlocked;
        }
        match self.behaviour(local) {
            (None, EndpointIndependent) => NatName::Open,
            (EndpointIndependent, EndpointIndependent) => NatName::FullCone,
            // A firewall without translation is as hard to get through as a NAT that filters so.
            (None | EndpointIndependent, AddressDependent) => NatName::RestrictedCone,
            (None | EndpointIndependent, AddressAndPortDependent) => NatName::PortRestricted,
            (AddressDependent | AddressAndPortDependent, _) => NatName::Symmetric,
            (Unknown, _) | (_, Unknown | None) => NatName::Unknown,
        }
    }

    fn target(&self, test: Test) -> Option<SocketAddr> {
        match test {
            Test::First(index) => self.servers.get(index).map(|server| server.primary),
            Test::Filter { .. } => self.server.map(|server| server.primary),
            Test::Second(to) | Test::Third(to) | Test::Refresh(to) => Some(to),
        }
    }

    fn succeeded(&mut self, test: Test, to: SocketAddr, mapped: SocketAddr, other: Option<SocketAddr>) {
        match test {
            Test::First(index) => {
                self.first = Some(mapped);
                self.server = self.servers.get(index).copied();
                let port = to.port().wrapping_add(1);
                let told = self.server.and_then(|server| server.second).map(|ip| SocketAddr::new(ip, port));
                self.other = other.filter(|other| usable(*other, &[])).or(told);
                let address = self.other.is_some_and(|o| o.ip() != to.ip());
                self.waiting = (!self.brief).then_some(Test::Filter { address });
            }
            Test::Filter { address: true } => {
                self.filtering = Behaviour::EndpointIndependent;
                self.go_on_with_mapping();
            }
            Test::Filter { address: false } => {
                self.filtering = Behaviour::AddressDependent;
                self.go_on_with_mapping();
            }
            Test::Second(_) if Some(mapped) == self.first => self.mapping = Behaviour::EndpointIndependent,
            Test::Second(to) => {
                self.second = Some(mapped);
                // Until the third answer: symmetric is symmetric.
                self.mapping = Behaviour::AddressAndPortDependent;
                self.waiting = Some(Test::Third(SocketAddr::new(to.ip(), to.port().wrapping_add(1))));
            }
            Test::Third(_) => {
                let same = Some(mapped) == self.second;
                self.mapping = if same { Behaviour::AddressDependent } else { Behaviour::AddressAndPortDependent };
            }
            Test::Refresh(_) => self.first = Some(mapped),
        }
    }

    fn failed(&mut self, test: Test) {
        match test {
            Test::First(index) if index + 1 < self.servers.len() => self.waiting = Some(Test::First(index + 1)),
            Test::First(_) => self.blocked = true,
            Test::Filter { address: true } => self.waiting = Some(Test::Filter { address: false }),
            Test::Filter { address: false } => {
                self.filtering = Behaviour::AddressAndPortDependent;
                self.go_on_with_mapping();
            }
            Test::Second(failed) => self.waiting = self.second_after(Some(failed)).map(Test::Second),
            Test::Third(_) => {}
            // The whole discovery shows what has become of the network.
            Test::Refresh(_) => self.waiting = Some(Test::First(0)),
        }
    }

    fn go_on_with_mapping(&mut self) {
        self.waiting = self.second_after(None).map(Test::Second);
    }

    /// Addresses of servers other than the first one, in order: the one after `failed`.
    fn second_after(&self, failed: Option<SocketAddr>) -> Option<SocketAddr> {
        let first = self.server?;
        let own = self.other.map(|other| SocketAddr::new(other.ip(), first.primary.port()));
        let family = |address: &SocketAddr| address.is_ipv4() == first.primary.is_ipv4();
        let others = self.servers.iter().map(|server| server.primary);
        let mut candidates =
            own.into_iter().chain(others).filter(|address| address.ip() != first.primary.ip() && family(address));
        match failed {
            None => candidates.next(),
            Some(failed) => candidates.skip_while(|address| *address != failed).nth(1),
        }
    }

    fn note(&mut self, server: SocketAddr, mapped: SocketAddr) -> bool {
        let new = !self.mapped.iter().any(|(_, known)| *known == mapped);
        if let Some((_, known)) = self.mapped.iter_mut().find(|(of, _)| *of == server) {
            *known = mapped;
        } else if self.mapped.len() < MAX_MAPPED {
            self.mapped.push((server, mapped));
        } else {
            return false;
        }
        new
    }
}
