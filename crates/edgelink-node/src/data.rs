//! The packet path: TUN → seal in place → relay, and relay → open in place → TUN (DESIGN §2, §6).

use crate::link::LinkId;
use crate::{Drop, Node};
use edgelink_model::{NodeId, Now, ServerId, capabilities};
use edgelink_session::{OpenError, SealError};
use edgelink_wire::virtio::{self, VirtioHeader};
use edgelink_wire::{Flags, Frame, FrameMut, FrameType, HEADER_LEN, packet};

/// The virtio header of a plain packet: nothing to do.
const PLAIN: [u8; virtio::LEN] = [0; virtio::LEN];

impl Node {
    /// One read of the TUN: a 10-byte virtio header and an IP packet or TCP super-packet. May complete the packet's
    /// checksum in place.
    pub fn handle_tun(&mut self, frame: &mut [u8], now: Now) {
        if let Err(reason) = self.send_packet(frame, now) {
            self.drops.count(reason);
        }
    }

    fn send_packet(&mut self, frame: &mut [u8], now: Now) -> Result<(), Drop> {
        let (header_bytes, packet) = frame.split_at_mut_checked(virtio::LEN).ok_or(Drop::NotIp)?;
        let header = VirtioHeader::parse(header_bytes).ok_or(Drop::NotIp)?;
        let ip = packet::parse(packet).ok_or(Drop::NotIp)?;
        let identity = self.identity.as_ref().ok_or(Drop::NoSession)?;
        if !identity.addresses.contains(&ip.src) {
            return Err(Drop::ForeignSource);
        }
        let peer = self.peers.by_address(ip.dst).ok_or(Drop::NoRoute)?;
        let bytes = packet.len();
        if !header.is_gso() {
            virtio::complete_checksum(&header, packet).map_err(|_| Drop::NotIp)?;
            self.send_sealed(peer, FrameType::Data, Flags::default(), &[packet], now)?;
        } else if self.takes_super_packets(peer) && virtio::validate(&header, packet).is_ok() {
            self.send_sealed(peer, FrameType::Data, Flags::SUPER_PACKET, &[header_bytes, packet], now)?;
        } else {
            // The peer wants plain packets, or would refuse this one (it may not fit a frame): cut it here.
            let mut outcome = Ok(());
            virtio::segment(&header, packet, None, |segment| {
                let sent = self.send_sealed(peer, FrameType::Data, Flags::default(), &[segment], now);
                outcome = outcome.and(sent);
            })
            .map_err(|_| Drop::NotIp)?;
            outcome?;
        }
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.tx_bytes += bytes as u64;
        }
        Ok(())
    }

    fn takes_super_packets(&self, peer: NodeId) -> bool {
        let peer = self.sessions.as_ref().map_or(0, |s| s.peer_capabilities(peer));
        peer & capabilities::SUPER_PACKETS != 0
    }

    /// Seals one frame into the data link's batch. Announces our key first when the peer has not confirmed it.
    pub(crate) fn send_sealed(
        &mut self,
        peer: NodeId,
        ty: FrameType,
        flags: Flags,
        parts: &[&[u8]],
        now: Now,
    ) -> Result<(), Drop> {
        let link_id = self.data_link.ok_or(Drop::NoPath)?;
        if let Some(state) = self.peers.get_mut(peer) {
            state.last_tx = Some(now.mono);
        }
        let sessions = self.sessions.as_mut().ok_or(Drop::NoSession)?;
        if !sessions.peer_confirmed(peer) {
            self.announce_until_confirmed(peer, now);
        }
        let (sessions, links) = (self.sessions.as_mut().ok_or(Drop::NoSession)?, &mut self.links);
        let link = links.get_mut(&link_id).ok_or(Drop::NoPath)?;
        let mut sealer = sessions.sealer(peer).map_err(|_| Drop::NoSession)?;
        link.push_frame(parts, |frame| {
            sealer.seal(ty, flags, frame).map_err(|error| match error {
                SealError::Frame(_) => Drop::TooLarge,
                _ => Drop::NoSession,
            })
        })?;
        self.writable(link_id);
        Ok(())
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
            let outcome = match FrameType::from_u8(frame.ty) {
                Some(FrameType::Data) => self.receive_packet(frame, now, tun),
                Some(FrameType::P2pPing) => self.receive_probe(frame, now, true),
                Some(FrameType::P2pPong) => self.receive_probe(frame, now, false),
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

    fn receive_packet(
        &mut self,
        frame: FrameMut<'_>,
        now: Now,
        tun: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), Drop> {
        let super_packet = frame.flags.contains(Flags::SUPER_PACKET);
        let (from, plaintext) = self.open(frame.raw, now)?;
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
        let peer = self.peers.get_mut(from).ok_or(Drop::UnknownKey)?;
        if !peer.addresses.contains(&ip.src) {
            return Err(Drop::SpoofedSource);
        }
        if !self.identity.as_ref().is_some_and(|me| me.addresses.contains(&ip.dst)) {
            return Err(Drop::ForeignDestination);
        }
        peer.rx_bytes += packet.len() as u64;
        tun(header, packet);
        Ok(())
    }

    fn receive_probe(&mut self, frame: FrameMut<'_>, now: Now, ping: bool) -> Result<(), Drop> {
        let (from, plaintext) = self.open(frame.raw, now)?;
        if ping {
            let echo = plaintext.to_vec();
            self.send_sealed(from, FrameType::P2pPong, Flags::default(), &[&echo], now)
        } else {
            let probe = edgelink_wire::probe::Probe::parse(plaintext).map_err(|_| Drop::Malformed)?;
            self.handle_pong(from, probe, now);
            Ok(())
        }
    }

    /// Authenticates one sealed frame; only then anything about its sender is believed.
    fn open<'f>(&mut self, raw: &'f mut [u8], now: Now) -> Result<(NodeId, &'f [u8]), Drop> {
        let sessions = self.sessions.as_mut().ok_or(Drop::UnknownKey)?;
        match sessions.open(raw, now.mono) {
            Ok(opened) => {
                let peer = self.peers.get_mut(opened.peer).ok_or(Drop::UnknownKey)?;
                peer.last_rx = Some(now.mono);
                peer.undeliverable = None;
                Ok((opened.peer, opened.plaintext))
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
