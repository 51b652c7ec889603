//! A lab: hosts, routers and switches, joined by virtual Ethernet cables.

use std::{
    ffi::{CString, OsStr},
    fmt,
    io::{self, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    Tool,
    capture::Capture,
    command::HostCommand,
    impairment::Impairment,
    link::Link,
    namespace::{self, Base, Isolation, Join, Keeper, Own},
    process,
    router::Router,
    tools, wait,
};

/// How a [`Lab`] is made.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Plain namespaces or a user namespace.
    pub isolation: Isolation,
    /// The programs that must be there at the start.
    pub tools: Vec<Tool>,
    /// What the dice of its links follow: the same seed and the same frames in the same order, the same losses.
    pub seed: u64,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self { isolation: Isolation::best(), tools: vec![Tool::Ip, Tool::Nft], seed: 1 }
    }
}

/// A network of hosts; dropping it ends every process in it and leaves nothing.
#[derive(Debug)]
pub struct Lab {
    base: Arc<Base>,
    isolation: Isolation,
    dir: PathBuf,
    seed: AtomicU64,
    /// Last, since it ends everything.
    _keeper: Keeper,
}

impl Lab {
    /// A lab as [`LabOptions::default`] has it.
    ///
    /// # Errors
    ///
    /// When a tool is missing (says which package has it) or the kernel refuses (says what would help).
    pub fn new() -> Result<Self> {
        Self::with(&LabOptions::default())
    }

    /// A lab that also needs these programs.
    ///
    /// # Errors
    ///
    /// As [`Lab::new`].
    pub fn with_tools(more: &[Tool]) -> Result<Self> {
        let mut options = LabOptions::default();
        options.tools.extend(more);
        Self::with(&options)
    }

    /// A lab made to order.
    ///
    /// # Errors
    ///
    /// As [`Lab::new`].
    pub fn with(options: &LabOptions) -> Result<Self> {
        tools::require(&options.tools)?;
        process::check_kernel()?;
        let dir = nix::unistd::mkdtemp(&std::env::temp_dir().join("edgelink-lab-XXXXXX"))
            .context("cannot create a temporary directory")?;
        let doomed = std::env::var_os("EDGELINK_TESTBED_KEEP").is_none();
        match Keeper::start(options.isolation, doomed.then_some(dir.as_path())) {
            Ok(keeper) => Ok(Self {
                base: keeper.base(),
                isolation: options.isolation,
                dir,
                seed: AtomicU64::new(options.seed),
                _keeper: keeper,
            }),
            Err(error) => {
                drop(std::fs::remove_dir_all(&dir));
                Err(error)
            }
        }
    }

    /// Adds a host. `name` is also its host name: letters, digits and hyphens, at most 32.
    ///
    /// # Errors
    ///
    /// When the name is none or the kernel refuses.
    pub fn host(&self, name: &str) -> Result<Host> {
        if name.is_empty() || name.len() > 32 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            bail!("{name:?} is no host name");
        }
        let own = namespace::create_own(&self.base, name)?;
        let host = Host(Arc::new(HostInner { name: name.to_owned(), own, base: self.base.clone() }));
        // Addresses are ours to give: usable at once instead of after a second of duplicate address detection, without
        // which a router cannot even ask for its neighbours.
        for key in ["all.accept_dad", "default.accept_dad", "default.router_solicitations"] {
            host.sysctl(&format!("net.ipv6.conf.{key}"), "0")?;
        }
        // A second address outlives the first, so that an address can change.
        host.sysctl("net.ipv4.conf.all.promote_secondaries", "1")?;
        host.ip(&["link", "set", "lo", "up"])?;
        Ok(host)
    }

    /// Adds a host that forwards packets between its interfaces.
    ///
    /// # Errors
    ///
    /// As [`Lab::host`].
    pub fn router(&self, name: &str) -> Result<Router> {
        let host = self.host(name)?;
        for key in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
            host.sysctl(&format!("net.{key}"), "1")?;
        }
        Ok(Router::new(host))
    }

    /// Adds an Ethernet switch.
    ///
    /// # Errors
    ///
    /// As [`Lab::host`].
    pub fn switch(&self, name: &str) -> Result<Switch> {
        let host = self.host(name)?;
        // Nothing of its own on the wire.
        host.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        host.ip(&[
            "link",
            "add",
            "br0",
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        ])?;
        host.ip(&["link", "set", "br0", "up"])?;
        Ok(Switch { host, ports: Arc::default() })
    }

    /// Joins two hosts with a cable.
    ///
    /// # Errors
    ///
    /// When an interface exists already or an address is none.
    pub fn link(&self, one: Port<'_>, other: Port<'_>) -> Result<()> {
        cable(one.host, &one.interface, other.host, &other.interface)?;
        one.configure()?;
        other.configure()
    }

    /// How it is separated from the rest of the machine.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// A private directory for this lab's files, removed with it. All hosts see it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A seed that no other link of this lab has.
    pub(crate) fn next_seed(&self) -> u64 {
        // Far apart, so that labs with neighbouring seeds share none.
        self.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
    }
}

