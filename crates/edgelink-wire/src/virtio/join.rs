//! Rejoining consecutive segments of a flow into super-packets before the kernel gets them: what Linux does in
//! `inet_gro_receive`, `tcp_gro_receive` and `udp_gro_receive`, for packets that came out of tunnels.
//!
//! One write of 64 KiB costs the kernel little more than one of 1,400 bytes, so this is most of what the receiving side of a
//! direct path can save.

use super::{
    F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, LEN, MAX_SEGMENTS, MAX_SUPER_PACKET, TCP_CSUM_OFFSET,
    TCP_HEADER_LEN, UDP_CSUM_OFFSET, UDP_HEADER_LEN, VirtioHeader,
};
use crate::packet::{self, IPV6_HEADER_LEN, checksum, pseudo_header};
use std::net::IpAddr;

/// Flows that may be in the making at once. One more ends the oldest.
const MAX_TRAINS: usize = 8;
const IPV4_HEADER_LEN: usize = 20;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const DF: u8 = 0x40;

/// Joins what may be joined, and passes everything else on; see [`Self::push`].
///
/// What comes out is the same packets, in the same order within each flow: cutting the super-packets again
/// ([`super::segment`]) gives what went in, byte for byte (except for the IPv4 identification of packets that may not be
/// fragmented, where it means nothing: RFC 6864). Packets are joined only if
///
/// - they are unfragmented TCP or UDP without IPv4 options or IPv6 extension headers, of the same addresses and ports,
///   with right checksums, and the same TTL, TOS and *don't fragment*, or hop limit, traffic class and flow label;
/// - their IPv4 identifications rise by one, or with *don't fragment* stay the same;
/// - TCP: their payloads follow each other without gap or overlap; acknowledgement, window, options and flags are the same.
///   PSH and FIN are allowed on the last; URG, SYN, RST and CWR forbid it;
/// - all payloads but the last have the same length, and the last is not longer.
///
/// Memory: at most eight buffers of 64 KiB, made when first needed.
#[derive(Debug, Default)]
pub struct Joiner {
    /// Oldest first.
    trains: Vec<Train>,
    spare: Vec<Vec<u8>>,
    udp: bool,
}

/// A super-packet in the making.
#[derive(Debug)]
struct Train {
    key: Key,
    /// The first packet as it came, and the payloads of those that follow.
    bytes: Vec<u8>,
    transport: usize,
    head: usize,
    /// Payload of all but the last.
    size: usize,
    count: usize,
    /// Of the last segment.
    last_id: u16,
    id_step: Option<u16>,
    next_seq: u32,
    /// FIN and PSH of the last segment.
    last_flags: u8,
    /// Whether the first segment's checksums are right, once somebody has asked.
    sound: Option<bool>,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    ports: [u8; 4],
}

/// A TCP or UDP packet.
struct Candidate<'p> {
    packet: &'p [u8],
    key: Key,
    transport: usize,
    /// Where the payload begins; 0: this one is never joined.
    head: usize,
}

impl Joiner {
    /// Joins TCP, and UDP if `udp`: kernels before 6.2 do not know UDP super-packets.
    pub fn new(udp: bool) -> Self {
        Self { udp, ..Self::default() }
    }

    /// Changes whether UDP is joined.
    pub fn set_udp(&mut self, udp: bool) {
        self.udp = udp;
    }

    /// Whether [`Self::flush`] has nothing to do.
    pub fn is_empty(&self) -> bool {
        self.trains.is_empty()
    }

