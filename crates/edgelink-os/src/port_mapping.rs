//! A port mapping on this network's router, by which the world reaches a UDP socket of ours (specification §6.2, kind
//! `upnp`): PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP-IGD, whichever the router speaks, in this order.
//!
//! The protocols are those of `crab_nat` and `igd-next` (docs/adr/0015). Here it is decided whom to ask, and what to make
//! of the answer: a router may be hostile, broken, or behind another NAT itself.

use crate::net::{NetError, Netlink};
use crab_nat::{GatewayAddress, InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig};
use igd_next::aio::Gateway;
use igd_next::aio::tokio::{Tokio, search_gateway};
use igd_next::{AddAnyPortError, AddPortError, PortMappingProtocol, SearchOptions};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::time::Duration;

/// What is asked for; the router may grant less.
const LEASE_SECONDS: u32 = 3_600;
/// A mapping is renewed after half its lease, and at least and at most so often: a router that has restarted has forgotten
/// it, and one that grants seconds is not asked all the time.
const RENEW: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// PCP and NAT-PMP: three requests within 1.75 s. Who speaks them answers within milliseconds.
const PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(250), max_retries: 2, max_retry_timeout: None };
/// For a search by SSDP, which routers answer after a random delay of up to a second or three.
const SEARCH: Duration = Duration::from_millis(3_500);
/// For one exchange by SOAP.
const SOAP: Duration = Duration::from_secs(5);
/// Of what a router says, so much is shown.
const MAX_TEXT: usize = 120;
/// What routers list the mapping as.
const DESCRIPTION: &str = "EdgeLink";

/// How a router was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl Protocol {
    /// As `edgelink netcheck --json` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pcp => "pcp",
            Self::NatPmp => "nat_pmp",
            Self::Upnp => "upnp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// The router by which this host reaches the Internet, and our address towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Router {
    /// The next hop of the default route.
    pub address: Ipv4Addr,
    /// Our address in its network.
    pub local: Ipv4Addr,
}

/// Why there is no mapping.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Nothing speaks any of the protocols there.
    #[error("the router answers neither PCP nor NAT-PMP nor UPnP")]
    Silent,
    /// It speaks, and will not.
    #[error("the router refuses by {protocol}: {reason}")]
    Refused {
        /// How it was asked.
        protocol: Protocol,
        /// Its words or the library's, cut short and free of control characters.
        reason: String,
    },
    /// It maps to an address that is none on the Internet.
    #[error("the router's own address {0} is not public: it is behind another NAT")]
    NotPublic(IpAddr),
}

/// A mapping that the router has granted. It ends with its lease unless it is renewed.
#[derive(Debug)]
pub struct Mapping {
    router: Router,
    port: NonZeroU16,
    protocol: Protocol,
    external: SocketAddr,
    /// `None`: without end.
    lifetime: Option<Duration>,
    lease: Lease,
}

#[derive(Debug)]
enum Lease {
    Crab(Box<PortMapping>),
    Upnp(Box<Gateway<Tokio>>),
}

/// A default route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultRoute {
    /// The lowest is used.
    pub metric: u32,
    /// Index of the interface.
    pub output: u32,
    /// Next hop; `None` on a point-to-point link.
    pub gateway: Option<IpAddr>,
}

impl Netlink {
    /// The default route of a family that the main table prefers, other than through the interface `except`, our own.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn default_route(&self, v4: bool, except: u32) -> Result<Option<DefaultRoute>, NetError> {
        let routes = self.all_routes(v4).await?;
        let default = |route: &&RouteMessage| {
            route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.destination_prefix_length == 0
                && route.header.kind == RouteType::Unicast
        };
        let read = |route: &RouteMessage| {
            let mut found = DefaultRoute { metric: 0, output: 0, gateway: None };
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Priority(metric) => found.metric = *metric,
                    RouteAttribute::Gateway(RouteAddress::Inet(address)) => found.gateway = Some((*address).into()),
                    RouteAttribute::Gateway(RouteAddress::Inet6(address)) => found.gateway = Some((*address).into()),
                    RouteAttribute::Oif(index) => found.output = *index,
                    _ => {}
                }
            }
            found
        };
        Ok(routes.iter().filter(default).map(read).filter(|route| route.output != except).min())
    }
}

