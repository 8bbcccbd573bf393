//! Who owns which fields of an object, and server-side apply.
//!
//! An applier says all that it wants, each time: what it said before and does not say any more goes, unless somebody else owns it.
//! It may not change what others own, except by force. Everybody else owns what they change. The rules, and their words on the
//! wire, are those of Kubernetes' structured merge. Everything here is a pure function.

mod entries;
mod fields;
mod walk;

use serde_json::{Map, Value};

use crate::api::answer::{Cause, Details, Reason, Status};
use crate::api::kind::Kind;
use entries::{Entries, Operation, Owner};
use fields::Fields;

/// Whoever owned the fields of an object before anybody was asked.
const BEFORE: &str = "before-first-apply";
/// The half of the object that is written apart.
const STATUS: &str = "status";
/// Parts of the metadata that can be owned; the server keeps the rest.
const METADATA: [&str; 4] = ["annotations", "finalizers", "labels", "ownerReferences"];

/// Who writes, and which half of the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Writer {
    pub(super) manager: String,
    /// Whether the status is written, and not all but the status.
    pub(super) status: bool,
    /// When, in RFC 3339.
    pub(super) at: String,
}

impl Writer {
    fn owner(&self, kind: &Kind, operation: Operation) -> Owner {
        let subresource = if self.status { "status" } else { "" };
        Owner {
            operation,
            manager: self.manager.clone(),
            api_version: kind.about.api_version(),
            subresource: subresource.into(),
        }
    }

    /// What of the object the writer may own.
    fn part(&self, object: &Map<String, Value>) -> Value {
        let mut part = Map::new();
        for (field, value) in object {
            match field.as_str() {
                "apiVersion" | "kind" => {}
                "metadata" if !self.status => {
                    let of = |name: &&str| Some(((*name).to_owned(), value.get(*name)?.clone()));
                    let owned: Map<String, Value> = METADATA.iter().filter_map(of).collect();
                    if !owned.is_empty() {
                        part.insert(field.clone(), Value::Object(owned));
                    }
                }
                "metadata" => {}
                field if (field == STATUS) == self.status => {
                    part.insert(field.into(), value.clone());
                }
                _ => {}
            }
        }
        Value::Object(part)
    }
}

/// Notes in the object, which was written without applying, what its writer owns now. `held` is the object before (empty for a new one), `sent` the
/// `managedFields` that came with the write.
pub(super) fn track(
    kind: &Kind,
    held: &Map<String, Value>,
    object: &mut Map<String, Value>,
    sent: Option<&Value>,
    writer: &Writer,
) {
    let known = managed(held);
    let mut entries = match sent {
        Some(sent) if entries::is_reset(sent) => Entries::default(),
        // A client may rearrange the owners: kubectl does when it begins to apply on this side.
        Some(sent) => Entries::decode(sent)
            .filter(|sent| !sent.is_empty())
            .unwrap_or_else(|| known.clone()),
        None => known.clone(),
    };
    // An object that nobody is known to own is left so until somebody applies.
    if !held.is_empty() && entries.is_empty() {
        return set(object, &entries);
    }
    let schema = kind.schema();
    let changes = match writer.status {
        // Without copies: nodes report theirs all day.
        true => walk::compare_field(STATUS, held.get(STATUS), object.get(STATUS), schema),
        false => walk::compare(&writer.part(held), &writer.part(object), schema),
    };
    let owner = writer.owner(kind, Operation::Update);
    let mut changed = changes.added;
    changed.add(&changes.modified);
    if !changed.is_empty() || !changes.removed.is_empty() {
        let mut own = entries.get(&owner).cloned().unwrap_or_default();
        own.remove(&changes.removed);
        own.add(&changed);
        entries.take_from_others(&owner, &changed);
        entries.take_from_others(&owner, &changes.removed);
        entries.set(owner, &writer.at, own);
        entries.cap();
    }
    if entries != known {
        set(object, &entries);
    }
}

