//! What the controller knows: the records of the database, kept in memory and fed by the tail of `change_log`.
//!
//! The database is the truth (DESIGN §4); nothing here is ever written back. [`Registry::apply`] says what each change
//! means to the nodes, so that the configuration version moves only when a node must know something.

use edgelink_auth::token::Revocations;
use edgelink_model::records::{
    Change, ChangeId, NetworkRecord, NodeRecord, RevocationRecord, RevocationTarget, RouteRecord, ServerRecord,
    Snapshot,
};
use edgelink_model::{NetworkId, NodeId, ServerId};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A network with its configuration version.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) record: NetworkRecord,
    /// Newest change that a node of this network must know.
    pub(crate) version: ChangeId,
    /// The version as of the last flush: what nodes that are up to date hold.
    flushed: ChangeId,
}

/// The records in memory.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) networks: BTreeMap<NetworkId, Network>,
    pub(crate) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(crate) routes: BTreeMap<NodeId, Vec<RouteRecord>>,
    pub(crate) servers: BTreeMap<ServerId, ServerRecord>,
    pub(crate) revocations: BTreeMap<String, RevocationRecord>,
    /// The same by token and by node.
    revoked: Revocations,
    /// When the first of them may be forgotten, Unix seconds.
    revocations_expire: Option<u64>,
    by_machine: HashMap<[u8; 32], NodeId>,
    /// Nodes of each network, whether they are members or wait.
    by_network: HashMap<NetworkId, BTreeSet<NodeId>>,
    /// Newest change applied.
    version: ChangeId,
}

/// What a change means to connected nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Peers of `node` must learn of it (or of its end, when it is not an authorized member any more).
    Peer(NetworkId, NodeId),
    /// The node's own name or addresses changed.
    Identity(NodeId),
    /// The node may join now.
    Admitted(NodeId),
    /// The node may not stay; `true` when it was deleted.
    Expelled(NodeId, bool),
    /// The network's own record changed.
    Network(NetworkId),
    /// Routes of the network changed.
    Routes(NetworkId),
    /// The set of relays or STUN servers changed, for everybody.
    Servers,
    /// A token or node was revoked.
    Revoked(RevocationRecord),
}

