//! Packets for the TUNs of the simulated nodes.

use edgelink_wire::packet::{UDP, checksum};
use std::net::Ipv4Addr;

/// A valid UDP packet with `payload`, as a TUN would give it, without virtio header.
pub fn udp_packet(src: Ipv4Addr, dst: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(28 + payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
    packet.extend(src.octets());
    packet.extend(dst.octets());
    let sum = checksum(0, &packet);
    if let Some(field) = packet.get_mut(10..12) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend(7u16.to_be_bytes());
    packet.extend(7u16.to_be_bytes());
    packet.extend((total - 20).to_be_bytes());
    // A checksum of zero means "none" in UDP over IPv4 (RFC 768).
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}
