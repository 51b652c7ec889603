//! Hot reload: the configuration is read again on SIGHUP and when a file of it changes. A new one that is not good is
//! refused as a whole, and the old one stays in force. [`Files`] and [`tell`] also serve the controller.

use crate::tls_from_files;
use anyhow::Result;
use edgelink_config::{Changed, Config as _, Env, ServerConfig, Takes, Tls};
use ipnet::IpNet;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::Signal;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Files are looked at this often: a change is noticed within twice that. Editors and certificate tools replace files by
/// renaming others over them, which a look at the name sees and a watch of the file does not.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

type Signatures = BTreeMap<PathBuf, Option<(SystemTime, u64, u64)>>;

/// Watches files.
pub struct Files {
    names: Vec<PathBuf>,
    known: Signatures,
    /// A file that is being written has another length at the next look.
    pending: Option<Signatures>,
    look: Interval,
}

impl Files {
    /// As they are now. Must be called inside a runtime.
    pub fn new(names: Vec<PathBuf>) -> Self {
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { known: signatures(&names), names, pending: None, look }
    }

    /// To be called before the files are read: what changes from now on counts.
    pub fn about_to_read(&mut self) {
        (self.known, self.pending) = (signatures(&self.names), None);
    }

    /// Watches these from now on.
    pub fn set(&mut self, names: Vec<PathBuf>) {
        let known = |file: &PathBuf| self.known.get(file).copied().unwrap_or_else(|| signature(file));
        self.known = names.iter().map(|file| (file.clone(), known(file))).collect();
        self.names = names;
    }

    /// Resolves when one has changed, and has been left alone since. May be dropped at any time.
    pub async fn changed(&mut self) {
        loop {
            self.look.tick().await;
            let seen = signatures(&self.names);
            if seen == self.known {
                self.pending = None;
            } else if self.pending.replace(seen.clone()).as_ref() == Some(&seen) {
                return;
            }
        }
    }
}

fn signatures(files: &[PathBuf]) -> Signatures {
    files.iter().map(|file| (file.clone(), signature(file))).collect()
}

/// When it was changed, its length, and which file it is; `None` when it is not there.
fn signature(file: &Path) -> Option<(SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.modified().ok()?, meta.len(), meta.ino()))
}

/// Logs what a reload has changed, and what it could not.
pub fn tell(why: &str, changes: &[Changed]) {
    let named = |takes| changes.iter().filter(move |c| c.takes == takes).map(ToString::to_string).collect::<Vec<_>>();
    let (now, later) = (named(Takes::Now), named(Takes::Restart));
    match now.as_slice() {
        [] => tracing::info!("{why}: configuration and certificate read again; nothing changed at run time"),
        now => tracing::info!("{why}: configuration changed: {}", now.join(", ")),
    }
    if !later.is_empty() {
        tracing::warn!("in force only after a restart: {}", later.join(", "));
    }
}

/// What a reload of the stand-alone server changes.
pub(crate) struct Reloader {
    pub(crate) file: Option<PathBuf>,
    pub(crate) env: Env,
    /// In force.
    pub(crate) running: ServerConfig,
    /// What new connections get; `None`: plain HTTP.
    pub(crate) certificate: Rc<RefCell<Option<Arc<rustls::ServerConfig>>>>,
    pub(crate) trusted_proxies: Rc<RefCell<Vec<IpNet>>>,
}

impl Reloader {
    /// Reloads whenever there is a reason, for ever.
    pub(crate) async fn run(mut self, mut hangup: Signal) {
        let mut files = Files::new(self.files());
        loop {
            let why = tokio::select! {
                _ = hangup.recv() => "SIGHUP",
                () = files.changed() => "a file changed",
            };
            files.about_to_read();
            if let Err(error) = self.reload(why) {
                tracing::error!("{why}: the new configuration is refused, the old one stays in force: {error:#}");
            }
            files.set(self.files());
        }
    }

    fn reload(&mut self, why: &str) -> Result<()> {
        let new: ServerConfig = edgelink_config::load(self.file.as_deref(), &self.env)?;
        for warning in new.validate()? {
            tracing::warn!("{warning}");
        }
        let changes = self.running.changes(&new);
        let mut next = self.running.clone();
        next.take_run_time(&new);
        // What can fail comes before everything that changes something.
        let tls = match &next.relay.tls {
            Tls::Files(files) if next.relay.enabled => Some(tls_from_files(files)?),
            _ => None,
        };
        if let Some(tls) = tls {
            *self.certificate.borrow_mut() = Some(tls);
        }
        self.trusted_proxies.replace(next.relay.trusted_proxies.clone());
        self.running = next;
        tell(why, &changes);
        Ok(())
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.file.iter().cloned().collect();
        if let Tls::Files(tls) = &self.running.relay.tls {
            files.extend([tls.cert.clone(), tls.key.clone()]);
        }
        files
    }
}
