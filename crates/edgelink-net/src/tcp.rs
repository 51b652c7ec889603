//! TCP sockets: options, dialling several addresses at once, listening.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Unsent bytes above which the kernel no longer says "writable" (`TCP_NOTSENT_LOWAT`, DESIGN §6): what waits, waits in
/// user space, where the queue discipline sees it.
pub const NOTSENT_LOWAT: u32 = 128 * 1024;

/// Sent bytes that stay unacknowledged for this long close the connection (`TCP_USER_TIMEOUT`, DESIGN §6).
pub const USER_TIMEOUT: Duration = Duration::from_secs(15);

/// RFC 8305's Connection Attempt Delay: how long one address may be silent before the next is tried beside it.
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Sets `TCP_NODELAY`, `TCP_NOTSENT_LOWAT` and `TCP_USER_TIMEOUT`.
///
/// # Errors
/// When the kernel refuses.
pub fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    {
        let socket = SockRef::from(stream);
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    }
    Ok(())
}

/// Connects to whichever of the addresses answers first (RFC 8305): the families alternate, beginning with that of the
/// first address; the next attempt starts when one fails, or beside it after [`ATTEMPT_DELAY`].
///
/// # Errors
/// Every attempt with its reason, when all have failed.
pub async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, ConnectErrors> {
    let attempts = interleave(addresses).into_iter().map(|address| async move {
        let attempt = async {
            let stream = TcpStream::connect(address).await?;
            configure(&stream)?;
            Ok(stream)
        };
        attempt.await.map_err(|error| (address, error))
    });
    race(attempts, ATTEMPT_DELAY).await.map_err(ConnectErrors)
}

/// Why no address could be reached: each with its error, in the order in which they failed.
#[derive(Debug)]
pub struct ConnectErrors(pub Vec<(SocketAddr, io::Error)>);

impl ConnectErrors {
    /// Whether every attempt ended with this kind of error.
    #[must_use]
    pub fn all(&self, kind: io::ErrorKind) -> bool {
        !self.0.is_empty() && self.0.iter().all(|(_, error)| error.kind() == kind)
    }
}

impl fmt::Display for ConnectErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (address, error)) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            match error.kind() {
                io::ErrorKind::ConnectionRefused => write!(f, "{separator}{address} refused the connection")?,
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                    write!(f, "{separator}no route to {address}")?;
                }
                _ => write!(f, "{separator}{address}: {error}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConnectErrors {}

fn interleave(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.iter().copied().partition(|a| a.is_ipv6() == first_is_v6);
    let mut second = second.into_iter();
    let mut order: Vec<_> = first.into_iter().flat_map(|a| [Some(a), second.next()]).flatten().collect();
    order.extend(second);
    order
}

/// The first success of several attempts, started one after the other: when the running ones have failed, or `delay`
/// after the last start.
async fn race<T, E, F>(attempts: impl IntoIterator<Item = F>, delay: Duration) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = attempts.into_iter();
    let mut running = FuturesUnordered::new();
    let mut errors = Vec::new();
    let mut more = true;
    loop {
        if more {
            match waiting.next() {
                Some(attempt) => running.push(attempt),
                None => more = false,
            }
        }
        if running.is_empty() {
            return Err(errors);
        }
        tokio::select! {
            biased;
            Some(result) = running.next() => match result {
                Ok(winner) => return Ok(winner),
                Err(error) => errors.push(error),
            },
            () = tokio::time::sleep(delay), if more => {}
        }
    }
}

/// A listening TCP socket whose connections come out configured (see [`configure`]).
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    local: SocketAddr,
}

/// Why an address cannot be listened on, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error(
        "{address} is already in use by another program; find it with `ss -ltnp 'sport = :{}'` and stop it, \
         or listen on another port", address.port()
    )]
    InUse {
        /// As configured.
        address: SocketAddr,
    },
    /// The port needs a privilege.
    #[error(
        "no permission to listen on {address}: ports below 1024 need CAP_NET_BIND_SERVICE (systemd: \
         `AmbientCapabilities=CAP_NET_BIND_SERVICE`), root, or the sysctl net.ipv4.ip_unprivileged_port_start={}",
         address.port()
    )]
    Permission {
        /// As configured.
        address: SocketAddr,
    },
    /// No interface has the address.
    #[error("no network interface of this machine has the address {}; use 0.0.0.0 or [::] for all", address.ip())]
    NotOurs {
        /// As configured.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// As configured.
        address: SocketAddr,
        /// From the operating system.
        source: io::Error,
    },
}

impl Listener {
    /// Listens on an address; port 0 takes any free one. `[::]` takes IPv4 too.
    ///
    /// # Errors
    /// [`BindError`], which says what to do.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bind = || -> io::Result<Self> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
                socket.set_only_v6(false)?;
            }
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(1024)?;
            let inner = TcpListener::from_std(socket.into())?;
            let local = inner.local_addr()?;
            Ok(Self { inner, local })
        };
        bind().map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address },
            io::ErrorKind::PermissionDenied => BindError::Permission { address },
            io::ErrorKind::AddrNotAvailable => BindError::NotOurs { address },
            _ => BindError::Other { address, source },
        })
    }

    /// Where it listens, with the port that the kernel chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. Never fails: what is one connection's trouble is skipped, and when the process is out of
    /// file descriptors or memory it waits a moment and tries again.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.inner.accept().await {
                Ok((stream, peer)) => match configure(&stream) {
                    Ok(()) => return (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
                    Err(error) => tracing::debug!(%error, "a connection was gone before it could be configured"),
                },
                Err(error) if is_one_connections_trouble(&error) => {
                    tracing::debug!(%error, "a connection was gone before it was accepted");
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections, trying again in 100 ms");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn is_one_connections_trouble(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::future::{Either, LocalBoxFuture};
    use tokio::time::Instant;

    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn families_alternate_beginning_with_the_resolvers_first() {
        let mixed = addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        let expected = addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(interleave(&mixed), expected);
        let mixed = addresses(&["1.1.1.1:1", "[::1]:1", "[::2]:1", "[::3]:1"]);
        assert_eq!(interleave(&mixed), mixed);
        assert_eq!(interleave(&[]), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_address_costs_one_delay() {
        let start = Instant::now();
        let attempts: [LocalBoxFuture<'_, Result<u32, ()>>; 2] = [Box::pin(pending()), Box::pin(ready(Ok(2)))];
        assert_eq!(race(attempts, ATTEMPT_DELAY).await, Ok(2));
        assert_eq!(start.elapsed(), ATTEMPT_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusing_address_costs_nothing() {
        let start = Instant::now();
        let attempts = [ready(Err("one")), ready(Err("two")), ready(Ok(3))];
        assert_eq!(race(attempts, ATTEMPT_DELAY).await, Ok(3));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_address_still_wins_when_the_second_fails() {
        let slow = async {
            tokio::time::sleep(ATTEMPT_DELAY * 2).await;
            Ok(1)
        };
        let attempts = [Either::Left(slow), Either::Right(ready(Err("refused")))];
        assert_eq!(race(attempts, ATTEMPT_DELAY).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn all_failures_are_reported() {
        let attempts = [ready(Err::<(), _>("one")), ready(Err("two"))];
        assert_eq!(race(attempts, ATTEMPT_DELAY).await, Err(vec!["one", "two"]));
        assert_eq!(race(std::iter::empty::<std::future::Ready<Result<(), ()>>>(), ATTEMPT_DELAY).await, Err(vec![]));
    }
}
