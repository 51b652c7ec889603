//! Several relays: which one a packet takes, what happens when one fails, and what the controller is told.

use crate::world::*;
use edgelink_api::local::PathKind;
use edgelink_model::{NodeId, ServerId, capabilities};
use edgelink_node::{LinkId, Target};
use edgelink_session::OpenError;
use edgelink_wire::control::{ControlMessage, proto};
use edgelink_wire::{Flags, FrameType};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// A node, its relays, and a peer that answers probes over every relay that works.
struct Net {
    world: World,
    peer: Peer,
    links: BTreeMap<u32, LinkId>,
    /// Relays through which nothing passes, though their connections stay.
    dead: BTreeSet<u32>,
    /// Payloads that reached the peer, each once: when, and over which relay.
    arrived: Vec<(Duration, u32)>,
    seen: Vec<Seen>,
}

impl Net {
    /// Connected to `relays`, nothing sent yet.
    fn new(relays: &[u32]) -> Self {
        let peer = Peer::new();
        let mut world = World::new(Setup::default());
        world.lively = true;
        let mut config = config(10, vec![peer.listed()]);
        config.relays = relays.iter().map(|id| relay(*id)).collect();
        world.join(config);
        let dialled = world.advance(Duration::ZERO);
        let mut links = BTreeMap::new();
        for (_, event) in dialled {
            if let Seen::Dial(link, Target::Relay { id, .. }) = event {
                links.insert(id.0, link);
            }
        }
        let mut this = Self { world, peer, links, dead: BTreeSet::new(), arrived: Vec::new(), seen: Vec::new() };
        for id in relays {
            this.authenticate(*id);
        }
        this.peer.meet(&mut this.world);
        let hello = this.peer.packet(b"hello");
        this.world.deliver_raw(this.links[&relays[0]], &hello);
        this.pump();
        this
    }

    /// The same with traffic long enough for everything to be measured.
    fn settled(relays: &[u32]) -> Self {
        let mut this = Self::new(relays);
        this.stream(6 * SECOND);
        this.arrived.clear();
        this.seen.clear();
        this
    }

    fn authenticate(&mut self, id: u32) {
        let link = self.links[&id];
        self.world.connected(link);
        self.world.deliver(link, relay_challenge(id));
        self.world.deliver(link, ControlMessage::AuthResponse(proto::AuthResponse::default()));
        self.pump();
    }

    /// What the node has sent reaches relays and peer; the peer's PONGs come back by the same way.
    fn pump(&mut self) {
        loop {
            self.world.lively = self.dead.is_empty();
            let seen = self.world.events();
            if seen.is_empty() {
                return;
            }
            for event in &seen {
                match event {
                    Seen::Sent(link, Sent::Sealed(frame)) => self.carry(*link, frame),
                    Seen::Sent(link, Sent::Announce(announce)) if announce.dst == PEER && self.passes(*link) => {
                        let announce = announce.clone();
                        self.peer.learn(&announce, self.world.now());
                    }
                    Seen::Sent(link, Sent::Ping(ping)) if !self.world.lively && self.passes(*link) => {
                        self.world.deliver_raw(*link, &ping.encode(FrameType::Pong));
                    }
                    Seen::Dial(link, Target::Relay { id, .. }) => {
                        self.links.insert(id.0, *link);
                    }
                    _ => {}
                }
            }
            self.seen.extend(seen);
        }
    }

    fn carry(&mut self, link: LinkId, frame: &[u8]) {
        let Some(relay) = self.relay_of(link).filter(|id| !self.dead.contains(id)) else { return };
        let Ok(plaintext) = self.peer.open(frame, self.world.now()) else { return };
        match frame_type(frame) {
            FrameType::Data => self.arrived.push((self.world.elapsed, relay)),
            FrameType::P2pPing => {
                let local = if flags(frame).contains(Flags::LOCAL_ONLY) { Flags::LOCAL_ONLY } else { Flags::NONE };
                let pong = self.peer.seal_as(FrameType::P2pPong, local, &plaintext);
                self.world.deliver_raw(link, &pong);
            }
            _ => {}
        }
    }

