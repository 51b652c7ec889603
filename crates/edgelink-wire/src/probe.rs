//! The plaintext of P2P_PING and P2P_PONG: `path u32 · sent u64`, then room to grow (DESIGN §1).

use crate::{FrameType, WireError};

/// Length without padding.
pub const LEN: usize = 12;

/// A probe of one path, or the echo of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The path that the sender of the P2P_PING probes, by its own numbering; echoed.
    pub path: u32,
    /// When the P2P_PING was sent, in µs by a clock of its sender's own choice; echoed.
    pub sent_us: u64,
}

impl Probe {
    /// The shortest plaintext. A sender may append zeros, so as to probe the path's MTU.
    pub fn encode(&self) -> [u8; LEN] {
        let mut plaintext = [0; LEN];
        plaintext[..4].copy_from_slice(&self.path.to_be_bytes());
        plaintext[4..].copy_from_slice(&self.sent_us.to_be_bytes());
        plaintext
    }

    /// Reads a plaintext; what follows the first [`LEN`] bytes is ignored.
    ///
    /// # Errors
    /// [`WireError::BadLength`] when it is shorter.
    pub fn parse(plaintext: &[u8]) -> Result<Self, WireError> {
        let Some(&[p0, p1, p2, p3, s0, s1, s2, s3, s4, s5, s6, s7]) = plaintext.first_chunk::<LEN>() else {
            return Err(WireError::BadLength(FrameType::P2pPing));
        };
        Ok(Self {
            path: u32::from_be_bytes([p0, p1, p2, p3]),
            sent_us: u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        })
    }
}
