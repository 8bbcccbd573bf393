//! What a write makes of an object: pure functions from the current object to the next one.
//!
//! They run inside the store's writer, so the object that they see is the one that the commit follows on.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::admit;
use super::ownership::{self, Writer};
use super::path::Named;
use super::status::{StatusRule, merge_status};
use crate::api::decode::Decoded;
use crate::api::{MAX_OBJECT, Reason, Revision, Status, Time};
use crate::store::{Change, Object};

/// What a write led to.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// The object as it is now; of a deleted one, its last state.
    pub(super) object: Bytes,
    pub(super) outcome: Outcome,
    /// What to tell the client.
    pub(super) warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Created,
    Deleted,
    /// Changed, or found as it should be.
    Updated,
}

/// What a new object gets from the server.
#[derive(Clone, Debug)]
pub(super) struct Birth {
    pub(super) uid: String,
    pub(super) at: Time,
}

/// Which half of the object a write is about; the other half of its body is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Main,
    Status(StatusRule),
}

/// Whose the fields of a write become.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owned<'a> {
    /// It is noted already.
    Applied,
    /// Those that it changes become the writer's.
    Changed(&'a Writer),
}

/// What a client requires of the object that it deletes.
#[derive(Clone, Debug, Default)]
pub(super) struct Preconditions {
    pub(super) uid: Option<String>,
    pub(super) revision: Option<String>,
}

pub(super) type Verdict = (Change, Result<Written, Status>);

/// Makes the object out of what was sent.
pub(super) fn create(
    current: Option<&Object>,
    revision: Revision,
    named: &Named,
    sent: Map<String, Value>,
    birth: &Birth,
    writer: &Writer,
) -> Result<(Change, Written), Status> {
    let (about, name) = (&named.kind.about, named.name.as_str());
    if current.is_some() {
        let message = format!("{} {name:?} already exists", about.resource);
        return Err(Status::about(about, Reason::AlreadyExists, name, message));
    }
    let mut object = newborn(named, birth);
    admit::check_metadata(named, &object, &sent)?;
    let sent_meta = sent.get("metadata").and_then(Value::as_object);
    if sent_meta
        .and_then(|meta| meta.get("resourceVersion"))
        .is_some_and(|version| version != "")
    {
        let why = "resourceVersion should not be set on objects to be created";
        return Err(Status::about(about, Reason::BadRequest, name, why));
    }
    if let (Some(meta), Some(sent)) = (metadata(&mut object), sent_meta) {
        copy_fields(
            sent,
            meta,
            &[
                "generateName",
                "labels",
                "annotations",
                "finalizers",
                "ownerReferences",
            ],
        );
    }
    object.extend(content(&sent).map(|(field, value)| (field.clone(), value.clone())));
    label_with_name(named, &mut object);
    ownership::track(named.kind, &Map::new(), &mut object, None, writer);
    let data = check_size(named, encode(named, &mut object, revision)?)?;
    Ok((
        Change::Put(data.clone()),
        Written {
            object: data,
            outcome: Outcome::Created,
            warnings: Vec::new(),
        },
    ))
}

/// Makes the object what `next` makes of it, which has asked [`admit`] whether it is about this one. `birth`, if given, is for a missing
/// object, which is then made first.
pub(super) fn update(
    current: Option<&Object>,
    revision: Revision,
    named: &Named,
    part: Part,
    birth: Option<&Birth>,
    owned: Owned<'_>,
    next: impl FnOnce(&Map<String, Value>) -> Result<Decoded, Status>,
) -> Result<(Change, Written), Status> {
    let (held, outcome) = match (current, birth) {
        (Some(object), _) => (decode(named, object)?, Outcome::Updated),
        (None, Some(birth)) => (newborn(named, birth), Outcome::Created),
        (None, None) => return Err(Status::not_found(&named.kind.about, &named.name)),
    };
    let (offered, mut revision) = (revision, revision);
    let Decoded {
        object: mut sent,
        warnings,
    } = next(&held)?;
    let mut object = match part {
        Part::Main => {
            admit::check_metadata(named, &held, &sent)?;
            let mut object = merge_main(named, &held, &sent);
            label_with_name(named, &mut object);
            object
        }
        Part::Status(rule) => {
            let status = sent.remove("status");
            // Not news: the writer gets what is held.
            merge_status(named, &held, status, rule, &mut revision)?.unwrap_or_else(|| held.clone())
        }
    };
    if outcome == Outcome::Created
        && let Some(meta) = metadata(&mut object)
    {
        // What it is made of is not a change of it.
        meta.insert("generation".into(), 1.into());
    }
    let managed = sent
        .get("metadata")
        .and_then(|meta| meta.get("managedFields"));
    match owned {
        Owned::Changed(writer) => {
            // Who writes the status does not rearrange the owners of the rest.
            let managed = managed.filter(|_| part == Part::Main);
            let before = if outcome == Outcome::Created {
                &Map::new()
            } else {
                &held
            };
            ownership::track(named.kind, before, &mut object, managed, writer);
        }
        Owned::Applied => {
            if let Some(meta) = metadata(&mut object) {
                match managed {
                    Some(managed) => meta.insert("managedFields".into(), managed.clone()),
                    None => meta.remove("managedFields"),
                };
            }
        }
    }
    if let (true, Some(current)) = (object == held, current) {
        return Ok((
            Change::Keep,
            Written {
                object: current.data.clone(),
                outcome,
                warnings,
            },
        ));
    }
    let data = encode(named, &mut object, revision)?;
    if part == Part::Main && is_released(&object) {
        let written = Written {
            object: data.clone(),
            outcome: Outcome::Updated,
            warnings,
        };
        return Ok((Change::Delete(data), written));
    }
    let data = check_size(named, data)?;
    let change = if revision > offered {
        Change::PutAt(revision, data.clone())
    } else {
        Change::Put(data.clone())
    };
    Ok((
        change,
        Written {
            object: data,
            outcome,
            warnings,
        },
    ))
}

