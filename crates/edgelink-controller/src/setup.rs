//! From a configuration to a controller that is ready to serve: directory, database, keys, certificate, records.

use crate::os_rng;
use anyhow::{Context as _, Result};
use edgelink_auth::auth_key;
use edgelink_auth::token::{Algorithm, Issuer, TokenKeys};
use edgelink_config::{BuiltinRelay, ControllerConfig, DatabaseType, Env, Tls, TlsFiles};
use edgelink_control::{ControlConfig, NodeSettings};
use edgelink_model::NetworkId;
use edgelink_model::records::{ServerKind, ServerRecord};
use edgelink_net::tls::{self, Pin};
use edgelink_os::{files, host};
use edgelink_server::certificate::{self, CaFiles, OwnCertificate};
use edgelink_server::dialler::MeshDialler;
use edgelink_server::stun::StunShell;
use edgelink_store::{Location, MariaDbUrl, NewAuthKey, SHARED_CA, Store, StoreError, TOKEN_KEYS};
use nix::fcntl::{Flock, FlockArg};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the key of the join command that the first start prints is valid.
const FIRST_KEY_LIFETIME: Duration = Duration::from_secs(3600);

/// The state directory and the database in it.
pub(crate) struct State {
    pub(crate) dir: PathBuf,
    pub(crate) store: Store,
    _lock: Flock<File>,
}

impl State {
    /// Makes what is missing.
    pub(crate) async fn open(config: &ControllerConfig, env: &Env) -> Result<Self> {
        let root = nix::unistd::geteuid().is_root();
        let dir = config.state_dir(env, root);
        files::create_private_dir(&dir)?;
        let lock = lock(&dir)?;
        let store = match database(config, env, root)? {
            Location::Sqlite(path) => {
                if let Some(parent) = path.parent() {
                    files::create_private_dir(parent)?;
                }
                Store::open(&path, true).await?
            }
            Location::MariaDb(url) => Store::open_mariadb(&url, Some(&dir)).await?,
        };
        Ok(Self { dir, store, _lock: lock })
    }
}

fn database(config: &ControllerConfig, env: &Env, root: bool) -> Result<Location> {
    match (config.database.kind, &config.database.url) {
        (DatabaseType::MariaDb, Some(url)) => {
            Ok(Location::MariaDb(MariaDbUrl::parse(url.expose()).context("`database.url`")?))
        }
        _ => Ok(config.database_path(env, root).into()),
    }
}

/// Two controllers on one directory would each tell half of the nodes that the other half is offline.
fn lock(dir: &Path) -> Result<Flock<File>> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow::anyhow!(
            "another edgelink-controller uses {}: stop it, or give this one a directory of its own with --state-dir",
            dir.display()
        )
    })
}

/// The keys that tokens are made with: configured ones, or ones kept in the database.
pub(crate) async fn issuer(config: &ControllerConfig, store: &Store) -> Result<Issuer> {
    let kept =
        store.setting_or_insert_with(TOKEN_KEYS, || TokenKeys::generate(&mut os_rng()).serialise().to_string()).await?;
    let keys = TokenKeys::deserialise(&kept).context("the token keys in the database are damaged; restore a backup")?;
    let Some(jwt) = &config.jwt else { return Ok(Issuer::new(&keys)) };
    let keys = match jwt.algorithm() {
        edgelink_config::Algorithm::Hs256 => keys.with_hs256(jwt.secret.as_ref().map(|s| s.expose()))?,
        edgelink_config::Algorithm::Rs256 => {
            let path = jwt.private_key.as_ref().context(
                "RS256 needs jwt.private_key; make one: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072",
            )?;
            keys.with_rs256(&files::read_private(path)?)?
        }
        edgelink_config::Algorithm::EdDsa => keys,
    };
    Ok(Issuer::new(&keys))
}

