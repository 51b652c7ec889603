//! What the kernel is told of a network: addresses, routes, and what gateway mode needs. All of it is undone at the end,
//! and what a killed daemon left is removed at the next start (DESIGN §7).

use super::shared::{Shared, Taken};
use anyhow::{Context as _, Result};
use edgelink_node::Interface;
use edgelink_os::gateway::{self, Rules, Sysctls};
use edgelink_os::net::{Netlink, Route};
use edgelink_os::tun::Tun;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;

/// How subnets are served (`gateway_mode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewaySettings {
    /// Rewrite sources.
    pub(crate) snat: bool,
    /// Where the subnets are; as the host's addresses and routes say without.
    pub(crate) lan_interface: Option<String>,
}

/// The kernel's side of one tunnel.
pub(crate) struct Kernel {
    tun: Rc<Tun>,
    gateway: Option<GatewaySettings>,
    shared: Rc<Shared>,
    /// The firewall rules in force.
    rules: Option<Rules>,
    /// What could not be done, for `status`.
    problems: Vec<String>,
}

/// Routes by the table that they belong into.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Ordinary subnets: the main table, where everybody sees them.
    main: Vec<IpNet>,
    /// Default routes, and subnets that hold an address which the tunnel itself needs.
    policy: Vec<IpNet>,
}

/// Removes what killed daemons left behind. To be called before anything else, with all privileges.
pub(crate) async fn clean_up(state: &Path) {
    let work = async {
        let netlink = Netlink::open()?;
        let routes = netlink.remove_leftovers().await? + netlink.remove_policy_leftovers().await?;
        anyhow::Ok(routes + gateway::remove_leftovers().await?)
    };
    match work.await {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "removed routes and rules that a former process left"),
        Err(error) => tracing::warn!(error = format!("{error:#}"), "left-over routes and rules were not looked for"),
    }
    Sysctls::open(&sysctl_file(state)).restore();
}

pub(super) fn sysctl_file(state: &Path) -> std::path::PathBuf {
    state.join("gateway.json")
}

impl Kernel {
    pub(crate) fn new(tun: Rc<Tun>, gateway: Option<GatewaySettings>, shared: Rc<Shared>) -> Self {
        Self { tun, gateway, shared, rules: None, problems: Vec::new() }
    }

    /// What `gateway_mode` says from now on; takes effect with the next [`Self::apply`].
    pub(crate) fn set_gateway(&mut self, gateway: Option<GatewaySettings>) {
        self.gateway = gateway;
    }

    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Makes the kernel's state as wanted; `protected` are addresses that never go into the tunnel.
    ///
    /// # Errors
    /// When the interface cannot carry packets at all. What else fails is in [`Self::problems`].
    pub(crate) async fn apply(&mut self, wanted: &Interface, protected: &BTreeSet<IpAddr>) -> Result<()> {
        self.problems.clear();
        let netlink = Netlink::open().context("cannot talk to the kernel's routing tables")?;
        let addresses = self.claim(&wanted.addresses);
        self.set_addresses(&netlink, &addresses).await?;
        let up = !addresses.is_empty();
        let protected: BTreeSet<IpAddr> = protected.iter().chain(&wanted.stun_servers).copied().collect();
        let plan = plan(if up { &wanted.routes } else { &[] }, &protected);
        self.set_main(&netlink, &plan.main).await;
        let except: Vec<IpAddr> = protected.into_iter().collect();
        if let Err(error) = netlink.set_policy_routes(self.tun.index(), &plan.policy, &except).await {
            self.problem(format!("routes around the tunnel's own traffic: {error}"));
        }
        self.serve(if up { &wanted.served } else { &[] }).await;
        Ok(())
    }

    /// Takes everything back.
    pub(crate) async fn clear(&mut self) {
        if let Err(error) = self.apply(&Interface::default(), &BTreeSet::new()).await {
            tracing::debug!(error = format!("{error:#}"), "not taken back; it vanishes with the interface");
        }
        self.shared.release(self.tun.name());
    }

    /// What no other network of this daemon has.
    fn claim(&mut self, wanted: &[IpNet]) -> Vec<IpNet> {
        let (mine, taken) = self.shared.claim(self.tun.name(), wanted);
        for Taken { address, by: (net, interface) } in taken {
            self.problem(format!(
                "{} is not used: {net} belongs to the network on {interface} already; give one of the two another subnet, \
                 or leave one (edgelink networks lists them)",
                address.addr()
            ));
        }
        mine
    }

