//! IP packets as a TUN gives them.

use edgelink_wire::packet::{self, checksum, pseudo_header};
use edgelink_wire::virtio::{F_NEEDS_CSUM, GSO_TCPV4, GSO_UDP_L4, VirtioHeader};
use std::net::Ipv4Addr;

/// A UDP packet without checksum.
pub(crate) fn udp(src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = ipv4(src, dst, packet::UDP, 8 + payload.len());
    packet.extend([0, 7, 0, 7]);
    packet.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// A TCP packet whose checksum is still to be completed, and the virtio header that says so; with `gso_size` a
/// super-packet.
pub(crate) fn tcp(src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8], gso_size: u16) -> ([u8; 10], Vec<u8>) {
    let len = 20 + payload.len();
    let mut packet = ipv4(src, dst, packet::TCP, len);
    packet.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0]);
    let partial = !checksum(pseudo_header(src.into(), dst.into(), packet::TCP, len), &[]);
    packet.extend(partial.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let header = VirtioHeader {
        flags: F_NEEDS_CSUM,
        gso_type: if gso_size > 0 { GSO_TCPV4 } else { 0 },
        hdr_len: 40,
        gso_size,
        csum_start: 20,
        csum_offset: 16,
    };
    (header.to_bytes(), packet)
}

/// What a program sent as several datagrams by one call.
pub(crate) fn datagrams(src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8], gso_size: u16) -> ([u8; 10], Vec<u8>) {
    let mut packet = udp(src, dst, payload);
    let partial = !checksum(pseudo_header(src.into(), dst.into(), packet::UDP, packet.len() - 20), &[]);
    packet[26..28].copy_from_slice(&partial.to_be_bytes());
    let header = VirtioHeader {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 28,
        gso_size,
        csum_start: 20,
        csum_offset: 6,
    };
    (header.to_bytes(), packet)
}

fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, payload: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(u16::try_from(20 + payload).unwrap().to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, proto, 0, 0]);
    header.extend(src.octets());
    header.extend(dst.octets());
    let sum = checksum(0, &header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Whether a whole IPv4 packet's TCP checksum is right.
pub(crate) fn tcp_checksum_is_right(packet: &[u8]) -> bool {
    checksum_is_right(packet, packet::TCP)
}

/// Whether a whole IPv4 packet's UDP checksum is right, and not left out.
pub(crate) fn udp_checksum_is_right(packet: &[u8]) -> bool {
    packet[26..28] != [0, 0] && checksum_is_right(packet, packet::UDP)
}

fn checksum_is_right(packet: &[u8], proto: u8) -> bool {
    let ip = packet::parse(packet).unwrap();
    let segment = &packet[ip.transport..ip.total_len];
    ip.proto == proto && checksum(pseudo_header(ip.src, ip.dst, proto, segment.len()), segment) == 0
}
