//! The client's half: name, socket, proxy, TLS, HTTP upgrade, each with an error of its own.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri,
    header::{
        CONNECTION, CONTENT_TYPE, HOST, LOCATION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT,
    },
};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::{body::Bytes, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::{
    DialError, MAX_MESSAGE, SUBPROTOCOL, WebSocket,
    dial_error::{tls_error, tunnel_error},
    upgrade::{accept_key, has_token},
};
use crate::{conn::Conn, proxy::Proxy, socket::Socket, tcp};

/// See [`Dial::connect_timeout`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A step, for errors.
const WAITING: &str = "waiting for the answer";

/// Whether an address that a name resolved to may be connected to.
pub type AddressFilter = Arc<dyn Fn(IpAddr) -> bool + Send + Sync>;

/// How to reach a WebSocket server. Make one with [`Dial::new`] and change what differs.
#[derive(Clone)]
pub struct Dial {
    /// `wss://HOST[:PORT]/PATH`, or `ws://…` when `allow_plain`. No user info.
    pub url: String,
    /// From [`crate::tls::client_config`].
    pub tls: Arc<ClientConfig>,
    /// The name to send in TLS and to verify the certificate for, instead of the URL's host.
    pub sni: Option<String>,
    /// More request headers. `Host` and `User-Agent` replace ours; those of the upgrade itself are refused.
    pub headers: HeaderMap,
    /// `http://[USER[:PASSWORD]@]HOST[:PORT]`: go through this proxy by CONNECT.
    pub proxy: Option<String>,
    /// The subprotocol to agree on; by default [`SUBPROTOCOL`].
    pub subprotocol: String,
    /// The largest message to accept, in bytes; by default [`MAX_MESSAGE`].
    pub max_message: usize,
    /// For everything from the name to the upgrade; by default 10 s.
    pub connect_timeout: Duration,
    /// Allow `ws://`, which only makes sense where TLS is terminated on the same machine or network (DESIGN §9).
    pub allow_plain: bool,
    /// Refuse addresses that this says no to, after resolving: for URLs that came from the controller (DESIGN §9).
    /// Not asked when a proxy resolves the name.
    pub address_filter: Option<AddressFilter>,
    /// What is remembered from one dialling to the next; clones share it.
    pub standbys: Standbys,
}

/// Addresses at which a server answered that it is the wrong one at the moment (HTTP 503, as a controller does that stands
/// by). Of a name's addresses these are tried last, the one that said so longest ago first.
#[derive(Clone, Default)]
pub struct Standbys(Arc<Mutex<BTreeMap<SocketAddr, u64>>>);

impl Standbys {
    /// More are not worth remembering.
    const AT_MOST: usize = 64;

    fn put_last(&self, addresses: &mut [SocketAddr]) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.sort_by_key(|address| known.get(address).copied().unwrap_or(0));
    }

    fn remember(&self, address: SocketAddr) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = known.values().max().copied().unwrap_or(0);
        if known.len() >= Self::AT_MOST && !known.contains_key(&address) {
            known.clear();
        }
        known.insert(address, newest + 1);
    }

    fn forget(&self, address: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
    }
}

impl Dial {
    /// With the defaults.
    #[must_use]
    pub fn new(url: impl Into<String>, tls: Arc<ClientConfig>) -> Self {
        Self {
            url: url.into(),
            tls,
            sni: None,
            headers: HeaderMap::new(),
            proxy: None,
            subprotocol: SUBPROTOCOL.into(),
            max_message: MAX_MESSAGE,
            connect_timeout: CONNECT_TIMEOUT,
            allow_plain: false,
            address_filter: None,
            standbys: Standbys::default(),
        }
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and the proxy's URL may hold credentials.
        f.debug_struct("Dial").field("url", &self.url).field("sni", &self.sni).finish_non_exhaustive()
    }
}

