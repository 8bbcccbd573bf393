//! Reading: one object, all of a resource, the events after a revision.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{Event, EventKind, Key, Object, Store, StoreError};
use crate::api::Revision;

/// Why the events after a revision cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The revision is ahead of the store: it belongs to another store, or to a commit that is not readable yet.
    #[error("revision {asked} is ahead of the store's {current}")]
    Ahead {
        /// The revision asked for.
        asked: Revision,
        /// The store's revision.
        current: Revision,
    },
    /// Some of the events are forgotten.
    #[error("the events after revision {asked} are gone, the oldest kept are after {oldest}")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest revision that can be asked for.
        oldest: Revision,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// The object, if there is one. Sees every write that was answered before.
    ///
    /// # Errors
    /// [`StoreError::Database`] if SQLite fails.
    pub async fn get(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        let row =
            sqlx::query("SELECT revision, data FROM object WHERE resource = ?1 AND name = ?2")
                .bind(key.resource.as_ref())
                .bind(key.name.as_str())
                .fetch_optional(&self.inner.readers)
                .await
                .map_err(StoreError::database("read an object"))?;
        row.map(|row| object(&row, 0))
            .transpose()
            .map_err(StoreError::database("read an object"))
    }

    /// All objects of a resource by name, and the revision at which they were so.
    ///
    /// # Errors
    /// [`StoreError::Database`] if SQLite fails.
    pub async fn list(&self, resource: &str) -> Result<(Vec<Object>, Revision), StoreError> {
        self.list_in_snapshot(resource)
            .await
            .map_err(StoreError::database("list objects"))
    }

    async fn list_in_snapshot(
        &self,
        resource: &str,
    ) -> Result<(Vec<Object>, Revision), sqlx::Error> {
        // One transaction is one snapshot, so the number and the objects belong together.
        let mut transaction = self.inner.readers.begin().await?;
        let revision: i64 = sqlx::query_scalar("SELECT value FROM meta WHERE key = 'revision'")
            .fetch_one(&mut *transaction)
            .await?;
        let rows =
            sqlx::query("SELECT revision, data FROM object WHERE resource = ?1 ORDER BY name")
                .bind(resource)
                .fetch_all(&mut *transaction)
                .await?;
        transaction.rollback().await?;
        let objects = rows
            .iter()
            .map(|row| object(row, 0))
            .collect::<Result<_, _>>()?;
        Ok((objects, Revision(revision.unsigned_abs())))
    }

    /// The first `max` events after the revision, of all resources, in order; empty if there are none yet.
    ///
    /// # Errors
    /// [`EventsError::Compacted`] if some of them are forgotten, [`EventsError::Ahead`] if the store is not there yet.
    pub async fn events_since(
        &self,
        after: Revision,
        max: usize,
    ) -> Result<Vec<Arc<Event>>, EventsError> {
        let shared = &self.inner.shared;
        let current = self.current();
        if after > current {
            return Err(EventsError::Ahead {
                asked: after,
                current,
            });
        }
        let forgotten = || {
            let oldest = shared.compacted();
            let lost = shared
                .gaps
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .any(|(low, high)| *low < after && after < *high);
            (after < oldest || lost).then_some(EventsError::Compacted {
                asked: after,
                oldest,
            })
        };
        if let Some(error) = forgotten() {
            return Err(error);
        }
        if let Some(events) = shared
            .ring
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .after(after, max)
        {
            return Ok(events);
        }
        let events = self.events_between(after, current, max).await?;
        // Compaction raises its mark before it deletes: if the mark is still below, nothing was missing from what was read.
        match forgotten() {
            Some(error) => Err(error),
            None => Ok(events),
        }
    }

    async fn events_between(
        &self,
        after: Revision,
        upto: Revision,
        max: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        let rows = sqlx::query(SELECT_EVENTS)
            .bind(column(after))
            .bind(column(upto))
            .bind(i64::try_from(max).unwrap_or(i64::MAX))
            .fetch_all(&self.inner.readers)
            .await
            .map_err(StoreError::database("read events"))?;
        rows.iter()
            .map(|row| event(row).map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(StoreError::database("read events"))
    }
}

/// Events after ?1 up to ?2, the first ?3 of them.
pub(super) const SELECT_EVENTS: &str = "SELECT revision, kind, resource, name, object, previous FROM event \
     WHERE revision > ?1 AND revision <= ?2 ORDER BY revision LIMIT ?3";

/// A revision as SQLite holds it. Nothing above `Revision::MAX` gets this far; if it did, it would be beyond every row.
pub(super) fn column(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// Reads `revision, data` from the columns at `first`.
pub(super) fn object(row: &SqliteRow, first: usize) -> Result<Object, sqlx::Error> {
    let revision: i64 = row.try_get(first)?;
    let data: Vec<u8> = row.try_get(first + 1)?;
    Ok(Object {
        revision: Revision(revision.unsigned_abs()),
        data: Bytes::from(data),
    })
}

/// Reads a row of [`SELECT_EVENTS`].
pub(super) fn event(row: &SqliteRow) -> Result<Event, sqlx::Error> {
    let revision: i64 = row.try_get(0)?;
    let kind: i64 = row.try_get(1)?;
    let resource: String = row.try_get(2)?;
    let name: String = row.try_get(3)?;
    let object: Vec<u8> = row.try_get(4)?;
    let previous: Option<Vec<u8>> = row.try_get(5)?;
    Ok(Event {
        revision: Revision(revision.unsigned_abs()),
        kind: EventKind::from_column(kind),
        key: Key {
            resource: resource.into(),
            name,
        },
        object: object.into(),
        previous: previous.map(Bytes::from),
    })
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