/// One end of a cable: an interface to be, with its addresses.
#[derive(Debug, Clone)]
pub struct Port<'a> {
    host: &'a Host,
    interface: String,
    addresses: Vec<String>,
}

/// An interface for [`Lab::link`] or [`Switch::plug`]: its name and its address with prefix length (`"10.0.0.1/24"`; more
/// by [`Port::and`]).
#[must_use]
pub fn port<'a>(host: &'a Host, interface: &str, address: &str) -> Port<'a> {
    Port { host, interface: interface.to_owned(), addresses: vec![address.to_owned()] }
}

impl Port<'_> {
    /// Gives it another address, IPv4 or IPv6.
    #[must_use]
    pub fn and(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// Its host and interface.
    pub(crate) fn end(&self) -> (Host, String) {
        (self.host.clone(), self.interface.clone())
    }

    pub(crate) fn configure(&self) -> Result<()> {
        for address in &self.addresses {
            self.host.address(&self.interface, address)?;
        }
        Ok(())
    }
}

/// A host: network interfaces, routes, sockets and processes of its own. Clones are the same host.
#[derive(Clone)]
pub struct Host(Arc<HostInner>);

struct HostInner {
    name: String,
    own: Own,
    base: Arc<Base>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.0.name).finish()
    }
}

/// Configuration.
impl Host {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Adds an address with prefix length to an interface.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        let mut arguments = vec!["address", "add", address, "dev", interface];
        if address.contains(':') {
            arguments.push("nodad");
        }
        self.ip(&arguments)
    }

    /// Removes an address.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn remove_address(&self, interface: &str, address: &str) -> Result<()> {
        self.ip(&["address", "del", address, "dev", interface])
    }

    /// Adds a route: `destination` is a network or `default`.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn route(&self, destination: &str, via: IpAddr) -> Result<()> {
        let family = if via.is_ipv4() { "-4" } else { "-6" };
        self.ip(&[family, "route", "add", destination, "via", &via.to_string()])
    }

    /// Sends everything else to this router.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn default_route(&self, via: IpAddr) -> Result<()> {
        self.route("default", via)
    }

    /// Sends everything else to this router from now on, in place of the one that had it: what a host does that changes
    /// its uplink.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn switch_default_route(&self, via: IpAddr) -> Result<()> {
        let family = if via.is_ipv4() { "-4" } else { "-6" };
        self.ip(&[family, "route", "replace", "default", "via", &via.to_string()])
    }

    /// Gives an interface another address in place of one that it has, with no time in which it has none. Sockets on the
    /// old one stay and are of no use, and routes that named it as their source go.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn change_address(&self, interface: &str, old: &str, new: &str) -> Result<()> {
        self.address(interface, new)?;
        self.remove_address(interface, old)
    }

    /// Pulls (`false`) or plugs (`true`) the cable.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn set_link(&self, interface: &str, up: bool) -> Result<()> {
        self.ip(&["link", "set", interface, if up { "up" } else { "down" }])
    }

    /// Whether an interface exists.
    ///
    /// # Errors
    ///
    /// When `ip` cannot be run.
    pub fn has_interface(&self, interface: &str) -> Result<bool> {
        Ok(self.command("ip").args(["link", "show", "dev", interface]).output()?.status.success())
    }

    /// Sets a network parameter, e.g. `net.ipv4.ip_forward`.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = CString::new(format!("/proc/sys/{}", key.replace('.', "/")))?;
        let set = || -> io::Result<()> {
            let file = namespace::open_for_writing(self.join(), &path)?;
            std::fs::File::from(file).write_all(value.as_bytes())
        };
        set().with_context(|| format!("{}: sysctl {key}={value}", self.name()))
    }

    /// Runs `ip` with these arguments.
    ///
    /// # Errors
    ///
    /// As `ip` says.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        self.command("ip").args(arguments).run().map(drop)
    }

    /// Loads an nftables script.
    ///
    /// # Errors
    ///
    /// As `nft` says.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.command("nft").args(["-f", "-"]).stdin(script).run().map(drop)
    }
}

