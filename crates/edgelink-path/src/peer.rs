//! All paths to one peer: probing, doubt and death (DESIGN §5); the choice is in `choice`.

mod choice;

use crate::estimate::{Estimate, InFlight};
use crate::growth::Growth;
use crate::hedge::{Doubt, Hedge};
use crate::keepalive::{KEEPALIVE, Keepalive};
use crate::rank::{Rank, Standing, is_better};
use crate::{
    ASLEEP, Advice, BETTER_FOR, CANDIDATE_INTERVAL, DEAD_AFTER, DOUBTED_AFTER, Hops, IDLE, KEPT, MAX_DIRECT, MAX_PATHS,
    PAUSED_INTERVAL, PROBE_INTERVAL, PathId, RelayWay, Way,
};
use edgelink_model::ServerId;
use std::time::{Duration, Instant};

/// A relay's word that it does not have the peer is about the one-hop path if that was tried this recently.
const JUST_TRIED: Duration = Duration::from_millis(1500);
/// While PONGs of the current path are missing, all others are probed each second, dead ones too, for this long: what
/// broke one may have mended another.
const EAGER_FOR: Duration = Duration::from_secs(10);

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The way that it takes; `None` when there is no way at all.
    pub first: Option<Way>,
    /// The same sealed bytes also go here.
    pub second: Option<Way>,
    /// The largest IP packet that both carry; `None` when neither is a direct path by UDP.
    pub limit: Option<u16>,
    /// [`PeerPaths::poll_timeout`] has moved.
    pub woken: bool,
}

/// A probe to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Goes into the P2P_PING.
    pub path: PathId,
    /// The only way that it may take.
    pub way: Way,
    /// Nothing else flows there: a P2P_KEEPALIVE goes with it (specification §6.4).
    pub keepalive: bool,
    /// It is padded as if it carried an IP packet of so many bytes, the largest that is sent there: a way that carries
    /// small packets only is dead (DESIGN §5, MTU). 0: as short as it can be.
    pub size: u16,
}

/// A path as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Its name in probes.
    pub path: PathId,
    /// How frames travel.
    pub way: Way,
    /// Is it alive?
    pub standing: Standing,
    /// Median of the last three round trips, end to end.
    pub rtt: Option<Duration>,
    /// Through two relays, as far as is known.
    pub mesh: bool,
    /// The largest IP packet that a direct path by UDP carries.
    pub limit: Option<u16>,
    /// The second relay, when the controller named it.
    pub via: Option<ServerId>,
}

/// The paths to one peer. See the crate's documentation for the loop.
#[derive(Debug, Default)]
pub struct PeerPaths {
    paths: Vec<Path>,
    last_id: u32,
    advice: Option<Advice>,
    current: Option<PathId>,
    /// The current path's way, so that a packet costs no look-up.
    way: Option<Way>,
    /// Packets are doubled over `standby`.
    hedge: Option<Hedge>,
    standby: Option<Way>,
    /// The largest IP packet that the current path and the standby carry, where they are direct.
    limits: [Option<u16>; 2],
    /// PONGs of the current path have been missing since.
    trouble: Option<Instant>,
    last_send: Option<Instant>,
    /// When a direct path was proved last. Who is found by its peer keeps the path open too, and notices when it ends.
    last_proof: Option<Instant>,
    wake: Option<Instant>,
    keepalive: Option<Duration>,
    /// The largest IP packet that a direct path may have to carry.
    largest: u16,
}

#[derive(Debug)]
struct Path {
    id: PathId,
    way: Way,
    /// The round trip that its owner expects.
    expected: Option<Duration>,
    /// Never [`Standing::Doubted`]: that follows from `misses`.
    standing: Standing,
    rtt: Estimate,
    in_flight: InFlight,
    /// PONGs missing in a row.
    misses: u32,
    /// Probes in a row that showed it to be better than the current path.
    better: u32,
    probes: u32,
    last_probe: Option<Instant>,
    /// The relay has said that it does not have the peer.
    rejected: bool,
    /// Of a direct path.
    keepalive: Keepalive,
    limit: Option<u16>,
    growth: Growth,
}