impl DefaultRoute {
    /// Its next hop by IPv4 and our address towards that.
    #[must_use]
    pub fn router(&self) -> Option<Router> {
        match self.gateway? {
            IpAddr::V4(address) => Some(Router { address, local: local_towards(address)? }),
            IpAddr::V6(_) => None,
        }
    }
}

/// Which address of ours the kernel would use; nothing is sent.
fn local_towards(address: Ipv4Addr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((address, 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(local) if !local.is_unspecified() => Some(local),
        _ => None,
    }
}

/// Asks the router to map a port of its own to ours; takes up to about twelve seconds where it speaks nothing.
///
/// # Errors
///
/// [`MapError`], the most telling of what was met.
pub async fn map(router: Router, port: NonZeroU16) -> Result<Mapping, MapError> {
    let mut refusal = MapError::Silent;
    for protocol in [Protocol::Pcp, Protocol::NatPmp, Protocol::Upnp] {
        let asked = match protocol {
            Protocol::Pcp => pcp(router, port).await,
            Protocol::NatPmp => nat_pmp(router, port).await,
            Protocol::Upnp => upnp(router, port).await,
        };
        match asked {
            // What it says of its address by one protocol it would say by all of them.
            Ok(mapping) => return mapping.checked().await,
            Err(MapError::Silent) => {}
            Err(other) => refusal = other,
        }
    }
    Err(refusal)
}

impl Mapping {
    /// Where the world reaches us: a public address as far as one can tell, with a port.
    #[must_use]
    pub fn external(&self) -> SocketAddr {
        self.external
    }

    /// How it was made.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The router that it is on.
    #[must_use]
    pub fn router(&self) -> Router {
        self.router
    }

    /// The port of ours that it leads to.
    #[must_use]
    pub fn port(&self) -> NonZeroU16 {
        self.port
    }

    /// When to renew it, from when it was made or renewed last.
    #[must_use]
    pub fn renew_after(&self) -> Duration {
        let (least, most) = RENEW;
        self.lifetime.map_or(most, |lifetime| (lifetime / 2).clamp(least, most))
    }

    /// Renews the lease; the router may map another port or have another address since.
    ///
    /// # Errors
    ///
    /// As [`map`]; the mapping is gone then, or will be.
    pub async fn renew(self) -> Result<Self, MapError> {
        let Self { router, port, .. } = self;
        let renewed = match self.lease {
            Lease::Crab(mut mapping) => match mapping.renew().await {
                Ok(()) => from_crab(router, port, *mapping).await,
                Err(error) => Err(from_failure(self.protocol, error)),
            },
            Lease::Upnp(gateway) => lease_upnp(router, port, *gateway, self.external.port()).await,
        };
        renewed?.checked().await
    }

    /// Removes it from the router, as far as that answers.
    pub async fn remove(self) {
        let removed = match self.lease {
            Lease::Crab(mapping) => mapping.try_drop().await.map_err(|(error, _)| plain(&error)),
            Lease::Upnp(gateway) => {
                let removal = gateway.remove_port(PortMappingProtocol::UDP, self.external.port());
                match tokio::time::timeout(SOAP, removal).await {
                    Ok(removed) => removed.map_err(|error| plain(&error)),
                    Err(_) => Err("no answer".to_owned()),
                }
            }
        };
        if let Err(reason) = removed {
            tracing::debug!(protocol = %self.protocol, reason, "the port mapping is left to its lease");
        }
    }

    /// Refuses what nobody on the Internet could use, and gives it back to the router.
    async fn checked(self) -> Result<Self, MapError> {
        let (protocol, external) = (self.protocol, self.external);
        let refused = |reason: &str| MapError::Refused { protocol, reason: reason.to_owned() };
        let error = if external.port() == 0 {
            refused("it maps to port 0")
        } else if self.lifetime.is_some_and(|lifetime| lifetime.is_zero()) {
            refused("it grants a lease of 0 s")
        } else if !is_public(external.ip()) {
            MapError::NotPublic(external.ip())
        } else {
            return Ok(self);
        };
        if external.port() != 0 {
            self.remove().await;
        }
        Err(error)
    }
}

async fn pcp(router: Router, port: NonZeroU16) -> Result<Mapping, MapError> {
    let gateway = GatewayAddress::IpV4(router.address);
    let request = crab_nat::pcp::BaseMapRequest::new(gateway, IpAddr::V4(router.local), InternetProtocol::Udp, port);
    match crab_nat::pcp::port_mapping(request, None, None, options(port)).await {
        Ok(mapping) => from_crab(router, port, mapping).await,
        Err(error) => Err(from_failure(Protocol::Pcp, error.into())),
    }
}

async fn nat_pmp(router: Router, port: NonZeroU16) -> Result<Mapping, MapError> {
    let gateway = GatewayAddress::IpV4(router.address);
    match crab_nat::natpmp::port_mapping(gateway, InternetProtocol::Udp, port, options(port)).await {
        Ok(mapping) => from_crab(router, port, mapping).await,
        Err(error) => Err(from_failure(Protocol::NatPmp, error.into())),
    }
}

/// The same port outside where it is free: then the guess of kind `relay` is right too.
fn options(port: NonZeroU16) -> PortMappingOptions {
    PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(LEASE_SECONDS),
        timeout_config: Some(PATIENCE),
    }
}

