//! The virtio-net header of TUN packets, and super-packets (DESIGN §6).
//!
//! A super-packet is an IP packet with up to 64 KiB of payload whose header says how to cut it: into TCP segments, or into
//! the UDP datagrams that a program sent by one call. One may come from a peer, so it is [validated](validate) before the
//! kernel sees it. Where the way to the peer takes only packets of the path's MTU, [`segment`] (or [`Segments`], in place)
//! does in software what a network card would, and on the other side [`Joiner`] what its receiving half would.

mod join;
mod segment;
mod slice;

pub use join::Joiner;
pub use segment::{Segments, plain_tcp, segment};
pub use slice::slice;

use crate::packet::{self, IPV6_HEADER_LEN, IpView, checksum};

/// Length of the header: `flags u8 · gso_type u8 · hdr_len u16 · gso_size u16 · csum_start u16 · csum_offset u16`,
/// little-endian.
pub const LEN: usize = 10;
/// The longest IP packet that fits DATA behind its virtio header: the TUN's `gso_max_size`.
pub const MAX_SUPER_PACKET: usize = crate::data::MAX_PLAINTEXT - LEN;
/// A super-packet cut into more segments than this is refused: a tiny `gso_size` would multiply the kernel's work.
pub const MAX_SEGMENTS: usize = 128;

/// Flag: the checksum is still to be completed, from `csum_start` on.
pub const F_NEEDS_CSUM: u8 = 1;
/// Flag: the checksum has been verified.
pub const F_DATA_VALID: u8 = 2;
/// GSO type: not a super-packet.
pub const GSO_NONE: u8 = 0;
/// GSO type: TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// GSO type: TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// GSO type: UDP of either family, cut into datagrams (Linux 6.2).
pub const GSO_UDP_L4: u8 = 5;
/// Bit of the GSO type: CWR belongs on the first segment only (RFC 3168), which [`segment`] minds anyway.
pub const GSO_ECN: u8 = 0x80;

/// Offset of the checksum in a TCP header.
const TCP_CSUM_OFFSET: usize = 16;
const TCP_HEADER_LEN: usize = 20;
const TCP_SYN_RST: u8 = 0x06;
/// Offset of the checksum in a UDP header.
const UDP_CSUM_OFFSET: usize = 6;
const UDP_HEADER_LEN: usize = 8;

/// The header as `struct virtio_net_hdr` of `linux/virtio_net.h` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// [`F_NEEDS_CSUM`], [`F_DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`], [`GSO_UDP_L4`], [`GSO_TCPV4`] or [`GSO_TCPV6`], the last two perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// A hint of how many bytes the headers take.
    pub hdr_len: u16,
    /// Payload per segment.
    pub gso_size: u16,
    /// Where checksumming begins in the packet.
    pub csum_start: u16,
    /// Where the checksum goes, counted from `csum_start`.
    pub csum_offset: u16,
}

/// Why a virtio header does not fit its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum VirtioError {
    /// Shorter than its headers.
    #[error("shorter than its headers")]
    Truncated,
    /// Flags or GSO type beyond those known here, or a combination without meaning.
    #[error("virtio flags or GSO type not supported")]
    Unsupported,
    /// Not an unfragmented TCP packet without IPv6 extensions, or a super-packet with SYN or RST.
    #[error("not a plain TCP packet")]
    NotTcp,
    /// Not an unfragmented UDP packet without IPv6 extensions.
    #[error("not a plain UDP packet")]
    NotUdp,
    /// The IP header's length, or the UDP header's, is not the packet's.
    #[error("the IP or UDP length is not the packet's")]
    BadLength,
    /// The IP version is not the GSO type's.
    #[error("the IP version is not the GSO type's")]
    BadFamily,
    /// Checksum offsets outside the packet or not those of its TCP or UDP header.
    #[error("checksum offsets do not fit")]
    BadChecksumOffset,
    /// No payload per segment, no payload at all, or too many segments.
    #[error("segment size does not fit")]
    BadSegmentSize,
    /// Longer than [`MAX_SUPER_PACKET`].
    #[error("larger than a super-packet may be")]
    TooLarge,
}

impl VirtioHeader {
    /// Reads the header at the start of `bytes`; `None` when they are too few.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let &[flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = bytes.first_chunk::<LEN>()?;
        Some(Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        })
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Writes the header at the start of `out`.
    ///
    /// # Errors
    /// [`VirtioError::Truncated`] when `out` is shorter than [`LEN`].
    pub fn write(&self, out: &mut [u8]) -> Result<(), VirtioError> {
        *out.first_chunk_mut().ok_or(VirtioError::Truncated)? = self.to_bytes();
        Ok(())
    }

    /// Whether the packet is to be cut.
    pub fn is_gso(&self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE
    }
}

/// Checks a super-packet that a peer sent, before the kernel sees it; a sender asks the same before it sends one.
///
/// What passes: unfragmented TCP, or UDP that is to be cut, without IPv6 extension headers, whole and no longer than
/// [`MAX_SUPER_PACKET`]; flags and GSO type known here; checksum offsets exactly those of its TCP or UDP header; and, if it is
/// to be cut, a payload, a checksum left to complete, no SYN or RST, at most [`MAX_SEGMENTS`] segments.
///
/// # Errors
/// The first of these that does not hold.
pub fn validate(h: &VirtioHeader, packet: &[u8]) -> Result<(), VirtioError> {
    let whole = Whole::of(h, packet)?;
    if packet.len() > MAX_SUPER_PACKET {
        return Err(VirtioError::TooLarge);
    }
    if usize::from(h.hdr_len) > packet.len() {
        return Err(VirtioError::Truncated);
    }
    if h.is_gso() && (packet.len() - whole.payload).div_ceil(usize::from(h.gso_size)) > MAX_SEGMENTS {
        return Err(VirtioError::BadSegmentSize);
    }
    Ok(())
}

