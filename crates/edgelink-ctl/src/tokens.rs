//! `token …`: keys with which nodes join, and what is revoked.

use crate::args::TokenCommand;
use crate::backend::Backend;
use crate::commands::{or_dash, yes_no};
use crate::error::CtlError;
use crate::output::Output;
use edgelink_api::rest;

pub(crate) async fn execute(
    backend: &impl Backend,
    command: &TokenCommand,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        TokenCommand::Generate { kind: _, network, reusable, preauthorize, approve_routes, expires } => {
            let new = rest::CreateAuthKey {
                network_id: backend.find_network(network).await?.id,
                reusable: *reusable,
                preauthorized: *preauthorize,
                approve_routes: *approve_routes,
                expires_in: expires.0.map(|lifetime| lifetime.as_secs()),
            };
            generate_auth_key(backend, new, out).await
        }
        TokenCommand::List { network } => {
            let keys = backend.auth_keys(network.as_deref()).await?;
            if out.json {
                return out.json(&keys);
            }
            if keys.is_empty() {
                return out.remark("no auth keys");
            }
            let table: Vec<_> = keys
                .into_iter()
                .map(|k| {
                    let expires = k.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
                    let (id, network) = (k.id.to_string(), k.network_id.to_string());
                    [id, network, yes_no(k.reusable), yes_no(k.preauthorized), expires, or_dash(k.used_at)]
                })
                .collect();
            out.table(["ID", "NETWORK", "REUSABLE", "PREAUTHORIZED", "EXPIRES", "LAST USED"], &table)
        }
        TokenCommand::Revoke { id } => {
            let deleted = backend.delete_auth_key(*id).await?;
            if out.json {
                return out.json(&deleted);
            }
            out.remark(&format!("auth key {id} opens nothing any more; nodes that joined with it stay"))
        }
        TokenCommand::Blacklist { jti: Some(jti), node: _, reason } => {
            let revoke = rest::Revoke { jti: Some(jti.clone()), node_id: None, reason: reason.clone() };
            let revocation = backend.revoke(revoke).await?;
            if out.json {
                return out.json(&revocation);
            }
            out.remark(&format!("token {jti} is revoked"))
        }
        TokenCommand::Blacklist { jti: None, node: Some(node), reason } => {
            let node = backend.find_node(node, None).await?;
            let revoke = rest::Revoke { jti: None, node_id: Some(node.id), reason: reason.clone() };
            let revocation = backend.revoke(revoke).await?;
            if out.json {
                return out.json(&revocation);
            }
            out.remark(&format!(
                "the tokens of node {} ({}) are revoked; it may fetch new ones (to bar it: node deauthorize)",
                node.name, node.id
            ))
        }
        TokenCommand::Blacklist { jti: None, node: None, .. } => {
            let revocations = backend.blacklist().await?;
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

async fn generate_auth_key(
    backend: &impl Backend,
    new: rest::CreateAuthKey,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    let answer = backend.create_auth_key(new).await?;
    if out.json {
        return out.json(&answer);
    }
    out.line(&answer.key)?;
    let network = backend.find_network(&answer.network_id.to_string()).await?.name;
    out.remark(&format!(
        "opens network {network} for {}, {}, until {}; it is not shown again",
        if answer.reusable { "any number of machines" } else { "one machine" },
        if answer.preauthorized { "at once" } else { "after node authorize" },
        answer.expires_at.map_or_else(|| "it is deleted".to_owned(), |t| t.to_string()),
    ))
}
