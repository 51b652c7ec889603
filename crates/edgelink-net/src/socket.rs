//! A TCP socket whose read buffer exists only while something in it is unread.
//!
//! A server holds thousands of connections that say something twice a minute. A buffer of their own would cost each of
//! them what it once read at a time; this way those that have just been read from share a few, which also stay in the
//! processor's cache.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{conn::READ_BUFFER, stream::PacedStream};

/// Buffers kept for the next reader, per thread; a connection whose reader is slower than the network holds one of its own.
const SPARE: usize = 4;

thread_local! {
    static SPARES: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A TCP socket that reads up to [`READ_BUFFER`] bytes at once; writes pass through, gathered.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: PacedStream,
    unread: Option<Unread>,
}

/// What was read and not yet taken: never empty.
#[derive(Debug)]
struct Unread {
    buffer: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream: PacedStream::new(stream), unread: None }
    }

    pub(crate) fn get_ref(&self) -> &PacedStream {
        &self.stream
    }

    pub(crate) fn get_mut(&mut self) -> &mut PacedStream {
        &mut self.stream
    }
}

impl AsyncBufRead for Socket {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let Self { stream, unread } = self.get_mut();
        if unread.is_none() {
            let mut buffer = take_spare();
            let mut read = ReadBuf::new(&mut buffer);
            let outcome = Pin::new(stream).poll_read(cx, &mut read);
            let end = read.filled().len();
            if end == 0 {
                give_back(buffer);
                ready!(outcome)?;
                return Poll::Ready(Ok(&[]));
            }
            *unread = Some(Unread { buffer, begin: 0, end });
        }
        let bytes = unread.as_ref().and_then(|unread| unread.buffer.get(unread.begin..unread.end));
        Poll::Ready(Ok(bytes.unwrap_or_default()))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let unread = &mut self.get_mut().unread;
        if let Some(of) = unread {
            of.begin += amount;
            if of.begin >= of.end
                && let Some(of) = unread.take()
            {
                give_back(of.buffer);
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let len = bytes.len().min(out.remaining());
        out.put_slice(bytes.get(..len).unwrap_or_default());
        self.consume(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

fn take_spare() -> Box<[u8]> {
    let spare = SPARES.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| vec![0; READ_BUFFER].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    SPARES.with_borrow_mut(|spares| {
        if spares.len() < SPARE {
            spares.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (ours, theirs) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async { listener.accept().await });
        (Socket::new(ours.unwrap()), theirs.unwrap().0)
    }

    #[tokio::test]
    async fn a_buffer_is_held_only_while_something_is_unread() {
        let (mut socket, mut peer) = pair().await;
        peer.write_all(b"hello").await.unwrap();
        let mut two = [0; 2];
        socket.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"he");
        assert!(socket.unread.is_some());
        assert_eq!(socket.fill_buf().await.unwrap(), b"llo");
        let mut rest = [0; 3];
        socket.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"llo");
        assert!(socket.unread.is_none());

        // Nor by one that waits.
        let mut byte = [0; 1];
        tokio::select! {
            biased;
            _ = socket.read(&mut byte) => panic!("nothing was sent"),
            () = std::future::ready(()) => {}
        }
        assert!(socket.unread.is_none());
        drop(peer);
        assert_eq!(socket.read(&mut byte).await.unwrap(), 0);
        assert!(socket.unread.is_none());
    }

    #[tokio::test]
    async fn what_one_reads_another_does_not_see() {
        let ((mut a, mut to_a), (mut b, mut to_b)) = (pair().await, pair().await);
        let long: Vec<u8> = (0..3 * READ_BUFFER).map(|i| (i % 251) as u8).collect();
        let (mut of_a, mut of_b) = (vec![0; long.len()], vec![0; long.len()]);
        let reversed: Vec<u8> = long.iter().rev().copied().collect();
        // Odd lengths in turn, so that each holds a part of a buffer while the other reads.
        let reading = async {
            let (mut at_a, mut at_b) = (0, 0);
            while at_a < long.len() || at_b < long.len() {
                let until = (at_a + 7_001).min(long.len());
                at_a += a.read(&mut of_a[at_a..until]).await.unwrap();
                let until = (at_b + 9_003).min(long.len());
                at_b += b.read(&mut of_b[at_b..until]).await.unwrap();
            }
        };
        let (_, written_a, written_b) = tokio::join!(reading, to_a.write_all(&long), to_b.write_all(&reversed));
        written_a.and(written_b).unwrap();
        assert!(of_a == long && of_b == reversed);
        assert!(SPARES.with_borrow(Vec::len) <= SPARE);
    }
}
