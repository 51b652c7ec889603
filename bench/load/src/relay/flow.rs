//! Frames from one node to another, each checked byte by byte, with a window so that nothing waits longer than it must.

use super::client::Client;
use anyhow::{Result, ensure};
use bytes::Bytes;
use edgelink_model::NodeId;
use edgelink_wire::data::{self, DataHeader};
use edgelink_wire::{Flags, FrameType};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

/// A pair of nodes and what goes from one to the other.
pub(crate) struct Flow {
    from: Rc<Client>,
    frame: Bytes,
    /// Whole frames, as a node sends them that has much to send.
    message: Bytes,
    per_message: u64,
    /// Frames under way at most.
    window: u64,
    running: Cell<bool>,
    pub(crate) sent: Cell<u64>,
    pub(crate) received: Cell<u64>,
    pub(crate) lost: Cell<u64>,
    progress: Cell<Instant>,
}

impl Flow {
    /// Frames with `payload` bytes of plaintext, `per_message` of them in each message, `messages` of which are under way.
    pub(crate) fn new(from: &Rc<Client>, to: &Rc<Client>, payload: usize, per_message: u64, messages: u64) -> Rc<Self> {
        let frame = frame(from.node, to.node, payload);
        let message = frame.repeat(usize::try_from(per_message).unwrap_or(1)).into();
        let this = Rc::new(Self {
            from: Rc::clone(from),
            frame: frame.into(),
            message,
            per_message,
            window: per_message * messages,
            running: Cell::new(false),
            sent: Cell::new(0),
            received: Cell::new(0),
            lost: Cell::new(0),
            progress: Cell::new(Instant::now()),
        });
        *to.flow.borrow_mut() = Some(Rc::clone(&this));
        this
    }

    pub(crate) fn run(&self, running: bool) {
        self.running.set(running);
        self.fill();
    }

    /// Sends as much as the window allows.
    pub(crate) fn fill(&self) {
        while self.running.get() && self.under_way() + self.per_message <= self.window {
            self.sent.set(self.sent.get() + self.per_message);
            self.from.send(self.message.clone());
        }
    }

    /// Sends one message, whatever the window.
    pub(crate) fn push(&self) {
        self.sent.set(self.sent.get() + self.per_message);
        self.from.send(self.message.clone());
    }

    pub(crate) fn under_way(&self) -> u64 {
        self.sent.get().saturating_sub(self.received.get() + self.lost.get())
    }

    /// A frame came to the receiver.
    pub(crate) fn arrived(&self, raw: &[u8]) -> Result<()> {
        ensure!(raw == self.frame, "a frame from node {} was changed on its way", self.from.node);
        self.received.set(self.received.get() + 1);
        self.progress.set(Instant::now());
        Ok(())
    }

    /// Whatever has been under way since before `before` without any other coming is lost.
    pub(crate) fn give_up(&self, before: Instant) {
        if self.under_way() > 0 && self.progress.get() < before {
            self.lost.set(self.lost.get() + self.under_way());
            self.progress.set(Instant::now());
            self.fill();
        }
    }
}

/// A DATA frame with `payload` bytes of plaintext, whose ciphertext only its receiver could judge.
pub(crate) fn frame(src: u32, dst: u32, payload: usize) -> Vec<u8> {
    let mut raw = vec![0x5a; data::OVERHEAD + payload];
    let header = DataHeader { src: NodeId(src), dst: NodeId(dst), nonce: [7; 12] };
    // Fails only for payloads beyond the protocol's limit, which the command line refuses.
    let _ = data::write_header(&mut raw, FrameType::Data, Flags::default(), &header);
    raw
}
