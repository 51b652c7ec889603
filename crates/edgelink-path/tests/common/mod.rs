//! A peer behind links of known delay, on a virtual clock.

use edgelink_model::ServerId;
use edgelink_path::{Hops, PathId, PeerPaths, RelayWay, Sending, Way};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn free(relay: u32) -> Way {
    Way::Relay { relay: ServerId(relay), hops: Hops::Any }
}

pub(crate) fn one(relay: u32) -> Way {
    Way::Relay { relay: ServerId(relay), hops: Hops::One }
}

/// What a way does with frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// Round trip; `None`: it swallows everything.
    pub(crate) rtt: Option<Duration>,
}

/// One probe on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probed {
    pub(crate) at: Duration,
    pub(crate) path: PathId,
    pub(crate) way: Way,
    pub(crate) sent_us: u64,
}

pub(crate) struct World {
    pub(crate) paths: PeerPaths,
    start: Instant,
    pub(crate) elapsed: Duration,
    pub(crate) links: BTreeMap<Way, Link>,
    /// Every probe that was ever sent.
    pub(crate) probes: Vec<Probed>,
    /// PONGs under way, by arrival.
    pongs: BTreeMap<(Duration, u64), PathId>,
}

impl World {
    /// Relay ways with their round trips; nothing is expected of them beforehand.
    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    pub(crate) fn new(links: &[(Way, Duration)]) -> Self {
        let mut this = Self {
            paths: PeerPaths::new(),
            start: Instant::now(),
            elapsed: Duration::ZERO,
            links: links.iter().map(|(way, rtt)| (*way, Link { rtt: Some(*rtt) })).collect(),
            probes: Vec::new(),
            pongs: BTreeMap::new(),
        };
        this.offer();
        this
    }

    /// Tells the core which ways there are.
    pub(crate) fn offer(&mut self) {
        let ways: Vec<RelayWay> = self
            .links
            .keys()
            .map(|way| match *way {
                Way::Relay { relay, hops } => RelayWay { relay, hops, expected: None },
                Way::Udp { .. } | Way::Tcp { .. } => panic!("direct ways are added by a proof"),
            })
            .collect();
        let now = self.now();
        self.paths.set_relays(&ways, now);
    }

    pub(crate) fn now(&self) -> Instant {
        self.start + self.elapsed
    }

    pub(crate) fn set_rtt(&mut self, way: Way, rtt: Option<Duration>) {
        self.links.insert(way, Link { rtt });
    }

    /// One packet of 1,400 bytes; returns where it goes.
    pub(crate) fn send(&mut self) -> Sending {
        let now = self.now();
        let sending = self.paths.send(1400, now);
        self.drain();
        sending
    }

    /// Whether a packet sent now arrives.
    pub(crate) fn arrives(&mut self) -> bool {
        let sending = self.send();
        let passes = |way: Option<Way>| way.is_some_and(|way| self.links.get(&way).is_some_and(|l| l.rtt.is_some()));
        passes(sending.first) || passes(sending.second)
    }

    pub(crate) fn current(&self) -> Option<Way> {
        self.paths.view().map(|view| view.way)
    }

    /// Lets time pass without packets.
    pub(crate) fn advance(&mut self, by: Duration) {
        let end = self.elapsed + by;
        for _ in 0..1_000_000 {
            self.drain();
            let timer = self.paths.poll_timeout().map(|at| at.saturating_duration_since(self.start));
            let pong = self.pongs.keys().next().map(|(at, _)| *at);
            let Some(next) = timer.into_iter().chain(pong).min().filter(|at| *at <= end) else {
                self.elapsed = end;
                return;
            };
            self.elapsed = self.elapsed.max(next);
            let now = self.now();
            if pong == Some(next) {
                let ((_, sent_us), path) = self.pongs.pop_first().unwrap();
                self.paths.pong(path, sent_us, free(1), now);
            } else {
                self.paths.handle_timeout(now);
            }
        }
        panic!("the timers spin at {:?}", self.elapsed);
    }

    /// Sends a packet every `interval` for `time`.
    pub(crate) fn stream(&mut self, time: Duration, interval: Duration) {
        let end = self.elapsed + time;
        while self.elapsed < end {
            self.send();
            self.advance(interval);
        }
    }

    fn drain(&mut self) {
        let now = self.now();
        while let Some(probe) = self.paths.next_probe(now) {
            let sent_us = self.probes.len() as u64;
            self.paths.probe_sent(probe.path, sent_us, now);
            self.probes.push(Probed { at: self.elapsed, path: probe.path, way: probe.way, sent_us });
            if let Some(rtt) = self.links.get(&probe.way).and_then(|link| link.rtt) {
                self.pongs.insert((self.elapsed + rtt, sent_us), probe.path);
            }
        }
    }
}
