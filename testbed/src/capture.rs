//! Packets as they pass an interface, kept in memory and written as pcap files.

use std::{
    fs::File,
    io::{self, BufWriter, IoSliceMut, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
        time::TimeSpec,
    },
};

/// Bytes kept per capture; what comes later is counted, not kept.
const MAX_BYTES: usize = 256 << 20;
/// Longest packet: a super-packet with its Ethernet header.
const MAX_PACKET: usize = 65_536 + 64;
const RECEIVE_BUFFER: usize = 32 << 20;
const LINKTYPE_ETHERNET: u32 = 1;
const LINKTYPE_RAW: u32 = 101;

/// A running capture; dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    socket: Arc<OwnedFd>,
    link_type: u32,
}

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// When the kernel had it, since the Unix epoch.
    pub at: Duration,
    /// The bytes as on the wire (with the Ethernet header where there is one).
    pub bytes: Vec<u8>,
    ip_offset: Option<usize>,
}

/// What a capture saw.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The packets, in order.
    pub packets: Vec<Packet>,
    /// How many more passed that are not among them. A test that proves an absence requires 0.
    pub lost: u64,
    link_type: u32,
}

/// The addresses of an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpPacket<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The transport's number: 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6 …
    pub protocol: u8,
    /// The transport's header and payload.
    pub transport: &'a [u8],
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    packets: Vec<Packet>,
    bytes: usize,
    skipped: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capture {
    pub(crate) fn start(socket: OwnedFd, interface: &str) -> Result<Self> {
        // Root's way first; the limit of ordinary users is lower and still ample for what tests look for.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        let link_type = bind(&socket, interface)?;
        let (shared, stop) = (Arc::new(Shared::default()), Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?));
        let socket = Arc::new(socket);
        let thread = {
            let (socket, shared, stop) = (socket.clone(), shared.clone(), stop.clone());
            std::thread::spawn(move || receive(&socket, &shared, &stop, link_type))
        };
        Ok(Self { shared, stop, thread: Some(thread), socket, link_type })
    }

    /// Waits for a packet and returns it.
    ///
    /// # Errors
    ///
    /// When none came in time; `what` names it.
    pub fn wait_for(&self, what: &str, timeout: Duration, mut wanted: impl FnMut(&Packet) -> bool) -> Result<Packet> {
        let deadline = Instant::now() + timeout;
        let mut looked = 0;
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = state.packets.iter().skip(looked).find(|packet| wanted(packet)) {
                return Ok(found.clone());
            }
            looked = state.packets.len();
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                bail!("{what}: not among {looked} packets within {timeout:?}");
            };
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends it; everything that passed before this call is in the result.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell what it dropped.
    pub fn stop(mut self) -> Result<Captured> {
        self.end();
        let dropped = dropped_by_kernel(&self.socket)?;
        let state = std::mem::take(&mut *self.shared.lock());
        Ok(Captured { packets: state.packets, lost: state.skipped + u64::from(dropped), link_type: self.link_type })
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A full counter cannot be: nothing else is ever written.
            let _ = self.stop.write(1);
            drop(thread.join());
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

impl Captured {
    /// Whether any packet holds these bytes.
    #[must_use]
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.packets.iter().any(|packet| packet.contains(needle))
    }

    /// The UDP packets.
    pub fn udp(&self) -> impl Iterator<Item = &Packet> {
        self.with_protocol(17)
    }

    /// The TCP packets.
    pub fn tcp(&self) -> impl Iterator<Item = &Packet> {
        self.with_protocol(6)
    }

    /// The packets of one IP protocol.
    pub fn with_protocol(&self, protocol: u8) -> impl Iterator<Item = &Packet> {
        self.packets.iter().filter(move |packet| packet.ip().is_some_and(|ip| ip.protocol == protocol))
    }

    /// Writes them as a pcap file, for tcpdump and Wireshark.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write_pcap(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        // Nanosecond times, version 2.4, no time zone, no accuracy, longest packet, link type.
        for word in [0xa1b2_3c4d_u32, 2 | 4 << 16, 0, 0, MAX_PACKET as u32, self.link_type] {
            file.write_all(&word.to_le_bytes())?;
        }
        for packet in &self.packets {
            let len = packet.bytes.len() as u32;
            for word in [packet.at.as_secs() as u32, packet.at.subsec_nanos(), len, len] {
                file.write_all(&word.to_le_bytes())?;
            }
            file.write_all(&packet.bytes)?;
        }
        file.flush()
    }
}

