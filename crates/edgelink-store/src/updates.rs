//! Partial updates: what is not given stays. Each takes a `check` that sees the row inside the transaction and may
//! refuse ([`StoreError::Stale`]), so that nobody overwrites what he has not seen.

use crate::convert;
use crate::entity::{network, node, node_route, server};
use crate::error::StoreError;
use crate::lists::RouteDetails;
use crate::names;
use crate::networks::{self, NetworkDetails};
use crate::nodes::{self, NodeDetails};
use crate::routes;
use crate::servers::{self, ServerDetails};
use crate::store::{Store, Subject, Writer, id_to_db, to_db};
use edgelink_model::records::{RouteRecord, ServerKind};
use edgelink_model::{NetworkId, NodeId, ServerId};
use ipnet::Ipv4Net;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter};
use std::net::{IpAddr, Ipv4Addr};

/// What to change of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkChange {
    /// Another name.
    pub name: Option<String>,
    /// Another prefix; every address that a node has must be one of its hosts.
    pub subnet: Option<Ipv4Net>,
    /// Another text.
    pub description: Option<String>,
}

/// What to change of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteChange {
    /// 0–65535, higher wins.
    pub priority: Option<u16>,
    /// 1–65535, share among equal priorities.
    pub weight: Option<u16>,
    /// Approved?
    pub enabled: Option<bool>,
}

/// What to change of a server. The inner `None` of an address or URL takes it away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerChange {
    /// Another name.
    pub name: Option<String>,
    /// WSS URL of `/ws/data`.
    pub url: Option<Option<String>>,
    /// Free text.
    pub region: Option<String>,
    /// Relays packets?
    pub relay: Option<bool>,
    /// Answers STUN?
    pub stun: Option<bool>,
    /// First STUN address.
    pub stun_ip: Option<Option<IpAddr>>,
    /// Second STUN address.
    pub stun_ip2: Option<Option<IpAddr>>,
    /// STUN port.
    pub stun_port: Option<u16>,
    /// May nodes use it?
    pub enabled: Option<bool>,
}

impl Store {
    /// Changes a network.
    pub async fn update_network(
        &self,
        id: NetworkId,
        change: NetworkChange,
        check: impl FnOnce(&NetworkDetails) -> bool + Send,
    ) -> Result<NetworkDetails, StoreError> {
        if let Some(name) = &change.name {
            names::check("network", name)?;
        }
        if let Some(subnet) = change.subnet {
            networks::check_subnet(subnet)?;
        }
        if change.description.as_ref().is_some_and(|text| text.chars().count() > 1024) {
            return Err(StoreError::Invalid("the description is longer than 1024 characters".into()));
        }
        let mut writer = self.write().await?;
        let row = networks::find(&writer.txn, id).await?;
        let before = networks::details(row.clone(), &writer.txn).await?;
        if !check(&before) {
            return Err(StoreError::Stale);
        }
        let mut details = Vec::new();
        let mut active = row.into_active_model();
        if let Some(name) = change.name.filter(|name| *name != before.record.name) {
            let same = network::Entity::find()
                .filter(network::Column::Name.eq(name.as_str()))
                .filter(network::Column::Id.ne(id_to_db(id.0)?));
            if same.count(&writer.txn).await? > 0 {
                return Err(StoreError::Conflict(format!(
                    "there is already a network named {name}; choose another name"
                )));
            }
            details.push(format!("{} → {name}", before.record.name));
            active.name = Set(name);
        }
        if let Some(subnet) = change.subnet.filter(|subnet| *subnet != before.record.subnet) {
            refuse_strangers(&writer, id, subnet).await?;
            details.push(format!("{} → {subnet}", before.record.subnet));
            active.subnet = Set(subnet.to_string());
        }
        if let Some(description) = change.description.filter(|text| *text != before.record.description) {
            details.push("description".to_owned());
            active.description = Set(description);
        }
        if details.is_empty() {
            return Ok(before);
        }
        active.updated_at = Set(to_db(writer.now)?);
        let row = network::Entity::update(active).exec(&writer.txn).await?;
        let after = networks::details(row, &writer.txn).await?;
        writer.log(&Subject::Network(id)).await?;
        writer.audit("network.update", Some(("network", id.0)), Some(details.join(", "))).await?;
        writer.commit().await?;
        Ok(after)
    }

