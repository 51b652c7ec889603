//! Which controller is asked over REST, and the token for it: from EDGELINK_TOKEN, or from what `login` has kept.

use crate::args::Cli;
use crate::backend::Remote;
use crate::error::CtlError;
use crate::output::Output;
use crate::password;
use edgelink_api::Secret;
use edgelink_config::{ControllerConfig, Env, WsUrl};
use edgelink_net::tls::{ClientTls, Pin, client_config};
use edgelink_net::ws::Dial;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Holds an admin_token, for scripts.
const TOKEN: &str = "EDGELINK_TOKEN";

/// What `login` keeps.
#[derive(Deserialize, Serialize)]
struct Kept {
    url: String,
    token: Secret,
    expires_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
}

/// The controller that `--socket` or `--url` names, or, when neither that nor a database is given and none is here, the one that
/// somebody has logged in to.
pub(crate) fn remote(
    cli: &Cli,
    env: &Env,
    root: bool,
    database_is_there: impl FnOnce() -> bool,
) -> Result<Option<Remote>, CtlError> {
    if let Some(given) = &cli.socket {
        if cli.db.is_some() {
            return Err(CtlError::Usage("give either --socket or --db".into()));
        }
        // One for all commands, in the environment, may be outranked by one.
        if cli.url.as_deref() != env.get("EDGELINK_URL") {
            return Err(CtlError::Usage("give either --socket or --url".into()));
        }
        return socket(given.as_deref(), cli, env, root).map(|path| Some(Remote::local(path)));
    }
    let kept = || match file(env) {
        Some(path) => read(&path),
        None => Ok(None),
    };
    let token = env.get(TOKEN).map(Secret::new);
    if let Some(url) = &cli.url {
        if cli.db.is_some() {
            return Err(CtlError::Usage("give either --url or --db".into()));
        }
        let url = controller(url)?;
        let kept = kept()?.filter(|kept| kept.url == url.origin());
        let (pin, ca_file) = (cli.pin.or_else(|| parsed(kept.as_ref())), cli.ca_file.clone());
        let ca_file = ca_file.or_else(|| kept.as_ref().and_then(|kept| kept.ca_file.clone()));
        let Some(token) = token.or_else(|| kept.map(|kept| kept.token)) else {
            return Err(CtlError::Denied(format!(
                "no token for {}; log in with: edgelink-ctl --url {} login (or set {TOKEN})",
                url.origin(),
                cli.url.as_deref().unwrap_or_default()
            )));
        };
        return Ok(Some(Remote::new(dial(&url, pin, ca_file)?, Some(token))));
    }
    if cli.db.is_some() || cli.config.is_some() || database_is_there() {
        return Ok(None);
    }
    let Some(kept) = kept()? else { return Ok(None) };
    let url: WsUrl = kept.url.parse().map_err(CtlError::Usage)?;
    let (pin, ca_file) = (parsed(Some(&kept)), kept.ca_file);
    Ok(Some(Remote::new(dial(&url, pin, ca_file)?, Some(token.unwrap_or(kept.token)))))
}

/// The socket that was given, else that of the controller's configuration.
fn socket(given: Option<&Path>, cli: &Cli, env: &Env, root: bool) -> Result<PathBuf, CtlError> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let config: ControllerConfig = edgelink_config::load(cli.config.as_deref(), env)?;
    config.socket_path(&config.state_dir(env, root)).ok_or_else(|| {
        CtlError::Usage("`listen.socket` is null in the controller's configuration: it has no socket".into())
    })
}

/// Logs in and keeps the token.
pub(crate) async fn login(
    cli: &Cli,
    env: &Env,
    username: &Option<String>,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    no_socket(cli)?;
    let Some(url) = &cli.url else {
        return Err(CtlError::Usage("say where: edgelink-ctl --url https://CONTROLLER login".into()));
    };
    let url = controller(url)?;
    let user = username.as_deref().or_else(|| env.get("USER"));
    let username = user.ok_or_else(|| CtlError::Usage("say who: --username NAME".into()))?;
    let path = file(env).ok_or_else(|| CtlError::Usage("there is no home directory to keep a token in".into()))?;
    let password = password::existing(env, &format!("Password of {username}: "))?;
    let remote = Remote::new(dial(&url, cli.pin, cli.ca_file.clone())?, None);
    let login = remote.login(username, password).await?;
    let (pin, ca_file) = (cli.pin.map(|pin| pin.to_string()), cli.ca_file.clone());
    let (token, expires_at) = (Secret::new(login.token), login.expires_at.to_string());
    write(&path, &Kept { url: url.origin(), token, expires_at, pin, ca_file })?;
    if out.json {
        return out.json(&login.admin);
    }
    let until = login.expires_at;
    out.remark(&format!(
        "logged in to {} as {username} until {until}; the token is in {}",
        url.origin(),
        path.display()
    ))
}

/// Voids the kept token and forgets it.
pub(crate) async fn logout(cli: &Cli, env: &Env, out: &mut Output<'_>) -> Result<(), CtlError> {
    no_socket(cli)?;
    let Some(remote) = remote(cli, env, false, || false)? else {
        return Err(CtlError::Usage("nobody is logged in".into()));
    };
    remote.logout().await?;
    if let Some(path) = file(env).filter(|path| path.exists()) {
        fs::remove_file(path)?;
    }
    out.remark("logged out; the token is void")
}

fn no_socket(cli: &Cli) -> Result<(), CtlError> {
    match cli.socket {
        Some(_) => Err(CtlError::Usage("nobody logs in at the socket: your user counts there".into())),
        None => Ok(()),
    }
}

/// `https://HOST[:PORT]`, also written as `wss://`, or without TLS.
fn controller(text: &str) -> Result<WsUrl, CtlError> {
    let text = match text.split_once("://") {
        Some(("https", rest)) => format!("wss://{rest}"),
        Some(("http", rest)) => format!("ws://{rest}"),
        Some(_) => text.to_owned(),
        None => format!("wss://{text}"),
    };
    text.parse().map_err(|error| CtlError::Usage(format!("--url: {error}")))
}

fn dial(url: &WsUrl, pin: Option<Pin>, ca_file: Option<PathBuf>) -> Result<Dial, CtlError> {
    let tls = client_config(&ClientTls { ca_file, pin, ..ClientTls::default() });
    let tls = tls.map_err(|error| CtlError::Usage(error.to_string()))?;
    Ok(Dial { allow_plain: !url.is_tls(), ..Dial::new(url.origin(), tls) })
}

fn parsed(kept: Option<&Kept>) -> Option<Pin> {
    kept?.pin.as_deref()?.parse().ok()
}

fn file(env: &Env) -> Option<PathBuf> {
    let config = env.get("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| env.get("HOME").map(|home| Path::new(home).join(".config")))?;
    Some(config.join("edgelink").join("ctl.json"))
}

fn read(path: &Path) -> Result<Option<Kept>, CtlError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CtlError::Usage(format!("cannot read {}: {error}", path.display()))),
    };
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        let path = path.display();
        return Err(CtlError::Usage(format!("{path} holds a token but others may read it; run: chmod 600 {path}")));
    }
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| CtlError::Usage(format!("{} is damaged ({error}); log in again", path.display())))
}

/// For our eyes only, and whole or not at all.
fn write(path: &Path, kept: &Kept) -> Result<(), CtlError> {
    let Some(directory) = path.parent() else { return Ok(()) };
    fs::create_dir_all(directory)?;
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec_pretty(kept)?)?;
    file.sync_all()?;
    Ok(fs::rename(fresh, path)?)
}
