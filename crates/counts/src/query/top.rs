//! The exact top k over many leaderboards without reading them whole: TPUT, the three-phase uniform
//! threshold algorithm (P. Cao, Z. Wang, "Efficient top-k query calculation in distributed
//! networks", PODC 2004).
//!
//! 1. The first k and half as many of each list (k would do; with more of them there is most often
//!    no second phase). The k-th highest of the partial sums, `tau`, is a lower bound of the k-th
//!    highest sum.
//! 2. Unless who appears nowhere has less than `tau` in all already: of each list every member that
//!    has at least `tau / m`, where m is the number of lists that were not read to their end. Who
//!    appears nowhere now has less than that in each.
//! 3. Members that can still reach the k-th place get the counts that are missing.
//!
//! At most [`Limits::members_max`](super::Limits::members_max) members are read; whether the result
//! is exact in spite of that is decided by what the members left out could have at most.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use hashbrown::HashMap;

use super::cell::unexpected;
use super::memory::{MEMBER_BYTES, ROW_BYTES, StepMemory};
use super::{QueryError, QueryResult, READS_AT_ONCE, Run};
use crate::mapping::{OTHER, Pattern};
use crate::store::{Read, Reply};
use traqq_core::model::Bucket;

/// What a candidate takes for each list that it is in, after the first.
const PLACE_BYTES: usize = 8;

/// Members of one read in the third phase.
const MEMBERS_AT_ONCE: usize = 1000;

/// Up to so many values of all lists it is cheaper to add all of them up, where the store does that
/// itself.
const VALUES_AT_ONCE: usize = 100_000;

pub(super) struct Ranked<'r> {
    /// Highest first, ties by name.
    pub members: Vec<(String, i128)>,
    pub exact: bool,
    pub capped: bool,
    pub unreadable: BTreeSet<i64>,
    /// What the members hold, and what was read for them.
    pub held: StepMemory<'r>,
}

/// One leaderboard: of one bucket in one lane.
struct List {
    lane: usize,
    bucket: Bucket,
    /// Highest first.
    read: Vec<(String, i64)>,
    /// The most that a member which was not read can have; 0 when the list was read to its end.
    bound: i64,
}

#[derive(Default)]
struct Candidate {
    sum: i128,
    /// The lists it was read from.
    lists: Vec<u32>,
}

