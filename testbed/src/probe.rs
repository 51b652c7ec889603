//! What a NAT does, seen from both of its sides (RFC 4787, RFC 5780), and whether two hosts behind NATs can reach each other.
//!
//! The prober has sockets on the inner and the public hosts at once, so it needs no protocol and no server. That a packet
//! does *not* come is known from one sent after it that does, not from waiting: links keep their order unless they are told
//! to reorder. It copes with lost packets only where it asks again; classify NATs on links that lose nothing.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{Behaviour, Host};

/// The observer's ports, those of STUN and the next.
const PORTS: [u16; 2] = [3478, 3479];
/// How long an answer may take that should come, and how often it is asked for.
const PATIENCE: Duration = Duration::from_millis(1_500);
const TRIES: usize = 2;
/// Rounds of sending at each other before punching counts as failed.
const ROUNDS: u32 = 5;
/// Inner ports are taken from here on, so that a run repeats and hashed mappings with it.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

/// A public host with two addresses and two ports each: what servers see, and strangers send.
#[derive(Debug)]
pub struct Observer {
    /// By address, then by port.
    ends: [[End; 2]; 2],
}

#[derive(Debug)]
struct End {
    socket: UdpSocket,
    address: SocketAddr,
}

/// A host behind a NAT and its address there.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    /// The host.
    pub host: &'a Host,
    /// Its inner address.
    pub address: IpAddr,
}

/// What a NAT was seen to do with UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What the outer port depends on.
    pub mapping: Behaviour,
    /// What the way in depends on.
    pub filtering: Behaviour,
    /// Whether the outer port was the inner one.
    pub port_kept: bool,
    /// Whether an inner host reaches another by its outer address and is seen by its own outer address.
    pub hairpin: bool,
    /// The outer address.
    pub outer: IpAddr,
}

impl Seen {
    /// The traditional name, where there is one.
    #[must_use]
    pub fn name(&self) -> &'static str {
        use Behaviour::{AddressAndPortDependent as Apd, AddressDependent as Ad, EndpointIndependent as Ei};
        match (self.mapping, self.filtering) {
            (Ei, Ei) => "full cone",
            (Ei, Ad) => "restricted cone",
            (Ei, Apd) => "port-restricted cone",
            (Apd, _) => "symmetric",
            (Ad, _) => "symmetric by address",
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |is: bool, text: &'static str| if is { text } else { "no" };
        write!(
            f,
            "{}: mapping {}, filtering {}, ports {}kept, {} hairpinning, outer address {}",
            self.name(),
            self.mapping,
            self.filtering,
            if self.port_kept { "" } else { "not " },
            not(self.hairpin, "with"),
            self.outer
        )
    }
}

impl Observer {
    /// Listens at two addresses of a public host, ports 3478 and 3479.
    ///
    /// # Errors
    ///
    /// When an address is not the host's or a port is taken.
    pub fn new(host: &Host, addresses: [IpAddr; 2]) -> Result<Self> {
        let end = |ip: IpAddr, port: u16| -> Result<End> {
            let address = SocketAddr::new(ip, port);
            let socket =
                host.udp_socket(address).with_context(|| format!("{}: cannot listen at {address}", host.name()))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(End { socket, address })
        };
        let [one, other] = addresses;
        let [low, high] = PORTS;
        Ok(Self { ends: [[end(one, low)?, end(one, high)?], [end(other, low)?, end(other, high)?]] })
    }

    fn home(&self) -> &End {
        let [[home, _], _] = &self.ends;
        home
    }
}

impl End {
    /// Where a datagram with this text came from.
    fn source_of(&self, text: &[u8]) -> Result<Option<SocketAddr>> {
        Ok(receive(&self.socket, |got, _| got == text)?.map(|(_, from)| from))
    }
}

/// A socket of an inner host.
#[derive(Debug)]
struct Probe {
    socket: UdpSocket,
    port: u16,
}

