//! What can go wrong when dialling, in words that say what to do.

use std::{io, net::IpAddr, time::Duration};

use http::StatusCode;
use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::ServerName;

use crate::{
    proxy::{Proxy, TunnelError},
    tcp::ConnectErrors,
    tls::PinMismatch,
};

/// Why a WebSocket could not be opened. The text is for the user: where it went wrong, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The URL is unusable.
    #[error("the URL is unusable: {why}")]
    Url {
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The URL is `ws://`, which is not allowed here.
    #[error("plain ws:// is refused, since tokens would travel unencrypted: use wss://")]
    PlainRefused,
    /// The proxy's URL is unusable.
    #[error("the proxy is unusable: {why}")]
    ProxyUrl {
        /// The rule that it breaks.
        why: &'static str,
    },
    /// An extra header would break the upgrade.
    #[error("the header {name} belongs to the WebSocket upgrade and cannot be set")]
    ReservedHeader {
        /// The header.
        name: String,
    },
    /// The name does not resolve.
    #[error("cannot resolve {host}: {source}; check the name and this machine's DNS")]
    Resolve {
        /// The name.
        host: String,
        /// From the resolver.
        source: io::Error,
    },
    /// The name has no address.
    #[error("{host} has no address")]
    NoAddress {
        /// The name.
        host: String,
    },
    /// Every address of the name is one that must not be dialled.
    #[error("{host} resolves to {address}, which is refused for an address that the controller gave")]
    AddressRefused {
        /// The name.
        host: String,
        /// The first of its addresses.
        address: IpAddr,
    },
    /// No address answers.
    #[error("cannot connect to {target}: {source}{}", connect_advice(source))]
    Connect {
        /// `HOST:PORT`
        target: String,
        /// Each attempt.
        source: ConnectErrors,
    },
    /// An answer broke off, or is longer than any sensible one.
    #[error("{target}: the answer broke off or is too long")]
    BadAnswer {
        /// `HOST:PORT`
        target: String,
    },
    /// It took too long.
    #[error("{target}: no answer within {} s while {step}{}", after.as_secs_f32(), timeout_advice(step))]
    Timeout {
        /// `HOST:PORT`
        target: String,
        /// The step that did not end.
        step: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The proxy itself cannot be reached.
    #[error("the proxy {proxy} cannot be used: {source}")]
    ProxyUnreachable {
        /// `HOST:PORT`
        proxy: String,
        /// Why.
        source: Box<DialError>,
    },
    /// The proxy wants other credentials.
    #[error("the proxy {proxy} wants a user name and a password: write http://USER:PASSWORD@{proxy}")]
    ProxyAuth {
        /// `HOST:PORT`
        proxy: String,
    },
    /// The proxy refuses.
    #[error("the proxy {proxy} refuses to connect to {target}: HTTP {status}")]
    ProxyStatus {
        /// `HOST:PORT`
        proxy: String,
        /// `HOST:PORT`
        target: String,
        /// Its HTTP status.
        status: u16,
    },
    /// The proxy closed instead of answering.
    #[error("the proxy {proxy} broke off without an answer: {source}")]
    ProxyIo {
        /// `HOST:PORT`
        proxy: String,
        /// From the operating system.
        source: io::Error,
    },
    /// What was configured as a proxy is none.
    #[error("{proxy} does not answer like an HTTP proxy")]
    ProxyProtocol {
        /// `HOST:PORT`
        proxy: String,
    },
    /// The certificate's issuer is unknown.
    #[error(
        "{target}: its certificate is not signed by a CA that this machine trusts; for a controller with its own CA set \
         `pin` to what it prints at start, or `ca_file` to its CA certificate"
    )]
    UnknownCa {
        /// `HOST:PORT`
        target: String,
    },
    /// The certificate is outside its validity period.
    #[error("{target}: {detail}; renew it, or set this machine's clock if that is wrong")]
    Validity {
        /// `HOST:PORT`
        target: String,
        /// When and how far.
        detail: String,
    },
    /// The certificate is for other names.
    #[error("{target}: its certificate is not for {name}{presented}")]
    WrongName {
        /// `HOST:PORT`
        target: String,
        /// The name that was verified.
        name: String,
        /// For whom it is, where known.
        presented: String,
    },
    /// The pinned key is not there.
    #[error(
        "{target}: {mismatch}; if the server's key was changed on purpose, copy the new pin from where it is printed, else \
         somebody is in between"
    )]
    Pin {
        /// `HOST:PORT`
        target: String,
        /// Both pins.
        mismatch: PinMismatch,
    },
    /// The other end does not speak TLS.
    #[error("{target} does not speak TLS: is it the right port, and no plain HTTP server?")]
    NotTls {
        /// `HOST:PORT`
        target: String,
    },
    /// Any other TLS trouble.
    #[error("{target}: TLS: {source}{}", tls_advice(source))]
    Tls {
        /// `HOST:PORT`
        target: String,
        /// From rustls.
        source: rustls::Error,
    },
    /// The connection broke off in the TLS handshake.
    #[error("{target}: the connection broke off during the TLS handshake ({source}); a firewall on the way may object")]
    TlsIo {
        /// `HOST:PORT`
        target: String,
        /// From the operating system.
        source: io::Error,
    },
    /// The HTTP exchange broke off or was no HTTP.
    #[error("{target}: {}: {source}", if source.is_parse() { "the answer is not HTTP" } else { "the connection broke off during the WebSocket upgrade" })]
    Exchange {
        /// `HOST:PORT`
        target: String,
        /// From hyper.
        source: hyper::Error,
    },
    /// The server, or a proxy or CDN before it, answered with an error.
    #[error("{target} answered HTTP {status}{}{detail}{}", if detail.is_empty() { "" } else { ": " }, status_advice(*status))]
    Http {
        /// `HOST:PORT`
        target: String,
        /// The status.
        status: StatusCode,
        /// The first line of a plain-text answer.
        detail: String,
        /// The origin that a standby named ([`super::ACTIVE`]).
        active: Option<String>,
    },
    /// The server redirects.
    #[error(
        "{target} redirects (HTTP {status}) to {location}; redirects are not followed: put the final URL into the configuration"
    )]
    Redirect {
        /// `HOST:PORT`
        target: String,
        /// The status.
        status: u16,
        /// Where to.
        location: String,
    },
    /// `101` but no WebSocket.
    #[error("{target} is not a WebSocket server: {what}")]
    NotWebSocket {
        /// `HOST:PORT`
        target: String,
        /// What is wrong with its answer.
        what: &'static str,
    },
    /// The server speaks another subprotocol.
    #[error(
        "{target} does not speak {wanted} (it chose {}): wrong path in the URL, or an incompatible version",
        chosen.as_deref().unwrap_or("nothing")
    )]
    Subprotocol {
        /// `HOST:PORT`
        target: String,
        /// Ours.
        wanted: String,
        /// Its.
        chosen: Option<String>,
    },
}

