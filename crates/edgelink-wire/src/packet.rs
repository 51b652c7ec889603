//! The IP packets inside DATA: just enough of them for routing, and the Internet checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;
/// Length of an IPv6 header without extensions.
pub const IPV6_HEADER_LEN: usize = 40;
const IPV4_HEADER_LEN: usize = 20;
/// More extension headers than this are not followed.
const MAX_EXTENSIONS: usize = 8;

/// What routing needs to know of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpView {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Upper-layer protocol; for IPv6 the one after the extension headers, as far as they could be followed.
    pub proto: u8,
    /// Length of the packet by its own header; never more than the bytes given.
    pub total_len: usize,
    /// Where the upper-layer header begins.
    pub transport: usize,
    /// Whether this is a fragment: only the first one has an upper-layer header.
    pub fragment: bool,
}

/// Reads the IP header of `packet`.
///
/// `None` unless it is IPv4 or IPv6 with a whole header and a length field that the bytes bear out. Bytes beyond
/// `total_len` are allowed; whoever minds compares.
pub fn parse(packet: &[u8]) -> Option<IpView> {
    match packet.first()? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => None,
    }
}

fn parse_v4(packet: &[u8]) -> Option<IpView> {
    let header: &[u8; IPV4_HEADER_LEN] = packet.first_chunk()?;
    let transport = usize::from(header[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if transport < IPV4_HEADER_LEN || total_len < transport || packet.len() < total_len {
        return None;
    }
    // More-fragments bit or a fragment offset.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    Some(IpView {
        src: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
        dst: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
        proto: header[9],
        total_len,
        transport,
        fragment,
    })
}

fn parse_v6(packet: &[u8]) -> Option<IpView> {
    let header: &[u8; IPV6_HEADER_LEN] = packet.first_chunk()?;
    let total_len = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let src: &[u8; 16] = header.get(8..)?.first_chunk()?;
    let dst: &[u8; 16] = header.get(24..)?.first_chunk()?;
    let packet = packet.get(..total_len)?;
    let (proto, transport, fragment) = skip_extensions(packet, header[6]);
    Some(IpView {
        src: Ipv6Addr::from(*src).into(),
        dst: Ipv6Addr::from(*dst).into(),
        proto,
        total_len,
        transport,
        fragment,
    })
}

/// A number that packets of one flow share: addresses, protocol and the ports of TCP and UDP; fragments have no ports.
///
/// Nothing about it is secret or hard to collide: it spreads flows, no more.
pub fn flow_hash(ip: &IpView, packet: &[u8]) -> u32 {
    const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(29) ^ word).wrapping_mul(MULTIPLIER);
    let address = |hash: u64, ip: IpAddr| match ip {
        IpAddr::V4(ip) => mix(hash, u64::from(ip.to_bits())),
        IpAddr::V6(ip) => mix(mix(hash, (ip.to_bits() >> 64) as u64), ip.to_bits() as u64),
    };
    let ported = matches!(ip.proto, TCP | UDP) && !ip.fragment;
    let ports = packet.get(ip.transport..).and_then(<[u8]>::first_chunk).filter(|_| ported);
    let ports = ports.map_or(0, |ports| u64::from(u32::from_be_bytes(*ports)));
    let hash = mix(address(address(0, ip.src), ip.dst), ports << 8 | u64::from(ip.proto));
    (hash >> 32) as u32
}

/// Follows IPv6 extension headers (RFC 8200 §4) as far as they are whole and known.
fn skip_extensions(packet: &[u8], mut proto: u8) -> (u8, usize, bool) {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let mut at = IPV6_HEADER_LEN;
    let mut fragment = false;
    for _ in 0..MAX_EXTENSIONS {
        let Some(&[next, len, f0, f1]) = packet.get(at..).and_then(<[u8]>::first_chunk) else { break };
        let len = match proto {
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(len) + 1) * 8,
            FRAGMENT => 8,
            _ => break,
        };
        if packet.len() < at + len {
            break;
        }
        let later_fragment = proto == FRAGMENT && u16::from_be_bytes([f0, f1]) & 0xfff8 != 0;
        fragment |= later_fragment || (proto == FRAGMENT && f1 & 1 != 0);
        proto = next;
        at += len;
        if later_fragment {
            // What follows is the middle of some upper-layer packet, not another header.
            break;
        }
    }
    (proto, at, fragment)
}

/// The Internet checksum (RFC 1071) of `bytes`, `initial` added to the sum: 0 when the bytes hold a right checksum.
pub fn checksum(initial: u32, bytes: &[u8]) -> u16 {
    !fold(u64::from(initial) + sum(bytes))
}

/// The one's complement sum of a TCP or UDP pseudo-header, as `initial` of [`checksum`].
///
/// Addresses of different families give a sum that means nothing.
pub fn pseudo_header(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u32 {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    };
    u32::from(fold(address(src) + address(dst) + u64::from(proto) + len as u64))
}

/// The sum of big-endian 16-bit words, not yet folded; fits for every slice that memory can hold in practice.
fn sum(bytes: &[u8]) -> u64 {
    // Words of four bytes in the machine's own order: RFC 1071 §2(B) lets the fold swap the bytes once at the end.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut tail = [0; 4];
    for (to, from) in tail.iter_mut().zip(rest) {
        *to = *from;
    }
    sum += u64::from(u32::from_ne_bytes(tail));
    u64::from(u16::from_be_bytes(fold(sum).to_ne_bytes()))
}

/// Folds the carries in until 16 bits remain.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
