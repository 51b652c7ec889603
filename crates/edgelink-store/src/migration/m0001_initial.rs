//! The ten tables of specification §9.2 as corrected by DESIGN §4, and those that EdgeLink adds.

use sea_orm_migration::prelude::*;
use std::time::SystemTime;

pub(super) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0001_initial"
    }
}

#[async_trait::async_trait]
#[expect(elided_lifetimes_in_paths, reason = "the trait elides it, and async_trait makes that matter")]
impl MigrationTrait for Migration {
    async fn up(&self, schema: &SchemaManager) -> Result<(), DbErr> {
        // Referenced tables first.
        for table in [
            networks(),
            auth_keys(),
            nodes(),
            node_endpoints(),
            node_routes(),
            servers(),
            latency_records(),
            token_blacklist(),
            node_server_connections(),
            settings(),
            audit_logs(),
            admins(),
            change_log(),
            change_counter(),
        ] {
            schema.create_table(table).await?;
        }
        for (name, table, column) in [
            ("idx_nodes_network", "nodes", "network_id"),
            ("idx_nodes_online", "nodes", "online"),
            ("idx_audit_created", "audit_logs", "created_at"),
            ("idx_blacklist_expires", "token_blacklist", "expires_at"),
        ] {
            schema.create_index(Index::create().name(name).table(table).col(column).take()).await?;
        }
        first_rows(schema.get_connection()).await
    }
}

/// The default network, the built-in server, and the change counter. Settings get no rows: one there outranks the
/// configuration file, so it must be someone's choice.
async fn first_rows(db: &SchemaManagerConnection<'_>) -> Result<(), DbErr> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64);
    let network = Query::insert()
        .into_table("networks")
        .columns(["name", "subnet", "description", "created_at", "updated_at"])
        .values_panic(["default".into(), "10.0.1.0/24".into(), "".into(), now.into(), now.into()])
        .take();
    let server = Query::insert()
        .into_table("servers")
        .columns(["name", "type", "region", "capabilities", "stun_port", "enabled", "created_at"])
        .values_panic([
            "builtin".into(),
            "builtin".into(),
            "".into(),
            r#"["relay","stun"]"#.into(),
            3478.into(),
            true.into(),
            now.into(),
        ])
        .take();
    let counter = Query::insert()
        .into_table("change_counter")
        .columns(["id", "value", "pruned"])
        .values_panic([1.into(), 0i64.into(), 0i64.into()])
        .take();
    for row in [network, server, counter] {
        db.execute(&row).await?;
    }
    Ok(())
}

fn id() -> ColumnDef {
    ColumnDef::new("id").integer().not_null().auto_increment().primary_key().take()
}

/// A moment, Unix ms.
fn moment(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).big_integer().take()
}

fn text(name: &'static str, len: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(len).take()
}

fn flag(name: &'static str, default: bool) -> ColumnDef {
    ColumnDef::new(name).boolean().not_null().default(default).take()
}

fn int(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).integer().take()
}

fn table(name: &'static str, columns: impl IntoIterator<Item = ColumnDef>) -> TableCreateStatement {
    let mut table = Table::create().table(name).take();
    for column in columns {
        table.col(column);
    }
    table
}

fn unique(name: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create().name(name).unique().take();
    for column in columns {
        index.col(*column);
    }
    index
}

fn reference(
    from: (&'static str, &'static str),
    to: &'static str,
    on_delete: ForeignKeyAction,
) -> ForeignKeyCreateStatement {
    ForeignKey::create().from(from.0, from.1).to(to, "id").on_delete(on_delete).take()
}

fn networks() -> TableCreateStatement {
    table(
        "networks",
        [
            id(),
            text("name", 255).not_null().unique_key().take(),
            text("subnet", 50).not_null().take(),
            text("subnet6", 50),
            text("description", 1024).not_null().default("").take(),
            moment("created_at").not_null().take(),
            moment("updated_at").not_null().take(),
        ],
    )
}

fn nodes() -> TableCreateStatement {
    table(
        "nodes",
        [
            id(),
            int("network_id").not_null().default(1).take(),
            text("name", 255).not_null().take(),
            text("machine_key_pub", 64).not_null().unique_key().take(),
            text("node_key_pub", 64),
            moment("node_key_updated_at"),
            ColumnDef::new("node_key_statement").var_binary(255).take(),
            ColumnDef::new("node_key_signature").var_binary(64).take(),
            ColumnDef::new("node_key_seq").big_integer().take(),
            text("virtual_ip", 15),
            text("virtual_ip6", 45),
            text("hostname", 255).not_null().default("").take(),
            text("os", 255).not_null().default("").take(),
            text("arch", 255).not_null().default("").take(),
            text("version", 255).not_null().default("").take(),
            text("nat_type", 50),
            flag("online", false),
            moment("last_seen"),
            flag("authorized", false),
            moment("deauthorized_at"),
            int("auth_key_id"),
            moment("created_at").not_null().take(),
            moment("updated_at").not_null().take(),
        ],
    )
    .foreign_key(&mut reference(("nodes", "network_id"), "networks", ForeignKeyAction::Restrict))
    .foreign_key(&mut reference(("nodes", "auth_key_id"), "auth_keys", ForeignKeyAction::SetNull))
    .index(&mut unique("uq_nodes_name", &["network_id", "name"]))
    .index(&mut unique("uq_nodes_virtual_ip", &["network_id", "virtual_ip"]))
    .index(&mut unique("uq_nodes_virtual_ip6", &["network_id", "virtual_ip6"]))
    .take()
}

