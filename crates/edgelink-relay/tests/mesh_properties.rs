//! What holds in a mesh whatever its tables say, whoever sends what, and whichever links break (DESIGN §6).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests may, like tests")]

mod common;

use common::mesh::Mesh;
use common::*;
use edgelink_relay::Registration;
use edgelink_wire::control::{self, proto};
use edgelink_wire::ping::Ping;
use edgelink_wire::{Flags, FrameType};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const RELAYS: [u32; 4] = [1, 2, 3, 4];
/// Nodes 10–13 are in network 7, 20–21 in 8.
const NODES: [(u32, u32); 6] = [(10, 7), (11, 7), (12, 7), (13, 7), (20, 8), (21, 8)];

fn network(node: u32) -> Option<u32> {
    NODES.iter().find(|(id, _)| *id == node).map(|(_, network)| *network)
}

#[derive(Clone, Debug)]
enum Step {
    /// A node that is connected to a relay sends a frame.
    Say {
        node: usize,
        at: usize,
        dst: usize,
        local_only: bool,
    },
    /// A relay that has gone bad puts a frame on its link to another.
    Forge {
        from: usize,
        to: usize,
        src: usize,
        dst: usize,
    },
    /// The controller says, rightly or wrongly, where nodes are, and which next hops there are.
    Tables {
        places: Vec<Vec<u32>>,
        hops: Vec<(usize, usize, usize)>,
    },
    /// A link breaks; whether new ones come up.
    Break {
        link: usize,
        cut: bool,
    },
    Heal,
    Pass {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let node = 0..NODES.len();
    let relay = 0..RELAYS.len();
    let places = prop::collection::vec(prop::collection::vec(prop::sample::select(&RELAYS[..]), 0..4), NODES.len());
    let hops = prop::collection::vec((relay.clone(), node.clone(), relay.clone()), 0..8);
    prop_oneof![
        8 => (node.clone(), relay.clone(), node.clone(), any::<bool>())
            .prop_map(|(node, at, dst, local_only)| Step::Say { node, at, dst, local_only }),
        3 => (relay.clone(), relay.clone(), node.clone(), node)
            .prop_map(|(from, to, src, dst)| Step::Forge { from, to, src, dst }),
        2 => (places, hops).prop_map(|(places, hops)| Step::Tables { places, hops }),
        1 => (0usize..6, any::<bool>()).prop_map(|(link, cut)| Step::Break { link, cut }),
        1 => Just(Step::Heal),
        1 => (1u64..3_000).prop_map(|ms| Step::Pass { ms }),
    ]
}

struct Model {
    mesh: Mesh,
    /// Where nodes really are connected.
    at: BTreeMap<u32, Vec<u32>>,
    /// What the controller says.
    told: BTreeMap<u32, Vec<u32>>,
    hops: BTreeMap<u32, Vec<(u32, u32)>>,
    next_mark: u64,
    delivered: u32,
}

impl Model {
    fn new(at: &[Vec<u32>]) -> Self {
        let mut mesh = Mesh::linked(&RELAYS);
        let mut connected = BTreeMap::new();
        for ((node, network), relays) in NODES.iter().zip(at) {
            let mut relays = relays.clone();
            relays.sort_unstable();
            relays.dedup();
            for relay in &relays {
                mesh.join(*relay, *node, *network);
            }
            connected.insert(*node, relays);
        }
        let mut this =
            Self { mesh, told: connected.clone(), at: connected, hops: BTreeMap::new(), next_mark: 0, delivered: 0 };
        this.tell();
        this
    }

    fn tell(&mut self) {
        let entries: Vec<(u32, u32, Vec<u32>)> =
            self.told.iter().map(|(node, relays)| (*node, network(*node).unwrap(), relays.clone())).collect();
        let entries: Vec<(u32, u32, &[u32])> = entries.iter().map(|(n, net, relays)| (*n, *net, &relays[..])).collect();
        self.mesh.locate(&entries);
    }

    /// A frame that no other one equals.
    fn frame(&mut self, src: u32, dst: u32, local_only: bool) -> Vec<u8> {
        let mut frame = sealed(FrameType::Data, src, dst, 0xee, 40);
        frame[13..21].copy_from_slice(&self.next_mark.to_be_bytes());
        if local_only {
            frame[2] |= Flags::LOCAL_ONLY.0;
        }
        self.next_mark += 1;
        frame
    }

