//! A node knocks: its machine key is proven, everything else is decided here, in one transaction (DESIGN §3).

use crate::convert;
use crate::entity::{auth_key, network, node};
use crate::error::StoreError;
use crate::names;
use crate::networks::{self, DEFAULT_NETWORK};
use crate::nodes;
use crate::store::{Store, Subject, Writer, from_db, id_from_db, to_db};
use edgelink_model::records::{EnrollError, EnrollRequest, HostInfo, NodeRecord};
use edgelink_model::{NetworkId, ipam};
use sea_orm::sea_query::{Expr, ExprTrait as _, Func};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DatabaseTransaction, DbErr, EntityTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QuerySelect,
};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

/// A refusal, which has written nothing, or a database that failed.
pub(crate) enum Failure {
    Refused(EnrollError),
    Store(StoreError),
}

/// What enrolments of one transaction need not ask the database again: nobody else writes meanwhile.
#[derive(Default)]
pub(crate) struct Seen {
    /// Reusable ones, by hash.
    keys: HashMap<String, auth_key::Model>,
    /// Of those, the ones that are marked as used.
    used: HashSet<i32>,
    networks: HashMap<u32, network::Model>,
    addresses: HashMap<i32, BTreeSet<Ipv4Addr>>,
    /// By network and beginning: names with that beginning, and perhaps others of the network.
    names: HashMap<i32, HashMap<String, HashSet<String>>>,
}

impl Seen {
    async fn key(&mut self, txn: &DatabaseTransaction, hash: &str) -> Result<Option<auth_key::Model>, DbErr> {
        if let Some(key) = self.keys.get(hash) {
            return Ok(Some(key.clone()));
        }
        let key = auth_key::Entity::find().filter(auth_key::Column::KeyHash.eq(hash)).one(txn).await?;
        if let Some(key) = key.as_ref().filter(|key| key.reusable) {
            self.keys.insert(hash.to_owned(), key.clone());
        }
        Ok(key)
    }

    async fn network(&mut self, txn: &DatabaseTransaction, id: NetworkId) -> Result<network::Model, StoreError> {
        if let Some(network) = self.networks.get(&id.0) {
            return Ok(network.clone());
        }
        let network = networks::find(txn, id).await?;
        self.networks.insert(id.0, network.clone());
        Ok(network)
    }

    /// Takes the lowest free address of `network`.
    async fn address(&mut self, txn: &DatabaseTransaction, network: &network::Model) -> Result<String, StoreError> {
        let subnet = nodes::subnet(network)?;
        let taken = match self.addresses.remove(&network.id) {
            Some(taken) => taken,
            None => nodes::taken_addresses(txn, network).await?,
        };
        let taken = self.addresses.entry(network.id).or_insert(taken);
        let address = ipam::allocate(subnet, taken).ok_or_else(|| StoreError::PoolExhausted(subnet.to_string()))?;
        taken.insert(address);
        Ok(address.to_string())
    }

    /// Takes a name made of the host name that is free in `network`.
    async fn name(
        &mut self,
        txn: &DatabaseTransaction,
        network: &network::Model,
        hostname: &str,
    ) -> Result<String, StoreError> {
        let wanted = names::from_hostname(hostname);
        let stem = wanted.chars().take(48).collect::<String>().to_lowercase();
        let of_network = self.names.entry(network.id).or_default();
        if !of_network.contains_key(&stem) {
            // Without regard to case, as people read them; `_` matches too much, which does no harm.
            let taken: Vec<String> = node::Entity::find()
                .select_only()
                .column(node::Column::Name)
                .filter(node::Column::NetworkId.eq(network.id))
                .filter(Expr::expr(Func::lower(Expr::col(node::Column::Name))).like(format!("{stem}%")))
                .into_tuple()
                .all(txn)
                .await?;
            of_network.insert(stem.clone(), taken.into_iter().map(|name| name.to_lowercase()).collect());
        }
        let taken = of_network.get(&stem);
        let name = names::make_unique(&wanted, |name| taken.is_some_and(|taken| taken.contains(&name.to_lowercase())));
        of_network.values_mut().for_each(|taken| _ = taken.insert(name.to_lowercase()));
        Ok(name)
    }
}

impl From<EnrollError> for Failure {
    fn from(error: EnrollError) -> Self {
        Self::Refused(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::PoolExhausted(subnet) => Self::Refused(EnrollError::PoolExhausted(subnet)),
            other => Self::Store(other),
        }
    }
}

