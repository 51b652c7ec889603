//! The per-packet path, for `scripts/check-instructions`: it runs these under callgrind and counts what happens inside the
//! functions called `measured_…`. A count is the same on every machine with the same instruction set, however busy.

use crate::world::*;
use edgelink_model::{NodeId, capabilities};
use std::hint::black_box;
use std::net::Ipv4Addr;

/// Packets per count. The script divides by it.
const PACKETS: usize = 2_000;
/// Packets before the shell takes them.
const BATCH: usize = 64;

/// A member with so many peers, of which it talks to one, and ten routes for each.
fn crowd(peers: u16) -> (World, Peer) {
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    let others = (1..peers).map(|n| {
        let ip = Ipv4Addr::new(10, 8 + (n >> 8) as u8, n as u8, 1);
        Peer::build(NodeId(1_000 + u32::from(n)), ip, 2, capabilities::SUPER_PACKETS)
    });
    let others: Vec<Peer> = others.collect();
    let routes = others.iter().flat_map(|peer| {
        let [_, b, c, _] = peer.ip.octets();
        (0..10u8).map(move |n| route([100 + n, b, c, 0], peer.id))
    });
    let mut all = config(11, std::iter::once(&peer).chain(&others).map(Peer::listed).collect());
    all.routes = routes.collect();
    world.config(all);
    peer.meet(&mut world);
    let hello = peer.packet(b"hello");
    world.deliver_raw(world.relay(), &hello);
    let first = [&PLAIN[..], &udp(MY_IP, PEER_IP, b"first")].concat();
    world.node.handle_tun(&mut first.clone(), world.now());
    world.tun.clear();
    world.events();
    (world, peer)
}

#[inline(never)]
fn measured_sending(world: &mut World, frame: &mut [u8], packets: usize) {
    let (now, relay) = (world.now(), world.relay());
    for n in 0..packets {
        world.node.handle_tun(frame, now);
        if n % BATCH == 0 {
            drain(world, relay);
        }
    }
}

#[inline(never)]
fn measured_receiving(world: &mut World, frames: &mut [Vec<u8>]) -> usize {
    let (now, relay) = (world.now(), world.relay());
    let mut delivered = 0;
    for frame in frames {
        world
            .node
            .handle_message(relay, frame, now, &mut world.rng, &mut |_, packet| delivered += black_box(packet).len());
        while world.node.poll_event().is_some() {}
    }
    delivered
}

fn drain(world: &mut World, relay: edgelink_node::LinkId) {
    while world.node.poll_event().is_some() {}
    while let Some(message) = world.node.poll_transmit(relay, world.now()) {
        black_box(message.len());
    }
}

fn send(peers: u16) {
    let (mut world, _peer) = crowd(peers);
    let mut frame = [&PLAIN[..], &udp(MY_IP, PEER_IP, &[7; 1_372])].concat();
    let before = world.peer_status(PEER).tx_bytes;
    measured_sending(&mut world, &mut frame, PACKETS);
    assert_eq!(world.peer_status(PEER).tx_bytes - before, 1_400 * PACKETS as u64);
    assert!(world.status().drops.is_empty(), "{:?}", world.status().drops);
}

fn receive(peers: u16) {
    let (mut world, mut peer) = crowd(peers);
    let mut frames: Vec<Vec<u8>> = (0..PACKETS).map(|_| peer.packet(&[7; 1_372])).collect();
    assert_eq!(measured_receiving(&mut world, &mut frames), 1_400 * PACKETS);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_send_with_1_peer() {
    send(1);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_send_with_1000_peers() {
    send(1_000);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_receive_with_1_peer() {
    receive(1);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_receive_with_1000_peers() {
    receive(1_000);
}

#[inline(never)]
fn measured_waking(world: &mut World) {
    let now = world.now();
    world.node.handle_timeout(now, &mut world.rng);
    while world.node.poll_event().is_some() {}
    black_box(world.node.poll_timeout());
}

/// Looks at the clock as a shell does that is woken: whenever something is due, and as often in between.
fn wake(peers: u16) {
    let (mut world, _peer) = crowd(peers);
    // 2 s, not longer than links do without an answer; a report and a probe are among it.
    for _ in 0..PACKETS {
        world.elapsed += std::time::Duration::from_millis(1);
        measured_waking(&mut world);
    }
    let status = world.status();
    assert_eq!(status.peers.len(), usize::from(peers));
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_wake_up_with_1_peer() {
    wake(1);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_wake_up_with_1000_peers() {
    wake(1_000);
}

/// Per super-packet of 40 segments.
#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_send_super_packets() {
    let (mut world, _peer) = crowd(1);
    let (header, packet) = tcp(MY_IP, PEER_IP, &[7; 40 * 1_348], 1_348);
    let mut frame = [&header[..], &packet].concat();
    let (now, relay) = (world.now(), world.relay());
    for _ in 0..PACKETS / 100 {
        measured_sending(&mut world, &mut frame, 1);
        drain(&mut world, relay);
    }
    assert_eq!(now, world.now());
    assert!(world.status().drops.is_empty(), "{:?}", world.status().drops);
}

/// A host in the subnet that the `n`th packet goes to: a new flow for each packet, or one flow for all.
fn host(n: usize, subnets: usize, flows: usize) -> Ipv4Addr {
    let [a, b, c, _] = subnet((n % flows) * 7 % subnets);
    Ipv4Addr::new(a, b, c, 1 + (n % flows / subnets) as u8)
}

#[inline(never)]
fn measured_sending_each(world: &mut World, frames: &mut [Vec<u8>]) {
    let (now, relay) = (world.now(), world.relay());
    for (n, frame) in frames.iter_mut().enumerate() {
        world.node.handle_tun(frame, now);
        if n % BATCH == 0 {
            drain(world, relay);
        }
    }
}

fn send_into(subnets: usize, flows: usize) {
    let (mut world, _peer) = behind(subnets);
    let packet = |n| [&PLAIN[..], &udp(MY_IP, host(n, subnets, flows), &[7; 1_372])].concat();
    let mut frames: Vec<Vec<u8>> = (0..PACKETS).map(packet).collect();
    world.node.handle_tun(&mut frames[0].clone(), world.now());
    world.events();
    measured_sending_each(&mut world, &mut frames);
    assert!(world.status().drops.is_empty(), "{:?}", world.status().drops);
    assert_eq!(world.peer_status(PEER).tx_bytes, 1_400 * (PACKETS as u64 + 1));
}

fn receive_from(subnets: usize, flows: usize) {
    let (mut world, mut peer) = behind(subnets);
    let mut frames: Vec<Vec<u8>> =
        (0..PACKETS).map(|n| peer.seal(&udp(host(n, subnets, flows), MY_IP, &[7; 1_372]))).collect();
    assert_eq!(measured_receiving(&mut world, &mut frames), 1_400 * PACKETS);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_send_flow_into_10_subnets() {
    send_into(10, 1);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_send_flow_into_10000_subnets() {
    send_into(10_000, 1);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_send_new_flows_into_10_subnets() {
    send_into(10, PACKETS);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_send_new_flows_into_10000_subnets() {
    send_into(10_000, PACKETS);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_receive_flow_from_10_subnets() {
    receive_from(10, 1);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_receive_flow_from_10000_subnets() {
    receive_from(10_000, 1);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_receive_hosts_of_10_subnets() {
    receive_from(10, PACKETS);
}

#[test]
#[ignore = "counted by scripts/check-instructions"]
fn count_receive_hosts_of_10000_subnets() {
    receive_from(10_000, PACKETS);
}
