//! `POST /api/v1/events`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;

use super::cloudevents::Attributes;
use super::context::Context;
use super::ingest::{Coding, Format, Hold, Ingest, Judged, NoRoom, Report, UnpackError, fingerprint, unpack};
use super::problem::{Kind, Problem};
use super::{body, params};
use crate::telemetry::names;
use traqq_log::AppendError;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const KEY_MAX: usize = 255;
/// Bodies up to this size are judged where they were read; larger ones would hold up other
/// requests.
const INLINE_MAX: usize = 16 << 10;

const NO_INGEST: &str = "this process takes no events: it only answers queries, or it reads topics and does not know which of \
                         them events go to; set broker.kafka.ingest_topic";

/// Of the threads that judge large bodies and do nothing else.
const JUDGE_NICE: i32 = 5;

/// What an event takes besides its text.
const EVENT_BYTES: usize = 24;

/// What the head of a request says about its body.
#[derive(Clone)]
struct Head {
    format: Format,
    coding: Coding,
    key: Option<String>,
    /// Of a CloudEvent in binary mode.
    attributes: Option<Attributes>,
    /// The name of all events, where a header is configured to say it.
    name: Option<String>,
}

type Answer<T> = Result<T, (Kind, String)>;

pub(super) async fn events(State(context): State<Arc<Context>>, request: Request<Body>) -> Response {
    let path = request.uri().path().to_owned();
    match take(&context, request).await {
        Ok(response) => response,
        Err((kind, detail)) => Problem::new(kind, detail, &path).into_response(),
    }
}

/// How events are read: what those who send them need to know.
pub(super) async fn rules(State(context): State<Arc<Context>>, uri: Uri) -> Response {
    if let Err(error) = params::none(&uri) {
        return Problem::of(error, uri.path()).into_response();
    }
    match &context.ingest {
        Some(ingest) => ([(header::CACHE_CONTROL, "no-store")], Json(ingest.rules())).into_response(),
        None => Problem::new(Kind::NotImplemented, NO_INGEST.to_owned(), uri.path()).into_response(),
    }
}

