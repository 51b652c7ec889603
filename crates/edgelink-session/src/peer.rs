//! What the table knows of one peer: its statements, what it has confirmed, and its sessions.

use crate::session::{Keys, Local, Session};
use crate::{SUPERSEDED_FOR, SessionConfig, SessionError};
use edgelink_auth::{MachinePublic, SignedStatement};
use std::time::Instant;

/// A peer, or the memory of one.
pub(crate) struct Peer {
    /// `false`: removed. Counters and windows are kept in case it comes back.
    pub(crate) present: bool,
    pub(crate) current: SignedStatement,
    /// The statement before, accepted until then.
    pub(crate) previous: Option<(SignedStatement, Instant)>,
    /// The newest of our keys that the holder of `current` has used.
    pub(crate) confirmed: Option<u64>,
    /// Sessions under keys of ours older than `confirmed` receive until then.
    older_until: Option<Instant>,
    /// At most one per pair of living statements, so four. A pair once here stays here until one of its statements is
    /// gone for good: that is what keeps counters from starting over.
    pub(crate) sessions: Vec<Session>,
    pub(crate) window: usize,
    /// Sequence numbers of former machine keys of this node.
    retired: Vec<(MachinePublic, u64)>,
    /// Our newest key when the peer was last present; the memory may go when that key has gone.
    pub(crate) last_epoch: u64,
}

impl Peer {
    pub(crate) fn new(current: SignedStatement, window: usize, last_epoch: u64) -> Self {
        Self {
            present: true,
            current,
            previous: None,
            confirmed: None,
            older_until: None,
            sessions: Vec::new(),
            window,
            retired: Vec::new(),
            last_epoch,
        }
    }

    /// Whether `offered` may take the current statement's place.
    pub(crate) fn check_successor(&self, offered: &SignedStatement) -> Result<(), SessionError> {
        let (current, offered) = (self.current.statement(), offered.statement());
        if offered.machine_pub == current.machine_pub {
            return match offered.seq.cmp(&current.seq) {
                std::cmp::Ordering::Less => Err(SessionError::LowerSeq),
                std::cmp::Ordering::Equal => Err(SessionError::SeqConflict),
                std::cmp::Ordering::Greater => Ok(()),
            };
        }
        match self.retired.iter().find(|(machine, _)| *machine == offered.machine_pub) {
            Some((_, seq)) if offered.seq <= *seq => Err(SessionError::LowerSeq),
            _ => Ok(()),
        }
    }

    /// Puts `statement` in the current one's place. The former one is accepted a while longer, unless it is another
    /// machine's: a changed machine key ends everything that was before.
    pub(crate) fn succeed(&mut self, statement: SignedStatement, now: Instant) {
        let former = std::mem::replace(&mut self.current, statement);
        let (old, new) = (former.statement(), self.current.statement());
        if old.machine_pub != new.machine_pub {
            self.retired.retain(|(machine, _)| *machine != new.machine_pub && *machine != old.machine_pub);
            self.retired.push((old.machine_pub, old.seq));
        }
        if self.present && old.machine_pub == new.machine_pub {
            let hash = former.hash();
            self.sessions.retain(|session| session.theirs == hash);
            self.previous = Some((former, now + SUPERSEDED_FOR));
        } else {
            self.sessions.clear();
            self.previous = None;
        }
        self.confirmed = None;
        self.older_until = None;
    }

    /// The session of `local` and the current (`true`) or previous statement, made or woken when needed.
    pub(crate) fn ensure(
        &mut self,
        config: &SessionConfig,
        local: &Local,
        current: bool,
    ) -> Result<Option<&mut Session>, SessionError> {
        let theirs = match (&self.previous, current) {
            (_, true) => &self.current,
            (Some((previous, _)), false) => previous,
            (None, false) => return Ok(None),
        };
        let derive = || Keys::derive(config.network_id, config.psk.as_ref(), local, theirs);
        let found = self.sessions.iter().position(|s| s.epoch == local.epoch && s.theirs == theirs.hash());
        let index = match found {
            Some(index) => {
                if let Some(session) = self.sessions.get_mut(index)
                    && session.is_dormant()
                {
                    session.wake(derive()?);
                }
                index
            }
            None => {
                let mut session = Session::new(local.epoch, theirs.hash(), derive()?, self.window);
                if self.confirmed.is_some_and(|confirmed| local.epoch < confirmed) {
                    session.expires_at = self.older_until;
                }
                self.sessions.push(session);
                self.sessions.len() - 1
            }
        };
        Ok(self.sessions.get_mut(index))
    }

    /// The peer has used our key `epoch`. Returns whether that is news; older keys then only receive, until `now` and
    /// five minutes.
    pub(crate) fn confirm(&mut self, epoch: u64, now: Instant) -> bool {
        if self.confirmed >= Some(epoch) {
            return false;
        }
        self.confirmed = Some(epoch);
        let until = now + SUPERSEDED_FOR;
        self.older_until = Some(until);
        for session in self.sessions.iter_mut().filter(|session| session.epoch < epoch) {
            session.expires_at.get_or_insert(until);
        }
        true
    }

    /// Ends the peer's presence: keys go at once, counters and windows stay.
    pub(crate) fn remove(&mut self) {
        self.present = false;
        if let Some((previous, _)) = self.previous.take() {
            // Its sequence number is below the current one's: it can never come back.
            self.sessions.retain(|session| session.theirs != previous.hash());
        }
        self.confirmed = None;
        self.older_until = None;
        self.sessions.iter_mut().for_each(Session::sleep);
    }

    /// Forgets one of our keys.
    pub(crate) fn forget_epoch(&mut self, epoch: u64) {
        self.sessions.retain(|session| session.epoch != epoch);
        self.unconfirm(epoch);
    }

    /// Ends the use of one of our keys for sending.
    pub(crate) fn unconfirm(&mut self, epoch: u64) {
        if self.confirmed == Some(epoch) {
            self.confirmed = None;
        }
    }

    /// Ends what is due and returns when the next is.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Instant> {
        if let Some((previous, _)) = self.previous.take_if(|(_, until)| now >= *until) {
            self.sessions.retain(|session| session.theirs != previous.hash());
        }
        self.sessions.iter_mut().for_each(|session| session.expire(now));
        let deadlines = self.sessions.iter().filter_map(|session| session.expires_at).chain(self.older_until);
        deadlines.filter(|at| *at > now).chain(self.previous.as_ref().map(|(_, until)| *until)).min()
    }
}
