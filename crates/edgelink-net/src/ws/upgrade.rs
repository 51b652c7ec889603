//! The server's half of the opening handshake (RFC 6455 §4.2).

use aws_lc_rs::digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{
        CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
        UPGRADE,
    },
};
use hyper::upgrade::{OnUpgrade, Upgraded};

use super::WebSocket;
use crate::conn::Conn;

/// The `101 Switching Protocols` for a WebSocket upgrade that offers `subprotocol`. No extension is ever accepted.
///
/// Take `hyper::upgrade::on(&mut request)` first, return this response, and give the former to [`accept_after`].
///
/// # Errors
/// [`UpgradeError`], which makes the response to return instead.
pub fn upgrade_response<B>(request: &Request<B>, subprotocol: &str) -> Result<Response<()>, UpgradeError> {
    let headers = request.headers();
    if request.method() != Method::GET {
        return Err(Refused::Method.into());
    }
    if request.version() != Version::HTTP_11 || !has_token(headers, &CONNECTION, "upgrade") {
        return Err(Refused::NotAnUpgrade.into());
    }
    if !has_token(headers, &UPGRADE, "websocket") {
        return Err(Refused::NotAnUpgrade.into());
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refused::Version.into());
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(Refused::Key)?;
    if STANDARD.decode(key).map_or(0, |key| key.len()) != 16 {
        return Err(Refused::Key.into());
    }
    let chosen = HeaderValue::from_str(subprotocol).ok();
    let Some(chosen) = chosen.filter(|_| offers(headers, subprotocol)) else {
        return Err(UpgradeError { refused: Refused::Subprotocol, subprotocol: subprotocol.to_owned() });
    };

    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept_key(key.as_bytes()));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, chosen);
    Ok(response)
}

/// The WebSocket of a request answered with [`upgrade_response`], once that response is out.
///
/// # Errors
/// When the client was gone before.
pub async fn accept_after(upgrade: OnUpgrade, max_message: usize) -> Result<WebSocket, hyper::Error> {
    Ok(accept(upgrade.await?, max_message))
}

/// The WebSocket on an upgraded connection.
#[must_use]
pub fn accept(upgraded: Upgraded, max_message: usize) -> WebSocket {
    WebSocket::server(Conn::from_upgraded(upgraded), max_message)
}

/// Why a request is no WebSocket upgrade that we accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refused}{subprotocol}")]
pub struct UpgradeError {
    /// The reason.
    pub refused: Refused,
    subprotocol: String,
}

/// The reasons of an [`UpgradeError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not GET.
    #[error("a WebSocket is opened by GET")]
    Method,
    /// No `Upgrade: websocket`, or a proxy on the way dropped it.
    #[error(
        "this is a WebSocket endpoint, and the request has no `Connection: Upgrade` and `Upgrade: websocket` (a proxy on the way may have dropped them)"
    )]
    NotAnUpgrade,
    /// Not version 13.
    #[error("only WebSocket version 13 is supported")]
    Version,
    /// No valid `Sec-WebSocket-Key`.
    #[error("Sec-WebSocket-Key is missing or invalid")]
    Key,
    /// The client does not offer our protocol.
    #[error("Sec-WebSocket-Protocol must offer ")]
    Subprotocol,
}

impl From<Refused> for UpgradeError {
    fn from(refused: Refused) -> Self {
        Self { refused, subprotocol: String::new() }
    }
}

impl UpgradeError {
    /// The status to answer with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self.refused {
            Refused::Method => StatusCode::METHOD_NOT_ALLOWED,
            Refused::NotAnUpgrade | Refused::Version => StatusCode::UPGRADE_REQUIRED,
            Refused::Key | Refused::Subprotocol => StatusCode::BAD_REQUEST,
        }
    }

    /// The response to return: the reason as plain text, and what RFC 9110 §15.5.22 and RFC 6455 §4.4 ask for.
    #[must_use]
    pub fn response(&self) -> Response<String> {
        let mut response = Response::new(format!("{self}\n"));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        match self.refused {
            Refused::Method => {
                headers.insert(http::header::ALLOW, HeaderValue::from_static("GET"));
            }
            Refused::NotAnUpgrade | Refused::Version => {
                headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            Refused::Key | Refused::Subprotocol => {}
        }
        response
    }
}

/// `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 §4.2.2).
pub(super) fn accept_key(key: &[u8]) -> HeaderValue {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let text = STANDARD.encode(hash.finish());
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Whether a comma-separated header holds a token, whatever its case.
pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

/// Subprotocol names are case-sensitive, unlike the rest.
fn offers(headers: &HeaderMap, subprotocol: &str) -> bool {
    tokens(headers, &SEC_WEBSOCKET_PROTOCOL).any(|found| found == subprotocol)
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut Request<()>)) -> Request<()> {
        let mut request = Request::get("/ws/data")
            .header("host", "server.example.com")
            .header("upgrade", "WebSocket")
            .header("connection", "keep-alive, Upgrade")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", "chat, wss-mesh.1")
            .header("sec-websocket-extensions", "permessage-deflate")
            .header("sec-websocket-version", "13")
            .body(())
            .unwrap();
        change(&mut request);
        request
    }

    /// The example of RFC 6455 §1.3.
    #[test]
    fn accepts() {
        let response = upgrade_response(&request(|_| {}), "wss-mesh.1").unwrap();
        assert_eq!(response.status(), 101);
        let mut headers: Vec<_> =
            response.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        headers.sort_unstable();
        assert_eq!(
            headers,
            [
                ("connection", "Upgrade"),
                ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
                ("sec-websocket-protocol", "wss-mesh.1"),
                ("upgrade", "websocket"),
            ]
        );
    }

    #[test]
    fn refuses_with_the_right_status() {
        type Change = fn(&mut Request<()>);
        let cases: [(Change, Refused, u16); 8] = [
            (|r| *r.method_mut() = Method::POST, Refused::Method, 405),
            (|r| *r.version_mut() = Version::HTTP_10, Refused::NotAnUpgrade, 426),
            (|r| drop(r.headers_mut().remove("upgrade")), Refused::NotAnUpgrade, 426),
            (|r| drop(r.headers_mut().insert("connection", "close".parse().unwrap())), Refused::NotAnUpgrade, 426),
            (|r| drop(r.headers_mut().insert("sec-websocket-version", "8".parse().unwrap())), Refused::Version, 426),
            (|r| drop(r.headers_mut().insert("sec-websocket-key", "c2hvcnQ=".parse().unwrap())), Refused::Key, 400),
            (|r| drop(r.headers_mut().remove("sec-websocket-key")), Refused::Key, 400),
            (
                |r| drop(r.headers_mut().insert("sec-websocket-protocol", "WSS-MESH.1".parse().unwrap())),
                Refused::Subprotocol,
                400,
            ),
        ];
        for (change, refused, status) in cases {
            let error = upgrade_response(&request(change), "wss-mesh.1").unwrap_err();
            assert_eq!((error.refused, error.response().status().as_u16()), (refused, status));
            assert_eq!(
                error.response().headers().get("sec-websocket-version").is_some(),
                status == 426,
                "RFC 6455 §4.4: a 426 names the version"
            );
        }
        let error =
            upgrade_response(&request(|r| drop(r.headers_mut().remove("sec-websocket-protocol"))), "wss-mesh.1");
        assert_eq!(error.unwrap_err().to_string(), "Sec-WebSocket-Protocol must offer wss-mesh.1");
    }
}
