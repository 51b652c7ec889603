//! A public network and sites behind NATs.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Result, bail};

use crate::{Host, Impairment, Lab, Link, Nat, NatKind, PortMappings, Process, Router, Switch, port, probe::Inside};

/// Sites that an [`Internet`] has room for.
const MAX_SITES: u8 = 60;
/// Hosts of a site.
const MAX_HOSTS: u8 = 50;

/// A public network: servers with public addresses, and sites, each behind a NAT of its own on a link of its own.
///
/// ```text
/// controller 203.0.113.10 ─┐                ┌─ link ─ router 203.0.113.101 │ 10.1.0.1 ─┬─ 10.1.0.2  first host of site 1
/// relay      203.0.113.11 ─┤ switch ─ core ─┤                                         └─ 10.1.0.3  second host
/// …                                         ├─ link ─ carrier 203.0.113.102 │ 100.64.2.1 ─ router 100.64.2.2 │ 10.2.0.1 ─ …
/// ```
///
/// All is on one Ethernet segment, 203.0.113.0/24 and 2001:db8::/64; *core* (203.0.113.1, 2001:db8::1) knows the way to
/// every site's IPv6 network 2001:db8:*site*::/64, and to the IPv4 network of sites without NAT. A site's second uplink is a
/// second router with a network of its own, 10.(100+*site*).0.0/24, to which every host of the site has a second interface.
#[derive(Debug)]
pub struct Internet<'a> {
    lab: &'a Lab,
    switch: Switch,
    core: Router,
    servers: AtomicU8,
    sites: AtomicU8,
    uplinks: AtomicU8,
}

/// How a site is to be.
#[derive(Debug, Clone)]
pub struct SitePlan {
    hosts: u8,
    first: UplinkPlan,
    second: Option<UplinkPlan>,
}

/// How a site reaches the public network: its router's NAT, the link outside that, and a carrier's NAT between.
#[derive(Debug, Clone)]
pub struct UplinkPlan {
    nat: NatKind,
    carrier: Option<NatKind>,
    link: Impairment,
}

/// A network behind one or two uplinks.
#[derive(Debug)]
pub struct Site {
    /// Its hosts; the first interface is `eth0`, that to the second uplink `eth1`.
    pub hosts: Vec<Host>,
    /// The uplink that hosts use at first.
    pub first: Uplink,
    /// The other one.
    pub second: Option<Uplink>,
    number: u8,
}

/// A router with its way outside.
#[derive(Debug)]
pub struct Uplink {
    /// The router before the hosts: its interfaces are `lan` and `wan`.
    pub router: Router,
    /// The carrier's router before that one, where there are two: its interfaces are `lan` and `wan`.
    pub carrier: Option<Router>,
    /// The switch between hosts and router.
    pub lan: Switch,
    /// The link to the public network; forth is outwards.
    pub link: Link,
    /// The public address.
    pub public: Ipv4Addr,
    /// The router's address for its hosts, and their default route.
    pub gateway: Ipv4Addr,
    /// The same in IPv6.
    pub gateway_v6: Ipv6Addr,
}

impl SitePlan {
    /// One host behind this NAT on a perfect link.
    #[must_use]
    pub fn behind(nat: NatKind) -> Self {
        Self { hosts: 1, first: UplinkPlan::new(nat), second: None }
    }

    /// So many hosts, at most 50.
    #[must_use]
    pub fn hosts(mut self, hosts: u8) -> Self {
        self.hosts = hosts;
        self
    }

    /// A carrier's NAT between the site's router and the public network.
    #[must_use]
    pub fn carrier(mut self, nat: NatKind) -> Self {
        self.first.carrier = Some(nat);
        self
    }

    /// The link to the public network, the same in both directions.
    #[must_use]
    pub fn link(mut self, link: Impairment) -> Self {
        self.first.link = link;
        self
    }

    /// A second uplink, which hosts do not use until they are told to.
    #[must_use]
    pub fn second(mut self, second: UplinkPlan) -> Self {
        self.second = Some(second);
        self
    }
}

impl UplinkPlan {
    /// This NAT on a perfect link.
    #[must_use]
    pub fn new(nat: NatKind) -> Self {
        Self { nat, carrier: None, link: Impairment::none() }
    }

    /// A carrier's NAT between the router and the public network.
    #[must_use]
    pub fn carrier(mut self, nat: NatKind) -> Self {
        self.carrier = Some(nat);
        self
    }

    /// The link to the public network, the same in both directions.
    #[must_use]
    pub fn link(mut self, link: Impairment) -> Self {
        self.link = link;
        self
    }
}

