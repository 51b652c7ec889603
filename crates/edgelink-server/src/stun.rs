//! The STUN server's sockets, for the stand-alone server and the controller alike.
//!
//! Two ports, the configured one and the next, on one or two addresses. Where `listen` is unspecified there is one socket
//! per port for all addresses, and the kernel tells and is told which address a datagram is for and from; so a server
//! works behind one-to-one NAT, where its public address is none of the host's, and answers on every address of a host
//! with several. Where `listen` names an address there is a socket for each address and port.

use crate::addresses::is_own;
use crate::os_rng;
use anyhow::{Context as _, Result, bail};
use edgelink_config::Stun;
use edgelink_relay::stun::{Addresses, Responder, Socket as Local, StunConfig, StunStats, Which};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Buffers of one read, each large enough for a run that the kernel has gathered.
const READ_BUFFERS: usize = 4;
const READ_BUFFER: usize = 64 << 10;
/// Pairs of ports that are tried when any will do (`listen` with port 0).
const ANY_PORT_TRIES: usize = 50;

/// A STUN server with its sockets.
pub struct StunShell {
    responder: RefCell<Responder>,
    sockets: Vec<Entry>,
    /// What clients are told.
    addresses: Addresses,
    /// The first and the second address as this host has them.
    local: [Option<IpAddr>; 2],
    /// Answers that the kernel did not take.
    unsent: Cell<u64>,
    notes: Vec<String>,
}

struct Entry {
    port: Which,
    /// `None`: for all addresses.
    ip: Option<Which>,
    socket: UdpSocket,
    state: UdpSocketState,
}

impl StunShell {
    /// Binds the sockets. `own` are the addresses of this host, the best one first; `section` is the name of the
    /// configuration's section, for messages.
    ///
    /// # Errors
    /// When no address is known that clients could be told, or a port cannot be had.
    pub fn bind(config: &Stun, section: &str, own: &[IpAddr]) -> Result<Rc<Self>> {
        let listen = config.listen.ip();
        let named = Some(listen).filter(|ip| !ip.is_unspecified());
        // 0.0.0.0 is what the default says, and means all addresses of the family that is announced.
        let external = config.external_ip.or(named).or_else(|| own.first().copied()).with_context(|| {
            format!("this host has no address to announce; set {section}.external_ip to its public address")
        })?;
        if named.is_some_and(|ip| ip.is_ipv4() != external.is_ipv4())
            || config.secondary_ip.is_some_and(|ip| ip.is_ipv4() != external.is_ipv4())
        {
            bail!("{section}: listen, external_ip and secondary_ip must all be IPv4, or all IPv6");
        }
        let mut notes = Vec::new();
        let second = config.secondary_listen.or(config.secondary_ip);
        let second = second.filter(|ip| config.secondary_ip.is_some() && is_own(*ip));
        if let (Some(secondary), None) = (config.secondary_ip, second) {
            notes.push(format!(
                "{section}.secondary_ip {secondary} is no address of this host, so NATs cannot be told apart (RFC 5780); \
                 behind one-to-one NAT set {section}.secondary_listen to the address that it stands for"
            ));
        }
        let first = named.or_else(|| Some(external).filter(|ip| is_own(*ip)));
        let fits = |ip: &&IpAddr| ip.is_ipv4() == external.is_ipv4() && Some(**ip) != second;
        let first = first.or_else(|| own.iter().find(fits).copied());
        let (sockets, port) = bind_all(config.listen.port(), external.is_ipv4(), named, second)
            .with_context(|| format!("{section}.listen {}", config.listen))?;
        let other_ip = config.secondary_ip.filter(|_| second.is_some());
        let addresses = Addresses { ip: external, other_ip, ports: [port, port + 1] };
        let responder = Responder::new(StunConfig::new(addresses), &mut os_rng());
        let (responder, local, unsent) = (RefCell::new(responder), [first, second], Cell::new(0));
        Ok(Rc::new(Self { responder, sockets, addresses, local, unsent, notes }))
    }

    /// Begins to answer, and says so in the log.
    pub fn start(self: &Rc<Self>) {
        for note in &self.notes {
            tracing::warn!("{note}");
        }
        let Addresses { ip, other_ip, ports } = self.addresses;
        let second = other_ip.map(|ip| format!(" and {ip}")).unwrap_or_default();
        tracing::info!("STUN on ports {} and {}; nodes are told the address {ip}{second}", ports[0], ports[1]);
        for index in 0..self.sockets.len() {
            tokio::task::spawn_local(Rc::clone(self).serve(index));
        }
    }

    /// What clients are told.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Counters.
    pub fn stats(&self) -> StunStats {
        self.responder.borrow().stats()
    }

