//! What happens to a network: made from a seed, played against the model, and shrunk when it goes wrong.

mod generate;
mod player;
mod transitions;

pub use generate::scenarios;

use crate::model::Promise;
use crate::streams::Line;
use crate::trap;
use crate::world::{HostileNode, HostileRelay, Site};
use generate::{draw, setups, steps, tree};
use player::Player;
use proptest::strategy::ValueTree as _;
use serde::{Deserialize, Serialize};
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
    /// The network falls into two parts for so long: a bit for each node, each relay and the controller says in which it is.
    Partition { parts: u16, for_s: u16 },
    /// Keys are rotated this often from now on: everybody makes a new one at once.
    Rotate { every_s: u32 },
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
    /// See [`crate::world::World::fingerprint`].
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
