//! From frames to a message: joined, decompressed within a bound, decoded.

use super::messages::{ControlMessage, never_compressed};
use crate::{Flags, Frame, FrameType, MAX_REASSEMBLED, WireError};
use std::fmt;
use std::io::Read;

/// A control message that has arrived whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// The message.
    pub message: ControlMessage,
    /// Whether its sender wants an ACK.
    pub ack_requested: bool,
    /// The frame type that carried it.
    pub ty: FrameType,
}

/// Joins the control frames of one connection, which arrive in order.
///
/// Holds at most its limit in memory, and as much again while it decompresses. After an error it holds nothing; the
/// one exception is [`WireError::UnknownType`], which skips that frame and leaves a split message unharmed.
pub struct Reassembler {
    limit: usize,
    pending: Option<Pending>,
}

/// A message whose last frame had MORE.
struct Pending {
    ty: FrameType,
    compressed: bool,
    ack_requested: bool,
    body: Vec<u8>,
}

/// Without the bytes, which may be somebody's token.
impl fmt::Debug for Reassembler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reassembler")
            .field("limit", &self.limit)
            .field("pending", &self.pending.as_ref().map(|pending| pending.ty))
            .field("buffered", &self.buffered())
            .finish()
    }
}

impl Default for Reassembler {
    fn default() -> Self {
        Self::new()
    }
}

impl Reassembler {
    /// One that takes messages of up to [`MAX_REASSEMBLED`] bytes.
    pub fn new() -> Self {
        Self::with_limit(MAX_REASSEMBLED)
    }

    /// One that takes messages of up to `limit` bytes, compressed or not, as before authentication (DESIGN §6).
    pub fn with_limit(limit: usize) -> Self {
        Self { limit, pending: None }
    }

    /// Changes the limit for what comes, as after authentication.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Bytes held for a message that is not whole yet.
    pub fn buffered(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.body.len())
    }

    /// Takes one frame; a message when it was the last of one.
    ///
    /// # Errors
    /// [`WireError::UnknownType`] for a type of a later version (answer 2002, go on); [`WireError::UnexpectedType`] for
    /// types that are not control messages: these never come here, their places are [`crate::data`],
    /// [`crate::key_announce`] and [`crate::ping`]. See [`WireError`] for the rest.
    pub fn push(&mut self, frame: &Frame<'_>) -> Result<Option<Received>, WireError> {
        let ty = frame.frame_type().ok_or(WireError::UnknownType(frame.ty))?;
        // Taken out, so that every error below leaves nothing behind.
        let pending = self.pending.take();
        if !ty.is_control() {
            return Err(WireError::UnexpectedType(ty));
        }
        let compressed = frame.flags.contains(Flags::COMPRESSED);
        if compressed && never_compressed(ty) {
            return Err(WireError::BadFlags(ty));
        }
        let ack_requested = frame.flags.contains(Flags::ACK_REQUESTED);
        let more = frame.flags.contains(Flags::MORE);
        let pending = match pending {
            None if !more => {
                check_limit(frame.payload.len(), self.limit)?;
                return self.finish(ty, compressed, ack_requested, frame.payload).map(Some);
            }
            None => Pending { ty, compressed, ack_requested, body: Vec::new() },
            Some(pending) => pending.fits(ty, compressed)?,
        };
        let pending = pending.extend(frame.payload, ack_requested, more, self.limit)?;
        if more {
            self.pending = Some(pending);
            return Ok(None);
        }
        self.finish(ty, compressed, pending.ack_requested, &pending.body).map(Some)
    }

    fn finish(&self, ty: FrameType, compressed: bool, ack_requested: bool, body: &[u8]) -> Result<Received, WireError> {
        let message = if compressed {
            ControlMessage::from_bytes(ty, &decompress(ty, body, self.limit)?)?
        } else {
            ControlMessage::from_bytes(ty, body)?
        };
        Ok(Received { message, ack_requested, ty })
    }
}

impl Pending {
    fn fits(self, ty: FrameType, compressed: bool) -> Result<Self, WireError> {
        if ty != self.ty {
            return Err(WireError::Interleaved { pending: self.ty, got: ty });
        }
        if compressed != self.compressed {
            return Err(WireError::BadFlags(ty));
        }
        Ok(self)
    }

    fn extend(mut self, part: &[u8], ack_requested: bool, more: bool, limit: usize) -> Result<Self, WireError> {
        if more && part.is_empty() {
            // Nobody needs them, and they would let a message never end.
            return Err(WireError::BadLength(self.ty));
        }
        check_limit(self.body.len() + part.len(), limit)?;
        self.body.extend_from_slice(part);
        self.ack_requested |= ack_requested;
        Ok(self)
    }
}

fn check_limit(len: usize, limit: usize) -> Result<(), WireError> {
    if len > limit { Err(WireError::TooLarge { len, limit }) } else { Ok(()) }
}

/// Decompresses one zstd frame, giving up as soon as the output exceeds `limit`.
fn decompress(ty: FrameType, body: &[u8], limit: usize) -> Result<Vec<u8>, WireError> {
    // zstd would allocate whatever window (up to 128 MiB) the frame's header asks for.
    const WINDOW_LOG_MAX: u32 = MAX_REASSEMBLED.ilog2();
    let bad = |_| WireError::Compression(ty);
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(bad)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(bad)?;
    let mut out = Vec::new();
    decoder.by_ref().take(limit as u64 + 1).read_to_end(&mut out).map_err(bad)?;
    check_limit(out.len(), limit)?;
    if !decoder.finish().is_empty() {
        return Err(WireError::Compression(ty));
    }
    Ok(out)
}
