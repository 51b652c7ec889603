//! `config …`: settings that the database holds.

use crate::args::ConfigCommand;
use crate::backend::Backend;
use crate::error::CtlError;
use crate::output::Output;
use edgelink_api::rest;
use serde_json::Value;
use std::collections::BTreeMap;

pub(crate) async fn execute(
    backend: &impl Backend,
    command: &ConfigCommand,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        ConfigCommand::Show { key } => show(backend.settings().await?, key.as_deref(), out),
        ConfigCommand::Set { key, value } => change(backend, key, Value::String(value.clone()), out).await,
        ConfigCommand::Unset { key } => change(backend, key, Value::Null, out).await,
        ConfigCommand::Init => init(out),
    }
}

/// A commented configuration file to start from.
pub(crate) fn init(out: &mut Output<'_>) -> Result<(), CtlError> {
    out.raw(edgelink_config::starter::<edgelink_config::ControllerConfig>().as_bytes())
}

fn show(settings: Vec<rest::Setting>, key: Option<&str>, out: &mut Output<'_>) -> Result<(), CtlError> {
    let Some(key) = key else {
        if out.json {
            return out.json(&settings);
        }
        let table: Vec<_> = settings
            .into_iter()
            .map(|s| {
                let from = if s.setting.is_some() { "database" } else { "" };
                [s.key, s.value.to_string(), from.to_owned(), s.takes]
            })
            .collect();
        return out.table(["KEY", "VALUE", "SET IN", "TAKES"], &table);
    };
    let unknown = || CtlError::Usage(format!("there is no setting {key}; `config show` lists all"));
    let setting = settings.into_iter().find(|s| s.key == key).ok_or_else(unknown)?;
    if out.json { out.json(&setting) } else { out.line(&setting.value.to_string()) }
}

async fn change(backend: &impl Backend, key: &str, value: Value, out: &mut Output<'_>) -> Result<(), CtlError> {
    let before = backend.settings().await?;
    let after = backend.set_settings(BTreeMap::from([(key.to_owned(), value)])).await?;
    // By its own name, whatever it was called.
    let is_it = |s: &rest::Setting| s.key == key;
    let differs = |s: &rest::Setting| before.iter().any(|b| b.key == s.key && b.setting != s.setting);
    let found = after.iter().find(|s| is_it(s)).or_else(|| after.iter().find(|s| differs(s))).cloned();
    let Some(setting) = found else { return out.remark("nothing has changed") };
    if out.json {
        return out.json(&setting);
    }
    let when = if setting.takes == "restart" { ", after a restart of the controller" } else { "" };
    out.remark(&format!("{} is {}{when}", setting.key, setting.value))
}
