//! A stream of packets while a direct path comes and goes (DESIGN §5): what each switch costs it. A few switches in the
//! tests, a hundred in `edgelink-switch-bench`.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use edgelink_testbed::{Impairment, Lab, NatKind, topology::Site, topology::SitePlan, wait};

use crate::{
    Node, SOON,
    p2p::{Sites, is_direct, peer},
};

/// Time between two packets of the stream.
const INTERVAL: Duration = Duration::from_millis(1);
/// Payload of a packet.
const SIZE: usize = 200;
/// Until a direct path is found again: attempts take 21 s, and the next ones begin 30 s later.
const PATIENCE: Duration = Duration::from_secs(90);
/// What the stream does on its new way before the next switch.
const SETTLED: Duration = Duration::from_secs(1);
/// A segment that is overtaken by so many makes TCP take it for lost (RFC 5681 §3.2).
const DUPLICATE_ACKS: usize = 3;

/// Two nodes behind NATs that filter by port, each on a link of this delay one way, with the relay between them.
pub struct Pair<'a> {
    /// The controller and its network.
    pub sites: Sites<'a>,
    /// The nodes, `a` and `b`.
    pub nodes: [Node; 2],
    places: [Site; 2],
}

/// What a switch cost the packets sent from its cause until the next one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// To the direct path, or back to the relay.
    pub to_direct: bool,
    /// From the network's change to the change of path.
    pub time: Duration,
    /// Packets sent.
    pub sent: u64,
    /// Of them never arrived.
    pub lost: u64,
    /// Of them came twice.
    pub twice: u64,
    /// Of them were overtaken by three or more others: what TCP takes for a loss.
    pub late: u64,
    /// The longest time between two arrivals.
    pub gap: Duration,
}

impl<'a> Pair<'a> {
    /// Starts everything.
    ///
    /// # Errors
    ///
    /// When something does not start or join.
    pub fn start(lab: &'a Lab, delay: Duration) -> Result<Self> {
        let sites = Sites::start(lab)?;
        let place = |name: &str| -> Result<(Site, Node)> {
            let plan = SitePlan::behind(NatKind::PortRestricted).link(Impairment::none().delay(delay));
            let site = sites.internet.site(name, &plan)?;
            let host = site.hosts.first().context("a site without hosts")?;
            host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1")?;
            let node = sites.node(host);
            Ok((site, node))
        };
        let ((site_a, mut a), (site_b, mut b)) = (place("a")?, place("b")?);
        sites.join(&mut [&mut a, &mut b])?;
        Ok(Self { sites, nodes: [a, b], places: [site_a, site_b] })
    }

    /// Whether UDP passes between the two sites; STUN servers are reached all the time.
    ///
    /// # Errors
    ///
    /// As `nft` says.
    pub fn set_open(&self, open: bool) -> Result<()> {
        let [here, there] = &self.places;
        let other = there.first.public;
        let rules = if open {
            String::new()
        } else {
            format!("meta l4proto udp ip daddr {other} drop\n meta l4proto udp ip saddr {other} drop")
        };
        here.first.router.nft(&format!(
            "table ip apart\ndelete table ip apart\ntable ip apart {{\n chain forward {{\n \
             type filter hook forward priority 0;\n {rules}\n }}\n}}\n"
        ))
    }

    /// Whether the packets from `a` to `b` go directly.
    ///
    /// # Errors
    ///
    /// When the daemon does not answer.
    pub fn is_direct(&self) -> Result<bool> {
        let [a, b] = &self.nodes;
        Ok(is_direct(peer(a, b.host.name())?.path.kind))
    }

    /// Sends 1,000 packets a second from `a` to `b` and lets the direct path come and go `count` times; `told` hears of each
    /// switch when it has happened.
    ///
    /// # Errors
    ///
    /// When a switch does not happen.
    pub fn switch(&self, count: usize, mut told: impl FnMut(bool, Duration)) -> Result<Vec<Switch>> {
        self.set_open(false)?;
        let stream = Stream::start(&self.nodes)?;
        let mut causes = Vec::new();
        wait::until("packets through the relay", SOON, || self.is_direct().ok().filter(|direct| !direct))?;
        std::thread::sleep(SETTLED);
        for n in 0..2 * count {
            let to_direct = n % 2 == 0;
            let cause = Instant::now();
            self.set_open(to_direct)?;
            let what = if to_direct { "packets on a direct path" } else { "packets through the relay" };
            wait::until(what, PATIENCE, || self.is_direct().ok().filter(|direct| *direct == to_direct))?;
            let time = cause.elapsed();
            told(to_direct, time);
            causes.push((cause, to_direct, time));
            std::thread::sleep(SETTLED);
        }
        let end = Instant::now();
        let flowed = stream.stop()?;
        let ends = causes.iter().skip(1).map(|(cause, ..)| *cause).chain([end]);
        Ok(causes.iter().zip(ends).map(|((begin, to, time), end)| flowed.between(*begin, end, *to, *time)).collect())
    }
}