    /// Takes one whole IP packet without virtio header. What is finished by it, or cannot be joined, goes to `out`: a virtio
    /// header and a packet for the TUN.
    pub fn push(&mut self, packet: &[u8], out: &mut impl FnMut(&[u8; LEN], &[u8])) {
        let Some(candidate) = Candidate::parse(packet) else {
            // A fragment of some flow here, perhaps.
            if packet::parse(packet).is_none_or(|ip| ip.fragment) {
                self.flush(out);
            }
            return out(&[0; LEN], packet);
        };
        let joinable = candidate.head != 0 && (candidate.key.proto == packet::TCP || self.udp);
        if let Some(index) = self.trains.iter().position(|train| train.key == candidate.key) {
            let train = self.trains.get_mut(index).filter(|_| joinable);
            if train.is_some_and(|train| train.take(&candidate)) {
                if self.trains.get(index).is_some_and(|train| train.closed) {
                    self.finish(index, out);
                }
                return;
            }
            self.finish(index, out);
        }
        if !joinable || candidate.ends_train() {
            return out(&[0; LEN], packet);
        }
        if self.trains.len() == MAX_TRAINS {
            self.finish(0, out);
        }
        let bytes = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(MAX_SUPER_PACKET));
        self.trains.push(Train::new(&candidate, bytes));
    }

    /// Hands out what is in the making. To be called when no packet is waiting any more: nothing is held back for long.
    pub fn flush(&mut self, out: &mut impl FnMut(&[u8; LEN], &[u8])) {
        while !self.trains.is_empty() {
            self.finish(0, out);
        }
    }

    fn finish(&mut self, index: usize, out: &mut impl FnMut(&[u8; LEN], &[u8])) {
        if index >= self.trains.len() {
            return;
        }
        let mut train = self.trains.remove(index);
        let header = train.finish().unwrap_or_default();
        out(&header.to_bytes(), &train.bytes);
        train.bytes.clear();
        self.spare.push(train.bytes);
    }
}

impl<'p> Candidate<'p> {
    /// `None` for all but unfragmented TCP and UDP with their ports.
    fn parse(packet: &'p [u8]) -> Option<Self> {
        let ip = packet::parse(packet)?;
        if ip.fragment || !matches!(ip.proto, packet::TCP | packet::UDP) {
            return None;
        }
        let ports = *packet.get(ip.transport..ip.total_len)?.first_chunk()?;
        let key = Key { src: ip.src, dst: ip.dst, proto: ip.proto, ports };
        let plain = ip.transport == if ip.src.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
        let head = if plain && ip.total_len == packet.len() { head_of(packet, ip.transport, ip.proto) } else { None };
        Some(Self { packet, key, transport: ip.transport, head: head.unwrap_or(0) })
    }

    fn payload(&self) -> &'p [u8] {
        self.packet.get(self.head..).unwrap_or_default()
    }

    /// TCP's flags; 0 for UDP.
    fn flags(&self) -> u8 {
        if self.key.proto == packet::UDP { 0 } else { byte(self.packet, self.transport + 13) }
    }

    fn ends_train(&self) -> bool {
        self.flags() & (PSH | FIN) != 0
    }

    /// IPv4 and transport checksums.
    fn is_sound(&self) -> bool {
        is_sound(self.packet, &self.key, self.transport)
    }
}

/// Where the payload begins, if the packet may be joined with others at all.
fn head_of(packet: &[u8], transport: usize, proto: u8) -> Option<usize> {
    let segment = packet.get(transport..)?;
    let len = if proto == packet::UDP {
        let header: &[u8; UDP_HEADER_LEN] = segment.first_chunk()?;
        let whole = usize::from(u16::from_be_bytes([header[4], header[5]])) == segment.len();
        // Without a checksum nothing vouches for what would be joined.
        if !whole || header[6..] == [0, 0] {
            return None;
        }
        UDP_HEADER_LEN
    } else {
        let header: &[u8; TCP_HEADER_LEN] = segment.first_chunk()?;
        if header[13] & !(FIN | PSH | ECE) != ACK {
            return None;
        }
        usize::from(header[12] >> 4) * 4
    };
    (len >= UDP_HEADER_LEN && len < segment.len() && (proto == packet::UDP || len >= TCP_HEADER_LEN))
        .then_some(transport + len)
}

impl Train {
    fn new(first: &Candidate<'_>, mut bytes: Vec<u8>) -> Self {
        bytes.extend_from_slice(first.packet);
        let size = first.payload().len();
        Self {
            key: first.key,
            bytes,
            transport: first.transport,
            head: first.head,
            size,
            count: 1,
            last_id: word(first.packet, 4),
            id_step: None,
            next_seq: long(first.packet, first.transport + 4).wrapping_add(size as u32),
            last_flags: 0,
            sound: None,
            closed: false,
        }
    }

