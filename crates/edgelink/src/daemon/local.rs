//! The daemon's Unix socket: who may ask, and what is answered (DESIGN §7).

use super::network::Network;
use super::{Daemon, now, tunnel::Tunnel};
use anyhow::{Context as _, Result, bail};
use edgelink_api::local::{
    DaemonState, LocalError, LocalErrorKind, LocalRequest, LocalResponse, MAX_REQUEST_LINE, PeerChoice, PingDone,
    PingReply, PingRequest, RoutesRequest, UpRequest, from_line, to_line,
};
use edgelink_model::NodeId;
use edgelink_node::Node;
use edgelink_os::peer_cred::{PeerCred, group_id};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// All tests of STUN servers that answer take less, and one that does not is given up by then.
const NETCHECK_TIME: Duration = Duration::from_secs(12);
/// Members of this group may use the socket, beside root.
const GROUP: &str = "edgelink";

/// Binds the socket, taking the place of one that a dead daemon left behind.
pub(crate) fn bind(path: &Path) -> Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!("another daemon answers at {}; give this one a socket of its own with --socket", path.display());
        }
        std::fs::remove_file(path).with_context(|| format!("cannot remove the stale socket {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    if let Some(gid) = group_id(GROUP)
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(gid))
    {
        tracing::warn!(%error, "the socket is root's alone: it could not be given to the group `edgelink`");
    }
    Ok(listener)
}

/// Serves the socket until the daemon ends.
pub(crate) async fn serve(daemon: Rc<Daemon>, listener: UnixListener) {
    let group = group_id(GROUP);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let allowed = PeerCred::of(&stream).is_ok_and(|cred| cred.may_control(group));
                tokio::task::spawn_local(connection(Rc::clone(&daemon), stream, allowed));
            }
            Err(error) => {
                // Out of descriptors, most likely; the next attempt must not spin.
                tracing::warn!(%error, "cannot accept on the local socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(daemon: Rc<Daemon>, stream: UnixStream, allowed: bool) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    let limit = MAX_REQUEST_LINE as u64 + 1;
    let complete = matches!((&mut read).take(limit).read_until(b'\n', &mut line).await, Ok(n) if n > 0);
    if !complete {
        return;
    }
    let answer = async {
        if !allowed {
            let text = "this user may not control the daemon: run as root, or join the group `edgelink`";
            return reply(&mut write, &LocalResponse::Error(LocalError::new(LocalErrorKind::NotAuthorized, text)))
                .await;
        }
        let response = match from_line::<LocalRequest>(&line) {
            Ok(LocalRequest::Ping(request)) => return ping(&daemon, request, &mut write).await,
            Ok(request) => answer(&daemon, request).await,
            Err(error) => {
                Err(LocalError::new(LocalErrorKind::Usage, format!("the request is not understood: {error}")))
            }
        };
        reply(&mut write, &response.unwrap_or_else(LocalResponse::Error)).await
    };
    // The command closing its end cancels the request.
    let mut rest = [0; 1];
    tokio::select! {
        result = answer => if let Err(error) = result { tracing::debug!(%error, "a local command went away") },
        _ = read.read(&mut rest) => {}
    }
}

async fn answer(daemon: &Rc<Daemon>, request: LocalRequest) -> Result<LocalResponse, LocalError> {
    let status = |network: &Network| Ok(LocalResponse::Status(Box::new(network.status())));
    let of = |name: &Option<String>| daemon.network(name.as_deref());
    match request {
        LocalRequest::Status(choice) => status(&*of(&choice.network)?),
        LocalRequest::Peers(choice) => Ok(LocalResponse::Peers { peers: of(&choice.network)?.status().peers }),
        LocalRequest::Networks => {
            Ok(LocalResponse::Networks { networks: daemon.all().iter().map(|network| network.listed()).collect() })
        }
        LocalRequest::Routes(request) => routes(&*of(&request.network)?, &request),
        LocalRequest::Up(request) => up(daemon, request).await,
        LocalRequest::Down(choice) => {
            let network = of(&choice.network)?;
            let this = Rc::clone(&network);
            finish(async move { this.down().await.map_err(failed) }).await?;
            status(&network)
        }
        LocalRequest::Netcheck(choice) => netcheck(&*of(&choice.network)?).await,
        LocalRequest::Paths(choice) => paths(&*of(&choice.network)?, &choice),
        LocalRequest::Accept(choice) => accept(&*of(&choice.network)?, &choice),
        LocalRequest::Ping(_) => Err(LocalError::new(LocalErrorKind::Failed, "ping is answered elsewhere")),
    }
}

fn routes(network: &Network, request: &RoutesRequest) -> Result<LocalResponse, LocalError> {
    let why = match request.why {
        Some(address) => Some(network.tunnel().ok_or_else(down)?.node.borrow().explain_route(address)),
        None => None,
    };
    Ok(LocalResponse::Routes { routes: network.status().routes, why })
}

/// Runs to its end what must not stop half-way when the command that asked for it is interrupted.
async fn finish<T: 'static>(work: impl Future<Output = Result<T, LocalError>> + 'static) -> Result<T, LocalError> {
    tokio::task::spawn_local(work).await.unwrap_or_else(|error| Err(failed(error.into())))
}

