//! The STUN server's brain: Binding (RFC 8489) and NAT behaviour discovery (RFC 5780), without I/O.
//!
//! A [`Responder`] serves one address family on one or two addresses, each on two ports. Datagrams and the time go in,
//! at most one answer each comes out. What holds, whatever arrives:
//!
//! - **An answer goes to the datagram's source and nowhere else**: RESPONSE-PORT, which asks for another port, is
//!   unknown here (420), and so is PADDING, which asks for large answers.
//! - **Nothing to gain for a reflection attack**: an answer is at most [`MAX_GROWTH`] bytes longer than its request; each
//!   source gets at most [`StunConfig::rate`], all together at most [`StunConfig::total`].
//! - Clients of RFC 3489, which have no cookie, are answered too, but for those that want their answer sent elsewhere.
//! - Malformed datagrams, other methods, responses and indications are not answered at all, only counted, so that two
//!   servers can never keep each other busy.
//! - Memory is fixed at start: [`StunConfig::buckets`] times 16 bytes.

mod limit;

use crate::rate::{Bucket, Rate};
use edgelink_wire::stun::binding::{MAX_RESPONSE, Refusal, Request, Response, Success, Unknown};
use edgelink_wire::stun::classic::{ClassicRequest, ClassicResponse, MAX_CLASSIC_RESPONSE};
use edgelink_wire::stun::{Message, StunError, attribute};
use limit::Sources;
use rand_core::Rng;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// An answer is at most so much longer than its request, in bytes: four IPv6 addresses.
pub const MAX_GROWTH: usize = 4 * 24;
const _: () = assert!(MAX_CLASSIC_RESPONSE <= MAX_RESPONSE);

/// One of the server's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// The first, or the only one.
    First,
    /// The other.
    Second,
}

impl Which {
    fn changed(self, change: bool) -> Self {
        match (self, change) {
            (Self::First, false) | (Self::Second, true) => Self::First,
            _ => Self::Second,
        }
    }
}

/// One of the server's sockets: which of its addresses, and which of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Socket {
    /// The address.
    pub ip: Which,
    /// The port.
    pub port: Which,
}

impl Socket {
    fn changed(self, ip: bool, port: bool) -> Self {
        Self { ip: self.ip.changed(ip), port: self.port.changed(port) }
    }
}

/// What the server is reached at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// As clients see it, which behind one-to-one NAT is not what the socket is bound to.
    pub ip: IpAddr,
    /// The second one, of the same family. With it the server offers RFC 5780; without it, it has just two ports.
    pub other_ip: Option<IpAddr>,
    /// 3478 and 3479 by default.
    pub ports: [u16; 2],
}

impl Addresses {
    /// One or two addresses with the ports 3478 and 3479.
    pub fn new(ip: IpAddr, other_ip: Option<IpAddr>) -> Self {
        Self { ip, other_ip, ports: [3478, 3479] }
    }

    /// What clients see of a socket; `None` for the second address of a server that has one.
    pub fn of(&self, socket: Socket) -> Option<SocketAddr> {
        let ip = match socket.ip {
            Which::First => self.ip,
            Which::Second => self.other_ip?,
        };
        let [first, second] = self.ports;
        Some(SocketAddr::new(ip, if socket.port == Which::First { first } else { second }))
    }
}

/// How a server is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StunConfig {
    /// What it is reached at.
    pub addresses: Addresses,
    /// Answers per source, an IPv4 address or an IPv6 /64.
    pub rate: Rate,
    /// Answers in all.
    pub total: Rate,
    /// Sources are told apart by a secret hash into so many buckets (at least 1); those that share one share its rate.
    pub buckets: usize,
}

impl StunConfig {
    /// 10 answers a second and 50 at once per source (a full discovery takes eight, and a hundred nodes may sit behind
    /// one address); 20,000 a second in all; 16,384 buckets, 256 KiB.
    pub fn new(addresses: Addresses) -> Self {
        Self {
            addresses,
            rate: Rate { period: Duration::from_millis(100), burst: 50 },
            total: Rate { period: Duration::from_micros(50), burst: 2_000 },
            buckets: 16_384,
        }
    }
}

/// An answer; it goes to the source of the datagram that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The socket to send it from.
    pub from: Socket,
    datagram: [u8; MAX_RESPONSE],
    len: usize,
}

impl Answer {
    /// What to send.
    pub fn datagram(&self) -> &[u8] {
        self.datagram.get(..self.len).unwrap_or_default()
    }
}

/// Counters since the start; each datagram counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StunStats {
    /// Answered with the client's address.
    pub answered: u64,
    /// Answered with 420: unknown attributes, or a change that this server cannot make.
    pub unknown_attributes: u64,
    /// Answered with 400.
    pub bad_requests: u64,
    /// Not answered: no STUN, malformed, or with a wrong FINGERPRINT.
    pub malformed: u64,
    /// Not answered: another method, a response or an indication.
    pub unexpected: u64,
    /// Not answered: the source could not have sent it, or is ourselves.
    pub bad_source: u64,
    /// Not answered: more than the source may have.
    pub limited: u64,
    /// Not answered: more than all together may have.
    pub overloaded: u64,
}

