//! One connection to the controller or a relay: dialled, then driven by one task that reads and writes at once.

use super::shared::Dialled;
use super::tunnel::Tunnel;
use super::{now, os_rng};
use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use edgelink_config::{ClientConfig, Env, WsUrl};
use edgelink_net::tls::{self, ClientTls, Pin};
use edgelink_net::ws::{AddressFilter, Dial, DialError, Event, Incoming, Origins, WebSocket, dial};
use edgelink_node::{LinkId, Target};
use edgelink_session::trust::Trust;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;
use tokio::sync::{Notify, oneshot};

/// Messages, and bytes, handled before others get a turn.
const RECEIVE_BATCH: usize = 32;
const RECEIVE_BYTES: usize = 256 << 10;
/// Controllers send configurations of up to 8 MiB, in one message (DESIGN §1).
const MAX_CONTROL_MESSAGE: usize = 9 << 20;
/// RFC 6455 §7.4.1: going away.
const GOING_AWAY: u16 = 1001;

/// How connections are made: TLS, proxy, headers.
pub(crate) struct Dialer {
    controller: Dial,
    relay: Dial,
    /// Where the controllers are, and the path of their control channel.
    origins: Origins,
    control_path: String,
}

impl Dialer {
    /// The controller is trusted by `pin` when there is one; relays on other origins by `ca_file` or the system's CAs.
    ///
    /// Addresses that are dialled are noted under the interface's name: an accepted route must not capture them
    /// (DESIGN §7).
    pub(crate) fn new(
        config: &ClientConfig,
        profile_pin: Option<&str>,
        url: &WsUrl,
        env: &Env,
        (dialled, interface): (Dialled, String),
    ) -> Result<Self> {
        let pin = match (&config.pin, profile_pin) {
            (Some(pin), _) => Some(Pin(pin.hash())),
            (None, Some(text)) => Some(text.parse().context("the pin is malformed")?),
            (None, None) => None,
        };
        let tls = |pin| tls::client_config(&ClientTls { ca_file: config.ca_file.clone(), ca_pem: None, pin });
        let proxy = config.proxy.as_ref().map(|p| p.expose().to_owned());
        let proxy = proxy.or_else(|| ["HTTPS_PROXY", "https_proxy"].iter().find_map(|n| env.get(n).map(str::to_owned)));
        let base = |tls| Dial {
            sni: config.sni.clone(),
            headers: config.headers.0.clone(),
            proxy: proxy.clone(),
            allow_plain: !url.is_tls(),
            ..Dial::new(String::new(), tls)
        };
        let note = |filter: fn(IpAddr) -> bool| -> AddressFilter {
            let (dialled, interface) = (Arc::clone(&dialled), interface.clone());
            Arc::new(move |address| {
                let accepted = filter(address);
                if accepted {
                    dialled.send_if_modified(|all| all.entry(interface.clone()).or_default().insert(address));
                }
                accepted
            })
        };
        let controller =
            Dial { max_message: MAX_CONTROL_MESSAGE, address_filter: Some(note(|_| true)), ..base(tls(pin)?) };
        let filter = if config.relay.allow_local_addresses { |_| true } else { is_global_enough };
        let relay = Dial { address_filter: Some(note(filter)), ..base(tls(None)?) };
        let origins = Origins::new(url.origin(), Some(note(filter)));
        Ok(Self { controller, relay, origins, control_path: url.path().to_owned() })
    }

    /// The controller that was connected last, or is dialled first: `wss://HOST[:PORT]/PATH`.
    pub(super) fn controller(&self) -> String {
        format!("{}{}", self.origins.first(), self.control_path)
    }

    /// Opens a link. `tunnel` knows where controllers are, and must know which one it was.
    async fn dial(&self, target: &Target, tunnel: &Tunnel) -> Result<WebSocket, DialError> {
        match target {
            Target::Control => {
                self.origins.tell(tunnel.node.borrow().controllers());
                let (ws, origin) = self.origins.dial(&self.controller, &self.control_path).await?;
                self.origins.remember(&origin);
                if let Ok(url) = origin.parse::<WsUrl>() {
                    tunnel.node.borrow_mut().set_controller_host(host(&url));
                }
                Ok(ws)
            }
            // The built-in relay: the same origin, the same trust, the same port as the controller.
            Target::Relay { url, path, .. } if url.is_empty() => {
                let how = Dial { max_message: edgelink_net::ws::MAX_MESSAGE, ..self.controller.clone() };
                self.origins.dial(&how, path).await.map(|(ws, _)| ws)
            }
            Target::Relay { url, .. } => dial(&Dial { url: url.clone(), ..self.relay.clone() }).await,
            // No WebSocket: see `neighbours`.
            Target::Neighbour { .. } => Err(DialError::Url { why: "a neighbour has none" }),
        }
    }
}

