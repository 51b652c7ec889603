//! Administrators of the REST API (DESIGN §3). Passwords are here as Argon2id hashes that the caller makes and checks.

use crate::entity::{admin, revocation};
use crate::error::StoreError;
use crate::names;
use crate::page::{self, Listed, Page};
use crate::store::{Store, from_db, id_from_db, id_to_db, to_db};
use edgelink_model::UnixMillis;
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
};

/// An administrator, without the password's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRecord {
    /// Row id.
    pub id: u32,
    /// Unique name.
    pub username: String,
    /// May log in?
    pub enabled: bool,
    /// Last login, Unix ms.
    pub last_login: Option<UnixMillis>,
    /// Unix ms.
    pub created_at: UnixMillis,
    /// Last change of name, password or permission, Unix ms. Tokens from before it are void.
    pub updated_at: UnixMillis,
}

/// What to change of an administrator.
#[derive(Clone, Default)]
pub struct AdminChange {
    /// Another name.
    pub username: Option<String>,
    /// The hash of another password.
    pub password_hash: Option<String>,
    /// May log in?
    pub enabled: Option<bool>,
}

/// What a login is checked against.
#[derive(Clone)]
pub struct Credentials {
    /// Whose.
    pub admin: AdminRecord,
    /// PHC string.
    pub password_hash: String,
}

/// Whether a verified admin_token is (still) good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session {
    /// It is.
    Valid(AdminRecord),
    /// Logged out, or revoked by its jti.
    Revoked,
    /// The administrator was deleted, disabled or given another password since.
    Void,
}

impl Store {
    /// Administrators by id.
    pub async fn admins(&self, page: Page) -> Result<Listed<AdminRecord>, StoreError> {
        let txn = self.read().await?;
        page::list(&txn, admin::Entity::find(), admin::Column::Id, false, page).await?.try_map(record)
    }

    /// One administrator.
    pub async fn admin(&self, id: u32) -> Result<AdminRecord, StoreError> {
        record(find(&self.read().await?, id).await?)
    }

    /// The administrator that `id_or_name` means; an id wins over a name.
    pub async fn find_admin(&self, id_or_name: &str) -> Result<AdminRecord, StoreError> {
        if let Ok(id) = id_or_name.parse::<i32>()
            && let Some(row) = admin::Entity::find_by_id(id).one(&self.db).await?
        {
            return record(row);
        }
        match self.credentials(id_or_name).await? {
            Some(credentials) => Ok(credentials.admin),
            None => Err(StoreError::NotFound { what: "administrator", key: id_or_name.to_owned() }),
        }
    }

    /// What a login of `username` is checked against.
    pub async fn credentials(&self, username: &str) -> Result<Option<Credentials>, StoreError> {
        let row = admin::Entity::find().filter(admin::Column::Username.eq(username)).one(&self.db).await?;
        let credentials =
            |row: admin::Model| Ok(Credentials { password_hash: row.password_hash.clone(), admin: record(row)? });
        row.map(credentials).transpose()
    }