    /// Runs a step and checks all that came of it.
    fn run(&mut self, step: &Step) {
        // Nodes that say nothing for a minute would be closed.
        let ping = Ping { sent_us: 1, seq: 1 }.encode(FrameType::Ping);
        for (relay, node) in self.mesh.nodes.keys().copied().collect::<Vec<_>>() {
            self.mesh.say(relay, node, &ping);
        }
        self.mesh.received.clear();
        self.mesh.crossed.clear();
        match step {
            Step::Say { node, at, dst, local_only } => self.say(*node, *at, *dst, *local_only),
            Step::Forge { from, to, src, dst } => self.forge(RELAYS[*from], RELAYS[*to], NODES[*src].0, NODES[*dst].0),
            Step::Tables { places, hops } => {
                self.told = NODES.iter().zip(places).map(|((node, _), relays)| (*node, relays.clone())).collect();
                self.tell();
                self.hops.clear();
                for (relay, node, to) in hops {
                    self.hops.entry(RELAYS[*relay]).or_default().push((NODES[*node].0, RELAYS[*to]));
                }
                for relay in RELAYS {
                    let hops = self.hops.get(&relay).cloned().unwrap_or_default();
                    self.mesh.next_hops(relay, &RELAYS, &hops);
                }
                self.tell();
            }
            Step::Break { link, cut } => {
                let wire = self.mesh.wires.keys().nth(*link).copied();
                if let Some((relay, conn)) = wire {
                    let (other, _) = self.mesh.wires[&(relay, conn)];
                    if *cut {
                        self.mesh.cut.push((relay.min(other), relay.max(other)));
                    }
                    self.mesh.reset(relay, conn);
                }
            }
            Step::Heal => self.mesh.cut.clear(),
            Step::Pass { ms } => self.mesh.pass(Duration::from_millis(*ms)),
        }
        self.mesh.run();
    }

    fn say(&mut self, node: usize, at: usize, dst: usize, local_only: bool) {
        let (src, src_network) = NODES[node];
        let (dst, dst_network) = NODES[dst];
        let Some(relay) = self.at[&src].get(at % self.at[&src].len().max(1)).copied() else { return };
        let frame = self.frame(src, dst, local_only);
        self.mesh.say(relay, src, &frame);
        let (hops, arrived) = (self.hops_of(&frame), self.arrived(&frame));
        assert!(hops <= 1, "a frame crosses one link at most, whatever the tables say");
        assert!(arrived.len() <= 1, "and arrives once at most: {arrived:?}");
        for (at, to) in &arrived {
            assert_eq!(*to, dst);
            assert_eq!(src_network, dst_network, "never in another network");
            assert!(!local_only || *at == relay);
            self.delivered += 1;
        }
        assert!(!local_only || hops == 0);
        let here = self.at[&dst].contains(&relay) && src_network == dst_network;
        if here && (local_only || !self.hops.contains_key(&relay)) {
            assert_eq!(arrived, [(relay, dst)], "who is here is reached here");
        }
        if src_network != dst_network {
            assert_eq!(hops, 0, "nothing of another network is asked of the mesh");
        }
    }

    fn forge(&mut self, from: u32, to: u32, src: u32, dst: u32) {
        if from == to || self.mesh.link(to, from).is_none() {
            return;
        }
        let frame = self.frame(src, dst, false);
        self.mesh.say_over_link(to, from, &frame);
        assert_eq!(self.hops_of(&frame), 0, "mesh frames are never forwarded to the mesh");
        for (at, node) in self.arrived(&frame) {
            assert_eq!((at, node), (to, dst), "delivered here or nowhere");
            assert_eq!(network(src), network(dst), "never in another network");
            assert!(self.told[&src].contains(&from), "a relay speaks for the nodes that are located at it only");
        }
    }

    fn hops_of(&self, frame: &[u8]) -> usize {
        self.mesh.crossed.iter().filter(|(_, crossed)| crossed == frame).count()
    }

