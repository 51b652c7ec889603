//! What a stand-alone relay keeps on disk, so that it works on, and starts, without its controller (DESIGN §3).

use crate::relay_shell::RelayShell;
use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgelink_os::files;
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// Changes are gathered for so long before they are written: what is lost in a crash, the controller says again.
const GATHER: Duration = Duration::from_secs(1);

/// The state directory, locked.
pub(crate) struct StateDir {
    pub(crate) dir: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    pub(crate) fn open(dir: PathBuf) -> Result<Self> {
        files::create_private_dir(&dir)?;
        let path = dir.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
            let dir = dir.display();
            anyhow::anyhow!("another edgelink-server uses {dir}: stop it, or give this one a state_dir of its own")
        })?;
        Ok(Self { dir, _lock: lock })
    }

    /// The file with keys, revocations, mesh tokens and locations.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join("relay.state")
    }
}

/// What an earlier process saved; nothing at the first start. A damaged file is told and not used: the controller says
/// everything again.
pub(crate) fn load(path: &Path) -> Result<Option<Vec<u8>>> {
    let text = match files::read_private(path) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match STANDARD.decode(text.trim()) {
        Ok(state) => Ok(Some(state)),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "the saved state is damaged and not used");
            Ok(None)
        }
    }
}

/// Writes the state whenever it has changed, off the thread that forwards.
pub(crate) async fn keep(shell: Rc<RelayShell>, path: PathBuf) {
    loop {
        shell.changed.notified().await;
        tokio::time::sleep(GATHER).await;
        let (state, file) = (shell.saved_state(), path.clone());
        let written = tokio::task::spawn_blocking(move || save(&file, &state)).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "the state was not saved; without the controller a restart would not know it");
        }
    }
}

/// Writes the state, readable by its owner only.
pub(crate) fn save(path: &Path, state: &[u8]) -> Result<()> {
    Ok(files::write_private(path, STANDARD.encode(state))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn state_comes_back_private_and_damage_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.state");
        assert_eq!(load(&path).unwrap(), None);
        save(&path, b"\x00\xffkeys").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load(&path).unwrap().as_deref(), Some(&b"\x00\xffkeys"[..]));
        files::write_private(&path, "not base64 at all!").unwrap();
        assert_eq!(load(&path).unwrap(), None);
    }

    #[test]
    fn two_servers_do_not_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _first = StateDir::open(dir.path().to_owned()).unwrap();
        let error = StateDir::open(dir.path().to_owned()).err().unwrap();
        assert!(error.to_string().contains("another edgelink-server"), "{error:#}");
    }
}