impl From<DbErr> for Failure {
    fn from(error: DbErr) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Registers a machine or finds it again; the record tells whether it may join.
    ///
    /// A known machine gets its host info refreshed and, when its auth key is preauthorized, is let in — unless an
    /// administrator has deauthorized it since the key was made. An unknown one joins the key's network (the default one
    /// without a key), authorized at once when the key or `require_authorization: false` says so, else pending. A
    /// one-shot key is consumed in the same transaction; the machine that consumed it may show it again.
    ///
    /// # Errors
    /// Refusals are the request's fault; [`EnrollError::Unavailable`] is the database's, and logged.
    pub async fn enroll(&self, request: EnrollRequest) -> Result<NodeRecord, EnrollError> {
        self.try_enroll(request).await.map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Store(error) => {
                tracing::error!(%error, "enrolment failed");
                EnrollError::Unavailable
            }
        })
    }

    async fn try_enroll(&self, request: EnrollRequest) -> Result<NodeRecord, Failure> {
        let mut writer = self.write().await?;
        let record = self.enroll_in(&mut writer, &mut Seen::default(), &request).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// One enrolment of a transaction. One that is refused leaves nothing in it.
    pub(crate) async fn enroll_in(
        &self,
        writer: &mut Writer,
        seen: &mut Seen,
        request: &EnrollRequest,
    ) -> Result<NodeRecord, Failure> {
        let machine = convert::hex(&request.machine_key_pub);
        let key = match &request.auth_key_hash {
            Some(hash) => Some(seen.key(&writer.txn, hash).await?),
            None => None,
        };
        let known =
            node::Entity::find().filter(node::Column::MachineKeyPub.eq(machine.as_str())).one(&writer.txn).await?;
        match known {
            Some(row) => known_machine(writer, seen, row, key, request).await,
            None => new_machine(writer, seen, machine, key, request, self.max_pending()).await,
        }
    }
}

/// `key`: `None` when none was given, `Some(None)` when it is unknown.
async fn known_machine(
    writer: &mut Writer,
    seen: &mut Seen,
    row: node::Model,
    key: Option<Option<auth_key::Model>>,
    request: &EnrollRequest,
) -> Result<NodeRecord, Failure> {
    let before = row.clone();
    let host = clean(&request.host);
    let mut admit = !request.require_authorization && row.deauthorized_at.is_none();
    let mut used_key = None;
    match key.map(|key| usable(key, &row.machine_key_pub, request)) {
        None => {}
        Some(Ok(key)) => {
            if key.network_id != row.network_id {
                return Err(EnrollError::OtherNetwork.into());
            }
            admit |= key.preauthorized && row.deauthorized_at.is_none_or(|at| key.created_at > at);
            // A key that changes nothing is not used up.
            used_key = (admit && !row.authorized).then_some(key);
        }
        // A registered machine needs no key: an old one in its configuration does no harm. One that waits is told,
        // unless it is the very key that it came with.
        Some(Err((error, key_id))) => {
            let came_with_it = key_id.is_some() && key_id == row.auth_key_id;
            if !row.authorized && !came_with_it {
                return Err(error.into());
            }
        }
    }

    let mut change = row.into_active_model();
    if before.hostname != host.hostname {
        change.hostname = Set(host.hostname);
    }
    if before.os != host.os {
        change.os = Set(host.os);
    }
    if before.arch != host.arch {
        change.arch = Set(host.arch);
    }
    if before.version != host.version {
        change.version = Set(host.version);
    }
    if admit && !before.authorized {
        if before.virtual_ip.is_none() {
            let network = seen.network(&writer.txn, NetworkId(id_from_db(before.network_id)?)).await?;
            change.virtual_ip = Set(Some(seen.address(&writer.txn, &network).await?));
            change.virtual_ip6 = Set(nodes::address6(&network, before.id)?);
        }
        change.authorized = Set(true);
        change.deauthorized_at = Set(None);
        writer.audit("node.join", Some(("node", id_from_db(before.id)?)), None).await?;
    }
    if let Some(key) = used_key {
        change.auth_key_id = Set(Some(key.id));
        change.approve_routes = Set(key.approve_routes);
        consume(writer, seen, key, &before.machine_key_pub).await?;
    }
    // Someone who only comes back changes nothing that others must know.
    let changed = sea_orm::ActiveModelTrait::is_changed(&change);
    change.last_seen = Set(Some(to_db(request.now_unix_ms)?));
    if changed {
        Ok(nodes::save(writer, change).await?)
    } else {
        Ok(convert::node(node::Entity::update(change).exec(&writer.txn).await?)?)
    }
}

