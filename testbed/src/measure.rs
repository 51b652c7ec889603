//! What a path does to packets: counted and timed from both of its ends.

use std::{
    io::{IoSliceMut, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
    time::{ClockId, clock_gettime},
};
use serde_json::Value;

use crate::{Host, probe::Inside};

/// Packets at the end of a stream that only tell that it is over; so many, since some are lost.
const FENCES: u64 = 30;
/// How long nothing may come before a stream counts as over.
const QUIET: Duration = Duration::from_millis(300);
const BUFFER: usize = 8 << 20;
/// Number, and the time of sending in nanoseconds since the Unix epoch.
const HEAD: usize = 16;
const IPERF_PORT: &str = "5201";

/// A stream of numbered UDP packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// How many.
    pub packets: u64,
    /// The time from one to the next; short ones go in bursts every millisecond.
    pub gap: Duration,
    /// Bytes of UDP payload, 16 to 1,472 where the MTU is 1,500.
    pub size: usize,
}

/// What came out of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Packets sent.
    pub sent: u64,
    /// Packets that came at least once.
    pub received: u64,
    /// Packets that came again.
    pub duplicates: u64,
    /// Packets that came after one that was sent later.
    pub late: u64,
    /// Time on the way of each that came, ascending: from the sender's system call to the receiver's network interface.
    pub delays: Vec<Duration>,
}

impl Arrived {
    /// The part that never came, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        (self.sent - self.received) as f64 / self.sent.max(1) as f64
    }

    /// The delay that this part, 0 to 1, of the packets did not exceed.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let last = self.delays.len().saturating_sub(1);
        let at = (last as f64 * part.clamp(0.0, 1.0)).round() as usize;
        self.delays.get(at).copied().unwrap_or_default()
    }

    /// The mean delay and its standard deviation.
    #[must_use]
    pub fn mean_and_deviation(&self) -> (Duration, Duration) {
        let n = self.delays.len().max(1) as f64;
        let mean = self.delays.iter().map(Duration::as_secs_f64).sum::<f64>() / n;
        let variance = self.delays.iter().map(|delay| (delay.as_secs_f64() - mean).powi(2)).sum::<f64>() / n;
        (Duration::from_secs_f64(mean), Duration::from_secs_f64(variance.sqrt()))
    }
}

impl Stream {
    /// Sends it from one host to another.
    ///
    /// # Errors
    ///
    /// When sockets cannot be had, or the path refuses packets.
    pub fn send(&self, from: Inside<'_>, to: Inside<'_>) -> Result<Arrived> {
        ensure!(self.size >= HEAD, "packets of a stream have at least {HEAD} bytes");
        let receiver = to.host.udp_socket(SocketAddr::new(to.address, 0))?;
        let sender = from.host.udp_socket(SocketAddr::new(from.address, 0))?;
        if setsockopt(&receiver, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&receiver, sockopt::RcvBuf, &BUFFER)?;
        }
        setsockopt(&receiver, sockopt::ReceiveTimestampns, &true)?;
        receiver.set_read_timeout(Some(QUIET))?;
        sender.connect(receiver.local_addr()?)?;
        // The neighbours of the path find each other first.
        sender.send(&encode(u64::MAX, self.size)?)?;
        receive(&receiver)?;
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| self.write(&sender));
            let mut arrived = self.read(&receiver, || sending.is_finished())?;
            sending.join().map_err(|_| anyhow!("the sender panicked"))??;
            arrived.delays.sort_unstable();
            Ok(arrived)
        })
    }

    fn write(&self, sender: &UdpSocket) -> Result<()> {
        let start = Instant::now();
        for n in 0..self.packets + FENCES {
            let due = self.gap * u32::try_from(n).context("a stream has at most 2³² packets")?;
            let ahead = due.saturating_sub(start.elapsed());
            if self.gap >= Duration::from_millis(1) || ahead >= Duration::from_millis(1) {
                std::thread::sleep(ahead);
            }
            sender.send(&encode(n, self.size)?)?;
        }
        Ok(())
    }

    fn read(&self, receiver: &UdpSocket, mut all_sent: impl FnMut() -> bool) -> Result<Arrived> {
        let mut seen = vec![false; usize::try_from(self.packets)?];
        let mut arrived = Arrived { sent: self.packets, ..Arrived::default() };
        let mut highest = 0;
        loop {
            let Some((n, delay)) = receive(receiver)? else {
                if all_sent() {
                    return Ok(arrived);
                }
                continue;
            };
            match usize::try_from(n).ok().and_then(|n| seen.get_mut(n)) {
                Some(again @ false) => *again = true,
                Some(true) => {
                    arrived.duplicates += 1;
                    continue;
                }
                // A fence, or the greeting.
                None => continue,
            }
            arrived.received += 1;
            arrived.late += u64::from(n < highest);
            highest = highest.max(n);
            arrived.delays.push(delay);
        }
    }
}

fn encode(n: u64, size: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    let mut head = bytes.as_mut_slice();
    head.write_all(&n.to_be_bytes())?;
    head.write_all(&nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?).to_be_bytes())?;
    Ok(bytes)
}

