//! The host has moved to another network, or has slept (DESIGN §5): nobody waits until silence tells.

use crate::Node;
use crate::link::{LinkId, Target};
use crate::timers::Timer;
use edgelink_model::{Now, ServerId};
use std::time::Duration;

/// A deadline that is met so late was slept through.
pub(crate) const LATE: Duration = Duration::from_secs(3);
/// After sleep a connection must say something within this time, or four round trips.
const AWAKE: Duration = Duration::from_secs(1);
const STRANDED: &str = "this host has another address or way out now";

impl Node {
    /// Packets leave this host by another address than these connections have, or not at all: they are made anew, at once,
    /// as are those that wait for their next attempt.
    pub fn links_stranded(&mut self, links: &[LinkId], now: Now, rng: &mut impl rand_core::Rng) {
        for link in links {
            match self.links.get(link).map(|link| link.target()) {
                Some(Target::Control) => self.drop_control(*link, STRANDED, now, rng),
                Some(Target::Relay { id, .. }) => self.drop_relay(*id, *link, STRANDED, now, rng),
                Some(Target::Neighbour { .. }) => self.close_stream(*link, STRANDED, now),
                None => {}
            }
        }
        self.redial(now);
    }

    /// The host was suspended: connections must prove that they live, what the world sees of us is found out anew, and
    /// every path is probed. Also called when a deadline is met more than 3 s late.
    pub fn resumed(&mut self, now: Now) {
        tracing::info!("this host has slept, or was very busy: looking whether everything is still there");
        self.redial(now);
        self.check_control(AWAKE, now);
        let relays: Vec<ServerId> = self.relays.keys().copied().collect();
        for id in relays {
            self.check_relay_within(id, AWAKE, now);
        }
        self.uplink_changed(now);
    }

    /// What waits for its next attempt is dialled now.
    fn redial(&mut self, now: Now) {
        for (id, relay) in &mut self.relays {
            if relay.link().is_none() {
                relay.restart_backoff();
                self.timers.set(Timer::Relay(*id), now.mono);
            }
        }
        self.redial_control(now);
    }
}
