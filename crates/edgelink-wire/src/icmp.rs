//! What a router says of a packet that is too large for the next link (RFC 792, RFC 1191, RFC 4443 §3.2).

use crate::packet::{self, IPV6_HEADER_LEN, checksum, pseudo_header};
use std::net::IpAddr;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Every IPv6 link carries packets of this size.
const IPV6_MIN_MTU: u16 = 1280;
/// An IPv4 error has at most 576 bytes with its headers (RFC 1812 §4.3.2.3).
const QUOTED_V4: usize = 576 - 20 - 8;
const HOPS: u8 = 64;

/// The ICMP message for the sender of `packet`, which is larger than `mtu`: *fragmentation needed* or *packet too big*. It
/// comes from the packet's destination, since between the two ends of a tunnel there is no router that has an address.
///
/// `None` when the packet may be cut (IPv4 without DF), must be carried (IPv6 up to 1,280 bytes), is an ICMP error itself
/// or the middle of a fragmented packet.
pub fn too_big(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let ip = packet::parse(packet)?;
    let (src, dst) = (ip.dst, ip.src);
    let icmp_type = || packet.get(ip.transport).copied();
    match (src, dst) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let flags = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]);
            let (dont_fragment, offset) = (flags & 0x4000 != 0, flags & 0x1fff);
            let is_error = ip.proto == ICMP && matches!(icmp_type(), Some(3 | 4 | 5 | 11 | 12) | None);
            if !dont_fragment || offset != 0 || is_error || from.is_multicast() || from.is_broadcast() {
                return None;
            }
            let quoted = packet.get(..ip.total_len.min(QUOTED_V4))?;
            let total = u16::try_from(20 + 8 + quoted.len()).ok()?.to_be_bytes();
            let mut header = [0x45, 0, total[0], total[1], 0, 0, 0, 0, HOPS, ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let sum = checksum(0, &header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            let mtu = mtu.to_be_bytes();
            let body = [&[3, 4, 0, 0, 0, 0, mtu[0], mtu[1]], quoted].concat();
            Some([&header[..], &with_checksum(body, 0)].concat())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let is_error = ip.proto == ICMPV6 && icmp_type().is_none_or(|ty| ty < 128);
            if ip.total_len <= IPV6_MIN_MTU.into() || is_error || from.is_multicast() || ip.fragment && is_late(packet)
            {
                return None;
            }
            let quoted = packet.get(..ip.total_len.min(usize::from(IPV6_MIN_MTU) - IPV6_HEADER_LEN - 8))?;
            let mtu = u32::from(mtu.max(IPV6_MIN_MTU)).to_be_bytes();
            let body = [&[2, 0, 0, 0, mtu[0], mtu[1], mtu[2], mtu[3]], quoted].concat();
            let len = u16::try_from(body.len()).ok()?.to_be_bytes();
            let mut header = [0; IPV6_HEADER_LEN];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&len);
            header[6..8].copy_from_slice(&[ICMPV6, HOPS]);
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
            let pseudo = pseudo_header(src, dst, ICMPV6, body.len());
            Some([&header[..], &with_checksum(body, pseudo)].concat())
        }
        _ => None,
    }
}

/// Whether a fragmented IPv6 packet is not the first piece, as far as its first extension header tells.
fn is_late(packet: &[u8]) -> bool {
    let word = [packet.get(42), packet.get(43)].map(|byte| byte.copied().unwrap_or(0));
    packet.get(6) == Some(&44) && u16::from_be_bytes(word) & 0xfff8 != 0
}

fn with_checksum(mut body: Vec<u8>, pseudo: u32) -> Vec<u8> {
    let sum = checksum(pseudo, &body).to_be_bytes();
    if let Some(place) = body.get_mut(2..4) {
        place.copy_from_slice(&sum);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{TCP, UDP};

    fn v4(len: usize, flags: u16, proto: u8) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        packet[6..8].copy_from_slice(&flags.to_be_bytes());
        packet[9] = proto;
        packet[12..16].copy_from_slice(&[10, 7, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 7, 0, 2]);
        packet
    }

    fn v6(len: usize, proto: u8) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&u16::try_from(len - 40).unwrap().to_be_bytes());
        packet[6] = proto;
        packet[8] = 0xfd;
        packet[23] = 1;
        packet[24] = 0xfd;
        packet[39] = 2;
        packet
    }

    #[test]
    fn fragmentation_needed_goes_back_and_quotes_the_packet() {
        let packet = v4(1400, 0x4000, UDP);
        let answer = too_big(&packet, 1351).unwrap();
        let ip = packet::parse(&answer).unwrap();
        assert_eq!((ip.src.to_string(), ip.dst.to_string()), ("10.7.0.2".to_owned(), "10.7.0.1".to_owned()));
        assert_eq!((ip.proto, ip.total_len), (ICMP, answer.len()));
        assert!(answer.len() <= 576);
        assert_eq!(checksum(0, &answer[..20]), 0);
        assert_eq!(checksum(0, &answer[20..]), 0);
        assert_eq!(answer[20..22], [3, 4]);
        assert_eq!(answer[26..28], 1351u16.to_be_bytes());
        assert_eq!(answer[28..], packet[..answer.len() - 28]);
    }

    #[test]
    fn packet_too_big_goes_back_but_never_asks_for_less_than_1280() {
        let packet = v6(1400, TCP);
        let answer = too_big(&packet, 1191).unwrap();
        let ip = packet::parse(&answer).unwrap();
        assert_eq!((ip.proto, ip.total_len), (ICMPV6, answer.len()));
        assert!(answer.len() <= 1280);
        let pseudo = pseudo_header(ip.src, ip.dst, ICMPV6, answer.len() - 40);
        assert_eq!(checksum(pseudo, &answer[40..]), 0);
        assert_eq!((answer[40], answer[44..48].to_vec()), (2, vec![0, 0, 5, 0]));
        assert_eq!(answer[48..], packet[..answer.len() - 48]);
        assert!(too_big(&v6(1280, TCP), 1191).is_none(), "every IPv6 link carries that");
    }

    #[test]
    fn nobody_is_told_of_what_may_be_cut_or_of_errors() {
        assert!(too_big(&v4(1400, 0, UDP), 1351).is_none(), "it may be cut");
        assert!(too_big(&v4(1400, 0x4001, UDP), 1351).is_none(), "a later fragment");
        let mut error = v4(1400, 0x4000, ICMP);
        error[20] = 3;
        assert!(too_big(&error, 1351).is_none());
        error[20] = 8;
        assert!(too_big(&error, 1351).is_some(), "an echo request is no error");
        let mut error = v6(1400, ICMPV6);
        assert!(too_big(&error, 1191).is_none());
        error[40] = 128;
        assert!(too_big(&error, 1191).is_some());
        for len in 0..40 {
            assert!(too_big(&v6(1400, TCP)[..len], 100).is_none());
            assert!(too_big(&v4(1400, 0x4000, UDP)[..len], 100).is_none());
        }
    }
}
