//! Core → TUN: segments of a flow are joined before the kernel gets them, one write for many packets.

use edgelink_os::tun::Tun;
use edgelink_wire::virtio::{self, GSO_UDP_L4, Joiner, VirtioHeader};
use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::rc::Rc;

const PLAIN: [u8; virtio::LEN] = [0; virtio::LEN];

/// Writes packets to the TUN. Nothing waits here beyond one turn of a task: whoever [pushes](Self::push) flushes before it
/// yields.
pub(super) struct TunWriter {
    tun: Rc<Tun>,
    joiner: RefCell<Joiner>,
    /// Packets that the kernel would not have since the last [`Self::flush`].
    refused: Cell<u32>,
    /// The kernel has refused a UDP super-packet.
    no_udp: Cell<bool>,
}

impl TunWriter {
    pub(super) fn new(tun: Rc<Tun>) -> Self {
        let joiner = RefCell::new(Joiner::new(tun.udp_offload()));
        Self { tun, joiner, refused: Cell::new(0), no_udp: Cell::new(false) }
    }

    /// Takes one packet with its virtio header; it may be written later, with others of its flow.
    pub(super) fn push(&self, header: &[u8], packet: &[u8]) {
        let mut joiner = self.joiner.borrow_mut();
        if header == PLAIN && self.tun.offload() {
            joiner.push(packet, &mut |header, packet| self.write(header, packet));
        } else {
            joiner.flush(&mut |header, packet| self.write(header, packet));
            self.write(header, packet);
        }
    }

    /// Writes what is held back. Returns how many packets the kernel has refused since the last time.
    pub(super) fn flush(&self) -> u32 {
        let mut joiner = self.joiner.borrow_mut();
        joiner.flush(&mut |header, packet| self.write(header, packet));
        joiner.set_udp(self.tun.udp_offload() && !self.no_udp.get());
        self.refused.take()
    }

    /// One packet. The kernel takes or drops it at once.
    fn write(&self, header: &[u8], packet: &[u8]) {
        let written = match self.tun.try_write_parts(header, packet) {
            Ok(_) => true,
            // Some kernels refuse super-packets that are valid (ADR 0007), and a plain device all: cut it here.
            Err(error) if error.kind() == ErrorKind::InvalidInput => self.write_segments(header, packet),
            Err(error) => {
                tracing::trace!(%error, len = packet.len(), "packet not written to the TUN");
                false
            }
        };
        self.refused.update(|refused| refused + u32::from(!written));
    }

    fn write_segments(&self, header: &[u8], packet: &[u8]) -> bool {
        let Some(header) = VirtioHeader::parse(header).filter(VirtioHeader::is_gso) else { return false };
        if header.gso_type == GSO_UDP_L4 && !self.no_udp.replace(true) {
            tracing::debug!("the kernel takes no UDP super-packets");
        }
        let mut all = true;
        let cut = virtio::segment(&header, packet, None, |segment| {
            all &= self.tun.try_write_parts(&PLAIN, segment).is_ok();
        });
        cut.is_ok() && all
    }
}