/// Opens a WebSocket.
///
/// Cancel-safe: dropping the future drops the connection. Must run inside a tokio runtime.
///
/// # Errors
/// [`DialError`], which says at which step and what to do.
pub async fn dial(dial: &Dial) -> Result<WebSocket, DialError> {
    let target = Target::parse(dial)?;
    let request = request(dial, &target)?;
    let open = async |step: &Cell<&'static str>| {
        let (conn, address) = connect(dial, &target, step).await?;
        step.set("the WebSocket upgrade");
        let upgraded = upgrade(conn, request, &target.to_string(), &dial.subprotocol).await;
        match (&upgraded, address) {
            (Ok(_), Some(address)) => dial.standbys.forget(address),
            (Err(DialError::Http { status, .. }), Some(address)) if *status == StatusCode::SERVICE_UNAVAILABLE => {
                dial.standbys.remember(address);
            }
            _ => {}
        }
        upgraded
    };
    let upgraded = within(dial, &target, open).await?;
    Ok(WebSocket::client(Conn::from_upgraded(upgraded), dial.max_message))
}

/// Asks one HTTP question over a connection of its own, for whoever wants no WebSocket: `dial.url` is the server
/// (`wss://` means HTTPS), `request.uri()` the path. An answer's body has at most `max_answer` bytes.
///
/// # Errors
/// [`DialError`]; an answer of any status is an answer.
pub async fn ask(
    dial: &Dial,
    mut request: Request<Full<Bytes>>,
    max_answer: usize,
) -> Result<Response<Bytes>, DialError> {
    let target = Target::parse(dial)?;
    let bad = |_| DialError::Url { why: "it holds characters that HTTP does not allow" };
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(&target.authority).map_err(bad)?);
    headers.insert(USER_AGENT, HeaderValue::from_static(super::USER_AGENT));
    for (name, value) in &dial.headers {
        headers.insert(name, value.clone());
    }
    let exchange = async |step: &Cell<&'static str>| {
        let (conn, _) = connect(dial, &target, step).await?;
        step.set(WAITING);
        exchange_over(conn, &target.to_string(), request, max_answer).await
    };
    within(dial, &target, exchange).await
}

/// Asks one HTTP question over a connection that is there already, such as one to a Unix socket, which errors call `target`.
///
/// # Errors
/// [`DialError`]; an answer of any status is an answer. It must have come within 10 s.
pub async fn ask_over(
    conn: Conn,
    target: &str,
    mut request: Request<Full<Bytes>>,
    max_answer: usize,
) -> Result<Response<Bytes>, DialError> {
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(USER_AGENT, HeaderValue::from_static(super::USER_AGENT));
    let exchange = exchange_over(conn, target, request, max_answer);
    match tokio::time::timeout(CONNECT_TIMEOUT, exchange).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout { target: target.to_owned(), step: WAITING, after: CONNECT_TIMEOUT }),
    }
}