    fn passes(&self, link: LinkId) -> bool {
        self.relay_of(link).is_none_or(|id| !self.dead.contains(&id))
    }

    fn relay_of(&self, link: LinkId) -> Option<u32> {
        self.links.iter().find(|(_, of)| **of == link).map(|(id, _)| *id)
    }

    fn send(&mut self) {
        let mut packet = [&PLAIN[..], &udp(MY_IP, PEER_IP, b"data")].concat();
        let now = self.world.now();
        self.world.node.handle_tun(&mut packet, now);
        self.pump();
    }

    /// A packet every 10 ms.
    fn stream(&mut self, time: Duration) {
        let end = self.world.elapsed + time;
        while self.world.elapsed < end {
            self.send();
            self.sleep(10 * MS);
        }
    }

    fn sleep(&mut self, time: Duration) {
        let end = self.world.elapsed + time;
        self.pump();
        while let Some(at) = self.world.node.poll_timeout() {
            let wait = at.saturating_duration_since(self.world.now().mono);
            if self.world.elapsed + wait > end {
                break;
            }
            self.world.elapsed += wait;
            let now = self.world.now();
            self.world.node.handle_timeout(now, &mut self.world.rng);
            self.pump();
        }
        self.world.elapsed = end;
    }

    fn path(&self) -> edgelink_api::local::Path {
        self.world.peer_status(PEER).path
    }

    fn advise(&mut self, relay: u32, via: u32) {
        let paths = vec![proto::Path { node_id: PEER.0, relay_id: relay, via_relay_id: via, latency_us: 40_000 }];
        self.world.update(proto::ConfigUpdate { from_version: 10, version: 10, paths, ..Default::default() });
        self.pump();
    }

    fn sealed(&self, relay: u32, ty: FrameType) -> Vec<Vec<u8>> {
        let mut frames = sealed(&self.seen, self.links[&relay]);
        frames.retain(|frame| frame_type(frame) == ty);
        frames
    }

