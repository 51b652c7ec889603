//! One pair of statements: a key, a counter and a window for each direction.

use crate::crypto::{Cipher, CryptoError, Prefix, Suite, direction_key, nonce};
use crate::window::{Refused, ReplayWindow};
use crate::{COUNTER_LIMIT, OpenError, SealError, SessionError};
use edgelink_auth::{NodeKey, SignedStatement};
use edgelink_model::{NetworkId, NodeId};
use edgelink_wire::data::{self, AAD_LEN, DataHeader, PLAINTEXT_OFFSET, TAG_LEN};
use edgelink_wire::{Flags, FrameType};
use std::time::Instant;
use zeroize::Zeroizing;

/// One of our own keys.
pub(crate) struct Local {
    /// Counts our keys: the newest has the highest.
    pub(crate) epoch: u64,
    pub(crate) key: NodeKey,
    pub(crate) statement: SignedStatement,
    /// Made the newest then.
    pub(crate) since: Instant,
    /// Erased then at the latest.
    pub(crate) discard_at: Instant,
}

/// The keys of both directions. Dropping them zeroizes them.
pub(crate) struct Keys {
    suite: Suite,
    send: Cipher,
    send_prefix: Prefix,
    receive: Cipher,
    receive_prefix: Prefix,
}

impl Keys {
    pub(crate) fn derive(
        network: NetworkId,
        psk: Option<&Zeroizing<[u8; 32]>>,
        local: &Local,
        theirs: &SignedStatement,
    ) -> Result<Self, SessionError> {
        let shared = local.key.agree(&theirs.statement().node_pub).map_err(|_| SessionError::WeakKey)?;
        let psk = psk.map(|psk| &**psk);
        let ours = &local.statement;
        let suite = Suite::negotiated(ours.statement().capabilities, theirs.statement().capabilities);
        let derive = || -> Result<Self, CryptoError> {
            let send = direction_key(&shared, psk, network, ours, theirs)?;
            let receive = direction_key(&shared, psk, network, theirs, ours)?;
            Ok(Self {
                suite,
                send: Cipher::new(suite, send.key.as_slice())?,
                send_prefix: send.prefix,
                receive: Cipher::new(suite, receive.key.as_slice())?,
                receive_prefix: receive.prefix,
            })
        };
        derive().map_err(|CryptoError| SessionError::Derivation)
    }
}

/// A pair of statements. It exists once, and its counter and window are as old as itself.
pub(crate) struct Session {
    /// Which of our keys.
    pub(crate) epoch: u64,
    /// Hash of the peer's statement.
    pub(crate) theirs: [u8; 32],
    /// Absent while the peer is removed, and for good once the session is spent.
    keys: Option<Keys>,
    /// Superseded and over: its keys are never derived again, since its window is gone.
    spent: bool,
    /// Superseded: receives until then.
    pub(crate) expires_at: Option<Instant>,
    next_counter: u64,
    window: ReplayWindow,
}

impl Session {
    pub(crate) fn new(epoch: u64, theirs: [u8; 32], keys: Keys, window: usize) -> Self {
        let window = ReplayWindow::new(window);
        Self { epoch, theirs, keys: Some(keys), spent: false, expires_at: None, next_counter: 0, window }
    }

    /// Whether only its keys are missing.
    pub(crate) fn is_dormant(&self) -> bool {
        self.keys.is_none() && !self.spent
    }

    /// Zeroizes the keys; counter and window stay.
    pub(crate) fn sleep(&mut self) {
        self.keys = None;
    }

    /// Goes on with counter and window where they were; `keys` are those of the same pair.
    pub(crate) fn wake(&mut self, keys: Keys) {
        if self.is_dormant() {
            self.keys = Some(keys);
        }
    }

