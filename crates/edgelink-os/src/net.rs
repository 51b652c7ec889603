//! Addresses, links and routes by rtnetlink: a change is exact and everything of ours can be recognised and removed.
//!
//! Our routes carry the protocol number [`ROUTE_PROTOCOL`], so that [`Netlink::set_routes`] and
//! [`Netlink::remove_leftovers`] touch no route that another program or the administrator made.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::{Stream, StreamExt, TryStreamExt};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
    },
};
use tokio::task::JoinHandle;

use crate::tun::Tun;

/// The kernel's route protocol number of every route that EdgeLink makes (`ip route show proto 237`).
pub const ROUTE_PROTOCOL: u8 = 237;

/// Packets queued towards a TUN with offloads, 16 MiB of super-packets where the default of 500 would be 32 MiB. The client
/// empties it whenever it runs, so it must only be long enough for the milliseconds in which the scheduler keeps it from that: 64
/// overflowed.
pub const TX_QUEUE_LEN: u32 = 256;

/// Packets queued towards a TUN without offloads (0.7 MiB at MTU 1400).
pub const TX_QUEUE_LEN_PLAIN: u32 = 500;

/// Why a network setting could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No netlink socket.
    #[error("cannot talk to the kernel's network configuration: {0}")]
    Socket(#[source] io::Error),
    /// There is no such interface.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The kernel needs CAP_NET_ADMIN for this.
    #[error("not allowed to {0}: run as root or grant CAP_NET_ADMIN")]
    NoPermission(String),
    /// The kernel refused.
    #[error("cannot {action}: {source}")]
    Refused {
        /// What was tried, e.g. `add route 10.0.0.0/8`.
        action: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The netlink exchange itself broke.
    #[error("cannot {action}: {source}")]
    Protocol {
        /// What was tried.
        action: String,
        /// What broke.
        source: rtnetlink::Error,
    },
}

impl NetError {
    /// The kernel's error number, when it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Socket(source) => source.raw_os_error(),
            Self::NoPermission(_) => Some(libc::EPERM),
            Self::NoInterface(_) | Self::Protocol { .. } => None,
        }
    }
}

/// One of our routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Destination network.
    pub destination: IpNet,
    /// Metric; the lower wins among routes of the same length.
    pub metric: u32,
}

impl Route {
    /// A route with the metric that EdgeLink uses, lower than DHCP clients' usual ones.
    #[must_use]
    pub fn new(destination: IpNet) -> Self {
        Self { destination: destination.trunc(), metric: 50 }
    }
}

/// A connection to the kernel's network configuration, in the network namespace of the thread that opened it.
pub struct Netlink {
    pub(crate) handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Netlink")
    }
}

/// Links.
impl Netlink {
    /// Opens the connection. Must be called inside a tokio runtime, which drives it until this is dropped.
    ///
    /// # Errors
    ///
    /// [`NetError::Socket`].
    pub fn open() -> Result<Self, NetError> {
        let (connection, handle, _messages) = rtnetlink::new_connection().map_err(NetError::Socket)?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// Gives a fresh TUN its MTU, addresses and limits, and sets it up; afterwards it carries packets and sends none
    /// of its own (no IPv6 link-local address, router solicitation or duplicate address detection).
    ///
    /// # Errors
    ///
    /// When the MTU, an address or the link state is refused. Limits that an old kernel does not know (GSO size, queue
    /// length) and a disabled IPv6 stack without IPv6 addresses are only logged.
    pub async fn configure_tun(&self, tun: &Tun, addresses: &[IpNet]) -> Result<(), NetError> {
        let index = tun.index();
        self.set_mtu(index, tun.mtu()).await?;
        if let Err(error) = self.disable_autoconf(tun.name(), index).await {
            tracing::debug!(%error, "IPv6 autoconfiguration stays as it is");
        }
        let queue = if tun.offload() { TX_QUEUE_LEN } else { TX_QUEUE_LEN_PLAIN };
        if let Err(error) = self.set_tx_queue_len(index, queue).await {
            tracing::debug!(%error, "the transmit queue stays as it is");
        }
        if tun.offload()
            && let Err(error) = self.set_gso_max_size(index, tun.gso_max_size()).await
        {
            tracing::debug!(%error, "the largest super-packet stays as it is");
        }
        self.set_addresses(index, addresses).await?;
        self.set_up(index).await
    }

    /// Sets an interface up.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn set_up(&self, index: u32) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.change(message, || format!("set interface {index} up")).await
    }

