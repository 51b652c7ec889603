//! The handle, the write transaction, and the change log's writing end.

use crate::entity::{audit_log, change_counter, change_log, network, node, revocation, server};
use crate::error::{StoreError, is_locked};
use crate::lease;
use crate::location::Location;
use edgelink_model::records::ChangeId;
use edgelink_model::{NetworkId, NodeId, ServerId, UnixMillis};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, IsolationLevel,
    PaginatorTrait, QueryFilter, QuerySelect, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How many nodes of one network may wait for authorization (DESIGN §3).
pub const DEFAULT_MAX_PENDING: u64 = 100;

/// How often MariaDB's lock of all writers is waited for, 5 s each time (SQLite waits 5 s once).
const LOCK_ATTEMPTS: u32 = 3;

/// A clock that tells Unix ms.
type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// The database. Clones share its connections; every method is one transaction.
///
/// Dropping the future of a method before it is done leaves nothing behind.
#[derive(Clone)]
pub struct Store {
    pub(crate) db: DatabaseConnection,
    location: Arc<Location>,
    /// Writers of this process queue here, fairly; those of other processes meet in the database's own lock.
    writers: Arc<Mutex<()>>,
    clock: Clock,
    actor: Actor,
    max_pending: u64,
    /// Under which lease this handle writes; see `Store::fenced`.
    fence: Option<u64>,
}

/// On whose behalf rows are written; it goes into `audit_logs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// `system`, `cli`, `admin` or `node`.
    pub kind: String,
    /// Such as the user's name.
    pub id: Option<String>,
    /// Where the request came from, if it came over the network.
    pub ip_address: Option<std::net::IpAddr>,
}

impl Actor {
    /// The controller itself.
    pub fn system() -> Self {
        Self { kind: "system".into(), id: None, ip_address: None }
    }

    /// A person at `edgelink-ctl`.
    pub fn cli(user: Option<String>) -> Self {
        Self { kind: "cli".into(), id: user, ip_address: None }
    }
}

/// What `status` shows (specification §1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Networks.
    pub networks: u64,
    /// Nodes, all.
    pub nodes: u64,
    /// Nodes that may join.
    pub authorized: u64,
    /// Nodes seen online lately.
    pub online: u64,
    /// Relay and STUN servers, all.
    pub servers: u64,
    /// Those that are enabled.
    pub servers_enabled: u64,
    /// Those heard of lately.
    pub servers_online: u64,
    /// Revocations that have not expired.
    pub revocations: u64,
    /// Newest change.
    pub version: ChangeId,
}

impl Store {
    pub(crate) fn from_parts(db: DatabaseConnection, location: Location) -> Self {
        Self {
            db,
            location: Arc::new(location),
            writers: Arc::default(),
            clock: Arc::new(system_clock),
            actor: Actor::system(),
            max_pending: DEFAULT_MAX_PENDING,
            fence: None,
        }
    }

    /// The same database, written on behalf of `actor`.
    pub fn acting_as(&self, actor: Actor) -> Self {
        Self { actor, ..self.clone() }
    }

    /// The same database with another clock (Unix ms).
    pub fn with_clock(&self, clock: impl Fn() -> UnixMillis + Send + Sync + 'static) -> Self {
        Self { clock: Arc::new(clock), ..self.clone() }
    }

    /// The same database with another limit for nodes that wait for authorization, per network.
    pub fn with_max_pending(&self, max_pending: u64) -> Self {
        Self { max_pending, ..self.clone() }
    }

    pub(crate) fn with_fence(&self, epoch: u64) -> Self {
        Self { fence: Some(epoch), ..self.clone() }
    }

    /// Where the database is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Waits for the running transactions and closes the connections; later calls fail.
    pub async fn close(&self) -> Result<(), StoreError> {
        Ok(self.db.close_by_ref().await?)
    }

