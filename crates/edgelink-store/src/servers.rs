//! Relay and STUN servers.

use crate::convert;
use crate::entity::server;
use crate::error::StoreError;
use crate::names;
use crate::store::{Store, Subject, from_db, id_to_db, to_db};
use edgelink_model::records::{ServerKind, ServerRecord};
use edgelink_model::{ServerId, UnixMillis};
use sea_orm::sea_query::Expr;
use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter, QueryOrder};
use std::net::IpAddr;
use std::time::Duration;

/// A server is taken for online so long after its last sign of life: a controller renews those of connected servers
/// every 10 s.
pub const SERVER_FRESHNESS: Duration = Duration::from_secs(25);

/// An external server to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewServer {
    /// 1–63 letters, digits, `.`, `_`, `-`; unique.
    pub name: String,
    /// WSS URL of `/ws/data`; `None` for a server that only answers STUN.
    pub url: Option<String>,
    /// Free text such as `asia`, at most 50 characters.
    pub region: String,
    /// Relays packets?
    pub relay: bool,
    /// Answers STUN?
    pub stun: bool,
    /// First STUN address.
    pub stun_ip: Option<IpAddr>,
    /// Second STUN address.
    pub stun_ip2: Option<IpAddr>,
    /// STUN port.
    pub stun_port: u16,
}

/// A server with what only people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerDetails {
    /// What the control core knows too.
    pub record: ServerRecord,
    /// The controller has heard of it lately ([`SERVER_FRESHNESS`]).
    pub online: bool,
    /// Last sign of life, Unix ms.
    pub last_heartbeat: Option<UnixMillis>,
    /// Unix ms.
    pub created_at: UnixMillis,
}

impl Store {
    /// All servers by id.
    pub async fn servers(&self) -> Result<Vec<ServerDetails>, StoreError> {
        let rows = server::Entity::find().order_by_asc(server::Column::Id).all(&self.db).await?;
        let now = self.now();
        rows.into_iter().map(|row| details(row, now)).collect()
    }

    /// One server.
    pub async fn server(&self, id: ServerId) -> Result<ServerDetails, StoreError> {
        details(find(&self.read().await?, id).await?, self.now())
    }

    /// The server that `id_or_name` means; an id wins over a name.
    pub async fn find_server(&self, id_or_name: &str) -> Result<ServerDetails, StoreError> {
        let by_id = match id_or_name.parse::<i32>() {
            Ok(id) => server::Entity::find_by_id(id).one(&self.db).await?,
            Err(_) => None,
        };
        let row = match by_id {
            Some(row) => Some(row),
            None => server::Entity::find().filter(server::Column::Name.eq(id_or_name)).one(&self.db).await?,
        };
        row.map(|row| details(row, self.now()))
            .unwrap_or_else(|| Err(StoreError::NotFound { what: "server", key: id_or_name.to_owned() }))
    }

