//! The STUN server: what RFC 8489 and RFC 5780 ask for, and what an attacker shall not get.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use edgelink_relay::Rate;
use edgelink_relay::stun::{Addresses, Answer, MAX_GROWTH, Responder, Socket, StunConfig, StunStats, Which};
use edgelink_wire::stun::binding::{Refusal, Request, Response, Success, Unknown};
use edgelink_wire::stun::{Class, MAGIC_COOKIE, Message, TransactionId, attribute};
use proptest::prelude::*;
use rand_chacha::ChaCha12Rng;
use rand_core::SeedableRng;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

const ID: TransactionId = TransactionId(*b"a dozen byte");
const MAIN: Socket = Socket { ip: Which::First, port: Which::First };
const SOCKETS: [Socket; 4] = [
    MAIN,
    Socket { ip: Which::First, port: Which::Second },
    Socket { ip: Which::Second, port: Which::First },
    Socket { ip: Which::Second, port: Which::Second },
];

struct Server {
    responder: Responder,
    now: Instant,
}

impl Server {
    #[expect(clippy::disallowed_methods, reason = "any origin will do")]
    fn with(config: StunConfig) -> Self {
        Self { responder: Responder::new(config, &mut ChaCha12Rng::seed_from_u64(1)), now: Instant::now() }
    }

    fn one() -> Self {
        Self::with(StunConfig::new(Addresses::new(ip("198.18.0.1"), None)))
    }

    fn two() -> Self {
        Self::with(StunConfig::new(Addresses::new(ip("198.18.0.1"), Some(ip("198.18.0.2")))))
    }

    fn ask(&mut self, local: Socket, source: &str, datagram: &[u8]) -> Option<Answer> {
        self.responder.answer(local, source.parse().unwrap(), datagram, self.now)
    }

    /// Asks from one address, far below the rate.
    fn calmly(&mut self, local: Socket, datagram: &[u8]) -> (Socket, Response) {
        self.now += Duration::from_secs(1);
        let answer = self.ask(local, CLIENT, datagram).unwrap();
        (answer.from, read(&answer))
    }

    fn allowed(&mut self, source: &str, times: usize) -> usize {
        (0..times).filter(|_| self.ask(MAIN, source, &plain()).is_some()).count()
    }
}

const CLIENT: &str = "203.0.113.9:40001";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn read(answer: &Answer) -> Response {
    Response::parse(&Message::parse(answer.datagram()).unwrap()).unwrap()
}

fn request(change_ip: bool, change_port: bool, fingerprint: bool) -> Vec<u8> {
    let (datagram, len) = Request { transaction: ID, change_ip, change_port, fingerprint }.encode();
    datagram[..len].to_vec()
}

fn plain() -> Vec<u8> {
    request(false, false, false)
}

