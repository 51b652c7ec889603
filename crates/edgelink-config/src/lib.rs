//! EdgeLink's configuration files (specification §12, DESIGN §8): JSON with comments, checked strictly, every key
//! overridable by an environment variable.
//!
//! ```
//! use edgelink_config::{ClientConfig, Config, Env, load};
//!
//! let env = Env::new([("EDGELINK_TUN__MTU", "1380")]);
//! let config: ClientConfig = load(None, &env)?;
//! let warnings = config.validate()?;
//! assert_eq!(config.tun.mtu, 1380);
//! # assert!(warnings.is_empty());
//! # Ok::<(), edgelink_config::ConfigError>(())
//! ```
//!
//! Precedence: built-in defaults < file < (controller: settings in its database) < environment < command-line flags (which
//! the shells apply). Reading checks
//! each value by itself; [`Config::validate`] checks what belongs together and refuses placeholder secrets.
#![forbid(unsafe_code)]

mod client;
mod controller;
mod document;
mod env;
mod error;
mod nearest;
mod networks;
mod paths;
mod schema;
mod secrets;
mod server;
mod settings;
mod starter;
mod stun;
mod tls;
mod values;

pub use client::{
    AdvertisedRoute, ClientConfig, GatewayMode, P2p, RelaySection, RouteChoice, RoutesSection, TunSection,
};
pub use controller::{BuiltinRelay, ControllerConfig, ControllerJwt, Database, Listen, Security, Tokens};
pub use edgelink_api::Secret;
pub use env::Env;
pub use error::{ConfigError, Origin};
pub use networks::{NetworkConfig, is_network_label};
pub use paths::{
    DEFAULT_SOCKET, default_client_state_dir, default_controller_state_dir, default_server_state_dir, socket_path,
};
pub use secrets::{MAKE_PSK, MAKE_SECRET, MIN_JWT_SECRET, is_placeholder, parse_psk};
pub use server::{Mesh, RelayListener, ServerConfig, ServerController, ServerJwt};
pub use settings::{Changed, Setting, SettingInfo, Settings, Takes, hidden_by_environment, load_controller};
pub use starter::starter;
pub use stun::Stun;
pub use tls::{Tls, TlsFiles};
pub use values::{
    Algorithm, DatabaseType, Headers, Hours, HttpPath, InterfaceName, LogFilter, Pin, ProxyUrl, PublicUrls, Seconds,
    SessionCipher, Trust, WsUrl,
};

use schema::{Context, Field, Key, Section, Source};
use std::path::Path;

/// A program's whole configuration. `default()` is what it does without a file.
#[expect(private_bounds, reason = "only this crate's three configurations implement it")]
pub trait Config: Default + Field {
    /// Whose configuration this is.
    const PROGRAM: Program;

    /// Checks what a single value cannot tell; returns warnings for the operator.
    ///
    /// # Errors
    /// [`ConfigError::Unusable`] for values that cannot be used together, and for placeholder secrets.
    fn validate(&self) -> Result<Vec<String>, ConfigError>;
}

/// The programs that have a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `edgelink-controller`.
    Controller,
    /// `edgelink-server`.
    Server,
    /// `edgelink`.
    Client,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Controller, Self::Server, Self::Client];

    /// The name of its binary.
    pub fn binary(self) -> &'static str {
        match self {
            Self::Controller => "edgelink-controller",
            Self::Server => "edgelink-server",
            Self::Client => "edgelink",
        }
    }

    fn schema(self) -> &'static [Key] {
        match self {
            Self::Controller => ControllerConfig::KEYS,
            Self::Server => ServerConfig::KEYS,
            Self::Client => ClientConfig::KEYS,
        }
    }

    /// Every environment variable that overrides one of its keys.
    pub fn variables(self) -> Vec<String> {
        let mut all = Vec::new();
        env::collect(self.schema(), &mut Vec::new(), &mut all);
        all
    }
}

/// Reads `path` (without one: the defaults) and applies the environment.
///
/// # Errors
/// Names the file and line or the variable, the full key path, and what would be right.
pub fn load<T: Config>(path: Option<&Path>, env: &Env) -> Result<T, ConfigError> {
    let mut config = load_file(path, env)?;
    apply_env(&mut config, env)?;
    Ok(config)
}

/// [`load`] for a text that was read already; `file` only names it.
///
/// # Errors
/// As [`load`].
pub fn parse<T: Config>(file: &Path, text: &str, env: &Env) -> Result<T, ConfigError> {
    let mut config = parse_file(file, text, env)?;
    apply_env(&mut config, env)?;
    Ok(config)
}

fn load_file<T: Config>(path: Option<&Path>, env: &Env) -> Result<T, ConfigError> {
    let Some(file) = path else { return parse_file(Path::new("(no file)"), "", env) };
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    parse_file(file, &text, env)
}

fn parse_file<T: Config>(file: &Path, text: &str, env: &Env) -> Result<T, ConfigError> {
    let (schema, home) = (T::PROGRAM.schema(), env.home());
    let document = document::parse_file(file, text)?;
    let mut config = T::default();
    config.apply(&document.value, &Context { source: Source::File(file, &document.lines), schema, home }, "")?;
    Ok(config)
}

fn apply_env<T: Config>(config: &mut T, env: &Env) -> Result<(), ConfigError> {
    let (schema, home) = (T::PROGRAM.schema(), env.home());
    for (name, value) in env.overrides(T::PROGRAM)? {
        config.apply(&value, &Context { source: Source::Variable(name), schema, home }, "")?;
    }
    Ok(())
}
