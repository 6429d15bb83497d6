//! A ledger out of one function: from what is stored to what is to be written, in one transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::super::budget::Permit;
use super::super::ledger::{Cause, Ledger, LedgerError, LedgerResult, Outcome, Session};
use super::super::projection::{Batch, Projection};
use super::PlainHeader;
use traqq_core::model::{Checkpoint, Positions, TopicPartition};

/// What a worker keeps beside the result: the header, and a checkpoint for each partition, as texts
/// under names.
pub type Texts = BTreeMap<String, String>;

/// What a transaction is to write.
pub struct Writes<B> {
    /// Each in place of the text of its name.
    pub texts: Texts,
    /// What becomes part of the result.
    pub batch: Option<B>,
}

/// From the texts that are stored to what is to be written; nothing is, where it says `None`.
pub type Decide<'a, B> = Box<dyn FnOnce(Texts) -> Option<Writes<B>> + 'a>;

/// A database in which a result and texts change together.
pub trait Transactional: Send + Sync + 'static {
    type Batch: Batch;

    /// In one transaction: reads all texts, asks `decide` what is to be written, writes it, and
    /// commits, durably. Transactions that happen at the same time, also of other processes, are as
    /// if one came after the other: no two may read the same texts and both write. May block. What
    /// fails is asked again.
    fn transaction(&self, decide: Decide<'_, Self::Batch>) -> Result<(), Cause>;
}

const HEADER: &str = "header";
const POSITION: &str = "position ";

/// The ledger in such a database: one lane, and one commit after the other.
pub struct TransactionLedger<D>(Arc<D>);

impl<D> Clone for TransactionLedger<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What of the texts is whose.
struct Stored {
    header: Option<PlainHeader>,
    positions: Positions,
}

impl Stored {
    fn of(texts: &Texts) -> Result<Self, Cause> {
        let header = texts.get(HEADER).map(|text| PlainHeader::parse(text)).transpose()?;
        let mut positions = Positions::new();
        for (name, text) in texts {
            if let Some(partition) = name.strip_prefix(POSITION) {
                positions.insert(partition.parse()?, text.parse::<Checkpoint>()?);
            }
        }
        Ok(Self { header, positions })
    }
}

fn position(partition: &TopicPartition, checkpoint: Checkpoint) -> (String, String) {
    (format!("{POSITION}{partition}"), checkpoint.to_string())
}

fn starts(header: &PlainHeader, of: impl Iterator<Item = (TopicPartition, i64)>) -> Texts {
    let mut texts: Texts = of.map(|(partition, start)| position(&partition, Checkpoint::start(start))).collect();
    texts.insert(HEADER.to_owned(), header.to_json());
    texts
}

impl<D: Transactional> TransactionLedger<D> {
    pub fn new(database: D) -> Self {
        Self(Arc::new(database))
    }

    /// What `decide` makes of what is stored, once what it wants to be written is.
    async fn transact<T: Send + 'static>(
        &self,
        decide: impl FnOnce(Stored) -> (T, Option<Writes<D::Batch>>) + Send + 'static,
    ) -> LedgerResult<T> {
        let database = Arc::clone(&self.0);
        let run = move || {
            let mut found = None;
            let decide = |texts: Texts| match Stored::of(&texts) {
                Ok(stored) => {
                    let (answer, writes) = decide(stored);
                    found = Some(Ok(answer));
                    writes
                }
                Err(error) => {
                    found = Some(Err(LedgerError::Stop(error)));
                    None
                }
            };
            database.transaction(Box::new(decide)).map_err(LedgerError::Retry)?;
            found.unwrap_or_else(|| Err(LedgerError::Stop("a transaction asked nothing; this is a bug".into())))
        };
        let joined = tokio::task::spawn_blocking(run).await;
        joined.unwrap_or_else(|panic| Err(LedgerError::Stop(panic.into())))
    }
}

const fn texts<B>(texts: Texts) -> Option<Writes<B>> {
    Some(Writes { texts, batch: None })
}

#[async_trait]
impl<P, D> Ledger<P> for TransactionLedger<D>
where
    P: Projection<Batch = D::Batch, Report = (), Header = PlainHeader>,
    D: Transactional,
{
    fn lanes(&self) -> usize {
        1
    }

    async fn header(&self) -> LedgerResult<Option<PlainHeader>> {
        self.transact(|stored| (stored.header, None)).await
    }

    async fn create(&self, header: &PlainHeader) -> LedgerResult<PlainHeader> {
        let header = header.clone();
        let create = move |stored: Stored| match stored.header {
            Some(stored) => (stored, None),
            None => {
                let begun = starts(&header, header.starts.clone().into_iter());
                (header, texts(begun))
            }
        };
        self.transact(create).await
    }

    async fn adopt(&self, new: &[(TopicPartition, i64)]) -> LedgerResult<()> {
        let new = new.to_vec();
        let adopt = move |stored: Stored| {
            let Some(mut header) = stored.header else {
                return (Err(LedgerError::Retry("the ledger has no header any more".into())), None);
            };
            let new: Vec<_> = new.into_iter().filter(|(partition, _)| !header.starts.contains_key(partition)).collect();
            header.starts.extend(new.iter().cloned());
            (Ok(()), texts(starts(&header, new.into_iter())))
        };
        self.transact(adopt).await?
    }

    async fn positions(&self, _lane: usize) -> LedgerResult<Positions> {
        self.transact(|stored| (stored.positions, None)).await
    }

    async fn set_position(
        &self,
        partition: &TopicPartition,
        from: Option<Checkpoint>,
        to: Checkpoint,
    ) -> LedgerResult<bool> {
        let partition = partition.clone();
        let set = move |stored: Stored| {
            let fits = stored.positions.get(&partition).copied() == from;
            (fits, fits.then(|| texts(Texts::from([position(&partition, to)]))).flatten())
        };
        self.transact(set).await
    }

    async fn session(&self, _lane: usize) -> LedgerResult<Box<dyn Session<P>>> {
        Ok(Box::new(TransactionSession { ledger: self.clone(), is_over: false }))
    }
}

