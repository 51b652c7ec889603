//! What `edgelink paths PEER` shows: every path to a peer, and why it is used or not (DESIGN §5, §7).

use crate::{Node, control};
use edgelink_api::local::{KnownPath, Path, PathKind, PathState, Transport};
use edgelink_model::{NodeId, Now, ServerId};
use edgelink_path::{Class, Hops, PeerPaths, Standing, View, Way};
use std::time::Duration;

impl Node {
    /// All paths to `peer`, the one that packets take first.
    pub fn paths_to(&self, peer: NodeId, now: Now) -> Vec<KnownPath> {
        let Some(record) = self.peers.get(peer) else { return Vec::new() };
        let mut prospects = PeerPaths::new();
        let (paths, measuring) = match &record.paths {
            Some(paths) => (&**paths, !paths.is_asleep(now.mono)),
            None => {
                prospects.set_advice(record.advice, now.mono);
                prospects.set_relays(&self.relay_ways, now.mono);
                (&prospects, false)
            }
        };
        let views = paths.views();
        let used = paths.view();
        let advised = record.advice.map(|advice| advice.way());
        views
            .iter()
            .map(|view| {
                let current = used.is_some_and(|used| used.path == view.path);
                let why = match (used, current) {
                    (Some(_), true) => why_used(view, &views, advised == Some(view.way), measuring),
                    (Some(used), false) => why_not(view, &used, measuring),
                    (None, _) => "no path is in use".to_owned(),
                };
                let path = path_of(view);
                KnownPath {
                    relay_name: path.relay_id.and_then(|id| self.relay_name(id)),
                    via_relay_name: path.via_relay_id.and_then(|id| self.relay_name(id)),
                    one_hop: matches!(view.way, Way::Relay { hops: Hops::One, .. }),
                    path,
                    current,
                    state: match view.standing {
                        Standing::Alive => PathState::Alive,
                        Standing::Doubted => PathState::Doubted,
                        Standing::Unproved => PathState::Unproved,
                        Standing::Dead => PathState::Dead,
                    },
                    mtu: view.limit,
                    why,
                }
            })
            .collect()
    }

    fn relay_name(&self, id: ServerId) -> Option<String> {
        self.relays.get(&id).map(|relay| control::printable(&relay.message.name))
    }
}

fn why_used(view: &View, all: &[View], advised: bool, measuring: bool) -> String {
    let others = |wanted: fn(Class, Class) -> bool| all.iter().any(|other| wanted(other.way.class(), view.way.class()));
    let alive = |other: &&View| other.path != view.path && other.standing == Standing::Alive;
    match view.way.class() {
        _ if all.len() == 1 => "the only one".to_owned(),
        Class::Lan => "direct on the local network".to_owned(),
        Class::LanTcp => "direct on the local network by TCP, since UDP does not get through".to_owned(),
        Class::P2p => "direct, which is preferred to relays".to_owned(),
        Class::Relay if others(|other, own| other < own) => "direct paths are dead".to_owned(),
        Class::Relay if advised => "the best according to the controller's measurements".to_owned(),
        Class::Relay if view.rtt.is_none() || !measuring => "the nearest relay, while nothing is measured".to_owned(),
        Class::Relay if all.iter().filter(alive).any(|other| other.rtt < view.rtt) => {
            "another one is faster, but not by enough to change (10 ms and 20 %, three times)".to_owned()
        }
        Class::Relay => "the fastest measured".to_owned(),
    }
}

fn why_not(view: &View, used: &View, measuring: bool) -> String {
    match (view.standing, view.rtt, used.rtt) {
        (Standing::Dead, ..) if !view.way.is_direct() => "no answer, or the relay does not have the peer".to_owned(),
        (Standing::Dead, ..) => "no answer".to_owned(),
        (Standing::Doubted, ..) => "answers are missing".to_owned(),
        _ if view.way.class() == Class::LanTcp && used.way.class() == Class::Lan => "UDP is preferred".to_owned(),
        _ if view.way.class() > used.way.class() => "direct paths are preferred".to_owned(),
        (_, Some(own), Some(best)) if own >= best => format!("slower by {:.1} ms", ms(own - best)),
        (_, Some(own), Some(best)) => format!("faster by {:.1} ms, not yet by enough", ms(best - own)),
        (_, None, _) if measuring => "not measured yet".to_owned(),
        _ => "not measured: nothing is sent to this peer".to_owned(),
    }
}

pub(crate) fn path_of(view: &View) -> Path {
    Path {
        kind: match view.way.class() {
            Class::Lan | Class::LanTcp => PathKind::Lan,
            Class::P2p => PathKind::P2p,
            Class::Relay if view.mesh => PathKind::Mesh,
            Class::Relay => PathKind::Relay,
        },
        relay_id: view.way.relay(),
        via_relay_id: view.via,
        endpoint: view.way.remote(),
        transport: match view.way {
            Way::Udp { .. } => Some(Transport::Udp),
            Way::Tcp { .. } => Some(Transport::Tcp),
            Way::Relay { .. } => None,
        },
        rtt_ms: view.rtt.map(ms),
    }
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
