//! What handlers take from a request and give back, with errors of our own kind.

use super::problem::Failure;
use super::{Api, MAX_BODY};
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use edgelink_auth::token::AdminClaims;
use edgelink_store::{AdminRecord, Listed, Page, Store};
use http::request::Parts;
use http::{HeaderValue, StatusCode, Uri, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Entries of a list unless the request says otherwise.
const DEFAULT_LIMIT: u32 = 100;
/// Most entries of one answer.
pub(super) const MAX_LIMIT: u32 = 1_000;
/// A body must have arrived after so long.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A request's JSON body.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Json<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Failure> {
        let media_type = request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(Failure::media_type());
        }
        let bytes = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, api))
            .await
            .map_err(|_| Failure::slow())?
            .map_err(|rejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => Failure::too_large(MAX_BODY),
                _ => Failure::malformed("the request ended before its body did"),
            })?;
        parse(&bytes).map(Self)
    }
}

/// A request's JSON body, which may be left out.
pub(super) struct OptionalJson<T>(pub(super) Option<T>);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for OptionalJson<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Failure> {
        let empty = axum::body::HttpBody::size_hint(request.body()).exact() == Some(0);
        if empty && !request.headers().contains_key(header::CONTENT_TYPE) {
            return Ok(Self(None));
        }
        Json::from_request(request, api).await.map(|Json(value)| Self(value))
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    read(bytes).or_else(|failure| {
        // To JSON Schema 7.0 is an integer, to serde it is none.
        let mut value: serde_json::Value = serde_json::from_slice(bytes).map_err(|_| failure.clone())?;
        whole_numbers(&mut value);
        serde_json::from_value(value).map_err(|_| failure)
    })
}

/// Writes numbers without a fraction as integers.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked before")]
fn whole_numbers(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Number(number) if number.is_f64() => {
            let exact = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9_007_199_254_740_992.0);
            if let Some(exact) = exact {
                *value = Value::from(exact as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        Failure::malformed(if path == "." { cause.to_string() } else { format!("{path}: {cause}") })
    })?;
    deserializer.end().map_err(|error| Failure::malformed(error.to_string()))?;
    Ok(value)
}

/// A request's query.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Arc<Api>> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Failure> {
        match axum::extract::Query::<T>::try_from_uri(&parts.uri) {
            Ok(query) => Ok(Self(query.0)),
            Err(rejection) => Err(Failure::malformed(rejection.body_text())),
        }
    }
}

/// The variables of a request's path.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Api>> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Failure> {
        match axum::extract::Path::<T>::from_request_parts(parts, api).await {
            Ok(path) => Ok(Self(path.0)),
            Err(rejection) => Err(Failure::malformed(rejection.body_text())),
        }
    }
}

/// Where a request came from, as far as is known; put there by the front.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client(pub(crate) Option<IpAddr>);

impl FromRequestParts<Arc<Api>> for Client {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Failure> {
        Ok(parts.extensions.get().copied().unwrap_or(Self(None)))
    }
}

/// A user of this host who may do anything, by name; put there by the local socket.
#[derive(Clone, Debug)]
pub(crate) struct Local(pub(crate) String);

/// Who asks, and may; put there by the middleware that guards everything but the login.
#[derive(Clone)]
pub(super) struct Session {
    /// The database, written on his behalf.
    pub(super) store: Store,
    /// `None`: a user of this host, at the local socket.
    pub(super) login: Option<Login>,
}

/// An administrator whose token has been verified.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) admin: AdminRecord,
    pub(super) claims: AdminClaims,
}

impl Session {
    /// For what makes no sense without a login.
    pub(super) fn login(self) -> Result<Login, Failure> {
        self.login.ok_or_else(|| Failure::not_found("nobody is logged in: at the local socket the user counts"))
    }
}

impl FromRequestParts<Arc<Api>> for Session {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Failure> {
        // Only a route outside the guard could lack it.
        let missing = "a route without its guard";
        parts.extensions.get().cloned().ok_or_else(|| Failure::internal(&missing))
    }
}

/// The `If-Match` header.
pub(super) struct IfMatch(Option<Vec<String>>);

impl IfMatch {
    /// Whether a change of what has this ETag is wanted.
    pub(super) fn accepts(&self, etag: &str) -> bool {
        self.0.as_ref().is_none_or(|tags| tags.iter().any(|tag| tag == "*" || tag == etag))
    }
}

impl FromRequestParts<Arc<Api>> for IfMatch {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Failure> {
        let headers = parts.headers.get_all(header::IF_MATCH);
        let mut tags = None;
        for value in headers {
            // What cannot be read matches nothing.
            let text = value.to_str().unwrap_or_default();
            tags.get_or_insert_with(Vec::new).extend(text.split(',').map(|tag| tag.trim().to_owned()));
        }
        Ok(Self(tags))
    }
}

