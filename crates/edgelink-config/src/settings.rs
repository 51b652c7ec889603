//! The controller's keys that may also be set in its database, and what can change while it runs (DESIGN §4, §8).
//!
//! Precedence: built-in defaults < file < database < environment < command-line flags.

use crate::controller::{ControllerConfig, RUN_TIME};
use crate::env;
use crate::error::{ConfigError, Origin};
use crate::nearest;
use crate::schema::{Context, Field as _, Key, Kind, Section, Source};
use crate::{Config as _, Env, Program, Tls, document};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Names that specification §9.2 gives some settings, and the keys that they are.
const ALIASES: &[(&str, &str)] = &[
    ("auth_token_expire_hours", "tokens.auth_expire_hours"),
    ("relay_token_expire_hours", "tokens.relay_expire_hours"),
    ("node_key_rotate_hours", "security.node_key_rotate_hours"),
];

/// Keys, or whole sections, that a database cannot hold: what is needed to find it, where the controller listens (it
/// does before it opens the database), and secrets.
const FILE_ONLY: &[(&str, &str)] = &[
    ("database", "it says where the database is"),
    ("state_dir", "it says where the database is"),
    ("listen", "the controller listens before it opens its database"),
    ("builtin_stun", "the controller listens before it opens its database"),
    ("jwt", "secrets are not kept beside what they protect"),
];

/// When a new value is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// While the controller runs.
    Now,
    /// With its next start.
    Restart,
}

/// A key that can be set in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingInfo {
    /// Full path, such as `tokens.auth_expire_hours`.
    pub key: String,
    /// What it is.
    pub doc: String,
    /// When a new value is in force.
    pub takes: Takes,
}

/// A value for one key, checked by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Full path, such as `tokens.auth_expire_hours`.
    pub key: String,
    /// The value as [`Setting::new`] takes it, fit for the database.
    pub text: String,
    /// When it is in force.
    pub takes: Takes,
}

/// Full path → text of the values that the database holds.
pub type Settings = BTreeMap<String, String>;

impl Setting {
    /// Checks `text` for `key`, its full path or its name in specification §9.2. Strings are taken as they are, numbers
    /// and truth values as in JSON, lists as a JSON array or between commas: as in an environment variable.
    ///
    /// # Errors
    /// [`ConfigError::UnknownKey`] with the nearest known one, [`ConfigError::WrongValue`], and
    /// [`ConfigError::NotInDatabase`] for keys that must stand in the file.
    pub fn new(key: &str, text: &str) -> Result<Self, ConfigError> {
        let (key, takes) = find(key)?;
        let one = Settings::from([(key.clone(), text.to_owned())]);
        apply(&mut ControllerConfig::default(), &one, None)?;
        Ok(Self { key, text: text.to_owned(), takes })
    }

    /// The full path of `key`, if it can be set in the database: to unset it.
    ///
    /// # Errors
    /// As [`Setting::new`].
    pub fn key(key: &str) -> Result<String, ConfigError> {
        find(key).map(|(key, _)| key)
    }

    /// Every key that can be set in the database, in the order of the documentation.
    pub fn all() -> Vec<SettingInfo> {
        let mut all = Vec::new();
        leaves(ControllerConfig::KEYS, "", &mut |path, key| {
            if file_only(path).is_none() {
                let doc = key.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
                all.push(SettingInfo { key: path.to_owned(), doc, takes: takes(path) });
            }
        });
        all
    }
}

/// Reads the controller's configuration from its file (without one: the defaults), the database's `settings` and the
/// environment, and checks it as a whole. Command-line flags are the shell's to lay over it.
///
/// # Errors
/// As [`crate::load`] and [`crate::Config::validate`].
pub fn load_controller(
    file: Option<&Path>,
    settings: &Settings,
    env: &Env,
) -> Result<(ControllerConfig, Vec<String>), ConfigError> {
    let mut config: ControllerConfig = crate::load_file(file, env)?;
    apply(&mut config, settings, env.home())?;
    crate::apply_env(&mut config, env)?;
    let warnings = config.validate()?;
    Ok((config, warnings))
}

/// The settings that an environment variable hides: the key, and the variable.
pub fn hidden_by_environment(settings: &Settings, env: &Env) -> Vec<(String, String)> {
    let variable = |key: &String| env::variable(&key.split('.').collect::<Vec<_>>());
    settings.keys().map(|key| (key.clone(), variable(key))).filter(|(_, name)| env.get(name).is_some()).collect()
}

/// One key whose value differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Full path.
    pub key: String,
    /// The value before, as JSON; secrets are hidden.
    pub from: String,
    /// The value now.
    pub to: String,
    /// When it is in force.
    pub takes: Takes,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} → {}", self.key, self.from, self.to)
    }
}

