//! The routes.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Router, middleware};

use super::access::Right;
use super::context::{Context, Letters, Live, Shared};
use super::etag::is_known;
use super::format::Format;
use super::guard::{Caller, Guard, guard};
use super::ingest::Ingest;
use super::params::Asked;
use super::problem::{Kind, Problem};
use super::{Config, body, events, page, params};
use traqq_core::error::ErrorLine;
use traqq_counts::query::{Engine, QueryResult, Request};
use traqq_log::BrokerError;
use traqq_pipeline::Unfit;

/// Dead letters of an answer, unless a number is given, and at most.
const DEAD_LETTERS_DEFAULT: usize = 100;
const DEAD_LETTERS_MAX: usize = 1000;

const JSON: &str = "application/json";
const OPENAPI: &str = include_str!("openapi.json");

/// Bytes of dead letters in one answer, of what one answer may hold.
const DEAD_LETTERS_SHARE: usize = 4;

type Method = fn() -> MethodRouter<Arc<Context>>;

/// A path, with what answers it, and who may ask it with which method.
pub(super) struct Route {
    pub path: &'static str,
    pub rights: &'static [(&'static str, Right)],
    answer: Method,
}

const fn route(path: &'static str, rights: &'static [(&'static str, Right)], answer: Method) -> Route {
    Route { path, rights, answer }
}

const PAGE: &[(&str, Right)] = &[("GET", Right::Page)];
const ASK: &[(&str, Right)] = &[("GET", Right::Ask)];
const OPEN: &[(&str, Right)] = &[("GET", Right::Open)];

/// Every path that there is.
pub(super) static ROUTES: [Route; 16] = [
    route("/", PAGE, || get(page::index)),
    route("/page.css", PAGE, || get(page::css)),
    route("/page.js", PAGE, || get(page::js)),
    route("/uplot.css", PAGE, || get(page::uplot_css)),
    route("/uplot.js", PAGE, || get(page::uplot_js)),
    // How events are read is also for those who may only send them.
    route("/api/v1/events", &[("GET", Right::AskOrSend), ("POST", Right::Send)], || {
        post(events::events).get(events::rules)
    }),
    route("/api/v1/query", ASK, || get(query)),
    route("/api/v1/find", ASK, || get(find)),
    route("/api/v1/catalog", ASK, || get(catalog)),
    route("/api/v1/stats", ASK, || get(stats)),
    route("/api/v1/dead-letters", ASK, || get(dead_letters)),
    route("/api/v1/openapi.json", ASK, || get(openapi)),
    route("/metrics", &[("GET", Right::Metrics)], || get(metrics)),
    route("/health", OPEN, || get(livez)),
    route("/livez", OPEN, || get(livez)),
    route("/readyz", OPEN, || get(readyz)),
];

/// What a request asks for; of what there is not, any token is told so.
pub(super) fn right_of(path: &str, method: &axum::http::Method) -> Right {
    // A HEAD is a GET without its body.
    let method = if method == axum::http::Method::HEAD { "GET" } else { method.as_str() };
    let rights = ROUTES.iter().find(|route| route.path == path).map_or(&[][..], |route| route.rights);
    rights.iter().find(|(known, _)| *known == method).map_or(Right::AskOrSend, |(_, right)| *right)
}

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
    let routes = ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.answer)()));
    let patience = Duration::from_millis(config.request_timeout_ms);
    let body_bytes_max = config.body_bytes_max;
    routes
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(Guard::new(config, right_of), guard))
        .with_state(Arc::new(Context { engine, live, ingest, body_bytes_max, patience, clock }))
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
        let (answer, memory) = context.engine.answer_with_memory(question).await?;
        format.response(answer, memory, context.patience)?
    };
    let tag = HeaderValue::try_from(tag).expect("hex digits and letters");
    response.headers_mut().insert(header::ETAG, tag);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A text that is new every time.
fn fresh(kind: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")], body.into()).into_response()
}

async fn stats(State(context): Shared, uri: Uri) -> Response {
    if let Err(error) = params::none(&uri) {
        return Problem::of(error, uri.path()).into_response();
    }
    let mut stats = (context.live.stats)();
    if let Some(ingest) = &context.ingest {
        stats["ingest"] = ingest.to_json();
    }
    // What the process says of itself is short, and asked for while answers hold all of their
    // memory.
    fresh(JSON, stats.to_string())
}

async fn dead_letters(State(context): Shared, uri: Uri) -> Response {
    let problem = |kind, detail: String| Problem::new(kind, detail, uri.path()).into_response();
    let (before, limit) = match params::letters(&uri) {
        Ok((before, limit)) => (before, limit.unwrap_or(DEAD_LETTERS_DEFAULT).min(DEAD_LETTERS_MAX)),
        Err(error) => return Problem::of(error, uri.path()).into_response(),
    };
    let Some(read) = &context.live.dead_letters else {
        let detail = "dead letters are not kept here; with Kafka they are in broker.kafka.dead_letter_topic, with NATS in broker.nats.dead_letter_subject";
        return problem(Kind::NotFound, detail.to_owned());
    };
    let memory = context.engine.memory().permit();
    let bytes_max = memory.answer_bytes_max() / DEAD_LETTERS_SHARE;
    // Of them, while they are read.
    if let Err(error) = memory.take(bytes_max) {
        return Problem::of(error, uri.path()).into_response();
    }
    let read = Arc::clone(read);
    let read = tokio::task::spawn_blocking(move || read(before, limit, bytes_max)).await;
    let Letters { text, more_before } =
        match read.unwrap_or_else(|error| Err(BrokerError::Retry(ErrorLine::from_error(error)))) {
            Ok(letters) => letters,
            Err(error) => return problem(Kind::Unavailable, error.to_string()),
        };
    drop(memory);
    let mut response = match body::of_text(text, context.engine.memory(), context.patience) {
        Ok(body) => fresh(JSON, body),
        Err(error) => return Problem::of(error, uri.path()).into_response(),
    };
    if let Some(number) = more_before {
        let link = format!("<{}?before={number}&limit={limit}>; rel=\"next\"", uri.path());
        response.headers_mut().insert(header::LINK, HeaderValue::try_from(link).expect("a path and numbers"));
    }
    response
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, JSON)], OPENAPI).into_response()
}

async fn metrics(State(context): Shared) -> Response {
    fresh("text/plain; version=0.0.4; charset=utf-8", (context.live.metrics)())
}

async fn livez(State(context): Shared, caller: Extension<Caller>, uri: Uri) -> Response {
    probed((context.live.liveness)(), "ok\n", Kind::NotLive, *caller, &uri)
}

async fn readyz(State(context): Shared, caller: Extension<Caller>, uri: Uri) -> Response {
    probed((context.live.readiness)(), "ready\n", Kind::NotReady, *caller, &uri)
}

/// The reason may name addresses and topics, which strangers are not told.
fn probed(state: Result<(), Unfit>, fit: &'static str, kind: Kind, caller: Caller, uri: &Uri) -> Response {
    match state {
        Ok(()) => fit.into_response(),
        Err(unfit) if caller.may_ask() => Problem::new(kind, unfit.reason, uri.path()).into_response(),
        Err(unfit) => Problem::new(kind, unfit.class, uri.path()).into_response(),
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
