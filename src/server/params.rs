//! From a query string to a request. An unknown, repeated or unreadable parameter is an error that
//! names it.

use axum::extract::Query;
use axum::http::Uri;

use super::format::Format;
use traqq_core::model::BucketKind;
use traqq_counts::query::{Align, Find, Order, QueryError, QueryResult, Range, Request, Selector};

struct Params {
    pairs: Vec<(String, String)>,
}

/// A request, and the form in which its answer was asked for, if that was said.
pub type Asked = (Request, Option<Format>);

pub fn query(uri: &Uri) -> QueryResult<Asked> {
    let params = Params::parse(uri, &["days", "from", "to", "align", "bucket", "limit", "format"])?;
    let request = Request::Query { range: params.range()?, bucket: params.bucket()?, limit: params.limit()? };
    Ok((request, params.format()?))
}

pub fn catalog(uri: &Uri) -> QueryResult<Request> {
    let params = Params::parse(uri, &["days", "from", "to", "align", "bucket"])?;
    Ok(Request::Catalog { range: params.range()?, bucket: params.bucket()? })
}

pub fn find(uri: &Uri) -> QueryResult<Asked> {
    let names = [
        "q", "metric", "pattern", "add_key", "of", "value", "days", "from", "to", "align", "bucket", "merge", "order",
        "limit", "format",
    ];
    let params = Params::parse(uri, &names)?;
    let named = (params.get("metric"), params.get("pattern"), params.get("add_key"), params.get("of"));
    let selector = match (params.get("q"), named) {
        (Some(short), (None, None, None, None)) => Selector::parse(short)?,
        (Some(_), _) => {
            return Err(QueryError::BadRequest(
                "`q` names the metric; leave `metric`, `pattern`, `add_key` and `of` out".to_owned(),
            ));
        }
        (None, (Some(metric), Some(pattern), add_key, of)) => Selector::new(metric, pattern, add_key, of)?,
        (None, _) => {
            return Err(QueryError::BadRequest(
                "which metric? write q=top/geo, or metric=top&pattern=geo; /api/v1/catalog lists all".to_owned(),
            ));
        }
    };
    let request = Request::Find(Find {
        selector,
        value: params.get("value").map(str::to_owned),
        range: params.range()?,
        bucket: params.bucket()?,
        merge: params.flag("merge")?,
        order: params.get("order").map(Order::parse).transpose()?,
        limit: params.limit()?,
    });
    Ok((request, params.format()?))
}

/// For a route that knows `limit` and nothing else.
/// Before which number, and how many.
pub fn letters(uri: &Uri) -> QueryResult<(Option<i64>, Option<usize>)> {
    let params = Params::parse(uri, &["before", "limit"])?;
    let number = |text: &str| {
        let number = text.parse().ok().filter(|number: &i64| *number >= 0);
        number.ok_or_else(|| QueryError::BadRequest(format!("before={text} is not the number of a dead letter")))
    };
    Ok((params.get("before").map(number).transpose()?, params.limit()?))
}

/// For routes without parameters.
pub fn none(uri: &Uri) -> QueryResult<()> {
    Params::parse(uri, &[]).map(|_| ())
}

impl Params {
    fn parse(uri: &Uri, known: &[&str]) -> QueryResult<Self> {
        let bad = |text: String| Err(QueryError::BadRequest(text));
        let pairs = match Query::<Vec<(String, String)>>::try_from_uri(uri) {
            Ok(Query(pairs)) => pairs,
            Err(error) => return bad(format!("the query string is unreadable: {}", error.body_text())),
        };
        for (index, (name, _)) in pairs.iter().enumerate() {
            if !known.contains(&&**name) {
                let names = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return bad(format!("the parameter `{name}` is unknown; there are: {names}"));
            }
            if pairs[..index].iter().any(|(earlier, _)| earlier == name) {
                return bad(format!("the parameter `{name}` is given twice"));
            }
        }
        Ok(Self { pairs })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    fn range(&self) -> QueryResult<Range> {
        let align = self.get("align").map_or(Ok(Align::default()), Align::parse)?;
        Range::of(self.get("days"), self.get("from"), self.get("to"), align)
    }

    fn bucket(&self) -> QueryResult<BucketKind> {
        match self.get("bucket") {
            None => Ok(BucketKind::Day),
            Some(letter) => BucketKind::parse(letter).ok_or_else(|| {
                QueryError::BadRequest(format!("bucket={letter} is unknown; write d (day), h (hour) or m (minute)"))
            }),
        }
    }

    fn format(&self) -> QueryResult<Option<Format>> {
        self.get("format").map(Format::parse).transpose()
    }

    fn flag(&self, name: &str) -> QueryResult<bool> {
        match self.get(name) {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(text) => Err(QueryError::BadRequest(format!("{name}={text} is neither true nor false"))),
        }
    }

    fn limit(&self) -> QueryResult<Option<usize>> {
        let read = |text: &str| {
            text.parse().map_err(|_| QueryError::BadRequest(format!("limit={text} is not a whole number from 1")))
        };
        self.get("limit").map(read).transpose()
    }
}
