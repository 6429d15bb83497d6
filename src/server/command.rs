//! One command of the TCP protocol, as it stands in a line.

use serde::Deserialize;
use serde_json::value::RawValue;

use traqq_core::model::BucketKind;
use traqq_counts::query::{Align, Find, QueryError, QueryResult, Range, Request, Selector};

#[derive(Deserialize)]
pub(super) struct Command<'a> {
    pub cmd: &'a str,
    #[serde(borrow)]
    pub event: Option<&'a RawValue>,
    #[serde(borrow)]
    min: Option<&'a RawValue>,
    #[serde(borrow)]
    max: Option<&'a RawValue>,
    days: Option<u32>,
    align: Option<String>,
    metric_type: Option<String>,
    key: Option<String>,
    add_key: Option<String>,
    of: Option<String>,
    bucket: Option<String>,
    #[serde(default)]
    merge: bool,
    limit: Option<usize>,
    pub token: Option<String>,
}

/// Why a line is not understood.
pub(super) struct NoCommand {
    pub error: String,
    /// Somebody speaks another language, such as a browser that was told to: not one more line of
    /// it is heard.
    pub is_foreign: bool,
}

impl<'a> Command<'a> {
    /// Reads a line that is not empty.
    pub fn read(line: &'a [u8]) -> Result<Self, NoCommand> {
        if line[0] != b'{' {
            let error = "the line is no command: a command is a JSON object".to_owned();
            return Err(NoCommand { error, is_foreign: true });
        }
        serde_json::from_slice(line)
            .map_err(|error| NoCommand { error: format!("the line is no command: {error}"), is_foreign: false })
    }

    /// The question that it asks.
    pub fn request(&self) -> QueryResult<Request> {
        let text = |value: Option<&RawValue>| value.map(|value| value.get().trim_matches('"').to_owned());
        let days = self.days.map(|days| days.to_string());
        let align = self.align.as_deref().map_or(Ok(Align::default()), Align::parse);
        let range = align.and_then(|align| {
            Range::of(days.as_deref(), text(self.min).as_deref(), text(self.max).as_deref(), align)
        })?;
        let bucket = match self.bucket.as_deref() {
            None => BucketKind::Day,
            Some(letter) => BucketKind::parse(letter)
                .ok_or_else(|| QueryError::BadRequest(format!("bucket {letter:?} is not d, h or m")))?,
        };
        Ok(if self.cmd == "find" {
            let (Some(metric), Some(key)) = (&self.metric_type, &self.key) else {
                return Err(QueryError::BadRequest("find needs metric_type and key".to_owned()));
            };
            let selector = Selector::new(metric, key, self.add_key.as_deref(), self.of.as_deref());
            Request::Find(Find {
                selector: selector?,
                value: None,
                range,
                bucket,
                merge: self.merge,
                order: None,
                limit: self.limit,
            })
        } else {
            Request::Query { range, bucket, limit: self.limit }
        })
    }
}
