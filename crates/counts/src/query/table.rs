//! An answer as a table: a row for each bucket and value, and in every row the same columns. That
//! is what programs read that know tables only: Grafana, pandas, DuckDB, spreadsheets.
//!
//! - The columns follow from the question and the mapping, never from what was counted.
//! - A label has a column for each field of its pattern. A field that is called like one of the
//!   other columns gets another name.
//! - A bucket without values has one row: its number is 0 when nothing was counted, and nothing
//!   when it is not known.
//! - What an answer says about all values of a bucket (`all_*`, `values_seen`) stands in each of
//!   its rows, so that it is never added up with them by mistake.

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;

use super::answer::{Cell, Data, Decimal, FindAnswer, MetricName, QueryAnswer, RangeAnswer, Reason, SpanAnswer, Value};

pub struct Table {
    /// What is said once, as a JSON object.
    head: String,
    file_name: String,
    columns: Vec<Column>,
    names: Vec<String>,
    spans: Vec<SpanAnswer>,
    metrics: Vec<Named>,
    cells: Vec<Placed>,
    /// The one value that was asked for.
    value: Option<Value>,
    /// How many buckets the range has.
    buckets: usize,
}

struct Named {
    name: MetricName,
    /// The column of each field of its pattern, if its values have labels.
    labels: Vec<usize>,
}

/// Where a cell belongs: its indices in the table's lists.
struct Placed {
    span: usize,
    metric: usize,
    cell: Cell,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Column {
    Time,
    TimeMs,
    LocalTime,
    End,
    Metric,
    Pattern,
    AddKey,
    Of,
    /// Of the field with this index.
    Label(usize),
    Other,
    Rank,
    Unique,
    Error,
    Count,
    Sum,
    Avg,
    AllCount,
    AllSum,
    AllAvg,
    AllMin,
    AllMax,
    ValuesSeen,
    Exact,
    Capped,
    Incomplete,
    Partial,
    Missing,
    Reason,
}

/// What stands in one column of one row.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Field<'a> {
    /// Not known, or of no meaning here.
    Nothing,
    Text(&'a str),
    Time(i64),
    Whole(i128),
    Decimal(Decimal),
    Fraction(f64),
    Flag(bool),
}

/// One value of a cell, or what stands for it when there is none.
#[derive(Clone, Copy, Default)]
struct Row<'a> {
    value: Option<&'a Value>,
    is_other: bool,
    rank: Option<usize>,
    unique: Option<u64>,
    count: Option<i128>,
    sum: Option<Decimal>,
}

impl Column {
    /// All of them but labels, in the order in which they stand.
    const FIXED: [Self; 27] = [
        Self::Time,
        Self::TimeMs,
        Self::LocalTime,
        Self::End,
        Self::Metric,
        Self::Pattern,
        Self::AddKey,
        Self::Of,
        Self::Other,
        Self::Rank,
        Self::Unique,
        Self::Error,
        Self::Count,
        Self::Sum,
        Self::Avg,
        Self::AllCount,
        Self::AllSum,
        Self::AllAvg,
        Self::AllMin,
        Self::AllMax,
        Self::ValuesSeen,
        Self::Exact,
        Self::Capped,
        Self::Incomplete,
        Self::Partial,
        Self::Missing,
        Self::Reason,
    ];
    const TIMES: [Self; 4] = [Self::Time, Self::TimeMs, Self::LocalTime, Self::End];
    const NAMES: [Self; 4] = [Self::Metric, Self::Pattern, Self::AddKey, Self::Of];
    const FLAGS: [Self; 4] = [Self::Capped, Self::Incomplete, Self::Partial, Self::Reason];

    /// What a kind of metric has, or one value of it.
    fn of(kind: &str, is_one: bool) -> Vec<Self> {
        use Column::{AllAvg, AllCount, AllMax, AllMin, AllSum, Avg, Count, Error, Exact, Other, Rank, Sum, Unique};
        match (kind, is_one) {
            ("bitmap", _) | ("bitmap_by", true) => vec![Unique, Error],
            ("bitmap_by", false) => vec![Other, Unique, Error, Self::ValuesSeen],
            ("add", false) => vec![Other, Count, AllCount, Self::ValuesSeen],
            ("add_value", false) => {
                vec![Other, Count, Sum, Avg, AllCount, AllSum, AllAvg, AllMin, AllMax, Self::ValuesSeen]
            }
            ("add_value", true) => vec![Count, Sum, Avg],
            ("top", false) => vec![Other, Rank, Count, Exact],
            _ => vec![Count],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::TimeMs => "time_ms",
            Self::LocalTime => "local_time",
            Self::End => "end",
            Self::Metric => "metric",
            Self::Pattern => "pattern",
            Self::AddKey => "add_key",
            Self::Of => "of",
            Self::Label(_) => "",
            Self::Other => "other",
            Self::Rank => "rank",
            Self::Unique => "unique",
            Self::Error => "error",
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Avg => "avg",
            Self::AllCount => "all_count",
            Self::AllSum => "all_sum",
            Self::AllAvg => "all_avg",
            Self::AllMin => "all_min",
            Self::AllMax => "all_max",
            Self::ValuesSeen => "values_seen",
            Self::Exact => "exact",
            Self::Capped => "capped",
            Self::Incomplete => "incomplete",
            Self::Partial => "partial",
            Self::Missing => "missing",
            Self::Reason => "reason",
        }
    }
}

