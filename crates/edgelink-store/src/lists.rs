//! Filtered lists, page by page.

use crate::auth_keys::{self, AuthKeyRecord};
use crate::convert;
use crate::entity::{auth_key, network, node, node_route, revocation, server};
use crate::error::StoreError;
use crate::networks::{self, NetworkDetails};
use crate::nodes::{self, NodeDetails};
use crate::page::{self, Listed, Page};
use crate::revocations::{self, RevocationDetails};
use crate::servers::{self, ServerDetails};
use crate::store::{Store, from_db, id_to_db, to_db};
use edgelink_model::records::RouteRecord;
use edgelink_model::{NetworkId, NodeId, UnixMillis};
use sea_orm::sea_query::Query;
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, ExprTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect,
};
use std::collections::BTreeMap;

/// Which networks; the default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFilter {
    /// With this name.
    pub name: Option<String>,
}

/// Which nodes; the default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeQuery {
    /// Of this network.
    pub network: Option<NetworkId>,
    /// With this name.
    pub name: Option<String>,
    /// Connected, or not.
    pub online: Option<bool>,
    /// May join, or may not.
    pub authorized: Option<bool>,
}

/// Which routes; the default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Of this network's nodes.
    pub network: Option<NetworkId>,
    /// Of this node.
    pub node: Option<NodeId>,
    /// To this prefix, in canonical form.
    pub cidr: Option<String>,
    /// Approved, or not.
    pub enabled: Option<bool>,
}

/// A route with what only people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteDetails {
    /// What the control core knows too.
    pub record: RouteRecord,
    /// The gateway's network.
    pub network_id: NetworkId,
    /// The gateway's name.
    pub node_name: String,
    /// Whether the gateway is connected.
    pub node_online: bool,
    /// Unix ms.
    pub created_at: UnixMillis,
}

/// Which servers; the default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFilter {
    /// With this name.
    pub name: Option<String>,
    /// Enabled, or not.
    pub enabled: Option<bool>,
    /// In this region.
    pub region: Option<String>,
}

/// Which auth keys; the default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthKeyFilter {
    /// For this network.
    pub network: Option<NetworkId>,
}

impl Store {
    /// Networks by id.
    pub async fn list_networks(
        &self,
        filter: &NetworkFilter,
        page: Page,
    ) -> Result<Listed<NetworkDetails>, StoreError> {
        let txn = self.read().await?;
        let mut query = network::Entity::find();
        if let Some(name) = &filter.name {
            query = query.filter(network::Column::Name.eq(name.as_str()));
        }
        let rows = page::list(&txn, query, network::Column::Id, false, page).await?;
        let mut items = Vec::with_capacity(rows.items.len());
        for row in rows.items {
            items.push(networks::details(row, &txn).await?);
        }
        Ok(Listed { items, total: rows.total })
    }

    /// Nodes by id.
    pub async fn list_nodes(&self, filter: &NodeQuery, page: Page) -> Result<Listed<NodeDetails>, StoreError> {
        let txn = self.read().await?;
        let now = self.now();
        let mut query = node::Entity::find();
        if let Some(network) = filter.network {
            query = query.filter(node::Column::NetworkId.eq(db_id(network.0)));
        }
        if let Some(name) = &filter.name {
            query = query.filter(node::Column::Name.eq(name.as_str()));
        }
        match filter.online {
            Some(true) => query = query.filter(nodes::is_online(now)),
            // A NULL `last_seen` makes the condition NULL, which is not online either.
            Some(false) => {
                query = query.filter(node::Column::LastSeen.is_null().or(nodes::is_online(now).not()));
            }
            None => {}
        }
        if let Some(authorized) = filter.authorized {
            query = query.filter(node::Column::Authorized.eq(authorized));
        }
        page::list(&txn, query, node::Column::Id, false, page).await?.try_map(|row| nodes::details(row, now))
    }

    /// Routes by id.
    pub async fn list_routes(&self, filter: &RouteFilter, page: Page) -> Result<Listed<RouteDetails>, StoreError> {
        let txn = self.read().await?;
        let mut query = node_route::Entity::find();
        if let Some(node) = filter.node {
            query = query.filter(node_route::Column::NodeId.eq(db_id(node.0)));
        }
        if let Some(network) = filter.network {
            let members = Query::select()
                .column(node::Column::Id)
                .from(node::Entity)
                .and_where(node::Column::NetworkId.eq(db_id(network.0)))
                .take();
            query = query.filter(node_route::Column::NodeId.in_subquery(members));
        }
        if let Some(cidr) = &filter.cidr {
            query = query.filter(node_route::Column::Cidr.eq(cidr.as_str()));
        }
        if let Some(enabled) = filter.enabled {
            query = query.filter(node_route::Column::Enabled.eq(enabled));
        }
        let rows = page::list(&txn, query, node_route::Column::Id, false, page).await?;
        let total = rows.total;
        Ok(Listed { items: self.with_gateways(&txn, rows.items).await?, total })
    }