    /// Ends it when its time has come.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.is_expired(now) {
            self.keys = None;
            self.spent = true;
        }
    }

    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| now >= at)
    }

    pub(crate) fn receives_under(&self, prefix: Prefix) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.receive_prefix == prefix)
    }

    pub(crate) fn set_window(&mut self, size: usize) {
        self.window.resize(size);
    }

    /// Window look-up, AEAD, window commit. `text` is ciphertext and tag; returns the plaintext's length.
    pub(crate) fn open(&mut self, counter: u64, aad: &[u8; AAD_LEN], text: &mut [u8]) -> Result<usize, OpenError> {
        let keys = self.keys.as_ref().ok_or(OpenError::BadTag)?;
        if counter >= COUNTER_LIMIT {
            return Err(OpenError::Malformed);
        }
        self.window.check(counter).map_err(|refused| match refused {
            Refused::Seen => OpenError::Replayed,
            Refused::TooOld => OpenError::TooOld,
        })?;
        let nonce = nonce(keys.receive_prefix, counter);
        let plaintext = keys.receive.open(nonce, aad, text).map_err(|CryptoError| OpenError::BadTag)?;
        self.window.commit(counter);
        Ok(plaintext.len())
    }

    #[cfg(test)]
    pub(crate) fn set_next_counter(&mut self, counter: u64) {
        assert!(counter >= self.next_counter, "a counter never goes back");
        self.next_counter = counter;
    }

    #[cfg(test)]
    pub(crate) fn next_counter(&self) -> u64 {
        self.next_counter
    }

    #[cfg(test)]
    pub(crate) fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// Makes two sessions collide, which chance would take 2^32 tries for. The sender must be told as well.
    #[cfg(test)]
    pub(crate) fn force_prefixes(&mut self, send: Prefix, receive: Prefix) {
        let keys = self.keys.as_mut().unwrap();
        (keys.send_prefix, keys.receive_prefix) = (send, receive);
    }
}

/// Seals frames to one peer: the look-up is paid once for as many frames as are waiting.
pub struct Sealer<'t> {
    pub(crate) session: &'t mut Session,
    /// The session is under our newest key: only then a newer one would help.
    pub(crate) newest: bool,
    pub(crate) rekey_due: &'t mut bool,
    pub(crate) src: NodeId,
    pub(crate) dst: NodeId,
}

impl Sealer<'_> {
    /// Seals one frame in place. `frame` is the whole frame: 25 bytes of room, the plaintext, 16 bytes of room; header
    /// and tag are written into the room. `ty` is DATA, P2P_PING or P2P_PONG.
    ///
    /// # Errors
    /// [`SealError::Exhausted`] at [`COUNTER_LIMIT`]; [`SealError::Frame`] for a buffer that cannot be such a frame.
    /// No nonce is used up by an error in `frame`.
    pub fn seal(&mut self, ty: FrameType, flags: Flags, frame: &mut [u8]) -> Result<(), SealError> {
        let session = &mut *self.session;
        let keys = session.keys.as_ref().ok_or(SealError::UnknownPeer)?;
        let counter = session.next_counter;
        if counter >= COUNTER_LIMIT {
            *self.rekey_due |= self.newest;
            return Err(SealError::Exhausted);
        }
        let nonce = nonce(keys.send_prefix, counter);
        data::write_header(frame, ty, flags, &DataHeader { src: self.src, dst: self.dst, nonce })?;
        // From here on the nonce counts as used, whatever happens.
        session.next_counter = counter + 1;
        if counter >= keys.suite.rekey_after() {
            *self.rekey_due |= self.newest;
        }
        let aad = data::aad(frame);
        let (text, tag_room) = frame
            .get_mut(PLAINTEXT_OFFSET..)
            .and_then(|text| text.split_last_chunk_mut::<TAG_LEN>())
            .ok_or(SealError::Crypto)?;
        *tag_room = keys.send.seal(nonce, &aad, text).map_err(|CryptoError| SealError::Crypto)?;
        Ok(())
    }

    /// Whom the frames are for.
    pub fn peer(&self) -> NodeId {
        self.dst
    }
}
