//! Links to other relays: whom to dial, which link counts, how far away they are (specification §2.4.2).
//!
//! The relay with the lower id dials. One link per pair counts; should there be two connections (a configured
//! `mesh.peers` URL may be dialled by the higher id as well), both sides keep the one that the lower id dialled, and of
//! two by the same side the newer one. A link's end touches the link only if it is still the one that counts.

use crate::connection::{Connection, State, TokenFacts};
use crate::event::{CloseReason, ConnId, ConnectError, DialId, RelayEvent};
use crate::relay::Relay;
use bytes::Bytes;
use edgelink_model::{ErrorCode, Now, ServerId, SmoothedRtt};
use edgelink_wire::FrameType;
use edgelink_wire::control::proto;
use edgelink_wire::ping::Ping;
use rand_core::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The first wait after a link was lost; doubled with each failure …
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// … up to this while the outage is young, so that a restarted relay is found within a second …
const QUICK_RETRY: Duration = Duration::from_secs(1);
const QUICK_RETRIES: u32 = 120;
/// … and this later.
const SLOW_RETRY: Duration = Duration::from_secs(30);
/// A link that lasted so long ends the outage.
const STABLE: Duration = Duration::from_secs(10);
/// A round trip that differs much, as the first one after an outage does, is looked at again so soon: the controller computes
/// paths from it.
const DOUBT: Duration = Duration::from_secs(1);

/// What is known of other relays.
#[derive(Debug, Default)]
pub(crate) struct Mesh {
    /// Relays in the controller's list; `None` until there was one.
    pub(crate) known: Option<BTreeSet<ServerId>>,
    pub(crate) tokens: BTreeMap<ServerId, proto::MeshToken>,
    targets: BTreeMap<Key, Target>,
    pub(crate) links: BTreeMap<ServerId, ConnId>,
    next_dial: u64,
    /// When to look at the targets; may be early.
    pub(crate) wake: Option<Instant>,
}

/// Whom to dial: relays of the controller's list, and configured URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Relay(ServerId),
    Static(usize),
}

#[derive(Debug)]
struct Target {
    /// Which relay it is; for configured URLs once it has said so.
    relay: Option<ServerId>,
    url: String,
    path: String,
    state: Dial,
    failures: u32,
    /// Drawn when the shell last reported, for the next wait.
    jitter: u32,
}

#[derive(Debug)]
enum Dial {
    /// To be dialled at that time.
    Waiting(Instant),
    Dialling(DialId),
    Connected(ConnId),
    /// Linked by another connection.
    Parked,
}

/// A connection that this relay dialled, not authenticated yet.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) since: Instant,
    pub(crate) key: Key,
    /// The relay for which a token was shown; before, it is asked who it is.
    pub(crate) shown_to: Option<ServerId>,
}

/// An open link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: ServerId,
    /// Who dialled: `Some` if this relay did.
    pub(crate) key: Option<Key>,
    /// The token that the other side showed.
    pub(crate) token: Option<TokenFacts>,
    pub(crate) since: Instant,
    pub(crate) rtt: SmoothedRtt,
    seq: u32,
    /// The last PING: when, and whether it was answered.
    last_ping: Instant,
    in_flight: bool,
    next_ping: Instant,
    /// Since when nothing has come although a PING was sent.
    pub(crate) unanswered_since: Option<Instant>,
    /// Frames have been sent since the last PING.
    carried: bool,
    /// The other relay has said that it is about to end.
    pub(crate) leaving: bool,
}

/// A link as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshLink {
    /// The other relay.
    pub relay: ServerId,
    /// Its connection.
    pub conn: ConnId,
    /// Smoothed round-trip time in µs, once measured.
    pub rtt_us: Option<u64>,
}

impl Relay {
    /// Configured URLs of other relays' `/ws/mesh`, beside those that the controller tells. Call once, at the start.
    pub fn set_static_peers(&mut self, urls: impl IntoIterator<Item = String>, now: Now) {
        for (n, url) in urls.into_iter().take(self.config.limits.mesh_peers).enumerate() {
            self.mesh.targets.insert(Key::Static(n), Target::new(None, url, String::new(), now.mono));
        }
        self.mesh.wake_at(now.mono);
    }

