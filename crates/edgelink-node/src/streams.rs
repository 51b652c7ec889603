//! LAN TCP, one connection (DESIGN §5): who is at its other end, its frames, and its end.
//!
//! Whoever has dialled speaks first: KEY_ANNOUNCE, then a sealed P2P_PING. Whoever listens says nothing before that has been
//! authenticated; then both prove the way as any other, by a PING of their own and its PONG. Only then it is a path. Whom to
//! dial, and when, is in `neighbours`.

use crate::link::{LinkId, Target};
use crate::timers::Timer;
use crate::{Drop, Node};
use edgelink_model::{NodeId, Now};
use edgelink_path::{Class, Way};
use edgelink_wire::key_announce::KeyAnnounce;
use edgelink_wire::probe::{self, Probe};
use edgelink_wire::{Flags, FrameMut, FrameType, HEADER_LEN, MAX_PAYLOAD, WireError, frames_mut};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A neighbour takes a connection within this time or not at all.
const CONNECT: Duration = Duration::from_secs(3);
/// Time to authenticate, and then to prove that both directions work (DESIGN §5).
const AUTHENTICATE: Duration = Duration::from_secs(2);
/// The most connections that have been accepted and not proved, and the most of one address.
const MAX_STRANGERS: usize = 32;
const MAX_STRANGERS_PER_ADDRESS: usize = 4;
/// The largest frame payload before authentication: what is needed then takes a few hundred bytes.
const MAX_HELLO: usize = 1 << 10;
/// Read buffers before and after authentication.
const SMALL_BUFFER: usize = 4 << 10;
const LARGE_BUFFER: usize = 192 << 10;
/// A proved connection is looked at this often.
const CHECK: Duration = Duration::from_secs(30);
/// Neither side keeps the path any more when nothing has come for so long.
const SILENCE: Duration = Duration::from_secs(180);
/// A connection in whose place there is another one is read for so long: something may be under way.
const LINGER: Duration = Duration::from_secs(3);
/// A connection that has lasted so long was a good one.
const STABLE: Duration = Duration::from_secs(30);

/// All connections to neighbours.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    open: BTreeMap<LinkId, Stream>,
    /// Where we listen.
    pub(crate) listening: Vec<SocketAddr>,
}

#[derive(Debug)]
struct Stream {
    remote: SocketAddr,
    /// The other end has dialled.
    inbound: bool,
    /// Whom we have dialled, or who the other end claims to be. Nothing else is believed of it before a tag has verified.
    peer: Option<NodeId>,
    state: State,
    /// The PING that is to prove the way.
    proof: Option<(u64, Instant)>,
    /// When it was proved.
    since: Instant,
    /// When an authenticated frame came last.
    heard: Instant,
    /// It was of no use when it was looked at last.
    spare: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Dialling,
    /// Open, and nobody knows who is there.
    Stranger,
    /// A tag of the peer has verified; whether our frames arrive is not known.
    Heard,
    /// A path.
    Proved,
    /// Another connection has taken its place.
    Retired,
}

impl State {
    fn is_authenticated(self) -> bool {
        matches!(self, Self::Heard | Self::Proved | Self::Retired)
    }
}

impl Streams {
    /// Whether there is a connection to this peer, or one is being made by us.
    pub(crate) fn has(&self, peer: NodeId) -> bool {
        let counts = |s: &Stream| s.state != State::Retired && (s.state.is_authenticated() || !s.inbound);
        self.open.values().any(|stream| stream.peer == Some(peer) && counts(stream))
    }

    fn of(&self, peer: NodeId) -> Vec<LinkId> {
        self.open.iter().filter(|(_, stream)| stream.peer == Some(peer)).map(|(link, _)| *link).collect()
    }

    fn proved(&self, peer: NodeId) -> impl Iterator<Item = LinkId> {
        let proved = move |s: &Stream| s.peer == Some(peer) && s.state == State::Proved;
        self.open.iter().filter(move |(_, stream)| proved(stream)).map(|(link, _)| *link)
    }
}

