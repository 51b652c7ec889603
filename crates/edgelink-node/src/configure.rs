//! CONFIG and CONFIG_UPDATE applied (DESIGN §1, §4).

use crate::control::{ip, printable};
use crate::{Event, Identity, Interface, Network, Node};
use edgelink_model::{NodeId, Now};
use edgelink_session::{DEFAULT_WINDOW, SessionConfig, SessionTable};
use edgelink_wire::control::proto;
use ipnet::IpNet;
use std::time::Duration;

impl Node {
    /// Who we are, from AUTH_RESPONSE. Sessions live on when it is the same node as before (DESIGN §10: a reconnecting
    /// control channel must not tear the data plane down).
    pub(crate) fn set_identity(&mut self, identity: Identity, now: Now, rng: &mut impl rand_core::Rng) {
        let same =
            self.identity.as_ref().is_some_and(|old| (old.node, old.network) == (identity.node, identity.network));
        let changed = self.identity.as_ref() != Some(&identity);
        if !same {
            self.peers.clear();
            self.clear_routes();
            self.network = None;
            self.sessions = Some(SessionTable::new(SessionConfig {
                network_id: identity.network,
                node_id: identity.node,
                psk: self.config.psk.clone(),
                window: DEFAULT_WINDOW,
            }));
        }
        self.identity = Some(identity);
        if !same {
            self.renew_key(now, rng);
        }
        if changed && self.network.is_some() {
            self.publish_interface();
        }
    }

