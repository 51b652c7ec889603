//! WebSockets (RFC 6455) for WSS-Mesh: dialling, upgrading, and messages in and out.

mod dial;
mod dial_error;
mod origins;
mod split;
mod upgrade;

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::io::AsyncReadExt;
use tokio_websockets::{ClientBuilder, CloseCode, Config, Error, Limits, Message, ServerBuilder, WebSocketStream};

pub use dial::{AddressFilter, Dial, Standbys, ask, ask_over, dial};
pub use dial_error::DialError;
pub use origins::{ACTIVE, Origins, STAGGER};
pub use split::{Receiver, Sender};
pub use upgrade::{Refused, UpgradeError, accept, accept_after, upgrade_response};

use crate::conn::Conn;

/// The subprotocol that dialler and server agree on unless told otherwise (DESIGN §1).
pub const SUBPROTOCOL: &str = "wss-mesh.1";

/// The largest message accepted by default, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Fed but unsent bytes above which [`WebSocket::poll_ready`] waits.
pub const WRITE_HIGH_WATER: usize = 256 * 1024;

pub(crate) const USER_AGENT: &str = concat!("EdgeLink/", env!("CARGO_PKG_VERSION"));

/// Unsent PONGs above which reading waits: a peer that only PINGs and never reads must not fill our memory.
const MAX_UNSENT_REPLIES: usize = 32;

/// How long [`WebSocket::close`] waits for the other end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// RFC 6455 §5.2: the longest header of a frame.
const FRAME_HEADER: usize = 14;

/// One WebSocket connection.
///
/// A message is one frame on the wire, however long. PINGs of the WebSocket layer are answered here, fragmented messages
/// reassembled, messages beyond the limit refused with close code 1009.
///
/// # One task, both directions
///
/// Every receiving method also pushes out what was fed, so a task that keeps receiving can never deadlock with a peer
/// that does the same, and a task needs no second one to write:
///
/// ```no_run
/// # use edgelink_net::ws::{Event, Incoming, WebSocket, WsError};
/// # async fn run(mut ws: WebSocket, notify: tokio::sync::Notify, mut core: Vec<bytes::Bytes>) -> Result<(), WsError> {
/// loop {
///     let wants_write = !core.is_empty();
///     tokio::select! {
///         event = ws.next(wants_write) => match event? {
///             Event::Message(Incoming::Binary(message)) => drop(message), // … and ws.try_recv() for what else is there
///             Event::Message(Incoming::Text) => break,
///             Event::Writable => ws.feed(core.remove(0))?,
///             Event::Closed => break,
///         },
///         () = notify.notified() => {} // the core has something to send: look again
///     }
/// }
/// # Ok(()) }
/// ```
///
/// [`Self::send`] and [`Self::flush`] do not read while they wait: fine for a handshake, not for a data path.
///
/// # Memory
///
/// At most one incoming message being assembled and one read ahead (each up to `max_message`), [`WRITE_HIGH_WATER`] plus
/// one message outgoing, and the buffers of [`Conn`].
#[derive(Debug)]
pub struct WebSocket {
    /// Boxed, since futures that take a WebSocket hold it once per call: by value, it would make each connection's task
    /// several times as large.
    stream: Box<WebSocketStream<Conn>>,
    /// The message behind the one handed out last. Reading ahead lets the codec give up its share of that one's buffer,
    /// so that the caller owns it alone and may change it in place.
    ahead: Option<Result<Option<Incoming>, WsError>>,
    /// Bytes fed since everything was last flushed.
    unsent: usize,
    /// PONGs and close frames queued since then.
    unsent_replies: usize,
    ended: bool,
    close_reason: Option<CloseReason>,
    /// Whose turn it is in [`Self::poll_next`] when both directions could go on.
    write_first: bool,
}

/// A message from the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A binary message. `BytesMut::from(bytes)` copies only when something else shares the buffer, which happens to
    /// small messages that arrived together; long ones are the caller's alone.
    Binary(Bytes),
    /// A text message, which WSS-Mesh does not have: the caller reports an error and closes (DESIGN §1).
    Text,
}

/// What [`WebSocket::next`] waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A message came in.
    Message(Incoming),
    /// Everything fed so far is with the kernel: time to feed more.
    Writable,
    /// The other end has closed; see [`WebSocket::close_reason`].
    Closed,
}

/// Why the other end closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("closed by the other end with code {code}{}{reason}", if reason.is_empty() { "" } else { ": " })]
pub struct CloseReason {
    /// RFC 6455 §7.4; 1005 when it gave none.
    pub code: u16,
    /// Its words, at most 123 bytes. Not to be trusted, nor shown unescaped.
    pub reason: String,
}

