//! Routers: firewall, NAT, reboot, another address.

use std::{
    net::Ipv4Addr,
    ops::Deref,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Protocol, Type};

use crate::{Firewall, Host, Nat, Process, Tool, conntrack, nat::RESET};

/// What a router maps ports by.
#[derive(Debug, Clone)]
pub struct PortMappings {
    /// UPnP-IGD.
    pub upnp: bool,
    /// PCP and NAT-PMP.
    pub pcp_and_nat_pmp: bool,
    /// The address that it says is its own; `None`: that of `wan`.
    pub external: Option<Ipv4Addr>,
    /// No lease is granted for longer.
    pub max_lifetime: Duration,
}

impl Default for PortMappings {
    fn default() -> Self {
        Self { upnp: true, pcp_and_nat_pmp: true, external: None, max_lifetime: Duration::from_secs(3_600) }
    }
}

/// Where miniupnpd writes its rules.
const MINIUPNPD_TABLE: &str = "table inet filter {
  chain miniupnpd {
  }
  chain prerouting_miniupnpd {
  }
  chain postrouting_miniupnpd {
  }
  chain forward {
    type filter hook forward priority 0; policy accept;
    jump miniupnpd
  }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    jump prerouting_miniupnpd
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    jump postrouting_miniupnpd
  }
}
";

/// A host that forwards.
#[derive(Debug, Clone)]
pub struct Router {
    host: Host,
    nat: Arc<Mutex<Option<Nat>>>,
}

impl Deref for Router {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl Router {
    pub(crate) fn new(host: Host) -> Self {
        Self { host, nat: Arc::default() }
    }

    /// Puts a firewall in place of the present one, at once.
    ///
    /// # Errors
    ///
    /// As `nft` says.
    pub fn firewall(&self, firewall: &Firewall) -> Result<()> {
        self.nft(&firewall.script())
    }

    /// How many packets the present firewall dropped.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn dropped(&self) -> Result<u64> {
        let listing = self.command("nft").args(["list", "counter", "inet", "lab_filter", "dropped"]).run()?;
        let mut words = listing.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|number| number.parse().ok()).ok_or_else(|| anyhow!("no number in {listing:?}"))
    }

    /// Puts a NAT in place of the present one, at once; mappings of the old one are forgotten.
    ///
    /// # Errors
    ///
    /// When nftables cannot express it, or as `nft` says.
    pub fn nat(&self, nat: &Nat) -> Result<()> {
        let mut present = self.present();
        self.install(nat)?;
        *present = Some(nat.clone());
        self.forget()
    }

    /// Translates no more.
    ///
    /// # Errors
    ///
    /// As `nft` says.
    pub fn no_nat(&self) -> Result<()> {
        *self.present() = None;
        self.nft(RESET)?;
        self.forget()
    }

    /// Forgets every mapping and connection, as a reboot does; it takes no time, so pull the cables as well where the
    /// outage matters ([`Host::set_link`]). TCP connections that began inside are picked up again, as Linux routers do.
    ///
    /// # Errors
    ///
    /// As `nft` or the kernel says.
    pub fn reboot(&self) -> Result<()> {
        let present = self.present();
        if let Some(nat) = present.as_ref() {
            self.install(nat)?;
        }
        self.forget()
    }

    /// Changes the address of an interface (both with prefix length), as a provider does over night; mappings of the old
    /// one are forgotten.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn renumber(&self, interface: &str, old: &str, new: &str) -> Result<()> {
        self.change_address(interface, old, new)?;
        self.reboot()
    }

    /// Starts miniupnpd, which maps ports of `wan` for the hosts on `lan` until the process is dropped. It refuses to serve
    /// with an address that is not public, those for documentation included:
    /// [`Internet::port_mappings`](crate::topology::Internet::port_mappings) gives it another.
    ///
    /// # Errors
    ///
    /// When it is not installed or does not start.
    pub fn port_mappings(&self, service: &PortMappings, directory: &Path) -> Result<Process> {
        self.nft(MINIUPNPD_TABLE)?;
        let yes = |on: bool| if on { "yes" } else { "no" };
        let external = service.external.map(|address| format!("ext_ip={address}\n")).unwrap_or_default();
        let text = format!(
            "ext_ifname=wan\nlistening_ip=lan\nport=0\n{external}enable_natpmp={}\n\
             enable_upnp={}\nsecure_mode=yes\nsystem_uptime=yes\nuuid=5e1f0c5e-0000-4000-8000-0000000000aa\n\
             min_lifetime=10\nmax_lifetime={}\n\
             allow 1024-65535 0.0.0.0/0 1024-65535\ndeny 0-65535 0.0.0.0/0 0-65535\n",
            yes(service.pcp_and_nat_pmp),
            yes(service.upnp),
            service.max_lifetime.as_secs(),
        );
        let file = directory.join(format!("{}-miniupnpd.conf", self.name()));
        std::fs::write(&file, text)?;
        let pid_file = file.with_extension("pid");
        let process = self.command(Tool::Miniupnpd.program()).arg("-d").arg("-f").arg(&file).arg("-P").arg(pid_file);
        let process = process.spawn_logged()?;
        let first = if service.upnp { "HTTP listening on port" } else { "Listening for NAT-PMP/PCP" };
        process.wait_line(first, Duration::from_secs(20)).with_context(|| process.stderr())?;
        Ok(process)
    }

    /// Drops PCP, as a router does that knows NAT-PMP only.
    ///
    /// # Errors
    ///
    /// As `nft` says.
    pub fn without_pcp(&self) -> Result<()> {
        self.nft(
            "table inet lab_pcp {\n chain input {\n type filter hook input priority 0; udp dport 5351 @th,64,8 2 drop\n }\n}\n",
        )
    }

    fn install(&self, nat: &Nat) -> Result<()> {
        let outer = if nat.needs_address() { self.ipv4_of(nat.wan())? } else { None };
        self.nft(&nat.script(outer).with_context(|| self.name().to_owned())?)?;
        let (unanswered, answered) = nat.seconds();
        for (key, seconds) in [("udp_timeout", unanswered), ("udp_timeout_stream", answered)] {
            self.sysctl(&format!("net.netfilter.nf_conntrack_{key}"), &seconds.to_string())?;
        }
        Ok(())
    }

    fn forget(&self) -> Result<()> {
        let protocol = Protocol::from(libc::NETLINK_NETFILTER);
        let socket = self.socket(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol));
        socket
            .and_then(|socket| conntrack::flush(&socket.into()))
            .with_context(|| format!("{}: cannot forget its connections", self.name()))
    }

    /// The first IPv4 address of an interface.
    fn ipv4_of(&self, interface: &str) -> Result<Option<Ipv4Addr>> {
        let listing = self.command("ip").args(["-4", "-o", "address", "show", "dev", interface]).run()?;
        let mut words = listing.split_whitespace().skip_while(|word| *word != "inet");
        Ok(words.nth(1).and_then(|address| address.split('/').next()?.parse().ok()))
    }

    fn present(&self) -> MutexGuard<'_, Option<Nat>> {
        self.nat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
