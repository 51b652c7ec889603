//! Who must be told of a change: dirty sets per network, coalesced for 50 ms, encoded once (DESIGN §4).
//!
//! A network's full CONFIG is encoded once and kept, with the updates that were sent since: together they are what a new
//! node must know, so a crowd that joins does not have it encoded anew for each of them.

use crate::connections::Conn;
use crate::messages::{self, Dirty};
use crate::{ConnId, Control, Event};
use bytes::Bytes;
use edgelink_model::records::{ChangeId, RevocationRecord, RevocationTarget};
use edgelink_model::{NetworkId, NodeId, Now};
use edgelink_wire::Flags;
use edgelink_wire::control::{self, ControlMessage, proto};
use std::time::Duration;

/// How long changes are gathered before they are sent.
pub(crate) const COALESCE: Duration = Duration::from_millis(50);

/// While changes follow each other a network is told at most so often: each telling costs the controller some
/// microseconds per connection, and a crowd that joins a large network would keep it busy with nothing else.
const PACE_PER_CONNECTION: Duration = Duration::from_micros(250);
const PACE_AT_MOST: Duration = Duration::from_millis(250);

/// A CONFIG as it was encoded, and the updates that lead from it to `version`.
pub(crate) struct Cached {
    config: Bytes,
    updates: Vec<Bytes>,
    updates_len: usize,
    version: ChangeId,
}

impl Cached {
    /// Takes an update along; `false` when it is time to encode the whole again.
    fn extend(&mut self, from: ChangeId, version: ChangeId, update: &Bytes) -> bool {
        self.updates_len += update.len();
        if self.version != from || self.updates_len > self.config.len().max(4096) / 2 {
            return false;
        }
        self.version = version;
        self.updates.push(update.clone());
        true
    }
}

impl Control {
    /// Notes a change of `network`, to be sent within [`COALESCE`], later only if it was told of others just now.
    pub(crate) fn mark(&mut self, network: NetworkId, now: Now, change: impl FnOnce(&mut Dirty)) {
        let dirty = self.dirty.entry(network).or_default();
        change(dirty);
        let paced = self.paced.get(&network).copied();
        let due = *dirty.due.get_or_insert_with(|| paced.unwrap_or(now.mono).max(now.mono + COALESCE));
        self.flush_at = Some(self.flush_at.map_or(due, |at| at.min(due)));
    }

    /// Notes that a node came or went; the configuration version stays.
    pub(crate) fn mark_presence(&mut self, node: NodeId, now: Now) {
        let Some(network) = self.registry.nodes.get(&node).map(|n| n.network_id) else { return };
        self.mark(network, now, |d| {
            d.presence.insert(node);
        });
    }

    pub(crate) fn revoked(&mut self, record: RevocationRecord, now: Now) {
        if let RevocationTarget::Node { node_id, .. } = &record.target
            && let Some(network) = self.registry.nodes.get(node_id).map(|n| n.network_id)
        {
            let (node, record) = (*node_id, record.clone());
            self.mark(network, now, |d| {
                d.revocations.push(record);
                // Whoever is still a member after that is learnt anew: its peers wipe their sessions with it.
                d.peers.insert(node);
            });
        }
        self.blacklist(&record, now);
        self.revoked.push(record.target.clone());
        self.events.push_back(Event::Revoked(record));
    }

