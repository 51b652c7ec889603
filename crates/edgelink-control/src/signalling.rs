//! P2P signalling: what one node of a network tells another through the controller (specification §6.3).

use crate::{ConnId, Control};
use edgelink_model::{NodeId, Now};
use edgelink_wire::Flags;
use edgelink_wire::control::{ControlMessage, proto};
use std::time::{Duration, Instant};

/// Messages that one node may have forwarded per second. A node looks for few peers at once; who sends more loses them.
const PER_SECOND: u32 = 32;
/// The most endpoints that are forwarded of one message.
const MAX_ENDPOINTS: usize = 32;

/// How many messages of a connection were forwarded in the present second.
#[derive(Debug, Default)]
pub(crate) struct Signalling {
    since: Option<Instant>,
    count: u32,
}

impl Control {
    /// Forwards P2P_INIT or P2P_ENDPOINT to the node that it names, which gets the sender's id in its place. A node of
    /// another network is nobody, and nobody is told so: the attempt times out.
    pub(crate) fn forward_signal(&mut self, from: ConnId, message: ControlMessage, now: Now) {
        if !self.may_signal(from, now) {
            return;
        }
        let Some(ready) = self.conns.get(from).and_then(|conn| conn.ready()) else { return };
        let (sender, network) = (ready.node, ready.network);
        let (to, message) = match message {
            ControlMessage::P2pInit(init) => {
                (init.node_id, ControlMessage::P2pInit(proto::P2pInit { node_id: sender.0, ..init }))
            }
            ControlMessage::P2pEndpoint(mut told) => {
                let to = std::mem::replace(&mut told.node_id, sender.0);
                told.endpoints.truncate(MAX_ENDPOINTS);
                (to, ControlMessage::P2pEndpoint(told))
            }
            _ => return,
        };
        let Some(to) = self.presence.by_node.get(&NodeId(to)).copied().filter(|to| *to != from) else { return };
        if self.conns.get(to).and_then(|conn| conn.network()) == Some(network) {
            self.send(to, message, Flags::NONE);
        }
    }

    /// Whether a connection has something left of what it may say about direct paths in a second.
    pub(crate) fn may_signal(&mut self, from: ConnId, now: Now) -> bool {
        self.conns.get_mut(from).is_some_and(|conn| conn.signalling.allows(now.mono))
    }
}

impl Signalling {
    fn allows(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= PER_SECOND
    }
}
