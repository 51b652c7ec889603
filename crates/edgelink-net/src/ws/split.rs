//! One WebSocket for two tasks.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use super::{CloseReason, Incoming, WebSocket, WsError};

/// The receiving half of [`WebSocket::split`].
///
/// The two halves share the WebSocket behind a mutex that is held for one poll, never across an `await`. Either half's
/// progress wakes the other, so neither loses a wake-up; receiving also pushes out what the sender fed. A single task that
/// uses [`WebSocket::next`] does with fewer wake-ups what the two halves do.
#[derive(Debug)]
pub struct Receiver(Arc<Shared>);

/// The sending half of [`WebSocket::split`]. Dropping it leaves the connection open.
#[derive(Debug)]
pub struct Sender(Arc<Shared>);

impl Receiver {
    /// As [`WebSocket::recv`].
    ///
    /// # Errors
    /// As [`WebSocket::recv`].
    pub async fn recv(&mut self) -> Result<Option<Incoming>, WsError> {
        poll_fn(|cx| {
            self.0.wakers.reader.register(cx.waker());
            let mut socket = self.0.socket();
            let unsent = socket.unsent();
            let received = socket.poll_recv(&mut Context::from_waker(&self.0.waker));
            if socket.unsent() < unsent {
                self.0.wakers.writer.wake();
            }
            received
        })
        .await
    }

    /// As [`WebSocket::try_recv`].
    ///
    /// # Errors
    /// As [`WebSocket::recv`].
    pub fn try_recv(&mut self) -> Poll<Result<Option<Incoming>, WsError>> {
        self.0.socket().poll_message(&mut Context::from_waker(&self.0.waker))
    }

    /// As [`WebSocket::close_reason`].
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.0.socket().close_reason().cloned()
    }

    /// The whole again; `None` when the other half is of another WebSocket.
    #[must_use]
    pub fn unsplit(self, sender: Sender) -> Option<WebSocket> {
        if !Arc::ptr_eq(&self.0, &sender.0) {
            return None;
        }
        drop(sender);
        let shared = Arc::into_inner(self.0)?;
        Some(shared.socket.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sender {
    /// As [`WebSocket::feed`]. Wakes nobody: flush, or let the receiving task come round.
    ///
    /// # Errors
    /// [`WsError::Closed`].
    pub fn feed(&mut self, message: Bytes) -> Result<(), WsError> {
        self.0.socket().feed(message)
    }

    /// As [`WebSocket::unsent`].
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.0.socket().unsent()
    }

    /// As [`WebSocket::ready`].
    ///
    /// # Errors
    /// As [`WebSocket::recv`].
    pub async fn ready(&mut self) -> Result<(), WsError> {
        poll_fn(|cx| self.poll(cx, WebSocket::poll_ready)).await
    }

    /// As [`WebSocket::flush`].
    ///
    /// # Errors
    /// As [`WebSocket::recv`].
    pub async fn flush(&mut self) -> Result<(), WsError> {
        poll_fn(|cx| self.poll(cx, WebSocket::poll_flush)).await
    }

    /// As [`WebSocket::send`], but never in the way of the receiving half.
    ///
    /// # Errors
    /// As [`WebSocket::recv`].
    pub async fn send(&mut self, message: Bytes) -> Result<(), WsError> {
        self.feed(message)?;
        self.flush().await
    }

    fn poll<T>(&self, cx: &mut Context<'_>, poll: impl FnOnce(&mut WebSocket, &mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.0.wakers.writer.register(cx.waker());
        poll(&mut self.0.socket(), &mut Context::from_waker(&self.0.waker))
    }
}

pub(super) fn split(socket: WebSocket) -> (Receiver, Sender) {
    let wakers = Arc::new(Wakers::default());
    let waker = Waker::from(Arc::clone(&wakers));
    let shared = Arc::new(Shared { socket: Mutex::new(socket), wakers, waker });
    (Receiver(Arc::clone(&shared)), Sender(shared))
}

#[derive(Debug)]
struct Shared {
    socket: Mutex<WebSocket>,
    wakers: Arc<Wakers>,
    /// Wakes both halves. The socket keeps one waker per direction, and both halves write.
    waker: Waker,
}

impl Shared {
    fn socket(&self) -> MutexGuard<'_, WebSocket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Wakers {
    reader: AtomicWaker,
    writer: AtomicWaker,
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}
