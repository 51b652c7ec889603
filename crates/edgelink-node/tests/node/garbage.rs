//! Whatever arrives, the node goes on: nothing panics, nothing grows, nobody else notices.

use crate::world::*;
use edgelink_node::Event;
use edgelink_wire::control::{ControlMessage, Reassembler, encode, proto};
use edgelink_wire::{Flags, FrameType, frames, put_frame};
use proptest::prelude::*;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn talking() -> (World, Peer) {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    (world, peer)
}

/// The node is a member, has its relay (again), and packets go both ways.
fn assert_works(world: &mut World, peer: &mut Peer) {
    // What is left of a split message ends with the next one.
    world.config(config(49, vec![peer.listed()]));
    let seen = world.advance(2 * SECOND);
    for (_, event) in &seen {
        if let Seen::Dial(link, target) = event {
            match target {
                edgelink_node::Target::Control => {
                    world.control = Some(*link);
                    world.connected(*link);
                    world.challenge();
                    world.admit();
                }
                edgelink_node::Target::Relay { id, .. } => {
                    world.relay = Some(*link);
                    world.connected(*link);
                    world.deliver(*link, relay_challenge(id.0));
                    world.deliver(*link, ControlMessage::AuthResponse(proto::AuthResponse::default()));
                }
                edgelink_node::Target::Neighbour { .. } => panic!("direct paths are disabled"),
            }
        }
    }
    world.events();
    world.config(config(50, vec![peer.listed()]));
    let status = world.status();
    assert!(status.controller.connected && status.relays[0].connected, "{:?}", status.health);
    assert_eq!(status.config_version, 50);
    world.tun.clear();
    let frame = peer.packet(b"still");
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.tun.len(), 1, "{:?}", world.status().drops);
    let relay = world.relay();
    let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"here"));
    assert!(peer.open(&sealed(&seen, relay)[0], world.now()).is_ok());
}

/// Frames that no honest peer sends.
fn nonsense(peer: &mut Peer) -> Vec<(&'static str, Vec<u8>)> {
    let good = peer.packet(b"cut short");
    let config = encode(&ControlMessage::Config(config(11, vec![peer.listed()])), Flags::ACK_REQUESTED).unwrap();
    let frame = |ty, flags, payload: &[u8]| {
        let mut out = Vec::new();
        put_frame(&mut out, ty, flags, payload).unwrap();
        out
    };
    let mut bomb = zstd_zeros();
    bomb = frame(FrameType::Config, Flags::COMPRESSED, &bomb);
    let mut newer = good.clone();
    newer[0] = 2;
    vec![
        ("empty", Vec::new()),
        ("one byte", vec![1]),
        ("half a header", vec![1, 0x10, 0, 0]),
        ("no DATA inside DATA", vec![1, 0x10, 0, 0, 0]),
        ("cut DATA", good[..good.len() - 1].to_vec()),
        ("trailing byte", [&good[..], &[0]].concat()),
        ("another version", newer),
        ("unknown type", frame_of(0x7f, &[1, 2, 3])),
        ("cut CONFIG", config[..config.len() - 1].to_vec()),
        ("oversized DATA", frame_of(0x10, &vec![0xff; 65_535])),
        ("a CONFIG of garbage", frame(FrameType::Config, Flags::NONE, &[0xff; 100])),
        ("garbage that claims to be compressed", frame(FrameType::ConfigUpdate, Flags::COMPRESSED, &[7; 100])),
        ("a bomb", bomb),
        ("short KEY_ANNOUNCE", frame(FrameType::KeyAnnounce, Flags::NONE, &[0; 191])),
        ("KEY_ANNOUNCE of zeros", frame(FrameType::KeyAnnounce, Flags::NONE, &[0; 192])),
        ("short PING", frame(FrameType::Ping, Flags::NONE, &[0; 11])),
        ("unasked PONG", frame(FrameType::Pong, Flags::NONE, &[0xff; 12])),
        ("unasked AUTH_RESPONSE", frame(FrameType::AuthResponse, Flags::NONE, &[])),
        ("a server's frame", frame(FrameType::ServerRegister, Flags::NONE, &[])),
        ("the beginning of an endless message", frame(FrameType::Config, Flags::MORE, &[1; 60_000])),
    ]
}

/// 16 MiB of zeros, compressed by hand: RFC 8878 frames of RLE blocks.
fn zstd_zeros() -> Vec<u8> {
    // Magic, single segment with a four-byte content size, then RLE blocks of 128 KiB each.
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    out.extend((16u32 << 20).to_le_bytes());
    for block in 0..128u32 {
        let header = (128u32 << 10) << 3 | 1 << 1 | u32::from(block == 127);
        out.extend(&header.to_le_bytes()[..3]);
        out.push(0);
    }
    out
}

