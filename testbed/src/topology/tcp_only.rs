//! Nothing but TCP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;

use crate::{Firewall, Host, Impairment, Lab, Link, Router, port};

/// A relay's host and nodes that reach nothing but one TCP port of it:
///
/// ```text
/// a  10.1.0.2 ── 10.1.0.1 ┐
/// b  10.2.0.2 ── 10.2.0.1 ┤ router ── 192.0.2.1 ── 192.0.2.10  relay
/// …                       ┘
/// ```
///
/// Every node sits on a network of its own. The router drops UDP, ICMP, other ports, and anything between nodes.
#[derive(Debug)]
pub struct TcpOnly {
    /// Where controller and relay run.
    pub relay: Host,
    /// The router between, its firewall in place.
    pub router: Router,
    /// The nodes, in the order of the names given; their interface is `eth0`.
    pub nodes: Vec<Host>,
    /// The bad links among those of the nodes, in their order; their first end is the node's.
    pub links: Vec<Link>,
    /// The one address and port that nodes can reach.
    pub server: SocketAddr,
}

impl TcpOnly {
    /// The relay's address; its interface is `eth0`.
    pub const RELAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

    /// Builds it with one host per name (at most 250), `tcp_port` being the one that is open.
    ///
    /// # Errors
    ///
    /// As [`Lab::host`] and [`Lab::link`].
    pub fn new(lab: &Lab, tcp_port: u16, nodes: &[&str]) -> Result<Self> {
        Self::with_links(lab, tcp_port, nodes, &[])
    }

    /// The same, with bad links between the router and those nodes for which there is one.
    ///
    /// # Errors
    ///
    /// As [`Self::new`], or when an impairment cannot be.
    pub fn with_links(lab: &Lab, tcp_port: u16, nodes: &[&str], bad: &[Option<Impairment>]) -> Result<Self> {
        let server = SocketAddr::new(IpAddr::V4(Self::RELAY), tcp_port);
        let relay = lab.host("relay")?;
        let router = lab.router("router")?;
        lab.link(port(&relay, "eth0", &format!("{}/24", Self::RELAY)), port(&router, "wan", "192.0.2.1/24"))?;
        relay.default_route(IpAddr::from([192, 0, 2, 1]))?;
        router.firewall(&Firewall::OnlyTcp(server))?;
        let (mut hosts, mut links) = (Vec::new(), Vec::new());
        for (index, (n, name)) in (1_u8..=250).zip(nodes).enumerate() {
            let host = lab.host(name)?;
            let (own, gateway) = (format!("{}/24", Self::node_address(n)), format!("10.{n}.0.1/24"));
            let lan = format!("lan{n}");
            let ends = (port(&host, "eth0", &own), port(&router, &lan, &gateway));
            match bad.get(index).copied().flatten() {
                Some(impairment) => links.push(lab.impaired_link(ends.0, ends.1, &impairment)?),
                None => lab.link(ends.0, ends.1)?,
            }
            host.default_route(IpAddr::from([10, n, 0, 1]))?;
            hosts.push(host);
        }
        Ok(Self { relay, router, nodes: hosts, links, server })
    }

    /// The address of the `n`th node, from 1.
    #[must_use]
    pub fn node_address(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, n, 0, 2)
    }
}
