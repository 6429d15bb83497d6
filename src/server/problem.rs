//! Everything that goes wrong, as an RFC 9457 problem document.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use traqq_counts::query::QueryError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    BadRequest,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    BodyTooLarge,
    QuestionTooLarge,
    Unavailable,
    NotReady,
    /// Something hangs, and only a restart helps.
    NotLive,
    Timeout,
    /// There is no room for the request at the moment.
    Busy,
    Forbidden,
    UnsupportedMediaType,
    NotImplemented,
    KeyReused,
}

/// A problem at a path, which is its `instance`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Problem {
    pub kind: Kind,
    pub detail: String,
    pub instance: String,
}

impl Kind {
    /// Status, the last part of the type, title.
    const fn describe(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadRequest => (StatusCode::BAD_REQUEST, "bad-request", "The request is malformed"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "A token is needed"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "The method does not fit this path")
            }
            Self::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", "The request's body is too large"),
            Self::QuestionTooLarge => {
                (StatusCode::UNPROCESSABLE_ENTITY, "question-too-large", "The question costs more than a limit allows")
            }
            Self::Unavailable => {
                (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "The store or the log does not answer")
            }
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "not-ready", "The process is not ready"),
            Self::NotLive => (StatusCode::SERVICE_UNAVAILABLE, "not-live", "The process hangs"),
            Self::Busy => (StatusCode::TOO_MANY_REQUESTS, "busy", "The process has its hands full"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "This may not be done from there"),
            Self::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "The body is of a kind that is not taken",
            ),
            Self::NotImplemented => (StatusCode::NOT_IMPLEMENTED, "not-implemented", "This log cannot do that"),
            Self::KeyReused => {
                (StatusCode::UNPROCESSABLE_ENTITY, "key-reused", "The idempotency key stands for another request")
            }
            Self::Timeout => (StatusCode::SERVICE_UNAVAILABLE, "timeout", "The answer took too long"),
        }
    }
}

impl Problem {
    pub fn new(kind: Kind, detail: impl Into<String>, instance: &str) -> Self {
        Self { kind, detail: detail.into(), instance: instance.to_owned() }
    }

    pub fn of(error: QueryError, instance: &str) -> Self {
        let (kind, detail) = match error {
            QueryError::BadRequest(detail) => (Kind::BadRequest, detail),
            QueryError::NotFound(detail) => (Kind::NotFound, detail),
            QueryError::TooLarge(detail) => (Kind::QuestionTooLarge, detail),
            QueryError::Busy(detail) => (Kind::Busy, detail),
            QueryError::Unavailable(line) => (Kind::Unavailable, line.to_string()),
        };
        Self::new(kind, detail, instance)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, slug, title) = self.kind.describe();
        let body = Json(json!({
            "type": format!("urn:traqq:problem:{slug}"),
            "title": title,
            "status": status.as_u16(),
            "detail": self.detail,
            "instance": self.instance,
        }));
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match self.kind {
            Kind::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"traqq\""));
            }
            Kind::Unavailable | Kind::NotReady | Kind::Busy => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
