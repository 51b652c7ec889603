//! One connection on `/ws/data` or `/ws/mesh`, and when it has to end.

use crate::event::CloseReason;
use crate::limits::Limits;
use crate::mesh::{Dialled, Link};
use crate::queue::Queue;
use crate::rate::{Bucket, PerNode};
use edgelink_auth::MachinePublic;
use edgelink_auth::token::{LEEWAY_SECS, MeshClaims, RelayClaims};
use edgelink_model::{NetworkId, NodeId, Now};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Connection {
    /// The [`crate::ConnId`]'s: a slot is used again, a serial is not.
    pub(crate) serial: u64,
    pub(crate) remote: Option<IpAddr>,
    pub(crate) state: State,
    pub(crate) queue: Queue,
    pub(crate) last_frame: Instant,
    /// Since when the shell has owed a `poll_transmit`; `None` while nothing waits.
    pub(crate) awaiting_since: Option<Instant>,
    /// The earliest of its timers that counts.
    pub(crate) timer: Option<Instant>,
    pub(crate) complaints: Bucket,
    pub(crate) refreshes: Bucket,
    pub(crate) announces: PerNode,
    pub(crate) offline_errors: PerNode,
}

#[derive(Debug)]
pub(crate) enum State {
    Handshake(Box<Handshake>),
    Open(Box<Session>),
    /// Accepted on `/ws/mesh`; waits for a mesh token.
    MeshAccepted {
        since: Instant,
    },
    /// Dialled by this relay; waits for the other's word.
    MeshDialled(Box<Dialled>),
    /// A link to another relay.
    Mesh(Box<Link>),
    /// It has been told why; only what is queued may still go out.
    Closing,
}

/// Not authenticated yet.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) since: Instant,
    pub(crate) challenge: [u8; 32],
    /// Present once the challenge has been sent.
    pub(crate) offer: Option<Offer>,
}

/// A token that is good if the peer has the machine key that it is bound to.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) session: Session,
    /// What the machine key has to sign. Kept instead of the token.
    pub(crate) statement: Vec<u8>,
}

/// An authenticated node.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) node: NodeId,
    pub(crate) network: NetworkId,
    pub(crate) machine: MachinePublic,
    pub(crate) token: TokenFacts,
}

/// What has to be remembered of the current token.
#[derive(Clone, Debug)]
pub(crate) struct TokenFacts {
    pub(crate) jti: String,
    /// Unix seconds.
    pub(crate) issued: u64,
    pub(crate) expires: u64,
}

impl From<RelayClaims> for TokenFacts {
    fn from(claims: RelayClaims) -> Self {
        Self { jti: claims.jti, issued: claims.iat, expires: claims.exp }
    }
}

impl Connection {
    /// A node's.
    pub(crate) fn new(serial: u64, remote: Option<IpAddr>, challenge: [u8; 32], now: Instant) -> Self {
        let state = State::Handshake(Box::new(Handshake { since: now, challenge, offer: None }));
        Self::with_state(serial, remote, state, Queue::new(), now)
    }

    /// Another relay's.
    pub(crate) fn mesh(serial: u64, remote: Option<IpAddr>, state: State, now: Instant) -> Self {
        Self::with_state(serial, remote, state, Queue::mesh(), now)
    }

    fn with_state(serial: u64, remote: Option<IpAddr>, state: State, queue: Queue, now: Instant) -> Self {
        Self {
            serial,
            remote,
            state,
            queue,
            last_frame: now,
            awaiting_since: None,
            timer: None,
            complaints: Bucket::default(),
            refreshes: Bucket::default(),
            announces: PerNode::default(),
            offline_errors: PerNode::default(),
        }
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        match &self.state {
            State::Open(session) => Some(session),
            _ => None,
        }
    }

    pub(crate) fn link(&self) -> Option<&Link> {
        match &self.state {
            State::Mesh(link) => Some(link),
            _ => None,
        }
    }

    pub(crate) fn link_mut(&mut self) -> Option<&mut Link> {
        match &mut self.state {
            State::Mesh(link) => Some(link),
            _ => None,
        }
    }

    /// When it has to be closed if nothing happens until then, and why.
    pub(crate) fn deadline(&self, limits: &Limits, grace: Grace, now: Now) -> Option<(Instant, CloseReason)> {
        let stalled = self.awaiting_since.map(|since| (since + limits.stall_timeout, CloseReason::Stalled));
        let others = match &self.state {
            State::Handshake(handshake) => {
                [Some((handshake.since + limits.handshake_timeout, CloseReason::HandshakeTimeout)), None]
            }
            State::Open(session) => [
                Some((self.last_frame + limits.idle_timeout, CloseReason::Idle)),
                Some((session.token.ends(grace, now), CloseReason::TokenExpired)),
            ],
            State::MeshAccepted { since } => {
                [Some((*since + limits.handshake_timeout, CloseReason::HandshakeTimeout)), None]
            }
            State::MeshDialled(dialled) => {
                [Some((dialled.since + limits.handshake_timeout, CloseReason::HandshakeTimeout)), None]
            }
            State::Mesh(link) => [
                link.unanswered_since.map(|since| (since + limits.mesh_dead, CloseReason::Idle)),
                link.token.as_ref().map(|token| (token.ends(grace, now), CloseReason::TokenExpired)),
            ],
            State::Closing => return None,
        };
        others.into_iter().flatten().chain(stalled).min_by_key(|(at, _)| *at)
    }
}

/// How long past its expiry a token is honoured, the leeway for clock skew apart.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Grace {
    /// The controller is there: not at all.
    None,
    /// It is lost: this long.
    For(Duration),
    /// It has just come back: as long as before, but only until nodes have had the time to fetch fresh ones.
    ForUntil(Duration, Instant),
}

impl Grace {
    /// What a token that is shown now gets.
    pub(crate) fn now(self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::For(grace) | Self::ForUntil(grace, _) => grace,
        }
    }
}

impl From<MeshClaims> for TokenFacts {
    fn from(claims: MeshClaims) -> Self {
        Self { jti: claims.jti, issued: claims.iat, expires: claims.exp }
    }
}

impl TokenFacts {
    /// The first moment at which the token is not honoured any more: the same at which the verifier would refuse it.
    fn ends(&self, grace: Grace, now: Now) -> Instant {
        let plain = self.ends_after(Duration::ZERO, now);
        match grace {
            Grace::None => plain,
            Grace::For(grace) => self.ends_after(grace, now),
            Grace::ForUntil(grace, until) => plain.max(self.ends_after(grace, now).min(until)),
        }
    }

    /// Far moments are given as a day from now: the wall clock may be set until then, so look again.
    fn ends_after(&self, grace: Duration, now: Now) -> Instant {
        const LOOK_AGAIN: Duration = Duration::from_secs(24 * 3600);
        let end = self.expires.saturating_add(LEEWAY_SECS).saturating_add(grace.as_secs()).saturating_mul(1_000);
        now.mono + Duration::from_millis(end.saturating_sub(now.unix_ms)).min(LOOK_AGAIN)
    }
}

/// What unauthenticated connections are counted by: the IPv4 address, or the IPv6 network of one customer.
pub(crate) fn origin_of(remote: IpAddr) -> IpAddr {
    match remote.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
    }
}
