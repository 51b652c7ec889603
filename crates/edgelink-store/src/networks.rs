//! Networks.

use crate::convert;
use crate::entity::{network, node};
use crate::error::StoreError;
use crate::names;
use crate::store::{Store, Subject, from_db, id_to_db, to_db};
use edgelink_model::records::NetworkRecord;
use edgelink_model::{NetworkId, UnixMillis};
use ipnet::{Ipv4Net, Ipv6Net};
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder};
use std::net::Ipv6Addr;

/// Nodes without an auth key knock here; made with the database (specification §9.2).
pub(crate) const DEFAULT_NETWORK: NetworkId = NetworkId(1);
/// Shortest prefix of an overlay subnet.
pub const MIN_PREFIX_LEN: u8 = 8;
/// Longest prefix of an overlay subnet: room for two nodes.
pub const MAX_PREFIX_LEN: u8 = 30;

/// Length of the IPv6 prefix that each network gets.
const SUBNET6_LEN: u8 = 64;

/// A network to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNetwork {
    /// 1–63 letters, digits, `.`, `_`, `-`; unique.
    pub name: String,
    /// See [`parse_subnet`]. Networks may overlap: they never meet.
    pub subnet: Ipv4Net,
    /// Free text, at most 1024 characters.
    pub description: String,
}

/// A network with what only people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkDetails {
    /// What the control core knows too.
    pub record: NetworkRecord,
    /// Routes that its nodes announce need no administrator (DESIGN §7); [`Store::set_network_route_approval`].
    pub approve_routes: bool,
    /// How many nodes it has, authorized or not.
    pub nodes: u64,
    /// Unix ms.
    pub created_at: UnixMillis,
    /// Unix ms.
    pub updated_at: UnixMillis,
}

/// Reads an overlay subnet such as `10.100.0.0/16`; refusals say what would do.
pub fn parse_subnet(text: &str) -> Result<Ipv4Net, StoreError> {
    let subnet: Ipv4Net = text.parse().map_err(|_| {
        StoreError::Invalid(format!(
            "{text:?} is not an IPv4 subnet; give an address and a length, such as 10.100.0.0/16"
        ))
    })?;
    check_subnet(subnet)?;
    Ok(subnet)
}

pub(crate) fn check_subnet(subnet: Ipv4Net) -> Result<(), StoreError> {
    let (address, length) = (subnet.addr(), subnet.prefix_len());
    let refuse = |why: String| Err(StoreError::Invalid(format!("the subnet {subnet} {why}")));
    if subnet.trunc() != subnet {
        return refuse(format!("has host bits set; did you mean {}?", subnet.trunc()));
    }
    if length > MAX_PREFIX_LEN {
        return refuse(format!("is too small: it holds no two nodes; use a length of at most {MAX_PREFIX_LEN}"));
    }
    if length < MIN_PREFIX_LEN {
        return refuse(format!("is too large; use a length of at least {MIN_PREFIX_LEN}"));
    }
    if address.octets()[0] == 0 || address.is_loopback() || address.is_link_local() || address.octets()[0] >= 224 {
        return refuse("cannot hold hosts; use a private one such as 10.100.0.0/16".into());
    }
    Ok(())
}

impl Store {
    /// All networks by id.
    pub async fn networks(&self) -> Result<Vec<NetworkDetails>, StoreError> {
        let txn = self.read().await?;
        let mut networks = Vec::new();
        for row in network::Entity::find().order_by_asc(network::Column::Id).all(&txn).await? {
            networks.push(details(row, &txn).await?);
        }
        Ok(networks)
    }

    /// One network.
    pub async fn network(&self, id: NetworkId) -> Result<NetworkDetails, StoreError> {
        let txn = self.read().await?;
        details(find(&txn, id).await?, &txn).await
    }

    /// The network that `id_or_name` means; an id wins over a name.
    pub async fn find_network(&self, id_or_name: &str) -> Result<NetworkDetails, StoreError> {
        let txn = self.read().await?;
        let by_id = match id_or_name.parse::<i32>() {
            Ok(id) => network::Entity::find_by_id(id).one(&txn).await?,
            Err(_) => None,
        };
        let row = match by_id {
            Some(row) => Some(row),
            None => network::Entity::find().filter(network::Column::Name.eq(id_or_name)).one(&txn).await?,
        };
        match row {
            Some(row) => details(row, &txn).await,
            None => Err(StoreError::NotFound { what: "network", key: id_or_name.to_owned() }),
        }
    }