    /// Numbers for an overview.
    pub async fn counts(&self) -> Result<Counts, StoreError> {
        let txn = self.read().await?;
        let now = self.now();
        let counts = Counts {
            networks: network::Entity::find().count(&txn).await?,
            nodes: node::Entity::find().count(&txn).await?,
            authorized: node::Entity::find().filter(node::Column::Authorized.eq(true)).count(&txn).await?,
            online: node::Entity::find().filter(crate::nodes::is_online(now)).count(&txn).await?,
            servers: server::Entity::find().count(&txn).await?,
            servers_enabled: server::Entity::find().filter(server::Column::Enabled.eq(true)).count(&txn).await?,
            servers_online: server::Entity::find()
                .filter(server::Column::LastHeartbeat.gte(crate::servers::oldest_fresh(now)?))
                .count(&txn)
                .await?,
            revocations: revocation::Entity::find()
                .filter(revocation::Column::ExpiresAt.gt(to_db(now / 1000)?))
                .count(&txn)
                .await?,
            version: counter(&txn).await?.0,
        };
        Ok(counts)
    }

    /// Unix ms.
    pub(crate) fn now(&self) -> UnixMillis {
        (self.clock)()
    }

    pub(crate) fn max_pending(&self) -> u64 {
        self.max_pending
    }

    /// A consistent view of one moment.
    pub(crate) async fn read(&self) -> Result<DatabaseTransaction, StoreError> {
        let isolation = self.location.is_shared().then_some(IsolationLevel::RepeatableRead);
        self.db.begin_with_config(isolation, None).await.map_err(|e| self.explain(e))
    }

    /// Begins the only write transaction there is at this moment, on any process.
    pub(crate) async fn write(&self) -> Result<Writer, StoreError> {
        let guard = Arc::clone(&self.writers).lock_owned().await;
        for _ in 1..LOCK_ATTEMPTS {
            match self.lock().await {
                Err(error) if self.location.is_shared() && is_locked(&error) => {
                    tracing::debug!(%error, "waiting for the database's lock");
                }
                other => return self.writer(other, guard).await,
            }
        }
        let last = self.lock().await;
        self.writer(last, guard).await
    }

    /// A transaction that holds the lock of all writers, and the newest change. SQLite's BEGIN IMMEDIATE is that lock;
    /// elsewhere the counter's row is.
    async fn lock(&self) -> Result<(DatabaseTransaction, Option<change_counter::Model>), DbErr> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let txn = self.db.begin_with_options(options).await?;
        let row = change_counter::Entity::find_by_id(1).lock_exclusive().one(&txn).await?;
        Ok((txn, row))
    }

    async fn writer(
        &self,
        locked: Result<(DatabaseTransaction, Option<change_counter::Model>), DbErr>,
        guard: OwnedMutexGuard<()>,
    ) -> Result<Writer, StoreError> {
        let (txn, row) = locked.map_err(|e| self.explain(e))?;
        let row = row.ok_or_else(|| StoreError::Corrupt("change_counter is empty".into()))?;
        let version = from_db(row.value)?;
        // With the lock of all writers held, the lease cannot change any more before this transaction ends.
        if let Some(epoch) = self.fence
            && lease::epoch(&txn).await? != epoch
        {
            return Err(StoreError::LeaseLost);
        }
        Ok(Writer { txn, version, logged: false, now: self.now(), actor: self.actor.clone(), _guard: guard })
    }

    /// Names the database where its own words would not.
    pub(crate) fn explain(&self, error: DbErr) -> StoreError {
        if is_locked(&error) { StoreError::Locked(self.location().clone()) } else { error.into() }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("location", &self.location).field("actor", &self.actor).finish_non_exhaustive()
    }
}

/// What a change concerns; its row is read again by whoever follows the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    // In the order in which a follower should hear of them; see `Store::changes_after`.
    Revocation(String),
    Network(NetworkId),
    Server(ServerId),
    Node(NodeId),
    Routes(NodeId),
    Setting(String),
}

impl Subject {
    fn columns(&self) -> (&'static str, String) {
        match self {
            Self::Revocation(jti) => ("revocation", jti.clone()),
            Self::Network(id) => ("network", id.to_string()),
            Self::Server(id) => ("server", id.to_string()),
            Self::Node(id) => ("node", id.to_string()),
            Self::Routes(id) => ("routes", id.to_string()),
            Self::Setting(key) => ("setting", key.clone()),
        }
    }