async fn take(context: &Context, request: Request<Body>) -> Answer<Response> {
    let Some(ingest) = &context.ingest else {
        return Err((Kind::NotImplemented, NO_INGEST.to_owned()));
    };
    let head = read_head(request.headers(), ingest.name_header())?;
    let mut hold = ingest.hold();
    let body = read_body(request.into_body(), context.body_bytes_max, &mut hold).await?;
    let (judged, fingerprint) = if body.len() <= INLINE_MAX && head.coding == Coding::Plain {
        judge(ingest, body, &head, context.body_bytes_max, &mut hold)?
    } else {
        let (ingest, bytes_max) = (Arc::clone(ingest), context.body_bytes_max);
        let head = head.clone();
        let work = move || {
            let _ = rustix::process::setpriority_process(None, JUDGE_NICE);
            judge(&ingest, body, &head, bytes_max, &mut hold).map(|judged| (judged, hold))
        };
        let judged = tokio::task::spawn_blocking(work).await;
        let (judged, held) = judged.map_err(|error| (Kind::Unavailable, error.to_string()))??;
        hold = held;
        judged
    };
    let key = head.key.map(|key| (key, fingerprint));
    let appended = ingest.append(judged, key, hold, "http").await;
    let (report, is_replayed) = appended.map_err(|error| match error {
        AppendError::Retry(line) => (Kind::Unavailable, line.to_string()),
        AppendError::Refused { index, reason } => {
            (Kind::BodyTooLarge, format!("event {index}: {reason}; others of this request may be in the log"))
        }
        AppendError::KeyReused => {
            (Kind::KeyReused, "this Idempotency-Key came with another body before; use a new one".to_owned())
        }
        AppendError::KeysUnsupported(text) => (Kind::NotImplemented, text),
        AppendError::Impossible(line) => (Kind::NotImplemented, line.to_string()),
        AppendError::KeysFull(text) => {
            metrics::counter!(names::INGEST_REFUSED).increment(1);
            (Kind::Busy, text)
        }
    })?;
    if report.accepted == 0 {
        return Ok(refused(&report, context));
    }
    let text = |report: &Report| serde_json::to_vec(report).expect("numbers and names are JSON");
    let mut response = Response::new(told(&report, context, text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if is_replayed {
        response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The text of an answer, which counts among all answers; without the errors where there is no room
/// for them: the events are in the log, and whoever was told to come back would send them again.
fn told(report: &Report, context: &Context, text: impl Fn(&Report) -> Vec<u8>) -> Body {
    body::of_text(text(report), context.engine.memory(), context.patience).unwrap_or_else(|_| {
        let Report { accepted, rejected, .. } = *report;
        Body::from(text(&Report { accepted, rejected, errors: Vec::new() }))
    })
}

/// Nothing was accepted: a problem with the same members as an answer.
fn refused(report: &Report, context: &Context) -> Response {
    let detail = report.errors.first().map_or_else(|| "no event".to_owned(), |error| error.detail.clone());
    let document = |report: &Report| {
        serde_json::json!({
            "type": "urn:traqq:problem:rejected",
            "title": "No event was accepted",
            "status": 400,
            "detail": detail,
            "instance": "/api/v1/events",
            "accepted": report.accepted,
            "rejected": report.rejected,
            "errors": report.errors,
        })
    };
    let body = told(report, context, |report| document(report).to_string().into_bytes());
    let mut response = (StatusCode::BAD_REQUEST, body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

fn read_head(headers: &HeaderMap, name_header: Option<&str>) -> Answer<Head> {
    let attributes = Attributes::of(headers).map_err(|line| (Kind::BadRequest, line.to_string()))?;
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?").trim());
    let content_type = text(header::CONTENT_TYPE).map(|value| value.split(';').next().unwrap_or_default().trim());
    let format = match content_type.map(str::to_ascii_lowercase).as_deref() {
        Some("application/json" | "application/cloudevents+json" | "application/cloudevents-batch+json") => {
            Format::Json
        }
        Some("application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines") => {
            Format::Lines
        }
        None | Some("application/octet-stream") => Format::Unknown,
        // Its header is one that a web page of another site cannot send without asking.
        Some(_) if attributes.is_some() => Format::Unknown,
        // A web page of another site can send these without asking; so can `curl -d`, by default.
        Some(other) => {
            let detail = format!(
                "Content-Type {other:?} is not taken; send application/json (one event or an array) or application/x-ndjson (an event a line); \
                 with curl: --json"
            );
            return Err((Kind::UnsupportedMediaType, detail));
        }
    };
    let coding = match text(header::CONTENT_ENCODING).map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "identity") => Coding::Plain,
        Some("gzip" | "x-gzip") => Coding::Gzip,
        Some("zstd") => Coding::Zstd,
        Some(other) => {
            let detail = format!("Content-Encoding {other:?} is not taken; use gzip, zstd or none");
            return Err((Kind::UnsupportedMediaType, detail));
        }
    };
    let key = match headers.get(IDEMPOTENCY_KEY).map(HeaderValue::as_bytes) {
        None => None,
        Some(key) if (1..=KEY_MAX).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic) => {
            Some(String::from_utf8_lossy(key).into_owned())
        }
        Some(_) => {
            let detail = format!("Idempotency-Key has 1 to {KEY_MAX} visible ASCII characters");
            return Err((Kind::BadRequest, detail));
        }
    };
    let name = name_header.and_then(|name| headers.get(name)).and_then(|value| str::from_utf8(value.as_bytes()).ok());
    let name = name.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(Head { format, coding, key, attributes, name })
}

fn no_room() -> (Kind, String) {
    (Kind::Busy, "too many events are on their way at once; send this again in a moment".to_owned())
}

fn too_large(bytes_max: usize) -> (Kind, String) {
    let detail = format!(
        "a body may have {bytes_max} bytes, packed and unpacked (server.body_bytes_max); send fewer events at once"
    );
    (Kind::BodyTooLarge, detail)
}

async fn read_body(mut body: Body, bytes_max: usize, hold: &mut Hold) -> Answer<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (Kind::BadRequest, format!("the body ended early: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        hold.take(data.len()).map_err(|NoRoom| no_room())?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn judge(ingest: &Ingest, body: Vec<u8>, head: &Head, bytes_max: usize, hold: &mut Hold) -> Answer<(Judged, u64)> {
    let body = unpack(body, head.coding, bytes_max, hold).map_err(|error| match error {
        UnpackError::NoRoom => no_room(),
        UnpackError::TooLarge => too_large(bytes_max),
        UnpackError::Malformed(error) => (Kind::BadRequest, format!("the body cannot be unpacked: {error}")),
    })?;
    // The events are copied out of it.
    hold.take(body.len()).map_err(|NoRoom| no_room())?;
    let mut judge = ingest.judge();
    if let Some(name) = &head.name {
        judge.name_events(name.clone());
    }
    // What headers say of an event is a part of it.
    let mut fingerprint = fingerprint(&body);
    match &head.attributes {
        Some(attributes) => {
            let event = attributes.clone().with_data(&body).map_err(|line| (Kind::BadRequest, line.to_string()))?;
            fingerprint = super::ingest::fingerprint(&event);
            _ = judge.event(&event);
        }
        None => judge.body(&body, head.format).map_err(|line| (Kind::BadRequest, line.to_string()))?,
    }
    if let Some(name) = &head.name {
        fingerprint = fingerprint.rotate_left(1) ^ super::ingest::fingerprint(name.as_bytes());
    }
    let judged = judge.finish();
    hold.take(judged.events.len() * EVENT_BYTES).map_err(|NoRoom| no_room())?;
    Ok((judged, fingerprint))
}
