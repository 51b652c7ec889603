//! Two nodes somewhere in the internet, each behind a NAT made from a seed, on links that lose and reorder: do they find a
//! direct path, how soon, and if not, do they say why (specification §6.1)?

use crate::net::{Filtering, Hairpin, LinkProfile, Loss, Mapping, NatConfig, PortAssignment};
use crate::world::{NodeIndex, RelayIndex, World, WorldConfig};
use edgelink_api::local::{PathKind, Peer};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};
use std::fmt::Write as _;
use std::time::Duration;

/// What specification §6.1 marks ✅ is direct within this.
pub const POSSIBLE_WITHIN: Duration = Duration::from_secs(10);
/// And ⚠️, where ports are guessed, within this, [`HARD_SHARE`] of the time.
pub const HARD_WITHIN: Duration = Duration::from_secs(90);
/// The share of ⚠️ pairs that must be direct in time.
pub const HARD_SHARE: f64 = 0.8;
/// How long ❌ is tried, and ✅ that are late are watched.
const TRIED_FOR: Duration = Duration::from_secs(30);
const MS: Duration = Duration::from_millis(1);
/// Names of the kinds, in the order of the matrix.
const KINDS: [&str; 4] = ["full cone", "restricted", "port restr.", "symmetric"];

/// What the specification says of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// ✅
    Possible,
    /// ⚠️
    Hard,
    /// ❌
    Impossible,
}

/// A pair's world.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// What it was made from.
    pub seed: u64,
    /// Rows of the matrix: full cone, restricted, port restricted, symmetric.
    pub kinds: [usize; 2],
    /// Before each node.
    pub nats: [NatConfig; 2],
    /// From each router to the internet, both directions.
    pub links: [LinkProfile; 2],
}

/// What became of a pair.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The pair.
    pub pair: Pair,
    /// From the first packet to the direct path.
    pub time: Option<Duration>,
    /// What `edgelink status` says of a relayed peer.
    pub reason: String,
}

impl Pair {
    /// Sixteen seeds in a row are the sixteen cells of the matrix; all else is drawn.
    #[must_use]
    pub fn generate(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let cell = usize::try_from(seed % 16).unwrap_or_default();
        let kinds = [cell / 4, cell % 4];
        let nats = kinds.map(|kind| nat(kind, &mut rng));
        let links = [(); 2].map(|()| link(&mut rng));
        Self { seed, kinds, nats, links }
    }

    /// What the specification says of it.
    #[must_use]
    pub fn mark(&self) -> Mark {
        match self.kinds {
            [3, 3] => Mark::Impossible,
            [3, 2] | [2, 3] => Mark::Hard,
            _ => Mark::Possible,
        }
    }

    /// Lets the nodes join, learn their NATs, and talk until they are direct or it has been tried for long enough.
    #[must_use]
    pub fn play(self) -> Outcome {
        let mut world = World::new(WorldConfig {
            seed: self.seed,
            delay: self.links[0].delay.max(5 * MS),
            capture: false,
            ..WorldConfig::default()
        });
        world.add_stun_with_two_addresses(RelayIndex::BUILTIN);
        let [a, b] = [0, 1].map(|side| {
            let name = if side == 0 { "a" } else { "b" };
            world.add_node_behind(name, self.nats[side], self.links[side])
        });
        let ready = |world: &World| world.is_ready(a) && world.is_ready(b);
        for _ in 0..600 {
            if ready(&world) {
                break;
            }
            world.advance(50 * MS);
        }
        // Discovery takes some seconds where answers do not come.
        world.advance(Duration::from_secs(5));
        let limit = match self.mark() {
            Mark::Possible | Mark::Impossible => TRIED_FOR,
            Mark::Hard => HARD_WITHIN,
        };
        let begin = world.elapsed();
        let mut seen = None;
        while world.elapsed() - begin < limit {
            world.send_numbered(a, b, 200);
            world.send_numbered(b, a, 200);
            for _ in 0..4 {
                world.advance(50 * MS);
                seen = peer(&world, a);
                if seen.as_ref().is_some_and(|peer| matches!(peer.path.kind, PathKind::P2p | PathKind::Lan)) {
                    let time = Some(world.elapsed() - begin);
                    return Outcome { pair: self, time, reason: String::new() };
                }
            }
            world.take_delivered();
        }
        let reason = seen.and_then(|peer| peer.reason).unwrap_or_default();
        Outcome { pair: self, time: None, reason }
    }
}

impl Outcome {
    /// Whether the pair has done what was promised of it alone: of ⚠️ nothing is.
    #[must_use]
    pub fn keeps_promise(&self) -> bool {
        match self.pair.mark() {
            Mark::Possible => self.time.is_some_and(|time| time <= POSSIBLE_WITHIN),
            Mark::Hard | Mark::Impossible => self.time.is_some() || self.reason.contains("symmetric"),
        }
    }
}

