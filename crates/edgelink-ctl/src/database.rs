//! Which database is meant.

use crate::args::Cli;
use crate::backend::Database;
use crate::error::CtlError;
use edgelink_config::{Config, ControllerConfig, DatabaseType, Env};
use edgelink_store::{Actor, Location, MariaDbUrl, Store};
use std::path::Path;

/// The specification's default, in the working directory.
const LOCAL: &str = "edgelink.db";

pub(crate) async fn open(cli: &Cli, env: &Env, root: bool) -> Result<Database, CtlError> {
    let location = find(cli, env, root)?;
    // The person behind sudo, not root.
    let user = ["SUDO_USER", "USER"].iter().find_map(|name| env.get(name)).map(str::to_owned);
    let store = Store::open_existing(&location).await?.acting_as(Actor::cli(user));
    // Without a readable configuration file the defaults say nothing of a URL either.
    let config: Option<ControllerConfig> = edgelink_config::load(cli.config.as_deref(), env).ok();
    let public_url = config.and_then(|config| config.public_url.0.first().cloned());
    let ca = location.file().and_then(Path::parent).map(|directory| directory.join("ca.pem"));
    let (place, file) = (location.to_string(), cli.config.clone());
    Ok(Database { store, place, file, env: env.clone(), public_url, ca })
}

/// Whether a database is found where nobody has named one.
pub(crate) fn is_there(cli: &Cli, env: &Env, root: bool) -> bool {
    find(cli, env, root).is_ok()
}

/// `--db`, else what `--config` names, else `edgelink.db` here, else the controller's default.
pub(crate) fn find(cli: &Cli, env: &Env, root: bool) -> Result<Location, CtlError> {
    if let Some(path) = &cli.db {
        return Ok(path.clone().into());
    }
    if cli.config.is_none() && Path::new(LOCAL).exists() {
        return Ok(Location::from(LOCAL));
    }
    let config: ControllerConfig = edgelink_config::load(cli.config.as_deref(), env)?;
    config.validate()?;
    let path = match location(&config, env, root)? {
        Location::Sqlite(path) => path,
        server => return Ok(server),
    };
    // A path that somebody chose is opened, or complained about, as it is.
    if cli.config.is_some() || config.database.path.is_some() || config.state_dir.is_some() || path.exists() {
        return Ok(path.into());
    }
    Err(CtlError::Usage(format!(
        "no database found: there is neither {LOCAL} here nor {}; give --db PATH or --config FILE",
        path.display()
    )))
}

/// The database that a controller's configuration names.
///
/// # Errors
/// [`CtlError::Usage`] when `database.url` is malformed; it is not repeated.
pub(crate) fn location(config: &ControllerConfig, env: &Env, root: bool) -> Result<Location, CtlError> {
    Ok(match (config.database.kind, &config.database.url) {
        (DatabaseType::MariaDb, Some(url)) => Location::MariaDb(
            MariaDbUrl::parse(url.expose()).map_err(|error| CtlError::Usage(format!("`database.url`: {error}")))?,
        ),
        // The other halves are refused by the configuration itself.
        _ => config.database_path(env, root).into(),
    })
}
