//! Errors as `application/problem+json` (RFC 9457) with the codes of specification §8.4.

use axum::response::{IntoResponse, Response};
use edgelink_api::rest::Problem;
use edgelink_auth::password::PasswordError;
use edgelink_auth::token::TokenError;
use edgelink_model::ErrorCode;
use edgelink_store::StoreError;
use http::{HeaderValue, StatusCode, header};

/// The media type of every error.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request is not served.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    code: ErrorCode,
    detail: String,
    /// Seconds.
    retry_after: Option<u64>,
}

impl Failure {
    fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        code: ErrorCode,
        detail: impl Into<String>,
    ) -> Self {
        Self { status, kind, title, code, detail: detail.into(), retry_after: None }
    }

    /// 400: not what the API's description asks for.
    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        let title = "The request is malformed";
        Self::new(StatusCode::BAD_REQUEST, "malformed", title, ErrorCode::InvalidMessage, detail)
    }

    /// 422: well-formed, and impossible.
    pub(super) fn invalid(detail: impl Into<String>) -> Self {
        let title = "A value is not acceptable";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", title, ErrorCode::InvalidMessage, detail)
    }

    /// 401.
    pub(super) fn unauthenticated(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "Not authenticated", code, detail)
    }

    /// 403.
    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed", ErrorCode::InvalidToken, detail)
    }

    /// 404 for something that has no code of its own.
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", ErrorCode::InvalidMessage, detail)
    }

    /// 405. The `Allow` header is there already.
    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "The method is not allowed here",
            ErrorCode::InvalidMessage,
            "see the Allow header for what this path takes",
        )
    }

    /// 408.
    pub(super) fn slow() -> Self {
        let (title, detail) = ("The request took too long to arrive", "send the body within 10 s");
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", title, ErrorCode::InvalidMessage, detail)
    }

    /// 413.
    pub(super) fn too_large(limit: usize) -> Self {
        let detail = format!("a request body has at most {limit} bytes");
        let title = "The request is too large";
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", title, ErrorCode::MessageTooLarge, detail)
    }

    /// 415.
    pub(super) fn media_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            "The request's media type is not supported",
            ErrorCode::InvalidMessage,
            "send Content-Type: application/json",
        )
    }

    /// 429.
    pub(super) fn throttled(seconds: u64) -> Self {
        let failure = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "throttled",
            "Too many attempts",
            ErrorCode::Overloaded,
            format!("too many logins failed for this account or from this address; try again in {seconds} s"),
        );
        Self { retry_after: Some(seconds), ..failure }
    }

    /// 503.
    pub(super) fn unavailable(code: ErrorCode, detail: impl Into<String>) -> Self {
        let failure = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The controller cannot serve this now",
            code,
            detail,
        );
        Self { retry_after: Some(5), ..failure }
    }

    /// 500. What happened is for the log, not for the client.
    pub(super) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "a REST request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something failed inside the controller",
            ErrorCode::Internal,
            "the controller's log says what",
        )
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        let conflict = |kind, title| Self::new(StatusCode::CONFLICT, kind, title, ErrorCode::InvalidMessage, &*detail);
        match &error {
            StoreError::NotFound { what, .. } => {
                let code = match *what {
                    "node" => ErrorCode::NodeNotFound,
                    "route" => ErrorCode::NoRoute,
                    _ => ErrorCode::InvalidMessage,
                };
                Self { code, ..Self::not_found(detail) }
            }
            StoreError::Conflict(_) => conflict("conflict", "It exists already"),
            StoreError::InUse(_) => conflict("in-use", "It is still needed"),
            StoreError::PoolExhausted(_) => conflict("pool-exhausted", "No address is free"),
            StoreError::Invalid(_) => Self::invalid(detail),
            StoreError::Stale => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "changed-meanwhile",
                "It was changed meanwhile",
                ErrorCode::InvalidMessage,
                detail,
            ),
            StoreError::Locked(_) => {
                tracing::warn!(%error, "a REST request was not served");
                Self::unavailable(ErrorCode::Unavailable, "the database is busy; try again")
            }
            StoreError::Database(cause) if is_away(cause) => {
                tracing::warn!(%error, "a REST request was not served");
                Self::unavailable(ErrorCode::Unavailable, "the database does not answer; try again")
            }
            _ => Self::internal(&error),
        }
    }
}

/// Whether the database cannot be reached, rather than refusing something.
fn is_away(error: &edgelink_store::DbErr) -> bool {
    use edgelink_store::DbErr;
    matches!(error, DbErr::Conn(_) | DbErr::ConnectionAcquire(_))
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Signing => Self::internal(&error),
            _ => Self::unauthenticated(error.code(), format!("{error}; log in again: POST /api/v1/auth/login")),
        }
    }
}

impl From<PasswordError> for Failure {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Hashing => Self::internal(&error),
            _ => Self::invalid(error.to_string()),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: format!("urn:edgelink:problem:{}", self.kind),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code.as_u16(),
        };
        let mut response = (self.status, axum::Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"edgelink\""));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
