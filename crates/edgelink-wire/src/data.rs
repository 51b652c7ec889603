//! DATA, P2P_PING and P2P_PONG: `header · src u32 · dst u32 · nonce 12 · ciphertext · tag 16` (specification §8.3).
//!
//! All functions take the whole frame, header included, because it is sealed and opened in place. None allocates.

use crate::frame::header;
use crate::{Flags, FrameType, HEADER_LEN, MAX_PAYLOAD, VERSION, WireError};
use edgelink_model::NodeId;

/// Where the plaintext (or ciphertext) begins in a whole frame.
pub const PLAINTEXT_OFFSET: usize = HEADER_LEN + 4 + 4 + 12;
/// Length of the AEAD's tag, the frame's last bytes.
pub const TAG_LEN: usize = 16;
/// What a whole frame has beside the plaintext.
pub const OVERHEAD: usize = PLAINTEXT_OFFSET + TAG_LEN;
/// The most plaintext that one frame carries; a super-packet of 65,489 bytes and its virtio header fill it.
pub const MAX_PLAINTEXT: usize = HEADER_LEN + MAX_PAYLOAD - OVERHEAD;
/// Length of the AEAD's additional data.
pub const AAD_LEN: usize = 11;

/// The clear part of a sealed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataHeader {
    /// The node that sealed it.
    pub src: NodeId,
    /// The node that can open it.
    pub dst: NodeId,
    /// Key prefix (4 bytes) and counter (u64 BE), DESIGN §2.
    pub nonce: [u8; 12],
}

/// Reads the clear part of a whole sealed frame.
///
/// # Errors
/// Another version or type, a length field that is not the frame's, or no room for the tag.
pub fn parse(raw_frame: &[u8]) -> Result<DataHeader, WireError> {
    let Some((&[version, ty, _flags, high, low], _)) = raw_frame.split_first_chunk() else {
        return Err(WireError::Truncated);
    };
    if version != VERSION {
        return Err(WireError::UnsupportedVersion(version));
    }
    let ty = FrameType::from_u8(ty).ok_or(WireError::UnknownType(ty))?;
    if !ty.is_sealed() {
        return Err(WireError::UnexpectedType(ty));
    }
    let len = HEADER_LEN + usize::from(u16::from_be_bytes([high, low]));
    if raw_frame.len() != len || len < OVERHEAD {
        return Err(WireError::BadLength(ty));
    }
    read_clear(raw_frame).ok_or(WireError::BadLength(ty))
}

fn read_clear(raw_frame: &[u8]) -> Option<DataHeader> {
    let (_, rest) = raw_frame.split_first_chunk::<HEADER_LEN>()?;
    let (src, rest) = rest.split_first_chunk()?;
    let (dst, rest) = rest.split_first_chunk()?;
    let nonce = *rest.first_chunk()?;
    Some(DataHeader { src: NodeId(u32::from_be_bytes(*src)), dst: NodeId(u32::from_be_bytes(*dst)), nonce })
}

/// Fills the first [`PLAINTEXT_OFFSET`] bytes of a frame that is `raw_frame.len()` bytes long when sealed.
///
/// # Errors
/// [`WireError::UnexpectedType`] unless `ty` is sealed; [`WireError::BadLength`] below [`OVERHEAD`];
/// [`WireError::TooLarge`] beyond [`OVERHEAD`] + [`MAX_PLAINTEXT`].
pub fn write_header(raw_frame: &mut [u8], ty: FrameType, flags: Flags, clear: &DataHeader) -> Result<(), WireError> {
    if !ty.is_sealed() {
        return Err(WireError::UnexpectedType(ty));
    }
    if raw_frame.len() < OVERHEAD {
        return Err(WireError::BadLength(ty));
    }
    let head = header(ty, flags, raw_frame.len() - HEADER_LEN)?;
    let (room, _) = raw_frame.split_first_chunk_mut::<PLAINTEXT_OFFSET>().ok_or(WireError::BadLength(ty))?;
    room[..5].copy_from_slice(&head);
    room[5..9].copy_from_slice(&clear.src.0.to_be_bytes());
    room[9..13].copy_from_slice(&clear.dst.0.to_be_bytes());
    room[13..].copy_from_slice(&clear.nonce);
    Ok(())
}

/// The AEAD's additional data: version, type, flags without [`Flags::LOCAL_ONLY`], src, dst (DESIGN §1).
///
/// A frame too short to have them gives zeros, under which nothing opens.
pub fn aad(raw_frame: &[u8]) -> [u8; AAD_LEN] {
    let Some(&[version, ty, flags, _, _, s0, s1, s2, s3, d0, d1, d2, d3]) = raw_frame.first_chunk() else {
        return [0; AAD_LEN];
    };
    [version, ty, Flags(flags).without(Flags::LOCAL_ONLY).0, s0, s1, s2, s3, d0, d1, d2, d3]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAR: DataHeader = DataHeader { src: NodeId(100), dst: NodeId(200), nonce: [7; 12] };

    #[test]
    fn sizes_are_those_of_the_specification() {
        assert_eq!((PLAINTEXT_OFFSET, OVERHEAD, MAX_PLAINTEXT), (25, 41, 65_499));
        assert_eq!(MAX_PLAINTEXT, crate::virtio::LEN + crate::virtio::MAX_SUPER_PACKET);
    }

    #[test]
    fn only_flag_bit_4_is_left_out_of_the_additional_data() {
        let mut frame = [0; OVERHEAD];
        write_header(&mut frame, FrameType::Data, Flags(0xff), &CLEAR).unwrap();
        assert_eq!(aad(&frame), [1, 0x10, 0xef, 0, 0, 0, 100, 0, 0, 0, 200]);
        for len in 0..13 {
            assert_eq!(aad(&frame[..len]), [0; AAD_LEN]);
        }
    }

    #[test]
    fn lengths_that_no_frame_can_have_are_refused() {
        let write = |len: usize| write_header(&mut vec![0; len], FrameType::Data, Flags::NONE, &CLEAR);
        assert_eq!(write(OVERHEAD - 1), Err(WireError::BadLength(FrameType::Data)));
        assert_eq!(write(OVERHEAD), Ok(()));
        assert_eq!(write(OVERHEAD + MAX_PLAINTEXT), Ok(()));
        assert_eq!(write(OVERHEAD + MAX_PLAINTEXT + 1), Err(WireError::TooLarge { len: 65_536, limit: 65_535 }));
    }

    #[test]
    fn only_sealed_types_have_this_layout() {
        for ty in FrameType::ALL {
            let mut frame = [0; OVERHEAD];
            let written = write_header(&mut frame, ty, Flags::NONE, &CLEAR);
            if ty.is_sealed() {
                assert_eq!(written.and_then(|()| parse(&frame)), Ok(CLEAR));
            } else {
                assert_eq!(written, Err(WireError::UnexpectedType(ty)));
                frame[..5].copy_from_slice(&[1, ty.as_u8(), 0, 0, 36]);
                assert_eq!(parse(&frame), Err(WireError::UnexpectedType(ty)));
            }
        }
    }
}
