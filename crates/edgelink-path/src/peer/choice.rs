//! Which path is used, which stands by, and when one gives way to another (DESIGN §5).

use super::{Path, PathId, PeerPaths};
use crate::hedge::{Doubt, Hedge};
use crate::rank::{Evidence, Rank, Standing};
use crate::{DOUBTED_AFTER, Hops, Way};
use std::time::Instant;

impl PeerPaths {
    pub(super) fn rank(&self, path: &Path) -> Rank {
        let measured = path.rtt.get();
        let advice = self.advice.filter(|advice| advice.way() == path.way);
        let rtt = measured.or(advice.map(|advice| advice.latency)).or(path.expected);
        let any = matches!(path.way, Way::Relay { hops: Hops::Any, .. });
        let evidence = match measured.is_some() || advice.is_some() {
            true => Evidence::Known,
            false if any => Evidence::Guessed,
            false => Evidence::Blind,
        };
        Rank {
            standing: path.standing(),
            class: path.way.class(),
            evidence,
            unknown: rtt.is_none(),
            rtt: rtt.unwrap_or_default(),
            tie: (any, path.way),
        }
    }

    /// As [`Self::rank`], but the current path before all others.
    pub(super) fn keep_rank(&self, path: &Path) -> (bool, Rank) {
        (self.current != Some(path.id), self.rank(path))
    }

    /// The first packet after a pause: what is known may be out of date.
    pub(super) fn begin(&mut self, now: Instant) {
        // What a relay said of a peer that was away says nothing after a pause: it may stand by again.
        for path in self.paths.iter_mut().filter(|p| p.standing == Standing::Dead && !p.way.is_direct()) {
            path.standing = Standing::Unproved;
            path.misses = 0;
            path.rejected = false;
        }
        self.choose(now);
        self.hedge = Some(Hedge::new(Doubt::Unproved, now));
        self.find_standby();
        let standby = self.standby;
        for path in &mut self.paths {
            if Some(path.id) == self.current || Some(path.way) == standby {
                path.last_probe = None;
            }
        }
        self.reschedule(now);
    }

    /// The set of paths, or what is expected of them, has changed. A path that has proved itself is kept.
    pub(super) fn choose(&mut self, now: Instant) {
        let settled = self.current().is_some_and(|path| path.standing == Standing::Alive);
        let best = self.paths.iter().min_by_key(|path| self.rank(path)).map(|path| path.id);
        match best {
            Some(best) if !settled && self.current != Some(best) => self.switch(best, self.current.is_some(), now),
            Some(_) => self.find_standby(),
            None => {
                self.current = None;
                self.way = None;
                self.hedge = None;
                self.standby = None;
                self.limits = [None; 2];
            }
        }
    }

    /// Leaves the current path if it is dead, doubts it if PONGs are missing.
    pub(super) fn judge(&mut self, now: Instant) {
        let Some(current) = self.current() else { return };
        let (standing, misses) = (current.standing, current.misses);
        if misses >= DOUBTED_AFTER || standing == Standing::Dead {
            self.trouble.get_or_insert(now);
        }
        let best = self.paths.iter().filter(|path| Some(path.id) != self.current).min_by_key(|path| self.rank(path));
        let best = best.map(|path| (path.id, path.standing()));
        match (standing, best) {
            (Standing::Dead, Some((best, Standing::Alive | Standing::Doubted | Standing::Unproved))) => {
                self.switch(best, true, now);
            }
            // It was only a guess, and another one has proved right.
            (Standing::Unproved, Some((best, Standing::Alive))) if misses > 0 => self.switch(best, true, now),
            _ => {
                let doubted = self.hedge.is_some_and(|hedge| hedge.doubt == Doubt::Missing);
                if misses >= DOUBTED_AFTER && standing != Standing::Dead && !doubted {
                    self.hedge = Some(Hedge::new(Doubt::Missing, now));
                }
                self.find_standby();
            }
        }
    }

    /// Makes a path the current one; with `hedged` it must prove itself again.
    pub(super) fn switch(&mut self, to: PathId, hedged: bool, now: Instant) {
        self.current = Some(to);
        // It goes on until the new path proves itself.
        self.trouble.take_if(|_| !hedged);
        self.hedge = hedged.then(|| Hedge::new(Doubt::Unproved, now));
        let present = self.current().and_then(|path| path.rtt.get());
        for path in &mut self.paths {
            // What was better than the former path may be better than this one too, and has been measured.
            if path.id == to || !present.is_some_and(|present| path.rtt.all_better_than(present)) {
                path.better = 0;
            }
            if path.id == to {
                self.way = Some(path.way);
                if hedged {
                    path.last_probe = None;
                }
            }
        }
        self.find_standby();
    }

    /// The best other path that is not dead, on another first relay if there is one. All direct paths end together when
    /// the peer restarts or moves, so that a relay stands by for them.
    pub(super) fn find_standby(&mut self) {
        let Some(current) = self.current() else {
            self.standby = None;
            self.limits = [None; 2];
            return;
        };
        let (id, relay, direct) = (current.id, current.way.relay(), current.way.is_direct());
        let limit = current.limit;
        let others = self.paths.iter().filter(|path| path.id != id && path.standing != Standing::Dead);
        let shares = |path: &Path| (direct && path.way.is_direct()) || (relay.is_some() && path.way.relay() == relay);
        let standby = others.min_by_key(|path| (shares(path), self.rank(path))).map(|path| (path.way, path.limit));
        self.standby = standby.map(|(way, _)| way);
        self.limits = [limit, standby.and_then(|(_, limit)| limit)];
    }
}
