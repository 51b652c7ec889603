//! The commands.

use crate::args::{Cli, Command, Lifetime, NetworkCommand, NodeCommand, NodeRef, TokenCommand};
use crate::error::CtlError;
use crate::output::Output;
use crate::{admins, database, maintenance, rows, servers};
use edgelink_api::rest;
use edgelink_auth::auth_key;
use edgelink_config::Env;
use edgelink_model::NodeId;
use edgelink_store::{NewAuthKey, NewNetwork, NodeDetails, NodeFilter, Store};
use rand_core::UnwrapErr;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) async fn execute(cli: &Cli, env: &Env, root: bool, out: &mut Output<'_>) -> Result<(), CtlError> {
    let store = database::open(cli, env, root).await?;
    let result = match &cli.command {
        Command::Network(command) => network(&store, command, out).await,
        Command::Node(command) => node(&store, command, out).await,
        Command::Server(command) => servers::execute(&store, cli, env, root, command, out).await,
        Command::Token(command) => token(&store, command, out).await,
        Command::Db(command) => maintenance::execute(&store, command, out).await,
        Command::Admin(command) => admins::execute(&store, env, command, out).await,
        Command::Status => status(&store, out).await,
    };
    // The write-ahead log is folded in by whoever closes last; failing that, by the next one.
    let _ = store.close().await;
    result
}

async fn network(store: &Store, command: &NetworkCommand, out: &mut Output<'_>) -> Result<(), CtlError> {
    match command {
        NetworkCommand::List => {
            let networks: Vec<_> = store.networks().await?.into_iter().map(rows::network).collect();
            if out.json {
                return out.json(&networks);
            }
            let table: Vec<_> = networks
                .into_iter()
                .map(|n| [n.id.to_string(), n.name, n.subnet, n.nodes.to_string(), n.description])
                .collect();
            out.table(["ID", "NAME", "SUBNET", "NODES", "DESCRIPTION"], &table)
        }
        NetworkCommand::Create { name, subnet, description } => {
            let new = NewNetwork { name: name.clone(), subnet: *subnet, description: description.clone() };
            let id = store.create_network(new).await?.id;
            if out.json {
                return out.json(&rows::network(store.network(id).await?));
            }
            out.remark(&format!("network {name} ({id}) created with {subnet}"))
        }
        NetworkCommand::Show { network } => {
            show_network(rows::network(store.find_network(&network.network).await?), out)
        }
        NetworkCommand::Delete { network } => {
            let network = store.find_network(&network.network).await?.record;
            store.delete_network(network.id).await?;
            if out.json {
                return out.json(&rows::deleted(network.id.0));
            }
            out.remark(&format!("network {} ({}) deleted", network.name, network.id))
        }
    }
}

fn show_network(network: rest::Network, out: &mut Output<'_>) -> Result<(), CtlError> {
    if out.json {
        return out.json(&network);
    }
    out.fields(&[
        ("id", network.id.to_string()),
        ("name", network.name),
        ("subnet", network.subnet),
        ("subnet6", or_dash(network.subnet6)),
        ("description", network.description),
        ("nodes", network.nodes.to_string()),
        ("created", network.created_at.to_string()),
        ("updated", network.updated_at.to_string()),
    ])
}

