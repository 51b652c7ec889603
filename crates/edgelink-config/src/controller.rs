//! `edgelink-controller`'s configuration (specification §12.1, DESIGN §8).

use crate::error::ConfigError;
use crate::schema::section;
use crate::secrets;
use crate::stun::{self, Stun};
use crate::values::{Algorithm, DatabaseType, Hours, HttpPath, LogFilter, PublicUrls};
use crate::{Config, Env, Program, Tls};
use edgelink_api::Secret;
use ipnet::IpNet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

section! {
    /// The controller.
    pub struct ControllerConfig {
        /// Where the controller listens.
        listen: Listen = Listen::default();
        /// Certificate and key. Left out: the controller makes its own CA and certificate.
        /// null: plain HTTP, for a proxy in front that ends TLS.
        tls: Tls = Tls::OwnCertificate, eg r#"{ "cert": "/etc/edgelink/cert.pem", "key": "/etc/edgelink/key.pem" }"#;
        /// Where the controller keeps everything.
        database: Database = Database::default();
        /// How tokens are signed. Left out: EdDSA, with a key made by the controller and kept in its database.
        jwt: Option<ControllerJwt> = None, eg r#"{ "algorithm": "EdDSA" }"#;
        /// How long tokens live.
        tokens: Tokens = Tokens::default();
        /// Who is let in.
        security: Security = Security::default();
        /// The relay inside the controller.
        builtin_relay: BuiltinRelay = BuiltinRelay::default();
        /// The STUN server inside the controller; needs a real public address, no CDN.
        builtin_stun: Stun = Stun::default();
        /// Directory for database, CA and keys. Left out: /var/lib/edgelink/controller, or under the user's home.
        state_dir: Option<PathBuf> = None, eg r#""/var/lib/edgelink/controller""#;
        /// The URL (or list of URLs) at which nodes reach the controller; nodes sign its host when they
        /// authenticate. Left out: the host that they dial is believed.
        public_url: PublicUrls = PublicUrls::default(), eg r#""wss://controller.example.com""#;
        /// Networks of the proxies and CDNs whose X-Forwarded-For is believed.
        trusted_proxies: Vec<IpNet> = Vec::new(), eg r#"["10.0.0.0/8"]"#;
        /// How often nodes refresh their NAT mappings for direct paths, in seconds.
        keepalive_interval_seconds: u16 = 25, in 5..=120;
        /// What is logged: a level, or directives such as "edgelink_relay=debug,info".
        /// Left out: info, and only warnings of the database.
        log: Option<LogFilter> = None, eg r#""info""#;
    }
}

/// Keys whose new value is in force while the controller runs; the others need a restart.
pub(crate) const RUN_TIME: &[&str] = &[
    "tls.cert",
    "tls.key",
    "tokens.auth_expire_hours",
    "tokens.relay_expire_hours",
    "security.node_key_rotate_hours",
    "security.require_authorization",
    "security.require_route_approval",
    "trusted_proxies",
    "keepalive_interval_seconds",
    "log",
];

section! {
    /// `listen`.
    pub struct Listen {
        /// Address and port of HTTPS and WSS.
        http: SocketAddr = (Ipv4Addr::UNSPECIFIED, 443).into();
        /// Path of the nodes' control channel.
        ws_control: HttpPath = HttpPath::default_of("/ws/control");
        /// Path of the relays' control channel.
        ws_server: HttpPath = HttpPath::default_of("/ws/server");
        /// Unix socket of the REST API, for root and the controller's own user, without a login: `edgelink-ctl --socket`.
        /// A relative path is in the state directory. null: none.
        socket: Option<PathBuf> = Some("controller.sock".into());
    }
}

section! {
    /// `database`.
    pub struct Database {
        /// The kind of database: "sqlite" or "mariadb".
        kind("type"): DatabaseType = DatabaseType::Sqlite;
        /// SQLite's file. Left out: mesh.db in the state directory.
        path: Option<PathBuf> = None, eg r#""/var/lib/edgelink/controller/mesh.db""#;
        /// MariaDB's URL.
        url: Option<Secret> = None, eg r#""mysql://edgelink:PASSWORD@db.example.com/edgelink""#;
    }
}

section! {
    /// `jwt` of the controller.
    pub struct ControllerJwt {
        /// HS256's secret, at least 32 bytes: `openssl rand -base64 48`. Relays must have the same one.
        /// Left out: the controller makes one and keeps it in its database.
        secret: Option<Secret> = None;
        /// The signature: "EdDSA", "RS256" or "HS256". Left out: HS256 with a secret, EdDSA without.
        algorithm: Option<Algorithm> = None;
        /// File of the private key, PEM (PKCS#8), for RS256 or EdDSA. Left out: as with the secret.
        private_key: Option<PathBuf> = None;
    }
}

