//! P2P_KEEPALIVE: exactly 14 bytes, `version · type · src u32 · sequence u32 · timestamp u32` (specification §6.4,
//! DESIGN §1).
//!
//! It is neither a frame nor encrypted. It refreshes NAT mappings and proves nothing.

use crate::{FrameType, VERSION, WireError};
use edgelink_model::NodeId;

/// Length of the datagram.
pub const LEN: usize = 14;

/// A keepalive datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Who claims to send it.
    pub src: NodeId,
    /// Counts the sender's keepalives on this path.
    pub seq: u32,
    /// The sender's clock in ms, modulo 2^32.
    pub timestamp_ms: u32,
}

impl Keepalive {
    /// The datagram.
    pub fn encode(&self) -> [u8; LEN] {
        let mut datagram = [0; LEN];
        datagram[..2].copy_from_slice(&[VERSION, FrameType::P2pKeepalive.as_u8()]);
        datagram[2..6].copy_from_slice(&self.src.0.to_be_bytes());
        datagram[6..10].copy_from_slice(&self.seq.to_be_bytes());
        datagram[10..].copy_from_slice(&self.timestamp_ms.to_be_bytes());
        datagram
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// Another version or type, or any length but [`LEN`].
    pub fn parse(datagram: &[u8]) -> Result<Self, WireError> {
        let Some((&[version, ty], rest)) = datagram.split_first_chunk() else { return Err(WireError::Truncated) };
        if version != VERSION {
            return Err(WireError::UnsupportedVersion(version));
        }
        let ty = FrameType::from_u8(ty).ok_or(WireError::UnknownType(ty))?;
        if ty != FrameType::P2pKeepalive {
            return Err(WireError::UnexpectedType(ty));
        }
        let &[s0, s1, s2, s3, q0, q1, q2, q3, t0, t1, t2, t3] = rest else {
            return Err(WireError::BadLength(FrameType::P2pKeepalive));
        };
        Ok(Self {
            src: NodeId(u32::from_be_bytes([s0, s1, s2, s3])),
            seq: u32::from_be_bytes([q0, q1, q2, q3]),
            timestamp_ms: u32::from_be_bytes([t0, t1, t2, t3]),
        })
    }
}
