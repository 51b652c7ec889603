//! Namespaces that live no longer than the process that made them.
//!
//! ```text
//! test process ── lifeline (pipe) ──┐
//!   ├─ guard ── waits for ── init (pid 1 of the lab's PID namespace)
//!   └─ proxy ── waits for ── command (inside), one pair per command
//! ```
//!
//! *init* blocks on the lifeline. When its other end closes, because the lab was dropped or the test process died in
//! whatever way, it kills every process of its PID namespace, removes the lab's directory and ends. Network namespaces
//! have no name: descriptors in the test process and the processes inside hold them.
//!
//! Everything between `fork` and `exec` (or `_exit`) here is system calls on memory prepared before, since the test
//! process has threads.

use std::{
    ffi::CString,
    io::{self, IoSliceMut, Read},
    mem::MaybeUninit,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
    ptr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use libc::{c_int, pid_t};
use nix::{
    cmsg_space,
    fcntl::OFlag,
    sys::{
        signal::{Signal, kill},
        socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getegid, geteuid, pipe2},
};

use crate::wait;

/// How a lab is separated from the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Plain namespaces; needs root.
    Root,
    /// Inside a user namespace of its own; needs no privilege where the kernel permits it.
    UserNamespace,
}

impl Isolation {
    /// Plain namespaces for root, a user namespace for everybody else or when `EDGELINK_TESTBED_USERNS` is set.
    #[must_use]
    pub fn best() -> Self {
        if geteuid().is_root() && std::env::var_os("EDGELINK_TESTBED_USERNS").is_none() {
            Self::Root
        } else {
            Self::UserNamespace
        }
    }
}

/// Tells whether this kernel lets us build a lab.
///
/// # Errors
///
/// Says what forbids it and what to do.
pub fn support() -> Result<Isolation> {
    let isolation = Isolation::best();
    Keeper::start(isolation, None)?;
    Ok(isolation)
}

/// What every process of the lab joins.
#[derive(Debug)]
pub(crate) struct Base {
    user: Option<OwnedFd>,
    mount: OwnedFd,
    pid: OwnedFd,
}

impl Base {
    fn of(init: Pid, with_user: bool) -> Result<Self> {
        let open = |kind: &str| -> Result<OwnedFd> {
            let path = format!("/proc/{init}/ns/{kind}");
            Ok(std::fs::File::open(&path).with_context(|| format!("cannot open {path}"))?.into())
        };
        Ok(Self { user: with_user.then(|| open("user")).transpose()?, mount: open("mnt")?, pid: open("pid")? })
    }
}

/// One host's own namespaces.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) net: OwnedFd,
    pub(crate) uts: OwnedFd,
}

/// Descriptors to join, as plain numbers for use after a fork.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Join {
    user: RawFd,
    mount: RawFd,
    pid: RawFd,
    net: RawFd,
    uts: RawFd,
}

impl Join {
    pub(crate) fn new(base: &Base, own: &Own) -> Self {
        Self {
            user: base.user.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            mount: base.mount.as_raw_fd(),
            pid: base.pid.as_raw_fd(),
            net: own.net.as_raw_fd(),
            uts: own.uts.as_raw_fd(),
        }
    }

    /// Enters all namespaces but the PID one, which only children can be in. Between fork and exec only.
    fn enter(self) -> io::Result<()> {
        // The user namespace first: it gives the right to enter the others.
        for fd in [self.user, self.mount, self.net, self.uts] {
            if fd >= 0 {
                // SAFETY: a system call on a number.
                check(unsafe { libc::setns(fd, 0) })?;
            }
        }
        Ok(())
    }

    /// Enters everything and continues in a child inside the PID namespace, while the caller's process stays outside
    /// as its proxy: it reports the child's pid to `report`, waits and ends as the child ended. Between fork and exec only.
    pub(crate) fn enter_as_command(self, report: RawFd) -> io::Result<()> {
        self.enter()?;
        // SAFETY: system calls on numbers, in a process with one thread.
        unsafe {
            check(libc::setns(self.pid, libc::CLONE_NEWPID))?;
            // A session of its own: the terminal's Ctrl-C is for the test process.
            libc::setsid();
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    libc::setsid();
                    check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))
                }
                child => proxy(child, report),
            }
        }
    }
}

