//! The routes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router, middleware};
use serde_json::Value;

use super::format::Format;
use super::guard::{Guard, guard};
use super::ingest::Ingest;
use super::params::Asked;
use super::problem::{Kind, Problem};
use super::{Config, events, page, params};
use crate::query::{Engine, QueryResult, Request};

/// Dead letters of an answer, unless a number is given, and at most.
const DEAD_LETTERS_DEFAULT: usize = 100;
const DEAD_LETTERS_MAX: usize = 1000;

const OPENAPI: &str = include_str!("openapi.json");

/// `Err` says why they cannot be read.
pub type DeadLetters = Box<dyn Fn(usize) -> Result<Value, String> + Send + Sync>;

/// What the process says about itself.
pub struct Live {
    /// `Err` says what hangs.
    pub liveness: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// `Err` says why it is not ready.
    pub readiness: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// The document of `/api/v1/stats`.
    pub stats: Box<dyn Fn() -> Value + Send + Sync>,
    /// The text of `/metrics`.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// So many of the newest dead letters; `None` when they are somewhere else.
    pub dead_letters: Option<DeadLetters>,
}

pub(super) struct Context {
    engine: Arc<Engine>,
    live: Live,
    /// `None` when this process takes no events.
    pub ingest: Option<Arc<Ingest>>,
    pub body_bytes_max: usize,
    /// Epoch seconds.
    clock: fn() -> i64,
}

type Shared = State<Arc<Context>>;
type Method = fn() -> MethodRouter<Arc<Context>>;

/// Every path, with what answers it.
pub(super) const ROUTES: [(&str, Method); 12] = [
    ("/", || get(page::index)),
    ("/api/v1/events", || post(events::events).get(events::rules)),
    ("/api/v1/query", || get(query)),
    ("/api/v1/find", || get(find)),
    ("/api/v1/catalog", || get(catalog)),
    ("/api/v1/stats", || get(stats)),
    ("/api/v1/dead-letters", || get(dead_letters)),
    ("/api/v1/openapi.json", || get(openapi)),
    ("/metrics", || get(metrics)),
    ("/health", || get(livez)),
    ("/livez", || get(livez)),
    ("/readyz", || get(readyz)),
];

pub fn router(config: &Config, engine: impl Into<Arc<Engine>>, live: Live, ingest: Option<Arc<Ingest>>) -> Router {
    router_at(config, engine.into(), live, ingest, wall_clock)
}

pub(super) fn router_at(
    config: &Config,
    engine: Arc<Engine>,
    live: Live,
    ingest: Option<Arc<Ingest>>,
    clock: fn() -> i64,
) -> Router {
    let routes = ROUTES.iter().fold(Router::new(), |router, (path, answer)| router.route(path, answer()));
    page::add_to(routes)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Guard::new(config), guard))
        .with_state(Arc::new(Context { engine, live, ingest, body_bytes_max: config.body_bytes_max, clock }))
}

fn wall_clock() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

async fn query(State(context): Shared, uri: Uri, headers: HeaderMap) -> Response {
    formatted(&context, &uri, &headers, params::query(&uri)).await
}

async fn find(State(context): Shared, uri: Uri, headers: HeaderMap) -> Response {
    formatted(&context, &uri, &headers, params::find(&uri)).await
}

async fn catalog(State(context): Shared, uri: Uri, headers: HeaderMap) -> Response {
    let asked = params::catalog(&uri).map(|request| (request, Format::Json));
    answer(&context, &uri, &headers, asked).await
}

/// An answer in the form that the question says, or that the client prefers.
async fn formatted(context: &Context, uri: &Uri, headers: &HeaderMap, asked: QueryResult<Asked>) -> Response {
    let asked = asked.map(|(request, format)| (request, format.unwrap_or_else(|| Format::preferred(headers))));
    let mut response = answer(context, uri, headers, asked).await;
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

async fn answer(context: &Context, uri: &Uri, headers: &HeaderMap, asked: QueryResult<(Request, Format)>) -> Response {
    match try_answer(context, headers, asked).await {
        Ok(response) => response,
        Err(error) => Problem::of(error, uri.path()).into_response(),
    }
}

async fn try_answer(
    context: &Context,
    headers: &HeaderMap,
    asked: QueryResult<(Request, Format)>,
) -> QueryResult<Response> {
    let (request, format) = asked?;
    let question = context.engine.prepare(&request, (context.clock)()).await?;
    // Weak: an answer may already hold what is applied between its tag and its reads.
    let tag = format!("W/\"{}{}\"", context.engine.tag(&question).await?, format.suffix());
    let mut response = if is_known(headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        format.response(context.engine.answer(&question).await?)
    };
    let tag = HeaderValue::try_from(tag).expect("hex digits and letters");
    response.headers_mut().insert(header::ETAG, tag);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// Whether `If-None-Match` names the tag; compared weakly, as RFC 9110 wants it.
pub(super) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let given = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    given.flat_map(|value| value.split(',')).any(|given| given.trim() == "*" || opaque(given) == opaque(tag))
}

async fn stats(State(context): Shared, uri: Uri) -> Response {
    match params::none(&uri) {
        Ok(()) => {
            let mut stats = (context.live.stats)();
            if let Some(ingest) = &context.ingest {
                stats["ingest"] = ingest.to_json();
            }
            ([(header::CACHE_CONTROL, "no-store")], Json(stats)).into_response()
        }
        Err(error) => Problem::of(error, uri.path()).into_response(),
    }
}

async fn dead_letters(State(context): Shared, uri: Uri) -> Response {
    let problem = |kind, detail: String| Problem::new(kind, detail, uri.path()).into_response();
    let limit = match params::limit_only(&uri) {
        Ok(limit) => limit.unwrap_or(DEAD_LETTERS_DEFAULT).min(DEAD_LETTERS_MAX),
        Err(error) => return Problem::of(error, uri.path()).into_response(),
    };
    match context.live.dead_letters.as_ref().map(|read| read(limit)) {
        Some(Ok(letters)) => ([(header::CACHE_CONTROL, "no-store")], Json(letters)).into_response(),
        Some(Err(error)) => problem(Kind::Unavailable, error),
        None => {
            let detail = "dead letters are not kept here; with Kafka they are in broker.kafka.dead_letter_topic, with NATS in broker.nats.dead_letter_subject";
            problem(Kind::NotFound, detail.to_owned())
        }
    }
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn metrics(State(context): Shared) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], (context.live.metrics)()).into_response()
}

async fn livez(State(context): Shared, uri: Uri) -> Response {
    match (context.live.liveness)() {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => Problem::new(Kind::NotLive, reason, uri.path()).into_response(),
    }
}

async fn readyz(State(context): Shared, uri: Uri) -> Response {
    match (context.live.readiness)() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => Problem::new(Kind::NotReady, reason, uri.path()).into_response(),
    }
}

async fn not_found(uri: Uri) -> Response {
    let detail = "there is nothing at this path; /api/v1/openapi.json lists what there is";
    Problem::new(Kind::NotFound, detail, uri.path()).into_response()
}

async fn method_not_allowed(uri: Uri) -> Response {
    let method =
        if uri.path() == "/api/v1/events" { "use POST, or GET to learn how events are read" } else { "use GET" };
    Problem::new(Kind::MethodNotAllowed, method, uri.path()).into_response()
}
