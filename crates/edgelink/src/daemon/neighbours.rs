//! LAN TCP (DESIGN §5): the listeners on this host's own addresses, and one task per connection to a neighbour.

use super::now;
use super::tunnel::Tunnel;
use bytes::Bytes;
use edgelink_net::plain::{Event, Plain};
use edgelink_net::tcp::{self, Listener};
use edgelink_node::LinkId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

/// An address that cannot be listened on yet, as a new one of IPv6, is tried again after this.
const LISTEN_RETRY: Duration = Duration::from_secs(1);

/// A listening task for each address.
#[derive(Default)]
pub(super) struct Listeners(RefCell<HashMap<SocketAddr, AbortHandle>>);

/// What a connection begins with.
pub(super) enum Begin {
    /// Dial this address.
    Dial(SocketAddr),
    /// A neighbour has dialled.
    Accepted(TcpStream),
}

/// Listens on exactly these addresses.
pub(super) fn listen_on(tunnel: &Rc<Tunnel>, addresses: &[SocketAddr]) {
    let mut listeners = tunnel.listeners.0.borrow_mut();
    listeners.retain(|address, task| {
        let stays = addresses.contains(address);
        if !stays {
            task.abort();
        }
        stays
    });
    for address in addresses {
        listeners.entry(*address).or_insert_with(|| {
            let task = listen(Rc::clone(tunnel), *address);
            tunnel.tasks.borrow_mut().spawn_local(task)
        });
    }
}

async fn listen(tunnel: Rc<Tunnel>, address: SocketAddr) {
    let mut told = false;
    let listener = loop {
        match Listener::bind(address) {
            Ok(listener) => break listener,
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::debug!(%error, "neighbours cannot reach us by TCP at an address, trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(LISTEN_RETRY).await;
    };
    loop {
        let (stream, remote) = listener.accept().await;
        // Dropped at once when it is not wanted: strangers cost no task.
        if let Some(link) = tunnel.feed(|node, now| node.stream_accepted(remote, now)) {
            tunnel.spawn_neighbour(link, Begin::Accepted(stream));
        }
    }
}

/// Drives one connection from its beginning to its end.
pub(super) async fn run(
    tunnel: Rc<Tunnel>,
    link: LinkId,
    begin: Begin,
    writable: Rc<Notify>,
    mut closed: oneshot::Receiver<Option<Bytes>>,
) {
    let dialled = matches!(begin, Begin::Dial(_));
    let stream = match begin {
        Begin::Accepted(stream) => Ok(stream),
        Begin::Dial(address) => {
            let address = [address];
            tokio::select! {
                stream = tcp::connect(&address) => stream,
                _ = &mut closed => return,
            }
        }
    };
    let reason = match stream {
        Err(error) => Some(error.to_string()),
        Ok(stream) => {
            let stream = Plain::new(stream);
            tunnel.set_link_ends(link, stream.ends().ok());
            if dialled {
                tunnel.feed(|node, now| node.link_connected(link, now));
            }
            drive(&tunnel, link, stream, &writable, &mut closed).await
        }
    };
    tunnel.link_ended(link, reason);
}

/// Reads and writes until the other end closes (the reason is returned) or the core does (`None`).
async fn drive(
    tunnel: &Rc<Tunnel>,
    link: LinkId,
    mut stream: Plain,
    writable: &Notify,
    closed: &mut oneshot::Receiver<Option<Bytes>>,
) -> Option<String> {
    let (mut buffer, mut filled) = (Vec::new(), 0);
    // What was queued before this task listened was announced before too.
    let mut more = true;
    loop {
        let size = tunnel.node.borrow().stream_buffer(link);
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let budget = stream.budget(Instant::now());
        tunnel.node.borrow_mut().set_link_budget(link, budget);
        while more && stream.unsent() < budget {
            let frames = tunnel.node.borrow_mut().poll_transmit(link, now());
            match frames {
                Some(frames) => stream.feed(frames),
                None => more = false,
            }
        }
        let room = buffer.get_mut(filled..).unwrap_or_default();
        tokio::select! {
            biased;
            _ = &mut *closed => return None,
            () = writable.notified(), if !more => more = true,
            event = stream.next(more, room) => match event {
                Ok(Event::Read(len)) => {
                    filled += len;
                    let bytes = buffer.get_mut(..filled).unwrap_or_default();
                    let taken = tunnel.node.borrow_mut().handle_stream(link, bytes, now(), &mut |header, packet| {
                        tunnel.tun_writer.push(header, packet);
                    });
                    buffer.copy_within(taken..filled, 0);
                    filled -= taken;
                    tunnel.flush_tun();
                    tunnel.pump();
                    tokio::task::yield_now().await;
                }
                // The TUN has its turn: what is more urgent than what waits here may be there.
                Ok(Event::Writable) => tokio::task::yield_now().await,
                Ok(Event::Closed) => return Some("closed by the other end".to_owned()),
                Err(error) => return Some(error.to_string()),
            },
        }
    }
}
