//! Hot state as the database sees it now and then: who is connected where (latencies and endpoints have files of their own).
//! It lives in the controller's memory; these batches are for people and for other controllers, and nobody follows them.

use crate::entity::{node, node_server_connection, server};
use crate::error::StoreError;
use crate::store::{Store, Writer, id_to_db, to_db};
use edgelink_model::{NodeId, ServerId, UnixMillis};
use sea_orm::sea_query::OnConflict;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QuerySelect};
use std::collections::BTreeSet;

/// Rows per statement: below what any SQLite takes as parameters.
const ROWS: usize = 200;
impl Store {
    /// Writes who is connected where at `now`; whatever else is there is forgotten. Nodes and servers that are gone are
    /// skipped.
    pub async fn touch_connections(&self, batch: &[(NodeId, ServerId)], now: UnixMillis) -> Result<(), StoreError> {
        let now = to_db(now)?;
        let writer = self.write().await?;
        let (nodes, servers) = (node_ids(&writer).await?, server_ids(&writer).await?);
        let mut rows = Vec::with_capacity(batch.len());
        for (node, server) in batch {
            let (Ok(node_id), Ok(server_id)) = (id_to_db(node.0), id_to_db(server.0)) else { continue };
            if nodes.contains(&node_id) && servers.contains(&server_id) {
                rows.push(node_server_connection::ActiveModel {
                    node_id: Set(node_id),
                    server_id: Set(server_id),
                    connected_at: Set(now),
                    last_ping: Set(Some(now)),
                });
            }
        }
        use node_server_connection::Column::{LastPing, NodeId as Node, ServerId as Server};
        let over = OnConflict::columns([Node, Server]).update_column(LastPing).to_owned();
        for rows in rows.chunks(ROWS) {
            node_server_connection::Entity::insert_many(rows.to_vec())
                .on_conflict(over.clone())
                .exec_without_returning(&writer.txn)
                .await?;
        }
        node_server_connection::Entity::delete_many().filter(LastPing.ne(now)).exec(&writer.txn).await?;
        writer.commit().await?;
        Ok(())
    }

    /// Which nodes are connected to which servers, and since when (Unix ms).
    pub async fn connections(&self) -> Result<Vec<(NodeId, ServerId, UnixMillis)>, StoreError> {
        let rows = node_server_connection::Entity::find().all(&self.db).await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            found.push((
                NodeId(crate::store::id_from_db(row.node_id)?),
                ServerId(crate::store::id_from_db(row.server_id)?),
                crate::store::from_db(row.connected_at)?,
            ));
        }
        found.sort();
        Ok(found)
    }
}

async fn node_ids(writer: &Writer) -> Result<BTreeSet<i32>, StoreError> {
    let ids: Vec<i32> =
        node::Entity::find().select_only().column(node::Column::Id).into_tuple().all(&writer.txn).await?;
    Ok(ids.into_iter().collect())
}

async fn server_ids(writer: &Writer) -> Result<BTreeSet<i32>, StoreError> {
    let ids: Vec<i32> =
        server::Entity::find().select_only().column(server::Column::Id).into_tuple().all(&writer.txn).await?;
    Ok(ids.into_iter().collect())
}
