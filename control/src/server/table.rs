//! Objects as rows, for `kubectl get`.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::form::metadata;
use super::query::Include;
use crate::api::Time;
use crate::api::kind::{About, Column, KindNames, find};

/// How objects of a kind look in a table, for clients that print them themselves.
#[derive(Clone, Copy, Debug)]
pub struct Columns(&'static About);

impl Columns {
    /// The columns of a kind that is kept; none if there is no such kind.
    #[must_use]
    pub fn of(kind: &KindNames) -> Option<Self> {
        find(kind.group, kind.version, kind.plural).map(|kind| Self(&kind.about))
    }

    fn shown(self, wide: bool) -> impl Iterator<Item = &'static Column> {
        let columns = self.0.columns.iter();
        columns.filter(move |column| wide || column.priority == 0)
    }

    /// Their titles.
    #[must_use]
    pub fn titles(self, wide: bool) -> Vec<&'static str> {
        self.shown(wide).map(|column| column.title).collect()
    }

    /// The cells of an object, as many as there are titles.
    #[must_use]
    pub fn cells(self, object: &Value, wide: bool, now: SystemTime) -> Vec<String> {
        let texts =
            self.shown(wide)
                .map(|column| match cell(object, column.kind, column.path, now) {
                    Value::String(text) => text,
                    Value::Null => String::new(),
                    other => other.to_string(),
                });
        texts.collect()
    }
}

/// A Table of these objects.
pub(super) fn table(
    about: &About,
    objects: &[Value],
    revision: Option<&str>,
    include: Include,
    with_columns: bool,
    now: SystemTime,
) -> Value {
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| row(about, object, include, now))
        .collect();
    let mut table = json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": revision.unwrap_or_default()},
        "columnDefinitions": if with_columns { definitions(about) } else { Value::Null },
        "rows": rows,
    });
    if revision.is_none() {
        table["metadata"] = json!({});
    }
    table
}

/// What the cells of a row are.
pub(super) fn definitions(about: &About) -> Value {
    about.columns.iter().map(definition).collect()
}

fn definition(column: &Column) -> Value {
    let format = match column.path {
        ".metadata.name" => "name",
        _ => "",
    };
    json!({
        "name": column.title, "type": column.kind, "format": format, "description": column.about, "priority": column.priority,
    })
}

/// One row of a Table.
pub(super) fn row(about: &About, object: &Value, include: Include, now: SystemTime) -> Value {
    let cells: Vec<Value> = about
        .columns
        .iter()
        .map(|column| cell(object, column.kind, column.path, now))
        .collect();
    let carried = match include {
        Include::None => return json!({"cells": cells}),
        Include::Object => object.clone(),
        Include::Metadata => metadata(object),
    };
    json!({"cells": cells, "object": carried})
}

fn cell(object: &Value, kind: &str, path: &str, now: SystemTime) -> Value {
    // Of several, the first that is there.
    let found = path
        .split('|')
        .map(|path| select(object, path))
        .find(|found| found.iter().any(|value| !value.is_null()))
        .unwrap_or_default();
    match kind {
        "date" => {
            let Some(text) = found.first().and_then(|value| value.as_str()) else {
                return "<unknown>".into();
            };
            let at = serde_json::from_value::<Time>(text.into())
                .ok()
                .and_then(|time| time.to_system_time());
            at.map_or_else(
                || "<unknown>".into(),
                |at| age(now.duration_since(at).unwrap_or_default()).into(),
            )
        }
        "integer" => found.first().map_or(Value::Null, |value| (*value).clone()),
        _ => {
            let mut texts: Vec<&str> = found.iter().filter_map(|value| value.as_str()).collect();
            texts.dedup();
            texts.join(",").into()
        }
    }
}

/// What a path of `.name`, `[*]` and `[?(@.name=="text")]` selects.
fn select<'a>(object: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut selected = vec![object];
    // Dots inside a filter are not steps: a filter is cut out before the path is split.
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("[*]") {
            selected = selected
                .into_iter()
                .flat_map(|value| value.as_array().into_iter().flatten())
                .collect();
            rest = after;
        } else if let Some((filter, after)) = rest
            .strip_prefix("[?(@.")
            .and_then(|inner| inner.split_once(")]"))
        {
            let (name, text) = filter.split_once("==").unwrap_or((filter, ""));
            let text = text.trim_matches('"');
            selected = selected
                .into_iter()
                .flat_map(|value| value.as_array().into_iter().flatten())
                .filter(|item| item.get(name).and_then(Value::as_str) == Some(text))
                .collect();
            rest = after;
        } else {
            let step = rest.trim_start_matches('.');
            let end = step.find(['.', '[']).unwrap_or(step.len());
            let (name, after) = step.split_at(end);
            selected = selected
                .into_iter()
                .filter_map(|value| value.get(name))
                .collect();
            rest = after;
        }
    }
    selected
}

/// A duration as kubectl writes ages: two units at most, the finer one only where it matters.
fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let with = |whole: u64, unit: &str, rest: u64, finer: &str| match rest {
        0 => format!("{whole}{unit}"),
        rest => format!("{whole}{unit}{rest}{finer}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => with(minutes, "m", seconds % 60, "s"),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => with(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => with(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () => with(days / 365, "y", days % 365, "d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_select() {
        let object =
            json!({"a": [{"type": "x.y", "v": "1"}, {"type": "Ready", "v": "2"}], "b": {"c": "3"}});
        let texts = |path: &str| -> Vec<String> {
            select(&object, path)
                .iter()
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect()
        };
        assert_eq!(texts(".b.c"), ["3"]);
        assert_eq!(texts(".a[*].v"), ["1", "2"]);
        assert_eq!(texts(".a[?(@.type==\"Ready\")].v"), ["2"]);
        assert_eq!(texts(".a[?(@.type==\"x.y\")].v"), ["1"]);
        assert!(texts(".b.c.d").is_empty() && texts(".none[*].v").is_empty());
    }

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        let text = |seconds| age(Duration::from_secs(seconds));
        assert_eq!(
            [
                text(119),
                text(125),
                text(600),
                text(3 * 3600),
                text(26 * 3600),
                text(3 * 86400 + 7200),
                text(800 * 86400)
            ],
            ["119s", "2m5s", "10m", "3h", "26h", "3d2h", "2y70d"]
        );
    }
}
