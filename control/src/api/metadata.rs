//! What labels, annotations, finalizers and owners may look like, in the words of a Kubernetes server.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::answer::shown;
use super::validate::{FieldError, MAX_FINDINGS, MAX_SHOWN};

/// Bytes that the annotations of an object have together, keys and values.
const MAX_ANNOTATIONS: usize = 256 << 10;
/// Bytes of a label's value, and of the name in a key.
const MAX_NAME: usize = 63;
/// Bytes of the prefix in a key.
const MAX_PREFIX: usize = 253;

const NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character \
    (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const PREFIX: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
    and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
    and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// What is wrong with the `metadata` of an object that was sent. What stands in the held object already is not asked: versions that
/// took anything may have kept it, and it must neither keep the rest from being changed nor a deletion from ending.
pub(crate) fn check(held: &Map<String, Value>, sent: &Map<String, Value>) -> Vec<FieldError> {
    let labels = entries(sent, "labels").flat_map(|(key, value)| {
        let was = text(held, "labels", key);
        let key_faults = match was {
            None => key_faults(key),
            Some(_) => Vec::new(),
        };
        let value_faults = match was == Some(value) {
            true => Vec::new(),
            false => value_faults(value),
        };
        let keys = wrong("metadata.labels", key, key_faults);
        keys.chain(wrong("metadata.labels", value, value_faults))
    });
    let annotations = entries(sent, "annotations")
        .filter(|(key, _)| text(held, "annotations", key).is_none())
        // Upper case is no fault of an annotation.
        .flat_map(|(key, _)| wrong("metadata.annotations", key, key_faults(&key.to_lowercase())));
    let size = annotations_size(sent);
    let too_long = (size > MAX_ANNOTATIONS && size > annotations_size(held)).then(|| {
        let why = format!("may not be more than {MAX_ANNOTATIONS} bytes");
        FieldError::too_long("metadata.annotations", &why)
    });
    let mut new = new_finalizers(held, sent);
    let too_late = (!new.is_empty() && part(held, "deletionTimestamp").is_some())
        .then(|| too_late(&std::mem::take(&mut new)));
    let finalizers = new
        .into_iter()
        .flat_map(|name| wrong("metadata.finalizers", name, key_faults(name)));
    let all = labels
        .chain(annotations)
        .chain(too_long)
        .chain(too_late)
        .chain(finalizers)
        .chain(owners(held, sent));
    all.take(MAX_FINDINGS).collect()
}

/// Whether the text is dotted DNS labels.
pub(crate) fn is_subdomain(text: &str) -> bool {
    let is_end = |byte: Option<u8>| {
        byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let label_holds = |label: &str| {
        is_end(label.bytes().next())
            && is_end(label.bytes().last())
            && label.bytes().all(|byte| byte == b'-' || is_end(Some(byte)))
    };
    text.len() <= MAX_PREFIX && text.split('.').all(label_holds)
}

/// Whether a label may have this key.
pub(crate) fn is_key(text: &str) -> bool {
    key_faults(text).is_empty()
}

/// Whether a label may have this value.
pub(crate) fn is_value(text: &str) -> bool {
    value_faults(text).is_empty()
}

/// What is wrong with a text that is to be a name or `prefix/name`.
pub(super) fn check_key<'a>(path: &'a str, key: &'a str) -> impl Iterator<Item = FieldError> + 'a {
    wrong(path, key, key_faults(key))
}

/// What is wrong with a key, which is a name or `prefix/name`.
fn key_faults(key: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let name = match key.split_once('/') {
        None => key,
        Some((_, name)) if name.contains('/') => {
            let why = format!(
                "a qualified name {NAME} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            );
            return vec![why];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else if prefix.len() > MAX_PREFIX {
                faults.push(too_many("prefix part ", MAX_PREFIX));
            } else if !is_subdomain(prefix) {
                faults.push(format!("prefix part {PREFIX}"));
            }
            name
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > MAX_NAME {
        faults.push(too_many("name part ", MAX_NAME));
    }
    if !is_name(name) {
        faults.push(format!("name part {NAME}"));
    }
    faults
}

/// What is wrong with the value of a label.
fn value_faults(value: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if value.len() > MAX_NAME {
        faults.push(too_many("", MAX_NAME));
    }
    if !value.is_empty() && !is_name(value) {
        faults.push(VALUE.to_owned());
    }
    faults
}

fn is_name(text: &str) -> bool {
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    is_end(text.bytes().next())
        && is_end(text.bytes().last())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn too_many(part: &str, most: usize) -> String {
    format!("{part}must be no more than {most} bytes")
}

/// The finalizers that are sent and not held.
fn new_finalizers<'a>(
    held: &'a Map<String, Value>,
    sent: &'a Map<String, Value>,
) -> BTreeSet<&'a str> {
    let names = |object: &'a Map<String, Value>| -> BTreeSet<&'a str> {
        let names = part(object, "finalizers").and_then(Value::as_array);
        let names = names.into_iter().flatten();
        names.filter_map(Value::as_str).collect()
    };
    &names(sent) - &names(held)
}

/// Refuses finalizers for an object that is being deleted.
fn too_late(new: &BTreeSet<&str>) -> FieldError {
    let new: Vec<String> = new
        .iter()
        .take(MAX_FINDINGS)
        .map(|name| format!("{:?}", shown(name, MAX_SHOWN)))
        .collect();
    let why = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        new.join(", ")
    );
    FieldError::forbidden("metadata.finalizers", &why)
}

fn wrong<'a>(
    path: &'a str,
    value: &'a str,
    faults: Vec<String>,
) -> impl Iterator<Item = FieldError> + 'a {
    let faults = faults.into_iter();
    faults.map(move |why| FieldError::invalid(path.to_owned(), value, &why))
}

fn part<'a>(object: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    object.get("metadata")?.get(field)
}

