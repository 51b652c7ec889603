//! One byte stream, whatever it runs over: TCP, TLS over TCP, or anything an HTTP server handed us.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use bytes::{Buf, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{pace::MAX_BUDGET, socket::Socket};

/// Bytes read from the socket at once. rustls asks for 4 KiB at a time; without a buffer below it, every one of those
/// would be a system call.
pub const READ_BUFFER: usize = 64 * 1024;

/// A connected byte stream with its two addresses.
///
/// Reads are buffered below TLS; writes are gathered (`writev`), so that a WebSocket message of 192 KiB leaves in one or
/// two system calls. Memory: [`READ_BUFFER`] while something read is not taken yet, and the TLS records that the socket did
/// not take yet, which [`crate::ws::WebSocket::poll_ready`] bounds.
pub struct Conn {
    /// What an HTTP parser had already read of the bytes behind its message.
    prefix: Bytes,
    transport: Transport,
    local: Option<SocketAddr>,
    peer: Option<SocketAddr>,
}

enum Transport {
    Tcp(Socket),
    Client(Box<tokio_rustls::client::TlsStream<Socket>>),
    Server(Box<tokio_rustls::server::TlsStream<Socket>>),
    Other(Box<dyn Stream + Send>),
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

impl Conn {
    /// A plain TCP connection.
    #[must_use]
    pub fn tcp(stream: TcpStream) -> Self {
        Self::plain(Socket::new(stream))
    }

    pub(crate) fn plain(socket: Socket) -> Self {
        let (local, peer) = addresses(&socket);
        Self { prefix: Bytes::new(), transport: Transport::Tcp(socket), local, peer }
    }

    pub(crate) fn tls_client(stream: tokio_rustls::client::TlsStream<Socket>) -> Self {
        let (local, peer) = addresses(stream.get_ref().0);
        Self { prefix: Bytes::new(), transport: Transport::Client(Box::new(stream)), local, peer }
    }

    pub(crate) fn tls_server(stream: tokio_rustls::server::TlsStream<Socket>) -> Self {
        let (local, peer) = addresses(stream.get_ref().0);
        Self { prefix: Bytes::new(), transport: Transport::Server(Box::new(stream)), local, peer }
    }

    /// Any other stream, such as an in-memory one in a test.
    pub fn other(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { prefix: Bytes::new(), transport: Transport::Other(Box::new(stream)), local: None, peer: None }
    }

    /// What is left of an HTTP/1.1 connection after `101 Switching Protocols`. Costs nothing when that connection ran over
    /// a [`Conn`] (as [`crate::server`] and [`crate::ws::dial`] do it).
    pub fn from_upgraded(upgraded: Upgraded) -> Self {
        match upgraded.downcast::<TokioIo<Self>>() {
            Ok(parts) => {
                let mut conn = parts.io.into_inner();
                // An empty one would still keep the parser's buffer.
                if !parts.read_buf.is_empty() {
                    conn.prefix = parts.read_buf;
                }
                conn
            }
            Err(upgraded) => Self::other(TokioIo::new(upgraded)),
        }
    }

    /// Our own address, where known.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local
    }

    /// The address at the other end of the TCP connection: a proxy's, when there is one.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// The TLS version in use, such as `TLSv1_3`; `None` without TLS.
    #[must_use]
    pub fn tls_version(&self) -> Option<rustls::ProtocolVersion> {
        match &self.transport {
            Transport::Client(tls) => tls.get_ref().1.protocol_version(),
            Transport::Server(tls) => tls.get_ref().1.protocol_version(),
            Transport::Tcp(_) | Transport::Other(_) => None,
        }
    }

    /// How much to write at once, by what the connection is seen to deliver: the kernel is asked at most every 10 ms. All
    /// that is useful where there is no TCP socket to ask.
    pub fn budget(&mut self, now: Instant) -> usize {
        let socket = match &mut self.transport {
            Transport::Tcp(socket) => socket,
            Transport::Client(tls) => tls.get_mut().0,
            Transport::Server(tls) => tls.get_mut().0,
            Transport::Other(_) => return MAX_BUDGET,
        };
        socket.get_mut().update(now).budget()
    }

    fn stream(&mut self) -> Pin<&mut dyn Stream> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream),
            Transport::Client(stream) => Pin::new(&mut **stream),
            Transport::Server(stream) => Pin::new(&mut **stream),
            Transport::Other(stream) => Pin::new(&mut **stream),
        }
    }
}

fn addresses(socket: &Socket) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let tcp = socket.get_ref().tcp();
    (tcp.local_addr().ok(), tcp.peer_addr().ok())
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.has_remaining() {
            let len = self.prefix.len().min(buf.remaining());
            buf.put_slice(&self.prefix.split_to(len));
            if self.prefix.is_empty() {
                self.prefix = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Tcp(stream) => stream.is_write_vectored(),
            Transport::Client(stream) => stream.is_write_vectored(),
            Transport::Server(stream) => stream.is_write_vectored(),
            Transport::Other(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("local", &self.local).field("peer", &self.peer).finish_non_exhaustive()
    }
}