fn nanoseconds(time: TimeSpec) -> u64 {
    u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
}

/// A packet's number and time on the way; `None` when none came for a while.
fn receive(socket: &UdpSocket) -> Result<Option<(u64, Duration)>> {
    let (mut buf, mut control) = ([0; 2048], cmsg_space!(TimeSpec));
    loop {
        let mut slices = [IoSliceMut::new(&mut buf)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty()) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let stamp = message.cmsgs()?.find_map(|one| {
            if let ControlMessageOwned::ScmTimestampns(at) = one { Some(nanoseconds(at)) } else { None }
        });
        let word =
            |at: usize| buf.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()).map(u64::from_be_bytes);
        let (Some(n), Some(sent), Some(stamp)) = (word(0), word(8), stamp) else {
            bail!("a packet without number or time");
        };
        return Ok(Some((n, Duration::from_nanos(stamp.saturating_sub(sent)))));
    }
}

/// What one TCP connection moved, in bits per second, as its receiver counted it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throughput {
    /// From the first byte to the last: with the slow start.
    pub whole: f64,
    /// Without the first quarter of the time.
    pub settled: f64,
}

/// One TCP connection by iperf3 for so many seconds, with the system's congestion control or this one (`cubic`, `bbr`).
///
/// # Errors
///
/// When iperf3 is missing or fails.
pub fn throughput(from: &Host, to: Inside<'_>, seconds: u32, congestion: Option<&str>) -> Result<Throughput> {
    let patience = Duration::from_secs(10);
    let address = to.address.to_string();
    // The server prints what it received in each second, with `-J` too late to be waited for: its report comes with the client's.
    let server = to
        .host
        .command("iperf3")
        .args(["-s", "-1", "-B", &address, "-p", IPERF_PORT, "--forceflush", "-i", "0.5"])
        .spawn_logged()?;
    server.wait_line("Server listening", patience)?;
    let seconds_text = seconds.to_string();
    let arguments = ["-c", &address, "-p", IPERF_PORT, "-t", &seconds_text, "-J"];
    let arguments = arguments.into_iter().chain(congestion.into_iter().flat_map(|name| ["-C", name]));
    let report =
        from.command("iperf3").args(arguments).timeout(patience * 2 + Duration::from_secs(seconds.into())).run()?;
    let report: Value = serde_json::from_str(&report).context("iperf3's report")?;
    let whole = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    let whole = whole.context("iperf3's report has no sum")?;
    server.wait(patience)?;
    let moved: Vec<f64> = server.stdout().lines().filter_map(half_second).collect();
    let settled = moved.get(moved.len() / 4..).unwrap_or_default();
    ensure!(!settled.is_empty(), "iperf3's server printed no intervals: {}", server.stdout());
    Ok(Throughput { whole, settled: settled.iter().sum::<f64>() / settled.len() as f64 })
}

/// The rate of `[  5]   0.50-1.00   sec  5.25 MBytes  88.1 Mbits/sec`, in bits per second.
fn half_second(line: &str) -> Option<f64> {
    let words: Vec<&str> = line.split(']').nth(1)?.split_whitespace().collect();
    let [interval, "sec", _, _, rate, unit, ..] = words[..] else { return None };
    let (begin, end) = interval.split_once('-')?;
    let long = end.parse::<f64>().ok()? - begin.parse::<f64>().ok()?;
    let scale = match unit {
        "bits/sec" => 1.0,
        "Kbits/sec" => 1e3,
        "Mbits/sec" => 1e6,
        "Gbits/sec" => 1e9,
        _ => return None,
    };
    // The last line sums all up, and the last interval may be a rest.
    ((0.4..0.6).contains(&long) && !words.contains(&"sender")).then_some(rate.parse::<f64>().ok()? * scale)
}

/// Round trips as `ping` measures them: least, mean, greatest and mean deviation.
///
/// # Errors
///
/// When `ping` cannot be run or nothing is answered.
pub fn round_trips(from: &Host, to: IpAddr, count: u32, gap: Duration) -> Result<[Duration; 4]> {
    let (count, gap, target) = (count.to_string(), gap.as_secs_f64().to_string(), to.to_string());
    let printed =
        from.command("ping").args(["-n", "-q", "-c", &count, "-i", &gap, "-W", "5", &target]).output()?.stdout;
    // rtt min/avg/max/mdev = 40.061/40.084/40.137/0.021 ms
    let line = printed.lines().find(|line| line.starts_with("rtt ")).with_context(|| format!("{target}: {printed}"))?;
    let numbers = line.split(" = ").nth(1).unwrap_or_default().split(" ms").next().unwrap_or_default().split('/');
    let numbers: Vec<Duration> =
        numbers.filter_map(|ms| ms.parse::<f64>().ok()).map(|ms| Duration::from_secs_f64(ms / 1000.0)).collect();
    numbers.try_into().map_err(|_| anyhow!("unexpected {line:?} of ping"))
}
