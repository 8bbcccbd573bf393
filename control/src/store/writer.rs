//! The writer: the only task that changes the database. It owns its connection and is never cancelled. What other APIServers write
//! to the same database is taken in here too, so that everything is published by one task and in order.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::age::Age;
use super::database::{Batch, Database, Failed, News, Objects};
use super::seal::is_damage;
use super::{Change, Event, EventKind, Key, Object, Shared, StoreConfig, StoreError};
use crate::api::Revision;

/// Something for the writer to do.
pub(super) enum Job {
    /// Decide and write one object.
    Write(Box<dyn Write>),
    /// Something with its own transaction.
    Transact(Transact),
    /// Forget old events.
    Compact {
        /// The last one to forget.
        upto: Revision,
        /// Answered when it is done.
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    /// A row could not be read: look at all of them.
    Mend {
        /// Answered when what can be done is done.
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    /// Finish and close.
    Close {
        /// Answered when the file is closed.
        answer: oneshot::Sender<()>,
    },
}

/// A transaction of its own, which answers by itself.
pub(super) type Transact = Box<dyn for<'c> FnOnce(&'c mut Database) -> BoxFuture<'c, ()> + Send>;

/// A write of one object, its types hidden.
pub(super) trait Write: Send {
    fn key(&self) -> &Key;
    fn decide(&mut self, current: Option<&Object>, revision: Revision) -> Change;
    fn finish(self: Box<Self>, committed: Result<(), StoreError>);
}

/// A write of one object.
pub(super) struct Decision<F, T> {
    pub(super) key: Key,
    pub(super) decide: Option<F>,
    pub(super) outcome: Option<T>,
    pub(super) answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Write for Decision<F, T>
where
    F: FnOnce(Option<&Object>, Revision) -> (Change, T) + Send,
    T: Send,
{
    fn key(&self) -> &Key {
        &self.key
    }

    fn decide(&mut self, current: Option<&Object>, revision: Revision) -> Change {
        let Some(decide) = self.decide.take() else {
            return Change::Keep;
        };
        // Caught here, because one decision must not end the writer for everybody. Nothing was written yet, and what the closure
        // holds is dropped.
        match std::panic::catch_unwind(AssertUnwindSafe(|| decide(current, revision))) {
            Ok((change, outcome)) => {
                self.outcome = Some(outcome);
                change
            }
            Err(_) => {
                error!(object = self.key.name, "a decision about a write panicked");
                Change::Keep
            }
        }
    }

    fn finish(self: Box<Self>, committed: Result<(), StoreError>) {
        let answer = match (committed, self.outcome) {
            (Ok(()), Some(outcome)) => Ok(outcome),
            (Ok(()), None) => Err(StoreError::Panicked),
            (Err(error), _) => Err(error),
        };
        // A caller that went away does not want to know.
        let _ = self.answer.send(answer);
    }
}

const FAILED_WRITE: &str = "look what became of a failed write";

/// Writes in a batch from which on the next one waits for others: with fewer, what comes during a commit is enough.
const COMPANY: usize = 8;

pub(super) struct Writer {
    pub(super) database: Database,
    pub(super) config: StoreConfig,
    pub(super) shared: Arc<Shared>,
    pub(super) jobs: mpsc::Receiver<Job>,
    /// The last batch held [`COMPANY`]: others are likely to come.
    pub(super) company: bool,
    /// A write of unknown outcome may be durable, and was not looked for yet. Nothing is published before it: whoever watches
    /// would never hear of it.
    pub(super) behind: bool,
    /// The last write was refused because the disk is full.
    pub(super) full: bool,
    pub(super) compaction: Compaction,
    pub(super) age: Age,
}

/// What is being forgotten: a step in each turn of the writer, so that writes go on between them.
#[derive(Default)]
pub(super) struct Compaction {
    /// Up to where.
    upto: Option<Revision>,
    /// Who wants to know when it is done.
    asked: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// Old events are to be looked for when that is done.
    look: bool,
}

impl Writer {
    /// Works until the store is closed or its last handle is gone.
    pub(super) async fn run(mut self) {
        let mut look =
            tokio::time::interval(self.config.compact_every.max(Duration::from_millis(1)));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut after = None;
        loop {
            self.forget_some().await;
            let published = self.published();
            let job = match after.take() {
                Some(job) => Some(job),
                None => tokio::select! {
                    biased;
                    // First, because under load the queue is never empty.
                    _ = look.tick() => {
                        self.compaction.look = true;
                        continue;
                    }
                    job = self.jobs.recv() => job,
                    () = self.database.told(published) => {
                        self.follow("follow what others write").await.ok();
                        continue;
                    }
                    () = std::future::ready(()), if self.compaction.is_on() => continue,
                },
            };
            match job {
                Some(Job::Write(first)) => after = self.batch(first).await,
                Some(Job::Transact(transact)) => transact(&mut self.database).await,
                Some(Job::Compact { upto, answer }) => {
                    let upto = upto.min(self.published());
                    if upto > self.shared.compacted() {
                        self.compaction.reach(upto);
                    }
                    self.compaction.asked.push(answer);
                    if self.compaction.upto.is_none() {
                        self.compaction.end(Ok(()));
                    }
                }
                Some(Job::Mend { answer }) => {
                    let _ = answer.send(self.mend().await);
                }
                Some(Job::Close { answer }) => {
                    self.forget_all().await;
                    self.close().await;
                    let _ = answer.send(());
                    return;
                }
                None => return self.close().await,
            }
        }
    }