    /// Sets the MTU in bytes.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu).build();
        self.change(message, || format!("set the MTU to {mtu}")).await
    }

    /// Sets the length of the transmit queue in packets.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn set_tx_queue_len(&self, index: u32, packets: u32) -> Result<(), NetError> {
        let message = LinkUnspec::new_with_index(index).txqueuelen(packets).build();
        self.change(message, || format!("set the transmit queue to {packets} packets")).await
    }

    /// Bounds the super-packets that the kernel sends into the interface, in bytes, for both families.
    ///
    /// # Errors
    ///
    /// As the kernel says; kernels before 6.3 know no separate limit for IPv4 and are content with the common one.
    pub async fn set_gso_max_size(&self, index: u32, bytes: u32) -> Result<(), NetError> {
        let set = |attribute| {
            let message = LinkUnspec::new_with_index(index).append_extra_attribute(attribute).build();
            self.change(message, move || format!("set the largest super-packet to {bytes} bytes"))
        };
        set(LinkAttribute::GsoMaxSize(bytes)).await?;
        match set(LinkAttribute::GsoIpv4MaxSize(bytes)).await {
            Err(e) if matches!(e.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(()),
            other => other,
        }
    }

    /// The index of an interface.
    ///
    /// # Errors
    ///
    /// [`NetError::NoInterface`].
    pub async fn index(&self, name: &str) -> Result<u32, NetError> {
        let found = self.handle.link().get().match_name(name).execute().try_next().await;
        match found {
            Ok(Some(link)) => Ok(link.header.index),
            Ok(None) => Err(NetError::NoInterface(name.to_owned())),
            Err(e) => Err(match refused(e, || format!("look up interface {name}")) {
                e if e.errno() == Some(libc::ENODEV) => NetError::NoInterface(name.to_owned()),
                other => other,
            }),
        }
    }

    async fn disable_autoconf(&self, name: &str, index: u32) -> Result<(), NetError> {
        // Best effort beside the address generation mode, which is what counts; they fail on a read-only /proc.
        for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("router_solicitations", "0"), ("accept_dad", "0")]
        {
            drop(std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{key}"), value));
        }
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message =
            LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none])).build();
        self.change(message, || "turn IPv6 link-local addresses off".to_owned()).await
    }

    async fn change(&self, message: LinkMessage, action: impl Fn() -> String) -> Result<(), NetError> {
        self.handle.link().change(message).execute().await.map_err(|e| refused(e, action))
    }
}

/// Addresses.
impl Netlink {
    /// Makes the global addresses of an interface exactly `wanted`: adds what is missing, removes what is not wanted,
    /// leaves the rest alone.
    ///
    /// # Errors
    ///
    /// At the first refusal.
    pub async fn set_addresses(&self, index: u32, wanted: &[IpNet]) -> Result<(), NetError> {
        for message in self.address_messages(index).await? {
            let Some(address) = address_of(&message) else { continue };
            if !wanted.contains(&address) {
                let deleted = self.handle.address().del(message).execute().await;
                ignore(deleted, libc::EADDRNOTAVAIL).map_err(|e| refused(e, || format!("remove address {address}")))?;
            }
        }
        // Listed anew: with a primary address the kernel removes the others of its network.
        let present = self.addresses(index).await?;
        for address in wanted {
            if !present.contains(address) {
                self.add_address(index, *address).await?;
            }
        }
        Ok(())
    }

