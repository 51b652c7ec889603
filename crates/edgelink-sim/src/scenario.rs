//! What happens to a network: made from a seed, played against the model, and shrunk when it goes wrong.

use crate::model::{Model, Promise};
use crate::streams::{Line, Party};
use crate::trap;
use crate::world::{HostileNode, HostileRelay, NodeIndex, RelayIndex, Site, World, WorldConfig};
use edgelink_api::local::PathKind;
use edgelink_model::NetworkId;
use edgelink_model::records::NetworkRecord;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What the network promises (DESIGN §5), with the reconnects' back-off on top.
pub const PROMISE: Promise = Promise {
    heals_within: Duration::from_secs(50),
    arrives_within: Duration::from_secs(5),
    told_within: Duration::from_secs(2),
};
/// Until an idle direct path that is dead is known to be: three keepalives, at most 55 s apart (DESIGN §5), and their answers.
const IDLE_PATH_DEAD: Duration = Duration::from_secs(3 * 55 + 10);
/// How often traffic is made and the model is asked.
const TICK: Duration = Duration::from_millis(250);
/// Networks are small: what goes wrong among five goes wrong among fifty.
const MAX_NODES: usize = 10;
const MAX_RELAYS: usize = 5;
/// Steps of one scenario.
const MAX_STEPS: usize = 13;

/// A whole run: the same scenario has the same outcome, bit for bit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// Seed of the world and of the traffic.
    pub seed: u64,
    /// How the network begins.
    pub setup: Setup,
    /// What happens to it.
    pub steps: Vec<Step>,
}

/// How a network begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Nodes, 2 to 6.
    pub nodes: u8,
    /// Relays beside the controller's own, 0 to 2.
    pub relays: u8,
    /// Whether every third node is in a second network with the same subnet.
    pub two_networks: bool,
    /// Period of node-key rotation, seconds.
    pub rotate_secs: u32,
    /// Time between two probes, ms.
    pub traffic_ms: u16,
    /// How good the lines are.
    pub lines: Quality,
    /// Where the nodes stand, over and over.
    #[serde(default)]
    pub sites: [Site; 6],
}

/// How good a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Quality {
    /// A millisecond away.
    Near,
    /// On the same continent.
    Usual,
    /// Around the world, with jitter and losses.
    Bad,
    /// 2 Mbit/s.
    Slow,
}

/// Something that happens, and how long nothing else does after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What.
    pub what: Transition,
    /// How long until the next, ms.
    pub wait_ms: u32,
}

/// What may happen. Numbers name nodes and relays modulo how many there are, so that every part of a list of transitions
/// is one as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are said in each variant's sentence")]
pub enum Transition {
    /// A node joins the first or the second network, its clock wrong by so much.
    Join { second: bool, clock_error_s: i32 },
    /// A node ends for so long; its host tells so, or loses its power.
    StopNode { node: u8, power: bool, for_s: u16 },
    /// A relay ends for so long; likewise. The controller's own goes alone.
    StopRelay { relay: u8, power: bool, for_s: u16 },
    /// The controller ends for so long, with or without its relay.
    StopController { relay_too: bool, for_s: u16 },
    /// Everything ends at once, and starts again after so long.
    StopEverything { for_s: u16 },
    /// Another relay is added.
    AddRelay,
    /// A relay is taken out of use for so long.
    DisableRelay { relay: u8, for_s: u16 },
    /// The line between a node and a relay is cut for so long, in one direction or both.
    CutRelay { node: u8, relay: u8, one_way: bool, for_s: u16 },
    /// The line between two relays is cut for so long.
    CutMesh { relay: u8, other: u8, for_s: u16 },
    /// The line between a relay and the controller is cut for so long.
    CutUplink { relay: u8, for_s: u16 },
    /// The line between a node and the controller is cut for so long.
    CutController { node: u8, for_s: u16 },
    /// A node is cut off from everything for so long.
    Isolate { node: u8, for_s: u16 },
    /// A middlebox resets a node's connections to the controller and all relays.
    Reset { node: u8 },
    /// A node gets another address.
    Roam { node: u8 },
    /// A node's process is stopped or its host suspended for so long.
    Sleep { node: u8, suspended: bool, for_s: u16 },
    /// A node's clock is set: it is wrong by so much from now on.
    SetClock { node: u8, error_s: i32 },
    /// A node's lines are so good from now on.
    SetLines { node: u8, quality: Quality },
    /// An administrator takes a node out of its network for so long.
    Expel { node: u8, for_s: u16 },
    /// An administrator revokes a node's tokens.
    RevokeTokens { node: u8 },
    /// A machine is started from a copy of a node's disk, for so long.
    Double { node: u8, for_s: u16 },
    /// A relay is hostile for so long.
    HostileRelay { relay: u8, kind: HostileRelay, for_s: u16 },
    /// A node is hostile from now on.
    HostileNode { node: u8, kind: HostileNode },
    /// The controller hands out keys of its own for so long.
    HostileController { for_s: u16 },
    /// A node moves to another site.
    MoveTo { node: u8, site: Site },
    /// The router of a node's site restarts, perhaps with another address.
    RebootRouter { node: u8, new_address: bool },
    /// UDP does not pass at a node's site for so long.
    BlockUdp { node: u8, for_s: u16 },
    /// Nobody sends anything for so long, and only keepalives come out of a node by UDP.
    OnlyKeepalives { node: u8, for_s: u16 },
    /// A node's uplink is so good for datagrams from now on.
    SetUplink { node: u8, quality: Quality },
    /// A burst of packets between two nodes.
    Burst { from: u8, to: u8, packets: u8, len: u16 },
}

