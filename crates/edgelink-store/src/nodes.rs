//! Nodes, after they have knocked; the knock itself is in `enroll`.

use crate::convert;
use crate::entity::{network, node};
use crate::error::StoreError;
use crate::names;
use crate::networks;
use crate::revocations;
use crate::store::{Store, Subject, Writer, from_db, id_to_db, to_db};
use edgelink_model::ipam;
use edgelink_model::records::{NodeKeyRecord, NodeRecord};
use edgelink_model::{NetworkId, NodeId, UnixMillis};
use ipnet::Ipv4Net;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, ExprTrait, IntoActiveModel, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// `online` is believed this long after `last_seen`: a controller that died cannot take it back. A living controller
/// touches its connected nodes at least every third of it.
pub const ONLINE_FRESHNESS: Duration = Duration::from_secs(180);
/// Below what any SQLite takes as parameters.
const IDS_PER_STATEMENT: usize = 500;

/// A node with what only people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDetails {
    /// What the control core knows too.
    pub record: NodeRecord,
    /// Connected to the controller, as far as is known.
    pub online: bool,
    /// One of the four names of specification §6.1, once detected.
    pub nat_type: Option<String>,
    /// Its X25519 key in lower-case hex.
    pub node_key_pub: Option<String>,
    /// When that key was announced, Unix ms.
    pub node_key_updated_at: Option<UnixMillis>,
    /// Unix ms.
    pub created_at: UnixMillis,
    /// Unix ms.
    pub updated_at: UnixMillis,
}

/// Which nodes to list; the default is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeFilter {
    /// Only this network's.
    pub network: Option<NetworkId>,
    /// Only those online.
    pub online: bool,
}

/// Presence of one node, for the batched write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTouch {
    /// The node.
    pub id: NodeId,
    /// Connected?
    pub online: bool,
    /// Unix ms.
    pub last_seen: UnixMillis,
}

impl Store {
    /// Nodes by id.
    pub async fn nodes(&self, filter: NodeFilter) -> Result<Vec<NodeDetails>, StoreError> {
        let now = self.now();
        let mut query = node::Entity::find().order_by_asc(node::Column::Id);
        if let Some(network) = filter.network {
            query = query.filter(node::Column::NetworkId.eq(id_to_db(network.0)?));
        }
        if filter.online {
            query = query.filter(is_online(now));
        }
        query.all(&self.db).await?.into_iter().map(|row| details(row, now)).collect()
    }

    /// One node.
    pub async fn node(&self, id: NodeId) -> Result<NodeDetails, StoreError> {
        details(find(&self.read().await?, id).await?, self.now())
    }

    /// The node that `id_or_name` means, in `network` if given; an id wins over a name.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when nodes of several networks have the name; it lists their ids.
    pub async fn find_node(&self, id_or_name: &str, network: Option<NetworkId>) -> Result<NodeDetails, StoreError> {
        let txn = self.read().await?;
        let within = network.map(|n| id_to_db(n.0)).transpose()?;
        let select = || match within {
            Some(network) => node::Entity::find().filter(node::Column::NetworkId.eq(network)),
            None => node::Entity::find(),
        };
        if let Ok(id) = id_or_name.parse::<i32>()
            && let Some(row) = select().filter(node::Column::Id.eq(id)).one(&txn).await?
        {
            return details(row, self.now());
        }
        let mut rows =
            select().filter(node::Column::Name.eq(id_or_name)).order_by_asc(node::Column::Id).all(&txn).await?;
        if rows.len() > 1 {
            let ids: Vec<_> = rows.iter().map(|row| row.id.to_string()).collect();
            return Err(StoreError::Conflict(format!(
                "several networks have a node named {id_or_name} (ids {}); give the id",
                ids.join(", ")
            )));
        }
        match rows.pop() {
            Some(row) => details(row, self.now()),
            None => Err(StoreError::NotFound { what: "node", key: id_or_name.to_owned() }),
        }
    }