/// The shell's side.
impl Node {
    /// A neighbour has connected to one of the addresses of [`crate::Event::Listen`]. `None`: close it at once; there are
    /// too many that have not authenticated, or it is none of this network's.
    pub fn stream_accepted(&mut self, remote: SocketAddr, now: Now) -> Option<LinkId> {
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let strangers =
            self.streams.open.values().filter(|s| s.inbound && !matches!(s.state, State::Proved | State::Retired));
        let (all, same) = strangers
            .fold((0, 0), |(all, same), stream| (all + 1, same + usize::from(stream.remote.ip() == remote.ip())));
        let expected = !self.streams.listening.is_empty() && self.is_neighbour(remote.ip());
        if !expected || all >= MAX_STRANGERS || same >= MAX_STRANGERS_PER_ADDRESS {
            self.drops.count(Drop::RefusedStream);
            return None;
        }
        let link = self.new_link(Target::Neighbour { address: remote });
        self.note_stream(link, remote, None, State::Stranger, now);
        self.timers.set(Timer::Stream(link), now.mono + AUTHENTICATE);
        Some(link)
    }

    /// How large a buffer for reading should be: small until the other end is known.
    pub fn stream_buffer(&self, link: LinkId) -> usize {
        match self.streams.open.get(&link) {
            Some(stream) if stream.state.is_authenticated() => LARGE_BUFFER,
            _ => SMALL_BUFFER,
        }
    }

    /// Bytes have come from a neighbour; as [`Node::handle_message`]. Returns how many of them were taken: the rest is the
    /// beginning of a frame, to be handed over again with what follows it.
    pub fn handle_stream(
        &mut self,
        link: LinkId,
        bytes: &mut [u8],
        now: Now,
        tun: &mut impl FnMut(&[u8], &[u8]),
    ) -> usize {
        let mut taken = 0;
        loop {
            let Some(stream) = self.streams.open.get(&link) else { return bytes.len() };
            let known = stream.state.is_authenticated();
            let limit = if known { MAX_PAYLOAD } else { MAX_HELLO };
            let rest = bytes.get_mut(taken..).unwrap_or_default();
            match frames_mut(rest).max_payload(limit).next() {
                Some(Ok(frame)) => {
                    taken += frame.raw.len();
                    self.handle_stream_frame(link, frame, now, tun);
                }
                None | Some(Err(WireError::Truncated | WireError::Empty)) => return taken,
                Some(Err(error)) => {
                    self.drops.count(Drop::Malformed);
                    let why = format!("it sent nonsense: {error}");
                    if known { self.close_stream(link, &why, now) } else { self.refuse_stream(link, &why, now) }
                }
            }
        }
    }
}

impl Node {
    pub(crate) fn dial_neighbour(&mut self, peer: NodeId, address: SocketAddr, now: Now) {
        let link = self.dial(Target::Neighbour { address });
        self.note_stream(link, address, Some(peer), State::Dialling, now);
        self.timers.set(Timer::Stream(link), now.mono + CONNECT);
    }

    fn note_stream(&mut self, link: LinkId, remote: SocketAddr, peer: Option<NodeId>, state: State, now: Now) {
        let inbound = peer.is_none();
        let (since, heard) = (now.mono, now.mono);
        let stream = Stream { remote, inbound, peer, state, proof: None, since, heard, spare: false };
        self.streams.open.insert(link, stream);
    }

    pub(crate) fn stream_connected(&mut self, link: LinkId, now: Now) {
        let Some(stream) = self.streams.open.get_mut(&link) else { return };
        let Some(peer) = stream.peer.filter(|_| stream.state == State::Dialling) else { return };
        stream.state = State::Stranger;
        self.timers.set(Timer::Stream(link), now.mono + AUTHENTICATE);
        self.prove_stream(link, peer, true, now);
    }

    /// The connection ended; its link is forgotten already.
    pub(crate) fn stream_closed(&mut self, link: LinkId, reason: &str, now: Now) {
        if let Some(stream) = self.streams.open.remove(&link) {
            self.stream_gone(link, &stream, reason, now);
        }
    }

