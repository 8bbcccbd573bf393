//! The writer: the only task that changes the database. It owns its connection and is never cancelled.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, QueryBuilder, Sqlite};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::read::{self, column};
use super::{Change, Event, EventKind, Key, Object, Shared, StoreConfig, StoreError};
use crate::api::Revision;

/// Rows that one transaction of a compaction deletes: few enough that writers wait for less than 50 ms.
const COMPACT_ROWS: u64 = 1000;

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
    /// Finish and close.
    Close {
        /// Answered when the file is closed.
        answer: oneshot::Sender<()>,
    },
}

/// A transaction of its own, which answers by itself.
pub(super) type Transact =
    Box<dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, ()> + Send>;

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

pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) config: StoreConfig,
    pub(super) shared: Arc<Shared>,
    pub(super) jobs: mpsc::Receiver<Job>,
    /// The number that the next change gets. Goes on after a failed commit, which may turn out to be durable.
    pub(super) next: Revision,
    /// Events in the database.
    pub(super) events: u64,
}

impl Writer {
    /// Works until the store is closed or its last handle is gone.
    pub(super) async fn run(mut self) {
        let mut compaction =
            tokio::time::interval(self.config.compact_every.max(Duration::from_millis(1)));
        compaction.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut after = None;
        loop {
            let job = match after.take() {
                Some(job) => Some(job),
                None => tokio::select! {
                    biased;
                    // First, because under load the queue is never empty.
                    _ = compaction.tick() => {
                        self.compact_old().await;
                        continue;
                    }
                    job = self.jobs.recv() => job,
                },
            };
            match job {
                Some(Job::Write(first)) => after = self.batch(first).await,
                Some(Job::Transact(transact)) => transact(&mut self.connection).await,
                Some(Job::Compact { upto, answer }) => {
                    let upto = upto.min(self.published());
                    let _ = answer.send(self.compact(upto).await);
                }
                Some(Job::Close { answer }) => {
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
    async fn batch(&mut self, first: Box<dyn Write>) -> Option<Job> {
        let mut writes = vec![first];
        let mut after = None;
        let deadline = Instant::now() + self.config.linger;
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
        let outcome = self.commit(&mut writes).await;
        if let Err(error) = &outcome {
            error!(error = %chain(error), writes = writes.len(), "a batch of writes failed");
            self.recover().await;
        }
        for write in writes {
            write.finish(outcome.clone());
        }
        after
    }

    /// Decides all writes in order and commits what they change, in one transaction.
    async fn commit(&mut self, writes: &mut [Box<dyn Write>]) -> Result<(), StoreError> {
        // Reading before the transaction is safe: nobody else writes. One caller's conflict is decided here and aborts nothing.
        let mut objects = self
            .current(writes.iter().map(|write| write.key().clone()).collect())
            .await
            .map_err(StoreError::database("read the objects to write"))?;
        let mut events = Vec::new();
        let mut gaps = Vec::new();
        for write in writes {
            let key = write.key().clone();
            let current = objects.get(&key);
            let previous = current.map(|object| object.data.clone());
            let change = match write.decide(current, self.next) {
                Change::PutAt(at, data) => {
                    let at = at.max(self.next);
                    // The first number that is skipped has not been given out, the one before it has.
                    gaps.extend((at > self.next).then_some((Revision(self.next.0 - 1), at)));
                    self.next = at;
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
                        revision: self.next,
                        data: object.clone(),
                    },
                ),
            };
            events.push(Arc::new(Event {
                revision: self.next,
                kind,
                key,
                object,
                previous,
            }));
            self.next = self.next.next();
        }
        if events.is_empty() {
            return Ok(());
        }
        self.insert(&events, &gaps)
            .await
            .map_err(StoreError::database("commit a batch of writes"))?;
        self.shared
            .gaps
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(gaps);
        self.events += events.len() as u64;
        self.shared.publish(events);
        Ok(())
    }

    async fn current(&mut self, keys: Vec<Key>) -> Result<BTreeMap<Key, Object>, sqlx::Error> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT resource, name, revision, data FROM object WHERE (resource, name) IN (",
        );
        query.push_values(keys, |mut row, key| {
            row.push_bind(key.resource.into_owned()).push_bind(key.name);
        });
        query.push(")");
        let rows = query.build().fetch_all(&mut self.connection).await?;
        rows.iter()
            .map(|row| {
                let resource: String = sqlx::Row::try_get(row, 0)?;
                let name: String = sqlx::Row::try_get(row, 1)?;
                Ok((
                    Key {
                        resource: resource.into(),
                        name,
                    },
                    read::object(row, 2)?,
                ))
            })
            .collect()
    }

    async fn insert(
        &mut self,
        events: &[Arc<Event>],
        gaps: &[(Revision, Revision)],
    ) -> Result<(), sqlx::Error> {
        let Some(last) = events.last() else {
            return Ok(());
        };
        let now = unix_seconds();
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut query = QueryBuilder::<Sqlite>::new(
            "INSERT INTO event (revision, at, kind, resource, name, object, previous) ",
        );
        query.push_values(events, |mut row, event| {
            row.push_bind(column(event.revision))
                .push_bind(now)
                .push_bind(event.kind.column());
            row.push_bind(event.key.resource.clone().into_owned())
                .push_bind(event.key.name.clone());
            row.push_bind(event.object.to_vec())
                .push_bind(event.previous.as_ref().map(|bytes| bytes.to_vec()));
        });
        query.build().execute(&mut *transaction).await?;

        // Several changes of one object in a batch: only the last one is its state.
        let states: BTreeMap<&Key, &Arc<Event>> =
            events.iter().map(|event| (&event.key, event)).collect();
        let (gone, there): (Vec<&Arc<Event>>, Vec<&Arc<Event>>) = states
            .into_values()
            .partition(|event| event.kind == EventKind::Deleted);
        if !there.is_empty() {
            let mut query =
                QueryBuilder::<Sqlite>::new("INSERT INTO object (resource, name, revision, data) ");
            query.push_values(there, |mut row, event| {
                row.push_bind(event.key.resource.clone().into_owned())
                    .push_bind(event.key.name.clone());
                row.push_bind(column(event.revision))
                    .push_bind(event.object.to_vec());
            });
            query.push(" ON CONFLICT (resource, name) DO UPDATE SET revision = excluded.revision, data = excluded.data");
            query.build().execute(&mut *transaction).await?;
        }
        if !gone.is_empty() {
            let mut query =
                QueryBuilder::<Sqlite>::new("DELETE FROM object WHERE (resource, name) IN (");
            query.push_values(gone, |mut row, event| {
                row.push_bind(event.key.resource.clone().into_owned())
                    .push_bind(event.key.name.clone());
            });
            query.push(")");
            query.build().execute(&mut *transaction).await?;
        }
        for (low, high) in gaps {
            sqlx::query("INSERT OR REPLACE INTO gap (low, high) VALUES (?1, ?2)")
                .bind(column(*low))
                .bind(column(*high))
                .execute(&mut *transaction)
                .await?;
        }
        sqlx::query("UPDATE meta SET value = ?1 WHERE key = 'revision'")
            .bind(column(last.revision))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    }

    /// After a commit that failed: if it (or a part of the answer to it) got lost but the data did not, watchers must see it.
    async fn recover(&mut self) {
        let found = sqlx::query(read::SELECT_EVENTS)
            .bind(column(self.published()))
            .bind(column(Revision::MAX))
            .bind(i64::MAX)
            .fetch_all(&mut self.connection)
            .await
            .and_then(|rows| {
                rows.iter()
                    .map(|row| read::event(row).map(Arc::new))
                    .collect::<Result<Vec<_>, _>>()
            });
        match found {
            Ok(events) => {
                self.events += events.len() as u64;
                self.shared.publish(events);
            }
            Err(error) => error!(%error, "the store cannot be read after a failed write"),
        }
    }

    /// Forgets events that are both old and many.
    async fn compact_old(&mut self) {
        while self.events > self.config.keep_events {
            let rows = (self.events - self.config.keep_events).min(COMPACT_ROWS);
            let before =
                unix_seconds() - i64::try_from(self.config.keep_for.as_secs()).unwrap_or(i64::MAX);
            let upto = sqlx::query_scalar::<_, Option<i64>>(
                "SELECT MAX(revision) FROM (SELECT revision, at FROM event ORDER BY revision LIMIT ?1) WHERE at < ?2",
            )
            .bind(i64::try_from(rows).unwrap_or(i64::MAX))
            .bind(before)
            .fetch_one(&mut self.connection)
            .await;
            match upto {
                Ok(None) => return,
                Ok(Some(upto)) => {
                    let upto = Revision(upto.unsigned_abs());
                    if let Err(error) = self.compact(upto).await {
                        error!(error = %chain(&error), "old events cannot be deleted");
                        return;
                    }
                    debug!(revision = %upto, "old events deleted");
                }
                Err(error) => {
                    error!(%error, "old events cannot be looked for");
                    return;
                }
            }
        }
    }

    async fn compact(&mut self, upto: Revision) -> Result<(), StoreError> {
        if upto <= self.shared.compacted() {
            return Ok(());
        }
        self.shared.compacted.fetch_max(upto.0, Ordering::AcqRel);
        self.shared
            .gaps
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(_, high)| *high > upto);
        self.delete_events(upto)
            .await
            .map_err(StoreError::database("delete old events"))
    }

    async fn delete_events(&mut self, upto: Revision) -> Result<(), sqlx::Error> {
        let connection = &mut self.connection;
        let statement = "UPDATE meta SET value = ?1 WHERE key = 'compacted'";
        sqlx::query(statement)
            .bind(column(upto))
            .execute(&mut *connection)
            .await?;
        sqlx::query("DELETE FROM gap WHERE high <= ?1")
            .bind(column(upto))
            .execute(&mut *connection)
            .await?;
        loop {
            let deleted = sqlx::query(
                "DELETE FROM event WHERE revision IN (SELECT revision FROM event WHERE revision <= ?1 ORDER BY revision LIMIT ?2)",
            )
            .bind(column(upto))
            .bind(i64::try_from(COMPACT_ROWS).unwrap_or(i64::MAX))
            .execute(&mut *connection)
            .await?
            .rows_affected();
            self.events = self.events.saturating_sub(deleted);
            if deleted < COMPACT_ROWS {
                return Ok(());
            }
        }
    }

    /// Closes the file. Queued jobs are dropped, which tells their callers.
    async fn close(mut self) {
        self.jobs.close();
        // Closing the last connection checkpoints and removes the log. Awaited: a dropped connection closes in the background,
        // and the file must not be moved meanwhile.
        match self.connection.close().await {
            Ok(()) => info!("store closed"),
            Err(error) => error!(%error, "the store did not close cleanly"),
        }
    }
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
