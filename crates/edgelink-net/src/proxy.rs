//! A tunnel through an HTTP proxy: `CONNECT` (RFC 9110 §9.3.6), with Basic authentication from the proxy's URL.

use std::{fmt, io};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

use crate::socket::Socket;

/// What a proxy may say before its tunnel opens.
const MAX_RESPONSE: usize = 16 * 1024;

/// An HTTP proxy, `http://[USER[:PASSWORD]@]HOST[:PORT]`: the user info percent-encoded, port 80 by
/// default. Never shown with its credentials.
pub(crate) struct Proxy {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `Basic …`
    authorization: Option<String>,
}

impl Proxy {
    /// Reads a proxy URL. The error is a sentence without the URL, which may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self, &'static str> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https" | "socks4" | "socks5" | "socks5h" | "socks", _)) => {
                return Err("only HTTP proxies are supported: http://[USER:PASSWORD@]HOST:PORT");
            }
            Some(_) => return Err("a proxy URL begins with http://"),
            None => url,
        };
        let rest = rest.trim_end_matches('/');
        let (user_info, authority) = match rest.rsplit_once('@') {
            Some((user_info, authority)) => (Some(user_info), authority),
            None => (None, rest),
        };
        let authority: http::uri::Authority =
            authority.parse().map_err(|_| "the proxy URL has no valid HOST:PORT in it")?;
        let authorization = user_info
            .map(|user_info| {
                let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
                let mut credentials = percent_decode(user)?;
                credentials.push(b':');
                credentials.extend(percent_decode(password)?);
                Some(format!("Basic {}", STANDARD.encode(credentials)))
            })
            .map(|authorization| authorization.ok_or("the proxy URL's user or password is not percent-encoded"))
            .transpose()?;
        Ok(Self { host: authority.host().to_owned(), port: authority.port_u16().unwrap_or(80), authorization })
    }

    /// Asks for a tunnel to `host:port`. Afterwards the socket is the tunnel.
    pub(crate) async fn tunnel(&self, socket: &mut Socket, host: &str, port: u16) -> Result<(), TunnelError> {
        let mut request = format!(
            "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: {}\r\n",
            crate::ws::USER_AGENT
        );
        if let Some(authorization) = &self.authorization {
            request.push_str("Proxy-Authorization: ");
            request.push_str(authorization);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        socket.write_all(request.as_bytes()).await?;
        socket.flush().await?;
        match status(&read_head(socket).await?).ok_or(TunnelError::NotHttp)? {
            200..=299 => Ok(()),
            status => Err(TunnelError::Status(status)),
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[derive(Debug)]
pub(crate) enum TunnelError {
    Io(io::Error),
    NotHttp,
    Status(u16),
}

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads up to the empty line and not a byte further: what follows belongs to the tunnel.
async fn read_head(socket: &mut Socket) -> Result<Vec<u8>, TunnelError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let buffer = socket.fill_buf().await?;
        let Some(&byte) = buffer.first() else {
            return Err(TunnelError::Io(io::ErrorKind::UnexpectedEof.into()));
        };
        head.push(byte);
        socket.consume(1);
        if head.len() > MAX_RESPONSE {
            return Err(TunnelError::NotHttp);
        }
    }
    Ok(head)
}

fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?;
    rest.split(' ').nth(1)?.parse().ok().filter(|status| (100..600).contains(status))
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high << 4 | low).ok()?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let proxy = Proxy::parse("http://Aladdin:open%20sesame@proxy.example:3128/").unwrap();
        assert_eq!((proxy.to_string().as_str(), proxy.port), ("proxy.example:3128", 3128));
        // RFC 7617 §2's own example.
        assert_eq!(proxy.authorization.as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        let proxy = Proxy::parse("10.0.0.1").unwrap();
        assert_eq!((proxy.to_string().as_str(), proxy.authorization), ("10.0.0.1:80", None));
        assert_eq!(Proxy::parse("[::1]:8080").unwrap().to_string(), "[::1]:8080");
        for bad in ["socks5://a:1", "https://a:1", "ftp://a", "http://", "http://u:%zz@a:1", "http://u:p%4@a:1"] {
            assert!(Proxy::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn status_lines() {
        assert_eq!(status(b"HTTP/1.0 200 Connection established\r\n\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.1 407\r\n\r\n"), Some(407));
        for bad in
            [&b"SSH-2.0-OpenSSH\r\n"[..], b"HTTP/1.1 abc\r\n", b"HTTP/1.1\r\n", b"HTTP/1.1 99999\r\n", b"\xff\r\n"]
        {
            assert_eq!(status(bad), None);
        }
    }
}
