//! TCP and UDP segmentation in software (what Linux does in `tcp_gso_segment`, `__udp_gso_segment` and `inet_gso_segment`).

use super::{
    F_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, TCP_CSUM_OFFSET, TCP_SYN_RST, VirtioError, VirtioHeader,
    Whole, complete_checksum,
};
use crate::packet::{self, checksum, pseudo_header};

const FIN_PSH: u8 = 0x09;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;

/// Cuts `packet` as its header says and hands out complete, checksummed IP packets in order; a packet that is not to be
/// cut comes out whole with its checksum completed. Returns how many. Allocates one buffer; see [`Segments`] for none.
///
/// `mss_limit` bounds the TCP payload per segment further, for paths of a small MTU; datagrams are what they are.
///
/// # Errors
/// As [`Segments::new`], and then nothing has been handed out.
pub fn segment(
    h: &VirtioHeader,
    packet: &[u8],
    mss_limit: Option<u16>,
    mut each: impl FnMut(&[u8]),
) -> Result<usize, VirtioError> {
    let mut segments = Segments::new(h, packet, mss_limit)?;
    let mut buffer = vec![0; segments.next_len()];
    let mut count = 0;
    while let Some(len) = segments.write_next(&mut buffer) {
        each(buffer.get(..len).unwrap_or_default());
        count += 1;
    }
    Ok(count)
}

/// The header by which a plain TCP packet may be cut as if it were a super-packet of one segment, `mss_limit` saying how:
/// for packets that are too large for a path and must be carried (IPv6 up to 1,280 bytes, IPv4 without DF).
///
/// `None` for what is not such a packet or would not survive it (SYN, RST, urgent data), or if its checksum is wrong: the
/// segments would have right ones.
pub fn plain_tcp(h: &VirtioHeader, packet: &[u8]) -> Option<VirtioHeader> {
    let (whole, flags) = Whole::headers(packet).ok().filter(|_| h.gso_type == GSO_NONE)?;
    let payload = packet.len() - whole.payload;
    if flags & (TCP_SYN_RST | URG) != 0 || payload == 0 {
        return None;
    }
    let segment = packet.get(whole.ip.transport..)?;
    let sum = || checksum(pseudo_header(whole.ip.src, whole.ip.dst, packet::TCP, segment.len()), segment);
    if h.flags & F_NEEDS_CSUM == 0 && sum() != 0 {
        return None;
    }
    Some(VirtioHeader {
        flags: F_NEEDS_CSUM,
        gso_type: if whole.ip.src.is_ipv4() { GSO_TCPV4 } else { GSO_TCPV6 },
        hdr_len: u16::try_from(whole.payload).ok()?,
        gso_size: u16::try_from(payload).ok()?,
        csum_start: u16::try_from(whole.ip.transport).ok()?,
        csum_offset: TCP_CSUM_OFFSET as u16,
    })
}

/// The segments of one packet, each written where the caller wants it: into the frame that will be sealed.
pub struct Segments<'a> {
    packet: &'a [u8],
    how: How,
    /// Of the payload, sent already.
    done: usize,
    index: u16,
}

enum How {
    Uncut(VirtioHeader),
    Cut { whole: Whole, size: usize },
    Finished,
}

impl<'a> Segments<'a> {
    /// Prepares to cut `packet`. See [`segment`].
    ///
    /// # Errors
    /// A packet that is to be cut must be as [`super::validate`] says, except that it may be of any size and number of
    /// segments; of others only the checksum offsets must lie inside. [`VirtioError::BadSegmentSize`] when `mss_limit`
    /// is 0.
    pub fn new(h: &VirtioHeader, packet: &'a [u8], mss_limit: Option<u16>) -> Result<Self, VirtioError> {
        let how = if h.gso_type == GSO_NONE {
            let end = usize::from(h.csum_start) + usize::from(h.csum_offset) + 2;
            if h.flags & F_NEEDS_CSUM != 0 && end > packet.len() {
                return Err(VirtioError::BadChecksumOffset);
            }
            How::Uncut(*h)
        } else {
            let udp = h.gso_type == GSO_UDP_L4;
            let whole = Whole::of(h, packet)?;
            let limit = mss_limit.filter(|_| !udp);
            let size = usize::from(limit.map_or(h.gso_size, |limit| limit.min(h.gso_size)));
            if size == 0 {
                return Err(VirtioError::BadSegmentSize);
            }
            How::Cut { whole, size }
        };
        Ok(Self { packet, how, done: 0, index: 0 })
    }