    /// Sends the PING that is to prove the way, after our key if the peer may not have it.
    fn prove_stream(&mut self, link: LinkId, peer: NodeId, announce: bool, now: Now) {
        let sent_us = self.probe_time(now);
        let probe = Probe { path: 0, sent_us }.encode();
        let announce = if announce { self.own_announce(peer) } else { None };
        match self.seal(peer, FrameType::P2pPing, Flags::default(), &[&probe]) {
            Ok(ping) => {
                let hello = [announce.unwrap_or_default(), ping].concat();
                if let Some(stream) = self.streams.open.get_mut(&link) {
                    stream.proof = Some((sent_us, now.mono));
                }
                self.send(link, hello);
            }
            Err(_) => self.close_stream(link, "there is no key for it", now),
        }
    }

    fn handle_stream_frame(&mut self, link: LinkId, frame: FrameMut<'_>, now: Now, tun: &mut impl FnMut(&[u8], &[u8])) {
        let Some(stream) = self.streams.open.get_mut(&link) else { return };
        let (known, inbound, claimed) = (stream.state.is_authenticated(), stream.inbound, stream.peer);
        let way = Way::Tcp { stream: link.stream(), remote: stream.remote };
        let ty = frame.frame_type();
        let payload = frame.raw.get(HEADER_LEN..).unwrap_or_default();
        match ty {
            // Whoever listens hears one of these, from somebody that it may be.
            Some(FrameType::KeyAnnounce) if !known && inbound => {
                let me = self.identity.as_ref().map(|identity| identity.node);
                let said = KeyAnnounce::parse(payload).ok().filter(|said| claimed.is_none() && Some(said.dst) == me);
                match said.filter(|said| self.peers.get(said.src).is_some()) {
                    Some(said) => {
                        stream.peer = Some(said.src);
                        self.handle_key_announce(payload, now);
                    }
                    None => self.refuse_stream(link, "it introduces itself as nobody of this network", now),
                }
            }
            Some(FrameType::KeyAnnounce) => self.handle_key_announce(payload, now),
            Some(FrameType::Data | FrameType::P2pPing | FrameType::P2pPong) if known => {
                if let Err(reason) = self.receive_frame(frame.raw, ty, way, now, tun) {
                    self.drops.count(reason);
                }
            }
            Some(FrameType::P2pPing | FrameType::P2pPong) if claimed.is_some() => {
                if let Err(reason) = self.receive_frame(frame.raw, ty, way, now, tun) {
                    self.drops.count(reason);
                    self.refuse_stream(link, "its first sealed frame cannot be opened", now);
                }
            }
            _ if known => self.drops.count(Drop::Malformed),
            _ => self.refuse_stream(link, "it does not introduce itself", now),
        }
    }

    /// A tag has verified that came over a connection: whose it is, is known from now on. An error when it is another's.
    pub(crate) fn note_stream_frame(&mut self, from: NodeId, way: Way, now: Now) -> Result<(), Drop> {
        let Way::Tcp { stream, .. } = way else { return Ok(()) };
        let link = LinkId::of_stream(stream);
        let Some(stream) = self.streams.open.get_mut(&link) else { return Ok(()) };
        if stream.peer != Some(from) {
            return Err(Drop::RefusedStream);
        }
        stream.heard = now.mono;
        if stream.state == State::Stranger {
            stream.state = State::Heard;
            self.timers.set(Timer::Stream(link), now.mono + AUTHENTICATE);
            if stream.inbound {
                let announce = !self.sessions.as_ref().is_some_and(|s| s.peer_confirmed(from));
                self.prove_stream(link, from, announce, now);
            }
        }
        Ok(())
    }

    /// A PONG may be the one that proves a connection.
    pub(crate) fn stream_pong(&mut self, from: NodeId, probe: Probe, way: Way, now: Now) {
        let Way::Tcp { stream, .. } = way else { return };
        let link = LinkId::of_stream(stream);
        let Some(stream) = self.streams.open.get_mut(&link) else { return };
        let Some((_, sent)) = stream.proof.take_if(|(sent_us, _)| *sent_us == probe.sent_us) else { return };
        if stream.state == State::Heard {
            stream.state = State::Proved;
            stream.since = now.mono;
            self.timers.set(Timer::Stream(link), now.mono + CHECK);
            self.adopt_stream(link, from, way, now.mono.saturating_duration_since(sent), now);
        }
    }

