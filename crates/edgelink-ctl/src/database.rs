//! Which database is meant.

use crate::args::Cli;
use crate::error::CtlError;
use edgelink_config::{Config, ControllerConfig, DatabaseType, Env};
use edgelink_store::{Actor, Store};
use std::path::{Path, PathBuf};

/// The specification's default, in the working directory.
const LOCAL: &str = "edgelink.db";

pub(crate) async fn open(cli: &Cli, env: &Env, root: bool) -> Result<Store, CtlError> {
    let path = find(cli, env, root)?;
    // The person behind sudo, not root.
    let user = ["SUDO_USER", "USER"].iter().find_map(|name| env.get(name)).map(str::to_owned);
    Ok(Store::open(path, false).await?.acting_as(Actor::cli(user)))
}

/// `--db`, else what `--config` names, else `edgelink.db` here, else the controller's default.
pub(crate) fn find(cli: &Cli, env: &Env, root: bool) -> Result<PathBuf, CtlError> {
    if let Some(path) = &cli.db {
        return Ok(path.clone());
    }
    if cli.config.is_none() && Path::new(LOCAL).exists() {
        return Ok(LOCAL.into());
    }
    let config: ControllerConfig = edgelink_config::load(cli.config.as_deref(), env)?;
    config.validate()?;
    if config.database.kind == DatabaseType::MariaDb {
        return Err(CtlError::Usage("this version administers SQLite databases only; give --db PATH".into()));
    }
    let path = config.database_path(env, root);
    // A path that somebody chose is opened, or complained about, as it is.
    if cli.config.is_some() || config.database.path.is_some() || config.state_dir.is_some() || path.exists() {
        return Ok(path);
    }
    Err(CtlError::Usage(format!(
        "no database found: there is neither {LOCAL} here nor {}; give --db PATH or --config FILE",
        path.display()
    )))
}
