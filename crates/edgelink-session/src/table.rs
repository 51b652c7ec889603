//! All sessions of one node in one network.

use crate::crypto::split_nonce;
use crate::peer::Peer;
use crate::session::{Keys, Local, Sealer, Session};
use crate::{OpenError, SUPERSEDED_FOR, SealError, SessionError};
use edgelink_auth::{KeyStatement, NodeKey, SignedStatement};
use edgelink_model::{NetworkId, NodeId};
use edgelink_wire::data::{self, PLAINTEXT_OFFSET};
use edgelink_wire::{Flags, FrameType};
use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// At most this many sessions of a peer are alive: {current, previous} × {current, previous}.
const MAX_SESSIONS: usize = 4;

/// Who we are, and what all sessions have in common.
pub struct SessionConfig {
    /// Our network.
    pub network_id: NetworkId,
    /// Our node.
    pub node_id: NodeId,
    /// Mixed into every key when both sides have the same one.
    pub psk: Option<Zeroizing<[u8; 32]>>,
    /// Replay window of new peers in packets, clamped to [`crate::MIN_WINDOW`] and [`crate::MAX_WINDOW`].
    pub window: usize,
}

/// What [`SessionTable::set_peer`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// The statement was in use already.
    Unchanged,
    /// The peer was not known, had been removed, or has another machine key now.
    New,
    /// The peer's former statement is its previous one from now on.
    Rotated,
}

/// A frame that was authenticated and is delivered for the first time.
#[derive(Debug)]
pub struct Opened<'f> {
    /// Who sealed it.
    pub peer: NodeId,
    /// DATA, P2P_PING or P2P_PONG; authenticated.
    pub ty: FrameType,
    /// All but [`Flags::LOCAL_ONLY`] are authenticated.
    pub flags: Flags,
    /// What was sealed, inside the frame's buffer.
    pub plaintext: &'f mut [u8],
    /// The frame has confirmed our newest statement, and is the first to do so: announces may stop.
    pub newly_confirmed: bool,
}

/// The sessions with all peers. See the crate's documentation for what it promises.
///
/// Memory: about 1.5 KiB per peer and living session with the default window, 8.5 KiB with the largest.
pub struct SessionTable {
    config: SessionConfig,
    newest: Option<Local>,
    previous: Option<Local>,
    peers: HashMap<NodeId, Peer>,
    /// No later than the first deadline.
    next_timeout: Option<Instant>,
    rekey_due: bool,
}

impl SessionTable {
    /// A table without keys.
    pub fn new(config: SessionConfig) -> Self {
        Self { config, newest: None, previous: None, peers: HashMap::new(), next_timeout: None, rekey_due: false }
    }

    /// Makes `key` and its statement our newest. The former newest becomes the previous one, which still receives, and
    /// sends to peers that have not confirmed the newest; the previous one before that is erased.
    ///
    /// # Errors
    /// [`SessionError::OtherNetwork`], [`SessionError::OtherNode`] when the statement is not ours or not of `key`;
    /// [`SessionError::LowerSeq`], [`SessionError::SeqConflict`] unless its sequence number rises.
    pub fn set_local(&mut self, key: NodeKey, statement: SignedStatement, now: Instant) -> Result<(), SessionError> {
        let said = statement.statement();
        if said.network_id != self.config.network_id {
            return Err(SessionError::OtherNetwork);
        }
        if said.node_id != self.config.node_id || said.node_pub != key.public() {
            return Err(SessionError::OtherNode);
        }
        if let Some(newest) = &self.newest {
            match said.seq.cmp(&newest.statement.statement().seq) {
                std::cmp::Ordering::Less => return Err(SessionError::LowerSeq),
                std::cmp::Ordering::Equal => return Err(SessionError::SeqConflict),
                std::cmp::Ordering::Greater => {}
            }
        }
        // The statement's lifetime is bounded (`MAX_LIFETIME_SECS`), so that this cannot overflow.
        let lifetime = Duration::from_secs(said.not_after.saturating_sub(said.not_before));
        let epoch = self.newest.as_ref().map_or(1, |newest| newest.epoch + 1);
        let newest = Local { epoch, key, statement, since: now, discard_at: now + lifetime };
        self.discard_previous();
        self.previous = self.newest.replace(newest);
        self.rekey_due = false;
        for peer in self.peers.values_mut().filter(|peer| peer.present) {
            peer.last_epoch = epoch;
        }
        self.shorten_previous(now);
        if let Some(previous) = &self.previous {
            schedule(&mut self.next_timeout, previous.discard_at.min(now + SUPERSEDED_FOR));
        }
        Ok(())
    }

