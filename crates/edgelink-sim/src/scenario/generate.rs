//! Scenarios out of seeds.

use super::{MAX_STEPS, Quality, Scenario, Setup, Step, Transition};
use crate::world::Site;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

pub(super) fn tree(seed: u64) -> impl proptest::strategy::ValueTree<Value = Scenario> {
    grow(&scenarios(seed), seed)
}

pub(super) fn draw<T: std::fmt::Debug>(strategy: impl Strategy<Value = T>, seed: u64) -> T {
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

pub(super) fn setups() -> impl Strategy<Value = Setup> {
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

pub(super) fn steps() -> impl Strategy<Value = Step> {
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
            4 => (n.clone(), 0u16..60).prop_map(|(node, for_s)| OnlyKeepalives { node, for_s }),
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
        3 => (any::<u16>(), 0u16..90).prop_map(|(parts, for_s)| Partition { parts, for_s }),
        2 => prop::sample::select(vec![10u32, 60, 24 * 3600]).prop_map(|every_s| Rotate { every_s }),
        3 => (n.clone(), n, 1u8..100, 24u16..1300).prop_map(|(from, to, packets, len)| Burst { from, to, packets, len }),
    ]
}
