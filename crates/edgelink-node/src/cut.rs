//! Super-packets over ways that take packets of a path's MTU only.

use crate::paths::{Exit, Plan, not_sealed, set_local_only};
use crate::{Drop, Node};
use edgelink_model::{NodeId, Now};
use edgelink_wire::virtio::{self, Segments, VirtioHeader};
use edgelink_wire::{Flags, FrameType, data, packet};

impl Node {
    /// Cuts `packet` as its header says and sends every piece as planned.
    pub(crate) fn send_cut(
        &mut self,
        peer: NodeId,
        header: &VirtioHeader,
        packet: &[u8],
        plan: Plan,
        now: Now,
    ) -> Result<(), Drop> {
        let mss = plan.limit.and_then(|limit| mss_within(limit, packet));
        let mut segments = Segments::new(header, packet, mss).map_err(|_| Drop::NotIp)?;
        if plan.second.is_none()
            && let Some(exit @ Exit::Udp(..)) = self.exit_of(plan.first)
        {
            return self.seal_segments(peer, &mut segments, exit, plan, now);
        }
        let mut outcome = Ok(());
        virtio::segment(header, packet, mss, |segment| {
            let sent = self.send_sealed(peer, FrameType::Data, Flags::default(), &[segment], plan, now);
            outcome = outcome.and(sent);
        })
        .map_err(|_| Drop::NotIp)?;
        outcome
    }

    /// A super-packet that would occupy its connection for too long goes as several, each of at most `limit` bytes.
    pub(crate) fn send_sliced(
        &mut self,
        peer: NodeId,
        header: &VirtioHeader,
        packet: &[u8],
        limit: usize,
        plan: Plan,
        now: Now,
    ) -> Result<(), Drop> {
        let mut outcome = Ok(());
        virtio::slice(header, packet, limit, |header, slice| {
            let plain = *header == [0; virtio::LEN];
            let (flags, parts): (_, &[&[u8]]) =
                if plain { (Flags::default(), &[slice]) } else { (Flags::SUPER_PACKET, &[header, slice]) };
            let sent = self.send_sealed(peer, FrameType::Data, flags, parts, plan, now);
            outcome = outcome.and(sent);
        })
        .map_err(|_| Drop::NotIp)?;
        outcome
    }

    /// The largest packet that should go in one frame the way that begins so.
    pub(crate) fn packet_limit(&self, way: edgelink_path::Way) -> usize {
        match self.exit_of(way) {
            Some(Exit::Link(link)) => self.links.get(&link).map_or(usize::MAX, |link| link.packet_limit()),
            _ => usize::MAX,
        }
    }

    /// The usual case of a direct path: peer, path and key are looked up once, every segment is written and sealed where it
    /// will be sent from.
    fn seal_segments(
        &mut self,
        peer: NodeId,
        segments: &mut Segments<'_>,
        exit: Exit,
        plan: Plan,
        now: Now,
    ) -> Result<(), Drop> {
        let Exit::Udp(socket, remote) = exit else { return Err(Drop::NoPath) };
        if !self.sessions.as_ref().ok_or(Drop::NoSession)?.peer_confirmed(peer) {
            self.announce_until_confirmed(peer, now);
        }
        let sessions = self.sessions.as_mut().ok_or(Drop::NoSession)?;
        let mut sealer = sessions.sealer(peer).map_err(|_| Drop::NoSession)?;
        let mut outcome = Ok(());
        while outcome.is_ok() {
            let len = segments.next_len();
            if len == 0 {
                break;
            }
            outcome = self.direct.queue.push_with(socket, remote, len, |frame| {
                let text = frame.get_mut(data::PLAINTEXT_OFFSET..data::PLAINTEXT_OFFSET + len);
                segments.write_next(text.unwrap_or_default()).ok_or(Drop::NotIp)?;
                sealer.seal(FrameType::Data, Flags::default(), frame).map_err(not_sealed)?;
                set_local_only(frame, plan.first);
                Ok(())
            });
        }
        self.crowded |= self.direct.is_busy();
        self.udp_queued();
        outcome
    }
}

/// The most TCP payload per segment with which the segments of `packet` stay within `limit`.
fn mss_within(limit: u16, packet: &[u8]) -> Option<u16> {
    let transport = packet::parse(packet)?.transport;
    let tcp = packet.get(transport + 12).map_or(20, |byte| usize::from(byte >> 4) * 4);
    let headers = u16::try_from(transport + tcp).ok()?;
    Some(limit.saturating_sub(headers).max(1))
}
