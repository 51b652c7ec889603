//! What the network means for TCP connections, which it does not carry.

use super::forward::{NextHop, is_private, site};
use super::link::{Direction, Link};
use super::topology::Owner;
use super::{HostId, Internet, LanId, Uplink};
use std::net::IpAddr;
use std::time::Duration;

/// LANs that a way may cross: more than any sensible nesting.
const MAX_SEGMENTS: usize = 64;

/// The way of a connection as things are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRoute {
    /// Who has the destination address.
    pub host: HostId,
    /// The address under which that host sees the connection.
    pub source: IpAddr,
    /// One-way delay to that host: propagation only, without jitter and queues.
    pub forward: Duration,
    /// One-way delay from that host.
    pub back: Duration,
}

impl Internet {
    /// Whether and how a connection from `host` to `dst` can be made, or lives on if `source` is what it was.
    ///
    /// `None` if an end sleeps, is detached or unknown, a link is down or a partition stands in either direction, or a
    /// NAT or firewall admits no connection from outside (one-to-one NATs do). Blocked UDP does not matter.
    pub fn stream_route(&self, host: HostId, dst: IpAddr) -> Option<StreamRoute> {
        let (mut lan, mut source) = self.source(host, dst).ok()?;
        let mut way = Way { net: self, forward: Duration::ZERO, back: Duration::ZERO };
        let mut dst = dst;
        let mut via = site(Uplink::Interface(host, lan));
        way.cross(Uplink::Interface(host, lan), Direction::Up)?;
        for _ in 0..MAX_SEGMENTS {
            if lan == LanId::INTERNET && (is_private(dst) || is_private(source)) {
                return None;
            }
            match self.next_hop(lan, dst) {
                NextHop::None => return None,
                NextHop::Up => {
                    source = self.seen_outside(lan, source)?;
                    way.cross(Uplink::Router(lan), Direction::Up)?;
                    via = Uplink::Router(lan);
                    lan = self.lans[lan.index()].parent;
                }
                NextHop::Owner(Owner::Router(child)) => {
                    way.cross_core(lan, via, Uplink::Router(child))?;
                    way.cross(Uplink::Router(child), Direction::Down)?;
                    let inside = &self.lans[child.index()];
                    match (&inside.nat, dst) {
                        (Some(nat), IpAddr::V4(address)) => dst = nat.owner(address)?.into(),
                        _ if inside.firewall.is_some() => return None,
                        _ => {}
                    }
                    via = Uplink::Router(child);
                    lan = child;
                }
                NextHop::Owner(Owner::Host(end)) => {
                    way.cross_core(lan, via, Uplink::Host(end))?;
                    way.cross(Uplink::Interface(end, lan), Direction::Down)?;
                    let awake = !self.hosts[host.index()].asleep && !self.hosts[end.index()].asleep;
                    let attached = self.interface(end, lan)?.attached;
                    let cut = self.blocked.contains(&(host, end)) || self.blocked.contains(&(end, host));
                    let Way { forward, back, .. } = way;
                    return (awake && attached && !cut).then_some(StreamRoute { host: end, source, forward, back });
                }
            }
        }
        None
    }

    /// One-way delay of a connection from `host` to `dst`; see [`stream_route`](Self::stream_route).
    pub fn path_delay(&self, host: HostId, dst: IpAddr) -> Option<Duration> {
        self.stream_route(host, dst).map(|route| route.forward)
    }

    /// The public IPv4 address under which a host's connections appear; `None` while it has no way to the internet.
    pub fn observed_ip(&self, host: HostId) -> Option<IpAddr> {
        // Any public address that is nobody's leads to the internet.
        let (mut lan, mut source) = self.source(host, IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 255))).ok()?;
        if self.hosts[host.index()].asleep {
            return None;
        }
        while lan != LanId::INTERNET {
            source = self.seen_outside(lan, source)?;
            lan = self.lans[lan.index()].parent;
        }
        (!is_private(source)).then_some(source)
    }

    /// What becomes of a source address in a LAN's router.
    fn seen_outside(&self, lan: LanId, source: IpAddr) -> Option<IpAddr> {
        match (&self.lans[lan.index()].nat, source) {
            (Some(nat), IpAddr::V4(address)) => nat.address_of(address).map(IpAddr::from),
            _ => Some(source),
        }
    }
}

/// The sum of the links, each crossed in both directions.
struct Way<'a> {
    net: &'a Internet,
    forward: Duration,
    back: Duration,
}

impl Way<'_> {
    fn cross(&mut self, uplink: Uplink, direction: Direction) -> Option<()> {
        let links = self.net.links(uplink).next()?;
        let (there, back) = match direction {
            Direction::Up => (&links.up, &links.down),
            Direction::Down => (&links.down, &links.up),
        };
        self.add(Some(there), Some(back))
    }

    fn cross_core(&mut self, lan: LanId, from: Uplink, to: Uplink) -> Option<()> {
        if lan != LanId::INTERNET {
            return Some(());
        }
        let transits = &self.net.transits;
        self.add(transits.get(&(from, to)), transits.get(&(to, from)))
    }

    /// `None` if a link is down.
    fn add(&mut self, there: Option<&Link>, back: Option<&Link>) -> Option<()> {
        if there.into_iter().chain(back).any(|link| link.profile.down) {
            return None;
        }
        self.forward = self.forward.saturating_add(there.map_or(Duration::ZERO, |link| link.profile.delay));
        self.back = self.back.saturating_add(back.map_or(Duration::ZERO, |link| link.profile.delay));
        Some(())
    }
}
