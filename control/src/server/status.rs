//! How a status is taken that somebody sends: as it is, or only if it is news.

use serde_json::{Map, Value, json};

use super::path::Named;
use crate::api::decode::invalid_field;
use crate::api::{Revision, SYNCED, Status};

/// How a status is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StatusRule {
    /// As it is.
    Plain,
    /// Only if its `source.revision` is higher than the one held, and at most `latest`. With `marks`, one of the same number says what
    /// the condition [`SYNCED`] is, and nothing else.
    Newer { latest: Revision, marks: bool },
    /// With the revision of the commit as its `source.revision`. One that is sent and higher than the store's numbers is one that
    /// another node holds and this store has lost: the store goes on behind it, if it is at most `highest`.
    Stamped { highest: Revision },
}

/// The object with the status that was sent, if one was; `None` if the one that is held stays.
pub(super) fn merge_status(
    named: &Named,
    held: &Map<String, Value>,
    sent: Option<Value>,
    rule: StatusRule,
    revision: &mut Revision,
) -> Result<Option<Map<String, Value>>, Status> {
    let (about, name) = (&named.kind.about, named.name.as_str());
    let mut status = sent.unwrap_or_default();
    let current = held.get("status");
    match rule {
        StatusRule::Plain => {}
        StatusRule::Newer { latest, marks } => {
            let Some(offered) = source(Some(&status)) else {
                let why = "another node's status must say which of its states it is";
                return Err(invalid_field(
                    about,
                    name,
                    "status.source.revision",
                    "",
                    why,
                ));
            };
            if offered > latest {
                let why =
                    "it is more than a day ahead of this node's clock: check both nodes' clocks";
                let field = "status.source.revision";
                return Err(invalid_field(about, name, field, &offered.to_string(), why));
            }
            // One that is held and cannot be must not keep the real ones out.
            if let Some(held) = source(current).filter(|held| *held >= offered && *held <= latest) {
                let current = current.filter(|_| marks && held == offered);
                match current.and_then(|current| marked(current, &status)) {
                    Some(marked) => status = marked,
                    None => return Ok(None),
                }
            }
        }
        StatusRule::Stamped { highest } => {
            if !status.is_object() {
                status = json!({});
            }
            match source(Some(&status)) {
                Some(sent) if (*revision..=highest).contains(&sent) => *revision = sent.next(),
                _ if current
                    .is_some_and(|current| without_source(current) == without_source(&status)) =>
                {
                    return Ok(None);
                }
                _ => {}
            }
            status["source"] = json!({ "revision": revision.0 });
        }
    }
    // Without the status that goes: it is most of an object.
    let rest = held.iter().filter(|(field, _)| *field != "status");
    let mut object: Map<String, Value> = rest
        .map(|(field, value)| (field.clone(), value.clone()))
        .collect();
    if !status.is_null() {
        object.insert("status".into(), status);
    }
    Ok(Some(object))
}

/// The status that is held with the condition [`SYNCED`] of the one that was sent, or without if that has none; `None` if it is the same.
fn marked(held: &Value, sent: &Value) -> Option<Value> {
    fn conditions(status: &Value) -> impl Iterator<Item = &Value> {
        let all = status.get("conditions").and_then(Value::as_array);
        all.into_iter().flatten()
    }
    let is_mark = |condition: &&Value| condition.get("type").is_some_and(|kind| kind == SYNCED);
    let (was, is) = (
        conditions(held).find(is_mark),
        conditions(sent).find(is_mark),
    );
    if was == is {
        return None;
    }
    let rest = conditions(held).filter(|one| !is_mark(one));
    let all: Vec<Value> = rest.chain(is).cloned().collect();
    let mut status = held.clone();
    status
        .as_object_mut()?
        .insert("conditions".into(), all.into());
    Some(status)
}

fn without_source(status: &Value) -> Option<Map<String, Value>> {
    let mut status = status.as_object()?.clone();
    status.remove("source");
    Some(status)
}

/// `status.source.revision`, a number or the same number as a string.
fn source(status: Option<&Value>) -> Option<Revision> {
    let revision = status?.get("source")?.get("revision")?;
    serde::Deserialize::deserialize(revision).ok()
}