    /// Adds an external server.
    pub async fn add_server(&self, new: NewServer) -> Result<ServerRecord, StoreError> {
        names::check("server", &new.name)?;
        check_length("url", new.url.as_deref().unwrap_or_default(), 255)?;
        check_length("region", &new.region, 50)?;
        if new.relay && new.url.is_none() {
            return Err(StoreError::Invalid(RELAY_URL.into()));
        }
        let mut writer = self.write().await?;
        let same = server::Entity::find().filter(server::Column::Name.eq(new.name.as_str()));
        if same.count(&writer.txn).await? > 0 {
            return Err(StoreError::Conflict(format!(
                "there is already a server named {}; choose another name",
                new.name
            )));
        }
        let row = server::Entity::insert(server::ActiveModel {
            name: Set(new.name),
            kind: Set("external".into()),
            url: Set(new.url),
            region: Set(new.region),
            capabilities: Set(convert::capabilities(new.relay, new.stun)),
            stun_ip: Set(new.stun_ip.map(|ip| ip.to_string())),
            stun_ip2: Set(new.stun_ip2.map(|ip| ip.to_string())),
            stun_port: Set(new.stun_port.into()),
            enabled: Set(true),
            created_at: Set(to_db(writer.now)?),
            ..Default::default()
        })
        .exec_with_returning(&writer.txn)
        .await?;
        let record = convert::server(row)?;
        writer.log(&Subject::Server(record.id)).await?;
        writer.audit("server.add", Some(("server", record.id.0)), Some(record.name.clone())).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Makes the row of `server.id` say what `server` says (its kind stays). Writes nothing when it does already.
    pub async fn update_server(&self, server: &ServerRecord) -> Result<(), StoreError> {
        names::check("server", &server.name)?;
        check_length("url", server.url.as_deref().unwrap_or_default(), 255)?;
        check_length("region", &server.region, 50)?;
        let mut writer = self.write().await?;
        let row = find(&writer.txn, server.id).await?;
        let stored = convert::server(row.clone())?;
        if (ServerRecord { kind: stored.kind, ..server.clone() }) == stored {
            return Ok(());
        }
        let same = server::Entity::find()
            .filter(server::Column::Name.eq(server.name.as_str()))
            .filter(server::Column::Id.ne(row.id));
        if same.count(&writer.txn).await? > 0 {
            return Err(StoreError::Conflict(format!("there is already a server named {}", server.name)));
        }
        let mut change = row.into_active_model();
        change.name = Set(server.name.clone());
        change.url = Set(server.url.clone());
        change.region = Set(server.region.clone());
        change.capabilities = Set(convert::capabilities(server.relay, server.stun));
        change.stun_ip = Set(server.stun_ip.map(|ip| ip.to_string()));
        change.stun_ip2 = Set(server.stun_ip2.map(|ip| ip.to_string()));
        change.stun_port = Set(server.stun_port.into());
        change.enabled = Set(server.enabled);
        server::Entity::update(change).exec(&writer.txn).await?;
        writer.log(&Subject::Server(server.id)).await?;
        writer.audit("server.update", Some(("server", server.id.0)), None).await?;
        writer.commit().await?;
        Ok(())
    }

    /// Lets nodes use a server, or no longer. Writes nothing when it is so already.
    pub async fn set_server_enabled(&self, id: ServerId, enabled: bool) -> Result<(), StoreError> {
        let mut writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        if row.enabled == enabled {
            return Ok(());
        }
        let mut change = row.into_active_model();
        change.enabled = Set(enabled);
        server::Entity::update(change).exec(&writer.txn).await?;
        writer.log(&Subject::Server(id)).await?;
        let action = if enabled { "server.enable" } else { "server.disable" };
        writer.audit(action, Some(("server", id.0)), None).await?;
        writer.commit().await?;
        Ok(())
    }

    /// Signs of life of connected servers. Nobody else must know, so nothing is logged.
    pub async fn touch_servers(&self, online: &[ServerId], now: UnixMillis) -> Result<(), StoreError> {
        let ids = online.iter().map(|id| id_to_db(id.0)).collect::<Result<Vec<_>, _>>()?;
        // A writer like all others: rows locked outside their queue could deadlock with it.
        let writer = self.write().await?;
        server::Entity::update_many()
            .col_expr(server::Column::LastHeartbeat, Expr::value(to_db(now)?))
            .filter(server::Column::Id.is_in(ids))
            .exec(&writer.txn)
            .await?;
        writer.commit().await?;
        Ok(())
    }

    /// Deletes an external server; the built-in one can only be disabled.
    pub async fn delete_server(&self, id: ServerId) -> Result<(), StoreError> {
        let mut writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        if convert::server(row.clone())?.kind == ServerKind::Builtin {
            return Err(StoreError::InUse(
                "the built-in server cannot be deleted; disable it in the controller's configuration (`builtin_relay.enabled`)".into(),
            ));
        }
        server::Entity::delete_by_id(row.id).exec(&writer.txn).await?;
        writer.log(&Subject::Server(id)).await?;
        writer.audit("server.delete", Some(("server", id.0)), Some(row.name)).await?;
        writer.commit().await?;
        Ok(())
    }
}

/// Signs of life from before this are too old at `now`.
pub(crate) fn oldest_fresh(now: UnixMillis) -> Result<i64, StoreError> {
    to_db(now.saturating_sub(SERVER_FRESHNESS.as_millis() as u64))
}

pub(crate) async fn find(txn: &sea_orm::DatabaseTransaction, id: ServerId) -> Result<server::Model, StoreError> {
    let missing = || StoreError::NotFound { what: "server", key: id.to_string() };
    let key = id_to_db(id.0).map_err(|_| missing())?;
    server::Entity::find_by_id(key).one(txn).await?.ok_or_else(missing)
}

pub(crate) fn details(row: server::Model, now: UnixMillis) -> Result<ServerDetails, StoreError> {
    let oldest = oldest_fresh(now)?;
    Ok(ServerDetails {
        online: row.last_heartbeat.is_some_and(|at| at >= oldest),
        last_heartbeat: row.last_heartbeat.map(from_db).transpose()?,
        created_at: from_db(row.created_at)?,
        record: convert::server(row)?,
    })
}

const RELAY_URL: &str = "a relay needs a URL, such as wss://relay.example.com/ws/data";

/// What an external server must have to do what it is said to do.
pub(crate) fn check_functions(server: &ServerRecord) -> Result<(), StoreError> {
    if !server.relay && !server.stun {
        return Err(StoreError::Invalid("a server needs a capability: relay, stun or both".into()));
    }
    if server.relay && server.url.is_none() {
        return Err(StoreError::Invalid(RELAY_URL.into()));
    }
    if server.stun && server.stun_ip.is_none() {
        return Err(StoreError::Invalid("a STUN server needs its public address (stun_ip)".into()));
    }
    Ok(())
}

pub(crate) fn check_length(what: &str, text: &str, max: usize) -> Result<(), StoreError> {
    if text.chars().count() > max {
        return Err(StoreError::Invalid(format!("the server's {what} is longer than {max} characters")));
    }
    Ok(())
}
