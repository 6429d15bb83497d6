//! Who reads which partition. No coordinator: a key-value bucket holds one lease a partition and
//! one key a worker, which it writes twice a second. A lease belongs to the worker that it names
//! for as long as that one is heard.
//!
//! ```text
//! worker.<id>  -> written twice a second     lease.<partition>  -> id of its owner, or nothing
//! ```
//!
//! Nobody's clock is trusted: a worker is dead when it was not heard for [`SILENT_MAX`] of *our
//! own* beats that came back to us, so a bucket that nobody can write expires nobody. Leases save
//! work; two owners for a moment are harmless, because the store's fence holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::{self, Operation};
use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot};

use super::entries::{Key, owner};
use super::link::Link;
use super::trouble::Trouble;
use super::{Arrival, Change};
use crate::BrokerResult;

const BEAT: Duration = Duration::from_millis(500);
/// Beats of ours in which another worker must be heard once: three seconds.
const SILENT_MAX: u64 = 6;
/// Beats of ours that may be on their way: ten seconds. Then the watch is dead, whatever it says.
const UNHEARD_MAX: u64 = 20;
/// Between attempts to reach the bucket.
const RETRY: Duration = Duration::from_millis(500);

pub enum Command {
    Release(Vec<i32>),
    /// Frees everything and ends the task.
    Close(oneshot::Sender<()>),
}

/// What a worker knows of the group.
#[derive(Default)]
struct View {
    me: String,
    partitions: i32,
    leases: BTreeMap<i32, Lease>,
    /// The beat of ours in which each was heard last.
    heard: HashMap<String, u64>,
    beat: u64,
    /// Leases that the worker was told of.
    mine: BTreeSet<i32>,
    /// Of these, what it was asked to give back.
    giving: BTreeSet<i32>,
}

#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Lease {
    owner: String,
    revision: u64,
}

#[derive(PartialEq, Eq, Debug)]
enum Step {
    /// Somebody else has it.
    Lose(i32),
    /// Another worker has too few.
    Give(i32),
    /// Nobody has it; the revision to replace.
    Take(i32, u64),
    /// The lease names us though we do not have it, and need no more.
    Free(i32),
}

impl View {
    fn alive(&self) -> BTreeSet<&str> {
        let is_heard = |(_, beat): &(&String, &u64)| self.beat.saturating_sub(**beat) < SILENT_MAX;
        let mut alive: BTreeSet<&str> = self.heard.iter().filter(is_heard).map(|(id, _)| &**id).collect();
        alive.insert(&self.me);
        alive
    }

    /// How many partitions are ours by right: an equal share, the first of those in order having
    /// one more.
    fn share(&self, alive: &BTreeSet<&str>) -> usize {
        let (partitions, workers) = (self.partitions as usize, alive.len());
        let rank = alive.iter().position(|id| **id == *self.me).unwrap_or(0);
        partitions / workers + usize::from(rank < partitions % workers)
    }

    fn steps(&self) -> Vec<Step> {
        let owner = |partition: &i32| self.leases.get(partition).map_or("", |lease| &*lease.owner);
        let mut steps: Vec<Step> = self
            .mine
            .iter()
            .filter(|partition| owner(partition) != self.me)
            .map(|partition| Step::Lose(*partition))
            .collect();
        let alive = self.alive();
        let share = self.share(&alive);
        let held: Vec<i32> = self
            .mine
            .iter()
            .filter(|partition| owner(partition) == self.me && !self.giving.contains(partition))
            .copied()
            .collect();
        if held.len() > share {
            steps.extend(held[share..].iter().map(|partition| Step::Give(*partition)));
            return steps;
        }
        // One that names us and is not ours was taken, or given back, by a write whose answer was
        // lost.
        let is_astray = |partition: &i32| !self.mine.contains(partition) && owner(partition) == self.me;
        let is_free = |partition: &i32| {
            is_astray(partition) || (!self.mine.contains(partition) && !alive.contains(owner(partition)))
        };
        // Workers that come at the same time begin in different places.
        let rank = alive.iter().position(|id| **id == *self.me).unwrap_or(0) as i32;
        let first = rank * self.partitions / alive.len() as i32;
        let order = (0..self.partitions).map(|number| (number + first) % self.partitions);
        let revision = |partition: i32| self.leases.get(&partition).map_or(0, |lease| lease.revision);
        let free: Vec<i32> = order.filter(is_free).collect();
        let (taken, left) = free.split_at(free.len().min(share - held.len()));
        steps.extend(taken.iter().map(|partition| Step::Take(*partition, revision(*partition))));
        steps.extend(left.iter().filter(|partition| is_astray(partition)).map(|partition| Step::Free(*partition)));
        steps
    }

