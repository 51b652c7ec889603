//! What all nodes have in common: how to dial, who knows whom, and the first thing that went wrong.

use crate::controller::Controller;
use anyhow::{Result, anyhow};
use edgelink_net::tls;
use edgelink_net::ws::Dial;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};

pub(crate) struct Shared {
    pub(crate) dial: Dial,
    pub(crate) host: String,
    /// Whose turn it is to authenticate.
    pub(crate) turns: Rc<Semaphore>,
    /// Members of each network when all have joined.
    pub(crate) size: RefCell<Vec<usize>>,
    /// Node id → network, as the controller gave them out.
    networks: RefCell<HashMap<u32, usize>>,
    expected: Cell<usize>,
    complete: Cell<usize>,
    connected: Cell<usize>,
    /// Messages with configuration per network.
    messages: RefCell<Vec<u64>>,
    /// A node that waits for authorization.
    waiting: Cell<Option<u32>>,
    /// The node that all of the first network shall hear of, how many have, and when the last did.
    watched: Cell<Option<(u32, usize, Option<Instant>)>>,
    error: RefCell<Option<anyhow::Error>>,
    news: Notify,
    pub(crate) leave: Notify,
}

impl Shared {
    pub(crate) fn new(controller: &Controller, networks: usize, nodes: usize, concurrency: usize) -> Result<Self> {
        let tls = tls::client_config(&controller.tls())?;
        Ok(Self {
            dial: Dial::new(format!("wss://{}/ws/control", controller.address()), tls),
            host: controller.address().ip().to_string(),
            turns: Rc::new(Semaphore::new(concurrency)),
            size: RefCell::new(vec![nodes; networks]),
            networks: RefCell::default(),
            expected: Cell::new(0),
            complete: Cell::new(0),
            connected: Cell::new(0),
            messages: RefCell::new(vec![0; networks]),
            waiting: Cell::new(None),
            watched: Cell::new(None),
            error: RefCell::new(None),
            news: Notify::new(),
            leave: Notify::new(),
        })
    }

    pub(crate) fn expect(&self, nodes: usize) {
        self.expected.set(nodes);
        self.complete.set(0);
    }

    /// A node was let in; its id is in this network and in no other.
    pub(crate) fn admitted(&self, node: u32, network: usize) -> Result<()> {
        match self.networks.borrow_mut().insert(node, network) {
            Some(other) if other != network => Err(anyhow!("node {node} is in two networks")),
            _ => Ok(()),
        }
    }

    /// Checks that a node of `network` may hear of `peer`.
    pub(crate) fn check(&self, peer: u32, network: usize) -> Result<()> {
        match self.networks.borrow().get(&peer) {
            Some(of) if *of != network => Err(anyhow!("a node of network {network} was told of node {peer} of {of}")),
            // It was let in a moment ago, and is checked when its own task says so.
            _ => Ok(()),
        }
    }

    pub(crate) fn message(&self, network: usize) {
        if let Some(count) = self.messages.borrow_mut().get_mut(network) {
            *count += 1;
        }
    }

    pub(crate) fn messages_outside(&self, network: usize) -> u64 {
        self.messages.borrow().iter().enumerate().filter(|(other, _)| *other != network).map(|(_, count)| count).sum()
    }

    pub(crate) fn knows_all(&self) {
        self.complete.set(self.complete.get() + 1);
        self.news.notify_one();
    }

    pub(crate) fn waits(&self, node: u32) {
        self.waiting.set(Some(node));
        self.news.notify_one();
    }

    pub(crate) fn count_connection(&self, opened: bool) {
        let now = self.connected.get();
        self.connected.set(if opened { now + 1 } else { now - 1 });
        self.news.notify_one();
    }

    pub(crate) fn fail(&self, error: anyhow::Error) {
        self.error.borrow_mut().get_or_insert(error);
        self.news.notify_one();
    }

    /// From now on nodes of the first network report that they have acknowledged an update with this node.
    pub(crate) fn watch(&self, node: u32) {
        self.watched.set(Some((node, 0, None)));
    }

    pub(crate) fn is_watched(&self, node: u32) -> bool {
        self.watched.get().is_some_and(|(watched, ..)| watched == node)
    }

    pub(crate) fn heard(&self) {
        if let Some((node, heard, _)) = self.watched.get() {
            self.watched.set(Some((node, heard + 1, Some(Instant::now()))));
            self.news.notify_one();
        }
    }

    pub(crate) async fn complete(&self, limit: Duration) -> Result<()> {
        self.until(limit, || (self.complete.get() >= self.expected.get()).then_some(())).await
    }

    pub(crate) async fn waiting(&self, limit: Duration) -> Result<u32> {
        self.until(limit, || self.waiting.take()).await
    }

    /// When the last of the first network's nodes heard of the watched one.
    pub(crate) async fn known_to_all(&self, limit: Duration) -> Result<Instant> {
        // The others, and the node itself in its own configuration.
        let all = self.size.borrow().first().copied().unwrap_or_default() + 1;
        let last = self
            .until(limit, || {
                let (_, heard, last) = self.watched.get()?;
                if heard >= all { last } else { None }
            })
            .await?;
        if let Some(size) = self.size.borrow_mut().first_mut() {
            *size += 1;
        }
        self.watched.set(None);
        Ok(last)
    }

    /// Every node hangs up.
    pub(crate) async fn hang_up(&self, controller: &Controller, limit: Duration) -> Result<()> {
        self.leave.notify_waiters();
        self.until(limit, || (self.connected.get() == 0).then_some(())).await?;
        // The controller sees the last end a moment later.
        controller.usage().map(|_| ())
    }

    async fn until<T>(&self, limit: Duration, mut done: impl FnMut() -> Option<T>) -> Result<T> {
        let wait = async {
            loop {
                if let Some(error) = self.error.borrow_mut().take() {
                    return Err(error);
                }
                if let Some(value) = done() {
                    return Ok(value);
                }
                self.news.notified().await;
            }
        };
        tokio::time::timeout(limit, wait).await.map_err(|_| {
            anyhow!("not within {limit:?}: {} of {} nodes complete", self.complete.get(), self.expected.get())
        })?
    }
}
