//! The front door: accepts TCP, does TLS, speaks HTTP/1.1, and hands WebSocket upgrades on.
//!
//! Built for one thread: [`serve`] runs on a `LocalSet`, and its services need not be `Send`.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::Service,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{net::TcpStream, sync::watch, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::{conn::Conn, socket::Socket};

pub use crate::tcp::{BindError, Listener};

/// How long a client may take for the TLS handshake, and again for the head of a request (DESIGN §6).
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Request headers accepted; CDNs add dozens (DESIGN §9 asks for at least 128).
pub const MAX_HEADERS: usize = 256;

/// All headers of a request together, in bytes.
const MAX_HEAD: usize = 128 * 1024;

/// A connection that is not upgraded takes requests for so long, and may then finish the one that runs. Thus neither an
/// idle client nor one that reads or writes a byte a minute holds a connection for ever.
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(60);

/// How long the last request of a connection may take.
const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long [`serve`] waits for running requests when it is told to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// The two ends of an accepted connection. A server behind a proxy finds the real client in the request's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The other end; an IPv4 address is never written as IPv6.
    pub remote: SocketAddr,
    /// Our end of the listener.
    pub local: SocketAddr,
}

/// Serves connections until `shutdown` resolves, then lets running requests end for at most 3 s.
///
/// - `tls` is asked at each connection, so that a new certificate needs no restart; `None` means plain HTTP.
/// - `service` makes the service of one connection, before TLS and before a byte is read; `None` drops the connection (see
///   [`Unauthenticated`]). For a tower service use `hyper_util::service::TowerToHyperService`.
///
/// Upgraded connections (WebSockets) belong to whoever took them and outlive this. Must be called on a
/// `tokio::task::LocalSet`; every task it starts ends with it.
pub async fn serve<S, B>(
    listener: Listener,
    tls: impl Fn() -> Option<Arc<ServerConfig>>,
    service: impl Fn(Peer) -> Option<S>,
    shutdown: impl Future<Output = ()>,
) where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (stop, stopped) = watch::channel(());
    let mut tasks = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, remote) = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        let peer = Peer { remote, local: listener.local_addr() };
        let Some(service) = service(peer) else {
            tracing::debug!(%remote, "connection refused");
            continue;
        };
        let (tls, mut stopped) = (tls(), stopped.clone());
        tasks.spawn_local(async move {
            let stopped = async move {
                // An error means that `serve` is gone, which is the same thing.
                let _ = stopped.changed().await;
            };
            if let Err(error) = serve_stream(stream, tls, service, stopped).await {
                tracing::debug!(%remote, %error, "connection ended");
            }
        });
    }
    drop(listener);
    drop(stop);
    let drained = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
        tracing::debug!(connections = tasks.len(), "some requests did not end in time");
    }
}

async fn serve_stream<S, B>(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    service: S,
    stopped: impl Future<Output = ()>,
) -> Result<(), ServeError>
where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let conn = match tls {
        Some(tls) => tls_accept(stream, tls).await?,
        None => Conn::tcp(stream),
    };
    Ok(serve_connection(conn, service, stopped).await?)
}

/// The TLS handshake, within [`HANDSHAKE_TIMEOUT`].
///
/// # Errors
/// When it fails or takes longer.
pub async fn tls_accept(stream: TcpStream, tls: Arc<ServerConfig>) -> Result<Conn, TlsAcceptError> {
    // No limit: the WebSocket above bounds what is unsent, see `ws::WebSocket::poll_ready`.
    let handshake = TlsAcceptor::from(tls).accept_with(Socket::new(stream), |tls| tls.set_buffer_limit(None));
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => Ok(Conn::tls_server(stream)),
        Ok(Err(error)) => Err(TlsAcceptError::Handshake(error)),
        Err(_) => Err(TlsAcceptError::Timeout),
    }
}