/// Why a WebSocket is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum WsError {
    /// Already closed, by either end.
    #[error("the connection is closed")]
    Closed,
    /// The other end sent a message beyond the limit. It has been told, with close code 1009.
    #[error("the other end sent a message of {len} bytes, the limit is {max}")]
    TooLarge {
        /// Its length as far as known.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The other end broke RFC 6455. It has been told, with close code 1002.
    #[error("the other end does not speak WebSocket correctly: {0}")]
    Protocol(String),
    /// The connection below broke.
    #[error("{}", io_words(.0))]
    Io(#[from] io::Error),
}

fn io_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "the other end stopped answering".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "the connection was reset".into(),
        _ => error.to_string(),
    }
}

impl WebSocket {
    /// The client end of a connection whose HTTP upgrade is done.
    #[must_use]
    pub fn client(conn: Conn, max_message: usize) -> Self {
        Self::new(ClientBuilder::new().config(config()).limits(limits(max_message)).take_over(conn))
    }

    /// The server end of a connection whose HTTP upgrade is done.
    #[must_use]
    pub fn server(conn: Conn, max_message: usize) -> Self {
        Self::new(ServerBuilder::new().config(config()).limits(limits(max_message)).serve(conn))
    }

    fn new(stream: WebSocketStream<Conn>) -> Self {
        let stream = Box::new(stream);
        Self { stream, ahead: None, unsent: 0, unsent_replies: 0, ended: false, close_reason: None, write_first: false }
    }

    /// Changes the largest accepted message, in bytes: small before authentication, larger afterwards (DESIGN §6).
    pub fn set_max_message(&mut self, max_message: usize) {
        self.stream.limits_mut().set_max_payload_len(Some(max_message));
    }

