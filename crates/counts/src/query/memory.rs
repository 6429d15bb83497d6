//! What answers hold in memory, all together and each: replies while they are merged, rows until
//! they are serialised, and text until the client has taken it.
//!
//! Nothing waits for memory. A question that needs more than one answer may have is refused for
//! good, and one that comes while all of it is in use is refused for the moment. The last quarter
//! is for small answers, so that large ones that nobody reads do not keep the others from theirs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{QueryError, QueryResult};

/// Up to so much of it, an answer is a small one.
const SMALL_BYTES: usize = 1 << 20;
/// One answer may always have this much.
const ANSWER_BYTES_MIN: usize = 1 << 20;

/// Taken ahead for labels that come one by one.
const AHEAD_BYTES: usize = 16 << 10;

/// What a member of a merge takes besides its label: its place in a hash table that is three
/// quarters full, twice while the table grows, and the allocation of the label.
pub(super) const MEMBER_BYTES: usize = 112;
/// What a row of an answer takes besides its text.
pub(super) const ROW_BYTES: usize = 64;
/// What each part of a compound label takes besides its text.
pub(super) const PART_BYTES: usize = 48;
/// What a cell of an answer takes besides its rows: numbers, flags, and the names of its metric.
pub(super) const CELL_BYTES: usize = 384;

/// The memory for all answers.
pub struct AnswerMemory {
    bytes_max: usize,
    answer_bytes_max: usize,
    used: AtomicUsize,
}

/// What one answer holds of it. Given back when dropped.
pub struct MemoryPermit {
    memory: Arc<AnswerMemory>,
    bytes: AtomicUsize,
}

/// What one step of a question holds, of the permit of its answer.
pub(super) struct StepMemory<'p> {
    permit: &'p MemoryPermit,
    bytes: usize,
    /// Of them, what was taken ahead.
    spare: usize,
}

impl AnswerMemory {
    /// One answer may have half of it.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let answer_bytes_max = (bytes_max / 2).max(ANSWER_BYTES_MIN);
        Arc::new(Self { bytes_max: bytes_max.max(answer_bytes_max), answer_bytes_max, used: AtomicUsize::new(0) })
    }

    /// A permit for nothing yet.
    pub fn permit(self: &Arc<Self>) -> MemoryPermit {
        MemoryPermit { memory: Arc::clone(self), bytes: AtomicUsize::new(0) }
    }

    /// What is held at the moment.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn try_take(&self, bytes: usize, bytes_max: usize) -> bool {
        let add = |used: usize| used.checked_add(bytes).filter(|used| *used <= bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }
}

impl MemoryPermit {
    /// Takes so many bytes more.
    pub fn take(&self, bytes: usize) -> QueryResult<()> {
        let AnswerMemory { bytes_max, answer_bytes_max, .. } = *self.memory;
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let bytes_max = if held <= SMALL_BYTES { bytes_max } else { (bytes_max - bytes_max / 4).max(answer_bytes_max) };
        let refusal = if held > answer_bytes_max {
            QueryError::TooLarge(format!(
                "the answer takes more than the {answer_bytes_max} bytes of memory that one may have; set a smaller \
                 `limit`, shorten the range, or ask for one `value` (a larger worker.memory_max_bytes allows more)"
            ))
        } else if self.memory.try_take(bytes, bytes_max) {
            return Ok(());
        } else {
            QueryError::Busy(
                "answers that are being made or sent hold all memory that there is for them; ask again in a moment"
                    .to_owned(),
            )
        };
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Err(refusal)
    }

    pub fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.memory.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Holds so many bytes instead.
    pub fn hold(&self, bytes: usize) -> QueryResult<()> {
        let held = self.bytes.load(Ordering::Relaxed);
        self.give_back(held.saturating_sub(bytes));
        self.take(bytes.saturating_sub(held))
    }

    /// What one answer may hold.
    pub fn answer_bytes_max(&self) -> usize {
        self.memory.answer_bytes_max
    }

    pub(super) const fn step(&self) -> StepMemory<'_> {
        StepMemory { permit: self, bytes: 0, spare: 0 }
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

impl<'p> StepMemory<'p> {
    pub fn take(&mut self, bytes: usize) -> QueryResult<()> {
        self.permit.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// The same for one of many labels: for most of them nobody is asked.
    pub fn take_for_label(&mut self, bytes: usize) -> QueryResult<()> {
        if self.spare < bytes {
            if self.take(AHEAD_BYTES + bytes).is_err() {
                return self.take(bytes);
            }
            self.spare += AHEAD_BYTES + bytes;
        }
        self.spare -= bytes;
        Ok(())
    }

    pub fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.permit.give_back(bytes);
    }

    /// What another step holds is held by this one.
    pub fn absorb(&mut self, mut other: StepMemory<'p>) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.spare += other.spare;
    }

    /// The step is over, and so many bytes of what it held are a part of the answer.
    pub fn keep(mut self, bytes: usize) -> QueryResult<()> {
        let kept = bytes.min(self.bytes);
        self.bytes -= kept;
        self.permit.take(bytes - kept)
    }
}

impl Drop for StepMemory<'_> {
    fn drop(&mut self) {
        self.permit.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn an_answer_has_a_share_and_all_of_them_a_bound() {
        let memory = AnswerMemory::new(16 * MIB);
        let (first, second) = (memory.permit(), memory.permit());
        assert_eq!(first.take(8 * MIB), Ok(()));
        assert!(matches!(first.take(1), Err(QueryError::TooLarge(text)) if text.contains("`limit`")));
        assert_eq!(second.take(4 * MIB), Ok(()));
        assert!(matches!(second.take(1), Err(QueryError::Busy(_))), "the last quarter is for small ones");
        let small: Vec<MemoryPermit> = (0..4).map(|_| memory.permit()).collect();
        small.iter().for_each(|permit| permit.take(MIB).unwrap());
        assert!(matches!(memory.permit().take(1), Err(QueryError::Busy(_))));
        first.hold(MIB).unwrap();
        assert_eq!((memory.used(), second.take(MIB)), (9 * MIB, Ok(())));
        drop((first, second, small));
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn what_a_step_holds_is_given_back_or_kept() {
        let memory = AnswerMemory::new(16 * MIB);
        let permit = memory.permit();
        let mut step = permit.step();
        step.take(1000).unwrap();
        step.give_back(100);
        let mut other = permit.step();
        other.take(50).unwrap();
        step.absorb(other);
        assert_eq!(memory.used(), 950);
        step.keep(300).unwrap();
        assert_eq!(memory.used(), 300);
        permit.step().keep(20).unwrap();
        let mut labels = permit.step();
        for taken in 1..=1000 {
            labels.take_for_label(50).unwrap();
            assert!((taken * 50..taken * 50 + AHEAD_BYTES + 50).contains(&(memory.used() - 320)), "{taken}");
        }
        drop(labels);
        assert!(permit.step().take(usize::MAX).is_err());
        assert_eq!(memory.used(), 320);
        drop(permit);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn the_smallest_memory_has_room_for_an_answer() {
        for bytes_max in [0, 1, MIB, 2 * MIB] {
            let memory = AnswerMemory::new(bytes_max);
            assert_eq!(memory.permit().take(MIB), Ok(()), "{bytes_max}");
        }
    }
}
