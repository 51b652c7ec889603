//! Hot reload: the configuration is read again on SIGHUP, when a file of it changes, and when a setting in the database
//! does (DESIGN §4). A new one that is not good is refused as a whole, and the old one stays in force.

use crate::http::Front;
use crate::hub::Hub;
use crate::{LogHandle, RunArgs, setup};
use anyhow::{Context as _, Result};
use edgelink_config::{ControllerConfig, Env, Tls, hidden_by_environment, load_controller};
use edgelink_server::reload::{Files, tell};
use edgelink_store::Store;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

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
        let mut files = Files::new(self.files());
        loop {
            let why = tokio::select! {
                _ = hangup.recv() => "SIGHUP",
                () = self.hub.settings_changed() => "a setting changed",
                () = files.changed() => "a file changed",
            };
            files.about_to_read();
            self.reload(why).await;
            files.set(self.files());
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

        tell(why, &changes);
        Ok(())
    }

    /// The files that a change is looked for in.
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.args.config.iter().cloned().collect();
        if let Tls::Files(tls) = &self.running.borrow().tls {
            files.extend([tls.cert.clone(), tls.key.clone()]);
        }
        files
    }
}
