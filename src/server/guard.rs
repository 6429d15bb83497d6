//! What stands in front of every route: the token, the size of the body, the deadline.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Config;
use super::access::Tokens;
use super::page::is_page;
use super::problem::{Kind, Problem};

/// How events are read is also for those who may only send them.
const EVENTS: &str = "/api/v1/events";
/// Routes that need no token, because what probes them has none.
const OPEN: [&str; 3] = ["/health", "/livez", "/readyz"];

#[derive(Clone)]
pub(super) struct Guard {
    tokens: Tokens,
    metrics_public: bool,
    /// Only this machine is listened to, and nobody needs a token.
    is_private: bool,
    deadline: Duration,
    body_bytes_max: usize,
}

impl Guard {
    pub fn new(config: &Config) -> Self {
        Self {
            tokens: Tokens::new(config),
            metrics_public: config.metrics_public,
            is_private: !config.has_token() && !config.allow_public_without_token,
            deadline: Duration::from_millis(config.request_timeout_ms),
            body_bytes_max: config.body_bytes_max,
        }
    }

    /// `Err` says what is missing.
    fn admit(&self, request: &Request) -> Result<(), (Kind, &'static str)> {
        let path = request.uri().path();
        if OPEN.contains(&path) || is_page(path) || (self.metrics_public && path == "/metrics") {
            return Ok(());
        }
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_first_chunk());
        let given = given.filter(|(scheme, _): &(&[u8; 7], _)| scheme.eq_ignore_ascii_case(b"bearer "));
        let access = self.tokens.of_strangers().or_else(|| self.tokens.of(given?.1.trim_ascii()));
        match access {
            None => Err((Kind::Unauthorized, "send the header `Authorization: Bearer <server.token>`")),
            Some(access) if request.method() == Method::POST && !access.may_write() => {
                Err((Kind::Forbidden, "this token may only ask; events need server.write_token or server.token"))
            }
            Some(access) if request.method() != Method::POST && !access.may_read() && path != EVENTS => Err((
                Kind::Forbidden,
                "this token may only send events; questions need server.read_token or server.token",
            )),
            Some(_) => Ok(()),
        }
    }
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

/// What a browser sends for a page of another site, which could not read an answer but have it worked for.
fn is_of_another_site(request: &Request) -> bool {
    let text = |name: HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or("?").trim());
    let is_foreign = |origin: &str| origin.split_once("://").map(|(_, authority)| authority) != text(header::HOST);
    matches!(text(HeaderName::from_static("sec-fetch-site")), Some("cross-site" | "same-site"))
        || text(header::ORIGIN).is_some_and(is_foreign)
}

pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    if guard.is_private && !names_this_machine(&request) {
        let detail = "the Host header is neither localhost nor an address: a page of another site may be behind this request; ask for \
                      localhost, or set server.token";
        return Problem::new(Kind::Forbidden, detail, &path).into_response();
    }
    // Links to the page or to metrics may stand anywhere.
    if path.starts_with("/api/") && is_of_another_site(&request) {
        let detail = "a page of another site may neither send events nor ask from here";
        return Problem::new(Kind::Forbidden, detail, &path).into_response();
    }
    if let Err((kind, detail)) = guard.admit(&request) {
        return Problem::new(kind, detail, &path).into_response();
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
