//! The everyday commands: each asks the daemon over its Unix socket and shows the answer.

use crate::cli::{PingArgs, UpArgs};
use crate::output;
use edgelink_api::Secret;
use edgelink_api::local::{
    LocalError, LocalErrorKind, LocalRequest, LocalResponse, NetworkChoice, PathKind, PeerChoice, PingRequest,
    RoutesRequest, UpRequest, from_line, to_line,
};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Probes of `ping --until-direct`.
const UNTIL_DIRECT: u32 = 30;

/// Outcome of a command: the text is for stderr.
pub(crate) type Outcome = Result<(), LocalError>;

/// Whom a command asks, about which network, and how the answer is shown.
pub(crate) struct Daemon<'a> {
    pub(crate) socket: &'a Path,
    pub(crate) json: bool,
    pub(crate) network: Option<&'a str>,
}

impl Daemon<'_> {
    pub(crate) fn choice(&self) -> NetworkChoice {
        NetworkChoice { network: self.network() }
    }

    pub(crate) fn network(&self) -> Option<String> {
        self.network.map(str::to_owned)
    }

    fn peer(&self, target: &str) -> PeerChoice {
        PeerChoice { target: target.to_owned(), network: self.network() }
    }

    pub(crate) fn ask(&self, request: &LocalRequest) -> Result<LocalResponse, LocalError> {
        let mut connection = Connection::open(self.socket)?;
        connection.send(request)?;
        match connection.receive()? {
            LocalResponse::Error(error) => Err(error),
            response => Ok(response),
        }
    }
}

