//! `tls`: absent, `null`, or a pair of files.

use crate::error::ConfigError;
use crate::schema::{Context, Field, Kind, Section, section};
use serde_json::Value;
use std::path::PathBuf;

/// How a listener does TLS.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Tls {
    /// Key absent: a certificate of the program's own making, kept in its state directory.
    #[default]
    OwnCertificate,
    /// `null`: plain HTTP, since a proxy in front ends TLS.
    Plain,
    /// Certificate and key from files.
    Files(TlsFiles),
}

section! {
    /// Certificate chain and private key, PEM.
    pub struct TlsFiles {
        /// Certificate chain, PEM, the server's own first.
        cert: PathBuf = PathBuf::new();
        /// Private key, PEM (PKCS#8, SEC1 or PKCS#1).
        key: PathBuf = PathBuf::new();
    }
}

impl Field for Tls {
    const KIND: Kind = Kind::Section(TlsFiles::KEYS);

    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
        if value.is_null() { Ok(Self::Plain) } else { TlsFiles::read(value, cx, path).map(Self::Files) }
    }

    fn apply(&mut self, value: &Value, cx: &Context<'_>, path: &str) -> Result<(), ConfigError> {
        match self {
            Self::Files(files) if !value.is_null() => files.apply(value, cx, path),
            _ => Self::read(value, cx, path).map(|read| *self = read),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::OwnCertificate | Self::Plain => Value::Null,
            Self::Files(files) => files.to_json(),
        }
    }
}

impl Tls {
    /// Both files or none.
    pub(crate) fn validate(&self, key: &'static str) -> Result<(), ConfigError> {
        match self {
            Self::Files(files) if files.cert.as_os_str().is_empty() || files.key.as_os_str().is_empty() => {
                let problem = "`cert` and `key` are both needed (null: plain HTTP behind a proxy; leave `tls` out: \
                               a certificate of its own)";
                Err(ConfigError::Unusable { key, problem: problem.into() })
            }
            _ => Ok(()),
        }
    }
}
