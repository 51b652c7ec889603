//! The packet path, both ways.

use crate::world::*;
use edgelink_model::{NodeId, capabilities};
use edgelink_node::PingError;
use edgelink_wire::probe::Probe;
use edgelink_wire::virtio::{self, VirtioHeader};
use edgelink_wire::{Flags, FrameType, data};
use std::time::Duration;

#[test]
fn a_packet_goes_out_as_one_frame_and_comes_in_as_it_was() {
    let (mut world, mut peer) = pair();
    let relay = world.relay();
    let out = udp(MY_IP, PEER_IP, b"there");
    let seen = world.tun(&PLAIN, &out);
    let [Seen::Sent(to, Sent::Sealed(frame))] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((*to, frame_type(frame), flags(frame)), (relay, FrameType::Data, Flags::NONE));
    assert_eq!(frame.len(), out.len() + data::OVERHEAD);
    assert_eq!(peer.open(frame, world.now()), Ok(out.clone()));

    let back = udp(PEER_IP, MY_IP, b"back");
    let frame = peer.seal(&back);
    world.deliver_raw(relay, &frame);
    assert_eq!(world.tun, [(PLAIN.to_vec(), back.clone())]);
    let status = world.peer_status(PEER);
    assert_eq!(status.tx_bytes, out.len() as u64);
    assert_eq!(status.rx_bytes, (back.len() + udp(PEER_IP, MY_IP, b"hello").len()) as u64);
    assert!(world.status().drops.is_empty(), "{:?}", world.status().drops);
}

#[test]
fn several_frames_share_a_message_both_ways() {
    let (mut world, mut peer) = pair();
    let relay = world.relay();
    let both = [peer.packet(b"one"), peer.packet(b"two")].concat();
    world.deliver_raw(relay, &both);
    assert_eq!(world.tun.len(), 2);
    let now = world.now();
    for payload in [&b"one"[..], b"two"] {
        let mut frame = [&PLAIN[..], &udp(MY_IP, PEER_IP, payload)].concat();
        world.node.handle_tun(&mut frame, now);
    }
    let mut writable = 0;
    while let Some(event) = world.node.poll_event() {
        assert!(matches!(event, edgelink_node::Event::Writable(link) if link == relay), "{event:?}");
        writable += 1;
    }
    assert_eq!(writable, 1, "told once");
    let message = world.node.poll_transmit(relay, now).unwrap();
    assert_eq!(message.len(), 2 * (31 + data::OVERHEAD), "one message for both");
    assert_eq!(world.node.poll_transmit(relay, now), None);
    let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"three"));
    assert_eq!(sealed(&seen, relay).len(), 1, "told again after it asked");
}

#[test]
fn what_the_tun_may_not_send_is_dropped_and_counted() {
    let (mut world, _peer) = pair();
    let cases: [(&str, Vec<u8>); 6] = [
        ("foreign_source", [&PLAIN[..], &udp([10, 7, 0, 99].into(), PEER_IP, b"x")].concat()),
        ("foreign_source", [&PLAIN[..], &udp(PEER_IP, MY_IP, b"x")].concat()),
        ("no_route", [&PLAIN[..], &udp(MY_IP, [10, 7, 0, 201].into(), b"x")].concat()),
        ("no_route", [&PLAIN[..], &udp(MY_IP, MY_IP, b"to myself")].concat()),
        ("not_ip", [&PLAIN[..], b"\x65garbage".as_slice()].concat()),
        ("not_ip", vec![0; 9]),
    ];
    for (reason, mut frame) in cases {
        let before = world.drops(reason);
        let now = world.now();
        world.node.handle_tun(&mut frame, now);
        assert_eq!(world.drops(reason), before + 1, "{reason}");
        assert_eq!(world.events(), [], "{reason}");
    }
}

