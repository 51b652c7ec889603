//! A datagram's way from host to host.

use super::link::{Direction, Link};
use super::topology::Owner;
use super::{DropReason, HostId, Internet, LanId, Place, Uplink};
use bytes::Bytes;
use rand_core::Rng;
use slab::Slab;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Instant;

/// Routers that a datagram may pass.
const TTL: u8 = 32;
/// Datagrams in flight at most: about 200 MB besides their payloads.
const MAX_FLIGHTS: usize = 1 << 20;
/// Notices that wait at most; the oldest yield.
const MAX_NOTICES: usize = 4096;

/// A datagram that has reached a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at: Instant,
    /// Where.
    pub host: HostId,
    /// The host's address and port that it was sent to.
    pub local: SocketAddr,
    /// The source as this host sees it.
    pub from: SocketAddr,
    /// What it carries.
    pub payload: Bytes,
}

/// A link told the sender that a datagram was too big ("fragmentation needed", RFC 1191 and RFC 8201).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooBig {
    /// When the link dropped it; the notice itself takes no time.
    pub at: Instant,
    /// Who sent it.
    pub host: HostId,
    /// From which of its endpoints.
    pub local: SocketAddr,
    /// To whom.
    pub dst: SocketAddr,
    /// The largest IP packet that passes, bytes.
    pub mtu: usize,
}

#[derive(Clone)]
struct Flight {
    stage: Stage,
    src: SocketAddr,
    dst: SocketAddr,
    payload: Bytes,
    ttl: u8,
    /// Who sent it, with the endpoints as that host knows them.
    sender: HostId,
    local: SocketAddr,
    remote: SocketAddr,
}

/// Where a datagram is when its time has come.
#[derive(Clone, Copy)]
enum Stage {
    /// On a LAN or the internet, come from there.
    Segment(LanId, Uplink),
    /// Across the internet's core, before this downlink.
    Transit(Uplink),
    /// At a LAN's router, from its parent.
    Router(LanId),
    /// At a host.
    Host(HostId, LanId),
}

/// What is on the way, by the time at which it gets somewhere and then in the order of sending.
#[derive(Default)]
pub(super) struct Flights {
    slots: Slab<Flight>,
    due: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    sequence: u64,
    notices: VecDeque<TooBig>,
}

impl Internet {
    /// Sends a datagram from a port of a host, the source address being chosen as an unbound socket's would be: that
    /// of the interface on whose LAN the destination is, else the first of the destination's family.
    ///
    /// # Errors
    ///
    /// What the host itself notices: it sleeps, its cable is pulled, it has no address of that family, or the
    /// destination is loopback or multicast, which are not modelled. Whatever happens later is only counted.
    pub fn send(
        &mut self,
        now: Instant,
        from: HostId,
        src_port: u16,
        dst: SocketAddr,
        payload: Bytes,
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let source = self.source(from, dst.ip());
        self.depart(now, from, source, src_port, dst, payload, rng)
    }

    /// Sends a datagram from one of the host's addresses.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send); also if the address is not the host's (any more).
    pub fn send_from(
        &mut self,
        now: Instant,
        from: HostId,
        src: SocketAddr,
        dst: SocketAddr,
        payload: Bytes,
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let host = &self.hosts[from.index()];
        let source = match host.interfaces.iter().find(|interface| interface.addresses.contains(&src.ip())) {
            _ if src.is_ipv4() != dst.is_ipv4() => Err(DropReason::NoAddress),
            Some(interface) if interface.attached => Ok((interface.lan, src.ip())),
            Some(_) => Err(DropReason::Detached),
            None => Err(DropReason::NoAddress),
        };
        self.depart(now, from, source, src.port(), dst, payload, rng)
    }

