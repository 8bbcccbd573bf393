//! Which bodies are refused that are right by themselves, because of the object that they are to become.

use keel_certs::Namespace;
use serde_json::{Map, Value};

use super::path::Named;
use crate::api::answer::{MAX_NAME, shown};
use crate::api::decode::invalid;
use crate::api::validate::FieldError;
use crate::api::{Reason, Status, metadata};

/// Refuses a body that is about another object, or about another state of it.
pub(super) fn check_identity(
    named: &Named,
    held: &Map<String, Value>,
    sent: &Map<String, Value>,
) -> Result<(), Status> {
    let (about, name) = (&named.kind.about, named.name.as_str());
    let sent_name = text(sent, "name");
    if !sent_name.is_empty() && sent_name != name {
        let message = format!(
            "the name of the object ({sent_name}) does not match the name on the URL ({name})"
        );
        return Err(Status::failure(Reason::BadRequest, message));
    }
    check_namespace(named, sent)?;
    let (uid, held_uid) = (text(sent, "uid"), text(held, "uid"));
    if !uid.is_empty() && uid != held_uid {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {held_uid}"
        );
        return Err(Status::conflict(about, name, &why));
    }
    let version = text(sent, "resourceVersion");
    if !version.is_empty() && version != text(held, "resourceVersion") {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(Status::conflict(about, name, why));
    }
    Ok(())
}

/// Refuses a body that is about an object of another namespace.
pub(super) fn check_namespace(named: &Named, sent: &Map<String, Value>) -> Result<(), Status> {
    let given = sent.get("metadata").and_then(|meta| meta.get("namespace"));
    let given = given.and_then(Value::as_str).unwrap_or_default();
    match &named.namespace {
        // None has such a name, and nobody could name the object again.
        Some(namespace) if namespace.parse::<Namespace>().is_err() => Err(Status::failure(
            Reason::NotFound,
            format!("namespaces {:?} not found", shown(namespace, MAX_NAME)),
        )),
        Some(namespace) if !given.is_empty() && given != namespace => Err(Status::failure(
            Reason::BadRequest,
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
        _ => Ok(()),
    }
}

/// Refuses a replacement that does not say of which state: it could be of one that somebody else has changed meanwhile. Kubernetes
/// takes that of the kinds of its core group only.
pub(super) fn check_versioned(named: &Named, sent: &Map<String, Value>) -> Result<(), Status> {
    let about = &named.kind.about;
    if about.group.is_empty() || !text(sent, "resourceVersion").is_empty() {
        return Ok(());
    }
    let error = FieldError::unset(
        "metadata.resourceVersion",
        "must be specified for an update",
    );
    Err(invalid(about, &named.name, &[error]))
}

/// Refuses what may be so, but not from the beginning.
pub(super) fn check_new(named: &Named, sent: &Map<String, Value>) -> Result<(), Status> {
    let errors = named.kind.check_new(&Value::Object(sent.clone()));
    match errors.as_slice() {
        [] => Ok(()),
        errors => Err(invalid(&named.kind.about, &named.name, errors)),
    }
}

/// Refuses labels, annotations and finalizers that no Kubernetes server takes.
pub(super) fn check_metadata(
    named: &Named,
    held: &Map<String, Value>,
    sent: &Map<String, Value>,
) -> Result<(), Status> {
    let errors = metadata::check(held, sent);
    match errors.as_slice() {
        [] => Ok(()),
        errors => Err(invalid(&named.kind.about, &named.name, errors)),
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> &'a str {
    let value = object.get("metadata").and_then(|meta| meta.get(key));
    value.and_then(Value::as_str).unwrap_or_default()
}