/// How a run went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Virtual time.
    pub elapsed: Duration,
    /// Nodes at the end.
    pub nodes: usize,
    /// Virtual seconds times nodes.
    pub node_seconds: u64,
    /// Probes sent, those that had to arrive, and those that did.
    pub probes: (u64, u64, u64),
    /// Pairs that talked at the end, and those of them that did it directly.
    pub pairs: (usize, usize),
    /// Frames seen on the wires.
    pub frames: u64,
    /// See [`World::fingerprint`].
    pub fingerprint: u64,
}

/// What went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Everything that was found, the first first.
    pub violations: Vec<String>,
    /// The scenario.
    pub scenario: Scenario,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {} goes wrong:", self.scenario.seed)?;
        for violation in &self.violations {
            writeln!(f, "  {violation}")?;
        }
        writeln!(f, "{:?}", self.scenario.setup)?;
        for step in &self.scenario.steps {
            writeln!(f, "  {:?}, then {} ms", step.what, step.wait_ms)?;
        }
        let json = serde_json::to_string(&self.scenario).unwrap_or_default();
        writeln!(f, "to keep it, put this line into a file of crates/edgelink-sim/regressions:\n{json}")
    }
}

impl Scenario {
    /// The scenario of a seed.
    pub fn generate(seed: u64) -> Self {
        tree(seed).current()
    }

    /// The scenario that these bytes choose, for fuzzing: eight bytes for the beginning and eight for each step, so that
    /// a change of some bytes changes one step.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut chunks = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(place, byte)| *place = *byte);
            u64::from_be_bytes(word)
        });
        let setup = draw(setups(), chunks.next().unwrap_or_default());
        Self { seed: 1, setup, steps: chunks.take(MAX_STEPS).map(|seed| draw(steps(), seed)).collect() }
    }
}

/// Plays a scenario.
///
/// # Errors
/// Whatever the model or the observer did not like.
pub fn run(scenario: &Scenario) -> Result<Report, Box<Failure>> {
    let (outcome, errors) = trap::errors_of(|| Player::new(scenario).play());
    let (report, mut violations) = outcome;
    violations.extend(errors.into_iter().map(|line| format!("logged: {line}")));
    if violations.is_empty() { Ok(report) } else { Err(Box::new(Failure { violations, scenario: scenario.clone() })) }
}

/// Finds a smaller scenario that goes wrong, in at most so many runs, given that the seed's own does.
pub fn shrink(seed: u64, mut runs: u32) -> Option<Box<Failure>> {
    let mut tree = tree(seed);
    let mut last = run(&tree.current()).err()?;
    while runs > 0 && tree.simplify() {
        loop {
            runs = runs.saturating_sub(1);
            match run(&tree.current()) {
                Err(failure) => {
                    last = failure;
                    break;
                }
                Ok(_) if runs == 0 || !tree.complicate() => return Some(last),
                Ok(_) => {}
            }
        }
    }
    Some(last)
}

fn tree(seed: u64) -> impl proptest::strategy::ValueTree<Value = Scenario> {
    grow(&scenarios(seed), seed)
}

fn draw<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, seed: u64) -> T {
    grow(&strategy, seed).current()
}

fn grow<S: Strategy>(strategy: &S, seed: u64) -> S::Tree {
    let mut bytes = [0; 32];
    ChaCha20Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    // Nothing in the strategies filters, so a tree can always be made.
    #[expect(clippy::expect_used, reason = "the simulator itself is broken when this fails")]
    strategy.new_tree(&mut runner).expect("scenarios are never rejected")
}

/// Any scenario with this seed for world and traffic.
pub fn scenarios(seed: u64) -> impl Strategy<Value = Scenario> {
    (setups(), prop::collection::vec(steps(), 1..=MAX_STEPS)).prop_map(move |(setup, steps)| Scenario {
        seed,
        setup,
        steps,
    })
}

fn setups() -> impl Strategy<Value = Setup> {
    let rotate = prop_oneof![3 => Just(24 * 3600u32), 2 => Just(10u32), 2 => Just(60u32)];
    let traffic = prop_oneof![2 => Just(1000u16), 3 => Just(250u16), 1 => Just(5000u16)];
    let lines = prop_oneof![4 => Just(Quality::Usual), 1 => Just(Quality::Near), 2 => Just(Quality::Bad)];
    // Half of the networks have no direct paths.
    let places = prop_oneof![Just([Site::Off; 6]), prop::array::uniform6(sites())];
    (2u8..=5, 0u8..=2, any::<bool>(), rotate, traffic, lines, places).prop_map(
        |(nodes, relays, two_networks, rotate_secs, traffic_ms, lines, sites)| Setup {
            nodes,
            relays,
            two_networks,
            rotate_secs,
            traffic_ms,
            lines,
            sites,
        },
    )
}

fn sites() -> impl Strategy<Value = Site> {
    prop::sample::select(vec![
        Site::Off,
        Site::Public,
        Site::Neighbour,
        Site::FullCone,
        Site::RestrictedCone,
        Site::PortRestricted,
        Site::Symmetric,
        Site::AddressDependent,
        Site::Linux,
        Site::Carrier,
        Site::Blocked,
    ])
}