    /// Makes `statement` the newest of the peer that it names. [`crate::trust::PinStore`] comes before.
    ///
    /// # Errors
    /// [`SessionError`]; the living sessions go on.
    pub fn set_peer(&mut self, statement: &SignedStatement, now: Instant) -> Result<PeerChange, SessionError> {
        let said = statement.statement();
        let local = self.newest.as_ref().ok_or(SessionError::NoLocalKey)?;
        let id = said.node_id;
        self.check_peer(said)?;
        let change = match self.peers.get(&id) {
            Some(peer) if peer.current.hash() == statement.hash() => {
                if peer.present {
                    PeerChange::Unchanged
                } else {
                    PeerChange::New
                }
            }
            Some(peer) => {
                peer.check_successor(statement)?;
                let same_machine = peer.current.statement().machine_pub == said.machine_pub;
                if peer.present && same_machine { PeerChange::Rotated } else { PeerChange::New }
            }
            None => PeerChange::New,
        };
        if change == PeerChange::Unchanged {
            return Ok(change);
        }
        // Refuses a weak key before anything changes.
        let keys = Keys::derive(self.config.network_id, self.config.psk.as_ref(), local, statement)?;
        let window = self.config.window;
        let peer = self.peers.entry(id).or_insert_with(|| Peer::new(statement.clone(), window, local.epoch));
        if peer.current.hash() != statement.hash() {
            peer.succeed(statement.clone(), now);
        }
        peer.present = true;
        peer.last_epoch = local.epoch;
        match peer.sessions.iter_mut().find(|s| s.epoch == local.epoch && s.theirs == statement.hash()) {
            Some(session) => session.wake(keys),
            None => peer.sessions.push(Session::new(local.epoch, statement.hash(), keys, peer.window)),
        }
        if let Some((_, until)) = &peer.previous {
            schedule(&mut self.next_timeout, *until);
        }
        Ok(change)
    }

    /// Whether [`SessionTable::set_peer`] could take a statement, as far as that can be told before its signature, the
    /// costly part, is verified.
    ///
    /// # Errors
    /// [`SessionError::OtherNetwork`], [`SessionError::OtherNode`], [`SessionError::LowerSeq`].
    pub fn check_peer(&self, said: &KeyStatement) -> Result<(), SessionError> {
        if said.network_id != self.config.network_id {
            return Err(SessionError::OtherNetwork);
        }
        if said.node_id == self.config.node_id {
            return Err(SessionError::OtherNode);
        }
        match self.peers.get(&said.node_id).map(|peer| peer.current.statement()) {
            Some(current) if current.machine_pub == said.machine_pub && said.seq < current.seq => {
                Err(SessionError::LowerSeq)
            }
            _ => Ok(()),
        }
    }