    fn reports(&mut self) -> Vec<proto::LatencyReport> {
        let sent = messages(&self.seen, self.world.control());
        sent.into_iter()
            .filter_map(|message| match message {
                ControlMessage::LatencyReport(report) => Some(report),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn the_first_packet_is_sealed_once_and_goes_both_ways() {
    let mut net = Net::new(&[1, 2]);
    net.dead = [1, 2].into();
    net.send();
    let (first, second) = (net.sealed(1, FrameType::Data), net.sealed(2, FrameType::Data));
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!(first, second, "the very same bytes");
    let now = net.world.now();
    assert!(net.peer.open(&first[0], now).is_ok());
    assert_eq!(net.peer.open(&second[0], now), Err(OpenError::Replayed));
    net.dead.clear();
    net.stream(SECOND);
    net.seen.clear();
    net.send();
    assert_eq!((net.sealed(1, FrameType::Data).len(), net.sealed(2, FrameType::Data).len()), (1, 0));
}

#[test]
fn a_relay_through_which_nothing_passes_is_left_and_replaced_within_5_s() {
    let mut net = Net::settled(&[1, 2]);
    assert_eq!(net.path().relay_id, Some(ServerId(1)));
    net.dead = [1].into();
    let cut = net.world.elapsed;
    net.stream(5 * SECOND);
    let first = net.arrived.iter().find(|(at, _)| *at > cut).unwrap();
    assert!(first.0 - cut <= 3 * SECOND, "doubled after two missing PONGs: {first:?}");
    let after: Vec<_> = net.arrived.iter().filter(|(at, _)| *at > cut + 3 * SECOND).collect();
    assert!(after.len() >= 199, "from then on nothing is lost: {}", after.len());
    assert_eq!((net.path().kind, net.path().relay_id), (PathKind::Relay, Some(ServerId(2))));
    // The connection itself is replaced too: it has not answered either.
    net.stream(3 * SECOND);
    assert!(net.seen.iter().any(|e| matches!(e, Seen::Dial(_, Target::Relay { id: ServerId(1), .. }))));
}

#[test]
fn the_only_relay_is_dialled_anew_when_nothing_passes() {
    let mut net = Net::settled(&[1]);
    net.dead = [1].into();
    let cut = net.world.elapsed;
    let dialled = |net: &Net| net.seen.iter().any(|e| matches!(e, Seen::Dial(..)));
    while !dialled(&net) {
        net.stream(10 * MS);
        assert!(net.world.elapsed < cut + 5 * SECOND, "still the old connection");
    }
    net.dead.clear();
    net.authenticate(1);
    net.stream(100 * MS);
    assert!(net.arrived.iter().any(|(at, _)| *at > cut));
    assert!(net.world.elapsed < cut + 5 * SECOND);
}

#[test]
fn a_relay_that_answers_is_not_blamed_for_a_peer_that_does_not() {
    let mut net = Net::settled(&[1]);
    // The peer is gone; the relay is there, and says nothing of it.
    let (now, machine) = (net.world.now(), edgelink_auth::MachineKey::from_seed([9; 32]));
    net.peer.machine = machine;
    net.peer.restart(9, now);
    net.peer.sessions.remove_peer(ME);
    net.stream(20 * SECOND);
    assert!(!net.seen.iter().any(|e| matches!(e, Seen::Dial(..) | Seen::Closed(_))));
    assert_eq!(net.world.peer_status(PEER).reason.as_deref(), Some("no path answers"));
}

#[test]
fn a_connection_reset_costs_nothing_that_was_not_under_way() {
    let mut net = Net::settled(&[1, 2]);
    let lost = net.links[&1];
    net.world.closed(lost, "reset");
    net.pump();
    let before = net.arrived.len();
    net.send();
    assert_eq!(net.arrived.len(), before + 1);
    assert_eq!(net.path().relay_id, Some(ServerId(2)));
}

#[test]
fn probes_are_answered_over_the_way_they_came_by() {
    let mut net = Net::new(&[1, 2]);
    for (relay, local) in [(1, Flags::NONE), (2, Flags::NONE), (2, Flags::LOCAL_ONLY), (1, Flags::LOCAL_ONLY)] {
        net.seen.clear();
        let ping = net.peer.seal_as(FrameType::P2pPing, local, &[0; 12]);
        net.world.deliver_raw(net.links[&relay], &ping);
        net.pump();
        let pongs = net.sealed(relay, FrameType::P2pPong);
        assert_eq!(pongs.len(), 1);
        assert_eq!(flags(&pongs[0]), local);
        assert!(net.sealed(3 - relay, FrameType::P2pPong).is_empty());
    }
}

#[test]
fn the_controllers_advice_is_followed_and_shown() {
    let mut net = Net::new(&[1, 2]);
    net.advise(2, 0);
    assert_eq!((net.path().kind, net.path().relay_id), (PathKind::Relay, Some(ServerId(2))), "before any packet");
    net.send();
    let frame = net.sealed(2, FrameType::Data).remove(0);
    assert_eq!(flags(&frame), Flags::LOCAL_ONLY, "one hop: the first relay must not send it elsewhere");
    net.stream(2 * SECOND);
    assert_eq!(net.path().relay_id, Some(ServerId(2)));
    net.advise(1, 2);
    net.stream(20 * SECOND);
    let path = net.path();
    assert_eq!((path.kind, path.relay_id, path.via_relay_id), (PathKind::Mesh, Some(ServerId(1)), Some(ServerId(2))));
    net.seen.clear();
    net.send();
    assert_eq!(flags(&net.sealed(1, FrameType::Data)[0]), Flags::NONE, "the relay's next-hop table decides");
}

#[test]
fn a_relays_3002_moves_the_traffic_at_once() {
    let mut net = Net::settled(&[1, 2]);
    let offline = proto::Error { code: 3002, about_node: PEER.0, ..Default::default() };
    net.world.deliver(net.links[&1], ControlMessage::Error(offline));
    net.pump();
    net.seen.clear();
    net.send();
    assert_eq!(net.sealed(2, FrameType::Data).len(), 1);
    // Another complaint is not about the way.
    let other = proto::Error { code: 4003, about_node: PEER.0, ..Default::default() };
    net.world.deliver(net.links[&2], ControlMessage::Error(other));
    net.send();
    assert_eq!(net.path().relay_id, Some(ServerId(2)));
}

#[test]
fn super_packets_are_cut_while_two_ways_are_used() {
    let mut net = Net::new(&[1, 2]);
    net.dead = [1, 2].into();
    let (header, packet) = tcp(MY_IP, PEER_IP, &[7; 3000], 1348);
    let mut frame = [&header[..], &packet].concat();
    let now = net.world.now();
    net.world.node.handle_tun(&mut frame.clone(), now);
    net.pump();
    for relay in [1, 2] {
        let frames = net.sealed(relay, FrameType::Data);
        assert_eq!(frames.len(), 3);
        assert!(frames.iter().all(|f| f.len() <= 1440 && !flags(f).contains(Flags::SUPER_PACKET)));
    }
    net.dead.clear();
    net.stream(SECOND);
    net.seen.clear();
    let now = net.world.now();
    net.world.node.handle_tun(&mut frame, now);
    net.pump();
    assert_eq!(net.sealed(1, FrameType::Data).len(), 1, "whole again");
}

#[test]
fn what_waits_for_a_connection_that_ends_takes_the_other() {
    let mut net = Net::settled(&[1, 2]);
    // The kernel takes nothing more for relay 1: nobody asks for its messages.
    let now = net.world.now();
    net.world.node.set_link_budget(net.links[&1], 1_500);
    for n in 0..20_u8 {
        let packet = [&PLAIN[..], &udp(MY_IP, PEER_IP, &[n; 1372])].concat();
        net.world.node.handle_tun(&mut packet.clone(), now);
    }
    net.world.node.link_closed(net.links[&1], "reset", now, &mut net.world.rng);
    net.pump();
    let frames = net.sealed(2, FrameType::Data);
    // Two were sealed for the first: TCP may have had them already.
    assert!(frames.len() >= 18, "{}", frames.len());
}

#[test]
fn the_replay_window_is_wide_while_two_ways_are_used() {
    let mut net = Net::new(&[1, 2]);
    let late = net.peer.packet(b"slow relay, long under way");
    // A probe of the faster one shows that there are two.
    let ping = net.peer.seal_as(FrameType::P2pPing, Flags::NONE, &[0; 12]);
    net.world.deliver_raw(net.links[&2], &ping);
    for _ in 0..20_000 {
        net.peer.packet(b"x");
    }
    let fast = net.peer.packet(b"fast relay");
    net.world.deliver_raw(net.links[&2], &fast);
    let before = net.world.tun.len();
    net.world.deliver_raw(net.links[&1], &late);
    assert_eq!(net.world.tun.len(), before + 1);
    // A minute with one way only, and it is the default again.
    net.sleep(61 * SECOND);
    let late = net.peer.packet(b"too late");
    for _ in 0..20_000 {
        net.peer.packet(b"x");
    }
    let next = net.peer.packet(b"next");
    net.world.deliver_raw(net.links[&1], &next);
    let before = net.world.tun.len();
    net.world.deliver_raw(net.links[&1], &late);
    assert_eq!(net.world.tun.len(), before);
}

#[test]
fn idle_peers_cost_neither_timers_nor_frames() {
    let mut net = Net::new(&[1, 2]);
    let others: Vec<_> = (1..200u8)
        .map(|n| Peer::build(NodeId(1000 + u32::from(n)), [10, 7, 0, n].into(), 2, capabilities::SUPER_PACKETS))
        .filter(|peer| peer.ip != MY_IP)
        .map(|peer| peer.listed())
        .collect();
    let mut all = config(11, [vec![net.peer.listed()], others].concat());
    all.relays = vec![relay(1), relay(2)];
    net.world.config(all);
    net.seen.clear();
    net.sleep(600 * SECOND);
    for relay in [1, 2] {
        assert!(sealed(&net.seen, net.links[&relay]).is_empty());
    }
}

#[test]
fn the_controller_is_told_latencies_relays_and_peers() {
    let mut net = Net::new(&[1, 2]);
    net.sleep(2 * SECOND);
    let reports = net.reports();
    assert!(reports.len() <= 3, "changes are gathered: {reports:?}");
    let last = reports.last().unwrap();
    assert_eq!(last.connected_relays, [1, 2]);
    assert_eq!(last.latencies.iter().map(|l| l.server_id).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(last.active_peers, [PEER.0], "it has sent a packet");
    // Nothing changes: every 30 s, and who is silent for a minute is left out.
    net.seen.clear();
    let begin = net.world.elapsed;
    net.sleep(95 * SECOND);
    let reports = net.reports();
    assert_eq!(reports.len(), 3, "{:?} {reports:?}", net.world.elapsed - begin);
    assert!(reports[2].active_peers.is_empty());
    // A change is told within a second or so.
    net.seen.clear();
    net.send();
    net.sleep(1100 * MS);
    assert_eq!(net.reports().len(), 1);
    assert_eq!(net.reports()[0].active_peers, [PEER.0]);
    net.seen.clear();
    let lost = net.links[&2];
    net.world.closed(lost, "reset");
    net.sleep(1100 * MS);
    let report = net.reports().remove(0);
    assert_eq!((report.connected_relays, report.latencies.len()), (vec![1], 1));
}

#[test]
fn the_interval_of_reports_is_the_controllers_to_say() {
    let mut net = Net::new(&[1]);
    net.sleep(2 * SECOND);
    let settings = Some(proto::Settings { latency_report_secs: 5, ..Default::default() });
    net.world.update(proto::ConfigUpdate { from_version: 10, version: 11, settings, ..Default::default() });
    net.sleep(40 * SECOND);
    net.seen.clear();
    net.sleep(50 * SECOND);
    assert!((9..=10).contains(&net.reports().len()), "{}", net.reports().len());
}

#[test]
fn a_relay_that_is_about_to_end_is_left_before_it_does() {
    let mut net = Net::settled(&[1, 2]);
    let current = net.world.peer_status(PEER).path.relay_id.unwrap().0;
    let other = 3 - current;
    let link = net.links[&current];
    net.world.deliver(link, error(4002, "this relay is about to end; take another one"));
    net.stream(SECOND);
    assert!(!net.arrived.is_empty() && net.arrived.iter().all(|(_, relay)| *relay == other), "{:?}", net.arrived);
    assert!(net.world.status().relays.iter().all(|relay| relay.connected), "the connection stays until it ends");
    // The last one is used however often it says so.
    net.arrived.clear();
    let link = net.links[&other];
    net.world.deliver(link, error(4002, "this relay is about to end; take another one"));
    net.stream(SECOND);
    assert!(!net.arrived.is_empty());
}

#[test]
fn every_path_is_told_with_its_reason() {
    let net = Net::new(&[1, 2]);
    let known = net.world.node.paths_to(PEER, net.world.now());
    assert!(known.iter().filter(|path| path.current).count() <= 1 && known.len() == 4, "{known:#?}");

    let mut net = Net::settled(&[1, 2]);
    let used = net.world.peer_status(PEER).path;
    let known = net.world.node.paths_to(PEER, net.world.now());
    assert!(known[0].current && known[0].path == used && known[1..].iter().all(|path| !path.current), "{known:#?}");
    assert!(known.iter().all(|path| path.relay_name.is_some() && !path.why.is_empty()));
    assert_eq!(known.iter().filter(|path| path.one_hop).count(), 2, "{known:#?}");

    // The relay in use goes silent: the reason says so while the other one carries.
    let dead = used.relay_id.unwrap();
    net.dead.insert(dead.0);
    net.stream(6 * SECOND);
    let known = net.world.node.paths_to(PEER, net.world.now());
    assert_ne!(known[0].path.relay_id, Some(dead));
    let left = known.iter().filter(|path| path.path.relay_id == Some(dead));
    assert!(left.clone().all(|path| path.why.contains("no answer") || path.why.contains("missing")), "{known:#?}");
    assert!(net.world.node.paths_to(NodeId(9_999), net.world.now()).is_empty());
}