/// The CA that all controllers of a database use: nodes pin one public key. The first controller's becomes everybody's.
pub(crate) async fn share_ca(dir: &Path, store: &Store) -> Result<()> {
    let own = certificate::ca(dir, SystemTime::now())?;
    let as_json = |ca: &CaFiles| serde_json::json!({ "certificate": ca.certificate, "key": ca.key }).to_string();
    let kept = store.setting_or_insert_with(SHARED_CA, || as_json(&own)).await?;
    let damaged = "the CA in the database is damaged; restore a backup";
    let kept: serde_json::Value = serde_json::from_str(&kept).ok().context(damaged)?;
    let text = |key: &str| kept.get(key).and_then(|v| v.as_str()).map(str::to_owned).context(damaged);
    let kept = CaFiles { certificate: text("certificate")?, key: text("key")? };
    if kept != own {
        tracing::info!("the CA of this installation is taken from its database");
        certificate::replace_ca(dir, &kept)?;
    }
    Ok(())
}

/// What the active controller says of itself in the database.
pub(crate) struct Announcement {
    /// In force: a reload may have changed it since the start.
    pub(crate) config: Rc<RefCell<ControllerConfig>>,
    pub(crate) stun: Option<Rc<StunShell>>,
}

impl Announcement {
    /// Writes it; of several controllers only the active one does.
    pub(crate) async fn write(&self, store: &Store) -> Result<(), StoreError> {
        let config = self.config.borrow().clone();
        store.set_revocation_lifetime(longest_token_life(&config)).await?;
        let record = builtin_record(store).await?;
        let wanted = builtin_wanted(&config, &record, self.stun.as_deref());
        if wanted == record { Ok(()) } else { store.update_server(&wanted).await }
    }
}

/// Names under which this controller may be dialled, and its certificate.
pub(crate) struct Identity {
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// Names in the certificate of our own making, or in `public_url`.
    pub(crate) hosts: BTreeSet<String>,
    /// What nodes are told to pin; only with our own CA.
    pub(crate) pin: Option<Pin>,
    /// `wss://HOST[:PORT]` to print.
    pub(crate) url: String,
}

/// Prepares TLS and finds out how the controller is called.
pub(crate) fn identity(config: &ControllerConfig, dir: &Path, port: u16, addresses: &[IpAddr]) -> Result<Identity> {
    let best = addresses.first().copied();
    let public: BTreeSet<String> = config.public_url.0.iter().map(|u| bare(u.host())).collect();
    let url = match (config.public_url.0.first(), best) {
        (Some(url), _) => url.origin(),
        (None, address) => {
            let host = match address {
                Some(IpAddr::V6(v6)) => format!("[{v6}]"),
                Some(v4) => v4.to_string(),
                None => "localhost".to_owned(),
            };
            let scheme = if config.tls == Tls::Plain { "ws" } else { "wss" };
            let standard = if config.tls == Tls::Plain { 80 } else { 443 };
            if port == standard { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
        }
    };
    match &config.tls {
        Tls::OwnCertificate => {
            let mut names = public.clone();
            names.extend(addresses.iter().map(ToString::to_string));
            names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
            let hostname = host::hostname().to_ascii_lowercase();
            if hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') && !hostname.is_empty() {
                names.insert(hostname);
            }
            let OwnCertificate { chain, key, pin } = certificate::own(dir, &names, SystemTime::now())?;
            let tls = tls::server_config(chain.as_bytes(), key.as_bytes())?;
            Ok(Identity { tls: Some(tls), hosts: names, pin: Some(pin), url })
        }
        Tls::Plain => Ok(Identity { tls: None, hosts: public, pin: None, url }),
        Tls::Files(files) => Ok(Identity { tls: Some(tls_from_files(files)?), hosts: public, pin: None, url }),
    }
}

/// Certificate chain and key, read and checked together.
pub(crate) fn tls_from_files(files: &TlsFiles) -> Result<Arc<rustls::ServerConfig>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(tls::server_config(&read(&files.cert)?, &read(&files.key)?)?)
}

