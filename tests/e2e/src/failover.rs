//! What DESIGN §5 promises when something on a path dies: one trial each in the tests, many in
//! `edgelink-failover-bench`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use edgelink_api::local::PathKind;
use nix::sys::signal::Signal;

use crate::{At, Flowed, SOON, TcpFlow, UdpFlow, Web};

/// Packets that must arrive after an event before a trial is over: 2 s.
const AFTER: u64 = 200;
/// Back to a better path: three probes, 5 s apart, show that it is better, and a relay's return takes a few seconds too.
const RETURN: Duration = Duration::from_secs(60);

/// Something that dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The process of the first relay on the path gets SIGKILL.
    RelayKilled,
    /// Nothing passes to and from that relay any more, and nobody is told.
    RelayBlackHoled,
    /// The same between the two relays of the path.
    MeshLinkCut,
    /// The controller gets SIGKILL.
    ControllerKilled,
    /// An administrator disables the first relay on the path.
    ServerDisabled,
    /// An administrator bars a third node.
    NodeRevoked,
}

/// One trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The one-way UDP flow.
    pub udp: Flowed,
    /// Words over the TCP connection, all of which arrived.
    pub tcp: u64,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::RelayKilled,
        Self::RelayBlackHoled,
        Self::MeshLinkCut,
        Self::ControllerKilled,
        Self::ServerDisabled,
        Self::NodeRevoked,
    ];

    /// Its name in commands and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RelayKilled => "relay-killed",
            Self::RelayBlackHoled => "relay-black-holed",
            Self::MeshLinkCut => "mesh-link-cut",
            Self::ControllerKilled => "controller-killed",
            Self::ServerDisabled => "server-disabled",
            Self::NodeRevoked => "node-revoked",
        }
    }

    /// Within this time traffic flows again (DESIGN §5). What interrupts nothing has the time in which ten packets go,
    /// which a busy machine may need to wake up.
    #[must_use]
    pub fn bound(self) -> Duration {
        match self {
            Self::RelayKilled | Self::ServerDisabled => Duration::from_secs(1),
            Self::RelayBlackHoled | Self::MeshLinkCut => Duration::from_secs(5),
            Self::ControllerKilled | Self::NodeRevoked => Duration::from_millis(200),
        }
    }
}

/// Nodes a, b and c and three relays, so far from each other that the best path from a to b is by relays 1 and 2, the next
/// one by relay 3 alone.
///
/// # Errors
///
/// As [`Web::start`].
pub fn web() -> Result<Option<Web>> {
    let ms = Duration::from_millis;
    Web::start(&["a", "b", "c"], 3, |one, other| match (one, other) {
        (At::Node(0), At::Relay(0)) | (At::Node(1), At::Relay(1)) | (At::Relay(0), At::Relay(1)) => ms(4),
        (At::Node(_), At::Relay(2)) => ms(20),
        _ => ms(60),
    })
}

/// Lets it happen while packets flow from a to b, and mends it afterwards.
///
/// # Errors
///
/// When the TCP connection does not survive, or something cannot be done at all.
pub fn trial(web: &mut Web, event: Event) -> Result<Outcome> {
    let settled = if event == Event::MeshLinkCut { Some(PathKind::Mesh) } else { None };
    let [a, b, _] = &web.net.nodes[..] else { bail!("three nodes are needed") };
    let udp = UdpFlow::start(a, b, 7_000)?;
    let tcp = TcpFlow::start(a, b, 7_001)?;
    let status = a.wait_status("a path to b that is measured", RETURN, |status| {
        let peer = status.peers.iter().find(|peer| peer.name == "b");
        peer.is_some_and(|peer| {
            let path = &peer.path;
            path.rtt_ms.is_some() && path.relay_id.is_some() && settled.is_none_or(|kind| path.kind == kind)
        })
    });
    let status = status.with_context(|| {
        let paths = a.edgelink(&["paths", "b"]).and_then(|command| command.run());
        let known = web.net.ctl(&["latency"]).and_then(|command| command.run());
        format!("paths to b, and what the controller knows:\n{}\n{}", either(paths), either(known))
    })?;
    let used = status.peers.iter().find(|peer| peer.name == "b").and_then(|peer| peer.path.relay_id);
    let used = used.context("no relay in use")?;
    let first = web.relays.iter().position(|relay| relay.id == u64::from(used.0)).context("an unknown relay")?;
    // A second of calm, so that candidates have been measured too.
    udp.wait(100, SOON)?;

    let relay = web.relays[first].host.name().to_owned();
    match event {
        Event::RelayKilled => web.end_relay(first, Signal::SIGKILL)?,
        Event::RelayBlackHoled => web.black_hole_relay(first)?,
        Event::MeshLinkCut => web.black_hole(At::Relay(0), At::Relay(1))?,
        Event::ControllerKilled => {
            web.net.controller()?.kill()?;
        }
        Event::ServerDisabled => {
            web.net.ctl(&["server", "disable", &relay])?.run()?;
        }
        Event::NodeRevoked => {
            web.net.ctl(&["node", "deauthorize", "c"])?.run()?;
        }
    }
    udp.wait(AFTER, 2 * SOON)?;
    let outcome = Outcome { udp: udp.stop()?, tcp: tcp.stop()? };

    match event {
        Event::RelayKilled => web.start_relay(first)?,
        Event::RelayBlackHoled | Event::MeshLinkCut => web.mend()?,
        Event::ControllerKilled => web.net.start_controller()?,
        Event::ServerDisabled => {
            web.net.ctl(&["server", "enable", &relay])?.run()?;
        }
        Event::NodeRevoked => {
            web.net.ctl(&["node", "authorize", "c"])?.run()?;
        }
    }
    web.wait_connected()?;
    web.check_alive()?;
    Ok(outcome)
}

/// What a command printed, or why it did not.
fn either(outcome: Result<String>) -> String {
    outcome.unwrap_or_else(|error| format!("{error:#}"))
}