    /// `None` for kinds that this build does not know.
    pub(crate) fn parse(entity: &str, key: &str) -> Option<Self> {
        match entity {
            "revocation" => Some(Self::Revocation(key.to_owned())),
            "network" => key.parse().ok().map(Self::Network),
            "server" => key.parse().ok().map(Self::Server),
            "node" => key.parse().ok().map(Self::Node),
            "routes" => key.parse().ok().map(Self::Routes),
            "setting" => Some(Self::Setting(key.to_owned())),
            _ => None,
        }
    }
}

/// A write transaction. Dropped without [`Writer::commit`], it never was.
pub(crate) struct Writer {
    pub(crate) txn: DatabaseTransaction,
    version: ChangeId,
    logged: bool,
    /// One moment for everything in this transaction, Unix ms.
    pub(crate) now: UnixMillis,
    actor: Actor,
    // Released last, so that the next writer finds the transaction ended.
    _guard: OwnedMutexGuard<()>,
}

impl Writer {
    /// Tells the followers that `subject` changed.
    pub(crate) async fn log(&mut self, subject: &Subject) -> Result<(), StoreError> {
        let (entity, entity_key) = subject.columns();
        self.version += 1;
        self.logged = true;
        change_log::Entity::insert(change_log::ActiveModel {
            id: Set(to_db(self.version)?),
            entity: Set(entity.to_owned()),
            entity_key: Set(entity_key),
            created_at: Set(to_db(self.now)?),
        })
        .exec_without_returning(&self.txn)
        .await?;
        Ok(())
    }

    /// Remembers who did what.
    pub(crate) async fn audit(
        &self,
        action: &str,
        target: Option<(&str, u32)>,
        details: Option<String>,
    ) -> Result<(), StoreError> {
        let target_id = target.map(|(_, id)| id_to_db(id)).transpose()?;
        audit_log::Entity::insert(audit_log::ActiveModel {
            actor_type: Set(self.actor.kind.clone()),
            actor_id: Set(self.actor.id.clone()),
            action: Set(action.to_owned()),
            target_type: Set(target.map(|(kind, _)| kind.to_owned())),
            target_id: Set(target_id),
            details: Set(details),
            ip_address: Set(self.actor.ip_address.map(|ip| ip.to_string())),
            created_at: Set(to_db(self.now)?),
            ..Default::default()
        })
        .exec_without_returning(&self.txn)
        .await?;
        Ok(())
    }

    /// Makes everything true at once. Returns the newest change.
    pub(crate) async fn commit(self) -> Result<ChangeId, StoreError> {
        if self.logged {
            change_counter::Entity::update_many()
                .col_expr(change_counter::Column::Value, Expr::value(to_db(self.version)?))
                .filter(change_counter::Column::Id.eq(1))
                .exec(&self.txn)
                .await?;
        }
        self.txn.commit().await?;
        Ok(self.version)
    }
}

/// (newest change, newest pruned change) as `txn` sees them.
pub(crate) async fn counter(txn: &DatabaseTransaction) -> Result<(ChangeId, ChangeId), StoreError> {
    match change_counter::Entity::find_by_id(1).one(txn).await? {
        Some(row) => Ok((from_db(row.value)?, from_db(row.pruned)?)),
        None => Err(StoreError::Corrupt("change_counter is empty".into())),
    }
}

fn system_clock() -> UnixMillis {
    // A clock before 1970 reads as 1970.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// As BIGINT; both databases' are signed.
pub(crate) fn to_db(n: u64) -> Result<i64, StoreError> {
    i64::try_from(n).map_err(|_| StoreError::Invalid(format!("{n} is too large for the database")))
}

pub(crate) fn from_db(n: i64) -> Result<u64, StoreError> {
    u64::try_from(n).map_err(|_| StoreError::Corrupt(format!("{n} is negative")))
}

/// As INTEGER. Ids beyond it were never handed out.
pub(crate) fn id_to_db(id: u32) -> Result<i32, StoreError> {
    i32::try_from(id).map_err(|_| StoreError::NotFound { what: "row", key: id.to_string() })
}

pub(crate) fn id_from_db(id: i32) -> Result<u32, StoreError> {
    u32::try_from(id).map_err(|_| StoreError::Corrupt(format!("id {id} is negative")))
}
