//! A program to run on a host, built like `std::process::Command`.

use std::{
    ffi::{CString, OsStr},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{fcntl::OFlag, unistd::pipe2};

use crate::{
    lab::Host,
    process::{Process, Spawned},
    tools,
};

/// How long [`HostCommand::run`] and [`HostCommand::output`] wait unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program to run in a host's namespaces. Its standard input is empty unless given; Ctrl-C of the terminal does not
/// reach it; it ends with the lab at the latest.
#[derive(Debug)]
pub struct HostCommand {
    host: Host,
    command: Command,
    program: String,
    stdin: Option<Vec<u8>>,
    keyboard: bool,
    directory: Option<CString>,
    patience: Duration,
    inherited: Option<OwnedFd>,
}

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// The lines of its standard output.
    pub stdout: String,
    /// The lines of its standard error.
    pub stderr: String,
}

impl HostCommand {
    pub(crate) fn new(host: Host, program: &OsStr) -> Self {
        let mut command = Command::new(program);
        if let Ok(path) = std::env::join_paths(tools::search_path()) {
            command.env("PATH", path);
        }
        let name = Path::new(program).file_name().unwrap_or(program);
        let program = name.to_string_lossy().into_owned();
        Self {
            host,
            command,
            program,
            stdin: None,
            keyboard: false,
            directory: None,
            patience: PATIENCE,
            inherited: None,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Sets the working directory, that of the test process otherwise.
    ///
    /// # Errors
    ///
    /// When the path holds a zero byte.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Result<Self> {
        self.directory = Some(CString::new(directory.as_ref().as_os_str().as_encoded_bytes())?);
        Ok(self)
    }

    /// Gives the program something to read.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Lets the program read what the test process would: the keyboard, usually. Ctrl-C is for the test process all the
    /// same, and ends the lab with it.
    #[must_use]
    pub fn keyboard(mut self) -> Self {
        self.keyboard = true;
        self
    }

    /// How long [`Self::run`], [`Self::output`] and [`Self::show`] wait for the end; one minute otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.patience = timeout;
        self
    }

    /// Hands a descriptor to the program, under the number that it has here. Any other number may be one that the standard
    /// library needs between fork and exec.
    pub(crate) fn inherit(mut self, fd: OwnedFd) -> Self {
        self.inherited = Some(fd);
        self
    }

    /// Starts it, its output being recorded line by line. Killed when the returned handle is dropped.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn spawn_logged(mut self) -> Result<Process> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let stdin = self.stdin.take();
        Process::supervise(self.spawn(stdin.is_some())?, stdin)
    }

    /// Starts it with its output going where that of the test process goes, and waits for its end.
    ///
    /// # Errors
    ///
    /// When the program cannot be started or does not end in time.
    pub fn show(mut self) -> Result<ExitStatus> {
        self.command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
        let (stdin, patience) = (self.stdin.take(), self.patience);
        Process::supervise(self.spawn(stdin.is_some())?, stdin)?.wait(patience)
    }

    /// Runs it to its end, however that is.
    ///
    /// # Errors
    ///
    /// When the program cannot be started or does not end in time.
    pub fn output(self) -> Result<Output> {
        let patience = self.patience;
        let process = self.spawn_logged()?;
        let status = process.wait(patience)?;
        Ok(Output { status, stdout: process.stdout(), stderr: process.stderr() })
    }

    /// Runs it and returns its standard output.
    ///
    /// # Errors
    ///
    /// When the program cannot be started, does not end in time, or does not succeed (with what it printed).
    pub fn run(self) -> Result<String> {
        let words: Vec<_> = self.command.get_args().map(OsStr::to_string_lossy).collect();
        let shown = format!("{}: {} {}", self.host.name(), self.program, words.join(" "));
        let output = self.output().with_context(|| shown.clone())?;
        if !output.status.success() {
            bail!("{shown}: {}\n{}{}", output.status, output.stdout, output.stderr);
        }
        Ok(output.stdout)
    }

    fn spawn(mut self, with_stdin: bool) -> Result<Spawned> {
        let join = self.host.join();
        let (pid_read, pid_write) = pipe2(OFlag::O_CLOEXEC)?;
        let report = pid_write.as_raw_fd();
        // Entering the mount namespace leads to its root: the way back is by name.
        let directory = match self.directory.take() {
            Some(directory) => directory,
            None => CString::new(std::env::current_dir()?.into_os_string().into_encoded_bytes())?,
        };
        let inherited = self.inherited.as_ref().map(AsRawFd::as_raw_fd);
        self.command.stdin(match (with_stdin, self.keyboard) {
            (true, _) => Stdio::piped(),
            (false, true) => Stdio::inherit(),
            (false, false) => Stdio::null(),
        });
        // SAFETY: after the fork only system calls are made, on memory prepared before.
        unsafe {
            self.command.pre_exec(move || {
                join.enter_as_command(report)?;
                if libc::chdir(directory.as_ptr()) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
                // It closes at exec no more.
                if let Some(fd) = inherited
                    && libc::fcntl(fd, libc::F_SETFD, 0) == -1
                {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = self
            .command
            .spawn()
            .with_context(|| format!("cannot start {:?} on {}", self.command.get_program(), self.host.name()))?;
        drop(pid_write);
        let name = format!("{}/{}", self.host.name(), self.program);
        Ok(Spawned { child, pid_pipe: pid_read, name, host: self.host })
    }
}