    /// Ends all sessions with a peer that is no longer one. Keys are zeroized at once; counters and windows are kept
    /// until the key of ours that they belong to is discarded, so that a peer that comes back goes on where it was.
    pub fn remove_peer(&mut self, peer: NodeId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.remove();
        }
    }

    /// The same for a revoked peer: sending and receiving end at once.
    pub fn wipe_peer(&mut self, peer: NodeId) {
        self.remove_peer(peer);
    }

    /// What seals frames to `peer`, under (our newest statement that it has confirmed, its newest); our newest when it
    /// has confirmed none, in which case a KEY_ANNOUNCE goes first.
    ///
    /// Five minutes after a rotation our newest is used in any case: a peer that has learnt it accepts the previous one
    /// no longer than that, even if every sign that it has was lost.
    ///
    /// # Errors
    /// [`SealError::UnknownPeer`], [`SealError::NoLocalKey`].
    pub fn sealer(&mut self, peer: NodeId) -> Result<Sealer<'_>, SealError> {
        let dst = peer;
        let peer = self.peers.get_mut(&dst).filter(|peer| peer.present).ok_or(SealError::UnknownPeer)?;
        let newest = self.newest.as_ref().ok_or(SealError::NoLocalKey)?;
        let confirmed = self.previous.as_ref().filter(|previous| peer.confirmed == Some(previous.epoch));
        let session = peer.ensure(&self.config, confirmed.unwrap_or(newest), true).map_err(|_| SealError::Crypto)?;
        let session = session.ok_or(SealError::UnknownPeer)?;
        let newest = session.epoch == newest.epoch;
        Ok(Sealer { session, newest, rekey_due: &mut self.rekey_due, src: self.config.node_id, dst })
    }

    /// Opens a whole frame (header included) in place: key by (source, prefix), window look-up, AEAD, window commit.
    /// The inner source and destination are the caller's to check.
    ///
    /// # Errors
    /// [`OpenError`]; the frame's bytes are worthless then.
    pub fn open<'f>(&mut self, frame: &'f mut [u8], now: Instant) -> Result<Opened<'f>, OpenError> {
        let clear = data::parse(frame).map_err(|_| OpenError::Malformed)?;
        let &[_, ty, flags, ..] = &*frame else { return Err(OpenError::Malformed) };
        let ty = FrameType::from_u8(ty).ok_or(OpenError::Malformed)?;
        if clear.dst != self.config.node_id {
            return Err(OpenError::NotForUs);
        }
        let src = clear.src;
        let peer = self.peers.get_mut(&src).filter(|peer| peer.present).ok_or(OpenError::UnknownPeer { src })?;
        let (prefix, counter) = split_nonce(clear.nonce);
        let mut candidates = Candidates::find(peer, prefix, now);
        if candidates.is_empty() {
            // Sessions are derived when they are first needed; each pair of statements costs this once.
            for local in self.newest.iter().chain(&self.previous) {
                for current in [true, false] {
                    peer.ensure(&self.config, local, current).map_err(|_| OpenError::UnknownKey { src })?;
                }
            }
            candidates = Candidates::find(peer, prefix, now);
        }
        let aad = data::aad(frame);
        let text = frame.get_mut(PLAINTEXT_OFFSET..).ok_or(OpenError::Malformed)?;
        let (index, len) = candidates.open(peer, src, |session, text| session.open(counter, &aad, text), text)?;
        let newly_confirmed = self.confirm(src, index, now);
        let plaintext = frame.get_mut(PLAINTEXT_OFFSET..PLAINTEXT_OFFSET + len).ok_or(OpenError::Malformed)?;
        Ok(Opened { peer: src, ty, flags: Flags(flags), plaintext, newly_confirmed })
    }

    /// An authenticated frame came under a session: whoever holds the peer's newest key knows that statement of ours.
    /// Returns whether our newest statement is confirmed by it for the first time.
    fn confirm(&mut self, src: NodeId, session: usize, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&src) else { return false };
        let Some(session) = peer.sessions.get(session) else { return false };
        let epoch = session.epoch;
        let newest = self.newest.as_ref().is_some_and(|newest| newest.epoch == epoch);
        let too_late = self.newest.as_ref().is_some_and(|newest| now >= newest.since + SUPERSEDED_FOR);
        // A straggler under the peer's former key says nothing about what the peer, maybe restarted, knows now.
        if session.theirs != peer.current.hash() || (!newest && too_late) || !peer.confirm(epoch, now) {
            return false;
        }
        if self.previous.is_some() {
            schedule(&mut self.next_timeout, now + SUPERSEDED_FOR);
        }
        if newest {
            self.shorten_previous(now);
        }
        newest
    }

    /// Whether the peer has confirmed our newest statement; until then it should be announced.
    pub fn peer_confirmed(&self, peer: NodeId) -> bool {
        let newest = self.newest.as_ref().map(|newest| newest.epoch);
        newest.is_some() && self.peer(peer).is_some_and(|peer| peer.confirmed == newest)
    }

    /// Whether frames can be sealed to the peer.
    pub fn has_peer(&self, peer: NodeId) -> bool {
        self.peer(peer).is_some()
    }

    /// The peer's newest statement.
    pub fn peer_statement(&self, peer: NodeId) -> Option<&SignedStatement> {
        self.peer(peer).map(|peer| &peer.current)
    }

    /// The peer's capability bits ([`edgelink_model::capabilities`]); none for a node that is no peer.
    pub fn peer_capabilities(&self, peer: NodeId) -> u32 {
        self.peer_statement(peer).map_or(0, |statement| statement.statement().capabilities)
    }

    /// Our newest statement.
    pub fn local_statement(&self) -> Option<&SignedStatement> {
        self.newest.as_ref().map(|newest| &newest.statement)
    }

    /// Whether a send counter has passed [`crate::REKEY_AFTER`] or [`crate::AES_REKEY_AFTER`]: a new node key is due.
    pub fn rekey_due(&self) -> bool {
        self.rekey_due
    }

    /// Sets a peer's replay window in packets: larger while two paths are in use. Clamped as in [`SessionConfig`].
    pub fn set_window(&mut self, peer: NodeId, packets: usize) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.window = packets;
            peer.sessions.iter_mut().for_each(|session| session.set_window(packets));
        }
    }

    /// When [`SessionTable::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_timeout
    }

    /// Erases what is due: superseded sessions, former statements, our own previous key; and ends the latter's use for
    /// sending.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_timeout.is_none_or(|at| now < at) {
            return;
        }
        if self.previous.as_ref().is_some_and(|previous| now >= previous.discard_at) {
            self.discard_previous();
        }
        let mut next = self.peers.values_mut().filter_map(|peer| peer.handle_timeout(now)).min();
        if let (Some(newest), Some(previous)) = (&self.newest, &self.previous) {
            schedule(&mut next, previous.discard_at);
            let switch_at = newest.since + SUPERSEDED_FOR;
            if now < switch_at {
                schedule(&mut next, switch_at);
            } else {
                self.peers.values_mut().for_each(|peer| peer.unconfirm(previous.epoch));
            }
        }
        self.next_timeout = next;
    }

    fn peer(&self, id: NodeId) -> Option<&Peer> {
        self.peers.get(&id).filter(|peer| peer.present)
    }

    /// Our previous key goes, its sessions with it, and the memory of peers that knew no later one.
    fn discard_previous(&mut self) {
        if let Some(gone) = self.previous.take() {
            self.peers.values_mut().for_each(|peer| peer.forget_epoch(gone.epoch));
            self.peers.retain(|_, peer| peer.present || peer.last_epoch > gone.epoch);
        }
    }

    /// Once nobody needs our previous key any more, it is kept for stragglers only.
    fn shorten_previous(&mut self, now: Instant) {
        let (Some(newest), Some(previous)) = (&self.newest, &mut self.previous) else { return };
        if self.peers.values().filter(|peer| peer.present).all(|peer| peer.confirmed == Some(newest.epoch)) {
            previous.discard_at = previous.discard_at.min(now + SUPERSEDED_FOR);
            schedule(&mut self.next_timeout, previous.discard_at);
        }
    }

    #[cfg(test)]
    pub(crate) fn sessions_mut(&mut self, peer: NodeId) -> &mut Vec<Session> {
        &mut self.peers.get_mut(&peer).unwrap().sessions
    }

    #[cfg(test)]
    pub(crate) fn remembers(&self, peer: NodeId) -> bool {
        self.peers.contains_key(&peer)
    }

    #[cfg(test)]
    pub(crate) fn has_previous_key(&self) -> bool {
        self.previous.is_some()
    }
}

