//! The relay core: hostile connections beside honest ones. Nothing panics, limits hold, and what is delivered was sent
//! by a node of the same network to that node.

use crate::input::{Input, chunk};
use crate::relay_world::{World, announce, data, frame, offer, sealed, signed};
use edgelink_relay::{ConnId, Limits, RelayEvent};
use edgelink_wire::{FrameType, frames};
use std::net::IpAddr;
use std::time::Duration;

/// Nodes with their networks.
const NODES: [(u32, u32); 4] = [(100, 7), (200, 7), (300, 7), (400, 8)];

const CONNECT: u8 = 0;
const STRANGER: u8 = 1;
const MEMBER: u8 = 2;
const PACKET: u8 = 3;
const TRANSMIT: u8 = 4;
const WAIT: u8 = 5;
const DISCONNECT: u8 = 6;
const TEXT: u8 = 7;
const FLOOD: u8 = 8;

fn limits() -> Limits {
    Limits {
        connections: 10,
        unauthenticated: 5,
        unauthenticated_per_address: 3,
        message: 8 << 10,
        data_queue: 16 << 10,
        control_queue: 4 << 10,
        queued_total: 40 << 10,
        announce_destinations: 8,
        offline_destinations: 8,
        ..Limits::DEFAULT
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let to = |who: u8, bytes: &[u8]| [&[MEMBER, who][..], &chunk(bytes)].concat();
    let token = World::with_limits(limits()).token(100, 7);
    let handshake = [
        &[CONNECT, 1, STRANGER, 0][..],
        &chunk(&offer(100, &token)),
        &[STRANGER, 0],
        &chunk(&signed(vec![1; 64])),
        &[TRANSMIT, 4, 16],
    ]
    .concat();
    let talk = [
        to(0, &[data(100, 200, 7), data(100, 300, 8), announce(100, 200, 9), frame(0x20, &[0; 12])].concat()),
        to(1, &sealed(FrameType::P2pPing, 200, 100, 3, 20)),
        to(2, &data(300, 400, 1)),
        to(2, &data(100, 200, 1)),
        to(3, &[frame(0x7f, b"new"), data(400, 9, 1)].concat()),
        [&[PACKET, 3, 0, 0][..], &chunk(b"into the other network"), &[TRANSMIT, 3, 255, TRANSMIT, 2, 255]].concat(),
        [&[PACKET, 0, 1, 5][..], &chunk(b"ciphertext"), &[TRANSMIT, 1, 4, TRANSMIT, 0, 1, TRANSMIT, 2, 255]].concat(),
        to(0, &offer(100, &token)),
        to(1, &[1, 0x10, 0]),
        vec![WAIT, 3, DISCONNECT, 1, TEXT, 2, CONNECT, 9, WAIT, 255],
    ]
    .concat();
    let flood =
        [&[FLOOD, 0, 1, 255, FLOOD, 2, 1, 255, FLOOD, 0, 2, 255, TRANSMIT, 1, 255, WAIT, 40, FLOOD, 1, 0, 9][..]]
            .concat();
    vec![handshake, talk, flood]
}

struct Lab {
    world: World,
    /// Of the nodes; `None` when it is gone.
    members: [Option<ConnId>; 4],
    strangers: Vec<ConnId>,
}

pub(crate) fn run(input: &[u8]) {
    let mut input = Input(input);
    let mut world = World::with_limits(limits());
    let members = NODES.map(|(node, network)| Some(world.join(node, network)));
    let mut lab = Lab { world, members, strangers: Vec::new() };
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        lab.step(&mut input);
        lab.settle();
    }
    // All can still leave, and then nothing is held.
    let all: Vec<_> = lab.members.iter().flatten().copied().chain(lab.strangers.iter().copied()).collect();
    all.into_iter().for_each(|conn| lab.world.relay.disconnect(conn, lab.world.now));
    let stats = lab.world.relay.stats();
    assert_eq!((stats.connections, stats.nodes, stats.queued_bytes), (0, 0, 0));
    let node = lab.world.join(100, 7);
    lab.world.relay.disconnect(node, lab.world.now);
}