impl Table {
    pub fn of_find(answer: FindAnswer) -> Self {
        let FindAnswer { metric, value, since, range, merged, results } = answer;
        let mut measures = Column::of(metric.metric, value.is_some());
        measures.extend(Column::TIMES.into_iter().chain(Column::FLAGS));
        measures.extend(merged.then_some(Column::Missing));
        let fields = fields_of(&metric);
        let (columns, names) = header(&measures, &fields);
        let head = to_json(&Head {
            metric: Some(&metric),
            value: value.as_ref(),
            since: since.as_deref(),
            range: &range,
            merged: Some(merged),
            columns: &names,
        });
        let file_name = file_name(&format!("{}-{}", metric.metric, metric.pattern), &range);
        let (mut spans, mut cells) = (Vec::new(), Vec::new());
        for (span, result) in results.into_iter().enumerate() {
            spans.push(result.span);
            cells.push(Placed { span, metric: 0, cell: result.cell });
        }
        let metrics = vec![Named { labels: (0..fields.len()).collect(), name: metric }];
        Self { head, file_name, columns, names, spans, metrics, cells, value, buckets: range.buckets }
    }

    pub fn of_query(answer: QueryAnswer) -> Self {
        let QueryAnswer { range, buckets } = answer;
        // Every bucket has all metrics of the mapping, in its order.
        let known: Vec<MetricName> =
            buckets.first().map_or_else(Vec::new, |first| first.metrics.iter().map(|it| it.metric.clone()).collect());
        let mut fields: Vec<String> = known.iter().flat_map(fields_of).collect();
        fields.sort_unstable();
        fields.dedup();
        let mut measures: Vec<Column> = known.iter().flat_map(|name| Column::of(name.metric, false)).collect();
        measures.extend(Column::TIMES.into_iter().chain(Column::NAMES).chain(Column::FLAGS));
        let (columns, names) = header(&measures, &fields);
        let head =
            to_json(&Head { metric: None, value: None, since: None, range: &range, merged: None, columns: &names });
        let place = |field: &String| fields.binary_search(field).expect("all are in it");
        let metrics =
            known.into_iter().map(|name| Named { labels: fields_of(&name).iter().map(place).collect(), name });
        let metrics = metrics.collect();
        let (mut spans, mut cells) = (Vec::new(), Vec::new());
        for (span, bucket) in buckets.into_iter().enumerate() {
            spans.push(bucket.span);
            let of_bucket = bucket.metrics.into_iter().enumerate();
            cells.extend(of_bucket.map(|(metric, it)| Placed { span, metric, cell: it.cell }));
        }
        let file_name = file_name("all", &range);
        Self { head, file_name, columns, names, spans, metrics, cells, value: None, buckets: range.buckets }
    }

    /// A JSON object without rows: the metric, the bounds of the range and the names of the
    /// columns.
    pub(super) fn head(&self) -> &str {
        &self.head
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// What the table may be called when it is kept, without a suffix.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    /// How many rows a cell has; `None` after the last cell.
    pub(super) fn rows(&self, cell: usize) -> Option<usize> {
        self.cells.get(cell).map(|placed| placed.cell.data.as_ref().map_or(1, |data| data.rows().max(1)))
    }

    /// One row of a cell.
    pub(super) fn row(&self, cell: usize, row: usize) -> impl Iterator<Item = Field<'_>> {
        let placed = &self.cells[cell];
        let row = placed.cell.data.as_ref().map_or_else(Row::default, |data| Row::of(data, row));
        self.columns.iter().map(move |column| self.field(*column, placed, &row))
    }

