//! Counters, as `/metrics` shows them.

macro_rules! reasons {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every one of them.
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$variant),*];

            /// A word for logs and metric labels.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

reasons! {
    /// Why a frame was not delivered.
    pub enum DropReason {
        /// Its source is not the node that sent it; over the mesh: is not known to be at the relay that sent it.
        ForgedSource = "forged_source",
        /// Its destination is not connected to this relay.
        NotConnected = "not_connected",
        /// Its destination is connected, but belongs to another network.
        OtherNetwork = "other_network",
        /// A KEY_ANNOUNCE beyond its rate.
        RateLimited = "rate_limited",
        /// A type that does not belong on this channel.
        Unexpected = "unexpected_type",
        /// A type that this version does not know.
        UnknownType = "unknown_type",
        /// It waited longer than the bound.
        TooOld = "too_old",
        /// CoDel shortened a standing queue.
        Codel = "codel",
        /// The receiver's queue was full.
        QueueFull = "queue_full",
        /// The budget of all queues was used up.
        Budget = "budget",
        /// The receiver's connection ended before it was sent.
        Closed = "closed",
    }
}

/// How many frames were dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// Frames dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or_default()
    }

    /// Every reason with its count, zeros included.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().map(|reason| (reason, self.get(reason)))
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) fn add(&mut self, reason: DropReason, frames: u64) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += frames;
        }
    }
}

reasons! {
    /// What ends a connection, without its details.
    pub enum CloseKind {
        /// Authentication failed.
        Refused = "refused",
        /// The peer broke the protocol.
        Protocol = "protocol",
        /// Not authenticated in time.
        HandshakeTimeout = "handshake_timeout",
        /// No frame for too long.
        Idle = "idle",
        /// It took nothing for too long.
        Stalled = "stalled",
        /// The token is past its expiry.
        TokenExpired = "token_expired",
        /// The token was revoked.
        Revoked = "revoked",
        /// The node or relay has a newer connection.
        Replaced = "replaced",
        /// Two relays are linked already.
        Duplicate = "duplicate",
        /// The other relay is not one to link with.
        NotWanted = "not_wanted",
    }
}

/// What the relay has done since it started, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Connections now, authenticated or not, closing ones included.
    pub connections: usize,
    /// Authenticated nodes now.
    pub nodes: usize,
    /// Links to other relays now.
    pub mesh_links: usize,
    /// Nodes whose relays are known now.
    pub locations: usize,
    /// Memory that queued frames keep alive now, in bytes.
    pub queued_bytes: usize,
    /// Messages received.
    pub messages: u64,
    /// Frames accepted for forwarding.
    pub forwarded_frames: u64,
    /// Those of them that were DATA: what ends when nodes have moved to other relays.
    pub forwarded_data_frames: u64,
    /// Their bytes, headers included.
    pub forwarded_bytes: u64,
    /// Of the forwarded frames, those sent to another relay.
    pub mesh_out_frames: u64,
    /// Of the forwarded frames, those that came from another relay.
    pub mesh_in_frames: u64,
    /// Bytes handed out to be sent, the relay's own answers included.
    pub sent_bytes: u64,
    /// Successful authentications.
    pub authentications: u64,
    /// Tokens refreshed on living connections.
    pub refreshes: u64,
    /// Connections refused at once.
    pub refused_connections: u64,
    /// ERROR frames queued.
    pub errors: u64,
    /// Frames dropped.
    pub drops: Drops,
    pub(crate) closes: [u64; CloseKind::ALL.len()],
}

impl RelayStats {
    /// Connections that the relay closed, by reason.
    pub fn closes(&self) -> impl Iterator<Item = (CloseKind, u64)> {
        CloseKind::ALL.into_iter().zip(self.closes)
    }

    pub(crate) fn count_close(&mut self, kind: CloseKind) {
        if let Some(count) = self.closes.get_mut(kind as usize) {
            *count += 1;
        }
    }
}
