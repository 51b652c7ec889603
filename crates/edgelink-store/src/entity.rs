//! The rows, one module per table (specification §9.2 as corrected by DESIGN §4).
//!
//! Moments are Unix milliseconds in BIGINT columns: both databases then compare, index and round them alike, whatever
//! the session's time zone. Keys and hashes are lower-case hex, so that a case-insensitive collation cannot confuse them.
#![expect(unreachable_pub, reason = "SeaORM's derives want `pub`; the module is private to the crate")]

macro_rules! table {
    ($(#[$doc:meta])* $module:ident $table:literal { $($(#[$attr:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        pub mod $module {
            use sea_orm::entity::prelude::*;

            #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
            #[sea_orm(table_name = $table)]
            pub struct Model { $($(#[$attr])* pub $field: $ty,)* }

            #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}

            impl ActiveModelBehavior for ActiveModel {}
        }
    };
}

table! {
    /// A virtual network.
    network "networks" {
        #[sea_orm(primary_key)]
        id: i32,
        name: String,
        subnet: String,
        subnet6: Option<String>,
        description: String,
        created_at: i64,
        updated_at: i64,
        /// Routes that its nodes announce need no administrator.
        approve_routes: bool,
    }
}

table! {
    /// A node.
    node "nodes" {
        #[sea_orm(primary_key)]
        id: i32,
        network_id: i32,
        name: String,
        machine_key_pub: String,
        node_key_pub: Option<String>,
        node_key_updated_at: Option<i64>,
        node_key_statement: Option<Vec<u8>>,
        node_key_signature: Option<Vec<u8>>,
        node_key_seq: Option<i64>,
        virtual_ip: Option<String>,
        virtual_ip6: Option<String>,
        hostname: String,
        os: String,
        arch: String,
        version: String,
        nat_type: Option<String>,
        online: bool,
        last_seen: Option<i64>,
        authorized: bool,
        deauthorized_at: Option<i64>,
        auth_key_id: Option<i32>,
        created_at: i64,
        updated_at: i64,
        /// It came with an auth key that approves its routes.
        approve_routes: bool,
    }
}

table! {
    /// An address at which a node may be reached.
    node_endpoint "node_endpoints" {
        #[sea_orm(primary_key)]
        id: i32,
        node_id: i32,
        #[sea_orm(column_name = "type")]
        kind: String,
        ip: String,
        port: i32,
        priority: i32,
        updated_at: i64,
    }
}

table! {
    /// A subnet behind a node.
    node_route "node_routes" {
        #[sea_orm(primary_key)]
        id: i32,
        node_id: i32,
        cidr: String,
        priority: i32,
        weight: i32,
        enabled: bool,
        created_at: i64,
        /// By the node itself, which may take it back.
        announced: bool,
        /// The gateway rewrites source addresses.
        snat: bool,
    }
}

table! {
    /// A relay and/or STUN server.
    server "servers" {
        #[sea_orm(primary_key)]
        id: i32,
        name: String,
        #[sea_orm(column_name = "type")]
        kind: String,
        url: Option<String>,
        region: String,
        capabilities: String,
        stun_ip: Option<String>,
        stun_ip2: Option<String>,
        stun_port: i32,
        enabled: bool,
        /// Hash of the token's jti, never the token.
        server_token: Option<String>,
        last_heartbeat: Option<i64>,
        created_at: i64,
    }
}

table! {
    /// A revoked token, or every token of a node that was issued before a moment.
    revocation "token_blacklist" {
        #[sea_orm(primary_key, auto_increment = false)]
        jti: String,
        node_id: Option<i32>,
        /// Unix seconds; present when the row voids the node's tokens rather than one jti.
        issued_before: Option<i64>,
        reason: String,
        /// Unix seconds.
        expires_at: i64,
        created_at: i64,
    }
}

table! {
    /// A pre-auth key, hashed.
    auth_key "auth_keys" {
        #[sea_orm(primary_key)]
        id: i32,
        network_id: i32,
        key_hash: String,
        reusable: bool,
        preauthorized: bool,
        expires_at: Option<i64>,
        used_at: Option<i64>,
        /// Machine key that consumed a one-shot key.
        used_by: Option<String>,
        created_at: i64,
        /// Routes of its nodes need no administrator.
        approve_routes: bool,
    }
}

table! {
    /// Somebody who may use the REST API.
    admin "admins" {
        #[sea_orm(primary_key)]
        id: i32,
        username: String,
        /// Argon2id, PHC string.
        password_hash: String,
        enabled: bool,
        last_login: Option<i64>,
        created_at: i64,
        updated_at: i64,
    }
}

table! {
    /// A measured round-trip time.
    latency "latency_records" {
        #[sea_orm(primary_key)]
        id: i32,
        src_type: String,
        src_id: i32,
        dst_type: String,
        dst_id: i32,
        rtt_us: i64,
        recorded_at: i64,
    }
}

table! {
    /// One setting.
    setting "settings" {
        #[sea_orm(primary_key, auto_increment = false)]
        key: String,
        value: Option<String>,
        updated_at: i64,
    }
}

table! {
    /// Who did what.
    audit_log "audit_logs" {
        #[sea_orm(primary_key)]
        id: i32,
        actor_type: String,
        actor_id: Option<String>,
        action: String,
        target_type: Option<String>,
        target_id: Option<i32>,
        details: Option<String>,
        ip_address: Option<String>,
        created_at: i64,
    }
}

table! {
    /// The tail that running controllers follow.
    change_log "change_log" {
        #[sea_orm(primary_key, auto_increment = false)]
        id: i64,
        entity: String,
        entity_key: String,
        created_at: i64,
    }
}

table! {
    /// One row: the last change id, locked by every writer, and the newest id that was pruned.
    change_counter "change_counter" {
        #[sea_orm(primary_key, auto_increment = false)]
        id: i32,
        value: i64,
        pruned: i64,
    }
}

table! {
    /// One row: the active one of several controllers.
    controller_lease "controller_lease" {
        #[sea_orm(primary_key, auto_increment = false)]
        id: i32,
        /// Random, one per process; empty: nobody.
        holder: String,
        /// Where nodes reach it.
        url: String,
        /// Rises whenever the holder changes: who writes under an older one is refused.
        epoch: i64,
        /// Unix ms by the database's clock.
        expires_at: i64,
    }
}

table! {
    /// A controller of this database.
    controller "controllers" {
        #[sea_orm(primary_key, auto_increment = false)]
        url: String,
        seen_at: i64,
    }
}

table! {
    /// A node that is connected to a relay.
    node_server_connection "node_server_connections" {
        #[sea_orm(primary_key, auto_increment = false)]
        node_id: i32,
        #[sea_orm(primary_key, auto_increment = false)]
        server_id: i32,
        connected_at: i64,
        last_ping: Option<i64>,
    }
}