    /// Length of the next segment, 0 when there is none. None that follows is longer.
    pub fn next_len(&self) -> usize {
        match &self.how {
            How::Uncut(_) => self.packet.len(),
            How::Cut { whole, size } => self.packet.len().min(whole.payload + self.done + size) - self.done,
            How::Finished => 0,
        }
    }

    /// Writes the next segment to the start of `out` and returns its length.
    ///
    /// `None` when there is none left, or `out` is shorter than [`Self::next_len`]; then nothing moves on.
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        let len = self.next_len();
        let out = out.get_mut(..len).filter(|out| !out.is_empty())?;
        let finished = match &self.how {
            How::Uncut(h) => {
                out.copy_from_slice(self.packet);
                // The offsets were checked by `new`.
                complete_checksum(h, out).ok()?;
                true
            }
            How::Cut { whole, .. } => {
                let finished = self.done + len == self.packet.len();
                write_segment(whole, self.packet, self.done, self.index, finished, false, out)?;
                self.done += len - whole.payload;
                self.index = self.index.wrapping_add(1);
                finished
            }
            How::Finished => return None,
        };
        if finished {
            self.how = How::Finished;
        }
        Some(len)
    }
}

/// Builds the segment that carries the payload from `done` on, as much as fills `out`; `partial` leaves its checksum to the
/// kernel. `None` cannot happen: `Whole` has proved that the headers are there.
pub(super) fn write_segment(
    whole: &Whole,
    packet: &[u8],
    done: usize,
    index: u16,
    last: bool,
    partial: bool,
    out: &mut [u8],
) -> Option<()> {
    let transport = whole.ip.transport;
    let len = out.len();
    let (header, payload) = out.split_at_mut_checked(whole.payload)?;
    header.copy_from_slice(packet.get(..whole.payload)?);
    payload.copy_from_slice(packet.get(whole.payload + done..)?.get(..payload.len())?);

    let (ip, segment) = out.split_at_mut_checked(transport)?;
    if whole.ip.src.is_ipv4() {
        put16(ip, 2, u16::try_from(len).ok()?)?;
        let id = get16(ip, 4)?;
        put16(ip, 4, id.wrapping_add(index))?;
        put16(ip, 10, 0)?;
        let sum = checksum(0, ip);
        put16(ip, 10, sum)?;
    } else {
        put16(ip, 4, u16::try_from(segment.len()).ok()?)?;
    }

    let udp = whole.ip.proto == packet::UDP;
    let csum_offset = if udp {
        put16(segment, 4, u16::try_from(segment.len()).ok()?)?;
        super::UDP_CSUM_OFFSET
    } else {
        let seq: &mut [u8; 4] = segment.get_mut(4..)?.first_chunk_mut()?;
        *seq = u32::from_be_bytes(*seq).wrapping_add(u32::try_from(done).ok()?).to_be_bytes();
        let flags = segment.get_mut(13)?;
        if !last {
            *flags &= !FIN_PSH;
        }
        if index != 0 {
            *flags &= !CWR;
        }
        TCP_CSUM_OFFSET
    };
    let pseudo = pseudo_header(whole.ip.src, whole.ip.dst, whole.ip.proto, segment.len());
    if partial {
        return put16(segment, csum_offset, u16::try_from(pseudo).ok()?);
    }
    put16(segment, csum_offset, 0)?;
    let sum = match checksum(pseudo, segment) {
        // Both are zero in one's complement, but in UDP 0 means "no checksum" (RFC 768).
        0 if udp => 0xffff,
        sum => sum,
    };
    put16(segment, csum_offset, sum)
}

fn get16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

fn put16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}
