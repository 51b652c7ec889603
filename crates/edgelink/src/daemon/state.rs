//! What the daemon keeps on disk: the machine key, the profile that `edgelink up` made, and what the node remembers.
//! Everything is 0600 and written atomically; a looser mode is refused.

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use edgelink_auth::{MachineKey, MachinePublic, key_file};
use edgelink_model::{NetworkId, NodeId};
use edgelink_node::PersistedState;
use edgelink_os::files;
use edgelink_session::trust::Pin;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The daemon's directory, locked while the daemon lives: two daemons with one identity would throw each other out.
pub(crate) struct StateDir {
    path: PathBuf,
    key_file: PathBuf,
    /// Numbers of states, rising for as long as the daemon lives.
    next_number: AtomicU64,
    /// Per file the newest state written, so that a slow write of an older one cannot undo it.
    written: Mutex<BTreeMap<String, u64>>,
    _lock: Flock<File>,
}

/// How to reach the controller, as given to `edgelink up`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// Controller URL.
    pub(crate) controller: Option<String>,
    /// Pin of the controller's certificate.
    pub(crate) pin: Option<String>,
    /// Pre-auth key, until it has served.
    pub(crate) auth_key: Option<String>,
    /// Host name to announce.
    pub(crate) hostname: Option<String>,
    /// `edgelink down` was the last word.
    #[serde(default)]
    pub(crate) down: bool,
    /// Interface name, of a network that `edgelink up --network` made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tun: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct NodeFile {
    seq_floor: u64,
    clock_offset_ms: i64,
    pins: Vec<PinRow>,
    config: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct PinRow {
    network: NetworkId,
    node: NodeId,
    machine_key: String,
    addresses: Vec<IpAddr>,
}

