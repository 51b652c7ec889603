//! Frames of authenticated nodes: forwarded in runs, untouched, or answered (DESIGN §1, §6).

use crate::connection::Session;
use crate::event::ConnId;
use crate::queue::{Lane, Run};
use crate::relay::Relay;
use crate::stats::DropReason;
use bytes::Bytes;
use edgelink_model::{ErrorCode, NetworkId, NodeId, Now};
use edgelink_wire::control::proto;
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::{Frame, FrameType, WireError, data, frames, ping};
use std::ops::Range;

/// A slice keeps the message that it is part of alive. A run of less than this fraction of its message is copied
/// instead, so that a slow receiver of a little cannot hold on to much.
const SHARE: usize = 4;

/// Consecutive frames of one message that go the same way.
struct Pending {
    dst: NodeId,
    lane: Lane,
    bytes: Range<usize>,
    frames: u64,
    /// The first one's type, for the ERROR.
    ty: u8,
}

/// Who sent a message.
#[derive(Clone, Copy)]
struct Source {
    conn: ConnId,
    node: NodeId,
    network: NetworkId,
}

/// What is to be done with a frame.
enum Verdict {
    /// Forward it to this node.
    Forward(NodeId, Lane),
    /// It was answered, consumed or dropped.
    Done,
}

impl Relay {
    /// A message, or the rest of one, on an authenticated connection.
    ///
    /// Frames before a malformed one are forwarded: they were whole, and their order is kept.
    pub(crate) fn handle_frames(&mut self, conn: ConnId, message: &Bytes, now: Now) {
        let Some(connection) = self.get_mut(conn) else { return };
        connection.last_frame = now.mono;
        let Some(&Session { node, network, .. }) = connection.session() else { return };
        let source = Source { conn, node, network };
        let mut pending: Option<Pending> = None;
        let mut at = 0;
        for frame in frames(message) {
            let (ty, verdict) = match frame {
                Ok(frame) => {
                    let start = at;
                    at += frame.raw.len();
                    match self.judge(source, &frame, now) {
                        Ok(Verdict::Forward(dst, lane)) => {
                            match &mut pending {
                                // The common case: one more for the same receiver.
                                Some(run) if run.dst == dst && run.lane == lane && run.bytes.end == start => {
                                    run.bytes.end = at;
                                    run.frames += 1;
                                }
                                _ => {
                                    let next = Pending { dst, lane, bytes: start..at, frames: 1, ty: frame.ty };
                                    self.forward(source, message, pending.replace(next), now);
                                }
                            }
                            continue;
                        }
                        Ok(Verdict::Done) => continue,
                        Err(error) => (frame.ty, error),
                    }
                }
                Err(error) => (0, error),
            };
            self.forward(source, message, pending.take(), now);
            return self.close_for(conn, &verdict, ty, now);
        }
        self.forward(source, message, pending, now);
    }

    /// Looks at one frame, and does what has to be done if it is not to be forwarded.
    fn judge(&mut self, source: Source, frame: &Frame<'_>, now: Now) -> Result<Verdict, WireError> {
        let (src, dst, lane) = match frame.frame_type() {
            Some(FrameType::Data) => {
                let clear = data::parse(frame.raw)?;
                (clear.src, clear.dst, Lane::Data)
            }
            Some(FrameType::P2pPing | FrameType::P2pPong) => {
                let clear = data::parse(frame.raw)?;
                (clear.src, clear.dst, Lane::Control)
            }
            Some(FrameType::KeyAnnounce) => {
                let announce = KeyAnnounce::parse(frame.payload)?;
                (announce.src, announce.dst, Lane::Control)
            }
            ty => return self.consume(source, frame, ty, now).map(|()| Verdict::Done),
        };
        if src != source.node {
            self.stats.drops.add(DropReason::ForgedSource, 1);
            self.complain(source.conn, frame.ty, src, "the source is not the node that is connected", now);
            return Ok(Verdict::Done);
        }
        if frame.ty == FrameType::KeyAnnounce.as_u8() && !self.may_announce(source.conn, frame.ty, dst, now) {
            return Ok(Verdict::Done);
        }
        Ok(Verdict::Forward(dst, lane))
    }

