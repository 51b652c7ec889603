//! PING and PONG on WebSocket channels: `sent u64 · sequence u32` (DESIGN §1).

use crate::{Flags, FrameType, HEADER_LEN, VERSION, WireError};

/// Length of the payload.
pub const PAYLOAD_LEN: usize = 12;
/// Length of the whole frame.
pub const FRAME_LEN: usize = HEADER_LEN + PAYLOAD_LEN;

/// The payload of PING, and of the PONG that echoes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// When the PING was sent, in µs by a clock of the sender's own choice; means nothing to the receiver.
    pub sent_us: u64,
    /// Counts the sender's PINGs.
    pub seq: u32,
}

impl Ping {
    /// The whole frame; `ty` is [`FrameType::Ping`] or [`FrameType::Pong`].
    pub fn encode(&self, ty: FrameType) -> [u8; FRAME_LEN] {
        let mut frame = [0; FRAME_LEN];
        frame[..5].copy_from_slice(&[VERSION, ty.as_u8(), Flags::NONE.0, 0, PAYLOAD_LEN as u8]);
        frame[5..13].copy_from_slice(&self.sent_us.to_be_bytes());
        frame[13..].copy_from_slice(&self.seq.to_be_bytes());
        frame
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`WireError::BadLength`] unless it is exactly [`PAYLOAD_LEN`] bytes.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let &[s0, s1, s2, s3, s4, s5, s6, s7, q0, q1, q2, q3] = payload else {
            return Err(WireError::BadLength(FrameType::Ping));
        };
        Ok(Self {
            sent_us: u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            seq: u32::from_be_bytes([q0, q1, q2, q3]),
        })
    }
}

/// See [`Ping::parse`].
///
/// # Errors
/// As there.
pub fn parse(payload: &[u8]) -> Result<Ping, WireError> {
    Ping::parse(payload)
}