impl PeerPaths {
    /// No paths yet, and nothing to do before the first packet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The relay ways that exist now, replacing those before. Paths that stay keep what is known of them.
    pub fn set_relays(&mut self, ways: &[RelayWay], now: Instant) {
        let way_of = |relay: &RelayWay| Way::Relay { relay: relay.relay, hops: relay.hops };
        self.paths.retain(|path| path.way.is_direct() || ways.iter().any(|relay| way_of(relay) == path.way));
        for relay in ways {
            let way = way_of(relay);
            match self.paths.iter_mut().find(|path| path.way == way) {
                Some(path) => path.expected = relay.expected,
                None => {
                    self.last_id += 1;
                    self.paths.push(Path::new(PathId(self.last_id), way, relay.expected));
                }
            }
        }
        if self.paths.len() > MAX_PATHS {
            let mut ranks: Vec<(bool, Rank)> = self.paths.iter().map(|p| self.keep_rank(p)).collect();
            ranks.sort_unstable();
            if let Some(last) = ranks.get(MAX_PATHS - 1).copied() {
                let keep: Vec<PathId> = self.paths.iter().filter(|p| self.keep_rank(p) <= last).map(|p| p.id).collect();
                self.paths.retain(|path| keep.contains(&path.id));
            }
        }
        self.choose(now);
        self.reschedule(now);
    }

    /// What the controller advises; `None` withdraws it.
    pub fn set_advice(&mut self, advice: Option<Advice>, now: Instant) {
        self.advice = advice;
        self.choose(now);
        self.reschedule(now);
    }

    /// Where the next packet of `bytes` goes. The first after a pause starts the probing.
    pub fn send(&mut self, bytes: usize, now: Instant) -> Sending {
        let paused = self.last_send.is_none_or(|at| now.saturating_duration_since(at) >= IDLE);
        if paused && !self.is_awake(now) {
            // Nobody has waited for these.
            self.paths.iter_mut().for_each(|path| path.in_flight = InFlight::default());
        }
        self.last_send = Some(now);
        if paused {
            self.begin(now);
        }
        let (first, second) = self.ways(bytes, now);
        Sending { first, second, limit: self.limit_of(first, second), woken: paused }
    }

    /// Where something other than a packet of the user goes: it starts no probing, and is doubled while packets are.
    pub fn aside(&mut self, bytes: usize, now: Instant) -> Sending {
        let (first, second) = self.ways(bytes, now);
        Sending { first, second, limit: self.limit_of(first, second), woken: false }
    }

    fn limit_of(&self, first: Option<Way>, second: Option<Way>) -> Option<u16> {
        let [current, standby] = self.limits;
        let uses = |way: Option<Way>| way.is_some() && (first == way || second == way);
        let current = current.filter(|_| uses(self.way));
        current.into_iter().chain(standby.filter(|_| uses(self.standby))).min()
    }

    fn ways(&mut self, bytes: usize, now: Instant) -> (Option<Way>, Option<Way>) {
        let (Some(hedge), Some(standby)) = (&mut self.hedge, self.standby) else { return (self.way, None) };
        match (hedge.allows(bytes, now), hedge.doubt) {
            (true, _) => (self.way, Some(standby)),
            // Nothing speaks against the path yet.
            (false, Doubt::Unproved) => (self.way, None),
            (false, Doubt::Missing) => (Some(standby), None),
        }
    }

    /// The way of the current path.
    pub fn way(&self) -> Option<Way> {
        self.way
    }

    /// Whether packets are doubled now: they should be small (DESIGN §5).
    pub fn is_hedging(&self) -> bool {
        self.hedge.is_some() && self.standby.is_some()
    }

    /// A probe to be sent now; call until `None`, each time followed by [`Self::probe_sent`] if it was sent.
    pub fn next_probe(&mut self, now: Instant) -> Option<Probe> {
        if let Some(larger) = self.next_larger(now) {
            return Some(larger);
        }
        let index = self.paths.iter().position(|path| self.due(path, now).is_some_and(|at| at <= now))?;
        let sending = self.is_sending(now);
        let path = self.paths.get_mut(index)?;
        path.last_probe = Some(now);
        let size = path.limit.filter(|_| sending).unwrap_or(0);
        let probe = Probe { path: path.id, way: path.way, keepalive: path.way.is_direct() && !sending, size };
        self.reschedule(now);
        Some(probe)
    }

