//! Answers as people see them: aligned tables, a hint where there is something to do.

use edgelink_api::local::{
    DaemonState, JoinedNetwork, KnownPath, LocalError, LocalErrorKind, Nat, NatBehaviour, NatName, Netcheck, Path,
    PathKind, PathState, Peer, PingDone, PingReply, Route, RouteWhy, Status, Transport,
};
use std::fmt::Write as _;

pub(crate) fn status(status: &Status) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: String| {
        let _ = writeln!(out, "{label:<12}{value}");
    };
    line("state", state(status));
    if let Some(id) = status.node_id {
        line("node", format!("{} (id {id})", status.name));
    }
    if let Some(network) = &status.network {
        line("network", format!("{network}, configuration {}", status.config_version));
    }
    if !status.addresses.is_empty() {
        line("addresses", join(&status.addresses));
    }
    if let Some(url) = &status.controller.url {
        line("controller", format!("{url}  {}", connected(status.controller.connected, status.controller.rtt_ms)));
    }
    for relay in &status.relays {
        line("relay", format!("{} ({})  {}", relay.name, relay.url, connected(relay.connected, relay.rtt_ms)));
    }
    if status.nat.name != NatName::Unknown {
        line("NAT", nat(&status.nat));
    }
    for problem in &status.health {
        line("problem", problem.clone());
    }
    for (reason, count) in &status.drops {
        line("dropped", format!("{count} {reason}"));
    }
    if !status.peers.is_empty() {
        out.push('\n');
        out.push_str(&peers(&status.peers));
    }
    if !status.routes.is_empty() {
        out.push('\n');
        out.push_str(&routes(&status.routes));
    }
    out
}

pub(crate) fn peers(peers: &[Peer]) -> String {
    let header = ["NODE", "ID", "ADDRESS", "ONLINE", "PATH", "RTT", "LAST", "RX", "TX"].map(str::to_owned).to_vec();
    let rows = peers.iter().map(|peer| {
        vec![
            peer.name.clone(),
            peer.node_id.to_string(),
            join(&peer.addresses),
            if peer.online { "yes" } else { "no" }.to_owned(),
            path(&peer.path),
            peer.path.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms")),
            peer.last_rx_ms.map_or_else(|| "-".to_owned(), |ms| format!("{:.1} s ago", ms as f64 / 1000.0)),
            bytes(peer.rx_bytes),
            bytes(peer.tx_bytes),
        ]
    });
    let mut out = table(std::iter::once(header).chain(rows).collect());
    for (peer, reason) in peers.iter().filter_map(|p| p.reason.as_ref().map(|r| (p, r))) {
        let _ = writeln!(out, "{}: {reason}", peer.name);
    }
    out
}

pub(crate) fn networks(networks: &[JoinedNetwork]) -> String {
    let header = ["NAME", "NETWORK", "STATE", "INTERFACE", "ADDRESS", "CONTROLLER"].map(str::to_owned).to_vec();
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let rows = networks.iter().map(|network| {
        vec![
            or_dash(&network.label),
            or_dash(&network.network),
            state_name(network.state).to_owned(),
            network.interface.clone(),
            if network.addresses.is_empty() { "-".to_owned() } else { join(&network.addresses) },
            or_dash(&network.controller),
        ]
    });
    table(std::iter::once(header).chain(rows).collect())
}

pub(crate) fn netcheck(check: &Netcheck) -> String {
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(out, "{label:<14}{value}");
    };
    let udp = match (check.p2p_enabled, check.udp) {
        (false, _) => "not tried (p2p.enabled is false)",
        (true, Some(true)) => "works",
        (true, Some(false)) => "blocked",
        (true, None) => "not known",
    };
    line("UDP", udp);
    line("NAT", &nat(&check.nat));
    let mapping = match (&check.port_mapping.protocol, check.port_mapping.external, &check.port_mapping.problem) {
        (Some(protocol), Some(external), _) => format!("{external} by {protocol}"),
        (_, _, Some(problem)) => format!("none: {problem}"),
        _ => "none".to_owned(),
    };
    line("port mapping", &mapping);
    for endpoint in &check.endpoints {
        line("endpoint", &format!("{} ({})", endpoint.address, endpoint.kind));
    }
    for relay in &check.relays {
        line("relay", &format!("{} ({})  {}", relay.name, relay.url, connected(relay.connected, relay.rtt_ms)));
    }
    check.problems.iter().for_each(|problem| line("problem", problem));
    out
}

