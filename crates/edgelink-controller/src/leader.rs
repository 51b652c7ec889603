//! Which of several controllers on one MariaDB is the active one (DESIGN §4, ADR 0010): takes the lease, renews it, and
//! steps down before it could be somebody else's.
//!
//! The order of a take-over after the active controller was killed: its lease ends at most [`LEASE`] after its last renewal;
//! a standby looks every [`WATCH`]; nodes dial again within a second. That is below ten seconds.

use crate::hub::Hub;
use crate::os_rng;
use crate::setup::Announcement;
use edgelink_store::{Lease, Store, StoreError};
use rand_core::Rng as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long the lease lasts without being renewed.
const LEASE: Duration = Duration::from_secs(6);
/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(2);
/// How soon a renewal that failed is tried again.
const RETRY: Duration = Duration::from_millis(300);
/// We step down this long before the lease ends by our own clock, so that nobody else can be active yet.
const MARGIN: Duration = Duration::from_secs(1);
/// How often a standby looks whether the lease is free.
const WATCH: Duration = Duration::from_secs(1);
/// How often a controller says in the database where it is.
const ANNOUNCE: Duration = Duration::from_secs(3600);
/// A database that takes longer to answer about the lease does not answer.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What this controller is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It serves nodes and relays.
    Active {
        /// Of the lease; `None` without one: the database is this controller's alone.
        epoch: Option<u64>,
    },
    /// Another one does, or will.
    Standby {
        /// Where the active one is, if there is one.
        active: Option<String>,
    },
    /// It was the active one, the database does not answer, and it cannot know whether another one is: its relay goes on,
    /// its control channel does not.
    Cut,
}

/// This controller's part in the lease.
pub(crate) struct Leader {
    store: Store,
    /// Random: a restarted controller is another one.
    holder: String,
    url: String,
}

impl Leader {
    /// `url`: where nodes reach this controller.
    pub(crate) fn new(store: &Store, url: &str) -> Rc<Self> {
        let holder = format!("{:016x}{:016x}", os_rng().next_u64(), os_rng().next_u64());
        Rc::new(Self { store: store.clone(), holder, url: url.to_owned() })
    }

    /// Takes the lease if it is free.
    pub(crate) async fn ask(&self) -> Result<Role, StoreError> {
        Ok(match self.store.take_lease(&self.holder, &self.url, LEASE).await? {
            Lease::Ours { epoch } => Role::Active { epoch: Some(epoch) },
            Lease::Theirs(holder) => Role::Standby { active: Some(holder.url) },
        })
    }

    /// Gives the lease up at the end of this process.
    pub(crate) async fn release(&self) {
        if !matches!(tokio::time::timeout(PATIENCE, self.store.release_lease(&self.holder)).await, Ok(Ok(()))) {
            tracing::debug!("the lease was not released; it ends by itself");
        }
    }

    /// Keeps the hub's role true, for ever. `asked` is when the lease was asked for that the hub has now.
    pub(crate) async fn run(self: Rc<Self>, hub: Rc<Hub>, announcement: Announcement, asked: Instant) {
        let mut renewed = asked;
        let mut announced = None;
        loop {
            if announced.is_none_or(|at: Instant| at.elapsed() >= ANNOUNCE)
                && let Ok(Ok(())) = tokio::time::timeout(PATIENCE, self.store.announce_controller(&self.url)).await
            {
                announced = Some(Instant::now());
            }
            match hub.role() {
                Role::Active { epoch: Some(epoch) } => {
                    // Others come and go seldom; what cannot be read now is read at the next renewal.
                    if let Ok(Ok(urls)) = tokio::time::timeout(PATIENCE, self.store.controllers()).await {
                        hub.set_controllers(urls);
                    }
                    renewed = self.keep(&hub, epoch, renewed).await;
                }
                _ => {
                    tokio::time::sleep(WATCH).await;
                    if let Some(at) = self.watch(&hub, &announcement).await {
                        renewed = at;
                    }
                }
            }
        }
    }

    /// Waits for the next renewal and makes it; returns when the lease was renewed last.
    async fn keep(&self, hub: &Rc<Hub>, epoch: u64, renewed: Instant) -> Instant {
        let end = renewed + (LEASE - MARGIN);
        tokio::time::sleep_until((renewed + RENEW).into()).await;
        loop {
            let begin = Instant::now();
            if begin >= end {
                break;
            }
            let attempt =
                tokio::time::timeout(PATIENCE.min(end - begin), self.store.renew_lease(&self.holder, epoch, LEASE));
            match attempt.await {
                Ok(Ok(true)) => return begin,
                Ok(Ok(false)) => {
                    // Somebody else has it, or may have it by now.
                    hub.step_down(Role::Standby { active: None });
                    return renewed;
                }
                Ok(Err(error)) => tracing::debug!(%error, "the lease was not renewed"),
                Err(_) => tracing::debug!("the lease was not renewed: the database does not answer"),
            }
            tokio::time::sleep(RETRY).await;
        }
        hub.step_down(Role::Cut);
        renewed
    }

    /// Looks whether this controller must become the active one. Returns when it did.
    async fn watch(&self, hub: &Rc<Hub>, announcement: &Announcement) -> Option<Instant> {
        let begin = Instant::now();
        let role = match tokio::time::timeout(PATIENCE, self.look()).await {
            Ok(Ok(role)) => role,
            // Nothing is known: things stay as they are.
            Ok(Err(_)) | Err(_) => return None,
        };
        let Role::Active { epoch: Some(epoch) } = role else {
            hub.stand_by(role);
            return None;
        };
        let prepared = tokio::time::timeout(LEASE - MARGIN, async {
            let store = self.store.fenced(epoch);
            // Nobody is connected to a controller that has just become the active one.
            store.reset_presence().await?;
            announcement.write(&store).await?;
            hub.catch_up().await
        });
        match prepared.await {
            Ok(Ok(())) => {
                hub.activate(epoch);
                Some(begin)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot become the active controller");
                self.release().await;
                None
            }
            Err(_) => None,
        }
    }

    /// Reads before it writes: a standby must not queue with the writers every second.
    async fn look(&self) -> Result<Role, StoreError> {
        match self.store.lease_holder().await? {
            Some(holder) if holder.holder != self.holder => Ok(Role::Standby { active: Some(holder.url) }),
            _ => self.ask().await,
        }
    }
}
