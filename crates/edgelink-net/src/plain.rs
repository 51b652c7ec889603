//! A TCP connection as it is: bytes in, bytes out, one task for both directions.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::stream::PacedStream;

/// Pieces handed to the kernel at once.
const PIECES: usize = 16;

/// One TCP connection without TLS and WebSocket, for what is sealed end to end anyway.
///
/// As with [`crate::ws::WebSocket`], receiving pushes out what was fed. Memory: what the caller feeds, which it bounds by
/// [`Self::unsent`].
#[derive(Debug)]
pub struct Plain {
    stream: PacedStream,
    out: VecDeque<Bytes>,
    unsent: usize,
    /// Whose turn it is when both directions could go on.
    write_first: bool,
}

/// What [`Plain::next`] waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// So many bytes have come.
    Read(usize),
    /// Everything fed so far is with the kernel: time to feed more.
    Writable,
    /// The other end has closed.
    Closed,
}

impl Plain {
    /// Takes over a connection; see [`crate::tcp::configure`].
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: PacedStream::new(stream), out: VecDeque::new(), unsent: 0, write_first: false }
    }

    /// Our own address and the other end's.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn ends(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        let tcp = self.stream.tcp();
        Ok((tcp.local_addr()?, tcp.peer_addr()?))
    }

    /// How many bytes to [feed](Self::feed) before they are on their way, by what the connection delivers ([`crate::pace`]).
    pub fn budget(&mut self, now: Instant) -> usize {
        self.stream.update(now).budget()
    }

    /// Queues bytes. Never waits: the caller bounds what it feeds by [`Self::unsent`].
    pub fn feed(&mut self, bytes: Bytes) {
        self.unsent += bytes.len();
        if !bytes.is_empty() {
            self.out.push_back(bytes);
        }
    }

    /// Bytes fed and not yet with the kernel.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Waits for whichever comes first: bytes, which go into `buffer` (not empty), or (when asked for) that everything fed
    /// before has gone out. When both could go on they take turns. Pushes out what was fed meanwhile. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self, wants_write: bool, buffer: &mut [u8]) -> io::Result<Event> {
        poll_fn(|cx| self.poll_next(cx, wants_write, buffer)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, wants_write: bool, buffer: &mut [u8]) -> Poll<io::Result<Event>> {
        let write_now = self.push(cx)?.is_ready() && wants_write;
        if write_now && std::mem::take(&mut self.write_first) {
            return Poll::Ready(Ok(Event::Writable));
        }
        let mut read = ReadBuf::new(buffer);
        if Pin::new(&mut self.stream).poll_read(cx, &mut read)?.is_ready() {
            self.write_first = true;
            let len = read.filled().len();
            return Poll::Ready(Ok(if len == 0 { Event::Closed } else { Event::Read(len) }));
        }
        if write_now { Poll::Ready(Ok(Event::Writable)) } else { Poll::Pending }
    }

    fn push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES];
            let mut count = 0;
            for (piece, bytes) in pieces.iter_mut().zip(&self.out) {
                *piece = IoSlice::new(bytes);
                count += 1;
            }
            let pieces = pieces.get(..count).unwrap_or_default();
            let mut written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, pieces))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent = self.unsent.saturating_sub(written);
            while let Some(first) = self.out.front_mut().filter(|_| written > 0) {
                let len = first.len().min(written);
                first.advance(len);
                written -= len;
                if first.is_empty() {
                    self.out.pop_front();
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::Listener;

    async fn pair() -> (Plain, Plain) {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(listener.local_addr()), listener.accept());
        (Plain::new(ours.unwrap()), Plain::new(theirs.0))
    }

    #[tokio::test]
    async fn two_that_only_send_to_each_other_do_not_lock_up_and_lose_nothing() {
        const TOTAL: usize = 8 << 20;
        let (a, b) = pair().await;
        let run = |mut plain: Plain| async move {
            let (mut fed, mut seen, mut buffer) = (0_usize, 0_usize, vec![0; 100_000]);
            while fed < TOTAL || plain.unsent() > 0 || seen < TOTAL {
                // Pieces of many sizes, each byte telling its place.
                while fed < TOTAL && plain.unsent() < 200_000 {
                    let len = (1 + fed % 70_001).min(TOTAL - fed);
                    plain.feed((fed..fed + len).map(|at| (at % 251) as u8).collect());
                    fed += len;
                }
                match plain.next(fed < TOTAL || plain.unsent() > 0, &mut buffer).await.unwrap() {
                    Event::Read(len) => {
                        assert!(buffer[..len].iter().enumerate().all(|(n, byte)| *byte == ((seen + n) % 251) as u8));
                        seen += len;
                    }
                    Event::Writable => {}
                    Event::Closed => panic!("closed after {seen}"),
                }
            }
            plain
        };
        let (_a, _b) = tokio::join!(run(a), run(b));
    }

    #[tokio::test]
    async fn the_end_is_told_and_reading_does_not_starve_writing() {
        let (mut a, mut b) = pair().await;
        b.feed(Bytes::from_static(&[7; 1000]));
        let mut buffer = [0; 10];
        assert_eq!(b.next(true, &mut buffer).await.unwrap(), Event::Writable);
        // 1,000 bytes wait to be read ten at a time; in between it is the writer's turn.
        assert_eq!(a.next(false, &mut buffer).await.unwrap(), Event::Read(10));
        assert_eq!(a.next(true, &mut buffer).await.unwrap(), Event::Writable);
        assert_eq!(a.next(true, &mut buffer).await.unwrap(), Event::Read(10));
        drop(b);
        let mut rest = [0; 2000];
        assert_eq!(a.next(false, &mut rest).await.unwrap(), Event::Read(980));
        assert_eq!(a.next(false, &mut rest).await.unwrap(), Event::Closed);
    }
}