async fn node(store: &Store, command: &NodeCommand, out: &mut Output<'_>) -> Result<(), CtlError> {
    match command {
        NodeCommand::List { network, online } => {
            let network = match network {
                Some(network) => Some(store.find_network(network).await?.record.id),
                None => None,
            };
            list_nodes(store, NodeFilter { network, online: *online }, out).await
        }
        NodeCommand::Show(node) => {
            let node = rows::node(find_node(store, node).await?);
            if out.json { out.json(&node) } else { show_node(node, out) }
        }
        NodeCommand::Authorize(node) => {
            let record = store.authorize_node(find_node(store, node).await?.record.id).await?;
            if out.json {
                return print_node(store, record.id, out).await;
            }
            let address = record.addresses().first().map(ToString::to_string);
            out.remark(&format!("node {} ({}) may join as {}", record.name, record.id, or_dash(address)))
        }
        NodeCommand::Deauthorize(node) => {
            let record = store.deauthorize_node(find_node(store, node).await?.record.id).await?;
            if out.json {
                return print_node(store, record.id, out).await;
            }
            out.remark(&format!("node {} ({}) is barred, its tokens are revoked", record.name, record.id))
        }
        NodeCommand::Rename { node, name } => {
            let before = find_node(store, node).await?.record;
            store.rename_node(before.id, name).await?;
            if out.json {
                return print_node(store, before.id, out).await;
            }
            out.remark(&format!("node {} ({}) is now {name}", before.name, before.id))
        }
        NodeCommand::Delete(node) => {
            let record = find_node(store, node).await?.record;
            store.delete_node(record.id).await?;
            if out.json {
                return out.json(&rows::deleted(record.id.0));
            }
            out.remark(&format!("node {} ({}) deleted, its tokens are revoked", record.name, record.id))
        }
    }
}

async fn find_node(store: &Store, node: &NodeRef) -> Result<NodeDetails, CtlError> {
    let network = match &node.network {
        Some(network) => Some(store.find_network(network).await?.record.id),
        None => None,
    };
    Ok(store.find_node(&node.node, network).await?)
}

async fn print_node(store: &Store, id: NodeId, out: &mut Output<'_>) -> Result<(), CtlError> {
    out.json(&rows::node(store.node(id).await?))
}

async fn list_nodes(store: &Store, filter: NodeFilter, out: &mut Output<'_>) -> Result<(), CtlError> {
    let nodes: Vec<_> = store.nodes(filter).await?.into_iter().map(rows::node).collect();
    if out.json {
        return out.json(&nodes);
    }
    let networks = store.networks().await?;
    let network_name = |id| networks.iter().find(|n| n.record.id.0 == id).map(|n| n.record.name.clone());
    let waiting = nodes.iter().filter(|n| !n.authorized).count();
    let table: Vec<_> = nodes
        .into_iter()
        .map(|n| {
            [
                n.id.to_string(),
                n.name,
                or_dash(network_name(n.network_id)),
                or_dash(n.virtual_ip),
                yes_no(n.authorized),
                yes_no(n.online),
                or_dash(n.last_seen),
                n.os,
                n.version,
            ]
        })
        .collect();
    if table.is_empty() {
        return out.remark("no nodes");
    }
    let header = ["ID", "NAME", "NETWORK", "ADDRESS", "AUTHORIZED", "ONLINE", "LAST SEEN", "OS", "VERSION"];
    out.table(header, &table)?;
    if waiting > 0 {
        out.remark(&format!("{waiting} not authorized; let one join with: edgelink-ctl node authorize ID"))?;
    }
    Ok(())
}

fn show_node(node: rest::Node, out: &mut Output<'_>) -> Result<(), CtlError> {
    out.fields(&[
        ("id", node.id.to_string()),
        ("name", node.name),
        ("network", node.network_id.to_string()),
        ("address", or_dash(node.virtual_ip)),
        ("address6", or_dash(node.virtual_ip6)),
        ("authorized", yes_no(node.authorized)),
        ("online", yes_no(node.online)),
        ("last seen", or_dash(node.last_seen)),
        ("machine key", node.machine_key_pub),
        ("node key", or_dash(node.node_key_pub)),
        ("node key since", or_dash(node.node_key_updated_at)),
        ("host", node.hostname),
        ("system", format!("{} {}", node.os, node.arch)),
        ("version", node.version),
        ("NAT", or_dash(node.nat_type)),
        ("created", node.created_at.to_string()),
        ("updated", node.updated_at.to_string()),
    ])
}