/// Creates a host's namespaces, with `name` as its host name.
pub(crate) fn create_own(base: &Base, name: &str) -> Result<Own> {
    let user = base.user.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let fds = in_child(|| {
        // SAFETY: system calls on numbers and on memory that outlives them.
        unsafe {
            if user >= 0 {
                check(libc::setns(user, 0))?;
            }
            check(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWUTS))?;
            check(libc::sethostname(name.as_ptr().cast(), name.len()))?;
            let net = libc::open(c"/proc/self/ns/net".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            let uts = libc::open(c"/proc/self/ns/uts".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            Ok([check_fd(net)?, check_fd(uts)?])
        }
    })
    .with_context(|| format!("cannot create a network namespace for {name}"))?;
    let [net, uts] = fds;
    Ok(Own { net, uts })
}

/// Creates a socket inside a host; it stays there, whoever uses it.
pub(crate) fn socket(join: Join, domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    let [socket] = in_child(|| {
        join.enter()?;
        // SAFETY: a system call on numbers.
        Ok([check_fd(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?])
    })?;
    Ok(socket)
}

/// Opens a file as a process of the host sees it (its `/proc/sys/net` in particular) for writing.
pub(crate) fn open_for_writing(join: Join, path: &CString) -> io::Result<OwnedFd> {
    let [file] = in_child(|| {
        join.enter()?;
        // SAFETY: `path` is a C string that outlives the call.
        Ok([check_fd(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?])
    })?;
    Ok(file)
}

/// The life of a lab: dropping it ends every process inside and removes the directory.
#[derive(Debug)]
pub(crate) struct Keeper {
    lifeline: Option<OwnedFd>,
    guard: Pid,
    init: Pid,
    base: Arc<Base>,
}

impl Keeper {
    /// Starts the guard and the lab's init; `dir` is removed with everything in it at the end.
    pub(crate) fn start(isolation: Isolation, dir: Option<&Path>) -> Result<Self> {
        let with_user = isolation == Isolation::UserNamespace;
        let plan = Plan::new(with_user, dir)?;
        let (life_read, life_write) = pipe2(OFlag::O_CLOEXEC)?;
        let (status_read, status_write) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the child runs `guard`, which makes system calls only and never returns.
        let guard = match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()).context("fork"),
            0 => guard(&plan, life_read.as_raw_fd(), status_write.as_raw_fd()),
            pid => Pid::from_raw(pid),
        };
        drop((life_read, status_write));
        let started = read_status(status_read).and_then(|init| Ok((init, Base::of(init, with_user)?)));
        match started {
            Ok((init, base)) => Ok(Self { lifeline: Some(life_write), guard, init, base: Arc::new(base) }),
            Err(error) => {
                drop(life_write);
                let _ = waitpid(guard, None);
                Err(error.context(advice(isolation)))
            }
        }
    }

    pub(crate) fn base(&self) -> Arc<Base> {
        self.base.clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let ended = || match waitpid(self.guard, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => None,
            _ => Some(()),
        };
        // Stuck in removing a huge directory, say: the processes must go all the same.
        if wait::until("the end of the lab", Duration::from_secs(10), ended).is_err() {
            let _ = kill(self.init, Signal::SIGKILL);
            let _ = waitpid(self.guard, None);
        }
    }
}

/// What the guard and init need, prepared before the fork.
struct Plan {
    maps: Option<(String, String)>,
    rm: CString,
    dir: Option<CString>,
}

impl Plan {
    fn new(with_user: bool, dir: Option<&Path>) -> Result<Self> {
        let rm = crate::tools::find("rm").ok_or_else(|| anyhow!("rm is missing"))?;
        let c = |path: &Path| CString::new(path.as_os_str().as_encoded_bytes()).context("a path with a zero byte");
        Ok(Self {
            maps: with_user.then(|| (format!("0 {} 1", geteuid()), format!("0 {} 1", getegid()))),
            rm: c(&rm)?,
            dir: dir.map(c).transpose()?,
        })
    }
}

/// Steps that can fail, in the order of [`STEPS`].
const STEPS: [&str; 5] =
    ["create namespaces", "map the user", "start a process in the new PID namespace", "make mounts private", "?"];
const INIT_IS: u8 = 200;
const READY: u8 = 201;

fn read_status(pipe: OwnedFd) -> Result<Pid> {
    let mut pipe = std::fs::File::from(pipe);
    let (mut init, mut ready) = (None, false);
    // Two processes write, in no certain order.
    while init.is_none() || !ready {
        let mut message = [0; 5];
        pipe.read_exact(&mut message).context("the lab's first process died")?;
        let [kind, value @ ..] = message;
        let value = i32::from_ne_bytes(value);
        match kind {
            INIT_IS => init = Some(Pid::from_raw(value)),
            READY => ready = true,
            step => {
                let step = STEPS.get(usize::from(step)).unwrap_or(&"?");
                bail!("cannot {step}: {}", io::Error::from_raw_os_error(value));
            }
        }
    }
    init.ok_or_else(|| anyhow!("the lab's first process did not tell its pid"))
}

fn advice(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Root => "the kernel refuses namespaces even to root (in a container: run it with --privileged)",
        Isolation::UserNamespace => {
            "the kernel refuses user namespaces here: run as root, or allow them \
             (sysctl -w kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0, \
             user.max_user_namespaces=10000)"
        }
    }
}

