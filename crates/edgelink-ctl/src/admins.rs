//! `admin …`: who may use the REST API.

use crate::args::{AdminCommand, AdminRef};
use crate::commands::{or_dash, yes_no};
use crate::error::CtlError;
use crate::output::Output;
use crate::password::{self, Password};
use crate::rows;
use edgelink_api::rest;
use edgelink_auth::password as hashing;
use edgelink_config::Env;
use edgelink_store::{AdminChange, AdminRecord, Page, Store};
use serde::Serialize;

/// An administrator with the password that was made for him, the only time that it is shown.
#[derive(Serialize)]
struct Made {
    #[serde(flatten)]
    admin: rest::Admin,
    password: String,
}

pub(crate) async fn execute(
    store: &Store,
    env: &Env,
    command: &AdminCommand,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        AdminCommand::List => {
            let admins = store.admins(Page::default()).await?.map(rows::admin).items;
            if out.json {
                return out.json(&admins);
            }
            if admins.is_empty() {
                return out.remark("no administrators; make one with: edgelink-ctl admin create --username NAME");
            }
            let table: Vec<_> = admins
                .into_iter()
                .map(|a| [a.id.to_string(), a.username, yes_no(a.enabled), or_dash(a.last_login)])
                .collect();
            out.table(["ID", "USERNAME", "ENABLED", "LAST LOGIN"], &table)
        }
        AdminCommand::Create { username, password } => {
            let password = password::new(password, env)?;
            let record = store.create_admin(username, hash(&password)?).await?;
            tell(record, password, "made", out)
        }
        AdminCommand::Show(admin) => {
            let admin = rows::admin(find(store, admin).await?);
            if out.json {
                return out.json(&admin);
            }
            out.fields(&[
                ("id", admin.id.to_string()),
                ("username", admin.username),
                ("enabled", yes_no(admin.enabled)),
                ("last login", or_dash(admin.last_login)),
                ("created", admin.created_at.to_string()),
                ("updated", admin.updated_at.to_string()),
            ])
        }
        AdminCommand::Passwd { admin, password } => {
            let id = find(store, admin).await?.id;
            let password = password::new(password, env)?;
            let change = AdminChange { password_hash: Some(hash(&password)?), ..AdminChange::default() };
            let record = store.update_admin(id, change, |_| true).await?;
            tell(record, password, "has another password, and his sessions are ended", out)
        }
        AdminCommand::Enable(admin) => enable(store, admin, true, "may log in", out).await,
        AdminCommand::Disable(admin) => enable(store, admin, false, "is barred, and his sessions are ended", out).await,
        AdminCommand::Delete(admin) => {
            let record = find(store, admin).await?;
            store.delete_admin(record.id).await?;
            if out.json {
                return out.json(&rows::deleted(record.id));
            }
            out.remark(&format!("administrator {} ({}) deleted", record.username, record.id))
        }
    }
}

async fn find(store: &Store, admin: &AdminRef) -> Result<AdminRecord, CtlError> {
    Ok(store.find_admin(&admin.admin).await?)
}

async fn enable(
    store: &Store,
    admin: &AdminRef,
    enabled: bool,
    done: &str,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    let id = find(store, admin).await?.id;
    let change = AdminChange { enabled: Some(enabled), ..AdminChange::default() };
    let record = store.update_admin(id, change, |_| true).await?;
    if out.json {
        return out.json(&rows::admin(record));
    }
    out.remark(&format!("administrator {} ({}) {done}", record.username, record.id))
}

fn tell(record: AdminRecord, password: Password, done: &str, out: &mut Output<'_>) -> Result<(), CtlError> {
    let (name, id) = (record.username.clone(), record.id);
    let admin = rows::admin(record);
    let secret = password.secret.expose();
    match (out.json, password.made) {
        (true, true) => return out.json(&Made { admin, password: secret.to_owned() }),
        (true, false) => return out.json(&admin),
        (false, true) => out.line(secret)?,
        (false, false) => {}
    }
    out.remark(&format!("administrator {name} ({id}) {done}"))?;
    if password.made { out.remark("the password is not shown again") } else { Ok(()) }
}

fn hash(password: &Password) -> Result<String, CtlError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt)?;
    hashing::hash(password.secret.expose(), salt).map_err(|error| CtlError::Usage(error.to_string()))
}
