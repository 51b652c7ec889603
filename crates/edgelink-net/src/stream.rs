//! A TCP stream that can say how fast it is, and end a segment with each write.

use crate::pace::{Pace, TcpSample};
use socket2::SockRef;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// A TCP stream and what is known of its speed.
#[derive(Debug)]
pub(crate) struct PacedStream {
    stream: TcpStream,
    pace: Pace,
}

impl PacedStream {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, pace: Pace::new() }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.stream
    }

    /// Asks the kernel if that is due, and sets its bound for what is unsent.
    pub(crate) fn update(&mut self, now: Instant) -> &Pace {
        if self.pace.is_due(now)
            && let Some(sample) = sample(&self.stream)
        {
            let changes = self.pace.update(&sample, now);
            if let Some(unsent) = changes.unsent
                && let Err(error) = SockRef::from(&self.stream).set_tcp_notsent_lowat(unsent)
            {
                tracing::debug!(%error, unsent, "TCP_NOTSENT_LOWAT");
            }
            if let Some(rate) = changes.rate
                && let Err(error) = set_max_pacing_rate(&self.stream, rate)
            {
                tracing::debug!(%error, rate, "SO_MAX_PACING_RATE");
            }
        }
        &self.pace
    }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no crate of ours reads TCP_INFO without a panic on kernels that know less of it")]
fn sample(stream: &TcpStream) -> Option<TcpSample> {
    use std::{os::fd::AsRawFd as _, time::Duration};

    // SAFETY: a structure of numbers, for which all zeros are values.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of_val(&info)).ok()?;
    // SAFETY: the kernel writes at most `len` bytes to a local of that size, and how many to `len`.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len)
    };
    // What an older kernel does not know stays 0.
    (result == 0).then(|| TcpSample {
        delivery_rate: info.tcpi_delivery_rate,
        cwnd: info.tcpi_snd_cwnd,
        mss: info.tcpi_snd_mss,
        rtt: Duration::from_micros(info.tcpi_rtt.into()),
        min_rtt: Duration::from_micros(info.tcpi_min_rtt.into()),
        sent: info.tcpi_data_segs_out,
        resent: info.tcpi_total_retrans,
    })
}

/// Bytes per second that the kernel may send at most.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "no crate of ours sets SO_MAX_PACING_RATE")]
fn set_max_pacing_rate(stream: &TcpStream, rate: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    let len = libc::socklen_t::try_from(size_of_val(&rate)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of a local of that size.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, (&raw const rate).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn set_max_pacing_rate(_: &TcpStream, _: u64) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn sample(_: &TcpStream) -> Option<TcpSample> {
    None
}

impl AsyncRead for PacedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PacedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if !self.pace.is_slow() {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        // MSG_EOR: nothing is added to this segment later, so the next write meets the bound (`Pace::is_slow`).
        let (stream, flags) = (&self.stream, libc::MSG_EOR | libc::MSG_NOSIGNAL);
        loop {
            ready!(stream.poll_write_ready(cx))?;
            let write = || SockRef::from(stream).send_vectored_with_flags(bufs, flags);
            match stream.try_io(Interest::WRITABLE, write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
