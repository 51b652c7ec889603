//! Subnet routes behind nodes (specification §7.1).

use crate::convert;
use crate::entity::{network, node, node_route};
use crate::error::StoreError;
use crate::networks;
use crate::nodes;
use crate::store::{Store, Subject, id_from_db, id_to_db, to_db};
use edgelink_model::cidr;
use edgelink_model::records::{AnnouncedRoute, RouteRecord};
use edgelink_model::{NetworkId, NodeId};
use ipnet::IpNet;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder};
use std::collections::BTreeMap;

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
        if new.weight == 0 {
            return Err(StoreError::Invalid("a route's weight is 1 to 65535".into()));
        }
        let mut writer = self.write().await?;
        let node = nodes::find(&writer.txn, new.node_id).await?;
        let (_, overlay) = network_of(&writer.txn, &node).await?;
        cidr::check(new.cidr, &overlay).map_err(|bad| StoreError::Invalid(bad.to_string()))?;
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
            announced: Set(false),
            snat: Set(true),
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

    /// Takes over what a node announces (`advertise_routes`), replacing what it announced before.
    ///
    /// A new route waits for [`Store::set_route_enabled`] unless `approve` (`security.require_route_approval: false`), its
    /// network or the auth key that its node came with says otherwise. A route that an administrator made stays as
    /// the administrator made it, except for how the gateway serves it (`snat`). What the node announces no more is
    /// forgotten, with its approval. Prefixes that cannot be routes are left out. Nothing is written when nothing changes.
    pub async fn announce_routes(
        &self,
        node_id: NodeId,
        announced: &[AnnouncedRoute],
        approve: bool,
    ) -> Result<(), StoreError> {
        let mut writer = self.write().await?;
        let node = nodes::find(&writer.txn, node_id).await?;
        let (network, overlay) = network_of(&writer.txn, &node).await?;
        let approve = approve || network.approve_routes || node.approve_routes;
        let mut wanted: BTreeMap<String, &AnnouncedRoute> = announced
            .iter()
            .filter(|route| route.weight > 0 && cidr::check(route.cidr, &overlay).is_ok())
            .take(cidr::MAX_ANNOUNCED)
            .map(|route| (route.cidr.to_string(), route))
            .collect();
        let present =
            node_route::Entity::find().filter(node_route::Column::NodeId.eq(node.id)).all(&writer.txn).await?;
        let mut changed = Vec::new();
        for row in present {
            let Some(route) = wanted.remove(&row.cidr) else {
                if row.announced {
                    changed.push(format!("-{}", row.cidr));
                    node_route::Entity::delete_by_id(row.id).exec(&writer.txn).await?;
                }
                continue;
            };
            let cidr = row.cidr.clone();
            let own_values = row.announced;
            let before = row.clone();
            let mut change = row.into_active_model();
            if own_values && before.priority != i32::from(route.priority) {
                change.priority = Set(route.priority.into());
            }
            if own_values && before.weight != i32::from(route.weight) {
                change.weight = Set(route.weight.into());
            }
            if before.snat != route.snat {
                change.snat = Set(route.snat);
            }
            if sea_orm::ActiveModelTrait::is_changed(&change) {
                changed.push(format!("~{cidr}"));
                node_route::Entity::update(change).exec(&writer.txn).await?;
            }
        }
        for (cidr, route) in wanted {
            changed.push(format!("+{cidr}"));
            node_route::Entity::insert(node_route::ActiveModel {
                node_id: Set(node.id),
                cidr: Set(cidr),
                priority: Set(route.priority.into()),
                weight: Set(route.weight.into()),
                enabled: Set(approve),
                announced: Set(true),
                snat: Set(route.snat),
                created_at: Set(to_db(writer.now)?),
                ..Default::default()
            })
            .exec_without_returning(&writer.txn)
            .await?;
        }
        if changed.is_empty() {
            return Ok(());
        }
        writer.log(&Subject::Routes(node_id)).await?;
        writer.audit("route.announce", Some(("node", node_id.0)), Some(changed.join(" "))).await?;
        writer.commit().await?;
        Ok(())
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

/// The network of a node, and the overlay subnets that its routes must leave alone.
async fn network_of(
    txn: &sea_orm::DatabaseTransaction,
    node: &node::Model,
) -> Result<(network::Model, Vec<IpNet>), StoreError> {
    let network = networks::find(txn, NetworkId(id_from_db(node.network_id)?)).await?;
    let record = convert::network(network.clone())?;
    Ok((network, [Some(IpNet::V4(record.subnet)), record.subnet6.map(IpNet::V6)].into_iter().flatten().collect()))
}

pub(crate) async fn find(txn: &sea_orm::DatabaseTransaction, id: u32) -> Result<node_route::Model, StoreError> {
    let missing = || StoreError::NotFound { what: "route", key: id.to_string() };
    let key = id_to_db(id).map_err(|_| missing())?;
    node_route::Entity::find_by_id(key).one(txn).await?.ok_or_else(missing)
}