impl Packet {
    fn new(bytes: Vec<u8>, link_type: u32, at: Duration) -> Self {
        let ip_offset = if link_type == LINKTYPE_RAW {
            Some(0)
        } else {
            matches!(bytes.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd])).then_some(14)
        };
        Self { at, bytes, ip_offset }
    }

    /// Whether it holds these bytes.
    #[must_use]
    pub fn contains(&self, needle: &[u8]) -> bool {
        !needle.is_empty() && memchr::memmem::find(&self.bytes, needle).is_some()
    }

    /// Its IP header, `None` when it is not IP. IPv6 extension headers are not followed.
    #[must_use]
    pub fn ip(&self) -> Option<IpPacket<'_>> {
        let packet = self.bytes.get(self.ip_offset?..)?;
        match packet.first()? >> 4 {
            4 => {
                let octets =
                    |at: usize| Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?)));
                let header = usize::from(packet.first()? & 0x0f) * 4;
                let (source, destination) = (octets(12)?, octets(16)?);
                Some(IpPacket { source, destination, protocol: *packet.get(9)?, transport: packet.get(header..)? })
            }
            6 => {
                let octets = |at: usize| {
                    Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?)))
                };
                let (source, destination) = (octets(8)?, octets(24)?);
                Some(IpPacket { source, destination, protocol: *packet.get(6)?, transport: packet.get(40..)? })
            }
            _ => None,
        }
    }
}

impl IpPacket<'_> {
    /// Source and destination port of a TCP or UDP packet.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        match (self.protocol, self.transport) {
            (6 | 17, [a, b, c, d, ..]) => Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))),
            _ => None,
        }
    }
}

fn receive(socket: &OwnedFd, shared: &Shared, stop: &EventFd, link_type: u32) {
    let mut buf = vec![0; MAX_PACKET];
    let mut stamp = nix::cmsg_space!(TimeSpec);
    let mut stopping = false;
    loop {
        match receive_one(socket, &mut buf, &mut stamp) {
            Ok((len, at)) => {
                let mut state = shared.lock();
                if state.bytes + len > MAX_BYTES {
                    state.skipped += 1;
                } else if let Some(bytes) = buf.get(..len) {
                    state.bytes += len;
                    state.packets.push(Packet::new(bytes.to_vec(), link_type, at));
                }
                drop(state);
                shared.changed.notify_all();
            }
            Err(Errno::EAGAIN) if stopping => return,
            Err(Errno::EAGAIN) => {
                let mut fds =
                    [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
                // Interrupted: look again.
                let _ = poll(&mut fds, PollTimeout::NONE);
                let [_, stop] = fds;
                stopping = stop.any().unwrap_or(false);
            }
            Err(Errno::EINTR) => {}
            // The interface went down or away: what was seen stays; there may be more later.
            Err(Errno::ENETDOWN) => {}
            Err(_) => return,
        }
    }
}

/// The next packet's length, and when it passed, which may be some time before the scheduler lets us read it.
fn receive_one(socket: &OwnedFd, buf: &mut [u8], stamp: &mut [u8]) -> Result<(usize, Duration), Errno> {
    let mut slices = [IoSliceMut::new(buf)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(stamp), MsgFlags::MSG_DONTWAIT)?;
    let stamped = message.cmsgs()?.find_map(|one| match one {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    });
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((message.bytes, stamped.unwrap_or_else(now)))
}

/// Binds a packet socket to an interface of its own namespace and returns the pcap link type.
pub(crate) fn bind(socket: &OwnedFd, interface: &str) -> Result<u32> {
    if interface.len() >= libc::IFNAMSIZ {
        bail!("no such interface");
    }
    let fd = socket.as_raw_fd();
    // SAFETY: zero is a valid ifreq and sockaddr_ll; the kernel reads and writes only these locals, whose sizes are
    // given or implied by the request.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        if libc::ioctl(fd, libc::SIOCGIFINDEX, &raw mut request) == -1 {
            return Err(io::Error::last_os_error()).context("no such interface");
        }
        let index = request.ifr_ifru.ifru_ifindex;
        if libc::ioctl(fd, libc::SIOCGIFHWADDR, &raw mut request) == -1 {
            return Err(io::Error::last_os_error().into());
        }
        let hardware = request.ifr_ifru.ifru_hwaddr.sa_family;
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        if libc::bind(fd, (&raw const address).cast(), len) == -1 {
            return Err(io::Error::last_os_error().into());
        }
        match hardware {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(LINKTYPE_ETHERNET),
            libc::ARPHRD_NONE => Ok(LINKTYPE_RAW),
            other => Err(anyhow!("interfaces of hardware type {other} are not known")),
        }
    }
}

