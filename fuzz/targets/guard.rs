//! The head of a request to a server that anybody on this machine may use: a line with method and
//! target, and a header a line. Who asks under another name than this machine's, or for a page of
//! another site, gets nothing but the page.

#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use axum::{Router, http::header};
use libfuzzer_sys::fuzz_target;
use tower::ServiceExt;
use traqq::server::{Config, Live, router};
use traqq_fuzz::{engine, run};

static ROUTER: LazyLock<Router> = LazyLock::new(|| {
    let live = Live {
        liveness: Box::new(|| Ok(())),
        readiness: Box::new(|| Ok(())),
        stats: Box::new(|| serde_json::json!({})),
        metrics: Box::new(String::new),
        dead_letters: None,
    };
    router(&Config::default(), engine(), live, None)
});

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = std::str::from_utf8(lines.next().unwrap_or_default()).unwrap_or_default();
    let Some((method, target)) = first.split_once(' ') else { return };
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), target.parse::<Uri>()) else { return };
    let mut request = Request::builder().method(method).uri(uri);
    for line in lines {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..at]);
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            request = request.header(name, value);
        }
    }
    let Ok(request) = request.body(Body::empty()) else { return };
    let hosts: Vec<HeaderValue> = request.headers().get_all(header::HOST).iter().cloned().collect();
    let origin = request.headers().get(header::ORIGIN).cloned();
    let is_api = request.uri().path().starts_with("/api/");
    let response = run(ROUTER.clone().oneshot(request)).expect("a router answers");
    let is_refused = matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN);
    let [host] = &hosts[..] else {
        assert!(is_refused, "{} hosts: {}", hosts.len(), response.status());
        return;
    };
    let host = host.to_str().unwrap_or("?");
    assert!(is_refused || is_this_machine(host), "{host:?}: {}", response.status());
    if let Some(origin) = origin.filter(|_| is_api) {
        let origin = origin.to_str().unwrap_or("?");
        let is_ours = origin.split_once("://").is_some_and(|(_, authority)| authority == host);
        assert!(is_refused || is_ours, "{origin:?} at {host:?}: {}", response.status());
    }
});

/// A name without its port.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rfind(':') {
        Some(at) if host[at + 1..].bytes().all(|byte| byte.is_ascii_digit()) => &host[..at],
        _ => host,
    };
    let name = name.to_ascii_lowercase();
    let is_address = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    name == "localhost" || name.ends_with(".localhost") || is_address(&name) || is_address(host)
}
