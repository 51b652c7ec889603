//! The words that every EdgeLink crate speaks: identifiers, time, error codes, and the controller's records.
//!
//! Nothing here does I/O, reads a clock or draws randomness.

pub mod cidr;
pub mod error_code;
pub mod ids;
pub mod ipam;
pub mod records;
pub mod rtt;
pub mod time;

pub use error_code::ErrorCode;
pub use ids::{NetworkId, NodeId, ServerId};
pub use rtt::SmoothedRtt;
pub use time::{Now, UnixMillis};

/// Capability bits of a key statement (DESIGN §2). Unknown bits are carried and ignored.
pub mod capabilities {
    /// The peer accepts DATA frames whose plaintext is a virtio header and a TCP super-packet (DESIGN §6).
    pub const SUPER_PACKETS: u32 = 1 << 0;
    /// The peer accepts AES-256-GCM as session cipher.
    pub const AES_256_GCM: u32 = 1 << 1;
    /// The peer accepts UDP super-packets as well, beside TCP's (`docs/protocol.md`).
    pub const UDP_SUPER_PACKETS: u32 = 1 << 2;
}
