//! The seam between the store and its database: what SQLite and PostgreSQL do each in their own way.
//!
//! Everything else (who may write when, what memory holds, what is told to whom) is the same for both, and so is most SQL: see
//! [`statements`](super::statements).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use keel_certs::TokenId;
use sqlx::Error;
use sqlx::postgres::PgPool;
use sqlx::sqlite::SqlitePool;

use super::age::Old;
use super::events::{self, Bounds};
use super::tokens::{self, Consumed, TokenRecord};
use super::{
    ConsumeError, Event, EventKind, Gap, Key, Object, StoreError, lookup, postgres, sqlite,
};
use crate::api::Revision;

/// Openings over which history is kept: each leaves a gap that every resumed watch is compared with.
pub(super) const GAPS: i64 = 100;

/// The objects that a batch is about, as they are.
pub(super) type Objects = BTreeMap<Key, Object>;

/// What the decisions of a batch come to.
pub(super) struct Batch {
    pub(super) events: Vec<Arc<Event>>,
    /// Numbers that were skipped.
    pub(super) gaps: Vec<Gap>,
}

/// What happened since the revision that was published last, by whomever.
pub(super) struct News {
    /// The events, in order.
    pub(super) events: Vec<Arc<Event>>,
    /// The events do not go back to what was published: they are those after this revision.
    pub(super) floor: Option<Revision>,
    pub(super) gaps: Vec<Gap>,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
}

/// Why the database did not do it.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing was changed.
    Undone(Error),
    /// It may have been done, or may be found done later.
    Unknown(Error),
    /// The disk is full; nothing was changed.
    Full,
}

impl From<Error> for Failed {
    /// Right for everything before a commit.
    fn from(error: Error) -> Self {
        Self::Undone(error)
    }
}

/// Whether the database is not there, as it says itself or as the way to it shows.
///
/// What SQLite has to say about its file is a word of the database itself; its codes are numbers and none of these.
pub(super) fn is_away(error: &Error) -> bool {
    match error {
        Error::Io(_) | Error::PoolTimedOut => true,
        // https://www.postgresql.org/docs/current/errcodes-appendix.html: lost connections, a server that stops or starts.
        Error::Database(said) => said.code().is_some_and(|code| {
            code.starts_with("08") || matches!(&*code, "57P01" | "57P02" | "57P03")
        }),
        _ => false,
    }
}

impl Failed {
    pub(super) fn doing(self, doing: &'static str) -> StoreError {
        match self {
            Self::Undone(source) => StoreError::database(doing)(source),
            Self::Unknown(source) => StoreError::Unknown {
                doing,
                source: Arc::new(source),
            },
            Self::Full => StoreError::Full,
        }
    }
}

/// The writer's side.
pub(super) enum Database {
    Sqlite(sqlite::Database),
    Postgres(Box<postgres::Database>),
}

impl Database {
    /// Shows `decide` the objects and the next number, and commits what it comes to. Gives back what others did before, if any.
    pub(super) async fn apply<F>(
        &mut self,
        published: Revision,
        keys: BTreeSet<Key>,
        decide: F,
    ) -> Result<(Option<News>, Batch), Failed>
    where
        F: FnOnce(Objects, Revision) -> Batch + Send,
    {
        match self {
            Self::Sqlite(database) => Ok((None, database.apply(keys, decide).await?)),
            Self::Postgres(database) => database.apply(published, keys, decide).await,
        }
    }

    /// Waits until somebody else may have written. Cancel safe.
    pub(super) async fn told(&mut self, published: Revision) {
        match self {
            Self::Sqlite(database) => database.told().await,
            Self::Postgres(database) => database.told(published).await,
        }
    }

    /// What is there after what was published.
    pub(super) async fn news(
        &mut self,
        published: Revision,
        compacted: Revision,
    ) -> Result<Option<News>, Error> {
        match self {
            Self::Sqlite(database) => database.news(published, compacted).await.map(Some),
            Self::Postgres(database) => database.news(published, compacted).await,
        }
    }

