//! Finding a direct path to one peer (specification §6.3): candidates are probed from both sides at once, in attempts of
//! five seconds, three of them two seconds apart, then in the background at growing intervals while there is traffic.
//!
//! Every probe is a sealed P2P_PING. A candidate is proved by a PONG from the very address that was probed, then by a
//! second, full-size round trip: a path that cannot carry full-size packets is no path (DESIGN §5, MTU). An authenticated
//! PING from an unknown address makes that address a candidate, which is how symmetric NATs are met.

use crate::{Budget, MAX_ENDPOINTS, SocketId};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Length of one attempt.
pub const ATTEMPT: Duration = Duration::from_secs(5);
/// Attempts in a row.
pub const ATTEMPTS: u32 = 3;
/// Pause between two of them.
const PAUSE: Duration = Duration::from_secs(2);
/// Pause after the last, doubled each time up to a quarter of an hour.
pub const RETRY_AFTER: Duration = Duration::from_secs(30);
/// The longest pause.
const LONGEST_RETRY: Duration = Duration::from_secs(15 * 60);
/// Times between two rounds over all candidates; the last one goes on.
const ROUNDS: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_millis(300), Duration::from_millis(500), Duration::from_millis(800)];
/// How long a search goes on when it has found one path.
const SETTLE: Duration = Duration::from_secs(1);
/// Addresses learnt from the peer's own probes.
const MAX_OBSERVED: usize = 4;
/// Probes that are remembered until their PONG comes.
const MAX_IN_FLIGHT: usize = 64;
/// Full-size probes to one address before it is held to be too narrow.
const FULL_TRIES: u32 = 4;

/// A probe to be sent, straight to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PunchProbe {
    /// From here.
    pub socket: SocketId,
    /// To there.
    pub remote: SocketAddr,
    /// Padded to the largest datagram that the path must carry.
    pub full: bool,
}

/// What a PONG proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Small packets pass both ways; a full-size probe is due.
    Small,
    /// The path is good.
    Full {
        /// Our socket.
        socket: SocketId,
        /// The peer's address.
        remote: SocketAddr,
        /// Round trip of the full-size probe.
        rtt: Duration,
    },
}

/// How the search stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PunchState {
    /// Nobody has asked for a direct path.
    #[default]
    Idle,
    /// Under way: which of [`ATTEMPTS`].
    Trying(u32),
    /// The attempts have failed; the next begins then.
    Waiting(Instant),
    /// There is a direct path.
    Done,
}

/// The search for a direct path to one peer.
///
/// Memory: at most [`MAX_ENDPOINTS`] + 4 candidates and 64 probes, some 3 KiB.
#[derive(Debug, Default)]
pub struct Punch {
    state: PunchState,
    /// The present attempt ends, or the pause after it.
    until: Option<Instant>,
    pausing: bool,
    failures: u32,
    /// Tell the peer our endpoints.
    signal: bool,
    candidates: Vec<SocketAddr>,
    observed: Vec<(SocketId, SocketAddr)>,
    /// Addresses that small probes have proved, and how many full-size ones were sent.
    proved: Vec<(SocketId, SocketAddr, u32)>,
    sockets: Vec<SocketId>,
    round: usize,
    round_at: Option<Instant>,
    /// What is left of the present round.
    queue: Vec<PunchProbe>,
    in_flight: Vec<(u64, PunchProbe, Instant)>,
    /// The other side has begun this attempt, and begins the next: how things stood before.
    before: Option<PunchState>,
    /// There is a path; the search ends when the present attempt does.
    settling: bool,
}

impl Punch {
    /// How it stands.
    pub fn state(&self) -> PunchState {
        self.state
    }

    /// Whether the peer has told any address.
    pub fn has_candidates(&self) -> bool {
        !self.candidates.is_empty() || !self.observed.is_empty()
    }

    /// Whether small packets have passed somewhere, but no full-size ones.
    pub fn is_too_narrow(&self) -> bool {
        self.proved.iter().any(|(_, _, tries)| *tries >= FULL_TRIES)
    }

    /// There is traffic and no direct path: begin, unless it has begun or failed a short while ago.
    pub fn want(&mut self, sockets: &[SocketId], now: Instant) {
        match self.state {
            PunchState::Idle => self.begin(1, true, sockets, now),
            PunchState::Waiting(at) if at <= now => self.begin(1, true, sockets, now),
            _ => {}
        }
    }