#[test]
fn a_peer_without_a_key_has_no_session() {
    let mut keyless = Peer::new().listed();
    keyless.statement.clear();
    let mut world = World::new(Setup::default());
    world.join(config(10, vec![keyless]));
    world.connect_relay(1);
    let seen = world.tun(&PLAIN, &udp(MY_IP, PEER_IP, b"x"));
    assert_eq!(world.drops("no_session"), 1);
    assert_eq!(sealed(&seen, world.relay()), Vec::<Vec<u8>>::new());
    assert_eq!(world.peer_status(PEER).reason.as_deref(), Some("it has not announced a key yet"));
}

#[test]
fn a_checksum_left_to_the_card_is_completed() {
    let (mut world, mut peer) = pair();
    let (header, packet) = tcp(MY_IP, PEER_IP, b"some data", 0);
    assert!(!tcp_checksum_is_right(&packet));
    let seen = world.tun(&header, &packet);
    let frame = &sealed(&seen, world.relay())[0];
    assert_eq!(flags(frame), Flags::NONE);
    let opened = peer.open(frame, world.now()).unwrap();
    assert!(tcp_checksum_is_right(&opened));
    assert_eq!(opened.len(), packet.len());

    let outside =
        VirtioHeader { flags: virtio::F_NEEDS_CSUM, csum_start: 60_000, csum_offset: 16, ..Default::default() };
    assert_eq!(world.tun(&outside.to_bytes(), &packet), []);
    assert_eq!(world.drops("not_ip"), 1);
}

#[test]
fn a_super_packet_is_one_frame_to_a_peer_that_takes_it() {
    let (mut world, mut peer) = pair();
    for len in [3000, virtio::MAX_SUPER_PACKET - 40] {
        let (header, packet) = tcp(MY_IP, PEER_IP, &vec![7; len], 1348);
        let seen = world.tun(&header, &packet);
        let [Seen::Sent(_, Sent::Sealed(frame))] = &seen[..] else { panic!("{} events", seen.len()) };
        assert_eq!(flags(frame), Flags::SUPER_PACKET);
        assert_eq!(peer.open(frame, world.now()), Ok([&header[..], &packet].concat()));
    }
}

#[test]
fn a_super_packet_that_would_occupy_a_slow_connection_goes_in_parts() {
    let (mut world, mut peer) = pair();
    let relay = world.relay();
    let (header, packet) = tcp(MY_IP, PEER_IP, &[7; 60_000], 1_360);
    // What a link of 25 Mbit/s delivers in 2 ms; less than any packet; and enough for all.
    for (budget, parts) in [(6_250, 12), (0, 45), (usize::MAX, 1)] {
        world.node.set_link_budget(relay, budget);
        let frames = sealed(&world.tun(&header, &packet), relay);
        assert_eq!(frames.len(), parts, "{budget}");
        let mut payload = Vec::new();
        for frame in frames {
            let plain = flags(&frame) == Flags::NONE;
            let opened = peer.open(&frame, world.now()).unwrap();
            let packet = if plain {
                assert!(tcp_checksum_is_right(&opened));
                opened
            } else {
                let header = VirtioHeader::parse(&opened).unwrap();
                assert_eq!((header.gso_size, virtio::validate(&header, &opened[virtio::LEN..])), (1_360, Ok(())));
                opened[virtio::LEN..].to_vec()
            };
            assert!(packet.len() <= budget.max(1_400), "{} of {budget}", packet.len());
            payload.extend_from_slice(&packet[40..]);
        }
        assert!(payload == [7; 60_000], "{budget}");
    }
    // Messages are not longer either.
    world.node.set_link_budget(relay, 6_250);
    let (now, packet) = (world.now(), [&PLAIN[..], &udp(MY_IP, PEER_IP, &[0; 1_372])].concat());
    (0..100).for_each(|_| world.node.handle_tun(&mut packet.clone(), now));
    let mut messages = 0;
    while let Some(message) = world.node.poll_transmit(relay, now) {
        assert!(message.len() <= 6_250);
        messages += 1;
    }
    assert_eq!(messages, 25);
}