async fn exchange_over(
    conn: Conn,
    target: &str,
    request: Request<Full<Bytes>>,
    max_answer: usize,
) -> Result<Response<Bytes>, DialError> {
    let http_error = |source| DialError::Exchange { target: target.to_owned(), source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(conn)).await.map_err(http_error)?;
    let answer = async {
        let (head, body) = sender.send_request(request).await.map_err(http_error)?.into_parts();
        let body = Limited::new(body, max_answer).collect().await;
        let body = body.map_err(|_| DialError::BadAnswer { target: target.to_owned() })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    alongside(answer, connection).await
}

/// Runs `work`, which says at which step it is, within the limit.
async fn within<T>(
    dial: &Dial,
    target: &Target,
    work: impl AsyncFnOnce(&Cell<&'static str>) -> Result<T, DialError>,
) -> Result<T, DialError> {
    let step = Cell::new("resolving the name");
    match tokio::time::timeout(dial.connect_timeout, work(&step)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout { target: target.to_string(), step: step.get(), after: dial.connect_timeout }),
    }
}

/// Socket, proxy and TLS; and the server's address, where no proxy hides it.
async fn connect(
    dial: &Dial,
    target: &Target,
    step: &Cell<&'static str>,
) -> Result<(Conn, Option<SocketAddr>), DialError> {
    let proxy = dial.proxy.as_deref().map(Proxy::parse).transpose().map_err(|why| DialError::ProxyUrl { why })?;
    let (socket, address) = match &proxy {
        None => {
            let filter = dial.address_filter.as_ref();
            open_socket(&target.host, target.port, filter, &dial.standbys, step).await?
        }
        Some(proxy) => {
            let (mut socket, _) = open_socket(&proxy.host, proxy.port, None, &Standbys::default(), step)
                .await
                .map_err(|source| DialError::ProxyUnreachable { proxy: proxy.to_string(), source: source.into() })?;
            step.set("asking the proxy for a tunnel");
            let tunnel = proxy.tunnel(&mut socket, &target.host, target.port).await;
            tunnel.map_err(|error| tunnel_error(error, proxy, &target.to_string()))?;
            (socket, None)
        }
    };
    let Some(name) = &target.tls_name else { return Ok((Conn::plain(socket), address)) };
    step.set("the TLS handshake");
    // Our caller bounds what is unsent (`WebSocket::poll_ready`), and rustls's own limit of 64 KiB would cut a
    // large message into that many writes.
    TlsConnector::from(Arc::clone(&dial.tls))
        .connect_with(name.clone(), socket, |tls| tls.set_buffer_limit(None))
        .await
        .map(|tls| (Conn::tls_client(tls), address))
        .map_err(|error| tls_error(error, &target.to_string(), name))
}

/// What a URL says.
struct Target {
    /// IPv6 addresses in brackets.
    host: String,
    port: u16,
    path: Uri,
    /// The `Host` header: without the scheme's own port.
    authority: String,
    /// The name to verify; `None` without TLS.
    tls_name: Option<ServerName<'static>>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Target {
    fn parse(dial: &Dial) -> Result<Self, DialError> {
        let error = |why| DialError::Url { why };
        let uri: Uri = dial.url.parse().map_err(|_| error("it is not a URL: write wss://HOST[:PORT]/PATH"))?;
        let tls = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") if dial.allow_plain => false,
            Some("ws") => return Err(DialError::PlainRefused),
            _ => return Err(error("it must begin with wss://")),
        };
        let authority = uri.authority().ok_or(error("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(error("it must not hold a user name or password"));
        }
        let host = authority.host().to_owned();
        let has_port = authority.as_str().strip_prefix(&host).is_some_and(|rest| rest.starts_with(':'));
        if has_port && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(error("its port is not a number from 1 to 65535"));
        }
        let default_port = if tls { 443 } else { 80 };
        let port = authority.port_u16().unwrap_or(default_port);
        let path =
            uri.path_and_query().map_or("/", |path| path.as_str()).parse().map_err(|_| error("its path is bad"))?;
        let tls_name = tls
            .then(|| {
                let name = dial.sni.as_deref().unwrap_or(&host);
                ServerName::try_from(unbracketed(name).to_owned())
                    .map_err(|_| error("its host (or the configured sni) is neither a DNS name nor an IP address"))
            })
            .transpose()?;
        let authority = if port == default_port { host.clone() } else { format!("{host}:{port}") };
        Ok(Self { host, port, path, authority, tls_name })
    }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

async fn open_socket(
    host: &str,
    port: u16,
    filter: Option<&AddressFilter>,
    standbys: &Standbys,
    step: &Cell<&'static str>,
) -> Result<(Socket, Option<SocketAddr>), DialError> {
    let host = unbracketed(host);
    let resolved = tokio::net::lookup_host((host, port)).await;
    let mut addresses: Vec<SocketAddr> =
        resolved.map_err(|source| DialError::Resolve { host: host.to_owned(), source })?.collect();
    if let Some(filter) = filter {
        let all = addresses.clone();
        addresses.retain(|address| filter(address.ip().to_canonical()));
        if let (Some(refused), true) = (all.first(), addresses.is_empty()) {
            return Err(DialError::AddressRefused { host: host.to_owned(), address: refused.ip() });
        }
    }
    if addresses.is_empty() {
        return Err(DialError::NoAddress { host: host.to_owned() });
    }
    standbys.put_last(&mut addresses);
    step.set("connecting");
    let stream = tcp::connect(&addresses).await;
    let stream = stream.map_err(|source| DialError::Connect { target: format!("{host}:{port}"), source })?;
    let address = stream.peer_addr().ok();
    Ok((Socket::new(stream), address))
}

fn request(dial: &Dial, target: &Target) -> Result<Request<Empty<Bytes>>, DialError> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = target.path.clone();
    let headers = request.headers_mut();
    let value = |text: &str| {
        HeaderValue::from_str(text).map_err(|_| DialError::Url { why: "it holds characters that HTTP does not allow" })
    };
    headers.insert(HOST, value(&target.authority)?);
    headers.insert(USER_AGENT, HeaderValue::from_static(super::USER_AGENT));
    for name in dial.headers.keys() {
        if [CONNECTION, UPGRADE, SEC_WEBSOCKET_PROTOCOL].contains(name) || name.as_str().starts_with("sec-websocket-") {
            return Err(DialError::ReservedHeader { name: name.to_string() });
        }
        headers.remove(name);
    }
    for (name, value) in &dial.headers {
        headers.append(name, value.clone());
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, value(&STANDARD.encode(nonce(&dial.tls)?))?);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, value(&dial.subprotocol)?);
    Ok(request)
}

