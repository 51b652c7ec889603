//! `edgelink ping`: sealed probes, end to end, over the path that data takes (DESIGN §7).

use crate::timers::Timer;
use crate::{Drop, Event, Node};
use edgelink_model::{NodeId, Now};
use edgelink_path::PathId;
use edgelink_wire::probe::{self, Probe};
use edgelink_wire::{Flags, FrameType};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Name of one ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PingId(u64);

/// Why a ping could not be sent, in words for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// Nobody of that name.
    #[error("no node called {0:?} is in this network; `edgelink peers` lists them")]
    UnknownPeer(String),
    /// Several peers carry the name.
    #[error("several nodes are called {0:?}; give the address or the node id")]
    Ambiguous(String),
    /// That is this node.
    #[error("{0:?} is this node itself")]
    Myself(String),
    /// The peer has no key yet.
    #[error("{0} has not announced a key yet: it has never been online")]
    NoSession(String),
    /// No relay.
    #[error("no relay is connected; `edgelink status` tells why")]
    NoPath,
    /// The queue is full.
    #[error("the queue towards the relay is full")]
    QueueFull,
}

/// Probes that wait for their PONG.
#[derive(Debug, Default)]
pub(crate) struct Pings {
    /// By the probe's time, which is unique.
    waiting: BTreeMap<u64, (PingId, NodeId)>,
}

impl Pings {
    pub(crate) fn forget(&mut self, ping: PingId) {
        self.waiting.retain(|_, (id, _)| *id != ping);
    }
}

impl Node {
    /// Finds a peer by name, overlay address or node id.
    ///
    /// # Errors
    /// When there is none, several, or it is this node.
    pub fn find_peer(&self, target: &str) -> Result<NodeId, PingError> {
        if let (Some(me), Ok(address)) = (&self.identity, target.parse::<IpAddr>())
            && me.addresses.contains(&address)
        {
            return Err(PingError::Myself(target.to_owned()));
        }
        let address = target.parse::<IpAddr>().ok().and_then(|ip| self.peers.by_address(ip));
        let id = target.parse::<NodeId>().ok().filter(|id| self.peers.get(*id).is_some());
        if let Some(peer) = address.or(id) {
            return Ok(peer);
        }
        let mut named = self.peers.iter().filter(|(_, p)| p.name.eq_ignore_ascii_case(target));
        match (named.next(), named.next()) {
            (Some((id, _)), None) => Ok(id),
            (Some(_), Some(_)) => Err(PingError::Ambiguous(target.to_owned())),
            (None, _) if self.identity.as_ref().is_some_and(|me| me.name.eq_ignore_ascii_case(target)) => {
                Err(PingError::Myself(target.to_owned()))
            }
            (None, _) => Err(PingError::UnknownPeer(target.to_owned())),
        }
    }

    /// Sends one probe; [`Event::Pong`] tells when it comes back. Forgotten after `timeout`.
    ///
    /// # Errors
    /// When it could not be sent.
    pub fn ping(&mut self, peer: NodeId, timeout: Duration, now: Now) -> Result<PingId, PingError> {
        let name = self.peers.get(peer).map_or_else(|| peer.to_string(), |p| p.name.clone());
        let words = |reason| match reason {
            Drop::NoPath => PingError::NoPath,
            Drop::QueueFull => PingError::QueueFull,
            _ => PingError::NoSession(name.clone()),
        };
        let plan = self.plan(peer, probe::LEN, now).map_err(words)?;
        let sent_us = self.probe_time(now);
        let path = self.peers.get(peer).and_then(|p| self.path_view(p)).map_or(PathId(0), |view| view.path);
        let message = Probe { path: path.0, sent_us }.encode();
        self.send_sealed(peer, FrameType::P2pPing, Flags::default(), &[&message], plan, now).map_err(words)?;
        // Over one way only it is as good a probe as any.
        if plan.second.is_none()
            && let Some(paths) = self.peers.get_mut(peer).and_then(|p| p.paths.as_mut())
        {
            paths.probe_sent(path, sent_us, now.mono);
            self.arm_path(peer);
        }
        let id = PingId(sent_us);
        self.pings.waiting.insert(sent_us, (id, peer));
        self.timers.set(Timer::Ping(id), now.mono + timeout);
        Ok(id)
    }

    pub(crate) fn handle_pong(&mut self, from: NodeId, probe: Probe, now: Now) {
        let Some((ping, peer)) = self.pings.waiting.get(&probe.sent_us).copied() else { return };
        if peer != from {
            return;
        }
        self.pings.waiting.remove(&probe.sent_us);
        self.timers.clear(Timer::Ping(ping));
        let rtt = Duration::from_micros(self.micros(now).saturating_sub(probe.sent_us));
        self.events.push_back(Event::Pong { ping, peer, path: self.path_to(peer), rtt });
    }
}