    /// The last of the events that are old and not among the `keep` last; of many, one of the first. The clock says that one is old
    /// if it is from `before` that Unix time.
    pub(super) async fn old_events(
        &mut self,
        keep: u64,
        old: Old,
        before: i64,
    ) -> Result<Option<Revision>, Failed> {
        match self {
            Self::Sqlite(database) => database.old_events(keep, old, before).await,
            Self::Postgres(database) => database.old_events(keep, old, before).await,
        }
    }

    /// Up to where events have to go although they are not old, because the disk has no room for them.
    pub(super) async fn surplus(&mut self) -> Result<Option<Revision>, Failed> {
        match self {
            Self::Sqlite(database) => database.surplus().await,
            // It is somebody else's disk, and how much of it is ours nobody has told.
            Self::Postgres(_) => Ok(None),
        }
    }

    /// Deletes the first of the events up to `upto`, in one transaction, in which it also says that all of them are forgotten.
    /// Whether there are more.
    pub(super) async fn forget(&mut self, upto: Revision) -> Result<bool, Failed> {
        match self {
            Self::Sqlite(database) => database.forget(upto).await,
            Self::Postgres(database) => database.forget(upto).await,
        }
    }

    /// Looks at every row and does what can be done about those that are not what was written; what follows, if there are any.
    pub(super) async fn mend(&mut self) -> Result<Option<News>, Failed> {
        match self {
            Self::Sqlite(database) => database.mend().await,
            // It looks after its pages itself.
            Self::Postgres(_) => Ok(None),
        }
    }

    /// What is better done between two batches than within one.
    pub(super) async fn tidy(&mut self) {
        match self {
            Self::Sqlite(database) => database.tidy().await,
            Self::Postgres(_) => {}
        }
    }

    pub(super) async fn create_token(
        &mut self,
        token: TokenRecord,
        forget: SystemTime,
    ) -> Result<(), Failed> {
        match self {
            Self::Sqlite(database) => database.create_token(token, forget).await,
            Self::Postgres(database) => database.create_token(token, forget).await,
        }
    }

    pub(super) async fn revoke_token(&mut self, id: &TokenId) -> Result<bool, Failed> {
        match self {
            Self::Sqlite(database) => database.revoke_token(id).await,
            Self::Postgres(database) => database.revoke_token(id).await,
        }
    }

    pub(super) async fn consume_token(
        &mut self,
        id: &TokenId,
        secret_hash: [u8; 32],
        key_hash: [u8; 32],
        now: SystemTime,
    ) -> Result<Result<Consumed, ConsumeError>, Failed> {
        match self {
            Self::Sqlite(database) => database.consume_token(id, secret_hash, key_hash, now).await,
            Self::Postgres(database) => {
                database.consume_token(id, secret_hash, key_hash, now).await
            }
        }
    }

    pub(super) async fn keep_result(
        &mut self,
        id: &TokenId,
        key_hash: [u8; 32],
        result: Bytes,
    ) -> Result<(), Failed> {
        match self {
            Self::Sqlite(database) => database.keep_result(id, key_hash, &result).await,
            Self::Postgres(database) => database.keep_result(id, key_hash, &result).await,
        }
    }

    /// Whose the database is, now that this trust domain claims it.
    pub(super) async fn claim(&mut self, domain: &str) -> Result<String, Failed> {
        match self {
            Self::Sqlite(_) => Ok(domain.to_owned()),
            Self::Postgres(database) => database.claim(domain).await,
        }
    }

    /// Lets go of the database.
    pub(super) async fn close(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(database) => database.close().await,
            Self::Postgres(database) => database.close().await,
        }
    }
}

/// The readers' side: connections that never wait for the writer.
#[derive(Debug)]
pub(super) enum Readers {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A part of a list, and where the store was.
pub(super) struct Part {
    /// Names and objects, by name.
    pub(super) objects: Vec<(String, Bytes)>,
    /// The store's revision when it was read.
    pub(super) current: Revision,
    /// Events up to here were forgotten when it was read.
    pub(super) compacted: Revision,
}

impl Readers {
    pub(super) async fn get(&self, key: &Key) -> Result<Option<Object>, Error> {
        match self {
            Self::Sqlite(pool) => lookup::get(&mut *pool.acquire().await?, key).await,
            Self::Postgres(pool) => {
                postgres::timely(async { lookup::get(&mut *pool.acquire().await?, key).await })
                    .await
            }
        }
    }