/// The 16 random bytes of `Sec-WebSocket-Key`.
fn nonce(tls: &ClientConfig) -> Result<[u8; 16], DialError> {
    let mut nonce = [0; 16];
    let filled = tls.crypto_provider().secure_random.fill(&mut nonce);
    filled.map_err(|_| DialError::Tls { target: String::new(), source: rustls::Error::FailedToGetRandomBytes })?;
    Ok(nonce)
}

/// Sends the request and checks the answer (RFC 6455 §4.1).
async fn upgrade(
    conn: Conn,
    request: Request<Empty<Bytes>>,
    target: &str,
    subprotocol: &str,
) -> Result<Upgraded, DialError> {
    let http_error = |source| DialError::Exchange { target: target.to_owned(), source };
    let accept = request.headers().get(SEC_WEBSOCKET_KEY).map(|key| accept_key(key.as_bytes()));
    let handshake = http1::Builder::new().max_headers(256).max_buf_size(128 * 1024).handshake(TokioIo::new(conn));
    let (mut sender, connection) = handshake.await.map_err(http_error)?;
    let exchange = async {
        let mut response = sender.send_request(request).await.map_err(http_error)?;
        let upgraded = hyper::upgrade::on(&mut response);
        let (head, body) = response.into_parts();
        let head = Response::from_parts(head, ());
        if head.status() != StatusCode::SWITCHING_PROTOCOLS {
            let text = if is_plain_text(&head) { Limited::new(body, 1024).collect().await.ok() } else { None };
            let text = text.map(|body| body.to_bytes()).unwrap_or_default();
            return Err(refusal(&head, &text, target));
        }
        check_switch(&head, accept.as_ref(), target, subprotocol)?;
        upgraded.await.map_err(http_error)
    };
    alongside(exchange, connection.with_upgrades()).await
}

/// Runs an exchange while something else must be driven for it.
async fn alongside<T>(exchange: impl Future<Output = T>, driver: impl Future) -> T {
    let (mut exchange, mut driver) = (pin!(exchange), pin!(driver));
    tokio::select! {
        biased;
        result = &mut exchange => return result,
        // It ends with the exchange or before; in both cases the exchange has learnt why.
        _ = &mut driver => {}
    }
    exchange.await
}