    /// A connection is proved: of several to one peer, that one stays which the node with the lower id has dialled; of two
    /// by the same, the newer, since the peer would not have dialled if it still had the other.
    fn adopt_stream(&mut self, link: LinkId, peer: NodeId, way: Way, rtt: Duration, now: Now) {
        let Some(me) = self.identity.as_ref().map(|identity| identity.node) else { return };
        let by_lower = |stream: &Stream| stream.inbound == (peer < me);
        let others: Vec<LinkId> = self.streams.proved(peer).filter(|other| *other != link).collect();
        let preferred = |link: &LinkId| self.streams.open.get(link).is_some_and(by_lower);
        if !preferred(&link) && others.iter().any(preferred) {
            return self.retire_stream(link, peer, now);
        }
        if let Some(stream) = self.streams.open.get(&link) {
            tracing::debug!(%peer, inbound = stream.inbound, ?rtt, "LAN TCP");
        }
        self.neighbour_found(peer, now);
        self.add_direct_path(peer, way, rtt, None, now);
        others.into_iter().for_each(|other| self.retire_stream(other, peer, now));
        // What is still being dialled is not needed any more.
        for other in self.streams.of(peer) {
            if self.streams.open.get(&other).is_some_and(|stream| stream.state == State::Dialling) {
                self.forget_stream(other);
            }
        }
    }

    /// Nothing is sent on it from now on; what is under way may arrive.
    fn retire_stream(&mut self, link: LinkId, peer: NodeId, now: Now) {
        let retired = |stream: &Stream| stream.peer == Some(peer) && stream.state == State::Retired;
        let former: Vec<LinkId> = self.streams.open.iter().filter(|(_, s)| retired(s)).map(|(link, _)| *link).collect();
        former.into_iter().for_each(|former| self.forget_stream(former));
        if let Some(stream) = self.streams.open.get_mut(&link) {
            stream.state = State::Retired;
            self.timers.set(Timer::Stream(link), now.mono + LINGER);
        }
        let orphans = self.links.get_mut(&link).map(|link| std::mem::take(link.waiting()));
        self.remove_stream_path(link, peer, now);
        if let Some(orphans) = orphans {
            self.send_orphans(orphans, now);
        }
    }

    pub(crate) fn stream_timeout(&mut self, link: LinkId, now: Now) {
        let Some(stream) = self.streams.open.get(&link) else { return };
        match (stream.state, stream.peer) {
            (State::Dialling, _) => self.close_stream(link, "no answer", now),
            (State::Stranger | State::Heard, _) => self.refuse_stream(link, "it did not authenticate in time", now),
            (State::Retired, _) | (State::Proved, None) => self.forget_stream(link),
            (State::Proved, Some(peer)) => {
                let silent = now.mono.saturating_duration_since(stream.heard) >= SILENCE;
                let used = self.peers.get(peer).and_then(|p| p.paths.as_ref()).and_then(|paths| paths.way());
                // While UDP gets through, nobody needs it.
                let spare = used.is_some_and(|way| way.class() < Class::LanTcp);
                if silent || (spare && stream.spare) {
                    let why = if silent { "nothing is sent any more" } else { "UDP gets through" };
                    return self.close_stream(link, why, now);
                }
                if let Some(stream) = self.streams.open.get_mut(&link) {
                    stream.spare = spare;
                }
                self.timers.set(Timer::Stream(link), now.mono + CHECK);
            }
        }
    }

    /// Connections that are a path no longer, because it is dead or others are better, are closed.
    pub(crate) fn tidy_streams(&mut self, peer: NodeId, now: Now) {
        let Some(paths) = self.peers.get(peer).and_then(|p| p.paths.as_ref()) else { return };
        let is_path =
            |link: &LinkId, stream: &Stream| paths.knows(Way::Tcp { stream: link.stream(), remote: stream.remote });
        let proved = |stream: &Stream| stream.peer == Some(peer) && stream.state == State::Proved;
        let gone: Vec<LinkId> = self
            .streams
            .open
            .iter()
            .filter(|(link, stream)| proved(stream) && !is_path(link, stream))
            .map(|(link, _)| *link)
            .collect();
        gone.into_iter().for_each(|link| self.close_stream(link, "it does not answer", now));
    }