    fn field<'a>(&'a self, column: Column, placed: &'a Placed, row: &Row<'a>) -> Field<'a> {
        let (Named { name, labels }, span) = (&self.metrics[placed.metric], &self.spans[placed.span]);
        let cell = &placed.cell;
        let text = |text: &'a Option<String>| text.as_deref().map_or(Field::Nothing, Field::Text);
        match column {
            Column::Time => Field::Time(span.start_epoch),
            Column::TimeMs => Field::Whole(i128::from(span.start_epoch) * 1000),
            Column::LocalTime => Field::Text(&span.start),
            Column::End => Field::Time(span.end_epoch),
            Column::Metric => Field::Text(name.metric),
            Column::Pattern => Field::Text(&name.pattern),
            Column::AddKey => text(&name.add_key),
            Column::Of => text(&name.of),
            Column::Label(field) => {
                match (row.value.or(self.value.as_ref()), labels.iter().position(|at| *at == field)) {
                    // What is counted together has no values of its own.
                    (Some(Value::One(value)), Some(_)) => Field::Text(value),
                    (Some(Value::Many(values)), Some(at)) => {
                        values.get(at).map_or(Field::Nothing, |value| Field::Text(value))
                    }
                    _ => Field::Nothing,
                }
            }
            Column::Other => row.value.map_or(Field::Nothing, |_| Field::Flag(row.is_other)),
            Column::Rank => whole(row.rank),
            Column::Unique => whole(row.unique),
            Column::Count => row.count.map_or(Field::Nothing, Field::Whole),
            Column::Sum => decimal(row.sum),
            Column::Avg => decimal(row.sum.zip(row.count).and_then(average)),
            Column::Capped => Field::Flag(cell.capped),
            Column::Incomplete => Field::Flag(cell.incomplete),
            Column::Partial => Field::Flag(cell.partial),
            // Without data it is all of them, for a reason.
            Column::Missing if cell.data.is_none() => whole(Some(self.buckets)),
            Column::Missing => whole(Some(cell.missing.values().sum::<usize>())),
            Column::Reason => cell.reason.map_or(Field::Nothing, |reason| Field::Text(reason_name(reason))),
            of_all => cell.data.as_ref().map_or(Field::Nothing, |data| overall(of_all, data)),
        }
    }
}

impl<'a> Row<'a> {
    fn of(data: &'a Data, index: usize) -> Self {
        // Of a list that is empty, nothing was counted.
        let none = Self::default();
        match data {
            Data::Unique { unique, .. } => Self { unique: Some(*unique), ..none },
            Data::UniqueBy { values, .. } => values.get(index).map_or(Self { unique: Some(0), ..none }, |row| Self {
                value: Some(&row.value),
                is_other: row.other,
                unique: Some(row.unique),
                ..none
            }),
            Data::Count { values, .. } => values.get(index).map_or(Self { count: Some(0), ..none }, |row| Self {
                value: Some(&row.value),
                is_other: row.other,
                count: Some(row.count),
                ..none
            }),
            Data::CountOne { count } => Self { count: Some(*count), ..none },
            Data::Sum { values, .. } => {
                let zero = Self { count: Some(0), sum: Some(Decimal(0)), ..none };
                values.get(index).map_or(zero, |row| Self {
                    value: Some(&row.value),
                    is_other: row.other,
                    count: Some(row.count),
                    sum: Some(row.sum),
                    ..none
                })
            }
            Data::SumOne { sum, count } => Self { count: Some(*count), sum: Some(*sum), ..none },
            Data::Top { values, .. } => values.get(index).map_or(Self { count: Some(0), ..none }, |row| Self {
                value: Some(&row.value),
                is_other: row.other,
                // What is counted together is no value, so it has no place among them.
                rank: (!row.other).then(|| index + 1 - values[..index].iter().filter(|before| before.other).count()),
                count: Some(row.count),
                ..none
            }),
        }
    }
}

/// What is said about all values of a cell.
fn overall<'a>(column: Column, data: &Data) -> Field<'a> {
    match (column, data) {
        (Column::Error, Data::Unique { error, .. } | Data::UniqueBy { error, .. }) => Field::Fraction(*error),
        (Column::AllCount, Data::Count { count, .. } | Data::Sum { count, .. }) => Field::Whole(*count),
        (Column::AllSum, Data::Sum { sum, .. }) => Field::Decimal(*sum),
        (Column::AllAvg, Data::Sum { sum, count, .. }) => decimal(average((*sum, *count))),
        (Column::AllMin, Data::Sum { min, .. }) => decimal(*min),
        (Column::AllMax, Data::Sum { max, .. }) => decimal(*max),
        (
            Column::ValuesSeen,
            Data::UniqueBy { values_seen, .. } | Data::Count { values_seen, .. } | Data::Sum { values_seen, .. },
        ) => whole(Some(*values_seen)),
        (Column::Exact, Data::Top { exact, .. }) => Field::Flag(*exact),
        _ => Field::Nothing,
    }
}

