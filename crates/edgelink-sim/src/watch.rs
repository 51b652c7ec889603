//! What must never be seen on any wire, whatever happens: a plaintext, a nonce twice under a key, a frame that loops.

use crate::packet::MARKER;
use crate::streams::Party;
use edgelink_wire::data;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

/// Frames are remembered for at least so long: a line may hold them for minutes before it is mended.
const GENERATION: Duration = Duration::from_secs(600);
/// How long what a hostile relay did is still on its way after it became honest.
const AFTERMATH: Duration = Duration::from_secs(600);
/// Violations beyond these are not kept: the first ones tell the story.
const MAX_VIOLATIONS: usize = 20;

/// The observer of every message that a process sends.
#[derive(Default)]
pub struct Watch {
    violations: Vec<String>,
    /// Per sender and key prefix: a hash of what was sealed with each counter.
    nonces: BTreeMap<(u32, [u8; 4]), Vec<u64>>,
    /// How often each frame was sent by its node, handed to a node by a relay, and sent from relay to relay.
    passes: HashMap<u64, Passes>,
    former: HashMap<u64, Passes>,
    turned: Duration,
    /// Hostile relays at work, or just before: what they multiply and invent is not for us to answer for.
    lenient: bool,
    strict_from: Duration,
    hasher: DefaultHasher,
    /// Frames looked at.
    pub frames: u64,
    /// Messages looked at.
    pub messages: u64,
}

#[derive(Clone, Copy, Default)]
struct Passes {
    sent: u8,
    delivered: u8,
    meshed: u8,
}

impl Watch {
    /// What was seen that must not be, in the order of time.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// A hash of everything that was sent and delivered, when, and by whom.
    pub fn fingerprint(&self) -> u64 {
        self.hasher.clone().finish()
    }

    /// While relays are hostile, frames may come out of them more often than they went in.
    pub(crate) fn set_lenient(&mut self, lenient: bool, at: Duration) {
        if self.lenient && !lenient {
            self.strict_from = at + AFTERMATH;
        }
        self.lenient = lenient;
    }

    pub(crate) fn violation(&mut self, at: Duration, what: impl std::fmt::Display) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(format!("{at:?}: {what}"));
        }
    }

    /// A core hands a message to its connection.
    pub(crate) fn message(&mut self, at: Duration, from: Party, to: Party, message: &[u8]) {
        self.messages += 1;
        (at, from, to, message).hash(&mut self.hasher);
        self.look_for_plaintext(at, from, message);
        if at - self.turned > GENERATION {
            self.turned = at;
            self.former = std::mem::take(&mut self.passes);
        }
        for frame in edgelink_wire::frames(message).flatten() {
            let Ok(clear) = data::parse(frame.raw) else { continue };
            self.frames += 1;
            let body = frame.raw.get(data::PLAINTEXT_OFFSET..).unwrap_or_default();
            let hash = hash(&(clear.src, clear.nonce, body));
            if let Party::Node(_) = from {
                self.look_for_reuse(at, from, &clear, hash);
            }
            self.look_for_loops(at, from, to, hash);
        }
    }

    /// A UDP datagram leaves a node.
    pub(crate) fn datagram(&mut self, at: Duration, from: Party, datagram: &[u8]) {
        self.messages += 1;
        (at, from, datagram).hash(&mut self.hasher);
        self.look_for_plaintext(at, from, datagram);
        if let Ok(clear) = data::parse(datagram) {
            self.frames += 1;
            let body = datagram.get(data::PLAINTEXT_OFFSET..).unwrap_or_default();
            self.look_for_reuse(at, from, &clear, hash(&(clear.src, clear.nonce, body)));
        }
    }

    /// A packet comes out of a TUN.
    pub(crate) fn delivered(&mut self, at: Duration, node: usize, packet: &[u8]) {
        (at, node, packet).hash(&mut self.hasher);
    }

    fn look_for_plaintext(&mut self, at: Duration, from: Party, bytes: &[u8]) {
        if memchr::memmem::find(bytes, MARKER).is_some() {
            self.violation(at, format_args!("{from:?} sends a plaintext"));
        }
    }

    /// The same counter may go out again (a hedged packet takes two ways), but only with the same bytes.
    fn look_for_reuse(&mut self, at: Duration, from: Party, clear: &data::DataHeader, hash: u64) {
        let Some((prefix, counter)) = clear.nonce.split_first_chunk::<4>() else { return };
        let counter = counter.iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        let seen = self.nonces.entry((clear.src.0, *prefix)).or_default();
        let Ok(index) = usize::try_from(counter) else { return };
        if index > seen.len() + (1 << 20) {
            return self.violation(at, format_args!("{from:?} jumps to the counter {counter}"));
        }
        if index >= seen.len() {
            seen.resize(index + 1, 0);
        }
        let known = seen.get_mut(index).map(|known| std::mem::replace(known, hash)).unwrap_or_default();
        if known != 0 && known != hash {
            self.violation(at, format_args!("{from:?} uses the nonce {:02x?} twice", clear.nonce));
        }
    }

    fn look_for_loops(&mut self, at: Duration, from: Party, to: Party, hash: u64) {
        let former = self.former.get(&hash).copied().unwrap_or_default();
        let passes = self.passes.entry(hash).or_insert(former);
        let (count, what) = match (from, to) {
            (Party::Node(_), _) => (&mut passes.sent, "sent"),
            (_, Party::Node(_)) => (&mut passes.delivered, "delivered"),
            _ => (&mut passes.meshed, "meshed"),
        };
        *count = count.saturating_add(1);
        let (count, sent) = (*count, passes.sent);
        if count > sent && what != "sent" && !self.lenient && at >= self.strict_from {
            let times = format_args!("{count} times, and its source has sent it {sent} times");
            self.violation(at, format_args!("{from:?} has {what} a frame to {to:?} {times}"));
        }
    }
}

