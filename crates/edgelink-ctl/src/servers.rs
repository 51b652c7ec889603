//! `server …`: relays and STUN servers, and the configuration that makes one of them ours.

use crate::args::{Capability, ControllerUrl, NewServerArgs, ServerCommand};
use crate::backend::Backend;
use crate::commands::{or_dash, yes_no};
use crate::error::CtlError;
use crate::output::Output;
use edgelink_api::rest;

/// What stands in a configuration whose controller nobody named.
const UNKNOWN: &str = "wss://CONTROLLER/";

pub(crate) async fn execute(
    backend: &impl Backend,
    command: &ServerCommand,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        ServerCommand::List => list(backend, out).await,
        ServerCommand::Show(server) => show(backend.find_server(&server.server).await?, out),
        ServerCommand::Add(new) => add(backend, new, out).await,
        ServerCommand::Token { server, controller } => {
            let server = backend.find_server(&server.server).await?;
            let new = rest::NewServerToken { controller: url(controller) };
            let token = backend.server_token(server.id, new).await?;
            out.remark(&format!("another token for server {} ({}):", server.name, server.id))?;
            introduce(token, out)
        }
        ServerCommand::Delete(server) => {
            let server = backend.find_server(&server.server).await?;
            let deleted = backend.delete_server(server.id).await?;
            if out.json {
                return out.json(&deleted);
            }
            out.remark(&format!("server {} ({}) removed", server.name, server.id))
        }
        ServerCommand::Enable(server) => enable(backend, &server.server, true, out).await,
        ServerCommand::Disable(server) => enable(backend, &server.server, false, out).await,
    }
}

async fn list(backend: &impl Backend, out: &mut Output<'_>) -> Result<(), CtlError> {
    let servers = backend.servers().await?;
    if out.json {
        return out.json(&servers);
    }
    let table: Vec<_> = servers
        .into_iter()
        .map(|s| {
            let status = status(&s).to_owned();
            let (enabled, url) = (yes_no(s.enabled), or_dash(s.url));
            [s.id.to_string(), s.name, s.kind, s.capabilities.join(","), enabled, status, url, s.region]
        })
        .collect();
    out.table(["ID", "NAME", "TYPE", "CAPABILITIES", "ENABLED", "STATUS", "URL", "REGION"], &table)
}

fn show(server: rest::Server, out: &mut Output<'_>) -> Result<(), CtlError> {
    if out.json {
        return out.json(&server);
    }
    let status = status(&server).to_owned();
    out.fields(&[
        ("id", server.id.to_string()),
        ("name", server.name),
        ("type", server.kind),
        ("capabilities", server.capabilities.join(",")),
        ("enabled", yes_no(server.enabled)),
        ("status", status),
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
fn status(server: &rest::Server) -> &'static str {
    match (&server.last_heartbeat, server.online) {
        (None, _) => "never seen",
        (Some(_), true) => "online",
        (Some(_), false) => "offline",
    }
}

async fn add(backend: &impl Backend, new: &NewServerArgs, out: &mut Output<'_>) -> Result<(), CtlError> {
    if new.capabilities.contains(&Capability::Stun) && new.stun_ip.is_none() {
        return Err(CtlError::Usage("a STUN server needs its public address: --stun-ip IP".into()));
    }
    let capability = |capability: &Capability| match capability {
        Capability::Relay => rest::Capability::Relay,
        Capability::Stun => rest::Capability::Stun,
    };
    let server = rest::NewServer {
        name: new.name.clone(),
        url: new.url.as_ref().map(ToString::to_string),
        capabilities: new.capabilities.iter().map(capability).collect(),
        region: new.region.clone(),
        stun_ip: new.stun_ip.map(|ip| ip.to_string()),
        stun_ip2: new.stun_ip2.map(|ip| ip.to_string()),
        stun_port: new.stun_port,
        controller: url(&new.controller),
    };
    let token = backend.add_server(server).await?;
    out.remark(&format!("server {} ({}) added; its configuration:", new.name, token.id))?;
    introduce(token, out)
}

async fn enable(backend: &impl Backend, server: &str, enabled: bool, out: &mut Output<'_>) -> Result<(), CtlError> {
    let id = backend.find_server(server).await?.id;
    let server = backend.enable_server(id, enabled).await?;
    if out.json {
        return out.json(&server);
    }
    let done = if enabled { "may be used by nodes" } else { "is taken away from nodes" };
    out.remark(&format!("server {} ({}) {done}", server.name, server.id))
}

/// Prints a token, in the configuration that uses it.
fn introduce(token: rest::ServerToken, out: &mut Output<'_>) -> Result<(), CtlError> {
    if out.json {
        return out.json(&token);
    }
    out.json(&token.config)?;
    let controller = token.config.pointer("/controller/url").and_then(|url| url.as_str());
    if controller.is_some_and(|url| url.starts_with(UNKNOWN)) {
        out.remark("put the controller's name or address in controller.url (or give --controller URL)")?;
    }
    out.remark(
        "save it as server.json on the server, complete relay.tls, and run: edgelink-server --config server.json",
    )
}

fn url(controller: &ControllerUrl) -> Option<String> {
    controller.controller.as_ref().map(ToString::to_string)
}