    /// The global addresses of an interface, sorted.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpNet>, NetError> {
        let mut found: Vec<IpNet> = self.address_messages(index).await?.iter().filter_map(address_of).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The address by which the outside most likely reaches this host: that of the interface with the default route
    /// (the least metric; IPv4 before IPv6). `None` without a default route.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn default_route_address(&self) -> Result<Option<IpAddr>, NetError> {
        for v4 in [true, false] {
            let mut defaults: Vec<(u32, u32, Option<IpAddr>)> = Vec::new();
            for route in self.main_routes(v4).await? {
                if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
                    continue;
                }
                let Some(link) = output_of(&route) else { continue };
                let source = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::PrefSource(address) => ip_of(address),
                    _ => None,
                });
                defaults.push((metric_of(&route), link, source));
            }
            defaults.sort_unstable();
            for (_, link, source) in defaults {
                let found = match source {
                    Some(address) => Some(address),
                    None => self.addresses(link).await?.iter().map(IpNet::addr).find(|a| a.is_ipv4() == v4),
                };
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// The networks that this host is directly connected to, except by loopback and the interface `except`.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn connected_networks(&self, except: Option<u32>) -> Result<Vec<IpNet>, NetError> {
        let mut skip: BTreeSet<u32> = except.into_iter().collect();
        let links = collect(self.handle.link().get().execute(), "list interfaces").await?;
        skip.extend(links.iter().filter(|l| l.header.flags.contains(LinkFlags::Loopback)).map(|l| l.header.index));
        let all = collect(self.handle.address().get().execute(), "list addresses").await?;
        let networks: BTreeSet<IpNet> = all
            .iter()
            .filter(|message| !skip.contains(&message.header.index) && message.header.scope == AddressScope::Universe)
            .filter_map(address_of)
            .map(|address| address.trunc())
            .collect();
        Ok(networks.into_iter().collect())
    }

    async fn add_address(&self, index: u32, address: IpNet) -> Result<(), NetError> {
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        if address.addr().is_ipv6() {
            // Usable at once, and no neighbour solicitation is sent: the controller already made it unique.
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(|e| refused(e, || format!("add address {address}")))
    }

    async fn address_messages(&self, index: u32) -> Result<Vec<AddressMessage>, NetError> {
        let all = self.handle.address().get().set_link_index_filter(index).execute();
        let mut found = collect(all, "list addresses").await?;
        found.retain(|message| message.header.scope == AddressScope::Universe);
        Ok(found)
    }
}

/// Routes.
impl Netlink {
    /// Makes our routes through an interface exactly `wanted`. Routes that others made stay as they are.
    ///
    /// # Errors
    ///
    /// At the first refusal; calling again with the same list completes what is missing.
    pub async fn set_routes(&self, index: u32, wanted: &[Route]) -> Result<(), NetError> {
        let wanted: BTreeSet<Route> =
            wanted.iter().map(|route| Route { destination: route.destination.trunc(), ..*route }).collect();
        let present: BTreeSet<Route> = self.routes(index).await?.into_iter().collect();
        for route in present.difference(&wanted) {
            self.delete_route(index, *route).await?;
        }
        for route in wanted.difference(&present) {
            self.add_route(index, *route).await?;
        }
        Ok(())
    }

    /// Our routes through an interface, sorted.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn routes(&self, index: u32) -> Result<Vec<Route>, NetError> {
        let mut found: Vec<Route> = self
            .own_routes()
            .await?
            .iter()
            .filter(|message| output_of(message) == Some(index))
            .filter_map(|message| Some(Route { destination: destination_of(message)?, metric: metric_of(message) }))
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Adds a route through an interface; one that is already there exactly so is no error.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn add_route(&self, index: u32, route: Route) -> Result<(), NetError> {
        let added = self.handle.route().add(route_message(index, route)).execute().await;
        match added.map_err(|e| refused(e, || format!("add route {}", route.destination))) {
            // Somebody's route of equal destination and metric: ours only if it is through our interface.
            Err(e) if e.errno() == Some(libc::EEXIST) && self.routes(index).await?.contains(&route) => Ok(()),
            other => other,
        }
    }

