//! How resources look on standard output.

use std::time::SystemTime;

use keel_control::api::{ObjectMeta, Router};
use keel_control::server::Columns;
use serde_json::{Value, json};

use super::kinds::Kind;
use super::{routers, table};

/// How resources are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Output {
    /// A table
    Table,
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Shows objects of one kind.
pub(crate) struct Shown {
    kind: Kind,
    output: Output,
    /// Whether the namespace is a column.
    with_namespace: bool,
}

/// What tells an object from others of its kind.
pub(crate) fn identity(object: &Value) -> (String, String) {
    let text = |field: &str| {
        object["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (text("namespace"), text("name"))
}

impl Shown {
    pub(crate) fn new(kind: Kind, output: Output, all_namespaces: bool) -> Self {
        Self {
            kind,
            output,
            with_namespace: all_namespaces && kind.0.is_namespaced,
        }
    }

    /// One object that was asked for by its name.
    pub(crate) fn one(&self, object: Value) -> anyhow::Result<String> {
        Ok(match self.output {
            Output::Table | Output::Wide => self.table(&[object]),
            Output::Json => serde_json::to_string_pretty(&without_owners(object))? + "\n",
            Output::Yaml => serde_saphyr::to_string(&without_owners(object))?,
        })
    }

    /// All objects that were asked for.
    pub(crate) fn all(&self, objects: Vec<Value>) -> anyhow::Result<String> {
        if matches!(self.output, Output::Table | Output::Wide) {
            return Ok(match objects.is_empty() {
                true => format!("no {} found\n", self.kind.0.plural),
                false => self.table(&objects),
            });
        }
        let items: Vec<Value> = objects
            .into_iter()
            .map(|object| without_owners(self.named(object)))
            .collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        Ok(match self.output {
            Output::Yaml => serde_saphyr::to_string(&list)?,
            _ => serde_json::to_string_pretty(&list)? + "\n",
        })
    }

    /// The first thing that a watch shows.
    pub(crate) fn snapshot(&self, objects: Vec<Value>) -> anyhow::Result<String> {
        if matches!(self.output, Output::Table | Output::Wide) {
            return Ok(self.table(&objects));
        }
        let shown = objects
            .into_iter()
            .map(|object| self.event("ADDED", object));
        shown.collect()
    }

    /// An object that is new or has changed.
    pub(crate) fn event(&self, kind: &str, object: Value) -> anyhow::Result<String> {
        let object = self.named(object);
        Ok(match self.output {
            // The header was printed with the snapshot.
            Output::Table | Output::Wide => {
                let table = self.table(&[object]);
                table.split_once('\n').map_or("", |(_, row)| row).to_owned()
            }
            Output::Json => format!(
                "{}\n",
                json!({"type": kind, "object": without_owners(object)})
            ),
            Output::Yaml => {
                let event = json!({"type": kind, "object": without_owners(object)});
                format!("---\n{}", serde_saphyr::to_string(&event)?)
            }
        })
    }

    /// An object that is gone.
    pub(crate) fn deleted(&self, meta: &ObjectMeta) -> anyhow::Result<String> {
        if matches!(self.output, Output::Table | Output::Wide) {
            return Ok(match &meta.namespace {
                Some(namespace) if self.with_namespace => {
                    format!("{namespace}   {}   deleted\n", meta.name)
                }
                _ => format!("{}   deleted\n", meta.name),
            });
        }
        self.event("DELETED", json!({"metadata": meta}))
    }

    /// The items of a list need not say what they are.
    fn named(&self, mut object: Value) -> Value {
        if let Some(fields) = object.as_object_mut() {
            let names = self.kind.0;
            fields
                .entry("apiVersion")
                .or_insert_with(|| names.api_version().into());
            fields.entry("kind").or_insert_with(|| names.kind.into());
        }
        object
    }

    fn table(&self, objects: &[Value]) -> String {
        let (now, wide) = (SystemTime::now(), self.output == Output::Wide);
        if self.kind.0.kind == "Router" {
            let read = |object: &Value| serde_json::from_value::<Router>(object.clone()).ok();
            if let Some(all) = objects.iter().map(read).collect::<Option<Vec<_>>>() {
                return routers::table(&all, wide, now);
            }
        }
        let Some(columns) = Columns::of(&self.kind.0) else {
            return String::new();
        };
        let place = self.with_namespace.then_some("NAMESPACE");
        let titles = columns.titles(wide).into_iter().map(str::to_uppercase);
        let header: Vec<String> = place.map(str::to_owned).into_iter().chain(titles).collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        let row = |object: &Value| {
            let namespace = self.with_namespace.then(|| identity(object).0);
            let cells = columns.cells(object, wide, now);
            namespace.into_iter().chain(cells).collect()
        };
        let rows: Vec<Vec<String>> = objects.iter().map(row).collect();
        table::render(&header, &rows)
    }
}

/// Who owns which field is more than all the rest, and of no use to a reader: kubectl leaves it out too.
fn without_owners(mut object: Value) -> Value {
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("managedFields");
    }
    object
}

#[cfg(test)]
mod tests {
    use keel_control::api::kept_kinds;

    use super::*;

    fn shown(kind: &str, output: Output) -> Shown {
        let kind = kept_kinds().find(|known| known.kind == kind).unwrap();
        Shown::new(Kind(kind), output, true)
    }

    #[test]
    fn every_kind_has_a_table() {
        let server = json!({"metadata": {"name": "s"}, "spec": {"bindPort": 17000}});
        let text = shown("FRPServer", Output::Table).table(&[server]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["NAME", "READY", "PORT", "SERVICES", "AGE"]);
        assert_eq!(lines[1], ["s", "-", "17000", "-", "<unknown>"]);
        let event = json!({"metadata": {"name": "e", "namespace": "shop"}});
        let text = shown("Event", Output::Table).table(&[event]);
        assert!(
            text.starts_with("NAMESPACE") && text.contains("shop"),
            "{text}"
        );
        for kind in kept_kinds() {
            assert!(Columns::of(&kind).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn an_event_is_a_line_of_json() {
        let object = json!({"metadata": {"name": "e", "managedFields": [1]}});
        let line = shown("Router", Output::Json)
            .event("ADDED", object)
            .unwrap();
        let expected = json!({"type": "ADDED", "object": {
            "apiVersion": "edge.example.com/v1", "kind": "Router", "metadata": {"name": "e"}}});
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
        assert_eq!(line.lines().count(), 1);
        let gone = ObjectMeta::named("e");
        let line = shown("Router", Output::Json).deleted(&gone).unwrap();
        assert!(line.contains("DELETED"), "{line}");
    }
}