    /// Makes an administrator. `password_hash`: a PHC string.
    pub async fn create_admin(&self, username: &str, password_hash: String) -> Result<AdminRecord, StoreError> {
        names::check("administrator", username)?;
        let writer = self.write().await?;
        refuse_duplicate(&writer.txn, username, None).await?;
        let now = to_db(writer.now)?;
        let row = admin::Entity::insert(admin::ActiveModel {
            username: Set(username.to_owned()),
            password_hash: Set(password_hash),
            enabled: Set(true),
            created_at: Set(now),
            updated_at: Set(now),
            ..Default::default()
        })
        .exec_with_returning(&writer.txn)
        .await?;
        let record = record(row)?;
        writer.audit("admin.create", Some(("admin", record.id)), Some(record.username.clone())).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Changes an administrator, whose tokens are void from then on. `check` sees the record as it is and may refuse
    /// ([`StoreError::Stale`]).
    pub async fn update_admin(
        &self,
        id: u32,
        change: AdminChange,
        check: impl FnOnce(&AdminRecord) -> bool + Send,
    ) -> Result<AdminRecord, StoreError> {
        if let Some(username) = &change.username {
            names::check("administrator", username)?;
        }
        let writer = self.write().await?;
        let row = find(&writer.txn, id).await?;
        let before = record(row.clone())?;
        if !check(&before) {
            return Err(StoreError::Stale);
        }
        let mut details = Vec::new();
        let mut active = row.into_active_model();
        if let Some(username) = change.username.filter(|name| *name != before.username) {
            refuse_duplicate(&writer.txn, &username, Some(id)).await?;
            details.push(format!("{} → {username}", before.username));
            active.username = Set(username);
        }
        if let Some(hash) = change.password_hash {
            details.push("password".to_owned());
            active.password_hash = Set(hash);
        }
        if let Some(enabled) = change.enabled.filter(|enabled| *enabled != before.enabled) {
            if !enabled {
                refuse_last(&writer.txn, &before).await?;
            }
            details.push(if enabled { "enabled" } else { "disabled" }.to_owned());
            active.enabled = Set(enabled);
        }
        if details.is_empty() {
            return Ok(before);
        }
        active.updated_at = Set(to_db(writer.now)?);
        let record = record(admin::Entity::update(active).exec(&writer.txn).await?)?;
        writer.audit("admin.update", Some(("admin", id)), Some(details.join(", "))).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Deletes an administrator, whose tokens are void from then on.
    pub async fn delete_admin(&self, id: u32) -> Result<(), StoreError> {
        let writer = self.write().await?;
        let record = record(find(&writer.txn, id).await?)?;
        refuse_last(&writer.txn, &record).await?;
        admin::Entity::delete_by_id(id_to_db(id)?).exec(&writer.txn).await?;
        writer.audit("admin.delete", Some(("admin", id)), Some(record.username)).await?;
        writer.commit().await?;
        Ok(())
    }

    /// Notes a login.
    pub async fn admin_logged_in(&self, id: u32) -> Result<AdminRecord, StoreError> {
        let writer = self.write().await?;
        let mut active = find(&writer.txn, id).await?.into_active_model();
        active.last_login = Set(Some(to_db(writer.now)?));
        let record = record(admin::Entity::update(active).exec(&writer.txn).await?)?;
        writer.audit("admin.login", Some(("admin", id)), None).await?;
        writer.commit().await?;
        Ok(record)
    }

    /// Whether the token `jti` of the administrator `id`, issued at `iat` (Unix seconds), is good. Its signature and
    /// expiry are the caller's to check.
    pub async fn admin_session(&self, id: u32, jti: &str, iat: u64) -> Result<Session, StoreError> {
        let txn = self.read().await?;
        if revocation::Entity::find_by_id(jti.to_owned()).one(&txn).await?.is_some() {
            return Ok(Session::Revoked);
        }
        let record = match find(&txn, id).await {
            Ok(row) => record(row)?,
            Err(StoreError::NotFound { .. }) => return Ok(Session::Void),
            Err(error) => return Err(error),
        };
        // `iat` has whole seconds.
        let current = record.enabled && iat >= record.updated_at / 1000;
        Ok(if current { Session::Valid(record) } else { Session::Void })
    }
}

async fn find(txn: &DatabaseTransaction, id: u32) -> Result<admin::Model, StoreError> {
    let missing = || StoreError::NotFound { what: "administrator", key: id.to_string() };
    let key = id_to_db(id).map_err(|_| missing())?;
    admin::Entity::find_by_id(key).one(txn).await?.ok_or_else(missing)
}

async fn refuse_duplicate(txn: &DatabaseTransaction, username: &str, except: Option<u32>) -> Result<(), StoreError> {
    let mut same = admin::Entity::find().filter(admin::Column::Username.eq(username));
    if let Some(id) = except {
        same = same.filter(admin::Column::Id.ne(id_to_db(id)?));
    }
    if same.count(txn).await? > 0 {
        return Err(StoreError::Conflict(format!("there is already an administrator named {username}")));
    }
    Ok(())
}

/// Nobody may lock everybody out.
async fn refuse_last(txn: &DatabaseTransaction, leaving: &AdminRecord) -> Result<(), StoreError> {
    let others = admin::Entity::find()
        .filter(admin::Column::Enabled.eq(true))
        .filter(admin::Column::Id.ne(id_to_db(leaving.id)?))
        .count(txn)
        .await?;
    if leaving.enabled && others == 0 {
        return Err(StoreError::InUse(format!(
            "{} is the last administrator who can log in; make another one first",
            leaving.username
        )));
    }
    Ok(())
}

fn record(row: admin::Model) -> Result<AdminRecord, StoreError> {
    Ok(AdminRecord {
        id: id_from_db(row.id)?,
        username: row.username,
        enabled: row.enabled,
        last_login: row.last_login.map(from_db).transpose()?,
        created_at: from_db(row.created_at)?,
        updated_at: from_db(row.updated_at)?,
    })
}
