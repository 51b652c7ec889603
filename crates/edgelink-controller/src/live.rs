//! What the REST API, whose handlers may move between threads, asks the hub, which may not.

use edgelink_api::rest;
use edgelink_model::{NetworkId, NodeId};
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait for the hub.
const QUEUE: usize = 256;

/// One question.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Apply what was just committed.
    Follow(oneshot::Sender<()>),
    /// Measured times, of one network's nodes or all.
    Latencies(Option<NetworkId>, oneshot::Sender<Vec<rest::Latency>>),
    /// Best paths likewise.
    Paths(Option<NetworkId>, oneshot::Sender<Vec<rest::LatencyPath>>),
    /// What a node said of its paths to its peers.
    Direct(NodeId, oneshot::Sender<Vec<rest::PeerPath>>),
}

/// The asking end.
#[derive(Clone, Debug)]
pub(crate) struct Live(mpsc::Sender<Ask>);

/// Both ends.
pub(crate) fn channel() -> (Live, mpsc::Receiver<Ask>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Live(sender), receiver)
}

impl Live {
    /// Has the hub apply what was just committed, and waits for it: whoever reads the answer to a change finds it in
    /// force.
    pub(crate) async fn follow(&self) {
        self.ask(Ask::Follow).await;
    }

    /// Measured round-trip times.
    pub(crate) async fn latencies(&self, network: Option<NetworkId>) -> Vec<rest::Latency> {
        self.ask(|answer| Ask::Latencies(network, answer)).await
    }

    /// Best paths.
    pub(crate) async fn paths(&self, network: Option<NetworkId>) -> Vec<rest::LatencyPath> {
        self.ask(|answer| Ask::Paths(network, answer)).await
    }

    /// A node's paths to its peers.
    pub(crate) async fn direct(&self, node: NodeId) -> Vec<rest::PeerPath> {
        self.ask(|answer| Ask::Direct(node, answer)).await
    }

    /// Without a hub, which only happens when the process ends, nothing is known.
    async fn ask<T: Default>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> T {
        let (sender, answer) = oneshot::channel();
        if self.0.send(question(sender)).await.is_err() {
            return T::default();
        }
        answer.await.unwrap_or_default()
    }
}