fn with_attributes(message_type: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (ty, value) in attributes {
        body.extend([ty.to_be_bytes(), u16::try_from(value.len()).unwrap().to_be_bytes()].concat());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let head = [message_type, u16::try_from(body.len()).unwrap()].map(u16::to_be_bytes).concat();
    [&head[..], &MAGIC_COOKIE.to_be_bytes(), &ID.0, &body].concat()
}

#[test]
fn a_client_learns_its_address_byte_for_byte() {
    let mut server = Server::one();
    let answer = server.ask(MAIN, CLIENT, &plain()).unwrap();
    assert_eq!(answer.from, MAIN);
    // Success, 12 bytes, cookie; XOR-MAPPED-ADDRESS 203.0.113.9:40001 XOR the cookie.
    let expected = [
        &[1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42][..],
        &ID.0,
        &[0, 0x20, 0, 8, 0, 1, 0x9c ^ 0x21, 0x41 ^ 0x12, 203 ^ 0x21, 0x12, 113 ^ 0xa4, 9 ^ 0x42],
    ]
    .concat();
    assert_eq!(answer.datagram(), expected);
    let answer = server.ask(MAIN, "[2001:db8::9]:40001", &plain()).unwrap();
    let success = Success { mapped: at("[2001:db8::9]:40001"), origin: None, other: None };
    assert_eq!(read(&answer), Response { transaction: ID, result: Ok(success), fingerprint: false });
    assert_eq!(server.responder.stats(), StunStats { answered: 2, ..StunStats::default() });
}

#[test]
fn each_socket_answers_from_where_it_is_asked_to() {
    let mut server = Server::two();
    for local in SOCKETS {
        for (change_ip, change_port) in [(false, false), (false, true), (true, false), (true, true)] {
            let (from, response) = server.calmly(local, &request(change_ip, change_port, false));
            assert_eq!((from.ip != local.ip, from.port != local.port), (change_ip, change_port));
            let address = |second_ip: bool, second_port: bool| {
                let ip = if second_ip { "198.18.0.2" } else { "198.18.0.1" };
                at(&format!("{ip}:{}", if second_port { 3479 } else { 3478 }))
            };
            let success = Success {
                mapped: at(CLIENT),
                origin: Some(address(from.ip == Which::Second, from.port == Which::Second)),
                // Relative to where the request arrived, not to where the answer comes from.
                other: Some(address(local.ip == Which::First, local.port == Which::First)),
            };
            assert_eq!(response.result, Ok(success));
        }
    }
}

#[test]
fn old_and_new_attributes_name_the_client_when_nat_behaviour_is_discovered() {
    let mut server = Server::two();
    let answer = server.ask(MAIN, CLIENT, &plain()).unwrap();
    let message = Message::parse(answer.datagram()).unwrap();
    let types: Vec<_> = message.attributes().map(|(ty, _)| ty).collect();
    assert_eq!(
        types,
        [
            attribute::XOR_MAPPED_ADDRESS,
            attribute::MAPPED_ADDRESS,
            attribute::RESPONSE_ORIGIN,
            attribute::OTHER_ADDRESS
        ]
    );
    assert_eq!(message.attribute(attribute::MAPPED_ADDRESS), Some(&[0, 1, 0x9c, 0x41, 203, 0, 113, 9][..]));
}

#[test]
fn a_server_with_one_address_says_that_it_cannot_change() {
    let mut server = Server::one();
    for (change_ip, change_port) in [(false, true), (true, false), (true, true)] {
        let (from, response) = server.calmly(MAIN, &request(change_ip, change_port, false));
        let refusal = Refusal { code: 420, unknown: Unknown::only(attribute::CHANGE_REQUEST) };
        assert_eq!((from, response.result), (MAIN, Err(refusal)));
    }
    // Asking for no change is no change.
    let nothing = with_attributes(1, &[(attribute::CHANGE_REQUEST, &[0; 4])]);
    assert!(server.calmly(MAIN, &nothing).1.result.is_ok());
    let second = Socket { ip: Which::First, port: Which::Second };
    assert_eq!(server.calmly(second, &plain()).0, second);
}

#[test]
fn what_would_send_answers_elsewhere_or_make_them_large_is_unknown() {
    let mut server = Server::two();
    for ty in [attribute::RESPONSE_PORT, attribute::PADDING, 0x0002, 0x0024, 0x7fff] {
        let asked =
            with_attributes(1, &[(ty, &[0x12, 0x34, 0, 0]), (0xc001, &[]), (attribute::CHANGE_REQUEST, &[0, 0, 0, 6])]);
        let (from, response) = server.calmly(MAIN, &asked);
        assert_eq!((from, response.result), (MAIN, Err(Refusal { code: 420, unknown: Unknown::only(ty) })));
    }
    assert_eq!(server.responder.stats().unknown_attributes, 5);
}

#[test]
fn a_change_request_of_a_wrong_length_is_a_bad_request() {
    let mut server = Server::two();
    for value in [&[0, 0, 0][..], &[], &[0; 8]] {
        let (_, response) = server.calmly(MAIN, &with_attributes(1, &[(attribute::CHANGE_REQUEST, value)]));
        assert_eq!(response.result, Err(Refusal { code: 400, unknown: Unknown::default() }));
    }
    assert_eq!(server.responder.stats().bad_requests, 3);
}

#[test]
fn a_fingerprint_is_answered_with_one() {
    let mut server = Server::two();
    for fingerprint in [true, false] {
        for change_ip in [true, false] {
            assert_eq!(server.calmly(MAIN, &request(change_ip, false, fingerprint)).1.fingerprint, fingerprint);
        }
    }
    let mut wrong = request(false, false, true);
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(server.ask(MAIN, CLIENT, &wrong), None);
    assert_eq!(server.responder.stats().malformed, 1);
}

#[test]
fn silence_for_what_is_no_binding_request() {
    let mut server = Server::two();
    let malformed = [vec![], vec![0; 20], plain()[..19].to_vec(), [plain(), vec![0; 4]].concat(), {
        let mut attribute_too_long = with_attributes(1, &[(0x8022, b"name")]);
        attribute_too_long[23] = 5;
        attribute_too_long
    }];
    for datagram in &malformed {
        assert_eq!(server.ask(MAIN, CLIENT, datagram), None, "{datagram:02x?}");
    }
    let allocate = Class::Request.with_method(3);
    let unexpected =
        [Class::Indication.with_method(1), Class::Success.with_method(1), Class::Error.with_method(1), allocate];
    for message_type in unexpected {
        assert_eq!(server.ask(MAIN, CLIENT, &with_attributes(message_type, &[])), None);
    }
    let stats = StunStats { malformed: 5, unexpected: 4, ..StunStats::default() };
    assert_eq!(server.responder.stats(), stats);
}

/// A request without the cookie.
fn classic(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut datagram = with_attributes(1, attributes);
    datagram[4] ^= 1;
    datagram
}

#[test]
fn clients_of_rfc_3489_are_told_their_address_in_clear() {
    let change = |bits: u8| classic(&[(attribute::CHANGE_REQUEST, &[0, 0, 0, bits])]);
    let mut two = Server::two();
    for (asked, from) in [(classic(&[]), MAIN), (change(0), MAIN), (change(6), SOCKETS[3]), (change(2), SOCKETS[1])] {
        let answer = two.ask(MAIN, CLIENT, &asked).unwrap();
        let port = if from.port == Which::Second { 0x97 } else { 0x96 };
        let expected = [
            &[1, 1, 0, 36][..],
            &asked[4..20],
            &[0, 1, 0, 8, 0, 1, 0x9c, 0x41, 203, 0, 113, 9],
            &[0, 4, 0, 8, 0, 1, 0x0d, port, 198, 18, 0, if from.ip == Which::Second { 2 } else { 1 }],
            &[0, 5, 0, 8, 0, 1, 0x0d, 0x97, 198, 18, 0, 2],
        ];
        assert_eq!((answer.from, answer.datagram()), (from, &expected.concat()[..]));
        assert!(answer.datagram().len() <= asked.len() + MAX_GROWTH);
        assert_eq!(two.ask(MAIN, "203.0.113.77:3478", answer.datagram()), None, "an answer is answered");
    }
    // RESPONSE-ADDRESS: the answer would go to somebody else.
    assert_eq!(two.ask(MAIN, CLIENT, &classic(&[(0x0002, &[0, 1, 0, 80, 203, 0, 113, 80])])), None);
    assert_eq!(two.ask(MAIN, "198.18.0.1:3478", &classic(&[])), None, "ourselves");
    let mut one = Server::one();
    let answer = one.ask(MAIN, CLIENT, &change(0)).unwrap();
    assert_eq!(answer.datagram().len(), 20 + 2 * 12, "no other address");
    assert_eq!(one.ask(MAIN, CLIENT, &change(4)), None);
    assert_eq!(two.responder.stats(), StunStats { answered: 4, malformed: 5, bad_source: 1, ..StunStats::default() });
}

#[test]
fn servers_never_answer_each_other_nor_themselves() {
    let mut server = Server::two();
    let asked = [plain(), request(true, true, true), with_attributes(1, &[(0x0002, &[])])];
    for datagram in asked {
        server.now += Duration::from_secs(1);
        let answer = server.ask(MAIN, CLIENT, &datagram).unwrap();
        assert_eq!(server.ask(MAIN, "203.0.113.77:3478", answer.datagram()), None);
    }
    let forged = [
        "198.18.0.1:3478",
        "198.18.0.2:3479",
        "203.0.113.1:0",
        "0.0.0.0:5",
        "224.0.0.1:5",
        "255.255.255.255:5",
        "[ff02::1]:5",
    ];
    for source in forged {
        assert_eq!(server.ask(MAIN, source, &plain()), None, "{source}");
    }
    assert_eq!(server.responder.stats().bad_source, 7);
    assert!(server.ask(MAIN, "198.18.0.1:40000", &plain()).is_some(), "a node on the same host");
}

#[test]
fn each_source_has_its_rate() {
    let mut server = Server::one();
    assert_eq!(server.allowed("203.0.113.1:1", 60), 50);
    assert_eq!(server.allowed("203.0.113.1:2", 5), 0, "another port is the same source");
    assert_eq!(server.allowed("203.0.113.2:1", 60), 50);
    assert_eq!(server.allowed("[2001:db8::1]:1", 30) + server.allowed("[2001:db8::ffff:1]:1", 30), 50, "one /64");
    assert_eq!(server.allowed("[2001:db8:0:1::1]:1", 60), 50);
    assert_eq!(server.responder.stats().limited, 10 + 5 + 10 + 10 + 10);
    server.now += Duration::from_millis(100);
    assert_eq!(server.allowed("203.0.113.1:1", 5), 1);
    // What is not answered costs nothing.
    server.now += Duration::from_millis(100);
    assert_eq!(server.ask(MAIN, "203.0.113.1:1", &[0; 20]), None);
    assert_eq!(server.allowed("203.0.113.1:1", 5), 1);
}

#[test]
fn a_flood_of_forged_sources_shuts_few_honest_ones_out() {
    let mut server = Server::with(StunConfig {
        rate: Rate { period: Duration::from_secs(60), burst: 1 },
        total: Rate { period: Duration::from_nanos(1), burst: 1_000_000 },
        buckets: 1_024,
        ..StunConfig::new(Addresses::new(ip("198.18.0.1"), None))
    });
    for n in 0..256u32 {
        server.ask(MAIN, &format!("{}:1", IpAddr::from((n + (10 << 24)).to_be_bytes())), &plain());
    }
    let honest = (0..200u8).filter(|n| server.allowed(&format!("203.0.113.{n}:1"), 1) == 1).count();
    // A quarter of the buckets are empty; and the honest ones share some among themselves.
    assert!((100..190).contains(&honest), "{honest} of 200");
}

#[test]
fn all_together_have_a_rate_too() {
    let config = StunConfig::new(Addresses::new(ip("198.18.0.1"), None));
    let mut server = Server::with(StunConfig { total: Rate { period: Duration::from_secs(1), burst: 10 }, ..config });
    let answered = (0..50).filter(|n| server.allowed(&format!("203.0.113.{n}:1"), 1) == 1).count();
    assert_eq!((answered, server.responder.stats().overloaded), (10, 40));
}

fn source() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    (ip, any::<u16>()).prop_map(SocketAddr::from)
}

