//! A crowd joins and the controller is killed in the middle of it: whoever was let in is in the database, once.

use crate::controller::Controller;
use crate::node;
use crate::shared::Shared;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(60);
const NODES: usize = 200;
/// Let in before the controller is killed.
const BEFORE: usize = 40;

fn bin_dir() -> PathBuf {
    match std::env::var_os("EDGELINK_BIN_DIR") {
        Some(dir) => dir.into(),
        None => std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn whoever_was_let_in_before_kill_minus_nine_is_known_afterwards() {
    let outcome = crate::on_one_thread(async {
        let mut controller = Controller::start(Some(&bin_dir()), "", LIMIT).await?;
        let key = controller.add_network(0, NODES).await?;
        let shared = Rc::new(Shared::new(&controller, 1, NODES, 16)?);
        let (tell, mut told) = mpsc::unbounded_channel();
        for _ in 0..NODES {
            let (shared, key, tell) = (Rc::clone(&shared), key.clone(), tell.clone());
            tokio::task::spawn_local(async move {
                let _ = tell.send(node::enrol(&shared, 0, key).await.ok());
            });
        }
        let mut let_in = BTreeMap::new();
        for number in 0..NODES {
            if number == BEFORE {
                controller.kill().await?;
            }
            // Those that come afterwards had their answer under way, or none.
            if let Some((machine, node, _)) = told.recv().await.unwrap() {
                let_in.insert(hex(&machine.public().0), node);
            }
        }
        assert!((BEFORE..NODES).contains(&let_in.len()), "{} were let in", let_in.len());

        controller.ctl(&["db", "check"]).await?;
        let nodes: serde_json::Value = serde_json::from_str(&controller.ctl(&["node", "list"]).await?)?;
        let nodes = nodes.as_array().unwrap();
        let known: BTreeMap<&str, u64> = nodes
            .iter()
            .map(|node| (node["machine_key_pub"].as_str().unwrap(), node["id"].as_u64().unwrap()))
            .collect();
        let addresses: BTreeSet<&str> = nodes.iter().map(|node| node["virtual_ip"].as_str().unwrap()).collect();
        assert_eq!((known.len(), addresses.len()), (nodes.len(), nodes.len()), "every machine and address once");
        for (machine, node) in &let_in {
            assert_eq!(known.get(machine.as_str()), Some(&u64::from(*node)), "a node that was let in is lost");
        }
        anyhow::Ok(())
    });
    outcome.unwrap();
}