/// A packet as [`udp`] makes it, of another flow.
fn other_flow(payload: &[u8]) -> Vec<u8> {
    let mut packet = udp(MY_IP, PEER_IP, payload);
    packet[20..22].copy_from_slice(&[1, 187]);
    packet
}

#[test]
fn a_sparse_flow_goes_ahead_of_what_waits_for_a_busy_connection() {
    let (mut world, mut peer) = pair();
    let (relay, now) = (world.relay(), world.now());
    world.node.set_link_budget(relay, 1_600);
    for n in 0..500_u16 {
        let bulk = udp(MY_IP, PEER_IP, &[&n.to_be_bytes()[..], &[0; 1_370]].concat());
        world.node.handle_tun(&mut [&PLAIN[..], &bulk].concat(), now);
    }
    let mut buffer = [&PLAIN[..], &other_flow(b"ping")].concat();
    let len = buffer.len();
    world.node.handle_tun_buffer(&mut buffer, len, now);
    let mut order = Vec::new();
    let mut labels = Vec::new();
    while let Some(message) = world.node.poll_transmit(relay, now) {
        for frame in edgelink_wire::frames(&message) {
            let frame = frame.unwrap();
            let opened = peer.open(frame.raw, now).unwrap();
            let ping = opened.ends_with(b"ping");
            order.push(if ping { None } else { Some(u16::from_be_bytes(opened[28..30].try_into().unwrap())) });
            if ping {
                assert_eq!(frame.flags, Flags::NONE, "a sparse flow");
            }
            labels.push(frame.flags.label());
        }
    }
    let at = order.iter().position(Option::is_none).unwrap();
    assert!(at <= 8, "behind what was sealed when it came, and the first turn of the other flow: {at}");
    order.remove(at);
    // What did not wait at most 150 × 1,600 bytes is gone from the head of the bulk flow; the rest is in order.
    let kept = order.iter().map(|n| n.unwrap()).collect::<Vec<_>>();
    assert!(kept.is_sorted() && kept.len() > 150 && kept.last() == Some(&499), "{kept:?}");
    assert_eq!(world.drops("queue_full"), 500 - kept.len() as u64);
    assert_ne!(labels.last(), Some(&Flags::NONE), "the transfer was found out");
    assert!(world.status().drops.len() == 1, "{:?}", world.status().drops);
}

#[test]
fn a_standing_queue_is_thinned_and_a_peer_over_another_connection_is_not_held_up() {
    let (mut world, _peer) = pair();
    let relay = world.relay();
    world.node.set_link_budget(relay, 1_500);
    let packet = [&PLAIN[..], &udp(MY_IP, PEER_IP, &[0; 1_372])].concat();
    for _ in 0..2_000 {
        let now = world.now();
        (0..2).for_each(|_| world.node.handle_tun(&mut packet.clone(), now));
        assert!(world.node.poll_transmit(relay, now).is_some());
        world.elapsed += Duration::from_millis(1);
    }
    assert!(world.drops("codel") > 5, "{:?}", world.status().drops);
    // A second's pause, and nothing of before is sent.
    world.elapsed += Duration::from_millis(1_001);
    let now = world.now();
    let mut sent = 0;
    while world.node.poll_transmit(relay, now).is_some() {
        sent += 1;
    }
    assert!(sent <= 1, "{sent}");
    assert!(world.drops("too_old") > 0);
}

#[test]
fn a_super_packet_is_cut_for_a_peer_that_does_not_take_it() {
    let mut peer = Peer::build(PEER, PEER_IP, 2, 0);
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    let (header, packet) = tcp(MY_IP, PEER_IP, &[7; 3000], 1348);
    let seen = world.tun(&header, &packet);
    let frames = sealed(&seen, world.relay());
    assert_eq!(frames.len(), 3);
    let mut payload = 0;
    for frame in frames {
        assert_eq!(flags(&frame), Flags::NONE);
        let opened = peer.open(&frame, world.now()).unwrap();
        assert!(tcp_checksum_is_right(&opened));
        payload += opened.len() - 40;
    }
    assert_eq!(payload, 3000);
    assert_eq!(world.peer_status(PEER).tx_bytes, packet.len() as u64);
}