/// Requests with any attributes, or any bytes at all.
fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let ty = prop_oneof![any::<u16>(), prop::sample::select(vec![3u16, 6, 8, 0x20, 0x24, 0x26, 0x27, 0x8022])];
    let attributes = prop::collection::vec((ty, prop::collection::vec(any::<u8>(), 0..12)), 0..60);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        attributes.prop_map(|attributes| {
            let attributes: Vec<_> = attributes.iter().map(|(ty, value)| (*ty, &value[..])).collect();
            with_attributes(1, &attributes)
        }),
    ]
}

proptest! {
    #[test]
    fn no_answer_is_much_longer_than_its_request(
        datagram in datagram(), source in source(), at in 0usize..4, two: bool,
    ) {
        let mut server = if two { Server::two() } else { Server::one() };
        let local = Socket { ip: if two { SOCKETS[at].ip } else { Which::First }, ..SOCKETS[at] };
        let answer = server.responder.answer(local, source, &datagram, server.now);
        let stats = server.responder.stats();
        let silent = stats.malformed + stats.unexpected + stats.bad_source;
        prop_assert_eq!(answer.is_none(), silent == 1);
        if let Some(answer) = answer {
            prop_assert!(answer.datagram().len() <= datagram.len() + MAX_GROWTH);
            prop_assert!(two || answer.from == local);
            let response = read(&answer);
            prop_assert_eq!(response.transaction, ID);
            if let Ok(success) = response.result {
                prop_assert_eq!(success.mapped, source);
                prop_assert_eq!(success.other.is_some(), two);
            }
        }
    }
}
