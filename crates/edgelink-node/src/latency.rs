//! LATENCY_REPORT (DESIGN §1, specification §5.3): what the controller computes best paths from.

use crate::Node;
use crate::peers::Peer;
use crate::timers::Timer;
use edgelink_model::{NodeId, Now, ServerId};
use edgelink_wire::control::{ControlMessage, proto};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Changes are gathered for this long.
const GATHER: Duration = Duration::from_millis(500);
/// Reports are at least this far apart.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);
/// A round trip has changed when it moved by this or by 15 %, whichever is more (DESIGN §4).
const CHANGE: Duration = Duration::from_millis(5);
/// The most peers that one report lists; a node talks with more only when it is scanned.
const MAX_ACTIVE: usize = 4096;

/// What was last reported.
#[derive(Debug, Default)]
pub(crate) struct Report {
    at: Option<Instant>,
    rtts: BTreeMap<ServerId, Duration>,
    /// At least the peers that we talk with or send to, so that the others need not be looked at.
    pub(crate) talking: BTreeSet<NodeId>,
}

impl Node {
    /// Something has changed that the controller should know soon.
    pub(crate) fn report_soon(&mut self, now: Now) {
        let earliest = self.report.at.map_or(now.mono, |at| at + LEAST_INTERVAL);
        self.timers.set_earlier(Timer::Report, earliest.max(now.mono + GATHER));
    }

    /// Data goes between a peer and us, the first in a while.
    pub(crate) fn talks(&mut self, peer: NodeId, now: Now) {
        self.report.talking.insert(peer);
        self.report_soon(now);
    }

    /// A relay's round trip was measured anew.
    pub(crate) fn note_relay_rtt(&mut self, relay: ServerId, rtt: Duration, now: Now) {
        let reported = self.report.rtts.get(&relay).copied();
        if reported.is_none_or(|old| old.abs_diff(rtt) > CHANGE.max(old.mul_f64(0.15))) {
            self.report_soon(now);
        }
    }

    pub(crate) fn report_timeout(&mut self, now: Now) {
        // Without the controller there is nobody to tell; the next admission begins anew.
        let Some(link) = self.control_link() else { return };
        // Who sends to us is not sent to a relay that is about to end.
        let connected = || self.relays.iter().filter(|(_, relay)| relay.stays());
        self.report.at = Some(now.mono);
        self.report.rtts = connected().filter_map(|(id, relay)| Some((*id, relay.rtt?))).collect();
        let peers = &self.peers;
        self.report.talking.retain(|id| {
            let awake = |peer: &Peer| peer.paths.as_ref().is_some_and(|paths| !paths.is_asleep(now.mono));
            peers.get(*id).is_some_and(|peer| peer.has_data(now.mono) || awake(peer))
        });
        let has_data = |id: &&NodeId| peers.get(**id).is_some_and(|peer| peer.has_data(now.mono));
        let active = self.report.talking.iter().filter(has_data).map(|NodeId(id)| *id);
        let micros = |rtt: Duration| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
        let latency = |(id, rtt): (&ServerId, &Duration)| proto::Latency { server_id: id.0, rtt_us: micros(*rtt) };
        let report = proto::LatencyReport {
            latencies: self.report.rtts.iter().map(latency).collect(),
            active_peers: active.take(MAX_ACTIVE).collect(),
            connected_relays: connected().map(|(id, _)| id.0).collect(),
        };
        self.send_message(link, ControlMessage::LatencyReport(report));
        let wanted = self.latest.settings.as_ref().map_or(0, |settings| settings.latency_report_secs);
        let interval = match wanted {
            0 => self.config.paths.latency_report,
            secs => Duration::from_secs(secs.into()),
        };
        self.timers.set(Timer::Report, now.mono + interval.max(LEAST_INTERVAL));
    }
}
