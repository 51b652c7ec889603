//! The UDP sockets of direct paths.
//!
//! Dual-stack sockets with the kernel's segmentation offloads where it has them; the kernel never fragments
//! (`IP_PMTUDISC_PROBE`), because a path is used only for what its probes have shown to pass.

use super::now;
use super::tunnel::Tunnel;
use anyhow::{Context as _, Result};
use edgelink_node::{SocketId, Transmit};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// What is asked of the kernel for bursts. Of what arrives it gives so much, since the daemon has CAP_NET_ADMIN; of what is sent
/// what it allows.
const SOCKET_BUFFER: usize = 2 << 20;
/// Buffers of one read, each large enough for a run that the kernel has gathered.
const READ_BUFFERS: usize = 8;
const READ_BUFFER: usize = 64 << 10;
/// Runs of datagrams sent before others get a turn.
const TURN: usize = 2;

/// The open sockets: one that serves all peers, and additional ones for single peers.
#[derive(Default)]
pub(super) struct Sockets {
    open: RefCell<HashMap<SocketId, Open>>,
    /// There is something to send.
    writable: Notify,
    /// What all of them read into, one after the other; made with the first.
    buffers: RefCell<Vec<Vec<u8>>>,
}

struct Open {
    shared: Rc<Shared>,
    reader: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Shared {
    id: SocketId,
    socket: UdpSocket,
    state: UdpSocketState,
    ipv6: bool,
}

impl Sockets {
    /// The core has datagrams.
    pub(super) fn wake(&self) {
        self.writable.notify_one();
    }

    pub(super) fn close(&self, id: SocketId) {
        self.open.borrow_mut().remove(&id);
    }

    pub(super) fn close_all(&self) {
        self.open.borrow_mut().clear();
    }
}

/// Binds a socket and starts to read it; returns its port.
pub(super) fn open(tunnel: &Rc<Tunnel>, id: SocketId, port: u16) -> Result<u16> {
    let (socket, ipv6) = bind_udp(port)?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket)).context("cannot set up the UDP socket")?;
    // What the kernel allows everybody (`net.core.rmem_max`, 208 KiB by default) holds three runs of datagrams: half a
    // millisecond of a fast network, and less than the scheduler takes away. What is sent may be no more: it waits unsealed.
    let forced = setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER);
    let received = forced.or_else(|_| state.set_recv_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER));
    for (what, outcome) in
        [("receive", received), ("send", state.set_send_buffer_size(UdpSockRef::from(&socket), SOCKET_BUFFER))]
    {
        if let Err(error) = outcome {
            tracing::debug!(%error, what, "socket buffer not enlarged");
        }
    }
    let socket = UdpSocket::from_std(socket.into()).context("cannot watch the UDP socket")?;
    let port = socket.local_addr().context("the UDP socket has no address")?.port();
    let shared = Rc::new(Shared { id, socket, state, ipv6 });
    tunnel.udp.buffers.borrow_mut().resize_with(READ_BUFFERS, || vec![0; READ_BUFFER]);
    let reader = tunnel.tasks.borrow_mut().spawn_local(read(Rc::clone(tunnel), Rc::clone(&shared)));
    tunnel.udp.open.borrow_mut().insert(id, Open { shared, reader });
    Ok(port)
}

/// Dual stack where there is IPv6; the wanted port where it is free.
fn bind_udp(port: u16) -> Result<(Socket, bool)> {
    let attempt = |domain: Domain, address: IpAddr, port: u16| -> std::io::Result<Socket> {
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        // A default route through the tunnel is not for the tunnel's own packets.
        if let Err(error) = socket.set_mark(edgelink_os::policy::MARK) {
            tracing::debug!(%error, "the UDP socket has no mark; direct paths will not work beside an exit node");
        }
        socket.bind(&SocketAddr::new(address, port).into())?;
        Ok(socket)
    };
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    attempt(Domain::IPV6, v6, port)
        .or_else(|_| attempt(Domain::IPV6, v6, 0))
        .map(|socket| (socket, true))
        .or_else(|_| attempt(Domain::IPV4, v4, port).or_else(|_| attempt(Domain::IPV4, v4, 0)).map(|s| (s, false)))
        .context("cannot bind a UDP socket")
}