impl StateDir {
    /// Opens (and makes, if need be) the directory.
    pub(crate) fn open(path: &Path, key_file: Option<&Path>) -> Result<Self> {
        files::create_private_dir(path)?;
        let lock_path = path.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&lock_path);
        let file = file.with_context(|| format!("cannot open {}", lock_path.display()))?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            bail!(
                "another edgelink daemon uses {}: stop it, or give this one a directory of its own (state_dir in the configuration)",
                path.display()
            );
        };
        let key_file = key_file.map_or_else(|| path.join("keys.json"), Path::to_owned);
        Ok(Self {
            path: path.to_owned(),
            key_file,
            next_number: AtomicU64::new(1),
            written: Mutex::default(),
            _lock: lock,
        })
    }

    /// Where a further network keeps what is its own, below the first one's directory.
    pub(crate) fn of_network(root: &Path, label: &str) -> PathBuf {
        root.join("networks").join(label)
    }

    /// The further networks that `edgelink up` made, with what it was told.
    pub(crate) fn further_networks(&self) -> Result<Vec<(String, Profile)>> {
        let Ok(entries) = std::fs::read_dir(self.path.join("networks")) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if edgelink_config::is_network_label(&name)
                && let Some(profile) = self.read_json::<Profile>(&format!("networks/{name}/profile.json"))?
                && profile.controller.is_some()
            {
                found.push((name, profile));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The machine key, made at the first start. The only identity this host has: losing it means enrolling anew.
    pub(crate) fn machine_key(&self) -> Result<MachineKey> {
        match files::read_private(&self.key_file) {
            Ok(text) => {
                let (key, _) = key_file::decode(&text)
                    .with_context(|| format!("{} is not a machine key file", self.key_file.display()))?;
                Ok(key)
            }
            Err(error) if error.is_not_found() => {
                let key = MachineKey::generate(&mut super::os_rng());
                if let Some(parent) = self.key_file.parent() {
                    files::create_private_dir(parent)?;
                }
                files::write_private(&self.key_file, key_file::encode(&key, 0).as_bytes())?;
                tracing::info!(file = %self.key_file.display(), "made a machine key");
                Ok(key)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn profile(&self) -> Result<Profile> {
        Ok(self.read_json("profile.json")?.unwrap_or_default())
    }

    pub(crate) fn save_profile(&self, profile: &Profile) -> Result<()> {
        self.write_json("profile.json", profile)
    }

    /// What the node remembers, of this controller only: another controller's ids, pins and tokens mean nothing here.
    pub(crate) fn node_state(&self, controller: &str) -> Result<PersistedState> {
        let Some(file) = self.read_json::<NodeFile>(&node_file(controller))? else {
            return Ok(PersistedState::default());
        };
        let pins = file.pins.into_iter().filter_map(|row| {
            let machine = hex::decode(row.machine_key).ok()?.try_into().ok().map(MachinePublic)?;
            Some(Pin { network_id: row.network, node_id: row.node, machine_pub: machine, addresses: row.addresses })
        });
        Ok(PersistedState {
            seq_floor: file.seq_floor,
            clock_offset_ms: file.clock_offset_ms,
            pins: pins.collect(),
            config: file.config.and_then(|text| BASE64.decode(text).ok()),
        })
    }

    /// The number of a new state, for [`Self::save_node_state`].
    pub(crate) fn number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps what the node remembers. A state with a lower number than the last written one is left out.
    pub(crate) fn save_node_state(&self, controller: &str, number: u64, state: &PersistedState) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let name = node_file(controller);
        if written.get(&name).is_some_and(|last| *last > number) {
            return Ok(());
        }
        let pins = state.pins.iter().map(|pin| PinRow {
            network: pin.network_id,
            node: pin.node_id,
            machine_key: hex::encode(pin.machine_pub.0),
            addresses: pin.addresses.clone(),
        });
        let file = NodeFile {
            seq_floor: state.seq_floor,
            clock_offset_ms: state.clock_offset_ms,
            pins: pins.collect(),
            config: state.config.as_ref().map(|bytes| BASE64.encode(bytes)),
        };
        self.write_json(&name, &file)?;
        written.insert(name, number);
        Ok(())
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.path.join(name);
        match files::read_private(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .with_context(|| format!("{} is damaged; move it away to start afresh", path.display())),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        Ok(files::write_private(self.path.join(name), text.as_bytes())?)
    }
}

/// One file per controller, named after its host and port.
fn node_file(controller: &str) -> String {
    let authority = controller.split("://").nth(1).unwrap_or(controller).split('/').next().unwrap_or_default();
    let safe: String =
        authority.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' }).collect();
    format!("node-{safe}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_per_controller() {
        assert_eq!(node_file("wss://vpn.example.com:8443/ws/control"), "node-vpn.example.com_8443.json");
        assert_eq!(node_file("wss://[2001:db8::1]/ws/control"), "node-_2001_db8__1_.json");
    }

    #[test]
    fn the_machine_key_survives_and_the_directory_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path, None).unwrap();
        let first = state.machine_key().unwrap().public();
        assert_eq!(state.machine_key().unwrap().public(), first);
        let second = StateDir::open(&path, None).err().unwrap().to_string();
        assert!(second.contains("another edgelink daemon"), "{second}");
        drop(state);
        assert_eq!(StateDir::open(&path, None).unwrap().machine_key().unwrap().public(), first);
    }

    #[test]
    fn what_the_node_remembers_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("s"), None).unwrap();
        let pin = Pin {
            network_id: NetworkId(7),
            node_id: NodeId(9),
            machine_pub: MachinePublic([3; 32]),
            addresses: vec!["10.0.1.9".parse().unwrap()],
        };
        let kept =
            PersistedState { seq_floor: 5, clock_offset_ms: -86_400_000, pins: vec![pin], config: Some(vec![1, 2]) };
        let (older, newer) = (state.number(), state.number());
        state.save_node_state("wss://a/ws/control", newer, &kept).unwrap();
        state.save_node_state("wss://a/ws/control", older, &PersistedState::default()).unwrap();
        let read = state.node_state("wss://a/ws/control").unwrap();
        assert_eq!((read.seq_floor, read.clock_offset_ms, read.config), (5, -86_400_000, Some(vec![1, 2])));
        assert_eq!(read.pins.len(), 1);
        assert_eq!(read.pins[0].machine_pub, MachinePublic([3; 32]));
        assert!(state.node_state("wss://b/ws/control").unwrap().config.is_none());
        state.save_node_state("wss://b/ws/control", older, &kept).unwrap();
        assert!(state.node_state("wss://b/ws/control").unwrap().config.is_some(), "another controller's file");
        let later = PersistedState { seq_floor: 6, ..PersistedState::default() };
        state.save_node_state("wss://a/ws/control", state.number(), &later).unwrap();
        assert_eq!(state.node_state("wss://a/ws/control").unwrap().seq_floor, 6);
    }
}
