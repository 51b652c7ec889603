//! UDP sockets and what waits to be sent by them (DESIGN §1, §6).

use crate::Drop;
use bytes::{Bytes, BytesMut};
use edgelink_path::SocketId;
use edgelink_wire::data;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// Datagrams of one size to one address are handed out together, up to what a kernel takes at once (UDP_SEGMENT).
const MAX_SEGMENTS: usize = 64;
const MAX_RUN: usize = 65_000;
/// Runs that get a buffer of [`MAX_RUN`] at once, and buffers kept for later ones. Beyond it buffers are as long as need be, so
/// that a queue of small runs takes no more memory than its bytes say.
const LARGE_BUFFERS: usize = 16;
/// Bound of what waits. Beyond it data is dropped.
const MAX_QUEUE: usize = 1 << 20;
/// While so much is sealed, packets wait unsealed: two runs keep the socket busy.
const ENOUGH: usize = 128 << 10;

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
    /// Filled up to `used`; what lies behind is left from the buffer's former use.
    bytes: BytesMut,
    used: usize,
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
    /// Buffers of [`MAX_RUN`].
    spare: Vec<BytesMut>,
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
        let len = parts.iter().map(|p| p.len()).sum::<usize>();
        self.push_with(socket, to, len, |frame| {
            let mut room = frame.get_mut(data::PLAINTEXT_OFFSET..).unwrap_or_default();
            for part in parts {
                let (here, rest) = room.split_at_mut_checked(part.len()).ok_or(Drop::TooLarge)?;
                here.copy_from_slice(part);
                room = rest;
            }
            seal(frame)
        })
    }

    /// Appends one DATA frame with `len` bytes of plaintext, which `fill` writes in its place, then seals. The frame's
    /// former content is arbitrary.
    pub(crate) fn push_with(
        &mut self,
        socket: SocketId,
        to: SocketAddr,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), Drop>,
    ) -> Result<(), Drop> {
        let len = data::OVERHEAD + len;
        if self.queued + len > MAX_QUEUE {
            return Err(Drop::QueueFull);
        }
        let fits = |run: &Run| {
            (run.socket, run.to) == (socket, to)
                && !run.closed
                && len <= run.segment
                && run.used + len <= MAX_RUN
                && run.used / run.segment < MAX_SEGMENTS
        };
        if !self.data.back().is_some_and(fits) {
            let bytes = self.buffer(len);
            self.data.push_back(Run { socket, to, bytes, used: 0, segment: len, closed: false, last: 0 });
        }
        let Some(run) = self.data.back_mut() else { return Err(Drop::QueueFull) };
        let (start, end) = (run.used, run.used + len);
        if run.bytes.len() < end {
            run.bytes.resize(end, 0);
        }
        fill(run.bytes.get_mut(start..end).unwrap_or_default())?;
        self.queued += len;
        run.used = end;
        run.closed = len < run.segment;
        run.last = start;
        Ok(())
    }

    /// For a new run that begins with a frame of `len` bytes.
    fn buffer(&mut self, len: usize) -> BytesMut {
        match self.spare.pop() {
            Some(bytes) if len <= bytes.capacity() => bytes,
            _ if self.data.len() < LARGE_BUFFERS => BytesMut::with_capacity(MAX_RUN.max(len)),
            _ => BytesMut::with_capacity(len),
        }
    }

    /// Takes back the buffer of what was sent.
    pub(crate) fn recycle(&mut self, bytes: Bytes) {
        if self.spare.len() < LARGE_BUFFERS
            && let Ok(bytes) = bytes.try_into_mut()
            && bytes.capacity() >= MAX_RUN
        {
            self.spare.push(bytes);
        }
    }

    /// The frame that [`Self::push_frame`] has just queued.
    pub(crate) fn last_frame(&self) -> &[u8] {
        self.data.back().and_then(|run| run.bytes.get(run.last..run.used)).unwrap_or_default()
    }

    pub(crate) fn pop(&mut self) -> Option<Transmit> {
        let next = match self.signals.pop_front() {
            Some(signal) => signal,
            None => loop {
                match self.data.pop_front() {
                    Some(run) if run.used == 0 => {}
                    Some(Run { socket, to, mut bytes, used, segment, .. }) => {
                        bytes.truncate(used);
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

    /// Whether less is sealed than the socket should get at once.
    pub(crate) fn takes_more(&self) -> bool {
        self.queued < ENOUGH
    }

    /// Whether the shell would get something at once.
    pub(crate) fn is_empty(&self) -> bool {
        self.queued == 0
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
    fn buffers_are_used_again_and_show_nothing_of_before() {
        let there = "192.0.2.1:1".parse().unwrap();
        let mut queue = UdpQueue::default();
        let mut seen = std::collections::HashSet::new();
        for round in 0..20u8 {
            for len in [1000, 1000, 10] {
                queue.push_frame(SocketId(1), there, &[&vec![round; len]], |_| Ok(())).unwrap();
            }
            let Transmit { bytes, segment, .. } = queue.pop().unwrap();
            assert_eq!(bytes.len(), 2010 + 3 * data::OVERHEAD);
            for frame in bytes.chunks(segment) {
                assert!(frame[data::PLAINTEXT_OFFSET..frame.len() - data::TAG_LEN].iter().all(|byte| *byte == round));
            }
            seen.insert(bytes.as_ptr());
            queue.recycle(bytes);
        }
        assert_eq!(seen.len(), 1);
        // Somebody else's share, and small buffers, are not kept.
        let shared = Bytes::from(vec![0; MAX_RUN]);
        queue.recycle(shared.clone());
        queue.recycle(Bytes::from(vec![0; 100]));
        assert_eq!((queue.spare.len(), shared.len()), (1, MAX_RUN));
    }

    #[test]
    fn small_runs_take_no_large_buffers() {
        let there = "192.0.2.1:1".parse().unwrap();
        let mut queue = UdpQueue::default();
        for n in 0..1_000 {
            queue.push_frame(SocketId(1), there, &[&vec![0; 100 + n % 2]], |_| Ok(())).unwrap();
        }
        let memory: usize = queue.data.iter().map(|run| run.bytes.capacity()).sum();
        assert!(memory < LARGE_BUFFERS * MAX_RUN + 500 * 1_000, "{memory}");
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
