//! Label and field selectors.

use serde_json::Value;

use crate::api::{Reason, Status};

/// Which objects are meant. Every requirement must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    In(String, Vec<String>),
    NotExists(String),
    NotIn(String, Vec<String>),
}

/// `metadata.name` (or, always empty, `metadata.namespace`) equal or unequal to something.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    pointer: &'static str,
    equal: bool,
    value: String,
}

impl Selector {
    /// Only the object of this name.
    pub(super) fn name(&mut self, name: &str) {
        self.fields.push(Field {
            pointer: "/metadata/name",
            equal: true,
            value: name.into(),
        });
    }

    /// Whether every object is meant.
    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the object is meant.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        let has = |key: &str, values: &[String]| {
            label(key).is_some_and(|found| values.iter().any(|value| value == found))
        };
        let labels_hold = self.labels.iter().all(|requirement| match requirement {
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::In(key, values) => has(key, values),
            Requirement::NotExists(key) => label(key).is_none(),
            Requirement::NotIn(key, values) => !has(key, values),
        });
        labels_hold
            && self.fields.iter().all(|field| {
                let found = object
                    .pointer(field.pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                (found == field.value) == field.equal
            })
    }

    /// Adds a label selector: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    pub(super) fn labels(&mut self, text: &str) -> Result<(), Status> {
        for part in split(text) {
            let requirement = requirement(part).ok_or_else(|| {
                let shown: String = text.chars().take(200).collect();
                Status::failure(
                    Reason::BadRequest,
                    format!("unable to parse requirement {part:?} of the label selector {shown:?}: use k=v, k!=v, k in (a,b), k notin (a,b), k or !k"),
                )
            })?;
            self.labels.push(requirement);
        }
        Ok(())
    }

    /// Adds a field selector: `metadata.name=a`.
    pub(super) fn fields(&mut self, text: &str) -> Result<(), Status> {
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let parsed = split_operator(part);
            let Some((key, equal, value)) = parsed else {
                let message = format!("invalid field selector {part:?}: use metadata.name=NAME");
                return Err(Status::failure(Reason::BadRequest, message));
            };
            let pointer = match key {
                "metadata.name" => "/metadata/name",
                "metadata.namespace" => "/metadata/namespace",
                _ => {
                    let message = format!(
                        "{key:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    );
                    return Err(Status::failure(Reason::BadRequest, message));
                }
            };
            self.fields.push(Field {
                pointer,
                equal,
                value: value.into(),
            });
        }
        Ok(())
    }
}

/// Splits at the commas that stand outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|char| {
        match char {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        char == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
    .collect()
}

fn split_operator(part: &str) -> Option<(&str, bool, &str)> {
    let (key, equal, value) = if let Some((key, value)) = part.split_once("!=") {
        (key, false, value)
    } else if let Some((key, value)) = part.split_once("==") {
        (key, true, value)
    } else {
        let (key, value) = part.split_once('=')?;
        (key, true, value)
    };
    Some((key.trim(), equal, value.trim()))
}

fn requirement(part: &str) -> Option<Requirement> {
    if let Some(key) = part.strip_prefix('!') {
        return Some(Requirement::NotExists(key_of(key)?));
    }
    if let Some(rest) = part.strip_suffix(')') {
        let (head, values) = rest.split_once('(')?;
        let (key, operator) = head.trim().rsplit_once(char::is_whitespace)?;
        let values = values
            .split(',')
            .map(value_of)
            .collect::<Option<Vec<_>>>()?;
        let key = key_of(key)?;
        return match operator {
            "in" => Some(Requirement::In(key, values)),
            "notin" => Some(Requirement::NotIn(key, values)),
            _ => None,
        };
    }
    match split_operator(part) {
        Some((key, true, value)) => Some(Requirement::In(key_of(key)?, vec![value_of(value)?])),
        Some((key, false, value)) => Some(Requirement::NotIn(key_of(key)?, vec![value_of(value)?])),
        None => Some(Requirement::Exists(key_of(part)?)),
    }
}

fn key_of(text: &str) -> Option<String> {
    let text = text.trim();
    let holds = !text.is_empty()
        && text.len() <= 317
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/'));
    holds.then(|| text.to_owned())
}

fn value_of(text: &str) -> Option<String> {
    let text = text.trim();
    let holds = text.len() <= 63
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    holds.then(|| text.to_owned())
}