    async fn set_addresses(&mut self, netlink: &Netlink, addresses: &[IpNet]) -> Result<()> {
        if addresses.is_empty() {
            netlink.set_addresses(self.tun.index(), &[]).await?;
            return Ok(());
        }
        let Err(error) = netlink.configure_tun(&self.tun, addresses).await else { return Ok(()) };
        let v4: Vec<IpNet> = addresses.iter().filter(|address| matches!(address, IpNet::V4(_))).copied().collect();
        if v4.is_empty() || v4.len() == addresses.len() {
            return Err(error.into());
        }
        // A host without IPv6 is no reason to be without the network.
        netlink.configure_tun(&self.tun, &v4).await?;
        self.problem(format!("no IPv6 in the tunnel: {error}"));
        Ok(())
    }

    /// Each route for itself: one that somebody else has made must not keep the others out.
    async fn set_main(&mut self, netlink: &Netlink, wanted: &[IpNet]) {
        let index = self.tun.index();
        let wanted: BTreeSet<Route> = wanted.iter().map(|net| Route::new(*net)).collect();
        let present: BTreeSet<Route> = match netlink.routes(index).await {
            Ok(routes) => routes.into_iter().collect(),
            Err(error) => return self.problem(format!("routes: {error}")),
        };
        for gone in present.difference(&wanted) {
            if let Err(error) = netlink.delete_route(index, *gone).await {
                self.problem(format!("route {}: {error}", gone.destination));
            }
        }
        for new in wanted.difference(&present) {
            if let Err(error) = netlink.add_route(index, *new).await {
                self.problem(format!("route {}: {error}", new.destination));
            }
        }
    }

    async fn serve(&mut self, served: &[IpNet]) {
        let Some(settings) = self.gateway.clone().filter(|_| !served.is_empty()) else {
            self.shared.sysctls.borrow_mut().release(self.tun.name());
            if self.rules.take().is_some()
                && let Err(error) = gateway::remove(self.tun.name()).await
            {
                tracing::warn!(%error, "the gateway's firewall rules stay");
            }
            return;
        };
        let lans = match settings.lan_interface {
            Some(name) => [name].into(),
            None => gateway::lan_interfaces(served, self.tun.name()),
        };
        let has = |v4: bool| served.iter().any(|net| matches!(net, IpNet::V4(_)) == v4);
        let forwarding = self.shared.sysctls.borrow_mut().forward(self.tun.name(), &lans, has(true), has(false));
        if let Err(error) = forwarding {
            self.problem(error.to_string());
        }
        let snat = if settings.snat { served.to_vec() } else { Vec::new() };
        let rules = Rules { tun: self.tun.name().to_owned(), snat };
        if self.rules.as_ref() != Some(&rules) {
            match rules.apply().await {
                Ok(()) => {
                    tracing::info!(subnets = served.len(), snat = settings.snat, "serving subnets");
                    self.rules = Some(rules);
                }
                Err(error) => self.problem(error.to_string()),
            }
        }
        for chain in gateway::dropping_chains().await {
            self.problem(format!(
                "gateway: the firewall chain `{chain}` drops forwarded packets by default; allow those from and to {} there",
                self.tun.name()
            ));
        }
    }

    fn problem(&mut self, text: String) {
        tracing::warn!("{text}");
        self.problems.push(text);
    }
}

fn plan(routes: &[IpNet], protected: &BTreeSet<IpAddr>) -> Plan {
    let special = |net: &IpNet| net.prefix_len() == 0 || protected.iter().any(|address| net.contains(address));
    let (policy, main) = routes.iter().partition(|net| special(net));
    Plan { main, policy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_an_address_that_the_tunnel_needs_goes_into_the_table_with_exceptions() {
        let routes = ["192.168.1.0/24", "203.0.113.0/24", "0.0.0.0/0", "2001:db8::/32", "::/0"];
        let protected = ["203.0.113.5", "2001:db8:1::1"].map(|a| a.parse().unwrap()).into();
        let plan = plan(&routes.map(|r| r.parse().unwrap()), &protected);
        assert_eq!(plan.main, ["192.168.1.0/24"].map(|r| r.parse().unwrap()));
        let policy = ["203.0.113.0/24", "0.0.0.0/0", "2001:db8::/32", "::/0"];
        assert_eq!(plan.policy, policy.map(|r| r.parse().unwrap()));
    }
}
