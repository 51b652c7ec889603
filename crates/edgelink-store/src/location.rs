//! Where a database is, and how that is shown: never with the password.

use crate::error::StoreError;
use sqlx::mysql::MySqlConnectOptions;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// An SQLite file.
    Sqlite(PathBuf),
    /// A database of a MariaDB server.
    MariaDb(MariaDbUrl),
}

impl Location {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path) => Some(path),
            Self::MariaDb(_) => None,
        }
    }

    /// Whether several controllers may share it.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::MariaDb(_))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => path.display().fmt(f),
            Self::MariaDb(url) => url.fmt(f),
        }
    }
}

impl<P: Into<PathBuf>> From<P> for Location {
    fn from(path: P) -> Self {
        Self::Sqlite(path.into())
    }
}

/// `mysql://USER[:PASSWORD]@HOST[:PORT]/DATABASE[?socket=PATH][&ssl-mode=…][&ssl-ca=FILE]`, or `mariadb://…`.
///
/// It holds a password: neither `Debug` nor `Display` shows it.
#[derive(Clone)]
pub struct MariaDbUrl {
    // Behind a pointer: errors carry it.
    options: Arc<MySqlConnectOptions>,
    /// Without the password and the query.
    shown: Arc<str>,
    url: Arc<str>,
}

impl MariaDbUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`StoreError::Invalid`], which does not repeat the URL.
    pub fn parse(url: &str) -> Result<Self, StoreError> {
        let refuse = |problem: &str| {
            StoreError::Invalid(format!(
                "the database URL {problem}; write mysql://USER:PASSWORD@HOST/DATABASE, special characters in the \
                 password as %XX"
            ))
        };
        let Some(rest) = ["mysql://", "mariadb://"].iter().find_map(|scheme| url.strip_prefix(scheme)) else {
            return Err(refuse("must begin with mysql://"));
        };
        let options = MySqlConnectOptions::from_str(&format!("mysql://{rest}")).map_err(|_| refuse("is malformed"))?;
        let Some(database) = options.get_database().filter(|name| !name.is_empty()) else {
            return Err(refuse("names no database"));
        };
        let place = match options.get_socket() {
            Some(socket) => format!("localhost/{database} at {}", socket.display()),
            None if options.get_port() == 3306 => format!("{}/{database}", options.get_host()),
            None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
        };
        let shown = format!("mysql://{}@{place}", options.get_username());
        Ok(Self { options: Arc::new(options), shown: shown.into(), url: url.into() })
    }

    pub(crate) fn options(&self) -> MySqlConnectOptions {
        MySqlConnectOptions::clone(&self.options)
    }
}

impl PartialEq for MariaDbUrl {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for MariaDbUrl {}

impl fmt::Display for MariaDbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for MariaDbUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, shown) in [
            ("mysql://el:s%40cret@db.example.com/edgelink", "mysql://el@db.example.com/edgelink"),
            ("mariadb://el:s%40cret@[::1]:3307/el?ssl-mode=REQUIRED", "mysql://el@[::1]:3307/el"),
            ("mysql://el:s%40cret@localhost/el?socket=/run/my.sock", "mysql://el@localhost/el at /run/my.sock"),
        ] {
            let parsed = MariaDbUrl::parse(url).unwrap();
            assert_eq!(parsed.to_string(), shown);
            for text in [format!("{parsed:?}"), format!("{:?}", Location::MariaDb(parsed))] {
                assert!(text.contains(shown) && !text.contains("cret"), "{text}");
            }
        }
    }

    #[test]
    fn a_bad_url_is_refused_without_being_repeated() {
        for url in
            ["", "postgres://el:s3cret@h/el", "mysql://el:s3cret@h", "mysql://el:s3cret@h/", "mysql://el:s3cret@h:x/el"]
        {
            let error = MariaDbUrl::parse(url).unwrap_err().to_string();
            assert!(error.contains("mysql://USER:PASSWORD@HOST/DATABASE") && !error.contains("s3cret"), "{error}");
        }
    }
}