/// Deletes the object, or marks it as to be deleted while it has finalizers.
pub(super) fn delete(
    current: Option<&Object>,
    revision: Revision,
    named: &Named,
    preconditions: &Preconditions,
    now: &Time,
) -> Result<(Change, Written), Status> {
    let Some(current) = current else {
        return Err(Status::not_found(&named.kind.about, &named.name));
    };
    let mut object = decode(named, current)?;
    let held = |key: &str| {
        object
            .get("metadata")
            .and_then(|meta| meta.get(key))
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    for (what, wanted, found) in [
        ("UID", &preconditions.uid, held("uid")),
        (
            "ResourceVersion",
            &preconditions.revision,
            held("resourceVersion"),
        ),
    ] {
        if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
            );
            return Err(Status::conflict(&named.kind.about, &named.name, &why));
        }
    }
    let finalizers = object
        .get("metadata")
        .and_then(|meta| meta.get("finalizers"))
        .and_then(Value::as_array);
    if finalizers.is_some_and(|finalizers| !finalizers.is_empty()) {
        let Some(meta) = metadata(&mut object) else {
            return Err(broken(named));
        };
        if meta.contains_key("deletionTimestamp") {
            let written = Written {
                object: current.data.clone(),
                outcome: Outcome::Updated,
                warnings: Vec::new(),
            };
            return Ok((Change::Keep, written));
        }
        meta.insert("deletionTimestamp".into(), now.as_str().into());
        meta.insert("deletionGracePeriodSeconds".into(), 0.into());
        bump_generation(meta);
        if named.kind.about.phase.is_some() {
            object.insert("status".into(), json!({ "phase": "Terminating" }));
        }
        let data = encode(named, &mut object, revision)?;
        return Ok((
            Change::Put(data.clone()),
            Written {
                object: data,
                outcome: Outcome::Updated,
                warnings: Vec::new(),
            },
        ));
    }
    let data = encode(named, &mut object, revision)?;
    Ok((
        Change::Delete(data.clone()),
        Written {
            object: data,
            outcome: Outcome::Deleted,
            warnings: Vec::new(),
        },
    ))
}

/// Turns a decision about `current` into what the store and the caller get; a dry run changes nothing.
pub(super) fn verdict(
    current: Option<&Object>,
    decided: Result<(Change, Written), Status>,
    dry_run: bool,
) -> Verdict {
    match decided {
        Ok((_, written)) if dry_run => (Change::Keep, Ok(tried(current, written))),
        Ok((change, written)) => (change, Ok(written)),
        Err(status) => (Change::Keep, Err(status)),
    }
}

/// What a dry run shows. Nothing was written, so the revision is the one that is held, and a new object has none.
fn tried(current: Option<&Object>, mut written: Written) -> Written {
    let Ok(mut object) = serde_json::from_slice(&written.object) else {
        return written;
    };
    if let Some(meta) = metadata(&mut object) {
        match current {
            Some(current) => meta.insert(
                "resourceVersion".into(),
                current.revision.to_string().into(),
            ),
            None => meta.remove("resourceVersion"),
        };
    }
    written.object = Value::Object(object).to_string().into();
    written
}

/// What an object carries beside its name and its status: its spec, or fields of its own.
fn content(object: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    object.iter().filter(|(field, _)| is_content(field))
}

fn is_content(field: &str) -> bool {
    !matches!(field, "apiVersion" | "kind" | "metadata" | "status")
}