    /// A probe that shows whether the current path carries more than it is known to.
    fn next_larger(&mut self, now: Instant) -> Option<Probe> {
        let (largest, sending) = (self.largest, self.is_sending(now));
        let path = self.paths.iter_mut().find(|path| Some(path.id) == self.current)?;
        path.growth.forget_unsent();
        let limit = path.limit.filter(|_| sending && path.misses == 0)?;
        let size = path.growth.attempt(limit, largest, path.way.remote()?, now)?;
        let probe = Probe { path: path.id, way: path.way, keepalive: false, size };
        self.reschedule(now);
        Some(probe)
    }

    /// The probe went out; `sent_us` is what its PONG will echo, unique among the owner's probes.
    pub fn probe_sent(&mut self, path: PathId, sent_us: u64, now: Instant) {
        if let Some(path) = self.paths.iter_mut().find(|p| p.id == path) {
            if path.growth.sent(sent_us) {
                return;
            }
            path.in_flight.sent(sent_us, now);
            path.probes = path.probes.saturating_add(1);
        }
        self.reschedule(now);
    }

    /// Adds a direct path that a probe of `limit` bytes (`None`: a stream, which carries what it is given) and its PONG have
    /// proved, and takes it if it is of a better class. Of more than [`MAX_DIRECT`] the worst is forgotten.
    pub fn add_direct(&mut self, way: Way, rtt: Duration, limit: Option<u16>, now: Instant) {
        self.last_proof = Some(now);
        if let Some(path) = self.paths.iter_mut().find(|path| path.way == way) {
            path.standing = Standing::Alive;
            path.misses = 0;
            path.limit = path.limit.max(limit);
            path.growth = Growth::of(path.limit, self.largest, now);
            self.find_standby();
            return self.reschedule(now);
        }
        self.last_id += 1;
        let id = PathId(self.last_id);
        let mut path = Path::new(id, way, None);
        path.standing = Standing::Alive;
        path.limit = limit;
        path.growth = Growth::of(limit, self.largest, now);
        path.rtt.add(rtt);
        path.last_probe = Some(now);
        self.paths.push(path);
        let direct = self.paths.iter().filter(|path| path.way.is_direct());
        if direct.clone().count() > MAX_DIRECT {
            let worst = direct.max_by_key(|path| self.keep_rank(path)).map(|path| path.id);
            self.paths.retain(|path| Some(path.id) != worst);
        }
        let added = self.paths.iter().any(|path| path.id == id);
        let upgrade = |path: &Path| way.class() < path.way.class() || path.standing == Standing::Dead;
        if added && self.current().is_none_or(upgrade) {
            self.switch(id, false, now);
        }
        self.reschedule(now);
    }

    /// Forgets direct paths: all, or those that `gone` names.
    pub fn remove_direct(&mut self, gone: impl Fn(Way) -> bool, now: Instant) {
        let before = self.paths.len();
        self.paths.retain(|path| !(path.way.is_direct() && gone(path.way)));
        if self.paths.len() != before {
            self.choose(now);
            self.reschedule(now);
        }
    }

    /// Whether this is one of the paths.
    pub fn knows(&self, way: Way) -> bool {
        self.paths.iter().any(|path| path.way == way)
    }

    /// Whether there is a direct path, by UDP or TCP, that is not dead.
    pub fn has_direct(&self) -> bool {
        self.paths.iter().any(|path| path.way.is_direct() && path.standing != Standing::Dead)
    }

    /// Something has changed on our side, such as an address: every path is probed now, and packets are doubled until
    /// the one in use has proved itself again.
    pub fn probe_all(&mut self, now: Instant) {
        self.paths.iter_mut().for_each(|path| path.last_probe = None);
        if self.hedge.is_none_or(|hedge| hedge.doubt == Doubt::Unproved) {
            self.hedge = Some(Hedge::new(Doubt::Unproved, now));
            self.find_standby();
        }
        self.reschedule(now);
    }

    /// Time between two keepalives of a direct path while it is idle, from now on (specification §6.4: 25 s).
    pub fn set_keepalive(&mut self, interval: Duration) {
        self.keepalive = Some(interval);
    }

    /// The largest IP packet that a direct path may have to carry: one that is known to carry less is asked for more now and
    /// then.
    pub fn set_largest(&mut self, largest: u16) {
        self.largest = largest;
    }