/// The host as nodes sign it (DESIGN §3).
pub(super) fn host(url: &WsUrl) -> String {
    url.host().trim_matches(['[', ']']).to_ascii_lowercase()
}

/// Addresses of relays and controllers that come from the controller must not lead into this host or its links (DESIGN §9).
fn is_global_enough(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast()),
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast()),
    }
}

/// The configuration's trust, in the session layer's terms.
pub(crate) fn trust(config: &edgelink_config::Trust) -> Result<Trust> {
    Ok(match config {
        edgelink_config::Trust::Tofu => Trust::Tofu,
        edgelink_config::Trust::Controller => Trust::Controller,
        edgelink_config::Trust::Pinned(list) => Trust::Pinned(list.to_vec()),
    })
}

/// Drives one link from dialling to its end.
pub(super) async fn run(
    tunnel: Rc<Tunnel>,
    link: LinkId,
    target: Target,
    writable: Rc<Notify>,
    mut closed: oneshot::Receiver<Option<Bytes>>,
) {
    let dialled = tokio::select! {
        dialled = tunnel.dialer.dial(&target, &tunnel) => dialled,
        _ = &mut closed => return,
    };
    let reason = match dialled {
        Err(error) => Some(error.to_string()),
        Ok(ws) => {
            tunnel.set_link_ends(link, ws.local_addr().zip(ws.peer_addr()));
            tunnel.feed(|node, now| node.link_connected(link, now));
            drive(&tunnel, link, ws, &writable, &mut closed).await
        }
    };
    tunnel.link_ended(link, reason);
}

/// Reads and writes until the other end closes (the reason is returned) or the core does (`None`).
async fn drive(
    tunnel: &Rc<Tunnel>,
    link: LinkId,
    mut ws: WebSocket,
    writable: &Notify,
    closed: &mut oneshot::Receiver<Option<Bytes>>,
) -> Option<String> {
    // What was queued before this task listened was announced before too.
    let mut more = true;
    loop {
        // Enough to keep TLS and TCP busy, little enough that what is more urgent does not wait long.
        let budget = ws.budget(Instant::now());
        tunnel.node.borrow_mut().set_link_budget(link, budget);
        while more && ws.unsent() < budget {
            let message = tunnel.node.borrow_mut().poll_transmit(link, now());
            match message {
                Some(message) => {
                    if let Err(error) = ws.feed(message) {
                        return Some(error.to_string());
                    }
                }
                None => more = false,
            }
        }
        tokio::select! {
            biased;
            last = &mut *closed => {
                if let Ok(Some(last)) = last && let Err(error) = ws.feed(last) {
                    tracing::debug!(%error, "the last words were not sent");
                }
                ws.close(GOING_AWAY, "").await;
                return None;
            }
            () = writable.notified(), if !more => more = true,
            event = ws.next(more) => match event {
                Ok(Event::Message(first)) => {
                    match receive(tunnel, link, first, &mut ws) {
                        Ok(false) => {}
                        Ok(true) => tokio::task::yield_now().await,
                        Err(reason) => return Some(reason),
                    }
                }
                // The TUN has its turn: what is more urgent than what waits here may be there.
                Ok(Event::Writable) => tokio::task::yield_now().await,
                Ok(Event::Closed) => {
                    let reason = ws.close_reason().map(ToString::to_string);
                    return Some(reason.unwrap_or_else(|| "closed by the other end".to_owned()));
                }
                Err(error) => return Some(error.to_string()),
            },
        }
    }
}

/// Hands a message, and those that are here already, to the core; opened packets go straight to the TUN. `true` when there may
/// be more.
fn receive(tunnel: &Rc<Tunnel>, link: LinkId, first: Incoming, ws: &mut WebSocket) -> Result<bool, String> {
    let at = now();
    let mut message = first;
    let mut outcome = Ok(false);
    let mut received = 0;
    for turn in 1.. {
        let Incoming::Binary(bytes) = message else {
            outcome = Err("the other end sent a text message".to_owned());
            break;
        };
        // In place when this task is the buffer's only owner, as it is for all but the smallest messages.
        received += bytes.len();
        let mut bytes = BytesMut::from(bytes);
        let mut node = tunnel.node.borrow_mut();
        node.handle_message(link, &mut bytes, at, &mut os_rng(), &mut |header, packet| {
            tunnel.tun_writer.push(header, packet);
        });
        drop(node);
        if turn == RECEIVE_BATCH || received >= RECEIVE_BYTES {
            outcome = Ok(true);
            break;
        }
        match ws.try_recv() {
            Poll::Ready(Ok(Some(next))) => message = next,
            // The end of the connection is seen again by whoever waits next.
            Poll::Ready(Ok(None)) | Poll::Pending => break,
            Poll::Ready(Err(error)) => {
                outcome = Err(error.to_string());
                break;
            }
        }
    }
    tunnel.flush_tun();
    tunnel.pump();
    outcome
}