/// A pair whose peer announces these capabilities.
fn pair_of(capabilities: u32) -> (World, Peer) {
    pair_with(Peer::build(PEER, PEER_IP, 2, capabilities), Vec::new())
}

#[test]
fn many_datagrams_are_one_frame_to_a_peer_that_takes_them_so() {
    let (mut world, mut peer) = pair_of(capabilities::SUPER_PACKETS | capabilities::UDP_SUPER_PACKETS);
    let relay = world.relay();
    for (len, size) in [(3_000, 1_200), (128 * 100, 100), (virtio::MAX_SUPER_PACKET - 28, 1_372)] {
        let (header, packet) = datagrams(MY_IP, PEER_IP, &vec![7; len], size);
        let frames = sealed(&world.tun(&header, &packet), relay);
        assert_eq!(frames.len(), 1, "{len}");
        assert_eq!(flags(&frames[0]), Flags::SUPER_PACKET);
        assert_eq!(peer.open(&frames[0], world.now()), Ok([&header[..], &packet].concat()));
    }
    // On a slow connection in parts, of whole datagrams.
    world.node.set_link_budget(relay, 6_250);
    let (header, packet) = datagrams(MY_IP, PEER_IP, &[7; 30_000], 1_200);
    let frames = sealed(&world.tun(&header, &packet), relay);
    assert_eq!(frames.len(), 5, "25 datagrams, five a part");
    for frame in frames {
        let part = peer.open(&frame, world.now()).unwrap();
        let header = VirtioHeader::parse(&part).unwrap();
        assert_eq!((part.len(), header.gso_size), (10 + 28 + 5 * 1_200, 1_200));
        assert_eq!(virtio::validate(&header, &part[10..]), Ok(()));
    }
}

/// As builds before this capability are.
#[test]
fn datagrams_go_one_by_one_to_a_peer_that_takes_tcp_super_packets_only() {
    for capabilities in [capabilities::SUPER_PACKETS, 0] {
        let (mut world, mut peer) = pair_of(capabilities);
        let (header, packet) = datagrams(MY_IP, PEER_IP, &[7; 3_000], 1_200);
        let frames = sealed(&world.tun(&header, &packet), world.relay());
        let mut lens = Vec::new();
        for frame in frames {
            assert_eq!(flags(&frame), Flags::NONE);
            let opened = peer.open(&frame, world.now()).unwrap();
            assert!(udp_checksum_is_right(&opened));
            assert_eq!(usize::from(u16::from_be_bytes([opened[24], opened[25]])), opened.len() - 20);
            lens.push(opened.len() - 28);
        }
        assert_eq!(lens, [1_200, 1_200, 600], "{capabilities}");
    }
}

#[test]
fn a_super_packet_beyond_the_frames_limit_is_cut_too() {
    let (mut world, mut peer) = pair();
    let (header, packet) = tcp(MY_IP, PEER_IP, &vec![7; virtio::MAX_SUPER_PACKET - 39], 1348);
    let seen = world.tun(&header, &packet);
    let frames = sealed(&seen, world.relay());
    assert_eq!(frames.len(), (virtio::MAX_SUPER_PACKET - 39).div_ceil(1348));
    assert!(frames.iter().all(|f| flags(f) == Flags::NONE));
    assert!(tcp_checksum_is_right(&peer.open(&frames[0], world.now()).unwrap()));
}

#[test]
fn a_packet_that_fits_no_frame_is_dropped_and_harms_nothing() {
    let (mut world, mut peer) = pair();
    let largest = data::MAX_PLAINTEXT - 28;
    assert_eq!(world.tun(&PLAIN, &udp(MY_IP, PEER_IP, &vec![0; largest + 1])), []);
    assert_eq!(world.drops("too_large"), 1);
    let packet = udp(MY_IP, PEER_IP, &vec![0; largest]);
    let seen = world.tun(&PLAIN, &packet);
    assert_eq!(peer.open(&sealed(&seen, world.relay())[0], world.now()), Ok(packet));
}

