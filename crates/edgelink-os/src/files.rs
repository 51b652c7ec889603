//! Secrets on disk: read only when nobody else can, written so that a crash leaves the old or the new file.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// Largest file that [`read_private`] accepts, in bytes.
pub const MAX_PRIVATE_FILE: u64 = 16 << 20;

/// Why a private file could not be read or written. The text tells what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Others may read or write a file that holds a secret.
    #[error("{path} is open to other users (mode {mode:04o}); run: chmod 600 {path}", path = .path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others may write a directory that holds secrets.
    #[error("directory {path} can be written by other users (mode {mode:04o}); run: chmod 700 {path}", path = .path.display())]
    DirTooOpen {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A directory, device or the like where a regular file is expected (or the reverse).
    #[error("{path} is not a {expected}", path = .path.display())]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
    },
    /// Longer than [`MAX_PRIVATE_FILE`].
    #[error("{path} is too large ({size} bytes; at most {MAX_PRIVATE_FILE})", path = .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// The verb: `read`, `write`, `create` …
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl FileError {
    /// Whether the file simply does not exist (a first start, usually no error).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a UTF-8 file that holds a secret.
///
/// # Errors
///
/// [`FileError::TooOpen`] when group or others have any permission; the check is made on the opened file, so that it
/// cannot be swapped in between. Symbolic links are followed.
pub fn read_private(path: impl AsRef<Path>) -> Result<String, FileError> {
    let path = path.as_ref();
    let failed = |source| FileError::Io { action: "read", path: path.to_owned(), source };
    // O_NONBLOCK: opening a FIFO that someone put there must not hang.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(FileError::WrongKind { path: path.to_owned(), expected: "regular file" });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::TooOpen { path: path.to_owned(), mode });
    }
    if meta.len() > MAX_PRIVATE_FILE {
        return Err(FileError::TooLarge { path: path.to_owned(), size: meta.len() });
    }
    // The full capacity at once: growing would leave copies of the secret in freed memory.
    let capacity = usize::try_from(meta.len()).unwrap_or(0).saturating_add(1);
    let mut text = String::with_capacity(capacity);
    file.take(MAX_PRIVATE_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Replaces `path` atomically with `bytes`, mode 0600.
///
/// The bytes and the directory entry are on disk when this returns; a crash at any moment leaves the old file or the
/// new one, never a part.
///
/// # Errors
///
/// [`FileError::Io`]; no temporary file is left behind.
pub fn write_private(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), FileError> {
    write_atomic(path.as_ref(), bytes.as_ref(), 0o600)
}

/// Like [`write_private`] for what everybody may read (a CA certificate, say): mode 0644.
///
/// # Errors
///
/// [`FileError::Io`]; no temporary file is left behind.
pub fn write_public(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), FileError> {
    write_atomic(path.as_ref(), bytes.as_ref(), 0o644)
}

/// Creates a directory (and its parents) that only its owner may enter, mode 0700; an existing one is accepted when no
/// other user can write it.
///
/// # Errors
///
/// [`FileError::DirTooOpen`], [`FileError::WrongKind`] or [`FileError::Io`].
pub fn create_private_dir(path: impl AsRef<Path>) -> Result<(), FileError> {
    let path = path.as_ref();
    let failed = |source| FileError::Io { action: "create directory", path: path.to_owned(), source };
    // Parents with the usual mode: a shared /var/lib must not become private to whoever came first.
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(failed(e)),
    }
    let meta = fs::metadata(path).map_err(failed)?;
    if !meta.is_dir() {
        return Err(FileError::WrongKind { path: path.to_owned(), expected: "directory" });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(FileError::DirTooOpen { path: path.to_owned(), mode });
    }
    Ok(())
}

fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "write", path: path.to_owned(), source };
    let Some(name) = path.file_name() else {
        return Err(FileError::WrongKind { path: path.to_owned(), expected: "regular file" });
    };
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = TemporaryFile::create(dir, name, mode).map_err(failed)?;
    temporary.fill_and_rename(bytes, mode, path).map_err(failed)?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed)
}

/// A file beside its future name, removed on drop unless it was renamed.
struct TemporaryFile {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl TemporaryFile {
    fn create(dir: &Path, name: &std::ffi::OsStr, mode: u32) -> io::Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let mut candidate = OsString::from(".");
        candidate.push(name);
        candidate.push(format!(".{}.{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        let path = dir.join(candidate);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        let file = match options.open(&path) {
            // Left by a crashed process that had our pid: nobody else uses this name.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&path)?;
                options.open(&path)?
            }
            other => other?,
        };
        Ok(Self { path, file, renamed: false })
    }

    fn fill_and_rename(mut self, bytes: &[u8], mode: u32, to: &Path) -> io::Result<()> {
        // The umask may have taken bits away, never added any.
        self.file.set_permissions(fs::Permissions::from_mode(mode))?;
        self.file.write_all(bytes)?;
        self.file.sync_all()?;
        fs::rename(&self.path, to)?;
        self.renamed = true;
        Ok(())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing better can be done about a failing clean-up; the error that led here is being reported.
            drop(fs::remove_file(&self.path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn written_files_are_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.key");
        write_private(&path, "one").unwrap();
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(read_private(&path).unwrap(), "one");
        let before = fs::metadata(&path).unwrap().ino();
        write_private(&path, "two, longer").unwrap();
        assert_eq!(read_private(&path).unwrap(), "two, longer");
        assert_ne!(fs::metadata(&path).unwrap().ino(), before, "a rename, not a rewrite in place");
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["machine.key"], "no temporary file is left");
        write_public(dir.path().join("ca.pem"), "public").unwrap();
        assert_eq!(mode_of(&dir.path().join("ca.pem")), 0o644);
    }

    #[test]
    fn every_looser_mode_is_refused_and_the_cure_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, "s").unwrap();
        for bit in 0..6 {
            let mode = 0o600 | (1 << bit);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read_private(&path).unwrap_err();
            assert!(matches!(error, FileError::TooOpen { mode: m, .. } if m == mode));
            assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_private(&path).unwrap(), "s");
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("occupied");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("inside"), "x").unwrap();
        let error = write_private(&target, "new").unwrap_err();
        assert!(matches!(error, FileError::Io { action: "write", .. }));
        assert!(target.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let missing = write_private(dir.path().join("no/such/dir"), "x").unwrap_err();
        assert!(missing.is_not_found());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_hanging() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_private(dir.path()).unwrap_err(), FileError::WrongKind { .. }));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(read_private(&fifo).unwrap_err(), FileError::WrongKind { .. }));
        assert!(read_private(dir.path().join("none")).unwrap_err().is_not_found());
        let huge = dir.path().join("huge");
        write_private(&huge, "").unwrap();
        OpenOptions::new().write(true).open(&huge).unwrap().set_len(MAX_PRIVATE_FILE + 1).unwrap();
        assert!(matches!(read_private(&huge).unwrap_err(), FileError::TooLarge { .. }));
        let binary = dir.path().join("binary");
        write_private(&binary, [0xff, 0xfe]).unwrap();
        assert!(matches!(read_private(&binary).unwrap_err(), FileError::Io { action: "read", .. }));
    }

    #[test]
    fn private_directories() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        create_private_dir(&path).unwrap();
        assert_eq!(mode_of(&path), 0o700);
        create_private_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        let error = create_private_dir(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
        write_private(dir.path().join("file"), "").unwrap();
        let error = create_private_dir(dir.path().join("file")).unwrap_err();
        assert!(matches!(error, FileError::WrongKind { expected: "directory", .. }));
    }
}
