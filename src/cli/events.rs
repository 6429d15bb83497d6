//! Sending events to a server, again and again while that can help.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::client::{Client, ClientError, Reply};
use traqq_core::decode::EventRules;
use traqq_core::error::ErrorLine;

const PATH: &str = "/api/v1/events";
const WAIT_FIRST: Duration = Duration::from_millis(100);
const WAIT_MAX: Duration = Duration::from_secs(2);

const KEYS_REFUSED: &str = "this server stands in front of Kafka, where it cannot notice what is sent twice; \
                            --at-least-once sends without keys";

const KEY_REUSED: &str = "a part of this was imported with other options, such as --time-field or --now, and is not counted once more; \
                          run it with the options of that import";

/// How the events of a body are written down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    /// One object, or an array of objects.
    Json,
    /// An object per line.
    Ndjson,
}

/// What became of a body that the server took.
#[derive(Clone, Default, PartialEq, Eq, Debug, Deserialize)]
pub struct Taken {
    pub accepted: u64,
    pub rejected: u64,
    /// The first of those that were rejected.
    #[serde(default)]
    pub errors: Vec<Rejection>,
    /// The server had the body already.
    #[serde(skip)]
    pub replayed: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Rejection {
    /// Of the event in the body, from 0.
    pub index: u64,
    pub reason: String,
    #[serde(default)]
    pub detail: String,
}

impl Rejection {
    pub fn text(&self) -> String {
        if self.detail.is_empty() { self.reason.clone() } else { format!("{}: {}", self.reason, self.detail) }
    }
}

/// Why a body was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PostError {
    /// It may be taken later, the same body with the same key; not before the time that the server
    /// named.
    Again { why: String, after: Option<Duration> },
    /// It never will.
    Stop(ErrorLine),
}

/// Sends a body once.
pub async fn post(
    client: &mut Client,
    encoding: Encoding,
    body: Bytes,
    key: Option<&str>,
) -> Result<Reply, ClientError> {
    let kind = match encoding {
        Encoding::Json => "application/json",
        Encoding::Ndjson => "application/x-ndjson",
    };
    let mut headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
    if let Some(key) = key {
        let key = HeaderValue::from_str(key).expect("a key is visible ASCII");
        headers.push((HeaderName::from_static("idempotency-key"), key));
    }
    client.send(Method::POST, PATH, &headers, body).await
}

/// What an answer means.
pub fn judge(reply: &Reply) -> Result<Taken, PostError> {
    let again = || PostError::Again { why: reply.problem(), after: reply.retry_after() };
    match reply.status {
        // When all events were rejected the answer is a problem, with the same members.
        StatusCode::OK | StatusCode::BAD_REQUEST => match serde_json::from_slice::<Taken>(&reply.body) {
            Ok(taken) => {
                let replayed = reply.headers.get("idempotent-replayed").is_some_and(|value| value == "true");
                Ok(Taken { replayed, ..taken })
            }
            Err(_) => Err(PostError::Stop(reply.problem().into())),
        },
        // A request with the same key may still be under way, after its connection was lost.
        StatusCode::CONFLICT
        | StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Err(again()),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
            Err(PostError::Stop(format!("this server takes no events ({}); see --server", reply.problem()).into()))
        }
        _ => Err(PostError::Stop(reply.problem().into())),
    }
}

/// How the server reads events. One of an earlier version does not say it, and is taken to read
/// them as this configuration does. Nobody at the other end is an error at once; `waiting` is told
/// why something else is asked again.
pub async fn event_rules(
    client: &mut Client,
    own: &EventRules,
    mut waiting: impl FnMut(String),
) -> Result<EventRules, ErrorLine> {
    let mut wait = WAIT_FIRST;
    loop {
        let why = match client.send(Method::GET, PATH, &[], Bytes::new()).await {
            Ok(reply) if reply.status == StatusCode::OK => return Ok(known_rules(&reply.body, own)),
            Ok(reply) if matches!(reply.status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) => {
                return Ok(own.clone());
            }
            Ok(reply) => match judge(&reply) {
                Ok(_) => return Err(reply.problem().into()),
                Err(PostError::Stop(why)) => return Err(why),
                Err(PostError::Again { why, .. }) => why,
            },
            Err(ClientError::Unreachable(why)) => return Err(why),
            Err(error) => error.to_string(),
        };
        waiting(why);
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WAIT_MAX);
    }
}

