//! The node core after a real handshake: whatever relay and controller say, it goes on, and nothing reaches the TUN that
//! no peer has sealed.

use crate::golden::vectors;
use crate::input::{Input, chunk};
use crate::world::{ME, PLAIN, Peer, Seen, Setup, World, admission, config, relay_challenge};
use edgelink_node::Target;
use edgelink_wire::control::{ControlMessage, encode, proto};
use edgelink_wire::{Flags, FrameType, put_frame};
use std::time::Duration;

const CONTROLLER: u8 = 0;
const RELAY: u8 = 1;
const PLAINTEXT: u8 = 2;
const TUN: u8 = 3;
const WAIT: u8 = 4;
const CONFIG: u8 = 5;
const CLOSED: u8 = 6;
const ADMIT: u8 = 7;

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut peer = Peer::new();
    let listed = config(11, vec![peer.listed()]);
    let mut seeds: Vec<Vec<u8>> = vectors()
        .into_values()
        .filter(|bytes| bytes.len() < 1_024)
        .map(|bytes| [&[CONTROLLER][..], &chunk(&bytes), &[RELAY], &chunk(&bytes)].concat())
        .collect();
    let body = prost::Message::encode_to_vec(&listed);
    seeds.push([&[CONFIG, FrameType::Config.as_u8()][..], &chunk(&body), &[WAIT, 10]].concat());
    let update = proto::ConfigUpdate { version: 12, from_version: 10, removed_peers: vec![200], ..Default::default() };
    let body = prost::Message::encode_to_vec(&update);
    seeds.push([&[CONFIG, FrameType::ConfigUpdate.as_u8()][..], &chunk(&body), &[WAIT, 10]].concat());
    let message = encode(&ControlMessage::Config(listed), Flags::ACK_REQUESTED).unwrap();
    seeds.push([&[CONTROLLER][..], &chunk(&message), &[RELAY], &chunk(&message)].concat());
    seeds.push([&[PLAINTEXT, 0, 0][..], &chunk(&crate::packets::udp(peer.ip, crate::world::MY_IP, b"hello"))].concat());
    let (header, packet) = crate::packets::tcp(peer.ip, crate::world::MY_IP, &[7; 300], 100);
    seeds.push([&[PLAINTEXT, 0, 8][..], &chunk(&[&header[..], &packet].concat()), &[TUN], &chunk(&packet)].concat());
    seeds.push(
        [&[RELAY][..], &chunk(&peer.announce()), &[CLOSED, 0, WAIT, 255, ADMIT, WAIT, 30, CLOSED, 1, ADMIT]].concat(),
    );
    peer.rotate(
        6,
        edgelink_model::Now { mono: World::new(Setup::default()).now().mono, unix_ms: crate::world::START_MS },
    );
    seeds.push([&[RELAY][..], &chunk(&peer.announce()), &[WAIT, 20]].concat());
    seeds
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut peer = Peer::new();
    let mut world = World::joined(&peer);
    peer.meet(&mut world);
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            CONTROLLER => {
                let link = world.control();
                world.deliver_raw(link, input.chunk());
            }
            RELAY => {
                let link = world.relay();
                world.deliver_raw(link, input.chunk());
            }
            // What a hostile peer seals.
            PLAINTEXT => {
                let ty = [FrameType::Data, FrameType::P2pPing, FrameType::P2pPong][usize::from(input.u8()) % 3];
                let frame = peer.seal_as(ty, Flags(input.u8()), input.chunk());
                let link = world.relay();
                world.deliver_raw(link, &frame);
                world.tun.clear();
            }
            TUN => {
                let packet = input.chunk();
                let now = world.now();
                world.node.handle_tun(&mut [&PLAIN[..], packet].concat(), now);
            }
            WAIT => {
                world.advance(Duration::from_secs(u64::from(input.u8())));
            }
            CONFIG => {
                let (ty, mut message) = (FrameType::from_u8(input.u8()).unwrap_or(FrameType::Config), Vec::new());
                put_frame(&mut message, ty, Flags::ACK_REQUESTED, input.chunk()).unwrap();
                let link = world.control();
                world.deliver_raw(link, &message);
            }
            CLOSED => {
                let link = if input.u8() == 0 { world.control() } else { world.relay() };
                world.closed(link, "over");
            }
            _ => {
                let (control, relay) = (world.control(), world.relay());
                world.challenge();
                world.deliver(control, admission("relay-token-2"));
                world.deliver(relay, relay_challenge(1));
            }
        }
        assert!(world.tun.is_empty(), "the TUN got what no peer has sealed");
        follow(&mut world);
        let _ = world.status();
    }
    world.advance(Duration::from_secs(1));
    assert_eq!(world.status().node_id, Some(ME));
}

/// Does what a shell does with events: dials succeed at once.
fn follow(world: &mut World) {
    for seen in world.events() {
        if let Seen::Dial(link, target) = seen {
            match target {
                Target::Control => world.control = Some(link),
                Target::Relay { .. } => world.relay = Some(link),
                Target::Neighbour { .. } => panic!("direct paths are disabled"),
            }
            world.connected(link);
        }
    }
}
