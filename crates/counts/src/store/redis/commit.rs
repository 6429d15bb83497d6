//! A batch as arguments of `commit.lua`, and the session that sends it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::{Cmd, Value, cmd};
use tokio::task::JoinHandle;

use super::node::Node;
use super::shadow::Shadow;
use super::{StoreError, StoreResult, parse_positions};
use crate::mapping::{Elements, KeyWrite, WriteBatch, Writes, increments};
use crate::store::keys::{Keys, encode};
use crate::store::{Applied, Meta, Outcome, Positions, Quarantined, Session};
use traqq_core::model::{Checkpoint, Span};

const SCRIPT: &str = include_str!("commit.lua");
/// Meta and positions of one moment.
const STORED: &str = "if redis.call('EXISTS', KEYS[1]) == 0 then return false end
    return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}";

/// How often a session is used at least: servers and what lies between close connections that are
/// idle, and a batch that meets a closed one is in doubt.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// Uses a connection now and then until it is dropped, or dead, which the next batch finds out.
struct KeepAlive(JoinHandle<()>);

impl KeepAlive {
    fn of(mut node: Node) -> Self {
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE_MAX).await;
                let pong: Result<Value, _> = cmd("PING").query_async(&mut node.connection).await;
                if pong.is_err_and(|error| error.is_unrecoverable_error()) {
                    return;
                }
            }
        }))
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the script needs to know of the rules.
#[derive(Clone, Debug)]
pub struct Limits {
    pub plan: String,
    pub values_per_key: usize,
    pub values_per_key_bitmap_by: usize,
}

pub struct RedisSession {
    node: Node,
    keys: Keys,
    limits: Limits,
    script: String,
    /// Locked for the length of a fold over one batch, never across an await.
    shadow: Arc<Mutex<Shadow>>,
    _keep_alive: KeepAlive,
}

impl RedisSession {
    pub fn new(node: Node, keys: Keys, limits: Limits, shadow_bytes_max: usize) -> Self {
        let shadow = Arc::new(Mutex::new(Shadow::new(shadow_bytes_max)));
        let _keep_alive = KeepAlive::of(node.clone());
        Self { node, keys, limits, script: String::new(), shadow, _keep_alive }
    }

    pub async fn load_script(mut self) -> StoreResult<Self> {
        self.script = self.node.query(cmd("SCRIPT").arg("LOAD").arg(SCRIPT)).await?;
        Ok(self)
    }
}

#[async_trait]
impl Session for RedisSession {
    async fn stored(&mut self) -> StoreResult<Option<(Meta, Positions)>> {
        type Found = Option<(BTreeMap<String, String>, Vec<(String, String)>)>;
        let ask = cmd("EVAL").arg(STORED).arg(2).arg(self.keys.meta()).arg(self.keys.checkpoint()).clone();
        let Some((fields, positions)) = self.node.query::<Found>(&ask).await? else { return Ok(None) };
        Ok(Some((Meta::of_fields(&fields)?, parse_positions(positions)?)))
    }

    async fn commit(&mut self, batch: Arc<WriteBatch>) -> BoxFuture<'static, StoreResult<Outcome>> {
        let encoded = {
            let shadow = self.shadow.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Encoded::new(&batch, &self.keys, &self.limits, &shadow, &self.script)
        };
        let mut node = self.node.clone();
        let shadow = Arc::clone(&self.shadow);
        let mut answer = async move {
            let mut outcome = parse_outcome(node.send(&encoded.command).await?, &batch.spans)?;
            if let Outcome::Applied(applied) = &mut outcome {
                applied.elements_sent = encoded.elements_sent;
                applied.elements_saved = encoded.elements_saved;
                shadow.lock().unwrap_or_else(std::sync::PoisonError::into_inner).absorb(&batch);
            }
            Ok(outcome)
        }
        .boxed();
        // The first poll puts the command on the connection's queue, so that batches go out in the
        // order of the calls; budget of the scheduler must not come in between. Were it otherwise
        // the fence would refuse the batch.
        let first = tokio::task::unconstrained(std::future::poll_fn(|context| {
            std::task::Poll::Ready(answer.poll_unpin(context))
        }));
        match first.await {
            std::task::Poll::Ready(outcome) => futures_util::future::ready(outcome).boxed(),
            std::task::Poll::Pending => answer,
        }
    }
}

