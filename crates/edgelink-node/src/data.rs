//! The packet path: TUN → seal in place → relay, and relay → open in place → TUN (DESIGN §2, §6).

use crate::link::LinkId;
use crate::paths::Plan;
use crate::waiting::Wait;
use crate::{Drop, Event, Node};
use edgelink_model::{NodeId, Now, ServerId, capabilities};
use edgelink_path::{Hops, Way};
use edgelink_session::OpenError;
use edgelink_wire::packet::IpView;
use edgelink_wire::virtio::{self, VirtioHeader};
use edgelink_wire::{Flags, Frame, FrameType, HEADER_LEN, icmp, packet};
use std::time::Duration;

/// The virtio header of a plain packet: nothing to do.
const PLAIN: [u8; virtio::LEN] = [0; virtio::LEN];

const UDP_HEADER: usize = 8;
/// Least time between two complaints about packets that are too large.
const COMPLAIN_INTERVAL: Duration = Duration::from_millis(2);

impl Node {
    /// One read of the TUN: a 10-byte virtio header and an IP packet or super-packet. May complete the packet's
    /// checksum in place. What must wait is copied; [`Self::handle_tun_buffer`] need not do that.
    pub fn handle_tun(&mut self, frame: &mut [u8], now: Now) {
        match self.send_or_wait(frame, now) {
            Ok(None) => {}
            Ok(Some(wait)) => self.wait(&wait, frame.to_vec(), frame.len(), now),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// [`Self::handle_tun`] for what fills the first `len` bytes of a buffer that another of the same length may take the place of.
    pub fn handle_tun_buffer(&mut self, buffer: &mut Vec<u8>, len: usize, now: Now) {
        match self.send_or_wait(buffer.get_mut(..len).unwrap_or_default(), now) {
            Ok(None) => {}
            Ok(Some(wait)) => {
                let frame = self.take_frame(buffer, len);
                self.wait(&wait, frame, len, now);
            }
            Err(reason) => self.drops.count(reason),
        }
    }

    fn send_or_wait(&mut self, frame: &mut [u8], now: Now) -> Result<Option<Wait>, Drop> {
        let packet = frame.get(virtio::LEN..).ok_or(Drop::NotIp)?;
        let ip = packet::parse(packet).ok_or(Drop::NotIp)?;
        let identity = self.identity.as_ref().ok_or(Drop::NoSession)?;
        if !identity.addresses.contains(&ip.src) && !self.serves(ip.src) {
            return Err(Drop::ForeignSource);
        }
        let peer = match self.peers.by_address(ip.dst) {
            Some(peer) => peer,
            None => self.gateway_for(&ip, packet).ok_or(Drop::NoRoute)?,
        };
        if self.crowded
            && let Some(exit) = self.busy_exit(peer)
        {
            let flow = packet::flow_hash(&ip, packet) as u16;
            return Ok(Some(Wait { exit, peer, flow }));
        }
        self.send_packet(peer, &ip, frame, now).map(|()| None)
    }

    /// Seals a packet, of which `ip` is the header, for a peer and queues it where it will be sent from.
    pub(crate) fn send_packet(&mut self, peer: NodeId, ip: &IpView, frame: &mut [u8], now: Now) -> Result<(), Drop> {
        let (header_bytes, packet) = frame.split_at_mut_checked(virtio::LEN).ok_or(Drop::NotIp)?;
        let mut header = VirtioHeader::parse(header_bytes).ok_or(Drop::NotIp)?;
        let bytes = packet.len();
        let mut plan = self.plan(peer, bytes, now)?;
        if !plan.first.is_direct() {
            plan.label = self.labels.label(packet::flow_hash(ip, packet) as u16, bytes, now.mono);
        }
        let narrow = plan.hedging || plan.limit.is_some();
        // TCP is cut to what the path carries; datagrams are what they are.
        let whole = match header.gso_type & !virtio::GSO_ECN {
            virtio::GSO_NONE => packet.len(),
            virtio::GSO_UDP_L4 => ip.transport + UDP_HEADER + usize::from(header.gso_size),
            _ => 0,
        };
        if plan.limit.is_some_and(|limit| whole > usize::from(limit)) {
            header = self.too_large(peer, header, packet, &mut plan, now)?;
        }
        if !header.is_gso() {
            virtio::complete_checksum(&header, packet).map_err(|_| Drop::NotIp)?;
            self.send_sealed(peer, FrameType::Data, Flags::default(), &[packet], plan, now)?;
        } else if self.takes_super_packets(peer, &header) && !narrow && virtio::validate(&header, packet).is_ok() {
            let limit = self.packet_limit(plan.first);
            if packet.len() <= limit {
                self.send_sealed(peer, FrameType::Data, Flags::SUPER_PACKET, &[header_bytes, packet], plan, now)?;
            } else {
                self.send_sliced(peer, &header, packet, limit, plan, now)?;
            }
        } else {
            // The peer wants plain packets, or would refuse this one (it may not fit a frame), or two ways are used
            // at once and one may be narrow: cut it here.
            self.send_cut(peer, &header, packet, plan, now)?;
        }
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.tx_bytes += bytes as u64;
        }
        Ok(())
    }

    /// A packet is too large for the direct path: if it may not be cut, its sender hears of it, as a router would say; TCP is
    /// cut, lest its segments overtake each other on two ways; all else goes through a relay whole (DESIGN §5, MTU).
    fn too_large(
        &mut self,
        peer: NodeId,
        header: VirtioHeader,
        packet: &[u8],
        plan: &mut Plan,
        now: Now,
    ) -> Result<VirtioHeader, Drop> {
        let limit = plan.limit.unwrap_or(u16::MAX);
        if let Some(complaint) = icmp::too_big(packet, limit) {
            self.complain(complaint, now);
            return Err(Drop::TooLarge);
        }
        if let Some(cut) = virtio::plain_tcp(&header, packet) {
            return Ok(cut);
        }
        let relay = self.relay_way(peer).ok_or(Drop::TooLarge)?;
        *plan = Plan { first: relay, second: None, limit: None, ..*plan };
        Ok(header)
    }

    /// Hands the TUN a packet of our own making, not too often.
    fn complain(&mut self, packet: Vec<u8>, now: Now) {
        let due = self.complained_at.is_none_or(|at| now.mono.saturating_duration_since(at) >= COMPLAIN_INTERVAL);
        if due {
            self.complained_at = Some(now.mono);
            self.events.push_back(Event::Packet(packet));
        }
    }

    fn takes_super_packets(&self, peer: NodeId, header: &VirtioHeader) -> bool {
        let peer = self.sessions.as_ref().map_or(0, |s| s.peer_capabilities(peer));
        let udp = header.gso_type == virtio::GSO_UDP_L4;
        peer & if udp { capabilities::UDP_SUPER_PACKETS } else { capabilities::SUPER_PACKETS } != 0
    }

    pub(crate) fn handle_relay_message(
        &mut self,
        id: ServerId,
        link: LinkId,
        message: &mut [u8],
        now: Now,
        rng: &mut impl rand_core::Rng,
        tun: &mut impl FnMut(&[u8], &[u8]),
    ) {
        if !self.heard_relay(id, link, now) {
            return;
        }
        for frame in edgelink_wire::frames_mut(message) {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return self.relay_nonsense(id, link, &error, now, rng),
            };
            let hops = if frame.flags.contains(Flags::LOCAL_ONLY) { Hops::One } else { Hops::Any };
            let way = Way::Relay { relay: id, hops };
            let ty = FrameType::from_u8(frame.ty);
            let outcome = match ty {
                Some(FrameType::Data | FrameType::P2pPing | FrameType::P2pPong) => {
                    self.receive_frame(frame.raw, ty, way, now, tun)
                }
                Some(FrameType::KeyAnnounce) => {
                    self.handle_key_announce(frame.raw.get(HEADER_LEN..).unwrap_or_default(), now);
                    Ok(())
                }
                _ => {
                    let raw = &*frame.raw;
                    let payload = raw.get(HEADER_LEN..).unwrap_or_default();
                    let frame = Frame { ty: frame.ty, flags: frame.flags, payload, raw };
                    self.handle_relay_control(id, link, &frame, now, rng);
                    Ok(())
                }
            };
            if let Err(reason) = outcome {
                self.drops.count(reason);
            }
            if !self.links.contains_key(&link) {
                return;
            }
        }
    }

