//! From a message to frames: encoded, compressed when it pays, split where one frame does not do.

use super::messages::{ControlMessage, ControlPayload};
use crate::frame::put_frame;
use crate::{Flags, FrameType, HEADER_LEN, MAX_PAYLOAD, MAX_REASSEMBLED, WireError};

/// Shorter messages are sent as they are: zstd's own framing would eat the gain.
const COMPRESS_FROM: usize = 512;
const ZSTD_LEVEL: i32 = 3;

/// What [`encode`] takes: any control message, as itself or as [`ControlMessage`].
pub trait Encode {
    /// Frame type, protobuf bytes, and whether they may be compressed.
    #[doc(hidden)]
    fn parts(&self) -> (FrameType, Vec<u8>, bool);
}

impl<M: ControlPayload> Encode for M {
    fn parts(&self) -> (FrameType, Vec<u8>, bool) {
        (M::TYPE, self.encode_to_vec(), !self.holds_secrets())
    }
}

impl Encode for ControlMessage {
    fn parts(&self) -> (FrameType, Vec<u8>, bool) {
        (self.ty(), self.to_bytes(), !self.holds_secrets())
    }
}

/// The frames of `message`, back to back: as a rule one, more beyond [`MAX_PAYLOAD`].
///
/// Of `flags` the caller chooses all but [`Flags::COMPRESSED`] and [`Flags::MORE`], which are set as needed.
/// [`Flags::ACK_REQUESTED`] goes on the last frame, so that a message counts once.
///
/// # Errors
/// [`WireError::TooLarge`] beyond [`MAX_REASSEMBLED`].
pub fn encode(message: &(impl Encode + ?Sized), flags: Flags) -> Result<Vec<u8>, WireError> {
    let mut out = Vec::new();
    encode_into(&mut out, message, flags)?;
    Ok(out)
}

/// Like [`encode`], appended to `out`, which is untouched on error.
///
/// # Errors
/// As [`encode`].
pub fn encode_into(out: &mut Vec<u8>, message: &(impl Encode + ?Sized), flags: Flags) -> Result<(), WireError> {
    let (ty, body, may_compress) = message.parts();
    if body.len() > MAX_REASSEMBLED {
        return Err(WireError::TooLarge { len: body.len(), limit: MAX_REASSEMBLED });
    }
    let chosen = flags.without(Flags::COMPRESSED | Flags::MORE);
    match may_compress.then(|| compress(&body)).flatten() {
        Some(smaller) => split(out, ty, chosen | Flags::COMPRESSED, &smaller),
        None => split(out, ty, chosen, &body),
    }
}

/// The compressed body, if it is shorter.
fn compress(body: &[u8]) -> Option<Vec<u8>> {
    if body.len() < COMPRESS_FROM {
        return None;
    }
    zstd::bulk::compress(body, ZSTD_LEVEL).ok().filter(|compressed| compressed.len() < body.len())
}

fn split(out: &mut Vec<u8>, ty: FrameType, flags: Flags, mut body: &[u8]) -> Result<(), WireError> {
    out.reserve(body.len() + HEADER_LEN * (1 + body.len() / MAX_PAYLOAD));
    while let Some((part, rest)) = body.split_at_checked(MAX_PAYLOAD).filter(|(_, rest)| !rest.is_empty()) {
        put_frame(out, ty, flags.without(Flags::ACK_REQUESTED) | Flags::MORE, part)?;
        body = rest;
    }
    put_frame(out, ty, flags, body)
}
