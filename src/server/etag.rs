//! Tags of answers, by which a client is told that nothing has changed.

use axum::http::{HeaderMap, header};

/// Whether `If-None-Match` names the tag; compared weakly, as RFC 9110 wants it.
pub(super) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let given = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    given.flat_map(|value| value.split(',')).any(|given| given.trim() == "*" || opaque(given) == opaque(tag))
}
