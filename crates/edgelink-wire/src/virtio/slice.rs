//! Super-packets made smaller, for connections on which a whole one would take too long.

use super::segment::write_segment;
use super::{LEN, VirtioError, VirtioHeader, Whole};

/// Cuts a super-packet into smaller ones, each a packet of at most `limit` bytes (or of one segment, if that is longer)
/// with its virtio header, and hands them out in order; returns how many. To cut them into segments ([`super::segment`])
/// gives the same packets as to cut the whole.
///
/// Memory: one buffer, no longer than the longest slice.
///
/// # Errors
/// As [`super::Segments::new`]; [`VirtioError::Unsupported`] for what is no super-packet. Nothing has been handed out then.
pub fn slice(
    h: &VirtioHeader,
    packet: &[u8],
    limit: usize,
    mut each: impl FnMut(&[u8; LEN], &[u8]),
) -> Result<usize, VirtioError> {
    if !h.is_gso() {
        return Err(VirtioError::Unsupported);
    }
    let whole = Whole::of(h, packet)?;
    let segment = usize::from(h.gso_size);
    // `Whole` has proved that there is a payload and a segment size.
    let step = segment * (limit.saturating_sub(whole.payload) / segment.max(1)).max(1);
    let payload = packet.len() - whole.payload;
    let mut buffer = vec![0; whole.payload + step.min(payload)];
    let (mut done, mut count) = (0, 0);
    while done < payload {
        let len = step.min(payload - done);
        let (last, alone) = (done + len == payload, len <= segment);
        let out = buffer.get_mut(..whole.payload + len).ok_or(VirtioError::Truncated)?;
        // IPv4 identifications count segments, as if nothing had been cut before.
        let index = u16::try_from(done / segment.max(1)).map_err(|_| VirtioError::TooLarge)?;
        write_segment(&whole, packet, done, index, last, !alone, out).ok_or(VirtioError::Truncated)?;
        // One segment is a packet like others, with its checksum.
        let header = if alone { VirtioHeader::default() } else { *h };
        each(&header.to_bytes(), out);
        done += len;
        count += 1;
    }
    Ok(count)
}
