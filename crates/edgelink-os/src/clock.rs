//! When the host was suspended, or its clock was set.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Wakes when the wall clock jumps, which it does at the end of a suspension too.
#[derive(Debug)]
pub struct ClockWatch {
    timer: AsyncFd<OwnedFd>,
}

impl ClockWatch {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the kernel has no such timers.
    pub fn open() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is owned from here on.
        let timer = unsafe {
            let fd = libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        arm(&timer)?;
        // SAFETY: an owned descriptor stays open and the same until it is dropped, with the `AsyncFd` that owns it.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self { timer })
    }

    /// Waits until the clock has jumped.
    ///
    /// # Errors
    ///
    /// As the kernel says; not to be called again then.
    pub async fn jumped(&self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            let mut ticks = [0u8; 8];
            // SAFETY: the buffer is as long as told.
            let read = unsafe { libc::read(self.timer.as_raw_fd(), ticks.as_mut_ptr().cast(), ticks.len()) };
            let error = io::Error::last_os_error();
            ready.clear_ready();
            match error.raw_os_error() {
                _ if read >= 0 => {}
                Some(libc::ECANCELED) => {
                    arm(self.timer.get_ref())?;
                    return Ok(());
                }
                Some(libc::EAGAIN | libc::EINTR) => {}
                _ => return Err(error),
            }
        }
    }
}

/// To a time that never comes; a jump cancels it.
fn arm(timer: &OwnedFd) -> io::Result<()> {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut never: libc::itimerspec = unsafe { std::mem::zeroed() };
    never.it_value.tv_sec = i32::MAX.into();
    let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
    // SAFETY: the structure lives during the call.
    match unsafe { libc::timerfd_settime(timer.as_raw_fd(), flags, &raw const never, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How long this host has been suspended since it was started: what the monotonic clock has missed.
#[must_use]
pub fn suspended() -> Duration {
    read(libc::CLOCK_BOOTTIME).saturating_sub(read(libc::CLOCK_MONOTONIC))
}

fn read(clock: libc::clockid_t) -> Duration {
    // SAFETY: all zeros is a valid value of this plain structure, which lives during the call.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(clock, &raw mut time);
        time
    };
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_was_not_suspended_meanwhile_has_not_slept() {
        let before = suspended();
        let after = suspended();
        // Both clocks are read one after the other, on a machine that may be busy.
        assert!(after.abs_diff(before) < Duration::from_secs(1), "{before:?} {after:?}");
    }

    #[test]
    fn nothing_is_told_while_nothing_happens() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let watch = ClockWatch::open().unwrap();
            assert!(tokio::time::timeout(Duration::from_millis(50), watch.jumped()).await.is_err());
        });
    }
}
