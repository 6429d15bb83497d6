//! A store's counts as a stream of text, to move them to another store.
//!
//! ```text
//! {"traqq_store":1,"lanes":1,"id":"...","meta":{...}}
//! {"lane":0,"positions":{"events/0":"<checkpoint>"},"quarantined":{"<key>":"<error>"}}
//! {"lane":0,"bucket":"d","start":1699920000,"metric":"add:event",...,"counts":[["a",1]]}
//! ...
//! {"keys":2}
//! ```
//!
//! A line for each lane, one for each key, and the number of keys at the end, so that a file cut
//! short is noticed. Registers are the string of a Redis HyperLogLog in hexadecimal digits.

use std::collections::BTreeMap;
use std::io::{BufRead, ErrorKind, Write};

use serde::{Deserialize, Serialize};

use super::{Meta, Positions, Quarantined, Read, Reply, Store, StoreError, StoreResult, fitting_meta};
use crate::mapping::{Metric, metric_name, metrics_of};
use traqq_core::error::ErrorLine;
use traqq_core::hll::{Hll, murmur64a};
use traqq_core::model::{Bucket, BucketKind, CheckpointError, TopicPartition, TopicPartitionError};

const VERSION: u32 = 1;
const CUT_SHORT: &str = "the file is cut short: its end is missing";
/// Keys written to a store at once.
const KEYS_AT_ONCE: usize = 100;

/// A key that exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredKey {
    pub bucket: Bucket,
    pub metric: Metric,
    /// In epoch seconds.
    pub expires_at: Option<i64>,
}

/// A key with everything in it.
#[derive(Clone, PartialEq, Debug)]
pub struct KeyDump {
    pub key: StoredKey,
    pub contents: Contents,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Contents {
    /// Value, count.
    Counts(Vec<(String, i64)>),
    /// Value, sum, count; sum, count, minimum and maximum of all.
    Sums(Vec<(String, i64, i64)>, [i64; 4]),
    Unique(Box<Hll>),
    UniqueBy(Vec<(String, Hll)>),
}

/// How much was moved.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Moved {
    pub keys: usize,
    pub values: usize,
}

