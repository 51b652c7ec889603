//! STUN: this codec against stun-types, an independent one; what is read encodes to something that reads the same; and
//! the server.

use crate::golden::vector;
use edgelink_relay::stun::{Addresses, MAX_GROWTH, Responder, Socket, StunConfig, Which};
use edgelink_wire::stun::binding::{Refusal, Request, Response, Success, Unknown};
use edgelink_wire::stun::classic::ClassicRequest;
use edgelink_wire::stun::{BINDING, Class, Message, StunError, TransactionId, attribute};
use rand_core::SeedableRng;
use std::net::SocketAddr;
use stun_types::attribute::{AttributeType, ErrorCode, XorMappedAddress};
use stun_types::message as theirs;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let transaction = TransactionId([7; 12]);
    let mut seeds = vec![vector("stun")];
    for (change_ip, change_port, fingerprint) in [(true, true, true), (false, true, false)] {
        let (mut bytes, len) = Request { transaction, change_ip, change_port, fingerprint }.encode();
        seeds.push(bytes[..len].to_vec());
        bytes[4] ^= 1;
        seeds.push(bytes[..len].to_vec());
    }
    for (mapped, other) in [("203.0.113.5:40001", "198.18.0.2:3479"), ("[2001:db8::5]:40001", "[2001:db8::2]:3479")] {
        let (mapped, other) = (mapped.parse().unwrap(), Some(other.parse().unwrap()));
        for result in [
            Ok(Success { mapped, origin: None, other: None }),
            Ok(Success { mapped, origin: other, other }),
            Err(Refusal { code: 420, unknown: Unknown::only(attribute::PADDING) }),
        ] {
            let (bytes, len) = Response { transaction, result, fingerprint: mapped.is_ipv4() }.encode();
            seeds.push(bytes[..len].to_vec());
        }
    }
    seeds
}

pub(crate) fn run(datagram: &[u8]) {
    codec(datagram);
    server(datagram);
}

/// What the server says to it: little, to a request only, and to be understood by the other implementation.
fn server(datagram: &[u8]) {
    let addresses = Addresses::new([198, 18, 0, 1].into(), Some([198, 18, 0, 2].into()));
    let config = StunConfig { buckets: 1, ..StunConfig::new(addresses) };
    let mut responder = Responder::new(config, &mut rand_chacha::ChaCha8Rng::seed_from_u64(1));
    let (client, now) = (SocketAddr::from(([203, 0, 113, 9], 40_001)), *super::session::ORIGIN);
    let local = Socket { ip: Which::First, port: Which::Second };
    let Some(answer) = responder.answer(local, client, datagram, now) else { return };
    assert!(responder.answer(local, client, answer.datagram(), now).is_none(), "an answer is answered");
    if let Some(asked) = ClassicRequest::parse(datagram) {
        assert_eq!(answer.datagram()[..4], [1, 1, 0, 36]);
        assert_eq!(answer.datagram()[4..20], asked.transaction);
        assert!(answer.datagram().len() <= datagram.len() + MAX_GROWTH);
        return;
    }
    assert!(Message::parse(datagram).is_ok_and(|asked| (asked.class, asked.method) == (Class::Request, BINDING)));
    assert!(answer.datagram().len() <= datagram.len() + MAX_GROWTH);
    assert_eq!(answer.datagram()[4..20], datagram[4..20], "cookie and transaction");
    let message = theirs::Message::from_bytes(answer.datagram()).expect("stun-types understands the answer");
    match message.class() {
        theirs::MessageClass::Success => {
            let mapped = message.attribute::<XorMappedAddress>().unwrap();
            assert_eq!(mapped.addr(message.transaction_id()), client);
        }
        theirs::MessageClass::Error => {
            let code = message.attribute::<ErrorCode>().unwrap().code();
            assert!(code == 400 || code == 420);
        }
        other => panic!("answered with {other:?}"),
    }
}

fn codec(datagram: &[u8]) {
    let (ours, other) = (Message::parse(datagram), theirs::Message::from_bytes(datagram));
    // They take what a stream would have: something behind the message, an attribute that does not end inside it.
    let (message, other) = match (ours, other) {
        (Ok(message), Ok(other)) => (message, other),
        (Ok(_), Err(error)) => panic!("taken, but for stun-types {error}"),
        (Err(error), Ok(other)) => {
            // They look no further than something odd behind MESSAGE-INTEGRITY, so that a wrong FINGERPRINT there passes.
            let integrity = [0x0008, 0x001c].into_iter().any(|ty| other.has_attribute(AttributeType::new(ty)));
            assert!(!well_formed(datagram) || integrity && error == StunError::BadFingerprint, "{error}");
            return;
        }
        (Err(_), Err(_)) => return,
    };
    assert!(well_formed(datagram));
    {
        let class = match other.class() {
            theirs::MessageClass::Request => Class::Request,
            theirs::MessageClass::Indication => Class::Indication,
            theirs::MessageClass::Success => Class::Success,
            theirs::MessageClass::Error => Class::Error,
        };
        assert_eq!((message.class, message.method), (class, other.method().value()));
        let id = message.transaction.0.iter().fold(0, |bits, byte| bits << 8 | u128::from(*byte));
        assert_eq!(id, u128::from(other.transaction_id()));
        if let Ok(Response { result: Ok(success), .. }) = Response::parse(&message)
            && let Ok(address) = other.attribute::<XorMappedAddress>()
        {
            assert_eq!(address.addr(other.transaction_id()), success.mapped);
        }
    }
    let mut seen = 0;
    for (_, value) in message.attributes() {
        seen += 4 + value.len();
        assert!(seen <= datagram.len());
    }
    if let Ok((request, unknown)) = Request::parse(&message) {
        assert_eq!((message.class, message.method), (Class::Request, BINDING));
        let (bytes, len) = request.encode();
        let again = Message::parse(&bytes[..len]).unwrap();
        assert_eq!(Request::parse(&again), Ok((request, Unknown::default())));
        assert!(unknown.types().iter().all(|ty| message.attribute(*ty).is_some()));
    }
    if let Ok(response) = Response::parse(&message) {
        let (bytes, len) = response.encode();
        assert_eq!(Response::parse(&Message::parse(&bytes[..len]).unwrap()), Ok(response));
    }
}

/// Length and layout by the letter of RFC 8489 §5, §14 and §14.7, as simply as can be.
fn well_formed(datagram: &[u8]) -> bool {
    let word = |at: usize| usize::from(datagram[at]) * 256 + usize::from(datagram[at + 1]);
    if datagram.len() < 20 || datagram[0] > 0x3f || !datagram.len().is_multiple_of(4) || word(2) + 20 != datagram.len()
    {
        return false;
    }
    let mut at = 20;
    while at < datagram.len() {
        let (ty, len) = (word(at), word(at + 2));
        at += 4 + len.div_ceil(4) * 4;
        if at > datagram.len() || (ty == 0x8028 && (len != 4 || at != datagram.len())) {
            return false;
        }
    }
    true
}
