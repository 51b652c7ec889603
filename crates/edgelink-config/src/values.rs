//! The kinds of value that keys have: URLs, durations, pins, names.

use crate::error::ConfigError;
use crate::schema::{Context, Field, Kind, Text, describe, element};
use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

/// The URL of a controller or relay: `wss://HOST[:PORT][/PATH]`, or `ws://` where a proxy or a test ends TLS.
///
/// No user info, query or fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WsUrl {
    scheme: &'static str,
    authority: String,
    host: String,
    port: u16,
    path: String,
}

impl WsUrl {
    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.scheme == "wss"
    }

    /// Host name or address, in brackets if it is IPv6.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port, 443 or 80 unless given.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Path, `/` unless given.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The same URL, with `path` where it has none: people may write `wss://HOST` alone.
    #[must_use]
    pub fn or_path(mut self, path: &str) -> Self {
        if self.path == "/" {
            path.clone_into(&mut self.path);
        }
        self
    }

    /// `wss://HOST[:PORT]` without a path.
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }
}

impl fmt::Display for WsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

impl FromStr for WsUrl {
    type Err = String;

    /// The error says what is wrong with the URL.
    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| "it is not a URL".to_owned())?;
        let scheme = match uri.scheme_str() {
            Some("wss") => "wss",
            Some("ws") => "ws",
            Some("https" | "http") => return Err("write wss:// instead of https:// (ws:// for plain HTTP)".into()),
            _ => return Err("it does not begin with wss://".into()),
        };
        let authority = uri.authority().ok_or("it has no host")?;
        if authority.as_str().contains('@') {
            return Err("it contains a user name; nothing here uses one".into());
        }
        if uri.query().is_some() || text.contains('#') {
            return Err("it has a query or fragment".into());
        }
        if authority.host().is_empty() {
            return Err("it has no host".into());
        }
        let port = match authority.as_str().strip_prefix(authority.host()).unwrap_or_default().strip_prefix(':') {
            None if scheme == "wss" => 443,
            None => 80,
            Some(port) => port.parse().ok().filter(|p| *p != 0).ok_or("its port is not a number from 1 to 65535")?,
        };
        Ok(Self {
            scheme,
            authority: authority.to_string(),
            host: authority.host().to_owned(),
            port,
            path: uri.path().to_owned(),
        })
    }
}

impl Text for WsUrl {
    const EXPECTED: &'static str = "a URL such as \"wss://controller.example.com\"";

    fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
        text.parse().map_err(Some)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// The URLs at which the controller is known to its nodes: one string or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicUrls(pub Vec<WsUrl>);

impl Field for PublicUrls {
    const KIND: Kind = Kind::List(&[]);

    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
        match value {
            Value::Null => Ok(Self::default()),
            Value::Array(urls) => {
                let read = urls.iter().enumerate().map(|(i, url)| WsUrl::read(url, cx, &element(path, i)));
                read.collect::<Result<_, _>>().map(Self)
            }
            one => WsUrl::read(one, cx, path).map(|url| Self(vec![url])),
        }
    }

    fn to_json(&self) -> Value {
        match self.0.as_slice() {
            [] => Value::Null,
            urls => urls.iter().map(WsUrl::to_string).collect(),
        }
    }
}

/// An HTTP or SOCKS proxy: `http://`, `https://` or `socks5://[USER:PASSWORD@]HOST:PORT`. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(String);

impl ProxyUrl {
    /// The URL, credentials included. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyUrl(…)")
    }
}

impl Text for ProxyUrl {
    const EXPECTED: &'static str = "a proxy URL such as \"http://proxy.example.com:3128\" or \"socks5://…\"";
    const SECRET: bool = true;

    fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
        let uri: Uri = text.parse().map_err(|_| None)?;
        if !matches!(uri.scheme_str(), Some("http" | "https" | "socks5")) || uri.host().is_none_or(str::is_empty) {
            return Err(None);
        }
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        "…".to_owned()
    }
}

/// Extra request headers, for CDNs that ask for some. Values count as secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(pub HeaderMap);