async fn new_machine(
    writer: &mut Writer,
    seen: &mut Seen,
    machine: String,
    key: Option<Option<auth_key::Model>>,
    request: &EnrollRequest,
    max_pending: u64,
) -> Result<NodeRecord, Failure> {
    let key = key.map(|key| usable(key, &machine, request).map_err(|(error, _)| error)).transpose()?;
    // A one-shot key that this machine consumed belonged to a node that was deleted since: it opens nothing now.
    if key.as_ref().is_some_and(|key| !key.reusable && key.used_at.is_some()) {
        return Err(EnrollError::UnknownAuthKey.into());
    }
    let network_id = match &key {
        Some(key) => NetworkId(id_from_db(key.network_id)?),
        None => DEFAULT_NETWORK,
    };
    let network = seen.network(&writer.txn, network_id).await?;
    let authorized = !request.require_authorization || key.as_ref().is_some_and(|key| key.preauthorized);
    let virtual_ip = if authorized {
        Some(seen.address(&writer.txn, &network).await?)
    } else {
        let pending = node::Entity::find()
            .filter(node::Column::NetworkId.eq(network.id))
            .filter(node::Column::Authorized.eq(false))
            .filter(node::Column::DeauthorizedAt.is_null())
            .count(&writer.txn)
            .await?;
        if pending >= max_pending {
            return Err(EnrollError::TooManyPending.into());
        }
        None
    };
    let host = clean(&request.host);
    let now = to_db(writer.now)?;
    let mut row = node::Entity::insert(node::ActiveModel {
        network_id: Set(network.id),
        name: Set(seen.name(&writer.txn, &network, &host.hostname).await?),
        machine_key_pub: Set(machine.clone()),
        virtual_ip: Set(virtual_ip),
        hostname: Set(host.hostname),
        os: Set(host.os),
        arch: Set(host.arch),
        version: Set(host.version),
        online: Set(false),
        last_seen: Set(Some(to_db(request.now_unix_ms)?)),
        authorized: Set(authorized),
        auth_key_id: Set(key.as_ref().map(|key| key.id)),
        approve_routes: Set(key.as_ref().is_some_and(|key| key.approve_routes)),
        created_at: Set(now),
        updated_at: Set(now),
        ..Default::default()
    })
    .exec_with_returning(&writer.txn)
    .await?;
    if authorized && let Some(virtual_ip6) = nodes::address6(&network, row.id)? {
        // Its id is known only now.
        node::Entity::update_many()
            .col_expr(node::Column::VirtualIp6, Expr::value(virtual_ip6.as_str()))
            .filter(node::Column::Id.eq(row.id))
            .exec(&writer.txn)
            .await?;
        row.virtual_ip6 = Some(virtual_ip6);
    }
    if let Some(key) = key {
        consume(writer, seen, key, &machine).await?;
    }
    let record = convert::node(row)?;
    writer.log(&Subject::Node(record.id)).await?;
    writer.audit(if authorized { "node.join" } else { "node.knock" }, Some(("node", record.id.0)), None).await?;
    Ok(record)
}

/// The key if `machine` may use it now, else why not, and the key's id if there is one.
fn usable(
    key: Option<auth_key::Model>,
    machine: &str,
    request: &EnrollRequest,
) -> Result<auth_key::Model, (EnrollError, Option<i32>)> {
    let Some(key) = key else { return Err((EnrollError::UnknownAuthKey, None)) };
    if !key.reusable && key.used_by.as_deref().is_some_and(|by| by != machine) {
        return Err((EnrollError::UnknownAuthKey, Some(key.id)));
    }
    if key.expires_at.is_some_and(|at| from_db(at).is_ok_and(|at| at <= request.now_unix_ms)) {
        return Err((EnrollError::AuthKeyExpired, Some(key.id)));
    }
    Ok(key)
}

async fn consume(writer: &Writer, seen: &mut Seen, key: auth_key::Model, machine: &str) -> Result<(), StoreError> {
    let one_shot = !key.reusable;
    // All of this transaction happens at one moment.
    if !seen.used.insert(key.id) && !one_shot {
        return Ok(());
    }
    let mut change = key.into_active_model();
    change.used_at = Set(Some(to_db(writer.now)?));
    if one_shot {
        change.used_by = Set(Some(machine.to_owned()));
    }
    auth_key::Entity::update(change).exec(&writer.txn).await?;
    Ok(())
}

fn clean(host: &HostInfo) -> HostInfo {
    HostInfo {
        hostname: names::clean_host_text(&host.hostname),
        os: names::clean_host_text(&host.os),
        arch: names::clean_host_text(&host.arch),
        version: names::clean_host_text(&host.version),
    }
}