/// Socket → core → TUN.
async fn read(tunnel: Rc<Tunnel>, shared: Rc<Shared>) {
    loop {
        if let Err(error) = shared.socket.readable().await {
            tracing::error!(%error, "the UDP socket cannot be read any more");
            return;
        }
        if receive(&tunnel, &shared) {
            tunnel.pump();
            // Others have packets too.
            tokio::task::yield_now().await;
        }
    }
}

/// Hands what is there to the core; `false` when that was nothing.
fn receive(tunnel: &Tunnel, shared: &Shared) -> bool {
    let mut buffers = tunnel.udp.buffers.borrow_mut();
    let mut meta = [RecvMeta::default(); READ_BUFFERS];
    let received = {
        let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
        shared
            .socket
            .try_io(Interest::READABLE, || shared.state.recv(UdpSockRef::from(&shared.socket), &mut slices, &mut meta))
    };
    let count = match received {
        Ok(count) => count,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
        // What a former datagram met on its way: the probes find out.
        Err(error) => {
            tracing::trace!(%error, "UDP receive");
            return false;
        }
    };
    let at = now();
    for (buffer, meta) in buffers.iter_mut().zip(&meta).take(count) {
        let bytes = buffer.get_mut(..meta.len).unwrap_or_default();
        for datagram in bytes.chunks_mut(meta.stride.max(1)) {
            let mut node = tunnel.node.borrow_mut();
            node.handle_datagram(shared.id, meta.addr, datagram, at, &mut |header, packet| {
                tunnel.tun_writer.push(header, packet);
            });
        }
    }
    tunnel.flush_tun();
    true
}

/// Core → sockets.
pub(super) async fn write(tunnel: Rc<Tunnel>) {
    loop {
        tunnel.udp.writable.notified().await;
        for turn in 1_usize.. {
            let transmit = tunnel.node.borrow_mut().poll_datagram(now());
            let Some(transmit) = transmit else { break };
            let shared = tunnel.udp.open.borrow().get(&transmit.socket).map(|open| Rc::clone(&open.shared));
            if let Some(shared) = shared {
                send(&shared, &transmit).await;
            }
            tunnel.node.borrow_mut().recycle_datagram(transmit);
            if turn.is_multiple_of(TURN) {
                // The TUN has its turn: what is more urgent than what waits here may be there.
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn send(shared: &Shared, transmit: &Transmit) {
    let destination = match transmit.to {
        SocketAddr::V4(v4) if shared.ipv6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        to => to,
    };
    let run = transmit.segment * shared.state.max_gso_segments().max(1);
    for contents in transmit.bytes.chunks(run.max(1)) {
        let part = quinn_udp::Transmit {
            destination,
            ecn: None,
            contents,
            segment_size: (contents.len() > transmit.segment).then_some(transmit.segment),
            src_ip: None,
        };
        loop {
            let sent = shared
                .socket
                .try_io(Interest::WRITABLE, || shared.state.try_send(UdpSockRef::from(&shared.socket), &part));
            match sent {
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if shared.socket.writable().await.is_err() {
                        return;
                    }
                }
                // No route, no such network, too large for an interface: the probes find out.
                Err(error) => {
                    tracing::trace!(%error, "UDP send");
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_no_obstacle() {
        let (first, v6) = bind_udp(0).unwrap();
        let port = first.local_addr().unwrap().as_socket().unwrap().port();
        let (second, _) = bind_udp(port).unwrap();
        let other = second.local_addr().unwrap().as_socket().unwrap().port();
        assert!(port != 0 && other != 0 && other != port);
        assert_eq!(v6, first.local_addr().unwrap().is_ipv6());
    }
}