    /// Our own address, where known.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.stream.get_ref().local_addr()
    }

    /// The address at the other end of the TCP connection: a proxy's, when there is one.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.stream.get_ref().peer_addr()
    }

    /// The connection below.
    #[must_use]
    pub fn conn(&self) -> &Conn {
        self.stream.get_ref()
    }

    /// How many bytes to [feed](Self::feed) before they are on their way, by what the connection delivers ([`crate::pace`]).
    pub fn budget(&mut self, now: Instant) -> usize {
        self.stream.get_mut().budget(now)
    }

    /// What the other end said when it closed; `None` before, and when it just went away.
    #[must_use]
    pub fn close_reason(&self) -> Option<&CloseReason> {
        self.close_reason.as_ref()
    }

    /// The next message; `None` once the other end has closed. Pushes out what was fed meanwhile. Cancel-safe.
    ///
    /// # Errors
    /// [`WsError`]; the connection is then of no more use, except for [`Self::close`].
    pub async fn recv(&mut self) -> Result<Option<Incoming>, WsError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// [`Self::recv`] as a poll function.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Incoming>, WsError>> {
        let _ = self.push(cx)?;
        self.poll_message(cx)
    }

    /// A message that is already here; `Pending` when there is none. For draining after [`Self::recv`]: it never waits
    /// and never wakes anybody.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn try_recv(&mut self) -> Poll<Result<Option<Incoming>, WsError>> {
        self.poll_message(&mut Context::from_waker(Waker::noop()))
    }

    /// Waits for whichever comes first: a message, or (when asked for) that everything fed before has gone out. When both
    /// could go on they take turns. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub async fn next(&mut self, wants_write: bool) -> Result<Event, WsError> {
        poll_fn(|cx| self.poll_next(cx, wants_write)).await
    }

    /// [`Self::next`] as a poll function.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>, wants_write: bool) -> Poll<Result<Event, WsError>> {
        let write_now = self.push(cx)?.is_ready() && wants_write && !self.ended;
        if write_now && std::mem::take(&mut self.write_first) {
            return Poll::Ready(Ok(Event::Writable));
        }
        if let Poll::Ready(received) = self.poll_message(cx)? {
            self.write_first = true;
            return Poll::Ready(Ok(received.map_or(Event::Closed, Event::Message)));
        }
        if write_now { Poll::Ready(Ok(Event::Writable)) } else { Poll::Pending }
    }

    /// Queues one binary message. Never waits: the caller bounds what it feeds by [`Self::ready`], [`Self::unsent`] or
    /// [`Event::Writable`]. A client masks in place when it owns the buffer alone, else in a copy.
    ///
    /// # Errors
    /// [`WsError::Closed`].
    pub fn feed(&mut self, message: Bytes) -> Result<(), WsError> {
        let len = message.len();
        Pin::new(&mut self.stream).start_send(Message::binary(message)).map_err(|e| ws_error(e).0)?;
        self.unsent += len + FRAME_HEADER;
        Ok(())
    }

    /// Bytes fed and not yet known to be with the kernel.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Waits until fewer than [`WRITE_HIGH_WATER`] bytes are unsent. Cancel-safe; does not read meanwhile.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub async fn ready(&mut self) -> Result<(), WsError> {
        poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// [`Self::ready`] as a poll function.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        if self.unsent < WRITE_HIGH_WATER { Poll::Ready(Ok(())) } else { self.poll_flush(cx) }
    }

    /// Waits until everything fed is with the kernel. Cancel-safe; does not read meanwhile.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub async fn flush(&mut self) -> Result<(), WsError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// [`Self::flush`] as a poll function.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx)).map_err(|e| ws_error(e).0)?;
        self.unsent = 0;
        self.unsent_replies = 0;
        Poll::Ready(Ok(()))
    }

    /// Sends one binary message and flushes. When cancelled the message stays queued and goes out with the next flush or
    /// receive. Does not read while it waits (see the type's documentation).
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub async fn send(&mut self, message: Bytes) -> Result<(), WsError> {
        self.feed(message)?;
        self.flush().await
    }

    /// Two halves for two tasks; see [`Receiver`] and [`Sender`].
    #[must_use]
    pub fn split(self) -> (Receiver, Sender) {
        split::split(self)
    }

    /// Closes in an orderly way: everything fed goes out, then the close frame; waits at most 2 s for the other end, and
    /// reads on meanwhile, lest the kernel answers unread data with a reset that overtakes our last words.
    ///
    /// `code` is one that RFC 6455 §7.4 allows on the wire (else 1000 is sent); `reason` is cut at 123 bytes.
    pub async fn close(mut self, code: u16, reason: &str) {
        // Boxed: its scrap is worth a page, which no connection shall hold before it ends.
        let orderly = Box::pin(async move {
            // Fails when a close frame is already under way: then that one counts.
            let _ = Pin::new(&mut self.stream).start_send(close_message(code, reason));
            poll_fn(|cx| Pin::new(&mut self.stream).poll_close(cx)).await?;
            let mut conn = self.stream.into_inner();
            let mut scrap = [0; 4096];
            while conn.read(&mut scrap).await? > 0 {}
            Ok::<_, Error>(())
        });
        match tokio::time::timeout(CLOSE_TIMEOUT, orderly).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the connection broke while closing"),
            Err(_) => tracing::debug!("the other end did not close in time"),
        }
    }

    /// Pushes out what waits to be sent, if anything does.
    fn push(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WsError>> {
        if self.unsent == 0 && self.unsent_replies == 0 { Poll::Ready(Ok(())) } else { self.poll_flush(cx) }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Incoming>, WsError>> {
        let message = match self.ahead.take() {
            Some(message) => message,
            None => ready!(self.poll_stream(cx)),
        };
        if matches!(message, Ok(Some(_)))
            && let Poll::Ready(next) = self.poll_stream(cx)
        {
            self.ahead = Some(next);
        }
        Poll::Ready(message)
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Incoming>, WsError>> {
        loop {
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            if self.unsent_replies >= MAX_UNSENT_REPLIES {
                ready!(self.poll_flush(cx))?;
            }
            match ready!(Pin::new(&mut self.stream).poll_next(cx)) {
                Some(Ok(message)) if message.is_binary() => {
                    return Poll::Ready(Ok(Some(Incoming::Binary(message.into_payload().into()))));
                }
                Some(Ok(message)) if message.is_text() => return Poll::Ready(Ok(Some(Incoming::Text))),
                Some(Ok(message)) if message.is_ping() => self.unsent_replies += 1,
                Some(Ok(message)) => {
                    if let Some((code, reason)) = message.as_close() {
                        self.unsent_replies += 1;
                        self.close_reason = Some(CloseReason { code: code.into(), reason: reason.to_owned() });
                    }
                }
                Some(Err(error)) => return Poll::Ready(self.fail(error, cx)),
                None => self.ended = true,
            }
        }
    }

    fn fail(&mut self, error: Error, cx: &mut Context<'_>) -> Result<Option<Incoming>, WsError> {
        self.ended = true;
        let (error, code) = ws_error(error);
        if let WsError::Io(error) = &error
            && error.kind() == io::ErrorKind::UnexpectedEof
        {
            // TLS without close_notify: many servers do it, and messages carry their own length.
            return Ok(None);
        }
        if let Some(code) = code {
            // The codec has queued a close frame itself for most errors, but not for all; then this one is refused.
            let _ = Pin::new(&mut self.stream).start_send(close_message(code, &error.to_string()));
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
        Err(error)
    }
}

fn config() -> Config {
    // One frame per message; flushing is ours to decide.
    Config::default().frame_size(usize::MAX).flush_threshold(usize::MAX)
}

fn limits(max_message: usize) -> Limits {
    Limits::default().max_payload_len(Some(max_message))
}

fn close_message(code: u16, reason: &str) -> Message {
    let code = CloseCode::try_from(code).ok().filter(|code| !code.is_reserved()).unwrap_or(CloseCode::NORMAL_CLOSURE);
    Message::close(Some(code), &reason[..reason.floor_char_boundary(123)])
}

/// Our error for the codec's, and the close code that tells the other end.
fn ws_error(error: Error) -> (WsError, Option<u16>) {
    match error {
        Error::AlreadyClosed => (WsError::Closed, None),
        Error::PayloadTooLong { len, max_len } => (WsError::TooLarge { len, max: max_len }, Some(1009)),
        Error::Io(error) => (WsError::Io(error), None),
        error => (WsError::Protocol(error.to_string()), Some(1002)),
    }
}
