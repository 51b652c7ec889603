//! What the controller, STUN servers, peers and strangers may say of addresses, and should not.

use crate::duo::{Duo, MS, SECOND, Setup, id};
use edgelink_wire::control::proto;
use edgelink_wire::stun::binding::{Request, Response, Success};
use edgelink_wire::stun::{Message, TransactionId};
use edgelink_wire::{FrameType, HEADER_LEN};
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
        // STUN servers are asked within the same budget.
        assert!(count <= 20, "{count} datagrams in second {second}");
    }
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

/// Sealed frames that a node has sent by UDP.
fn sealed(duo: &Duo, index: usize) -> Vec<Vec<u8>> {
    let sealed =
        |b: &[u8]| [FrameType::Data, FrameType::P2pPing, FrameType::P2pPong].map(|ty| ty as u8).contains(&b[1]);
    duo.sent.iter().filter(|(_, who, _, b)| *who == index && sealed(b)).map(|(.., b)| b.clone()).collect()
}

/// Shows datagrams to the first node, from a stranger's address and from where its peer is: none of them may have any effect
/// but on a counter.
fn show_in_vain(duo: &mut Duo, endpoint: SocketAddr, datagrams: &[Vec<u8>]) {
    let pings = datagrams.iter().filter(|b| b[1] == FrameType::P2pPing as u8).count();
    assert!(pings >= 3, "{pings} probes among {}", datagrams.len());
    let before = duo.path(0);
    duo.advance(SECOND);
    duo.sent.clear();
    let stranger: SocketAddr = "198.51.100.66:6".parse().unwrap();
    for from in [stranger, endpoint] {
        for datagram in datagrams {
            duo.inject(0, from, datagram);
        }
    }
    let answers: Vec<_> =
        duo.sent.iter().filter(|(_, _, to, b)| *to == stranger || b[1] == FrameType::P2pPong as u8).collect();
    assert!(answers.is_empty(), "{answers:?}");
    assert_eq!(duo.path(0), before);
    let received = duo.received(1).len();
    duo.stream(2 * SECOND, 50 * MS);
    assert_eq!(duo.received(1).len(), received + 40);
    assert_eq!(duo.path(0).endpoint, Some(endpoint));
    assert!(duo.sent.iter().all(|(_, _, to, _)| *to != stranger));
}

#[test]
fn replayed_probes_are_not_answered_and_change_nothing() {
    let mut duo = Duo::new(Setup::behind("full_cone", "full_cone"));
    let endpoint = direct(&mut duo);
    // Those that have arrived: what was sent to other addresses has not been seen yet.
    let here = duo.path(1).endpoint.unwrap();
    duo.sent.retain(|(_, _, to, _)| *to == here);
    let theirs = sealed(&duo, 1);
    show_in_vain(&mut duo, endpoint, &theirs);
    let drops = duo.status(0).drops;
    assert!(drops["replayed"] >= 2 * theirs.len() as u64, "{drops:?}");
}

#[test]
fn probes_of_a_node_of_another_network_are_not_answered_and_change_nothing() {
    let mut duo = Duo::new(Setup::behind("full_cone", "full_cone"));
    let endpoint = direct(&mut duo);
    // The worst case: a network whose nodes have the same ids, addresses and even keys.
    let mut other = Duo::new(Setup { network: 8, ..Setup::behind("full_cone", "full_cone") });
    direct(&mut other);
    let theirs = sealed(&other, 1);
    show_in_vain(&mut duo, endpoint, &theirs);
    // And one whose id nobody here has.
    let renamed = |frame: &Vec<u8>| {
        let mut frame = frame.clone();
        frame[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&999_u32.to_be_bytes());
        frame
    };
    show_in_vain(&mut duo, endpoint, &theirs.iter().map(renamed).collect::<Vec<_>>());
    let drops = duo.status(0).drops;
    assert!(drops["unknown_key"] >= 4 * theirs.len() as u64, "{drops:?}");
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