    fn may_announce(&mut self, conn: ConnId, ty: u8, dst: NodeId, now: Now) -> bool {
        if dst == NodeId::CONTROLLER {
            self.stats.drops.add(DropReason::Unexpected, 1);
            self.complain(conn, ty, dst, "announces to the controller go over its own channel", now);
            return false;
        }
        let (rate, capacity) = (self.config.limits.announces, self.config.limits.announce_destinations);
        let Some(connection) = self.get_mut(conn) else { return false };
        let allowed = connection.announces.allow(dst, rate, capacity, now.mono);
        if !allowed {
            self.stats.drops.add(DropReason::RateLimited, 1);
        }
        allowed
    }

    /// A frame that is for the relay itself, or for nobody here.
    fn consume(&mut self, source: Source, frame: &Frame<'_>, ty: Option<FrameType>, now: Now) -> Result<(), WireError> {
        match ty {
            Some(FrameType::Ping) => {
                let pong = ping::parse(frame.payload)?.encode(FrameType::Pong);
                self.send(source.conn, Bytes::copy_from_slice(&pong), now);
            }
            Some(FrameType::Pong) => {
                ping::parse(frame.payload)?;
            }
            Some(FrameType::AuthRequest) => self.handle_refresh(source.conn, frame, now)?,
            // Never answered: two sides that do not understand each other would go on for ever.
            Some(FrameType::Error | FrameType::Ack) => {}
            Some(_) => {
                self.stats.drops.add(DropReason::Unexpected, 1);
                self.complain(source.conn, frame.ty, NodeId(0), "this frame type does not belong on /ws/data", now);
            }
            None => {
                self.stats.drops.add(DropReason::UnknownType, 1);
                self.complain(source.conn, frame.ty, NodeId(0), "unknown frame type", now);
            }
        }
        Ok(())
    }

    /// Queues a run for its receiver.
    fn forward(&mut self, source: Source, message: &Bytes, pending: Option<Pending>, now: Now) {
        let Some(Pending { dst, lane, bytes, frames, ty }) = pending else { return };
        match self.route(source.network, dst) {
            Ok(to) => {
                let len = bytes.len() as u64;
                let (run, buffer) = cut(message, bytes);
                if self.enqueue(to, lane, Run { frames: run, buffer, queued: now.mono, own: false }) {
                    self.stats.forwarded_frames += frames;
                    self.stats.forwarded_bytes += len;
                }
            }
            Err(reason) => {
                self.stats.drops.add(reason, frames);
                self.tell_offline(source.conn, ty, dst, now);
            }
        }
    }

    /// Where a frame for `dst` goes. There is no mesh yet, so every frame is delivered here or nowhere. With one, a node
    /// that is not here is looked up in the next-hop table, unless the frame says *local only* or came over the mesh
    /// itself.
    fn route(&self, network: NetworkId, dst: NodeId) -> Result<ConnId, DropReason> {
        let conn = *self.nodes.get(&dst).ok_or(DropReason::NotConnected)?;
        match self.get(conn).and_then(|connection| connection.session()) {
            Some(session) if session.network == network => Ok(conn),
            Some(_) => Err(DropReason::OtherNetwork),
            None => Err(DropReason::NotConnected),
        }
    }

    /// ERROR 3002, whether the destination is offline, unknown or in another network: a relay knows who is connected,
    /// not who exists, so 3001 is never its to say, and the sender learns nothing about other networks.
    fn tell_offline(&mut self, conn: ConnId, ty: u8, dst: NodeId, now: Now) {
        let (rate, capacity) = (self.config.limits.offline_errors, self.config.limits.offline_destinations);
        let Some(connection) = self.get_mut(conn) else { return };
        if connection.offline_errors.allow(dst, rate, capacity, now.mono) {
            let code = ErrorCode::NodeOffline;
            let error = proto::Error { about_node: dst.0, ..proto::Error::new(code, ty, code.describe()) };
            self.send_error(conn, &error, now);
        }
    }

    /// ERROR 2002 on a connection that stays.
    fn complain(&mut self, conn: ConnId, ty: u8, about: NodeId, sentence: &str, now: Now) {
        let rate = self.config.limits.complaints;
        let Some(connection) = self.get_mut(conn) else { return };
        if connection.complaints.allow(rate, now.mono) {
            let error =
                proto::Error { about_node: about.0, ..proto::Error::new(ErrorCode::InvalidMessage, ty, sentence) };
            self.send_error(conn, &error, now);
        }
    }
}

/// The run, and how much memory it keeps alive.
fn cut(message: &Bytes, bytes: Range<usize>) -> (Bytes, usize) {
    let len = bytes.len();
    let run = message.slice(bytes);
    if len * SHARE < message.len() { (Bytes::copy_from_slice(&run), len) } else { (run, message.len()) }
}
