//! Settings: the controller's configuration keys that may also be set in its database. `config …` and the REST API have
//! the same rules from here.

use edgelink_api::rest;
use edgelink_config::{ConfigError, Env, Setting, Settings, Takes, load_controller};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Every key with its value. `file`: the controller's configuration file, if it has one; `settings`: what the database
/// holds. Secrets are no settings and are not among them.
///
/// # Errors
/// When file, settings and environment do not make a good configuration together.
pub fn list(file: Option<&Path>, settings: &Settings, env: &Env) -> Result<Vec<rest::Setting>, ConfigError> {
    let (config, _) = load_controller(file, settings, env)?;
    let mut values = config.flat();
    let setting = |info: edgelink_config::SettingInfo| rest::Setting {
        value: values.remove(&info.key).unwrap_or(Value::Null),
        setting: settings.get(&info.key).cloned(),
        takes: match info.takes {
            Takes::Now => "now",
            Takes::Restart => "restart",
        }
        .to_owned(),
        description: info.doc,
        key: info.key,
    };
    Ok(Setting::all().into_iter().map(setting).collect())
}

/// What a change means for the database, all or nothing; `null` unsets a key. Keys may have their names of
/// specification §9.2.
///
/// # Errors
/// An unknown key, a bad value, or a configuration that would be none.
pub fn check(
    file: Option<&Path>,
    settings: &Settings,
    env: &Env,
    change: &BTreeMap<String, Value>,
) -> Result<Vec<(String, Option<String>)>, ConfigError> {
    let mut after = settings.clone();
    let mut changes = Vec::new();
    for (key, value) in change {
        let (key, text) = match value {
            Value::Null => (Setting::key(key)?, None),
            Value::String(text) => {
                let setting = Setting::new(key, text)?;
                (setting.key, Some(setting.text))
            }
            other => {
                let setting = Setting::new(key, &other.to_string())?;
                (setting.key, Some(setting.text))
            }
        };
        match &text {
            Some(text) => _ = after.insert(key.clone(), text.clone()),
            None => _ = after.remove(&key),
        }
        changes.push((key, text));
    }
    load_controller(file, &after, env)?;
    Ok(changes)
}
