//! What a file of resources says: documents, lists taken apart, each with its place.

use serde::de::IgnoredAny;
use serde_json::{Deserializer, Value};

use super::kinds::Kind;
use crate::settings::describe;

/// Fields of `metadata` that the server fills in, which files that came out of a server carry: they say nothing to be applied.
const SERVERS: [&str; 7] = [
    "creationTimestamp",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// One resource of a file.
#[derive(Debug, PartialEq)]
pub(crate) struct Document {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// The namespace that it names.
    pub(crate) namespace: Option<String>,
    pub(crate) object: Value,
}

/// The resources of a text, or for each that is none what is wrong with it, in the order of the text.
pub(crate) fn read(text: &str, place: &str) -> Vec<Result<Document, String>> {
    let mut all = Vec::new();
    for (line, part) in parts(text).into_iter().flat_map(split_json) {
        match serde_saphyr::from_multiple::<Value>(part) {
            Ok(values) => {
                for value in values.into_iter().filter(|value| !value.is_null()) {
                    take(value, &format!("{place}:{line}"), &mut all);
                }
            }
            Err(error) => {
                let (at, reason) = describe(&error);
                let line = line + usize::try_from(at).unwrap_or(0).saturating_sub(1);
                all.push(Err(format!("{place}:{line}: {reason}")));
            }
        }
    }
    all
}

/// The documents of a text, each with its first line: one that cannot be read must not take the others along.
fn parts(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut first, mut at) = (0, 1, 0);
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let end = at + line.len();
        if line.trim_end() == "---" {
            parts.push((first, &text[start..at]));
            (start, first) = (end, number + 1);
        }
        at = end;
    }
    parts.push((first, &text[start..]));
    parts.retain(|(_, part)| !part.trim().is_empty());
    parts
}

/// JSON documents one behind the other, as `jq` writes them, are no YAML: each is a part of its own.
fn split_json((mut line, mut rest): (usize, &str)) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let blank = |text: &str| text.len() - text.trim_start().len();
    while rest[blank(rest)..].starts_with('{') {
        let mut values = Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        let Some(Ok(_)) = values.next() else { break };
        let (part, behind) = rest.split_at(values.byte_offset());
        let (before, part) = part.split_at(blank(part));
        line += before.matches('\n').count();
        parts.push((line, part));
        line += part.matches('\n').count();
        rest = behind;
    }
    parts.push((line, rest));
    parts.retain(|(_, part)| !part.trim().is_empty());
    parts
}

fn take(mut value: Value, place: &str, all: &mut Vec<Result<Document, String>>) {
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    let Some(of) = kind.strip_suffix("List") else {
        all.push(document(value).map_err(|why| format!("{place}: {why}")));
        return;
    };
    let (of, version) = (of.to_owned(), value["apiVersion"].clone());
    let Value::Array(items) = value["items"].take() else {
        all.push(Err(format!("{place}: a {kind} without items")));
        return;
    };
    for (number, mut item) in items.into_iter().enumerate() {
        // The items of a RouterList need not say what they are.
        if let (false, Some(fields)) = (of.is_empty(), item.as_object_mut()) {
            fields.entry("kind").or_insert_with(|| of.clone().into());
            fields
                .entry("apiVersion")
                .or_insert_with(|| version.clone());
        }
        all.push(document(item).map_err(|why| format!("{place}: items[{number}]: {why}")));
    }
}

