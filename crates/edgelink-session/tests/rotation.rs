//! Two nodes that rotate, restart, part and meet at random, over a network that loses, reorders and duplicates, against
//! a model that knows sequence numbers and sets and nothing of cryptography:
//!
//! - no nonce is used twice under a key, and each pair of statements has a prefix of its own;
//! - nothing is delivered twice, nor under a pair of statements of which one is gone;
//! - everything that the receiver has both statements for, inside the window, is delivered.
//!
//! The model predicts every single outcome, and which pair of statements every frame is sealed under.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

mod common;

use common::{LIFETIME, Side, epoch};
use edgelink_model::NodeId;
use edgelink_session::{DEFAULT_WINDOW, OpenError, SUPERSEDED_FOR};
use edgelink_wire::{Flags, FrameType, data};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
enum Step {
    Send { from: usize, count: u8 },
    Announce { from: usize },
    Rotate { side: usize },
    Restart { side: usize },
    Part { side: usize },
    Deliver { which: usize },
    Lose { which: usize },
    Duplicate { which: usize },
    DeliverAll,
    Wait { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let side = 0usize..2;
    prop_oneof![
        12 => (side.clone(), 1u8..5).prop_map(|(from, count)| Step::Send { from, count }),
        5 => side.clone().prop_map(|from| Step::Announce { from }),
        3 => side.clone().prop_map(|side| Step::Rotate { side }),
        1 => side.clone().prop_map(|side| Step::Restart { side }),
        1 => side.prop_map(|side| Step::Part { side }),
        16 => any::<usize>().prop_map(|which| Step::Deliver { which }),
        2 => any::<usize>().prop_map(|which| Step::Lose { which }),
        3 => any::<usize>().prop_map(|which| Step::Duplicate { which }),
        1 => Just(Step::DeliverAll),
        2 => prop_oneof![0u64..20, 250u64..350, 3_900u64..4_100].prop_map(|seconds| Step::Wait { seconds }),
    ]
}

/// What is under way.
#[derive(Clone, Debug)]
enum Message {
    Frame { to: usize, id: u64, bytes: Vec<u8>, sender_seq: u64, receiver_seq: u64, counter: u64 },
    Announce { to: usize, seq: u64 },
}

/// One side's knowledge, as the design defines it.
#[derive(Default)]
struct Model {
    /// Our own keys: sequence number and when it was made.
    newest: (u64, Option<Instant>),
    previous: Option<(u64, Instant)>,
    /// When the peer first confirmed our newest key, so that the previous one had five minutes left.
    confirmed_at: Option<Instant>,
    /// The peer's statements. The current one stays when the peer is removed, but is not `present`.
    current: Option<u64>,
    present: bool,
    /// Our newest key when the peer was last present.
    last_present: u64,
    former: Option<(u64, Instant)>,
    confirmed: Option<u64>,
    /// Counters received, per (peer's statement, ours).
    received: HashMap<(u64, u64), HashSet<u64>>,
}

#[derive(Debug, PartialEq)]
enum Expected {
    Deliver,
    Replayed,
    TooOld,
    Unknown,
}

impl Model {
    fn rotate(&mut self, seq: u64, now: Instant) {
        self.discard_previous();
        self.previous = self.newest.1.map(|made| (self.newest.0, made));
        self.newest = (seq, Some(now));
        // Without a peer there is nobody to wait for.
        self.confirmed_at = (!self.present).then_some(now);
        if self.present {
            self.last_present = seq;
        }
    }

    fn expire(&mut self, now: Instant) {
        let confirmed = self.confirmed_at.is_some_and(|at| now >= at + SUPERSEDED_FOR);
        if self.previous.is_some_and(|(_, made)| confirmed || now >= made + LIFETIME) {
            self.discard_previous();
        }
        self.former = self.former.filter(|(_, until)| now < *until);
        if self.must_use_newest(now) {
            self.confirmed = self.confirmed.filter(|seq| *seq == self.newest.0);
        }
    }

    /// A peer that has learnt our newest statement may have forgotten the previous one by now.
    fn must_use_newest(&self, now: Instant) -> bool {
        self.newest.1.is_some_and(|made| now >= made + SUPERSEDED_FOR)
    }

