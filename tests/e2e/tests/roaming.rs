//! A node that moves to another address, another uplink, loses its cable, or sleeps, while it talks with two peers: one
//! that it reaches directly, and one that only the relay joins it with.
#![expect(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![expect(clippy::unwrap_used, reason = "tests")]

use edgelink_api::local::PathKind;
use edgelink_e2e::p2p::{Sites, is_direct, lab, peer, time_to_direct};
use edgelink_e2e::{Node, Pinger, SOON};
use edgelink_testbed::{
    NatKind,
    topology::{Site, SitePlan, UplinkPlan},
    wait,
};
use nix::sys::signal::Signal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SECOND: Duration = Duration::from_secs(1);
/// DESIGN §5.
const LIMIT: f64 = 2.0;

struct World<'a> {
    home: Site,
    mobile: Node,
    direct: Node,
    relayed: Node,
    _sites: Sites<'a>,
}

impl World<'_> {
    /// Lets `event` happen to the mobile node while it pings both, and returns how long each was without an answer after
    /// the time that `event` returns: that from which all was well again.
    fn pause(&self, what: &str, event: impl FnOnce() -> f64) {
        let name = self.direct.host.name();
        wait::until("a direct path before", 3 * SOON, || {
            peer(&self.mobile, name).ok().filter(|peer| is_direct(peer.path.kind))
        })
        .unwrap();
        let pingers =
            [&self.direct, &self.relayed].map(|to| Pinger::start(&self.mobile, to.overlay().unwrap()).unwrap());
        pingers.iter().for_each(|pinger| pinger.wait_answers(10).unwrap());
        let since = event();
        pingers.iter().for_each(|pinger| pinger.wait_answers(20).unwrap());
        for (pinger, kind) in pingers.into_iter().zip(["direct", "relayed"]) {
            let pings = pinger.stop().unwrap();
            let after: Vec<f64> = std::iter::once(since).chain(pings.at.into_iter().filter(|at| *at > since)).collect();
            let gap = after.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
            println!("{what}: {kind}, longest pause {gap:.2} s");
            assert!(
                gap <= LIMIT,
                "{what}, {kind}: {gap} s without an answer\n{}",
                self.mobile.process().unwrap().stderr()
            );
        }
        assert_eq!(peer(&self.mobile, self.relayed.host.name()).unwrap().path.kind, PathKind::Relay);
        wait::until(&format!("{what}: a direct path again"), 3 * SOON, || {
            peer(&self.mobile, name).ok().filter(|peer| is_direct(peer.path.kind))
        })
        .unwrap();
    }
}

fn clock() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn whoever_moves_or_sleeps_is_back_within_two_seconds() {
    let Some(lab) = lab().unwrap() else { return };
    let sites = Sites::start(&lab).unwrap();
    let restricted = SitePlan::behind(NatKind::PortRestricted);
    let home =
        sites.internet.site("home", &restricted.clone().second(UplinkPlan::new(NatKind::PortRestricted))).unwrap();
    let away = sites.internet.site("away", &restricted.hosts(2)).unwrap();
    for host in home.hosts.iter().chain(&away.hosts) {
        host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    }
    home.hosts[0].sysctl("net.ipv6.conf.eth1.disable_ipv6", "1").unwrap();
    let [mut mobile, mut direct, mut relayed] = [&home.hosts[0], &away.hosts[0], &away.hosts[1]].map(|h| sites.node(h));
    relayed.configure(&serde_json::json!({ "p2p": { "enabled": false } })).unwrap();
    sites.join(&mut [&mut mobile, &mut direct, &mut relayed]).unwrap();
    let (time, seen) = time_to_direct(&mobile, &direct, 20 * SECOND).unwrap();
    assert!(time.is_some(), "{seen:?}");
    let world = World { home, mobile, direct, relayed, _sites: sites };
    let (host, home) = (&world.mobile.host, &world.home);
    let gateway = home.first.gateway.into();

    world.pause("another address", || {
        // The default route goes with the old address for a moment.
        let [old, new] = [2, 77].map(|last| format!("10.{}.0.{last}/24", home.address(0).octets()[1]));
        host.change_address("eth0", &old, &new).unwrap();
        host.switch_default_route(gateway).unwrap();
        clock()
    });
    world.pause("another uplink", || {
        host.switch_default_route(home.second.as_ref().unwrap().gateway.into()).unwrap();
        clock()
    });
    world.pause("the cable of the uplink pulled", || {
        host.set_link("eth1", false).unwrap();
        host.switch_default_route(gateway).unwrap();
        clock()
    });
    world.pause("off for five seconds", || {
        host.set_link("eth0", false).unwrap();
        std::thread::sleep(5 * SECOND);
        host.set_link("eth0", true).unwrap();
        host.switch_default_route(gateway).unwrap();
        clock()
    });
    world.pause("asleep for eight seconds", || {
        let process = world.mobile.process().unwrap();
        process.signal(Signal::SIGSTOP).unwrap();
        std::thread::sleep(8 * SECOND);
        process.signal(Signal::SIGCONT).unwrap();
        clock()
    });
    world._sites.check_alive([&world.mobile, &world.direct, &world.relayed]).unwrap();
}