fn frame_of(ty: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![1, ty, 0];
    out.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    out.extend(payload);
    out
}

#[test]
fn nonsense_in_the_middle_of_a_conversation_is_survived() {
    let count = nonsense(&mut talking().1).len();
    for n in 0..count {
        for over_relay in [true, false] {
            let (mut world, mut peer) = talking();
            let (what, bytes) = nonsense(&mut peer).remove(n);
            let link = if over_relay { world.relay() } else { world.control() };
            world.deliver_raw(link, &bytes);
            // Whole frames before the broken one are as good as ever.
            assert_eq!(world.tun.len(), usize::from(what == "trailing byte" && over_relay), "{what}");
            assert_eq!(world.status().peers.len(), 1, "{what}");
            assert_works(&mut world, &mut peer);
        }
    }
}

#[test]
fn nonsense_is_survived_in_every_phase_of_the_authentication() {
    let count = nonsense(&mut talking().1).len();
    for n in 0..count {
        for phase in 0..3 {
            let mut peer = Peer::new();
            let mut world = World::new(Setup::default());
            let link = world.dialled_control();
            if phase > 0 {
                world.connected(link);
            }
            if phase > 1 {
                world.challenge();
            }
            let (_, bytes) = {
                let (_, mut talker) = talking();
                nonsense(&mut talker).remove(n)
            };
            world.deliver_raw(link, &bytes);
            world.closed(link, "over");
            world.events();
            world.redial_control();
            world.join(config(10, vec![peer.listed()]));
            world.connect_relay(1);
            peer.meet(&mut world);
            assert_works(&mut world, &mut peer);
        }
    }
}

#[test]
fn a_message_is_taken_up_to_the_frame_that_is_broken() {
    let (mut world, mut peer) = talking();
    let mut message = [peer.packet(b"one"), peer.packet(b"two")].concat();
    message.extend([1, 0x10, 0]);
    world.deliver_raw(world.relay(), &message);
    assert_eq!((world.tun.len(), world.drops("malformed")), (2, 1));
    assert_works(&mut world, &mut peer);
}

#[test]
fn nonsense_is_answered_and_the_connection_closed() {
    for (bytes, code) in [(vec![1, 0x10, 0], 2002), (vec![2, 0x10, 0, 0, 0], 2001), (Vec::new(), 2002)] {
        for over_relay in [true, false] {
            let (mut world, _) = talking();
            let link = if over_relay { world.relay() } else { world.control() };
            world.deliver_raw(link, &bytes);
            let Some(Event::Close { link: closed, last: Some(last) }) = world.node.poll_event() else {
                panic!("not closed for {bytes:?}")
            };
            assert_eq!(closed, link);
            let frame = frames(&last).next().unwrap().unwrap();
            let Some(ControlMessage::Error(error)) = Reassembler::new().push(&frame).unwrap().map(|r| r.message) else {
                panic!("no ERROR")
            };
            assert_eq!(error.code, code);
        }
    }
}

#[test]
fn an_endless_split_message_ends_the_connection_within_its_bound() {
    let (mut world, mut peer) = talking();
    let piece = {
        let mut out = Vec::new();
        put_frame(&mut out, FrameType::Config, Flags::MORE, &[1; 60_000]).unwrap();
        out
    };
    let control = world.control();
    let mut sent = 0;
    while !world.events().contains(&Seen::Closed(control)) {
        world.deliver_raw(control, &piece);
        sent += piece.len();
        assert!(sent < 10 << 20, "no bound");
    }
    assert_works(&mut world, &mut peer);
}

/// A kilobyte that takes 1.6 GB when it is decoded; found by the fuzz target `control`.
#[test]
fn a_relays_list_of_empty_elements_is_refused_before_it_is_decoded() {
    for (elements, refused) in [(1_000, false), (4_000_000, true)] {
        let (mut world, mut peer) = talking();
        // Field 3 of CONFIG, peers, length 0.
        let body = [3 << 3 | 2, 0].repeat(elements);
        let mut message = Vec::new();
        put_frame(&mut message, FrameType::Config, Flags::COMPRESSED, &zstd::bulk::compress(&body, 3).unwrap())
            .unwrap();
        assert!(message.len() < 1_024);
        let relay = world.relay();
        world.deliver_raw(relay, &message);
        let closed = world.node.poll_event();
        assert_eq!(matches!(&closed, Some(Event::Close { last: Some(last), .. }) if says(last, 2003)), refused);
        assert_works(&mut world, &mut peer);
    }
}

fn says(last: &[u8], code: u32) -> bool {
    let frame = frames(last).next().unwrap().unwrap();
    let received = Reassembler::new().push(&frame).unwrap().unwrap();
    matches!(received.message, ControlMessage::Error(error) if error.code == code)
}