    /// Lets a node join, with an address of its network. Doing it again changes nothing.
    pub async fn authorize_node(&self, id: NodeId) -> Result<NodeRecord, StoreError> {
        let mut writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        if row.authorized {
            return convert::node(row);
        }
        let network = networks::find(&writer.txn, NetworkId(crate::store::id_from_db(row.network_id)?)).await?;
        let virtual_ip = match &row.virtual_ip {
            Some(ip) => ip.clone(),
            None => free_address(&writer.txn, &network).await?,
        };
        let virtual_ip6 = address6(&network, row.id)?;
        let mut change = row.into_active_model();
        change.authorized = Set(true);
        change.deauthorized_at = Set(None);
        change.virtual_ip = Set(Some(virtual_ip));
        change.virtual_ip6 = Set(virtual_ip6);
        let record = save(&mut writer, change).await?;
        writer.audit("node.authorize", Some(("node", id.0)), None).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Bars a node and voids its tokens. It keeps its address, for the day it may join again. Auth keys made before
    /// this do not let it in. Doing it again voids its tokens again.
    pub async fn deauthorize_node(&self, id: NodeId) -> Result<NodeRecord, StoreError> {
        let mut writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        let mut change = row.into_active_model();
        change.authorized = Set(false);
        change.deauthorized_at = Set(Some(to_db(writer.now)?));
        let record = save(&mut writer, change).await?;
        revocations::node_wide(&mut writer, id, "deauthorized").await?;
        writer.audit("node.deauthorize", Some(("node", id.0)), None).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Forgets a node, frees its address and voids its tokens. It may knock again as a new node.
    pub async fn delete_node(&self, id: NodeId) -> Result<(), StoreError> {
        let mut writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        node::Entity::delete_by_id(row.id).exec(&writer.txn).await?;
        writer.log(&Subject::Node(id)).await?;
        revocations::node_wide(&mut writer, id, "deleted").await?;
        writer.audit("node.delete", Some(("node", id.0)), Some(row.name)).await?;
        writer.commit().await?;
        Ok(())
    }

    /// Renames a node; the name must be free in its network.
    pub async fn rename_node(&self, id: NodeId, name: &str) -> Result<NodeRecord, StoreError> {
        names::check("node", name)?;
        let mut writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        if row.name == name {
            return convert::node(row);
        }
        let same = node::Entity::find()
            .filter(node::Column::NetworkId.eq(row.network_id))
            .filter(node::Column::Name.eq(name))
            .filter(node::Column::Id.ne(row.id));
        if same.count(&writer.txn).await? > 0 {
            return Err(StoreError::Conflict(format!(
                "the network already has a node named {name}; choose another name"
            )));
        }
        let details = format!("{} → {name}", row.name);
        let mut change = row.into_active_model();
        change.name = Set(name.to_owned());
        let record = save(&mut writer, change).await?;
        writer.audit("node.rename", Some(("node", id.0)), Some(details)).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Stores the key statement that a node announced. The caller has verified its signature and its ids.
    ///
    /// # Errors
    /// [`StoreError::StaleKey`] when its seq is below the stored one's, or equal with other bytes. The same statement
    /// again is fine and writes nothing.
    pub async fn set_node_key(&self, id: NodeId, key: NodeKeyRecord) -> Result<(), StoreError> {
        let mut writer = self.write().await?;
        set_key_in(&mut writer, id, &key).await?;
        writer.commit().await?;
        Ok(())
    }

    /// Writes a batch of presence. Not a change that anybody follows; nodes that are gone are skipped.
    pub async fn touch_nodes(&self, batch: &[NodeTouch]) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        // One statement for all that say the same, as a batch of one second does.
        let mut alike: BTreeMap<(bool, UnixMillis), Vec<i32>> = BTreeMap::new();
        for touch in batch {
            let Ok(id) = id_to_db(touch.id.0) else { continue };
            alike.entry((touch.online, touch.last_seen)).or_default().push(id);
        }
        let writer = self.write().await?;
        for ((online, last_seen), ids) in alike {
            for ids in ids.chunks(IDS_PER_STATEMENT) {
                node::Entity::update_many()
                    .col_expr(node::Column::Online, Expr::value(online))
                    .col_expr(node::Column::LastSeen, Expr::value(to_db(last_seen)?))
                    .filter(node::Column::Id.is_in(ids.iter().copied()))
                    .exec(&writer.txn)
                    .await?;
            }
        }
        writer.commit().await?;
        Ok(())
    }

    /// Forgets who was online: a controller that starts knows nothing yet.
    pub async fn reset_presence(&self) -> Result<(), StoreError> {
        let writer = self.write().await?;
        node::Entity::update_many()
            .col_expr(node::Column::Online, Expr::value(false))
            .filter(node::Column::Online.eq(true))
            .exec(&writer.txn)
            .await?;
        writer.commit().await?;
        Ok(())
    }
}

/// The rows that are online at `now`.
pub(crate) fn is_online(now: UnixMillis) -> Expr {
    node::Column::Online.eq(true).and(node::Column::LastSeen.gt(oldest_fresh(now)))
}

fn oldest_fresh(now: UnixMillis) -> i64 {
    i64::try_from(now.saturating_sub(ONLINE_FRESHNESS.as_millis() as u64)).unwrap_or(i64::MAX)
}

pub(crate) async fn find(txn: &DatabaseTransaction, id: NodeId) -> Result<node::Model, StoreError> {
    let missing = || StoreError::NotFound { what: "node", key: id.to_string() };
    let key = id_to_db(id.0).map_err(|_| missing())?;
    node::Entity::find_by_id(key).one(txn).await?.ok_or_else(missing)
}

/// Writes a changed node and tells the followers.
pub(crate) async fn save(writer: &mut Writer, mut change: node::ActiveModel) -> Result<NodeRecord, StoreError> {
    change.updated_at = Set(to_db(writer.now)?);
    let record = convert::node(node::Entity::update(change).exec(&writer.txn).await?)?;
    writer.log(&Subject::Node(record.id)).await?;
    Ok(record)
}

/// One key statement of a transaction; one that is refused leaves nothing in it. See [`Store::set_node_key`].
pub(crate) async fn set_key_in(writer: &mut Writer, id: NodeId, key: &NodeKeyRecord) -> Result<(), StoreError> {
    let Some(node_pub) = key.statement.get(60..92).filter(|_| key.statement.len() == 120) else {
        return Err(StoreError::Invalid("a key statement has 120 bytes".into()));
    };
    if key.signature.len() != 64 {
        return Err(StoreError::Invalid("a key statement's signature has 64 bytes".into()));
    }
    let seq = to_db(key.seq)?;
    let row = find(&writer.txn, id).await?;
    if let Some(stored) = row.node_key_seq.map(from_db).transpose()? {
        if stored == key.seq && row.node_key_statement.as_deref() == Some(&key.statement[..]) {
            return Ok(());
        }
        if key.seq <= stored {
            return Err(StoreError::StaleKey { stored, given: key.seq });
        }
    }
    let mut change = row.into_active_model();
    change.node_key_pub = Set(Some(convert::hex(node_pub)));
    change.node_key_updated_at = Set(Some(to_db(writer.now)?));
    change.node_key_seq = Set(Some(seq));
    change.node_key_statement = Set(Some(key.statement.clone()));
    change.node_key_signature = Set(Some(key.signature.clone()));
    save(writer, change).await?;
    Ok(())
}

/// The lowest free address of `network`, as the transaction sees it.
pub(crate) async fn free_address(txn: &DatabaseTransaction, network: &network::Model) -> Result<String, StoreError> {
    let subnet = subnet(network)?;
    match ipam::allocate(subnet, &taken_addresses(txn, network).await?) {
        Some(address) => Ok(address.to_string()),
        None => Err(StoreError::PoolExhausted(subnet.to_string())),
    }
}

pub(crate) fn subnet(network: &network::Model) -> Result<Ipv4Net, StoreError> {
    let corrupt = |_| StoreError::Corrupt(format!("networks.subnet of row {} is {:?}", network.id, network.subnet));
    network.subnet.parse().map_err(corrupt)
}

/// Every overlay address of `network` that a node has.
pub(crate) async fn taken_addresses(
    txn: &DatabaseTransaction,
    network: &network::Model,
) -> Result<BTreeSet<Ipv4Addr>, StoreError> {
    let taken: Vec<Option<String>> = node::Entity::find()
        .select_only()
        .column(node::Column::VirtualIp)
        .filter(node::Column::NetworkId.eq(network.id))
        .filter(node::Column::VirtualIp.is_not_null())
        .into_tuple()
        .all(txn)
        .await?;
    let corrupt = |ip: &String| StoreError::Corrupt(format!("nodes.virtual_ip holds {ip:?}"));
    taken.into_iter().flatten().map(|ip| ip.parse().map_err(|_| corrupt(&ip))).collect()
}

/// The node's address in the network's IPv6 prefix, if it has one.
pub(crate) fn address6(network: &network::Model, node: i32) -> Result<Option<String>, StoreError> {
    let Some(subnet) = &network.subnet6 else { return Ok(None) };
    let subnet = subnet
        .parse()
        .map_err(|_| StoreError::Corrupt(format!("networks.subnet6 of row {} is {subnet:?}", network.id)))?;
    Ok(Some(networks::address6(subnet, crate::store::id_from_db(node)?).to_string()))
}

pub(crate) fn details(row: node::Model, now: UnixMillis) -> Result<NodeDetails, StoreError> {
    Ok(NodeDetails {
        online: row.online && row.last_seen.is_some_and(|seen| seen > oldest_fresh(now)),
        nat_type: row.nat_type.clone(),
        node_key_pub: row.node_key_pub.clone(),
        node_key_updated_at: row.node_key_updated_at.map(from_db).transpose()?,
        created_at: from_db(row.created_at)?,
        updated_at: from_db(row.updated_at)?,
        record: convert::node(row)?,
    })
}