async fn up(daemon: &Rc<Daemon>, request: UpRequest) -> Result<LocalResponse, LocalError> {
    let wait = request.wait_ms;
    let this = Rc::clone(daemon);
    let network = finish(async move { this.up(request).await }).await?;
    if let Some(wait) = wait {
        let settled = async {
            let Some(tunnel) = network.tunnel() else { return };
            let mut progress = tunnel.progress();
            loop {
                let ready = progress.borrow_and_update().ready;
                match tunnel.status().state {
                    DaemonState::Up if ready => return,
                    DaemonState::WaitingForAuthorization | DaemonState::Refused => return,
                    _ => {}
                }
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        // At the time limit the answer is the state as it is.
        let _ = tokio::time::timeout(Duration::from_millis(wait), settled).await;
    }
    Ok(LocalResponse::Status(Box::new(network.status())))
}

fn accept(network: &Network, choice: &PeerChoice) -> Result<LocalResponse, LocalError> {
    let (tunnel, target) = (network.tunnel().ok_or_else(down)?, &choice.target);
    let peer = find_peer(&tunnel, target)?;
    if !tunnel.feed(|node, now| node.accept_peer(peer, now)) {
        let text = format!("nothing is refused of {target}, or its machine key is not in the list of `trust`");
        return Err(LocalError::new(LocalErrorKind::Failed, text));
    }
    Ok(LocalResponse::Status(Box::new(network.status())))
}

/// Asks STUN servers anew and waits for what they say.
async fn netcheck(network: &Network) -> Result<LocalResponse, LocalError> {
    let tunnel = network.tunnel().ok_or_else(down)?;
    if tunnel.feed(Node::check_nat) {
        let mut progress = tunnel.progress();
        let settled = async {
            while !tunnel.node.borrow().nat_is_settled() {
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        // What has not come by then is told as not known.
        let _ = tokio::time::timeout(NETCHECK_TIME, settled).await;
    }
    Ok(LocalResponse::Netcheck(Box::new(tunnel.netcheck())))
}

fn paths(network: &Network, choice: &PeerChoice) -> Result<LocalResponse, LocalError> {
    let tunnel = network.tunnel().ok_or_else(down)?;
    let peer = find_peer(&tunnel, &choice.target)?;
    let paths = tunnel.node.borrow().paths_to(peer, now());
    Ok(LocalResponse::Paths { node_id: peer, name: name_of(&tunnel, peer), paths })
}

fn find_peer(tunnel: &Tunnel, target: &str) -> Result<NodeId, LocalError> {
    let found = tunnel.node.borrow().find_peer(target);
    found.map_err(|error| LocalError::new(LocalErrorKind::Usage, error.to_string()))
}

fn name_of(tunnel: &Tunnel, peer: NodeId) -> String {
    tunnel.status().peers.into_iter().find(|other| other.node_id == peer).map(|other| other.name).unwrap_or_default()
}

fn down() -> LocalError {
    LocalError::new(LocalErrorKind::Unreachable, "the daemon is down; `edgelink up` connects it")
}

async fn ping(
    daemon: &Rc<Daemon>,
    request: PingRequest,
    write: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let found = daemon.network(request.network.as_deref()).and_then(|network| {
        let tunnel = network.tunnel().ok_or_else(down)?;
        find_peer(&tunnel, &request.target).map(|peer| (tunnel, peer))
    });
    let (tunnel, peer) = match found {
        Ok(found) => found,
        Err(error) => return reply(write, &LocalResponse::Error(error)).await,
    };
    let name = name_of(&tunnel, peer);
    let interval = Duration::from_millis(request.interval_ms.max(PingRequest::MIN_INTERVAL_MS));
    let timeout = Duration::from_millis(request.timeout_ms);
    let mut done = PingDone::default();
    let mut total = 0.0;
    let mut seq = 0;
    while request.count.is_none_or(|count| seq < count) {
        seq += 1;
        let started = Instant::now();
        let (rtt_ms, error) = probe(&tunnel, peer, timeout).await;
        done.sent += 1;
        if let Some(rtt) = rtt_ms {
            done.received += 1;
            total += rtt;
            done.min_ms = Some(done.min_ms.map_or(rtt, |min: f64| min.min(rtt)));
            done.max_ms = Some(done.max_ms.map_or(rtt, |max: f64| max.max(rtt)));
            done.avg_ms = Some(total / f64::from(done.received));
        }
        let path = tunnel.node.borrow().path_to(peer);
        let line = PingReply { seq, node_id: peer, name: name.clone(), path, rtt_ms, error };
        reply(write, &LocalResponse::PingReply(line)).await?;
        if request.count != Some(seq) {
            tokio::time::sleep_until((started + interval).into()).await;
        }
    }
    reply(write, &LocalResponse::PingDone(done)).await
}

/// One probe: its round trip in ms, or why there is none.
async fn probe(tunnel: &Rc<Tunnel>, peer: NodeId, timeout: Duration) -> (Option<f64>, Option<String>) {
    match tunnel.ping(peer, timeout) {
        Err(error) => (None, Some(error.to_string())),
        Ok(answer) => match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(rtt)) => (Some((rtt.as_secs_f64() * 1e6).round() / 1e3), None),
            _ => {
                let reason = tunnel.status().peers.into_iter().find(|p| p.node_id == peer).and_then(|p| p.reason);
                let text = format!("no answer within {} ms", timeout.as_millis());
                (None, Some(reason.map_or(text.clone(), |reason| format!("{text}: {reason}"))))
            }
        },
    }
}

async fn reply(write: &mut (impl tokio::io::AsyncWrite + Unpin), response: &LocalResponse) -> std::io::Result<()> {
    write.write_all(to_line(response).map_err(std::io::Error::other)?.as_bytes()).await
}

pub(super) fn failed(error: anyhow::Error) -> LocalError {
    LocalError::new(LocalErrorKind::Failed, format!("{error:#}"))
}