fn node_endpoints() -> TableCreateStatement {
    table(
        "node_endpoints",
        [
            id(),
            int("node_id").not_null().take(),
            text("type", 20).not_null().take(),
            text("ip", 45).not_null().take(),
            int("port").not_null().take(),
            int("priority").not_null().default(2).take(),
            moment("updated_at").not_null().take(),
        ],
    )
    .foreign_key(&mut reference(("node_endpoints", "node_id"), "nodes", ForeignKeyAction::Cascade))
    .index(&mut unique("uq_node_endpoints", &["node_id", "type", "ip", "port"]))
    .take()
}

fn node_routes() -> TableCreateStatement {
    table(
        "node_routes",
        [
            id(),
            int("node_id").not_null().take(),
            text("cidr", 50).not_null().take(),
            int("priority").not_null().default(100).take(),
            int("weight").not_null().default(100).take(),
            flag("enabled", true),
            moment("created_at").not_null().take(),
        ],
    )
    .foreign_key(&mut reference(("node_routes", "node_id"), "nodes", ForeignKeyAction::Cascade))
    .index(&mut unique("uq_node_routes", &["node_id", "cidr"]))
    .take()
}

fn servers() -> TableCreateStatement {
    table(
        "servers",
        [
            id(),
            text("name", 255).not_null().unique_key().take(),
            text("type", 20).not_null().default("external").take(),
            text("url", 255),
            text("region", 50).not_null().default("").take(),
            text("capabilities", 255).not_null().default(r#"["relay"]"#).take(),
            text("stun_ip", 45),
            text("stun_ip2", 45),
            int("stun_port").not_null().default(3478).take(),
            flag("enabled", true),
            text("server_token", 64),
            moment("last_heartbeat"),
            moment("created_at").not_null().take(),
        ],
    )
}

fn latency_records() -> TableCreateStatement {
    table(
        "latency_records",
        [
            id(),
            text("src_type", 20).not_null().take(),
            int("src_id").not_null().take(),
            text("dst_type", 20).not_null().take(),
            int("dst_id").not_null().take(),
            ColumnDef::new("rtt_us").big_integer().not_null().take(),
            moment("recorded_at").not_null().take(),
        ],
    )
    .index(&mut unique("uq_latency_records", &["src_type", "src_id", "dst_type", "dst_id"]))
    .take()
}

fn token_blacklist() -> TableCreateStatement {
    // No reference to nodes: the revocation of a deleted node outlives it.
    table(
        "token_blacklist",
        [
            text("jti", 255).not_null().primary_key().take(),
            int("node_id"),
            ColumnDef::new("issued_before").big_integer().take(),
            text("reason", 255).not_null().default("").take(),
            ColumnDef::new("expires_at").big_integer().not_null().take(),
            moment("created_at").not_null().take(),
        ],
    )
}

fn node_server_connections() -> TableCreateStatement {
    table(
        "node_server_connections",
        [
            int("node_id").not_null().take(),
            int("server_id").not_null().take(),
            moment("connected_at").not_null().take(),
            moment("last_ping"),
        ],
    )
    .primary_key(&mut Index::create().col("node_id").col("server_id").primary().take())
    .foreign_key(&mut reference(("node_server_connections", "node_id"), "nodes", ForeignKeyAction::Cascade))
    .foreign_key(&mut reference(("node_server_connections", "server_id"), "servers", ForeignKeyAction::Cascade))
    .take()
}

fn settings() -> TableCreateStatement {
    table(
        "settings",
        [
            text("key", 255).not_null().primary_key().take(),
            ColumnDef::new("value").text().take(),
            moment("updated_at").not_null().take(),
        ],
    )
}

fn audit_logs() -> TableCreateStatement {
    table(
        "audit_logs",
        [
            id(),
            text("actor_type", 50).not_null().take(),
            text("actor_id", 255),
            text("action", 100).not_null().take(),
            text("target_type", 50),
            int("target_id"),
            ColumnDef::new("details").text().take(),
            text("ip_address", 45),
            moment("created_at").not_null().take(),
        ],
    )
}

fn auth_keys() -> TableCreateStatement {
    table(
        "auth_keys",
        [
            id(),
            int("network_id").not_null().take(),
            text("key_hash", 64).not_null().unique_key().take(),
            flag("reusable", false),
            flag("preauthorized", false),
            moment("expires_at"),
            moment("used_at"),
            text("used_by", 64),
            moment("created_at").not_null().take(),
        ],
    )
    .foreign_key(&mut reference(("auth_keys", "network_id"), "networks", ForeignKeyAction::Cascade))
    .take()
}

fn admins() -> TableCreateStatement {
    table(
        "admins",
        [
            id(),
            text("username", 255).not_null().unique_key().take(),
            text("password_hash", 255).not_null().take(),
            flag("enabled", true),
            moment("last_login"),
            moment("created_at").not_null().take(),
            moment("updated_at").not_null().take(),
        ],
    )
}

fn change_log() -> TableCreateStatement {
    table(
        "change_log",
        [
            ColumnDef::new("id").big_integer().not_null().primary_key().take(),
            text("entity", 20).not_null().take(),
            text("entity_key", 255).not_null().take(),
            moment("created_at").not_null().take(),
        ],
    )
}

fn change_counter() -> TableCreateStatement {
    table(
        "change_counter",
        [
            int("id").not_null().primary_key().take(),
            ColumnDef::new("value").big_integer().not_null().take(),
            ColumnDef::new("pruned").big_integer().not_null().default(0i64).take(),
        ],
    )
}