impl ControllerConfig {
    /// What differs in `new`, key by key.
    pub fn changes(&self, new: &Self) -> Vec<Changed> {
        let mut changed = differences(&self.flat(), &new.flat(), RUN_TIME);
        // Secrets look alike.
        if changed.iter().all(|change| !change.key.starts_with("jwt")) && self.jwt != new.jwt {
            let (key, hidden) = ("jwt.secret".to_owned(), "\"…\"".to_owned());
            changed.push(Changed { key, from: hidden.clone(), to: hidden, takes: Takes::Restart });
        }
        if changed.iter().all(|change| !change.key.starts_with("database")) && self.database != new.database {
            let (key, hidden) = ("database.url".to_owned(), "\"…\"".to_owned());
            changed.push(Changed { key, from: hidden.clone(), to: hidden, takes: Takes::Restart });
        }
        tell_of_tls(&mut changed, "tls", &self.tls, &new.tls);
        changed
    }

    /// Every key with its value as a file would have it, by full path; secrets are hidden.
    pub fn flat(&self) -> BTreeMap<String, Value> {
        flat(self)
    }
}

/// Every key of a configuration; see [`ControllerConfig::flat`].
pub(crate) fn flat<T: Section>(config: &T) -> BTreeMap<String, Value> {
    fn walk(schema: &[Key], value: &Value, outer: &str, out: &mut BTreeMap<String, Value>) {
        for key in schema {
            let path = crate::schema::join(outer, key.name);
            let value = value.get(key.name).unwrap_or(&Value::Null);
            match key.kind {
                Kind::Section(keys) if !value.is_null() => walk(keys, value, &path, out),
                _ => _ = out.insert(path, value.clone()),
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(T::KEYS, &config.to_json(), "", &mut out);
    out
}

/// What differs; `run_time` names what is in force at once.
pub(crate) fn differences(
    before: &BTreeMap<String, Value>,
    after: &BTreeMap<String, Value>,
    run_time: &[&str],
) -> Vec<Changed> {
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort();
    keys.dedup();
    let text = |values: &BTreeMap<String, Value>, key| values.get(key).unwrap_or(&Value::Null).to_string();
    let takes = |key: &str| if run_time.contains(&key) { Takes::Now } else { Takes::Restart };
    keys.into_iter()
        .map(|key| (key, text(before, key), text(after, key)))
        .filter(|(_, from, to)| from != to)
        .map(|(key, from, to)| Changed { key: key.clone(), from, to, takes: takes(key) })
        .collect()
}

/// From and to a certificate of its own the way changes, not the files alone.
pub(crate) fn tell_of_tls(changed: &mut Vec<Changed>, key: &str, before: &Tls, after: &Tls) {
    let files = |tls: &Tls| matches!(tls, Tls::Files(_));
    if before == after || (files(before) && files(after)) {
        return;
    }
    changed.retain(|change| change.key != key && !change.key.starts_with(&format!("{key}.")));
    let shown = |tls: &Tls| match tls {
        Tls::OwnCertificate => "its own certificate".to_owned(),
        Tls::Plain => "null".to_owned(),
        Tls::Files(_) => "files".to_owned(),
    };
    let (from, to) = (shown(before), shown(after));
    changed.push(Changed { key: key.to_owned(), from, to, takes: Takes::Restart });
}

/// The full path and when it is in force.
fn find(name: &str) -> Result<(String, Takes), ConfigError> {
    let key = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, key)| key);
    if let Some(why) = file_only(key) {
        return Err(ConfigError::NotInDatabase { key: key.to_owned(), why });
    }
    let mut known = false;
    leaves(ControllerConfig::KEYS, "", &mut |path, _| known |= path == key);
    match known {
        true => Ok((key.to_owned(), takes(key))),
        false => {
            let (origin, nearest) = (Origin::Setting, nearest::key(key, Program::Controller.schema()));
            Err(ConfigError::UnknownKey { origin, key: key.to_owned(), nearest })
        }
    }
}

fn takes(key: &str) -> Takes {
    if RUN_TIME.contains(&key) { Takes::Now } else { Takes::Restart }
}

fn file_only(key: &str) -> Option<&'static str> {
    let within = |outer: &str| key == outer || key.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    FILE_ONLY.iter().find(|(outer, _)| within(outer)).map(|(_, why)| *why)
}

/// Calls `each` for every key that is no section.
fn leaves(schema: &'static [Key], outer: &str, each: &mut impl FnMut(&str, &'static Key)) {
    for key in schema {
        let path = crate::schema::join(outer, key.name);
        match key.kind {
            Kind::Section(keys) => leaves(keys, &path, each),
            _ => each(&path, key),
        }
    }
}

fn apply(config: &mut ControllerConfig, settings: &Settings, home: Option<&Path>) -> Result<(), ConfigError> {
    let schema = ControllerConfig::KEYS;
    for (key, text) in settings {
        find(key)?;
        let mut kind = Kind::Text;
        leaves(schema, "", &mut |path, leaf| {
            if path == key {
                kind = leaf.kind;
            }
        });
        let mut value = match kind {
            Kind::Text => Value::String(text.clone()),
            Kind::List(_) if !text.trim_start().starts_with(['[', '{']) => {
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(Value::from).collect()
            }
            Kind::Word if !text.trim_start().starts_with('{') => Value::String(text.clone()),
            _ => document::parse_setting(key, text)?,
        };
        for name in key.rsplit('.') {
            value = Value::Object(Map::from_iter([(name.to_owned(), value)]));
        }
        config.apply(&value, &Context { source: Source::Setting, schema, home }, "")?;
    }
    Ok(())
}