#[test]
fn the_key_decides_which_source_and_destination_a_packet_may_carry() {
    let other = Peer::build(NodeId(201), [10, 7, 0, 201].into(), 3, 1);
    let (mut world, mut peer) = pair();
    world.config(config(11, vec![peer.listed(), other.listed()]));
    let relay = world.relay();
    for (reason, src, dst) in [
        ("spoofed_source", other.ip, MY_IP),
        ("spoofed_source", MY_IP, MY_IP),
        ("spoofed_source", [192, 168, 1, 1].into(), MY_IP),
        ("foreign_destination", PEER_IP, other.ip),
        ("foreign_destination", PEER_IP, [10, 7, 0, 255].into()),
        ("foreign_destination", PEER_IP, [127, 0, 0, 1].into()),
    ] {
        let before = world.drops(reason);
        let frame = peer.seal(&udp(src, dst, b"x"));
        world.deliver_raw(relay, &frame);
        assert_eq!(world.drops(reason), before + 1, "{src} to {dst}");
    }
    let (header, packet) = tcp(other.ip, MY_IP, &[1; 3000], 1348);
    let frame = peer.seal_as(FrameType::Data, Flags::SUPER_PACKET, &[&header[..], &packet].concat());
    world.deliver_raw(relay, &frame);
    assert_eq!(world.drops("spoofed_source"), 4);
    assert_eq!(world.tun, []);
}

#[test]
fn a_frame_is_delivered_once_and_only_as_it_was_sealed() {
    let (mut world, mut peer) = pair();
    let relay = world.relay();
    let frame = peer.packet(b"once");
    // All but what says where the frame ends, which is the connection's business.
    for at in [1, 2].into_iter().chain(5..frame.len()) {
        let mut forged = frame.clone();
        forged[at] ^= 1;
        world.deliver_raw(relay, &forged);
        assert_eq!(world.tun, [], "byte {at}");
    }
    assert!(world.drops("bad_tag") > 40, "{:?}", world.status().drops);
    world.deliver_raw(relay, &frame);
    assert_eq!(world.tun.len(), 1, "forgeries moved no window");
    let replayed = world.drops("replayed");
    world.deliver_raw(relay, &frame);
    assert_eq!((world.tun.len(), world.drops("replayed")), (1, replayed + 1));
    // The flag that relays may clear is not under the seal.
    let mut local = peer.packet(b"local only");
    local[2] |= Flags::LOCAL_ONLY.0;
    world.deliver_raw(relay, &local);
    assert_eq!(world.tun.len(), 2);
}