    /// Sends what was gathered and is due.
    pub(crate) fn flush(&mut self, now: Now) {
        let is_due = |dirty: &Dirty| dirty.due.is_none_or(|due| due <= now.mono);
        let due: Vec<NetworkId> = self.dirty.iter().filter(|(_, dirty)| is_due(dirty)).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|network| self.flush_network(network, now));
        self.flush_at = self.dirty.values().filter_map(|dirty| dirty.due).min();
    }

    /// Sends what was gathered: a delta to nodes that hold the version before it, a full CONFIG to those behind.
    fn flush_network(&mut self, network: NetworkId, now: Now) {
        let Some(dirty) = self.dirty.remove(&network) else { return };
        let Some(from) = self.registry.take_flushed(network) else {
            self.cached.remove(&network);
            self.paced.remove(&network);
            return;
        };
        let settings = &self.config.settings;
        let Some(update) =
            messages::update(&self.registry, &self.presence, &self.dead_routes, settings, network, from, &dirty)
        else {
            return;
        };
        let version = update.version;
        self.stats.peers_encoded += update.peers.len() as u64;
        let flags = if version == from { Flags::default() } else { Flags::ACK_REQUESTED };
        let Some(delta) = encode(ControlMessage::ConfigUpdate(update), flags) else {
            self.cached.remove(&network);
            return;
        };
        if self.cached.get_mut(&network).is_some_and(|cached| !cached.extend(from, version, &delta)) {
            self.cached.remove(&network);
        }
        let conns = self.conns.of_network(network);
        let pace = PACE_PER_CONNECTION.saturating_mul(u32::try_from(conns.len()).unwrap_or(u32::MAX)).min(PACE_AT_MOST);
        self.paced.insert(network, now.mono + pace);
        for conn in conns {
            match self.sent_version(conn) {
                // It has not announced a key yet.
                None => {}
                Some(sent) if sent == from => {
                    self.stats.updates_sent += 1;
                    self.events.push_back(Event::Send { conn, message: delta.clone() });
                    self.set_sent_version(conn, version);
                }
                Some(_) => self.send_config(conn, now),
            }
        }
    }

    /// Sends the full configuration of the connection's network, as of the last flush: what is being gathered follows.
    pub(crate) fn send_config(&mut self, conn: ConnId, now: Now) {
        let Some(network) = self.conns.get(conn).and_then(Conn::network) else { return };
        if !self.cached.contains_key(&network) {
            // What was gathered is part of it, so the others are told now: all stand at the same version.
            self.flush_network(network, now);
            self.registry.take_flushed(network);
            let Some(cached) = self.encode_config(network) else { return };
            self.cached.insert(network, cached);
        }
        let Some(Cached { config, updates, version, .. }) = self.cached.get(&network) else { return };
        let version = *version;
        self.stats.configs_sent += 1;
        self.events.push_back(Event::Send { conn, message: config.clone() });
        self.events.extend(updates.iter().map(|update| Event::Send { conn, message: update.clone() }));
        self.set_sent_version(conn, version);
    }

    /// Sends the full configuration to a node that could not apply what it got: encoded as a whole, for the same updates
    /// would not fit again.
    pub(crate) fn resend_config(&mut self, conn: ConnId, now: Now) {
        let Some(network) = self.conns.get(conn).and_then(Conn::network) else { return };
        if self.cached.get(&network).is_some_and(|cached| !cached.updates.is_empty()) {
            self.cached.remove(&network);
        }
        self.send_config(conn, now);
    }

    fn encode_config(&mut self, network: NetworkId) -> Option<Cached> {
        let config =
            messages::config(&self.registry, &self.presence, &self.dead_routes, &self.config.settings, network)?;
        let version = config.version;
        self.stats.peers_encoded += config.peers.len() as u64;
        let config = encode(ControlMessage::Config(config), Flags::ACK_REQUESTED)?;
        Some(Cached { config, updates: Vec::new(), updates_len: 0, version })
    }

    pub(crate) fn send_identity(&mut self, node: NodeId) {
        let Some(conn) = self.presence.by_node.get(&node).copied() else { return };
        let Some(record) = self.registry.nodes.get(&node) else { return };
        let Some(sent) = self.conns.get(conn).and_then(Conn::sent_version) else { return };
        let update = proto::ConfigUpdate {
            from_version: sent,
            version: sent,
            identity: Some(messages::identity(record)),
            ..Default::default()
        };
        self.send(conn, ControlMessage::ConfigUpdate(update), Flags::default());
    }

    fn set_sent_version(&mut self, conn: ConnId, version: ChangeId) {
        if let Some(ready) = self.ready_mut(conn) {
            ready.sent_version = Some(version);
        }
    }

    /// The configuration version that the connection's node was sent last.
    pub(crate) fn sent_version(&self, conn: ConnId) -> Option<ChangeId> {
        self.conns.get(conn).and_then(Conn::sent_version)
    }

    pub(crate) fn send(&mut self, conn: ConnId, message: ControlMessage, flags: Flags) {
        if let Some(message) = encode(message, flags) {
            self.events.push_back(Event::Send { conn, message });
        }
    }
}

/// Encoding fails only for messages beyond 8 MiB, that is, for networks far beyond the supported size.
pub(crate) fn encode(message: ControlMessage, flags: Flags) -> Option<Bytes> {
    match control::encode(&message, flags) {
        Ok(frames) => Some(Bytes::from(frames)),
        Err(error) => {
            tracing::error!(%error, "a control message could not be encoded; the node keeps its old configuration");
            None
        }
    }
}