struct Encoded {
    command: Cmd,
    elements_sent: u64,
    elements_saved: u64,
}

impl Encoded {
    fn new(batch: &WriteBatch, keys: &Keys, limits: &Limits, shadow: &Shadow, script: &str) -> Self {
        let mut encoder = Encoder {
            names: vec![keys.checkpoint(), keys.meta(), keys.quarantine(), keys.never()],
            arguments: Arguments::default(),
            relied_on: Vec::new(),
            writes: 0,
            elements_sent: 0,
            elements_saved: 0,
            keys,
            limits,
        };
        for write in &batch.writes {
            encoder.write(write, shadow);
        }
        let mut command = cmd("EVALSHA");
        command.arg(script).arg(encoder.names.len());
        for name in &encoder.names {
            command.arg(name);
        }
        command.arg(&limits.plan).arg(batch.spans.len());
        for span in &batch.spans {
            command.arg(span.partition.to_string()).arg(span.from.to_string()).arg(span.to.to_string());
        }
        if encoder.relied_on.is_empty() {
            command.arg(0).arg(0);
        } else {
            let built_to = shadow.built_to();
            command.arg(built_to.len());
            for (partition, position) in built_to {
                command.arg(partition.to_string()).arg(position);
            }
            command.arg(encoder.relied_on.len());
            for (index, expiry) in &encoder.relied_on {
                command.arg(*index).arg(expiry);
            }
        }
        command.arg(encoder.writes);
        for argument in encoder.arguments.iter() {
            command.arg(argument);
        }
        Self { command, elements_sent: encoder.elements_sent, elements_saved: encoder.elements_saved }
    }
}

/// Arguments end to end, as [`Elements`] are.
type Arguments = Elements;

struct Encoder<'a> {
    names: Vec<String>,
    arguments: Arguments,
    /// Indexes, from 1, into `names` of keys that must exist for the shadow to hold, with their
    /// expiry.
    relied_on: Vec<(usize, String)>,
    writes: usize,
    elements_sent: u64,
    elements_saved: u64,
    keys: &'a Keys,
    limits: &'a Limits,
}