    /// Our endpoints or the peer's have changed: everything may be different now.
    pub fn restart(&mut self, sockets: &[SocketId], now: Instant) {
        self.failures = 0;
        self.begin(1, true, sockets, now);
    }

    /// The peer's endpoints, already filtered. It probes ours now; `delay` is how long to wait so that both begin at
    /// once: a router may let an early packet claim the tuple.
    pub fn set_candidates(&mut self, candidates: Vec<SocketAddr>, sockets: &[SocketId], delay: Duration, now: Instant) {
        let new = candidates.iter().any(|candidate| !self.candidates.contains(candidate));
        self.candidates = candidates;
        self.candidates.truncate(MAX_ENDPOINTS);
        match self.state {
            PunchState::Trying(_) if !self.pausing && !new => {}
            PunchState::Trying(attempt) if !self.pausing => self.begin_round(now + delay, attempt, sockets),
            PunchState::Trying(attempt) => {
                self.begin(attempt, false, sockets, now);
                self.round_at = Some(now + delay);
            }
            PunchState::Done if !new => {}
            _ => {
                self.respond(sockets, now);
                self.round_at = Some(now + delay);
            }
        }
    }

    /// An authenticated frame came from an address that is not known yet: it is probed at once.
    pub fn observe(&mut self, socket: SocketId, remote: SocketAddr, now: Instant) {
        let known = |probe: &PunchProbe| (probe.socket, probe.remote) == (socket, remote);
        if self.observed.contains(&(socket, remote)) || self.queue.iter().any(known) {
            return;
        }
        if self.observed.len() >= MAX_OBSERVED {
            self.observed.remove(0);
        }
        self.observed.push((socket, remote));
        if !matches!(self.state, PunchState::Trying(_)) || self.pausing {
            self.respond(&[socket], now);
        }
        self.queue.push(PunchProbe { socket, remote, full: false });
        self.round_at.get_or_insert(now);
    }

    /// There is a direct path, but maybe a better one will be found in a moment.
    pub fn settle(&mut self, now: Instant) {
        if let PunchState::Trying(_) = self.state {
            self.settling = true;
            let soon = now + SETTLE;
            self.until = Some(self.until.map_or(soon, |at| at.min(soon)));
        } else {
            self.done();
        }
    }

    /// A direct path is in use: nothing more is to be done.
    pub fn done(&mut self) {
        *self = Self {
            state: PunchState::Done,
            candidates: std::mem::take(&mut self.candidates),
            proved: std::mem::take(&mut self.proved),
            in_flight: std::mem::take(&mut self.in_flight),
            ..Self::default()
        };
    }

    /// The direct path is lost.
    pub fn lost(&mut self) {
        if self.state == PunchState::Done {
            self.state = PunchState::Idle;
            self.proved.clear();
        }
    }

    /// Whether our endpoints should be told to the peer now.
    pub fn take_signal(&mut self) -> bool {
        std::mem::take(&mut self.signal)
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let rounds = self.round_at.filter(|_| matches!(self.state, PunchState::Trying(_)) && !self.pausing);
        self.until.into_iter().chain(rounds).min()
    }

    /// Ends what is over, and begins rounds that are due; then [`Self::next_probe`] has what is to be sent.
    pub fn handle_timeout(&mut self, sockets: &[SocketId], now: Instant) {
        self.in_flight.retain(|(_, _, at)| now.saturating_duration_since(*at) < ATTEMPT);
        if self.until.is_some_and(|at| at <= now) {
            if self.settling {
                return self.done();
            }
            match self.state {
                PunchState::Trying(_) if self.before.is_some() => {
                    self.state = match self.before.take() {
                        Some(PunchState::Waiting(at)) => PunchState::Waiting(at.max(now)),
                        _ => PunchState::Waiting(now + RETRY_AFTER),
                    };
                    self.end();
                }
                PunchState::Trying(attempt) if self.pausing => self.begin(attempt + 1, true, sockets, now),
                PunchState::Trying(attempt) if attempt < ATTEMPTS => {
                    self.pausing = true;
                    self.until = Some(now + PAUSE);
                    self.queue.clear();
                }
                PunchState::Trying(_) => {
                    let pause = RETRY_AFTER.saturating_mul(1 << self.failures.min(16)).min(LONGEST_RETRY);
                    self.failures += 1;
                    self.state = PunchState::Waiting(now + pause);
                    self.end();
                }
                _ => self.until = None,
            }
        }
        if self.queue.is_empty()
            && !self.pausing
            && matches!(self.state, PunchState::Trying(_))
            && self.round_at.is_some_and(|at| at <= now)
        {
            self.fill_round(now);
        }
    }

