//! The store: a database, one writer, one revision counter.
//!
//! A write is a decision (a function from the current object to a [`Change`]) that the writer task runs; it answers after its
//! commit. The writer collects writes into batches, so one `fsync` pays for many of them. Object and event go in one transaction, so
//! a watch sees exactly what was committed. Readers have connections of their own and never wait for the writer.
//!
//! The database is a SQLite file of this node ([`Store::open`]), or a PostgreSQL database that several APIServers share
//! ([`Store::connect`]); what they do each in their own way is behind the `database` seam.
//!
//! The hub ([`Store::revision`]) carries numbers only: whoever follows the store keeps a cursor and reads what is behind it,
//! from the [`ring`] or, further back, from the database. The store never calls the network and knows no resource's schema.

mod age;
mod database;
mod events;
mod lookup;
mod open;
mod owner;
mod postgres;
mod read;
mod ring;
mod seal;
mod sqlite;
mod statements;
mod tokens;
mod writer;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::api::Revision;
use database::{News, Readers};
use ring::Ring;
use writer::{Job, Writer};

pub use open::OpenError;
pub use owner::ClaimError;
pub use read::{EventsError, Page};
pub use tokens::{ConsumeError, Consumed, TokenRecord, TokenScope};

/// How the store batches, keeps and forgets.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Writes in one transaction at most.
    pub batch: usize,
    /// How long a batch waits for more after its first write, if the one before it held eight or more.
    pub linger: Duration,
    /// Events kept in memory at most.
    pub ring: usize,
    /// Bytes of the events in memory at most; a node's share of memory wins over the number of events.
    pub ring_bytes: usize,
    /// Events kept for resuming watches at least, as far as there is room: in a SQLite file history has a quarter of the disk (64 MiB
    /// of a small one), and half of it goes when that is full.
    pub keep_events: u64,
    /// How long events are kept at least, as far as there is room.
    pub keep_for: Duration,
    /// How often old events are looked for.
    pub compact_every: Duration,
    /// Bytes of the disk that are held back beside a SQLite file, for the day when it is full.
    pub ballast: u64,
    /// Counts rows of a SQLite file that are not what was written.
    pub damaged: Counter,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            // 16 to 64 rows is where sqlx on SQLite writes most rows per second; beyond that a batch only gets later.
            batch: 64,
            linger: Duration::from_millis(2),
            ring: 10_000,
            ring_bytes: 16 << 20,
            keep_events: 10_000,
            keep_for: Duration::from_secs(3600),
            compact_every: Duration::from_secs(60),
            // What the log grows to before it is moved into the file.
            ballast: 4 << 20,
            damaged: Counter::default(),
        }
    }
}

/// What an object is found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Resource, with its group: `routers.edge.example.com`.
    pub resource: Cow<'static, str>,
    /// Name of the object.
    pub name: String,
}

/// An object as it was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Revision of its last change.
    pub revision: Revision,
    /// The object, encoded.
    pub data: Bytes,
}

/// What a write does to the object.
#[derive(Debug)]
pub enum Change {
    /// Nothing: the object is as it should be, or the write is refused.
    Keep,
    /// The object becomes this.
    Put(Bytes),
    /// The object becomes this, and the change gets this number instead: it must not be lower than the one that was offered. The
    /// numbers between are skipped, and a cursor inside is one of a history that this store does not know.
    PutAt(Revision, Bytes),
    /// The object goes; this is what watchers are told about it last.
    Delete(Bytes),
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It is new.
    Added,
    /// It is gone.
    Deleted,
    /// It is another.
    Modified,
}

/// One committed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Revision of the change.
    pub revision: Revision,
    /// What happened.
    pub kind: EventKind,
    /// To which object.
    pub key: Key,
    /// The object after the change; of a deleted one, its last state.
    pub object: Bytes,
    /// The object before the change.
    pub previous: Option<Bytes>,
}

impl Event {
    /// Bytes of its objects.
    fn objects(&self) -> usize {
        self.object.len() + self.previous.as_ref().map_or(0, Bytes::len)
    }
}

/// Why the store did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
    /// The decision about the write panicked; nothing was written.
    #[error("the write could not be decided: this is a bug, see the log")]
    Panicked,
    /// The disk is full; a write did not happen, and none does until there is room again. Reads go on.
    #[error(
        "the disk that holds the store is full: nothing is written until there is room again, reads go on"
    )]
    Full,
    /// The database does not answer; a write did not happen.
    #[error(
        "the store's database does not answer, so it could not {doing}: nothing is read or written until it does, flows go on"
    )]
    Away {
        /// What was to be done.
        doing: &'static str,
        /// What the way to it said.
        #[source]
        source: Arc<sqlx::Error>,
    },
    /// The database said no; a write did not happen.
    #[error("the store failed to {doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        #[source]
        source: Arc<sqlx::Error>,
    },
    /// The database failed while it committed: the write may have happened, or not. Reading tells.
    #[error("the store failed to {doing}, and it is unknown whether that was done: read it again")]
    Unknown {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        #[source]
        source: Arc<sqlx::Error>,
    },
}

impl StoreError {
    fn database(doing: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| {
            let source = Arc::new(source);
            match database::is_away(&source) {
                true => Self::Away { doing, source },
                false => Self::Database { doing, source },
            }
        }
    }
}