fn steps() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![3 => 0u32..500, 3 => 500u32..20_000, 2 => 20_000u32..150_000];
    (transitions(), wait).prop_map(|(what, wait_ms)| Step { what, wait_ms })
}

fn transitions() -> impl Strategy<Value = Transition> {
    use crate::world::{HostileNode as Lie, HostileRelay as Meddling};
    use Transition::*;
    let node = 0u8..16;
    let relay = 0u8..8;
    let short = prop_oneof![3 => 0u16..5, 3 => 5u16..60, 1 => 60u16..200];
    let errors = prop_oneof![3 => -600i32..600, 1 => -90_000i32..90_000];
    let quality =
        prop_oneof![Just(Quality::Near), Just(Quality::Usual), Just(Quality::Bad), Just(Quality::Slow)].boxed();
    let udp = {
        let (n, s, quality) = (node.clone(), short.clone(), quality.clone());
        prop_oneof![
            3 => (n.clone(), sites()).prop_map(|(node, site)| MoveTo { node, site }),
            2 => (n.clone(), any::<bool>()).prop_map(|(node, new_address)| RebootRouter { node, new_address }),
            2 => (n.clone(), s).prop_map(|(node, for_s)| BlockUdp { node, for_s }),
            2 => (n.clone(), 0u16..60).prop_map(|(node, for_s)| OnlyKeepalives { node, for_s }),
            2 => (n, quality).prop_map(|(node, quality)| SetUplink { node, quality }),
        ]
    };
    let relay_kind = prop_oneof![
        3 => Just(Meddling::Flip),
        1 => Just(Meddling::Reflect),
        2 => Just(Meddling::Replay),
        1 => Just(Meddling::Drop),
        1 => Just(Meddling::Delay),
        1 => Just(Meddling::Misdeliver),
        2 => Just(Meddling::Inject),
        2 => Just(Meddling::LieAboutLocations),
    ];
    let node_kind = prop_oneof![
        Just(Lie::ForgeSource),
        Just(Lie::ForgeDestination),
        Just(Lie::SpoofAddresses),
        Just(Lie::SpoofDestinations),
    ];
    let (n, r, s, e) = (node, relay, short, errors);
    prop_oneof![
        9 => udp,
        3 => (any::<bool>(), e.clone()).prop_map(|(second, clock_error_s)| Join { second, clock_error_s }),
        6 => (n.clone(), any::<bool>(), s.clone()).prop_map(|(node, power, for_s)| StopNode { node, power, for_s }),
        5 => (r.clone(), any::<bool>(), s.clone()).prop_map(|(relay, power, for_s)| StopRelay { relay, power, for_s }),
        4 => (any::<bool>(), s.clone()).prop_map(|(relay_too, for_s)| StopController { relay_too, for_s }),
        1 => s.clone().prop_map(|for_s| StopEverything { for_s }),
        2 => Just(AddRelay),
        2 => (r.clone(), s.clone()).prop_map(|(relay, for_s)| DisableRelay { relay, for_s }),
        5 => (n.clone(), r.clone(), any::<bool>(), s.clone())
            .prop_map(|(node, relay, one_way, for_s)| CutRelay { node, relay, one_way, for_s }),
        3 => (r.clone(), r.clone(), s.clone()).prop_map(|(relay, other, for_s)| CutMesh { relay, other, for_s }),
        2 => (r.clone(), s.clone()).prop_map(|(relay, for_s)| CutUplink { relay, for_s }),
        3 => (n.clone(), s.clone()).prop_map(|(node, for_s)| CutController { node, for_s }),
        3 => (n.clone(), s.clone()).prop_map(|(node, for_s)| Isolate { node, for_s }),
        3 => n.clone().prop_map(|node| Reset { node }),
        4 => n.clone().prop_map(|node| Roam { node }),
        4 => (n.clone(), any::<bool>(), s.clone()).prop_map(|(node, suspended, for_s)| Sleep { node, suspended, for_s }),
        2 => (n.clone(), e).prop_map(|(node, error_s)| SetClock { node, error_s }),
        2 => (n.clone(), quality).prop_map(|(node, quality)| SetLines { node, quality }),
        4 => (n.clone(), s.clone()).prop_map(|(node, for_s)| Expel { node, for_s }),
        3 => n.clone().prop_map(|node| RevokeTokens { node }),
        2 => (n.clone(), s.clone()).prop_map(|(node, for_s)| Double { node, for_s }),
        9 => (r, relay_kind, 3u16..60).prop_map(|(relay, kind, for_s)| HostileRelay { relay, kind, for_s }),
        3 => (n.clone(), node_kind).prop_map(|(node, kind)| HostileNode { node, kind }),
        3 => s.prop_map(|for_s| HostileController { for_s }),
        3 => (n.clone(), n, 1u8..100, 24u16..1300).prop_map(|(from, to, packets, len)| Burst { from, to, packets, len }),
    ]
}

