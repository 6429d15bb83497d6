//! The dashboard: five files in the binary that hold no data. What they show they ask from the other routes.

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::routes::is_known;
use crate::hll::murmur64a;

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

pub(super) struct File {
    pub path: &'static str,
    content_type: &'static str,
    pub text: &'static str,
}

pub(super) static FILES: [File; 5] = [
    File { path: "/", content_type: "text/html; charset=utf-8", text: include_str!("page/index.html") },
    File { path: "/page.css", content_type: "text/css; charset=utf-8", text: include_str!("page/page.css") },
    File { path: "/page.js", content_type: "text/javascript; charset=utf-8", text: include_str!("page/page.js") },
    File { path: "/uplot.css", content_type: "text/css; charset=utf-8", text: include_str!("page/uplot.css") },
    File { path: "/uplot.js", content_type: "text/javascript; charset=utf-8", text: include_str!("page/uplot.js") },
];

/// The files beside the index, which is a route of its own.
pub(super) fn add_to<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    let beside = FILES.iter().filter(|file| file.path != "/");
    beside.fold(router, |router, file| {
        router.route(file.path, get(move |headers: HeaderMap| async move { answer(file, &headers) }))
    })
}

pub(super) async fn index(headers: HeaderMap) -> Response {
    answer(&FILES[0], &headers)
}

/// Whether a path is the page's own, for which nobody needs a token.
pub(super) fn is_page(path: &str) -> bool {
    FILES.iter().any(|file| file.path == path)
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
