//! The thread that carries frames between two interfaces, each through a [`Pipe`].
//!
//! It reads and writes packet sockets with a virtio header before each frame (`PACKET_VNET_HDR`). The header carries what
//! virtual Ethernet leaves undone: checksums that were never computed and super-frames (GSO) that were never cut. So
//! neither is done here, and a super-frame of 64 KiB costs one read and one write.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    cmsg_space,
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{ControlMessageOwned, MsgFlags, recvmsg, send, setsockopt, sockopt},
        time::TimeSpec,
    },
    time::{ClockId, clock_gettime},
};

use crate::{
    capture,
    pipe::{Counters, Pipe},
};

/// `struct virtio_net_hdr`.
const HEADER: usize = 10;
/// The header's second byte is the kind of super-frame, 0 for none.
const GSO_TYPE: usize = 1;
/// Longest frame: a super-frame with its Ethernet header.
const MAX_FRAME: usize = HEADER + 14 + 65_536;
const BUFFER: usize = 16 << 20;
/// Frames read from one side before the other gets its turn.
const BATCH: usize = 64;
/// How long a link counts as busy after a frame.
const BUSY: Duration = Duration::from_millis(1);
/// A stamp older than this is the clock's fault, not the scheduler's.
const MAX_AGE: Duration = Duration::from_millis(100);

/// A running forwarder; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Forwarder {
    sides: Arc<[Side; 2]>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// Where frames come in, and the pipe that they enter.
#[derive(Debug)]
struct Side {
    socket: OwnedFd,
    pipe: Mutex<Pipe>,
}

impl Side {
    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Forwarder {
    /// Carries what comes in at one packet socket, not bound yet, to the other; what enters `ends[0]` passes `pipes[0]`.
    pub(crate) fn start(ends: [(OwnedFd, &str); 2], pipes: [Pipe; 2]) -> Result<Self> {
        let [one, other] = ends;
        let [forth, back] = pipes;
        let side = |(socket, interface): (OwnedFd, &str), pipe| -> Result<Side> {
            prepare(&socket, interface).with_context(|| format!("cannot forward on {interface}"))?;
            Ok(Side { socket, pipe: Mutex::new(pipe) })
        };
        let sides = Arc::new([side(one, forth)?, side(other, back)?]);
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let thread = {
            let (sides, stop) = (sides.clone(), stop.clone());
            std::thread::Builder::new().name("link".to_owned()).spawn(move || forward(&sides, &stop))?
        };
        Ok(Self { sides, stop, thread: Some(thread) })
    }

    /// Works on the pipe for what enters at one end.
    pub(crate) fn pipe<T>(&self, end: usize, work: impl FnOnce(&mut Pipe) -> T) -> Option<T> {
        self.sides.get(end).map(|side| work(&mut side.pipe()))
    }

    pub(crate) fn counters(&self, end: usize) -> Result<Counters> {
        let side = self.sides.get(end).context("a link has two ends")?;
        // Reading resets them.
        let overruns = capture::dropped_by_kernel(&side.socket)?;
        let mut pipe = side.pipe();
        pipe.counters.overruns += u64::from(overruns);
        Ok(pipe.counters)
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A full counter cannot be: nothing else is ever written.
            let _ = self.stop.write(1);
            drop(thread.join());
        }
    }
}

fn prepare(socket: &OwnedFd, interface: &str) -> Result<()> {
    // What we send here ourselves must not come back; the header's presence must be known before the first frame.
    for option in [libc::PACKET_IGNORE_OUTGOING, libc::PACKET_VNET_HDR] {
        let on: libc::c_int = 1;
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the kernel reads an int from a local of that size.
        let set =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const on).cast(), len) };
        if set == -1 {
            return Err(io::Error::last_os_error()).context("this kernel's packet sockets lack what links need");
        }
    }
    // Root's way first; the limit of ordinary users is lower, and drops are counted.
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &BUFFER)?;
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        setsockopt(socket, sockopt::SndBuf, &BUFFER)?;
    }
    setsockopt(socket, sockopt::ReceiveTimestampns, &true)?;
    capture::bind(socket, interface).map(drop)
}

