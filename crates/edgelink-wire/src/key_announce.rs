//! KEY_ANNOUNCE: `src u32 · dst u32 · statement 120 · signature 64` (DESIGN §2).

use crate::{Flags, FrameType, HEADER_LEN, VERSION, WireError};
use edgelink_model::NodeId;

/// Length of the payload.
pub const PAYLOAD_LEN: usize = 4 + 4 + STATEMENT_LEN + SIGNATURE_LEN;
/// Length of a key statement.
pub const STATEMENT_LEN: usize = 120;
/// Length of its Ed25519 signature.
pub const SIGNATURE_LEN: usize = 64;

/// A signed key statement on its way. Neither the statement nor its signature has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyAnnounce {
    /// The node whose statement it is.
    pub src: NodeId,
    /// The node that shall learn it; [`NodeId::CONTROLLER`] for the controller.
    pub dst: NodeId,
    /// The 120 bytes that were signed.
    pub statement: [u8; STATEMENT_LEN],
    /// Ed25519 signature over them.
    pub signature: [u8; SIGNATURE_LEN],
}

impl KeyAnnounce {
    /// The whole frame, 197 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(HEADER_LEN + PAYLOAD_LEN);
        let [high, low] = (PAYLOAD_LEN as u16).to_be_bytes();
        frame.extend([VERSION, FrameType::KeyAnnounce.as_u8(), Flags::NONE.0, high, low]);
        frame.extend(self.src.0.to_be_bytes());
        frame.extend(self.dst.0.to_be_bytes());
        frame.extend(self.statement);
        frame.extend(self.signature);
        frame
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`WireError::BadLength`] unless it is exactly [`PAYLOAD_LEN`] bytes.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        if payload.len() != PAYLOAD_LEN {
            return Err(WireError::BadLength(FrameType::KeyAnnounce));
        }
        read(payload).ok_or(WireError::BadLength(FrameType::KeyAnnounce))
    }
}

/// See [`KeyAnnounce::parse`].
///
/// # Errors
/// As there.
pub fn parse(payload: &[u8]) -> Result<KeyAnnounce, WireError> {
    KeyAnnounce::parse(payload)
}

fn read(payload: &[u8]) -> Option<KeyAnnounce> {
    let (src, rest) = payload.split_first_chunk()?;
    let (dst, rest) = rest.split_first_chunk()?;
    let (statement, rest) = rest.split_first_chunk()?;
    let signature = rest.first_chunk()?;
    Some(KeyAnnounce {
        src: NodeId(u32::from_be_bytes(*src)),
        dst: NodeId(u32::from_be_bytes(*dst)),
        statement: *statement,
        signature: *signature,
    })
}
