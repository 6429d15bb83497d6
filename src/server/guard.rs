//! What stands in front of every route: the token, the size of the body, the deadline.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Config;
use super::page::is_page;
use super::problem::{Kind, Problem};

/// Routes that need no token, because what probes them has none.
const OPEN: [&str; 3] = ["/health", "/livez", "/readyz"];

#[derive(Clone)]
pub(super) struct Guard {
    token: Option<Arc<str>>,
    metrics_public: bool,
    /// Only this machine is listened to, and nobody needs a token.
    is_private: bool,
    deadline: Duration,
    body_bytes_max: usize,
}

impl Guard {
    pub fn new(config: &Config) -> Self {
        Self {
            token: config.token.as_ref().map(|token| (*token.0).into()),
            metrics_public: config.metrics_public,
            is_private: config.token.is_none() && !config.allow_public_without_token,
            deadline: Duration::from_millis(config.request_timeout_ms),
            body_bytes_max: config.body_bytes_max,
        }
    }

    fn admits(&self, request: &Request) -> bool {
        let path = request.uri().path();
        let Some(token) = &self.token else { return true };
        if OPEN.contains(&path) || is_page(path) || (self.metrics_public && path == "/metrics") {
            return true;
        }
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_first_chunk());
        given.is_some_and(|(scheme, rest): (&[u8; 7], _)| {
            scheme.eq_ignore_ascii_case(b"bearer ") && is_equal(rest.trim_ascii(), token.as_bytes())
        })
    }
}

/// Takes the same time wherever the first difference is.
pub(super) fn is_equal(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let difference = left.iter().zip(right).fold(0, |difference, (left, right)| black_box(difference | (left ^ right)));
    black_box(difference) == 0
}

/// A name that a stranger's DNS leads here is not one of ours; addresses cannot be rebound.
fn names_this_machine(request: &Request) -> bool {
    let Some(host) = request.headers().get(header::HOST) else { return true };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || address.parse::<std::net::IpAddr>().is_ok()
}

pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    if guard.is_private && !names_this_machine(&request) {
        let detail = "the Host header is neither localhost nor an address: a page of another site may be behind this request; ask for \
                      localhost, or set server.token";
        return Problem::new(Kind::Forbidden, detail, &path).into_response();
    }
    if !guard.admits(&request) {
        let detail = "send the header `Authorization: Bearer <server.token>`";
        return Problem::new(Kind::Unauthorized, detail, &path).into_response();
    }
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > guard.body_bytes_max as u64) {
        let detail = format!("a body may have {} bytes (server.body_bytes_max)", guard.body_bytes_max);
        return Problem::new(Kind::BodyTooLarge, detail, &path).into_response();
    }
    match tokio::time::timeout(guard.deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let detail = format!(
                "no answer within {} ms (server.request_timeout_ms); ask for a shorter range",
                guard.deadline.as_millis()
            );
            Problem::new(Kind::Timeout, detail, &path).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(is_equal(b"secret", b"secret") && is_equal(b"", b""));
        assert!(!is_equal(b"secret", b"secreT") && !is_equal(b"secre", b"secret") && !is_equal(b"", b"s"));
    }

    #[tokio::test]
    async fn an_answer_that_takes_too_long_is_given_up() {
        use axum::routing::get;
        use tower::ServiceExt;
        let config = Config { request_timeout_ms: 20, ..Config::default() };
        let slow = get(|| async { std::future::pending::<&str>().await });
        let layer = axum::middleware::from_fn_with_state(Guard::new(&config), guard);
        let router = axum::Router::new().route("/slow", slow).layer(layer);
        let request = Request::builder().uri("/slow").body(axum::body::Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }
}