#[test]
fn a_super_packet_whose_header_lies_never_reaches_the_kernel() {
    let (mut world, mut peer) = pair();
    let (header, packet) = tcp(PEER_IP, MY_IP, &[1; 3000], 1348);
    let good = VirtioHeader::parse(&header).unwrap();
    let lies = [
        VirtioHeader { gso_size: 0, ..good },
        VirtioHeader { gso_size: 1, ..good },
        VirtioHeader { csum_start: 5000, ..good },
        VirtioHeader { csum_offset: 5000, ..good },
        VirtioHeader { hdr_len: 60_000, ..good },
        VirtioHeader { gso_type: virtio::GSO_TCPV6, ..good },
        VirtioHeader { gso_type: 3, ..good },
        VirtioHeader { flags: 0xff, ..good },
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        let plaintext = [&lie.to_bytes()[..], &packet].concat();
        let frame = peer.seal_as(FrameType::Data, Flags::SUPER_PACKET, &plaintext);
        world.deliver_raw(world.relay(), &frame);
        assert_eq!(world.drops("bad_super_packet"), n as u64 + 1, "{lie:?}");
    }
    for plaintext in [&header[..9], &header[..], &[&header[..], &packet[..100]].concat()] {
        let frame = peer.seal_as(FrameType::Data, Flags::SUPER_PACKET, plaintext);
        world.deliver_raw(world.relay(), &frame);
    }
    assert_eq!(world.drops("bad_super_packet"), 11);
    // The same of UDP's, whose inner length may disagree as well.
    let (udp_header, udp_packet) = datagrams(PEER_IP, MY_IP, &[1; 3000], 1200);
    let good = VirtioHeader::parse(&udp_header).unwrap();
    let mut longer = udp_packet.clone();
    longer[25] += 1;
    let mut fragment = udp_packet.clone();
    fragment[6] = 0x20;
    let lies = [
        (VirtioHeader { gso_size: 0, ..good }, &udp_packet),
        (VirtioHeader { gso_size: 1, ..good }, &udp_packet),
        (VirtioHeader { csum_start: 24, ..good }, &udp_packet),
        (VirtioHeader { csum_offset: 16, ..good }, &udp_packet),
        (VirtioHeader { hdr_len: 60_000, ..good }, &udp_packet),
        (VirtioHeader { flags: 0, ..good }, &udp_packet),
        (VirtioHeader { gso_type: virtio::GSO_TCPV4, ..good }, &udp_packet),
        (VirtioHeader { gso_type: virtio::GSO_UDP_L4 | virtio::GSO_ECN, ..good }, &udp_packet),
        (good, &packet),
        (good, &longer),
        (good, &fragment),
    ];
    for (n, (lie, packet)) in lies.into_iter().enumerate() {
        let plaintext = [&lie.to_bytes()[..], packet].concat();
        let frame = peer.seal_as(FrameType::Data, Flags::SUPER_PACKET, &plaintext);
        world.deliver_raw(world.relay(), &frame);
        assert_eq!(world.drops("bad_super_packet"), n as u64 + 12, "{lie:?}");
    }
    assert_eq!(world.tun, []);
    let frame = peer.seal_as(FrameType::Data, Flags::SUPER_PACKET, &[&udp_header[..], &udp_packet].concat());
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(std::mem::take(&mut world.tun), [(udp_header.to_vec(), udp_packet)]);
    let frame = peer.seal_as(FrameType::Data, Flags::SUPER_PACKET, &[&header[..], &packet].concat());
    world.deliver_raw(world.relay(), &frame);
    assert_eq!(world.tun, [(header.to_vec(), packet)]);
}

#[test]
fn what_is_not_ip_or_not_for_us_is_dropped() {
    let (mut world, mut peer) = pair();
    for plaintext in [&b""[..], b"\x00", &[0x45; 19], &udp(PEER_IP, MY_IP, b"truncated")[..30]] {
        let frame = peer.seal(plaintext);
        world.deliver_raw(world.relay(), &frame);
    }
    assert_eq!((world.drops("not_ip"), world.tun.len()), (4, 0));
    let mut elsewhere = peer.packet(b"x");
    elsewhere[9..13].copy_from_slice(&7u32.to_be_bytes());
    world.deliver_raw(world.relay(), &elsewhere);
    assert_eq!(world.drops("not_for_us"), 1);
    // DATA belongs to relays.
    let frame = peer.packet(b"over the control channel");
    world.deliver_raw(world.control(), &frame);
    assert_eq!((world.drops("malformed"), world.tun.len()), (1, 0));
}

#[test]
fn the_queue_is_bounded_and_its_overflow_counted() {
    let (mut world, mut peer) = pair();
    let now = world.now();
    let packet = [&PLAIN[..], &udp(MY_IP, PEER_IP, &[0; 1372])].concat();
    let sent = 9000;
    for _ in 0..sent {
        world.node.handle_tun(&mut packet.clone(), now);
    }
    let mut queued = 0;
    let mut frames = Vec::new();
    while let Some(message) = world.node.poll_transmit(world.relay(), now) {
        assert!(message.len() <= 192 << 10);
        queued += message.len();
        frames.extend(edgelink_wire::frames(&message).map(|f| f.unwrap().raw.to_vec()));
    }
    assert!((7 << 20) < queued && queued <= (8 << 20) + (192 << 10), "{queued}");
    assert_eq!(world.drops("queue_full"), sent as u64 - frames.len() as u64);
    // What was dropped used no counter that the peer would wait for; what was kept is whole.
    assert!(frames.iter().all(|f| peer.open(f, now).is_ok()));
    assert_eq!(sealed(&world.tun(&PLAIN, &packet[10..]), world.relay()).len(), 1);
}

