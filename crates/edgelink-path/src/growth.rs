//! Finding out that a direct path carries more than was thought: its first large probes were lost, or the network has become
//! wider since (RFC 8899 §5.2). One datagram at a time, and what is lost of these says nothing of the path.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Header, nonce and tag of DATA and of sealed probes.
const OVERHEAD: u16 = edgelink_wire::data::OVERHEAD as u16;
/// Networks below the usual 1,500 bytes that are common: WireGuard's, and the least that IPv6 allows.
const NARROW: [u16; 2] = [1420, 1280];
/// From one attempt to the next, at first; doubled each time.
const FIRST: Duration = Duration::from_secs(5);
/// The longest time between two attempts (RFC 8899 §5.1.1, PMTU_RAISE_TIMER).
const LONGEST: Duration = Duration::from_secs(600);

/// Sizes of large probes, the largest first: `largest`, and what is left of it in narrower networks.
pub(crate) fn sizes(largest: u16, remote: SocketAddr) -> impl Iterator<Item = u16> {
    // IP and UDP header, then ours.
    let headers = if remote.is_ipv4() { 20 } else { 40 } + 8 + OVERHEAD;
    let narrower = NARROW.into_iter().map(move |mtu| mtu - headers).filter(move |size| *size < largest);
    std::iter::once(largest).chain(narrower)
}

/// The attempts of one path.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Growth {
    next: Option<Instant>,
    attempts: u32,
    /// The size that is to be sent, or is on its way under this name.
    trying: Option<(u16, Option<u64>)>,
}

impl Growth {
    /// The path carries `limit` from now on, and may have to carry `largest`.
    pub(crate) fn begin(limit: u16, largest: u16, now: Instant) -> Self {
        Self { next: (limit < largest).then(|| now + FIRST), ..Self::default() }
    }

    /// The same for what is known of a path; a stream has no limit.
    pub(crate) fn of(limit: Option<u16>, largest: u16, now: Instant) -> Self {
        limit.map_or_else(Self::default, |limit| Self::begin(limit, largest, now))
    }

    /// When the next attempt is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// The size to be tried now, if an attempt is due.
    pub(crate) fn attempt(&mut self, limit: u16, largest: u16, remote: SocketAddr, now: Instant) -> Option<u16> {
        self.next.filter(|at| *at <= now)?;
        let size = sizes(largest, remote).filter(|size| *size > limit).min();
        let pause = FIRST.saturating_mul(1 << self.attempts.min(16)).min(LONGEST);
        self.attempts += 1;
        self.next = size.map(|_| now + pause);
        self.trying = size.map(|size| (size, None));
        size
    }

    /// What was to be tried went out under this name; `false` when that was something else.
    pub(crate) fn sent(&mut self, sent_us: u64) -> bool {
        match &mut self.trying {
            Some((_, name @ None)) => {
                *name = Some(sent_us);
                true
            }
            _ => false,
        }
    }

    /// Whether this PONG shows that a larger size passes: which.
    pub(crate) fn answered(&mut self, sent_us: u64) -> Option<u16> {
        let (size, _) = self.trying.take_if(|(_, name)| *name == Some(sent_us))?;
        Some(size)
    }

    /// The attempt did not go out after all.
    pub(crate) fn forget_unsent(&mut self) {
        self.trying.take_if(|(_, name)| name.is_none());
    }
}