    /// An authenticated PONG. Returns the round trip if it answers a probe of liveness that was sent over this path.
    /// One of a direct path must come back over the same way; relays may choose another one back.
    pub fn pong(&mut self, path: PathId, sent_us: u64, way: Way, now: Instant) -> Option<Duration> {
        let current = self.current().map(|path| (path.standing, path.way.class(), path.rtt.get()));
        let advised = self.advice.map(|advice| advice.way());
        let (sending, least) = (self.is_sending(now), self.keepalive.unwrap_or(KEEPALIVE));
        let path = self.paths.iter_mut().find(|p| p.id == path && (!p.way.is_direct() || p.way == way))?;
        if let Some(larger) = path.growth.answered(sent_us) {
            path.limit = path.limit.max(Some(larger));
            path.growth = Growth::begin(larger, self.largest, now);
            self.find_standby();
            self.reschedule(now);
            return None;
        }
        let sent = path.in_flight.answered(sent_us)?;
        let rtt = now.saturating_duration_since(sent);
        path.rtt.add(rtt);
        path.misses = 0;
        path.rejected = false;
        path.standing = Standing::Alive;
        path.keepalive.succeeded(!sending, least);
        let id = path.id;
        if self.current == Some(id) {
            // Only an answer to what was sent since says anything.
            self.hedge.take_if(|hedge| sent >= hedge.since);
            self.trouble = None;
        } else if let Some((standing, class, present)) = current {
            let better = match present {
                Some(present) => is_better(rtt, present) || (advised == Some(path.way) && rtt <= present),
                None => false,
            };
            path.better = if better && path.way.class() == class { path.better + 1 } else { 0 };
            if standing == Standing::Dead || path.way.class() < class || path.better >= BETTER_FOR {
                self.switch(id, false, now);
            }
        }
        self.reschedule(now);
        Some(rtt)
    }

    /// ERROR 3002 (or 3001) of a relay about this peer: it is left at once if there is another way.
    pub fn undeliverable(&mut self, relay: ServerId, now: Instant) {
        let one = Way::Relay { relay, hops: Hops::One };
        let just_tried = |path: &Path| {
            path.way == one
                && (self.current == Some(path.id)
                    || path.last_probe.is_some_and(|at| now.saturating_duration_since(at) < JUST_TRIED))
        };
        // The relay does not say which frame it means. If the one-hop path can have been it, the other one is only
        // doubted.
        let ambiguous = self.paths.iter().any(just_tried);
        for path in self.paths.iter_mut().filter(|path| path.way.relay() == Some(relay)) {
            if path.way == one || !ambiguous {
                path.standing = Standing::Dead;
                path.rejected = path.way == one;
                path.better = 0;
            } else if self.current == Some(path.id) {
                path.misses = path.misses.max(DOUBTED_AFTER);
                path.last_probe = None;
            }
        }
        self.judge(now);
        self.reschedule(now);
    }