impl fmt::Debug for SessionTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTable")
            .field("network_id", &self.config.network_id)
            .field("node_id", &self.config.node_id)
            .field("peers", &self.peers.values().filter(|peer| peer.present).count())
            .finish_non_exhaustive()
    }
}

/// The sessions of one peer whose prefix is that of a frame: one, unless chance or malice made prefixes collide.
struct Candidates {
    indices: [usize; MAX_SESSIONS],
    count: usize,
}

impl Candidates {
    /// Newest first, so that the outcome does not depend on the order in which sessions were made.
    fn find(peer: &Peer, prefix: [u8; 4], now: Instant) -> Self {
        let current = peer.current.hash();
        let mut this = Self { indices: [0; MAX_SESSIONS], count: 0 };
        let matching = peer.sessions.iter().enumerate().filter(|(_, s)| s.receives_under(prefix) && !s.is_expired(now));
        for ((index, _), slot) in matching.zip(&mut this.indices) {
            *slot = index;
            this.count += 1;
        }
        if this.count > 1 {
            let found = this.indices.get_mut(..this.count).unwrap_or_default();
            found.sort_by_key(|index| {
                let session = peer.sessions.get(*index);
                std::cmp::Reverse(session.map(|session| (session.epoch, session.theirs == current)))
            });
        }
        this
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Tries each; returns the index of the session that opened the frame, and what `open` returned.
    fn open(
        &self,
        peer: &mut Peer,
        src: NodeId,
        mut open: impl FnMut(&mut Session, &mut [u8]) -> Result<usize, OpenError>,
        text: &mut [u8],
    ) -> Result<(usize, usize), OpenError> {
        let indices = self.indices.get(..self.count).unwrap_or_default();
        // A failed attempt spoils the text. The copy is made only where prefixes collide.
        let copy = if indices.len() > 1 { text.to_vec() } else { Vec::new() };
        let mut outcome = OpenError::UnknownKey { src };
        for (attempt, index) in indices.iter().enumerate() {
            if attempt > 0 {
                text.copy_from_slice(&copy);
            }
            let Some(session) = peer.sessions.get_mut(*index) else { continue };
            match open(session, text) {
                Ok(len) => return Ok((*index, len)),
                // "Replayed" says more than the other session's "bad tag".
                Err(error) if attempt == 0 || outcome == OpenError::BadTag => outcome = error,
                Err(_) => {}
            }
        }
        Err(outcome)
    }
}

/// Moves a deadline forward.
fn schedule(next: &mut Option<Instant>, at: Instant) {
    *next = Some(next.map_or(at, |next| next.min(at)));
}
