//! A small PKI and a WebSocket server on the loopback interface.
#![allow(dead_code, reason = "each test binary uses its own part of this")]

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use edgelink_net::{
    server::{self, Listener},
    tls::{self, ClientTls, Pin},
    ws::{self, Dial, DialError, WebSocket},
};
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{ClientConfig, ServerConfig};
use tokio::task::LocalSet;

/// Runs a test as a shell runs: one thread, tasks that need no `Send`. A hang is a failure, not a stuck build.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async { tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, test)
}

pub(crate) type Ca = CertifiedIssuer<'static, KeyPair>;

pub(crate) const ALWAYS: (i32, i32) = (2020, 4000);
pub(crate) const PAST: (i32, i32) = (2020, 2021);
pub(crate) const FUTURE: (i32, i32) = (3000, 4000);

pub(crate) fn ca(name: &str, years: (i32, i32)) -> Ca {
    let mut params = params(&[], years);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server's identity: its chain in PEM (leaf first), its key in PEM, and the leaf's pin.
pub(crate) struct Identity {
    pub(crate) chain: String,
    pub(crate) key: String,
    pub(crate) pin: Pin,
}

pub(crate) fn issue(ca: &Ca, names: &[&str], years: (i32, i32)) -> Identity {
    let key = KeyPair::generate().unwrap();
    let leaf = params(names, years).signed_by(&key, ca).unwrap();
    Identity {
        chain: leaf.pem() + &ca.pem(),
        key: key.serialize_pem(),
        pin: tls::spki_pin(leaf.pem().as_bytes()).unwrap(),
    }
}

fn params(names: &[&str], (from, to): (i32, i32)) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    params.not_before = date_time_ymd(from, 1, 1);
    params.not_after = date_time_ymd(to, 1, 1);
    params
}

impl Identity {
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        tls::server_config(self.chain.as_bytes(), self.key.as_bytes()).unwrap()
    }
}

pub(crate) fn pinned(pin: Pin) -> Arc<ClientConfig> {
    tls::client_config(&ClientTls { pin: Some(pin), ..Default::default() }).unwrap()
}

/// Trusts one CA that no server in the tests has: for dials that never get as far as TLS.
pub(crate) fn any_client() -> Arc<ClientConfig> {
    trusting(&ca("nobody", ALWAYS))
}

pub(crate) fn trusting(ca: &Ca) -> Arc<ClientConfig> {
    tls::client_config(&ClientTls { ca_pem: Some(ca.pem()), ..Default::default() }).unwrap()
}

/// Serves WebSockets at every path; each goes to `app`.
pub(crate) fn serve<F>(tls: Option<Arc<ServerConfig>>, app: impl Fn(WebSocket) -> F + Clone + 'static) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
{
    serve_limited(tls, ws::MAX_MESSAGE, app)
}

pub(crate) fn serve_limited<F>(
    tls: Option<Arc<ServerConfig>>,
    max_message: usize,
    app: impl Fn(WebSocket) -> F + Clone + 'static,
) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
{
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr();
    let service = move |_| {
        let app = app.clone();
        Some(service_fn(move |request| upgrade(request, max_message, app.clone())))
    };
    tokio::task::spawn_local(server::serve(listener, move || tls.clone(), service, std::future::pending()));
    address
}

async fn upgrade<F>(
    mut request: Request<Incoming>,
    max_message: usize,
    app: impl Fn(WebSocket) -> F + 'static,
) -> Result<Response<String>, Infallible>
where
    F: Future<Output = ()> + 'static,
{
    Ok(match ws::upgrade_response(&request, ws::SUBPROTOCOL) {
        Ok(response) => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::task::spawn_local(async move { app(ws::accept_after(upgrade, max_message).await.unwrap()).await });
            response.map(|()| String::new())
        }
        Err(refused) => refused.response(),
    })
}

/// Sends every message back.
pub(crate) async fn echo(mut socket: WebSocket) {
    while let Ok(Some(ws::Incoming::Binary(message))) = socket.recv().await {
        if socket.send(message).await.is_err() {
            break;
        }
    }
}

pub(crate) fn wss(address: SocketAddr, host: &str, tls: Arc<ClientConfig>) -> Dial {
    Dial::new(format!("wss://{host}:{}/ws/data", address.port()), tls)
}

pub(crate) fn plain(address: SocketAddr) -> Dial {
    Dial { allow_plain: true, ..Dial::new(format!("ws://{address}/ws/data"), any_client()) }
}

/// Dials, and proves that the connection carries messages.
pub(crate) async fn round_trip(dial: &Dial) -> Result<WebSocket, DialError> {
    let mut socket = ws::dial(dial).await?;
    socket.send("ping".into()).await.unwrap();
    assert_eq!(socket.recv().await.unwrap(), Some(ws::Incoming::Binary("ping".into())));
    Ok(socket)
}
