//! Hole punching by specification §6.3 between every pair of the four classic NATs: the matrix of §6.1.

use crate::prober::Server;
use crate::{Lab, MS, SECOND, at};
use edgelink_sim::net::{HostId, LinkProfile, NatConfig, Uplink};
use std::net::SocketAddr;
use std::time::Duration;

const PORT: u16 = 5000;

struct Side {
    host: HostId,
    /// Where this side sends: first what STUN showed of the other, then where the other's datagrams come from.
    peer: SocketAddr,
    heard: bool,
    /// The other side has said that it hears this one.
    acknowledged: bool,
}

/// Both sides send every 100 ms for 5 s, the first one `lead` earlier, always to where they last heard from.
fn punches(nats: [NatConfig; 2], lead: Duration) -> bool {
    let mut lab = Lab::new(9);
    let server = Server::new(&mut lab);
    let hosts = nats.map(|nat| {
        let site = lab.site(nat);
        lab.net.set_links(Uplink::Router(site), LinkProfile::delay(10 * MS));
        lab.net.add_host_on(site).unwrap()
    });
    let seen = hosts.map(|host| server.reflexive(&mut lab, host, PORT));
    let mut sides = [0, 1].map(|i| Side { host: hosts[i], peer: seen[1 - i], heard: false, acknowledged: false });
    let begin = lab.now;
    while lab.now < begin + 5 * SECOND {
        let late = lab.now >= begin + lead;
        for side in sides.iter().take(if late { 2 } else { 1 }) {
            lab.send(side.host, PORT, side.peer, vec![u8::from(side.heard)]);
        }
        for arrival in lab.advance(100 * MS) {
            let side = sides.iter_mut().find(|side| side.host == arrival.host).unwrap();
            (side.peer, side.heard) = (arrival.from, true);
            side.acknowledged |= arrival.payload[0] == 1;
        }
    }
    sides.iter().all(|side| side.heard && side.acknowledged)
}

#[test]
fn the_matrix_of_the_specification_holds() {
    let nats = [
        ("full cone", NatConfig::full_cone()),
        ("restricted cone", NatConfig::restricted_cone()),
        ("port restricted", NatConfig::port_restricted()),
        ("symmetric", NatConfig::symmetric()),
    ];
    for (i, (a_name, a)) in nats.into_iter().enumerate() {
        for (j, (b_name, b)) in nats.into_iter().enumerate() {
            let possible = i + j < 5; // all but port restricted × symmetric and symmetric × symmetric
            assert_eq!(punches([a, b], Duration::ZERO), possible, "{a_name} with {b_name}");
        }
    }
}

#[test]
fn a_predictable_symmetric_nat_lets_a_guess_of_the_next_port_through() {
    use edgelink_sim::net::PortAssignment;
    let mut lab = Lab::new(10);
    let server = Server::new(&mut lab);
    let symmetric = NatConfig { ports: PortAssignment::Sequential(2), ..NatConfig::symmetric() };
    let (a, b) = (lab.site(symmetric), lab.site(NatConfig::port_restricted()));
    let (a, b) = (lab.net.add_host_on(a).unwrap(), lab.net.add_host_on(b).unwrap());
    let (seen_a, seen_b) = (server.reflexive(&mut lab, a, PORT), server.reflexive(&mut lab, b, PORT));
    let guess = at(seen_a.ip(), seen_a.port() + 2);
    assert!(lab.deliver(b, PORT, guess).is_none(), "nothing is mapped there yet");
    assert_eq!(lab.deliver(a, PORT, seen_b).unwrap().from, guess);
}

#[test]
fn an_early_start_fails_where_early_datagrams_claim_the_tuple() {
    let pair = |nat| [nat, nat];
    assert!(punches(pair(NatConfig::port_restricted()), 300 * MS), "with a drop in INPUT the start does not matter");
    assert!(punches(pair(NatConfig::linux_masquerade()), Duration::ZERO), "at the same time it works");
    assert!(!punches(pair(NatConfig::linux_masquerade()), 300 * MS), "300 ms early it does not");
}
