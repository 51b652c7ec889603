//! The JSON that EdgeLink speaks to people's scripts: the daemon's local socket ([`local`]) and the REST rows ([`rest`]).
//!
//! Types only: no I/O, no clock, no database rows, no core state.
#![forbid(unsafe_code)]

pub mod local;
pub mod rest;

use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::Zeroizing;

/// A string that is a secret: never printed by `Debug`, wiped when dropped, plain in JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `secret`.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(Zeroizing::new(secret.into()))
    }

    /// The secret itself. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}
