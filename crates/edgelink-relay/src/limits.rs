//! What a relay is willing to hold and to wait for (DESIGN §6). Everything is settable.

use crate::queue::RUN_OVERHEAD;
use crate::rate::Rate;
use edgelink_model::ServerId;
use edgelink_queue::CodelParams;
use std::time::Duration;

/// How a relay is set up.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Who this relay is; a relay_token must allow it.
    pub id: ServerId,
    /// Bounds on memory, time and rates.
    pub limits: Limits,
    /// How long past its expiry a relay_token is honoured while the controller is lost (DESIGN §3).
    pub expired_grace: Duration,
    /// How long that goes on after its return, so that nodes have time to fetch fresh tokens.
    pub refresh_time: Duration,
    /// Whether it links with other relays; a server that only answers STUN does not.
    pub meshed: bool,
}

impl RelayConfig {
    /// The defaults for relay `id`.
    pub fn new(id: ServerId) -> Self {
        Self {
            id,
            limits: Limits::DEFAULT,
            expired_grace: Duration::from_secs(24 * 3600),
            refresh_time: Duration::from_secs(60),
            meshed: true,
        }
    }
}

impl Default for RelayConfig {
    /// The defaults for the relay 0, which no token allows: set [`RelayConfig::id`].
    fn default() -> Self {
        Self::new(ServerId(0))
    }
}

/// Bounds on memory, time and rates.
///
/// **Memory.** Queued frames keep the messages alive that they arrived in; [`Limits::queued_total`] counts those whole
/// messages, so it bounds the memory itself, not just the bytes that will be sent. Beside it each connection costs its
/// state and rate limiters: [`Limits::worst_case`] adds up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest WebSocket message, in bytes. At most [`Limits::data_queue`].
    pub message: usize,
    /// The largest frame, header included, before authentication.
    pub handshake_frame: usize,
    /// From connect to authenticated.
    pub handshake_timeout: Duration,
    /// Connections that are not authenticated yet, per IPv4 address or IPv6 /64.
    pub unauthenticated_per_address: u32,
    /// Connections that are not authenticated yet, in all.
    pub unauthenticated: usize,
    /// Connections in all.
    pub connections: usize,
    /// A connection on which no frame arrives for so long is closed.
    pub idle_timeout: Duration,
    /// A receiver that takes nothing for so long while something is queued for it is closed.
    pub stall_timeout: Duration,
    /// Data queued for one connection, in bytes (with 192 for each run of frames).
    pub data_queue: usize,
    /// Data queued for a receiver that takes it so fast that more than [`Limits::data_queue`] are 300 ms of it: that much, but
    /// no more than this. It is room for bursts; CoDel shortens what stays.
    pub fast_data_queue: usize,
    /// The relay's own answers and P2P signalling queued for one connection, likewise.
    pub control_queue: usize,
    /// Data queued for one mesh link, likewise; of it no flow may have more than [`Limits::data_queue`], or 300 ms.
    pub mesh_queue: usize,
    /// Signalling queued for one mesh link.
    pub mesh_control_queue: usize,
    /// What all queues together may keep in memory, in bytes. A queue may also have no more than what is left of it, so
    /// that many slow receivers together always leave room for the others.
    pub queued_total: usize,
    /// No frame is delivered that has waited longer.
    pub max_sojourn: Duration,
    /// CoDel's target: waiting for so long is no longer a burst …
    pub codel_target: Duration,
    /// … if it goes on for so long.
    pub codel_interval: Duration,
    /// KEY_ANNOUNCE per source and destination.
    pub announces: Rate,
    /// Destinations for which a source's announces are tracked at once; announces for others are dropped meanwhile.
    pub announce_destinations: usize,
    /// ERROR 3002 per source and destination.
    pub offline_errors: Rate,
    /// Destinations for which these are tracked at once; there is no ERROR for others meanwhile.
    pub offline_destinations: usize,
    /// ERROR 2002 on a connection that stays.
    pub complaints: Rate,
    /// Checks of a fresh relay_token on a living connection.
    pub refreshes: Rate,
    /// Relays that this one links with.
    pub mesh_peers: usize,
    /// Nodes whose relays are remembered.
    pub locations: usize,
    /// A mesh link is probed with PING this often (specification §2.4.2: 30 s; DESIGN §9: at most 25 s apart) …
    pub mesh_ping_idle: Duration,
    /// … and this often while it carries frames.
    pub mesh_ping_busy: Duration,
    /// A mesh link on which nothing came for so long after a PING is closed.
    pub mesh_dead: Duration,
    /// A node that another relay says is not connected there is not sought there again for so long.
    pub mesh_absent: Duration,
}

impl Limits {
    /// The defaults of DESIGN §6.
    pub const DEFAULT: Self = Self {
        message: 256 << 10,
        handshake_frame: 4 << 10,
        handshake_timeout: Duration::from_secs(10),
        unauthenticated_per_address: 20,
        unauthenticated: 1_024,
        connections: 16_384,
        idle_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(15),
        data_queue: 1 << 20,
        fast_data_queue: 8 << 20,
        control_queue: 64 << 10,
        mesh_queue: 4 << 20,
        mesh_control_queue: 512 << 10,
        queued_total: 256 << 20,
        max_sojourn: Duration::from_secs(1),
        codel_target: Duration::from_millis(15),
        codel_interval: Duration::from_millis(200),
        announces: Rate { period: Duration::from_millis(250), burst: 8 },
        announce_destinations: 1_024,
        offline_errors: Rate { period: Duration::from_secs(1), burst: 1 },
        offline_destinations: 256,
        complaints: Rate { period: Duration::from_millis(250), burst: 8 },
        refreshes: Rate { period: Duration::from_secs(1), burst: 4 },
        mesh_peers: 256,
        locations: 1 << 20,
        mesh_ping_idle: Duration::from_secs(25),
        mesh_ping_busy: Duration::from_secs(5),
        mesh_dead: Duration::from_secs(10),
        mesh_absent: Duration::from_secs(1),
    };

    /// Bytes that one connection takes beside its queued frames, at worst: its state, the token's claims and its rate
    /// limiters (a hash table of at most twice its entries' size).
    pub const fn per_connection(&self) -> usize {
        const STATE: usize = 4 << 10;
        const RATE_ENTRY: usize = 2 * 32;
        // What an emptied queue keeps for the next burst.
        const KEPT_SLOTS: usize = 2 * 2 * crate::queue::KEPT_RUNS * RUN_OVERHEAD;
        STATE + KEPT_SLOTS + RATE_ENTRY * (self.announce_destinations + self.offline_destinations)
    }

    /// Bytes that the relay core holds at worst with `connections` of them, the location cache apart (about 100 for each
    /// of [`Limits::locations`]).
    pub const fn worst_case(&self, connections: usize) -> usize {
        self.queued_total + connections * self.per_connection()
    }

    pub(crate) fn codel(&self) -> CodelParams {
        CodelParams { target: self.codel_target, interval: self.codel_interval }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

// A message that is allowed fits an empty queue, and the largest frame fits a message.
const _: () = assert!(Limits::DEFAULT.message + RUN_OVERHEAD <= Limits::DEFAULT.data_queue);
const _: () = assert!(Limits::DEFAULT.message + RUN_OVERHEAD <= Limits::DEFAULT.mesh_queue / 2);
const _: () = assert!(Limits::DEFAULT.message >= edgelink_wire::HEADER_LEN + edgelink_wire::MAX_PAYLOAD);
// A thousand nodes, every queue as full as it gets and every rate limiter too: under 400 MiB.
const _: () = assert!(Limits::DEFAULT.worst_case(1_000) < 400 << 20);
