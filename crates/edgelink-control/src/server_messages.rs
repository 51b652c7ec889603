//! What servers are told on `/ws/server`: CONFIG, CONFIG_UPDATE, mesh tokens, and where the other relays are.

use crate::servers::{RENEW_AT, ServerConn};
use crate::{ConnId, Control, messages};
use edgelink_auth::token::{MeshClaims, new_jti};
use edgelink_model::records::{ServerKind, ServerRecord};
use edgelink_model::{NodeId, Now, ServerId};
use edgelink_wire::Flags;
use edgelink_wire::control::{ControlMessage, proto};

impl Control {
    /// Everything that a server must know.
    pub(crate) fn send_server_config(&mut self, id: ConnId, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(server) = self.servers.server_of(id) else { return };
        let (algorithm, key, relay_auth_pub) = self.issuer.relay_keys();
        let version = self.registry.version();
        let config = proto::Config {
            version,
            relays: self.relays_for(server),
            revocations: self.registry.revocations.values().map(messages::revocation).collect(),
            relay_keys: Some(proto::RelayKeys { algorithm, key, relay_auth_pub }),
            mesh_tokens: self.mesh_tokens(server, now, rng),
            next_hops: self.paths.hops_at(server),
            settings: Some(self.server_settings()).filter(|settings| !settings.controllers.is_empty()),
            ..Default::default()
        };
        self.stats.configs_sent += 1;
        self.send(id, ControlMessage::Config(config), Flags::ACK_REQUESTED);
        let nodes: Vec<NodeId> = self.locations.nodes().collect();
        let nodes = nodes.into_iter().map(|node| self.location(node)).filter(|l| !l.relay_ids.is_empty()).collect();
        self.send(id, ControlMessage::ServerNodeLoc(proto::ServerNodeLoc { nodes, full: true }), Flags::default());
        if let Some(conn) = self.servers.conns.get_mut(&id) {
            if let Some(ready) = conn.ready_mut() {
                ready.sent_version = Some(version);
                ready.renew_at = now.mono + self.config.mesh_token_lifetime / RENEW_AT * (RENEW_AT - 1);
            }
            conn.schedule(&mut self.timers);
        }
    }

    /// What of the settings is a server's business.
    fn server_settings(&self) -> proto::Settings {
        proto::Settings { controllers: self.config.settings.controllers.clone(), ..Default::default() }
    }

    /// Other controllers, or the same elsewhere: every server learns where.
    pub(crate) fn tell_servers_of_controllers(&mut self) {
        let settings = Some(self.server_settings());
        for (id, ..) in self.servers.configured() {
            self.send_server_update(id, proto::ConfigUpdate { settings: settings.clone(), ..Default::default() });
        }
    }

    /// A change for one server, on top of the version that it was sent.
    pub(crate) fn send_server_update(&mut self, id: ConnId, update: proto::ConfigUpdate) {
        let version = self.registry.version();
        let Some(ready) = self.servers.conns.get_mut(&id).and_then(ServerConn::ready_mut) else { return };
        let Some(from_version) = ready.sent_version.replace(version) else {
            ready.sent_version = None;
            return;
        };
        let flags = if from_version == version { Flags::default() } else { Flags::ACK_REQUESTED };
        self.stats.updates_sent += 1;
        self.send(id, ControlMessage::ConfigUpdate(proto::ConfigUpdate { from_version, version, ..update }), flags);
    }

    /// The list of relays as a server sees it: empty for one that is not in it.
    pub(crate) fn relays_for(&self, server: ServerId) -> Vec<proto::Relay> {
        let relays = messages::relays(&self.registry, &self.config.settings);
        if self.is_usable_relay(server) { relays } else { Vec::new() }
    }

    fn is_usable_relay(&self, server: ServerId) -> bool {
        messages::usable_relays(&self.registry).any(|record| record.id == server)
    }

    /// Tokens with which `server` may dial the others.
    pub(crate) fn mesh_tokens(
        &self,
        server: ServerId,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Vec<proto::MeshToken> {
        if !self.is_usable_relay(server) {
            return Vec::new();
        }
        let (iat, life) = (now.unix_secs(), self.config.mesh_token_lifetime.as_secs());
        let others = messages::usable_relays(&self.registry).filter(|record| record.id != server);
        others
            .filter_map(|other| {
                let claims = MeshClaims { server_id: server, iat, exp: iat + life, jti: new_jti(rng) };
                let token = match self.issuer.mesh(&claims, other.id) {
                    Ok(token) => token,
                    Err(error) => {
                        tracing::error!(%error, "a mesh token could not be signed");
                        return None;
                    }
                };
                let (url, path) = self.mesh_address(other);
                Some(proto::MeshToken { server_id: other.id.0, token, url, path })
            })
            .collect()
    }

    /// Where a relay's `/ws/mesh` is: as it registered, or beside its `/ws/data`.
    fn mesh_address(&self, record: &ServerRecord) -> (String, String) {
        let registered = self.servers.hot.get(&record.id).map(|hot| hot.mesh_url.as_str()).unwrap_or_default();
        match (&record.url, record.kind) {
            _ if !registered.is_empty() => (registered.to_owned(), String::new()),
            (Some(url), _) => (mesh_url(url), String::new()),
            (None, ServerKind::Builtin) => (String::new(), self.config.builtin_mesh_path.clone().unwrap_or_default()),
            (None, ServerKind::External) => Default::default(),
        }
    }

    pub(crate) fn location(&self, node: NodeId) -> proto::NodeLocation {
        let network = self.registry.nodes.get(&node).map_or(0, |record| record.network_id.0);
        let relay_ids = self.located(node).into_iter().map(|relay| relay.0).collect();
        proto::NodeLocation { node_id: node.0, network_id: network, relay_ids }
    }
}

/// `/ws/mesh` beside `/ws/data`: the URL with its last path segment replaced.
fn mesh_url(data_url: &str) -> String {
    let after_scheme = data_url.find("://").map_or(0, |at| at + 3);
    match data_url.rfind('/').filter(|at| *at >= after_scheme) {
        Some(at) if at + 1 < data_url.len() => format!("{}/mesh", &data_url[..at]),
        Some(at) => format!("{}/ws/mesh", &data_url[..at]),
        None => format!("{data_url}/ws/mesh"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_is_beside_the_data() {
        let cases = [
            ("wss://r.example.com/ws/data", "wss://r.example.com/ws/mesh"),
            ("wss://r.example.com:8443/a/b/data", "wss://r.example.com:8443/a/b/mesh"),
            ("wss://r.example.com/", "wss://r.example.com/ws/mesh"),
            ("wss://r.example.com", "wss://r.example.com/ws/mesh"),
        ];
        for (data, mesh) in cases {
            assert_eq!(mesh_url(data), mesh);
        }
    }
}