    /// A sealed frame that came over `way`.
    pub(crate) fn receive_frame(
        &mut self,
        raw: &mut [u8],
        ty: Option<FrameType>,
        way: Way,
        now: Now,
        tun: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Drop> {
        match ty {
            Some(FrameType::Data) => self.receive_packet(raw, way, now, tun),
            Some(FrameType::P2pPing) => self.receive_probe(raw, way, now, true),
            Some(FrameType::P2pPong) => self.receive_probe(raw, way, now, false),
            _ => Err(Drop::Malformed),
        }
    }

    fn receive_packet(
        &mut self,
        raw: &mut [u8],
        way: Way,
        now: Now,
        tun: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Drop> {
        let super_packet = raw.get(2).is_some_and(|flags| Flags(*flags).contains(Flags::SUPER_PACKET));
        let (from, plaintext) = self.open(raw, way, now)?;
        let (header, packet): (&[u8], &[u8]) = if super_packet {
            let (header, packet) = plaintext.split_at_checked(virtio::LEN).ok_or(Drop::BadSuperPacket)?;
            let parsed = VirtioHeader::parse(header).ok_or(Drop::BadSuperPacket)?;
            virtio::validate(&parsed, packet).map_err(|_| Drop::BadSuperPacket)?;
            (header, packet)
        } else {
            (&PLAIN, plaintext)
        };
        // Cryptokey routing: the key that opened the frame decides which source it may carry.
        let ip = packet::parse(packet).ok_or(Drop::NotIp)?;
        let for_us = self.identity.as_ref().is_some_and(|me| me.addresses.contains(&ip.dst)) || self.serves(ip.dst);
        let mut peer = self.peers.get_mut(from).ok_or(Drop::UnknownKey)?;
        if !peer.addresses.contains(&ip.src) {
            if !self.may_source(ip.src, from) {
                return Err(Drop::SpoofedSource);
            }
            peer = self.peers.get_mut(from).ok_or(Drop::UnknownKey)?;
        }
        if !for_us {
            return Err(Drop::ForeignDestination);
        }
        peer.rx_bytes += packet.len() as u64;
        if peer.note_data(now.mono) {
            self.talks(from, now);
        }
        tun(header, packet);
        Ok(())
    }

    /// A probe is answered over the way that it came by: it proves both directions.
    fn receive_probe(&mut self, raw: &mut [u8], way: Way, now: Now, ping: bool) -> Result<(), Drop> {
        let (from, plaintext) = self.open(raw, way, now)?;
        if ping {
            self.handle_sealed_endpoints(from, plaintext, now);
            let echo = plaintext.to_vec();
            let plan = Plan::only(way);
            self.send_sealed(from, FrameType::P2pPong, Flags::default(), &[&echo], plan, now)
        } else {
            let probe = edgelink_wire::probe::Probe::parse(plaintext).map_err(|_| Drop::Malformed)?;
            self.path_pong(from, probe, way, now);
            self.punch_pong(from, probe, way, now);
            self.stream_pong(from, probe, way, now);
            self.handle_pong(from, probe, now);
            self.gateway_back(from, now);
            Ok(())
        }
    }

    /// Authenticates one sealed frame; only then anything about its sender is believed.
    fn open<'f>(&mut self, raw: &'f mut [u8], way: Way, now: Now) -> Result<(NodeId, &'f [u8]), Drop> {
        let sessions = self.sessions.as_mut().ok_or(Drop::UnknownKey)?;
        match sessions.open(raw, now.mono) {
            Ok(opened) => {
                self.note_stream_frame(opened.peer, way, now)?;
                let peer = self.peers.get_mut(opened.peer).ok_or(Drop::UnknownKey)?;
                peer.last_rx = Some(now.mono);
                peer.undeliverable = None;
                peer.unopened = None;
                let wider = if peer.arrivals.note(way, now.mono) { peer.arrivals.poll_timeout() } else { None };
                let (from, plaintext) = (opened.peer, opened.plaintext);
                if let Some(until) = wider {
                    self.widen_window(from, until);
                }
                self.note_udp(from, way, now);
                Ok((from, plaintext))
            }
            Err(OpenError::UnknownKey { src } | OpenError::UnknownPeer { src }) => {
                self.greet_stranger(src, now);
                Err(Drop::UnknownKey)
            }
            Err(OpenError::NotForUs) => Err(Drop::NotForUs),
            Err(OpenError::Replayed | OpenError::TooOld) => Err(Drop::Replayed),
            Err(OpenError::BadTag) => Err(Drop::BadTag),
            Err(_) => Err(Drop::Malformed),
        }
    }
}