#[test]
fn configurations_without_sense_are_taken_for_what_they_are() {
    let (mut world, mut peer) = talking();
    let odd = proto::Peer {
        node_id: 0,
        name: "\u{1b}[2J\u{0}".to_owned(),
        machine_pub: vec![1; 32],
        statement: vec![2; 119],
        signature: vec![3; 65],
        addresses: vec![vec![], vec![1; 5], vec![255; 4]],
        ..Default::default()
    };
    let mut config = config(11, vec![peer.listed(), odd.clone(), odd]);
    config.network.as_mut().unwrap().subnets = vec![
        proto::Prefix { address: vec![10, 7, 0, 0], length: 33 },
        proto::Prefix { address: vec![1], length: u32::MAX },
    ];
    config.routes = vec![proto::Route { priority: u32::MAX, ..Default::default() }];
    config.relays.push(proto::Relay::default());
    config.settings = Some(proto::Settings { node_key_rotate_secs: u32::MAX, ..Default::default() });
    config.revocations = vec![proto::Revocation { node_id: 0, expires: u64::MAX, ..Default::default() }];
    let events = world.config(config);
    assert!(events.contains(&Seen::Interface(vec!["10.7.0.100/32".to_owned()])), "{events:?}");
    assert!(world.status().peers.iter().all(|p| !p.name.contains('\u{1b}')));
    // The odd period has begun with a new key.
    peer.meet(&mut world);
    assert_works(&mut world, &mut peer);
}

#[test]
fn a_controllers_clock_without_sense_breaks_nothing() {
    for server_time_ms in [0, u64::MAX, i64::MAX as u64] {
        let mut world = World::new(Setup::default());
        let link = world.dialled_control();
        world.connected(link);
        let response = proto::AuthResponse { challenge: vec![9; 32], server_time_ms, ..Default::default() };
        world.deliver(link, ControlMessage::AuthResponse(response));
        world.admit();
        world.events();
        world.config(config(10, vec![Peer::new().listed()]));
        world.connect_relay(1);
        world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
        assert_eq!(world.status().config_version, 10);
    }
}

/// Bytes that look like frames more often than chance would have it.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let ty = prop_oneof![any::<u8>(), prop::sample::select(FrameType::ALL.map(|t| t.as_u8()).to_vec()),];
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    let frame = (ty, any::<u8>(), payload, prop::bool::weighted(0.9)).prop_map(|(ty, flags, payload, honest)| {
        let mut out = vec![1, ty, flags];
        let len = if honest { payload.len() } else { payload.len() + 1 };
        out.extend(u16::try_from(len).unwrap().to_be_bytes());
        // Often the ids that the node knows.
        out.extend(&payload);
        if payload.len() > 20 && payload[0] < 200 {
            out[5..9].copy_from_slice(&PEER.0.to_be_bytes());
            out[9..13].copy_from_slice(&ME.0.to_be_bytes());
        }
        out
    });
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(frame, 1..4).prop_map(|frames| frames.concat()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_bytes_never_panic_nor_reach_the_tun(
        messages in prop::collection::vec((any::<bool>(), message()), 1..20),
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..4),
    ) {
        let (mut world, mut peer) = talking();
        for (over_relay, bytes) in messages {
            let link = if over_relay { world.relay() } else { world.control() };
            world.deliver_raw(link, &bytes);
            world.events();
        }
        for mut packet in packets {
            let now = world.now();
            world.node.handle_tun(&mut packet, now);
        }
        prop_assert!(world.tun.is_empty());
        world.advance(SECOND);
        // The relay may have been dropped for it; nothing else may be lost.
        let _ = peer.packet(b"x");
        prop_assert_eq!(world.status().node_id, Some(ME));
    }

    #[test]
    fn arbitrary_control_messages_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), ty in 1u8..6) {
        let (mut world, _) = talking();
        let ty = [FrameType::Config, FrameType::ConfigUpdate, FrameType::Error, FrameType::AuthResponse, FrameType::Ack]
            [usize::from(ty) - 1];
        for link in [world.relay(), world.control()] {
            world.deliver_raw(link, &frame_of(ty.as_u8(), &bytes));
            world.events();
        }
        world.advance(SECOND);
    }

    #[test]
    fn damaged_configurations_never_panic(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let (mut world, peer) = talking();
        let mut payload = prost::Message::encode_to_vec(&config(11, vec![peer.listed()]));
        let at = at.index(payload.len());
        payload[at] = value;
        world.deliver_raw(world.control(), &frame_of(FrameType::Config.as_u8(), &payload));
        world.events();
        world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
        world.advance(SECOND);
    }
}