/// The core's settings from the configuration.
pub(crate) fn control_config(config: &ControllerConfig, hosts: BTreeSet<String>) -> ControlConfig {
    let rotate = config.security.node_key_rotate_hours.duration().as_secs();
    ControlConfig {
        hosts,
        require_authorization: config.security.require_authorization,
        require_route_approval: config.security.require_route_approval,
        auth_token_lifetime: config.tokens.auth_expire_hours.duration(),
        relay_token_lifetime: config.tokens.relay_expire_hours.duration(),
        settings: NodeSettings {
            node_key_rotate_secs: u32::try_from(rotate).unwrap_or(u32::MAX),
            keepalive_secs: config.keepalive_interval_seconds.into(),
            builtin_relay_path: config.builtin_relay.enabled.then(|| config.builtin_relay.ws_data.as_str().to_owned()),
            controllers: config.public_url.0.iter().map(edgelink_config::WsUrl::origin).collect(),
            ..ControlConfig::default().settings
        },
        builtin_mesh_path: config.builtin_relay.enabled.then(|| config.builtin_relay.ws_mesh.as_str().to_owned()),
        ..ControlConfig::default()
    }
}

/// How the built-in relay reaches other relays.
pub(crate) fn mesh_dialler(config: &ControllerConfig) -> Result<MeshDialler> {
    let BuiltinRelay { ca_file, allow_local_addresses, .. } = &config.builtin_relay;
    MeshDialler::new(ca_file.clone(), config.tls == Tls::Plain, *allow_local_addresses)
}

/// How long a token can be honoured at most: its lifetime, the grace of a relay that has lost its controller (DESIGN §3),
/// and clock leeway. Revocations are kept as long.
pub(crate) fn longest_token_life(config: &ControllerConfig) -> Duration {
    const GRACE: Duration = Duration::from_secs(24 * 3600);
    const LEEWAY: Duration = Duration::from_secs(3600);
    let relay = config.tokens.relay_expire_hours.duration() + GRACE;
    config.tokens.auth_expire_hours.duration().max(relay) + LEEWAY
}

/// Brings the built-in server's record in line with what runs, and returns it.
pub(crate) async fn builtin_server(
    config: &ControllerConfig,
    store: &Store,
    stun: Option<&StunShell>,
) -> Result<ServerRecord> {
    let record = builtin_record(store).await?;
    let wanted = builtin_wanted(config, &record, stun);
    if wanted != record {
        store.update_server(&wanted).await?;
    }
    Ok(wanted)
}

/// The built-in server's record as it is.
pub(crate) async fn builtin_record(store: &Store) -> Result<ServerRecord, StoreError> {
    let found = store.servers().await?.into_iter().map(|s| s.record).find(|r| r.kind == ServerKind::Builtin);
    found.ok_or_else(|| StoreError::Corrupt("it has no built-in server; restore a backup".into()))
}

fn builtin_wanted(config: &ControllerConfig, record: &ServerRecord, stun: Option<&StunShell>) -> ServerRecord {
    let addresses = stun.map(|stun| stun.addresses());
    ServerRecord {
        relay: config.builtin_relay.enabled,
        stun: stun.is_some(),
        stun_ip: addresses.map(|at| at.ip),
        stun_ip2: addresses.and_then(|at| at.other_ip),
        stun_port: addresses.map_or(record.stun_port, |at| at.ports[0]),
        ..record.clone()
    }
}

/// A pre-auth key for the very first nodes, when nobody has joined and no key was ever made; `None` later.
pub(crate) async fn first_auth_key(store: &Store) -> Result<Option<String>> {
    if store.counts().await?.nodes > 0 || !store.auth_keys().await?.is_empty() {
        return Ok(None);
    }
    let key = auth_key::generate(&mut os_rng());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let expires = now + FIRST_KEY_LIFETIME;
    let new = NewAuthKey {
        key_hash: auth_key::hash(&key),
        network_id: NetworkId(1),
        reusable: true,
        preauthorized: true,
        approve_routes: false,
        expires_at: Some(u64::try_from(expires.as_millis()).unwrap_or(u64::MAX)),
    };
    store.create_auth_key(new).await?;
    Ok(Some(key.to_string()))
}

/// The algorithm's name, for the log.
pub(crate) fn algorithm_name(issuer: &Issuer) -> &'static str {
    match issuer.algorithm() {
        Algorithm::EdDsa => "EdDSA",
        Algorithm::Hs256 => "HS256",
        Algorithm::Rs256 => "RS256",
    }
}

/// A host without the brackets of IPv6, as clients sign it.
fn bare(host: &str) -> String {
    host.trim_matches(['[', ']']).to_ascii_lowercase()
}