    /// Changes a node's name.
    pub async fn update_node(
        &self,
        id: NodeId,
        name: Option<String>,
        check: impl FnOnce(&NodeDetails) -> bool + Send,
    ) -> Result<NodeDetails, StoreError> {
        if let Some(name) = &name {
            names::check("node", name)?;
        }
        let mut writer = self.write().await?;
        let row = nodes::find(&writer.txn, id).await?;
        let before = nodes::details(row.clone(), writer.now)?;
        if !check(&before) {
            return Err(StoreError::Stale);
        }
        let Some(name) = name.filter(|name| *name != before.record.name) else { return Ok(before) };
        let same = node::Entity::find()
            .filter(node::Column::NetworkId.eq(row.network_id))
            .filter(node::Column::Name.eq(name.as_str()))
            .filter(node::Column::Id.ne(row.id));
        if same.count(&writer.txn).await? > 0 {
            return Err(StoreError::Conflict(format!(
                "the network already has a node named {name}; choose another name"
            )));
        }
        let details = format!("{} → {name}", before.record.name);
        let mut active = row.into_active_model();
        active.name = Set(name);
        nodes::save(&mut writer, active).await?;
        let after = nodes::details(nodes::find(&writer.txn, id).await?, writer.now)?;
        writer.audit("node.rename", Some(("node", id.0)), Some(details)).await?;
        writer.commit().await?;
        Ok(after)
    }

    /// Changes a route of `node`.
    pub async fn update_route(
        &self,
        node: NodeId,
        id: u32,
        change: RouteChange,
        check: impl FnOnce(&RouteRecord) -> bool + Send,
    ) -> Result<RouteDetails, StoreError> {
        if change.weight == Some(0) {
            return Err(StoreError::Invalid("a route's weight is 1 to 65535".into()));
        }
        let mut writer = self.write().await?;
        nodes::find(&writer.txn, node).await?;
        let row = routes::find(&writer.txn, id).await?;
        let before = convert::route(row.clone())?;
        // Another node's route is none of this one's.
        if before.node_id != node {
            return Err(StoreError::NotFound { what: "route", key: id.to_string() });
        }
        if !check(&before) {
            return Err(StoreError::Stale);
        }
        let after = RouteRecord {
            priority: change.priority.unwrap_or(before.priority),
            weight: change.weight.unwrap_or(before.weight),
            enabled: change.enabled.unwrap_or(before.enabled),
            ..before.clone()
        };
        if after != before {
            let mut active = row.into_active_model();
            active.priority = Set(after.priority.into());
            active.weight = Set(after.weight.into());
            active.enabled = Set(after.enabled);
            node_route::Entity::update(active).exec(&writer.txn).await?;
            writer.log(&Subject::Routes(node)).await?;
            let only_switched = RouteRecord { enabled: after.enabled, ..before.clone() } == after;
            let action = match (only_switched, after.enabled) {
                (true, true) => "route.enable",
                (true, false) => "route.disable",
                (false, _) => "route.update",
            };
            let details = format!("priority {}, weight {}, enabled {}", after.priority, after.weight, after.enabled);
            writer.audit(action, Some(("route", id)), (!only_switched).then_some(details)).await?;
            writer.commit().await?;
        } else {
            drop(writer);
        }
        self.route(id).await
    }

