//! Frames: `version · type · flags · length (u16 BE) · payload`, one or more back to back in a message
//! (specification §8.1, DESIGN §1).

use crate::{Flags, FrameType, HEADER_LEN, MAX_PAYLOAD, VERSION, WireError};
use bytes::BufMut;
use std::iter::FusedIterator;

/// One frame inside a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its type byte, known or not.
    pub ty: u8,
    /// Its flags.
    pub flags: Flags,
    /// What follows the header.
    pub payload: &'a [u8],
    /// The whole frame, header included: what relays forward.
    pub raw: &'a [u8],
}

impl Frame<'_> {
    /// The type, if this version knows it.
    pub fn frame_type(&self) -> Option<FrameType> {
        FrameType::from_u8(self.ty)
    }
}

/// One frame inside a message that may be changed, as opening in place does.
#[derive(Debug, PartialEq, Eq)]
pub struct FrameMut<'a> {
    /// Its type byte, known or not.
    pub ty: u8,
    /// Its flags.
    pub flags: Flags,
    /// The whole frame, header included; the payload begins at [`HEADER_LEN`].
    pub raw: &'a mut [u8],
}

impl FrameMut<'_> {
    /// The type, if this version knows it.
    pub fn frame_type(&self) -> Option<FrameType> {
        FrameType::from_u8(self.ty)
    }

    /// The same frame to read only.
    pub fn as_frame(&self) -> Frame<'_> {
        Frame { ty: self.ty, flags: self.flags, payload: self.raw.get(HEADER_LEN..).unwrap_or_default(), raw: self.raw }
    }
}

/// The frames of one message. After an error it yields nothing more. Does not allocate.
///
/// A message without any frame is an error ([`WireError::Empty`]).
pub fn frames(message: &[u8]) -> Frames<'_> {
    Frames { cursor: Cursor::new(), rest: message }
}

/// The frames of one message, each a slice of its own that may be changed. Like [`frames`] otherwise.
pub fn frames_mut(message: &mut [u8]) -> FramesMut<'_> {
    FramesMut { cursor: Cursor::new(), rest: message }
}

/// Appends one frame to `out`.
///
/// # Errors
/// [`WireError::TooLarge`] beyond [`MAX_PAYLOAD`]; [`WireError::NoRoom`] when `out` cannot grow enough. `out` is
/// untouched then.
pub fn put_frame(out: &mut impl BufMut, ty: FrameType, flags: Flags, payload: &[u8]) -> Result<(), WireError> {
    let header = header(ty, flags, payload.len())?;
    if out.remaining_mut() < header.len() + payload.len() {
        return Err(WireError::NoRoom);
    }
    out.put_slice(&header);
    out.put_slice(payload);
    Ok(())
}

/// A frame's header.
pub(crate) fn header(ty: FrameType, flags: Flags, payload_len: usize) -> Result<[u8; HEADER_LEN], WireError> {
    let len = u16::try_from(payload_len).map_err(|_| WireError::TooLarge { len: payload_len, limit: MAX_PAYLOAD })?;
    let [high, low] = len.to_be_bytes();
    Ok([VERSION, ty.as_u8(), flags.0, high, low])
}

/// Iterator made by [`frames`].
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    cursor: Cursor,
    rest: &'a [u8],
}

impl Frames<'_> {
    /// Refuses payloads of more than `limit` bytes, as before authentication (DESIGN §6).
    #[must_use]
    pub fn max_payload(mut self, limit: usize) -> Self {
        self.cursor.limit = limit;
        self
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (ty, flags, len) = match self.cursor.next(self.rest)? {
            Ok(next) => next,
            Err(error) => return Some(Err(error)),
        };
        let (raw, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(Ok(Frame { ty, flags, payload: raw.get(HEADER_LEN..).unwrap_or_default(), raw }))
    }
}

impl FusedIterator for Frames<'_> {}

/// Iterator made by [`frames_mut`].
#[derive(Debug)]
pub struct FramesMut<'a> {
    cursor: Cursor,
    rest: &'a mut [u8],
}

impl FramesMut<'_> {
    /// Refuses payloads of more than `limit` bytes, as before authentication (DESIGN §6).
    #[must_use]
    pub fn max_payload(mut self, limit: usize) -> Self {
        self.cursor.limit = limit;
        self
    }
}

impl<'a> Iterator for FramesMut<'a> {
    type Item = Result<FrameMut<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (ty, flags, len) = match self.cursor.next(self.rest)? {
            Ok(next) => next,
            Err(error) => return Some(Err(error)),
        };
        let (raw, rest) = std::mem::take(&mut self.rest).split_at_mut_checked(len)?;
        self.rest = rest;
        Some(Ok(FrameMut { ty, flags, raw }))
    }
}

impl FusedIterator for FramesMut<'_> {}

/// What both iterators share: whether there is a next frame, and how long it is.
#[derive(Clone, Debug)]
struct Cursor {
    limit: usize,
    started: bool,
    failed: bool,
}

impl Cursor {
    fn new() -> Self {
        Self { limit: MAX_PAYLOAD, started: false, failed: false }
    }

    /// Type, flags and whole length of the frame at the head of `rest`, which holds at least that many bytes.
    fn next(&mut self, rest: &[u8]) -> Option<Result<(u8, Flags, usize), WireError>> {
        if self.failed || (self.started && rest.is_empty()) {
            return None;
        }
        self.started = true;
        let head = read_header(rest, self.limit);
        self.failed = head.is_err();
        Some(head)
    }
}

fn read_header(rest: &[u8], limit: usize) -> Result<(u8, Flags, usize), WireError> {
    let Some(&version) = rest.first() else { return Err(WireError::Empty) };
    if version != VERSION {
        return Err(WireError::UnsupportedVersion(version));
    }
    let Some(&[_, ty, flags, high, low]) = rest.first_chunk() else { return Err(WireError::Truncated) };
    let payload_len = usize::from(u16::from_be_bytes([high, low]));
    if payload_len > limit {
        return Err(WireError::TooLarge { len: payload_len, limit });
    }
    let len = HEADER_LEN + payload_len;
    if rest.len() < len {
        return Err(WireError::Truncated);
    }
    Ok((ty, Flags(flags), len))
}