/// Serves HTTP/1.1 on one connection until it ends, is upgraded, or `shutdown` resolves and the running request is done.
/// Needs no `Send`.
///
/// # Errors
/// When the client breaks HTTP, is too slow with its head, or goes away in the middle. A connection that is older than
/// [`MAX_CONNECTION_AGE`] ends without an error.
pub async fn serve_connection<S, B>(
    conn: Conn,
    service: S,
    shutdown: impl Future<Output = ()>,
) -> Result<(), hyper::Error>
where
    S: Service<Request<Incoming>, Response = Response<B>> + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(conn), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = shutdown => {}
        // An upgrade ends the connection as far as HTTP is concerned, so WebSockets are not meant.
        () = tokio::time::sleep(MAX_CONNECTION_AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    // Whoever does not even read what he asked for is cut off.
    tokio::time::timeout(LAST_REQUEST_TIMEOUT, connection).await.unwrap_or(Ok(()))
}

/// Why a TLS handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum TlsAcceptError {
    /// The client does not speak TLS, does not trust us, or went away.
    #[error("TLS handshake: {0}")]
    Handshake(io::Error),
    /// It took longer than [`HANDSHAKE_TIMEOUT`].
    #[error("TLS handshake not done within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
}

#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Tls(#[from] TlsAcceptError),
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// Counts connections that have not authenticated yet, per address (IPv6: per /64, which one customer has), so that no
/// address can hold more than a few (DESIGN §6: 20).
///
/// Behind a proxy count the client that it names, not the proxy.
#[derive(Debug, Clone)]
pub struct Unauthenticated {
    limit: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Unauthenticated {
    /// At most `limit` connections per address.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, counts: Arc::default() }
    }

    /// Counts one more, until the guard is dropped: at authentication or at the connection's end. `None` beyond the limit.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Option<Entered> {
        let key = subscriber(address);
        let mut counts = self.counts();
        let count = counts.entry(key).or_default();
        if *count >= self.limit {
            if *count == 0 {
                counts.remove(&key);
            }
            return None;
        }
        *count += 1;
        Some(Entered { key, counts: self.clone() })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One counted connection of [`Unauthenticated`].
pub struct Entered {
    key: IpAddr,
    counts: Unauthenticated,
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entered").field(&self.key).finish()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.counts.counts();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(prefix.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// Serves `body` to whoever asks; says after how long the connection was over.
    async fn served(stream: DuplexStream, body: String) -> Duration {
        let start = tokio::time::Instant::now();
        let service = hyper::service::service_fn(move |_| {
            let body = body.clone();
            async move { Ok::<_, Infallible>(Response::new(body)) }
        });
        // How it ends is all the same here.
        let _ = serve_connection(Conn::other(stream), service, std::future::pending()).await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_however_busy_it_is() {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let asking = async {
            let mut answer = [0; 1024];
            // Often enough not to be idle.
            while client.write_all(REQUEST).await.is_ok() && client.read(&mut answer).await.is_ok_and(|n| n > 0) {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        };
        let (lasted, ()) = tokio::join!(served(server, "ok".to_owned()), asking);
        let limit = MAX_CONNECTION_AGE..MAX_CONNECTION_AGE + LAST_REQUEST_TIMEOUT;
        assert!(limit.contains(&lasted), "{lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_nothing_is_cut_off() {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(REQUEST).await.unwrap();
        let lasted = served(server, "x".repeat(1 << 20)).await;
        assert_eq!(lasted, MAX_CONNECTION_AGE + LAST_REQUEST_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_says_nothing_is_cut_off() {
        let (_client, server) = tokio::io::duplex(1024);
        assert_eq!(served(server, String::new()).await, HANDSHAKE_TIMEOUT);
    }

    #[test]
    fn counts_per_subscriber_and_forgets() {
        let unauthenticated = Unauthenticated::new(2);
        let enter = |address: &str| unauthenticated.enter(address.parse().unwrap());
        let first = enter("192.0.2.1").unwrap();
        let second = enter("::ffff:192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none());
        assert!(enter("192.0.2.2").is_some(), "another address is not held back");
        drop(first);
        let third = enter("192.0.2.1").unwrap();
        assert!(enter("192.0.2.1").is_none());
        let v6 = [enter("2001:db8::1").unwrap(), enter("2001:db8::ffff").unwrap()];
        assert!(enter("2001:db8::2").is_none(), "the same /64");
        assert!(enter("2001:db8:0:1::2").is_some());
        drop((second, third, v6));
        assert!(unauthenticated.counts().is_empty());
        assert!(Unauthenticated::new(0).enter("192.0.2.1".parse().unwrap()).is_none());
    }
}