/// The held object with what the configuration says and without what its applier does not say any more, and with its owners noted.
///
/// # Errors
/// `Conflict`, with every field that somebody else owns and that would change, unless it is forced; `Invalid` for lists whose items
/// cannot be told apart.
pub(super) fn apply(
    kind: &Kind,
    held: &Map<String, Value>,
    config: &Map<String, Value>,
    writer: &Writer,
    force: bool,
) -> Result<Map<String, Value>, Status> {
    let schema = kind.schema();
    let (live, wanted) = (writer.part(held), writer.part(config));
    if let Some(path) = walk::ambiguous(&wanted, Some(schema), "") {
        let message = format!(
            "failed to create typed patch object: {path}: the items need their keys, each of which only once"
        );
        return Err(Status::failure(Reason::BadRequest, message));
    }
    let known = managed(held);
    let mut entries = known.clone();
    let is_new = held
        .get("metadata")
        .is_none_or(|meta| meta.get("resourceVersion").is_none());
    if entries.is_empty() && !is_new {
        let before = Writer {
            manager: BEFORE.into(),
            ..writer.clone()
        };
        let owner = before.owner(kind, Operation::Update);
        entries.set(owner, &writer.at, walk::fields(&live, schema));
    }
    let owner = writer.owner(kind, Operation::Apply);
    let last = entries.get(&owner).cloned().unwrap_or_default();
    let says = walk::fields(&wanted, schema);
    entries.set(owner.clone(), &writer.at, says.clone());
    let mut merged = walk::merge(&live, &wanted, Some(schema));
    walk::prune(&mut merged, Some(schema), &last, &entries.all());
    let changes = walk::compare(&live, &merged, schema);
    let mut changed = changes.added;
    changed.add(&changes.modified);
    if !force {
        no_conflict(&entries, &owner, &changed)?;
    }
    entries.take_from_others(&owner, &changed);
    entries.take_from_others(&owner, &changes.removed);
    let mut object = held.clone();
    put(&mut object, merged, writer.status);
    // Who says the same again is no news.
    if says != last || live != writer.part(&object) {
        set(&mut object, &entries);
    }
    Ok(object)
}

/// Makes the part of the object that can be owned what it is in `part`.
fn put(object: &mut Map<String, Value>, part: Value, status: bool) {
    let Value::Object(mut part) = part else {
        return;
    };
    let metadata = part.remove("metadata").unwrap_or_default();
    object.retain(|field, _| {
        matches!(field.as_str(), "apiVersion" | "kind" | "metadata") || (field == STATUS) != status
    });
    object.extend(part);
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut)
        && !status
    {
        for name in METADATA {
            match metadata.get(name) {
                Some(value) => meta.insert(name.into(), value.clone()),
                None => meta.remove(name),
            };
        }
    }
}

fn managed(object: &Map<String, Value>) -> Entries {
    let managed = object
        .get("metadata")
        .and_then(|meta| meta.get("managedFields"));
    managed.and_then(Entries::decode).unwrap_or_default()
}

fn set(object: &mut Map<String, Value>, entries: &Entries) {
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    match entries.is_empty() {
        true => meta.remove("managedFields"),
        false => meta.insert("managedFields".into(), entries.encode()),
    };
}

/// Refuses a change of what others own, in Kubernetes' words.
fn no_conflict(entries: &Entries, owner: &Owner, changed: &Fields) -> Result<(), Status> {
    let mut conflicts: Vec<(String, Vec<String>)> = entries
        .iter()
        .filter(|entry| entry.owner != *owner)
        .map(|entry| {
            let fields = entry.fields.intersection(changed);
            (shown(&entry.owner), fields.paths())
        })
        .filter(|(_, paths)| !paths.is_empty())
        .collect();
    conflicts.sort();
    let count: usize = conflicts.iter().map(|(_, paths)| paths.len()).sum();
    let message = match &conflicts[..] {
        [] => return Ok(()),
        [(other, paths)] if count == 1 => {
            format!(
                "Apply failed with 1 conflict: conflict with {other}: {}",
                paths[0]
            )
        }
        all => {
            let lines: Vec<String> = all
                .iter()
                .flat_map(|(other, paths)| {
                    let paths = paths.iter().map(|path| format!("- {path}"));
                    std::iter::once(format!("conflicts with {other}:")).chain(paths)
                })
                .collect();
            format!("Apply failed with {count} conflicts: {}", lines.join("\n"))
        }
    };
    let causes = conflicts
        .into_iter()
        .flat_map(|(other, paths)| {
            paths.into_iter().map(move |field| Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {other}"),
                field,
            })
        })
        .collect();
    let details = Details {
        causes,
        ..Details::default()
    };
    Err(Status {
        details: Some(Box::new(details)),
        ..Status::failure(Reason::Conflict, message)
    })
}

fn shown(owner: &Owner) -> String {
    let mut text = format!("{:?}", owner.manager);
    if !owner.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", owner.subresource));
    }
    if owner.operation == Operation::Update {
        text.push_str(&format!(" using {}", owner.api_version));
    }
    text
}

#[cfg(test)]
mod tests;
