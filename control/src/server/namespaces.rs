//! The namespace that every Kubernetes server has: `default`, which clients mean if they name none.
//!
//! It is the only one. Nothing of Kubernetes' own runs here, so `kube-system` and the like are made by whoever wants them, and are as any
//! other.

use serde_json::Map;

use super::change::{Owned, Part, create, update};
use super::name::birth;
use super::ownership::Writer;
use super::path::Named;
use crate::api::decode::Decoded;
use crate::api::kind::find;
use crate::api::{Reason, Status};
use crate::store::{Change, Object, Store, StoreError};

const DEFAULT: &str = "default";
/// Who has made it, as `metadata.managedFields` calls it.
const MANAGER: &str = "keel";

/// Makes what the store of every APIServer has, if it is not there: the namespace `default`.
///
/// # Errors
/// [`StoreError`].
pub async fn prepare(store: &Store) -> Result<(), StoreError> {
    let Some(kind) = find("", "v1", "namespaces") else {
        return Ok(());
    };
    let named = Named {
        kind,
        namespace: None,
        name: DEFAULT.to_owned(),
    };
    let (key, birth) = (named.key(), birth());
    let writer = Writer {
        manager: MANAGER.to_owned(),
        status: false,
        at: birth.at.as_str().to_owned(),
    };
    let make = move |current: Option<&Object>, revision| {
        let made = match current {
            None => create(current, revision, &named, Map::new(), &birth, &writer),
            // One that an earlier version has made gets what it lacks.
            Some(_) => {
                let owned = Owned::Changed(&writer);
                let held = |held: &Map<_, _>| {
                    Ok(Decoded {
                        object: held.clone(),
                        warnings: Vec::new(),
                    })
                };
                update(current, revision, &named, Part::Main, None, owned, held)
            }
        };
        (made.map_or(Change::Keep, |(change, _)| change), ())
    };
    store.write(key, make).await
}

/// Refuses the end of a namespace that has to be there.
pub(super) fn check_deletion(named: &Named) -> Result<(), Status> {
    let about = &named.kind.about;
    if about.resource != "namespaces" || named.name != DEFAULT {
        return Ok(());
    }
    let message = format!(
        "{} {DEFAULT:?} is forbidden: this namespace may not be deleted",
        about.resource
    );
    Err(Status::about(
        about,
        Reason::Forbidden,
        &named.name,
        message,
    ))
}
