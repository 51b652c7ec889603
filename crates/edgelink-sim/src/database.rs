//! The controller's database, in memory: the same operations, the same change log.

use edgelink_model::records::{
    AnnouncedRoute, Change, ChangeId, EnrollError, EnrollRequest, NetworkRecord, NodeKeyRecord, NodeRecord,
    RevocationRecord, RevocationTarget, RouteRecord, ServerKind, ServerRecord, Snapshot,
};
use edgelink_model::{NetworkId, NodeId, ServerId, ipam};
use std::collections::{BTreeMap, BTreeSet};

/// Tables and change log.
#[derive(Debug)]
pub struct Database {
    networks: BTreeMap<NetworkId, NetworkRecord>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    routes: BTreeMap<NodeId, Vec<RouteRecord>>,
    servers: BTreeMap<ServerId, ServerRecord>,
    revocations: BTreeMap<String, RevocationRecord>,
    /// Hashes of reusable, pre-authorized keys, with their network.
    auth_keys: BTreeMap<String, NetworkId>,
    log: Vec<(ChangeId, Change)>,
    next_node: u32,
}

impl Database {
    /// One network `default` with the subnet of specification §9.2, and the built-in relay with id 1.
    pub fn new() -> Self {
        let network = NetworkRecord {
            id: NetworkId(1),
            name: "default".to_owned(),
            subnet: ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 1, 0), 24),
            subnet6: None,
            description: String::new(),
        };
        let relay = ServerRecord {
            id: ServerId(1),
            name: "builtin".to_owned(),
            kind: ServerKind::Builtin,
            url: None,
            region: String::new(),
            relay: true,
            stun: false,
            stun_ip: None,
            stun_ip2: None,
            stun_port: 3478,
            enabled: true,
        };
        Self {
            networks: [(network.id, network)].into(),
            nodes: BTreeMap::new(),
            routes: BTreeMap::new(),
            servers: [(relay.id, relay)].into(),
            revocations: BTreeMap::new(),
            auth_keys: BTreeMap::new(),
            log: Vec::new(),
            next_node: 1,
        }
    }

    /// Another network; nodes join it with a key made for it.
    pub fn add_network(&mut self, record: NetworkRecord) {
        self.networks.insert(record.id, record.clone());
        self.append(Change::Network(record));
    }

    /// A reusable, pre-authorized key for `network`.
    pub fn add_auth_key(&mut self, key: &str, network: NetworkId) {
        self.auth_keys.insert(edgelink_auth::auth_key::hash(key), network);
    }

    /// Another relay, or a changed one.
    pub fn put_server(&mut self, record: ServerRecord) {
        self.servers.insert(record.id, record.clone());
        self.append(Change::Server(record));
    }

    /// `edgelink-ctl server enable` and `disable`.
    pub fn enable_server(&mut self, id: ServerId, enabled: bool) {
        if let Some(mut record) = self.servers.get(&id).filter(|s| s.enabled != enabled).cloned() {
            record.enabled = enabled;
            self.put_server(record);
        }
    }

    /// A relay, as the table has it.
    pub fn server(&self, id: ServerId) -> Option<&ServerRecord> {
        self.servers.get(&id)
    }

    /// What is revoked.
    pub fn revocations(&self) -> Vec<RevocationRecord> {
        self.revocations.values().cloned().collect()
    }

    /// The newest change.
    pub fn version(&self) -> ChangeId {
        self.log.last().map_or(1, |(id, _)| *id)
    }

    /// Everything, as a starting controller reads it.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: self.version(),
            networks: self.networks.values().cloned().collect(),
            nodes: self.nodes.values().cloned().collect(),
            routes: self.routes.values().flatten().cloned().collect(),
            servers: self.servers.values().cloned().collect(),
            revocations: self.revocations.values().cloned().collect(),
        }
    }

    /// What was committed after `position`.
    pub fn changes_after(&self, position: ChangeId) -> Vec<(ChangeId, Change)> {
        self.log.iter().filter(|(id, _)| *id > position).cloned().collect()
    }

    /// A node's row.
    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.get(&id)
    }

    /// All nodes' rows.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values()
    }

    /// The node with this machine key.
    pub fn node_of(&self, machine: &[u8; 32]) -> Option<&NodeRecord> {
        self.nodes.values().find(|n| n.machine_key_pub == *machine)
    }

    /// Registers a machine, or finds it.
    ///
    /// # Errors
    /// As the real one: unknown key, no address left.
    pub fn enroll(&mut self, request: &EnrollRequest) -> Result<NodeRecord, EnrollError> {
        let network = match &request.auth_key_hash {
            Some(hash) => Some(*self.auth_keys.get(hash).ok_or(EnrollError::UnknownAuthKey)?),
            None => None,
        };
        let known = self.node_of(&request.machine_key_pub).cloned();
        let mut record = known.unwrap_or_else(|| {
            let id = NodeId(self.next_node);
            self.next_node += 1;
            NodeRecord {
                id,
                network_id: network.unwrap_or(NetworkId(1)),
                name: request.host.hostname.clone(),
                machine_key_pub: request.machine_key_pub,
                key: None,
                virtual_ip: None,
                virtual_ip6: None,
                host: request.host.clone(),
                authorized: false,
                last_seen: None,
            }
        });
        record.host = request.host.clone();
        if network.is_some() || !request.require_authorization {
            self.assign(&mut record)?;
        }
        self.put(record.clone());
        Ok(record)
    }

    /// `edgelink-ctl token revoke`: the node may authenticate anew.
    pub fn revoke_tokens(&mut self, id: NodeId, now_secs: u64) {
        let revocation = RevocationRecord {
            id: format!("tokens-{id}-{now_secs}"),
            target: RevocationTarget::Node { node_id: id, issued_before: now_secs },
            expires_at: now_secs + 24 * 3600,
        };
        self.revocations.insert(revocation.id.clone(), revocation.clone());
        self.append(Change::Revoked(revocation));
    }

    /// `edgelink-ctl node authorize`.
    ///
    /// # Errors
    /// When no address is left.
    pub fn authorize(&mut self, id: NodeId) -> Result<(), EnrollError> {
        if let Some(mut record) = self.nodes.get(&id).cloned() {
            self.assign(&mut record)?;
            self.put(record);
        }
        Ok(())
    }

    /// `edgelink-ctl node deauthorize`: the node's tokens are revoked as well.
    pub fn deauthorize(&mut self, id: NodeId, now_secs: u64) {
        let Some(mut record) = self.nodes.get(&id).cloned() else { return };
        record.authorized = false;
        let revocation = RevocationRecord {
            id: format!("node-{id}-{now_secs}"),
            target: RevocationTarget::Node { node_id: id, issued_before: now_secs },
            expires_at: now_secs + 24 * 3600,
        };
        self.revocations.insert(revocation.id.clone(), revocation.clone());
        self.append(Change::Revoked(revocation));
        self.put(record);
    }

    /// Keeps a node's key statement; a lower sequence number is refused.
    pub fn set_node_key(&mut self, id: NodeId, key: NodeKeyRecord) {
        let Some(mut record) = self.nodes.get(&id).cloned() else { return };
        if record.key.as_ref().is_none_or(|old| old.seq < key.seq) {
            record.key = Some(key);
            self.put(record);
        }
    }

    /// Keeps what a node announces, replacing what it announced before.
    pub fn announce_routes(&mut self, node_id: NodeId, announced: &[AnnouncedRoute], approve: bool) {
        let old = self.routes.get(&node_id).cloned().unwrap_or_default();
        let records = announced.iter().zip(1u32..).map(|(route, n)| {
            let known = old.iter().find(|record| record.cidr == route.cidr);
            RouteRecord {
                id: known.map_or(node_id.0 * 10_000 + n, |record| record.id),
                node_id,
                cidr: route.cidr,
                priority: route.priority,
                weight: route.weight,
                enabled: known.map_or(approve, |record| record.enabled),
                announced: true,
                snat: route.snat,
            }
        });
        let records: Vec<RouteRecord> = records.collect();
        if records != old {
            self.routes.insert(node_id, records.clone());
            self.append(Change::Routes(node_id, records));
        }
    }

    fn assign(&self, record: &mut NodeRecord) -> Result<(), EnrollError> {
        record.authorized = true;
        let Some(network) = self.networks.get(&record.network_id) else { return Ok(()) };
        if record.virtual_ip.is_none() {
            let used: BTreeSet<_> = self
                .nodes
                .values()
                .filter(|n| n.network_id == record.network_id)
                .filter_map(|n| n.virtual_ip)
                .collect();
            let free = ipam::allocate(network.subnet, &used);
            record.virtual_ip = Some(free.ok_or_else(|| EnrollError::PoolExhausted(network.subnet.to_string()))?);
        }
        Ok(())
    }

    fn put(&mut self, record: NodeRecord) {
        if self.nodes.insert(record.id, record.clone()).as_ref() != Some(&record) {
            self.append(Change::Node(record));
        }
    }

    fn append(&mut self, change: Change) {
        let id = self.version() + 1;
        self.log.push((id, change));
    }
}

impl Default for Database {
    fn default() -> Self {
        Self::new()
    }
}
