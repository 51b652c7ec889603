//! Upgrades: relays that are ended politely lose nothing.
#![allow(clippy::disallowed_methods, reason = "the tests work on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use edgelink_e2e::{Pinger, SOON, UdpFlow, failover};
use nix::sys::signal::Signal;
use std::time::Instant;

#[test]
fn all_relays_restart_one_by_one_and_no_packet_is_lost() {
    let Some(mut web) = failover::web().unwrap() else { return };
    let target = web.net.nodes[1].overlay().unwrap();
    web.net.nodes[0].wait_ping(target, SOON).unwrap();
    // Both directions, and one alone.
    let pinger = Pinger::start(&web.net.nodes[0], target).unwrap();
    let flow = UdpFlow::start(&web.net.nodes[1], &web.net.nodes[0], 7_000).unwrap();
    pinger.wait_answers(20).unwrap();
    for r in 0..web.relays.len() {
        let begin = Instant::now();
        web.end_relay(r, Signal::SIGTERM).unwrap();
        println!("relay {} ended after {:.1?}", r + 1, begin.elapsed());
        web.start_relay(r).unwrap();
        web.wait_connected().unwrap();
        pinger.wait_answers(5).unwrap();
    }
    let flowed = flow.stop().unwrap();
    assert_eq!((flowed.lost, flowed.twice), (0, 0), "{flowed:?}");
    let count = pinger.stop_without_loss().unwrap();
    println!("{count} pings and {} packets, longest pause {:?}", flowed.sent, flowed.gap);
    web.check_alive().unwrap();
}
