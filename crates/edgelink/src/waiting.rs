//! `edgelink wait`: until a network is usable, or a node in it answers.

use crate::cli::WaitArgs;
use crate::commands::{Daemon, Outcome, print, print_json, unexpected};
use crate::output;
use edgelink_api::local::{DaemonState, LocalError, LocalErrorKind, LocalRequest, LocalResponse, PingRequest, Status};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What is looked at so often.
const LOOK: Duration = Duration::from_millis(100);

/// Ends with what `edgelink up` would end with: 0 once it works, 3 when the time is over, 4 when an administrator is needed.
/// A daemon that does not answer yet is waited for too.
pub(crate) fn wait(at: &Daemon<'_>, args: &WaitArgs) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let last = match look(at, args.target.as_deref()) {
            Ok(status) if at.json => return print_json(&status),
            Ok(status) => return print(&output::up(&status)),
            Err(missing) => missing,
        };
        if matches!(last, Missing::Hopeless(_)) || Instant::now() >= deadline {
            let (Missing::Hopeless(error) | Missing::Yet(error)) = last;
            return Err(error);
        }
        sleep(LOOK);
    }
}

/// Why it is not as wanted.
enum Missing {
    /// Waiting does not help.
    Hopeless(LocalError),
    /// It may come.
    Yet(LocalError),
}

fn look(at: &Daemon<'_>, target: Option<&str>) -> Result<Status, Missing> {
    let ask = |request: &LocalRequest| {
        at.ask(request).map_err(|error| match error.kind {
            // The socket is not ours to use.
            LocalErrorKind::NotAuthorized => Missing::Hopeless(error),
            _ => Missing::Yet(error),
        })
    };
    let yet = |text: String| Missing::Yet(LocalError::new(LocalErrorKind::Unreachable, text));
    let status = match ask(&LocalRequest::Status(at.choice()))? {
        LocalResponse::Status(status) => *status,
        other => return Err(Missing::Hopeless(unexpected(&other))),
    };
    if status.state == DaemonState::Down {
        return Err(yet("the daemon is down; `edgelink up` connects it".to_owned()));
    }
    output::up_verdict(&status).map_err(Missing::Yet)?;
    if status.addresses.is_empty() {
        return Err(yet("the first configuration has not come yet".to_owned()));
    }
    if let Some(target) = target {
        let mut ping = PingRequest::new(target, Some(1));
        ping.timeout_ms = 1000;
        ping.network = at.network();
        match ask(&LocalRequest::Ping(ping))? {
            LocalResponse::PingReply(reply) if reply.rtt_ms.is_some() => {}
            LocalResponse::PingReply(reply) => {
                let why = reply.error.unwrap_or_else(|| "it does not answer".to_owned());
                return Err(yet(format!("{target}: {why}")));
            }
            other => return Err(Missing::Hopeless(unexpected(&other))),
        }
    }
    Ok(status)
}
