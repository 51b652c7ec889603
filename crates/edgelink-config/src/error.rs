//! Everything that can be wrong with a configuration, in words that say where and what to do.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file, and the line (from 1) where it is known.
    File(PathBuf, Option<usize>),
    /// An environment variable.
    Variable(String),
    /// The controller's database, or what is to be put there.
    Setting,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, Some(line)) => write!(f, "{}:{line}", path.display()),
            Self::File(path, None) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {}", shown(name)),
            Self::Setting => f.write_str("setting"),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file, or a variable that must hold JSON, is not JSON (with comments).
    #[error("{origin}: not valid JSON: {problem}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What the parser said.
        problem: String,
    },
    /// A key stands twice in one object.
    #[error("{origin}: `{}` is given twice", shown(key))]
    DuplicateKey {
        /// Where the second one is.
        origin: Origin,
        /// Full path.
        key: String,
    },
    /// There is no such key.
    #[error("{origin}: unknown key `{}`{}", shown(key), suggestion(nearest.as_deref()))]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// Full path, such as `builtin_relay.enabeld`.
        key: String,
        /// Full path of the known key that is most like it.
        nearest: Option<String>,
    },
    /// A key is missing from an object that needs it.
    #[error("{origin}: `{}` is missing", shown(key))]
    MissingKey {
        /// Where the object is.
        origin: Origin,
        /// Full path.
        key: String,
    },
    /// A value is of the wrong type, malformed or out of range.
    #[error("{origin}: `{}` must be {expected}, not {found}", shown(key))]
    WrongValue {
        /// Where.
        origin: Origin,
        /// Full path.
        key: String,
        /// What would be right, such as `true or false`.
        expected: String,
        /// What is there. Never a secret.
        found: String,
    },
    /// An `EDGELINK_…` variable that no EdgeLink program knows.
    #[error("unknown environment variable {}{}", shown(name), suggestion(nearest.as_deref()))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The known variable that is most like it.
        nearest: Option<String>,
    },
    /// The key exists and cannot be set in the database.
    #[error("setting: `{}` can only stand in the configuration file: {why}", shown(key))]
    NotInDatabase {
        /// Full path.
        key: String,
        /// The reason.
        why: &'static str,
    },
    /// The values are well-formed but cannot be used together, or not at all.
    #[error("configuration key `{key}`: {problem}")]
    Unusable {
        /// Full path.
        key: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// A key or name as a terminal or log may have it: control characters escaped.
fn shown(name: &str) -> Cow<'_, str> {
    if !name.chars().any(char::is_control) {
        return name.into();
    }
    name.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|known| format!("; did you mean `{known}`?")).unwrap_or_default()
}