struct Stream {
    ended: Arc<AtomicBool>,
    sender: JoinHandle<Result<Vec<Instant>>>,
    receiver: JoinHandle<Result<Vec<(usize, Instant)>>>,
}

struct Flowed {
    /// When each packet was sent.
    sent: Vec<Instant>,
    /// Number and time of what arrived, in this order.
    arrived: Vec<(usize, Instant)>,
}

impl Stream {
    fn start([a, b]: &[Node; 2]) -> Result<Self> {
        let target = SocketAddr::new(b.overlay()?, 7_100);
        let receiving = b.host.udp_socket(target)?;
        receiving.set_read_timeout(Some(Duration::from_millis(50)))?;
        let sending = a.host.udp_socket(SocketAddr::new(a.overlay()?, 7_100))?;
        sending.connect(target)?;
        let ended = Arc::new(AtomicBool::new(false));
        let sender = std::thread::spawn({
            let ended = ended.clone();
            move || {
                let (begin, mut sent, mut packet) = (Instant::now(), Vec::new(), [0; SIZE]);
                while !ended.load(Ordering::Relaxed) {
                    packet[..8].copy_from_slice(&(sent.len() as u64).to_be_bytes());
                    sent.push(Instant::now());
                    sending.send(&packet)?;
                    // Who was not scheduled in time catches up.
                    let next = begin + INTERVAL * u32::try_from(sent.len())?;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                Ok(sent)
            }
        });
        let receiver = std::thread::spawn({
            let ended = ended.clone();
            move || {
                let (mut arrived, mut buffer) = (Vec::new(), [0; 2 * SIZE]);
                let mut until = None;
                while until.is_none_or(|until| Instant::now() < until) {
                    if until.is_none() && ended.load(Ordering::Relaxed) {
                        until = Some(Instant::now() + SETTLED);
                    }
                    match receiving.recv(&mut buffer) {
                        Ok(_) => {
                            let number = buffer.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
                            arrived.push((usize::try_from(number)?, Instant::now()));
                        }
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(arrived)
            }
        });
        Ok(Self { ended, sender, receiver })
    }

    fn stop(self) -> Result<Flowed> {
        self.ended.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow!("a thread of the stream panicked");
        let sent = self.sender.join().map_err(panicked)??;
        let arrived = self.receiver.join().map_err(panicked)??;
        Ok(Flowed { sent, arrived })
    }
}

impl Flowed {
    /// What became of the packets that were sent in this time.
    fn between(&self, begin: Instant, end: Instant, to_direct: bool, time: Duration) -> Switch {
        let first = self.sent.partition_point(|at| *at < begin);
        let last = self.sent.partition_point(|at| *at < end);
        let mut copies = vec![0_u64; last - first];
        let mut before = None;
        let (mut gap, mut late) = (Duration::ZERO, 0);
        // The numbers that arrived and are greater than one that is still to come, of this time only.
        let mut overtaking: Vec<usize> = Vec::new();
        for (number, at) in self.arrived.iter().filter(|(number, _)| (first..last).contains(number)) {
            let Some(copy) = copies.get_mut(number - first) else { continue };
            *copy += 1;
            gap = gap.max(before.map_or(Duration::ZERO, |before| at.saturating_duration_since(before)));
            before = Some(*at);
            if *copy > 1 {
                continue;
            }
            // As RFC 4737 §5.4 counts: those that came right before it and are greater.
            let greater = overtaking.iter().rev().take_while(|other| *other > number).count();
            late += u64::from(greater >= DUPLICATE_ACKS);
            overtaking.push(*number);
        }
        Switch {
            to_direct,
            time,
            sent: copies.len() as u64,
            lost: copies.iter().filter(|copies| **copies == 0).count() as u64,
            twice: copies.iter().filter(|copies| **copies > 1).count() as u64,
            late,
            gap,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_copies_and_late_packets_are_counted_where_they_were_sent() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let sent = (0..30).map(at).collect();
        // 12 is lost, 13 comes twice, 14 is overtaken by two, 17 by three; 3 belongs to the time before.
        let order = [3, 10, 11, 13, 13, 15, 16, 14, 18, 19, 20, 17].into_iter().chain(21..30);
        let arrived = order.zip(20..).map(|(number, ms)| (number, at(ms))).collect();
        let seen = Flowed { sent, arrived }.between(at(10), at(30), true, Duration::ZERO);
        assert_eq!((seen.sent, seen.lost, seen.twice, seen.late), (20, 1, 1, 1), "{seen:?}");
        assert_eq!(seen.gap, Duration::from_millis(1));
    }
}
