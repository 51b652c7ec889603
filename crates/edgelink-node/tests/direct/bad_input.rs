//! What the controller, STUN servers, peers and strangers may say of addresses, and should not.

use crate::duo::{Duo, MS, SECOND, Setup, id};
use edgelink_wire::control::proto;
use edgelink_wire::stun::binding::{Request, Response, Success};
use edgelink_wire::stun::{Message, TransactionId};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

fn direct(duo: &mut Duo) -> SocketAddr {
    duo.stream(3 * SECOND, 50 * MS);
    duo.path(0).endpoint.expect("a direct path")
}

/// Where a node has sent datagrams other than to STUN servers.
fn probed(duo: &Duo, index: usize) -> BTreeSet<SocketAddr> {
    let stun = |to: &SocketAddr| to.port() == 3478 || to.port() == 3479;
    duo.sent.iter().filter(|(_, who, to, _)| *who == index && !stun(to)).map(|(_, _, to, _)| *to).collect()
}

#[test]
fn a_list_of_ten_thousand_endpoints_costs_sixteen_candidates_and_the_budget() {
    let mut duo = Duo::new(Setup::behind("symmetric", "symmetric"));
    duo.send(0);
    duo.advance(2 * SECOND);
    duo.sent.clear();
    let endpoint = |n: u32| {
        let ip = match n % 8 {
            0 => Ipv4Addr::new(224, 0, 0, n as u8),
            1 => Ipv4Addr::new(127, 0, 0, n as u8),
            2 => Ipv4Addr::UNSPECIFIED,
            3 => Ipv4Addr::BROADCAST,
            4 => Ipv4Addr::new(10, 7, 0, n as u8),
            5 => Ipv4Addr::new(169, 254, 0, n as u8),
            _ => Ipv4Addr::new(192, 168, (n >> 8) as u8, n as u8),
        };
        proto::Endpoint { kind: 1 + (n % 5) as i32, ip: ip.octets().to_vec(), port: n, priority: n % 3 }
    };
    let list = proto::P2pEndpoint {
        node_id: id(1).0,
        endpoints: (0..10_000).map(endpoint).collect(),
        attempt: 1,
        nat_mapping: "endpoint_independent".to_owned(),
        nat_filtering: "address_dependent".to_owned(),
        ..Default::default()
    };
    duo.tell(0, list);
    let since = duo.elapsed;
    duo.stream(10 * SECOND, 100 * MS);
    let told: BTreeSet<SocketAddr> =
        probed(&duo, 0).into_iter().filter(|to| to.ip().to_string().starts_with("192.168.")).collect();
    // And the address that the peer itself had told before.
    assert!((1..=17).contains(&told.len()), "{told:?}");
    for to in probed(&duo, 0) {
        assert!(edgelink_path::usable(to, &["10.7.0.0/24".parse().unwrap()]), "{to} is no address to be probed");
    }
    let times: Vec<Duration> = duo.sent.iter().filter(|(_, who, ..)| *who == 0).map(|(at, ..)| *at - since).collect();
    for second in 0..10 {
        let within = |at: &&Duration| (second * SECOND..(second + 1) * SECOND).contains(*at);
        let count = times.iter().filter(within).count();
        // A second's worth may have been saved, and STUN servers are asked within the same budget.
        assert!(count <= 40, "{count} datagrams in second {second}");
    }
    assert!(times.len() <= 20 * 11, "{}", times.len());
}

#[test]
fn reflected_probes_change_nothing() {
    let mut duo = Duo::new(Setup::behind("full_cone", "full_cone"));
    let endpoint = direct(&mut duo);
    let own: Vec<Vec<u8>> = duo
        .sent
        .iter()
        .filter(|(_, who, _, b)| *who == 0 && matches!(b[1], 0x10 | 0x32 | 0x33))
        .map(|s| s.3.clone())
        .collect();
    assert!(own.len() > 10, "{}", own.len());
    duo.advance(SECOND);
    duo.sent.clear();
    let mirror: SocketAddr = "198.51.100.66:6".parse().unwrap();
    for from in [mirror, endpoint] {
        for datagram in &own {
            duo.inject(0, from, datagram);
        }
    }
    assert!(duo.sent.iter().all(|(_, _, to, _)| *to != mirror));
    assert_eq!(duo.path(0).endpoint, Some(endpoint));
}

#[test]
fn stun_answers_that_nobody_asked_for_or_that_are_absurd_give_no_endpoint() {
    let mut duo = Duo::new(Setup::behind("port_restricted", "port_restricted"));
    direct(&mut duo);
    let honest: BTreeSet<String> = duo.netcheck(0).endpoints.iter().map(|e| e.address.to_string()).collect();
    // The addresses are looked at anew: these are the requests.
    duo.sent.clear();
    duo.look_again(0);
    let requests: Vec<(SocketAddr, TransactionId)> = duo
        .sent
        .iter()
        .filter_map(|(_, who, to, bytes)| {
            let (request, _) = (*who == 0).then(|| Request::parse(&Message::parse(bytes).ok()?).ok())??;
            Some((*to, request.transaction))
        })
        .collect();
    assert!(!requests.is_empty());
    let answer = |transaction: TransactionId, mapped: &str| {
        let mapped = mapped.parse().unwrap();
        let result = Ok(Success { mapped, origin: None, other: None });
        let (bytes, len) = Response { transaction, result, fingerprint: true }.encode();
        bytes[..len].to_vec()
    };
    for (server, transaction) in requests {
        // From somebody else; with another transaction; and from the server, of addresses that are none.
        duo.inject(0, "198.51.100.66:3478".parse().unwrap(), &answer(transaction, "198.51.100.66:66"));
        duo.inject(0, server, &answer(TransactionId([9; 12]), "198.51.100.66:66"));
        for absurd in ["0.0.0.0:0", "127.0.0.1:5", "224.0.0.1:5", "255.255.255.255:5", "203.0.113.9:0", "10.7.0.5:5"] {
            duo.inject(0, server, &answer(transaction, absurd));
        }
    }
    duo.advance(5 * SECOND);
    let told: BTreeSet<String> = duo.netcheck(0).endpoints.iter().map(|e| e.address.to_string()).collect();
    assert!(told.is_subset(&honest), "{told:?}, and before {honest:?}");
    assert_eq!(duo.path(0).kind, edgelink_api::local::PathKind::P2p);
}