    /// Changes a server. Where the built-in one is and what it does is the controller's configuration to say.
    pub async fn change_server(
        &self,
        id: ServerId,
        change: ServerChange,
        check: impl FnOnce(&ServerDetails) -> bool + Send,
    ) -> Result<ServerDetails, StoreError> {
        if let Some(name) = &change.name {
            names::check("server", name)?;
        }
        servers::check_length("url", change.url.as_ref().and_then(Option::as_deref).unwrap_or_default(), 255)?;
        servers::check_length("region", change.region.as_deref().unwrap_or_default(), 50)?;
        let mut writer = self.write().await?;
        let row = servers::find(&writer.txn, id).await?;
        let before = servers::details(row.clone(), writer.now)?;
        if !check(&before) {
            return Err(StoreError::Stale);
        }
        let mut after = before.record.clone();
        after.name = change.name.unwrap_or(after.name);
        after.url = change.url.unwrap_or(after.url);
        after.region = change.region.unwrap_or(after.region);
        after.relay = change.relay.unwrap_or(after.relay);
        after.stun = change.stun.unwrap_or(after.stun);
        after.stun_ip = change.stun_ip.unwrap_or(after.stun_ip);
        after.stun_ip2 = change.stun_ip2.unwrap_or(after.stun_ip2);
        after.stun_port = change.stun_port.unwrap_or(after.stun_port);
        after.enabled = change.enabled.unwrap_or(after.enabled);
        if after == before.record {
            return Ok(before);
        }
        let place = |server: &edgelink_model::records::ServerRecord| {
            (server.url.clone(), server.relay, server.stun, server.stun_ip, server.stun_ip2, server.stun_port)
        };
        if after.kind == ServerKind::Builtin {
            if place(&after) != place(&before.record) {
                return Err(StoreError::InUse(
                    "the built-in server's place and functions come from the controller's configuration \
                     (`builtin_relay`, `builtin_stun`); its name, region and `enabled` may be changed"
                        .into(),
                ));
            }
        } else {
            servers::check_functions(&after)?;
        }
        let same = server::Entity::find()
            .filter(server::Column::Name.eq(after.name.as_str()))
            .filter(server::Column::Id.ne(row.id));
        if same.count(&writer.txn).await? > 0 {
            return Err(StoreError::Conflict(format!("there is already a server named {}", after.name)));
        }
        let mut active = row.into_active_model();
        active.name = Set(after.name.clone());
        active.url = Set(after.url.clone());
        active.region = Set(after.region.clone());
        active.capabilities = Set(convert::capabilities(after.relay, after.stun));
        active.stun_ip = Set(after.stun_ip.map(|ip| ip.to_string()));
        active.stun_ip2 = Set(after.stun_ip2.map(|ip| ip.to_string()));
        active.stun_port = Set(after.stun_port.into());
        active.enabled = Set(after.enabled);
        let row = server::Entity::update(active).exec(&writer.txn).await?;
        writer.log(&Subject::Server(id)).await?;
        let only_switched = edgelink_model::records::ServerRecord { enabled: after.enabled, ..before.record } == after;
        let action = match (only_switched, after.enabled) {
            (true, true) => "server.enable",
            (true, false) => "server.disable",
            (false, _) => "server.update",
        };
        writer.audit(action, Some(("server", id.0)), None).await?;
        let details = servers::details(row, writer.now)?;
        writer.commit().await?;
        Ok(details)
    }
}

/// Addresses that nodes have must be hosts of the new prefix.
async fn refuse_strangers(writer: &Writer, id: NetworkId, subnet: Ipv4Net) -> Result<(), StoreError> {
    let members = node::Entity::find()
        .filter(node::Column::NetworkId.eq(id_to_db(id.0)?))
        .filter(node::Column::VirtualIp.is_not_null())
        .all(&writer.txn)
        .await?;
    for row in members {
        let Some(address) = row.virtual_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok()) else { continue };
        if !subnet.contains(&address) || address == subnet.network() || address == subnet.broadcast() {
            return Err(StoreError::InUse(format!(
                "node {} has the address {address}, which is no host of {subnet}; delete it first, or choose a subnet \
                 that holds it",
                row.name
            )));
        }
    }
    Ok(())
}
