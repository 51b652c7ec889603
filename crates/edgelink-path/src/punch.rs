//! Finding a direct path to one peer (specification §6.3): candidates are probed from both sides at once, in attempts of
//! five seconds, three of them two seconds apart, then in the background at growing intervals while there is traffic.
//!
//! Every probe is a sealed P2P_PING. A candidate is proved by a PONG from the very address that was probed, then by larger
//! ones: the largest that comes back tells what the path carries (DESIGN §5, MTU). An authenticated PING from an unknown
//! address makes that address a candidate, which is how symmetric NATs are met. Where that cannot be enough, because one
//! side's mapping depends on the destination and the other filters by port, a fourth and longer attempt guesses
//! ([`Spray`]).

use crate::growth::sizes;
use crate::{Budget, MAX_ENDPOINTS, SPRAY_FOR, SocketId, Spray};
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
/// Rounds of large probes to one address; what has not passed by then does not pass.
const LARGE_ROUNDS: u32 = 4;
/// Between two rounds of the attempt that guesses.
const SPRAY_ROUND: Duration = Duration::from_secs(5);

/// A probe to be sent, straight to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PunchProbe {
    /// From here.
    pub socket: SocketId,
    /// To there.
    pub remote: SocketAddr,
    /// Padded as if it carried an IP packet of so many bytes; 0: as short as it can be.
    pub size: u16,
}

/// What a PONG proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Small packets pass both ways; larger probes are due.
    Small,
    /// The path is good.
    Usable {
        /// Our socket.
        socket: SocketId,
        /// The peer's address.
        remote: SocketAddr,
        /// Round trip of this probe.
        rtt: Duration,
        /// IP packets of at most so many bytes pass.
        limit: u16,
    },
}

/// How the search stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PunchState {
    /// Nobody has asked for a direct path.
    #[default]
    Idle,
    /// Under way: which of [`ATTEMPTS`], or the one after them, which guesses.
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
    proved: Vec<Proved>,
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
    /// The largest IP packet that a path may have to carry.
    largest: u16,
    /// Both NATs are such that guessing is worth while.
    may_spray: bool,
    spray: Option<Spray>,
}

/// An address that small probes have proved.
#[derive(Clone, Copy, Debug)]
struct Proved {
    socket: SocketId,
    remote: SocketAddr,
    /// The largest packet that has passed; 0: none but the smallest.
    limit: u16,
    /// Rounds of large probes so far.
    rounds: u32,
    /// A small one has passed again since.
    again: bool,
}

impl Punch {
    /// A search for paths that should carry IP packets of up to `largest` bytes: the TUN's MTU.
    pub fn new(largest: u16) -> Self {
        Self { largest, ..Self::default() }
    }

    /// Which attempt is under way; 0: none.
    pub fn attempt(&self) -> u32 {
        match self.state {
            PunchState::Trying(attempt) => attempt,
            _ => 0,
        }
    }

    /// Whether guessing is worth while when the attempts have failed: one side's mapping depends on the destination, and
    /// the other filters by port.
    pub fn set_may_spray(&mut self, may: bool) {
        self.may_spray = may;
    }

    /// Whether the attempt that guesses is under way, and nobody has said yet how, or new sockets are due.
    pub fn wants_spray(&self, now: Instant) -> bool {
        let due = self.spray.as_ref().is_none_or(|spray| spray.is_spent(now));
        self.attempt() > ATTEMPTS && !self.pausing && !self.settling && due
    }

    /// Whether our part in it has begun.
    pub fn is_spraying(&self) -> bool {
        self.spray.is_some()
    }

    /// Whether the peer was met at this socket.
    pub fn has_met(&self, socket: SocketId) -> bool {
        self.observed.iter().any(|(s, _)| *s == socket) || self.proved.iter().any(|proved| proved.socket == socket)
    }

    /// Our part in it.
    pub fn set_spray(&mut self, spray: Spray) {
        self.spray = Some(spray);
    }

    /// The peer is mapped elsewhere than was thought: [`Self::wants_spray`] again, if we guess.
    pub fn forget_spray(&mut self) {
        self.spray = None;
    }

    /// Our sockets for this peer have changed, or it is known now when the other side begins.
    pub fn set_sockets(&mut self, sockets: &[SocketId], at: Instant) {
        if let PunchState::Trying(attempt) = self.state
            && !self.pausing
        {
            self.begin_round(at, attempt, sockets);
        }
    }

    /// How it stands.
    pub fn state(&self) -> PunchState {
        self.state
    }

    /// Whether the peer has told any address.
    pub fn has_candidates(&self) -> bool {
        !self.candidates.is_empty() || !self.observed.is_empty()
    }

