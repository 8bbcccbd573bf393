//! Reading: one object, all of a resource, the events after a revision.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;

use super::events::Bounds;
use super::{Event, Key, Object, Store, StoreError};
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

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Names and objects, by name.
    pub objects: Vec<(String, Bytes)>,
    /// The revision at which they were so.
    pub revision: Revision,
    /// Whether there are more behind the last one.
    pub more: bool,
}

impl Store {
    /// The object, if there is one. Sees every write that was answered before.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the database fails.
    pub async fn get(&self, key: &Key) -> Result<Option<Object>, StoreError> {
        let mut read = self.inner.readers.get(key).await;
        if self.mended(read.as_ref().err()).await? {
            read = self.inner.readers.get(key).await;
        }
        read.map_err(StoreError::database("read an object"))
    }

    /// The last revision of every write that was answered before, by whichever APIServer; [`current`](Store::current) may be a
    /// moment behind another's.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the database fails.
    pub async fn committed(&self) -> Result<Revision, StoreError> {
        self.inner
            .readers
            .revision(self.current())
            .await
            .map_err(StoreError::database("read the revision"))
    }

    /// All objects of a resource by name, and the revision at which they were so.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the database fails.
    pub async fn list(&self, resource: &str) -> Result<(Vec<Object>, Revision), StoreError> {
        let mut read = self.inner.readers.list(resource).await;
        if self.mended(read.as_ref().err()).await? {
            read = self.inner.readers.list(resource).await;
        }
        read.map_err(StoreError::database("list objects"))
    }

    /// The first `max` objects of a resource whose names are behind `after` (all names are behind the empty one), as they were at
    /// the revision `at`; without one, as they are.
    ///
    /// A list in pages is one state of the store if every page asks for the revision of the first. That is had from the objects as
    /// they are and from the events since, so it is had for as long as those are kept.
    ///
    /// # Errors
    /// [`EventsError::Compacted`] if some of the events since are forgotten, [`EventsError::Ahead`] if the store is not there yet.
    pub async fn page(
        &self,
        resource: &str,
        at: Option<Revision>,
        after: &str,
        max: usize,
    ) -> Result<Page, EventsError> {
        if let Some(asked) = at
            && let Some(error) = self.forgotten(asked)
        {
            return Err(error);
        }
        // One more, to know whether there are more.
        let limit = i64::try_from(max).unwrap_or(i64::MAX).saturating_add(1);
        let readers = &self.inner.readers;
        let mut read = readers.part(resource, at, after, limit).await;
        if self.mended(read.as_ref().err()).await? {
            read = readers.part(resource, at, after, limit).await;
        }
        let part = read.map_err(StoreError::database("list objects"))?;
        let revision = at.unwrap_or(part.current);
        if revision > part.current {
            return Err(EventsError::Ahead {
                asked: revision,
                current: part.current,
            });
        }
        if at.is_some_and(|asked| asked < part.compacted) {
            return Err(EventsError::Compacted {
                asked: revision,
                oldest: part.compacted,
            });
        }
        let mut objects = part.objects;
        let more = objects.len() > max;
        objects.truncate(max);
        Ok(Page {
            objects,
            revision,
            more,
        })
    }

    /// How many objects of a resource have names behind `after` at the revision `at`. As good as [`page`](Store::page), but not told
    /// when the events since are forgotten: ask for the page first.
    ///
    /// # Errors
    /// [`StoreError::Database`] if the database fails.
    pub async fn behind(
        &self,
        resource: &str,
        at: Revision,
        after: &str,
    ) -> Result<usize, StoreError> {
        self.inner
            .readers
            .behind(resource, at, after)
            .await
            .map_err(StoreError::database("count objects"))
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
        self.events_within(after, max, usize::MAX).await
    }

    /// As [`events_since`](Store::events_since), but ends with the event that makes it `bytes` of objects, as they are and as they
    /// were before. So much is read, too.
    ///
    /// # Errors
    /// As [`events_since`](Store::events_since).
    pub async fn events_within(
        &self,
        after: Revision,
        max: usize,
        bytes: usize,
    ) -> Result<Vec<Arc<Event>>, EventsError> {
        let shared = &self.inner.shared;
        let current = self.current();
        if after > current {
            return Err(EventsError::Ahead {
                asked: after,
                current,
            });
        }
        if let Some(error) = self.forgotten(after) {
            return Err(error);
        }
        if let Some(events) = shared
            .ring
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .after(after, max, bytes)
        {
            return Ok(events);
        }
        let bounds = Bounds {
            events: i64::try_from(max).unwrap_or(i64::MAX),
            bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        };
        let mut read = self.inner.readers.events(after, current, bounds).await;
        if self.mended(read.as_ref().err()).await? {
            read = self.inner.readers.events(after, current, bounds).await;
        }
        let (events, compacted) = read.map_err(StoreError::database("read events"))?;
        if after < compacted {
            // Another APIServer has forgotten them.
            return Err(EventsError::Compacted {
                asked: after,
                oldest: compacted,
            });
        }
        // Compaction raises its mark before it deletes: if the mark is still below, nothing was missing from what was read.
        match self.forgotten(after) {
            Some(error) => Err(error),
            None => Ok(events),
        }
    }

    /// Why the revision is none that can be gone on from.
    fn forgotten(&self, asked: Revision) -> Option<EventsError> {
        let oldest = self.inner.shared.compacted();
        let lost = self
            .inner
            .shared
            .gaps
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|(low, high)| *low < asked && asked < *high);
        (asked < oldest || lost).then_some(EventsError::Compacted { asked, oldest })
    }
}
