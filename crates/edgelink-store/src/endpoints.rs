//! What nodes say of their NATs and endpoints (specification §6.2): for people, so it moves no configuration version.

use crate::convert;
use crate::entity::{node, node_endpoint};
use crate::error::StoreError;
use crate::store::{Store, id_to_db, to_db};
use edgelink_model::NodeId;
use edgelink_model::records::{EndpointRecord, NodeEndpoints};
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder};
use std::net::SocketAddr;

impl Store {
    /// Keeps what nodes said, all in one transaction; endpoints said before are replaced. Nodes that are gone are left
    /// out. Nothing goes to the change log.
    ///
    /// # Errors
    /// When the database does not answer; then nothing was kept.
    pub async fn set_endpoints(&self, told: &[NodeEndpoints]) -> Result<(), StoreError> {
        if told.is_empty() {
            return Ok(());
        }
        let writer = self.write().await?;
        for one in told {
            let Ok(id) = id_to_db(one.node.0) else { continue };
            if node::Entity::find_by_id(id).count(&writer.txn).await? == 0 {
                continue;
            }
            if let Some(nat_type) = &one.nat_type {
                node::Entity::update_many()
                    .col_expr(node::Column::NatType, Expr::value(nat_type.clone()))
                    .filter(node::Column::Id.eq(id))
                    .exec(&writer.txn)
                    .await?;
            }
            node_endpoint::Entity::delete_many().filter(node_endpoint::Column::NodeId.eq(id)).exec(&writer.txn).await?;
            let now = to_db(self.now())?;
            let row = |endpoint: &EndpointRecord| node_endpoint::ActiveModel {
                node_id: Set(id),
                kind: Set(endpoint.kind.clone()),
                ip: Set(endpoint.address.ip().to_string()),
                port: Set(endpoint.address.port().into()),
                priority: Set(endpoint.priority.into()),
                updated_at: Set(now),
                ..Default::default()
            };
            let rows: Vec<_> = one.endpoints.iter().map(row).collect();
            if !rows.is_empty() {
                node_endpoint::Entity::insert_many(rows).exec(&writer.txn).await?;
            }
        }
        writer.commit().await?;
        Ok(())
    }

    /// The endpoints that a node said last, best first.
    ///
    /// # Errors
    /// When the database does not answer or holds nonsense.
    pub async fn endpoints(&self, node: NodeId) -> Result<Vec<EndpointRecord>, StoreError> {
        let txn = self.read().await?;
        let rows = node_endpoint::Entity::find()
            .filter(node_endpoint::Column::NodeId.eq(id_to_db(node.0)?))
            .order_by_asc(node_endpoint::Column::Priority)
            .order_by_asc(node_endpoint::Column::Id)
            .all(&txn)
            .await?;
        rows.into_iter()
            .map(|row| {
                let ip = convert::parse("node_endpoints.ip", row.id, &row.ip)?;
                let narrow = |what, value: i32| convert::corrupt(what, row.id, &value.to_string());
                let port = u16::try_from(row.port).map_err(|_| narrow("node_endpoints.port", row.port))?;
                let priority =
                    u8::try_from(row.priority).map_err(|_| narrow("node_endpoints.priority", row.priority))?;
                Ok(EndpointRecord { kind: row.kind, address: SocketAddr::new(ip, port), priority })
            })
            .collect()
    }
}