/// A STUN server for one address family.
#[derive(Debug)]
pub struct Responder {
    config: StunConfig,
    sources: Sources,
    total: Bucket,
    stats: StunStats,
}

impl Responder {
    /// A server; `rng` makes the secret of its buckets.
    pub fn new(config: StunConfig, rng: &mut impl Rng) -> Self {
        let sources = Sources::new(config.buckets, rng);
        Self { config, sources, total: Bucket::default(), stats: StunStats::default() }
    }

    /// The answer to a datagram that arrived on `local` from `source`, if it gets one.
    pub fn answer(&mut self, local: Socket, source: SocketAddr, datagram: &[u8], now: Instant) -> Option<Answer> {
        // Cheapest first: what is not answered must not cost the source its rate, since sources are easily forged.
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(StunError::Foreign) => match ClassicRequest::parse(datagram) {
                Some(request) => return self.classic_answer(local, source, &request, now),
                None => return self.silent(|stats| &mut stats.malformed),
            },
            Err(_) => return self.silent(|stats| &mut stats.malformed),
        };
        let request = Request::parse(&message);
        if request == Err(StunError::UnexpectedType) {
            return self.silent(|stats| &mut stats.unexpected);
        }
        if !self.admit(source, now) {
            return None;
        }
        let (from, result) = self.result(local, source, request);
        let count = match &result {
            Ok(_) => &mut self.stats.answered,
            Err(Refusal { code: 420, .. }) => &mut self.stats.unknown_attributes,
            Err(_) => &mut self.stats.bad_requests,
        };
        *count += 1;
        let response = Response { transaction: message.transaction, result, fingerprint: message.fingerprint };
        let (datagram, len) = response.encode();
        Some(Answer { from, datagram, len })
    }

    /// RFC 3489 §8.1. A change that this server cannot make is not answered, as if the answer were lost.
    fn classic_answer(
        &mut self,
        local: Socket,
        source: SocketAddr,
        request: &ClassicRequest,
        now: Instant,
    ) -> Option<Answer> {
        let addresses = self.config.addresses;
        let changes = request.change_ip || request.change_port;
        if changes && addresses.other_ip.is_none() {
            return self.silent(|stats| &mut stats.unexpected);
        }
        if !self.admit(source, now) {
            return None;
        }
        self.stats.answered += 1;
        let from = local.changed(request.change_ip, request.change_port);
        let two = addresses.other_ip.is_some();
        let response = ClassicResponse {
            transaction: request.transaction,
            mapped: source,
            source: addresses.of(from),
            changed: addresses.of(local.changed(true, true)).filter(|_| two),
        };
        let (short, len) = response.encode();
        let mut datagram = [0; MAX_RESPONSE];
        datagram.split_at_mut(MAX_CLASSIC_RESPONSE).0.copy_from_slice(&short);
        Some(Answer { from, datagram, len })
    }

    /// Whether an answer may go to `source` now; counts why not.
    fn admit(&mut self, source: SocketAddr, now: Instant) -> bool {
        let refused = if !self.may_be_answered(source) {
            &mut self.stats.bad_source
        } else if !self.sources.allow(source.ip(), self.config.rate, now) {
            &mut self.stats.limited
        } else if !self.total.allow(self.config.total, now) {
            &mut self.stats.overloaded
        } else {
            return true;
        };
        *refused += 1;
        false
    }

    /// RFC 8489 §6.3.1 and RFC 5780 §6.1.
    fn result(
        &self,
        local: Socket,
        source: SocketAddr,
        request: Result<(Request, Unknown), StunError>,
    ) -> (Socket, Result<Success, Refusal>) {
        let (request, unknown) = match request {
            Ok(request) => request,
            Err(_) => return (local, Err(Refusal { code: 400, unknown: Unknown::default() })),
        };
        if !unknown.types().is_empty() {
            return (local, Err(Refusal { code: 420, unknown }));
        }
        let addresses = &self.config.addresses;
        let changes = request.change_ip || request.change_port;
        if changes && addresses.other_ip.is_none() {
            return (local, Err(Refusal { code: 420, unknown: Unknown::only(attribute::CHANGE_REQUEST) }));
        }
        let from = local.changed(request.change_ip, request.change_port);
        // Other than that to which the request came, whatever it asks for (RFC 5780 §7.4).
        let other = local.changed(true, true);
        let two = addresses.other_ip.is_some();
        let origin = addresses.of(from).filter(|_| two);
        (from, Ok(Success { mapped: source, origin, other: addresses.of(other) }))
    }

    /// Counters.
    pub fn stats(&self) -> StunStats {
        self.stats
    }

    /// Sources that only a forger has. Our own addresses, so that no answer comes back to us.
    fn may_be_answered(&self, source: SocketAddr) -> bool {
        let ip = source.ip();
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        let Addresses { ip: ours, other_ip, ports } = &self.config.addresses;
        let ourselves = (ip == *ours || Some(ip) == *other_ip) && ports.contains(&source.port());
        source.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast && !ourselves
    }

    fn silent(&mut self, count: impl FnOnce(&mut StunStats) -> &mut u64) -> Option<Answer> {
        *count(&mut self.stats) += 1;
        None
    }
}