pub(crate) fn status(at: &Daemon<'_>) -> Outcome {
    match at.ask(&LocalRequest::Status(at.choice()))? {
        LocalResponse::Status(status) if at.json => print_json(&status),
        LocalResponse::Status(status) => print(&output::status(&status)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn networks(at: &Daemon<'_>) -> Outcome {
    match at.ask(&LocalRequest::Networks)? {
        LocalResponse::Networks { networks } if at.json => print_json(&networks),
        LocalResponse::Networks { networks } => print(&output::networks(&networks)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn peers(at: &Daemon<'_>) -> Outcome {
    match at.ask(&LocalRequest::Peers(at.choice()))? {
        LocalResponse::Peers { peers } if at.json => print_json(&peers),
        LocalResponse::Peers { peers } => print(&output::peers(&peers)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn routes(at: &Daemon<'_>, why: Option<std::net::IpAddr>) -> Outcome {
    match at.ask(&LocalRequest::Routes(RoutesRequest { why, network: at.network() }))? {
        LocalResponse::Routes { why: Some(why), .. } if at.json => print_json(&why),
        LocalResponse::Routes { why: Some(why), .. } => print(&output::why(&why)),
        LocalResponse::Routes { routes, why: None } if at.json => print_json(&routes),
        LocalResponse::Routes { routes, why: None } => print(&output::routes(&routes)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn up(at: &Daemon<'_>, args: UpArgs) -> Outcome {
    let request = UpRequest {
        controller: args.controller,
        auth_key: args.key.map(Secret::new),
        pin: args.pin,
        hostname: args.hostname,
        wait_ms: Some(args.timeout.saturating_mul(1000)),
        network: at.network(),
    };
    match at.ask(&LocalRequest::Up(request))? {
        LocalResponse::Status(status) => {
            if at.json {
                print_json(&status)?
            } else {
                print(&output::up(&status))?
            }
            output::up_verdict(&status)
        }
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn down(at: &Daemon<'_>) -> Outcome {
    match at.ask(&LocalRequest::Down(at.choice()))? {
        LocalResponse::Status(status) if at.json => print_json(&status),
        LocalResponse::Status(_) => print("down\n"),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn accept(at: &Daemon<'_>, target: String) -> Outcome {
    match at.ask(&LocalRequest::Accept(at.peer(&target)))? {
        LocalResponse::Status(status) if at.json => print_json(&status),
        LocalResponse::Status(_) => print(&format!("{target} is believed from now on\n")),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn paths(at: &Daemon<'_>, target: String) -> Outcome {
    match at.ask(&LocalRequest::Paths(at.peer(&target)))? {
        LocalResponse::Paths { paths, .. } if at.json => print_json(&paths),
        LocalResponse::Paths { name, paths, .. } => print(&output::paths(&name, &paths)),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn ping(at: &Daemon<'_>, args: PingArgs) -> Outcome {
    let millis = |seconds: f64| (seconds.clamp(0.0, 86_400.0) * 1000.0) as u64;
    let count = args.count.or(args.until_direct.then_some(UNTIL_DIRECT));
    let mut request = PingRequest::new(args.target.clone(), count);
    request.interval_ms = millis(args.interval);
    request.timeout_ms = millis(args.timeout).max(1);
    request.network = at.network();
    let mut connection = Connection::open(at.socket)?;
    connection.send(&LocalRequest::Ping(request))?;
    loop {
        match connection.receive()? {
            LocalResponse::PingReply(reply) => {
                if at.json {
                    print_json(&reply)?
                } else {
                    print(&output::ping_reply(&reply))?
                }
                let direct = matches!(reply.path.kind, PathKind::Lan | PathKind::P2p);
                if args.until_direct && direct && reply.rtt_ms.is_some() {
                    return Ok(());
                }
            }
            LocalResponse::PingDone(done) => {
                if at.json {
                    print_json(&done)?
                } else {
                    print(&output::ping_done(&args.target, &done))?
                }
                if args.until_direct {
                    let why = reason(at, &args.target).unwrap_or_else(|| "none was found in time".to_owned());
                    return Err(LocalError::new(LocalErrorKind::Failed, format!("no direct path: {why}")));
                }
                if done.received == 0 {
                    return Err(LocalError::new(LocalErrorKind::Failed, "no probe was answered"));
                }
                return Ok(());
            }
            LocalResponse::Error(error) => return Err(error),
            other => return Err(unexpected(&other)),
        }
    }
}

pub(crate) fn netcheck(at: &Daemon<'_>) -> Outcome {
    match at.ask(&LocalRequest::Netcheck(at.choice()))? {
        LocalResponse::Netcheck(check) if at.json => print_json(&check),
        LocalResponse::Netcheck(check) => print(&output::netcheck(&check)),
        other => Err(unexpected(&other)),
    }
}

/// One JSON object for `--json`, the same in sections otherwise. What cannot be had says why, in its place.
pub(crate) fn bugreport(at: &Daemon<'_>) -> Outcome {
    let host = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "os": edgelink_os::host::os(),
        "arch": edgelink_os::host::arch(),
        "kernel": edgelink_os::host::kernel_release(),
        "aes": edgelink_os::host::has_aes_gcm(),
    });
    let section = |request: &LocalRequest| match at.ask(request) {
        Ok(answer) => serde_json::to_value(answer).unwrap_or_default(),
        Err(error) => serde_json::json!({ "error": error.to_string() }),
    };
    let report = serde_json::json!({
        "host": host,
        "networks": section(&LocalRequest::Networks),
        "status": section(&LocalRequest::Status(at.choice())),
        "netcheck": section(&LocalRequest::Netcheck(at.choice())),
    });
    if at.json {
        return print_json(&report);
    }
    for (name, section) in report.as_object().into_iter().flatten() {
        let text = serde_json::to_string_pretty(section).unwrap_or_default();
        print(&format!("--- {name}\n{text}\n"))?;
    }
    Ok(())
}

/// Why a peer is not reached directly.
fn reason(at: &Daemon<'_>, target: &str) -> Option<String> {
    let Ok(LocalResponse::Paths { node_id, .. }) = at.ask(&LocalRequest::Paths(at.peer(target))) else { return None };
    match at.ask(&LocalRequest::Peers(at.choice())) {
        Ok(LocalResponse::Peers { peers }) => peers.into_iter().find(|peer| peer.node_id == node_id)?.reason,
        _ => None,
    }
}

struct Connection(BufReader<UnixStream>);

impl Connection {
    fn open(socket: &Path) -> Result<Self, LocalError> {
        let stream = UnixStream::connect(socket).map_err(|error| {
            let path = socket.display();
            match error.kind() {
                ErrorKind::PermissionDenied => LocalError::new(
                    LocalErrorKind::NotAuthorized,
                    format!("not allowed to use {path}: run as root, or join the group `edgelink`"),
                ),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => LocalError::new(
                    LocalErrorKind::Unreachable,
                    format!("the daemon is not running (nothing answers at {path}); start it with `edgelink run`"),
                ),
                _ => {
                    LocalError::new(LocalErrorKind::Unreachable, format!("cannot reach the daemon at {path}: {error}"))
                }
            }
        })?;
        Ok(Self(BufReader::new(stream)))
    }

    fn send(&mut self, request: &LocalRequest) -> Result<(), LocalError> {
        let line = to_line(request).map_err(|e| LocalError::new(LocalErrorKind::Failed, e.to_string()))?;
        self.0.get_mut().write_all(line.as_bytes()).map_err(lost)
    }

    fn receive(&mut self) -> Result<LocalResponse, LocalError> {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).map_err(lost)?;
        if line.is_empty() {
            return Err(LocalError::new(
                LocalErrorKind::Unreachable,
                "the daemon closed the connection: it was stopped, or see its log",
            ));
        }
        from_line(&line).map_err(|_| {
            LocalError::new(LocalErrorKind::Failed, "the daemon's answer is not understood; is it of another version?")
        })
    }
}

fn lost(error: std::io::Error) -> LocalError {
    LocalError::new(LocalErrorKind::Unreachable, format!("the connection to the daemon broke: {error}"))
}

pub(crate) fn unexpected(response: &LocalResponse) -> LocalError {
    tracing::debug!(?response, "unexpected response");
    LocalError::new(LocalErrorKind::Failed, "the daemon gave an unexpected answer; is it of another version?")
}

/// Prints to stdout; a reader that has gone away (`| head`) is no error.
pub(crate) fn print(text: &str) -> Outcome {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(LocalError::new(LocalErrorKind::Failed, format!("cannot write the answer: {error}")))
        }
        _ => Ok(()),
    }
}

pub(crate) fn print_json(value: &impl serde::Serialize) -> Outcome {
    let line = to_line(value).map_err(|e| LocalError::new(LocalErrorKind::Failed, e.to_string()))?;
    print(&line)
}
