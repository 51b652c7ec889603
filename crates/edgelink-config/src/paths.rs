//! Where things are when nothing says otherwise.

use crate::Env;
use std::path::PathBuf;

/// The daemon's socket.
pub const DEFAULT_SOCKET: &str = "/run/edgelink/edgelink.sock";

/// `EDGELINK_SOCKET`, or [`DEFAULT_SOCKET`].
pub fn socket_path(env: &Env) -> PathBuf {
    env.path("EDGELINK_SOCKET").unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// The controller's state directory; `root`: whether the process runs as the superuser.
pub fn default_controller_state_dir(env: &Env, root: bool) -> PathBuf {
    state_dir("controller", env, root)
}

/// The stand-alone server's state directory.
pub fn default_server_state_dir(env: &Env, root: bool) -> PathBuf {
    state_dir("server", env, root)
}

/// The client's state directory.
pub fn default_client_state_dir(env: &Env, root: bool) -> PathBuf {
    state_dir("client", env, root)
}

/// systemd's `STATE_DIRECTORY`; else `/var/lib/edgelink/PROGRAM` for root; else below `XDG_STATE_HOME` or the home.
fn state_dir(program: &str, env: &Env, root: bool) -> PathBuf {
    if let Some(given) = env.path("STATE_DIRECTORY") {
        return given;
    }
    let user = || env.path("XDG_STATE_HOME").or_else(|| env.home().map(|home| home.join(".local/state")));
    let base = if root { None } else { user() };
    base.unwrap_or_else(|| "/var/lib".into()).join("edgelink").join(program)
}