    /// The remote address of a connection that packets to a peer take.
    pub(crate) fn stream_in_use(&self, peer: NodeId) -> Option<SocketAddr> {
        match self.peers.get(peer)?.paths.as_ref()?.way()? {
            Way::Tcp { remote, .. } => Some(remote),
            _ => None,
        }
    }

    fn refuse_stream(&mut self, link: LinkId, why: &str, now: Now) {
        if self.streams.open.get(&link).is_some_and(|stream| stream.inbound) {
            self.drops.count(Drop::RefusedStream);
        }
        self.close_stream(link, why, now);
    }

    /// Ends a connection, with all that follows from it.
    pub(crate) fn close_stream(&mut self, link: LinkId, why: &str, now: Now) {
        let Some(stream) = self.streams.open.remove(&link) else { return };
        let orphans = self.links.get_mut(&link).map(|link| std::mem::take(link.waiting()));
        self.hang_up(link, None);
        self.stream_gone(link, &stream, why, now);
        if let Some(orphans) = orphans {
            self.send_orphans(orphans, now);
        }
    }

    /// Ends a connection that is no path and of which nothing is to be learnt.
    fn forget_stream(&mut self, link: LinkId) {
        if self.streams.open.remove(&link).is_some() {
            self.timers.clear(Timer::Stream(link));
            self.hang_up(link, None);
        }
    }

    /// All connections to a peer end, whose paths end anyway.
    pub(crate) fn forget_streams(&mut self, peer: NodeId) {
        self.streams.of(peer).into_iter().for_each(|link| self.forget_stream(link));
    }

    /// There is no network to have neighbours in.
    pub(crate) fn forget_all_streams(&mut self) {
        let all: Vec<LinkId> = self.streams.open.keys().copied().collect();
        all.into_iter().for_each(|link| self.forget_stream(link));
    }

    /// The addresses of this host have changed.
    pub(crate) fn leave_former_neighbours(&mut self, now: Now) {
        let all = self.streams.open.iter();
        let gone = all.filter(|(_, stream)| !self.is_neighbour(stream.remote.ip())).map(|(link, _)| *link);
        let gone: Vec<LinkId> = gone.collect();
        gone.into_iter().for_each(|link| self.close_stream(link, "this host has left that network", now));
    }

    fn stream_gone(&mut self, link: LinkId, stream: &Stream, reason: &str, now: Now) {
        self.timers.clear(Timer::Stream(link));
        tracing::debug!(peer = ?stream.peer, inbound = stream.inbound, state = ?stream.state, reason, "LAN TCP ended");
        let Some(peer) = stream.peer else { return };
        let lasted = now.mono.saturating_duration_since(stream.since);
        match stream.state {
            State::Proved => {
                self.neighbour_lost(peer, lasted >= STABLE, now);
                self.remove_stream_path(link, peer, now);
            }
            State::Dialling | State::Stranger | State::Heard if !stream.inbound => self.neighbour_failed(peer, now),
            _ => {}
        }
    }

    fn remove_stream_path(&mut self, link: LinkId, peer: NodeId, now: Now) {
        let Some(paths) = self.peers.get_mut(peer).and_then(|p| p.paths.as_mut()) else { return };
        let had = paths.has_direct();
        paths.remove_direct(|way| matches!(way, Way::Tcp { stream, .. } if stream == link.stream()), now.mono);
        self.arm_path(peer);
        self.check_direct(peer, had, now);
    }

    /// One probe by UDP, to see whether that gets through: if the peer hears it, it probes us.
    pub(crate) fn send_knock(&mut self, peer: NodeId, to: SocketAddr, now: Now) {
        let Some(socket) = self.direct.socket.filter(|_| self.direct.port.is_some()) else { return };
        if !self.direct.budget.take(now.mono) {
            return;
        }
        let probe: [u8; probe::LEN] = Probe { path: 0, sent_us: self.probe_time(now) }.encode();
        if let Ok(frame) = self.seal(peer, FrameType::P2pPing, Flags::default(), &[&probe]) {
            self.signal_udp(socket, to, frame);
        }
    }
}
