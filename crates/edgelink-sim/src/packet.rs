//! Packets for the TUNs of the simulated nodes, and the probes in them.

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

/// What a test packet carries: who sent which one to whom. Everything is in it twice, once as a marker that must never be
/// seen between the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    /// Unique in a world.
    pub id: u64,
    /// Index of the sender.
    pub from: u32,
    /// Index of the receiver.
    pub to: u32,
}

/// Begins every probe's payload. Whoever sees it outside of the two ends has seen a plaintext.
pub(crate) const MARKER: &[u8; 16] = b"PLAINTEXT-PROBE!";

impl Probe {
    /// The payload, padded to `len` bytes where that is more than it needs.
    pub fn encode(&self, len: usize) -> Vec<u8> {
        let mut out = MARKER.to_vec();
        out.extend(self.id.to_be_bytes());
        out.extend(self.from.to_be_bytes());
        out.extend(self.to.to_be_bytes());
        let padding = len.saturating_sub(out.len());
        out.extend((0..padding).map(|i| (self.id as usize + i) as u8));
        out
    }

    /// Reads a whole UDP packet that carries one; `None` when it is none, or not exactly as sent.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let payload = packet.get(28..)?;
        let rest = payload.strip_prefix(MARKER)?;
        let (id, rest) = rest.split_first_chunk()?;
        let (from, rest) = rest.split_first_chunk()?;
        let (to, _) = rest.split_first_chunk()?;
        let probe = Self { id: u64::from_be_bytes(*id), from: u32::from_be_bytes(*from), to: u32::from_be_bytes(*to) };
        (probe.encode(payload.len()) == payload).then_some(probe)
    }
}