    fn hear(&mut self, entry: &kv::Entry) {
        let is_gone = entry.operation != Operation::Put;
        match Key::parse(&entry.key, self.partitions) {
            Some(Key::Worker(id)) if is_gone => _ = self.heard.remove(id),
            Some(Key::Worker(id)) => _ = self.heard.insert(id.to_owned(), self.beat),
            Some(Key::Lease(partition)) => {
                let owner = if is_gone { "" } else { owner(&entry.value) };
                let known = self.leases.entry(partition).or_default();
                // Our own write may have been answered before it is seen here.
                if entry.revision >= known.revision {
                    if !owner.is_empty() {
                        self.heard.entry(owner.to_owned()).or_insert(self.beat);
                    }
                    *known = Lease { owner: owner.to_owned(), revision: entry.revision };
                }
            }
            None => {}
        }
    }
}

pub struct Group {
    link: Arc<Link>,
    out: mpsc::Sender<Arrival>,
    /// Why no partitions can be had, for the consumer.
    trouble: Arc<Trouble>,
    view: View,
}

impl Group {
    pub fn new(
        link: Arc<Link>,
        id: String,
        partitions: i32,
        out: mpsc::Sender<Arrival>,
        trouble: Arc<Trouble>,
    ) -> Self {
        Self { link, out, trouble, view: View { me: id, partitions, ..View::default() } }
    }

