//! What a UDP datagram of the shared P2P socket is: STUN, a keepalive, or one frame (DESIGN §1).

use crate::keepalive::Keepalive;
use crate::{Frame, FrameType, VERSION, WireError, frames};

/// The magic cookie of RFC 8489, bytes 4–7 of every STUN message.
pub const STUN_MAGIC_COOKIE: u32 = 0x2112_A442;
const STUN_HEADER_LEN: usize = 20;

/// A datagram worth looking at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// A STUN message; only its header has been looked at.
    Stun(&'a [u8]),
    /// A keepalive. Proves nothing.
    Keepalive(Keepalive),
    /// DATA, KEY_ANNOUNCE, P2P_PING or P2P_PONG; nothing is authenticated yet.
    Frame(Frame<'a>),
}

/// Why a datagram is dropped. It is counted under this name and never answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Dropped {
    /// Neither STUN nor anything that begins with our version.
    #[error("not of this protocol")]
    Foreign,
    /// Not exactly one whole frame or keepalive.
    #[error("malformed")]
    Malformed,
    /// A frame of a type that does not travel by UDP, known or not.
    #[error("not a UDP frame type")]
    WrongType,
}

/// Tells what `datagram` is. Does not allocate.
///
/// # Errors
/// [`Dropped`] says under which name to count it.
pub fn demux(datagram: &[u8]) -> Result<Datagram<'_>, Dropped> {
    if is_stun(datagram) {
        return Ok(Datagram::Stun(datagram));
    }
    let (Some(&version), ty) = (datagram.first(), datagram.get(1)) else { return Err(Dropped::Foreign) };
    if version != VERSION {
        return Err(Dropped::Foreign);
    }
    let &ty = ty.ok_or(Dropped::Malformed)?;
    match FrameType::from_u8(ty) {
        Some(FrameType::P2pKeepalive) => {
            Keepalive::parse(datagram).map(Datagram::Keepalive).map_err(|_| Dropped::Malformed)
        }
        Some(FrameType::Data | FrameType::KeyAnnounce | FrameType::P2pPing | FrameType::P2pPong) => {
            only_frame(datagram).map(Datagram::Frame).map_err(|_| Dropped::Malformed)
        }
        _ => Err(Dropped::WrongType),
    }
}

/// Cookie, zero top bits and a length field that fits (RFC 8489 §5). With the length, which the RFC makes a multiple
/// of four, no frame and no keepalive of ours can be taken for STUN, whatever its ids.
pub(crate) fn is_stun(datagram: &[u8]) -> bool {
    let Some(&[t0, _, l0, l1, c0, c1, c2, c3]) = datagram.first_chunk() else { return false };
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    t0 & 0xc0 == 0
        && u32::from_be_bytes([c0, c1, c2, c3]) == STUN_MAGIC_COOKIE
        && len % 4 == 0
        && datagram.len() == STUN_HEADER_LEN + len
}

fn only_frame(datagram: &[u8]) -> Result<Frame<'_>, WireError> {
    let frame = frames(datagram).next().unwrap_or(Err(WireError::Empty))?;
    if frame.raw.len() == datagram.len() { Ok(frame) } else { Err(WireError::Truncated) }
}