async fn token(store: &Store, command: &TokenCommand, out: &mut Output<'_>) -> Result<(), CtlError> {
    match command {
        TokenCommand::Generate { kind: _, network, reusable, preauthorize, approve_routes, expires } => {
            let powers =
                KeyPowers { reusable: *reusable, preauthorized: *preauthorize, approve_routes: *approve_routes };
            generate_auth_key(store, network, powers, *expires, out).await
        }
        TokenCommand::Blacklist { jti: Some(jti), node: _, reason } => {
            let revocation = store.revoke_token(jti, reason).await?;
            blacklisted(store, &revocation.id, &format!("token {jti} is revoked"), out).await
        }
        TokenCommand::Blacklist { jti: None, node: Some(node), reason } => {
            let node = store.find_node(node, None).await?.record;
            let revocation = store.revoke_node(node.id, reason).await?;
            let remark = format!(
                "the tokens of node {} ({}) are revoked; it may fetch new ones (to bar it: node deauthorize)",
                node.name, node.id
            );
            blacklisted(store, &revocation.id, &remark, out).await
        }
        TokenCommand::Blacklist { jti: None, node: None, .. } => {
            let revocations: Vec<_> = store.revocations().await?.into_iter().map(rows::revocation).collect();
            if out.json {
                return out.json(&revocations);
            }
            if revocations.is_empty() {
                return out.remark("nothing is revoked");
            }
            let table: Vec<_> = revocations
                .into_iter()
                .map(|r| {
                    let node = or_dash(r.node_id);
                    [r.jti, node, r.created_at.to_string(), r.expires_at.to_string(), r.reason]
                })
                .collect();
            out.table(["JTI", "NODE", "REVOKED", "EXPIRES", "REASON"], &table)
        }
    }
}

async fn blacklisted(store: &Store, id: &str, remark: &str, out: &mut Output<'_>) -> Result<(), CtlError> {
    if !out.json {
        return out.remark(remark);
    }
    let revocation = store.revocations().await?.into_iter().find(|r| r.record.id == id);
    out.json(&revocation.map(rows::revocation))
}

/// What an auth key opens, and how often.
#[derive(Clone, Copy)]
struct KeyPowers {
    reusable: bool,
    preauthorized: bool,
    approve_routes: bool,
}

async fn generate_auth_key(
    store: &Store,
    network: &str,
    powers: KeyPowers,
    expires: Lifetime,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    let KeyPowers { reusable, preauthorized, approve_routes } = powers;
    let network = store.find_network(network).await?.record;
    // Asked once for its errors, so that the generator need not panic.
    getrandom::fill(&mut [0; 1])?;
    let key = auth_key::generate(&mut UnwrapErr(getrandom::SysRng));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let record = store
        .create_auth_key(NewAuthKey {
            key_hash: auth_key::hash(&key),
            network_id: network.id,
            reusable,
            preauthorized,
            approve_routes,
            expires_at: expires.0.map(|d| now.saturating_add(d.as_millis() as u64)),
        })
        .await?;
    let answer = rest::NewAuthKey {
        key,
        id: record.id,
        network_id: network.id.0,
        reusable,
        preauthorized,
        expires_at: record.expires_at.map(rest::Timestamp::from_unix_ms),
    };
    if out.json {
        return out.json(&answer);
    }
    out.line(&answer.key)?;
    out.remark(&format!(
        "opens network {} for {}, {}, until {}; it is not shown again",
        network.name,
        if reusable { "any number of machines" } else { "one machine" },
        if preauthorized { "at once" } else { "after node authorize" },
        answer.expires_at.map_or_else(|| "it is deleted".to_owned(), |t| t.to_string()),
    ))
}

async fn status(store: &Store, out: &mut Output<'_>) -> Result<(), CtlError> {
    let overview = rows::overview(store.counts().await?);
    if out.json {
        return out.json(&overview);
    }
    let nodes = overview.nodes;
    out.fields(&[
        ("database", store.location().to_string()),
        ("config version", overview.config_version.to_string()),
        ("networks", overview.networks.to_string()),
        (
            "nodes",
            format!(
                "{} ({} online, {} authorized, {} not authorized)",
                nodes.total, nodes.online, nodes.authorized, nodes.unauthorized
            ),
        ),
        ("servers", format!("{} ({} enabled)", overview.servers.total, overview.servers.enabled)),
        ("revocations", overview.revocations.to_string()),
    ])
}

pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |v| v.to_string())
}

pub(crate) fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.into()
}