impl Registry {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        let mut this = Self { version: snapshot.version, ..Self::default() };
        for record in snapshot.networks {
            this.networks.insert(record.id, Network { record, version: snapshot.version, flushed: snapshot.version });
        }
        for node in snapshot.nodes {
            this.by_machine.insert(node.machine_key_pub, node.id);
            this.by_network.entry(node.network_id).or_default().insert(node.id);
            this.nodes.insert(node.id, node);
        }
        for route in snapshot.routes {
            this.routes.entry(route.node_id).or_default().push(route);
        }
        this.servers = snapshot.servers.into_iter().map(|s| (s.id, s)).collect();
        snapshot.revocations.into_iter().for_each(|record| _ = this.revoke(record));
        this
    }

    /// Newest change applied: where the tail goes on.
    pub(crate) fn version(&self) -> ChangeId {
        self.version
    }

    pub(crate) fn node_by_machine(&self, machine_key_pub: &[u8; 32]) -> Option<&NodeRecord> {
        self.by_machine.get(machine_key_pub).and_then(|id| self.nodes.get(id))
    }

    /// Authorized members of a network that have an address: what its nodes see as peers.
    pub(crate) fn members(&self, network: NetworkId) -> impl Iterator<Item = &NodeRecord> {
        let nodes = self.by_network.get(&network).into_iter().flatten();
        nodes.filter_map(|id| self.nodes.get(id)).filter(|node| is_member(node))
    }

    /// The overlay subnets of a network.
    pub(crate) fn overlay(&self, network: NetworkId) -> Vec<IpNet> {
        let record = self.networks.get(&network).map(|n| &n.record);
        let subnets = record.map(|r| [Some(IpNet::V4(r.subnet)), r.subnet6.map(IpNet::V6)]);
        subnets.into_iter().flatten().flatten().collect()
    }

    /// The enabled routes of a network's members.
    pub(crate) fn network_routes(&self, network: NetworkId) -> impl Iterator<Item = &RouteRecord> {
        self.members(network).filter_map(|n| self.routes.get(&n.id)).flatten().filter(|r| r.enabled)
    }

    /// The position in `change_log` that what is applied next leads to.
    pub(crate) fn advance(&mut self, version: ChangeId) {
        self.version = self.version.max(version);
    }

    /// Takes over one committed change. Applying a change twice has no second effect.
    pub(crate) fn apply(&mut self, id: ChangeId, change: Change) -> Vec<Effect> {
        let effects = match change {
            Change::Network(record) => self.apply_network(record),
            Change::NetworkDeleted(network) => {
                self.networks.remove(&network);
                Vec::new()
            }
            Change::Node(record) => self.apply_node(record),
            Change::NodeDeleted(node) => self.remove_node(node),
            Change::Routes(node, routes) => self.apply_routes(node, routes),
            Change::Server(record) => {
                let old = self.servers.insert(record.id, record.clone());
                if old.as_ref() == Some(&record) { Vec::new() } else { vec![Effect::Servers] }
            }
            Change::ServerDeleted(server) => {
                self.servers.remove(&server).map(|_| Effect::Servers).into_iter().collect()
            }
            // The shell's business: it reads its configuration again.
            Change::Setting(_) => Vec::new(),
            Change::Revoked(record) => self.revoke(record).map(Effect::Revoked).into_iter().collect(),
        };
        for effect in &effects {
            self.bump(effect, id);
        }
        effects
    }

    /// The version that up-to-date nodes hold until now; from now on they will hold the network's present one.
    pub(crate) fn take_flushed(&mut self, network: NetworkId) -> Option<ChangeId> {
        let network = self.networks.get_mut(&network)?;
        Some(std::mem::replace(&mut network.flushed, network.version))
    }

    /// The changes that lead from what is known to `snapshot`.
    pub(crate) fn difference(&self, snapshot: Snapshot) -> Vec<Change> {
        let new = Self::new(snapshot);
        let mut changes = Vec::new();
        changes.extend(self.nodes.keys().filter(|id| !new.nodes.contains_key(id)).map(|id| Change::NodeDeleted(*id)));
        changes.extend(
            self.servers.keys().filter(|id| !new.servers.contains_key(id)).map(|id| Change::ServerDeleted(*id)),
        );
        changes.extend(
            self.networks.keys().filter(|id| !new.networks.contains_key(id)).map(|id| Change::NetworkDeleted(*id)),
        );
        changes.extend(new.networks.into_values().map(|n| Change::Network(n.record)));
        changes.extend(new.servers.into_values().map(Change::Server));
        let mut routes = new.routes;
        for node in new.nodes.into_values() {
            let id = node.id;
            changes.push(Change::Node(node));
            changes.push(Change::Routes(id, routes.remove(&id).unwrap_or_default()));
        }
        changes.extend(new.revocations.into_values().map(Change::Revoked));
        changes
    }

    /// What is revoked, by token and by node.
    pub(crate) fn revoked(&self) -> &Revocations {
        &self.revoked
    }

    /// Forgets revocations whose tokens have expired anyway. Looks at them only when one is due.
    pub(crate) fn expire_revocations(&mut self, now_secs: u64) {
        if self.revocations_expire.is_none_or(|at| at > now_secs) {
            return;
        }
        self.revocations.retain(|_, r| r.expires_at > now_secs);
        self.revoked = self.revocations.values().collect();
        self.revocations_expire = self.revocations.values().map(|r| r.expires_at).min();
    }

    /// Takes a revocation over; gives it back if it is news.
    fn revoke(&mut self, record: RevocationRecord) -> Option<RevocationRecord> {
        if self.revocations.get(&record.id) == Some(&record) {
            return None;
        }
        self.revoked.insert(&record);
        self.revocations_expire = Some(self.revocations_expire.unwrap_or(u64::MAX).min(record.expires_at));
        self.revocations.insert(record.id.clone(), record.clone());
        Some(record)
    }

    fn bump(&mut self, effect: &Effect, id: ChangeId) {
        let one = match effect {
            Effect::Peer(network, _) | Effect::Network(network) | Effect::Routes(network) => Some(*network),
            Effect::Identity(node) => self.nodes.get(node).map(|n| n.network_id),
            Effect::Revoked(record) => match &record.target {
                RevocationTarget::Node { node_id, .. } => self.nodes.get(node_id).map(|n| n.network_id),
                RevocationTarget::Jti(_) => None,
            },
            Effect::Servers => {
                self.networks.values_mut().for_each(|n| n.version = n.version.max(id));
                None
            }
            Effect::Admitted(_) | Effect::Expelled(..) => None,
        };
        if let Some(network) = one.and_then(|network| self.networks.get_mut(&network)) {
            network.version = network.version.max(id);
        }
    }

    fn apply_network(&mut self, record: NetworkRecord) -> Vec<Effect> {
        let id = record.id;
        match self.networks.get_mut(&id) {
            Some(network) if network.record == record => Vec::new(),
            Some(network) => {
                network.record = record;
                vec![Effect::Network(id)]
            }
            None => {
                self.networks.insert(id, Network { record, version: self.version, flushed: self.version });
                vec![Effect::Network(id)]
            }
        }
    }

    fn apply_node(&mut self, record: NodeRecord) -> Vec<Effect> {
        let id = record.id;
        let old = self.nodes.insert(id, record.clone());
        if let Some(old) = &old
            && old.machine_key_pub != record.machine_key_pub
        {
            self.by_machine.remove(&old.machine_key_pub);
        }
        if let Some(old) = &old
            && old.network_id != record.network_id
        {
            self.leave_network(old.network_id, id);
        }
        self.by_machine.insert(record.machine_key_pub, id);
        self.by_network.entry(record.network_id).or_default().insert(id);

        let mut effects = Vec::new();
        let (was, is) = (old.as_ref().is_some_and(is_member), is_member(&record));
        match (was, is) {
            (false, true) => effects.extend([Effect::Admitted(id), Effect::Peer(record.network_id, id)]),
            (true, false) => effects.extend([Effect::Expelled(id, false), Effect::Peer(record.network_id, id)]),
            (true, true) => {
                if let Some(old) = &old {
                    if peer_view(old) != peer_view(&record) {
                        effects.push(Effect::Peer(record.network_id, id));
                    }
                    if identity_view(old) != identity_view(&record) {
                        effects.push(Effect::Identity(id));
                    }
                }
            }
            (false, false) => {}
        }
        if was != is && self.routes.get(&id).is_some_and(|r| r.iter().any(|r| r.enabled)) {
            effects.push(Effect::Routes(record.network_id));
        }
        effects
    }

    fn remove_node(&mut self, id: NodeId) -> Vec<Effect> {
        let Some(old) = self.nodes.remove(&id) else { return Vec::new() };
        self.by_machine.remove(&old.machine_key_pub);
        self.leave_network(old.network_id, id);
        let had_routes = self.routes.remove(&id).is_some_and(|r| r.iter().any(|r| r.enabled));
        let mut effects = vec![Effect::Expelled(id, true)];
        if is_member(&old) {
            effects.push(Effect::Peer(old.network_id, id));
            if had_routes {
                effects.push(Effect::Routes(old.network_id));
            }
        }
        effects
    }

    fn leave_network(&mut self, network: NetworkId, node: NodeId) {
        if let Some(nodes) = self.by_network.get_mut(&network) {
            nodes.remove(&node);
            if nodes.is_empty() {
                self.by_network.remove(&network);
            }
        }
    }

    fn apply_routes(&mut self, node: NodeId, routes: Vec<RouteRecord>) -> Vec<Effect> {
        let enabled = |r: &[RouteRecord]| r.iter().filter(|r| r.enabled).cloned().collect::<Vec<_>>();
        let new = enabled(&routes);
        let old = self.routes.insert(node, routes).unwrap_or_default();
        match self.nodes.get(&node) {
            Some(record) if is_member(record) && enabled(&old) != new => vec![Effect::Routes(record.network_id)],
            _ => Vec::new(),
        }
    }
}

/// May this node talk to its network?
pub(crate) fn is_member(node: &NodeRecord) -> bool {
    node.authorized && (node.virtual_ip.is_some() || node.virtual_ip6.is_some())
}

/// What other nodes see of a node.
fn peer_view(node: &NodeRecord) -> impl PartialEq {
    (node.name.clone(), node.machine_key_pub, node.key.clone(), node.virtual_ip, node.virtual_ip6)
}

/// What the node itself is told.
fn identity_view(node: &NodeRecord) -> impl PartialEq {
    (node.name.clone(), node.virtual_ip, node.virtual_ip6)
}