impl<'a> Internet<'a> {
    /// A public network with nobody on it.
    ///
    /// # Errors
    ///
    /// As [`Lab::router`] and [`Lab::switch`].
    pub fn new(lab: &'a Lab) -> Result<Self> {
        let (switch, core) = (lab.switch("internet")?, lab.router("core")?);
        // Everybody is on one segment; nobody is to learn a shorter way past the core.
        for key in ["all", "default"] {
            core.sysctl(&format!("net.ipv4.conf.{key}.send_redirects"), "0")?;
        }
        switch.plug(port(&core, "eth0", "203.0.113.1/24").and("2001:db8::1/64"))?;
        let zero = || AtomicU8::new(0);
        Ok(Self { lab, switch, core, servers: zero(), sites: zero(), uplinks: zero() })
    }

    /// Adds a server with these many public IPv4 addresses (1 to 10): the `n`th server has 203.0.113.(10+*n*), its further
    /// addresses count from 203.0.113.(40+10·*n*), and its IPv6 address is 2001:db8::(10+*n*), from *n* = 0.
    ///
    /// # Errors
    ///
    /// When there are more than five, or as [`Lab::host`].
    pub fn server(&self, name: &str, addresses: u8) -> Result<(Host, Vec<IpAddr>)> {
        let n = self.servers.fetch_add(1, Ordering::Relaxed);
        if n > 4 || !(1..=10).contains(&addresses) {
            bail!("{name}: there is room for five servers with one to ten addresses each");
        }
        let host = self.lab.host(name)?;
        let more = (1..addresses).map(|m| 40 + 10 * n + m);
        let v4: Vec<_> = std::iter::once(10 + n).chain(more).map(|last| Ipv4Addr::new(203, 0, 113, last)).collect();
        let mut plug = port(&host, "eth0", &format!("2001:db8::{:x}/64", 10 + n));
        for address in &v4 {
            plug = plug.and(&format!("{address}/24"));
        }
        self.switch.plug(plug)?;
        host.default_route(Ipv4Addr::new(203, 0, 113, 1).into())?;
        host.default_route(core_v6().into())?;
        Ok((host, v4.into_iter().map(IpAddr::from).collect()))
    }

    /// Adds a site; its hosts are called `NAME-1`, `NAME-2` …, its routers `NAME-r`, `NAME-r2`, and with `-carrier`.
    ///
    /// # Errors
    ///
    /// When there are more than 60, or as [`Lab::router`].
    pub fn site(&self, name: &str, plan: &SitePlan) -> Result<Site> {
        let number = self.sites.fetch_add(1, Ordering::Relaxed) + 1;
        if number > MAX_SITES || !(1..=MAX_HOSTS).contains(&plan.hosts) {
            bail!("{name}: there is room for {MAX_SITES} sites with one to {MAX_HOSTS} hosts each");
        }
        let hosts = (1..=plan.hosts).map(|n| self.lab.host(&format!("{name}-{n}"))).collect::<Result<Vec<_>>>()?;
        let first = self.uplink(&format!("{name}-r"), number, &plan.first, &hosts, "eth0")?;
        let second = match &plan.second {
            Some(second) => Some(self.uplink(&format!("{name}-r2"), 100 + number, second, &hosts, "eth1")?),
            None => None,
        };
        let site = Site { hosts, first, second, number };
        for host in &site.hosts {
            site.first.take(host)?;
        }
        Ok(site)
    }

    /// Makes a site's router map ports on request: it gets a second public address, 9.0.0.*n*, which is returned, because
    /// miniupnpd serves with none that is reserved for documentation.
    ///
    /// # Errors
    ///
    /// As [`Router::port_mappings`].
    pub fn port_mappings(&self, uplink: &Uplink, service: &PortMappings) -> Result<(Process, Ipv4Addr)> {
        let public = Ipv4Addr::new(9, 0, 0, uplink.public.octets()[3]);
        uplink.router.address("wan", &format!("{public}/32"))?;
        self.core.route(&format!("{public}/32"), uplink.public.into())?;
        let service = PortMappings { external: Some(public), ..service.clone() };
        Ok((uplink.router.port_mappings(&service, self.lab.dir())?, public))
    }

    /// The router between sites; without its forwarding, sites reach servers only.
    #[must_use]
    pub fn core(&self) -> &Router {
        &self.core
    }

    fn uplink(&self, name: &str, net: u8, plan: &UplinkPlan, hosts: &[Host], interface: &str) -> Result<Uplink> {
        let number = self.uplinks.fetch_add(1, Ordering::Relaxed) + 1;
        let public = Ipv4Addr::new(203, 0, 113, 100 + number);
        let outer_v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100 + u16::from(number));
        let inner_v6 = |last| Ipv6Addr::new(0x2001, 0xdb8, net.into(), 0, 0, 0, 0, last);
        let router = self.lab.router(name)?;
        let carrier =
            plan.carrier.map(|kind| Ok::<_, anyhow::Error>((kind, self.lab.router(&format!("{name}-carrier"))?)));
        let carrier = carrier.transpose()?;

