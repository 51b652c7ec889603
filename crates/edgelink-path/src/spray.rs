//! Meeting a symmetric NAT where the other side filters by port: many sockets against many guesses (DESIGN §5).
//!
//! The side whose mapping depends on the destination opens [`SPRAY_SOCKETS`] sockets and sends one datagram from each to
//! the other's mapped address: so many ports of its router lead to it then. The other side guesses ports of that router.
//! With 128 of 64,512 ports open, 1,060 guesses meet one of them with a probability of 88 %.
//!
//! Every 10 s half of the sockets give way to new ones. A new mapping is also met when the other side has guessed its port
//! *before*, while its own router remembers that guess: a second chance everywhere, and the only one where that router lets
//! an early packet claim the tuple for good.

use crate::SocketId;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Sockets that the symmetric side opens.
pub const SPRAY_SOCKETS: usize = 128;
/// How long both sides go on.
pub const SPRAY_FOR: Duration = Duration::from_secs(62);
/// Half of the sockets are replaced this often: so each is used for 20 s, well below the 30 s after which routers forget what
/// was not answered.
const RENEW: Duration = Duration::from_secs(10);
/// Ports that routers give out.
const FIRST_PORT: u32 = 1024;
const PORTS: u32 = 65_536 - FIRST_PORT;
/// The most addresses of the peer that are looked at.
const MAX_ADDRESSES: usize = 2;

/// One side's part.
#[derive(Debug)]
pub struct Spray {
    part: Part,
    not_before: Option<Instant>,
}

#[derive(Debug)]
enum Part {
    /// Guesses ports of these addresses, each once before any comes again.
    Ports { from: SocketId, addresses: Vec<IpAddr>, next: u32, step: u32, sent: u32 },
    /// Opens mappings towards these addresses.
    Sockets { sockets: Vec<SocketId>, remotes: Vec<SocketAddr>, next: usize, began: Option<Instant> },
}

impl Spray {
    /// The side that guesses, from this socket. `seed` decides in which order.
    pub fn ports(from: SocketId, addresses: impl IntoIterator<Item = IpAddr>, seed: u64) -> Option<Self> {
        let mut addresses: Vec<IpAddr> = addresses.into_iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MAX_ADDRESSES);
        if addresses.is_empty() {
            return None;
        }
        let next = u32::try_from(seed % u64::from(PORTS)).unwrap_or(0);
        // Every step without a common divisor visits all ports: 64,512 = 2¹⁰ · 3² · 7.
        let odd = u32::try_from((seed >> 20) % u64::from(PORTS / 2)).unwrap_or(0) * 2 + 1;
        let step = (0..).map(|n| odd + 2 * n).find(|step| step % 3 != 0 && step % 7 != 0).unwrap_or(1) % PORTS;
        Some(Self { part: Part::Ports { from, addresses, next, step, sent: 0 }, not_before: None })
    }

    /// The side with the sockets, towards the peer's mapped addresses.
    pub fn sockets(sockets: Vec<SocketId>, remotes: impl IntoIterator<Item = SocketAddr>) -> Option<Self> {
        let mut remotes: Vec<SocketAddr> = remotes.into_iter().collect();
        remotes.dedup();
        remotes.truncate(MAX_ADDRESSES);
        let some = !remotes.is_empty() && !sockets.is_empty();
        some.then_some(Self { part: Part::Sockets { sockets, remotes, next: 0, began: None }, not_before: None })
    }

    /// Whether every socket has sent, and it is time for new ones.
    pub(crate) fn is_spent(&self, now: Instant) -> bool {
        match &self.part {
            Part::Ports { .. } => false,
            Part::Sockets { sockets, remotes, next, began } => {
                *next == sockets.len() * remotes.len() && began.is_some_and(|at| at + RENEW <= now)
            }
        }
    }

    /// When there is something to be sent, or to be renewed; `None`: at once.
    pub(crate) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// The budget is spent.
    pub(crate) fn wait_until(&mut self, at: Instant) {
        self.not_before = Some(at);
    }

    /// What is to be sent now, from where and whereto.
    pub(crate) fn next(&mut self, now: Instant) -> Option<(SocketId, SocketAddr)> {
        self.not_before = None;
        match &mut self.part {
            Part::Ports { from, addresses, next, step, sent } => {
                let index = usize::try_from(*sent).unwrap_or(0) % addresses.len().max(1);
                let address = *addresses.get(index)?;
                let port = u16::try_from(FIRST_PORT + *next).ok()?;
                *sent = sent.wrapping_add(1);
                if index + 1 == addresses.len() {
                    *next = (*next + *step) % PORTS;
                }
                Some((*from, SocketAddr::new(address, port)))
            }
            Part::Sockets { sockets, remotes, next, began } => {
                let began = *began.get_or_insert(now);
                if *next == sockets.len() * remotes.len() {
                    // Nobody has renewed them: perhaps there can be no more sockets.
                    self.not_before = Some((began + RENEW).max(now + RENEW / 10));
                    return None;
                }
                let probe = (*sockets.get(*next / remotes.len())?, *remotes.get(*next % remotes.len())?);
                *next += 1;
                Some(probe)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[expect(clippy::disallowed_methods, reason = "any instant will do as origin")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn every_port_is_guessed_once_before_any_comes_again() {
        let address: IpAddr = [192, 0, 2, 1].into();
        for seed in [0, 1, 0xdead_beef_cafe_f00d, u64::MAX, 7 << 20, 3 << 21] {
            let mut spray = Spray::ports(SocketId(1), [address], seed).unwrap();
            let ports: BTreeSet<u16> = (0..PORTS).map(|_| spray.next(start()).unwrap().1.port()).collect();
            assert_eq!((ports.len(), ports.first().copied()), (PORTS as usize, Some(1024)), "seed {seed}");
        }
        assert!(Spray::ports(SocketId(1), [], 1).is_none());
    }

    #[test]
    fn two_addresses_take_turns() {
        let addresses: [IpAddr; 3] = [[192, 0, 2, 1].into(), [192, 0, 2, 2].into(), [192, 0, 2, 3].into()];
        let mut spray = Spray::ports(SocketId(1), addresses, 5).unwrap();
        let sent: Vec<SocketAddr> = (0..4).map(|_| spray.next(start()).unwrap().1).collect();
        assert_eq!(sent.iter().map(SocketAddr::ip).collect::<Vec<_>>(), [0, 1, 0, 1].map(|n: usize| addresses[n]));
        assert!(sent[0].port() == sent[1].port() && sent[1].port() != sent[2].port());
    }

    #[test]
    fn every_socket_sends_once_and_then_it_is_time_for_new_ones() {
        let begin = start();
        let sockets: Vec<SocketId> = (0..SPRAY_SOCKETS as u32).map(SocketId).collect();
        let remote: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let mut spray = Spray::sockets(sockets.clone(), [remote]).unwrap();
        let round: Vec<_> = std::iter::from_fn(|| spray.next(begin)).collect();
        assert_eq!(round, sockets.iter().map(|socket| (*socket, remote)).collect::<Vec<_>>());
        assert_eq!(spray.not_before(), Some(begin + RENEW));
        assert!(!spray.is_spent(begin + RENEW - Duration::from_millis(1)) && spray.is_spent(begin + RENEW));
        assert!(spray.next(begin + RENEW).is_none() && spray.not_before() > Some(begin + RENEW));
    }
}
