//! The WSS-Mesh wire format (specification §8, DESIGN §1): bytes in, values out, and back.
//!
//! A WebSocket message or a UDP datagram is taken apart by [`frames`], [`frames_mut`] and [`udp::demux`]; payloads are
//! read by the module named after their frame type, control payloads by [`control`]. Inside DATA lie IP packets
//! ([`packet`]) or super-packets ([`virtio`]). `docs/protocol.md` tells the same for people, with golden byte vectors
//! that this crate's tests read from there.
//!
//! Nothing here does I/O, reads a clock or draws randomness, and nothing that arrives from a wire can make it panic.

#![forbid(unsafe_code)]

pub mod control;
pub mod data;
mod error;
mod frame;
mod frame_type;
pub mod icmp;
pub mod keepalive;
pub mod key_announce;
pub mod packet;
pub mod ping;
pub mod probe;
pub mod stun;
pub mod udp;
pub mod virtio;

pub use error::WireError;
pub use frame::{Frame, FrameMut, Frames, FramesMut, frames, frames_mut, put_frame};
pub use frame_type::{Flags, FrameType};

/// The protocol version, first byte of every frame.
pub const VERSION: u8 = 1;
/// Length of a frame's header: version, type, flags, payload length (u16).
pub const HEADER_LEN: usize = 5;
/// The most bytes that one frame's payload can have.
pub const MAX_PAYLOAD: usize = 65_535;
/// The most bytes that a control message may have, before and after decompression (DESIGN §1).
pub const MAX_REASSEMBLED: usize = 8 << 20;
/// The WebSocket subprotocol that negotiates this version (DESIGN §1).
pub const SUBPROTOCOL: &str = "wss-mesh.1";
