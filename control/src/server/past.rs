//! The objects of a resource as they were at a revision: what is there now, with everything undone that came after.
//!
//! That is what pins the pages of a list to one revision without keeping anything for a client that may never come back.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::watch::{events_status, reach};
use super::{Status, store_status};
use crate::api::Revision;
use crate::store::{Object, Store};

/// Events that one look at the store takes.
const PAGE: usize = 1000;

/// An object and the name by which the store orders it: `name`, or `namespace/name`.
pub(super) type Entry = (String, Object);

/// All objects of the resource in the order of their names, as they were at the revision, or as they are now.
///
/// # Errors
/// `Expired` if what came after the revision is compacted away, `Timeout` if it is ahead of the store.
pub(super) async fn state(
    store: &Store,
    resource: &'static str,
    at: Option<Revision>,
) -> Result<(Vec<Object>, Revision), Status> {
    let (objects, now) = store
        .list(resource)
        .await
        .map_err(|error| store_status(&error))?;
    match at {
        Some(at) if at != now => {
            let undo = undo(store, resource, at, now).await?;
            Ok((undone(objects, undo), at))
        }
        _ => Ok((objects, now)),
    }
}

/// What the objects that changed between the two revisions were before; `None` if they were not there.
async fn undo(
    store: &Store,
    resource: &str,
    at: Revision,
    now: Revision,
) -> Result<BTreeMap<String, Option<Object>>, Status> {
    // A list may be a moment ahead of what events can be read.
    reach(&mut store.revision(), now.max(at)).await?;
    let mut before = BTreeMap::new();
    let mut cursor = at;
    loop {
        let events = store
            .events_since(cursor, PAGE)
            .await
            .map_err(|error| events_status(&error))?;
        let Some(last) = events.last() else {
            return Ok(before);
        };
        cursor = last.revision;
        for event in events {
            if event.revision > now {
                return Ok(before);
            }
            if event.key.resource == resource {
                before
                    .entry(event.key.name.clone())
                    .or_insert_with(|| event.previous.clone().map(object));
            }
        }
    }
}

fn undone(objects: Vec<Object>, undo: BTreeMap<String, Option<Object>>) -> Vec<Object> {
    if undo.is_empty() {
        return objects;
    }
    let mut all: BTreeMap<String, Object> = entries(objects).into_iter().collect();
    for (name, before) in undo {
        match before {
            Some(object) => all.insert(name, object),
            None => all.remove(&name),
        };
    }
    all.into_values().collect()
}

/// The objects with their names, in the order of the names.
pub(super) fn entries(objects: Vec<Object>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = objects
        .into_iter()
        .map(|object| (meta(&object.data).key(), object))
        .collect();
    // They come in order; a database may have its own idea of it.
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    entries
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    resource_version: Revision,
}

impl Meta {
    fn key(self) -> String {
        match self.namespace.is_empty() {
            true => self.name,
            false => format!("{}/{}", self.namespace, self.name),
        }
    }
}

fn meta(object: &[u8]) -> Meta {
    #[derive(Deserialize)]
    struct Head {
        metadata: Meta,
    }
    // What is stored was encoded here; what cannot be read is nothing's name.
    serde_json::from_slice(object).map_or_else(|_| Meta::default(), |head: Head| head.metadata)
}

fn object(data: bytes::Bytes) -> Object {
    Object {
        revision: meta(&data).resource_version,
        data,
    }
}
