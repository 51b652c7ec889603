//! `server …`: relays and STUN servers, and the configuration that makes one of them ours.

use crate::args::{Capability, Cli, ControllerUrl, NewServerArgs, ServerCommand};
use crate::commands::{or_dash, yes_no};
use crate::error::CtlError;
use crate::output::Output;
use crate::{database, introduce, rows};
use edgelink_config::{ControllerConfig, Env};
use edgelink_model::records::ServerRecord;
use edgelink_store::{NewServer, ServerDetails, Store};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// What `server add` and `server token` answer.
#[derive(Serialize)]
struct Added {
    id: u32,
    token: String,
    /// `edgelink-server`'s configuration.
    config: Value,
}

pub(crate) async fn execute(
    store: &Store,
    cli: &Cli,
    env: &Env,
    root: bool,
    command: &ServerCommand,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        ServerCommand::List => list(store, out).await,
        ServerCommand::Show(server) => show(store.find_server(&server.server).await?, out),
        ServerCommand::Add(new) => {
            let record = add(store, new).await?;
            out.remark(&format!("server {} ({}) added; its configuration:", record.name, record.id))?;
            introduce(store, cli, env, root, &record, &new.controller, out).await
        }
        ServerCommand::Token { server, controller } => {
            let record = store.find_server(&server.server).await?.record;
            out.remark(&format!("another token for server {} ({}):", record.name, record.id))?;
            introduce(store, cli, env, root, &record, controller, out).await
        }
        ServerCommand::Remove(server) => {
            let record = store.find_server(&server.server).await?.record;
            store.delete_server(record.id).await?;
            if out.json {
                return out.json(&rows::deleted(record.id.0));
            }
            out.remark(&format!("server {} ({}) removed", record.name, record.id))
        }
        ServerCommand::Enable(server) => enable(store, &server.server, true, out).await,
        ServerCommand::Disable(server) => enable(store, &server.server, false, out).await,
    }
}

async fn list(store: &Store, out: &mut Output<'_>) -> Result<(), CtlError> {
    let servers = store.servers().await?;
    if out.json {
        return out.json(&servers.into_iter().map(rows::server).collect::<Vec<_>>());
    }
    let table: Vec<_> = servers
        .into_iter()
        .map(|details| {
            let status = status(&details);
            let s = rows::server(details);
            let id = s.id.to_string();
            let (enabled, url) = (yes_no(s.enabled), or_dash(s.url));
            [id, s.name, s.kind, s.capabilities.join(","), enabled, status.to_owned(), url, s.region]
        })
        .collect();
    out.table(["ID", "NAME", "TYPE", "CAPABILITIES", "ENABLED", "STATUS", "URL", "REGION"], &table)
}

fn show(details: ServerDetails, out: &mut Output<'_>) -> Result<(), CtlError> {
    let status = status(&details);
    let server = rows::server(details);
    if out.json {
        return out.json(&server);
    }
    out.fields(&[
        ("id", server.id.to_string()),
        ("name", server.name),
        ("type", server.kind),
        ("capabilities", server.capabilities.join(",")),
        ("enabled", yes_no(server.enabled)),
        ("status", status.to_owned()),
        ("url", or_dash(server.url)),
        ("region", server.region),
        ("STUN address", or_dash(server.stun_ip)),
        ("STUN address 2", or_dash(server.stun_ip2)),
        ("STUN port", server.stun_port.to_string()),
        ("last heartbeat", or_dash(server.last_heartbeat)),
        ("created", server.created_at.to_string()),
    ])
}

/// Whether the controller has heard of it lately.
fn status(details: &ServerDetails) -> &'static str {
    match (details.last_heartbeat, details.online) {
        (None, _) => "never seen",
        (Some(_), true) => "online",
        (Some(_), false) => "offline",
    }
}

async fn add(store: &Store, new: &NewServerArgs) -> Result<ServerRecord, CtlError> {
    let has = |capability| new.capabilities.contains(&capability);
    if has(Capability::Stun) && new.stun_ip.is_none() {
        return Err(CtlError::Usage("a STUN server needs its public address: --stun-ip IP".into()));
    }
    let server = NewServer {
        name: new.name.clone(),
        url: new.url.clone().map(|url| url.or_path("/ws/data").to_string()),
        region: new.region.clone(),
        relay: has(Capability::Relay),
        stun: has(Capability::Stun),
        stun_ip: new.stun_ip,
        stun_ip2: new.stun_ip2,
        stun_port: new.stun_port,
    };
    Ok(store.add_server(server).await?)
}

async fn enable(store: &Store, server: &str, enabled: bool, out: &mut Output<'_>) -> Result<(), CtlError> {
    let record = store.find_server(server).await?.record;
    store.set_server_enabled(record.id, enabled).await?;
    if out.json {
        return out.json(&rows::server(store.find_server(&record.id.to_string()).await?));
    }
    let done = if enabled { "may be used by nodes" } else { "is taken away from nodes" };
    out.remark(&format!("server {} ({}) {done}", record.name, record.id))
}

/// A token, in the configuration that uses it.
async fn introduce(
    store: &Store,
    cli: &Cli,
    env: &Env,
    root: bool,
    record: &ServerRecord,
    controller: &ControllerUrl,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    let token = introduce::server_token(store, record).await?;
    let database = database::find(cli, env, root)?;
    // Without a readable configuration file the defaults say nothing of a URL either.
    let config: Option<ControllerConfig> = edgelink_config::load(cli.config.as_deref(), env).ok();
    let url = controller.controller.clone().or_else(|| config.and_then(|config| config.public_url.0.first().cloned()));
    let known = url.is_some();
    let config = introduce::server_configuration(record, &token, url, pin(database.file())?);
    if out.json {
        return out.json(&Added { id: record.id.0, token, config });
    }
    out.json(&config)?;
    if !known {
        out.remark("put the controller's name or address in controller.url (or give --controller URL)")?;
    }
    out.remark(
        "save it as server.json on the server, complete relay.tls, and run: edgelink-server --config server.json",
    )
}

/// What to pin when the controller has a certificate of its own making, which lies beside its database.
fn pin(database: Option<&Path>) -> Result<Option<String>, CtlError> {
    let Some(pem) = database.and_then(Path::parent).and_then(|dir| std::fs::read(dir.join("ca.pem")).ok()) else {
        return Ok(None);
    };
    let unusable = |error| CtlError::Damaged(format!("ca.pem beside the database: {error}"));
    Ok(Some(edgelink_net::tls::spki_pin(&pem).map_err(unusable)?.to_string()))
}
