//! `network …`

use crate::args::NetworkCommand;
use crate::backend::Backend;
use crate::commands::or_dash;
use crate::error::CtlError;
use crate::output::Output;
use edgelink_api::rest;

pub(crate) async fn execute(
    backend: &impl Backend,
    command: &NetworkCommand,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        NetworkCommand::List => {
            let networks = backend.networks().await?;
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
            let (name, subnet, description) = (name.clone(), subnet.to_string(), description.clone());
            let network = backend.create_network(rest::NewNetwork { name, subnet, description }).await?;
            if out.json {
                return out.json(&network);
            }
            out.remark(&format!("network {} ({}) created with {}", network.name, network.id, network.subnet))
        }
        NetworkCommand::Show { network } => show(backend.find_network(&network.network).await?, out),
        NetworkCommand::Update { network, name, subnet, description } => {
            let id = backend.find_network(&network.network).await?.id;
            let subnet = subnet.map(|subnet| subnet.to_string());
            let change = rest::UpdateNetwork { name: name.clone(), subnet, description: description.clone() };
            let network = backend.update_network(id, change).await?;
            if out.json {
                return out.json(&network);
            }
            out.remark(&format!("network {} ({}) has {}", network.name, network.id, network.subnet))
        }
        NetworkCommand::Delete { network } => {
            let network = backend.find_network(&network.network).await?;
            let deleted = backend.delete_network(network.id).await?;
            if out.json {
                return out.json(&deleted);
            }
            out.remark(&format!("network {} ({}) deleted", network.name, network.id))
        }
    }
}

fn show(network: rest::Network, out: &mut Output<'_>) -> Result<(), CtlError> {
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
