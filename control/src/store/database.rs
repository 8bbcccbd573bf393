//! The seam between the store and its database: what SQLite and PostgreSQL do each in their own way.
//!
//! Everything else (who may write when, what memory holds, what is told to whom) is the same for both. SQL that both understand is
//! here too; parameters are written `$1`, which SQLite takes as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use keel_certs::TokenId;
use sqlx::postgres::{PgPool, PgRow};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Error, Row};

use super::tokens::{Consumed, TokenRecord};
use super::{ConsumeError, Event, EventKind, Gap, Key, Object, StoreError, postgres, sqlite};
use crate::api::Revision;

/// Events after $1 up to $2, the first $3 of them.
pub(super) const SELECT_EVENTS: &str = "SELECT revision, kind, resource, name, object, previous FROM event \
     WHERE revision > $1 AND revision <= $2 ORDER BY revision LIMIT $3";

/// One object.
pub(super) const SELECT_OBJECT: &str =
    "SELECT revision, data FROM object WHERE resource = $1 AND name = $2";

/// Objects of the resource $1 behind the name $2 that are as they were at the revision $3, the first $4 of them.
pub(super) const SELECT_UNCHANGED: &str = "SELECT name, data FROM object \
     WHERE resource = $1 AND name > $2 AND revision <= $3 ORDER BY name LIMIT $4";

/// Objects of the resource $1 behind the name $2 that have changed since the revision $3 and were there then, as they were then:
/// the first change since knows what was before it.
pub(super) const SELECT_CHANGED: &str = "SELECT event.name, event.previous FROM event JOIN \
     (SELECT MIN(revision) AS revision FROM event WHERE resource = $1 AND name > $2 AND revision > $3 GROUP BY name) AS first \
     ON event.revision = first.revision WHERE event.previous IS NOT NULL ORDER BY event.name LIMIT $4";

/// How many objects [`SELECT_UNCHANGED`] and [`SELECT_CHANGED`] would find without an end.
pub(super) const COUNT_BEHIND: &str = "SELECT (SELECT COUNT(*) FROM object WHERE resource = $1 AND name > $2 AND revision <= $3) + \
     (SELECT COUNT(*) FROM event JOIN \
     (SELECT MIN(revision) AS revision FROM event WHERE resource = $1 AND name > $2 AND revision > $3 GROUP BY name) AS first \
     ON event.revision = first.revision WHERE event.previous IS NOT NULL)";

/// Rows that one transaction of a compaction deletes: few enough that writers wait for less than 50 ms.
pub(super) const COMPACT_ROWS: u64 = 1000;

/// Deletes the first $2 events up to $1.
pub(super) const DELETE_EVENTS: &str = "DELETE FROM event WHERE revision IN \
     (SELECT revision FROM event WHERE revision <= $1 ORDER BY revision LIMIT $2)";

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