async fn from_crab(router: Router, port: NonZeroU16, mapping: PortMapping) -> Result<Mapping, MapError> {
    let (protocol, address) = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => (Protocol::Pcp, external_ip),
        // Of NAT-PMP it is another request.
        PortMappingType::NatPmp => match crab_nat::natpmp::external_address(mapping.gateway(), Some(PATIENCE)).await {
            Ok(address) => (Protocol::NatPmp, IpAddr::V4(address)),
            Err(error) => return Err(from_failure(Protocol::NatPmp, error.into())),
        },
    };
    let lifetime = Some(Duration::from_secs(mapping.lifetime().into()));
    let external = SocketAddr::new(address, mapping.external_port().get());
    Ok(Mapping { router, port, protocol, external, lifetime, lease: Lease::Crab(Box::new(mapping)) })
}

fn from_failure(protocol: Protocol, error: crab_nat::MappingFailure) -> MapError {
    use crab_nat::MappingFailure::{NatPmp, Pcp};
    use crab_nat::{natpmp, pcp};
    match error {
        // Nobody there, or one that speaks the other of the two.
        NatPmp(
            natpmp::Failure::Timeout
            | natpmp::Failure::Socket(_)
            | natpmp::Failure::UnsupportedVersion(_)
            | natpmp::Failure::UnsupportedOpcode,
        )
        | Pcp(pcp::Failure::Timeout | pcp::Failure::Socket(_) | pcp::Failure::UnsupportedVersion(_)) => {
            MapError::Silent
        }
        other => MapError::Refused { protocol, reason: plain(&other) },
    }
}

