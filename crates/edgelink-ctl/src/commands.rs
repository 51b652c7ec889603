//! Which command runs where.

use crate::args::{Cli, Command, ConfigCommand};
use crate::backend::{Backend, Database};
use crate::error::CtlError;
use crate::output::Output;
use crate::{
    admins, config, database, generate, maintenance, networks, nodes, reports, routes, servers, session, tokens,
};
use edgelink_config::Env;

pub(crate) async fn execute(cli: &Cli, env: &Env, root: bool, out: &mut Output<'_>) -> Result<(), CtlError> {
    match &cli.command {
        Command::Config(ConfigCommand::Init) => return config::init(out),
        Command::Completions { shell } => return generate::completions(*shell, out),
        Command::Man { directory } => return generate::man(directory, out),
        Command::Login { username } => return session::login(cli, env, username, out).await,
        Command::Logout => return session::logout(cli, env, out).await,
        _ => {}
    }
    if let Some(remote) = session::remote(cli, env, root, || database::is_there(cli, env, root))? {
        return run(&remote, cli, env, out).await;
    }
    let backend = database::open(cli, env, root).await?;
    let result = on_database(&backend, cli, env, out).await;
    // The write-ahead log is folded in by whoever closes last; failing that, by the next one.
    let _ = backend.store.close().await;
    result
}

async fn on_database(backend: &Database, cli: &Cli, env: &Env, out: &mut Output<'_>) -> Result<(), CtlError> {
    match &cli.command {
        Command::Db(command) => maintenance::execute(&backend.store, command, out).await,
        _ => run(backend, cli, env, out).await,
    }
}

async fn run(backend: &impl Backend, cli: &Cli, env: &Env, out: &mut Output<'_>) -> Result<(), CtlError> {
    match &cli.command {
        Command::Network(command) => networks::execute(backend, command, out).await,
        Command::Node(command) => nodes::execute(backend, command, out).await,
        Command::Server(command) => servers::execute(backend, command, out).await,
        Command::Route(command) => routes::execute(backend, command, out).await,
        Command::Token(command) => tokens::execute(backend, command, out).await,
        Command::Admin(command) => admins::execute(backend, env, command, out).await,
        Command::Config(command) => config::execute(backend, command, out).await,
        Command::Audit(filter) => reports::audit(backend, filter, out).await,
        Command::Latency { network, paths } => reports::latency(backend, network.as_deref(), *paths, out).await,
        Command::Status => reports::status(backend, out).await,
        Command::Db(_) => Err(CtlError::Usage("this works on the database only: give --db or --config".into())),
        Command::Completions { .. } | Command::Man { .. } | Command::Login { .. } | Command::Logout => Ok(()),
    }
}

pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |v| v.to_string())
}

pub(crate) fn yes_no(yes: bool) -> String {
    if yes { "yes" } else { "no" }.into()
}
