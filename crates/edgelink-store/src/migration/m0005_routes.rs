//! What routes and IPv6 need: who made a route and how it is served, who approves routes in advance, and an IPv6 prefix
//! for every network with an address in it for every node that has one of IPv4.

use crate::networks::{address6, random_subnet6};
use ipnet::Ipv6Net;
use sea_orm::ConnectionTrait as _;
use sea_orm_migration::prelude::*;
use std::collections::BTreeMap;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0005_routes"
    }
}

#[async_trait::async_trait]
#[expect(elided_lifetimes_in_paths, reason = "the trait elides it, and async_trait makes that matter")]
impl MigrationTrait for Migration {
    async fn up(&self, schema: &SchemaManager) -> Result<(), DbErr> {
        for (table, column, default) in [
            // The node said so, and may take it back; otherwise an administrator made it.
            ("node_routes", "announced", false),
            // The gateway rewrites source addresses, so any number of gateways may serve the subnet at once.
            ("node_routes", "snat", true),
            ("networks", "approve_routes", false),
            ("auth_keys", "approve_routes", false),
            // It came with an auth key that approves its routes.
            ("nodes", "approve_routes", false),
        ] {
            // MariaDB may have been cut off after any of them.
            if schema.has_column(table, column).await? {
                continue;
            }
            let column = ColumnDef::new(column).boolean().not_null().default(default).take();
            // One column at a time: SQLite knows no other way.
            schema.alter_table(Table::alter().table(table).add_column(column).take()).await?;
        }
        fill_ipv6(schema.get_connection()).await
    }
}

/// By plain statements: the entities may know columns that later migrations make.
async fn fill_ipv6(db: &SchemaManagerConnection<'_>) -> Result<(), DbErr> {
    let mut subnets = BTreeMap::new();
    let networks = Query::select().column("id").from("networks").and_where(Expr::col("subnet6").is_null()).take();
    for row in db.query_all(&networks).await? {
        let id: i32 = row.try_get("", "id")?;
        let subnet = random_subnet6();
        set(db, "networks", id, ("subnet6", subnet.to_string())).await?;
        subnets.insert(id, subnet);
    }
    let nodes = Query::select()
        .columns(["id", "network_id"])
        .from("nodes")
        .and_where(Expr::col("virtual_ip").is_not_null())
        .and_where(Expr::col("virtual_ip6").is_null())
        .take();
    for row in db.query_all(&nodes).await? {
        let (id, network): (i32, i32) = (row.try_get("", "id")?, row.try_get("", "network_id")?);
        let subnet: Option<&Ipv6Net> = subnets.get(&network);
        if let (Some(subnet), Ok(node)) = (subnet, <u32 as TryFrom<i32>>::try_from(id)) {
            set(db, "nodes", id, ("virtual_ip6", address6(*subnet, node).to_string())).await?;
        }
    }
    Ok(())
}

async fn set(
    db: &SchemaManagerConnection<'_>,
    table: &'static str,
    id: i32,
    (column, value): (&'static str, String),
) -> Result<(), DbErr> {
    let update = Query::update().table(table).value(column, value).and_where(Expr::col("id").eq(id)).take();
    db.execute(&update).await?;
    Ok(())
}