#[derive(Serialize, Deserialize)]
struct Head {
    traqq_store: u32,
    lanes: usize,
    /// No other export has it.
    #[serde(default)]
    id: String,
    meta: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct LaneLine {
    lane: usize,
    positions: BTreeMap<String, String>,
    quarantined: BTreeMap<String, String>,
}

#[derive(Default, Serialize, Deserialize)]
struct KeyLine {
    lane: usize,
    bucket: char,
    start: i64,
    metric: String,
    expires_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counts: Option<Vec<(String, i64)>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sums: Option<Vec<(String, i64, i64)>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    totals: Option<[i64; 4]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registers: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registers_by: Option<Vec<(String, String)>>,
}

#[derive(Serialize, Deserialize)]
struct End {
    keys: usize,
}

fn unique_id() -> String {
    let now = chrono::Utc::now();
    format!("{}-{}", now.timestamp_nanos_opt().unwrap_or(now.timestamp()), std::process::id())
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Stop(ErrorLine::from_error(error))
}

/// Writes all of a store; fails if somebody counts into it meanwhile.
pub async fn export(store: &dyn Store, out: &mut (dyn Write + Send)) -> StoreResult<Moved> {
    let empty = || StoreError::stop("the store is empty; there is nothing to export");
    let meta = fitting_meta(store).await?.ok_or_else(empty)?;
    let fields = meta.to_fields().into_iter().collect();
    write_line(out, &Head { traqq_store: VERSION, lanes: store.lanes(), id: unique_id(), meta: fields })?;
    let (mut moved, mut began) = (Moved::default(), Vec::new());
    for lane in 0..store.lanes() {
        let positions = store.positions(lane).await?;
        let quarantined = store.quarantined(lane).await?;
        let line = LaneLine {
            lane,
            positions: positions.iter().map(|(name, checkpoint)| (name.to_string(), checkpoint.to_string())).collect(),
            quarantined: quarantined.into_iter().map(|Quarantined { key, error }| (key, error)).collect(),
        };
        write_line(out, &line)?;
        for key in store.keys(lane).await? {
            let dump = dump_key(store, lane, key).await?;
            moved.keys += 1;
            moved.values += dump.contents.len();
            write_line(out, &KeyLine::of(lane, &dump))?;
        }
        began.push(positions);
    }
    // What was counted meanwhile is in some of the keys, and would be counted again behind these
    // positions.
    for (lane, began) in began.iter().enumerate() {
        if store.positions(lane).await? != *began {
            return Err(StoreError::stop("a worker counts into the store meanwhile; stop it, and export again"));
        }
    }
    write_line(out, &End { keys: moved.keys })?;
    Ok(moved)
}

async fn dump_key(store: &dyn Store, lane: usize, key: StoredKey) -> StoreResult<KeyDump> {
    let bucket = key.bucket;
    let read = async |read: Read| -> StoreResult<Reply> {
        let reply = store.read(lane, std::slice::from_ref(&read)).await?.pop();
        reply.ok_or_else(|| StoreError::stop("the store left a question unanswered"))
    };
    let name = metric_name(&key.metric);
    let unexpected =
        || StoreError::stop(format!("{name} at {}: the key holds something else; see `traqq doctor`", bucket.start));
    let values = async |question: Read| match read(question).await? {
        Reply::Values(values) => Ok(values),
        _ => Err(unexpected()),
    };
    let registers = async |question: Read| match read(question).await? {
        Reply::Registers(registers) => Ok(registers),
        _ => Err(unexpected()),
    };
    let contents = match key.metric.clone() {
        Metric::Count { of } => Contents::Counts(values(Read::Counts { bucket, of }).await?),
        Metric::Top { of } => Contents::Counts(values(Read::TopFirst { bucket, of, limit: 1 << 31 }).await?),
        Metric::Sum { of, add_key } => {
            let add_key = add_key.to_string();
            let sums = values(Read::Sums { bucket, of: of.clone(), add_key: add_key.clone() }).await?;
            let counts = values(Read::SumCounts { bucket, of: of.clone(), add_key: add_key.clone() }).await?;
            let counts: BTreeMap<String, i64> = counts.into_iter().collect();
            let totals: BTreeMap<String, i64> =
                values(Read::SumTotals { bucket, of, add_key }).await?.into_iter().collect();
            let total = |name: &str| totals.get(name).copied().unwrap_or(0);
            let rows = sums.into_iter().map(|(label, sum)| {
                let count = counts.get(&label).copied().unwrap_or(0);
                (label, sum, count)
            });
            Contents::Sums(rows.collect(), [total("sum"), total("count"), total("min"), total("max")])
        }
        Metric::Unique { of } => Contents::Unique(registers(Read::Unique { bucket, of }).await?),
        Metric::UniqueBy { of, by } => {
            let question = Read::UniqueByValues { bucket, of: of.clone(), by: by.clone() };
            let Reply::Labels(labels) = read(question).await? else { return Err(unexpected()) };
            let mut all = Vec::with_capacity(labels.len());
            for value in labels {
                let question = Read::UniqueBy { bucket, of: of.clone(), by: by.clone(), value: value.clone() };
                all.push((value, *registers(question).await?));
            }
            Contents::UniqueBy(all)
        }
    };
    Ok(KeyDump { key, contents })
}

/// Fills an empty store. Until all is there its meta is one that no worker counts under. Should the
/// import be cut off in the middle, it can be repeated with the same file.
pub async fn import(store: &dyn Store, input: impl BufRead + Send) -> StoreResult<Moved> {
    let mut lines = input.lines().enumerate().map(|(number, line)| {
        line.map(|line| (number + 1, line)).map_err(|error| match error.kind() {
            // What is compressed ends in the middle of a frame.
            ErrorKind::UnexpectedEof => StoreError::stop(CUT_SHORT),
            _ => StoreError::Stop(ErrorLine::from_error(error).within(&format!("line {}", number + 1))),
        })
    });
    let mut next = || lines.next().unwrap_or_else(|| Err(StoreError::stop(CUT_SHORT)));
    let (_, line) = next()?;
    let head: Head =
        serde_json::from_str(&line).map_err(|_| StoreError::stop("this is not a file of `traqq store export`"))?;
    if head.traqq_store != VERSION {
        return Err(StoreError::stop(format!(
            "the file has version {}, and this traqq reads version {VERSION}",
            head.traqq_store
        )));
    }
    if head.lanes != store.lanes() {
        return Err(StoreError::stop(format!(
            "the file has {} lanes and the store {}; set store.redis.lanes = {0}",
            head.lanes,
            store.lanes()
        )));
    }
    let meta = Meta::of_fields(&head.meta)?;
    meta.check(store.lanes()).map_err(|error| StoreError::Stop(ErrorLine::from_error(error).within("the file")))?;
    let metrics: BTreeMap<String, Metric> =
        metrics_of(&meta.valid_rules()?.rules).into_iter().map(|metric| (metric_name(&metric), metric)).collect();
    let begun = begin_import(store, &meta, murmur64a(line.as_bytes(), 0)).await?;
    let (mut positions, mut moved) = (Positions::new(), Moved::default());
    let mut waiting: Vec<KeyDump> = Vec::new();
    let mut lane = 0;
    loop {
        let (number, line) = next()?;
        let at = |line: ErrorLine| StoreError::Stop(line.within(&format!("line {number}")));
        if let Ok(End { keys }) = serde_json::from_str(&line) {
            if keys != moved.keys {
                return Err(StoreError::stop(format!("the file has {} keys of {keys}: some are missing", moved.keys)));
            }
            break;
        }
        if let Ok(LaneLine { lane: next_lane, positions: texts, quarantined }) = serde_json::from_str(&line) {
            if next_lane >= head.lanes {
                return Err(at(format!("there is no lane {next_lane}, the first of {} is 0", head.lanes).into()));
            }
            store.restore_keys(lane, &std::mem::take(&mut waiting)).await?;
            lane = next_lane;
            for (name, checkpoint) in texts {
                positions.insert(
                    name.parse().map_err(|error: TopicPartitionError| at(ErrorLine::from_error(error)))?,
                    checkpoint.parse().map_err(|error: CheckpointError| at(ErrorLine::from_error(error)))?,
                );
            }
            let quarantined: Vec<Quarantined> =
                quarantined.into_iter().map(|(key, error)| Quarantined { key, error }).collect();
            store.restore_quarantine(lane, &quarantined).await?;
            continue;
        }
        let line: KeyLine = serde_json::from_str(&line).map_err(|error| at(ErrorLine::from_error(error)))?;
        let dump = line.dump(&metrics).map_err(at)?;
        moved.keys += 1;
        moved.values += dump.contents.len();
        waiting.push(dump);
        if waiting.len() >= KEYS_AT_ONCE {
            store.restore_keys(lane, &std::mem::take(&mut waiting)).await?;
        }
    }
    store.restore_keys(lane, &waiting).await?;
    let starts: Vec<(TopicPartition, i64)> =
        meta.starts.iter().map(|(partition, start)| (partition.clone(), *start)).collect();
    store.adopt(&starts).await?;
    for lane in 0..store.lanes() {
        let stored = store.positions(lane).await?;
        for (partition, checkpoint) in positions.iter().filter(|(partition, _)| partition.lane(store.lanes()) == lane) {
            let from = stored.get(partition).copied();
            if !store.set_position(partition, from, *checkpoint).await? {
                return Err(StoreError::stop(format!(
                    "{partition}: somebody else moved its position meanwhile; import again"
                )));
            }
        }
    }
    // The meta comes last, that of the store behind those of its lanes.
    store.replace_rules(Some(&begun.plan), &meta).await?;
    Ok(moved)
}

/// Makes an empty store one that is being filled from this file, which it may be already.
async fn begin_import(store: &dyn Store, meta: &Meta, file: u64) -> StoreResult<Meta> {
    let ours = meta.of_import(file);
    const HAS_COUNTS: &str =
        "the store has counts already; import into an empty one (another store.redis.prefix or data.directory)";
    // Looked at before anything is written, or a store that lost one lane of several would be
    // nobody's to use; and once more behind that, for somebody else may have begun meanwhile.
    for is_created in [false, true] {
        if is_created {
            store.create(&ours).await?;
        }
        let mut there = vec![store.meta().await?];
        // The end of an import may have been cut off between two lanes.
        let is_begun = there[0].as_ref().is_some_and(|there| there.plan == ours.plan);
        for lane in 0..store.lanes() {
            there.push(store.lane_meta(lane).await?);
        }
        for there in there.iter().flatten().filter(|there| there.plan != ours.plan) {
            if there.is_dropped() {
                there.refuse_unfinished()?;
            }
            if there.is_import() {
                return Err(StoreError::stop(
                    "an import of another file into the store was not finished; repeat that one, or import into an empty store",
                ));
            }
            if !is_begun || there.plan != meta.plan {
                return Err(StoreError::stop(HAS_COUNTS));
            }
        }
    }
    Ok(ours)
}

impl Contents {
    fn len(&self) -> usize {
        match self {
            Self::Counts(values) => values.len(),
            Self::Sums(values, _) => values.len(),
            Self::Unique(_) => 1,
            Self::UniqueBy(values) => values.len(),
        }
    }
}

impl KeyLine {
    fn of(lane: usize, dump: &KeyDump) -> Self {
        let StoredKey { bucket, metric, expires_at } = &dump.key;
        let line = Self {
            lane,
            bucket: bucket.kind.letter(),
            start: bucket.start,
            metric: metric_name(metric),
            expires_at: *expires_at,
            ..Self::default()
        };
        match &dump.contents {
            Contents::Counts(values) => Self { counts: Some(values.clone()), ..line },
            Contents::Sums(values, totals) => Self { sums: Some(values.clone()), totals: Some(*totals), ..line },
            Contents::Unique(registers) => Self { registers: Some(to_hex(&registers.encode())), ..line },
            Contents::UniqueBy(values) => {
                let row = |(label, registers): &(String, Hll)| (label.clone(), to_hex(&registers.encode()));
                Self { registers_by: Some(values.iter().map(row).collect()), ..line }
            }
        }
    }