    /// One route.
    pub async fn route(&self, id: u32) -> Result<RouteDetails, StoreError> {
        let txn = self.read().await?;
        let row = crate::routes::find(&txn, id).await?;
        let missing = || StoreError::NotFound { what: "route", key: id.to_string() };
        self.with_gateways(&txn, vec![row]).await?.pop().ok_or_else(missing)
    }

    /// Servers by id.
    pub async fn list_servers(&self, filter: &ServerFilter, page: Page) -> Result<Listed<ServerDetails>, StoreError> {
        let txn = self.read().await?;
        let now = self.now();
        let mut query = server::Entity::find();
        if let Some(name) = &filter.name {
            query = query.filter(server::Column::Name.eq(name.as_str()));
        }
        if let Some(enabled) = filter.enabled {
            query = query.filter(server::Column::Enabled.eq(enabled));
        }
        if let Some(region) = &filter.region {
            query = query.filter(server::Column::Region.eq(region.as_str()));
        }
        page::list(&txn, query, server::Column::Id, false, page).await?.try_map(|row| servers::details(row, now))
    }

    /// Auth keys by id.
    pub async fn list_auth_keys(
        &self,
        filter: &AuthKeyFilter,
        page: Page,
    ) -> Result<Listed<AuthKeyRecord>, StoreError> {
        let txn = self.read().await?;
        let mut query = auth_key::Entity::find();
        if let Some(network) = filter.network {
            query = query.filter(auth_key::Column::NetworkId.eq(db_id(network.0)));
        }
        page::list(&txn, query, auth_key::Column::Id, false, page).await?.try_map(auth_keys::record)
    }

    /// Revocations that have not expired, oldest first, `limit` of them after the first `offset`; those of one node, or
    /// all.
    pub async fn list_revocations(
        &self,
        node: Option<NodeId>,
        offset: u64,
        limit: Option<u64>,
    ) -> Result<Listed<RevocationDetails>, StoreError> {
        let txn = self.read().await?;
        let mut query = revocation::Entity::find().filter(revocation::Column::ExpiresAt.gt(to_db(self.now() / 1000)?));
        if let Some(node) = node {
            query = query.filter(revocation::Column::NodeId.eq(db_id(node.0)));
        }
        let total = query.clone().count(&txn).await?;
        let mut query = query
            .order_by_asc(revocation::Column::CreatedAt)
            .order_by_asc(revocation::Column::Jti)
            // Neither database takes an offset without a limit.
            .limit(limit.unwrap_or(i64::MAX as u64));
        if offset > 0 {
            query = query.offset(Ord::min(offset, i64::MAX as u64));
        }
        let items = query.all(&txn).await?.into_iter().map(revocations::details).collect::<Result<_, _>>()?;
        Ok(Listed { items, total })
    }

    async fn with_gateways(
        &self,
        txn: &DatabaseTransaction,
        rows: Vec<node_route::Model>,
    ) -> Result<Vec<RouteDetails>, StoreError> {
        let now = self.now();
        let mut gateways = BTreeMap::new();
        let mut ids: Vec<i32> = rows.iter().map(|row| row.node_id).collect();
        ids.sort_unstable();
        ids.dedup();
        // Both databases limit how many values one statement binds.
        for ids in ids.chunks(500) {
            let found = node::Entity::find().filter(node::Column::Id.is_in(ids.iter().copied())).all(txn).await?;
            for row in found {
                gateways.insert(row.id, nodes::details(row, now)?);
            }
        }
        let mut routes = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(gateway) = gateways.get(&row.node_id) else {
                return Err(StoreError::Corrupt(format!("node_routes.node_id of row {} is {}", row.id, row.node_id)));
            };
            routes.push(RouteDetails {
                network_id: gateway.record.network_id,
                node_name: gateway.record.name.clone(),
                node_online: gateway.online,
                created_at: from_db(row.created_at)?,
                record: convert::route(row)?,
            });
        }
        Ok(routes)
    }
}

/// As the column has it; ids beyond its range were never handed out and match nothing.
fn db_id(id: u32) -> i32 {
    id_to_db(id).unwrap_or(-1)
}
