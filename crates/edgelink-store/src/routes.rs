//! Subnet routes behind nodes (specification §7.1).

use crate::convert;
use crate::entity::node_route;
use crate::error::StoreError;
use crate::nodes;
use crate::store::{Store, Subject, id_to_db, to_db};
use edgelink_model::NodeId;
use edgelink_model::records::RouteRecord;
use ipnet::IpNet;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder};

/// A route to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRoute {
    /// The gateway.
    pub node_id: NodeId,
    /// Destination prefix without host bits; once per node.
    pub cidr: IpNet,
    /// 0–65535, higher wins.
    pub priority: u16,
    /// 1–65535, share among equal priorities.
    pub weight: u16,
    /// Whether it is approved.
    pub enabled: bool,
}

impl Store {
    /// All routes by id.
    pub async fn routes(&self) -> Result<Vec<RouteRecord>, StoreError> {
        let rows = node_route::Entity::find().order_by_asc(node_route::Column::Id).all(&self.db).await?;
        rows.into_iter().map(convert::route).collect()
    }

    /// Adds a route.
    pub async fn add_route(&self, new: NewRoute) -> Result<RouteRecord, StoreError> {
        if new.cidr.trunc() != new.cidr {
            return Err(StoreError::Invalid(format!(
                "the route {} has host bits set; did you mean {}?",
                new.cidr,
                new.cidr.trunc()
            )));
        }
        if new.weight == 0 {
            return Err(StoreError::Invalid("a route's weight is 1 to 65535".into()));
        }
        let mut writer = self.write().await?;
        let node = nodes::find(&writer.txn, new.node_id).await?;
        let cidr = new.cidr.to_string();
        let same = node_route::Entity::find()
            .filter(node_route::Column::NodeId.eq(node.id))
            .filter(node_route::Column::Cidr.eq(cidr.as_str()));
        if same.count(&writer.txn).await? > 0 {
            return Err(StoreError::Conflict(format!("node {} already has a route to {cidr}", node.name)));
        }
        let row = node_route::Entity::insert(node_route::ActiveModel {
            node_id: Set(node.id),
            cidr: Set(cidr),
            priority: Set(new.priority.into()),
            weight: Set(new.weight.into()),
            enabled: Set(new.enabled),
            created_at: Set(to_db(writer.now)?),
            ..Default::default()
        })
        .exec_with_returning(&writer.txn)
        .await?;
        let record = convert::route(row)?;
        writer.log(&Subject::Routes(new.node_id)).await?;
        writer
            .audit("route.add", Some(("route", record.id)), Some(format!("{} via node {}", record.cidr, node.id)))
            .await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Approves a route or withdraws it.
    pub async fn set_route_enabled(&self, id: u32, enabled: bool) -> Result<RouteRecord, StoreError> {
        let mut writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        if row.enabled == enabled {
            return convert::route(row);
        }
        let mut change = row.into_active_model();
        change.enabled = Set(enabled);
        let record = convert::route(node_route::Entity::update(change).exec(&writer.txn).await?)?;
        writer.log(&Subject::Routes(record.node_id)).await?;
        writer.audit(if enabled { "route.enable" } else { "route.disable" }, Some(("route", id)), None).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Deletes a route.
    pub async fn delete_route(&self, id: u32) -> Result<(), StoreError> {
        let mut writer = self.write().await?;
        let record = convert::route(find(&writer.txn, id).await?)?;
        node_route::Entity::delete_by_id(id_to_db(id)?).exec(&writer.txn).await?;
        writer.log(&Subject::Routes(record.node_id)).await?;
        writer.audit("route.delete", Some(("route", id)), Some(record.cidr.to_string())).await?;
        writer.commit().await?;
        Ok(())
    }
}

pub(crate) async fn find(txn: &sea_orm::DatabaseTransaction, id: u32) -> Result<node_route::Model, StoreError> {
    let missing = || StoreError::NotFound { what: "route", key: id.to_string() };
    let key = id_to_db(id).map_err(|_| missing())?;
    node_route::Entity::find_by_id(key).one(txn).await?.ok_or_else(missing)
}
