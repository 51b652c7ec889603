//! Packets and messages that were dropped, by reason: shown by `edgelink status`, never silent.

use std::collections::BTreeMap;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why something was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Drop { $($(#[$doc])* $name,)* }

        impl Drop {
            const NAMES: &'static [&'static str] = &[$($text),*];
        }
    };
}

reasons! {
    /// From the TUN: not an IP packet.
    NotIp = "not_ip",
    /// From the TUN: the source is not one of our addresses.
    ForeignSource = "foreign_source",
    /// From the TUN: no peer has the destination address.
    NoRoute = "no_route",
    /// From the TUN: the peer has announced no key yet, or we have none.
    NoSession = "no_session",
    /// From the TUN: larger than a frame can carry.
    TooLarge = "too_large",
    /// From the TUN: no relay is connected.
    NoPath = "no_path",
    /// From the TUN: the queue towards the relay or the peer is full; or an answer that the other end does not read.
    QueueFull = "queue_full",
    /// From the TUN: its flow keeps the way out of here busy; the sender is to slow down (CoDel).
    Codel = "codel",
    /// From the TUN: has waited for more than a second.
    TooOld = "too_old",
    /// From a relay: a malformed frame or message.
    Malformed = "malformed",
    /// From a relay: not for us.
    NotForUs = "not_for_us",
    /// From a relay: sealed under a key, or by a node, that we do not know (any more).
    UnknownKey = "unknown_key",
    /// By UDP: nothing of this protocol.
    ForeignDatagram = "foreign_datagram",
    /// By TCP: a connection that was not taken, or was not authenticated by whom it claimed to be from.
    RefusedStream = "refused_stream",
    /// From a relay: authentication failed.
    BadTag = "bad_tag",
    /// From a relay: seen before, or too old for the replay window.
    Replayed = "replayed",
    /// From a peer: the inner source is not its address (cryptokey routing).
    SpoofedSource = "spoofed_source",
    /// From a peer: the inner destination is not ours.
    ForeignDestination = "foreign_destination",
    /// From a peer: a super-packet whose header lies.
    BadSuperPacket = "bad_super_packet",
    /// From a peer: a key statement that was refused.
    RefusedStatement = "refused_statement",
    /// Towards the TUN: the kernel would not take it.
    TunWrite = "tun_write",
}

#[derive(Debug, Default)]
pub(crate) struct Drops([u64; Drop::NAMES.len()]);

impl Drops {
    pub(crate) fn count(&mut self, reason: Drop) {
        tracing::trace!(?reason, "dropped");
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += 1;
        }
    }

    /// Reasons that occurred, with their counts.
    pub(crate) fn report(&self) -> BTreeMap<String, u64> {
        let named = Drop::NAMES.iter().zip(self.0);
        named.filter(|(_, count)| *count > 0).map(|(name, count)| ((*name).to_owned(), count)).collect()
    }
}