    /// Appends a segment if it belongs here.
    fn take(&mut self, next: &Candidate<'_>) -> bool {
        let payload = next.payload();
        let fits = payload.len() <= self.size
            && self.count < MAX_SEGMENTS
            && self.bytes.len() + payload.len() <= MAX_SUPER_PACKET
            && next.head == self.head
            && self.follows(next);
        let id = word(next.packet, 4);
        let step = id.wrapping_sub(self.last_id);
        if !fits || !self.id_fits(step) || !self.are_sound(next) {
            return false;
        }
        self.bytes.extend_from_slice(payload);
        self.count += 1;
        self.last_id = id;
        self.id_step = Some(step);
        self.next_seq = self.next_seq.wrapping_add(payload.len() as u32);
        self.last_flags = next.flags() & (PSH | FIN);
        self.closed = payload.len() < self.size || self.last_flags != 0;
        true
    }

    /// Whether the headers differ only where those of the next segment must.
    fn follows(&self, next: &Candidate<'_>) -> bool {
        let (ours, theirs) = (&*self.bytes, next.packet);
        let same = |from: usize, to: usize| ours.get(from..to) == theirs.get(from..to);
        let ip = if self.key.src.is_ipv4() {
            // TOS; fragmentation and TTL.
            same(1, 2) && same(6, 9)
        } else {
            // Traffic class and flow label; hop limit.
            same(0, 4) && same(7, 8)
        };
        if self.key.proto == packet::UDP {
            return ip;
        }
        let t = self.transport;
        ip && long(theirs, t + 4) == self.next_seq
            && same(t + 8, t + 13)
            && (byte(ours, t + 13) ^ byte(theirs, t + 13)) & !(PSH | FIN) == 0
            // Window; urgent pointer and options.
            && same(t + 14, t + 16)
            && same(t + 18, self.head)
    }

    fn id_fits(&self, step: u16) -> bool {
        if !self.key.src.is_ipv4() {
            return true;
        }
        let atomic = byte(&self.bytes, 6) & DF != 0;
        (step == 1 || (step == 0 && atomic)) && self.id_step.is_none_or(|before| before == step)
    }

    fn are_sound(&mut self, next: &Candidate<'_>) -> bool {
        let (bytes, key, transport) = (&self.bytes, &self.key, self.transport);
        *self.sound.get_or_insert_with(|| is_sound(bytes, key, transport)) && next.is_sound()
    }

    /// Makes the headers those of the whole; `None` for a single packet, which stays as it was.
    fn finish(&mut self) -> Option<VirtioHeader> {
        if self.count == 1 {
            return None;
        }
        let len = u16::try_from(self.bytes.len()).ok()?;
        let transport = u16::try_from(self.transport).ok()?;
        let (ip, segment) = self.bytes.split_at_mut_checked(self.transport)?;
        if self.key.src.is_ipv4() {
            put16(ip, 2, len)?;
            put16(ip, 10, 0)?;
            let sum = checksum(0, ip);
            put16(ip, 10, sum)?;
        } else {
            put16(ip, 4, len - transport)?;
        }
        let (gso_type, offset) = match (self.key.proto, self.key.src.is_ipv4()) {
            (packet::UDP, _) => {
                put16(segment, 4, len - transport)?;
                (GSO_UDP_L4, UDP_CSUM_OFFSET)
            }
            (_, v4) => {
                *segment.get_mut(13)? |= self.last_flags;
                (if v4 { GSO_TCPV4 } else { GSO_TCPV6 }, TCP_CSUM_OFFSET)
            }
        };
        // The kernel completes it, or finds that nobody needs it.
        let pseudo = pseudo_header(self.key.src, self.key.dst, self.key.proto, segment.len());
        put16(segment, offset, u16::try_from(pseudo).ok()?)?;
        Some(VirtioHeader {
            flags: F_NEEDS_CSUM,
            gso_type,
            hdr_len: u16::try_from(self.head).ok()?,
            gso_size: u16::try_from(self.size).ok()?,
            csum_start: transport,
            csum_offset: u16::try_from(offset).ok()?,
        })
    }
}

fn is_sound(packet: &[u8], key: &Key, transport: usize) -> bool {
    let Some((ip, segment)) = packet.split_at_checked(transport) else { return false };
    (!key.src.is_ipv4() || checksum(0, ip) == 0)
        && checksum(pseudo_header(key.src, key.dst, key.proto, segment.len()), segment) == 0
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

fn word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u16::from_be_bytes(*word))
}

fn long(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |long| u32::from_be_bytes(*long))
}

fn put16(bytes: &mut [u8], at: usize, value: u16) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = value.to_be_bytes();
    Some(())
}