    fn arrived(&self, frame: &[u8]) -> Vec<(u32, u32)> {
        let got = |sent: &Sent| matches!(sent, Sent::Forwarded(bytes) if bytes == frame);
        self.mesh.received.iter().filter(|(.., sent)| got(sent)).map(|(relay, node, _)| (*relay, *node)).collect()
    }
}

/// Bytes, or right headers around arbitrary payloads, sometimes cut.
fn garbage() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let types = prop_oneof![any::<u8>(), prop::sample::select(FrameType::ALL.map(FrameType::as_u8).to_vec())];
    let framed = (prop::collection::vec((types, prop::collection::vec(any::<u8>(), 0..220)), 1..5), 0usize..3);
    let framed = framed.prop_map(|(list, cut)| {
        let mut message: Vec<u8> = list.iter().flat_map(|(ty, payload)| frame(*ty, payload)).collect();
        message.truncate(message.len() - cut);
        message
    });
    prop::collection::vec(prop_oneof![prop::collection::vec(any::<u8>(), 0..300), framed], 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever comes over a link, before or after authentication, dialled or accepted, and from the controller: no
    /// panic, nobody else notices, and the link is there again soon.
    #[test]
    fn arbitrary_bytes_from_relays_and_the_controller(messages in garbage(), kind in 0u8..4) {
        let mut mesh = Mesh::linked(&[1, 2, 3]);
        for (relay, node) in [(1, 10), (2, 11), (3, 12)] {
            mesh.join(relay, node, 7);
        }
        mesh.locate(&[(10, 7, &[1]), (11, 7, &[2]), (12, 7, &[3])]);
        let (now, token) = (mesh.now, String::new());
        let stranger = mesh.relays.get_mut(&2).unwrap().connect_mesh(None, now).unwrap();
        if kind == 3 {
            let registration = Registration { token, register: Default::default() };
            let relay = mesh.relays.get_mut(&2).unwrap();
            relay.start_uplink(registration, now);
            relay.controller_connected(now, &mut mesh.rng);
            let accepted = proto::AuthResponse { server_id: 2, ..Default::default() };
            relay.handle_controller(&control::encode(&accepted, Flags::NONE).unwrap(), now);
        }
        for message in &messages {
            match kind {
                0 => mesh.relays.get_mut(&2).unwrap().handle_message(stranger, message.clone().into(), now),
                // Relay 2 accepted relay 1's link and dialled relay 3.
                1 | 2 => {
                    if let Some(link) = mesh.link(2, if kind == 1 { 1 } else { 3 }) {
                        mesh.relays.get_mut(&2).unwrap().handle_message(link, message.clone().into(), now);
                    }
                }
                _ => mesh.relays.get_mut(&2).unwrap().handle_controller(message, now),
            }
            mesh.run();
        }
        if kind < 3 {
            mesh.pass(Duration::from_secs(5));
            prop_assert_eq!(mesh.links().len(), 6);
            mesh.received.clear();
            for (from, src, to, dst) in [(1, 10, 2, 11), (3, 12, 2, 11), (1, 10, 3, 12)] {
                mesh.say(from, src, &data(src, dst, 9));
                prop_assert_eq!(mesh.got(to, dst), [data(src, dst, 9)]);
            }
        }
    }

    #[test]
    fn no_loop_no_second_copy_no_other_network(
        at in prop::collection::vec(prop::collection::vec(prop::sample::select(&RELAYS[..]), 1..4), NODES.len()),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut model = Model::new(&at);
        for step in &steps {
            model.run(step);
        }
        // Whatever happened: with the truth told and all links free, everybody reaches everybody of the network.
        model.run(&Step::Heal);
        model.told = model.at.clone();
        model.hops.clear();
        for relay in RELAYS {
            model.mesh.next_hops(relay, &RELAYS, &[]);
        }
        model.tell();
        model.run(&Step::Pass { ms: 20_000 });
        prop_assert_eq!(model.mesh.links().len(), 12, "every pair is linked again");
        let before = model.delivered;
        let mut pairs = 0;
        for (src, (_, a)) in NODES.iter().enumerate() {
            for (dst, (_, b)) in NODES.iter().enumerate() {
                if src != dst && a == b {
                    model.run(&Step::Say { node: src, at: 0, dst, local_only: false });
                    pairs += 1;
                }
            }
        }
        prop_assert_eq!(model.delivered - before, pairs);
    }
}
