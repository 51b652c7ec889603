//! Routers: firewall, NAT, reboot, another address.

use std::{
    net::Ipv4Addr,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Protocol, Type};

use crate::{Firewall, Host, Nat, conntrack, nat::RESET};

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