/// Completes the checksum of a packet with [`F_NEEDS_CSUM`], whose checksum field holds the pseudo-header's sum; others
/// are left alone. Any protocol.
///
/// # Errors
/// [`VirtioError::BadChecksumOffset`] when the offsets lie outside the packet.
pub fn complete_checksum(h: &VirtioHeader, packet: &mut [u8]) -> Result<(), VirtioError> {
    if h.flags & F_NEEDS_CSUM == 0 {
        return Ok(());
    }
    let bytes = packet.get_mut(usize::from(h.csum_start)..).ok_or(VirtioError::BadChecksumOffset)?;
    let sum = match checksum(0, bytes) {
        // Both are zero in one's complement, but in UDP 0 means "no checksum" (RFC 768).
        0 => 0xffff,
        sum => sum,
    };
    let field = bytes.get_mut(usize::from(h.csum_offset)..).and_then(<[u8]>::first_chunk_mut);
    *field.ok_or(VirtioError::BadChecksumOffset)? = sum.to_be_bytes();
    Ok(())
}

/// A TCP packet or a UDP super-packet whose virtio header makes sense.
struct Whole {
    ip: IpView,
    /// Where the payload begins.
    payload: usize,
}

impl Whole {
    /// What [`validate`], [`Segments`] and [`slice()`] all ask for.
    fn of(h: &VirtioHeader, packet: &[u8]) -> Result<Self, VirtioError> {
        if h.gso_type == GSO_UDP_L4 { Self::udp(h, packet) } else { Self::tcp(h, packet) }
    }

    fn udp(h: &VirtioHeader, packet: &[u8]) -> Result<Self, VirtioError> {
        if h.flags & !F_DATA_VALID != F_NEEDS_CSUM {
            return Err(VirtioError::Unsupported);
        }
        let ip = packet::parse(packet).ok_or(VirtioError::Truncated)?;
        if ip.total_len != packet.len() {
            return Err(VirtioError::BadLength);
        }
        let extended = ip.src.is_ipv6() && ip.transport != IPV6_HEADER_LEN;
        if ip.proto != packet::UDP || ip.fragment || extended {
            return Err(VirtioError::NotUdp);
        }
        let udp = packet.get(ip.transport..).unwrap_or_default();
        let header: &[u8; UDP_HEADER_LEN] = udp.first_chunk().ok_or(VirtioError::Truncated)?;
        if usize::from(u16::from_be_bytes([header[4], header[5]])) != udp.len() {
            return Err(VirtioError::BadLength);
        }
        if (usize::from(h.csum_start), usize::from(h.csum_offset)) != (ip.transport, UDP_CSUM_OFFSET) {
            return Err(VirtioError::BadChecksumOffset);
        }
        let payload = ip.transport + UDP_HEADER_LEN;
        if h.gso_size == 0 || payload == packet.len() {
            return Err(VirtioError::BadSegmentSize);
        }
        Ok(Self { ip, payload })
    }

    fn tcp(h: &VirtioHeader, packet: &[u8]) -> Result<Self, VirtioError> {
        let family = match h.gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(4),
            GSO_TCPV6 => Some(6),
            _ => return Err(VirtioError::Unsupported),
        };
        if h.flags & !(F_NEEDS_CSUM | F_DATA_VALID) != 0 || h.gso_type == GSO_ECN {
            return Err(VirtioError::Unsupported);
        }
        let needs_csum = h.flags & F_NEEDS_CSUM != 0;
        if family.is_some() && !needs_csum {
            return Err(VirtioError::Unsupported);
        }
        let (tcp, flags) = Self::headers(packet)?;
        if family.is_some_and(|family| packet.first().is_none_or(|byte| byte >> 4 != family)) {
            return Err(VirtioError::BadFamily);
        }
        if needs_csum
            && (usize::from(h.csum_start) != tcp.ip.transport || usize::from(h.csum_offset) != TCP_CSUM_OFFSET)
        {
            return Err(VirtioError::BadChecksumOffset);
        }
        if family.is_some() {
            if flags & TCP_SYN_RST != 0 {
                return Err(VirtioError::NotTcp);
            }
            if h.gso_size == 0 || packet.len() == tcp.payload {
                return Err(VirtioError::BadSegmentSize);
            }
        }
        Ok(tcp)
    }

    /// The packet's headers, and the TCP flags.
    fn headers(packet: &[u8]) -> Result<(Self, u8), VirtioError> {
        let ip = packet::parse(packet).ok_or(VirtioError::Truncated)?;
        if ip.total_len != packet.len() {
            return Err(VirtioError::BadLength);
        }
        let extended = ip.src.is_ipv6() && ip.transport != IPV6_HEADER_LEN;
        if ip.proto != packet::TCP || ip.fragment || extended {
            return Err(VirtioError::NotTcp);
        }
        let header: &[u8; TCP_HEADER_LEN] =
            packet.get(ip.transport..).and_then(<[u8]>::first_chunk).ok_or(VirtioError::Truncated)?;
        let len = usize::from(header[12] >> 4) * 4;
        let payload = ip.transport + len;
        if len < TCP_HEADER_LEN || payload > packet.len() {
            return Err(VirtioError::Truncated);
        }
        Ok((Self { ip, payload }, header[13]))
    }
}