    /// The last revision that is committed; what was published is that, unless others write too.
    pub(super) async fn revision(&self, published: Revision) -> Result<Revision, Error> {
        match self {
            Self::Sqlite(_) => Ok(published),
            Self::Postgres(pool) => postgres::timely(postgres::read::revision(pool)).await,
        }
    }

    /// All objects of the resource by name, and the revision at which they were so.
    pub(super) async fn list(&self, resource: &str) -> Result<(Vec<Object>, Revision), Error> {
        match self {
            Self::Sqlite(pool) => sqlite::read::list(pool, resource).await,
            Self::Postgres(pool) => postgres::timely(postgres::read::list(pool, resource)).await,
        }
    }

    /// The first `max` objects of the resource behind `name`, as they were at `at` (now, if none is given).
    pub(super) async fn part(
        &self,
        resource: &str,
        at: Option<Revision>,
        name: &str,
        max: i64,
    ) -> Result<Part, Error> {
        match self {
            Self::Sqlite(pool) => sqlite::read::part(pool, resource, at, name, max).await,
            Self::Postgres(pool) => {
                postgres::timely(postgres::read::part(pool, resource, at, name, max)).await
            }
        }
    }

    /// How many objects of the resource were behind `name` at `at`.
    pub(super) async fn behind(
        &self,
        resource: &str,
        at: Revision,
        name: &str,
    ) -> Result<usize, Error> {
        let count = match self {
            Self::Sqlite(pool) => {
                lookup::behind(&mut *pool.acquire().await?, resource, at, name).await?
            }
            Self::Postgres(pool) => {
                postgres::timely(async {
                    lookup::behind(&mut *pool.acquire().await?, resource, at, name).await
                })
                .await?
            }
        };
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The first events after `after` up to `upto`, and up to where events were forgotten when they were read.
    pub(super) async fn events(
        &self,
        after: Revision,
        upto: Revision,
        bounds: Bounds,
    ) -> Result<(Vec<Arc<Event>>, Revision), Error> {
        match self {
            // The mark that the writer keeps in memory is ahead of what it deletes.
            Self::Sqlite(pool) => {
                let connection = &mut *pool.acquire().await?;
                let events = events::read(connection, after, upto, bounds).await?;
                Ok((events, Revision(0)))
            }
            Self::Postgres(pool) => {
                postgres::timely(postgres::read::events(pool, after, upto, bounds)).await
            }
        }
    }

    pub(super) async fn tokens(&self) -> Result<Vec<TokenRecord>, Error> {
        match self {
            Self::Sqlite(pool) => tokens::list(&mut *pool.acquire().await?).await,
            Self::Postgres(pool) => {
                postgres::timely(async { tokens::list(&mut *pool.acquire().await?).await }).await
            }
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// A revision as a column holds it. Nothing above `Revision::MAX` gets this far; if it did, it would be beyond every row.
pub(super) fn column(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// A count as SQL takes it.
pub(super) fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// What a batch leaves of the objects it is about: of several changes of one, only the last is its state. Those that are gone, and
/// those that are there.
pub(super) fn states(events: &[Arc<Event>]) -> (Vec<&Event>, Vec<&Event>) {
    let states: BTreeMap<&Key, &Event> = events
        .iter()
        .map(|event| (&event.key, event.as_ref()))
        .collect();
    states
        .into_values()
        .partition(|event| event.kind == EventKind::Deleted)
}

impl EventKind {
    pub(super) fn column(self) -> i64 {
        match self {
            Self::Added => 0,
            Self::Deleted => 1,
            Self::Modified => 2,
        }
    }

    pub(super) fn from_column(column: i64) -> Self {
        match column {
            0 => Self::Added,
            1 => Self::Deleted,
            _ => Self::Modified,
        }
    }
}
