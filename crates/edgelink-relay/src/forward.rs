//! Frames of authenticated nodes: forwarded in runs, untouched, or answered (DESIGN §1, §6).

use crate::connection::{Session, State};
use crate::event::ConnId;
use crate::queue::{self, Lane, Run};
use crate::relay::Relay;
use crate::stats::DropReason;
use bytes::Bytes;
use edgelink_model::{ErrorCode, NetworkId, NodeId, Now, ServerId};
use edgelink_wire::control::proto;
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::{Flags, Frame, FrameType, WireError, data, frames, ping};
use prost::Message;
use std::ops::Range;

/// A slice keeps the message that it is part of alive. A run of less than this fraction of its message is copied
/// instead, so that a slow receiver of a little cannot hold on to much.
const SHARE: usize = 4;

/// Consecutive frames of one message that go the same way.
struct Pending {
    way: Way,
    bytes: Range<usize>,
    frames: u64,
    /// The first one's type, for the ERROR.
    ty: u8,
}

/// What decides where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    src: NodeId,
    dst: NodeId,
    lane: Lane,
    local_only: bool,
    /// Which of their flows, as the sender says.
    label: Flags,
}

/// Who sent a message.
#[derive(Clone, Copy)]
enum Origin {
    /// A node, on `/ws/data`.
    Node { conn: ConnId, node: NodeId, network: NetworkId },
    /// Another relay, on `/ws/mesh`.
    Mesh { conn: ConnId, relay: ServerId },
}

impl Origin {
    fn conn(self) -> ConnId {
        match self {
            Self::Node { conn, .. } | Self::Mesh { conn, .. } => conn,
        }
    }
}

/// Where a frame goes.
enum Hop {
    /// To a node that is connected here.
    Node(ConnId),
    /// To the other end of a mesh link.
    Mesh(ConnId),
}