    /// Another relay connected to `/ws/mesh`. `remote` as in [`Relay::connect`].
    ///
    /// # Errors
    /// Limits are reached; the connection does not exist then.
    pub fn connect_mesh(&mut self, remote: Option<IpAddr>, now: Now) -> Result<ConnId, ConnectError> {
        self.may_connect(remote)?;
        self.count_unauthenticated(remote);
        let state = State::MeshAccepted { since: now.mono };
        let conn = self.insert(|serial| Connection::mesh(serial, remote, state, now.mono));
        self.schedule(conn, now.mono + self.config.limits.handshake_timeout);
        Ok(conn)
    }

    /// The shell has a WebSocket to the relay that [`RelayEvent::DialMesh`] named. `None`: not wanted any more, close it.
    pub fn mesh_dialled(&mut self, dial: DialId, now: Now, rng: &mut impl Rng) -> Option<ConnId> {
        let (key, target) = self.mesh.dialling(dial)?;
        target.jitter = rng.next_u32();
        let relay = target.relay.filter(|_| matches!(key, Key::Relay(_)));
        let token = match relay {
            Some(relay) => self.mesh.tokens.get(&relay).map(|token| token.token.clone()),
            None => None,
        };
        if relay.is_some() && token.is_none() {
            self.mesh.retry(key, now.mono);
            return None;
        }
        let dialled = Dialled { since: now.mono, key, shown_to: relay };
        let conn =
            self.insert(|serial| Connection::mesh(serial, None, State::MeshDialled(Box::new(dialled)), now.mono));
        if let Some(target) = self.mesh.targets.get_mut(&key) {
            target.state = Dial::Connected(conn);
        }
        self.schedule(conn, now.mono + self.config.limits.handshake_timeout);
        // Without a token: who are you?
        self.send_mesh_token(conn, token.unwrap_or_default(), now);
        Some(conn)
    }

    /// The shell could not reach the relay.
    pub fn mesh_dial_failed(&mut self, dial: DialId, now: Now, rng: &mut impl Rng) {
        if let Some((key, target)) = self.mesh.dialling(dial) {
            target.jitter = rng.next_u32();
            self.mesh.retry(key, now.mono);
        }
    }