/// What a server says, as far as this version knows it.
fn known_rules(told: &[u8], own: &EventRules) -> EventRules {
    let mut rules = serde_json::to_value(own).unwrap_or_default();
    if let (Some(rules), Ok(told)) = (rules.as_object_mut(), serde_json::from_slice::<Map<String, Value>>(told)) {
        for (name, value) in told {
            rules.entry(name).and_modify(|known| *known = value);
        }
    }
    serde_json::from_value(rules).unwrap_or_else(|_| own.clone())
}

/// Whether the server takes events without a key. Nothing is sent to find out: no events are a bad
/// request.
async fn takes_events(client: &mut Client) -> bool {
    let reply = post(client, Encoding::Ndjson, Bytes::new(), None).await;
    reply.is_ok_and(|reply| reply.status == StatusCode::BAD_REQUEST)
}

/// Sends NDJSON until the server has it. `waiting` is told why it has to be sent again, each time.
/// Nobody at the other end is waited for only when somebody was there before, which `reached`
/// remembers.
pub async fn post_until_taken(
    client: &mut Client,
    body: &Bytes,
    key: Option<&str>,
    reached: &AtomicBool,
    mut waiting: impl FnMut(String),
) -> Result<Taken, ErrorLine> {
    let mut wait = WAIT_FIRST;
    // What an attempt before brought there was not there already.
    let mut in_doubt = false;
    loop {
        let result = match post(client, Encoding::Ndjson, body.clone(), key).await {
            Ok(reply) => {
                reached.store(true, Ordering::Relaxed);
                if reply.status == StatusCode::NOT_IMPLEMENTED && key.is_some() && takes_events(client).await {
                    return Err(KEYS_REFUSED.into());
                }
                if reply.status == StatusCode::UNPROCESSABLE_ENTITY && key.is_some() {
                    return Err(KEY_REUSED.into());
                }
                judge(&reply)
            }
            Err(ClientError::Unreachable(why)) if !reached.load(Ordering::Relaxed) => Err(PostError::Stop(why)),
            Err(error) => {
                in_doubt |= matches!(error, ClientError::Lost(_));
                Err(PostError::Again { why: error.to_string(), after: None })
            }
        };
        match result {
            Ok(taken) => return Ok(Taken { replayed: taken.replayed && !in_doubt, ..taken }),
            Err(PostError::Stop(why)) => return Err(why),
            Err(PostError::Again { why, after }) => {
                waiting(why);
                tokio::time::sleep(after.map_or(wait, |after| after.max(wait))).await;
                wait = (wait * 2).min(WAIT_MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, headers: &[(&'static str, &str)], body: &'static str) -> Reply {
        let headers = headers.iter().map(|(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a test's header"))
        });
        Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.collect(),
            body: Bytes::from_static(body.as_bytes()),
        }
    }

    #[test]
    fn a_server_of_another_version_says_what_is_known_of_it() {
        let own = EventRules::default();
        let told = known_rules(br#"{"time_fields":["created"],"max_depth":7,"new":{"x":1}}"#, &own);
        assert_eq!(told, EventRules { time_fields: vec!["created".to_owned()], max_depth: 7, ..own.clone() });
        for other in [&b"{}"[..], b"[]", b"{", b"{\"accepted\":0}", b"{\"max_depth\":\"x\"}"] {
            assert_eq!(known_rules(other, &own), own);
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let taken =
            judge(&reply(200, &[("idempotent-replayed", "true")], r#"{"accepted":2,"rejected":0,"errors":[]}"#));
        assert_eq!(taken, Ok(Taken { accepted: 2, replayed: true, ..Taken::default() }));

        let all = r#"{"status":400,"detail":"d","accepted":0,"rejected":1,"errors":[{"index":0,"reason":"json","detail":"x"}]}"#;
        let taken = judge(&reply(400, &[], all)).unwrap();
        assert_eq!((taken.rejected, taken.errors[0].text().as_str(), taken.replayed), (1, "json: x", false));

        let full = judge(&reply(429, &[("retry-after", "7")], r#"{"detail":"full"}"#));
        assert_eq!(full, Err(PostError::Again { why: "full".to_owned(), after: Some(Duration::from_secs(7)) }));
        let dated = judge(&reply(503, &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")], "{}"));
        assert!(matches!(dated, Err(PostError::Again { after: None, .. })), "{dated:?}");

        for (status, part) in [(400, "detail"), (413, "detail"), (422, "detail"), (500, "detail"), (501, "detail")] {
            let stop = judge(&reply(status, &[], r#"{"detail":"the detail"}"#));
            assert!(matches!(&stop, Err(PostError::Stop(text)) if text.text().contains(part)), "{status}: {stop:?}");
        }
        assert!(
            matches!(judge(&reply(404, &[], "")), Err(PostError::Stop(text)) if text.text().contains("takes no events"))
        );
    }
}
