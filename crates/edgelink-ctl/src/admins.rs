//! `admin …`: who may use the REST API.

use crate::args::{AdminCommand, AdminRef};
use crate::backend::Backend;
use crate::commands::{or_dash, yes_no};
use crate::error::CtlError;
use crate::output::Output;
use crate::password::{self, Password};
use edgelink_api::rest;
use edgelink_config::Env;
use serde::Serialize;

/// An administrator with the password that was made for him, the only time that it is shown.
#[derive(Serialize)]
struct Made {
    #[serde(flatten)]
    admin: rest::Admin,
    password: String,
}

pub(crate) async fn execute(
    backend: &impl Backend,
    env: &Env,
    command: &AdminCommand,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        AdminCommand::List => {
            let admins = backend.admins().await?;
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
            let admin = backend.create_admin(username, password.secret.clone()).await?;
            tell(admin, password, "made", out)
        }
        AdminCommand::Show(admin) => {
            let admin = backend.find_admin(&admin.admin).await?;
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
            let id = backend.find_admin(&admin.admin).await?.id;
            let current_password = match backend.asks_for_password() {
                true => Some(password::present("Your own present password: ")?),
                false => None,
            };
            let password = password::new(password, env)?;
            let change = rest::UpdateAdmin {
                password: Some(password.secret.clone()),
                current_password,
                ..rest::UpdateAdmin::default()
            };
            let admin = backend.update_admin(id, change).await?;
            tell(admin, password, "has another password, and his sessions are ended", out)
        }
        AdminCommand::Enable(admin) => enable(backend, admin, true, "may log in", out).await,
        AdminCommand::Disable(admin) => {
            enable(backend, admin, false, "is barred, and his sessions are ended", out).await
        }
        AdminCommand::Delete(admin) => {
            let admin = backend.find_admin(&admin.admin).await?;
            let deleted = backend.delete_admin(admin.id).await?;
            if out.json {
                return out.json(&deleted);
            }
            out.remark(&format!("administrator {} ({}) deleted", admin.username, admin.id))
        }
    }
}

async fn enable(
    backend: &impl Backend,
    admin: &AdminRef,
    enabled: bool,
    done: &str,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    let id = backend.find_admin(&admin.admin).await?.id;
    let change = rest::UpdateAdmin { enabled: Some(enabled), ..rest::UpdateAdmin::default() };
    let admin = backend.update_admin(id, change).await?;
    if out.json {
        return out.json(&admin);
    }
    out.remark(&format!("administrator {} ({}) {done}", admin.username, admin.id))
}

fn tell(admin: rest::Admin, password: Password, done: &str, out: &mut Output<'_>) -> Result<(), CtlError> {
    let (name, id) = (admin.username.clone(), admin.id);
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