    fn discard_previous(&mut self) {
        let Some((gone, _)) = self.previous.take() else { return };
        self.confirmed = self.confirmed.filter(|seq| *seq != gone);
        if !self.present && self.last_present <= gone {
            // Nothing is remembered of a peer that was removed before our present keys were made.
            self.current = None;
        }
    }

    fn learn(&mut self, seq: u64, now: Instant) {
        match self.current {
            Some(current) if seq < current => return,
            Some(current) if seq == current && self.present => return,
            Some(current) if seq > current && self.present => self.former = Some((current, now + SUPERSEDED_FOR)),
            _ => self.former = None,
        }
        (self.current, self.present, self.confirmed) = (Some(seq), true, None);
        self.last_present = self.newest.0;
    }

    fn part(&mut self) {
        (self.present, self.former, self.confirmed) = (false, None, None);
    }

    /// (Our statement, the peer's) that we seal under.
    fn pair(&self) -> Option<(u64, u64)> {
        let current = self.current.filter(|_| self.present)?;
        Some((self.confirmed.unwrap_or(self.newest.0), current))
    }

    fn expect(&self, theirs: u64, ours: u64, counter: u64, now: Instant) -> Expected {
        let know_theirs = self.present
            && (self.current == Some(theirs) || self.former.is_some_and(|(seq, until)| seq == theirs && now < until));
        let previous = self.previous.is_some_and(|(seq, _)| seq == ours);
        if !know_theirs || (ours != self.newest.0 && !previous) {
            return Expected::Unknown;
        }
        let received = self.received.get(&(theirs, ours));
        let next = received.and_then(|set| set.iter().max()).map_or(0, |top| top + 1);
        match received.is_some_and(|set| set.contains(&counter)) {
            _ if counter + (DEFAULT_WINDOW as u64) < next => Expected::TooOld,
            true => Expected::Replayed,
            false => Expected::Deliver,
        }
    }

    fn received(&mut self, theirs: u64, ours: u64, counter: u64, now: Instant) {
        self.received.entry((theirs, ours)).or_default().insert(counter);
        let allowed = ours == self.newest.0 || !self.must_use_newest(now);
        if self.current == Some(theirs) && self.confirmed < Some(ours) && allowed {
            self.confirmed = Some(ours);
            if ours == self.newest.0 {
                self.confirmed_at.get_or_insert(now);
            }
        }
    }
}

struct World {
    now: Instant,
    sides: [Side; 2],
    models: [Model; 2],
    network: Vec<Message>,
    sent: u64,
    nonces: HashSet<(usize, [u8; 12])>,
    prefixes: HashMap<(usize, u64, u64), [u8; 4]>,
    counters: HashMap<(usize, u64, u64), u64>,
    delivered: HashSet<u64>,
}

impl World {
    fn new() -> Self {
        let now = epoch();
        let mut world = Self {
            now,
            sides: [Side::new(NodeId(1), now), Side::new(NodeId(2), now)],
            models: Default::default(),
            network: Vec::new(),
            sent: 0,
            nonces: HashSet::new(),
            prefixes: HashMap::new(),
            counters: HashMap::new(),
            delivered: HashSet::new(),
        };
        for side in 0..2 {
            world.models[side].rotate(1, now);
        }
        for to in 0..2 {
            world.learn(to, 1);
        }
        world
    }

    fn learn(&mut self, to: usize, seq: u64) {
        let (_, statement) = self.sides[1 - to].key(seq);
        let known = self.models[to].current;
        let outcome = self.sides[to].table.set_peer(&statement, self.now);
        assert_eq!(outcome.is_err(), known.is_some_and(|known| seq < known), "{outcome:?}");
        self.models[to].learn(seq, self.now);
    }