    /// Its counters in Prometheus' text format.
    pub fn metrics(&self, out: &mut String) {
        use std::fmt::Write as _;
        let stats = self.stats();
        let name = "edgelink_stun_requests_total";
        let _ = writeln!(out, "# HELP {name} Datagrams to the STUN server.\n# TYPE {name} counter");
        for (outcome, count) in [
            ("answered", stats.answered),
            ("unknown_attributes", stats.unknown_attributes),
            ("bad_request", stats.bad_requests),
            ("malformed", stats.malformed),
            ("unexpected", stats.unexpected),
            ("bad_source", stats.bad_source),
            ("limited", stats.limited),
            ("overloaded", stats.overloaded),
        ] {
            let _ = writeln!(out, "{name}{{outcome=\"{outcome}\"}} {count}");
        }
        let name = "edgelink_stun_unsent_total";
        let _ = writeln!(out, "# HELP {name} Answers that could not be sent.\n# TYPE {name} counter");
        let _ = writeln!(out, "{name} {}", self.unsent.get());
    }

    async fn serve(self: Rc<Self>, index: usize) {
        let Some(entry) = self.sockets.get(index) else { return };
        let mut buffers = vec![vec![0_u8; READ_BUFFER]; READ_BUFFERS];
        let mut meta = [RecvMeta::default(); READ_BUFFERS];
        loop {
            if let Err(error) = entry.socket.readable().await {
                tracing::error!(%error, "a STUN socket cannot be read any more");
                return;
            }
            let received = {
                let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
                entry.socket.try_io(Interest::READABLE, || {
                    entry.state.recv(UdpSockRef::from(&entry.socket), &mut slices, &mut meta)
                })
            };
            let count = match received {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                // What an earlier answer met on its way.
                Err(error) => {
                    tracing::trace!(%error, "STUN receive");
                    continue;
                }
            };
            for (buffer, meta) in buffers.iter().zip(&meta).take(count) {
                let bytes = buffer.get(..meta.len).unwrap_or_default();
                bytes.chunks(meta.stride.max(1)).for_each(|datagram| self.datagram(entry, meta, datagram));
            }
            // A flood must not keep others from their turn.
            tokio::task::yield_now().await;
        }
    }

    fn datagram(&self, entry: &Entry, meta: &RecvMeta, datagram: &[u8]) {
        let to = meta.dst_ip.map(|ip| ip.to_canonical());
        let to_second = self.local[1].is_some() && to == self.local[1];
        let ip = entry.ip.unwrap_or(if to_second { Which::Second } else { Which::First });
        let local = Local { ip, port: entry.port };
        let answer = self.responder.borrow_mut().answer(local, meta.addr, datagram, Instant::now());
        let Some(answer) = answer else { return };
        let by = |other: &&Entry| other.port == answer.from.port && other.ip.is_none_or(|ip| ip == answer.from.ip);
        let Some(by) = self.sockets.iter().find(by) else { return };
        let src_ip = match (by.ip, answer.from.ip) {
            (Some(_), _) => None,
            (None, from) if from == ip => to,
            (None, Which::First) => self.local[0],
            (None, Which::Second) => self.local[1],
        };
        let transmit =
            Transmit { destination: meta.addr, ecn: None, contents: answer.datagram(), segment_size: None, src_ip };
        let sent = by.socket.try_io(Interest::WRITABLE, || by.state.try_send(UdpSockRef::from(&by.socket), &transmit));
        if let Err(error) = sent {
            tracing::trace!(%error, "STUN answer");
            self.unsent.set(self.unsent.get() + 1);
        }
    }
}

/// The sockets, and the first port. `named`: the address that `listen` names.
fn bind_all(port: u16, v4: bool, named: Option<IpAddr>, second: Option<IpAddr>) -> Result<(Vec<Entry>, u16)> {
    let any = if v4 { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut addresses = vec![named.map_or((any, None), |ip| (ip, Some(Which::First)))];
    addresses.extend(second.filter(|_| named.is_some()).map(|ip| (ip, Some(Which::Second))));
    let attempt = || -> Result<(Vec<Entry>, u16)> {
        let (mut entries, mut base) = (Vec::new(), port);
        for (ip, which) in &addresses {
            for port in [Which::First, Which::Second] {
                let next = base.checked_add(1).context("port 65535 has no next one; take a lower port")?;
                let number = if port == Which::First { base } else { next };
                let entry = entry(SocketAddr::new(*ip, number), port, *which)?;
                if base == 0 {
                    base = entry.socket.local_addr()?.port();
                }
                entries.push(entry);
            }
        }
        Ok((entries, base))
    };
    // Any port will do for port 0, as long as the next one is free as well.
    let more = if port == 0 { ANY_PORT_TRIES } else { 0 };
    (0..more).map(|_| attempt()).find(Result::is_ok).unwrap_or_else(attempt)
}

fn entry(address: SocketAddr, port: Which, ip: Option<Which>) -> Result<Entry> {
    let bound = || -> Result<Entry> {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Entry { port, ip, socket: UdpSocket::from_std(socket.into())?, state })
    };
    bound().with_context(|| format!("cannot listen on UDP {address}"))
}