impl Field for Headers {
    const KIND: Kind = Kind::Json;

    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
        let mut headers = HeaderMap::new();
        for (name, value) in crate::schema::members(value, cx, path)? {
            let path = crate::schema::join(path, name);
            let text = value.as_str().ok_or_else(|| cx.wrong(&path, "a string", describe(value)))?;
            let name = HeaderName::from_str(name)
                .map_err(|_| cx.wrong(&path, "named like an HTTP header", "what is there"))?;
            if matches!(name.as_str(), "host" | "connection" | "upgrade" | "content-length" | "transfer-encoding")
                || name.as_str().starts_with("sec-websocket-")
            {
                return Err(cx.wrong(
                    &path,
                    "a header that the WebSocket handshake does not need itself",
                    name.as_str(),
                ));
            }
            let mut header =
                HeaderValue::from_str(text).map_err(|_| cx.wrong(&path, "a header value", "what is there"))?;
            header.set_sensitive(true);
            headers.insert(name, header);
        }
        Ok(Self(headers))
    }

    fn to_json(&self) -> Value {
        self.0.keys().map(|name| (name.to_string(), json!("…"))).collect::<serde_json::Map<_, _>>().into()
    }
}

/// Which log lines are written: a level, or `target=level` directives between commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// The directives, as `tracing_subscriber::EnvFilter` reads them.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Text for LogFilter {
    const EXPECTED: &'static str =
        "a level (error, warn, info, debug, trace, off) or directives such as \"edgelink_relay=debug,info\"";

    fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
        let level = |text: &str| {
            ["error", "warn", "info", "debug", "trace", "off"].iter().any(|level| text.eq_ignore_ascii_case(level))
        };
        let target = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':'))
        };
        for directive in text.split(',').map(str::trim) {
            let good = match directive.split_once('=') {
                Some((name, verbosity)) => target(name) && level(verbosity),
                None => level(directive),
            };
            if !good {
                return Err(Some(format!("{directive:?} is neither")));
            }
        }
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// The path of a WebSocket endpoint, such as `/ws/data`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpPath(String);

impl HttpPath {
    /// Takes `path` if it begins with `/` and holds nothing that a URL's path may not.
    pub fn new(path: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~".contains(&b);
        (path.starts_with('/') && path.bytes().all(plain)).then(|| Self(path.to_owned()))
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For defaults, which tests check.
    pub(crate) fn default_of(path: &'static str) -> Self {
        Self(path.to_owned())
    }
}

impl Text for HttpPath {
    const EXPECTED: &'static str = "a URL path such as \"/ws/data\"";

    fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
        Self::new(text).ok_or(None)
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

/// The pin of a certificate: `sha256:` and the base64 of the SHA-256 of its SubjectPublicKeyInfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The SHA-256.
    pub fn hash(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", base64::engine::general_purpose::STANDARD.encode(self.0))
    }
}

impl Text for Pin {
    const EXPECTED: &'static str = "`sha256:` and 44 characters of base64, as the controller prints it";

    fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
        let encoded = text.strip_prefix("sha256:").ok_or(None)?;
        let hash = base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|_| None)?;
        hash.try_into().map(Self).map_err(|_| None)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// The name of a network interface: 1 to 15 bytes, as the kernel takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn default_of(name: &'static str) -> Self {
        Self(name.to_owned())
    }

    /// A name from elsewhere than a file, if it is one.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        Self::parse(name, None).ok()
    }

    /// The name of a further network's interface that was given none: wss-mesh1 and so on.
    #[must_use]
    pub fn numbered(n: usize) -> Self {
        Self(format!("wss-mesh{n}"))
    }
}

impl Text for InterfaceName {
    const EXPECTED: &'static str = "an interface name of 1 to 15 letters, digits and -_.";

    fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if text.is_empty() || text.len() > 15 || !text.bytes().all(plain) || matches!(text, "." | "..") {
            return Err(None);
        }
        Ok(Self(text.to_owned()))
    }

    fn show(&self) -> String {
        self.0.clone()
    }
}