    fn send(&mut self, from: usize) {
        let Some((ours, theirs)) = self.models[from].pair() else { return };
        let to = self.sides[1 - from].id;
        let id = self.sent;
        self.sent += 1;
        let bytes = self.sides[from].seal(to, FrameType::Data, Flags::NONE, &id.to_be_bytes());
        let nonce = data::parse(&bytes).unwrap().nonce;
        assert!(self.nonces.insert((from, nonce)), "a nonce was used twice");
        let (prefix, counter) = nonce.split_at(4);
        let pair = (from, ours, theirs);
        let prefix: [u8; 4] = prefix.try_into().unwrap();
        assert_eq!(*self.prefixes.entry(pair).or_insert(prefix), prefix, "sealed under another pair than {pair:?}");
        let next = self.counters.entry(pair).or_default();
        let counter = u64::from_be_bytes(counter.try_into().unwrap());
        assert_eq!(counter, *next);
        *next += 1;
        self.network.push(Message::Frame { to: 1 - from, id, bytes, sender_seq: ours, receiver_seq: theirs, counter });
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Announce { to, seq } => self.learn(to, seq),
            Message::Frame { to, id, bytes, sender_seq, receiver_seq, counter } => {
                let expected = self.models[to].expect(sender_seq, receiver_seq, counter, self.now);
                let outcome = self.sides[to].open(&bytes, self.now);
                match (&outcome, &expected) {
                    (Ok(text), Expected::Deliver) => {
                        assert_eq!(*text, id.to_be_bytes());
                        assert!(self.delivered.insert(id), "{id} was delivered twice");
                        self.models[to].received(sender_seq, receiver_seq, counter, self.now);
                    }
                    (Err(OpenError::Replayed), Expected::Replayed)
                    | (Err(OpenError::TooOld), Expected::TooOld)
                    | (Err(OpenError::UnknownKey { .. } | OpenError::UnknownPeer { .. }), Expected::Unknown) => {}
                    _ => panic!("expected {expected:?}, got {outcome:?}"),
                }
            }
        }
        for side in 0..2 {
            let confirmed = self.models[side].confirmed == Some(self.models[side].newest.0);
            assert_eq!(self.sides[side].table.peer_confirmed(self.sides[1 - side].id), confirmed);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send { from, count } => (0..count).for_each(|_| self.send(from)),
            Step::Announce { from } => {
                self.network.push(Message::Announce { to: 1 - from, seq: self.sides[from].seq });
            }
            Step::Rotate { side } => {
                self.sides[side].rotate(self.now);
                self.models[side].rotate(self.sides[side].seq, self.now);
            }
            Step::Restart { side } => {
                self.sides[side].restart(self.now);
                self.models[side] = Model::default();
                self.models[side].rotate(self.sides[side].seq, self.now);
                // The controller tells the newest statement.
                self.learn(side, self.sides[1 - side].seq);
            }
            Step::Part { side } => {
                let peer = self.sides[1 - side].id;
                self.sides[side].table.remove_peer(peer);
                self.models[side].part();
            }
            Step::Deliver { which } if !self.network.is_empty() => {
                let message = self.network.swap_remove(which % self.network.len());
                self.deliver(message);
            }
            Step::Lose { which } if !self.network.is_empty() => {
                self.network.swap_remove(which % self.network.len());
            }
            Step::Duplicate { which } if !self.network.is_empty() => {
                self.network.push(self.network[which % self.network.len()].clone());
            }
            Step::DeliverAll => {
                for message in std::mem::take(&mut self.network) {
                    self.deliver(message);
                }
            }
            Step::Wait { seconds } => {
                self.now += Duration::from_secs(seconds);
                for (side, model) in self.sides.iter_mut().zip(&mut self.models) {
                    side.table.handle_timeout(self.now);
                    assert!(side.table.poll_timeout().is_none_or(|at| at > self.now), "a deadline was left behind");
                    model.expire(self.now);
                }
            }
            Step::Deliver { .. } | Step::Lose { .. } | Step::Duplicate { .. } => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn nothing_twice_and_everything_once(steps in prop::collection::vec(step(), 1..250)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        // However it went, announces that arrive heal it; five minutes later at the latest, whatever else was lost.
        for side in 0..2 {
            world.learn(side, world.sides[1 - side].seq);
        }
        world.network.clear();
        world.step(Step::Wait { seconds: SUPERSEDED_FOR.as_secs() });
        for _ in 0..2 {
            for from in 0..2 {
                world.send(from);
                let message = world.network.pop().unwrap();
                let before = world.delivered.len();
                world.deliver(message);
                assert_eq!(world.delivered.len(), before + 1);
            }
        }
        for side in 0..2 {
            assert!(world.sides[side].table.peer_confirmed(world.sides[1 - side].id));
        }
    }
}