#[test]
fn an_endless_rain_of_pings_from_a_relay_that_never_reads_costs_bounded_memory() {
    let (mut world, _peer) = pair();
    let ping = edgelink_wire::ping::Ping { sent_us: 1, seq: 1 }.encode(FrameType::Ping);
    let rain = ping.repeat(10_000);
    for _ in 0..30 {
        world.deliver_raw(world.relay(), &rain);
    }
    let mut queued = 0;
    while let Some(message) = world.node.poll_transmit(world.relay(), world.now()) {
        queued += message.len();
    }
    assert!(queued <= 2 << 20, "{queued} bytes were queued");
    assert!(world.drops("queue_full") > 0);
}

#[test]
fn ping_tells_the_round_trip_and_finds_peers_by_name_address_and_id() {
    let (mut world, mut peer) = pair();
    for name in ["peer-200", "PEER-200", "10.7.0.200", "200"] {
        assert_eq!(world.node.find_peer(name), Ok(PEER), "{name}");
    }
    assert_eq!(world.node.find_peer("nobody"), Err(PingError::UnknownPeer("nobody".to_owned())));
    assert_eq!(world.node.find_peer("me"), Err(PingError::Myself("me".to_owned())));
    assert_eq!(world.node.find_peer("10.7.0.100"), Err(PingError::Myself("10.7.0.100".to_owned())));
    let mut twin = Peer::build(NodeId(201), [10, 7, 0, 201].into(), 3, 1).listed();
    twin.name = "peer-200".to_owned();
    world.config(config(11, vec![peer.listed(), twin]));
    assert_eq!(world.node.find_peer("peer-200"), Err(PingError::Ambiguous("peer-200".to_owned())));

    world.elapsed += Duration::from_millis(5);
    let now = world.now();
    let ping = world.node.ping(PEER, Duration::from_secs(1), now).unwrap();
    let relay = world.relay();
    let frame = sealed(&world.events(), relay).remove(0);
    assert_eq!(frame_type(&frame), FrameType::P2pPing);
    let probe = peer.open(&frame, world.now()).unwrap();
    assert_eq!(Probe::parse(&probe).unwrap().path, 1, "the relay that it takes");
    world.elapsed += Duration::from_millis(25);
    let echo = peer.seal_as(FrameType::P2pPong, Flags::NONE, &probe);
    world.deliver_raw(relay, &echo);
    assert_eq!(world.events(), [Seen::Pong(ping, PEER, Duration::from_millis(25))]);
    assert_eq!(world.peer_status(PEER).path.rtt_ms, Some(25.0));
    // The same answer again, sealed anew, answers nothing.
    let echo = peer.seal_as(FrameType::P2pPong, Flags::NONE, &probe);
    world.deliver_raw(relay, &echo);
    assert_eq!(world.events(), []);
}

#[test]
fn a_ping_that_is_not_answered_is_forgotten_and_nobody_else_may_answer_it() {
    let mut stranger = Peer::build(NodeId(201), [10, 7, 0, 201].into(), 3, capabilities::SUPER_PACKETS);
    let (mut world, mut peer) = pair();
    world.config(config(11, vec![peer.listed(), stranger.listed()]));
    stranger.meet(&mut world);
    let relay = world.relay();
    let now = world.now();
    world.node.ping(PEER, Duration::from_secs(1), now).unwrap();
    let frame = sealed(&world.events(), relay).remove(0);
    let probe = peer.open(&frame, now).unwrap();
    let forged = stranger.seal_as(FrameType::P2pPong, Flags::NONE, &probe);
    world.deliver_raw(relay, &forged);
    assert_eq!(world.events(), []);
    world.advance(Duration::from_secs(1));
    let late = peer.seal_as(FrameType::P2pPong, Flags::NONE, &probe);
    world.deliver_raw(relay, &late);
    assert_eq!(world.events(), [], "too late");
}