/// Which page of a list is wanted.
pub(super) struct Paging {
    limit: u32,
    pub(super) after: Option<u32>,
    uri: Uri,
}

impl Paging {
    pub(super) fn new(uri: Uri, limit: Option<u32>, after: Option<u32>) -> Result<Self, Failure> {
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if limit == 0 || limit > MAX_LIMIT {
            return Err(Failure::malformed(format!("limit is 1 to {MAX_LIMIT}")));
        }
        Ok(Self { limit, after, uri })
    }

    /// One more than is shown, to know whether there are more.
    pub(super) fn page(&self) -> Page {
        Page { after: self.after, limit: Some(u64::from(self.limit) + 1) }
    }

    /// The answer: the items, `X-Total-Count`, and `Link: <…>; rel="next"` if there are more. `next`: what to continue
    /// after, given the last item shown.
    pub(super) fn answer<T: Serialize>(self, mut listed: Listed<T>, next: impl FnOnce(&T) -> u32) -> Response {
        let limit = self.limit as usize;
        let more = listed.items.len() > limit;
        listed.items.truncate(limit);
        let link = listed.items.last().filter(|_| more).and_then(|last| self.link(next(last)));
        let mut response = axum::Json(listed.items).into_response();
        response.headers_mut().insert("x-total-count", listed.total.into());
        if let Some(link) = link {
            response.headers_mut().insert(header::LINK, link);
        }
        response
    }

    fn link(&self, after: u32) -> Option<HeaderValue> {
        let others = self.uri.query().unwrap_or_default().split('&');
        let mut query: Vec<&str> = others.filter(|pair| !pair.is_empty() && !pair.starts_with("after=")).collect();
        let after = format!("after={after}");
        query.push(&after);
        HeaderValue::from_str(&format!("<{}?{}>; rel=\"next\"", self.uri.path(), query.join("&"))).ok()
    }
}

/// A thing with its version, for `If-Match`.
pub(super) struct Versioned<T>(pub(super) T, pub(super) String);

impl<T: Serialize> IntoResponse for Versioned<T> {
    fn into_response(self) -> Response {
        let mut response = axum::Json(self.0).into_response();
        if let Ok(etag) = HeaderValue::from_str(&self.1) {
            response.headers_mut().insert(header::ETAG, etag);
        }
        response
    }
}

/// A new thing and where it is.
pub(super) struct Created<T>(pub(super) T, pub(super) String);

impl<T: Serialize> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::CREATED, axum::Json(self.0)).into_response();
        if let Ok(location) = HeaderValue::from_str(&self.1) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_keeps_the_filters() {
        let paging = |uri: &str| Paging::new(uri.parse().unwrap(), Some(2), None).unwrap();
        let link = |uri: &str| paging(uri).link(7).unwrap();
        assert_eq!(link("/api/v1/nodes"), "</api/v1/nodes?after=7>; rel=\"next\"");
        let uri = "/api/v1/nodes?after=3&network=a%20b&limit=2";
        assert_eq!(link(uri), "</api/v1/nodes?network=a%20b&limit=2&after=7>; rel=\"next\"");
    }

    #[test]
    fn if_match() {
        let given = |tags: &[&str]| IfMatch(Some(tags.iter().map(|t| (*t).to_owned()).collect()));
        assert!(IfMatch(None).accepts("\"a\""));
        assert!(given(&["*"]).accepts("\"a\""));
        assert!(given(&["\"b\"", "\"a\""]).accepts("\"a\""));
        for other in ["\"b\"", "W/\"a\"", "a", ""] {
            assert!(!given(&[other]).accepts("\"a\""), "{other}");
        }
    }

    #[test]
    fn bodies_are_read_strictly_and_errors_say_where() {
        use edgelink_api::rest::NewNetwork;
        let read = |text: &str| parse::<NewNetwork>(text.as_bytes());
        assert!(read(r#"{"name": "a", "subnet": "10.0.0.0/8"}"#).is_ok());
        let route = |text: &str| parse::<edgelink_api::rest::UpdateRoute>(text.as_bytes());
        assert_eq!(route(r#"{"priority": 7.0}"#).unwrap().priority, Some(7));
        for bad in ["7.5", "65536.0", "-1.0", "1e300", "\"7\""] {
            assert!(route(&format!(r#"{{"priority": {bad}}}"#)).is_err(), "{bad}");
        }
        for bad in
            ["", "{", "[]", r#"{"name": 7, "subnet": "x"}"#, r#"{"name": "a"}"#, r#"{"name":"a","subnet":"x"} x"#]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
        let error = read(r#"{"name": 7, "subnet": "x"}"#).unwrap_err();
        assert!(format!("{error:?}").contains("name: invalid type: integer `7`"), "{error:?}");
    }
}