    fn published(&self) -> Revision {
        *self.shared.revision.borrow()
    }

    /// Collects a batch behind its first write and commits it. Gives back the job that ended the batch, if it is another kind.
    ///
    /// Whoever writes alone does not wait for others: it takes what is queued already, which is what came during the last commit.
    async fn batch(&mut self, first: Box<dyn Write>) -> Option<Job> {
        let mut writes = vec![first];
        let mut after = None;
        let linger = if self.company {
            self.config.linger
        } else {
            Duration::ZERO
        };
        let deadline = Instant::now() + linger;
        while writes.len() < self.config.batch {
            // `recv` is cancel safe, so a job that comes with the deadline is in the next batch.
            match tokio::time::timeout_at(deadline, self.jobs.recv()).await {
                Ok(Some(Job::Write(write))) => writes.push(write),
                Ok(Some(other)) => {
                    after = Some(other);
                    break;
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.company = writes.len() >= COMPANY;
        let outcome = self.commit(&mut writes).await;
        self.full &= outcome.is_err();
        if let Err(error) = &outcome {
            // A full disk was told when it began.
            if !matches!(error, StoreError::Full) {
                error!(error = %chain(error), writes = writes.len(), "a batch of writes failed");
            }
            // If the commit (or a part of the answer to it) got lost but the data did not, watchers must see it.
            self.behind = true;
            // What is in the way may be history. Once for a full disk, and from then on when it is looked anyway.
            let full = matches!(error, StoreError::Full);
            self.compaction.look |= full && !std::mem::replace(&mut self.full, full);
            self.follow(FAILED_WRITE).await.ok();
        }
        for write in writes {
            write.finish(outcome.clone());
        }
        self.database.tidy().await;
        after
    }

    /// Decides all writes in order and commits what they change, in one transaction.
    async fn commit(&mut self, writes: &mut [Box<dyn Write>]) -> Result<(), StoreError> {
        if self.behind {
            let looked = self.follow(FAILED_WRITE).await;
            looked.map_err(StoreError::database(FAILED_WRITE))?;
        }
        let keys: BTreeSet<Key> = writes.iter().map(|write| write.key().clone()).collect();
        let mut applied = self.apply(BTreeSet::clone(&keys), writes).await;
        // That was found out before anybody decided.
        if let Err(Failed::Undone(error)) = &applied
            && is_damage(error)
        {
            self.mend().await?;
            applied = self.apply(keys, writes).await;
        }
        let (news, batch) = applied.map_err(|failed| failed.doing("commit a batch of writes"))?;
        if let Some(news) = news {
            self.shared.learn(news);
        }
        self.shared.skip(batch.gaps);
        self.shared.publish(batch.events);
        Ok(())
    }

    async fn apply(
        &mut self,
        keys: BTreeSet<Key>,
        writes: &mut [Box<dyn Write>],
    ) -> Result<(Option<News>, Batch), Failed> {
        self.database
            .apply(self.published(), keys, |objects, next| {
                decide(writes, objects, next)
            })
            .await
    }

    /// Does what can be done about rows that are not what was written.
    async fn mend(&mut self) -> Result<(), StoreError> {
        let mended = self.database.mend().await;
        let Some(news) = mended.map_err(|failed| failed.doing("mend damaged rows"))? else {
            return Ok(());
        };
        let begin = news.compacted;
        self.shared.learn(news);
        // Not in steps: what is damaged must not be found again.
        self.compaction.reach(begin);
        self.forget_all().await;
        Ok(())
    }

    /// Publishes what is in the database and is not published yet.
    async fn follow(&mut self, doing: &'static str) -> Result<(), sqlx::Error> {
        let compacted = self.shared.compacted();
        let news = self.database.news(self.published(), compacted).await;
        // Said loudly where it was found out.
        let news =
            news.inspect_err(|error| debug!(%error, doing, "the database cannot be read"))?;
        if let Some(news) = news {
            self.shared.learn(news);
        }
        self.behind = false;
        Ok(())
    }

    /// One step of forgetting, if something is to be forgotten.
    async fn forget_some(&mut self) {
        if self.compaction.upto.is_none() && std::mem::take(&mut self.compaction.look) {
            match self.old_events().await {
                Ok(None) => {}
                Ok(Some(upto)) => {
                    self.compaction.reach(upto);
                    // There may be more.
                    self.compaction.look = true;
                }
                Err(error) => self.compaction.end(Err(error)),
            }
        }
        let Some(upto) = self.compaction.upto else {
            return;
        };
        self.shared.forget(upto);
        let forgotten = self.database.forget(upto).await;
        self.database.tidy().await;
        match forgotten {
            Ok(true) => {}
            Ok(false) => {
                debug!(revision = %upto, "old events deleted");
                self.compaction.end(Ok(()));
            }
            Err(failed) => self.compaction.end(Err(failed.doing("delete old events"))),
        }
    }

    async fn forget_all(&mut self) {
        while self.compaction.upto.is_some() {
            self.forget_some().await;
        }
    }

    /// Up to where events are both old and many.
    async fn old_events(&mut self) -> Result<Option<Revision>, StoreError> {
        let age = i64::try_from(self.config.keep_for.as_secs()).unwrap_or(i64::MAX);
        let before = unix_seconds() - age;
        let old = self.age.look(Instant::now(), self.published());
        let keep = self.config.keep_events;
        let look = async {
            match self.database.old_events(keep, old, before).await? {
                Some(upto) => Ok(Some(upto)),
                None => self.database.surplus().await,
            }
        };
        look.await
            .map_err(|failed: Failed| failed.doing("look for old events"))
    }

    /// Closes the database. Queued jobs are dropped, which tells their callers.
    async fn close(mut self) {
        self.jobs.close();
        match self.database.close().await {
            Ok(()) => info!("store closed"),
            Err(error) => error!(%error, "the store did not close cleanly"),
        }
    }
}

impl Compaction {
    fn is_on(&self) -> bool {
        self.upto.is_some() || self.look
    }

    fn reach(&mut self, upto: Revision) {
        self.upto = self.upto.max(Some(upto));
    }

    fn end(&mut self, done: Result<(), StoreError>) {
        self.upto = None;
        if let Err(error) = &done {
            error!(error = %chain(error), "old events cannot be deleted");
            // Later, not at once again.
            self.look = false;
        }
        for answer in self.asked.drain(..) {
            let _ = answer.send(done.clone());
        }
    }
}

/// Lets all writes decide in order; `next` is the number that the first change gets.
fn decide(writes: &mut [Box<dyn Write>], mut objects: Objects, mut next: Revision) -> Batch {
    let mut events = Vec::new();
    let mut gaps = Vec::new();
    for write in writes {
        let key = write.key().clone();
        let current = objects.get(&key);
        let previous = current.map(|object| object.data.clone());
        let change = match write.decide(current, next) {
            Change::PutAt(at, data) => {
                let at = at.max(next);
                // The first number that is skipped has not been given out, the one before it has.
                gaps.extend((at > next).then_some((Revision(next.0 - 1), at)));
                next = at;
                Change::Put(data)
            }
            change => change,
        };
        let (kind, object) = match change {
            Change::Keep | Change::PutAt(..) => continue,
            Change::Put(data) if previous.is_some() => (EventKind::Modified, data),
            Change::Put(data) => (EventKind::Added, data),
            Change::Delete(_) if previous.is_none() => continue,
            Change::Delete(data) => (EventKind::Deleted, data),
        };
        match kind {
            EventKind::Deleted => objects.remove(&key),
            _ => objects.insert(
                key.clone(),
                Object {
                    revision: next,
                    data: object.clone(),
                },
            ),
        };
        events.push(Arc::new(Event {
            revision: next,
            kind,
            key,
            object,
            previous,
        }));
        next = next.next();
    }
    Batch { events, gaps }
}

pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn chain(error: &StoreError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
