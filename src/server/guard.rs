//! What stands in front of every route: the right that it asks for, where a request comes from, the
//! size of the body, the deadline.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Config;
use super::access::{Access, Right, Tokens};
use super::problem::{Kind, Problem};

/// What a request for a path with a method asks for.
pub(super) type RightOf = fn(&str, &Method) -> Right;

#[derive(Clone)]
pub(super) struct Guard {
    right_of: RightOf,
    tokens: Tokens,
    metrics_public: bool,
    /// Only this machine is listened to, and nobody needs a token.
    is_private: bool,
    deadline: Duration,
    body_bytes_max: usize,
}

/// Who asks, as far as a token or the lack of any says it: an extension of every request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Caller(Option<Access>);

impl Caller {
    pub fn may_ask(self) -> bool {
        self.0.is_some_and(Access::may_read)
    }
}

impl Guard {
    pub fn new(config: &Config, right_of: RightOf) -> Self {
        Self {
            right_of,
            tokens: Tokens::new(config),
            metrics_public: config.metrics_public,
            is_private: !config.has_token() && !config.allow_public_without_token,
            deadline: Duration::from_millis(config.request_timeout_ms),
            body_bytes_max: config.body_bytes_max,
        }
    }

    /// `Err` says what is missing.
    fn admit(&self, right: Right, request: &Request) -> Result<Caller, (Kind, &'static str)> {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.as_bytes().split_first_chunk());
        let given = given.filter(|(scheme, _): &(&[u8; 7], _)| scheme.eq_ignore_ascii_case(b"bearer "));
        let of_given = || self.tokens.of(given?.1.trim_ascii());
        let access = self.tokens.of_strangers().or_else(of_given);
        let is_open = matches!(right, Right::Open | Right::Page) || (self.metrics_public && right == Right::Metrics);
        match access {
            None if !is_open => Err((Kind::Unauthorized, "send the header `Authorization: Bearer <server.token>`")),
            Some(access) if !is_open && !right.is_given_by(access) => Err((
                Kind::Forbidden,
                if right == Right::Send {
                    "this token may only ask; events need server.write_token or server.token"
                } else {
                    "this token may only send events; questions need server.read_token or server.token"
                },
            )),
            access => Ok(Caller(access)),
        }
    }
}

/// A request that names its host twice, or not at all, or as two different ones, may have been
/// understood otherwise by whoever passed it on.
fn host_is_clear(request: &Request) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err("the request has two Host headers; send one");
    }
    let Some(host) = host else {
        let needs_host = request.version() >= axum::http::Version::HTTP_11;
        return if needs_host { Err("the request has no Host header; send one") } else { Ok(()) };
    };
    let Ok(host) = host.to_str() else { return Err("the Host header is not readable") };
    if host.bytes().any(|byte| byte.is_ascii_whitespace() || matches!(byte, b',' | b'@' | b'/')) {
        return Err("the Host header is not a host and a port");
    }
    match request.uri().authority() {
        Some(authority) if !authority.as_str().eq_ignore_ascii_case(host) => {
            Err("the request's target names another host than its Host header")
        }
        _ => Ok(()),
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

/// What a browser sends for a page of another site, which could not read an answer but have it
/// worked for.
fn is_of_another_site(request: &Request) -> bool {
    let text = |name: HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or("?").trim());
    let is_foreign = |origin: &str| origin.split_once("://").map(|(_, authority)| authority) != text(header::HOST);
    matches!(text(HeaderName::from_static("sec-fetch-site")), Some("cross-site" | "same-site"))
        || text(header::ORIGIN).is_some_and(is_foreign)
}

pub(super) async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    if let Err(detail) = host_is_clear(&request) {
        let mut response = Problem::new(Kind::BadRequest, detail, &path).into_response();
        // Whatever comes behind it may be meant for somebody else.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    if guard.is_private && !names_this_machine(&request) {
        let detail = "the Host header is neither localhost nor an address: a page of another site may be behind this request; ask for \
                      localhost, or set server.token";
        return Problem::new(Kind::Forbidden, detail, &path).into_response();
    }
    let right = (guard.right_of)(&path, request.method());
    // Links to the page may stand anywhere.
    if right != Right::Page && is_of_another_site(&request) {
        let detail = "a page of another site may neither send events nor ask from here";
        return Problem::new(Kind::Forbidden, detail, &path).into_response();
    }
    match guard.admit(right, &request) {
        Ok(caller) => _ = request.extensions_mut().insert(caller),
        Err((kind, detail)) => return Problem::new(kind, detail, &path).into_response(),
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

/// On the connections that are kept for probes while all others are taken: nothing but probes.
pub(super) async fn probes_only(State(right_of): State<RightOf>, request: Request, next: Next) -> Response {
    if right_of(request.uri().path(), request.method()) == Right::Open {
        return next.run(request).await;
    }
    let detail = "all connections are taken, in all (server.connections_max) or of this address \
                  (server.connections_per_address_max); try again in a moment";
    Problem::new(Kind::Unavailable, detail, request.uri().path()).into_response()
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
        let layer = axum::middleware::from_fn_with_state(Guard::new(&config, |_, _| Right::Open), guard);
        let router = axum::Router::new().route("/slow", slow).layer(layer);
        let request =
            Request::builder().uri("/slow").header("host", "localhost").body(axum::body::Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }
}