    /// Removes one of our routes; one that is already gone is no error.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub async fn delete_route(&self, index: u32, route: Route) -> Result<(), NetError> {
        let deleted = self.handle.route().del(route_message(index, route)).execute().await;
        ignore(deleted, libc::ESRCH).map_err(|e| refused(e, || format!("remove route {}", route.destination)))
    }

    /// Removes what a killed EdgeLink left behind, and returns how many routes that were.
    ///
    /// Routes through a TUN go with their interface when its process dies; left behind can only be ones of our
    /// protocol that do not lead into a TUN. Other EdgeLink processes on this host keep theirs.
    ///
    /// # Errors
    ///
    /// At the first refusal.
    pub async fn remove_leftovers(&self) -> Result<usize, NetError> {
        let tuns = self.tun_indices().await?;
        let mut removed = 0;
        for message in self.own_routes().await? {
            if output_of(&message).is_some_and(|link| tuns.contains(&link)) {
                continue;
            }
            let deleted = self.handle.route().del(message).execute().await;
            ignore(deleted, libc::ESRCH).map_err(|e| refused(e, || "remove a left-over route".to_owned()))?;
            removed += 1;
        }
        Ok(removed)
    }

    pub(crate) async fn tun_indices(&self) -> Result<BTreeSet<u32>, NetError> {
        let links = collect(self.handle.link().get().execute(), "list interfaces").await?;
        Ok(links.iter().filter(|link| is_tun(link)).map(|link| link.header.index).collect())
    }

    async fn own_routes(&self) -> Result<Vec<RouteMessage>, NetError> {
        let mut all = self.main_routes(true).await?;
        all.extend(self.main_routes(false).await?);
        all.retain(|message| message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL));
        Ok(all)
    }

    async fn main_routes(&self, v4: bool) -> Result<Vec<RouteMessage>, NetError> {
        let mut all = self.all_routes(v4).await?;
        all.retain(|message| message.header.table == RouteHeader::RT_TABLE_MAIN);
        Ok(all)
    }

    /// Of every table: without strict checking the kernel ignores a query's table.
    pub(crate) async fn all_routes(&self, v4: bool) -> Result<Vec<RouteMessage>, NetError> {
        let query = if v4 {
            RouteMessageBuilder::<Ipv4Addr>::new().build()
        } else {
            RouteMessageBuilder::<Ipv6Addr>::new().build()
        };
        collect(self.handle.route().get(query).execute(), "list routes").await
    }
}

fn route_message(index: u32, route: Route) -> RouteMessage {
    let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    match route.destination.trunc() {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(index)
            .priority(route.metric)
            .protocol(protocol)
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(index)
            .priority(route.metric)
            .protocol(protocol)
            .build(),
    }
}

pub(crate) fn destination_of(message: &RouteMessage) -> Option<IpNet> {
    let given = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip_of(address),
        _ => None,
    });
    let prefix = message.header.destination_prefix_length;
    match (given, message.header.address_family) {
        (Some(address), _) => IpNet::new(address, prefix).ok(),
        // The default route has no destination.
        (None, AddressFamily::Inet) if prefix == 0 => Some(Ipv4Net::default().into()),
        (None, AddressFamily::Inet6) if prefix == 0 => Some(Ipv6Net::default().into()),
        _ => None,
    }
}

fn output_of(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn metric_of(message: &RouteMessage) -> u32 {
    let given = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    given.unwrap_or(0)
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // On point-to-point links `Address` is the other end's and `Local` ours; IPv6 has only the former.
    IpNet::new(find(true).or_else(|| find(false))?, message.header.prefix_len).ok()
}

fn is_tun(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Tun))),
        _ => false,
    })
}

pub(crate) async fn collect<T>(
    stream: impl Stream<Item = Result<T, rtnetlink::Error>>,
    action: &'static str,
) -> Result<Vec<T>, NetError> {
    let mut stream = std::pin::pin!(stream);
    let mut found = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(item) => found.push(item),
            // A kernel without IPv6 answers a dump of that family so.
            Err(rtnetlink::Error::NetlinkError(e)) if errno_of(e.raw_code()) == libc::EAFNOSUPPORT => break,
            Err(e) => return Err(refused(e, || action.to_owned())),
        }
    }
    Ok(found)
}

pub(crate) fn ignore(result: Result<(), rtnetlink::Error>, errno: i32) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(e)) if errno_of(e.raw_code()) == errno => Ok(()),
        other => other,
    }
}

pub(crate) fn refused(error: rtnetlink::Error, action: impl Fn() -> String) -> NetError {
    let rtnetlink::Error::NetlinkError(message) = error else {
        return NetError::Protocol { action: action(), source: error };
    };
    match errno_of(message.raw_code()) {
        libc::EPERM | libc::EACCES => NetError::NoPermission(action()),
        errno => NetError::Refused { action: action(), source: io::Error::from_raw_os_error(errno) },
    }
}

/// Netlink carries error numbers negated.
fn errno_of(code: i32) -> i32 {
    code.saturating_abs()
}