impl Encoder<'_> {
    fn write(&mut self, write: &KeyWrite, shadow: &Shadow) {
        match &write.writes {
            Writes::Unique(elements) => self.unique(write, elements, shadow),
            Writes::UniqueBy(values) => self.unique_by(write, values),
            Writes::Count(values) => self.counts(write, "c", values),
            Writes::Top(values) => self.counts(write, "t", values),
            Writes::Sum(values, totals) => {
                let parts: Vec<i64> = increments(totals.sum).collect();
                let values: Vec<(&str, i64, i64)> = values
                    .iter()
                    .flat_map(|(label, sum, count)| {
                        increments(*sum)
                            .enumerate()
                            .map(move |(index, part)| (&**label, part, if index == 0 { *count } else { 0 }))
                    })
                    .collect();
                self.head(write, "s", 6 + parts.len() + values.len() * 3);
                self.number(self.limits.values_per_key as i64);
                for number in [totals.count, totals.min, totals.max, parts.len() as i64] {
                    self.number(number);
                }
                parts.iter().for_each(|part| self.number(*part));
                self.number(values.len() as i64);
                for (label, sum, count) in values {
                    self.text(label);
                    self.number(sum);
                    self.number(count);
                }
            }
        }
    }

    fn unique(&mut self, write: &KeyWrite, elements: &Elements, shadow: &Shadow) {
        let filtered = shadow.filter(write, elements);
        let kept = filtered.as_ref().unwrap_or(elements);
        self.elements_sent += kept.len() as u64;
        self.elements_saved += (elements.len() - kept.len()) as u64;
        if filtered.is_some() {
            self.relied_on.push((self.names.len() + 1, expiry_text(write)));
        }
        self.head(write, "u", kept.len());
        kept.iter().for_each(|element| self.arguments.push(element));
    }

    fn unique_by(&mut self, write: &KeyWrite, values: &[(Box<str>, Elements)]) {
        let crate::mapping::Metric::UniqueBy { of, by } = &write.metric else {
            unreachable!("writes fit their metric")
        };
        let elements: usize = values.iter().map(|(_, elements)| elements.len()).sum();
        self.elements_sent += elements as u64;
        self.head(write, "b", 3 + values.len() * 3 + elements);
        self.number(self.limits.values_per_key_bitmap_by as i64);
        self.text(&self.keys.unique_by_prefix(write.bucket, of, by));
        self.number(values.len() as i64);
        for (label, elements) in values {
            self.text(label);
            self.text(&encode(label));
            self.number(elements.len() as i64);
            elements.iter().for_each(|element| self.arguments.push(element));
        }
    }

    fn counts(&mut self, write: &KeyWrite, kind: &str, values: &[(Box<str>, i64)]) {
        self.head(write, kind, 2 + values.len() * 2);
        self.number(self.limits.values_per_key as i64);
        self.number(values.len() as i64);
        for (label, count) in values {
            self.text(label);
            self.number(*count);
        }
    }

    fn head(&mut self, write: &KeyWrite, kind: &str, arguments: usize) {
        self.writes += 1;
        self.names.extend(self.keys.of_metric(write.bucket, &write.metric));
        self.text(kind);
        self.text(&self.keys.tracking(write.bucket));
        self.text(&expiry_text(write));
        self.number(arguments as i64);
    }

    fn text(&mut self, text: &str) {
        self.arguments.push(text.as_bytes());
    }

    fn number(&mut self, number: i64) {
        let mut digits = itoa::Buffer::new();
        self.arguments.push(digits.format(number).as_bytes());
    }
}

fn expiry_text(write: &KeyWrite) -> String {
    write.expires_at.map(|expiry| expiry.to_string()).unwrap_or_default()
}

fn parse_outcome(answer: Value, spans: &[Span]) -> StoreResult<Outcome> {
    let unexpected = |answer: &dyn std::fmt::Debug| StoreError::stop(format!("redis: unexpected answer {answer:?}"));
    let Value::Array(parts) = answer else { return Err(unexpected(&answer)) };
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        _ => String::new(),
    };
    let number = |value: &Value| if let Value::Int(number) = value { *number as u64 } else { 0 };
    let kind = parts.first().map(&text).unwrap_or_default();
    match (kind.as_str(), &parts[..]) {
        ("applied", [_, expired, folded, Value::Array(quarantined)]) => {
            let quarantined = quarantined
                .chunks(2)
                .map(|pair| Quarantined { key: text(&pair[0]), error: pair.get(1).map(&text).unwrap_or_default() });
            Ok(Outcome::Applied(Applied {
                keys_expired: number(expired),
                values_folded: number(folded),
                quarantined: quarantined.collect(),
                ..Applied::default()
            }))
        }
        ("fence", [_, stored @ ..]) => {
            let stored = spans.iter().zip(stored).map(|(span, stored)| {
                let stored = text(stored);
                let checkpoint: Option<Checkpoint> = if stored.is_empty() { None } else { Some(stored.parse()?) };
                Ok((span.partition.clone(), checkpoint))
            });
            Ok(Outcome::Fenced(stored.collect::<StoreResult<_>>()?))
        }
        ("plan", [_, plan]) => Ok(Outcome::PlanChanged(text(plan))),
        ("shadow", _) => Ok(Outcome::ShadowStale),
        _ => Err(unexpected(&parts)),
    }
}