/// The guard's life. After fork: system calls only.
fn guard(plan: &Plan, lifeline: RawFd, status: RawFd) -> ! {
    // SAFETY: system calls on numbers and on `plan`, in a process with one thread.
    unsafe {
        libc::setsid();
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            libc::signal(signal, libc::SIG_IGN);
        }
        close_all_but(lifeline, status);
        let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC;
        let user = if plan.maps.is_some() { libc::CLONE_NEWUSER } else { 0 };
        tell_if_failed(status, 0, libc::unshare(flags | user));
        if let Some((uid, gid)) = &plan.maps {
            for (path, text) in
                [(c"/proc/self/setgroups", "deny"), (c"/proc/self/uid_map", uid), (c"/proc/self/gid_map", gid)]
            {
                let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                let written = libc::write(fd, text.as_ptr().cast(), text.len());
                tell_if_failed(status, 1, if written < 0 { -1 } else { 0 });
                libc::close(fd);
            }
        }
        let init = libc::fork();
        tell_if_failed(status, 2, init);
        if init == 0 {
            self::init(plan, lifeline, status);
        }
        libc::close(lifeline);
        tell(status, INIT_IS, init);
        libc::close(status);
        let mut ended = 0;
        while libc::waitpid(init, &raw mut ended, 0) == -1 && errno() == libc::EINTR {}
        libc::_exit(0)
    }
}

/// The life of the PID namespace's first process. After fork: system calls only.
///
/// # Safety
///
/// The process has one thread.
unsafe fn init(plan: &Plan, lifeline: RawFd, status: RawFd) -> ! {
    // SAFETY: as said above.
    unsafe {
        // Orphans are reaped by the kernel itself.
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        let private = libc::MS_REC | libc::MS_PRIVATE;
        tell_if_failed(status, 3, libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()));
        // A /proc that agrees with getpid(). Where a container forbids it, the outer one does nearly as well.
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), flags, ptr::null());
        tell(status, READY, 0);
        libc::close(status);
        let mut byte = 0_u8;
        loop {
            let read = libc::read(lifeline, (&raw mut byte).cast(), 1);
            if read == 0 || (read < 0 && errno() != libc::EINTR) {
                break;
            }
        }
        libc::kill(-1, libc::SIGKILL);
        // Until the last one is reaped (ESRCH), so that nobody writes into the directory that is being removed.
        for _ in 0..2_000 {
            if libc::kill(-1, 0) == -1 {
                break;
            }
            libc::usleep(1_000);
        }
        if let Some(dir) = &plan.dir {
            let arguments =
                [plan.rm.as_ptr(), c"-rf".as_ptr(), c"--".as_ptr(), dir.as_ptr(), ptr::null::<libc::c_char>()];
            libc::execv(plan.rm.as_ptr(), arguments.as_ptr());
        }
        libc::_exit(0)
    }
}