fn hash(value: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    // Zero means "not seen".
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgelink_model::NodeId;
    use edgelink_wire::{Flags, FrameType};

    const NODE: Party = Party::Node(1);
    const RELAY: Party = Party::Relay(0);
    const OTHER: Party = Party::Relay(1);
    const RECEIVER: Party = Party::Node(2);

    fn frame(counter: u8, body: u8) -> Vec<u8> {
        let mut frame = vec![body; data::OVERHEAD + 8];
        let mut nonce = [7; 12];
        nonce[4..].copy_from_slice(&u64::from(counter).to_be_bytes());
        let clear = data::DataHeader { src: NodeId(1), dst: NodeId(2), nonce };
        data::write_header(&mut frame, FrameType::Data, Flags::NONE, &clear).unwrap();
        frame
    }

    fn seen(steps: &[(Party, Party, Vec<u8>)]) -> Vec<String> {
        let mut watch = Watch::default();
        for (from, to, message) in steps {
            watch.message(Duration::from_secs(1), *from, *to, message);
        }
        watch.violations().to_vec()
    }

    #[test]
    fn an_ordinary_way_is_fine_and_so_is_a_hedged_packet() {
        let (a, b) = (frame(0, 1), frame(1, 2));
        assert_eq!(seen(&[(NODE, RELAY, a.clone()), (RELAY, RECEIVER, a.clone()), (NODE, RELAY, b)]), [""; 0]);
        let twice =
            [(NODE, RELAY, a.clone()), (NODE, OTHER, a.clone()), (RELAY, RECEIVER, a.clone()), (OTHER, RECEIVER, a)];
        assert_eq!(seen(&twice), [""; 0]);
    }

    #[test]
    fn a_nonce_used_twice_is_seen() {
        let found = seen(&[(NODE, RELAY, frame(3, 1)), (NODE, RELAY, frame(3, 2))]);
        assert!(found.len() == 1 && found[0].contains("twice"), "{found:?}");
    }

    #[test]
    fn a_frame_that_comes_out_more_often_than_it_went_in_is_seen() {
        let a = frame(0, 1);
        let found = seen(&[(NODE, RELAY, a.clone()), (RELAY, RECEIVER, a.clone()), (RELAY, RECEIVER, a.clone())]);
        assert!(found.len() == 1 && found[0].contains("delivered"), "{found:?}");
        let found = seen(&[(NODE, RELAY, a.clone()), (RELAY, OTHER, a.clone()), (OTHER, RELAY, a)]);
        assert!(found.len() == 1 && found[0].contains("meshed"), "{found:?}");
    }

    #[test]
    fn a_frame_that_its_source_has_not_sent_is_seen() {
        let found = seen(&[(RELAY, RECEIVER, frame(0, 1))]);
        assert!(found.len() == 1 && found[0].contains("sent it 0 times"), "{found:?}");
    }

    #[test]
    fn a_plaintext_is_seen() {
        let mut open = frame(0, 1);
        open.extend(crate::Probe { id: 1, from: 1, to: 2 }.encode(64));
        assert!(seen(&[(NODE, RELAY, open)])[0].contains("plaintext"));
    }
}