    /// The links to other relays.
    pub fn mesh_links(&self) -> impl Iterator<Item = MeshLink> + '_ {
        self.mesh.links.iter().map(|(relay, conn)| MeshLink {
            relay: *relay,
            conn: *conn,
            rtt_us: self.get(*conn).and_then(Connection::link).and_then(|link| link.rtt.get()),
        })
    }

    /// The controller's list of relays: links with others end, and are not accepted any more.
    pub(crate) fn set_known_relays(&mut self, known: BTreeSet<ServerId>, now: Now) {
        self.mesh.tokens.retain(|id, _| known.contains(id));
        self.mesh.targets.retain(|key, _| !matches!(key, Key::Relay(id) if !known.contains(id)));
        let gone: Vec<ConnId> =
            self.mesh.links.iter().filter(|(id, _)| !known.contains(id)).map(|(_, conn)| *conn).collect();
        self.mesh.known = Some(known);
        for conn in gone {
            self.close(conn, CloseReason::NotWanted, None, now);
        }
    }

    /// Fresh mesh tokens, with where the relays are: dialled if their id is higher than ours.
    pub(crate) fn set_mesh_tokens(&mut self, tokens: Vec<proto::MeshToken>, now: Now) {
        let (me, limit) = (self.config.id, self.config.limits.mesh_peers);
        if !self.config.meshed {
            return;
        }
        for token in tokens {
            let id = ServerId(token.server_id);
            let unknown = self.mesh.known.as_ref().is_some_and(|known| !known.contains(&id));
            if id == me || unknown || (self.mesh.tokens.len() >= limit && !self.mesh.tokens.contains_key(&id)) {
                continue;
            }
            let reachable = !token.url.is_empty() || !token.path.is_empty();
            if me < id && reachable {
                let (url, path) = (token.url.clone(), token.path.clone());
                match self.mesh.targets.get_mut(&Key::Relay(id)) {
                    Some(target) => (target.url, target.path) = (url, path),
                    None => {
                        self.mesh.targets.insert(Key::Relay(id), Target::new(Some(id), url, path, now.mono));
                        self.mesh.wake_at(now.mono);
                    }
                }
            }
            // The other side lets a link live as long as the token that it was shown.
            let dialled = self
                .mesh
                .links
                .get(&id)
                .copied()
                .filter(|conn| self.get(*conn).and_then(Connection::link).is_some_and(|link| link.key.is_some()));
            if let Some(conn) = dialled {
                self.send_mesh_token(conn, token.token.clone(), now);
            }
            self.mesh.tokens.insert(id, token);
        }
    }

    /// Dials what is due.
    pub(crate) fn dial_due(&mut self, now: Now) {
        if self.mesh.wake.is_none_or(|at| at > now.mono) {
            return;
        }
        self.mesh.wake = None;
        let Mesh { targets, links, next_dial, wake, .. } = &mut self.mesh;
        for target in targets.values_mut() {
            let Dial::Waiting(at) = target.state else { continue };
            if at > now.mono {
                *wake = Some(wake.map_or(at, |other| other.min(at)));
                continue;
            }
            if target.relay.is_some_and(|relay| links.contains_key(&relay)) {
                target.state = Dial::Parked;
                continue;
            }
            let dial = DialId(*next_dial);
            *next_dial += 1;
            target.state = Dial::Dialling(dial);
            let (relay, url, path) = (target.relay, target.url.clone(), target.path.clone());
            self.events.push_back(RelayEvent::DialMesh { dial, relay, url, path });
        }
    }

    /// Both sides are authenticated. Tells whether the link is the one that counts; if not, it is closed.
    pub(crate) fn link_up(
        &mut self,
        conn: ConnId,
        peer: ServerId,
        key: Option<Key>,
        token: Option<TokenFacts>,
        now: Now,
    ) -> bool {
        let me = self.config.id;
        let by_lower = |dialled: bool| dialled == (me < peer);
        let former = self.mesh.links.get(&peer).copied();
        let former_by_lower = former
            .and_then(|former| self.get(former))
            .and_then(Connection::link)
            .is_some_and(|link| by_lower(link.key.is_some()));
        if let (Some(Key::Static(_)), Some(target)) = (key, key.and_then(|key| self.mesh.targets.get_mut(&key))) {
            target.relay = Some(peer);
        }
        if former_by_lower && !by_lower(key.is_some()) {
            let error = proto::Error::new(ErrorCode::Unavailable, 0, "these two relays are linked already");
            self.close(conn, CloseReason::Duplicate, Some(&error), now);
            return false;
        }
        let link = Link {
            peer,
            key,
            token,
            since: now.mono,
            rtt: SmoothedRtt::new(),
            seq: 0,
            last_ping: now.mono,
            in_flight: false,
            next_ping: now.mono,
            unanswered_since: None,
            carried: false,
            leaving: false,
        };
        if let Some(connection) = self.get_mut(conn) {
            connection.state = State::Mesh(Box::new(link));
        }
        self.mesh.links.insert(peer, conn);
        if let Some(former) = former {
            if let Ok([old, new]) = self.connections.get_disjoint_mut([former.slot, conn.slot]) {
                new.queue.inherit(&mut old.queue);
            }
            self.close(former, CloseReason::Replaced, None, now);
        }
        self.events.push_back(RelayEvent::MeshUp { conn, relay: peer, replaced: former });
        self.ping_link(conn, now);
        self.wake_sender(conn, now);
        true
    }

    /// A connection that was, or was to become, a link is gone.
    pub(crate) fn link_gone(&mut self, conn: ConnId, state: &State, now: Now) {
        if let State::Mesh(link) = state
            && self.mesh.links.get(&link.peer) == Some(&conn)
        {
            self.mesh.links.remove(&link.peer);
            self.events.push_back(RelayEvent::MeshDown { conn, relay: link.peer });
            self.latency_changed(now);
            let stable = now.mono.saturating_duration_since(link.since) >= STABLE;
            for (key, target) in &mut self.mesh.targets {
                if stable && Some(*key) == link.key {
                    target.failures = 0;
                }
            }
            let same = |target: &Target| target.relay == Some(link.peer) && matches!(target.state, Dial::Parked);
            let parked: Vec<Key> =
                self.mesh.targets.iter().filter(|(_, target)| same(target)).map(|(key, _)| *key).collect();
            for key in parked {
                self.mesh.retry(key, now.mono);
            }
        }
        let ended = |target: &Target| matches!(target.state, Dial::Connected(theirs) if theirs == conn);
        let key = self.mesh.targets.iter().find(|(_, target)| ended(target)).map(|(key, _)| *key);
        if let Some(key) = key {
            self.mesh.retry(key, now.mono);
        }
    }

    /// Probes a link if it is time to.
    pub(crate) fn ping_due(&mut self, conn: ConnId, now: Now) {
        if self.get(conn).and_then(Connection::link).is_some_and(|link| link.next_ping <= now.mono) {
            self.ping_link(conn, now);
        }
    }

    fn ping_link(&mut self, conn: ConnId, now: Now) {
        let (idle, busy) = (self.config.limits.mesh_ping_idle, self.config.limits.mesh_ping_busy);
        let Some(link) = self.get_mut(conn).and_then(Connection::link_mut) else { return };
        link.seq = link.seq.wrapping_add(1);
        let quiet = !link.carried && link.unanswered_since.is_none();
        link.unanswered_since.get_or_insert(now.mono);
        (link.last_ping, link.in_flight, link.carried) = (now.mono, true, false);
        // A PING that stays without an answer is repeated soon.
        link.next_ping = now.mono + if quiet { idle } else { busy };
        let sent_us = u64::try_from(now.mono.saturating_duration_since(link.since).as_micros()).unwrap_or(u64::MAX);
        let ping = Ping { sent_us, seq: link.seq };
        self.send(conn, Bytes::copy_from_slice(&ping.encode(FrameType::Ping)), now);
        self.schedule_link(conn);
    }

    /// A frame came over a link.
    pub(crate) fn heard_from_link(&mut self, conn: ConnId) {
        if let Some(link) = self.get_mut(conn).and_then(Connection::link_mut) {
            link.unanswered_since = None;
        }
    }

    /// A PONG came over a link.
    pub(crate) fn link_pong(&mut self, conn: ConnId, pong: Ping, now: Now) {
        let Some(link) = self.get_mut(conn).and_then(Connection::link_mut) else { return };
        if !link.in_flight || pong.seq != link.seq {
            return;
        }
        link.in_flight = false;
        let sample = now.mono.saturating_duration_since(link.last_ping).as_micros();
        link.rtt.update(u64::try_from(sample).unwrap_or(u64::MAX));
        if link.rtt.is_in_doubt() {
            link.next_ping = link.next_ping.min(now.mono + DOUBT);
            self.schedule_link(conn);
        }
        self.latency_changed(now);
    }

    /// Frames are on their way over a link: probe it more often.
    pub(crate) fn link_carries(&mut self, conn: ConnId) {
        let busy = self.config.limits.mesh_ping_busy;
        let Some(link) = self.get_mut(conn).and_then(Connection::link_mut) else { return };
        if !link.carried {
            link.carried = true;
            link.next_ping = link.next_ping.min(link.last_ping + busy);
            self.schedule_link(conn);
        }
    }

    pub(crate) fn schedule_link(&mut self, conn: ConnId) {
        let dead = self.config.limits.mesh_dead;
        let Some(link) = self.get(conn).and_then(Connection::link) else { return };
        let at = link.unanswered_since.map_or(link.next_ping, |since| link.next_ping.min(since + dead));
        self.schedule(conn, at);
    }
}

impl Mesh {
    pub(crate) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |other| other.min(at)));
    }

    fn dialling(&mut self, dial: DialId) -> Option<(Key, &mut Target)> {
        self.targets
            .iter_mut()
            .find(|(_, target)| matches!(target.state, Dial::Dialling(theirs) if theirs == dial))
            .map(|(key, target)| (*key, target))
    }

    /// Dials again after a while.
    fn retry(&mut self, key: Key, now: Instant) {
        let Some(target) = self.targets.get_mut(&key) else { return };
        let ceiling = if target.failures < QUICK_RETRIES { QUICK_RETRY } else { SLOW_RETRY };
        let interval = FIRST_RETRY.saturating_mul(1 << target.failures.min(16)).min(ceiling);
        target.failures = target.failures.saturating_add(1);
        let at = now + interval / 2 + interval.mul_f64(f64::from(target.jitter) / f64::from(u32::MAX) / 2.0);
        target.state = Dial::Waiting(at);
        self.wake_at(at);
    }
}

impl Target {
    fn new(relay: Option<ServerId>, url: String, path: String, now: Instant) -> Self {
        Self { relay, url, path, state: Dial::Waiting(now), failures: 0, jitter: 0 }
    }
}