/// The end of something that lasts for a while.
#[derive(Clone, Copy, Debug)]
enum Undo {
    StartNode(NodeIndex),
    StartRelay(RelayIndex),
    StartController,
    EnableRelay(RelayIndex),
    Mend(Party, Party),
    Attach(NodeIndex),
    PassUdp(NodeIndex),
    Wake(NodeIndex),
    Admit(NodeIndex),
    EndDouble(NodeIndex, NodeIndex),
    HonestRelay(RelayIndex),
    HonestController,
}

/// Plays a scenario step by step.
struct Player<'s> {
    scenario: &'s Scenario,
    world: World,
    model: Model,
    rng: ChaCha20Rng,
    /// What ends when; the number keeps the order of what ends at once.
    undo: BTreeMap<(Duration, u32), Undo>,
    undos: u32,
    next_probe: Duration,
    hostile_controller: bool,
    /// Nothing is sent at random.
    quiet: bool,
    /// Nodes that only lie.
    liars: BTreeMap<usize, HostileNode>,
    /// Machines that were copied, and their copies; a copy that has ended stays off.
    doubles: BTreeSet<usize>,
    retired: BTreeSet<usize>,
    violations: Vec<String>,
    node_seconds: f64,
}

impl<'s> Player<'s> {
    fn new(scenario: &'s Scenario) -> Self {
        let setup = scenario.setup;
        let mut world = World::new(WorldConfig {
            seed: scenario.seed,
            delay: setup.lines.line().delay,
            rotate_secs: setup.rotate_secs.max(10),
            capture: false,
            ..WorldConfig::default()
        });
        world.database.add_network(second_network());
        world.database.add_auth_key(&crate::world::auth_key(SECOND), SECOND);
        let mut this = Self {
            scenario,
            world,
            model: Model::new(PROMISE),
            rng: ChaCha20Rng::seed_from_u64(!scenario.seed),
            undo: BTreeMap::new(),
            undos: 0,
            next_probe: Duration::ZERO,
            hostile_controller: false,
            quiet: false,
            liars: BTreeMap::new(),
            doubles: BTreeSet::new(),
            retired: BTreeSet::new(),
            violations: Vec::new(),
            node_seconds: 0.0,
        };
        let udp = setup.sites.iter().any(|site| *site != Site::Off);
        for _ in 0..setup.relays.min(MAX_RELAYS as u8 - 1) {
            this.add_relay();
        }
        for relay in 0..if udp { this.world.relay_count() } else { 0 } {
            this.world.add_stun(RelayIndex(relay));
        }
        for n in 0..setup.nodes.clamp(2, MAX_NODES as u8) {
            this.join(setup.two_networks && n % 3 == 2, 0);
        }
        this
    }

    fn play(mut self) -> (Report, Vec<String>) {
        self.pass(Duration::from_secs(3));
        for step in &self.scenario.steps {
            self.apply(&step.what);
            self.pass(Duration::from_millis(step.wait_ms.into()));
            if !self.violations.is_empty() {
                break;
            }
        }
        if self.violations.is_empty() {
            self.finale();
        }
        let mut violations = std::mem::take(&mut self.violations);
        violations.extend(self.world.watch().violations().iter().cloned());
        if !violations.is_empty() {
            violations.extend(self.counters());
        }
        let report = Report {
            elapsed: self.world.elapsed(),
            nodes: self.world.node_count(),
            node_seconds: self.node_seconds as u64,
            probes: (self.model.sent, self.model.owed, self.model.arrived),
            pairs: self.pairs(),
            frames: self.world.watch().frames,
            fingerprint: self.world.fingerprint(),
        };
        (report, violations)
    }

    /// What was dropped, by whom: the first thing that one wants to know.
    fn counters(&self) -> Vec<String> {
        let nodes = (0..self.world.node_count()).filter_map(|n| {
            let status = self.world.status(NodeIndex(n))?;
            Some(format!("node {n} has dropped {:?}", status.drops))
        });
        let relays = (0..self.world.relay_count()).filter_map(|r| {
            let stats = self.world.relay_at(RelayIndex(r))?.stats();
            let drops: Vec<_> = stats.drops.iter().filter(|(_, n)| *n > 0).collect();
            Some(format!("relay {r} has dropped {drops:?}"))
        });
        let udp: Vec<_> = self.world.internet().drops().iter().collect();
        nodes.chain(relays).chain([format!("the internet has dropped {udp:?}")]).collect()
    }

    fn pairs(&self) -> (usize, usize) {
        let pairs = self.model.living_pairs();
        (pairs.len(), pairs.iter().filter(|(a, b)| self.is_direct(*a, *b)).count())
    }

    fn is_direct(&self, a: NodeIndex, b: NodeIndex) -> bool {
        let id = self.world.node_id(b);
        let peers = self.world.status(a).map(|status| status.peers).unwrap_or_default();
        peers.iter().any(|p| Some(p.node_id) == id && matches!(p.path.kind, PathKind::Lan | PathKind::P2p))
    }