/// To the nearest millionth, halves away from zero.
fn average((Decimal(sum), count): (Decimal, i128)) -> Option<Decimal> {
    let nearest = (sum.unsigned_abs().checked_mul(2)?.checked_add(count.unsigned_abs())?)
        .checked_div(count.unsigned_abs().checked_mul(2)?)?;
    let nearest = i128::try_from(nearest).ok()?;
    Some(Decimal(if (sum < 0) == (count < 0) { nearest } else { -nearest }))
}

fn whole<'a>(number: Option<impl TryInto<i128>>) -> Field<'a> {
    number.and_then(|number| number.try_into().ok()).map_or(Field::Nothing, Field::Whole)
}

fn decimal<'a>(number: Option<Decimal>) -> Field<'a> {
    number.map_or(Field::Nothing, Field::Decimal)
}

const fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Expired => "expired",
        Reason::BeforeSince => "before_since",
        Reason::Unreadable => "unreadable",
    }
}

pub(super) fn utc_text(second: i64) -> String {
    let time = DateTime::from_timestamp(second, 0).expect("ranges are limited to the years 1 to 9999");
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// The fields of a metric's labels. The pattern of a unique count says what is counted, not by
/// what.
fn fields_of(name: &MetricName) -> Vec<String> {
    let is_labelled = name.metric != "bitmap";
    name.pattern.split('~').filter(|_| is_labelled).map(str::to_owned).collect()
}

/// The columns that are wanted, labels after the names of metrics, and what they are called.
fn header(wanted: &[Column], fields: &[String]) -> (Vec<Column>, Vec<String>) {
    let mut columns: Vec<Column> = Column::FIXED.into_iter().filter(|column| wanted.contains(column)).collect();
    let is_before = |column: &Column| Column::TIMES.contains(column) || Column::NAMES.contains(column);
    let at = columns.iter().take_while(|column| is_before(column)).count();
    columns.splice(at..at, (0..fields.len()).map(Column::Label));
    // The same for every question, so that a field has one name in all tables; and in any case,
    // which DuckDB does not tell apart.
    let mut taken: Vec<String> = Column::FIXED.iter().map(|column| column.name().to_owned()).collect();
    let mut name_of_field = |field: &String| {
        let mut name = field.clone();
        while taken.contains(&name.to_lowercase()) {
            name.insert_str(0, "label_");
        }
        taken.push(name.to_lowercase());
        name
    };
    let labels: Vec<String> = fields.iter().map(&mut name_of_field).collect();
    let name = |column: &Column| match column {
        Column::Label(field) => labels[*field].clone(),
        fixed => fixed.name().to_owned(),
    };
    let names = columns.iter().map(name).collect();
    (columns, names)
}

/// `traqq-top-url-2023-11-14`, of characters that no system and no header takes for something else.
fn file_name(what: &str, range: &RangeAnswer) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let what: String = what.chars().map(|c| if is_plain(&c) { c } else { '-' }).take(80).collect();
    format!("traqq-{what}-{}", range.span.start.get(..10).unwrap_or_default())
}

#[derive(Serialize)]
struct Head<'a> {
    #[serde(flatten)]
    metric: Option<&'a MetricName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<&'a str>,
    #[serde(flatten)]
    range: &'a RangeAnswer,
    #[serde(skip_serializing_if = "Option::is_none")]
    merged: Option<bool>,
    columns: &'a [String],
}

fn to_json(head: &Head<'_>) -> String {
    serde_json::to_string(head).expect("texts and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_collide_are_made_distinct() {
        let fields = ["Count", "geo", "Geo", "label_time", "time", "url"].map(str::to_owned);
        let (_, names) = header(&[Column::Time, Column::Count], &fields);
        assert_eq!(
            names,
            ["time", "label_Count", "geo", "label_Geo", "label_time", "label_label_time", "url", "count"]
        );
    }

    #[test]
    fn averages_are_rounded_to_the_nearest_millionth() {
        for (sum, count, expected) in
            [(10, 4, Some(3)), (-10, 4, Some(-3)), (9, 4, Some(2)), (0, 3, Some(0)), (5, 0, None), (i128::MAX, 2, None)]
        {
            assert_eq!(average((Decimal(sum), count)), expected.map(Decimal), "{sum} / {count}");
        }
    }

    #[test]
    fn files_have_plain_names() {
        let span =
            SpanAnswer { start: "2023-11-14T00:00:00Z".to_owned(), end: String::new(), start_epoch: 0, end_epoch: 0 };
        let range = RangeAnswer { bucket: traqq_core::model::BucketKind::Day, time_zone: "UTC", buckets: 1, span };
        assert_eq!(file_name("add-a\"/..\r\né~b", &range), "traqq-add-a--------b-2023-11-14");
    }
}