    /// Something has changed on the peer's side, such as its presence: dead paths are tried again now.
    pub fn retry(&mut self, now: Instant) {
        for path in self.paths.iter_mut().filter(|path| path.standing == Standing::Dead) {
            path.last_probe = None;
            path.probes = 0;
        }
        self.reschedule(now);
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` for a peer without traffic.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wake
    }

    /// Counts PONGs that are missing and draws the conclusions; then [`Self::next_probe`] has what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for path in &mut self.paths {
            let missing = path.in_flight.expire(path.rtt.get(), now);
            if missing > 0 {
                path.misses = path.misses.saturating_add(missing);
                path.better = 0;
                path.keepalive = Keepalive::default();
                if path.misses >= DEAD_AFTER {
                    path.standing = Standing::Dead;
                }
            }
        }
        self.judge(now);
        // A dead relay path may revive; of a dead direct one a new attempt makes another.
        let current = self.current;
        self.paths.retain(|path| !path.way.is_direct() || path.standing != Standing::Dead || Some(path.id) == current);
        self.reschedule(now);
    }

    /// Whether nothing was sent for [`ASLEEP`]: the state may be forgotten.
    pub fn is_asleep(&self, now: Instant) -> bool {
        !self.is_awake(now)
    }

    /// The path that packets take.
    pub fn view(&self) -> Option<View> {
        self.current().map(|path| self.view_of(path))
    }

    /// All paths, best first.
    pub fn views(&self) -> Vec<View> {
        let mut paths: Vec<&Path> = self.paths.iter().collect();
        paths.sort_by_key(|path| (self.current != Some(path.id), self.rank(path)));
        paths.into_iter().map(|path| self.view_of(path)).collect()
    }

    /// First relays over which PONGs of this peer are missing: their connections deserve a look.
    pub fn doubted_relays(&self) -> impl Iterator<Item = ServerId> {
        self.paths.iter().filter(|path| path.misses > 0 && !path.rejected).filter_map(|path| path.way.relay())
    }

    fn view_of(&self, path: &Path) -> View {
        let advice = self.advice.filter(|advice| advice.way() == path.way);
        let via = advice.and_then(|advice| advice.via);
        let elsewhere = || {
            let one = path.way.relay().map(|relay| Way::Relay { relay, hops: Hops::One });
            self.paths.iter().any(|other| Some(other.way) == one && other.rejected)
        };
        let any = matches!(path.way, Way::Relay { hops: Hops::Any, .. });
        let mesh = any && (via.is_some() || elsewhere());
        let limit = path.limit;
        View { path: path.id, way: path.way, standing: path.standing(), rtt: path.rtt.get(), mesh, via, limit }
    }

    fn current(&self) -> Option<&Path> {
        self.current.and_then(|id| self.paths.iter().find(|path| path.id == id))
    }

    /// When a path is to be probed next; `None` without traffic.
    fn due(&self, path: &Path, now: Instant) -> Option<Instant> {
        let wanted = self.is_awake(now) || (path.way.is_direct() && self.is_kept(now));
        if !wanted {
            return None;
        }
        let Some(last) = path.last_probe else { return Some(now) };
        let sending = self.is_sending(now);
        let in_use = Some(path.id) == self.current || (self.hedge.is_some() && Some(path.way) == self.standby);
        let in_doubt = path.standing != Standing::Dead && path.misses > 0;
        let eager = self.trouble.is_some_and(|since| now.saturating_duration_since(since) < EAGER_FOR);
        let young = path.probes < BETTER_FOR && !path.rejected;
        let interval = match () {
            () if sending && (in_use || (eager && !path.rejected)) => PROBE_INTERVAL,
            () if in_doubt || young => PROBE_INTERVAL,
            () if path.way.is_direct() && !sending => path.keepalive.interval(self.keepalive.unwrap_or(KEEPALIVE)),
            () if sending && !path.rejected => CANDIDATE_INTERVAL,
            () => PAUSED_INTERVAL,
        };
        Some(last + interval)
    }

    fn is_sending(&self, now: Instant) -> bool {
        self.last_send.is_some_and(|at| now.saturating_duration_since(at) < IDLE)
    }

    /// Whether direct paths are kept open though nothing is sent.
    fn is_kept(&self, now: Instant) -> bool {
        let since = self.last_send.max(self.last_proof);
        since.is_some_and(|at| now.saturating_duration_since(at) < KEPT)
    }

    fn is_awake(&self, now: Instant) -> bool {
        self.last_send.is_some_and(|at| now.saturating_duration_since(at) < ASLEEP)
    }

    fn reschedule(&mut self, now: Instant) {
        let probes = self.paths.iter().filter_map(|path| self.due(path, now));
        let answers = self.paths.iter().filter_map(|path| path.in_flight.next_timeout(path.rtt.get()));
        let current = self.current().filter(|path| path.misses == 0 && self.is_sending(now));
        let larger = current.and_then(|path| path.growth.poll_timeout());
        let wake = probes.chain(answers).chain(larger).min();
        // The end of the traffic is seen at the next probe, and then there is nothing more to be seen.
        self.wake = wake.filter(|_| self.is_awake(now) || (self.is_kept(now) && self.has_direct()));
    }
}

impl Path {
    fn standing(&self) -> Standing {
        match self.standing {
            Standing::Alive if self.misses > 0 => Standing::Doubted,
            standing => standing,
        }
    }

    fn new(id: PathId, way: Way, expected: Option<Duration>) -> Self {
        Self {
            id,
            way,
            expected,
            standing: Standing::Unproved,
            rtt: Estimate::default(),
            in_flight: InFlight::default(),
            misses: 0,
            better: 0,
            probes: 0,
            last_probe: None,
            rejected: false,
            keepalive: Keepalive::default(),
            limit: None,
            growth: Growth::default(),
        }
    }
}
