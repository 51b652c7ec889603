//! STUN against the vectors of RFC 5769, round trips, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests may")]

use edgelink_wire::stun::binding::{MAX_RESPONSE, Refusal, Request, Response, Success, Unknown};
use edgelink_wire::stun::{BINDING, Class, Message, StunError, TransactionId, attribute};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};

/// RFC 5769 §2.1: a request with SOFTWARE, PRIORITY, ICE-CONTROLLED, USERNAME, MESSAGE-INTEGRITY and FINGERPRINT.
const REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae\
    802200105354554e207465737420636c69656e74 002400046e0001ff 80290008932ff9b151263b36\
    000600096576746a3a68367659202020 000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2 80280004e57a3bcf";
/// RFC 5769 §2.2.
const IPV4_RESPONSE: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae\
    8022000b7465737420766563746f7220 002000080001a147e112a643\
    000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7 80280004c07d4c96";
/// RFC 5769 §2.3.
const IPV6_RESPONSE: &str = "010100482112a442b7e7a701bc34d686fa87dfae\
    8022000b7465737420766563746f7220 002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9\
    00080014a382954e4be67bf11784c97c8292c275bfe3ed41 80280004c8fb0b4c";

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text.replace(' ', "")).unwrap()
}

fn id() -> TransactionId {
    TransactionId(bytes("b7e7a701bc34d686fa87dfae").try_into().unwrap())
}

/// A message of the attributes, with padding.
fn message(class: Class, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (ty, value) in attributes {
        body.extend([ty.to_be_bytes(), u16::try_from(value.len()).unwrap().to_be_bytes()].concat());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0x20);
    }
    let head = [class.with_method(BINDING), u16::try_from(body.len()).unwrap()].map(u16::to_be_bytes).concat();
    [head, bytes("2112a442"), id().0.to_vec(), body].concat()
}

#[test]
fn the_request_of_rfc_5769() {
    let datagram = bytes(REQUEST);
    let message = Message::parse(&datagram).unwrap();
    assert_eq!((message.class, message.method, message.transaction), (Class::Request, BINDING, id()));
    assert!(message.fingerprint);
    assert_eq!(message.attribute(attribute::USERNAME), Some(&b"evtj:h6vY"[..]));
    let types: Vec<_> = message.attributes().map(|(ty, _)| ty).collect();
    assert_eq!(types, [0x8022, 0x0024, 0x8029, 0x0006, 0x0008, 0x8028]);
    let (request, unknown) = Request::parse(&message).unwrap();
    assert_eq!(request, Request { transaction: id(), change_ip: false, change_port: false, fingerprint: true });
    assert_eq!(unknown.types(), [0x0024], "PRIORITY belongs to ICE, which this server does not speak");
}

#[test]
fn the_responses_of_rfc_5769() {
    for (datagram, mapped) in
        [(IPV4_RESPONSE, "192.0.2.1:32853"), (IPV6_RESPONSE, "[2001:db8:1234:5678:11:2233:4455:6677]:32853")]
    {
        let datagram = bytes(datagram);
        let response = Response::parse(&Message::parse(&datagram).unwrap()).unwrap();
        let success = Success { mapped: mapped.parse().unwrap(), origin: None, other: None };
        assert_eq!(response, Response { transaction: id(), result: Ok(success), fingerprint: true });
    }
}

#[test]
fn every_changed_bit_breaks_the_fingerprint() {
    let datagram = bytes(IPV4_RESPONSE);
    for bit in 0..datagram.len() * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let error = Message::parse(&changed).map(|message| message.fingerprint);
        // A flip in the FINGERPRINT's own type makes it another attribute: no fingerprint is claimed then.
        assert!(matches!(error, Err(_) | Ok(false)), "bit {bit}: {error:?}");
    }
}

#[test]
fn what_is_no_stun_message() {
    let good = message(Class::Request, &[(0x8022, b"name!")]);
    assert!(Message::parse(&good).is_ok());
    for len in 0..good.len() {
        assert_eq!(Message::parse(&good[..len]), Err(StunError::Foreign), "{len}");
    }
    let mut cookie = good.clone();
    cookie[4] ^= 1;
    assert_eq!(Message::parse(&cookie), Err(StunError::Foreign));
    let mut overlong = good.clone();
    overlong[23] = 9;
    assert_eq!(Message::parse(&overlong), Err(StunError::Malformed));
    let fingerprint_not_last = message(Class::Request, &[(attribute::FINGERPRINT, &[0; 4]), (0x8022, b"name")]);
    assert_eq!(Message::parse(&fingerprint_not_last), Err(StunError::Malformed));
    let short_fingerprint = message(Class::Request, &[(attribute::FINGERPRINT, &[0; 3])]);
    assert_eq!(Message::parse(&short_fingerprint), Err(StunError::Malformed));
    let wrong_fingerprint = message(Class::Request, &[(attribute::FINGERPRINT, &[0; 4])]);
    assert_eq!(Message::parse(&wrong_fingerprint), Err(StunError::BadFingerprint));
}

