//! UDP sockets and what waits to be sent by them (DESIGN §1, §6).

use crate::Drop;
use bytes::{Bytes, BytesMut};
use edgelink_path::SocketId;
use edgelink_wire::data;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Datagrams of one size to one address are handed out together, up to what a kernel takes at once (UDP_SEGMENT).
const MAX_SEGMENTS: usize = 64;
const MAX_RUN: usize = 62 << 10;
/// Bound of what waits. Beyond it data is dropped.
const MAX_QUEUE: usize = 1 << 20;
/// The shell stops reading the TUN while more than this waits.
const PAUSE: usize = 512 << 10;

/// One datagram or several of one size, to one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// From this socket.
    pub socket: SocketId,
    /// To this address.
    pub to: SocketAddr,
    /// The datagrams, back to back.
    pub bytes: Bytes,
    /// Length of each but the last, which may be shorter.
    pub segment: usize,
}

#[derive(Debug)]
struct Run {
    socket: SocketId,
    to: SocketAddr,
    bytes: BytesMut,
    segment: usize,
    /// The last datagram is shorter: nothing may follow it.
    closed: bool,
    last: usize,
}

/// What waits to be sent; signalling first.
#[derive(Debug, Default)]
pub(crate) struct UdpQueue {
    signals: VecDeque<Transmit>,
    data: VecDeque<Run>,
    queued: usize,
    pub(crate) announced: bool,
}

impl UdpQueue {
    /// Queues one datagram of signalling.
    pub(crate) fn signal(&mut self, socket: SocketId, to: SocketAddr, bytes: Vec<u8>) -> Result<(), Drop> {
        if self.queued + bytes.len() > MAX_QUEUE {
            return Err(Drop::QueueFull);
        }
        self.queued += bytes.len();
        let segment = bytes.len();
        self.signals.push_back(Transmit { socket, to, bytes: bytes.into(), segment });
        Ok(())
    }

    /// Appends one DATA frame; as [`crate::link::Link::push_frame`].
    pub(crate) fn push_frame(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        parts: &[&[u8]],
        seal: impl FnOnce(&mut [u8]) -> Result<(), Drop>,
    ) -> Result<(), Drop> {
        let len = data::OVERHEAD + parts.iter().map(|p| p.len()).sum::<usize>();
        if self.queued + len > MAX_QUEUE {
            return Err(Drop::QueueFull);
        }
        let fits = |run: &Run| {
            (run.socket, run.to) == (socket, to)
                && !run.closed
                && len <= run.segment
                && run.bytes.len() + len <= MAX_RUN
                && run.bytes.len() / run.segment < MAX_SEGMENTS
        };
        if !self.data.back().is_some_and(fits) {
            let bytes = BytesMut::with_capacity(len);
            self.data.push_back(Run { socket, to, bytes, segment: len, closed: false, last: 0 });
        }
        let Some(run) = self.data.back_mut() else { return Err(Drop::QueueFull) };
        let start = run.bytes.len();
        run.bytes.extend_from_slice(&[0; data::PLAINTEXT_OFFSET]);
        for part in parts {
            run.bytes.extend_from_slice(part);
        }
        run.bytes.extend_from_slice(&[0; data::TAG_LEN]);
        let sealed = seal(run.bytes.get_mut(start..).unwrap_or_default());
        match sealed {
            Ok(()) => {
                self.queued += len;
                run.closed = len < run.segment;
                run.last = start;
            }
            Err(_) => run.bytes.truncate(start),
        }
        sealed
    }

    /// The frame that [`Self::push_frame`] has just queued.
    pub(crate) fn last_frame(&self) -> &[u8] {
        self.data.back().and_then(|run| run.bytes.get(run.last..)).unwrap_or_default()
    }

    pub(crate) fn pop(&mut self) -> Option<Transmit> {
        let next = match self.signals.pop_front() {
            Some(signal) => signal,
            None => loop {
                match self.data.pop_front() {
                    Some(run) if run.bytes.is_empty() => {}
                    Some(Run { socket, to, bytes, segment, .. }) => {
                        break Transmit { socket, to, bytes: bytes.freeze(), segment };
                    }
                    None => {
                        self.announced = false;
                        return None;
                    }
                }
            },
        };
        self.queued = self.queued.saturating_sub(next.bytes.len());
        Some(next)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.queued >= PAUSE
    }

    pub(crate) fn clear(&mut self) {
        *self = Self { announced: self.announced, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_of_one_size_share_a_run_and_a_shorter_one_ends_it() {
        let (here, there) = (SocketId(1), "192.0.2.1:1".parse().unwrap());
        let mut queue = UdpQueue::default();
        for len in [100, 100, 60, 100, 101, 100] {
            queue
                .push_frame(here, there, &[&vec![7; len]], |frame| {
                    frame[0] = 1;
                    Ok(())
                })
                .unwrap();
        }
        assert!(queue.push_frame(here, there, &[&[7; 10]], |_| Err(Drop::NoSession)).is_err());
        queue.signal(here, there, vec![1, 2, 3]).unwrap();
        let runs: Vec<(usize, usize)> =
            std::iter::from_fn(|| queue.pop()).map(|t| (t.bytes.len(), t.segment)).collect();
        let o = data::OVERHEAD;
        assert_eq!(runs, [(3, 3), (260 + 3 * o, 100 + o), (100 + o, 100 + o), (201 + 2 * o, 101 + o)]);
        assert_eq!(queue.queued, 0);
    }

    #[test]
    fn it_is_bounded() {
        let mut queue = UdpQueue::default();
        let there = "192.0.2.1:1".parse().unwrap();
        let mut taken = 0;
        while queue.push_frame(SocketId(1), there, &[&[0; 1400]], |_| Ok(())).is_ok() {
            taken += 1400 + data::OVERHEAD;
        }
        assert!(taken <= MAX_QUEUE && taken > MAX_QUEUE - 2000);
        assert!(queue.signal(SocketId(1), there, vec![0; 1400]).is_err());
        while let Some(transmit) = queue.pop() {
            assert!(transmit.bytes.len() <= MAX_RUN && transmit.bytes.len().div_ceil(transmit.segment) <= MAX_SEGMENTS);
        }
    }
}
