//! Control messages: Protocol Buffers in frames, compressed and split where that helps (DESIGN §1).

mod encode;
mod messages;
mod reassemble;
mod redact;

pub use encode::{Encode, encode, encode_into};
pub use messages::{ControlMessage, ControlPayload};
pub use reassemble::{Reassembler, Received};

/// The messages of `proto/edgelink.proto`, the public contract.
#[allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, reason = "generated")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/edgelink.v1.rs"));
}