    /// Whether small packets have passed somewhere, but none that are worth a path.
    pub fn is_too_narrow(&self) -> bool {
        self.proved.iter().any(|proved| proved.rounds >= LARGE_ROUNDS && proved.limit == 0 && proved.again)
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
    /// once: a router may let an early packet claim the tuple. `attempt` is the one that the peer has begun, 0 when it
    /// only answers.
    pub fn set_candidates(
        &mut self,
        candidates: Vec<SocketAddr>,
        attempt: u32,
        sockets: &[SocketId],
        delay: Duration,
        now: Instant,
    ) {
        let new = self.is_news(&candidates);
        self.candidates = candidates;
        self.candidates.truncate(MAX_ENDPOINTS);
        if attempt > ATTEMPTS && self.may_spray && self.attempt() <= ATTEMPTS {
            return self.respond(attempt.min(ATTEMPTS + 1), sockets, now);
        }
        match self.state {
            PunchState::Trying(_) if !self.pausing && !new => {}
            PunchState::Trying(attempt) if !self.pausing => self.begin_round(now + delay, attempt, sockets),
            PunchState::Trying(attempt) => {
                self.begin(attempt, false, sockets, now);
                self.round_at = Some(now + delay);
            }
            PunchState::Done if !new => {}
            _ => {
                self.respond(1, sockets, now);
                self.round_at = Some(now + delay);
            }
        }
    }

    /// Whether there is an address among them that the peer has not told before.
    pub fn is_news(&self, candidates: &[SocketAddr]) -> bool {
        candidates.iter().any(|candidate| !self.candidates.contains(candidate))
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
            self.respond(1, &[socket], now);
        }
        self.queue.push(PunchProbe { socket, remote, size: 0 });
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
            may_spray: self.may_spray,
            ..Self::new(self.largest)
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
        let trying = matches!(self.state, PunchState::Trying(_)) && !self.pausing;
        let rounds = self.round_at.filter(|_| trying);
        // What is queued goes first, and has its own time.
        let guesses = trying && !self.settling && self.queue.is_empty();
        let spray = self.spray.as_ref().filter(|_| guesses).and_then(Spray::not_before);
        self.until.into_iter().chain(rounds).chain(spray).min()
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
                PunchState::Trying(attempt) if attempt < ATTEMPTS + u32::from(self.may_spray) => {
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
    pub fn next_probe(&mut self, budget: &Budget, now: Instant) -> Option<PunchProbe> {
        if self.queue.is_empty() {
            return self.next_guess(budget, now);
        }
        if !budget.take(now) {
            // What is left of the round goes on as soon as there is room.
            self.round_at = Some(now + budget.wait());
            return None;
        }
        let probe = self.queue.remove(0);
        if self.queue.is_empty() {
            let wait = match self.spray {
                Some(_) => SPRAY_ROUND,
                None => ROUNDS.get(self.round).or(ROUNDS.last()).copied().unwrap_or_default(),
            };
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
        let known = self.proved.iter_mut().find(|proved| (proved.socket, proved.remote) == (socket, remote));
        if probe.size > 0 {
            let limit = probe.size.max(known.as_ref().map_or(0, |proved| proved.limit));
            if let Some(proved) = known {
                proved.limit = limit;
            }
            self.queue.retain(|queued| (queued.socket, queued.remote) != (socket, remote) || queued.size > limit);
            return Some(Proof::Usable { socket, remote, rtt, limit });
        }
        if let Some(proved) = known {
            proved.again = true;
        } else if self.proved.len() < MAX_ENDPOINTS {
            self.proved.push(Proved { socket, remote, limit: 0, rounds: 1, again: false });
            let large = sizes(self.largest, remote).map(|size| PunchProbe { size, ..probe });
            self.queue.splice(0..0, large.collect::<Vec<_>>());
            self.round_at = Some(now);
        }
        Some(Proof::Small)
    }

    /// A guess, when the budget has something to spare.
    fn next_guess(&mut self, budget: &Budget, now: Instant) -> Option<PunchProbe> {
        let trying = matches!(self.state, PunchState::Trying(_)) && !self.pausing && !self.settling;
        let spray = self.spray.as_mut().filter(|spray| trying && spray.not_before().is_none_or(|at| at <= now))?;
        if !budget.take_spare(now) {
            spray.wait_until(now + budget.wait());
            return None;
        }
        let (socket, remote) = spray.next(now)?;
        Some(PunchProbe { socket, remote, size: 0 })
    }

    fn end(&mut self) {
        self.until = None;
        self.round_at = None;
        self.queue.clear();
        self.observed.clear();
        self.spray = None;
    }

    /// One attempt with the other side, which goes on when it fails: two sides that both did would never end.
    fn respond(&mut self, attempt: u32, sockets: &[SocketId], now: Instant) {
        let before = self.before.take().unwrap_or(self.state);
        self.begin(attempt, false, sockets, now);
        self.before = Some(before);
    }

    fn begin(&mut self, attempt: u32, signal: bool, sockets: &[SocketId], now: Instant) {
        self.state = PunchState::Trying(attempt);
        self.until = Some(now + if attempt > ATTEMPTS { SPRAY_FOR } else { ATTEMPT });
        self.pausing = false;
        self.settling = false;
        self.spray = None;
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
            let Some(Proved { socket, remote, limit, rounds, .. }) = self.proved.get(index).copied() else { continue };
            if rounds < LARGE_ROUNDS {
                // The mapping that was met may be gone: that is no narrow network.
                self.queue.extend((limit == 0).then_some(PunchProbe { socket, remote, size: 0 }));
                let larger = sizes(self.largest, remote).filter(|size| *size > limit);
                self.queue.extend(larger.map(|size| PunchProbe { socket, remote, size }));
                self.proved.iter_mut().skip(index).take(1).for_each(|proved| proved.rounds += 1);
            }
        }
        let proved =
            |socket, remote| self.proved.iter().any(|proved| (proved.socket, proved.remote) == (socket, remote));
        let given = self.candidates.iter().flat_map(|remote| self.sockets.iter().map(|socket| (*socket, *remote)));
        let all = self.observed.iter().copied().chain(given.filter(|pair| !self.observed.contains(pair)));
        let fresh: Vec<PunchProbe> = all
            .filter(|(socket, remote)| !proved(*socket, *remote))
            .map(|(socket, remote)| PunchProbe { socket, remote, size: 0 })
            .collect();
        self.queue.extend(fresh);
        if self.queue.is_empty() {
            // Nobody to probe yet.
            self.round_at = Some(now + ROUNDS[3]);
        }
    }
}