#[test]
fn nothing_counts_behind_message_integrity() {
    let datagram = message(
        Class::Request,
        &[
            (attribute::MESSAGE_INTEGRITY, &[0; 20]),
            (attribute::CHANGE_REQUEST, &[0, 0, 0, 6]),
            (0x0002, &[0; 8]),
            (attribute::MESSAGE_INTEGRITY_SHA256, &[0; 32]),
            (attribute::MESSAGE_INTEGRITY, &[0; 20]),
        ],
    );
    let message = Message::parse(&datagram).unwrap();
    let types: Vec<_> = message.attributes().map(|(ty, _)| ty).collect();
    assert_eq!(types, [attribute::MESSAGE_INTEGRITY, attribute::MESSAGE_INTEGRITY_SHA256]);
    let (request, unknown) = Request::parse(&message).unwrap();
    assert!(!request.change_ip && !request.change_port && unknown.types().is_empty());
}

#[test]
fn of_two_attributes_of_one_type_the_first_counts() {
    let datagram = message(
        Class::Request,
        &[(attribute::CHANGE_REQUEST, &[0, 0, 0, 2]), (attribute::CHANGE_REQUEST, &[0, 0, 0, 4])],
    );
    let (request, _) = Request::parse(&Message::parse(&datagram).unwrap()).unwrap();
    assert_eq!((request.change_ip, request.change_port), (false, true));
}

#[test]
fn unknown_attributes_are_named_once_and_their_number_is_bounded() {
    let many: Vec<(u16, &[u8])> = (0..100).flat_map(|n| [(0x4000 + n, &[][..]), (0x4000, &[][..])]).collect();
    let datagram = message(Class::Request, &many);
    let (_, unknown) = Request::parse(&Message::parse(&datagram).unwrap()).unwrap();
    assert_eq!(unknown.types(), (0x4000..0x4020).collect::<Vec<_>>());
    let refusal = Response { transaction: id(), result: Err(Refusal { code: 420, unknown }), fingerprint: true };
    let (answer, len) = refusal.encode();
    assert_eq!(Response::parse(&Message::parse(&answer[..len]).unwrap()), Ok(refusal));
}

#[test]
fn the_attributes_that_the_server_does_not_offer_are_unknown_to_it() {
    let datagram = message(
        Class::Request,
        &[
            (attribute::RESPONSE_PORT, &[0x12, 0x34, 0, 0]),
            (attribute::PADDING, &[0; 64]),
            (0x0002, &[0; 8]),
            (0x8003, &[]),
        ],
    );
    let (_, unknown) = Request::parse(&Message::parse(&datagram).unwrap()).unwrap();
    assert_eq!(unknown.types(), [attribute::RESPONSE_PORT, attribute::PADDING, 0x0002]);
}

#[test]
fn responses_that_fail_a_transaction() {
    let parse = |class, attributes: &[(u16, &[u8])]| {
        let datagram = message(class, attributes);
        Response::parse(&Message::parse(&datagram).unwrap())
    };
    let mapped: (u16, &[u8]) = (attribute::MAPPED_ADDRESS, &[0, 1, 0x12, 0x34, 192, 0, 2, 1]);
    let success = parse(Class::Success, &[mapped]).unwrap().result.unwrap();
    assert_eq!(success.mapped, "192.0.2.1:4660".parse().unwrap(), "an old server's answer is understood");
    assert_eq!(parse(Class::Success, &[]), Err(StunError::Missing(attribute::XOR_MAPPED_ADDRESS)));
    assert_eq!(parse(Class::Success, &[mapped, (0x0030, &[])]), Err(StunError::UnknownAttribute(0x0030)));
    for bad in [&[0, 1, 1, 1, 1, 1, 1][..], &[0, 2, 1, 1, 1, 1, 1, 1], &[0, 3, 1, 1, 1, 1, 1, 1], &[]] {
        let ty = attribute::XOR_MAPPED_ADDRESS;
        assert_eq!(parse(Class::Success, &[mapped, (ty, bad)]), Err(StunError::BadAttribute(ty)));
    }
    assert_eq!(parse(Class::Error, &[]), Err(StunError::Missing(attribute::ERROR_CODE)));
    for bad in [&[0, 0, 4][..], &[0, 0, 2, 0], &[0, 0, 7, 0], &[0, 0, 4, 100]] {
        let error = StunError::BadAttribute(attribute::ERROR_CODE);
        assert_eq!(parse(Class::Error, &[(attribute::ERROR_CODE, bad)]), Err(error));
    }
    let refusal = parse(Class::Error, &[(attribute::ERROR_CODE, b"\0\0\x05\0Server Error")]).unwrap();
    assert_eq!(refusal.result, Err(Refusal { code: 500, unknown: Unknown::default() }));
    assert_eq!(parse(Class::Indication, &[mapped]), Err(StunError::UnexpectedType));
    assert_eq!(parse(Class::Request, &[mapped]), Err(StunError::UnexpectedType));
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)], any::<u16>())
        .prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn requests_come_back(id: [u8; 12], change_ip: bool, change_port: bool, fingerprint: bool) {
        let request = Request { transaction: TransactionId(id), change_ip, change_port, fingerprint };
        let (datagram, len) = request.encode();
        let read = Request::parse(&Message::parse(&datagram[..len]).unwrap());
        prop_assert_eq!(read, Ok((request, Unknown::default())));
    }

    #[test]
    fn responses_come_back(
        id: [u8; 12], mapped in address(), origin in proptest::option::of(address()),
        other in proptest::option::of(address()), fingerprint: bool,
    ) {
        let result = Ok(Success { mapped, origin, other });
        let response = Response { transaction: TransactionId(id), result, fingerprint };
        let (datagram, len) = response.encode();
        prop_assert!(len <= MAX_RESPONSE);
        prop_assert_eq!(Response::parse(&Message::parse(&datagram[..len]).unwrap()), Ok(response));
    }
}