fn forward(sides: &[Side; 2], stop: &EventFd) {
    hurry();
    let mut buf = vec![0; MAX_FRAME];
    let mut stamp = cmsg_space!(TimeSpec);
    let [one, other] = sides;
    let mut last = None;
    loop {
        let mut idle = true;
        for (from, to) in [(one, other), (other, one)] {
            for _ in 0..BATCH {
                let Some((len, arrived)) = receive(&from.socket, &mut buf, &mut stamp) else { break };
                idle = false;
                let Some(frame) = buf.get(..len) else { break };
                let mut pipe = from.pipe();
                pipe.counters.super_frames += u64::from(frame.get(GSO_TYPE).is_some_and(|kind| *kind != 0));
                pipe.push(arrived, frame, HEADER);
            }
            deliver(from, to);
        }
        let now = Instant::now();
        if !idle {
            last = Some(now);
        }
        // Waking up for every frame costs the machine more than carrying it. On a busy link that can wait, frames are
        // collected: they still leave when they are due, since their arrival was stamped.
        let busy = last.is_some_and(|last| now.saturating_duration_since(last) < BUSY);
        let nap = one.pipe().nap().min(other.pipe().nap());
        let collect = busy && !nap.is_zero();
        if idle || collect {
            let due = [one.pipe().due(), other.pipe().due()].into_iter().flatten().min();
            let due = due.map(|due| due.saturating_duration_since(now));
            let timeout = if collect { Some(due.map_or(nap, |due| due.min(nap))) } else { due };
            let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = [readable(stop.as_fd()), readable(one.socket.as_fd()), readable(other.socket.as_fd())];
            let watched = if collect { 1 } else { fds.len() };
            // Interrupted: look again.
            let _ = ppoll(fds.get_mut(..watched).unwrap_or_default(), timeout.map(TimeSpec::from_duration), None);
            let [stop, ..] = fds;
            if stop.any().unwrap_or(false) {
                return;
            }
        }
    }
}

fn deliver(from: &Side, to: &Side) {
    let now = Instant::now();
    loop {
        let Some(frame) = from.pipe().pop(now) else { return };
        let sent = send(to.socket.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT).is_ok();
        let counters = &mut from.pipe().counters;
        *(if sent { &mut counters.delivered } else { &mut counters.refused }) += 1;
    }
}

/// The next frame with its header: length, and when it came to the interface, which may be some time before the scheduler
/// lets us read it.
fn receive(socket: &OwnedFd, buf: &mut [u8], stamp: &mut [u8]) -> Option<(usize, Instant)> {
    loop {
        let mut slices = [IoSliceMut::new(buf)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(stamp), MsgFlags::MSG_DONTWAIT) {
            Ok(message) => {
                let now = Instant::now();
                let stamped = message.cmsgs().ok().and_then(|mut all| {
                    all.find_map(|one| if let ControlMessageOwned::ScmTimestampns(at) = one { Some(at) } else { None })
                });
                let age = stamped.and_then(age).filter(|age| *age <= MAX_AGE).unwrap_or_default();
                let whole = message.bytes > HEADER && !message.flags.contains(MsgFlags::MSG_TRUNC);
                if whole {
                    return Some((message.bytes, now.checked_sub(age).unwrap_or(now)));
                }
            }
            // The interface went down: there may be more later.
            Err(Errno::EINTR | Errno::ENETDOWN) => {}
            Err(_) => return None,
        }
    }
}

fn age(stamped: TimeSpec) -> Option<Duration> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).ok()?;
    let age = now - stamped;
    let seconds = u64::try_from(age.tv_sec()).ok()?;
    Some(Duration::new(seconds, u32::try_from(age.tv_nsec()).ok()?))
}

/// A link does not wait for a processor: takes as much precedence as the kernel gives, and exact timers.
fn hurry() {
    // SAFETY: system calls on numbers and on a local.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1);
        let lowest = libc::sched_param { sched_priority: 1 };
        if libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const lowest) == -1 {
            let thread = libc::syscall(libc::SYS_gettid) as libc::id_t;
            libc::setpriority(libc::PRIO_PROCESS, thread, -20);
        }
    }
}