    /// Everything ends that lasts for a while; then all members must be able to talk to each other, and all must know the
    /// same network.
    fn finale(&mut self) {
        for undo in std::mem::take(&mut self.undo).into_values() {
            self.end(undo);
        }
        for node in (0..self.world.node_count()).map(NodeIndex) {
            self.set_uplink(node, Quality::Usual);
        }
        self.pass(PROMISE.heals_within + TICK);
        let (must, settled) = (self.model.living_pairs(), self.model.settled_pairs(self.world.elapsed()));
        if must != settled {
            self.violations.push(format!("the model itself is at a loss: {must:?} must talk, {settled:?} may"));
        }
        for _ in 0..3 {
            for (from, to) in &must {
                self.probe(*from, *to, 100);
            }
            self.pass(Duration::from_millis(300));
        }
        self.pass(PROMISE.arrives_within + TICK);
        // A key may be rotated this very moment: everybody is told of it in time.
        for _ in 0..4 * PROMISE.told_within.as_secs() {
            if self.strangers().is_empty() {
                break;
            }
            self.pass(TICK);
        }
        let strangers = self.strangers();
        self.violations.extend(strangers);
        for index in 0..self.world.relay_count() {
            let queued = self.world.relay_at(RelayIndex(index)).map_or(0, |r| r.stats().queued_bytes);
            if queued > 0 {
                self.violations.push(format!("relay {index} still holds {queued} bytes in a network at rest"));
            }
        }
    }

