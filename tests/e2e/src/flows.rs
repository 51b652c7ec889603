//! Traffic through the overlay while something else happens: a UDP flow in one direction, and a TCP connection.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use edgelink_testbed::wait;

use crate::{Node, SOON};

/// Time between two packets.
pub const INTERVAL: Duration = Duration::from_millis(10);
/// Packets that may still be on their way when a flow is stopped have so long to arrive.
const LINGER: Duration = Duration::from_millis(500);

/// A packet every 10 ms in one direction; nothing ever comes back.
#[derive(Debug)]
pub struct UdpFlow {
    ended: Arc<AtomicBool>,
    arrivals: Arc<AtomicU64>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Vec<(u64, Instant)>>>,
}

/// What became of a [`UdpFlow`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flowed {
    /// Packets sent.
    pub sent: u64,
    /// Packets that never arrived.
    pub lost: u64,
    /// Packets that arrived again.
    pub twice: u64,
    /// The longest time between two arrivals.
    pub gap: Duration,
}

impl UdpFlow {
    /// Starts it and waits for the first arrival.
    ///
    /// # Errors
    ///
    /// When a socket cannot be had or nothing arrives.
    pub fn start(from: &Node, to: &Node, port: u16) -> Result<Self> {
        let target = SocketAddr::new(to.overlay()?, port);
        let receiving = to.host.udp_socket(target)?;
        receiving.set_read_timeout(Some(INTERVAL))?;
        let sending = from.host.udp_socket(SocketAddr::new(from.overlay()?, port))?;
        sending.connect(target)?;
        // What an earlier flow sent may still be on its way, for as long as TCP tries.
        let tag = crate::random::<8>()?;
        let ended = Arc::new(AtomicBool::new(false));
        let sender = std::thread::spawn({
            let ended = ended.clone();
            move || {
                let (begin, mut sent) = (Instant::now(), 0_u64);
                while !ended.load(Ordering::Relaxed) {
                    match sending.send(&[tag, sent.to_be_bytes()].concat()) {
                        Ok(_) => {}
                        // A full queue, or no route for a moment: the packet is lost.
                        Err(error) if error.kind() != ErrorKind::InvalidInput => {}
                        Err(error) => return Err(error.into()),
                    }
                    sent += 1;
                    let next = begin + INTERVAL * u32::try_from(sent)?;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
                Ok(sent)
            }
        });
        let arrivals = Arc::new(AtomicU64::new(0));
        let receiver = std::thread::spawn({
            let (ended, arrivals) = (ended.clone(), arrivals.clone());
            move || {
                let (mut seen, mut until, mut buffer) = (Vec::new(), None, [0_u8; 64]);
                while until.is_none_or(|until| Instant::now() < until) {
                    if until.is_none() && ended.load(Ordering::Relaxed) {
                        until = Some(Instant::now() + LINGER);
                    }
                    match receiving.recv(&mut buffer) {
                        Ok(16) if !buffer.starts_with(&tag) => {}
                        Ok(16) => {
                            let number = buffer.get(8..).and_then(<[u8]>::first_chunk);
                            let number = number.map_or(0, |bytes| u64::from_be_bytes(*bytes));
                            seen.push((number, Instant::now()));
                            arrivals.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(len) => bail!("a packet of {len} bytes"),
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(seen)
            }
        });
        let flow = Self { ended, arrivals, sender, receiver };
        flow.wait(1, SOON)?;
        Ok(flow)
    }

    /// Waits until so many more packets have arrived.
    ///
    /// # Errors
    ///
    /// When they do not, in this time.
    pub fn wait(&self, more: u64, timeout: Duration) -> Result<()> {
        let wanted = self.arrivals.load(Ordering::Relaxed) + more;
        let arrived = || (self.arrivals.load(Ordering::Relaxed) >= wanted).then_some(());
        let outcome = wait::until(&format!("{more} UDP packets"), timeout, arrived);
        if outcome.is_err() {
            self.ended.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// Stops it. What was sent before the first arrival does not count: there was no session yet.
    ///
    /// # Errors
    ///
    /// When a socket failed.
    pub fn stop(self) -> Result<Flowed> {
        self.ended.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        let seen = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        let first = seen.first().context("nothing arrived")?.0;
        let mut numbers: Vec<u64> = seen.iter().map(|(number, _)| *number).filter(|number| *number >= first).collect();
        numbers.sort_unstable();
        let all = numbers.len();
        numbers.dedup();
        let gap = seen.windows(2).filter_map(|pair| Some(pair.last()?.1 - pair.first()?.1)).max().unwrap_or_default();
        let (once, twice) = (numbers.len() as u64, (all - numbers.len()) as u64);
        Ok(Flowed { sent, lost: (sent - first).saturating_sub(once), twice, gap })
    }
}

/// A TCP connection over which something is said every 10 ms.
#[derive(Debug)]
pub struct TcpFlow {
    ended: Arc<AtomicBool>,
    writer: JoinHandle<Result<u64>>,
    reader: JoinHandle<Result<u64>>,
}

impl TcpFlow {
    /// Connects and starts it.
    ///
    /// # Errors
    ///
    /// When there is no connection.
    pub fn start(from: &Node, to: &Node, port: u16) -> Result<Self> {
        let target = SocketAddr::new(to.overlay()?, port);
        let listener = to.host.tcp_listener(target)?;
        let mut near = from.host.tcp_connect(target, SOON)?;
        near.set_nodelay(true)?;
        let (mut far, _) = listener.accept()?;
        far.set_read_timeout(Some(4 * SOON))?;
        let ended = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let ended = ended.clone();
            move || {
                let mut said = 0_u64;
                while !ended.load(Ordering::Relaxed) {
                    near.write_all(&said.to_be_bytes())?;
                    said += 1;
                    std::thread::sleep(INTERVAL);
                }
                near.shutdown(std::net::Shutdown::Write)?;
                Ok(said)
            }
        });
        let reader = std::thread::spawn(move || {
            let mut heard = 0_u64;
            while let Some(number) = next(&mut far)? {
                ensure!(number == heard, "heard {number} instead of {heard}");
                heard += 1;
            }
            Ok(heard)
        });
        Ok(Self { ended, writer, reader })
    }

    /// Ends the connection properly, and fails unless all that was said was heard.
    ///
    /// # Errors
    ///
    /// When the connection did not survive.
    pub fn stop(self) -> Result<u64> {
        self.ended.store(true, Ordering::Relaxed);
        let said = self.writer.join().map_err(|_| anyhow!("the writer panicked"))?.context("TCP, writing")?;
        let heard = self.reader.join().map_err(|_| anyhow!("the reader panicked"))?.context("TCP, reading")?;
        ensure!(said == heard, "said {said}, heard {heard}");
        Ok(said)
    }
}

fn next(stream: &mut TcpStream) -> Result<Option<u64>> {
    let mut bytes = [0_u8; 8];
    match stream.read(&mut bytes)? {
        0 => Ok(None),
        some => {
            stream.read_exact(bytes.get_mut(some..).unwrap_or_default())?;
            Ok(Some(u64::from_be_bytes(bytes)))
        }
    }
}
