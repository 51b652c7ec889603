//! One synthetic node at the relay: authenticates as real ones do, keeps its connection, takes what is for it.

use super::flow::Flow;
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use edgelink_auth::{MachineKey, challenge};
use edgelink_model::ServerId;
use edgelink_net::ws::{Dial, Event, Incoming, WebSocket, dial};
use edgelink_wire::control::{self, ControlMessage, Reassembler, proto};
use edgelink_wire::ping::Ping;
use edgelink_wire::{Flags, FrameType, frames};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;

/// As real nodes do.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A client feeds its WebSocket while less is unsent.
const UNSENT: usize = 128 << 10;

/// A node that the controller has let in.
pub(crate) struct Member {
    pub(crate) machine: MachineKey,
    pub(crate) node: u32,
    pub(crate) relay_token: String,
}

/// Dials the relay and proves to be `member`.
pub(crate) async fn connect(to: &Dial, server: u32, member: &Member) -> Result<WebSocket> {
    let mut ws = dial(to).await?;
    let public = member.machine.public();
    let offer = proto::AuthRequest {
        protocol_version: 1,
        token: member.relay_token.clone(),
        machine_pub: public.0.to_vec(),
        ..Default::default()
    };
    say(&mut ws, offer).await?;
    let response = hear(&mut ws).await?;
    ensure!(response.server_id == server, "another relay answers");
    let nonce: [u8; 32] = response.challenge.as_slice().try_into().context("the challenge is malformed")?;
    let signed = challenge::relay_message(ServerId(server), &member.relay_token, &nonce);
    say(&mut ws, proto::AuthRequest { signature: member.machine.sign(&signed).to_vec(), ..Default::default() }).await?;
    hear(&mut ws).await?;
    Ok(ws)
}

async fn say(ws: &mut WebSocket, message: impl Into<ControlMessage>) -> Result<()> {
    Ok(ws.send(control::encode(&message.into(), Flags::default())?.into()).await?)
}

async fn hear(ws: &mut WebSocket) -> Result<proto::AuthResponse> {
    let Some(Incoming::Binary(message)) = ws.recv().await? else { bail!("the relay hung up") };
    let mut reassembler = Reassembler::new();
    for frame in frames(&message) {
        if let Some(received) = reassembler.push(&frame?)? {
            match received.message {
                ControlMessage::AuthResponse(response) => return Ok(response),
                other => bail!("the relay refuses: {other:?}"),
            }
        }
    }
    bail!("the relay says nothing")
}

/// What a node's task shares with whoever drives the load.
pub(crate) struct Client {
    pub(crate) node: u32,
    pub(crate) outbox: RefCell<VecDeque<Bytes>>,
    pub(crate) wake: Notify,
    /// It does not read.
    pub(crate) stalled: Cell<bool>,
    /// What comes in belongs to this.
    pub(crate) flow: RefCell<Option<Rc<Flow>>>,
    /// PONGs that came.
    pub(crate) pongs: Cell<u64>,
}

impl Client {
    pub(crate) fn new(node: u32) -> Rc<Self> {
        Rc::new(Self {
            node,
            outbox: RefCell::default(),
            wake: Notify::new(),
            stalled: Cell::new(false),
            flow: RefCell::new(None),
            pongs: Cell::new(0),
        })
    }

    pub(crate) fn send(&self, message: Bytes) {
        self.outbox.borrow_mut().push_back(message);
        self.wake.notify_one();
    }

    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.set(stalled);
        self.wake.notify_one();
    }

    /// Serves the connection until it ends, which is an error, or `leave`.
    pub(crate) async fn live(&self, mut ws: WebSocket, leave: &Notify) -> Result<()> {
        let left = leave.notified();
        tokio::pin!(left);
        let mut ping = tokio::time::interval(PING_INTERVAL);
        let mut sequence = 0;
        loop {
            while ws.unsent() < UNSENT
                && let Some(message) = self.outbox.borrow_mut().pop_front()
            {
                ws.feed(message)?;
            }
            let more = !self.outbox.borrow().is_empty();
            let reading = !self.stalled.get();
            tokio::select! {
                () = &mut left => {
                    ws.close(1000, "").await;
                    return Ok(());
                }
                () = self.wake.notified() => {}
                event = ws.next(more), if reading => match event.with_context(|| format!("node {}", self.node))? {
                    Event::Message(Incoming::Binary(message)) => self.take(&message)?,
                    Event::Message(Incoming::Text) => bail!("a text message"),
                    Event::Writable => {}
                    Event::Closed => bail!("the relay closed the connection of node {}", self.node),
                },
                _ = ping.tick(), if reading => {
                    sequence += 1;
                    ws.feed(Bytes::copy_from_slice(&Ping { sent_us: 1, seq: sequence }.encode(FrameType::Ping)))?;
                }
            }
        }
    }

    fn take(&self, message: &[u8]) -> Result<()> {
        for frame in frames(message) {
            let frame = frame?;
            match frame.frame_type() {
                Some(FrameType::Pong) => self.pongs.set(self.pongs.get() + 1),
                Some(FrameType::Data) => match &*self.flow.borrow() {
                    Some(flow) => flow.arrived(frame.raw)?,
                    None => bail!("node {} got a frame that nobody sent it", self.node),
                },
                ty => bail!("node {} got {ty:?}", self.node),
            }
        }
        if let Some(flow) = &*self.flow.borrow() {
            flow.fill();
        }
        Ok(())
    }
}