    /// Members of a network that do not have the same configuration, or do not see each other online.
    fn strangers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (a, b) in self.model.living_pairs() {
            let (Some(one), Some(other)) = (self.world.status(a), self.world.status(b)) else { continue };
            if one.config_version < other.config_version {
                let versions = (one.config_version, other.config_version);
                found.push(format!("at rest nodes {} and {} have different configurations: {versions:?}", a.0, b.0));
            }
            if !one.peers.iter().any(|peer| Some(peer.node_id) == other.node_id && peer.online) {
                found.push(format!("at rest node {} does not see node {} online", a.0, b.0));
            }
        }
        found
    }

    /// Lets time pass, with traffic.
    fn pass(&mut self, time: Duration) {
        let end = self.world.elapsed() + time;
        while self.world.elapsed() < end {
            while let Some(entry) = self.undo.first_entry().filter(|e| e.key().0 <= self.world.elapsed()) {
                let undo = entry.remove();
                self.end(undo);
            }
            self.traffic();
            let next = self.undo.keys().next().map_or(end, |(at, _)| *at).clamp(self.world.elapsed(), end);
            let slice = (next - self.world.elapsed()).clamp(Duration::from_millis(1), TICK);
            self.world.advance(slice);
            self.node_seconds += slice.as_secs_f64() * self.world.node_count() as f64;
            self.check();
        }
    }

    fn check(&mut self) {
        let now = self.world.elapsed();
        let packets = self.world.take_delivered();
        self.violations.extend(self.model.check_delivered(packets, &self.world));
        self.violations.extend(self.model.check_overdue(now));
        self.violations.extend(self.model.check_told(&self.world, now));
        for index in 0..self.world.relay_count() {
            let Some(relay) = self.world.relay_at(RelayIndex(index)) else { continue };
            let (held, limit) = (relay.stats().queued_bytes, edgelink_relay::Limits::DEFAULT.queued_total);
            if held > limit {
                self.violations.push(format!("{now:?}: relay {index} holds {held} bytes, more than {limit}"));
            }
        }
    }

    fn traffic(&mut self) {
        let now = self.world.elapsed();
        while self.next_probe <= now && !self.quiet {
            self.next_probe = now + Duration::from_millis(self.scenario.setup.traffic_ms.max(50).into());
            let count = self.world.node_count();
            let (from, to) = (self.draw(count), self.draw(count));
            if from != to {
                let len = 32 + self.draw(1200);
                self.probe(NodeIndex(from), NodeIndex(to), len);
            }
            for (liar, kind) in self.liars.clone() {
                self.lie(NodeIndex(liar), kind);
            }
        }
    }

    fn probe(&mut self, from: NodeIndex, to: NodeIndex, len: usize) {
        let now = self.world.elapsed();
        // Networks overlap: the address means whoever has it in the sender's own.
        let to = self.namesake(from, to).unwrap_or(to);
        if let Some(probe) = self.world.send_numbered(from, to, len) {
            self.model.probe_sent(probe, now);
        }
    }

    /// Who has a node's address in the network of another.
    fn namesake(&self, in_network_of: NodeIndex, node: NodeIndex) -> Option<NodeIndex> {
        let network = self.network_of(in_network_of)?;
        if self.network_of(node) == Some(network) {
            return Some(node);
        }
        let address = self.world.address(node)?;
        let others = (0..self.world.node_count()).map(NodeIndex);
        let mut same = others.filter(|o| *o != in_network_of && self.world.address(*o) == Some(address));
        same.find(|other| self.network_of(*other) == Some(network))
    }

    /// A hostile node sends from an address that is not its own.
    fn lie(&mut self, liar: NodeIndex, kind: HostileNode) {
        if kind != HostileNode::SpoofAddresses {
            return;
        }
        let count = self.world.node_count();
        let (victim, to) = (NodeIndex(self.draw(count)), NodeIndex(self.draw(count)));
        let now = self.world.elapsed();
        let to = self.namesake(liar, to).unwrap_or(to);
        if victim != liar
            && to != liar
            && let Some(probe) = self.world.send_spoofed(liar, victim, to, 64)
        {
            self.model.probe_sent(probe, now);
        }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.rng.next_u32() as usize % below.max(1)
    }

    // ---- transitions ----

    fn apply(&mut self, what: &Transition) {
        let now = self.world.elapsed();
        match *what {
            Transition::Join { second, clock_error_s } => self.join(second, clock_error_s),
            Transition::StopNode { node, power, for_s } => {
                let node = self.node(node);
                if self.world.is_running(node) {
                    self.stop_node(node, power);
                    self.later(for_s, Undo::StartNode(node));
                }
            }
            Transition::StopRelay { relay, power, for_s } => {
                let relay = self.relay(relay);
                if self.world.relay_is_running(relay) {
                    self.stop_relay(relay, power);
                    self.later(for_s, Undo::StartRelay(relay));
                }
            }
            Transition::StopController { relay_too, for_s } => {
                self.stop_controller();
                self.later(for_s, Undo::StartController);
                if relay_too && self.world.relay_is_running(RelayIndex::BUILTIN) {
                    self.stop_relay(RelayIndex::BUILTIN, false);
                    self.later(for_s, Undo::StartRelay(RelayIndex::BUILTIN));
                }
            }
            Transition::StopEverything { for_s } => {
                self.stop_controller();
                self.later(for_s, Undo::StartController);
                for relay in (0..self.world.relay_count()).map(RelayIndex) {
                    if self.world.relay_is_running(relay) {
                        self.stop_relay(relay, true);
                        self.later(for_s, Undo::StartRelay(relay));
                    }
                }
                for node in (0..self.world.node_count()).map(NodeIndex) {
                    if self.world.is_running(node) {
                        self.stop_node(node, true);
                        self.later(for_s, Undo::StartNode(node));
                    }
                }
            }
            Transition::AddRelay => {
                if self.world.relay_count() < MAX_RELAYS {
                    self.add_relay();
                }
            }
            Transition::DisableRelay { relay, for_s } => {
                let relay = self.relay(relay);
                self.enable_relay(relay, false);
                self.later(for_s, Undo::EnableRelay(relay));
            }
            Transition::CutRelay { node, relay, one_way, for_s } => {
                let (node, relay) = (self.node(node), self.relay(relay));
                if one_way {
                    self.world.set_cut_one_way(relay.party(), node.party(), true);
                } else {
                    self.world.set_cut(node.party(), relay.party(), true);
                }
                self.model.cut(node.party(), relay.party(), true, now);
                self.later(for_s, Undo::Mend(node.party(), relay.party()));
            }
            Transition::CutMesh { relay, other, for_s } => {
                let (one, other) = (self.relay(relay).party(), self.relay(other).party());
                self.cut(one, other, true);
                self.later(for_s, Undo::Mend(one, other));
            }
            Transition::CutUplink { relay, for_s } => {
                let relay = self.relay(relay).party();
                self.cut(relay, Party::Controller, true);
                self.later(for_s, Undo::Mend(relay, Party::Controller));
            }
            Transition::CutController { node, for_s } => {
                let node = self.node(node).party();
                self.cut(node, Party::Controller, true);
                self.later(for_s, Undo::Mend(node, Party::Controller));
            }
            Transition::Isolate { node, for_s } => {
                let index = self.node(node);
                self.world.set_attached(index, false);
                self.later(for_s, Undo::Attach(index));
                let node = index.party();
                let relays = (0..self.world.relay_count()).map(Party::Relay);
                for other in relays.chain([Party::Controller]) {
                    self.cut(node, other, true);
                    self.later(for_s, Undo::Mend(node, other));
                }
            }
            Transition::Reset { node } => {
                let node = self.node(node);
                for relay in 0..self.world.relay_count() {
                    self.world.reset(node.party(), Party::Relay(relay));
                }
                self.world.reset(node.party(), Party::Controller);
                self.model.disturb_node(node, now);
            }
            Transition::Roam { node } => {
                let node = self.node(node);
                self.world.roam_node(node);
                self.model.disturb_node(node, now);
            }
            Transition::Sleep { node, suspended, for_s } => {
                let node = self.node(node);
                self.world.put_to_sleep(node, suspended);
                self.model.node_asleep(node, true, now);
                self.later(for_s, Undo::Wake(node));
            }
            Transition::SetClock { node, error_s } => {
                let node = self.node(node);
                self.world.set_clock_error(node, i64::from(error_s) * 1000);
                self.model.disturb_node(node, now);
            }
            Transition::SetLines { node, quality } => {
                let node = self.node(node);
                for relay in 0..self.world.relay_count() {
                    self.world.set_line(node.party(), Party::Relay(relay), quality.line());
                }
                self.world.set_line(node.party(), Party::Controller, quality.line());
                self.model.disturb_node(node, now);
            }
            Transition::Expel { node, for_s } => {
                let node = self.node(node);
                if self.is_member(node) && !self.hostile_controller {
                    self.set_member(node, false);
                    self.later(for_s, Undo::Admit(node));
                }
            }
            Transition::RevokeTokens { node } => {
                let node = self.node(node);
                if let Some(id) = self.world.node_id(node) {
                    self.world.database.revoke_tokens(id, self.unix_secs());
                    for each in self.with_identity_of(node) {
                        self.model.disturb_node(each, now);
                        self.model.need_controller([each]);
                    }
                }
            }
            Transition::Double { node, for_s } => {
                let node = self.node(node);
                if self.world.node_count() < MAX_NODES && !self.hostile_controller && !self.is_liar(node) {
                    self.double(node, for_s);
                }
            }
            Transition::HostileRelay { relay, kind, for_s } => {
                let relay = self.relay(relay);
                self.world.set_hostile_relay(relay, Some(kind));
                self.model.relay_hostile(relay, true, now);
                self.later(for_s, Undo::HonestRelay(relay));
            }
            Transition::HostileNode { node, kind } => {
                let node = self.node(node);
                // At least two honest ones remain.
                let doubled = self.doubles.contains(&node.0);
                if !self.hostile_controller && !doubled && self.liars.len() + 2 < self.world.node_count() {
                    self.world.set_hostile_node(node, Some(kind));
                    self.model.node_hostile(node, true, now);
                    self.liars.insert(node.0, kind);
                }
            }
            Transition::HostileController { for_s } => {
                // Who meets somebody for the first time has to believe the controller (DESIGN §2).
                if self.model.all_introduced() && self.liars.is_empty() && !self.hostile_controller {
                    self.hostile_controller = true;
                    self.world.set_hostile_controller(true);
                    self.model.controller_hostile(true, now);
                    self.later(for_s, Undo::HonestController);
                }
            }
            Transition::MoveTo { node, site } => {
                let node = self.node(node);
                self.world.move_node(node, site);
                self.model.disturb_node(node, now);
            }
            Transition::RebootRouter { node, new_address } => {
                let node = self.node(node);
                self.world.reboot_router(node, new_address);
                self.disturb_site(node);
            }
            Transition::BlockUdp { node, for_s } => {
                let node = self.node(node);
                self.world.set_udp_blocked(node, true);
                self.later(for_s, Undo::PassUdp(node));
                self.disturb_site(node);
            }
            Transition::OnlyKeepalives { node, for_s } => {
                let node = self.node(node);
                if self.world.has_udp(node) {
                    self.only_keepalives(node, for_s);
                }
            }
            Transition::SetUplink { node, quality } => {
                let node = self.node(node);
                self.set_uplink(node, quality);
            }
            Transition::Burst { from, to, packets, len } => {
                let (from, to) = (self.node(from), self.node(to));
                for _ in 0..if from == to { 0 } else { packets } {
                    self.probe(from, to, len.into());
                }
            }
        }
    }

    fn end(&mut self, undo: Undo) {
        let now = self.world.elapsed();
        match undo {
            Undo::StartNode(node) => {
                if !self.retired.contains(&node.0) {
                    self.world.start_node(node);
                    self.model.node_running(node, true, now);
                }
            }
            Undo::StartRelay(relay) => {
                self.world.start_relay(relay);
                self.model.relay_running(relay, true, now);
            }
            Undo::StartController => {
                self.world.start_controller();
                self.model.controller_running(true, now);
            }
            Undo::EnableRelay(relay) => self.enable_relay(relay, true),
            Undo::Mend(a, b) => self.cut(a, b, false),
            Undo::Attach(node) => self.world.set_attached(node, true),
            Undo::PassUdp(node) => self.world.set_udp_blocked(node, false),
            Undo::Wake(node) => {
                self.world.wake_node(node);
                self.model.node_asleep(node, false, now);
            }
            Undo::Admit(node) => self.set_member(node, true),
            Undo::EndDouble(original, copy) => {
                self.world.kill_node(copy);
                self.retired.insert(copy.0);
                self.model.node_running(copy, false, now);
                self.model.node_doubled(original, false, now);
            }
            Undo::HonestRelay(relay) => {
                self.world.set_hostile_relay(relay, None);
                self.model.relay_hostile(relay, false, now);
            }
            Undo::HonestController => {
                self.hostile_controller = false;
                self.world.set_hostile_controller(false);
                self.model.controller_hostile(false, now);
                self.model.controller_running(true, now);
                self.model.relay_running(RelayIndex::BUILTIN, true, now);
            }
        }
    }

    /// A keepalive is no sign of life (DESIGN §5): after three of them, each with a sealed PING that is not answered, nobody
    /// may still take the node's direct paths for alive.
    fn only_keepalives(&mut self, node: NodeIndex, for_s: u16) {
        self.world.set_only_keepalives(node, true);
        self.disturb_site(node);
        self.quiet = true;
        self.pass(IDLE_PATH_DEAD + Duration::from_secs(for_s.into()));
        self.quiet = false;
        for (a, b) in self.model.living_pairs() {
            if (a == node || b == node) && self.is_direct(a, b) {
                let at = self.world.elapsed();
                self.violations
                    .push(format!("{at:?}: node {} takes a path to node {} for alive by keepalives", a.0, b.0));
            }
        }
        self.world.set_only_keepalives(node, false);
    }

    fn set_uplink(&mut self, node: NodeIndex, quality: Quality) {
        self.world.set_uplink(node, quality.line());
        self.disturb_site(node);
        self.model.node_lossy(node, self.world.has_udp(node) && quality.line().loss > 0.0, self.world.elapsed());
    }

    /// What befalls UDP at a site befalls all nodes there. Only some of them have direct paths to lose.
    fn disturb_site(&mut self, node: NodeIndex) {
        if self.world.has_udp(node) {
            self.model.disturb_all(self.world.elapsed());
        }
    }

    fn later(&mut self, for_s: u16, undo: Undo) {
        self.undos += 1;
        let at = self.world.elapsed() + Duration::from_secs(for_s.into());
        self.undo.insert((at, self.undos), undo);
    }

    fn join(&mut self, second: bool, clock_error_s: i32) {
        if self.world.node_count() >= MAX_NODES || self.hostile_controller {
            return;
        }
        let network = if second { SECOND } else { NetworkId(1) };
        let name = format!("n{}", self.world.node_count());
        let sites = self.scenario.setup.sites;
        let site = sites.get(self.world.node_count() % sites.len()).copied().unwrap_or_default();
        let node = self.world.add_node_at(&name, network, i64::from(clock_error_s) * 1000, site);
        for relay in 0..self.world.relay_count() {
            self.world.set_line(node.party(), Party::Relay(relay), self.line(relay));
        }
        self.model.joined(node, network, self.world.elapsed());
    }

    fn add_relay(&mut self) {
        let relay = self.world.add_relay("region");
        for node in 0..self.world.node_count() {
            self.world.set_line(Party::Node(node), relay.party(), self.line(relay.0));
        }
        self.model.relay_added(relay, self.world.elapsed());
    }

    /// Relays are at different distances.
    fn line(&self, relay: usize) -> Line {
        let line = self.scenario.setup.lines.line();
        Line { delay: line.delay * (2 + relay as u32) / 2, ..line }
    }

    fn double(&mut self, node: NodeIndex, for_s: u16) {
        let Some(network) = self.network_of(node) else { return };
        let now = self.world.elapsed();
        let Some(copy) = self.world.clone_node(node) else { return };
        self.model.joined(copy, network, now);
        self.model.node_doubled(copy, true, now);
        self.model.node_doubled(node, true, now);
        self.doubles.extend([node.0, copy.0]);
        self.later(for_s, Undo::EndDouble(node, copy));
    }

    fn stop_node(&mut self, node: NodeIndex, power: bool) {
        if power {
            self.world.power_off_node(node)
        } else {
            self.world.kill_node(node)
        }
        self.model.node_asleep(node, false, self.world.elapsed());
        self.model.node_running(node, false, self.world.elapsed());
    }

    fn stop_relay(&mut self, relay: RelayIndex, power: bool) {
        if power {
            self.world.power_off_relay(relay)
        } else {
            self.world.kill_relay(relay)
        }
        self.model.relay_running(relay, false, self.world.elapsed());
    }

    fn stop_controller(&mut self) {
        self.world.kill_controller();
        self.model.controller_running(false, self.world.elapsed());
    }

    fn enable_relay(&mut self, relay: RelayIndex, enabled: bool) {
        if let Some(id) = self.world.server_id(relay) {
            self.world.database.enable_server(id, enabled);
            self.model.relay_enabled(relay, enabled, self.world.elapsed());
        }
    }

    fn cut(&mut self, a: Party, b: Party, cut: bool) {
        self.world.set_cut(a, b, cut);
        self.model.cut(a, b, cut, self.world.elapsed());
    }

    fn set_member(&mut self, node: NodeIndex, member: bool) {
        let Some(id) = self.world.node_id(node) else { return };
        if member {
            // The subnet has room for more nodes than a scenario makes.
            let _ = self.world.database.authorize(id);
        } else {
            self.world.database.deauthorize(id, self.unix_secs() + 1);
        }
        let version = self.world.database.version();
        for each in self.with_identity_of(node) {
            self.model.node_member(each, member, version, self.world.elapsed());
        }
    }

    /// Everybody who has a node's identity.
    fn with_identity_of(&self, node: NodeIndex) -> Vec<NodeIndex> {
        let id = self.world.node_id(node);
        (0..self.world.node_count()).map(NodeIndex).filter(|other| self.world.node_id(*other) == id).collect()
    }

    fn is_member(&self, node: NodeIndex) -> bool {
        let row = self.world.node_id(node).and_then(|id| self.world.database.node(id));
        row.is_some_and(|row| row.authorized) && !self.is_liar(node)
    }

    fn is_liar(&self, node: NodeIndex) -> bool {
        self.liars.contains_key(&node.0)
    }

    fn network_of(&self, node: NodeIndex) -> Option<NetworkId> {
        self.world.node_id(node).and_then(|id| self.world.database.node(id)).map(|row| row.network_id)
    }

    fn unix_secs(&self) -> u64 {
        (WorldConfig::default().unix_ms + self.world.elapsed().as_millis() as u64) / 1000
    }

    fn node(&self, number: u8) -> NodeIndex {
        NodeIndex(usize::from(number) % self.world.node_count().max(1))
    }

    fn relay(&self, number: u8) -> RelayIndex {
        RelayIndex(usize::from(number) % self.world.relay_count().max(1))
    }
}

impl Quality {
    fn line(self) -> Line {
        let ms = Duration::from_millis;
        match self {
            Self::Near => Line::of(ms(1)),
            Self::Usual => Line { jitter: ms(5), ..Line::of(ms(20)) },
            Self::Bad => Line { jitter: ms(40), loss: 0.05, ..Line::of(ms(120)) },
            Self::Slow => Line { rate: Some(250_000), ..Line::of(ms(40)) },
        }
    }
}

const SECOND: NetworkId = NetworkId(2);

/// The second network, with the subnet of the first.
fn second_network() -> NetworkRecord {
    NetworkRecord {
        id: SECOND,
        name: "second".to_owned(),
        subnet: ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 1, 0), 24),
        subnet6: None,
        description: String::new(),
    }
}