/// The outcomes as a table, and whether they keep the promises.
#[must_use]
pub fn report(outcomes: &[Outcome]) -> (String, bool) {
    let mut text = String::new();
    let mut kept = true;
    for cell in 0..16 {
        let kinds = [cell / 4, cell % 4];
        let of_cell: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.pair.kinds == kinds).collect();
        let mut times: Vec<Duration> = of_cell.iter().filter_map(|outcome| outcome.time).collect();
        times.sort_unstable();
        let at = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
        let seconds = |time: Option<&Duration>| time.map_or("-".to_owned(), |t| format!("{:.2}", t.as_secs_f64()));
        let names = kinds.map(|kind| KINDS.get(kind).copied().unwrap_or_default());
        let _ = writeln!(
            text,
            "{:<12} {:<12} {:>5} of {:>5} direct; seconds: median {}, 90 % {}, worst {}",
            names[0],
            names[1],
            times.len(),
            of_cell.len(),
            seconds(at(50)),
            seconds(at(90)),
            seconds(times.last()),
        );
    }
    let broken: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.keeps_promise()).collect();
    for outcome in broken.iter().take(20) {
        kept = false;
        let _ = writeln!(text, "seed {}: {:?} {:?}", outcome.pair.seed, outcome.time, outcome.reason);
    }
    let hard: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.pair.mark() == Mark::Hard).collect();
    let direct = hard.iter().filter(|outcome| outcome.time.is_some()).count();
    if !hard.is_empty() {
        let share = direct as f64 / hard.len() as f64;
        let _ = writeln!(text, "where ports are guessed {direct} of {} are direct within 90 s: {share:.3}", hard.len());
        kept &= share >= HARD_SHARE;
    }
    let _ = writeln!(text, "{} pairs, {} did not keep what is promised", outcomes.len(), broken.len());
    (text, kept)
}

fn peer(world: &World, node: NodeIndex) -> Option<Peer> {
    world.status(node)?.peers.into_iter().next()
}

/// A NAT of a kind, in one of the ways in which routers are.
fn nat(kind: usize, rng: &mut ChaCha8Rng) -> NatConfig {
    let base = match kind {
        0 => NatConfig::full_cone(),
        1 => NatConfig::restricted_cone(),
        2 => NatConfig::port_restricted(),
        _ => NatConfig::symmetric(),
    };
    let cone = [
        PortAssignment::Preserving,
        PortAssignment::Overloading,
        PortAssignment::Random,
        PortAssignment::Sequential(1),
        PortAssignment::ParityPreserving,
        PortAssignment::Blocks(512),
    ];
    let mapping = if kind == 3 { pick(&[Mapping::AddressDependent, base.mapping], rng) } else { base.mapping };
    // Of a mapping per destination any filter may come on top; it is called symmetric all the same.
    let any = [Filtering::EndpointIndependent, Filtering::AddressDependent, Filtering::AddressAndPortDependent];
    let filtering = if kind == 3 && below(4, rng) == 0 { pick(&any, rng) } else { base.filtering };
    let ports = if kind == 3 {
        pick(&[PortAssignment::Random, PortAssignment::Random, PortAssignment::Sequential(2)], rng)
    } else {
        pick(&cone, rng)
    };
    NatConfig {
        mapping,
        filtering,
        ports,
        hairpin: pick(&[Hairpin::None, Hairpin::InternalSource, Hairpin::ExternalSource], rng),
        timeout: Duration::from_secs(30 + below(270, rng)),
        inbound_refresh: below(2, rng) == 0,
        inbound_claims: kind == 2 && below(4, rng) == 0,
        ..base
    }
}

fn link(rng: &mut ChaCha8Rng) -> LinkProfile {
    let delay = MS * u32::try_from(2 + below(58, rng)).unwrap_or_default();
    let odd = below(20, rng) as f64 / 1000.0;
    LinkProfile {
        delay,
        jitter: MS * u32::try_from(below(20, rng)).unwrap_or_default(),
        loss: if odd > 0.0 { Loss::Independent(odd) } else { Loss::None },
        duplicate: odd / 2.0,
        reorder: odd,
        reorder_delay: delay / 2,
        ..LinkProfile::default()
    }
}

fn below(n: u64, rng: &mut ChaCha8Rng) -> u64 {
    rng.next_u64() % n.max(1)
}

fn pick<T: Copy>(of: &[T], rng: &mut ChaCha8Rng) -> T {
    let index = usize::try_from(below(of.len() as u64, rng)).unwrap_or_default();
    // Never empty.
    of.get(index).copied().unwrap_or(of[0])
}