    /// The next probe of the round, if the budget allows one. [`Self::probe_sent`] comes after it.
    pub fn next_probe(&mut self, budget: &mut Budget, now: Instant) -> Option<PunchProbe> {
        if self.queue.is_empty() {
            return None;
        }
        if !budget.take(now) {
            // What is left of the round goes on as soon as there is room.
            self.round_at = Some(now + budget.wait());
            return None;
        }
        let probe = self.queue.remove(0);
        if self.queue.is_empty() {
            let wait = ROUNDS.get(self.round).or(ROUNDS.last()).copied().unwrap_or_default();
            self.round += 1;
            self.round_at = Some(now + wait);
        }
        Some(probe)
    }

    /// The probe went out under this time.
    pub fn probe_sent(&mut self, probe: PunchProbe, sent_us: u64, now: Instant) {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            self.in_flight.remove(0);
        }
        self.in_flight.push((sent_us, probe, now));
    }

    /// An authenticated PONG came from `remote`. It proves that address only if that was what was probed.
    pub fn pong(&mut self, sent_us: u64, socket: SocketId, remote: SocketAddr, now: Instant) -> Option<Proof> {
        let at = self.in_flight.iter().position(|(us, _, _)| *us == sent_us)?;
        let (_, probe, sent) = self.in_flight.remove(at);
        if (probe.socket, probe.remote) != (socket, remote) {
            self.observe(socket, remote, now);
            return None;
        }
        let rtt = now.saturating_duration_since(sent);
        if probe.full {
            return Some(Proof::Full { socket, remote, rtt });
        }
        if !self.proved.iter().any(|(s, r, _)| (*s, *r) == (socket, remote)) {
            self.proved.push((socket, remote, 0));
            self.proved.truncate(MAX_ENDPOINTS);
        }
        let full = PunchProbe { full: true, ..probe };
        if !self.queue.contains(&full) {
            self.queue.insert(0, full);
            self.count_full(socket, remote);
        }
        self.round_at = Some(now);
        Some(Proof::Small)
    }

    fn count_full(&mut self, socket: SocketId, remote: SocketAddr) {
        if let Some((_, _, tries)) = self.proved.iter_mut().find(|(s, r, _)| (*s, *r) == (socket, remote)) {
            *tries += 1;
        }
    }

    fn end(&mut self) {
        self.until = None;
        self.round_at = None;
        self.queue.clear();
        self.observed.clear();
    }

    /// One attempt with the other side, which goes on when it fails: two sides that both did would never end.
    fn respond(&mut self, sockets: &[SocketId], now: Instant) {
        let before = self.state;
        self.begin(1, false, sockets, now);
        self.before = Some(before);
    }

    fn begin(&mut self, attempt: u32, signal: bool, sockets: &[SocketId], now: Instant) {
        self.state = PunchState::Trying(attempt);
        self.until = Some(now + ATTEMPT);
        self.pausing = false;
        self.settling = false;
        self.before = None;
        self.signal |= signal;
        self.proved.clear();
        self.begin_round(now, attempt, sockets);
    }

    fn begin_round(&mut self, at: Instant, attempt: u32, sockets: &[SocketId]) {
        self.state = PunchState::Trying(attempt);
        self.sockets = sockets.to_vec();
        self.round = 0;
        self.round_at = Some(at);
        self.queue.clear();
    }

    fn fill_round(&mut self, now: Instant) {
        for index in 0..self.proved.len() {
            let Some((socket, remote, tries)) = self.proved.get(index).copied() else { continue };
            if tries < FULL_TRIES {
                self.count_full(socket, remote);
                self.queue.push(PunchProbe { socket, remote, full: true });
            }
        }
        let proved = |socket, remote| self.proved.iter().any(|(s, r, _)| (*s, *r) == (socket, remote));
        let given = self.candidates.iter().flat_map(|remote| self.sockets.iter().map(|socket| (*socket, *remote)));
        let all = self.observed.iter().copied().chain(given.filter(|pair| !self.observed.contains(pair)));
        let fresh: Vec<PunchProbe> = all
            .filter(|(socket, remote)| !proved(*socket, *remote))
            .map(|(socket, remote)| PunchProbe { socket, remote, full: false })
            .collect();
        self.queue.extend(fresh);
        if self.queue.is_empty() {
            // Nobody to probe yet.
            self.round_at = Some(now + ROUNDS[3]);
        }
    }
}