pub(crate) fn paths(name: &str, paths: &[KnownPath]) -> String {
    if paths.is_empty() {
        return format!("no path leads to {name}\n");
    }
    let header = ["USE", "PATH", "BY", "RTT", "STATE", "WHY"].map(str::to_owned).to_vec();
    let rows = paths.iter().map(|known| {
        let by = match (&known.relay_name, &known.via_relay_name) {
            (Some(first), Some(second)) => format!("{first}, {second}"),
            (Some(first), None) if known.one_hop => format!("{first} alone"),
            (Some(first), None) => first.clone(),
            _ => "-".to_owned(),
        };
        let state = match known.state {
            PathState::Alive => "alive",
            PathState::Doubted => "doubted",
            PathState::Dead => "dead",
            PathState::Unproved => "unproved",
        };
        vec![
            if known.current { "*" } else { "" }.to_owned(),
            path(&known.path),
            by,
            known.path.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1} ms")),
            state.to_owned(),
            known.why.clone(),
        ]
    });
    table(std::iter::once(header).chain(rows).collect())
}

/// The NAT's name, mapping and filtering, in words.
fn nat(nat: &Nat) -> String {
    let name = match nat.name {
        NatName::Open => "none",
        NatName::FullCone => "full cone",
        NatName::RestrictedCone => "restricted cone",
        NatName::PortRestricted => "port restricted",
        NatName::Symmetric => "symmetric",
        NatName::UdpBlocked => "UDP blocked",
        NatName::Unknown => "not known",
    };
    let behaviour = |behaviour| match behaviour {
        NatBehaviour::None => "none",
        NatBehaviour::EndpointIndependent => "endpoint-independent",
        NatBehaviour::AddressDependent => "address-dependent",
        NatBehaviour::AddressAndPortDependent => "address- and port-dependent",
        NatBehaviour::Unknown => "not known",
    };
    format!("{name} (mapping {}, filtering {})", behaviour(nat.mapping), behaviour(nat.filtering))
}

pub(crate) fn routes(routes: &[Route]) -> String {
    if routes.is_empty() {
        return "no node offers a subnet\n".to_owned();
    }
    let header = ["SUBNET", "GATEWAY", "PRIORITY", "WEIGHT", "USED"].map(str::to_owned).to_vec();
    let rows = routes.iter().map(|route| {
        vec![
            route.cidr.to_string(),
            route.gateway_node_id.to_string(),
            route.priority.to_string(),
            route.weight.to_string(),
            match (&route.skipped, route.active) {
                (Some(skipped), _) => format!("skipped: {skipped}"),
                (None, true) => "yes".to_owned(),
                (None, false) => "no".to_owned(),
            },
        ]
    });
    table(std::iter::once(header).chain(rows).collect())
}

pub(crate) fn why(why: &RouteWhy) -> String {
    let mut out = match (why.gateways.as_slice(), why.cidr) {
        ([], _) => format!("{} goes to no node\n", why.address),
        ([one], Some(cidr)) => format!("{} goes to node {one} by {cidr}\n", why.address),
        ([one], None) => format!("{} goes to node {one}\n", why.address),
        (several, cidr) => {
            let by = cidr.map_or_else(String::new, |cidr| format!(" by {cidr}"));
            format!("{} goes to nodes {}{by}, flow by flow\n", why.address, join(several))
        }
    };
    for reason in &why.reasons {
        let _ = writeln!(out, "  {reason}");
    }
    out
}

pub(crate) fn up(status: &Status) -> String {
    match status.state {
        DaemonState::Up => format!(
            "up: {} is {} in network {}\n",
            status.name,
            join(&status.addresses),
            status.network.as_deref().unwrap_or("?")
        ),
        _ => String::new(),
    }
}

/// What the exit code of `edgelink up` tells.
pub(crate) fn up_verdict(status: &Status) -> Result<(), LocalError> {
    let why = |fallback: &str| status.state_message.clone().unwrap_or_else(|| fallback.to_owned());
    match status.state {
        DaemonState::Up => Ok(()),
        DaemonState::WaitingForAuthorization => {
            Err(LocalError::new(LocalErrorKind::NotAuthorized, why("waiting for an administrator's authorization")))
        }
        DaemonState::Refused => {
            Err(LocalError::new(LocalErrorKind::NotAuthorized, why("the controller refused this node")))
        }
        _ => Err(LocalError::new(
            LocalErrorKind::Unreachable,
            format!("not connected yet, still trying: {}", why("the controller has not answered")),
        )),
    }
}

pub(crate) fn ping_reply(reply: &PingReply) -> String {
    match (reply.rtt_ms, &reply.error) {
        (Some(rtt), _) => {
            format!("{} ({}): seq={} {} {rtt:.2} ms\n", reply.name, reply.node_id, reply.seq, path(&reply.path))
        }
        (None, error) => {
            let why = error.as_deref().unwrap_or("no answer");
            format!("{} ({}): seq={} {why}\n", reply.name, reply.node_id, reply.seq)
        }
    }
}

pub(crate) fn ping_done(target: &str, done: &PingDone) -> String {
    let mut out = format!("--- {target}: {} sent, {} received", done.sent, done.received);
    if let (Some(min), Some(avg), Some(max)) = (done.min_ms, done.avg_ms, done.max_ms) {
        let _ = write!(out, ", min/avg/max {min:.2}/{avg:.2}/{max:.2} ms");
    }
    out.push('\n');
    out
}