impl ControllerJwt {
    /// The algorithm that is meant.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm.unwrap_or(if self.secret.is_some() { Algorithm::Hs256 } else { Algorithm::EdDsa })
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let unusable = |key, problem: &str| Err(ConfigError::Unusable { key, problem: problem.into() });
        match (self.algorithm(), &self.secret) {
            (Algorithm::Hs256, Some(secret)) => secrets::check_jwt_secret("jwt.secret", secret)?,
            (Algorithm::Hs256, None) => {}
            (_, Some(_)) => {
                return unusable("jwt.secret", "only HS256 uses a secret; remove it or set `jwt.algorithm`");
            }
            (_, None) => return Ok(()),
        }
        if self.private_key.is_some() {
            return unusable("jwt.private_key", "HS256 uses `jwt.secret`, not a private key; remove one of them");
        }
        Ok(())
    }
}

section! {
    /// `tokens`.
    pub struct Tokens {
        /// Life of a node's auth_token, in hours; fractions are fine.
        auth_expire_hours: Hours = Hours(24.0), in Hours(1.0 / 60.0)..=Hours(8760.0);
        /// Life of a relay_token, in hours.
        relay_expire_hours: Hours = Hours(1.5), in Hours(1.0 / 60.0)..=Hours(8760.0);
    }
}

section! {
    /// `security`.
    pub struct Security {
        /// How often nodes change their node key, in hours: 10 seconds (0.0027) to 7 days.
        node_key_rotate_hours: Hours = Hours(24.0), in Hours(0.0027)..=Hours(168.0);
        /// New nodes wait for `edgelink-ctl node authorize`, unless their auth key approves them in advance.
        require_authorization: bool = true;
        /// Announced routes wait for `edgelink-ctl route enable`.
        require_route_approval: bool = true;
    }
}

section! {
    /// `builtin_relay`.
    pub struct BuiltinRelay {
        /// Whether it runs.
        enabled: bool = true;
        /// Path of the nodes' data channel.
        ws_data: HttpPath = HttpPath::default_of("/ws/data");
        /// Path of other relays' mesh channel.
        ws_mesh: HttpPath = HttpPath::default_of("/ws/mesh");
        /// Certificates to trust when other relays are dialled, PEM. Left out: the system's.
        ca_file: Option<PathBuf> = None, eg r#""/etc/edgelink/relays-ca.pem""#;
        /// Whether other relays may be at loopback or link-local addresses, for tests on one host.
        allow_local_addresses: bool = false;
    }
}

impl ControllerConfig {
    /// Takes over of `new` what can change while the controller runs.
    pub fn take_run_time(&mut self, new: &Self) {
        if let (Tls::Files(_), Tls::Files(_)) = (&self.tls, &new.tls) {
            self.tls = new.tls.clone();
        }
        self.tokens = new.tokens.clone();
        self.security = new.security.clone();
        self.trusted_proxies = new.trusted_proxies.clone();
        self.keepalive_interval_seconds = new.keepalive_interval_seconds;
        self.log = new.log.clone();
    }

    /// `state_dir`, or the default one.
    pub fn state_dir(&self, env: &Env, root: bool) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| crate::default_controller_state_dir(env, root))
    }

    /// The Unix socket of the REST API, if there is to be one.
    pub fn socket_path(&self, state_dir: &Path) -> Option<PathBuf> {
        self.listen.socket.as_ref().map(|socket| state_dir.join(socket))
    }

    /// SQLite's file.
    pub fn database_path(&self, env: &Env, root: bool) -> PathBuf {
        self.database.path.clone().unwrap_or_else(|| self.state_dir(env, root).join("mesh.db"))
    }
}

impl Config for ControllerConfig {
    const PROGRAM: Program = Program::Controller;

    fn validate(&self) -> Result<Vec<String>, ConfigError> {
        self.tls.validate("tls")?;
        match (self.database.kind, &self.database.url) {
            (DatabaseType::MariaDb, None) => {
                let problem = "MariaDB needs its URL, such as mysql://edgelink:PASSWORD@HOST/edgelink";
                return Err(ConfigError::Unusable { key: "database.url", problem: problem.into() });
            }
            (DatabaseType::Sqlite, Some(_)) => {
                let problem = "SQLite has a `path`, not a `url`; set `database.type` to \"mariadb\" or remove it";
                return Err(ConfigError::Unusable { key: "database.url", problem: problem.into() });
            }
            _ => {}
        }
        if let Some(jwt) = &self.jwt {
            jwt.validate()?;
        }
        let paths =
            [&self.listen.ws_control, &self.listen.ws_server, &self.builtin_relay.ws_data, &self.builtin_relay.ws_mesh];
        if paths.iter().enumerate().any(|(i, path)| paths.iter().skip(i + 1).any(|other| other == path)) {
            let problem = "ws_control, ws_server, ws_data and ws_mesh must differ from each other";
            return Err(ConfigError::Unusable { key: "listen", problem: problem.into() });
        }
        stun::validate(&self.builtin_stun, "builtin_stun")
    }
}
