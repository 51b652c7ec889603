//! The reading end of the change log.

use crate::convert;
use crate::entity::{change_counter, change_log, network, node, node_route, revocation, server};
use crate::error::StoreError;
use crate::store::{Store, Subject, counter, from_db, id_to_db, to_db};
use edgelink_model::NodeId;
use edgelink_model::records::{Change, ChangeId, NodeRecord, Snapshot};
use sea_orm::sea_query::Expr;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder};
use std::collections::{BTreeMap, HashMap};

/// What happened after a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Apply all of `changes`, then go on from `version`.
    Some {
        /// The position that these changes lead to.
        version: ChangeId,
        /// One entry per thing that changed, with the newest change's id and the row as it is now.
        changes: Vec<(ChangeId, Change)>,
    },
    /// The position was pruned, or is not of this database: start again with [`Store::snapshot`].
    Resync,
}

impl Store {
    /// Everything the control core needs to start, at one moment.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let txn = self.read().await?;
        let now = to_db(self.now() / 1000)?;
        let (version, _) = counter(&txn).await?;
        let networks = network::Entity::find().order_by_asc(network::Column::Id).all(&txn).await?;
        let nodes = node::Entity::find().order_by_asc(node::Column::Id).all(&txn).await?;
        let routes = node_route::Entity::find().order_by_asc(node_route::Column::Id).all(&txn).await?;
        let servers = server::Entity::find().order_by_asc(server::Column::Id).all(&txn).await?;
        let revocations = revocation::Entity::find()
            .filter(revocation::Column::ExpiresAt.gt(now))
            .order_by_asc(revocation::Column::Jti)
            .all(&txn)
            .await?;
        Ok(Snapshot {
            version,
            networks: networks.into_iter().map(convert::network).collect::<Result<_, _>>()?,
            nodes: nodes.into_iter().map(convert::node).collect::<Result<_, _>>()?,
            routes: routes.into_iter().map(convert::route).collect::<Result<_, _>>()?,
            servers: servers.into_iter().map(convert::server).collect::<Result<_, _>>()?,
            revocations: revocations.into_iter().map(convert::revocation).collect::<Result<_, _>>()?,
        })
    }

    /// What any process committed after `position`; nothing new costs one look-up.
    ///
    /// Several changes of one thing come as one, with the row as it is now. The order is one in which every change can
    /// be applied as it comes: revocations, deletions of nodes, servers and networks, then networks, servers, nodes and
    /// routes as they are; ids therefore need not rise. Remember `version`, not the last id.
    pub async fn changes_after(&self, position: ChangeId) -> Result<Changes, StoreError> {
        let txn = self.read().await?;
        let (version, pruned) = counter(&txn).await?;
        if position == version {
            return Ok(Changes::Some { version, changes: Vec::new() });
        }
        if position < pruned || position > version {
            return Ok(Changes::Resync);
        }
        let log = change_log::Entity::find()
            .filter(change_log::Column::Id.gt(to_db(position)?))
            .order_by_asc(change_log::Column::Id)
            .all(&txn)
            .await?;
        let mut newest = BTreeMap::new();
        for row in log {
            if let Some(subject) = Subject::parse(&row.entity, &row.entity_key) {
                newest.insert(subject, from_db(row.id)?);
            }
        }
        let mut changes = Vec::with_capacity(newest.len());
        // Nodes change most, and many at once when they join.
        let mut nodes = read_nodes(&txn, newest.keys()).await?;
        for (subject, id) in newest {
            if let Subject::Node(node) = subject {
                changes.push((id, nodes.remove(&node).map_or(Change::NodeDeleted(node), Change::Node)));
                continue;
            }
            if let Some(change) = read_again(&txn, subject).await? {
                changes.push((id, change));
            }
        }
        changes.sort_by_key(|(id, change)| (rank(change), *id));
        Ok(Changes::Some { version, changes })
    }

    /// Forgets all but the newest `keep` changes; whoever is further behind must resync. Returns how many went.
    pub async fn prune_changes(&self, keep: u64) -> Result<u64, StoreError> {
        let writer = self.write().await?;
        let (version, pruned) = counter(&writer.txn).await?;
        let upto = version.saturating_sub(keep);
        if upto <= pruned {
            return Ok(0);
        }
        let gone = change_log::Entity::delete_many()
            .filter(change_log::Column::Id.lte(to_db(upto)?))
            .exec(&writer.txn)
            .await?
            .rows_affected;
        change_counter::Entity::update_many()
            .col_expr(change_counter::Column::Pruned, Expr::value(to_db(upto)?))
            .filter(change_counter::Column::Id.eq(1))
            .exec(&writer.txn)
            .await?;
        writer.commit().await?;
        Ok(gone)
    }
}