/// Programs, sockets and captures.
impl Host {
    /// A program to run here.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> HostCommand {
        HostCommand::new(self.clone(), program.as_ref())
    }

    /// Whether one ICMP echo to `target` is answered within a second.
    ///
    /// # Errors
    ///
    /// When `ping` cannot be run.
    pub fn pings(&self, target: IpAddr) -> Result<bool> {
        let target = target.to_string();
        Ok(self.command("ping").args(["-n", "-q", "-c", "1", "-W", "1", target.as_str()]).output()?.status.success())
    }

    /// A UDP socket of this host, for the test process to use.
    ///
    /// # Errors
    ///
    /// When the address is not this host's or taken.
    pub fn udp_socket(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.socket(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        socket.bind(&address.into())?;
        Ok(socket.into())
    }

    /// A listening TCP socket of this host, for the test process to use.
    ///
    /// # Errors
    ///
    /// When the address is not this host's or taken.
    pub fn tcp_listener(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.socket(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(128)?;
        Ok(socket.into())
    }

    /// Connects from this host by TCP.
    ///
    /// # Errors
    ///
    /// When it is refused, or `TimedOut`.
    pub fn tcp_connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let socket = self.socket(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.connect_timeout(&SockAddr::from(address), timeout)?;
        Ok(socket.into())
    }

    /// Waits until something accepts TCP connections from this host at `address`. It sees connections that close at once.
    ///
    /// # Errors
    ///
    /// When the time is over.
    pub fn wait_tcp(&self, address: SocketAddr, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        wait::until(&format!("{}: TCP to {address}", self.name()), timeout, || {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.tcp_connect(address, left).ok().map(drop)
        })
    }

    /// Records what passes an interface from now on.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn capture(&self, interface: &str) -> Result<Capture> {
        Capture::start(self.packet_socket()?, interface)
            .with_context(|| format!("{}: cannot capture on {interface}", self.name()))
    }

    /// A packet socket, not bound yet: it sees nothing.
    pub(crate) fn packet_socket(&self) -> Result<OwnedFd> {
        namespace::socket(self.join(), libc::AF_PACKET, libc::SOCK_RAW, 0)
            .with_context(|| format!("{}: cannot open a packet socket", self.name()))
    }

    /// A socket of this host.
    ///
    /// # Errors
    ///
    /// As the kernel says.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let protocol = protocol.map_or(0, Into::into);
        namespace::socket(self.join(), domain.into(), kind.into(), protocol).map(Socket::from)
    }

    /// The number of its network namespace, as in `/proc/PID/ns/net`.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn namespace_id(&self) -> Result<u64> {
        namespace::inode(&self.0.own.net)
    }

    pub(crate) fn join(&self) -> Join {
        Join::new(&self.0.base, &self.0.own)
    }

    fn net(&self) -> Result<OwnedFd> {
        Ok(self.0.own.net.as_fd().try_clone_to_owned()?)
    }
}

/// An Ethernet switch.
#[derive(Debug, Clone)]
pub struct Switch {
    host: Host,
    ports: Arc<AtomicU32>,
}

impl Switch {
    /// Joins a host to this switch.
    ///
    /// # Errors
    ///
    /// When the interface exists already or an address is none.
    pub fn plug(&self, port: Port<'_>) -> Result<()> {
        let own = self.next_port();
        cable(port.host, &port.interface, &self.host, &own)?;
        self.host.ip(&["link", "set", &own, "master", "br0"])?;
        port.configure()
    }

    /// Joins a host to this switch by a bad cable; [`Direction::Forth`](crate::Direction::Forth) is towards the switch.
    ///
    /// # Errors
    ///
    /// As [`Self::plug`], or when the impairment cannot be.
    pub fn plug_impaired(&self, lab: &Lab, port: Port<'_>, impairment: &Impairment) -> Result<Link> {
        let own = self.next_port();
        let link = Link::between(lab, [port.end(), (self.host.clone(), own.clone())], impairment)?;
        self.host.ip(&["link", "set", &own, "master", "br0"])?;
        port.configure()?;
        Ok(link)
    }

    fn next_port(&self) -> String {
        format!("p{}", self.ports.fetch_add(1, Ordering::Relaxed))
    }

    /// Records everything that passes the port of the `n`th host plugged in, from 0.
    ///
    /// # Errors
    ///
    /// When there is no such port.
    pub fn capture(&self, n: u32) -> Result<Capture> {
        self.host.capture(&format!("p{n}"))
    }
}

/// Joins two interfaces, which it makes.
pub(crate) fn cable(one: &Host, one_interface: &str, other: &Host, other_interface: &str) -> Result<()> {
    let net = other.net()?;
    let namespace = format!("/proc/self/fd/{}", net.as_raw_fd());
    let peer = ["type", "veth", "peer", "name", other_interface, "netns", namespace.as_str()];
    one.command("ip").args(["link", "add", one_interface]).args(peer).inherit(net).run()?;
    one.set_link(one_interface, true)?;
    other.set_link(other_interface, true)
}