macro_rules! durations {
    ($($(#[$doc:meta])* $name:ident: $secs:literal, $unit:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
        pub struct $name(pub f64);

        impl $name {
            /// The time that this is; ranges are checked when it is read, and nonsense counts as zero.
            pub fn duration(self) -> Duration {
                Duration::try_from_secs_f64(self.0 * $secs).unwrap_or_default()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Field for $name {
            const KIND: Kind = Kind::Json;

            fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
                let found = || if value.is_number() { value.to_string() } else { describe(value).to_owned() };
                let number = value.as_f64().filter(|n| n.is_finite() && *n >= 0.0);
                number.map(Self).ok_or_else(|| cx.wrong(path, concat!("a number of ", $unit), found()))
            }

            fn to_json(&self) -> Value {
                // 24.0 is written 24, as people would.
                if self.0.fract() == 0.0 { json!(self.0 as u64) } else { json!(self.0) }
            }
        }
    )*};
}

durations! {
    /// Hours, maybe a fraction.
    Hours: 3600.0, "hours";
    /// Seconds, maybe a fraction.
    Seconds: 1.0, "seconds";
}

/// An enum of fixed words.
macro_rules! words {
    ($($(#[$meta:meta])* pub enum $name:ident ($expected:literal) { $($(#[$doc:meta])* $variant:ident = $word:literal,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)* })
            }
        }

        impl Text for $name {
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str, _: Option<&Path>) -> Result<Self, Option<String>> {
                match text { $($word => Ok(Self::$variant),)* _ => Err(None) }
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

words! {
    /// How tokens are signed (DESIGN §3).
    pub enum Algorithm("\"EdDSA\", \"RS256\" or \"HS256\"") {
        /// Ed25519.
        EdDsa = "EdDSA",
        /// RSA with SHA-256.
        Rs256 = "RS256",
        /// HMAC with SHA-256: relays share the secret.
        Hs256 = "HS256",
    }

    /// Which cipher protects packets between nodes (DESIGN §6).
    pub enum SessionCipher("\"auto\" or \"chacha20-poly1305\"") {
        /// AES-256-GCM where both processors have instructions for it, else ChaCha20-Poly1305.
        Auto = "auto",
        /// ChaCha20-Poly1305 whatever the processors have.
        ChaCha20Poly1305 = "chacha20-poly1305",
    }

    /// Which database.
    pub enum DatabaseType("\"sqlite\" or \"mariadb\"") {
        /// A file beside the controller.
        Sqlite = "sqlite",
        /// A MariaDB server.
        MariaDb = "mariadb",
    }
}

/// Whom to believe about other nodes' machine keys (DESIGN §2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The first key that the controller tells for a node is kept.
    #[default]
    Tofu,
    /// Whatever the controller says.
    Controller,
    /// Only machine keys with these fingerprints: `sha256:` and 64 hex digits.
    Pinned(Vec<String>),
}

const TRUST_EXPECTED: &str = "\"tofu\", \"controller\" or { \"pinned\": [\"sha256:…\"] }";

impl Field for Trust {
    const KIND: Kind = Kind::Word;

    fn read(value: &Value, cx: &Context<'_>, path: &str) -> Result<Self, ConfigError> {
        match value {
            Value::String(word) if word == "tofu" => Ok(Self::Tofu),
            Value::String(word) if word == "controller" => Ok(Self::Controller),
            Value::String(other) => Err(cx.wrong(path, TRUST_EXPECTED, format!("{other:?}"))),
            Value::Object(members) => {
                let list = match members.get("pinned") {
                    Some(Value::Array(list)) if members.len() == 1 => list,
                    _ => return Err(cx.wrong(path, TRUST_EXPECTED, "another object")),
                };
                let path = crate::schema::join(path, "pinned");
                let fingerprint = |(i, value): (usize, &Value)| {
                    let hex = value.as_str().and_then(|text| text.strip_prefix("sha256:"));
                    hex.filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
                        .map(|hex| format!("sha256:{}", hex.to_ascii_lowercase()))
                        .ok_or_else(|| {
                            let found = value.as_str().map_or_else(|| describe(value).to_owned(), |s| format!("{s:?}"));
                            cx.wrong(&element(&path, i), "`sha256:` and 64 hex digits", found)
                        })
                };
                list.iter().enumerate().map(fingerprint).collect::<Result<_, _>>().map(Self::Pinned)
            }
            other => Err(cx.wrong(path, TRUST_EXPECTED, describe(other))),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Tofu => json!("tofu"),
            Self::Controller => json!("controller"),
            Self::Pinned(list) => json!({ "pinned": list }),
        }
    }
}