    /// When the next datagram gets somewhere, perhaps only one step further.
    pub fn next_due(&self) -> Option<Instant> {
        self.flights.due.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Moves datagrams up to `now` until one arrives at a host; `None` when nothing else arrives by then.
    pub fn pop_due(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Arrival> {
        while self.next_due().is_some_and(|at| at <= now) {
            let Reverse((at, _, slot)) = self.flights.due.pop()?;
            let Some(flight) = self.flights.slots.try_remove(slot) else { continue };
            match flight.stage {
                Stage::Segment(lan, via) => self.on_segment(at, lan, via, flight, rng),
                Stage::Transit(down) => self.descend(at, down, flight, rng),
                Stage::Router(lan) => self.come_in(at, lan, flight, rng),
                Stage::Host(host, lan) => {
                    if let Some(arrival) = self.arrive(at, host, lan, flight) {
                        return Some(arrival);
                    }
                }
            }
        }
        None
    }

    /// The oldest notice that a datagram was too big for a link with
    /// [`signal_too_big`](super::LinkProfile::signal_too_big). At most 4096 wait; the oldest yield.
    pub fn pop_too_big(&mut self) -> Option<TooBig> {
        self.flights.notices.pop_front()
    }

    /// Datagrams on the way.
    pub fn in_flight(&self) -> usize {
        self.flights.slots.len()
    }

    /// LAN and address from which a host would send to `dst`.
    pub(super) fn source(&self, host: HostId, dst: IpAddr) -> Result<(LanId, IpAddr), DropReason> {
        let fits = |address: &&IpAddr| address.is_ipv4() == dst.is_ipv4();
        let mut candidates = self.hosts[host.index()]
            .interfaces
            .iter()
            .filter_map(|interface| Some((interface, *interface.addresses.iter().find(fits)?)))
            .peekable();
        if candidates.peek().is_none() {
            return Err(DropReason::NoAddress);
        }
        let mut first = None;
        for (interface, address) in candidates.filter(|(interface, _)| interface.attached) {
            if interface.lan != LanId::INTERNET && self.lans[interface.lan.index()].on_link(dst) {
                return Ok((interface.lan, address));
            }
            first = first.or(Some((interface.lan, address)));
        }
        first.ok_or(DropReason::Detached)
    }

    #[expect(clippy::too_many_arguments, reason = "a datagram's headers, passed once")]
    fn depart(
        &mut self,
        now: Instant,
        from: HostId,
        source: Result<(LanId, IpAddr), DropReason>,
        src_port: u16,
        dst: SocketAddr,
        payload: Bytes,
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let source = match source {
            _ if self.hosts[from.index()].asleep => Err(DropReason::Asleep),
            _ if dst.ip().is_loopback() || dst.ip().is_unspecified() || dst.ip().is_multicast() => {
                Err(DropReason::Unroutable)
            }
            source => source,
        };
        let (lan, address) = source.inspect_err(|reason| self.drops.count(Place::Host(from), *reason))?;
        let local = SocketAddr::new(address, src_port);
        let via = if lan == LanId::INTERNET { Uplink::Host(from) } else { Uplink::Interface(from, lan) };
        let stage = Stage::Segment(lan, via);
        let flight = Flight { stage, src: local, dst, payload, ttl: TTL, sender: from, local, remote: dst };
        self.transmit(now, Uplink::Interface(from, lan), Direction::Up, flight, rng);
        Ok(())
    }

    /// Sends on a link, towards the flight's stage.
    fn transmit(&mut self, at: Instant, uplink: Uplink, direction: Direction, flight: Flight, rng: &mut impl Rng) {
        let Some(links) = self.links_mut(uplink).next() else {
            self.drops.count(Place::Link(uplink, direction), DropReason::Gone);
            return;
        };
        let passed = offer(links.get_mut(direction), at, &flight, rng);
        self.schedule(at, Place::Link(uplink, direction), passed, flight);
    }

    /// What becomes of a datagram after a link.
    fn schedule(&mut self, at: Instant, place: Place, passed: Offered, flight: Flight) {
        let passage = match passed {
            Ok(passage) => passage,
            Err((reason, notice)) => {
                self.drops.count(place, reason);
                if let Some(mtu) = notice {
                    if self.flights.notices.len() >= MAX_NOTICES {
                        self.flights.notices.pop_front();
                    }
                    let Flight { sender: host, local, remote: dst, .. } = flight;
                    self.flights.notices.push_back(TooBig { at, host, local, dst, mtu });
                }
                return;
            }
        };
        if self.flights.slots.len() + 2 > MAX_FLIGHTS {
            self.drops.count(place, DropReason::Overload);
            return;
        }
        if passage.duplicate {
            self.flights.push(passage.at, flight.clone());
        }
        self.flights.push(passage.at, flight);
    }

    /// On a LAN or the internet: to a host, into a LAN further inside, or out.
    fn on_segment(&mut self, at: Instant, lan: LanId, via: Uplink, flight: Flight, rng: &mut impl Rng) {
        let down = match self.next_hop(lan, flight.dst.ip()) {
            _ if lan == LanId::INTERNET && (is_private(flight.src.ip()) || is_private(flight.dst.ip())) => {
                return self.drops.count(Place::Segment(lan), DropReason::Unroutable);
            }
            NextHop::None => return self.drops.count(Place::Segment(lan), DropReason::NoHost),
            NextHop::Up => return self.go_out(at, lan, flight, rng),
            NextHop::Owner(Owner::Host(host)) => Uplink::Interface(host, lan),
            NextHop::Owner(Owner::Router(child)) => Uplink::Router(child),
        };
        if lan == LanId::INTERNET && !self.transits.is_empty() {
            let to = site(down);
            if let Some(link) = self.transits.get_mut(&(via, to)) {
                let passed = offer(link, at, &flight, rng);
                let flight = Flight { stage: Stage::Transit(down), ..flight };
                return self.schedule(at, Place::Transit(via, to), passed, flight);
            }
        }
        self.descend(at, down, flight, rng);
    }

    fn descend(&mut self, at: Instant, down: Uplink, flight: Flight, rng: &mut impl Rng) {
        let stage = match down {
            Uplink::Interface(host, lan) => Stage::Host(host, lan),
            Uplink::Host(host) => Stage::Host(host, LanId::INTERNET),
            Uplink::Router(lan) => Stage::Router(lan),
        };
        self.transmit(at, down, Direction::Down, Flight { stage, ..flight }, rng);
    }

    /// A LAN's router, from inside.
    fn go_out(&mut self, at: Instant, lan: LanId, mut flight: Flight, rng: &mut impl Rng) {
        let result = match self.pass_router(lan, &mut flight) {
            Ok(()) => self.translate_out(at, lan, &mut flight, rng),
            Err(reason) => Err(reason),
        };
        match result {
            Ok(Turn::Out) => {
                let stage = Stage::Segment(self.lans[lan.index()].parent, Uplink::Router(lan));
                self.transmit(at, Uplink::Router(lan), Direction::Up, Flight { stage, ..flight }, rng);
            }
            Ok(Turn::Back) => self.on_segment(at, lan, Uplink::Router(lan), flight, rng),
            Err(reason) => self.drops.count(Place::Router(lan), reason),
        }
    }

    /// A LAN's router, from outside.
    fn come_in(&mut self, at: Instant, lan: LanId, mut flight: Flight, rng: &mut impl Rng) {
        match self.pass_router(lan, &mut flight).and_then(|()| self.translate_in(at, lan, &mut flight)) {
            Ok(()) => self.on_segment(at, lan, Uplink::Router(lan), flight, rng),
            Err(reason) => self.drops.count(Place::Router(lan), reason),
        }
    }

    fn pass_router(&self, lan: LanId, flight: &mut Flight) -> Result<(), DropReason> {
        flight.ttl = flight.ttl.checked_sub(1).ok_or(DropReason::TtlExpired)?;
        if self.lans[lan.index()].udp_blocked { Err(DropReason::UdpBlocked) } else { Ok(()) }
    }

    fn translate_out(
        &mut self,
        at: Instant,
        lan: LanId,
        flight: &mut Flight,
        rng: &mut impl Rng,
    ) -> Result<Turn, DropReason> {
        let lan = &mut self.lans[lan.index()];
        if let (Some(nat), SocketAddr::V4(src), SocketAddr::V4(dst)) = (&mut lan.nat, flight.src, flight.dst) {
            if nat.external().contains(dst.ip()) {
                let (src, dst) = nat.hairpin(at, src, dst, rng)?;
                (flight.src, flight.dst) = (src.into(), dst.into());
                return Ok(Turn::Back);
            }
            flight.src = nat.outbound(at, src, dst, rng)?.into();
        } else if let Some(firewall) = &mut lan.firewall {
            firewall.outbound(at, flight.src, flight.dst)?;
        }
        Ok(Turn::Out)
    }

    fn translate_in(&mut self, at: Instant, lan: LanId, flight: &mut Flight) -> Result<(), DropReason> {
        let lan = &mut self.lans[lan.index()];
        if let (Some(nat), SocketAddr::V4(src), SocketAddr::V4(dst)) = (&mut lan.nat, flight.src, flight.dst) {
            let internal: SocketAddrV4 = nat.inbound(at, dst, src)?;
            flight.dst = internal.into();
        } else if let Some(firewall) = &mut lan.firewall {
            firewall.inbound(at, flight.dst, flight.src)?;
        }
        Ok(())
    }

    fn arrive(&mut self, at: Instant, host: HostId, lan: LanId, flight: Flight) -> Option<Arrival> {
        let reason = match self.interface(host, lan) {
            _ if self.hosts[host.index()].asleep => DropReason::Asleep,
            None => DropReason::Gone,
            Some(interface) if !interface.addresses.contains(&flight.dst.ip()) => DropReason::Gone,
            Some(interface) if !interface.attached => DropReason::Detached,
            _ if self.blocked.contains(&(flight.sender, host)) => DropReason::Partitioned,
            Some(_) => {
                let Flight { src: from, dst: local, payload, .. } = flight;
                return Some(Arrival { at, host, local, from, payload });
            }
        };
        self.drops.count(Place::Host(host), reason);
        None
    }

    /// Where a LAN sends what is for `dst`.
    pub(super) fn next_hop(&self, lan: LanId, dst: IpAddr) -> NextHop {
        let here = &self.lans[lan.index()];
        if let Some(owner) = here.owners.get(&dst) {
            return NextHop::Owner(*owner);
        }
        let longest =
            here.routes.iter().filter(|(prefix, _)| prefix.contains(&dst)).max_by_key(|(p, _)| p.prefix_len());
        match longest {
            Some((_, child)) => NextHop::Owner(Owner::Router(*child)),
            None if lan == LanId::INTERNET || here.on_link(dst) => NextHop::None,
            None => NextHop::Up,
        }
    }
}

pub(super) enum NextHop {
    Owner(Owner),
    /// The default route.
    Up,
    None,
}

/// Which way a datagram from inside leaves a router.
enum Turn {
    Out,
    /// Hairpinned.
    Back,
}

type Offered = Result<super::link::Passage, (DropReason, Option<usize>)>;

/// Offers a datagram to a link; when it was too big, with the MTU if the sender is to be told.
fn offer(link: &mut Link, at: Instant, flight: &Flight, rng: &mut impl Rng) -> Offered {
    let headers = if flight.dst.is_ipv4() { 20 + 8 } else { 40 + 8 };
    link.offer(at, flight.payload.len() + headers, rng).map_err(|reason| {
        let tell = reason == DropReason::TooBig && link.profile.signal_too_big;
        (reason, tell.then_some(link.profile.mtu))
    })
}

impl Flights {
    fn push(&mut self, at: Instant, flight: Flight) {
        let slot = self.slots.insert(flight);
        self.due.push(Reverse((at, self.sequence, slot)));
        self.sequence += 1;
    }
}

/// The end of a way across the internet's core.
pub(super) fn site(uplink: Uplink) -> Uplink {
    match uplink {
        Uplink::Interface(host, LanId::INTERNET) => Uplink::Host(host),
        other => other,
    }
}

/// Whether the internet does not route an address (RFC 1918, RFC 6598, RFC 4193, link-local, loopback …). The
/// documentation prefixes count as public: simulations are written with them.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || a >= 240
                || (a == 100 && b & 0xc0 == 64)
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
        }
    }
}