        let outermost = carrier.as_ref().map_or(&router, |(_, carrier)| carrier);
        let wan = port(outermost, "wan", &format!("{public}/24")).and(&format!("{outer_v6}/64"));
        let link = self.switch.plug_impaired(self.lab, wan, &plan.link)?;
        outermost.default_route(Ipv4Addr::new(203, 0, 113, 1).into())?;
        outermost.default_route(core_v6().into())?;
        self.core.route(&format!("{}/64", inner_v6(0)), outer_v6.into())?;

        let mut inner = Ipv4Addr::new(10, net, 0, 2);
        if let Some((kind, carrier)) = &carrier {
            let [up, down] = [1, 2].map(|last| Ipv4Addr::new(100, 64, net, last));
            let [up_v6, down_v6] = [1, 2].map(|last| Ipv6Addr::new(0xfd00, 0x64, net.into(), 0, 0, 0, 0, last));
            self.lab.link(
                port(carrier, "lan", &format!("{up}/24")).and(&format!("{up_v6}/64")),
                port(&router, "wan", &format!("{down}/24")).and(&format!("{down_v6}/64")),
            )?;
            router.default_route(up.into())?;
            router.default_route(up_v6.into())?;
            carrier.route(&format!("{}/64", inner_v6(0)), down_v6.into())?;
            self.translate(carrier, *kind, down, public)?;
            inner = Ipv4Addr::new(10, net, 0, 2);
        }
        let outer = if carrier.is_some() { Ipv4Addr::new(100, 64, net, 2) } else { public };
        self.translate(&router, plan.nat, inner, outer)?;

        let lan = self.lab.switch(&format!("{name}-lan"))?;
        let (gateway, gateway_v6) = (Ipv4Addr::new(10, net, 0, 1), inner_v6(1));
        lan.plug(port(&router, "lan", &format!("{gateway}/24")).and(&format!("{gateway_v6}/64")))?;
        for (host, last) in hosts.iter().zip(2_u8..) {
            let address = port(host, interface, &format!("10.{net}.0.{last}/24"));
            lan.plug(address.and(&format!("{}/64", inner_v6(last.into()))))?;
        }
        Ok(Uplink { router, carrier: carrier.map(|(_, carrier)| carrier), lan, link, public, gateway, gateway_v6 })
    }

    /// A router's NAT; where it has none, those outside learn the way in.
    fn translate(&self, router: &Router, kind: NatKind, inner: Ipv4Addr, outer: Ipv4Addr) -> Result<()> {
        match kind.nat("wan", inner) {
            Some(nat) => router.nat(&nat),
            None if outer.octets()[0] == 203 => {
                let [a, b, c, _] = inner.octets();
                self.core.route(&format!("{a}.{b}.{c}.0/24"), outer.into())
            }
            None => bail!("{}: behind a carrier's NAT a router needs one of its own", router.name()),
        }
    }
}

impl Site {
    /// The address of the `n`th host, from 0, behind the first uplink.
    #[must_use]
    pub fn address(&self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, 2 + n)
    }

    /// The address of the `n`th host, from 0, behind the second uplink.
    #[must_use]
    pub fn second_address(&self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 100 + self.number, 0, 2 + n)
    }

    /// Its first host, for probes.
    #[must_use]
    pub fn inside(&self) -> Option<Inside<'_>> {
        self.hosts.first().map(|host| Inside { host, address: self.address(0).into() })
    }

    /// Puts another NAT in place of the first uplink's present one.
    ///
    /// # Errors
    ///
    /// As [`Router::nat`].
    pub fn renat(&self, kind: NatKind) -> Result<()> {
        match kind.nat("wan", self.address(0)) {
            Some(nat) => self.first.router.nat(&nat),
            None => self.first.router.no_nat(),
        }
    }

    /// Puts a NAT made to order in place of the first uplink's present one.
    ///
    /// # Errors
    ///
    /// As [`Router::nat`].
    pub fn nat(&self, nat: &Nat) -> Result<()> {
        self.first.router.nat(nat)
    }
}

impl Uplink {
    /// Makes a host send everything by this uplink from now on.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn take(&self, host: &Host) -> Result<()> {
        host.switch_default_route(self.gateway.into())?;
        host.switch_default_route(self.gateway_v6.into())
    }
}

fn core_v6() -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)
}