    pub async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let closed = loop {
            match self.follow(&mut commands).await {
                Ok(closed) => break closed,
                Err(error) => {
                    self.trouble.set(&error.to_string());
                    if self.out.send(Arrival::Trouble(error.to_string())).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(RETRY).await;
                    self.remove_unreadable().await;
                }
            }
        };
        if let Some(done) = closed {
            let _ = done.send(());
        }
    }

    /// An entry that the client cannot read would end every watch of the bucket, everywhere.
    async fn remove_unreadable(&self) {
        match self.link.remove_unreadable_entries().await {
            Ok(0) => {}
            Ok(removed) => tracing::warn!(removed, "entries of the group's bucket that nobody can read were removed"),
            Err(error) => tracing::debug!(%error, "looking for entries that nobody can read"),
        }
    }

    /// Until the end, or until the bucket cannot be reached.
    async fn follow(
        &mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
    ) -> BrokerResult<Option<oneshot::Sender<()>>> {
        let link = Arc::clone(&self.link);
        let stream = link.stream().await?;
        let bucket = link.bucket(stream.cached_info().config.num_replicas).await?;
        let own = format!("worker.{}", self.view.me);
        let mut watch = bucket.watch_with_history(">").await.map_err(|error| link.failed("leases", error))?;
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut written, mut unheard) = (0, 0);
        loop {
            // Cancel safety: nothing is taken from a branch that loses.
            tokio::select! {
                entry = watch.next() => {
                    let entry = entry
                        .ok_or_else(|| link.retry("leases", "the watch ended"))?
                        .map_err(|error| link.failed("leases", error))?;
                    self.view.hear(&entry);
                    if entry.key == own && entry.revision >= written {
                        self.view.beat += 1;
                        unheard = 0;
                        self.trouble.clear();
                        self.view.heard.insert(self.view.me.clone(), self.view.beat);
                    }
                    // Until our own beat has come back we have not seen all that was there before
                    // it.
                    if self.view.beat > 0 {
                        self.settle(&bucket).await?;
                    }
                }
                _ = beats.tick() => {
                    unheard += 1;
                    if unheard > UNHEARD_MAX {
                        return Err(link.retry("leases", "what is written to the bucket does not come back; watching it again"));
                    }
                    written = bucket.put(&own, "".into()).await.map_err(|error| link.failed("leases", error))?;
                }
                command = commands.recv() => match command {
                    Some(Command::Release(partitions)) => {
                        for partition in partitions {
                            self.free(&bucket, partition).await;
                        }
                    }
                    Some(Command::Close(done)) => {
                        for partition in self.view.mine.clone() {
                            self.free(&bucket, partition).await;
                        }
                        let _ = bucket.delete(&own).await;
                        return Ok(Some(done));
                    }
                    None => return Ok(None),
                },
            }
        }
    }

    async fn settle(&mut self, bucket: &kv::Store) -> BrokerResult<()> {
        for step in self.view.steps() {
            let change = match step {
                Step::Lose(partition) => {
                    self.view.mine.remove(&partition);
                    self.view.giving.remove(&partition);
                    Change::Lost(partition)
                }
                Step::Free(partition) => {
                    self.free(bucket, partition).await;
                    continue;
                }
                Step::Give(partition) => {
                    self.view.giving.insert(partition);
                    Change::Wanted(partition)
                }
                Step::Take(partition, revision) => {
                    let (key, me) = (format!("lease.{partition}"), self.view.me.clone());
                    let taken = match revision {
                        0 => bucket.create(&key, me.clone().into()).await.map_err(|error| error.to_string()),
                        _ => bucket.update(&key, me.clone().into(), revision).await.map_err(|error| error.to_string()),
                    };
                    match taken {
                        Ok(revision) => {
                            self.view.leases.insert(partition, Lease { owner: me, revision });
                            self.view.mine.insert(partition);
                            Change::Taken(partition)
                        }
                        Err(error) => {
                            // Another worker was faster; the watch says who.
                            tracing::debug!(error, partition, "a lease was not taken");
                            continue;
                        }
                    }
                }
            };
            let _ = self.out.send(Arrival::Group(change)).await;
        }
        self.bury(bucket).await;
        Ok(())
    }

    /// Deletes keys of workers that are dead for good.
    async fn bury(&mut self, bucket: &kv::Store) {
        let is_dead = |beat: &u64| self.view.beat.saturating_sub(*beat) >= SILENT_MAX * 4;
        let dead: Vec<String> =
            self.view.heard.iter().filter(|(_, beat)| is_dead(beat)).map(|(id, _)| id.clone()).collect();
        for id in dead {
            self.view.heard.remove(&id);
            let _ = bucket.delete(format!("worker.{id}")).await;
        }
    }

    async fn free(&mut self, bucket: &kv::Store, partition: i32) {
        self.view.mine.remove(&partition);
        self.view.giving.remove(&partition);
        let Some(lease) = self.view.leases.get(&partition).filter(|lease| lease.owner == self.view.me).cloned() else {
            return;
        };
        match bucket.update(format!("lease.{partition}"), "".into(), lease.revision).await {
            Ok(revision) => _ = self.view.leases.insert(partition, Lease { owner: String::new(), revision }),
            Err(error) => tracing::debug!(%error, partition, "a lease was not freed yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(me: &str, workers: &[&str], leases: &[&str]) -> View {
        let leases: BTreeMap<i32, Lease> = (0..)
            .zip(leases)
            .map(|(number, owner)| (number, Lease { owner: (*owner).to_owned(), revision: 5 }))
            .collect();
        let mine = leases.iter().filter(|(_, lease)| lease.owner == me).map(|(number, _)| *number).collect();
        View {
            me: me.to_owned(),
            partitions: leases.len() as i32,
            leases,
            heard: workers.iter().map(|id| ((*id).to_owned(), 10)).collect(),
            beat: 10,
            mine,
            giving: BTreeSet::new(),
        }
    }

    #[test]
    fn the_first_worker_takes_all_and_gives_others_their_share() {
        let all = view("a", &["a"], &["", "", ""]).steps();
        assert_eq!(all, [Step::Take(0, 5), Step::Take(1, 5), Step::Take(2, 5)]);
        assert_eq!(view("a", &["a", "b"], &["a", "a", "a"]).steps(), [Step::Give(2)]);
        assert_eq!(view("b", &["a", "b"], &["a", "a", "a"]).steps(), []);
        assert_eq!(view("b", &["a", "b"], &["a", "a", ""]).steps(), [Step::Take(2, 5)]);
    }

    /// The answer to the write was lost: nobody read the partition until the worker ended.
    #[test]
    fn a_lease_that_names_us_and_is_not_ours_is_taken_or_freed() {
        let mut taken = view("a", &["a", "b"], &["a", "a", "b", "b"]);
        taken.mine.remove(&1);
        assert_eq!(taken.steps(), [Step::Take(1, 5)]);
        let mut given = view("a", &["a", "b"], &["a", "a", "a", "b"]);
        given.mine.remove(&1);
        assert_eq!(given.steps(), [Step::Free(1)]);
    }

    #[test]
    fn shares_add_up() {
        for workers in 1..10_usize {
            let ids: Vec<String> = (0..workers).map(|number| format!("w{number}")).collect();
            let names: Vec<&str> = ids.iter().map(String::as_str).collect();
            let shares: Vec<usize> = names
                .iter()
                .map(|id| {
                    let view = view(id, &names, &["", "", "", "", "", "", "", ""]);
                    view.share(&view.alive())
                })
                .collect();
            assert_eq!(shares.iter().sum::<usize>(), 8);
            assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn the_silent_lose_their_leases_and_learn_of_it() {
        let mut dead = view("a", &["a", "b"], &["a", "b"]);
        dead.heard.insert("b".to_owned(), 10 - SILENT_MAX);
        assert_eq!(dead.steps(), [Step::Take(1, 5)]);
        let mut back = view("b", &["a", "b"], &["a", "a"]);
        back.mine.insert(1);
        assert_eq!(back.steps()[0], Step::Lose(1));
    }
}
