//! WSS-Mesh end-to-end sessions (DESIGN §2): who may say which key is whose ([`trust`]), the keys that follow from two
//! key statements, sealing and opening frames in place, replay windows, and what a rotation means for all of these.
//!
//! Sans I/O: no clock, no randomness, no tokio. The owner of a [`SessionTable`]
//!
//! 1. gives it our key and statement ([`SessionTable::set_local`]) at start and at each rotation,
//! 2. gives it the statements of peers that [`trust::PinStore`] lets pass ([`SessionTable::set_peer`]),
//! 3. seals ([`SessionTable::sealer`]) and opens ([`SessionTable::open`]) whole frames,
//! 4. calls [`SessionTable::handle_timeout`] at [`SessionTable::poll_timeout`].
//!
//! A *session* is a pair of key statements, ours and the peer's; it has one key per direction. At most four of a peer
//! are alive: {current, previous} × {current, previous}. The table keeps these promises whatever its owner does:
//!
//! - No nonce is used twice under a key. A key belongs to one pair of statements, its counter never goes back, and
//!   it is remembered when the peer is removed and comes back, until our own key is discarded.
//! - No frame is delivered twice; every authentic frame inside the window is delivered once.
//! - Nothing about a peer changes before a tag has been verified: not the window, not the confirmation.
//! - Our previous key is erased at most a rotation after its successor came or at its statement's end, and usually five
//!   minutes after every peer has confirmed the successor; the sessions go with it.
//!
//! No packet costs an allocation, except when two of one peer's four sessions happen to have the same 4-byte prefix.

#![forbid(unsafe_code)]

mod crypto;
mod error;
mod peer;
mod session;
mod table;
pub mod trust;
mod window;

pub use error::{OpenError, SealError, SessionError};
pub use session::Sealer;
pub use table::{Opened, PeerChange, SessionConfig, SessionTable};
pub use window::{DEFAULT_WINDOW, MAX_WINDOW, MIN_WINDOW};

use std::time::Duration;

/// How long a superseded session still receives.
pub const SUPERSEDED_FOR: Duration = Duration::from_secs(5 * 60);
/// Send counter from which [`SessionTable::rekey_due`] asks for a new node key.
pub const REKEY_AFTER: u64 = 1 << 60;
/// The same under AES-256-GCM, whose security falls with the square of the blocks sealed under a key.
pub const AES_REKEY_AFTER: u64 = 1 << 32;
/// First counter that is never used, sent or received.
pub const COUNTER_LIMIT: u64 = u64::MAX - (1 << 13);

#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod vectors;