    /// Makes a network.
    pub async fn create_network(&self, new: NewNetwork) -> Result<NetworkRecord, StoreError> {
        names::check("network", &new.name)?;
        check_subnet(new.subnet)?;
        if new.description.chars().count() > 1024 {
            return Err(StoreError::Invalid("the description is longer than 1024 characters".into()));
        }
        let mut writer = self.write().await?;
        if network::Entity::find().filter(network::Column::Name.eq(new.name.as_str())).count(&writer.txn).await? > 0 {
            return Err(StoreError::Conflict(format!(
                "there is already a network named {}; choose another name",
                new.name
            )));
        }
        let now = to_db(writer.now)?;
        let row = network::Entity::insert(network::ActiveModel {
            name: Set(new.name),
            subnet: Set(new.subnet.to_string()),
            subnet6: Set(Some(random_subnet6().to_string())),
            description: Set(new.description),
            created_at: Set(now),
            updated_at: Set(now),
            ..Default::default()
        })
        .exec_with_returning(&writer.txn)
        .await?;
        let record = convert::network(row)?;
        writer.log(&Subject::Network(record.id)).await?;
        writer
            .audit("network.create", Some(("network", record.id.0)), Some(format!("{} {}", record.name, record.subnet)))
            .await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Whether routes that nodes of the network announce from now on need no administrator. Those that wait already go
    /// on waiting.
    pub async fn set_network_route_approval(&self, id: NetworkId, approve: bool) -> Result<(), StoreError> {
        let writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        if row.approve_routes == approve {
            return Ok(());
        }
        let mut change = row.into_active_model();
        change.approve_routes = Set(approve);
        change.updated_at = Set(to_db(writer.now)?);
        network::Entity::update(change).exec(&writer.txn).await?;
        let action = if approve { "network.approve_routes" } else { "network.require_route_approval" };
        writer.audit(action, Some(("network", id.0)), None).await?;
        writer.commit().await?;
        Ok(())
    }

    /// Deletes a network that has no nodes, with its auth keys. The first network stays: nodes without a key go there.
    pub async fn delete_network(&self, id: NetworkId) -> Result<(), StoreError> {
        let mut writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        if id == DEFAULT_NETWORK {
            return Err(StoreError::InUse(format!(
                "network {} cannot be deleted: nodes that join without an auth key go there",
                row.name
            )));
        }
        let nodes = node::Entity::find().filter(node::Column::NetworkId.eq(row.id)).count(&writer.txn).await?;
        if nodes > 0 {
            return Err(StoreError::InUse(format!(
                "network {} still has {nodes} node{}; delete {} first (`edgelink-ctl node list --network {}`)",
                row.name,
                if nodes == 1 { "" } else { "s" },
                if nodes == 1 { "it" } else { "them" },
                row.name,
            )));
        }
        network::Entity::delete_by_id(row.id).exec(&writer.txn).await?;
        writer.log(&Subject::Network(id)).await?;
        writer.audit("network.delete", Some(("network", id.0)), Some(row.name)).await?;
        writer.commit().await?;
        Ok(())
    }
}

pub(crate) async fn find(txn: &sea_orm::DatabaseTransaction, id: NetworkId) -> Result<network::Model, StoreError> {
    let missing = || StoreError::NotFound { what: "network", key: id.to_string() };
    let key = id_to_db(id.0).map_err(|_| missing())?;
    network::Entity::find_by_id(key).one(txn).await?.ok_or_else(missing)
}

pub(crate) async fn details(
    row: network::Model,
    txn: &sea_orm::DatabaseTransaction,
) -> Result<NetworkDetails, StoreError> {
    Ok(NetworkDetails {
        nodes: node::Entity::find().filter(node::Column::NetworkId.eq(row.id)).count(txn).await?,
        approve_routes: row.approve_routes,
        created_at: from_db(row.created_at)?,
        updated_at: from_db(row.updated_at)?,
        record: convert::network(row)?,
    })
}

/// A /64 of a random /48 for unique local addresses (RFC 4193 §3.2).
pub(crate) fn random_subnet6() -> Ipv6Net {
    let mut bytes = [0; 16];
    // Without random numbers there is no TLS and no key either; a prefix that others may have does no harm by itself.
    if let Err(error) = getrandom::fill(&mut bytes[1..6]) {
        tracing::error!(%error, "the system gives no random numbers");
    }
    bytes[0] = 0xfd;
    Ipv6Net::new_assert(Ipv6Addr::from(bytes), SUBNET6_LEN)
}

/// A node's address in its network's IPv6 prefix: ids are never given out again, so the addresses are not either.
pub(crate) fn address6(subnet: Ipv6Net, node: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(subnet.network().to_bits() | u128::from(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_checked_and_the_refusal_says_what_would_do() {
        for good in ["10.100.0.0/16", "10.0.0.0/8", "192.168.7.0/30", "100.64.0.0/10"] {
            assert_eq!(parse_subnet(good).unwrap().to_string(), good);
        }
        for (bad, want) in [
            ("10.100.0.1/16", "the subnet 10.100.0.1/16 has host bits set; did you mean 10.100.0.0/16?"),
            ("10.0.0.0/31", "the subnet 10.0.0.0/31 is too small: it holds no two nodes; use a length of at most 30"),
            ("0.0.0.0/0", "the subnet 0.0.0.0/0 is too large; use a length of at least 8"),
            ("127.0.0.0/8", "the subnet 127.0.0.0/8 cannot hold hosts; use a private one such as 10.100.0.0/16"),
            ("224.0.0.0/8", "the subnet 224.0.0.0/8 cannot hold hosts; use a private one such as 10.100.0.0/16"),
            ("10.0.0.0", "\"10.0.0.0\" is not an IPv4 subnet; give an address and a length, such as 10.100.0.0/16"),
            ("fd00::/64", "\"fd00::/64\" is not an IPv4 subnet; give an address and a length, such as 10.100.0.0/16"),
        ] {
            assert_eq!(parse_subnet(bad).unwrap_err().to_string(), want);
        }
    }
}
