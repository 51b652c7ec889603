//! A running program: its lines as they come, its end, and signals to it.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    os::unix::process::ExitStatusExt,
    process::{Child, ExitStatus},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::Signal;

use crate::lab::Host;

/// Lines kept per process; older ones are forgotten beyond that.
const MAX_LINES: usize = 100_000;
/// Lines shown when something goes wrong.
const TAIL: usize = 40;
/// How long output may trail a program's end (a child of its own may still hold the pipe).
const TRAILING: Duration = Duration::from_secs(1);

/// Where a line was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A printed line, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it was printed.
    pub stream: Stream,
    /// Its text; what is not UTF-8 is replaced.
    pub text: String,
}

/// A program running on a host; dropping it kills it.
pub struct Process {
    name: String,
    pid: i32,
    handle: Option<OwnedFd>,
    shared: Arc<Shared>,
    waiter: Option<JoinHandle<()>>,
    /// Keeps the host's namespaces while the program is known.
    _host: Host,
}

/// What the command hands over.
pub(crate) struct Spawned {
    pub(crate) child: Child,
    pub(crate) pid_pipe: OwnedFd,
    pub(crate) name: String,
    pub(crate) host: Host,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
    forgotten: usize,
    open: usize,
    ended: Option<ExitStatus>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `look` finds something or the time is over.
    fn wait<T>(&self, timeout: Duration, mut look: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Process {
    pub(crate) fn supervise(spawned: Spawned, stdin: Option<Vec<u8>>) -> Result<Self> {
        let Spawned { mut child, pid_pipe, name, host } = spawned;
        let shared = Arc::new(Shared::default());
        let mut pid = [0; 4];
        let told = std::fs::File::from(pid_pipe).read_exact(&mut pid);
        let pid = i32::from_ne_bytes(pid);
        if let (Some(bytes), Some(mut pipe)) = (stdin, child.stdin.take()) {
            // A program that does not read must not hold us up, one that ends early is no error here.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let streams = [
            child.stdout.take().map(|s| (Stream::Out, OwnedFd::from(s))),
            child.stderr.take().map(|s| (Stream::Err, s.into())),
        ];
        for (stream, pipe) in streams.into_iter().flatten() {
            shared.lock().open += 1;
            let (shared, label) = (shared.clone(), name.clone());
            std::thread::spawn(move || record(&shared, stream, pipe, &label));
        }
        let waiter = {
            let shared = shared.clone();
            std::thread::spawn(move || {
                let ended = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(libc::SIGKILL));
                shared.update(|state| state.ended = Some(ended));
            })
        };
        let process = Self { handle: pidfd(pid), pid, name, shared, waiter: Some(waiter), _host: host };
        told.with_context(|| format!("{}: its pid was not told", process.name))?;
        Ok(process)
    }

    /// Its process id as the test process sees it (so that `/proc/PID/mem` and the like work).
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// `HOST/PROGRAM`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for a line that contains `pattern`, printed since the start, and returns its text.
    ///
    /// # Errors
    ///
    /// When the time is over or the program ended without such a line; the last lines are in the error.
    pub fn wait_line(&self, pattern: &str, timeout: Duration) -> Result<String> {
        self.wait_line_after(0, pattern, timeout)
    }

    /// The number of lines printed so far, for [`Self::wait_line_after`].
    #[must_use]
    pub fn mark(&self) -> usize {
        let state = self.shared.lock();
        state.forgotten + state.lines.len()
    }

    /// Like [`Self::wait_line`], looking only at what was printed after `mark`.
    ///
    /// # Errors
    ///
    /// As [`Self::wait_line`].
    pub fn wait_line_after(&self, mark: usize, pattern: &str, timeout: Duration) -> Result<String> {
        let mut looked = mark;
        let found = self.shared.wait(timeout, |state| {
            let new = state.lines.iter().skip(looked.saturating_sub(state.forgotten));
            let hit = new.clone().find(|line| line.text.contains(pattern)).map(|line| Ok(line.text.clone()));
            looked = state.forgotten + state.lines.len();
            hit.or_else(|| state.ended.filter(|_| state.open == 0).map(Err))
        });
        match found {
            Some(Ok(line)) => Ok(line),
            Some(Err(status)) => Err(self.failed(&format!("ended ({status}) without a line with {pattern:?}"))),
            None => Err(self.failed(&format!("no line with {pattern:?} within {timeout:?}"))),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When the time is over; the last lines are in the error.
    pub fn wait(&self, timeout: Duration) -> Result<ExitStatus> {
        match self.shared.wait(timeout, |state| state.ended) {
            Some(status) => {
                self.shared.wait(TRAILING, |state| (state.open == 0).then_some(()));
                Ok(status)
            }
            None => Err(self.failed(&format!("still running after {timeout:?}"))),
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.shared.lock().ended.is_some()
    }

    /// Sends a signal. One that ended already gets none.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(handle) = self.handle.as_ref().filter(|_| !self.has_ended()) else { return Ok(()) };
        // SAFETY: a system call on numbers and a null pointer, which it allows.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                handle.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match io::Error::last_os_error() {
            _ if sent == 0 => Ok(()),
            e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(anyhow!(e).context(format!("signal to {}", self.name))),
        }
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn terminate(&self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }

    /// Sends SIGKILL and waits for the end.
    ///
    /// # Errors
    ///
    /// When the kernel does not manage that within 10 s.
    pub fn kill(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10))
    }

    /// Every line so far, in the order of arrival.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.shared.lock().lines.clone()
    }

    /// The lines of its standard output so far, each with its end.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.text(Stream::Out)
    }

    /// The lines of its standard error so far, each with its end.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.text(Stream::Err)
    }

    fn text(&self, stream: Stream) -> String {
        let state = self.shared.lock();
        state.lines.iter().filter(|line| line.stream == stream).flat_map(|line| [line.text.as_str(), "\n"]).collect()
    }

    fn failed(&self, what: &str) -> anyhow::Error {
        let state = self.shared.lock();
        let tail = state.lines.iter().skip(state.lines.len().saturating_sub(TAIL));
        let tail: String = tail.flat_map(|line| ["\n  | ", line.text.as_str()]).collect();
        anyhow!("{}: {what}{tail}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.signal(Signal::SIGKILL));
        if let Some(waiter) = self.waiter.take() {
            drop(waiter.join());
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("name", &self.name).field("pid", &self.pid).finish_non_exhaustive()
    }
}

fn record(shared: &Shared, stream: Stream, pipe: OwnedFd, label: &str) {
    let echo = std::env::var_os("EDGELINK_TESTBED_ECHO").is_some();
    let mut reader = BufReader::new(std::fs::File::from(pipe));
    let mut bytes = Vec::new();
    while let Ok(1..) = reader.read_until(b'\n', &mut bytes) {
        let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
        bytes.clear();
        if echo {
            eprintln!("[{label}] {text}");
        }
        shared.update(|state| {
            if state.lines.len() == MAX_LINES {
                state.lines.drain(..MAX_LINES / 2);
                state.forgotten += MAX_LINES / 2;
            }
            state.lines.push(Line { stream, text });
        });
    }
    shared.update(|state| state.open -= 1);
}

/// A descriptor for the process, which never comes to mean another one.
fn pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: a system call on numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: just made by the kernel for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Fails unless the kernel has what [`Process`] needs.
pub(crate) fn check_kernel() -> Result<()> {
    let own = i32::try_from(std::process::id()).context("pid")?;
    if pidfd(own).is_none() {
        bail!("this kernel is too old: Linux 5.9 or later is needed (pidfd, close_range)");
    }
    Ok(())
}