    /// Replaces the whole configuration. On error the old one stays in force.
    pub(crate) fn apply_config(
        &mut self,
        mut config: proto::Config,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Result<(), String> {
        let identity = self.identity.as_ref().ok_or("CONFIG before authentication")?;
        let message = config.network.as_ref().ok_or("CONFIG without a network")?;
        if message.id != identity.network.0 {
            return Err(format!("CONFIG of network {}, but this node is in {}", message.id, identity.network));
        }
        config.identity = self.latest.identity.take();
        config.tokens = config.tokens.take().or_else(|| self.latest.tokens.take());
        self.latest = config;
        let first = self.network.is_none();
        self.publish_network(now, rng);
        let peers = std::mem::take(&mut self.latest.peers);
        self.set_peers(&peers, now);
        self.latest.peers = peers;
        self.routes_changed(now);
        let relays = self.latest.relays.clone();
        self.set_relays(&relays, now);
        self.set_stun_servers(now);
        self.start_direct();
        self.persist();
        if first {
            self.events.push_back(Event::Ready);
        }
        Ok(())
    }

    /// Applies what changed since the version that we hold.
    pub(crate) fn apply_update(
        &mut self,
        update: proto::ConfigUpdate,
        now: Now,
        rng: &mut impl rand_core::Rng,
    ) -> Result<(), String> {
        if update.from_version != self.latest.version || self.network.is_none() {
            return Err(format!("holds version {}, not {}", self.latest.version, update.from_version));
        }
        if let (Some(network), Some(identity)) = (&update.network, &self.identity)
            && network.id != identity.network.0
        {
            return Err(format!("CONFIG_UPDATE of network {}, but this node is in {}", network.id, identity.network));
        }
        // Settings of the configuration file move no version.
        let durable = update.version != update.from_version
            || update.tokens.is_some()
            || update.identity.is_some()
            || update.settings.is_some();
        self.latest.version = update.version;
        if let Some(message) = update.identity
            && let Some(identity) = crate::control::identity(&message)
        {
            self.latest.identity = Some(message);
            self.set_identity(identity, now, rng);
        }
        if update.network.is_some() || update.settings.is_some() {
            self.latest.network = update.network.or(self.latest.network.take());
            self.latest.settings = update.settings.or(self.latest.settings.take());
        }
        self.publish_network(now, rng);
        // Before the peers: a node that was revoked and admitted again at once begins anew.
        self.latest.revocations.extend(update.revocations.iter().cloned());
        // What they concern has expired by itself by then (DESIGN §3).
        let there = self.controller_time(now).unix_secs();
        self.latest.revocations.retain(|revocation| revocation.expires > there);
        self.apply_revocations(&update.revocations, now);
        for id in &update.removed_peers {
            self.latest.peers.retain(|p| p.node_id != *id);
            self.remove_peer(NodeId(*id));
        }
        for peer in update.peers {
            self.learn_peer(&peer, now);
            match self.latest.peers.iter_mut().find(|p| p.node_id == peer.node_id) {
                Some(known) => *known = peer,
                None => self.latest.peers.push(peer),
            }
        }
        for presence in &update.presence {
            if let Some(known) = self.latest.peers.iter_mut().find(|p| p.node_id == presence.node_id) {
                known.online = presence.online;
            }
            if let Some(peer) = self.peers.get_mut(NodeId(presence.node_id)) {
                let was_online = std::mem::replace(&mut peer.online, presence.online);
                if presence.online && !was_online {
                    self.retry_paths(NodeId(presence.node_id), now);
                }
                if presence.online != was_online {
                    self.gateway_presence(NodeId(presence.node_id), presence.online, now);
                }
            }
        }
        if let Some(routes) = update.routes {
            self.latest.routes = routes.routes;
        }
        self.routes_changed(now);
        if let Some(stun) = update.stun_servers {
            self.latest.stun_servers = stun.servers;
            self.set_stun_servers(now);
        }
        if let Some(relays) = update.relays {
            self.set_relays(&relays.relays, now);
            self.latest.relays = relays.relays;
        }
        self.apply_advice(&update.paths, now);
        if let Some(tokens) = update.tokens
            && self.keep_tokens(tokens)
        {
            self.refresh_relay_tokens(now);
        }
        if durable {
            self.persist();
        }
        Ok(())
    }

    /// Derives [`Network`] from the latest configuration and tells the shell when the interface changes.
    fn publish_network(&mut self, now: Now, rng: &mut impl rand_core::Rng) {
        let Some(message) = &self.latest.network else { return };
        let period = self.latest.settings.as_ref().map_or(0, |s| s.node_key_rotate_secs);
        let network = Network {
            name: printable(&message.name),
            subnets: message.subnets.iter().filter_map(prefix).collect(),
            version: self.latest.version,
            key_period: if period == 0 { crate::announce::DEFAULT_PERIOD } else { Duration::from_secs(period.into()) },
        };
        let old = self.network.replace(network.clone());
        let subnets_changed = old.as_ref().is_none_or(|old| old.subnets != network.subnets);
        let shorter = old.as_ref().map_or(crate::announce::DEFAULT_PERIOD, |old| old.key_period) != network.key_period;
        if subnets_changed {
            // What is a route depends on what is the overlay.
            self.forget_known_routes();
            self.publish_interface();
        }
        if shorter {
            // The running key was made for another period: begin the new one with a new key.
            self.rotate(now, rng);
        }
    }

    pub(crate) fn publish_interface(&mut self) {
        let (Some(identity), Some(network)) = (&self.identity, &self.network) else { return };
        let with_prefix = |address: &std::net::IpAddr| {
            let subnet = network.subnets.iter().find(|s| s.contains(address));
            let host = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(*address, subnet.map_or(host, IpNet::prefix_len)).ok()
        };
        let addresses = identity.addresses.iter().filter_map(with_prefix).collect();
        let mut stun_servers: Vec<std::net::IpAddr> =
            self.latest.stun_servers.iter().flat_map(|server| [ip(&server.ip), ip(&server.ip2)]).flatten().collect();
        stun_servers.sort_unstable();
        stun_servers.dedup();
        let routes = self.installed_routes();
        let served = self.served_routes().to_vec();
        self.events.push_back(Event::Interface(Interface { addresses, routes, stun_servers, served }));
    }
}

fn prefix(message: &proto::Prefix) -> Option<IpNet> {
    IpNet::new(ip(&message.address)?, u8::try_from(message.length).ok()?).ok().map(|net| net.trunc())
}
