//! `networks`: a client in several networks (DESIGN §8).
//!
//! The top level is the first network. Each entry is another one, with the keys of the top level and their defaults:
//! nothing is taken over from there, so that no key or route gets into a network by accident.

use crate::Config as _;
use crate::client::ClientConfig;
use crate::error::ConfigError;
use crate::schema::{Context, Field, Key, Kind, element, join, members};
use crate::values::InterfaceName;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// Longest label in bytes.
const MAX_LABEL: usize = 64;

/// Shown to people; what else an entry may hold is what [`ClientConfig`] holds.
const KEYS: &[Key] = &[
    Key {
        name: "name",
        doc: &[
            " What `--network` calls it: letters, digits, `.`, `_` and `-`. Its state is in networks/NAME of the state directory.",
        ],
        example: None,
        kind: Kind::Text,
    },
    Key {
        name: "controller",
        doc: &[
            " and every other key of this file but `state_dir` and `networks`, with the defaults told there;",
            " `tun.name`, left out, is wss-mesh1 for the first entry, and so on.",
        ],
        example: None,
        kind: Kind::Text,
    },
];

/// One of the further networks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkConfig {
    /// What `--network` calls it on this host.
    pub name: String,
    /// How it is joined.
    pub config: ClientConfig,
    /// `tun.name` was given.
    tun_named: bool,
}

impl NetworkConfig {
    /// A network that no file names; its interface is as `config` says.
    #[must_use]
    pub fn new(name: String, config: ClientConfig) -> Self {
        Self { name, config, tun_named: true }
    }
}

impl Field for NetworkConfig {
    const KIND: Kind = Kind::Section(KEYS);
    const REQUIRED: &'static [&'static str] = &["name", "controller"];

    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
        let mut network = Self::default();
        network.apply(value, cx, path)?;
        Ok(network)
    }

    fn apply(&mut self, value: &Value, cx: &Context<'_>, path: &str) -> Result<(), ConfigError> {
        let mut rest = Map::new();
        for (key, value) in members(value, cx, path)? {
            let path = join(path, key);
            match key.as_str() {
                "name" => {
                    self.name.apply(value, cx, &path)?;
                    if !is_network_label(&self.name) {
                        let expected = "1 to 64 letters, digits, `.`, `_` and `-`, not beginning with `.` or `-`";
                        return Err(cx.wrong(&path, expected, format!("{:?}", self.name)));
                    }
                }
                // One directory holds them all, and networks do not nest.
                "state_dir" | "networks" => return Err(cx.unknown(&path)),
                _ => {
                    self.tun_named |= key == "tun" && value.get("name").is_some();
                    rest.insert(key.clone(), value.clone());
                }
            }
        }
        self.config.apply(&Value::Object(rest), cx, path)
    }

    fn to_json(&self) -> Value {
        let mut json = self.config.to_json();
        if let Some(members) = json.as_object_mut() {
            members.insert("name".to_owned(), Value::String(self.name.clone()));
        }
        json
    }
}

impl ClientConfig {
    /// The further networks, each with an interface name of its own.
    #[must_use]
    pub fn further_networks(&self) -> Vec<NetworkConfig> {
        let named = |(nth, network): (usize, &NetworkConfig)| {
            let mut network = network.clone();
            if !network.tun_named {
                network.config.tun.name = InterfaceName::numbered(nth + 1);
            }
            network
        };
        self.networks.iter().enumerate().map(named).collect()
    }
}

/// Whether a further network may be called so: the name becomes that of a directory.
#[must_use]
pub fn is_network_label(name: &str) -> bool {
    (1..=MAX_LABEL).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

pub(crate) fn validate(config: &ClientConfig, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
    let unusable = |problem: String| Err(ConfigError::Unusable { key: "networks", problem });
    let mut labels = BTreeSet::new();
    // Firewall tables are named after interfaces, of which they keep letters and digits.
    let plain = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let mut interfaces = BTreeSet::from([plain(config.tun.name.as_str())]);
    let mut keys: BTreeSet<&Path> = config.key_file.as_deref().into_iter().collect();
    for network in config.further_networks() {
        if !labels.insert(network.name.clone()) {
            return unusable(format!("{:?} is there twice", network.name));
        }
        let interface = network.config.tun.name.as_str();
        if !interfaces.insert(plain(interface)) {
            return unusable(format!(
                "{:?}: another network has the interface {interface}; set its tun.name",
                network.name
            ));
        }
        let inner = network.config.validate().map_err(|error| match error {
            ConfigError::Unusable { key, problem } => {
                ConfigError::Unusable { key: "networks", problem: format!("{:?}, `{key}`: {problem}", network.name) }
            }
            other => other,
        })?;
        warnings.extend(inner.into_iter().map(|warning| format!("network {}: {warning}", network.name)));
    }
    for (nth, network) in config.networks.iter().enumerate() {
        // Two nodes with one identity would throw each other out.
        if let Some(file) = network.config.key_file.as_deref().filter(|file| !keys.insert(file)) {
            let place = element("networks", nth);
            return unusable(format!(
                "{place}: another network has the key_file {}; each needs its own",
                file.display()
            ));
        }
    }
    Ok(())
}
