//! A WebSocket driven by one task on behalf of a core: what arrives is handed in, what the core queues goes out.

use bytes::Bytes;
use edgelink_net::ws::{Event, Incoming, WebSocket, WsError};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;
use tokio::sync::Notify;

/// Messages, and bytes, handled before others get a turn: what is for one receiver must fit its queue several times over until
/// that one's task has run.
const RECEIVE_BATCH: usize = 32;
const RECEIVE_BYTES: usize = 256 << 10;
/// What is still taken from the core for a connection that is to be closed, in bytes.
const LAST_WORDS: usize = 128 << 10;
/// How long a connection that is to be closed may take to take what was queued.
const CLOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// RFC 6455 §7.4.1.
const POLICY_VIOLATION: u16 = 1008;

/// The core's grip on a connection's task.
#[derive(Debug, Default)]
pub struct Handle {
    /// Something is queued, or the connection is to be closed.
    pub wake: Notify,
    /// Close: `true` after what is queued has been sent.
    pub closing: Cell<Option<bool>>,
}

impl Handle {
    /// Ends the connection, after what is queued has been sent if `flush`.
    pub fn close(&self, flush: bool) {
        self.closing.set(Some(flush));
        self.wake.notify_one();
    }
}

/// What a core does with one connection.
pub trait Core {
    /// A binary message arrived.
    fn message(&self, message: Bytes);
    /// A text message arrived.
    fn text(&self);
    /// All messages that were here have been handed in.
    fn pump(&self);
    /// The next messages to send, appended to `out`, about `bytes` in all; nothing when there are none.
    fn transmit(&self, bytes: usize, out: &mut Vec<Bytes>);
}

/// Drives the connection until either side closes it.
pub async fn drive(mut ws: WebSocket, handle: Rc<Handle>, core: &impl Core) {
    let mut out = Vec::new();
    let mut more = true;
    let result: Result<(), WsError> = async {
        loop {
            // What waits in the core's queue is still subject to its bounds, what is here is not.
            let budget = ws.budget(Instant::now());
            while more && ws.unsent() < budget {
                core.transmit(budget - ws.unsent(), &mut out);
                more = !out.is_empty();
                for message in out.drain(..) {
                    ws.feed(message)?;
                }
            }
            if let Some(flush) = handle.closing.get() {
                if flush {
                    core.transmit(LAST_WORDS, &mut out);
                    out.drain(..).try_for_each(|message| ws.feed(message))?;
                }
                return Ok(());
            }
            tokio::select! {
                biased;
                () = handle.wake.notified() => more = true,
                event = ws.next(more) => match event? {
                    Event::Message(first) => {
                        if receive(&mut ws, first, core)? {
                            tokio::task::yield_now().await;
                        }
                    }
                    Event::Writable => {}
                    Event::Closed => return Ok(()),
                },
            }
        }
    }
    .await;
    if let Err(error) = result {
        tracing::debug!(%error, "connection lost");
    }
    // A peer that does not read must not hold the task: what is not out by then is lost.
    if handle.closing.get().is_some()
        && tokio::time::timeout(CLOSE_TIMEOUT, ws.close(POLICY_VIOLATION, "")).await.is_err()
    {
        tracing::debug!("a peer did not take our last words");
    }
}

/// Hands in what has arrived; `true` when there may be more.
fn receive(ws: &mut WebSocket, first: Incoming, core: &impl Core) -> Result<bool, WsError> {
    let mut message = first;
    let mut outcome = Ok(false);
    let mut bytes = 0;
    for turn in 1.. {
        match message {
            Incoming::Binary(binary) => {
                bytes += binary.len();
                core.message(binary);
            }
            Incoming::Text => core.text(),
        }
        if turn == RECEIVE_BATCH || bytes >= RECEIVE_BYTES {
            outcome = Ok(true);
            break;
        }
        match ws.try_recv() {
            Poll::Ready(Ok(Some(next))) => message = next,
            // The end of the connection is seen again by whoever waits next.
            Poll::Ready(Ok(None)) | Poll::Pending => break,
            Poll::Ready(Err(error)) => {
                outcome = Err(error);
                break;
            }
        }
    }
    core.pump();
    outcome
}

/// Whole messages that wait for a slow reader, bounded in bytes.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: RefCell<VecDeque<Bytes>>,
    queued: Cell<usize>,
}

impl Outbox {
    /// Queues a message; `false` when the reader is too far behind.
    pub fn push(&self, message: Bytes, limit: usize) -> bool {
        let queued = self.queued.get() + message.len();
        // One message always fits, however large.
        if queued > limit && self.queued.get() > 0 {
            return false;
        }
        self.queued.set(queued);
        self.queue.borrow_mut().push_back(message);
        true
    }

    /// Takes messages of about `bytes` in all.
    pub fn take(&self, bytes: usize, out: &mut Vec<Bytes>) {
        let mut taken = 0;
        while taken < bytes
            && let Some(message) = self.queue.borrow_mut().pop_front()
        {
            taken += message.len();
            out.push(message);
        }
        self.queued.set(self.queued.get().saturating_sub(taken));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outbox_is_bounded_but_takes_one_message_of_any_size() {
        let outbox = Outbox::default();
        assert!(outbox.push(Bytes::from(vec![0; 100]), 10));
        assert!(!outbox.push(Bytes::from(vec![0; 1]), 10));
        let mut out = Vec::new();
        outbox.take(1, &mut out);
        assert_eq!(out.len(), 1);
        assert!(outbox.push(Bytes::from(vec![0; 5]), 10));
        assert!(outbox.push(Bytes::from(vec![0; 5]), 10));
        assert!(!outbox.push(Bytes::from(vec![0; 1]), 10));
    }
}