fn connect_advice(errors: &ConnectErrors) -> &'static str {
    if errors.all(io::ErrorKind::ConnectionRefused) { "; is the server running, and is this its port?" } else { "" }
}

fn timeout_advice(step: &str) -> &'static str {
    match step {
        "connecting" => "; a firewall may be dropping the packets: is a proxy needed?",
        _ => "",
    }
}

fn status_advice(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 | 426 => " (if a proxy or CDN stands before the server, enable WebSockets there)",
        401 | 403 => " (a proxy or CDN before the server may be refusing this client)",
        404 => " (wrong path in the URL, or no EdgeLink server)",
        502..=504 | 520..=530 => " (the proxy or CDN before the server cannot reach it)",
        _ => "",
    }
}

fn tls_advice(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "; the server does not know this name: check the URL's host and `sni`"
        }
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) | rustls::Error::PeerIncompatible(_) => {
            "; the server is too old: TLS 1.2 is the least"
        }
        _ => "",
    }
}

pub(super) fn tls_error(error: io::Error, target: &str, name: &ServerName<'_>) -> DialError {
    use CertificateError as C;
    let target = target.to_owned();
    let Some(source) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned() else {
        return DialError::TlsIo { target, source: error };
    };
    let certificate = match source {
        rustls::Error::InvalidCertificate(certificate) => certificate,
        rustls::Error::InvalidMessage(_) => return DialError::NotTls { target },
        source => return DialError::Tls { target, source },
    };
    match certificate {
        C::UnknownIssuer => DialError::UnknownCa { target },
        C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => {
            DialError::Validity { target, detail: certificate.to_string() }
        }
        C::NotValidForName => {
            DialError::WrongName { target, name: name.to_str().into_owned(), presented: String::new() }
        }
        C::NotValidForNameContext { presented, .. } => DialError::WrongName {
            target,
            name: name.to_str().into_owned(),
            presented: format!(
                " but for {}",
                if presented.is_empty() { "nobody".into() } else { presented.join(", ") }
            ),
        },
        C::Other(ref other) => match other.0.downcast_ref::<PinMismatch>() {
            Some(mismatch) => DialError::Pin { target, mismatch: mismatch.clone() },
            None => DialError::Tls { target, source: certificate.into() },
        },
        certificate => DialError::Tls { target, source: certificate.into() },
    }
}

pub(super) fn tunnel_error(error: TunnelError, proxy: &Proxy, target: &str) -> DialError {
    let (proxy, target) = (proxy.to_string(), target.to_owned());
    match error {
        TunnelError::Status(407) => DialError::ProxyAuth { proxy },
        TunnelError::Status(status) => DialError::ProxyStatus { proxy, target, status },
        TunnelError::NotHttp => DialError::ProxyProtocol { proxy },
        TunnelError::Io(source) => DialError::ProxyIo { proxy, source },
    }
}