#[test]
fn a_peers_ping_is_echoed_whole() {
    let (mut world, mut peer) = pair();
    let mut probe = Probe { path: 9, sent_us: 1234 }.encode().to_vec();
    probe.resize(1400, 0);
    let frame = peer.seal_as(FrameType::P2pPing, Flags::NONE, &probe);
    world.deliver_raw(world.relay(), &frame);
    let seen = world.events();
    let echo = sealed(&seen, world.relay()).remove(0);
    assert_eq!(frame_type(&echo), FrameType::P2pPong);
    assert_eq!(peer.open(&echo, world.now()), Ok(probe));
    assert_eq!(world.tun, []);
}

/// 64 KiB of the smallest frames that there are, of every kind, from a relay or through it: each is counted or handled, none
/// is answered one by one, none reaches the kernel but what is an IP packet of the peer's.
#[test]
fn tiny_frames_by_the_thousand_are_counted_and_answered_by_next_to_nothing() {
    const MESSAGE: usize = 64 << 10;
    let (mut world, mut peer) = pair();
    let relay = world.relay();
    let whole = |frame: Vec<u8>| (MESSAGE / frame.len(), frame);
    // Of no known type, DATA, both probes, key announcements, pings, pongs.
    let empty = |ty: u8| whole(vec![1, ty, 0, 0, 0]);
    let sent = |world: &mut World| -> usize {
        while world.node.poll_event().is_some() {}
        std::iter::from_fn(|| world.node.poll_transmit(relay, world.now())).map(|message| message.len()).sum()
    };
    let deliver = |world: &mut World, message: &[u8]| {
        let (now, tun) = (world.now(), &mut world.tun);
        let mut push = |header: &[u8], packet: &[u8]| tun.push((header.to_vec(), packet.to_vec()));
        world.node.handle_message(relay, &mut message.to_vec(), now, &mut world.rng, &mut push);
    };

    for ty in [0xee, 0x10, 0x32, 0x33, 0x13, 0x20, 0x21] {
        let (count, frame) = empty(ty);
        let before: u64 = world.status().drops.values().sum();
        deliver(&mut world, &frame.repeat(count));
        let counted = world.status().drops.values().sum::<u64>() - before;
        assert_eq!((counted, sent(&mut world)), (count as u64, 0), "{ty:#x}");
    }

    // A stranger's, as short as sealed frames can be: it is greeted once.
    let mut stranger = peer.seal(b"");
    stranger[5..9].copy_from_slice(&7_777_u32.to_be_bytes());
    let (count, frame) = whole(stranger);
    deliver(&mut world, &frame.repeat(count));
    assert_eq!(world.drops("unknown_key"), count as u64);
    assert!(sent(&mut world) <= 512);

    // The peer's own: empty, and the shortest IP packets, a window of them.
    let message: Vec<u8> = (0..MESSAGE / 41).flat_map(|_| peer.seal(b"")).collect();
    deliver(&mut world, &message);
    assert_eq!(world.drops("not_ip"), (MESSAGE / 41) as u64);
    assert_eq!(world.tun, []);
    let shortest = &udp(PEER_IP, MY_IP, b"")[..];
    let count = MESSAGE / (41 + shortest.len());
    let message: Vec<u8> = (0..count).flat_map(|_| peer.seal(shortest)).collect();
    deliver(&mut world, &message);
    assert_eq!(world.tun, vec![(PLAIN.to_vec(), shortest.to_vec()); count]);
    deliver(&mut world, &message);
    assert_eq!(world.drops("replayed"), count as u64);
    assert!(sent(&mut world) <= 512, "nothing of it is answered");
    assert_eq!(world.tun.len(), count);
}
