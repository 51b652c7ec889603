//! Who must be told of a change: dirty sets per network, coalesced for 50 ms, encoded once (DESIGN §4).

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

impl Control {
    /// Notes a change of `network`, to be sent within [`COALESCE`].
    pub(crate) fn mark(&mut self, network: NetworkId, now: Now, change: impl FnOnce(&mut Dirty)) {
        change(self.dirty.entry(network).or_default());
        self.cached.remove(&network);
        self.flush_at.get_or_insert(now.mono + COALESCE);
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

    /// Sends what was gathered: a delta to nodes that hold the version before it, a full CONFIG to those behind.
    pub(crate) fn flush(&mut self) {
        self.flush_at = None;
        for (network, dirty) in std::mem::take(&mut self.dirty) {
            let Some(from) = self.registry.take_flushed(network) else { continue };
            let settings = &self.config.settings;
            let Some(update) =
                messages::update(&self.registry, &self.presence, &self.dead_routes, settings, network, from, &dirty)
            else {
                continue;
            };
            let version = update.version;
            // Who got a full CONFIG while changes were gathered holds the version already, but may lack a presence
            // that changed after it; the delta is idempotent, so it serves them too.
            let catch_up = proto::ConfigUpdate { from_version: version, ..update.clone() };
            let flags = if version == from { Flags::default() } else { Flags::ACK_REQUESTED };
            let Some(delta) = encode(ControlMessage::ConfigUpdate(update), flags) else { continue };
            let Some(catch_up) = encode(ControlMessage::ConfigUpdate(catch_up), Flags::default()) else { continue };
            for conn in self.conns.of_network(network) {
                let Some(sent) = self.sent_version(conn) else { continue };
                let message = match sent {
                    sent if sent == from => delta.clone(),
                    sent if sent == version => catch_up.clone(),
                    _ => {
                        self.send_config(conn);
                        continue;
                    }
                };
                self.stats.updates_sent += 1;
                self.events.push_back(Event::Send { conn, message });
                self.set_sent_version(conn, version);
            }
        }
    }

    /// Sends the full configuration of the connection's network.
    pub(crate) fn send_config(&mut self, conn: ConnId) {
        let Some(network) = self.conns.get(conn).and_then(Conn::network) else { return };
        let Some(version) = self.registry.networks.get(&network).map(|n| n.version) else { return };
        let message = match self.cached.get(&network) {
            Some(message) => message.clone(),
            None => {
                let config =
                    messages::config(&self.registry, &self.presence, &self.dead_routes, &self.config.settings, network);
                let Some(message) = config.and_then(|c| encode(ControlMessage::Config(c), Flags::ACK_REQUESTED)) else {
                    return;
                };
                self.cached.insert(network, message.clone());
                message
            }
        };
        self.stats.configs_sent += 1;
        self.events.push_back(Event::Send { conn, message });
        self.set_sent_version(conn, version);
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
