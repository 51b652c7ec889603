//! Who is there, where, and what was measured: gathered in memory, written now and then in few transactions.

use super::Hub;
use crate::{figures, now};
use edgelink_model::records::NodeEndpoints;
use edgelink_model::{NodeId, ServerId};
use edgelink_store::NodeTouch;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Presence is written this often, in one transaction.
const PRESENCE_INTERVAL: Duration = Duration::from_secs(1);
/// Nodes that stay are written this often: a record that is not refreshed is not believed for long.
const REFRESH_INTERVAL: Duration = Duration::from_secs(60);
/// Signs of life of servers that stay are written this often: `server list` believes them for 25 s.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// Latencies and connections are written this often.
const MEASUREMENTS_INTERVAL: Duration = Duration::from_secs(30);

impl Hub {
    /// Batches presence: one transaction a second at most, however many nodes come and go.
    pub(super) async fn run_presence(self: Rc<Self>) {
        let mut interval = tokio::time::interval(PRESENCE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut refreshed, mut heard) = (Instant::now(), Instant::now());
        loop {
            interval.tick().await;
            if refreshed.elapsed() >= REFRESH_INTERVAL {
                refreshed = Instant::now();
                let online: Vec<NodeId> = self.control.borrow().online().collect();
                let mut presence = self.presence.borrow_mut();
                online.into_iter().for_each(|node| {
                    presence.entry(node).or_insert(true);
                });
            }
            if heard.elapsed() >= HEARTBEAT_INTERVAL {
                heard = Instant::now();
                let online: Vec<ServerId> = self.control.borrow().servers_online().collect();
                let mut servers = self.servers.borrow_mut();
                online.into_iter().for_each(|server| {
                    servers.entry(server).or_insert(true);
                });
            }
            self.write_presence().await;
        }
    }

    /// Writes what has been gathered; called at the end too.
    pub(crate) async fn write_presence(&self) {
        if !self.is_active() {
            return;
        }
        // A server that has gone keeps the moment at which it was heard last.
        let servers = std::mem::take(&mut *self.servers.borrow_mut());
        let online: Vec<ServerId> = servers.into_iter().filter(|(_, online)| *online).map(|(id, _)| id).collect();
        if !online.is_empty()
            && let Err(error) = self.writer().touch_servers(&online, now().unix_ms).await
        {
            tracing::debug!(%error, "signs of life of servers not written; written with the next");
        }
        let told: Vec<NodeEndpoints> = std::mem::take(&mut *self.endpoints.borrow_mut()).into_values().collect();
        if let Err(error) = self.writer().set_endpoints(&told).await {
            tracing::debug!(%error, "endpoints not written; tried again");
            let mut endpoints = self.endpoints.borrow_mut();
            for told in told {
                endpoints.entry(told.node).or_insert(told);
            }
        }
        let batch = std::mem::take(&mut *self.presence.borrow_mut());
        if batch.is_empty() {
            return;
        }
        let last_seen = now().unix_ms;
        let touches: Vec<NodeTouch> =
            batch.into_iter().map(|(id, online)| NodeTouch { id, online, last_seen }).collect();
        if let Err(error) = self.writer().touch_nodes(&touches).await {
            tracing::debug!(%error, "presence not written; tried again");
            let mut presence = self.presence.borrow_mut();
            for touch in touches {
                presence.entry(touch.id).or_insert(touch.online);
            }
        }
    }

    /// Batches what was measured and who is connected where: two transactions in [`MEASUREMENTS_INTERVAL`].
    pub(super) async fn run_measurements(self: Rc<Self>) {
        let mut interval = tokio::time::interval(MEASUREMENTS_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if !self.is_active() {
                continue;
            }
            let at = now();
            let latencies = figures::records(&self.control.borrow(), at);
            let connections: Vec<(NodeId, ServerId)> = {
                let control = self.control.borrow();
                control.locations().flat_map(|(node, servers)| servers.into_iter().map(move |s| (node, s))).collect()
            };
            let written = async {
                self.writer().write_latencies(&latencies).await?;
                self.writer().touch_connections(&connections, at.unix_ms).await
            };
            if let Err(error) = written.await {
                tracing::debug!(%error, "measurements not written; written with the next");
            }
        }
    }
}