/// The nodes among `subjects` that exist.
async fn read_nodes(
    db: &impl ConnectionTrait,
    subjects: impl Iterator<Item = &Subject>,
) -> Result<HashMap<NodeId, NodeRecord>, StoreError> {
    /// Far below the number of parameters that any database takes.
    const AT_ONCE: usize = 500;
    let of_node = |subject: &Subject| match subject {
        Subject::Node(id) => Some(id_to_db(id.0)),
        _ => None,
    };
    let ids = subjects.filter_map(of_node).collect::<Result<Vec<_>, _>>()?;
    let mut found = HashMap::with_capacity(ids.len());
    for ids in ids.chunks(AT_ONCE) {
        for row in node::Entity::find().filter(node::Column::Id.is_in(ids.iter().copied())).all(db).await? {
            let record = convert::node(row)?;
            found.insert(record.id, record);
        }
    }
    Ok(found)
}

fn rank(change: &Change) -> u8 {
    match change {
        Change::Revoked(_) => 0,
        Change::NodeDeleted(_) => 1,
        Change::ServerDeleted(_) => 2,
        Change::NetworkDeleted(_) => 3,
        Change::Network(_) => 4,
        Change::Server(_) => 5,
        Change::Node(_) => 6,
        Change::Routes(..) => 7,
        Change::Setting(_) => 8,
    }
}

/// `subject` as it is now; `None` when that is not worth a word (an expired revocation, routes of a deleted node).
async fn read_again(db: &impl ConnectionTrait, subject: Subject) -> Result<Option<Change>, StoreError> {
    Ok(match subject {
        Subject::Network(id) => Some(match network::Entity::find_by_id(id_to_db(id.0)?).one(db).await? {
            Some(row) => Change::Network(convert::network(row)?),
            None => Change::NetworkDeleted(id),
        }),
        Subject::Node(id) => Some(match node::Entity::find_by_id(id_to_db(id.0)?).one(db).await? {
            Some(row) => Change::Node(convert::node(row)?),
            None => Change::NodeDeleted(id),
        }),
        Subject::Server(id) => Some(match server::Entity::find_by_id(id_to_db(id.0)?).one(db).await? {
            Some(row) => Change::Server(convert::server(row)?),
            None => Change::ServerDeleted(id),
        }),
        Subject::Routes(id) => {
            let key = id_to_db(id.0)?;
            if node::Entity::find_by_id(key).one(db).await?.is_none() {
                return Ok(None);
            }
            let rows = node_route::Entity::find()
                .filter(node_route::Column::NodeId.eq(key))
                .order_by_asc(node_route::Column::Id)
                .all(db)
                .await?;
            Some(Change::Routes(id, rows.into_iter().map(convert::route).collect::<Result<_, _>>()?))
        }
        Subject::Setting(key) => Some(Change::Setting(key)),
        Subject::Revocation(jti) => match revocation::Entity::find_by_id(jti).one(db).await? {
            Some(row) => Some(Change::Revoked(convert::revocation(row)?)),
            None => None,
        },
    })
}