/// The object's half that the main resource writes: labels and the like, and the content.
fn merge_main(
    named: &Named,
    held: &Map<String, Value>,
    sent: &Map<String, Value>,
) -> Map<String, Value> {
    let mut object = held.clone();
    object.retain(|field, _| content(sent).any(|(sent, _)| sent == field) || !is_content(field));
    object.extend(content(sent).map(|(field, value)| (field.clone(), value.clone())));
    if named.kind.has_spec() {
        object.entry("spec").or_insert_with(|| json!({}));
    }
    let changed = !content(held).eq(content(&object));
    if let (Some(meta), Some(sent)) = (
        metadata(&mut object),
        sent.get("metadata").and_then(Value::as_object),
    ) {
        copy_fields(
            sent,
            meta,
            &["labels", "annotations", "finalizers", "ownerReferences"],
        );
        if changed {
            bump_generation(meta);
        }
    }
    object
}

/// Sets the label by which selectors find an object of this kind by its name, whatever the writer says of it.
fn label_with_name(named: &Named, object: &mut Map<String, Value>) {
    let Some(label) = named.kind.about.name_label else {
        return;
    };
    let labels = metadata(object).map(|meta| meta.entry("labels").or_insert_with(|| json!({})));
    if let Some(labels) = labels.and_then(Value::as_object_mut) {
        labels.insert(label.into(), named.name.as_str().into());
    }
}

fn newborn(named: &Named, birth: &Birth) -> Map<String, Value> {
    let about = &named.kind.about;
    let mut meta = json!({
        "name": named.name, "uid": birth.uid, "creationTimestamp": birth.at.as_str(), "generation": 1,
    });
    if let Some(namespace) = &named.namespace {
        meta["namespace"] = namespace.as_str().into();
    }
    let mut object = Map::new();
    object.insert("apiVersion".into(), about.api_version().into());
    object.insert("kind".into(), about.kind.into());
    object.insert("metadata".into(), meta);
    if named.kind.has_spec() {
        object.insert("spec".into(), json!({}));
    }
    if let Some(phase) = about.phase {
        object.insert("status".into(), json!({ "phase": phase }));
    }
    object
}

/// Whether the object was only waiting for its finalizers to go, and they have.
fn is_released(object: &Map<String, Value>) -> bool {
    let meta = object.get("metadata");
    let waits = meta
        .and_then(|meta| meta.get("deletionTimestamp"))
        .is_some();
    let finalizers = meta
        .and_then(|meta| meta.get("finalizers"))
        .and_then(Value::as_array);
    waits && finalizers.is_none_or(Vec::is_empty)
}

fn copy_fields(from: &Map<String, Value>, to: &mut Map<String, Value>, names: &[&str]) {
    for name in names {
        let empty = |value: &Value| match value {
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            value => value.is_null() || *value == "",
        };
        match from.get(*name).filter(|value| !empty(value)) {
            Some(value) => to.insert((*name).into(), value.clone()),
            None => to.remove(*name),
        };
    }
}

fn bump_generation(meta: &mut Map<String, Value>) {
    let generation = meta.get("generation").and_then(Value::as_i64).unwrap_or(0);
    meta.insert("generation".into(), generation.saturating_add(1).into());
}

fn metadata(object: &mut Map<String, Value>) -> Option<&mut Map<String, Value>> {
    object.get_mut("metadata").and_then(Value::as_object_mut)
}

fn encode(
    named: &Named,
    object: &mut Map<String, Value>,
    revision: Revision,
) -> Result<Bytes, Status> {
    let Some(meta) = metadata(object) else {
        return Err(broken(named));
    };
    meta.insert("resourceVersion".into(), revision.to_string().into());
    let data = serde_json::to_vec(object).map_err(|_| broken(named))?;
    // It is kept for watches: the room that it grew into would be kept with it, up to its size once more.
    Ok(data.into_boxed_slice().into())
}

/// Refuses an object that readers would not take. Deletions are not asked: what is too large must be able to go.
fn check_size(named: &Named, data: Bytes) -> Result<Bytes, Status> {
    if data.len() > MAX_OBJECT {
        let message = format!(
            "Request entity too large: the object would have {} bytes, the limit is {MAX_OBJECT}",
            data.len()
        );
        let about = &named.kind.about;
        return Err(Status::about(
            about,
            Reason::RequestEntityTooLarge,
            &named.name,
            message,
        ));
    }
    Ok(data)
}

/// Reads a stored object.
pub(super) fn decode(named: &Named, object: &Object) -> Result<Map<String, Value>, Status> {
    serde_json::from_slice(&object.data).map_err(|_| broken(named))
}

fn broken(named: &Named) -> Status {
    let message = format!(
        "the stored object {:?} cannot be read or written",
        named.name
    );
    Status::about(
        &named.kind.about,
        Reason::InternalError,
        &named.name,
        message,
    )
}