fn state(status: &Status) -> String {
    let name = match status.state {
        DaemonState::Down => "down (join with `edgelink up wss://CONTROLLER --key AUTHKEY`)",
        other => state_name(other),
    };
    match &status.state_message {
        Some(message) => format!("{name}: {message}"),
        None => name.to_owned(),
    }
}

fn state_name(state: DaemonState) -> &'static str {
    match state {
        DaemonState::Down => "down",
        DaemonState::Connecting => "connecting",
        DaemonState::WaitingForAuthorization => "waiting for authorization",
        DaemonState::Up => "up",
        DaemonState::Refused => "refused",
        DaemonState::Unknown => "unknown",
    }
}

fn path(path: &Path) -> String {
    match (path.kind, path.relay_id, path.via_relay_id, path.endpoint) {
        (PathKind::Relay, Some(relay), _, _) => format!("relay {relay}"),
        (PathKind::Mesh, Some(relay), Some(via), _) => format!("mesh {relay}-{via}"),
        (PathKind::Mesh, Some(relay), None, _) => format!("mesh {relay}-?"),
        (PathKind::Lan, _, _, Some(endpoint)) if path.transport == Some(Transport::Tcp) => {
            format!("lan tcp:{endpoint}")
        }
        (PathKind::Lan, _, _, Some(endpoint)) => format!("lan {endpoint}"),
        (PathKind::P2p, _, _, Some(endpoint)) => format!("p2p {endpoint}"),
        _ => "none".to_owned(),
    }
}

fn connected(connected: bool, rtt_ms: Option<f64>) -> String {
    match (connected, rtt_ms) {
        (true, Some(rtt)) => format!("connected, {rtt:.1} ms"),
        (true, None) => "connected".to_owned(),
        (false, _) => "not connected".to_owned(),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).unwrap_or(&"");
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {name}") }
}

fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Columns as wide as their widest cell, two spaces between.
fn table(rows: Vec<Vec<String>>) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgelink_model::{NodeId, ServerId};

    #[test]
    fn tables_are_aligned() {
        let peer = |name: &str, online| Peer {
            node_id: NodeId(3),
            name: name.to_owned(),
            addresses: vec!["10.0.1.3".parse().unwrap()],
            online,
            path: Path { kind: PathKind::Relay, relay_id: Some(ServerId(1)), rtt_ms: Some(1.25), ..Path::default() },
            reason: None,
            last_rx_ms: Some(1500),
            rx_bytes: 1536,
            tx_bytes: 12,
        };
        let text = peers(&[peer("a", true), peer("a-longer-name", false)]);
        let expected = "\
NODE           ID  ADDRESS   ONLINE  PATH     RTT     LAST       RX       TX
a              3   10.0.1.3  yes     relay 1  1.2 ms  1.5 s ago  1.5 KiB  12 B
a-longer-name  3   10.0.1.3  no      relay 1  1.2 ms  1.5 s ago  1.5 KiB  12 B
";
        assert_eq!(text, expected);
    }

    #[test]
    fn paths_are_told_with_their_relays_and_reasons() {
        let known = |relay: u32, via: Option<u32>, rtt, current, why: &str| KnownPath {
            path: Path {
                kind: if via.is_some() { PathKind::Mesh } else { PathKind::Relay },
                relay_id: Some(ServerId(relay)),
                via_relay_id: via.map(ServerId),
                rtt_ms: rtt,
                ..Path::default()
            },
            relay_name: Some(format!("r{relay}")),
            via_relay_name: via.map(|via| format!("r{via}")),
            one_hop: via.is_none(),
            current,
            state: if rtt.is_some() { PathState::Alive } else { PathState::Dead },
            mtu: None,
            why: why.to_owned(),
        };
        let all = [
            known(2, Some(3), Some(25.0), true, "the best according to the controller's measurements"),
            known(2, None, Some(40.5), false, "slower by 15.5 ms"),
            known(4, None, None, false, "no answer"),
        ];
        let expected = "\
USE  PATH      BY        RTT      STATE  WHY
*    mesh 2-3  r2, r3    25.0 ms  alive  the best according to the controller's measurements
     relay 2   r2 alone  40.5 ms  alive  slower by 15.5 ms
     relay 4   r4 alone  -        dead   no answer
";
        assert_eq!(paths("b", &all), expected);
        assert_eq!(paths("b", &[]), "no path leads to b\n");
    }

    #[test]
    fn the_verdict_of_up_is_its_exit_code() {
        let of = |state| {
            let status = Status { state, state_message: Some("because".to_owned()), ..Status::default() };
            up_verdict(&status).err().map(|e| e.kind.exit_code())
        };
        assert_eq!(of(DaemonState::Up), None);
        assert_eq!(of(DaemonState::Connecting), Some(3));
        assert_eq!(of(DaemonState::WaitingForAuthorization), Some(4));
        assert_eq!(of(DaemonState::Refused), Some(4));
    }
}
