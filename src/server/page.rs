//! The dashboard: five files in the binary that hold no data. What they show they ask from the
//! other routes.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::etag::is_known;
use traqq_core::hll::murmur64a;

/// Nothing from elsewhere, nothing inline, nothing framed.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const HEADERS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    // Asked again every time, and answered with 304: a new binary is a new page.
    (header::CACHE_CONTROL, "no-cache"),
];
const TAG_SEED: u64 = 0x7472_6171_715f_7067;

struct File {
    content_type: &'static str,
    text: &'static str,
}

const fn file(content_type: &'static str, text: &'static str) -> File {
    File { content_type, text }
}

static INDEX: File = file("text/html; charset=utf-8", include_str!("page/index.html"));
static CSS: File = file("text/css; charset=utf-8", include_str!("page/page.css"));
static JS: File = file("text/javascript; charset=utf-8", include_str!("page/page.js"));
static UPLOT_CSS: File = file("text/css; charset=utf-8", include_str!("page/uplot.css"));
static UPLOT_JS: File = file("text/javascript; charset=utf-8", include_str!("page/uplot.js"));

pub(super) async fn index(headers: HeaderMap) -> Response {
    answer(&INDEX, &headers)
}

pub(super) async fn css(headers: HeaderMap) -> Response {
    answer(&CSS, &headers)
}

pub(super) async fn js(headers: HeaderMap) -> Response {
    answer(&JS, &headers)
}

pub(super) async fn uplot_css(headers: HeaderMap) -> Response {
    answer(&UPLOT_CSS, &headers)
}

pub(super) async fn uplot_js(headers: HeaderMap) -> Response {
    answer(&UPLOT_JS, &headers)
}

fn answer(file: &'static File, headers: &HeaderMap) -> Response {
    let tag = format!("\"{:016x}\"", murmur64a(file.text.as_bytes(), TAG_SEED));
    let mut response = if is_known(headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, file.content_type)], file.text).into_response()
    };
    let own = response.headers_mut();
    own.insert(header::ETAG, HeaderValue::try_from(tag).expect("hex digits"));
    own.extend(HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}
