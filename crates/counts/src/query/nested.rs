//! An answer as JSON, nested as the metrics are, piece by piece, so that its text is never held
//! whole: labels of control characters make it six times as long as they are.
//!
//! What surrounds a list is serialised with the list empty, and cut in two where the list belongs.

use serde::Serialize;

use super::answer::{Answer, BucketAnswer, Cell, Data, FindAnswer, MetricCell, QueryAnswer, SpanCell};

/// A piece is complete when it is so long.
const PIECE_BYTES: usize = 64 << 10;
const VALUES: &str = "\"values\":[";

/// How much of the answer is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    Whole,
    /// Only the list of its buckets or results.
    Results,
}

/// The pieces of an answer's text.
pub struct Nested {
    answer: Answer,
    extent: Extent,
    /// The cell and the row of it that come next; `None` at the beginning.
    next: Option<(usize, usize)>,
    is_over: bool,
}

impl Nested {
    pub const fn new(answer: Answer, extent: Extent) -> Self {
        Self { answer, extent, next: None, is_over: false }
    }

    /// What stands before the list of results.
    fn begin(&self, piece: &mut Vec<u8>) {
        let head = match &self.answer {
            _ if self.extent == Extent::Results => return piece.push(b'['),
            Answer::Query(answer) => json(&QueryAnswer { range: answer.range.clone(), buckets: Vec::new() }),
            Answer::Find(answer) => json(&FindAnswer {
                metric: answer.metric.clone(),
                value: answer.value.clone(),
                since: answer.since.clone(),
                range: answer.range.clone(),
                merged: answer.merged,
                results: Vec::new(),
            }),
            Answer::Catalog(_) => unreachable!("it has no results"),
        };
        piece.extend_from_slice(head.strip_suffix("]}").expect("the results come last").as_bytes());
    }

    /// How many cells there are, and how many make a bucket.
    fn cells(&self) -> (usize, usize) {
        match &self.answer {
            // Every bucket has all metrics of the mapping.
            Answer::Query(answer) => {
                let metrics = answer.buckets.first().map_or(0, |bucket| bucket.metrics.len());
                (answer.buckets.len() * metrics, metrics)
            }
            Answer::Find(answer) => (answer.results.len(), 1),
            Answer::Catalog(_) => (0, 0),
        }
    }

    /// Writes rows of a cell from `row` on. `Some` is the row that comes next.
    fn write(&self, index: usize, row: usize, piece: &mut Vec<u8>) -> Option<usize> {
        if row == 0 && index > 0 {
            piece.push(b',');
        }
        match &self.answer {
            Answer::Find(FindAnswer { results, .. }) => {
                let SpanCell { span, cell } = &results[index];
                let surroundings = json(&SpanCell { span: span.clone(), cell: without_values(cell) });
                write_cell(&surroundings, cell, row, piece)
            }
            Answer::Query(QueryAnswer { buckets, .. }) => {
                let metrics = buckets[0].metrics.len();
                let BucketAnswer { span, metrics: of_bucket } = &buckets[index / metrics];
                let MetricCell { metric, cell } = &of_bucket[index % metrics];
                if index.is_multiple_of(metrics) && row == 0 {
                    let head = json(&BucketAnswer { span: span.clone(), metrics: Vec::new() });
                    piece.extend_from_slice(head.strip_suffix("]}").expect("the metrics come last").as_bytes());
                }
                let surroundings = json(&MetricCell { metric: metric.clone(), cell: without_values(cell) });
                let next = write_cell(&surroundings, cell, row, piece);
                if next.is_none() && index % metrics == metrics - 1 {
                    piece.extend_from_slice(b"]}");
                }
                next
            }
            Answer::Catalog(_) => None,
        }
    }
}

impl Iterator for Nested {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.is_over {
            return None;
        }
        let (cells, of_bucket) = self.cells();
        if of_bucket == 0 {
            // No metrics at all, or the list of them.
            self.is_over = true;
            return Some(match &self.answer {
                Answer::Query(answer) if self.extent == Extent::Results => json(&answer.buckets).into(),
                answer => json(answer).into(),
            });
        }
        let mut piece = Vec::new();
        if self.next.is_none() {
            self.begin(&mut piece);
        }
        let (mut index, mut row) = self.next.unwrap_or_default();
        while index < cells {
            if piece.len() >= PIECE_BYTES {
                self.next = Some((index, row));
                return Some(piece);
            }
            (index, row) = self.write(index, row, &mut piece).map_or((index + 1, 0), |row| (index, row));
        }
        self.is_over = true;
        piece.extend_from_slice(if self.extent == Extent::Whole { b"]}" } else { b"]" });
        Some(piece)
    }
}

fn json(part: &impl Serialize) -> String {
    serde_json::to_string(part).expect("texts and numbers are JSON")
}

/// A cell with what surrounds its rows, which was serialised without them.
fn write_cell(surroundings: &str, cell: &Cell, row: usize, piece: &mut Vec<u8>) -> Option<usize> {
    // A quote inside of a name is escaped, so that no name looks like this key.
    let at = surroundings.find(VALUES).map_or(surroundings.len(), |at| at + VALUES.len());
    if row == 0 {
        piece.extend_from_slice(&surroundings.as_bytes()[..at]);
    }
    let next = match &cell.data {
        Some(Data::UniqueBy { values, .. }) => write_rows(values, row, piece),
        Some(Data::Count { values, .. } | Data::Top { values, .. }) => write_rows(values, row, piece),
        Some(Data::Sum { values, .. }) => write_rows(values, row, piece),
        Some(Data::Unique { .. } | Data::CountOne { .. } | Data::SumOne { .. }) | None => None,
    };
    if next.is_none() {
        piece.extend_from_slice(&surroundings.as_bytes()[at..]);
    }
    next
}

fn write_rows(rows: &[impl Serialize], from: usize, piece: &mut Vec<u8>) -> Option<usize> {
    for (index, row) in rows.iter().enumerate().skip(from) {
        if piece.len() >= PIECE_BYTES {
            return Some(index);
        }
        if index > 0 {
            piece.push(b',');
        }
        serde_json::to_writer(&mut *piece, row).expect("memory takes what is written");
    }
    None
}

fn without_values(cell: &Cell) -> Cell {
    let Cell { data, reason, missing, capped, incomplete, partial } = cell;
    let data = data.as_ref().map(|data| match *data {
        Data::UniqueBy { values_seen, error, .. } => Data::UniqueBy { values_seen, error, values: Vec::new() },
        Data::Count { count, values_seen, .. } => Data::Count { count, values_seen, values: Vec::new() },
        Data::Sum { sum, count, min, max, values_seen, .. } => {
            Data::Sum { sum, count, min, max, values_seen, values: Vec::new() }
        }
        Data::Top { exact, .. } => Data::Top { exact, values: Vec::new() },
        ref one => one.clone(),
    });
    let (reason, missing) = (*reason, missing.clone());
    Cell { data, reason, missing, capped: *capped, incomplete: *incomplete, partial: *partial }
}