/// What is to be done with a frame.
enum Verdict {
    /// Forward it.
    Forward(Way),
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
        let origin = match &connection.state {
            State::Open(session) => Origin::Node { conn, node: session.node, network: session.network },
            State::Mesh(link) => Origin::Mesh { conn, relay: link.peer },
            _ => return,
        };
        self.heard_from_link(conn);
        let mut pending: Option<Pending> = None;
        let mut at = 0;
        for frame in frames(message) {
            let (ty, verdict) = match frame {
                Ok(frame) => {
                    let start = at;
                    at += frame.raw.len();
                    match self.judge(origin, &frame, now) {
                        Ok(Verdict::Forward(way)) => {
                            match &mut pending {
                                // The common case: one more that goes the same way.
                                Some(run) if run.way == way && run.bytes.end == start => {
                                    run.bytes.end = at;
                                    run.frames += 1;
                                }
                                _ => {
                                    let next = Pending { way, bytes: start..at, frames: 1, ty: frame.ty };
                                    self.forward(origin, message, pending.replace(next), now);
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
            self.forward(origin, message, pending.take(), now);
            return self.close_for(conn, &verdict, ty, now);
        }
        self.forward(origin, message, pending, now);
    }

    /// The one place that decides where a frame goes.
    ///
    /// **Mesh frames are never forwarded to the mesh**: the arm for them knows local nodes only. So there are no loops,
    /// whatever tables say. Their source must be a node that the controller locates at the relay that sent them, and its
    /// network must be the destination's: another relay can speak for its own nodes only.
    fn route(&self, origin: Origin, way: Way, now: Now) -> Result<Hop, DropReason> {
        match origin {
            Origin::Mesh { relay, .. } => {
                let network = self.locations.network_at(way.src, relay, now.mono).ok_or(DropReason::ForgedSource)?;
                self.node_here(network, way.dst).map(Hop::Node)
            }
            Origin::Node { network, .. } => match self.node_here(network, way.dst) {
                // The controller may know a faster way than our own last leg (DESIGN §6).
                Ok(conn) if way.local_only => Ok(Hop::Node(conn)),
                Ok(conn) => Ok(self.advised(network, way.dst, now).map_or(Hop::Node(conn), Hop::Mesh)),
                Err(DropReason::NotConnected) if !way.local_only => {
                    let link = self.advised(network, way.dst, now).or_else(|| self.nearest(network, way.dst, now));
                    link.map(Hop::Mesh).ok_or(DropReason::NotConnected)
                }
                Err(reason) => Err(reason),
            },
        }
    }

    /// The connection of a node that is here, in this network.
    fn node_here(&self, network: NetworkId, dst: NodeId) -> Result<ConnId, DropReason> {
        let conn = *self.nodes.get(&dst).ok_or(DropReason::NotConnected)?;
        match self.get(conn).and_then(|connection| connection.session()) {
            Some(session) if session.network == network => Ok(conn),
            Some(_) => Err(DropReason::OtherNetwork),
            None => Err(DropReason::NotConnected),
        }
    }

    /// The link to the relay of the next-hop table, if the node is there.
    fn advised(&self, network: NetworkId, dst: NodeId, now: Now) -> Option<ConnId> {
        let relay = self.locations.next_hop(dst)?;
        let link = *self.mesh.links.get(&relay)?;
        if self.is_leaving(link) {
            return None;
        }
        self.locations.relays_of(dst, network, now.mono).any(|at| at == relay).then_some(link)
    }

    /// The link to the nearest relay where the node is; of those equally near, to the one with the lowest id.
    fn nearest(&self, network: NetworkId, dst: NodeId, now: Now) -> Option<ConnId> {
        let relays = self.locations.relays_of(dst, network, now.mono);
        relays
            .filter_map(|relay| {
                let conn = *self.mesh.links.get(&relay)?;
                // A link that has not been measured yet is the last choice.
                let rtt = self.get(conn)?.link()?.rtt.get().unwrap_or(u64::MAX);
                Some((self.is_leaving(conn), rtt, relay, conn))
            })
            .min()
            .map(|(_, _, _, conn)| conn)
    }

    /// Looks at one frame, and does what has to be done if it is not to be forwarded.
    fn judge(&mut self, origin: Origin, frame: &Frame<'_>, now: Now) -> Result<Verdict, WireError> {
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
            ty => return self.consume(origin, frame, ty, now).map(|()| Verdict::Done),
        };
        if let Origin::Node { conn, node, .. } = origin {
            if src != node {
                self.stats.drops.add(DropReason::ForgedSource, 1);
                self.complain(conn, frame.ty, src, "the source is not the node that is connected", now);
                return Ok(Verdict::Done);
            }
            if frame.ty == FrameType::KeyAnnounce.as_u8() && !self.may_announce(conn, frame.ty, dst, now) {
                return Ok(Verdict::Done);
            }
        }
        let local_only = frame.flags.contains(Flags::LOCAL_ONLY);
        Ok(Verdict::Forward(Way { src, dst, lane, local_only, label: frame.flags.label() }))
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
    fn consume(&mut self, origin: Origin, frame: &Frame<'_>, ty: Option<FrameType>, now: Now) -> Result<(), WireError> {
        let conn = origin.conn();
        match (ty, origin) {
            (Some(FrameType::Ping), _) => {
                let pong = ping::parse(frame.payload)?.encode(FrameType::Pong);
                self.send(conn, Bytes::copy_from_slice(&pong), now);
            }
            (Some(FrameType::Pong), _) => {
                let pong = ping::parse(frame.payload)?;
                self.link_pong(conn, pong, now);
            }
            (Some(FrameType::AuthRequest), Origin::Node { .. }) => self.handle_refresh(conn, frame, now)?,
            (Some(FrameType::AuthRequest), Origin::Mesh { .. }) => self.refresh_mesh(conn, frame, now)?,
            (Some(FrameType::Error), Origin::Mesh { relay, .. }) => self.handle_mesh_error(conn, relay, frame, now),
            // Never answered: two sides that do not understand each other would go on for ever.
            (Some(FrameType::Error | FrameType::Ack), _) => {}
            (Some(_), _) => {
                self.stats.drops.add(DropReason::Unexpected, 1);
                self.complain(conn, frame.ty, NodeId(0), "this frame type does not belong on this channel", now);
            }
            (None, _) => {
                self.stats.drops.add(DropReason::UnknownType, 1);
                self.complain(conn, frame.ty, NodeId(0), "unknown frame type", now);
            }
        }
        Ok(())
    }

    /// Queues a run for its receiver.
    fn forward(&mut self, origin: Origin, message: &Bytes, pending: Option<Pending>, now: Now) {
        let Some(Pending { way, bytes, frames, ty }) = pending else { return };
        let reason = match self.route(origin, way, now) {
            Ok(hop) => {
                let len = bytes.len() as u64;
                let (run, buffer) = cut(message, bytes);
                let (Hop::Node(to) | Hop::Mesh(to)) = hop;
                let flow = queue::bucket(way.src, way.dst, way.label);
                let run = Run { frames: run, buffer, queued: now.mono, own: false, flow };
                if self.enqueue(to, way.lane, run) {
                    self.stats.forwarded_frames += frames;
                    self.stats.forwarded_data_frames += if way.lane == Lane::Data { frames } else { 0 };
                    self.stats.forwarded_bytes += len;
                    if matches!(hop, Hop::Mesh(_)) {
                        self.stats.mesh_out_frames += frames;
                        self.link_carries(to);
                    } else if matches!(origin, Origin::Mesh { .. }) {
                        self.stats.mesh_in_frames += frames;
                    }
                }
                return;
            }
            Err(reason) => reason,
        };
        self.stats.drops.add(reason, frames);
        match origin {
            Origin::Node { conn, .. } => self.tell_offline(conn, ty, way.dst, None, now),
            // Whoever speaks for nodes that are not its own learns nothing.
            Origin::Mesh { .. } if reason == DropReason::ForgedSource => {}
            Origin::Mesh { conn, .. } => self.tell_offline(conn, ty, way.dst, Some(way.src), now),
        }
    }

    /// ERROR 3002 from the other end of a link, for a node that sent a frame over it: passed on, and for a moment the
    /// destination is not sought there.
    fn handle_mesh_error(&mut self, conn: ConnId, relay: ServerId, frame: &Frame<'_>, now: Now) {
        let Ok(error) = proto::Error::decode(frame.payload) else { return };
        let (about, sender) = (NodeId(error.about_node), NodeId(error.for_node));
        if error.error_code() == Some(ErrorCode::Unavailable) && error.about_node == 0 {
            return self.link_is_leaving(conn);
        }
        if error.error_code() != Some(ErrorCode::NodeOffline) || error.for_node == 0 {
            tracing::debug!(%relay, code = error.code, "another relay reports an error");
            return;
        }
        self.locations.absent(about, relay, now.mono + self.config.limits.mesh_absent);
        let ty = u8::try_from(error.answers_type).unwrap_or_default();
        // With another way left there is nothing to tell: the next frame takes it.
        let Some(&conn) = self.nodes.get(&sender) else { return };
        let Some(&Session { node, network, .. }) = self.get(conn).and_then(|connection| connection.session()) else {
            return;
        };
        let way = Way { src: node, dst: about, lane: Lane::Data, local_only: false, label: Flags::NONE };
        if self.route(Origin::Node { conn, node, network }, way, now).is_err() {
            self.tell_offline(conn, ty, about, None, now);
        }
    }

    /// ERROR 3002, whether the destination is offline, unknown or in another network: a relay knows who is connected,
    /// not who exists, so 3001 is never its to say, and the sender learns nothing about other networks.
    ///
    /// `sender` is for whom it is, when it has to cross a mesh link first.
    fn tell_offline(&mut self, conn: ConnId, ty: u8, dst: NodeId, sender: Option<NodeId>, now: Now) {
        let (rate, capacity) = (self.config.limits.offline_errors, self.config.limits.offline_destinations);
        let Some(connection) = self.get_mut(conn) else { return };
        if connection.offline_errors.allow(dst, rate, capacity, now.mono) {
            let code = ErrorCode::NodeOffline;
            let for_node = sender.map_or(0, |node| node.0);
            let error = proto::Error { about_node: dst.0, for_node, ..proto::Error::new(code, ty, code.describe()) };
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
