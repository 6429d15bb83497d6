//! Which form an answer has: what `format` says, or else what `Accept` prefers.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

use super::body;
use traqq_counts::query::{Answer, Extent, MemoryPermit, Nested, Pieces, QueryError, QueryResult, Table, Text};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Nested, as the metrics are.
    Json,
    /// JSON with a flat list of rows.
    Rows,
    Csv,
    /// CSV that a spreadsheet opens without harm.
    Spreadsheet,
}

impl Format {
    pub fn parse(text: &str) -> QueryResult<Self> {
        match text {
            "json" => Ok(Self::Json),
            "rows" => Ok(Self::Rows),
            "csv" => Ok(Self::Csv),
            "spreadsheet" => Ok(Self::Spreadsheet),
            _ => Err(QueryError::BadRequest(format!(
                "format={text} is not known; write json, rows (flat rows in JSON), csv, or spreadsheet (CSV without formulas)"
            ))),
        }
    }

    /// CSV only for those who prefer it to JSON by name or weight; everybody else gets JSON, as
    /// ever.
    pub fn preferred(headers: &HeaderMap) -> Self {
        let given = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges: Vec<&str> = given.flat_map(|value| value.split(',')).collect();
        let (csv, json) = (weight(&ranges, "text", "csv"), weight(&ranges, "application", "json"));
        if csv > json && csv.0 > 0 { Self::Csv } else { Self::Json }
    }

    /// Tells the forms of one answer apart in its tag.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Json => "",
            Self::Rows => "-rows",
            Self::Csv => "-csv",
            Self::Spreadsheet => "-spreadsheet",
        }
    }

    /// `memory` is what the answer holds; `patience` how long a client may take for nothing.
    pub fn response(self, answer: Answer, memory: MemoryPermit, patience: Duration) -> QueryResult<Response> {
        let nested = |answer, memory| {
            let pieces = Nested::new(answer, Extent::Whole);
            body::of_pieces(pieces, memory, patience).map(of_json)
        };
        let text = match self {
            Self::Json => return nested(answer, memory),
            Self::Rows => Text::Json,
            Self::Csv => Text::Csv,
            Self::Spreadsheet => Text::Spreadsheet,
        };
        let table = match answer {
            Answer::Query(answer) => Table::of_query(answer),
            Answer::Find(answer) => Table::of_find(answer),
            // It has no rows, and its route knows no format.
            Answer::Catalog(_) => return nested(answer, memory),
        };
        let disposition = format!("attachment; filename=\"{}.csv\"", table.file_name());
        let body = body::of_pieces(Pieces::new(table, text), memory, patience)?;
        if text == Text::Json {
            return Ok(of_json(body));
        }
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8; header=present"));
        // What is in it came with events: a browser is to keep it, and to take it for nothing else.
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let disposition = HeaderValue::try_from(disposition).expect("file names are plain");
        headers.insert(header::CONTENT_DISPOSITION, disposition);
        Ok(response)
    }
}

fn of_json(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The weight in thousandths that a client gives a type, and how exactly it named it (RFC 9110,
/// section 12.5.1).
fn weight(ranges: &[&str], kind: &str, subtype: &str) -> (u16, u8) {
    let mut best: Option<(u8, u16)> = None;
    for range in ranges {
        let mut parts = range.split(';').map(str::trim);
        let Some((left, right)) = parts.next().and_then(|range| range.split_once('/')) else { continue };
        let exactness = match (left.eq_ignore_ascii_case(kind), right.eq_ignore_ascii_case(subtype)) {
            (true, true) => 2,
            (true, false) if right == "*" => 1,
            _ if (left, right) == ("*", "*") => 0,
            _ => continue,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let weight = weight.map_or(Some(1.0), |text| text.trim().parse::<f64>().ok());
        let thousandths = (weight.unwrap_or(0.0).clamp(0.0, 1.0) * 1000.0).round() as u16;
        if best.is_none_or(|(known, _)| exactness > known) {
            best = Some((exactness, thousandths));
        }
    }
    best.map_or((0, 0), |(exactness, thousandths)| (thousandths, exactness))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_prefers_csv_gets_it() {
        for (accept, expected) in [
            ("text/csv", Format::Csv),
            ("TEXT/CSV; header=present", Format::Csv),
            ("text/*", Format::Csv),
            ("text/csv, */*;q=0.1", Format::Csv),
            ("text/csv, */*", Format::Csv),
            ("application/json;q=0.5, text/csv;q=0.9", Format::Csv),
            ("text/csv;q=0.9, application/json;q=0.5, */*", Format::Csv),
            ("", Format::Json),
            ("*/*", Format::Json),
            ("application/json", Format::Json),
            ("text/csv, application/json", Format::Json),
            ("text/csv;q=0.5, application/json", Format::Json),
            ("text/csv;q=0, application/*;q=0", Format::Json),
            ("text/csv;q=0", Format::Json),
            ("text/csv;q=x", Format::Json),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", Format::Json),
            ("image/png", Format::Json),
            ("nonsense", Format::Json),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(Format::preferred(&headers), expected, "{accept}");
        }
    }
}