struct TransactionSession<D> {
    ledger: TransactionLedger<D>,
    /// A batch was not applied, so none after it may be.
    is_over: bool,
}

#[async_trait]
impl<P, D> Session<P> for TransactionSession<D>
where
    P: Projection<Batch = D::Batch, Report = (), Header = PlainHeader>,
    D: Transactional,
{
    async fn stored(&mut self) -> LedgerResult<Option<(PlainHeader, Positions)>> {
        let both = |stored: Stored| (stored.header.map(|header| (header, stored.positions)), None);
        self.ledger.transact(both).await
    }

    async fn commit(&mut self, batch: P::Batch, permit: Permit) -> BoxFuture<'static, LedgerResult<Outcome<()>>> {
        let is_over = self.is_over;
        let commit = move |stored: Stored| {
            let of = |partition: &TopicPartition| stored.positions.get(partition).copied();
            let ranges = batch.ranges();
            if is_over || !ranges.iter().all(|range| of(&range.partition) == Some(range.from)) {
                let stored = ranges.iter().map(|range| (range.partition.clone(), of(&range.partition)));
                return (Outcome::Fenced(stored.collect()), None);
            }
            let texts = ranges.iter().map(|range| position(&range.partition, range.to)).collect();
            (Outcome::Applied(()), Some(Writes { texts, batch: Some(batch) }))
        };
        let outcome = self.ledger.transact(commit).await;
        self.is_over = !matches!(outcome, Ok(Outcome::Applied(())));
        drop(permit);
        ready(outcome).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::budget::Budget;
    use super::super::super::fake::{Fake, Memory, Seen, part};
    use super::super::super::projection::Fold;
    use super::super::{PlainBatch, PlainFold};
    use super::*;

    fn name(number: i32) -> TopicPartition {
        TopicPartition::new("t", number)
    }

    /// Values of partition 0 from an offset on.
    fn batch(fake: &Fake, offset: i64, values: &[&str]) -> PlainBatch<Seen> {
        let budget = Budget::new("test", 1 << 20);
        let mut fold: PlainFold<Seen> = fake.fold();
        fold.fold(vec![part(&budget, 0, offset, values)]).pop().unwrap()
    }

    async fn begun(memory: &Memory) -> Fake {
        let fake = Fake::new(memory, "1");
        let mut header = fake.new_header(0);
        header.starts = [(name(0), 0), (name(1), 7)].into();
        assert_eq!(fake.ledger().create(&header).await.unwrap(), header);
        fake
    }

    async fn commit(session: &mut Box<dyn Session<Fake>>, batch: PlainBatch<Seen>) -> LedgerResult<Outcome<()>> {
        let permit = Budget::new("test", 1 << 20).take(1);
        session.commit(batch, permit).await.await
    }

    #[tokio::test]
    async fn result_and_position_change_together_or_not_at_all() {
        let memory = Memory::default();
        let fake = begun(&memory).await;
        let mut session = fake.ledger().session(0).await.unwrap();
        assert_eq!(session.stored().await.unwrap().unwrap().1[&name(1)], Checkpoint::start(7));
        assert_eq!(commit(&mut session, batch(&fake, 0, &["a", "b", "a"])).await.unwrap(), Outcome::Applied(()));
        memory.0.lock().unwrap().fails = true;
        // It is tried by another session, from where the ledger stands.
        let Err(LedgerError::Retry(_)) = commit(&mut session, batch(&fake, 3, &["c"])).await else { panic!("applied") };
        let positions = fake.ledger().positions(0).await.unwrap();
        assert_eq!((positions[&name(0)].position, positions[&name(1)].position), (3, 7));
        assert_eq!(memory.0.lock().unwrap().seen, Seen::from([("a".to_owned(), 2), ("b".to_owned(), 1)]));
    }

    #[tokio::test]
    async fn a_batch_that_does_not_begin_where_the_ledger_stands_is_fenced_off_and_so_is_all_behind_it() {
        let memory = Memory::default();
        let fake = begun(&memory).await;
        for offset in [1, -1] {
            let mut session = fake.ledger().session(0).await.unwrap();
            let stored = vec![(name(0), Some(Checkpoint::start(0)))];
            assert_eq!(
                commit(&mut session, batch(&fake, offset, &["a"])).await.unwrap(),
                Outcome::Fenced(stored.clone())
            );
            assert_eq!(commit(&mut session, batch(&fake, 0, &["a"])).await.unwrap(), Outcome::Fenced(stored));
        }
        assert!(memory.0.lock().unwrap().seen.is_empty());
    }

    #[tokio::test]
    async fn what_is_there_already_is_left_alone() {
        let memory = Memory::default();
        let fake = begun(&memory).await;
        let other = PlainHeader::new("another", "2");
        assert_eq!(fake.ledger().create(&other).await.unwrap().group, "g", "whoever was first has it");
        fake.ledger().adopt(&[(name(1), 99), (name(2), 5)]).await.unwrap();
        let positions: Vec<i64> = fake.ledger().positions(0).await.unwrap().values().map(|at| at.position).collect();
        assert_eq!(positions, [0, 7, 5]);
        assert_eq!(fake.ledger().header().await.unwrap().unwrap().starts[&name(2)], 5);
        let set = async |from| fake.ledger().set_position(&name(2), from, Checkpoint::start(6)).await.unwrap();
        assert_eq!((set(None).await, set(Some(Checkpoint::start(5))).await, set(None).await), (false, true, false));
    }
}