/// Stays outside for a command: tells its pid, waits for it, ends like it.
///
/// # Safety
///
/// After fork, in a process with one thread.
unsafe fn proxy(child: pid_t, report: RawFd) -> ! {
    // SAFETY: system calls on numbers and locals.
    unsafe {
        let pid = child.to_ne_bytes();
        libc::write(report, pid.as_ptr().cast(), pid.len());
        // Or nobody would ever see the end of the command's output, nor std the success of its exec.
        close_range(0, RawFd::MAX);
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, 0) == -1 && errno() == libc::EINTR {}
        if libc::WIFSIGNALED(status) {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
            libc::signal(libc::WTERMSIG(status), libc::SIG_DFL);
            libc::kill(libc::getpid(), libc::WTERMSIG(status));
            libc::_exit(128 + libc::WTERMSIG(status));
        }
        libc::_exit(libc::WEXITSTATUS(status))
    }
}

/// Runs `body`, system calls only, in a forked child and brings the descriptors that it made back.
fn in_child<const N: usize>(body: impl Fn() -> io::Result<[RawFd; N]>) -> io::Result<[OwnedFd; N]> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the child makes system calls only and ends with _exit.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let result = body();
            send_fds(theirs.as_raw_fd(), &result);
            // SAFETY: ends this process without running the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        pid => Pid::from_raw(pid),
    };
    drop(theirs);
    let received = receive_fds(&ours);
    waitpid(child, None)?;
    received
}

fn send_fds<const N: usize>(socket: RawFd, result: &io::Result<[RawFd; N]>) {
    let code: i32 = result.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0);
    let mut bytes = code.to_ne_bytes();
    // Room for four descriptors, aligned as the kernel wants it.
    let mut control = [0_u64; 8];
    // SAFETY: zero is a valid msghdr; every pointer put in is to a local that outlives sendmsg, and the control
    // message (CMSG_SPACE(16) = 32 bytes at most) fits `control`.
    unsafe {
        let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut message: libc::msghdr = MaybeUninit::zeroed().assume_init();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        if let Ok(fds) = result {
            let len = size_of::<[RawFd; N]>() as u32;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(len) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as _;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), len as usize);
        }
        libc::sendmsg(socket, &raw const message, 0);
    }
}

fn receive_fds<const N: usize>(socket: &OwnedFd) -> io::Result<[OwnedFd; N]> {
    let mut bytes = [0; 4];
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let mut control = cmsg_space!([RawFd; 4]);
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for header in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = header {
            // SAFETY: the kernel just made these descriptors for us; nobody else knows them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.bytes < 4 {
        return Err(io::Error::other("a forked process died"));
    }
    match i32::from_ne_bytes(bytes) {
        0 => fds.try_into().map_err(|_| io::Error::other("descriptors were lost")),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn check(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_fd(fd: RawFd) -> io::Result<RawFd> {
    check(fd).map(|()| fd)
}

unsafe fn tell(status: RawFd, kind: u8, value: i32) {
    let [a, b, c, d] = value.to_ne_bytes();
    let message = [kind, a, b, c, d];
    // SAFETY: the bytes are a local's.
    unsafe { libc::write(status, message.as_ptr().cast(), message.len()) };
}

unsafe fn tell_if_failed(status: RawFd, step: u8, result: c_int) {
    if result < 0 {
        // SAFETY: system calls.
        unsafe {
            tell(status, step, errno());
            libc::_exit(1)
        }
    }
}

unsafe fn close_all_but(one: RawFd, other: RawFd) {
    let (low, high) = if one < other { (one, other) } else { (other, one) };
    // SAFETY: nothing in this process uses the others.
    unsafe {
        close_range(0, low - 1);
        close_range(low + 1, high - 1);
        close_range(high + 1, RawFd::MAX);
    }
}

unsafe fn close_range(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: the callers give the descriptors up.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, last, 0) == -1 {
            for fd in first..=last.min(4096) {
                libc::close(fd);
            }
        }
    }
}

/// The number that names a namespace, as in `/proc/PID/ns/net`.
pub(crate) fn inode(fd: &OwnedFd) -> Result<u64> {
    let stat = nix::sys::stat::fstat(fd)?;
    if stat.st_ino == 0 {
        bail!("a namespace without a number");
    }
    Ok(stat.st_ino)
}