impl Failed {
    pub(super) fn doing(self, doing: &'static str) -> StoreError {
        match self {
            Self::Undone(source) => StoreError::Database {
                doing,
                source: Arc::new(source),
            },
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
            // Nobody else does.
            Self::Sqlite(_) => std::future::pending().await,
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

    /// The last of the events that are older than `before` and not among the `keep` last; of many, one of the first.
    pub(super) async fn old_events(
        &mut self,
        keep: u64,
        before: i64,
    ) -> Result<Option<Revision>, Failed> {
        match self {
            Self::Sqlite(database) => database.old_events(keep, before).await,
            Self::Postgres(database) => database.old_events(keep, before).await,
        }
    }

    /// Deletes the events up to `upto`, and says durably that it does before it does.
    pub(super) async fn forget(&mut self, upto: Revision) -> Result<(), Failed> {
        match self {
            Self::Sqlite(database) => database.forget(upto).await,
            Self::Postgres(database) => database.forget(upto).await,
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
            Self::Sqlite(pool) => sqlite::read::get(pool, key).await,
            Self::Postgres(pool) => postgres::timely(postgres::read::get(pool, key)).await,
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
            Self::Sqlite(pool) => sqlite::read::behind(pool, resource, at, name).await?,
            Self::Postgres(pool) => {
                postgres::timely(postgres::read::behind(pool, resource, at, name)).await?
            }
        };
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The first `max` events after `after` up to `upto`, and up to where events were forgotten when they were read.
    pub(super) async fn events(
        &self,
        after: Revision,
        upto: Revision,
        max: i64,
    ) -> Result<(Vec<Arc<Event>>, Revision), Error> {
        match self {
            // The mark that the writer keeps in memory is ahead of what it deletes.
            Self::Sqlite(pool) => {
                let events = sqlite::read::events(pool, after, upto, max).await?;
                Ok((events, Revision(0)))
            }
            Self::Postgres(pool) => {
                postgres::timely(postgres::read::events(pool, after, upto, max)).await
            }
        }
    }

    pub(super) async fn tokens(&self) -> Result<Vec<TokenRecord>, Error> {
        match self {
            Self::Sqlite(pool) => sqlite::tokens::list(pool).await,
            Self::Postgres(pool) => postgres::timely(postgres::tokens::list(pool)).await,
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// A row of either database.
pub(super) trait Cells {
    fn number(&self, at: usize) -> Result<i64, Error>;
    fn flag(&self, at: usize) -> Result<bool, Error>;
    fn text(&self, at: usize) -> Result<String, Error>;
    fn bytes(&self, at: usize) -> Result<Option<Bytes>, Error>;

    fn revision(&self, at: usize) -> Result<Revision, Error> {
        Ok(Revision(self.number(at)?.unsigned_abs()))
    }

    /// Reads `revision, data` from the columns at `first`.
    fn object(&self, first: usize) -> Result<Object, Error> {
        Ok(Object {
            revision: self.revision(first)?,
            data: self.bytes(first + 1)?.unwrap_or_default(),
        })
    }

    /// Reads `name, data`.
    fn named(&self) -> Result<(String, Bytes), Error> {
        Ok((self.text(0)?, self.bytes(1)?.unwrap_or_default()))
    }

    /// Reads a row of [`SELECT_EVENTS`].
    fn event(&self) -> Result<Event, Error> {
        Ok(Event {
            revision: self.revision(0)?,
            kind: EventKind::from_column(self.number(1)?),
            key: Key {
                resource: self.text(2)?.into(),
                name: self.text(3)?,
            },
            object: self.bytes(4)?.unwrap_or_default(),
            previous: self.bytes(5)?,
        })
    }

    /// Reads `low, high`.
    fn gap(&self) -> Result<Gap, Error> {
        Ok((self.revision(0)?, self.revision(1)?))
    }
}

macro_rules! cells {
    ($row:ty) => {
        impl Cells for $row {
            fn number(&self, at: usize) -> Result<i64, Error> {
                self.try_get(at)
            }

            fn flag(&self, at: usize) -> Result<bool, Error> {
                self.try_get(at)
            }

            fn text(&self, at: usize) -> Result<String, Error> {
                self.try_get(at)
            }

            fn bytes(&self, at: usize) -> Result<Option<Bytes>, Error> {
                let bytes: Option<Vec<u8>> = self.try_get(at)?;
                Ok(bytes.map(Bytes::from))
            }
        }
    };
}

cells!(SqliteRow);
cells!(PgRow);

/// Reads all rows with `read`.
pub(super) fn all<R, T>(
    rows: &[R],
    read: impl Fn(&R) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    rows.iter().map(read).collect()
}

/// Events, shared as everybody wants them.
pub(super) fn events<R: Cells>(rows: &[R]) -> Result<Vec<Arc<Event>>, Error> {
    all(rows, |row| row.event().map(Arc::new))
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

/// Merges two lists by name and takes the first `max`.
pub(super) fn merge(
    mut unchanged: Vec<(String, Bytes)>,
    changed: Vec<(String, Bytes)>,
    max: i64,
) -> Vec<(String, Bytes)> {
    unchanged.extend(changed);
    unchanged.sort_by(|(one, _), (other, _)| one.cmp(other));
    unchanged.truncate(usize::try_from(max).unwrap_or(usize::MAX));
    unchanged
}

impl EventKind {
    pub(super) fn column(self) -> i64 {
        match self {
            Self::Added => 0,
            Self::Deleted => 1,
            Self::Modified => 2,
        }
    }

    fn from_column(column: i64) -> Self {
        match column {
            0 => Self::Added,
            1 => Self::Deleted,
            _ => Self::Modified,
        }
    }
}