    fn dump(self, metrics: &BTreeMap<String, Metric>) -> Result<KeyDump, ErrorLine> {
        let kind = BucketKind::parse(self.bucket.encode_utf8(&mut [0; 4]));
        let kind = kind.ok_or_else(|| format!("there is no bucket {:?}", self.bucket))?;
        let metric = metrics.get(&self.metric).ok_or_else(|| format!("the mapping has no {}", self.metric))?;
        let registers = |text: &str| Hll::decode(&of_hex(text)?).map_err(ErrorLine::from_error);
        let contents = match (self.counts, self.sums.zip(self.totals), self.registers, self.registers_by) {
            (Some(values), None, None, None) => Contents::Counts(values),
            (None, Some((values, totals)), None, None) => Contents::Sums(values, totals),
            (None, None, Some(text), None) => Contents::Unique(Box::new(registers(&text)?)),
            (None, None, None, Some(values)) => Contents::UniqueBy(
                values
                    .into_iter()
                    .map(|(label, text)| Ok((label, registers(&text)?)))
                    .collect::<Result<Vec<_>, ErrorLine>>()?,
            ),
            _ => return Err("a key has counts, sums with totals, registers or registers_by".into()),
        };
        let fits = matches!(
            (metric, &contents),
            (Metric::Count { .. } | Metric::Top { .. }, Contents::Counts(_))
                | (Metric::Sum { .. }, Contents::Sums(..))
                | (Metric::Unique { .. }, Contents::Unique(_))
                | (Metric::UniqueBy { .. }, Contents::UniqueBy(_))
        );
        if !fits {
            return Err(format!("{} holds what is not its kind", self.metric).into());
        }
        let bucket = Bucket { kind, start: self.start };
        Ok(KeyDump { key: StoredKey { bucket, metric: metric.clone(), expires_at: self.expires_at }, contents })
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    bytes.iter().for_each(|byte| _ = write!(text, "{byte:02x}"));
    text
}

fn of_hex(text: &str) -> Result<Vec<u8>, ErrorLine> {
    let digits = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = digits.0.iter().map(byte).collect();
    bytes.filter(|_| digits.1.is_empty()).ok_or_else(|| "registers are not in hexadecimal digits".into())
}

fn write_line(out: &mut (dyn Write + Send), line: &impl Serialize) -> StoreResult<()> {
    serde_json::to_writer(&mut *out, line).map_err(failed)?;
    out.write_all(b"\n").map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use futures_util::FutureExt;

    use super::*;
    use crate::mapping::Rules;
    use crate::store::memory::MemoryStore;
    use traqq_core::model::Checkpoint;

    async fn exported() -> String {
        let rules = serde_json::from_str::<Rules>(r#"{"mapping":{"add":["event"]}}"#).unwrap().validate().unwrap();
        let store = MemoryStore::new(1);
        let mut meta = Meta::new(&rules, "g", Vec::new());
        meta.starts.insert(TopicPartition::new("t", 0), 5);
        store.create(&meta).await.unwrap();
        let mut file = Vec::new();
        export(&store, &mut file).await.unwrap();
        String::from_utf8(file).unwrap()
    }

    /// What the keys of an import that was cut off held was taken for nothing, and counted upon.
    #[tokio::test]
    async fn nobody_counts_upon_half_an_import_and_it_can_be_repeated() {
        let file = exported().await;
        let half = &file[..file.rfind("{\"keys\"").unwrap()];
        let store = MemoryStore::new(1);
        assert!(import(&store, half.as_bytes()).await.unwrap_err().to_string().contains("cut short"));
        let mut packed = zstd::encode_all(file.as_bytes(), 0).unwrap();
        packed.truncate(packed.len() / 2);
        let unpacked = BufReader::new(zstd::Decoder::new(&packed[..]).unwrap());
        let error = import(&MemoryStore::new(1), unpacked).await.unwrap_err().to_string();
        assert!(error.contains("cut short"), "{error}");
        let text = fitting_meta(&store).await.unwrap_err().to_string();
        assert!(text.contains("an import into this store was not finished"), "{text}");
        // A worker that comes now gets this meta, and no other.
        let theirs = Meta { group: "theirs".to_owned(), ..store.meta().await.unwrap().unwrap() };
        assert!(store.create(&theirs).await.unwrap().is_import());
        // One of the same store, of another day, has other keys.
        let other = exported().await;
        let error = import(&store, other.as_bytes()).await.unwrap_err().to_string();
        assert!(error.contains("another file"), "{error}");
        import(&store, file.as_bytes()).await.unwrap();
        let meta = fitting_meta(&store).await.unwrap().unwrap();
        assert_eq!((&*meta.group, meta.starts.len()), ("g", 1));
        assert_eq!(store.positions(0).await.unwrap()[&TopicPartition::new("t", 0)].position, 5);
        let error = import(&store, file.as_bytes()).await.unwrap_err().to_string();
        assert!(error.contains("has counts already"), "{error}");
    }

    /// A writer that moves the store on when the first line is through.
    struct Meddler<'s>(&'s MemoryStore, Vec<u8>);

    impl Write for Meddler<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let (partition, to) = (TopicPartition::new("t", 0), Checkpoint::start(6));
            if bytes == b"\n" && self.1.iter().filter(|byte| **byte == b'\n').count() == 1 {
                let moved = self.0.set_position(&partition, Some(Checkpoint::start(5)), to).now_or_never();
                assert!(moved.unwrap().unwrap());
            }
            self.1.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Counts of after the positions were in the file, to be counted again behind them.
    #[tokio::test]
    async fn an_export_beside_a_worker_fails() {
        let store = MemoryStore::new(1);
        import(&store, exported().await.as_bytes()).await.unwrap();
        let error = export(&store, &mut Meddler(&store, Vec::new())).await.unwrap_err().to_string();
        assert!(error.contains("a worker counts into the store"), "{error}");
    }

    /// A lane that the store does not have ended the import with a panic.
    #[tokio::test]
    async fn a_lane_that_does_not_exist_is_refused() {
        let rules = serde_json::from_str::<Rules>(r#"{"mapping":{"add":["event"]}}"#).unwrap().validate().unwrap();
        let store = MemoryStore::new(1);
        store.create(&Meta::new(&rules, "g", Vec::new())).await.unwrap();
        let mut file = Vec::new();
        export(&store, &mut file).await.unwrap();
        let file = String::from_utf8(file).unwrap();
        import(&MemoryStore::new(1), file.as_bytes()).await.unwrap();
        let file = file.replace("{\"lane\":0,", "{\"lane\":1,");
        let error = import(&MemoryStore::new(1), file.as_bytes()).await.unwrap_err().to_string();
        assert!(error.contains("line 2: there is no lane 1"), "{error}");
    }
}