pub(crate) fn dropped_by_kernel(socket: &OwnedFd) -> Result<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct Statistics {
        packets: u32,
        drops: u32,
    }
    let mut statistics = Statistics::default();
    let mut len = size_of::<Statistics>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the struct that it knows as tpacket_stats.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut len,
        )
    };
    if result == -1 {
        return Err(io::Error::last_os_error()).context("packet statistics");
    }
    Ok(statistics.drops)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp_over_ethernet() -> Packet {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([0x12, 0x34, 0x00, 0x35, 0, 12, 0, 0]);
        bytes.extend(b"mark");
        Packet::new(bytes, LINKTYPE_ETHERNET, Duration::ZERO)
    }

    #[test]
    fn headers_are_read_and_truncation_is_no_trap() {
        let packet = udp_over_ethernet();
        let ip = packet.ip().unwrap();
        assert_eq!(ip.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(ip.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(ip.ports(), Some((0x1234, 53)));
        assert!(packet.contains(b"mark") && !packet.contains(b"marks") && !packet.contains(b""));
        for len in 0..packet.bytes.len() {
            let cut = Packet::new(packet.bytes[..len].to_vec(), LINKTYPE_ETHERNET, Duration::ZERO);
            assert_eq!(cut.ip().is_some(), len >= 34, "{len}");
        }
        let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        v6.extend([0xfd; 16]);
        v6.extend([0xfe; 16]);
        v6.extend([0, 1, 0, 2, 0, 8, 0, 0]);
        let packet = Packet::new(v6, LINKTYPE_RAW, Duration::ZERO);
        assert_eq!(packet.ip().unwrap().ports(), Some((1, 2)));
        assert_eq!(packet.ip().unwrap().destination, IpAddr::from([0xfe_u8; 16]));
    }

    #[test]
    fn the_pcap_file_is_the_published_format() {
        let packet = Packet { at: Duration::new(1, 2), ..udp_over_ethernet() };
        let captured = Captured { packets: vec![packet.clone()], lost: 0, link_type: LINKTYPE_ETHERNET };
        let path = nix::unistd::mkdtemp(&std::env::temp_dir().join("edgelink-pcap-XXXXXX")).unwrap();
        let file = path.join("a.pcap");
        captured.write_pcap(&file).unwrap();
        let written = std::fs::read(&file).unwrap();
        std::fs::remove_dir_all(path).unwrap();
        let mut expected = vec![0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 1, 0, 1, 0, 0, 0];
        expected.extend([1, 0, 0, 0, 2, 0, 0, 0, 46, 0, 0, 0, 46, 0, 0, 0]);
        expected.extend(&packet.bytes);
        assert_eq!(written, expected);
    }
}