fn document(mut object: Value) -> Result<Document, String> {
    let text = |at: &str| {
        object
            .pointer(at)
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let kind = Kind::of(
        &text("/kind").unwrap_or_default(),
        &text("/apiVersion").unwrap_or_default(),
    )?;
    let name = text("/metadata/name").unwrap_or_default();
    let whole = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b".-".contains(&c))
    };
    if !whole(&name) {
        let given = object.pointer("/metadata/name").unwrap_or(&Value::Null);
        return Err(format!(
            "a {} without a proper metadata.name: {given}; use a text of lower-case letters, digits, - and .",
            kind.0.kind
        ));
    }
    let namespace = text("/metadata/namespace");
    if namespace
        .as_deref()
        .is_some_and(|namespace| !whole(namespace))
    {
        return Err(format!("{kind} {name}: metadata.namespace is no name"));
    }
    if let Some(meta) = object["metadata"].as_object_mut() {
        for field in SERVERS {
            meta.remove(field);
        }
    }
    if let Some(fields) = object.as_object_mut() {
        // What it is is for whoever runs it to say.
        fields.remove("status");
    }
    Ok(Document {
        kind,
        name,
        namespace,
        object,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: edge.example.com/v1\nkind: Router\n";

    fn names(text: &str) -> Vec<Result<String, String>> {
        let all = read(text, "f").into_iter();
        all.map(|one| one.map(|one| format!("{} {}", one.kind, one.name)))
            .collect()
    }

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let two =
            format!("---\n{HEAD}metadata: {{name: a}}\n---\n{HEAD}metadata: {{name: b}}\n---\n");
        let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "a"}},
            {"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "b"}}]}"#;
        let own = "apiVersion: edge.example.com/v1\nkind: RouterList\nitems: [{metadata: {name: a}}, {metadata: {name: b}}]";
        let one = |name: &str| {
            format!(
                r#"{{"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {{"name": "{name}"}}}}"#
            )
        };
        let stream = format!("{}\n{}\n", one("a"), one("b"));
        let close = format!("{}{}", one("a"), one("b"));
        for text in [&two, list, own, &stream, &close] {
            assert_eq!(names(text), [Ok("router a".into()), Ok("router b".into())]);
        }
        assert!(names("---\n").is_empty());
    }

    #[test]
    fn one_that_is_broken_is_named_and_the_others_are_taken() {
        let good = |name: &str| format!("---\n{HEAD}metadata: {{name: {name}}}\n");
        for (broken, words) in [
            (
                "kind: Nope\napiVersion: v1\n",
                "there are Event, Namespace, Router, FRPServer",
            ),
            ("kind: Router\n", "write edge.example.com/v1 for a Router"),
            (
                "kind: Router\napiVersion: edge.example.com/v1\n",
                "metadata.name",
            ),
            (
                "kind: Router\napiVersion: edge.example.com/v1\nmetadata: {name: a/b}\n",
                "metadata.name",
            ),
            ("kind: List\n", "without items"),
            ("a: 1\na: 2\n", "duplicate"),
            ("a: [1\n", "f:6"),
            ("just a text\n", "kind"),
        ] {
            let found = names(&format!("{}---\n{broken}{}", good("a"), good("b")));
            assert_eq!(found.len(), 3, "{found:?}");
            assert_eq!(
                (&found[0], &found[2]),
                (&Ok("router a".into()), &Ok("router b".into()))
            );
            let why = found[1].as_ref().unwrap_err();
            assert!(
                why.starts_with("f:") && why.contains(words) && !why.contains("Policy"),
                "{why}"
            );
        }
    }

    #[test]
    fn a_broken_document_of_a_json_stream_is_named_with_its_line() {
        let good =
            r#"{"apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "a"}}"#;
        let found = names(&format!("{good}\n{{\"kind\": \"Nope\"}}\n{{\"a\": 1,\n"));
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0], Ok("router a".into()));
        assert!(
            found[1].as_ref().unwrap_err().starts_with("f:2"),
            "{found:?}"
        );
        assert!(
            found[2].as_ref().unwrap_err().starts_with("f:"),
            "{found:?}"
        );
    }

    #[test]
    fn what_the_server_fills_in_is_not_applied() {
        let text = "apiVersion: tunnel.kubeinfra.io/v1alpha1\nkind: FRPServer\nmetadata:\n  name: s\n  resourceVersion: '689594'\n  \
                    uid: u\n  labels: {a: b}\nspec: {bindPort: 17000}\nstatus: {activeConnections: []}\n";
        let [Ok(one)] = &read(text, "f")[..] else {
            panic!()
        };
        let expected = serde_json::json!({
            "apiVersion": "tunnel.kubeinfra.io/v1alpha1", "kind": "FRPServer", "metadata": {"name": "s", "labels": {"a": "b"}},
            "spec": {"bindPort": 17000},
        });
        assert_eq!(one.object, expected);
    }
}