impl Probe {
    fn new(inside: Inside<'_>) -> Result<Self> {
        for _ in 0..100 {
            let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed).max(1024);
            match inside.host.udp_socket(SocketAddr::new(inside.address, port)) {
                Ok(socket) => {
                    socket.set_read_timeout(Some(PATIENCE))?;
                    return Ok(Self { socket, port });
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context(format!("{}: {}", inside.host.name(), inside.address)),
            }
        }
        bail!("{}: no port is free", inside.host.name())
    }

    /// The outer endpoint that an observer's end sees; `None` when nothing gets through.
    fn seen_by(&self, end: &End) -> Result<Option<SocketAddr>> {
        for n in 0..TRIES {
            let text = format!("who am I? {} {} {n}", self.port, end.address);
            self.send(text.as_bytes(), end.address)?;
            if let Some(source) = end.source_of(text.as_bytes())? {
                return Ok(Some(source));
            }
        }
        Ok(None)
    }

    fn send(&self, text: &[u8], to: SocketAddr) -> Result<()> {
        match self.socket.send_to(text, to) {
            Ok(_) => Ok(()),
            // What an earlier packet met (ICMP); this one was not sent.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                self.socket.send_to(text, to).map(drop).context("send")
            }
            Err(error) => Err(error).context(format!("cannot send to {to}")),
        }
    }
}

/// Classifies the NAT before a host; `None` when UDP does not get through.
///
/// # Errors
///
/// When sockets cannot be had, or what is sent in order to be answered is not.
pub fn look(inside: Inside<'_>, observer: &Observer) -> Result<Option<Seen>> {
    let probe = Probe::new(inside)?;
    if probe.seen_by(observer.home())?.is_none() {
        return Ok(None);
    }
    let lost = || format!("{}: a probe was lost", inside.host.name());
    let mut outer = Vec::new();
    for end in observer.ends.iter().flatten() {
        outer.push(probe.seen_by(end)?.with_context(lost)?);
    }
    let [a, b, c, d] = outer[..] else { bail!("four ends were asked") };
    let mapping = if a != b || c != d {
        Behaviour::AddressAndPortDependent
    } else if a != c {
        Behaviour::AddressDependent
    } else {
        Behaviour::EndpointIndependent
    };
    let filtering = filtering(inside, observer)?;
    let hairpin = hairpin(inside, inside, observer)?;
    Ok(Some(Seen { mapping, filtering, port_kept: a.port() == probe.port, hairpin, outer: a.ip() }))
}

/// Sends to one end only, and lets the others answer.
fn filtering(inside: Inside<'_>, observer: &Observer) -> Result<Behaviour> {
    let probe = Probe::new(inside)?;
    let [[home, other_port], [_, stranger]] = &observer.ends;
    let outer = probe.seen_by(home)?.context("a probe was lost")?;
    stranger.socket.send_to(b"stranger", outer)?;
    other_port.socket.send_to(b"other port", outer)?;
    home.socket.send_to(b"home", outer)?;
    let (mut from_stranger, mut from_other_port) = (false, false);
    receive(&probe.socket, |got, _| {
        from_stranger |= got == b"stranger";
        from_other_port |= got == b"other port";
        got == b"home"
    })?
    .context("the answer was lost")?;
    Ok(match (from_stranger, from_other_port) {
        (true, _) => Behaviour::EndpointIndependent,
        (false, true) => Behaviour::AddressDependent,
        (false, false) => Behaviour::AddressAndPortDependent,
    })
}

/// Whether two hosts behind one NAT, or two sockets of one, reach each other by their outer addresses.
///
/// # Errors
///
/// As [`look`].
pub fn hairpin(one: Inside<'_>, other: Inside<'_>, observer: &Observer) -> Result<bool> {
    let (one, other) = (Probe::new(one)?, Probe::new(other)?);
    let lost = "a probe was lost";
    let outer_one = one.seen_by(observer.home())?.context(lost)?;
    let outer_other = other.seen_by(observer.home())?.context(lost)?;
    // First the other way, which opens the filter.
    other.send(b"open", outer_one)?;
    one.send(b"hairpin", outer_other)?;
    observer.home().socket.send_to(b"home", outer_other)?;
    let mut through = false;
    receive(&other.socket, |got, from| {
        through |= got == b"hairpin" && from == outer_one;
        got == b"home"
    })?
    .context("the answer was lost")?;
    Ok(through)
}