/// A handle on the store; clones share it.
///
/// [`Store::close`] ends it properly. If the last handle is dropped instead, the writer finishes what it has and closes by itself.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Where the store is kept, for people: a path, or an URL without its password.
    place: String,
    /// The trust domain that it belonged to when it was opened.
    trust_domain: Option<String>,
    /// See [`Store::reachable`].
    reachable: watch::Receiver<bool>,
    /// Writes wait here when the writer is busy; a full queue makes callers wait, it drops nothing.
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    readers: Readers,
    /// The writer task. A lock because `close` takes it out through a shared handle.
    task: Mutex<JoinSet<()>>,
}

/// What writer and readers share.
#[derive(Debug)]
struct Shared {
    /// The last commits. A std lock: held for a short copy, never across an await.
    ring: RwLock<Ring>,
    /// The last published revision.
    revision: watch::Sender<Revision>,
    /// Events up to here are gone. Raised before they are deleted, so that a reader who read half of them can tell.
    compacted: AtomicU64,
    /// Numbers that were skipped: a cursor inside has seen what was lost. A std lock, never held across an await.
    gaps: RwLock<Vec<Gap>>,
}

/// Numbers that were skipped, without the ends.
type Gap = (Revision, Revision);

/// Writes that may wait for the writer: a few batches.
const QUEUE: usize = 256;

impl Store {
    /// The last revision that can be read, followed: it changes with every batch of commits, after they can be read.
    #[must_use]
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.inner.shared.revision.subscribe()
    }

    /// The last revision that can be read.
    #[must_use]
    pub fn current(&self) -> Revision {
        *self.inner.shared.revision.borrow()
    }

    /// Whether the store still takes writes.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.inner.jobs.is_closed()
    }

    /// Up to where events are forgotten.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.inner.shared.compacted()
    }

    /// Where the store is kept, for people: a path, or an URL without its password.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.inner.place
    }

    /// Whether the database answers, followed; for a file, whether its disk has not failed since it was found sound. A full disk
    /// is no failure: what is there can be read.
    #[must_use]
    pub fn reachable(&self) -> watch::Receiver<bool> {
        self.inner.reachable.clone()
    }

    /// Lets `decide` see the object and change it, then commits and gives its answer.
    ///
    /// `decide` gets the object as it is in the commit's order, and the revision that the change will have; it runs once, in the
    /// writer task, so it must be quick and must not block. The answer comes after the commit (at once if nothing changes). Dropping
    /// the future does not undo the write.
    ///
    /// # Errors
    /// A [`StoreError`]; the write was done only if it is [`StoreError::Unknown`], and then perhaps.
    pub async fn write<T, F>(&self, key: Key, decide: F) -> Result<T, StoreError>
    where
        F: FnOnce(Option<&Object>, Revision) -> (Change, T) + Send + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        self.send(Job::Write(Box::new(writer::Decision {
            key,
            decide: Some(decide),
            outcome: None,
            answer,
        })))
        .await?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Forgets the events up to `upto`, as far as they are there. Objects stay.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub async fn compact(&self, upto: Revision) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.send(Job::Compact { upto, answer }).await?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Mends the store if this is why a read failed; whether it should be tried again.
    async fn mended(&self, failed: Option<&sqlx::Error>) -> Result<bool, StoreError> {
        if !failed.is_some_and(seal::is_damage) {
            return Ok(false);
        }
        let (answer, answered) = oneshot::channel();
        self.send(Job::Mend { answer }).await?;
        answered.await.map_err(|_| StoreError::Closed)??;
        Ok(true)
    }

    /// Finishes what is queued and closes the database. Other handles get [`StoreError::Closed`].
    pub async fn close(&self) {
        let (answer, answered) = oneshot::channel();
        if self.send(Job::Close { answer }).await.is_ok() {
            // An error means that the writer ended another way; the join below waits for it.
            let _ = answered.await;
        }
        let mut task = std::mem::take(
            &mut *self
                .inner
                .task
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        while task.join_next().await.is_some() {}
        self.inner.readers.close().await;
    }

    async fn send(&self, job: Job) -> Result<(), StoreError> {
        self.inner
            .jobs
            .send(job)
            .await
            .map_err(|_| StoreError::Closed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer is never cancelled: it ends by itself when the queue's sender (a field of this) is gone.
        self.task
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .detach_all();
    }
}

impl Shared {
    fn compacted(&self) -> Revision {
        Revision(self.compacted.load(Ordering::Acquire))
    }

    /// Notes that events are about to be deleted.
    fn forget(&self, upto: Revision) {
        self.compacted.fetch_max(upto.0, Ordering::AcqRel);
        self.gaps
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(_, high)| *high > upto);
    }

    /// Notes that numbers were skipped.
    fn skip(&self, skipped: Vec<Gap>) {
        let mut gaps = self.gaps.write().unwrap_or_else(PoisonError::into_inner);
        for gap in skipped {
            if !gaps.contains(&gap) {
                gaps.push(gap);
            }
        }
    }

    /// Takes in what others did: first what says which cursors are lost, then the events, then that they can be read.
    fn learn(&self, news: News) {
        self.skip(news.gaps);
        self.forget(news.compacted);
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(floor) = news.floor {
            ring.restart(floor);
        }
        ring.extend(news.events);
        drop(ring);
        self.revision.send_if_modified(|revision| {
            std::mem::replace(revision, news.revision) != news.revision
        });
    }

    /// Makes committed events readable, then tells that they are.
    fn publish(&self, events: Vec<Arc<Event>>) {
        let Some(last) = events.last().map(|event| event.revision) else {
            return;
        };
        self.ring
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(events);
        self.revision.send_replace(last);
    }
}
