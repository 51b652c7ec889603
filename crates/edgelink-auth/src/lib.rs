//! Identities of EdgeLink: machine keys, node keys and their signed statements, challenges, and tokens (DESIGN §2, §3).
//!
//! No I/O, no clock and no randomness of its own: times (Unix seconds) and generators are arguments. Generators passed
//! to `generate` functions must be cryptographically secure; a seeded one belongs into tests and simulations only.
//! Secrets are zeroized when dropped and never appear in `Debug`, logs or errors.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | Ed25519, a device's lasting identity |
//! | [`node_key`] | X25519, lives in memory for a day |
//! | [`statement`] | "this node key is mine", signed by the machine key |
//! | [`challenge`] | what a machine key signs to authenticate |
//! | [`token`] | JWTs: made by the controller, verified by it and by relays; revocations |
//! | [`auth_key`] | pre-auth keys for enrolment |
//! | [`key_file`] | the machine key's file, as text |

#![forbid(unsafe_code)]

pub mod auth_key;
pub mod challenge;
pub mod key_file;
pub mod machine;
pub mod node_key;
pub mod password;
pub mod statement;
pub mod token;

pub use machine::{BadSignature, MachineKey, MachinePublic};
pub use node_key::{NodeKey, WeakKey};
pub use statement::{KeyStatement, SignedStatement, StatementError};

/// SHA-256.
pub(crate) fn sha256(data: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, data).as_ref());
    out
}