/// Whether the way in is still open when nothing has passed for so long; `answered` tells whether the first packet is
/// answered at once.
///
/// # Errors
///
/// As [`look`].
pub fn lives(inside: Inside<'_>, observer: &Observer, idle: Duration, answered: bool) -> Result<bool> {
    let (probe, fence) = (Probe::new(inside)?, Probe::new(inside)?);
    let home = observer.home();
    let outer = probe.seen_by(home)?.context("a probe was lost")?;
    if answered {
        home.socket.send_to(b"answer", outer)?;
        receive(&probe.socket, |got, _| got == b"answer")?.context("the answer was lost")?;
    }
    std::thread::sleep(idle);
    home.socket.send_to(b"still there?", outer)?;
    let outer = fence.seen_by(home)?.context("a probe was lost")?;
    home.socket.send_to(b"fence", outer)?;
    receive(&fence.socket, |got, _| got == b"fence")?.context("the answer was lost")?;
    probe.socket.set_nonblocking(true)?;
    Ok(receive(&probe.socket, |got, _| got == b"still there?")?.is_some())
}

/// Whether two hosts reach each other by UDP hole punching: each learns its outer endpoint from the observer, tells the
/// other, and sends there and to wherever the other was heard from. `left` sends its first packet so much earlier.
///
/// # Errors
///
/// When sockets cannot be had.
pub fn punch(left: Inside<'_>, right: Inside<'_>, observer: &Observer, head_start: Duration) -> Result<bool> {
    let (left, right) = (Probe::new(left)?, Probe::new(right)?);
    let asked = Instant::now();
    let (Some(outer_left), Some(outer_right)) = (left.seen_by(observer.home())?, right.seen_by(observer.home())?)
    else {
        return Ok(false);
    };
    // Twice the time that a packet takes there and back.
    let pace = Duration::from_millis(15) + 2 * asked.elapsed();
    let mut known = [outer_right, outer_left].map(|outer| vec![outer]);
    let mut heard = [false; 2];
    if !head_start.is_zero() {
        left.send(b"punch", outer_right)?;
        std::thread::sleep(head_start);
    }
    let sides = [left, right];
    for _ in 0..ROUNDS {
        for (probe, targets) in sides.iter().zip(&known) {
            for target in targets {
                probe.send(b"punch", *target)?;
            }
        }
        let deadline = Instant::now() + pace;
        while Instant::now() < deadline && heard != [true; 2] {
            for ((probe, targets), heard) in sides.iter().zip(&mut known).zip(&mut heard) {
                probe.socket.set_read_timeout(Some(Duration::from_millis(2)))?;
                let got = receive(&probe.socket, |got, _| got == b"punch")?;
                if let Some((_, from)) = got {
                    *heard = true;
                    if !targets.contains(&from) {
                        // A peer-reflexive candidate, as ICE calls it.
                        targets.push(from);
                        probe.send(b"punch", from)?;
                    }
                }
            }
        }
        if heard == [true; 2] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads datagrams until one is wanted, at most as long as the socket waits.
fn receive(
    socket: &UdpSocket,
    mut wanted: impl FnMut(&[u8], SocketAddr) -> bool,
) -> io::Result<Option<(Vec<u8>, SocketAddr)>> {
    let mut buf = [0; 2048];
    loop {
        match socket.recv_from(&mut buf) {
            Ok((len, from)) => {
                let got = buf.get(..len).unwrap_or_default();
                if wanted(got, from) {
                    return Ok(Some((got.to_vec(), from)));
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
            // What an earlier packet met (ICMP), or a signal.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}