/// What is wrong with the references to owners. None of them has an effect here.
fn owners(held: &Map<String, Value>, sent: &Map<String, Value>) -> Vec<FieldError> {
    const PATH: &str = "metadata.ownerReferences";
    let references = part(sent, "ownerReferences").and_then(Value::as_array);
    if part(held, "ownerReferences").and_then(Value::as_array) == references {
        return Vec::new();
    }
    let (mut errors, mut controller) = (Vec::new(), None);
    for reference in references.into_iter().flatten() {
        let text = |field: &str| {
            reference
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (version, kind) = (text("apiVersion"), text("kind"));
        let bare = version.rsplit('/').next().unwrap_or_default();
        for (field, value, why) in [
            ("apiVersion", bare, "version must not be empty"),
            ("kind", kind, "must not be empty"),
            ("name", text("name"), "must not be empty"),
            ("uid", text("uid"), "must not be empty"),
        ] {
            if value.is_empty() {
                errors.push(FieldError::invalid(
                    format!("{PATH}.{field}"),
                    text(field),
                    why,
                ));
            }
        }
        if (version, kind) == ("v1", "Event") {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(PATH.into(), text("name"), why));
        }
        if reference.get("controller") != Some(&Value::Bool(true)) {
            continue;
        }
        if let Some(other) = controller.replace(text("name")) {
            let why = format!(
                "Only one reference can have Controller set to true. Found \"true\" in references for {other} and {}",
                text("name")
            );
            errors.push(FieldError::invalid(PATH.into(), text("name"), &why));
        }
    }
    errors
}

/// The texts of a map in the metadata.
fn entries<'a>(
    object: &'a Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    let entries = part(object, field).and_then(Value::as_object);
    let entries = entries.into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

fn text<'a>(object: &'a Map<String, Value>, field: &str, key: &str) -> Option<&'a str> {
    part(object, field)?.get(key)?.as_str()
}