impl Lab {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.u8() % 9 {
            CONNECT => {
                let address = IpAddr::from([203, 0, 113, input.u8() % 4]);
                if let Ok(conn) = self.world.relay.connect(Some(address), self.world.now, &mut self.world.rng) {
                    self.strangers.push(conn);
                }
            }
            STRANGER => {
                let (at, message) = (usize::from(input.u8()), input.chunk());
                if !self.strangers.is_empty() {
                    let conn = self.strangers[at % self.strangers.len()];
                    self.world.say(conn, message);
                }
            }
            MEMBER => {
                let (who, message) = (input.u8(), input.chunk());
                self.say(who, message);
            }
            PACKET => {
                let (from, to, ty, text) = (input.u8(), input.u8(), input.u8(), input.chunk());
                let ty = [FrameType::Data, FrameType::P2pPing, FrameType::P2pPong][usize::from(ty) % 3];
                let mut frame = sealed(ty, node(from), node(to), 1, text.len());
                frame[25..25 + text.len()].copy_from_slice(text);
                self.say(from, &frame);
            }
            TRANSMIT => {
                let (who, max) = (input.u8(), usize::from(input.u8()) * 256);
                self.transmit(who, max);
            }
            WAIT => self.world.pass(Duration::from_millis(u64::from(input.u8()) * 100)),
            DISCONNECT => {
                let who = usize::from(input.u8()) % 4;
                if let Some(conn) = self.members[who].take() {
                    self.world.relay.disconnect(conn, self.world.now);
                }
            }
            TEXT => {
                let who = usize::from(input.u8()) % 4;
                if let Some(conn) = self.members[who] {
                    self.world.relay.handle_text(conn, self.world.now);
                }
            }
            _ => {
                let (from, to, times) = (input.u8(), input.u8(), input.u8());
                let frame = sealed(FrameType::Data, node(from), node(to), 1, 1_000);
                for _ in 0..times {
                    self.say(from, &frame);
                }
            }
        }
    }

    fn say(&mut self, who: u8, message: &[u8]) {
        if let Some(conn) = self.members[usize::from(who) % 4] {
            self.world.say(conn, message);
        }
    }

    /// Takes what waits for a member or a stranger, and looks at it.
    fn transmit(&mut self, who: u8, max: usize) {
        let member = usize::from(who) % 8;
        let conn = match self.members.get(member) {
            Some(conn) => *conn,
            None => self.strangers.get(member - 4).copied(),
        };
        let Some(conn) = conn else { return };
        let mut out = Vec::new();
        let taken = self.world.relay.poll_transmit(conn, max, self.world.now, &mut out);
        assert_eq!(taken, out.iter().map(|run| run.len()).sum::<usize>());
        for frame in out.iter().flat_map(|run| frames(run)) {
            let frame = frame.expect("the relay sends whole frames");
            let ty = frame.frame_type().expect("of types that it knows");
            if ty.is_sealed() || ty == FrameType::KeyAnnounce {
                let (id, network) = NODES[member];
                let word = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().unwrap());
                assert_eq!(word(4), id, "for another node");
                assert!(NODES.contains(&(word(0), network)), "from another network");
            }
        }
    }

    /// What a shell does after each call: it takes events and frees closed connections. Limits hold meanwhile.
    fn settle(&mut self) {
        let limits = limits();
        let stats = self.world.relay.stats();
        assert!(stats.queued_bytes <= limits.queued_total, "{} bytes queued", stats.queued_bytes);
        assert!(stats.connections <= limits.connections && stats.nodes <= 4);
        let events = self.world.events();
        assert!(events.len() < 4_096, "{} events at once", events.len());
        for event in events {
            if let RelayEvent::Close { conn, .. } = event {
                self.world.relay.disconnect(conn, self.world.now);
                self.strangers.retain(|stranger| *stranger != conn);
                for member in &mut self.members {
                    member.take_if(|member| *member == conn);
                }
            }
        }
    }
}

fn node(who: u8) -> u32 {
    NODES.get(usize::from(who) % 5).map_or(999, |(node, _)| *node)
}