fn check_switch(
    head: &Response<()>,
    accept: Option<&HeaderValue>,
    target: &str,
    subprotocol: &str,
) -> Result<(), DialError> {
    let headers = head.headers();
    let wrong = |what| DialError::NotWebSocket { target: target.to_owned(), what };
    if !has_token(headers, &UPGRADE, "websocket") || !has_token(headers, &CONNECTION, "upgrade") {
        return Err(wrong("the answer lacks `Upgrade: websocket`"));
    }
    if headers.get(SEC_WEBSOCKET_ACCEPT) != accept {
        return Err(wrong("its Sec-WebSocket-Accept is wrong (a cached answer of some proxy?)"));
    }
    if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return Err(wrong("it insists on an extension that was not offered"));
    }
    let chosen = headers.get(SEC_WEBSOCKET_PROTOCOL);
    if chosen.is_none_or(|chosen| chosen != subprotocol) {
        return Err(DialError::Subprotocol {
            target: target.to_owned(),
            wanted: subprotocol.to_owned(),
            chosen: chosen.map(|chosen| String::from_utf8_lossy(chosen.as_bytes()).into_owned()),
        });
    }
    Ok(())
}

fn is_plain_text(head: &Response<()>) -> bool {
    head.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|v| v.starts_with("text/plain"))
}

fn refusal(head: &Response<()>, text: &[u8], target: &str) -> DialError {
    let (target, status) = (target.to_owned(), head.status());
    if status.is_redirection() {
        let location = head.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = printable(location.unwrap_or("nowhere").as_bytes());
        return DialError::Redirect { target, status: status.as_u16(), location };
    }
    let active = head.headers().get(super::ACTIVE).filter(|_| status == StatusCode::SERVICE_UNAVAILABLE);
    let active = active.and_then(|value| origin(value.to_str().ok()?));
    DialError::Http { target, status, detail: printable(text), active }
}

/// `wss://HOST[:PORT]` or `ws://…` and nothing else.
fn origin(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| ["wss", "ws"].contains(scheme))?;
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
    (uri.path() == "/" && uri.query().is_none()).then(|| format!("{scheme}://{authority}"))
}

/// The first line of what a stranger wrote, fit for a terminal.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_names_an_origin_and_nothing_else() {
        assert_eq!(origin("wss://b.example.com:8443").as_deref(), Some("wss://b.example.com:8443"));
        assert_eq!(origin("ws://[2001:db8::1]/").as_deref(), Some("ws://[2001:db8::1]"));
        for bad in ["", "b.example.com", "https://b", "wss://u:p@b", "wss://b/path", "wss://b/?q", "file:///etc", "/"] {
            assert_eq!(origin(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_that_stand_by_are_tried_last_and_come_back() {
        let [a, b, c] = [1, 2, 3].map(|n| SocketAddr::from(([192, 0, 2, n], 443)));
        let standbys = Standbys::default();
        let order = |standbys: &Standbys| {
            let mut addresses = vec![a, b, c];
            standbys.put_last(&mut addresses);
            addresses
        };
        assert_eq!(order(&standbys), [a, b, c], "the resolver's order");
        standbys.remember(a);
        assert_eq!(order(&standbys), [b, c, a]);
        standbys.remember(b);
        standbys.remember(c);
        assert_eq!(order(&standbys), [a, b, c], "all stand by: the one that said so longest ago");
        standbys.remember(a);
        assert_eq!(order(&standbys.clone()), [b, c, a]);
        standbys.forget(a);
        assert_eq!(order(&standbys), [a, b, c]);
        for n in 0..1000 {
            standbys.remember(SocketAddr::from(([192, 0, 2, 9], n)));
        }
        assert!(standbys.0.lock().unwrap().len() <= Standbys::AT_MOST);
    }
}