fn annotations_size(object: &Map<String, Value>) -> usize {
    let sizes = entries(object, "annotations").map(|(key, value)| key.len() + value.len());
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(held: Value, sent: Value) -> Vec<String> {
        let object = |metadata| Map::from_iter([("metadata".to_owned(), metadata)]);
        let errors = check(&object(held), &object(sent));
        errors.iter().map(FieldError::text).collect()
    }

    #[test]
    fn keys_and_values_are_named_with_their_rules() {
        let label = |key: &str, value: &str| found(json!({}), json!({"labels": {key: value}}));
        let (long, longer) = ("x".repeat(63), "x".repeat(64));
        let prefix = vec!["x".repeat(63); 4].join(".");
        for (key, value) in [
            ("a", ""),
            ("A-b_c.9", "A-b_c.9"),
            ("example.com/a", "b"),
            (long.as_str(), long.as_str()),
        ] {
            assert_eq!(label(key, value), Vec::<String>::new(), "{key}={value}");
        }
        for (key, value, expected) in [
            (
                "a b",
                "has space",
                vec![
                    format!("metadata.labels: Invalid value: \"a b\": name part {NAME}"),
                    format!("metadata.labels: Invalid value: \"has space\": {VALUE}"),
                ],
            ),
            (
                "/a",
                "",
                vec![
                    "metadata.labels: Invalid value: \"/a\": prefix part must be non-empty".into(),
                ],
            ),
            (
                "Example.com/a",
                "",
                vec![format!(
                    "metadata.labels: Invalid value: \"Example.com/a\": prefix part {PREFIX}"
                )],
            ),
            (
                "a/b/c",
                "",
                vec![format!(
                    "metadata.labels: Invalid value: \"a/b/c\": a qualified name {NAME} with an optional DNS subdomain prefix and '/' \
                     (e.g. 'example.com/MyName')"
                )],
            ),
            (
                "a/",
                "",
                vec![
                    "metadata.labels: Invalid value: \"a/\": name part must be non-empty".into(),
                    format!("metadata.labels: Invalid value: \"a/\": name part {NAME}"),
                ],
            ),
            (
                &longer,
                &longer,
                vec![
                    format!(
                        "metadata.labels: Invalid value: {longer:?}: name part must be no more than 63 bytes"
                    ),
                    format!(
                        "metadata.labels: Invalid value: {longer:?}: must be no more than 63 bytes"
                    ),
                ],
            ),
        ] {
            assert_eq!(label(key, value), expected);
        }
        let too_long = label(&format!("{prefix}/a"), "");
        assert!(too_long[0].ends_with("prefix part must be no more than 253 bytes"));
        let many: Map<String, Value> = (0..1000).map(|n| (format!("a {n}"), "".into())).collect();
        assert_eq!(
            found(json!({}), json!({ "labels": many })).len(),
            MAX_FINDINGS
        );
    }

    #[test]
    fn annotations_have_other_rules_than_labels() {
        let some = |key: &str, size: usize| json!({"annotations": {key: "x".repeat(size)}});
        let none = Vec::<String>::new();
        assert_eq!(found(json!({}), some("Example.com/A", 64)), none);
        assert_eq!(found(json!({}), some("a b", 1)).len(), 1);
        assert_eq!(found(json!({}), some("a", MAX_ANNOTATIONS - 1)), none);
        let too_long = ["metadata.annotations: Too long: may not be more than 262144 bytes"];
        assert_eq!(found(json!({}), some("a", MAX_ANNOTATIONS)), too_long);
    }

    #[test]
    fn an_owner_is_named_and_one_of_them_controls() {
        let owner = |name: &str, controls: bool| json!({"apiVersion": "a.b/v1", "kind": "K", "name": name, "uid": "u", "controller": controls});
        let of = |owners: Value| found(json!({}), json!({ "ownerReferences": owners }));
        let none = Vec::<String>::new();
        assert_eq!(of(json!([owner("a", true), owner("b", false)])), none);
        let path = "metadata.ownerReferences";
        assert_eq!(
            of(json!([{"kind": "K"}])),
            [
                format!("{path}.apiVersion: Invalid value: \"\": version must not be empty"),
                format!("{path}.name: Invalid value: \"\": must not be empty"),
                format!("{path}.uid: Invalid value: \"\": must not be empty"),
            ]
        );
        let two = of(json!([owner("a", true), owner("b", true)]));
        assert!(two[0].ends_with("in references for a and b"), "{two:?}");
        let held = json!({"ownerReferences": [{"kind": "K"}]});
        assert_eq!(found(held.clone(), held), none);
    }

    #[test]
    fn what_is_held_may_stay() {
        let held = json!({
            "labels": {"a b": "c d", "e": "f g"},
            "annotations": {"h i": "x".repeat(MAX_ANNOTATIONS)},
            "finalizers": ["j k", "l m"],
        });
        let none = Vec::<String>::new();
        assert_eq!(found(held.clone(), held.clone()), none);
        let mut less = held.clone();
        less["labels"] = json!({"a b": "c"});
        less["annotations"]["h i"] = "x".into();
        less["finalizers"] = json!(["l m"]);
        assert_eq!(found(held.clone(), less), none);
        let mut more = held.clone();
        more["labels"]["e"] = "h i".into();
        more["annotations"]["n"] = "x".into();
        more["finalizers"] = json!(["j k", "o p"]);
        assert_eq!(found(held, more).len(), 3);
    }
}