async fn upnp(router: Router, port: NonZeroU16) -> Result<Mapping, MapError> {
    let refused = |reason: String| MapError::Refused { protocol: Protocol::Upnp, reason };
    // First the router itself: on a shared network anybody may answer a multicast, and faster.
    let mut found = None;
    for (to, patience) in [(router.address, Duration::from_millis(1_500)), (Ipv4Addr::new(239, 255, 255, 250), SEARCH)]
    {
        let mut search = SearchOptions::default();
        // A multicast leaves by the interface that has this address, whatever the routes.
        search.bind_addr = SocketAddr::new(router.local.into(), 0);
        search.broadcast_address = SocketAddr::new(to.into(), 1900);
        search.timeout = Some(patience);
        search.single_search_timeout = Some(patience);
        search.allowed_gateway_ips = vec![router.address.into()];
        match search_gateway(search).await {
            Ok(gateway) if gateway.addr.ip() == IpAddr::V4(router.address) => {
                found = Some(gateway);
                break;
            }
            Ok(gateway) => tracing::debug!(address = %gateway.addr, "somebody who is not our router offers mappings"),
            Err(error) => tracing::debug!(reason = plain(&error), "no UPnP gateway"),
        }
    }
    let gateway = found.ok_or(MapError::Silent)?;
    match tokio::time::timeout(2 * SOAP, lease_upnp(router, port, gateway, port.get())).await {
        Ok(mapping) => mapping,
        Err(_) => Err(refused("no answer to a request".to_owned())),
    }
}

/// Makes or renews the mapping of a port outside, or of another where that one is taken.
async fn lease_upnp(
    router: Router,
    port: NonZeroU16,
    gateway: Gateway<Tokio>,
    outside: u16,
) -> Result<Mapping, MapError> {
    let refused = |error: &dyn fmt::Display| MapError::Refused { protocol: Protocol::Upnp, reason: plain(error) };
    let local = SocketAddr::new(router.local.into(), port.get());
    let mut lease = LEASE_SECONDS;
    let outside = loop {
        match gateway.add_port(PortMappingProtocol::UDP, outside, local, lease, DESCRIPTION).await {
            Ok(()) => break outside,
            Err(AddPortError::OnlyPermanentLeasesSupported) if lease > 0 => lease = 0,
            Err(AddPortError::PortInUse | AddPortError::ExternalPortZeroInvalid) => {
                match gateway.add_any_port(PortMappingProtocol::UDP, local, lease, DESCRIPTION).await {
                    Ok(outside) => break outside,
                    Err(AddAnyPortError::OnlyPermanentLeasesSupported) if lease > 0 => lease = 0,
                    Err(error) => return Err(refused(&error)),
                }
            }
            Err(error) => return Err(refused(&error)),
        }
    };
    let address = gateway.get_external_ip().await.map_err(|error| refused(&error))?;
    let lifetime = (lease > 0).then(|| Duration::from_secs(lease.into()));
    let external = SocketAddr::new(address, outside);
    Ok(Mapping { router, port, protocol: Protocol::Upnp, external, lifetime, lease: Lease::Upnp(Box::new(gateway)) })
}

/// Whether the world can reach this address. Documentation addresses pass: labs play the Internet with them.
fn is_public(address: IpAddr) -> bool {
    let IpAddr::V4(v4) = address else { return false };
    let [a, b, c, _] = v4.octets();
    let shared = a == 100 && (64..128).contains(&b);
    // RFC 6890: protocol assignments, among them DS-Lite's, and benchmarks.
    let special = (a, b, c) == (192, 0, 0) || (a == 198 && (18..20).contains(&b));
    !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared || special || a == 0 || a >= 224)
}

/// An error in words that may be shown: what a router sends can be long and hold anything.
fn plain(error: &(impl fmt::Display + ?Sized)) -> String {
    let text = error.to_string();
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MAX_TEXT).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_behind_another_nat_are_not_public() {
        for address in [
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "169.254.1.1",
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "192.0.0.2",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "2001:db8::1",
            "::",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in ["203.0.113.101", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "198.20.0.1"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn what_a_router_says_is_cut_and_cleaned() {
        assert_eq!(plain("line\r\n\u{1b}[31mred"), "line   [31mred");
        assert_eq!(plain(&"x".repeat(1 << 20)).len(), MAX_TEXT);
    }
}
