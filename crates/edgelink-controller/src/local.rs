//! The REST API on a Unix socket, for whoever may write the database anyway: root and our own user (DESIGN §8). The kernel
//! says who it is; there is no login.

use crate::api::{Local, Service};
use anyhow::{Context as _, Result, bail};
use axum::body::Body;
use edgelink_config::{ControllerConfig, Listen};
use edgelink_net::conn::Conn;
use edgelink_net::server::serve_connection;
use edgelink_os::peer_cred::PeerCred;
use hyper::body::Incoming;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

/// Connections at the same time; each command of `edgelink-ctl` opens a few, one after the other.
const MAX_CONNECTIONS: usize = 256;
/// Requests that run when the controller ends may take so long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// The socket; its file goes with it.
pub(crate) struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
}

/// Listens where the configuration says. Nobody needs the socket to reach a controller, so only one that was asked for
/// explicitly is an error when it cannot be had.
pub(crate) fn open(config: &ControllerConfig, state_dir: &Path) -> Result<Option<LocalSocket>> {
    let Some(path) = config.socket_path(state_dir) else { return Ok(None) };
    match LocalSocket::bind(path) {
        Ok(socket) => {
            tracing::info!(socket = %socket.path.display(), "for edgelink-ctl --socket");
            Ok(Some(socket))
        }
        Err(error) if config.listen.socket == Listen::default().socket => {
            tracing::warn!("edgelink-ctl --socket will not work: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error.context("`listen.socket`")),
    }
}

impl LocalSocket {
    /// Binds the socket, taking the place of one that a dead controller left behind.
    fn bind(path: PathBuf) -> Result<Self> {
        let shown = path.display();
        match fs::symlink_metadata(&path) {
            Ok(there) if !there.file_type().is_socket() => bail!("{shown} is there and is no socket; remove it"),
            Ok(_) => match std::os::unix::net::UnixStream::connect(&path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(&path).with_context(|| format!("cannot remove the stale socket {shown}"))?;
                }
                _ => bail!("another program serves {shown}; set `listen.socket` to another path, or to null"),
            },
            Err(_) => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {shown}"))?;
        // Only a second bolt: who connects is asked for.
        let private = fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
        private.with_context(|| format!("cannot set the mode of {shown}"))?;
        let file = identity(&path).with_context(|| format!("{shown} has gone away"))?;
        Ok(Self { listener, path, file })
    }

    /// Serves until `stop` resolves, then lets running requests end.
    pub(crate) async fn serve(self, api: Service, mut stop: oneshot::Receiver<()>) {
        let (ending, ended) = watch::channel(());
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                _ = &mut stop => break,
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) => {
                    connections.spawn_local(connection(stream, api.clone(), ended.clone()));
                }
                Err(error) => {
                    // Out of descriptors, most likely; the next attempt must not spin.
                    tracing::warn!(%error, "cannot accept on the local socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self);
        drop(ending);
        let drained = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // Not another one's that has taken its place.
        if identity(&self.path) == Some(self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

async fn connection(stream: UnixStream, api: Service, mut ended: watch::Receiver<()>) {
    let peer = PeerCred::of(&stream);
    let user = peer.as_ref().ok().and_then(admitted);
    if user.is_none() {
        tracing::warn!(?peer, "refused at the local socket");
    }
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let (api, user) = (api.clone(), user.clone());
        async move { Ok::<_, Infallible>(api.handle_local(request.map(Body::new), user).await) }
    });
    let ended = async move {
        // An error means that the controller ends.
        let _ = ended.changed().await;
    };
    if let Err(error) = serve_connection(Conn::other(stream), service, ended).await {
        tracing::debug!(%error, "local connection ended");
    }
}

/// Who it is, if he may do anything.
fn admitted(peer: &PeerCred) -> Option<Local> {
    peer.may_control(None).then(|| Local(peer.user()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_not_admitted() {
        let own = nix::unistd::geteuid().as_raw();
        let peer = |uid| PeerCred { pid: 1, uid, gid: 0 };
        assert_eq!(admitted(&peer(0)).unwrap().0, "root");
        assert!(admitted(&peer(own)).is_some());
        assert!(admitted(&peer(4_000_000)).is_none(), "whatever his group");
    }

    #[tokio::test]
    async fn what_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, "precious").unwrap();
        let why = |path: &Path| format!("{:#}", LocalSocket::bind(path.to_owned()).err().unwrap());
        assert!(why(&path).contains("is no socket"), "{}", why(&path));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();

        // Left behind by one that died.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = LocalSocket::bind(path.clone()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(why(&path).contains("another program serves"), "{}", why(&path));

        // Whoever has taken the place keeps it.
        fs::remove_file(&path).unwrap();
        let second = LocalSocket::bind(path.clone()).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn only_a_socket_that_was_asked_for_must_be_had() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ControllerConfig::default();
        fs::create_dir(dir.path().join("controller.sock")).unwrap();
        assert!(open(&config, dir.path()).unwrap().is_none());
        config.listen.socket = Some(dir.path().join("controller.sock/absent/s"));
        assert!(format!("{:#}", open(&config, dir.path()).err().unwrap()).contains("`listen.socket`"));
        config.listen.socket = Some(dir.path().join("s"));
        assert!(open(&config, dir.path()).unwrap().is_some());
        config.listen.socket = None;
        assert!(open(&config, dir.path()).unwrap().is_none());
    }
}
