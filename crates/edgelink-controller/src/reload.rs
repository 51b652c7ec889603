//! Hot reload: the configuration is read again on SIGHUP, when a file of it changes, and when a setting in the database
//! does (DESIGN §4). A new one that is not good is refused as a whole, and the old one stays in force.

use crate::http::Front;
use crate::hub::Hub;
use crate::{LogHandle, RunArgs, setup};
use anyhow::{Context as _, Result};
use edgelink_config::{ControllerConfig, Env, Takes, Tls, hidden_by_environment, load_controller};
use edgelink_store::Store;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{SignalKind, signal};

/// Files are looked at this often: a change is noticed within twice that. Editors and certificate tools replace files by
/// renaming others over them, which a look at the name sees and a watch of the file does not.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Reads the configuration as the controller would at its start.
pub(crate) async fn read(args: &RunArgs, env: &Env, store: &Store) -> Result<ControllerConfig> {
    let settings = store.configuration().await?;
    let (mut config, warnings) = load_controller(args.config.as_deref(), &settings, env)?;
    for (key, variable) in hidden_by_environment(&settings, env) {
        tracing::warn!("the setting {key} is without effect: the environment variable {variable} outranks it");
    }
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    args.outrank(&mut config);
    Ok(config)
}

/// The certificate that new connections get; replaced while old ones go on.
pub(crate) type Certificate = Rc<RefCell<Option<Arc<rustls::ServerConfig>>>>;

/// What a reload changes.
pub(crate) struct Reloader {
    pub(crate) args: RunArgs,
    pub(crate) env: Env,
    pub(crate) store: Store,
    pub(crate) hub: Rc<Hub>,
    pub(crate) front: Rc<Front>,
    pub(crate) certificate: Certificate,
    /// Names under which the controller may be dialled.
    pub(crate) hosts: BTreeSet<String>,
    pub(crate) log: LogHandle,
    /// In force.
    pub(crate) running: Rc<RefCell<ControllerConfig>>,
}

impl Reloader {
    /// Reloads whenever there is a reason, for ever.
    pub(crate) async fn run(self) -> Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut known = self.signatures();
        // A file that is being written has another length at the next look.
        let mut pending: Option<Signatures> = None;
        loop {
            tokio::select! {
                _ = hangup.recv() => self.reload("SIGHUP").await,
                () = self.hub.settings_changed() => self.reload("a setting changed").await,
                _ = look.tick() => {
                    let seen = self.signatures();
                    if seen == known {
                        pending = None;
                    } else if pending.replace(seen.clone()).as_ref() == Some(&seen) {
                        self.reload("a file changed").await;
                        pending = None;
                        known = self.signatures();
                    }
                    continue;
                }
            }
            (known, pending) = (self.signatures(), None);
        }
    }

    async fn reload(&self, why: &str) {
        match self.try_reload(why).await {
            Ok(()) => {}
            Err(error) => {
                tracing::error!("{why}: the new configuration is refused, the old one stays in force: {error:#}");
            }
        }
    }

    async fn try_reload(&self, why: &str) -> Result<()> {
        let new = read(&self.args, &self.env, &self.store).await?;
        let changes = self.running.borrow().changes(&new);
        let mut next = self.running.borrow().clone();
        next.take_run_time(&new);
        // Everything that can fail comes before everything that changes something.
        let tls = match &next.tls {
            Tls::Files(files) => Some(setup::tls_from_files(files)?),
            Tls::OwnCertificate | Tls::Plain => None,
        };
        let filter = crate::log_filter(&next)?;
        self.store.set_revocation_lifetime(setup::longest_token_life(&next)).await?;

        if let Some(tls) = tls {
            *self.certificate.borrow_mut() = Some(tls);
        }
        self.log.reload(filter).context("the log filter cannot be changed")?;
        self.front.trusted_proxies.replace(next.trusted_proxies.clone());
        self.hub.reconfigure(setup::control_config(&next, self.hosts.clone()));
        *self.running.borrow_mut() = next;

        let named =
            |takes| changes.iter().filter(move |c| c.takes == takes).map(ToString::to_string).collect::<Vec<_>>();
        let (now, later) = (named(Takes::Now), named(Takes::Restart));
        match now.as_slice() {
            [] => tracing::info!("{why}: configuration and certificate read again; nothing changed at run time"),
            now => tracing::info!("{why}: configuration changed: {}", now.join(", ")),
        }
        if !later.is_empty() {
            tracing::warn!("in force only after a restart: {}", later.join(", "));
        }
        Ok(())
    }

    /// The files that a change is looked for in, as they are now.
    fn signatures(&self) -> Signatures {
        let mut files: Vec<PathBuf> = self.args.config.iter().cloned().collect();
        if let Tls::Files(tls) = &self.running.borrow().tls {
            files.extend([tls.cert.clone(), tls.key.clone()]);
        }
        files.into_iter().map(|file| (file.clone(), signature(&file))).collect()
    }
}

type Signatures = BTreeMap<PathBuf, Option<(SystemTime, u64, u64)>>;

/// When it was changed, its length, and which file it is; `None` when it is not there.
fn signature(file: &Path) -> Option<(SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}