impl Run<'_> {
    pub async fn top(&self, of: &Pattern, buckets: &[Bucket], k: usize) -> QueryResult<Ranked<'_>> {
        let mut lists: Vec<List> = buckets
            .iter()
            .flat_map(|bucket| (0..self.store.lanes()).map(|lane| (lane, *bucket)))
            .map(|(lane, bucket)| List { lane, bucket, read: Vec::new(), bound: 0 })
            .collect();
        if lists.len().saturating_mul(k) > self.limits.members_max {
            return Err(QueryError::TooLarge(format!(
                "the first {k} of {} leaderboards are more than the {} members that may be read; set a smaller `limit` or \
                 shorten the range",
                lists.len(),
                self.limits.members_max
            )));
        }
        let whole = |bucket| Read::TopFirst { bucket, of: of.clone(), limit: k };
        if let Some((sums, held)) = self.sums_at_once(buckets, &whole, VALUES_AT_ONCE).await? {
            let capped = sums.contains_key(OTHER);
            let mut members: Vec<(String, i128)> = sums.into_iter().collect();
            members.sort_unstable_by(|left, right| (Reverse(left.1), &left.0).cmp(&(Reverse(right.1), &right.0)));
            members.truncate(k);
            return Ok(Ranked { members, exact: true, capped, unreadable: BTreeSet::new(), held });
        }
        self.spend_keys(lists.len())?;
        let first = (k + k.div_ceil(2)).min(self.limits.members_max / lists.len());
        let mut held = self.memory.step();
        let (capped, unreadable) = self.read_first(of, &mut lists, first, &mut held).await?;
        self.read_above_threshold(of, &mut lists, k, &mut held).await?;
        let (members, exact) = self.complete(of, &lists, k, &mut held).await?;
        Ok(Ranked { members, exact, capped, unreadable, held })
    }

    /// Phase 1. Whether values were folded, and the buckets that can not be read.
    async fn read_first<'r>(
        &'r self,
        of: &Pattern,
        lists: &mut [List],
        first: usize,
        held: &mut StepMemory<'r>,
    ) -> QueryResult<(bool, BTreeSet<i64>)> {
        let (mut capped, mut unreadable) = (false, BTreeSet::new());
        let mut left = lists;
        while !left.is_empty() {
            let (chunk, rest) = left.split_at_mut(self.wide_at_once(READS_AT_ONCE).min(left.len()));
            left = rest;
            let mut reads = Vec::with_capacity(chunk.len() * 2);
            for List { lane, bucket, .. } in &*chunk {
                reads.push((*lane, Read::TopFirst { bucket: *bucket, of: of.clone(), limit: first }));
                let members = vec![OTHER.to_owned()];
                reads.push((*lane, Read::TopScores { bucket: *bucket, of: of.clone(), members }));
            }
            let (replies, of_replies) = self.read(reads).await?;
            held.absorb(of_replies);
            let mut replies = replies.into_iter();
            for list in chunk {
                match replies.next() {
                    Some(Reply::Values(members)) => {
                        let last = members.last().filter(|_| members.len() >= first);
                        list.bound = last.map_or(0, |(_, count)| (*count).max(0));
                        list.read = members;
                    }
                    Some(Reply::Unreadable(_)) => _ = unreadable.insert(list.bucket.start),
                    _ => return Err(unexpected()),
                }
                capped |= matches!(replies.next(), Some(Reply::Values(scores)) if !scores.is_empty());
            }
        }
        Ok((capped, unreadable))
    }

    /// Phase 2.
    async fn read_above_threshold<'r>(
        &'r self,
        of: &Pattern,
        lists: &mut [List],
        k: usize,
        held: &mut StepMemory<'r>,
    ) -> QueryResult<()> {
        let open = lists.iter().filter(|list| list.bound > 0).count();
        let mut of_candidates = self.memory.step();
        let candidates = candidates(lists, &mut of_candidates)?;
        let tau = kth(candidates.values().map(|candidate| candidate.sum), k);
        drop((candidates, of_candidates));
        let Some(tau) = tau else { return Ok(()) };
        if unseen(lists) < tau || open == 0 {
            return Ok(());
        }
        let open_lists = i128::try_from(open).expect("a count of lists");
        let threshold = i64::try_from((tau + open_lists - 1).div_euclid(open_lists).max(1)).unwrap_or(i64::MAX);
        // A list whose k-th member is below the threshold has given everything above it.
        let mut wanted: Vec<&mut List> = lists.iter_mut().filter(|list| list.bound >= threshold).collect();
        let share = (self.limits.members_max / open).max(k);
        let mut left = &mut wanted[..];
        while !left.is_empty() {
            let (chunk, rest) = left.split_at_mut(self.wide_at_once(READS_AT_ONCE).min(left.len()));
            left = rest;
            let read =
                |list: &List| Read::TopAtLeast { bucket: list.bucket, of: of.clone(), count: threshold, limit: share };
            let reads = chunk.iter().map(|list| (list.lane, read(list))).collect();
            let (replies, of_replies) = self.read(reads).await?;
            held.absorb(of_replies);
            for (list, reply) in chunk.iter_mut().zip(replies) {
                let Reply::Values(members) = reply else { return Err(unexpected()) };
                held.give_back(Reply::Values(std::mem::take(&mut list.read)).bytes());
                let is_cut = members.len() >= share;
                list.bound = if is_cut { members.last().map_or(0, |(_, count)| *count) } else { threshold - 1 };
                list.read = members;
            }
        }
        Ok(())
    }

    /// Phase 3. The first k, and whether they are certain.
    async fn complete<'r>(
        &'r self,
        of: &Pattern,
        lists: &[List],
        k: usize,
        held: &mut StepMemory<'r>,
    ) -> QueryResult<(Vec<(String, i128)>, bool)> {
        let mut candidates = candidates(lists, held)?;
        let unseen = unseen(lists);
        // What no list can hide: the most that each candidate can have.
        let most = |candidate: &Candidate| {
            let seen = candidate.lists.iter().map(|list| i128::from(lists[*list as usize].bound));
            candidate.sum + unseen - seen.sum::<i128>()
        };
        let tau = kth(candidates.values().map(|candidate| candidate.sum), k).unwrap_or(0);
        candidates.retain(|_, candidate| most(candidate) >= tau);
        let mut candidates: Vec<(&str, Candidate)> = candidates.into_iter().collect();
        candidates
            .sort_unstable_by(|left, right| (Reverse(most(&left.1)), left.0).cmp(&(Reverse(most(&right.1)), right.0)));
        let open = lists.iter().filter(|list| list.bound > 0).count();
        let affordable = self.limits.members_max.checked_div(open).map_or(usize::MAX, |count| count.max(k));
        let left_out = candidates.get(affordable).map(|(_, candidate)| most(candidate));
        candidates.truncate(affordable);
        let members = self.with_missing_counts(of, lists, candidates, held).await?;
        let last = members.get(k.wrapping_sub(1)).map(|(_, sum)| *sum);
        let hidden = left_out.into_iter().chain((unseen > 0).then_some(unseen)).max();
        let exact = hidden.is_none_or(|hidden| last.is_some_and(|last| hidden < last));
        Ok((members.into_iter().take(k).collect(), exact))
    }

    async fn with_missing_counts<'r>(
        &'r self,
        of: &Pattern,
        lists: &[List],
        mut candidates: Vec<(&str, Candidate)>,
        held: &mut StepMemory<'r>,
    ) -> QueryResult<Vec<(String, i128)>> {
        let mut wanted: Vec<(usize, Vec<usize>)> = Vec::new();
        for (at, list) in lists.iter().enumerate().filter(|(_, list)| list.bound > 0) {
            let lacks = |(_, candidate): &(&str, Candidate)| candidate.lists.binary_search(&(at as u32)).is_err();
            let lacking: Vec<usize> =
                candidates.iter().enumerate().filter(|(_, member)| lacks(member)).map(|(index, _)| index).collect();
            wanted.extend(lacking.chunks(MEMBERS_AT_ONCE).map(|members| (at, members.to_vec())));
            debug_assert!(list.lane < self.store.lanes());
        }
        for chunk in wanted.chunks(READS_AT_ONCE) {
            let read = |(at, members): &(usize, Vec<usize>)| {
                let members = members.iter().map(|index| candidates[*index].0.to_owned()).collect();
                let List { lane, bucket, .. } = lists[*at];
                (lane, Read::TopScores { bucket, of: of.clone(), members })
            };
            let (replies, _of_replies) = self.read(chunk.iter().map(read).collect()).await?;
            for ((_, members), reply) in chunk.iter().zip(replies) {
                let Reply::Values(scores) = reply else { return Err(unexpected()) };
                let scores: HashMap<String, i64> = scores.into_iter().collect();
                for index in members {
                    let (member, candidate) = &mut candidates[*index];
                    candidate.sum += scores.get(*member).copied().map_or(0, i128::from);
                }
            }
        }
        held.take(candidates.iter().map(|(member, _)| member.len() + ROW_BYTES).sum())?;
        let mut members: Vec<(String, i128)> =
            candidates.into_iter().map(|(member, candidate)| (member.to_owned(), candidate.sum)).collect();
        members.sort_unstable_by(|left, right| (Reverse(left.1), &left.0).cmp(&(Reverse(right.1), &right.0)));
        Ok(members)
    }
}

/// The most that a member has which was read from no list.
fn unseen(lists: &[List]) -> i128 {
    lists.iter().map(|list| i128::from(list.bound)).sum()
}

/// Every member that was read, with the lists in ascending order.
fn candidates<'l>(lists: &'l [List], held: &mut StepMemory<'_>) -> QueryResult<HashMap<&'l str, Candidate>> {
    let mut candidates: HashMap<&str, Candidate> = HashMap::new();
    for (at, list) in (0..).zip(lists) {
        for (member, count) in &list.read {
            held.take_for_label(if candidates.contains_key(&**member) { PLACE_BYTES } else { MEMBER_BYTES })?;
            let candidate = candidates.entry(member).or_default();
            candidate.sum += i128::from(*count);
            candidate.lists.push(at);
        }
    }
    Ok(candidates)
}

/// The k-th highest.
fn kth(sums: impl Iterator<Item = i128>, k: usize) -> Option<i128> {
    let mut sums: Vec<i128> = sums.collect();
    if sums.len() < k {
        return None;
    }
    Some(*sums.select_nth_unstable_by_key(k - 1, |sum| Reverse(*sum)).1)
}
